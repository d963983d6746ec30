"""Data sets, read or collected, and the environments that they are from."""

from collections.abc import Callable
import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
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
  sizes,
)
from experiments.config.learning import (
  DEFAULT_NETWORK,
  NetworkOptions,
  make_mlp,
  of_agent,
)
from experiments.config.panel import PanelOptions
from experiments.suites.jax_native import Task
from siamrl import diagnostics, rewards
from siamrl.envs import car_on_hill, tabular
from siamrl.envs.registry import PROCESSES, discrete
from siamrl.learner import Learner
from siamrl.networks.activations import activations
from siamrl.networks.q_network import QNetwork
from siamrl.replay import dataset
from siamrl.replay.dataset import Dataset
from siamrl.report.run_folder import RunFolder
from siamrl.runners import evaluation
from siamrl.types import JaxEnvironment, Params

CAR = 'car_on_hill'
MOST = 2**31  # what int32 counts

_COLLECT = {
  'episodes': 'episodes of random actions',
  'uniform': 'single random actions in states drawn evenly, for '
  + ', '.join([CAR, *PROCESSES]),
}
_DEFAULT_ENV_STEPS = 10_000
_MINARI = 'minari:'


@dataclasses.dataclass(frozen=True)
class DataOptions(NetworkOptions):
  """The options of the data, the network and evaluations."""

  _data: Any = group('The data')
  environment: str = option(
    CAR,
    'Environment that the data are from and that greedy episodes are played '
    f'in, in any spelling: {", ".join(discrete())}.',
    common=True,
  )
  dataset: str | None = path_option(
    None,
    'Data set, an .npz file or minari:NAME_OR_PATH; one is collected if not '
    'given',
    common=True,
  )
  collect: str | None = choice(
    None,
    'How transitions are collected; episodes if not given.',
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
    'Environments stepped at once to collect episodes; must divide '
    '--collect_env_steps.',
    POSITIVE,
    when=both(not_set('dataset'), not_given('collect', 'uniform')),
  )
  discount: float = redeclared(CollectOptions, 'discount')
  n_step: int = redeclared(
    CollectOptions,
    'n_step',
    help='Rewards before bootstrapping, of one episode; at the length of all '
    'episodes or more, targets are Monte-Carlo returns.',
    when=not_given('collect', 'uniform'),
    refused=True,
  )
  reward_scale: float = redeclared(CollectOptions, 'reward_scale')
  reward_clip: float = redeclared(CollectOptions, 'reward_clip')

  _layers: Any = group('The layers of the network')
  hidden_sizes: str = option(
    '64-64',
    'Units of the hidden layers; with none, and one-hot states, the network '
    'is a table',
    sizes('64-64', none=True),
    when=DEFAULT_NETWORK,
  )
  rescale_observations: bool = option(
    False,
    'Rescale observations to [-1, 1] by their range in the data set.',
    when=DEFAULT_NETWORK,
  )

  _evaluation: Any = group('Evaluation, after each iteration')
  eval_episodes: int = redeclared(
    CollectOptions,
    'eval_episodes',
    10,
    help='Greedy episodes per evaluation; 0 for no evaluation, not even from '
    f'the grid of {CAR}.',
  )
  eval_episode_env_steps: int = redeclared(
    CollectOptions, 'eval_episode_env_steps'
  )

  _panel: Any = group('Features')
  panel_period: int = redeclared(
    PanelOptions,
    'panel_period',
    help='Iterations from one measurement of features to the next; 0 for none. '
    'Ranks and the fractions of dormant units become the columns panel/... of '
    'metrics.csv.',
  )
  probe_size: int = redeclared(
    PanelOptions,
    'probe_size',
    help='Observations that features are measured on, at even distances in the '
    'data set. Ranks are at most this large.',
  )

  @property
  def env_steps(self) -> int:
    """Transitions to collect."""
    return self.collect_env_steps or _DEFAULT_ENV_STEPS


def check_readable(config: DataOptions) -> None:
  """Raises UsageError for the file of a data set that cannot be opened."""
  if config.dataset is None or config.dataset.startswith(_MINARI):
    return
  try:
    open(config.dataset, 'rb').close()
  except OSError as error:
    raise UsageError(
      f'--dataset={config.dataset} cannot be read: {error.strerror}'
    ) from error


def load(config: DataOptions, environment: JaxEnvironment) -> Dataset:
  """Reads the data set that the user names, with the environment's types.

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
    ValueError: it does not fit the environment; the message names the key.
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


def check_probe(config: DataOptions, transitions: int) -> None:
  """Raises UsageError for a probe that is larger than the data set."""
  if config.panel_period and config.probe_size > transitions:
    refuse(
      config,
      'probe_size',
      f'be at most {transitions}, the transitions of the data set',
    )


def nbytes(task: Task, transitions: int) -> int:
  """The most bytes that all copies of transitions take together."""
  environment = task.environment
  observation = (
    math.prod(environment.obs_shape) * environment.obs_dtype.itemsize
  )
  # Three copies: as collected or drawn, as kept, and as learned from.
  return 3 * transitions * (2 * observation + 16)


def check_kept(config: DataOptions, run_dir: str, *, overwrite: bool) -> None:
  """Raises UsageError for a data set that --overwrite would remove."""
  kept = RunFolder(run_dir).dataset
  given = pathlib.Path(config.dataset or '')
  if overwrite and given.resolve() == kept.resolve():
    refuse(config, 'dataset', 'not be what --overwrite removes')


def collect(config: DataOptions, task: Task, key: jax.Array) -> Dataset:
  """Collects transitions by random actions, as the options say."""
  environment, num_envs = task.environment, config.num_envs
  if config.collect == 'uniform':
    drawn = everywhere(task)
    assert drawn is not None  # it has been checked
    environment, num_envs = drawn, config.env_steps
  return dataset.collect(
    environment, key, env_steps=config.env_steps, num_envs=num_envs
  )


def everywhere(task: Task) -> JaxEnvironment | None:
  """The environment with random states, one step each; None if unsupported."""
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


def learned(config: DataOptions, raw: np.ndarray) -> np.ndarray:
  """Scaled and clipped rewards."""
  return rewards.learned(raw, config.reward_scale, config.reward_clip or None)


def make_network(
  config: DataOptions, task: Task, data: Dataset | None
) -> QNetwork:
  """The network of the options; without data, only for its shapes."""
  bounds = None
  if config.rescale_observations and data is not None:
    bounds = _bounds(data)
  return make_mlp(config, task.environment.num_actions, bounds)


def _bounds(data: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """The range of each number in the observations."""
  flat = data.observations.reshape(data.size, -1).astype(np.float32)
  low, high = flat.min(0), flat.max(0)
  # Constant numbers become -1.
  high = np.where(high > low, high, low + 1)
  return tuple(low.tolist()), tuple(high.tolist())


# (online parameters, key, iterations done) -> columns of a row.
Measure = Callable[[Params, jax.Array, int], dict[str, float]]


def make_measure(
  config: DataOptions, task: Task, learner: Learner, data: Dataset
) -> Measure:
  """The measures of each iteration, as compiled programs."""
  agent = learner.agent
  look = _make_look(config, task, learner, data)
  best_return = {}
  if config.eval_episodes and task.name == CAR:
    best_return['grid_optimum'] = _grid_optimum(config.discount)
  starts = car_on_hill.start_states()
  exact = None
  if task.process is not None and config.discount < 1:
    process = dataclasses.replace(
      task.process, rewards=learned(config, task.process.rewards)
    )
    exact = tabular.optimal_probe(process, config.discount)

  @jax.jit
  def compiled(params: Params, key: jax.Array) -> dict[str, jax.Array]:
    def act(obs: jax.Array) -> jax.Array:
      return jnp.argmax(agent.values(params, obs), -1).astype(jnp.int32)

    row: dict[str, jax.Array] = {}
    if config.eval_episodes:
      row, _ = evaluation.play(
        task.environment,
        lambda obs, _: act(obs),
        key,
        episodes=config.eval_episodes,
        most=config.eval_episode_env_steps,
      )
      if task.name == CAR:
        returns = car_on_hill.returns(act, starts, discount=config.discount)
        row['grid_return'] = jnp.mean(returns)
    if exact is not None:
      obs, best = exact
      values = agent.values(params, obs)
      row['exact_bias'], row['exact_error'] = diagnostics.bias_exact(
        values, best
      )
    return row

  def measure(
    params: Params, key: jax.Array, iteration: int
  ) -> dict[str, float]:
    row = {name: value.item() for name, value in compiled(params, key).items()}
    if config.panel_period:
      if iteration % config.panel_period == 0:
        row |= {name: value.item() for name, value in look(params).items()}
      else:
        row |= dict.fromkeys(jax.eval_shape(look, params), math.nan)
    return row | best_return

  return measure


def _make_look(
  config: DataOptions, task: Task, learner: Learner, data: Dataset
) -> Callable[[Params], dict[str, jax.Array]]:
  """Measures of features on a probe of the data, as one compiled program."""
  network = of_agent(config, make_network(config, task, data))
  places = np.arange(config.probe_size) * data.size // config.probe_size
  probe = jnp.asarray(data.observations[places])
  # Of several networks, the one that values come from.
  answer = learner.clocked.twin.lift(
    learner.base._replace(
      values=lambda params, obs: activations(network, params, obs)
    )
  ).values

  @jax.jit
  def look(params: Params) -> dict[str, jax.Array]:
    metrics, _ = diagnostics.feature_metrics(answer(params, probe))
    return {f'panel/{name}': value for name, value in metrics.items()}

  return look


def _grid_optimum(discount: float) -> float:
  """The best mean return from the papers' starts."""
  best = car_on_hill.optimal_returns(
    car_on_hill.start_states(),
    discount=discount,
    # At a discount of 0 only one step counts.
    horizon=car_on_hill.HORIZON if discount else 1,
  )
  return float(best.mean())
