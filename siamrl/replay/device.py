"""A ring of transitions in device memory, for loops compiled as one program.

N environments step together, and each of their observations is stored once:
n-step returns and successors are assembled when a batch is drawn. Row c of the
ring, modulo its length R, holds the N observations of clock c, the actions
taken there, their rewards, and how the steps ended.

A replay is a static description; its methods are pure functions of a state.
The caller keeps the clock, outside that state. So it stays a plain scalar when
states are vmapped over runs: each write is then one slice at one place, made in
the buffers of a `lax.scan`'s carry, and nothing is copied.

The one observation without a row of its own is the last of a truncated episode,
which values bootstrap from. Two truncations of an environment are at least L
steps apart, so M = R // L + 2 further rows suffice: the step of clock c has row
(c // L) % M. In the L steps of one c // L each environment needs its part of
that row at most once; the row is next used at least (M - 1) * L + 1 > R steps
later, when the transition is gone.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import NamedTuple

import chex
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from siamrl import types
from siamrl.parameters import FieldError
from siamrl.replay import arrays, finite
from siamrl.replay.protocol import Relabel, Sampling
from siamrl.schedule import counted

# How a step ended; 0 where the episode went on.
_TERMINATED, _TRUNCATED = 1, 2


class ReplayState(NamedTuple):
  """State of a `DeviceReplay`, with R rows in the ring and M further ones.

  Attributes:
    obs: [(R + M) * N, D] flat observations; uint32 words of bits if packed.
    steps: int32 [R * N, 2] action * 4 + how the step ended, and the bits of the
      float32 reward: side by side they take one memory access. With continuous
      actions [R * N, 2 + D]: how the step ended, the bits of the reward, and
      those of the action.
  """

  obs: jax.Array
  steps: jax.Array


@dataclasses.dataclass(frozen=True)
class DeviceReplay:
  """A uniform `PureReplay` in device memory, of a `ReplayState`.

  The clock t, a uint32, counts the steps that all N environments have taken
  together. It must stay below 2**32 - 1: beyond that it begins anew, and reads
  and writes are undefined, without an error. With 1,000 environments that is
  after 4 * 10**12 env steps.

  Attributes:
    obs_shape: shape of one observation.
    obs_dtype: type of the observations, bool or a number.
    capacity: transitions that can be drawn once the ring is full; a multiple
      of `num_envs`.
    num_envs: N, environments that step together.
    n_step: rewards summed in a transition.
    max_episode_steps: L, the least number of steps between two truncations of
      the same environment; None if episodes are never truncated. If an
      environment breaks this promise, successors are wrong: `scan.Loop` counts
      such truncations, and other callers must check for them.
    packed: whether to store bool observations as bits.
    action_dim: D of continuous actions; 0 where actions are integers.
    sequence_steps: K, steps of each transition's `future`; 0 for none. It does
      not affect which transitions can be drawn.
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
    return arrays.nbytes(jax.eval_shape(self.init))

  @property
  def starts(self) -> int:
    """Number of clocks that may begin a transition once the ring is full."""
    return self.capacity // self.num_envs

  def init(self) -> ReplayState:
    """Returns an empty replay; call `start` next."""
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
      ValueError: if `obs` has the wrong shape or dtype.
    """
    rows = self._encode('obs', obs)
    return state._replace(obs=arrays.write(state.obs, rows, 0))

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
    """Stores the step taken at clock t and its outcome.

    Args:
      state: the replay at clock t.
      t: uint32 [] steps done before this one.
      action: integer [N], of magnitude below 2**29; or float [N, D], stored
        exactly as float32.
      reward: [N] of the step.
      terminated: bool [N] whether no value lies beyond this step.
      ended: bool [N] whether the episode is over, terminated or truncated; not
        read if `max_episode_steps` is None.
      final_obs: [N, ...] the observations that followed in the same episodes;
        read only where one was truncated.
      obs: [N, ...] the observations to act on next: the next episode's first
        where one ended, and those that followed elsewhere.

    Returns:
      The replay at clock t + 1.

    Raises:
      ValueError: if an argument has the wrong shape, or an action or an
        observation the wrong dtype.
    """
    t, action = counted(t), jnp.asarray(action)
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
      # Elsewhere the row may hold observations that are still needed.
      kept = lax.dynamic_slice_in_dim(ring, at, self.num_envs)
      cut = (end == _TRUNCATED)[:, None]
      ring = arrays.write(ring, jnp.where(cut, last_rows, kept), at)
    first = end if self.action_dim else action * 4 + end
    step = jnp.stack([first, _bits(reward)], axis=1)
    if self.action_dim:
      step = jnp.concatenate([step, _bits(action)], axis=1)
    return ReplayState(
      obs=arrays.write(ring, next_rows, self._row(t + 1) * self.num_envs),
      steps=arrays.write(state.steps, step, self._row(t) * self.num_envs),
    )

  def size(self, t: chex.Numeric) -> jax.Array:
    """Returns the number of transitions to draw from at clock t, int32 [].

    Each environment's step of clock c can be drawn from clock c + n_step on,
    however soon its episode ended, until `capacity` newer ones can.
    """
    begun = counted(t) + 1
    whole = begun - jnp.minimum(begun, self.n_step)  # never below 0
    return jnp.minimum(whole, self.starts).astype(jnp.int32) * self.num_envs

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
    refuse_relabel(relabel)
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
    """Draws B transitions uniformly, with replacement.

    This is exact if the size is a power of 2. Otherwise probabilities differ by
    at most size / 2**32, relatively.

    Args:
      state: the replay at clock t.
      t: uint32 [] steps done.
      bits: uint32 [B] random.
      discount: float [] per env step.

    Returns:
      The batch, which is meaningless while `size` is 0.
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
    """Returns the transitions of int32 indices [B], each below `size`.

    The step of clock c in environment i has index
    c % (capacity / N) * N + i while it can be drawn.
    """
    t, envs = counted(t), self.num_envs
    position = index // envs
    env = index - position * envs
    # The newest clock that may begin a transition, and that of each index.
    newest = t - self.n_step
    clock = newest - (newest - counted(position)) % self.starts

    reach = max(self.n_step, self.sequence_steps)
    window = clock[:, None] + jnp.arange(reach, dtype=jnp.uint32)
    window = self._row(window) * envs + env[:, None]  # [B, n or K]
    steps = arrays.read(state.steps, window)  # [B, n or K, 2 or 2 + D]
    ends = steps[..., 0] & 3
    rewards = _float(steps[..., 1])
    # From the last step back to the first, so that the earliest end wins.
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

    final = clock + counted(final)  # the clock of the last step that counts
    # A terminated episode's last observation is never used, so it is not
    # stored: the one before stands in for it.
    row = self._row(final + (end != _TERMINATED))
    if self.max_episode_steps is not None:
      row = jnp.where(end == _TRUNCATED, self._further_row(final), row)
    return types.Transition(
      obs_tm1=self._decode(arrays.read(state.obs, window[:, 0])),
      a_tm1=_float(steps[:, 0, 2:]) if self.action_dim else steps[:, 0, 0] >> 2,
      r_t=r_t,
      discount_t=discount_t,
      obs_t=self._decode(arrays.read(state.obs, row * envs + env)),
      future=self._future(state, t, clock, env, steps)
      if self.sequence_steps
      else None,
    )

  def first_not_finite(self, state: ReplayState, t: int) -> str:
    """Names the kind of the first stored value that is not finite; on the host.

    Args:
      state: the replay at clock t, of arrays of any kind.
      t: steps done.

    Returns:
      'observation', 'action' or 'reward'; '' if all are finite, or the first
      one may no longer be stored.
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
    """Returns the K steps from given clocks on.

    Args:
      state: the replay at clock t.
      t: uint32 [] steps done.
      clock: uint32 [B] of the first step, which is done.
      env: int32 [B].
      steps: int32 [B, K or more, 2 or 2 + D], entries of the steps from there
        on; those not yet done are meaningless.
    """
    steps = steps[:, : self.sequence_steps]
    number = jnp.arange(self.sequence_steps, dtype=jnp.uint32)
    ends = steps[..., 0] & 3
    over = ends > 0
    mask = (
      (clock[:, None] + number < t)
      & (ends != _TERMINATED)
      & (jnp.cumsum(over, 1) - over == 0)  # no end before
    )
    # Steps from the first observation to that of each entry.
    counting = jnp.sum(mask, 1, keepdims=True, dtype=jnp.uint32)
    ahead = jnp.minimum(number + 1, counting)  # [B, K]
    last = jnp.maximum(ahead, 1) - 1  # the step that led there
    row = self._row(clock[:, None] + ahead)
    if self.max_episode_steps is not None:
      # If no step counts, the first one terminated, so nothing was cut.
      cut = jnp.take_along_axis(ends, last, 1) == _TRUNCATED
      row = jnp.where(cut, self._further_row(clock[:, None] + last), row)
    obs = arrays.read(
      state.obs, (row * self.num_envs + env[:, None]).reshape(-1)
    )
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
  def _rows(self) -> int:
    """R: `starts`, and the n rows that complete the newest of them."""
    return self.starts + self.n_step

  @property
  def _further_rows(self) -> int:
    """M; see the module's docstring."""
    if self.max_episode_steps is None:
      return 0
    return self._rows // self.max_episode_steps + 2

  def _further_row(self, clock: jax.Array) -> jax.Array:
    """Returns the row for the final observations of the steps of `clock`."""
    assert self.max_episode_steps is not None
    block = clock // self.max_episode_steps
    return self._rows + (block % self._further_rows).astype(jnp.int32)

  def _row(self, clock: jax.Array) -> jax.Array:
    """Returns the row for the observations and steps of `clock`, int32."""
    return (clock % self._rows).astype(jnp.int32)

  def _encode(self, name: str, obs: chex.Array) -> jax.Array:
    """Encodes observations [N, ...] as stored rows [N, D]."""
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
    """Decodes stored rows [B, D] to observations [B, ...]."""
    if self.packed:
      places = jnp.arange(32, dtype=jnp.uint32)
      rows = (rows[:, :, None] >> places) & 1 > 0
      rows = rows.reshape(len(rows), -1)[:, : math.prod(self.obs_shape)]
    return rows.reshape(len(rows), *self.obs_shape)


def refuse_relabel(relabel: Relabel | None) -> None:
  """Raises ValueError if `relabel` is given, which rings cannot apply."""
  if relabel is not None:
    raise ValueError('relabel must be None: a ring does not draw in order')


def _bits(values: chex.Array) -> jax.Array:
  """Returns the bits of float32 values as int32."""
  values = jnp.asarray(values, jnp.float32)
  return lax.bitcast_convert_type(values, jnp.int32)


def _float(bits: jax.Array) -> jax.Array:
  return lax.bitcast_convert_type(bits, jnp.float32)
