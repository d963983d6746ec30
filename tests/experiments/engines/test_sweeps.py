"""Sweeps of compiled runs, from the command line to the folder they leave."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import classic, minatar
from siamrl.report import sweep as sweep_figures
from experiments.config import reading
from experiments.engines import compiled as compiled_engine, devices, sweeps
from experiments.families import q
from experiments.suites import jax_native
from siamrl.envs import registry
from siamrl.report.metrics import MetricsWriter, read_metrics
from siamrl.report.progress import COMPILING, MAIN
from siamrl.report.run_folder import RunFolder
from tests.experiments.launching import (
  ROOT,
  SMALL_SWEEP,
  columns,
  config_of,
  killed,
  read_sweep,
  recorded_phases,
  start,
  sweep_here,
  sweep_state,
)

# Two programs of four runs each.
SWEEP = (
  *SMALL_SWEEP,
  '--seeds=2',
  '--target_update=hard,soft',
  '--target_period=2,6',
  '--tau=0.1,0.5',
)
_CLASSIC = 'experiments.classic'


def _devices(number: int) -> dict[str, str]:
  """Variables with which JAX makes so many devices of the CPU."""
  flags_ = f'--xla_force_host_platform_device_count={number}'
  return {'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {flags_}'.strip()}


def _same(one: pathlib.Path, other: pathlib.Path) -> None:
  """Two folders hold the same sweep, bit for bit."""
  assert _table(one) == _table(other)
  expected, found = sweep_state(classic, one), sweep_state(classic, other)
  assert expected.keys() == found.keys()
  assert not [name for name in expected if expected[name] != found[name]]


def _table(folder: pathlib.Path) -> str:
  return RunFolder(folder).metrics.read_text()


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory) -> pathlib.Path:
  """A sweep from start to end, of `SWEEP`."""
  folder = tmp_path_factory.mktemp('undisturbed') / 'run'
  with recorded_phases() as phases:
    output = sweep_here(classic, *SWEEP, f'--run_dir={folder}')
  # A quarter of the first iteration warms up.
  assert phases == [COMPILING, 'warming up', MAIN] * 2
  assert output.count('\ncompiling; the first time') == 2
  assert len(re.findall(r'\ncompiled in \d+\.\d s\n', output)) == 2
  assert f'starting program 1 of 2 in {folder}: 4 runs of 600' in output
  assert f'starting program 2 of 2 in {folder}: 4 runs of 600' in output
  assert output.endswith(f'finished: {folder}\n')
  return folder


def _stop_after(monkeypatch, rows: int) -> None:
  """Has a sweep hear SIGTERM once it has written rows so many times."""
  original, calls = MetricsWriter.write_rows, []

  def write(self, *args):
    original(self, *args)
    calls.append(args)
    if len(calls) == rows:
      signal.raise_signal(signal.SIGTERM)

  monkeypatch.setattr(MetricsWriter, 'write_rows', write)


@pytest.fixture(scope='module')
def stopped(tmp_path_factory) -> pathlib.Path:
  """`SWEEP`, stopped after its first iteration."""
  folder = tmp_path_factory.mktemp('stopped') / 'run'
  with pytest.MonkeyPatch.context() as monkeypatch:
    _stop_after(monkeypatch, 1)
    output = sweep_here(classic, *SWEEP, f'--run_dir={folder}')
  assert 'stopped after 800 env steps and saved; the same command' in output
  assert (folder / 'curve.png').exists()
  return folder


def _copy(folder: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
  subprocess.run(['cp', '-r', folder, tmp_path / 'run'], check=True)
  return tmp_path / 'run'


def test_the_table(undisturbed):
  table = columns(undisturbed)
  assert list(table)[:8] == [
    'target_update',
    'target_period',
    'tau',
    'seed',
    'iteration',
    'env_steps',
    'gradient_steps',
    'target_updates',
  ]
  assert {'train_return', 'train_episodes', 'epsilon', 'loss'} <= set(table)
  # Of each iteration a row for each run; programs one after the other.
  hard, soft = ['hard'] * 4, ['soft'] * 4
  assert table['target_update'] == hard * 3 + soft * 3
  assert table['target_period'][:12] == [2, 2, 6, 6] * 3
  assert table['tau'][12:] == [0.1, 0.1, 0.5, 0.5] * 3
  assert all(value != value for value in table['target_period'][12:])
  assert all(value != value for value in table['tau'][:12])
  assert table['seed'] == [0, 1] * 12
  each = [i for i in range(3) for _ in range(4)] * 2
  assert table['iteration'] == each
  assert table['env_steps'] == [200 * (i + 1) for i in each]
  # From env step 50 on, one in every 2.
  assert table['gradient_steps'] == [75 + 100 * i for i in each]
  sync = [1, 1, 3, 3] * 3 + [1] * 12
  assert table['target_updates'] == [
    steps // period
    for steps, period in zip(table['gradient_steps'], sync, strict=True)
  ]
  # Episodes last 9 steps: 11 of each of the 2 environments.
  assert table['train_episodes'] == [22] * 24
  assert len(set(table['loss'])) == 24
  for name in ('curve.png', 'curve-final.png', 'config.json', 'versions.json'):
    assert (undisturbed / name).stat().st_size > 0


@pytest.mark.parametrize(
  'arguments, programs',
  [
    (['--target_period=2,4', '--tau=0.1,0.5', '--target_update=hard,soft'], 2),
    (['--agent=dqn,double_dqn'], 2),
    ([f'--{name}=0.25,0.5' for name in ('discount', 'learning_rate')], 1),
    (['--epsilon_start=0.5,1', '--epsilon_decay=5,9', '--epsilon_hold=1,2'], 1),
    (['--replay=uniform,prioritized', '--priority_exponent=0.1,0.2'], 2),
    (['--hidden_sizes=8,16-16', '--batch_size=8,16'], 4),
    (['--environment=catch,chain'], 2),
  ],
)
def test_numbers_share_a_program(arguments, programs):
  sweep = read_sweep(classic, *SMALL_SWEEP, '--seeds=3', *arguments)
  tasks = {config: classic.make_task(config) for config in sweep.configs}
  groups = list(sweeps.make_groups(sweep, tasks, q.FAMILY))
  assert len(groups) == programs
  assert sum(len(group.runs) for group in groups) == 3 * len(sweep.configs)


@pytest.mark.slow
def test_a_run_alone_is_the_run_in_the_sweep(undisturbed, stopped, tmp_path):
  """And --overwrite starts afresh."""
  folder = _copy(stopped, tmp_path)
  (folder / 'notes.txt').write_text('mine')
  output = sweep_here(
    classic,
    *SMALL_SWEEP,
    '--target_period=6',
    '--seed=1',
    f'--run_dir={folder}',
    '--overwrite',
  )
  assert 'starting program 1 of 1' in output
  alone, table = columns(folder), columns(undisturbed)
  for name, values in alone.items():
    assert values == table[name][3:12:4], name
  assert (folder / 'curve.png').exists()
  assert not (folder / 'curve-final.png').exists()
  assert '--overwrite=false\n' in (folder / 'flags.txt').read_text()
  assert (folder / 'notes.txt').read_text() == 'mine'


@pytest.mark.slow
def test_sigterm_between_iterations(
  undisturbed, stopped, tmp_path, monkeypatch
):
  folder = _copy(stopped, tmp_path)
  # The flags of the folder make the same sweep.
  arguments = (f'--flagfile={undisturbed}/flags.txt', f'--run_dir={folder}')
  # Two further iterations end the first program.
  _stop_after(monkeypatch, 2)
  output = sweep_here(classic, *arguments)
  assert f'resuming program 1 of 2 in {folder}: 4 runs' in output
  assert 'at iteration 1 of 3' in output
  assert 'stopped after 2,400 env steps and saved' in output
  output = sweep_here(classic, *arguments)
  assert 'program 1' not in output
  assert 'starting program 2 of 2' in output
  _same(undisturbed, folder)


@pytest.mark.slow
def test_sigkill_and_other_devices(undisturbed, tmp_path):
  """Kills of 4 runs on 3 devices and on 1, resumed on those here."""
  folder = tmp_path / 'run'
  arguments = (*SWEEP, f'--run_dir={folder}', '--checkpoint_period_s=1e-6')
  killed(
    *arguments,
    # With the rows of the second iteration written, and no checkpoint.
    sabotage=('experiments.engines.compiled:_Runs._save', 2),
    launcher=_CLASSIC,
    environment=_devices(3),
  )
  assert len(_table(folder).splitlines()) == 1 + 8
  output = killed(
    *arguments,
    # In the second program's first checkpoint, of which a part is in place.
    sabotage=('os:rename', 21),
    launcher=_CLASSIC,
    environment=_devices(1),
  )
  assert 'on 1 cpu, at iteration 1 of 3' in output
  assert 'starting program 2 of 2' in output
  assert list(folder.glob('checkpoints/001/*tmp*'))
  output = sweep_here(classic, *arguments)
  assert 'program 2 of 2' in output
  _same(undisturbed, folder)


def test_a_finished_sweep_says_so(undisturbed):
  def files():
    return {
      path: path.read_bytes()
      for path in undisturbed.rglob('*')
      if path.is_file() and path.name != 'versions.json'  # lists every start
    }

  before = files()
  output = sweep_here(classic, *SWEEP, f'--run_dir={undisturbed}')
  assert output == f'finished already: {undisturbed}, 4,800 env steps\n'
  assert files() == before


def test_the_rows_that_there_will_be(undisturbed):
  folder = RunFolder(undisturbed)
  assert folder.rows() == len(read_metrics(folder.metrics)['seed']) == 24
  assert RunFolder(undisturbed / 'nowhere').rows() is None


def test_options_as_the_table_has_them():
  point = {'hidden_sizes': '8', 'tau': None, 'agent': 'dqn', 'batch_size': 1}
  cells = point | {'hidden_sizes': '[8]', 'layer_norm': 'true'}
  assert compiled_engine.cells(point | {'layer_norm': True}) == cells


def test_no_episode_that_has_ended(undisturbed, tmp_path):
  """There is nothing to draw."""
  table = read_metrics(RunFolder(undisturbed).metrics)
  table['train_return'] = np.full(24, np.nan)
  given = RunFolder(undisturbed).read_flags()
  sweep_figures.draw(table, given, f'{tmp_path}/curve')
  assert (tmp_path / 'curve.png').exists()


def test_parameters_that_are_not_finite(tmp_path):
  """Of a single gradient step, whose loss is that of the first parameters."""
  folder = tmp_path / 'run'
  output = sweep_here(
    classic,
    *SMALL_SWEEP,
    '--learning_rate=3e38',
    '--optimizer=rmsprop',
    '--optimizer_eps=1e-30',
    '--min_replay=198',
    '--env_steps=200',
    f'--run_dir={folder}',
    code=1,
  )
  assert output.splitlines()[-1].startswith(
    'error: the learner diverged: not all parameters are finite in iteration 0'
  )
  assert not RunFolder(folder).metrics.read_text()
  assert not RunFolder(folder).checkpoints.exists()


def test_a_learner_that_diverges(tmp_path, monkeypatch):
  """The run ends; its last good checkpoint stays."""
  folder = tmp_path / 'run'
  arguments = (*SMALL_SWEEP, f'--run_dir={folder}')
  _stop_after(monkeypatch, 1)
  sweep_here(classic, *arguments)
  before = sorted(RunFolder(folder).checkpoints.rglob('*'))
  assert before
  text = (folder / 'flags.txt').read_text()
  (folder / 'flags.txt').write_text(
    text.replace('--learning_rate=0.00025', '--learning_rate=1e+30')
  )
  output = sweep_here(classic, *arguments, '--learning_rate=1e30', code=1)
  *_, line = output.splitlines()
  assert line.startswith('error: the learner diverged: loss=')
  assert 'in iteration 1' in line
  assert sorted(RunFolder(folder).checkpoints.rglob('*')) == before
  assert columns(folder)['iteration'] == [0]


def test_one_run_of_a_sweep_diverges(tmp_path):
  folder = tmp_path / 'run'
  output = sweep_here(
    classic,
    *SMALL_SWEEP,
    '--learning_rate=0.001,1e30',
    f'--run_dir={folder}',
  )
  (line,) = (line for line in output.splitlines() if 'diverged' in line)
  assert line.startswith(
    'the run with learning_rate=1e+30, seed=0 has diverged: loss='
  )
  assert 'in iteration 0; the others go on' in line
  table = columns(folder)
  good = [loss for loss in table['loss'] if loss == loss and loss < 1e9]
  assert len(good) == 3
  assert table['iteration'] == [0, 0, 1, 1, 2, 2]


def _register(monkeypatch, name, **changes):
  """A chain whose answers are changed; returns the flag that names it."""
  environment = registry.ENVIRONMENTS['chain']()

  def step(*args):
    state, timestep = environment.step(*args)
    return state, timestep._replace(
      **{
        field: jnp.full_like(getattr(timestep, field), value)
        for field, value in changes.items()
      }
    )

  monkeypatch.setitem(
    registry.ENVIRONMENTS, name, lambda: environment._replace(step=step)
  )
  return f'--environment={name}'


def test_the_fault_of_an_environment_is_named(tmp_path, monkeypatch):
  """Of numbers by the run, of shapes before it starts."""
  arguments = (*SMALL_SWEEP, f'--run_dir={tmp_path / "run"}')
  flag = _register(monkeypatch, 'unpaid', reward=np.nan)
  output = sweep_here(classic, *arguments, flag, code=1)
  assert output.splitlines()[-1] == (
    'error: the environment failed: unpaid returned a reward that is not '
    'finite, in iteration 0; there is no checkpoint yet'
  )
  monkeypatch.setitem(
    registry.ENVIRONMENTS,
    'misshapen',
    lambda: registry.ENVIRONMENTS['chain']()._replace(obs_shape=(3,)),
  )
  line = sweep_here(classic, *arguments, '--environment=misshapen', code=1)
  assert line.startswith(
    'error: --environment=misshapen: misshapen: the observation of reset must '
    'be float32 [3], got'
  )
  assert line.count('\n') == 1


@pytest.mark.slow
def test_the_fault_of_an_environment_in_a_sweep(tmp_path, monkeypatch):
  """The other runs go on; but where successors are wrong, all end."""
  arguments = (*SMALL_SWEEP, '--seeds=2', f'--run_dir={tmp_path / "run"}')
  flag = _register(monkeypatch, 'unpaid', reward=np.nan)
  output = sweep_here(classic, *arguments, flag)
  lines = [line for line in output.splitlines() if 'failed' in line]
  assert lines == [
    f'in the run with seed={seed} the environment failed: unpaid returned a '
    'reward that is not finite, in iteration 0; the others go on'
    for seed in (0, 1)
  ]
  assert 'environment_fault' not in columns(tmp_path / 'run')
  flag = _register(monkeypatch, 'hasty', truncated=True)
  output = sweep_here(classic, *arguments, flag, '--overwrite', code=1)
  assert 'hasty declares max_episode_steps=200, but truncates' in output


# What cannot work: of two equal flags the last one counts.
_OPTIONS = [
  ('--environment=catcher', 'no environment .catcher.; the closest are: catch'),
  ('--environment=Pong', 'python -m experiments.atari --game=pong'),
  ('--environment=LunarLander-v3', 'LunarLander-v3 of Gymnasium'),
  ('--environment=', '--environment= must be text'),
  ('--tau=0.1,,0.2', 'must be a number, or several with one comma'),
  ('--tau=', 'must be a number, or several with one comma'),
  ('--target_period=2,2', 'must not hold 2 twice'),
  ('--seeds=1,2', 'must be one value and no list'),
  ('--env_steps=200,400', 'must be one value and no list'),
  ('--tau=0.1,0', r'--tau=0.0 must be in \(0, 1\]'),
  ('--tau=1.5', r'must be in \(0, 1\]'),
  ('--tau=0.5', 'must go with --target_update=soft'),
  ('--target_update=soft', r'needs tau, in \(0, 1\]'),
  (
    '--target_period=2,3',
    '--target_period=3 env_steps must be a multiple of 2',
  ),
  ('--target_period=8000000000', 'must be below 2147483648 gradient steps'),
  ('--target_period=1', 'steps; --target_period_unit=gradient_steps has it'),
  ('--min_replay=599', 'must be at most 598 for a gradient step before'),
  (
    '--train_steps=2000000000',
    'call for 600000000000 gradient steps, and 2147',
  ),
  ('--eval_episodes=9223372036854775808', 'must be at most 2147483647'),
  ('--discount=0.99999999999', '32 bits can hold: it would be 1'),
  ('--rmsprop_decay=0.5,0.9', 'must be one value: it means nothing'),
  ('--learning_rate=1e39', 'must be a number that 32 bits can hold'),
  ('--optimizer_eps=1e-60', 'must be a number that 32 bits can hold'),
  ('--batch_size=50', '--min_replay=50 must be at least 52'),
  ('--replay_capacity=4', '--replay_capacity=4 must be at least --batch_size'),
  ('--replay_capacity=201', 'must be a multiple of --num_envs=2'),
  ('--replay_capacity=10000000000', 'must be below'),
  ('--env_steps=700', 'must be a multiple of --iteration_env_steps=200'),
  ('--iteration_env_steps=201', 'must be a multiple of 2'),
  ('--num_envs=3', 'one must be a multiple of the other'),
  ('--seeds=0', 'must be positive'),
  ('--seeds=4000000000', r'fit the memory: \d'),
  ('--replay_capacity=1000000000', r'a run fits the memory: [\d,.]+ MB each'),
  ('--num_processes=2', '--coordinator must be given with --num_processes=2'),
  ('--coordinator=localhost', 'must be HOST:PORT'),
  ('--process_id=1', 'must be below --num_processes=1'),
  ('--rescale_observations', 'must go with one of cartpole'),
  ('--hidden_sizes=8-', 'must be positive numbers joined by hyphens'),
  ('--platform=tpu', '--platform=tpu is not available here'),
  ('--run_dir=x ', 'cannot stand in a flag file'),
  ('--game=breakout', '--game is no flag'),
]


@pytest.fixture
def refused(monkeypatch, tmp_path):
  """A function that runs a launcher here; it returns the line of error."""

  def train(self):
    raise AssertionError('training began')

  monkeypatch.setattr(compiled_engine._Runs, 'train', train)
  monkeypatch.chdir(tmp_path)

  def run(*arguments, code=2, launcher=classic):
    err = sweep_here(launcher, *arguments, code=code)
    assert err.startswith('error: --'), err
    assert err.count('\n') == 1, err
    return err

  return run


@pytest.mark.parametrize('argument, allowed', _OPTIONS)
def test_options(refused, argument, allowed, tmp_path):
  import re

  line = refused(*SMALL_SWEEP, argument)
  name = argument.removeprefix('--').partition('=')[0]
  assert name in line
  assert re.search(allowed, line), line
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'argument, allowed',
  [
    ('--game=brakeout', 'no MinAtar game .brakeout.; the closest are: break'),
    ('--game=pong', 'no MinAtar game .pong.; '),
    ('--protocol=ale', 'must be one of gymnax, paper'),
    ('--hidden_units=-1', 'must be 0 or more'),
    ('--environment=catch', '--environment is no flag'),
  ],
)
def test_options_of_minatar(refused, argument, allowed, tmp_path):
  line = refused('--platform=cpu', argument, launcher=minatar)
  assert line.startswith(f'error: {argument.partition("=")[0]}')
  assert allowed.replace('.', "'") in line or allowed in line, line
  assert not list(tmp_path.iterdir())


def test_a_batch_that_is_shared(refused, monkeypatch):
  batch = (*SMALL_SWEEP, '--share=batch')
  assert '--share=batch must be runs where --seeds=2' in refused(
    *batch, '--seeds=2'
  )
  assert '--share=batch must go with --num_processes=1' in refused(
    *batch, '--num_processes=2', '--coordinator=localhost:1'
  )
  monkeypatch.setattr(jax, 'local_device_count', lambda: 3)
  assert '--batch_size=8 must be a multiple of the 3 devices' in refused(*batch)


def test_too_many_runs_for_the_memory(refused, monkeypatch):
  monkeypatch.setattr(devices, 'memory_bytes', lambda: 10**7)
  line = refused(*SMALL_SWEEP, '--target_period=2,4', '--seeds=1000')
  assert line.startswith(
    'error: --seeds=1000 times 2 combinations are 2000 runs, and must be at '
    'most '
  )
  most = int(line.partition('at most ')[2].split()[0])
  assert 50 < most < 500
  with pytest.raises(AssertionError, match='training began'):
    sweep_here(classic, *SMALL_SWEEP, f'--seeds={most}', '--run_dir=run')


@pytest.mark.parametrize(
  'launcher, make, argument',
  [
    (classic, jax_native.make_task, '--environment=deep_sea'),
    (minatar, minatar._make_environment, '--game=seaquest'),
  ],
)
def test_gymnax_is_missing(refused, monkeypatch, launcher, make, argument):
  monkeypatch.setitem(sys.modules, 'gymnax', None)
  make.cache_clear()
  line = refused('--platform=cpu', argument, launcher=launcher, code=1)
  assert line.startswith(f'error: {argument}: ')
  assert 'pip install siamrl[gymnax]' in line


def test_folders(refused, stopped, tmp_path):
  folder = _copy(stopped, tmp_path)
  line = refused(*SWEEP, '--seeds=3', f'--run_dir={folder}')
  assert line == (
    f'error: --run_dir={folder}: holds a run with other flags: --seeds: 2 in '
    'the folder, 3 now. Name another folder, or --overwrite that run\n'
  )
  assert 'not empty and not a run folder' in refused(
    *SWEEP, f'--run_dir={tmp_path}'
  )
  assert '--run_dir=/proc/run: cannot be written' in refused(
    *SWEEP, '--run_dir=/proc/run', code=1
  )


def test_damaged_folders(refused, stopped, tmp_path):
  folder = _copy(stopped, tmp_path)
  run, arguments = RunFolder(folder), (*SWEEP, f'--run_dir={folder}')
  text = _table(folder)
  run.metrics.write_text(text.splitlines()[0] + '\n')
  assert 'has 0 rows, cannot keep 4' in refused(*arguments, code=1)
  run.metrics.write_text(text.replace('hard', '7', 1))
  assert 'is not a row of metrics' in refused(*arguments, code=1)
  run.metrics.unlink()
  assert 'has 0 rows, cannot keep 4' in refused(*arguments, code=1)
  run.metrics.write_text(text)
  for path in run.checkpoints.rglob('*'):
    if path.is_file():
      os.truncate(path, path.stat().st_size // 2)
  line = refused(*arguments, code=1)
  assert f'--run_dir={run.checkpoints}' in line
  assert 'not a readable checkpoint' in line
  assert _table(folder) == text  # nothing is lost


def test_a_full_disk(tmp_path, monkeypatch):
  """In the middle of a run; with some room again it goes on."""
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'none', disk],
    capture_output=True,
    check=False,
  )
  if mount.returncode:
    pytest.skip('file systems cannot be mounted here')
  arguments = (*SMALL_SWEEP, f'--run_dir={disk}/run')
  original = compiled_engine._Runs._write

  def write(self, *args):
    original(self, *args)
    (disk / 'filler').write_bytes(bytes(os.statvfs(disk).f_bavail * 4096))

  try:
    with monkeypatch.context() as patch:
      patch.setattr(compiled_engine._Runs, '_write', write)
      output = sweep_here(classic, *arguments, code=1)
    line = output.splitlines()[-1]
    assert line.startswith(f'error: --run_dir={disk}/run')
    assert 'No space left' in line
    (disk / 'filler').unlink()
    assert 'finished' in sweep_here(classic, *arguments)
    assert columns(disk / 'run')['iteration'] == [0, 1, 2]
  finally:
    subprocess.run(['umount', '-l', disk], check=True)


@pytest.mark.slow
def test_minatar_with_everything(tmp_path):
  folder = tmp_path / 'run'
  sweep_here(
    minatar,
    '--platform=cpu',
    '--game=breakout',
    '--env_steps=300',
    '--iteration_env_steps=150',
    '--min_replay=50',
    '--replay_capacity=200',
    '--train_period=10',
    '--epsilon_decay=100',
    '--replay=prioritized',
    '--n_step=3',
    '--agent=double_dqn',
    '--head=dueling',
    '--eval_episodes=2',
    '--eval_episode_env_steps=50',
    f'--run_dir={folder}',
  )
  table = columns(folder)
  assert table['env_steps'] == [150, 300]
  assert table['gradient_steps'] == [10, 25]
  assert min(table['loss']) > 0
  assert {'eval_return', 'eval_episode_env_steps', 'eval_episodes_cut'} <= set(
    table
  )
  assert max(table['eval_episode_env_steps']) <= 50
  assert (folder / 'curve.png').exists()


@pytest.mark.parametrize('launcher', [classic, minatar])
def test_help(launcher):
  begun = time.monotonic()
  result = subprocess.run(
    [sys.executable, '-m', launcher.__name__, '--helpfull'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  seconds = time.monotonic() - begun
  for name in reading.as_json(config_of(launcher)()):
    assert f'--{name}' in result.stdout or f'--[no]{name}' in result.stdout
  assert max(map(len, result.stdout.splitlines())) <= 80
  # Alone it takes 2.
  assert seconds < 10


def _port() -> int:
  with socket.socket() as server:
    server.bind(('localhost', 0))
    return server.getsockname()[1]


def _together(*arguments, sabotage=((), ())) -> list[tuple[int, str]]:
  """Two processes that share a sweep; how each ended and what it wrote."""
  processes = [
    start(
      *arguments,
      f'--coordinator=localhost:{port}',
      '--num_processes=2',
      f'--process_id={number}',
      sabotage=sabotage[number],
      launcher=_CLASSIC,
    )
    for port in [_port()]
    for number in range(2)
  ]
  ends = []
  for process in processes:
    _, err = process.communicate(timeout=280)
    ends.append((process.returncode, err))
  return ends


@pytest.mark.slow
def test_two_processes(undisturbed, tmp_path):
  folder = tmp_path / 'run'
  arguments = (*SWEEP, f'--run_dir={folder}')
  # One is stopped after its first iteration, the other goes on to its end.
  stop = ('siamrl.report.metrics:MetricsWriter.write_rows', 1, 'SIGTERM')
  ends = _together(*arguments, sabotage=((), stop))
  assert [code for code, _ in ends] == [0, 0], ends
  assert 'finished' in ends[0][1]
  assert 'stopped after 400 env steps' in ends[1][1]
  assert len(_table(folder).splitlines()) == 1 + 12 + 2
  ends = _together(*arguments)
  assert [code for code, _ in ends] == [0, 0], ends
  assert 'finished already' in ends[0][1]
  expected, found = _table(undisturbed), _table(folder)
  assert sorted(found.splitlines()) == sorted(expected.splitlines())
  assert (folder / 'curve-final.png').exists()


@pytest.mark.slow
def test_a_process_that_fails(tmp_path):
  folder = tmp_path / 'run'
  arguments = (*SMALL_SWEEP, '--seeds=2', f'--run_dir={folder}')
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'notes').write_text('mine')
  (code, err), (other_code, other) = _together(*arguments)
  assert (code, other_code) == (2, 1), (err, other)
  assert 'not empty and not a run folder' in err
  assert other == 'error: process 0 failed; it says why\n'
