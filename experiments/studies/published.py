"""Published results that ship with the project, and those of users."""

import difflib
import pathlib

from experiments.config import flag_files
from experiments.config.declaring import RunError, UsageError
from siamrl.report import published
from siamrl.report.published import Published

FOLDER = pathlib.Path(__file__).parent.parent / 'results' / 'published'


def names() -> list[str]:
  """Returns the names of all sources that ship with the project."""
  return sorted(path.stem for path in FOLDER.glob('*.csv'))


def shipped(name: str) -> Published:
  """Reads a source that ships with the project."""
  return published.read(FOLDER / f'{name}.csv')


def find(option: str, name: str) -> Published:
  """Reads a source by its name, or a CSV file.

  Args:
    option: the option that names it.
    name: its value; a path has a folder or ends in .csv.

  Raises:
    UsageError: there is no such source.
    RunError: the file is damaged.
  """
  path = flag_files.find(name)
  if not (name.endswith('.csv') or '/' in name):
    if name not in names():
      close = difflib.get_close_matches(name, names(), n=3, cutoff=0.4)
      hint = f'; the closest are: {", ".join(close)}' if close else ''
      raise UsageError(
        f'--{option}={name} must be a CSV file or one of '
        f'{", ".join(names())}{hint}'
      )
    path = FOLDER / f'{name}.csv'
  try:
    return published.read(path)
  except OSError as error:
    raise UsageError(
      f'--{option}={name} cannot be read: {error.strerror}'
    ) from error
  except ValueError as error:
    raise RunError(f'--{option}={name}: {error}') from error
