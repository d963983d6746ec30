"""Families of agents: options in, learners and their panels out."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Family(NamedTuple):
  """What runs of one kind need of a sweep.

  Attributes:
    check: configuration -> None; raises UsageError for options that do not go
      together.
    settings: (configuration, task) -> the numbers of a run that are traced.
    make_loop: (configuration, task) -> what each run does, for `compiled`;
      raises ValueError for options that do not fit.
    iterations: configuration -> iterations of the run.
  """

  check: Callable[[Any], None]
  settings: Callable[[Any, Any], dict[str, Any]]
  make_loop: Callable[[Any, Any], Any]
  iterations: Callable[[Any], int]
