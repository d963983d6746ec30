"""Glances at runs: how far they are, from the ends of their files.

A glance reads a few kilobytes, so that a thousand runs take a second or two.
"""

import csv
import math
import os
from typing import NamedTuple

from siamrl.report.run_folder import RunFolder, read_json

# Bytes of the last lines of a file of metrics that are read.
_TAIL = 16_384
_RETURNS = ('eval_return', 'train_return', 'grid_return')


class Glance(NamedTuple):
  """How far the runs of a folder are.

  Attributes:
    rows: rows of metrics.
    all_rows: rows when the runs have finished; None if unknown.
    value: the newest finite return, or loss where nothing is played.
    column: its column; '' if there is none.
    began: Unix time of the first start.
    changed: Unix time of the newest row; None if there is none.
    starts: how often the runs were started.
  """

  rows: int
  all_rows: int | None
  value: float | None
  column: str
  began: float
  changed: float | None
  starts: int


def rows_of(folder: RunFolder) -> int:
  """The number of rows of metrics; 0 if there are none.

  A line without an end is of a row that was cut, and does not count.
  """
  try:
    with open(folder.metrics, 'rb') as file:
      lines = sum(
        block.count(b'\n') for block in iter(lambda: file.read(1 << 20), b'')
      )
  except OSError:
    return 0
  return max(lines - 1, 0)


def is_finished(folder: RunFolder) -> bool:
  """Whether there are all rows; if their number is unknown, whether any."""
  return rows_of(folder) >= (folder.rows() or 1)


def glance(folder: RunFolder) -> Glance:
  """Looks at a run folder; what is damaged or missing is left out."""
  changed = _time(folder.metrics)
  column, value = _newest(folder) if changed is not None else ('', None)
  return Glance(
    rows=rows_of(folder),
    all_rows=folder.rows(),
    value=value,
    column=column,
    began=_time(folder.flags) or math.nan,
    changed=changed,
    starts=_starts(folder),
  )


def _time(path: os.PathLike[str]) -> float | None:
  try:
    return os.stat(path).st_mtime
  except OSError:
    return None


def _starts(folder: RunFolder) -> int:
  try:
    return len(read_json(folder.versions))
  except (OSError, ValueError, TypeError):
    return 0


def _newest(folder: RunFolder) -> tuple[str, float | None]:
  """The column of returns or losses, and its newest finite value."""
  try:
    with open(folder.metrics, 'rb') as file:
      header = file.readline()
      file.seek(max(os.fstat(file.fileno()).st_size - _TAIL, len(header)))
      cut = file.tell() > len(header)
      whole = file.read().rpartition(b'\n')[0]
    columns = next(csv.reader([header.decode()]))
    rows = list(csv.reader(whole.decode(errors='replace').splitlines()))
  except (OSError, ValueError, StopIteration, csv.Error):
    return '', None
  rows = rows[1:] if cut else rows  # the first one may lack its beginning
  for column in (*_RETURNS, 'loss'):
    if column in columns:
      value = _last_finite(rows, columns.index(column))
      if value is not None:
        return column, value
  return '', None


def _last_finite(rows: list[list[str]], index: int) -> float | None:
  for row in reversed(rows):
    try:
      value = float(row[index])
    except (ValueError, IndexError):
      continue
    if math.isfinite(value):
      return value
  return None
