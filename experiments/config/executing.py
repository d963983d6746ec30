"""Launchers, from the command line to the exit code."""

from collections.abc import Callable, Sequence
import sys
from typing import Any, NoReturn

from experiments.config import reading, startup, users
from experiments.config.declaring import RunError, UsageError
from experiments.config.help import help_text
from siamrl.report import streams

# Characters of an error message; what is longer is cut in the middle.
_MOST_CHARACTERS = 2_000
# The exit code of a tool whose criterion is not met.
MISSED = 3

_SHORT_HELP = {'--help', '-help', '-h'}
_FULL_HELP = {'--helpfull', '-helpfull', '--help=all', '-help=all'}


def run(
  cls: type, intro: str, main: Callable[[Any], int | None], **how: Any
) -> NoReturn:
  """Runs the command line and exits; see `execute`."""
  streams.install()
  arguments = sys.argv[1:]
  if issubclass(cls, users.UserOptions):
    arguments = users.with_caller(arguments)
  sys.exit(execute(cls, intro, main, arguments, **how))


def execute(
  cls: type,
  intro: str,
  main: Callable[[Any], int | None],
  arguments: Sequence[str],
  *,
  lists: bool = False,
  listed: str | None = None,
) -> int:
  """Calls `main` with the record, or the sweep, that a command line makes.

  Errors that have an explanation end in one line, not in a traceback.

  Args:
    cls: a frozen dataclass of options.
    intro: the first paragraphs of the help text.
    main: the launcher. It may return an exit code, such as `MISSED`.
    arguments: the command line.
    lists: whether options take lists, and `main` a sweep.
    listed: see `from_arguments`.

  Returns:
    The exit code: that of `main`, or 0; 2 after a usage error, 1 after any
    other error, 130 if Ctrl-C ended it at once.
  """

  def answer() -> int | None:
    users.load(arguments)
    full = bool(_FULL_HELP & set(arguments))
    if full or _SHORT_HELP & set(arguments):
      print(help_text(cls, intro, lists=lists, full=full))
      return None
    if lists:
      return main(reading.sweep_from_arguments(cls, *arguments))
    return main(reading.from_arguments(cls, *arguments, listed=listed))

  return exit_code(answer)


def exit_code(main: Callable[[], Any]) -> int:
  """Calls a function; prints its error and returns the exit code.

  A whole number that the function returns is the code.
  """
  try:
    startup.end()
    code = main()
  except UsageError as error:
    return _failed(2, error)
  except RunError as error:
    return _failed(1, error)
  except KeyboardInterrupt:
    return _failed(130, 'interrupted')
  return code if isinstance(code, int) else 0


def _failed(code: int, error: Any) -> int:
  say_error(error)
  return code


def say_error(error: Any) -> None:
  """Prints an error as one line."""
  print(f'error: {_in_a_line(str(error))}', file=sys.stderr)


def _in_a_line(text: str) -> str:
  """A message that quotes what someone has typed, as one line of some length.

  Characters that would end the line, move the cursor or cannot be written are
  shown as Python writes them.
  """
  if len(text) > _MOST_CHARACTERS:
    half = _MOST_CHARACTERS // 2
    text = f'{text[:half]} [...] {text[-half:]}'
  return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)
