"""Errors of environments."""

import traceback
from typing import Any


class BrokenEnvironmentError(RuntimeError):
  """An environment raised an exception or broke its contract.

  The message names the environment and is a single line.
  """


def raised(name: str, call: str, error: Exception) -> BrokenEnvironmentError:
  """Builds the error for an exception that an environment raised itself.

  Args:
    name: name of the environment.
    call: name of the call that raised it, such as 'step'.
    error: the exception.
  """
  frame = traceback.extract_tb(error.__traceback__)[-1]
  text = f': {one_line(error)}' if str(error) else ''
  return BrokenEnvironmentError(
    f'{name}: {call} raised {type(error).__name__}{text} '
    f'({frame.filename}, line {frame.lineno})'
  )


def one_line(value: Any) -> str:
  """Returns the text of a value on one line, cut if it is long."""
  text = ' '.join(str(value).split())
  return text if len(text) <= 300 else f'{text[:300]}...'
