"""Shows how far runs are: of sweeps, of folders of runs, and single ones.

  python -m experiments.status runs/periods runs/pong-dqn-0

shows each cell with its state, its progress, its rate, the time that is left,
its newest return, and the last lines of those that failed. Where a cell
computes several runs together, the return is their mean at the newest clock at
which all of them have one, and their number follows it. In a terminal it
refreshes until nothing is in flight, or until Ctrl-C; elsewhere, or with
--once, it is shown once. --json prints one JSON object instead.

A state is one of: waiting, in flight, done, cut (it resumes), failed. In flight
is what holds the lock of its folder, and what a sweep that is going on has
started; on a file system without shared locks, cells of other machines are
shown as cut until they are done. The rate is that since the start of the run or
its attempt, in rows of metrics per hour.

Exit codes: 0, even if cells failed; 2 for invalid flags, 1 for a folder without
runs, 130 after Ctrl-C.
"""

from collections.abc import Iterator, Sequence
import collections
import dataclasses
import json
import pathlib
import sys
import time
from typing import Any, NamedTuple

from experiments.config.declaring import (
  POSITIVE,
  RunError,
  UsageError,
  option,
  path_option,
)
from experiments.config.executing import run
from experiments.config.paths import split_paths
from experiments.engines.sweep_folders import (
  Record,
  State,
  SweepFolder,
  folders_of,
)
from siamrl.report.glances import Glance, glance
from siamrl.report.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class StatusConfig:
  """The options."""

  folders: str | None = path_option(
    None,
    'Folders of sweeps and runs, separated by commas; or after the flags, '
    'without a name, separated by spaces.',
    several=True,
  )
  json: bool = option(False, 'Print one JSON object.')
  once: bool = option(False, 'Show the state once, in a terminal too.')
  period_s: float = option(2.0, 'Seconds between two views.', POSITIVE)


class Line(NamedTuple):
  """A cell or a run.

  Attributes:
    folder: the folder that was asked for.
    name: the cell; '' for the folder itself.
    state: one of `State`.
    progress: rows divided by all rows; None if their number is unknown.
    rows: rows of metrics.
    all_rows: rows of finished runs; None if unknown.
    rows_per_h: rate; None if unknown.
    left_s: time left, seconds; None if unknown or nothing runs.
    mean: newest return, or loss where nothing is played, the mean over the
      runs that are computed together; None if there is none.
    runs: the number of runs of `mean`.
    column: the column of `mean`.
    attempts: attempts since it last got further; 0 if no sweep started it.
    exit_code: that of the last attempt; None if there is none.
    peak_bytes: most memory of the last attempt; None if unknown.
    lines: the last lines of a cell that failed.
  """

  folder: str
  name: str
  state: State
  progress: float | None
  rows: int
  all_rows: int | None
  rows_per_h: float | None
  left_s: float | None
  mean: float | None
  runs: int
  column: str
  attempts: int
  exit_code: int | None
  peak_bytes: int | None
  lines: tuple[str, ...]


def main(config: StatusConfig) -> None:
  """Shows the folders."""
  if not config.folders:
    raise UsageError('a folder must be given')
  paths = split_paths(config.folders)
  if config.json:
    print(json.dumps(_as_json(look(paths)), indent=1))
  elif config.once or not sys.stdout.isatty():
    for text in words(look(paths)):
      print(text)
  else:
    _refresh(paths, config.period_s)


def look(paths: Sequence[str]) -> list[Line]:
  """The state of all cells and runs in some folders.

  Raises:
    RunError: a folder has no runs.
  """
  return [line for path in paths for line in _lines(path)]


def _lines(path: str) -> Iterator[Line]:
  folder = SweepFolder(path)
  if folder.is_one():
    for name in folder.cells():
      yield _line(path, name, folder)
    return
  runs = folders_of(pathlib.Path(path))
  if not runs:
    raise RunError(f'{path} is no folder of runs, and holds none')
  for run_ in runs:
    name = '' if run_.path == pathlib.Path(path) else run_.path.name
    yield _of_run(path, name, run_, None, _state(run_))


def _state(folder: RunFolder) -> State:
  """The state of a run that no sweep started."""
  if folder.in_use():
    return State.IN_FLIGHT
  seen = glance(folder)
  finished = seen.all_rows is not None and seen.rows >= seen.all_rows
  return State.DONE if finished else State.CUT


def _line(path: str, name: str, folder: SweepFolder) -> Line:
  state, record = folder.state(name), folder.record(name)
  inside = folders_of(folder.run(name).path)
  return _of_run(path, name, inside or folder.run(name), record, state)


def _of_run(
  path: str,
  name: str,
  folder: RunFolder | Sequence[RunFolder],
  record: Record | None,
  state: State,
) -> Line:
  """A line of what the files say."""
  folders = [folder] if isinstance(folder, RunFolder) else folder
  seen = [glance(each) for each in folders]
  rows = sum(each.rows for each in seen)
  totals = [each.all_rows for each in seen]
  all_rows = None if None in totals else sum(filter(None, totals)) or None
  rate = _rate(seen, rows, record)
  left = None
  if state == State.IN_FLIGHT and rate and all_rows is not None:
    left = max(all_rows - rows, 0) / rate
  newest = max(seen, key=lambda each: each.changed or 0)
  return Line(
    folder=path,
    name=name,
    state=state,
    progress=None if all_rows is None else min(rows / all_rows, 1.0),
    rows=rows,
    all_rows=all_rows,
    rows_per_h=None if rate is None else rate * 3600,
    left_s=left,
    mean=newest.mean,
    runs=newest.runs,
    column=newest.column,
    attempts=record.attempts if record else 0,
    exit_code=record.exit_code if record else None,
    peak_bytes=record.peak_bytes if record else None,
    lines=record.lines if record else (),
  )


def _rate(
  seen: Sequence[Glance], rows: int, record: Record | None
) -> float | None:
  """Rows per second since the attempt, or the only start, began."""
  changed = max((each.changed for each in seen if each.changed), default=None)
  if changed is None:
    return None
  if record is not None:
    began, before = record.began, record.rows
  elif all(each.starts == 1 for each in seen):
    began, before = min(each.began for each in seen), 0
  else:
    return None
  if changed <= began or rows <= before:
    return None
  return (rows - before) / (changed - began)


def _as_json(lines: Sequence[Line]) -> dict[str, Any]:
  """The lines, and how many there are of each state, as JSON."""
  return {
    'states': _states(lines),
    'cells': [line._asdict() | {'state': line.state.value} for line in lines],
  }


def _states(lines: Sequence[Line]) -> dict[str, int]:
  counts = collections.Counter(line.state.value for line in lines)
  return {state.value: counts[state.value] for state in State}


_HEADINGS = ('', 'state', 'rows', 'rows/h', 'left', 'newest', 'memory')


def _cells(line: Line, several: bool) -> tuple[str, ...]:
  """A line as the cells of a table."""
  name = line.name or line.folder
  if several and line.name:
    name = f'{line.folder}/{line.name}'
  rows = f'{line.rows:,}'
  if line.all_rows is not None:
    rows += f' of {line.all_rows:,} ({line.progress:.0%})'
  value = '' if line.mean is None else f'{line.column} {line.mean:.4g}'
  if line.runs > 1:
    value += f' ({line.runs} runs)'
  memory = '' if not line.peak_bytes else f'{line.peak_bytes / 1e9:.1f} GB'
  rate = '' if line.rows_per_h is None else f'{line.rows_per_h:,.4g}'
  return (name, line.state, rows, rate, _time(line.left_s), value, memory)


def _time(seconds: float | None) -> str:
  if seconds is None:
    return ''
  minutes = round(seconds / 60)
  return f'{minutes // 60}:{minutes % 60:02}'


def states_in_words(lines: Sequence[Line]) -> str:
  """How many cells there are of each state."""
  parts = [f'{n} {state}' for state, n in _states(lines).items() if n]
  cells = 'cell' if len(lines) == 1 else 'cells'
  return f'{len(lines)} {cells}: {", ".join(parts)}'


def _failures(lines: Sequence[Line]) -> Iterator[str]:
  for line in lines:
    if line.state == State.FAILED:
      yield f'{line.name} failed, exit code {line.exit_code}:'
      yield from (f'  {text}' for text in line.lines)


def words(lines: Sequence[Line]) -> Iterator[str]:
  """The lines as plain text."""
  several = len({line.folder for line in lines}) > 1
  table = [_HEADINGS, *(_cells(line, several) for line in lines)]
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  for row in table:
    padded = (t.ljust(w) for t, w in zip(row, widths, strict=True))
    yield '  '.join(padded).rstrip()
  yield states_in_words(lines)
  yield from _failures(lines)


def _refresh(paths: Sequence[str], period_s: float) -> None:
  """Shows the lines in a terminal until nothing runs."""
  from rich.console import Group
  from rich.live import Live
  from rich.table import Table

  def view(lines: Sequence[Line]) -> Group:
    several = len({line.folder for line in lines}) > 1
    table = Table(box=None, pad_edge=False)
    for heading in _HEADINGS:
      table.add_column(heading, overflow='fold')
    for line in lines:
      table.add_row(*_cells(line, several))
    return Group(table, states_in_words(lines), *_failures(lines))

  lines = look(paths)
  with Live(view(lines), auto_refresh=False) as live:
    while any(line.state == State.IN_FLIGHT for line in lines) or any(
      SweepFolder(path).is_driven() for path in paths
    ):
      time.sleep(period_s)
      lines = look(paths)
      live.update(view(lines), refresh=True)


if __name__ == '__main__':
  run(StatusConfig, __doc__, main, listed='folders')
