"""Learning from each transition once, in both loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl import twins
from siamrl.agents.q import make_q_agent
from siamrl.agents.streams import make_stream_q
from siamrl.learner import ClockedTwin, make_learner
from siamrl.networks.q_network import mlp_network
from siamrl.obgd import obgd
from siamrl.replay.rollout import HostRollout, Rollout
from siamrl.runners import host
from siamrl.types import Schedule
from tests import probes
from tests.runners.test_scan import (
  ENVIRONMENT,
  assert_close,
  make_loop,
  make_settings,
  run_alone,
)

GAMMA = 0.8


def test_compiled_runs_without_lambda_are_a_replay_of_one_transition():
  """Traces of a stream are those of its own order, here none."""
  network = mlp_network(ENVIRONMENT.num_actions, sizes=())
  obs = jnp.zeros((1, *ENVIRONMENT.obs_shape), ENVIRONMENT.obs_dtype)
  settings = make_settings(sync=1, learning_rate=0.1)
  plan = dict(num_envs=1, batch_size=1, steps=200, warmup=2, capacity=1)
  plan |= Schedule.online()._asdict()
  stream, plain = (
    make_loop(**plan, make_agent=lambda environment, agent=agent: agent)
    for agent in (
      make_stream_q(network, obs, trace_lambda=0.0, reward_scaling='none'),
      make_q_agent(network, obs, td_loss='half_squared'),
    )
  )
  rollout = Rollout(ENVIRONMENT.obs_shape, ENVIRONMENT.obs_dtype, 1, steps=1)
  stream = dataclasses.replace(stream, replay=rollout)
  one, (row,) = run_alone(stream, settings)
  other, _ = run_alone(plain, settings)
  assert int(one.train.gradient_steps) == 198
  assert_close(one.train.online_params, other.train.online_params)
  assert np.isfinite(row['td_error'])


@pytest.mark.parametrize(
  'tables',
  [probes.delayed(), probes.truncated_far_from_start(), probes.terminated(3)],
  ids=['delayed', 'truncated', 'terminated'],
)
def test_the_host_loop_learns_the_values_of_a_probe(tables):
  states, actions = tables.rewards.shape
  agent = make_stream_q(
    mlp_network(actions, sizes=()),
    np.zeros((1, 1, states), np.float32),
    reward_scaling='none',
  )
  made = make_learner(agent, obgd(1.0), ClockedTwin(twins.self_copy()))
  config = host.LoopConfig(
    schedule=Schedule.online(),
    total_env_steps=1_000,
    iteration_env_steps=500,
    warmup_env_steps=0,
    batch_size=1,
    epsilon=lambda t: 0.5,
  )
  train = made.init(jax.random.key(0))
  state = host.LoopState.start(train, seed=0, num_envs=1)
  exact = tables.q_values(GAMMA)

  def error():
    q = agent.values(state.train.online_params, tables.observations)
    return np.max(np.abs(q - exact))

  assert error() > 0.2
  rows = [
    metrics
    for _, metrics in host.train(
      config,
      state,
      learner=made,
      replay=HostRollout(
        1,
        frame_shape=(states,),
        frame_dtype=np.float32,
        num_envs=1,
        stack=1,
        discount=GAMMA,
      ),
      make_environments=probes.make(tables),
      seed=0,
      act_key=jax.random.key(1),
    )
    if metrics is not None
  ]
  assert error() < 0.02 * np.max(exact)
  assert rows[-1]['gradient_steps'] == 1_000
