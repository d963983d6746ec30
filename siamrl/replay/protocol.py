"""Replays as the loops see them: where transitions are kept and drawn from.

There is a protocol for each kind of loop. A `PureReplay` describes pure
functions of a state that a compiled loop carries; a `StatefulReplay` is an
object that a host loop changes in place. Both draw a batch together with a
*handle*, and take the handle back with what the gradient step reported of each
transition of that batch. A prioritized replay sets its priorities by it, and
others ignore it: a loop never asks which kind it has.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import chex
import jax
import numpy as np
import numpy.typing as npt

from siamrl.types import Transition

# (transitions of one step each [T, N, ...], ended [T, N]) -> the transitions
# with other returns, such as whole targets.
Relabel = Callable[[Transition, jax.Array], Transition]


class Sampling(NamedTuple):
  """The numbers that drawing batches takes at one clock; they may be traced.

  Attributes:
    discount: per env step.
    alpha: exponent of the priorities; 0 makes them equal.
    beta: exponent of the importance weights; 1 corrects all of the bias of
      prioritized drawing, and 0 none of it.
  """

  discount: chex.Numeric
  alpha: chex.Numeric = 0.0
  beta: chex.Numeric = 1.0


class PureReplay(Protocol):
  """A replay as pure functions of a state, for N environments.

  The clock t counts the steps that all environments have taken together. It is
  the caller's and no part of the state.

  A round of gradient steps calls `begin` once; then `sample` and `update` for
  each step, which pass on what `moving` took from the state; and `with_moving`
  at the end. So a loop over gradient steps carries no more of the state than
  learning changes.
  """

  @property
  def reads(self) -> tuple[str, ...]:
    """Names of the metrics that `update` reads, one for each transition [B]."""

  def init(self) -> Any:
    """An empty replay's state; `start` comes next."""

  def start(self, state: Any, obs: chex.Array) -> Any:
    """Takes the first observations [N, ...], those of clock 0."""

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
    """Stores the step that was taken at clock t, and where it led.

    Args:
      state: the replay at clock t.
      t: int32 [] steps done before this one.
      action: integer [N], or float [N, D].
      reward: [N] that followed.
      terminated: bool [N] no value lies beyond this step.
      ended: bool [N] the episode is over, terminated or truncated.
      final_obs: [N, ...] the observations that followed, of the same episodes.
      obs: [N, ...] the observations to act on next: where an episode ended the
        first one of the next, and elsewhere those of `final_obs`.

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
      t: int32 [] steps done.
      bits: uint32 [K, B] random.
      sampling: the numbers to draw by.
      relabel: makes returns of transitions in their order; None to leave the
        transitions as they are.

    Returns:
      (source, draws): what all of them draw from, and a tree whose leaves lead
      with [K], an entry for each of them.

    Raises:
      ValueError: there is a `relabel`, and transitions are not kept in order.
    """

  def moving(self, state: Any) -> Any:
    """What learning changes of a state; () if that is nothing."""

  def with_moving(self, state: Any, moving: Any) -> Any:
    """The state with that part replaced."""

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
      source: of `begin`.
      moving: what learning changes of the state, as it stands.
      t: int32 [] steps done.
      draw: one entry of the draws of `begin`.
      sampling: the numbers to draw by.

    Returns:
      (batch, handle): B transitions, and what `update` needs of them.
    """

  def update(
    self,
    moving: Any,
    handle: Any,
    metrics: Mapping[str, chex.Array],
    sampling: Sampling,
  ) -> Any:
    """Takes in what a gradient step reported of its batch.

    Args:
      moving: what learning changes of the state, as it stands.
      handle: of the batch; no step was added since it was drawn.
      metrics: holds those that `reads` names, [B] each.
      sampling: the numbers to draw by.

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
    """Transitions to look at: each is equally likely, and none has a weight.

    Args:
      state: the replay at clock t.
      t: int32 [] steps done.
      bits: uint32 [B] random.
      discount: float [] per env step.
    """

  def first_not_finite(self, state: Any, t: int) -> str:
    """Names what was stored first that is not finite; on the host.

    Args:
      state: the replay at clock t, of arrays of any kind.
      t: steps done.

    Returns:
      'observation', 'action' or 'reward'; '' if all are finite, or the first of
      them is no longer stored.
    """


class StatefulReplay(Protocol):
  """A replay as an object that changes in place, for N environments.

  It stores single frames of observations that may be stacks of them. Numbers
  that it draws by, such as the discount, are its own.
  """

  @property
  def reads(self) -> tuple[str, ...]:
    """Names of the metrics that `update` reads, one for each transition [B]."""

  @property
  def sequence_steps(self) -> int:
    """K, steps of each transition's `future`; 0 for none."""

  def start(self, obs: npt.ArrayLike) -> None:
    """Begins an episode everywhere; one still running ends as truncated.

    Args:
      obs: [N, *frame_shape] first frame of each new episode.
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
    """Stores a step of every environment, and where it led.

    Args:
      action: integer [N], or float [N, D].
      reward: float [N] that followed.
      terminated: bool [N] no value lies beyond this step. With `ended` False it
        is a lost life: the episode, and its stack of frames, go on.
      ended: bool [N] the episode is over, terminated or truncated.
      final_obs: [N, *frame_shape] newest frame of the observation that
        followed, of the same episode.
      obs: [N, *frame_shape] newest frame of the observation to act on next:
        where an episode ended the first one of the next, and elsewhere that of
        `final_obs`.
    """

  def sample(
    self, rng: np.random.Generator, batch_size: int
  ) -> tuple[Transition, Any]:
    """Draws the batch of one gradient step.

    Args:
      rng: the source of randomness; equal states give equal batches.
      batch_size: B.

    Returns:
      (batch, handle): B transitions, arrays that no later call touches, and
      what `update` needs of them.
    """

  def update(self, handle: Any, metrics: Mapping[str, np.ndarray]) -> None:
    """Takes in what a gradient step reported of its batch.

    Loops call it between two rounds, for each gradient step of the round before
    in turn. Where a replay `reads` nothing they need not call it.

    Args:
      handle: of the batch. Steps of the same round may have been added since it
        was drawn, and may have taken the place of some of its transitions.
      metrics: holds those that `reads` names, [B] each. They may be not finite
        where a run diverges, which the loop notices a little later.
    """

  def peek(self, rng: np.random.Generator, batch_size: int) -> Transition:
    """Transitions to look at: each is equally likely, and none has a weight.

    Args:
      rng: the source of randomness.
      batch_size: B.
    """
