"""Deep Q-learning on MinAtar; whole runs and sweeps are compiled.

The paper's agent, and what its twin is worth, with five seeds each:

  python -m experiments.minatar \\
      --flagfile=experiments/flagfiles/minatar_dqn.flags --game=breakout
  python -m experiments.minatar --game=breakout --env_steps=1000000 \\
      --seeds=5 --target_update=hard,self

Runs that differ only in numbers share one compiled program and all devices. All
results are kept in one folder, --run_dir: flags, metrics.csv with a row for
each run and iteration, plots and checkpoints. Ctrl-C or SIGTERM saves and
stops; the same command without --overwrite resumes.

The defaults are those of Young & Tian (2019). Exit codes: 0 if all runs
finished or were stopped, 2 for invalid flags, 1 for any other error, 130 after
a second Ctrl-C.
"""

import dataclasses
import functools
from typing import Any, NoReturn

from experiments.config import executing, learning
from experiments.config.declaring import (
  NOT_NEGATIVE,
  choice,
  group,
  one_of,
  option,
  option_errors,
  redeclared,
)
from experiments.config.reading import Sweep
from experiments.engines import sweeps
from experiments.families import Task, q
from siamrl import augment
from siamrl.envs.minatar import PRESETS, make_minatar, resolve_minatar
from siamrl.networks.q_network import QNetwork, minatar_network
from siamrl.types import JaxEnvironment

AUGMENTATIONS = {
  'none': 'no augmentation',
  'shift': 'moved by up to a cell, each board on its own (after DrQ)',
}
_AUGMENT: dict[str, augment.Augmentation | None] = {
  'none': None,
  'shift': functools.partial(augment.shift, pixels=1),
}


@dataclasses.dataclass(frozen=True)
class MinAtarConfig(q.CompiledConfig):
  """The options; their defaults are those of Young & Tian (2019)."""

  env_steps: int = redeclared(q.CompiledConfig, 'env_steps', 5_000_000)
  iteration_env_steps: int = redeclared(
    q.CompiledConfig, 'iteration_env_steps', 50_000
  )
  num_envs: int = redeclared(q.CompiledConfig, 'num_envs', 1)
  target_period: int = redeclared(q.CompiledConfig, 'target_period', 1_000)
  target_period_unit: str = redeclared(
    q.CompiledConfig, 'target_period_unit', 'gradient_steps'
  )
  optimizer: str = redeclared(
    q.CompiledConfig, 'optimizer', 'rmsprop_centered_torch'
  )
  optimizer_eps: float = redeclared(q.CompiledConfig, 'optimizer_eps', 0.01)
  td_loss: str = redeclared(q.CompiledConfig, 'td_loss', 'huber')
  batch_size: int = redeclared(q.CompiledConfig, 'batch_size', 32)
  train_period: int = redeclared(q.CompiledConfig, 'train_period', 1)
  min_replay: int = redeclared(q.CompiledConfig, 'min_replay', 5_000)
  replay_capacity: int = redeclared(
    q.CompiledConfig, 'replay_capacity', 100_000
  )
  epsilon_end: float = redeclared(q.CompiledConfig, 'epsilon_end', 0.1)
  epsilon_hold: int = redeclared(q.CompiledConfig, 'epsilon_hold', 5_000)
  epsilon_decay: int = redeclared(q.CompiledConfig, 'epsilon_decay', 100_000)

  _game: Any = group('The game')
  game: str = option(
    'breakout', 'Game, in any spelling, such as SpaceInvaders.', common=True
  )
  protocol: str = option(
    'paper',
    'Rules of the game. paper: sticky actions (0.1), all 6 actions, no cap '
    "on steps; gymnax: gymnax's own, with the fewest actions and a cap",
    one_of(PRESETS),
  )
  noise_channels: int = option(
    0,
    'Planes of noise behind those of the game, whose cells are set with a '
    'probability of 0.1, anew in every step.',
    NOT_NEGATIVE,
  )
  augmentation: str = choice(
    'none', 'Augmentation of the boards learned from.', AUGMENTATIONS
  )
  padding: str = option(
    'VALID',
    'Padding of the convolution',
    one_of(('VALID', 'SAME')),
    when=learning.DEFAULT_NETWORK,
  )
  hidden_units: int = option(
    128,
    'Units of the layer after the convolution; 0 for no such layer.',
    NOT_NEGATIVE,
  )


@functools.cache
def _make_environment(
  game: str, protocol: str, noise_channels: int
) -> JaxEnvironment:
  with option_errors('game', game):
    return make_minatar(game, protocol, noise_channels)


def make_task(config: MinAtarConfig) -> Task:
  """Makes the game and the network that the options describe."""
  environment = _make_environment(
    config.game, config.protocol, config.noise_channels
  )

  def network(num_actions: int) -> QNetwork:
    return minatar_network(
      num_actions,
      hidden_units=config.hidden_units,
      padding=config.padding,
      **learning.network_options(config),
    )

  # Atari games have the same names.
  name = f'minatar_{resolve_minatar(config.game)}'
  # Boards as bits: a seventh of the memory, for less than 5 % of a step.
  return Task(
    name,
    environment,
    network,
    packed=True,
    augment=_AUGMENT[config.augmentation],
  )


def check_sweep(sweep: Sweep) -> None:
  """Raises UsageError or RunError for what is refused before a run begins."""
  sweeps.check(sweep, q.FAMILY)
  for config in sweep.configs:
    with option_errors('game', config.game):
      resolve_minatar(config.game)


def run() -> NoReturn:
  """Runs the command line and exits."""
  executing.run(
    MinAtarConfig,
    __doc__,
    lambda sweep: sweeps.main(sweep, make_task, q.FAMILY),
    lists=True,
  )


if __name__ == '__main__':
  run()
