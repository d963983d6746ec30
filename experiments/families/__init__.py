"""Families of agents: options in, learners and their panels out."""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from siamrl.augment import Augmentation
from siamrl.envs.tabular import TabularMDP
from siamrl.types import JaxEnvironment


class Family(NamedTuple):
  """The functions that a sweep needs for runs of one kind.

  Attributes:
    check: configuration -> None; raises UsageError for options that do not go
      together.
    settings: (configuration, task) -> the numbers of a run that are traced.
    make_loop: (configuration, task) -> a `compiled.Loop`; raises ValueError for
      options that do not fit.
    iterations: configuration -> iterations of the run.
  """

  check: Callable[[Any], None]
  settings: Callable[[Any, Any], dict[str, Any]]
  make_loop: Callable[[Any, Any], Any]
  iterations: Callable[[Any], int]


@dataclasses.dataclass(frozen=True)
class Task:
  """The environment that the options describe, and its network.

  Attributes:
    name: the environment's name, for folders and titles.
    environment: the environment to act in.
    network: number of actions -> network; None where the family makes it.
    packed: whether boolean observations are stored as bits.
    process: the exact process, if it is known.
    observations: float32 [S, ...] of the states of the process; None if they
      are one-hot.
    eval_environment: to evaluate in, if it is another one.
    augment: the augmentation of observations that are learned from.
  """

  name: str
  environment: JaxEnvironment
  network: Callable[[int], Any] | None = None
  packed: bool = False
  process: TabularMDP | None = None
  observations: np.ndarray | None = None
  eval_environment: JaxEnvironment | None = None
  augment: Augmentation | None = None
