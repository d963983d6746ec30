"""Files of users, which register rules, target forms or environments.

Such a file calls a launcher after it has registered something:

  from experiments import classic
  from siamrl import twins
  ...
  twins.register('mine', mine, 'what it does', period=1)

  if __name__ == '__main__':
    classic.run()

It is recorded with the run's flags, as --user_file, so that `python -m
experiments.classic --flagfile=RUN/flags.txt` runs it again: the file is
imported before flags are defined, which may depend on what it registers.
"""

from collections.abc import Sequence
import dataclasses
import importlib.util
import pathlib
import sys
from typing import Any

from experiments.config import flag_files
from experiments.config.declaring import (
  RunError,
  UsageError,
  group,
  path_option,
)

_FLAG = '--user_file'

# Files that have been imported, or that called a launcher themselves.
_known: set[pathlib.Path] = set()


@dataclasses.dataclass(frozen=True)
class UserOptions:
  """The option of every launcher for files of users."""

  _user: Any = group("A user's own file")
  user_file: str | None = path_option(
    None,
    'Python file to import first, which registers rules, target forms, '
    'agents, networks, heads or environments. A file that calls a launcher '
    'itself need not be named',
    single=True,
  )


def with_caller(arguments: Sequence[str]) -> list[str]:
  """A command line that names the file which called the launcher.

  Args:
    arguments: the command line.

  Returns:
    The same, after --user_file=FILE if the main program is a user's file.
  """
  main = sys.modules['__main__']
  path, spec = getattr(main, '__file__', None), getattr(main, '__spec__', None)
  ours = spec is not None and spec.name.partition('.')[0] == 'experiments'
  if path is None or ours:
    return list(arguments)
  _known.add(pathlib.Path(path).resolve())
  return [f'{_FLAG}={pathlib.Path(path).resolve()}', *arguments]


def load(arguments: Sequence[str]) -> None:
  """Imports the file that a command line names, once.

  Args:
    arguments: the command line; flag files are looked into.

  Raises:
    UsageError: there is no such file, or it is not a Python file.
    RunError: it raises an error.
  """
  for given in _named(arguments):
    try:
      path = pathlib.Path(given).expanduser().resolve()
      found = path in _known or path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # such as a long name
      raise UsageError(f'{_FLAG}={given}: {error}') from error
    if not found:
      raise UsageError(
        f'{_FLAG}={path}: no such file; it registers what this run needs'
      )
    if path in _known:
      continue
    name = f'siamrl_user_file_{len(_known)}'
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
      raise UsageError(f'{_FLAG}={path}: not a Python file')
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for what it pickles, and dataclasses
    try:
      spec.loader.exec_module(module)
    except Exception as error:
      reason = ' '.join(f'{type(error).__name__}: {error}'.split())
      raise RunError(f'{_FLAG}={path}: {reason}') from error
    _known.add(path)


def _named(arguments: Sequence[str]) -> list[str]:
  """A list of the last file that is named; empty if there is none."""
  try:
    expanded = flag_files.expand(arguments)
  except flag_files.FlagFileError:
    return []  # reported when flags are read
  given = ''
  rest = iter(expanded)
  for argument in rest:
    if argument == '--':
      break
    name, equals, value = argument.partition('=')
    if name.lstrip('-') == 'user_file' and name.startswith('-'):
      given = value if equals else next(rest, '')
  return [given] if given else []
