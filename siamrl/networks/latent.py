"""Networks that predict latents of what follows: SPR's (Schwarzer et al. 2021).

arXiv:2007.05929; the authors' code is mila-iqia/spr, and a second one, in JAX,
google/dopamine, labs/atari_100k. A latent is what the torso of a value network
makes of an observation, places and all. From it

* a transition model makes the latent of the next observation, given the action;
* a projector makes the vector that is compared. As in both codes that is the
  hidden layer of the value network's head before its ReLU (of a dueling head,
  both streams' side by side), so that what is predicted is what values are made
  of; a head without one needs a layer beside it;
* a predictor, a dense layer, maps projections to the twin's.

The transition model is the one of both codes but for the batch normalization in
the authors': two 3 x 3 convolutions with as many channels as the latent. As in
Dopamine's there is none, and so no row of a batch sees another. Two dense
layers can take their place, and do where latents are vectors; on a CPU they are
a few times faster.
"""

from typing import Any, NamedTuple

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from siamrl.networks.conv import Conv
from siamrl.networks.initializers import INITIALIZERS
from siamrl.networks.q_network import QNetwork, renormalized
from siamrl.networks.torsos import Dense
from siamrl.parameters import FieldError, check_name
from siamrl.types import Params


TRANSITIONS = {
  'conv': 'two convolutions over the places of the features, if they have '
  'places (SPR)',
  'dense': 'two dense layers, the first of 128 units',
}
_HIDDEN = 128


class TransitionModel(nn.Module):
  """From latents and actions to the next latents.

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
    """Maps [B, H, W, C] or [B, F], and int [B], to what has the first's shape.

    Like the torso's answer, what it makes is 0 or more.
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
  """What is put around a value network to predict its latents.

  The encoder and, without a layer of its own, the projector are parts of that
  network, and share its parameters.

  Attributes:
    network: of the values.
    encoder: its torso; latents have their places.
    transition: latents, actions -> latents.
    projector: latents [B, F] -> [B, D], if it is a layer of its own.
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
    """The parameters besides those of the value network.

    Args:
      key: of chance.
      network_params: of the value network.
      obs: [B, ...], of any content.

    Returns:
      A dict of 'transition', 'predictor', and 'projector' if it is a layer of
      its own.
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
    """What answers observations of a value network's parameters.

    Returns:
      A dict of 'encoder', and 'projector' if it has no layer of its own.
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
    dense = Dense(self.network.head.hidden)
    streams: list[Any] = [
      dense.apply({'params': layers[name]}, flat) for name in sorted(layers)
    ]
    return jnp.concatenate(streams, -1)

  def predict(self, params: Params, z: chex.Array) -> chex.Array:
    """What the twin's projections should be, [B, D], of one's own."""
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
  """The hidden layers of a head, one for each of its streams; or none."""
  return {
    name: layer
    for name, layer in head_params.items()
    if name.startswith('Dense_')
  }


def latent_networks(
  network: QNetwork,
  *,
  transition: str = 'conv',
  projections: int | None = None,
  inside_loop: bool = False,
) -> LatentNetworks:
  """Builds what predicts the latents of a value network.

  Args:
    network: with a torso that has layers.
    transition: a key of `TRANSITIONS`.
    projections: D of a projector of its own, a dense layer; None for the head's
      hidden layers.
    inside_loop: whether gradient steps are compiled into a loop; it changes the
      speed of convolutions on the CPU only.

  Raises:
    ValueError: the transition's name is unknown, or the network has no such
      torso, or nothing to project with.
  """
  check_name('transition', transition, TRANSITIONS)
  torso = getattr(network, 'torso', None)
  if torso is None or not getattr(torso, 'sizes', True):
    raise ValueError('there is no encoder in a network whose torso is empty')
  if projections is None and not network.head.hidden:
    raise FieldError(
      'projections',
      None,
      'must be a number where the head has no hidden layer to project with',
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
