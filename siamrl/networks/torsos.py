"""Torsos: from observations [B, S, ...] to features [B, F]."""

from collections.abc import Sequence

import chex
import jax.numpy as jnp
from flax import linen as nn

from siamrl.networks.conv import Conv
from siamrl.networks.initializers import INITIALIZERS


class Dense(nn.Module):
  """A dense layer with both initialisers chosen by one name."""

  features: int
  initializer: str = 'lecun_normal'

  @nn.compact
  def __call__(self, x: chex.Array) -> chex.Array:
    chosen = INITIALIZERS[self.initializer]
    return nn.Dense(
      self.features,
      kernel_init=chosen.kernel,
      bias_init=chosen.bias(x.shape[-1]),
    )(x)


class NatureCNN(nn.Module):
  """The convolutions of Mnih et al. (2015), Methods; a head adds the rest.

  Attributes:
    padding: 'VALID' as in the paper (of 84 x 84 frames F = 7 x 7 x 64 = 3,136
      features are left), or 'SAME' as in Dopamine's JAX agents (F = 11 x 11 x
      64 = 7,744).
    initializer: a key of `INITIALIZERS`.
  """

  padding: str = 'VALID'
  initializer: str = 'lecun_normal'

  @nn.compact
  def __call__(self, obs: chex.Array) -> chex.Array:
    """Maps uint8 [B, S, H, W] frames to float32 [B, F]."""
    chex.assert_rank(obs, 4)
    chosen = INITIALIZERS[self.initializer]
    # Flax convolves over [B, H, W, C]: the frames of the stack are channels.
    x = jnp.moveaxis(obs, 1, -1).astype(jnp.float32) / 255
    for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
      fan_in = size * size * x.shape[-1]
      x = nn.relu(
        Conv(
          features,
          size,
          stride,
          self.padding,
          kernel_init=chosen.kernel,
          bias_init=chosen.bias(fan_in),
        )(x)
      )
    return x.reshape(x.shape[0], -1)


class MLP(nn.Module):
  """Dense layers with ReLUs over the flattened observation.

  Attributes:
    sizes: units of each hidden layer.
    initializer: a key of `INITIALIZERS`.
  """

  sizes: Sequence[int] = (120, 84)
  initializer: str = 'lecun_normal'

  @nn.compact
  def __call__(self, obs: chex.Array) -> chex.Array:
    """Maps [B, S, ...] observations to float32 [B, sizes[-1]]."""
    x = obs.reshape(obs.shape[0], -1).astype(jnp.float32)
    for size in self.sizes:
      x = nn.relu(Dense(size, self.initializer)(x))
    return x
