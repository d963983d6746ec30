"""Learning curves: return against frames, beside published ones."""

import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from siamrl.report.metrics import STEP_COLUMN, read_metrics
from siamrl.report.run_folder import write_atomically

# Okabe and Ito's colours: told apart without full colour vision.
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_REFERENCE_COLOUR = '#777777'
_REFERENCE_STYLES = ('--', ':', '-.')

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
    _draw(axes, curve, _REFERENCE_COLOUR, style)
  for index, curve in enumerate(series):
    _draw(axes, curve, _COLOURS[index % len(_COLOURS)], '-')
  axes.set_title(title, loc='left')
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label)
  if series or references:
    axes.legend(frameon=False)
  content = io.BytesIO()
  figure.savefig(content, format='png')
  write_atomically(pathlib.Path(path), content.getvalue())


def plot_run(
  metrics_path: str | os.PathLike[str],
  curve_path: str | os.PathLike[str],
  *,
  title: str,
  references: Sequence[Curve] = (),
  columns: Mapping[str, str] = RETURN_COLUMNS,
) -> None:
  """Draws the returns of one run against the frames of the emulator.

  Args:
    metrics_path: the run's metrics.csv, with the column `frames`.
    curve_path: the PNG file to write.
    title: what was run, such as 'pong, dqn'.
    references: published curves or levels, x in frames.
    columns: labels by column; those that the run lacks are passed over.

  Raises:
    FileNotFoundError: if there are no metrics.
    ImportError: if Matplotlib is not installed.
    ValueError: if the file is not one of metrics, or has no frames.
  """
  metrics = read_metrics(metrics_path)
  if STEP_COLUMN not in metrics:
    raise ValueError(f'{metrics_path}: no column {STEP_COLUMN!r}')
  series = [
    Curve(label, metrics[STEP_COLUMN], metrics[column])
    for column, label in columns.items()
    if column in metrics
  ]
  plot_curve(curve_path, series, references, title=title)


def _figure() -> tuple[Any, Any]:
  """An empty figure that no global state knows of, and its axes."""
  try:
    from matplotlib.figure import Figure  # a second, so not at start-up
    from matplotlib.ticker import EngFormatter
  except ImportError as error:
    raise ImportError(
      'curves need Matplotlib: pip install siamrl[plots]'
    ) from error
  figure = Figure(figsize=(6.4, 4.0), dpi=150, layout='constrained')
  axes = figure.subplots()
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(axis='y', color='#dddddd', linewidth=0.8)
  axes.set_axisbelow(True)
  axes.xaxis.set_major_formatter(EngFormatter(sep=''))  # 50M, not 5e7
  axes.margins(x=0.02)
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
