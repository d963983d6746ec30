"""Batch renormalization: by hand, beside Flax's layer and CrossQ's formula."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.networks.policies import Critic, TanhGaussianActor
from siamrl.networks.renorm import BatchRenorm, NormalizedMLP

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(16, 3)) * [1.0, 2.0, 0.5] + [0, 1, -3]).astype(np.float32)


def _variables(mean, var, scale=1.0, bias=0.0):
  full = functools.partial(jnp.full, np.shape(mean))
  return {
    'params': {'scale': full(scale), 'bias': full(bias)},
    'batch_stats': {'mean': jnp.asarray(mean), 'var': jnp.asarray(var)},
  }


def _train(module, variables, x, warmed_up):
  y, state = module.apply(
    variables, x, True, warmed_up, mutable=['batch_stats']
  )
  return y, state['batch_stats']


@pytest.mark.parametrize(
  'mean, var, expected',
  [
    # m = 2, s = 1; r = 1/2 and d = 1, so that it is x / 2 as in evaluation.
    (0.0, 4.0, [0.5, 1.5]),
    # r = 10 is clipped to 3, d = (2 - 1.7) / 0.1 = 3 is not.
    (1.7, 0.01, [0.0, 6.0]),
    # r = 1/5 is clipped to 1/3, d = 12 / 5.
    (-10.0, 25.0, [2.4 - 1 / 3, 2.4 + 1 / 3]),
    # d = -20 is clipped to -5.
    (22.0, 1.0, [-6.0, -4.0]),
  ],
)
def test_by_hand(mean, var, expected):
  module, x = BatchRenorm(epsilon=0.0), jnp.array([[1.0], [3.0]])
  variables = _variables([mean], [var])
  y, measured = _train(module, variables, x, True)
  np.testing.assert_allclose(y[:, 0], expected, rtol=1e-5, atol=1e-5)
  assert (float(measured['mean'][0]), float(measured['var'][0])) == (2.0, 1.0)
  # Before the warm-up ends nothing is corrected.
  y, _ = _train(module, variables, x, False)
  np.testing.assert_allclose(y[:, 0], [-1.0, 1.0], rtol=1e-6)
  scaled = _variables([mean], [var], scale=2.0, bias=0.25)
  y, _ = _train(module, scaled, x, True)
  np.testing.assert_allclose(
    y[:, 0], 2 * np.array(expected) + 0.25, rtol=1e-5, atol=1e-4
  )


def test_unclipped_it_answers_as_in_evaluation():
  variables = _variables(np.float32([0.2, 0.5, -2.0]), np.float32([2, 3, 0.3]))
  y, _ = _train(BatchRenorm(), variables, X, True)
  np.testing.assert_allclose(
    y, BatchRenorm().apply(variables, X), rtol=1e-4, atol=1e-5
  )


def test_it_is_batch_normalization_until_warmed_up():
  """And in evaluation; beside Flax's layer."""
  variables = _variables(np.float32([1, 2, 3]), np.float32([1, 2, 3]), 2.0, 0.5)
  flax = nn.BatchNorm(momentum=0.0, epsilon=1e-3)

  def of_flax(x):
    return flax.apply(variables, x, False, mutable=['batch_stats'])

  y, measured = _train(BatchRenorm(), variables, X, False)
  expected, state = of_flax(X)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
  for name in ('mean', 'var'):
    np.testing.assert_allclose(
      measured[name], state['batch_stats'][name], rtol=1e-4
    )
  np.testing.assert_allclose(
    BatchRenorm().apply(variables, X), flax.apply(variables, X, True), rtol=1e-5
  )
  # Gradients flow through the batch's mean and variance.
  weights = RNG.normal(size=X.shape)
  one, other = (
    jax.grad(lambda x, f=f: jnp.sum(weights * f(x)[0]))(X)
    for f in (lambda x: _train(BatchRenorm(), variables, x, False), of_flax)
  )
  np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_beside_the_formula_of_its_source():
  """CrossQ's code makes another mean and variance of r and d."""
  mean, var = np.float32([0.5, 9.0, -2.9]), np.float32([4.0, 1.0, 0.001])
  epsilon = 1e-3
  m, v = X.mean(0), X.var(0)
  std, running = np.sqrt(v + epsilon), np.sqrt(var + epsilon)
  r = np.clip(std / running, 1 / 3, 3)
  d = np.clip((m - mean) / running, -5, 5)
  theirs = (X - (m - d * np.sqrt(v) / r)) / np.sqrt(v / r**2 + epsilon)
  y, _ = _train(BatchRenorm(epsilon), _variables(mean, var), X, True)
  # They differ by terms of the size of epsilon r**2 / v.
  np.testing.assert_allclose(y, theirs, rtol=0.05, atol=0.05)
  assert np.abs(y - theirs)[:, 0].max() < 1e-2
  plain, _ = _train(BatchRenorm(epsilon), _variables(mean, var), X, False)
  assert np.abs(y - plain).max() > 1


def test_no_gradient_through_the_correction():
  mean, var = np.float32([0.5, 1.0, -2.0]), np.float32([2.0, 2.0, 0.4])
  variables, weights = _variables(mean, var), RNG.normal(size=X.shape)
  gradient = jax.grad(
    lambda x, warm: jnp.sum(
      weights * _train(BatchRenorm(), variables, x, warm)[0]
    )
  )
  r = np.sqrt(X.var(0) + 1e-3) / np.sqrt(var + 1e-3)
  np.testing.assert_allclose(
    gradient(X, True), r * gradient(X, False), rtol=1e-3, atol=1e-5
  )


def test_a_dead_unit_has_finite_gradients():
  x, variables = jnp.zeros((4, 1)), _variables([0.1], [0.5])
  gradient = jax.grad(
    lambda x: jnp.sum(_train(BatchRenorm(), variables, x, True)[0])
  )
  assert np.isfinite(gradient(x)).all()


def test_the_input_and_each_hidden_layer_are_normalized():
  module = NormalizedMLP((5, 4), 'lecun_normal', None, False)
  x = RNG.normal(size=(8, 1, 3)).astype(np.float32)
  variables = module.init(jax.random.key(0), x)
  assert {k: v['mean'].shape for k, v in variables['batch_stats'].items()} == {
    'BatchRenorm_0': (3,),
    'BatchRenorm_1': (5,),
    'BatchRenorm_2': (4,),
  }
  y, _ = module.apply(variables, x, True, mutable=['batch_stats'])
  np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
  assert np.all((y.std(0) < 1.0) & ((y.std(0) > 0.5) | (y.std(0) == 0)))


def test_networks_normalize_if_they_are_to():
  obs, action = jnp.ones((2, 3)), jnp.ones((2, 1))
  critic = Critic(sizes=(4,), batch_norm=True)
  shapes = jax.eval_shape(critic.init, jax.random.key(0), obs, action)
  norms = shapes['batch_stats']['torso']
  # Observation and action together.
  assert norms['BatchRenorm_0']['mean'].shape == (4,)
  assert shapes['params']['last']['kernel'].shape == (4, 1)
  actor = TanhGaussianActor(sizes=(4,), action_dim=1, batch_norm=True)
  assert 'batch_stats' in jax.eval_shape(actor.init, jax.random.key(0), obs)
  plain = TanhGaussianActor(sizes=(4,), action_dim=1)
  assert set(jax.eval_shape(plain.init, jax.random.key(0), obs)) == {'params'}
  with pytest.raises(ValueError, match='action_layer=1 must be 0 with batch_n'):
    Critic(sizes=(4,), action_layer=1, batch_norm=True)
