"""A ring of transitions in device memory, drawn by their priorities."""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from siamrl import types
from siamrl.parameters import FieldError
from siamrl.replay import arrays
from siamrl.replay.device import DeviceReplay, ReplayState, refuse_relabel
from siamrl.replay.protocol import Relabel, Sampling
from siamrl.schedule import counted

# Children per node of the sum tree: of 4, 8, 16, 32 the fastest on a CPU.
_FAN_OUT = 8


class Priorities(NamedTuple):
  """The part of a `PrioritizedReplay`'s state that learning changes.

  Attributes:
    sums: sum tree as in `PrioritizedState`.
    max_priority: largest priority as in `PrioritizedState`.
  """

  sums: tuple[jax.Array, ...]
  max_priority: jax.Array


class PrioritizedState(NamedTuple):
  """State of a `PrioritizedReplay`.

  Attributes:
    ring: the transitions.
    sums: float32, the sum tree's levels from the leaves up. A level is
      [nodes of the next, children]; entry i of its flat form is the sum of row
      i of the level below. The last has one row, whose sum is the total.
    max_priority: float32 [] the largest leaf so far; 1 at first.
  """

  ring: ReplayState
  sums: tuple[jax.Array, ...]
  max_priority: jax.Array


@dataclasses.dataclass(frozen=True)
class PrioritizedReplay:
  """A `PureReplay` that draws in proportion to priorities.

  This is the proportional variant of Schaul et al. 2016, arXiv 1511.05952. A
  leaf of the sum tree is the priority of one transition, |TD error|**alpha, or
  0 while it is empty. Nodes are always recomputed from their children: adding
  differences would accumulate float32 rounding errors.

  Attributes:
    replay: the description of the ring.
    epsilon: added to |TD error|, so that every transition can be drawn again.
    metric: name of the metric [B], at least 0, that takes the place of
      |TD error|.
  """

  replay: DeviceReplay
  epsilon: float = 1e-6
  metric: str = 'td_error_abs'

  def __post_init__(self) -> None:
    """Checks the settings.

    Raises:
      ValueError: if `epsilon` is not above 0.
    """
    if not self.epsilon > 0.0:
      raise FieldError('epsilon', self.epsilon, ': must be above 0')

  @property
  def nbytes(self) -> int:
    """Bytes of one run's state; known before anything is allocated."""
    return arrays.nbytes(jax.eval_shape(self.init))

  def init(self) -> PrioritizedState:
    """Returns an empty replay; call `start` next."""
    sums, size = [], self.replay.capacity
    while size > _FAN_OUT:
      nodes = -(-size // _FAN_OUT)
      sums.append(jnp.zeros((nodes, _FAN_OUT), jnp.float32))
      size = nodes
    sums.append(jnp.zeros((1, size), jnp.float32))
    return PrioritizedState(
      ring=self.replay.init(),
      sums=tuple(sums),
      max_priority=jnp.ones((), jnp.float32),
    )

  def start(self, state: PrioritizedState, obs: chex.Array) -> PrioritizedState:
    """As `DeviceReplay.start`."""
    return state._replace(ring=self.replay.start(state.ring, obs))

  def add(
    self, state: PrioritizedState, t: chex.Numeric, **step: chex.Array
  ) -> PrioritizedState:
    """As `DeviceReplay.add`; new transitions get `max_priority`."""
    t = counted(t)
    ring = self.replay.add(state.ring, t, **step)
    # The steps of this clock are now complete, and take the leaves of those
    # that can no longer be drawn. At first there are none: leaves stay 0.
    clock = t + 1 - self.replay.n_step
    first = (clock % self.replay.starts).astype(jnp.int32)
    first *= self.replay.num_envs
    value = jnp.where(t + 1 >= self.replay.n_step, state.max_priority, 0.0)
    # A single leaf is written twice: XLA turns a single entry into a slice,
    # fuses it into whatever reads the level next, and then copies the level.
    count = max(self.replay.num_envs, 2)
    index = first + jnp.arange(count) % self.replay.num_envs
    leaves = _entries(state.sums[0], index).set(value, mode=arrays.IN_BOUNDS)
    sums = _sum_up((leaves, *state.sums[1:]), index)
    return state._replace(ring=ring, sums=sums)

  def size(self, t: chex.Numeric) -> jax.Array:
    """Returns the number of transitions to draw from at clock t, int32 []."""
    return self.replay.size(t)

  def first_not_finite(self, state: PrioritizedState, t: int) -> str:
    """As `DeviceReplay.first_not_finite`."""
    return self.replay.first_not_finite(state.ring, t)

  @property
  def reads(self) -> tuple[str, ...]:
    """As `PureReplay.reads`: what priorities are made of."""
    return (self.metric,)

  def begin(
    self,
    state: PrioritizedState,
    t: chex.Numeric,
    bits: chex.Array,
    sampling: Sampling,
    relabel: Relabel | None = None,
  ) -> tuple[PrioritizedState, chex.Array]:
    """As `PureReplay.begin`: the state, and the bits for each draw."""
    del t, sampling
    refuse_relabel(relabel)
    return state, bits

  def moving(self, state: PrioritizedState) -> Priorities:
    """As `PureReplay.moving`: the priorities."""
    return Priorities(state.sums, state.max_priority)

  def with_moving(
    self, state: PrioritizedState, moving: Priorities
  ) -> PrioritizedState:
    """As `PureReplay.with_moving`."""
    return state._replace(**moving._asdict())

  def sample(
    self,
    source: PrioritizedState,
    moving: Priorities,
    t: chex.Numeric,
    draw: chex.Array,
    sampling: Sampling,
  ) -> tuple[types.Transition, jax.Array]:
    """Draws B transitions in proportion to their priorities.

    The total is split into B equal strata, and one transition is drawn from
    each. The importance weights are (size * P(i))**-beta, divided by their
    maximum over the batch.

    Args:
      source: the replay at clock t; its own priorities are not read.
      moving: the priorities.
      t: uint32 [] steps done.
      draw: uint32 [B] random.
      sampling: the exponents, and the discount.

    Returns:
      The batch, with these weights, and its int32 indices [B] for `update`.
      Both are meaningless while `size` is 0.
    """
    bits, number = draw, draw.shape[0]
    total = moving.sums[-1].sum()
    # float32 resolves 23 of the bits, too few for a small leaf among a million:
    # the others count where the rest of the sum is small.
    place = jnp.arange(number) + (bits >> 9).astype(jnp.float32) * 2**-23
    rest = place / number * total
    low = (bits & 0x1FF).astype(jnp.float32) * 2**-32 * total
    index, priority = jnp.zeros(number, jnp.int32), total
    for level in reversed(moving.sums):
      child, rest, priority = _descend(level, index, rest, low)
      index = index * level.shape[1] + child
    batch = self.replay.gather(source.ring, t, index, sampling.discount)
    # Size and total cancel out.
    weight = (priority.min() / priority) ** sampling.beta
    return batch._replace(weight=weight), index

  def update(
    self,
    moving: Priorities,
    handle: chex.Array,
    metrics: Mapping[str, chex.Array],
    sampling: Sampling,
  ) -> Priorities:
    """Sets the priorities of a batch; call it before the next `add`.

    Args:
      moving: the priorities.
      handle: int32 [B] indices; among duplicates the largest error counts.
      metrics: holds `metric` [B]. After one that is not finite, all later
        batches of this run are meaningless.
      sampling: `alpha` is the exponent of the priorities.

    Raises:
      ValueError: there is not exactly one error per transition.
    """
    error = metrics[self.metric]
    if error.shape != handle.shape:
      raise ValueError(
        f'{self.metric} is {error.shape}: must be {handle.shape}, one for '
        'each transition'
      )
    priority = (error.astype(jnp.float32) + self.epsilon) ** sampling.alpha
    # A plain write does not define which of several values stays.
    leaves = _entries(moving.sums[0], handle).set(0.0, mode=arrays.IN_BOUNDS)
    leaves = _entries(leaves, handle).max(priority, mode=arrays.IN_BOUNDS)
    return Priorities(
      sums=_sum_up((leaves, *moving.sums[1:]), handle),
      max_priority=jnp.maximum(moving.max_priority, priority.max()),
    )

  def peek(
    self,
    state: PrioritizedState,
    t: chex.Numeric,
    bits: chex.Array,
    discount: chex.Numeric,
  ) -> types.Transition:
    """As `DeviceReplay.peek`: uniform, whatever the priorities."""
    return self.replay.peek(state.ring, t, bits, discount)


def _descend(
  level: jax.Array, node: jax.Array, rest: jax.Array, low: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Finds the child of `node` [B] where the running sum passes `rest + low`.

  Rounding may put that at or beyond the end of the sum. So the child is the
  last positive one that begins at or before it: never one of priority 0.

  Returns:
    int32 [B] children, the remainder of `rest` in each, and their entries.
  """
  rows = arrays.read(level, node)
  child, left, entry = jnp.zeros_like(node), rest, jnp.zeros_like(rest)
  # Unrolled, XLA makes this one loop over B; a cumulative sum is ten times as
  # slow on a CPU. Subtracting keeps digits that a sum would round off.
  for k in range(level.shape[1]):
    found = (rows[:, k] > 0.0) & (rest + low >= 0.0)
    child = jnp.where(found, k, child)
    left = jnp.where(found, rest, left)
    entry = jnp.where(found, rows[:, k], entry)
    rest = rest - rows[:, k]
  return child, left, entry


def _entries(level: jax.Array, index: jax.Array) -> Any:
  """Returns `.at` for entries [B] of a level's flat form.

  It uses two coordinates: XLA would copy a level that it sees in two shapes.
  """
  children = level.shape[1]
  return level.at[index // children, index % children]


def _sum_up(
  sums: tuple[jax.Array, ...], index: jax.Array
) -> tuple[jax.Array, ...]:
  """Recomputes all nodes above leaves [B], level by level."""
  levels = [sums[0]]
  for level in sums[1:]:
    index = index // levels[-1].shape[1]
    values = arrays.read(levels[-1], index).sum(axis=1)
    # Equal indices bring equal values.
    levels.append(_entries(level, index).set(values, mode=arrays.IN_BOUNDS))
  return tuple(levels)
