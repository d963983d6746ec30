"""Runs of several folders and files beside each other, by setting and task.

A setting is what runs differ in, but for the task and the seed: the swept
options of sweeps, and the flags or the names of the folders and files.
"""

from collections.abc import Iterable, Mapping, Sequence
import os
from typing import Any, NamedTuple

import numpy as np

from experiments.config.declaring import UsageError
from experiments.figures import protocols, sources
from experiments.figures.sources import Source
from siamrl.report import (
  aggregates,
  consistency,
  lab as lab_figures,
  sweep as sweep_figures,
)
from siamrl.report.arrangement import Point, in_words
from siamrl.report.metrics import (
  CLOCKS,
  PLAYED,
  RUN_COLUMN,
  STEP_COLUMN,
  Table,
  group_rows,
  is_wall_clock,
  last_rows,
)

LABEL = 'runs'  # the option that tells folders and files apart
_END = 0.1  # scores are means over this part of the runs


class Run(NamedTuple):
  """One run of a setting on a task.

  Attributes:
    x: [T] the clock, ascending.
    y: [T] the column; NaN where it was not measured.
    seconds: [T] wall time since the beginning; None if it was not measured.
  """

  x: np.ndarray
  y: np.ndarray
  seconds: np.ndarray | None


class Study(NamedTuple):
  """All runs of a figure.

  Attributes:
    settings: the values that tell settings apart; None for those that mean
      nothing to a setting.
    tasks: names of games or environments.
    runs: runs by the index of the setting and the task.
    x: the column of the clock.
    y: the column that is drawn.
    flags: flags with the same value in all folders and files.
    is_atari: whether all tasks are Atari games.
    notes: what a reader of the figure must know.
  """

  settings: list[Point]
  tasks: list[str]
  runs: dict[tuple[int, str], list[Run]]
  x: str
  y: str
  flags: dict[str, str]
  is_atari: bool
  notes: list[str]

  def names(self) -> list[str]:
    """Returns the settings in words, with what tells them apart only."""
    varied = [
      name
      for name in self.settings[0]
      if len({point[name] for point in self.settings}) > 1
    ]
    return [
      in_words({name: point[name] for name in varied}) or 'all runs'
      for point in self.settings
    ]

  def of_task(self, task: str) -> 'Study':
    """Returns the runs on one task, of the settings that have any."""
    kept = [i for i in range(len(self.settings)) if (i, task) in self.runs]
    runs = {(n, task): self.runs[i, task] for n, i in enumerate(kept)}
    return self._replace(
      settings=[self.settings[i] for i in kept], tasks=[task], runs=runs
    )


def texts(point: Point) -> list[str]:
  """The values of a setting as flags have them."""
  return [
    value if isinstance(value, str) else f'{value:.10g}'
    for value in point.values()
    if value is not None
  ]


def baseline(config: Any, study: Study, names: Sequence[str]) -> str:
  """The name of the setting with all values of --baseline, or the first."""
  if config.baseline is None:
    return names[0]
  asked = config.baseline.split(',')
  for point, name in zip(study.settings, study.names(), strict=True):
    if name in names and sorted(asked) == sorted(texts(point)):
      return name
  raise UsageError(
    f'--baseline={config.baseline} must be all values of a setting, such as '
    + ','.join(texts(study.settings[0]))
  )


def spreads(scores: Mapping[str, np.ndarray], study: Study) -> dict[str, float]:
  """How far the rank of each setting differs between tasks, by its name."""
  return consistency.spreads_of(
    {
      (name, task): each[:, number]
      for name, each in scores.items()
      for number, task in enumerate(study.tasks)
    }
  )


def read(config: Any, found: Sequence[Source]) -> Study:
  """Returns all runs of --runs.

  Args:
    config: options of `experiments.plot`.
    found: the folders and files.

  Raises:
    UsageError: if they have no clock or column in common.
  """
  if any(lab_figures.is_lab(source.table) for source in found):
    raise UsageError(f'--kind={config.kind} must not be given for the lab')
  atari = all(
    STEP_COLUMN in s.table and ('game' in s.table or 'game' in s.flags)
    for s in found
  )
  x = _clock(config, found, atari)
  y = _column(config, found)
  axes = dict.fromkeys(n for s in found for n in _axes(s) if n not in PLAYED)
  labels = _labels(found, set(axes))
  order: dict[tuple, int] = {}
  settings: list[Point] = []
  tasks: list[str] = []
  runs: dict[tuple[int, str], list[Run]] = {}
  for source, label in zip(found, labels, strict=True):
    table, by = _newest(source, x), _axes(source)
    seed = [RUN_COLUMN] if RUN_COLUMN in table else []
    for key, rows in group_rows(table, [*by, *seed]).items():
      values = dict(zip([*by, *seed], key, strict=True))
      point = {LABEL: label} if any(labels) else {}
      point |= {n: values.get(n, _constant(source, n)) for n in axes}
      task = next((str(values[n]) for n in PLAYED if n in values), None)
      task = task or _task(source)
      number = order.setdefault(tuple(point.values()), len(settings))
      if number == len(settings):
        settings.append(point)
      if task not in tasks:
        tasks.append(task)
      runs.setdefault((number, task), []).append(_run(rows, x, y))
  if not any(
    np.isfinite(run.y).any() for each in runs.values() for run in each
  ):
    raise UsageError(f'--column={y} must have numbers, and has none')
  known = [source.flags for source in found]
  flags = {
    n: v for n, v in known[0].items() if all(o.get(n) == v for o in known)
  }
  notes = protocols.differences(found, y)
  return Study(settings, tasks, runs, x, y, flags, atari, notes)


def _axes(source: Source) -> list[str]:
  return sweep_figures.swept(source.table, source.flags)


def _newest(source: Source, x: str) -> Table:
  """The rows of a source, each as it was last written."""
  seed = [RUN_COLUMN] if RUN_COLUMN in source.table else []
  return last_rows(source.table, [*_axes(source), *seed, x])


def _run(rows: Table, x: str, y: str) -> Run:
  timers = [n for n in rows if is_wall_clock(n) and not n.endswith('_per_s')]
  seconds = None
  if timers:
    spent = np.sum([np.nan_to_num(rows[n].astype(float)) for n in timers], 0)
    seconds = np.cumsum(spent)
  return Run(rows[x].astype(np.float64), rows[y].astype(np.float64), seconds)


def _clock(config: Any, found: Sequence[Source], atari: bool) -> str:
  """The clock that all share; frames count games of Atari only."""
  clocks = list(CLOCKS)
  clocks.sort(key=lambda name: (name == STEP_COLUMN) is not atari)
  for name in clocks:
    if all(name in source.table for source in found):
      return name
  raise UsageError(
    f'--runs={config.runs} must share a clock: {", ".join(clocks)}'
  )


def _column(config: Any, found: Sequence[Source]) -> str:
  """The column that is drawn, which all folders and files have."""
  column = config.column or sweep_figures.headline(found[0].table)
  for source in found:
    numbers = [n for n, v in source.table.items() if v.dtype.kind != 'U']
    if column not in numbers:
      raise UsageError(
        f'--column={column} must be a column of numbers in all of --runs: '
        f'{source.path} has {", ".join(numbers)}'
      )
  return column


def _task(source: Source) -> str:
  return next((source.flags[n] for n in PLAYED if n in source.flags), '')


def _constant(source: Source, name: str) -> Any:
  """The value of an option that this source does not sweep, but another."""
  text = source.flags.get(name)
  try:
    number = float(text or '')
  except ValueError:
    return text
  return int(number) if number.is_integer() else number


def _labels(found: Sequence[Source], axes: set[str]) -> list[str]:
  """The words that tell folders and files apart; '' if flags are equal."""
  bare = [
    source._replace(
      flags={
        n: v
        for n, v in source.flags.items()
        if n not in axes and n not in PLAYED
      }
    )
    for source in found
  ]
  groups = sources.configurations(bare)
  names = sources.names(found)
  # A results file has some flags only, and the folder of a sweep is named by
  # who made it, so that their names say more.
  clear = all(s.is_folder and RUN_COLUMN not in s.table for s in found)
  if any(_overlap([found[m] for m in g]) for g in groups.values()):
    return names
  labels = [''] * len(found)
  if len(groups) == 1:
    return labels
  for words, members in zip(_brief(groups), groups.values(), strict=True):
    for member in members:
      labels[member] = words if clear else _shared([names[m] for m in members])
  return labels


def _brief(configurations: Iterable[str]) -> list[str]:
  """Words without the flags that a run lacks, if they stay different."""
  every = list(configurations)
  brief = [
    ', '.join(p for p in words.split(', ') if not p.endswith('=(absent)'))
    for words in every
  ]
  return brief if len(set(brief)) == len(every) and all(brief) else every


def _overlap(found: Sequence[Source]) -> bool:
  """Whether files have runs of the same task, which may differ unseen."""
  tasks = [
    set(next((s.table[n].tolist() for n in PLAYED if n in s.table), [_task(s)]))
    for s in found
    if not s.is_folder
  ]
  return sum(map(len, tasks)) > len(set().union(*tasks))


def _shared(names: Sequence[str]) -> str:
  """The part that names share, at their beginning or end."""
  if len(names) == 1:
    return names[0]
  start = os.path.commonprefix(names)
  end = os.path.commonprefix([name[::-1] for name in names])[::-1]
  return max(start, end, key=len).strip('-_.') or names[0]


def long_table(study: Study) -> tuple[Table, list[str], list[str]]:
  """Returns rows in long form, the columns of the setting, and notes.

  The rows of a setting's runs are at common values of the clock. Where they are
  not, they are interpolated, as far as each run goes.

  Args:
    study: runs on one task.
  """
  rows: list[tuple] = []
  notes: list[str] = []
  by = list(study.settings[0])
  for (number, _), runs in study.runs.items():
    for seed, run in enumerate(_side_by_side(study, runs, notes)):
      values = list(study.settings[number].values())
      rows += [(*values, seed, *pair) for pair in zip(*run, strict=True)]
  columns = zip(*rows, strict=True)
  table = {
    name: _array(column)
    for name, column in zip(
      [*by, RUN_COLUMN, study.x, study.y], columns, strict=True
    )
  }
  return table, by, list(dict.fromkeys(notes))


def _side_by_side(
  study: Study, runs: Sequence[Run], notes: list[str]
) -> list[tuple[np.ndarray, np.ndarray]]:
  longest = max((run.x for run in runs), key=len)
  if all(np.array_equal(run.x, longest[: len(run.x)]) for run in runs):
    return [(run.x, run.y) for run in runs]
  notes.append(f'rows at unequal {words(study.x)}: interpolated')
  points = np.linspace(
    max(run.x[0] for run in runs),
    max(run.x[-1] for run in runs),
    min(100, max(2, *(len(run.x) for run in runs))),
  )
  return [(points, aggregates.at_points(run.x, run.y, points)) for run in runs]


def _array(column: Sequence[Any]) -> np.ndarray:
  if any(isinstance(value, str) for value in column):
    return np.array(['' if v is None else f'{v}' for v in column], np.str_)
  return np.array([np.nan if v is None else v for v in column], np.float64)


def final_scores(
  study: Study,
) -> tuple[dict[tuple[int, str], np.ndarray], str]:
  """Returns the score of each run at the end, and a note on unequal lengths.

  A score is the mean over the last tenth of the time that all runs of the task
  have reached.

  Args:
    study: all runs.

  Returns:
    ([runs] by the index of the setting and the task, note); the note is '' if
    all runs are equally long.
  """
  scores: dict[tuple[int, str], np.ndarray] = {}
  unequal: dict[str, list[str]] = {}
  for task in study.tasks:
    of_task = {key: runs for key, runs in study.runs.items() if key[1] == task}
    ends = [run.x[-1] for runs in of_task.values() for run in runs]
    end = min(ends)
    if max(ends) > end:
      unequal.setdefault(f'{end:,.10g}', []).append(task)
    for key, runs in of_task.items():
      scores[key] = np.array([_final(run, end) for run in runs])
  said = [
    f'first {end} {words(study.x)}'
    + f' of {", ".join(of)}' * (of != study.tasks)
    for end, of in unequal.items()
  ]
  note = f'runs of unequal length, scored on the {"; ".join(said)}'
  return scores, note if unequal else ''


def _final(run: Run, end: float) -> float:
  reached = run.x <= end
  x, y = run.x[reached], run.y[reached]
  late = y[x > (1 - _END) * end]
  late = late if len(late) else y[-1:]
  known = late[np.isfinite(late)]
  return float(known.mean()) if len(known) else float('nan')


def words(column: str) -> str:
  return column.replace('_', ' ')
