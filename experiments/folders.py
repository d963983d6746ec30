"""Opening a run's folder, with errors that speak of the flag."""

from collections.abc import Collection, Mapping
import os
from typing import Any

from experiments.flags import RunError, UsageError, usage_errors
from siamrl.report.run_folder import (
  RunFolder,
  RunFolderError,
  WrongFolderError,
  open_run_folder,
)


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
