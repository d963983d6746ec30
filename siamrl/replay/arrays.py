"""Rows of arrays in device memory."""

from typing import Any

import chex
import jax
from jax import lax

# XLA clamps an index anyway: JAX need not check it first.
IN_BOUNDS = 'promise_in_bounds'


def read(array: jax.Array, index: jax.Array) -> jax.Array:
  """The rows of indices that lie within the array."""
  return array.at[index].get(mode=IN_BOUNDS, wrap_negative_indices=False)


def write(array: jax.Array, rows: jax.Array, at: chex.Numeric) -> jax.Array:
  """The array with consecutive rows from `at` on replaced."""
  return lax.dynamic_update_slice_in_dim(
    array, rows.astype(array.dtype), at, axis=0
  )


def nbytes(state: Any) -> int:
  """Bytes of all arrays of a state."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
