"""Gymnasium's classic control, and what else has vectors and few actions."""

import operator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from siamrl.types import Timestep


def env_seeds(seed: int, num_envs: int) -> np.ndarray:
  """Seeds for N environments, one stream each.

  Neighbouring seeds share none of them, as counting up from `seed` would have
  it; and the first ones do not depend on how many follow.

  Args:
    seed: an integer >= 0.
    num_envs: N.

  Returns:
    int32 [N], all >= 0.

  Raises:
    ValueError: the seed is negative.
  """
  seed = operator.index(seed)
  if seed < 0:
    raise ValueError(f'seed must be >= 0, got {seed}')
  words = np.random.SeedSequence(seed).generate_state(num_envs)
  return (words & 0x7FFFFFFF).astype(np.int32)


def check_actions(actions: Any, num_envs: int, num_actions: int) -> np.ndarray:
  """The actions as int32 [N].

  Raises:
    ValueError: they are not N integers, or one is outside [0, num_actions).
  """
  actions = np.asarray(actions)
  if actions.shape != (num_envs,) or actions.dtype.kind not in 'iu':
    raise ValueError(
      f'actions must be {num_envs} integers, got '
      f'{actions.dtype} {list(actions.shape)}'
    )
  if actions.dtype != np.int32:
    # Bounds first: a narrowing cast could wrap a bad action into a good one.
    if ((actions < 0) | (actions >= num_actions)).any():
      raise ValueError(f'actions must lie in [0, {num_actions}), got {actions}')
    return actions.astype(np.int32)
  # Seen as unsigned, a negative action is a large one: one comparison for two.
  if (actions.view(np.uint32) >= num_actions).any():
    raise ValueError(f'actions must lie in [0, {num_actions}), got {actions}')
  return actions


class GymnasiumEnvironments:
  """N copies of a Gymnasium environment, stepped in turn in this process.

  Implements `siamrl.types.Environments` for `Box` observations and `Discrete`
  actions. Observations are not stacked: [N, 1, ...]. The work is done in
  `recv`; `send` only keeps the actions.

  Attributes:
    env_id: the Gymnasium id.
  """

  stack = 1
  frames_per_step = 1

  def __init__(self, env_id: str, num_envs: int = 1, *, seed: int):
    """Makes the environments.

    Args:
      env_id: a registered Gymnasium id, such as 'CartPole-v1'.
      num_envs: N >= 1.
      seed: an integer >= 0, from which all episodes follow.

    Raises:
      ValueError: the spaces are of another kind, or an argument is too small.
      gymnasium.error.Error: Gymnasium knows no such id.
    """
    if num_envs < 1:
      raise ValueError(f'num_envs must be >= 1, got {num_envs}')
    self._seeds: list[int | None] | None = env_seeds(seed, num_envs).tolist()
    # Any: its types say that a reset takes one seed.
    self._env: Any = SyncVectorEnv(
      [lambda: gymnasium.make(env_id, disable_env_checker=True)] * num_envs,
      autoreset_mode=AutoresetMode.SAME_STEP,
    )
    space = self._env.single_observation_space
    actions = self._env.single_action_space
    if (
      not isinstance(space, gymnasium.spaces.Box)
      or not isinstance(actions, gymnasium.spaces.Discrete)
      or actions.start != 0
    ):
      self._env.close()
      raise ValueError(
        f'{env_id} needs a Box of observations and Discrete '
        f'actions from 0, got {space} and {actions}'
      )
    self.env_id = env_id
    self.num_envs = num_envs
    self.num_actions = int(actions.n)
    self.frame_shape = space.shape
    self.frame_dtype = np.dtype(space.dtype)
    self._started = False
    self._actions: np.ndarray | None = None

  def reset(self) -> np.ndarray:
    """Starts N new episodes; returns observations [N, 1, ...].

    The first call starts from the seed; a later one gives up the running
    episodes and goes on in the same random streams.

    Raises:
      RuntimeError: a `send` still waits for its `recv`.
    """
    if self._actions is not None:
      raise RuntimeError('reset between send and recv')
    obs, _ = self._env.reset(seed=self._seeds)
    self._seeds = None
    self._started = True
    return np.asarray(obs)[:, None]

  def send(self, actions: np.ndarray) -> None:
    """Hands over int32 [N] actions.

    Raises:
      RuntimeError: there was no `reset`, or no `recv` since the last `send`.
      ValueError: the actions are not N integers in [0, num_actions).
    """
    if not self._started or self._actions is not None:
      raise RuntimeError('send must follow reset or recv')
    # A copy: the caller may write into its own before recv reads it.
    self._actions = check_actions(
      actions, self.num_envs, self.num_actions
    ).copy()

  def recv(self) -> Timestep:
    """Steps the environments, and starts anew those whose episode ended.

    Raises:
      RuntimeError: no `send` came before.
    """
    if self._actions is None:
      raise RuntimeError('recv must follow send')
    actions, self._actions = self._actions, None
    answer, reward, terminated, truncated, info = self._env.step(actions)
    obs = np.asarray(answer)[:, None]
    final_obs = obs
    ended = terminated | truncated
    if ended.any():
      final_obs = obs.copy()
      for n in np.flatnonzero(ended):
        final_obs[n, 0] = info['final_obs'][n]
    return Timestep(
      obs=obs,
      reward=reward.astype(np.float32),
      # Copies: Gymnasium hands out its own arrays, and refills them.
      terminated=terminated.copy(),
      truncated=truncated.copy(),
      life_lost=np.zeros(self.num_envs, bool),
      final_obs=final_obs,
    )

  def close(self) -> None:
    """Frees the environments; nothing may be called after."""
    self._env.close()
    self._started = False
