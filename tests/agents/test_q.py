"""Q agents: acting, losses, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.agents.q import epsilon_greedy, exploration_noise, make_q_agent
from siamrl.networks.q_network import mlp_network
from siamrl.types import Transition

OBS = np.zeros((1, 1, 2), np.float32)


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


def _batch(reward, discount):
  obs = np.array([[[1.0, 2.0]], [[3.0, -1.0]]], np.float32)
  return Transition(
    obs,
    np.array([0, 1], np.int32),
    np.float32(reward),
    np.float32(discount),
    obs[::-1].copy(),
  )


@pytest.mark.parametrize('name', ['dqn', 'double_dqn'])
@pytest.mark.parametrize('reduction, scale', [('mean', 0.5), ('sum', 1.0)])
def test_loss_of_known_values(name, reduction, scale):
  """A network without hidden layers and known weights, done in NumPy."""
  network = mlp_network(2, sizes=())
  agent = make_q_agent(
    network, OBS, name=name, td_loss='squared', batch_reduction=reduction
  )
  kernel = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
  twin = np.array([[-1.0, 0.5], [1.0, 1.0]], np.float32)
  fill = lambda k: jax.tree.map(
    lambda leaf: k if leaf.ndim == 2 else jnp.zeros_like(leaf),
    agent.init(jax.random.key(0)),
  )
  batch = _batch([1.0, 2.0], [0.5, 0.0])
  value, metrics = agent.loss(
    fill(kernel), fill(twin), batch, jax.random.key(0)
  )
  x, y = batch.obs_tm1[:, 0], batch.obs_t[:, 0]
  q, bootstrap = x @ kernel, y @ twin
  best = (
    bootstrap.max(1)
    if name == 'dqn'
    else bootstrap[[0, 1], (y @ kernel).argmax(1)]
  )
  errors = batch.r_t + batch.discount_t * best - q[[0, 1], [0, 1]]
  assert value == pytest.approx(scale * np.sum(errors**2), rel=1e-6)
  assert metrics['q_tm1'] == pytest.approx(q[[0, 1], [0, 1]])
  assert metrics['td_error_abs'] == pytest.approx(np.abs(errors))
  # A weight multiplies the loss of its transition and changes no error.
  value, weighted = agent.loss(
    fill(kernel),
    fill(twin),
    batch._replace(weight=np.float32([0.5, 3.0])),
    jax.random.key(0),
  )
  assert value == pytest.approx(
    scale * np.sum([0.5, 3.0] * errors**2), rel=1e-6
  )
  assert weighted['td_error_abs'] == pytest.approx(metrics['td_error_abs'])


@pytest.mark.parametrize('form', ['huber', 'clipped'])
def test_the_bound_holds_the_gradient(form):
  network = mlp_network(2, sizes=())
  agent = make_q_agent(
    network, OBS, td_loss=form, error_bound=0.25, batch_reduction='sum'
  )
  params = jax.tree.map(jnp.zeros_like, agent.init(jax.random.key(0)))
  # Errors of 5 and -0.125: only the first is bounded.
  batch = _batch([5.0, -0.125], [0.0, 0.0])
  grads, _ = jax.grad(agent.loss, has_aux=True)(
    params, params, batch, jax.random.key(0)
  )
  (bias,) = (leaf for leaf in jax.tree.leaves(grads) if leaf.ndim == 1)
  np.testing.assert_allclose(bias, [-0.25, 0.125], rtol=1e-6)


@pytest.mark.parametrize(
  'kwargs, message',
  [
    (dict(name='dqm'), "agent='dqm' is unknown; choose from dqn, double_dqn"),
    (dict(td_loss='l1'), "td_loss='l1' is unknown"),
    (dict(batch_reduction='max'), "batch_reduction='max' is unknown"),
    (dict(error_bound=0.0), 'error_bound=0.0 must be positive'),
  ],
)
def test_what_make_q_agent_refuses(kwargs, message):
  with pytest.raises(ValueError, match=message):
    make_q_agent(mlp_network(2), OBS, **kwargs)
