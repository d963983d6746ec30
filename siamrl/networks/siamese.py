"""Encoders, projectors and predictors of Siamese representation learning.

An encoder maps images to features, the representations to evaluate; a projector
maps features to the space of the loss; a predictor maps the online network's
projections to the twin's. The heads are those of SimSiam's code
(facebookresearch/simsiam, builder.py) except for their sizes.

Batch normalization is Flax's, with momentum 0, so that its collection holds the
mean and variance of the latest batch. Networks keep no running averages;
`forward` takes them as an argument.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
from flax import linen as nn
import jax.numpy as jnp

from siamrl.networks.conv import Conv
from siamrl.parameters import check_name
from siamrl.types import Params

# (features, size of the square kernel, stride) of each convolution.
_SMALL = ((32, 4, 2), (64, 4, 2), (64, 3, 1))
_NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))


def forward(
  module: nn.Module, params: Params, x: chex.Array, statistics: Any = None
) -> tuple[chex.Array, Any]:
  """Computes one pass through a network of this file.

  Args:
    module: the network.
    params: its parameters.
    x: [B, ...].
    statistics: means and variances to normalize with; None for the batch's own.

  Returns:
    The network's output [B, ...], and the statistics that normalized it, empty
    without batch normalization.

  Raises:
    ValueError: a batch of one would be normalized by itself.
  """
  if statistics is not None:
    variables = {'params': params, 'batch_stats': statistics}
    return module.apply(variables, x, running=True), statistics
  y, state = module.apply({'params': params}, x, mutable=['batch_stats'])
  measured = state.get('batch_stats', {})
  if measured and x.shape[0] < 2:
    raise ValueError(
      'batch normalization needs a batch of 2 or more: it turns one into zeros'
    )
  return y, measured


def init(
  module: nn.Module, key: chex.PRNGKey, x: chex.Array
) -> tuple[Params, Any]:
  """Draws parameters, and makes statistics of mean 0 and variance 1.

  Args:
    module: a network of this file.
    key: random key.
    x: [B, ...]; only its shape matters.
  """
  variables = module.init(key, x, running=True)
  return variables.get('params', {}), variables.get('batch_stats', {})


def _norm(running: bool, *, affine: bool = True) -> nn.Module:
  return nn.BatchNorm(
    use_running_average=running,
    momentum=0.0,
    use_bias=affine,
    use_scale=affine,
    # E[x**2] - E[x]**2 loses all digits if outputs have nearly collapsed.
    use_fast_variance=False,
  )


def _hidden(
  x: chex.Array, size: int, batch_norm: bool, running: bool
) -> chex.Array:
  """A dense layer and its ReLU; normalization replaces the bias.

  Call it inside a compact method.
  """
  x = nn.Dense(size, use_bias=not batch_norm)(x)
  return nn.relu(_norm(running)(x) if batch_norm else x)


class MLPEncoder(nn.Module):
  """Dense layers with ReLUs over the flattened image.

  Attributes:
    sizes: units of each layer.
    batch_norm: whether to normalize each layer before its ReLU.
  """

  sizes: Sequence[int] = (256, 256, 256)
  batch_norm: bool = True

  @nn.compact
  def __call__(self, images: chex.Array, running: bool = False) -> chex.Array:
    """Maps float [B, H, W, C] to [B, sizes[-1]]."""
    x = images.reshape(images.shape[0], -1)
    for size in self.sizes:
      x = _hidden(x, size, self.batch_norm, running)
    return x


class ConvEncoder(nn.Module):
  """Convolutions, then dense layers, all with ReLUs.

  Attributes:
    layers: (features, size of the kernel, stride) of each convolution, without
      padding.
    sizes: units of each dense layer.
    batch_norm: whether to normalize each layer before its ReLU; channels of a
      convolution are normalized over all positions.
    inside_loop: see `siamrl.networks.conv.Conv`.
  """

  layers: Sequence[tuple[int, int, int]] = _SMALL
  sizes: Sequence[int] = (256,)
  batch_norm: bool = True
  inside_loop: bool = False

  @nn.compact
  def __call__(self, images: chex.Array, running: bool = False) -> chex.Array:
    """Maps float [B, H, W, C] to [B, sizes[-1]].

    Raises:
      ValueError: the images are too small for the convolutions.
    """
    x = images
    for features, size, stride in self.layers:
      if min(x.shape[1:3]) < size:
        raise ValueError(
          f'images of {images.shape[1]} x {images.shape[2]} are too small for '
          f'the convolutions {tuple(self.layers)}'
        )
      x = Conv(features, size, stride, inside_loop=self.inside_loop)(x)
      x = nn.relu(_norm(running)(x) if self.batch_norm else x)
    x = x.reshape(x.shape[0], -1)
    for size in self.sizes:
      x = _hidden(x, size, self.batch_norm, running)
    return x


class Projector(nn.Module):
  """Dense layers with ReLUs, and a last one without.

  Attributes:
    projections: D.
    sizes: units of each hidden layer.
    batch_norm: whether to normalize each hidden layer before its ReLU.
    output_norm: whether to normalize the projections, without scale and bias,
      as SimSiam does and BYOL does not.
  """

  projections: int = 64
  sizes: Sequence[int] = (256,)
  batch_norm: bool = True
  output_norm: bool = True

  @nn.compact
  def __call__(self, x: chex.Array, running: bool = False) -> chex.Array:
    """Maps features [B, F] to [B, D]."""
    for size in self.sizes:
      x = _hidden(x, size, self.batch_norm, running)
    x = nn.Dense(self.projections, use_bias=not self.output_norm)(x)
    return _norm(running, affine=False)(x) if self.output_norm else x


class MLPPredictor(nn.Module):
  """A hidden layer, usually narrower than the projections, and a linear one.

  Attributes:
    units: units of the hidden layer.
    batch_norm: whether to normalize the hidden layer before its ReLU.
  """

  units: int = 16
  batch_norm: bool = True

  @nn.compact
  def __call__(self, z: chex.Array, running: bool = False) -> chex.Array:
    """Maps [B, D] to [B, D]."""
    hidden = _hidden(z, self.units, self.batch_norm, running)
    return nn.Dense(z.shape[-1])(hidden)


class LinearPredictor(nn.Module):
  """A matrix without a bias, as in the theory (Tian et al. 2021)."""

  @nn.compact
  def __call__(self, z: chex.Array, running: bool = False) -> chex.Array:
    """Maps [B, D] to [B, D]."""
    del running  # nothing is normalized
    return nn.Dense(z.shape[-1], use_bias=False)(z)


class SiameseNetworks(NamedTuple):
  """The networks of a Siamese agent.

  Attributes:
    encoder: float [B, H, W, C] -> [B, F].
    projector: [B, F] -> [B, D].
    predictor: [B, D] -> [B, D], for agents whose predictor is an MLP.
  """

  encoder: nn.Module
  projector: nn.Module
  predictor: nn.Module


ENCODERS = {
  'mlp': 'dense layers over all pixels',
  'small_cnn': 'three convolutions for images of about 28 x 28',
  'nature_cnn': "Nature DQN's three convolutions for frames of 84 x 84",
}


def siamese_networks(
  encoder: str = 'mlp',
  *,
  encoder_sizes: Sequence[int] | None = None,
  projector_sizes: Sequence[int] = (256,),
  projections: int = 64,
  predictor_units: int = 16,
  encoder_norm: bool = True,
  head_norm: bool = True,
  output_norm: bool = True,
  inside_loop: bool = False,
) -> SiameseNetworks:
  """Builds the networks of a Siamese agent.

  Args:
    encoder: a key of `ENCODERS`.
    encoder_sizes: units of the encoder's dense layers; None for (256, 256, 256)
      in 'mlp', and (256,) after convolutions.
    projector_sizes: units of the projector's hidden layers.
    projections: D.
    predictor_units: units of the predictor's hidden layer.
    encoder_norm: whether the encoder has batch normalization.
    head_norm: whether hidden layers of projector and predictor have it.
    output_norm: whether the projections have it.
    inside_loop: whether gradient steps are compiled into a loop; it affects
      only the speed of convolutions on the CPU.

  Raises:
    ValueError: the encoder's name is unknown.
  """
  check_name('encoder', encoder, ENCODERS)
  chosen: nn.Module
  if encoder == 'mlp':
    sizes = (256, 256, 256) if encoder_sizes is None else tuple(encoder_sizes)
    chosen = MLPEncoder(sizes, encoder_norm)
  else:
    sizes = (256,) if encoder_sizes is None else tuple(encoder_sizes)
    layers = _SMALL if encoder == 'small_cnn' else _NATURE
    chosen = ConvEncoder(layers, sizes, encoder_norm, inside_loop)
  return SiameseNetworks(
    chosen,
    Projector(projections, tuple(projector_sizes), head_norm, output_norm),
    MLPPredictor(predictor_units, head_norm),
  )


def as_float(images: chex.Array) -> chex.Array:
  """Converts images to float32 in [0, 1]; uint8 are divided by 255.

  Args:
    images: [..., H, W, C], uint8, or floats in [0, 1].

  Raises:
    ValueError: the images are neither.
  """
  images = jnp.asarray(images)
  if images.dtype == jnp.uint8:
    return images.astype(jnp.float32) / 255
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(f'images are {images.dtype}, neither uint8 nor floats')
  return images.astype(jnp.float32)
