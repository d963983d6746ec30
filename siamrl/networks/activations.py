"""What a network's layers answer, for whoever studies them.

Torsos and heads sow what leaves their hidden layers. Nothing is kept or
computed for it unless `activations` asks.
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
    values: [B, A], what `network.apply` returns.
    layers: after the ReLU of each hidden layer, by its path such as
      'torso/Conv_0': [B, units], or [B, H, W, C] of a convolution.
    features: [B, D] what enters the last layer; of streams with a last layer
      each, side by side.
  """

  values: chex.Array
  layers: dict[str, chex.Array]
  features: chex.Array


def rectified(
  layer: nn.Module, x: chex.Array, *, layer_norm: bool = False
) -> chex.Array:
  """relu(layer(x)), sown under the layer's own path.

  To be called inside a compact method.

  Args:
    layer: a module that the calling one has just made.
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


def sow_features(head: nn.Module, x: chex.Array) -> None:
  """Reports [B, D] features that enter a last layer of `head`."""
  head.sow(_COLLECTION, _FEATURES, x)


def activations(network: nn.Module, params: Params, obs: Any) -> Activations:
  """One forward pass, with what the layers answer on the way.

  Args:
    network: of this package: its head is a `Head`.
    params: of it.
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
