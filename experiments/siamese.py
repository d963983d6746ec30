"""Siamese representation learning: SimSiam, BYOL, SimCLR, and their twins.

SimSiam on small images, and what becomes of it without a stop-gradient or with
a slower twin:

  python -m experiments.siamese --images=digits
  python -m experiments.siamese --images=digits --seeds=5 --output_norm=false \\
      --also="--target_update=residual; --target_update=soft --tau=0.1,0.01"

The agent is one: what tells SimSiam from BYOL is the rule of the twin, by the
names that it has everywhere. Runs that differ in numbers only are one compiled
program, shared by all devices. Everything is kept in one folder, --run_dir: the
flags, metrics.csv with a row for each run and iteration, plots, checkpoints.
Ctrl-C or SIGTERM saves and stops, and the same command, without --overwrite,
resumes.

Accuracies are of nearest neighbors and of a linear probe on images held out,
by features of the encoder and by projections; columns that end in _pixels are
the same of the images themselves. Exit codes: 0 for runs that finished or were
stopped, 2 for flags that cannot be, 1 for anything else in the way, 130 for a
second Ctrl-C.
"""

import dataclasses
from typing import NoReturn

from experiments.config import executing
from experiments.config.reading import Sweep
from experiments.engines import sweeps
from experiments.families.siamese import FAMILY, SiameseOptions
from experiments.suites.images import ImageOptions, make_task


@dataclasses.dataclass(frozen=True)
class SiameseConfig(ImageOptions, SiameseOptions):
  """The options."""


def main(sweep: Sweep) -> None:
  """Trains all runs of a sweep."""
  sweeps.main(sweep, make_task, FAMILY)


def run() -> NoReturn:
  """Does what the command line says, and exits."""
  executing.run(SiameseConfig, __doc__, main, lists=True)


if __name__ == '__main__':
  run()
