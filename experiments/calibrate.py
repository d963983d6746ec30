"""Coverage of confidence intervals, and false positives and power of tests.

  python -m experiments.calibrate --repetitions=10000

draws scores of many simulated studies with few runs each and prints tables in
Markdown, of the intervals and tests that a figure or a claim could rest on.
BUILD_NOTES.md has the tables, and what was chosen.

Scores are normal; skewed, lognormal with a spread of 0.75; or bimodal: 3 of 10
runs fail, the others end 10 standard deviations higher.

The first table has the percentage of 95 % intervals that cover the true value.
For the mean over the runs of one task: Student's t, a percentile bootstrap as
in rliable, and a bootstrap of the studentized mean (bootstrap-t). For the IQM
of infinitely many runs: Tukey and McLaughlin's t, and the percentile bootstrap.
For the mean over 26 tasks: the stratified bootstrap.

The second has the percentage of tests at 2.5 % that find A to exceed B:
Welch's t, which `criteria` uses, a percentile bootstrap of the difference, and
permutations of the difference and of Welch's t. A and B are equal; have equal
means, but A or B has a quarter of the other's spread; or A is better by two
standard deviations, where more is better.

The third, of at most 1,000 studies, has the percentage of 95 % intervals of the
stratified bootstrap that cover the true value, for one task and for 26 alike:
of performance profiles, at thresholds that 90, 50 and 10 % of scores exceed,
and of the probability that a run of A exceeds one of B, where they are equal or
A is better by one standard deviation.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

from experiments.config.declaring import Bound, NOT_NEGATIVE, POSITIVE, option
from experiments.config.executing import run
from siamrl.report.calibration import (
  CASES,
  KINDS,
  TASKS,
  TESTS,
  coverage,
  coverage_of_fractions,
  rejections,
  standard,
)

_COUNTS = Bound(
  lambda text: all(
    part.isdecimal() and int(part) > 1 for part in text.split('+')
  ),
  'numbers of at least 2, joined by +',
)


# The coverage that is meant of 95 % intervals of 10 runs, in 1,000 studies.
MEANT = (0.93, 0.97)
_MOST_STUDIES = 1_000  # of the third table, which takes long


@dataclasses.dataclass(frozen=True)
class CalibrateConfig:
  """The options."""

  repetitions: int = option(2_000, 'Studies drawn for each number.', POSITIVE)
  runs: str = option('3+5+6+10', 'Numbers of runs per study', _COUNTS)
  seed: int = option(0, 'Seed of all studies.', NOT_NEGATIVE)


def _line(cells: list[Any]) -> str:
  return f'| {" | ".join(map(str, cells))} |'


def _print_table(head: list[str], rows: Iterator[list[Any]]) -> None:
  print(_line(head), _line(['---'] * len(head)), sep='\n')
  for row in rows:
    print(_line(row), flush=True)
  print()


def _verdict(runs: int, parts: dict[str, float]) -> str:
  """A line on the intervals that figures have, of some number of runs."""
  shown = '; '.join(
    f'{kind}: {100 * part:.1f} %' for kind, part in parts.items()
  )
  low, high = MEANT
  outside = [kind for kind, part in parts.items() if not low <= part <= high]
  words = f'outside of it: {", ".join(outside)}' if outside else 'all within it'
  return (
    f'Figures of {runs} normal runs cover {shown} '
    f'({100 * low:.0f} to {100 * high:.0f} % is meant of 10; {words}).'
  )


def main(config: CalibrateConfig) -> None:
  """Prints the tables."""
  counts = [int(part) for part in config.runs.split('+')]
  known = {name: standard(draw, config.seed) for name, draw in KINDS.items()}

  normal: dict[int, dict[str, float]] = {}

  def covered() -> Iterator[list[Any]]:
    for name, (draw, population) in known.items():
      for runs in counts:
        found = coverage(
          draw, population, runs, config.repetitions, config.seed
        )
        if name == 'normal':
          normal[runs] = found
        yield [name, runs, *(f'{100 * part:.1f}' for part in found.values())]

  def rejected() -> Iterator[list[Any]]:
    for name, (draw, _) in known.items():
      for runs in counts:
        found = rejections(draw, runs, config.repetitions, config.seed)
        yield [
          name,
          runs,
          *(
            ', '.join(f'{100 * part:.1f}' for part in cases.values())
            for cases in found.values()
          ),
        ]

  kinds = [
    *('mean, t', 'mean, percentile', 'mean, bootstrap-t'),
    *('IQM, t', 'IQM, percentile', f'{TASKS} tasks, percentile'),
  ]
  _print_table(['scores', 'runs', *kinds], covered())
  drawn = ('mean, t', 'IQM, t', f'{TASKS} tasks, percentile')
  for runs, parts in normal.items():
    print(f'{_verdict(runs, {kind: parts[kind] for kind in drawn})}\n')
  print(f'Each: {", ".join(CASES)}.\n')
  _print_table(['scores', 'runs', *TESTS], rejected())
  _print_fractions(config, counts, known)


def _print_fractions(
  config: CalibrateConfig, counts: list[int], known: dict[str, tuple[Any, Any]]
) -> None:
  """Prints the table of profiles and of the probability of improvement."""
  repetitions = min(config.repetitions, _MOST_STUDIES)
  headed = False
  for name, scores in known.items():
    for runs in counts:
      found = coverage_of_fractions(*scores, runs, repetitions, config.seed)
      if not headed:
        head = ['scores', 'runs', *found]
        print(_line(head), _line(['---'] * len(head)), sep='\n')
        headed = True
      cells = (f'{100 * part:.1f}' for part in found.values())
      print(_line([name, runs, *cells]), flush=True)


if __name__ == '__main__':
  run(CalibrateConfig, __doc__, main)
