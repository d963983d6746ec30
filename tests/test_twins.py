"""Laws that hold for the rules that move a twin."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import twins


def _tree(seed: int) -> dict:
  keys = jax.random.split(jax.random.key(seed), 2)
  return {
    'a': jax.random.normal(keys[0], (3, 2)),
    'b': {'c': jax.random.normal(keys[1], (4,))},
  }


ONLINE, TARGET = _tree(0), _tree(1)
ALL_RULES = sorted(twins.RULES)


def _make(name):
  return twins.make_rule(name, tau=0.3 if twins.RULES[name].takes_tau else None)


def _run(rule, online_at, target, steps):
  for step in range(1, steps + 1):
    target = rule(online_at(step), target, jnp.int32(step))
  return target


@pytest.mark.parametrize('name', ALL_RULES)
def test_every_rule_keeps_structure_shapes_and_dtypes(name):
  moved = jax.jit(_make(name))(ONLINE, TARGET, jnp.int32(1))
  chex.assert_trees_all_equal_shapes_and_dtypes(moved, TARGET)


@pytest.mark.parametrize('name', ALL_RULES)
def test_equal_twins_stay_equal(name):
  # A fixed point: online + tau * 0 in floating point, too.
  moved = _make(name)(ONLINE, ONLINE, jnp.int32(1))
  chex.assert_trees_all_close(moved, ONLINE, rtol=1e-6)


@pytest.mark.parametrize('name', ALL_RULES)
def test_moved_twin_lies_between_the_two(name):
  moved = _make(name)(ONLINE, TARGET, jnp.int32(1))
  for m, o, t in zip(
    *map(jax.tree.leaves, (moved, ONLINE, TARGET)), strict=True
  ):
    assert bool(jnp.all(m <= jnp.maximum(o, t) + 1e-6))
    assert bool(jnp.all(m >= jnp.minimum(o, t) - 1e-6))


@pytest.mark.parametrize('name', ALL_RULES)
def test_the_result_is_no_alias_of_the_online_parameters(name):
  moved = _make(name)(ONLINE, TARGET, jnp.int32(1))
  pointers = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(ONLINE)}
  assert not pointers & {
    leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(moved)
  }


def test_hard_copies_and_forgets_infinities():
  infinite = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), TARGET)
  moved = twins.hard()(ONLINE, infinite, jnp.int32(1))
  chex.assert_trees_all_equal(moved, ONLINE)
  # What a weighted sum would have made of it, and why hard is no soft(1):
  mixed = optax.incremental_update(ONLINE, infinite, 1.0)
  assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(mixed))


def test_soft_of_one_is_hard():
  infinite = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), TARGET)
  chex.assert_trees_all_equal(twins.soft(1.0)(ONLINE, infinite, 1), ONLINE)


def test_soft_by_hand():
  moved = twins.soft(0.25)({'w': jnp.array([8.0])}, {'w': jnp.array([4.0])}, 1)
  np.testing.assert_allclose(moved['w'], [5.0])


@pytest.mark.parametrize('tau', [0.005, 0.1, 0.7])
def test_m_soft_steps_to_a_still_network_are_one_larger_step(tau):
  m = 7
  moved = _run(twins.soft(tau), lambda step: ONLINE, TARGET, m)
  once = twins.soft(1 - (1 - tau) ** m)(ONLINE, TARGET, 1)
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
  for name, rule in (
    ('hard', twins.periodic(period, twins.hard())),
    ('soft', twins.soft(2 / (period + 1))),
  ):

    def body(target, step, rule=rule):
      target = rule(step.astype(jnp.float32), target, step)
      return target, step - target

    _, lags = jax.lax.scan(body, jnp.float32(0), jnp.arange(1, steps + 1))
    lag[name] = float(lags[steps // 2 :].mean())
  assert lag['hard'] == pytest.approx((period - 1) / 2)
  assert lag['soft'] == pytest.approx((period - 1) / 2, rel=1e-3)


def test_periodic_moves_at_multiples_only():
  rule = twins.periodic(3, twins.hard())
  for step in range(1, 10):
    moved = rule(ONLINE, TARGET, jnp.int32(step))
    chex.assert_trees_all_equal(moved, ONLINE if step % 3 == 0 else TARGET)


def test_periodic_of_period_one_is_the_rule():
  rule = twins.soft(0.3)
  assert twins.periodic(1, rule) is rule


def test_frozen_never_moves_and_is_an_infinite_period():
  chex.assert_trees_all_equal(
    _run(twins.frozen(), lambda step: ONLINE, TARGET, 20), TARGET
  )
  chex.assert_trees_all_equal(
    _run(twins.periodic(2**30, twins.hard()), lambda step: ONLINE, TARGET, 20),
    TARGET,
  )


def test_self_is_hard_at_every_step():
  online_at = lambda step: jax.tree.map(lambda x: x * step, ONLINE)
  chex.assert_trees_all_equal(
    _run(twins.make_rule('self'), online_at, TARGET, 5),
    _run(twins.periodic(1, twins.hard()), online_at, TARGET, 5),
  )


def test_period_and_rate_may_be_vmapped_in_one_program():
  def final(period, tau):
    rule = twins.periodic(period, twins.soft(tau))
    body = lambda target, step: (rule(step * 1.0, target, step), None)
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
    (dict(name='hard', tau=0.1), 'tau=0.1 has no meaning'),
    (dict(name='soft'), 'needs a tau'),
    (dict(name='soft', tau=0.0), r'tau=0.0 is outside \(0, 1\]'),
    (dict(name='periodic_soft', tau=1.5), r'tau=1.5 is outside \(0, 1\]'),
  ],
)
def test_what_make_rule_refuses(kwargs, message):
  with pytest.raises(ValueError, match=message):
    twins.make_rule(**kwargs)
