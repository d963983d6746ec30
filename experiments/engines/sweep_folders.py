"""Folders of sweeps: which cells they hold, and the state of each.

    RUN_DIR/sweep.json   the cells, with their options
    RUN_DIR/CELL/        the run folder of a cell
    RUN_DIR/CELL.log     what its launcher prints
    RUN_DIR/CELL.json    how its last attempt ended

Cells may be added later; one that has begun keeps its options.
"""

from collections.abc import Iterator, Sequence
import contextlib
import enum
import itertools
import json
import os
import pathlib
from typing import Any, NamedTuple

from experiments.config.declaring import RunError, UsageError
from experiments.engines.cells import ALL, Cell, differences
from siamrl.report.run_folder import (
  RunFolder,
  RunFolderError,
  lock_folder,
  read_json,
  write_atomically,
)

_MARK = 'siamrl sweep'
_FILE = 'sweep.json'


class State(enum.StrEnum):
  """The state of a cell.

  A cell that is cut has begun and resumes where it was saved; one that failed
  used up its attempts.
  """

  WAITING = 'waiting'
  IN_FLIGHT = 'in flight'
  DONE = 'done'
  CUT = 'cut'
  FAILED = 'failed'


class Record(NamedTuple):
  """How the last attempt at a cell ended.

  Attributes:
    state: what that makes of the cell.
    attempts: attempts since the cell last got further.
    exit_code: exit code of the launcher, negative for a signal; None while it
      runs, or if its machine was lost.
    seconds: how long the attempt took.
    peak_bytes: most memory that its process used; None if unknown.
    rows: rows of metrics when it began.
    began: Unix time at which it began.
    lines: the last lines that it printed, if it failed.
  """

  state: State
  attempts: int = 0
  exit_code: int | None = None
  seconds: float = 0.0
  peak_bytes: int | None = None
  rows: int = 0
  began: float = 0.0
  lines: tuple[str, ...] = ()


class SweepFolder:
  """The folder of a sweep.

  Attributes:
    path: the folder.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Sets the folder, which need not exist."""
    self.path = pathlib.Path(path)

  def run(self, name: str) -> RunFolder:
    """The run folder of a cell."""
    return RunFolder(self.path / name)

  def log(self, name: str) -> pathlib.Path:
    """The file of what a cell's launcher prints."""
    return self.path / f'{name}.log'

  def is_one(self) -> bool:
    """Whether this is the folder of a sweep."""
    return (self.path / _FILE).is_file()

  def is_driven(self) -> bool:
    """Whether a driver has locked the folder."""
    return RunFolder(self.path).in_use()

  def cells(self) -> dict[str, dict[str, Any]]:
    """The cells: `launcher`, `arguments`, `point` and `options` by name.

    Raises:
      RunError: the folder is no sweep's, or its record is damaged.
    """
    try:
      found = read_json(self.path / _FILE)
      if found['mark'] != _MARK:
        raise ValueError('of another kind')
      return dict(found['cells'])
    except (OSError, ValueError, LookupError, TypeError) as error:
      raise RunError(
        f'{self.path / _FILE}: not the record of a sweep: {error}'
      ) from error

  def record(self, name: str) -> Record | None:
    """How the last attempt at a cell ended; None if there is no record."""
    try:
      found = read_json(self.path / f'{name}.json')
      found['state'] = State(found['state'])
      found['lines'] = tuple(found['lines'])
      return Record(**found)
    except (OSError, ValueError, LookupError, TypeError):
      return None

  def write_record(self, name: str, record: Record) -> None:
    """Writes how an attempt ended."""
    path = self.path / f'{name}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record._asdict(), indent=2) + '\n'
    write_atomically(path, text.encode())

  def state(self, name: str) -> State:
    """The state of a cell, from what is on the disk."""
    record, run = self.record(name), self.run(name)
    if record is not None and record.state == State.DONE:
      return State.DONE
    if any(folder.in_use() for folder in folders_of(run.path)):
      return State.IN_FLIGHT
    if record is not None and self._starts(name, record):
      return State.IN_FLIGHT
    if record is not None and record.state == State.FAILED:
      return State.FAILED
    begun = record is not None or bool(folders_of(run.path))
    return State.CUT if begun else State.WAITING

  def _starts(self, name: str, record: Record) -> bool:
    """Whether the driver has begun a cell, which may not have its lock yet.

    The record of a cell that an earlier driver began is older than that of the
    sweep, which a driver writes when it starts.
    """
    if record.state != State.IN_FLIGHT or not self.is_driven():
      return False
    try:
      began = (self.path / f'{name}.json').stat().st_mtime_ns
      return began >= (self.path / _FILE).stat().st_mtime_ns
    except OSError:
      return False

  @contextlib.contextmanager
  def driven(self, cells: Sequence[Cell]) -> Iterator[list[str]]:
    """Locks the folder for one driver, and records its cells.

    Args:
      cells: the cells that the sweep file has now.

    Yields:
      The names of cells in the folder that the file no longer has.

    Raises:
      UsageError: the folder is no sweep's, or a cell has other options there.
      RunError: another driver has it, or it cannot be written.
    """
    try:
      self.check(cells)
      self.path.mkdir(parents=True, exist_ok=True)
      with lock_folder(self.path):
        self.check(cells)  # it may have changed before it was locked
        known = self.cells() if self.is_one() else {}
        now = {cell.name: _as_json(cell) for cell in cells}
        text = json.dumps({'mark': _MARK, 'cells': known | now}, indent=1)
        write_atomically(self.path / _FILE, (text + '\n').encode())
        yield [name for name in known if name not in now]
    except RunFolderError as error:
      raise RunError(f'--run_dir={error}') from error
    except OSError as error:
      raise RunError(
        f'--run_dir={self.path}: {error.strerror or error}'
      ) from error

  def _check_ours(self) -> None:
    if self.is_one() or not self.path.exists():
      return
    if not self.path.is_dir():
      raise UsageError(f'--run_dir={self.path} must be a folder')
    others = set(os.listdir(self.path)) - {'.lock'}
    if others:
      raise UsageError(
        f'--run_dir={self.path} must be empty or the folder of a sweep, and '
        f'holds {min(others)!r}; name another one'
      )

  def check(self, cells: Sequence[Cell]) -> None:
    """Raises UsageError for cells that the folder cannot hold.

    It is not a sweep's, or that of another one, or a cell that has begun has
    other options there.
    """
    self._check_ours()
    known = self.cells() if self.is_one() else {}
    if known and not any(cell.name in known for cell in cells):
      raise UsageError(
        f'--run_dir={self.path} holds another sweep, whose cells are '
        f'{", ".join(itertools.islice(known, 3))}; name another folder'
      )
    changed = {
      cell.name: differences(known[cell.name]['options'], cell.options)
      for cell in cells
      if cell.name in known
      and known[cell.name]['options'] != cell.options
      and self.state(cell.name) != State.WAITING
    }
    if changed:
      name, found = next(iter(changed.items()))
      raise UsageError(
        f'--run_dir={self.path} holds {len(changed)} of these cells with other '
        f'options; {name} has {"; ".join(found)}. Name another folder'
      )


def _as_json(cell: Cell) -> dict[str, Any]:
  return cell._asdict() | {'arguments': list(cell.arguments)}


def title_of(path: str | os.PathLike[str]) -> str:
  """The title of a run folder: its name, and that of the sweep it is of."""
  path = pathlib.Path(path).absolute()
  for parent in path.parents[:2]:  # there may be an arm between them
    if SweepFolder(parent).is_one():
      name = str(path.relative_to(parent))
      return parent.name if name == ALL else f'{parent.name}: {name}'
  return path.name


def folders_of(path: pathlib.Path) -> list[RunFolder]:
  """The run folders of a cell: its own, or those inside it.

  Several runs whose environments are stepped on the host have one each.
  """
  own = RunFolder(path)
  if own.read_flags() is not None:
    return [own]
  inside = sorted(path.iterdir()) if path.is_dir() else []
  found = [RunFolder(each) for each in inside if each.is_dir()]
  return [folder for folder in found if folder.read_flags() is not None]
