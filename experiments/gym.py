"""Deep Q-learning on any environment of Gymnasium with discrete actions.

LunarLander with Double DQN, and an environment of one's own:

  python -m experiments.gym --environment=LunarLander-v3 --agent=double_dqn
  python -m experiments.gym --environment=my_package:MyEnvironment-v0

Environments are stepped on the host, and observations of any shape, discrete
ones among them, go through a network of dense layers. A run keeps everything in
its folder, --run_dir: its flags, metrics.csv, a curve, TensorBoard events,
checkpoints. Ctrl-C or SIGTERM saves and stops it, and the same command, without
--overwrite, resumes it as if it had never stopped; after a crash, from its last
checkpoint.

The defaults are those of CleanRL's dqn.py. Exit codes: 0 for a run that
finished or was stopped, 2 for flags that cannot be, 1 for anything else in the
way, 130 for a second Ctrl-C.
"""

import dataclasses
from typing import Any, NoReturn

from experiments.config import collecting as collect_options, executing, runs
from experiments.config.declaring import (
  group,
  option,
  redeclared,
  refuse,
  sizes,
)
from experiments.config.learning import ExplorationOptions
from experiments.config.meaning import check_meant
from experiments.engines import devices, host_runs
from experiments.families import q
from experiments.suites import gym


@dataclasses.dataclass(frozen=True)
class GymConfig(
  ExplorationOptions, q.QOptions, runs.HostOptions, runs.RunOptions
):
  """The options; their defaults are those of CleanRL's dqn.py."""

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
    'An id of Gymnasium, in any spelling; package:Name-v0 imports the package '
    'that registers it.',
    common=True,
  )
  hidden_sizes: str = option(
    '120-84', 'Units of the hidden layers', sizes('120-84')
  )


def main(config: GymConfig) -> None:
  """Trains an agent as the options say."""
  env_id = gym.resolve(config.environment)
  run_dir = config.run_dir or f'runs/{env_id}-{config.agent}-{config.seed}'
  config = dataclasses.replace(config, environment=env_id, run_dir=run_dir)
  check_meant([config])
  collect_options.check(config)
  q.check_host(config, length='env_steps')
  with devices.StopRequest() as stop:
    suite = gym.Suite(config)
    if not suite.spaces.num_actions:
      refuse(
        config,
        'environment',
        'have discrete actions; those with continuous actions are for python '
        '-m experiments.control',
      )
    suite.check_episode_cap()
    host_runs.check_replay(config, suite)
    devices.configure(config.platform)
    host_runs.train(config, q, suite, stop, suite.notes())


def run() -> NoReturn:
  """Does what the command line says, and exits."""
  executing.run(GymConfig, __doc__, main)


if __name__ == '__main__':
  run()
