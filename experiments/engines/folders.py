"""The folder of a run, with errors that name the flag."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import os
import sys
from typing import Any

from experiments.config.declaring import RunError, UsageError, usage_errors
from experiments.config.reading import Sweep, as_flags, as_json, now
from siamrl.envs.errors import BrokenEnvironmentError
from siamrl.report.checkpoint import (
  CheckpointError,
  Checkpoints,
  any_checkpoint,
)
from siamrl.report.metrics import MetricsWriter
from siamrl.report.run_folder import (
  WHERE_FLAGS,
  RunFolder,
  RunFolderError,
  WrongFolderError,
  open_run_folder,
)
from siamrl.runners.errors import NonFiniteError

# Options that may differ between a run and its resumption.
WHERE = (*WHERE_FLAGS, 'checkpoint_period_s', 'fresh_environments')
# Options that list runs; the folder of a single run does not record them.
_OF_SEVERAL = ('seeds', 'also')


def open_folder(
  path: str | os.PathLike[str],
  recorded: Any,
  *,
  derived: Mapping[str, Any] | None = None,
  leave_out: Collection[str] = (),
  overwrite: bool,
  ignore: Collection[str],
) -> RunFolder:
  """Creates or opens a run's folder and locks it, as `open_run_folder`.

  Args:
    path: the folder.
    recorded: the options to record, or the sweep.
    derived: further entries of config.json.
    leave_out: options that are not recorded.
    overwrite: whether to replace a run that the folder holds.
    ignore: options that may differ between a run and its resumption.

  Raises:
    UsageError: the folder is another run's, or not a run folder.
    RunError: it cannot be written, or another process uses it.
  """
  first = recorded.configs[0] if isinstance(recorded, Sweep) else recorded
  flags, config = as_flags(recorded), as_json(recorded)
  for name in leave_out:
    flags.pop(name, None)
    config.pop(name, None)
  if derived is not None:
    config['derived'] = derived
  try:
    with usage_errors():
      folder, _ = open_run_folder(
        path,
        flags,
        config,
        overwrite=overwrite,
        ignore=ignore,
        now=functools.partial(now, type(first)),
      )
  except RunFolderError as error:
    first, *rest = [line.strip() for line in str(error).splitlines()]
    text = f'--run_dir={first} {"; ".join(rest)}'.strip()
    if not isinstance(error, WrongFolderError):
      raise RunError(text) from error
    if rest:
      text += '. Name another folder, or --overwrite that run'
    raise UsageError(text) from error
  if folder.changes:
    print(
      f'note: {path} resumes under other conditions, so its numbers may differ '
      f'from here on: {"; ".join(folder.changes)}',
      file=sys.stderr,
    )
  return folder


def say(notes: Collection[str]) -> None:
  """Prints lines that the user should know of."""
  for note in notes:
    print(f'note: {note}', file=sys.stderr)


def say_notes(folder: RunFolder) -> None:
  """Prints the notes about a folder, once the run can use it."""
  say(folder.notes)
  folder.notes.clear()


def open_run(config: Any, derived: Mapping[str, Any]) -> RunFolder:
  """The folder of a single run, see `open_folder`.

  Args:
    config: the options, with `run_dir` and `overwrite`.
    derived: further entries of config.json.
  """
  # Not recorded, or the flag file of a run would delete it.
  recorded = dataclasses.replace(config, overwrite=False)
  return open_folder(
    config.run_dir,
    recorded,
    derived=derived,
    leave_out=_OF_SEVERAL,
    overwrite=config.overwrite,
    ignore=(*WHERE, *_OF_SEVERAL),  # folders of older versions have them
  )


def default_folder(sweep: Sweep, names: Iterable[str]) -> str:
  """The default folder of a sweep or of a single run.

  Args:
    sweep: a sweep of records with `agent` and `seed`.
    names: the names of environments, games or data.
  """
  names = list(dict.fromkeys(names))
  learned = '+'.join(names)
  if len(learned) > 100:  # a file system takes 255 bytes
    learned = f'{names[0]}+{len(names) - 1}_more'
  agents = '+'.join(dict.fromkeys(c.agent for c in sweep.configs))
  swept = ''.join(
    f'-{name}'
    for name in sweep.axes
    if name not in ('agent', 'environment', 'game')
  )
  return f'runs/{learned}-{agents}{swept}-{sweep.configs[0].seed}'


def written(writer: MetricsWriter) -> dict[str, Any]:
  """The facts of a checkpoint about the rows that are written by then."""
  return {'rows': writer.position, 'rows_sha256': writer.checksum}


def recover(
  folder: RunFolder,
  checkpoints: Checkpoints,
  check: Callable[[dict[str, Any]], None] = lambda extra: None,
  *,
  may_be_none: bool = False,
) -> dict[str, Any] | None:
  """Falls back from damaged files to the newest whole checkpoint, with a note.

  Args:
    folder: the run's folder, opened and locked.
    checkpoints: the run's checkpoints, with the facts of `written`.
    check: (facts) -> None; raises ValueError or OSError if other files that the
      checkpoint depends on are damaged.
    may_be_none: whether the run can do without any of these checkpoints.

  Returns:
    The facts beside that checkpoint; None if there is none.

  Raises:
    CheckpointError: no checkpoint is whole; its message names a file.
  """

  def check_all(extra: dict[str, Any]) -> None:
    try:
      MetricsWriter.verify(
        folder.metrics, extra['rows'], extra.get('rows_sha256')
      )
      check(extra)
    except (KeyError, TypeError) as error:
      raise ValueError(
        f'{folder.checkpoints}: not a readable checkpoint: {error}'
      ) from error

  say(checkpoints.recover(check_all, may_be_none=may_be_none))
  return checkpoints.read_extra()


@contextlib.contextmanager
def edited_errors() -> Iterator[None]:
  """Turns a ValueError about an edited file into one about the flag.

  Raises:
    RunError: in place of a ValueError whose message begins with the file.
  """
  try:
    yield
  except ValueError as error:
    raise RunError(f'--run_dir={error}') from error


@contextlib.contextmanager
def checkpoint_errors(folder: RunFolder) -> Iterator[None]:
  """Turns an error about the facts of a checkpoint into one about the folder.

  Raises:
    RunError: a key is missing, or no run has written such a value.
  """
  try:
    yield
  except (KeyError, TypeError, ValueError) as error:
    raise RunError(
      f'--run_dir={folder.checkpoints}: not a readable checkpoint: {error}'
    ) from error


@contextlib.contextmanager
def run_errors(folder: RunFolder) -> Iterator[None]:
  """Turns errors of the library into errors about the folder.

  Raises:
    RunError: a file cannot be read or written, the learner diverged, or an
      environment broke its contract.
  """
  try:
    yield
  except BrokenEnvironmentError as error:
    raise RunError(
      f'the environment failed: {error}; {_what_stays(folder)}'
    ) from error
  except NonFiniteError as error:
    raise RunError(
      f'the learner diverged: {error}; {_what_stays(folder)}'
    ) from error
  except CheckpointError as error:
    raise RunError(f'--run_dir={error}') from error
  except OSError as error:
    raise RunError(f'--run_dir={folder.path}: {error}') from error


def _what_stays(folder: RunFolder) -> str:
  """The checkpoint that a failed run leaves, in words."""
  if any_checkpoint(folder.checkpoints):
    return 'the last checkpoint stays as it is'
  return 'there is no checkpoint yet'
