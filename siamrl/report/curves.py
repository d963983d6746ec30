"""Learning curves: return against frames, beside published ones.

And those of sweeps: a line for each setting, with an interval over its runs.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from siamrl.report import drawing, statistics
from siamrl.report.drawing import COLOURS, GREY, Point
from siamrl.report.metrics import (
  RUN_COLUMN,
  STEP_COLUMN,
  Table,
  by_run,
  group_rows,
  read_metrics,
)

_REFERENCE_STYLES = ('--', ':', '-.')
_MARKERS = 'osD^vP'

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
  title: str = '',
  x_label: str = 'frames',
  y_label: str = 'return',
) -> None:
  """Draws curves into a PNG file, which is replaced at once.

  Args:
    path: the file; its directory exists.
    series: what was measured, in colours.
    references: what to hold it against, in grey and dashed.
    title: above the axes.
    x_label: below them, with the unit.
    y_label: beside them.

  Raises:
    ImportError: if Matplotlib is not installed.
    OSError: if the file cannot be written.
    ValueError: if the lengths within a curve differ.
  """
  figure, axes = _figure()
  for index, curve in enumerate(references):
    style = _REFERENCE_STYLES[index % len(_REFERENCE_STYLES)]
    _draw(axes, curve, GREY, style)
  for index, curve in enumerate(series):
    _draw(axes, curve, COLOURS[index % len(COLOURS)], '-')
  axes.set_title(title, loc='left')
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label)
  if series or references:
    axes.legend(frameon=False)
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
  title: str = '',
  x_label: str | None = None,
  y_label: str | None = None,
  statistic: statistics.Statistic = statistics.mean,
) -> None:
  """Draws a line for each setting of a sweep into a PNG file.

  A point is a statistic over the runs of the setting that have a value there,
  the band its 95 % t interval (`statistics.over_runs`); one run has no band.
  Colours follow the order of numbers, styles tell other values apart.

  Args:
    path: the file, replaced at once; its directory exists.
    table: [R] arrays by column, in long form.
    x: the column of the clock, such as 'env_steps'.
    y: the column of what was measured.
    by: the columns whose values make a setting; may be none.
    run: the column that tells the runs of one setting apart.
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
  figure, axes = _figure()
  runs = set()
  for group, point, look in zip(
    groups.values(), points, drawing.looks(points), strict=True
  ):
    clock, values = by_run(group, x, y, run)
    runs.add(len(values))
    drawing.line(
      axes,
      drawing.in_words(point) or y,
      clock,
      statistics.over_runs(values, statistic),
      *look,
      opacity=drawing.band_opacity(len(groups)),
    )
  axes.set_title(title, loc='left')
  axes.set_xlabel(x_label or x)
  axes.set_ylabel(y_label or y)
  drawing.side_legend(figure, axes, drawing.explanation(statistic, runs))
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
  summary: Summary = statistics.final_mean,
  run: str = RUN_COLUMN,
  title: str = '',
  x_label: str = '',
  y_label: str | None = None,
  statistic: statistics.Statistic = statistics.mean,
) -> None:
  """Draws what the settings of a sweep come to, against a swept value.

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
  runs = set()
  for key, group in group_rows(table, by).items():
    point = dict(zip(by, key, strict=True))
    clock, values = by_run(group, x, y, run)
    runs.add(len(values))
    estimate = statistics.over_runs(summary(clock, values), statistic)
    line, place = tuple(point[name] for name in lines), position(point)
    others = levels if place is None else drawn.setdefault(line, {})
    where: Any = line if place is None else float(place)
    if where in others:
      raise ValueError(f'two settings at {where} of the line {line}: {point}')
    others[where] = estimate
  figure, axes = _figure()
  names = list(dict.fromkeys([*drawn, *levels]))
  for line, estimates in drawn.items():
    number = names.index(line)
    _points(
      axes,
      drawing.in_words(dict(zip(lines, line, strict=True))) or y,
      estimates,
      COLOURS[number % len(COLOURS)],
      _MARKERS[number % len(_MARKERS)],
    )
  for line, (level, low, high) in levels.items():
    colour = COLOURS[names.index(line) % len(COLOURS)]
    label = drawing.in_words(dict(zip(lines, line, strict=True))) or y
    axes.axhline(level, color=colour, linestyle='--', label=label)
    if np.isfinite(low):
      axes.axhspan(low, high, color=colour, alpha=0.12, linewidth=0)
  if drawn and min(min(places) for places in drawn.values()) > 0:
    axes.set_xscale('log')
    axes.xaxis.set_major_formatter(drawing.engineering())
    axes.xaxis.set_minor_formatter(drawing.minor_engineering())
    axes.margins(x=0.04)
  axes.set_title(title, loc='left')
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label or f'{y}, {summary.__name__.replace("_", " ")}')
  drawing.side_legend(figure, axes, drawing.explanation(statistic, runs))
  drawing.save(figure, path)


def _points(
  axes: Any,
  label: str,
  estimates: Mapping[float, tuple],
  colour: str,
  marker: str,
) -> None:
  """Draws estimates with their intervals at their places."""
  places = np.array(sorted(estimates))
  middle, low, high = np.array([estimates[p] for p in places]).T
  shown = np.isfinite(middle)
  axes.plot(
    places[shown],
    middle[shown],
    color=colour,
    linewidth=1.8,
    marker=marker,
    markersize=5,
    label=label,
  )
  known = np.isfinite(low)
  axes.vlines(
    places[known],
    low[known],
    high[known],
    color=colour,
    alpha=0.55,
    linewidth=3,
  )


def _figure() -> tuple[Any, Any]:
  """An empty figure, and its axes."""
  figure = drawing.new_figure(6.4, 4.0)
  axes = figure.subplots()
  drawing.tidy(axes)
  return figure, axes


def _draw(axes: Any, curve: Curve, colour: str, style: str) -> None:
  if curve.x is None:
    _draw_level(axes, curve, colour, style)
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
    color=colour,
    linestyle=style,
    linewidth=1.8,
    marker=marker,
    markersize=4,
    label=curve.label,
  )
  if curve.spread is not None:
    spread = np.broadcast_to(np.asarray(curve.spread, np.float64), y.shape)
    axes.fill_between(
      x[shown],
      (y - spread)[shown],
      (y + spread)[shown],
      color=colour,
      alpha=0.18,
      linewidth=0,
    )


def _draw_level(axes: Any, curve: Curve, colour: str, style: str) -> None:
  level = float(curve.y)
  axes.axhline(
    level, color=colour, linestyle=style, linewidth=1.5, label=curve.label
  )
  if curve.spread is not None:
    spread = float(curve.spread)
    axes.axhspan(
      level - spread, level + spread, color=colour, alpha=0.12, linewidth=0
    )
