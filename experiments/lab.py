"""Twins on problems that are solved exactly: predictions beside actual runs.

  python -m experiments.lab --problem=baird --target_update=hard \\
      --target_period=9 --discount=0.99 --step_size=0.1

learns linear values of a fixed policy from expected updates by plain gradient
descent, with the learner and the twin of every other launcher. A target update
is then one matrix. The lab prints its spectral radius (above 1 it diverges),
the growth of small perturbations in an actual run, and the final values. The
last line is all of that as JSON:

  spectral_radius, growth   factors over `unit` gradient steps: one target
                            update, or one gradient step if the twin moves at
                            each; null, with a `reason`, if there is none
  diverged                  whether growth is above 1; without a matrix, whether
                            values grew tenfold over the second half of the run
  final_value_norm          Euclidean norm of the final values of all states (at
                            most 1.8e308; its logarithm has no bound)

--problem=random_control learns the values of actions under the max, where a
target update is one matrix for each greedy policy: a mode. Its runs have

  radius_lower, radius_upper  bounds of the joint spectral radius of the modes,
                            from products of up to lower_length and upper_length
  radius_followed           growth of a product that the max itself follows, or
                            null
  predicted                 converges if the upper bound is below 1, diverges if
                            the max follows a product above 1, else undecided
  observed                  of eight random starts, and one that follows a
                            product above 1; growth of their steps over `unit`
                            gradient steps; how many converge and diverge

--problem=tabular_chain and tabular_random learn the values of actions with a
table, from one sample at each gradient step. Their runs have max_error, the
largest error of a value at the end, and moves, how often the twin changed.

--problem=self_prediction learns no values but k features Phi of each state,
initially orthonormal, which predict the twin's features of the next state from
expected updates (Tang et al. 2022). It prints, of Phi:

  orthonormality_error      Frobenius norm of Phi^T Phi - I
  eigen_mass                |V^T Phi|^2 / k, where V are the k eigenvectors of
                            the process whose eigenvalues are largest in
                            absolute value: 1 for an orthonormal basis of them
  eigen_overlap             the same for the directions that the features span,
                            whatever their lengths, except those too short for
                            float64; null if none is left
  smallest_singular_value   of Phi; 0 if it is too small for float64
  effective_rank            of Phi, from 1 to k
  loss                      the mean squared error of the prediction

Lists make a table, and a line of JSON for each run:

  python -m experiments.lab --target_period=1,2,5,10,100 --discount=0.9,0.99
  python -m experiments.lab --problem=self_prediction \\
      --target_update=self,residual --seed=0,1,2,3,4

--run_dir keeps the flags, metrics.csv (norms or the numbers above, over time),
stability.csv or self_prediction.csv (a row for each run), curve.png and, for
lists of numbers, curve-stability.png of values. Exit codes: 0, 2 for invalid
flags, 1 for any other error.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import math
from typing import Any, NamedTuple, NoReturn


from siamrl.report import lab as lab_figures
from experiments.config import executing
from experiments.config.declaring import (
  RunError,
  UsageError,
  refuse,
  usage_errors,
)
from experiments.config.meaning import check_lists, check_meant, say_notes
from experiments.config.reading import Sweep
from experiments.engines import devices, folders, running
from experiments.labs import control, sampled
from experiments.labs.options import (
  CONTROL,
  SELF_PREDICTION,
  TABULAR,
  LabConfig,
  cell,
  finite,
  settings,
  twin_in_words,
  twin_spec,
)
from siamrl import self_prediction, stability
from siamrl.envs import linear
from siamrl.report.metrics import MetricsWriter
from siamrl.report.run_folder import WHERE_FLAGS, RunFolder

# Most weights in all, so that matrices stay small.
_LARGEST = 2_000


def main(sweep: Sweep) -> None:
  """Predicts and runs all cases, and reports them."""
  with usage_errors():
    study, cases = _make_cases(sweep)
    say_notes(sweep.configs)
    first = sweep.configs[0]
    devices.configure(first.platform)
    folder = None if first.run_dir is None else _open(sweep)
    try:
      outcomes = study.run(cases, first.gradient_steps)
    except (MemoryError, RuntimeError) as error:
      raise RunError(f'computing failed: {error}') from error
  results = [
    settings(config) | study.result(config, outcome)
    for config, outcome in zip(sweep.configs, outcomes, strict=True)
  ]
  if folder is not None:
    folders.say_notes(folder)
    with folders.run_errors(folder), folder:
      _write(folder, sweep, study, results, outcomes)
  if len(results) == 1:
    print('\n'.join(study.report(first, cases[0], results[0], outcomes[0])))
  else:
    print(_table(sweep, study.columns, results))
  for result in results:
    print(json.dumps(result))


def check_sweep(sweep: Sweep) -> None:
  """Raises UsageError or RunError for what is refused before a run begins."""
  with usage_errors():
    _make_cases(sweep)


def _make_cases(sweep: Sweep) -> tuple['_Study', list[Any]]:
  """The study of a sweep and its cases; raises UsageError or ValueError."""
  check_meant(sweep.configs)
  study = _study_of(sweep)
  cases = [study.make_case(config) for config in sweep.configs]
  check_lists(sweep)
  return study, cases


class _Study(NamedTuple):
  """The treatment of problems of one kind.

  Attributes:
    name: the name of its table.
    columns: the columns of its table.
    make_case: (options) -> case.
    run: (cases, gradient_steps) -> an outcome for each.
    result: (options, outcome) -> the columns, and maybe a reason.
    report: (options, case, result, outcome) -> lines of text.
    history: (outcome) -> rows over time.
    draw: (folder, path of the table, swept options but for the seed, title).
  """

  name: str
  columns: tuple[str, ...]
  make_case: Callable[[LabConfig], Any]
  run: Callable[[Sequence[Any], int], Sequence[Any]]
  result: Callable[[LabConfig, Any], dict[str, Any]]
  report: Callable[[LabConfig, Any, Mapping[str, Any], Any], list[str]]
  history: Callable[[Any], list[dict[str, Any]]]
  draw: Callable[..., None]


def _study_of(sweep: Sweep) -> _Study:
  """The study of the problems; raises UsageError if they are of two kinds."""
  studies = {_KINDS.get(c.problem, _VALUES).name for c in sweep.configs}
  named = dict.fromkeys(c.problem for c in sweep.configs)
  if len(studies) > 1:
    (odd, *_) = (name for name in named if name in _KINDS)
    raise UsageError(
      f'--problem={",".join(named)} must not mix {odd} with others, whose '
      'results have other columns'
    )
  return _KINDS.get(sweep.configs[0].problem, _VALUES)


# Values.


def make_case(config: LabConfig) -> stability.Case:
  """The problem and the learner of values that the options name.

  Raises:
    UsageError: options do not go together.
    ValueError: likewise; the message begins with the option.
  """
  if config.target_init != 'equal':
    refuse(config, 'target_init', 'be equal: weights are given, not drawn')
  twin = twin_spec(config)
  problem = make_problem(config)
  count = twin.parameters.get('target_count', 1)
  size = 2 * (count + 1) * len(problem.initial)
  if size > _LARGEST:
    raise UsageError(
      f'--target_count={count} must be so small that networks and twins have '
      f'{_LARGEST} weights at most, not {size}'
    )
  return stability.Case(
    problem.batch(config.discount),
    problem.initial,
    twin,
    config.step_size,
  )


def make_problem(config: LabConfig) -> linear.LinearProblem:
  """The problem that the options name."""
  takes = linear.PROBLEMS[config.problem].takes
  options = dict.fromkeys(n for p in linear.PROBLEMS.values() for n in p.takes)
  given = {name: getattr(config, name) for name in options}
  if 'seed' not in takes and not config.seed:
    given['seed'] = None  # the default, which is not a choice
  return linear.make_problem(config.problem, **given)


# The prediction from the learner's map, and an actual run.
_Seen = tuple[stability.Prediction, stability.Run]


def _run_values(
  cases: Sequence[stability.Case], gradient_steps: int
) -> list[_Seen]:
  predictions = stability.predict(cases)
  runs = stability.run(cases, gradient_steps)
  return list(zip(predictions, runs, strict=True))


def _values_result(config: LabConfig, seen: _Seen) -> dict[str, Any]:
  """The results that the JSON of a run has; None for numbers beyond floats."""
  prediction, run = seen
  last = float(run.log10_norms[-1])
  result: dict[str, Any] = {
    'unit': run.unit,
    'spectral_radius': prediction.spectral_radius,
    'growth': run.growth,
    'diverged': run.diverged,
    'final_value_norm': run.final_value_norm,
    'log10_final_value_norm': last if math.isfinite(last) else None,
  }
  if prediction.reason:
    result['reason'] = prediction.reason.replace("'", '')
  elif run.growth is None:
    result['reason'] = (
      f'gradient_steps={config.gradient_steps} is too short to see the growth '
      f'over {prediction.unit}'
    )
  return result


def _values_report(
  config: LabConfig,
  case: stability.Case,
  result: Mapping[str, Any],
  seen: _Seen,
) -> list[str]:
  """A few lines about one run."""
  run = seen[1]
  states, weights = case.batch.obs_tm1.shape
  unit, radius = result['unit'], result['spectral_radius']
  over = 'a gradient step' if unit == 1 else f'{unit:,} gradient steps'
  lines = [
    f'{config.problem}: {states} states, {weights} weights; '
    f'discount {config.discount:g}, step size {config.step_size:g}',
    f'twin: {twin_in_words(config, result)}',
  ]
  if radius is None:
    lines.append(f'predicted: nothing, for {result["reason"]}')
  else:
    verdict = (
      'diverges'
      if radius > 1 + 1e-9
      else 'converges'
      if radius < 1 - 1e-9
      else 'neither grows nor shrinks'
    )
    lines.append(
      f'predicted: {verdict}, spectral radius {radius:.7g} over {over}'
    )
  growth = result['growth']
  growing = (
    'its growth cannot be told'
    if growth is None
    else f'growth by {growth:.7g} over {over}'
  )
  lines.append(
    f'observed: {"diverged" if result["diverged"] else "did not diverge"}; '
    f'{growing}; values from norm {10 ** run.log10_norms[0]:.4g} to '
    f'{run.final_value_norm:.4g} in {config.gradient_steps:,} gradient steps'
  )
  return lines


def _values_history(seen: _Seen) -> list[dict[str, Any]]:
  run = seen[1]
  return [
    {
      'gradient_steps': step,
      # A logarithm of 0 is an empty cell.
      'log10_value_norm': finite(norm),
    }
    for step, norm in zip(run.gradient_steps, run.log10_norms, strict=True)
  ]


_VALUES = _Study(
  'stability',
  (
    'unit',
    'spectral_radius',
    'growth',
    'diverged',
    'final_value_norm',
    'log10_final_value_norm',
  ),
  make_case,
  _run_values,
  _values_result,
  _values_report,
  _values_history,
  lab_figures.draw,
)


# Features.


def make_features_case(config: LabConfig) -> self_prediction.Case:
  """The process and the learner of features that the options name.

  Raises:
    UsageError: options do not go together.
    ValueError: likewise; the message begins with the option.
  """
  if config.target_update not in self_prediction.RULES:
    refuse(
      config,
      'target_update',
      f'be one of {", ".join(self_prediction.RULES)} for '
      f'problem={config.problem}',
    )
  twin = twin_spec(config)
  return self_prediction.Case(
    self_prediction.random_corridor(config.seed, config.num_states or 20),
    config.num_features or 4,
    twin,
    config.step_size,
    config.predictor,
    config.predictor_rate,
    config.seed,
  )


def _features_result(
  config: LabConfig, run: self_prediction.Run
) -> dict[str, Any]:
  """The results that the JSON of a run has; None for numbers beyond floats."""
  result: dict[str, Any] = {
    name: finite(values[-1]) for name, values in run.measures._asdict().items()
  }
  if result['orthonormality_error'] is None:
    result['reason'] = (
      f'step_size={config.step_size} lets features outgrow all floats'
    )
  return result


def _features_report(
  config: LabConfig,
  case: self_prediction.Case,
  result: Mapping[str, Any],
  run: self_prediction.Run,
) -> list[str]:
  """A few lines about one run."""
  predictor = case.predictor
  if case.predictor_rate is not None:
    predictor += f' at {case.predictor_rate:g} times that step size'
  found = {name: cell(result[name], 4) for name in run.measures._fields}
  return [
    f'{config.problem}: {len(case.transitions)} states, {case.num_features} '
    f'features; step size {config.step_size:g}',
    f'twin: {twin_in_words(config, result)}; predictor: {predictor}',
    f'observed after {config.gradient_steps:,} gradient steps: |Phi^T Phi - I| '
    f'{found["orthonormality_error"]}, eigen-mass {found["eigen_mass"]} '
    f'(overlap {found["eigen_overlap"]}),',
    f'smallest singular value {found["smallest_singular_value"]}, effective '
    f'rank {found["effective_rank"]}, loss {found["loss"]}',
  ]


def _features_history(run: self_prediction.Run) -> list[dict[str, Any]]:
  measures = run.measures._asdict()
  return [
    {'gradient_steps': step}
    | {name: finite(values[index]) for name, values in measures.items()}
    for index, step in enumerate(run.gradient_steps)
  ]


_FEATURES = _Study(
  'self_prediction',
  self_prediction.Measures._fields,
  make_features_case,
  self_prediction.run,
  _features_result,
  _features_report,
  _features_history,
  lambda folder, ends, by, title: lab_figures.draw_features(folder, by, title),
)


_CONTROL = _Study(
  'control',
  control.COLUMNS,
  control.make_case,
  control.run,
  control.result,
  control.report,
  control.history,
  lab_figures.draw,
)

_SAMPLED = _Study(
  'sampled',
  sampled.COLUMNS,
  sampled.make_case,
  sampled.run,
  sampled.result,
  sampled.report,
  sampled.history,
  lab_figures.draw,
)

# Problems of other kinds than values of a fixed policy.
_KINDS = {
  SELF_PREDICTION: _FEATURES,
  **dict.fromkeys(CONTROL, _CONTROL),
  **dict.fromkeys(TABULAR, _SAMPLED),
}

# Output of all kinds.


def _table(
  sweep: Sweep, columns: Sequence[str], results: Sequence[Mapping[str, Any]]
) -> str:
  """A row for each run of a sweep, in columns."""
  shown = [name for name in columns if not name.startswith('log10_')]
  rows = [[*sweep.axes, *shown]]
  for point, result in zip(sweep.points, results, strict=True):
    rows.append(
      [cell(x) for x in point.values()] + [cell(result[n]) for n in shown]
    )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(cell.rjust(w) for cell, w in zip(row, widths, strict=True))
    for row in rows
  )


def _open(sweep: Sweep) -> RunFolder:
  """Opens the folder of the runs and writes flags and configuration."""
  first = sweep.configs[0]
  recorded = sweep._replace(values=sweep.values | {'overwrite': (False,)})
  return folders.open_folder(
    first.run_dir,
    recorded,
    overwrite=first.overwrite,
    ignore=WHERE_FLAGS,
  )


def _write(
  folder: RunFolder,
  sweep: Sweep,
  study: _Study,
  results: Sequence[Mapping[str, Any]],
  outcomes: Sequence[Any],
) -> None:
  """Writes tables and figures, replacing those of the same command."""
  points = [
    # Every row has a seed, which tells runs apart.
    {'seed': config.seed, **point}
    for config, point in zip(sweep.configs, sweep.points, strict=True)
  ]
  times = [
    point | row
    for point, outcome in zip(points, outcomes, strict=True)
    for row in study.history(outcome)
  ]
  ends = [
    point | {name: result[name] for name in study.columns}
    for point, result in zip(points, results, strict=True)
  ]
  path = folder.path / f'{study.name}.csv'
  for file, rows in ((folder.metrics, times), (path, ends)):
    file.unlink(missing_ok=True)
    with MetricsWriter(file) as writer:
      writer.write_rows(rows)
  if running.can_draw():
    axes = [name for name in sweep.axes if name != 'seed']
    title = '+'.join(dict.fromkeys(c.problem for c in sweep.configs))
    running.draw(folder.curve, lambda: study.draw(folder, path, axes, title))


def run() -> NoReturn:
  """Runs the command line and exits."""
  executing.run(LabConfig, __doc__, main, lists=True)


if __name__ == '__main__':
  run()
