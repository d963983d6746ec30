"""Heads: from features [B, F] to action values [B, A].

Each head may put a hidden layer of its own between the two (512 units in the
Atari networks): a dueling head needs one in each stream.

The layers that values come out of are named `last...`: rules that give a twin
to the last layer alone find it by that.
"""

import chex
from flax import linen as nn
import jax.numpy as jnp

from siamrl.networks.activations import rectified, sow_features
from siamrl.networks.initializers import INITIALIZERS
from siamrl.networks.torsos import Dense
from siamrl.parameters import FieldError


class Head(nn.Module):
  """What all heads have; the others are the ones to use.

  Attributes:
    num_actions: A.
    hidden: units of the layer before the last, 0 for none.
    initializer: a key of `INITIALIZERS`.
    layer_norm: normalize the hidden layer before its ReLU.
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
    x = self._hidden(features)  # first, for layers to be named in order
    return Dense(self.num_actions, self.initializer, name='last')(x)


class SharedBiasHead(Head):
  """A dense layer with a single bias for all actions.

  The last layer of the tuned Double DQN (van Hasselt et al. 2016, appendix).
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

  The features feed two streams, each with a hidden layer of its own.
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

  Its last layer must be named `last`, or begin so, for rules that treat it
  apart.

  Args:
    name: of the head.
    head: its class; takes the fields of `Head`.

  Raises:
    FieldError: the name is taken.
  """
  if name in HEADS:
    raise FieldError('head', name, 'is taken')
  HEADS[name] = head
