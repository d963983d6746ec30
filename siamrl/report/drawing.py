"""What figures share: colours and styles, lines with bands, legends, files."""

import io
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from siamrl.optional import NotInstalledError, import_optional
from siamrl.report import statistics
from siamrl.report.run_folder import write_atomically

# Okabe and Ito's colours: told apart without full colour vision.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
GREY = '#777777'
# Of a sweep's lines; dashes and gaps are in widths of the line.
STYLES = ('-', '--', ':', '-.', (0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)))

Point = dict[str, Any]  # values of the swept columns; None for no meaning
# (y, low, high), [T] each, as `statistics.over_runs` has them.
Estimate = tuple[np.ndarray, np.ndarray, np.ndarray]


def new_figure(width: float, height: float) -> Any:
  """An empty figure that no global state knows of.

  Args:
    width: in inches.
    height: likewise.

  Raises:
    ImportError: if Matplotlib is not installed, or cannot be imported.
  """
  return _figures().Figure(
    figsize=(width, height), dpi=150, layout='constrained'
  )


def can_draw() -> bool:
  """Whether Matplotlib is installed.

  Raises:
    ImportError: if it is installed, but cannot be imported.
  """
  try:
    _figures()
  except NotInstalledError:
    return False
  return True


def _figures() -> Any:
  """The module `matplotlib.figure`; it takes a second, so not at start-up."""
  return import_optional('matplotlib.figure', 'curves need Matplotlib', 'plots')


def tidy(axes: Any) -> None:
  """Gives axes the looks of this package; large numbers below are short."""
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(axis='y', color='#dddddd', linewidth=0.8)
  axes.set_axisbelow(True)
  axes.xaxis.set_major_formatter(engineering())
  axes.margins(x=0.02)


def engineering() -> Any:
  """50M, not 5e7."""
  from matplotlib.ticker import EngFormatter

  return EngFormatter(sep='')


def minor_engineering() -> Any:
  """20, not 2e1, between powers of ten of which there are few."""
  from matplotlib.ticker import LogFormatter

  write = engineering()

  class Formatter(LogFormatter):
    # Which of the ticks have a label is for Matplotlib to say.
    def __call__(self, x: float, pos: Any = None) -> str:
      return write(x) if super().__call__(x, pos) else ''

  return Formatter()


def save(figure: Any, path: str | os.PathLike[str]) -> None:
  """Writes a PNG file, which is replaced at once."""
  content = io.BytesIO()
  figure.savefig(content, format='png')
  write_atomically(pathlib.Path(path), content.getvalue())


def explanation(statistic: statistics.Statistic, runs: set[int]) -> str:
  """What a line and its band are, for the legend.

  Args:
    statistic: over the runs.
    runs: the numbers of runs that the lines have.
  """
  most = max(runs, default=0)
  if most < 2:
    return '1 seed'
  name = 'IQM' if statistic is statistics.iqm else statistic.__name__
  count = str(most) if len(runs) == 1 else f'{min(runs)} to {most}'
  return f'{name} of {count} seeds;\nt intervals, 95 % where\nseeds are normal'


def in_words(point: Point) -> str:
  """A setting in words: names of options only where a value needs one."""

  def named(name: str, value: Any) -> str:
    if value in ('true', 'false'):
      return f'{name}={value}'
    return value if isinstance(value, str) else f'{name}={value:.10g}'

  return ', '.join(
    named(name, value) for name, value in point.items() if value is not None
  )


def looks(points: Sequence[Point]) -> list[tuple[Any, Any]]:
  """A colour and a line style for each setting of a sweep.

  Numbers of one option, or of options that never meet in a setting, share a
  scale of colours, each style from its one end to the other: the first period
  of one rule has the colour of the first rate of another.
  """
  from matplotlib import colormaps

  by_colour = _colour_names(points)
  keys = []
  for point in points:
    value = next((point[n] for n in by_colour if point[n] is not None), None)
    rest = tuple(v for n, v in point.items() if n not in by_colour)
    keys.append((rest, value))
  scales: dict[tuple, list[Any]] = {}
  for rest, value in keys:
    scale = scales.setdefault(rest, [])
    if value is not None and value not in scale:
      scale.append(value)
  for scale in scales.values():
    # A list that was written downwards is meant so.
    scale.sort(reverse=bool(scale) and scale[0] > scale[-1])
  ordered = [rest for rest, scale in scales.items() if len(scale) > 1]
  lone = [rest for rest in scales if rest not in ordered]
  found: list[tuple[Any, Any]] = []
  for rest, value in keys:
    colour: Any
    if rest in ordered:
      scale = scales[rest]
      place = 0.9 * scale.index(value) / (len(scale) - 1)
      colour, style = colormaps['viridis'](place), ordered.index(rest)
    else:
      # The first of the plain colours is near to some on the scale.
      number = lone.index(rest) + bool(ordered)
      colour = COLOURS[number % len(COLOURS)]
      style = len(ordered) + number // len(COLOURS)
    found.append((colour, STYLES[style % len(STYLES)]))
  return found


def _colour_names(points: Sequence[Point]) -> list[str]:
  """The options whose numbers colours show: never two in one setting."""
  values: dict[str, set[Any]] = {}
  for point in points:
    for name, value in point.items():
      values.setdefault(name, set()).add(value)
  numeric = [
    name
    for name, found in values.items()
    if not any(isinstance(value, str) for value in found)
  ]
  chosen: list[str] = []
  for name in sorted(numeric, key=lambda n: -len(values[n] - {None})):
    others = [p for p in points if p[name] is not None]
    if all(p[other] is None for p in others for other in chosen):
      chosen.append(name)
  return chosen


def line(
  axes: Any,
  label: str,
  x: np.ndarray,
  estimate: Estimate,
  colour: Any,
  style: Any = '-',
  *,
  opacity: float,
  width: float = 1.6,
) -> None:
  """Draws a line with its band; points that are NaN are left out.

  Args:
    axes: to draw into.
    label: its name in the legend.
    x: [T].
    estimate: at these places.
    colour: of both.
    style: of the line.
    opacity: of the band.
    width: of the line, in points.
  """
  y, low, high = estimate
  shown = np.isfinite(y)
  axes.plot(
    x[shown],
    y[shown],
    color=colour,
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
      color=colour,
      alpha=opacity,
      linewidth=0,
    )


def band_opacity(lines: int) -> float:
  """Many bands over one another would hide the lines."""
  return min(0.16, 1.2 / lines)


def side_legend(figure: Any, axes: Any, title: str) -> None:
  """A legend beside all axes, where it hides nothing; the figure grows by it.

  Args:
    figure: as wide as its axes are to be.
    axes: whose lines it names.
    title: above the names.
  """
  handles, labels = axes.get_legend_handles_labels()
  width, height = figure.get_size_inches()
  columns = 1 + (len(labels) - 1) // int(4 * height)
  figure.set_size_inches(width + 1.9 * columns, height)
  figure.legend(
    handles,
    labels,
    loc='outside right upper',
    title=title,
    alignment='left',
    frameon=False,
    fontsize='small',
    title_fontsize='small',
    handlelength=2.6,
    ncols=columns,
  )
