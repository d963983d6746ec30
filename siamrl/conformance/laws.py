"""Laws of target networks, and their check."""

from collections.abc import Callable, Mapping
import math
import numbers
import re
from typing import Any, NoReturn

from siamrl.conformance import reading
from siamrl.conformance.clocks import Clock
from siamrl.conformance.identifying import Identity, examine
from siamrl.conformance.probing import ConformanceError, Probe, Update
from siamrl.conformance.reading import Movement

# The laws by name, in the order in which they are checked.
LAWS: dict[str, str] = {
  'structure': 'The target is built like the online network.',
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
# Rounding of tau that is passed over, beside that of the leaf.
_TAU_ERROR = 1e-6
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
  calls: int = 20_000,
  **asked: Any,
) -> Identity:
  """Checks that an update is the rule that it should be.

  Whole numbers among the parameters may move or stay. The clock is checked at
  the gradient steps that are looked at, about 300 unless it breaks: the first
  128, those around multiples and divisors of the period, and some far away.

  Args:
    update: (online, target, gradient_steps) -> target, see `identify`.
    params: any parameters, such as those of a small network.
    rule: 'hard', 'soft', 'periodic_soft', 'soft_cosine', 'soft_linear',
      'frozen', 'self' or 'by_path', as in `siamrl.twins.RULES`.
    init: online -> target at birth, which is checked if given.
    stays: regular expression, found in the paths of leaves that may stay.
    phase: remainder of the times of updates by the period; None for any.
    calls: most calls of the update.
    **asked: parameters of the rule: `tau`, `period`, `tau_end`,
      `target_schedule_steps`, and `target_paths` such as 'torso:soft+head:hard'
      with those of its parts. Periods are in gradient steps.

  Returns:
    What the update is.

  Raises:
    ConformanceError: a law is broken; says which, the numbers that were seen,
      and which defect of the museum looks like it.
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
    # Two periods of an update that counts its calls.
    calls=max(min(calls, 2 * period + 2 * _FEW), min(calls, _FEW)),
    hints=_hints(period),
  )
  identity, probe, error, _ = found
  if error is not None and error.law in ('structure', 'finite'):
    raise error
  assert probe is not None
  _check_arguments(probe)
  if error is not None:
    raise error
  expected = {
    path: _expected(rule, asked, path)
    for path in probe.paths
    if path not in probe.integers
    and not (stays is not None and re.search(stays, path))
  }
  _check_moves(identity, probe, expected)
  for path, movement in expected.items():
    _check_rate(path, identity.leaves[path], movement, probe)
  for path, movement in expected.items():
    if movement.period is not None:
      _check_clock(path, identity, movement, probe, phase)
  if init is not None:
    _check_birth(identity, found.birth_weights)
  return identity


def _require(
  rule: str, asked: Mapping[str, Any], stays: str | None, phase: int | None
) -> None:
  """Refuses rules and parameters that make no sense."""
  if rule not in _TAKES:
    raise ValueError(
      f'rule={rule!r} must be one of {", ".join(_TAKES)}; others are not '
      'functions of (online, target, gradient_steps) alone'
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
  return Movement(rule, tau, period, 0, period, more)


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
      'statistics_left_behind' if only_statistics else 'lost_update',
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
  if expected.period is None:
    return
  if found.rule == 'soft with hard':
    raise ConformanceError(
      'one_rule',
      f'{path!r} moves by tau = {found.tau:.7g} every {found.period}, and is '
      f'copied every {found.parameters["target_period"]:.0f}',
      'double_rule',
    )
  assert expected.tau is not None
  rounding = _TAU_ERROR + 4 * probe.precision(path)
  copied = path in probe.statistics and _near(found.tau, 1, rounding)
  scheduled = expected.rule in ('soft_linear', 'soft_cosine')
  if scheduled and not copied:
    if (
      found.rule != expected.rule
      or not _near(found.tau, expected.tau, rounding)
      or any(
        abs(found.parameters[name] - value) > (1e-6 if value <= 1 else 0.5)
        for name, value in expected.parameters.items()
      )
    ):
      raise ConformanceError(
        'rate', f'{path!r}: asked for {expected}; seen: {found}', 'tau_ignored'
      )
    return
  if found.tau is None:
    raise ConformanceError('rate', f'{path!r}: {found.seen}')
  if copied or _near(found.tau, expected.tau, rounding):
    if found.rule in ('soft_linear', 'soft_cosine'):
      raise ConformanceError(
        'rate', f'{path!r}: asked for {expected}; seen: {found}', 'tau_ignored'
      )
    return
  turned = _near(1 - found.tau, expected.tau, rounding)
  raise ConformanceError(
    'rate',
    f'{path!r}: the online parameters have the weight {found.tau:.7g}, not '
    f'{expected.tau:.7g}'
    + (', which is that of the target before' if turned else ''),
    'wrong_direction' if turned else 'tau_ignored',
  )


def _near(one: float | None, other: float, rounding: float) -> bool:
  return one is not None and abs(one - other) <= rounding


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
  _, found = reading.clock(
    probe.records, [bool(record.rates[leaf]) for record in probe.records]
  )
  if identity.leaves[path].rule in ('soft_linear', 'soft_cosine'):
    return  # at the end of a cosine nothing moves
  if path in probe.statistics and found.period == 1:
    return  # they may follow at each gradient step
  judge_clock(path, found, expected.period, phase)


def judge_clock(
  what: str, found: Clock, period: int, phase: int | None
) -> None:
  """Compares a clock with the one that was asked for.

  Args:
    what: what moves, for the error.
    found: the clock.
    period: as asked for.
    phase: as asked for; None for any.

  Raises:
    ConformanceError: they differ.
  """

  def broken(seen: str, defect: str | None) -> NoReturn:
    raise ConformanceError(
      'clock',
      f'{what!r}: asked for an update every {period}; seen: {seen}',
      defect,
    )

  if found.kind == 'periodic' and found.period == period:
    if phase is not None and found.phase != phase % period:
      broken(f'{found}, with the phase {found.phase}, not {phase}', None)
    if found.late:
      broken(str(found), None)
    return
  if found.kind == 'periodic':
    assert found.period is not None
    if found.period == 1 and found.late:
      broken(f'from {found.first} on, a move at every step', 'alias')
    seen = f'{found}, {found.period / period:.4g} times as long'
    if period == 1:
      broken(seen, 'once_per_block')
    if found.period > period:
      broken(seen, 'period_multiplied')
    broken(seen, 'period_multiplied' if found.period == 1 else 'unit_confusion')
  if found.kind == 'once':
    assert found.first is not None
    at_once = found.first % period == 0 and found.first > period
    broken(str(found), 'period_multiplied' if at_once else 'lost_update')
  block = math.gcd(*found.moves)
  if block > 1 and 0 <= found.moves[0] - period < block:
    broken(f'{found}, at multiples of {block} only', 'once_per_block')
  if found.gaps and max(found.gaps) < period:
    mean = sum(found.gaps) / len(found.gaps)
    broken(f'{found}, {mean:.4g} on average', 'unit_confusion')
  broken(str(found), None)


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
  if weights:
    seen += (
      f': the online parameters have the weights {min(weights.values()):.4g} '
      f'to {max(weights.values()):.4g} in it'
    )
  raise ConformanceError(
    'birth', seen, 'soft_birth' if identity.birth == 'soft' else None
  )
