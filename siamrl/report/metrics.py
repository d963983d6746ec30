"""Metrics of a run: one CSV row an iteration, and TensorBoard beside it.

The CSV file is the record; events are a view of it. A run that was stopped and
resumed leaves the file that an undisturbed one leaves, but for the columns that
measure the wall clock: their names end in `_s` (`_per_s` included).
"""

import contextlib
import csv
import io
import math
import operator
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any, Self, SupportsFloat

import numpy as np

from siamrl.report.run_folder import write_atomically

STEP_COLUMN = 'frames'  # the x axis of events and of curves


class MetricsWriter:
  """Appends rows to a CSV file, each on the disk before `write` returns.

  Attributes:
    position: rows in the file. Keep it in a checkpoint; hand it to `truncate`
      on resumption.
    has_events: whether TensorBoard events are written too.
  """

  def __init__(
    self,
    csv_path: str | os.PathLike[str],
    events_dir: str | os.PathLike[str] | None = None,
  ):
    """Opens the file, to go on after the rows that it has.

    Args:
      csv_path: the file; created if need be, in a directory that exists.
      events_dir: directory of TensorBoard events; they are written if
        tensorboardX is installed.

    Raises:
      OSError: if the file cannot be written.
      ValueError: if the file is not one of metrics.
    """
    path = pathlib.Path(csv_path)
    header, rows = _load(path)
    self._columns = header
    self.position = len(rows)
    _store(path, header, rows)  # without the torn line of a crash
    self._file = path.open('a', newline='', encoding='utf-8')
    self._events = None
    if events_dir is not None:
      self._events = _open_events(events_dir, _next_step(header, rows))
    self.has_events = self._events is not None

  def write(self, row: Mapping[str, SupportsFloat]) -> None:
    """Appends a row.

    Args:
      row: scalars by column; the first row of a file fixes the columns and
        their order. Integers stay integers, the rest becomes float64.

    Raises:
      OSError: if the disk does not take it.
      ValueError: if the columns are not those of the file, or `frames` is not
        among them though events are written.
    """
    if self.has_events and STEP_COLUMN not in row:
      raise ValueError(f'events need the column {STEP_COLUMN!r}')
    text = ''
    if not self._columns:
      _check_columns(list(row))
      self._columns = list(row)
      text = _line(self._columns)
    if set(row) != set(self._columns):
      odd = sorted(set(row) ^ set(self._columns))
      raise ValueError(f'columns differ from those of the file: {odd}')
    numbers = {name: _number(row[name]) for name in self._columns}
    text += _line([repr(number) for number in numbers.values()])
    self._file.write(text)
    self._file.flush()
    os.fsync(self._file.fileno())
    self.position += 1
    if self._events is not None:
      step = int(numbers.pop(STEP_COLUMN))
      self._events.write(step, numbers)

  def close(self) -> None:
    """Closes the files. Twice does no harm."""
    # Every row was flushed as it was written: what is left is of a row that the
    # disk did not take, which has been raised.
    with contextlib.suppress(OSError):
      self._file.close()
    if self._events is not None:
      with contextlib.suppress(OSError):
        self._events.close()
      self._events = None

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused_error: object) -> None:
    self.close()

  @staticmethod
  def truncate(csv_path: str | os.PathLike[str], rows: int) -> None:
    """Drops the rows that were written after a checkpoint.

    Call it before the file is opened for writing. With no rows left the file
    is deleted: it has no columns either.

    Args:
      csv_path: the file.
      rows: how many rows to keep, `position` at the checkpoint.

    Raises:
      OSError: if the file cannot be written.
      ValueError: if it has fewer rows than that, or is not one of metrics.
    """
    path = pathlib.Path(csv_path)
    header, present = _load(path)
    if not 0 <= rows <= len(present):
      raise ValueError(f'{path}: has {len(present)} rows, cannot keep {rows}')
    if rows:
      _store(path, header, present[:rows])
    else:
      path.unlink(missing_ok=True)


def read_metrics(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads the rows of a run, also while it runs.

  Args:
    path: the CSV file.

  Returns:
    [R] arrays by column, R rows: int64 where every value is an integer, float64
    elsewhere. A torn last line is left out.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is not a file of metrics.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'{path}: no such file')
  header, rows = _load(path)
  columns = {}
  for index, name in enumerate(header):
    cells = [row[index] for row in rows]
    try:
      columns[name] = np.array([int(cell) for cell in cells], np.int64)
    except ValueError:
      columns[name] = np.array([float(cell) for cell in cells], np.float64)
  return columns


def is_wall_clock(column: str) -> bool:
  """Whether a column measures the machine: two equal runs differ in it."""
  return column.endswith('_s')


def _number(value: Any) -> int | float:
  """A Python number, whose repr reads back as the same one."""
  try:
    return operator.index(value)
  except TypeError:
    return float(value)


def _line(cells: list[str]) -> str:
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerow(cells)
  return text.getvalue()


def _check_columns(columns: list[str]) -> None:
  if not columns or any(
    not name or name.splitlines() != [name] for name in columns
  ):
    raise ValueError(f'not the names of columns: {columns}')


def _load(path: pathlib.Path) -> tuple[list[str], list[list[str]]]:
  """The header and the rows of a file, as text; both empty without a file."""
  try:
    text = path.read_bytes().decode('utf-8', errors='replace')
  except FileNotFoundError:
    return [], []
  whole = text[: text.rfind('\n') + 1]
  lines = list(csv.reader(io.StringIO(whole)))
  if not lines:
    return [], []
  header, rows = lines[0], lines[1:]
  for number, row in enumerate(rows, 2):
    try:
      [float(cell) for cell in row]
      damaged = len(row) != len(header)
    except ValueError:
      damaged = True
    if damaged:
      raise ValueError(f'{path}: line {number} is not a row of metrics')
  return header, rows


def _store(
  path: pathlib.Path, header: list[str], rows: list[list[str]]
) -> None:
  text = ''.join(_line(cells) for cells in [header, *rows] if cells)
  write_atomically(path, text.encode())


def _next_step(header: list[str], rows: list[list[str]]) -> int:
  """The first step of which the file knows nothing."""
  if not rows or STEP_COLUMN not in header:
    return 0
  last = float(rows[-1][header.index(STEP_COLUMN)])
  return int(last) + 1 if math.isfinite(last) else 0


class _Events:
  """TensorBoard's file of events, written at once and by this thread.

  tensorboardX's `SummaryWriter` writes from a thread of its own: a full disk
  kills that thread with a traceback and is never heard of.
  """

  def __init__(self, directory: str | os.PathLike[str], purge_step: int):
    """Opens a new file in the directory.

    Args:
      directory: of the events; made if need be.
      purge_step: events from here on are of rows that a resumption dropped;
        TensorBoard then hides them, so no point shows twice.

    Raises:
      ImportError: tensorboardX is not installed.
    """
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    self._scalar, self._pb2 = summary.scalar, event_pb2
    pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
    self._writer = event_file_writer.EventsWriter(
      os.path.join(directory, 'events'), f'.{purge_step}'
    )
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(purge_step, session_log=start)

  def _write(self, step: int, **content: Any) -> None:
    self._writer.write_event(
      self._pb2.Event(step=step, wall_time=time.time(), **content)
    )

  def write(self, step: int, numbers: Mapping[str, float]) -> None:
    for name, number in numbers.items():
      self._write(step, summary=self._scalar(name, float(number)))
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


def _open_events(
  directory: str | os.PathLike[str], purge_step: int
) -> _Events | None:
  """None if tensorboardX is not installed."""
  try:
    return _Events(directory, purge_step)
  except ImportError:
    return None
