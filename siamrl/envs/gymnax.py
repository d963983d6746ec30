"""Environments of gymnax, which are JAX functions themselves.

gymnax (github.com/RobertTLange/gymnax) is optional, and imported only when an
environment is made. It answers what its own sources say, but for two things.
Observations of zeros and ones only are bool. And DiscountingChain terminates
after its 100 steps, as in bsuite, where gymnax truncates it.

Of its small environments, those that `siamrl.envs.registry` offers were
checked. SimpleBandit is not among them: gymnax deals its arms anew at each
reset, so that there is nothing to learn.
"""

from collections.abc import Callable
import importlib
import importlib.metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from siamrl.types import JaxEnvironment, JaxTimestep

_NEEDED = 'needs gymnax >= 1.0.1, < 2: pip install siamrl[gymnax]'
# Their observations are planes of zeros and ones, which gymnax has in float32.
_BINARY = frozenset(
  {
    'Asterix-MinAtar',
    'Breakout-MinAtar',
    'Catch-bsuite',
    'DeepSea-bsuite',
    'Freeway-MinAtar',
    'Seaquest-MinAtar',
    'SpaceInvaders-MinAtar',
  }
)
# Steps after which an episode always terminates, so that no larger cap on them
# ever truncates one.
_LENGTHS: dict[str, Callable[[Any, Any], int]] = {
  'Catch-bsuite': lambda env, params: env.rows - 1,
  'DeepSea-bsuite': lambda env, params: env.size,
  'MemoryChain-bsuite': lambda env, params: params.memory_length + 1,
  'UmbrellaChain-bsuite': lambda env, params: params.chain_length,
}
# The end of time is part of the task, and shown in the observation.
_TIMED = frozenset({'DiscountingChain-bsuite'})


def _gymnax() -> Any:
  """The module `gymnax`, imported only where it is needed."""
  try:
    # By name, since importing it starts JAX, and it has no types to check.
    gymnax = importlib.import_module('gymnax')
    version = importlib.metadata.version('gymnax')
  except ImportError as error:
    raise ImportError(f'this environment {_NEEDED}') from error
  # Before 1.0 a step folded the cap on steps into what it called done.
  if not version.startswith('1.') or version == '1.0.0':
    raise ImportError(f'this environment {_NEEDED}; found {version}')
  return gymnax


def make_gymnax(name: str, **settings: Any) -> JaxEnvironment:
  """An environment of gymnax.

  Args:
    name: gymnax's own, such as 'CartPole-v1' or 'Breakout-MinAtar'.
    **settings: arguments of its constructor (`use_minimal_action_set=False`) or
      fields of its parameters (`max_steps_in_episode=100`, `gravity=5.0`). A
      `max_steps_in_episode` of None takes the cap away.

  Returns:
    the environment. A step is gymnax's `step_env`, which never resets.

  Raises:
    ImportError: gymnax is not installed, or of another version.
    ValueError: gymnax has no such environment, its actions are continuous, or
      its observations are not one array.
  """
  gymnax = _gymnax()
  env, params = gymnax.make(name)
  if settings:
    fields = settings.keys() & set(params.__dataclass_fields__)
    env, params = gymnax.make(
      name, **{key: settings[key] for key in settings.keys() - fields}
    )
    params = params.replace(
      # None stays out of the parameters: observations may be divided by them.
      **{key: settings[key] for key in fields if settings[key] is not None}
    )
  if not isinstance(
    env.action_space(params), gymnax.environments.spaces.Discrete
  ):
    raise ValueError(f'{name} has continuous actions; only discrete ones fit')

  cap: int | None = settings.get(
    'max_steps_in_episode', params.max_steps_in_episode
  )
  timed = name in _TIMED and cap is not None
  if timed or (
    cap is not None and name in _LENGTHS and _LENGTHS[name](env, params) <= cap
  ):
    cap = None

  key = jax.eval_shape(lambda: jax.random.key(0))
  action = jax.ShapeDtypeStruct((), jnp.int32)
  first_obs, first = jax.eval_shape(lambda k: env.reset_env(k, params), key)
  if not isinstance(first_obs, jax.ShapeDtypeStruct):
    raise ValueError(f'{name} observes {first_obs}; only one array fits')
  obs_dtype = np.dtype(bool if name in _BINARY else first_obs.dtype)
  _, after, *_ = jax.eval_shape(
    lambda k, state, a: env.step_env(k, state, a, params), key, first, action
  )
  dtypes = jax.tree.map(lambda leaf: leaf.dtype, after)

  def reset(key: jax.Array) -> tuple[Any, jax.Array]:
    obs, state = env.reset_env(key, params)
    # gymnax begins with Python's numbers; a step answers with arrays. Alike,
    # they fit into one scan.
    state = jax.tree.map(jnp.asarray, state, dtypes)
    return state, obs.astype(obs_dtype)

  def step(
    state: Any, action: jax.Array, key: jax.Array
  ) -> tuple[Any, JaxTimestep]:
    obs, state, reward, terminated, _ = env.step_env(key, state, action, params)
    terminated = jnp.asarray(terminated, bool)
    truncated = jnp.zeros((), bool)
    if timed:
      terminated |= env.is_truncated(state, params)
    elif cap is not None:
      truncated = env.is_truncated(state, params) & ~terminated
    return state, JaxTimestep(
      obs=obs.astype(obs_dtype),
      reward=jnp.asarray(reward, jnp.float32),
      terminated=terminated,
      truncated=truncated,
    )

  return JaxEnvironment(
    reset=reset,
    step=step,
    num_actions=int(env.num_actions),
    obs_shape=first_obs.shape,
    obs_dtype=obs_dtype,
    max_episode_steps=cap,
  )
