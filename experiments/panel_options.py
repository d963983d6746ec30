"""The options of the twin's panel, the same for all launchers."""

import dataclasses
import re
from typing import Any

import chex
from flax import linen as nn
import jax.numpy as jnp

from experiments.flags import (
  NOT_NEGATIVE,
  POSITIVE,
  Bound,
  group,
  option,
  refuse,
)
from siamrl import diagnostics, twins
from siamrl.diagnostics import Clocked, Panel
from siamrl.learner import Regress
from siamrl.networks.activations import activations
from siamrl.types import Agent

# The rules that a run can be compared with, and the strides of the soft one:
# moving it at every gradient step would cost a pass over all parameters.
SHADOWS = ('hard', 'soft', 'self', 'residual', 'frozen')
STRIDE = 16

_SHADOWS = Bound(
  lambda text: (
    re.fullmatch(r'\w+(\+\w+)*', text) is not None
    and set(text.split('+')) <= set(SHADOWS)
    and len(set(text.split('+'))) == len(text.split('+'))
  ),
  f'one or several of {", ".join(SHADOWS)}, joined by +',
)


@dataclasses.dataclass(frozen=True)
class PanelOptions:
  """What a launcher's options of the panel are; it inherits them."""

  _panel: Any = group("The twin's panel")
  panel_period: int = option(
    0,
    'Iterations from one measurement of what the twin does to the next; 0 for '
    'none. Columns of metrics.csv that begin with panel/.',
    NOT_NEGATIVE,
    single=True,
  )
  probe_size: int = option(
    256,
    'Transitions that it looks at, drawn in the first iteration and kept; no '
    'rank is larger.',
    POSITIVE,
    single=True,
  )
  shadows: str | None = option(
    None,
    'Rules whose targets and gradients are computed beside those in use, such '
    'as self+soft; about as old on average, but soft moves every '
    f'{STRIDE} gradient steps, so that it is {(STRIDE - 1) / 2:g} old at '
    'least. They are born equal and move after gradient steps',
    _SHADOWS,
    single=True,
  )
  reward_bound: float = option(
    1.0,
    'Largest reward learnt from, after scale and clip: values above it / '
    '(1 - discount) have diverged softly.',
    POSITIVE,
    single=True,
  )


def meaningless(config: PanelOptions) -> list[str]:
  """The options that mean nothing where nothing is measured."""
  return [] if config.panel_period else ['probe_size', 'reward_bound']


def check(
  config: PanelOptions,
  *,
  iteration_env_steps: int,
  capacity: int,
  unready: int,
) -> None:
  """Raises UsageError for a panel that cannot be.

  Args:
    config: the options.
    iteration_env_steps: of the first iteration, 0.6 of which have been taken
      when the panel is looked at first.
    capacity: transitions that the replay can hold.
    unready: transitions whose rewards are not all there yet.
  """
  if not config.panel_period:
    if config.shadows:
      refuse(config, 'shadows', 'go with --panel_period=1 or more')
    return
  most = min(int(0.6 * iteration_env_steps), capacity) - unready
  if config.probe_size > most:
    refuse(
      config,
      'probe_size',
      f'be at most {most}, the transitions that there are when it is drawn, in '
      'the first iteration',
    )


def make_shadows(config: PanelOptions, age: chex.Numeric) -> dict[str, Clocked]:
  """The rules to compare with, as old on average as the one in use.

  A hard twin of period 2 age + 1 and a soft one of rate 1 / (age + 1) are; but
  a soft one that moves in strides is no younger than half of one.

  Args:
    config: the options; --shadows must be given.
    age: gradient steps, of the rule in use; may be traced.
  """
  assert config.shadows is not None
  # A period that no run reaches is as good as any beyond it, and an int32.
  period = jnp.clip(jnp.round(2 * age + 1), 1, 2**30).astype(jnp.int32)
  tau = 1 / (age + 1)
  rules = {
    'hard': Clocked(twins.hard(), period),
    'soft': diagnostics.strided_soft(tau, STRIDE),
    'self': Clocked(twins.self_copy()),
    'residual': Clocked(twins.residual()),
    'frozen': Clocked(twins.frozen(), twins.NEVER),
  }
  return {name: rules[name] for name in config.shadows.split('+')}


def make_panel(
  config: PanelOptions,
  base_agent: Agent,
  network: nn.Module,
  rule: Clocked,
  regress: Regress,
  *,
  target_order: str,
  discount: chex.Numeric,
  shadows: dict[str, Clocked],
) -> Panel:
  """The panel that the options describe.

  Args:
    config: the options.
    base_agent: not lifted by the rule in use.
    network: of the base agent.
    rule: the one in use.
    regress: the run's gradient step.
    target_order: the run's.
    discount: per env step, of values that are bound by `reward_bound`.
    shadows: of `make_shadows`.

  Raises:
    UsageError: the rule in use cannot be compared with others.
  """
  if shadows and rule.twin.shift is not None:
    refuse(
      config,
      'shadows',
      'not be given with a rule that has several networks',
    )

  def look(params, obs):
    # Of two critics, the one that acts.
    return activations(network, params.get('critic_0', params), obs)

  return diagnostics.make_panel(
    base_agent,
    rule,
    regress,
    look=look,
    target_order=target_order,
    reward_bound=config.reward_bound,
    discount=discount,
    shadows=shadows,
  )
