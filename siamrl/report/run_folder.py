"""Run folders: where a run keeps what it writes, and who may write there.

A folder belongs to one set of flags. It is resumed by the same flags, refused
to others, and locked while a process writes there. What is not a run folder is
never written to.
"""

import contextlib
import datetime
import errno
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import stat
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

from siamrl.parameters import FieldError

# The first line of flags.txt tells a run folder from any other. absl reads it
# as a comment.
_MARK = '# siamrl run folder; python ... --flagfile=<this file> runs it again'
_LOCK = '.lock'
_TEMPORARY = '.tmp'

# Distributions whose versions can change a run's numbers.
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

# Flags that say where a run happens, not which run it is.
WHERE_FLAGS = ('run_dir', 'platform', 'overwrite', 'user_file')


class RunFolderError(RuntimeError):
  """A run folder cannot be used; the message says why, for the user."""


class WrongFolderError(RunFolderError):
  """The folder is something else's: another run's, or no run folder at all."""


class RunFolder:
  """The names of a run's files. Reading needs no lock and creates nothing.

  Attributes:
    path: the folder.
    changes: how versions and device differ from those of the start before, a
      few words each; known of a folder that `open_run_folder` has opened.
    notes: lines for the user, about files that are not as they should be but
      keep no run from going on.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Names the folder, which need not exist; `open_run_folder` creates it."""
    self.path = pathlib.Path(path)
    self.notes: list[str] = []
    self._lock: int | None = None
    self.changes: list[str] = []

  @property
  def flags(self) -> pathlib.Path:
    """The run's flags, one `--name=value` a line: an absl flag file."""
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
    """One row an iteration, CSV."""
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
    """The folder of one of them."""
    return RunFolder(self.shards / f'{number:03}')

  def read_flags(self) -> dict[str, str] | None:
    """The flags of the run; None if this is not a run folder."""
    try:
      lines = read_file(self.flags).decode('utf-8').splitlines()
    except (OSError, UnicodeDecodeError):
      return None
    if lines[:1] != [_MARK]:
      return None
    pairs = (line.removeprefix('--').partition('=') for line in lines[1:])
    return {name: value for name, _, value in pairs}

  def rows(self) -> int | None:
    """Rows of the metrics once the run is finished; None if not recorded."""
    try:
      rows = _read_json(self.config)['derived']['rows']
    except (OSError, ValueError, LookupError, TypeError):
      return None
    return rows if type(rows) is int else None

  def close(self) -> None:
    """Lets go of the lock, if this object holds it. Twice does no harm."""
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
  """Creates a run folder, or opens the one of the same run, and locks it.

  The lock is held until `close`, or until the process ends in whatever way.

  Args:
    path: the folder; it and its parents are created if need be.
    flags: the flags of the run by name, as text.
    config: what else to record; JSON can hold it.
    overwrite: start afresh where a run folder is: what siamrl wrote there is
      deleted, other files in it stay.
    ignore: flags that may differ between a run and its resumption. They are
      recorded, not compared.
    now: flags of the folder -> the same ones by the names and values that they
      have now, with those that have been added since.

  Returns:
    (folder, resumed): `resumed` is False if the run starts from nothing.

  Raises:
    WrongFolderError: if the folder is another run's or not a run folder.
    RunFolderError: also if it is in use, cannot be written, or a record in it
      is damaged. What a run or a user wrote there is then unchanged.
    TypeError: if JSON cannot hold `config`.
    ValueError: if a flag's value cannot stand in a flag file.
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
      # First, since it makes the folder one of ours: a process killed after
      # this line leaves a folder that can be resumed.
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


def read_file(path: str | os.PathLike[str]) -> bytes:
  """Reads all of a file, and never waits: a pipe is refused.

  Args:
    path: of a regular file, or of a link to one.

  Raises:
    OSError: if it cannot be read, or is something else.
  """
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
  with open(descriptor, 'rb') as file:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
      raise OSError(errno.EINVAL, 'Not a regular file', os.fspath(path))
    return file.read()


def write_atomically(path: pathlib.Path, content: bytes) -> None:
  """Writes a file so that a reader, or a crash, sees the old or the new one.

  Args:
    path: the file; its directory exists.
    content: all of it.

  Raises:
    OSError: if it cannot be written; the old file is then as it was.
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
  directory = os.open(path.parent, os.O_RDONLY)
  try:
    os.fsync(directory)  # the new name too
  finally:
    os.close(directory)


def versions() -> dict[str, Any]:
  """What the numbers of a run may depend on: versions and the device."""
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
  return record


def _cores() -> int:
  """CPU cores that XLA uses, and by which it divides sums."""
  given = os.environ.get('NPROC', '')  # as XLA reads it
  if given.isdecimal():
    return int(given)
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """What differs between two starts of a run, in words.

  Only what both know: a record of an older version says less.
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
  """Raises unless the folder is empty, a run folder, or barely begun."""
  if folder.read_flags() is not None:
    return
  barely_begun = {_LOCK, f'.{folder.flags.name}{_TEMPORARY}'}
  others = set(os.listdir(folder.path)) - barely_begun
  if others:
    raise WrongFolderError(
      f'{folder.path}: not empty and not a run folder (it holds '
      f'{min(others)!r}); name another one'
    )


def _lock(path: pathlib.Path) -> int:
  """Locks a file for this process; returns the descriptor that holds it."""
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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


def _check_flags(
  folder: RunFolder,
  known: Mapping[str, str],
  flags: Mapping[str, str],
  ignore: Collection[str],
) -> None:
  """Raises if the folder's flags are not those given now."""
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
  """Deletes what runs write, save flags.txt: it marks the folder as ours."""
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
  """Writes config.json where there is none; notes what is wrong with another.

  A run reads nothing back from it, but tools do. The flags are known to be the
  same, so what differs is damage, or was recorded by another version.

  Args:
    folder: of the run.
    text: what the file would say.
    ignore: on resumption, what may differ; None for a new run.
  """
  if ignore is not None and folder.config.exists():
    try:
      names = _differences(_read_json(folder.config), json.loads(text))
      names = [name for name in names if name not in ignore]
    except (OSError, ValueError):
      folder.notes.append(f'{folder.config}: damaged, and written anew')
    else:
      if names:
        folder.notes.append(
          f'{folder.config}: records other values than this start has: '
          f'{", ".join(names)}; without the file they are recorded anew'
        )
      return
  write_atomically(folder.config, text.encode())


def _differences(found: Any, expected: Any, prefix: str = '') -> list[str]:
  """The names at which two JSON objects differ, such as 'derived.rows'."""
  if not (isinstance(found, dict) and isinstance(expected, dict)):
    return [] if found == expected else [prefix.rstrip('.') or 'all']
  return [
    name
    for key in sorted(found.keys() | expected.keys())
    for name in _differences(
      found.get(key), expected.get(key), f'{prefix}{key}.'
    )
  ]


def _read_json(path: pathlib.Path) -> Any:
  """What a JSON file holds.

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
    records = _read_json(folder.versions)
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
