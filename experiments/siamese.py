"""Siamese representation learning: SimSiam, BYOL, SimCLR and their twins.

SimSiam on small images, then without a stop-gradient or with a slower twin:

  python -m experiments.siamese --images=digits
  python -m experiments.siamese --images=digits --seeds=5 --output_norm=false \\
      --also="--target_update=residual; --target_update=soft --tau=0.1,0.01"

SimSiam and BYOL differ mainly in the rule of the twin, --target_update.

Runs that differ only in numbers share one compiled program and all devices. All
results are kept in one folder, --run_dir: flags, metrics.csv with a row for
each run and iteration, plots and checkpoints. Ctrl-C or SIGTERM saves and
stops; the same command without --overwrite resumes.

metrics.csv has the accuracies of nearest neighbors and of a linear probe on
held-out images, from features of the encoder and from projections; columns that
end in _pixels are those from the images themselves.

Exit codes: 0 if all runs finished or were stopped, 2 for invalid flags, 1 for
any other error, 130 after a second Ctrl-C.
"""

import dataclasses
from typing import NoReturn

from experiments.config import executing
from experiments.config.reading import Sweep
from experiments.engines import sweeps
from experiments.families.siamese import FAMILY, SiameseOptions
from experiments.suites.images import ImageOptions, check_source, make_task


@dataclasses.dataclass(frozen=True)
class SiameseConfig(ImageOptions, SiameseOptions):
  """The options."""


def main(sweep: Sweep) -> None:
  """Trains all runs of a sweep."""
  sweeps.main(sweep, make_task, FAMILY)


def check_sweep(sweep: Sweep) -> None:
  """Raises UsageError or RunError for what is refused before a run begins."""
  sweeps.check(sweep, FAMILY)
  for config in sweep.configs:
    check_source(config)


def run() -> NoReturn:
  """Runs the command line and exits."""
  executing.run(SiameseConfig, __doc__, main, lists=True)


if __name__ == '__main__':
  run()
