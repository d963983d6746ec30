"""The options of the twin, the same for all launchers, and what they make."""

from collections.abc import Mapping
import dataclasses
from typing import Any, Protocol

import numpy as np

from experiments.config import learning as options, users
from experiments.config.declaring import (
  FRACTION,
  INT64,
  NOT_NEGATIVE,
  POSITIVE,
  RATE,
  choice,
  group,
  one_of,
  option,
  refuse,
)
from siamrl import learner, schedule, twins
from siamrl.learner import TwinSpec
from siamrl.parameters import FieldError

# Rules whose twin is the online network, or a part of it.
_WITHOUT_TWIN = ('self', 'residual', 'iterated_heads')

# Rules that are applied at every gradient step, and keep clocks of their own.
_OWN_CLOCKS = ('hard_scheduled', 'chain', 'by_path')

_MOST = 2**31  # what int32 counts

_PERIODS = ('target_period', 'target_period_end', 'target_sync_period')

# Parameters of rules that may differ between runs of one compiled program.
TRACED = tuple(
  name
  for name in twins.PARAMETERS
  if name not in ('target_count', 'target_paths')
)

# Parameters that are for some rules only, and None where they are not given.
OF_RULES = tuple(name for name in twins.PARAMETERS if name != 'target_period')


def _readers(name: str) -> str:
  """The rules that read a parameter, for a help text."""
  return ', '.join(rule for rule in twins.RULES if name in twins.takes(rule))


@dataclasses.dataclass(frozen=True)
class TwinOptions(users.UserOptions):
  """What a launcher's options of the twin are; it inherits them."""

  _twin: Any = group('The twin')
  target_update: str = choice(
    'hard',
    'What the twin becomes, and what it is used for:',
    {name: rule.summary for name, rule in twins.RULES.items()},
  )
  target_period: int = option(
    10_000,
    'From one target update to the next. Rules that move at every gradient '
    'step or never ignore it.',
    POSITIVE,
    most=INT64,  # checked in gradient steps
  )
  target_period_unit: str = option(
    'env_steps',
    'Unit of the three periods here',
    one_of(schedule.UNITS),
    single=True,
  )
  tau: float | None = option(
    None,
    f'Weight on the online parameters, for {_readers("tau")}',
    RATE,
  )
  tau_end: float | None = option(
    None, f'The same in the end, for {_readers("tau_end")}', FRACTION
  )
  target_period_end: int | None = option(
    None,
    f'The period in the end, for {_readers("target_period_end")}',
    POSITIVE,
    most=INT64,
  )
  target_schedule_steps: int | None = option(
    None,
    'Gradient steps that the change lasts, for '
    f'{_readers("target_schedule_steps")}; all of the run if not given',
    POSITIVE,
  )
  target_count: int | None = option(
    None,
    f'Copies, networks or heads, for {_readers("target_count")}',
    POSITIVE,
  )
  target_sync_period: int | None = option(
    None,
    'From one copy of the inner twins to the next, for '
    f'{_readers("target_sync_period")}',
    POSITIVE,
    most=INT64,
  )
  target_paths: str | None = option(
    None,
    'For by_path: a rule for each part of the network, by a pattern that is '
    'found in the paths of its parameters: torso:soft+head:hard. Rules: '
    + ', '.join(twins.PARTS),
  )
  twin_weight: float | None = option(
    None,
    'How strongly values (functional) or parameters (proximal) are tied to '
    'the twin',
    NOT_NEGATIVE,
  )
  projection_radius: float | None = option(
    None, "Of the twin's ball, for projected_soft", POSITIVE
  )
  ridge: float | None = option(
    None, 'Weight of the ridge penalty, for projected_soft', NOT_NEGATIVE
  )
  target_init: str = option(
    'equal',
    'What the twin is born as. equal: the online network; fresh: drawn anew',
    one_of(learner.TARGET_INITS),
  )
  target_order: str = option(
    'after',
    'Whether it moves after or before the gradient step',
    one_of(learner.TARGET_ORDERS),
  )
  count_warmup: bool = option(
    False,
    "Count the warm-up in the twin's clock, as Dopamine and CleanRL do: its "
    'phase is then that of the env steps from the start.',
  )
  reset_optimizer: bool = option(
    False, 'Start the optimiser anew at every target update.'
  )


def default(name: str, value: Any) -> Any:
  """The field of a subclass whose option has another default."""
  inherited = TwinOptions.__dataclass_fields__[name]
  return dataclasses.field(default=value, metadata=inherited.metadata)


def default_where_taken(name: str, value: Any) -> Any:
  """The same of a parameter that some rules do not take: of those that do."""
  field = TwinOptions.__dataclass_fields__[name]
  text = f'{field.metadata["help"]}; {value} if not given'
  return dataclasses.field(
    default=None, metadata={**field.metadata, 'help': text, 'taken': value}
  )


def meaningless(config: TwinOptions) -> list[str]:
  """The parameters that mean nothing to the chosen rule."""
  rule, period = config.target_update, twins.RULES[config.target_update].period
  takes = twins.takes(rule, config.target_paths)
  dropped = [name for name in twins.PARAMETERS if name not in takes]
  # Shadows are as old as it says where the rule in use has no age.
  if period is None or getattr(config, 'shadows', None):
    dropped = [name for name in dropped if name != 'target_period']
  if period is not None:
    dropped += ['reset_optimizer', 'count_warmup']
  if rule in _WITHOUT_TWIN:
    dropped.append('target_init')
  if rule in ('self', 'residual', 'frozen'):
    dropped.append('target_order')
  return dropped


def parameters(
  config: TwinOptions, speeds: 'Units', gradient_steps: int
) -> dict[str, Any]:
  """The rule's parameters, periods in gradient steps.

  Args:
    config: the options.
    speeds: how to convert periods.
    gradient_steps: of the whole run, over which schedules last by default.

  Raises:
    FieldError: the rule cannot be built of what is given.
  """
  _check_meant(config)
  given = {name: getattr(config, name) for name in twins.PARAMETERS}
  takes = twins.takes(config.target_update, config.target_paths)
  for name in takes:
    if given[name] is None:
      metadata = type(config).__dataclass_fields__[name].metadata
      given[name] = metadata.get('taken')
  for name in _PERIODS:
    if given[name] is not None and name in takes:
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


def _check_meant(config: TwinOptions) -> None:
  """Raises FieldError for an option that would change nothing."""
  rule = config.target_update
  for name, unset in (
    ('reset_optimizer', False),
    ('count_warmup', False),
    ('target_init', 'equal'),
    ('target_order', 'after'),
  ):
    value = getattr(config, name)
    if value != unset and name in meaningless(config):
      why = 'has no meaning for'
      if rule in _OWN_CLOCKS and name in ('reset_optimizer', 'count_warmup'):
        why = 'goes by one clock, and cannot be had with'
      raise FieldError(name, value, why, ('target_update', rule))


class Units(Protocol):
  """What converts periods to gradient steps."""

  def gradient_steps_of(self, env_steps: int) -> int:
    """Gradient steps that so many env steps call for."""

  def gradient_steps(self, period: int, name: str) -> int:
    """A period in gradient steps; raises FieldError unless it is whole."""


@dataclasses.dataclass(frozen=True)
class Speeds:
  """What converts the unit of the periods.

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
    """Gradient steps that so many env steps call for."""
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
    speeds: how to convert periods.
    gradient_steps: of the whole run, over which schedules last by default.
    warmup_env_steps: env steps before the first gradient step.

  Raises:
    ValueError: the rule cannot be built of what is given.
  """
  sync, offset = sync_of(config, speeds), 0
  if config.count_warmup:
    # Whole periods of the lead are left out.
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


def settings_of(spec: TwinSpec) -> dict[str, Any]:
  """The numbers of a twin that may be traced, as arrays."""
  return {
    'sync': np.int32(spec.sync),
    'sync_offset': np.int32(spec.offset),
  } | options.as_arrays(spec.parameters, TRACED)


def traced(spec: TwinSpec, settings: Mapping[str, Any]) -> TwinSpec:
  """The same twin with the numbers of `settings_of` in place of its own."""
  return spec._replace(
    parameters={
      name: settings[name] if name in TRACED else value
      for name, value in spec.parameters.items()
    },
    sync=settings['sync'],
    offset=settings['sync_offset'],
  )


def mean_age(config: TwinOptions, speeds: Units, spec: TwinSpec) -> Any:
  """`TwinSpec.mean_age`; a rule without an age counts as `hard`.

  Args:
    config: the options.
    speeds: how to convert periods.
    spec: of the twin; its numbers may be traced.
  """
  age = spec.mean_age()
  if age is None:
    # The period is not heeded: it is the same for all runs of a program.
    period = speeds.gradient_steps(config.target_period, 'target_period')
    age = (period - 1) / 2
  return age
