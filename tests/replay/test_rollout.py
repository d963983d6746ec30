"""Rounds kept in order, and learned from in whole epochs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.replay.rollout import Rollout

ROLLOUT = Rollout((1,), np.float32, num_envs=2, steps=3)


def _row(*values):
  return jnp.array(values, jnp.float32)[:, None]


def _filled(rounds):
  """Two environments whose observations count 10, 11, ... and 20, 21, ..."""
  state = ROLLOUT.start(ROLLOUT.init(), _row(10, 20))
  add = jax.jit(ROLLOUT.add)
  for t in range(3 * rounds):
    # Environment 0 is truncated at every second step; 1 terminates at t = 2.
    cut, dead = t % 2 == 1, t == 2
    state = add(
      state,
      t,
      action=jnp.array([t, t + 1]),
      reward=jnp.array([1.0 * t, 2.0 * t]),
      terminated=jnp.array([False, dead]),
      ended=jnp.array([cut, dead]),
      final_obs=_row(11 + t, 21 + t),
      obs=_row(10 if cut else 11 + t, 20 if dead else 21 + t),
    )
  return state


def test_a_round_in_order():
  steps, ended = ROLLOUT.sequence(_filled(1), 0.5)
  np.testing.assert_array_equal(
    steps.obs_tm1[..., 0], [[10, 20], [11, 21], [10, 22]]
  )
  # What followed is never an observation from after a reset.
  np.testing.assert_array_equal(
    steps.obs_t[..., 0], [[11, 21], [12, 22], [13, 23]]
  )
  np.testing.assert_array_equal(steps.a_tm1, [[0, 1], [1, 2], [2, 3]])
  np.testing.assert_array_equal(steps.r_t, [[0, 0], [1, 2], [2, 4]])
  # A truncation bootstraps, a termination does not.
  np.testing.assert_array_equal(
    steps.discount_t, [[0.5, 0.5], [0.5, 0.5], [0.5, 0]]
  )
  np.testing.assert_array_equal(
    ended, [[False, False], [True, False], [False, True]]
  )


def test_the_next_round_takes_its_place():
  steps, _ = ROLLOUT.sequence(_filled(2), 0.5)
  np.testing.assert_array_equal(steps.a_tm1, [[3, 4], [4, 5], [5, 6]])
  np.testing.assert_array_equal(
    steps.obs_tm1[..., 0], [[13, 20], [10, 24], [15, 25]]
  )


def test_continuous_actions_are_kept_as_they_are():
  rollout = Rollout((1,), np.float32, num_envs=2, steps=2, action_dim=3)
  state = rollout.start(rollout.init(), _row(1, 2))
  rng = np.random.default_rng(0)
  actions = rng.uniform(-1, 1, (2, 2, 3)).astype(np.float32)
  no, obs = jnp.zeros(2, bool), _row(1, 2)
  step = dict(reward=jnp.zeros(2), terminated=no, ended=no)
  step |= dict(final_obs=obs, obs=obs)
  add = jax.jit(rollout.add)
  for t in range(2):
    state = add(state, t, action=actions[t], **step)
  steps, _ = rollout.sequence(state, 0.5)
  assert steps.a_tm1.dtype == jnp.float32
  np.testing.assert_array_equal(steps.a_tm1, actions)
  batch = rollout.peek(state, 2, jnp.uint32([3, 0, 1]), 0.5)
  np.testing.assert_array_equal(batch.a_tm1, actions.reshape(4, 3)[[3, 0, 1]])


@pytest.mark.parametrize('shape', [(1, 6), (3, 2), (6, 2), (4, 3)])
def test_every_epoch_holds_each_transition_once(shape):
  bits = jax.random.bits(jax.random.key(0), shape, jnp.uint32)
  rows = ROLLOUT.shuffle(bits)
  assert rows.shape == shape and rows.dtype == jnp.int32
  for epoch in np.asarray(rows).reshape(-1, ROLLOUT.size):
    assert sorted(epoch) == list(range(6))
  orders = np.asarray(rows).reshape(-1, 6)
  if len(orders) > 1:
    assert (orders[0] != orders[1]).any()
