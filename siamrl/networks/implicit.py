"""Implicit quantile networks, which answer at the fractions they are asked."""

from typing import Any

import chex
from flax import linen as nn
import jax.numpy as jnp

from siamrl.networks.activations import rectified
from siamrl.networks.q_network import renormalized
from siamrl.networks.dense import Dense, has_noise
from siamrl.parameters import FieldError


class ImplicitQuantileNetwork(nn.Module):
  """Maps observations and fractions to returns float32 [B, A, N].

  The features of an observation are multiplied by an embedding of the fraction,
  a dense layer with a ReLU over cosines of it (Dabney et al. 2018b, eq. 4). The
  frequencies are 1 to `cosines`, as in DQN Zoo and Dopamine; the paper's begin
  with 0, whose cosine is a second bias.

  The embedding is named `head_embedding`, so that it counts as part of the head
  where parts are named, as in `torso:soft+head:hard`.

  Attributes:
    torso: observations -> features [B, F].
    head: features -> values [B, A].
    renormalize: whether features are `renormalized` before the product.
    cosines: number of cosines of a fraction.
  """

  torso: nn.Module
  head: nn.Module
  renormalize: bool = False
  cosines: int = 64

  @property
  def noisy(self) -> bool:
    """Whether the torso or the head has noise, see `NoisyDense`."""
    return any(has_noise(part) for part in (self.torso, self.head))

  @nn.compact
  def __call__(
    self, obs: chex.Array, fractions: chex.Array | tuple[float, ...] = (0.5,)
  ) -> chex.Array:
    """Answers with the return at each fraction.

    Args:
      obs: [B, ...].
      fractions: [N] for all observations, or [B, N]; by default the median.
    """
    features = self.torso(obs)
    if self.renormalize:
      features = renormalized(features)
    frequencies = jnp.pi * jnp.arange(1, self.cosines + 1)
    cosines = jnp.cos(jnp.asarray(fractions)[..., None] * frequencies)
    embedded = rectified(
      Dense(features.shape[-1], self.head.initializer, name='head_embedding'),
      cosines,
    )
    x = features[:, None] * embedded  # [B, N, F]
    returns = self.head(x.reshape(-1, x.shape[-1]))
    return jnp.swapaxes(returns.reshape(*x.shape[:2], -1), 1, 2)


def implicit_network(
  network: nn.Module, cosines: int = 64
) -> ImplicitQuantileNetwork:
  """Builds the implicit quantile network of a network of values.

  Args:
    network: a `QNetwork`, or another with its fields.
    cosines: number of cosines of a fraction.

  Raises:
    ValueError: the network has no torso and head to put the fractions between,
      or gives several numbers for each action.
  """
  torso: Any = getattr(network, 'torso', None)
  head: Any = getattr(network, 'head', None)
  if torso is None or not hasattr(head, 'initializer'):
    raise ValueError(
      f'{type(network).__name__} must have a torso and a head, as QNetwork '
      'has, for the fractions of an implicit quantile network between them'
    )
  outputs = getattr(head, 'outputs', 1)
  if outputs != 1:
    raise FieldError('outputs', outputs, 'must be 1 for implicit quantiles')
  return ImplicitQuantileNetwork(
    torso=torso,
    head=head,
    renormalize=getattr(network, 'renormalize', False),
    cosines=cosines,
  )
