"""The options of the targets' form, the same for all launchers."""

from collections.abc import Collection, Mapping
import dataclasses
from typing import Any

from flax import linen as nn

from experiments.config import learning
from experiments.config.declaring import (
  Further,
  UsageError,
  When,
  choice,
  group,
  options_for,
  parameter,
  taken_by,
  value_of,
)
from siamrl.agents import registry
from siamrl.losses import td
from siamrl.parameters import check
from siamrl.types import Agent


def form_of(config: Any) -> str | None:
  """The name of the form; None for an agent with targets of its own."""
  return config.target_form or registry.AGENTS[config.agent].form


def read_by_form(name: str) -> When:
  """The condition that the form of targets reads a parameter."""
  return taken_by('target_form', td.TARGETS, name, chosen=form_of)


def _parameter(name: str) -> Any:
  """The option of a parameter that some forms read."""
  return parameter(td.TARGET_PARAMETERS[name], read_by_form(name))


def read_by_agent(name: str) -> When:
  """The condition that the agent reads a parameter."""
  return taken_by('agent', registry.AGENTS, name)


def _parameter_of_agent(name: str) -> Any:
  """The option of a parameter that some agents read."""
  return parameter(registry.PARAMETERS[name], read_by_agent(name))


def _parameters() -> Further:
  """The options of all parameters of forms and of agents."""
  return {
    **options_for(td.TARGET_PARAMETERS, read_by_form),
    **options_for(registry.PARAMETERS, read_by_agent),
  }


@dataclasses.dataclass(frozen=True)
class TargetOptions:
  """The options of the targets, which launchers inherit."""

  _targets: Any = group('The targets', _parameters)
  agent: str = choice(
    'dqn',
    'Agent that learns.',
    lambda: {name: kind.summary for name, kind in registry.AGENTS.items()},
    common=True,
  )
  target_form: str | None = choice(
    None,
    'Value that targets bootstrap from.',
    lambda: {name: form.summary for name, form in td.TARGETS.items()},
    when=learning.read_by_agent('target_form'),
    refused=True,
  )
  mellowmax_omega: float | None = _parameter('mellowmax_omega')
  expected_epsilon: float | None = _parameter('expected_epsilon')
  soft_temperature: float | None = _parameter('soft_temperature')
  munchausen_alpha: float | None = _parameter('munchausen_alpha')
  munchausen_clip: float | None = _parameter('munchausen_clip')
  num_atoms: int | None = _parameter_of_agent('num_atoms')
  v_min: float | None = _parameter_of_agent('v_min')
  v_max: float | None = _parameter_of_agent('v_max')
  quantiles: int | None = _parameter_of_agent('quantiles')
  fractions: int | None = _parameter_of_agent('fractions')
  target_fractions: int | None = _parameter_of_agent('target_fractions')
  acting_fractions: int | None = _parameter_of_agent('acting_fractions')
  cosines: int | None = _parameter_of_agent('cosines')
  fractions_per: str | None = _parameter_of_agent('fractions_per')
  trace_lambda: float | None = _parameter_of_agent('trace_lambda')
  reward_scaling: str | None = _parameter_of_agent('reward_scaling')
  correction_rate: float | None = _parameter_of_agent('correction_rate')
  correction_decay: float | None = _parameter_of_agent('correction_decay')

  def notes(self) -> list[str]:
    """Doubts about the options: a range of returns that is far too narrow.

    C51's range of 10 at rewards of 1 and a discount of 0.99, a tenth of the
    largest return, is not narrow.
    """
    config: Any = self  # launchers bring the options of rewards
    takes = registry.AGENTS[self.agent].takes
    if 'v_max' not in takes or config.discount == 1 or not config.reward_clip:
      return []
    v_max = value_of(config, 'v_max')
    largest = config.reward_clip / (1 - config.discount)
    if v_max > 0.099 * largest:
      return []
    return [
      f'--v_max={v_max:g} is far below the largest return, {largest:g}, of '
      f'--reward_clip={config.reward_clip:g} and --discount={config.discount:g}'
      '; larger returns are learned as --v_max'
    ]


def parameters(config: Any) -> dict[str, Any]:
  """The parameters of the form, and of the agent.

  Args:
    config: the options, those of the twin among them.

  Raises:
    FieldError: the form or the agent cannot be made of what is given.
    UsageError: the form has no gradient, which the rule needs.
  """
  if (config.target_update, form_of(config)) == ('residual', 'inverse_double'):
    # Values come from behind a stop-gradient, choices have no gradient.
    raise UsageError(
      '--target_form=inverse_double must not be given with '
      '--target_update=residual: no gradient flows through its targets'
    )
  own = registry.AGENTS[config.agent].takes
  found = _given(config, own, registry.PARAMETERS)
  check('agent', config.agent, own, found, registry.PARAMETERS)
  form = form_of(config)
  takes = td.TARGETS[form].takes if form else ()
  given = _given(config, takes, td.TARGET_PARAMETERS)
  if form:
    td.make_target(form, **given)
  return {name: given[name] for name in takes} | {
    name: found[name] for name in own
  }


def _given(
  config: Any, takes: Collection[str], known: Collection[str]
) -> dict[str, Any]:
  """The parameters as options give them, including those not taken."""
  given = {name: getattr(config, name, None) for name in known}
  return given | {name: value_of(config, name) for name in takes}


def traced_parameters() -> list[str]:
  """The parameters that may differ between runs of one compiled program."""
  known = td.TARGET_PARAMETERS | registry.PARAMETERS
  return [name for name, about in known.items() if about.traced]


def make_agent(
  config: Any, network: nn.Module, example_obs: Any, numbers: Mapping[str, Any]
) -> Agent:
  """The agent that a launcher's options describe, not lifted by any twin.

  Args:
    config: the options, those of the loss among them.
    network: observations -> values.
    example_obs: [B, ...]; only its shape and type matter.
    numbers: in place of the parameters that may be traced, by name.

  Raises:
    ValueError: the form does not go with the agent.
  """
  values = {
    name: numbers[name] if name in traced_parameters() else value
    for name, value in parameters(config).items()
  }
  own = {name: values.pop(name) for name in registry.AGENTS[config.agent].takes}
  shared = {
    name: values if name == 'target_parameters' else getattr(config, name)
    for name in registry.SHARED
  }
  return registry.make_agent(
    config.agent, network, example_obs, shared=shared, given=own
  )
