"""Gymnasium's environments, held against one of them stepped by hand."""

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siamrl.envs import gym
from tests.envs.turns import assert_calls_out_of_turn_raise


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


def test_send_takes_the_actions_as_they_are():
  """What the caller writes into its array afterwards does not count."""
  answers = []
  for overwrite in (False, True):
    envs = gym.GymnasiumEnvironments('CartPole-v1', seed=0)
    envs.reset()
    actions = np.zeros(1, np.int32)
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


@pytest.mark.parametrize('env_id', ['Pendulum-v1', 'FrozenLake-v1'])
def test_other_spaces_raise(env_id):
  with pytest.raises(ValueError, match=env_id):
    gym.GymnasiumEnvironments(env_id, seed=0)


def test_calls_out_of_turn_raise():
  assert_calls_out_of_turn_raise(
    gym.GymnasiumEnvironments('CartPole-v1', seed=0)
  )


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
