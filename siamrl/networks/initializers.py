"""Initializers of layers, by name."""

from typing import NamedTuple

import jax
from flax import linen as nn
from flax.typing import Initializer


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
}
