"""The interfaces of replays, which store and draw transitions, to the loops.

There is a protocol for each kind of loop. A `PureReplay` describes pure
functions of a state that a compiled loop carries; a `StatefulReplay` is an
object that a host loop changes in place. Both draw a batch together with a
*handle*, and take the handle back with the gradient step's metrics for each
transition of that batch. A prioritized replay sets its priorities from them,
and others ignore them: a loop never asks which kind it has.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import chex
import jax
import numpy as np
import numpy.typing as npt

from siamrl.types import Transition

# (one-step transitions [T, N, ...], ended [T, N]) -> the transitions with other
# returns, such as complete targets.
Relabel = Callable[[Transition, jax.Array], Transition]


class Sampling(NamedTuple):
  """Numbers that batches are drawn with at one clock; they may be traced.

  Attributes:
    discount: per env step.
    alpha: exponent of the priorities; 0 makes them equal.
    beta: exponent of the importance weights; 1 corrects the bias of
      prioritized drawing completely, and 0 not at all.
  """

  discount: chex.Numeric
  alpha: chex.Numeric = 0.0
  beta: chex.Numeric = 1.0


class PureReplay(Protocol):
  """A replay for N environments, as pure functions of a state.

  The clock t counts the steps that all environments have taken together. The
  caller keeps it, outside the state.

  A round of gradient steps calls `begin` once; then `sample` and `update` for
  each step, which pass on the part of the state that `moving` returned; and
  `with_moving` at the end. So a loop over gradient steps carries only the part
  of the state that learning changes.
  """

  @property
  def reads(self) -> tuple[str, ...]:
    """Names of the metrics that `update` reads, one for each transition [B]."""

  def init(self) -> Any:
    """Returns an empty replay's state; call `start` next."""

  def start(self, state: Any, obs: chex.Array) -> Any:
    """Stores the first observations [N, ...], those of clock 0."""

  def add(
    self,
    state: Any,
    t: chex.Numeric,
    *,
    action: chex.Array,
    reward: chex.Array,
    terminated: chex.Array,
    ended: chex.Array,
    final_obs: chex.Array,
    obs: chex.Array,
  ) -> Any:
    """Stores the step taken at clock t and its outcome.

    Args:
      state: the replay at clock t.
      t: uint32 [] steps done before this one.
      action: integer [N], or float [N, D].
      reward: [N] of the step.
      terminated: bool [N] whether no value lies beyond this step.
      ended: bool [N] whether the episode is over, terminated or truncated.
      final_obs: [N, ...] the observations that followed in the same episodes.
      obs: [N, ...] the observations to act on next: the next episode's first
        where one ended, and those of `final_obs` elsewhere.

    Returns:
      The replay at clock t + 1.
    """

  def begin(
    self,
    state: Any,
    t: chex.Numeric,
    bits: chex.Array,
    sampling: Sampling,
    relabel: Relabel | None = None,
  ) -> tuple[Any, Any]:
    """Prepares the K gradient steps of a round.

    Args:
      state: the replay at clock t.
      t: uint32 [] steps done.
      bits: uint32 [K, B] random.
      sampling: the numbers to draw with.
      relabel: computes other returns from transitions in order; None to leave
        the transitions unchanged.

    Returns:
      (source, draws): the data that all steps draw from, and a tree whose
      leaves lead with [K], one entry per step.

    Raises:
      ValueError: `relabel` is given, but transitions are not kept in order.
    """

  def moving(self, state: Any) -> Any:
    """Returns the part of a state that learning changes, or ()."""

  def with_moving(self, state: Any, moving: Any) -> Any:
    """Returns the state with that part replaced."""

  def sample(
    self,
    source: Any,
    moving: Any,
    t: chex.Numeric,
    draw: Any,
    sampling: Sampling,
  ) -> tuple[Transition, Any]:
    """Draws the batch of one gradient step.

    Args:
      source: data as returned by `begin`.
      moving: the current part of the state that learning changes.
      t: uint32 [] steps done.
      draw: one entry of the draws that `begin` returned.
      sampling: the numbers to draw with.

    Returns:
      (batch, handle): B transitions, and their handle for `update`.
    """

  def update(
    self,
    moving: Any,
    handle: Any,
    metrics: Mapping[str, chex.Array],
    sampling: Sampling,
  ) -> Any:
    """Takes in the metrics of a gradient step on a batch.

    Args:
      moving: the current part of the state that learning changes.
      handle: handle of the batch; no step was added since it was drawn.
      metrics: holds those that `reads` names, [B] each.
      sampling: the numbers to draw with.

    Returns:
      The next `moving`.
    """

  def peek(
    self,
    state: Any,
    t: chex.Numeric,
    bits: chex.Array,
    discount: chex.Numeric,
  ) -> Transition:
    """Draws transitions uniformly and without weights, for diagnostics.

    Args:
      state: the replay at clock t.
      t: uint32 [] steps done.
      bits: uint32 [B] random.
      discount: float [] per env step.
    """

  def first_not_finite(self, state: Any, t: int) -> str:
    """Names the kind of the first stored value that is not finite; on the host.

    Args:
      state: the replay at clock t, of arrays of any kind.
      t: steps done.

    Returns:
      'observation', 'action' or 'reward'; '' if all are finite, or the first
      one may no longer be stored.
    """


class StatefulReplay(Protocol):
  """A replay for N environments, as an object that changes in place.

  It stores single frames of observations, which may be stacks of frames. It
  keeps the numbers that it draws with, such as the discount.
  """

  @property
  def reads(self) -> tuple[str, ...]:
    """Names of the metrics that `update` reads, one for each transition [B]."""

  @property
  def sequence_steps(self) -> int:
    """K, steps of each transition's `future`; 0 for none."""

  def start(self, obs: npt.ArrayLike) -> None:
    """Begins an episode in every environment; a running one is truncated.

    Args:
      obs: [N, *frame_shape] first frames of the new episodes.
    """

  def add(
    self,
    *,
    action: npt.ArrayLike,
    reward: npt.ArrayLike,
    terminated: npt.ArrayLike,
    ended: npt.ArrayLike,
    final_obs: npt.ArrayLike,
    obs: npt.ArrayLike,
  ) -> None:
    """Stores a step of every environment and its outcome.

    Args:
      action: integer [N], or float [N, D].
      reward: float [N] of the step.
      terminated: bool [N] whether no value lies beyond this step. With `ended`
        False it is a lost life: the episode and its stack of frames continue.
      ended: bool [N] whether the episode is over, terminated or truncated.
      final_obs: [N, *frame_shape] newest frame of the observation that
        followed in the same episode.
      obs: [N, *frame_shape] newest frame of the observation to act on next:
        the next episode's first where one ended, and that of `final_obs`
        elsewhere.
    """

  def sample(
    self, rng: np.random.Generator, batch_size: int
  ) -> tuple[Transition, Any]:
    """Draws the batch of one gradient step.

    Args:
      rng: the source of randomness; equal states give equal batches.
      batch_size: B.

    Returns:
      (batch, handle): B transitions, in arrays that no later call changes, and
      their handle for `update`.
    """

  def update(self, handle: Any, metrics: Mapping[str, np.ndarray]) -> None:
    """Takes in the metrics of a gradient step on a batch.

    Loops call it between two rounds, in turn for each gradient step of the
    round before. They need not call it if the replay `reads` nothing.

    Args:
      handle: handle of the batch. Steps of the same round may have been added
        since it was drawn, and may have replaced some of its transitions.
      metrics: holds those that `reads` names, [B] each, all of them finite: a
        loop ends a run in which they are not.
    """

  def peek(self, rng: np.random.Generator, batch_size: int) -> Transition:
    """Draws transitions uniformly and without weights, for diagnostics.

    Args:
      rng: the source of randomness.
      batch_size: B.
    """
