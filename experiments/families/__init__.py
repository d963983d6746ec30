"""Families of agents: options in, learners and their panels out."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments.config import twin as twin_options


class Family(NamedTuple):
  """What runs of one kind need of a sweep.

  Attributes:
    traced: options that may differ between runs of one program: they enter as
      arrays.
    drop: configuration -> options that mean nothing to it; a sweep does not
      cross them with it.
    check: configuration -> None; raises UsageError for options that do not go
      together.
    settings: (configuration, task) -> the numbers of a run that are traced.
    make_loop: (configuration, task) -> what each run does, for `compiled`;
      raises ValueError for options that do not fit.
    iterations: configuration -> iterations of the run.
    choosers: an option that chooses, and the options that only some of its
      values read.
  """

  traced: tuple[str, ...]
  drop: Callable[[Any], list[str]]
  check: Callable[[Any], None]
  settings: Callable[[Any, Any], dict[str, Any]]
  make_loop: Callable[[Any, Any], Any]
  iterations: Callable[[Any], int]
  choosers: Mapping[str, tuple[str, ...]] = {
    'target_update': twin_options.OF_RULES
  }
