"""The twin at work in one figure: small multiples of a run's panel."""

import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from siamrl.report import drawing, statistics
from siamrl.report.metrics import RUN_COLUMN, Table, by_run, group_rows

PREFIX = 'panel/'  # of the panel's columns

_ACROSS = 4  # small multiples beside each other
_WIDTH, _HEIGHT = 3.1, 2.2  # inches of one

# Positive numbers further apart than this are drawn on a logarithmic axis.
_WIDE = 50
# The bound of soft divergence is drawn where values come so near to it.
_NEAR = 5


class Facet(NamedTuple):
  """One of the small multiples.

  Attributes:
    title: the quantity.
    unit: its unit, and what it is in a word or two.
    parts: names by column; '' where there is one only. Sweeps have an own one
      of the small multiples for each.
    layers: whether its one column has others below it, of layers.
    bound: a level that is not to be exceeded, or None.
    in_sweeps: whether several settings have it too.
  """

  title: str
  unit: str
  parts: Mapping[str, str]
  layers: bool = False
  bound: float | None = None
  in_sweeps: bool = True


def is_measured(table: Table) -> bool:
  """Whether a run has measured its panel, at least once."""
  return any(_known(table, name) for name in table if name.startswith(PREFIX))


def facets(table: Table, bound: float | None = None) -> list[Facet]:
  """The small multiples for which a run has numbers.

  Args:
    table: [R] arrays by column.
    bound: of values, beyond which they have diverged softly; None if unknown.
  """
  one = functools.partial(_one, layers=False)
  word = _words(table)
  beyond = '' if bound is None else f', soft divergence above {bound:.4g}'
  every = [
    Facet(
      'Return',
      'score of an episode',
      {'train_return': 'training', 'eval_return': 'evaluation'},
    ),
    _one('twin_age', 'Twin age', 'gradient steps', layers=True),
    _one(
      'twin_distance',
      'Parameter distance',
      r'$\|\theta - \bar\theta\|\,/\,\|\theta\|$ (relative)',
      layers=True,
    ),
    one(
      'functional_distance',
      'Functional distance',
      f'mean {word.distance} ({word.unit})',
    ),
    one('greedy_disagreement', 'Greedy disagreement', word.disagreement),
    one(
      'target_drift',
      'Target drift',
      f'mean change per gradient step ({word.unit})',
    ),
    Facet(
      'Target churn',
      f'mean change by one gradient step ({word.unit})',
      _columns(target_churn_train='on its batch', target_churn='held out'),
    ),
    one('policy_churn', 'Policy churn', f'by one gradient step ({word.churn})'),
    Facet(
      'TD error',
      'mean absolute value (return)',
      _columns(td_own_abs='own part', td_split_abs="twin's part"),
    ),
    Facet(
      'Rank of the features',
      'dimensions',
      _columns(effective_rank='effective rank', srank='srank'),
    ),
    *_dormant(table),
    one(
      'q_max_abs', 'Largest |Q|', f'over {word.values} (return){beyond}'
    )._replace(bound=bound),
    one(
      'overestimation',
      'Over-estimation',
      f'mean {word.best} $- G$ while evaluating (return)',
    ),
    one('return_mc', 'Discounted return', 'mean $G$ while evaluating (return)'),
    Facet(
      'Error against the optimum',
      'over states and actions (return)',
      _columns(exact_bias=r'mean, of $\max Q$', exact_error='largest'),
    ),
    Facet(
      'Gradient cosine',
      'of the gradients of another rule and the one in use',
      _below(table, 'cosine'),
    ),
    Facet(
      'Target gap',
      'mean distance from those in use (return)',
      _below(table, 'shadow_gap'),
    ),
  ]
  return known_facets(every, table)


class _Words(NamedTuple):
  """How a panel is put in words; by default that of values of actions."""

  distance: str = r'$|Q - \bar Q|$'
  unit: str = 'return'
  disagreement: str = r'of $Q$ and $\bar Q$ (fraction of states)'
  churn: str = 'fraction of states'
  values: str = 'states and actions'
  best: str = r'$\max Q$'


def _words(table: Table) -> _Words:
  if 'normalised_std' in table:  # representations
    return _Words(r'$|z - \bar z|$', 'of projections')
  if 'actor_loss' in table:  # actions are continuous, values of the actor's own
    return _Words(
      disagreement=r'mean $|a - \bar a|$ (actions in [-1, 1])',
      churn='mean change of actions in [-1, 1]',
      values='states',
      best='$Q$',
    )
  return _Words()


def known_facets(every: Sequence[Facet], table: Table) -> list[Facet]:
  """Those for which there are numbers, without the parts that have none."""
  kept = []
  for facet in every:
    parts = {c: name for c, name in facet.parts.items() if _known(table, c)}
    if len(parts) > 1:
      kept.append(facet._replace(parts=parts))
    elif parts:
      kept += _apart([facet._replace(parts=parts)])
  return kept


def _known(table: Table, column: str) -> bool:
  values = table.get(column)
  return (
    values is not None
    and values.dtype.kind != 'U'
    and bool(np.isfinite(values).any())
  )


def _one(column: str, title: str, unit: str, *, layers: bool) -> Facet:
  return Facet(title, unit, {f'{PREFIX}{column}': ''}, layers)


def _columns(**names: str) -> dict[str, str]:
  return {f'{PREFIX}{column}': name for column, name in names.items()}


def _below(table: Table, column: str) -> dict[str, str]:
  """The columns panel/COLUMN/NAME by themselves."""
  start = f'{PREFIX}{column}/'
  return {
    name: name.removeprefix(start) for name in table if name.startswith(start)
  }


def _dormant(table: Table) -> list[Facet]:
  """Dormant units: the highest threshold by layer, and all of them."""
  found = [re.fullmatch(rf'{PREFIX}dormant_([\d.e-]+)', name) for name in table]
  columns = {match[1]: match[0] for match in found if match}
  ordered = sorted(columns, key=float)
  if not ordered:
    return []
  # Sokar et al. take 0.025, which is in the middle here.
  middle = ordered[len(ordered) // 2]
  return [
    Facet(
      'Dormant units',
      f'score at most {middle} (fraction of units)',
      {columns[middle]: ''},
      layers=True,
    ),
    Facet(
      'Dormant units by threshold',
      'score at most so much (fraction of all units)',
      {columns[t]: t for t in ordered if len(ordered) > 1},
      in_sweeps=False,
    ),
  ]


def plot_panel(
  path: str | os.PathLike[str],
  table: Table,
  *,
  x: str,
  by: Sequence[str] = (),
  run: str = RUN_COLUMN,
  title: str = '',
  x_label: str | None = None,
  bound: float | None = None,
  shown: Sequence[Facet] | None = None,
  statistic: statistics.Statistic = statistics.mean,
) -> None:
  """Draws what the twin did, a small picture for each quantity, into a PNG.

  Several settings are a line each, in the same colour everywhere; of one there
  are lines of layers too. A point is a statistic over the runs that have a
  value there, the band its 95 % t interval. Iterations that were not
  measured are passed over, and so are quantities that never were.

  Args:
    path: the file, replaced at once; its directory exists.
    table: [R] arrays by column, of one run or in long form.
    x: the column of the clock, such as 'env_steps'.
    by: the columns whose values make a setting; may be none.
    run: the column that tells the runs of one setting apart; where there is
      none, the table is of one run.
    title: above all.
    x_label: below all, with the unit; the name of the column by default.
    bound: of values, beyond which they have diverged softly; None if unknown.
    shown: other quantities, in place of those of `facets`.
    statistic: over the runs.

  Raises:
    ImportError: if Matplotlib is not installed.
    OSError: if the file cannot be written.
    ValueError: if nothing was measured, there is no such column, or a
      setting's run has two rows for one value of the clock.
  """
  if shown is None and not is_measured(table):
    raise ValueError(f'no column {PREFIX}... with a number')
  if run not in table:
    table = table | {run: np.zeros(len(table[x]), np.int64)}
  groups = group_rows(table, by)
  found = facets(table, bound) if shown is None else list(shown)
  if len(groups) > 1:
    found = _apart([facet for facet in found if facet.in_sweeps])
  estimate = functools.partial(_estimate, x=x, run=run, statistic=statistic)
  figure, panels = _grid(len(found))
  if len(groups) > 1:
    _draw_settings(panels, found, groups, by, estimate)
    named = panels[0]
  else:
    _draw_setting(panels, found, table, estimate)
    # That with most layers: hidden units say nothing of the last one.
    named = max(
      (axes for axes, facet in zip(panels, found, strict=True) if facet.layers),
      key=lambda axes: len(axes.lines),
      default=panels[0],
    )
  for axes, facet in zip(panels, found, strict=True):
    _dress(axes, facet, table[x].max())
  figure.suptitle(title, x=0.01, ha='left')
  figure.supxlabel(x_label or x, fontsize='medium')
  runs = {len(np.unique(group[run])) for group in groups.values()}
  drawing.side_legend(figure, named, drawing.explanation(statistic, runs))
  drawing.save(figure, path)


def _apart(found: Sequence[Facet]) -> list[Facet]:
  """Each part by itself."""
  return [
    facet._replace(
      title=f'{facet.title}, {name}' if name else facet.title,
      parts={column: ''},
    )
    for facet in found
    for column, name in facet.parts.items()
  ]


def _estimate(
  table: Table,
  column: str,
  *,
  x: str,
  run: str,
  statistic: statistics.Statistic,
) -> tuple[np.ndarray, drawing.Estimate]:
  """The clock, and what the runs of one setting come to there."""
  clock, values = by_run(table, x, column, run)
  return clock, statistics.over_runs(values, statistic)


def _grid(number: int) -> tuple[Any, list[Any]]:
  """A figure, and its small multiples, empty."""
  across = min(_ACROSS, number)
  rows = -(-number // across)
  figure = drawing.new_figure(_WIDTH * across, _HEIGHT * rows + 0.6)
  # White space enough to tell whose axis is whose.
  figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
  places = figure.add_gridspec(rows, across)
  return figure, [figure.add_subplot(places[i]) for i in range(number)]


def _draw_settings(
  panels: Sequence[Any],
  found: Sequence[Facet],
  groups: Mapping[tuple, Table],
  by: Sequence[str],
  estimate: Any,
) -> None:
  """A line for each setting."""
  points = [dict(zip(by, key, strict=True)) for key in groups]
  styles = drawing.looks(points)
  for axes, facet in zip(panels, found, strict=True):
    (column,) = facet.parts
    for group, point, (colour, style) in zip(
      groups.values(), points, styles, strict=True
    ):
      clock, values = estimate(group, column)
      drawing.line(
        axes,
        drawing.in_words(point),
        clock,
        values,
        colour,
        style,
        opacity=drawing.band_opacity(len(groups)),
        width=1.4,
      )


def _draw_setting(
  panels: Sequence[Any], found: Sequence[Facet], table: Table, estimate: Any
) -> None:
  """A line for each part, or for the whole network and each layer."""
  colours = _layer_colours(table, found)
  for axes, facet in zip(panels, found, strict=True):
    parts = list(facet.parts.items())
    for number, (column, name) in enumerate(parts):
      clock, values = estimate(table, column)
      drawing.line(
        axes,
        name or 'whole network',
        clock,
        values,
        drawing.COLOURS[number % len(drawing.COLOURS)],
        opacity=drawing.band_opacity(1),
        width=1.4,
      )
    axes.lines[0].set_zorder(3)  # layers may all be as the whole is
    if len(parts) > 1:
      axes.legend(frameon=False, fontsize='x-small', handlelength=1.4)
    for layer, colour in colours.items() if facet.layers else ():
      column = f'{parts[0][0]}/{layer}'
      if _known(table, column):
        clock, (y, *_) = estimate(table, column)
        nowhere = np.full_like(y, np.nan)  # bands would hide each other
        drawing.line(
          axes, layer, clock, (y, nowhere, nowhere), colour, opacity=0, width=1
        )


def _layer_colours(table: Table, found: Sequence[Facet]) -> dict[str, Any]:
  """A colour for each layer, from the input to the output."""
  from matplotlib import colormaps

  names = {
    layer
    for facet in found
    if facet.layers
    for column in facet.parts
    for name, layer in _below(table, column.removeprefix(PREFIX)).items()
    if _known(table, name)
  }
  ordered = sorted(names, key=lambda name: ('head' in name.split('/'), name))
  # Not the plasma of the ends: too dark beside the whole, too light on white.
  places = np.linspace(0.25, 0.85, len(ordered))
  return {
    name: colormaps['plasma'](place)
    for name, place in zip(ordered, places, strict=True)
  }


def _dress(axes: Any, facet: Facet, last: float) -> None:
  """Titles, scales and levels of one of the small multiples."""
  from matplotlib.ticker import MaxNLocator

  drawing.tidy(axes)
  axes.set_title(facet.title, loc='left', fontsize='medium', pad=15)
  axes.annotate(
    facet.unit,
    (0, 1),
    (0, 4),
    xycoords='axes fraction',
    textcoords='offset points',
    fontsize='x-small',
    color=drawing.GREY,
  )
  axes.tick_params(labelsize='x-small')
  axes.xaxis.set_major_locator(MaxNLocator(5))
  axes.set_xlim(0, last)
  lines = [np.asarray(line.get_ydata(), np.float64) for line in axes.lines]
  values = np.concatenate(lines)
  level = {'color': drawing.GREY, 'linewidth': 0.9, 'zorder': 1}
  if values.min() < 0 < values.max():
    axes.axhline(0, **level)
  if facet.bound is not None and _NEAR * np.abs(values).max() >= facet.bound:
    axes.axhline(facet.bound, linestyle='--', **level)
  _scale(axes, values)


def _scale(axes: Any, values: np.ndarray) -> None:
  """A vertical axis that shows small numbers beside large ones."""
  from matplotlib.ticker import FuncFormatter, MaxNLocator

  lowest, highest = values.min(), values.max()
  positive = np.sort(values[values > 0])
  # Not the very smallest: one that is by chance near 0 is not looked at.
  small = positive[len(positive) // 20] if len(positive) else highest
  if lowest >= 0 and highest > _WIDE * small:
    decade = 10.0 ** np.floor(np.log10(small))
    if lowest:
      axes.set_yscale('log')
      axes.set_ylim(bottom=max(lowest, decade / 100) / 1.5)
    else:
      axes.set_yscale('symlog', linthresh=decade, linscale=0.4)
      axes.set_ylim(bottom=-0.15 * decade)
  else:
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    if 0 <= lowest < 0.5 * highest:
      # A line at 0 does not hide behind the axis.
      axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])
  axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
  axes.yaxis.minorticks_off()
