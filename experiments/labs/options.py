"""Options of the lab, and what they mean to all problems."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, ClassVar

import numpy as np

from experiments.config import startup, twin
from experiments.config.declaring import (
  Bound,
  DECAY,
  FRACTION,
  POSITIVE,
  UINT32,
  When,
  both,
  choice,
  given,
  group,
  one_of,
  option,
  path_option,
  redeclared,
  value_of,
)
from experiments.config.twin import TwinOptions
from siamrl import self_prediction, twins
from siamrl.envs import linear, linear_control
from siamrl.learner import TwinSpec

SELF_PREDICTION = 'self_prediction'
CONTROL = tuple(linear_control.PROBLEMS)
TABULAR = tuple(linear_control.TABULAR)
_OF_VALUES: dict[str, linear.Problem | linear_control.Problem] = {
  **linear.PROBLEMS,
  **linear_control.PROBLEMS,
}
_PROBLEMS = {
  name: p.summary
  for name, p in {**_OF_VALUES, **linear_control.TABULAR}.items()
} | {SELF_PREDICTION: 'features of states that predict themselves, no values'}
# The options that each problem takes.
TAKES: dict[str, tuple[str, ...]] = {
  name: (*p.takes, 'discount') for name, p in _OF_VALUES.items()
} | {
  **dict.fromkeys(TABULAR, ('seed', 'discount', 'step_decay')),
  SELF_PREDICTION: (
    'seed',
    'num_states',
    'num_features',
    'predictor',
    'predictor_rate',
  ),
}


def _of(name: str) -> dict[str, Any]:
  """Arguments of an option that only some problems take."""
  takers = [problem for problem, takes in TAKES.items() if name in takes]
  return dict(when=given('problem', *takers), refused=True)


_PERIOD: When = TwinOptions.__dataclass_fields__['target_period'].metadata[
  'when'
]


@dataclasses.dataclass(frozen=True)
class LabConfig(TwinOptions):
  """The options; the defaults are Baird's example with a good period."""

  FLOATS: ClassVar[type[np.floating]] = np.float64

  target_period: int = redeclared(
    TwinOptions,
    'target_period',
    10,
    when=When(
      lambda config: config.period_average is None and _PERIOD.holds(config),
      _PERIOD.text,
    ),
  )
  target_period_unit: str = redeclared(
    TwinOptions, 'target_period_unit', 'gradient_steps'
  )
  count_warmup: bool = redeclared(
    TwinOptions, 'count_warmup', never='there is no warm-up'
  )
  reset_optimizer: bool = redeclared(
    TwinOptions,
    'reset_optimizer',
    never='plain gradient descent has no state',
  )

  _problem: Any = group('The problem')
  problem: str = choice(
    'baird', 'Problem that is solved.', _PROBLEMS, common=True
  )
  seed: int = option(
    0,
    'Seed of the problem and of samples',
    UINT32,
    most=2**32 - 1,
    **_of('seed'),
    common=True,
  )
  num_states: int | None = option(
    None,
    'Number of states, including the terminal one if there is one',
    Bound(lambda x: 2 <= x <= 256, 'from 2 to 256'),
    **_of('num_states'),
  )
  num_features: int | None = option(
    None,
    'Number of weights, or of features of a state',
    Bound(lambda x: 1 <= x <= 256, 'from 1 to 256'),
    **_of('num_features'),
  )
  termination: float | None = option(
    None,
    'Chance to end in the second state; 0 if not given',
    FRACTION,
    **_of('termination'),
  )

  predictor: str = choice(
    'optimal',
    'Map from features to those of the next state.',
    self_prediction.PREDICTORS,
    **_of('predictor'),
    value_alias={'learnt': 'learned'},
    common=True,
  )
  predictor_rate: float | None = option(
    None,
    'Step size of a learned predictor, as a multiple of that of the features',
    POSITIVE,
    when=given('predictor', 'learned'),
    refused=given('problem', SELF_PREDICTION),
  )

  _learning: Any = group('Learning')
  discount: float = option(
    0.99,
    'Discount of values per step of the process',
    FRACTION,
    **_of('discount'),
    common=True,
  )
  step_size: float = option(
    0.1,
    'Step size of gradient descent on the sum of the losses, each weighted '
    'by the share of its state',
    Bound(lambda x: 0 < x <= 1e6, 'positive, and 1e6 at most'),
    common=True,
  )
  period_average: float | None = option(
    None,
    'Weight w of longer periods in a mean over all, in place of '
    '--target_period: copies of the mean of the weights m gradient steps after '
    'the last copy, of which each has the weight (1 - w) w^(m - 1)',
    DECAY,
    when=both(given('problem', *CONTROL), given('target_update', 'hard')),
    refused=True,
  )
  step_decay: float | None = option(
    None,
    'Gradient steps since the twin last moved after which the step size is '
    'half of the first one; it is constant if not given',
    POSITIVE,
    **_of('step_decay'),
  )
  gradient_steps: int = option(
    20_000,
    'Gradient steps of the run; an environment step is a gradient step. With '
    '--period_average, periods count as long as they are on average',
    Bound(lambda x: 1 <= x < 2**31, f'from 1 to {2**31 - 1}'),
    single=True,
  )

  _folder: Any = group('Where')
  run_dir: str | None = path_option(
    None,
    'Folder for tables and figures; none are written if not given.',
    single=True,
    common=True,
  )
  overwrite: bool = option(
    False, 'Start afresh even if --run_dir holds runs already.', single=True
  )
  platform: str = option(
    'cpu',
    'Device to compute on; problems so small gain nothing from an accelerator',
    one_of(startup.PLATFORMS),
    single=True,
  )


def settings(config: LabConfig) -> dict[str, Any]:
  """The options that the JSON of a run has."""
  takes = twins.takes(config.target_update, config.target_paths)
  named = [name for name in twins.PARAMETERS if name in takes]
  if twins.RULES[config.target_update].period is None:
    named = list(dict.fromkeys(['target_period', *named]))
  if config.period_average is not None:
    named = ['period_average']
  named += TAKES[config.problem]
  found = {
    'problem': config.problem,
    'target_update': config.target_update,
    **{name: value_of(config, name) for name in named},
    'step_size': config.step_size,
    'gradient_steps': config.gradient_steps,
  }
  return {name: x for name, x in found.items() if x is not None}


def twin_in_words(config: LabConfig, result: Mapping[str, Any]) -> str:
  names = (*twins.PARAMETERS, 'period_average')
  return ', '.join(
    [config.target_update]
    + [f'{name}={result[name]}' for name in names if name in result]
  )


def twin_spec(config: LabConfig) -> TwinSpec:
  """The twin that the options describe, in gradient steps.

  Raises:
    UsageError: options do not go together.
    ValueError: likewise; the message begins with the option.
  """
  # An environment step is a gradient step and a frame.
  speeds = twin.Speeds(config.target_period_unit, 1, 1)
  return twin.make_spec(config, speeds, config.gradient_steps)


def finite(value: Any) -> float | None:
  """A number, or None if it is not finite, for JSON and tables."""
  return float(value) if math.isfinite(value) else None


def cell(value: Any, digits: int = 7) -> str:
  if value is None:
    return '-'
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  return f'{value:.{digits}g}' if isinstance(value, float) else str(value)
