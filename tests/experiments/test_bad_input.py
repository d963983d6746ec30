"""What cannot work ends before training, in one line and with an exit code."""

import json
import os
import pathlib
import re
import signal
import subprocess

import pytest

from experiments import atari
from experiments.config import declaring, reading
from experiments.engines import devices, folders, host as host_engine
from siamrl.report.run_folder import RunFolder
from tests.experiments.launching import (
  SMALL,
  columns,
  execute_sweep,
  killed,
  launch,
  start,
  sweep_here,
)

# The last of two equal flags counts.
_OPTIONS = [
  ('--game=pnog', 'no Atari game .pnog.; the closest are: pong'),
  ('--game=joust', 'for two players only'),
  ('--game=', 'must be text, or several with one comma between two'),
  ('--agent=ddpg', 'must be one of dqn, double_dqn'),
  ('--target_update=hadr', 'must be one of hard, soft, periodic_soft'),
  ('--head=big', 'must be one of linear'),
  ('--target_period_unit=steps', 'must be one of frames, env_steps'),
  ('--platform=abacus', 'must be one of cpu, gpu, tpu'),
  ('--seed=-1', 'must be from 0 to 4294967295'),
  ('--seed=4294967296', 'must be from 0 to 4294967295'),
  ('--tau=0.0', r'must be in \(0, 1\]'),
  ('--tau=1.01', r'must be in \(0, 1\]'),
  ('--tau=nan', r'must be a finite number, in \(0, 1\]'),
  (
    '--tau=0.5',
    'must go with --target_update=soft, .* projected_soft, not hard',
  ),
  ('--target_update=soft', r'needs tau, in \(0, 1\]'),
  ('--target_period=102', 'must be a multiple of 4'),
  ('--learning_rate=inf', 'must be a finite number, positive'),
  ('--reward_clip=inf', 'must be a finite number, 0 or more'),
  ('--discount=nan', r'must be a finite number, in \[0, 1\]'),
  ('--epsilon_end=-0.1', r'must be in \[0, 1\]'),
  ('--rmsprop_decay=1', r'must be in \[0, 1\)'),
  ('--batch_size=64', '--min_replay=64 must be at least 65'),
  ('--min_replay=1000', '--replay_capacity=480 must be at least 1000'),
  ('--replay_capacity=40', 'must be at least 64'),
  ('--replay_capacity=100000000000', 'must fit the memory'),
  ('--num_envs=3', 'one must be a multiple of the other'),
  ('--n_step=64', '--min_replay=64 must be at least 68'),
  ('--frames=3201', 'must be a multiple of 16'),
  ('--iteration_frames=1604', 'must be a multiple of 16'),
  ('--eval_frames=3', 'must be 0, or at least --frame_skip=4'),
  ('--video=true', 'must go with an evaluation'),
  ('--run_dir=x ', 'cannot stand in a flag file'),
]
_POSITIVE = (
  'frames',
  'iteration_frames',
  'checkpoint_period_s',
  'num_envs',
  'frame_skip',
  'frame_cap',
  'n_step',
  'target_period',
  'learning_rate',
  'optimizer_eps',
  'error_bound',
  'batch_size',
  'train_period',
  'train_steps',
  'replay_capacity',
  'epsilon_decay',
  'eval_envs',
)


@pytest.fixture
def refused(monkeypatch, capfd, tmp_path):
  """A function that runs the launcher here; it returns the line of error."""

  def fail(*arguments):
    raise AssertionError('training began')

  monkeypatch.setattr(host_engine, 'run', fail)
  monkeypatch.chdir(tmp_path)

  def launch_here(*arguments: str, code: int) -> str:
    found = execute_sweep(atari, arguments)
    out, err = capfd.readouterr()
    assert found == code, err
    assert not out
    assert err.startswith('error: ')
    assert err.count('\n') == 1, err
    return err

  return launch_here


@pytest.mark.parametrize('argument, allowed', _OPTIONS)
def test_options(refused, argument, allowed, tmp_path):
  line = refused(*SMALL, argument, code=2)
  assert argument.removeprefix('--') in line
  assert re.search(allowed, line), line
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', _POSITIVE)
@pytest.mark.parametrize('value', ['0', '-1'])
def test_what_must_be_positive(refused, name, value):
  line = refused(*SMALL, f'--{name}={value}', code=2)
  assert line.startswith(f'error: --{name}={value}')
  assert line.endswith('must be positive\n')


def test_two_kinds_of_evaluation(refused):
  line = refused(*SMALL, '--eval_frames=400', '--eval_episodes=2', code=2)
  assert line == (
    'error: --eval_episodes=2 must be 0 where --eval_frames=400 is not\n'
  )


def test_folders(refused, tmp_path):
  (tmp_path / 'file').write_text('mine')
  assert f'--run_dir={tmp_path}/file: not a directory' in refused(
    *SMALL, f'--run_dir={tmp_path}/file', code=2
  )
  assert f'--run_dir={tmp_path}: not empty and not a run folder' in refused(
    *SMALL, f'--run_dir={tmp_path}', '--overwrite', code=2
  )
  assert '--run_dir=/proc/run: cannot be written' in refused(
    *SMALL, '--run_dir=/proc/run', code=1
  )
  assert sorted(os.listdir(tmp_path)) == ['file']


@pytest.mark.skipif(os.getuid() == 0, reason='nothing is closed to root')
def test_a_folder_without_permission(refused, tmp_path):
  tmp_path.chmod(0o500)
  assert 'cannot be written: Permission denied' in refused(
    *SMALL, f'--run_dir={tmp_path}/run', code=1
  )


def test_the_folder_of_another_run(refused, tmp_path):
  arguments = (*SMALL, f'--run_dir={tmp_path / "run"}')
  config = reading.from_arguments(
    atari.AtariConfig, *arguments, '--agent=double_dqn', '--seed=3'
  )
  with folders.open_run(config, {}):
    assert 'in use by another process' in refused(
      *arguments, '--agent=double_dqn', '--seed=3', code=1
    )
  line = refused(*arguments, code=2)
  assert line == (
    f'error: --run_dir={tmp_path}/run: holds a run with other flags: '
    '--agent: double_dqn in the folder, dqn now; --seed: 3 in the folder, '
    '0 now. Name another folder, or --overwrite that run\n'
  )


def test_no_room_on_the_disk(tmp_path, monkeypatch):
  (tmp_path / 'held').write_bytes(bytes(3_000_000))
  free = os.statvfs(tmp_path)
  free_bytes = free.f_bavail * free.f_frsize
  devices.check_room(tmp_path, free_bytes - 10**9)
  with pytest.raises(declaring.RunError, match=r'GB are free on this disk'):
    devices.check_room(tmp_path, free_bytes + 10**12)
  # What a run holds already is room: its checkpoints are replaced.
  with pytest.raises(declaring.RunError, match=r'need about 0.00 GB more'):
    monkeypatch.setattr(os, 'statvfs', lambda path: _Statvfs(1_000_000))
    devices.check_room(tmp_path, 4_100_000)
  devices.check_room(tmp_path, 3_900_000)


class _Statvfs:
  def __init__(self, nbytes: int):
    self.f_bavail, self.f_frsize = nbytes, 1


def test_a_stop_request_hears_and_lets_go():
  before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  with devices.StopRequest() as stop:
    assert not stop
    signal.raise_signal(signal.SIGINT)
    assert stop
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  with devices.StopRequest() as stop:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert stop
  assert before == (
    signal.getsignal(signal.SIGTERM),
    signal.getsignal(signal.SIGINT),
  )


@pytest.fixture(scope='module')
def stopped(tmp_path_factory) -> pathlib.Path:
  """A run that was killed after its first iteration and checkpoint."""
  folder = tmp_path_factory.mktemp('stopped') / 'run'
  killed(
    *SMALL,
    f'--run_dir={folder}',
    sabotage=('experiments.engines.host_runs:plot_run', 1),
  )
  assert columns(folder)['frames'] == [1600]
  return folder


def _damage(stopped, tmp_path) -> tuple[RunFolder, list[str]]:
  """A copy of a run to spoil, and the flags that would resume it."""
  copy = tmp_path / 'run'
  subprocess.run(['cp', '-r', stopped, copy], check=True)
  return RunFolder(copy), [*SMALL, f'--run_dir={copy}']


@pytest.fixture
def resumed(capfd):
  """A function that resumes a damaged run here; the last line of error."""

  def launch_here(arguments: list[str]) -> str:
    assert execute_sweep(atari, arguments) == 1
    out, err = capfd.readouterr()
    assert not out
    # The tests before may have started JAX with more devices than a run has.
    *notes, error = err.splitlines()
    assert all('resumes under other conditions' in note for note in notes), err
    assert error.startswith('error: --run_dir='), err
    return error

  return launch_here


def test_a_checkpoint_cut_short(stopped, tmp_path, resumed):
  run, arguments = _damage(stopped, tmp_path)
  for path in run.checkpoints.rglob('*'):
    if path.is_file():
      os.truncate(path, path.stat().st_size // 2)
  line = resumed(arguments)
  assert f'{run.checkpoints}' in line
  assert 'not a readable checkpoint' in line
  assert columns(run.path)['frames'] == [1600]  # nothing is lost


def test_a_foreign_checkpoint(stopped, tmp_path, resumed):
  run, arguments = _damage(stopped, tmp_path)
  text = run.flags.read_text().replace('--head=linear', '--head=dueling')
  run.flags.write_text(text)
  line = resumed([*arguments, '--head=dueling'])
  assert 'expected' in line
  assert 'found' in line


def test_a_directory_that_holds_no_checkpoints(stopped, tmp_path, resumed):
  run, arguments = _damage(stopped, tmp_path)
  subprocess.run(['rm', '-r', run.checkpoints], check=True)
  run.checkpoints.mkdir()
  (run.checkpoints / 'notes').write_text('mine')
  assert 'not a directory of checkpoints' in resumed(arguments)


def test_a_corrupt_replay_segment(stopped, tmp_path, resumed):
  run, arguments = _damage(stopped, tmp_path)
  segment = next(run.replay.iterdir())
  content = bytearray(segment.read_bytes())
  content[len(content) // 2] ^= 1
  segment.write_bytes(content)
  line = resumed(arguments)
  assert segment.name in line
  assert 'is corrupt: its checksum differs' in line
  segment.unlink()
  assert f'segment {segment.name} is missing' in resumed(arguments)


def test_metrics_that_lost_their_rows(stopped, tmp_path, resumed):
  run, arguments = _damage(stopped, tmp_path)
  header = run.metrics.read_text().splitlines()[0]
  run.metrics.write_text(f'{header}\n')
  assert 'has 0 rows, cannot keep 1' in resumed(arguments)
  run.metrics.write_text(f'{header}\nspoilt\n')
  assert 'line 2 is not a row of metrics' in resumed(arguments)


def test_a_device_that_is_not_there(tmp_path):
  err = launch(*SMALL, '--platform=tpu', f'--run_dir={tmp_path}/run', code=2)
  assert err.startswith('error: --platform=tpu is not available here: ')
  assert err.count('\n') == 1
  assert not list(tmp_path.iterdir())


def test_usage_errors_of_a_process():
  for err in (
    launch('--no_such_flag=1', code=2),
    sweep_here(atari, 'train', code=2),
    sweep_here(atari, '--flagfile=/none', code=2),
  ):
    assert err.startswith('error: ')
    assert err.count('\n') == 1


def test_a_learner_that_diverges(stopped, tmp_path):
  """The run ends; its last good checkpoint stays."""
  run, arguments = _damage(stopped, tmp_path)
  text = run.flags.read_text()
  run.flags.write_text(
    text.replace('--learning_rate=0.00025', '--learning_rate=1e+30')
  )
  before = sorted(run.checkpoints.rglob('*'))
  err = sweep_here(atari, *arguments, '--learning_rate=1e30', code=1)
  *_, line = err.splitlines()
  assert line.startswith('error: the learner diverged: ')
  # It resumed after step 84.
  assert 'at gradient step 86' in line
  assert sorted(run.checkpoints.rglob('*')) == before
  assert columns(run.path)['frames'] == [1600]


@pytest.mark.slow
def test_a_full_disk(tmp_path):
  """In the middle of a run; with some room again it goes on."""
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=150m', 'none', disk],
    capture_output=True,
    check=False,
  )
  if mount.returncode:
    pytest.skip('file systems cannot be mounted here')
  try:
    arguments = (*SMALL, f'--run_dir={disk}/run')
    filler = disk / 'filler'
    with start(*arguments) as process:
      for line in process.stderr:
        if 'first gradient step' in line:
          # All that is left, while nothing is being written.
          process.send_signal(signal.SIGSTOP)
          _fill(filler)
          process.send_signal(signal.SIGCONT)
      assert process.wait() == 1
    assert line.startswith(f'error: --run_dir={disk}/run')
    assert 'No space left' in line
    filler.unlink()
    assert 'finished' in launch(*arguments)
  finally:
    subprocess.run(['umount', '-l', disk], check=True)


def _fill(path: pathlib.Path) -> None:
  with open(path, 'wb', buffering=0) as file:
    try:
      while True:
        file.write(bytes(65_536))
    except OSError:
      return


def test_the_record_of_a_run(stopped):
  """What config.json says of the options and of what follows from them."""
  config = json.loads(RunFolder(stopped).config.read_text())
  assert config['game'] == 'breakout'
  assert config['derived'] == {
    'schedule': {'collect': 4, 'regress': 1, 'sync': 25, 'offset': 0},
    'parameters': 103_116,
    'rows': 2,
  }
