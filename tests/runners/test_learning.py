"""A whole run on a real task, long enough to tell whether it is learned."""

import functools

import jax
import numpy as np
import optax
import pytest

from siamrl import learner, schedule, twins
from siamrl.agents.q import make_q_agent
from siamrl.envs.gym import GymnasiumEnvironments
from siamrl.networks.q_network import mlp_network
from siamrl.replay.host import HostReplay
from siamrl.runners import evaluation, host


def _mean_return(agent, params, seed=100):
  environments = GymnasiumEnvironments('CartPole-v1', 8, seed=seed)
  *_, result = evaluation.evaluate(
    host.make_act(agent),
    params,
    environments,
    jax.random.key(seed),
    0.05,
    episodes=24,
  )
  environments.close()
  return np.mean(result.returns)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_dqn_balances_the_cart_pole():
  """CleanRL's settings, but for a shorter warm-up, exploration and run."""
  agent = make_q_agent(
    mlp_network(2), np.zeros((1, 1, 4), np.float32), td_loss='squared'
  )
  made = learner.make_learner(
    agent,
    optax.adam(2.5e-4),
    learner.ClockedTwin(twins.hard(), 50),  # 500 env steps
  )
  config = host.LoopConfig(
    schedule=schedule.make_schedule(1, 10),
    total_env_steps=60_000,
    iteration_env_steps=10_000,
    warmup_env_steps=1_000,
    batch_size=128,
    epsilon=functools.partial(
      schedule.linear_epsilon, start=1.0, end=0.05, begin=0, decay=50_000
    ),
  )
  state = host.LoopState.start(made.init(jax.random.key(0)), seed=0, num_envs=1)
  untrained = _mean_return(agent, state.train.online_params)
  for _ in host.train(
    config,
    state,
    learner=made,
    replay=HostReplay(
      10_000, frame_shape=(4,), frame_dtype=np.float32, stack=1
    ),
    make_environments=lambda seed: GymnasiumEnvironments(
      'CartPole-v1', seed=seed
    ),
    seed=0,
    act_key=jax.random.key(1),
  ):
    pass
  trained = _mean_return(agent, state.train.online_params)
  print(f'CartPole-v1: {untrained:.1f} untrained, {trained:.1f} trained')
  assert untrained < 100
  assert trained >= 195
