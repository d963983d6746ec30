"""The launcher of DQN on Gymnasium's environments of discrete actions."""

import functools
import json
import signal
import sys

import gymnasium
import numpy as np
import pytest

from experiments import gym
from experiments.config import reading
from experiments.engines import host as host_engine, host_runs
from experiments.families import q
from experiments.suites.gym import Suite
from siamrl import twins
from siamrl.agents.registry import AGENTS
from siamrl.losses import td
from siamrl.replay.host import HostReplay
from siamrl.report.run_folder import RunFolder
from siamrl.runners import host
from tests.experiments.launching import (
  OF_FORMS,
  OF_RULES,
  columns,
  host_state,
  sweep_here,
)

# Three iterations of 100 env steps.
SMALL = (
  '--platform=cpu',
  '--env_steps=300',
  '--iteration_env_steps=100',
  '--min_replay=50',
  '--replay_capacity=200',
  '--batch_size=8',
  '--train_period=1',
  '--target_period=20',
  '--hidden_sizes=8',
  '--eval_episodes=0',
)
WATCHED = (
  *SMALL,
  '--eval_episodes=2',
  '--panel_period=1',
  '--probe_size=8',
  '--shadows=self',
)
# Rounds of 20 env steps, each learned from in 4 epochs of 2 batches.
WITHOUT_REPLAY = (
  *SMALL,
  '--replay=none',
  '--num_envs=4',
  '--train_period=20',
  '--train_steps=8',
  '--batch_size=10',
  '--min_replay=0',
  '--target_update=self',
)
GIVEN = OF_RULES | OF_FORMS


launch = functools.partial(sweep_here, gym)
# A gradient step for each env step, in order.
STREAM = (
  '--optimizer=sgd',
  '--replay=none',
  '--target_update=self',
  '--num_envs=1',
  '--train_period=1',
  '--batch_size=1',
)


def state_of(folder):
  """All that the newest checkpoint of a run holds."""
  run = RunFolder(folder)
  config = reading.from_arguments(gym.GymConfig, f'--flagfile={run.flags}')
  parts, _ = host_runs.build(config, q, Suite(config), run)
  return host_state(parts, run)


@pytest.fixture(scope='module', autouse=True)
def _short_chunks():
  """Few env steps between two moments when a run may stop."""
  config = functools.partial(host.LoopConfig, chunk_env_steps=32)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(host, 'LoopConfig', config)
    yield


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  """A run of CartPole from start to end, its twin watched."""
  folder = tmp_path_factory.mktemp('undisturbed') / 'run'
  output = launch(*WATCHED, f'--run_dir={folder}')
  assert f'starting {folder}' in output
  assert output.endswith(f'finished: {folder}\n')
  return folder


def test_the_table(undisturbed):
  rows = columns(undisturbed)
  assert rows['env_steps'] == rows['frames'] == [100, 200, 300]
  assert rows['gradient_steps'] == [50, 150, 250]
  assert rows['target_updates'] == [2, 7, 12]
  assert rows['eval_episodes'] == [2, 2, 2]
  # Every step of it pays 1.
  assert rows['eval_return'] == rows['eval_episode_env_steps']
  assert {
    'train_return',
    'epsilon',
    'loss',
    'panel/twin_age/torso/Dense_0',
    'panel/twin_distance',
    'panel/overestimation',
    'panel/cosine/self',
    'panel/srank',
  } < set(rows)
  config = json.loads((undisturbed / 'config.json').read_text())
  assert config['environment'] == 'CartPole-v1'
  assert config['derived']['schedule']['sync'] == 20
  assert (undisturbed / 'curve.png').exists()
  assert (undisturbed / 'curve-panel.png').exists()


@pytest.mark.slow
def test_a_twin_that_acts_is_evaluated_too(tmp_path):
  # What a frozen twin does does not depend on what is learned.
  given = ('--target_update=frozen', '--epsilon_start=0', '--epsilon_end=0')
  rows = {}
  for who in ('online', 'target'):
    for rate in (1e-6, 1.0):
      folder = tmp_path / f'{who}-{rate}'
      launch(
        *(*SMALL, '--eval_episodes=2', *given, f'--run_dir={folder}'),
        *(f'--act_with={who}', f'--learning_rate={rate}'),
      )
      rows[who, rate] = columns(folder)
  for name in ('train_return', 'eval_return'):
    values = {run: row[name] for run, row in rows.items()}
    assert values['target', 1e-6] == values['target', 1.0]
    assert values['online', 1e-6] != values['online', 1.0]
  assert rows['target', 1e-6]['loss'] != rows['target', 1.0]['loss']


@pytest.mark.slow
def test_stopped_inside_an_iteration_it_goes_on(
  undisturbed, tmp_path, monkeypatch
):
  folder = tmp_path / 'run'
  original, added = HostReplay.add, []

  def add(self, **arrays):
    added.extend(arrays['action'])
    if len(added) == 130:
      signal.raise_signal(signal.SIGTERM)
    return original(self, **arrays)

  with monkeypatch.context() as patch:
    patch.setattr(HostReplay, 'add', add)
    output = launch(*WATCHED, f'--run_dir={folder}')
  assert 'stopping: writing a checkpoint' in output
  assert columns(folder)['env_steps'] == [100]
  assert 'again to get there' in launch(*WATCHED, f'--run_dir={folder}')
  assert repr(columns(folder)) == repr(columns(undisturbed))
  expected, found = state_of(undisturbed), state_of(folder)
  assert expected.keys() == found.keys()
  assert not [x for x in expected if repr(expected[x]) != repr(found[x])]


def test_priorities_go_on_where_a_run_was_stopped(tmp_path, monkeypatch):
  given = (*SMALL, '--replay=prioritized', '--replay_capacity=100')
  whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
  launch(*given, f'--run_dir={whole}')
  original, added = HostReplay.add, []

  def add(self, **arrays):
    added.extend(arrays['action'])
    if len(added) == 230:  # the replay is full
      signal.raise_signal(signal.SIGTERM)
    return original(self, **arrays)

  with monkeypatch.context() as patch:
    patch.setattr(HostReplay, 'add', add)
    launch(*given, f'--run_dir={stopped}')
  assert 'again to get there' in launch(*given, f'--run_dir={stopped}')
  assert repr(columns(stopped)) == repr(columns(whole))
  expected, found = state_of(whole), state_of(stopped)
  assert not [x for x in expected if repr(expected[x]) != repr(found[x])]
  assert len(set(np.frombuffer(found['priorities']).tolist())) > 50


def test_priorities_that_mean_nothing_are_mentioned(tmp_path):
  output = launch(
    *SMALL, '--priority_exponent=0.5', f'--run_dir={tmp_path / "run"}'
  )
  assert 'note: --priority_exponent=0.5 changes nothing here' in output


@pytest.mark.parametrize('rule', ['self', 'projected_soft', 'by_path'])
def test_rules_learn_where_states_are_numbers(rule, tmp_path):
  """FrozenLake has 16 states and 4 actions."""
  folder = tmp_path / 'run'
  launch(
    *SMALL,
    '--environment=frozen_lake',
    *_rule(rule),
    '--env_steps=100',
    f'--run_dir={folder}',
  )
  assert columns(folder)['gradient_steps'] == [50]
  config = json.loads((folder / 'config.json').read_text())
  assert config['environment'] == 'FrozenLake-v1'
  # Two layers, each with a bias.
  assert config['derived']['parameters'] == 16 * 8 + 8 + 8 * 4 + 4


_OWN = """
import gymnasium
import numpy as np

class Corridor(gymnasium.Env):
  observation_space = gymnasium.spaces.Tuple(
    (gymnasium.spaces.Discrete(3), gymnasium.spaces.Box(0, 1, (2, 2)))
  )
  action_space = gymnasium.spaces.Discrete(2)

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self.at = 0
    return self.look(), {}

  def step(self, action):
    self.at = int(np.clip(self.at + 2 * action - 1, 0, 2))
    return self.look(), float(self.at == 2), self.at == 2, False, {}

  def look(self):
    return self.at, self.np_random.random((2, 2), np.float32)

gymnasium.register('Corridor-v0', Corridor, max_episode_steps=20)
"""


def test_an_environment_of_ones_own(tmp_path, monkeypatch):
  (tmp_path / 'corridors.py').write_text(_OWN)
  monkeypatch.syspath_prepend(tmp_path)
  folder = tmp_path / 'run'
  arguments = (*SMALL, '--environment=corridors:Corridor-v0')
  try:
    launch(*arguments, '--eval_episodes=3', f'--run_dir={folder}')
  finally:
    gymnasium.registry.pop('Corridor-v0', None)
    sys.modules.pop('corridors', None)
  rows = columns(folder)
  assert rows['env_steps'] == [100, 200, 300]
  assert all(0 <= value <= 1 for value in rows['eval_return'])
  config = json.loads((folder / 'config.json').read_text())
  # Where it is, and what it sees.
  assert config['derived']['parameters'] == (3 + 4) * 8 + 8 + 8 * 2 + 2


# Command lines.


@pytest.fixture
def accepted(monkeypatch, tmp_path):
  """A function that does all but train; it returns the parts of the run."""

  def run(*arguments):
    ran = []
    monkeypatch.setattr(host_engine, 'run', lambda *args: ran.append(args[1]))
    launch(*SMALL, *arguments, f'--run_dir={tmp_path / "run"}', '--overwrite')
    (parts,) = ran
    return parts

  return run


def _given(names):
  return [f'--{name}={GIVEN[name]}' for name in names if name in GIVEN]


def _rule(name):
  takes = twins.takes(name, GIVEN['target_paths'])
  return f'--target_update={name}', *_given(takes)


@pytest.mark.parametrize('name', twins.RULES)
def test_every_rule_is_accepted(name, accepted):
  assert accepted(*_rule(name)).state.gradient_steps == 0


@pytest.mark.parametrize('name', td.TARGETS)
def test_every_form_of_target_is_accepted(name, accepted):
  accepted(f'--target_form={name}', *_given(td.TARGETS[name].takes))


@pytest.mark.parametrize('name', AGENTS)
def test_every_agent_is_accepted(name, accepted):
  in_order = STREAM if AGENTS[name].streams else ()
  parts = accepted(
    f'--agent={name}', '--layer_norm', '--head=dueling', *in_order
  )
  assert parts.replay.sequence_steps == 0


def test_features_may_be_predicted(accepted):
  parts = accepted('--spr_steps=2', '--spr_projections=8')
  assert parts.replay.sequence_steps == 2


@pytest.fixture
def refused(monkeypatch, tmp_path):
  """A function that runs the launcher here; it returns the line of error."""

  def train(*args):
    raise AssertionError('training began')

  monkeypatch.setattr(host_engine, 'run', train)
  monkeypatch.chdir(tmp_path)

  def run(*arguments, code=2):
    err = launch(*arguments, code=code)
    assert err.startswith('error: '), err
    assert err.count('\n') == 1, err
    assert not list(tmp_path.iterdir())
    return err

  return run


@pytest.mark.parametrize(
  'argument, message',
  [
    ('--environment=Pendulum-v1', 'are for python -m experiments.control'),
    ('--environment=cartpoll', 'the closest are: CartPole'),
    ('--environment=CartPole-v9', 'the newest is CartPole-v1'),
    ('--replay_capacity=40', '--replay_capacity=40 must be at least 50'),
    ('--replay_capacity=16', '--replay_capacity=16 must be at least'),
    ('--batch_size=50', '--min_replay=50 must be at least 51'),
    ('--batch_size=120', '--min_replay=50 must be at least 121'),
    ('--env_steps=350', 'must be a multiple of --iteration_env_steps=100'),
    ('--eval_episode_env_steps=9', 'cuts its episodes itself, after 500 env'),
    ('--hidden_sizes=8-', '--hidden_sizes=8- must be positive numbers joined'),
    ('--target_update=soft', 'tau'),
    ('--replay=priority', '--replay=priority must be one of uniform'),
    ('--priority=loss', 'must go with --replay=prioritized, not uniform'),
    ('--priority_exponent=2', '--priority_exponent=2.0 must be in [0, 1]'),
    ('--q_lambda=0.5', '--q_lambda=0.5 must go with --replay=none'),
    # Of compiled runs:
    ('--vectorized', '--vectorized is no flag'),
    ('--share=batch', '--share is no flag'),
    ('--coordinator=localhost:1234', '--coordinator is no flag'),
    ('--rescale_observations', '--rescale_observations is no flag'),
  ],
)
def test_options(refused, argument, message):
  assert message in refused(*SMALL, argument)


@pytest.mark.parametrize(
  'argument, message',
  [
    ('--batch_size=12', '--batch_size=12 must make whole epochs of the 20 env'),
    ('--n_step=2', '--n_step=2 must not be given with --replay=none'),
    ('--spr_steps=2', '--spr_steps=2 must be 0 for --replay=none'),
    ('--target_update=residual', 'must not be residual, chain'),
    (
      '--panel_period=1',
      '--probe_size=256 must be at most 20, the transitions that there are',
    ),
    ('--q_trace=sarsa', '--q_trace=sarsa must be one of peng, watkins'),
    ('--q_lambda=1.5', '--q_lambda=1.5 must be in [0, 1]'),
  ],
)
def test_what_does_not_go_without_a_replay(refused, argument, message):
  assert message in refused(*WITHOUT_REPLAY, argument)


def test_without_a_replay_there_is_room_for_a_round_only(accepted):
  parts = accepted(*WITHOUT_REPLAY)
  # Of 5 steps of 4 environments; each may end an episode.
  assert parts.replay.capacity == 4 * (2 * 5 + 1)


def test_without_a_replay_it_goes_on_where_it_was_stopped(
  tmp_path, monkeypatch
):
  given = (*WITHOUT_REPLAY, '--env_steps=200', '--eval_episodes=2')
  whole, folder = tmp_path / 'whole', tmp_path / 'run'
  launch(*given, f'--run_dir={whole}')
  rows = columns(whole)
  assert rows['gradient_steps'] == [40, 80]
  assert rows['eval_episodes'] == [2, 2]
  assert np.isfinite(rows['loss']).all()

  original, added = HostReplay.add, []

  def add(self, **arrays):
    added.extend(arrays['action'])
    if len(added) == 140:
      signal.raise_signal(signal.SIGTERM)
    return original(self, **arrays)

  with monkeypatch.context() as patch:
    patch.setattr(HostReplay, 'add', add)
    output = launch(*given, f'--run_dir={folder}')
  assert 'stopping: writing a checkpoint' in output
  assert 'again to get there' in launch(*given, f'--run_dir={folder}')
  assert repr(columns(folder)) == repr(rows)
  expected, found = state_of(whole), state_of(folder)
  assert not [x for x in expected if repr(expected[x]) != repr(found[x])]


def test_a_replay_holds_what_is_collected_first(accepted):
  accepted('--replay_capacity=50')


@pytest.mark.slow
def test_several_runs_have_a_folder_each(tmp_path):
  folder, alone = tmp_path / 'runs', tmp_path / 'alone'
  short = (*SMALL, '--env_steps=100')
  launch(*short, '--learning_rate=0.00025', f'--run_dir={alone}')
  arguments = (*short, '--learning_rate=0.00025,0.01', '--seeds=2')
  output = launch(*arguments, f'--run_dir={folder}')
  assert f'4 of 4 runs are finished in {folder}' in output
  names = [
    f'learning_rate={rate},seed={seed}'
    for rate in ('0.00025', '0.01')
    for seed in (0, 1)
  ]
  assert sorted(path.name for path in folder.iterdir()) == sorted(names)
  tables = [repr(columns(folder / name)) for name in names]
  assert len(set(tables)) == 4
  assert tables[0] == repr(columns(alone))


def test_a_package_that_is_missing(refused, monkeypatch):
  monkeypatch.setitem(sys.modules, 'Box2D', None)
  line = refused(*SMALL, '--environment=lunarlander', code=1)
  assert 'LunarLander-v3 needs Box2D: pip install siamrl[box2d]' in line


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_learns_cartpole(tmp_path):
  """An untrained agent keeps the pole up for some 20 env steps."""
  folder = tmp_path / 'run'
  launch(
    '--platform=cpu',
    '--env_steps=30000',
    '--iteration_env_steps=5000',
    '--train_period=2',
    '--min_replay=1000',
    '--replay_capacity=30000',
    '--learning_rate=1e-3',
    '--batch_size=64',
    '--target_period=500',
    '--epsilon_decay=5000',
    f'--run_dir={folder}',
  )
  returns = columns(folder)['eval_return']
  assert max(returns) >= 150, returns
  assert np.mean(returns[-2:]) >= 150, returns
