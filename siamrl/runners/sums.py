"""Accurate sums of many float32 numbers.

A float32 sum of 0.1, a million times, is off by 1 %: a small number is rounded
when added to a large sum. Here the rounding errors are summed up separately.
JAX's own reductions of whole arrays do not need this.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Sum(NamedTuple):
  """A running sum.

  Attributes:
    total: the rounded sum, an array or a tree of arrays.
    lost: the rounding errors, in the same structure.
  """

  total: Any
  lost: Any


def zeros(like: Any) -> Sum:
  """Returns an empty sum with the structure of a tree of arrays or shapes."""
  nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
  return Sum(nothing, nothing)


def add(running: Sum, values: Any) -> Sum:
  """Adds a tree of arrays to a sum.

  Both parts together are a number with twice the digits (Dekker 1971): the
  exact error of the addition is added to the earlier ones, and the part of
  those that is large enough moves into the total.
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
