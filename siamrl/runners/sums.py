"""Sums of many float32 numbers that keep their digits.

A float32 sum of 0.1, a million times, is off by 1 %: beside a large sum a small
number is rounded. Here what each addition rounds off is added up beside the
sum. JAX's own reductions of whole arrays need no such care.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Sum(NamedTuple):
  """A running sum.

  Attributes:
    total: the sum to the last digit, an array or a tree of them.
    lost: what rounding has taken from it, in the same structure.
  """

  total: Any
  lost: Any


def zeros(like: Any) -> Sum:
  """A sum of nothing, in the structure of a tree of arrays or their shapes."""
  nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
  return Sum(nothing, nothing)


def add(running: Sum, values: Any) -> Sum:
  """Adds a tree of arrays to a sum.

  Both parts together are a number of twice the digits (Dekker 1971): the exact
  error of the addition joins what was lost before, and what of that is large
  enough to count moves into the total.
  """

  def added(total, lost, value):
    rough = total + value
    taken = rough - total
    lost += (total - (rough - taken)) + (value - taken)
    lost = jnp.where(jnp.isfinite(lost), lost, 0)  # an infinite sum stays so
    exact = rough + lost
    return Sum(exact, lost - (exact - rough))

  leaves, structure = jax.tree.flatten(running.total)
  sums = [
    added(*parts)
    for parts in zip(
      leaves,
      jax.tree.leaves(running.lost),
      jax.tree.leaves(values),
      strict=True,
    )
  ]
  return Sum(
    jax.tree.unflatten(structure, [each.total for each in sums]),
    jax.tree.unflatten(structure, [each.lost for each in sums]),
  )
