"""Lines of many runs for an interactive page: curves and final results.

Runs that differ only in the seed, and in where they ran, are one line, with its
mean and 95 % t intervals over runs. Long curves are thinned to what a screen
shows.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np

from siamrl.report import consistency, statistics
from siamrl.report.arrangement import FOREMOST
from siamrl.report.loading import FOLDER_COLUMN
from siamrl.report.metrics import (
  CLOCKS,
  PLAYED,
  RUN_COLUMN,
  Table,
  group_rows,
  is_wall_clock,
)

# Columns that name what is learned; the first one that a run has counts.
TASKS = (*PLAYED, 'images', 'dataset', 'problem')
WALL_CLOCK = 'wall_time_s'
_PANEL = 'panel/'
_RETURNS = ('eval_return', 'train_return', 'grid_return', 'loss')
# Points of a line, and numbers on a page: about 8 bytes each.
_MOST_POINTS, _FEWEST_POINTS = 400, 40
_MOST_NUMBERS = 250_000
_DIGITS, _CLOCK_DIGITS = 5, 8
_MOST_NAMED = 6  # options in the name of a setting


def make_lines(table: Table, column: str | None = None) -> dict[str, Any]:
  """Makes the lines of all runs, as JSON holds them.

  Args:
    table: the rows of `siamrl.report.load` in NumPy's arrays.
    column: the column to show first; None for returns if there are any.

  Returns:
    `tasks`, `settings` (names), `points` (the values of each setting), `clocks`
    and `columns` by name; `first`, the column to show first; `rows`, the most
    rows of a run, and `bins`, to how many points they were thinned, or None;
    `notes`, lines for the reader; `spreads`, by column the rank spreads of
    settings over tasks, if there are several; and `lines`. A line has the
    indices `task` and `setting`; `runs`, their number; `end`, where its longest
    run ends; `x`, values by clock; `y`, by column the mean, and with several
    runs the ends of its interval; and `final`, by column the mean over the last
    tenth with its interval, the same of the IQM, and the number of runs.

  Raises:
    ValueError: there is no clock, or no such column.
  """
  clocks = [name for name in CLOCKS if name in table]
  if not clocks:
    raise ValueError(f'there is no column of {", ".join(CLOCKS)}')
  names = list(table)
  settings = names[: names.index(RUN_COLUMN)]
  table = table | {RUN_COLUMN: _seeds(table), 'task': _tasks(table)}
  settings = [name for name in settings if name not in TASKS]
  settings = _within_tasks(table, settings)
  columns = measured(table)
  if column is not None and column not in columns:
    raise ValueError(f'there is no column {column!r}')
  groups = group_rows(table, ['task', *settings])
  notes: list[str] = []
  together = [
    _Runs(rows, clocks[0], _in_words(key), notes)
    for key, rows in groups.items()
  ]
  several = 3 if any(runs.number > 1 for runs in together) else 1
  bins = _MOST_NUMBERS // max(len(together) * len(columns) * several, 1)
  bins = min(max(bins, _FEWEST_POINTS), _MOST_POINTS)
  longest = max(len(runs.clock) for runs in together)
  points = [dict(zip(settings, key[1:], strict=True)) for key in groups]
  unique = sorted(
    {tuple(p.values()): p for p in points}.values(), key=_in_order
  )
  tasks = list(dict.fromkeys(key[0] for key in groups))
  clocks = [*clocks, *([WALL_CLOCK] if _timers(table) else [])]
  drawn = [
    {
      'task': tasks.index(key[0]),
      'setting': unique.index(point),
      'runs': runs.number,
      'end': int(runs.clock[-1]),
      **runs.curves(clocks, columns, bins),
    }
    for key, point, runs in zip(groups, points, together, strict=True)
  ]
  return {
    'tasks': tasks,
    'settings': name_settings(unique),
    'points': unique,
    'clocks': clocks,
    'columns': columns,
    'first': column or next((n for n in _RETURNS if n in columns), columns[0]),
    'panel': [n for n in columns if n.startswith(_PANEL) and n.count('/') == 1],
    'rows': longest,
    'bins': bins if longest > bins else None,
    'notes': notes,
    'spreads': _spreads(columns, drawn, together),
    'lines': drawn,
  }


def _spreads(
  columns: Sequence[str],
  drawn: Sequence[Mapping[str, Any]],
  together: Sequence['_Runs'],
) -> dict[str, dict[int, float]]:
  """Returns the rank spreads of settings over tasks, by column."""
  found = {}
  for column in columns:
    scores = {
      (line['setting'], line['task']): runs.ends[column]
      for line, runs in zip(drawn, together, strict=True)
      if column in runs.ends
    }
    found[column] = {
      setting: float(f'{spread:.{_DIGITS}g}')
      for setting, spread in consistency.spreads_of(scores).items()
    }
  return {column: spreads for column, spreads in found.items() if spreads}


def name_settings(points: Sequence[Mapping[str, Any]]) -> list[str]:
  """Names settings by the values of all options in which any of them differ.

  If these are more than `_MOST_NAMED`, a name has as few of them as tell the
  settings apart, and the number of the others.

  Args:
    points: the settings, all with the same options; None for an option that
      does not apply.
  """
  if len(points) < 2:
    return ['all runs' for _ in points]
  ordered = [name for name in FOREMOST if name in points[0]]
  ordered += [name for name in points[0] if name not in ordered]
  ordered = [n for n in ordered if len({p[n] for p in points}) > 1]
  more: list[str] = []
  if len(ordered) > _MOST_NAMED:
    number = len(ordered)
    for name in ordered[:0:-1]:  # the first one stays
      fewer = [each for each in ordered if each != name]
      if len({tuple(p[n] for n in fewer) for p in points}) == len(points):
        ordered = fewer
    more = [f'{number - len(ordered)} more'] * (len(ordered) < number)
  return [
    ', '.join(
      [
        f'{name}={_in_words([point[name]])}'
        for name in ordered
        if point[name] is not None
      ]
      + more
    )
    or 'none of them'
    for point in points
  ]


def _in_order(point: Mapping[str, Any]) -> list[tuple[int, Any]]:
  """A key that sorts numbers before texts, and those before missing values."""
  return [
    (2, 0) if value is None else (int(isinstance(value, str)), value)
    for value in point.values()
  ]


def _in_words(values: Sequence[Any]) -> str:
  return ', '.join(
    f'{value:.10g}' if isinstance(value, float) else str(value)
    for value in values
    if value is not None
  )


def _tasks(table: Table) -> np.ndarray:
  """[R] text, what each row's run learns; '' if unknown."""
  found = np.full(len(next(iter(table.values()))), '', np.str_)
  for name in TASKS:
    if name in table and table[name].dtype.kind == 'U':
      found = np.where(found == '', table[name], found)
  return found


def _seeds(table: Table) -> np.ndarray:
  """[R] numbers of runs: rows of one folder and seed are one run."""
  pairs = zip(
    table[FOLDER_COLUMN].tolist(), map(str, table[RUN_COLUMN]), strict=True
  )
  numbers: dict[tuple[str, str], int] = {}
  return np.array([numbers.setdefault(p, len(numbers)) for p in pairs])


def _within_tasks(table: Table, settings: Sequence[str]) -> list[str]:
  """Returns the options that vary between the runs of a task."""
  varying = set()
  for rows in group_rows(table, ['task']).values():
    # NaNs are equal here: the option does not apply.
    varying |= {n for n in settings if len(np.unique(rows[n])) > 1}
  return [name for name in settings if name in varying]


def measured(table: Table) -> list[str]:
  """Returns the columns with numbers: returns, others, panel, timers.

  Args:
    table: as in `make_lines`.

  Raises:
    ValueError: there is none.
  """
  names = list(table)
  aside = (*CLOCKS, 'iteration', FOLDER_COLUMN, 'task')
  found = [
    name
    for name in names[names.index(RUN_COLUMN) + 1 :]
    if name not in aside
    and table[name].dtype.kind != 'U'
    and np.isfinite(table[name]).any()
  ]

  def rank(name: str) -> int:
    if name in _RETURNS:
      return 0
    return 1 + name.startswith(_PANEL) + 2 * is_wall_clock(name)

  if not found:
    raise ValueError('there is no column with numbers')
  return sorted(found, key=rank)


def _timers(table: Table) -> list[str]:
  """Returns the columns of seconds, which together are the wall time."""
  return [n for n in table if is_wall_clock(n) and not n.endswith('_per_s')]


class _Runs:
  """The runs of one setting in one task.

  Attributes:
    clock: [T] all values of the clock.
    number: the number of runs.
    ends: by column [runs] means over the last tenth, once curves were made.
  """

  def __init__(self, rows: Table, clock: str, name: str, notes: list[str]):
    """Aligns the runs; adds to the notes."""
    self._rows, self._main = rows, clock
    self.ends: dict[str, np.ndarray] = {}
    self.clock, self._at = np.unique(rows[clock], return_inverse=True)
    runs, self._run = np.unique(rows[RUN_COLUMN], return_inverse=True)
    self.number = len(runs)
    ends = [rows[clock][self._run == run].max() for run in range(self.number)]
    if min(ends) < max(ends):
      notes.append(
        f'{name or "all runs"}: its runs end between {min(ends):,.0f} and '
        f'{max(ends):,.0f} {clock.replace("_", " ")}; each point is of the '
        'runs that have come so far'
      )

  def _aligned(self, column: np.ndarray) -> np.ndarray:
    """[runs, T] values, NaN where a run has none."""
    values = np.full((self.number, len(self.clock)), np.nan)
    values[self._run, self._at] = column
    return values

  def _clock(self, name: str) -> np.ndarray:
    """[T] a clock: the mean over runs, which for steps is that of each."""
    if name == self._main:
      return self.clock.astype(np.float64)
    if name != WALL_CLOCK:
      return _mean(self._aligned(self._rows[name]), 0)
    timers = [self._aligned(self._rows[n]) for n in _timers(self._rows)]
    known = np.isfinite(timers).any(axis=0)
    seconds = np.nancumsum(np.nansum(timers, axis=0), axis=1)
    return _mean(np.where(known, seconds, np.nan), 0)

  def curves(
    self, clocks: Sequence[str], columns: Sequence[str], bins: int
  ) -> dict[str, Any]:
    """Returns `x`, `y` and `final`; see `make_lines`."""
    starts = np.arange(len(self.clock))
    if len(starts) > bins:
      starts = np.linspace(0, len(starts), bins + 1).astype(int)[:-1]
    x = {name: _numbers(_binned(self._clock(name), starts)) for name in clocks}
    y, final = {}, {}
    for name in columns:
      values = self._aligned(self._rows[name])
      if not np.isfinite(values).any():
        continue
      values = np.where(np.isfinite(values), values, np.nan)
      estimates = statistics.over_runs(_binned(values, starts))
      parts = estimates if self.number > 1 else estimates[:1]
      y[name] = [_numbers(part, _DIGITS) for part in parts]
      ends = self.ends[name] = statistics.final_mean(self.clock, values)
      results = [
        *statistics.over_runs(ends),
        *statistics.over_runs(ends, statistics.iqm),
      ]
      final[name] = [
        *_numbers(np.array(results), _DIGITS),
        int(np.isfinite(ends).sum()),
      ]
    return {'x': x, 'y': y, 'final': final}


def _binned(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
  """Averages over parts of the last axis, without NaNs."""
  if len(starts) == values.shape[-1]:
    return values
  known = np.isfinite(values)
  total = np.add.reduceat(np.where(known, values, 0), starts, axis=-1)
  count = np.add.reduceat(known.astype(int), starts, axis=-1)
  return np.where(count, total / np.maximum(count, 1), np.nan)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
  """Averages without NaNs; NaN where there is nothing else."""
  known = np.isfinite(values)
  count = known.sum(axis=axis)
  total = np.where(known, values, 0).sum(axis=axis)
  return np.where(count, total / np.maximum(count, 1), np.nan)


def _numbers(
  values: np.ndarray, digits: int = _CLOCK_DIGITS
) -> list[float | int | None]:
  """Rounds to significant digits; None for NaN."""
  found: list[float | int | None] = []
  for value in values.tolist():
    if not math.isfinite(value):
      found.append(None)
      continue
    short = float(f'{value:.{digits}g}')
    found.append(int(short) if short.is_integer() else short)
  return found
