"""Actors and critics of continuous actions, D numbers in [-1, 1] each.

The layers that actions and values come out of are named `last`: rules that give
a twin to the last layer alone find it by that.
"""

from collections.abc import Callable, Sequence

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from siamrl.networks.activations import sow_features
from siamrl.networks.initializers import INITIALIZERS
from siamrl.networks.torsos import MLP
from siamrl.parameters import FieldError, check_name


class Network(nn.Module):
  """What actors and critics have; the others are the ones to use.

  Making one raises ValueError where an attribute cannot be.

  Attributes:
    sizes: units of each hidden layer. DDPG and TD3 have (400, 300), SAC, and
      TD3's code today, (256, 256).
    initializer: a key of `INITIALIZERS`. 'torch_uniform' is that of DDPG's
      paper and of all code in PyTorch; haarnoja/sac has 'xavier_uniform'.
    layer_norm: normalize each hidden layer before its ReLU.
    last_bound: weights and biases of the last layer are drawn from U(-b, b);
      None for `initializer`. DDPG's paper has 3e-3, and 3e-4 from pixels, for
      first actions and values near 0.
    bounds: (lowest, highest) of all numbers of an observation, such as (0, 255)
      of pixels, which become -1 and 1; None to take observations as they are.
  """

  sizes: Sequence[int] = (256, 256)
  initializer: str = 'torch_uniform'
  layer_norm: bool = False
  last_bound: float | None = None
  bounds: tuple[float, float] | None = None

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
  ) -> chex.Array:
    """Flattens all but the batch axis, and adds hidden layers."""
    return MLP(
      tuple(sizes), self.initializer, bounds, self.layer_norm, name=name
    )(x)

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
    action_layer: the hidden layer that the action enters beside what comes from
      below: 0 for the first, as in TD3 and SAC; 1 in DDPG's paper; the number
      of hidden layers for the last layer.
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

  @nn.compact
  def __call__(self, obs: chex.Array, action: chex.Array) -> chex.Array:
    x = self._hidden(
      obs, self.sizes[: self.action_layer], 'obs_torso', self.bounds
    )
    x = jnp.concatenate([x, action], axis=-1)
    x = self._hidden(x, self.sizes[self.action_layer :])
    return self._last(x, 1)[:, 0]


class Actor(Network):
  """What actors have besides; the others are the ones to use.

  Attributes:
    action_dim: D.
  """

  action_dim: int = 1


class DeterministicActor(Actor):
  """Maps observations [B, ...] to actions float32 [B, D] by a tanh.

  The actor of DDPG (Lillicrap et al. 2016) and TD3 (Fujimoto et al. 2018).
  """

  @nn.compact
  def __call__(self, obs: chex.Array) -> chex.Array:
    x = self._hidden(obs, self.sizes, bounds=self.bounds)
    return jnp.tanh(self._last(x, self.action_dim))


# How the logarithm of a standard deviation is kept in bounds: by a clip in
# haarnoja/sac, by a squashed tanh in CleanRL.
SQUASHES: dict[str, Callable[[chex.Array, float, float], chex.Array]] = {
  'clip': jnp.clip,
  'tanh': lambda x, low, high: low + (high - low) / 2 * (jnp.tanh(x) + 1),
}


class TanhGaussianActor(Actor):
  """The actor of SAC (Haarnoja et al. 2018): a Gaussian, before a tanh.

  Attributes:
    log_std_bounds: (lowest, highest) logarithm of a standard deviation;
      haarnoja/sac has (-20, 2), CleanRL (-5, 2).
    log_std_squash: how it is kept there, a key of `SQUASHES`.
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
        'must be a lower and a higher one',
      )

  @nn.compact
  def __call__(self, obs: chex.Array) -> tuple[chex.Array, chex.Array]:
    """Maps [B, ...] to mean and log_std, float32 [B, D], before the tanh."""
    x = self._hidden(obs, self.sizes, bounds=self.bounds)
    mean, log_std = jnp.split(self._last(x, 2 * self.action_dim), 2, axis=-1)
    return mean, SQUASHES[self.log_std_squash](log_std, *self.log_std_bounds)
