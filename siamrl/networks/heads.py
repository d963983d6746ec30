"""Heads: from features [B, F] to action values [B, A].

A head may have a hidden layer (512 units in the Atari networks); a dueling head
has one in each stream.

The names of output layers begin with `last`, by which rules that give a twin to
the last layer alone find them.
"""

import chex
from flax import linen as nn
import jax.numpy as jnp

from siamrl.networks.activations import rectified, sow_features
from siamrl.networks.initializers import INITIALIZERS
from siamrl.networks.torsos import Dense
from siamrl.parameters import FieldError


class Head(nn.Module):
  """The base class of all heads.

  Attributes:
    num_actions: A.
    hidden: units of the hidden layer, 0 for none.
    initializer: a key of `INITIALIZERS`.
    layer_norm: whether to normalize the hidden layer before its ReLU.
  """

  num_actions: int
  hidden: int = 512
  initializer: str = 'lecun_normal'
  layer_norm: bool = False

  def _hidden(self, features: chex.Array) -> chex.Array:
    if self.hidden:
      features = rectified(
        Dense(self.hidden, self.initializer),
        features,
        layer_norm=self.layer_norm,
      )
    sow_features(self, features)
    return features


class LinearHead(Head):
  """A dense layer with a bias for each action."""

  @nn.compact
  def __call__(self, features: chex.Array) -> chex.Array:
    x = self._hidden(features)  # first, so that layers are named in order
    return Dense(self.num_actions, self.initializer, name='last')(x)


class SharedBiasHead(Head):
  """A dense layer with a single bias for all actions.

  It is the last layer of the tuned Double DQN (van Hasselt et al. 2016,
  appendix).
  """

  @nn.compact
  def __call__(self, features: chex.Array) -> chex.Array:
    x = self._hidden(features)
    chosen = INITIALIZERS[self.initializer]
    bias = self.param('last_bias', chosen.bias(x.shape[-1]), (1,))
    weights = nn.Dense(
      self.num_actions, False, kernel_init=chosen.kernel, name='last'
    )
    return bias + weights(x)


class DuelingHead(Head):
  """A value plus centered advantages (Wang et al. 2016, eq. 9).

  The features feed two streams, each with its own hidden layer.
  """

  @nn.compact
  def __call__(self, features: chex.Array) -> chex.Array:
    def stream(outputs: int, name: str) -> chex.Array:
      x = self._hidden(features)
      return Dense(outputs, self.initializer, name=name)(x)

    value = stream(1, 'last_value')
    advantage = stream(self.num_actions, 'last_advantage')
    return value + advantage - jnp.mean(advantage, axis=-1, keepdims=True)


HEADS: dict[str, type[Head]] = {
  'linear': LinearHead,
  'shared_bias': SharedBiasHead,
  'dueling': DuelingHead,
}


def register(name: str, head: type[Head]) -> None:
  """Adds a head to `HEADS`, which launchers offer as --head=NAME.

  The name of its output layer must begin with `last`, for rules that treat that
  layer separately.

  Args:
    name: name of the head.
    head: class of the head, which takes the fields of `Head`.

  Raises:
    FieldError: the name is taken.
  """
  if name in HEADS:
    raise FieldError('head', name, 'is taken')
  HEADS[name] = head
