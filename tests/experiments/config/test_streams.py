"""Options of agents that learn from each transition once."""

import numpy as np
import pytest

from experiments import classic, minatar, offline
from experiments.config import reading
from experiments.config.declaring import UsageError
from experiments.config.meaning import check_meant, dropped
from experiments.engines import offline_runs
from experiments.families import q
from siamrl.report.metrics import by_run, read_metrics
from siamrl.report.run_folder import RunFolder
from tests.experiments.launching import sweep_here

STREAM = (
  '--agent=stream_q',
  '--optimizer=obgd',
  '--learning_rate=1',
  '--replay=none',
  '--target_update=self',
  '--num_envs=1',
  '--train_period=1',
  '--batch_size=1',
  '--min_replay=0',
)


def _check(*arguments, cls=classic.ClassicConfig):
  sweep = reading.sweep_from_arguments(cls, *arguments)
  check_meant(sweep.configs)
  for config in sweep.configs:
    q.check(config)
  return sweep.configs[0]


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--replay=uniform', '--min_replay=9'], '--replay=uniform must be none'),
    (['--target_update=hard'], '--target_update=hard must be self for --agent'),
    (['--num_envs=2', '--train_period=2'], '--num_envs=2 must be 1 for'),
    (['--train_period=2'], '--train_period=2 must be 1 for --agent=stream_q'),
    (['--train_steps=2'], '--train_steps=2 must be 1'),
    (['--batch_size=2'], '--batch_size=2 must be 1'),
    (['--optimizer=adam'], '--optimizer=adam must be obgd or sgd for --agent'),
    (['--noisy_std=0.5'], '--noisy_std=0.5 must be 0 for --agent=stream_q'),
    (['--n_step=3'], '--n_step=3 must not be given with --replay=none'),
    (['--q_lambda=0.5'], '--q_lambda=0.5 must not be given with --agent='),
    (['--max_gradient_norm=1'], 'must not be given with --optimizer=obgd'),
    (['--anneal_learning_rate'], 'must not be given with --optimizer=obgd'),
    (['--reward_scaling=max'], '--reward_scaling=max must be one of std, none'),
    (['--trace_lambda=2'], '--trace_lambda=2.0 must be in'),
    (['--agent=qrc'], '--optimizer=obgd must be sgd for --agent=qrc'),
    (['--correction_rate=1'], '--correction_rate=1.0 must go with --agent=qrc'),
    (['--agent=dqn'], '--optimizer=obgd must go with --agent=stream_q'),
  ],
)
def test_what_has_no_meaning_is_refused(arguments, message):
  with pytest.raises(UsageError) as error:
    _check(*STREAM, *arguments)
  assert message in str(error.value)
  assert '\n' not in str(error.value)


def test_other_launchers():
  arguments = (*STREAM, '--augmentation=shift')
  with pytest.raises(UsageError, match='--augmentation=shift must be none'):
    _check(*arguments, cls=minatar.MinAtarConfig)
  config = reading.from_arguments(
    offline.OfflineConfig, '--agent=stream_q', '--optimizer=sgd'
  )
  with pytest.raises(UsageError, match='not from a data set'):
    offline_runs.check(config)


def test_what_means_nothing_is_told():
  config = _check(*STREAM)
  assert {'q_lambda', 'q_trace', 'td_loss', 'optimizer_eps'} <= set(
    dropped(config)
  )
  assert 'obgd_kappa' not in dropped(config)
  assert 'obgd_kappa' in dropped(_check(*STREAM, '--optimizer=sgd'))


def _returns(folder):
  table = read_metrics(RunFolder(folder).metrics)
  return by_run(table, 'env_steps', 'train_return')[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_catches(tmp_path):
  """Two thirds of the balls, of which a random paddle catches a fifth.

  Seeds of one sweep, of which one is the same as alone.
  """
  arguments = (
    *STREAM,
    '--environment=catch',
    '--network=stream',
    '--stream_units=32',
    '--initializer=sparse',
    '--env_steps=60000',
    '--iteration_env_steps=15000',
    '--epsilon_decay=20000',
    '--epsilon_end=0.01',
  )
  sweep_here(classic, *arguments, '--seeds=3', f'--run_dir={tmp_path}/sweep')
  returns = _returns(tmp_path / 'sweep')
  assert np.all(returns[:, -1] > 2 / 3 * 2 - 1)
  sweep_here(classic, *arguments, '--seed=1', f'--run_dir={tmp_path}/alone')
  np.testing.assert_allclose(
    _returns(tmp_path / 'alone')[0, 0], returns[1, 0], atol=0.1
  )
