"""Actors and critics of continuous actions, D numbers in [-1, 1] each.

Output layers are named `last`, by which rules that give a twin to the last
layer alone find them.

Networks with batch normalization are called with two more arguments, those of
`BatchRenorm`, which others ignore.
"""

from collections.abc import Callable, Sequence

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from siamrl.networks.activations import sow_features
from siamrl.networks.initializers import INITIALIZERS
from siamrl.networks.renorm import NormalizedMLP
from siamrl.networks.torsos import MLP
from siamrl.parameters import FieldError, check_name


class Network(nn.Module):
  """The base class of actors and critics.

  The constructor raises ValueError if an attribute is invalid.

  Attributes:
    sizes: units of each hidden layer. DDPG and TD3 have (400, 300), SAC and
      TD3's current code (256, 256).
    initializer: a key of `INITIALIZERS`. DDPG's paper and PyTorch code use
      'torch_uniform', haarnoja/sac 'xavier_uniform'.
    layer_norm: whether to normalize each hidden layer before its ReLU.
    last_bound: bound b of U(-b, b), from which weights and biases of the last
      layer are drawn; None for `initializer`. DDPG's paper has 3e-3, and 3e-4
      for pixels, so that first actions and values are near 0.
    bounds: (lowest, highest) value of an observation's numbers, such as (0,
      255) for pixels, which are mapped to -1 and 1; None for no scaling.
    batch_norm: whether to renormalize the input and each hidden layer after its
      ReLU by the batch, as CrossQ does.
  """

  sizes: Sequence[int] = (256, 256)
  initializer: str = 'torch_uniform'
  layer_norm: bool = False
  last_bound: float | None = None
  bounds: tuple[float, float] | None = None
  batch_norm: bool = False

  def __post_init__(self) -> None:
    super().__post_init__()
    check_name('initializer', self.initializer, INITIALIZERS)
    if self.last_bound is not None and not self.last_bound > 0:
      raise FieldError('last_bound', self.last_bound, 'must be positive')

  def _hidden(
    self,
    x: chex.Array,
    sizes: Sequence[int],
    name: str = 'torso',
    bounds: tuple[float, float] | None = None,
    normalizing: tuple[bool, chex.Numeric] | None = None,
  ) -> chex.Array:
    """Flattens all but the batch axis, and adds hidden layers.

    Args:
      x: [B, ...].
      sizes: units of each layer.
      name: name of the layers together.
      bounds: as the attribute.
      normalizing: arguments of `BatchRenorm`, for layers with it.
    """
    options = (tuple(sizes), self.initializer, bounds, self.layer_norm)
    if self.batch_norm and normalizing is not None:
      return NormalizedMLP(*options, name=name)(x, *normalizing)
    return MLP(*options, name=name)(x)

  def _last(self, features: chex.Array, outputs: int) -> chex.Array:
    sow_features(self, features)
    chosen = INITIALIZERS[self.initializer]
    kernel, bias = chosen.kernel, chosen.bias(features.shape[-1])
    if self.last_bound is not None:
      kernel = bias = _uniform(self.last_bound)
    return nn.Dense(outputs, kernel_init=kernel, bias_init=bias, name='last')(
      features
    )


def _uniform(bound: float) -> Callable[..., jax.Array]:
  """An initializer that draws from U(-bound, bound)."""
  return lambda key, shape, dtype=float: jax.random.uniform(
    key, shape, dtype, -bound, bound
  )


class Critic(Network):
  """Maps observations [B, ...] and actions [B, D] to values float32 [B].

  Attributes:
    action_layer: index of the layer that gets the action as another input: 0
      for the first, as in TD3 and SAC; 1 in DDPG's paper; the number of hidden
      layers for the last layer.
  """

  action_layer: int = 0

  def __post_init__(self) -> None:
    super().__post_init__()
    if not 0 <= self.action_layer <= len(self.sizes):
      raise FieldError(
        'action_layer',
        self.action_layer,
        f'must be in [0, {len(self.sizes)}] with sizes={tuple(self.sizes)}',
      )
    if self.batch_norm and self.action_layer:
      raise FieldError(
        'action_layer', self.action_layer, 'must be 0 with batch_norm=True'
      )

  @nn.compact
  def __call__(
    self,
    obs: chex.Array,
    action: chex.Array,
    training: bool = False,
    warmed_up: chex.Numeric = False,
  ) -> chex.Array:
    x = self._hidden(
      obs, self.sizes[: self.action_layer], 'obs_torso', self.bounds
    )
    x = jnp.concatenate([x, action], axis=-1)
    x = self._hidden(
      x,
      self.sizes[self.action_layer :],
      normalizing=(training, warmed_up),
    )
    return self._last(x, 1)[:, 0]


class Actor(Network):
  """The base class of actors.

  Attributes:
    action_dim: D.
  """

  action_dim: int = 1


class DeterministicActor(Actor):
  """Maps observations [B, ...] to actions float32 [B, D] by a tanh.

  The actor of DDPG (Lillicrap et al. 2016) and TD3 (Fujimoto et al. 2018).
  """

  @nn.compact
  def __call__(
    self,
    obs: chex.Array,
    training: bool = False,
    warmed_up: chex.Numeric = False,
  ) -> chex.Array:
    x = self._hidden(
      obs,
      self.sizes,
      bounds=self.bounds,
      normalizing=(training, warmed_up),
    )
    return jnp.tanh(self._last(x, self.action_dim))


# Functions that keep the logarithm of a standard deviation in bounds: a clip in
# haarnoja/sac, a scaled tanh in CleanRL.
SQUASHES: dict[str, Callable[[chex.Array, float, float], chex.Array]] = {
  'clip': jnp.clip,
  'tanh': lambda x, low, high: low + (high - low) / 2 * (jnp.tanh(x) + 1),
}


class TanhGaussianActor(Actor):
  """The actor of SAC (Haarnoja et al. 2018): a Gaussian, before a tanh.

  Attributes:
    log_std_bounds: (lowest, highest) logarithm of a standard deviation;
      haarnoja/sac has (-20, 2), CleanRL (-5, 2).
    log_std_squash: function that enforces these bounds, a key of `SQUASHES`.
  """

  log_std_bounds: tuple[float, float] = (-20.0, 2.0)
  log_std_squash: str = 'clip'

  def __post_init__(self) -> None:
    super().__post_init__()
    check_name('log_std_squash', self.log_std_squash, SQUASHES)
    low, high = self.log_std_bounds
    if not low < high:
      raise FieldError(
        'log_std_bounds',
        self.log_std_bounds,
        'must be a lower and a higher number',
      )

  @nn.compact
  def __call__(
    self,
    obs: chex.Array,
    training: bool = False,
    warmed_up: chex.Numeric = False,
  ) -> tuple[chex.Array, chex.Array]:
    """Maps [B, ...] to mean and log_std, float32 [B, D], before the tanh."""
    x = self._hidden(
      obs,
      self.sizes,
      bounds=self.bounds,
      normalizing=(training, warmed_up),
    )
    mean, log_std = jnp.split(self._last(x, 2 * self.action_dim), 2, axis=-1)
    return mean, SQUASHES[self.log_std_squash](log_std, *self.log_std_bounds)
