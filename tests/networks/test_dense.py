"""Dense layers with noise: their moments, and their means without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.networks.dense import NOISE, NoisyDense, answer, has_noise
from siamrl.networks.implicit import implicit_network
from siamrl.networks.q_network import mlp_network
from siamrl.parameters import FieldError

OBS = np.ones((1, 1, 3), np.float32)


def _answers(layer, params, x, draws):
  keys = jax.random.split(jax.random.key(7), draws)
  return jax.vmap(lambda k: layer.apply(params, x, rngs={NOISE: k}))(keys)


def test_moments_of_a_layer():
  """f(e) has mean 0 and variance sqrt(2 / pi) (by hand: E|e|)."""
  layer = NoisyDense(4, noisy_std=0.5)
  x = jnp.array([[1.0, -2.0, 0.5]])
  params = layer.init(jax.random.key(0), x)
  inner = params['params']
  np.testing.assert_allclose(inner['kernel_std'], 0.5 / 3**0.5, rtol=1e-6)
  np.testing.assert_allclose(inner['bias_std'], 0.5 / 3**0.5, rtol=1e-6)

  found = np.asarray(_answers(layer, params, x, 40_000))[:, 0]
  mean = x @ inner['kernel'] + inner['bias']
  np.testing.assert_allclose(layer.apply(params, x), mean, rtol=1e-6)
  np.testing.assert_allclose(found.mean(0), mean[0], atol=0.03)
  # var = sigma^2 (sum_i x_i^2 v v + v), v = sqrt(2 / pi); the cross terms of
  # weights and biases have mean 0, since E f(e_i) = 0.
  v = (2 / np.pi) ** 0.5
  expected = 0.25 / 3 * (5.25 * v * v + v)
  np.testing.assert_allclose(found.var(0), expected, rtol=0.05)
  # The outputs share the inputs' noise but not their own.
  assert abs(np.corrcoef(found.T)[0, 1]) < 0.02


@pytest.mark.parametrize('rows', [2, 5])
def test_noise_is_the_same_for_all_rows(rows):
  layer = NoisyDense(2)
  x = jnp.ones((rows, 3))
  params = layer.init(jax.random.key(0), x)
  found = _answers(layer, params, x, 2)
  np.testing.assert_array_equal(found, found[:, :1].repeat(rows, 1))
  assert (found[0] != found[1]).all()


def test_few_rows_have_the_noise_of_many():
  layer, x = NoisyDense(4), jax.random.normal(jax.random.key(2), (6, 3))
  params = layer.init(jax.random.key(0), x)
  few, many = (_answers(layer, params, part, 3) for part in (x[:2], x))
  np.testing.assert_allclose(few, many[:, :2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('head', ['linear', 'dueling'])
def test_networks_have_noise_in_every_dense_layer(head):
  network = mlp_network(3, sizes=(8,), head=head, noisy_std=0.1)
  assert has_noise(network)
  assert has_noise(implicit_network(network))
  params = network.init(jax.random.key(0), OBS)
  names = [path[-1].key for path, _ in jax.tree.leaves_with_path(params)]
  assert names.count('kernel') == names.count('kernel_std')

  def loss(params):
    return jnp.sum(answer(network, params, OBS, key=jax.random.key(1)) ** 2)

  for path, leaf in jax.tree.leaves_with_path(jax.grad(loss)(params)):
    assert jnp.any(leaf), path
  assert (
    answer(network, params, OBS, key=jax.random.key(1))
    != answer(network, params, OBS, key=None)
  ).all()


def test_networks_without_noise_ignore_the_key():
  network = mlp_network(3, sizes=(8,))
  assert not has_noise(network)
  params = network.init(jax.random.key(0), OBS)
  np.testing.assert_array_equal(
    answer(network, params, OBS, key=jax.random.key(1)),
    answer(network, params, OBS, key=None),
  )


def test_a_head_without_noise_refuses_it():
  network = mlp_network(3, head='shared_bias', noisy_std=0.5)
  with pytest.raises(FieldError, match='noisy_std'):
    network.init(jax.random.key(0), OBS)
