"""Aggregates over runs and tasks, with intervals for few runs.

Intervals for one task are Student's t intervals of the mean over runs, or
Welch's for a difference of means. Percentile bootstraps, which Agarwal et al.
(2021, arXiv:2108.13264) recommend for aggregates over many tasks, are too
narrow for one: a nominal 95 % interval of 3, 5 or 10 normal runs covers the
mean in 74, 83 and 90 % of cases. `python -m experiments.calibrate` measures the
coverage of each kind; BUILD_NOTES.md has the table.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import special

Axes = int | tuple[int, ...]
# (scores, axes) -> scores without these axes.
Statistic = Callable[[np.ndarray, Axes], np.ndarray]
Interval = tuple[np.ndarray, np.ndarray]

_CHUNK = 2**22  # resampled scores held in memory at once


# Percent of nominal 95 % intervals that cover, by the number of runs, as
# `python -m experiments.calibrate --repetitions=10000` prints it: t intervals
# of skewed runs, and the stratified bootstrap over 26 tasks of normal ones.
_COVERAGE = {
  'mean': {3: 88, 5: 87, 10: 89},
  'IQM': {3: 88, 5: 92, 10: 93},
  'tasks': {3: 88, 5: 92, 10: 94},
  # Of the stratified bootstrap, too, over 26 tasks or one, of normal runs: a
  # profile where 10 or 90 % of runs lie above, whichever is covered less, and
  # the probability of improvement by one standard deviation.
  'profile': {3: 87, 5: 92, 10: 94},
  'one profile': {3: 27, 5: 38, 10: 66},
  'improvement': {3: 94, 5: 93, 10: 94},
  'one improvement': {3: 71, 5: 88, 10: 93},
}


def coverage(kind: str, runs: int) -> int | None:
  """Returns the percentage that a nominal 95 % interval covers.

  Args:
    kind: 'mean' or 'IQM' for t intervals of one task, with skewed runs; 'tasks'
      for the stratified bootstrap, with normal runs; so are 'profile' and
      'improvement', and those of a single task, 'one profile' and
      'one improvement'.
    runs: number of runs; the next lower number that was measured counts.

  Returns:
    The percentage; None where it was not measured, as for two runs.
  """
  measured = [n for n in _COVERAGE.get(kind, {}) if n <= runs]
  return _COVERAGE[kind][max(measured)] if measured else None


def mean(scores: Any, axis: Axes = -1) -> np.ndarray:
  """Returns the mean over some axes."""
  return np.mean(np.asarray(scores, np.float64), axis=axis)


def iqm(scores: Any, axis: Axes = -1) -> np.ndarray:
  """Returns the interquartile mean, of the middle half (Agarwal et al. 2021).

  The floor(n / 4) lowest and highest of n scores are left out, as by
  `scipy.stats.trim_mean(scores, 0.25)`; so it is the mean up to n = 3.

  Args:
    scores: scores of any shape.
    axis: one or several axes, whose scores are pooled.

  Returns:
    The interquartile means, without these axes; NaN where a score is NaN.

  Raises:
    ValueError: if there are no scores along the axes.
  """
  scores = np.asarray(scores, np.float64)
  axes = (axis,) if isinstance(axis, int) else axis
  pooled = np.moveaxis(scores, axes, range(-len(axes), 0))
  pooled = pooled.reshape(*pooled.shape[: pooled.ndim - len(axes)], -1)
  count = pooled.shape[-1]
  if not count:
    raise ValueError('no scores')
  cut = count // 4
  middle = np.sort(pooled, axis=-1)[..., cut : count - cut]
  # NaNs are sorted to the end, where they would be cut off.
  unknown = np.isnan(pooled).any(axis=-1)
  return np.where(unknown, np.nan, middle.mean(axis=-1))


def area_under_curve(x: Any, y: Any) -> np.ndarray:
  """Returns the mean height of curves over x, by the trapezoid rule.

  This is the area divided by the width, so it has the unit of y.

  Args:
    x: [T] ascending.
    y: [..., T]. NaNs are interpolated linearly; at the ends, they shorten the
      range.

  Returns:
    [...]; a curve with one point has its height, and one with none NaN.

  Raises:
    ValueError: if x does not ascend, or the lengths differ.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if x.ndim != 1 or y.shape[-1:] != x.shape or (np.diff(x) <= 0).any():
    raise ValueError(f'x {x.shape} must ascend and be as long as y {y.shape}')
  areas = [_mean_height(x, curve) for curve in y.reshape(-1, len(x))]
  return np.array(areas).reshape(y.shape[:-1])


def final_mean(x: Any, y: Any, part: float = 0.1) -> np.ndarray:
  """Returns the mean height at the end of curves.

  Args:
    x: [T] ascending from 0, such as env steps.
    y: [..., T]; NaNs are left out.
    part: the end begins after 1 - part of the last x.

  Returns:
    [...]; NaN for a curve without a point there.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  end = y[..., x > (1 - part) * x[-1]]
  known = np.isfinite(end)
  total, count = np.where(known, end, 0).sum(axis=-1), known.sum(axis=-1)
  return np.where(count, total / np.maximum(count, 1), np.nan)


def stratified_bootstrap(
  scores: Any,
  statistic: Statistic = iqm,
  repetitions: int = 10_000,
  seed: int = 0,
  *,
  level: float = 0.95,
) -> Interval:
  """Returns a percentile interval of a statistic over runs and many tasks.

  Runs are resampled with replacement within each task: the tasks are fixed, and
  the runs a sample (Agarwal et al. 2021, section 4.1). The draws are those of
  `rliable` after `numpy.random.seed(seed)`.

  With few runs it covers less than its level, since it underestimates the
  spread of n runs by the factor sqrt((n - 1) / n): for the mean over 26 tasks
  with 3, 5 or 10 normal runs each, the coverage of 95 % intervals is 88, 92 and
  94 %. For one task use `over_runs`.

  Args:
    scores: [runs, tasks, ...]; trailing axes, such as time, are kept, and
      resampled together.
    statistic: called with [repetitions, runs, tasks, ...] and axes (1, 2).
    repetitions: number of resamples.
    seed: seed of the draws.
    level: fraction of the resamples inside the interval.

  Returns:
    (low, high), [...] each.

  Raises:
    ValueError: if there are no scores, or fewer than two axes.
  """
  return _percentiles([scores], statistic, _first, repetitions, seed, level)


def difference(
  scores_a: Any,
  scores_b: Any,
  statistic: Statistic = iqm,
  repetitions: int = 10_000,
  seed: int = 0,
  *,
  level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Estimates how much one group of runs exceeds another, with an interval.

  "A exceeds B" is supported if the lower end is above 0. For equal groups this
  happens in at most (1 - level) / 2 of cases, or slightly more with a
  bootstrap.

  Means over any number of tasks have Welch's interval (1947): each task of each
  group has its own variance, and the Welch-Satterthwaite equation gives the
  degrees of freedom. So does the IQM of one task, in Yuen's form for trimmed
  means (1974). Other statistics, and the IQM over several tasks, have the
  percentile interval of `stratified_bootstrap`, with its coverage; the groups
  are resampled independently.

  Args:
    scores_a: [runs, tasks, ...]; trailing axes are kept.
    scores_b: the same, possibly with another number of runs.
    statistic: statistic of each group, whose difference is estimated.
    repetitions: number of resamples of a bootstrap.
    seed: seed of its draws.
    level: nominal coverage, in (0, 1).

  Returns:
    (estimate, low, high), [...] each: statistic of A minus that of B. For
    groups with one run, or with NaN scores, low and high are NaN.

  Raises:
    ValueError: if there are no scores, no two axes, or different tasks.
  """
  groups = [_checked(scores) for scores in (scores_a, scores_b)]
  tasks = groups[0].shape[1]
  if groups[1].shape[1] != tasks:
    shapes = ' and '.join(str(group.shape) for group in groups)
    raise ValueError(f'scores {shapes} must have the same tasks')
  a, b = (statistic(group[None], (1, 2))[0] for group in groups)
  if statistic is mean or (statistic is iqm and tasks == 1):
    errors = [_standard_error(group, statistic) for group in groups]
    squares = np.concatenate([square for square, _ in errors])
    freedom = np.repeat([free for _, free in errors], tasks)
    half = _half_width(squares / tasks**2, freedom, level)
    return a - b, a - b - half, a - b + half
  low, high = _percentiles(groups, statistic, _minus, repetitions, seed, level)
  return a - b, low, high


def over_runs(
  scores: Any, statistic: Statistic = mean, *, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns a statistic over the runs of one task, with pointwise t intervals.

  An interval of the mean covers it in `level` of cases if runs are normal, and
  less often if they are skewed or some fail. Intervals are pointwise, so a
  whole curve lies in its band less often. The IQM has that of Tukey &
  McLaughlin (1963) for trimmed means: it leaves out apparent outliers, and
  covers far less if runs fall into two groups.

  Args:
    scores: [runs, ...]; NaN where a run has no value. Each point uses the runs
      that have one.
    statistic: `mean` or `iqm`, over the runs of a point.
    level: nominal coverage, in (0, 1).

  Returns:
    (estimate, low, high), [...] each; NaN where no run has a value. The
    interval is NaN also where only one has, which does not show the spread.

  Raises:
    ValueError: if there are no runs, or for another statistic.
  """
  scores = np.asarray(scores, np.float64)
  if not len(scores):
    raise ValueError('no scores')
  if statistic not in (mean, iqm):
    raise ValueError('a t interval is of the mean or of the iqm')
  flat = scores.reshape(len(scores), -1)
  estimate, low, high = np.full((3, flat.shape[1]), np.nan)
  patterns, which = np.unique(np.isfinite(flat), axis=1, return_inverse=True)
  for index, present in enumerate(patterns.T):
    points = which.reshape(-1) == index
    known = flat[np.ix_(present, points)]
    if not len(known):
      continue
    estimate[points] = statistic(known, 0)
    square, freedom = _standard_error(known, statistic)
    half = _half_width(square[None], np.array([freedom]), level)
    low[points], high[points] = estimate[points] - half, estimate[points] + half
  shape = scores.shape[1:]
  return estimate.reshape(shape), low.reshape(shape), high.reshape(shape)


def _checked(scores: Any) -> np.ndarray:
  """Returns scores as float64 [runs, tasks, ...], or raises ValueError."""
  scores = np.asarray(scores, np.float64)
  if scores.ndim < 2 or not scores.size:
    raise ValueError(f'scores {scores.shape} must be [runs, tasks, ...]')
  return scores


def _standard_error(
  scores: np.ndarray, statistic: Statistic
) -> tuple[np.ndarray, int]:
  """Returns the squared standard error of the mean or the IQM over runs.

  Args:
    scores: [runs, ...].
    statistic: `mean` or `iqm`.

  Returns:
    ([...], degrees of freedom); NaN and 0 for one run.
  """
  count = len(scores)
  if count < 2:
    return np.full(scores.shape[1:], np.nan), 0
  cut = count // 4 if statistic is iqm else 0
  kept = count - 2 * cut
  ordered = np.sort(scores, axis=0)
  # Winsorized: scores that a trimmed mean drops count as the nearest kept one.
  winsorized = np.clip(ordered, ordered[cut], ordered[count - cut - 1])
  spread = np.sum(np.square(winsorized - winsorized.mean(axis=0)), axis=0)
  return spread / (kept * (kept - 1)), kept - 1


def _half_width(
  squares: np.ndarray, freedom: np.ndarray, level: float
) -> np.ndarray:
  """Returns half the width of a t interval of a sum of independent estimates.

  Args:
    squares: [K, ...] squared standard errors of the K estimates.
    freedom: [K] their degrees of freedom.
    level: nominal coverage.

  Returns:
    [...]; 0 where nothing varies.
  """
  total = squares.sum(axis=0)
  freedom = freedom.reshape(-1, *[1] * total.ndim)
  with np.errstate(divide='ignore', invalid='ignore'):
    # Welch & Satterthwaite.
    pooled = np.square(total) / np.sum(np.square(squares) / freedom, axis=0)
    half = special.stdtrit(pooled, (1 + level) / 2) * np.sqrt(total)
  return np.where(total == 0, 0.0, half)


def _mean_height(x: np.ndarray, y: np.ndarray) -> float:
  known = np.isfinite(y)
  x, y = x[known], y[known]
  if len(x) < 2:
    return float(y[0]) if len(y) else float('nan')
  heights = (y[1:] + y[:-1]) / 2
  return float(np.sum(np.diff(x) * heights) / (x[-1] - x[0]))


def _first(values: Sequence[np.ndarray]) -> np.ndarray:
  return values[0]


def _minus(values: Sequence[np.ndarray]) -> np.ndarray:
  return values[0] - values[1]


def _percentiles(
  groups: Sequence[Any],
  statistic: Statistic,
  combine: Callable[[Sequence[np.ndarray]], np.ndarray],
  repetitions: int,
  seed: int,
  level: float,
) -> Interval:
  """Returns the percentile interval of a combination of groups' statistics."""
  groups = [_checked(group) for group in groups]
  # The generator that rliable uses, for the same draws.
  random = np.random.RandomState(seed)
  chunk = max(1, _CHUNK // max(group.size for group in groups))
  results = []
  for start in range(0, repetitions, chunk):
    count = min(chunk, repetitions - start)
    indices = draw(random, [group.shape[:2] for group in groups], count)
    values = [
      statistic(group[rows, np.arange(group.shape[1])], (1, 2))
      for group, rows in zip(groups, indices, strict=True)
    ]
    results.append(combine(values))
  tail = 50 * (1 - level)
  low, high = np.percentile(np.concatenate(results), [tail, 100 - tail], axis=0)
  return low, high


def draw(
  random: np.random.RandomState, shapes: Sequence[tuple[int, ...]], count: int
) -> list[np.ndarray]:
  """Draws runs for each task, [count, runs, tasks] for each group.

  The stream goes through the groups within each repetition.
  """
  if len(set(shapes)) == 1:  # in one call
    size = (count, len(shapes), *shapes[0])
    return list(np.moveaxis(random.randint(0, shapes[0][0], size), 1, 0))
  drawn = [np.empty((count, *shape), np.int64) for shape in shapes]
  for repetition in range(count):
    for rows in drawn:
      rows[repetition] = random.randint(0, rows.shape[1], rows.shape[1:])
  return drawn
