"""Measures of how far representations have collapsed.

A Siamese network without negatives can minimize its loss by giving every image
the same answer. These are pure functions of a batch of projections, for callers
to jit and vmap.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from siamrl.diagnostics import effective_rank, singular_values
from siamrl.losses import siamese as losses
from siamrl.types import Metrics


def measures(z: chex.Array) -> Metrics:
  """Measures of collapse of a batch of projections or features.

  Args:
    z: [B, D].

  Returns:
    `normalized_std`; `effective_rank` of z, 1 if all rows are equal; and
    `centered_rank`, that of z minus its mean: the number of directions that
    still tell images apart, however little. It is 0 for a constant, and large
    for a constant with noise.
  """
  return {
    'normalized_std': losses.normalized_std(z),
    'effective_rank': effective_rank(singular_values(z)),
    'centered_rank': effective_rank(singular_values(z - jnp.mean(z, axis=0))),
  }


def predictor_spectrum(
  predict: Callable[[chex.Array], chex.Array], z: chex.Array
) -> chex.Array:
  """Singular values of the predictor's Jacobian, averaged over a batch.

  For a linear predictor they are those of its matrix. The mean of Jacobians is
  computed as the Jacobian of a mean, v -> mean_b predict(z_b + v) at v = 0,
  which takes no more memory than D batches.

  Args:
    predict: [B, D] -> [B, D], row by row: batch normalization must use given
      statistics.
    z: [B, D].

  Returns:
    float32 [D], descending.
  """
  chex.assert_rank(z, 2)

  def mean(v: chex.Array) -> chex.Array:
    return jnp.mean(predict(z + v), axis=0)

  return singular_values(jax.jacfwd(mean)(jnp.zeros(z.shape[-1])))


def stretch(lengths: chex.Array) -> Metrics:
  """Summarizes how a predictor stretches projections.

  Args:
    lengths: [D], from `predictor_spectrum`.

  Returns:
    `largest` and `smallest`, the extremes of the lengths, and `rank`, their
    effective rank.
  """
  return {
    'largest': lengths[0],
    'smallest': lengths[-1],
    'rank': effective_rank(lengths),
  }
