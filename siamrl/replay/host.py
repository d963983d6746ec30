"""A ring of transitions in host memory that stores each frame once.

A stacked observation shares all but one of its frames with the next, and an
n-step successor is itself an observation. So the ring stores single frames and
rebuilds stacks, successors and n-step returns when a batch is drawn: an 84x84
transition takes about 7,056 bytes instead of eight times as many.

Each environment has a ring of its own. A *slot* of it is one observation:

* its newest frame, and its *age*: the number of earlier frames of the episode
  in its stack (at most stack - 1);
* the action taken there, its reward and whether the task terminated with it.

A slot is written when its frame arrives. It is *open* until the outcome of its
action is known, then *closed*. An episode's final observation becomes a *last*
slot: a successor for those before it, never the start of a transition.
"""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from siamrl import types
from siamrl.parameters import FieldError
from siamrl.replay import segments

# Flags of a slot; one never written has none. _TERMINATED joins _CLOSED.
_OPEN, _CLOSED, _LAST, _TERMINATED = 1, 2, 4, 8
# The action in open and last slots; a continuous one has NaN in each entry.
_NO_ACTION = -1

_FORMAT = 1
# Bytes of slots per segment file before compression: this bounds the memory
# that a save or load takes, and lets a full ring drop old files piecemeal.
_SEGMENT_NBYTES = 32 * 2**20


class HostReplay:
  """A uniform `StatefulReplay`: N rings of T slots, T = capacity / N.

  Not thread-safe: calls must not overlap.

  Attributes:
    capacity: slots in all rings together. A stored episode takes one slot per
      transition and one for its final observation.
    num_envs: N, environments, each with its own ring.
    stack: S, frames in an observation.
    n_step: rewards summed in a transition.
    discount: the discount per env step.
    action_dim: D of continuous actions; 0 where actions are integers.
    sequence_steps: K, steps of each transition's `future`; 0 for none.
  """

  def __init__(
    self,
    capacity: int,
    *,
    frame_shape: Sequence[int],
    frame_dtype: npt.DTypeLike = np.uint8,
    num_envs: int = 1,
    stack: int = 4,
    n_step: int = 1,
    discount: float = 0.99,
    action_dim: int = 0,
    sequence_steps: int = 0,
  ):
    """Reserves memory for the rings, which is committed as they fill.

    Args:
      capacity: slots in all, a multiple of `num_envs` with at least
        `stack + n_step` for each environment.
      frame_shape: shape of one frame, without the stack axis.
      frame_dtype: type of the frames; bool or a number.
      num_envs: N, at least 1.
      stack: S, 1 to 256 frames.
      n_step: rewards summed in a transition, at least 1.
      discount: per env step, in [0, 1].
      action_dim: D of continuous actions, float32 [D] each; 0 for integers.
      sequence_steps: K, steps of each transition's `future`; 0 for none. It
        does not affect which transitions are drawn, and files saved with one K
        can be loaded with another.

    Raises:
      ValueError: if an argument is outside what is allowed above.
    """
    shape = tuple(int(d) for d in frame_shape)
    dtype = np.dtype(frame_dtype)
    if num_envs < 1:
      raise FieldError('num_envs', num_envs, ': must be at least 1')
    if not 1 <= stack <= 256:
      raise FieldError('stack', stack, ': must be 1 to 256')
    if n_step < 1:
      raise FieldError('n_step', n_step, ': must be at least 1')
    if not 0.0 <= discount <= 1.0:
      raise FieldError('discount', discount, ': must be in [0, 1]')
    if action_dim < 0:
      raise FieldError('action_dim', action_dim, ': must be at least 0')
    if sequence_steps < 0:
      raise FieldError('sequence_steps', sequence_steps, ': must be at least 0')
    if any(d < 1 for d in shape):
      raise FieldError('frame_shape', shape, ': every size must be at least 1')
    if dtype.kind not in 'biuf':
      raise FieldError('frame_dtype', dtype, ': must be bool, integer or float')
    if capacity % num_envs:
      raise FieldError(
        'capacity', capacity, f': must be a multiple of num_envs={num_envs}'
      )
    if capacity < num_envs * (stack + n_step):
      raise FieldError(
        'capacity',
        capacity,
        ': must be at least num_envs * (stack + n_step) = '
        f'{num_envs * (stack + n_step)}',
      )
    self.capacity, self.num_envs = capacity, num_envs
    self.stack, self.n_step, self.discount = stack, n_step, discount
    self.action_dim, self.sequence_steps = action_dim, sequence_steps
    self._frame_shape, self._frame_dtype = shape, dtype
    self._length = capacity // num_envs  # T

    # [N * T, ...], slot t of environment i at i * T + t. np.zeros leaves the
    # pages to be committed by their first write.
    self._frames = np.zeros((capacity, math.prod(shape)), dtype)
    self._actions = (
      np.zeros((capacity, action_dim), np.float32)
      if action_dim
      else np.zeros(capacity, np.int32)
    )
    self._no_action = math.nan if action_dim else _NO_ACTION
    self._rewards = np.zeros(capacity, np.float32)
    self._flags = np.zeros(capacity, np.uint8)
    self._ages = np.zeros(capacity, np.uint8)

    self._envs = np.arange(num_envs)
    self._rows = self._envs * self._length  # [N] where each ring begins
    # [N] slots written so far; the newest, slot written - 1, is the open one.
    self._written = np.zeros(num_envs, np.int64)
    # [N] closed slots still without their n-step successor: always those just
    # before the open slot.
    self._pending = np.zeros(num_envs, np.int64)
    self._size = 0

    # Tables built once, for the methods below.
    self._back = np.arange(stack)  # [S]
    self._next_age = np.minimum(self._back + 1, stack - 1)  # [S]
    self._ahead = np.arange(n_step)  # [n]
    self._sequence = np.arange(sequence_steps)  # [K]
    self._powers = discount ** np.arange(n_step + 1, dtype=np.float64)

    # The segments already in files, as in a manifest.
    self._segments: list[dict[str, Any]] = []

  @staticmethod
  def estimate_nbytes(
    capacity: int,
    frame_shape: Sequence[int],
    frame_dtype: npt.DTypeLike = np.uint8,
    action_dim: int = 0,
  ) -> int:
    """Returns the bytes of a full replay with `capacity` slots."""
    frame = math.prod(frame_shape) * np.dtype(frame_dtype).itemsize
    action = 4 * max(action_dim, 1)
    return capacity * (frame + action + 4 + 1 + 1)  # reward, flags, age

  @property
  def nbytes(self) -> int:
    """Bytes reserved; all are in use once the rings are full."""
    return self._slots_nbytes

  @property
  def bytes_per_transition(self) -> float:
    """Bytes per slot."""
    return self.nbytes / self.capacity

  @property
  def size(self) -> int:
    """Number of transitions that can be drawn now."""
    return self._size

  def start(self, obs: npt.ArrayLike) -> None:
    """Begins an episode in every environment; a running one is truncated.

    Args:
      obs: [N, *frame_shape] first frames of the new episodes.

    Raises:
      ValueError: if the frames have the wrong shape or dtype.
    """
    rows = self._check_frames('obs', obs)
    if self._written[0]:
      self._flags[self._newest()] = _LAST
      self._gain(self._pending)
      self._pending[:] = 0
    self._append(self._envs, rows, 0)

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
      action: integer [N] taken at the newest observation, 0 or more; or float
        [N, D], finite.
      reward: float [N] of the step.
      terminated: bool [N] whether no value lies beyond this step. With `ended`
        False it is a lost life: the episode and its stack of frames continue.
      ended: bool [N] whether the episode is over, terminated or truncated.
      final_obs: [N, *frame_shape] newest frame of the observation that
        followed in the same episode.
      obs: [N, *frame_shape] newest frame of the observation to act on next,
        the next episode's first; read only where an episode ended.

    Raises:
      ValueError: if an argument has the wrong shape or dtype, or an action is
        negative or not finite; nothing is stored then.
      RuntimeError: before the first `start`.
    """
    if not self._written[0]:
      raise RuntimeError('add() before the first start()')
    action = self._check_actions(action)
    reward = self._check_vector('reward', reward, 'f')
    terminal = self._check_vector('terminated', terminated, 'b')
    over = self._check_vector('ended', ended, 'b')
    rows = self._check_frames('final_obs', final_obs)
    first_rows = self._check_frames('obs', obs)

    slots = self._newest()
    self._actions[slots] = action
    self._rewards[slots] = reward
    self._flags[slots] = _CLOSED + _TERMINATED * terminal

    # Where an episode or life ended, all waiting slots now have a successor;
    # elsewhere only the slot n steps back does. This must precede _append,
    # which subtracts what it overwrites from the size.
    waiting = self._pending + 1
    ready = np.where(terminal | over, waiting, waiting == self.n_step)
    self._gain(ready)
    self._pending = waiting - ready

    self._append(self._envs, rows, self._next_age[self._ages[slots]])
    if over.any():
      envs = np.flatnonzero(over)
      self._flags[self._newest()[envs]] = _LAST
      self._append(envs, first_rows[envs], 0)

  @property
  def reads(self) -> tuple[str, ...]:
    """As `StatefulReplay.reads`: none."""
    return ()

  def sample(
    self, rng: np.random.Generator, batch_size: int
  ) -> tuple[types.Transition, None]:
    """As `StatefulReplay.sample`: draws as `peek` does."""
    return self.peek(rng, batch_size), None

  def update(self, handle: None, metrics: Mapping[str, np.ndarray]) -> None:
    """As `StatefulReplay.update`: nothing changes."""

  def peek(self, rng: np.random.Generator, batch_size: int) -> types.Transition:
    """Draws transitions uniformly, with replacement.

    Args:
      rng: the source of randomness; equal states give equal batches.
      batch_size: B, 1 to `size`.

    Returns:
      A Transition of new NumPy arrays, which no later call changes:
      observations [B, S, *frame_shape], int32 [B] or float32 [B, D], float32
      [B], float32 [B].

    Raises:
      ValueError: if `batch_size` is below 1 or above `size`.
    """
    if not 1 <= batch_size <= self._size:
      raise FieldError(
        'batch_size', batch_size, f': must be 1 to size={self._size}'
      )
    # The rings fill at about the same pace: draw from the longest and reject.
    filled = int(min(self._written.max(), self._length))
    places = self.num_envs * filled
    index = np.zeros(0, np.int64)
    while len(index) < batch_size:
      missing = batch_size - len(index)
      # So many that one round usually suffices.
      draws = int(1.1 * missing * places / self._size) + 16
      drawn = rng.integers(places, size=draws)
      drawn += drawn // filled * (self._length - filled)
      drawn = drawn[self._valid(drawn)][:missing]
      index = np.concatenate([index, drawn]) if len(index) else drawn
    return self._gather(index)

  def check(self) -> None:
    """Checks the replay's invariants, in time proportional to the capacity.

    Raises:
      ValueError: an invariant is broken; names it.
    """
    length, written = self._length, self._written[:, None]
    flags = self._flags.reshape(self.num_envs, length)
    ages = self._ages.reshape(self.num_envs, length).astype(np.int64)
    taken = (
      np.isfinite(self._actions) if self.action_dim else self._actions >= 0
    )
    acted = taken.reshape(self.num_envs, length, -1).all(axis=2)

    def hold(ok: npt.ArrayLike, what: str) -> None:
      if not np.all(ok):
        count = np.size(ok) - np.count_nonzero(ok)
        raise ValueError(f'broken replay: {what} ({count} times)')

    slot = np.arange(length)[None]
    back = (written - 1 - slot) % length  # [N, T] 0: the newest
    live = back < np.minimum(written, length)
    hold((written > 0) == (written[0] > 0), 'some environments never started')
    hold(live | (flags == 0), 'a slot never written has flags')
    hold(
      ~live | np.isin(flags, (_OPEN, _CLOSED, _LAST, _CLOSED | _TERMINATED)),
      'a slot is not exactly one of open, closed and last',
    )
    hold(
      (flags == _OPEN) == (live & (back == 0)),
      'the newest slot, and no other, must be open',
    )
    closed = flags & _CLOSED > 0
    hold(
      ~live | (acted == closed),
      'closed slots, and no others, must have an action',
    )

    # Time order: column t of `order` is the slot written - T + t.
    order = (written + slot) % length
    flags = np.take_along_axis(flags, order, 1)
    ages = np.take_along_axis(ages, order, 1)
    live = np.take_along_axis(live, order, 1)
    after_last = flags[:, :-1] == _LAST
    expected = np.where(
      after_last, 0, np.minimum(ages[:, :-1] + 1, self.stack - 1)
    )
    hold(~live[:, :-1] | (ages[:, 1:] == expected), 'ages do not follow')
    hold(ages < self.stack, 'an age reaches beyond the stack')
    never_full = (written[:, 0] > 0) & (written[:, 0] <= length)
    first = ages[self._envs, (length - written[:, 0]) % length]
    hold(~never_full | (first == 0), 'the first slot ever has an age')
    # Closed slots since something ended, the open one's predecessor first.
    running = (flags == _CLOSED)[:, ::-1][:, 1 : self.n_step]
    running = np.cumprod(running, axis=1).sum(axis=1)
    hold(self._pending == running, 'pending counts are wrong')
    valid = int(np.count_nonzero(self._valid(np.arange(self.capacity))))
    hold(self._size == valid, f'size is {self._size}, not {valid}')

  def save(self, directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Writes everything new since this object's last save or load.

    Files are only ever added. The returned manifest, which is JSON, describes
    the state: store it safely, then call `segments.prune`. The directory must
    belong to this replay alone. If it lacks a file that an earlier save wrote,
    as a new directory does, everything is written again.

    Args:
      directory: directory for the segment files; created if missing.

    Returns:
      The manifest: format, settings, counters and the segments needed.

    Raises:
      OSError: if a file cannot be written; the next save tries again.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    oldest = np.maximum(self._written - self._length, 0)
    # A segment whose slots have all been overwritten is not needed.
    kept = [
      s
      for s in self._segments
      if np.any(s['end'] > np.maximum(s['begin'], oldest))
    ]
    if any(
      not segments.has_size(directory / s['name'], s['nbytes']) for s in kept
    ):
      kept = []
    # The open slot will change, so the segment after the one that holds it
    # begins with it again: later segments win.
    begin = oldest
    if kept:
      begin = np.maximum(begin, np.asarray(kept[-1]['end']) - 1)
    slot_nbytes = self._slots_nbytes // self.capacity
    quota = max(1, _SEGMENT_NBYTES // (slot_nbytes * self.num_envs))
    # If only the same open slots remain, there is nothing new.
    if kept and np.array_equal(kept[-1]['end'], self._written):
      begin = self._written
    while np.any(begin < self._written):
      end = np.minimum(begin + quota, self._written)
      kept.append(self._write_segment(directory, begin, end))
      begin = end
    segments.sync_directory(directory)
    self._segments = kept
    return {
      'format': _FORMAT,
      'settings': self._settings(),
      'written': self._written.tolist(),
      'pending': self._pending.tolist(),
      'size': self._size,
      'segments': [dict(s) for s in kept],
    }

  def load(
    self, directory: str | os.PathLike[str], manifest: dict[str, Any]
  ) -> None:
    """Restores the state that a manifest of `save` describes.

    Args:
      directory: directory of the segment files.
      manifest: manifest as returned by `save`, or read back from JSON.

    Raises:
      ValueError: if this replay is not empty or has other settings, if the
        manifest has another format, or if a segment is missing, truncated or
        corrupt. On a bad segment the replay is left empty.
    """
    directory = pathlib.Path(directory)
    if self._written.any():
      raise ValueError('load() needs a fresh replay; this one holds slots')
    if manifest.get('format') != _FORMAT:
      raise ValueError(
        f'manifest format={manifest.get("format")!r}: must be {_FORMAT}'
      )
    # The oldest manifests predate continuous actions.
    saved, own = {'action_dim': 0} | manifest['settings'], self._settings()
    different = [
      f'{k}: saved {saved.get(k)!r}, here {own.get(k)!r}'
      for k in sorted({*saved, *own})
      if saved.get(k) != own.get(k)
    ]
    if different:
      raise ValueError('replay settings differ: ' + '; '.join(different))
    written = np.asarray(manifest['written'], np.int64)
    try:
      reached = np.maximum(written - self._length, 0)
      for segment in manifest['segments']:
        begin, end = np.asarray(segment['begin']), np.asarray(segment['end'])
        if np.any((begin > reached) & (end > reached)):
          raise ValueError(f'segments before {segment["name"]} are missing')
        self._read_segment(directory, segment)
        reached = np.maximum(reached, end)
      if not np.array_equal(reached, written):
        raise ValueError('the manifest does not list every segment')
      self._written = written
      self._pending = np.asarray(manifest['pending'], np.int64)
      self._size = int(manifest['size'])
      self.check()
    except Exception:
      self._flags[:] = 0
      self._written, self._pending = np.zeros((2, self.num_envs), np.int64)
      self._size = 0
      raise
    self._segments = [dict(s) for s in manifest['segments']]

  @property
  def _slots_nbytes(self) -> int:
    return sum(a.nbytes for a in self._arrays())

  def _arrays(self) -> tuple[np.ndarray, ...]:
    """Returns the slots' arrays [N * T, ...], in a segment file's order."""
    return (self._frames, self._actions, self._rewards, self._flags, self._ages)

  def _settings(self) -> dict[str, Any]:
    return {
      'capacity': self.capacity,
      'num_envs': self.num_envs,
      'frame_shape': list(self._frame_shape),
      'frame_dtype': self._frame_dtype.str,  # names the byte order, too
      'stack': self.stack,
      'n_step': self.n_step,
      'discount': self.discount,
      'action_dim': self.action_dim,
    }

  def _check_vector(
    self, name: str, value: npt.ArrayLike, kinds: str
  ) -> np.ndarray:
    array = np.asarray(value)
    if array.shape != (self.num_envs,) or array.dtype.kind not in kinds:
      kind = {'iu': 'integer', 'f': 'float', 'b': 'bool'}[kinds]
      raise ValueError(
        f'{name} is {array.dtype} {array.shape}: must be {kind} '
        f'{(self.num_envs,)}'
      )
    return array

  def _check_actions(self, value: npt.ArrayLike) -> np.ndarray:
    """Returns the actions as an array, [N] or float32 [N, D]."""
    if not self.action_dim:
      action = self._check_vector('action', value, 'iu')
      if action.min() < 0:
        raise FieldError('action', action, ': must be 0 or more')
      return action
    action, shape = np.asarray(value), (self.num_envs, self.action_dim)
    if action.shape != shape or action.dtype.kind != 'f':
      raise ValueError(
        f'action is {action.dtype} {action.shape}: must be float {shape}'
      )
    action = action.astype(np.float32, copy=False)
    if not np.isfinite(action).all():
      raise FieldError('action', action, ': must be finite')
    return action

  def _check_frames(self, name: str, value: npt.ArrayLike) -> np.ndarray:
    """Returns the frames as rows [N, size of a frame]."""
    array = np.asarray(value)
    shape = (self.num_envs, *self._frame_shape)
    if array.shape != shape or array.dtype != self._frame_dtype:
      raise ValueError(
        f'{name} is {array.dtype} {array.shape}: must be '
        f'{self._frame_dtype} {shape}'
      )
    return array.reshape(self.num_envs, -1)

  def _newest(self) -> np.ndarray:
    """Returns the flat index [N] of each environment's newest slot."""
    return self._rows + (self._written - 1) % self._length

  def _append(
    self, envs: np.ndarray, rows: np.ndarray, ages: np.ndarray | int
  ) -> None:
    """Opens a slot in each of `envs` [E], for frames `rows` [E, P]."""
    written = self._written[envs]
    slots = self._rows[envs] + written % self._length
    # The overwritten slot is the oldest frame of a stack whose age equals its
    # distance from that slot. (In a ring not yet full nothing matches: a slot
    # reached around its end would need an age greater than its position.)
    near = (written[:, None] + self._back) % self._length
    near += self._rows[envs, None]  # [E, S]
    lost = (self._ages[near] == self._back) & (self._flags[near] & _CLOSED > 0)
    self._lose(near[lost])

    self._frames[slots] = rows
    self._actions[slots] = self._no_action
    self._flags[slots] = _OPEN
    self._ages[slots] = ages
    self._written[envs] = written + 1

  def _gain(self, count: np.ndarray) -> None:
    """Counts new transitions, before `_pending` changes.

    Args:
      count: [N] how many of the oldest waiting slots of each environment can
        start a transition from now on. Those that wait are the pending ones
        and then the newest.
    """
    self._size += int(count.sum())

  def _lose(self, index: np.ndarray) -> None:
    """Discounts the transitions that start at flat indices [L]."""
    self._size -= len(index)

  def _valid(self, index: np.ndarray) -> np.ndarray:
    """Returns which flat indices [B] can start a transition, bool [B]."""
    env = index // self._length
    back = (self._written[env] - 1 - index) % self._length  # rows drop out
    return (
      (self._flags[index] & _CLOSED > 0)
      & (back > self._pending[env])  # successor known
      & (back + self._ages[index] < self._length)
    )  # stack still there

  def _gather(self, index: np.ndarray) -> types.Transition:
    """Returns the transitions that start at valid flat indices [B]."""
    length = self._length
    row = index // length * length
    slot = index - row
    if self.n_step == 1:
      terminated = self._flags[index] & _TERMINATED > 0
      reward = self._rewards[index]
      steps: Any = 1
    else:
      window = (slot[:, None] + self._ahead) % length + row[:, None]  # [B, n]
      flags = self._flags[window]
      # Steps count up to the first that terminated or led to a last slot.
      ends = flags & _TERMINATED > 0
      ends[:, :-1] |= flags[:, 1:] == _LAST
      ends[:, -1] = True
      final = ends.argmax(axis=1)
      steps = final + 1
      terminated = flags[np.arange(len(index)), final] & _TERMINATED > 0
      counted = self._ahead < steps[:, None]
      rewards = np.where(counted, self._rewards[window], 0.0)  # no inf * 0
      reward = (rewards * self._powers[:-1]).sum(axis=1)
    discount = np.where(terminated, 0.0, self._powers[steps])

    # One array for both observations: the allocator tends to reuse one freed
    # block, but maps two anew each time, and faulting in their pages costs
    # several times as much as copying.
    obs = self._observations(np.stack([slot, slot + steps]), row)
    return types.Transition(
      obs_tm1=obs[0],
      a_tm1=self._actions[index],
      r_t=reward.astype(np.float32),
      discount_t=discount.astype(np.float32),
      obs_t=obs[1],
      future=self._future(slot, row) if self.sequence_steps else None,
    )

  def _observations(self, slots: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Returns observations [..., S, *frame_shape] of slots [...].

    Args:
      slots: positions in their rings; beyond the end they wrap around.
      row: the start of each ring; broadcast to the slots.
    """
    newest = slots % self._length
    ages = self._ages[newest + row]
    # An episode's first frame stands in for those before it.
    stacks = newest[..., None] - np.minimum(self._back[::-1], ages[..., None])
    stacks = stacks % self._length + row[..., None]  # [..., S]
    obs = self._frames.take(stacks, axis=0)
    return obs.reshape(*stacks.shape, *self._frame_shape)

  def _future(self, slot: np.ndarray, row: np.ndarray) -> types.Future:
    """Returns the K steps from valid slots [B]; rings start at `row` [B]."""
    slot, row = slot[:, None], row[:, None]
    window = (slot + self._sequence) % self._length + row
    flags = self._flags[window]  # [B, K]
    # An open or a last slot ends the sequence. The successor of a closed one is
    # stored, and its stack reaches no further back.
    mask = np.cumprod(flags & (_CLOSED | _TERMINATED) == _CLOSED, 1) > 0
    # Steps from the first observation to that of each entry.
    ahead = np.minimum(self._sequence + 1, mask.sum(1)[:, None])  # [B, K]
    last = np.maximum(ahead - 1, 0)  # the step that led there
    return types.Future(
      a=self._actions[np.take_along_axis(window, last, 1)],
      obs=self._observations(slot + ahead, row),
      mask=mask,
    )

  def _runs(self, env: int, begin: int, end: int) -> list[slice]:
    """Returns a ring's slots `begin` to `end` as contiguous flat slices."""
    runs = []
    while begin < end:
      slot = begin % self._length
      count = min(end - begin, self._length - slot)
      start = env * self._length + slot
      runs.append(slice(start, start + count))
      begin += count
    return runs

  def _write_segment(
    self, directory: pathlib.Path, begin: np.ndarray, end: np.ndarray
  ) -> dict[str, Any]:
    """Writes slots begin[i] to end[i] of each environment i to a new file."""
    runs = [
      run
      for env in range(self.num_envs)
      for run in self._runs(env, int(begin[env]), int(end[env]))
    ]
    written = segments.write(directory, self._arrays(), runs)
    return written | {'begin': begin.tolist(), 'end': end.tolist()}

  def _read_segment(
    self, directory: pathlib.Path, segment: dict[str, Any]
  ) -> None:
    """Reads a segment into its slots, over those of an older one."""
    spans = list(zip(segment['begin'], segment['end'], strict=True))
    count = sum(end - begin for begin, end in spans)
    slot_nbytes = self._slots_nbytes // self.capacity
    raw = segments.read(directory, segment, count, slot_nbytes)
    runs = [
      run for env, span in enumerate(spans) for run in self._runs(env, *span)
    ]
    position = 0
    for array in self._arrays():
      part = np.frombuffer(raw, array.dtype, count * array[0].size, position)
      position += part.nbytes
      part = part.reshape(count, *array.shape[1:])
      for run in runs:
        size = run.stop - run.start
        array[run], part = part[:size], part[size:]
