"""Metrics of a run: one CSV row per iteration, and TensorBoard events.

The CSV file is the record; events are a view of it. Many runs may share a file
in long form: a row for each run and iteration, with columns for the seed and
the other values that tell runs apart, which may be text.

A run that was stopped and resumed leaves the same file as an uninterrupted one,
except for the columns that measure the wall clock, whose names end in `_s`
(including `_per_s`).
"""

import contextlib
import csv
import functools
import hashlib
import io
import itertools
import math
import operator
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Self, SupportsFloat

import numpy as np

from siamrl.report.events import open_events
from siamrl.report.run_folder import read_file, write_atomically

STEP_COLUMN = 'frames'  # the x axis of events and of curves
RUN_COLUMN = 'seed'  # tells runs of one setting apart in long form
# Clocks, of which the first one that a table has is its horizontal axis.
CLOCKS = (STEP_COLUMN, 'env_steps', 'gradient_steps')
# Columns, and flags, that name what is played. A run has one of them at most.
# Scores of different values are on different scales.
PLAYED = ('game', 'environment')

# Columns, and values of swept options, with other names in older files.
_NEW_WORDS = {'normalised': 'normalized', 'centred': 'centered'}
_NEW_VALUES = {
  'augmentation': {'colour': 'color'},
  'optimizer': {
    'rmsprop_centred': 'rmsprop_centered',
    'rmsprop_centred_torch': 'rmsprop_centered_torch',
  },
  'predictor': {'learnt': 'learned'},
  'replay': {'prioritised': 'prioritized'},
}

Cell = SupportsFloat | str | None
Table = dict[str, np.ndarray]


class MetricsWriter:
  """Appends rows to a CSV file, which are on the disk when `write` returns.

  Attributes:
    position: number of rows in the file. Keep it with `checksum` in a
      checkpoint, and pass both to `truncate` on resumption.
    has_events: whether TensorBoard events are written too.
    events_error: why events are no longer written; None without an error.
  """

  def __init__(
    self,
    csv_path: str | os.PathLike[str],
    events_dir: str | os.PathLike[str] | None = None,
    *,
    step_column: str = STEP_COLUMN,
  ):
    """Opens the file to append to its rows.

    Args:
      csv_path: the file, created if needed; its directory exists.
      events_dir: directory of TensorBoard events, which are written if
        tensorboardX is installed. Use it only for a file of one run, as the
        rows of many would be joined in one line.
      step_column: the x axis of the events.

    Raises:
      OSError: if the file cannot be written.
      ValueError: if it is not a file of metrics.
    """
    path = pathlib.Path(csv_path)
    header, rows = _load_as_written(path)
    self._step_column = step_column
    self._columns = _new_columns(header)
    self._is_text = _text_columns(self._columns, rows)
    self.position = len(rows)
    self.events_error: Exception | None = None
    # Without an incomplete line from a crash.
    self._hash = hashlib.sha256(_store(path, header, rows))
    self._file = path.open('a', newline='', encoding='utf-8')
    self._events = None
    if events_dir is not None:
      try:
        self._events = open_events(
          events_dir, _next_step(header, rows, step_column)
        )
      except Exception as error:  # only the rows, now written, are the record
        self.events_error = error
    self.has_events = self._events is not None

  @property
  def checksum(self) -> str:
    """SHA-256 of the file with all of its rows, in hexadecimal."""
    return self._hash.hexdigest()

  def write(self, row: Mapping[str, Cell]) -> None:
    """Appends a row, as `write_rows` does."""
    self.write_rows([row])

  def write_rows(self, rows: Sequence[Mapping[str, Cell]]) -> None:
    """Appends rows at once; all are on the disk on return.

    Args:
      rows: mappings from column to a scalar, a text, or None for an empty cell;
        the first row of a file fixes the columns and their order. Integers
        remain integers, bools become 0 and 1, and other numbers float64. A
        column holds either text or numbers.

    Raises:
      OSError: if the rows cannot be written. Events that cannot be written are
        dropped instead, see `events_error`.
      ValueError: if the columns differ from the file's, a value is not of its
        column's kind or could not be read back, or the step column that events
        need is missing. Nothing is written then.
    """
    if not rows:
      return
    columns = self._columns or list(rows[0])
    _check_columns(columns)
    is_text = dict(self._is_text)
    lines = [] if self._columns else [_line(columns)]
    for row in rows:
      if self.has_events and row.get(self._step_column) is None:
        raise ValueError(f'events need the column {self._step_column!r}')
      if set(row) != set(columns):
        odd = sorted(set(row) ^ set(columns))
        raise ValueError(f'columns differ from those of the file: {odd}')
      lines.append(_line([_cell(row[n], n, is_text) for n in columns]))
    text = ''.join(lines)
    self._file.write(text)
    self._file.flush()
    os.fsync(self._file.fileno())
    self._hash.update(text.encode())
    self._columns, self._is_text = columns, is_text
    self.position += len(rows)
    try:
      self._write_events(rows)
    except Exception as error:
      self.events_error = error
      self._close_events()

  def _write_events(self, rows: Sequence[Mapping[str, Cell]]) -> None:
    if self._events is None:
      return
    for row in rows:
      numbers = {
        name: _number(value)
        for name, value in row.items()
        if value is not None and not isinstance(value, str)
      }
      self._events.write(int(numbers.pop(self._step_column)), numbers)

  def close(self) -> None:
    """Closes the files; may be called twice."""
    # Every row was flushed when written: anything left is from a row that the
    # disk rejected, for which an error was raised.
    with contextlib.suppress(OSError):
      self._file.close()
    self._close_events()

  def _close_events(self) -> None:
    if self._events is not None:
      with contextlib.suppress(Exception):
        self._events.close()
      self._events, self.has_events = None, False

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused_error: object) -> None:
    self.close()

  @staticmethod
  def verify(
    csv_path: str | os.PathLike[str], rows: int, checksum: str | None
  ) -> None:
    """Checks the rows that a checkpoint covers against their checksum.

    Args:
      csv_path: the file.
      rows: `position` at the checkpoint.
      checksum: `checksum` at the checkpoint; None for an older checkpoint, with
        only the number of rows.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it has fewer rows, they differ, or it is not a file of
        metrics. The message begins with the file.
    """
    _first_rows(pathlib.Path(csv_path), rows, checksum)

  @staticmethod
  def truncate(
    csv_path: str | os.PathLike[str], rows: int, checksum: str | None = None
  ) -> None:
    """Drops the rows that were written after a checkpoint.

    Call it before the file is opened for writing. If no rows are left, the file
    is deleted.

    Args:
      csv_path: the file.
      rows: number of rows to keep, `position` at the checkpoint.
      checksum: checksum of these rows; see `verify`.

    Raises:
      OSError: if the file cannot be written.
      ValueError: as in `verify`. Nothing is dropped then.
    """
    path = pathlib.Path(csv_path)
    if rows:
      write_atomically(path, _first_rows(path, rows, checksum))
    else:
      path.unlink(missing_ok=True)


def read_metrics(path: str | os.PathLike[str]) -> Table:
  """Reads the rows of one or many runs, even while they run.

  Args:
    path: the CSV file.

  Returns:
    [R] arrays by column: int64 if every value is an integer; str if any is
    text, with '' for an empty cell; otherwise float64, with NaN for an empty
    cell. An incomplete last line is left out.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is not a file of metrics.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'{path}: no such file')
  return as_table(*_load(path))


def as_table(header: list[str], rows: list[list[str]]) -> Table:
  """Returns columns as arrays; see `read_metrics`."""
  is_text = _text_columns(header, rows)
  columns = {}
  for index, name in enumerate(header):
    cells = [row[index] for row in rows]
    if is_text.get(name):
      columns[name] = np.array(cells, np.str_)
      continue
    try:
      columns[name] = np.array([int(cell) for cell in cells], np.int64)
    except (ValueError, OverflowError):
      columns[name] = np.array(
        [float(cell or 'nan') for cell in cells], np.float64
      )
  return columns


def concatenate(
  path: str | os.PathLike[str], parts: Sequence[str | os.PathLike[str]]
) -> None:
  """Concatenates the rows of several files into a new one.

  Args:
    path: the new file, replaced atomically; its directory exists.
    parts: files with the same columns.

  Raises:
    OSError: if a file cannot be read or written.
    ValueError: if a file is not one of metrics, or has other columns.
  """
  columns: list[str] = []
  together: list[list[str]] = []
  for part in parts:
    header, rows = _load(pathlib.Path(part))
    if rows and columns and header != columns:
      raise ValueError(f'{part}: its columns differ from those of {parts[0]}')
    columns = columns or header
    together += rows
  _store(pathlib.Path(path), columns, together)


def group_rows(table: Table, by: Sequence[str]) -> dict[tuple, Table]:
  """Splits a table in long form by the values of some columns.

  Args:
    table: [R] arrays by column.
    by: the columns, such as those that a sweep varies.

  Returns:
    A table for each combination of values, by that combination, in order of
    occurrence. Values are Python's; None for an empty cell.

  Raises:
    ValueError: if there is no such column.
  """
  _check_present(table, by)
  keys = list(zip(*(_values(table[name]) for name in by), strict=True))
  if not by:
    keys = [()] * len(next(iter(table.values()), ()))
  rows: dict[tuple, list[int]] = {}
  for index, key in enumerate(keys):
    rows.setdefault(key, []).append(index)
  return {
    key: {name: column[indices] for name, column in table.items()}
    for key, indices in rows.items()
  }


def last_rows(table: Table, by: Sequence[str]) -> Table:
  """Drops rows that were written again later, such as by a resumed run.

  Args:
    table: [R] arrays by column.
    by: the columns that identify a row: the setting, the run and the clock.
      Rows with a NaN in the last of them, the clock, are dropped too.

  Returns:
    The last row of each identity; runs in order, the rows of each by the clock.

  Raises:
    ValueError: if there is no such column.
  """
  _check_present(table, by)
  names = list(zip(*(_values(table[name]) for name in by), strict=True))
  last = {name: index for index, name in enumerate(names)}
  runs = {run: n for n, run in enumerate(dict.fromkeys(n[:-1] for n in names))}
  kept = [name for name in last if name[-1] is not None]
  kept.sort(key=lambda name: (runs[name[:-1]], name[-1]))
  rows = np.array([last[name] for name in kept], np.int64)
  return {name: column[rows] for name, column in table.items()}


def common_end(table: Table, x: str, by: Sequence[str]) -> float:
  """Returns the last time at which every run has a row.

  Args:
    table: [R] arrays by column, in long form.
    x: the column of the clock.
    by: the columns that tell runs apart: the setting and the seed.

  Returns:
    That value of the clock; if there is none, the earliest end of a run; NaN
    without rows.

  Raises:
    ValueError: if there is no such column.
  """
  clocks = [np.unique(rows[x]) for rows in group_rows(table, by).values()]
  if not clocks:
    return math.nan
  shared = functools.reduce(np.intersect1d, clocks)
  return float(shared[-1] if len(shared) else min(c[-1] for c in clocks))


def by_run(
  table: Table, x: str, y: str, run: str = RUN_COLUMN
) -> tuple[np.ndarray, np.ndarray]:
  """Aligns the runs of one setting.

  Args:
    table: [R] arrays by column, in long form.
    x: the column of the clock, such as 'env_steps'.
    y: the column of the measured quantity.
    run: the column that tells the runs apart.

  Returns:
    (x [T], y [runs, T]): all values of the clock, ascending, and float64
    values, with NaN where a run has no row or an empty cell.

  Raises:
    ValueError: if a column is missing or holds text, or a run has two rows for
      one value of the clock, as in a table of several settings.
  """
  _check_present(table, [x, y, run])
  for name in (x, y):
    if table[name].dtype.kind == 'U':
      raise ValueError(f'the column {name!r} holds text, not numbers')
  clock, column = np.unique(table[x], return_inverse=True)
  runs, row = np.unique(table[run], return_inverse=True)
  if len(np.unique(row * len(clock) + column)) < len(row):
    raise ValueError(f'a {run!r} has two rows for one value of {x!r}')
  values = np.full((len(runs), len(clock)), np.nan)
  values[row, column] = table[y]
  return clock, values


def _check_present(table: Table, names: Sequence[str]) -> None:
  for name in names:
    if name not in table:
      raise ValueError(f'no column {name!r}')


def _values(column: np.ndarray) -> list[Any]:
  """Returns Python values; None for an empty cell."""
  return [None if v == '' or v != v else v for v in column.tolist()]


def is_wall_clock(column: str) -> bool:
  """Returns whether a column measures time, and so differs in equal runs."""
  return column.endswith('_s')


def _number(value: Any) -> int | float:
  """Returns a Python number, whose repr reads back as the same number."""
  try:
    return operator.index(value)
  except TypeError:
    return float(value)


def _cell(value: Cell, column: str, is_text: dict[str, bool]) -> str:
  """Returns a value as text for the file.

  Args:
    value: a scalar, a text, or None.
    column: column of the value.
    is_text: the kinds of columns so far; a new column is added.

  Raises:
    ValueError: if it is not of its column's kind, or would read back
      differently.
  """
  if value is None:
    return ''
  text = isinstance(value, str)
  if is_text.setdefault(column, text) != text:
    kind = 'text' if is_text[column] else 'numbers'
    raise ValueError(f'the column {column!r} holds {kind}, not {value!r}')
  if not isinstance(value, str):
    return repr(_number(value))
  if is_number(value) or value.splitlines() != [value]:
    raise ValueError(
      f'the column {column!r} holds {value!r}, which would not read back as '
      'text'
    )
  return value


def is_number(text: str) -> bool:
  """Returns whether a cell holds a number rather than text."""
  try:
    float(text)
  except ValueError:
    return False
  return True


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
  """Reads a file's header and rows as text; both are empty without a file.

  Names that have changed since the file was written are updated.
  """
  return with_new_names(*_load_as_written(path))


def with_new_names(
  header: list[str], rows: list[list[str]]
) -> tuple[list[str], list[list[str]]]:
  """Updates names and values, the latter in place."""
  for index, name in enumerate(header):
    new = _NEW_VALUES.get(name, {})
    if new:
      for row in rows:
        row[index] = new.get(row[index], row[index])
  return _new_columns(header), rows


def _new_columns(header: list[str]) -> list[str]:
  return list(map(_new_column, header))


def _new_column(name: str) -> str:
  if name.startswith('panel/'):  # it may hold the name of a user's layer
    return name
  for old, new in _NEW_WORDS.items():
    name = name.replace(old, new)
  return name


def _load_as_written(path: pathlib.Path) -> tuple[list[str], list[list[str]]]:
  """Reads the header and rows with the names in the file."""
  try:
    text = read_file(path).decode('utf-8', errors='replace')
  except FileNotFoundError:
    return [], []
  whole = list(io.StringIO(text[: text.rfind('\n') + 1]))
  # A results file begins with comments; a run's metrics have none.
  table = list(itertools.dropwhile(lambda line: line.startswith('#'), whole))
  try:
    if '\0' in text:
      raise csv.Error('it holds a byte that is 0')
    lines = list(csv.reader(table, strict=True))
  except csv.Error as error:
    reason, _, _ = str(error).partition(' - ')  # without advice on newlines
    raise ValueError(f'{path}: not a file of metrics: {reason}') from error
  if not lines:
    return [], []
  header, rows = lines[0], lines[1:]
  damaged = _first_damaged(header, rows)
  if damaged is not None:
    number = len(whole) - len(table) + damaged + 2
    raise ValueError(f'{path}: line {number} is not a row of metrics')
  return header, rows


def _first_damaged(header: list[str], rows: list[list[str]]) -> int | None:
  """Returns the first row with a wrong number of cells, or misplaced text."""
  found = []
  for index, row in enumerate(rows):
    if len(row) != len(header):
      found, rows = [index], rows[:index]
      break
  is_text = _text_columns(header, rows)
  for name, cells in zip(header, zip(*rows, strict=True), strict=False):
    text = is_text.get(name, False)
    bad = {c for c in set(cells) if c and is_number(c) == text}
    if bad:
      found.append(next(i for i, cell in enumerate(cells) if cell in bad))
  return min(found, default=None)


def _text_columns(header: list[str], rows: list[list[str]]) -> dict[str, bool]:
  """Returns whether each column that has a value holds text."""
  is_text: dict[str, bool] = {}
  for row in rows:
    for name, cell in zip(header, row, strict=False):
      if cell and name not in is_text:
        is_text[name] = not is_number(cell)
    if len(is_text) == len(header):
      break
  return is_text


def _first_rows(path: pathlib.Path, count: int, checksum: str | None) -> bytes:
  """Returns the file without its last rows, see `MetricsWriter.verify`."""
  if not count:
    return b''
  if checksum is not None and path.exists():
    # No cell holds a line break. Anything after these rows may be damaged, as
    # it is not used.
    lines = read_file(path).split(b'\n')[: count + 1]
    content = b''.join(line + b'\n' for line in lines)
    if hashlib.sha256(content).hexdigest() == checksum:
      return content
  header, rows = _load_as_written(path)
  if not 0 <= count <= len(rows):
    raise ValueError(f'{path}: has {len(rows)} rows, cannot keep {count}')
  if checksum is not None:
    raise ValueError(
      f'{path}: damaged: the checksum of its first {count} rows differs'
    )
  return _text(header, rows[:count])


def _store(
  path: pathlib.Path, header: list[str], rows: list[list[str]]
) -> bytes:
  """Writes a whole file; returns its content."""
  content = _text(header, rows)
  write_atomically(path, content)
  return content


def _text(header: list[str], rows: list[list[str]]) -> bytes:
  return ''.join(_line(cells) for cells in [header, *rows] if cells).encode()


def _next_step(
  header: list[str], rows: list[list[str]], step_column: str
) -> int:
  """Returns the first step after those in the file."""
  if not rows or step_column not in header:
    return 0
  last = float(rows[-1][header.index(step_column)] or 'nan')
  return int(last) + 1 if math.isfinite(last) else 0
