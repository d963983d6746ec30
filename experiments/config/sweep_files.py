"""Sweep files: which runs a sweep has, and what each may use.

A sweep file is a TOML file of about a dozen lines:

    launcher = "minatar"
    flagfile = "minatar_dqn"
    seeds = 5

    [axes]
    game = ["breakout", "asterix"]
    target_period = [100, 1000, 10000]

`flags` is text with further flags. Every combination of values in `axes` is
run with every seed. `[arms]` has named texts of flags; each of them gets all
combinations:

    [arms]
    dqn = "--agent=dqn"
    c51 = "--flagfile=my_c51.flags --learning_rate=1e-4"

An arm may name a launcher of its own; `launcher` is that of the others:

    [arms]
    cartpole = {launcher = "classic", flags = "--environment=cartpole"}

Runs that differ only in numbers stay one compiled program in one process, where
a launcher compiles. `split` lists axes (or "seed") that get a process for each
value even so. `cores`, `gpus` and `memory_gb` are what each process may use.
"""

from collections.abc import Mapping
import difflib
import pathlib
import shlex
import tomllib
from typing import Any, NamedTuple

from experiments.config.declaring import UsageError, as_text


class Arm(NamedTuple):
  """An arm of a sweep.

  Attributes:
    launcher: the module of `experiments` that trains its runs.
    flags: arguments of its runs, besides those of all runs.
  """

  launcher: str
  flags: tuple[str, ...]


class SweepFile(NamedTuple):
  """A sweep file.

  Attributes:
    path: the file.
    flags: arguments of all runs.
    arms: the arms by name; one named '' if there are none.
    axes: the values of each swept option, as text.
    seeds: runs of each combination; None if the flags say it.
    split: axes whose values do not share a process; 'seed' for seeds.
    cores: processor cores of each process.
    gpus: GPUs of each process.
    memory_gb: memory that a cluster sets aside for each process; None for its
      default.
    about: entries for reports, which the sweep does not read.
  """

  path: pathlib.Path
  flags: tuple[str, ...]
  arms: dict[str, Arm]
  axes: dict[str, tuple[str, ...]]
  seeds: int | None
  split: tuple[str, ...]
  cores: int
  gpus: int
  memory_gb: float | None
  about: dict[str, Any]


# Entries that only reports read.
ABOUT = (
  'arms_are_tasks',
  'baseline',
  'columns',
  'cost',
  'criteria',
  'figures',
  'question',
  'source',
)
_KEYS = (
  *('launcher', 'flagfile', 'flags', 'arms', 'axes', 'seeds', 'split'),
  *('cores', 'gpus', 'memory_gb'),
  *ABOUT,
)


def read(path: pathlib.Path, launchers: tuple[str, ...]) -> SweepFile:
  """Reads a sweep file.

  Args:
    path: the file.
    launchers: the names that a launcher may have.

  Raises:
    UsageError: it cannot be read or is not a sweep file; the message names the
      entry and what is allowed.
  """
  try:
    found = tomllib.loads(path.read_text(encoding='utf-8'))
  except OSError as error:
    raise _refused(path, f'cannot be read: {error.strerror}') from error
  except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
    raise _refused(path, f'must be a TOML file: {error}') from error
  for key in found:
    if key not in _KEYS:
      close = difflib.get_close_matches(key, _KEYS, cutoff=0.5)
      hint = f'; the closest are {", ".join(close)}' if close else ''
      raise _refused(
        path, f'has an unknown entry {key!r}{hint}; known: {", ".join(_KEYS)}'
      )
  memory_gb = found.get('memory_gb')
  if memory_gb is not None and (
    type(memory_gb) not in (int, float) or not memory_gb > 0
  ):
    raise _refused(path, f'memory_gb = {memory_gb} must be positive')
  return SweepFile(
    path=path,
    flags=(*_flagfile(path, found), *_arguments(path, found, 'flags')),
    arms=_arms(path, found, launchers),
    axes=_axes(path, found),
    seeds=_count(path, found, 'seeds', None, least=1),
    split=_names(path, found, 'split'),
    cores=_count(path, found, 'cores', 1, least=1) or 1,
    gpus=_count(path, found, 'gpus', 0, least=0) or 0,
    memory_gb=memory_gb,
    about={key: found[key] for key in ABOUT if key in found},
  )


def _refused(path: pathlib.Path, why: str) -> UsageError:
  return UsageError(f'--sweep={path} {why}')


def _flagfile(path: pathlib.Path, found: Mapping[str, Any]) -> list[str]:
  """The argument of the flag file, which may lie beside the sweep file."""
  name = found.get('flagfile')
  if name is None:
    return []
  if not isinstance(name, str):
    raise _refused(path, f'flagfile = {name} must be the name of a file')
  beside = path.parent / name
  return [f'--flagfile={beside if beside.is_file() else name}']


def _arguments(
  path: pathlib.Path, found: Mapping[str, Any], key: str
) -> list[str]:
  """Text of flags as a list of arguments."""
  text = found.get(key, '')
  try:
    if isinstance(text, str):
      return shlex.split(text)
  except ValueError:
    pass
  raise _refused(
    path, f'{key} = {text} must be text with flags, such as "--tau=0.1"'
  )


def _arms(
  path: pathlib.Path, found: Mapping[str, Any], launchers: tuple[str, ...]
) -> dict[str, Arm]:
  arms = found.get('arms', {'': ''})
  if not isinstance(arms, dict) or not arms:
    raise _refused(path, '[arms] must name texts of flags')
  result = {}
  for name, arm in arms.items():
    if '/' in name or name.startswith('.'):
      raise _refused(path, f'[arms] {name!r} must be the name of a folder')
    own = arm if isinstance(arm, dict) else {'flags': arm}
    if not own.keys() <= {'launcher', 'flags'}:
      raise _refused(
        path, f'[arms] {name} = {arm} may have the entries launcher and flags'
      )
    launcher = own.get('launcher', found.get('launcher', '(absent)'))
    if launcher not in launchers:
      place = f'[arms] {name}: ' if name else ''
      raise _refused(
        path,
        f'{place}launcher = {launcher} must be one of {", ".join(launchers)}',
      )
    flags = _arguments(path, {name: own.get('flags', '')}, name)
    result[name] = Arm(launcher, tuple(flags))
  return result


def _axes(
  path: pathlib.Path, found: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
  axes = found.get('axes', {})
  if not isinstance(axes, dict):
    raise _refused(path, '[axes] must have a list of values for each flag')
  result = {}
  for name, values in axes.items():
    if (
      not isinstance(values, list)
      or not values
      or any(isinstance(value, list | dict) for value in values)
    ):
      raise _refused(path, f'[axes] {name} = {values} must be a list of values')
    texts = tuple(map(as_text, values))
    if len(set(texts)) < len(texts):
      raise _refused(path, f'[axes] {name} = {values} holds a value twice')
    if any(',' in text for text in texts):
      raise _refused(
        path, f'[axes] {name} = {values} must be values without commas'
      )
    result[name] = texts
  return result


def _names(
  path: pathlib.Path, found: Mapping[str, Any], key: str
) -> tuple[str, ...]:
  names = found.get(key, [])
  allowed = (*found.get('axes', {}), 'seed')
  if not isinstance(names, list) or any(name not in allowed for name in names):
    raise _refused(
      path, f'{key} = {names} must be a list of {", ".join(allowed)}'
    )
  return tuple(names)


def _count(
  path: pathlib.Path,
  found: Mapping[str, Any],
  key: str,
  default: int | None,
  *,
  least: int,
) -> int | None:
  number = found.get(key, default)
  if number is not None and (type(number) is not int or number < least):
    raise _refused(
      path, f'{key} = {number} must be a whole number of at least {least}'
    )
  return number
