"""What JAX environments declare, held against what they answer."""

import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.envs import registry
from siamrl.envs.contract import check_jax_environment
from siamrl.envs.errors import BrokenEnvironmentError
from siamrl.types import JaxEnvironment, JaxTimestep

GOOD = JaxEnvironment(
  reset=lambda key: (jnp.int32(0), jnp.zeros(3)),
  step=lambda state, action, key: (state + 1, TIMESTEP(jnp.zeros(3))),
  num_actions=2,
  obs_shape=(3,),
  obs_dtype=np.dtype(np.float32),
  max_episode_steps=None,
)


def TIMESTEP(obs, reward=0.0, terminated=False, truncated=False):
  return JaxTimestep(
    obs, jnp.asarray(reward), jnp.asarray(terminated), jnp.asarray(truncated)
  )


def _step(*args, **kwargs):
  """An environment whose step answers a timestep of these."""
  return dict(step=lambda state, *_: (state, TIMESTEP(*args, **kwargs)))


def _fails(*_):
  raise KeyError('lost')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      _step(jnp.zeros(2)),
      r'the observation of step must be float32 \[3\], got',
    ),
    (_step(jnp.zeros(3, int)), 'the observation of step must be float32'),
    (
      dict(obs_dtype=np.dtype(np.uint8)),
      r'the observation of reset must be uint8 \[3\], got .*float32',
    ),
    (
      _step(jnp.zeros(3), jnp.zeros(1)),
      r'the reward must be float32 \[\], got',
    ),
    (_step(jnp.zeros(3), 1), 'the reward must be float32'),
    (_step(jnp.zeros(3), 0.0, 1), 'terminated must be bool'),
    (_step(jnp.zeros(3), 0.0, False, 0.0), 'truncated must be bool'),
    (dict(step=_fails), r"step raised KeyError: 'lost' \(.*test_contract.py"),
    (dict(reset=_fails), 'reset raised KeyError'),
    (dict(reset=lambda key: jnp.zeros(3)), 'reset must return two values'),
    (
      dict(step=lambda state, *_: (state, jnp.zeros(3))),
      'step must return a state and a JaxTimestep',
    ),
    (
      dict(step=lambda state, *_: (state * 0.5, TIMESTEP(jnp.zeros(3)))),
      'the states of reset and step must be alike',
    ),
    (dict(num_actions=0), 'one of num_actions and action_dim must be positive'),
    (dict(action_dim=1), 'one of num_actions and action_dim must be positive'),
    (dict(max_episode_steps=0), 'max_episode_steps must be None or at least 1'),
    (dict(reset_pool=0), 'reset_pool must be None or at least 1'),
  ],
)
def test_what_breaks_the_contract_is_named(changes, message):
  check_jax_environment('good', GOOD)
  with pytest.raises(BrokenEnvironmentError, match=f'^bad: {message}') as error:
    check_jax_environment('bad', GOOD._replace(**changes))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'name',
  ['cartpole', 'catch', 'pendulum', 'chain', 'car_on_hill', 'reacher_gymnax'],
)
def test_registered_environments_hold_to_it(name):
  check_jax_environment(name, registry.ENVIRONMENTS[name]())
