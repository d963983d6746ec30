"""Pictures of the lab: norms and features over time, maps of stability."""

from collections.abc import Sequence
import io
import pathlib

import numpy as np

from siamrl.report import drawing, statistics
from siamrl.report.curves import plot_sweep
from siamrl.report.metrics import Table, by_run, group_rows, read_metrics
from siamrl.report.run_folder import RunFolder, write_atomically

# Lines that a picture of norms shows: more are thinned out, evenly.
_MOST_LINES = 24
_STYLES = ('-', '--', ':', '-.')
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')


def draw(
  folder: RunFolder,
  stability: pathlib.Path,
  by: Sequence[str],
  title: str,
) -> None:
  """Writes curve.png and, where numbers are swept, curve-stability.png.

  Args:
    folder: of the runs, with its metrics.
    stability: the table with a row for each run.
    by: the swept options but for the seed.
    title: of the pictures.
  """
  norms = list(group_rows(read_metrics(folder.metrics), by).values())
  thin = np.unique(
    np.linspace(0, len(norms) - 1, min(len(norms), _MOST_LINES)).astype(int)
  )
  plot_sweep(
    folder.curve,
    {
      name: np.concatenate([norms[index][name] for index in thin])
      for name in norms[0]
    },
    x='gradient_steps',
    y='log10_value_norm',
    by=by,
    title=title,
    x_label='gradient steps',
    y_label='norm of the values, logarithm to the base 10',
  )
  table = read_metrics(stability)
  place = _place(table, by)
  if place is not None:
    plot_map(
      folder.path / 'curve-stability.png',
      table,
      x=place,
      lines=[name for name in by if name != place],
      title=title,
    )


def _place(table: Table, by: Sequence[str]) -> str | None:
  """The swept number with most values, for the horizontal axis."""
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

  Lines are predictions, dots what was observed; both end where there is none.

  Args:
    path: the PNG file, replaced at once.
    table: a row for each run, with `unit`, `spectral_radius` and `growth`.
    x: the column of the horizontal axis, logarithmic where all are positive.
    lines: columns whose values, with the seed, make a line.
    title: above.
  """
  from matplotlib.figure import Figure  # a second, so not at start-up

  figure = Figure(figsize=(8.3, 5.6), dpi=150, layout='constrained')
  top, bottom = figure.subplots(2, 1, sharex=True)
  groups = group_rows(table, [*lines, 'seed'])
  many_seeds = len(np.unique(table['seed'])) > 1
  for number, (key, rows) in enumerate(groups.items()):
    order = np.argsort(rows[x])
    rows = {name: column[order] for name, column in rows.items()}
    colour = _COLOURS[number % len(_COLOURS)]
    style = _STYLES[number // len(_COLOURS) % len(_STYLES)]
    named = dict(zip([*lines, 'seed'], key, strict=True))
    if not many_seeds:
      del named['seed']
    label = ', '.join(
      v if isinstance(v, str) else f'{n}={v:.10g}'
      for n, v in named.items()
      if v is not None
    )
    # Decades in 1,000 gradient steps, from factors over `unit` of them.
    with np.errstate(divide='ignore'):
      decades = {
        name: 1_000 * np.log10(rows[name]) / rows['unit']
        for name in ('spectral_radius', 'growth')
      }
    for axes, values in ((top, rows), (bottom, decades)):
      axes.plot(
        rows[x],
        values['spectral_radius'],
        color=colour,
        linestyle=style,
        label=label or None,
      )
      axes.plot(
        rows[x], values['growth'], 'o', color=colour, markersize=3.5, alpha=0.6
      )
  for axes, level in ((top, 1.0), (bottom, 0.0)):
    axes.axhline(level, color='#777777', linestyle='--', linewidth=1)
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color='#dddddd', linewidth=0.8)
    axes.set_axisbelow(True)
  if np.nanmin(table[x]) > 0:
    bottom.set_xscale('log')
  bottom.set_yscale('symlog', linthresh=0.1)
  top.set_title(f'{title}: predicted (lines), observed (dots)', loc='left')
  top.set_ylabel('factor over\none target update')
  bottom.set_ylabel('decades in\n1,000 gradient steps')
  bottom.set_xlabel(x.replace('_', ' '))
  if len(groups) > 1:
    figure.legend(
      *top.get_legend_handles_labels(),
      loc='outside right upper',
      frameon=False,
      fontsize='small',
      ncols=1 + (len(groups) - 1) // 24,
    )
  content = io.BytesIO()
  figure.savefig(content, format='png')
  write_atomically(path, content.getvalue())


# What a picture of features shows, in words, and on which scale.
_FEATURES = {
  'orthonormality_error': ('|\u03a6\u1d40\u03a6 \u2212 I|', 'log'),
  'eigen_mass': ('eigen-mass', 'linear'),
  'smallest_singular_value': ('smallest\nsingular value', 'linear'),
}
# Errors below are those of rounding.
_LEAST_ERROR = 1e-6


def draw_features(folder: RunFolder, by: Sequence[str], title: str) -> None:
  """Writes curve.png: what became of features over gradient steps.

  A point is the mean over seeds, with its 95 % t interval.

  Args:
    folder: of the runs, with its metrics.
    by: the swept options but for the seed.
    title: of the picture.
  """
  groups = group_rows(read_metrics(folder.metrics), by)
  points = [dict(zip(by, key, strict=True)) for key in groups]
  figure = drawing.new_figure(6.4, 6.4)
  panels = figure.subplots(len(_FEATURES), 1, sharex=True)
  runs = set()
  for axes, (column, (label, scale)) in zip(
    panels, _FEATURES.items(), strict=True
  ):
    drawing.tidy(axes)
    for rows, point, look in zip(
      groups.values(), points, drawing.looks(points), strict=True
    ):
      clock, values = by_run(rows, 'gradient_steps', column)
      runs.add(len(values))
      drawing.line(
        axes,
        drawing.in_words(point) or label,
        clock,
        statistics.over_runs(values),
        *look,
        opacity=drawing.band_opacity(len(groups)),
      )
    axes.set_ylabel(label)
    axes.set_yscale(scale)
  low, high = panels[0].get_ylim()
  panels[0].set_ylim(max(low, _LEAST_ERROR), max(high, 10 * _LEAST_ERROR))
  panels[0].set_title(title, loc='left')
  panels[-1].set_xlabel('gradient steps')
  explanation = drawing.explanation(statistics.mean, runs)
  drawing.side_legend(figure, panels[0], explanation)
  drawing.save(figure, folder.curve)
