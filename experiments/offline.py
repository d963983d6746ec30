"""Learning from a stored data set: fitted Q-iteration and other schedules.

Car-on-Hill from 50,000 transitions, and a data set of your own:

  python -m experiments.offline \\
      --flagfile=experiments/flagfiles/fqi_car_on_hill.flags
  python -m experiments.offline --environment=cartpole --dataset=data.npz

A fit is --target_period gradient steps toward targets of a fixed twin, which
then moves, and the next fit begins. Rules that move the twin at every gradient
step learn from the same data as DQN does. A data set is an .npz file with the
keys of siamrl.replay.dataset, minari:NAME_OR_PATH, or is collected by random
actions and kept as dataset.npz in the folder of the run.

A run keeps its results in the folder --run_dir: flags, metrics.csv with a row
for each iteration, a curve, TensorBoard events and checkpoints. Ctrl-C or
SIGTERM saves at the end of an iteration and stops. The same command without
--overwrite resumes as if the run had never stopped, after a crash from its last
checkpoint.

Besides the loss, metrics.csv has the returns of greedy episodes. For
car_on_hill it has the mean discounted return from the papers' 289 starts,
grid_return, and the best possible one, grid_optimum; for small processes that
are solved exactly, the largest error of a value, exact_error, and the mean
overestimation of the best action's value, exact_bias. With --panel_period it
has ranks of features, panel/srank and panel/effective_rank, and fractions of
dormant units, such as panel/dormant_0.025.

Exit codes: 0 if the run finished or was stopped, 2 for invalid flags, 1 for
any other error, 130 after a second Ctrl-C.
"""

import dataclasses
from typing import NoReturn

from experiments.config import executing
from experiments.config.fitting import FitOptions
from experiments.config.reading import Sweep
from experiments.config.targets import TargetOptions
from experiments.engines import offline_runs
from experiments.families import q
from experiments.suites import jax_native
from experiments.suites.dataset import DataOptions, check_readable


@dataclasses.dataclass(frozen=True)
class OfflineConfig(DataOptions, TargetOptions, FitOptions):
  """The options; their defaults follow no paper."""


def main(config: OfflineConfig) -> None:
  """Learns as the options say."""
  offline_runs.main(config, q)


def check_sweep(sweep: Sweep) -> None:
  """Raises UsageError or RunError for what is refused before a run begins."""
  for config in sweep.configs:
    offline_runs.check(config)
    jax_native.resolve(config.environment, continuous=False)
    check_readable(config)


def run() -> NoReturn:
  """Runs the command line and exits."""
  executing.run(OfflineConfig, __doc__, main)


if __name__ == '__main__':
  run()
