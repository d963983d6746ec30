"""Parameters that things chosen by name take: which, and within what bounds."""

from collections.abc import Callable, Collection, Mapping, MutableMapping
import inspect
import math
import re
from typing import Any, NamedTuple


class Domain(NamedTuple):
  """What a parameter may be: a test, and its words after 'must be'."""

  holds: Callable[[Any], bool]
  text: str


POSITIVE = Domain(lambda x: 0 < x < math.inf, 'positive and finite')
NOT_NEGATIVE = Domain(lambda x: x >= 0, '0 or more')
NOT_POSITIVE = Domain(lambda x: x <= 0, '0 or less')
FRACTION = Domain(lambda x: 0 <= x <= 1, 'in [0, 1]')
RATE = Domain(lambda x: 0 < x <= 1, 'in (0, 1]')
WHOLE = Domain(lambda x: x >= 1 and x == int(x), 'a whole number from 1 on')


class Parameter(NamedTuple):
  """A parameter of things chosen by name, such as rules of the twin.

  Launchers make a flag of each: its type, its help text and what it may be are
  said here, once.

  Attributes:
    domain: what it may be.
    help: what it is, with its unit, without a full stop.
    kind: its type, float, int or str.
    traced: whether it may be a traced value, so that runs with different values
      are one compiled program; not so for names, and counts that shape arrays.
    default: its value where none is given; None where one must be.
    period: whether it counts gradient steps from one event to the next, which
      launchers take in the unit that users choose.
  """

  domain: Domain
  help: str
  kind: type = float
  traced: bool = True
  default: Any = None
  period: bool = False

  @property
  def holds(self) -> Callable[[Any], bool]:
    """The test of its domain."""
    return self.domain.holds

  @property
  def text(self) -> str:
    """The words of its domain after 'must be'."""
    return self.domain.text


def taken_by(make: Callable[..., Any], skip: int = 0) -> tuple[str, ...]:
  """Names of a function's arguments, which are parameters by these names.

  Args:
    make: the function.
    skip: arguments at the front that are none.
  """
  return tuple(inspect.signature(make).parameters)[skip:]


def add(
  kind: str,
  name: str,
  registry: Mapping[str, Any],
  takes: Collection[str],
  known: MutableMapping[str, Parameter],
  new: Mapping[str, Parameter],
) -> None:
  """Adds the parameters of something that is about to be registered.

  Args:
    kind: what the name will be the value of, such as 'target_update'.
    name: of what is registered.
    registry: what there is by name.
    takes: names of its parameters.
    known: parameters that there are; those of `new` are added.
    new: the parameters that it brings.

  Raises:
    FieldError: the name is taken, or is no word.
    ValueError: a parameter is not described, is described twice, or is
      described and not taken.
  """
  if not re.fullmatch(r'[a-z][a-z0-9_]*', name):
    raise FieldError(
      kind, name, 'must be a word of small letters, digits and underscores'
    )
  if name in registry:
    raise FieldError(kind, name, 'is taken')
  for parameter in new:
    if parameter in known:
      raise ValueError(f'there is a parameter {parameter!r} already')
    if parameter not in takes:
      raise ValueError(f'{name} does not take {parameter!r}')
  for parameter in takes:
    if parameter not in known and parameter not in new:
      raise ValueError(
        f'{name} takes {parameter!r}, which is none of {", ".join(known)}: '
        'describe it by a Parameter'
      )
  known.update(new)


class FieldError(ValueError):
  """An argument that must have another value, and which one it is.

  Callers that know the argument by another name, such as a flag, say the same
  sentence with theirs; see `written`.

  Attributes:
    field: name of the argument.
    value: of the argument.
    rest: the sentence after the two: texts, and further arguments as pairs of
      a name and a value.
  """

  def __init__(
    self, field: str, value: Any, *rest: str | tuple[str, Any]
  ) -> None:
    """Makes the error.

    Args:
      field: name of the argument.
      value: of the argument.
      *rest: the sentence after them, such as 'must be in (0, 1]'; or its parts,
        'has no meaning for', ('target_update', 'hard'), ', which takes none'.
    """
    super().__init__(field, value, *rest)  # all of them, so that it pickles
    self.field, self.value, self.rest = field, value, rest

  def written(self, assignment: Callable[[str, Any], str]) -> str:
    """The sentence, in which `assignment` writes an argument with its value."""
    text = assignment(self.field, self.value)
    for part in self.rest:
      words = part if isinstance(part, str) else assignment(*part)
      text += words if words[0] in ',:;' else f' {words}'
    return text

  def __str__(self) -> str:
    """The sentence as Python writes values: strings in quotes."""
    return self.written(
      lambda field, value: (
        f'{field}={value!r}' if isinstance(value, str) else f'{field}={value}'
      )
    )


def check_name(field: str, value: Any, allowed: Collection[str]) -> None:
  """Raises FieldError unless an argument is one of the names allowed."""
  if value not in allowed:
    raise FieldError(
      field, value, f'is unknown; choose from {", ".join(allowed)}'
    )


def check(
  kind: str,
  name: str,
  takes: Collection[str],
  given: Mapping[str, Any],
  domains: Mapping[str, Parameter],
  *,
  ignored: Collection[str] = (),
) -> dict[str, Any]:
  """The parameters that something takes, each within its domain.

  Args:
    kind: what the name is the value of, such as 'target_update'.
    name: of what takes the parameters.
    takes: names of the parameters that it reads, all of them needed.
    given: values by name; None is as good as left out. Tracers are within any
      domain.
    domains: all parameters that there are.
    ignored: parameters that may be given to what does not read them.

  Raises:
    FieldError: a parameter is missing, superfluous or outside its domain.
  """
  import jax  # takes seconds, which tools that raise errors do without

  given = {key: domains[key].default for key in takes if key in domains} | {
    key: value for key, value in given.items() if value is not None
  }
  given = {key: value for key, value in given.items() if value is not None}
  for key, value in given.items():
    if key not in domains:
      raise TypeError(f'there is no parameter {key!r}')
    if key not in takes and key not in ignored:
      raise FieldError(
        key,
        value,
        'has no meaning for',
        (kind, name),
        f', which takes {", ".join(takes) or "no parameter"}',
      )
    traced = isinstance(value, jax.core.Tracer)
    if not traced and not domains[key].holds(value):
      raise FieldError(key, value, f'must be {domains[key].text}')
  for key in takes:
    if key not in given:
      raise FieldError(kind, name, f'needs {key}, {domains[key].text}')
  return {key: given[key] for key in takes}
