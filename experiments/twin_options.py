"""The options of the twin, the same for all launchers, and what they make."""

from collections.abc import Mapping
import dataclasses
from typing import Any, Protocol


from experiments.flags import (
  INT64,
  FRACTION,
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
from siamrl.parameters import FieldError
from siamrl.types import Twin

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
class TwinOptions:
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


def mean_age(
  config: TwinOptions, speeds: Units, settings: Mapping[str, Any]
) -> Any:
  """How old the twin is on average, in gradient steps, about.

  (C - 1) / 2 of copies every C gradient steps, (1 - tau) / tau of an average,
  C (1 - tau) / tau more than the former of an average every C, C (K - 1) / 2
  more of the mean of K copies. A rule with neither counts as `hard` with
  --target_period; of other rules it is that of their main clock, as it begins.

  Args:
    config: the options.
    speeds: how to convert periods.
    settings: `sync` and the rule's parameters; may be traced.
  """
  takes = twins.takes(config.target_update, config.target_paths)
  has_period = twins.RULES[config.target_update].period is None
  if 'tau' in takes:
    period = settings['sync'] if has_period else 1
    lag = (1 - settings['tau']) / settings['tau']
    return (period - 1) / 2 + period * lag
  if 'target_period' in takes:
    period = settings['target_period']
  elif has_period:
    period = settings['sync']
  else:  # not heeded: then the same for all runs of a program
    period = speeds.gradient_steps(config.target_period, 'target_period')
  copies = 1
  if config.target_update == 'averaged':
    copies = config.target_count or copies
  return (period - 1) / 2 + period * (copies - 1) / 2


def make_twin(config: TwinOptions, values: Mapping[str, Any]) -> Twin:
  """The rule that the options name.

  Args:
    config: the options.
    values: its parameters, as `parameters` has them; numbers may be traced.
  """
  return twins.make_rule(config.target_update, **values)


def sync_offset(
  config: TwinOptions, speeds: Units, sync: int, warmup: int
) -> int:
  """Gradient steps by which the twin's clock is ahead of the learner's.

  Args:
    config: the options.
    speeds: how to convert env steps.
    sync: gradient steps per target update; whole ones of the lead are left out.
    warmup: env steps before the first gradient step.
  """
  return speeds.gradient_steps_of(warmup) % sync if config.count_warmup else 0
