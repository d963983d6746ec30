"""A ring of transitions in device memory, for loops compiled as one program.

N environments step together, and each of their observations is stored once:
n-step returns and successors are put together when a batch is drawn. Row c of
the ring, modulo its length R, holds the N observations of clock c, the actions
taken there and what they led to.

A replay is a static description; its methods are pure functions of a state.
The clock is the caller's and no part of that state. So it stays a plain scalar
when states are vmapped over runs: each write is then one slice at one place,
made in the buffers of a `lax.scan`'s carry, and nothing is copied.

The one observation without a row of its own is the last of an episode that was
truncated, from which values go on. Two truncations of an environment are at
least L steps apart, so that M = R // L + 2 further rows hold all that matter:
the step of clock c has row (c // L) % M. In the L steps of one c // L each
environment needs its part of that row once at most; the next steps with that
row come at least (M - 1) * L + 1 > R later, when the transition is gone.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, NamedTuple

import chex
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from siamrl import types
from siamrl.parameters import FieldError
from siamrl.replay import finite
from siamrl.replay.protocol import Relabel, Sampling

# How a step ended; 0 where the episode went on.
_TERMINATED, _TRUNCATED = 1, 2

# Children to a node of the sum tree: of 4, 8, 16, 32 the fastest on a CPU.
_FAN_OUT = 8

# XLA clamps an index anyway: JAX need not check it first.
_IN_BOUNDS = 'promise_in_bounds'


class ReplayState(NamedTuple):
  """What a `DeviceReplay` holds, of R rows in the ring and M further ones.

  Attributes:
    obs: [(R + M) * N, D] flat observations; uint32 words of bits if packed.
    steps: int32 [R * N, 2] action * 4 + how the step ended, and the bits of the
      float32 reward: side by side they come with one access to memory. With
      continuous actions [R * N, 2 + D]: how the step ended, the bits of the
      reward, and those of the action.
  """

  obs: jax.Array
  steps: jax.Array


@dataclasses.dataclass(frozen=True)
class DeviceReplay:
  """A uniform `PureReplay` in device memory, of a `ReplayState`.

  The clock t counts steps of all N environments together that are done, and is
  an int32. It must stay below 2**31 - 1: beyond that it is negative and what is
  read and written is undefined, with no error. With 1,000 environments that is
  after 2 * 10**12 env steps.

  Attributes:
    obs_shape: of one observation.
    obs_dtype: of the observations, bool or a number.
    capacity: transitions that can be sampled once the ring is full; a multiple
      of `num_envs`.
    num_envs: N, environments that step together.
    n_step: rewards summed in a transition.
    max_episode_steps: L, steps that lie between two truncations of the same
      environment at least; None if there never is one. If an environment breaks
      this promise, successors are wrong: `scan.Loop` counts such truncations,
      and whoever adds transitions in another way must see to it.
    packed: store bool observations as bits.
    action_dim: D of continuous actions; 0 where actions are integers.
    sequence_steps: K, steps of each transition's `future`; 0 for none. Nothing
      but that depends on it: the same transitions can be sampled.
  """

  obs_shape: tuple[int, ...]
  obs_dtype: npt.DTypeLike
  capacity: int
  num_envs: int
  n_step: int = 1
  max_episode_steps: int | None = None
  packed: bool = False
  action_dim: int = 0
  sequence_steps: int = 0

  def __post_init__(self) -> None:
    """Checks the settings.

    Raises:
      ValueError: if one is outside what is allowed.
    """
    # Equal descriptions must be equal: they may be static arguments of a jit.
    object.__setattr__(self, 'obs_shape', tuple(int(d) for d in self.obs_shape))
    object.__setattr__(self, 'obs_dtype', np.dtype(self.obs_dtype))
    for name in ('num_envs', 'n_step', 'capacity'):
      if getattr(self, name) < 1:
        raise FieldError(name, getattr(self, name), ': must be at least 1')
    for name in ('action_dim', 'sequence_steps'):
      if getattr(self, name) < 0:
        raise FieldError(name, getattr(self, name), ': must be at least 0')
    if self.max_episode_steps is not None and self.max_episode_steps < 1:
      raise FieldError(
        'max_episode_steps',
        self.max_episode_steps,
        ': must be at least 1, or None',
      )
    if self.capacity % self.num_envs:
      raise FieldError(
        'capacity',
        self.capacity,
        f': must be a multiple of num_envs={self.num_envs}',
      )
    if any(d < 1 for d in self.obs_shape):
      raise FieldError(
        'obs_shape', self.obs_shape, ': every size must be at least 1'
      )
    if self._dtype != np.bool_ and (
      not jnp.issubdtype(self._dtype, jnp.number)
      or self._dtype != jax.dtypes.canonicalize_dtype(self._dtype)
    ):
      raise FieldError(
        'obs_dtype', self._dtype, ': must be bool or a number that JAX has'
      )
    if self.packed and self._dtype != np.bool_:
      raise FieldError(
        'packed',
        self.packed,
        f': must be False unless obs_dtype is bool, and it is {self._dtype}',
      )
    rows = self._rows + self._further_rows
    if rows * self.num_envs >= 2**31:
      raise FieldError(
        'capacity',
        self.capacity,
        f': must be so small that its {rows * self.num_envs} '
        'observations are counted in int32',
      )

  @property
  def nbytes(self) -> int:
    """Bytes of one run's state; known before anything is allocated."""
    return _nbytes(jax.eval_shape(self.init))

  def init(self) -> ReplayState:
    """An empty replay; `start` comes next."""
    steps = self._rows * self.num_envs
    slots = steps + self._further_rows * self.num_envs
    size = math.prod(self.obs_shape)
    return ReplayState(
      obs=jnp.zeros((slots, -(-size // 32)), jnp.uint32)
      if self.packed
      else jnp.zeros((slots, size), self._dtype),
      steps=jnp.zeros((steps, 2 + self.action_dim), jnp.int32),
    )

  def start(self, state: ReplayState, obs: chex.Array) -> ReplayState:
    """Stores the observations of clock 0.

    Args:
      state: an empty replay.
      obs: [N, ...] the first observations.

    Raises:
      ValueError: if `obs` has another shape or dtype.
    """
    rows = self._encode('obs', obs)
    return state._replace(obs=_write(state.obs, rows, 0))

  def add(
    self,
    state: ReplayState,
    t: chex.Numeric,
    *,
    action: chex.Array,
    reward: chex.Array,
    terminated: chex.Array,
    ended: chex.Array,
    final_obs: chex.Array,
    obs: chex.Array,
  ) -> ReplayState:
    """Stores the step that was taken at clock t, and where it led.

    Args:
      state: the replay at clock t.
      t: int32 [] steps done before this one.
      action: integer [N], of magnitude below 2**29; or float [N, D], of which
        float32 is kept to the last bit.
      reward: [N] that followed.
      terminated: bool [N] no value lies beyond this step.
      ended: bool [N] the episode is over, terminated or truncated. If
        `max_episode_steps` is None, `terminated` says it all.
      final_obs: [N, ...] the observations that followed, of the same episodes;
        read where one was truncated only.
      obs: [N, ...] the observations to act on next: where an episode ended the
        first one of the next, and elsewhere those that followed.

    Returns:
      The replay at clock t + 1.

    Raises:
      ValueError: if an argument has another shape, or an action or an
        observation another dtype.
    """
    t, action = jnp.asarray(t, jnp.int32), jnp.asarray(action)
    each = (self.num_envs,)
    for name, value, shape in (
      ('action', action, each + (self.action_dim,) * (self.action_dim > 0)),
      ('reward', reward, each),
      ('terminated', terminated, each),
      ('ended', ended, each),
    ):
      if np.shape(value) != shape:
        raise ValueError(f'{name} is {np.shape(value)}: must be {shape}')
    kind = jnp.floating if self.action_dim else jnp.integer
    if not jnp.issubdtype(action.dtype, kind):
      raise ValueError(f'action is {action.dtype}: must be {kind.__name__}')
    last_rows = self._encode('final_obs', final_obs)
    next_rows = self._encode('obs', obs)

    end = jnp.where(terminated, _TERMINATED, 0)
    ring = state.obs
    if self.max_episode_steps is not None:
      end = jnp.where(ended & ~terminated, _TRUNCATED, end)
      at = self._further_row(t) * self.num_envs
      # Elsewhere the row may hold what is still needed.
      kept = lax.dynamic_slice_in_dim(ring, at, self.num_envs)
      cut = (end == _TRUNCATED)[:, None]
      ring = _write(ring, jnp.where(cut, last_rows, kept), at)
    first = end if self.action_dim else action * 4 + end
    step = jnp.stack([first, _bits(reward)], axis=1)
    if self.action_dim:
      step = jnp.concatenate([step, _bits(action)], axis=1)
    return ReplayState(
      obs=_write(ring, next_rows, (t + 1) % self._rows * self.num_envs),
      steps=_write(state.steps, step, t % self._rows * self.num_envs),
    )

  def size(self, t: chex.Numeric) -> jax.Array:
    """int32 [], how many transitions can be sampled at clock t.

    Each environment's step of clock c can from clock c + n_step on, however
    soon its episode ended, until `capacity` newer ones can.
    """
    t = jnp.asarray(t, jnp.int32)
    return jnp.clip(t + 1 - self.n_step, 0, self._starts) * self.num_envs

  @property
  def reads(self) -> tuple[str, ...]:
    """As `PureReplay.reads`: none."""
    return ()

  def begin(
    self,
    state: ReplayState,
    t: chex.Numeric,
    bits: chex.Array,
    sampling: Sampling,
    relabel: Relabel | None = None,
  ) -> tuple[ReplayState, chex.Array]:
    """As `PureReplay.begin`: the state, and the bits for each draw."""
    del t, sampling
    _refuse(relabel)
    return state, bits

  def moving(self, state: ReplayState) -> tuple[()]:
    """As `PureReplay.moving`: nothing."""
    del state
    return ()

  def with_moving(self, state: ReplayState, moving: tuple[()]) -> ReplayState:
    """As `PureReplay.with_moving`: the state itself."""
    del moving
    return state

  def sample(
    self,
    source: ReplayState,
    moving: tuple[()],
    t: chex.Numeric,
    draw: chex.Array,
    sampling: Sampling,
  ) -> tuple[types.Transition, tuple[()]]:
    """As `PureReplay.sample`: draws as `peek` does."""
    return self.peek(source, t, draw, sampling.discount), moving

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
    state: ReplayState,
    t: chex.Numeric,
    bits: chex.Array,
    discount: chex.Numeric,
  ) -> types.Transition:
    """Draws B transitions, with replacement, each of them equally likely.

    Exactly, they are so for a size that is a power of 2. Otherwise two of them
    differ by at most size / 2**32, relatively.

    Args:
      state: the replay at clock t.
      t: int32 [] steps done.
      bits: uint32 [B] random.
      discount: float [] per env step.

    Returns:
      The batch. While `size` is 0 it has no meaning.
    """
    size = jnp.maximum(self.size(t), 1).astype(jnp.uint32)
    index = (bits % size).astype(jnp.int32)
    return self.gather(state, t, index, discount)

  def gather(
    self,
    state: ReplayState,
    t: chex.Numeric,
    index: chex.Array,
    discount: chex.Numeric,
  ) -> types.Transition:
    """The transitions of int32 indices [B], each below `size`.

    The step of clock c in environment i is number
    c % (capacity / N) * N + i for as long as it can be sampled.
    """
    t = jnp.asarray(t, jnp.int32)
    rows, envs = self._rows, self.num_envs
    position = index // envs
    env = index - position * envs
    # The newest clock that may begin a transition, and that of each index.
    newest = t - self.n_step
    clock = newest - lax.rem(newest - position, jnp.int32(self._starts))

    reach = max(self.n_step, self.sequence_steps)
    window = clock[:, None] + jnp.arange(reach, dtype=jnp.int32)
    window = window % rows * envs + env[:, None]  # [B, n or K]
    steps = _read(state.steps, window)  # [B, n or K, 2 or 2 + D]
    ends = steps[..., 0] & 3
    rewards = _float(steps[..., 1])
    # From the last step back to the first: the earliest end has its way.
    r_t = jnp.zeros(index.shape, jnp.float32)
    discount_t = jnp.ones(index.shape, jnp.float32)
    final = jnp.full(index.shape, self.n_step - 1, jnp.int32)
    end = jnp.zeros(index.shape, jnp.int32)
    for k in reversed(range(self.n_step)):
      over = ends[:, k] > 0
      r_t = rewards[:, k] + jnp.where(over, 0.0, discount * r_t)
      discount_t = discount * jnp.where(over, 1.0, discount_t)
      final = jnp.where(over, k, final)
      end = jnp.where(over, ends[:, k], end)
    discount_t = jnp.where(end == _TERMINATED, 0.0, discount_t)

    final = clock + final  # the clock of the last step that counts
    # A terminated episode's last observation is never looked at, and not here:
    # the one before stands in for it.
    row = (final + (end != _TERMINATED)) % rows
    if self.max_episode_steps is not None:
      row = jnp.where(end == _TRUNCATED, self._further_row(final), row)
    return types.Transition(
      obs_tm1=self._decode(_read(state.obs, window[:, 0])),
      a_tm1=_float(steps[:, 0, 2:]) if self.action_dim else steps[:, 0, 0] >> 2,
      r_t=r_t,
      discount_t=discount_t,
      obs_t=self._decode(_read(state.obs, row * envs + env)),
      future=self._future(state, t, clock, env, steps)
      if self.sequence_steps
      else None,
    )

  def first_not_finite(self, state: ReplayState, t: int) -> str:
    """Names what was stored first that is not finite; on the host.

    Args:
      state: the replay at clock t, of arrays of any kind.
      t: steps done.

    Returns:
      'observation', 'action' or 'reward'; '' if all are finite, or the first
      of them is no longer stored.
    """
    rows, envs = self._rows, self.num_envs
    stored = np.asarray(state.obs)
    clocks = np.arange(max(0, t - rows + 1), t)
    obs = stored[: rows * envs].reshape(rows, envs, -1)[clocks % rows]
    steps = np.asarray(state.steps).reshape(rows, envs, -1)[clocks % rows]
    rewards = steps[..., 1].view(np.float32)
    actions = steps[..., 2:].view(np.float32) if self.action_dim else steps
    found = finite.first_not_finite(
      obs, actions, rewards, whole=len(clocks) == t
    )
    # The last observations of episodes that were cut have no place in time.
    cut = stored[rows * envs :]
    if not found and cut.dtype.kind == 'f' and not np.isfinite(cut).all():
      return 'observation'
    return found

  def _future(
    self,
    state: ReplayState,
    t: chex.Numeric,
    clock: jax.Array,
    env: jax.Array,
    steps: jax.Array,
  ) -> types.Future:
    """The K steps from given clocks on.

    Args:
      state: the replay at clock t.
      t: int32 [] steps done.
      clock: int32 [B] of the first step, which is done.
      env: int32 [B].
      steps: int32 [B, K or more, 2 or 2 + D], entries of the steps from there
        on; those that are not done have no meaning.
    """
    steps = steps[:, : self.sequence_steps]
    number = jnp.arange(self.sequence_steps, dtype=jnp.int32)
    ends = steps[..., 0] & 3
    over = ends > 0
    mask = (
      (clock[:, None] + number < t)
      & (ends != _TERMINATED)
      & (jnp.cumsum(over, 1) - over == 0)  # no end before
    )
    # Steps from the first observation to that of each entry.
    ahead = jnp.minimum(number + 1, jnp.sum(mask, 1, keepdims=True))  # [B, K]
    last = jnp.maximum(ahead - 1, 0)  # the step that led there
    row = (clock[:, None] + ahead) % self._rows
    if self.max_episode_steps is not None:
      # If no step counts, the first one has terminated, and cut nothing.
      cut = jnp.take_along_axis(ends, last, 1) == _TRUNCATED
      row = jnp.where(cut, self._further_row(clock[:, None] + last), row)
    obs = _read(state.obs, (row * self.num_envs + env[:, None]).reshape(-1))
    steps = jnp.take_along_axis(steps, last[..., None], 1)
    return types.Future(
      a=_float(steps[..., 2:]) if self.action_dim else steps[..., 0] >> 2,
      obs=self._decode(obs).reshape(*mask.shape, *self.obs_shape),
      mask=mask,
    )

  @property
  def _dtype(self) -> np.dtype:
    return np.dtype(self.obs_dtype)

  @property
  def _starts(self) -> int:
    """Clocks that may begin a transition, once the ring is full."""
    return self.capacity // self.num_envs

  @property
  def _rows(self) -> int:
    """R: those clocks, and n more until the newest of them is whole."""
    return self._starts + self.n_step

  @property
  def _further_rows(self) -> int:
    """M; see the module's docstring."""
    if self.max_episode_steps is None:
      return 0
    return self._rows // self.max_episode_steps + 2

  def _further_row(self, clock: jax.Array) -> jax.Array:
    """The row for the final observations of steps of these clocks."""
    assert self.max_episode_steps is not None
    block = clock // self.max_episode_steps
    return self._rows + block % self._further_rows

  def _encode(self, name: str, obs: chex.Array) -> jax.Array:
    """Observations [N, ...] as they are stored, [N, D]."""
    array = jnp.asarray(obs)
    shape = (self.num_envs, *self.obs_shape)
    if array.shape != shape or array.dtype != self._dtype:
      raise ValueError(
        f'{name} is {array.dtype} {array.shape}: must be {self._dtype} {shape}'
      )
    array = array.reshape(self.num_envs, -1)
    if not self.packed:
      return array
    array = jnp.pad(array, ((0, 0), (0, -array.shape[1] % 32)))
    array = array.reshape(self.num_envs, -1, 32).astype(jnp.uint32)
    places = jnp.arange(32, dtype=jnp.uint32)
    return jnp.sum(array << places, axis=-1, dtype=jnp.uint32)

  def _decode(self, rows: jax.Array) -> jax.Array:
    """Stored rows [B, D] as observations [B, ...]."""
    if self.packed:
      places = jnp.arange(32, dtype=jnp.uint32)
      rows = (rows[:, :, None] >> places) & 1 > 0
      rows = rows.reshape(len(rows), -1)[:, : math.prod(self.obs_shape)]
    return rows.reshape(len(rows), *self.obs_shape)


class Priorities(NamedTuple):
  """What learning changes of a `PrioritizedReplay`.

  Attributes:
    sums: as in `PrioritizedState`.
    max_priority: as in `PrioritizedState`.
  """

  sums: tuple[jax.Array, ...]
  max_priority: jax.Array


class PrioritizedState(NamedTuple):
  """What a `PrioritizedReplay` holds.

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

  It is the proportional variant of Schaul et al. 2016, arXiv 1511.05952. A leaf
  of the sum tree is the priority of one transition, |TD error|**alpha, and 0
  while there is none. A node is always the sum of its children anew: adding
  differences to it would pile up float32 rounding errors.

  Attributes:
    replay: describes the ring.
    epsilon: is added to |TD error|, lest a transition never come up again.
  """

  replay: DeviceReplay
  epsilon: float = 1e-6

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
    return _nbytes(jax.eval_shape(self.init))

  def init(self) -> PrioritizedState:
    """An empty replay; `start` comes next."""
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
    """As `DeviceReplay.add`; what is new can be sampled at `max_priority`."""
    t = jnp.asarray(t, jnp.int32)
    ring = self.replay.add(state.ring, t, **step)
    # The steps of this clock become whole, and take the leaves of those that
    # cease to be sampled. At first there are none, and the leaves stay 0.
    clock = t + 1 - self.replay.n_step
    first = clock % self.replay._starts * self.replay.num_envs
    value = jnp.where(clock >= 0, state.max_priority, 0.0)
    # A single leaf is written twice: XLA makes a slice of a single entry, fuses
    # it into whatever reads the level afterwards, and then copies the level.
    count = max(self.replay.num_envs, 2)
    index = first + jnp.arange(count) % self.replay.num_envs
    leaves = _entries(state.sums[0], index).set(value, mode=_IN_BOUNDS)
    sums = _sum_up((leaves, *state.sums[1:]), index)
    return state._replace(ring=ring, sums=sums)

  def size(self, t: chex.Numeric) -> jax.Array:
    """int32 [], how many transitions can be sampled at clock t."""
    return self.replay.size(t)

  def first_not_finite(self, state: PrioritizedState, t: int) -> str:
    """As `DeviceReplay.first_not_finite`."""
    return self.replay.first_not_finite(state.ring, t)

  @property
  def reads(self) -> tuple[str, ...]:
    """As `PureReplay.reads`: the size of each TD error."""
    return ('td_error_abs',)

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
    _refuse(relabel)
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

    The total is cut into B equal strata, and each yields one transition. The
    importance weights are (size * P(i))**-beta, divided by their maximum over
    the batch.

    Args:
      source: the replay at clock t; its own priorities are not read.
      moving: the priorities.
      t: int32 [] steps done.
      draw: uint32 [B] random.
      sampling: the numbers to draw by.

    Returns:
      The batch, with these weights, and its int32 indices [B] for `update`.
      While `size` is 0 they have no meaning.
    """
    bits, number = draw, draw.shape[0]
    total = moving.sums[-1].sum()
    # float32 surely tells 23 of the bits apart, too few for a small leaf among
    # a million: the others count where what is left of the sum is small.
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
    """Sets the priorities of a batch; comes before the next `add`.

    Args:
      moving: the priorities.
      handle: int32 [B] indices; of equal ones the largest error counts.
      metrics: `td_error_abs` [B] is read. One that is not finite makes all that
        is sampled from then on meaningless, in this run only.
      sampling: `alpha` is the exponent of the priorities.

    Raises:
      ValueError: there is not one TD error for each transition.
    """
    error = metrics['td_error_abs']
    if error.shape != handle.shape:
      raise ValueError(
        f'td_error_abs is {error.shape}: must be {handle.shape}, one for each '
        'transition'
      )
    priority = (error.astype(jnp.float32) + self.epsilon) ** sampling.alpha
    # A plain write leaves open which of several values stays.
    leaves = _entries(moving.sums[0], handle).set(0.0, mode=_IN_BOUNDS)
    leaves = _entries(leaves, handle).max(priority, mode=_IN_BOUNDS)
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
    """As `DeviceReplay.peek`: whatever the priorities are."""
    return self.replay.peek(state.ring, t, bits, discount)


def _refuse(relabel: Relabel | None) -> None:
  """Raises ValueError where a ring is to make returns of a sequence."""
  if relabel is not None:
    raise ValueError('relabel must be None: a ring draws in no order')


def _descend(
  level: jax.Array, node: jax.Array, rest: jax.Array, low: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """In which child of `node` [B] the running sum passes `rest + low` [B].

  Rounding may put that at the end of the sum, or beyond. So the child is the
  last positive one that begins at or before it: never one of priority 0.

  Returns:
    int32 [B] the children, what is left of `rest` in each, and their entries.
  """
  rows = _read(level, node)
  child, left, entry = jnp.zeros_like(node), rest, jnp.zeros_like(rest)
  # Written out, this is one loop over B to XLA; a cumulative sum is ten times
  # as slow on a CPU. To subtract keeps the digits that a sum would round off.
  for k in range(level.shape[1]):
    found = (rows[:, k] > 0.0) & (rest + low >= 0.0)
    child = jnp.where(found, k, child)
    left = jnp.where(found, rest, left)
    entry = jnp.where(found, rows[:, k], entry)
    rest = rest - rows[:, k]
  return child, left, entry


def _entries(level: jax.Array, index: jax.Array) -> Any:
  """What `.at` gives for entries [B] of a level's flat form.

  By two coordinates: XLA would copy a level that it sees in two shapes.
  """
  children = level.shape[1]
  return level.at[index // children, index % children]


def _sum_up(
  sums: tuple[jax.Array, ...], index: jax.Array
) -> tuple[jax.Array, ...]:
  """Sums anew all that lies above leaves [B], on each level."""
  levels = [sums[0]]
  for level in sums[1:]:
    index = index // levels[-1].shape[1]
    values = _read(levels[-1], index).sum(axis=1)
    # Equal indices bring equal values.
    levels.append(_entries(level, index).set(values, mode=_IN_BOUNDS))
  return tuple(levels)


def _write(array: jax.Array, rows: jax.Array, at: chex.Numeric) -> jax.Array:
  return lax.dynamic_update_slice_in_dim(
    array, rows.astype(array.dtype), at, axis=0
  )


def _bits(values: chex.Array) -> jax.Array:
  """The bits of float32 values, int32."""
  values = jnp.asarray(values, jnp.float32)
  return lax.bitcast_convert_type(values, jnp.int32)


def _float(bits: jax.Array) -> jax.Array:
  return lax.bitcast_convert_type(bits, jnp.float32)


def _read(array: jax.Array, index: jax.Array) -> jax.Array:
  return array.at[index].get(mode=_IN_BOUNDS, wrap_negative_indices=False)


def _nbytes(state: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
