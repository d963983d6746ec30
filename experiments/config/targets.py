"""The options of the targets' form, the same for all launchers."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import linen as nn

from experiments.config.declaring import (
  Further,
  UsageError,
  When,
  choice,
  either,
  group,
  one_of,
  option,
  parameter,
  value_of,
)
from siamrl.agents import q
from siamrl.losses import td
from siamrl.types import Agent


def read_by_form(name: str) -> When:
  """The form of targets reads a parameter."""

  def text() -> str:
    readers = [
      form for form, about in td.TARGETS.items() if name in about.takes
    ]
    return f'with --target_form={either(readers)}'

  return When(
    lambda config: name in td.TARGETS[form_of(config)].takes,
    text,
    'target_form',
  )


def _parameter(name: str) -> Any:
  """The option of a parameter that some forms read."""
  return parameter(td.TARGET_PARAMETERS[name], read_by_form(name))


def _parameters() -> Further:
  """The options of all parameters of forms."""
  return {
    name: (about.kind, _parameter(name))
    for name, about in td.TARGET_PARAMETERS.items()
  }


@dataclasses.dataclass(frozen=True)
class TargetOptions:
  """What a launcher's options of the targets are; it inherits them."""

  _targets: Any = group('The targets', _parameters)
  agent: str = option(
    'dqn',
    'dqn takes any --target_form and has max if none is given; double_dqn is '
    'dqn with the form double',
    one_of(q.AGENTS),
    common=True,
  )
  target_form: str | None = choice(
    None,
    'What targets bootstrap from:',
    lambda: {name: form.summary for name, form in td.TARGETS.items()},
  )
  mellowmax_omega: float | None = _parameter('mellowmax_omega')
  expected_epsilon: float | None = _parameter('expected_epsilon')
  soft_temperature: float | None = _parameter('soft_temperature')
  munchausen_alpha: float | None = _parameter('munchausen_alpha')
  munchausen_clip: float | None = _parameter('munchausen_clip')


def form_of(config: TargetOptions) -> str:
  """The name of the form."""
  return config.target_form or q.AGENTS[config.agent]


def parameters(config: Any) -> dict[str, Any]:
  """The form's parameters.

  Args:
    config: the options, those of the twin among them.

  Raises:
    FieldError: the form cannot be made of what is given.
    UsageError: the form hides from a rule what that is about.
  """
  if (config.target_update, form_of(config)) == ('residual', 'inverse_double'):
    # Values come from behind a stop-gradient, choices have no gradient.
    raise UsageError(
      '--target_form=inverse_double must not be given with '
      '--target_update=residual: no gradient flows through its targets'
    )
  takes = td.TARGETS[form_of(config)].takes
  # Also those that the form does not take, for it to refuse them.
  given = {name: getattr(config, name, None) for name in td.TARGET_PARAMETERS}
  given |= {name: value_of(config, name) for name in takes}
  td.make_target(form_of(config), **given)
  return {name: given[name] for name in takes}


def make_agent(
  config: Any, network: nn.Module, example_obs: Any, values: Mapping[str, Any]
) -> Agent:
  """The agent that a launcher's options describe, not lifted by any twin.

  Args:
    config: the options, those of the loss among them.
    network: observations -> values.
    example_obs: [B, ...], of any content.
    values: the form's parameters, as `parameters` has them; may be traced.

  Raises:
    ValueError: the form does not go with the agent.
  """
  return q.make_q_agent(
    network,
    example_obs,
    name=config.agent,
    target_form=config.target_form,
    target_parameters=values,
    td_loss=config.td_loss,
    error_bound=config.error_bound,
    batch_reduction=config.batch_reduction,
    param_dtype=config.param_dtype,
  )
