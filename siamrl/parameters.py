"""Parameters of things that are chosen by name, and their allowed values."""

from collections.abc import Callable, Collection, Mapping, MutableMapping
import inspect
import math
import re
from typing import Any, NamedTuple


class Domain(NamedTuple):
  """The allowed values of a parameter: a test, and words after 'must be'."""

  holds: Callable[[Any], bool]
  text: str


FINITE = Domain(math.isfinite, 'a finite number')
POSITIVE = Domain(lambda x: 0 < x < math.inf, 'positive and finite')
NOT_NEGATIVE = Domain(lambda x: x >= 0, '0 or more')
NOT_POSITIVE = Domain(lambda x: x <= 0, '0 or less')
FRACTION = Domain(lambda x: 0 <= x <= 1, 'in [0, 1]')
RATE = Domain(lambda x: 0 < x <= 1, 'in (0, 1]')
WHOLE = Domain(lambda x: x >= 1 and x == int(x), 'a whole number from 1 on')


class Parameter(NamedTuple):
  """A parameter of things chosen by name, such as rules of the twin.

  Launchers make a flag of each, with the type, help text and allowed values
  given here.

  Attributes:
    domain: the allowed values.
    help: help text, with the unit, without a full stop.
    kind: the type: float, int or str.
    traced: whether it may be a traced value, so that one compiled program
      serves different values; False for names, and counts that shape arrays.
    default: the value if none is given; None if one is required.
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
    """The test of the domain."""
    return self.domain.holds

  @property
  def text(self) -> str:
    """The words of the domain after 'must be'."""
    return self.domain.text


def taken_by(make: Callable[..., Any], skip: int = 0) -> tuple[str, ...]:
  """The names of the parameters that a function takes as arguments.

  Args:
    make: the function.
    skip: number of leading arguments that are not parameters.
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
  """Adds the parameters of a thing that is about to be registered.

  Args:
    kind: argument that chooses the thing by name, such as 'target_update'.
    name: name of the thing.
    registry: the things registered so far, by name.
    takes: names of the thing's parameters.
    known: all parameters so far, to which `new` is added.
    new: the parameters that the thing brings.

  Raises:
    FieldError: the name is taken, or is not a word.
    ValueError: a parameter is not described, is described twice, or is
      described but not taken.
  """
  if not re.fullmatch(r'[a-z][a-z0-9_]*', name):
    raise FieldError(
      kind, name, 'must be a word of lowercase letters, digits and underscores'
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
        f'{name} takes {parameter!r}, which is not among {", ".join(known)}: '
        'describe it by a Parameter'
      )
  known.update(new)


class FieldError(ValueError):
  """An error that names an argument with an invalid value.

  Callers that know the argument by another name, such as a flag, rewrite the
  message with that name; see `written`.

  Attributes:
    field: name of the argument.
    value: value of the argument.
    rest: rest of the message: strings, and further arguments as (name, value)
      pairs.
  """

  def __init__(
    self, field: str, value: Any, *rest: str | tuple[str, Any]
  ) -> None:
    """Makes the error.

    Args:
      field: name of the argument.
      value: value of the argument.
      *rest: rest of the message, such as 'must be in (0, 1]'; or its parts,
        'has no meaning for', ('target_update', 'hard'), ', which takes none'.
    """
    super().__init__(field, value, *rest)  # pickling needs all arguments
    self.field, self.value, self.rest = field, value, rest

  def written(self, assignment: Callable[[str, Any], str]) -> str:
    """The message, with each argument and its value put by `assignment`."""
    text = assignment(self.field, self.value)
    for part in self.rest:
      words = part if isinstance(part, str) else assignment(*part)
      text += words if words[0] in ',:;' else f' {words}'
    return text

  def __str__(self) -> str:
    """The message in Python's notation, with strings in quotes."""
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
  """Checks the parameters of a thing chosen by name, and fills in defaults.

  Args:
    kind: argument that chooses the thing by name, such as 'target_update'.
    name: name of the thing.
    takes: names of the parameters that it reads, all of them required.
    given: values by name; None counts as not given. Tracers are always valid.
    domains: all parameters, by name.
    ignored: names of parameters that may be given even if they are not read.

  Returns:
    The values of the parameters in `takes`.

  Raises:
    FieldError: a parameter is missing, superfluous or outside its domain.
  """
  import jax  # takes seconds, which tools that only raise errors are spared

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
