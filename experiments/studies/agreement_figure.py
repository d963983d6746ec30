"""The figure and the table of the study twin_agreement.

  python -m experiments.studies.agreement_figure \\
      --runs=experiments/results/twin_agreement-curves.csv \\
      --output=experiments/results/twin_agreement-agreement

writes OUTPUT.png, the score of each rule over its agreement with optimal
values, with 95 % t intervals, and prints both as a table. Squares are hard and
circles soft rules, with their periods and rates. The dashed line is the score
of the twin that chooses the candidate that agrees best.
"""

import dataclasses
import pathlib

import numpy as np

from experiments.config import executing
from experiments.config.declaring import RunError, UsageError, path_option
from experiments.studies.twin_agreement import COMMON, RULES, problems_of
from siamrl.report import drawing, statistics
from siamrl.report.results import read_results


@dataclasses.dataclass(frozen=True)
class FigureConfig:
  """The options."""

  runs: str | None = path_option(None, 'Results file of the study.')
  output: str | None = path_option(
    None, 'Path of the figure to write, without an ending; none if not given.'
  )


def main(config: FigureConfig) -> None:
  """Prints the table, and draws the figure."""
  if config.runs is None:
    raise UsageError('--runs must be given, the results file of the study')
  try:
    problems = problems_of(read_results(pathlib.Path(config.runs)).table)
  except (OSError, ValueError) as error:
    raise RunError(f'--runs={config.runs}: {error}') from error
  for problem in problems:
    print(f'| {problem.name} | score | agreement, common | agreement, own |')
    print('|---|---|---|---|')
    for name, *cells in zip(
      RULES, problem.scores, problem.common, problem.own, strict=True
    ):
      print(f'| {name} | ' + ' | '.join(map(_interval, cells)) + ' |')
    for choice, scores in problem.followers.items():
      print(f'| choice: {choice} | {_interval(scores)} | | |')
    print()
  if config.output is None:
    return
  figure = drawing.new_figure(drawing.COLUMN * len(problems), 3.2)
  for place, problem in enumerate(problems):
    axes = figure.add_subplot(1, len(problems), place + 1)
    for name, agreement, scores in zip(
      RULES, problem.common, problem.scores, strict=True
    ):
      rule = name.partition(':')[0]
      axes.errorbar(
        *_middle_and_error(agreement, scores),
        fmt=_MARKERS[rule],
        color=_COLORS[rule],
        markersize=4,
        linewidth=0.8,
      )
      axes.annotate(
        name.removeprefix('hard:').removeprefix('soft:'),
        (np.mean(agreement), np.mean(scores)),
        xytext=(3, 3),
        textcoords='offset points',
        fontsize=6,
        color=_COLORS[rule],
      )
    axes.axhline(
      np.mean(problem.followers['best']), color=drawing.GRAY, linestyle='--'
    )
    drawing.tidy(axes)
    axes.xaxis.set_major_formatter(drawing.plain())
    axes.set_title(problem.name, fontsize=9)
    axes.set_xlabel(f'agreement in runs of {COMMON}', fontsize=8)
    if not place:
      axes.set_ylabel('reward per env step', fontsize=8)
  try:
    drawing.save(figure, f'{config.output}.png')
  except OSError as error:
    raise RunError(f'--output={config.output}: {error}') from error


_MARKERS = {'hard': 's', 'soft': 'o', 'self': '^', 'residual': 'v'} | {
  'frozen': 'x'
}
_COLORS = {'hard': 'C0', 'soft': 'C1', 'self': 'C2', 'residual': 'C3'} | {
  'frozen': 'C4'
}


def _interval(runs: np.ndarray) -> str:
  middle, low, high = statistics.over_runs(runs)
  return f'{middle:.4g} ({low:.4g} to {high:.4g})'


def _middle_and_error(
  x: np.ndarray, y: np.ndarray
) -> tuple[float, float, float, float]:
  """Means of x and y, and half the widths of the intervals of y and x."""
  (x_middle, _, x_high), (y_middle, _, y_high) = map(
    statistics.over_runs, (x, y)
  )
  return (
    float(x_middle),
    float(y_middle),
    float(y_high - y_middle),
    float(x_high - x_middle),
  )


if __name__ == '__main__':
  executing.run(FigureConfig, __doc__, main)
