"""The run that a folder holds: its launcher, its options and its checkpoints.

Folders are only read, without their lock, and runs may be going on.
"""

from collections.abc import Iterable, Iterator, Mapping
import json
import pathlib
from typing import Any, NamedTuple

from experiments import classic, control, launchers, minatar
from experiments.config import reading, users
from experiments.config.declaring import (
  RunError,
  UsageError,
  complete,
  options_of,
)
from experiments.engines import compiled, sweeps
from experiments.families import actor_critic, q
from experiments.families import siamese as siamese_family
from experiments.suites import images
from siamrl.report.run_folder import RunFolder, read_file

# The lab keeps no folders.
_LAUNCHERS = tuple(name for name in launchers.NAMES if name != 'lab')
_COMPILED: dict[str, tuple[Any, Any]] = {
  'classic': (classic.make_task, q.FAMILY),
  'control': (control.make_task, actor_critic.FAMILY),
  'minatar': (minatar.make_task, q.FAMILY),
  'siamese': (images.make_task, siamese_family.FAMILY),
}
# Runs of a sweep that an error lists.
_MOST_LISTED = 6


class StoredRun(NamedTuple):
  """One run in a folder.

  Attributes:
    folder: the folder.
    launcher: the name of the launcher.
    config: its options.
    seed: its seed.
    point: its values of the swept options.
    checkpoints: the directory of its checkpoints.
    place: its number among the runs in a checkpoint; None where each run has
      checkpoints of its own.
    loop: the loop of a compiled run, else None.
    settings: the numbers of a compiled run.
  """

  folder: RunFolder
  launcher: str
  config: Any
  seed: int
  point: Mapping[str, Any]
  checkpoints: pathlib.Path
  place: int | None = None
  loop: Any = None
  settings: Mapping[str, Any] | None = None

  @property
  def is_compiled(self) -> bool:
    """Whether its environment is compiled with it."""
    return self.loop is not None

  @property
  def words(self) -> str:
    """The values that tell it from the others of a sweep."""
    return str(compiled.Run(self.point, self.seed, {}))


def find_run(path: str, choice: str | None = None) -> StoredRun:
  """Finds a run, without reading its checkpoints.

  Args:
    path: the folder of a run or of a compiled sweep.
    choice: the run of a sweep: its number, or its values and seed, such as
      'tau=0.1,seed=2'; None where there is one run only.

  Raises:
    UsageError: it is not such a folder, or the choice is not that of one run.
    RunError: the flags cannot be read.
  """
  folder = RunFolder(path)
  flags = folder.read_flags()
  if flags is None:
    raise UsageError(_no_folder(folder))
  launcher, sweep = _read_sweep(folder, flags)
  if launchers.compiles(launcher, sweep.configs[0]):
    runs = list(_compiled_runs(folder, launcher, sweep))
  else:
    config = sweep.configs[0]
    seed = getattr(config, 'seed', 0)
    runs = [StoredRun(folder, launcher, config, seed, {}, folder.checkpoints)]
  return _choose(folder, runs, choice)


def _no_folder(folder: RunFolder) -> str:
  """The error about a folder that holds no run itself."""
  text = f'{folder.path}: not the folder of a run'
  if folder.path.is_dir():
    inside = [
      child.name
      for child in sorted(folder.path.iterdir())
      if child.is_dir() and RunFolder(child).read_flags() is not None
    ]
    if inside:
      more = ' ...' if len(inside) > _MOST_LISTED else ''
      text += f', but it holds some: {"; ".join(inside[:_MOST_LISTED])}{more}'
  return text


def _read_sweep(
  folder: RunFolder, flags: Mapping[str, str]
) -> tuple[str, reading.Sweep]:
  """Finds the launcher whose options these are, and its runs."""
  users.load([f'--{name}={flags[name]}' for name in flags if name == _USER])
  launcher = launcher_of(known_options(folder) or flags)
  kind = launchers.options_of(launcher)
  try:
    current = reading.now(complete(kind), flags)
    arguments = [f'--{name}={text}' for name, text in current.items()]
    return launcher, reading.sweep_from_arguments(kind, *arguments)
  except UsageError as error:
    raise RunError(f'{folder.flags}: {error}') from error


_USER = 'user_file'


def launcher_of(names: Iterable[str]) -> str:
  """The launcher whose options are most like those that a run knew of."""
  given, unlike = set(names), {}
  for launcher in _LAUNCHERS:
    kind = complete(launchers.options_of(launcher))
    known = {field.name for field, _ in options_of(kind)}
    unlike[launcher] = len(given - known), len(known - given)
  return min(unlike, key=lambda name: unlike[name])


def known_options(folder: RunFolder) -> set[str]:
  """Returns the options that the run knew of; none if they are unreadable."""
  try:
    return set(json.loads(read_file(folder.config))) - {'derived'}
  except (OSError, ValueError, TypeError, RecursionError):
    return set()


def _compiled_runs(
  folder: RunFolder, launcher: str, sweep: reading.Sweep
) -> Iterator[StoredRun]:
  """The runs of all programs, in the order of the rows."""
  make_task, family = _COMPILED[launcher]
  tasks = {config: make_task(config) for config in sweep.configs}
  processes = sweep.configs[0].num_processes
  programs = [0] * processes  # of each process, so far
  configs = {
    tuple(point.items()): config
    for config, point in zip(sweep.configs, sweep.points, strict=True)
  }
  for group in sweeps.make_groups(sweep, tasks, family):
    for number, run in enumerate(group.runs):
      process, index = number % processes, number // processes
      home = folder if processes == 1 else folder.shard(process)
      yield StoredRun(
        folder,
        launcher,
        configs[tuple(run.point.items())],
        run.seed,
        run.point,
        home.checkpoints / f'{programs[process]:03}',
        index,
        group.loop,
        run.settings,
      )
    for process in range(min(processes, len(group.runs))):
      programs[process] += 1


def _choose(
  folder: RunFolder, runs: list[StoredRun], choice: str | None
) -> StoredRun:
  """The run that is asked for."""
  if choice is None:
    found = runs
  elif choice.isdecimal():
    found = runs[int(choice) :][:1]
  else:
    wanted = dict(part.partition('=')[::2] for part in choice.split(','))
    found = [run for run in runs if _fits(run, wanted)]
  if len(found) == 1:
    return found[0]
  listed = [f'{number}: {run.words}' for number, run in enumerate(runs)]
  if len(listed) > _MOST_LISTED:
    listed = [*listed[: _MOST_LISTED - 1], '...', listed[-1]]
  given = 'must be given' if choice is None else f'is {choice}'
  raise UsageError(
    f'--run {given}, and must be that of one of the {len(runs)} runs in '
    f'{folder.path}, by number or values: {"; ".join(listed)}'
  )


def _fits(run: StoredRun, wanted: Mapping[str, str]) -> bool:
  """Whether a run has the values that are wanted."""
  values = {**compiled.cells(run.point), 'seed': run.seed}
  return all(
    name.strip() in values
    and _same(values[name.strip()], text.strip().removeprefix('--'))
    for name, text in wanted.items()
  )


def _same(value: Any, text: str) -> bool:
  """Whether a value is the one that a text names, such as 0.10 for 0.1."""
  if isinstance(value, str):
    return text in (value, value.strip('[]'))
  try:
    return value is not None and float(text) == float(value)
  except ValueError:
    return False
