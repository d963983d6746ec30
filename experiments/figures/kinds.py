"""Figures by kind, of several run folders, sweeps and results files."""

from collections.abc import Callable, Mapping, Sequence
import csv
import io
import itertools
import pathlib
import sys
from typing import Any

import numpy as np

from experiments.config.declaring import UsageError, refuse
from experiments.figures import grids, sweeps, together
from experiments.figures.sources import Source
from experiments.figures.together import Study
from siamrl import twins
from siamrl.report import (
  aggregates,
  comparisons,
  drawing,
  statistics,
  sweep as sweep_figures,
)
from siamrl.report.aggregates import Estimate
from siamrl.report.arrangement import MOST_LINES
from siamrl.report.curves import plot_final, plot_sweep
from siamrl.report.human_normalized import human_normalized
from siamrl.report.run_folder import write_atomically

NORMALIZATIONS = ('human', 'range', 'none')
# The kinds that have panes and a choice of colors.
_LOOKS = {'facet': ('curves',), 'color': ('curves', 'final')}
_MOST_PAIRS = 10  # beyond which settings are compared with the first one only
_THRESHOLDS = 101
# Axes of wall time: the unit and its seconds, from the smallest.
_UNITS = (('s', 1.0), ('min', 60.0), ('h', 3600.0), ('days', 86400.0))


def draw(config: Any, found: Sequence[Source]) -> None:
  """Draws the figure of --kind.

  Args:
    config: options of `experiments.plot`.
    found: folders and files.

  Raises:
    UsageError: if they cannot be drawn so.
  """
  for name in ('facet', 'color'):
    if config.kind not in _LOOKS[name] and getattr(config, name) is not None:
      kinds = ' or '.join(f'--kind={kind}' for kind in _LOOKS[name])
      refuse(config, name, f'go with {kinds}')
  study = together.read(config, found)
  for note in study.notes:
    print(f'warning: {note}', file=sys.stderr)
  _BY_KIND[config.kind](config, study)


def _curves(config: Any, study: Study) -> None:
  """A line for each setting, in a figure for each task."""
  for path, title, part in _by_task(config, study):
    table, by, notes = together.long_table(part)
    facet, color = sweeps.panes_and_colors(config, by)
    plot_sweep(
      f'{path}.png',
      table,
      x=study.x,
      y=study.y,
      by=by,
      facet=facet,
      color=color,
      title=title,
      x_label=together.words(study.x),
      y_label=sweep_figures.words(study.y),
      notes=[*study.notes, *notes],
    )


def _final(config: Any, study: Study) -> None:
  """The final score of each setting, in a figure for each task."""
  scores, note = together.final_scores(study)
  for path, title, part in _by_task(config, study):
    table, by, _ = together.long_table(part)
    shown, position, label = sweep_figures.places(
      table, by, part.flags, twins.with_period()
    )
    plot_final(
      f'{path}-final.png',
      _score_table(part, study, scores),
      x='end',
      y=study.y,
      by=by,
      position=position,
      lines=[name for name in by if name not in shown],
      color=sweeps.panes_and_colors(config, by)[1],
      title=title,
      x_label=label,
      y_label=f'{sweep_figures.words(study.y)}, {_last(note)}',
      notes=[*study.notes, note],
    )


def _heatmap(config: Any, study: Study) -> None:
  """Grids of two swept options: for each task, or of all tasks together."""
  if config.normalize is None and config.baseline is None:
    scores, note = together.final_scores(study)
    for path, title, part in _by_task(config, study):
      numbers = [
        scores[study.settings.index(point), part.tasks[0]]
        for point in part.settings
      ]
      _grid(
        config,
        part,
        part.settings,
        [statistics.over_runs(each) for each in numbers],
        [len(each) for each in numbers],
        path=path,
        title=title,
        label=sweep_figures.words(study.y),
        notes=[
          _explained('mean', True, {len(n) for n in numbers}),
          f'score: {_last(note)}',
          *([note] if note else []),
          *study.notes,
        ],
      )
    return
  if config.normalize is not None and config.baseline is not None:
    refuse(
      config, 'baseline', 'not go with --normalize: probabilities need no scale'
    )
  one = len(study.tasks) == 1
  by_name, label, notes = _scores(config, study, scaled=not config.baseline)
  if config.baseline is None:
    found = [_estimate(each, statistics.iqm) for each in by_name.values()]
    _say_consistency(together.spreads(by_name, study))
    label = f'IQM of {label or sweep_figures.words(study.y)}'
  else:
    baseline = together.baseline(config, study, list(by_name))
    found = [
      aggregates.probability_of_improvement(each, by_name[baseline])
      for each in by_name.values()
    ]
    label = f'P(A > {baseline})'
  kept = [
    number for number, name in enumerate(study.names()) if name in by_name
  ]
  seeds = [len(each) for each in by_name.values()]
  _grid(
    config,
    study.of_task(study.tasks[0]),
    [study.settings[number] for number in kept],
    found,
    seeds,
    path=config.output,
    title=_title(study),
    label=label,
    notes=[
      _explained('IQM', one, {*seeds})
      if config.baseline is None
      else _of_pairs(one, {*seeds}),
      *notes,
    ],
  )


def _grid(
  config: Any,
  part: Study,
  settings: Sequence[Mapping[str, Any]],
  found: Sequence[Estimate],
  seeds: Sequence[int],
  *,
  path: str,
  title: str,
  label: str,
  notes: Sequence[str],
) -> None:
  """Writes a grid of settings.

  Args:
    config: the options.
    part: runs of one task, which has all of the settings.
    settings: the settings.
    found: (estimate, low, high) of each setting.
    seeds: the number of seeds of each setting.
    path: of the files, without what they end in.
    title: text above the grid.
    label: label of the numbers, with the unit.
    notes: lines below it; the first is of the figure alone.
  """
  grid = grids.arrange(config, part, settings)
  comparisons.plot_heatmap(
    f'{path}-heatmap.png',
    grid.rows,
    grid.columns,
    dict(zip(grid.cells, found, strict=True)),
    x_label=grid.x_label,
    y_label=grid.y_label,
    color_label=label,
    title=title,
    explanation=_caption(*notes, *grid.notes),
  )
  _write(
    f'{path}-heatmap.csv',
    [*settings[0], 'seeds'],
    [
      (['' if v is None else v for v in point.values()] + [count], each)
      for point, count, each in zip(settings, seeds, found, strict=True)
    ],
    notes[1:],
  )


def _aggregates(config: Any, study: Study) -> None:
  """Aggregates of each setting over all tasks."""
  scores, label, notes = _scores(config, study)
  one, scaled = len(study.tasks) == 1, label != ''
  kinds: dict[str, statistics.Statistic] = {
    'median': aggregates.median,
    'IQM': statistics.iqm,
    'mean': statistics.mean,
    'optimality gap': aggregates.optimality_gap,
  }
  if len(study.tasks) < 3:
    del kinds['median']  # it is the mean
  if not scaled:
    del kinds['optimality gap']
  found = {
    kind: {name: _estimate(each, statistic) for name, each in scores.items()}
    for kind, statistic in kinds.items()
  }
  runs = {len(each) for each in scores.values()}
  spreads = together.spreads(scores, study)
  comparisons.plot_aggregates(
    f'{config.output}-aggregates.png',
    found,
    label=label or sweep_figures.words(study.y),
    title=_title(study),
    explanation=_caption(
      _explained('aggregates', one, runs),
      'optimality gap: lower is better' * scaled,
      *notes,
    ),
  )
  _write(
    f'{config.output}-aggregates.csv',
    [
      'setting',
      'seeds',
      'tasks',
      *['rank_spread'] * bool(spreads),
      'aggregate',
    ],
    [
      (
        [
          *(name, len(scores[name]), len(study.tasks)),
          *([f'{spreads[name]:.6g}'] if spreads else []),
          kind,
        ],
        estimate,
      )
      for kind, estimates in found.items()
      for name, estimate in estimates.items()
    ],
    notes,
  )
  _say_consistency(spreads)


def _say_consistency(spreads: Mapping[str, float]) -> None:
  if spreads:
    score = float(np.mean(list(spreads.values())))
    print(sweeps.consistency_words(score, len(spreads)))


def _profiles(config: Any, study: Study) -> None:
  """The fraction of runs that score above each threshold."""
  scores, label, notes = _scores(config, study)
  pooled = np.concatenate([each.ravel() for each in scores.values()])
  thresholds = np.linspace(
    min(0.0, pooled.min()) if label else pooled.min(),
    pooled.max(),
    _THRESHOLDS,
  )
  found = {
    name: (thresholds, aggregates.performance_profile(each, thresholds))
    for name, each in scores.items()
  }
  comparisons.plot_lines(
    f'{config.output}-profiles.png',
    found,
    x_label=f'{label or sweep_figures.words(study.y)} $\\tau$',
    y_label='fraction of runs above $\\tau$',
    title=_title(study),
    explanation=_caption(
      drawing.bootstrapped(
        'runs',
        {len(each) for each in scores.values()},
        'one profile' if len(study.tasks) == 1 else 'profile',
      ),
      *notes,
    ),
    fractions=True,
  )
  _write(
    f'{config.output}-profiles.csv',
    ['setting', 'threshold'],
    [
      ([name, f'{x:.6g}'], [end[i] for end in ends])
      for name, (points, ends) in found.items()
      for i, x in enumerate(points)
    ],
    notes,
  )


def _improvement(config: Any, study: Study) -> None:
  """How likely a run of one setting exceeds a run of another."""
  scores, _, notes = _scores(config, study, scaled=False)
  names = list(scores)
  if len(names) < 2:
    raise UsageError(
      f'--kind=improvement must have two settings, and --runs={config.runs} '
      f'has {len(names)}'
    )
  pairs = list(itertools.combinations(names, 2))
  pairs = [(later, first) for first, later in pairs]
  if config.baseline is not None or len(pairs) > _MOST_PAIRS:
    baseline = together.baseline(config, study, names)
    pairs = [(name, baseline) for name in names if name != baseline]
  found = {
    (a, b): aggregates.probability_of_improvement(scores[a], scores[b])
    for a, b in pairs
  }
  comparisons.plot_improvement(
    f'{config.output}-improvement.png',
    found,
    title=_title(study),
    explanation=_caption(
      _of_pairs(len(study.tasks) == 1, {len(each) for each in scores.values()}),
      *notes,
    ),
  )
  _write(
    f'{config.output}-improvement.csv',
    ['setting', 'other'],
    [([a, b], estimate) for (a, b), estimate in found.items()],
    notes,
  )


def _differences(config: Any, study: Study) -> None:
  """How far settings differ from a baseline, with a pane for each task."""
  scores, note = together.final_scores(study)
  asked = [] if config.baseline is None else config.baseline.split(',')
  found: dict[str, dict[str, Estimate]] = {}
  against: dict[tuple[str, str], str] = {}
  counts: set[int] = set()
  for task in study.tasks:
    part = study.of_task(task)
    baseline = None
    for point, name in zip(part.settings, part.names(), strict=True):
      runs = scores[study.settings.index(point), task]
      counts.add(len(runs))
      if any(text in asked for text in together.texts(point)) or (
        baseline is None and not asked
      ):
        baseline = name, runs
        continue
      if baseline is None:
        raise UsageError(
          f'--baseline={config.baseline} must name a setting of {task} that '
          f'comes before {name}'
        )
      against[task, name] = baseline[0]
      found.setdefault(name, {})[task] = statistics.difference(
        runs[:, None], baseline[1][:, None], statistics.mean
      )
  if not found:
    raise UsageError(
      f'--kind=differences must have two settings, and --runs={config.runs} '
      f'has {len(study.settings)}'
    )
  unknown = (np.array(np.nan),) * 3
  comparisons.plot_aggregates(
    f'{config.output}-differences.png',
    {
      task: {name: each.get(task, unknown) for name, each in found.items()}
      for task in study.tasks
    },
    label=sweep_figures.words(study.y),
    title='difference from ' + ' or '.join(dict.fromkeys(against.values())),
    explanation=_caption(
      "difference of means over seeds, with Welch's 95 % interval",
      f'seeds: {", ".join(map(str, sorted(counts)))}; score: {_last(note)}',
      note,
      *study.notes,
    ),
    zero=True,
  )
  _write(
    f'{config.output}-differences.csv',
    ['task', 'setting', 'baseline'],
    [
      ([task, name, against[task, name]], found[name][task])
      for task, name in against
    ],
    [f'score: {_last(note)}', *([note] if note else []), *study.notes],
  )


def _efficiency(config: Any, study: Study) -> None:
  """The aggregate over tasks, over steps, and over wall time if measured."""
  clocks: dict[str, tuple[str, float, Callable]] = {
    '': (together.words(study.x), 1.0, lambda run: run.x)
  }
  runs = [run for each in study.runs.values() for run in each]
  if all(run.seconds is not None for run in runs):
    longest = max(run.seconds[-1] for run in runs if run.seconds is not None)
    unit, size = next(
      (u for u in reversed(_UNITS) if longest >= 2 * u[1]), _UNITS[0]
    )
    clocks['-time'] = (f'wall time ({unit})', size, lambda run: run.seconds)
  else:
    print('not over wall time: not all runs have columns that end in _s')
  # All curves of a task are on one scale, that of the final scores.
  scale, label, notes = _scale(config, study)
  for suffix, (x_label, size, clock) in clocks.items():
    found, counts = {}, set()
    said: list[str] = []
    for number, name in _complete(study, said):
      curves = [study.runs[number, task] for task in study.tasks]
      few = min(map(len, curves))
      points = aggregates.common_points(
        [clock(run) for each in curves for run in each]
      )
      if not len(points):
        said.append(f'{name}: its runs share no {x_label}')
        continue
      heights = np.stack(
        [
          [
            scale(task, aggregates.at_points(clock(run), run.y, points))
            for run in each[:few]
          ]
          for task, each in zip(study.tasks, curves, strict=True)
        ],
        axis=1,
      )
      known = np.isfinite(heights).all(axis=(0, 1))
      found[name] = (
        points[known] / size,
        _estimate(heights[..., known], statistics.iqm),
      )
      counts.add(few)
    if not found:
      raise UsageError(f'--runs={config.runs} must share some {x_label}')
    _check_lines(config, found)
    if suffix:
      said.append('wall time: that of the machines which made these runs')
    if len({run.x[-1] for run in runs}) > 1:
      said.append('runs of unequal length: a line ends with its shortest run')
    one = len(study.tasks) == 1
    comparisons.plot_lines(
      f'{config.output}-efficiency{suffix}.png',
      found,
      x_label=x_label,
      y_label=f'IQM of {label or sweep_figures.words(study.y)}',
      title=_title(study),
      explanation=_caption(_explained('IQM', one, counts), *notes, *said),
    )
    _write(
      f'{config.output}-efficiency{suffix}.csv',
      ['setting', x_label],
      [
        ([name, f'{x:.10g}'], [end[i] for end in ends])
        for name, (points, ends) in found.items()
        for i, x in enumerate(points)
      ],
      [*notes, *said],
    )


_BY_KIND: dict[str, Callable[[Any, Study], None]] = {
  'curves': _curves,
  'final': _final,
  'heatmap': _heatmap,
  'aggregates': _aggregates,
  'profiles': _profiles,
  'improvement': _improvement,
  'differences': _differences,
  'efficiency': _efficiency,
}
KINDS = tuple(_BY_KIND)


def _by_task(config: Any, study: Study):
  """Yields (path without suffix, title, runs) for each task."""
  for task in study.tasks:
    apart = f'-{task.replace("/", "-")}' if len(study.tasks) > 1 else ''
    yield f'{config.output}{apart}', task, study.of_task(task)


def _score_table(
  part: Study, study: Study, scores: Mapping[tuple[int, str], np.ndarray]
) -> dict[str, np.ndarray]:
  """The scores of one task in long form, at the end of a clock."""
  (task,) = part.tasks
  ends = {
    key: [
      together.Run(np.ones(1), np.array([score]), None)
      for score in scores[study.settings.index(part.settings[key[0]]), task]
    ]
    for key in part.runs
  }
  table, _, _ = together.long_table(part._replace(runs=ends, x='end'))
  return table


def _scores(
  config: Any, study: Study, *, scaled: bool = True
) -> tuple[dict[str, np.ndarray], str, list[str]]:
  """Returns [runs, tasks] by setting, the label of their scale, and notes."""
  finals, note = together.final_scores(study)
  scale, label, notes = (
    _scale(config, study) if scaled else (lambda _, s: s, '', study.notes)
  )
  notes = [*notes, *([note] if note else [])]
  scores: dict[str, np.ndarray] = {}
  for number, name in _complete(study, notes):
    few = min(len(finals[number, task]) for task in study.tasks)
    scores[name] = np.stack(
      [scale(task, finals[number, task][:few]) for task in study.tasks],
      axis=1,
    )
    if not np.isfinite(scores[name]).all():
      notes.append(f'left out, since a run has no score: {name}')
      del scores[name]
  if not scores:
    raise UsageError(
      f'--runs={config.runs} must have a setting with runs of all tasks: '
      f'{", ".join(study.tasks)}'
    )
  _check_lines(config, scores)
  return scores, label, list(dict.fromkeys(notes))


def _check_lines(config: Any, found: Mapping[str, Any]) -> None:
  if len(found) > MOST_LINES and config.kind not in ('improvement', 'heatmap'):
    raise UsageError(
      f'--kind={config.kind} must have at most {MOST_LINES} settings, which '
      f'can be told apart, not {len(found)}'
    )


def _complete(study: Study, notes: list[str]) -> list[tuple[int, str]]:
  """The settings that have runs of all tasks; notes tell of the others."""
  kept, left_out = [], []
  for number, name in enumerate(study.names()):
    counts = {len(study.runs.get((number, task), ())) for task in study.tasks}
    if 0 in counts:
      left_out.append(name)
      continue
    if len(counts) > 1:
      notes.append(f'{name}: {min(counts)} of its seeds on each task')
    kept.append((number, name))
  if left_out:
    more = f'; and {len(left_out) - 1} more' * (len(left_out) > 1)
    notes.append(f'left out, without runs of all tasks: {left_out[0]}{more}')
  return kept


def _scale(
  config: Any, study: Study
) -> tuple[Callable[[str, np.ndarray], np.ndarray], str, list[str]]:
  """Returns (task, scores) -> scores on one scale, its label, and notes."""
  how = config.normalize
  human = study.is_atari and not any(
    np.isnan(human_normalized(task, 0.0)) for task in study.tasks
  )
  if how is None:
    how = 'human' if human else 'range' if len(study.tasks) > 1 else 'none'
  if how == 'human':
    if not human:
      raise UsageError(
        '--normalize=human must be of Atari games with known scores, not '
        f'{", ".join(study.tasks)}'
      )
    return _human, 'human-normalized score', study.notes
  if how == 'none':
    if len(study.tasks) > 1:
      raise UsageError(
        '--normalize=none must be of one task, since returns of '
        f'{", ".join(study.tasks)} have no common unit'
      )
    return lambda task, scores: scores, '', study.notes
  curves = config.kind == 'efficiency'
  finals, _ = together.final_scores(study)
  ends = {}
  for task in study.tasks:
    known = np.concatenate(
      [
        run.y
        for key, runs in study.runs.items()
        if key[1] == task
        for run in runs
      ]
      if curves
      else [scores for key, scores in finals.items() if key[1] == task]
    )
    low, high = np.nanmin(known), np.nanmax(known)
    ends[task] = (low, (high - low) or 1.0)
  said = ', '.join(
    f'{task} {low:.4g} to {low + width:.4g}'
    for task, (low, width) in ends.items()
  )
  what = 'lowest and highest return' if curves else 'worst and best run'
  note = f'scaled score: 0 and 1 are the {what} here ({said})'
  return (
    lambda task, scores: (scores - ends[task][0]) / ends[task][1],
    'scaled score',
    [*study.notes, note],
  )


def _human(task: str, scores: np.ndarray) -> np.ndarray:
  zero, one = (human_normalized(task, score) for score in (0.0, 1.0))
  return zero + (one - zero) * scores


def _estimate(scores: np.ndarray, statistic: statistics.Statistic) -> Estimate:
  """An aggregate: of one task with t intervals, of more with a bootstrap."""
  if scores.shape[1] > 1:
    return aggregates.aggregate(scores, statistic)
  if statistic is aggregates.optimality_gap:
    middle, low, high = statistics.over_runs(np.minimum(scores[:, 0], 1))
    return 1 - middle, 1 - high, 1 - low
  return statistics.over_runs(scores[:, 0], statistic)


def _explained(what: str, one_task: bool, runs: set[int]) -> str:
  """The words of a caption on the intervals of `what`."""
  if not one_task:
    return drawing.bootstrapped(what, runs)
  statistic = statistics.iqm if what == 'IQM' else statistics.mean
  words = ' '.join(drawing.explanation(statistic, runs).split())
  return words.replace('mean of', f'{what} of', 1)


def _of_pairs(one_task: bool, runs: set[int]) -> str:
  """The words of a caption on probabilities of improvement."""
  return _caption(
    'P(A > B): probability that a run of A exceeds a run of B',
    drawing.bootstrapped(
      'pairs', runs, 'one improvement' if one_task else 'improvement'
    ),
  )


def _caption(*parts: str) -> str:
  return '\n'.join(filter(None, parts))


def _title(study: Study) -> str:
  if len(study.tasks) < 4:
    return ', '.join(study.tasks)
  return f'{len(study.tasks)} tasks'


def _last(note: str) -> str:
  return 'last 10 % of the common time' if note else 'last 10 % of the runs'


def _write(
  path: str,
  columns: Sequence[str],
  rows: Sequence[tuple[Sequence[Any], Sequence[Any]]],
  notes: Sequence[str],
) -> None:
  """Writes the numbers of a figure, below its notes."""
  text = io.StringIO()
  text.writelines(f'# {" ".join(note.split())}\n' for note in notes)
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow([*columns, 'estimate', 'low', 'high'])
  writer.writerows(
    [*names, *(f'{float(number):.6g}' for number in numbers)]
    for names, numbers in rows
  )
  write_atomically(pathlib.Path(path), text.getvalue().encode())
