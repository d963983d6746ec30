"""The host loop with a prioritized replay."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.replay.host_prioritized import PrioritizedHostReplay
from siamrl.runners import host
from tests import probes
from tests.runners.test_host import (
  GAMMA,
  MODES,
  _agent,
  _assert_same,
  _config,
  _error,
  _learn,
  _learner,
  _train,
)


def _replay(tables, num_envs=1, capacity=1_200, alpha=0.6):
  return PrioritizedHostReplay(
    capacity,
    alpha=alpha,
    beta=lambda env_steps: min(0.4 + env_steps / 1_000, 1.0),
    frame_shape=(len(tables.rewards),),
    frame_dtype=np.float32,
    num_envs=num_envs,
    stack=1,
    discount=GAMMA,
  )


def test_it_learns_the_values_of_the_chain():
  tables, num_envs = probes.chain(), 2
  before, run = _learn(
    tables,
    num_envs=num_envs,
    replay=_replay(tables, num_envs, 2_000 * num_envs),
    overlapped=True,
  )
  assert before > 0.3
  assert _error(run, tables) < 0.1
  run.replay.check()
  assert len(set(run.replay.priorities.tolist())) > 100


@pytest.mark.parametrize('num_envs', [1, 3])
@MODES
def test_a_run_resumes_bit_for_bit(overlapped, num_envs, tmp_path):
  tables = probes.chain()
  config = _config(num_envs=num_envs, train_period=3, overlapped=overlapped)
  train = functools.partial(_train, config, tables, num_envs=num_envs)
  # So few places that transitions are overwritten before their update.
  fresh = functools.partial(_replay, tables, num_envs, 60)
  first = train(until=75, replay=fresh())
  manifest = first.replay.save(tmp_path)
  saved = json.loads(json.dumps([first.state.to_json(), manifest]))
  learned = jax.tree.map(jnp.copy, first.state.train)
  replay = fresh()
  replay.load(tmp_path, saved[1])
  state = host.LoopState.from_json(learned, saved[0])
  second = train(state=state, replay=replay)
  whole = train(replay=fresh())
  _assert_same(whole, second._replace(rows=first.rows + second.rows))
  whole.replay.check()
  leaves = whole.replay.priorities
  np.testing.assert_array_equal(leaves, replay.priorities)
  assert whole.replay._largest == replay._largest
  assert len(set(leaves.tolist())) > 10


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('num_envs, train_period', [(1, 3), (4, 1)])
def test_a_priority_that_is_not_finite_ends_the_run(
  bad, num_envs, train_period
):
  """The gradient step is named, though all losses are finite."""
  tables = probes.chain()
  plain = _learner(_agent(tables)).regress

  def regress(state, batch):
    state, metrics = plain(state, batch)
    late = state.gradient_steps >= 9
    error = metrics['td_error_abs'].at[0].set(jnp.where(late, bad, 1.0))
    return state, metrics | {'td_error_abs': error}

  config = _config(num_envs=num_envs, train_period=train_period, env_steps=96)
  match = f'^td_error_abs={bad} at gradient step 9$'
  with pytest.raises(host.NonFiniteError, match=match):
    _train(
      config,
      tables,
      num_envs=num_envs,
      replay=_replay(tables, num_envs),
      regress=regress,
    )
