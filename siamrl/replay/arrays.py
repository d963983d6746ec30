"""Rows of arrays in device memory."""

from typing import Any

import chex
import jax
from jax import lax

# XLA clamps an index anyway: JAX need not check it first.
IN_BOUNDS = 'promise_in_bounds'


def read(array: jax.Array, index: jax.Array) -> jax.Array:
  """Returns the rows at `index`, which must lie within the array."""
  return array.at[index].get(mode=IN_BOUNDS, wrap_negative_indices=False)


def write(array: jax.Array, rows: jax.Array, at: chex.Numeric) -> jax.Array:
  """Returns the array with `rows` in place of its own from `at` on."""
  return lax.dynamic_update_slice_in_dim(
    array, rows.astype(array.dtype), at, axis=0
  )


def nbytes(state: Any) -> int:
  """Returns the total bytes of a state's arrays."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
