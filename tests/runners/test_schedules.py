"""Online Q-learning, DQN and fitted Q-iteration, where counters agree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import twins
from siamrl.envs.tabular import chain, make_tabular
from siamrl.learner import ClockedTwin, make_learner
from siamrl.runners import offline
from siamrl.types import Schedule
from tests.runners import test_scan


def test_schedules_that_are_equal():
  online = Schedule.online()
  assert online == Schedule.dqn(1, 1) == Schedule.fitted(1, 1, collect=1)
  assert Schedule.dqn(4, 3) == Schedule.fitted(1, 3, collect=4)


# Its values are sums of few powers of 1 / 2 with the numbers below, so that no
# rounding hides or makes a difference, however programs are compiled.
ENVIRONMENT = make_tabular(chain(3), max_episode_steps=12)


@pytest.mark.parametrize(
  'collect', [1, pytest.param(4, marks=pytest.mark.slow)]
)
def test_fitting_the_latest_transition_is_learning_online(collect):
  """With a replay of one, and a twin that moves at every gradient step.

  With one env step for each it is online Q-learning, with four it is DQN. Each
  regression of fitted Q-iteration is a gradient step on all that there is.
  """
  loop = test_scan.make_loop(
    num_envs=1,
    collect=collect,
    regress=1,
    steps=collect,
    warmup=0,
    batch_size=1,
    capacity=1,
    environment=ENVIRONMENT,
  )
  settings = test_scan.make_settings(
    sync=1, learning_rate=0.25, discount=0.5, epsilon=1.0
  )
  start, iterate = test_scan.compiled(loop)
  fitted = make_learner(
    test_scan.make_agent(ENVIRONMENT),
    optax.sgd(settings['learning_rate']),
    ClockedTwin(twins.soft(settings['tau']), 1),
  )
  config = offline.OfflineConfig(Schedule.fitted(1, 1), 1)
  fit = jax.jit(offline.make_iterate(fitted, config))
  state = start(settings, jax.random.key(0))
  zeros = jax.tree.map(jnp.zeros_like, state.train.online_params)
  learned = state.train.replace(
    online_params=zeros, target_params=jax.tree.map(jnp.copy, zeros)
  )
  state = state.replace(train=learned)
  rewards = 0.0
  for number in range(16):
    state, _ = iterate(settings, state, number)
    latest = loop.replay.peek(
      state.replay,
      jnp.uint32((number + 1) * collect),
      jnp.zeros(1, jnp.uint32),
      settings['discount'],
    )
    learned, _ = fit(learned, latest, jax.random.key(1))
    rewards += float(latest.r_t[0])
    assert state.train.gradient_steps == learned.gradient_steps == number + 1
    for one, other in zip(_params(state.train), _params(learned), strict=True):
      np.testing.assert_array_equal(one, other)
  assert rewards > 0
  learned_values = np.concatenate([np.ravel(x) for x in _params(learned)])
  assert len(np.unique(learned_values)) > 2


def _params(train):
  return jax.tree.leaves((train.online_params, train.target_params))
