"""Learning curves: return against frames, beside published ones.

And those of sweeps: a line for each setting, with an interval over its runs.
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
_MOST_LEVELS = 2  # whose bands can be told apart where they overlap
_MARKERS = 'osD^vPX*'

# Columns of metrics.csv that `plot_run` draws where they are, and their labels.
RETURN_COLUMNS: Mapping[str, str] = {
  'train_return': 'training',
  'eval_return': 'evaluation',
}


class Curve(NamedTuple):
  """A line with, perhaps, a band around it. Points with a NaN are left out.

  Attributes:
    label: its name in the legend.
    x: [T], or None for a level, drawn over the whole width.
    y: [T], or a scalar where x is None.
    spread: [T] or a scalar, half the height of the band, such as a standard
      deviation; None for no band.
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
  """Draws curves into a PNG file, which is replaced at once.

  Args:
    path: the file; its directory exists.
    series: what was measured, each with a look of its own.
    references: what to hold it against, in gray and dashed.
    faint: thin lines, without a name, that have the look of the series with the
      same label, such as the runs of which that is the mean.
    title: above the axes.
    x_label: below them, with the unit.
    y_label: beside them.
    explanation: above the legend: what lines and bands are.

  Raises:
    ImportError: if Matplotlib is not installed.
    OSError: if the file cannot be written.
    ValueError: if the lengths within a curve differ, or there are more series
      than can be told apart.
  """
  if len(series) > MOST_LINES:
    raise ValueError(
      f'{len(series)} curves are too many to be told apart: at most '
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
    title: what was run, such as 'pong, dqn'.
    references: published curves or levels, by the same clock.
    columns: labels by column; those that the run lacks are passed over.
    x: the column of the clock: the emulator's frames by default.

  Raises:
    FileNotFoundError: if there are no metrics.
    ImportError: if Matplotlib is not installed.
    ValueError: if the file is not one of metrics, or has no such clock.
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
) -> None:
  """Draws a line for each setting of a sweep into a PNG file.

  A point is a statistic over the runs of the setting that have a value there,
  the band its 95 % t interval (`statistics.over_runs`); one run has no band.
  Where runs of a setting end at different times, the legend says how many there
  are up to which. `arrange` says which lines share axes, and how they look.

  Args:
    path: the file, replaced at once; its directory exists.
    table: [R] arrays by column, in long form.
    x: the column of the clock, such as 'env_steps'.
    y: the column of what was measured.
    by: the columns whose values make a setting; may be none.
    run: the column that tells the runs of one setting apart.
    facet: those of `by` with axes for each of their values; None to choose.
    color: those of `by` that color shows; by default those with numbers.
    title: above the axes.
    x_label: below them, with the unit; the name of the column by default.
    y_label: beside them; likewise.
    statistic: over the runs.

  Raises:
    ImportError: if Matplotlib is not installed.
    OSError: if the file cannot be written.
    ValueError: if there is no such column, or a setting's run has two rows for
      one value of the clock.
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
    notes = [drawing.count_note(*curve) for curve in curves]
    names = drawing.pane_legend(arrangement, points, notes)
  else:
    grid[0].set_title(literal(title), loc='left')
    grid[0].set_xlabel(x_label or x)
    grid[0].set_ylabel(y_label or y)
    names = drawing.lines_of(grid[0])
  drawing.side_legend(
    figure, names, '\n'.join(filter(None, [explanation, arrangement.key]))
  )
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
) -> None:
  """Draws what the settings of a sweep come to, against a swept value.

  Where no line has two places, or there are more lines and levels than can be
  told apart, each setting gets a row of its own instead, with its name.

  Args:
    path: the PNG file, replaced at once; its directory exists.
    table: [R] arrays by column, in long form.
    x: the column of the clock, such as 'env_steps'.
    y: the column of what was measured.
    by: the columns whose values make a setting.
    position: where a setting stands on the horizontal axis, which is
      logarithmic if all are positive; None for a level over the whole width.
      Values of unlike options may share a scale so: a rate its matched period.
    lines: those of `by` whose values make a line.
    color: those of `by` that the color of rows shows.
    summary: a number for each curve: `final_mean`, `area_under_curve`.
    run: the column that tells the runs of one setting apart.
    title: above the axes.
    x_label: below them, with the unit.
    y_label: beside them, with the kind of summary; by default the column's name
      and the summary's.
    statistic: over the runs.

  Raises:
    ImportError: if Matplotlib is not installed.
    OSError: if the file cannot be written.
    ValueError: as `plot_sweep` does, or two settings of one line stand at the
      same place.
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
    _plot_rows(path, points, estimates, color, title, y_label, explanation)
    return
  figure, axes = _figure()
  for line, places in drawn.items():
    number = names.index(line)
    _points(
      axes,
      in_words(dict(zip(lines, line, strict=True))) or y,
      places,
      COLORS[number],
      _MARKERS[number],
      # Intervals at one place stand beside each other.
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


def _plot_rows(
  path: str | os.PathLike[str],
  points: Sequence[Point],
  estimates: Sequence[tuple[Any, Any, Any]],
  color: Sequence[str],
  title: str,
  label: str,
  explanation: str,
) -> None:
  """Draws a row for each setting: an estimate and its interval."""
  asked = [name for name in color if all(p[name] is not None for p in points)]
  values = [tuple(point[name] for name in asked) for point in points]
  shown = list(dict.fromkeys(values))
  figure = drawing.new_figure(8.3, 1.3 + 0.27 * len(points))
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
  axes.set_yticks(
    range(len(points)), [in_words(p) or label for p in points], fontsize='small'
  )
  axes.set_ylim(len(points) - 0.5, -0.5)
  axes.set_title(literal(title), loc='left')
  words = [label, *textwrap.wrap(explanation, 60)]
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
    axes: to draw into.
    label: its name in the legend.
    estimates: (middle, low, high) by place.
    color: of all.
    marker: of the estimates.
    aside: by how many points everything is shifted to the right.
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
  # What is shifted does not count by itself.
  axes.update_datalim(np.stack([places, places], axis=1), updatey=False)
  for heights in (middle, low, high):
    points = np.stack([places, heights], axis=1)
    axes.update_datalim(points[np.isfinite(heights)])
  axes.autoscale_view()


def _figure() -> tuple[Any, Any]:
  """An empty figure, and its axes."""
  figure, (axes,) = _grid(1)
  return figure, axes


def _grid(panes: int) -> tuple[Any, list[Any]]:
  """An empty figure with axes that share their scales."""
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
  # A line of few points could pass for one of many, and one has no length.
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
