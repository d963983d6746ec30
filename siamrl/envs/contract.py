"""The contract of JAX environments, checked by shapes alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from siamrl.envs.errors import BrokenEnvironmentError, one_line, raised
from siamrl.types import JaxEnvironment, JaxTimestep


def check_jax_environment(name: str, environment: JaxEnvironment) -> None:
  """Traces an environment and checks its outputs against its declarations.

  Nothing is computed, so values are not checked: the loop finds out whether
  rewards and observations are finite, and whether episodes are truncated as
  declared.

  Args:
    name: name of the environment, for the message.
    environment: environment to check.

  Raises:
    BrokenEnvironmentError: `reset` or `step` raises an exception, or returns
      other shapes or types than declared.
  """

  def fail(text: str) -> None:
    raise BrokenEnvironmentError(one_line(f'{name}: {text}'))

  def call(which: str, *args: Any) -> Any:
    try:
      answer = jax.eval_shape(getattr(environment, which), *args)
    except Exception as error:
      raise raised(name, which, error) from error
    if not isinstance(answer, tuple) or len(answer) != 2:
      fail(f'{which} must return two values, got {answer}')
    return answer

  def check(what: str, found: Any, shape: tuple[int, ...], dtype: Any) -> None:
    expected = f'{np.dtype(dtype)} {list(shape)}'
    if not hasattr(found, 'dtype') or f'{found.dtype} {list(found.shape)}' != (
      expected
    ):
      fail(f'{what} must be {expected}, got {found}')

  discrete, continuous = environment.num_actions, environment.action_dim
  if min(discrete, continuous) < 0 or (discrete > 0) == (continuous > 0):
    fail(
      'one of num_actions and action_dim must be positive and the other 0, got '
      f'{discrete} and {continuous}'
    )
  limit = environment.max_episode_steps
  if limit is not None and limit < 1:
    fail(f'max_episode_steps must be None or at least 1, got {limit}')
  pool = environment.reset_pool
  if pool is not None and pool < 1:
    fail(f'reset_pool must be None or at least 1, got {pool}')
  key = jax.eval_shape(lambda: jax.random.key(0))
  action = (
    jax.ShapeDtypeStruct((continuous,), jnp.float32)
    if continuous
    else jax.ShapeDtypeStruct((), jnp.int32)
  )
  seen = environment.obs_shape, environment.obs_dtype
  before, obs = call('reset', key)
  check('the observation of reset', obs, *seen)
  after, timestep = call('step', before, action, key)
  if not isinstance(timestep, JaxTimestep):
    fail(f'step must return a state and a JaxTimestep, got {timestep}')
  check('the observation of step', timestep.obs, *seen)
  check('the reward', timestep.reward, (), np.float32)
  check('terminated', timestep.terminated, (), np.bool_)
  check('truncated', timestep.truncated, (), np.bool_)
  kinds = [
    jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    for state in (before, after)
  ]
  if kinds[0] != kinds[1]:
    fail(
      'the states of reset and step must be alike, got '
      f'{kinds[0]} and {kinds[1]}'
    )
