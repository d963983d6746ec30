"""Deep Q-learning on any Gymnasium environment with discrete actions.

LunarLander with Double DQN and three seeds, and an environment of your own:

  python -m experiments.gym --environment=LunarLander-v3 --agent=double_dqn \\
      --seeds=3
  python -m experiments.gym --environment=my_package:MyEnvironment-v0

Environments are stepped on the host. Their observations, discrete or of any
shape, enter a network of dense layers.

Each run keeps its results in a folder: flags, metrics.csv, a curve, TensorBoard
events and checkpoints. A single run has --run_dir itself. Several are done one
after the other, each in a subfolder such as seed=0; if one diverges, the next
begins. Ctrl-C or SIGTERM saves and stops. The same command without --overwrite
resumes as if the run had never stopped, after a crash from its last checkpoint.

The defaults are those of CleanRL's dqn.py. Exit codes: 0 if all runs finished
or were stopped, 2 for invalid flags, 1 for any other error, 130 after a second
Ctrl-C.
"""

import dataclasses
import functools
from typing import Any, NoReturn

from experiments.config import (
  learning,
  collecting as collect_options,
  executing,
  runs,
)
from experiments.config.declaring import (
  group,
  not_given,
  option,
  redeclared,
  sizes,
)
from experiments.config.learning import ExplorationOptions
from experiments.config.reading import Sweep
from experiments.engines import host_runs
from experiments.families import q
from experiments.suites import gym


@dataclasses.dataclass(frozen=True)
class GymConfig(
  ExplorationOptions,
  q.ReplayOptions,
  q.QOptions,
  runs.HostOptions,
  runs.SeriesOptions,
):
  """The options; their defaults are those of CleanRL's dqn.py."""

  n_step: int = redeclared(
    q.QOptions, 'n_step', when=not_given('replay', 'none'), refused=True
  )
  replay_capacity: int = redeclared(
    q.QOptions, 'replay_capacity', when=not_given('replay', 'none')
  )
  num_envs: int = redeclared(q.QOptions, 'num_envs', 1)
  eval_episodes: int = redeclared(q.QOptions, 'eval_episodes', 10)
  eval_episode_env_steps: int = redeclared(
    q.QOptions,
    'eval_episode_env_steps',
    help='Env steps after which an episode of an evaluation is cut, in '
    'environments that set no limit themselves.',
  )

  _environment: Any = group('The environment')
  environment: str = option(
    'CartPole-v1',
    'Id of Gymnasium, in any spelling; package:Name-v0 imports the package '
    'that registers it.',
    common=True,
  )
  hidden_sizes: str = option(
    '120-84',
    'Units of the hidden layers',
    sizes('120-84'),
    when=learning.DEFAULT_NETWORK,
  )


def main(sweep: Sweep) -> None:
  """Trains agents as the options say, one after the other."""
  make_suite = functools.partial(gym.make_suite, discrete=True)
  host_runs.main(gym.resolved(sweep), q, make_suite, check)


def check_sweep(sweep: Sweep) -> None:
  """Raises UsageError or RunError for what is refused before a run begins."""
  sweep = gym.resolved(sweep)
  host_runs.check_options(sweep, check)
  gym.check(sweep, discrete=True)


def check(config: GymConfig) -> None:
  """Raises UsageError for options that do not go together."""
  collect_options.check(config)
  q.check_host(config, length='env_steps')


def run() -> NoReturn:
  """Runs the command line and exits."""
  executing.run(GymConfig, __doc__, main, lists=True)


if __name__ == '__main__':
  run()
