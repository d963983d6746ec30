"""Glances at runs: how far they are, from the ends of their files.

A glance reads a few kilobytes, so that a thousand runs take a second or two.
"""

import csv
import itertools
import math
import os
from typing import NamedTuple

from siamrl.report.metrics import CLOCKS, RUN_COLUMN
from siamrl.report.run_folder import RunFolder, read_json

# Bytes of the last lines of a file of metrics that are read. Many runs need
# more, up to the second number, for a row of each.
_TAIL, _LONGEST_TAIL = 16_384, 4_194_304
_RETURNS = ('eval_return', 'train_return', 'grid_return')


class Glance(NamedTuple):
  """How far the runs of a folder are.

  Attributes:
    rows: rows of metrics.
    all_rows: rows when the runs have finished; None if unknown.
    mean: the newest return, or loss where nothing is played; the mean over
      the runs that are computed together, at the newest clock at which all of
      them have one, or as many as do; None if there is none.
    runs: the number of runs of this mean.
    column: its column; '' if there is none.
    began: Unix time of the first start.
    changed: Unix time of the newest row; None if there is none.
    starts: how often the runs were started.
  """

  rows: int
  all_rows: int | None
  mean: float | None
  runs: int
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
  newest = _newest(folder) if changed is not None else None
  column, mean, runs = newest or ('', None, 0)
  return Glance(
    rows=rows_of(folder),
    all_rows=folder.rows(),
    mean=mean,
    runs=runs,
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


def _newest(folder: RunFolder) -> tuple[str, float, int] | None:
  """The column of returns or losses, its newest mean, and of how many runs."""
  try:
    with open(folder.metrics, 'rb') as file:
      columns = next(csv.reader([file.readline().decode()]))
      start, size = file.tell(), os.fstat(file.fileno()).st_size
      tail = _TAIL
      while True:
        file.seek(max(size - tail, start))
        cut = file.tell() > start
        whole = file.read().rpartition(b'\n')[0]
        rows = list(csv.reader(whole.decode(errors='replace').splitlines()))
        # The first line may lack its beginning, and its round others.
        rounds = _rounds(rows[cut:], columns)
        if not cut or len(rounds) > 2 or tail >= _LONGEST_TAIL:
          break
        tail *= 4
  except (OSError, ValueError, StopIteration, csv.Error):
    return None
  for column in (*_RETURNS, 'loss'):
    if column in columns:
      index = columns.index(column)
      found = [_finite(of_round, index) for of_round in reversed(rounds)]
      values = max(found, key=len, default=[])  # the newest of the longest
      if values:
        return column, sum(values) / len(values), len(values)
  return None


def _rounds(rows: list[list[str]], columns: list[str]) -> list[list[list[str]]]:
  """The rows of the runs that are computed together, by ascending clock."""
  if RUN_COLUMN not in columns:
    return [[row] for row in rows]
  at = next((columns.index(name) for name in CLOCKS if name in columns), None)
  if at is None:
    return [[row] for row in rows]
  whole = (row for row in rows if len(row) == len(columns))
  found: list[list[list[str]]] = []
  newest = -math.inf
  for text, group in itertools.groupby(whole, key=lambda row: row[at]):
    clock = float(text)
    if clock < newest:  # the next program has begun
      found.clear()
    found.append(list(group))
    newest = clock
  return found


def _finite(rows: list[list[str]], index: int) -> list[float]:
  """The finite values of a column."""
  found = []
  for row in rows:
    try:
      value = float(row[index])
    except (ValueError, IndexError):
      continue
    if math.isfinite(value):
      found.append(value)
  return found
