"""Figures of finished or running runs, of sweeps and of the twin's panel.

  python -m experiments.plot --runs=runs/pong-dqn-0,runs/pong-dqn-1 \\
      --reference=experiments/results/published/dopamine_dqn.csv \\
      --output=pong

writes OUTPUT.png, the mean training return over the runs with a band of one
standard deviation, and OUTPUT.csv with a column for each folder. Runs that
differ only in the seed, or in where they ran, are seeds of one configuration;
each other configuration has a line of its own. Returns of a game are averaged
over bins of a million frames (--bin_frames). All runs are of one game,
environment or data set. Robots need --column=eval_return; runs on data sets
take any column.

  python -m experiments.plot --runs=runs/cartpole-ablation --output=ablation

The folder of a sweep holds many runs: its metrics.csv has a column `seed`. For
--column this writes:

  OUTPUT.png         a curve for each setting: the mean over seeds, with a band
                     of 95 % t intervals
  OUTPUT-final.png   the result of each setting: the mean over the last tenth of
                     a run, or of the time that all runs have reached
  OUTPUT.csv         these numbers, and the mean heights of curves (areas)
  OUTPUT-curves.csv  a row for each run and value of the clock, below the flags

A setting with a rate tau is drawn at the period 2 / tau - 1, at which copies
are as old on average. With more than eight settings, those that differ in
--facet have axes of their own; --color names the option that color shows.

  python -m experiments.plot --panel=twin runs/cartpole-ablation

draws the panel of runs that were trained with --panel_period: age, distance,
drift and so on, a small picture each, with a line for each setting or run; a
single run has a line for each layer, too. OUTPUT is RUN/curve-panel if it is
not given.

  python -m experiments.plot --runs=experiments/results/twin_rate-curves.csv \\
      --output=twin_rate

redraws a results file, which is a table such as OUTPUT-curves.csv, of a sweep
or of one run, or a table of the lab. experiments/results/README.md has the
command for each.
"""

from collections.abc import Sequence
import csv
import dataclasses
import io
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from experiments import run_figures
from siamrl.report import lab as lab_figures, sweep as sweep_figures
from experiments.config import flag_files
from experiments.config.declaring import (
  POSITIVE,
  RunError,
  UsageError,
  one_of,
  option,
  path_option,
)
from experiments.config.executing import run
from experiments.run_figures import Source
from siamrl import twins
from siamrl.report import averages, panel
from siamrl.report.arrangement import MOST_LINES
from siamrl.report.curves import Curve, plot_curve
from siamrl.report.drawing import count_note
from siamrl.report.metrics import (
  RUN_COLUMN,
  Table,
  by_run,
  group_rows,
  last_rows,
)
from siamrl.report.results import write_results
from siamrl.report.run_folder import RunFolder, write_atomically
from siamrl.report.statistics import area_under_curve, final_mean, over_runs


# What is drawn of runs that are no sweep, and its name beside the axis.
_RETURNS = {
  'train_return': 'training return',
  'eval_return': 'evaluation return',
}
# More than a picture can show, and few enough to be averaged in seconds.
_PUBLISHED_BIN = 1_000_000  # frames, of published curves
_MOST_BINS = 100_000
# Of these the first that there is, if --column is not given.
_HEADLINES = ('train_return', 'grid_return', 'eval_return', 'loss')


@dataclasses.dataclass(frozen=True)
class PlotConfig:
  """The options."""

  runs: str | None = path_option(
    None,
    'Run folders and results files, separated by commas; or after the flags, '
    'without a name, separated by spaces.',
    several=True,
  )
  output: str | None = path_option(
    None, 'Path of the files to write, without an ending.'
  )
  panel: str | None = option(
    None,
    'Panel to draw instead of returns',
    one_of(('twin',)),
  )
  reference: str | None = path_option(
    None,
    'CSV file of a published curve, with the columns game and frames_millions, '
    'or environment (without its version) and env_steps; return_mean; and '
    'return_sd. The rows of the same game or environment are drawn',
  )
  reference_label: str = option(
    'published', 'Name of the reference in the legend.'
  )
  label: str = option('siamrl', 'Name of the runs in the legend.')
  bin_frames: int | None = option(
    None,
    'Frames of a bin over which returns of a game are averaged; a million if '
    'not given. Of shorter runs, and of other environments, each iteration is '
    'drawn.',
    POSITIVE,
  )
  column: str | None = option(
    None,
    'Column to draw: train_return or eval_return; of a sweep or of runs on '
    'data sets any column. If not given, it is train_return; losses and '
    'accuracies of representations; the return of runs on data sets, if they '
    'have one.',
  )
  facet: str | None = option(
    None,
    'Swept options, separated by commas, whose values have axes of their own. '
    'If not given, some are chosen where there are more than eight settings.',
  )
  color: str | None = option(
    None,
    'Swept options, separated by commas, that color shows; if not given, the '
    "twin's period and rate, or its rule.",
  )


def main(config: PlotConfig) -> None:
  """Draws as the options say."""
  try:
    _plot(config)
  except OSError as error:
    raise RunError(f'--runs={config.runs}: {error}') from error
  except ImportError as error:
    raise RunError(str(error)) from error


def _plot(config: PlotConfig) -> None:
  if config.runs is None:
    raise UsageError('--runs must be given')
  sources = run_figures.read_sources(config.runs)
  for source in sources:
    if not lab_figures.is_lab(source.table) and (
      set(sweep_figures.CLOCKS).isdisjoint(source.table)
    ):
      raise UsageError(
        f'--runs={source.path} must have a column of '
        + ', '.join(sweep_figures.CLOCKS)
      )
  if config.output is None:
    if config.panel is None or len(sources) > 1 or not sources[0].is_folder:
      raise UsageError('--output must be given')
    output = RunFolder(sources[0].path).curve.with_suffix('')
    config = dataclasses.replace(config, output=f'{output}-panel')
  elif not pathlib.Path(f'{config.output}.png').parent.is_dir():
    raise UsageError(
      f'--output={config.output} must lie in a folder that exists'
    )
  if config.panel is not None:
    _plot_panel(config, sources)
  elif any(lab_figures.is_lab(source.table) for source in sources):
    _plot_lab(config, _only(config, sources, 'the lab'))
  elif any(_is_sweep(source) for source in sources):
    _plot_sweep(config, _only(config, sources, 'a sweep'))
  else:
    _plot_runs(config, sources)


def _plot_lab(config: PlotConfig, source: Source) -> None:
  """Draws a table of the lab again."""
  _refuse(config, 'of the lab', 'reference', 'column', 'facet', 'color')
  title = source.flags.get('problem', source.name)
  try:
    lab_figures.draw_again(
      pathlib.Path(f'{config.output}.png'), source.table, title
    )
  except ValueError as error:
    raise RunError(f'{source.path} cannot be drawn: {error}') from error


def _plot_runs(config: PlotConfig, sources: Sequence[Source]) -> None:
  """Draws runs that are no sweep, beside a published curve."""
  _refuse(config, 'but those of sweeps', 'facet', 'color')
  tasks = {_task(source) for source in sources}
  if len(tasks) > 1:
    names = ', '.join(sorted(task.name for task in tasks))
    raise UsageError(
      f'--runs={config.runs} must be of one game or environment, not {names}'
    )
  task = tasks.pop()
  if config.reference is not None and not task.acts:
    raise UsageError('--reference must not be given for runs on data sets')
  column = _column(config, task, sources[0])
  size = config.bin_frames or _default_bin(task, sources)
  curves = [
    _rows(source, task.clock, column)
    if size is None
    else _binned(source, column, size)
    for source in sources
  ]
  last = max(clock[-1] for clock, _ in curves)
  references = _references(config, task, last)
  groups = run_figures.configurations(sources)
  if len(groups) > MOST_LINES:
    differing = ', '.join(f'--{n}' for n in run_figures.differences(sources))
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
        + ', '.join(str(sources[i].path) for i in members)
      )
    label = _seeds(name, clock[met], values[:, met])
    series.append(averages.mean_curve(label, clock[met], values[:, met]))
    if len(members) > 1:
      faint += [Curve(label, *curves[i]) for i in members]
    print(f'{label}: {", ".join(str(sources[i].path) for i in members)}')
  if len(groups) > 1:
    for name in run_figures.differences(sources):
      found = [
        f'{sources[members[0]].flags.get(name, "(absent)")}'
        for members in groups.values()
      ]
      print(f'  --{name}: {" | ".join(found)}')
  clock, values, _ = averages.side_by_side(curves)
  optimum = sources[0].table.get('grid_optimum')
  if column == 'grid_return' and optimum is not None:
    references.append(Curve('best possible', None, optimum[-1]))
  if any(source.is_folder for source in sources):
    path = pathlib.Path(f'{config.output}.csv')
    _write_csv(path, task, sources, clock, values)
  banded = [c for c in (*series, *references) if c.spread is not None]
  plot_curve(
    f'{config.output}.png',
    series,
    references,
    faint=faint,
    title=task.name,
    x_label=task.clock.replace('_', ' '),
    y_label=_RETURNS.get(column, column.replace('_', ' ')),
    explanation='mean and standard\ndeviation over seeds' if banded else '',
  )


def _seeds(name: str, clock: np.ndarray, values: np.ndarray) -> str:
  """The name of a line, with the number of its runs."""
  known = int(np.isfinite(values).any(axis=1).sum())
  words = f'{known} seeds' if known != 1 else '1 seed'
  return f'{name}, {words}{count_note(clock, values)}'


def _refuse(config: PlotConfig, what: str, *names: str) -> None:
  """Raises UsageError for options that mean nothing to these runs."""
  for name in names:
    if getattr(config, name) is not None:
      raise UsageError(f'--{name} must not be given for runs {what}')


def _column(config: PlotConfig, task: '_Task', source: Source) -> str:
  """The column that is drawn."""
  columns = list(_RETURNS)
  if not task.acts:
    columns = list(source.table)
  preferred = [name for name in _HEADLINES if name in columns]
  column = config.column or preferred[0]
  if column not in columns:
    raise UsageError(f'--column={column} must be one of {", ".join(columns)}')
  return column


def _is_sweep(source: Source) -> bool:
  """Whether there are many runs, or could be: a results file may be of one."""
  if RUN_COLUMN not in source.table:
    return False
  return source.is_folder or RUN_COLUMN not in source.flags


def _only(config: PlotConfig, sources: Sequence[Source], what: str) -> Source:
  """The one source that there may be of a sweep or of the lab."""
  if len(sources) > 1:
    raise UsageError(
      f'--runs={config.runs} must be one folder where it is of {what}'
    )
  return sources[0]


def _look(config: PlotConfig, swept: Sequence[str]) -> sweep_figures.Look:
  """How settings are told apart, as the options say."""
  names: dict[str, list[str] | None] = {}
  for option_ in ('facet', 'color'):
    text = getattr(config, option_)
    names[option_] = None if text is None else text.split(',')
    for name in names[option_] or ():
      if name not in swept:
        raise UsageError(
          f'--{option_}={text} must be of what is swept: '
          f'{", ".join(swept) or "nothing"}'
        )
  return sweep_figures.Look(
    names['facet'], names['color'] or (), twins.with_period()
  )


def _plot_panel(config: PlotConfig, sources: Sequence[Source]) -> None:
  """Draws what the twin did in a run, in several, or in a sweep."""
  if config.reference is not None:
    raise UsageError('--reference must not be given for the panel')
  for source in sources:
    if not panel.is_measured(source.table):
      raise RunError(
        f'{source.path} has no measurements of the twin: train with '
        '--panel_period=1 to have them'
      )
  if any(RUN_COLUMN in source.table for source in sources):
    _only(config, sources, 'a sweep')
  if len(sources) == 1:
    source = sources[0]
    swept = sweep_figures.swept(source.table, source.flags)
    sweep_figures.draw_panel(
      _newest(source),
      source.flags,
      str(config.output),
      title=source.name,
      look=_look(config, swept),
    )
    return
  _refuse(config, 'but those of sweeps', 'facet', 'color')
  if len(sources) > MOST_LINES:
    raise UsageError(
      f'--runs={config.runs} must be at most {MOST_LINES} runs, which can be '
      f'told apart, not {len(sources)}'
    )
  clocks = {sweep_figures.clock_of(source.table) for source in sources}
  if len(clocks) > 1:
    raise UsageError(
      f'--runs={config.runs} must have one clock, not '
      f'{" and ".join(sorted(clocks))}'
    )
  (x,) = clocks
  panel.plot_panel(
    f'{config.output}.png',
    _together(sources),
    x=x,
    by=['run'],
    x_label=x.replace('_', ' '),
  )


def _newest(source: Source) -> Table:
  """The rows of a run or a sweep, each the last that was written."""
  x = sweep_figures.clock_of(source.table)
  by = sweep_figures.swept(source.table, source.flags)
  seed = [RUN_COLUMN] if RUN_COLUMN in source.table else []
  return last_rows(source.table, [*by, *seed, x])


def _together(sources: Sequence[Source]) -> Table:
  """The rows of several runs, with the name of each in a column `run`."""
  tables = [_newest(source) for source in sources]
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
  return together | {'run': np.repeat(_names(sources), lengths)}


def _names(sources: Sequence[Source]) -> list[str]:
  """Folders of one name are told apart by their paths."""
  names = [source.name for source in sources]
  if len(set(names)) < len(names):
    names = [str(source.path) for source in sources]
  return names


def _plot_sweep(config: PlotConfig, source: Source) -> None:
  """Draws the settings of a folder in long form, or of a results file."""
  if config.reference is not None:
    raise UsageError('--reference must not be given for a sweep')
  table = _newest(source)
  x = sweep_figures.clock_of(table)
  numbers = [n for n, values in table.items() if values.dtype.kind != 'U']
  column = config.column or sweep_figures.headline(table)
  if column not in numbers:
    raise UsageError(f'--column={column} must be one of {", ".join(numbers)}')
  if config.column is not None and not np.isfinite(table[column]).any():
    raise UsageError(
      f'--column={column} must have numbers, and has none in {source.path}'
    )
  swept = sweep_figures.swept(table, source.flags)
  look = _look(config, swept)
  _write_settings(config, table, x, column, swept)
  if source.is_folder:
    _write_curves(config, source, table, x, swept)
  sweep_figures.draw(
    table,
    source.flags,
    str(config.output),
    column=config.column,
    title=source.name,
    look=look,
  )


def _write_settings(
  config: PlotConfig, table: Table, x: str, column: str, swept: list[str]
) -> None:
  """A row for each setting: its estimates, and the ends of their intervals."""
  table, time = sweep_figures.up_to_common_end(table, x, swept)
  text = io.StringIO()
  if time:
    print(f'not all runs are equally long: {time}{x} of each count at the end')
    text.write(f'# of {time}{x}\n')
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
  config: PlotConfig, source: Source, table: Table, x: str, swept: list[str]
) -> None:
  """A results file: a row for each run and value of the clock."""
  columns = sweep_figures.drawn_columns(table, config.column)
  rows = [
    [*_cells(key), f'{time}', *(f'{value:.6g}' for value in values)]
    for key, run_ in group_rows(table, [*swept, RUN_COLUMN]).items()
    for time, *values in zip(
      run_[x].tolist(), *(run_[name] for name in columns), strict=True
    )
  ]
  flags_ = {
    name: value
    for name, value in source.flags.items()
    if name not in (*swept, *run_figures.OF_RUNS)
  }
  write_results(
    f'{config.output}-curves.csv',
    rows,
    [*swept, RUN_COLUMN, x, *columns],
    flags_,
  )


def _cells(key: Sequence[Any]) -> list[str]:
  """A setting for a CSV file."""
  return [
    f'{value:.10g}' if isinstance(value, (int, float)) else value or ''
    for value in key
  ]


class _Task(NamedTuple):
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


def _task(source: Source) -> _Task:
  if 'game' in source.flags:
    return _Task(source.flags['game'], 'frames')
  if 'environment' in source.flags:
    acts = 'env_steps' in source.table
    return _Task(
      source.flags['environment'], 'env_steps' if acts else 'gradient_steps'
    )
  raise UsageError(
    f'--runs={source.path} must be of a game, an environment or a data set'
  )


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


def _default_bin(task: _Task, sources: Sequence[Source]) -> int | None:
  """Frames of a bin, as published curves have them; None for iterations."""
  if not task.is_game:
    return None
  for source in sources:
    _check_columns(source, 'frames')
  shortest = min(source.table['frames'][-1] for source in sources)
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
  sources: Sequence[Source],
  clock: np.ndarray,
  values: np.ndarray,
) -> None:
  """A row for each value of the clock, a column for each run."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow([task.clock, *_names(sources)])
  writer.writerows(
    [int(time), *(f'{value:.6g}' for value in row)]
    for time, row in zip(clock, values.T, strict=True)
  )
  write_atomically(path, text.getvalue().encode())


if __name__ == '__main__':
  run(PlotConfig, __doc__ or '', main, listed='runs')
