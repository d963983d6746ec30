"""Figures of the lab: norms and features over time, maps of stability."""

from collections.abc import Sequence
import pathlib
from typing import Any

import numpy as np

from siamrl.report import drawing, statistics
from siamrl.report.arrangement import Point, arrange, in_words, literal
from siamrl.report.curves import plot_sweep
from siamrl.report.metrics import Table, by_run, group_rows, read_metrics
from siamrl.report.run_folder import RunFolder

# Most lines in a figure of norms; more are thinned out evenly.
_MOST_LINES = 24
_NORM = 'log10_value_norm'
_PARAMETERS = 'log10_parameter_norm'
_ERROR = 'max_error'
# Of columns over time.
_LABELS = {
  _NORM: 'norm of the values, logarithm to the base 10',
  _PARAMETERS: 'norm of all weights, logarithm to the base 10',
  _ERROR: 'largest error of a value',
}
_RADIUS = 'spectral_radius'
_LOWER, _UPPER = 'radius_lower', 'radius_upper'
# The first columns of the lab's tables that are not options.
_MEASURED = ('unit', 'gradient_steps', _ERROR)


def draw(
  folder: RunFolder, ends: pathlib.Path, by: Sequence[str], title: str
) -> None:
  """Writes curve.png and, if numbers are swept, curve-NAME.png of NAME.csv.

  Args:
    folder: folder of the runs, with their metrics if they have some.
    ends: NAME.csv, a table with a row for each run: stability, control or
      sampled.
    by: the swept options except the seed.
    title: title of the figures.
  """
  if folder.metrics.exists():
    draw_norms(folder.curve, read_metrics(folder.metrics), by, title)
  _draw_map(
    folder.path / f'curve-{ends.stem}.png', read_metrics(ends), by, title
  )


def _draw_map(
  path: pathlib.Path, table: Table, by: Sequence[str], title: str
) -> bool:
  """Draws a table with a row for each run; returns whether a number is swept.

  Args:
    path: the PNG file, replaced at once.
    table: with one of the columns of `_MAPS`.
    by: the swept options except the seed.
    title: title of the figure.
  """
  place = _place(table, by)
  if place is None:
    return False
  (plot,) = (_MAPS[name] for name in _MAPS if name in table)
  lines = [name for name in by if name != place]
  plot(path, table, x=place, lines=lines, title=title)
  return True


def is_lab(table: Table) -> bool:
  """Returns whether a table is one of the lab's."""
  known = {_RADIUS, _UPPER, *_LABELS, *_FEATURES}
  return not known.isdisjoint(table)


def draw_again(path: pathlib.Path, table: Table, title: str) -> None:
  """Draws a table of the lab: a map of stability, norms or features.

  Args:
    path: the PNG file, replaced at once.
    table: table as written by the lab.
    title: title of the figure.
  """
  names = list(table)
  first = min(names.index(name) for name in _MEASURED if name in table)
  by = [name for name in names[:first] if name != 'seed']
  if 'gradient_steps' not in table and not set(_MAPS).isdisjoint(table):
    if not _draw_map(path, table, by, title):
      raise ValueError('no number is swept')
  elif not set(_LABELS).isdisjoint(table):
    draw_norms(path, table, by, title)
  else:
    plot_features(path, table, by, title)


def draw_norms(
  path: pathlib.Path, table: Table, by: Sequence[str], title: str
) -> None:
  """Draws norms of values over gradient steps.

  Args:
    path: the PNG file, replaced at once.
    table: with a row for each run and time.
    by: the swept options except the seed.
    title: title of the figure.
  """
  (y,) = (name for name in _LABELS if name in table)
  norms = list(group_rows(table, by).values())
  thin = np.unique(
    np.linspace(0, len(norms) - 1, min(len(norms), _MOST_LINES)).astype(int)
  )
  plot_sweep(
    path,
    {
      name: np.concatenate([norms[index][name] for index in thin])
      for name in norms[0]
    },
    x='gradient_steps',
    y=y,
    by=by,
    title=title,
    x_label='gradient steps',
    y_label=_LABELS[y],
  )


def _place(table: Table, by: Sequence[str]) -> str | None:
  """Returns the swept number with most values, for the horizontal axis."""
  numeric = [name for name in by if table[name].dtype.kind != 'U']
  return max(numeric, key=lambda n: len(np.unique(table[n])), default=None)


def plot_map(
  path: pathlib.Path,
  table: Table,
  *,
  x: str,
  lines: Sequence[str],
  title: str,
) -> None:
  """Draws radii and growth over one target update and over gradient steps.

  Lines are predictions, and dots observations.

  Args:
    path: the PNG file, replaced at once.
    table: with a row for each run, and `unit`, `spectral_radius` and `growth`.
    x: column of the horizontal axis, logarithmic if all values are positive.
    lines: columns whose values, with the seed, define a line, and without it a
      look.
    title: above.
  """
  many = len(np.unique(table['seed'])) > 1
  # Seeds are names, without a meaningful order. Beside other options they share
  # a look.
  by = ['seed'] if many and not lines else list(lines)
  groups = group_rows(table, by)
  points: list[Point] = [
    {n: f'seed {x}' if n == 'seed' else x for n, x in zip(by, key, strict=True)}
    for key in groups
  ]
  arrangement = arrange(points)
  panes = arrangement.panes
  width = 6.4 if len(panes) == 1 else 3.9 * len(panes)
  figure = drawing.new_figure(width, 5.6)
  grid = figure.subplots(
    2, len(panes), sharex=True, sharey='row', squeeze=False
  )
  tables = [
    list(group_rows(rows, ['seed']).values()) for rows in groups.values()
  ]
  for (top, bottom), pane in zip(grid.T, panes, strict=True):
    drawn = [
      (member, look, one)
      for member, look in zip(pane.members, pane.looks, strict=True)
      for one in tables[member]
    ]
    for member, (color, style), one in drawn:
      order = np.argsort(one[x])
      row = {name: column[order] for name, column in one.items()}
      # Decades in 1,000 gradient steps, from factors over `unit` of them.
      with np.errstate(divide='ignore'):
        decades = {
          name: 1_000 * np.log10(row[name]) / row['unit']
          for name in (_RADIUS, 'growth')
        }
      for axes, factors in ((top, row), (bottom, decades)):
        axes.plot(
          row[x],
          factors[_RADIUS],
          color=color,
          linestyle=style,
          label=in_words(points[member]) or '_',
        )
        axes.plot(
          row[x], factors['growth'], 'o', color=color, markersize=3.5, alpha=0.6
        )
    for axes, level in ((top, 1.0), (bottom, 0.0)):
      drawing.tidy(axes)
      axes.axhline(level, color=drawing.GRAY, linestyle='--', linewidth=1)
    if np.nanmin(table[x]) > 0:
      drawing.logarithmic(bottom, np.nanmin(table[x]))
    bottom.set_yscale('symlog', linthresh=0.1)
    bottom.yaxis.set_major_formatter(drawing.plain())
    bottom.set_xlabel(x.replace('_', ' '))
    if len(panes) > 1:
      top.set_title(pane.title, loc='left', fontsize='medium')
  grid[0, 0].set_ylabel('factor over\none target update')
  grid[1, 0].set_ylabel('decades in\n1,000 gradient steps')
  whole = f'{literal(title)}: predicted (lines), observed (dots)'
  if len(panes) > 1:
    figure.suptitle(whole, x=0.01, ha='left')
  else:
    grid[0, 0].set_title(whole, loc='left')
  if len(groups) > 1:
    names = drawing.pane_legend(arrangement, points)
    drawing.side_legend(figure, names, arrangement.key)
  drawing.save(figure, path)


# Colors of what is predicted, and markers of what is observed.
_VERDICTS = {
  'converges': '#0072b2',
  'diverges': '#d55e00',
  'undecided': drawing.GRAY,
}
_OBSERVED = {
  'converges': ('o', 'full'),
  'diverges': ('^', 'full'),
  'undecided': ('s', 'none'),
}


def plot_bounds(
  path: pathlib.Path,
  table: Table,
  *,
  x: str,
  lines: Sequence[str],
  title: str,
) -> None:
  """Draws bounds of joint spectral radii and the growth of actual runs.

  Two dashes are the bounds, and a marker shows what runs do; colors say what
  the bounds predict. Each seed has a row of its own.

  Args:
    path: the PNG file, replaced at once.
    table: with a row for each run.
    x: column of the horizontal axis, logarithmic if all values are positive.
    lines: columns whose values define a column of axes.
    title: above.
  """
  columns = list(group_rows(table, list(lines)).items())
  seeds = np.unique(table['seed'])
  figure = drawing.new_figure(
    1.8 + 2.3 * len(columns), max(3.6, 1.2 + 1.25 * len(seeds))
  )
  grid = figure.subplots(
    len(seeds), len(columns), sharex=True, sharey='row', squeeze=False
  )
  shown: dict[str, Any] = {}
  for column, (values, rows) in enumerate(columns):
    point = dict(zip(lines, values, strict=True))
    grid[0, column].set_title(in_words(point), loc='left', fontsize='medium')
    grid[-1, column].set_xlabel(x.replace('_', ' '))
    for seed, axes in zip(seeds, grid[:, column], strict=True):
      drawing.tidy(axes)
      axes.axhline(1.0, color=drawing.GRAY, linestyle='--', linewidth=1)
      for at in np.flatnonzero(rows['seed'] == seed):
        place, verdict = rows[x][at], str(rows['predicted'][at])
        shape, fill = _OBSERVED[str(rows['observed'][at])]
        for bound in (_LOWER, _UPPER):
          axes.plot(
            place,
            rows[bound][at],
            '_',
            color=_VERDICTS[verdict],
            markersize=9,
          )
        (mark,) = axes.plot(
          place,
          rows['growth'][at],
          shape,
          fillstyle=fill,
          color=_VERDICTS[verdict],
          markersize=4,
        )
        name = f'predicted: {verdict}, observed: {rows["observed"][at]}'
        shown.setdefault(name, mark)
      if np.nanmin(table[x]) > 0:
        drawing.logarithmic(axes, np.nanmin(table[x]))
      else:
        axes.xaxis.set_major_formatter(drawing.plain())
      if not column:
        axes.set_ylabel(f'seed {seed}' if len(seeds) > 1 else 'factor')
  figure.suptitle(
    f'{literal(title)}: bounds of the joint spectral radius (dashes)\n'
    'and growth in runs (marks), factors over one target update',
    x=0.01,
    ha='left',
    fontsize='medium',
  )
  figure.legend(shown.values(), shown.keys(), loc='outside lower left')
  drawing.save(figure, path)


def plot_errors(
  path: pathlib.Path,
  table: Table,
  *,
  x: str,
  lines: Sequence[str],
  title: str,
) -> None:
  """Draws the largest errors at the end of runs, means with 95 % t intervals.

  Args:
    path: the PNG file, replaced at once.
    table: with a row for each run.
    x: column of the horizontal axis, logarithmic if all values are positive.
    lines: columns whose values define a line.
    title: above.
  """
  from matplotlib.ticker import LogLocator

  groups = list(group_rows(table, list(lines)).items())
  points: list[Point] = [
    dict(zip(lines, key, strict=True)) for key, _ in groups
  ]
  facet = [name for name in ('problem',) if name in lines]
  arrangement = arrange(points, facet)
  panes = arrangement.panes
  figure = drawing.new_figure(3.6 * len(panes) + 1.0, 3.8)
  grid = figure.subplots(1, len(panes), squeeze=False)[0]
  runs: set[int] = set()
  for axes, pane in zip(grid, panes, strict=True):
    drawing.tidy(axes)
    for member, look in zip(pane.members, pane.looks, strict=True):
      places = list(group_rows(groups[member][1], [x]).items())
      runs |= {len(rows[_ERROR]) for _, rows in places}
      estimates = [statistics.over_runs(rows[_ERROR]) for _, rows in places]
      order = np.argsort([place for (place,), _ in places])
      drawing.line(
        axes,
        in_words(points[member]) or _ERROR,
        np.array([place for (place,), _ in places])[order],
        tuple(np.array(estimates, float)[order].T),
        *look,
        opacity=drawing.band_opacity(len(pane.members)),
      )
    if np.nanmin(table[x]) > 0:
      drawing.logarithmic(axes, np.nanmin(table[x]))
    axes.set_yscale('log')
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    for show in (
      axes.yaxis.set_major_formatter,
      axes.yaxis.set_minor_formatter,
    ):
      show(drawing.plain())
    axes.set_xlabel(x.replace('_', ' '))
    if len(panes) > 1:
      axes.set_title(pane.title, loc='left')
  grid[0].set_ylabel(_LABELS[_ERROR])
  figure.suptitle(literal(title), x=0.01, ha='left')
  notes = [drawing.explanation(statistics.mean, runs), arrangement.key]
  drawing.side_legend(
    figure,
    drawing.pane_legend(arrangement, points),
    '\n'.join(filter(None, notes)),
  )
  drawing.save(figure, path)


# The figure of a table with a row for each run, by a column of it.
_MAPS = {_RADIUS: plot_map, _UPPER: plot_bounds, _ERROR: plot_errors}


# Quantities in a figure of features: label and scale.
_FEATURES = {
  'orthonormality_error': ('|\u03a6\u1d40\u03a6 \u2212 I|', 'log'),
  'eigen_mass': ('eigen-mass', 'linear'),
  'smallest_singular_value': ('smallest\nsingular value', 'linear'),
}
# Smaller errors are due to rounding.
_LEAST_ERROR = 1e-6


def draw_features(folder: RunFolder, by: Sequence[str], title: str) -> None:
  """Writes curve.png, with measures of features over gradient steps.

  Args:
    folder: folder of the runs, with their metrics.
    by: the swept options except the seed.
    title: title of the figure.
  """
  plot_features(folder.curve, read_metrics(folder.metrics), by, title)


def plot_features(
  path: pathlib.Path, table: Table, by: Sequence[str], title: str
) -> None:
  """Draws measures of features over gradient steps.

  A point is a mean over seeds, with its 95 % t interval.

  Args:
    path: the PNG file, replaced at once.
    table: with a row for each run and time.
    by: the swept options except the seed.
    title: title of the figure.
  """
  groups = list(group_rows(table, by).items())
  points: list[Point] = [dict(zip(by, key, strict=True)) for key, _ in groups]
  arrangement = arrange(points)
  panes = arrangement.panes
  width = 6.4 if len(panes) == 1 else 3.9 * len(panes)
  figure = drawing.new_figure(width, 6.4)
  grid = figure.subplots(
    len(_FEATURES), len(panes), sharex=True, sharey='row', squeeze=False
  )
  runs = set()
  for column_of_axes, pane in zip(grid.T, panes, strict=True):
    for axes, (column, (_, scale)) in zip(
      column_of_axes, _FEATURES.items(), strict=True
    ):
      drawing.tidy(axes)
      for member, look in zip(pane.members, pane.looks, strict=True):
        clock, values = by_run(groups[member][1], 'gradient_steps', column)
        runs.add(len(values))
        drawing.line(
          axes,
          in_words(points[member]) or column,
          clock,
          statistics.over_runs(values),
          *look,
          opacity=drawing.band_opacity(len(pane.members)),
        )
      axes.set_yscale(scale)
    column_of_axes[0].set_title(
      pane.title if len(panes) > 1 else literal(title), loc='left'
    )
    column_of_axes[-1].set_xlabel('gradient steps')
  for axes, (label, _) in zip(grid[:, 0], _FEATURES.values(), strict=True):
    axes.set_ylabel(label)
  low, high = grid[0, 0].get_ylim()
  grid[0, 0].set_ylim(max(low, _LEAST_ERROR), max(high, 10 * _LEAST_ERROR))
  if len(panes) > 1:
    figure.suptitle(literal(title), x=0.01, ha='left')
  notes = [drawing.explanation(statistics.mean, runs), arrangement.key]
  drawing.side_legend(
    figure,
    drawing.pane_legend(arrangement, points),
    '\n'.join(filter(None, notes)),
  )
  drawing.save(figure, path)
