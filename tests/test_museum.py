"""The museum of defects: numbers by hand, and the same without JAX."""

import copy

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import conformance, diagnostics, museum, twins
from siamrl.conformance import defects
from siamrl.learner import ClockedTwin, make_learner
from siamrl.parameters import FieldError
from siamrl.types import Agent

# The names of parameters here and in the references.
NAMES = {
  'target_period': 'period',
  'period_factor': 'factor',
  'clock_ratio': 'steps_per_gradient_step',
  'block_steps': 'block',
  'default_tau': 'default',
}
# Of each rule: its parameters, and what a twin that is born 0 holds after each
# of 12 gradient steps, if after gradient step n the online parameter is n.
BY_HAND = {
  'alias': (
    dict(target_period=5),
    [0, 0, 0, 0, 5, 6, 7, 8, 9, 10, 11, 12],
  ),
  'lost_update': ({}, [0] * 12),
  'period_multiplied': (
    dict(tau=1.0, target_period=2, period_factor=3),
    [0, 0, 0, 0, 0, 6, 6, 6, 6, 6, 6, 12],
  ),
  # Of a clock at 2, 4, ..., 24, multiples of 5 lie before or at 6, 10, 16, 20.
  'unit_confusion': (
    dict(tau=1.0, target_period=5, clock_ratio=2),
    [0, 0, 3, 3, 5, 5, 5, 8, 8, 10, 10, 10],
  ),
  # 0.5, 1.25, a copy, 3.5, ...
  'double_rule': (
    dict(tau=0.5, target_period=3),
    [0.5, 1.25, 3, 3.5, 4.25, 6, 6.5, 7.25, 9, 9.5, 10.25, 12],
  ),
  'soft_birth': (
    dict(tau=1.0, target_period=4, birth_tau=0.25),
    [0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12],
  ),
  'tau_ignored': (
    dict(default_tau=0.5, target_period=4),
    [0, 0, 0, 2, 2, 2, 2, 5, 5, 5, 5, 8.5],
  ),
  # 3, 6, 9 and 12 are due; it looks at 4, 8 and 12.
  'once_per_block': (
    dict(tau=0.5, target_period=3, block_steps=4),
    [0, 0, 0, 2, 2, 2, 2, 5, 5, 5, 5, 8.5],
  ),
}


@pytest.fixture(autouse=True)
def registered():
  """Offers the defects, and leaves the registries as they were."""
  held = [twins.RULES, twins.PARAMETERS]
  before = [copy.copy(registry) for registry in held]
  museum.register()
  museum.register()  # again, for nothing
  yield
  for registry, kept in zip(held, before, strict=True):
    registry.clear()
    registry.update(kept)


@pytest.mark.parametrize('name', BY_HAND)
def test_by_hand(name):
  given, expected = BY_HAND[name]
  twin = twins.make_rule(name, **given)
  target = twin.init({'w': jnp.zeros(())})
  seen = []
  for n in range(1, 13):
    target = twin.update({'w': jnp.float32(n)}, target, jnp.int32(n))
    seen.append(float(target['w']))
  assert seen == expected


def test_statistics_by_hand():
  twin = museum.statistics_left_behind(0.5, 2)
  online = {'critic': jnp.float32(8), 'critic_statistics': jnp.float32(8)}
  target = twin.init(jax.tree.map(jnp.zeros_like, online))
  for n, weight in ((1, 0), (2, 4), (3, 4), (4, 6)):
    target = twin.update(online, target, n)
    assert target == {'critic': weight, 'critic_statistics': 0}
  with pytest.raises(FieldError, match='statistics_left_behind'):
    twin.init({'critic': jnp.zeros(2)})


def _agent():
  """An agent whose gradient is 1; only its critic has a twin."""

  def init(key):
    return {
      'critic': {'w': jax.random.normal(key, (3,))},
      'actor': jnp.zeros(2),
    }

  def loss(online, target, batch, key, **variant):
    return jnp.sum(online['critic']['w']) + jnp.sum(online['actor']), {}

  nothing = lambda *arguments: None
  return Agent(init, loss, nothing, nothing, nothing, twinned=('critic',))


def test_a_soft_birth_mixes_two_draws():
  learner = make_learner(
    _agent(), optax.sgd(0.0), ClockedTwin(museum.soft_birth(1.0, 9, 0.25))
  )
  key = jax.random.key(0)
  state = learner.init(key)
  fresh = make_learner(
    _agent(), optax.sgd(0.0), ClockedTwin(twins.hard(), init='fresh')
  ).init(key)
  w, other = state.online_params['critic']['w'], fresh.target_params['critic']
  chex.assert_trees_all_equal(state.online_params, fresh.online_params)
  np.testing.assert_allclose(
    state.target_params['critic']['w'], 0.25 * w + 0.75 * other['w'], rtol=1e-6
  )
  with pytest.raises(FieldError, match="target_init='fresh' must be 'equal'"):
    make_learner(
      _agent(),
      optax.sgd(0.0),
      ClockedTwin(museum.soft_birth(1.0, 9, 0.25), init='fresh'),
    )


@pytest.mark.parametrize('order', ['after', 'before'])
def test_the_wrong_direction_writes_what_has_a_twin(order):
  """The gradient is 1, so each step takes 1 off; every third is undone."""
  clocked = ClockedTwin(museum.wrong_direction(0.5, 3), order=order)
  learner = make_learner(_agent(), optax.sgd(1.0), clocked)
  state = learner.init(jax.random.key(0))
  w, regress = state.online_params['critic']['w'], jax.jit(learner.regress)
  for n, off in enumerate(
    [1, 2, 1.5, 2.5, 3.5, 2.25] if order == 'after' else [1, 2, 2, 3, 4, 3], 1
  ):
    state, _ = regress(state, ())
    now = state.online_params
    np.testing.assert_allclose(now['critic']['w'], w - off, atol=1e-5)
    np.testing.assert_array_equal(now['actor'], [-n, -n])
    np.testing.assert_array_equal(state.target_params['critic']['w'], w)


def _parameters(shift):
  rng = np.random.default_rng(shift)
  return {
    'params': {'dense': rng.normal(size=(2, 3)).astype(np.float32)},
    'batch_stats': {'mean': rng.normal(size=3).astype(np.float32)},
  }


GIVEN = {
  'tau': 0.3,
  'target_period': 5,
  'period_factor': 3,
  'clock_ratio': 3,
  'block_steps': 4,
  'default_tau': 0.6,
  'birth_tau': 0.3,
}


@pytest.mark.parametrize('name', museum.EXHIBITS)
def test_the_same_as_without_jax(name):
  """Also where the rule compiles with values that it does not know."""
  given = {n: GIVEN[n] for n in twins.takes(name)}
  asked = {
    NAMES.get(n, n): value for n, value in given.items() if n != 'birth_tau'
  }
  reference = defects.DEFECTS[name].reference(**asked)
  online, fresh = _parameters(0), _parameters(1)
  expected = reference.init(online, fresh)
  twin = twins.make_rule(name, **given)
  if twin.birth is None:
    target = twin.init(online)
  else:
    target = twin.birth(online, fresh)
  chex.assert_trees_all_close(target, expected, rtol=1e-6)

  @jax.jit
  def step(given, online, target, n):
    twin = twins.make_rule(name, **given)
    shifted = twin.shift(online, target, n) if twin.shift else online
    return shifted, twin.update(online, target, n)

  ours = online
  for n in range(1, 31):
    rise = _parameters(n)
    online = jax.tree.map(np.add, online, rise)
    ours = jax.tree.map(jnp.add, ours, rise)
    online, expected = reference.update(online, expected, n)
    ours, target = step(given, ours, target, n)
    chex.assert_trees_all_close(target, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(ours, online, rtol=1e-5, atol=1e-5)


def _update(twin):
  """A rule as an update that may write the online parameters in place."""
  moved = jax.jit(twin.update)
  shifted = jax.jit(twin.shift or (lambda online, target, step: online))

  def update(online, target, step):
    after = moved(online, target, step)
    written = shifted(online, target, step)
    jax.tree.map(lambda leaf, new: np.copyto(leaf, new), online, written)
    return after

  return update


ASKED = {
  'double_rule': (dict(tau=0.3, target_period=20), dict(tau=0.3)),
  'tau_ignored': (dict(target_period=1, default_tau=1.0), dict(tau=0.3)),
  'once_per_block': (
    dict(tau=0.3, target_period=1, block_steps=8),
    dict(tau=0.3),
  ),
}
# JAX's arrays share no memory, so that an alias breaks the law of the clock.
CAUGHT = {name: d.law for name, d in defects.DEFECTS.items()}
CAUGHT['alias'] = 'clock'


@pytest.mark.parametrize('name', museum.EXHIBITS)
def test_the_check_names_the_defect(name):
  hard = (GIVEN | dict(tau=1.0, target_period=20), dict(period=20))
  given, asked = ASKED.get(name, hard)
  twin = twins.make_rule(name, **{n: given[n] for n in twins.takes(name)})
  fresh = jax.tree.map(np.ones_like, _parameters(0))
  with pytest.raises(conformance.ConformanceError) as caught:
    conformance.check(
      _update(twin),
      _parameters(0),
      rule='hard' if 'period' in asked else 'soft',
      init=twin.birth and (lambda online: twin.birth(online, fresh)),
      calls=500,
      **asked,
    )
  assert (caught.value.law, caught.value.defect) == (CAUGHT[name], name)


def test_the_check_passes_the_right_rule():
  conformance.check(
    _update(museum.right(0.3, 20)),
    _parameters(0),
    rule='periodic_soft',
    tau=0.3,
    period=20,
    calls=500,
  )


def test_every_defect_has_its_rule():
  assert museum.EXHIBITS.keys() == defects.DEFECTS.keys()
  for name in museum.EXHIBITS:
    assert twins.RULES[name].summary.startswith('a defect: ')


def test_a_copy_takes_nothing_from_a_twin_that_is_infinite():
  moved = museum.right(jnp.float32(1.0), 1).update(
    {'w': jnp.ones(2)}, {'w': jnp.full(2, jnp.inf)}, 1
  )
  assert moved['w'].tolist() == [1, 1]


def test_ages():
  online = {'w': jnp.zeros(3)}

  def age(twin, steps):
    clock = diagnostics.make_clock(ClockedTwin(twin))
    ages = clock.advance(online, clock.init(online), 0, steps)
    return float(clock.read(online, ages)[0])

  assert age(museum.period_multiplied(1.0, 2, 3), 11) == 5
  assert age(museum.alias(4), 3) == 3
  assert age(museum.alias(4), 9) == 0
  assert age(museum.wrong_direction(1.0, 2), 9) == 9
