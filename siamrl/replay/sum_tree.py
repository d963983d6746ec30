"""A sum tree in host memory: a distribution over many places that changes."""

import numpy as np

from siamrl.parameters import FieldError

# Children per node. A level costs some calls of NumPy, and a child arithmetic:
# 32 to 128 are about equally fast for a million leaves, and 8 takes longer.
_FAN_OUT = 64

# Calls of `set` after which the sums are brought up to date, though unasked.
_MOST_CHANGED = 1_024


class SumTree:
  """Priorities of places, drawn in proportion; NumPy, and float64 throughout.

  A level is [nodes, children], from the leaves up: entry i of the next level's
  flat form is the sum of row i. Sums are recomputed from the children, never
  changed by a difference, so that they depend on the leaves alone: rounding
  does not accumulate, and whoever saves the leaves has saved the tree.

  Sums are brought up to date when they are next asked for, all at once.
  """

  def __init__(self, size: int):
    """Sets all priorities to 0.

    Args:
      size: number of leaves, at least 1.

    Raises:
      ValueError: if `size` is below 1.
    """
    if size < 1:
      raise FieldError('size', size, ': must be at least 1')
    self.size = size
    # np.zeros leaves the pages to be committed by their first write.
    self._levels = [np.zeros(shape) for shape in _shapes(size)]
    self._flat = [level.reshape(-1) for level in self._levels]
    # Leaves set since the sums were last brought up to date.
    self._changed: list[np.ndarray] = []

  @staticmethod
  def estimate_nbytes(size: int) -> int:
    """Returns the bytes of a tree with `size` leaves."""
    return sum(8 * rows * columns for rows, columns in _shapes(size))

  @property
  def nbytes(self) -> int:
    """Bytes of all levels."""
    return sum(level.nbytes for level in self._levels)

  @property
  def leaves(self) -> np.ndarray:
    """Priorities [size], a view; change them by `set` only."""
    return self._flat[0][: self.size]

  @property
  def total(self) -> float:
    """Sum of all priorities."""
    self._sum_up()
    return float(self._levels[-1].sum())

  def set(self, index: np.ndarray, value: np.ndarray | float) -> None:
    """Sets leaves; of equal indices the largest value counts.

    Args:
      index: integer [B], each in [0, size).
      value: float64 [B] or [], finite and at least 0.
    """
    leaves = self._flat[0]
    if np.ndim(value):
      leaves[index] = 0.0
      np.maximum.at(leaves, index, value)
    else:
      leaves[index] = value
    self._changed.append(index)
    if len(self._changed) >= _MOST_CHANGED:
      self._sum_up()

  def find(self, place: np.ndarray) -> np.ndarray:
    """Finds the leaves where the cumulative sum of priorities passes places.

    Rounding may put a place at or beyond the end of a node. The last leaf in it
    that is not 0 then counts: a leaf of 0 is never found.

    Args:
      place: float64 [B], each in [0, total]; the total must not be 0.

    Returns:
      int64 [B], for each place the first leaf such that the sum up to and
      including it is larger.
    """
    self._sum_up()
    node = np.zeros(len(place), np.int64)
    batch = np.arange(len(place))
    rest = place
    for level in reversed(self._levels):
      ends = level[node].cumsum(axis=1)  # [B, children]
      within = np.minimum(rest, np.nextafter(ends[:, -1], 0.0))
      child = (ends <= within[:, None]).sum(axis=1)
      begin = np.where(child > 0, ends[batch, child - 1], 0.0)
      rest = within - begin
      node = node * level.shape[1] + child
    return node

  def _sum_up(self) -> None:
    """Brings the sums above the changed leaves up to date."""
    if not self._changed:
      return
    index = np.concatenate(self._changed)
    self._changed = []
    for lower, upper in zip(self._levels, self._flat[1:], strict=False):
      index = index // lower.shape[1]
      if len(index) > len(lower):
        index = np.unique(index)
      # Equal indices bring equal values.
      upper[index] = lower[index].sum(axis=1)


def _shapes(size: int) -> list[tuple[int, int]]:
  """Returns the shapes of the levels, from the leaves up."""
  shapes = []
  while size > _FAN_OUT:
    nodes = -(-size // _FAN_OUT)
    shapes.append((nodes, _FAN_OUT))
    size = nodes
  return [*shapes, (1, size)]
