"""Heads: from features [B, F] to action values [B, A], or [B, A, N].

Of a distribution of returns a head gives N numbers for each action.

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
from siamrl.networks.dense import make_dense
from siamrl.parameters import FieldError


class Head(nn.Module):
  """The base class of all heads.

  Attributes:
    num_actions: A.
    hidden: units of the hidden layer, 0 for none.
    initializer: a key of `INITIALIZERS`.
    layer_norm: whether to normalize the hidden layer before its ReLU.
    outputs: N numbers for each action; with 1 the answer is [B, A].
    noisy_std: see `NoisyDense`; 0 for layers without noise.
  """

  num_actions: int
  hidden: int = 512
  initializer: str = 'lecun_normal'
  layer_norm: bool = False
  outputs: int = 1
  noisy_std: float = 0.0

  def _dense(self, units: int, name: str | None = None) -> nn.Module:
    return make_dense(units, self.initializer, self.noisy_std, name)

  def _by_action(self, x: chex.Array) -> chex.Array:
    """Maps [B, K * N] to [B, K, N], or to itself if N is 1."""
    if self.outputs == 1:
      return x
    return x.reshape(x.shape[0], -1, self.outputs)

  def _hidden(self, features: chex.Array) -> chex.Array:
    if self.hidden:
      features = rectified(
        self._dense(self.hidden), features, layer_norm=self.layer_norm
      )
    sow_features(self, features)
    return features


class LinearHead(Head):
  """A dense layer with a bias for each number."""

  @nn.compact
  def __call__(self, features: chex.Array) -> chex.Array:
    x = self._hidden(features)  # first, so that layers are named in order
    units = self.num_actions * self.outputs
    return self._by_action(self._dense(units, 'last')(x))


class SharedBiasHead(Head):
  """A dense layer with a single bias for all actions, or N of them.

  It is the last layer of the tuned Double DQN (van Hasselt et al. 2016,
  appendix).
  Each of N outputs has its own bias.
  """

  @nn.compact
  def __call__(self, features: chex.Array) -> chex.Array:
    if self.noisy_std:
      raise FieldError(
        'noisy_std', self.noisy_std, 'must be 0 for', ('head', 'shared_bias')
      )
    x = self._hidden(features)
    chosen = INITIALIZERS[self.initializer]
    bias = self.param('last_bias', chosen.bias(x.shape[-1]), (self.outputs,))
    weights = nn.Dense(
      self.num_actions * self.outputs,
      False,
      kernel_init=chosen.kernel,
      name='last',
    )
    return bias + self._by_action(weights(x))


class DuelingHead(Head):
  """A value plus centered advantages (Wang et al. 2016, eq. 9).

  The features feed two streams, each with its own hidden layer. With several
  outputs each is such a sum, as in Rainbow (Hessel et al. 2018).
  """

  @nn.compact
  def __call__(self, features: chex.Array) -> chex.Array:
    def stream(count: int, name: str) -> chex.Array:
      x = self._hidden(features)
      x = self._dense(count * self.outputs, name)(x)
      return self._by_action(x)

    value = stream(1, 'last_value')
    advantage = stream(self.num_actions, 'last_advantage')
    return value + advantage - jnp.mean(advantage, axis=1, keepdims=True)


HEADS: dict[str, type[Head]] = {
  'linear': LinearHead,
  'shared_bias': SharedBiasHead,
  'dueling': DuelingHead,
}


def register(name: str, head: type[Head]) -> None:
  """Adds a head to `HEADS`, which launchers offer as --head=NAME.

  The name of its output layer must begin with `last`, for rules that treat that
  layer separately.
  For agents that learn distributions it must use `outputs`, and for noisy
  layers `noisy_std`.

  Args:
    name: name of the head.
    head: class of the head, which takes the fields of `Head`.

  Raises:
    FieldError: the name is taken.
  """
  if name in HEADS:
    raise FieldError('head', name, 'is taken')
  HEADS[name] = head
