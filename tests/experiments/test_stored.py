"""Runs read back from their folders: which they are, and their networks."""

import pathlib
import re

import numpy as np
import pytest

from experiments import classic, export, launchers
from experiments.config import declaring, executing, reading
from experiments.engines import folders, sweeps
from experiments.families import q
from experiments.stored import finding, weights

SMALL = [
  *('--platform=cpu', '--environment=catch', '--env_steps=600'),
  *('--iteration_env_steps=200', '--num_envs=2', '--train_period=2'),
  *('--batch_size=8', '--min_replay=50', '--replay_capacity=300'),
  *('--hidden_sizes=16', '--epsilon_decay=600', '--seeds=2'),
  *('--target_period=70', '--target_period_unit=gradient_steps'),
  '--checkpoint_period_s=0.001',
]


def _export(*arguments):
  """The exit code of a command line."""
  return executing.execute(
    export.ExportConfig, '', export.main, arguments, listed='runs'
  )


@pytest.fixture(scope='module')
def sweep(tmp_path_factory):
  """The folder of four compiled runs: two rates, two seeds."""
  path = tmp_path_factory.mktemp('sweep') / 'run'
  arguments = [*SMALL, f'--run_dir={path}', '--learning_rate=0.01,0.001']
  assert not _train(arguments)
  return path


def _train(arguments):
  """Trains on a small environment in this process; returns the exit code."""
  return executing.execute(
    classic.ClassicConfig,
    '',
    lambda sweep: sweeps.main(sweep, classic.make_task, q.FAMILY),
    arguments,
    lists=True,
  )


def test_weights_of_one_run_are_written(sweep, tmp_path):
  numpy = pytest.importorskip('safetensors.numpy')
  output = tmp_path / 'net'
  chosen = '--run=learning_rate=0.001,seed=1'
  command = (str(sweep), chosen, '--format=safetensors', f'--output={output}')
  assert not _export(*command)
  arrays = numpy.load_file(f'{output}.safetensors')
  stored = weights.read_weights(finding.find_run(str(sweep), '3'))
  assert arrays.keys() == stored.arrays.keys()
  for name, array in arrays.items():
    assert array.dtype == stored.arrays[name].dtype
    np.testing.assert_array_equal(array, stored.arrays[name])
  other = weights.read_weights(
    finding.find_run(str(sweep), 'learning_rate=0.001,seed=0')
  )
  name = 'online_params.params.head.last.Dense_0.kernel'
  assert not np.array_equal(arrays[name], other.arrays[name])
  assert not np.array_equal(
    arrays[name], arrays[name.replace('online', 'target')]
  )
  text = pathlib.Path(f'{output}.md').read_text()
  assert '| run | learning_rate=0.001, seed=1 |' in text
  assert '`--target_update=hard --target_period=70`' in text
  assert '| env steps | 600 |' in text
  names: dict = {}
  (code,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  exec(code.replace("'net.", f"'{output}."), names)
  loaded = names['params']['params']['head']['last']['Dense_0']['kernel']
  np.testing.assert_array_equal(loaded, arrays[name])


def test_a_damaged_checkpoint_is_passed_over(sweep, tmp_path, capsys):
  """The one before it is read; nothing in the folder changes."""
  stored = finding.find_run(str(sweep), '0')
  steps = sorted(stored.checkpoints.iterdir(), key=lambda path: int(path.name))
  assert len(steps) == 2
  newest = weights.read_weights(stored)
  damaged = steps[-1] / 'extra' / 'metadata'
  content = damaged.read_bytes()
  damaged.write_bytes(content + b' ')
  try:
    before = weights.read_weights(stored)
  finally:
    damaged.write_bytes(content)
  assert before.gradient_steps < newest.gradient_steps
  assert 'the checkpoint before it is used' in capsys.readouterr().err
  assert steps == sorted(
    stored.checkpoints.iterdir(), key=lambda path: int(path.name)
  )


def test_a_run_of_a_sweep_must_be_chosen(sweep, tmp_path, capsys):
  command = [str(sweep), '--format=safetensors', f'--output={tmp_path / "a"}']
  for choice in ([], ['--run=4'], ['--run=seed=0'], ['--run=tau=1,seed=0']):
    assert _export(*command, *choice) == 2
    error = capsys.readouterr().err
    assert 'must be that of one of the 4 runs' in error
    assert (
      '0: learning_rate=0.01, seed=0; 1: learning_rate=0.01, seed=1' in error
    )


def _folder(path, config, *arguments):
  """A folder with the flags of a command line, and no run in it."""
  sweep = reading.sweep_from_arguments(config, *arguments)
  given = sweep._replace(values=sweep.values | {'run_dir': (str(path),)})
  recorded = given if len(sweep.configs) > 1 else sweep.configs[0]
  folders.open_folder(path, recorded, overwrite=False, ignore=()).close()
  return str(path)


def test_each_program_has_checkpoints_of_its_own(tmp_path):
  arguments = (*SMALL, '--agent=dqn,double_dqn', '--learning_rate=0.1,0.2')
  path = _folder(tmp_path / 'a', classic.ClassicConfig, *arguments)
  run = finding.find_run(path, 'agent=double_dqn,learning_rate=.20,seed=1')
  assert run.checkpoints == tmp_path / 'a' / 'checkpoints' / '001'
  assert run.place == 3
  assert run.config.agent == 'double_dqn'
  assert run.settings['learning_rate'] == np.float32(0.2)


def test_processes_have_shards_of_their_own(tmp_path):
  arguments = (*SMALL, '--agent=dqn,double_dqn', '--num_processes=2')
  path = _folder(tmp_path / 'a', classic.ClassicConfig, *arguments)
  run = finding.find_run(path, '3')  # the second seed of the second agent
  shard = tmp_path / 'a' / 'shards' / '001'
  assert run.checkpoints == shard / 'checkpoints' / '001'
  assert run.place == 0


@pytest.mark.parametrize('name', ['atari', 'gym', 'minatar', 'offline'])
def test_the_launcher_is_told_from_the_flags(tmp_path, name):
  path = _folder(tmp_path / name, launchers.options_of(name), '--seed=3')
  run = finding.find_run(path)
  assert run.launcher == name
  assert run.seed == 3


def test_networks_of_another_version_are_refused(sweep):
  run = finding.find_run(str(sweep), '0')
  found = weights.read_weights(run)
  learner = run.loop.make_setup(run.settings).learner
  state = weights.as_state(run, found, learner)
  assert int(state.gradient_steps) == found.gradient_steps
  kernel = 'online_params.params.head.last.Dense_0.kernel'
  bad = found.arrays | {kernel: found.arrays[kernel][1:]}
  with pytest.raises(declaring.RunError, match='another version'):
    weights.as_state(run, found._replace(arrays=bad), learner)
