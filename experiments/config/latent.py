"""The options of latent self-prediction, the same for all launchers."""

import dataclasses
from typing import Any

import chex
from flax import linen as nn

from experiments.config import targets as target_options
from experiments.config.declaring import (
  NOT_NEGATIVE,
  POSITIVE,
  choice,
  group,
  is_set,
  option,
  refuse,
)
from siamrl.agents import latent
from siamrl.losses import td
from siamrl.networks.latent import TRANSITIONS, latent_networks
from siamrl.networks.q_network import QNetwork
from siamrl.types import Agent, Params

_PREDICTS: dict[str, Any] = dict(
  when=is_set('spr_steps', '1 or more'), refused=True
)


@dataclasses.dataclass(frozen=True)
class LatentOptions:
  """The options of latent self-prediction, which launchers inherit."""

  _latent: Any = group('Latent self-prediction (SPR)')
  spr_steps: int = option(
    0,
    'Env steps ahead for which the network predicts features of '
    'observations; 0 for none. In --target_paths the twin of features is '
    'called latent, and that of values q: q:hard+latent:soft.',
    NOT_NEGATIVE,
    most=100,  # the program has a copy of the transition for each
  )
  spr_weight: float = option(
    5.0,
    'Weight of the prediction loss, the mean squared distance of unit vectors.',
    NOT_NEGATIVE,
    traced=True,
    **_PREDICTS,
  )
  spr_target: str = choice(
    'twin', 'Features that are predicted.', latent.TARGETS, **_PREDICTS
  )
  spr_transition: str = choice(
    'conv', 'Model that predicts the next features.', TRANSITIONS, **_PREDICTS
  )
  spr_projections: int | None = option(
    None,
    'Units of the layer in which predictions are compared; if not given, it '
    "is the hidden layer of the network's head",
    POSITIVE,
    **_PREDICTS,
  )
  renormalize: bool = option(
    False,
    'Rescale the features of each observation to [0, 1] before the head, '
    'also without --spr_steps.',
    alias=('renormalise',),
  )


def check(config: Any) -> None:
  """Raises UsageError for options that do not go together."""
  if config.spr_steps and config.target_update == 'projected_soft':
    refuse(
      config,
      'spr_steps',
      'be 0 for --target_update=projected_soft: the torso, which has two '
      'twins, would count twice in its norm',
    )
  form = target_options.form_of(config)
  if config.spr_steps and form and td.TARGETS[form].networks > 1:
    refuse(
      config,
      'spr_steps',
      f'be 0 for --target_form={form}, which has several networks',
    )


def make_agent(
  config: Any,
  network: QNetwork,
  base: Agent,
  example_obs: Any,
  weight: chex.Numeric,
  *,
  inside_loop: bool,
) -> Agent:
  """An agent of values with latent self-prediction, if it is asked for.

  Args:
    config: the options, those of the agent among them.
    network: the network of the base agent.
    base: not lifted by any twin.
    example_obs: [B, ...]; only its shape and type matter.
    weight: --spr_weight; may be traced.
    inside_loop: whether gradient steps are compiled into a loop.

  Raises:
    UsageError: there is nothing to project with.
  """
  if not config.spr_steps:
    return base
  if config.spr_projections is None and not network.head.hidden:
    refuse(
      config,
      'spr_steps',
      'go with --spr_projections here: the head has no hidden layer',
    )
  networks = latent_networks(
    network,
    transition=config.spr_transition,
    projections=config.spr_projections,
    inside_loop=inside_loop,
  )
  return latent.with_latent_prediction(
    base,
    networks,
    example_obs,
    steps=config.spr_steps,
    weight=weight,
    target=config.spr_target,
    batch_reduction=config.batch_reduction,
  )


class _Within(nn.Module):
  """A network whose parameters are the entry `q` of a larger tree."""

  network: nn.Module

  def apply(self, variables: Params, *args: Any, **keywords: Any) -> Any:
    return self.network.apply(variables['q'], *args, **keywords)


def looked_at(config: LatentOptions, network: nn.Module) -> nn.Module:
  """The network in a form that takes the agent's parameters."""
  return _Within(network) if config.spr_steps else network
