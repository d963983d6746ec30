"""A run's folder, with errors that speak of the flag."""

from collections.abc import Collection, Iterator, Mapping
import contextlib
import os
from typing import Any

from experiments.flags import RunError, UsageError, usage_errors
from siamrl.report.checkpoint import CheckpointError
from siamrl.report.run_folder import (
  RunFolder,
  RunFolderError,
  WrongFolderError,
  open_run_folder,
)
from siamrl.runners.errors import NonFiniteError


def open_folder(
  path: str | os.PathLike[str],
  flags: Mapping[str, str],
  config: Mapping[str, Any],
  *,
  overwrite: bool,
  ignore: Collection[str],
) -> RunFolder:
  """Creates or opens a run's folder and locks it, as `open_run_folder`.

  Raises:
    UsageError: the folder is another run's or no run folder.
    RunError: it cannot be written, or another process has it.
  """
  try:
    with usage_errors():
      folder, _ = open_run_folder(
        path, flags, config, overwrite=overwrite, ignore=ignore
      )
  except RunFolderError as error:
    first, *rest = [line.strip() for line in str(error).splitlines()]
    text = f'--run_dir={first} {"; ".join(rest)}'.strip()
    if not isinstance(error, WrongFolderError):
      raise RunError(text) from error
    if rest:
      text += '. Name another folder, or --overwrite that run'
    raise UsageError(text) from error
  return folder


@contextlib.contextmanager
def run_errors(folder: RunFolder) -> Iterator[None]:
  """Has the library's errors speak of the folder.

  Raises:
    RunError: in place of an error in reading or writing, or of a divergence.
  """
  try:
    yield
  except NonFiniteError as error:
    raise RunError(
      f'the learner diverged: {error}; the checkpoint before stays as it is'
    ) from error
  except CheckpointError as error:
    raise RunError(f'--run_dir={error}') from error
  except OSError as error:
    raise RunError(f'--run_dir={folder.path}: {error}') from error
