"""Figure of a run's panel: small multiples of the twin's diagnostics."""

import functools
import itertools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from siamrl.report import drawing, statistics
from siamrl.report.arrangement import COLORS, Pane, arrange, in_words, literal
from siamrl.report.metrics import RUN_COLUMN, Table, by_run, group_rows

PREFIX = 'panel/'  # of the panel's columns

# Measured over one gradient step, and whether the twin moved in that step.
_OF_ONE_STEP = (f'{PREFIX}target_churn', f'{PREFIX}target_churn_train')
_MOVED = f'{PREFIX}churn_synced'
# Columns that describe how others were measured.
OF_MEASUREMENTS = (_MOVED,)
_SYNCED = 'circles: the twin moved in\nthe step that is measured'

_ACROSS = 4  # small multiples in a row
_WIDTH, _HEIGHT = 3.1, 2.2  # inches of one

# Positive numbers further apart than this are drawn on a logarithmic axis.
_WIDE = 50
# The bound of soft divergence is drawn if values come within this factor.
_NEAR = 5


class Facet(NamedTuple):
  """One of the small multiples.

  Attributes:
    title: the quantity.
    unit: its unit, with a brief description.
    parts: names by column; '' for a single column. Sweeps have a separate small
      multiple for each.
    layers: whether its single column has others below it, one per layer.
    bound: a level that should not be exceeded, or None.
    in_sweeps: whether it is also drawn for several settings.
  """

  title: str
  unit: str
  parts: Mapping[str, str]
  layers: bool = False
  bound: float | None = None
  in_sweeps: bool = True


def is_measured(table: Table) -> bool:
  """Returns whether a run has measured its panel at least once."""
  return any(_known(table, name) for name in table if name.startswith(PREFIX))


def facets(table: Table, bound: float | None = None) -> list[Facet]:
  """Returns the small multiples for which a run has numbers.

  Args:
    table: [R] arrays by column.
    bound: values above it have diverged softly; None if unknown.
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
    one(
      'distribution_std',
      'Width of the distributions',
      'mean standard deviation (return)',
    ),
    one(
      'distribution_distance',
      'Distributional distance',
      'mean Wasserstein-1 distance of the twin (return)',
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
      'Agreement with the optimum',
      'cosine to the gradient toward optimal values',
      _columns(agreement='rule in use') | _below(table, 'agreement'),
    ),
    Facet(
      'Target gap',
      'mean distance from those in use (return)',
      _below(table, 'shadow_gap'),
    ),
  ]
  return known_facets(every, table)


def in_text(column: str) -> str:
  """Returns what a column of the panel measures, as in 'twin age (gradient
  steps)'; the column if unknown."""
  found = _apart(facets({column: np.zeros(1)}))
  if not found:
    return column
  title, description = found[0].title, found[0].unit
  if title[1].islower():
    title = title[0].lower() + title[1:]
  units = re.findall(r'^\S+$|(?<=\()[^()]+(?=\))', description)
  return f'{title} ({units[-1]})' if units else title


class _Words(NamedTuple):
  """Wording of a panel, by default for values of discrete actions."""

  distance: str = r'$|Q - \bar Q|$'
  unit: str = 'return'
  disagreement: str = r'of $Q$ and $\bar Q$ (fraction of states)'
  churn: str = 'fraction of states'
  values: str = 'states and actions'
  best: str = r'$\max Q$'


def _words(table: Table) -> _Words:
  if 'normalized_std' in table:  # representations
    return _Words(r'$|z - \bar z|$', 'of projections')
  if 'actor_loss' in table:  # continuous actions, with values of the actor's
    return _Words(
      disagreement=r'mean $|a - \bar a|$ (actions in [-1, 1])',
      churn='mean change of actions in [-1, 1]',
      values='states',
      best='$Q$',
    )
  return _Words()


def known_facets(every: Sequence[Facet], table: Table) -> list[Facet]:
  """Returns the facets and parts for which there are numbers."""
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
  """Returns the columns panel/COLUMN/NAME."""
  start = f'{PREFIX}{column}/'
  return {
    name: name.removeprefix(start) for name in table if name.startswith(start)
  }


def _dormant(table: Table) -> list[Facet]:
  """Returns facets of dormant units: one threshold by layer, and all."""
  found = [re.fullmatch(rf'{PREFIX}dormant_([\d.e-]+)', name) for name in table]
  columns = {match[1]: match[0] for match in found if match}
  ordered = sorted(columns, key=float)
  if not ordered:
    return []
  # Sokar et al. use 0.025, which is in the middle here.
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
  facet: Sequence[str] | None = None,
  color: Sequence[str] = (),
  title: str = '',
  x_label: str | None = None,
  bound: float | None = None,
  shown: Sequence[Facet] | None = None,
  statistic: statistics.Statistic = statistics.mean,
) -> list[pathlib.Path]:
  """Draws the panel into a PNG file, with a small multiple per quantity.

  Each of several settings has a line, with the same look everywhere; a single
  setting also has lines for its layers. A point is a statistic over the runs
  that have a value there, the band its 95 % t interval. Iterations and
  quantities that were not measured are skipped. Changes of targets by a
  gradient step in which the twin moved too are circles, separate from the line
  of the others.

  If there are too many settings for one pair of axes (`arrange`), each part of
  them has a row or, with more than four quantities, a file: NAME-PART.png.

  Args:
    path: the file, replaced atomically; its directory exists.
    table: [R] arrays by column, of one run or in long form.
    x: the column of the clock, such as 'env_steps'.
    by: the columns whose values define a setting; may be empty.
    run: the column that tells the runs of one setting apart; if it is missing,
      the table is of one run.
    facet: those of `by` whose values do not share axes; None to choose
      automatically.
    color: those of `by` that color shows; by default those with numbers.
    title: text above the figure.
    x_label: label of the horizontal axes, with the unit; by default the
      column's name.
    bound: values above it have diverged softly; None if unknown.
    shown: quantities to draw instead of `facets`.
    statistic: statistic over the runs.

  Returns:
    The written files.

  Raises:
    ImportError: if Matplotlib is not installed.
    OSError: if the file cannot be written.
    ValueError: if nothing was measured, a column is missing, or a run has two
      rows for one value of the clock.
  """
  if shown is None and not is_measured(table):
    raise ValueError(f'no column {PREFIX}... with a number')
  if run not in table:
    table = table | {run: np.zeros(len(table[x]), np.int64)}
  groups = group_rows(table, by)
  points = [dict(zip(by, key, strict=True)) for key in groups]
  found = facets(table, bound) if shown is None else list(shown)
  if len(groups) > 1:
    found = _apart([f for f in found if f.in_sweeps])
  arrangement = arrange(points, facet, color)
  panes = arrangement.panes
  path = pathlib.Path(path)
  files = {path: panes}
  if len(panes) > 1 and len(found) > _ACROSS:
    files = {
      path.with_stem(f'{path.stem}-{_slug(pane.title)}'): [pane]
      for pane in panes
    }
  estimate = functools.partial(_estimate, x=x, run=run, statistic=statistic)
  runs = {len(np.unique(group[run])) for group in groups.values()}
  # Rows exist whether or not the panel was measured, so the clock is counted.
  ended = [
    drawing.count_note(*by_run(group, x, x, run)) for group in groups.values()
  ]
  explanation = drawing.explanation(statistic, runs)
  for file, rows in files.items():
    figure, places = _grid(len(found), len(rows))
    last = table[x].max()
    if len(groups) > 1:
      marked = _draw_settings(
        places, found, list(groups.values()), points, rows, estimate
      )
      part = arrangement._replace(panes=rows)
      names = drawing.pane_legend(part, points, ended)
    else:
      marked = _draw_setting(places, found, table, estimate)
      # The facet with most layers, as hidden units lack the last one.
      named = max(
        (a for a, f in zip(places, found, strict=True) if f.layers),
        key=lambda axes: len(axes.lines),
        default=places[0],
      )
      names = drawing.lines_of(named)
    for number, axes in enumerate(places):
      pane = rows[number // len(found)]
      _dress(
        axes,
        found[number % len(found)],
        last,
        pane.title if len(rows) > 1 else '',
      )
    of_file = rows[0].title if len(files) > 1 else ''
    figure.suptitle(
      ': '.join(filter(None, [literal(title), of_file])), x=0.01, ha='left'
    )
    figure.supxlabel(x_label or x, fontsize='medium')
    notes = [explanation, arrangement.key, _SYNCED if marked else '']
    if len(groups) == 1:
      notes.append(ended[0].strip())
    drawing.side_legend(figure, names, '\n'.join(filter(None, notes)))
    drawing.save(figure, file)
  return list(files)


def _slug(text: str) -> str:
  """Converts a title for use in a file name."""
  return re.sub(r'[^\w.]+', '-', text).strip('-')


def _apart(found: Sequence[Facet]) -> list[Facet]:
  """Returns a separate facet for each part."""
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
  """Returns the clock, and the estimate over the runs of one setting."""
  clock, values = by_run(table, x, column, run)
  return clock, statistics.over_runs(values, statistic)


def _grid(number: int, rows: int) -> tuple[Any, list[Any]]:
  """Returns an empty figure and its small multiples, by row if it has rows."""
  across = min(_ACROSS, number)
  down = rows * -(-number // across)
  figure = drawing.new_figure(_WIDTH * across, _HEIGHT * down + 0.6)
  # Enough white space to tell to which axes a label belongs.
  figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
  places = figure.add_gridspec(down, across)
  return figure, [figure.add_subplot(places[i]) for i in range(number * rows)]


def _draw_settings(
  places: Sequence[Any],
  found: Sequence[Facet],
  groups: Sequence[Table],
  points: Sequence[Any],
  rows: Sequence[Pane],
  estimate: Any,
) -> bool:
  """Draws a line for each setting; returns whether there are circles."""
  marked = False
  for axes, (pane, facet) in zip(
    places, itertools.product(rows, found), strict=True
  ):
    (column,) = facet.parts
    for member, (color, style) in zip(pane.members, pane.looks, strict=True):
      marked |= _draw_line(
        axes,
        in_words(points[member]),
        groups[member],
        column,
        estimate,
        color,
        style,
        opacity=drawing.band_opacity(len(pane.members)),
      )
  return marked


def _draw_line(
  axes: Any,
  label: str,
  table: Table,
  column: str,
  estimate: Any,
  color: Any,
  style: Any,
  *,
  opacity: float,
) -> bool:
  """Draws a line, and circles where the twin moved; returns whether any."""
  parts = _by_sync(table, column)
  for rows, at_sync in parts:
    clock, values = estimate(rows, column)
    if at_sync:
      axes.plot(clock, values[0], 'o', color=color, mfc='none', ms=4)
    else:
      drawing.line(
        axes, label, clock, values, color, style, opacity=opacity, width=1.4
      )
  return len(parts) > 1


def _by_sync(table: Table, column: str) -> list[tuple[Table, bool]]:
  """Separates rows in whose measured step the twin moved from others.

  Args:
    table: table of one setting.
    column: column of the measurement.

  Returns:
    (rows, whether the twin moved in the step) of each part. There is only one
    if the twin moved in every measured step, or in none.
  """
  moved = table.get(_MOVED)
  if column not in _OF_ONE_STEP or moved is None:
    return [(table, False)]
  at_sync = moved > 0
  if not (at_sync.any() and (moved == 0).any()):
    return [(table, False)]
  return [
    ({name: values[rows] for name, values in table.items()}, of_syncs)
    for rows, of_syncs in ((~at_sync, False), (at_sync, True))
  ]


def _draw_setting(
  places: Sequence[Any], found: Sequence[Facet], table: Table, estimate: Any
) -> bool:
  """Draws a line for each part, or for the whole network and each layer.

  Returns:
    Whether there are circles.
  """
  marked = False
  colors = _layer_colors(table, found)
  for axes, facet in zip(places, found, strict=True):
    parts = list(facet.parts.items())
    for number, (column, name) in enumerate(parts):
      marked |= _draw_line(
        axes,
        name or 'whole network',
        table,
        column,
        estimate,
        COLORS[number % len(COLORS)],
        '-',
        opacity=drawing.band_opacity(1),
      )
    axes.lines[0].set_zorder(3)  # layers may all equal the whole
    if len(parts) > 1:
      axes.legend(frameon=False, fontsize='x-small', handlelength=1.4)
    for layer, color in colors.items() if facet.layers else ():
      column = f'{parts[0][0]}/{layer}'
      if _known(table, column):
        clock, (y, *_) = estimate(table, column)
        nowhere = np.full_like(y, np.nan)  # bands would hide each other
        drawing.line(
          axes, layer, clock, (y, nowhere, nowhere), color, opacity=0, width=1
        )
  return marked


def _layer_colors(table: Table, found: Sequence[Facet]) -> dict[str, Any]:
  """Returns a color for each layer, from the input to the output."""
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
  # Without the ends of plasma: too dark beside the whole, too light on white.
  places = np.linspace(0.25, 0.85, len(ordered))
  return {
    name: colormaps['plasma'](place)
    for name, place in zip(ordered, places, strict=True)
  }


def _dress(axes: Any, facet: Facet, last: float, row: str) -> None:
  """Adds the titles, scales and levels of a small multiple."""
  from matplotlib.ticker import MaxNLocator

  drawing.tidy(axes)
  title = f'{row}: {facet.title}' if row else facet.title
  axes.set_title(title, loc='left', fontsize='medium', pad=15)
  axes.annotate(
    facet.unit,
    (0, 1),
    (0, 4),
    xycoords='axes fraction',
    textcoords='offset points',
    fontsize='x-small',
    color=drawing.GRAY,
  )
  axes.tick_params(labelsize='x-small')
  axes.xaxis.set_major_locator(MaxNLocator(5))
  axes.set_xlim(0, last)
  lines = [np.asarray(line.get_ydata(), np.float64) for line in axes.lines]
  values = np.concatenate(lines)
  level = {'color': drawing.GRAY, 'linewidth': 0.9, 'zorder': 1}
  if values.min() < 0 < values.max():
    axes.axhline(0, **level)
  if facet.bound is not None and _NEAR * np.abs(values).max() >= facet.bound:
    axes.axhline(facet.bound, linestyle='--', **level)
  _scale(axes, values)


def _scale(axes: Any, values: np.ndarray) -> None:
  """Scales the vertical axis to show both small and large numbers."""
  from matplotlib.ticker import FuncFormatter, MaxNLocator

  lowest, highest = values.min(), values.max()
  positive = np.sort(values[values > 0])
  # Not the very smallest, which may be near 0 by chance.
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
      # So that the axis does not hide a line at 0.
      axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])
  axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
  axes.yaxis.minorticks_off()
