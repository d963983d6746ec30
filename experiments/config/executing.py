"""Launchers from the command line to the exit code."""

from collections.abc import Callable, Sequence
import sys
from typing import Any, NoReturn

from experiments.config import reading, startup, users
from experiments.config.declaring import RunError, UsageError
from experiments.config.help import help_text
from experiments.config.reading import Sweep
from experiments.config.registered import with_registered
from siamrl.report import streams

# Characters of an error message; what is longer is cut in the middle.
_MOST_CHARACTERS = 2_000


def run(
  cls: type,
  intro: str,
  main: Callable[[Any], None],
  *,
  listed: str | None = None,
) -> NoReturn:
  """Reads the command line into `cls`, calls `main` with it, and exits."""
  streams.install()
  arguments = sys.argv[1:]
  if issubclass(cls, users.UserOptions):
    arguments = users.with_caller(arguments)
  sys.exit(execute(cls, intro, main, arguments, listed=listed))


def execute(
  cls: type,
  intro: str,
  main: Callable[[Any], None],
  arguments: Sequence[str],
  *,
  listed: str | None = None,
) -> int:
  """Calls `main` with the record that a command line makes.

  Errors that have an explanation end in one line, not in a traceback.

  Args:
    cls: a frozen dataclass of options.
    intro: the first paragraphs of the help text.
    main: the launcher.
    arguments: the command line.
    listed: as `from_arguments` has it.

  Returns:
    The exit code: 0 after success or --help, 2 after a usage error, 1 where
    something else is in the way, 130 where Ctrl-C ended it at once.
  """
  return _execute(
    lambda full: help_text(with_registered(cls), intro, full=full),
    lambda: main(
      reading.from_arguments(with_registered(cls), *arguments, listed=listed)
    ),
    arguments,
  )


def run_sweep(
  cls: type,
  intro: str,
  main: Callable[[Sweep], None],
) -> NoReturn:
  """Reads a command line with lists, calls `main` with the sweep, and exits."""
  streams.install()
  arguments = users.with_caller(sys.argv[1:])
  sys.exit(execute_sweep(cls, intro, main, arguments))


def execute_sweep(
  cls: type,
  intro: str,
  main: Callable[[Sweep], None],
  arguments: Sequence[str],
) -> int:
  """Calls `main` with the sweep that a command line makes.

  Args:
    cls: a frozen dataclass of options.
    intro: the first paragraphs of the help text.
    main: the launcher.
    arguments: the command line.

  Returns:
    The exit code, as `execute` has it.
  """
  return _execute(
    lambda full: help_text(with_registered(cls), intro, lists=True, full=full),
    lambda: main(
      reading.sweep_from_arguments(with_registered(cls), *arguments)
    ),
    arguments,
  )


def _execute(
  help_answer: Callable[[bool], str],
  main: Callable[[], None],
  arguments: Sequence[str],
) -> int:
  try:
    startup.end()
    users.load(arguments)
    for asked in ({'--helpfull', '-helpfull'}, {'--help', '-help', '-h'}):
      if asked & set(arguments):
        print(help_answer('--helpfull' in asked))
        return 0
    main()
  except UsageError as error:
    return _failed(2, error)
  except RunError as error:
    return _failed(1, error)
  except KeyboardInterrupt:
    return _failed(130, 'interrupted')
  return 0


def _failed(code: int, error: Any) -> int:
  print(f'error: {_in_a_line(str(error))}', file=sys.stderr)
  return code


def _in_a_line(text: str) -> str:
  """A message that quotes what someone has typed, as one line of some length.

  Characters that would end the line, move the cursor or cannot be written are
  shown as Python writes them.
  """
  if len(text) > _MOST_CHARACTERS:
    half = _MOST_CHARACTERS // 2
    text = f'{text[:half]} [...] {text[-half:]}'
  return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)
