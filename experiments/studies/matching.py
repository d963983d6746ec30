"""Whether rows are of a study, by the flags and settings that they record."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments import launchers
from experiments.config import users
from experiments.config.declaring import as_text, complete, options_of
from experiments.config.reading import renamed, sweep_from_arguments
from experiments.config.sweep_files import SweepFile
from siamrl.report.lines import TASKS
from siamrl.report.loading import OF_FOLDERS
from siamrl.report.metrics import RUN_COLUMN, Table, is_number
from siamrl.report.sweep import CLOCKS

ARM_COLUMN = 'arm'
# They change how runs are computed, and not what.
_HOW = {*OF_FOLDERS, 'vectorized'}
_MOST_VALUES = 3
# Share of a run after which its last row comes.
_WHOLE = 0.9


class Difference(NamedTuple):
  """A value that rows have and no run of the study.

  Attributes:
    name: the option, or the column of arms.
    seen: the values of the rows; of the length of a run, their last clock.
    asked: those of the study; empty if the option means nothing to it.
  """

  name: str
  seen: tuple[str, ...]
  asked: tuple[str, ...]

  def __str__(self) -> str:
    """Says what the rows have, and what the study has."""
    if not self.asked:
      return f'--{self.name}={_listed(self.seen)}, and the study has none'
    name = self.name if self.name == ARM_COLUMN else f'--{self.name}'
    return (
      f'{name}={_listed(self.seen)}, and the study has {_listed(self.asked)}'
    )


def differences(
  file: SweepFile,
  table: Table,
  flags: Mapping[str, str],
  *,
  arms_are_tasks: bool,
) -> list[Difference]:
  """The values that rows record, and no run of a study has.

  What rows do not record is not compared, nor are paths, seeds, and how runs
  are computed.

  Args:
    file: the sweep of the study.
    table: [R] arrays by column: settings, the seed, the clock and measures.
    flags: the known flags of the rows.
    arms_are_tasks: whether the arms of the study are tasks.

  Raises:
    UsageError: the study lacks a file of a user.
    RunError: a package that its runs need is not installed.
  """
  asked, known = _asked(file, flags)
  names = list(table)
  columns = names[: names.index(RUN_COLUMN)] if RUN_COLUMN in names else []
  for name in columns:
    known[name] = [as_text(v) for v in dict.fromkeys(table[name].tolist())]
  if ARM_COLUMN in known or arms_are_tasks:
    asked |= _of_arms(file, arms_are_tasks and 'environment' in columns)
  found = []
  for name, values in known.items():
    if name not in asked:
      continue
    own = {_key(text) for text in asked[name]}
    other = [v for v in values if v not in ('', 'nan') and _key(v) not in own]
    if other:
      found.append(Difference(name, tuple(other), asked[name]))
  for name in (n for n in CLOCKS if n in table and n not in known):
    ends = [float(text) for text in asked.get(name, ()) if is_number(text)]
    last = float(np.max(table[name], initial=0.0))
    if ends and last < _WHOLE * min(ends):
      found.append(Difference(name, (f'{last:.10g}',), asked[name]))
  return found


def says_its_task(table: Table, flags: Mapping[str, str]) -> bool:
  """Whether rows record their task, such as a game."""
  return any(name in flags or name in table for name in TASKS)


def _asked(
  file: SweepFile, flags: Mapping[str, str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, list[str]]]:
  """The values of all runs of a study by option, and those of some flags.

  Both have the present names of options and values.
  """
  asked: dict[str, dict[str, None]] = {}
  known: dict[str, list[str]] = {}
  lists = [f'--{name}={",".join(file.axes[name])}' for name in file.axes]
  for launcher, extra in file.arms.values():
    users.load([*file.flags, *extra])
    cls = complete(launchers.options_of(launcher))
    configs = sweep_from_arguments(cls, *file.flags, *extra, *lists).configs
    new = renamed(cls, flags)
    for field, _ in options_of(cls):
      name = field.name
      if name in _HOW or 'path' in field.metadata:
        continue
      values = dict.fromkeys(getattr(config, name) for config in configs)
      texts = [as_text(value) for value in values if value is not None]
      asked.setdefault(name, {}).update(dict.fromkeys(texts))
      if name in new:
        single = field.metadata['single']
        known[name] = [new[name]] if single else new[name].split(',')
  return {name: tuple(values) for name, values in asked.items()}, known


def _of_arms(file: SweepFile, are_tasks: bool) -> dict[str, tuple[str, ...]]:
  """The values of the columns that name arms."""
  if not are_tasks:
    return {ARM_COLUMN: tuple(file.arms)}
  split = [name.partition(':') for name in file.arms]
  return {
    'environment': tuple(dict.fromkeys(task for task, _, _ in split)),
    ARM_COLUMN: tuple(dict.fromkeys(arm for _, _, arm in split if arm)),
  }


def _key(text: str) -> float | str:
  """A value to compare; switches are numbers in some tables."""
  text = {'false': '0', 'true': '1'}.get(text, text)
  return float(text) if is_number(text) else text


def _listed(values: Sequence[str]) -> str:
  """The first values, separated by commas."""
  more = ', ...' if len(values) > _MOST_VALUES else ''
  return ', '.join(values[:_MOST_VALUES]) + more
