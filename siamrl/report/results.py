"""Results files: the rows of runs and their shared flags in one CSV file.

A results file does not need the folders of its runs. Its table is in long form:
a row for each run and each value of the clock. The first columns hold the
values that tell settings apart, then the seed, the clock, named by its unit
(`frames`, `env_steps`, `gradient_steps`), and a column for each metric. Above
the header are lines that begin with `#`; those of the form `# --name=value` are
the known flags that all runs share:

    # --environment=cartpole
    # --target_period_unit=gradient_steps
    target_update,target_period,tau,seed,env_steps,train_return
    hard,1,,0,10000,21.912
    hard,1,,0,20000,20.137
    soft,,0.4,0,10000,22.361

An empty cell of a setting means that the option does not apply; `nan` is a
metric that was not measured. `read_metrics` reads only the table.
"""

import csv
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from siamrl.report.metrics import Table, read_metrics
from siamrl.report.run_folder import RunFolder, write_atomically

_FLAG = '# --'


class Results(NamedTuple):
  """Rows of one or many runs, and their known flags.

  Attributes:
    table: [R] arrays by column, as from `read_metrics`.
    flags: text by name; for the folder of a sweep, with lists.
  """

  table: Table
  flags: dict[str, str]


def read_results(path: str | os.PathLike[str]) -> Results:
  """Reads a results file, or the folder of a run or sweep.

  Args:
    path: the CSV file, or the folder.

  Raises:
    FileNotFoundError: if there is no such file, or the folder has no rows yet.
    ValueError: if it is not a file of metrics, or not a folder of runs.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    folder = RunFolder(path)
    flags = folder.read_flags()
    if flags is None:
      raise ValueError(f'{path}: not the folder of a run')
    return Results(read_metrics(folder.metrics), flags)
  return Results(read_metrics(path), read_file_flags(path))


def write_results(
  path: str | os.PathLike[str],
  rows: Sequence[Sequence[str]],
  columns: Sequence[str],
  flags: Mapping[str, str],
) -> None:
  """Writes a results file, which is replaced atomically.

  Args:
    path: the file; its directory exists.
    rows: the cells of each row, as text.
    columns: names of the columns.
    flags: the flags that all runs share.

  Raises:
    OSError: if the file cannot be written.
    ValueError: if a cell or a flag has a line break.
  """
  head = [f'{_FLAG}{name}={value}' for name, value in flags.items()]
  for text in [*head, *columns, *(cell for row in rows for cell in row)]:
    if len(text.splitlines()) > 1:
      raise ValueError(f'{path}: {text!r} has a line break')
  content = io.StringIO()
  content.writelines(f'{line}\n' for line in head)
  csv.writer(content, lineterminator='\n').writerows([columns, *rows])
  write_atomically(pathlib.Path(path), content.getvalue().encode('utf-8'))


def read_file_flags(path: pathlib.Path) -> dict[str, str]:
  """Reads the flags above the table of a results file."""
  flags: dict[str, str] = {}
  with path.open(encoding='utf-8', errors='replace') as file:
    for line in file:
      if not line.startswith('#'):
        break
      if line.startswith(_FLAG):
        name, _, value = line.removeprefix(_FLAG).strip().partition('=')
        flags[name] = value
  return flags
