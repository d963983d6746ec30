"""The data set of a run: the options that name it, read or collected."""

import dataclasses
import math
import pathlib
from typing import Any

import jax
import numpy as np

from experiments.config.collecting import CollectOptions
from experiments.config.declaring import (
  INT64,
  POSITIVE,
  RunError,
  UsageError,
  both,
  choice,
  group,
  not_given,
  not_set,
  option,
  path_option,
  redeclared,
  refuse,
)
from experiments.engines import devices, folders, memory
from experiments.suites.jax_native import Task
from siamrl import rewards
from siamrl.envs import car_on_hill, tabular
from siamrl.envs.registry import PROCESSES, discrete
from siamrl.replay import dataset
from siamrl.replay.dataset import Dataset
from siamrl.report.run_folder import RunFolder
from siamrl.types import JaxEnvironment

CAR = 'car_on_hill'
MOST = 2**31  # what int32 counts

_COLLECT = {
  'episodes': 'episodes of random actions',
  'uniform': 'random actions in states drawn evenly, each on its own, for '
  + ', '.join([CAR, *PROCESSES]),
}
_DEFAULT_ENV_STEPS = 10_000
_MINARI = 'minari:'


@dataclasses.dataclass(frozen=True)
class DataOptions:
  """The options of the data, for a launcher's dataclass to inherit."""

  _data: Any = group('The data')
  environment: str = option(
    CAR,
    'Where the data are from, and where greedy episodes are played; in any '
    f'spelling: {", ".join(discrete())}.',
    common=True,
  )
  dataset: str | None = path_option(
    None,
    'File of a data set, .npz, or minari:NAME_OR_PATH; one is collected if '
    'not given',
    common=True,
  )
  collect: str | None = choice(
    None,
    'What is collected; episodes if not given:',
    _COLLECT,
    when=not_set('dataset'),
    refused=True,
  )
  collect_env_steps: int | None = option(
    None,
    f'Transitions to collect; {_DEFAULT_ENV_STEPS} if not given',
    POSITIVE,
    most=INT64,  # the memory ends sooner
    when=not_set('dataset'),
    refused=True,
  )
  num_envs: int = option(
    10,
    'Environments stepped at once for episodes; must divide '
    '--collect_env_steps.',
    POSITIVE,
    when=both(not_set('dataset'), not_given('collect', 'uniform')),
  )
  discount: float = redeclared(CollectOptions, 'discount')
  reward_scale: float = redeclared(CollectOptions, 'reward_scale')
  reward_clip: float = redeclared(CollectOptions, 'reward_clip')

  @property
  def env_steps(self) -> int:
    """Transitions to collect."""
    return self.collect_env_steps or _DEFAULT_ENV_STEPS


def load(config: DataOptions, environment: JaxEnvironment) -> Dataset:
  """The data set that the user names, as the environment would have made it.

  Raises:
    UsageError: it cannot be read, or does not fit the environment.
    RunError: a package that it needs is not installed.
  """
  source = config.dataset or ''
  try:
    if source.startswith(_MINARI):
      source = source.removeprefix(_MINARI)
      data = dataset.from_minari(source)
    else:
      data = dataset.load_dataset(source)
    return _fitting(data, config.environment, environment)
  except ImportError as error:
    raise RunError(f'--dataset={config.dataset}: {error}') from error
  except (OSError, ValueError) as error:
    text = ' '.join(str(error).split())
    for name in (source, pathlib.Path(source)):  # which has no ./ and no //
      text = text.removeprefix(f'{name}: ')
    if isinstance(error, OSError):
      text = f' cannot be read: {error.strerror or text}'
    else:
      text = f': {text}'
    raise UsageError(f'--dataset={config.dataset}{text}') from error


def _fitting(data: Dataset, name: str, environment: JaxEnvironment) -> Dataset:
  """The data set with observations in the environment's type.

  Raises:
    ValueError: it does not fit the environment; begins with the key.
  """
  shape, kind = environment.obs_shape, environment.obs_dtype
  if data.observations.shape[1:] != shape:
    raise ValueError(
      f'observations: must be [N{"".join(f", {n}" for n in shape)}] for '
      f'--environment={name}, got {list(data.observations.shape)}'
    )
  if data.actions.max() >= environment.num_actions:
    raise ValueError(
      f'actions: must lie in [0, {environment.num_actions - 1}] for '
      f'--environment={name}, got {data.actions.max()} at '
      f'{data.actions.argmax()}'
    )
  if data.size >= MOST:
    raise ValueError(f'it must have less than {MOST} steps, got {data.size}')
  for key in ('observations', 'next_observations'):
    array = getattr(data, key)
    cast = array.astype(kind)
    if (cast != array).any():
      raise ValueError(
        f'{key}: must fit into {kind} for --environment={name}, got '
        f'{array.dtype}'
      )
    data = data._replace(**{key: cast})
  return data


def check_collecting(config: DataOptions, task: Task) -> None:
  """Raises UsageError for a data set that cannot be collected."""
  if config.collect == 'uniform' and everywhere(task) is None:
    known = ', '.join([CAR, *PROCESSES])
    refuse(
      config,
      'collect',
      f'go with one of {known}, not --environment={task.name}',
    )
  if config.collect != 'uniform' and config.env_steps % config.num_envs:
    raise UsageError(
      f'--collect_env_steps={config.env_steps} must be a multiple of '
      f'--num_envs={config.num_envs}'
    )
  check_fits('collect_env_steps', config.env_steps, task)


def check_fits(name: str, transitions: int, task: Task) -> None:
  """Raises UsageError for an option by which the memory is too small."""
  environment = task.environment
  observation = (
    math.prod(environment.obs_shape) * environment.obs_dtype.itemsize
  )
  # As they come from the device or are drawn, as they are kept, and as they are
  # learnt from.
  needed = 3 * transitions * (2 * observation + 16)
  available = devices.memory_bytes()
  if needed > memory.SHARE * available or transitions >= MOST:
    raise UsageError(
      f'--{name}={transitions} must fit the memory: it takes '
      f'{memory.words(needed, available)}'
    )


def check_kept(config: DataOptions, run_dir: str, *, overwrite: bool) -> None:
  """Raises UsageError for a data set that --overwrite would remove."""
  kept = RunFolder(run_dir).dataset
  given = pathlib.Path(config.dataset or '')
  if overwrite and given.resolve() == kept.resolve():
    refuse(config, 'dataset', 'not be what --overwrite removes')


def collect(config: DataOptions, task: Task, key: jax.Array) -> Dataset:
  """Transitions by random actions, as the options say."""
  environment, num_envs = task.environment, config.num_envs
  if config.collect == 'uniform':
    drawn = everywhere(task)
    assert drawn is not None  # it has been checked
    environment, num_envs = drawn, config.env_steps
  return dataset.collect(
    environment, key, env_steps=config.env_steps, num_envs=num_envs
  )


def keep(
  path: pathlib.Path,
  config: DataOptions,
  task: Task,
  key: jax.Array,
  *,
  afresh: bool,
) -> Dataset:
  """The data set of a file; collects it first if there is none.

  Args:
    path: the file.
    config: the options.
    task: where to act.
    key: everything random follows from it.
    afresh: collect it also where there is one.

  Raises:
    RunError: someone has edited the file.
  """
  if afresh or not path.exists():
    dataset.save_dataset(path, collect(config, task, key), overwrite=True)
  with folders.edited_errors():
    return dataset.load_dataset(path, task.environment.num_actions)


def everywhere(task: Task) -> JaxEnvironment | None:
  """The environment with starts all over, each cut after a step, if it can."""
  if task.name == CAR:
    return car_on_hill.make_car_on_hill(
      low=car_on_hill.LOW, high=car_on_hill.HIGH, max_episode_steps=1
    )
  if task.process is None:
    return None
  alive = ~task.process.terminal
  return tabular.make_tabular(
    dataclasses.replace(task.process, initial=alive / alive.sum()),
    max_episode_steps=1,
  )


def learnt(config: DataOptions, raw: np.ndarray) -> np.ndarray:
  """Rewards as they are learnt from."""
  return rewards.learnt(raw, config.reward_scale, config.reward_clip or None)
