"""Epsilon-greedy actions, and losses of a batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.agents.discrete import (
  epsilon_greedy,
  exploration_noise,
  one_by_one,
)


def _act_many(q_values, epsilon, draws=20_000):
  keys = jax.random.split(jax.random.key(0), draws)
  noise = jax.vmap(lambda key: exploration_noise(key, len(q_values)))(keys)
  actions = jax.vmap(lambda n: epsilon_greedy(q_values, n, epsilon))(noise)
  return np.asarray(actions)


def test_greedy_takes_the_best_and_the_first_of_equals():
  q_values = jnp.array([[0.0, 2.0, 1.0], [3.0, 3.0, 0.0]])
  noise = exploration_noise(jax.random.key(0), 2)
  actions = epsilon_greedy(q_values, noise, 0.0)
  assert actions.dtype == jnp.int32
  np.testing.assert_array_equal(actions, [1, 0])


@pytest.mark.parametrize('epsilon', [0.1, 0.5, 1.0])
def test_frequencies_of_epsilon_greedy(epsilon):
  actions = _act_many(jnp.array([[0.0, 1.0, 0.0, 0.0]]), epsilon)[:, 0]
  frequency = np.bincount(actions, minlength=4) / len(actions)
  expected = np.full(4, epsilon / 4) + np.array([0, 1 - epsilon, 0, 0])
  # Five standard deviations of a frequency over 20,000 draws.
  np.testing.assert_allclose(frequency, expected, atol=5 * 0.5 / 20_000**0.5)


def test_rows_explore_independently():
  actions = _act_many(jnp.zeros((2, 2)).at[:, 0].set(1.0), 0.5, 4_000)
  both = np.mean((actions[:, 0] == 1) & (actions[:, 1] == 1))
  assert both == pytest.approx(1 / 16, abs=0.02)


def test_one_by_one_is_a_map_over_the_batch():
  rng = np.random.default_rng(0)
  one, other = rng.normal(size=(2, 5, 3)).astype(np.float32)

  def loss(a, b):
    return jnp.sum(a * jnp.sin(b))

  def total(f):
    return lambda a, b: jnp.sum(f(a, b) * jnp.arange(5))

  ours = functools.partial(one_by_one, loss)
  np.testing.assert_allclose(ours(one, other), jax.vmap(loss)(one, other), 1e-5)
  gradients = [
    jax.grad(total(f), (0, 1))(one, other) for f in (ours, jax.vmap(loss))
  ]
  jax.tree.map(np.testing.assert_allclose, *gradients)
