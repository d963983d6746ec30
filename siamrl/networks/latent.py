"""Networks that predict future latents, those of SPR (Schwarzer et al. 2021).

arXiv:2007.05929; the authors' code is mila-iqia/spr, and google/dopamine,
labs/atari_100k, has a second implementation in JAX. A latent is the output of a
value network's torso, with its spatial axes. From it

* a transition model computes the latent of the next observation, given the
  action;
* a projector computes the vector to compare. As in both codes it is the hidden
  layer of the value network's head before its ReLU (both streams' concatenated
  for a dueling head), so that the prediction is about the inputs of values; a
  head without one needs a separate layer;
* a predictor, a dense layer, maps projections to the twin's.

The transition model has two 3 x 3 convolutions with as many channels as the
latent, as in both codes. Like Dopamine's, and unlike the authors', it has no
batch normalization, so rows of a batch do not see each other. Two dense layers
can replace the convolutions, and do if latents are vectors; on a CPU they are a
few times faster.
"""

from typing import Any, NamedTuple

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from siamrl.networks.conv import Conv
from siamrl.networks.initializers import INITIALIZERS
from siamrl.networks.q_network import QNetwork, renormalized
from siamrl.networks.dense import Dense, make_dense
from siamrl.parameters import FieldError, check_name
from siamrl.types import Params


TRANSITIONS = {
  'conv': 'two convolutions if features have spatial axes (SPR), else dense',
  'dense': 'two dense layers, the first of 128 units',
}
_HIDDEN = 128


class TransitionModel(nn.Module):
  """A model from latents and actions to the next latents.

  Attributes:
    num_actions: A.
    kind: a key of `TRANSITIONS`.
    initializer: a key of `INITIALIZERS`.
    inside_loop: see `siamrl.networks.conv.Conv`.
  """

  num_actions: int
  kind: str = 'conv'
  initializer: str = 'lecun_normal'
  inside_loop: bool = False

  @nn.compact
  def __call__(self, latents: chex.Array, actions: chex.Array) -> chex.Array:
    """Maps latents [B, H, W, C] or [B, F], and actions int [B], to latents.

    Like the torso's output, the latents are 0 or more.
    """
    chosen = jax.nn.one_hot(actions, self.num_actions)
    if latents.ndim == 2 or self.kind == 'dense':
      flat = latents.reshape(len(latents), -1)
      x = jnp.concatenate([flat, chosen], -1)
      for units in (_HIDDEN, flat.shape[-1]):
        x = nn.relu(Dense(units, self.initializer)(x))
      return x.reshape(latents.shape)
    chex.assert_rank(latents, 4)
    everywhere = jnp.broadcast_to(
      chosen[:, None, None], (*latents.shape[:3], self.num_actions)
    )
    x = jnp.concatenate([latents, everywhere], -1)
    initializers = INITIALIZERS[self.initializer]
    for _ in range(2):
      x = nn.relu(
        Conv(
          latents.shape[-1],
          3,
          padding='SAME',
          inside_loop=self.inside_loop,
          kernel_init=initializers.kernel,
          bias_init=initializers.bias(9 * x.shape[-1]),
        )(x)
      )
    return x


class LatentNetworks(NamedTuple):
  """The networks that predict the latents of a value network.

  The encoder and, unless it is a separate layer, the projector are parts of the
  value network, and share its parameters.

  Attributes:
    network: the value network.
    encoder: its torso, whose latents keep their spatial axes.
    transition: latents, actions -> latents.
    projector: latents [B, F] -> [B, D]; None if it is part of the head.
    predictor: [B, D] -> [B, D].
  """

  network: QNetwork
  encoder: nn.Module
  transition: TransitionModel
  projector: nn.Module | None
  predictor: nn.Module

  def init(
    self, key: chex.PRNGKey, network_params: Params, obs: chex.Array
  ) -> Params:
    """Draws the parameters besides those of the value network.

    Args:
      key: random key.
      network_params: parameters of the value network.
      obs: [B, ...]; only its shape matters.

    Returns:
      A dict of 'transition', 'predictor', and 'projector' if it is a separate
      layer.
    """
    keys = jax.random.split(key, 3)
    shared = self.shared(network_params)
    latents = jax.eval_shape(self.encode, shared, obs)
    latents = jnp.zeros(latents.shape, latents.dtype)
    actions = jnp.zeros(len(latents), jnp.int32)
    params = {
      'transition': self.transition.init(keys[0], latents, actions)['params']
    }
    if self.projector is not None:
      flat = latents.reshape(len(latents), -1)
      params['projector'] = self.projector.init(keys[1], flat)['params']
    z = jax.eval_shape(self.project, shared | params, latents)
    z = jnp.zeros(z.shape, z.dtype)
    return params | {'predictor': self.predictor.init(keys[2], z)['params']}

  def shared(self, network_params: Params) -> dict[str, Any]:
    """The value network's parameters that are shared.

    Returns:
      A dict of 'encoder', and 'projector' if it is part of the head.
    """
    params = network_params['params']
    if self.projector is not None:
      return {'encoder': params['torso']}
    return {
      'encoder': params['torso'],
      'projector': hidden_layers(params['head']),
    }

  def encode(self, params: Params, obs: chex.Array) -> chex.Array:
    """Latents [B, H, W, C] or [B, F] of observations [B, ...]."""
    return self._scaled(self.encoder.apply({'params': params['encoder']}, obs))

  def step(
    self, params: Params, latents: chex.Array, actions: chex.Array
  ) -> chex.Array:
    """The latents after these actions."""
    variables = {'params': params['transition']}
    return self._scaled(self.transition.apply(variables, latents, actions))

  def project(self, params: Params, latents: chex.Array) -> chex.Array:
    """Projections [B, D] of latents."""
    flat, layers = latents.reshape(len(latents), -1), params['projector']
    if self.projector is not None:
      return self.projector.apply({'params': layers}, flat)
    head = self.network.head
    dense = make_dense(head.hidden, head.initializer, head.noisy_std)
    streams: list[Any] = [
      dense.apply({'params': layers[name]}, flat) for name in sorted(layers)
    ]
    return jnp.concatenate(streams, -1)

  def predict(self, params: Params, z: chex.Array) -> chex.Array:
    """Predicts the twin's projections [B, D] from the online network's."""
    return self.predictor.apply({'params': params['predictor']}, z)

  def _scaled(self, latents: chex.Array) -> chex.Array:
    return renormalized(latents) if self.network.renormalize else latents


class _Predictor(nn.Module):
  """A dense layer with as many outputs as inputs."""

  initializer: str

  @nn.compact
  def __call__(self, z: chex.Array) -> chex.Array:
    return Dense(z.shape[-1], self.initializer)(z)


def hidden_layers(head_params: Params) -> Params:
  """The hidden layers of a head, one for each stream, or none."""
  return {
    name: layer
    for name, layer in head_params.items()
    if name.startswith(('Dense_', 'NoisyDense_'))
  }


def latent_networks(
  network: QNetwork,
  *,
  transition: str = 'conv',
  projections: int | None = None,
  inside_loop: bool = False,
) -> LatentNetworks:
  """Builds the networks that predict the latents of a value network.

  Args:
    network: a value network whose torso has layers.
    transition: a key of `TRANSITIONS`.
    projections: D of a projector that is a separate dense layer; None to use
      the head's hidden layers.
    inside_loop: whether gradient steps are compiled into a loop; it affects
      only the speed of convolutions on the CPU.

  Raises:
    ValueError: the transition's name is unknown, the torso has no layers, or
      there is nothing to project with.
  """
  check_name('transition', transition, TRANSITIONS)
  torso = getattr(network, 'torso', None)
  if torso is None or not getattr(torso, 'sizes', True):
    raise ValueError('a network with an empty torso has no encoder')
  if projections is None and not network.head.hidden:
    raise FieldError(
      'projections',
      None,
      'must be a number if the head has no hidden layer to project with',
    )
  if hasattr(torso, 'flat'):
    torso = torso.clone(flat=False)
  return LatentNetworks(
    network,
    torso,
    TransitionModel(
      network.head.num_actions, transition, torso.initializer, inside_loop
    ),
    None if projections is None else Dense(projections, torso.initializer),
    _Predictor(torso.initializer),
  )
