"""The steps of one round in order, for learning without a replay.

Online Q-learning keeps one step, and PQN (Gallici et al. 2025) a short sequence
of many parallel environments. A round is learned from in whole epochs and then
discarded.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from siamrl.replay import finite
from siamrl.replay.host import HostReplay
from siamrl.replay.protocol import Relabel, Sampling
from siamrl.schedule import counted
from siamrl.types import Transition


class RolloutState(NamedTuple):
  """State of a `Rollout`; leaves lead with [T, N] except for `current`.

  Attributes:
    current: [N, ...] current observations of the environments.
    obs_tm1: observations before each action.
    a_tm1: actions taken, int32, or float32 [T, N, D].
    r_t: float32 rewards after each action.
    terminated: bool whether no value lies beyond the step.
    ended: bool whether the step terminated or truncated its episode.
    obs_t: observations after each action, never after a reset.
  """

  current: jax.Array
  obs_tm1: jax.Array
  a_tm1: jax.Array
  r_t: jax.Array
  terminated: jax.Array
  ended: jax.Array
  obs_t: jax.Array


class Sequence(NamedTuple):
  """A round in order.

  Attributes:
    transitions: one-step transitions; leaves lead with [T, N].
    ended: bool [T, N] whether the step terminated or truncated its episode.
  """

  transitions: Transition
  ended: Any


@dataclasses.dataclass(frozen=True)
class Rollout:
  """A `PureReplay` of the last T steps of N environments.

  Attributes:
    obs_shape: shape of one observation.
    obs_dtype: type of the observations.
    num_envs: N.
    steps: T, steps of all environments in a round.
    action_dim: D of continuous actions; 0 where actions are integers.
  """

  obs_shape: tuple[int, ...]
  obs_dtype: npt.DTypeLike
  num_envs: int
  steps: int
  action_dim: int = 0

  @property
  def size(self) -> int:
    """Number of transitions in a round."""
    return self.steps * self.num_envs

  def init(self) -> RolloutState:
    """Returns an empty rollout; call `start` next."""
    leading = (self.steps, self.num_envs)
    dtype = np.dtype(self.obs_dtype)
    obs = jnp.zeros((*leading, *self.obs_shape), dtype)
    return RolloutState(
      current=jnp.zeros((self.num_envs, *self.obs_shape), dtype),
      obs_tm1=obs,
      a_tm1=jnp.zeros((*leading, self.action_dim), jnp.float32)
      if self.action_dim
      else jnp.zeros(leading, jnp.int32),
      r_t=jnp.zeros(leading, jnp.float32),
      terminated=jnp.zeros(leading, bool),
      ended=jnp.zeros(leading, bool),
      obs_t=obs,
    )

  def first_not_finite(self, state: RolloutState, t: int) -> str:
    """As `DeviceReplay.first_not_finite`, of the last round."""
    obs, actions, rewards = map(
      np.asarray, (state.obs_tm1, state.a_tm1, state.r_t)
    )
    return finite.first_not_finite(obs, actions, rewards, whole=t <= self.steps)

  def start(self, state: RolloutState, obs: chex.Array) -> RolloutState:
    """Stores the first observations [N, ...]."""
    return state._replace(current=obs)

  def add(
    self,
    state: RolloutState,
    t: chex.Numeric,
    *,
    action: chex.Array,
    reward: chex.Array,
    terminated: chex.Array,
    ended: chex.Array,
    final_obs: chex.Array,
    obs: chex.Array,
  ) -> RolloutState:
    """As `PureReplay.add`; rounds begin where t is a multiple of T."""
    at = (counted(t) % self.steps).astype(jnp.int32)
    return RolloutState(
      current=obs,
      obs_tm1=state.obs_tm1.at[at].set(state.current),
      a_tm1=state.a_tm1.at[at].set(action.astype(state.a_tm1.dtype)),
      r_t=state.r_t.at[at].set(reward),
      terminated=state.terminated.at[at].set(terminated),
      ended=state.ended.at[at].set(ended),
      obs_t=state.obs_t.at[at].set(final_obs),
    )

  def sequence(self, state: RolloutState, discount: chex.Numeric) -> Sequence:
    """Returns the round that has just ended; `discount` is per env step."""
    return Sequence(
      Transition(
        state.obs_tm1,
        state.a_tm1,
        state.r_t,
        jnp.where(state.terminated, 0.0, discount),
        state.obs_t,
      ),
      state.ended,
    )

  @property
  def reads(self) -> tuple[str, ...]:
    """As `PureReplay.reads`: none."""
    return ()

  def begin(
    self,
    state: RolloutState,
    t: chex.Numeric,
    bits: chex.Array,
    sampling: Sampling,
    relabel: Relabel | None = None,
  ) -> tuple[Transition, jax.Array]:
    """As `PureReplay.begin`, of the round that has just ended.

    Args:
      state: at clock t.
      t: uint32 [] steps done, a multiple of T.
      bits: uint32 [K, B] random, with K * B a multiple of `size`.
      sampling: the discount is read.
      relabel: computes other returns from the round's transitions
        [T, N, ...]; None to leave them unchanged.

    Returns:
      As `whole_epochs`.
    """
    del t
    return whole_epochs(self.sequence(state, sampling.discount), bits, relabel)

  def moving(self, state: RolloutState) -> tuple[()]:
    """As `PureReplay.moving`: nothing."""
    del state
    return ()

  def with_moving(self, state: RolloutState, moving: tuple[()]) -> RolloutState:
    """As `PureReplay.with_moving`: the state itself."""
    del moving
    return state

  def sample(
    self,
    source: Transition,
    moving: tuple[()],
    t: chex.Numeric,
    draw: chex.Array,
    sampling: Sampling,
  ) -> tuple[Transition, tuple[()]]:
    """As `PureReplay.sample`: the transitions with the indices `draw` [B]."""
    del t, sampling
    return jax.tree.map(lambda x: x[draw], source), moving

  def update(
    self,
    moving: tuple[()],
    handle: tuple[()],
    metrics: Mapping[str, chex.Array],
    sampling: Sampling,
  ) -> tuple[()]:
    """As `PureReplay.update`: nothing changes."""
    del handle, metrics, sampling
    return moving

  def peek(
    self,
    state: RolloutState,
    t: chex.Numeric,
    bits: chex.Array,
    discount: chex.Numeric,
  ) -> Transition:
    """Draws transitions [B, ...] of the last round, with replacement.

    Args:
      state: at clock t.
      t: uint32 [] steps done, a multiple of T.
      bits: uint32 [B] random.
      discount: per env step.
    """
    del t
    steps, _ = self.sequence(state, discount)
    rows = (bits % self.size).astype(jnp.int32)
    return jax.tree.map(lambda x: x[rows], _flat(steps))


def whole_epochs(
  sequence: Sequence, bits: chex.Array, relabel: Relabel | None = None
) -> tuple[Transition, jax.Array]:
  """Prepares the gradient steps of whole epochs over a round.

  Args:
    sequence: a round of T steps of N environments.
    bits: uint32 [K, B] random, with K * B a multiple of T * N.
    relabel: computes other returns from the round's transitions; None to leave
      them unchanged.

  Returns:
    The transitions [T * N, ...], and int32 [K, B] those of each gradient step,
    shuffled so that each epoch holds every transition once.
  """
  steps, ended = sequence
  if relabel is None:
    steps = steps._replace(ended=ended)
  else:
    steps = relabel(steps, ended)
  epochs = math.prod(bits.shape) // ended.size
  order = jnp.argsort(bits.reshape(epochs, ended.size), axis=1)
  return _flat(steps), order.astype(jnp.int32).reshape(bits.shape)


def _flat(steps: Transition) -> Transition:
  """Flattens transitions [T, N, ...] to [T * N, ...]."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps)


class HostRollout(HostReplay):
  """A `StatefulReplay` of the last T steps of N environments.

  Between two rounds, `sequence` returns the one that has just ended. Its frames
  are stored once, as in `HostReplay`; the ring of each environment has room for
  a round in which every step ends an episode.

  Attributes:
    steps: T, steps of all environments in a round.
  """

  def __init__(self, steps: int, *, num_envs: int, stack: int, **others: Any):
    """Reserves memory for the rings.

    Args:
      steps: T, at least 1.
      num_envs: N.
      stack: S, frames in an observation.
      **others: further arguments of `HostReplay`, except for `n_step`.
    """
    super().__init__(
      self.capacity_for(steps, num_envs=num_envs, stack=stack),
      num_envs=num_envs,
      stack=stack,
      n_step=1,
      **others,
    )
    self.steps = steps

  @staticmethod
  def capacity_for(steps: int, *, num_envs: int, stack: int) -> int:
    """Returns the slots in all rings together."""
    # Each step takes a slot, and another one if it ends an episode. The frames
    # of the first stack may be older, and the newest slot is still open.
    return num_envs * (2 * steps + stack)

  def sequence(self) -> Sequence:
    """Returns the round that has just ended, of NumPy arrays.

    Raises:
      ValueError: an environment has taken fewer than T steps.
    """
    index, ended = self._round()
    flat = self._gather(index.ravel())
    return Sequence(
      jax.tree.map(lambda x: x.reshape(*index.shape, *x.shape[1:]), flat), ended
    )

  def peek(self, rng: np.random.Generator, batch_size: int) -> Transition:
    """As `StatefulReplay.peek`, of the last round."""
    index, _ = self._round()
    return self._gather(
      index.ravel()[rng.integers(index.size, size=batch_size)]
    )

  def _round(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the slots of the last T steps, and which ended an episode.

    Returns:
      Flat indices [T, N] in the order of time, and bool [T, N].
    """
    back = np.arange(self._length)  # 0 is the open slot
    slots = (self._written[:, None] - 1 - back) % self._length
    slots += self._rows[:, None]
    taken = self._valid(slots.ravel()).reshape(slots.shape)
    if np.any(taken.sum(1) < self.steps):
      raise ValueError(f'no environment may have fewer than {self.steps} steps')
    newest = np.argsort(~taken, axis=1, kind='stable')[:, : self.steps]
    newest = newest[:, ::-1]
    # Where an episode ended, its last observation has a slot of its own.
    ended = ~np.take_along_axis(taken, newest - 1, 1) & (newest > 1)
    return np.take_along_axis(slots, newest, 1).T, ended.T
