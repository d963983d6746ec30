"""Judgments of traces: realized against asked."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
from typing import NamedTuple

import numpy as np

from siamrl.conformance import clocks, laws, traces
from siamrl.conformance.clocks import Clock
from siamrl.conformance.probing import ConformanceError
from siamrl.conformance.traces import COUNTERS, UNITS, Trace

# Numbers that differ by less, as a fraction of a move, are the same.
_EXACT = 1e-6
# Spread of the weights of a rule, as a fraction, below which tau can be told.
_STEADY = 0.02
# Distance of the networks, as a fraction of the median, above which weights are
# read.
_FAR = 0.05
# The spread for several updates at once.
_LOOSE = 0.25
# Updates that must be seen before a run is said to conform.
_FEW = 3
# Digits with which small moves are lost.
_COARSE = 6


class Asked(NamedTuple):
  """The twin that a run was asked for; None for what is not judged.

  Attributes:
    rule: 'hard', 'soft', 'periodic_soft' or 'frozen'.
    period: time from one update to the next.
    unit: a key of `UNITS`, that of `period`; None for the first counter.
    phase: remainder of the times of updates by the period.
    tau: weight of the online parameters.
  """

  rule: str | None = None
  period: int | None = None
  unit: str | None = None
  phase: int | None = None
  tau: float | None = None


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A judgment of a run.

  Attributes:
    lines: what was seen, and what could not be told.
    error: the law that is broken; None for none.
    unclear: why it cannot be told whether the run conforms; '' if it can.
    asked: whether anything was asked for.
  """

  lines: tuple[str, ...]
  error: ConformanceError | None
  unclear: str = ''
  asked: bool = True

  def __str__(self) -> str:
    end = 'conforms'
    if self.error is not None:
      end = f'does not conform: {self.error}'
    elif self.unclear:
      end = f'cannot be told: {self.unclear}'
    elif not self.asked:
      end = 'no verdict, as nothing was asked for'
    return '\n'.join([*self.lines, end])


def check_trace(
  trace: str | pathlib.Path | Mapping[str, Sequence[float]],
  *,
  rule: str | None = None,
  period: int | None = None,
  unit: str | None = None,
  phase: int | None = None,
  tau: float | None = None,
) -> str:
  """Checks that the target network of a run moved as it was asked to.

  Args:
    trace: CSV or NPZ file, or columns by name, see `siamrl.conformance.traces`.
    rule: 'hard', 'soft', 'periodic_soft' or 'frozen'; None for any.
    period: time from one update to the next; None for any.
    unit: 'gradient_steps' or 'env_steps', that of the period; by default
      gradient steps if the trace counts them.
    phase: remainder of the times of updates by the period; None for any.
    tau: weight of the online parameters in an update; None for any.

  Returns:
    What was seen, and what could not be told.

  Tau is judged to 2 %, and to 25 % where a row has several updates.

  Raises:
    ConformanceError: a law is broken.
    ValueError: the trace cannot be read, or it cannot be told whether the run
      conforms, as with fewer than 3 updates.
  """
  if isinstance(trace, (str, pathlib.Path)):
    read = traces.read(trace)
  else:
    columns = {name: np.asarray(c, np.float64) for name, c in trace.items()}
    read = traces.from_columns(columns, 'trace')
  said = []
  for run, begins in traces.runs(read):
    if len(run.online) > 1:
      verdict = judge(run, Asked(rule, period, unit, phase, tau))
      said += [begins] if begins else []
      said.append(str(verdict))
      if verdict.error is not None:
        raise verdict.error
      if verdict.unclear:
        raise ValueError(f'trace: cannot be told: {verdict.unclear}')
  return '\n'.join(said)


class _Run:
  """A run with the rows in which its target moved.

  All arrays but those of the trace have [N - 1], for the way from one row to
  the next.

  Attributes:
    moved: the target moved.
    after: it became the online network as it was after the row.
    before: it became the online network as it was before the row.
    same: it became one of these, perhaps by chance as it was close.
    told: nothing is missing there.
    visible: the networks are so far apart that an update can be seen.
    clear: the weight of the online network can be read, as an update can be
      seen and at most one gradient step lies there.
    notes: what could not be told.
  """

  def __init__(self, trace: Trace):
    self.trace = trace
    online, target = trace.online, trace.target
    self.moved = np.diff(target) != 0
    self.learned = np.diff(online) != 0
    self.notes: list[str] = list(trace.notes)
    self.told = np.ones(len(self.moved), bool)
    self._find_jumps()
    ways = np.abs(np.stack([online[1:], online[:-1]]) - target[:-1])
    far = ways > _FAR * np.median(ways[ways > 0]) if ways.any() else ways > 0
    self.visible = far.all(0)
    self.clear = self.told & self.visible
    steps = trace.counters.get('gradient_step')
    if steps is not None:
      self.clear &= np.diff(steps) <= 1
    after = _equal(target[1:], online[1:], target[:-1])
    before = _equal(target[1:], online[:-1], target[:-1])
    self.same = self.moved & (after | before)
    self.after = self.clear & self.moved & after
    self.before = self.clear & self.moved & before

  @property
  def copied(self) -> np.ndarray:
    """Whether the target became the online network."""
    return self.after | self.before

  def _find_jumps(self) -> None:
    """Finds missing rows and counters that jump."""
    jumps = {}
    for name, values in self.trace.counters.items():
      steps = np.diff(values)
      ahead = steps[steps > 0]
      if len(ahead):
        sizes, counts = np.unique(ahead, return_counts=True)
        jumps[name] = steps > sizes[np.argmax(counts)]
    some = np.array(list(jumps.values())).reshape(-1, len(self.moved))
    said = np.asarray(some.any(0))
    self.told &= ~said
    # Env steps before the first gradient step are a warm-up.
    first = self.trace.counters.get('gradient_step', np.zeros(2))[:2]
    if first[1] <= first[0] + 1:
      said[0] = False
    for row in np.flatnonzero(said)[:3]:
      names = [name for name, where in jumps.items() if where[row]]
      ways = ' and '.join(
        f'{name} from {self.trace.counters[name][row]} to '
        f'{self.trace.counters[name][row + 1]}'
        for name in names
      )
      kind = (
        'rows are missing'
        if len(names) == len(self.trace.counters)
        else 'a counter jumps'
      )
      self.notes.append(
        f'at row {row + 2} {kind}: {ways}; updates there cannot be told'
      )
    more = int(said.sum()) - 3
    if more > 0:
      self.notes.append(f'and at {more} other {_rows(more)}')

  def clock(self, counter: str, moved: np.ndarray) -> Clock:
    """The clock of some moves by a counter."""
    values = self.trace.counters[counter][1:]
    found: dict[int, bool] = {}
    for value, moves, counts in zip(
      values.tolist(),
      moved.tolist(),
      (self.told & (self.visible | self.moved)).tolist(),
      strict=True,
    ):
      if counts:
        found[value] = found.get(value, False) or moves
    return clocks.fit(found)

  def gaps(self, counter: str, moved: np.ndarray) -> np.ndarray:
    """Distances of neighboring moves between which nothing is missing."""
    values = self.trace.counters[counter][1:]
    at = np.flatnonzero(moved & self.told)
    broken = np.cumsum(~self.told)
    whole = broken[at[1:]] == broken[at[:-1]]
    return np.diff(values[at])[whole]


def _equal(a: np.ndarray, b: np.ndarray, before: np.ndarray) -> np.ndarray:
  """Whether numbers are equal, beside what they differ from `before` by."""
  rounding = 1e-12 * np.maximum(np.abs(a), np.abs(b))
  return np.abs(a - b) <= _EXACT * np.abs(b - before) + rounding


def judge(trace: Trace, asked: Asked = Asked()) -> Verdict:  # noqa: B008
  """Judges a run.

  Args:
    trace: of one run, see `siamrl.conformance.traces.runs`.
    asked: what it was asked for.

  Raises:
    ValueError: the trace has no counter of the unit that was asked for.
  """
  counter = _counter(trace, asked)
  if counter not in trace.counters:
    raise ValueError(f'has no column {counter}')
  run = _Run(trace)
  lines = [_summary(trace)]
  error, unclear = None, ''
  anything = any(value is not None for value in asked)
  try:
    unclear = _judge(run, asked, counter, lines)
  except ConformanceError as broken:
    error = broken
  digits = _digits(trace)
  if error is not None and digits and error.law in ('clock', 'rate'):
    error = None
    unclear = (
      f'small moves are lost, as the numbers have {digits} digits; write all'
    )
  return Verdict((*lines, *run.notes), error, unclear, anything)


def _rows(number: int) -> str:
  return 'row' if number == 1 else 'rows'


def _digits(trace: Trace) -> int:
  """Digits of the numbers, if they are few; else 0."""
  values = np.unique(np.append(trace.online, trace.target))[:200]
  if len(values) < 10 or (values == np.round(values)).all():
    return 0  # constants, or hashes
  for digits in range(1, _COARSE + 1):
    if all(value == float(f'{value:.{digits}g}') for value in values):
      return digits
  return 0


def _counter(trace: Trace, asked: Asked) -> str:
  """The counter of the period that was asked for."""
  if asked.unit is not None:
    return UNITS[asked.unit]
  return next(name for name in COUNTERS if name in trace.counters)


def _summary(trace: Trace) -> str:
  ranges = [
    f'{name} {values[0]} to {values[-1]}'
    for name, values in trace.counters.items()
  ]
  return f'{len(trace.online)} rows, {", ".join(ranges)}'


def _judge(run: _Run, asked: Asked, counter: str, lines: list[str]) -> str:
  """Adds lines, and raises for the first law that is broken.

  Returns:
    Why it cannot be told whether the run conforms; '' if it can.
  """
  if not run.learned.any():
    return 'the online network never changes'
  birth = _birth(run, lines)
  unclear = _check_moving(run, asked, lines)
  if not run.moved.any():
    return unclear
  clear = run.moved & run.clear
  soft = clear & ~run.copied
  both = bool(run.copied.any() and soft.sum() > 1)
  chosen = soft if both else clear if clear.any() else run.moved & run.told
  weights, order = _weights(run, chosen)
  rule = _name(run, soft, both, weights)
  lines.append(f'rule: {rule}')
  lines.append(f'order: {order}')
  _describe(run, run.moved, asked, lines)
  if both and asked.rule != 'frozen':
    copies = run.gaps(counter, run.copied)
    raise ConformanceError(
      'one_rule',
      f'{int(soft.sum())} of {int(run.moved.sum())} moves are soft and the '
      f'others copies, {np.mean(copies) if len(copies) else math.nan:.6g} '
      f'{counter}s apart',
      'double_rule',
    )
  unclear = _check_weights(run, asked, weights, lines)
  _check_clock(run, asked, counter, lines)
  _check_doubled(run, asked, weights, counter, lines)
  if birth is not None and asked.rule is not None:
    raise birth
  seen = int((run.moved & run.told).sum())
  if seen < _FEW:
    updates = 'update is' if seen == 1 else 'updates are'
    return f'{seen} {updates} seen, and {_FEW} are needed'
  return unclear


def _birth(run: _Run, lines: list[str]) -> ConformanceError | None:
  """How the target is born, where the trace begins before training."""
  trace = run.trace
  first = trace.counters.get('gradient_step')
  if first is None or first[0] != 0:
    lines.append(
      'birth: cannot be told, as there is no row with gradient_step 0'
    )
    return None
  if trace.online[0] == trace.target[0]:
    lines.append('birth: a copy')
    return None
  lines.append('birth: not a copy')
  return ConformanceError(
    'birth',
    f'before training online is {trace.online[0]:.9g} and target is '
    f'{trace.target[0]:.9g}',
    None,
    'the target is born by itself, or by a soft update (soft_birth): two '
    'numbers do not tell',
  )


def _check_moving(run: _Run, asked: Asked, lines: list[str]) -> str:
  """Checks that the target moves, and is not the online network.

  Returns:
    Why that cannot be told; '' if it can.
  """
  trace = run.trace
  if not run.moved.any():
    lines.append('updates: none')
    learned = int(run.learned.sum())
    if asked.rule == 'frozen':
      few = f'the online network changes in {learned} {_rows(learned)} only'
      return few if learned < _FEW else ''
    last = {name: values[-1] for name, values in trace.counters.items()}
    pulled = run.learned & (trace.online[1:] == trace.target[1:])
    if pulled.any():
      raise ConformanceError(
        'direction',
        f'the target never moves, and {int(pulled.sum())} times the online '
        'network becomes a copy of it',
        'wrong_direction',
      )
    if asked.period is not None:
      counter = _counter(trace, asked)
      if asked.period > last[counter] - trace.counters[counter][0]:
        return (
          f'the trace ends before the first update, which is due after '
          f'{asked.period}'
        )
    raise ConformanceError('moves', 'the target never moves', 'lost_update')
  if asked.rule == 'frozen':
    raise ConformanceError(
      'clock', f'the target should be frozen and moves {run.moved.sum()} times'
    )
  begins = int(np.argmax(run.moved))
  same = trace.online[1:] == trace.target[1:]
  follows = bool(run.learned[begins:].sum() > 2)
  if asked.period is not None:
    # Perhaps each row is due.
    counter = _counter(trace, asked)
    passed = np.diff(trace.counters[counter] // asked.period) > 0
    follows &= not passed[begins:][run.learned[begins:]].all()
  if follows and same[begins:].all():
    raise ConformanceError(
      'own_memory',
      f'from row {begins + 2} on the target is the online network in all '
      f'{len(same) - begins} rows; a copy at every gradient step looks so too',
      'alias',
    )
  return ''


def _weights(run: _Run, moves: np.ndarray) -> tuple[np.ndarray, str]:
  """Weights of the online network in some moves, and the order."""
  trace = run.trace
  at = np.flatnonzero(moves)
  if not len(at):
    return np.array([]), 'cannot be told'
  before = trace.target[at]
  way = trace.target[at + 1] - before
  both = []
  for online in (trace.online[at + 1], trace.online[at]):
    distance = online - before
    far = np.abs(distance) > 1e-9 * np.abs(online) + 1e-300
    both.append(np.where(far, way / np.where(far, distance, 1), np.nan))
  spreads = [_spread(weights) for weights in both]
  told = run.learned[at]
  words = ("after the optimizer's step", "before the optimizer's step")
  if not told.any():
    return both[0], 'cannot be told, as no step of the optimizer is in the rows'
  for index, copied in enumerate((run.after[at], run.before[at])):
    if copied[told].all():
      return both[index], words[index]
  best = int(np.argmin(spreads))
  if min(spreads) > _STEADY:
    return both[best], 'cannot be told from these numbers'
  if max(spreads) < 2 * min(spreads):
    return both[best], 'cannot be told, as both orders fit'
  return both[best], words[best]


def _spread(weights: np.ndarray) -> float:
  """Median distance from the median, as a fraction of it."""
  finite = weights[np.isfinite(weights)]
  if not len(finite):
    return math.inf
  middle = float(np.median(finite))
  return float(np.median(np.abs(finite - middle)) / max(abs(middle), 1e-12))


def _tau(weights: np.ndarray) -> float | None:
  """The weight of a rule, if it can be told."""
  copies = bool(len(weights)) and bool(np.all(np.abs(weights - 1) < _EXACT))
  if _spread(weights) > _STEADY or (len(weights) < 3 and not copies):
    return None
  return float(np.nanmedian(weights))


def _name(run: _Run, soft: np.ndarray, both: bool, weights: np.ndarray) -> str:
  tau = _tau(weights)
  shown = 'tau cannot be told from these numbers'
  if tau is not None:
    shown = f'tau = {tau:.6g}'
  if both:
    return f'soft with hard, {shown}'
  if not (run.moved & run.clear).any():
    return f'cannot be told, as no move is by itself in a row; {shown}'
  return f'soft, {shown}' if soft.any() else 'hard'


def _describe(
  run: _Run, moves: np.ndarray, asked: Asked, lines: list[str]
) -> None:
  """Adds lines about the period in each unit."""
  told = []
  for counter in run.trace.counters:
    found, gaps = run.clock(counter, moves), run.gaps(counter, moves)
    if found.kind == 'periodic':
      told.append(f'{found.period} {counter}s, phase {found.phase}')
    elif len(gaps):
      told.append(
        f'{gaps.min()} to {gaps.max()} {counter}s, {gaps.mean():.6g} on average'
      )
  asking = ''
  if asked.period is not None:
    asking = f' (asked for {asked.period} {_counter(run.trace, asked)}s)'
  seen = '; '.join(told) or 'cannot be told from a single update'
  lines.append(f'period: {seen}{asking}')
  if len(told) > 1 and all('phase' in each for each in told):
    lines.append(
      'unit: cannot be told from the distances, as the counters keep pace; a '
      'phase of 0 speaks for a unit'
    )


def _check_weights(
  run: _Run, asked: Asked, weights: np.ndarray, lines: list[str]
) -> str:
  """Checks tau.

  Returns:
    Why it cannot be told; '' if it can.
  """
  tau = 1.0 if asked.rule == 'hard' else asked.tau
  if tau is None:
    return ''
  seen = _tau(weights)
  if tau == 1:
    others = run.moved & run.clear & ~run.copied
    if others.any():
      shown = '' if seen is None else f', and the weight is {seen:.6g}'
      raise ConformanceError(
        'rate',
        f'asked for copies; {int(others.sum())} of {int(run.moved.sum())} '
        f'moves are none{shown}',
        'tau_ignored',
      )
    if not (run.moved & run.clear).any() and run.same.sum() < _FEW:
      return (
        'no move is by itself in a row, so that copies cannot be seen; write a '
        'row after each gradient step'
      )
    return ''
  steps = np.diff(run.trace.counters.get('gradient_step', np.zeros(2)))
  block = float(np.median(steps[run.moved])) if run.moved.any() else 0.0
  if asked.rule == 'soft' and block > 1 and _spread(weights) < _LOOSE:
    # The online network moves within a block, so this is no exact number.
    way = float(np.nanmedian(weights))
    times = math.log1p(-min(way, 0.999)) / math.log1p(-tau)
    if abs(times / block - 1) < _LOOSE:
      lines.append(f'tau: judged to {_LOOSE:.0%}, as rows have several updates')
      return ''
    if abs(times - 1) < _LOOSE:
      raise ConformanceError(
        'clock',
        f'rows are {block:g} gradient steps apart, and the target moves by '
        f'{way:.6g} in each, as by a single update with tau = {tau:g}',
        'once_per_block',
      )
  if seen is None:
    return (
      f'tau = {tau:g} was asked for, and cannot be read from these numbers; '
      'write sums, with all digits'
    )
  lines.append(f'tau: judged to {_STEADY:.0%}')
  if abs(seen - tau) > _STEADY * tau:
    guess = laws.guess_rate(seen, tau, _STEADY * tau)
    raise ConformanceError(
      'rate',
      f'asked for tau = {tau:g}; seen: {seen:.6g}',
      None if guess else 'tau_ignored',
      guess,
    )
  return ''


def _check_clock(
  run: _Run, asked: Asked, counter: str, lines: list[str]
) -> None:
  """Compares the moves with the multiples of the period."""
  period = 1 if asked.rule == 'soft' else asked.period
  if period is None:
    return
  values = run.trace.counters[counter]
  moves = run.moved & run.told
  if not moves.any():
    lines.append('updates: only where rows are missing')
    return
  phases = [asked.phase or 0]
  if asked.phase is None:
    phases.append(int(values[1:][np.argmax(moves)]) % period)
  best: tuple[np.ndarray, np.ndarray] | None = None
  for phase in phases:
    passed = np.diff((values - phase) // period) > 0
    missed = passed & ~run.moved & run.visible & run.told
    more = moves & ~passed
    if best is None or missed.sum() + more.sum() < sum(b.sum() for b in best):
      best = missed, more
  assert best is not None
  missed, more = best
  lines.append(
    f'updates: {int(run.moved.sum())}, {int(missed.sum())} missed, '
    f'{int(more.sum())} beside the clock'
  )
  if not missed.any() and not more.any():
    return
  found = run.clock(counter, run.moved)
  if missed.sum() + more.sum() > 0.2 * max(run.moved.sum(), 3):
    for other, unit in (
      (name, unit) for unit, name in UNITS.items() if name in run.trace.counters
    ):
      gaps = run.gaps(other, run.moved)
      if other != counter and len(gaps) and (gaps == period).all():
        raise ConformanceError(
          'clock',
          f'asked for a period of {period} {counter}s; seen: {period} {unit}',
          'unit_confusion',
        )
    gaps = run.gaps(counter, run.moved)
    laws.judge_clock(
      counter,
      found._replace(gaps=tuple(map(int, gaps))),
      period,
      asked.phase,
      grain=int(np.diff(values).max()),
    )
  places = np.flatnonzero(missed | more)[:5]
  raise ConformanceError(
    'clock',
    f'{_updates(missed, "missed")}, {_updates(more, "beside the clock")}, such '
    f'as at {counter} '
    f'{", ".join(str(values[row + 1]) for row in places)}',
  )


def _updates(which: np.ndarray, how: str) -> str:
  """A number of updates, in words."""
  number = int(which.sum())
  return f'{number} {"update is" if number == 1 else "updates are"} {how}'


def _check_doubled(
  run: _Run,
  asked: Asked,
  weights: np.ndarray,
  counter: str,
  lines: list[str],
) -> None:
  """Checks that soft updates do not come twice at once."""
  tau = asked.tau or _tau(weights)
  moves = run.moved & run.clear
  told = _tau(weights) is not None and len(weights) == moves.sum()
  if tau is None or not 0 < tau < 1 or not told:
    return
  inside = np.where((weights > 0) & (weights < 1), weights, np.nan)
  times = np.log1p(-inside) / math.log1p(-tau)
  doubled = np.flatnonzero(np.abs(times - np.round(times)) < _LOOSE)
  doubled = doubled[np.round(times[doubled]) >= 2]
  if not len(doubled):
    return
  values = run.trace.counters[counter][1:][moves]
  lines.append(f'doubled: {len(doubled)}')
  raise ConformanceError(
    'clock',
    f'{len(doubled)} of {len(weights)} updates move as far as '
    f'{np.nanmax(np.round(times)):.0f}, such as at {counter} '
    f'{", ".join(str(values[row]) for row in doubled[:5])}',
  )
