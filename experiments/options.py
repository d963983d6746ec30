"""Options that launchers share, each written once; defaults are the launcher's.

A launcher's dataclass has `tau: float | None = options.tau()`.
"""

from typing import Any

from experiments import devices
from experiments.flags import (
  DECAY,
  FRACTION,
  NOT_NEGATIVE,
  POSITIVE,
  RATE,
  UINT32,
  one_of,
  option,
)
from siamrl import learner, schedule, twins
from siamrl.agents import q
from siamrl.losses import td
from siamrl.networks.heads import HEADS
from siamrl.networks.initializers import INITIALIZERS


def platform() -> Any:
  return option(
    None,
    'Device; the best that JAX finds if not given',
    one_of(devices.PLATFORMS),
    single=True,
  )


def seed(text: str) -> Any:
  return option(0, text, UINT32, single=True)


def agent() -> Any:
  return option('dqn', 'Bootstrap', one_of(q.AGENTS))


def head() -> Any:
  return option('linear', 'Last layers', one_of(HEADS))


def padding(text: str = 'Padding of the convolutions') -> Any:
  return option('VALID', text, one_of(('VALID', 'SAME')))


def initializer() -> Any:
  return option('torch_uniform', 'Initial weights', one_of(INITIALIZERS))


def discount() -> Any:
  return option(0.99, 'Per env step.', FRACTION)


def n_step() -> Any:
  return option(1, 'Rewards before the bootstrap.', POSITIVE)


def reward_clip(default: float) -> Any:
  return option(
    default,
    'Rewards are clipped to plus or minus this for learning; 0 for no '
    'clipping. Reported returns never are.',
    NOT_NEGATIVE,
  )


def target_update() -> Any:
  rules = (f'{name}: {rule.summary}' for name, rule in twins.RULES.items())
  return option(
    'hard', 'What the twin becomes. ' + '; '.join(rules), one_of(twins.RULES)
  )


def target_period(default: int) -> Any:
  return option(
    default,
    'From one target update to the next, for the rules hard and '
    'periodic_soft; the others move at every gradient step or never.',
    POSITIVE,
  )


def target_period_unit(text: str = 'Unit of --target_period') -> Any:
  return option('env_steps', text, one_of(schedule.UNITS), single=True)


def tau() -> Any:
  return option(
    None,
    'Weight on the online parameters, for the rules soft and periodic_soft',
    RATE,
  )


def optimizer(default: str) -> Any:
  return option(default, 'Optimiser', one_of(learner.OPTIMIZERS))


def learning_rate(default: float) -> Any:
  return option(default, 'Step size.', POSITIVE)


def optimizer_eps(default: float) -> Any:
  return option(
    default,
    'Inside the square root for RMSProp, outside for Adam and for '
    'rmsprop_centred_torch.',
    POSITIVE,
  )


def rmsprop_decay() -> Any:
  return option(0.95, "Of RMSProp's averages.", DECAY)


def td_loss(default: str) -> Any:
  return option(default, 'Loss of a TD error', one_of(td.FORMS))


def error_bound() -> Any:
  return option(
    1.0, 'Where huber and clipped bound the gradient in a TD error.', POSITIVE
  )


def batch_reduction(default: str) -> Any:
  return option(default, 'Over the losses of a batch', one_of(q.REDUCTIONS))


def batch_size(default: int) -> Any:
  return option(default, 'Transitions per gradient step.', POSITIVE)


def train_period(default: int) -> Any:
  return option(default, 'Env steps per gradient step.', POSITIVE)


def min_replay(default: int) -> Any:
  return option(default, 'Env steps before the first gradient step.', POSITIVE)


def epsilon_start() -> Any:
  return option(1.0, 'Chance of a random action at first.', FRACTION)


def epsilon_end(default: float) -> Any:
  return option(default, 'The same in the end.', FRACTION)


def epsilon_hold(default: int) -> Any:
  return option(default, 'Env steps before it begins to decay.', NOT_NEGATIVE)


def epsilon_decay(default: int) -> Any:
  return option(default, 'Env steps that the decay lasts.', POSITIVE)
