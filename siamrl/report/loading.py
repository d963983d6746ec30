"""Data frames of many runs: their rows, and what varies from run to run."""

from collections.abc import Iterable, Iterator, Sequence
import json
import os
import pathlib
from typing import Any, NamedTuple
import warnings

import numpy as np

from siamrl.optional import import_optional
from siamrl.report.metrics import RUN_COLUMN, Table, is_number
from siamrl.report.results import read_file_flags
from siamrl.report.run_folder import WHERE_FLAGS, RunFolder, read_file
from siamrl.report.salvage import read_whole_rows

FOLDER_COLUMN = 'folder'
FRAMES = ('pandas', 'numpy')

# Folders above a run's folder that are searched.
_DEPTH = 3
# Flags about a folder rather than about one run in it.
OF_FOLDERS = {
  *WHERE_FLAGS,
  'also',
  'checkpoint_period_s',
  'coordinator',
  'fresh_environments',
  'num_processes',
  'process_id',
  'seed',
  'seeds',
}
# Added to a flag's name that is also the name of a measured column.
_SUFFIX = '_flag'

_Path = str | os.PathLike[str]


class _Source(NamedTuple):
  """A folder or file with rows.

  Attributes:
    path: the folder or file.
    table: [R] arrays by column.
    flags: by name.
    swept: the columns that tell its settings apart.
  """

  path: pathlib.Path
  table: Table
  flags: dict[str, str]
  swept: list[str]

  @property
  def rows(self) -> int:
    return len(next(iter(self.table.values())))


def load(
  folders: _Path | Iterable[_Path],
  *,
  frame: str | None = None,
  flags: Sequence[str] = (),
) -> Any:
  """Loads runs as one data frame with a row for each run and iteration.

  Its columns are, in this order: what varies over the runs, which are swept
  options and the flags that differ between folders; `seed`; the clocks and
  metrics, under their names in `metrics.csv`; and `folder`, the run's folder or
  the results file. A flag with the name of a metric, such as `frames`, is
  called `frames_flag`.

  Numbers are numbers, and text is text; true and false are text. A value that
  does not apply to a run, or was not measured, is missing: NaN among numbers,
  None (in NumPy's arrays '') among text.

  Files are only read, and runs may be going on. Of a file that is cut or
  damaged the whole rows are loaded; a warning names its folder, as it does for
  a folder of an older version, which lacks flags that others have.

  Args:
    folders: one or several paths: the folder of a run or of a compiled sweep,
      a results file, or a folder that holds such folders, at most three levels
      down.
    frame: 'pandas' for a data frame of pandas; 'numpy' for a dict of [R] arrays
      by column; None for pandas where it is installed.
    flags: flags to have as columns even if they are the same in all runs.

  Returns:
    The data frame, or the dict.

  Raises:
    FileNotFoundError: if there is nothing at a path.
    ImportError: if pandas is asked for and not installed.
    ValueError: if a path holds no rows of runs, or there is no such frame.
  """
  if frame not in (None, *FRAMES):
    raise ValueError(f'frame must be one of {", ".join(FRAMES)}, not {frame!r}')
  if isinstance(folders, str | os.PathLike):
    folders = [folders]
  pandas = None
  if frame != 'numpy':
    try:
      pandas = import_optional('pandas', 'data frames need pandas', 'export')
    except ImportError:
      if frame == 'pandas':
        raise
  sources = _read_all([pathlib.Path(folder) for folder in folders])
  columns = _join(sources, flags)
  if pandas is None:
    return columns
  return pandas.DataFrame(
    {
      name: [text or None for text in column.tolist()]
      if column.dtype.kind == 'U'
      else column
      for name, column in columns.items()
    }
  )


def _read_all(paths: Sequence[pathlib.Path]) -> list[_Source]:
  """Reads all runs at some paths, each once."""
  sources: dict[pathlib.Path, _Source | None] = {}
  if not paths:
    raise ValueError('no folder is given')
  for path in paths:
    if not path.exists():
      raise FileNotFoundError(f'{path}: no such file or folder')
    found = {each.resolve(): each for each in _find(path, _DEPTH)}
    for real in [real for real in found if real not in sources]:
      sources[real] = _read(found[real])
    if all(sources[real] is None for real in found):
      raise ValueError(f'{path}: holds no rows of runs')
  return [source for source in sources.values() if source is not None]


def _find(path: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
  """Finds the folders of runs, and of compiled sweeps, in order."""
  if not path.is_dir():
    folder = RunFolder(path.parent)
    of_folder = path == folder.metrics and folder.flags.exists()
    yield path.parent if of_folder else path
    return
  folder = RunFolder(path)
  if folder.metrics.exists() or folder.flags.exists():
    yield path
    return
  if not depth:
    return
  try:
    below = sorted(path.iterdir())
  except OSError as error:
    _warn(path, f'cannot be read: {error.strerror}')
    return
  for child in below:
    if child.is_dir() and not child.name.startswith('.'):
      yield from _find(child, depth - 1)


def _read(path: pathlib.Path) -> _Source | None:
  """Reads a folder or a results file; None if it has no rows that are whole."""
  folder = RunFolder(path)
  files = [path]
  flags: dict[str, str] | None
  if path.is_dir():
    flags = folder.read_flags()
    if flags is None:
      _warn(path, f'{folder.flags.name} is missing or damaged: flags unknown')
    files = [folder.metrics]
    if not folder.metrics.exists():  # several processes have not yet finished
      files = sorted(folder.shards.glob(f'*/{folder.metrics.name}'))
  else:
    flags = read_file_flags(path)
  tables = []
  for file in files:
    try:
      table, problems = read_whole_rows(file)
    except (OSError, ValueError) as error:
      _warn(path, f'nothing of it can be loaded: {error}')
      continue
    if problems:
      _warn(path, f'{" and ".join(problems)} in {file.name}, and left out')
    if table and len(next(iter(table.values()))):
      tables.append(table)
  if not tables:
    _warn(path, 'no rows yet')
    return None
  table = tables[0]
  if len(tables) > 1:
    every = dict.fromkeys(name for each in tables for name in each)
    sizes = [len(next(iter(each.values()))) for each in tables]
    table = {
      name: _concatenate([each.get(name) for each in tables], sizes)
      for name in every
    }
  names = list(table)
  swept = names[: names.index(RUN_COLUMN)] if RUN_COLUMN in table else []
  return _Source(path, table, flags or {}, swept)


def _join(sources: Sequence[_Source], flags: Sequence[str]) -> Table:
  """Joins the rows of all sources; see `load`."""
  sizes = [source.rows for source in sources]
  settings = dict.fromkeys(name for s in sources for name in s.swept)
  settings |= dict.fromkeys(_differing(sources, settings))
  settings |= dict.fromkeys(flags)
  measured = dict.fromkeys(
    name
    for source in sources
    for name in source.table
    if name not in source.swept and name != RUN_COLUMN
  )
  columns = {}
  for name in settings:
    unlike = name in measured or name == FOLDER_COLUMN
    columns[name + _SUFFIX if unlike else name] = _setting(sources, name)
  seeds = [
    s.table.get(RUN_COLUMN, _constant(s.flags.get(RUN_COLUMN), s.rows))
    for s in sources
  ]
  columns[RUN_COLUMN] = _concatenate(seeds, sizes)
  for name in measured:
    columns[name] = _concatenate(
      [None if name in s.swept else s.table.get(name) for s in sources], sizes
    )
  paths = [str(source.path) for source in sources]
  columns[FOLDER_COLUMN] = np.repeat(np.array(paths, np.str_), sizes)
  return columns


def _differing(sources: Sequence[_Source], swept: Iterable[str]) -> list[str]:
  """Returns the flags, but those of folders, in which sources differ."""
  names = dict.fromkeys(name for s in sources for name in sorted(s.flags))
  # Of others it is unknown whether they have a flag that is not there.
  whole = [s for s in sources if s.flags and s.path.is_dir()]
  differing = []
  for name in names:
    values = {source.flags.get(name) for source in whole}
    values |= {s.flags[name] for s in sources if name in s.flags}
    if len(values) > 1 and name not in OF_FOLDERS and name not in swept:
      differing.append(name)
  _warn_of_older(whole, differing)
  return differing


def _warn_of_older(sources: Sequence[_Source], differing: list[str]) -> None:
  """Warns of folders that were written before some flags were added.

  A flag without a value is not among the flags, but among the options of
  config.json, of which an older version of the same launcher has fewer.
  """
  if all(name in s.flags for s in sources for name in differing):
    return
  options = {source.path: _options(source.path) for source in sources}
  most = set(options.values())
  for path, names in options.items():
    newer = max((o for o in most if names < o), key=len, default=names)
    absent = [name for name in differing if name in newer - names]
    if names and absent:
      _warn(path, f'an older version wrote it, without {", ".join(absent)}')


def _options(path: pathlib.Path) -> frozenset[str]:
  """Returns the options that a run knew of; none if they cannot be read."""
  try:
    return frozenset(json.loads(read_file(RunFolder(path).config)))
  except (OSError, ValueError, TypeError, RecursionError):
    return frozenset()


def _setting(sources: Sequence[_Source], name: str) -> np.ndarray:
  """Joins the values of an option, from tables and flags."""
  flags = [None if name in s.swept else s.flags.get(name) for s in sources]
  columns = [s.table[name] if name in s.swept else None for s in sources]
  text = any(flag and not is_number(flag) for flag in flags) or any(
    column is not None and column.dtype.kind == 'U' for column in columns
  )
  pieces = [
    _constant(flag, source.rows, text=text) if column is None else column
    for source, flag, column in zip(sources, flags, columns, strict=True)
  ]
  joined = _concatenate(pieces, [source.rows for source in sources])
  if joined.dtype.kind == 'U':
    # A text that is a number has brackets in a table, to be told apart.
    bare = np.char.strip(joined, '[]')
    joined = np.where(np.char.isdecimal(bare), bare, joined)
  return joined


def _constant(
  flag: str | None, rows: int, *, text: bool = False
) -> np.ndarray | None:
  """Repeats the value of a flag; None for one that does not apply."""
  if not flag:
    return None
  if text or not is_number(flag):
    return np.full(rows, flag)
  try:
    return np.full(rows, int(flag), np.int64)
  except (ValueError, OverflowError):
    return np.full(rows, float(flag))


def _concatenate(
  pieces: Sequence[np.ndarray | None], sizes: Sequence[int]
) -> np.ndarray:
  """Joins arrays; text if any is, and numbers otherwise.

  Args:
    pieces: arrays of integers, floats or text; None for missing values.
    sizes: the length of each.
  """
  kinds = {piece.dtype.kind for piece in pieces if piece is not None}
  if 'U' in kinds:
    return np.concatenate(
      [
        np.full(n, '') if piece is None else _as_text(piece)
        for piece, n in zip(pieces, sizes, strict=True)
      ]
    )
  missing = any(piece is None for piece in pieces)
  kind = np.int64 if kinds == {'i'} and not missing else np.float64
  return np.concatenate(
    [
      np.full(n, np.nan) if piece is None else piece.astype(kind, copy=False)
      for piece, n in zip(pieces, sizes, strict=True)
    ]
  )


def _as_text(column: np.ndarray) -> np.ndarray:
  """Writes numbers as text, '' for NaN."""
  if column.dtype.kind == 'U':
    return column
  return np.where(np.isnan(column), '', column.astype(np.str_))


def _warn(path: pathlib.Path, problem: str) -> None:
  warnings.warn(f'{path}: {problem}', UserWarning, stacklevel=2)
