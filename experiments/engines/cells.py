"""Cells of a sweep: what each process of it computes.

A cell is one command line of a launcher, with a run folder of its own that is
named after its values. Where a launcher compiles, runs that differ only in
numbers, and the seeds, share a cell; elsewhere each run has its own.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import difflib
import functools
from typing import Any, NamedTuple

from experiments.config import users
from experiments.config.declaring import (
  RunError,
  UsageError,
  as_text,
  complete,
  options_of,
)
from experiments.config.meaning import dropped, traced
from experiments.config.reading import Sweep, sweep_from_arguments
from experiments.config.sweep_files import SweepFile
from siamrl.report.run_folder import folder_name
from siamrl.report.loading import OF_FOLDERS

# The name of a cell that has no values of its own.
ALL = 'all'


class Cell(NamedTuple):
  """A cell.

  Attributes:
    name: its folder, relative to that of the sweep.
    launcher: the module of `experiments` that trains it.
    arguments: the arguments of the launcher, without --run_dir.
    point: its arm, its values of axes and its seed, as text.
    options: every option that is not at its default, with its value or list.
  """

  name: str
  launcher: str
  arguments: tuple[str, ...]
  point: dict[str, str]
  options: dict[str, str]


def make_cells(
  file: SweepFile,
  options_of_launcher: Callable[[str], type],
  compiles: Callable[[str, Any], bool],
  check: Callable[[str, Sweep], None],
) -> list[Cell]:
  """The cells of a sweep, in the order of its file.

  Args:
    file: the sweep file.
    options_of_launcher: launcher -> its record of options.
    compiles: (launcher, such a record) -> whether a process computes many runs
      at once.
    check: (launcher, runs of a cell) -> None; refuses them as the launcher
      would.

  Raises:
    UsageError: an axis is no option of the launcher, a value is not allowed,
      or two cells are the same runs.
    RunError: a package that runs need is not installed.
  """
  cells: list[Cell] = []
  used: set[str] = set()
  unchecked: list[tuple[str, Sweep]] = []
  for arm, (launcher, _) in file.arms.items():
    cls = options_of_launcher(launcher)
    many = functools.partial(compiles, launcher)
    with _errors(file, arm):
      cells += _of_arm(file, arm, cls, many, used, unchecked)
  for name in file.axes:
    if name not in used:
      raise UsageError(
        f'--sweep={file.path}: [axes] {name} means nothing to these runs'
      )
  seen: dict[tuple[Any, ...], str] = {}
  for cell in cells:
    key = (cell.launcher, *sorted(cell.options.items()))
    if key in seen:
      raise UsageError(
        f'--sweep={file.path}: {seen[key]} and {cell.name} are the same runs'
      )
    seen[key] = cell.name
  for arm, runs in unchecked:
    with _errors(file, arm):
      check(file.arms[arm][0], runs)
  return cells


@contextlib.contextmanager
def _errors(file: SweepFile, arm: str) -> Iterator[None]:
  """Lets errors name the sweep file and the arm."""
  try:
    yield
  except (UsageError, RunError) as error:
    place = f', arm {arm}' if arm else ''
    raise type(error)(f'--sweep={file.path}{place}: {error}') from error


def _of_arm(
  file: SweepFile,
  arm: str,
  cls: type,
  compiles: Callable[[Any], bool],
  used: set[str],
  unchecked: list[tuple[str, Sweep]],
) -> Iterator[Cell]:
  """The cells of an arm.

  Adds to `used` the axes that mean something, and to `unchecked` the runs of
  cells.
  """
  launcher, extra = file.arms[arm]
  base = [*file.flags, *extra]
  users.load(base)
  names = _check_axes(file, launcher, complete(cls))
  lists = [f'--{name}={",".join(file.axes[name])}' for name in file.axes]
  sweep = sweep_from_arguments(cls, *base, *lists)
  configs = sweep.configs
  together = all(map(compiles, configs))
  shared: set[str] = set()
  axes = list(file.axes)
  if together:
    shared = set(traced(type(configs[0]))) - set(file.split)
  else:  # lists in flags would be several runs, of which a cell has one
    axes = list(dict.fromkeys([*axes, *sweep.axes]))
    base += ['--also='] if sweep.values.get('also', (None,))[0] else []
  groups: dict[tuple[tuple[str, str], ...], list[Any]] = {}
  for config in configs:
    idle = set(dropped(config))
    meant = [name for name in axes if name not in idle]
    used.update(meant)
    key = tuple(
      (name, as_text(getattr(config, name)))
      for name in meant
      if name not in shared and getattr(config, name) is not None
    )
    groups.setdefault(key, []).append(config)
  of_arm = {'arm': arm} if arm else {}
  seeds = _seeds(file, configs[0], names, together)
  for key, members in groups.items():
    # Seeds differ in nothing that can be refused.
    first = next(iter(seeds.values()))
    unchecked.append((arm, _runs_of(file, sweep, members, first, shared)))
    for seed, arguments in seeds.items():
      values = dict(key) | ({} if seed is None else {'seed': str(seed)})
      name = folder_name(values) if values else ''
      own = [f'--{axis}={value}' for axis, value in key]
      yield Cell(
        name='/'.join(filter(None, (arm, name))) or ALL,
        launcher=launcher,
        arguments=(*base, *own, *_lists(file, shared, members), *arguments),
        point=of_arm | values,
        options=_options(members, seed, arguments),
      )


def _check_axes(file: SweepFile, launcher: str, cls: type) -> list[str]:
  """Raises UsageError unless all axes are options that may be swept."""
  about = {field.name: field for field, _ in options_of(cls)}
  for name in file.axes:
    field = about.get(name)
    if field is None:
      close = difflib.get_close_matches(name, about, cutoff=0.5)
      hint = f'; the closest are {", ".join(close)}' if close else ''
      raise UsageError(
        f'[axes] {name} is no flag of experiments.{launcher}{hint}'
      )
    if field.metadata['single']:
      instead = '; "seeds" has their number' if name == 'seed' else ''
      raise UsageError(f'[axes] {name} takes one value for all runs{instead}')
  return list(about)


def _runs_of(
  file: SweepFile,
  sweep: Sweep,
  members: Sequence[Any],
  arguments: Sequence[str],
  shared: Collection[str],
) -> Sweep:
  """The runs of a cell, as its launcher reads them from its arguments.

  Args:
    file: the sweep file.
    sweep: all runs of the cell's arm.
    members: those of the cell.
    arguments: the arguments of its seeds.
    shared: the axes of which a cell has several values; empty where it has
      one run.
  """
  axes = {}
  if shared:
    meant = {n for n in shared for each in members if n not in dropped(each)}
    axes = {
      name: values
      for name, values in sweep.axes.items()
      if name not in file.axes or name in meant
    }
  seeds = {name: int(value) for name, value in _named(arguments).items()}
  return Sweep(
    tuple(dataclasses.replace(each, **seeds) for each in members),
    tuple({name: getattr(each, name) for name in axes} for each in members),
    sweep.values | {name: (value,) for name, value in seeds.items()},
    axes,
  )


def _named(arguments: Sequence[str]) -> dict[str, str]:
  return dict(text.removeprefix('--').split('=', 1) for text in arguments)


def _lists(
  file: SweepFile, shared: Any, members: Sequence[Any]
) -> Iterator[str]:
  """The arguments of axes that a cell computes all values of."""
  for name in file.axes:
    if name in shared:
      meant = [each for each in members if name not in dropped(each)]
      values = dict.fromkeys(as_text(getattr(each, name)) for each in meant)
      if values:
        yield f'--{name}={",".join(values)}'


def _seeds(
  file: SweepFile, config: Any, names: Sequence[str], together: bool
) -> dict[int | None, list[str]]:
  """Seed of a cell, None if it has them all -> arguments."""
  number = file.seeds
  if number is None and not together:
    number = getattr(config, 'seeds', 1)
    number = number if number > 1 else None
  if number is None:
    return {None: []}
  if 'seed' not in names:
    raise UsageError(f'seeds = {number}: these runs have no seed')
  if together and 'seeds' in names and 'seed' not in file.split:
    return {None: [f'--seeds={number}']}
  alone = ['--seeds=1'] if 'seeds' in names else []
  return {
    seed: [f'--seed={seed}', *alone]
    for seed in range(config.seed, config.seed + number)
  }


def _options(
  members: Sequence[Any], seed: int | None, arguments: Sequence[str]
) -> dict[str, str]:
  """The options of a cell that are not at their defaults."""
  result = {}
  for field, _ in options_of(type(members[0])):
    if field.name in OF_FOLDERS:
      continue
    values = dict.fromkeys(getattr(each, field.name) for each in members)
    if list(values) != [field.default]:
      result[field.name] = ','.join(map(as_text, values))
  given = _named(arguments)
  first = members[0]
  for name in ('seed', 'seeds'):
    if hasattr(first, name):
      result[name] = given.get(name, as_text(getattr(first, name)))
  return result


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
  """Differences between two cells of one name, a few words each."""
  return [
    f'--{name}: {before.get(name, "(default)")} in the folder, '
    f'{now.get(name, "(default)")} now'
    for name in sorted(before.keys() | now.keys())
    if before.get(name) != now.get(name)
  ]
