"""Distributions of returns: by hand, by law, by brute force, against rlax."""

import warnings

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from siamrl.losses import distributional as losses

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  import rlax

SUPPORT = losses.make_support(5, -2.0, 2.0)
SEEDS = st.integers(0, 2**32 - 1)


def _floats(*values):
  return jnp.array(values, jnp.float32)


def _probs(rng, *shape):
  return rng.dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32)


def _algorithm_1(returns, probs, v_min, v_max, count):
  """The loop of Bellemare et al. (2017), in float64, as the paper has it."""
  m, step = np.zeros(count), (v_max - v_min) / (count - 1)
  for value, prob in zip(np.float64(returns), np.float64(probs), strict=True):
    b = (np.clip(value, v_min, v_max) - v_min) / step
    low, high = int(np.floor(b)), min(int(np.ceil(b)), count - 1)
    if low == high:  # of which the paper's loop loses the mass
      m[low] += prob
    else:
      m[low] += prob * (high - b)
      m[high] += prob * (b - low)
  return m


def test_the_row_of_an_action():
  answers = jnp.arange(6.0).reshape(3, 2)
  np.testing.assert_array_equal(losses.of_action(answers, 1), [2, 3])
  np.testing.assert_array_equal(losses.of_action(answers, 3), [0, 0])
  gradient = jax.grad(lambda x: losses.of_action(x, 2).sum())(answers)
  np.testing.assert_array_equal(gradient, [[0, 0], [0, 0], [1, 1]])


def test_support():
  np.testing.assert_array_equal(SUPPORT, [-2, -1, 0, 1, 2])
  atoms = losses.make_support(51, -10, 10)
  assert atoms.dtype == np.float32
  assert (atoms[0], atoms[25], atoms[-1]) == (-10, 0, 10)


def test_projection_by_hand():
  # 0.25 of the way, half-way, and beyond the highest atom.
  found = losses.project(
    _floats(0.25, 1.5, 9.0), _floats(0.5, 0.25, 0.25), _floats(0, 1, 2)
  )
  np.testing.assert_allclose(found, [0.375, 0.25, 0.375])


_project = jax.jit(losses.project)


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_projection_is_algorithm_1_and_rlax(seed):
  rng = np.random.default_rng(seed)
  count = int(rng.choice([2, 23, 51]))
  low = float(rng.normal(scale=5))
  high = low + float(rng.uniform(0.5, 20))
  support = losses.make_support(count, low, high)
  returns = rng.uniform(low - 2, high + 2, 12).astype(np.float32)
  probs = _probs(rng, 12)
  found = _project(returns, probs, support)
  np.testing.assert_allclose(
    found, _algorithm_1(returns, probs, low, high, count), atol=1e-4
  )
  np.testing.assert_allclose(
    found, rlax.categorical_l2_project(returns, probs, support), atol=1e-4
  )
  assert found.sum() == pytest.approx(1, abs=1e-5)
  inside = np.clip(returns, low, high)
  assert losses.categorical_mean(found, support) == pytest.approx(
    float(inside @ probs), abs=1e-3
  )


def test_targets_of_categories():
  probs = _floats(0.1, 0.2, 0.4, 0.2, 0.1)
  same = losses.categorical_target(0.0, 1.0, probs, SUPPORT)
  np.testing.assert_allclose(same, probs, rtol=1e-6)
  certain = losses.categorical_target(0.5, 0.0, probs, SUPPORT)
  np.testing.assert_allclose(certain, [0, 0, 0.5, 0.5, 0], atol=1e-6)
  # 1 + z / 2 is 0, 0.5, 1, 1.5, 2.
  halved = losses.categorical_target(1.0, 0.5, probs, SUPPORT)
  np.testing.assert_allclose(halved, [0, 0, 0.2, 0.6, 0.2], rtol=1e-6)


def test_categorical_loss():
  target = _floats(0, 0.25, 0.75)
  assert losses.categorical_loss(jnp.zeros(3), target) == pytest.approx(
    np.log(3)
  )
  logits = _floats(1, -2, 0.5)
  gradient = jax.grad(losses.categorical_loss)(logits, target)
  np.testing.assert_allclose(
    gradient, jax.nn.softmax(logits) - target, rtol=1e-5
  )
  # Impossible returns cost nothing, however unlikely they are held to be.
  sure = losses.categorical_loss(_floats(-1e4, 0, -1e4), _floats(0, 1, 0))
  assert sure == 0


def test_moments():
  probs = _floats(0.5, 0, 0, 0, 0.5)
  assert losses.categorical_mean(probs, SUPPORT) == 0
  assert losses.categorical_std(probs, SUPPORT) == 2
  rows = jnp.stack([probs, _floats(0, 0, 0, 1, 0)])
  np.testing.assert_allclose(losses.categorical_mean(rows, SUPPORT), [0, 1])
  np.testing.assert_allclose(losses.categorical_std(rows, SUPPORT), [2, 0])


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_distances_are_those_of_scipy(seed):
  rng = np.random.default_rng(seed)
  one, other = _probs(rng, 2, 5)
  found = losses.categorical_distance(one, other, SUPPORT)
  assert found == pytest.approx(
    scipy.stats.wasserstein_distance(SUPPORT, SUPPORT, one, other), abs=1e-4
  )
  means = [losses.categorical_mean(p, SUPPORT) for p in (one, other)]
  assert found >= abs(means[0] - means[1]) - 1e-5
  one, other = rng.normal(size=(2, 7)).astype(np.float32)
  assert losses.quantile_distance(one, other) == pytest.approx(
    scipy.stats.wasserstein_distance(one, other), abs=1e-4
  )
  assert losses.quantile_distance(one, rng.permutation(one)) == 0


def test_distances_by_hand():
  low, high = jnp.eye(5)[0], jnp.eye(5)[4]
  assert losses.categorical_distance(low, high, SUPPORT) == 4
  assert losses.categorical_distance(low, low, SUPPORT) == 0
  both = jnp.stack([low, high])
  np.testing.assert_array_equal(
    losses.categorical_distance(both, both[::-1], SUPPORT), [4, 4]
  )
  assert losses.quantile_distance(_floats(3, 1), _floats(1, 5)) == 1


def test_midpoints():
  np.testing.assert_array_equal(
    losses.midpoints(4), [0.125, 0.375, 0.625, 0.875]
  )
  np.testing.assert_array_equal(losses.midpoints(1), [0.5])


def test_targets_of_quantiles():
  found = losses.quantile_target(1.0, 0.5, _floats(-2, 4))
  np.testing.assert_array_equal(found, [0, 3])


@pytest.mark.parametrize(
  'target, bound, loss',
  [
    # Errors 1 and -1: 0.25 * 0.5 + (1 - 0.75) * 0.5.
    ([1.0], 1.0, 0.25),
    # Errors 4 and 2: 0.25 * 3.5 + 0.75 * 1.5.
    ([4.0], 1.0, 2.0),
    # The mean over the target's returns.
    ([1.0, 4.0], 1.0, 1.125),
    # Errors 4 and 2, squared: 0.25 * 8 + 0.75 * 2.
    ([4.0], 10.0, 3.5),
  ],
)
def test_quantile_loss_by_hand(target, bound, loss):
  found = losses.quantile_huber_loss(
    _floats(0, 2), _floats(0.25, 0.75), _floats(*target), bound
  )
  assert found == pytest.approx(loss)


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.sampled_from([0.1, 1.0, 3.0]))
def test_quantile_loss_is_that_of_rlax(seed, bound):
  rng = np.random.default_rng(seed)
  quantiles, fractions, target = (
    (2 * rng.normal(size=6)).astype(np.float32),
    rng.random(6).astype(np.float32),
    (2 * rng.normal(size=4)).astype(np.float32),
  )
  value, gradient = jax.value_and_grad(losses.quantile_huber_loss)(
    quantiles, fractions, target, bound
  )
  expected, expected_gradient = jax.value_and_grad(
    rlax.quantile_regression_loss
  )(quantiles, fractions, target, bound)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_soft_quantiles_by_hand():
  # exp(log 3) : exp(0) is a policy of 3/4 and 1/4.
  values = _floats(0.5 * np.log(3), 0)
  found = losses.soft_quantiles(_floats([1, 5], [-3, 9]), values, 0.5)
  entropy = -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
  np.testing.assert_allclose(found, [0.5 * entropy, 6 + 0.5 * entropy])


def test_soft_quantiles_have_the_mean_of_soft_values():
  returns = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  found = losses.soft_quantiles(returns, returns.mean(-1), 0.3)
  expected = 0.3 * jax.nn.logsumexp(returns.mean(-1) / 0.3)
  np.testing.assert_allclose(found.mean(), expected, rtol=1e-5)


def test_the_quantile_loss_is_least_at_the_quantiles():
  target = jnp.arange(100.0)
  fractions = losses.midpoints(4)
  slope = jax.grad(losses.quantile_huber_loss)
  for offset, sign in ((-3, -1), (3, 1)):
    quantiles = jnp.quantile(target, fractions) + offset
    found = slope(quantiles, fractions, target, 1e-3)
    assert (np.sign(found) == sign).all()


def test_both_ways_to_project_agree():
  """On a CPU probabilities are scattered, elsewhere summed over all pairs."""
  rng = np.random.default_rng(3)
  for count in (2, 51):
    places = rng.uniform(0, count - 1, 40).astype(np.float32)
    places[:3] = 0, count - 1, count // 2
    probs = rng.dirichlet(np.ones(40)).astype(np.float32)
    np.testing.assert_allclose(
      losses._scattered(places, probs, count=count),
      losses._summed(places, probs, count=count),
      atol=1e-6,
    )


def test_what_is_not_finite_shows():
  support = losses.make_support(5, -1.0, 1.0)
  probs = np.full(2, 0.5, np.float32)
  bad = np.array([np.nan, 0.0], np.float32)
  assert np.isnan(losses.project(bad, probs, support)).any()
  assert np.isnan(losses.project(probs, bad, support)).any()


@pytest.mark.parametrize('bound', [0.5, 1.0, 3.0])
def test_gradients_of_the_quantile_loss_are_those_of_its_equation(bound):
  """The closed forms against derivatives of the equation itself."""
  rng = np.random.default_rng(0)
  quantiles, target = rng.normal(size=5) * 2, rng.normal(size=7) * 2
  fractions = rng.uniform(size=5)

  def equation(quantiles, target):
    total = 0.0
    for theta, tau in zip(quantiles, fractions, strict=True):
      for y in target:
        u = y - theta
        small = 0.5 * u**2
        large = bound * (jnp.abs(u) - 0.5 * bound)
        huber = jnp.where(jnp.abs(u) <= bound, small, large)
        total += jnp.abs(tau - (u < 0)) * huber / len(target)
    return total

  def ours(quantiles, target):
    return losses.quantile_huber_loss(
      quantiles, jnp.asarray(fractions), target, bound
    )

  values, gradients = zip(
    *(
      jax.value_and_grad(f, (0, 1))(jnp.asarray(quantiles), jnp.asarray(target))
      for f in (ours, equation)
    ),
    strict=True,
  )
  np.testing.assert_allclose(*values, rtol=1e-5)
  for one, other in zip(*gradients, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
