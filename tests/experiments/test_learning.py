"""The presets learn what they are known to learn (minutes: marked slow)."""

import subprocess
import sys

import numpy as np
import pytest

from siamrl.report.metrics import by_run, read_metrics
from siamrl.report.run_folder import RunFolder
from siamrl.report.statistics import final_mean
from tests.experiments.launching import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
  'preset, threshold, untrained',
  # Published for CleanRL's dqn_jax: 498 and -89. Acting at random: 22 and -500.
  [('cleanrl_dqn_cartpole', 475, 50), ('cleanrl_dqn_acrobot', -95, -300)],
)
def test_ten_seeds_of_a_preset(preset, threshold, untrained, tmp_path):
  """Mean training return of the last tenth of 500,000 env steps."""
  subprocess.run(
    [
      sys.executable,
      '-m',
      'experiments.classic',
      f'--flagfile=experiments/flagfiles/{preset}.flags',
      '--seeds=10',
      f'--run_dir={tmp_path}/run',
    ],
    cwd=ROOT,
    check=True,
  )
  table = read_metrics(RunFolder(tmp_path / 'run').metrics)
  steps, returns = by_run(table, 'env_steps', 'train_return')
  assert returns.shape == (10, 50)
  assert np.all(returns[:, 0] < untrained)
  assert np.mean(final_mean(steps, returns)) >= threshold
