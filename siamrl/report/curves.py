"""Learning curves of runs, beside published ones, and of sweeps.

Curves of sweeps have a line for each setting, with an interval over its runs.
"""

import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from siamrl.report import drawing, statistics
from siamrl.report.arrangement import (
  COLORS,
  DASHES,
  MOST_LINES,
  Point,
  arrange,
  in_words,
  literal,
)
from siamrl.report.drawing import GRAY
from siamrl.report.metrics import (
  RUN_COLUMN,
  STEP_COLUMN,
  Table,
  by_run,
  group_rows,
  read_metrics,
)

_REFERENCE_STYLES = ('--', ':', '-.')
_MOST_LEVELS = 2  # with bands that can be told apart where they overlap
_MARKERS = 'osD^vPX*'

# Columns of metrics.csv that `plot_run` draws if present, and their labels.
RETURN_COLUMNS: Mapping[str, str] = {
  'train_return': 'training',
  'eval_return': 'evaluation',
}


class Curve(NamedTuple):
  """A line, optionally with a band. Points with a NaN are left out.

  Attributes:
    label: name in the legend.
    x: [T], or None for a level across the whole width.
    y: [T], or a scalar where x is None.
    spread: [T] or scalar half height of the band, such as a standard deviation;
      None for no band.
  """

  label: str
  x: Any
  y: Any
  spread: Any = None


def plot_curve(
  path: str | os.PathLike[str],
  series: Sequence[Curve],
  references: Sequence[Curve] = (),
  *,
  faint: Sequence[Curve] = (),
  title: str = '',
  x_label: str = 'frames',
  y_label: str = 'return',
  explanation: str = '',
) -> None:
  """Draws curves into a PNG file, which is replaced atomically.

  Args:
    path: the file; its directory exists.
    series: the measured curves, each with its own look.
    references: curves to compare with, in dashed gray.
    faint: thin lines without a name, with the look of the series of the same
      label, such as the runs whose mean that series is.
    title: text above the axes.
    x_label: label of the horizontal axis, with the unit.
    y_label: label of the vertical axis.
    explanation: text above the legend on the meaning of lines and bands.

  Raises:
    ImportError: if Matplotlib is not installed.
    OSError: if the file cannot be written.
    ValueError: if the lengths within a curve differ, or there are too many
      series to tell apart.
  """
  if len(series) > MOST_LINES:
    raise ValueError(
      f'{len(series)} curves are too many to tell apart: at most '
      f'{MOST_LINES} share axes'
    )
  figure, axes = _figure()
  for index, curve in enumerate(references):
    style = _REFERENCE_STYLES[index % len(_REFERENCE_STYLES)]
    _draw(axes, curve, GRAY, style)
  for index, curve in enumerate(series):
    for run in faint:
      if run.label == curve.label:
        _draw(
          axes,
          run._replace(label='_'),
          COLORS[index],
          '-',
          width=0.7,
          alpha=0.6,
        )
    _draw(axes, curve, COLORS[index], '-')
  axes.set_title(literal(title), loc='left')
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label)
  if series or references:
    axes.legend(
      frameon=False,
      fontsize='small',
      title=explanation or None,
      alignment='left',
      title_fontsize='small',
    )
  drawing.save(figure, path)


def plot_run(
  metrics_path: str | os.PathLike[str],
  curve_path: str | os.PathLike[str],
  *,
  title: str,
  references: Sequence[Curve] = (),
  columns: Mapping[str, str] = RETURN_COLUMNS,
  x: str = STEP_COLUMN,
) -> None:
  """Draws the returns of one run against its clock.

  Args:
    metrics_path: the run's metrics.csv.
    curve_path: the PNG file to write.
    title: title of the figure, such as 'pong, dqn'.
    references: published curves or levels, on the same clock.
    columns: labels by column; columns that the run lacks are skipped.
    x: column of the clock, by default the emulator's frames.

  Raises:
    FileNotFoundError: if there are no metrics.
    ImportError: if Matplotlib is not installed.
    ValueError: if it is not a file of metrics, or has no such clock.
  """
  metrics = read_metrics(metrics_path)
  if x not in metrics:
    raise ValueError(f'{metrics_path}: no column {x!r}')
  series = [
    Curve(label, metrics[x], metrics[column])
    for column, label in columns.items()
    if column in metrics
  ]
  plot_curve(
    curve_path, series, references, title=title, x_label=x.replace('_', ' ')
  )


# Draws a summary of each curve: (x [T], y [runs, T]) -> [runs].
Summary = Callable[[np.ndarray, np.ndarray], np.ndarray]


def plot_sweep(
  path: str | os.PathLike[str],
  table: Table,
  *,
  x: str,
  y: str,
  by: Sequence[str],
  run: str = RUN_COLUMN,
  facet: Sequence[str] | None = None,
  color: Sequence[str] = (),
  title: str = '',
  x_label: str | None = None,
  y_label: str | None = None,
  statistic: statistics.Statistic = statistics.mean,
  notes: Sequence[str] = (),
) -> None:
  """Draws a line for each setting of a sweep into a PNG file.

  A point is a statistic over the runs of the setting that have a value there,
  the band its 95 % t interval (`statistics.over_runs`); one run has no band. If
  runs of a setting end at different times, the legend gives their number up to
  each of these. `arrange` decides which lines share axes, and how they look.

  Args:
    path: the file, replaced atomically; its directory exists.
    table: [R] arrays by column, in long form.
    x: the column of the clock, such as 'env_steps'.
    y: the column of the measured quantity.
    by: the columns whose values define a setting; may be empty.
    run: the column that tells the runs of one setting apart.
    facet: those of `by` with separate axes for each of their values; None to
      choose automatically.
    color: those of `by` that color shows; by default those with numbers.
    title: text above the axes.
    x_label: label of the horizontal axis, with the unit; by default the
      column's name.
    y_label: label of the vertical axis; by default the column's name.
    statistic: statistic over the runs.
    notes: what else a reader must know, above the legend.

  Raises:
    ImportError: if Matplotlib is not installed.
    OSError: if the file cannot be written.
    ValueError: if a column is missing, or a run has two rows for one value of
      the clock.
  """
  groups = group_rows(table, by)
  points = [dict(zip(by, key, strict=True)) for key in groups]
  curves = [by_run(group, x, y, run) for group in groups.values()]
  estimates = [statistics.over_runs(v, statistic) for _, v in curves]
  arrangement = arrange(points, facet, color)
  figure, grid = _grid(len(arrangement.panes))
  for axes, pane in zip(grid, arrangement.panes, strict=False):
    for member, look in zip(pane.members, pane.looks, strict=True):
      clock, values = curves[member]
      name = in_words(points[member]) or y
      drawing.line(
        axes,
        name + drawing.count_note(clock, values),
        clock,
        estimates[member],
        *look,
        opacity=drawing.band_opacity(len(pane.members)),
      )
    if pane.title:
      axes.set_title(pane.title, loc='left', fontsize='medium')
  runs = {len(values) for _, values in curves}
  explanation = drawing.explanation(statistic, runs)
  if len(arrangement.panes) > 1:
    figure.suptitle(literal(title), x=0.01, ha='left')
    figure.supxlabel(x_label or x, fontsize='medium')
    figure.supylabel(y_label or y, fontsize='medium')
    counts = [drawing.count_note(*curve) for curve in curves]
    names = drawing.pane_legend(arrangement, points, counts)
  else:
    grid[0].set_title(literal(title), loc='left')
    grid[0].set_xlabel(x_label or x)
    grid[0].set_ylabel(y_label or y)
    names = drawing.lines_of(grid[0])
  words = [explanation, *_wrapped(notes), arrangement.key]
  drawing.side_legend(figure, names, '\n'.join(filter(None, words)))
  drawing.save(figure, path)


def plot_final(
  path: str | os.PathLike[str],
  table: Table,
  *,
  x: str,
  y: str,
  by: Sequence[str],
  position: Callable[[Point], float | None],
  lines: Sequence[str] = (),
  color: Sequence[str] = (),
  summary: Summary = statistics.final_mean,
  run: str = RUN_COLUMN,
  title: str = '',
  x_label: str = '',
  y_label: str | None = None,
  statistic: statistics.Statistic = statistics.mean,
  notes: Sequence[str] = (),
) -> None:
  """Draws the final results of a sweep's settings against a swept value.

  If no line has two places, or there are too many lines and levels to tell
  apart, each setting gets its own named row instead.

  Args:
    path: the PNG file, replaced atomically; its directory exists.
    table: [R] arrays by column, in long form.
    x: the column of the clock, such as 'env_steps'.
    y: the column of the measured quantity.
    by: the columns whose values define a setting.
    position: setting -> its place on the horizontal axis, which is logarithmic
      if all places are positive; None for a level across the whole width.
      Different options can share the axis so: a rate with its matched period.
    lines: those of `by` whose values define a line.
    color: those of `by` that the color of rows shows.
    summary: curves -> a number for each: `final_mean`, `area_under_curve`.
    run: the column that tells the runs of one setting apart.
    title: text above the axes.
    x_label: label of the horizontal axis, with the unit.
    y_label: label of the vertical axis, with the kind of summary; by default
      the names of the column and the summary.
    statistic: statistic over the runs.
    notes: what else a reader must know, above the legend.

  Raises:
    ImportError: if Matplotlib is not installed.
    OSError: if the file cannot be written.
    ValueError: as `plot_sweep`, or if two settings of one line have the same
      place.
  """
  levels: dict[tuple, tuple] = {}
  drawn: dict[tuple, dict[float, tuple]] = {}
  runs, points, estimates = set(), [], []
  for key, group in group_rows(table, by).items():
    point = dict(zip(by, key, strict=True))
    clock, values = by_run(group, x, y, run)
    runs.add(len(values))
    estimate = statistics.over_runs(summary(clock, values), statistic)
    points.append(point)
    estimates.append(estimate)
    line, place = tuple(point[name] for name in lines), position(point)
    others = levels if place is None else drawn.setdefault(line, {})
    where: Any = line if place is None else float(place)
    if where in others:
      raise ValueError(f'two settings at {where} of the line {line}: {point}')
    others[where] = estimate
  names = list(dict.fromkeys([*drawn, *levels]))
  y_label = y_label or f'{y}, {summary.__name__.replace("_", " ")}'
  explanation = drawing.explanation(statistic, runs)
  if (
    all(len(places) < 2 for places in drawn.values())
    or len(names) > MOST_LINES
    or len(levels) > _MOST_LEVELS
  ):
    _plot_rows(
      path, points, estimates, color, title, y_label, [explanation, *notes]
    )
    return
  explanation = '\n'.join([explanation, *_wrapped(notes)])
  figure, axes = _figure()
  for line, places in drawn.items():
    number = names.index(line)
    _points(
      axes,
      in_words(dict(zip(lines, line, strict=True))) or y,
      places,
      COLORS[number],
      _MARKERS[number],
      # Intervals at the same place are drawn side by side.
      aside=3.0 * (number - (len(drawn) - 1) / 2),
    )
  for line, (level, low, high) in levels.items():
    number = names.index(line)
    label = in_words(dict(zip(lines, line, strict=True))) or y
    axes.axhline(
      level,
      color=COLORS[number],
      linestyle=DASHES[1 + number % (len(DASHES) - 1)],
      label=label,
    )
    if np.isfinite(low):
      axes.axhspan(low, high, color=COLORS[number], alpha=0.12, linewidth=0)
  lowest = min(min(places) for places in drawn.values())
  if lowest > 0:
    drawing.logarithmic(axes, lowest)
    axes.margins(x=0.04)
  axes.set_title(literal(title), loc='left')
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label)
  if lines:
    explanation += f'\ncolor: {", ".join(lines)}'
  drawing.side_legend(figure, drawing.lines_of(axes), explanation)
  drawing.save(figure, path)


def _wrapped(notes: Sequence[str], letters: int = 28) -> list[str]:
  return [line for note in notes for line in textwrap.wrap(note, letters)]


def _plot_rows(
  path: str | os.PathLike[str],
  points: Sequence[Point],
  estimates: Sequence[tuple[Any, Any, Any]],
  color: Sequence[str],
  title: str,
  label: str,
  notes: Sequence[str],
) -> None:
  """Draws a row for each setting: an estimate and its interval."""
  asked = [name for name in color if all(p[name] is not None for p in points)]
  values = [tuple(point[name] for name in asked) for point in points]
  shown = list(dict.fromkeys(values))
  names = [in_words(point) or label for point in points]
  # Beside the names of rows there is room for the notes below them.
  wide = max(8.3, 5.6 + 0.075 * max(map(len, names)))
  figure = drawing.new_figure(wide, 1.3 + 0.27 * len(points))
  axes = figure.subplots()
  drawing.tidy(axes)
  axes.grid(axis='x', color='#dddddd', linewidth=0.8)
  axes.xaxis.set_major_formatter(drawing.plain())
  for row, ((middle, low, high), value) in enumerate(
    zip(estimates, values, strict=True)
  ):
    look = COLORS[shown.index(value) if len(shown) <= len(COLORS) else 0]
    if np.isfinite(low):
      axes.hlines(row, low, high, color=look, alpha=0.55, linewidth=3)
    if np.isfinite(middle):
      axes.plot([middle], [row], 'o', color=look, markersize=5)
  axes.set_yticks(range(len(points)), names, fontsize='small')
  axes.set_ylim(len(points) - 0.5, -0.5)
  axes.set_title(literal(title), loc='left')
  words = [label, *_wrapped(notes, 60)]
  if asked and 1 < len(shown) <= len(COLORS):
    words.append(f'color: {", ".join(asked)}')
  axes.set_xlabel('\n'.join(words))
  drawing.save(figure, path)


def _points(
  axes: Any,
  label: str,
  estimates: Mapping[float, tuple],
  color: str,
  marker: str,
  aside: float,
) -> None:
  """Draws estimates with their intervals at their places.

  Args:
    axes: axes to draw into.
    label: name in the legend.
    estimates: (middle, low, high) by place.
    color: color of everything drawn.
    marker: marker of the estimates.
    aside: points by which everything is shifted to the right.
  """
  from matplotlib.transforms import ScaledTranslation

  scale = axes.figure.dpi_scale_trans
  shifted = axes.transData + ScaledTranslation(aside / 72, 0, scale)
  places = np.array(sorted(estimates))
  middle, low, high = np.array([estimates[p] for p in places]).T
  shown = np.isfinite(middle)
  axes.plot(
    places[shown],
    middle[shown],
    color=color,
    linewidth=1.8,
    marker=marker,
    markersize=5,
    label=label,
    transform=shifted,
  )
  known = np.isfinite(low)
  axes.vlines(
    places[known],
    low[known],
    high[known],
    color=color,
    alpha=0.55,
    linewidth=3,
    transform=shifted,
  )
  # Shifted artists do not update the limits by themselves.
  axes.update_datalim(np.stack([places, places], axis=1), updatey=False)
  for heights in (middle, low, high):
    points = np.stack([places, heights], axis=1)
    axes.update_datalim(points[np.isfinite(heights)])
  axes.autoscale_view()


def _figure() -> tuple[Any, Any]:
  """Returns an empty figure, and its axes."""
  figure, (axes,) = _grid(1)
  return figure, axes


def _grid(panes: int) -> tuple[Any, list[Any]]:
  """Returns an empty figure, and its axes with shared scales."""
  across = 1 if panes == 1 else 2
  rows = -(-panes // across)
  size = (6.4, 4.0) if panes == 1 else (7.4, 0.4 + 2.9 * rows)
  figure = drawing.new_figure(*size)
  grid = figure.subplots(
    rows, across, sharex=True, sharey=True, squeeze=False
  ).ravel()
  for axes in grid[panes:]:
    axes.remove()
  for axes in grid[:panes]:
    drawing.tidy(axes)
  for axes in grid[max(panes - across, 0) : panes]:
    axes.xaxis.set_tick_params(labelbottom=True)
  return figure, list(grid[:panes])


def _draw(
  axes: Any,
  curve: Curve,
  color: str,
  style: str,
  *,
  width: float = 1.8,
  alpha: float = 1.0,
) -> None:
  if curve.x is None:
    _draw_level(axes, curve, color, style)
    return
  x, y = np.asarray(curve.x, np.float64), np.asarray(curve.y, np.float64)
  if x.ndim != 1 or x.shape != y.shape:
    raise ValueError(f'{curve.label}: x {x.shape} and y {y.shape} differ')
  shown = np.isfinite(x) & np.isfinite(y)
  # Markers show that a line has few points, and a single point at all.
  marker = 'o' if shown.sum() <= 20 else ''
  axes.plot(
    x[shown],
    y[shown],
    color=color,
    linestyle=style,
    linewidth=width,
    alpha=alpha,
    marker=marker,
    markersize=4 if width > 1 else 2,
    label=literal(curve.label),
  )
  if curve.spread is not None:
    spread = np.broadcast_to(np.asarray(curve.spread, np.float64), y.shape)
    axes.fill_between(
      x[shown],
      (y - spread)[shown],
      (y + spread)[shown],
      color=color,
      alpha=0.18,
      linewidth=0,
    )


def _draw_level(axes: Any, curve: Curve, color: str, style: str) -> None:
  level = float(curve.y)
  axes.axhline(
    level,
    color=color,
    linestyle=style,
    linewidth=1.5,
    label=literal(curve.label),
  )
  if curve.spread is not None:
    spread = float(curve.spread)
    axes.axhspan(
      level - spread, level + spread, color=color, alpha=0.12, linewidth=0
    )
