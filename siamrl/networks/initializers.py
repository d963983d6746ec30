"""Initializers of layers, by name."""

import math
from typing import NamedTuple

import chex
import jax
from flax import linen as nn
from flax.typing import Initializer
import jax.numpy as jnp


class Initializers(NamedTuple):
  """The initializers of one layer.

  Attributes:
    kernel: initializer of the weights.
    uniform_bias: whether biases are drawn from U(-b, b), b = fan_in**-0.5
      (fan-in: inputs per output unit), rather than zero.
  """

  kernel: Initializer
  uniform_bias: bool

  def bias(self, fan_in: int) -> Initializer:
    """The bias initializer of a layer with `fan_in` inputs per output."""
    if not self.uniform_bias:
      return nn.initializers.zeros_init()
    bound = fan_in**-0.5
    return lambda key, shape, dtype=float: jax.random.uniform(
      key, shape, dtype, -bound, bound
    )


def sparse(sparsity: float) -> Initializer:
  """Draws from U(-b, b), b = fan_in**-0.5, and sets a share of inputs to 0.

  Each output unit has its own ceil(sparsity * fan_in) weights of 0 (Elsayed et
  al. 2024; sparse_init.py of mohmdelsayed/streaming-drl).
  """

  def init(
    key: chex.PRNGKey, shape: tuple[int, ...], dtype=float
  ) -> chex.Array:
    weights_key, zeros_key = jax.random.split(key)
    fan_in = math.prod(shape[:-1])
    bound, zeros = fan_in**-0.5, math.ceil(sparsity * fan_in)
    weights = jax.random.uniform(
      weights_key, (fan_in, shape[-1]), dtype, -bound, bound
    )
    places = jnp.argsort(jax.random.uniform(zeros_key, weights.shape), axis=0)
    ranks = jnp.argsort(places, axis=0)
    return jnp.where(ranks < zeros, 0, weights).reshape(shape)

  return init


# `dopamine_uniform` is that of Dopamine's distributional agents (RainbowNetwork
# of jax/networks.py), with a bound of 3**0.25 / fan_in**0.5.
#
# `torch_uniform` draws weights and biases from U(-b, b), b = fan_in**-0.5, as
# the Lua code of Nature DQN and DQN Zoo do. Variance scaling by 1/3 over the
# fan-in has that bound: sqrt(3 * (1/3) / fan_in).
INITIALIZERS: dict[str, Initializers] = {
  'lecun_normal': Initializers(nn.initializers.lecun_normal(), False),
  'he_normal': Initializers(nn.initializers.he_normal(), False),
  'xavier_uniform': Initializers(nn.initializers.xavier_uniform(), False),
  'orthogonal': Initializers(nn.initializers.orthogonal(), False),
  'dopamine_uniform': Initializers(
    nn.initializers.variance_scaling(3**-0.5, 'fan_in', 'uniform'), False
  ),
  'torch_uniform': Initializers(
    nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'), True
  ),
  'sparse': Initializers(sparse(0.9), False),
}
