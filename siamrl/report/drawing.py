"""Common parts of figures: styles, lines with bands, legends, files."""

import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from siamrl.optional import NotInstalledError, import_optional
from siamrl.report import statistics
from siamrl.report.arrangement import Arrangement, Point
from siamrl.report.run_folder import write_atomically

GRAY = '#777777'  # of references

# (y, low, high), [T] each, as `statistics.over_runs` has them.
Estimate = tuple[np.ndarray, np.ndarray, np.ndarray]


def new_figure(width: float, height: float) -> Any:
  """Returns an empty figure that is not part of any global state.

  Args:
    width: width in inches.
    height: height in inches.

  Raises:
    ImportError: if Matplotlib is not installed, or cannot be imported.
  """
  return _figures().Figure(
    figsize=(width, height), dpi=150, layout='constrained'
  )


def can_draw() -> bool:
  """Returns whether Matplotlib is installed.

  Raises:
    ImportError: if it is installed, but cannot be imported.
  """
  try:
    _figures()
  except NotInstalledError:
    return False
  return True


def _figures() -> Any:
  """Imports `matplotlib.figure`, which takes a second, so not at start-up.

  The import does not see MPLBACKEND. That names a backend for figures on a
  screen, which is not needed here, and would be an error if it is not
  installed, such as a notebook's.
  """
  backend = os.environ.pop('MPLBACKEND', None)
  try:
    return import_optional(
      'matplotlib.figure', 'curves need Matplotlib', 'plots'
    )
  finally:
    if backend is not None:
      os.environ['MPLBACKEND'] = backend


def tidy(axes: Any) -> None:
  """Styles axes as in all figures, with short large numbers below."""
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(axis='y', color='#dddddd', linewidth=0.8)
  axes.set_axisbelow(True)
  axes.xaxis.set_major_formatter(engineering())
  axes.margins(x=0.02)


def engineering() -> Any:
  """Returns the formatter that writes 50M, not 5e7."""
  from matplotlib.ticker import EngFormatter

  return EngFormatter(sep='')


def plain() -> Any:
  """Returns the formatter that writes 0.025, not 25m."""
  from matplotlib.ticker import FuncFormatter

  return FuncFormatter(lambda value, _: f'{value:g}')


def minor_engineering() -> Any:
  """Returns the formatter of minor ticks that writes 20, not 2e1."""
  from matplotlib.ticker import LogFormatter

  write = engineering()

  class Formatter(LogFormatter):
    # Matplotlib decides which of the ticks have a label.
    def __call__(self, x: float, pos: Any = None) -> str:
      return write(x) if super().__call__(x, pos) else ''

  return Formatter()


def logarithmic(axes: Any, lowest: float) -> None:
  """Makes the horizontal axis logarithmic, with labels 50, 1k or 0.05, 1.

  Args:
    axes: axes to change.
    lowest: lowest value on the axis.
  """
  axes.set_xscale('log')
  if lowest < 1:
    axes.xaxis.set_major_formatter(plain())
  else:
    axes.xaxis.set_major_formatter(engineering())
    axes.xaxis.set_minor_formatter(minor_engineering())


def save(figure: Any, path: str | os.PathLike[str]) -> None:
  """Writes a PNG file of at most 256 colors, which is replaced atomically."""
  from PIL import Image  # Matplotlib needs it too

  content = io.BytesIO()
  figure.savefig(content, format='png')
  # Overlapping bands have many colors, which would triple the file's size.
  image = (
    Image.open(content).convert('RGB').quantize(256, dither=Image.Dither.NONE)
  )
  content = io.BytesIO()
  image.save(content, format='png', optimize=True)
  write_atomically(pathlib.Path(path), content.getvalue())


def explanation(statistic: statistics.Statistic, runs: set[int]) -> str:
  """Returns the legend's explanation of lines and bands.

  Args:
    statistic: statistic over the runs.
    runs: the numbers of runs of the lines.
  """
  most = max(runs, default=0)
  if most < 2:
    return '1 seed'
  name = 'IQM' if statistic is statistics.iqm else statistic.__name__
  count = str(most) if len(runs) == 1 else f'{min(runs)} to {most}'
  return f'{name} of {count} seeds;\nt intervals, 95 % where\nseeds are normal'


def count_note(clock: np.ndarray, values: np.ndarray) -> str:
  """Returns the numbers of runs in a line if some end early; '' if none does.

  Args:
    clock: [T] ascending.
    values: [runs, T]; NaN where a run has no value.
  """
  known = np.isfinite(values)
  known = known[known.any(axis=1)]
  if not len(known):
    return ''
  last = known.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
  ends = np.unique(last)
  if len(ends) < 2:
    return ''
  write = engineering()
  texts = [f'{(last >= end).sum()} to {write(clock[end])}' for end in ends]
  if len(texts) > 3:
    texts = [texts[0], '...', texts[-1]]
  return f' (runs: {", ".join(texts)})'


def line(
  axes: Any,
  label: str,
  x: np.ndarray,
  estimate: Estimate,
  color: Any,
  style: Any = '-',
  *,
  opacity: float,
  width: float = 1.6,
) -> None:
  """Draws a line with its band; NaNs are left out.

  Args:
    axes: axes to draw into.
    label: name in the legend.
    x: [T].
    estimate: at `x`.
    color: color of line and band.
    style: style of the line.
    opacity: opacity of the band.
    width: width of the line, in points.
  """
  y, low, high = estimate
  shown = np.isfinite(y)
  axes.plot(
    x[shown],
    y[shown],
    color=color,
    linestyle=style,
    linewidth=width,
    marker='o' if shown.sum() == 1 else '',
    label=label,
  )
  banded = np.isfinite(low)
  if banded.any():
    axes.fill_between(
      x[banded],
      low[banded],
      high[banded],
      color=color,
      alpha=opacity,
      linewidth=0,
    )


def band_opacity(lines: int) -> float:
  """Returns a low opacity for many bands, which would hide the lines."""
  return min(0.16, 1.2 / lines)


def side_legend(
  figure: Any, labels: Mapping[str, Any], title: str, *, width: float = 1.9
) -> None:
  """Adds a legend beside all axes, and widens the figure for it.

  Args:
    figure: figure as wide as its axes should be.
    labels: drawn artists by name.
    title: text above the names.
    width: inches that a column of names adds to the figure.
  """
  across, height = figure.get_size_inches()
  columns = 1 + (len(labels) - 1) // int(4 * height)
  # A column is as wide as its longest name, some 0.075 inches per letter.
  width = max(width, 0.65 + 0.07 * max(map(len, labels), default=0))
  figure.set_size_inches(across + width * columns, height)
  figure.legend(
    list(labels.values()),
    list(labels),
    loc='outside right upper',
    title=title,
    alignment='left',
    frameon=False,
    fontsize='small',
    title_fontsize='small',
    handlelength=2.6,
    ncols=columns,
  )


def lines_of(axes: Any) -> dict[str, Any]:
  """Returns the artists in the legend of some axes, by name."""
  handles, labels = axes.get_legend_handles_labels()
  return dict(zip(labels, handles, strict=True))


def pane_legend(
  arrangement: Arrangement, points: Sequence[Point], notes: Sequence[str] = ()
) -> dict[str, Any]:
  """Returns lines for a legend of all panes of a figure, by name.

  Args:
    arrangement: arrangement of the panes.
    points: the settings that were arranged.
    notes: text to append to the name of each; none by default.
  """
  from matplotlib.lines import Line2D

  looks = {
    repr(look): look for pane in arrangement.panes for look in pane.looks
  }
  return {
    text: Line2D([], [], color=looks[name][0], linestyle=looks[name][1])
    for name, text in arrangement.labels(points, notes).items()
  }
