"""Draws finished or running runs beside a published curve, or a sweep.

  python -m experiments.plot --runs=runs/pong-dqn-0,runs/pong-dqn-1 \\
      --reference=experiments/results/published/dopamine_dqn.csv \\
      --output=pong

Writes OUTPUT.csv, the training return of every run in each bin of frames, and
OUTPUT.png, their mean over the runs with a band of one standard deviation. The
runs may have different seeds, but only one game. Runs of robots go the same
way, by env steps and without bins, and with --column=eval_return; and runs on
data sets by gradient steps, with any column.

  python -m experiments.plot --runs=runs/cartpole-ablation --output=ablation

The folder of a sweep holds many runs: its metrics.csv has a column `seed`. Of
--column are then written OUTPUT.png, a curve for each setting, the mean
over seeds with a band of 95 % t intervals; OUTPUT-final.png, what each setting
comes to, the mean over the last tenth of a run; OUTPUT.csv,
these numbers and mean heights of whole curves (areas); and OUTPUT-curves.csv,
every run's curve. A rate tau stands at its matched period 2 / tau - 1, that of
copies on average as old.

  python -m experiments.plot --panel=twin runs/cartpole-ablation

Of runs that were trained with --panel_period the twin's panel is drawn: its
age, distance, drift and so on, each in a small picture of its own, with a line
for each setting, or run if there are several, and of one alone for each layer
too. OUTPUT is RUN/curve-panel if it is not given.
"""

from collections.abc import Sequence
import csv
import dataclasses
import io
import pathlib
import re
from typing import Any, NamedTuple
import warnings

import numpy as np

from experiments import flag_files, sweep_figures
from experiments.flags import (
  POSITIVE,
  RunError,
  UsageError,
  one_of,
  option,
  path_option,
  run,
)
from siamrl.report import panel
from siamrl.report.curves import Curve, plot_curve
from siamrl.report.metrics import (
  RUN_COLUMN,
  Table,
  by_run,
  group_rows,
  read_metrics,
)
from siamrl.report.run_folder import RunFolder, write_atomically
from siamrl.report.statistics import area_under_curve, final_mean, over_runs


# What is drawn of runs that are no sweep, and its name beside the axis.
_RETURNS = {
  'train_return': 'training return',
  'eval_return': 'evaluation return',
}
# Of these the first that there is, if --column is not given.
_HEADLINES = ('train_return', 'grid_return', 'eval_return', 'loss')


@dataclasses.dataclass(frozen=True)
class PlotConfig:
  """The options."""

  runs: str | None = path_option(
    None,
    'Run folders, separated by commas; or after the flags, without a name, '
    'separated by spaces.',
    several=True,
  )
  output: str | None = path_option(None, 'Where to write, without an ending.')
  panel: str | None = option(
    None,
    'Draws what the twin did instead of returns',
    one_of(('twin',)),
  )
  reference: str | None = path_option(
    None,
    'CSV file with the columns game and frames_millions, or environment '
    '(without its version) and env_steps; return_mean; and return_sd. The rows '
    'of what was played are drawn.',
  )
  reference_label: str = option('published', 'Its name in the legend.')
  label: str = option('siamrl', 'The name of the runs in the legend.')
  bin_frames: int | None = option(
    None,
    'Frames over which returns of a game are averaged; a million if not given. '
    'Else each iteration is drawn.',
    POSITIVE,
  )
  column: str | None = option(
    None,
    'What is drawn: train_return if not given, or eval_return; of a sweep and '
    'of runs on data sets any column. If not given, of representations losses '
    'and accuracies, and of data sets the return if there is one.',
  )


def main(config: PlotConfig) -> None:
  """Draws as the options say."""
  try:
    _plot(config)
  except (OSError, ImportError) as error:
    raise RunError(str(error)) from error


def _plot(config: PlotConfig) -> None:
  if config.runs is None:
    raise UsageError('--runs must be given')
  folders = [RunFolder(pathlib.Path(p)) for p in config.runs.split(',')]
  if config.output is None:
    if config.panel is None or len(folders) > 1:
      raise UsageError('--output must be given')
    output = folders[0].curve.with_suffix('')
    config = dataclasses.replace(config, output=f'{output}-panel')
  elif not pathlib.Path(f'{config.output}.png').parent.is_dir():
    raise UsageError(
      f'--output={config.output} must lie in a folder that exists'
    )
  if config.panel is not None:
    _plot_panel(config, folders)
    return
  if any(_is_sweep(folder) for folder in folders):
    _plot_sweep(config, _only(config, folders))
    return
  tasks = {_task(folder) for folder in folders}
  if len(tasks) > 1:
    names = ', '.join(sorted(task.name for task in tasks))
    raise UsageError(
      f'--runs={config.runs} must be of one game or environment, not {names}'
    )
  task = tasks.pop()
  if config.reference is not None and not task.acts:
    raise UsageError('--reference must not be given for runs on data sets')
  column = _column(config, task, folders[0])
  size = config.bin_frames or (1_000_000 if task.is_game else None)
  curves = [
    _rows(folder, task.clock, column)
    if size is None
    else _binned(folder, column, size)
    for folder in folders
  ]
  ends = max((curve[0] for curve in curves), key=len)
  table = np.full((len(ends), len(curves)), np.nan)
  for number, (_, returns) in enumerate(curves):
    table[: len(returns), number] = returns
  with warnings.catch_warnings():
    # A bin in which no run ended an episode is a gap in the curve.
    warnings.filterwarnings('ignore', category=RuntimeWarning)
    mean = np.nanmean(table, axis=1)
    spread = np.nanstd(table, axis=1) if len(folders) > 1 else None
  runs = f'{len(folders)} seeds' if len(folders) > 1 else '1 seed'
  references = _references(config, task, ends[-1])
  _write_csv(pathlib.Path(f'{config.output}.csv'), task, folders, ends, table)
  plot_curve(
    f'{config.output}.png',
    [Curve(f'{config.label}, {runs}', ends, mean, spread)],
    references,
    title=task.name,
    x_label=task.clock.replace('_', ' '),
    y_label=_RETURNS.get(column, column.replace('_', ' ')),
  )


def _column(config: PlotConfig, task: '_Task', folder: RunFolder) -> str:
  """The column that is drawn."""
  columns = list(_RETURNS)
  if not task.acts:
    columns = list(_read(folder))
  preferred = [name for name in _HEADLINES if name in columns]
  column = config.column or preferred[0]
  if column not in columns:
    raise UsageError(f'--column={column} must be one of {", ".join(columns)}')
  return column


def _is_sweep(folder: RunFolder) -> bool:
  return folder.metrics.exists() and RUN_COLUMN in read_metrics(folder.metrics)


def _only(config: PlotConfig, folders: Sequence[RunFolder]) -> RunFolder:
  """The one folder that there may be of a sweep."""
  if len(folders) > 1:
    raise UsageError(
      f'--runs={config.runs} must be one folder where it is of a sweep'
    )
  return folders[0]


def _plot_panel(config: PlotConfig, folders: Sequence[RunFolder]) -> None:
  """Draws what the twin did in a run, in several, or in a sweep."""
  if config.reference is not None:
    raise UsageError('--reference must not be given for the panel')
  known = [_flags_of(folder) for folder in folders]
  tables = [read_metrics(folder.metrics) for folder in folders]
  for folder, table in zip(folders, tables, strict=True):
    if not panel.is_measured(table):
      raise RunError(
        f'{folder.path} has no measurements of the twin: train with '
        '--panel_period=1 to have them'
      )
  if any(RUN_COLUMN in table for table in tables):
    _only(config, folders)
  if len(folders) == 1:
    title = folders[0].path.resolve().name
    sweep_figures.draw_panel(
      tables[0], known[0], str(config.output), title=title
    )
    return
  x = sweep_figures.clock_of(tables[0])
  panel.plot_panel(
    f'{config.output}.png',
    _together(folders, tables),
    x=x,
    by=['run'],
    x_label=x.replace('_', ' '),
  )


def _together(folders: Sequence[RunFolder], tables: Sequence[Table]) -> Table:
  """The rows of several runs, with the name of each in a column `run`."""
  lengths = [len(next(iter(table.values()))) for table in tables]
  names = dict.fromkeys(name for table in tables for name in table)
  together = {
    name: np.concatenate(
      [
        table.get(name, np.full(length, np.nan))
        for table, length in zip(tables, lengths, strict=True)
      ]
    )
    for name in names
  }
  # Folders of one name are told apart by their paths.
  texts = [folder.path.resolve().name for folder in folders]
  if len(set(texts)) < len(texts):
    texts = [str(folder.path) for folder in folders]
  return together | {'run': np.repeat(texts, lengths)}


def _flags_of(folder: RunFolder) -> dict[str, str]:
  """The flags that a run was started with."""
  known = folder.read_flags()
  if known is None:
    raise UsageError(f'--runs={folder.path} must be the folder of a run')
  if not folder.metrics.exists():
    raise RunError(f'{folder.path} has no rows of metrics yet')
  return known


def _plot_sweep(config: PlotConfig, folder: RunFolder) -> None:
  """Draws the settings of a folder in long form."""
  known = _flags_of(folder)
  if config.reference is not None:
    raise UsageError('--reference must not be given for a sweep')
  table = read_metrics(folder.metrics)
  x = sweep_figures.clock_of(table)
  if not len(table.get(x, ())):
    raise RunError(f'{folder.path} has no rows of metrics yet')
  numbers = [n for n, values in table.items() if values.dtype.kind != 'U']
  column = config.column or sweep_figures.headline(table)
  if column not in numbers:
    raise UsageError(f'--column={column} must be one of {", ".join(numbers)}')
  swept = sweep_figures.swept(table, known)
  _write_settings(config, table, x, column, swept)
  _write_curves(config, table, x, column, swept)
  sweep_figures.draw(
    table,
    known,
    str(config.output),
    column=config.column,
    title=folder.path.resolve().name,
  )


def _write_settings(
  config: PlotConfig, table: Table, x: str, column: str, swept: list[str]
) -> None:
  """A row for each setting: its estimates, and the ends of their intervals."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  names = [f'{n}{e}' for n in ('final', 'area') for e in ('', '_low', '_high')]
  writer.writerow([*swept, 'seeds', *names])
  for key, group in group_rows(table, swept).items():
    clock, values = by_run(group, x, column)
    numbers = [
      number
      for summary in (final_mean, area_under_curve)
      for number in over_runs(summary(clock, values))
    ]
    writer.writerow([*_cells(key), len(values), *(f'{n:.6g}' for n in numbers)])
  write_atomically(
    pathlib.Path(f'{config.output}.csv'), text.getvalue().encode()
  )


def _write_curves(
  config: PlotConfig, table: Table, x: str, column: str, swept: list[str]
) -> None:
  """A row for each run: its setting, its seed, and its curve."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  clock = np.unique(table[x])
  writer.writerow([*swept, RUN_COLUMN, *(f'{x}={value}' for value in clock)])
  for key, run_ in group_rows(table, [*swept, RUN_COLUMN]).items():
    known = dict(zip(run_[x], run_[column], strict=True))
    values = [known.get(value, np.nan) for value in clock]
    writer.writerow([*_cells(key), *(f'{value:.5g}' for value in values)])
  write_atomically(
    pathlib.Path(f'{config.output}-curves.csv'), text.getvalue().encode()
  )


def _cells(key: Sequence[Any]) -> list[str]:
  """A setting for a CSV file."""
  return [
    f'{value:.10g}' if isinstance(value, (int, float)) else value or ''
    for value in key
  ]


class _Task(NamedTuple):
  """What a run plays, and the clock of its curve."""

  name: str
  clock: str  # a column of its metrics

  @property
  def is_game(self) -> bool:
    return self.clock == 'frames'

  @property
  def acts(self) -> bool:
    """Whether it plays rather than learn from a data set."""
    return self.clock != 'gradient_steps'


def _task(folder: RunFolder) -> _Task:
  known = _flags_of(folder)
  if 'game' in known:
    return _Task(known['game'], 'frames')
  if 'environment' in known:
    acts = 'env_steps' in _read(folder)
    return _Task(
      known['environment'], 'env_steps' if acts else 'gradient_steps'
    )
  raise UsageError(
    f'--runs={folder.path} must be of a game, an environment or a data set'
  )


def _read(folder: RunFolder, column: str | None = None) -> Table:
  """The rows of a run, of which there are some, with the column."""
  metrics = read_metrics(folder.metrics)
  if not metrics or not len(next(iter(metrics.values()))):
    raise RunError(f'{folder.path} has no rows of metrics yet')
  if column is not None and column not in metrics:
    raise RunError(f'{folder.path} has no column {column}')
  return metrics


def _rows(
  folder: RunFolder, clock: str, column: str
) -> tuple[np.ndarray, np.ndarray]:
  """The clock at the ends of iterations, and the column."""
  metrics = _read(folder, column)
  return metrics[clock], metrics[column]


def _binned(
  folder: RunFolder, column: str, bin_frames: int
) -> tuple[np.ndarray, np.ndarray]:
  """Ends of the full bins in frames, and the mean return of their episodes."""
  metrics = _read(folder, column)
  episodes = metrics[column.replace('_return', '_episodes')]
  bins = np.ceil(metrics['frames'] / bin_frames).astype(int)
  full = int(metrics['frames'][-1] // bin_frames)
  if not full:
    raise RunError(
      f'{folder.path} has {metrics["frames"][-1]:,} frames, less than '
      f'--bin_frames={bin_frames:,}'
    )
  returns = []
  for number in range(1, full + 1):
    rows = (bins == number) & (episodes > 0)
    returns.append(
      np.average(metrics[column][rows], weights=episodes[rows])
      if rows.any()
      else np.nan
    )
  return bin_frames * np.arange(1, full + 1), np.array(returns)


def _references(config: PlotConfig, task: _Task, last: int) -> list[Curve]:
  """The published curve as far as the runs go; one point more if there is."""
  if config.reference is None:
    return []
  try:
    lines = flag_files.find(config.reference).read_text(encoding='utf-8')
  except OSError as error:
    raise UsageError(
      f'--reference={config.reference} cannot be read: {error.strerror}'
    ) from error
  if task.is_game:
    kind, name = 'game', task.name.replace('_', '')
    clock, unit = 'frames_millions', 1e6
  else:
    # Versions differ in what few curves show; the file says which it is of.
    kind, name = 'environment', re.sub(r'^gymnasium:|-v\d+$', '', task.name)
    clock, unit = 'env_steps', 1.0
  rows = [
    row
    for row in csv.DictReader(
      line for line in lines.splitlines() if not line.startswith('#')
    )
    if row.get(kind) == name
  ]
  if not rows:
    raise UsageError(
      f'--reference={config.reference} must hold the {kind} {name}'
    )
  x = np.array([unit * float(row[clock]) for row in rows])
  shown = np.arange(len(rows)) <= np.searchsorted(x, last)
  mean, spread = (
    np.array([float(row[name]) for row in rows])
    for name in ('return_mean', 'return_sd')
  )
  return [Curve(config.reference_label, x[shown], mean[shown], spread[shown])]


def _write_csv(
  path: pathlib.Path,
  task: _Task,
  folders: list[RunFolder],
  ends: np.ndarray,
  table: np.ndarray,
) -> None:
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow([task.clock, *(folder.path.name for folder in folders)])
  writer.writerows(
    [int(end), *(f'{value:.6g}' for value in row)]
    for end, row in zip(ends, table, strict=True)
  )
  write_atomically(path, text.getvalue().encode())


if __name__ == '__main__':
  run(PlotConfig, __doc__ or '', main, listed='runs')
