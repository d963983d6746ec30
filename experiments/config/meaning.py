"""Checks of options that mean nothing to a run, see `declaring.option`."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import sys
from typing import Any

from experiments.config.declaring import (
  UsageError,
  When,
  as_text,
  refuse,
  usage_errors,
)

_NEVER = When(lambda config: False, '')


@functools.cache
def _conditions(cls: Any) -> Mapping[str, tuple[When, ...]]:
  """The conditions under which options mean something, if they have any."""
  found = {}
  for field in dataclasses.fields(cls):
    about = field.metadata
    conditions = [
      about.get('when'),
      about.get('refused'),
      about.get('never') and _NEVER,
    ]
    kept = tuple(each for each in conditions if isinstance(each, When))
    if kept:
      found[field.name] = kept
  return found


def dropped(config: Any) -> list[str]:
  """The options that mean nothing to a run.

  Args:
    config: a record of options.

  Raises:
    UsageError: an option that others depend on cannot be read.
  """
  cls: Any = type(config)
  with usage_errors():
    return [
      name
      for name, conditions in _conditions(cls).items()
      if not all(each.holds(config) for each in conditions)
    ]


def traced(cls: type) -> tuple[str, ...]:
  """The options that may differ between runs of one compiled program."""
  return tuple(
    field.name
    for field in dataclasses.fields(cls)
    if field.metadata.get('traced')
  )


def check_meant(configs: Sequence[Any]) -> None:
  """Raises UsageError for an option that was given and must be left out.

  Args:
    configs: the records of a sweep or of one run. A record has the default of
      an option that means nothing to its run only.
  """
  for config in configs:
    for field in dataclasses.fields(config):
      about = field.metadata
      if 'help' not in about or getattr(config, field.name) == field.default:
        continue
      if about['never']:
        refuse(
          config, field.name, f'be {as_text(field.default)}: {about["never"]}'
        )
      refused = about['refused']
      condition = about['when'] if refused is True else refused
      if condition:
        _check_condition(configs, config, field.name, condition)


def _check_condition(
  configs: Sequence[Any], config: Any, name: str, condition: When
) -> None:
  """Raises UsageError for an option that needs another one.

  Args:
    configs: the records of all runs.
    config: the record of one run.
    name: the name of the option.
    condition: must be met by it.
  """
  with usage_errors():
    unmet = [
      part for part in condition.parts or [condition] if not part.holds(config)
    ]
  if not unmet:
    return
  words, chooser = unmet[0].words, unmet[0].chooser
  must = f'go {words}'
  if words.startswith('without'):
    must = f'not be given {words.replace("without", "with", 1)}'
  chosen = dict.fromkeys(getattr(each, chooser) for each in configs if chooser)
  if chosen.keys() - {None}:
    must += f', not {", ".join(map(as_text, chosen))}'
  if len(chosen) > 1 and hasattr(config, 'also'):
    flag = f'--{name}={as_text(getattr(config, name))}'
    must += (
      f'; --also="--{chooser}=... {flag}" adds runs of one that it goes with'
    )
  refuse(config, name, must)


def check_lists(sweep: Any) -> None:
  """Raises UsageError for a list of values that mean nothing to any run."""
  for name in _dropped_everywhere(sweep.configs):
    if name in sweep.axes:
      values = ','.join(map(as_text, sweep.axes[name]))
      raise UsageError(
        f'--{name}={values} must be one value: it means nothing to these runs'
      )


def say_notes(configs: Sequence[Any]) -> None:
  """Prints notes on runs that are about to start, each once.

  They are on options that change nothing, and on those that the record's own
  `notes` doubt.
  """
  _say_idle(configs)
  texts = [text for c in configs for text in getattr(c, 'notes', list)()]
  for text in dict.fromkeys(texts):
    print(f'note: {text}', file=sys.stderr)


def _say_idle(configs: Sequence[Any]) -> None:
  """Says which options were given values that change nothing in any run.

  They are no errors: a later flag may have replaced what a flag file set them
  for.
  """
  defaults = type(configs[0]).__dataclass_fields__
  given = [
    f'--{name}={as_text(getattr(configs[0], name))}'
    for name in _dropped_everywhere(configs)
    if getattr(configs[0], name) != defaults[name].default
  ]
  if given:
    verb = 'change' if len(given) > 1 else 'changes'
    print(f'note: {", ".join(given)} {verb} nothing here', file=sys.stderr)


def _dropped_everywhere(configs: Sequence[Any]) -> list[str]:
  """The options that mean nothing to any run."""
  idle = [dropped(config) for config in configs]
  return [name for name in idle[0] if all(name in names for names in idle)]
