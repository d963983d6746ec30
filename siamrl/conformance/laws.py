"""Laws of target networks, and their check."""

from collections.abc import Callable, Iterator, Mapping
import functools
import math
import numbers
import re
from typing import Any, NoReturn

import numpy as np

from siamrl.conformance import reading
from siamrl.conformance.clocks import Clock
from siamrl.conformance.identifying import Examination, Identity, examine
from siamrl.conformance.probing import (
  IGNORED,
  ConformanceError,
  Probe,
  Update,
)
from siamrl.conformance.reading import Movement

# The laws by name, in the order in which they are checked.
LAWS: dict[str, str] = {
  'structure': 'The target is built like the online network, and keeps the '
  'types of its numbers.',
  'finite': 'Finite parameters give a finite target.',
  'direction': 'An update leaves the online network as it is.',
  'own_memory': 'The target shares no memory with the online network.',
  'in_place': 'An update leaves its arguments as they are, unless the caller '
  'says that it works in place.',
  'deterministic': 'The same arguments give the same target.',
  'mean': 'The target is a weighted mean of the online network and the target '
  'before, element by element.',
  'moves': 'The target moves.',
  'whole': 'Every floating leaf of the target moves, also statistics of batch '
  'normalization.',
  'one_rule': 'One rule moves the target.',
  'rate': 'The online parameters have the weight tau in an update, 1 in a '
  'copy.',
  'clock': 'The target moves after gradient steps number period, 2 period, 3 '
  'period and so on, and at no other.',
  'birth': 'The target is born as a copy of the online network.',
}

# The parameters of each rule that can be checked.
_TAKES: dict[str, tuple[str, ...]] = {
  'hard': ('period',),
  'soft': ('tau',),
  'periodic_soft': ('tau', 'period'),
  'soft_cosine': ('tau', 'target_schedule_steps'),
  'soft_linear': ('tau', 'tau_end', 'target_schedule_steps'),
  'frozen': (),
  'self': (),
  'by_path': ('target_paths',),
}
# Error of tau that is passed over, as a fraction, beside rounding of the leaf.
_TAU_ERROR = 1e-5
# Updates at once that are recognized.
_MOST_AT_ONCE = 10
# Calls that a check needs at least.
_FEW = 500


def check(
  update: Update,
  params: Any,
  *,
  rule: str = 'hard',
  init: Callable[[Any], Any] | None = None,
  stays: str | None = None,
  phase: int | None = 0,
  calls: int | None = None,
  **asked: Any,
) -> Identity:
  """Checks that an update is the rule that it should be.

  Whole numbers among the parameters may move or stay. A pass holds for the
  gradient steps that were looked at, and the answer says which: each from 1 on,
  up to about 20,000 or as far as two seconds go, those around multiples and
  divisors of the period, and some far away. A second clock, or a step that is
  left out, at none of them stays unseen. Tau may be off by 0.001 % and twice
  the rounding of the leaf's type, 2.4e-7 in float32.

  Schedules are counted from 0: after gradient step n the weight is that of
  the fraction (n - 1) / target_schedule_steps. An update that counts its own
  calls must be fresh, not one that was called before.

  Args:
    update: (online, target, gradient_steps) -> target, see `identify`.
    params: any parameters, such as those of a small network.
    rule: 'hard', 'soft', 'periodic_soft', 'soft_cosine', 'soft_linear',
      'frozen', 'self' or 'by_path', as in `siamrl.twins.RULES`.
    init: online -> target at birth, which is checked if given.
    stays: regular expression, found in the paths of leaves that may stay.
    phase: remainder of the times of updates by the period; None for any.
    calls: most calls of the update; by default 20,000, more for two periods of
      an update that counts its calls, and fewer if those that only look for a
      second clock take more than two seconds.
    **asked: parameters of the rule: `tau`, `period`, `tau_end`,
      `target_schedule_steps`, and `target_paths` such as 'torso:soft+head:hard'
      with those of its parts. Periods are in gradient steps.

  Returns:
    What the update is, and where it was looked at.

  Raises:
    ConformanceError: a law is broken; says which, the numbers that were seen,
      which defect of the museum looks like it, or what else may be the cause,
      and which other laws are broken.
    TypeError: the update takes other arguments, or `params` holds no numbers.
    ValueError: the rule or a parameter is unknown, missing or outside its
      range.
  """
  _require(rule, asked, stays, phase)
  period = int(asked.get('period') or 1)
  found = examine(
    update,
    params,
    init=init,
    calls=calls,
    # Two periods of an update that counts its calls.
    search=2 * period + 2 * _FEW,
    hints=_hints(period),
  )
  expected = {}
  if found.probe is not None:
    expected = {
      path: _expected(rule, asked, path)
      for path in found.probe.paths
      if path not in found.probe.integers
      and not (stays is not None and re.search(stays, path))
    }
  broken: dict[str, ConformanceError] = {}
  for error in _broken(found, expected, phase):
    broken.setdefault(error.law, error)
  if broken:
    first, *others = broken.values()
    raise ConformanceError(
      first.law, first.seen, first.defect, first.guess, others
    )
  return found.identity


def _broken(
  found: Examination, expected: Mapping[str, Movement], phase: int | None
) -> Iterator[ConformanceError]:
  """Yields the laws that are broken, as far as each can be told."""
  identity, probe, error, _ = found
  if error is not None and error.law in ('structure', 'finite'):
    yield error
    return
  assert probe is not None
  try:
    _check_arguments(probe)
  except ConformanceError as misused:
    yield misused
    if misused.law in ('direction', 'moves'):
      return
  if error is not None:
    yield error
    return
  checks: list[Callable[[], None]] = [
    lambda: _check_moves(identity, probe, expected)
  ]
  for path, movement in expected.items():
    if movement.period is None or identity.leaves[path].rule == 'frozen':
      continue
    checks.append(
      functools.partial(
        _check_rate, path, identity.leaves[path], movement, probe
      )
    )
    checks.append(
      functools.partial(_check_clock, path, identity, movement, probe, phase)
    )
  if identity.birth is not None:
    checks.append(lambda: _check_birth(identity, found.birth_weights))
  checks.append(lambda: _check_types(probe))
  errors = []
  for each in checks:
    try:
      each()
    except ConformanceError as broken:
      errors.append(broken)
  order = list(LAWS)
  yield from sorted(errors, key=lambda error: order.index(error.law))


def _require(
  rule: str, asked: Mapping[str, Any], stays: str | None, phase: int | None
) -> None:
  """Refuses rules and parameters that make no sense."""
  if rule not in _TAKES:
    raise ValueError(
      f'rule={rule!r} must be one of {", ".join(_TAKES)}; others draw at '
      'random, or are not functions of (online, target, gradient_steps) alone'
    )
  takes = list(_TAKES[rule])
  if rule == 'by_path' and asked.get('target_paths') is not None:
    for part in _parts(asked['target_paths']).values():
      takes += [name for name in _TAKES[part] if name not in takes]
  for name, value in asked.items():
    if name not in takes:
      raise ValueError(
        f'{name}={value!r} is no parameter of rule={rule!r}, which takes '
        f'{", ".join(takes) or "none"}'
      )
  for name in takes:
    if asked.get(name) is None:
      raise ValueError(f'rule={rule!r} needs {name}')
    value = asked[name]
    if name in ('period', 'target_schedule_steps'):
      whole = isinstance(value, numbers.Integral) and int(value) >= 1
      if not whole or isinstance(value, bool):
        raise ValueError(f'{name}={value!r} must be a whole number from 1 on')
    elif name in ('tau', 'tau_end'):
      real = isinstance(value, numbers.Real) and 0 <= float(value) <= 1
      if not real or (name == 'tau' and not value):
        above = 'above 0 and at most 1' if name == 'tau' else 'from 0 to 1'
        raise ValueError(f'{name}={value!r} must be a number {above}')
  if phase is not None and (
    not isinstance(phase, int) or not 0 <= phase < asked.get('period', 1)
  ):
    raise ValueError(
      f'phase={phase!r} must be None or a whole number from 0 to period - 1'
    )
  if stays is not None:
    re.compile(stays)


def _parts(target_paths: str) -> dict[str, str]:
  """Patterns with the names of their rules."""
  parts = {}
  for part in target_paths.split('+'):
    pattern, _, name = part.rpartition(':')
    if not pattern or name not in _TAKES or name == 'by_path':
      raise ValueError(
        f'target_paths={target_paths!r} must be such as torso:soft+head:hard'
      )
    parts[pattern] = name
  return parts


def _expected(rule: str, asked: Mapping[str, Any], path: str) -> Movement:
  """How a leaf should move."""
  if rule == 'by_path':
    for pattern, part in _parts(asked['target_paths']).items():
      if re.search(pattern, path):
        return _expected(part, asked, path)
    raise ValueError(
      f'target_paths={asked["target_paths"]!r} has no rule for {path!r}'
    )
  if rule == 'frozen':
    return Movement('frozen')
  tau = 1.0 if rule in ('hard', 'self') else float(asked['tau'])
  takes = _TAKES[rule]
  period = int(asked['period']) if 'period' in takes else 1
  more = {
    name: float(asked[name]) for name in takes if name not in ('tau', 'period')
  }
  return Movement(rule, tau, period, 0, None, more)


def _hints(period: int) -> list[int]:
  """Gradient steps that tell a period from others."""
  if period == 1:
    return []
  near = [time + by for time in (period, 2 * period) for by in (-1, 0, 1)]
  parts = [
    -(-period * count // parts)
    for parts in (2, 3, 4, 5, 6, 7, 8, 10)
    for count in (1, 2)
  ]
  # A block of gradient steps that ends after the period.
  after = range(period, period + 64)
  hints = [*near, *parts, *after, 3 * period, 4 * period, 10 * period]
  return sorted({hint for hint in hints if 1 <= hint < 2**31})


def _check_arguments(probe: Probe) -> None:
  """Checks what an update does to its arguments."""
  if probe.writes_online is not None:
    raise ConformanceError(
      'direction',
      'the update changes the online network, at gradient step '
      f'{probe.writes_online}',
      'wrong_direction',
    )
  if probe.aliased:
    raise ConformanceError(
      'own_memory',
      'the target shares memory with the online network at '
      f'{", ".join(map(repr, probe.aliased[:3]))}, so that it moves with each '
      'gradient step that changes parameters in place',
      'alias',
    )
  if probe.in_place:
    if probe.ignored is not None and probe.writes_target is None:
      raise ConformanceError('moves', IGNORED)
    return
  if probe.writes_target is not None:
    raise ConformanceError(
      'in_place',
      f'the update changes its target in place, at gradient step '
      f'{probe.writes_target}; if it is meant to, wrap it in in_place',
    )
  if probe.returns_none:
    raise ConformanceError(
      'moves', 'the update returns None and changes nothing', 'lost_update'
    )


def _check_types(probe: Probe) -> None:
  """Checks that numbers keep their types."""
  if not probe.retyped:
    return
  path, (before, after) = next(iter(probe.retyped.items()))
  raise ConformanceError(
    'structure',
    f'{len(probe.retyped)} of {len(probe.paths)} leaves change their type, '
    f'such as {path!r} from {before} to {after}',
  )


def _check_moves(
  identity: Identity, probe: Probe, expected: Mapping[str, Movement]
) -> None:
  """Checks that everything moves that should, and nothing else."""
  due = [path for path, movement in expected.items() if movement.period]
  still = [path for path in due if identity.leaves[path].rule == 'frozen']
  if still and len(still) == len(due):
    furthest = max(record.step for record in probe.records)
    raise ConformanceError(
      'moves',
      f'the target has not moved in {probe.calls} calls, up to gradient step '
      f'{furthest}',
      'lost_update',
    )
  if still:
    only_statistics = set(still) <= set(probe.statistics)
    raise ConformanceError(
      'whole',
      f'{len(still)} of {len(due)} leaves stay as they are, such as '
      f'{still[0]!r}',
      'statistics_left_behind' if only_statistics else None,
    )
  for path, movement in expected.items():
    found = identity.leaves[path]
    if movement.period is None and found.rule != 'frozen':
      raise ConformanceError(
        'clock', f'{path!r} should be frozen, and moves: {found}'
      )


def _check_rate(
  path: str, found: Movement, expected: Movement, probe: Probe
) -> None:
  """Checks the weight of the online parameters."""
  if found.rule == 'soft with hard':
    raise ConformanceError(
      'one_rule',
      f'{path!r}: {found.seen}',
      'double_rule' if 'target_period' in found.parameters else None,
    )
  assert expected.tau is not None
  rounding = _TAU_ERROR * expected.tau + 2 * probe.precision(path)
  copied = path in probe.statistics and _near(found.tau, 1, rounding)
  if copied:
    return
  seen = f'{path!r}: asked for {expected}; seen: {found}'
  if expected.rule in ('soft_linear', 'soft_cosine'):
    if not _foretold(path, expected, probe, rounding):
      raise ConformanceError(
        'rate', seen, None, _shifted(path, expected, probe, rounding)
      )
    return
  if found.rule in ('soft_linear', 'soft_cosine'):
    raise ConformanceError('rate', seen)
  if found.tau is None:
    raise ConformanceError('rate', f'{path!r}: {found.seen}')
  if _near(found.tau, expected.tau, rounding):
    return
  guess = guess_rate(found.tau, expected.tau, rounding)
  raise ConformanceError(
    'rate',
    f'{path!r}: the online parameters have the weight {found.tau:.7g}, not '
    f'{expected.tau:.7g}',
    None if guess else 'tau_ignored',
    guess,
  )


def guess_rate(seen: float, tau: float, rounding: float) -> str:
  """A guess about what has become of tau, in words.

  Args:
    seen: the weight of the online parameters.
    tau: as asked for.
    rounding: the most by which numbers differ that count as the same.
  """
  if _near(1 - seen, tau, rounding):
    return (
      'tau and 1 - tau are swapped: tau is the weight of the target before, or '
      'another convention is meant'
    )
  if _near(-seen, tau, rounding):
    return 'the sign of the step is wrong: the target moves away'
  for times in range(2, _MOST_AT_ONCE + 1):
    # A swapped sign would move as often.
    if 0 < tau < 1 and _near(seen, 1 - (1 - tau) ** times, times * rounding):
      return f'{times} updates come at once'
  return ''


def _near(one: float | None, other: float, rounding: float) -> bool:
  return one is not None and abs(one - other) <= rounding


def _foretold(
  path: str, expected: Movement, probe: Probe, rounding: float, shift: int = 0
) -> bool:
  """Whether a leaf has moved as a schedule foretells."""
  assert expected.tau is not None
  steps = np.array([record.step for record in probe.records])
  leaf = probe.paths.index(path)
  seen = np.array([record.rates[leaf] for record in probe.records])
  whole = expected.parameters['target_schedule_steps']
  fraction = np.clip((steps - 1 + shift) / whole, 0, 1)
  if expected.rule == 'soft_cosine':
    weights = expected.tau * (np.cos(np.pi * fraction) + 1) / 2
  else:
    way = expected.parameters['tau_end'] - expected.tau
    weights = expected.tau + way * fraction
  return bool(np.abs(seen - weights).max() <= rounding + 2e-7)


def _shifted(
  path: str, expected: Movement, probe: Probe, rounding: float
) -> str:
  """Says whether a schedule is off by a step, in words."""
  for shift, word in ((1, 'ahead'), (-1, 'behind')):
    if _foretold(path, expected, probe, rounding, shift):
      return (
        f'the schedule is one step {word}: after gradient step n the fraction '
        '(n - 1) / target_schedule_steps is due'
      )
  return ''


def _check_clock(
  path: str,
  identity: Identity,
  expected: Movement,
  probe: Probe,
  phase: int | None,
) -> None:
  """Checks when the target moves."""
  assert expected.period is not None
  leaf = probe.paths.index(path)
  counts, found = reading.clock(
    probe.records, [bool(record.rates[leaf]) for record in probe.records]
  )
  if identity.leaves[path].rule in ('soft_linear', 'soft_cosine'):
    return  # at the end of a cosine nothing moves
  if path in probe.statistics and found.period == 1:
    return  # they may follow at each gradient step
  copied = _near(identity.leaves[path].tau, 1, _TAU_ERROR)
  if found.period == 1 and found.late and copied and probe.hides_memory:
    raise ConformanceError(
      'clock',
      f'{path!r}: asked for an update every {expected.period}; seen: a copy at '
      f'every step from {found.first} on',
      'alias',
      'it is copied indeed, and a counter is not reset',
    )
  judge_clock(path, found, expected.period, phase, counts)


def judge_clock(
  what: str,
  found: Clock,
  period: int,
  phase: int | None,
  counts: str = '',
  grain: int = 1,
) -> None:
  """Compares a clock with the one that was asked for.

  Args:
    what: what moves, for the error.
    found: the clock.
    period: as asked for.
    phase: as asked for; None for any.
    counts: what the clock counts, 'calls' for those of the update.
    grain: the least distance of times that were looked at.

  Raises:
    ConformanceError: they differ.
  """

  def broken(seen: str, defect: str | None = None, guess: str = '') -> NoReturn:
    raise ConformanceError(
      'clock',
      f'{what!r}: asked for an update every {period}; seen: {seen}',
      defect,
      guess,
    )

  if found.kind == 'periodic' and found.period == period:
    assert found.phase is not None
    if phase is not None and found.phase != phase % period:
      guess = ''
      if counts == 'calls':
        guess = (
          'the update has been called before, and counts its own calls: give a '
          'fresh one, or phase=None'
        )
      elif abs(found.phase - phase % period) in (1, period - 1):
        guess = 'the counter is off by one, or looked at before its increment'
      broken(f'{found}, with the phase {found.phase}, not {phase}', None, guess)
    if found.late:
      broken(str(found), None, 'a warm-up is counted in')
    return
  if found.kind == 'periodic':
    assert found.period is not None
    _judge_period(found, period, broken)
  if found.kind == 'once':
    assert found.first is not None
    multiple = found.first % period == 0 and found.first > period
    again = found.stops is not None
    broken(str(found), 'period_multiplied' if multiple and not again else None)
  if found.stops is not None or found.pattern:
    broken(str(found))
  block = math.gcd(*found.moves)
  due = (time // period > (time - block) // period for time in found.moves)
  starts = 0 <= found.moves[0] - period < block
  if block > 1 and period % block and starts and all(due):
    broken(f'{found}, at multiples of {block} only', 'once_per_block')
  if found.gaps:
    mean = sum(found.gaps) / len(found.gaps)
    times = round(period / mean)
    even = max(found.gaps) - min(found.gaps) <= max(grain, 1)
    exact = abs(period / mean - times) <= 0.05 * times
    unit = times >= 2 and even and exact
    broken(
      f'{found}, {mean:.4g} on average', 'unit_confusion' if unit else None
    )
  broken(str(found))


def _judge_period(
  found: Clock, period: int, broken: Callable[..., NoReturn]
) -> None:
  """Judges a clock that has another period than was asked for."""
  assert found.period is not None
  if found.period == 1 and found.late:
    guess = 'a counter is not reset' if found.first == period else ''
    broken(f'a move at every step from {found.first} on', None, guess)
  seen = f'{found}, {found.period / period:.4g} times as long'
  if abs(found.period - period) == 1 and min(found.period, period) > 1:
    broken(seen, None, 'the counter is off by one')
  if period == 1:
    broken(seen, 'once_per_block')
  if found.period % period == 0 or found.period == 1:
    broken(seen, 'period_multiplied')
  broken(seen, None if period % found.period else 'unit_confusion')


def _check_birth(identity: Identity, weights: Mapping[str, float]) -> None:
  """Checks how a target is born."""
  if identity.birth == 'copy':
    return
  if identity.birth == 'alias':
    raise ConformanceError(
      'own_memory',
      'at birth the target shares memory with the online network',
      'alias',
    )
  seen = 'the target is not born as a copy'
  if identity.birth == 'independent':
    seen += ': it does not depend on the online parameters'
  elif weights:
    least, most = (f'{each(weights.values()):.4g}' for each in (min, max))
    seen += f': the weight of the online parameters in it is {least}'
    seen += f' to {most}' if most != least else ''
  raise ConformanceError(
    'birth', seen, 'soft_birth' if identity.birth == 'soft' else None
  )
