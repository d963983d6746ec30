"""Learning curves of runs that are no sweep, beside a published curve."""

from collections.abc import Sequence
import csv
import io
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np

from experiments.config.declaring import RunError, UsageError
from experiments.figures import protocols, sources
from experiments.figures.sources import Source
from experiments.studies import published as published_files
from siamrl.report import averages, published
from siamrl.report.arrangement import MOST_LINES
from siamrl.report.curves import Curve, plot_curve
from siamrl.report.drawing import count_note
from siamrl.report.metrics import last_rows
from siamrl.report.run_folder import write_atomically

# What is drawn of runs that are no sweep, and its name beside the axis.
RETURNS = {
  'train_return': 'training return',
  'eval_return': 'evaluation return',
}
# More than a picture can show, and few enough to be averaged in seconds.
_PUBLISHED_BIN = 1_000_000  # frames, of published curves
_MOST_BINS = 100_000
# Of these the first that there is, if --column is not given.
_HEADLINES = ('train_return', 'grid_return', 'eval_return', 'loss')


class Task(NamedTuple):
  """The task of a run, and the clock of its curve."""

  name: str
  clock: str  # a column of its metrics

  @property
  def is_game(self) -> bool:
    return self.clock == 'frames'

  @property
  def acts(self) -> bool:
    """Whether it plays rather than learn from a data set."""
    return self.clock != 'gradient_steps'


def task_of(source: Source) -> Task:
  if 'game' in source.flags:
    return Task(source.flags['game'], 'frames')
  if 'environment' in source.flags:
    acts = 'env_steps' in source.table
    return Task(
      source.flags['environment'], 'env_steps' if acts else 'gradient_steps'
    )
  raise UsageError(
    f'--runs={source.path} must be of a game, an environment or a data set'
  )


def draw(config: Any, found: Sequence[Source]) -> None:
  """Draws runs that are no sweep, beside a published curve."""
  sources.refuse(config, 'but those of sweeps', 'facet', 'color')
  tasks = {task_of(source) for source in found}
  if len(tasks) > 1:
    names = ', '.join(sorted(task.name for task in tasks))
    raise UsageError(
      f'--runs={config.runs} must be of one game or environment, not {names}'
    )
  task = tasks.pop()
  if config.reference is not None and not task.acts:
    raise UsageError('--reference must not be given for runs on data sets')
  column = _column(config, task, found[0])
  for note in protocols.differences(found, column):
    print(f'warning: {note}', file=sys.stderr)
  size = config.bin_frames or _default_bin(task, found)
  curves = [
    _rows(source, task.clock, column)
    if size is None
    else _binned(source, column, size)
    for source in found
  ]
  last = max(clock[-1] for clock, _ in curves)
  references = _references(config, task, last)
  groups = sources.configurations(found)
  if len(groups) > MOST_LINES:
    differing = ', '.join(f'--{n}' for n in sources.differences(found))
    raise UsageError(
      f'--runs={config.runs} must be of at most {MOST_LINES} configurations, '
      f'which can be told apart, not {len(groups)}: they differ in {differing}'
    )
  series, faint = [], []
  for words, members in groups.items():
    name = words or config.label
    clock, values, met = averages.side_by_side([curves[i] for i in members])
    if not met[clock <= min(curves[i][0][-1] for i in members)].any():
      raise UsageError(
        f'--runs={config.runs} must have rows at the same {task.clock}: a mean '
        f'over the {len(members)} runs of {name} has no point'
      )
    if not np.isfinite(values).any():
      raise UsageError(
        f'--column={column} must have numbers, and has none in '
        + ', '.join(str(found[i].path) for i in members)
      )
    label = _seeds(name, clock[met], values[:, met])
    series.append(averages.mean_curve(label, clock[met], values[:, met]))
    if len(members) > 1:
      faint += [Curve(label, *curves[i]) for i in members]
    print(f'{label}: {", ".join(str(found[i].path) for i in members)}')
  if len(groups) > 1:
    for name in sources.differences(found):
      shown = [
        found[members[0]].flags.get(name, '(absent)')
        for members in groups.values()
      ]
      print(f'  --{name}: {" | ".join(shown)}')
  clock, values, _ = averages.side_by_side(curves)
  optimum = found[0].table.get('grid_optimum')
  if column == 'grid_return' and optimum is not None:
    references.append(Curve('best possible', None, optimum[-1]))
  if any(source.is_folder for source in found):
    path = pathlib.Path(f'{config.output}.csv')
    _write_csv(path, task, found, clock, values)
  banded = [c for c in (*series, *references) if c.spread is not None]
  plot_curve(
    f'{config.output}.png',
    series,
    references,
    faint=faint,
    title=task.name,
    x_label=task.clock.replace('_', ' '),
    y_label=RETURNS.get(column, column.replace('_', ' ')),
    explanation='mean and standard\ndeviation over seeds' if banded else '',
  )


def _seeds(name: str, clock: np.ndarray, values: np.ndarray) -> str:
  """The name of a line, with the number of its runs."""
  known = int(np.isfinite(values).any(axis=1).sum())
  words = f'{known} seeds' if known != 1 else '1 seed'
  return f'{name}, {words}{count_note(clock, values)}'


def _column(config: Any, task: Task, source: Source) -> str:
  """The column that is drawn."""
  columns = list(RETURNS)
  if not task.acts:
    columns = list(source.table)
  preferred = [name for name in _HEADLINES if name in columns]
  column = config.column or preferred[0]
  if column not in columns:
    raise UsageError(f'--column={column} must be one of {", ".join(columns)}')
  return column


def _rows(
  source: Source, clock: str, column: str
) -> tuple[np.ndarray, np.ndarray]:
  """The clock at the ends of iterations, and the column."""
  _check_columns(source, clock, column)
  metrics = last_rows(source.table, [clock])
  return metrics[clock], metrics[column]


def _check_columns(source: Source, *names: str) -> None:
  for name in names:
    if name not in source.table:
      raise RunError(f'{source.path} has no column {name}')
    if source.table[name].dtype.kind == 'U':
      raise UsageError(f'--column={name} must have numbers, not text')


def _default_bin(task: Task, found: Sequence[Source]) -> int | None:
  """Frames of a bin, as published curves have them; None for iterations."""
  if not task.is_game:
    return None
  for source in found:
    _check_columns(source, 'frames')
  shortest = min(source.table['frames'][-1] for source in found)
  return _PUBLISHED_BIN if shortest >= _PUBLISHED_BIN else None


def _binned(
  source: Source, column: str, bin_frames: int
) -> tuple[np.ndarray, np.ndarray]:
  """Ends of the full bins in frames, and the mean return of their episodes."""
  counts = column.replace('_return', '_episodes')
  _check_columns(source, 'frames', column, counts)
  metrics = last_rows(source.table, ['frames'])
  full = int(metrics['frames'][-1] // bin_frames)
  if not full:
    raise RunError(
      f'{source.path} has {metrics["frames"][-1]:,} frames, less than '
      f'--bin_frames={bin_frames:,}'
    )
  if full > _MOST_BINS:
    raise UsageError(
      f'--bin_frames={bin_frames} must be so large that there are at most '
      f'{_MOST_BINS:,} bins, not {full:,}'
    )
  return averages.binned(
    metrics['frames'], metrics[column], metrics[counts], bin_frames
  )


def _references(config: Any, task: Task, last: int) -> list[Curve]:
  """The published curve as far as the runs go; one point more if there is."""
  if config.reference is None:
    return []
  source = published_files.find('reference', config.reference)
  kind = 'game' if task.is_game else 'environment'
  # Versions differ in what few curves show; the file says which it is of.
  rows = source.of_task(kind, task.name)
  if not rows:
    raise UsageError(
      f'--reference={config.reference} must hold the {kind} {task.name}'
    )
  if source.clock != task.clock:
    raise UsageError(
      f'--reference={config.reference} must count {task.clock}, not '
      f'{source.clock}'
    )
  return published.curves(source, rows, config.reference_label, last)


def _write_csv(
  path: pathlib.Path,
  task: Task,
  found: Sequence[Source],
  clock: np.ndarray,
  values: np.ndarray,
) -> None:
  """A row for each value of the clock, a column for each run."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow([task.clock, *sources.names(found)])
  writer.writerows(
    [int(time), *(f'{value:.6g}' for value in row)]
    for time, row in zip(clock, values.T, strict=True)
  )
  write_atomically(path, text.getvalue().encode())
