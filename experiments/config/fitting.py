"""The options of runs on a data set: their lengths and fits, and checks."""

import dataclasses
from typing import Any

from experiments.config import twin as twin_options
from experiments.config.declaring import (
  INT32,
  INT64,
  NOT_NEGATIVE,
  POSITIVE,
  When,
  choice,
  group,
  option,
  redeclared,
  refuse,
  usage_errors,
)
from experiments.config.learning import LearningOptions
from experiments.config.resets import ResetOptions
from experiments.config.runs import RunOptions
from experiments.config.twin import HAS_PERIOD, TwinOptions
from siamrl.learner import TwinSpec
from siamrl.runners import offline
from siamrl.types import Schedule

_DEFAULT_ITERATIONS = 40
# Periods are in gradient steps.
_SPEEDS = twin_options.Speeds('gradient_steps', 1, 1)
_ANNEAL = {
  'none': 'it is constant',
  'run': 'the whole run',
  'fit': 'each fit; needs --reset_optimizer',
}


@dataclasses.dataclass(frozen=True)
class FitOptions(LearningOptions, ResetOptions, TwinOptions, RunOptions):
  """The options; their defaults follow no paper."""

  target_period: int = redeclared(
    TwinOptions,
    'target_period',
    1_000,
    help='Gradient steps of a fit, from one target update to the next. It is '
    'the default of --iteration_gradient_steps even if the rule ignores it.',
    when=None,
  )
  target_period_unit: str = redeclared(
    TwinOptions,
    'target_period_unit',
    'gradient_steps',
    never='no env steps are taken',
  )
  count_warmup: bool = redeclared(
    TwinOptions, 'count_warmup', never='there is no warm-up'
  )
  learning_rate: float = redeclared(LearningOptions, 'learning_rate', 1e-3)
  anneal_learning_rate: str = choice(  # type: ignore[assignment]
    'none', 'Period over which the step size falls linearly to 0.', _ANNEAL
  )

  _length: Any = group('Length of the run')
  iterations: int | None = option(
    None,
    'Number of fits, each of --target_period gradient steps; '
    f'{_DEFAULT_ITERATIONS} if neither this nor --gradient_steps is given',
    POSITIVE,
    common=True,
  )
  gradient_steps: int | None = option(
    None, 'Gradient steps of the whole run, in place of --iterations', POSITIVE
  )
  iteration_gradient_steps: int | None = option(
    None,
    'Gradient steps per iteration, after which there is a row of metrics.csv '
    'and an evaluation; --target_period if not given',
    POSITIVE,
  )

  _fits: Any = group('Fits')
  batch_size: int = option(
    256,
    'Transitions per gradient step, drawn with replacement; 0 for all of '
    'them at every step',
    NOT_NEGATIVE,
    most=INT64,  # the memory ends sooner
    common=True,
  )
  tolerance: float | None = option(
    None,
    'Least relative decrease of the loss that lets a fit go on, between '
    'averages over --tolerance_window gradient steps; 0 ends a fit when the '
    'loss does not fall at all. If not given, all fits have --target_period '
    'gradient steps',
    NOT_NEGATIVE,
    when=HAS_PERIOD,
    refused=True,
  )
  tolerance_window: int = option(
    100,
    'Gradient steps over which --tolerance averages the loss; must divide '
    '--target_period.',
    POSITIVE,
    when=When(lambda config: config.tolerance is not None, 'with --tolerance'),
  )

  @property
  def total_gradient_steps(self) -> int:
    """Gradient steps of the whole run, at most if fits end early."""
    fits = self.iterations or _DEFAULT_ITERATIONS
    return self.gradient_steps or fits * self.target_period

  @property
  def anneal_steps(self) -> int | None:
    """Updates over which the step size falls to 0; None if it is constant."""
    return {
      'none': None,
      'run': self.total_gradient_steps,
      # An optimizer that starts anew counts the steps of its fit.
      'fit': self.target_period,
    }[self.anneal_learning_rate]

  @property
  def row_gradient_steps(self) -> int:
    """Gradient steps of an iteration."""
    return self.iteration_gradient_steps or self.target_period

  @property
  def rows(self) -> int:
    """Iterations of the whole run."""
    return self.total_gradient_steps // self.row_gradient_steps


def check(config: FitOptions) -> None:
  """Raises UsageError for options that do not go together."""
  if config.gradient_steps and config.iterations:
    refuse(
      config,
      'gradient_steps',
      f'not be given with --iterations={config.iterations}',
    )
  _check_lengths(config)
  anneal = config.anneal_learning_rate
  if anneal == 'fit' and not config.reset_optimizer:
    refuse(config, 'anneal_learning_rate', 'go with --reset_optimizer')
  if anneal == 'run' and config.reset_optimizer:
    refuse(
      config,
      'anneal_learning_rate',
      'not go with --reset_optimizer, which has the step size start anew',
    )
  if config.tolerance is not None:
    _check_tolerance(config)
  with usage_errors():
    twin_spec(config)


def _check_lengths(config: FitOptions) -> None:
  total = config.total_gradient_steps
  longest = 'gradient_steps' if config.gradient_steps else 'target_period'
  if total > INT32:
    refuse(
      config, longest, f'give a run of less than {INT32 + 1} gradient steps'
    )
  if total % config.row_gradient_steps:
    if config.iteration_gradient_steps:
      refuse(
        config,
        'iteration_gradient_steps',
        f'divide the {total} gradient steps of the run',
      )
    refuse(
      config,
      'gradient_steps',
      f'be a multiple of --target_period={config.target_period}, or of '
      '--iteration_gradient_steps',
    )


def _check_tolerance(config: FitOptions) -> None:
  if config.target_order != 'after':
    refuse(config, 'target_order', 'be after where --tolerance is given')
  if config.row_gradient_steps != config.target_period:
    refuse(
      config,
      'iteration_gradient_steps',
      f'be --target_period={config.target_period} where --tolerance is given',
    )
  window = config.tolerance_window
  if config.target_period % window or config.target_period < 2 * window:
    refuse(
      config,
      'target_period',
      'be two or more whole windows where --tolerance is given, of '
      f'--tolerance_window={window}',
    )


def twin_spec(config: FitOptions) -> TwinSpec:
  """The twin that the options describe; raises ValueError as `make_spec`."""
  return twin_options.make_spec(config, _SPEEDS, config.total_gradient_steps)


def make_config(config: FitOptions) -> offline.OfflineConfig:
  """How a run learns from its data set."""
  return offline.OfflineConfig(
    Schedule(0, config.total_gradient_steps),
    batch_size=config.batch_size or None,
    iteration_steps=config.row_gradient_steps,
    tolerance=config.tolerance,
    window=config.tolerance_window,
  )
