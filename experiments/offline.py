"""Learning from a stored data set: fitted Q-iteration, and any other schedule.

Car-on-Hill from 50,000 transitions, and a data set of one's own:

  python -m experiments.offline \\
      --flagfile=experiments/flagfiles/fqi_car_on_hill.flags
  python -m experiments.offline --environment=cartpole --dataset=data.npz

Nothing is acted but evaluations. A fit is --target_period gradient steps toward
targets of a twin that stands still; then the twin moves, and the next fit
begins. With the rules that move it at every gradient step the same data are
learned from as DQN learns. A data set is a .npz file whose keys are
siamrl.replay.dataset's, minari:NAME_OR_PATH, or is collected by random actions
and kept in the run's folder as dataset.npz.

A run keeps everything in its folder, --run_dir: its flags, metrics.csv with a
row an iteration, a curve, TensorBoard events, checkpoints. Ctrl-C or SIGTERM
stops it at the end of an iteration and saves, and the same command, without
--overwrite, resumes it as if it had never stopped; after a crash, from its last
checkpoint. Beside the loss, metrics.csv has what greedy episodes returned; for
car_on_hill the mean discounted return from the papers' 289 starts, grid_return,
and the best possible one, grid_optimum; and for small processes that are solved
exactly the largest error of a value, exact_error, and by how much the best
action's is overestimated on average, exact_bias.

Exit codes: 0 for a run that finished or was stopped, 2 for flags that cannot
be, 1 for anything else in the way, 130 for a second Ctrl-C.
"""

import dataclasses
from typing import NoReturn

from experiments.config import executing
from experiments.config.fitting import FitOptions
from experiments.config.targets import TargetOptions
from experiments.engines import offline_runs
from experiments.families import q
from experiments.suites.dataset import DataOptions


@dataclasses.dataclass(frozen=True)
class OfflineConfig(DataOptions, TargetOptions, FitOptions):
  """The options; their defaults follow no paper."""


def main(config: OfflineConfig) -> None:
  """Learns as the options say."""
  offline_runs.main(config, q)


def run() -> NoReturn:
  """Does what the command line says, and exits."""
  executing.run(OfflineConfig, __doc__, main)


if __name__ == '__main__':
  run()
