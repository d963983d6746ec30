"""Environments of gymnax, which are written in JAX.

gymnax (github.com/RobertTLange/gymnax) is optional, and imported only when an
environment is made. Environments behave as in gymnax, with these exceptions.
Observations of zeros and ones only are bool. DiscountingChain terminates after
its 100 steps, as in bsuite, while gymnax truncates it. The car of
MountainCarContinuous stops at the left wall, as in Gymnasium (and in gymnax
with discrete actions), while in gymnax it keeps its speed.

Continuous actions in [-1, 1] are scaled to the bounds of the environment.

The small environments in `siamrl.envs.registry` were checked. Two are left out:
SimpleBandit shuffles its arms at each reset, so that there is nothing to learn,
and PointRobot does not show the goal, which changes at each reset.
"""

from collections.abc import Callable
import importlib.metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from siamrl.optional import OptionalImportError, import_optional
from siamrl.types import JaxEnvironment, JaxTimestep

_NEEDS = 'this environment needs gymnax >= 1.0.1, < 2'
# Their observations are planes of zeros and ones, in float32 in gymnax.
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
# Steps after which an episode always terminates, so that a larger cap never
# truncates one.
_LENGTHS: dict[str, Callable[[Any, Any], int]] = {
  'Catch-bsuite': lambda env, params: env.rows - 1,
  'DeepSea-bsuite': lambda env, params: env.size,
  'MemoryChain-bsuite': lambda env, params: params.memory_length + 1,
  'UmbrellaChain-bsuite': lambda env, params: params.chain_length,
}
# The time limit is part of the task, and the observation shows the time.
_TIMED = frozenset({'DiscountingChain-bsuite'})


def _stopped(state: Any, params: Any) -> Any:
  """Stops a car that has run into the left wall."""
  hit = (state.position <= params.min_position) & (state.velocity < 0)
  return state.replace(velocity=jnp.where(hit, 0.0, state.velocity))


# Corrections to apply after a step.
_MENDED: dict[str, Callable[[Any, Any], Any]] = {
  'MountainCarContinuous-v0': _stopped,
}


def _gymnax() -> Any:
  """Imports the module `gymnax` and checks its version."""
  # Imported by name, since importing it starts JAX, and it has no types.
  gymnax = import_optional('gymnax', _NEEDS, 'gymnax')
  try:
    version = importlib.metadata.version('gymnax')
  except importlib.metadata.PackageNotFoundError as error:
    raise OptionalImportError(f'{_NEEDS}; {error}') from error
  # Before 1.0 the `done` of a step included the cap on steps.
  if not version.startswith('1.') or version == '1.0.0':
    raise OptionalImportError(f'{_NEEDS}; found {version}')
  return gymnax


def make_gymnax(name: str, **settings: Any) -> JaxEnvironment:
  """Builds an environment of gymnax.

  Args:
    name: its id in gymnax, such as 'CartPole-v1' or 'Breakout-MinAtar'.
    **settings: arguments of its constructor (`use_minimal_action_set=False`) or
      fields of its parameters (`max_steps_in_episode=100`, `gravity=5.0`). A
      `max_steps_in_episode` of None removes the cap.

  Returns:
    the environment. A step is gymnax's `step_env`, which never resets.

  Raises:
    ImportError: gymnax is not installed, cannot be imported, or has another
      version.
    ValueError: gymnax has no such environment, its actions have no bounds, or
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
      # None must not be a parameter: observations may be divided by it.
      **{key: settings[key] for key in fields if settings[key] is not None}
    )
  discrete = isinstance(
    env.action_space(params), gymnax.environments.spaces.Discrete
  )
  action_dim, stretch = (
    (0, None) if discrete else _stretch(name, env.action_space(params))
  )

  cap: int | None = settings.get(
    'max_steps_in_episode', params.max_steps_in_episode
  )
  timed = name in _TIMED and cap is not None
  if timed or (
    cap is not None and name in _LENGTHS and _LENGTHS[name](env, params) <= cap
  ):
    cap = None

  key = jax.eval_shape(lambda: jax.random.key(0))
  action = (
    jax.ShapeDtypeStruct((), jnp.int32)
    if stretch is None
    else jax.eval_shape(stretch, jnp.zeros(action_dim))
  )
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
    # gymnax's first state has Python numbers where a step returns arrays; a
    # scan needs the same types.
    state = jax.tree.map(jnp.asarray, state, dtypes)
    return state, obs.astype(obs_dtype)

  def step(
    state: Any, action: jax.Array, key: jax.Array
  ) -> tuple[Any, JaxTimestep]:
    if stretch is not None:
      action = stretch(action)
    obs, state, reward, terminated, _ = env.step_env(key, state, action, params)
    if name in _MENDED:
      state = _MENDED[name](state, params)
      obs = env.get_obs(state)
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
    num_actions=int(env.num_actions) if discrete else 0,
    obs_shape=first_obs.shape,
    obs_dtype=obs_dtype,
    max_episode_steps=cap,
    action_dim=action_dim,
  )


def _stretch(
  name: str, space: Any
) -> tuple[int, Callable[[jax.Array], jax.Array]]:
  """Builds the function that scales [-1, 1] to the bounds of a gymnax `Box`.

  Args:
    name: name of the environment, for the message.
    space: space of its actions.

  Returns:
    (D, function of float32 [D]). It clips actions outside [-1, 1].

  Raises:
    ValueError: a bound is missing.
  """
  low, high = (
    np.broadcast_to(np.asarray(bound, np.float32), space.shape)
    for bound in (space.low, space.high)
  )
  if not (np.isfinite(low).all() and np.isfinite(high).all()):
    raise ValueError(
      f'{name} has actions from {low} to {high}: both ends must be finite'
    )
  # From the middle, so that bounds of -1 and 1 keep actions bit for bit.
  middle, half = low / 2 + high / 2, high / 2 - low / 2

  def stretch(action: jax.Array) -> jax.Array:
    stretched = middle + half * action.reshape(space.shape)
    return jnp.clip(stretched, low, high)

  return low.size, stretch
