"""Runs beside each other: which are seeds of one another, and their means."""

from collections.abc import Mapping, Sequence
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from experiments.config.declaring import RunError, UsageError, as_text
from experiments.config.paths import split_paths
from experiments.engines.sweep_folders import SweepFolder, folders_of
from siamrl.report.arrangement import FOREMOST
from siamrl.report.loading import FOLDER_COLUMN, OF_FOLDERS, load
from siamrl.report.metrics import (
  RUN_COLUMN,
  Table,
  group_rows,
  is_wall_clock,
)
from siamrl.report.results import read_results
from siamrl.report.run_folder import RunFolder
from siamrl.report.sweep import swept

_ABSENT = '(absent)'
_DEPTH = 3  # of folders inside that of a sweep


class Source(NamedTuple):
  """A run that `--runs` names.

  Attributes:
    path: the folder or the results file.
    name: a short one.
    table: [R] arrays by column.
    flags: by name.
    is_folder: whether it is a run's folder.
  """

  path: pathlib.Path
  name: str
  table: Table
  flags: dict[str, str]
  is_folder: bool


def read_sources(names: str) -> list[Source]:
  """Reads all of `--runs`.

  Args:
    names: folders and results files, with commas between them. A folder that
      is not that of a run stands for the runs inside it.

  Raises:
    UsageError: one of them is neither, or a run is there twice.
    RunError: there are no rows yet, or a file is damaged.
  """
  given = [_folder_of(pathlib.Path(name)) for name in split_paths(names)]
  paths = [folder for path in given for folder in _inside(path)]
  seen: dict[tuple[int, int], pathlib.Path] = {}
  for path in paths:
    if not path.exists() or (
      path.is_dir()
      and RunFolder(path).read_flags() is None
      and not SweepFolder(path).is_one()
    ):
      raise UsageError(
        f'--runs={path} must be the folder of a run or a results file'
      )
    status = os.stat(path)
    other = seen.setdefault((status.st_dev, status.st_ino), path)
    if other is not path:
      _refuse_twice(names, other, path)
  sources = [
    _read_sweep(path) if SweepFolder(path).is_one() else _read(path)
    for path in paths
  ]
  for number, source in enumerate(sources):
    for other_source in sources[:number]:
      if _are_one(other_source, source):
        _refuse_twice(names, other_source.path, source.path)
  return sources


def _folder_of(path: pathlib.Path) -> pathlib.Path:
  """The folder of a run for its metrics.csv, otherwise the path."""
  if (
    path == RunFolder(path.parent).metrics
    and RunFolder(path.parent).read_flags() is not None
  ):
    return path.parent
  return path


def _inside(path: pathlib.Path) -> list[pathlib.Path]:
  """The folders of runs in the folder of a sweep on the host, or the path."""
  if not path.is_dir() or RunFolder(path).read_flags() is not None:
    return [path]
  if SweepFolder(path).is_one():
    return [path]
  flags_ = RunFolder(path).flags.name
  found = [
    file.parent
    for depth in range(1, _DEPTH + 1)
    for file in sorted(path.glob('*/' * depth + flags_))
  ]
  return found or [path]


def _refuse_twice(names: str, one: pathlib.Path, other: pathlib.Path) -> None:
  raise UsageError(
    f'--runs={names} must name each run once: {one} and {other} are the same'
  )


def _read(path: pathlib.Path) -> Source:
  try:
    table, flags = read_results(path)
  except FileNotFoundError as error:
    raise RunError(f'{path} has no rows of metrics yet') from error
  except ValueError as error:
    raise RunError(f'--runs={error}') from error
  if not len(next(iter(table.values()), ())):
    raise RunError(f'{path} has no rows of metrics yet')
  if path.is_dir():
    return Source(path, path.resolve().name, table, flags, True)
  # The settings and the seed of a results file with one run are flags like any
  # others.
  name = path.stem.removesuffix('-curves')
  if RUN_COLUMN in table:
    settings = [*swept(table, flags), RUN_COLUMN]
    runs = group_rows(table, settings)
    if len(runs) == 1:
      values = zip(settings, *runs, strict=True)
      flags = flags | {n: as_text(v) for n, v in values if v is not None}
  return Source(path, name, table, flags, False)


def _read_sweep(path: pathlib.Path) -> Source:
  """Reads the cells of a sweep as one table, with their values as columns."""
  try:
    table = load(path, frame='numpy')
  except ValueError as error:
    raise RunError(f'{path} has no rows of metrics yet') from error
  del table[FOLDER_COLUMN]
  folder = SweepFolder(path)
  flags = [
    run.read_flags() or {}
    for name in folder.cells()
    for run in folders_of(folder.run(name).path)
  ]
  shared = {
    name: value
    for name, value in flags[0].items()
    if name not in table and all(f.get(name) == value for f in flags)
  }
  return Source(path, path.resolve().name, table, shared, True)


def _are_one(one: Source, other: Source) -> bool:
  """Whether two folders hold the same run: a copy, or begun again elsewhere.

  A seed gives the same rows each time on one device.
  """
  if RUN_COLUMN not in one.flags or RUN_COLUMN not in other.flags:
    return False
  if _identity(one.flags) != _identity(other.flags) or (
    one.flags[RUN_COLUMN] != other.flags[RUN_COLUMN]
  ):
    return False
  names = [name for name in one.table if not is_wall_clock(name)]
  if set(names) != {n for n in other.table if not is_wall_clock(n)}:
    return False
  rows = min(len(one.table[names[0]]), len(other.table[names[0]]))
  return all(
    np.array_equal(
      one.table[name][:rows],
      other.table[name][:rows],
      equal_nan=one.table[name].dtype.kind == 'f'
      and other.table[name].dtype.kind == 'f',
    )
    for name in names
  )


def _identity(flags: Mapping[str, str]) -> dict[str, str]:
  """The flags that say which configuration a run has."""
  return {n: value for n, value in flags.items() if n not in OF_FOLDERS}


def configurations(sources: Sequence[Source]) -> dict[str, list[int]]:
  """Which runs are seeds of one another.

  Args:
    sources: the runs.

  Returns:
    Their indices by what tells a configuration from the others: flags in words;
    '' where there is one only.
  """
  groups: dict[tuple, list[int]] = {}
  for number, source in enumerate(sources):
    key = tuple(sorted(_identity(source.flags).items()))
    groups.setdefault(key, []).append(number)
  known = [dict(key) for key in groups]
  differing = differences(sources)
  # As few flags as tell all apart, but the foremost in any case.
  names: list[str] = [name for name in differing if name in FOREMOST]
  for name in differing:
    if len({tuple(k.get(n) for n in names) for k in known}) == len(known):
      break
    if name not in names:
      names.append(name)
  return {
    ', '.join(f'{n}={k.get(n, _ABSENT)}' for n in names): members
    for k, members in zip(known, groups.values(), strict=True)
  }


def differences(sources: Sequence[Source]) -> list[str]:
  """The flags in which runs differ, but for seeds and places."""
  known = [_identity(source.flags) for source in sources]
  names = list(dict.fromkeys([*FOREMOST, *sorted(set().union(*known))]))
  return [n for n in names if len({k.get(n) for k in known}) > 1]


def names(found: Sequence[Source]) -> list[str]:
  """The names of runs; folders of one name are told apart by their paths."""
  short = [source.name for source in found]
  if len(set(short)) < len(short):
    short = [str(source.path) for source in found]
  return short


def only(config: Any, found: Sequence[Source], what: str) -> Source:
  """The one source that there may be of a sweep or of the lab."""
  if len(found) > 1:
    raise UsageError(
      f'--runs={config.runs} must be one folder where it is of {what}'
    )
  return found[0]


def refuse(config: Any, what: str, *options: str) -> None:
  """Raises UsageError for options that mean nothing to these runs."""
  for name in options:
    if getattr(config, name) is not None:
      raise UsageError(f'--{name} must not be given for runs {what}')
