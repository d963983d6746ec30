"""Deep Q-learning on small environments; whole runs and sweeps are compiled.

One run, and an ablation of the twin with ten seeds for each period:

  python -m experiments.classic \\
      --flagfile=experiments/flagfiles/cleanrl_dqn_cartpole.flags
  python -m experiments.classic --environment=catch --seeds=10 \\
      --target_period=10,100,1000

Runs that differ only in numbers share one compiled program and all devices. All
results are kept in one folder, --run_dir: flags, metrics.csv with a row for
each run and iteration, plots and checkpoints. Ctrl-C or SIGTERM saves and
stops; the same command without --overwrite resumes.

The defaults are those of CleanRL's dqn.py. Exit codes: 0 if all runs finished
or were stopped, 2 for invalid flags, 1 for any other error, 130 after a second
Ctrl-C.
"""

import dataclasses
import functools
import math
from typing import Any, NoReturn

from experiments.config import executing, learning, panel
from experiments.config.declaring import (
  UsageError,
  group,
  option,
  refuse,
  sizes,
)
from experiments.config.reading import Sweep
from experiments.engines import sweeps
from experiments.families import Task, q
from experiments.suites import jax_native
from siamrl.envs.registry import SOLVED, discrete

# Dopamine rescales observations between these to [-1, 1] (jax/networks.py).
_LOWEST_HIGHEST = {
  'cartpole': (
    (-2.4, -5.0, -math.pi / 12, -2 * math.pi),
    (2.4, 5.0, math.pi / 12, 2 * math.pi),
  ),
  'acrobot': ((-1.0,) * 4 + (-5.0,) * 2, (1.0,) * 4 + (5.0,) * 2),
  'mountain_car': ((-1.2, -0.07), (0.6, 0.07)),
}
_LOWEST_HIGHEST['cartpole_v0'] = _LOWEST_HIGHEST['cartpole']


@dataclasses.dataclass(frozen=True)
class ClassicConfig(q.CompiledConfig):
  """The options; their defaults are those of CleanRL's dqn.py."""

  _environment: Any = group('The environment')
  environment: str = option(
    'cartpole',
    f'Environment, in any spelling: {", ".join(discrete())}.',
    common=True,
  )
  hidden_sizes: str = option(
    '120-84',
    'Units of the hidden layers',
    sizes('120-84'),
    when=learning.DEFAULT_NETWORK,
  )
  rescale_observations: bool = option(
    False,
    'Rescale observations to [-1, 1] as Dopamine does, for '
    f'{", ".join(_LOWEST_HIGHEST)}.',
    when=learning.DEFAULT_NETWORK,
  )
  agreement: bool = option(
    False,
    'Compare gradients with the one toward optimal values, which are known for '
    f'{", ".join(SOLVED)}: panel/agreement is the cosine between it and the '
    'gradient in use, and panel/agreement/NAME that of a shadow.',
    single=True,
    when=panel.MEASURES,
    refused=True,
  )


def make_task(config: ClassicConfig) -> Task:
  """Makes the environment and the network that the options describe."""
  name, environment, process = jax_native.make_task(config.environment)
  bounds = _bounds(config, name)
  network = functools.partial(learning.make_mlp, config, bounds=bounds)
  observations = None
  if config.agreement:
    if name not in SOLVED:
      refuse(
        config,
        'agreement',
        f'go with one of {", ".join(SOLVED)}, whose optimal values are known, '
        f'not --environment={name}',
      )
    make_process, observe = SOLVED[name]
    process, observations = make_process(), observe and observe()
  return Task(
    name, environment, network, process=process, observations=observations
  )


def _bounds(config: ClassicConfig, name: str) -> Any:
  """The range of observations to rescale; None for no rescaling.

  Args:
    config: the options.
    name: the environment's name in the registry.
  """
  if not config.rescale_observations:
    return None
  if name not in _LOWEST_HIGHEST:
    raise UsageError(
      f'--rescale_observations must go with one of '
      f'{", ".join(_LOWEST_HIGHEST)}, not --environment={name}'
    )
  return _LOWEST_HIGHEST[name]


def check_sweep(sweep: Sweep) -> None:
  """Raises UsageError or RunError for what is refused before a run begins."""
  sweeps.check(sweep, q.FAMILY)
  for config in sweep.configs:
    _bounds(config, jax_native.resolve(config.environment, continuous=False))


def run() -> NoReturn:
  """Runs the command line and exits."""
  executing.run(
    ClassicConfig,
    __doc__,
    lambda sweep: sweeps.main(sweep, make_task, q.FAMILY),
    lists=True,
  )


if __name__ == '__main__':
  run()
