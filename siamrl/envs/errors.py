"""What can go wrong in an environment."""

import traceback
from typing import Any


class BrokenEnvironmentError(RuntimeError):
  """An environment raised an exception or broke its contract.

  The message names the environment and is a single line.
  """


def raised(name: str, call: str, error: Exception) -> BrokenEnvironmentError:
  """What to raise where an environment has raised something itself.

  Args:
    name: the environment's.
    call: what was asked of it, such as 'step'.
    error: what it raised.
  """
  frame = traceback.extract_tb(error.__traceback__)[-1]
  text = f': {one_line(error)}' if str(error) else ''
  return BrokenEnvironmentError(
    f'{name}: {call} raised {type(error).__name__}{text} '
    f'({frame.filename}, line {frame.lineno})'
  )


def one_line(value: Any) -> str:
  """The text of a value on one line, cut where it is long."""
  text = ' '.join(str(value).split())
  return text if len(text) <= 300 else f'{text[:300]}...'
