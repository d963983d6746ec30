"""Activations of a network's layers, for diagnostics.

Torsos and heads sow the outputs of their hidden layers. This costs nothing
unless `activations` asks for them.
"""

from typing import Any, NamedTuple

import chex
from flax import linen as nn
import jax.numpy as jnp

from siamrl.types import Params

# Flax leaves this collection out of what `init` returns.
_COLLECTION = 'intermediates'
_LAYER, _FEATURES = 'rectified', 'features'


class Activations(NamedTuple):
  """A network's answer to observations.

  Attributes:
    values: [B, A], the result of `network.apply`.
    layers: the output of each hidden layer's ReLU, by the layer's path such as
      'torso/Conv_0': [B, units], or [B, H, W, C] for a convolution.
    features: [B, D] the input of the last layer; inputs of several streams are
      concatenated.
  """

  values: chex.Array
  layers: dict[str, chex.Array]
  features: chex.Array


def rectified(
  layer: nn.Module, x: chex.Array, *, layer_norm: bool = False
) -> chex.Array:
  """relu(layer(x)), sown under the layer's own path.

  Call it inside a compact method.

  Args:
    layer: a module that the caller has just made.
    x: its input.
    layer_norm: whether to normalize over the last axis before the ReLU, with a
      scale and a bias (Ba et al. 2016), as PQN and iS-QL do.
  """
  y = layer(x)
  if layer_norm:
    y = nn.LayerNorm()(y)
  y = nn.relu(y)
  layer.sow(_COLLECTION, _LAYER, y)
  return y


def normalized_leaky(layer: nn.Module, x: chex.Array) -> chex.Array:
  """leaky_relu(layer(x)), normalized before and sown like `rectified`.

  All numbers of a layer's output are normalized together, without a scale or
  bias, and the slope below 0 is 0.01 (Elsayed et al. 2024; stream_q_minatar.py
  of mohmdelsayed/streaming-drl).

  Args:
    layer: as in `rectified`.
    x: its input.
  """
  y = layer(x)
  y = nn.LayerNorm(
    epsilon=1e-5,
    use_bias=False,
    use_scale=False,
    reduction_axes=tuple(range(1, y.ndim)),
    use_fast_variance=False,
  )(y)
  y = nn.leaky_relu(y, 0.01)
  layer.sow(_COLLECTION, _LAYER, y)
  return y


def sow_features(head: nn.Module, x: chex.Array) -> None:
  """Sows the features [B, D] that enter a last layer of `head`."""
  head.sow(_COLLECTION, _FEATURES, x)


def activations(network: nn.Module, params: Params, obs: Any) -> Activations:
  """Computes one forward pass, with the activations of all layers.

  Args:
    network: a network of this package, whose head is a `Head`.
    params: its parameters.
    obs: [B, ...].

  Raises:
    ValueError: no head has reported features.
  """
  values, sown = network.apply(params, obs, mutable=[_COLLECTION])
  layers: dict[str, chex.Array] = {}
  features: list[chex.Array] = []

  def collect(tree: Any, path: tuple[str, ...]) -> None:
    for name, below in tree.items():
      if isinstance(below, tuple) and name == _LAYER:
        layers['/'.join(path)] = below[-1]
      elif isinstance(below, tuple) and name == _FEATURES:
        # Streams without hidden layers share theirs.
        features.extend({id(x): x for x in below}.values())
      elif not isinstance(below, tuple):
        collect(below, (*path, name))

  collect(sown.get(_COLLECTION, {}), ())
  if not features:
    raise ValueError(f'{type(network).__name__} reports no features')
  return Activations(values, layers, jnp.concatenate(features, -1))
