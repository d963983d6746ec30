"""How far representations have collapsed, from projections alone.

A Siamese network without negatives can answer every image alike, and its loss
is then at its least. Pure functions of a batch of projections, to be compiled
and vmapped by the caller.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from siamrl.diagnostics import effective_rank, singular_values
from siamrl.losses import siamese as losses
from siamrl.types import Metrics


def measures(z: chex.Array) -> Metrics:
  """What there is to say about a batch of projections or features.

  Args:
    z: [B, D].

  Returns:
    `normalized_std`; `effective_rank` of z, 1 where all are the same; and
    `centered_rank`, that of z without its mean, which says how many directions
    are left to tell images apart, however little they differ: it is 0 for a
    constant, and many for one with noise.
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

  Of a linear predictor they are those of its matrix. The mean of Jacobians is
  the Jacobian of a mean: of v -> mean_b predict(z_b + v) at v = 0, which takes
  no more memory than D batches.

  Args:
    predict: [B, D] -> [B, D], row by row: batch normalization with given
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
  """How a predictor stretches projections.

  Args:
    lengths: [D], of `predictor_spectrum`.

  Returns:
    `largest` and `smallest` of them, and `rank`, in how many directions.
  """
  return {
    'largest': lengths[0],
    'smallest': lengths[-1],
    'rank': effective_rank(lengths),
  }
