"""The calibration of intervals and tests: what it measures, and its tables."""

import numpy as np
import pytest

from experiments import calibrate
from siamrl.report import calibration
from experiments.config import executing


def test_what_normal_runs_give():
  draw, population = calibration.standard(calibration.KINDS['normal'], 0)
  found = calibration.coverage(draw, population, 3, 1_000, 0)
  assert found['mean, t'] == pytest.approx(0.95, abs=0.02)
  # Three runs: 27 resamples, whose percentiles lie close to the extremes.
  assert found['mean, percentile'] == pytest.approx(0.75, abs=0.04)
  assert found['mean, t'] == found['IQM, t']  # of three runs they are the same


def test_intervals_of_ten_runs_cover_as_they_should():
  draw, population = calibration.standard(calibration.KINDS['normal'], 0)
  found = calibration.coverage(draw, population, 10, 1_000, 0)
  low, high = calibrate.MEANT
  for kind in ('mean, t', 'IQM, t', '26 tasks, percentile'):
    assert low <= found[kind] <= high, kind


def test_fractions_of_three_runs():
  draw, population = calibration.standard(calibration.KINDS['normal'], 0)
  found = calibration.coverage_of_fractions(draw, population, 3, 60, 0)
  # An interval of one task that holds 0.9 needs a run on each side of the
  # threshold, but for 2 of 3 above: 1 - 0.9^3 - 0.1^3 is 27 %. For 0.5 it is
  # 75 %.
  assert found['90% above, 1 task'] == pytest.approx(0.27, abs=0.17)
  assert found['50% above, 1 task'] == pytest.approx(0.75, abs=0.17)
  for kind, part in found.items():
    if '26' in kind:
      assert part > 0.8, kind
  assert list(found)[-1] == 'A better, 26 tasks'


def test_what_tests_say():
  draw, _ = calibration.standard(calibration.KINDS['normal'], 0)
  found = calibration.rejections(draw, 3, 1_000, 0)
  assert list(found) == list(calibration.TESTS)
  assert found['Welch']['equal'] == pytest.approx(0.02, abs=0.012)
  assert found['percentile']['equal'] == pytest.approx(0.11, abs=0.04)
  assert found['Welch']['better'] > 0.25
  # The least of 20 permutations is 5 %: of three runs nothing is ever shown.
  assert set(found['permutation'].values()) == {0.0}


def test_permutations_by_hand():
  random = np.random.default_rng(0)
  a, b = np.array([[5.0], [6], [7], [8]]), np.array([[1.0], [2], [3], [4]])
  for test in (
    calibration.TESTS['permutation'],
    calibration.TESTS['studentized'],
  ):
    # 1 in 70 ways is as extreme; with one pair exchanged more than 1 in 40.
    assert test(random, a, b).tolist() == [True]
    assert test(random, b, a).tolist() == [False]
    other = np.where(a == 5, 3.5, a)
    assert test(random, other, b).tolist() == [False]


def test_the_sampled_permutations_keep_the_first():
  rows = calibration._halves(np.random.default_rng(0), 10)
  assert rows.shape == (2_000, 10)
  assert rows[0].tolist() == list(range(10))
  assert all(len(set(row)) == 10 for row in rows)


@pytest.mark.parametrize('kind', calibration.KINDS)
def test_scores_are_standard(kind):
  draw, population = calibration.standard(calibration.KINDS[kind], 3)
  assert population.mean() == pytest.approx(0, abs=1e-9)
  scores = draw(np.random.default_rng(0), (100_000,))
  assert (scores.mean(), scores.std()) == pytest.approx((0, 1), abs=0.02)


def test_the_command(capsys):
  execute = lambda *arguments: executing.execute(
    calibrate.CalibrateConfig, '', calibrate.main, arguments
  )
  assert execute('--repetitions=4', '--runs=2+3') == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line[:19] for line in lines if line.startswith('Figures')] == [
    f'Figures of {runs} normal' for runs in (2, 3)
  ]
  assert sum(line.startswith('| skewed | 3 |') for line in lines) == 3
  for wrong in ('--runs=1', '--runs=3,5', '--repetitions=0', '--runs='):
    assert execute(wrong) == 2
