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


@pytest.mark.parametrize('name', STATE)
def test_first_states_and_spaces_are_gymnasiums(name):
  env = make_gymnax(name)
  theirs = gymnasium.make(name)
  assert env.num_actions == theirs.action_space.n
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


@pytest.mark.parametrize('name', ['Pendulum-v1', 'MountainCarContinuous-v0'])
def test_continuous_actions_raise(name):
  with pytest.raises(ValueError, match=f'{name} has continuous actions'):
    make_gymnax(name)


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
    'assert not {"gymnax", "minatar", "ale_py"} & set(sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
