"""Probe environments: decision processes so small that their values are known.

Each isolates one thing that a learner can get wrong (after Andy Jones'
"Debugging RL, Without the Agonizing Pain", and rejax): where one fails and the
one before it does not, it is clear what to look at.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np

from siamrl.types import Agent, Timestep

END = -1  # the successor of what terminates


def agent_of(**parts: Any) -> Agent:
  """An agent of these parts; the others are not to be called."""

  def unasked(*args, **kwargs):
    raise AssertionError('a part of the agent that is not there')

  names = ('init', 'loss', 'bootstrap', 'targets', 'values')
  return Agent(**dict.fromkeys(names, unasked) | parts)


@dataclasses.dataclass(frozen=True)
class Tables:
  """A decision process with S states and A actions.

  Attributes:
    rewards: [S, A] reward of each action.
    successors: int [S, A] the next state, or `END`.
    starts: the states in which an episode may begin, all as likely.
    slip: probability that a uniformly random action is taken instead.
    truncate_after: env steps after which an episode is truncated; 0 for never.
    lives: bool [S, A] whether a life is lost; None for never.
  """

  rewards: np.ndarray
  successors: np.ndarray
  starts: tuple[int, ...] = (0,)
  slip: float = 0.0
  truncate_after: int = 0
  lives: np.ndarray | None = None

  @property
  def observations(self) -> np.ndarray:
    """float32 [S, 1, S]: every state's, one-hot, with a stack of one."""
    return np.eye(len(self.rewards), dtype=np.float32)[:, None]

  def q_values(
    self, discount: float, *, life_loss_terminates: bool = False
  ) -> np.ndarray:
    """[S, A] values of acting optimally, by value iteration to the last bit.

    Truncation does not enter: it is no part of the task.
    """
    continues = self.successors != END
    if life_loss_terminates and self.lives is not None:
      continues = continues & ~self.lives
    q = np.zeros(self.rewards.shape)
    for _ in range(10_000):
      intended = self.rewards + discount * continues * q.max(1)[self.successors]
      new = (1 - self.slip) * intended + self.slip * intended.mean(
        1, keepdims=True
      )
      if np.array_equal(new, q):
        break
      q = new
    return q


class Probe:
  """N copies of one process; implements `siamrl.types.Environments`.

  Observations are one-hot states, float32 [N, 1, S]. It is strict about the
  order of calls.
  """

  stack = 1
  frames_per_step = 1
  frame_dtype = np.dtype(np.float32)

  def __init__(self, tables: Tables, num_envs: int = 1, *, seed: int):
    self.tables, self.num_envs = tables, num_envs
    states, self.num_actions = tables.rewards.shape
    self.action_dim = 0
    self.frame_shape = (states,)
    # One stream an environment: what one draws must not move another.
    self._rngs = [
      np.random.default_rng(sequence)
      for sequence in np.random.SeedSequence(seed).spawn(num_envs)
    ]
    self._states = np.zeros(num_envs, int)
    self._steps = np.zeros(num_envs, int)
    self._next = 'reset'
    self._actions = np.zeros(num_envs, np.int32)

  def _expect(self, *calls: str) -> None:
    if self._next not in calls:
      raise RuntimeError(f'{calls[0]}() where {self._next}() is due')

  def _start(self, env: int) -> None:
    self._states[env] = self._rngs[env].choice(self.tables.starts)
    self._steps[env] = 0

  def _obs(self) -> np.ndarray:
    return self.tables.observations[self._states]

  def reset(self) -> np.ndarray:
    self._expect('reset', 'send')
    for env in range(self.num_envs):
      self._start(env)
    self._next = 'send'
    return self._obs()

  def send(self, actions: np.ndarray) -> None:
    self._expect('send')
    if actions.shape != (self.num_envs,) or actions.dtype != np.int32:
      raise ValueError(f'actions are {actions.dtype} {actions.shape}')
    if not np.all((actions >= 0) & (actions < self.num_actions)):
      raise ValueError(f'actions={actions} of {self.num_actions}')
    self._actions = actions.copy()
    self._next = 'recv'

  def recv(self) -> Timestep:
    self._expect('recv')
    self._next = 'send'
    tables, envs = self.tables, range(self.num_envs)
    actions = [self._slipped(env, self._actions[env]) for env in envs]
    at = self._states, actions
    reward, successors = tables.rewards[at], tables.successors[at]
    life_lost = np.zeros(self.num_envs, bool)
    if tables.lives is not None:
      life_lost = tables.lives[at]
    self._steps += 1
    terminated = successors == END
    truncated = ~terminated & (self._steps == tables.truncate_after)
    # The end has no observation of its own: the last state stays in sight.
    self._states = np.where(terminated, self._states, successors)
    final_obs = self._obs()
    for env in np.flatnonzero(terminated | truncated):
      self._start(env)
    return Timestep(
      self._obs(),
      reward.astype(np.float32),
      terminated,
      truncated,
      life_lost,
      final_obs,
    )

  def close(self) -> None:
    self._expect('close', 'reset', 'send', 'recv')
    self._next = 'nothing'

  def _slipped(self, env: int, action: int) -> int:
    if self.tables.slip and self._rngs[env].random() < self.tables.slip:
      return int(self._rngs[env].integers(self.num_actions))
    return int(action)


def make(tables: Tables, num_envs: int = 1) -> Callable[[int], Probe]:
  """Returns seed -> fresh environments."""
  return lambda seed: Probe(tables, num_envs, seed=seed)


def tables_of(rewards, successors, **others) -> Tables:
  return Tables(np.array(rewards, float), np.array(successors), **others)


def constant() -> Tables:
  """One step, one reward: is a value learned at all?"""
  return tables_of([[1.0]], [[END]])


def observation() -> Tables:
  """One step; the state decides the reward: is the observation seen?"""
  return tables_of([[-1.0], [1.0]], [[END], [END]], starts=(0, 1))


def delayed() -> Tables:
  """Two steps, the reward comes with the second: is it discounted?"""
  return tables_of([[0.0], [1.0]], [[1], [END]])


def action() -> Tables:
  """One step; the action decides the reward: are actions told apart?"""
  return tables_of([[-1.0, 1.0]], [[END, END]])


def observation_action() -> Tables:
  """One step; the action must fit the state."""
  return tables_of(
    [[1.0, -1.0], [-1.0, 1.0]], [[END, END], [END, END]], starts=(0, 1)
  )


def truncated(steps: int) -> Tables:
  """One reward a step for ever, in episodes cut from outside."""
  return tables_of([[1.0]], [[0]], truncate_after=steps)


def truncated_far_from_start() -> Tables:
  """Cut where values are not those of the start: which is bootstrapped from?"""
  return tables_of([[0.0], [1.0]], [[1], [1]], truncate_after=2)


def terminated(steps: int) -> Tables:
  """One reward a step, in episodes that really end after so many steps."""
  successors = [[state + 1] for state in range(steps)]
  successors[-1] = [END]
  return tables_of(np.ones((steps, 1)), successors)


def losing_lives() -> Tables:
  """One reward a step for ever; every other step loses a life."""
  return tables_of(
    [[1.0], [1.0]], [[1], [0]], lives=np.array([[False], [True]])
  )


def chain(length: int = 4) -> Tables:
  """A slippery walk: a little near by on the left, 1 far away on the right."""
  states = np.arange(length)
  successors = np.stack([states - 1, states + 1], axis=1)
  rewards = np.zeros((length, 2))
  rewards[0, 0], rewards[-1, 1] = 0.1, 1.0
  successors[0, 0] = successors[-1, 1] = END
  return Tables(
    rewards, successors, starts=tuple(states), slip=0.1, truncate_after=7
  )
