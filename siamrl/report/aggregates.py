"""Aggregates over tasks, profiles and comparisons, as in rliable.

They are those of Agarwal et al. (2021, arXiv:2108.13264), section 4, which
rliable implements: given the same scores and the same seed, the estimates and
the intervals are the same as those of rliable 1.2.0. Scores of several tasks
must be on one scale, such as `human_normalized` scores.

Intervals are percentile intervals of the stratified bootstrap, whose coverage
`statistics.stratified_bootstrap` states: with 3, 5 or 10 runs of each of 26
tasks, a nominal 95 % interval of a mean covers it in 88, 92 or 94 % of cases.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from siamrl.report import statistics
from siamrl.report.statistics import Axes

# (estimate, low, high); low and high are NaN where no task has two runs.
Estimate = tuple[np.ndarray, np.ndarray, np.ndarray]

_CHUNK = 2**22  # counts held in memory at once


def median(scores: Any, axis: Axes = (0, 1)) -> np.ndarray:
  """Returns the median over tasks of the means over runs.

  Args:
    scores: scores of any shape.
    axis: the axes of the runs and of the tasks, in this order.

  Returns:
    The medians, without these axes.

  Raises:
    ValueError: if `axis` is not a pair.
  """
  runs, tasks = _pair(axis)
  means = np.mean(np.asarray(scores, np.float64), axis=runs, keepdims=True)
  return np.median(means, axis=(runs, tasks))


def optimality_gap(
  scores: Any, axis: Axes = (0, 1), *, target: float = 1.0
) -> np.ndarray:
  """Returns how far scores fall short of a target on average; lower is better.

  Scores above the target count as the target (Agarwal et al. 2021, section
  4.3).

  Args:
    scores: scores of any shape.
    axis: one or several axes, whose scores are pooled.
    target: the score that counts as optimal, such as 1 for a human's.
  """
  scores = np.asarray(scores, np.float64)
  return target - np.mean(np.minimum(scores, target), axis=axis)


def aggregate(
  scores: Any,
  statistic: statistics.Statistic = statistics.iqm,
  repetitions: int = 10_000,
  seed: int = 0,
  *,
  level: float = 0.95,
) -> Estimate:
  """Returns an aggregate over runs and tasks, with an interval.

  Args:
    scores: [runs, tasks, ...]; trailing axes, such as time, are kept.
    statistic: `median`, `optimality_gap`, or one of `statistics`.
    repetitions: number of resamples.
    seed: seed of the draws.
    level: nominal coverage, in (0, 1).

  Returns:
    (estimate, low, high), [...] each. Resamples of one run do not show the
    spread: low and high are NaN then.

  Raises:
    ValueError: if there are no scores, or fewer than two axes.
  """
  scores = np.asarray(scores, np.float64)
  low, high = statistics.stratified_bootstrap(
    scores, statistic, repetitions, seed, level=level
  )
  return _known(statistic(scores, (0, 1)), low, high, [len(scores)])


def performance_profile(
  scores: Any,
  thresholds: Any,
  repetitions: int = 2_000,
  seed: int = 0,
  *,
  level: float = 0.95,
) -> Estimate:
  """Returns the fraction of runs that score above each of some thresholds.

  This is the score distribution over runs and tasks (Agarwal et al. 2021,
  section 4.2). Bands are pointwise.

  Args:
    scores: [runs, tasks].
    thresholds: [T].
    repetitions: number of resamples.
    seed: seed of the draws.
    level: nominal coverage of each point, in (0, 1).

  Returns:
    (estimate, low, high), [T] each; low and high are NaN for one run.

  Raises:
    ValueError: if scores do not have two axes, or none are given.
  """
  scores, thresholds = _table(scores), np.asarray(thresholds, np.float64)
  above = (scores[..., None] > thresholds).astype(np.float64)
  flat = above.reshape(scores.size, -1)
  found = [
    counts.reshape(len(counts), -1) @ flat / scores.size
    for (counts,) in _resampled([scores], repetitions, seed)
  ]
  low, high = _ends(np.concatenate(found), level)
  return _known(above.mean(axis=(0, 1)), low, high, [len(scores)])


def probability_of_improvement(
  scores_a: Any,
  scores_b: Any,
  repetitions: int = 2_000,
  seed: int = 0,
  *,
  level: float = 0.95,
) -> Estimate:
  """Returns how likely a run of A is to exceed a run of B on a random task.

  It is the Mann-Whitney U statistic of each task, divided by the number of
  pairs, and averaged over tasks; equal scores count half (Agarwal et al. 2021,
  section 4.3). The groups are resampled independently.

  Args:
    scores_a: [runs, tasks].
    scores_b: the same, possibly with another number of runs.
    repetitions: number of resamples.
    seed: seed of the draws.
    level: nominal coverage, in (0, 1).

  Returns:
    (estimate, low, high), [] each; low and high are NaN where a group has one
    run.

  Raises:
    ValueError: if scores do not have two axes, or the tasks differ.
  """
  a, b = _table(scores_a), _table(scores_b)
  if a.shape[1] != b.shape[1]:
    raise ValueError(f'scores {a.shape} and {b.shape} must have the same tasks')
  wins = (np.sign(a[:, None] - b[None]) + 1) / 2  # [runs, runs, tasks]
  found = [
    np.einsum('rit,ijt,rjt->r', *(of_a, wins, of_b), optimize=True) / wins.size
    for of_a, of_b in _resampled([a, b], repetitions, seed)
  ]
  low, high = _ends(np.concatenate(found), level)
  return _known(wins.mean(), low, high, [len(a), len(b)])


def at_points(x: Any, y: Any, points: Any) -> np.ndarray:
  """Returns the height of a curve at some points, by linear interpolation.

  Args:
    x: [T] ascending.
    y: [T]; NaNs are left out.
    points: [P].

  Returns:
    [P]; NaN before the first and after the last known height.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  known = np.isfinite(x) & np.isfinite(y)
  if not known.any():
    return np.full(np.shape(points), np.nan)
  return np.interp(points, x[known], y[known], left=np.nan, right=np.nan)


def common_points(clocks: Sequence[Any], most: int = 100) -> np.ndarray:
  """Returns the points at which curves of different spacing are compared.

  Args:
    clocks: [T_i] ascending, of each curve.
    most: the largest number of points.

  Returns:
    The clock itself if all have the same one of at most `most` values.
    Otherwise equally spaced points that all curves cover, as many as the
    shortest has there; none if no value is covered by all.
  """
  clocks = [np.asarray(clock, np.float64) for clock in clocks]
  first, last = max(c[0] for c in clocks), min(c[-1] for c in clocks)
  if first > last:
    return np.zeros(0)
  inside = [c[(first <= c) & (c <= last)] for c in clocks]
  if len(inside[0]) <= most and all(
    np.array_equal(inside[0], other) for other in inside
  ):
    return inside[0]
  count = min(most, max(2, min(map(len, inside))))
  return np.linspace(first, last, count if first < last else 1)


def _pair(axis: Axes) -> tuple[int, int]:
  if isinstance(axis, int) or len(axis) != 2:
    raise ValueError(f'axis {axis} must be that of the runs and of the tasks')
  return axis[0], axis[1]


def _table(scores: Any) -> np.ndarray:
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 2 or not scores.size:
    raise ValueError(f'scores {scores.shape} must be [runs, tasks]')
  return scores


def _resampled(groups: Sequence[np.ndarray], repetitions: int, seed: int):
  """Yields how often each score is drawn, [count, runs, tasks] per group."""
  random = np.random.RandomState(seed)
  chunk = max(1, _CHUNK // max(group.size for group in groups))
  for start in range(0, repetitions, chunk):
    count = min(chunk, repetitions - start)
    yield [
      _counts(rows)
      for rows in statistics.draw(random, [g.shape for g in groups], count)
    ]


def _counts(rows: np.ndarray) -> np.ndarray:
  """Returns how often each run is among those drawn, [count, runs, tasks]."""
  counts = np.zeros(rows.shape)
  repetition = np.arange(len(rows))[:, None]
  task = np.arange(rows.shape[2])
  for drawn in np.moveaxis(rows, 1, 0):
    counts[repetition, drawn, task] += 1
  return counts


def _ends(values: np.ndarray, level: float) -> statistics.Interval:
  tail = 50 * (1 - level)
  low, high = np.percentile(values, [tail, 100 - tail], axis=0)
  return low, high


def _known(estimate: Any, low: Any, high: Any, runs: Sequence[int]) -> Estimate:
  """Returns an estimate, without an interval if a group has one run."""
  if min(runs) < 2:
    low = high = np.full(np.shape(estimate), np.nan)
  return np.asarray(estimate), np.asarray(low), np.asarray(high)
