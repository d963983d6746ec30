"""Environments by their names, with errors that name the flag."""

import functools
from typing import NamedTuple

from experiments.config.declaring import option_errors
from siamrl.envs.contract import check_jax_environment
from siamrl.envs.registry import ENVIRONMENTS, PROCESSES, resolve_environment
from siamrl.envs.tabular import TabularMDP
from siamrl.types import JaxEnvironment


class Task(NamedTuple):
  """An environment and its exact process.

  Attributes:
    name: the name in the registry.
    environment: the environment to act in.
    process: the exact process; None if it is unknown.
  """

  name: str
  environment: JaxEnvironment
  process: TabularMDP | None


def resolve(name: str, *, continuous: bool, flag: str = 'environment') -> str:
  """The registry's name of an environment, in any spelling.

  Args:
    name: a name of the registry.
    continuous: whether its actions must be continuous.
    flag: the flag that names it, for errors.

  Raises:
    UsageError: there is none.
    RunError: a package that it needs is not installed.
  """
  with option_errors(flag, name):
    return resolve_environment(name, continuous=continuous)


@functools.cache
def make_task(
  name: str, *, continuous: bool = False, flag: str = 'environment'
) -> Task:
  """The environment of a name, in any spelling; the same object each time.

  Args:
    name: a name of the registry.
    continuous: whether its actions must be continuous.
    flag: the flag that names it, for errors.

  Raises:
    UsageError: there is none.
    RunError: a package that it needs is not installed, or its answers are not
      what it declares.
  """
  known = resolve(name, continuous=continuous, flag=flag)
  with option_errors(flag, name):
    environment = ENVIRONMENTS[known]()
    check_jax_environment(known, environment)
  process = PROCESSES[known]() if known in PROCESSES else None
  return Task(known, environment, process)
