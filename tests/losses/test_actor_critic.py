"""Equations of actors and critics: by hand, by law, and against rlax."""

import math
import warnings

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.losses import actor_critic as losses
from siamrl.losses import td

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  import rlax

LOG_2PI = math.log(2 * math.pi)

# Equation, axes to vmap, arguments of two states, and what is done by hand.
BY_HAND = {
  'smallest_value': (
    losses.smallest_value,
    0,
    ([[1.0, -2.0, 0.5], [3.0, 5.0, 4.0]],),
    [-2.0, 3.0],
  ),
  'smoothed_action': (
    losses.smoothed_action,
    (0, 0, None, None),
    ([[0.5, -0.9], [0.0, 0.9]], [[1.0, -1.0], [-5.0, 9.0]], 0.2, 0.5),
    # 0.5 + 0.2; -0.9 - 0.2 is outside; -1 and 1.8 are clipped to 0.5 each, and
    # 0.9 + 0.5 is outside.
    [[0.7, -1.0], [-0.5, 1.0]],
  ),
  'deterministic_policy_loss': (
    losses.deterministic_policy_loss,
    0,
    ([[1.0, -2.0], [3.0, 5.0]],),
    [-1.0, -3.0],
  ),
  'tanh_gaussian': (
    losses.tanh_gaussian,
    0,
    (
      [[0.0, 0.0], [0.5, 0.0]],
      [[0.0, 0.0], [math.log(2), 0.0]],
      [[0.0, 0.0], [0.25, 0.0]],
    ),
    # In the second row u = 0.5 + 2 * 0.25 = 1, of which tanh**2 is 0.5800257:
    # -0.03125 - 0.6931472 - 0.9189385 + 0.8675617, and -0.9189385 for the other
    # dimension.
    ([[0.0, 0.0], [0.7615942, 0.0]], [-LOG_2PI, -1.6947125]),
  ),
  'soft_value': (
    losses.soft_value,
    (0, 0, None),
    ([[1.0, -2.0], [3.0, 5.0]], [0.5, -4.0], 0.2),
    [-2.1, 3.8],
  ),
  'soft_policy_loss': (
    losses.soft_policy_loss,
    (0, 0, None),
    ([[1.0, -2.0], [3.0, 5.0]], [0.5, -4.0], 0.2),
    [2.1, -3.8],
  ),
  'temperature_loss': (
    losses.temperature_loss,
    (None, 0, None),
    (math.log(0.5), [1.5, 3.0], -2.0),
    [0.25, -0.5],
  ),
}


@pytest.mark.parametrize('name', BY_HAND)
def test_by_hand(name):
  function, axes, arguments, expected = BY_HAND[name]
  arrays = [jnp.asarray(argument) for argument in arguments]
  found = jax.jit(jax.vmap(function, axes))(*arrays)
  found = found if isinstance(found, tuple) else (found,)
  expected = expected if isinstance(expected, tuple) else (expected,)
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  'form, bound, expected',
  [
    ('squared', 1.0, 10.0),
    ('half_squared', 1.0, 5.0),
    ('huber', 1.0, 0.5 + 2.5),
    ('huber', 0.5, 0.375 + 1.375),
  ],
)
def test_losses_of_critics_are_added_up(form, bound, expected):
  loss = losses.critics_loss(
    jnp.array([1.0, -3.0]), lambda error: td.FORMS[form](error, bound)
  )
  assert float(loss) == pytest.approx(expected)


# Log-densities.

_tanh_gaussian = jax.jit(losses.tanh_gaussian)


def _log_prob(mean, log_std, noise):
  """Of one dimension."""
  one = lambda x: np.float32([x])
  action, log_prob = _tanh_gaussian(one(mean), one(log_std), one(noise))
  return float(action[0]), float(log_prob)


@settings(max_examples=40, deadline=None)
@given(st.floats(-20, 20), st.floats(-5, 2), st.floats(-4, 4))
def test_log_density_in_twice_the_digits(mean, log_std, noise):
  """log N(u) + 2 log cosh(u), done in float64, far out too."""
  mean, log_std, noise = (float(np.float32(x)) for x in (mean, log_std, noise))
  action, log_prob = _log_prob(mean, log_std, noise)
  u = mean + math.exp(log_std) * noise
  expected = (
    -0.5 * noise**2 - log_std - 0.5 * LOG_2PI + 2 * math.log(math.cosh(u))
  )
  assert action == pytest.approx(math.tanh(u), abs=1e-5)
  assert log_prob == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_gradients_of_the_log_density_far_out():
  """With the noise held, d log pi / d mean = 2 tanh(u)."""
  u = np.float32([-50, -3, 0, 3, 50])
  zero = jnp.zeros(5)
  gradient = jax.jit(
    jax.grad(lambda mean: losses.tanh_gaussian(mean, zero, zero)[1])
  )(u)
  np.testing.assert_allclose(gradient, 2 * np.tanh(u), rtol=1e-5)


@pytest.mark.parametrize('mean, std', [(0.0, 1.0), (0.3, 0.6), (-0.5, 0.4)])
def test_the_density_of_all_actions_is_one(mean, std):
  actions = (np.arange(20_000) + 0.5) / 10_000 - 1
  noise = (np.arctanh(actions) - mean) / std
  column = lambda x: jnp.asarray(x, jnp.float32)[:, None]
  _, log_prob = jax.jit(jax.vmap(losses.tanh_gaussian))(
    column(np.full_like(noise, mean)),
    column(np.full_like(noise, math.log(std))),
    column(noise),
  )
  assert float(np.sum(np.exp(np.float64(log_prob)))) / 10_000 == (
    pytest.approx(1.0, abs=1e-3)
  )


def test_distrax_has_the_same_densities():
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    distrax = pytest.importorskip('distrax')
  rng = np.random.default_rng(0)
  mean, log_std, noise = rng.normal(size=(3, 64, 3)).astype(np.float32)
  log_std /= 2

  @jax.jit
  def both(mean, log_std, noise):
    action, log_prob = jax.vmap(losses.tanh_gaussian)(mean, log_std, noise)
    normal = distrax.Normal(mean, jnp.exp(log_std))
    policy = distrax.Transformed(normal, distrax.Tanh())
    return action, log_prob, jnp.sum(policy.log_prob(action), axis=1)

  action, ours, theirs = both(mean, log_std, noise)
  # It finds its way back from the action, and loses digits near the bounds.
  inside = np.max(np.abs(action), axis=1) < 0.99
  assert np.sum(inside) > 30
  np.testing.assert_allclose(ours[inside], theirs[inside], rtol=1e-3, atol=1e-3)


# Laws.


@pytest.mark.parametrize('critics', [1, 2, 5])
def test_the_smallest_of_equal_critics_is_each(critics):
  q_t = jnp.full(critics, 1.7)
  assert losses.smallest_value(q_t) == q_t[0]


def test_smoothing_of_width_0_and_a_clip_of_0_leave_the_action():
  rng = np.random.default_rng(0)
  action = jnp.asarray(rng.uniform(-1, 1, 50), jnp.float32)
  noise = jnp.asarray(rng.normal(size=50), jnp.float32)
  for std, clip in ((0.0, 0.5), (0.2, 0.0)):
    np.testing.assert_array_equal(
      losses.smoothed_action(action, noise, std, clip), action
    )


def test_a_temperature_of_0_counts_no_entropy():
  q_t = jnp.array([1.0, -2.0])
  assert losses.soft_value(q_t, 7.0, 0.0) == losses.smallest_value(q_t)


@pytest.mark.parametrize('entropy, rises', [(-3.0, True), (-1.0, False)])
def test_the_temperature_rises_where_there_is_too_little_entropy(
  entropy, rises
):
  gradient = jax.jit(jax.grad(losses.temperature_loss))(0.3, -entropy, -2.0)
  assert (gradient < 0) == rises
  # exp(0.3) * (entropy - target)
  assert float(gradient) == pytest.approx(math.exp(0.3) * (entropy + 2.0))


def test_the_deterministic_policy_gradient_is_that_of_rlax():
  """Critics -|a - c_k|**2, and an actor a = tanh(weights * s)."""
  centers = jnp.array([[0.3, -0.2], [0.9, 0.9]])
  critics = lambda a: -jnp.sum(jnp.square(a - centers), axis=1)
  policy = lambda weights: jnp.tanh(0.7 * weights)

  def ours(weights):
    return losses.deterministic_policy_loss(critics(policy(weights)))

  def theirs(weights):
    dqda = jax.grad(lambda a: critics(a)[0])(policy(weights))
    return jnp.sum(rlax.dpg_loss(policy(weights), dqda))

  gradients = jax.jit(lambda w: (jax.grad(ours)(w), jax.grad(theirs)(w)))
  np.testing.assert_allclose(*gradients(jnp.array([0.5, -1.0])), rtol=1e-5)


@pytest.mark.parametrize('name', [n for n in BY_HAND if 'temp' not in n])
def test_a_batch_has_to_be_vmapped(name):
  function, _, arguments, _ = BY_HAND[name]
  with pytest.raises(AssertionError):
    function(*(jnp.asarray(argument) for argument in arguments))
