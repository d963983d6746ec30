"""Records of options, made from command lines and flag files.

`from_arguments` makes one record. `sweep_from_arguments` is for launchers of
sweeps: every option that is not `single` takes a list, `--tau=0.1,0.5`, and
there is a record for every combination.
"""

from collections.abc import (
  Mapping,
  Sequence,
)
import dataclasses
import difflib
import itertools
import math
import os
import re
import shlex
import sys
from typing import Any, NamedTuple

from absl import flags
import numpy as np

from experiments.config import flag_files
from experiments.config.declaring import (
  Bound,
  INT32,
  UsageError,
  as_text,
  complete,
  option,
  options_of,
)
from experiments.config.meaning import dropped

# More combinations would take minutes to check.
_MOST_COMBINATIONS = 10_000


class Sweep(NamedTuple):
  """The runs that a command line with lists asks for.

  Attributes:
    configs: a record for each run; later options vary fastest. An option that
      means nothing to a run has its default there.
    points: for each run, its values of the `axes`; None for one that means
      nothing to it.
    values: every option with the values given, or with its default alone;
      without those of `also`.
    axes: the options that have more than one value, and these.
  """

  configs: tuple[Any, ...]
  points: tuple[dict[str, Any], ...]
  values: dict[str, tuple[Any, ...]]
  axes: dict[str, tuple[Any, ...]]


def _floats(cls: type) -> np.finfo:
  """The limits of the type that a launcher computes in."""
  return np.finfo(getattr(cls, 'FLOATS', np.float32))


def _at_home(field: dataclasses.Field, value: Any) -> Any:
  """A value; if it is a path, with `~` replaced by a home folder.

  The shell does not replace it in `--run_dir=~/run`.
  """
  if value is None or 'path' not in field.metadata:
    return value
  several = field.metadata['path'] == 'several'
  paths = []
  for given in value.split(',') if several else [value]:
    # A word before a colon says what kind of thing it is, as in minari:PATH.
    kind = ''.join(re.findall(r'^\w+:', given))
    rest = given.removeprefix(kind)
    expanded = os.path.expanduser(rest)
    if expanded.startswith('~'):
      user = rest.partition('/')[0]
      raise UsageError(
        f"--{field.name}={value}: {user} is nobody's home folder; a folder of "
        f'that name is ./{user}'
      )
    paths.append(kind + expanded)
  text = ','.join(paths)
  _check_utf8(f'--{field.name}={text}')
  return text


def _check_utf8(argument: str) -> None:
  """Raises UsageError for bytes that are not UTF-8 text."""
  try:
    argument.encode()
  except UnicodeEncodeError as error:
    shown = argument.encode(errors='surrogateescape').decode(
      errors='backslashreplace'
    )
    raise UsageError(f'{shown} must be UTF-8 text') from error


def _check(field: dataclasses.Field, value: Any, floats: np.finfo) -> None:
  """Raises UsageError unless the option may have the value.

  Args:
    field: the option.
    value: a value of its type, or None.
    floats: the limits of the type that the launcher computes in.
  """
  bound, must = field.metadata['bound'], ''
  if value is None or value == field.default:
    return
  if isinstance(value, float) and not math.isfinite(value):
    must = ', '.join(filter(None, ['a finite number', bound.text]))
  elif not bound.holds(value):
    must = bound.text
  elif isinstance(value, float):
    must = _survives_float(value, bound, floats)
  elif isinstance(value, int) and not isinstance(value, bool):
    if value > field.metadata['most']:
      must = f'at most {field.metadata["most"]}'
    elif value < -INT32 - 1:
      must = f'at least {-INT32 - 1}'
  elif isinstance(value, str) and not _is_writable(value):
    must = 'UTF-8 text without null characters'
  if must:
    raise UsageError(f'--{field.name}={value} must be {must}')


def _is_writable(text: str) -> bool:
  """Whether a text can be a path and be written to the files of a run."""
  try:
    return b'\0' not in text.encode()
  except UnicodeEncodeError:
    return False


def _survives_float(value: float, bound: Bound, floats: np.finfo) -> str:
  """Checks that a number keeps its meaning when it is converted.

  Args:
    value: a finite number within its bound.
    bound: the bound of the option.
    floats: the limits of the type that it is converted to.

  Returns:
    The words after 'must be'; '' where nothing is wrong.
  """
  size, bits = abs(value), f'a number that {floats.bits} bits can hold'
  if size > float(floats.max):
    return f'{bits}: it would be infinite'
  # Compiled programs take what is smaller than the least normal number for 0.
  if 0 < size < float(floats.tiny):
    return f'{bits}: it would be 0'
  if 0 < size < 1 and float(floats.dtype.type(size)) == 1:
    return f'{bits}: it would be {math.copysign(1, value):g}'
  number = floats.dtype.type
  if bound.mixes and number(1) - number(value) == 1:
    return (
      f'at least {float(floats.epsneg):.1e}: with {floats.bits} bits 1 minus '
      'it would be 1, and it would change nothing'
    )
  return ''


def from_arguments(
  cls: type, *arguments: str, listed: str | None = None
) -> Any:
  """The record that a command line makes.

  Args:
    cls: a frozen dataclass of options.
    *arguments: such as '--flagfile=...'.
    listed: the option that takes arguments without a flag, joined by commas;
      None if there may be none.

  Raises:
    UsageError: an argument is no flag, or a value is not allowed.
  """
  cls = complete(cls)
  values = _read(cls, arguments, set(), lists=False, listed=listed)
  return cls(**{name: value for name, (value,) in values.items()})


def sweep_from_arguments(cls: type, *arguments: str) -> Sweep:
  """The runs that a command line with lists makes: every combination.

  An option is not crossed with a run to which it means nothing. One that means
  nothing to any run keeps its values, so that the launcher can refuse them. The
  option of `also`, if there is one, adds further parts to the sweep.

  Args:
    cls: a frozen dataclass of options.
    *arguments: such as '--tau=0.1,0.5'.

  Raises:
    UsageError: an argument is no flag, or a value or a list is not allowed.
  """
  cls = complete(cls)
  said: set[str] = set()
  values = _read(cls, arguments, said)
  parts = [values, *_further_parts(cls, arguments, values, said)]
  _check_combinations(parts)
  configs = [
    cls(**dict(zip(part, product, strict=True)))
    for part in parts
    for product in itertools.product(*part.values())
  ]
  idle = [set(dropped(config)) for config in configs]
  nowhere = set.intersection(*idle)
  defaults = {f.name: _default(f, kind) for f, kind in options_of(cls)}
  given = {
    name: tuple(dict.fromkeys(value for part in parts for value in part[name]))
    for name in values
  }
  axes = {name: found for name, found in given.items() if len(found) > 1}
  runs: dict[Any, dict[str, Any]] = {}
  for config, names in zip(configs, idle, strict=True):
    without = names - nowhere
    config = dataclasses.replace(config, **{n: defaults[n] for n in without})
    point = {n: None if n in without else getattr(config, n) for n in axes}
    runs[config] = point  # once, where an axis was dropped
  return Sweep(tuple(runs), tuple(runs.values()), values, axes)


def _check_combinations(
  parts: Sequence[Mapping[str, tuple[Any, ...]]],
) -> None:
  """Raises UsageError for a sweep of more combinations than can be checked."""
  number = sum(math.prod(map(len, part.values())) for part in parts)
  if number > _MOST_COMBINATIONS:
    swept = dict.fromkeys(n for part in parts for n in part if len(part[n]) > 1)
    raise UsageError(
      f'the lists of --{", --".join(swept)} have {number:,} combinations, and '
      f'there must be at most {_MOST_COMBINATIONS:,}; --seeds are not counted'
    )


def _further_parts(
  cls: type,
  arguments: Sequence[str],
  values: Mapping[str, tuple[Any, ...]],
  said: set[str],
) -> list[dict[str, tuple[Any, ...]]]:
  """The options with their values in each part that --also adds."""
  parts = []
  for text in (values.get(_ALSO, (None,))[0] or '').split(';'):
    if not text.strip():
      continue
    try:
      part = _read(cls, (*arguments, *shlex.split(text)), said)
    except (ValueError, UsageError) as error:
      raise UsageError(f'--{_ALSO}={text.strip()}: {error}') from error
    for field, _ in options_of(cls):
      if field.metadata['single'] and part[field.name] != values[field.name]:
        raise UsageError(
          f'--{_ALSO}={text.strip()} must leave --{field.name} alone, which '
          'has one value for all runs'
        )
    parts.append(part)
  return parts


_ALSO = 'also'


def also() -> Any:
  """The option that adds further parts to a sweep; its field is `also`."""
  return option(
    None,
    'Further runs: groups of flags, separated by semicolons, each of which is '
    'added to the other flags and overrides them, such as '
    '"--tau=0.1; --target_update=hard --target_period=10,100".',
    single=True,
  )


def _read(
  cls: type,
  arguments: Sequence[str],
  said: set[str],
  *,
  lists: bool = True,
  listed: str | None = None,
) -> dict[str, tuple[Any, ...]]:
  """Every option with its values, which are checked one by one.

  Args:
    cls: the options.
    arguments: the command line.
    said: old names whose new names the user was told.
    lists: whether options that are not single take several values.
    listed: see `from_arguments`.
  """
  options, floats = options_of(cls), _floats(cls)
  flag_values = _parse(cls, arguments, listed)
  for field, _ in options:
    for old in field.metadata['alias']:
      if flag_values[old].present:
        _say_new(f'--{old}', f'--{field.name}', said)
  values = {}
  for field, kind in options:
    text = flag_values[field.name].value
    if text is None:
      found: tuple[Any, ...] = (_default(field, kind),)
    else:
      found = _values(field, kind, text, said, lists=lists)
    values[field.name] = found
    seen: dict[Any, Any] = {}
    for value in found:
      _check(field, value, floats)
      # Runs whose numbers become one and the same are the same run.
      same = float(floats.dtype.type(value)) if kind is float else value
      if kind is float and same in seen:
        raise UsageError(
          f'--{field.name}={text} must not hold {seen[same]} and {value}: in '
          f'{floats.bits} bits they are the same number'
        )
      seen[same] = value
  return values


def _say_new(old: str, new: str, said: set[str]) -> None:
  """Tells the user once that a name has changed."""
  if old not in said:
    said.add(old)
    print(f'note: {old} is now {new}', file=sys.stderr)


def _parse(
  cls: type, arguments: Sequence[str], listed: str | None
) -> flags.FlagValues:
  """Parses a command line with absl; all values are text.

  Args:
    cls: the options.
    arguments: the command line.
    listed: see `from_arguments`.

  Raises:
    UsageError: it cannot be read.
  """
  flag_values = flags.FlagValues()
  for field, kind in options_of(cls):
    # absl still knows --name and --noname.
    flag: flags.Flag[str] = flags.Flag(
      flags.ArgumentParser(),
      None,
      field.name,
      None,
      field.metadata['help'],
      boolean=kind is bool,
    )
    flags.DEFINE_flag(flag, flag_values)
    for old in field.metadata['alias']:
      flags.DEFINE_alias(old, field.name, flag_values=flag_values)
  if listed is not None:
    flag_values.set_gnu_getopt()  # flags after them are flags still
  for argument in arguments:
    _check_utf8(argument)
  try:
    _, *rest = flag_values(['', *flag_files.expand(arguments)])
  except (flags.Error, ValueError) as error:
    # The latter of a flag file, or of a value that is given to --noname.
    raise UsageError(_explain(cls, error)) from error
  if rest and listed is None:
    raise UsageError(f'{rest[0]!r} is no flag; flags are written --name=value')
  if rest and listed is not None:
    if flag_values[listed].present:
      raise UsageError(f'{rest[0]!r} must not be given beside --{listed}')
    flag_values[listed].value = ','.join(rest)
  return flag_values


def _default(field: dataclasses.Field, kind: type) -> Any:
  """The default of an option: 600.0 where a float's is written as 600."""
  return None if field.default is None else kind(field.default)


_PARSERS: dict[type, flags.ArgumentParser] = {
  int: flags.IntegerParser(),
  float: flags.FloatParser(),
  bool: flags.BooleanParser(),
}
_KINDS = {int: 'a whole number', float: 'a number', bool: 'true or false'}


def _values(
  field: dataclasses.Field,
  kind: type,
  text: str,
  said: set[str],
  *,
  lists: bool,
) -> tuple[Any, ...]:
  """Parses the text of an option into its values."""
  name, must = field.name, _KINDS.get(kind, 'text')
  if not lists or field.metadata['single']:
    parts = [text]
  else:
    parts = [part.strip() for part in text.split(',')]
    if '' in parts:
      raise UsageError(
        f'--{name}={text} must be {must}, or several with one comma between two'
      )
    if len(parts) > _MOST_COMBINATIONS:
      raise UsageError(
        f'--{name}={text} must be at most {_MOST_COMBINATIONS:,} values, not '
        f'{len(parts):,}'
      )
  values: dict[Any, None] = {}
  for part in parts:
    new = field.metadata['value_alias'].get(part)
    if new is not None:
      _say_new(f'--{name}={part}', f'--{name}={new}', said)
      part = new
    try:
      value = _PARSERS[kind].parse(part) if kind in _PARSERS else part
    except ValueError as error:
      if lists and field.metadata['single'] and ',' in part:
        must = f'one value and no list: {must}'
      raise UsageError(f'--{name}={part} must be {must}') from error
    value = _at_home(field, value)
    if value in values:
      raise UsageError(f'--{name}={text} must not hold {as_text(value)} twice')
    values[value] = None
  return tuple(values)


def now(cls: type, flags: Mapping[str, str]) -> dict[str, str]:
  """The flags of an older run, with the present names of flags and values.

  A flag that has been added since has its default.

  Args:
    cls: a frozen dataclass of options.
    flags: the value or list of each flag of the run.
  """
  defaults = {
    field.name: as_text(_default(field, kind))
    for field, kind in options_of(cls)
    if field.default is not None
  }
  return defaults | renamed(cls, flags)


def renamed(cls: type, flags: Mapping[str, str]) -> dict[str, str]:
  """Flags with the present names of flags and values.

  Args:
    cls: a frozen dataclass of options.
    flags: the value or list of each flag of a run.
  """
  about = {
    name: field
    for field, _ in options_of(cls)
    for name in (field.name, *field.metadata['alias'])
  }
  found = {}
  for name, text in flags.items():
    if name in about:
      aliases = about[name].metadata['value_alias']
      name = about[name].name
      text = ','.join(aliases.get(part, part) for part in text.split(','))
    found[name] = text
  return found


def _explain(cls: type, error: Exception) -> str:
  """An error of absl in one line: the flag, its value and what is allowed."""
  if isinstance(error, flags.UnrecognizedFlagError):
    names = [field.name for field, _ in options_of(cls)]
    close = difflib.get_close_matches(error.flagname, names, cutoff=0.5)
    hint = f'; the closest are --{", --".join(close)}' if close else ''
    return f'--{error.flagname} is no flag{hint}; see --helpfull'
  return ' '.join(str(error).split())


def as_flags(config: Any) -> dict[str, str]:
  """Every option with its value as a flag file has it; None is left out.

  Args:
    config: a record, or a sweep, whose lists are written as lists.
  """
  result = {}
  for name, values in _all_values(config).items():
    if values != (None,):
      result[name] = ','.join(map(as_text, values))
  return result


def as_json(config: Any) -> dict[str, Any]:
  """Every option of a record, or of a sweep, with its value or its list."""
  return {
    name: list(values) if len(values) > 1 else values[0]
    for name, values in _all_values(config).items()
  }


def _all_values(config: Any) -> dict[str, tuple[Any, ...]]:
  if isinstance(config, Sweep):
    return config.values
  names = [field.name for field, _ in options_of(type(config))]
  return {name: (getattr(config, name),) for name in names}
