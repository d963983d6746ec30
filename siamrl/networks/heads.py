"""Heads: from features [B, F] to action values [B, A].

Each head may put a hidden layer of its own between the two (512 units in the
Atari networks): a dueling head needs one in each stream.
"""

import chex
import jax.numpy as jnp
from flax import linen as nn

from siamrl.networks.initializers import INITIALIZERS
from siamrl.networks.torsos import Dense


def _hidden(x: chex.Array, units: int, initializer: str) -> chex.Array:
  return nn.relu(Dense(units, initializer)(x)) if units else x


class LinearHead(nn.Module):
  """A dense layer with a bias for each action.

  Attributes:
    num_actions: A.
    hidden: units of the layer before it, 0 for none.
    initializer: a key of `INITIALIZERS`.
  """

  num_actions: int
  hidden: int = 512
  initializer: str = 'lecun_normal'

  @nn.compact
  def __call__(self, features: chex.Array) -> chex.Array:
    x = _hidden(features, self.hidden, self.initializer)
    return Dense(self.num_actions, self.initializer)(x)


class SharedBiasHead(nn.Module):
  """A dense layer with a single bias for all actions.

  The last layer of the tuned Double DQN (van Hasselt et al. 2016, appendix).
  Attributes as `LinearHead`.
  """

  num_actions: int
  hidden: int = 512
  initializer: str = 'lecun_normal'

  @nn.compact
  def __call__(self, features: chex.Array) -> chex.Array:
    x = _hidden(features, self.hidden, self.initializer)
    chosen = INITIALIZERS[self.initializer]
    bias = self.param('bias', chosen.bias(x.shape[-1]), (1,))
    return bias + nn.Dense(
      self.num_actions, use_bias=False, kernel_init=chosen.kernel
    )(x)


class DuelingHead(nn.Module):
  """A value plus centred advantages (Wang et al. 2016, eq. 9).

  The features feed two streams, each with a hidden layer of its own.
  Attributes as `LinearHead`.
  """

  num_actions: int
  hidden: int = 512
  initializer: str = 'lecun_normal'

  @nn.compact
  def __call__(self, features: chex.Array) -> chex.Array:
    def stream(outputs: int) -> chex.Array:
      x = _hidden(features, self.hidden, self.initializer)
      return Dense(outputs, self.initializer)(x)

    value, advantage = stream(1), stream(self.num_actions)
    return value + advantage - jnp.mean(advantage, axis=-1, keepdims=True)


HEADS: dict[str, type[nn.Module]] = {
  'linear': LinearHead,
  'shared_bias': SharedBiasHead,
  'dueling': DuelingHead,
}
