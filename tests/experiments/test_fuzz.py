"""Odd flags are refused in a line or do what they say, in every launcher."""

import pytest

from tests.experiments import fuzzing


def _assert_no_fault(outcomes):
  faults = [o for o in outcomes if o.kind in fuzzing.FAULTS]
  shown = '\n'.join(
    f'{o.kind}: {o.launcher} {o.arguments!r:.500}\n{o.text[-1_000:]}'
    for o in faults[:5]
  )
  assert not faults, f'{len(faults)} faults, such as\n{shown}'


def test_some_sets():
  outcomes = fuzzing.fuzz(660, seed=1, built_of=0, run_of=0)
  _assert_no_fault(outcomes)
  kinds = [outcome.kind for outcome in outcomes]
  # Neither all that is drawn is nonsense, nor all harmless.
  assert kinds.count('accepted') > 60
  assert kinds.count('refused') > 300


@pytest.mark.slow
@pytest.mark.timeout(7_200)
def test_many_sets():
  outcomes = fuzzing.fuzz(12_000, seed=0, built_of=15, run_of=150)
  _assert_no_fault(outcomes)
  depths = [outcome.depth for outcome in outcomes]
  assert depths.count(fuzzing.BUILT) > 60
  assert depths.count(fuzzing.RUN) > 10


def test_the_drawing_is_that_of_its_seed(tmp_path):
  launcher = fuzzing.launchers(tmp_path)['classic']

  def drawn(seed):
    rng = fuzzing.random.Random(seed)
    return [fuzzing.draw(rng, launcher) for _ in range(20)]

  assert drawn(3) == drawn(3)
  assert drawn(3) != drawn(4)


class _Odd:
  """What a launcher got that was not asked for."""

  learning_rate = 0.0


@pytest.mark.parametrize(
  'arguments, faults',
  [
    (['--learning_rate=0.5'], 1),  # it became 0
    (['--learning_rate=0.0'], 0),
    (['--learning_rate', '--tau=0.5'], 0),  # the value of the former
    (['--platform=cpu'], 0),
  ],
)
def test_a_changed_value_is_seen(arguments, faults, tmp_path):
  cls = fuzzing.launchers(tmp_path)['classic'].cls
  assert len(list(fuzzing.changes(cls, arguments, [_Odd]))) == faults


def test_a_traceback_and_a_nameless_refusal_are_seen(tmp_path):
  def fail(arguments):
    raise OverflowError('too large for C')

  def refuse(arguments):
    print('error: no', file=fuzzing.sys.stderr)
    return 2

  known = fuzzing.launchers(tmp_path)['classic']
  for execute, kind in ((fail, 'traceback'), (refuse, 'unexplained')):
    launcher = known._replace(execute=execute)
    found = fuzzing.try_set('classic', launcher, ['--seed=1'], fuzzing.CHECKED)
    assert found.kind == kind


def test_a_hang_is_seen(tmp_path, monkeypatch):
  def sleep(arguments):
    fuzzing.time.sleep(60)
    return 0

  monkeypatch.setattr(fuzzing, 'CLOCK_LIMIT_S', 0.2)
  launcher = fuzzing.launchers(tmp_path)['lab']._replace(execute=sleep)
  found = fuzzing.try_set('lab', launcher, ['--seed=1'], fuzzing.CHECKED)
  assert found.kind == 'hang'
