"""Sum trees, against cumulative sums of their leaves."""

import numpy as np
import pytest

from siamrl.replay import sum_tree
from siamrl.replay.sum_tree import SumTree

SIZES = [1, 3, 64, 65, 1_000, 64**2 + 1]


def _brute(leaves: np.ndarray, place: float) -> int:
  """The first leaf whose cumulative sum is larger, as in Dopamine's `query`."""
  return int(np.flatnonzero(np.cumsum(leaves) > place)[0])


def _with(leaves) -> SumTree:
  tree = SumTree(len(leaves))
  tree.set(np.arange(len(leaves)), np.float64(leaves))
  return tree


def test_by_hand():
  tree = _with([3.0, 0.0, 1.0, 0.0, 2.0, 0.0])
  assert tree.total == 6
  found = tree.find(np.array([0, 2.9, 3, 3.9, 4, 5.9, 6.0]))
  assert found.tolist() == [0, 0, 2, 2, 4, 4, 4]
  tree.set(np.array([0, 5]), np.array([0.0, 4.0]))
  assert tree.total == 7
  assert tree.find(np.array([0.0, 1.0, 3.0, 7.0])).tolist() == [2, 4, 5, 5]


@pytest.mark.parametrize('size', SIZES)
def test_it_finds_what_cumulative_sums_find(size):
  """Integers, whose sums are exact, as are places between two of them."""
  rng = np.random.default_rng(size)
  tree, leaves = SumTree(size), np.zeros(size)
  for _ in range(20):
    index = rng.integers(size, size=7)
    value = rng.integers(5, size=7).astype(np.float64)
    tree.set(index, value)
    leaves[index] = 0
    for i, v in zip(index, value, strict=True):
      leaves[i] = max(leaves[i], v)  # of equal indices the largest
    np.testing.assert_array_equal(tree.leaves, leaves)
    assert tree.total == leaves.sum()
    if leaves.any():
      places = rng.integers(4 * int(tree.total), size=50) / 4
      expected = [_brute(leaves, place) for place in places]
      assert tree.find(places).tolist() == expected


@pytest.mark.parametrize('size', SIZES)
def test_it_never_finds_a_leaf_of_0(size):
  rng = np.random.default_rng(size)
  for few in (0.02, 0.5):
    # Of so different sizes that all small ones are lost in the sums.
    leaves = np.exp(rng.normal(scale=20, size=size)) * (rng.random(size) < few)
    leaves[rng.integers(size)] = 1.0
    tree = _with(leaves)
    ends = np.cumsum(leaves)
    places = [rng.random(100) * tree.total, ends, np.nextafter(ends, 0)]
    places += [np.nextafter(ends, np.inf), [0.0, tree.total]]
    found = tree.find(np.minimum(np.concatenate(places), tree.total))
    assert (leaves[found] > 0).all()
    assert set(found) <= set(range(size))


@pytest.mark.parametrize('size', SIZES)
def test_sums_depend_on_the_leaves_alone(size, monkeypatch):
  """Bit for bit, however they came to be, which a resumed run relies on."""
  monkeypatch.setattr(sum_tree, '_MOST_CHANGED', 7)
  rng = np.random.default_rng(size)
  tree = SumTree(size)
  for step in range(60):
    index = rng.integers(size, size=rng.integers(0, 9))
    tree.set(index, rng.lognormal(sigma=5, size=len(index)))
    if step % 3 == 0:
      tree.find(rng.random(3) * tree.total)
  fresh = _with(tree.leaves.copy())
  assert tree.total == fresh.total
  for one, other in zip(tree._levels, fresh._levels, strict=True):
    np.testing.assert_array_equal(one, other)


def test_frequencies_are_proportional():
  """The statistic of chi-square: 199 +- 20 for 200 leaves, six deviations."""
  rng = np.random.default_rng(0)
  leaves = rng.integers(1, 10, 200).astype(np.float64)
  tree = _with(leaves)
  draws = 200_000
  found = tree.find(rng.random(draws) * tree.total)
  expected = draws * leaves / leaves.sum()
  counts = np.bincount(found, minlength=200)
  assert abs(((counts - expected) ** 2 / expected).sum() - 199) < 6 * 20


def test_its_memory_is_known_before():
  assert SumTree.estimate_nbytes(1_000_000) == SumTree(1_000_000).nbytes
  # Little more than the leaves.
  assert 8e6 <= SumTree.estimate_nbytes(1_000_000) < 8.2e6


def test_bad_sizes_are_refused():
  with pytest.raises(ValueError, match='size=0: must be at least 1'):
    SumTree(0)
