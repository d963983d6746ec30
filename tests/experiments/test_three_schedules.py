"""The criteria of the study of three schedules, on tables that are made."""

import pytest

from experiments.studies import three_schedules
from siamrl.report.metrics import MetricsWriter, read_metrics


def _table(tmp_path, **shares):
  """Rows whose last return is a share of the optimum, 0.4."""
  tmp_path.mkdir(exist_ok=True)
  path = tmp_path / 'metrics.csv'
  writer = MetricsWriter(path, None, step_column='gradient_steps')
  for arm, share in shares.items():
    for seed in range(5):
      for step, part in ((1_000, 0.1), (2_000, share + 0.001 * seed)):
        row = {'arm': arm, 'seed': seed, 'gradient_steps': step}
        row |= {'grid_return': 0.4 * part, 'grid_optimum': 0.4}
        writer.write_rows([row])
  writer.close()
  return read_metrics(path)


def test_criteria_of_schedules(tmp_path):
  claims = three_schedules.judge(
    _table(tmp_path, online=0.3, dqn=0.8, fitted=0.95)
  )
  assert [claim.met for claim in claims] == [True] * 3
  assert 'online: 0.302, dqn: 0.802, fitted: 0.952' in claims[0].text
  assert claims[0].seen.startswith('0.052 more (')
  assert claims[1].seen.startswith('0.15 more (')


def test_criteria_of_schedules_that_are_missed(tmp_path):
  claims = three_schedules.judge(
    _table(tmp_path, online=0.9, dqn=0.9, fitted=0.9)
  )
  assert [claim.met for claim in claims] == [True, False, False]
  claims = three_schedules.judge(
    _table(tmp_path / 'b', online=0.9, dqn=0.9, fitted=0.89)
  )
  assert claims[0].met is False


def test_the_study_of_schedules_needs_all(tmp_path):
  with pytest.raises(ValueError, match='no run of dqn'):
    three_schedules.judge(_table(tmp_path, online=0.3, fitted=0.9))
