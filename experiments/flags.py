"""Flags from frozen dataclasses: a default is written once, in its field.

A launcher describes its options as a frozen dataclass whose fields are made
by `option`. `run` turns them into absl flags, parses the command line, checks
every value and calls the launcher with the finished record. Below this package
no flag is read.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
import contextlib
import dataclasses
import difflib
import math
import re
import sys
import textwrap
import types
import typing
from typing import Any, NamedTuple, NoReturn

from absl import flags


class UsageError(Exception):
  """The command line asks for something that cannot be; exit code 2."""


class RunError(Exception):
  """Something outside the command line is in the way; exit code 1."""


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
  """Has the ValueErrors of the library speak of flags.

  Their messages begin with `name=value`, and names are those of the flags.
  """
  try:
    yield
  except ValueError as error:
    text = str(error).removeprefix('--')
    if not re.match(r'\w+=', text):
      raise  # not about a flag: an error in the program
    # A flag is shown as one types it: without the quotes of a string.
    text = re.sub(r"\b(\w+)='([^']*)'", r'\1=\2', text)
    raise UsageError(f'--{text}') from error


class Bound(NamedTuple):
  """What a value must be: a test, and its words after 'must be'.

  Floats must be finite besides, whatever their bound.
  """

  holds: Callable[[Any], bool]
  text: str


POSITIVE = Bound(lambda x: x > 0, 'positive')
NOT_NEGATIVE = Bound(lambda x: x >= 0, '0 or more')
UINT32 = Bound(lambda x: 0 <= x < 2**32, 'from 0 to 4294967295')
FRACTION = Bound(lambda x: 0 <= x <= 1, 'in [0, 1]')
DECAY = Bound(lambda x: 0 <= x < 1, 'in [0, 1)')
RATE = Bound(lambda x: 0 < x <= 1, 'in (0, 1]')
ANYTHING = Bound(lambda x: True, '')


def one_of(names: Collection[str]) -> Bound:
  """The bound of an option that takes one of some names."""
  return Bound(lambda x: x in names, f'one of {", ".join(names)}')


def option(default: Any, help: str, bound: Bound = ANYTHING) -> Any:
  """A dataclass field that becomes a flag.

  Args:
    default: its value where the flag is not given.
    help: one sentence or two, with the unit.
    bound: what values are allowed.
  """
  return dataclasses.field(
    default=default, metadata={'help': help, 'bound': bound}
  )


def group(title: str) -> Any:
  """A field that becomes no flag, but a heading in the help text."""
  return dataclasses.field(default=None, init=False, metadata={'group': title})


def _options(cls: type) -> list[tuple[dataclasses.Field, type]]:
  """The fields that are flags, each with the type of a value that is given."""
  hints = typing.get_type_hints(cls)
  found = []
  for field in dataclasses.fields(cls):
    if 'help' in field.metadata:
      hint = hints[field.name]
      if isinstance(hint, types.UnionType):  # X | None
        hint = next(t for t in typing.get_args(hint) if t is not type(None))
      found.append((field, hint))
  return found


def define(cls: type, flag_values: flags.FlagValues) -> None:
  """Defines an absl flag for every option of a dataclass."""
  makers: dict[type, Callable[..., Any]] = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    bool: flags.DEFINE_bool,
  }
  for field, kind in _options(cls):
    makers[kind](
      field.name, field.default, field.metadata['help'], flag_values=flag_values
    )


def read(cls: type, flag_values: flags.FlagValues) -> Any:
  """The record that the parsed flags make, every value checked.

  Raises:
    UsageError: a value is not allowed; names the flag, the value and what is.
  """
  values = {}
  for field, _ in _options(cls):
    value, bound = flag_values[field.name].value, field.metadata['bound']
    if isinstance(value, float) and not math.isfinite(value):
      words = ', '.join(filter(None, ['a finite number', bound.text]))
      raise UsageError(f'--{field.name}={value} must be {words}')
    if value is not None and not bound.holds(value):
      raise UsageError(f'--{field.name}={value} must be {bound.text}')
    values[field.name] = value
  return cls(**values)


def from_arguments(cls: type, *arguments: str) -> Any:
  """The record that a command line makes.

  Args:
    cls: a frozen dataclass of options.
    *arguments: such as '--flagfile=...'.

  Raises:
    UsageError: an argument is no flag, or a value is not allowed.
  """
  flag_values = flags.FlagValues()
  flags.DEFINE_string('flagfile', '', '', flag_values=flag_values)
  define(cls, flag_values)
  try:
    _, *rest = flag_values(['', *arguments])
  except (flags.Error, UnicodeDecodeError) as error:
    raise UsageError(_explain(cls, error)) from error
  if rest:
    raise UsageError(f'{rest[0]!r} is no flag; flags are written --name=value')
  return read(cls, flag_values)


def _explain(cls: type, error: Exception) -> str:
  """What absl refuses, in a line that names flag, value and what is allowed."""
  kinds = {field.name: kind for field, kind in _options(cls)}
  text = ' '.join(str(error).split())
  if isinstance(error, flags.UnrecognizedFlagError):
    close = difflib.get_close_matches(error.flagname, kinds, cutoff=0.5)
    hint = f'; the closest are --{", --".join(close)}' if close else ''
    return f'--{error.flagname} is no flag{hint}; see --help'
  if isinstance(error, flags.IllegalFlagValueError):
    match = re.match(r'flag --(\w+)=(.*?): ', text)
    if match and match[1] in kinds:
      must = {int: 'a whole number', float: 'a number', bool: 'true or false'}
      kind = must.get(kinds[match[1]], 'text')
      return f'--{match[1]}={match[2]} must be {kind}'
  if isinstance(error.__context__, OSError):  # absl names no flag
    cause = error.__context__
    return f'--flagfile={cause.filename} cannot be read: {cause.strerror}'
  if isinstance(error, UnicodeDecodeError):
    return f'--flagfile must name a text file: {text}'
  return text


def as_flags(config: Any) -> dict[str, str]:
  """Every option with its value as a flag file has it; None is left out."""
  result = {}
  for field, kind in _options(type(config)):
    value = getattr(config, field.name)
    if value is not None:
      result[field.name] = str(value).lower() if kind is bool else str(value)
  return result


def as_json(config: Any) -> dict[str, Any]:
  """Every option with its value."""
  return {f.name: getattr(config, f.name) for f, _ in _options(type(config))}


def help_text(cls: type, intro: str) -> str:
  """The answer to --help: options under their headings, in written order."""
  lines = [intro.strip(), '']
  for field in dataclasses.fields(cls):
    if 'group' in field.metadata:
      lines += ['', f'{field.metadata["group"]}:']
    elif 'help' in field.metadata:
      lines.append(_help_head(field))
      text = field.metadata['help']
      bound = field.metadata['bound'].text
      if bound:
        text = f'{text.rstrip(".")}; {bound}.'
      lines += textwrap.wrap(
        text, 76, initial_indent=' ' * 6, subsequent_indent=' ' * 6
      )
  lines += [
    '',
    '--flagfile=FILE reads flags from a file, one a line. Of a flag given '
    'twice the',
    'later one counts, so flags after --flagfile change what the file says.',
  ]
  return '\n'.join(lines)


def _help_head(field: dataclasses.Field) -> str:
  """The first line of a flag in the help text."""
  default = field.default
  if default is None:
    return f'  --{field.name}'
  if isinstance(default, bool):
    return f'  --[no]{field.name}  (default: {str(default).lower()})'
  # Underscores group digits, and are understood on the command line too.
  text = f'{default:_}' if isinstance(default, int) else str(default)
  return f'  --{field.name}  (default: {text})'


def run(cls: type, intro: str, main: Callable[[Any], None]) -> NoReturn:
  """Reads the command line into `cls`, calls `main` with it, and exits."""
  sys.exit(execute(cls, intro, main, sys.argv[1:]))


def execute(
  cls: type, intro: str, main: Callable[[Any], None], arguments: Sequence[str]
) -> int:
  """Calls `main` with the record that a command line makes.

  Errors that have an explanation end in one line, not in a traceback.

  Args:
    cls: a frozen dataclass of options.
    intro: the first paragraphs of the help text.
    main: the launcher.
    arguments: the command line.

  Returns:
    The exit code: 0 after success or --help, 2 after a usage error, 1 where
    something else is in the way, 130 where Ctrl-C ended it at once.
  """
  if {'--help', '-help', '-h'} & set(arguments):
    print(help_text(cls, intro))
    return 0
  try:
    main(from_arguments(cls, *arguments))
  except UsageError as error:
    return _failed(2, error)
  except RunError as error:
    return _failed(1, error)
  except KeyboardInterrupt:
    return _failed(130, 'interrupted')
  return 0


def _failed(code: int, error: Any) -> int:
  print(f'error: {error}', file=sys.stderr)
  return code
