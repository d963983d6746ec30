"""Laws that hold for the rules of the twin, and their identities."""

import fractions
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from siamrl import learner, twins
from siamrl.agents.q import make_q_agent
from siamrl.learner import ClockedTwin, make_learner
from siamrl.networks.q_network import mlp_network
from siamrl.types import Transition
from tests.parameters import PARAMETERS, of_each_kind

ALL_RULES = sorted(twins.RULES)
OBS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
KEY = jax.random.key(0)


def _make(name, **changes):
  given = PARAMETERS | changes
  wanted = twins.takes(name, given['target_paths'])
  return twins.make_rule(name, **{key: given[key] for key in wanted})


def _base(**kwargs):
  return make_q_agent(
    mlp_network(3, sizes=(8,)), np.zeros((1, 4), np.float32), **kwargs
  )


def _pair(name, seed=0, **kwargs):
  """A rule, the agent that it makes, and parameters."""
  twin = _make(name)
  agent = twin.lift(_base(**kwargs))
  return twin, agent, agent.init(jax.random.key(seed))


def _tree(seed: int) -> dict:
  keys = jax.random.split(jax.random.key(seed), 2)
  return {
    'a': jax.random.normal(keys[0], (3, 2)),
    'b': {'c': jax.random.normal(keys[1], (4,))},
  }


ONLINE, TARGET = _tree(0), _tree(1)


def _run(twin, online_at, target, steps, sync=1):
  move = learner.make_move(ClockedTwin(twin, sync))
  for step in range(1, steps + 1):
    _, target = move(online_at(step), target, jnp.int32(step))
  return target


def _batch(seed=0, size=6):
  rng = np.random.default_rng(seed)
  obs = lambda: rng.normal(size=(size, 4)).astype(np.float32)
  return Transition(
    obs(),
    rng.integers(3, size=size).astype(np.int32),
    rng.normal(size=size).astype(np.float32),
    np.full(size, 0.9, np.float32),
    obs(),
  )


def _train(twin, sync, steps, agent=None, state=None, **clock):
  """States of a learner after each of some gradient steps."""
  made = make_learner(
    agent or _base(), optax.adam(1e-2), ClockedTwin(twin, sync, **clock)
  )
  if state is None:
    state = made.init(jax.random.key(0))
  regress, states = jax.jit(made.regress), [state]
  for step in range(steps):
    states.append(regress(states[-1], _batch(step))[0])
  return states


def _assert_same_online(ours, theirs, **tolerance):
  for a, b in zip(ours, theirs, strict=True):
    chex.assert_trees_all_close(
      a.online_params, b.online_params, **(tolerance or dict(atol=1e-6))
    )


# Over the whole table.


@pytest.mark.parametrize('name', of_each_kind(ALL_RULES))
def test_every_rule_keeps_structure_shapes_and_dtypes(name):
  twin, _, online = _pair(name)
  target = twin.init(online)
  for step in (1, 2, 3):
    moved = jax.jit(twin.update)(online, target, jnp.int32(step))
    chex.assert_trees_all_equal_shapes_and_dtypes(moved, target)
    chex.assert_trees_all_close(
      moved, twin.update(online, target, jnp.int32(step)), atol=1e-6
    )
  chex.assert_trees_all_equal_shapes(twin.params(online, target), online)
  if twin.shift is not None:
    chex.assert_trees_all_equal_shapes_and_dtypes(
      twin.shift(online, target, jnp.int32(3)), online
    )


@pytest.mark.parametrize('name', ALL_RULES)
def test_equal_twins_stay_equal(name):
  twin, _, online = _pair(name)
  # Of equal networks, then.
  if name in ('chain', 'gradient_chain', 'iterated_heads'):
    online = jax.tree.map(lambda x: jnp.zeros_like(x) + 0.25, online)
  target = twin.init(online)
  chex.assert_trees_all_close(twin.params(online, target), online, rtol=1e-6)
  for step in (1, 2, 3):
    moved = twin.update(online, target, jnp.int32(step))
    chex.assert_trees_all_close(twin.params(online, moved), online, rtol=1e-6)


@pytest.mark.parametrize('name', of_each_kind(ALL_RULES))
def test_a_moved_twin_lies_between_the_two(name):
  twin, agent, online = _pair(name)
  target = twin.init(agent.init(jax.random.key(1)))
  before = twin.params(online, target)
  for step in (1, 2, 3):
    moved = twin.params(online, twin.update(online, target, jnp.int32(step)))
    for m, o, t in zip(
      *map(jax.tree.leaves, (moved, online, before)), strict=True
    ):
      # In a chain a twin moves toward the network before its own.
      low = o if name != 'chain' else jnp.min(o, 0, keepdims=True)
      high = o if name != 'chain' else jnp.max(o, 0, keepdims=True)
      assert bool(jnp.all(m <= jnp.maximum(high, t) + 1e-6))
      assert bool(jnp.all(m >= jnp.minimum(low, t) - 1e-6))


@pytest.mark.parametrize('name', ALL_RULES)
def test_a_twin_is_no_alias_of_the_online_parameters(name):
  twin, _, online = _pair(name)
  pointers = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(online)}
  target = twin.init(online)
  for tree in (target, twin.update(online, target, jnp.int32(3))):
    assert not pointers & {
      leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)
    }


@pytest.mark.parametrize('name', of_each_kind(ALL_RULES))
def test_only_the_residual_rule_differentiates_its_targets(name):
  twin, agent, online = _pair(name)
  target = twin.init(online)
  gradient = jax.grad(
    lambda online: jnp.sum(agent.bootstrap(online, target, OBS, KEY))
  )(online)
  flows = any(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(gradient))
  assert flows == (name == 'residual')


@pytest.mark.parametrize('name', of_each_kind(ALL_RULES))
def test_every_rule_acts_and_learns(name):
  twin, agent, online = _pair(name)
  values = agent.values(online, OBS)
  assert (
    values.shape
    == agent.bootstrap(online, twin.init(online), OBS, KEY).shape
    == (6, 3)
  )
  noise = agent.acting.noise(jax.random.key(2), 6)
  assert agent.acting.act(online, OBS, noise, 0.5).shape == (6,)
  states = _train(twin, twins.RULES[name].period or 3, 4)
  for leaf in jax.tree.leaves(states[-1].online_params):
    assert bool(jnp.all(jnp.isfinite(leaf)))
  moved = jax.tree.map(
    lambda a, b: bool(jnp.any(a != b)),
    states[0].online_params,
    states[-1].online_params,
  )
  assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize('name', of_each_kind(ALL_RULES))
def test_every_state_can_be_donated(name):
  made = make_learner(_base(), optax.adam(1e-2), ClockedTwin(_make(name), 2))
  regress = jax.jit(made.regress, donate_argnums=0)
  state = made.init(jax.random.key(0))
  for step in range(5):
    state, _ = regress(state, _batch(step))


@pytest.mark.parametrize('name', of_each_kind(ALL_RULES))
def test_numbers_may_be_traced(name):
  wanted = twins.takes(name, PARAMETERS['target_paths'])
  static = ('target_count', 'target_paths')
  traced = {k: PARAMETERS[k] for k in wanted if k not in static}
  fixed = {k: PARAMETERS[k] for k in wanted if k in static}
  _, agent, online = _pair(name)
  other = agent.init(jax.random.key(1))

  def moved(numbers):
    twin = twins.make_rule(name, **fixed, **numbers)
    return twin.update(online, twin.init(other), jnp.int32(3))

  twice = jax.tree.map(lambda x: jnp.stack([x, x]), traced)
  alone = moved(traced)
  if not traced:
    return
  for row in (0, 1):
    chex.assert_trees_all_close(
      jax.tree.map(lambda x, row=row: x[row], jax.jit(jax.vmap(moved))(twice)),
      alone,
      atol=1e-6,
    )


@pytest.mark.parametrize('name', of_each_kind(ALL_RULES))
def test_a_bfloat16_network_has_a_float32_twin(name):
  twin, _, online = _pair(name, param_dtype='bfloat16')
  target = twin.init(online)
  for step in (1, 2, 3):
    target = twin.update(online, target, jnp.int32(step))
    for leaf in jax.tree.leaves(target):
      assert leaf.dtype in (jnp.float32, jnp.int32)


# Copies.


def test_hard_copies_and_forgets_infinities():
  infinite = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), TARGET)
  moved = twins.hard().update(ONLINE, infinite, jnp.int32(1))
  chex.assert_trees_all_equal(moved, ONLINE)
  # What a weighted sum would have made of it, and why hard is no soft(1):
  mixed = optax.incremental_update(ONLINE, infinite, 1.0)
  assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(mixed))


def test_soft_of_one_is_hard():
  infinite = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), TARGET)
  chex.assert_trees_all_equal(
    twins.soft(1.0).update(ONLINE, infinite, 1), ONLINE
  )


def test_frozen_never_moves_and_is_an_infinite_period():
  for twin, sync in ((twins.frozen(), 1), (twins.hard(), 2**30)):
    chex.assert_trees_all_equal(
      _run(twin, lambda step: ONLINE, TARGET, 20, sync), TARGET
    )


def test_periodic_moves_at_multiples_only():
  rule = twins.periodic(3, twins.hard())
  for step in range(1, 10):
    moved = rule.update(ONLINE, TARGET, jnp.int32(step))
    chex.assert_trees_all_equal(moved, ONLINE if step % 3 == 0 else TARGET)


def test_a_period_inside_the_rule_is_one_outside():
  online_at = lambda step: jax.tree.map(lambda x: x * step, ONLINE)
  chex.assert_trees_all_equal(
    _run(twins.periodic(3, twins.soft(0.3)), online_at, TARGET, 10),
    _run(twins.soft(0.3), online_at, TARGET, 10, sync=3),
  )
  rule = twins.soft(0.3)
  assert twins.periodic(1, rule) is rule


# Weighted sums.


def test_soft_by_hand():
  moved = twins.soft(0.25).update(
    {'w': jnp.array([8.0])}, {'w': jnp.array([4.0])}, 1
  )
  np.testing.assert_allclose(moved['w'], [5.0])


@pytest.mark.parametrize('tau', [0.005, 0.1, 0.7])
def test_m_soft_steps_to_a_still_network_are_one_larger_step(tau):
  m = 7
  moved = _run(twins.soft(tau), lambda step: ONLINE, TARGET, m)
  once = twins.soft(1 - (1 - tau) ** m).update(ONLINE, TARGET, 1)
  chex.assert_trees_all_close(moved, once, rtol=1e-5, atol=1e-6)


def test_soft_is_a_geometric_average_of_the_past():
  tau, steps = 0.2, 6
  online_at = lambda step: jax.tree.map(lambda x: x * step, ONLINE)
  moved = _run(twins.soft(tau), online_at, TARGET, steps)
  weights = [tau * (1 - tau) ** (steps - i) for i in range(1, steps + 1)]
  expected = jax.tree.map(
    lambda t, o: (
      (1 - tau) ** steps * t + sum(w * o * i for i, w in enumerate(weights, 1))
    ),
    TARGET,
    ONLINE,
  )
  chex.assert_trees_all_close(moved, expected, rtol=1e-5, atol=1e-6)


def test_mean_lags_of_hard_and_soft_match_at_tau_2_over_c_plus_1():
  # The twin of a network whose only parameter is the step count shows its lag.
  period, steps = 9, 9 * 400
  lag = {}
  for name, twin in (
    ('hard', twins.periodic(period, twins.hard())),
    ('soft', twins.soft(2 / (period + 1))),
  ):

    def body(target, step, twin=twin):
      target = twin.update(step.astype(jnp.float32), target, step)
      return target, step - target

    _, lags = jax.lax.scan(body, jnp.float32(0), jnp.arange(1, steps + 1))
    lag[name] = float(lags[steps // 2 :].mean())
  assert lag['hard'] == pytest.approx((period - 1) / 2)
  assert lag['soft'] == pytest.approx((period - 1) / 2, rel=1e-3)


def test_a_soft_twin_in_bfloat16_would_stop_half_way():
  online = jnp.ones(1, jnp.bfloat16)
  twin, stuck = twins.soft(0.005), jnp.zeros(1, jnp.bfloat16)
  target = twin.init(jnp.zeros(1, jnp.bfloat16))
  for step in range(1, 2_001):
    target = twin.update(online, target, step)
    stuck = optax.incremental_update(online, stuck, 0.005)
  assert float(target[0]) == pytest.approx(1, abs=1e-3)
  assert float(stuck[0]) < 0.9


# Schedules.


def test_the_cosine_rate_is_byols():
  base, steps = 0.99, 100
  rate = functools.partial(twins.cosine_rate, tau=1 - base, steps=steps)
  for k in (0, 10, 50, 90):
    retained = 1 - (1 - base) * (np.cos(np.pi * k / steps) + 1) / 2
    assert float(1 - rate(k)) == pytest.approx(retained, abs=1e-6)
  rates = rate(jnp.arange(0, 201))
  assert float(rates[0]) == pytest.approx(1 - base)
  assert (np.diff(rates) <= 0).all() and (rates[100:] == 0).all()


def test_the_first_update_has_byols_first_rate():
  """By hand: tau 0.1 and K = 4 give 0.1, 0.0853553, 0.05, 0.0146447, and 0."""
  twin = twins.soft_cosine(0.1, 4)
  online, target = jnp.ones(()), jnp.zeros(())
  # 0.9; 0.9 * 0.9146447; ... of the way is left.
  left = [0.9, 0.8231802, 0.7820212, 0.7705688, 0.7705688]
  for step, wanted in enumerate(left, start=1):
    target = twin.update(online, target, step)
    assert float(1 - target) == pytest.approx(wanted, abs=1e-6)


def test_the_first_update_has_the_first_rate_of_a_line():
  twin = twins.soft_linear(0.5, 0.1, 2)
  online, target = jnp.ones(()), jnp.zeros(())
  for step, wanted in enumerate([0.5, 0.35, 0.315, 0.2835], start=1):
    target = twin.update(online, target, step)
    assert float(1 - target) == pytest.approx(wanted, abs=1e-6)


def test_a_linear_rate_between_equal_ends_is_soft():
  online_at = lambda step: jax.tree.map(lambda x: x * step, ONLINE)
  chex.assert_trees_all_close(
    _run(twins.soft_linear(0.2, 0.2, 10), online_at, TARGET, 15),
    _run(twins.soft(0.2), online_at, TARGET, 15),
    rtol=1e-6,
  )
  rates = [float(twins.linear_rate(k, 0.2, 0.6, 4)) for k in (0, 1, 2, 4, 9)]
  assert rates == pytest.approx([0.2, 0.3, 0.4, 0.6, 0.6])


@pytest.mark.parametrize(
  'periods, steps, at',
  [((3, 3), 10, [3, 6, 9, 12]), ((2, 6), 8, [3, 7, 13, 19])],
)
def test_when_a_scheduled_period_copies(periods, steps, at):
  twin = twins.hard_scheduled(*periods, steps)
  target, copied = twin.init(jnp.float32(0)), []
  for step in range(1, 21):
    target = twin.update(jnp.float32(step), target, jnp.int32(step))
    if float(twin.params(None, target)) == step:
      copied.append(step)
  # 2 + step / 2 by the second: at 3 the period is 3.5 of the 3 gone by ...
  expected = []
  last = 0
  for step in range(1, 21):
    period = periods[0] + min(step / steps, 1) * (periods[1] - periods[0])
    if step - last >= period:
      last = step
      expected.append(step)
  assert copied == expected
  if periods == (3, 3):
    assert copied[:4] == at


def _periods(period, growth, copies):
  """Periods of some copies, in exact numbers."""
  growth = fractions.Fraction(growth)
  return [
    math.floor(period * growth**n + fractions.Fraction(1, 2))
    for n in range(copies)
  ]


@pytest.mark.parametrize('growth', [1.0, 1.25, 1.5, 2.0, 3.0])
@pytest.mark.parametrize('period', [1, 3, 5])
def test_when_a_geometric_period_copies(period, growth):
  due = np.cumsum(_periods(period, growth, 200))
  twin = twins.hard_geometric(period, growth)

  def step(target, step):
    target = twin.update(jnp.float32(step), target, step)
    return target, twin.params(None, target)

  _, held = jax.lax.scan(step, twin.init(jnp.float32(0)), jnp.arange(1, 200))
  copied = [i for i in range(1, 200) if held[i - 1] == i]
  assert copied == [i for i in dict.fromkeys(due.tolist()) if i < 200]


@pytest.mark.parametrize('order', ['after', 'before'])
def test_a_geometric_period_without_growth_is_hard(order):
  hard = _train(twins.hard(), 3, 10, order=order)
  grown = _train(twins.hard_geometric(3, 1.0), 1, 10, order=order)
  for ours, theirs in zip(grown, hard, strict=True):
    chex.assert_trees_all_equal(ours.online_params, theirs.online_params)
    chex.assert_trees_all_equal(ours.target_params.params, theirs.target_params)


@pytest.mark.parametrize('traced', [False, True])
def test_geometric_periods_late_in_a_long_run(traced):
  period = twins.geometric_period
  if traced:
    period = jax.jit(period)
  # Neither large periods nor many copies lose a gradient step without growth.
  for first in (1, 2**24 + 1, 2**31 - 1):
    for copies in (0, 7, 2**31 - 1):
      assert int(period(jnp.int32(copies), first, 1.0)) == first
  # A period that grows stops growing before it overflows.
  for growth in (1.001, 1.5, 1e30):
    grown = period(jnp.int32(2**31 - 1), 2_500, growth)
    assert int(grown) == 2**30 and grown.dtype == jnp.int32
  found = [
    int(period(jnp.int32(n), 2_500, 0.99 ** (-2 / 3))) for n in (10, 500)
  ]
  expected = [2_500 * 0.99 ** (-2 * n / 3) for n in (10, 500)]
  np.testing.assert_allclose(found, expected, rtol=2e-4)
  # At the end of what int32 counts the clock still runs.
  twin = twins.hard_geometric(5, 1.5)
  state = twin.init(jnp.float32(0)).replace(
    updated_at=jnp.int32(2**31 - 20), updates=jnp.int32(2)
  )
  moved = [
    int(twin.update(jnp.float32(1), state, jnp.int32(2**31 - k)).updates)
    for k in (10, 9, 1)
  ]
  assert moved == [2, 3, 3]  # its period is 11


# Weights of a Student-t distribution.


def _t_soft_by_hand(online, tau, dof, steps, scale=1e-8):
  """Independent of the rule: one array in NumPy, as the equations stand."""
  target, weight = np.zeros(online.shape[1:]), (1 - tau) / tau
  found = []
  for step in range(steps):
    distance = np.mean((target - online[step]) ** 2)
    w = (dof + 1) / (dof + distance / (scale + 1e-8))
    target = target + w / (weight + w) * (online[step] - target)
    rate = tau * w * dof / (dof + 1)
    scale = (1 - rate) * scale + rate * distance
    weight = (1 - tau) * (weight + w)
    found.append((target, weight, scale))
  return found


@pytest.mark.parametrize('tau, dof', [(0.3, 1.0), (0.05, 4.5)])
def test_t_soft_by_hand(tau, dof):
  rng = np.random.default_rng(0)
  # Distances near those that the first variance expects, then a jump.
  seen = (
    1e-4 * rng.normal(size=(30, 3, 2)) + (np.arange(30) >= 20)[:, None, None]
  )
  twin = twins.t_soft(tau, dof)
  state = twin.init({'a': jnp.zeros((3, 2)), 'b': jnp.ones(4)})
  for step, row in enumerate(_t_soft_by_hand(seen, tau, dof, 30)):
    online = {'a': jnp.float32(seen[step]), 'b': jnp.full(4, 9.0)}
    state = twin.update(online, state, jnp.int32(step + 1))
    for ours, theirs in zip(
      (state.params, state.weights, state.variances), row, strict=True
    ):
      np.testing.assert_allclose(ours['a'], theirs, rtol=1e-3, atol=1e-7)
  # The jump would have moved `soft` most of the way.
  soft = 1 - (1 - tau) ** 10
  assert float(jnp.max(state.params['a'])) < 0.1 * soft


def test_t_soft_with_infinite_degrees_of_freedom_is_soft():
  ours = _train(twins.t_soft(0.3, math.inf), 1, 30)
  theirs = _train(twins.soft(0.3), 1, 30)
  _assert_same_online(ours, theirs)
  chex.assert_trees_all_close(
    ours[-1].target_params.params, theirs[-1].target_params, atol=1e-6
  )


def test_t_soft_settles_at_the_rate_of_soft():
  """With constant distances all weights are equal, and the rate is tau."""
  twin, online = twins.t_soft(0.1, 1.0), jnp.float32(0)
  state = twin.init(online)
  for step in range(400):
    ahead = state.params + 0.5
    moved = twin.update(ahead, state, jnp.int32(step + 1))
    rate, state = (moved.params - state.params) / 0.5, moved
  assert float(rate) == pytest.approx(0.1, rel=1e-3)
  assert float(state.variances) == pytest.approx(0.25, rel=1e-3)


def test_the_whole_way_is_a_copy_whatever_the_degrees_of_freedom():
  _assert_same_online(
    _train(twins.t_soft(1.0, 2.0), 1, 7), _train(twins.hard(), 1, 7)
  )


@pytest.mark.parametrize('period', [2, 7, 50])
def test_when_a_random_period_copies(period):
  """Periods are geometric, and the twin holds the copy before."""
  steps = 200_000
  twin = twins.hard_random(period)

  def step(target, step):
    target = twin.update(step, target, step)
    return target, target

  numbers = jnp.arange(1, steps + 1, dtype=jnp.int32)
  _, held = jax.jit(lambda: jax.lax.scan(step, jnp.int32(0), numbers))()
  drawn = np.asarray(jax.vmap(lambda n: twins.is_drawn(n, period))(numbers))
  at = np.flatnonzero(drawn) + 1
  last = np.maximum.accumulate(np.where(drawn, np.arange(1, steps + 1), 0))
  np.testing.assert_array_equal(held, last)
  found = np.diff(at, prepend=0)
  # The mean, whose standard deviation is known; and how they are distributed.
  deviation = math.sqrt(period * (period - 1) / len(found))
  assert abs(found.mean() - period) < 4 * deviation
  bins = np.arange(1, 3 * period)
  expected = (1 - 1 / period) ** (bins - 1) / period
  counts = np.array([(found == m).sum() for m in bins])
  rest = len(found) - counts.sum()
  _, p = stats.chisquare(
    [*counts, rest], len(found) * np.array([*expected, 1 - expected.sum()])
  )
  assert p > 1e-3
  # By the time since the last copy, the age that `TwinSpec.mean_age` states.
  ages = np.arange(1, steps + 1) - last
  assert abs(ages.mean() - (period - 1)) < 0.05 * period


def test_copies_at_random_have_the_mean_of_the_lambda_target():
  """Of a linear learner: averages of maps, by draws and by their weights."""
  period, k, g = 4, 0.6, 0.35
  average = 1 - 1 / period
  twin = twins.hard_random(period)

  def step(carry, step):
    online, target, mean, count = carry
    online = k * online + g * target
    moved = twin.update(online, target, step)
    copied = twins.is_drawn(step, period)
    ratio = jnp.where(copied, online / target, 0.0)
    # Each copy starts from 1 again, so that numbers stay as they are.
    start = jnp.where(copied, 1.0, online)
    return (
      start,
      jnp.where(copied, 1.0, moved),
      mean + ratio,
      count + copied,
    ), None

  first = (jnp.float32(1), jnp.float32(1), jnp.float32(0), jnp.int32(0))
  numbers = jnp.arange(1, 200_001, dtype=jnp.int32)
  (_, _, total, count), _ = jax.jit(
    lambda: jax.lax.scan(step, first, numbers)
  )()
  # (I - average K)^-1 ((1 - average) K + G), as `stability.switching` has it.
  expected = ((1 - average) * k + g) / (1 - average * k)
  np.testing.assert_allclose(total / count, expected, atol=2e-3)
  # Not that of copies every 4 gradient steps, nor of every one.
  fixed = k**4 + g * sum(k**i for i in range(4))
  assert abs(expected - fixed) > 0.005 and abs(expected - (k + g)) > 0.005


@pytest.mark.parametrize('order', ['after', 'before'])
def test_a_random_period_of_one_is_hard(order):
  hard = _train(twins.hard(), 1, 10, order=order)
  drawn = _train(twins.hard_random(1), 1, 10, order=order)
  for ours, theirs in zip(drawn, hard, strict=True):
    chex.assert_trees_all_equal(ours.online_params, theirs.online_params)
    chex.assert_trees_all_equal(ours.target_params, theirs.target_params)


# The online network as its own twin.


def test_self_is_hard_at_every_step():
  _assert_same_online(
    _train(twins.self_copy(), 1, 5), _train(twins.hard(), 1, 5)
  )


def test_the_residual_gradient_by_hand():
  """Linear values: d/dw (r + g w x' - w x)**2 / 2 = delta (g x' - x)."""
  twin = twins.residual()
  agent = twin.lift(_base(td_loss='huber', error_bound=1e9))
  online = agent.init(jax.random.key(0))
  batch = _batch()
  key = jax.random.key(1)
  gradient = jax.grad(agent.loss, has_aux=True)(online, (), batch, key)[0]

  def squared(online):
    q = jnp.take_along_axis(
      agent.values(online, batch.obs_tm1), batch.a_tm1[:, None], 1
    )[:, 0]
    v = agent.values(online, batch.obs_t).max(1)
    return 0.5 * jnp.mean((batch.r_t + batch.discount_t * v - q) ** 2)

  chex.assert_trees_all_close(
    gradient, jax.grad(squared)(online), rtol=1e-5, atol=1e-7
  )
  still = twins.self_copy().lift(_base(td_loss='huber', error_bound=1e9))
  other = jax.grad(still.loss, has_aux=True)(online, (), batch, key)[0]
  assert not np.allclose(
    jax.tree.leaves(gradient)[0], jax.tree.leaves(other)[0], atol=1e-3
  )


# By path.


def test_each_part_follows_its_own_rule():
  twin = _make('by_path')
  agent = _base()
  online = agent.init(jax.random.key(0))
  target = agent.init(jax.random.key(1))
  for step in (1, 3):  # the head is copied every 3
    moved = twin.update(online, target, jnp.int32(step))['params']
    soft = twins.soft(0.3).update(online, target, 1)['params']
    whole = (online if step == 3 else target)['params']
    chex.assert_trees_all_equal(moved['torso'], soft['torso'])
    chex.assert_trees_all_equal(moved['head'], whole['head'])


@pytest.mark.parametrize(
  'part, rule', [('hard', twins.hard()), ('periodic_soft', twins.soft(0.3))]
)
def test_one_rule_for_all_paths_is_that_rule(part, rule):
  twin = _make('by_path', target_paths=f'.*:{part}')
  _assert_same_online(_train(twin, 1, 7), _train(rule, 3, 7), rtol=0, atol=0)


def test_the_first_pattern_that_fits_counts():
  twin = _make('by_path', target_paths='last:frozen+.*:self')
  online, target = (_base().init(jax.random.key(i)) for i in (0, 1))
  moved = twin.update(online, target, 1)['params']
  chex.assert_trees_all_equal(moved['head'], target['params']['head'])
  chex.assert_trees_all_equal(moved['torso'], online['params']['torso'])


@pytest.mark.parametrize(
  'paths, message',
  [
    ('tosro:soft+head:hard', r"'tosro' matches no parameter.*params/head/last"),
    ('.*:soft+head:hard', r"'head' matches no parameter that earlier"),
    ('head:hard', r'must match every parameter, and leaves params/torso'),
  ],
)
def test_paths_that_do_not_fit(paths, message):
  twin = _make('by_path', target_paths=paths)
  with pytest.raises(ValueError, match=f'target_paths=.*{message}'):
    twin.init(_base().init(jax.random.key(0)))


# A term in the loss, and a pull.


def test_functional_without_weight_is_self():
  _assert_same_online(
    _train(twins.functional(0.0), 3, 5), _train(twins.self_copy(), 1, 5)
  )


@pytest.mark.parametrize('form', ['max', 'clipped_double'])
def test_functional_with_a_twin_that_is_the_network_is_self(form):
  agent = _base(target_form=form)
  _assert_same_online(
    _train(twins.functional(5.0), 1, 5, agent),
    _train(twins.self_copy(), 1, 5, agent),
  )


@pytest.mark.parametrize('td_loss', ['squared', 'huber'])
def test_the_functional_term_by_hand(td_loss):
  twin = twins.functional(2.0)
  base = _base(td_loss=td_loss, error_bound=1e9)
  agent = twin.lift(base)
  online, target = (agent.init(jax.random.key(i)) for i in (0, 1))
  batch = _batch()
  value, metrics = agent.loss(online, target, batch, jax.random.key(2))
  pick = lambda q: np.take_along_axis(np.asarray(q), batch.a_tm1[:, None], 1)[
    :, 0
  ]
  q, q_target = (
    pick(agent.values(params, batch.obs_tm1)) for params in (online, target)
  )
  v_t = np.asarray(agent.values(online, batch.obs_t)).max(1)
  y = batch.r_t + batch.discount_t * v_t
  half = 0.5 if td_loss == 'huber' else 1.0
  term = 2.0 * half * np.mean((q_target - q) ** 2)
  assert float(metrics['twin_term']) == pytest.approx(term, rel=1e-5)
  assert metrics['loss'] == value
  assert float(value) == pytest.approx(
    half * np.mean((y - q) ** 2) + term, rel=1e-5
  )


def test_proximal_without_weight_is_hard():
  _assert_same_online(
    _train(twins.proximal(0.0), 3, 7), _train(twins.hard(), 3, 7)
  )


def test_the_pull_is_the_gradient_of_the_proximal_term():
  step_size, c = 0.1, 0.5
  twin = twins.proximal(step_size / c)
  made = make_learner(
    _base(), optax.sgd(step_size), ClockedTwin(twin, 100, init='fresh')
  )
  state = made.init(jax.random.key(0))
  after, _ = made.regress(state, _batch())

  def penalized(online):
    value, _ = made.agent.loss(online, state.target_params, _batch(), state.key)
    distance = jax.tree.map(jnp.subtract, online, state.target_params)
    return value + optax.tree.norm(distance, squared=True) / (2 * c)

  gradient = jax.grad(penalized)(state.online_params)
  expected = jax.tree.map(
    lambda p, g: p - step_size * g, state.online_params, gradient
  )
  chex.assert_trees_all_close(after.online_params, expected, atol=1e-6)


def test_boundless_projection_without_ridge_is_soft():
  _assert_same_online(
    _train(twins.projected_soft(0.3, 1e9, 0.0), 1, 5),
    _train(twins.soft(0.3), 1, 5),
  )


def test_the_projected_twin_stays_in_its_ball():
  twin = twins.projected_soft(0.9, 0.5, 0.0)
  target = twin.init(jax.tree.map(jnp.zeros_like, ONLINE))
  for step in range(1, 20):
    target = twin.update(ONLINE, target, step)
    assert float(optax.tree.norm(target)) <= 0.25 + 1e-6
  # Toward the projection of the online parameters onto half the ball.
  scale = 0.25 / float(optax.tree.norm(ONLINE))
  chex.assert_trees_all_close(
    target, jax.tree.map(lambda x: scale * x, ONLINE), rtol=1e-4
  )
  # A twin from outside is brought in.
  far = jax.tree.map(lambda x: 100 * x, ONLINE)
  moved = twin.update(ONLINE, far, 1)
  assert float(optax.tree.norm(moved)) == pytest.approx(0.5, rel=1e-5)


def test_the_ridge_is_a_weight_decay():
  twin, agent, online = _pair('projected_soft')
  target, key = twin.init(online), jax.random.key(1)
  gradient, plain = (
    jax.grad(a.loss, has_aux=True)(online, target, _batch(), key)[0]
    for a in (agent, _base())
  )
  expected = jax.tree.map(
    lambda g, p: g + PARAMETERS['ridge'] * p, plain, online
  )
  chex.assert_trees_all_close(gradient, expected, atol=1e-7)


# Several twins.


def test_averaged_over_one_copy_is_hard():
  _assert_same_online(
    _train(twins.averaged(1), 3, 7), _train(twins.hard(), 3, 7)
  )


def test_averaged_keeps_the_last_copies():
  twin = twins.averaged(3)
  target = twin.init(jnp.array([0.0]))
  for step in (1, 2, 3, 4):
    target = twin.update(jnp.array([10.0 * step]), target, step)
  np.testing.assert_array_equal(target, [[40.0], [30.0], [20.0]])
  assert float(twin.params(None, target)[0]) == 30.0


def test_averaged_averages_values_not_parameters():
  twin, agent, online = _pair('averaged')
  copies = [_base().init(jax.random.key(i)) for i in range(3)]
  target = jax.tree.map(lambda *leaves: jnp.stack(leaves), *copies)
  mean = sum(_base().values(params, OBS) for params in copies) / 3
  np.testing.assert_allclose(
    agent.bootstrap(online, target, OBS, KEY), mean, rtol=1e-5, atol=1e-6
  )


def test_a_chain_of_one_is_hard():
  for ours, theirs in zip(
    _train(twins.chain(1, 3, 1), 1, 7),
    _train(twins.hard(), 3, 7, state=_alone(twins.chain(1, 3, 1))),
    strict=True,
  ):
    chex.assert_trees_all_close(
      jax.tree.map(lambda x: x[0], ours.online_params),
      theirs.online_params,
      atol=1e-6,
    )


def _alone(twin):
  """A learner's state whose parameters are those of a chain of one."""
  (chained,) = _train(twin, 1, 0)
  (state,) = _train(twins.hard(), 1, 0)
  online = jax.tree.map(lambda x: x[0], chained.online_params)
  return state.replace(online_params=online, target_params=twins.born(online))


def test_a_chain_by_hand():
  """Three networks; inner twins every 2 gradient steps, a link every 4."""
  twin = twins.chain(3, 4, 2)
  online = jnp.array([1.0, 2.0, 3.0])
  target = twin.init(online)
  move = learner.make_move(ClockedTwin(twin))
  seen = []
  for step in range(1, 5):
    online, target = move(online + 10, target, jnp.int32(step))
    seen.append((online.tolist(), target.tolist()))
  assert seen == [
    ([11, 12, 13], [1, 2, 3]),
    # Each twin but the first becomes the network before its own.
    ([21, 22, 23], [1, 21, 22]),
    ([31, 32, 33], [1, 21, 22]),
    # All twins are copied; network 2 becomes 1, 3 becomes 2 and stays.
    ([42, 43, 43], [41, 42, 43]),
  ]


def test_the_loss_of_a_chain_is_the_sum_of_its_links():
  twin, agent, online = _pair('chain')
  target = jax.tree.map(lambda x: 2 * x, online)
  batch, key = _batch(), jax.random.key(1)
  one = lambda tree, k: jax.tree.map(lambda x: x[k], tree)
  losses = [
    float(_base().loss(one(online, k), one(target, k), batch, key)[0])
    for k in range(3)
  ]
  value, metrics = agent.loss(online, target, batch, key)
  assert float(value) == pytest.approx(sum(losses), rel=1e-5)
  assert metrics['td_error_abs'].shape == (6,)


@pytest.mark.parametrize('name', ['chain', 'iterated_heads'])
def test_each_network_of_several_acts_now_and_then(name):
  _, agent, online = _pair(name)
  drawn = {
    int(agent.acting.noise(jax.random.key(seed), 6)[1]) for seed in range(40)
  }
  assert drawn == {0, 1, 2}
  base, _ = agent.acting.noise(jax.random.key(5), 6)
  chex.assert_trees_all_equal(base, _base().acting.noise(jax.random.key(5), 6))
  seen = {
    tuple(agent.acting.act(online, OBS, (base, jnp.int32(k)), 0.0).tolist())
    for k in range(3)
  }
  assert len(seen) > 1


def test_the_first_head_learns_nothing_and_the_others_do():
  twin, agent, online = _pair('iterated_heads')
  gradient = jax.grad(agent.loss, has_aux=True)(
    online, (), _batch(), jax.random.key(1)
  )[0]
  for leaf in jax.tree.leaves(gradient['params']['head']):
    assert leaf.shape[0] == 4
    assert not leaf[0].any()
    assert all(leaf[k].any() for k in (1, 2, 3))
  shifted = twin.shift(online, (), 1)['params']
  for old, new in zip(
    *map(jax.tree.leaves, (online['params']['head'], shifted['head'])),
    strict=True,
  ):
    np.testing.assert_array_equal(new, old[jnp.array([1, 2, 3, 3])])
  chex.assert_trees_all_equal(shifted['torso'], online['params']['torso'])


def test_one_iterated_head_is_a_twin_of_the_last_layer():
  heads = twins.iterated_heads(1)
  parts = twins.by_path(
    {'head': twins.periodic(3, twins.hard()), 'torso': twins.hard()}
  )
  states = _train(heads, 3, 8)
  online = states[0].online_params['params']
  newest = {
    'params': {
      'torso': online['torso'],
      'head': jax.tree.map(lambda x: x[1], online['head']),
    }
  }
  oldest = {
    'params': {
      'torso': jax.tree.map(jnp.copy, online['torso']),
      'head': jax.tree.map(lambda x: x[0], online['head']),
    }
  }
  (start,) = _train(parts, 1, 0)
  start = start.replace(online_params=newest, target_params=oldest)
  for ours, theirs in zip(
    states, _train(parts, 1, 8, state=start), strict=True
  ):
    found, wanted = ours.online_params['params'], theirs.online_params['params']
    chex.assert_trees_all_close(found['torso'], wanted['torso'], atol=1e-6)
    chex.assert_trees_all_close(
      jax.tree.map(lambda x: x[1], found['head']), wanted['head'], atol=1e-6
    )
    chex.assert_trees_all_close(
      jax.tree.map(lambda x: x[0], found['head']),
      theirs.target_params['params']['head'],
      atol=1e-6,
    )


@pytest.mark.parametrize(
  'td_loss, factor', [('half_squared', 1), ('squared', 2)]
)
def test_the_gradient_of_a_gradient_chain_by_its_formula(td_loss, factor):
  agent = _base(td_loss=td_loss)
  twin = twins.gradient_chain(3, 0.5)
  lifted, batch = twin.lift(agent), _batch()
  online = lifted.init(jax.random.key(3))
  stop = jax.lax.stop_gradient

  def formula(online):
    at = lambda name, k: jax.tree.map(lambda leaf: leaf[k], online[name])
    total = 0.25 * optax.tree.norm(online['corrections'], squared=True)
    for k in (1, 2, 3):
      q = agent.taken(at('networks', k), batch)
      v_t = agent.values(at('networks', k - 1), batch.obs_t).max(-1)
      y = batch.r_t + batch.discount_t * v_t
      z = agent.taken(at('corrections', k - 1), batch)
      parts = -q * stop(y - q) + z * stop(z - (y - q))
      parts += y * stop(z) if k > 1 else 0
      total += factor * jnp.mean(parts)
    return total

  ours = jax.grad(lambda p: lifted.loss(p, (), batch, KEY)[0])(online)
  chex.assert_trees_all_close(
    ours, jax.grad(formula)(online), rtol=1e-4, atol=1e-6
  )
  for leaf in jax.tree.leaves(ours['networks']):
    assert not jnp.any(leaf[0])
    # Through its target alone network 1 would not learn the same.
    assert jnp.any(leaf[1])


def test_a_gradient_chain_of_one_is_hard():
  made = make_learner(
    _base(), optax.sgd(0.1), ClockedTwin(twins.gradient_chain(1, 0.0), 3)
  )
  state, regress = made.init(jax.random.key(0)), jax.jit(made.regress)
  first, second = (
    jax.tree.map(lambda leaf, k=k: leaf[k], state.online_params['networks'])
    for k in (0, 1)
  )
  plain = make_learner(_base(), optax.sgd(0.1), ClockedTwin(twins.hard(), 3))
  other, plainly = plain.init(jax.random.key(0)), jax.jit(plain.regress)
  other = other.replace(online_params=second, target_params=first)
  for step in range(7):
    state, _ = regress(state, _batch(step))
    other, _ = plainly(other, _batch(step))
    expected = jax.tree.map(
      lambda t, o: jnp.stack([t, o]), other.target_params, other.online_params
    )
    chex.assert_trees_all_close(
      state.online_params['networks'], expected, rtol=1e-5, atol=1e-6
    )


def test_without_corrections_a_gradient_chain_learns_like_its_heads_alone():
  """Zero corrections have no part in what the networks learn."""
  agent, batch = _base(), _batch()
  lifted = twins.gradient_chain(3, 0.0).lift(agent)
  online = lifted.init(jax.random.key(3))
  online['corrections'] = jax.tree.map(jnp.zeros_like, online['corrections'])
  ours = jax.grad(lambda p: lifted.loss(p, (), batch, KEY)[0])(online)
  for k in (1, 2, 3):
    now, before = (
      jax.tree.map(lambda leaf, at=at: leaf[at], online['networks'])
      for at in (k, k - 1)
    )
    of_first = lambda p, t: agent.loss(p, t, batch, KEY)[0]
    expected = jax.grad(of_first)(now, before)
    chex.assert_trees_all_close(
      jax.tree.map(lambda leaf, k=k: leaf[k], ours['networks']),
      expected,
      rtol=1e-4,
      atol=1e-6,
    )


def test_iterated_heads_need_a_last_layer():
  agent = _base()._replace(init=lambda key: {'w': jnp.ones(2)})
  with pytest.raises(ValueError, match="'iterated_heads' needs .*there are w"):
    twins.iterated_heads(2).lift(agent).init(jax.random.key(0))


# Names.


def test_period_and_rate_may_be_vmapped_in_one_program():
  def final(period, tau):
    move = learner.make_move(ClockedTwin(twins.soft(tau), period))
    body = lambda target, step: (move(step * 1.0, target, step)[1], None)
    return jax.lax.scan(body, 0.0, jnp.arange(1, 13))[0]

  periods, taus = jnp.array([1, 4, 5]), jnp.array([0.5, 1.0, 0.25])
  swept = jax.jit(jax.vmap(final))(periods, taus)
  single = [
    float(final(int(p), float(t))) for p, t in zip(periods, taus, strict=True)
  ]
  np.testing.assert_allclose(swept, single, rtol=1e-6)
  assert swept[1] == 12.0  # a copy after step 12


@pytest.mark.parametrize(
  'kwargs, message',
  [
    (dict(name='hadr'), "target_update='hadr' is unknown; choose from hard"),
    (dict(name='hard', tau=0.1), 'tau=0.1 has no meaning .*takes no parameter'),
    (dict(name='soft', ridge=0.1), 'ridge=0.1 has no meaning .*takes tau'),
    (dict(name='soft'), r'needs tau, in \(0, 1\]'),
    (dict(name='soft', tau=0.0), r'tau=0.0 must be in \(0, 1\]'),
    (dict(name='periodic_soft', tau=1.5), r'tau=1.5 must be in \(0, 1\]'),
    (dict(name='averaged', target_count=0), 'target_count=0 must be a whole'),
    (dict(name='functional', twin_weight=-1), 'twin_weight=-1 must be 0 or m'),
    (dict(name='chain', target_count=2), 'needs target_period, a whole'),
    (dict(name='by_path', target_paths='head'), 'must be such as torso:soft'),
    (
      dict(name='by_path', target_paths='head:chain'),
      "'chain' must be one of hard, soft",
    ),
    (dict(name='by_path', target_paths='(:hard'), 'not a regular expression'),
    (
      dict(name='by_path', target_paths='a:soft+a:hard'),
      "name 'a' twice",
    ),
    (dict(name='proximal', twin_weight=1.0), 'twin_weight=1.0 must be below 1'),
    (dict(name='by_path', target_paths='.*:soft'), 'needs tau'),
    (
      dict(name='by_path', target_paths='.*:hard', target_period=2, tau=0.5),
      'tau=0.5 has no meaning',
    ),
  ],
)
def test_what_make_rule_refuses(kwargs, message):
  with pytest.raises(ValueError, match=message):
    twins.make_rule(**kwargs)


def test_make_rule_knows_its_parameters():
  with pytest.raises(TypeError, match="no parameter 'ta'"):
    twins.make_rule('soft', ta=0.1)
  taken = {name for rule in twins.RULES.values() for name in rule.takes}
  assert taken == set(twins.PARAMETERS)


def test_a_period_is_nobodys_mistake():
  # Presets have one, whatever the rule that is put in their place.
  twins.make_rule('soft', tau=0.1, target_period=8_000)
