"""Figures that compare settings over tasks, as wide as a column of a paper.

They show what rliable shows (Agarwal et al. 2021, arXiv:2108.13264): aggregates
with intervals, performance profiles, probabilities of improvement, and
aggregates over steps or wall time.
"""

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from siamrl.report import drawing
from siamrl.report.aggregates import Estimate
from siamrl.report.arrangement import COLORS, DASHES, literal

_ROW = 0.17  # inches
_ABREAST = 2  # panes
_LETTERS = 26  # of a name beside panes


def plot_aggregates(
  path: str | os.PathLike[str],
  found: Mapping[str, Mapping[str, Estimate]],
  *,
  label: str,
  title: str = '',
  explanation: str = '',
  zero: bool = False,
) -> None:
  """Draws a pane for each aggregate, with a row for each setting.

  Args:
    path: the PNG file, replaced atomically; its directory exists.
    found: (estimate, low, high) by the title of the pane and the setting; all
      panes have the same settings.
    label: label of the scores, with their unit.
    title: text above the panes.
    explanation: text below them.
    zero: whether to draw a line at 0.

  Raises:
    ImportError: if Matplotlib is not installed.
    OSError: if the file cannot be written.
  """
  names = list(next(iter(found.values())))
  down = -(-len(found) // _ABREAST)
  with drawing.small_text():
    figure = drawing.new_column(down * (0.45 + _ROW * len(names)) + 0.3)
    grid = figure.subplots(
      down, min(_ABREAST, len(found)), sharey=True, squeeze=False
    ).ravel()
    # Long names would leave no room for the panes; they go below.
    below = max(map(len, names)) > _LETTERS
    for axes, (about, estimates) in zip(grid, found.items(), strict=False):
      _tidy_rows(axes, [''] * len(names) if below else names)
      for row, estimate in enumerate(estimates.values()):
        _bar(axes, row, estimate, COLORS[row % len(COLORS)])
      if zero:
        axes.axvline(0, color=drawing.GRAY, linestyle='--', linewidth=0.8)
      axes.set_title(about, loc='left')
      axes.locator_params(axis='x', nbins=4)
    for axes in grid[len(found) :]:
      axes.remove()
    labels = {}
    if below:
      colors = [COLORS[row % len(COLORS)] for row in range(len(names))]
      labels = dict(zip(names, map(drawing.swatch, colors), strict=True))
    figure.suptitle(literal(title), x=0.01, ha='left', fontsize=8)
    for axes in grid[: len(found)][-_ABREAST:]:
      axes.set_xlabel(label)
    drawing.caption(figure, explanation, labels)
    drawing.save(figure, path)


def plot_improvement(
  path: str | os.PathLike[str],
  found: Mapping[tuple[str, str], Estimate],
  *,
  title: str = '',
  explanation: str = '',
) -> None:
  """Draws a row for each pair (A, B): how likely a run of A exceeds one of B.

  Args:
    path: the PNG file, replaced atomically; its directory exists.
    found: (estimate, low, high) by pair.
    title: text above the axes.
    explanation: text below them.

  Raises:
    ImportError: if Matplotlib is not installed.
    OSError: if the file cannot be written.
  """
  with drawing.small_text():
    names = [
      '\n'.join(textwrap.wrap(a, _LETTERS) + textwrap.wrap(f'> {b}', _LETTERS))
      for a, b in found
    ]
    lines = max(name.count('\n') for name in names) + 1
    figure = drawing.new_column(0.7 + 0.75 * lines * _ROW * len(found))
    axes = figure.subplots()
    _tidy_rows(axes, names)
    for row, estimate in enumerate(found.values()):
      _bar(axes, row, estimate, COLORS[0])
    axes.axvline(0.5, color=drawing.GRAY, linestyle='--', linewidth=0.8)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel('P(A > B)')
    axes.set_title(literal(title), loc='left')
    drawing.caption(figure, explanation)
    drawing.save(figure, path)


def plot_lines(
  path: str | os.PathLike[str],
  found: Mapping[str, tuple[np.ndarray, Estimate]],
  *,
  x_label: str,
  y_label: str,
  title: str = '',
  explanation: str = '',
  fractions: bool = False,
) -> None:
  """Draws a line with a band for each setting, and the legend below.

  Args:
    path: the PNG file, replaced atomically; its directory exists.
    found: (x [T], (estimate, low, high) [T] each) by setting, such as a
      performance profile or a curve of sample efficiency.
    x_label: label of the horizontal axis, with the unit.
    y_label: label of the vertical axis.
    title: text above the axes.
    explanation: text above the legend.
    fractions: whether heights are fractions, of an axis from 0 to 1.

  Raises:
    ImportError: if Matplotlib is not installed.
    OSError: if the file cannot be written.
  """
  with drawing.small_text():
    figure = drawing.new_column(2.1)
    axes = figure.subplots()
    drawing.tidy(axes)
    axes.grid(color='#dddddd', linewidth=0.5)
    if fractions:
      axes.xaxis.set_major_formatter(drawing.plain())
      axes.set_ylim(-0.02, 1.02)
    for number, (name, (x, estimate)) in enumerate(found.items()):
      drawing.line(
        axes,
        name,
        x,
        estimate,
        COLORS[number % len(COLORS)],
        DASHES[number % len(DASHES)],
        opacity=drawing.band_opacity(len(found)),
        width=1.2,
      )
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(literal(title), loc='left')
    drawing.caption(figure, explanation, drawing.lines_of(axes))
    drawing.save(figure, path)


def plot_heatmap(
  path: str | os.PathLike[str],
  rows: Sequence[str],
  columns: Sequence[str],
  estimates: Mapping[tuple[int, int], Estimate],
  *,
  x_label: str,
  y_label: str,
  color_label: str,
  title: str = '',
  explanation: str = '',
) -> None:
  """Draws a grid of settings, with a color and a number for each.

  A number has half the width of its interval below it. Cells without a setting
  are hatched.

  Args:
    path: the PNG file, replaced atomically; its directory exists.
    rows: names of the rows.
    columns: names of the columns.
    estimates: (estimate, low, high) by row and column.
    x_label: label of the columns, with the unit.
    y_label: label of the rows.
    color_label: label of the numbers, with the unit.
    title: text above the grid.
    explanation: text below it.

  Raises:
    ImportError: if Matplotlib is not installed.
    OSError: if the file cannot be written.
  """
  values = np.full((len(rows), len(columns)), np.nan)
  for place, (estimate, _, _) in estimates.items():
    values[place] = estimate
  with drawing.small_text():
    cell = max(0.26, 0.7 / len(rows))
    # Beside long names a column of the page leaves no room for the cells.
    named = 0.06 * max(map(len, rows)) + 0.9
    wide = max(drawing.COLUMN, min(8.0, named + 0.4 * len(columns)))
    figure = drawing.new_column(0.9 + cell * len(rows), wide)
    axes = figure.subplots()
    axes.set_facecolor('#eeeeee')
    axes.patch.set_hatch('////')
    axes.patch.set_edgecolor('#bbbbbb')
    image = axes.imshow(values, cmap='cividis', aspect='auto')
    # As many letters as fit between the borders of a cell.
    size = min(6.5, 45 / len(columns))
    for (row, column), found in estimates.items():
      axes.text(
        column,
        row,
        _number(found, size >= 4.5),
        ha='center',
        va='center',
        fontsize=size,
        color='white' if _is_dark(image, values[row, column]) else 'black',
      )
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    if max(map(len, columns)) * len(columns) > 45:
      axes.tick_params(axis='x', rotation=90)
    axes.tick_params(length=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(literal(title), loc='left')
    bar = figure.colorbar(
      image, ax=axes, fraction=0.05, pad=0.02, aspect=10 * cell * len(rows)
    )
    bar.set_label(color_label)
    bar.outline.set_visible(False)
    drawing.caption(figure, explanation)
    drawing.save(figure, path)


def _tidy_rows(axes: Any, names: Sequence[str]) -> None:
  """Styles axes with a named row for each estimate."""
  axes.spines[['top', 'right', 'left']].set_visible(False)
  axes.grid(axis='x', color='#dddddd', linewidth=0.5)
  axes.set_axisbelow(True)
  axes.xaxis.set_major_formatter(drawing.plain())
  axes.set_yticks(range(len(names)), names)
  axes.tick_params(axis='y', length=0)
  axes.set_ylim(len(names) - 0.4, -0.6)
  axes.use_sticky_edges = False
  axes.margins(x=0.05)


def _bar(axes: Any, row: int, estimate: Estimate, color: str) -> None:
  """Draws an interval as a bar with a line at the estimate."""
  middle, low, high = map(float, estimate)
  if np.isfinite(low):
    axes.barh(row, high - low, 0.6, left=low, color=color, alpha=0.55)
    axes.vlines(middle, row - 0.3, row + 0.3, color='black', linewidth=1)
  elif np.isfinite(middle):
    axes.plot([middle], [row], 'o', color=color, markersize=3)


def _number(estimate: Estimate, fits: bool) -> str:
  middle, low, high = map(float, estimate)
  if not np.isfinite(middle):
    return ''
  half = (high - low) / 2
  return _short(middle) + (
    f'\n±{_short(half)}' if fits and np.isfinite(half) else ''
  )


def _short(value: float) -> str:
  digits = 0 if abs(value) >= 10 else 1 if abs(value) >= 1 else 2
  return f'{value:.{digits}f}'


def _is_dark(image: Any, value: float) -> bool:
  red, green, blue, _ = image.cmap(image.norm(value))
  return 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
