"""gymnax's environments: Gymnasium's own dynamics, ends, kinds of numbers."""

import functools
import importlib.metadata
import subprocess
import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.envs.gymnax import make_gymnax

gymnax = pytest.importorskip('gymnax')

KEY = jax.random.key(0)
# Of gymnax's state, what Gymnasium calls its state.
STATE = {
  'CartPole-v1': ('x', 'x_dot', 'theta', 'theta_dot'),
  'Acrobot-v1': ('joint_angle1', 'joint_angle2', 'velocity_1', 'velocity_2'),
  'MountainCar-v0': ('position', 'velocity'),
}
PLANES = ('Catch-bsuite', 'DeepSea-bsuite')
NUMBERS = (
  'DiscountingChain-bsuite',
  'MemoryChain-bsuite',
  'UmbrellaChain-bsuite',
)


def _action(name, theirs, t, rng):
  """Random at first; for a hill or a swing, then along with the motion."""
  if name == 'CartPole-v1':
    return int(rng.integers(2)) if t % 100 > 30 else t % 2
  if rng.random() < 0.2:
    return int(rng.integers(3))
  return 2 if theirs.state[-1] > 0 else 0


@pytest.mark.parametrize('name', STATE)
def test_steps_are_gymnasiums(name):
  """Action by action, from each state of an episode, to its end."""
  env = make_gymnax(name, max_steps_in_episode=None)
  step = jax.jit(env.step)
  theirs = gymnasium.make(name).unwrapped
  theirs.reset(seed=0)
  rng = np.random.default_rng(0)
  ends = 0
  for episode in range(4):
    state, obs = env.reset(jax.random.key(episode))
    for t in range(400):
      theirs.state = np.array(
        [getattr(state, field) for field in STATE[name]], np.float64
      )
      action = _action(name, theirs, t, rng)
      want, reward, terminated, truncated, _ = theirs.step(action)
      state, timestep = step(state, jnp.int32(action), KEY)
      np.testing.assert_allclose(timestep.obs, want, rtol=1e-5, atol=1e-5)
      assert timestep.reward == reward
      assert timestep.terminated == terminated
      assert timestep.truncated == truncated == False  # noqa: E712
      if terminated:
        ends += 1
        theirs.reset()  # else CartPole warns
        break
  assert ends == 4


# Of those with continuous actions, what Gymnasium calls the state, one at its
# ends, and the largest action.
CONTROL = {
  'Pendulum-v1': (('theta', 'theta_dot'), (40.0, -7.9), 2),
  'MountainCarContinuous-v0': (('position', 'velocity'), (-1.19, -0.06), 1),
}


@pytest.mark.parametrize('name', CONTROL)
def test_steps_with_continuous_actions_are_gymnasiums(name):
  """From states of whole episodes, and from one at the ends; also clipped.

  Pendulum never terminates, and is truncated after 200 steps.
  """
  fields, end, largest = CONTROL[name]
  env = make_gymnax(name)
  step = jax.jit(env.step)
  theirs = gymnasium.make(name)
  rng = np.random.default_rng(0)
  ends, cap = [], env.max_episode_steps
  for episode in range(2):
    theirs.reset(seed=episode)
    state, _ = env.reset(jax.random.key(episode))
    for t in range(1, cap + 1):
      now = [getattr(state, field) for field in fields]
      if t == 50 and episode:
        now = [jnp.float32(value) for value in end]
        state = state.replace(**dict(zip(fields, now, strict=True)))
      theirs.unwrapped.state = np.array(now, np.float64)
      action = rng.uniform(-1.5, 1.5, 1).astype(np.float32)
      if episode:  # along with the motion, which gathers speed
        action = np.abs(action) * np.sign(now[1])
      want, reward, *flags = theirs.step(action.clip(-1, 1) * largest)[:4]
      state, timestep = step(state, action, KEY)
      np.testing.assert_allclose(timestep.obs, want, rtol=1e-5, atol=2e-5)
      np.testing.assert_allclose(timestep.reward, reward, rtol=1e-4, atol=1e-5)
      if any(flags):
        ends.append((t, timestep.terminated, timestep.truncated))
        assert ends[-1][1:] == (flags[0], flags[1] and not flags[0])
        break
      assert not timestep.terminated and not timestep.truncated
  assert ends[0] == (cap, False, True)
  if name == 'Pendulum-v1':
    assert ends[1] == ends[0]
  else:
    assert ends[1][0] < cap and ends[1][1:] == (True, False)


def test_the_car_stops_at_the_left_wall():
  env = make_gymnax('MountainCarContinuous-v0')
  state, _ = env.reset(KEY)
  state = state.replace(
    position=jnp.float32(-1.19), velocity=jnp.float32(-0.06)
  )
  after, timestep = jax.jit(env.step)(state, jnp.float32([-1]), KEY)
  np.testing.assert_array_equal(timestep.obs, np.float32([-1.2, 0]))
  assert after.velocity == 0


@pytest.mark.parametrize('name', ['Reacher-misc', 'Swimmer-misc'])
def test_torques_and_thrusts_add_up(name):
  """Under steady forces speeds grow evenly; observations tell the reward."""
  env = make_gymnax(name)
  assert (env.num_actions, env.action_dim) == (0, 2)
  state, obs = env.reset(KEY)
  force = np.float32([0.5, -2])  # the second is clipped to -1
  speed = slice(4, 6) if name == 'Reacher-misc' else slice(12, 14)
  first, step = np.asarray(obs), jax.jit(env.step)
  for t in range(1, 21):
    state, timestep = step(state, force, KEY)
    obs = np.asarray(timestep.obs)
    np.testing.assert_allclose(
      obs[speed], first[speed] + 0.05 * t * np.array([0.5, -1]), rtol=1e-4
    )
    goal = obs[-2:]
    if name == 'Reacher-misc':
      place = obs[:2].sum(), obs[2:4].sum()  # of two links of length 1
      near = 1.0
    else:
      place = obs[10:12]
      urchins = obs[:10].reshape(5, 2)
      near = 1 - np.exp(-30 * np.square(place - urchins).sum(axis=1))
    width = 1 if name == 'Reacher-misc' else 0.5
    want = np.exp(-width * np.square(place - goal).sum()) * np.prod(near)
    np.testing.assert_allclose(timestep.reward, want, rtol=1e-4)
    assert not timestep.terminated and not timestep.truncated


@pytest.mark.parametrize('name', [*STATE, *CONTROL])
def test_first_states_and_spaces_are_gymnasiums(name):
  env = make_gymnax(name)
  theirs = gymnasium.make(name)
  actions = theirs.action_space
  if name in CONTROL:
    assert (env.num_actions, env.action_dim) == (0, *actions.shape)
  else:
    assert (env.num_actions, env.action_dim) == (actions.n, 0)
  assert env.obs_shape == theirs.observation_space.shape
  assert env.obs_dtype == theirs.observation_space.dtype
  assert env.max_episode_steps == theirs.spec.max_episode_steps
  _, obs = jax.vmap(env.reset)(jax.random.split(KEY, 500))
  want = np.stack([theirs.reset(seed=seed)[0] for seed in range(500)])
  np.testing.assert_allclose(obs.min(0), want.min(0), atol=0.01)
  np.testing.assert_allclose(obs.max(0), want.max(0), atol=0.01)


def _at_the_edge(name):
  """The last state before the end, and the action that leads to it."""
  env = make_gymnax(name)
  state, _ = env.reset(KEY)
  state = state.replace(time=jnp.int32(env.max_episode_steps - 1))
  if name == 'CartPole-v1':
    return env, state, state.replace(x=jnp.float32(2.39), x_dot=3.0), 0
  if name == 'Acrobot-v1':
    # Upright: both links above the pole.
    return env, state, state.replace(joint_angle1=jnp.float32(3.1)), 1
  return env, state, state.replace(position=jnp.float32(0.49), velocity=0.05), 2


@pytest.mark.parametrize('name', STATE)
def test_an_end_at_the_cap_is_a_termination_only(name):
  env, inside, edge, action = _at_the_edge(name)
  _, timestep = env.step(inside, jnp.int32(action), KEY)
  assert timestep.truncated and not timestep.terminated
  _, timestep = env.step(edge, jnp.int32(action), KEY)
  assert timestep.terminated and not timestep.truncated


@functools.cache
def _made(name, **settings):
  env = make_gymnax(name, **settings)
  return env, jax.jit(env.step)


def _episode(name, actions, **settings):
  """One episode; `actions` is called with the state."""
  env, step = _made(name, **settings)
  state, _ = env.reset(KEY)
  rewards = []
  for t in range(1000):
    action = jnp.int32(actions(state))
    state, timestep = step(state, action, jax.random.fold_in(KEY, t))
    rewards.append(float(timestep.reward))
    if timestep.terminated or timestep.truncated:
      return env, rewards, timestep
  raise AssertionError('no end')


@pytest.mark.parametrize(
  'name, settings, actions, steps, total',
  [
    # The paddle follows the ball; runs from it.
    ('Catch-bsuite', {}, lambda s: jnp.sign(s.ball_x - s.paddle_x) + 1, 9, 1),
    ('Catch-bsuite', {}, lambda s: jnp.where(s.ball_x > 2, 0, 2), 9, -1),
    # Always right, less the cost of the moves; always left.
    (
      'DeepSea-bsuite',
      {},
      lambda s: s.action_mapping[s.row, s.column],
      8,
      0.99,
    ),
    ('DeepSea-bsuite', {}, lambda s: 1 - s.action_mapping[s.row, 0], 8, 0),
    ('DeepSea-bsuite', {'size': 5}, lambda s: 0, 5, None),
    # The bit that was shown; the other one.
    ('MemoryChain-bsuite', {}, lambda s: s.context[0], 6, 1),
    ('MemoryChain-bsuite', {}, lambda s: 1 - s.context[0], 6, -1),
    ('MemoryChain-bsuite', {'memory_length': 2}, lambda s: s.context[0], 3, 1),
    ('UmbrellaChain-bsuite', {}, lambda s: s.need_umbrella, 10, None),
    # Each chain pays 1, but the first 1.1, after 1, ..., 100 steps.
    ('DiscountingChain-bsuite', {}, lambda s: 0, 100, 1.1),
    ('DiscountingChain-bsuite', {}, lambda s: 4, 100, 1),
  ],
)
def test_bsuite_ends_itself(name, settings, actions, steps, total):
  env, rewards, last = _episode(name, actions, **settings)
  assert len(rewards) == steps
  assert last.terminated and not last.truncated
  assert env.max_episode_steps is None
  if total is not None:
    assert sum(rewards) == pytest.approx(total)


def test_umbrella_pays_at_the_end_of_the_chain():
  name = 'UmbrellaChain-bsuite'
  for take, want in (
    (lambda s: s.need_umbrella, 1),
    (lambda s: 1 - s.need_umbrella, -1),
  ):
    _, rewards, _ = _episode(name, take)
    assert rewards[-1] == want
    assert set(rewards[:-1]) == {-1, 1}


@pytest.mark.parametrize('name', PLANES + NUMBERS)
def test_bool_where_observations_are_zeros_and_ones(name):
  """Held against gymnax's own floats."""
  env = make_gymnax(name)
  theirs, params = gymnax.make(name)
  raw, state = theirs.reset_env(KEY, params)
  raws = [np.asarray(raw)]
  while not theirs.is_terminated(state, params) and len(raws) < 5:
    raw, state, *_ = theirs.step_env(KEY, state, jnp.int32(1), params)
    raws.append(np.asarray(raw))
  binary = bool(np.isin(raws, (0, 1)).all())
  assert binary == (name in PLANES)
  assert env.obs_dtype == (np.dtype(bool) if binary else np.float32)
  _, obs = env.reset(KEY)
  np.testing.assert_array_equal(obs, raws[0])


def test_a_smaller_cap_truncates_what_would_end_itself():
  env, rewards, last = _episode(
    'Catch-bsuite', lambda s: 1, max_steps_in_episode=4
  )
  assert env.max_episode_steps == 4
  assert len(rewards) == 4 and last.truncated and not last.terminated
  env, rewards, last = _episode(
    'Catch-bsuite', lambda s: 1, max_steps_in_episode=9
  )
  assert env.max_episode_steps is None
  assert len(rewards) == 9 and last.terminated and not last.truncated


def test_settings():
  assert make_gymnax('Catch-bsuite', rows=7, columns=6).obs_shape == (7, 6)
  heavy = make_gymnax('CartPole-v1', gravity=20.0, max_steps_in_episode=30)
  assert heavy.max_episode_steps == 30
  assert make_gymnax('CartPole-v1', max_steps_in_episode=None)[5] is None
  light = make_gymnax('CartPole-v1')
  state, _ = light.reset(KEY)
  after = [e.step(state, jnp.int32(0), KEY)[1].obs for e in (heavy, light)]
  assert (after[0] != after[1]).any()
  with pytest.raises(TypeError, match='gravitas'):
    make_gymnax('CartPole-v1', gravitas=1)


@pytest.mark.parametrize(
  'settings, bounds',
  [
    ({'max_action': float('inf')}, r'from \[-1.\] to \[inf\]'),
    ({'min_action': float('-inf')}, r'from \[-inf\] to \[1.\]'),
    ({'max_action': float('nan')}, r'from \[-1.\] to \[nan\]'),
  ],
)
def test_actions_without_bounds_raise(settings, bounds):
  name = 'MountainCarContinuous-v0'
  with pytest.raises(ValueError, match=f'{name} has actions {bounds}'):
    make_gymnax(name, **settings)


def test_actions_are_stretched_to_bounds_of_any_kind():
  """Held against the speed that a force gives the car."""
  env = make_gymnax('MountainCarContinuous-v0', min_action=-1, max_action=3)
  state, _ = env.reset(KEY)
  state = state.replace(position=jnp.float32(-jnp.pi / 6))  # on the level
  step = jax.jit(env.step)
  for action, force in ((-2, -1), (-1, -1), (0, 1), (0.5, 2), (1, 3), (9, 3)):
    _, timestep = step(state, jnp.full(1, action, jnp.float32), KEY)
    np.testing.assert_allclose(
      timestep.obs[1], 0.0015 * force, rtol=1e-4, atol=1e-8
    )


def test_unknown_names_raise():
  with pytest.raises(ValueError, match='CartPole-v7'):
    make_gymnax('CartPole-v7')


def test_without_gymnax(monkeypatch):
  monkeypatch.setitem(sys.modules, 'gymnax', None)
  with pytest.raises(ImportError, match=r'pip install siamrl\[gymnax\]'):
    make_gymnax('CartPole-v1')


@pytest.mark.parametrize('version', ['0.0.9', '1.0.0', '2.0.0'])
def test_with_another_gymnax(monkeypatch, version):
  monkeypatch.setattr(importlib.metadata, 'version', lambda name: version)
  with pytest.raises(ImportError, match=f'1.0.1.*found {version}'):
    make_gymnax('CartPole-v1')


def test_imported_only_when_needed():
  code = (
    'import sys, siamrl.envs.registry; '
    'assert not {"gymnax", "minatar", "ale_py", "mujoco"} & set(sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
