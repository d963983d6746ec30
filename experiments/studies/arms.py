"""Studies of several arms: their files, and the rows of their runs.

An arm is a command line of a launcher, which may be a sweep. The file of a
study is `experiments/studies/NAME.toml`: the launcher, the arms, the measure
that they are compared by, and the baseline in whose units scores may be added
up over tasks.
"""

from collections.abc import Sequence
import pathlib
import shlex
import tomllib
from typing import Any, NamedTuple

import numpy as np

from experiments.engines.folders import WHERE
from siamrl.report.metrics import RUN_COLUMN, Table, group_rows, last_rows
from siamrl.report.results import read_results, write_results
from siamrl.report.run_folder import RunFolder
from siamrl.report.sweep import clock_of, swept

_FOLDER = pathlib.Path(__file__).parent
ARM_COLUMN = 'arm'
# Columns that name the task, of which a launcher has one.
TASK_COLUMNS = ('game', 'environment')


class Study(NamedTuple):
  """A study of several arms.

  Attributes:
    launcher: the module of `experiments` that trains all arms.
    measure: the column of metrics.csv that arms are compared by.
    arms: the arguments of each arm, by its name.
    baseline: columns and their values, which tell the setting whose mean is 1
      in each task; empty for none.
  """

  launcher: str
  measure: str
  arms: dict[str, list[str]]
  baseline: dict[str, Any]


def names() -> list[str]:
  """Returns the names of all studies of several arms."""
  return sorted(path.stem for path in _FOLDER.glob('*.toml'))


def read_study(name: str) -> Study:
  """Reads the file of a study."""
  read = tomllib.loads((_FOLDER / f'{name}.toml').read_text(encoding='utf-8'))
  arms = {arm: shlex.split(text) for arm, text in read['arms'].items()}
  return Study(
    read['launcher'], read['measure'], arms, read.get('baseline', {})
  )


def folders_of(path: pathlib.Path) -> list[RunFolder]:
  """Returns the run folders of an arm: its own, or those inside it.

  Environments that are stepped on the host have a folder for each run.
  """
  inside = sorted(path.iterdir()) if path.is_dir() else []
  found = [RunFolder(each) for each in (path, *inside)]
  return [folder for folder in found if folder.read_flags() is not None]


def is_finished(path: pathlib.Path) -> bool:
  """Returns whether the runs of an arm that have begun have all their rows."""
  folders = folders_of(path)
  try:
    return bool(folders) and all(
      len(_length(folder)) >= (folder.rows() or 0) for folder in folders
    )
  except (OSError, ValueError):
    return False


def _length(folder: RunFolder) -> np.ndarray:
  return next(iter(read_results(folder.path).table.values()), np.empty(0))


def write_curves(
  path: pathlib.Path, study: Study, run_dir: pathlib.Path
) -> list[str]:
  """Writes the rows of all arms into a results file.

  Args:
    path: the file.
    study: the study.
    run_dir: its folder, with one for each arm.

  Returns:
    The arms that have no rows yet.

  Raises:
    ValueError: a file of metrics is damaged, or there are no rows at all.
  """
  rows: list[dict[str, Any]] = []
  flags: list[dict[str, str]] = []
  missing = []
  for arm in study.arms:
    of_arm: list[dict[str, Any]] = []
    for folder in folders_of(run_dir / arm):
      if not folder.metrics.exists() or not len(_length(folder)):
        continue
      read = read_results(folder.path)
      flags.append(read.flags)
      of_arm += _rows(*read, arm=arm, measure=study.measure)
    rows += of_arm
    if not of_arm:
      missing.append(arm)
  if not rows:
    raise ValueError('no arm has rows of metrics')
  columns = _columns(rows)
  shared = {
    name: value
    for name, value in flags[0].items()
    if all(other.get(name) == value for other in flags)
    and name not in (*columns, *WHERE, 'seeds', 'also')
  }
  write_results(
    path,
    [[_cell(row.get(n)) for n in columns] for row in rows],
    columns,
    shared,
  )
  return missing


def _rows(
  table: Table, flags: dict[str, str], *, arm: str, measure: str
) -> list[dict[str, Any]]:
  """Returns the rows of a run folder, with the columns that tell runs apart."""
  if RUN_COLUMN not in table:  # the folder of one run
    length = len(next(iter(table.values())))
    table = table | {RUN_COLUMN: np.full(length, int(flags[RUN_COLUMN]))}
    by: list[str] = []
  else:
    by = swept(table, flags)
  x = clock_of(table)
  if measure not in table:
    raise ValueError(f'{arm} has no column {measure!r}')
  known = {n: flags[n] for n in TASK_COLUMNS if n in flags and n not in by}
  rows = []
  for key, run in group_rows(
    last_rows(table, [*by, RUN_COLUMN, x]), [*by, RUN_COLUMN]
  ).items():
    point = dict(zip([*by, RUN_COLUMN], key, strict=True))
    rows += [
      {ARM_COLUMN: arm, **known, **point, x: time, measure: float(value)}
      for time, value in zip(run[x].tolist(), run[measure], strict=True)
    ]
  return rows


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
  """Returns the columns of all rows: settings, the seed, clock and measure."""
  last = list(rows[0])[-3:]
  found = dict.fromkeys(name for row in rows for name in row)
  return [*(name for name in found if name not in last), *last]


def _cell(value: Any) -> str:
  """Returns the text of a cell; numbers have six digits, or more if whole."""
  if value is None:
    return ''
  if isinstance(value, float):
    return f'{value:.10g}' if value.is_integer() else f'{value:.7g}'
  return str(value)
