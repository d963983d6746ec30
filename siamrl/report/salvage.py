"""Rows of metrics from files that may be cut or damaged."""

import csv
import os
import pathlib

from siamrl.report.metrics import (
  Table,
  as_table,
  is_number,
  read_metrics,
  with_new_names,
)
from siamrl.report.run_folder import read_file


def read_whole_rows(path: str | os.PathLike[str]) -> tuple[Table, list[str]]:
  """Reads the rows of a file that are whole.

  Args:
    path: the CSV file.

  Returns:
    (table, problems): the table as of `read_metrics`, and words about what is
    left out; none if the file is whole.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it is not a file of metrics at all.
  """
  path = pathlib.Path(path)
  text = read_file(path).decode('utf-8', errors='replace')
  cut = text.rfind('\n') + 1
  problems = ['its last line is cut'] if cut < len(text) else []
  try:
    return read_metrics(path), problems
  except ValueError:
    lines = text[:cut].split('\n')[:-1]
    table, left_out = _whole_rows(path, lines)
  damaged = f'{left_out} lines are' if left_out > 1 else 'a line is'
  return table, [*problems, f'{damaged} damaged']


def _whole_rows(path: pathlib.Path, lines: list[str]) -> tuple[Table, int]:
  """Returns the rows that are whole, and the number of lines that are not."""
  lines = [line for line in lines if not line.startswith('#')]
  header, *rows = [_cells(line) for line in lines] or [[]]
  if not all(header) or not header:
    raise ValueError(f'{path}: not a file of metrics')
  whole = [row for row in rows if len(row) == len(header)]
  for index in range(len(header)):
    # A column holds what most of its cells hold.
    numeric = [is_number(row[index]) for row in whole if row[index]]
    kind = 2 * sum(numeric) >= len(numeric)
    whole = [r for r in whole if not r[index] or is_number(r[index]) == kind]
  return as_table(*with_new_names(header, whole)), len(rows) - len(whole)


def _cells(line: str) -> list[str]:
  """Returns the cells of a line; none of one that cannot be read."""
  if '\0' in line:
    return []
  try:
    return next(csv.reader([line], strict=True), [])
  except csv.Error:
    return []
