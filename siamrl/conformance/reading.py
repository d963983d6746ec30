"""Rules, read from the weights of the online parameters in answers."""

from collections.abc import Mapping, Sequence
import math
from typing import NamedTuple

import numpy as np

from siamrl.conformance import clocks
from siamrl.conformance.probing import Probe, Record

# Weights that differ less are the same.
EQUAL = 1e-7
# Beyond the end of all schedules that can be told.
_LATE = 2**30


class Movement(NamedTuple):
  """The way in which some leaves of a target move.

  Attributes:
    rule: the rule's name in `siamrl.twins.RULES`; 'soft with hard' for both at
      once; 'counted' for whole numbers that grow by 1 in an update; None if no
      rule fits.
    tau: weight of the online parameters; that of the soft rule, or the first
      one of a schedule.
    period: time from one update to the next.
    phase: remainder of the times of updates by the period, 0 in siamrl.
    first: time of the first update, if there was none at earlier times that
      fit period and phase, as after a warm-up.
    parameters: other parameters by their names in `siamrl.twins.PARAMETERS`;
      `target_period` is that of the copies of 'soft with hard'.
    seen: what was seen, if no rule fits, or two do.
  """

  rule: str | None
  tau: float | None = None
  period: int | None = None
  phase: int | None = None
  first: int | None = None
  parameters: Mapping[str, float] = {}
  seen: str = ''

  def __str__(self) -> str:
    if self.rule is None:
      return f'not identified: {self.seen}'
    parts = [self.rule]
    if self.tau is not None and self.rule not in ('hard', 'counted'):
      parts.append(f'tau = {self.tau:.7g}')
    if self.period is not None:
      parts.append(f'period = {self.period}')
    if self.phase:
      parts.append(f'phase = {self.phase}')
    if self.first is not None:
      parts.append(f'first at {self.first}')
    parts += [
      f'{name} = {value:.7g}' for name, value in self.parameters.items()
    ]
    return ', '.join(parts)


def same(a: np.ndarray, b: np.ndarray) -> bool:
  """Whether two calls have shown the same weights."""
  return bool(np.abs(a - b).max() < EQUAL)


def clock(
  records: Sequence[Record], moved: Sequence[bool]
) -> tuple[str, clocks.Clock]:
  """The clock that fits some moves, and what it counts.

  Returns:
    'gradient_steps' or 'calls', and the clock.
  """
  at: dict[int, bool] = {}
  function = True  # of the gradient step
  for record, moves in zip(records, moved, strict=True):
    function &= at.setdefault(record.step, moves) == moves
  by_step = clocks.fit(at)
  if function and by_step.kind != 'irregular':
    return 'gradient_steps', by_step
  by_call = clocks.fit(
    {record.call: moves for record, moves in zip(records, moved, strict=True)}
  )
  if by_call.kind == 'periodic' or (not function and by_call.pattern):
    return 'calls', by_call
  if not function:
    pattern = (
      f'{by_step}; at the same gradient step it moves in one call and not in '
      'another, so it is random, or has a state of its own'
    )
    by_step = by_step._replace(kind='irregular', pattern=pattern)
  return 'gradient_steps', by_step


def movement(probe: Probe, leaf: int) -> tuple[str, Movement]:
  """The movement of a leaf, from all calls; a schedule may need more.

  Args:
    probe: has been called often enough.
    leaf: its index in `probe.paths`.

  Returns:
    What its clock counts, and the movement.
  """
  records = list(probe.records)
  weights = np.array([record.rates[leaf] for record in records])
  levels = _levels(weights[weights != 0])
  if not levels:
    return 'gradient_steps', Movement('frozen')
  if len(levels) == 1:
    counts, found = clock(records, [bool(weight) for weight in weights])
    moves = _moves(levels[0], found)
    path = probe.paths[leaf]
    if path in probe.integers and abs(probe.steps(path, levels[0]) - 1) < 1e-3:
      moves = moves._replace(rule='counted')
    return counts, moves
  scheduled = _schedule(probe, leaf)
  if scheduled is not None:
    return 'gradient_steps', scheduled
  if len(levels) == 2:
    both = _both(records, weights, *levels)
    if both is not None:
      return both
  return 'gradient_steps', Movement(
    None,
    seen=f'{len(levels)} different weights of the online parameters, from '
    f'{levels[0]:.7g} to {levels[-1]:.7g}',
  )


def _levels(weights: np.ndarray) -> list[float]:
  """Different weights in order."""
  levels: list[float] = []
  for weight in np.sort(weights):
    if not levels or weight - levels[-1] >= EQUAL:
      levels.append(float(weight))
  return levels


def _moves(tau: float, found: clocks.Clock) -> Movement:
  """The rule with one weight and one clock."""
  if found.kind != 'periodic':
    return Movement(None, tau, seen=str(found))
  rule = 'hard'
  if abs(tau - 1) >= EQUAL:
    rule = 'soft' if found.period == 1 else 'periodic_soft'
  first = found.first if found.late else None
  return Movement(rule, tau, found.period, found.phase, first)


def _both(
  records: Sequence[Record], weights: np.ndarray, low: float, high: float
) -> tuple[str, Movement] | None:
  """The rule with two weights, each with a clock of its own."""
  copies = weights >= high - EQUAL
  counts, hard = clock(records, list(map(bool, copies)))
  _, soft = clock(
    [record for record, copy in zip(records, copies, strict=True) if not copy],
    [bool(weight) for weight in weights[~copies]],
  )
  if abs(high - 1) >= EQUAL or soft.kind != 'periodic':
    return None
  extra = {} if hard.period is None else {'target_period': hard.period}
  seen = f'{soft} by tau = {low:.7g}, and copies besides: {hard}'
  first = soft.first if soft.late else None
  return counts, Movement(
    'soft with hard', low, soft.period, soft.phase, first, extra, seen
  )


def _schedule(probe: Probe, leaf: int) -> Movement | None:
  """The rule whose weight changes linearly, or falls along a cosine."""

  def at(number: int) -> float:
    """The weight of an update, counted from 0."""
    return float(probe.rate(number + 1)[leaf])

  if probe.left < 100:
    return None
  start, end = at(0), at(_LATE)
  way = end - start
  if abs(way) < 10 * EQUAL or start == 0:
    return None
  half = 1
  while half < _LATE and abs(at(half) - start) < abs(way) / 2:
    half *= 2
  if abs(at(half) - end) < EQUAL:
    half //= 2
  middle = at(half) if half else end
  fits = []
  for name in ('soft_linear', 'soft_cosine'):
    steps = 1.0
    if half and name == 'soft_linear':
      steps = half * way / (middle - start) if middle != start else 0
    elif half and 0 <= middle < start:
      steps = half * math.pi / math.acos(2 * middle / start - 1)
    if steps < 1 or (name == 'soft_cosine' and abs(end) >= EQUAL):
      continue
    guess = round(steps)
    tries = sorted(
      {0, 1, half, guess // 4, guess // 2, guess * 2 // 3, guess - 1, guess}
    )
    seen = np.array([at(number) for number in tries if number >= 0])
    for whole in {max(guess + by, 1) for by in (-1, 0, 1)}:
      fraction = np.minimum([n / whole for n in tries if n >= 0], 1)
      if name == 'soft_cosine':
        foretold = start * (np.cos(np.pi * fraction) + 1) / 2
      else:
        foretold = start + way * fraction
      error = float(np.abs(seen - foretold).max())
      fits.append((error, name, whole))
  if not fits or min(fits)[0] > 1e-6:
    return None
  _, name, whole = min(fits)
  more: dict[str, float] = {'target_schedule_steps': whole}
  if name == 'soft_linear':
    more['tau_end'] = end
  return Movement(name, start, 1, 0, None, more)
