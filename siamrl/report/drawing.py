"""Common parts of figures: styles, lines with bands, legends, files."""

import contextlib
import contextvars
import io
import os
import pathlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from siamrl.optional import NotInstalledError, import_optional
from siamrl.report import statistics
from siamrl.report.arrangement import Arrangement, Point
from siamrl.report.run_folder import write_atomically

GRAY = '#777777'  # of references
COLUMN = 3.3  # inches, the width of a column of a paper
_LETTERS = 62  # of small text that fit into it

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
  """Writes a PNG file of at most 256 colors, which is replaced atomically.

  Inside `also_as`, a file of that format is written beside it.

  Args:
    figure: what to write.
    path: path of the PNG file.
  """
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
  kind = _VECTOR.get()
  if kind is not None:
    content = io.BytesIO()
    # Without the time, so that equal figures are equal files.
    when = {'pdf': 'CreationDate', 'svg': 'Date'}[kind]
    with _settings({'svg.hashsalt': 'siamrl', 'pdf.fonttype': 42}):
      figure.savefig(content, format=kind, metadata={when: None})
    path = pathlib.Path(path).with_suffix(f'.{kind}')
    write_atomically(path, content.getvalue())


# The format of a second file of each figure, of the calls inside `also_as`.
_VECTOR: contextvars.ContextVar[str | None] = contextvars.ContextVar(
  'vector', default=None
)
VECTORS = ('pdf', 'svg')


@contextlib.contextmanager
def also_as(kind: str | None) -> Iterator[None]:
  """Lets `save` write each figure as a vector graphic, too.

  Args:
    kind: one of `VECTORS`, which is also the suffix; None for none.
  """
  token = _VECTOR.set(kind)
  try:
    yield
  finally:
    _VECTOR.reset(token)


def _settings(values: Any) -> Any:
  _figures()
  import matplotlib

  return matplotlib.rc_context(values)


def small_text() -> Any:
  """Returns a context with text for figures as wide as a column of a paper."""
  return _settings(
    {
      'font.size': 7,
      'axes.titlesize': 7.5,
      'axes.linewidth': 0.6,
      'xtick.major.width': 0.6,
      'ytick.major.width': 0.6,
      'figure.dpi': 240,
    }
  )


def new_column(height: float, width: float = COLUMN) -> Any:
  """Returns an empty figure of some inches; needs `small_text`."""
  return _figures().Figure(figsize=(width, height), layout='constrained')


def swatch(color: str) -> Any:
  """Returns the patch of a legend, in the color of bars."""
  _figures()
  from matplotlib.patches import Patch

  return Patch(color=color, alpha=0.55, linewidth=0)


def caption(
  figure: Any, text: str, labels: Mapping[str, Any] | None = None
) -> None:
  """Adds a legend and a text below the axes, and makes the figure higher.

  Args:
    figure: figure as high as its axes should be.
    text: explanation of lines, bands and what else a reader must know.
    labels: drawn artists by name; None for no legend.
  """
  labels = labels or {}
  lines = [
    part
    for line in text.replace(' %', '\xa0%').splitlines()
    for part in textwrap.wrap(line, _LETTERS) or ['']
  ]
  longest = max(map(len, labels), default=0)
  columns = max(1, min(len(labels), _LETTERS // (longest + 8)))
  rows = -(-len(labels) // columns)
  width, height = figure.get_size_inches()
  figure.set_size_inches(width, height + 0.14 * (len(lines) + rows) + 0.1)
  # The longest names are cut rather than be drawn beyond the figure.
  figure.legend(
    list(labels.values()),
    [textwrap.shorten(n, _LETTERS - 6, placeholder='...') for n in labels],
    loc='outside lower left',
    title='\n'.join(lines),
    alignment='left',
    frameon=False,
    fontsize='medium',
    title_fontsize='medium',
    handlelength=2.2,
    ncols=columns,
    columnspacing=1.2,
  )


def explanation(statistic: statistics.Statistic, runs: set[int]) -> str:
  """Returns the legend's explanation of lines and bands.

  Args:
    statistic: statistic over the runs.
    runs: the numbers of runs of the lines.
  """
  most = max(runs, default=0)
  if most < 2:
    return '1 seed: no interval'
  name = 'IQM' if statistic is statistics.iqm else statistic.__name__
  words = (
    f'{name} of {_count(runs)};\nt intervals, 95 % where\nseeds are normal'
  )
  covered = statistics.coverage(name, min(n for n in runs if n > 1))
  return words + (f',\n{covered} % where skewed' if covered else '')


# What stratified bootstrap intervals are about, by their kind.
_COVERED = {
  'tasks': 'a mean',
  'profile': 'a fraction of 0.1 or 0.9',
  'improvement': 'the probability',
}


def bootstrapped(name: str, runs: set[int], kind: str = 'tasks') -> str:
  """Returns the explanation of an aggregate over tasks with its intervals.

  Args:
    name: name of the aggregate.
    runs: the numbers of runs per task.
    kind: what the interval is about, as `statistics.coverage` has it.
  """
  if max(runs) < 2:
    return f'{name} of 1 seed per task: no interval'
  words = f'{name} of {_count(runs)} per task; 95 % stratified bootstrap'
  covered = statistics.coverage(kind, min(n for n in runs if n > 1))
  about = _COVERED[kind.removeprefix('one ')]
  few = f', which covers {about} in {covered} % of cases' if covered else ''
  alone = '; 1 seed has no interval' if min(runs) < 2 else ''
  return words + few + alone


def _count(runs: set[int]) -> str:
  most = max(runs)
  return f'{most} seeds' if len(runs) == 1 else f'{min(runs)} to {most} seeds'


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
