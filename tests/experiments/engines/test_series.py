"""Runs of the host loop one after the other, each in a folder of its own."""

import shutil

import pytest

from experiments import atari, control
from experiments.config.declaring import UsageError
from experiments.engines import host as host_engine, series
from siamrl.report.run_folder import (
  RunFolder,
  folder_name,
  open_run_folder,
)
from tests.experiments.launching import (
  SMALL,
  columns,
  killed,
  launch,
  read_sweep,
  sweep_here,
)

# Two iterations of 200 env steps.
HOST = (
  '--platform=cpu',
  '--environment=gymnasium:Pendulum-v1',
  '--agent=td3',
  '--env_steps=400',
  '--iteration_env_steps=200',
  '--min_replay=64',
  '--random_env_steps=64',
  '--replay_capacity=300',
  '--batch_size=8',
  '--actor_sizes=8',
  '--critic_sizes=8',
  '--eval_episodes=0',
)
RATES = (*HOST, '--tau=0.1,0.5')
NAMES = ('tau=0.1,seed=0', 'tau=0.5,seed=0')


def split(launcher, *arguments):
  sweep = read_sweep(launcher, *arguments)
  runs = series.split(sweep, ['pong'])
  return [(run.config.run_dir, run.config.seed) for run in runs]


def test_a_run_alone_has_the_folder_itself(tmp_path):
  assert split(atari) == [('runs/pong-dqn-0', 0)]
  assert split(atari, '--seed=3') == [('runs/pong-dqn-3', 3)]
  assert split(atari, f'--run_dir={tmp_path}') == [(str(tmp_path), 0)]


def test_several_runs_have_folders_inside():
  assert split(atari, '--seeds=2', '--seed=4') == [
    ('runs/pong-dqn-4-seeds/seed=4', 4),
    ('runs/pong-dqn-4-seeds/seed=5', 5),
  ]
  found = split(
    atari,
    '--target_update=soft',
    '--tau=0.1,0.5',
    '--also=--target_update=hard --target_period=40000',
  )
  folder = 'runs/pong-dqn-target_update-target_period-tau-0'
  assert [path for path, _ in found] == [
    f'{folder}/target_update=soft,tau=0.1,seed=0',
    f'{folder}/target_update=soft,tau=0.5,seed=0',
    f'{folder}/target_update=hard,target_period=40000,seed=0',
  ]


def test_names_that_file_systems_take():
  odd = ('a/../b', 'a b', 'ü', 'x' * 300, '..', 'a\\b', '\n', 'CON:')
  names = [folder_name({'path': text, 'seed': '0'}) for text in odd]
  assert len(set(names)) == len(odd)
  for name in names:
    assert name.startswith('path=') and len(name.encode()) < 255
    assert not set('/\\: \n') & set(name) and name.isascii()
  long = [folder_name({'path': 'x' * n}) for n in (300, 301)]
  assert long[0] != long[1]


def test_the_folder_of_a_run_holds_no_others(tmp_path):
  with open_run_folder(tmp_path, {}, {})[0]:
    pass
  with pytest.raises(UsageError, match='holds a run, and cannot hold'):
    split(atari, f'--run_dir={tmp_path}', '--seeds=2')


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """Each of the runs of `RATES`, as a run alone."""
  folder = tmp_path_factory.mktemp('alone')
  for rate, name in zip((0.1, 0.5), NAMES, strict=True):
    sweep_here(control, *HOST, f'--tau={rate}', f'--run_dir={folder / name}')
  return folder


def assert_same(alone, folder):
  for name in NAMES:
    assert repr(columns(alone / name)) == repr(columns(folder / name))
    known, found = (RunFolder(f / name).read_flags() for f in (alone, folder))
    assert known.keys() == found.keys()
    different = {key for key in known if known[key] != found[key]}
    assert different <= {'run_dir'}


@pytest.mark.slow
def test_killed_in_the_second_run_a_sweep_goes_on_there(alone, tmp_path):
  folder = tmp_path / 'sweep'
  output = killed(
    *RATES,
    f'--run_dir={folder}',
    # Of the second run, before its last checkpoint.
    sabotage=('experiments.engines.host:_Run._save', 4),
    launcher='experiments.control',
  )
  assert f'run 1 of 2: {NAMES[0]}' in output
  assert f'finished: {folder / NAMES[0]}' in output
  assert f'run 2 of 2: {NAMES[1]}' in output
  assert len(columns(folder / NAMES[1])['env_steps']) == 2
  before = (folder / NAMES[0] / 'metrics.csv').read_bytes()
  output = sweep_here(control, *RATES, f'--run_dir={folder}')
  assert f'finished already: {folder / NAMES[0]}, 400 env steps' in output
  assert f'resuming {folder / NAMES[1]} on cpu at env step 200' in output
  assert f'2 of 2 runs are finished in {folder}' in output
  assert (folder / NAMES[0] / 'metrics.csv').read_bytes() == before
  assert_same(alone, folder)


@pytest.mark.slow
def test_asked_to_stop_a_sweep_begins_no_other_run(alone, tmp_path):
  folder = tmp_path / 'sweep'
  output = launch(
    *RATES,
    f'--run_dir={folder}',
    sabotage=('experiments.engines.host:_Run._save', 1, 'SIGINT'),
    launcher='experiments.control',
  )
  assert 'stopped at env step' in output
  assert output.endswith(
    f'0 of 2 runs are finished in {folder}; the same command, without '
    '--overwrite, goes on\n'
  )
  assert not (folder / NAMES[1]).exists()
  # Interrupted in a run alone, as in the sweep.
  shutil.copytree(alone / NAMES[1], folder / NAMES[1])
  sweep_here(control, *RATES, f'--run_dir={folder}')
  assert_same(alone, folder)


@pytest.mark.slow
def test_after_a_run_that_diverges_the_next_begins(tmp_path):
  rates = '--critic_learning_rate=1e30,1e-3'
  output = sweep_here(control, *HOST, rates, f'--run_dir={tmp_path}/a', code=1)
  bad, good = (
    'critic_learning_rate=1e+30,seed=0',
    ('critic_learning_rate=0.001,seed=0'),
  )
  lines = output.splitlines()
  said = [line for line in lines if line.startswith('error: ')]
  assert 'the learner diverged' in said[0]
  assert lines.index(said[0]) < lines.index(f'run 2 of 2: {good}')
  assert f'finished: {tmp_path}/a/{good}' in output
  assert lines[-2:] == [
    f'1 of 2 runs are finished in {tmp_path}/a',
    f'error: 1 run failed: {bad}',
  ]


def test_what_is_refused_is_refused_before_the_first_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(host_engine, 'run', None)
  line = sweep_here(
    control,
    *HOST,
    '--target_update=soft,by_path',
    '--target_paths=critic:soft',
    code=2,
  )
  assert 'must match every parameter' in line
  line = sweep_here(atari, *SMALL, '--batch_size=4,100', code=2)
  assert '--min_replay=64 must be at least 101: --batch_size=100' in line
  line = sweep_here(atari, *SMALL, '--eval_epsilon=0.1,0.2', code=2)
  assert '--eval_epsilon=0.1,0.2 must be one value: it means' in line
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_of_a_sweep_is_a_run_like_any_other(tmp_path):
  arguments = (*SMALL, '--frames=800', '--iteration_frames=800')
  folder = tmp_path / 'sweep'
  output = sweep_here(atari, *arguments, '--seeds=2', f'--run_dir={folder}')
  assert f'2 of 2 runs are finished in {folder}' in output
  alone = tmp_path / 'alone'
  sweep_here(atari, *arguments, '--seed=1', f'--run_dir={alone}')
  assert repr(columns(alone)) == repr(columns(folder / 'seed=1'))
  assert RunFolder(alone).read_flags().keys() == (
    RunFolder(folder / 'seed=1').read_flags().keys()
  )
  # One that a run alone has left is part of the sweep, and the other way round.
  flag_file = folder / 'seed=1' / 'flags.txt'
  assert '--seeds' not in flag_file.read_text()
  again = sweep_here(atari, f'--flagfile={flag_file}')
  assert again == f'finished already: {folder}/seed=1, 800 frames\n'
  shutil.rmtree(folder / 'seed=1')
  alone.rename(folder / 'seed=1')
  output = sweep_here(
    atari, *arguments, '--seeds=2', f'--run_dir={folder}'
  ).splitlines()
  assert [line for line in output if 'finished already' in line] == [
    f'finished already: {folder}/seed={seed}, 800 frames' for seed in (0, 1)
  ]
