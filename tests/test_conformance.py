"""Laws of target networks: defects are named, right twins pass."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl import pytest_plugin, twins
from siamrl.conformance import (
  DEFECTS,
  LAWS,
  ConformanceError,
  check,
  identify,
  in_place,
)
from siamrl.conformance.defects import moved, right

PARAMS = {
  'torso': {'kernel': np.zeros((2, 3), np.float32)},
  'head': [np.zeros(3, np.float32)],
  'norm': {'running_mean': np.zeros(2), 'num_batches_tracked': np.array(0)},
}


def _as_update(rule):
  """A rule of the museum as an update, which writes the online in place."""

  def update(online, target, steps):
    new, target = rule.update(online, target, steps)
    if new is not online:
      online['torso']['kernel'][...] = new['torso']['kernel']
    return target

  return update


def _as_init(rule):
  fresh = {
    'torso': {'kernel': np.full((2, 3), 0.3, np.float32)},
    'head': [np.full(3, -0.2, np.float32)],
    'norm': {'running_mean': np.zeros(2), 'num_batches_tracked': np.array(0)},
  }
  return lambda online: rule.init(online, fresh)


def _asked(tau, period):
  """Arguments of `check` for a rate and a period."""
  if tau == 1:
    return {'rule': 'hard', 'period': period}
  if period == 1:
    return {'rule': 'soft', 'tau': tau}
  return {'rule': 'periodic_soft', 'tau': tau, 'period': period}


def test_defects_name_laws_and_places():
  assert len(DEFECTS) == 10
  for name, defect in DEFECTS.items():
    assert defect.name == name and defect.law in LAWS
    assert defect.seen and defect.happens.endswith('.')


CASES = [
  (name, tau, period)
  for name in DEFECTS
  for tau, period in ((1.0, 500), (0.01, 50), (1.0, 1_996), (0.005, 1))
  # What the defect's own parameters leave of it: a soft birth with tau = 1 is
  # a copy, a block that divides the period is right, and of a period that is 1
  # nothing can be confused.
  if not (name == 'soft_birth' and tau == 1)
  and not (name in ('unit_confusion', 'period_multiplied') and period == 1)
  and not (name == 'double_rule' and tau == 1)
]


@pytest.mark.parametrize('name, tau, period', CASES)
def test_every_defect_is_named(name, tau, period):
  own = {'default': 0.3} if name == 'tau_ignored' else {}
  asked = _asked(tau, period)
  if name == 'double_rule':
    # The soft rule moves at every step, and a copy comes besides.
    own, asked = {'period': 100}, _asked(tau, 1)
  rule = DEFECTS[name].reference(**{'tau': tau, 'period': period} | own)
  with pytest.raises(ConformanceError) as caught:
    calls = 2 * period + 1_000
    check(_as_update(rule), PARAMS, init=_as_init(rule), calls=calls, **asked)
  assert caught.value.defect == name
  assert caught.value.law == DEFECTS[name].law
  assert DEFECTS[name].seen[0].repository in str(caught.value)


@pytest.mark.parametrize(
  'tau, period',
  [(1, 1), (1, 2), (1, 501), (1, 40_000), (0.005, 1), (0.3, 7), (0.01, 2_500)],
)
def test_right_twins_pass(tau, period):
  rule = right(tau, period)
  asked = _asked(tau, period)
  found = check(
    _as_update(rule), PARAMS, init=_as_init(rule), calls=600, **asked
  )
  assert (found.period, found.phase, found.birth) == (period, 0, 'copy')
  assert found.tau == pytest.approx(tau, abs=1e-7)
  assert found.calls <= 600 and found.first is None


def _random_twin(rng):
  """A twin with its rate, period, phase, and what its clock counts."""
  tau = 1.0 if rng.random() < 0.4 else float(10 ** rng.uniform(-4, -0.01))
  period = int(10 ** rng.uniform(0, 2.3))
  if rng.random() < 0.1:
    period = int(rng.choice([1_000, 2_500, 10_000, 32_000, 1_000_000]))
  phase = int(rng.integers(period)) if period < 200 else 0
  calls = [0]

  def by_step(online, target, steps):
    due = steps % period == phase
    return tau * online + (1 - tau) * target if due else target

  def by_call(online, target, steps):
    calls[0] += 1
    return by_step(online, target, calls[0])

  counts = 'calls' if 1 < period < 200 and rng.random() < 0.2 else None
  twin = by_call if counts else by_step
  return twin, tau, period, phase, counts or 'gradient_steps'


@pytest.mark.parametrize(
  'seed, count, calls',
  [(0, 50, 600), pytest.param(1, 1_000, 2_000, marks=pytest.mark.slow)],
)
def test_random_twins_are_identified(seed, count, calls):
  rng = np.random.default_rng(seed)
  params = np.zeros(2, np.float32)
  for _ in range(count):
    twin, tau, period, phase, counts = _random_twin(rng)
    found = identify(twin, params, calls=calls)
    name = 'soft' if period == 1 else 'periodic_soft'
    assert found.rule == ('hard' if tau == 1 else name), (tau, period, phase)
    assert (found.period, found.phase) == (period, phase)
    assert found.counts == counts
    assert abs(found.tau - tau) < 1e-6


# Rules that are no functions of (online, target, gradient_steps) alone: they
# keep the time of their last update, weights, or several networks. And one
# that draws.
MORE_THAN_A_TARGET = {
  't_soft',
  'hard_scheduled',
  'hard_geometric',
  'hard_random',
  'averaged',
  'chain',
  'gradient_chain',
  'iterated_heads',
}
JAX_RULES = {
  'hard': {'period': 500},
  'soft': {'tau': 0.005},
  'periodic_soft': {'tau': 0.25, 'period': 2},
  'soft_cosine': {'tau': 0.01, 'target_schedule_steps': 700},
  'soft_linear': {'tau': 0.1, 'tau_end': 1, 'target_schedule_steps': 10_000},
  'frozen': {},
  'self': {},
  'residual': {'rule': 'self'},
  'by_path': {'target_paths': 'torso:soft+.:hard', 'tau': 0.1, 'period': 50},
  'functional': {'rule': 'hard', 'period': 3},
  'proximal': {'rule': 'hard', 'period': 7},
  'projected_soft': {'rule': 'soft', 'tau': 0.02},
}


def test_every_rule_is_checked_or_said_to_be_more():
  assert twins.RULES.keys() <= JAX_RULES.keys() | MORE_THAN_A_TARGET
  for rule in MORE_THAN_A_TARGET:
    with pytest.raises(ValueError, match='alone'):
      check(lambda online, target, steps: target, PARAMS, rule=rule)


@pytest.mark.parametrize('name', JAX_RULES)
def test_no_false_alarm_on_rules_of_siamrl(name):
  asked = {'rule': name} | JAX_RULES[name]
  given = {key: value for key, value in asked.items() if key != 'rule'}
  period = given.pop('period', 1)
  if name == 'by_path':
    given |= {'target_period': period}
    period = 1
  if name == 'projected_soft':
    given |= {'projection_radius': 1e3, 'ridge': 0.0}
  if name in ('functional', 'proximal'):
    given |= {'twin_weight': 0.5}
  if 'target_schedule_steps' in given:
    given['target_schedule_steps'] = float(given['target_schedule_steps'])
  twin = twins.periodic(period, twins.make_rule(name, **given))

  @jax.jit
  def update(online, target, steps):
    return twin.params(online, twin.update(online, target, steps))

  params = jax.tree.map(
    jnp.asarray,
    {'torso': np.ones((2, 3), np.float32), 'head': np.ones(2, np.float32)},
  )
  init = lambda online: twin.params(online, twin.init(online))
  found = check(update, params, init=init, calls=600, **asked)
  assert found.birth == 'copy' and not found.aliases and not found.writes
  if asked['rule'] != 'self':
    assert found.rule == asked['rule']
  if name == 'by_path':
    assert found.leaves['torso'].rule == 'soft'
    assert found.leaves['head'].period == 50


class _Tensor:
  """As much of a tensor of PyTorch as is asked of one."""

  def __init__(self, array):
    self._array = np.asarray(array)
    self.dtype = f'torch.{self._array.dtype}'

  def detach(self):
    return self

  def cpu(self):
    return self

  def __array__(self, dtype=None, copy=None):
    return np.array(self._array, dtype, copy=copy)

  def new_tensor(self, values):
    return _Tensor(np.array(values, self._array.dtype))

  def copy_(self, other):
    self._array[...] = other._array


class _Network:
  """As much of a network of PyTorch as is asked of one."""

  def __init__(self):
    self._tensors = {'weight': _Tensor(np.zeros((2, 2), np.float32))}
    self._tensors['running_var'] = _Tensor(np.zeros(2, np.float32))

  def state_dict(self):
    return dict(self._tensors)

  def load_state_dict(self, state):
    for name, tensor in self._tensors.items():
      tensor.copy_(state[name])

  def polyak(self, target, tau, names):
    for name in names:
      mine, theirs = self._tensors[name], target._tensors[name]
      theirs.copy_(_Tensor(tau * np.asarray(mine) + (1 - tau) * theirs._array))


def test_networks_that_are_changed_in_place():
  update = lambda online, target, steps: online.polyak(
    target, 0.1, ('weight', 'running_var')
  )
  with pytest.raises(ConformanceError, match='wrap it in in_place') as caught:
    check(update, _Network(), rule='soft', tau=0.1, calls=600)
  assert caught.value.law == 'in_place' and caught.value.defect is None
  found = check(in_place(update), _Network(), rule='soft', tau=0.1, calls=600)
  assert found.writes == ()
  found = identify(update, _Network(), calls=600)
  assert (found.rule, found.writes) == ('soft', ('target',))
  with pytest.raises(ConformanceError) as caught:
    part = lambda online, target, steps: online.polyak(target, 0.1, ['weight'])
    check(in_place(part), _Network(), rule='soft', tau=0.1, calls=600)
  assert caught.value.defect == 'statistics_left_behind'
  with pytest.raises(ConformanceError) as caught:
    turned = lambda online, target, steps: target.polyak(
      online, 0.1, ['weight']
    )
    check(in_place(turned), _Network(), rule='soft', tau=0.1, calls=600)
  assert caught.value.defect == 'wrong_direction'
  copy = in_place(update)(_Network(), kept := _Network(), 1)
  assert copy is not kept


def test_laws_without_a_defect_of_their_own():
  rng = np.random.default_rng(0)
  params = {'a': np.zeros((2, 3)), 'b': np.zeros(3)}
  soft = lambda online, target, steps: moved(online, target, 0.1)
  broken = {
    'structure': lambda online, target, steps: {'a': online['a'] + 0},
    'finite': lambda online, target, steps: moved(online, target, np.nan),
    'deterministic': lambda online, target, steps: (
      soft(online, target, steps) | {'a': rng.normal(size=(2, 3))}
    ),
    'mean': lambda online, target, steps: (
      soft(online, target, steps)
      | {'a': 0.1 * online['a'][::-1] + 0.9 * target['a']}
    ),
    'clock': lambda online, target, steps: (
      soft(online, target, steps) if steps > 1 else target
    ),
    'whole': lambda online, target, steps: (
      soft(online, target, steps) | {'a': target['a']}
    ),
  }
  for law, update in broken.items():
    with pytest.raises(ConformanceError) as caught:
      check(update, params, rule='soft', tau=0.1, calls=600)
    assert caught.value.law == law, str(caught.value)
  shapes = lambda online, target, steps: {'a': online['a'], 'b': online['a']}
  found = identify(shapes, params, calls=600)
  assert found.rule is None and "'b' has the shape (2, 3), not (3,)" in str(
    found
  )


def test_rate_and_clock_have_numbers():
  update = _as_update(right(0.995, 1))
  with pytest.raises(ConformanceError, match='0.995, not 0.005') as caught:
    check(update, PARAMS, rule='soft', tau=0.005, calls=600)
  # Nothing wrote the online network.
  assert caught.value.defect is None and 'swapped' in caught.value.guess
  with pytest.raises(ConformanceError, match='every 5010.* 10 times'):
    check(
      _as_update(right(1, 5_010)), PARAMS, rule='hard', period=501, calls=6_000
    )
  late = lambda online, target, steps: (
    moved(online, target, 1) if steps % 4 == 1 else target
  )
  with pytest.raises(ConformanceError, match='phase 1, not 0'):
    check(late, PARAMS, rule='hard', period=4, calls=600)
  assert (
    check(late, PARAMS, rule='hard', period=4, phase=1, calls=600).phase == 1
  )
  assert (
    check(late, PARAMS, rule='hard', period=4, phase=None, calls=600).phase == 1
  )


@pytest.mark.parametrize(
  'asked, said',
  [
    ({'rule': 'hart'}, "rule='hart' must be one of hard, soft"),
    ({'rule': 'hard'}, "rule='hard' needs period"),
    ({'rule': 'soft', 'tau': 0}, 'tau=0 must be a number above 0'),
    ({'rule': 'soft', 'tau': 2}, 'tau=2 must be a number above 0'),
    ({'period': 1.5}, 'period=1.5 must be a whole number from 1 on'),
    ({'period': 4, 'phase': 4}, 'phase=4 must be None or a whole number from'),
    ({'period': 4, 'tau': 1}, "tau=1 is no parameter of rule='hard'"),
    ({'period': 4, 'calls': 9}, 'calls=9 must be a whole number from 200 on'),
    (
      {'rule': 'by_path', 'target_paths': 'a:b'},
      "target_paths='a:b' must be such as",
    ),
  ],
)
def test_arguments_outside_their_range(asked, said):
  with pytest.raises(ValueError, match=said):
    check(_as_update(right()), PARAMS, **asked)


def test_an_update_that_needs_a_seed_and_parameters_that_are_none():
  with pytest.raises(TypeError, match='online, target, steps, key.*fixed seed'):
    identify(lambda online, target, steps, key: target, PARAMS)
  with pytest.raises(TypeError, match='params: name holds <U1'):
    identify(lambda online, target, steps: target, {'name': 'q'})
  with pytest.raises(ValueError, match='must hold floating numbers'):
    identify(lambda online, target, steps: target, {'a': np.array(1)})


def test_longer_periods_cannot_be_told_from_none():
  found = identify(_as_update(right(1, 7_919)), PARAMS, calls=300)
  assert found.rule == 'frozen' and 'cannot be told from none' in str(found)


def test_nothing_but_numpy_is_imported():
  script = (
    'import sys, siamrl.conformance;'
    "print([m for m in ('jax', 'torch', 'pytest') if m in sys.modules])"
  )
  said = subprocess.check_output([sys.executable, '-c', script], text=True)
  assert said.strip() == '[]'


def test_the_fixture_of_pytest(tmp_path, capsys):
  (tmp_path / 'test_own.py').write_text(
    'import numpy as np\n'
    'def test_right(check_twin):\n'
    '  check_twin(lambda o, t, g: o + 0, np.zeros(2), period=1, calls=200)\n'
    'def test_wrong(check_twin):\n'
    '  check_twin(lambda o, t, g: o, np.zeros(2), period=1, calls=200)\n'
  )
  # The entry point of an installed siamrl would register it twice.
  without = ['-p', 'no:cacheprovider', '-p', 'no:xdist', '-p', 'no:siamrl']
  here = ['-q', *without, '--rootdir']
  code = pytest.main([*here, str(tmp_path), str(tmp_path)], [pytest_plugin])
  said = capsys.readouterr().out
  assert code == 1 and '1 failed, 1 passed' in said
  assert 'It looks like alias' in said


def _when(due, tau=1.0):
  """An update that moves where `due` says so."""
  return lambda online, target, steps: (
    tau * online + (1 - tau) * target if due(steps) else target
  )


def _soft(steps):
  return True


# Update, what is asked for, law, and defect or guess.
WRONG = {
  'a copy far away': (
    lambda o, t, n: o.copy() if n % 1_007 == 0 else 0.005 * o + 0.995 * t,
    {'rule': 'soft', 'tau': 0.005},
    ('one_rule', 'double_rule', 'copies besides: a move every 1007'),
  ),
  'a step left out': (
    _when(lambda n: n != 300, 0.1),
    {'rule': 'soft', 'tau': 0.1},
    ('clock', None, 'a move every 1, but none at 300'),
  ),
  'a second clock': (
    _when(lambda n: n % 500 == 0 or n % 1_234 == 0),
    {'period': 500},
    ('clock', None, 'a move every 500, and another every 1234'),
  ),
  'two clocks': (
    _when(lambda n: n % 500 == 0 or n % 700 == 0),
    {'period': 500},
    ('clock', None, 'a move every 500, and another every 700'),
  ),
  'a warm-up': (
    _when(lambda n: n % 500 == 0 and n >= 1_000),
    {'period': 500},
    ('clock', None, 'every 500 from 1000 on\nPerhaps a warm-up is counted in'),
  ),
  'one less': (
    _when(lambda n: n % 100 == 0),
    {'period': 101},
    ('clock', None, 'Perhaps the counter is off by one'),
  ),
  'one more': (
    _when(lambda n: n % 101 == 0),
    {'period': 100},
    ('clock', None, 'Perhaps the counter is off by one'),
  ),
  'no multiple': (
    _when(lambda n: n % 70 == 0),
    {'period': 100},
    ('clock', None, 'a move every 70, 0.7 times as long'),
  ),
  'a counter that is not reset': (
    _when(lambda n: n >= 500),
    {'period': 500},
    ('clock', None, 'every step from 500 on\nPerhaps a counter is not reset'),
  ),
  'an end': (
    _when(lambda n: n % 50 == 0 and n <= 400),
    {'period': 50},
    ('clock', None, 'a move every 50 up to 400, and none after'),
  ),
  'each tenth left out': (
    _when(lambda n: n % 50 == 0 and n % 500 != 0),
    {'period': 50},
    ('clock', None, 'a move every 50, but none at 500, 1000'),
  ),
  'swapped': (
    _when(_soft, 0.995),
    {'rule': 'soft', 'tau': 0.005},
    ('rate', None, 'tau and 1 - tau are swapped'),
  ),
  'a wrong sign': (
    _when(_soft, -0.005),
    {'rule': 'soft', 'tau': 0.005},
    ('rate', None, 'the sign of the step is wrong'),
  ),
  'moved twice': (
    _when(_soft, 0.009975),
    {'rule': 'soft', 'tau': 0.005},
    ('rate', None, '2 updates come at once'),
  ),
  'another small tau': (
    _when(_soft, 1.01e-4),
    {'rule': 'soft', 'tau': 1e-4},
    ('rate', 'tau_ignored', 'the weight 0.000101, not 0.0001'),
  ),
  'two laws': (
    _when(lambda n: n % 500 == 0, 0.01),
    {'period': 50},
    ('rate', 'tau_ignored', 'Also broken: clock:.*every 500, 10 times as long'),
  ),
  'another type': (
    _when(_soft, np.float64(0.1)),
    {'rule': 'soft', 'tau': 0.1},
    ('structure', None, 'from float32 to float64'),
  ),
  'a schedule ahead': (
    lambda o, t, n: t + 0.1 * (1 - min(n / 100, 1) / 2) * (o - t),
    {
      'rule': 'soft_linear',
      'tau': 0.1,
      'tau_end': 0.05,
      'target_schedule_steps': 100,
    },
    ('rate', None, 'the schedule is one step ahead'),
  ),
  'a target that is ignored': (
    in_place(lambda o, t, n: o.copy()),
    {'period': 1},
    ('moves', None, 'leave in_place out'),
  ),
}


@pytest.mark.parametrize('name', WRONG)
def test_what_is_wrong_is_said_and_nothing_else(name):
  update, asked, (law, defect, said) = WRONG[name]
  exact = name in ('moved twice', 'another small tau')
  params = np.zeros(2, np.float64 if exact else np.float32)
  with pytest.raises(ConformanceError, match=f'(?s){said}') as caught:
    check(update, params, calls=4_000, **asked)
  assert (caught.value.law, caught.value.defect) == (law, defect)


def test_random_updates_have_no_clock():
  rng = np.random.default_rng(0)
  update = _when(lambda n: rng.random() < 0.01)
  with pytest.raises(ConformanceError, match='random|seed') as caught:
    check(update, np.zeros(2), period=100, calls=2_000)
  assert caught.value.defect is None


def test_births_that_are_no_copies():
  update = _when(lambda n: True, 0.1)
  asked = {'rule': 'soft', 'tau': 0.1, 'calls': 200}
  with pytest.raises(ConformanceError, match='does not depend') as caught:
    check(update, np.zeros(2), init=lambda online: np.ones(2), **asked)
  assert (caught.value.law, caught.value.defect) == ('birth', None)
  with pytest.raises(
    ConformanceError, match='in it is 0.1\nIt looks like soft'
  ) as caught:
    check(update, np.zeros(2), init=lambda o: 0.1 * o + np.ones(2), **asked)


@pytest.mark.parametrize(
  'due, period, first',
  [
    (lambda n: n % 1_000 == 0 and n >= 50_000, 1_000, 50_000),
    (lambda n: n % 250 == 0 and n > 1_000, 250, 1_250),
    (lambda n: n >= 1_234_567, 1, 1_234_567),
  ],
)
def test_clocks_that_start_late(due, period, first):
  found = identify(_when(due), np.zeros(2), calls=2_000)
  assert (found.period, found.first) == (period, first)
  assert f'period = {period}, first at {first}' in str(found)


def test_an_answer_says_where_it_was_looked():
  found = check(_when(lambda n: n % 50 == 0), np.zeros(2), period=50, calls=900)
  assert found.calls <= 900
  assert 'looked at each of gradient steps 1 to 7' in str(found)
  # As soon as its gradient step is looked at, a second clock is seen.
  update = _when(lambda n: n % 50 == 0 or n == 2_345)
  assert check(update, np.zeros(2), period=50, calls=900).period == 50
  with pytest.raises(ConformanceError, match='others at 2345'):
    check(update, np.zeros(2), period=50, calls=3_000)


def test_an_update_that_counts_its_calls_must_be_fresh():
  calls = [0]

  def update(online, target, steps):
    calls[0] += 1
    return online.copy() if calls[0] % 50 == 0 else target

  found = check(update, np.zeros(2), period=50, calls=1_000)
  assert found.counts == 'calls' and 'calls in a row' in str(found)
  calls[0] = 7
  with pytest.raises(ConformanceError, match='give a fresh one'):
    check(update, np.zeros(2), period=50, calls=1_000)


def test_whole_numbers_that_count_updates():
  """Averages of PyTorch count theirs, and copy while the count is 0."""

  def update(online, target, steps):
    tau = 0.1 if target['count'] else 1
    weight = tau * online['weight'] + (1 - tau) * target['weight']
    return {'count': target['count'] + 1, 'weight': weight}

  params = {'count': np.array(0), 'weight': np.zeros(2)}
  found = check(update, params, rule='soft', tau=0.1, calls=600)
  assert found.leaves['count'].rule == 'counted'


def test_memory_of_the_updates_own_is_not_written():
  """Arguments that were changed are restored, but not in another's memory."""
  own = np.full(2, 7.0)

  def update(online, target, steps):
    target['weight'] = own

  identify(in_place(update), {'weight': np.zeros(2)}, calls=200)
  assert (own == 7).all()

  def write(online, target, steps):
    target['weight'] += 0.1 * (online['weight'] - target['weight'])

  found = identify(in_place(write), {'weight': np.zeros(2)}, calls=200)
  assert (found.rule, found.tau) == ('soft', pytest.approx(0.1))


def test_long_periods_of_calls():
  """They take two periods of calls, whatever the default is."""
  calls, period = [0], 10_000

  def update(online, target, steps):
    calls[0] += 1
    return online.copy() if calls[0] % period == 0 else target

  found = check(update, np.zeros(2), period=period)
  assert (found.counts, found.period) == ('calls', period)
  calls[0] = 0
  assert identify(update, np.zeros(2)).period == period
