"""A ring of transitions in host memory, drawn by their priorities."""

from collections.abc import Callable, Mapping
import math
import os
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from siamrl import types
from siamrl.parameters import FieldError
from siamrl.replay import segments
from siamrl.replay.host import HostReplay
from siamrl.replay.sum_tree import SumTree


class PrioritizedHostReplay(HostReplay):
  """A `StatefulReplay` that draws in proportion to priorities.

  This is the proportional variant of Schaul et al. 2016, arXiv 1511.05952, and
  draws as `PrioritizedReplay` does. A leaf of the sum tree is the priority of
  the transition that starts at a slot, (|TD error| + epsilon)**alpha, and 0
  where none starts. New transitions have the largest priority so far, 1 at
  first.

  Attributes:
    alpha: exponent of the priorities; 0 makes them equal.
    beta: env steps stored so far -> exponent of the importance weights.
    epsilon: added to the metric, so that every transition can be drawn again.
  """

  def __init__(
    self,
    capacity: int,
    *,
    alpha: float,
    beta: Callable[[int], float],
    metric: str = 'td_error_abs',
    epsilon: float = 1e-6,
    **settings: Any,
  ):
    """Reserves memory for the rings and the sum tree.

    Args:
      capacity: as in `HostReplay`.
      alpha: exponent of the priorities, at least 0.
      beta: env steps stored so far -> exponent of the importance weights.
      metric: name of the metric [B], at least 0, that priorities are made of.
      epsilon: above 0.
      **settings: the others of `HostReplay`.

    Raises:
      ValueError: if an argument is outside what is allowed above.
    """
    super().__init__(capacity, **settings)
    if not alpha >= 0.0:
      raise FieldError('alpha', alpha, ': must be at least 0')
    if not epsilon > 0.0:
      raise FieldError('epsilon', epsilon, ': must be above 0')
    self.alpha, self.beta, self.epsilon = alpha, beta, epsilon
    self._metric = metric
    self._tree = SumTree(capacity)
    self._largest = 1.0  # of all leaves so far
    self._env_steps = 0

  @staticmethod
  def estimate_nbytes(
    capacity: int,
    frame_shape: Any,
    frame_dtype: npt.DTypeLike = np.uint8,
    action_dim: int = 0,
  ) -> int:
    """Returns the bytes of a full replay with `capacity` slots."""
    slots = HostReplay.estimate_nbytes(
      capacity, frame_shape, frame_dtype, action_dim
    )
    return slots + SumTree.estimate_nbytes(capacity)

  @property
  def nbytes(self) -> int:
    """Bytes reserved; all are in use once the rings are full."""
    return super().nbytes + self._tree.nbytes

  @property
  def reads(self) -> tuple[str, ...]:
    """As `StatefulReplay.reads`: what priorities are made of."""
    return (self._metric,)

  @property
  def priorities(self) -> np.ndarray:
    """The priority float64 [capacity] of each slot, not to be changed."""
    return self._tree.leaves

  def add(self, **step: Any) -> None:
    """As `HostReplay.add`; new transitions get the largest priority so far."""
    super().add(**step)
    self._env_steps += self.num_envs

  def sample(
    self, rng: np.random.Generator, batch_size: int
  ) -> tuple[types.Transition, Any]:
    """Draws transitions in proportion to their priorities.

    The total is split into B equal strata, and one transition is drawn from
    each (Schaul et al. 2016, appendix B.2.1). The importance weights are
    (size * P(i))**-beta, divided by their maximum over the batch (section 3.4).

    Args:
      rng: the source of randomness; equal states give equal batches.
      batch_size: B, 1 to `size`.

    Returns:
      The batch, with these weights as float32 [B], and its handle: the flat
      indices [B] and the numbers [B] of the slots there, counted since the
      start of their ring.

    Raises:
      ValueError: if `batch_size` is below 1 or above `size`.
    """
    if not 1 <= batch_size <= self._size:
      raise FieldError(
        'batch_size', batch_size, f': must be 1 to size={self._size}'
      )
    place = (np.arange(batch_size) + rng.random(batch_size)) / batch_size
    index = self._tree.find(place * self._tree.total)
    priority = self.priorities[index]
    # Size and total cancel out.
    weight = (priority.min() / priority) ** self.beta(self._env_steps)
    batch = self._gather(index)._replace(weight=weight.astype(np.float32))
    return batch, (index, self._numbers(index))

  def update(self, handle: Any, metrics: Mapping[str, np.ndarray]) -> None:
    """Sets the priorities of a batch, as `StatefulReplay.update`.

    Transitions that are no longer stored are left out. Of equal ones the
    largest value counts.

    Args:
      handle: handle of the batch.
      metrics: holds the one that the replay reads, [B].

    Raises:
      ValueError: there is not exactly one value for each transition, or one is
        not finite or negative; nothing changes then.
    """
    index, numbers = handle
    name = self._metric
    value = np.asarray(metrics[name], np.float64)
    if value.shape != index.shape:
      raise ValueError(
        f'{name} is {value.shape}: must be {index.shape}, one for each '
        'transition'
      )
    if not (np.isfinite(value) & (value >= 0.0)).all():
      raise ValueError(f'{name} is not finite, or negative: {value}')
    priority = (value + self.epsilon) ** self.alpha
    self._largest = max(self._largest, float(priority.max()))
    kept = self.priorities[index] > 0.0
    kept &= self._numbers(index) == numbers
    self._tree.set(index[kept], priority[kept])

  def check(self) -> None:
    """As `HostReplay.check`; the sum tree is checked as well."""
    super().check()
    valid = self._valid(np.arange(self.capacity))
    leaves = self.priorities
    if not (np.isfinite(leaves) & (leaves >= 0.0)).all():
      raise ValueError('broken replay: a priority is not finite, or negative')
    if not np.array_equal(leaves > 0.0, valid):
      raise ValueError(
        'broken replay: transitions, and nothing else, must have a priority'
      )
    if not leaves.max(initial=0.0) <= self._largest < math.inf:
      raise ValueError('broken replay: the largest priority is too small')

  def save(self, directory: str | os.PathLike[str]) -> dict[str, Any]:
    """As `HostReplay.save`; all priorities are written anew."""
    manifest = super().save(directory)
    directory = pathlib.Path(directory)
    everything = slice(0, self.capacity)
    written = segments.write(directory, [self.priorities], [everything])
    segments.sync_directory(directory)
    return manifest | {
      'priorities': written,
      'largest_priority': self._largest,
      'env_steps': self._env_steps,
    }

  def load(
    self, directory: str | os.PathLike[str], manifest: dict[str, Any]
  ) -> None:
    """As `HostReplay.load`; the manifest must be of a prioritized replay."""
    if 'priorities' in manifest and not self._written.any():
      raw = segments.read(
        pathlib.Path(directory), manifest['priorities'], self.capacity, 8
      )
      self._tree.set(np.arange(self.capacity), np.frombuffer(raw, np.float64))
      self._largest = float(manifest['largest_priority'])
      self._env_steps = int(manifest['env_steps'])
    try:
      super().load(directory, manifest)
    except Exception:
      if not self._written.any():
        self._tree.set(np.arange(self.capacity), 0.0)
        self._largest, self._env_steps = 1.0, 0
      raise

  def _settings(self) -> dict[str, Any]:
    return super()._settings() | {'prioritized': True}

  def _numbers(self, index: np.ndarray) -> np.ndarray:
    """Returns the number of the slot at each flat index [B], from 0."""
    newest = self._written[index // self._length] - 1
    return newest - (newest - index) % self._length

  def _gain(self, count: np.ndarray) -> None:
    first = self._written - 1 - self._pending
    super()._gain(count)
    env = np.repeat(self._envs, count)
    before = np.cumsum(count) - count
    number = first[env] + np.arange(len(env)) - before[env]
    self._tree.set(self._rows[env] + number % self._length, self._largest)

  def _lose(self, index: np.ndarray) -> None:
    super()._lose(index)
    self._tree.set(index, 0.0)
