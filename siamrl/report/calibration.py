"""Coverage of intervals, and false positive rates of tests.

They are measured in simulated studies of few runs each, whose truth is known.
Scores are normal; skewed (lognormal with a spread of 0.75); or bimodal (3 of 10
runs fail, and the others end 10 standard deviations higher).
"""

from collections.abc import Callable, Iterator, Sequence
import itertools
import math
from typing import Any

import numpy as np

from siamrl.report import aggregates, statistics

_LEVEL = 0.95
_RESAMPLES = 1_000
_FEWER_RESAMPLES = 500  # of one study at a time
_PERMUTATIONS = 2_000  # at most; all of them for few runs
TASKS = 26  # as in Atari 100k
_BATCH = 500  # studies held in memory at once

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  return random.standard_normal(shape)


def _skewed(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  return random.lognormal(0.0, 0.75, shape)


def _bimodal(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  works = random.random(shape) < 0.7
  return 10.0 * works + random.standard_normal(shape)


KINDS: dict[str, Draw] = {
  'normal': _normal,
  'skewed': _skewed,
  'bimodal': _bimodal,
}


def standard(draw: Draw, seed: int) -> tuple[Draw, np.ndarray]:
  """Scales scores to mean 0 and spread 1; also returns a million, sorted."""
  many = draw(np.random.default_rng((seed, 1)), (1_000_000,))
  center, spread = many.mean(), many.std()

  def scaled(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (draw(random, shape) - center) / spread

  return scaled, np.sort((many - center) / spread)


# Intervals: (random, scores [runs, studies]) -> (low, high), [studies] each.


def _percentile(
  random: np.random.Generator,
  scores: np.ndarray,
  statistic: statistics.Statistic = statistics.mean,
) -> statistics.Interval:
  rows = random.integers(0, len(scores), (_RESAMPLES, len(scores)))
  return _ends(statistic(scores[rows], 1))


def _stratified(
  random: np.random.Generator, scores: np.ndarray
) -> statistics.Interval:
  """Returns stratified intervals of scores [runs, studies, tasks]."""
  runs, _, tasks = scores.shape
  means = np.zeros((_RESAMPLES, scores.shape[1]))
  for task in range(tasks):
    rows = random.integers(0, runs, (_RESAMPLES, runs))
    means += scores[rows, :, task].mean(1) / tasks
  return _ends(means)


def _ends(resampled: np.ndarray) -> statistics.Interval:
  tail = 50 * (1 - _LEVEL)
  low, high = np.percentile(resampled, [tail, 100 - tail], axis=0)
  return low, high


def _bootstrap_t(
  random: np.random.Generator, scores: np.ndarray
) -> statistics.Interval:
  rows = random.integers(0, len(scores), (_RESAMPLES, len(scores)))
  again = scores[rows]
  center, error = scores.mean(0), _error(scores, 0)
  gaps, errors = again.mean(1) - center, _error(again, 1)
  # A resample of a single repeated run has no spread: t is infinite.
  with np.errstate(divide='ignore', invalid='ignore'):
    t = np.where(errors > 0, gaps / errors, np.sign(gaps) * np.inf)
  tail = (1 - _LEVEL) / 2
  low_t, high_t = np.quantile(t, [tail, 1 - tail], axis=0, method='nearest')
  return center - high_t * error, center - low_t * error


def _error(scores: np.ndarray, axis: int) -> np.ndarray:
  return scores.std(axis, ddof=1) / math.sqrt(scores.shape[axis])


def coverage(
  draw: Draw, population: np.ndarray, runs: int, repetitions: int, seed: int
) -> dict[str, float]:
  """Returns the fraction of intervals that hold their estimand, by kind.

  Args:
    draw: draws scores of mean 0.
    population: many such scores, sorted.
    runs: number of runs in a study.
    repetitions: number of studies.
    seed: seed of all random draws.
  """
  cut = len(population) * (runs // 4) // runs
  limit = float(population[cut : len(population) - cut].mean())
  hits: dict[str, int] = {}

  def count(name: str, ends: statistics.Interval, aim: float) -> None:
    inside = (ends[0] <= aim) & (aim <= ends[1])
    hits[name] = hits.get(name, 0) + int(inside.sum())

  for random, size in _batches(repetitions, (seed, runs)):
    scores = draw(random, (runs, size))
    count('mean, t', statistics.over_runs(scores)[1:], 0.0)
    count('mean, percentile', _percentile(random, scores), 0.0)
    count('mean, bootstrap-t', _bootstrap_t(random, scores), 0.0)
    iqm = statistics.over_runs(scores, statistics.iqm)
    count('IQM, t', iqm[1:], limit)
    percentiles = _percentile(random, scores, statistics.iqm)
    count('IQM, percentile', percentiles, limit)
    several = draw(random, (runs, size, TASKS))
    count(f'{TASKS} tasks, percentile', _stratified(random, several), 0.0)
  return {name: number / repetitions for name, number in hits.items()}


# Tests: (random, a [runs, studies], b [runs, studies]) -> bool [studies].


def _welch(
  random: np.random.Generator, a: np.ndarray, b: np.ndarray
) -> np.ndarray:
  del random
  estimate = statistics.difference(a[:, None], b[:, None], statistics.mean)
  return estimate[1] > 0


def _bootstrap(
  random: np.random.Generator, a: np.ndarray, b: np.ndarray
) -> np.ndarray:
  rows = random.integers(0, len(a), (2, _RESAMPLES, len(a)))
  return _ends(a[rows[0]].mean(1) - b[rows[1]].mean(1))[0] > 0


def _permutation(
  random: np.random.Generator,
  a: np.ndarray,
  b: np.ndarray,
  *,
  studentized: bool = False,
) -> np.ndarray:
  pooled, runs = np.concatenate([a, b]), len(a)
  first = _halves(random, runs)  # [P, runs], the observed one first
  every = np.arange(2 * runs)
  rest = np.array([np.setdiff1d(every, rows) for rows in first])
  one, other = pooled[first], pooled[rest]
  gaps = one.mean(1) - other.mean(1)
  if studentized:
    error = np.hypot(_error(one, 1), _error(other, 1))
    with np.errstate(divide='ignore', invalid='ignore'):
      gaps = np.where(gaps == 0, 0.0, gaps / error)
  # The probability of a gap as large or larger, including the observed one.
  return np.mean(gaps >= gaps[0] - 1e-12, axis=0) <= (1 - _LEVEL) / 2


def _halves(random: np.random.Generator, runs: int) -> np.ndarray:
  """Returns ways to split 2 * runs runs in halves, the actual one first."""
  if math.comb(2 * runs, runs) <= _PERMUTATIONS:
    return np.array(list(itertools.combinations(range(2 * runs), runs)))
  drawn = random.permuted(
    np.tile(np.arange(2 * runs), (_PERMUTATIONS, 1)), axis=1
  )
  drawn[0] = np.arange(2 * runs)
  return drawn[:, :runs]


def _studentized(
  random: np.random.Generator, a: np.ndarray, b: np.ndarray
) -> np.ndarray:
  return _permutation(random, a, b, studentized=True)


TESTS = {
  'Welch': _welch,
  'percentile': _bootstrap,
  'permutation': _permutation,
  'studentized': _studentized,
}

# (spread of A, spread of B, advantage of A) by name.
CASES = {
  'equal': (1.0, 1.0, 0.0),
  'A narrow': (0.25, 1.0, 0.0),
  'B narrow': (1.0, 0.25, 0.0),
  'better': (1.0, 1.0, 2.0),
}


def rejections(
  draw: Draw, runs: int, repetitions: int, seed: int
) -> dict[str, dict[str, float]]:
  """Returns the fraction of studies where tests favor A, by test and case.

  Args:
    draw: draws scores of mean 0 and spread 1.
    runs: number of runs of A, and of B.
    repetitions: number of studies.
    seed: seed of all random draws.
  """
  found: dict[str, dict[str, float]] = {name: {} for name in TESTS}
  for case, (spread_a, spread_b, gap) in CASES.items():
    hits = dict.fromkeys(TESTS, 0)
    for random, size in _batches(repetitions, (seed, runs)):
      a, b = draw(random, (2, runs, size))
      for name, test in TESTS.items():
        hits[name] += int(test(random, gap + spread_a * a, spread_b * b).sum())
    for name, number in hits.items():
      found[name][case] = number / repetitions
  return found


def _batches(
  repetitions: int, seed: tuple[int, ...]
) -> Iterator[tuple[np.random.Generator, int]]:
  random = np.random.default_rng(seed)
  for start in range(0, repetitions, _BATCH):
    yield random, min(_BATCH, repetitions - start)


# Thresholds of a profile, as the fraction of scores that lie above them.
FRACTIONS = (0.9, 0.5, 0.1)
# How much better A is, in standard deviations, by name.
GAPS = {'A = B': 0.0, 'A better': 1.0}


def coverage_of_fractions(
  draw: Draw, population: np.ndarray, runs: int, repetitions: int, seed: int
) -> dict[str, float]:
  """Returns the coverage of profiles and of the probability of improvement.

  Intervals are those of `aggregates`, for one task and for `TASKS` tasks whose
  scores are alike; those of a profile are pointwise.

  Args:
    draw: draws scores of mean 0 and spread 1.
    population: many such scores, sorted.
    runs: number of runs in a study, and of each of the two that are compared.
    repetitions: number of studies.
    seed: seed of all random draws.

  Returns:
    The fraction of intervals that hold their estimand, by kind.
  """
  thresholds = np.quantile(population, [1 - part for part in FRACTIONS])
  random = np.random.default_rng((seed, runs, 1))
  # Each of the million against one drawn at random.
  other = random.permutation(population)
  better = {n: float(np.mean(population + g > other)) for n, g in GAPS.items()}
  hits: dict[str, int] = {}

  def count(name: str, ends: Sequence[Any], aim: float) -> None:
    # Ends are fractions of whole numbers, some of which the aim is, too.
    inside = ends[0] - 1e-9 <= aim <= ends[1] + 1e-9
    hits[name] = hits.get(name, 0) + int(inside)

  for study in range(repetitions):
    for tasks in (1, TASKS):
      words = f'{tasks} task{"s" * (tasks > 1)}'
      a, b = draw(random, (2, runs, tasks))
      _, low, high = aggregates.performance_profile(
        a, thresholds, _FEWER_RESAMPLES, study
      )
      for part, *ends in zip(FRACTIONS, low, high, strict=True):
        count(f'{part:.0%} above, {words}', ends, part)
      for name, gap in GAPS.items():
        _, *ends = aggregates.probability_of_improvement(
          a + gap, b, _FEWER_RESAMPLES, study
        )
        count(f'{name}, {words}', ends, better[name])
  return {name: number / repetitions for name, number in hits.items()}
