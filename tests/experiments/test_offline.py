"""The launcher of runs on a data set: values, resumption, data, refusals."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import offline
from experiments.config import (
  declaring,
  executing,
  fitting,
  learning as options,
  meaning,
  reading,
)
from experiments.engines import offline_runs
from experiments.families import q as family
from experiments.suites import dataset as suite, jax_native
from siamrl import learner as learners
from siamrl.agents import registry
from siamrl.envs import car_on_hill
from siamrl.networks.activations import activations
from siamrl.replay import dataset
from siamrl.report.checkpoint import Checkpoints
from siamrl.report.metrics import is_wall_clock, read_metrics
from siamrl.report.run_folder import RunFolder
from siamrl.runners import offline as runner
from siamrl.types import Schedule
from tests.experiments.launching import ROOT, start

FOLDER = pathlib.Path('experiments/flagfiles')
PRESETS = sorted(path.stem for path in (ROOT / FOLDER).glob('fqi_*.flags'))
# Six fits of 20 gradient steps.
SMALL = (
  '--platform=cpu',
  '--environment=slippery_chain',
  '--collect_env_steps=200',
  '--iterations=6',
  '--target_period=20',
  '--hidden_sizes=8',
  '--batch_size=16',
  '--eval_episodes=2',
)


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
  monkeypatch.chdir(ROOT)  # flag files are named from there


@pytest.fixture
def pictures():
  """Asked for by tests of the pictures, which take a second."""


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch):
  if 'pictures' not in request.fixturenames:
    monkeypatch.setattr(offline_runs, '_draw', lambda config, folder: None)


def run(*arguments, code=0):
  """Runs the launcher here; what it has written."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    found = executing.execute(
      offline.OfflineConfig, '', offline.main, list(map(str, arguments))
    )
  assert found == code, err.getvalue()
  assert not out.getvalue()
  return err.getvalue()


def read(*arguments):
  return reading.from_arguments(offline.OfflineConfig, *map(str, arguments))


def rows_of(folder):
  """The metrics of a run, those of the wall clock left out."""
  table = read_metrics(RunFolder(folder).metrics)
  return {
    name: column.tolist()
    for name, column in table.items()
    if not is_wall_clock(name)
  }


def state_of(folder):
  """What the newest checkpoint holds, as bytes and JSON."""
  run_ = RunFolder(folder)
  config = read(f'--flagfile={run_.flags}')
  task = jax_native.make_task(config.environment)
  learner = offline_runs.make_learner(config, family, task, None)
  template = learner.init(jax.random.key(0))
  found = Checkpoints(run_.checkpoints).restore(template)
  assert found is not None
  state, extra, step = found
  del extra['rows_sha256']  # wall-clock columns are in it
  state = state.replace(key=jax.random.key_data(state.key))
  leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
  return leaves, extra, step


def assert_same_run(one, other):
  assert repr(rows_of(one)) == repr(rows_of(other))
  assert state_of(one) == state_of(other)


def test_a_table_learns_the_exact_values(tmp_path, pictures):
  """Of a process without chance the data say all there is to know."""
  folder = tmp_path / 'run'
  output = run(
    f'--flagfile={FOLDER}/fqi_chain.flags',
    '--platform=cpu',
    f'--run_dir={folder}',
  )
  assert f'starting {folder}' in output
  assert 'learning from 1,000 transitions of chain' in output
  assert f'finished: {folder}' in output
  rows = rows_of(folder)
  assert rows['iteration'] == list(range(100))
  assert rows['gradient_steps'] == list(range(200, 20_001, 200))
  assert rows['target_updates'] == list(range(1, 101))
  assert set(rows['fit_steps']) == {200}
  assert rows['exact_error'][0] > 0.1
  assert rows['exact_error'][-1] < 1e-6
  assert abs(rows['exact_bias'][-1]) < 1e-6
  # Nine steps to the end, which pays 1.
  assert rows['eval_return'][-1] == 1
  assert rows['eval_episode_env_steps'][-1] == 9
  for name in ('curve.png', 'curve-exact.png'):
    assert (folder / name).read_bytes().startswith(b'\x89PNG')
  for name in ('flags.txt', 'versions.json', 'dataset.npz'):
    assert (folder / name).exists()
  assert any((folder / 'events').iterdir())
  derived = json.loads((folder / 'config.json').read_text())['derived']
  assert derived == {
    'schedule': {'collect': 0, 'regress': 20_000, 'sync': 200, 'offset': 0},
    'parameters': 10 * 2 + 2,
    'rows': 100,
    'transitions': 1_000,
  }


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  """A run of `SMALL` from start to end, in a process of its own."""
  folder = tmp_path_factory.mktemp('undisturbed') / 'run'
  process = start(*SMALL, f'--run_dir={folder}', launcher=offline.__name__)
  out, err = process.communicate(timeout=200)
  assert process.returncode == 0, err
  assert not out
  return folder


def _signal_at(monkeypatch, count, number):
  """Signals this process when the run takes its `count`-th iteration."""
  original, calls = runner.train, []

  def armed(*args, **kwargs):
    for progress in original(*args, **kwargs):
      calls.append(progress.iteration)
      if len(calls) == count:
        os.kill(os.getpid(), number)
      yield progress

  monkeypatch.setattr(runner, 'train', armed)


@pytest.mark.parametrize(
  'number',
  [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
)
def test_stopped_and_resumed(undisturbed, tmp_path, monkeypatch, number):
  folder = tmp_path / 'run'
  with monkeypatch.context() as patch:
    _signal_at(patch, 2, number)
    output = run(*SMALL, f'--run_dir={folder}')
  assert 'stopped after iteration 2 of 6 and saved; the same' in output
  assert rows_of(folder)['iteration'] == [0, 1]
  output = run(*SMALL, f'--run_dir={folder}')
  assert f'resuming {folder} on cpu at iteration 2 of 6' in output
  assert_same_run(undisturbed, folder)


# Kills itself in the SECOND call of a function, as no exception would.
_KILLED = """
import importlib, os, signal, sys
from experiments import offline
from experiments.config import executing
holder, _, name = sys.argv.pop(1).rpartition('.')
holder, _, inner = holder.partition(':')
holder = getattr(importlib.import_module(holder), inner)
original, calls = getattr(holder, name), []
def armed(*args, **kwargs):
  calls.append(1)
  if len(calls) == 2:
    os.kill(os.getpid(), signal.SIGKILL)
  return original(*args, **kwargs)
setattr(holder, name, armed)
executing.run(offline.OfflineConfig, '', offline.main)
"""


@pytest.mark.parametrize(
  'where, rows, begun',
  [
    # Half of a checkpoint.
    ('siamrl.report.checkpoint:Checkpoints._write', 2, 1),
    # A row, and no checkpoint that knows of it.
    ('experiments.engines.offline:_Run._save', 2, 1),
  ],
)
@pytest.mark.slow
def test_killed_and_resumed(undisturbed, tmp_path, where, rows, begun):
  folder = tmp_path / 'run'
  arguments = (*SMALL, f'--run_dir={folder}', '--checkpoint_period_s=1e-6')
  process = subprocess.run(
    [sys.executable, '-c', _KILLED, where, *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=200,
    check=False,
  )
  assert process.returncode == -signal.SIGKILL, process.stderr
  assert len(rows_of(folder)['iteration']) == rows
  output = run(*arguments)
  assert f'resuming {folder} on cpu at iteration {begun} of 6' in output
  assert_same_run(undisturbed, folder)


def test_the_same_flags_make_the_same_run(undisturbed, tmp_path):
  folder = tmp_path / 'again'
  run(f'--flagfile={undisturbed}/flags.txt', f'--run_dir={folder}')
  assert_same_run(undisturbed, folder)
  before = (folder / 'metrics.csv').read_bytes()
  output = run(*SMALL, f'--run_dir={folder}')
  assert output == f'finished already: {folder}, 6 iterations\n'
  assert (folder / 'metrics.csv').read_bytes() == before
  line = run(*SMALL, f'--run_dir={folder}', '--seed=1', code=2)
  assert 'holds a run with other flags: --seed: 0 in the folder, 1 now' in line
  run(*SMALL, f'--run_dir={folder}', '--seed=1', '--overwrite')
  assert rows_of(folder)['loss'] != rows_of(undisturbed)['loss']


def test_the_data_of_a_run_can_be_used_again(undisturbed, tmp_path):
  path = undisturbed / 'dataset.npz'
  data = dataset.load_dataset(path, num_actions=2)
  assert data.size == 200
  folder = tmp_path / 'run'
  rest = [flag for flag in SMALL if 'collect' not in flag]
  run(*rest, f'--dataset={path}', f'--run_dir={folder}')
  assert repr(rows_of(folder)) == repr(rows_of(undisturbed))
  assert not (folder / 'dataset.npz').exists()


def test_overwriting_removes_the_data_too(undisturbed, tmp_path):
  """But never those that the new run is to learn from."""
  folder = tmp_path / 'run'
  shutil.copytree(undisturbed, folder)
  collected = folder / 'dataset.npz'
  rest = [flag for flag in SMALL if 'collect' not in flag]
  arguments = (*rest, '--iterations=1', '--overwrite', f'--run_dir={folder}')
  line = run(*arguments, f'--dataset={folder}/../run/dataset.npz', code=2)
  assert line.endswith('dataset.npz must not be what --overwrite removes\n')
  assert collected.exists()
  assert_same_run(undisturbed, folder)
  run(*arguments, f'--dataset={undisturbed}/dataset.npz')
  assert rows_of(folder)['iteration'] == [0]
  assert not collected.exists()


def test_other_data_are_not_gone_on_with(undisturbed, tmp_path, monkeypatch):
  path = tmp_path / 'data.npz'
  shutil.copy(undisturbed / 'dataset.npz', path)
  rest = [flag for flag in SMALL if 'collect' not in flag]
  arguments = (*rest, f'--dataset={path}', f'--run_dir={tmp_path}/run')
  with monkeypatch.context() as patch:
    _signal_at(patch, 2, signal.SIGTERM)
    run(*arguments)
  data = dataset.load_dataset(path)
  dataset.save_dataset(
    path, data._replace(rewards=data.rewards + 1), overwrite=True
  )
  line = run(*arguments, code=1)
  assert line.startswith(f'error: --run_dir={tmp_path}/run: its data set has')
  dataset.save_dataset(path, data, overwrite=True)
  run(*arguments)
  assert repr(rows_of(tmp_path / 'run')) == repr(rows_of(undisturbed))


def test_lost_data_are_collected_again(undisturbed, tmp_path, monkeypatch):
  folder = tmp_path / 'run'
  with monkeypatch.context() as patch:
    _signal_at(patch, 1, signal.SIGTERM)
    run(*SMALL, f'--run_dir={folder}')
  (folder / 'dataset.npz').write_bytes(b'spoilt')
  line = run(*SMALL, f'--run_dir={folder}', code=1)
  assert line.startswith(
    f'error: --run_dir={folder}/dataset.npz: not a data set'
  )
  (folder / 'dataset.npz').unlink()
  run(*SMALL, f'--run_dir={folder}')
  assert_same_run(undisturbed, folder)


def test_any_schedule(tmp_path, pictures):
  """A soft twin, rows of another length, and no evaluation."""
  folder = tmp_path / 'run'
  run(
    *SMALL[:3],
    '--gradient_steps=50',
    '--iteration_gradient_steps=25',
    '--target_update=soft',
    '--tau=0.1',
    '--target_form=double',
    '--hidden_sizes=8',
    '--eval_episodes=0',
    '--discount=1',
    f'--run_dir={folder}',
  )
  rows = rows_of(folder)
  assert rows['gradient_steps'] == rows['target_updates'] == [25, 50]
  assert not [name for name in rows if name.startswith(('eval_', 'exact_'))]
  assert (folder / 'curve.png').exists()
  assert not (folder / 'curve-exact.png').exists()


@pytest.mark.slow
def test_fits_end_early_and_resume(tmp_path, monkeypatch):
  arguments = (
    *SMALL,
    '--target_period=400',
    '--tolerance=0.01',
    '--tolerance_window=20',
    '--batch_size=0',
    '--reset_optimizer',
    '--learning_rate=0.05',
  )
  whole, parted = tmp_path / 'whole', tmp_path / 'parted'
  output = run(*arguments, f'--run_dir={whole}')
  rows = rows_of(whole)
  assert min(rows['fit_steps']) < 400
  assert rows['gradient_steps'] == np.cumsum(rows['fit_steps']).tolist()
  assert rows['target_updates'] == [1, 2, 3, 4, 5, 6]
  assert 'iteration 5, ' in output
  with monkeypatch.context() as patch:
    _signal_at(patch, 3, signal.SIGTERM)
    run(*arguments, f'--run_dir={parted}')
  run(*arguments, f'--run_dir={parted}')
  assert_same_run(whole, parted)


@pytest.mark.slow
def test_the_hill_is_scored_from_the_grid(tmp_path, monkeypatch, pictures):
  asked = []

  def optimal_returns(states, *, discount, horizon):
    asked.append((len(states), discount, horizon))
    return np.array([0.25, 0.75])

  monkeypatch.setattr(car_on_hill, 'optimal_returns', optimal_returns)
  folder = tmp_path / 'run'
  output = run(
    f'--flagfile={FOLDER}/fqi_car_on_hill.flags',
    '--platform=cpu',
    '--collect_env_steps=500',
    '--iterations=2',
    '--target_period=10',
    '--batch_size=32',
    f'--run_dir={folder}',
  )
  rows = rows_of(folder)
  assert asked == [(289, 0.95, 100)]
  assert rows['grid_optimum'] == [0.5, 0.5]
  assert len(set(rows['grid_return'])) == 2
  assert all(-1 < value < 0.36 for value in rows['grid_return'])
  assert f'{rows["grid_return"][-1]:.4g} of at best 0.5' in output
  data = dataset.load_dataset(folder / 'dataset.npz')
  assert (data.terminals | data.timeouts).all()
  assert np.ptp(data.observations, 0) == pytest.approx([2, 6], rel=0.05)
  assert (folder / 'curve.png').exists()


def test_rewards_are_learned_as_the_flags_say(tmp_path):
  """Twice the rewards, cut at 1.5: exact values follow."""
  folder = tmp_path / 'run'
  run(
    f'--flagfile={FOLDER}/fqi_chain.flags',
    '--platform=cpu',
    '--iterations=60',
    '--reward_scale=2',
    '--reward_clip=1.5',
    f'--run_dir={folder}',
  )
  rows = rows_of(folder)
  assert rows['exact_error'][-1] < 1e-6
  assert rows['eval_return'][-1] == 1
  assert rows['q_tm1'][-1] > 0.9  # of values up to 1.5 * 0.9**8


def test_observations_are_rescaled_by_the_data():
  data = dataset.Dataset(
    observations=np.array([[0, 5], [4, 5], [2, 5]], np.float32),
    actions=np.zeros(3, np.int32),
    rewards=np.zeros(3, np.float32),
    next_observations=np.zeros((3, 2), np.float32),
    terminals=np.zeros(3, bool),
    timeouts=np.zeros(3, bool),
  )
  task = jax_native.make_task('car_on_hill')
  seen = {}
  for name in ('rescale_observations', 'norescale_observations'):
    config = read(f'--{name}', '--hidden_sizes=none')
    agent = offline_runs.make_learner(config, family, task, data).agent
    params = agent.init(jax.random.key(0))
    seen[name] = lambda obs, a=agent, p=params: a.values(p, np.array([obs]))
  for raw, scaled in (((0, 5), (-1, -1)), ((4, 5), (1, -1)), ((2, 5), (0, -1))):
    np.testing.assert_allclose(
      seen['rescale_observations'](np.float32(raw)),
      seen['norescale_observations'](np.float32(scaled)),
      rtol=1e-6,
    )


def test_every_flag_reaches_its_part(monkeypatch):
  calls = {}

  def record(module, name):
    original = getattr(module, name)

    def recorder(*args, **kwargs):
      calls[name] = kwargs
      return original(*args, **kwargs)

    monkeypatch.setattr(module, name, recorder)

  record(options, 'mlp_network')
  record(registry, 'make_agent')
  record(learners, 'make_optimizer')
  network = {
    'head': 'dueling',
    'initializer': 'xavier_uniform',
    'layer_norm': True,
    'noisy_std': 0.375,
  }
  agent = {
    'target_form': 'double',
    'td_loss': 'huber',
    'error_bound': 0.75,
    'batch_reduction': 'sum',
    'param_dtype': 'bfloat16',
  }
  config = read(
    *(f'--{name}={value}' for name, value in (network | agent).items()),
    '--hidden_sizes=3-5',
    '--agent=double_dqn',
    '--optimizer=rmsprop',
    '--learning_rate=0.125',
    '--optimizer_eps=0.25',
    '--rmsprop_decay=0.375',
    '--anneal_learning_rate=run',
    '--max_gradient_norm=2',
    '--gradient_steps=600',
    '--target_period=200',
    '--target_init=fresh',
    '--batch_size=7',
    '--tolerance=0.5',
    '--tolerance_window=50',
  )
  offline_runs.check(config)
  task = jax_native.make_task('chain')
  learner = offline_runs.make_learner(config, family, task, None)
  assert calls['mlp_network'] == network | {
    'sizes': (3, 5),
    'bounds': None,
    'renormalize': False,
    'torso': None,
    'outputs': 1,
  }
  assert calls['make_agent'] == {
    'shared': agent | {'target_parameters': {}},
    'given': {},
  }
  assert calls['make_optimizer'] == {
    'learning_rate': 0.125,
    'eps': 0.25,
    'decay': 0.375,
    'anneal_steps': 600,
    'max_gradient_norm': 2,
    'kappa': 2,
  }
  twin = fitting.twin_spec(config)
  assert learner.clocked[1:] == twin[2:] == (200, 0, 'after', 'fresh', False)
  assert fitting.make_config(config) == runner.OfflineConfig(
    Schedule(0, 600), 200, 7, tolerance=0.5, window=50
  )
  fit = read(
    '--anneal_learning_rate=fit', '--reset_optimizer', '--target_order=before'
  )
  clocked = offline_runs.make_learner(fit, family, task, None).clocked
  assert clocked[1:] == (1_000, 0, 'before', 'equal', True)
  assert calls['make_optimizer']['anneal_steps'] == fit.target_period == 1_000


def test_states_drawn_evenly():
  task = jax_native.make_task('grid')
  everywhere = suite.everywhere(task)
  data = dataset.collect(
    everywhere, jax.random.key(0), env_steps=2_400, num_envs=2_400
  )
  counts = data.observations.sum(0)
  assert counts[-1] == 0  # the goal
  assert counts[:-1].min() > 60


@pytest.mark.parametrize('name', PRESETS)
def test_a_preset_cites_its_source_and_can_be_run(name):
  text = (ROOT / FOLDER / f'{name}.flags').read_text()
  assert text.startswith('# ')
  lines = [line for line in text.splitlines() if line and line[0] != '#']
  assert len({line.split('=')[0] for line in lines}) == len(lines)
  config = read(f'--flagfile={FOLDER / name}.flags')
  offline_runs.check(config)
  task = jax_native.make_task(config.environment)
  assert offline_runs.make_learner(config, family, task, None)
  assert fitting.make_config(config).iterations


def test_the_published_run_climbs_the_hill():
  """What the preset has come to, which its curve shows."""
  results = ROOT / 'experiments/results'
  table = read_metrics(results / 'fqi_car_on_hill-curves.csv')
  config = read(f'--flagfile={FOLDER}/fqi_car_on_hill.flags')
  assert len(table['iteration']) == config.iterations
  assert (table['fit_steps'] == config.target_period).all()
  best = 0.35668  # what `optimal_returns` finds, in seconds
  np.testing.assert_allclose(table['grid_optimum'], best, rtol=1e-4)
  assert table['grid_return'][-10:].min() >= 0.9 * best
  assert (results / 'fqi_car_on_hill.png').exists()


@pytest.fixture
def refused(monkeypatch, tmp_path):
  """A function that runs the launcher; it returns the line of error."""

  def fail(*arguments, **options):
    raise AssertionError('learning began')

  monkeypatch.setattr(runner, 'train', fail)
  monkeypatch.setattr(dataset, 'collect', fail)
  monkeypatch.chdir(tmp_path)

  def refuse(*arguments, code=2):
    err = run(*arguments, code=code)
    assert err.startswith('error: ')
    assert err.count('\n') == 1, err
    return err

  return refuse


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--environment=pnog'], '--environment=pnog: no environment'),
    (['--environment=breakout'], 'is an Atari game, which is not JAX-native'),
    (['--target_period=0'], '--target_period=0 must be positive'),
    (['--iterations=0'], '--iterations=0 must be positive'),
    (
      ['--gradient_steps=40'],
      '--gradient_steps=40 must not be given with --iterations=6',
    ),
    (
      ['--iteration_gradient_steps=7'],
      '--iteration_gradient_steps=7 must divide the 120 gradient steps',
    ),
    (
      ['--target_period=1000000000'],
      '--target_period=1000000000 must give a run of less than 2147483648',
    ),
    (['--batch_size=-1'], '--batch_size=-1 must be 0 or more'),
    (['--hidden_sizes=8,8'], '--hidden_sizes=8,8 must be positive numbers'),
    (['--seed=-1'], '--seed=-1 must be from 0 to 4294967295'),
    (['--discount=1.5'], '--discount=1.5 must be in [0, 1]'),
    (['--learning_rate=1e39'], 'must be a number that 32 bits can hold'),
    (['--tau=0.5'], '--tau=0.5 must go with --target_update=soft'),
    (['--target_update=soft'], '--target_update=soft needs tau'),
    (
      ['--target_period_unit=frames'],
      '--target_period_unit=frames must be gradient_steps: no env steps',
    ),
    (['--count_warmup'], '--count_warmup=true must be false'),
    (
      ['--target_update=by_path', '--target_paths=torso:hard'],
      '--target_paths=torso must match every parameter',
    ),
    (['--target_form=soft'], '--target_form=soft needs soft_temperature'),
    (
      ['--anneal_learning_rate=fit'],
      '--anneal_learning_rate=fit must go with --reset_optimizer',
    ),
    (
      ['--anneal_learning_rate=run', '--reset_optimizer'],
      '--anneal_learning_rate=run must not go with --reset_optimizer',
    ),
    (['--anneal_learning_rate=yes'], 'must be one of none, run, fit'),
    (
      ['--target_update=self', '--reset_optimizer'],
      '--reset_optimizer=true must go with --target_update=hard',
    ),
    (['--tolerance=-1'], '--tolerance=-1.0 must be 0 or more'),
    (['--tolerance=nan'], '--tolerance=nan must be a finite number'),
    (
      ['--tolerance=0.1', '--target_update=soft', '--tau=0.1'],
      '--tolerance=0.1 must go with --target_update=hard, ',
    ),
    (
      ['--tolerance=0.1', '--target_update=frozen'],
      'functional or proximal, not frozen',
    ),
    (
      ['--tolerance=0.1'],
      '--target_period=20 must be two or more whole windows',
    ),
    (
      ['--tolerance=0.1', '--tolerance_window=3'],
      'of --tolerance_window=3',
    ),
    (
      ['--tolerance=0.1', '--tolerance_window=5', '--target_order=before'],
      '--target_order=before must be after',
    ),
    (
      [
        '--tolerance=0.1',
        '--tolerance_window=5',
        '--iteration_gradient_steps=40',
      ],
      '--iteration_gradient_steps=40 must be --target_period=20',
    ),
    (['--collect=all'], '--collect=all must be one of episodes, uniform'),
    (
      ['--environment=cartpole', '--collect=uniform'],
      '--collect=uniform must go with one of car_on_hill, chain, ',
    ),
    (
      ['--collect_env_steps=25'],
      '--collect_env_steps=25 must be a multiple of --num_envs=10',
    ),
    (
      ['--collect_env_steps=100000000000'],
      '--collect_env_steps=100000000000 must fit the memory',
    ),
    (['--batch_size=9000000000'], '--batch_size=9000000000 must fit the mem'),
    (
      ['--dataset=data.npz'],
      '--collect_env_steps=200 must not be given with --dataset',
    ),
    (['--run_dir=x '], 'cannot stand in a flag file'),
    (['--no_such_flag=1'], '--no_such_flag is no flag'),
  ],
)
def test_bad_input(refused, tmp_path, arguments, words):
  assert words in refused(*SMALL, *arguments)
  assert not list(tmp_path.iterdir())


def test_what_means_nothing():
  """Periods are the length of an iteration whatever the rule."""
  config = reading.from_arguments(
    offline.OfflineConfig,
    '--target_update=soft',
    '--tau=0.1',
    '--optimizer=sgd',
  )
  dropped = meaning.dropped(config)
  assert {'optimizer_eps', 'tolerance_window', 'target_count'} <= set(dropped)
  assert not {'target_period', 'tau', 'num_envs'} & set(dropped)


def test_a_length_that_is_no_whole_fits(refused):
  line = refused('--gradient_steps=1500')
  assert '--gradient_steps=1500 must be a multiple of --target_period=1000' in (
    line
  )


def _fits(**changes):
  """Arrays of a data set that fits `car_on_hill`."""
  arrays = {
    'observations': np.zeros((6, 2), np.float32),
    'actions': np.array([0, 1, 0, 1, 0, 1]),
    'rewards': np.zeros(6),
    'next_observations': np.zeros((6, 2), np.float32),
    'terminals': np.zeros(6, bool),
  }
  return arrays | changes


@pytest.mark.parametrize(
  'changes, words',
  [
    (
      {
        'observations': np.zeros((6, 3), np.float32),
        'next_observations': np.zeros((6, 3), np.float32),
      },
      'observations: must be [N, 2] for --environment=car_on_hill, got [6, 3]',
    ),
    (
      {'actions': np.array([0, 1, 0, 1, 2, 1])},
      'actions: must lie in [0, 1] for --environment=car_on_hill, got 2 at 4',
    ),
    (
      {'next_observations': np.zeros((5, 2), np.float32)},
      'next_observations: must be float32 (6, 2) as observations',
    ),
    ({'rewards': np.full(6, np.nan)}, 'rewards: must be finite, got nan'),
    ({'actions': np.zeros(0, int)}, 'actions: must be [N] with N >= 1'),
  ],
)
def test_data_that_do_not_fit(refused, tmp_path, changes, words):
  path = tmp_path / 'data.npz'
  np.savez(path, **_fits(**changes))
  line = refused(f'--dataset={path}')
  assert line == f'error: --dataset={path}: {words}\n' or words in line
  assert line.count(str(path)) == 1
  assert list(tmp_path.iterdir()) == [path]


def test_types_that_do_not_fit(refused, tmp_path):
  path = tmp_path / 'data.npz'
  boards = np.full((6, 10, 10, 4), 2, np.uint8)
  np.savez(path, **_fits(observations=boards, next_observations=boards))
  line = refused(f'--dataset={path}', '--environment=minatar_breakout')
  assert 'observations: must fit into bool for --environment=minatar_' in line


def test_data_that_cannot_be_read(refused, tmp_path):
  path = tmp_path / 'data.npz'
  line = refused(f'--dataset={path}')
  assert line == (
    f'error: --dataset={path} cannot be read: No such file or directory\n'
  )
  line = refused(f'--dataset={tmp_path}')
  assert line == f'error: --dataset={tmp_path} cannot be read: Is a directory\n'
  path.write_bytes(b'no archive')
  line = refused(f'--dataset={path}')
  assert line.startswith(f'error: --dataset={path}: not a data set of arrays: ')
  np.savez(path, observations=np.zeros(3))
  assert ': actions: is missing' in refused(f'--dataset={path}')
  line = refused(f'--dataset={tmp_path}/./data.npz')
  assert (
    line == f'error: --dataset={tmp_path}/./data.npz: actions: is missing\n'
  )


def test_pipes_are_not_waited_for(refused, tmp_path):
  path = tmp_path / 'data.npz'
  os.mkfifo(path)
  line = refused(f'--dataset={path}')
  assert line.endswith(
    'data.npz: not a data set of arrays: it is not a regular file\n'
  )


def test_minari_that_can_be_fetched(refused, monkeypatch, tmp_path):
  pytest.importorskip('minari')
  monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path / 'minari'))
  line = refused('--dataset=minari:atari/breakout/expert-v0')
  assert line.startswith(
    'error: --dataset=minari:atari/breakout/expert-v0 cannot be read: no data '
    'set of that name is stored; minari download atari/breakout/expert-v0 '
  )


def test_minari_that_is_not_there(refused, monkeypatch):
  monkeypatch.setitem(sys.modules, 'minari', None)
  line = refused('--dataset=minari:cartpole/random-v0', code=1)
  assert line.startswith('error: --dataset=minari:cartpole/random-v0: ')
  assert 'pip install siamrl[minari]' in line


def test_minari_by_name(monkeypatch, tmp_path):
  """The name is handed on without its prefix."""
  names = []
  data = dataset.Dataset(**_fits(timeouts=np.zeros(6, bool)))

  def from_minari(source):
    names.append(source)
    if source == 'none':
      raise FileNotFoundError('Dataset none not found locally')
    return data._replace(actions=data.actions.astype(np.int32))

  monkeypatch.setattr(dataset, 'from_minari', from_minari)
  config = read('--dataset=minari:a/b-v0')
  task = jax_native.make_task(config.environment)
  assert suite.load(config, task.environment).size == 6
  with pytest.raises(
    declaring.UsageError, match='cannot be read: Dataset none'
  ):
    suite.load(read('--dataset=minari:none'), task.environment)
  assert names == ['a/b-v0', 'none']


def test_a_learner_that_diverges(undisturbed, tmp_path):
  line = run(
    *SMALL,
    '--learning_rate=1e30',
    '--optimizer=sgd',
    f'--run_dir={tmp_path}/run',
    code=1,
  ).splitlines()[-1]
  assert line.startswith('error: the learner diverged: a loss or a parameter')


def test_bad_input_of_a_process():
  process = start('--environment=pnog', launcher=offline.__name__)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 2
  assert not out
  assert err.startswith('error: --environment=pnog: no environment')
  assert err.count('\n') == 1


def test_features_are_measured_on_the_data():
  config = read(
    *SMALL,
    *('--eval_episodes=0', '--panel_period=2', '--probe_size=50'),
    '--discount=1',  # whose values are not solved exactly
  )
  task = jax_native.make_task(config.environment)
  data = _random_walk(200)
  learner = offline_runs.make_learner(config, family, task, data)
  measure = suite.make_measure(config, task, learner, data)
  params = jax.jit(learner.init)(jax.random.key(0)).online_params
  before = measure(params, jax.random.key(1), 1)
  row = measure(params, jax.random.key(1), 2)
  # All rows have the same columns.
  assert before.keys() == row.keys() and np.isnan([*before.values()]).all()
  network = suite.make_network(config, task, data)
  answer = jax.jit(lambda params, obs: activations(network, params, obs))(
    params,
    data.observations[::4],  # 50 of 200
  )
  spectrum = np.linalg.svd(answer.features, compute_uv=False)
  ranks = 1 + np.sum(np.cumsum(spectrum) < 0.99 * spectrum.sum())
  assert row['panel/srank'] == ranks and 1 < ranks <= 8
  (layer,) = answer.layers.values()
  sizes = np.mean(layer, 0)
  assert row['panel/dormant_0.1'] == np.mean(sizes <= 0.1 * sizes.mean())


def _random_walk(size):
  """A data set of a process of ten states."""
  rng = np.random.default_rng(0)
  states = np.eye(10, dtype=np.float32)[rng.integers(10, size=size + 1)]
  ends = rng.random(size) < 0.2
  return dataset.Dataset(
    states[:-1],
    rng.integers(2, size=size, dtype=np.int32),
    rng.random(size, np.float32),
    states[1:],
    ends,
    ~ends & (rng.random(size) < 0.1),
  )


def test_sums_of_rewards_are_learned(monkeypatch):
  config = read(*SMALL, '--n_step=3', '--discount=0.5', '--reward_scale=2')
  monkeypatch.setattr(runner, 'make_iterate', lambda learner, config: None)
  monkeypatch.setattr(suite, 'make_measure', lambda *_: None)
  monkeypatch.setattr(
    runner, 'train', lambda iterate, state, batch, *_, **__: batch
  )
  made = SimpleNamespace(init=lambda key: None)
  stub = SimpleNamespace(make_offline_learner=lambda *_: made)
  task, data = jax_native.make_task(config.environment), _random_walk(200)
  parts = offline_runs.make_run(config, stub, task, None).make_parts(data)
  np.testing.assert_allclose(
    parts.train(None, 0).r_t, 2 * data.multi_step(3, 0.5).r_t, rtol=1e-6
  )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (
      ('--panel_period=1', '--probe_size=201'),
      '--probe_size=201 must be at most 200, the transitions of the data set',
    ),
    (
      ('--n_step=2', '--collect=uniform'),
      '--n_step=2',
    ),
  ],
)
def test_features_and_sums_that_are_refused(tmp_path, arguments, message):
  said = run(*SMALL, *arguments, f'--run_dir={tmp_path}/a', code=2)
  assert message in said
  assert not (tmp_path / 'a').exists()
