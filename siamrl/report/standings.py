"""Standings: what the settings of a study come to in each of its tasks.

A score is the mean of a measure over the last tenth of a run. Each setting has
the mean and the IQM of its scores in each task, and over all tasks, where
scores are divided by the mean of a baseline in the same task.
"""

from collections.abc import Mapping, Sequence
import csv
import io
import os
import pathlib
import textwrap
from typing import Any, NamedTuple

import numpy as np

from siamrl.report import drawing, statistics
from siamrl.report.arrangement import COLORS, MOST_LINES, Point, in_words
from siamrl.report.metrics import Table, by_run, group_rows
from siamrl.report.run_folder import write_atomically

ALL = 'all'  # the name of the tasks together
_LETTERS_PER_INCH = 13  # of a title
_COLUMNS = ('mean', 'mean_low', 'mean_high', 'iqm', 'iqm_low', 'iqm_high')


class Standing(NamedTuple):
  """One setting in one task, or in all of them.

  Attributes:
    point: the values that tell the setting from others; None for those that
      mean nothing to it.
    task: the task, or `ALL`.
    end: the clock at the end of its longest run.
    seeds: number of runs in a task.
    mean: (mean, low, high) with a 95 % interval.
    iqm: the same of the interquartile mean.
  """

  point: Point
  task: str
  end: float
  seeds: int
  mean: tuple[float, float, float]
  iqm: tuple[float, float, float]


def standings(
  table: Table,
  *,
  x: str,
  y: str,
  task: str,
  by: Sequence[str],
  baseline: Mapping[str, Any] | None = None,
) -> list[Standing]:
  """Scores the settings of a study.

  Intervals of one task are t intervals (`statistics.over_runs`). Over tasks,
  that of the mean is Welch's, and that of the IQM a stratified bootstrap's.
  Both take the baseline's means for known.

  Args:
    table: [R] arrays by column, in long form.
    x: the column of the clock.
    y: the column of the measure.
    task: the column of the task.
    by: the columns that define a setting, without the task.
    baseline: columns and their values ('' for an empty cell), which tell the
      setting whose mean is 1 in each task; None for no scores over all tasks.

  Returns:
    For each setting, in order of occurrence, its tasks, and `ALL` if it has at
    least two and all that others have, with equally many runs of known score.

  Raises:
    ValueError: if a column is missing.
  """
  tasks = [key[0] for key in group_rows(table, [task])]
  scores: dict[tuple, dict[str, np.ndarray]] = {}
  ends: dict[tuple, dict[str, float]] = {}
  for key, rows in group_rows(table, by).items():
    for (name,), part in group_rows(rows, [task]).items():
      clock, values = by_run(part, x, y)
      scores.setdefault(key, {})[name] = statistics.final_mean(clock, values)
      ends.setdefault(key, {})[name] = float(clock[-1])
  units = None
  for key, of in scores.items():
    point = dict(zip(by, key, strict=True))
    if baseline and all(
      ('' if point.get(name) is None else point[name]) == value
      for name, value in baseline.items()
    ):
      units = {name: float(np.mean(of[name])) for name in of}
  found = []
  for key, of in scores.items():
    point = dict(zip(by, key, strict=True))
    found += [
      Standing(
        point,
        name,
        ends[key][name],
        int(np.isfinite(of[name]).sum()),
        _floats(statistics.over_runs(of[name])),
        _floats(statistics.over_runs(of[name], statistics.iqm)),
      )
      for name in tasks
      if name in of
    ]
    together = _over_tasks(of, tasks, units)
    if together is not None:
      end = max(ends[key].values())
      found.append(Standing(point, ALL, end, len(of[tasks[0]]), *together))
  return found


def _over_tasks(
  scores: Mapping[str, np.ndarray],
  tasks: Sequence[str],
  units: Mapping[str, float] | None,
) -> tuple[Any, Any] | None:
  """Returns (mean, IQM) over tasks; None if they cannot be compared."""
  if units is None or len(tasks) < 2 or any(n not in units for n in tasks):
    return None
  runs = {len(scores[name]) for name in tasks if name in scores}
  if len(runs) != 1 or any(name not in scores for name in tasks):
    return None
  all_scores = np.stack([scores[name] / units[name] for name in tasks], 1)
  if not np.isfinite(all_scores).all():
    return None
  # The interval of a mean is that of its difference from a constant.
  nothing = np.zeros((2, len(tasks)))
  mean = statistics.difference(all_scores, nothing, statistics.mean)
  middle = statistics.iqm(all_scores, (0, 1))
  low, high = statistics.stratified_bootstrap(all_scores)
  if runs == {1}:  # resamples of one run do not show the spread
    low = high = np.array(np.nan)
  return _floats(mean), _floats((middle, low, high))


def _floats(estimate: Sequence[Any]) -> tuple[float, float, float]:
  middle, low, high = map(float, estimate)
  return middle, low, high


def write_standings(
  path: str | os.PathLike[str],
  found: Sequence[Standing],
  *,
  task: str,
  x: str,
  notes: Sequence[str] = (),
) -> None:
  """Writes a CSV file with a row for each setting and task.

  Args:
    path: the file, replaced atomically; its directory exists.
    found: the standings.
    task: the column of the task.
    x: the column of the clock.
    notes: lines to write above the header.
  """
  text = io.StringIO()
  text.writelines(f'# {note}\n' for note in notes)
  names = list(found[0].point)
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow([*names, task, x, 'seeds', *_COLUMNS])
  for each in found:
    values = ['' if v is None else v for v in each.point.values()]
    numbers = [f'{number:.6g}' for number in (*each.mean, *each.iqm)]
    row = [*values, each.task, f'{each.end:.0f}', each.seeds, *numbers]
    writer.writerow(row)
  write_atomically(pathlib.Path(path), text.getvalue().encode())


def labels(found: Sequence[Standing]) -> dict[tuple, str]:
  """Returns the name of each setting, by its values.

  It has only values that are needed to tell settings apart. A setting that has
  run for less than 95 % of the longest run is named with the time that it has
  reached.
  """
  longest = max(each.end for each in found)
  points = {tuple(each.point.values()): each.point for each in found}
  needed = list(found[0].point)
  for column in needed[:0:-1]:  # the first one stays
    fewer = [name for name in needed if name != column]
    if len({tuple(p[n] for n in fewer) for p in points.values()}) == len(
      points
    ):
      needed = fewer
  names = {}
  for each in found:
    name = in_words({name: each.point[name] for name in needed})
    if each.end < 0.95 * longest:
      name += f' (to {drawing.engineering()(each.end)})'
    names[tuple(each.point.values())] = name
  return names


def plot_standings(
  path: str | os.PathLike[str],
  found: Sequence[Standing],
  *,
  measure: str,
  unit: str = '',
  title: str = '',
) -> None:
  """Draws a row for each setting, and a pane for each task, into a PNG file.

  Args:
    path: the file, replaced atomically; its directory exists.
    found: the standings.
    measure: label of the measure.
    unit: name of the baseline, for the pane of all tasks.
    title: text above the panes.

  Raises:
    ImportError: if Matplotlib is not installed.
    OSError: if the file cannot be written.
  """
  names = labels(found)
  rows = {key: row for row, key in enumerate(names)}
  tasks = list(dict.fromkeys(each.task for each in found))
  tasks.sort(key=lambda name: name == ALL)
  first = list(dict.fromkeys(key[0] for key in names))
  colored = 1 < len(first) < len(names) and len(first) <= MOST_LINES
  longest = max(map(len, names.values()))
  figure = drawing.new_figure(
    0.6 + 0.075 * longest + 2.3 * len(tasks), 1.3 + 0.27 * len(names)
  )
  grid = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
  for axes, task in zip(grid, tasks, strict=True):
    drawing.tidy(axes)
    axes.grid(axis='y', visible=False)
    axes.grid(axis='x', color='#dddddd', linewidth=0.8)
    axes.xaxis.set_major_formatter(drawing.plain())
    for each in found:
      if each.task != task:
        continue
      key = tuple(each.point.values())
      middle, low, high = each.iqm if task == ALL else each.mean
      color = COLORS[first.index(key[0]) if colored else 0]
      if np.isfinite(low):
        axes.hlines(rows[key], low, high, color=color, alpha=0.55, linewidth=3)
      if np.isfinite(middle):
        axes.plot([middle], [rows[key]], 'o', color=color, markersize=5)
    about = 'all together' if task == ALL else task.replace('_', ' ')
    axes.set_title(about, loc='left', fontsize='medium')
    axes.set_xlabel(
      f'IQM of the returns, in\nunits of {unit}'
      if task == ALL
      else f'mean {measure}',
      fontsize='small',
    )
    if task == ALL:
      axes.axvline(1, color=drawing.GRAY, linestyle='--', linewidth=1)
  grid[0].set_yticks(range(len(rows)), list(names.values()), fontsize='small')
  grid[0].set_ylim(len(rows) - 0.5, -0.5)
  seeds = {each.seeds for each in found}
  count = '-'.join(str(n) for n in sorted({min(seeds), max(seeds)}))
  words = f'{count} seeds' if seeds != {1} else '1 seed'
  above = f'{title}: last 10 % of the runs, {words}, 95 % intervals'
  letters = int(_LETTERS_PER_INCH * figure.get_figwidth())
  figure.suptitle(
    textwrap.fill(above, letters), x=0.01, ha='left', fontsize='medium'
  )
  drawing.save(figure, path)
