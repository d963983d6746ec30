"""Run folders, which hold a run's files and lock out other processes.

A folder belongs to one set of flags. The same flags resume it, and others are
rejected. It is locked while a process writes to it. A folder that is not a run
folder is never written to.
"""

import contextlib
import contextvars
import datetime
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Self

from siamrl.parameters import FieldError
from siamrl.report import checkout

# The first line of flags.txt, which marks a run folder. absl reads it as a
# comment.
_MARK = '# siamrl run folder; python ... --flagfile=<this file> runs it again'
_LOCK = '.lock'
_TEMPORARY = '.tmp'
# Waits of a process that finds the lock taken.
_TRIES, _TRY_S = 5, 0.02
# Of a folder's name; file systems allow 255 bytes.
_MOST_CHARACTERS = 200

# Distributions whose versions can change a run's results.
_DISTRIBUTIONS = (
  'siamrl',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'chex',
  'numpy',
  'orbax-checkpoint',
  'gymnasium',
  'ale-py',
  'gymnax',
  'mujoco',
)

# Flags that determine where a run happens, not which run it is.
WHERE_FLAGS = ('run_dir', 'platform', 'overwrite', 'user_file', 'track')


class RunFolderError(RuntimeError):
  """Error: a run folder cannot be used; the message tells the user why."""


class WrongFolderError(RunFolderError):
  """Error: the folder belongs to another run or is not a run folder."""


class RunFolder:
  """Paths of a run's files. Reading needs no lock and creates nothing.

  Attributes:
    path: the folder.
    changes: differences in versions and device from the previous start, a few
      words each; set by `open_run_folder`.
    notes: lines for the user about files with problems that do not stop the
      run.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Sets the folder, which need not exist; `open_run_folder` creates it."""
    self.path = pathlib.Path(path)
    self.notes: list[str] = []
    self._lock: int | None = None
    self.changes: list[str] = []

  @property
  def flags(self) -> pathlib.Path:
    """The run's flags, one `--name=value` per line: an absl flag file."""
    return self.path / 'flags.txt'

  @property
  def config(self) -> pathlib.Path:
    """The resolved configuration, JSON."""
    return self.path / 'config.json'

  @property
  def versions(self) -> pathlib.Path:
    """Versions and devices, JSON: a list, one record for each start."""
    return self.path / 'versions.json'

  @property
  def metrics(self) -> pathlib.Path:
    """Metrics with one row per iteration, CSV."""
    return self.path / 'metrics.csv'

  @property
  def events(self) -> pathlib.Path:
    """Directory of TensorBoard events."""
    return self.path / 'events'

  @property
  def checkpoints(self) -> pathlib.Path:
    """Directory of checkpoints."""
    return self.path / 'checkpoints'

  @property
  def replay(self) -> pathlib.Path:
    """Directory of the stored replay memory."""
    return self.path / 'replay'

  @property
  def dataset(self) -> pathlib.Path:
    """Data set that the run collected to learn from, NumPy's .npz."""
    return self.path / 'dataset.npz'

  @property
  def curve(self) -> pathlib.Path:
    """Learning curve, PNG."""
    return self.path / 'curve.png'

  @property
  def videos(self) -> pathlib.Path:
    """Directory of videos."""
    return self.path / 'videos'

  @property
  def shards(self) -> pathlib.Path:
    """Directory of the folders of several processes that share the runs."""
    return self.path / 'shards'

  def shard(self, number: int) -> 'RunFolder':
    """Returns the folder of one of these processes."""
    return RunFolder(self.shards / f'{number:03}')

  def read_flags(self) -> dict[str, str] | None:
    """Reads the flags of the run; None if this is not a run folder."""
    try:
      lines = read_file(self.flags).decode('utf-8').splitlines()
    except (OSError, UnicodeDecodeError):
      return None
    if lines[:1] != [_MARK]:
      return None
    pairs = (line.removeprefix('--').partition('=') for line in lines[1:])
    return {name: value for name, _, value in pairs}

  def rows(self) -> int | None:
    """Rows of the metrics after the run has finished; None if not recorded."""
    try:
      rows = read_json(self.config)['derived']['rows']
    except (OSError, ValueError, LookupError, TypeError):
      return None
    return rows if type(rows) is int else None

  def in_use(self) -> bool:
    """Whether a process holds the lock, as far as this machine can tell."""
    try:
      descriptor = os.open(self.path / _LOCK, os.O_RDONLY)
    except OSError:
      return False
    try:
      fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
    except OSError:  # a file system without locks
      return False
    finally:
      os.close(descriptor)
    return False

  def close(self) -> None:
    """Releases the lock, if this object holds it; may be called twice."""
    if self._lock is not None:
      os.close(self._lock)
      self._lock = None

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused_error: object) -> None:
    self.close()


def open_run_folder(
  path: str | os.PathLike[str],
  flags: Mapping[str, str],
  config: Mapping[str, Any],
  *,
  overwrite: bool = False,
  ignore: Collection[str] = WHERE_FLAGS,
  now: Callable[[Mapping[str, str]], Mapping[str, str]] = dict,
) -> tuple[RunFolder, bool]:
  """Creates a run folder, or opens that of the same run, and locks it.

  The lock is held until `close`, or until the process ends in any way.

  Args:
    path: the folder; it and its parents are created if needed.
    flags: the flags of the run by name, as text.
    config: other data to record, as JSON.
    overwrite: whether to start afresh in an existing run folder: files that
      siamrl wrote there are deleted, others are kept.
    ignore: flags that may differ between a run and its resumption. They are
      recorded, but not compared.
    now: flags of the folder -> the same flags with their current names and
      values, and those added since.

  Returns:
    (folder, resumed): `resumed` is False for a new run.

  Raises:
    WrongFolderError: if the folder is another run's or not a run folder.
    RunFolderError: also if it is in use, cannot be written, or a record in it
      is damaged. Files of a run or a user are then unchanged.
    TypeError: if JSON cannot represent `config`.
    ValueError: if a flag file cannot represent a flag's value.
  """
  flag_lines = _flag_lines(flags)
  config_text = json.dumps(config, indent=2, sort_keys=True) + '\n'
  folder = RunFolder(path)
  try:
    if folder.path.exists() and not folder.path.is_dir():
      raise WrongFolderError(f'{folder.path}: not a directory')
    folder.path.mkdir(parents=True, exist_ok=True)
    _check_ours(folder)
    folder._lock = _lock(folder.path / _LOCK)
    _check_ours(folder)  # it may have changed before it was locked
    resumed = False
    known = folder.read_flags()
    if known is not None and overwrite:
      _remove_contents(folder)
    elif known is not None:
      current = now(known)
      _check_flags(folder, current, flags, ignore)
      resumed = True
      changed = dict(known.items() ^ current.items())
      ignore = {*ignore, *changed}
    if not resumed:
      # First, since it marks the folder as ours: a process killed after this
      # line leaves a folder that can be resumed.
      write_atomically(folder.flags, flag_lines.encode())
    _record_config(folder, config_text, ignore if resumed else None)
    _record_versions(folder)
  except OSError as error:
    folder.close()
    raise RunFolderError(
      f'{folder.path}: cannot be written: {error.strerror or error}'
    ) from error
  except BaseException:
    folder.close()
    raise
  return folder, resumed


def folder_name(swept: Mapping[str, str]) -> str:
  """The name of a run's folder, valid in every file system.

  Args:
    swept: values of the swept options, and the seed, as flags have them.
  """
  text = ','.join(f'{name}={value}' for name, value in swept.items())
  name = re.sub(r'[^A-Za-z0-9_.,=+-]', '_', text)[:_MOST_CHARACTERS]
  if name == text:
    return name
  return f'{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}'


def read_file(path: str | os.PathLike[str]) -> bytes:
  """Reads a whole file without ever waiting: pipes are rejected.

  Args:
    path: path of a regular file, or of a link to one.

  Raises:
    OSError: if it cannot be read, or is not a regular file.
  """
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
  with open(descriptor, 'rb') as file:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
      raise OSError(errno.EINVAL, 'Not a regular file', os.fspath(path))
    return file.read()


def write_atomically(path: pathlib.Path, content: bytes) -> None:
  """Writes a file so that readers and crashes leave the old or the new one.

  Args:
    path: the file; its directory exists.
    content: the whole content.

  Raises:
    OSError: if it cannot be written; the old file is then unchanged.
  """
  temporary = path.with_name(f'.{path.name}{_TEMPORARY}')
  try:
    with open(temporary, 'wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise
  if (noted := _NOTED.get()) is not None:
    noted.append(path)
  directory = os.open(path.parent, os.O_RDONLY)
  try:
    os.fsync(directory)  # the new name too
  finally:
    os.close(directory)


# Files written so far, of the calls inside `noting_files`.
_NOTED: contextvars.ContextVar[list[pathlib.Path] | None] = (
  contextvars.ContextVar('noted', default=None)
)


@contextlib.contextmanager
def noting_files() -> Iterator[list[pathlib.Path]]:
  """Yields a list to which `write_atomically` adds each file it writes."""
  found: list[pathlib.Path] = []
  token = _NOTED.set(found)
  try:
    yield found
  finally:
    _NOTED.reset(token)


def versions() -> dict[str, Any]:
  """Returns versions, devices and commit: results may depend on them."""
  import jax  # starts the backend, so not on import

  now = datetime.datetime.now().astimezone()
  record: dict[str, Any] = {
    'time': now.isoformat(timespec='seconds'),
    'python': platform.python_version(),
    'system': f'{platform.system()} {platform.machine()}',
    'backend': jax.default_backend(),
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
    'cores': _cores(),
    'xla_flags': ' '.join(sorted(os.environ.get('XLA_FLAGS', '').split())),
  }
  for name in _DISTRIBUTIONS:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      record[name] = importlib.metadata.version(name)
  commit = checkout.commit()
  if commit is not None:
    record['commit'] = commit
  return record


def _cores() -> int:
  """Returns the number of CPU cores that XLA uses and splits sums between."""
  given = os.environ.get('NPROC', '')  # as XLA reads it
  if given.isdecimal():
    return int(given)
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """Describes the differences between two starts of a run.

  Only keys in both count, as records of older versions have fewer.
  """
  return [
    f'{name} {before[name] or "none"} before, {now[name] or "none"} now'
    for name in now
    if name != 'time' and name in before and before[name] != now[name]
  ]


def _flag_lines(flags: Mapping[str, str]) -> str:
  for name, value in flags.items():
    if value != value.strip() or len(value.splitlines()) > 1:
      # absl strips the lines of a flag file, so such a value would change.
      raise FieldError(name, value, 'cannot stand in a flag file')
  lines = [f'--{name}={value}' for name, value in sorted(flags.items())]
  return '\n'.join([_MARK, *lines]) + '\n'


def _check_ours(folder: RunFolder) -> None:
  """Raises unless the folder is empty, a run folder, or just begun."""
  if folder.read_flags() is not None:
    return
  barely_begun = {_LOCK, f'.{folder.flags.name}{_TEMPORARY}'}
  others = set(os.listdir(folder.path)) - barely_begun
  if others:
    raise WrongFolderError(
      f'{folder.path}: not empty and not a run folder (it holds '
      f'{min(others)!r}); name another one'
    )


@contextlib.contextmanager
def lock_folder(path: pathlib.Path) -> Iterator[None]:
  """Locks a folder that is not a run's, such as one of many runs.

  Raises:
    RunFolderError: another process has locked it.
    OSError: it cannot be written.
  """
  descriptor = _lock(path / _LOCK)
  try:
    yield
  finally:
    os.close(descriptor)


def _lock(path: pathlib.Path) -> int:
  """Locks a file for this process; returns the descriptor that holds it."""
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
  try:
    _acquire(descriptor)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f'{platform.node()} {os.getpid()}\n'.encode(), 0)
  except BlockingIOError as error:
    holder = os.pread(descriptor, 200, 0).decode(errors='replace').split()
    os.close(descriptor)
    raise RunFolderError(
      f'{path.parent}: in use by another process '
      f'(host and process id: {" ".join(holder) or "unknown"})'
    ) from error
  except OSError:
    os.close(descriptor)
    raise
  return descriptor


def _acquire(descriptor: int) -> None:
  """Takes a lock, even if `in_use` of another process holds it for a moment.

  Raises:
    BlockingIOError: a process holds it for longer.
  """
  for _ in range(_TRIES):
    with contextlib.suppress(BlockingIOError):
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return
    time.sleep(_TRY_S)
  fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _check_flags(
  folder: RunFolder,
  known: Mapping[str, str],
  flags: Mapping[str, str],
  ignore: Collection[str],
) -> None:
  """Raises if the folder's flags differ from those given now."""
  names = sorted((known.keys() | flags.keys()) - set(ignore))
  differences = [
    f'  --{name}: {known.get(name, "(absent)")} in the folder, '
    f'{flags.get(name, "(absent)")} now'
    for name in names
    if known.get(name) != flags.get(name)
  ]
  if differences:
    raise WrongFolderError(
      '\n'.join([f'{folder.path}: holds a run with other flags:', *differences])
    )


def _remove_contents(folder: RunFolder) -> None:
  """Deletes the files of runs except flags.txt, which marks the folder."""
  for path in (
    folder.checkpoints,
    folder.replay,
    folder.dataset,
    folder.metrics,
    folder.events,
    *folder.path.glob('curve*.png'),
    folder.videos,
    folder.shards,
    folder.config,
    folder.versions,
  ):
    if path.is_dir() and not path.is_symlink():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)


def _record_config(
  folder: RunFolder, text: str, ignore: Collection[str] | None
) -> None:
  """Writes config.json if it is missing; otherwise notes problems with it.

  Runs do not read it, but tools do. As the flags are the same, differences are
  damage, or due to another version.

  Args:
    folder: the run folder.
    text: the content for the file.
    ignore: on resumption, keys that may differ; None for a new run.
  """
  if ignore is not None and folder.config.exists():
    try:
      names = _differences(read_json(folder.config), json.loads(text))
      names = [name for name in names if name not in ignore]
    except (OSError, ValueError):
      folder.notes.append(f'{folder.config}: damaged, and rewritten')
    else:
      if names:
        folder.notes.append(
          f'{folder.config}: its values differ from those of this start: '
          f'{", ".join(names)}; delete the file to record them again'
        )
      return
  write_atomically(folder.config, text.encode())


def _differences(found: Any, expected: Any, prefix: str = '') -> list[str]:
  """Returns the names at which two JSON objects differ: 'derived.rows'.

  Names that only the expected one has are of a newer version.
  """
  if not (isinstance(found, dict) and isinstance(expected, dict)):
    return [] if found == expected else [prefix.rstrip('.') or 'all']
  return [
    name
    for key in sorted(found)
    for name in _differences(
      found.get(key), expected.get(key), f'{prefix}{key}.'
    )
  ]


def read_json(path: pathlib.Path) -> Any:
  """Reads a JSON file whole, see `read_file`.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it is not JSON.
  """
  try:
    return json.loads(read_file(path))
  except RecursionError as error:
    raise ValueError('too deep') from error


def _record_versions(folder: RunFolder) -> None:
  """Appends this start to the list of versions.json."""
  try:
    records = read_json(folder.versions)
  except FileNotFoundError:
    records = []
  except ValueError as error:
    raise RunFolderError(f'{folder.versions}: not JSON: {error}') from error
  if not isinstance(records, list) or not all(
    isinstance(record, dict) for record in records
  ):
    raise RunFolderError(f'{folder.versions}: not a list of starts')
  record = versions()
  if records:
    folder.changes = _changes(records[-1], record)
  records.append(record)
  text = json.dumps(records, indent=2) + '\n'
  write_atomically(folder.versions, text.encode())
