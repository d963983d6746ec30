"""Aggregates and comparisons: by hand, and as rliable 1.2.0 has them."""

import numpy as np
import pytest
from scipy import stats

from siamrl.report import aggregates, consistency
from siamrl.report.aggregates import (
  aggregate,
  at_points,
  common_points,
  median,
  optimality_gap,
  performance_profile,
  probability_of_improvement,
)
from siamrl.report.statistics import iqm, mean

nan = float('nan')


def test_median_and_gap():
  scores = [[1.0, 2, 9], [3, 4, 0.5]]  # means 2, 3 and 4.75
  assert median(scores) == 3
  assert median(np.transpose(scores), (1, 0)) == 3
  # 0.5 is 0.5 short of 1, and nothing else is; of 2, six scores are short.
  assert optimality_gap(scores, (0, 1)) == pytest.approx(0.5 / 6)
  gap = optimality_gap(scores, (0, 1), target=3)
  assert gap == pytest.approx((2 + 1 + 2.5) / 6)
  with pytest.raises(ValueError, match='of the runs and of the tasks'):
    median(scores, 0)


def test_profiles_by_hand():
  scores = [[1.0, 2], [3, 4]]
  estimate, low, high = performance_profile(scores, [0, 1, 2.5, 4])
  assert estimate.tolist() == [1, 0.75, 0.5, 0]
  # Between 1 and 2 the second task is above in any case, and of the first one
  # half of the draws.
  assert low.tolist() == [1, 0.5, 0, 0]
  assert high.tolist() == [1, 1, 1, 0]
  estimate, low, _ = performance_profile(scores[:1], [1.5])
  assert estimate == 0.5 and np.isnan(low)
  with pytest.raises(ValueError, match=r'\(2,\) must be \[runs, tasks\]'):
    performance_profile([1.0, 2], [1])


def test_improvement_by_hand():
  a, b = [[1.0, 1], [3, 1]], [[2.0, 1], [2, 1], [0, 1]]
  # First task: 1 of 3 and 3 of 3 pairs; second: all are equal.
  estimate, low, high = probability_of_improvement(a, b)
  assert estimate == pytest.approx((4 / 6 + 1 / 2) / 2)
  assert low <= estimate <= high
  other, *_ = probability_of_improvement(b, a)
  assert other == pytest.approx(1 - estimate)
  random = np.random.RandomState(0)
  a, b = random.normal(size=(7, 1)), random.normal(size=(5, 1))
  u = stats.mannwhitneyu(a[:, 0], b[:, 0], alternative='greater').statistic
  assert probability_of_improvement(a, b)[0] == pytest.approx(u / 35)
  assert probability_of_improvement([[5.0]], b)[0] == 1
  assert np.isnan(probability_of_improvement([[5.0]], b)[1])
  with pytest.raises(ValueError, match='must have the same tasks'):
    probability_of_improvement(a, [[1.0, 2]])


def test_chunks_do_not_change_what_is_drawn(monkeypatch):
  scores = np.random.RandomState(0).normal(size=(4, 3))
  others = np.random.RandomState(1).normal(size=(5, 3))
  ask = lambda: (
    performance_profile(scores, [0, 1], 101, 3),
    probability_of_improvement(scores, others, 101, 3),
  )
  whole = ask()
  monkeypatch.setattr(aggregates, '_CHUNK', 100)
  for one, other in zip(whole, ask(), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_heights_at_points():
  heights = at_points([1, 2, 4, 5], [0, nan, 6, 8], [0, 1, 2, 4.5, 6])
  np.testing.assert_array_equal(heights, [nan, 0, 2, 7, nan])
  assert np.isnan(at_points([1, 2], [nan, nan], [1])).all()


def test_common_points():
  assert common_points([[1, 2, 3], [1, 2, 3, 4]]).tolist() == [1, 2, 3]
  # Of 2 and 4 the first has two values from 1 to 5.
  assert common_points([[0, 2, 4, 6], [1, 3, 5]]).tolist() == [1, 5]
  assert (
    common_points([range(1000)], 11).tolist()
    == np.linspace(0, 999, 11).tolist()
  )
  assert not len(common_points([[1, 2], [3, 4]]))


def test_ranks_of_intervals():
  # The best is alone; the next two overlap; the last reaches the third only.
  low, high = [9, 5, 4.5, 3], [10, 7, 6, 4.7]
  assert consistency.ranks(low, high).tolist() == [1, 2.5, 3, 3.5]
  order = [2, 0, 3, 1]
  mixed = consistency.ranks(np.take(low, order), np.take(high, order))
  assert mixed.tolist() == [3, 1, 3.5, 2.5]
  assert consistency.ranks([0, 0], [1, 1]).tolist() == [1.5, 1.5]
  # No number is too low to be ranked.
  assert consistency.ranks([-500, -400], [-490, -390]).tolist() == [2, 1]


def test_thc_by_hand():
  # Two runs at +-1 around the means: intervals of half width 1.
  means = np.array([[0.0, 10, 20], [20, 10, 0], [5, 30, 40]])
  scores = np.stack([means - 1, means + 1], axis=1)
  # Ranks by task: 3, 2.5, 2 | 1, 2.5, 3 | 2, 1, 1.
  np.testing.assert_allclose(consistency.rank_spreads(scores), [0.5, 1, 0.5])
  assert consistency.thc(scores) == pytest.approx(2 / 3)
  assert consistency.thc(scores[:2] * 0) == 0
  with pytest.raises(ValueError, match='at least two settings'):
    consistency.thc(scores[:1])


def test_rank_spreads_of_a_sweep():
  means = {'a': [0.0, 10, 20], 'b': [20, 10, 0], 'c': [5, 30, 40]}
  scores = {
    (name, task): [mean - 1, mean + 1]
    for name, each in means.items()
    for task, mean in enumerate(each)
  }
  # As above; of unequal numbers of runs the first count, if they are finite.
  more = scores | {
    ('a', 0): [np.nan, -1, 1, 999],
    ('late', 0): [7.0, 8.0],
    ('failed', 1): [np.nan],
  }
  for each in (scores, more):
    found = consistency.spreads_of(each)
    assert found == {'a': 0.5, 'b': 1.0, 'c': 0.5}
  one_task = {key: runs for key, runs in scores.items() if not key[1]}
  assert consistency.spreads_of(one_task) == {}
  assert consistency.spreads_of(scores | {('a', 0): [1.0]}) == {}
  assert consistency.spreads_of({('a', 0): [1, 2], ('a', 1): [1, 2]}) == {}


# The estimate and the ends of the interval, each a row.
RLIABLE = {
  'median': [[2.1209827663142695], [1.503894633578601], [2.676659468125613]],
  'iqm': [[1.9444118409007345], [1.3042592556135242], [2.5520098315972266]],
  'mean': [[2.0830749586899335], [1.5221246415344702], [2.6118063347237137]],
  'optimality_gap': [
    [0.09453458310419194],
    [0.02273458367565051],
    [0.20283657211683803],
  ],
  'point_0': [[1.489834458810607], [1.0402615361343683], [2.046528578675435]],
  'point_1': [[1.7475537672936183], [1.3508182394639945], [2.280507428696043]],
  'point_2': [[1.8342056603633594], [1.2870033404715624], [2.507148490388648]],
  'unequal': [[0.48750000000000004], [0.3], [0.7]],
  'equal': [[0.46875], [0.265625], [0.65625]],
  'profile': [
    [0.9, 0.8, 0.45, 0.1],
    [0.75, 0.6, 0.25, 0.0],
    [1.0, 0.95, 0.65, 0.2],
  ],
}


def _scores():
  random = np.random.RandomState(7)
  a, b = random.standard_gamma(2, (5, 4)), random.standard_gamma(3, (4, 4))
  return a, b, random.standard_gamma(2, (5, 4, 3))


def _ours(name, repetitions=500, seed=11):
  a, b, curves = _scores()
  if name == 'profile':
    return performance_profile(a, [0.5, 1, 2, 4], repetitions, seed)
  if name in ('unequal', 'equal'):
    a = a[: 4 if name == 'equal' else 5]
    return probability_of_improvement(a, b, repetitions, seed)
  if name.startswith('point'):
    ends = aggregate(curves, iqm, repetitions, seed)
    return [end[int(name[-1])] for end in ends]
  statistic = {
    'median': median,
    'iqm': iqm,
    'mean': mean,
    'optimality_gap': optimality_gap,
  }[name]
  return aggregate(a, statistic, repetitions, seed)


@pytest.mark.parametrize('name', RLIABLE)
def test_the_numbers_of_rliable(name):
  """They are those of rliable 1.2.0, which this prints.

  Of a curve rliable draws runs anew at each point, so that its points are asked
  for one by one: the pointwise intervals have the same distribution.

    import numpy as np
    from rliable import library, metrics

    random = np.random.RandomState(7)
    a, b = random.standard_gamma(2, (5, 4)), random.standard_gamma(3, (4, 4))
    curves = random.standard_gamma(2, (5, 4, 3))

    def ask(name, scores, f):
      np.random.seed(11)
      points, ends = library.get_interval_estimates({'x': scores}, f, reps=500)
      print(repr(name), np.array([points['x'], *ends['x']]).tolist(), sep=': ')

    for name in ('median', 'iqm', 'mean', 'optimality_gap'):
      aggregate = getattr(metrics, f'aggregate_{name}')
      ask(name, a, lambda x: np.array([aggregate(x)]))
    for i in range(3):
      ask(f'point_{i}', curves[..., i], lambda x: np.array(
        [metrics.aggregate_iqm(x)]))
    for name, pair in (('unequal', [a, b]), ('equal', [a[:4], b])):
      ask(name, pair, lambda x, y: np.array(
        [metrics.probability_of_improvement(x, y)]))
    np.random.seed(11)
    points, ends = library.create_performance_profile(
      {'x': a}, np.array([0.5, 1, 2, 4]), reps=500)
    print("'profile'", np.array([points['x'], *ends['x']]).tolist(), sep=': ')
  """
  expected = np.array(RLIABLE[name])
  ours = np.array(_ours(name)).reshape(expected.shape)
  np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize('name', RLIABLE)
@pytest.mark.parametrize('seed', [0, 1])
def test_rliable_itself_has_the_same_numbers(name, seed):
  pytest.importorskip('rliable')
  from rliable import library, metrics

  a, b, curves = _scores()
  if name == 'profile':
    np.random.seed(seed)
    points, ends = library.create_performance_profile(
      {'x': a}, np.array([0.5, 1, 2, 4]), reps=2000
    )
  else:
    if name in ('unequal', 'equal'):
      scores = [a[: 4 if name == 'equal' else 5], b]
      ask = metrics.probability_of_improvement
    elif name.startswith('point'):
      scores, ask = curves[..., int(name[-1])], metrics.aggregate_iqm
    else:
      scores, ask = a, getattr(metrics, f'aggregate_{name}')
    np.random.seed(seed)
    points, ends = library.get_interval_estimates(
      {'x': scores}, lambda *x: np.atleast_1d(ask(*x)), reps=2000
    )
  expected = np.array([points['x'], *ends['x']])
  ours = np.array(_ours(name, 2000, seed)).reshape(expected.shape)
  np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)
