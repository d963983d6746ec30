"""Deep Q-learning on small environments, whole runs and sweeps compiled.

One run, and an ablation of the twin with ten seeds for each period:

  python -m experiments.classic \\
      --flagfile=experiments/flagfiles/cleanrl_dqn_cartpole.flags
  python -m experiments.classic --environment=catch --seeds=10 \\
      --target_period=10,100,1000

Runs that differ in numbers only are one compiled program, shared by all
devices. Everything is kept in one folder, --run_dir: the flags, metrics.csv with
a row for each run and iteration, a plot, checkpoints. Ctrl-C or SIGTERM saves
and stops, and the same command, without --overwrite, resumes.

The defaults are those of CleanRL's dqn.py. Exit codes: 0 for runs that finished
or were stopped, 2 for flags that cannot be, 1 for anything else in the way, 130
for a second Ctrl-C.
"""

import dataclasses
import functools
import re
from typing import Any

from experiments import compiled
from experiments.flags import Bound, RunError, UsageError, group, option
from experiments.flags import run_sweep
from siamrl.envs.registry import ENVIRONMENTS, resolve_environment
from siamrl.networks.q_network import QNetwork, mlp_network

_SIZES = Bound(
  lambda text: re.fullmatch(r'[1-9]\d*(-[1-9]\d*)*', text) is not None,
  'positive numbers joined by hyphens, such as 120-84',
)


@dataclasses.dataclass(frozen=True)
class ClassicConfig(compiled.CompiledConfig):
  """The options; their defaults are those of CleanRL's dqn.py."""

  _environment: Any = group('The environment')
  environment: str = option(
    'cartpole', f'In any spelling: {", ".join(ENVIRONMENTS)}.'
  )
  hidden_sizes: str = option('120-84', 'Units of the hidden layers', _SIZES)


@functools.cache
def _make_environment(name: str):
  try:
    return ENVIRONMENTS[resolve_environment(name)]()
  except ValueError as error:
    raise UsageError(f'--environment={name}: {error}') from error
  except ImportError as error:
    raise RunError(str(error)) from error


def make_task(config: ClassicConfig) -> compiled.Task:
  """What the options say of the environment and the network."""
  sizes = [int(size) for size in config.hidden_sizes.split('-')]

  def network(config: compiled.CompiledConfig, num_actions: int) -> QNetwork:
    return mlp_network(
      num_actions,
      sizes=sizes,
      head=config.head,
      initializer=config.initializer,
    )

  environment = _make_environment(config.environment)
  return compiled.Task(
    resolve_environment(config.environment), environment, network
  )


if __name__ == '__main__':
  run_sweep(
    ClassicConfig,
    __doc__,
    lambda sweep: compiled.main(sweep, make_task),
    compiled.drop,
  )
