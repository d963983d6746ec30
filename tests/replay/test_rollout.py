"""Rounds kept in order, and learned from in whole epochs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.replay.rollout import HostRollout, Rollout, whole_epochs

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
  _, rows = whole_epochs(ROLLOUT.sequence(_filled(1), 0.5), bits)
  assert rows.shape == shape and rows.dtype == jnp.int32
  for epoch in np.asarray(rows).reshape(-1, ROLLOUT.size):
    assert sorted(epoch) == list(range(6))
  orders = np.asarray(rows).reshape(-1, 6)
  if len(orders) > 1:
    assert (orders[0] != orders[1]).any()


def _steps(seed, number, *, num_envs=2, stack=3):
  """Random steps of environments whose every frame is another number.

  Yields:
    The first frames [N, 1]; then (stacks before the action, what `add` takes,
    stacks after it, stacks to act on next).
  """
  rng = np.random.default_rng(seed)
  frames = iter(np.arange(1, 10_000, dtype=np.float32))

  def new():
    return np.array([[next(frames)] for _ in range(num_envs)])

  first = new()
  yield first
  stacks = np.repeat(first[:, None], stack, 1)
  for _ in range(number):
    frame, other = new(), new()
    terminated = rng.random(num_envs) < 0.3  # some are lost lives
    ended = rng.random(num_envs) < 0.4
    final = np.concatenate([stacks[:, 1:], frame[:, None]], 1)
    after = np.where(
      ended[:, None, None], np.repeat(other[:, None], stack, 1), final
    )
    yield (
      stacks,
      dict(
        action=rng.integers(5, size=num_envs).astype(np.int32),
        reward=rng.normal(size=num_envs).astype(np.float32),
        terminated=terminated,
        ended=ended,
        final_obs=frame,
        obs=np.where(ended[:, None], other, frame),
      ),
      final,
      after,
    )
    stacks = after


def _on_host(steps=4):
  return HostRollout(
    steps,
    num_envs=2,
    stack=3,
    frame_shape=(1,),
    frame_dtype=np.float32,
    discount=0.5,
  )


@pytest.mark.parametrize('seed', range(5))
def test_both_kinds_keep_the_same_rounds(seed):
  """One stores whole stacks on the device, the other single frames."""
  pure = Rollout((3, 1), np.float32, num_envs=2, steps=4)
  host, add = _on_host(), jax.jit(pure.add)
  first, *steps = _steps(seed, 12)
  host.start(first)
  state = pure.start(pure.init(), np.repeat(first[:, None], 3, 1))
  for t, (_, step, final, after) in enumerate(steps):
    host.add(**step)
    state = add(state, t, **step | dict(final_obs=final, obs=after))
    if t % 4 == 3:
      expected, found = pure.sequence(state, 0.5), host.sequence()
      for x, y in zip(
        jax.tree.leaves(expected), jax.tree.leaves(found), strict=True
      ):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    host.check()


def test_a_round_of_nothing_but_ends_fits():
  """Whatever the stack was before, and after fresh environments."""
  host = _on_host()
  first, *steps = _steps(0, 40)
  host.start(first)
  for t, (_, step, _, _) in enumerate(steps):
    if t % 8 == 0:
      host.start(step['obs'])
    host.add(**step | dict(ended=np.full(2, t % 8 >= 4), obs=step['obs'] + 0.5))
    if t % 4 == 3:
      found = host.sequence()
      actions = [each['action'] for _, each, _, _ in steps[t - 3 : t + 1]]
      np.testing.assert_array_equal(found.transitions.a_tm1, actions)
      assert (found.ended == (t % 8 >= 4)).all()


def test_a_panel_sees_the_last_round_only(tmp_path):
  host = _on_host()
  first, *steps = _steps(1, 8)
  host.start(first)
  with pytest.raises(ValueError, match='fewer than 4 steps'):
    host.sequence()
  for _, step, _, _ in steps:
    host.add(**step)
  seen = host.peek(np.random.default_rng(0), 200)
  rewards = np.ravel([step['reward'] for _, step, _, _ in steps])
  assert set(seen.r_t) == set(rewards[8:])
  # And it is restored as it was, for a stack that began before the round.
  other = _on_host()
  other.load(tmp_path, host.save(tmp_path))
  for x, y in zip(
    jax.tree.leaves(host.sequence()),
    jax.tree.leaves(other.sequence()),
    strict=True,
  ):
    np.testing.assert_array_equal(x, y)
