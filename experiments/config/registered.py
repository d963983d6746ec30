"""Options of what is registered when a launcher runs.

Rules of the twin and forms of targets are in registries, to which a user's file
adds. So a launcher's options are made once more as it runs: the names to choose
from, and a flag for each parameter that is not built in.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from experiments.config.declaring import Bound, one_of, option
from experiments.config.targets import TargetOptions, read_by_form
from experiments.config.twin import TwinOptions, read_by_rule
from siamrl import twins
from siamrl.losses import td
from siamrl.parameters import Parameter


def with_registered(cls: type) -> type:
  """A launcher's options with those of what is registered by now.

  Args:
    cls: a frozen dataclass of options.
  """
  fields: dict[str, tuple[Any, Any]] = {}
  if issubclass(cls, TwinOptions):
    summaries = {name: rule.summary for name, rule in twins.RULES.items()}
    fields |= _choice(cls, 'target_update', summaries)
    fields |= _parameters(cls, twins.PARAMETERS, read_by_rule)
  if issubclass(cls, TargetOptions):
    summaries = {name: form.summary for name, form in td.TARGETS.items()}
    fields |= _choice(cls, 'target_form', summaries)
    fields |= _parameters(cls, td.TARGET_PARAMETERS, read_by_form)
  if not fields:
    return cls
  made = dataclasses.make_dataclass(
    cls.__name__,
    [(name, kind, field) for name, (kind, field) in fields.items()],
    bases=(cls,),
    frozen=True,
  )
  made.__module__, made.__doc__ = cls.__module__, cls.__doc__
  return made


def _choice(
  cls: Any, name: str, summaries: Mapping[str, str]
) -> dict[str, tuple[Any, Any]]:
  """The option that chooses, where there is more to choose from than before."""
  field = cls.__dataclass_fields__[name]
  if set(summaries) == set(field.metadata['summaries']):
    return {}
  metadata = {
    **field.metadata,
    'bound': one_of(summaries),
    'summaries': dict(summaries),
  }
  return {
    name: (
      field.type,
      dataclasses.field(default=field.default, metadata=metadata),
    )
  }


def _parameters(
  cls: Any, registry: Mapping[str, Parameter], read_by: Any
) -> dict[str, tuple[Any, Any]]:
  """Options of the parameters that are not built in."""
  return {
    name: (
      about.kind | None,
      option(
        None,
        about.help,
        Bound(about.holds, about.text),
        traced=about.traced,
        when=read_by(name),
        refused=True,
      ),
    )
    for name, about in registry.items()
    if name not in cls.__dataclass_fields__
  }
