"""Sweeps of compiled runs: how they become programs.

A command line may hold lists, and every combination of their values, times the
seeds, is a run. Runs that differ only in numbers share one compiled program. A
`Family` defines the kind of runs.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import math
import os
import sys
from typing import Any

import jax

from siamrl import twins
from siamrl.report import sweep as sweep_figures
from experiments.config.declaring import UsageError, refuse, usage_errors
from experiments.config.meaning import (
  check_lists,
  check_meant,
  say_notes,
  traced,
)
from experiments.config.reading import Sweep
from experiments.config.runs import SweepOptions, check_track
from experiments.engines import (
  compiled,
  devices,
  folders,
  memory,
  processes,
  running,
)
from experiments.engines.sweep_folders import title_of
from experiments.families import Family
from siamrl.report.metrics import read_metrics
from siamrl.report.run_folder import RunFolder
from siamrl.report.tracking import Track

# Options that may differ between a sweep and its resumption.
WHERE = (*folders.WHERE, 'coordinator', 'process_id')


def main(sweep: Sweep, make_task: Callable[[Any], Any], family: Family) -> None:
  """Trains all runs of a sweep.

  Args:
    sweep: its records are of a launcher's subclass of `SweepOptions`.
    make_task: such a record -> its task, which has a `name` and may have
      `notes`, lines for the user to read; raises UsageError or RunError.
    family: the kind of runs.
  """
  with devices.StopRequest() as stop:
    _train(sweep, make_task, family, stop)


def _train(
  sweep: Sweep,
  make_task: Callable[[Any], Any],
  family: Family,
  stop: devices.StopRequest,
) -> None:
  first = sweep.configs[0]
  check(sweep, family)
  platform = configure(first)
  if first.share == 'batch':
    _check_shared_batch(sweep)
  # Only now: environments may hold arrays.
  tasks = {config: make_task(config) for config in sweep.configs}
  run_dir = first.run_dir or folders.default_folder(
    sweep, (task.name for task in tasks.values())
  )
  # Memory is checked with one seed first: the list of all runs may be too long.
  vectorized = first.vectorized
  if vectorized is None:
    vectorized = platform != 'cpu'

  def program_of(config: Any) -> compiled.Group:
    one = sweep._replace(configs=(config,), points=({},))
    with usage_errors():
      (program,) = _make_programs(one, {config: make_task(config)}, family)
    return program

  with usage_errors():  # such as a rule that does not fit the network
    check_memory(
      list(_make_programs(sweep, tasks, family)), first, platform, program_of
    )
    groups = list(make_groups(sweep, tasks, family))
    _check_peaks(groups, first, platform, vectorized, program_of)
  say_notes(sweep.configs)
  for note in dict.fromkeys(
    note for task in tasks.values() for note in getattr(task, 'notes', ())
  ):
    print(f'note: {note}', file=sys.stderr)
  recorded = sweep._replace(
    values=sweep.values | {'run_dir': (run_dir,), 'overwrite': (False,)}
  )
  compiled.run(
    groups,
    compiled.Options(
      run_dir=run_dir,
      open=functools.partial(
        folders.open_folder,
        recorded=recorded,
        derived={'rows': sum(group_.rows for group_ in groups)},
        overwrite=first.overwrite,
        ignore=WHERE,
      ),
      share=first.share,
      vectorized=vectorized,
      checkpoint_period_s=first.checkpoint_period_s,
      num_processes=first.num_processes,
      process_id=first.process_id,
      draw=functools.partial(_draw, title_of(run_dir)),
      track=Track(first.track),
    ),
    stop,
  )


def check(sweep: Sweep, family: Family) -> None:
  """Raises UsageError or RunError for options that do not go together.

  Args:
    sweep: as in `main`.
    family: the kind of runs.
  """
  first = sweep.configs[0]
  _check_processes(first)
  check_track(first)
  check_meant(sweep.configs)
  for config in sweep.configs:
    _check(config)
    family.check(config)
  check_lists(sweep)


def configure(config: SweepOptions) -> str:
  """Settles platform, devices and processes; returns the platform."""
  if config.num_processes > 1:
    devices.check_environment()
    # Before JAX starts, so that it knows of the other processes.
    if config.platform:
      jax.config.update('jax_platforms', config.platform)
    assert config.coordinator is not None
    processes.connect(
      config.coordinator, config.num_processes, config.process_id
    )
  # LAPACK's threads of all devices would wait for each other: singular values
  # took ten times as long. SciPy reads this when JAX loads it, which is later.
  os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
  # One device per core: programs this small gain nothing from more threads.
  return devices.configure(config.platform, cpu_devices=devices.cores())


def _check_processes(config: SweepOptions) -> None:
  if config.num_processes > 1 and config.coordinator is None:
    raise UsageError(
      f'--coordinator must be given with --num_processes='
      f'{config.num_processes}: HOST:PORT of process 0'
    )
  if config.process_id >= config.num_processes:
    raise UsageError(
      f'--process_id={config.process_id} must be below '
      f'--num_processes={config.num_processes}'
    )
  if config.num_processes > 1 and config.share == 'batch':
    raise UsageError(
      f'--share=batch must go with --num_processes=1, not '
      f'{config.num_processes}: processes share runs'
    )


def _check(config: SweepOptions) -> None:
  """Raises UsageError for options of a sweep that do not go together."""
  if config.seed + config.seeds > 2**32:
    refuse(config, 'seeds', f'leave --seed + --seeds below {2**32}')
  if config.seeds > 1 and config.share == 'batch':
    refuse(config, 'share', f'be runs where --seeds={config.seeds}')


def _check_shared_batch(sweep: Sweep) -> None:
  """Raises UsageError for a batch that the local devices cannot divide."""
  number = jax.local_device_count()
  for config in sweep.configs:
    if config.batch_size % number:
      refuse(
        config,
        'batch_size',
        f'be a multiple of the {number} devices here, for --share=batch',
      )


def make_groups(
  sweep: Sweep, tasks: Mapping[Any, Any], family: Family
) -> Iterator[compiled.Group]:
  """The programs of a sweep, each with the runs that it computes."""
  seeds = range(sweep.configs[0].seeds)
  for group_ in _make_programs(sweep, tasks, family):
    runs = [
      run._replace(seed=run.seed + i) for run in group_.runs for i in seeds
    ]
    yield dataclasses.replace(group_, runs=runs)


def _make_programs(
  sweep: Sweep, tasks: Mapping[Any, Any], family: Family
) -> Iterator[compiled.Group]:
  """The programs of a sweep, each with the runs of the first seed."""
  programs: dict[Any, list[int]] = {}
  for index, config in enumerate(sweep.configs):
    # Runs that agree in the rest are one program.
    rest = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    for name in traced(type(config)):
      del rest[name]
    programs.setdefault(tuple(rest.items()), []).append(index)
  for indices in programs.values():
    configs = [sweep.configs[index] for index in indices]
    with usage_errors():
      loop = family.make_loop(configs[0], tasks[configs[0]])
      settings = [family.settings(config, tasks[config]) for config in configs]
    yield compiled.Group(
      loop=loop,
      iterations=family.iterations(configs[0]),
      runs=[
        compiled.Run(sweep.points[index], configs[0].seed, numbers)
        for index, numbers in zip(indices, settings, strict=True)
      ],
      config=configs[0],
    )


# Record -> its program, for comparisons.
ProgramOf = Callable[[Any], compiled.Group]


def _memory_bytes(platform: str) -> float:
  """Memory of the local devices; infinite if it is unknown."""
  if platform == 'cpu':
    return devices.memory_bytes()
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  return sum(stat.get('bytes_limit', 0) for stat in stats) or math.inf


def _fallback(config: Any) -> str:
  """The option to name for a run that is too large at its defaults."""
  fallbacks = ('replay_capacity', 'projector_units')
  return next(name for name in fallbacks if hasattr(config, name))


def check_memory(
  programs: list[compiled.Group],
  config: SweepOptions,
  platform: str,
  program_of: ProgramOf | None = None,
) -> None:
  """Raises UsageError for a sweep whose runs the memory cannot hold at once.

  Args:
    programs: the programs, with the runs of one seed.
    config: has the numbers of seeds and processes.
    platform: the platform of the devices.
    program_of: finds the option that makes a run too large.
  """
  available = _memory_bytes(platform)
  if math.isinf(available):
    return
  for program in programs:
    one = program.run_bytes()
    # An iteration holds the states before and after it.
    most = int(memory.SHARE * available / (2 * one)) * config.num_processes
    combinations = len(program.runs)
    if combinations * config.seeds > most:
      need = f'{2 * one / 1e6:,.1f} MB each of {available / 1e9:,.1f} GB'
      if not most:
        found = program.config or config
        name = program_of and memory.heaviest(
          found, lambda other: program_of(other).run_bytes()
        )
        refuse(
          found,
          name or _fallback(found),
          'be so small, and the network too, that a run fits the memory: '
          f'{need}',
        )
      raise UsageError(
        f'--seeds={config.seeds} times {combinations} combinations are '
        f'{combinations * config.seeds} runs, and must be at most {most} to '
        f'fit the memory: {need}'
      )


def _check_peaks(
  groups: list[compiled.Group],
  config: SweepOptions,
  platform: str,
  vectorized: bool,
  program_of: ProgramOf,
) -> None:
  """Raises UsageError if an iteration exceeds the memory.

  Args:
    groups: the programs with all their runs.
    config: options that say how runs share the devices.
    platform: the platform of the devices.
    vectorized: whether a device computes its runs together.
    program_of: finds the option that makes an iteration too large.
  """

  def peak(program: compiled.Group, number: int) -> float:
    """The peak if processes share this number of runs."""
    each = -(-number // config.num_processes)
    runs = (list(program.runs) * each)[:each]
    return compiled.peak_nbytes(
      dataclasses.replace(program, runs=runs),
      share=config.share,
      vectorized=vectorized,
    )

  def peak_of(other: Any, number: int) -> float:
    return peak(program_of(other), number)

  available = _memory_bytes(platform)
  for group_ in groups:
    number = len(group_.runs)
    need = peak(group_, number)
    if need > memory.SHARE * available:
      heaviest = memory.heaviest(
        group_.config, functools.partial(peak_of, number=number)
      )
      refuse(
        group_.config,
        heaviest or _fallback(group_.config),
        'be so small that an iteration fits the memory: it takes '
        f'{memory.words(need, available)}',
      )


def _draw(title: str, folder: RunFolder) -> None:
  """Draws the metrics, if Matplotlib is installed."""
  flags_ = folder.read_flags()
  if flags_ is not None and running.can_draw():
    sweep_figures.draw(
      read_metrics(folder.metrics),
      flags_,
      str(folder.curve.with_suffix('')),
      title=title,
      look=sweep_figures.Look(periodic=twins.with_period()),
    )
