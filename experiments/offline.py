"""Learning from a stored data set: fitted Q-iteration, and any other schedule.

Car-on-Hill from 50,000 transitions, and a data set of one's own:

  python -m experiments.offline \\
      --flagfile=experiments/flagfiles/fqi_car_on_hill.flags
  python -m experiments.offline --environment=cartpole --dataset=data.npz

Nothing is acted but evaluations. A fit is --target_period gradient steps toward
targets of a twin that stands still; then the twin moves, and the next fit
begins. With the rules that move it at every gradient step the same data are
learnt from as DQN learns. A data set is a .npz file whose keys are
siamrl.replay.dataset's, minari:NAME_OR_PATH, or is collected by random actions
and kept in the run's folder as dataset.npz.

A run keeps everything in its folder, --run_dir: its flags, metrics.csv with a
row an iteration, a curve, TensorBoard events, checkpoints. Ctrl-C or SIGTERM
stops it at the end of an iteration and saves, and the same command, without
--overwrite, resumes it as if it had never stopped; after a crash, from its last
checkpoint. Beside the loss, metrics.csv has what greedy episodes returned; for
car_on_hill the mean discounted return from the papers' 289 starts, grid_return,
and the best possible one, grid_optimum; and for small processes that are solved
exactly the largest error of a value, exact_error, and by how much the best
action's is overestimated on average, exact_bias.

Exit codes: 0 for a run that finished or was stopped, 2 for flags that cannot
be, 1 for anything else in the way, 130 for a second Ctrl-C.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import math
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from experiments import offline_data
from experiments.config import (
  executing,
  targets as target_options,
  twin as twin_options,
)
from experiments.config.declaring import (
  INT64,
  NOT_NEGATIVE,
  POSITIVE,
  When,
  choice,
  group,
  is_set,
  option,
  redeclared,
  refuse,
  sizes,
  usage_errors,
)
from experiments.config.learning import LearningOptions, NetworkOptions
from experiments.config.meaning import check_meant, say_idle
from experiments.config.runs import RunOptions
from experiments.config.targets import TargetOptions
from experiments.config.twin import HAS_PERIOD, TwinOptions
from experiments.engines import (
  devices,
  folders,
  memory,
  offline as offline_engine,
  running,
)
from experiments.suites.jax_native import Task, make_task
from siamrl import diagnostics, learner
from siamrl.envs import car_on_hill, tabular
from siamrl.learner import Learner, TwinSpec
from siamrl.networks.q_network import mlp_network
from siamrl.replay.dataset import Dataset
from siamrl.report.curves import Curve, plot_curve
from siamrl.report.metrics import read_metrics
from siamrl.report.run_folder import RunFolder
from siamrl.runners import evaluation, host, offline
from siamrl.types import Agent, Params, Schedule, TrainState

_DEFAULT_ITERATIONS = 40
# Periods are in gradient steps.
_SPEEDS = twin_options.Speeds('gradient_steps', 1, 1)
_ANNEAL = {
  'none': 'nowhere',
  'run': 'over the whole run',
  'fit': 'over each fit, with which the optimiser must start anew: '
  '--reset_optimizer',
}


@dataclasses.dataclass(frozen=True)
class OfflineConfig(
  LearningOptions,
  NetworkOptions,
  offline_data.DataOptions,
  TargetOptions,
  TwinOptions,
  RunOptions,
):
  """The options; their defaults follow no paper."""

  # Also the length of an iteration, whatever the rule.
  target_period: int = redeclared(
    TwinOptions, 'target_period', 1_000, when=None
  )
  target_period_unit: str = redeclared(
    TwinOptions,
    'target_period_unit',
    'gradient_steps',
    never='no env steps are taken',
  )
  count_warmup: bool = redeclared(
    TwinOptions, 'count_warmup', never='there is no warm-up'
  )
  learning_rate: float = redeclared(LearningOptions, 'learning_rate', 1e-3)
  anneal_learning_rate: str = choice(  # type: ignore[assignment]
    'none', 'Where the step size falls to 0 in a straight line:', _ANNEAL
  )

  _length: Any = group('How long it is')
  iterations: int | None = option(
    None,
    'Fits of the whole run, each of --target_period gradient steps; '
    f'{_DEFAULT_ITERATIONS} if neither this nor --gradient_steps is given',
    POSITIVE,
    common=True,
  )
  gradient_steps: int | None = option(
    None, 'Length of the whole run, in place of --iterations', POSITIVE
  )
  iteration_gradient_steps: int | None = option(
    None,
    'Gradient steps from one row of metrics.csv, and evaluation, to the next; '
    '--target_period if not given',
    POSITIVE,
  )
  _layers: Any = group('The layers of the network')
  hidden_sizes: str = option(
    '64-64',
    'Units of the hidden layers; with none, and one-hot states, the network '
    'is a table',
    sizes('64-64', none=True),
  )
  rescale_observations: bool = option(
    False, 'Bring observations to [-1, 1], by their range in the data set.'
  )
  _fits: Any = group('Fits')
  batch_size: int = option(
    256,
    'Transitions per gradient step, drawn with replacement; 0 for all of them '
    'at every step',
    NOT_NEGATIVE,
    most=INT64,  # the memory ends sooner
    common=True,
  )
  tolerance: float | None = option(
    None,
    'A fit ends when its loss, averaged over --tolerance_window gradient '
    'steps, has not fallen by more than this fraction of what it was in the '
    'window before; 0 waits until it does not fall at all. All fits have '
    '--target_period gradient steps if not given',
    NOT_NEGATIVE,
    when=HAS_PERIOD,
    refused=True,
  )
  tolerance_window: int = option(
    100,
    'Gradient steps of a window; must divide --target_period.',
    POSITIVE,
    when=When(lambda config: config.tolerance is not None, 'with --tolerance'),
  )
  _evaluation: Any = group('Evaluation, after each iteration')
  eval_episodes: int = option(
    10,
    'Greedy episodes to play; 0 for no evaluation, nor one from the grid of '
    f'{offline_data.CAR}.',
    NOT_NEGATIVE,
    common=True,
  )
  eval_episode_env_steps: int = option(
    10_000,
    'Env steps after which an episode is cut.',
    POSITIVE,
    when=is_set('eval_episodes', '1 or more'),
  )

  @property
  def total_gradient_steps(self) -> int:
    """Those of the whole run; of fits that end early, the most there can be."""
    fits = self.iterations or _DEFAULT_ITERATIONS
    return self.gradient_steps or fits * self.target_period

  @property
  def row_gradient_steps(self) -> int:
    """Those of an iteration."""
    return self.iteration_gradient_steps or self.target_period

  @property
  def rows(self) -> int:
    """Iterations of the whole run."""
    return self.total_gradient_steps // self.row_gradient_steps


class Learning(NamedTuple):
  """What learns, and how.

  Attributes:
    learner: all that learning takes.
    twin: its twin by its name.
    config: how the data are learnt from.
  """

  learner: Learner
  twin: TwinSpec
  config: offline.OfflineConfig


def main(config: OfflineConfig) -> None:
  """Learns as the options say."""
  with devices.StopRequest() as stop:
    _train(config, stop)


def _train(config: OfflineConfig, stop: devices.StopRequest) -> None:
  check(config)
  devices.configure(config.platform)
  # Only now: environments may hold arrays.
  task = make_task(config.environment)
  run_dir = config.run_dir or (
    f'runs/offline-{task.name}-{config.agent}-{config.seed}'
  )
  config = dataclasses.replace(config, environment=task.name, run_dir=run_dir)
  given = None
  offline_data.check_fits('batch_size', config.batch_size, task)
  if config.dataset is None:
    offline_data.check_collecting(config, task)
  else:
    offline_data.check_kept(config, run_dir, overwrite=config.overwrite)
    given = offline_data.load(config, task.environment)
  derived = _describe(config, task, given)
  memory.check(
    config,
    functools.partial(_nbytes, task, given),
    'collect_env_steps',
    devices.memory_bytes(),
  )
  say_idle([config])
  with folders.open_run(config, derived) as folder:
    offline_engine.run(folder, make_run(config, task, given), stop)


def _nbytes(task: Task, given: Dataset | None, config: OfflineConfig) -> float:
  """About how many bytes a run takes."""
  environment = task.environment
  learning = make_learning(config, task, None)
  key = jax.random.key(0)
  state = jax.eval_shape(learning.learner.init, key)
  transitions = config.env_steps if given is None else given.size
  data = host.batch_shape(
    environment.obs_shape, environment.obs_dtype, 0, transitions, 0
  )
  episodes = jax.eval_shape(
    jax.vmap(environment.reset), jax.random.split(key, 1)
  )
  return (
    memory.peak_nbytes(
      offline.make_iterate(learning.learner, learning.config), state, data, key
    )
    # As it is kept, and as it is learnt from.
    + 2 * memory.nbytes(data)
    # Before and after an env step.
    + 2 * config.eval_episodes * memory.nbytes(episodes)
  )


def _describe(
  config: OfflineConfig, task: Task, given: Dataset | None
) -> dict[str, Any]:
  """What config.json says beside the options; makes all parts in theory.

  Raises:
    UsageError: a rule does not fit the network.
  """
  with usage_errors():
    learning = make_learning(config, task, None)
    state = jax.eval_shape(learning.learner.init, jax.random.key(0))
  return {
    'schedule': learning.config.schedule._asdict()
    | {'sync': learning.twin.sync, 'offset': learning.twin.offset},
    'parameters': sum(
      math.prod(x.shape) for x in jax.tree.leaves(state.online_params)
    ),
    'transitions': config.env_steps if given is None else given.size,
  }


# What options must be to go together.


def check(config: OfflineConfig) -> None:
  """Raises UsageError for options that do not go together."""
  check_meant([config])
  if config.gradient_steps and config.iterations:
    refuse(
      config,
      'gradient_steps',
      f'not be given with --iterations={config.iterations}',
    )
  _check_lengths(config)
  _check_optimizer(config)
  if config.tolerance is not None:
    _check_tolerance(config)
  with usage_errors():
    twin_spec(config)
    target_options.parameters(config)


def _check_lengths(config: OfflineConfig) -> None:
  total = config.total_gradient_steps
  longest = 'gradient_steps' if config.gradient_steps else 'target_period'
  most = offline_data.MOST
  if total >= most:
    refuse(config, longest, f'give a run of less than {most} gradient steps')
  if total % config.row_gradient_steps:
    if config.iteration_gradient_steps:
      refuse(
        config,
        'iteration_gradient_steps',
        f'divide the {total} gradient steps of the run',
      )
    refuse(
      config,
      'gradient_steps',
      f'be a multiple of --target_period={config.target_period}, or of '
      '--iteration_gradient_steps',
    )


def _check_optimizer(config: OfflineConfig) -> None:
  anneal = config.anneal_learning_rate
  if anneal == 'fit' and not config.reset_optimizer:
    refuse(config, 'anneal_learning_rate', 'go with --reset_optimizer')
  if anneal == 'run' and config.reset_optimizer:
    refuse(
      config,
      'anneal_learning_rate',
      'not go with --reset_optimizer, which has the step size start anew',
    )


def _check_tolerance(config: OfflineConfig) -> None:
  if config.target_order != 'after':
    refuse(config, 'target_order', 'be after where --tolerance is given')
  if config.row_gradient_steps != config.target_period:
    refuse(
      config,
      'iteration_gradient_steps',
      f'be --target_period={config.target_period} where --tolerance is given',
    )
  window = config.tolerance_window
  if config.target_period % window or config.target_period < 2 * window:
    refuse(
      config,
      'target_period',
      'be two or more whole windows where --tolerance is given, of '
      f'--tolerance_window={window}',
    )


def twin_spec(config: OfflineConfig) -> TwinSpec:
  """The twin that the options describe; raises ValueError as `make_spec`."""
  return twin_options.make_spec(config, _SPEEDS, config.total_gradient_steps)


# What learns, and how well it does.


def make_learning(
  config: OfflineConfig, task: Task, data: Dataset | None
) -> Learning:
  """What the options name.

  Args:
    config: the options.
    task: gives the shapes.
    data: gives the range of observations; None where only shapes matter.

  Raises:
    ValueError: options do not go together.
  """
  twin = twin_spec(config)
  sizes = (
    () if config.hidden_sizes == 'none' else config.hidden_sizes.split('-')
  )
  environment = task.environment
  agent = target_options.make_agent(
    config,
    mlp_network(
      environment.num_actions,
      sizes=[int(size) for size in sizes],
      bounds=_bounds(data)
      if config.rescale_observations and data is not None
      else None,
      head=config.head,
      initializer=config.initializer,
      layer_norm=config.layer_norm,
    ),
    np.zeros((1, *environment.obs_shape), environment.obs_dtype),
    target_options.parameters(config),
  )
  optimizer = learner.make_optimizer(
    config.optimizer,
    learning_rate=config.learning_rate,
    eps=config.optimizer_eps,
    decay=config.rmsprop_decay,
    # An optimiser that starts anew counts the steps of its fit.
    anneal_steps={
      'none': None,
      'run': config.total_gradient_steps,
      'fit': config.target_period,
    }[config.anneal_learning_rate],
    max_gradient_norm=config.max_gradient_norm or None,
  )
  return Learning(
    learner.make_learner(agent, optimizer, twin.make()),
    twin,
    offline.OfflineConfig(
      Schedule(0, config.total_gradient_steps),
      batch_size=config.batch_size or None,
      iteration_steps=config.row_gradient_steps,
      tolerance=config.tolerance,
      window=config.tolerance_window,
    ),
  )


def _bounds(data: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """The range of each number of the observations acted upon."""
  flat = data.observations.reshape(data.size, -1).astype(np.float32)
  low, high = flat.min(0), flat.max(0)
  # What never changes is -1.
  high = np.where(high > low, high, low + 1)
  return tuple(low.tolist()), tuple(high.tolist())


# (online parameters, key) -> columns of a row.
Measure = Callable[[Params, jax.Array], dict[str, jax.Array]]


def make_measure(config: OfflineConfig, task: Task, agent: Agent) -> Measure:
  """What is measured after each iteration, in one compiled program."""
  starts = car_on_hill.start_states()
  exact = _exact_values(config, task.process)

  @jax.jit
  def measure(params: Params, key: jax.Array) -> dict[str, jax.Array]:
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
      if task.name == offline_data.CAR:
        returns = car_on_hill.returns(act, starts, discount=config.discount)
        row['grid_return'] = jnp.mean(returns)
    if exact is not None:
      obs, best = exact
      values = agent.values(params, obs)
      row['exact_bias'], row['exact_error'] = diagnostics.bias_exact(
        values, best
      )
    return row

  return measure


def _exact_values(
  config: OfflineConfig, process: tabular.TabularMDP | None
) -> tuple[np.ndarray, np.ndarray] | None:
  """The states that are acted in, one-hot [S, S'], and their values [S, A]."""
  if process is None or config.discount == 1:
    return None
  process = dataclasses.replace(
    process, rewards=offline_data.learnt(config, process.rewards)
  )
  return tabular.optimal_probe(process, config.discount)


# What the options say of the run in its folder.


def make_run(
  config: OfflineConfig, task: Task, given: Dataset | None
) -> offline_engine.Options:
  """The run.

  Args:
    config: the options.
    task: the environment.
    given: the data set that the user names; None to collect one.
  """
  init_key, collect_key, batch_key, eval_key = jax.random.split(
    jax.random.key(config.seed), 4
  )

  def make_data(folder: RunFolder, learnt_from: bool) -> Dataset:
    if given is not None:
      return given
    return offline_data.keep(
      folder.dataset, config, task, collect_key, afresh=not learnt_from
    )

  early = config.tolerance is not None
  return offline_engine.Options(
    environment=task.name,
    iterations=config.rows,
    gradient_steps=None if early else config.total_gradient_steps,
    checkpoint_period_s=config.checkpoint_period_s,
    make_data=make_data,
    make_parts=lambda data: make_parts(
      config, task, data, init_key, batch_key, eval_key
    ),
    draw=functools.partial(_draw, config),
  )


def make_parts(
  config: OfflineConfig,
  task: Task,
  data: Dataset,
  init_key: jax.Array,
  batch_key: jax.Array,
  eval_key: jax.Array,
) -> offline_engine.Parts:
  """What learns from a data set, and what is measured of it."""
  learning = make_learning(config, task, data)
  iterate = offline.make_iterate(learning.learner, learning.config)
  learnt = data._replace(rewards=offline_data.learnt(config, data.rewards))
  batch = learnt.batch(slice(None), config.discount)
  known = {}
  if config.eval_episodes and task.name == offline_data.CAR:
    known['grid_optimum'] = _grid_optimum(config.discount)
  compiled = make_measure(config, task, learning.learner.agent)

  def measure(params: Params, iteration: int) -> dict[str, float]:
    row = compiled(params, jax.random.fold_in(eval_key, iteration))
    return {name: value.item() for name, value in row.items()} | known

  def train(state: TrainState, iteration: int) -> Iterator[offline.Progress]:
    return offline.train(
      iterate,
      state,
      batch,
      batch_key,
      iterations=config.rows,
      iteration=iteration,
    )

  return offline_engine.Parts(learning.learner.init(init_key), train, measure)


def _grid_optimum(discount: float) -> float:
  """The best mean return from the papers' starts."""
  best = car_on_hill.optimal_returns(
    car_on_hill.start_states(),
    discount=discount,
    # Without a future, a step is all that counts.
    horizon=car_on_hill.HORIZON if discount else 1,
  )
  return float(best.mean())


def _draw(config: OfflineConfig, folder: RunFolder) -> None:
  """Draws what the metrics say; without Matplotlib, nothing."""
  if not running.can_draw():
    return
  table = read_metrics(folder.metrics)
  x = table['gradient_steps']
  draw = functools.partial(
    plot_curve,
    title=f'{config.environment}, {config.agent}, {config.target_update}, '
    f'seed {config.seed}',
    x_label='gradient steps',
  )
  if 'grid_return' in table:
    draw(
      folder.curve,
      [Curve('greedy policy', x, table['grid_return'])],
      [Curve('best possible', None, table['grid_optimum'][-1])],
      y_label='mean discounted return from 289 starts',
    )
  elif 'eval_return' in table:
    draw(folder.curve, [Curve('evaluation', x, table['eval_return'])])
  else:
    draw(folder.curve, [Curve('loss', x, table['loss'])], y_label='loss')
  if 'exact_error' in table:
    errors = np.where(table['exact_error'] > 0, table['exact_error'], np.nan)
    draw(
      folder.path / 'curve-exact.png',
      [Curve('largest', x, np.log10(errors))],
      y_label='error of the values, logarithm to the base 10',
    )


def run() -> NoReturn:
  """Does what the command line says, and exits."""
  executing.run(OfflineConfig, __doc__, main)


if __name__ == '__main__':
  run()
