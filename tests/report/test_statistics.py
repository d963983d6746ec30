"""Aggregates and intervals: by hand, and against rliable where it is."""

import numpy as np
import pytest
from scipy import stats

from siamrl.report import statistics
from siamrl.report.statistics import (
  area_under_curve,
  difference,
  final_mean,
  iqm,
  mean,
  over_runs,
  stratified_bootstrap,
)

nan = float('nan')


@pytest.mark.parametrize(
  'scores, expected',
  [
    ([7], 7),
    ([1, 2, 9], 4),  # nothing to cut off
    ([100, 1, 3, -50], 2),
    ([9, 1, 2, 3, 4, 5, 6, 7], 4.5),  # 3, 4, 5, 6 of 8
    ([0, 1, 2, 3, 40, 50, 60, 70, 80, 90], 37.5),  # 2 at each end of 10
    ([1, 2, nan, 4], nan),
  ],
)
def test_iqm(scores, expected):
  np.testing.assert_allclose(iqm(scores), expected)


def test_iqm_pools_axes():
  scores = np.arange(24.0).reshape(2, 3, 4)[:, ::-1]
  assert iqm(scores, 0).shape == (3, 4)
  # Middle 3 of 0, 1, 2, 12, 13, 14 are cut to 1 ... 13: one at each end.
  pooled = iqm(scores, (0, 1))
  assert pooled.tolist() == [
    np.mean(np.sort(scores[:, :, i].ravel())[1:-1]) for i in range(4)
  ]
  assert iqm(scores, (0, 1, 2)) == 11.5
  assert mean(scores, (0, 1)).tolist() == [10, 11, 12, 13]
  with pytest.raises(ValueError, match='no scores'):
    iqm(np.zeros((2, 0)))


def test_area():
  assert area_under_curve([0, 1, 3], [2, 4, 0]) == pytest.approx(7 / 3)
  two = area_under_curve([0, 1, 2], [[0, nan, 2], [nan, 3, 5]])
  assert two.tolist() == [1.0, 4.0]
  assert area_under_curve([5], [3]) == 3
  assert np.isnan(area_under_curve([1, 2], [nan, nan]))
  with pytest.raises(ValueError, match='ascend'):
    area_under_curve([1, 1], [2, 2])
  with pytest.raises(ValueError, match=r'as long as y \(3,\)'):
    area_under_curve([1, 2], [2, 2, 2])


def test_final_mean():
  x = [10, 20, 80, 90, 91, 100]
  y = [[9, 9, 9, 9, 1, 4], [9, 9, 9, 2, nan, nan], [1, 2, 3, 4, nan, 7]]
  np.testing.assert_array_equal(final_mean(x, y), [2.5, nan, 7])
  assert final_mean(x, y, part=0.5).tolist() == [5.75, 5.5, 14 / 3]


def test_intervals_of_scores_that_do_not_vary():
  low, high = stratified_bootstrap(np.full((5, 2), 3.0), repetitions=50)
  assert low == high == 3.0
  # Within a task nothing varies, so the strata leave no spread.
  low, high = stratified_bootstrap([[1.0, 9.0]] * 5, mean, repetitions=50)
  assert low == high == 5.0


def test_tasks_are_resampled_apart():
  # Drawn together, the runs of two opposite tasks would always cancel out.
  scores = np.array([[1.0, -1.0], [-1.0, 1.0]])
  assert stratified_bootstrap(scores, mean) == (-1, 1)


def test_the_interval_of_a_mean_of_two_runs():
  # The mean of two draws from {0, 1} is 0, 1/2, 1 with 1/4, 1/2, 1/4.
  assert stratified_bootstrap([[0], [1]], mean, level=0.95) == (0, 1)
  assert stratified_bootstrap([[0], [1]], mean, level=0.4) == (0.5, 0.5)


def test_the_width_of_an_interval():
  """Of a mean of n it is 2 * 1.96 standard errors, the spread that of 1 / n."""
  scores = np.random.RandomState(3).normal(size=(400, 1))
  low, high = stratified_bootstrap(scores, mean, 20_000)
  error = scores.std() / 20
  np.testing.assert_allclose(high - low, 2 * 1.96 * error, rtol=0.03)
  np.testing.assert_allclose((high + low) / 2, scores.mean(), atol=error / 20)


def test_seeds_chunks_and_trailing_axes(monkeypatch):
  scores = np.random.RandomState(0).normal(size=(6, 2))
  whole = stratified_bootstrap(scores, iqm, 1001, 7)
  assert whole == stratified_bootstrap(scores, iqm, 1001, 7)
  assert whole != stratified_bootstrap(scores, iqm, 1001, 8)
  curves = np.stack([scores, 10 * scores], axis=-1)
  low, high = stratified_bootstrap(curves, iqm, 1001, 7)
  np.testing.assert_allclose(low, [whole[0], 10 * whole[0]])
  np.testing.assert_allclose(high, [whole[1], 10 * whole[1]])
  monkeypatch.setattr(statistics, '_CHUNK', 130)
  assert whole == stratified_bootstrap(scores, iqm, 1001, 7)
  other = np.random.RandomState(1).normal(size=(5, 2))
  apart = difference(scores, other, repetitions=101)
  monkeypatch.setattr(statistics, '_CHUNK', 10**9)
  assert apart == difference(scores, other, repetitions=101)


def _middle(scores, axes):
  """A statistic that only a bootstrap has an interval for."""
  return np.median(scores, axes)


def test_differences_that_are_bootstrapped():
  # Medians of two draws from {0, 1} and from {10, 11}: within 9 to 11.
  estimate, low, high = difference([[10], [11]], [[0], [1]], _middle, level=1)
  assert (estimate, low, high) == (10, 9, 11)
  for statistic in (_middle, iqm, mean):
    estimate, low, high = difference([[2.0]] * 4, [[3.0]] * 6, statistic)
    assert estimate == low == high == -1
  # One group against itself: drawn independently, or there were no spread.
  scores = np.random.RandomState(5).normal(size=(20, 1))
  estimate, low, high = difference(scores, scores, lambda *a: mean(*a), 20_000)
  assert estimate == 0
  error = scores.std() * np.sqrt(2 / 20)
  np.testing.assert_allclose(high - low, 2 * 1.96 * error, rtol=0.03)


@pytest.mark.parametrize('statistic, trim', [(mean, 0), (iqm, 0.25)])
@pytest.mark.parametrize('runs', [(3, 3), (5, 9)])
def test_differences_of_one_task_are_those_of_welch_and_yuen(
  statistic, trim, runs
):
  random = np.random.RandomState(sum(runs))
  a, b = (random.gamma(2.0, 1 + n, (n, 1, 4)) for n in runs)
  result = stats.ttest_ind(a[:, 0], b[:, 0], equal_var=False, trim=trim)
  estimate, low, high = difference(a, b, statistic, level=0.9)
  ends = result.confidence_interval(0.9)
  np.testing.assert_allclose(estimate, (ends.low + ends.high) / 2)
  np.testing.assert_allclose([low, high], [ends.low, ends.high])


def test_the_difference_over_two_tasks_by_hand():
  # Means 2 and 10 against 1 and 4. Variances 1 and 4, 0 and 9; of three runs.
  a = [[1, 8], [2, 10], [3, 12]]
  b = [[1, 1], [1, 4], [1, 7]]
  squares = np.array([1, 4, 0, 9]) / 3 / 4
  freedom = squares.sum() ** 2 / (squares**2 / 2).sum()
  half = stats.t.ppf(0.975, freedom) * np.sqrt(squares.sum())
  np.testing.assert_allclose(
    difference(a, b, mean), [3.5, 3.5 - half, 3.5 + half]
  )


def test_what_has_no_spread_or_none_that_is_known():
  assert difference([[1.0], [1.0]], [[0.0], [0.0]], mean) == (1, 1, 1)
  for group in ([[2.0]], [[2.0], [nan]]):
    for statistic in (mean, iqm):
      assert np.isnan(difference(group, [[0.0], [1.0]], statistic)[1:]).all()
  with pytest.raises(ValueError, match='must have the same tasks'):
    difference(np.zeros((3, 2)), np.zeros((3, 1)), mean)


@pytest.mark.parametrize('runs', [3, 5, 10])
def test_what_is_equal_exceeds_the_other_in_few_cases(runs):
  """In 2.5 % of normal studies; a percentile bootstrap has 6 to 11 %."""
  random = np.random.RandomState(runs)
  for spread, tasks in ((1, 1), (4, 1), (1, 2)):
    a = random.normal(size=(runs, tasks, 20_000))
    b = spread * random.normal(size=(runs, tasks, 20_000))
    met = difference(a, b, mean)[1] > 0
    assert 0.012 < met.mean() < 0.033


def test_bad_scores():
  for scores in ([1.0, 2.0], np.zeros((0, 2)), np.zeros((2, 0))):
    with pytest.raises(ValueError, match=r'must be \[runs, tasks, ...\]'):
      stratified_bootstrap(scores)
  with pytest.raises(ValueError, match='no scores'):
    over_runs(np.zeros((0, 3)))


def test_over_runs():
  scores = np.array(
    [
      [0.0, nan, 5.0, nan],
      [4.0, nan, nan, 2.0],
      [1.0, nan, nan, 4.0],
      [3.0, nan, nan, 9.0],
    ]
  )
  estimate, low, high = over_runs(scores, iqm)
  np.testing.assert_allclose(estimate, [2, nan, 5, 5])
  np.testing.assert_array_equal(np.isfinite(low), [True, False, False, True])
  # Of four runs the IQM leaves the lowest and the highest out.
  wide = stats.t.ppf(0.975, 1) * np.sqrt((3 - 1) ** 2 / 2)
  assert low[0] == pytest.approx(2 - wide)
  assert high[3] == pytest.approx(
    stats.t.interval(0.95, 2, 5, 13**0.5 / 3**0.5)[1]
  )
  assert low[0] < 2 < high[0]
  estimate, low, high = over_runs(scores[:, 0])
  assert estimate == 2
  assert low.shape == ()
  with pytest.raises(ValueError, match='of the mean or of the iqm'):
    over_runs(scores, np.median)


@pytest.mark.parametrize('runs', [2, 3, 5, 10])
@pytest.mark.parametrize('level', [0.95, 0.5])
def test_intervals_of_one_task_cover_the_mean(runs, level):
  scores = np.random.RandomState(runs).normal(size=(runs, 20_000))
  estimate, low, high = over_runs(scores, level=level)
  error = scores.std(0, ddof=1) / np.sqrt(runs)
  expected = stats.t.interval(level, runs - 1, scores.mean(0), error)
  np.testing.assert_allclose([low, high], expected)
  np.testing.assert_allclose(estimate, scores.mean(0))
  covered = np.mean((low <= 0) & (high >= 0))
  assert covered == pytest.approx(level, abs=0.01)


@pytest.fixture
def rliable():
  pytest.importorskip('rliable')
  from rliable import library, metrics

  return library, metrics


@pytest.mark.parametrize('shape', [(10, 1), (5, 26), (3, 2), (4, 3)])
def test_rliable_has_the_same_intervals(rliable, shape):
  library, metrics = rliable
  scores = np.random.RandomState(1).standard_gamma(2.0, shape)
  for ours, theirs in (
    (iqm, metrics.aggregate_iqm),
    (mean, metrics.aggregate_mean),
  ):
    np.random.seed(11)
    points, intervals = library.get_interval_estimates(
      {'x': scores}, lambda x, f=theirs: np.array([f(x)]), reps=2000
    )
    np.testing.assert_allclose(ours(scores, (0, 1)), points['x'][0], rtol=1e-12)
    np.testing.assert_allclose(
      stratified_bootstrap(scores, ours, 2000, 11),
      intervals['x'][:, 0],
      rtol=1e-12,
    )


@pytest.mark.parametrize('runs', [(6, 6), (10, 7)])
def test_rliable_has_the_same_differences(rliable, runs):
  library, metrics = rliable
  random = np.random.RandomState(2)
  a, b = (random.standard_gamma(2.0, (n, 3)) for n in runs)
  np.random.seed(11)
  points, intervals = library.get_interval_estimates(
    {'x': [a, b]},
    lambda a, b: np.array(
      [metrics.aggregate_iqm(a) - metrics.aggregate_iqm(b)]
    ),
    reps=2000,
  )
  estimate, low, high = difference(a, b, iqm, 2000, 11)
  np.testing.assert_allclose(estimate, points['x'][0], rtol=1e-12)
  np.testing.assert_allclose([low, high], intervals['x'][:, 0], rtol=1e-12)
