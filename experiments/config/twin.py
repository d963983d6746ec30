"""The options of the twin, the same for all launchers, and what they make."""

from collections.abc import Mapping
import dataclasses
from typing import Any, Protocol

import numpy as np

from experiments.config import users
from experiments.config.declaring import (
  Further,
  When,
  choice,
  either,
  group,
  not_given,
  one_of,
  option,
  options_for,
  parameter,
  refuse,
  value_of,
)
from experiments.config.learning import as_arrays
from siamrl import learner, schedule, twins
from siamrl.learner import TwinSpec
from siamrl.parameters import FieldError

_MOST = 2**31  # what int32 counts


def read_by_rule(name: str) -> When:
  """The condition that the rule, or a part of it, reads a parameter."""

  def text() -> str:
    readers = [rule for rule in twins.RULES if name in twins.takes(rule)]
    return f'with --target_update={either(readers)}'

  return When(
    lambda config: (
      name in twins.takes(config.target_update, config.target_paths)
    ),
    text,
    'target_update',
  )


def _parameter(name: str, more: str = '', **changes: Any) -> Any:
  """The option of a parameter that some rules read; `more` ends its help."""
  about = twins.PARAMETERS[name]
  about = about._replace(help=about.help + more)
  return parameter(about, **{'when': read_by_rule(name)} | changes)


def _parameters() -> Further:
  """The options of all parameters of rules."""
  return options_for(twins.PARAMETERS, read_by_rule)


def _has_period(config: Any) -> bool:
  """Whether users choose the period at which the twin moves."""
  return twins.RULES[config.target_update].period is None


def _reads_period() -> str:
  """The flag of the rules that --target_period may mean something to."""
  takes = {'target_period', 'target_paths'}
  others = [n for n, rule in twins.RULES.items() if takes & {*rule.takes}]
  return f'--target_update={either([*twins.with_period(), *others])}'


# Does not hold for rules with clocks of their own.
HAS_PERIOD = When(
  _has_period,
  lambda: 'with --target_update=' + either(twins.with_period()),
  'target_update',
)


@dataclasses.dataclass(frozen=True)
class TwinOptions(users.UserOptions):
  """The options of the twin, which launchers inherit."""

  _twin: Any = group('The twin', _parameters)
  target_update: str = choice(
    'hard',
    'Rule by which the twin follows the online network, and its use.',
    lambda: {name: rule.summary for name, rule in twins.RULES.items()},
    common=True,
  )
  target_period: int = _parameter(
    'target_period',
    default=10_000,
    # If the rule in use has no age, shadows are as old as with this period.
    when=When(
      lambda config: (
        _has_period(config)
        or getattr(config, 'shadows', None)
        or read_by_rule('target_period').holds(config)
      ),
      lambda: f'with {_reads_period()}; other rules ignore it',
    ),
    refused=False,
    common=True,
  )
  target_period_unit: str = option(
    'env_steps',
    'Unit of --target_period, --target_period_end and --target_sync_period',
    one_of(schedule.UNITS),
    single=True,
  )
  tau: float | None = _parameter('tau', common=True)
  tau_end: float | None = _parameter('tau_end')
  target_period_end: int | None = _parameter('target_period_end')
  target_period_growth: float | None = _parameter('target_period_growth')
  degrees_of_freedom: float | None = _parameter('degrees_of_freedom')
  target_schedule_steps: int | None = _parameter(
    'target_schedule_steps', '; all of the run if not given'
  )
  target_count: int | None = _parameter('target_count')
  target_sync_period: int | None = _parameter('target_sync_period')
  target_paths: str | None = _parameter(
    'target_paths', f'. Rules: {", ".join(twins.PARTS)}'
  )
  twin_weight: float | None = _parameter('twin_weight')
  projection_radius: float | None = _parameter('projection_radius')
  ridge: float | None = _parameter('ridge')
  target_init: str = option(
    'equal',
    'Initial parameters of the twin. equal: those of the online network; '
    'fresh: drawn anew',
    one_of(learner.TARGET_INITS),
    when=not_given(
      'target_update', 'self', 'residual', 'gradient_chain', 'iterated_heads'
    ),
    refused=True,
  )
  target_order: str = option(
    'after',
    'Whether the twin moves after or before the gradient step',
    one_of(learner.TARGET_ORDERS),
    when=not_given('target_update', 'self', 'residual', 'frozen'),
    refused=True,
  )
  count_warmup: bool = option(
    False,
    "Count the warm-up in the twin's clock, as Dopamine and CleanRL do: "
    'target updates then come at multiples of the period from the first env '
    'step.',
    when=HAS_PERIOD,
    refused=True,
  )
  reset_optimizer: bool = option(
    False,
    'Start the optimizer anew at every target update.',
    when=HAS_PERIOD,
    refused=True,
  )


def parameters(
  config: TwinOptions, speeds: 'Units', gradient_steps: int
) -> dict[str, Any]:
  """The rule's parameters, periods in gradient steps.

  Args:
    config: the options.
    speeds: the converter of periods.
    gradient_steps: the length of the run, and of schedules by default.

  Raises:
    FieldError: the rule cannot be built of what is given.
  """
  takes = twins.takes(config.target_update, config.target_paths)
  # Includes parameters that the rule does not take, so that it refuses them.
  given: dict[str, Any] = {
    name: getattr(config, name, None) for name in twins.PARAMETERS
  }
  for name in takes:
    given[name] = value_of(config, name)
    if given[name] is not None and twins.PARAMETERS[name].period:
      given[name] = speeds.gradient_steps(given[name], name)
  if 'target_schedule_steps' in takes and not given['target_schedule_steps']:
    given['target_schedule_steps'] = gradient_steps
  twins.make_rule(config.target_update, **given)
  for name in takes:
    if isinstance(given[name], int) and given[name] >= _MOST:
      raise FieldError(
        name, given[name], f'must be below {_MOST} gradient steps'
      )
  return {name: given[name] for name in takes}


class Units(Protocol):
  """A converter of periods to gradient steps."""

  def gradient_steps_of(self, env_steps: int) -> int:
    """The number of gradient steps for a number of env steps."""

  def gradient_steps(self, period: int, name: str) -> int:
    """A period in gradient steps; raises FieldError unless it is whole."""


@dataclasses.dataclass(frozen=True)
class Speeds:
  """A converter of periods from their unit to gradient steps.

  Attributes:
    unit: a key of `schedule.UNITS`.
    train_period: env steps from one training to the next.
    frames_per_env_step: emulator frames per env step.
    train_steps: gradient steps of each training.
  """

  unit: str
  train_period: int
  frames_per_env_step: int
  train_steps: int = 1

  def gradient_steps_of(self, env_steps: int) -> int:
    """The number of gradient steps for a number of env steps."""
    return env_steps // self.train_period * self.train_steps

  def gradient_steps(self, period: int, name: str) -> int:
    """A period in gradient steps; raises FieldError unless it is whole."""
    try:
      return schedule.to_gradient_steps(
        period,
        self.unit,
        train_period=self.train_period,
        frames_per_env_step=self.frames_per_env_step,
        train_steps=self.train_steps,
        name=name,
      )
    except FieldError as error:
      raise FieldError(
        error.field,
        error.value,
        *error.rest,
        '; --target_period_unit=gradient_steps has it count them',
      ) from error


def sync_of(config: TwinOptions, speeds: Units) -> int:
  """Gradient steps per target update."""
  period = twins.RULES[config.target_update].period
  if period is not None:
    return period
  sync = speeds.gradient_steps(config.target_period, 'target_period')
  if sync >= _MOST:
    refuse(config, 'target_period', f'be below {_MOST} gradient steps')
  return sync


def make_spec(
  config: TwinOptions,
  speeds: Units,
  gradient_steps: int,
  warmup_env_steps: int = 0,
) -> TwinSpec:
  """The twin that the options describe, in gradient steps.

  Args:
    config: the options.
    speeds: the converter of periods.
    gradient_steps: the length of the run, and of schedules by default.
    warmup_env_steps: env steps before the first gradient step.

  Raises:
    ValueError: the rule cannot be built of what is given.
  """
  sync, offset = sync_of(config, speeds), 0
  if config.count_warmup:
    # Only the remainder of a period matters.
    offset = speeds.gradient_steps_of(warmup_env_steps) % sync
  return TwinSpec(
    config.target_update,
    parameters(config, speeds, gradient_steps),
    sync,
    offset,
    config.target_order,
    config.target_init,
    config.reset_optimizer,
  )


def _traced() -> list[str]:
  """The parameters that may differ between runs of one compiled program."""
  return [name for name, about in twins.PARAMETERS.items() if about.traced]


def settings_of(spec: TwinSpec) -> dict[str, Any]:
  """The numbers of a twin that may be traced, as arrays."""
  return {
    'sync': np.int32(spec.sync),
    'sync_offset': np.int32(spec.offset),
  } | as_arrays(spec.parameters, _traced())


def traced(spec: TwinSpec, settings: Mapping[str, Any]) -> TwinSpec:
  """The same twin with the numbers of `settings_of` in place of its own."""
  return spec._replace(
    parameters={
      name: settings[name] if name in _traced() else value
      for name, value in spec.parameters.items()
    },
    sync=settings['sync'],
    offset=settings['sync_offset'],
  )


def mean_age(config: TwinOptions, speeds: Units, spec: TwinSpec) -> Any:
  """`TwinSpec.mean_age`; a rule without an age counts as `hard`.

  Args:
    config: the options.
    speeds: the converter of periods.
    spec: the twin; its numbers may be traced.
  """
  age = spec.mean_age()
  if age is None:
    # The rule ignores the period, which is the same for all runs of a program.
    period = speeds.gradient_steps(config.target_period, 'target_period')
    age = (period - 1) / 2
  return age
