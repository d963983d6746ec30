"""Batch renormalization (Ioffe 2017, arXiv 1702.03275), and an MLP with it.

Modules keep no running averages. The collection 'batch_stats' holds the means
and variances that a pass is given, and after a training pass those of the
batch, for the caller to average, as in `siamrl.networks.siamese`.
"""

from collections.abc import Sequence

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from siamrl.networks.activations import rectified
from siamrl.networks.dense import make_dense
from siamrl.networks.torsos import MLP

STATISTICS = 'batch_stats'  # Flax's name of the collection


class BatchRenorm(nn.Module):
  """Normalizes features by the batch, corrected toward the running statistics.

  With mean m, variance v and running ones M, V of a feature x, a training pass
  computes, as algorithm 1 of the paper,

      y = scale * ((x - m) / s * r + d) + bias
      r = clip(s / S, 1 / r_max, r_max),  d = clip((m - M) / S, -d_max, d_max)

  with s = sqrt(v + epsilon), S = sqrt(V + epsilon), and no gradient through r
  and d. While they are not clipped, that is the answer of any other pass,
  scale * (x - M) / S + bias. Before the warm-up ends, r = 1 and d = 0: plain
  batch normalization.

  The defaults are those of CrossQ's code (adityab/CrossQ, sbx/sac/policies.py),
  which has the bounds fixed from the end of the warm-up on, where Ioffe lets
  them grow, and averages variances where Ioffe averages deviations. It writes r
  and d as another mean and variance, which differs by terms of the size of
  epsilon / v, and has no finite gradient if all values of a feature are equal.

  Attributes:
    epsilon: added to variances.
    r_max: largest r, and inverse of the smallest.
    d_max: largest |d|.
  """

  epsilon: float = 1e-3
  r_max: float = 3.0
  d_max: float = 5.0

  @nn.compact
  def __call__(
    self,
    x: chex.Array,
    training: bool = False,
    warmed_up: chex.Numeric = False,
  ) -> chex.Array:
    """Maps [B, F] to [B, F].

    Args:
      x: the features.
      training: whether to normalize by the batch; otherwise by the statistics
        that are given, mean 0 and variance 1 at first.
      warmed_up: bool [], whether a training pass corrects toward them.
    """
    chex.assert_rank(x, 2)
    size = x.shape[-1:]
    mean = self.variable(STATISTICS, 'mean', jnp.zeros, size)
    variance = self.variable(STATISTICS, 'var', jnp.ones, size)
    scale = self.param('scale', nn.initializers.ones_init(), size)
    bias = self.param('bias', nn.initializers.zeros_init(), size)
    running_mean, running_std = (
      mean.value,
      jnp.sqrt(variance.value + self.epsilon),
    )
    if not training:
      return (x - running_mean) / running_std * scale + bias
    mean.value, variance.value = jnp.mean(x, 0), jnp.var(x, 0)
    std = jnp.sqrt(variance.value + self.epsilon)
    r = jnp.clip(std / running_std, 1 / self.r_max, self.r_max)
    d = jnp.clip(
      (mean.value - running_mean) / running_std, -self.d_max, self.d_max
    )
    r = jax.lax.stop_gradient(jnp.where(warmed_up, r, 1.0))
    d = jax.lax.stop_gradient(jnp.where(warmed_up, d, 0.0))
    return ((x - mean.value) / std * r + d) * scale + bias


class NormalizedMLP(nn.Module):
  """`MLP`, whose input and each ReLU's output are batch renormalized.

  Attributes:
    sizes: as in `MLP`.
    initializer: as in `MLP`.
    bounds: as in `MLP`.
    layer_norm: as in `MLP`.
  """

  sizes: Sequence[int]
  initializer: str
  bounds: tuple[float, float] | None
  layer_norm: bool

  @nn.compact
  def __call__(
    self,
    obs: chex.Array,
    training: bool = False,
    warmed_up: chex.Numeric = False,
  ) -> chex.Array:
    """Maps [B, ...] to float32 [B, sizes[-1]], as `BatchRenorm`."""
    x = MLP((), bounds=self.bounds)(obs)  # flat and scaled
    x = BatchRenorm()(x, training, warmed_up)
    for size in self.sizes:
      layer = make_dense(size, self.initializer)
      x = rectified(layer, x, layer_norm=self.layer_norm)
      x = BatchRenorm()(x, training, warmed_up)
    return x
