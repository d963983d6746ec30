"""Checkpoints of a run: the learner's pytree and some JSON data.

Orbax writes them: a step is built in a temporary directory and renamed when it
is complete, so a process killed while saving leaves the previous step intact.
Arrays are stored as raw chunks and everything else as JSON. Nothing is pickled,
so reading somebody else's checkpoint cannot run their code.

This module adds what Orbax lacks. Orbax would silently cast a dtype and ignore
the shape of some leaves, so both are checked. It flushes arrays but not its own
small files to the disk, and leaves half-written steps behind. And it does not
detect flipped bits: each step holds the SHA-256 of all its files in
`SHA256SUMS` (which `sha256sum --check` can read), and they are verified before
Orbax reads any of them.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import pathlib
import shutil
import stat
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

_Tree = TypeVar('_Tree')

# Suffix of the directories in which Orbax builds incomplete steps.
_UNFINISHED = '.orbax-checkpoint-tmp'
# Suffix of damaged checkpoints that `recover` has set aside.
_DAMAGED = '.damaged'
_SUMS = 'SHA256SUMS'
# Orbax's file for a step's custom metadata: that the step has checksums. So a
# step that lost its file of checksums is damaged, and an older one is not.
_METADATA = '_CHECKPOINT_METADATA'
_SAYS_SUMS = {'checksums': _SUMS}


class CheckpointError(RuntimeError):
  """Error: a checkpoint cannot be written, or does not fit the run."""


class Checkpoints:
  """The checkpoints of one run, with a directory for each step.

  Only one process may write at a time, which the run folder's lock ensures; any
  number may read. Nothing is held open between calls.
  """

  def __init__(self, directory: str | os.PathLike[str], max_to_keep: int = 2):
    """Sets the directory, without creating or reading it.

    Args:
      directory: directory of the checkpoints.
      max_to_keep: number of the newest checkpoints to keep.

    Raises:
      ValueError: if `max_to_keep` is less than 1.
    """
    if max_to_keep < 1:
      raise ValueError(f'max_to_keep must be at least 1, not {max_to_keep}')
    self._directory = pathlib.Path(directory).absolute()
    self._max_to_keep = max_to_keep
    self._verified: set[int] = set()

  def latest_step(self) -> int | None:
    """Step of the newest complete checkpoint; None if there is none.

    Raises:
      CheckpointError: if the directory holds anything but checkpoints.
    """
    return max(self._steps(), default=None)

  def _steps(self) -> list[int]:
    """Returns the steps of all complete checkpoints, in ascending order."""
    try:
      names = os.listdir(self._directory)
    except FileNotFoundError:
      return []
    except OSError as error:
      raise CheckpointError(f'{self._directory}: {error.strerror}') from error
    steps = [int(name) for name in names if name.isdecimal()]
    foreign = [
      name
      for name in names
      if not name.startswith('.') and not name.endswith((_UNFINISHED, _DAMAGED))
    ]
    if not steps and foreign:
      raise CheckpointError(
        f'{self._directory}: not a directory of checkpoints, it holds '
        f'{min(foreign)!r}'
      )
    return sorted(steps)

  def recover(
    self,
    check: Callable[[dict[str, Any]], None] = lambda extra: None,
    *,
    may_be_none: bool = False,
  ) -> list[str]:
    """Sets damaged checkpoints aside, so that the newest one left is intact.

    Only the writing process may call this, before it reads anything. A
    checkpoint that is set aside is renamed; the next `save` deletes it.

    Args:
      check: (extra) -> None; verifies other files that a checkpoint depends
        on. It raises ValueError or OSError, naming the file, if one of them is
        damaged.
      may_be_none: whether the caller can continue if no checkpoint is intact.

    Returns:
      Lines for the user: one for each checkpoint set aside, and one about a
      checkpoint without checksums. Empty if the newest one is intact, or if
      there is none.

    Raises:
      CheckpointError: if no checkpoint is intact, unless `may_be_none`. Nothing
        is set aside then.
    """
    damage: dict[int, str] = {}
    notes: list[str] = []
    for step in reversed(self._steps()):
      try:
        notes = self._verify(step)
        check(self._read_extra(step))
      except (CheckpointError, ValueError, OSError) as error:
        damage[step] = _line(error)
        continue
      instead = 'the checkpoint before it is used'
      break
    else:
      instead = 'there is none before it'
      if damage and not may_be_none:
        text = next(iter(damage.values()))
        if len(damage) > 1:
          text += f'; nor can the {len(damage) - 1} before it be used'
        raise CheckpointError(text)
    for step, text in damage.items():
      self._set_aside(step)
      notes.append(f'{text}; {instead}')
    return notes

  def _set_aside(self, step: int) -> None:
    path = self._directory / str(step)
    aside = path.with_name(f'{step}{_DAMAGED}')
    try:
      _remove(aside)
      path.rename(aside)
    except OSError as error:
      raise CheckpointError(
        f'{path}: cannot be set aside: {error.strerror}'
      ) from error

  def save(self, step: int, learner: Any, extra: dict[str, Any]) -> None:
    """Writes a checkpoint, which is on the disk on return.

    Steps must not decrease. A step identifies a state of the run, so saving the
    newest step again does nothing.

    Args:
      step: the clock that orders checkpoints, at least 0.
      learner: pytree whose leaves are arrays, including typed keys.
      extra: data for JSON, with string keys and no tuples. Floats, NaN and
        integers of any size are restored exactly.

    Raises:
      CheckpointError: if it cannot be written, as on a full disk. The earlier
        checkpoints are then unchanged.
      TypeError: if JSON cannot hold `extra`.
      ValueError: if `step` is negative or below the newest one.
    """
    json.dumps(extra)  # raises TypeError here rather than inside Orbax
    latest = self.latest_step()
    if step == latest:
      return
    if step < 0 or latest is not None and step < latest:
      raise ValueError(f'step {step}, after checkpoints up to {latest}')
    try:
      self._remove_unfinished()
      _check_room(self._directory, learner)
      self._write(step, learner, extra)
      _flush(self._directory / str(step))
      # Only now, when the new one is on the disk.
      self._remove_old()
    except Exception as error:
      # The incomplete checkpoint itself may have filled the disk.
      with contextlib.suppress(OSError):
        self._remove_unfinished()
      raise CheckpointError(
        f'{self._directory}: step {step} cannot be saved: {_line(error)}'
      ) from error

  def read_extra(self) -> dict[str, Any] | None:
    """Reads `extra` of the newest complete checkpoint; None if there is none.

    Raises:
      CheckpointError: if it cannot be read, or is damaged.
    """
    step = self.latest_step()
    return None if step is None else self._read_extra(step)

  def _read_extra(self, step: int) -> dict[str, Any]:
    self._verify(step)
    path = self._directory / str(step)
    try:
      # Orbax's file for `JsonSave`: reading it through Orbax is slower.
      return json.loads((path / 'extra' / 'metadata').read_bytes())
    except (OSError, ValueError, RecursionError) as error:
      raise CheckpointError(
        f'{path}: not a readable checkpoint: {_line(error)}'
      ) from error

  def restore(
    self, template: _Tree
  ) -> tuple[_Tree, dict[str, Any], int] | None:
    """Reads the newest complete checkpoint.

    Args:
      template: pytree of arrays with the structure, shapes, dtypes and devices
        to restore; its values are not read.

    Returns:
      (learner, extra, step), or None if there is no checkpoint.

    Raises:
      CheckpointError: if the checkpoint cannot be read or is damaged, or if a
        leaf is missing or differs from the template's shape or dtype.
    """
    step = self.latest_step()
    if step is None:
      return None
    self._verify(step)
    path = self._directory / str(step)
    expected = _descriptions(template)
    several = jax.process_count() > 1
    wanted: Any = jax.tree.map(_to_host, template) if several else template
    try:
      with self._manager() as manager:
        _check_stored(manager.item_metadata(step)['learner'], expected)
        learner, extra = self._read(manager, step, wanted)
      if several:
        learner = jax.tree.map(_from_host, learner, template)
      _check_keys(learner, template)
    except _Mismatch as error:
      raise CheckpointError(f'{path}: {error}') from error
    except Exception as error:
      raise CheckpointError(
        f'{path}: not a readable checkpoint: {_line(error)}'
      ) from error
    return learner, extra, step

  def read_part(
    self, choose: Callable[[Any], Any]
  ) -> tuple[Any, dict[str, Any], int, list[str]] | None:
    """Reads a part of the newest intact checkpoint; changes nothing.

    Any process may call it, also while another one writes.

    Args:
      choose: (tree with a description of each array) -> the part to read: the
        same nested dicts, without some keys.

    Returns:
      (part, extra, step, notes), or None if there is no checkpoint. The part
      has NumPy arrays in place of descriptions; the notes are lines about newer
      checkpoints that are damaged.

    Raises:
      CheckpointError: if no checkpoint is intact.
      LookupError: if `choose` does not find what it wants.
    """
    notes: list[str] = []
    for step in reversed(self._steps()):
      try:
        extra = self._read_extra(step)
        return self._read_chosen(step, choose), extra, step, notes
      except CheckpointError as error:
        notes.append(str(error))
    if notes:
      raise CheckpointError(notes[0])
    return None

  def _read_chosen(self, step: int, choose: Callable[[Any], Any]) -> Any:
    path = self._directory / str(step)
    with _quiet(), _alone():
      import orbax.checkpoint as ocp

      handler = ocp.PyTreeCheckpointHandler()
      with ocp.Checkpointer(handler) as checkpointer:
        try:
          found: Any = checkpointer.metadata(path / 'learner')
          tree = getattr(found, 'item_metadata', found).tree
        except Exception as error:
          raise CheckpointError(
            f'{path}: not a readable checkpoint: {_line(error)}'
          ) from error
        part = jax.tree.map(
          lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
          choose(tree),
        )
        try:
          return checkpointer.restore(
            path / 'learner',
            args=ocp.args.PyTreeRestore(
              item=part,
              restore_args=jax.tree.map(
                lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), part
              ),
              partial_restore=True,
            ),
          )
        except Exception as error:
          raise CheckpointError(
            f'{path}: not a readable checkpoint: {_line(error)}'
          ) from error

  def _write(self, step: int, learner: Any, extra: dict[str, Any]) -> None:
    if jax.process_count() > 1:
      learner = jax.tree.map(_to_host, learner)
    # Orbax works inside the directory that is renamed when complete, including
    # its checksums.
    path = self._directory / f'{step}{_UNFINISHED}'
    with self._manager(path) as manager:
      from orbax.checkpoint import args

      manager.save(
        step,
        args=args.Composite(
          learner=args.StandardSave(learner), extra=args.JsonSave(extra)
        ),
        custom_metadata=_SAYS_SUMS,
      )
    inner = path / str(step)
    for part in sorted(inner.iterdir()):
      part.rename(path / part.name)
    inner.rmdir()
    (path / _SUMS).write_text(_sums(path), encoding='utf-8')
    path.rename(self._directory / str(step))

  def _verify(self, step: int) -> list[str]:
    """Checks the files of a step against their checksums, once.

    Returns:
      A line for the user if the step is older than checksums.

    Raises:
      CheckpointError: if a file differs, is missing, or should not be there;
        names it.
    """
    if step in self._verified:
      return []
    path = self._directory / str(step)
    notes = []
    try:
      if not os.path.lexists(path / _SUMS) and _has_no_sums(path):
        notes = [
          f'{path}: an older version wrote this checkpoint, without checksums; '
          'damage to it goes unnoticed'
        ]
      else:
        _check_sums(path)
    except (OSError, ValueError, RecursionError) as error:
      raise CheckpointError(
        f'{path}: not a readable checkpoint: {_line(error)}'
      ) from error
    self._verified.add(step)
    return notes

  def _read(
    self,
    manager: Any,
    step: int,
    template: _Tree,
  ) -> tuple[_Tree, dict[str, Any]]:
    from orbax.checkpoint import args

    restored = manager.restore(
      step,
      args=args.Composite(
        learner=args.StandardRestore(template), extra=args.JsonRestore()
      ),
    )
    return restored['learner'], restored['extra']

  @contextlib.contextmanager
  def _manager(self, directory: pathlib.Path | None = None) -> Iterator[Any]:
    """Opens an Orbax manager for one call (some 10 ms).

    Args:
      directory: directory to write a step to; None to read the checkpoints.
    """
    read_only = directory is None
    with _quiet(), _alone():
      import orbax.checkpoint as ocp  # a third of a second, so not at start-up

      options = ocp.CheckpointManagerOptions(
        max_to_keep=None,
        enable_async_checkpointing=False,
        read_only=read_only,
        create=not read_only,
      )
      handlers = {
        'learner': ocp.StandardCheckpointHandler(),
        'extra': ocp.JsonCheckpointHandler(),
      }
      with ocp.CheckpointManager(
        directory or self._directory, options=options, item_handlers=handlers
      ) as manager:
        yield manager

  def _remove_old(self) -> None:
    """Removes all but the newest checkpoints, and those set aside."""
    for path in self._directory.glob(f'*{_DAMAGED}'):
      _remove(path)
    for step in self._steps()[: -self._max_to_keep]:
      path = self._directory / str(step)
      # Renamed first, so that being killed leaves no partial checkpoint.
      _remove(path.rename(f'{path}{_UNFINISHED}'))

  def _remove_unfinished(self) -> None:
    """Removes what killed or failed saves left behind."""
    for path in self._directory.glob(f'*{_UNFINISHED}'):
      _remove(path)


def any_checkpoint(directory: str | os.PathLike[str]) -> bool:
  """Returns whether a directory or one below has a complete checkpoint."""
  return any(
    path.parent.name.isdecimal()
    for path in pathlib.Path(directory).rglob(_METADATA)
  )


class _Mismatch(Exception):
  """Error: a leaf of the checkpoint differs from the template's."""


def _describe(leaf: Any) -> str:
  """Returns the dtype and shape of a leaf as stored."""
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.eval_shape(jax.random.key_data, leaf)
  return f'{np.dtype(leaf.dtype).name} {list(getattr(leaf, "shape", ()))}'


def _to_host(leaf: Any) -> np.ndarray:
  """Converts a leaf to NumPy, and a key to its data.

  With several processes, Orbax rejects arrays of a single one.
  """
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  return np.asarray(leaf)


def _from_host(leaf: np.ndarray, template: Any) -> Any:
  """Converts a leaf back to the template's kind and device."""
  if not isinstance(template, jax.Array):
    return leaf
  if jax.dtypes.issubdtype(template.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(
      jax.numpy.asarray(leaf), impl=jax.random.key_impl(template)
    )
    return jax.device_put(key, template.sharding)
  return jax.device_put(leaf, template.sharding)


def _leaves(tree: Any) -> dict[str, Any]:
  """Returns leaves by name, such as 'opt_state.0.count'."""
  with_path, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf
    for path, leaf in with_path
  }


def _descriptions(tree: Any) -> dict[str, str]:
  return {name: _describe(leaf) for name, leaf in _leaves(tree).items()}


def _check_stored(metadata: Any, expected: dict[str, str]) -> None:
  """Checks the leaves that the checkpoint declares against the template's."""
  if metadata is None:
    raise ValueError('it has no learner')
  stored = _descriptions(metadata.tree)
  for name in expected | stored:
    found = stored.get(name, 'nothing')
    wanted = expected.get(name, 'nothing')
    if found != wanted:
      raise _Mismatch(f'{name}: found {found}, expected {wanted}')


def _check_keys(learner: Any, template: Any) -> None:
  """Checks the kinds of keys (threefry, rbg, ...), which only arrays tell."""
  found, expected = _leaves(learner), _leaves(template)
  for name, leaf in expected.items():
    if found[name].dtype != leaf.dtype:
      raise _Mismatch(
        f'{name}: found {found[name].dtype}, expected {leaf.dtype}'
      )


def _files(path: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns all files below a directory, by relative name."""
  found = {}
  for parent, directories, names in os.walk(path):
    # Links to directories are not followed, and never written by us.
    links = [n for n in directories if os.path.islink(os.path.join(parent, n))]
    for name in [*names, *links]:
      file = pathlib.Path(parent, name)
      found[file.relative_to(path).as_posix()] = file
  found.pop(_SUMS, None)
  return found


def _digest(path: pathlib.Path) -> str:
  """Returns the SHA-256 of a regular file.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it is not regular, such as a pipe, which would block.
  """
  if not stat.S_ISREG(path.lstat().st_mode):
    raise ValueError('not a file')
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _sums(path: pathlib.Path) -> str:
  """Returns checksums of all files below a directory in sha256sum's format."""
  files = sorted(_files(path).items())
  return ''.join(f'{_digest(file)}  {name}\n' for name, file in files)


def _check_sums(path: pathlib.Path) -> None:
  """Checks the files below a directory against its file of checksums.

  Raises:
    OSError: if one cannot be read.
    ValueError: if one is damaged, is missing, or should not be there.
  """
  sums = path / _SUMS
  if not os.path.lexists(sums):
    raise ValueError(f'{_SUMS} is missing')
  if not stat.S_ISREG(sums.lstat().st_mode):
    raise ValueError(f'{_SUMS} is not a file')
  stored = sums.read_bytes()
  files, lines = _files(path), []
  expected = {}
  for line in stored.decode('utf-8', errors='replace').split('\n'):
    digest, _, name = line.partition('  ')
    if name:
      expected[name] = digest
  for name in sorted(files.keys() | expected.keys()):
    if name not in files:
      raise ValueError(f'{name} is missing, or {_SUMS} is damaged')
    if name not in expected:
      raise ValueError(f'{name} has no checksum in {_SUMS}')
    try:
      found = _digest(files[name])
    except ValueError as error:
      raise ValueError(f'{name} is {error}') from error
    if found != expected[name]:
      raise ValueError(f'{name} is damaged: its checksum differs')
    lines.append(f'{found}  {name}\n')
  if stored != ''.join(lines).encode():
    raise ValueError(f'{_SUMS} is damaged')


def _has_no_sums(path: pathlib.Path) -> bool:
  """Returns whether a step declares that it was written without checksums.

  Raises:
    OSError: if it cannot be read.
    ValueError: if its metadata cannot be parsed.
  """
  metadata = path / _METADATA
  if not metadata.is_file():
    raise ValueError(f'{_SUMS} is missing')
  said = json.loads(metadata.read_bytes())
  if not isinstance(said, dict):
    raise ValueError(f'{_METADATA} is damaged')
  return (said.get('custom_metadata') or {}) != _SAYS_SUMS


def _remove(path: pathlib.Path) -> None:
  """Removes a file, or a directory with its content, if it exists."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _check_room(path: pathlib.Path, tree: Any) -> None:
  """Raises OSError if the disk has too little room for a tree's arrays.

  Orbax would raise as well, but several of its threads fail and print
  tracebacks after the error, which cannot be caught.
  """
  path.mkdir(parents=True, exist_ok=True)
  needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
  free = shutil.disk_usage(path).free
  if free < needed:
    raise OSError(
      f'{os.strerror(errno.ENOSPC)}: it takes {needed / 1e6:.1f} MB and '
      f'{free / 1e6:.1f} MB are free'
    )


def _flush(path: pathlib.Path) -> None:
  """Flushes a checkpoint and its name to the disk."""
  paths = [path.parent, path, *path.rglob('*')]
  for each in paths:
    descriptor = os.open(each, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def _line(error: Exception) -> str:
  """Returns an exception's text on one line, shortened if it is long."""
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= 400 else f'{text[:200]} ... {text[-200:]}'


@contextlib.contextmanager
def _alone() -> Iterator[None]:
  """Makes Orbax work for this process alone, though JAX may know of others.

  Each process has its own checkpoints and waits for no other. With Orbax's own
  option for that, only process 0 writes NumPy arrays.
  """
  if jax.process_count() == 1:
    yield
    return
  names = {'process_count': lambda: 1, 'process_index': lambda: 0}
  before = {name: getattr(jax, name) for name in names}
  try:
    for name, function in names.items():
      setattr(jax, name, function)
    yield
  finally:
    for name, function in before.items():
      setattr(jax, name, function)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps Orbax's log lines, some 40 per save, out of the run's own log.

  This includes its errors, which are raised and would be printed twice. After
  an error it stays quiet, as Orbax's threads go on failing.
  """
  for name in _LOGGERS:
    logging.getLogger(name).addFilter(_is_ours)
  if sys.unraisablehook is not _unraisable:
    _hooks.append(sys.unraisablehook)
    sys.unraisablehook = _unraisable
  yield
  sys.unraisablehook = _hooks.pop()
  for name in _LOGGERS:
    logging.getLogger(name).removeFilter(_is_ours)


_LOGGERS = ('absl', 'asyncio')
_hooks: list[Callable[[Any], None]] = []


def _is_ours(record: logging.LogRecord) -> bool:
  """Returns whether a log record does not come from Orbax."""
  paths = [record.pathname]
  if record.exc_info:
    frames = traceback.extract_tb(record.exc_info[2])
    paths += [frame.filename for frame in frames]
  return not any(f'{os.sep}orbax{os.sep}' in path for path in paths)


def _unraisable(error: Any) -> None:
  """Ignores the complaints of Orbax's storage after a failed call."""
  if str(error.exc_value) != 'Event loop is closed':
    _hooks[-1](error)
