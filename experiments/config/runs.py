"""The options of runs: their folder, how many there are, what they share."""

import dataclasses
import re
from typing import Any

from experiments.config.declaring import (
  INT64,
  NOT_NEGATIVE,
  POSITIVE,
  UINT32,
  Bound,
  group,
  one_of,
  option,
  option_errors,
  path_option,
)
from experiments.config.reading import also
from experiments.config.startup import PLATFORMS
from siamrl.report import tracking

_ADDRESS = Bound(
  lambda text: (
    (match := re.fullmatch(r'\S+:([0-9]{1,5})', text)) is not None
    and int(match[1]) < 2**16
  ),
  'HOST:PORT',
)


@dataclasses.dataclass(frozen=True)
class RunOptions:
  """The options of runs and their folder; a launcher's record inherits them."""

  _run: Any = group('The run')
  run_dir: str | None = path_option(
    None,
    'Folder of all results; if not given, one in runs/ named after what is '
    'learned, the agent, the swept options and the seed',
    single=True,
    common=True,
  )
  overwrite: bool = option(
    False, 'Start afresh even if --run_dir holds runs already.', single=True
  )
  seed: int = option(
    0,
    'Seed of everything random; with several --seeds, that of the first run.',
    UINT32,
    single=True,
    most=2**32 - 1,
    common=True,
  )
  checkpoint_period_s: float = option(
    600, 'Seconds between checkpoints, approximately.', POSITIVE, single=True
  )
  platform: str | None = option(
    None,
    'Device to compute on; the best that JAX finds if not given',
    one_of(PLATFORMS),
    single=True,
  )
  track: str | None = option(
    None,
    'Where rows go beside metrics.csv: none; tensorboard, with events of each '
    'run of a sweep; or wandb (Weights & Biases), which writes to the folder '
    'if there is no account. If not given, TensorBoard has the events of '
    'single runs, if tensorboardX is installed.',
    one_of(tracking.KINDS),
    single=True,
  )


def check_track(config: Any) -> None:
  """Raises RunError if the package that --track needs is not installed."""
  with option_errors('track', config.track):
    tracking.check(config.track)


@dataclasses.dataclass(frozen=True)
class HostOptions:
  """The options of runs whose environments are stepped on the host."""

  _host: Any = group('Resuming in environments that are stepped on the host')
  fresh_environments: bool = option(
    False,
    'Resume in fresh environments if the old ones cannot return to where the '
    'run stopped, because they have changed or ignore their seed. The run is '
    'then no longer bit for bit the one that never stopped.',
    single=True,
  )


@dataclasses.dataclass(frozen=True)
class SeriesOptions(RunOptions):
  """Those of several runs."""

  _several: Any = group('Several runs')
  seeds: int = option(
    1,
    'Runs of each combination of options, with consecutive seeds from --seed',
    POSITIVE,
    single=True,
    most=INT64,  # the memory, or the time, ends sooner
    common=True,
  )
  also: str | None = also()


@dataclasses.dataclass(frozen=True)
class SweepOptions(SeriesOptions):
  """Those of compiled runs, which are computed together on shared devices."""

  share: str = option(
    'runs',
    'Work that devices share: the runs, or the batch of each gradient step',
    one_of(('runs', 'batch')),
    single=True,
  )
  vectorized: bool | None = option(
    None,
    'Compute the runs of a device together rather than one after the other; '
    'if not given, on accelerators only.',
    single=True,
    alias=('vectorised',),
  )
  coordinator: str | None = option(
    None,
    'Address at which the first of several processes listens. With localhost '
    'or an IP address of its own it listens only there, with another name on '
    'all interfaces',
    _ADDRESS,
    single=True,
  )
  num_processes: int = option(
    1, 'Number of processes that share the runs.', POSITIVE, single=True
  )
  process_id: int = option(
    0, 'Index of this process among --num_processes.', NOT_NEGATIVE, single=True
  )
