"""Folders, checkpoints, metrics, statistics and figures of runs.

`siamrl.report.load` is `siamrl.report.loading.load`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from siamrl.report.loading import load as load

__all__ = ['load']


def __getattr__(name: str) -> Any:
  """Imports `load` when it is used: launchers start without it."""
  if name != 'load':
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from siamrl.report import loading

  return loading.load
