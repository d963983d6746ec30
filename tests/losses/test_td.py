"""Targets and losses of TD errors: by hand, by law, and against rlax."""

import functools
import math
import warnings

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.losses import td

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  import rlax

# The parameters that a form gets where a test is about all of them.
PARAMETERS = {
  'mellowmax_omega': 2.0,
  'expected_epsilon': 0.4,
  'soft_temperature': 0.5,
  'munchausen_alpha': 0.9,
  'munchausen_clip': -1.0,
}
BATCH = td.TargetInputs(
  a_tm1=jnp.array([1, 2]),
  r_t=jnp.array([0.5, -1.0]),
  discount_t=jnp.array([0.9, 0.0]),
  q_t=jnp.array([[1.0, 5.0, 2.0], [7.0, 8.0, 9.0]]),
  q_t_online=jnp.array([[3.0, 1.0, 2.0], [0.0, 0.0, 1.0]]),
  q_tm1=jnp.array([[0.0, 1.0, 0.0], [2.0, 2.0, 2.0]]),
)


def _make(name, **parameters):
  takes = td.TARGETS[name].takes
  return td.make_target(
    name, **({key: PARAMETERS[key] for key in takes} | parameters)
  )


def _value(name, q_t, **parameters):
  """What the form makes of the successor's values alone."""
  q_t = jnp.asarray(q_t, jnp.float32)
  inputs = td.TargetInputs(jnp.int32(0), 0.0, 1.0, q_t, q_t, jnp.zeros(1))
  return float(_make(name, **parameters)(inputs))


def _random(seed, batch=64, actions=5):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return td.TargetInputs(
    jnp.asarray(rng.integers(actions, size=batch)),
    draw(batch),
    jnp.asarray(rng.random(batch), jnp.float32),
    *(3 * draw(batch, actions) for _ in range(3)),
  )


# Done by hand, for values 1, 5, 2 of the twin and 3, 1, 2 of the online network
# (the first row of BATCH), and the target of its second row, which terminated.
BY_HAND = {
  'max': (0.5 + 0.9 * 5, -1.0),
  'double': (0.5 + 0.9 * 1, -1.0),
  'inverse_double': (0.5 + 0.9 * 1, -1.0),
  'clipped_double': (0.5 + 0.9 * 1, -1.0),
  'minto': (0.5 + 0.9 * 2, -1.0),  # the smaller values are 1, 1, 2
  # log((e**2 + e**10 + e**4) / 3) / 2 = (log 22,088.453 - log 3) / 2
  'mellowmax': (0.5 + 0.9 * 4.4520990, -1.0),
  # 0.6 * 5 + 0.4 * 8 / 3
  'expected': (0.5 + 0.9 * (3 + 3.2 / 3), -1.0),
  # log(e**2 + e**10 + e**4) / 2
  'soft': (0.5 + 0.9 * 5.0014051, -1.0),
  # log softmax(0, 2, 0)[1] / 2 = -log(1 + 2 * e**-2) / 2; in the second row
  # -log(3) / 2, which stays though it terminated.
  'munchausen': (
    0.5 + 0.9 * 5.0014051 - 0.9 * 0.1197724,
    -1.0 - 0.9 * 0.5493061,
  ),
}


@pytest.mark.parametrize('wrap', [lambda f: f, jax.jit])
@pytest.mark.parametrize('name', td.TARGETS)
def test_targets_by_hand(name, wrap):
  targets = wrap(jax.vmap(_make(name)))(BATCH)
  np.testing.assert_allclose(targets, BY_HAND[name], rtol=1e-6)


def test_the_munchausen_bonus_is_clipped():
  # Of 0, 8, 0 at temperature 0.5 the first has a log-probability of -16.
  inputs = jax.tree.map(lambda x: x[0], BATCH)._replace(
    a_tm1=jnp.int32(0), q_tm1=jnp.array([0.0, 8.0, 0.0])
  )
  target = lambda clip: float(_make('munchausen', munchausen_clip=clip)(inputs))
  soft = float(_make('soft')(inputs))
  assert target(-1.0) == pytest.approx(soft - 0.9)
  assert target(-9.0) == pytest.approx(soft - 0.9 * 8.0, rel=1e-6)
  assert target(0.0) == soft


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('name', td.TARGETS)
def test_the_twin_counts_for_nothing_where_the_episode_terminated(name, seed):
  inputs = _random(seed)._replace(discount_t=jnp.zeros(64))
  targets = jax.vmap(_make(name))(inputs)
  if name == 'munchausen':
    assert bool(jnp.all(targets <= inputs.r_t))  # the bonus is the reward's
    targets = jax.vmap(_make(name, munchausen_alpha=0.0))(inputs)
  np.testing.assert_array_equal(targets, inputs.r_t)


@pytest.mark.parametrize('name', ['double', 'inverse_double', 'clipped_double'])
@pytest.mark.parametrize('seed', range(3))
def test_of_equal_twins_the_double_forms_are_max(name, seed):
  inputs = _random(seed)
  equal = inputs._replace(q_t_online=inputs.q_t)
  expected = jax.vmap(_make('max'))(equal)
  np.testing.assert_array_equal(jax.vmap(_make(name))(equal), expected)
  # And with any other choice the twin's value is no larger.
  if name != 'inverse_double':
    assert bool(jnp.all(jax.vmap(_make(name))(inputs) <= expected))


def test_inverse_double_is_double_with_the_twins_swapped():
  inputs = _random(0)
  swapped = inputs._replace(q_t=inputs.q_t_online, q_t_online=inputs.q_t)
  np.testing.assert_array_equal(
    jax.vmap(_make('inverse_double'))(inputs),
    jax.vmap(_make('double'))(swapped),
  )


@pytest.mark.parametrize('seed', range(3))
def test_clipped_double_is_no_larger_than_with_either_network(seed):
  inputs, other = _random(seed), _random(seed + 10).q_t
  both = inputs._replace(q_t=jnp.minimum(inputs.q_t, other))
  clipped = jax.vmap(_make('clipped_double'))(both)
  for q_t in (inputs.q_t, other):
    single = jax.vmap(_make('double'))(inputs._replace(q_t=q_t))
    assert bool(jnp.all(clipped <= single))


@pytest.mark.parametrize('seed', range(3))
def test_laws_of_minto(seed):
  inputs = _random(seed)
  minto, largest = (
    lambda inputs, name=name: jax.vmap(_make(name))(inputs)
    for name in ('minto', 'max')
  )
  swapped = inputs._replace(q_t=inputs.q_t_online, q_t_online=inputs.q_t)
  # It is the same of either network, and above the value of neither.
  np.testing.assert_array_equal(minto(inputs), minto(swapped))
  for either in (inputs, swapped):
    assert bool(jnp.all(minto(inputs) <= largest(either)))
  higher = inputs._replace(q_t_online=inputs.q_t + 1)
  np.testing.assert_array_equal(minto(higher), largest(inputs))
  # Of equal networks it is max, and so is its gradient by the twin's values.
  equal = lambda q: inputs._replace(q_t=q, q_t_online=inputs.q_t)
  values, gradients = zip(
    *(
      jax.value_and_grad(lambda q, by=by: jnp.sum(by(equal(q)) ** 2))(
        inputs.q_t
      )
      for by in (minto, largest)
    ),
    strict=True,
  )
  np.testing.assert_array_equal(*values)
  np.testing.assert_array_equal(*gradients)


VALUES = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6).map(
  np.float32
)
# What float32 leaves of values up to 100.
NEAR = 5e-5


@settings(deadline=None, max_examples=50)
@given(VALUES, st.floats(1e-3, 100), st.floats(1.0, 50.0))
def test_laws_of_mellowmax(values, omega, factor):
  mellow = _value('mellowmax', values, mellowmax_omega=omega)
  assert mellow >= values.mean() - NEAR
  assert mellow <= values.max() + NEAR
  assert values.max() - mellow <= math.log(len(values)) / omega + NEAR
  larger = _value('mellowmax', values, mellowmax_omega=omega * factor)
  assert larger >= mellow - NEAR
  shifted = _value('mellowmax', values + np.float32(3), mellowmax_omega=omega)
  assert shifted == pytest.approx(mellow + 3, abs=2 * NEAR)
  # A non-expansion: it moves by no more than its most moved value.
  moved = values + np.float32(0.5) * np.sign(values)
  change = _value('mellowmax', moved, mellowmax_omega=omega) - mellow
  assert abs(change) <= 0.5 + 2 * NEAR


@settings(deadline=None, max_examples=50)
@given(VALUES)
def test_limits_of_forms_that_soften_the_maximum(values):
  best, mean = values.max(), values.mean()
  near = lambda x: pytest.approx(x, abs=1e-3)
  assert _value('mellowmax', values, mellowmax_omega=1e4) == near(best)
  # Between the two lies omega / 2 times the variance.
  assert _value('mellowmax', values, mellowmax_omega=1e-8) == near(mean)
  assert _value('soft', values, soft_temperature=1e-4) == near(best)
  small = dict(soft_temperature=1e-4, munchausen_alpha=0.0)
  assert _value('munchausen', values, **small) == near(best)
  # XLA flushes what is too small for a normal number.
  assert _value('expected', values, expected_epsilon=0.0) == pytest.approx(
    best, abs=1e-37
  )
  assert _value('expected', values, expected_epsilon=1.0) == pytest.approx(
    mean, abs=NEAR
  )


@settings(deadline=None, max_examples=50)
@given(VALUES, st.floats(0.01, 10.0))
def test_soft_is_the_value_of_its_policy_with_its_entropy(values, temperature):
  soft = _value('soft', values, soft_temperature=temperature)
  values = values.astype(np.float64)
  weights = np.exp((values - values.max()) / temperature)
  policy = weights / weights.sum()
  inside = policy > 0
  entropy = -np.sum(policy[inside] * np.log(policy[inside]))
  assert soft == pytest.approx(
    policy @ values + temperature * entropy, abs=1e-4
  )
  # mellowmax and the soft value are log(n) * temperature apart.
  mellow = _value('mellowmax', values, mellowmax_omega=1 / temperature)
  assert soft == pytest.approx(
    mellow + temperature * math.log(len(values)), abs=1e-4
  )


def test_munchausen_without_a_bonus_is_soft():
  inputs = _random(0)
  np.testing.assert_array_equal(
    jax.vmap(_make('munchausen', munchausen_alpha=0.0))(inputs),
    jax.vmap(_make('soft'))(inputs),
  )


@pytest.mark.parametrize('name', td.TARGETS)
def test_values_far_apart_overflow_nothing(name):
  q_t = jnp.array([-1e4, 0.0, 1e4])
  inputs = td.TargetInputs(jnp.int32(0), 0.0, 1.0, q_t, q_t, q_t)
  target, gradient = jax.value_and_grad(
    lambda q: _make(name)(inputs._replace(q_t=q, q_tm1=q))
  )(q_t)
  assert bool(jnp.isfinite(target))
  assert bool(jnp.all(jnp.isfinite(gradient)))


def test_parameters_may_be_traced_and_vmapped():
  inputs = jax.tree.map(lambda x: x[0], BATCH)
  for name, form in td.TARGETS.items():
    for key in form.takes:
      sweep = PARAMETERS[key] * jnp.array([0.5, 1.0])

      def target(value, name=name, key=key):
        return _make(name, **{key: value})(inputs)

      together = jax.jit(jax.vmap(target))(sweep)
      alone = [target(float(value)) for value in sweep]
      np.testing.assert_allclose(together, alone, rtol=1e-6)


@pytest.mark.parametrize('seed', range(3))
def test_targets_against_rlax(seed):
  inputs = _random(seed)
  q_tm1 = inputs.q_tm1
  common = q_tm1, inputs.a_tm1, inputs.r_t, inputs.discount_t
  q_a = jax.vmap(td.value_of)(q_tm1, inputs.a_tm1)
  error = lambda name, **kwargs: jax.vmap(_make(name, **kwargs))(inputs) - q_a
  near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  near(error('max'), jax.vmap(rlax.q_learning)(*common, inputs.q_t))
  near(
    error('double'),
    jax.vmap(rlax.double_q_learning)(*common, inputs.q_t, inputs.q_t_online),
  )
  policy = 0.4 / 5 + 0.6 * (
    jnp.arange(5) == jnp.argmax(inputs.q_t, -1)[:, None]
  )
  near(
    error('expected'),
    jax.vmap(rlax.expected_sarsa)(*common, inputs.q_t, policy),
  )


@pytest.mark.parametrize('seed', range(3))
def test_losses_against_rlax(seed):
  errors = 3 * _random(seed).q_t.ravel()
  np.testing.assert_allclose(
    jax.vmap(td.huber)(errors), rlax.huber_loss(errors), rtol=1e-6
  )
  np.testing.assert_allclose(
    jax.vmap(td.squared)(errors), 2 * rlax.l2_loss(errors), rtol=1e-6
  )

  def oracle(errors):  # what DQN Zoo does
    return rlax.l2_loss(rlax.clip_gradient(errors, -0.7, 0.7)).sum()

  def ours(errors):
    return jax.vmap(lambda e: td.clipped(e, 0.7))(errors).sum()

  np.testing.assert_allclose(ours(errors), oracle(errors), rtol=1e-6)
  np.testing.assert_allclose(
    jax.grad(ours)(errors), jax.grad(oracle)(errors), rtol=1e-6
  )


def test_every_parameter_has_a_domain_and_a_form():
  taken = {key for form in td.TARGETS.values() for key in form.takes}
  assert taken == set(td.TARGET_PARAMETERS) == set(PARAMETERS)


@pytest.mark.parametrize(
  'name, parameters, message',
  [
    (
      'maxx',
      {},
      "target_form='maxx' is unknown; choose from max, double, inverse_double, "
      'clipped_double, minto, mellowmax, expected, soft, munchausen',
    ),
    (
      'max',
      dict(mellowmax_omega=3.0),
      "mellowmax_omega=3.0 has no meaning for target_form='max', which takes "
      'no parameter',
    ),
    (
      'munchausen',
      dict(expected_epsilon=0.1),
      "expected_epsilon=0.1 has no meaning for target_form='munchausen', which "
      'takes soft_temperature, munchausen_alpha, munchausen_clip',
    ),
    (
      'mellowmax',
      dict(mellowmax_omega=None),
      "target_form='mellowmax' needs mellowmax_omega, positive and finite",
    ),
    (
      'mellowmax',
      dict(mellowmax_omega=0.0),
      'mellowmax_omega=0.0 must be positive and finite',
    ),
    (
      'soft',
      dict(soft_temperature=math.inf),
      'soft_temperature=inf must be positive and finite',
    ),
    (
      'expected',
      dict(expected_epsilon=1.5),
      'expected_epsilon=1.5 must be in [0, 1]',
    ),
    (
      'munchausen',
      dict(munchausen_alpha=math.nan),
      'munchausen_alpha=nan must be in [0, 1]',
    ),
    (
      'munchausen',
      dict(munchausen_clip=1.0),
      'munchausen_clip=1.0 must be 0 or less',
    ),
  ],
)
def test_what_make_target_refuses(name, parameters, message):
  with pytest.raises(ValueError) as error:
    td.make_target(name, **parameters)
  assert str(error.value) == message


def test_none_is_as_good_as_left_out():
  inputs = jax.tree.map(lambda x: x[0], BATCH)
  target = td.make_target('max', mellowmax_omega=None, soft_temperature=None)
  assert float(target(inputs)) == 5.0


def test_ranks_are_checked():
  with pytest.raises(AssertionError):
    _make('max')(BATCH)  # a batch, not vmapped


@pytest.mark.parametrize(
  'error, bound, squared, huber, clipped',
  [
    (0.5, 1.0, 0.25, 0.125, 0.125),
    (-3.0, 1.0, 9.0, 2.5, 4.5),
    (3.0, 2.0, 9.0, 4.0, 4.5),
  ],
)
def test_forms_by_hand(error, bound, squared, huber, clipped):
  error = jnp.float32(error)
  assert td.squared(error, bound) == pytest.approx(squared)
  assert td.huber(error, bound) == pytest.approx(huber)
  assert td.clipped(error, bound) == pytest.approx(clipped)


@pytest.mark.parametrize('error', [-3.0, -1.0, -0.2, 0.0, 0.7, 5.0])
def test_clipped_has_the_gradient_of_huber(error):
  for bound in (0.5, 1.0, 2.0):
    expected = np.clip(error, -bound, bound)
    assert jax.grad(td.huber)(error, bound) == pytest.approx(expected)
    assert jax.grad(td.clipped)(error, bound) == pytest.approx(expected)
