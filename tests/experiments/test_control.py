"""The launcher of continuous control, compiled and on the host."""

import functools
import importlib.util
import json
import pathlib
import signal

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import control
from siamrl.report import sweep as sweep_figures
from experiments.config import (
  collecting as collect_options,
  help,
  reading,
  twin as twin_options,
)
from experiments.engines import (
  compiled as compiled_engine,
  devices,
  host as host_engine,
  host_runs,
)
from experiments.families import actor_critic
from experiments.families.actor_critic import ControlConfig
from experiments.suites import gym as gym_suite
from siamrl import twins
from siamrl.envs import gym, registry
from siamrl.replay.host import HostReplay
from siamrl.report.metrics import MetricsWriter
from siamrl.report.progress import COMPILING, MAIN
from siamrl.report.run_folder import RunFolder
from siamrl.runners import host
from siamrl.types import Transition
from tests.experiments.launching import (
  OF_RULES,
  columns,
  groups_of,
  host_state,
  killed,
  read_sweep,
  recorded_phases,
  sweep_here,
  sweep_state,
)
from tests.parameters import OF_EACH_KIND, OF_VALUES, slow_but

# Three iterations of 100 env steps; episodes last 200.
SMALL = (
  '--platform=cpu',
  '--environment=pendulum',
  '--env_steps=300',
  '--iteration_env_steps=100',
  '--min_replay=50',
  '--random_env_steps=60',
  '--replay_capacity=200',
  '--batch_size=8',
  '--actor_sizes=8',
  '--critic_sizes=8',
  '--eval_episodes=0',
)
# Two programs, with columns of their own.
SWEEP = (*SMALL, '--agent=td3,sac', '--tau=0.1,0.5')

GIVEN = OF_RULES | {'target_paths': 'critic:soft+actor:hard'}
# SAC's actor has no twin.
_CRITIC_ONLY = GIVEN | {'target_paths': 'torso:soft+last:hard'}

HAS_MUJOCO = importlib.util.find_spec('mujoco') is not None
# Gymnasium's own pendulum, by the package that has it: else it is that of JAX.
HOST = 'InvertedPendulum-v5' if HAS_MUJOCO else 'gymnasium:Pendulum-v1'


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory) -> pathlib.Path:
  """A sweep from start to end, of `SWEEP`."""
  folder = tmp_path_factory.mktemp('undisturbed') / 'run'
  output = sweep_here(control, *SWEEP, f'--run_dir={folder}')
  assert f'starting program 2 of 2 in {folder}: 2 runs of 300' in output
  assert output.endswith(f'finished: {folder}\n')
  return folder


def test_the_table(undisturbed):
  table = columns(undisturbed)
  assert list(table)[:7] == [
    'tau',
    'agent',
    'seed',
    'iteration',
    'env_steps',
    'gradient_steps',
    'target_updates',
  ]
  assert set(list(table)[7:]) == {
    'train_episodes',
    'train_return',
    'train_episode_env_steps',
    'epsilon',
    'loss',
    'critic_loss',
    'actor_loss',
    'q_tm1',
    'td_error_abs',
    'alpha',
    'entropy',
  }
  assert table['agent'] == ['td3'] * 6 + ['sac'] * 6
  assert table['tau'] == [0.1, 0.5] * 6
  each = [i for i in range(3) for _ in range(2)] * 2
  assert table['env_steps'] == [100 * (i + 1) for i in each]
  # From env step 50 on, one in every env step.
  assert table['gradient_steps'] == [50 + 100 * i for i in each]
  # Of both agents the twin moves at every second one, by default.
  assert table['target_updates'] == [25 + 50 * i for i in each]
  assert table['train_episodes'] == [float(i == 1) for i in each]
  assert min(r for r in table['train_return'] if r == r) < -200
  # What an agent does not have is empty.
  for name in ('alpha', 'entropy'):
    assert all(value != value for value in table[name][:6])
    assert all(value == value for value in table[name][6:])
  # A temperature that is learned begins at 1, and hardly moves in 250 steps.
  assert all(0.9 < alpha <= 1 for alpha in table['alpha'][6:])
  assert len({*table['critic_loss']}) == 12
  assert (undisturbed / 'curve-final.png').exists()


def test_stopped_between_iterations_it_goes_on(
  undisturbed, tmp_path, monkeypatch
):
  """To where the second program of the sweep came."""
  folder = tmp_path / 'run'
  arguments = (*SWEEP, '--agent=sac', f'--run_dir={folder}')
  original, calls = MetricsWriter.write_rows, []

  def write(self, *args):
    original(self, *args)
    calls.append(args)
    if len(calls) == 2:
      signal.raise_signal(signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(MetricsWriter, 'write_rows', write)
    output = sweep_here(control, *arguments)
    assert 'stopped after 400 env steps and saved' in output
  output = sweep_here(control, *arguments)
  assert f'resuming program 1 of 1 in {folder}' in output
  whole = columns(undisturbed)
  assert repr(columns(folder)) == repr(
    {name: v[6:] for name, v in whole.items() if name != 'agent'}
  )
  expected = {
    name.replace('1 ', '0 ', 1): value
    for name, value in sweep_state(control, undisturbed).items()
    if name.startswith('1 .')
  }
  found = sweep_state(control, folder)
  assert len(expected) > 40
  assert not [name for name in expected if expected[name] != found[name]]


def _config(*arguments) -> ControlConfig:
  (config,) = read_sweep(control, *SMALL, *arguments).configs
  actor_critic.check(config)
  return config


@functools.cache
def _columns(*arguments):
  """The columns of the only program of a sweep; nothing is compiled."""
  sweep = read_sweep(control, *SMALL, *arguments)
  for config in sweep.configs:
    actor_critic.check(config)
  (group,) = groups_of(control, sweep)
  settings = group.runs[0].settings
  state = jax.eval_shape(group.loop.start, settings, jax.random.key(0))
  after, row = jax.eval_shape(group.loop.iterate, settings, state, jnp.int32(0))
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
  return row


def _rule(name, given):
  takes = twins.takes(name, given['target_paths'])
  return (
    f'--target_update={name}',
    *(f'--{key}={given[key]}' for key in takes if key in given),
  )


@pytest.mark.parametrize(
  'name, form',
  slow_but(
    lambda case: (
      case[0] in OF_EACH_KIND
      and case[1] == 'min'
      or case == ('averaged', 'minto')
    ),
    [
      (name, form)
      for name in twins.RULES
      if name not in OF_VALUES
      for form in ('min', 'minto')
    ],
  ),
)
def test_every_rule_fits_td3(name, form):
  row = _columns('--agent=td3', f'--target_form={form}', *_rule(name, GIVEN))
  assert {'critic_loss', 'actor_loss', 'train_return'} < set(row)


@pytest.mark.parametrize('name', ['chain', 'iterated_heads', 'by_path'])
def test_rules_that_stack_networks_fit_sac(name):
  row = _columns(
    '--agent=sac',
    *_rule(name, _CRITIC_ONLY),
    '--panel_period=1',
    '--probe_size=8',
    '--eval_episodes=2',
  )
  assert {
    'entropy',
    'eval_return',
    'panel/twin_age/critic/last',
    'panel/policy_churn',
    'panel/overestimation',
  } < set(row)
  assert not [name for name in row if name.startswith('panel/twin_age/actor')]
  # Nobody has said how large rewards are.
  assert 'panel/soft_divergence' not in row


@pytest.mark.parametrize(
  'name', ['self', pytest.param('by_path', marks=pytest.mark.slow)]
)
def test_rules_fit_crossq(name):
  """Statistics have a twin beside the critics' weights."""
  row = _columns(
    '--agent=crossq',
    *_rule(name, _CRITIC_ONLY),
    '--panel_period=1',
    '--probe_size=8',
    '--eval_episodes=2',
  )
  assert {'entropy', 'eval_return', 'panel/overestimation'} < set(row)
  assert 'panel/twin_age/critic_statistics/torso' in row


@pytest.mark.slow
def test_crossq_resumes_where_it_was(tmp_path):
  """From a state that was stopped between iterations."""
  arguments = ('--agent=crossq', '--target_update=self')
  whole, halved = tmp_path / 'whole', tmp_path / 'halved'
  small = (*SMALL, *arguments)
  sweep_here(control, *small, f'--run_dir={whole}')
  original = MetricsWriter.write_rows

  def write(self, *args):
    original(self, *args)
    signal.raise_signal(signal.SIGTERM)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(MetricsWriter, 'write_rows', write)
    sweep_here(control, *small, f'--run_dir={halved}')
  assert 'resuming' in sweep_here(control, *small, f'--run_dir={halved}')
  assert repr(columns(whole)) == repr(columns(halved))
  expected, found = (sweep_state(control, at) for at in (whole, halved))
  names = [name for name in expected if 'statistics' in name]
  assert len(names) > 8
  assert not [name for name in expected if expected[name] != found[name]]


def test_the_panel_has_shadows_and_a_bound():
  row = _columns(
    '--agent=ddpg',
    '--panel_period=1',
    '--probe_size=8',
    '--shadows=hard+self',
    '--reward_bound=16.3',
  )
  assert {
    'panel/soft_divergence',
    'panel/cosine/self',
    'panel/shadow_gap/hard',
    'panel/twin_distance/actor/torso/Dense_0',
  } < set(row)


# Learning by itself.


def _batch(key=0):
  rng = np.random.default_rng(key)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return Transition(
    normal(8, 3),
    np.clip(normal(8, 1), -1, 1),
    normal(8),
    np.full(8, 0.99, np.float32),
    normal(8, 3),
  )


def _learner(*arguments):
  config = _config(*arguments)
  settings = actor_critic.settings_of(config)
  learner = actor_critic.make_learner(
    config,
    twin_options.traced(collect_options.twin_spec(config), settings),
    1,
    np.zeros((1, 3), np.float32),
    settings,
  )
  return learner, learner.init(jax.random.key(0))


def _states(learner, state, steps):
  regress, states = jax.jit(learner.regress), [state]
  for step in range(steps):
    states.append(regress(states[-1], _batch(step))[0])
  return states


def _moved(one, other) -> bool:
  """Whether any number of one tree differs from that of another."""
  return any(
    bool(np.any(a != b))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  )


def test_actor_and_twins_of_td3_move_at_the_same_steps():
  states = _states(*_learner('--agent=td3'), 5)
  moves = [
    (
      _moved(a.online_params['actor'], b.online_params['actor']),
      _moved(a.target_params['actor'], b.target_params['actor']),
      _moved(a.target_params['critic'], b.target_params['critic']),
      _moved(a.online_params['critic'], b.online_params['critic']),
    )
    for a, b in zip(states, states[1:], strict=False)
  ]
  rests, all_move = (False, False, False, True), (True,) * 4
  assert moves == [rests, all_move, rests, all_move, rests]


def test_critics_and_actor_may_have_rules_of_their_own():
  paths = 'critic:soft+actor:hard'
  states = _states(
    *_learner(
      '--target_update=by_path',
      f'--target_paths={paths}',
      '--tau=0.25',
      '--target_period=4',
      '--policy_delay=1',
    ),
    4,
  )
  for step, (before, after) in enumerate(zip(states, states[1:]), 1):  # noqa: B905
    twin, online = after.target_params, after.online_params
    expected = jax.tree.map(
      lambda old, new: 0.75 * old + 0.25 * new,
      before.target_params['critic'],
      online['critic'],
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
      twin['critic'],
      expected,
    )
    assert _moved(twin['actor'], online['actor']) == (step != 4)
    source = before.target_params if step != 4 else online
    assert not _moved(twin['actor'], source['actor'])


@pytest.mark.parametrize('agent', ['sac', 'td3'])
def test_evaluations_play_without_noise(agent):
  learner, state = _learner(f'--agent={agent}', '--eval_episodes=2')
  made, params = learner.agent, state.online_params
  obs = _batch().obs_t
  noises = [made.acting.noise(jax.random.key(seed), 8) for seed in range(2)]
  played = [made.acting.play(params, obs, noise, 0.0) for noise in noises]
  np.testing.assert_array_equal(*played)
  np.testing.assert_array_equal(played[0], made.acting.greedy(params, obs))
  acted = [made.acting.act(params, obs, noise, 0.0) for noise in noises]
  assert np.abs(acted[0] - acted[1]).max() > 0.01
  # The host's evaluation and the compiled one play.
  act = host.make_act(made)
  np.testing.assert_allclose(
    act(params, obs, jax.random.key(5), 0, 0.0), played[0], atol=1e-6
  )
  sweep = read_sweep(control, *SMALL, f'--agent={agent}', '--eval_episodes=2')
  (group,) = groups_of(control, sweep)
  setup = group.loop.make_setup(group.runs[0].settings)
  agent = setup.learner.agent
  quiet = agent._replace(acting=agent.acting._replace(act=None))
  setup = setup._replace(learner=setup.learner._replace(agent=quiet))
  row = jax.eval_shape(
    functools.partial(group.loop._evaluate, setup), params, jax.random.key(0)
  )
  assert 'eval_return' in row


@pytest.mark.parametrize(
  'rule, place', [('soft', 1), ('periodic_soft', 4), ('hard', 4)]
)
def test_a_period_that_is_not_swept_counts_in_figures(rule, place):
  """A rate of 1 every second gradient step is a copy every second."""
  swept = {'tau': np.array([1.0, 0.5])}
  flags_ = {
    'target_update': rule,
    'target_period': '8',
    'target_period_unit': 'env_steps',
    'train_period': '2',
    'discount': '0.9',
    'reward_bound': '1',
  }
  single = sweep_figures.single(swept, flags_)
  _, position, label = sweep_figures.places(
    swept, ['tau'], single, twins.with_period()
  )
  assert label == 'target period, or its match (gradient steps)'
  assert position({'tau': 1.0}) == place
  assert position({'tau': 0.5}) == 3 * place
  assert sweep_figures._bound(single) == pytest.approx(10)
  # Parts of the sweep have another discount: then there is no one bound.
  table = swept | {'discount': np.array([0.9, 0.5])}
  single = sweep_figures.single(table, flags_)
  assert sweep_figures._bound(single) is None


def test_a_fixed_policy_keeps_its_temperature():
  sweep = read_sweep(control, *SMALL, '--agent=sac', '--fixed_policy')
  (group,) = groups_of(control, sweep)
  settings = group.runs[0].settings
  before = jax.jit(group.loop.start)(settings, jax.random.key(0))
  after, row = jax.jit(group.loop.iterate)(settings, before, 0)
  assert row['gradient_steps'] == 50
  assert row['alpha'] == pytest.approx(1.0)
  critic = before.train.online_params['critic']
  assert _moved(after.train.online_params['critic'], critic)


def test_a_fixed_policy_is_left_alone():
  """In the compiled loop, with noise that is remembered."""
  sweep = read_sweep(control, *SMALL, '--agent=ddpg', '--fixed_policy')
  (group,) = groups_of(control, sweep)
  settings = group.runs[0].settings
  before = jax.jit(group.loop.start)(settings, jax.random.key(0))
  after, row = jax.jit(group.loop.iterate)(settings, before, 0)
  assert row['gradient_steps'] == 50
  actor = before.train.online_params['actor']
  assert not _moved(after.train.online_params['actor'], actor)
  # Its twin moves toward it, and by rounding.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    after.train.target_params['actor'],
    actor,
  )
  critic = before.train.online_params['critic']
  assert _moved(after.train.online_params['critic'], critic)
  # 100 steps into an episode of 200.
  assert after.memory.shape == (1, 1)
  assert after.memory != 0


def test_random_actions_come_first():
  for chance in (
    actor_critic.at_random,
    lambda *args: jax.jit(actor_critic.at_random)(*args),
  ):
    assert [float(chance(step, 60)) for step in (0, 59, 60, 61)] == [1, 1, 0, 0]


# Command lines.


@pytest.fixture
def refused(monkeypatch, tmp_path):
  """A function that runs the launcher here; it returns the line of error."""

  def train(*args):
    raise AssertionError('training began')

  monkeypatch.setattr(compiled_engine._Runs, 'train', train)
  monkeypatch.setattr(host_engine, 'run', train)
  monkeypatch.chdir(tmp_path)

  def run(*arguments, code=2):
    err = sweep_here(control, *arguments, code=code)
    assert err.startswith('error: --'), err
    assert err.count('\n') == 1, err
    return err

  return run


_ON_HOST = '--environment=gymnasium:Pendulum-v1'


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('--environment=halfchetah',), 'the closest are: HalfCheetah'),
    (('--environment=halfchetah',), 'JAX-native ones are mountain_car_contin'),
    (('--environment=HalfCheetah-v9',), 'the newest is HalfCheetah-v5'),
    (
      ('--environment=cartpole',),
      'cartpole has discrete actions: python -m experiments.classic '
      '--environment=cartpole',
    ),
    (('--environment=pong',), 'python -m experiments.atari --game=pong'),
    (
      ('--eval_environment=mountain_car_continuous',),
      '--eval_environment=mountain_car_continuous must have the obs_shape (3,)',
    ),
    (('--eval_environment=pendlum',), "no environment 'pendlum'"),
    (('--agent=ddpg', '--alpha=0.1'), '--alpha=0.1 must go with --agent=sac'),
    (
      ('--agent=sac', '--renorm_warmup=9'),
      '--renorm_warmup=9 must go with --agent=crossq',
    ),
    (
      ('--agent=td3', '--norm_momentum=0.9'),
      '--norm_momentum=0.9 must go with --agent=crossq',
    ),
    (('--adam_b1=1',), '--adam_b1=1.0 must be in [0, 1)'),
    (
      ('--agent=crossq', '--action_layer=1', '--critic_sizes=8-8'),
      '--action_layer=1 must not be given with --agent=crossq',
    ),
    *(
      (
        ('--agent=crossq', f'--target_update={name}', *more),
        f'--target_update={name} must not be functional, projected_soft or '
        'iterated_heads with --agent=crossq',
      )
      for name, more in {
        'functional': ('--twin_weight=0.5',),
        'iterated_heads': ('--target_count=2',),
      }.items()
    ),
    (
      ('--agent=ddpg', '--critics=2'),
      'must go with --agent=td3, sac or crossq',
    ),
    (('--agent=sac', '--exploration_std=1'), 'go with --agent=ddpg or td3'),
    (('--agent=td3', '--log_std_low=-5'), '--log_std_low=-5.0 must go with'),
    (('--exploration_theta=0.5',), 'go with --exploration=ornstein_uhlenbeck'),
    (
      ('--agent=sac', '--alpha=1', '--target_entropy=-1'),
      '--target_entropy=-1.0 must not be given with --alpha',
    ),
    (
      ('--agent=sac', '--log_std_low=2'),
      '--log_std_low=2.0 must be below --log_std_high=2.0',
    ),
    (('--action_layer=2',), '--action_layer=2 must be at most 1, with these'),
    (('--actor_sizes=8-',), '--actor_sizes=8- must be positive numbers joined'),
    (('--smoothing_std=-1',), '--smoothing_std=-1.0 must be 0 or more'),
    (('--tau=2',), '--tau=2.0 must be in (0, 1]'),
    (('--target_update=averaged',), 'target_update=averaged needs target_co'),
    (
      ('--panel_period=1', '--probe_size=8', '--shadows=hard')
      + _rule('chain', GIVEN),
      '--shadows=hard must not be given with a rule that has several networks',
    ),
    (('--batch_size=50',), '--min_replay=50 must be at least 51'),
    (('--env_steps=350',), 'must be a multiple of --iteration_env_steps=100'),
    (
      ('--target_update=by_path', '--target_paths=critic:soft'),
      '--target_paths=critic must match every parameter, and leaves actor/',
    ),
    # On the host:
    ((_ON_HOST + ',pendulum',), 'must not name gymnasium:Pendulum-v1, which'),
    ((_ON_HOST, '--seeds=10001'), 'are 10,001 runs, and must be at most'),
    (
      (_ON_HOST, '--seed=4294967295', '--seeds=2'),
      '--seeds=2 must leave --seed + --seeds below 4294967296',
    ),
    (
      (_ON_HOST, '--batch_size=8,99', '--replay_capacity=200'),
      '--min_replay=50 must be at least 100: --batch_size=99',
    ),
    (
      (_ON_HOST, '--share=batch'),
      '--share=batch must go with an --env',
    ),
    (
      (_ON_HOST, '--replay_capacity=18'),
      '--replay_capacity=18 must be at least 20: room for --batch_size=8',
    ),
    (
      (_ON_HOST, '--vectorized'),
      '--vectorized=true must go with an',
    ),
    (
      (_ON_HOST, '--eval_environment=pendulum'),
      'must go with an --environment',
    ),
    ((_ON_HOST, '--eval_episode_env_steps=9'), 'which is stepped on the host'),
    (
      (_ON_HOST, '--panel_period=1', '--probe_size=8', '--shadows=hard')
      + ('--train_steps=17',),
      '--shadows=hard must not be given where a round takes 17 gradient steps',
    ),
    ((_ON_HOST, '--target_period_unit=rounds'), 'must be one of frames, env_'),
    (
      (_ON_HOST, '--eval_episodes=1', '--eval_episode_env_steps=9'),
      'cuts its episodes itself, after 200 env steps',
    ),
    (
      ('--fresh_environments',),
      '--fresh_environments=true must go with an --environment of Gymnasium',
    ),
  ],
)
def test_options(refused, arguments, message, tmp_path):
  assert message in refused(*SMALL, *arguments)
  assert not list(tmp_path.iterdir())


def test_a_replay_that_does_not_fit(refused, monkeypatch):
  monkeypatch.setattr(devices, 'memory_bytes', lambda: 3_000)
  line = refused(*SMALL, _ON_HOST)
  assert '--replay_capacity=200 must fit the memory: it takes 0.0 GB' in line
  line = refused(*SMALL)
  assert '--replay_capacity=200 must be so small, and the network too' in line


class _Odd(gymnasium.Env):
  """An environment of one's own."""

  observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

  def __init__(self, action_space):
    self.action_space = action_space


def test_actions_that_do_not_fit(refused, monkeypatch):
  for name, space in (
    ('OddDiscrete-v0', gymnasium.spaces.Discrete(3)),
    ('OddBoundless-v0', gymnasium.spaces.Box(-np.inf, np.inf, (1,))),
  ):
    monkeypatch.setitem(
      gymnasium.registry,
      name,
      gymnasium.envs.registration.EnvSpec(
        name, entry_point=lambda space=space: _Odd(space)
      ),
    )
  line = refused(*SMALL, '--environment=odd_discrete')
  assert line.startswith(
    'error: --environment=OddDiscrete-v0 must have continuous actions'
  )
  line = refused(*SMALL, '--environment=OddBoundless-v0')
  assert 'both ends must be finite' in line
  if not HAS_MUJOCO:
    line = refused(*SMALL, '--environment=Hopper-v5', code=1)
    assert 'needs mujoco: pip install siamrl[mujoco]' in line


class _Walk(gymnasium.Env):
  """Walks at random; by its seed, or by NumPy's global stream."""

  action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

  def __init__(self, seeded=True, broken=0, space=None):
    self.observation_space = space or gymnasium.spaces.Box(-9, 9, (2,))
    self._seeded, self._broken = seeded, broken

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self._steps = 0
    return self._look(), {}

  def step(self, action):
    self._steps += 1
    reward = float('nan') if self._steps == self._broken else 1.0
    return self._look(), reward, False, False, {}

  def _look(self):
    rng = self.np_random if self._seeded else np.random
    draw = rng.uniform(0, 9, self.observation_space.shape)
    return draw.astype(self.observation_space.dtype)


@pytest.fixture
def walk(monkeypatch):
  """A function that registers a walk; it returns the flag that names it."""

  def register(limit=None, **arguments):
    name = 'Walk-v0'
    spec = gymnasium.envs.registration.EnvSpec(
      name,
      entry_point=lambda: _Walk(**arguments),
      max_episode_steps=limit,
    )
    monkeypatch.setitem(gymnasium.registry, name, spec)
    return f'--environment={name}'

  return register


@pytest.fixture
def notes(monkeypatch, tmp_path):
  """A function that does all but train; it returns the notes, and the parts."""

  def run(*arguments):
    ran = []
    monkeypatch.setattr(host_engine, 'run', lambda *args: ran.append(args[1]))
    folder = tmp_path / 'run'
    err = sweep_here(control, *arguments, f'--run_dir={folder}', '--overwrite')
    lines = err.splitlines()
    assert all(line.startswith('note: ') for line in lines), err
    return [line.removeprefix('note: ') for line in lines], *ran

  return run


def test_an_environment_without_a_limit_is_cut_in_evaluations(walk, notes):
  endless = (*SMALL, walk(), '--eval_episodes=3', '--eval_episode_env_steps=7')
  (line,), parts = notes(*endless)
  assert line == (
    'Walk-v0 sets no limit to its episodes: evaluations cut them after '
    '--eval_episode_env_steps=7'
  )
  playing = parts.evaluate(parts.state, 0)
  with pytest.raises(StopIteration) as end:
    while True:
      next(playing)
  row = end.value.value
  assert row['eval_episodes'] == row['eval_episodes_cut'] == 3
  assert row['eval_return'] == row['eval_episode_env_steps'] == 7
  # The cap is not for those that have one.
  lines, _ = notes(*SMALL, walk(limit=50), '--eval_episodes=3')
  assert not lines


@pytest.mark.parametrize(
  'space, scaled',
  [
    (gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8), True),
    (gymnasium.spaces.Box(0, 255, (9,), np.float32), True),
    (gymnasium.spaces.Box(0, 9, (4, 4), np.float32), False),
  ],
)
def test_images_and_bytes_are_scaled(walk, notes, space, scaled):
  (line,), parts = notes(*SMALL, walk(limit=50, space=space))
  done = ['flattened'] * (len(space.shape) > 1)
  done += ['scaled from [0, 255] to [-1, 1]'] * scaled
  assert line == (
    'the networks see the observations of Walk-v0, of shape '
    f'{list(space.shape)}, {" and ".join(done)}'
  )
  # Of scaled zeros every number is -1.
  agent, params = _agent_of(parts), parts.state.online_params
  kernel = params['actor']['params']['torso']['Dense_0']['Dense_0']['kernel']
  size = int(np.prod(space.shape))
  assert kernel.shape == (size, 8)
  shape = space.shape if space.dtype == np.uint8 else (size,)
  low, high = (
    agent.acting.greedy(params, np.full((1, 1, *shape), value, space.dtype))
    for value in (0, 255)
  )
  other = actor_critic.make_agent(
    _config(), 1, np.zeros((1, size), np.float32), _settings()
  )
  for found, value in (
    (low, -1 if scaled else 0),
    (high, 1 if scaled else 255),
  ):
    expected = other.acting.greedy(
      params, np.full((1, size), value, np.float32)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
  critic = params['critic']
  values = [
    made.values({'actor': params['actor'], 'critic': critic}, obs)
    for made, obs in (
      (agent, np.zeros((1, 1, *shape), space.dtype)),
      (other, np.full((1, size), -1 if scaled else 0, np.float32)),
    )
  ]
  np.testing.assert_allclose(*values, rtol=1e-5)


def test_bytes_of_compiled_environments_are_scaled(monkeypatch, capsys):
  plain = registry.ENVIRONMENTS['pendulum']()

  def as_bytes(obs):
    return jnp.full((3,), 255, jnp.uint8)

  monkeypatch.setitem(
    registry.ENVIRONMENTS,
    'bytes_in_sight',
    lambda: plain._replace(
      obs_dtype=np.dtype(np.uint8),
      reset=lambda key: (plain.reset(key)[0], as_bytes(None)),
      step=lambda *args: (
        plain.step(*args)[0],
        plain.step(*args)[1]._replace(obs=as_bytes(None)),
      ),
    ),
  )
  monkeypatch.setattr(
    registry, 'CONTINUOUS', registry.CONTINUOUS | {'bytes_in_sight'}
  )
  sweep = read_sweep(control, *SMALL, '--environment=bytes_in_sight')
  (group,) = groups_of(control, sweep)
  assert 'scaled from [0, 255] to [-1, 1]' in capsys.readouterr().err
  agent = group.loop.make_setup(group.runs[0].settings).learner.agent
  params = agent.init(jax.random.key(0))
  (other,) = groups_of(control, read_sweep(control, *SMALL))
  plainly = other.loop.make_setup(other.runs[0].settings).learner.agent
  for value, scaled in ((0, -1), (255, 1)):
    np.testing.assert_allclose(
      agent.acting.greedy(params, np.full((1, 3), value, np.uint8)),
      plainly.acting.greedy(params, np.full((1, 3), scaled, np.float32)),
      rtol=1e-6,
    )


def _agent_of(parts):
  """The agent of a run on the host."""
  return parts.loop.keywords['learner'].agent


def _settings():
  return actor_critic.settings_of(_config())


def test_an_environment_that_ignores_its_seed(walk, notes, tmp_path):
  flag = walk(limit=30, seeded=False)
  (line,), parts = notes(*SMALL, flag)
  assert line.startswith('Walk-v0 ignores its seed: the same seed gave two')
  assert not parts.fresh_environments
  assert notes(*SMALL, flag, '--fresh_environments')[1].fresh_environments


@pytest.mark.slow
def test_it_goes_on_in_fresh_environments(walk, tmp_path, monkeypatch):
  arguments = (*SMALL, walk(limit=30, seeded=False), '--agent=ddpg')
  arguments += (f'--run_dir={tmp_path / "run"}',)
  original, added = HostReplay.add, []

  def add(self, **step):
    added.extend(step['action'])
    if len(added) == 20:
      signal.raise_signal(signal.SIGTERM)
    return original(self, **step)

  with monkeypatch.context() as patch:
    patch.setattr(HostReplay, 'add', add)
    sweep_here(control, *arguments)
  error = sweep_here(control, *arguments, code=1).splitlines()[-1]
  assert 'did not return to where this run had stopped' in error
  assert 'ignore their seed? With --fresh_environments the run goes' in error
  output = sweep_here(control, *arguments, '--fresh_environments')
  assert 'no longer bit for bit the run that was never stopped' in output
  assert columns(tmp_path / 'run')['env_steps'] == [100, 200, 300]


def test_the_fault_of_an_environment_is_named(walk, tmp_path):
  """The first iteration's checkpoint stays."""
  folder = tmp_path / 'run'
  arguments = (*SMALL, '--agent=ddpg', f'--run_dir={folder}')
  # An episode of 100 is cut, one of 120 comes to the fault.
  sweep_here(control, *arguments, walk(broken=101), '--env_steps=100')
  (folder / 'flags.txt').write_text(
    (folder / 'flags.txt')
    .read_text()
    .replace('--env_steps=100', '--env_steps=300')
  )
  before = sorted(folder.glob('checkpoints/**/*'))
  error = sweep_here(control, *arguments, walk(broken=50), code=1)
  assert error.splitlines()[-1] == (
    'error: the environment failed: Walk-v0: the reward of step 50 of an '
    'episode is nan, which is not a finite number of 32 bits; the last '
    'checkpoint stays as it is'
  )
  assert before == sorted(folder.glob('checkpoints/**/*'))
  assert columns(folder)['env_steps'] == [100]


def test_a_start_that_breaks_the_contract(walk, refused, monkeypatch):
  flag = walk(limit=30)
  monkeypatch.setattr(_Walk, '_look', lambda self: np.full(2, np.nan, 'f'))
  err = sweep_here(control, *SMALL, flag, code=1)
  assert err == (
    'error: the environment failed: Walk-v0: the first observation of an '
    'episode holds nan, which is not a finite number of 32 bits\n'
  )
  space = gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(3))
  line = refused(*SMALL, walk(space=space))
  assert 'Walk-v0 needs observations that are arrays or can be flat' in line


def test_help():
  text = help.help_text(ControlConfig, control.__doc__, lists=True)
  for name in reading.as_json(ControlConfig()):
    assert f'--{name}' in text or f'--[no]{name}' in text
  assert max(map(len, text.splitlines())) <= 80


# On the host.

ON_HOST = (
  *SMALL,
  f'--environment={HOST}',
  '--agent=ddpg',
  '--env_steps=800',
  '--iteration_env_steps=400',
  '--replay_capacity=300',
  '--eval_episodes=2',
)


@pytest.fixture(scope='module')
def robot(tmp_path_factory) -> pathlib.Path:
  """A run of the host loop from start to end, of `ON_HOST`."""
  folder = tmp_path_factory.mktemp('robot') / 'run'
  with recorded_phases() as phases:
    output = sweep_here(control, *ON_HOST, f'--run_dir={folder}')
  # It learns in its first chunk.
  assert phases == [COMPILING, MAIN, *['evaluating', MAIN] * 2]
  assert f'starting {folder}' in output
  # Two environments, and an episode of 1,000.
  cut = f'{HOST} may take 1,000 an episode, whose rest would never be seen'
  assert (cut in output) == HAS_MUJOCO
  assert 'first gradient step at env step 51' in output
  assert 'iteration 1, 800 env steps, training return' in output
  assert output.endswith(f'finished: {folder}\n')
  return folder


def test_the_run_of_a_robot(robot):
  rows = columns(robot)
  assert rows['env_steps'] == rows['frames'] == [400, 800]
  assert rows['gradient_steps'] == [350, 750]
  assert rows['eval_episodes'] == [2, 2]
  assert {'critic_loss', 'actor_loss', 'eval_return'} < set(rows)
  config = json.loads(RunFolder(robot).config.read_text())
  assert config['environment'] == HOST
  assert config['derived']['mujoco'] == gym.mujoco_version()
  assert (config['derived']['mujoco'] is not None) == HAS_MUJOCO
  assert config['derived']['schedule']['sync'] == 2
  assert (robot / 'curve.png').exists()


def _host_state(folder):
  """All that the newest checkpoint of a run holds, as bytes and JSON."""
  run = RunFolder(folder)
  (config,) = read_sweep(control, f'--flagfile={run.flags}').configs
  suite = gym_suite.Suite(config)
  parts, _ = host_runs.build(config, actor_critic, suite, run)
  return host_state(parts, run)


def test_stopped_inside_an_iteration_a_robot_goes_on(
  robot, tmp_path, monkeypatch
):
  folder = tmp_path / 'run'
  original, added = HostReplay.add, []

  def add(self, **step):
    added.extend(step['action'])
    if len(added) == 520:
      signal.raise_signal(signal.SIGTERM)
    return original(self, **step)

  # The first iteration, its evaluation, and a part of the second.
  monkeypatch.setattr(HostReplay, 'add', add)
  output = sweep_here(control, *ON_HOST, f'--run_dir={folder}')
  assert 'stopping: writing a checkpoint' in output
  stopped = _host_state(folder)['loop']
  assert 400 < stopped['env_steps'] < 800
  assert stopped['actions'] and stopped['memory'] is not None
  # Few env steps between two yields, for it to be seen playing them again.
  config = functools.partial(host.LoopConfig, chunk_env_steps=32)
  monkeypatch.setattr(host, 'LoopConfig', config)
  with recorded_phases() as phases:
    output = sweep_here(control, *ON_HOST, f'--run_dir={folder}')
  again = ['playing again', COMPILING, MAIN, 'evaluating', MAIN]
  assert phases == again
  assert f'at env step {stopped["env_steps"]}' in output
  assert 'env steps again to get there' in output
  assert repr(columns(robot)) == repr(columns(folder))
  expected, found = _host_state(robot), _host_state(folder)
  assert expected.keys() == found.keys()
  assert not [name for name in expected if expected[name] != found[name]]


@pytest.mark.slow
def test_killed_between_checkpoints_a_robot_goes_on(robot, tmp_path):
  folder = tmp_path / 'run'
  arguments = (*ON_HOST, f'--run_dir={folder}')
  output = killed(
    *arguments,
    '--checkpoint_period_s=1e-6',
    # In a checkpoint, of which a part is in place.
    sabotage=('os:rename', 20),
    launcher='experiments.control',
  )
  assert f'starting {folder}' in output
  assert list(folder.glob('checkpoints/*tmp*'))
  assert 'again to get there' in sweep_here(control, *arguments)
  assert repr(columns(robot)) == repr(columns(folder))
  expected, found = _host_state(robot), _host_state(folder)
  assert not [name for name in expected if expected[name] != found[name]]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize('preset', ['sac_pendulum', 'td3_pendulum'])
def test_a_preset_learns_the_pendulum(preset, tmp_path):
  """Acting at random comes to about -1,200."""
  folder = tmp_path / 'run'
  sweep_here(
    control,
    f'--flagfile={FLAGFILES}/{preset}.flags',
    f'--run_dir={folder}',
  )
  table = columns(folder)
  assert table['env_steps'][-1] == 20_000
  print(preset, table['eval_return'])
  assert table['eval_return'][0] < -800
  assert max(table['eval_return']) >= -200
  assert np.mean(table['eval_return'][-5:]) >= -200


FLAGFILES = pathlib.Path(__file__).parents[2] / 'experiments' / 'flagfiles'
