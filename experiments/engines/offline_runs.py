"""Runs on a data set: a family of agents that learns from a suite's data.

A launcher names the family; data, learner, measures and figures are put
together here.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
from typing import Any, Protocol

import jax
import numpy as np

from experiments.config import fitting, streams, targets as target_options
from experiments.config.declaring import UsageError, usage_errors
from experiments.config.meaning import check_meant, say_notes
from experiments.config.runs import check_track
from experiments.engines import (
  devices,
  folders,
  memory,
  offline as engine,
  running,
)
from experiments.suites import dataset as suite
from experiments.suites.jax_native import Task, make_task
from siamrl.learner import Learner, TwinSpec
from siamrl.networks.q_network import QNetwork
from siamrl.replay import dataset
from siamrl.replay.dataset import Dataset
from siamrl.report.curves import Curve, plot_curve
from siamrl.report.metrics import read_metrics
from siamrl.report.run_folder import RunFolder
from siamrl.report.tracking import Track
from siamrl.runners import host, offline
from siamrl.types import TrainState


class Family(Protocol):
  """The agents that a launcher's options describe; a module of families/."""

  def make_offline_learner(
    self, config: Any, network: QNetwork, example_obs: Any, twin: TwinSpec
  ) -> Learner:
    """The learner; nothing is computed."""


def main(config: Any, family: Family) -> None:
  """Learns as the options say; raises UsageError or RunError.

  Args:
    config: `FitOptions`, `DataOptions` and `TargetOptions` in one.
    family: the family of agents.
  """
  with devices.StopRequest() as stop:
    _train(config, family, stop)


def check(config: Any) -> None:
  """Raises UsageError for options that do not go together."""
  check_meant([config])
  check_track(config)
  fitting.check(config)
  streams.check(config, acts=False)
  with usage_errors():
    target_options.parameters(config)


def _train(config: Any, family: Family, stop: devices.StopRequest) -> None:
  check(config)
  devices.configure(config.platform)
  # Only now: environments may hold arrays.
  task = make_task(config.environment)
  run_dir = config.run_dir or (
    f'runs/offline-{task.name}-{config.agent}-{config.seed}'
  )
  config = dataclasses.replace(config, environment=task.name, run_dir=run_dir)
  given = None
  _check_fits('batch_size', config.batch_size, task)
  if config.dataset is None:
    suite.check_collecting(config, task)
    _check_fits('collect_env_steps', config.env_steps, task)
  else:
    suite.check_kept(config, run_dir, overwrite=config.overwrite)
    given = suite.load(config, task.environment)
  suite.check_probe(config, config.env_steps if given is None else given.size)
  derived = _describe(config, family, task, given)
  memory.check(
    config,
    functools.partial(_nbytes, family, task, given),
    'collect_env_steps',
    devices.memory_bytes(),
  )
  say_notes([config])
  with folders.open_run(config, derived) as folder:
    engine.run(folder, make_run(config, family, task, given), stop)


def _check_fits(name: str, transitions: int, task: Task) -> None:
  """Raises UsageError for transitions that exceed the memory."""
  needed = suite.nbytes(task, transitions)
  available = devices.memory_bytes()
  if needed > memory.SHARE * available or transitions >= suite.MOST:
    raise UsageError(
      f'--{name}={transitions} must fit the memory: it takes '
      f'{memory.words(needed, available)}'
    )


def _nbytes(
  family: Family, task: Task, given: Dataset | None, config: Any
) -> float:
  """About how many bytes a run takes."""
  environment = task.environment
  learner = make_learner(config, family, task, None)
  key = jax.random.key(0)
  state = jax.eval_shape(learner.init, key)
  transitions = config.env_steps if given is None else given.size
  data = host.batch_shape(
    environment.obs_shape, environment.obs_dtype, 0, transitions, 0
  )
  episodes = jax.eval_shape(
    jax.vmap(environment.reset), jax.random.split(key, 1)
  )
  return (
    memory.peak_nbytes(
      offline.make_iterate(learner, fitting.make_config(config)),
      state,
      data,
      key,
    )
    # As it is kept, as it is learned from, and with sums of rewards.
    + (2 + (config.n_step > 1)) * memory.nbytes(data)
    # Before and after an env step.
    + 2 * config.eval_episodes * memory.nbytes(episodes)
  )


def _describe(
  config: Any, family: Family, task: Task, given: Dataset | None
) -> dict[str, Any]:
  """The entries of config.json beside the options; traces all parts.

  Raises:
    UsageError: a rule does not fit the network.
  """
  with usage_errors():
    learner = make_learner(config, family, task, None)
    state = jax.eval_shape(learner.init, jax.random.key(0))
  clocked = learner.clocked
  return {
    'schedule': fitting.make_config(config).schedule._asdict()
    | {'sync': clocked.sync, 'offset': clocked.offset},
    'parameters': sum(
      math.prod(x.shape) for x in jax.tree.leaves(state.online_params)
    ),
    'rows': config.rows,
    'transitions': config.env_steps if given is None else given.size,
  }


def make_learner(
  config: Any, family: Family, task: Task, data: Dataset | None
) -> Learner:
  """The learner of the options; without data, only for its shapes."""
  environment = task.environment
  return family.make_offline_learner(
    config,
    suite.make_network(config, task, data),
    np.zeros((1, *environment.obs_shape), environment.obs_dtype),
    fitting.twin_spec(config),
  )


def make_run(
  config: Any, family: Family, task: Task, given: Dataset | None
) -> engine.Options:
  """The run; it collects a data set if the user gives none."""
  init_key, collect_key, batch_key, eval_key = jax.random.split(
    jax.random.key(config.seed), 4
  )

  def make_data(folder: RunFolder, learned_from: bool) -> Dataset:
    if given is not None:
      return given
    if not (learned_from and folder.dataset.exists()):
      collected = suite.collect(config, task, collect_key)
      dataset.save_dataset(folder.dataset, collected, overwrite=True)
    with folders.edited_errors():
      return dataset.load_dataset(folder.dataset, task.environment.num_actions)

  def make_parts(data: Dataset) -> engine.Parts:
    learner = make_learner(config, family, task, data)
    iterate = offline.make_iterate(learner, fitting.make_config(config))
    learned = data._replace(rewards=suite.learned(config, data.rewards))
    batch = learned.multi_step(config.n_step, config.discount)
    measure = suite.make_measure(config, task, learner, data)

    def train(state: TrainState, iteration: int) -> Iterator[offline.Progress]:
      return offline.train(
        iterate,
        state,
        batch,
        batch_key,
        iterations=config.rows,
        iteration=iteration,
      )

    return engine.Parts(
      learner.init(init_key),
      train,
      lambda params, iteration: measure(
        params, jax.random.fold_in(eval_key, iteration), iteration
      ),
    )

  early = config.tolerance is not None
  return engine.Options(
    environment=task.name,
    iterations=config.rows,
    gradient_steps=None if early else config.total_gradient_steps,
    checkpoint_period_s=config.checkpoint_period_s,
    make_data=make_data,
    make_parts=make_parts,
    draw=functools.partial(_draw, config),
    track=Track(config.track),
  )


def _draw(config: Any, folder: RunFolder) -> None:
  """Draws the metrics, if Matplotlib is installed."""
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
