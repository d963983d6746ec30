"""Figures and tables of sweeps: curves, final results, the twin's panel."""

from collections.abc import Mapping, Sequence
import csv
import io
import pathlib
from typing import Any

import numpy as np

from experiments.config.declaring import RunError, UsageError
from experiments.engines.sweep_folders import title_of
from experiments.figures import sources
from experiments.figures.sources import Source
from siamrl import twins
from siamrl.report import consistency, panel, sweep as sweep_figures
from siamrl.report.arrangement import MOST_LINES
from siamrl.report.loading import OF_FOLDERS
from siamrl.report.metrics import (
  PLAYED,
  RUN_COLUMN,
  Table,
  by_run,
  group_rows,
  last_rows,
)
from siamrl.report.results import write_results
from siamrl.report.run_folder import write_atomically
from siamrl.report.statistics import area_under_curve, final_mean, over_runs


def is_sweep(source: Source) -> bool:
  """Whether there are many runs, or could be: a results file may be of one."""
  if RUN_COLUMN not in source.table:
    return False
  return source.is_folder or RUN_COLUMN not in source.flags


def _title(source: Source) -> str:
  return title_of(source.path) if source.is_folder else source.name


def draw(config: Any, source: Source) -> None:
  """Draws the settings of a folder in long form, or of a results file."""
  if config.reference is not None:
    raise UsageError('--reference must not be given for a sweep')
  table = newest(source)
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
    title=_title(source),
    look=look,
  )


def _write_settings(
  config: Any, table: Table, x: str, column: str, swept: list[str]
) -> None:
  """A row for each setting: its estimates, and the ends of their intervals."""
  table, time = sweep_figures.up_to_common_end(table, x, swept)
  text = io.StringIO()
  if time:
    print(f'not all runs are equally long: {time}{x} of each count at the end')
    text.write(f'# of {time}{x}\n')
  writer = csv.writer(text, lineterminator='\n')
  groups = {
    key: by_run(group, x, column)
    for key, group in group_rows(table, swept).items()
  }
  spreads = _spreads(swept, groups)
  names = [f'{n}{e}' for n in ('final', 'area') for e in ('', '_low', '_high')]
  writer.writerow([*swept, 'seeds', *names, *['rank_spread'] * bool(spreads)])
  for key, (clock, values) in groups.items():
    numbers = [
      number
      for summary in (final_mean, area_under_curve)
      for number in over_runs(summary(clock, values))
    ]
    cells = [f'{n:.6g}' for n in numbers]
    if spreads:
      spread = spreads.get(_setting(swept, key))
      cells.append('' if spread is None else f'{spread:.6g}')
    writer.writerow([*_cells(key), len(values), *cells])
  if spreads:
    score = np.mean(list(spreads.values()))
    print(consistency_words(float(score), len(spreads)))
  write_atomically(
    pathlib.Path(f'{config.output}.csv'), text.getvalue().encode()
  )


def _setting(swept: Sequence[str], key: Sequence[Any]) -> tuple[Any, ...]:
  """The values of a setting, without its task."""
  return tuple(
    value for name, value in zip(swept, key, strict=True) if name not in PLAYED
  )


def _task(swept: Sequence[str], key: Sequence[Any]) -> tuple[Any, ...]:
  pairs = zip(swept, key, strict=True)
  return tuple(value for name, value in pairs if name in PLAYED)


def _spreads(
  swept: Sequence[str],
  groups: Mapping[tuple, tuple[np.ndarray, np.ndarray]],
) -> dict[tuple, float]:
  """The rank spreads of settings by their final returns, over tasks."""
  return consistency.spreads_of(
    {
      (_setting(swept, key), _task(swept, key)): final_mean(*group)
      for key, group in groups.items()
    }
  )


def consistency_words(score: float, settings: int) -> str:
  """A line on the THC score."""
  return (
    f'THC {score:.3g}: how far the ranks of the {settings} settings differ '
    'between tasks (0: not at all)'
  )


def _write_curves(
  config: Any, source: Source, table: Table, x: str, swept: list[str]
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
    if name not in (*swept, *OF_FOLDERS)
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


def panes_and_colors(
  config: Any, swept: Sequence[str]
) -> tuple[list[str] | None, Sequence[str]]:
  """The options of panes and of color, as asked for.

  Args:
    config: has `facet` and `color`.
    swept: the options that they may name.

  Raises:
    UsageError: they name another one.
  """
  asked: dict[str, list[str] | None] = {}
  for option in ('facet', 'color'):
    text = getattr(config, option)
    asked[option] = None if text is None else text.split(',')
    for name in asked[option] or ():
      if name not in swept:
        raise UsageError(
          f'--{option}={text} must be of what is swept: '
          f'{", ".join(swept) or "nothing"}'
        )
  return asked['facet'], asked['color'] or ()


def _look(config: Any, swept: Sequence[str]) -> sweep_figures.Look:
  """How settings are told apart, as the options say."""
  facet, color = panes_and_colors(config, swept)
  return sweep_figures.Look(facet, color, twins.with_period())


def draw_panel(config: Any, found: Sequence[Source]) -> None:
  """Draws what the twin did in a run, in several, or in a sweep."""
  if config.reference is not None:
    raise UsageError('--reference must not be given for the panel')
  for source in found:
    if not panel.is_measured(source.table):
      raise RunError(
        f'{source.path} has no measurements of the twin: train with '
        '--panel_period=1 to have them'
      )
  if any(RUN_COLUMN in source.table for source in found):
    sources.only(config, found, 'a sweep')
  if len(found) == 1:
    source = found[0]
    swept = sweep_figures.swept(source.table, source.flags)
    sweep_figures.draw_panel(
      newest(source),
      source.flags,
      str(config.output),
      title=_title(source),
      look=_look(config, swept),
    )
    return
  sources.refuse(config, 'but those of sweeps', 'facet', 'color')
  if len(found) > MOST_LINES:
    raise UsageError(
      f'--runs={config.runs} must be at most {MOST_LINES} runs, which can be '
      f'told apart, not {len(found)}'
    )
  clocks = {sweep_figures.clock_of(source.table) for source in found}
  if len(clocks) > 1:
    raise UsageError(
      f'--runs={config.runs} must have one clock, not '
      f'{" and ".join(sorted(clocks))}'
    )
  (x,) = clocks
  panel.plot_panel(
    f'{config.output}.png',
    _together(found),
    x=x,
    by=['run'],
    x_label=x.replace('_', ' '),
  )


def newest(source: Source) -> Table:
  """The rows of a run or a sweep, each the last that was written."""
  x = sweep_figures.clock_of(source.table)
  by = sweep_figures.swept(source.table, source.flags)
  seed = [RUN_COLUMN] if RUN_COLUMN in source.table else []
  return last_rows(source.table, [*by, *seed, x])


def _together(found: Sequence[Source]) -> Table:
  """The rows of several runs, with the name of each in a column `run`."""
  tables = [newest(source) for source in found]
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
  return together | {'run': np.repeat(sources.names(found), lengths)}
