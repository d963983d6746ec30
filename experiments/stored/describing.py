"""Folders of runs in words: what was run, how far it is, how to run it again.

Folders are only read, without their locks, and runs may be going on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import datetime
import pathlib
import shlex
from typing import Any, NamedTuple

import numpy as np

from experiments import launchers, status
from experiments.config import reading
from experiments.config.declaring import complete
from experiments.engines.sweep_folders import SweepFolder, folders_of
from experiments.stored import finding
from siamrl.report.loading import OF_FOLDERS
from siamrl.report.metrics import RUN_COLUMN
from siamrl.report.results import read_results
from siamrl.report.run_folder import RunFolder, read_json

# Folders below a path that are searched, as by `siamrl.report.load`.
_DEPTH = 3
_MOST_VALUES = 12


class Part(NamedTuple):
  """A path that a report is about.

  Attributes:
    path: the path as it was given.
    kind: what it is, in words.
    launcher: its launcher; '' if it is unknown, or there are several.
    swept: the flags in which its runs differ, with their values in words.
    shared: the flags that all its runs share and that differ from their
      defaults; of a results file all that it records.
  """

  path: str
  kind: str
  launcher: str
  swept: dict[str, str]
  shared: dict[str, str]


class Home(NamedTuple):
  """The folder of a sweep of cells, or of a run or compiled sweep.

  Attributes:
    path: the folder.
    sweep: the sweep, if it is one.
    runs: the run folders in it.
  """

  path: pathlib.Path
  sweep: SweepFolder | None
  runs: list[RunFolder]


def homes(path: pathlib.Path, depth: int = _DEPTH) -> Iterator[Home]:
  """Finds the sweeps and runs at a path, in order."""
  if path.is_file() and path == RunFolder(path.parent).metrics:
    path = path.parent
  if not path.is_dir():
    return
  sweep = SweepFolder(path)
  if sweep.is_one():
    cells = sweep.cells()
    runs = [run for name in cells for run in folders_of(sweep.run(name).path)]
    yield Home(path, sweep, runs)
    return
  own = RunFolder(path)
  if own.read_flags() is not None:
    yield Home(path, None, [own])
  elif depth:
    for child in sorted(path.iterdir()):
      if child.is_dir() and not child.name.startswith('.'):
        yield from homes(child, depth - 1)


def describe(path: str, found: Sequence[Home]) -> Part:
  """Describes what was run.

  Args:
    path: the path.
    found: the sweeps and runs there.
  """
  runs = [run for home in found for run in home.runs]
  if not found:
    return _describe_file(path)
  known = {launcher for home in found for launcher in _launchers(home)}
  launcher = known.pop() if len(known) == 1 else ''
  flags_of = [run.read_flags() or {} for run in runs]
  defaults: Mapping[str, str] = {}
  if launcher:
    kind = complete(launchers.options_of(launcher))
    defaults = reading.as_flags(kind())
    flags_of = [reading.now(kind, flags) for flags in flags_of]
  swept, shared = {}, {}
  for name in sorted(
    {name for flags in flags_of for name in flags} - OF_FOLDERS
  ):
    values = dict.fromkeys(
      value
      for flags in flags_of
      for value in flags.get(name, 'not given').split(',')
    )
    if len(values) > 1:
      swept[name] = _listed(values)
    elif next(iter(values)) != defaults.get(name):
      shared[name] = next(iter(values))
  seeds = dict.fromkeys(seed for flags in flags_of for seed in _seeds(flags))
  if seeds:
    swept['seed'] = _listed(sorted(seeds, key=lambda text: (len(text), text)))
  return Part(path, _kind(found, runs), launcher, swept, shared)


def _describe_file(path: str) -> Part:
  """Describes a results file."""
  table, flags = read_results(path)
  names = list(table)
  swept = {}
  if RUN_COLUMN in names:
    for name in names[: names.index(RUN_COLUMN) + 1]:
      found = np.unique(table[name]).tolist()
      swept[name] = _listed(
        f'{v:.10g}' if isinstance(v, float) else str(v)
        for v in found
        if v == v and v != ''
      )
  return Part(path, 'results file', '', swept, dict(sorted(flags.items())))


def _launchers(home: Home) -> set[str]:
  if home.sweep is not None:
    try:
      name = read_json(home.path / 'sweep.json')['launcher']
    except (OSError, ValueError, LookupError, TypeError):
      return set()
    return {name} if name in launchers.NAMES else set()
  return {_launcher(run) for run in home.runs}


def _launcher(run: RunFolder) -> str:
  return finding.launcher_of(
    finding.known_options(run) or run.read_flags() or {}
  )


def _kind(found: Sequence[Home], runs: Sequence[RunFolder]) -> str:
  cells = [len(home.sweep.cells()) for home in found if home.sweep is not None]
  if cells:
    return f'{_count(sum(cells), "cell")} of {_count(len(cells), "sweep")}'
  return _count(len(runs), 'run folder')


def _count(number: int, noun: str) -> str:
  return f'{number} {noun}' if number == 1 else f'{number:,} {noun}s'


def _listed(values: Iterable[str]) -> str:
  found = list(values)
  text = ', '.join(found[:_MOST_VALUES])
  more = len(found) - _MOST_VALUES
  return f'{text} and {more} more' if more > 0 else text


def _seeds(flags: Mapping[str, str]) -> list[str]:
  """The seeds of a folder."""
  try:
    first, number = int(flags['seed']), int(flags.get('seeds', '1'))
  except (LookupError, ValueError):
    return []
  return [str(seed) for seed in range(first, first + min(number, 10_000))]


def states(found: Iterable[Home]) -> list[status.Line]:
  """The state of each cell and run."""
  return [line for home in found for line in status.look([str(home.path)])]


def commands(found: Iterable[Home]) -> dict[str, list[str]]:
  """The commands that run each cell or run again in another folder.

  Returns:
    By the name of a cell or run: one with its arguments, if a sweep recorded
    them, and one with its flag file, if there is one.
  """
  result: dict[str, list[str]] = {}
  for home in found:
    of_sweep = {}
    if home.sweep is not None:
      of_sweep = home.sweep.cells()
      (launcher,) = _launchers(home) or {''}
    for name, cell in of_sweep.items():
      arguments = cell.get('arguments', []) if launcher else []
      lines = [_command(launcher, *arguments, name=name)] if launcher else []
      for run in folders_of(home.sweep.run(name).path) if home.sweep else []:
        again = run.path.relative_to(home.path)
        lines.append(_from_flags(run, str(again), launcher))
      result[_unused(result, name, home.path)] = lines
    if home.sweep is None:
      for run in home.runs:
        name = run.path.name or str(run.path.resolve().name)
        lines = [_from_flags(run, name)]
        result[_unused(result, name, home.path)] = lines
  return result


def _unused(names: Iterable[str], name: str, path: pathlib.Path) -> str:
  return str(path / name) if name in names else name


def _from_flags(run: RunFolder, name: str, launcher: str = '') -> str:
  return _command(
    launcher or _launcher(run), f'--flagfile={run.flags}', name=name
  )


def _command(launcher: str, *arguments: str, name: str) -> str:
  words = [*map(str, arguments), f'--run_dir=again/{name}']
  text = ' \\\n    '.join(map(shlex.quote, words))
  return f'python -m experiments.{launcher} {text}'


def versions(runs: Iterable[RunFolder]) -> list[dict[str, Any]]:
  """The versions, machines and dates of runs, one record for equal ones.

  Returns:
    Records with `runs`, the number of run folders, and `facts`, words by name.
  """
  found: dict[tuple[tuple[str, str], ...], list[list[str]]] = {}
  for run in runs:
    try:
      starts = read_json(run.versions)
      facts = {str(n): str(value) for n, value in starts[-1].items()}
      times = [str(start['time']) for start in starts]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
      facts, times = {'versions': 'not recorded'}, []
    facts.pop('time', None)
    found.setdefault(tuple(facts.items()), []).append([*times, *_ended(run)])
  records = []
  for key, dates in found.items():
    every = sorted(date for each in dates for date in each)
    when = {'first start': every[0], 'newest row': every[-1]} if every else {}
    records.append({'runs': len(dates), 'facts': when | dict(key)})
  return records


def _ended(run: RunFolder) -> list[str]:
  """The time of the newest row, as versions.json writes times."""
  try:
    seconds = run.metrics.stat().st_mtime
  except OSError:
    return []
  time = datetime.datetime.fromtimestamp(seconds).astimezone()
  return [time.isoformat(timespec='seconds')]


def has_rows(home: Home) -> bool:
  """Whether there may be rows of metrics."""
  return any(run.metrics.exists() or run.shards.exists() for run in home.runs)
