"""Figures of a sweep: its curves, its final results, its panel."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
import math
from typing import Any, NamedTuple

import numpy as np

from siamrl.report import panel, representation
from siamrl.report.curves import plot_final, plot_sweep
from siamrl.report.metrics import (
  CLOCKS,
  PLAYED,
  RUN_COLUMN,
  Table,
  common_end,
  group_rows,
)

# The numeric options of the twin, a sweep's main question.
_TWIN_NUMBERS = ('target_period', 'tau')
_TWIN_NAMES = ('target_update', 'target_paths', 'target_form')

Position = Callable[[Mapping[str, Any]], float | None]


def swept(table: Table, flags: Mapping[str, str]) -> list[str]:
  """Returns the options that a sweep varies, in the order of its columns.

  Args:
    table: table in long form.
    flags: flags of the sweep's folder, with comma-separated lists.
  """
  if RUN_COLUMN not in table:
    return [name for name in table if ',' in flags.get(name, '')]
  names = list(table)
  return names[: names.index(RUN_COLUMN)]


class Look(NamedTuple):
  """How the settings of a sweep are told apart.

  Attributes:
    facet: options whose values do not share axes; None to choose
      automatically.
    color: options that color shows; () to choose automatically.
    periodic: rules of the twin that have a --target_period; settings of other
      rules are placed at the period with the same mean age of the twin.
  """

  facet: Sequence[str] | None = None
  color: Sequence[str] = ()
  periodic: Collection[str] = ()


def draw(
  table: Table,
  flags: Mapping[str, str],
  output: str,
  *,
  column: str | None = None,
  title: str = '',
  look: Look | None = None,
) -> None:
  """Writes OUTPUT.png with curves, and OUTPUT-final.png with final results.

  If the twin was measured and no column is given, it also writes
  OUTPUT-panel.png. Several games or environments have OUTPUT-NAME.png and so
  on instead. Representations have several curves: losses, collapse and
  accuracies.

  If runs are not equally long, as in an unfinished sweep, OUTPUT-final.png uses
  only the time that all runs have reached.

  Args:
    table: table in long form, with at least one row.
    flags: flags of the sweep's folder.
    output: path without the suffix.
    column: column of the table to draw; None for returns, or their substitute.
    title: title of the figures, except for the names of games and environments.
    look: how settings are told apart.
  """
  look = look or Look()
  x = clock_of(table)
  clock = x.replace('_', ' ')
  whole = column is None
  several = whole and representation.is_representation(table)
  column = column or headline(table)
  for path, about, part, by in _parts(table, flags, output, title):
    facet, color = _choose(part, by, look)
    if several:
      panel.plot_panel(
        f'{path}.png',
        part,
        x=x,
        by=by,
        facet=facet,
        color=color,
        title=about,
        x_label=clock,
        shown=representation.facets(part),
      )
    else:
      plot_sweep(
        f'{path}.png',
        part,
        x=x,
        y=column,
        by=by,
        facet=facet,
        color=color,
        title=about,
        x_label=clock,
        y_label=words(column),
      )
    if whole and panel.is_measured(part):
      _draw_panel(f'{path}-panel.png', part, flags, by, about, look)
    if not by:
      continue
    shown, position, label = places(
      part, by, single(part, flags), look.periodic
    )
    reached, time = up_to_common_end(part, x, by)
    plot_final(
      f'{path}-final.png',
      reached,
      x=x,
      y=column,
      by=by,
      position=position,
      lines=[name for name in by if name not in shown],
      color=[name for name in look.color if name in by]
      or [name for name in _TWIN_NAMES if name in by][:1],
      title=about,
      x_label=label,
      y_label=f'{words(column)}, last 10 % of {time}{clock}',
    )


def up_to_common_end(
  table: Table, x: str, by: Sequence[str]
) -> tuple[Table, str]:
  """Returns the rows up to the time that all runs have reached.

  Args:
    table: table in long form.
    x: the column of the clock.
    by: the columns that define a setting.

  Returns:
    The rows, and a description of that time, such as 'the first 20,000 '; ''
    if those are all rows.
  """
  end = common_end(table, x, [*by, RUN_COLUMN])
  rows = table[x] <= end
  if rows.all():
    return table, ''
  reached = {name: values[rows] for name, values in table.items()}
  return reached, f'the first {end:,.10g} '


def draw_panel(
  table: Table,
  flags: Mapping[str, str],
  output: str,
  *,
  title: str = '',
  look: Look | None = None,
) -> None:
  """Writes OUTPUT.png with the twin's panel, a line for each setting.

  Args:
    table: table of one run or in long form, with measurements of the panel.
    flags: flags of the folder.
    output: path without the suffix; as in `draw` for several games or
      environments.
    title: title of the figure, except for the names of games and environments.
    look: how settings are told apart.
  """
  for path, about, part, by in _parts(table, flags, output, title):
    if panel.is_measured(part):
      _draw_panel(f'{path}.png', part, flags, by, about, look or Look())


def drawn_columns(table: Table, column: str | None) -> list[str]:
  """Returns the columns that `draw` shows.

  Args:
    table: table in long form.
    column: column as in `draw`.
  """
  if column is not None:
    return [column]
  found = [headline(table)]
  if representation.is_representation(table):
    found += [c for f in representation.facets(table) for c in f.parts]
  if panel.is_measured(table):
    found += [c for f in panel.facets(table) if f.in_sweeps for c in f.parts]
    found += [name for name in panel.OF_MEASUREMENTS if name in table]
  return list(dict.fromkeys(found))


def _choose(
  table: Table, by: Sequence[str], look: Look
) -> tuple[Sequence[str] | None, Sequence[str]]:
  """Returns `facet` and `color`; by default, color shows the twin's options."""
  facet = look.facet and [name for name in look.facet if name in by]
  color = [name for name in look.color if name in by]
  if color:
    return facet, color
  numbers = [name for name in _TWIN_NUMBERS if name in by]
  for name in numbers[1:]:
    met = ~np.isnan(table[numbers[0]]) & ~np.isnan(table[name])
    if met.any():
      return facet, numbers[:1]
  return facet, numbers or [name for name in _TWIN_NAMES if name in by][:1]


def headline(table: Table) -> str:
  """Returns the column that sums up runs."""
  if representation.is_representation(table):
    return representation.headline(table)
  known = [n for n in ('train_return', 'eval_return') if n in table]
  return next(iter(known), 'train_return')


def clock_of(table: Table) -> str:
  """Returns the column of the horizontal axis; raises ValueError if none."""
  for name in CLOCKS:
    if name in table:
      return name
  raise ValueError(f'no column of {", ".join(CLOCKS)}')


def _parts(
  table: Table, flags: Mapping[str, str], output: str, title: str
) -> Iterator[tuple[str, str, Table, list[str]]]:
  """Yields (path without suffix, title, rows, setting's columns) per figure."""
  names = swept(table, flags)
  apart = [name for name in names if name in PLAYED]
  by = [name for name in names if name not in apart]
  for key, part in group_rows(table, apart).items():
    path = '-'.join([output, *map(str, key)])
    yield path, ', '.join(map(str, key)) or title, part, by


def _draw_panel(
  path: str,
  table: Table,
  flags: Mapping[str, str],
  by: Sequence[str],
  title: str,
  look: Look,
) -> None:
  x = clock_of(table)
  facet, color = _choose(table, by, look)
  panel.plot_panel(
    path,
    table,
    x=x,
    by=by,
    facet=facet,
    color=color,
    title=title,
    x_label=x.replace('_', ' '),
    bound=_bound(single(table, flags)),
  )


def single(table: Table, flags: Mapping[str, str]) -> dict[str, str]:
  """Returns the flags that have the same value in all runs."""
  # A part of the sweep may have its own values.
  return {
    name: text
    for name, text in flags.items()
    if ',' not in text and name not in table
  }


def _bound(flags: Mapping[str, str]) -> float | None:
  """Returns the bound of soft divergence; None if runs differ in it."""
  try:
    return float(flags['reward_bound']) / (1 - float(flags['discount']))
  except (KeyError, ValueError, ZeroDivisionError):
    return None


def words(column: str) -> str:
  """Returns a column's label: 'training return' for train_return."""
  if column.startswith(panel.PREFIX):
    return panel.in_text(column)
  named = representation.HEADLINES.get(column, column)
  named = named.replace('train_', 'training_').replace('eval_', 'evaluation_')
  return named.replace('_', ' ')


def places(
  table: Table,
  by: Sequence[str],
  flags: Mapping[str, str],
  periodic: Collection[str],
) -> tuple[list[str], Position, str]:
  """Returns the options on the horizontal axis, their places, and its label.

  Args:
    table: table in long form.
    by: the swept options.
    flags: those with the same value in all runs.
    periodic: rules as in `Look`.
  """
  twin = [name for name in by if name in ('target_period', 'tau')]
  unit = flags.get('target_period_unit', 'gradient_steps')
  steps = _gradient_steps(unit, flags)
  if 'tau' in twin and steps is not None:

    def matched(point: Mapping[str, Any]) -> float | None:
      return _matched_period(_with_period(point, flags, periodic), steps)

    if _distinct(table, by, twin, matched):
      return twin, matched, 'target period, or its match (gradient steps)'
  numeric = [name for name in by if table[name].dtype.kind != 'U']
  if not numeric:
    return [], lambda point: None, ''
  if 'target_period' in numeric:
    label = f'target period ({words(unit)})'
    return ['target_period'], lambda point: point['target_period'], label
  name = numeric[0]
  return [name], lambda point: point[name], words(name)


def _gradient_steps(unit: str, flags: Mapping[str, str]) -> float | None:
  """Returns the gradient steps per unit; None if runs differ in them."""
  if unit == 'gradient_steps':
    return 1.0
  factors = [flags.get('train_period', '')]
  if unit == 'frames':
    factors.append(flags.get('frame_skip', '1'))
  if not all(factor.isdecimal() for factor in factors):
    return None
  return 1 / math.prod(map(int, factors))


def _distinct(
  table: Table, by: Sequence[str], shown: Sequence[str], position: Position
) -> bool:
  """Returns whether all settings of each line have different places."""
  seen = set()
  for key in group_rows(table, by):
    point = dict(zip(by, key, strict=True))
    line = tuple(point[name] for name in by if name not in shown)
    place = position(point)
    if (line, place) in seen:
      return False
    seen.add((line, place))
  return True


def _with_period(
  point: Mapping[str, Any], flags: Mapping[str, str], periodic: Collection[str]
) -> Mapping[str, Any]:
  """Adds the period to a setting, if it is not swept."""
  rule = point.get('target_update', flags.get('target_update'))
  period = flags.get('target_period')
  if rule not in periodic or period is None:
    return point
  return {'target_period': int(period), **point}


def _matched_period(
  point: Mapping[str, Any], gradient_steps: float
) -> float | None:
  """Returns the period of hard updates with the same mean age of the twin.

  Copies every C steps have a mean age of (C - 1) / 2 steps; an average with the
  rate tau, of 1 / tau - 1. Averages at every C-th step are C times as old plus
  (C - 1) / 2 between two of them: C * (2 / tau - 1) covers all three. If parts
  of the network have rules of their own, the oldest counts.

  Args:
    point: has a period, a rate, or both.
    gradient_steps: per unit of the period.
  """
  period, tau = point.get('target_period'), point.get('tau')
  if period is None and tau is None:
    return None  # a rule without parameters
  place = 1.0 if period is None else period * gradient_steps
  rate = 1.0 if tau is None else 2 / tau - 1
  return max(place, rate) if point.get('target_paths') else place * rate
