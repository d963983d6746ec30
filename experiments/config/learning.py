"""Options that launchers share, each written once; defaults are the launcher's.

A launcher's dataclass has `tau: float | None = options.tau()`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from experiments.config import startup
from experiments.config.declaring import (
  DECAY,
  FRACTION,
  INT32,
  NOT_NEGATIVE,
  POSITIVE,
  UINT32,
  one_of,
  option,
  refuse,
)
from siamrl import learner
from siamrl.agents import q
from siamrl.losses import td
from siamrl.networks.heads import HEADS
from siamrl.networks.initializers import INITIALIZERS


def as_arrays(
  values: Mapping[str, Any], names: Iterable[str]
) -> dict[str, np.generic]:
  """Numbers that enter a program; what a run does not have is not a number."""
  found = {name: values.get(name, np.nan) for name in names}
  return {
    name: (np.int32 if type(value) is int else np.float32)(value)
    for name, value in found.items()
  }


def platform() -> Any:
  return option(
    None,
    'Device; the best that JAX finds if not given',
    one_of(startup.PLATFORMS),
    single=True,
  )


def seed(text: str) -> Any:
  return option(0, text, UINT32, single=True, most=2**32 - 1)


def fresh_environments() -> Any:
  return option(
    False,
    'Where a resumed run finds that its environments do not return to where it '
    'had stopped, because they have changed or ignore their seed: go on in '
    'fresh ones, no longer bit for bit the run that was never stopped.',
    single=True,
  )


def head() -> Any:
  return option('linear', 'Last layers', one_of(HEADS))


def layer_norm() -> Any:
  return option(False, 'Normalise each hidden layer before its ReLU.')


def padding(text: str = 'Padding of the convolutions') -> Any:
  return option('VALID', text, one_of(('VALID', 'SAME')))


def initializer() -> Any:
  return option('torch_uniform', 'Initial weights', one_of(INITIALIZERS))


def discount() -> Any:
  return option(0.99, 'Per env step.', FRACTION)


def n_step() -> Any:
  # A compiled program has an addition for each.
  return option(1, 'Rewards before the bootstrap', POSITIVE, most=1_000)


def reward_clip(default: float) -> Any:
  return option(
    default,
    'Rewards are clipped to plus or minus this for learning; 0 for no '
    'clipping. Reported returns never are.',
    NOT_NEGATIVE,
  )


def reward_scale() -> Any:
  return option(
    1.0,
    'Rewards are multiplied by this for learning, before any clipping.',
    POSITIVE,
  )


def optimizer(default: str) -> Any:
  return option(default, 'Optimiser', one_of(learner.OPTIMIZERS))


def learning_rate(default: float) -> Any:
  return option(default, 'Step size.', POSITIVE)


def optimizer_eps(default: float) -> Any:
  return option(
    default,
    'Inside the square root for RMSProp, outside for Adam, RAdam and '
    'rmsprop_centred_torch.',
    POSITIVE,
  )


def anneal_learning_rate() -> Any:
  return option(
    False, 'Let the step size fall to 0 in a straight line over the run.'
  )


def max_gradient_norm() -> Any:
  return option(
    0.0,
    'Gradients are shortened to this norm, of all parameters together; 0 for '
    'no limit.',
    NOT_NEGATIVE,
  )


def rmsprop_decay() -> Any:
  return option(0.95, "Of RMSProp's averages.", DECAY)


def td_loss(default: str) -> Any:
  return option(default, 'Loss of a TD error', one_of(td.FORMS))


def error_bound() -> Any:
  return option(
    1.0, 'Where huber and clipped bound the gradient in a TD error.', POSITIVE
  )


def meaningless(config: Any) -> list[str]:
  """Options of the loss and of the optimiser that mean nothing to a run."""
  meaning = {
    'error_bound': config.td_loss in ('huber', 'clipped'),
    'rmsprop_decay': config.optimizer.startswith('rmsprop'),
    'optimizer_eps': config.optimizer != 'sgd',
  }
  return [name for name, meant in meaning.items() if not meant]


def batch_reduction(default: str) -> Any:
  return option(default, 'Over the losses of a batch', one_of(q.REDUCTIONS))


def batch_size(default: int) -> Any:
  return option(default, 'Transitions per gradient step.', POSITIVE)


def train_period(default: int) -> Any:
  return option(default, 'Env steps from one training to the next.', POSITIVE)


def train_steps() -> Any:
  return option(
    1,
    'Gradient steps of each training; many make fitted Q-iteration.',
    POSITIVE,
  )


def param_dtype() -> Any:
  return option(
    'float32',
    'Type of the online parameters; the twin and the copy that the optimiser '
    'works on are in float32',
    one_of(q.DTYPES),
  )


def min_replay(default: int) -> Any:
  return option(
    default, 'Env steps before the first gradient step.', NOT_NEGATIVE
  )


def check_learns(
  config: Any,
  *,
  length: str,
  env_steps: int,
  round_env_steps: int,
  gradient_steps: int,
) -> None:
  """Raises UsageError for a run that never learns, or that no counter counts.

  Args:
    config: the options, with `min_replay` and `train_steps`.
    length: the option that gives the length of the run.
    env_steps: of the whole run.
    round_env_steps: env steps of a round, which learns if it began with
      `min_replay` of them.
    gradient_steps: that so many env steps call for, those of the warm-up
      included: what the clock of the twin may have to count.
  """
  if env_steps > INT32:
    refuse(config, length, f'be of at most {INT32} env steps, not {env_steps}')
  latest = env_steps - round_env_steps
  if config.min_replay > latest:
    refuse(
      config,
      'min_replay',
      f'be at most {latest} for a gradient step before the end, as --{length}='
      f'{getattr(config, length)} is of {env_steps} env steps',
    )
  if gradient_steps > INT32:
    refuse(
      config,
      'train_steps',
      f'be smaller, or --{length}={getattr(config, length)}: they call for '
      f'{gradient_steps} gradient steps, and {INT32} can be counted',
    )


def epsilon_start() -> Any:
  return option(1.0, 'Chance of a random action at first.', FRACTION)


def epsilon_end(default: float) -> Any:
  return option(default, 'The same in the end.', FRACTION)


def epsilon_hold(default: int) -> Any:
  return option(default, 'Env steps before it begins to decay.', NOT_NEGATIVE)


def epsilon_decay(default: int) -> Any:
  return option(default, 'Env steps that the decay lasts.', POSITIVE)
