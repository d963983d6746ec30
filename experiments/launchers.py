"""The launchers, by the names under which tools start them."""

import importlib
from typing import Any

from experiments.config.reading import Sweep
from experiments.suites import gym

# Launcher -> the name of its record of options.
_OPTIONS = {
  'atari': 'AtariConfig',
  'classic': 'ClassicConfig',
  'control': 'ControlConfig',
  'gym': 'GymConfig',
  'lab': 'LabConfig',
  'minatar': 'MinAtarConfig',
  'offline': 'OfflineConfig',
  'siamese': 'SiameseConfig',
}
NAMES = tuple(_OPTIONS)


def options_of(launcher: str) -> type:
  """The record of a launcher's options.

  Args:
    launcher: one of `NAMES`.
  """
  module = importlib.import_module(f'experiments.{launcher}')
  return getattr(module, _OPTIONS[launcher])


def compiles(launcher: str, config: Any) -> bool:
  """Whether a process computes many runs at once.

  Args:
    launcher: one of `NAMES`.
    config: a record of its options.
  """
  if launcher == 'control':
    return not gym.is_on_host(config.environment)
  return launcher in ('classic', 'lab', 'minatar', 'siamese')


def check(launcher: str, sweep: Sweep) -> None:
  """Refuses what a launcher refuses before it computes, as far as it is quick.

  Nothing is computed, so that no device is taken.

  Args:
    launcher: one of `NAMES`.
    sweep: the runs of its command line.

  Raises:
    UsageError: options or names that the launcher does not accept.
    RunError: a package that it needs is not installed.
  """
  importlib.import_module(f'experiments.{launcher}').check_sweep(sweep)
