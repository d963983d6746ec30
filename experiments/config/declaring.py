"""Options declared as fields of frozen dataclasses, and their errors.

A launcher describes its options as a frozen dataclass whose fields are made by
`option`. `config.reading` makes its records from command lines. siamrl reads no
flags.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
import contextlib
import dataclasses
import operator
import re
import types
import typing
from typing import Any, NoReturn

from siamrl import parameters
from siamrl.envs.errors import BrokenEnvironmentError
from siamrl.parameters import FieldError, Parameter

# The largest numbers of types that hold whole numbers.
INT32, INT64 = 2**31 - 1, 2**63 - 1

# More layers would take minutes to trace.
_MOST_LAYERS = 100


class UsageError(Exception):
  """The command line is invalid; exit code 2."""


class RunError(Exception):
  """Something outside the command line went wrong; exit code 1."""


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
  """Turns errors about the library's arguments into errors about flags."""
  try:
    yield
  except FieldError as error:
    # A flag is shown as one types it: without the quotes of a string.
    text = error.written(lambda name, value: f'{name}={as_text(value)}')
    raise UsageError(f'--{text}') from error


@contextlib.contextmanager
def option_errors(name: str, value: Any) -> Iterator[None]:
  """Turns errors of the library into errors about an option's value."""
  try:
    yield
  except ValueError as error:
    raise UsageError(f'--{name}={value}: {error}') from error
  except (ImportError, BrokenEnvironmentError) as error:
    raise RunError(f'--{name}={value}: {error}') from error


def refuse(config: Any, name: str, must: str) -> NoReturn:
  """Raises UsageError for the value of an option."""
  raise UsageError(f'--{name}={as_text(getattr(config, name))} must {must}')


@dataclasses.dataclass(frozen=True)
class Bound:
  """A test that a value must pass.

  A number must also survive the type that computes with it, see `option`.

  Attributes:
    holds: the test.
    must_be: words for it, or a function that returns them if more values can
      be registered.
    mixes: whether the value is a mixing weight w beside 1 - w. A value so small
      that 1 - w rounds to 1 changes nothing.
  """

  holds: Callable[[Any], bool]
  must_be: str | Callable[[], str]
  mixes: bool = False

  @property
  def text(self) -> str:
    """The words after 'must be'."""
    return self.must_be if isinstance(self.must_be, str) else self.must_be()


POSITIVE = Bound(lambda x: x > 0, 'positive')
NOT_NEGATIVE = Bound(lambda x: x >= 0, '0 or more')
UINT32 = Bound(lambda x: 0 <= x < 2**32, 'from 0 to 4294967295')
FRACTION = Bound(lambda x: 0 <= x <= 1, 'in [0, 1]')
NOT_POSITIVE = Bound(lambda x: x <= 0, '0 or less')
DECAY = Bound(lambda x: 0 <= x < 1, 'in [0, 1)')
RATE = Bound(lambda x: 0 < x <= 1, 'in (0, 1]', mixes=True)
ANYTHING = Bound(lambda x: True, '')
PATH = Bound(lambda x: x != '', 'the name of a file or folder')


def one_of(names: Collection[str]) -> Bound:
  """The bound of an option that takes one of some names.

  Args:
    names: a live collection; names that are registered later count, too.
  """
  return Bound(lambda x: x in names, lambda: f'one of {", ".join(names)}')


def registered(names: Callable[[], Collection[str]]) -> Bound:
  """The bound of an option that takes names which a user's file may add to."""
  return Bound(
    lambda x: x in names(),
    lambda: f'one of {", ".join(names())}, or a name that a --user_file adds',
  )


def sizes(example: str, *, none: bool = False) -> Bound:
  """The bound of a text that lists the sizes of layers.

  Args:
    example: an example for the error message.
    none: whether it may be the word none.
  """
  pattern = re.compile(r'[1-9][0-9]{0,9}(-[1-9][0-9]{0,9})*')

  def holds(text: str) -> bool:
    if none and text == 'none':
      return True
    if not pattern.fullmatch(text):
      return False
    numbers = [int(size) for size in text.split('-')]
    return len(numbers) <= _MOST_LAYERS and max(numbers) < 2**31

  text = f'positive numbers joined by hyphens, such as {example}'
  if none:
    text += ', or none'
  return Bound(holds, f'{text} (at most {_MOST_LAYERS}, each below {2**31})')


@dataclasses.dataclass(frozen=True)
class When:
  """A condition under which an option means something.

  Attributes:
    holds: configuration -> whether it is met. It may look only at options that
      always mean something themselves.
    text: its words, such as 'with --replay=uniform', or a function that returns
      them if more choices can be registered.
    chooser: the option whose value it depends on, if there is one.
    parts: the conditions that must all be met, if there are several.
  """

  holds: Callable[[Any], bool]
  text: str | Callable[[], str]
  chooser: str | None = None
  parts: tuple['When', ...] = ()

  @property
  def words(self) -> str:
    """Its words."""
    return self.text if isinstance(self.text, str) else self.text()


def given(name: str, *values: str) -> When:
  """The condition that an option has one of some values."""
  return When(
    lambda config: getattr(config, name) in values,
    f'with --{name}={either(values)}',
    name,
  )


def not_given(name: str, *values: str) -> When:
  """The condition that an option has none of some values."""
  return When(
    lambda config: getattr(config, name) not in values,
    f'without --{name}={either(values)}',
  )


def is_set(name: str, least: str = '') -> When:
  """The condition that an option is neither None, False nor zero.

  Args:
    name: the name of the option. A launcher without it has not set it.
    least: the least value, in words.
  """
  value = f'={least}' if least else ''
  return When(
    lambda config: bool(getattr(config, name, None)), f'with --{name}{value}'
  )


def not_set(name: str) -> When:
  """The condition that an option is None, False or zero."""
  return When(lambda config: not getattr(config, name), f'without --{name}')


def both(*conditions: When) -> When:
  """The condition that all of some conditions are met."""
  return When(
    lambda config: all(each.holds(config) for each in conditions),
    lambda: ' and '.join(each.words for each in conditions),
    parts=conditions,
  )


def any_of(*conditions: When) -> When:
  """At least one of some conditions is met."""
  return When(
    lambda config: any(each.holds(config) for each in conditions),
    lambda: ' or '.join(each.words for each in conditions),
  )


def either(values: Collection[str]) -> str:
  """Some values in words: a, b or c."""
  *others, last = values
  return f'{", ".join(others)} or {last}' if others else last


def taken_by(
  chooser: str,
  registry: Mapping[str, Any],
  name: str,
  *,
  kind: str = 'takes',
  chosen: Callable[[Any], Any] | None = None,
) -> When:
  """The condition that what an option chooses takes a parameter.

  Args:
    chooser: the option.
    registry: its choices; each has the names that it takes in an attribute.
    name: the name of the parameter.
    kind: the attribute.
    chosen: config -> the choice; the option's value if None.
  """

  def takes(choice: str) -> bool:
    if choice not in registry:
      return False
    return name in getattr(registry[choice], kind)

  return When(
    lambda config: takes((chosen or operator.attrgetter(chooser))(config)),
    lambda: f'with --{chooser}={either(list(filter(takes, registry)))}',
    chooser,
  )


def option(
  default: Any,
  help: str,
  bound: Bound = ANYTHING,
  *,
  single: bool = False,
  most: int = INT32,
  traced: bool = False,
  when: When | None = None,
  refused: bool | When = False,
  never: str = '',
  taken: Any = None,
  common: bool = False,
  alias: Collection[str] = (),
  value_alias: Mapping[str, str] = types.MappingProxyType({}),
) -> Any:
  """A dataclass field that becomes a flag.

  A number must survive the conversion to the type that compiled programs use. A
  whole number must be an int32, or at most `most`. Any other number must be
  finite as a float32, must not become 0, and must not become 1 if it lies
  between 0 and 1. A launcher that computes in another type has a class
  attribute `FLOATS`.

  Args:
    default: its value if the flag is not given.
    help: one sentence or two, with the unit.
    bound: the values that are allowed.
    single: whether it takes no list, not even in a sweep.
    most: the largest value of a whole number. `INT64` is for options that only
      Python computes with; the launcher must then check what follows from them.
    traced: whether runs with different values can be one compiled program,
      which its values enter as arrays.
    when: the condition under which it means something; always if not given.
      Otherwise a sweep does not cross it with other options, and the user is
      told that it changes nothing.
    refused: whether it must be left out if `when` does not hold; or the part of
      that condition without which it must be left out.
    never: why a launcher that inherits it must leave it out.
    taken: the value that counts if it means something and is not given.
    common: whether it is in the short help text.
    alias: former names of the flag, which are still understood.
    value_alias: old spellings of its values, and the new ones.
  """
  metadata = {
    'help': help,
    'bound': bound,
    'single': single,
    'most': most,
    'traced': traced,
    'when': when,
    'refused': refused,
    'never': never,
    'taken': taken,
    'common': common,
    'alias': alias,
    'value_alias': value_alias,
  }
  return dataclasses.field(default=default, metadata=metadata)


def path_option(
  default: Any, help: str, *, several: bool = False, **more: Any
) -> Any:
  """An option that names a file or a folder; `~` is the user's home.

  Args:
    default: its value if the flag is not given.
    help: one sentence.
    several: whether it names several, with commas between them.
    **more: further arguments of `option`.
  """
  path = 'several' if several else 'one'
  return _changed(option(default, help, PATH, **more), default, path=path)


def choice(
  default: Any,
  help: str,
  summaries: Mapping[str, str] | Callable[[], Mapping[str, str]],
  **more: Any,
) -> Any:
  """An option that takes one of several names, each with a line of help.

  Args:
    default: its value if the flag is not given.
    help: one sentence.
    summaries: the meaning of each name, or a function that returns them if
      more can be registered.
    **more: further arguments of `option`.
  """
  known = summaries if callable(summaries) else lambda: summaries
  bound = registered(known) if callable(summaries) else one_of(summaries)
  return _changed(
    option(default, help, bound, **more), default, summaries=known
  )


# Bounds with better words than the domains of parameters.
_BOUNDS = {
  parameters.FINITE: ANYTHING,
  parameters.POSITIVE: POSITIVE,
  parameters.NOT_NEGATIVE: NOT_NEGATIVE,
  parameters.NOT_POSITIVE: NOT_POSITIVE,
  parameters.FRACTION: FRACTION,
  parameters.RATE: RATE,
  parameters.WHOLE: POSITIVE,
}


def parameter(
  about: Parameter, when: When, default: Any = None, **more: Any
) -> Any:
  """The option of a parameter that only some choices of another one read.

  Args:
    about: describes it.
    when: the condition that such a choice is made.
    default: its value if the flag is not given.
    **more: further arguments of `option`.
  """
  domain = about.domain
  bound = _BOUNDS.get(domain, Bound(domain.holds, domain.text))
  declared: dict[str, Any] = {
    'most': INT64 if about.period else INT32,  # checked in gradient steps
    'traced': about.traced,
    'when': when,
    'refused': True,
    'taken': about.default,
  }
  field = option(default, about.help, bound, **declared | more)
  return _changed(field, default, parameter=True)


def redeclared(
  cls: type, name: str, default: Any = dataclasses.MISSING, **changes: Any
) -> Any:
  """A copy of the field of a class, with some changes.

  Args:
    cls: declares the option, or inherits it.
    name: the name of the option.
    default: its value if the flag is not given; as in `cls` if left out.
    **changes: arguments of `option`.
  """
  (field,) = (each for each in dataclasses.fields(cls) if each.name == name)
  if default is dataclasses.MISSING:
    default = field.default
  return _changed(field, default, **changes)


def _changed(
  field: dataclasses.Field, default: Any, **changes: Any
) -> dataclasses.Field:
  """A field with another default and other metadata."""
  return dataclasses.field(
    default=default, metadata={**field.metadata, **changes}
  )


# Options by name, each with its type.
Further = Mapping[str, tuple[type, dataclasses.Field]]


def options_for(
  known: Mapping[str, Parameter], when: Callable[[str], When]
) -> Further:
  """The options of parameters.

  Args:
    known: describes them, by name.
    when: name -> the condition under which it means something.
  """
  return {
    name: (about.kind, parameter(about, when(name)))
    for name, about in known.items()
  }


def group(title: str, further: Callable[[], Further] = dict) -> Any:
  """A field that becomes a heading in the help text instead of a flag.

  Args:
    title: the heading.
    further: -> more options under it; `complete` adds those that the class does
      not declare itself.
  """
  metadata = {'group': title, 'further': further}
  return dataclasses.field(default=None, init=False, metadata=metadata)


def complete(cls: type) -> type:
  """A class of options, with those of parameters registered by now.

  Raises:
    RunError: a parameter has the name of an option of another kind.
  """
  known = {field.name: field.metadata for field in dataclasses.fields(cls)}
  further: list[Any] = []
  for heading in dataclasses.fields(cls):
    for name, (kind, field) in heading.metadata.get('further', dict)().items():
      if name not in known:
        field = _changed(field, field.default, under=heading.name)
        further.append((name, kind | None, field))
      elif 'parameter' not in known[name]:
        raise RunError(
          f'--{name}: no parameter of what is registered can have this name, '
          'which is that of another option'
        )
  if not further:
    return cls
  made = dataclasses.make_dataclass(
    cls.__name__, further, bases=(cls,), frozen=True
  )
  made.__module__, made.__doc__ = cls.__module__, cls.__doc__
  return made


def options_of(cls: type) -> list[tuple[dataclasses.Field, type]]:
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


def value_of(config: Any, name: str) -> Any:
  """The value of an option, or the one that counts if it is not given."""
  value = getattr(config, name, None)
  if value is None:
    field = type(config).__dataclass_fields__.get(name)
    value = field and field.metadata['taken']
  return value


def as_text(value: Any) -> str:
  """A value as a flag file has it."""
  return str(value).lower() if isinstance(value, bool) else str(value)


def counts(config: Any) -> dict[str, Any]:
  """The options of counts and sizes that are not at their defaults.

  Args:
    config: a record of options.

  Returns:
    The default of each such whole number or text of numbers; 1 if it has none.
  """
  found = {}
  for field, kind in options_of(type(config)):
    value = getattr(config, field.name)
    counted = kind is int or (
      kind is str and re.fullmatch(r'[0-9-]+', value or '')
    )
    if counted and value not in (None, field.default):
      found[field.name] = 1 if field.default is None else field.default
  return found
