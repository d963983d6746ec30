"""What the loops may rely on, of every kind of replay alike."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.replay.device import DeviceReplay
from siamrl.replay.host import HostReplay
from siamrl.replay.prioritized import PrioritizedReplay
from siamrl.replay.protocol import PureReplay, Sampling, StatefulReplay
from siamrl.replay.rollout import Rollout

N, K, B = 2, 3, 4
RING = DeviceReplay((1,), np.float32, 12, N)
PURE: dict[str, PureReplay] = {
  'uniform': RING,
  'prioritized': PrioritizedReplay(RING),
  'rollout': Rollout((1,), np.float32, N, steps=6),
}
SAMPLING = Sampling(0.5, 0.6, 0.4)


def _host() -> StatefulReplay:
  return HostReplay(
    40, frame_shape=(1,), frame_dtype=np.float32, num_envs=N, stack=1
  )


def _step(t: int) -> dict[str, Any]:
  """The keywords of `add`, the same for every replay."""
  following = np.full((N, 1), t + 1, np.float32)
  return dict(
    action=np.full(N, t, np.int32),
    reward=np.full(N, float(t), np.float32),
    terminated=np.array([False, t == 3]),
    ended=np.array([False, t == 3]),
    final_obs=following,
    obs=following,
  )


def _filled(replay: PureReplay) -> Any:
  """The state after a round of 6 steps."""
  state = replay.start(replay.init(), np.zeros((N, 1), np.float32))
  for t in range(6):
    state = replay.add(state, t, **_step(t))
  return state


def _assert_equal(one: Any, other: Any) -> None:
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize('name', [*PURE, 'host'])
def test_steps_are_given_by_name(name):
  """A step in another order, or truncations for ends, would be learned from."""
  if name == 'host':
    host = _host()
    host.start(np.zeros((N, 1), np.float32))
    add = host.add
  else:
    state = PURE[name].init()
    add = lambda *args, **step: PURE[name].add(state, 0, *args, **step)
  step = _step(0)
  add(**step)
  with pytest.raises(TypeError, match='positional'):
    add(*step.values())
  ended = step.pop('ended')
  with pytest.raises(TypeError, match='truncated'):
    add(truncated=ended, **step)
  with pytest.raises(TypeError, match='ended'):
    add(**step)


@pytest.mark.parametrize('name', PURE)
def test_a_round_of_gradient_steps(name):
  """Nothing but what `moving` names changes, and that only by `update`."""
  replay = PURE[name]
  state = _filled(replay)
  bits = jax.random.bits(jax.random.key(0), (K, B), jnp.uint32)
  source, draws = replay.begin(state, 6, bits, SAMPLING)
  _assert_equal(replay.with_moving(state, replay.moving(state)), state)

  @jax.jit
  def learn(moving, draw):
    batch, handle = replay.sample(source, moving, 6, draw, SAMPLING)
    errors = dict.fromkeys(replay.reads, 1.0 + batch.r_t)
    return replay.update(moving, handle, errors, SAMPLING), batch

  moving = replay.moving(state)
  drawn = []
  for k in range(K):
    moving, batch = learn(moving, jax.tree.map(lambda x, k=k: x[k], draws))
    assert batch.r_t.shape == (B,) and (batch.weight is not None) == (
      name == 'prioritized'
    )
    # Observation t, action t, reward t, observation t + 1.
    np.testing.assert_array_equal(batch.a_tm1, batch.r_t)
    np.testing.assert_array_equal(batch.obs_tm1[:, 0], batch.r_t)
    drawn += batch.r_t.tolist()
  assert len(set(drawn)) > 2
  after = replay.with_moving(state, moving)
  if not replay.reads:
    _assert_equal(after, state)
    return
  np.testing.assert_array_equal(after.ring.obs, state.ring.obs)
  assert not np.array_equal(after.sums[0], state.sums[0])


@pytest.mark.parametrize('name', PURE)
def test_a_peek_has_no_weights_whatever_the_priorities(name):
  replay = PURE[name]
  state = _filled(replay)
  if replay.reads:
    moving = replay.update(
      replay.moving(state),
      jnp.arange(2),
      {'td_error_abs': jnp.full(2, 1e6)},
      SAMPLING,
    )
    state = replay.with_moving(state, moving)
  bits = jax.random.bits(jax.random.key(0), (6_000,), jnp.uint32)
  batch = replay.peek(state, 6, bits, 0.5)
  assert batch.weight is None
  counts = np.bincount(batch.a_tm1, minlength=6)
  np.testing.assert_allclose(counts, 1_000, atol=150)  # five deviations
  assert set(np.unique(batch.discount_t)) == {0.0, 0.5}


def test_a_rollout_gives_its_order_away_once():
  replay = PURE['rollout']
  seen = []

  def relabel(steps, ended):
    seen.append((steps.r_t, ended))
    return steps._replace(r_t=10 + steps.r_t)

  bits = jax.random.bits(jax.random.key(0), (K, B), jnp.uint32)
  source, draws = replay.begin(_filled(replay), 6, bits, SAMPLING, relabel)
  ((rewards, ended),) = seen
  np.testing.assert_array_equal(rewards, np.arange(6)[:, None] + [[0, 0]])
  assert np.argwhere(ended).tolist() == [[3, 1]]
  returns = [
    replay.sample(source, (), 6, draw, SAMPLING)[0].r_t for draw in draws
  ]
  # One epoch: each transition once.
  assert sorted(np.ravel(returns)) == sorted([*range(10, 16)] * 2)


@pytest.mark.parametrize('name', ['uniform', 'prioritized'])
def test_a_ring_has_no_order_to_make_returns_of(name):
  replay = PURE[name]
  bits = jnp.zeros((K, B), jnp.uint32)
  with pytest.raises(ValueError, match='relabel must be None'):
    replay.begin(_filled(replay), 6, bits, SAMPLING, lambda steps, ended: steps)


def test_a_host_replay_without_priorities_reads_nothing():
  replay = _host()
  replay.start(np.zeros((N, 1), np.float32))
  for t in range(6):
    replay.add(**_step(t))
  assert replay.reads == () and replay.sequence_steps == 0
  batch, handle = replay.sample(np.random.default_rng(0), B)
  replay.update(handle, {})
  _assert_equal(batch, replay.peek(np.random.default_rng(0), B))
  assert batch.weight is None
