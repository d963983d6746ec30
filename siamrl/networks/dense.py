"""Dense layers with initializers by name, with and without noise."""

from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from siamrl.networks.initializers import INITIALIZERS
from siamrl.types import Params

NOISE = 'noise'  # the random stream of noisy layers, see `flax.linen.Module`
# Up to so many, a second product takes less time than making noisy weights.
_FEW_ROWS = 4


class Dense(nn.Module):
  """A dense layer with both initializers chosen by one name."""

  features: int
  initializer: str = 'lecun_normal'

  @nn.compact
  def __call__(self, x: chex.Array) -> chex.Array:
    chosen = INITIALIZERS[self.initializer]
    return nn.Dense(
      self.features,
      kernel_init=chosen.kernel,
      bias_init=chosen.bias(x.shape[-1]),
    )(x)


class NoisyDense(nn.Module):
  """A dense layer with factorized Gaussian noise on its parameters.

  The weights are mu + sigma * f(e_i) f(e_j) with f(x) = sgn(x) sqrt(|x|) and
  standard normal e_i, e_j for each input and output (Fortunato et al. 2018,
  arXiv 1706.10295, eqs. 9 to 11). sigma is learned.

  The noise is drawn from the stream `NOISE`, once for all rows of the input. If
  the caller gives none, the layer answers with its mean parameters.

  Attributes:
    features: units.
    initializer: a key of `INITIALIZERS`, of the means.
    noisy_std: sigma_0: every sigma starts as sigma_0 / sqrt(fan-in).
  """

  features: int
  initializer: str = 'torch_uniform'
  noisy_std: float = 0.5

  @nn.compact
  def __call__(self, x: chex.Array) -> chex.Array:
    chosen, fan_in = INITIALIZERS[self.initializer], x.shape[-1]
    shape = (fan_in, self.features)
    std = nn.initializers.constant(self.noisy_std / fan_in**0.5)
    kernel = self.param('kernel', chosen.kernel, shape)
    bias = self.param('bias', chosen.bias(fan_in), shape[1:])
    kernel_std = self.param('kernel_std', std, shape)
    bias_std = self.param('bias_std', std, shape[1:])
    if not self.has_rng(NOISE):
      return x @ kernel + bias
    keys = jax.random.split(self.make_rng(NOISE))
    of_inputs = _noise(keys[0], fan_in)
    of_outputs = _noise(keys[1], self.features)
    bias = bias + bias_std * of_outputs
    if x.ndim > 1 and x.shape[0] <= _FEW_ROWS:
      noise = (x * of_inputs) @ kernel_std * of_outputs
      return x @ kernel + noise + bias
    kernel = kernel + kernel_std * (of_inputs[:, None] * of_outputs)
    return x @ kernel + bias


def _noise(key: chex.PRNGKey, count: int) -> chex.Array:
  """float32 [count] numbers f(e), whose variance is E|e| = sqrt(2 / pi)."""
  e = jax.random.normal(key, (count,))
  return jnp.sign(e) * jnp.sqrt(jnp.abs(e))


def make_dense(
  features: int,
  initializer: str,
  noisy_std: float = 0.0,
  name: str | None = None,
) -> nn.Module:
  """A dense layer; noisy unless `noisy_std` is 0.

  Call it inside a compact method.
  """
  if noisy_std:
    return NoisyDense(features, initializer, noisy_std, name=name)
  return Dense(features, initializer, name=name)


def has_noise(module: nn.Module) -> bool:
  """Whether a module has noisy layers, by its `noisy_std` or `noisy`."""
  return bool(
    getattr(module, 'noisy_std', 0.0) or getattr(module, 'noisy', False)
  )


def answer(
  network: nn.Module, params: Params, *inputs: Any, key: chex.PRNGKey | None
) -> Any:
  """Applies a network; a key draws the noise of its noisy layers.

  Without a key they answer with their mean parameters. Other networks ignore
  it.
  """
  rngs = None if key is None else {NOISE: key}
  return network.apply(params, *inputs, rngs=rngs)
