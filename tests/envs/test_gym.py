"""Gymnasium's environments, held against one of them stepped by hand."""

import importlib.metadata
import importlib.util
import logging
import sys

import gymnasium
from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from siamrl.envs import gym
from tests.envs.turns import assert_calls_out_of_turn_raise

# Where it is installed, the tests play with robots, too.
MUJOCO = pytest.mark.skipif(
  importlib.util.find_spec('mujoco') is None, reason='needs mujoco'
)


def robots(*env_ids):
  return [pytest.param(env_id, marks=MUJOCO) for env_id in env_ids]


class Plane(gymnasium.Env):
  """Observes [2, 2] floats: the last action, at other bounds, and the time."""

  observation_space = gymnasium.spaces.Box(-9, 9, (2, 2), np.float64)

  def __init__(self, low=(-3, 0), high=(1, 4), dtype=np.float32):
    self.action_space = gymnasium.spaces.Box(
      np.array(low, dtype), np.array(high, dtype), dtype=dtype
    )

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self.time = 0
    return np.zeros((2, 2)), {}

  def step(self, action):
    assert action in self.action_space
    self.time += 1
    obs = np.array([action, [self.time, 1 / 3]])
    return obs, 0.0, False, self.time == 3, {}


@pytest.fixture
def planes():
  """Registers some."""
  kinds = {
    'Plane-v0': {},
    'HalfPlane-v0': {'high': (1, np.inf)},
    'Grid-v0': {'dtype': np.int64},
  }
  for env_id, arguments in kinds.items():
    gymnasium.register(env_id, Plane, kwargs=arguments)
  yield
  for env_id in kinds:
    del gymnasium.registry[env_id]


def test_pictures_change_no_episode():
  pictures = []
  ends = []
  for see in (None, pictures.append):
    envs = gym.GymnasiumEnvironments('CartPole-v1', 2, seed=5, see=see)
    envs.reset()
    for _ in range(30):
      envs.send(np.ones(2, np.int32))
      step = envs.recv()
    ends.append(step.obs)
    envs.close()
  np.testing.assert_array_equal(*ends)
  # Of the first environment, with one more at each reset.
  assert len(pictures) > 31
  assert {picture.shape for picture in pictures} == {(400, 600, 3)}


def test_an_environment_without_pictures_says_so_once(planes):
  shown = []
  envs = gym.GymnasiumEnvironments('Plane-v0', 2, seed=0, see=shown.append)
  envs.reset()
  for _ in range(4):
    envs.send(np.zeros((2, 2), np.float32))
    envs.recv()
  assert [str(error) for error in shown] == ['Plane-v0 draws no pictures']


def test_equals_single_environments():
  """Episode for episode, from the same seeds, the last observation included."""
  envs = gym.GymnasiumEnvironments('CartPole-v1', 2, seed=5)
  singles = [gymnasium.make('CartPole-v1') for _ in range(2)]
  want = [
    single.reset(seed=int(seed))[0]
    for single, seed in zip(singles, gym.env_seeds(5, 2), strict=True)
  ]
  np.testing.assert_array_equal(envs.reset()[:, 0], want)
  ends = 0
  for actions in np.random.default_rng(0).integers(
    0, 2, (200, 2), dtype=np.int32
  ):
    envs.send(actions)
    step = envs.recv()
    for n, single in enumerate(singles):
      obs, reward, terminated, truncated, _ = single.step(actions[n])
      assert step.reward[n] == reward
      assert step.terminated[n] == terminated
      assert step.truncated[n] == truncated
      if terminated or truncated:
        np.testing.assert_array_equal(step.final_obs[n, 0], obs)
        obs, _ = single.reset()
        ends += 1
      np.testing.assert_array_equal(step.obs[n, 0], obs)
    assert not step.life_lost.any()
  assert ends > 4


@pytest.mark.parametrize(
  ('env_id', 'largest', 'steps'),
  [
    ('Pendulum-v1', 2, 210),  # truncated at 200
    pytest.param('InvertedPendulum-v5', 3, 60, marks=MUJOCO),  # soon fallen
    pytest.param('Reacher-v5', 1, 60, marks=MUJOCO),  # truncated at 50
  ],
)
def test_continuous_actions_equal_single_environments(env_id, largest, steps):
  """As above; actions at their bounds, observations narrowed."""
  envs = gym.GymnasiumEnvironments(env_id, 2, seed=5)
  singles = [gymnasium.make(env_id) for _ in range(2)]
  obs = np.stack(
    [
      single.reset(seed=int(seed))[0]
      for single, seed in zip(singles, gym.env_seeds(5, 2), strict=True)
    ]
  )
  assert (envs.num_actions, envs.action_dim) == (
    0,
    *singles[0].action_space.shape,
  )
  assert envs.frame_shape == obs[0].shape and envs.frame_dtype == np.float32
  got = envs.reset()
  assert got.dtype == np.float32
  np.testing.assert_array_equal(got[:, 0], obs.astype(np.float32))
  rng = np.random.default_rng(0)
  ends = 0
  for _ in range(steps):
    actions = rng.uniform(-1, 1, (2, envs.action_dim)).astype(np.float32)
    envs.send(actions)
    step = envs.recv()
    assert step.obs.dtype == step.final_obs.dtype == np.float32
    for n, single in enumerate(singles):
      obs, reward, terminated, truncated, _ = single.step(largest * actions[n])
      np.testing.assert_allclose(step.reward[n], reward, rtol=1e-6)
      assert step.terminated[n] == terminated
      assert step.truncated[n] == truncated
      np.testing.assert_array_equal(step.final_obs[n, 0], np.float32(obs))
      if terminated or truncated:
        obs, _ = single.reset()
        ends += 1
      np.testing.assert_array_equal(step.obs[n, 0], np.float32(obs))
  assert ends >= 2


@pytest.mark.parametrize('env_id', ['Pendulum-v1', *robots('HalfCheetah-v5')])
def test_the_same_actions_lead_to_the_same_place(env_id):
  """Bit for bit, in fresh environments: so does a run return to its place."""
  plays = []
  for seed in (3, 3, 4):
    envs = gym.GymnasiumEnvironments(env_id, 2, seed=seed)
    rng = np.random.default_rng(0)
    plays.append([envs.reset()])
    for _ in range(60):
      actions = rng.uniform(-1, 1, (2, envs.action_dim)).astype(np.float32)
      envs.send(actions)
      plays[-1] += envs.recv()
    envs.close()
  one, same, other = ([array.tobytes() for array in play] for play in plays)
  assert one == same
  assert one[0] != other[0] and one[1] != other[1]


@pytest.mark.usefixtures('planes')
def test_actions_are_stretched_and_observations_are_vectors():
  envs = gym.GymnasiumEnvironments('plane', 2, seed=0)
  assert envs.env_id == 'Plane-v0'
  assert (envs.num_actions, envs.action_dim) == (0, 2)
  assert (envs.frame_shape, envs.frame_dtype) == ((4,), np.float32)
  np.testing.assert_array_equal(envs.reset(), np.zeros((2, 1, 4)))
  third = np.float32(1 / 3)
  # Bounds -3 to 1, and 0 to 4; the tiny excess is clipped.
  envs.send(np.float32([[-1, 1], [0.5, -0.25]]))
  np.testing.assert_array_equal(
    envs.recv().obs[:, 0], [[-3, 4, 1, third], [0, 1.5, 1, third]]
  )
  envs.send(np.array([[1 + 5e-7, -1 - 5e-7], [0, 0]]))
  np.testing.assert_array_equal(
    envs.recv().obs[:, 0], [[1, 0, 2, third], [-1, 2, 2, third]]
  )
  envs.send(np.zeros((2, 2), np.float32))
  step = envs.recv()
  assert step.truncated.all() and not step.terminated.any()
  np.testing.assert_array_equal(step.final_obs[:, 0], [[-1, 2, 3, third]] * 2)
  np.testing.assert_array_equal(step.obs, np.zeros((2, 1, 4)))
  assert step.obs.dtype == step.final_obs.dtype == np.float32


@pytest.mark.parametrize(
  'actions',
  [
    np.zeros(2, np.float32),
    np.zeros((2, 2), np.float32),
    np.zeros((2, 1), int),
    np.float32([[0], [1.00001]]),
    np.float32([[-2], [0]]),
    np.float32([[0], [np.nan]]),
    np.float32([[np.inf], [0]]),
  ],
)
def test_impossible_continuous_actions_raise(actions):
  envs = gym.GymnasiumEnvironments('Pendulum-v1', 2, seed=0)
  envs.reset()
  with pytest.raises(ValueError, match='actions must'):
    envs.send(actions)
  envs.send(np.zeros((2, 1), np.float32))  # nothing was sent before
  envs.recv()


@pytest.mark.usefixtures('planes')
def test_other_actions_raise():
  with pytest.raises(ValueError, match=r'HalfPlane-v0 .*to \[ ?1. inf\]'):
    gym.GymnasiumEnvironments('HalfPlane-v0', seed=0)
  with pytest.raises(ValueError, match='Grid-v0 needs .*int64'):
    gym.GymnasiumEnvironments('Grid-v0', seed=0)


@pytest.mark.parametrize(
  ('name', 'env_id'),
  [
    ('halfcheetah', 'HalfCheetah-v5'),
    ('HalfCheetah', 'HalfCheetah-v5'),
    ('half_cheetah', 'HalfCheetah-v5'),
    ('HalfCheetah-v5', 'HalfCheetah-v5'),
    ('halfcheetah-v4', 'HalfCheetah-v4'),
    ('walker2d', 'Walker2d-v5'),
    ('cartpole', 'CartPole-v1'),
    ('Pendulum', 'Pendulum-v1'),
    ('some_package:Thing-v0', 'some_package:Thing-v0'),
  ],
)
def test_names(name, env_id):
  assert gym.resolve_gymnasium(name) == env_id


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('halfcheeta', "no environment 'halfcheeta'; the closest are: HalfCheetah"),
    ('HalfCheetah-v99', "no 'HalfCheetah-v99'; the newest is HalfCheetah-v5"),
    ('qqq', "no environment 'qqq'$"),
    ('', "no environment ''$"),
  ],
)
def test_unknown_names(name, message):
  with pytest.raises(ValueError, match=message):
    gym.resolve_gymnasium(name)
  with pytest.raises(ValueError, match=message):
    gym.GymnasiumEnvironments(name, seed=0)


def test_packages_that_are_missing(monkeypatch):
  # Whatever of it was imported before must be looked for again.
  for module in [m for m in sys.modules if 'mujoco' in m]:
    monkeypatch.delitem(sys.modules, module)
  monkeypatch.setitem(sys.modules, 'mujoco', None)
  needed = r'HalfCheetah-v5 needs mujoco: pip install siamrl\[mujoco\]'
  with pytest.raises(ImportError, match=needed):
    gym.GymnasiumEnvironments('HalfCheetah', seed=0)
  with pytest.raises(ImportError, match=r'no_such_package:Thing-v0: .*package'):
    gym.GymnasiumEnvironments('no_such_package:Thing-v0', seed=0)


@MUJOCO
def test_mujoco_says_what_is_wrong_in_the_log(monkeypatch, tmp_path, caplog):
  """And leaves no file of its own behind."""
  monkeypatch.chdir(tmp_path)
  gym.GymnasiumEnvironments('HalfCheetah-v5', seed=0).close()
  assert not caplog.records
  mujoco = importlib.import_module('mujoco')
  with caplog.at_level(logging.WARNING):
    mujoco.get_mju_user_warning()('the simulation is unstable')
  assert 'unstable' in caplog.text
  assert not list(tmp_path.iterdir())


def test_the_version_of_mujoco(monkeypatch):
  monkeypatch.setattr(importlib.metadata, 'version', {'mujoco': '3.3'}.get)
  assert gym.mujoco_version() == '3.3'

  def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, 'version', missing)
  assert gym.mujoco_version() is None


def test_time_limit_truncates():
  envs = gym.GymnasiumEnvironments('MountainCar-v0', seed=0)
  envs.reset()
  for t in range(1, 401):
    envs.send(np.array([1], np.int32))
    step = envs.recv()
    assert not step.terminated[0]
    assert step.truncated[0] == (t % 200 == 0)


def test_shapes_and_types():
  envs = gym.GymnasiumEnvironments('CartPole-v1', 3, seed=0)
  assert (envs.num_envs, envs.num_actions, envs.stack) == (3, 2, 1)
  assert envs.action_dim == 0
  assert (envs.frame_shape, envs.frame_dtype) == ((4,), np.float32)
  assert envs.frames_per_step == 1
  first = envs.reset()
  envs.send(np.array([0, 1, 0]))
  step = envs.recv()
  for obs in (first, step.obs, step.final_obs):
    assert obs.shape == (3, 1, 4) and obs.dtype == np.float32
  for field, dtype in (
    ('reward', np.float32),
    ('terminated', bool),
    ('truncated', bool),
    ('life_lost', bool),
  ):
    assert getattr(step, field).shape == (3,)
    assert getattr(step, field).dtype == dtype


def test_arrays_stay_the_callers():
  envs = gym.GymnasiumEnvironments('CartPole-v1', 2, seed=0)
  kept = [(envs.reset(),)]
  copies = [(kept[0][0].copy(),)]
  actions = np.ones(2, np.int32)
  for _ in range(30):
    envs.send(actions)
    kept.append(envs.recv())
    copies.append(tuple(field.copy() for field in kept[-1]))
  for arrays, saved in zip(kept, copies, strict=True):
    for array, copy in zip(arrays, saved, strict=True):
      np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(
  ('env_id', 'actions'),
  [
    ('CartPole-v1', np.zeros(1, np.int32)),
    ('MountainCarContinuous-v0', np.zeros((1, 1), np.float32)),
  ],
)
def test_send_takes_the_actions_as_they_are(env_id, actions):
  """What the caller writes into its array afterwards does not count."""
  answers = []
  for overwrite in (False, True):
    envs = gym.GymnasiumEnvironments(env_id, seed=0)
    envs.reset()
    actions[:] = 0
    envs.send(actions)
    if overwrite:
      actions[:] = 1
    answers.append(envs.recv().obs)
  np.testing.assert_array_equal(*answers)


def test_second_reset_goes_on_in_the_random_stream():
  resets = []
  for _ in range(2):
    envs = gym.GymnasiumEnvironments('CartPole-v1', 2, seed=0)
    resets.append([envs.reset(), envs.reset()])
  np.testing.assert_array_equal(*resets)
  assert (resets[0][0] != resets[0][1]).all()


def test_discrete_observations_are_one_hot():
  envs = gym.GymnasiumEnvironments('FrozenLake-v1', 2, seed=0)
  assert (envs.frame_shape, envs.frame_dtype) == ((16,), np.float32)
  obs = envs.reset()
  np.testing.assert_array_equal(obs, np.eye(16)[[0, 0]][:, None])
  envs.send(np.array([1, 2], np.int32))
  obs = envs.recv().obs
  assert ((obs == 0) | (obs == 1)).all() and (obs.sum(-1) == 1).all()


def test_other_spaces_are_joined_to_a_vector(monkeypatch):
  space = gymnasium.spaces.Dict(
    a=gymnasium.spaces.Discrete(3), b=gymnasium.spaces.Box(-1, 1, (2,))
  )
  assert _script(monkeypatch, space=space).frame_shape == (5,)
  space = gymnasium.spaces.MultiBinary(4)
  assert _script(monkeypatch, space=space).frame_shape == (4,)
  # A hand, the dealer's card, and whether an ace counts 11.
  obs = gym.GymnasiumEnvironments('Blackjack-v1', seed=0).reset()
  assert obs.shape == (1, 1, 32 + 11 + 2)
  assert [part.sum() for part in np.split(obs[0, 0], [32, 43])] == [1, 1, 1]


@pytest.mark.parametrize('env_id', ['CartPole-v1', 'Pendulum-v1'])
def test_calls_out_of_turn_raise(env_id):
  assert_calls_out_of_turn_raise(gym.GymnasiumEnvironments(env_id, seed=0))


@pytest.mark.parametrize('bad', [-1, 3, 2**32])
def test_unknown_actions_raise(bad):
  """Acrobot itself would take -1 for its last action."""
  envs = gym.GymnasiumEnvironments('Acrobot-v1', seed=0)
  envs.reset()
  with pytest.raises(ValueError, match='actions must'):
    envs.send(np.array([bad]))


def test_constructor_out_of_range():
  with pytest.raises(ValueError, match='num_envs'):
    gym.GymnasiumEnvironments('CartPole-v1', 0, seed=0)
  with pytest.raises(ValueError, match='seed'):
    gym.GymnasiumEnvironments('CartPole-v1', seed=-1)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**64), st.integers(1, 20))
def test_seeds_are_apart_and_do_not_depend_on_how_many(seed, num_envs):
  seeds = gym.env_seeds(seed, num_envs)
  assert seeds.dtype == np.int32 and (seeds >= 0).all()
  np.testing.assert_array_equal(seeds, gym.env_seeds(seed, 20)[:num_envs])
  assert not set(seeds) & set(gym.env_seeds(seed + 1, 20))


# What an environment may do wrong.


class Script(gymnasium.Env):
  """Answers what it is told to, and reuses its array of observations."""

  def __init__(self, first=None, then=None, space=None, made=None):
    if made is not None:
      made()
    self.observation_space = space or gymnasium.spaces.Box(-9, 9, (2,))
    self.action_space = gymnasium.spaces.Discrete(2)
    self._first, self._then = first, then
    box = self.observation_space
    if isinstance(box, gymnasium.spaces.Box):
      self._obs = np.zeros(box.shape, box.dtype)

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self._obs[:] = 0
    return self._answer(self._first, (self._obs, {}))

  def step(self, action):
    self._obs += 1
    return self._answer(self._then, (self._obs, 1.0, False, False, {}))

  def _answer(self, told, usual):
    return usual if told is None else told()


def _script(monkeypatch, num_envs=1, limit=None, **arguments):
  spec = gymnasium.envs.registration.EnvSpec(
    'Script-v0',
    entry_point=lambda: Script(**arguments),
    max_episode_steps=limit,
  )
  monkeypatch.setitem(gymnasium.registry, 'Script-v0', spec)
  return gym.GymnasiumEnvironments('Script-v0', num_envs, seed=0)


def _raise(error):
  raise error


_OBS = np.zeros(2, np.float32)


def _seen(obs):
  return {'then': lambda: (obs, 1.0, False, False, {})}


def _paid(reward):
  return {'then': lambda: (_OBS, reward, False, False, {})}


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (_seen(np.float32([0, np.nan])), 'the observation of step 1 .* holds nan,'),
    (_seen(np.float32([np.inf, 0])), 'the observation of step 1 .* holds inf,'),
    (_seen(np.array([0, 1e39])), r'holds 1e\+39, which is not a finite number'),
    (_seen(np.zeros(3, np.float32)), r'float32 \[3\], and its space float32'),
    (_seen(np.zeros((2, 1), np.float32)), r'is float32 \[2, 1\], and its'),
    (_seen(np.zeros(2, complex)), r'is complex128 \[2\], and its'),
    (_seen({'position': _OBS}), r'is object \[\], and its space float32 \[2\]'),
    (_seen(None), r'is object \[\], and its space float32 \[2\]'),
    (_seen([[0], [0, 0]]), 'is not an array: '),
    (
      _seen([256, 0]) | {'space': gymnasium.spaces.Box(0, 255, (2,), np.uint8)},
      r'is int64 \[2\], and its space uint8 \[2\]',
    ),
    (
      _seen([2**31, 0]) | {'space': gymnasium.spaces.Box(0, 9, (2,), np.int32)},
      'holds numbers that int32 cannot',
    ),
    ({'first': lambda: (_OBS * np.nan, {})}, 'the first observation .* nan'),
    ({'first': lambda: _OBS}, 'reset returned one ndarray in place of'),
    ({'first': lambda: (_OBS, {}, {})}, 'reset returned 3 values in place'),
    ({'then': lambda: (_OBS, 1.0, False, {})}, 'step returned 4 values in'),
    ({'then': lambda: None}, 'step returned one NoneType in place of'),
    (_paid(None), 'the reward of step 1 of an episode is not a number: None'),
    (_paid('1'), "not a number: '1'"),
    (_paid(np.ones(1)), 'not a number: array'),
    (_paid(1j), 'not a number: 1j'),
    (_paid(float('nan')), 'the reward of step 1 of an episode is nan'),
    (_paid(np.float64(1e39)), r'the reward .* is 1e\+39'),
    (
      {'then': lambda: (_OBS, 0, None, False, {})},
      'terminated of step 1 .* is not a bool: None',
    ),
    (
      {'then': lambda: (_OBS, 0, False, 1, {})},
      'truncated of step 1 .* is not a bool: 1',
    ),
    (
      {'then': lambda: _raise(KeyError('the lost\nkey'))},
      r"step raised KeyError: 'the lost\\nkey' \(.*test_gym.py, line \d+\)$",
    ),
    ({'first': lambda: _raise(OSError('gone'))}, 'reset raised OSError: gone '),
    ({'then': lambda: _raise(AssertionError())}, r'step raised \w+ \(/'),
    ({'made': lambda: _raise(TypeError('no'))}, 'making it raised TypeError'),
  ],
)
def test_what_breaks_the_contract_is_named(monkeypatch, arguments, message):
  with pytest.raises(
    gym.BrokenEnvironmentError, match=f'^Script-v0: .*{message}'
  ) as caught:
    envs = _script(monkeypatch, **arguments)
    envs.reset()
    envs.send(np.zeros(1, np.int32))
    envs.recv()
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('reward', 'end'),
  [
    (2, False),
    (np.float32(2), np.False_),
    (np.array(2), np.array(False)),
    (np.int64(2), np.False_),
  ],
)
def test_numbers_and_bools_of_any_kind_are_taken(monkeypatch, reward, end):
  envs = _script(monkeypatch, then=lambda: ([0, 1], reward, end, end, None))
  envs.reset()
  envs.send(np.zeros(1, np.int32))
  step = envs.recv()
  assert step.reward.tolist() == [2] and step.reward.dtype == np.float32
  assert not step.terminated[0] and step.truncated.dtype == bool
  np.testing.assert_array_equal(step.obs, [[[0, 1]]])


def test_one_of_several_environments_is_enough(monkeypatch):
  rewards = iter([0.0, 0.0, 0.0, float('nan')])
  envs = _script(
    monkeypatch, 3, then=lambda: (_OBS, next(rewards), False, False, {})
  )
  envs.reset()
  envs.send(np.zeros(3, np.int32))
  envs.recv()
  envs.send(np.zeros(3, np.int32))
  with pytest.raises(gym.BrokenEnvironmentError, match='step 2 .* is nan'):
    envs.recv()


@pytest.mark.parametrize('num_envs', [1, 3])
def test_environments_may_reuse_their_arrays(monkeypatch, num_envs):
  envs = _script(monkeypatch, num_envs, limit=2)
  kept = [envs.reset()]
  for _ in range(3):
    envs.send(np.zeros(num_envs, np.int32))
    step = envs.recv()
    kept += [step.obs, step.final_obs]
  seen = [array[:, 0].max() for array in kept]
  assert seen == [0, 1, 1, 0, 2, 1, 1]
  assert seen == [array[:, 0].min() for array in kept]


def test_an_environment_that_fails_to_close_is_in_the_log(monkeypatch, caplog):
  envs = _script(monkeypatch)
  monkeypatch.setattr(Script, 'close', lambda self: _raise(OSError('stuck')))
  envs.close()
  assert 'Script-v0: close raised OSError: stuck' in caplog.text


@pytest.mark.parametrize('dtype', [np.int64, np.uint64])
def test_wide_integers_become_floats(monkeypatch, dtype):
  envs = _script(
    monkeypatch, space=gymnasium.spaces.Box(0, 2**40, (2, 2), dtype)
  )
  assert (envs.frame_shape, envs.frame_dtype) == ((4,), np.float32)
  envs._envs[0]._env.unwrapped._obs = np.zeros((2, 2), dtype)
  envs.reset()
  envs._envs[0]._env.unwrapped._obs[:] = 2**33 - 1
  envs.send(np.zeros(1, np.int32))
  np.testing.assert_array_equal(envs.recv().obs, np.full((1, 1, 4), 2.0**33))


def test_bounds_are_known_of_pixels_and_bytes_alone(monkeypatch):
  for low, high, shape, dtype, bounds in (
    (0, 255, (8, 8, 3), np.uint8, (0, 255)),
    (0, 255, (8, 8), np.float32, (0, 255)),
    (0, 255, (128,), np.int64, (0, 255)),
    (0, 1, (8, 8, 3), np.uint8, None),
    (-1, 255, (2,), np.float32, None),
  ):
    space = gymnasium.spaces.Box(low, high, shape, dtype)
    assert _script(monkeypatch, space=space).bounds == bounds


@pytest.mark.parametrize(
  ('limit', 'given', 'length'),
  [(None, 3, 3), (5, 3, 5), (2, 3, 2), (None, None, None)],
)
def test_a_limit_is_for_those_without_one(monkeypatch, limit, given, length):
  _script(monkeypatch, limit=limit)
  envs = gym.GymnasiumEnvironments('Script-v0', seed=0, max_episode_steps=given)
  envs.reset()
  ends = []
  for t in range(1, 7):
    envs.send(np.zeros(1, np.int32))
    if envs.recv().truncated[0]:
      ends.append(t)
  assert ends[:1] == ([] if length is None else [length])


@pytest.mark.parametrize(
  ('space', 'message'),
  [
    (
      gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(3)),
      'needs observations that',
    ),
    (gymnasium.spaces.Graph(gymnasium.spaces.Discrete(3), None), 'needs obs'),
    (gymnasium.spaces.Box(0, 1, (0,)), 'empty observations'),
  ],
)
def test_spaces_that_do_not_fit(monkeypatch, space, message):
  with pytest.raises(ValueError, match=f'^Script-v0 .*{message}') as caught:
    _script(monkeypatch, space=space)
  assert '\n' not in str(caught.value)
