"""Gymnasium's environments, stepped on the host."""

import dataclasses
from collections.abc import Callable, Iterator
import contextlib
import copy
import functools
from typing import Any

import numpy as np

from experiments.config.declaring import (
  RunError,
  UsageError,
  option_errors,
  refuse,
)
from experiments.config.learning import make_mlp
from experiments.config.reading import Sweep
from siamrl.augment import Augmentation
from siamrl.envs import ale, gym, registry
from siamrl.envs.errors import BrokenEnvironmentError
from siamrl.envs.gym import GymnasiumEnvironments
from siamrl.networks.q_network import QNetwork
from siamrl.runners import evaluation

# Most environments that an evaluation steps at once.
_EVAL_ENVS = 10

# Measured least memory of a robot's environment.
_ENVIRONMENT_NBYTES = 700_000


class Suite:
  """An environment of Gymnasium; see `host_runs.Suite`."""

  unit, x = 'env step', 'env_steps'
  frames_per_env_step = 1
  environment_nbytes = _ENVIRONMENT_NBYTES
  augment: Augmentation | None = None

  def __init__(self, config: Any):
    """Looks at one environment.

    Args:
      config: the options, with Gymnasium's id as `environment`.

    Raises:
      UsageError: there is no such environment, or its spaces are of a kind that
        cannot be learned from.
      RunError: a package that it needs is not installed, or it breaks its
        contract.
    """
    self._config = config
    self.name: str = config.environment
    self.loop_options = {'reward_scale': config.reward_scale}
    self.derived = {'mujoco': gym.mujoco_version()}
    with contextlib.closing(self._environments(0, 1)) as spaces:
      self.spaces = spaces
    # Making one may have imported the package that registers it.
    self.episode_limit = gym.episode_limit(config.environment)

  def of(self, config: Any) -> 'Suite':
    """The same environment with other options."""
    other = copy.copy(self)
    other._config = config
    return other

  @property
  def eval_envs(self) -> int:
    """The number of environments that an evaluation steps at once."""
    return min(self._config.eval_episodes, _EVAL_ENVS)

  @property
  def eval_quota(self) -> dict[str, int]:
    """The length of an evaluation; empty for no evaluation."""
    episodes = self._config.eval_episodes
    return {'episodes': episodes} if episodes else {}

  def _environments(
    self,
    seed: int,
    num_envs: int,
    max_episode_steps: int | None = None,
    see: Callable[[Any], None] | None = None,
  ) -> GymnasiumEnvironments:
    """Environments, with errors that name the flag."""
    name = self._config.environment
    with option_errors('environment', name):
      return GymnasiumEnvironments(
        name, num_envs, seed=seed, max_episode_steps=max_episode_steps, see=see
      )

  def make(self, seed: int) -> GymnasiumEnvironments:
    """Environments to collect with."""
    return self._environments(seed, self._config.num_envs)

  def make_eval(self, seed: int) -> GymnasiumEnvironments:
    """Environments to evaluate in; episodes without a limit are cut."""
    cap = self._config.eval_episode_env_steps
    return self._environments(seed, self.eval_envs, cap)

  def make_seen(
    self, seed: int, see: Callable[[Any], None] | None
  ) -> GymnasiumEnvironments:
    """One environment as in evaluations, whose pictures are shown to `see`."""
    return self._environments(seed, 1, self._config.eval_episode_env_steps, see)

  def columns(self, result: evaluation.Evaluation) -> dict[str, float]:
    """The columns of metrics.csv for an evaluation."""
    row: dict[str, float] = {
      'eval_episodes': len(result.returns),
      'eval_return': float(np.mean(result.returns)),
      'eval_episode_env_steps': float(np.mean(result.lengths)),
    }
    if self.episode_limit is None:
      cap = self._config.eval_episode_env_steps
      row['eval_episodes_cut'] = sum(n == cap for n in result.lengths)
    return row

  def film(self, seed: int) -> None:
    """Nothing is recorded."""
    del seed

  def network(self, config: Any) -> QNetwork:
    """The network of action values that the options describe."""
    return make_mlp(config, self.spaces.num_actions, self.spaces.bounds)

  def notes(self) -> Iterator[str]:
    """Yields notes on the environment for the user, a line each.

    Raises:
      RunError: the environment breaks its contract.
    """
    config, limit = self._config, self.episode_limit
    if limit is None and config.eval_episodes:
      yield (
        f'{self.name} sets no limit to its episodes: evaluations cut them '
        f'after --eval_episode_env_steps={config.eval_episode_env_steps}'
      )
    steps = config.iteration_env_steps // config.num_envs
    if limit is not None and steps < limit:
      yield (
        f'iterations begin with fresh episodes, and are of {steps:,} env '
        f'steps in each environment; {self.name} may take {limit:,} an '
        'episode, whose rest would never be seen: --iteration_env_steps='
        f'{limit * config.num_envs} or more shows it'
      )
    shape = self.spaces.obs_shape
    done = ['flattened'] if len(shape) > 1 else []
    if self.spaces.bounds is not None:
      done.append('scaled from [0, 255] to [-1, 1]')
    if done:
      yield (
        f'the networks see the observations of {self.name}, of shape '
        f'{list(shape)}, {" and ".join(done)}'
      )
    if not np.array_equal(self._start(), self._start()):
      yield (
        f'{self.name} ignores its seed: the same seed gave two different first '
        'observations. No run of it can be repeated, and one that is stopped '
        'inside an iteration resumes with --fresh_environments only'
      )

  def _start(self) -> np.ndarray:
    """The first observation with seed 0."""
    with contextlib.closing(self._environments(0, 1)) as environments:
      try:
        return environments.reset()
      except BrokenEnvironmentError as error:
        raise RunError(f'the environment failed: {error}') from error


def make_suite(config: Any, *, discrete: bool) -> Suite:
  """Makes the environments that the options name.

  Args:
    config: the options.
    discrete: whether actions must be discrete rather than continuous.

  Raises:
    UsageError: actions are of the other kind, or as `Suite` has it.
  """
  suite = Suite(config)
  _check(config, suite.spaces.num_actions, discrete=discrete)
  return suite


def check(sweep: Sweep, *, discrete: bool) -> None:
  """Raises UsageError or RunError where `make_suite` would.

  Each environment is looked at once, however many sweeps are checked.

  Args:
    sweep: a sweep as `resolved` returns it.
    discrete: whether actions must be discrete rather than continuous.
  """
  for config in sweep.configs:
    _check(config, _num_actions(config.environment), discrete=discrete)


@functools.cache
def _num_actions(name: str) -> int:
  """The number of an environment's actions; 0 for continuous ones."""
  with option_errors('environment', name):
    environments = GymnasiumEnvironments(name, 1, seed=0)
  with contextlib.closing(environments):
    return environments.num_actions


def _check(config: Any, num_actions: int, *, discrete: bool) -> None:
  if bool(num_actions) != discrete:
    kind, other, launcher = 'discrete', 'continuous', 'control'
    if not discrete:
      kind, other, launcher = 'continuous', 'discrete', 'gym'
    refuse(
      config,
      'environment',
      f'have {kind} actions; those with {other} actions are for python -m '
      f'experiments.{launcher}',
    )
  limit = gym.episode_limit(config.environment)
  default = type(config).eval_episode_env_steps
  if limit is not None and config.eval_episode_env_steps != default:
    refuse(
      config,
      'eval_episode_env_steps',
      f'not be given with --environment={config.environment}, which is stepped '
      f'on the host and cuts its episodes itself, after {limit:,} env steps',
    )


def resolved(sweep: Sweep) -> Sweep:
  """A sweep in which environments have Gymnasium's ids.

  Raises:
    UsageError: there is no such environment.
  """
  configs = [
    dataclasses.replace(config, environment=resolve(config.environment))
    for config in sweep.configs
  ]
  return sweep._replace(configs=tuple(configs))


def resolve(name: str) -> str:
  """Gymnasium's id of an environment, in any spelling.

  Raises:
    UsageError: there is no such environment.
  """
  with option_errors('environment', name):
    return gym.resolve_gymnasium(name)


def is_on_host(name: str) -> bool:
  """Whether an environment is one of Gymnasium rather than JAX-native.

  Raises:
    UsageError: there is no such environment.
  """
  try:
    registry.resolve_environment(name)
    return False
  except ValueError as error:
    if _is_game(name):  # of which Gymnasium may know, too
      raise UsageError(f'--environment={name}: {error}') from error
  try:
    gym.resolve_gymnasium(name)
    return True
  except ValueError as error:
    raise UsageError(
      f'--environment={name}: {error}; JAX-native ones are '
      f'{", ".join(sorted(registry.CONTINUOUS))}'
    ) from error


def _is_game(name: str) -> bool:
  """Whether it is an Atari game."""
  try:
    ale.resolve_game(name)
    return True
  except (ImportError, ValueError):
    return False
