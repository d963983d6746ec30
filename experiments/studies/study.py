"""Studies: their files, and the rows of their runs.

A study is `experiments/studies/NAME.toml`, a sweep file that also says what it
asks, what it costs, and which columns and figures it needs. With
`arms_are_tasks = true` its arms are tasks, perhaps of several launchers, rather
than agents; those named "TASK:ARM" are several arms of a task. Its criteria are
in `experiments/studies/CRITERIA.py`, which has COLUMNS and `judge`, and may
have SETTINGS and AFTERWARDS, as in `Criteria`; several studies may share them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import importlib
import itertools
import pathlib
import shlex
import tempfile
from typing import Any, NamedTuple

import numpy as np

from experiments import launchers
from experiments.config import sweep_files
from experiments.config.declaring import RunError, UsageError
from experiments.config.sweep_files import SweepFile
from experiments.engines.sweep_folders import SweepFolder, folders_of
from experiments.studies import matching
from experiments.studies.claims import Claim
from experiments.studies.matching import ARM_COLUMN
from siamrl.report.lines import TASKS
from siamrl.report.loading import OF_FOLDERS
from siamrl.report.metrics import (
  PLAYED,
  RUN_COLUMN,
  Table,
  group_rows,
  is_number,
  last_rows,
  read_metrics,
)
from siamrl.report.results import Results, read_results, write_results
from siamrl.report.run_folder import RunFolder
from siamrl.report.sweep import clock_of, swept

_FOLDER = pathlib.Path(__file__).parent
# Significant digits in results files. Settings are compared with a study's.
_MEASURE_DIGITS = 7
_SETTING_DIGITS = 15


class Study(NamedTuple):
  """A study.

  Attributes:
    name: its name.
    sweep: its runs.
    question: the question that it asks.
    source: where it comes from; '' for no publication.
    cost: what all runs take on a CPU, in words.
    columns: the columns of metrics.csv that it keeps. Settings are compared by
      the first.
    baseline: columns and their values, which tell the setting whose mean is 1
      in each task; empty for none.
    figures: arguments of `experiments.plot` by what its output ends in.
    criteria: the module of its criteria; None if it has none.
    arms_are_tasks: whether its arms are tasks, rather than agents.
  """

  name: str
  sweep: SweepFile
  question: str
  source: str
  cost: str
  columns: tuple[str, ...]
  baseline: dict[str, Any]
  figures: dict[str, list[str]]
  criteria: str | None
  arms_are_tasks: bool

  def load_criteria(self) -> 'Criteria':
    """The criteria; those of a study without any make no claims."""
    if self.criteria is None:
      return Criteria((), lambda table: [])
    module = importlib.import_module(f'experiments.studies.{self.criteria}')
    return Criteria(
      module.COLUMNS,
      module.judge,
      getattr(module, 'SETTINGS', ('agent',)),
      getattr(module, 'AFTERWARDS', False),
    )


class Criteria(NamedTuple):
  """The criteria of a study.

  Attributes:
    columns: the measures that claims are about.
    judge: table -> claims; raises ValueError if it lacks a column or a setting.
    settings: options that claims tell runs apart by. One that runs do not vary
      has the value of their flags.
    afterwards: whether they were written when runs were known, rather than
      before any.
  """

  columns: tuple[str, ...]
  judge: Callable[[Table], list[Claim]]
  settings: tuple[str, ...] = ()
  afterwards: bool = False


def names() -> list[str]:
  """Returns the names of all studies."""
  return sorted(path.stem for path in _FOLDER.glob('*.toml'))


def read_study(name: str) -> Study:
  """Reads the file of a study."""
  file = sweep_files.read(_FOLDER / f'{name}.toml', launchers.NAMES)
  about = file.about
  return Study(
    name=name,
    sweep=file,
    question=about['question'],
    source=about.get('source', ''),
    cost=about['cost'],
    columns=tuple(about['columns']),
    baseline=about.get('baseline', {}),
    figures={k: shlex.split(text) for k, text in about['figures'].items()},
    criteria=about.get('criteria'),
    arms_are_tasks=about.get('arms_are_tasks', False),
  )


def is_published(name: str) -> bool:
  """Whether the rows of a study are kept in experiments/results."""
  return (_FOLDER.parent / 'results' / f'{name}-curves.csv').is_file()


def write_curves(
  path: pathlib.Path, study: Study, parts: Sequence[pathlib.Path]
) -> None:
  """Writes the rows of a study into one results file, arm after arm.

  Args:
    path: the file, which may be one of the parts.
    study: the study.
    parts: folders of sweeps, and results files. Together they have each run
      once at most.

  Raises:
    ValueError: a file of metrics is damaged, there are no rows at all, two
      parts have the same run, or no column tells their runs apart.
    RunError: a folder is no sweep's.
  """
  rows, flags = _collected(study, parts)
  arms = {name: index for index, name in enumerate(study.sweep.arms)}
  rows.sort(key=lambda row: arms.get(_arm(row, study), len(arms)))
  columns = _columns(rows, len(study.columns))
  digits = [
    _MEASURE_DIGITS if name in study.columns else _SETTING_DIGITS
    for name in columns
  ]
  told_by = {ARM_COLUMN} | ({'environment'} if study.arms_are_tasks else set())
  for name in study.load_criteria().settings:
    values = {str(other.get(name)) for other in flags}
    if len(values) > 1 and not {name, *told_by} & {*columns}:
      found = ', '.join(sorted(values))
      raise ValueError(f'no column tells --{name}={found} apart')
  shared = {
    name: value
    for name, value in flags[0].items()
    if all(other.get(name) == value for other in flags)
    and name not in (*columns, *OF_FOLDERS)
  }
  write_results(
    path,
    [
      [_cell(row.get(n), d) for n, d in zip(columns, digits, strict=True)]
      for row in rows
    ],
    columns,
    shared,
  )


def _collected(
  study: Study, parts: Sequence[pathlib.Path]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
  """The rows of all runs, and the flags of each."""
  rows: list[dict[str, Any]] = []
  flags: list[dict[str, str]] = []
  runs: list[list[_Run]] = []
  for part in parts:
    runs.append([])
    for read, point in _folders(study, part):
      flags.append(read.flags)
      rows += _rows(read, point, study)
      runs[-1] += _runs(read, point)
  _refuse_same_runs(parts, runs)
  if not rows:
    raise ValueError('no cell has rows of metrics')
  return rows, flags


def _folders(
  study: Study, part: pathlib.Path
) -> Iterator[tuple[Results, Mapping[str, str]]]:
  """The rows of each folder of a part, and what its cells vary."""
  folder = sweep_folder(part)
  if folder is None:
    yield read_results(part), {}
    return
  for name, cell in folder.cells().items():
    for run in folders_of(folder.run(name).path):
      with contextlib.suppress(FileNotFoundError):  # it has not begun
        yield read_results(run.path), cell['point']


class _Run(NamedTuple):
  """A run, by all that is known of it.

  Attributes:
    told_by: the settings that tell it from others of its part.
    settings: these, and its flags.
  """

  told_by: dict[str, Any]
  settings: dict[str, Any]

  @property
  def key(self) -> tuple[Any, ...]:
    """Its task, its arm and its seed."""
    return tuple(
      self.settings.get(n) for n in (*PLAYED, ARM_COLUMN, RUN_COLUMN)
    )


def _runs(read: Results, point: Mapping[str, str]) -> list[_Run]:
  """The runs of a table."""
  table, flags = read
  by = [*swept(table, flags), RUN_COLUMN] if RUN_COLUMN in table else []
  shared = {
    name: _value(text)
    for name, text in {**flags, **point}.items()
    if text and name not in OF_FOLDERS
  }
  runs = []
  for key in group_rows(table, by) if by else [()]:
    cells = {**point, **dict(zip(by, key, strict=True))}
    told_by = {
      name: _value(cell) if isinstance(cell, str) else cell
      for name, cell in cells.items()
      if cell not in ('', None)
    }
    runs.append(_Run(told_by, shared | told_by))
  return runs


def _refuse_same_runs(
  parts: Sequence[pathlib.Path], runs: Sequence[Sequence[_Run]]
) -> None:
  """Raises ValueError if two parts have runs that nothing tells apart."""
  known: dict[tuple[Any, ...], list[tuple[pathlib.Path, _Run]]] = {}
  for part, of_part in zip(parts, runs, strict=True):
    for run in of_part:
      for other, second in known.get(run.key, []):
        shared = run.settings.keys() & second.settings.keys()
        if all(run.settings[name] == second.settings[name] for name in shared):
          which = ', '.join(
            f'{name} {_cell(value, _SETTING_DIGITS)}'
            for name, value in (second.told_by | run.told_by).items()
          )
          raise ValueError(f'{other} and {part} have the same run: {which}')
    for run in of_part:
      known.setdefault(run.key, []).append((part, run))


def _arm(row: Mapping[str, Any], study: Study) -> str:
  """The name of a row's arm."""
  names = ('environment',) * study.arms_are_tasks + (ARM_COLUMN,)
  return ':'.join(str(row[name]) for name in names if row.get(name))


def _rows(
  read: Results, point: Mapping[str, str], study: Study
) -> Iterator[dict[str, Any]]:
  """The rows of a run folder, with the columns that tell runs apart."""
  table, flags = read
  if not table or not len(next(iter(table.values()))):
    return
  if RUN_COLUMN not in table:  # the folder of one run
    length = len(next(iter(table.values())))
    table = table | {RUN_COLUMN: np.full(length, int(flags[RUN_COLUMN]))}
    by: list[str] = []
  else:
    by = swept(table, flags)
  x = clock_of(table)
  if study.columns[0] not in table:
    raise ValueError(f'no column {study.columns[0]!r}')
  known = {k: v for k, v in point.items() if k not in (*by, RUN_COLUMN)}
  if study.arms_are_tasks and ARM_COLUMN in known:
    task, _, arm = known.pop(ARM_COLUMN).partition(':')
    known = {'environment': task} | ({ARM_COLUMN: arm} if arm else {}) | known
  elif ARM_COLUMN in known:
    tasks = [n for n in PLAYED if n in flags and n not in (*by, *known)]
    known |= {name: flags[name] for name in tasks}
  for key, run in group_rows(
    last_rows(table, [*by, RUN_COLUMN, x]), [*by, RUN_COLUMN]
  ).items():
    of_run = dict(zip([*by, RUN_COLUMN], key, strict=True))
    unknown = np.full(len(run[x]), np.nan)
    values = [run.get(name, unknown) for name in study.columns]
    for time, *cells in zip(run[x].tolist(), *values, strict=True):
      measured = dict(zip(study.columns, map(float, cells), strict=True))
      yield known | of_run | {x: time} | measured


def _columns(rows: Sequence[dict[str, Any]], measures: int) -> list[str]:
  """The columns of all rows: settings, the seed, the clock and measures."""
  last = list(rows[0])[-(measures + 2) :]
  found = dict.fromkeys(name for row in rows for name in row)
  return [*(name for name in found if name not in last), *last]


def _cell(value: Any, digits: int) -> str:
  """The text of a cell; numbers have so many digits, or 10 if whole."""
  if value is None:
    return ''
  if isinstance(value, float):
    return f'{value:.{10 if value.is_integer() else digits}g}'
  return str(value)


def judge(
  study: Study,
  paths: Sequence[pathlib.Path],
  notes: list[str],
  *,
  own: bool = False,
) -> list[Claim]:
  """Judges a study by the rows of some folders and results files.

  Args:
    study: the study.
    paths: folders of sweeps, and results files.
    notes: gets lines about what is missing, and how runs differ from those of
      the study.
    own: whether the runs were started as this study, so that a difference is
      on purpose.

  Raises:
    FileNotFoundError: a folder has no metrics, or there is no such file.
    UsageError: the runs are of another task or agent.
    ValueError: the rows are not of such a study, or two paths have the same
      run.
  """
  criteria = study.load_criteria()
  tables, runs = [], []
  for path in paths:
    table, flags = _read(study, path, notes)
    _compare(study, path, table, flags, notes, own)
    tables.append(_with_settings(table, flags, criteria.settings))
    runs.append(_runs(Results(table, flags), {}))
  _refuse_same_runs(paths, runs)
  table = _joined(tables, criteria.settings)
  missing = [name for name in criteria.columns if name not in table]
  if criteria.columns and len(missing) == len(criteria.columns):
    raise ValueError(f'no column {", ".join(missing)}')
  if missing:
    notes.append(f'no column {", ".join(missing)}: claims about it are open')
  unknown = np.full(len(table[RUN_COLUMN]), np.nan)
  return criteria.judge(table | dict.fromkeys(missing, unknown))


def _joined(tables: Sequence[Table], settings: Sequence[str]) -> Table:
  """The rows of several tables.

  It has the measures that all of them have, and the settings of each; one that
  a table lacks means nothing to its runs.
  """
  names_ = dict.fromkeys(name for table in tables for name in table)
  kept = {*settings}
  for table in tables:  # columns before the seed are settings
    kept.update(itertools.takewhile(lambda name: name != RUN_COLUMN, table))
  joined = {}
  for name in names_:
    columns = [table.get(name) for table in tables]
    text = any(c is not None and c.dtype.kind == 'U' for c in columns)
    if any(c is None for c in columns) and name not in kept:
      continue
    joined[name] = np.concatenate(
      [
        np.full(len(table[RUN_COLUMN]), '' if text else np.nan)
        if column is None
        else column.astype(np.str_ if text else column.dtype)
        for table, column in zip(tables, columns, strict=True)
      ]
    )
  return joined


def _read(study: Study, path: pathlib.Path, notes: list[str]) -> Results:
  """Reads the rows of runs; notes if runs are not finished."""
  if not path.is_dir():
    table, flags = read_results(path)
  elif (sweep := sweep_folder(path)) is not None:
    table, flags = _gathered(study, sweep)
  else:
    folder = RunFolder(path)
    table, flags = read_metrics(folder.metrics), folder.read_flags() or {}
    rows, all_rows = len(next(iter(table.values()), ())), folder.rows()
    if all_rows is not None and rows < all_rows:
      notes.append(f'not finished: {rows:,} of {all_rows:,} rows')
  if RUN_COLUMN not in table:
    raise ValueError(
      f'no column {RUN_COLUMN!r}: a row must be of one run, as in '
      'OUTPUT-curves.csv of experiments.plot'
    )
  return Results(table, flags)


def _with_settings(
  table: Table, flags: Mapping[str, str], settings: Sequence[str]
) -> Table:
  """A table with the settings that its runs share as columns."""
  number = len(table[RUN_COLUMN])
  return table | {
    name: np.full(number, _value(flags[name]))
    for name in settings
    if name not in table and flags.get(name)
  }


def _compare(
  study: Study,
  path: pathlib.Path,
  table: Table,
  flags: Mapping[str, str],
  notes: list[str],
  own: bool,
) -> None:
  """Notes how runs differ from those of a study; refuses other tasks, agents.

  Agents may differ where the criteria tell runs apart by them: a study of one
  may be judged beside another.
  """
  try:
    found = matching.differences(
      study.sweep, table, flags, arms_are_tasks=study.arms_are_tasks
    )
  except (UsageError, RunError) as error:
    notes.append(f'flags of {path} are not compared with the study: {error}')
    return
  refused = {*TASKS, ARM_COLUMN, 'agent'}
  refused -= {'agent'} & {*study.load_criteria().settings}
  for difference in found:
    if difference.name in refused and not own:
      raise UsageError(
        f'--runs={path} must be of --study={study.name}; they have {difference}'
      )
    notes.append(f'note: {path} has {difference}')
  if not own and not matching.says_its_task(table, flags):
    notes.append(f'note: {path} does not say which task its runs are of')


def _value(flag: str) -> float | str:
  return float(flag) if is_number(flag) else flag


def _gathered(study: Study, folder: SweepFolder) -> Results:
  """The rows of a sweep's cells so far."""
  arms = {cell['point'].get(ARM_COLUMN, '') for cell in folder.cells().values()}
  if not arms <= set(study.sweep.arms):
    raise UsageError(
      f'--runs={folder.path} must be of --study={study.name}; its cells are '
      + ', '.join(itertools.islice(folder.cells(), 3))
    )
  with tempfile.TemporaryDirectory() as temporary:
    path = pathlib.Path(temporary, 'curves.csv')
    write_curves(path, study, [folder.path])
    return read_results(path)


def sweep_folder(path: pathlib.Path) -> SweepFolder | None:
  """The folder of a sweep, if that is what a path is."""
  folder = SweepFolder(path)
  try:
    return folder if folder.is_one() and folder.cells() else None
  except RunError:
    return None
