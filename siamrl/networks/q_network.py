"""Action-value networks: a torso and a head, chosen by name."""

from collections.abc import Sequence
from typing import Any

import chex
from flax import linen as nn
import jax.numpy as jnp

from siamrl.networks.dense import has_noise
from siamrl.networks.heads import HEADS
from siamrl.networks.initializers import INITIALIZERS
from siamrl.networks.torsos import MLP, MinAtarCNN, NatureCNN
from siamrl.parameters import check_name


def renormalized(features: chex.Array) -> chex.Array:
  """Scales the features of each observation to [0, 1].

  (x - min) / (max - min + 1e-5) over all features of an observation, as in SPR
  (mila-iqia/spr, models.py); the 1e-5, without which equal features become NaN,
  is from Dopamine's SPR (labs/atari_100k/spr_networks.py).

  Args:
    features: [B, ...].
  """
  axes = tuple(range(1, features.ndim))
  low = jnp.min(features, axes, keepdims=True)
  high = jnp.max(features, axes, keepdims=True)
  return (features - low) / (high - low + 1e-5)


class QNetwork(nn.Module):
  """Maps observations [B, ...] to action values float32 [B, A].

  A head with N outputs for each action gives [B, A, N] instead.

  Attributes:
    torso: observations -> features [B, F].
    head: features -> values.
    renormalize: whether features are `renormalized` in between.
  """

  torso: nn.Module
  head: nn.Module
  renormalize: bool = False

  @property
  def noisy(self) -> bool:
    """Whether some layers have noise, see `NoisyDense`."""
    return any(has_noise(part) for part in (self.torso, self.head))

  def __call__(self, obs: chex.Array) -> chex.Array:
    features = self.torso(obs)
    if self.renormalize:
      features = renormalized(features)
    return self.head(features)


def nature_network(
  num_actions: int,
  *,
  hidden_units: int = 512,
  head: str = 'linear',
  padding: str = 'VALID',
  initializer: str = 'lecun_normal',
  layer_norm: bool = False,
  renormalize: bool = False,
  torso: nn.Module | None = None,
  outputs: int = 1,
  noisy_std: float = 0.0,
) -> QNetwork:
  """The network of Nature DQN for 84 x 84 frames (Mnih et al. 2015).

  Args:
    num_actions: A.
    hidden_units: units of each hidden layer of the head.
    head: a key of `HEADS`.
    padding: padding of the convolutions, see `NatureCNN`.
    initializer: a key of `INITIALIZERS`.
    layer_norm: whether to normalize each hidden layer before its ReLU.
    renormalize: whether features are `renormalized` before the head.
    torso: replaces the default torso.
    outputs: how many numbers the head gives for each action.
    noisy_std: noise of the dense layers, see `NoisyDense`; 0 for none.

  Raises:
    ValueError: a name is unknown.
  """
  _check('head', head, HEADS)
  _check('padding', padding, ('VALID', 'SAME'))
  _check('initializer', initializer, INITIALIZERS)
  return QNetwork(
    torso or NatureCNN(padding, initializer, layer_norm),
    _make_head(
      head,
      num_actions,
      hidden_units,
      initializer,
      layer_norm,
      outputs=outputs,
      noisy_std=noisy_std,
    ),
    renormalize,
  )


def minatar_network(
  num_actions: int,
  *,
  hidden_units: int = 128,
  padding: str = 'VALID',
  head: str = 'linear',
  initializer: str = 'lecun_normal',
  layer_norm: bool = False,
  renormalize: bool = False,
  torso: nn.Module | None = None,
  outputs: int = 1,
  noisy_std: float = 0.0,
) -> QNetwork:
  """The network of the MinAtar paper for 10 x 10 boards (Young & Tian 2019).

  Args:
    num_actions: A.
    hidden_units: units of the head's hidden layer; 0 for none, as in Dopamine.
    padding: padding of the convolution, see `MinAtarCNN`.
    head: a key of `HEADS`.
    initializer: a key of `INITIALIZERS`; the paper's code has 'torch_uniform'.
    layer_norm: whether to normalize each hidden layer before its ReLU.
    renormalize: whether features are `renormalized` before the head.
    torso: replaces the default torso.
    outputs: how many numbers the head gives for each action.
    noisy_std: noise of the dense layers, see `NoisyDense`; 0 for none.

  Raises:
    ValueError: a name is unknown.
  """
  _check('head', head, HEADS)
  _check('padding', padding, ('VALID', 'SAME'))
  _check('initializer', initializer, INITIALIZERS)
  return QNetwork(
    torso or MinAtarCNN(initializer, padding, layer_norm),
    _make_head(
      head,
      num_actions,
      hidden_units,
      initializer,
      layer_norm,
      outputs=outputs,
      noisy_std=noisy_std,
    ),
    renormalize,
  )


def mlp_network(
  num_actions: int,
  *,
  sizes: Sequence[int] = (120, 84),
  bounds: tuple[Sequence[float], Sequence[float]]
  | tuple[float, float]
  | None = None,
  head: str = 'linear',
  initializer: str = 'lecun_normal',
  layer_norm: bool = False,
  renormalize: bool = False,
  torso: nn.Module | None = None,
  outputs: int = 1,
  noisy_std: float = 0.0,
) -> QNetwork:
  """Dense layers for vector observations; the default sizes are CleanRL's.

  Args:
    num_actions: A.
    sizes: units of each hidden layer.
    bounds: bounds of the observations, see `MLP`.
    head: a key of `HEADS`; it gets no hidden layer.
    initializer: a key of `INITIALIZERS`.
    layer_norm: whether to normalize each hidden layer before its ReLU.
    renormalize: whether features are `renormalized` before the head.
    torso: replaces the default torso.
    outputs: how many numbers the head gives for each action.
    noisy_std: noise of the dense layers, see `NoisyDense`; 0 for none.

  Raises:
    ValueError: a name is unknown.
  """
  _check('head', head, HEADS)
  _check('initializer', initializer, INITIALIZERS)
  return QNetwork(
    torso or MLP(tuple(sizes), initializer, bounds, layer_norm, noisy_std),
    _make_head(
      head,
      num_actions,
      0,
      initializer,
      False,
      outputs=outputs,
      noisy_std=noisy_std,
    ),
    renormalize,
  )


def _make_head(
  name: str, *fields: Any, outputs: int, noisy_std: float
) -> nn.Module:
  """The head of that name, with the fields of `Head` in their order."""
  # A head of a user's own may know nothing of several outputs, or of noise.
  more: dict[str, Any] = {} if outputs == 1 else {'outputs': outputs}
  if noisy_std:
    more['noisy_std'] = noisy_std
  return HEADS[name](*fields, **more)


def _check(name: str, value: str, allowed) -> None:
  check_name(name, value, allowed)
