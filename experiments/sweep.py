"""Runs a sweep over processes, on this machine or on a cluster.

  python -m experiments.sweep --sweep=periods.toml --dry_run
  python -m experiments.sweep --sweep=periods.toml --run_dir=runs/periods

A sweep file names a launcher, its flags, axes and seeds:

  launcher = "minatar"
  flagfile = "minatar_dqn"
  flags = "--env_steps=1000000"
  seeds = 5

  [axes]
  game = ["breakout", "asterix"]
  target_period = [100, 1000, 10000]

Every combination is run with every seed. Runs that differ only in numbers stay
one compiled program, in one process; other combinations, and the seeds of
environments that are stepped on the host, are cells of their own. Further
entries, with the section of arms at the end:

  split = ["seed"]  # cells for these values even where runs compile
  cores = 2         # of each cell, 1 if not given; so are gpus and memory_gb

  [arms]            # each gets all combinations
  plain = ""
  double = "--target_form=double"

In place of its flags, an arm may have {launcher = "classic", flags = "..."},
with a launcher of its own.

A run should be resumed with as many cores as before, or its numbers may differ.

Each cell is a run folder in --run_dir, named after its values, beside a .log of
what it prints and a .json of how it ended. The same command goes on: cells that
are done are skipped, those that were cut resume, and those that failed are
tried again. Cells may be added to the file; other options for a cell that has
begun are refused. What the launcher would refuse, such as the name of no
environment, is refused before any cell begins, but for what takes long to find:
the memory, and what is in images and data sets. Ctrl-C or SIGTERM saves and
stops. `python -m experiments.status RUN_DIR` shows how far it is.

--launcher says what runs the cells. With ray they are tasks of a Ray cluster
(--ray_address), or of one on this machine; its nodes are found by `cores`,
`gpus` and `memory_gb`, and a cell whose node is lost resumes on another. With
slurm they are elements of a job array, and a cell that runs out of its time is
saved and queued again. All machines must share the folder of the sweep and the
installation. If the process that drives the sweep is killed, cells on Ray save
and stop, those on SLURM go on; the same command takes them over.

  python -m experiments.sweep --sweep=periods.toml --launcher=slurm --jobs=50

--dry_run lists the cells, runs the first one of each arm that is not done for a
while in a temporary folder, and says how long all of them will take, and how
much memory. It takes about two minutes; arms that it has no time for are taken
to last as long as the slowest one of their launcher.

Exit codes: 0 if all cells are done or were stopped, 2 for invalid flags or
files, 1 if a cell failed or for any other error, 130 after a second Ctrl-C.
"""

import collections
from collections.abc import Iterator, Sequence
import dataclasses
import fnmatch
import heapq
import math
import pathlib
import re
import sys
import tempfile
import time
from typing import Any, NamedTuple

from experiments import launchers
from experiments.config import sweep_files
from experiments.config.declaring import (
  NOT_NEGATIVE,
  POSITIVE,
  RunError,
  UsageError,
  given,
  group,
  one_of,
  option,
  path_option,
  refuse,
)
from experiments.config.executing import run
from experiments.config.meaning import check_meant
from experiments.config.sweep_files import SweepFile
from experiments.engines import pools
from experiments.engines.cells import Cell, make_cells
from experiments.engines.devices import StopRequest
from experiments.engines.driving import Driver
from experiments.engines.pools.local import LocalPool
from experiments.engines.pools.ray import RayPool
from experiments.engines.pools.slurm import SlurmOptions, SlurmPool
from experiments.engines.sweep_folders import State, SweepFolder
from siamrl.report import glances
from siamrl.report.run_folder import RunFolder

# Time of a dry run, and the least that it spends on a cell.
_PROBE_S = 120.0
_LEAST_S = 10.0
_POLL_S = 0.1


@dataclasses.dataclass(frozen=True)
class PoolOptions:
  """The options of what runs the cells of a sweep."""

  _pool: Any = group('What runs the cells')
  launcher: str = option(
    'local',
    'Pool of processes. local: this machine. ray: a Ray cluster. slurm: job '
    'arrays of a SLURM cluster, to which this machine can submit',
    one_of(('local', 'ray', 'slurm')),
  )
  jobs: int | None = option(
    None,
    'Most cells at a time (with slurm, of each job array); as many as there is '
    'room for if not given.',
    POSITIVE,
  )
  retries: int = option(
    2,
    'Further attempts at a cell that failed without getting any further; one '
    'with invalid flags is not tried again.',
    NOT_NEGATIVE,
  )
  only: str | None = option(
    None,
    'Patterns of the names of cells to run, separated by semicolons, such as '
    '"dqn/*;c51/*"; all if not given.',
  )
  ray_address: str | None = option(
    None,
    'Ray cluster to join, such as HOST:6379, or auto for the one on this '
    'machine; if not given, one is started here for the sweep.',
    when=given('launcher', 'ray'),
    refused=True,
  )
  slurm_partition: str | None = option(
    None,
    "Partition of SLURM; the cluster's default if not given.",
    when=given('launcher', 'slurm'),
    refused=True,
  )
  slurm_timeout_min: int = option(
    60,
    'Time limit of a job of SLURM, in minutes. A cell that takes longer is '
    'saved and queued again.',
    POSITIVE,
    when=given('launcher', 'slurm'),
    refused=True,
  )
  slurm_signal_s: int = option(
    90,
    'Seconds before the time limit at which a cell begins to save, which must '
    'suffice for it.',
    POSITIVE,
    when=given('launcher', 'slurm'),
    refused=True,
  )
  slurm_setup: str | None = option(
    None,
    'Shell command to run on a node before a cell, such as "module load cuda".',
    when=given('launcher', 'slurm'),
    refused=True,
  )
  slurm_options: str | None = option(
    None,
    'Further options of sbatch without their hyphens, separated by spaces, '
    'such as "account=vision qos=long".',
    when=given('launcher', 'slurm'),
    refused=True,
  )


@dataclasses.dataclass(frozen=True)
class SweepConfig(PoolOptions):
  """The options."""

  _sweep: Any = group('The sweep')
  sweep: str | None = path_option(None, 'Sweep file, TOML.')
  run_dir: str | None = path_option(
    None, "Folder of all results; runs/ and the file's name if not given."
  )
  dry_run: bool = option(
    False, 'List the cells, estimate time and memory, and run nothing else.'
  )


def main(config: SweepConfig) -> None:
  """Runs the sweep."""
  if config.sweep is None:
    raise UsageError('--sweep must be given: a sweep file')
  file = sweep_files.read(pathlib.Path(config.sweep), launchers.NAMES)
  folder = SweepFolder(config.run_dir or f'runs/{file.path.stem}')
  if config.dry_run:
    cells = cells_of(file)
    folder.check(cells)
    cells = chosen(config, cells)
    _dry_run(file, cells, folder, config)
    return
  failed = run_cells(config, file, folder)
  if failed:
    raise failure(failed, folder)


def cells_of(file: SweepFile) -> list[Cell]:
  """The cells of a sweep file."""
  return make_cells(
    file, launchers.options_of, launchers.compiles, launchers.check
  )


def chosen(config: PoolOptions, cells: Sequence[Cell]) -> list[Cell]:
  """The cells that --only chooses.

  Raises:
    UsageError: a pattern chooses none.
  """
  if config.only is None:
    return list(cells)
  patterns = [text.strip() for text in config.only.split(';')]
  names: set[str] = set()
  for pattern in patterns:
    found = fnmatch.filter([cell.name for cell in cells], pattern)
    if not found:
      raise UsageError(
        f'--only={pattern} must match the name of a cell, such as '
        f'{cells[0].name}'
      )
    names.update(found)
  return [cell for cell in cells if cell.name in names]


def run_cells(
  config: PoolOptions, file: SweepFile, folder: SweepFolder
) -> list[str] | None:
  """Runs the cells that are not done.

  Args:
    config: the pool, and which cells.
    file: the sweep file.
    folder: the folder of the sweep.

  Returns:
    The names of cells that failed; None if it was asked to stop.

  Raises:
    UsageError: the file, the folder or an option cannot be used.
    RunError: another driver uses the folder, or it cannot be written.
  """
  cells = cells_of(file)
  mine = chosen(config, cells)
  pool = make_pool(config, file, folder)
  with StopRequest() as stop, folder.driven(cells) as gone:
    print(_counts(cells, folder))
    if gone:
      print(
        f'note: {len(gone)} cells in {folder.path} are not in the file any '
        f'more and stay as they are: {", ".join(gone[:3])}'
        + (' ...' if len(gone) > 3 else '')
      )
    sys.stdout.flush()
    driver = Driver(folder, mine, _needs(file), retries=config.retries)
    driver.run(pool, stop)
    print(_counts(cells, folder))
    if stop:
      print('stopped; the same command goes on', file=sys.stderr)
      return None
    return driver.failed


def failure(failed: Sequence[str], folder: SweepFolder) -> RunError:
  """The error of cells that failed."""
  cells = f'{len(failed)} {"cells" if len(failed) > 1 else "cell"}'
  return RunError(
    f'{cells} failed: {"; ".join(failed)}. Each has a .log in {folder.path}; '
    'the same command tries again'
  )


def make_pool(
  config: PoolOptions, file: SweepFile, folder: SweepFolder
) -> pools.Pool:
  """The pool that the options ask for.

  Raises:
    UsageError: an option means nothing to it, or it lacks what cells need.
    RunError: it cannot be used on this machine.
  """
  check_meant([config])
  if config.launcher == 'local':
    return LocalPool(config.jobs, cores=file.cores, gpus=file.gpus)
  if config.launcher == 'ray':
    return RayPool(
      folder.path, config.jobs, config.ray_address, needs=_needs(file)
    )
  if config.slurm_signal_s >= config.slurm_timeout_min * 60:
    refuse(config, 'slurm_signal_s', 'be less than --slurm_timeout_min')
  options = SlurmOptions(
    partition=config.slurm_partition,
    timeout_min=config.slurm_timeout_min,
    signal_s=config.slurm_signal_s,
    setup=(config.slurm_setup,) if config.slurm_setup else (),
    sbatch=_sbatch(config),
  )
  return SlurmPool(folder.path, config.jobs, options, needs=_needs(file))


def _needs(file: SweepFile) -> pools.Resources:
  return pools.Resources(file.cores, file.gpus, file.memory_gb)


def _sbatch(config: PoolOptions) -> dict[str, str]:
  """The further options of sbatch by name."""
  found = {}
  for text in (config.slurm_options or '').split():
    name, equals, value = text.partition('=')
    if not equals or not re.fullmatch(r'[a-z][a-z-]*', name) or not value:
      refuse(
        config,
        'slurm_options',
        'be NAME=VALUE, separated by spaces, such as "account=vision qos=long"',
      )
    found[name] = value
  return found


def _counts(cells: Sequence[Cell], folder: SweepFolder) -> str:
  """How many cells are in each state, as a line."""
  states = collections.Counter(folder.state(cell.name) for cell in cells)
  parts = [f'{states[state]} {state}' for state in State if states[state]]
  noun = 'cell' if len(cells) == 1 else 'cells'
  return f'{len(cells)} {noun} in {folder.path}: {", ".join(parts)}'


class Estimate(NamedTuple):
  """Needs of a cell, judged by its first rows.

  Attributes:
    seconds: the whole cell; infinite if it had no rows in that time.
    peak_bytes: most memory so far.
  """

  seconds: float
  peak_bytes: int


def _dry_run(
  file: SweepFile,
  cells: Sequence[Cell],
  folder: SweepFolder,
  config: PoolOptions,
) -> None:
  """Lists the cells, and estimates what those that are left take."""
  states = {cell.name: folder.state(cell.name) for cell in cells}
  for cell in cells:
    print(f'{states[cell.name]:9}  {cell.name}')
  print(_counts(cells, folder), flush=True)
  left = [cell for cell in cells if states[cell.name] != State.DONE]
  if not left:
    return
  pool = make_pool(config, file, folder)
  at_a_time = min(pool.at_a_time or len(left), len(left))
  pool.close()
  try:
    found = _probe_arms(file, left)
  except UsageError as error:  # the cluster is larger than this machine
    print(f'note: time and memory are unknown, as no cell fits here: {error}')
    return
  name, most = max(found.items(), key=lambda item: item[1].peak_bytes)
  gigabytes = most.peak_bytes / 1e9
  print(
    f'memory: {gigabytes:.1f} GB for {name}, so far; about '
    f'{gigabytes * at_a_time:.1f} GB for {at_a_time} at a time'
  )
  for line in _time_lines(left, found, at_a_time):
    print(f'time: {line}')


def _arm_of(cell: Cell) -> tuple[str, str]:
  """The launcher and the arm of a cell."""
  return cell.launcher, cell.point.get('arm', '')


def _probe_arms(file: SweepFile, cells: Sequence[Cell]) -> dict[str, Estimate]:
  """Measures the first cell of each arm, and of each launcher before others.

  Returns:
    The needs of the measured cells by name; not of all arms, if time is short.
  """
  arms: dict[tuple[str, str], Cell] = {}
  of_launchers: dict[str, Cell] = {}
  for cell in cells:
    arms.setdefault(_arm_of(cell), cell)
    of_launchers.setdefault(cell.launcher, cell)
  ordered = list(of_launchers.values())
  ordered += [cell for cell in arms.values() if cell not in ordered]
  end = time.monotonic() + _PROBE_S
  found = {}
  for number, cell in enumerate(ordered):
    left_s = end - time.monotonic()
    launchers_left = len(of_launchers) - number
    if launchers_left <= 0 and left_s < _LEAST_S:
      break
    share_s = max(left_s / max(launchers_left, 1), _LEAST_S)
    found[cell.name] = _probe(file, cell, share_s)
  return found


def _time_lines(
  cells: Sequence[Cell], found: dict[str, Estimate], at_a_time: int
) -> Iterator[str]:
  """Says how long cells take, by what was measured of their arms."""
  arms = {_arm_of(c): found[c.name].seconds for c in cells if c.name in found}
  slowest: dict[str, float] = {}
  for (launcher, _), seconds in arms.items():
    if math.isfinite(seconds):
      slowest[launcher] = max(seconds, slowest.get(launcher, 0.0))
  for cell in (cell for cell in cells if cell.name in found):
    seconds = found[cell.name].seconds
    number = sum(_arm_of(other) == _arm_of(cell) for other in cells)
    if math.isinf(seconds):
      yield f'{cell.name} had no row of metrics yet, so it is unknown'
    else:
      yield f'about {_words(seconds)} for {cell.name}' + (
        f', one of {number} cells of its arm' * (len(arms) > 1 < number)
      )
  others = {_arm_of(cell) for cell in cells} - arms.keys()
  others |= {arm for arm, seconds in arms.items() if math.isinf(seconds)}
  others = {arm for arm in others if arm[0] in slowest}
  if others:
    names = 'arm is' if len(others) == 1 else 'arms are'
    yield (
      f'{len(others)} {names} taken to last as long as the slowest of the same '
      'launcher, for want of time to measure'
    )
  known = [
    arms[arm] if arm not in others and arm in arms else slowest[arm[0]]
    for arm in map(_arm_of, cells)
    if arm[0] in slowest
  ]
  if known:
    yield (
      f'about {_words(_makespan(known, at_a_time))} for {len(known)} of '
      f'{len(cells)} cells, {at_a_time} at a time, if all cells of an arm take '
      'as long'
    )


def _makespan(seconds: Sequence[float], at_a_time: int) -> float:
  """The time until all cells have ended; each begins as soon as it can."""
  ends = [0.0] * at_a_time
  for each in seconds:
    heapq.heapreplace(ends, ends[0] + each)
  return max(ends)


def _probe(file: SweepFile, cell: Cell, limit_s: float) -> Estimate:
  """Runs a cell for its first rows, and measures it."""
  with tempfile.TemporaryDirectory(prefix='siamrl-') as temporary:
    folder = RunFolder(pathlib.Path(temporary, 'cell'))
    command = (
      *(sys.executable, '-m', f'experiments.{cell.launcher}'),
      *(*cell.arguments, f'--run_dir={folder.path}'),
    )
    log = pathlib.Path(temporary, 'log')
    job = pools.Job(cell.name, command, str(folder.path), str(log))
    slot = LocalPool(1, cores=file.cores, gpus=file.gpus).shares[0]
    began = time.monotonic()
    process = pools.start(job, on=slot.cores)
    seen: list[tuple[float, int]] = []  # seconds and rows
    ended = None
    while ended is None:
      seconds = time.monotonic() - began
      rows = glances.rows_of(folder)
      if rows > (seen[-1][1] if seen else 0):
        seen.append((seconds, rows))
      if len(seen) >= 3 or seconds > limit_s:
        process.terminate()
      time.sleep(_POLL_S)
      ended = pools.ended(process, wait=False)
    code, peak_bytes = ended
    if code not in (0, -15):
      lines = log.read_text(encoding='utf-8', errors='replace').splitlines()
      raise RunError(f'{cell.name} failed: {"; ".join(lines[-5:])}')
    all_rows = folder.rows() or 1
  if not seen:
    return Estimate(math.inf, peak_bytes)
  (first_s, first), (last_s, last) = seen[0], seen[-1]
  row_s = first_s / first
  if last > first:
    row_s = (last_s - first_s) / (last - first)
  return Estimate(first_s + row_s * (all_rows - first), peak_bytes)


def _words(seconds: float) -> str:
  """A duration as one says it."""
  if seconds < 90:
    return f'{seconds:.0f} s'
  if seconds < 90 * 60:
    return f'{seconds / 60:.0f} minutes'
  if seconds < 48 * 3600:
    return f'{seconds / 3600:.1f} hours'
  return f'{seconds / 86400:.1f} days'


if __name__ == '__main__':
  run(SweepConfig, __doc__, main)
