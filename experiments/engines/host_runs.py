"""Runs of the host loop: a family of agents in a suite of environments.

A launcher names one of each; the replay, the loop, evaluations and figures are
the same for all.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
import contextlib
import dataclasses
import functools
import pathlib
import time
from typing import Any, Protocol

import jax
import numpy as np

from experiments.config import (
  churn as churn_options,
  collecting as collect_options,
)
from experiments.config.declaring import refuse, usage_errors
from experiments.config.meaning import check_lists, check_meant, say_notes
from experiments.config.reading import Sweep
from experiments.config.runs import check_track
from experiments.engines import (
  devices,
  folders,
  host as engine,
  memory,
  running,
  series,
)
from siamrl.diagnostics import Panel
from siamrl.learner import Learner, TwinSpec
from siamrl.replay.host import HostReplay
from siamrl.replay.host_prioritized import PrioritizedHostReplay
from siamrl.replay.rollout import HostRollout
from siamrl.report import panel
from siamrl.report.curves import plot_run
from siamrl.report.metrics import read_metrics
from siamrl.report.run_folder import RunFolder
from siamrl.report.tracking import Track
from siamrl.runners import evaluation, host
from siamrl.runners.returns import Returns
from siamrl.types import Environments, TrainState


class Spaces(Protocol):
  """Observations and actions of environments, as in `types.Environments`."""

  @property
  def stack(self) -> int: ...

  @property
  def frame_shape(self) -> tuple[int, ...]: ...

  @property
  def frame_dtype(self) -> Any: ...

  @property
  def num_actions(self) -> int: ...

  @property
  def action_dim(self) -> int: ...


class Suite(Protocol):
  """The environments that a launcher's options describe.

  Attributes:
    name: the environment's name, for titles.
    spaces: the spaces of observations and actions.
    unit: the name of a frame in messages, 'frame' or 'env step'.
    x: the column of metrics.csv that curves are drawn over.
    frames_per_env_step: emulator frames per env step.
    environment_nbytes: approximate memory of one environment.
    eval_envs: number of environments that an evaluation steps at once.
    eval_quota: keywords of `evaluation.evaluate`, `episodes` or `env_steps`;
      empty for no evaluation.
    loop_options: further fields of `host.LoopConfig`.
    derived: entries of config.json about the environments.
  """

  @property
  def name(self) -> str: ...

  @property
  def spaces(self) -> Spaces: ...

  @property
  def unit(self) -> str: ...

  @property
  def x(self) -> str: ...

  @property
  def frames_per_env_step(self) -> int: ...

  @property
  def environment_nbytes(self) -> int: ...

  @property
  def eval_envs(self) -> int: ...

  @property
  def eval_quota(self) -> dict[str, int]: ...

  @property
  def loop_options(self) -> dict[str, Any]: ...

  @property
  def derived(self) -> dict[str, Any]: ...

  def of(self, config: Any) -> 'Suite':
    """The same environments with other options."""

  def make(self, seed: int) -> Environments:
    """Environments to collect with."""

  def make_eval(self, seed: int) -> Environments:
    """Environments to evaluate in."""

  def columns(self, result: evaluation.Evaluation) -> dict[str, float]:
    """The columns of metrics.csv for an evaluation."""

  def film(self, seed: int) -> 'Film | None':
    """The recorder of an evaluation with this seed; None for no recording."""

  def notes(self) -> Iterable[str]:
    """Lines for the user to read; raises RunError."""


class Film(Protocol):
  """A recording of an evaluation."""

  def watch(self, actions: np.ndarray) -> None:
    """Sees the actions of a step, before they are sent."""

  def write(self, path: pathlib.Path) -> None:
    """Writes the recording."""

  def close(self) -> None:
    """Frees the resources of recording."""


class Family(Protocol):
  """The agents that a launcher's options describe; a module of families/."""

  def twin_spec(self, config: Any) -> TwinSpec:
    """The twin by its name, in gradient steps."""

  def make_host_learner(
    self, config: Any, suite: Any, twin: TwinSpec
  ) -> Learner:
    """The learner; nothing is computed."""

  def make_host_panel(
    self, config: Any, suite: Any, learner: Learner, twin: TwinSpec
  ) -> Panel | None:
    """The panel that measures the twin, if the options ask for one."""

  def make_host_returns(self, config: Any, learner: Learner) -> Returns | None:
    """The whole targets of a round; None if a replay draws batches."""

  def make_epsilon(self, config: Any) -> Callable[[int], float]:
    """Env steps so far -> chance of a random action."""

  def sequence_steps(self, config: Any) -> int:
    """Env steps that batches look ahead; 0 for none."""


def _make_learner(
  config: Any, family: Family, suite: Suite
) -> tuple[TwinSpec, Learner, host.Watch | None]:
  """The twin, the learner and the watch of its panel; nothing is computed.

  Raises as `build` does.
  """
  twin = family.twin_spec(config)
  learner = family.make_host_learner(config, suite, twin)

  def needs(tried: Any) -> float:
    if tried is config:  # whose trace is then the one of the run
      return _nbytes(family, suite, config, learner)
    other = suite.of(tried)
    tried_twin = family.twin_spec(tried)
    made = family.make_host_learner(tried, other, tried_twin)
    return _nbytes(family, other, tried, made)

  memory.check(
    config,
    needs,
    'train_period' if _keeps_rounds(config) else 'replay_capacity',
    devices.memory_bytes(),
  )
  panel_ = family.make_host_panel(config, suite, learner, twin)
  if panel_ is None:
    return twin, learner, None
  watch = host.Watch(panel_, config.panel_period, config.probe_size)
  return twin, learner, watch


def build(
  config: Any, family: Family, suite: Suite, folder: RunFolder
) -> tuple[engine.Parts, dict[str, Any]]:
  """Makes all parts of a run; returns them and entries of config.json.

  Args:
    config: the options.
    family: the family of agents.
    suite: the suite of environments.
    folder: the folder of the run.

  Raises:
    UsageError: options do not go together, or the memory cannot hold the run.
    ValueError: options do not go together; names the option.
  """
  twin, learner, watch = _make_learner(config, family, suite)
  init_key, act_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)
  state = learner.init(init_key)
  speeds, spaces = collect_options.make_schedule(config), suite.spaces
  replay = _make_replay(config, family, suite)
  loop = host.LoopConfig(
    schedule=speeds,
    total_env_steps=config.total_env_steps,
    iteration_env_steps=config.iteration_env_steps,
    warmup_env_steps=config.min_replay,
    batch_size=churn_options.drawn(config),
    epsilon=family.make_epsilon(config),
    reward_clip=config.reward_clip or None,
    **suite.loop_options,
  )
  parts = engine.Parts(
    state=state,
    seen=watch.start(
      state,
      (spaces.stack, *spaces.frame_shape),
      spaces.frame_dtype,
      spaces.action_dim,
      replay.sequence_steps,
    )
    if watch
    else None,
    replay=replay,
    config=loop,
    loop=functools.partial(
      host.train,
      loop,
      learner=learner,
      replay=replay,
      make_environments=suite.make,
      seed=config.seed,
      act_key=act_key,
      returns=family.make_host_returns(config, learner),
      watch=watch,
    ),
    evaluate=functools.partial(
      _evaluate, config, suite, loop, folder, learner, eval_key
    )
    if suite.eval_quota
    else None,
    draw=functools.partial(_draw, config, suite, folder),
    frames_per_env_step=suite.frames_per_env_step,
    num_envs=config.num_envs,
    seed=config.seed,
    checkpoint_period_s=config.checkpoint_period_s,
    unit=suite.unit,
    fresh_environments=config.fresh_environments,
    track=Track(config.track),
  )
  return parts, {
    'schedule': speeds._asdict() | {'sync': twin.sync, 'offset': twin.offset},
    'parameters': sum(x.size for x in jax.tree.leaves(state.online_params)),
    'rows': -(-config.total_env_steps // config.iteration_env_steps),
    **suite.derived,
  }


def _make_replay(config: Any, family: Family, suite: Suite) -> HostReplay:
  """An empty replay."""
  spaces = suite.spaces
  settings: dict[str, Any] = {
    'frame_shape': spaces.frame_shape,
    'frame_dtype': spaces.frame_dtype,
    'num_envs': config.num_envs,
    'stack': spaces.stack,
    'discount': config.discount,
    'action_dim': spaces.action_dim,
  }
  if _keeps_rounds(config):
    return HostRollout(_round_steps(config), **settings)
  settings |= {
    'n_step': config.n_step,
    'sequence_steps': family.sequence_steps(config),
  }
  if not _is_prioritized(config):
    return HostReplay(config.replay_capacity, **settings)
  return PrioritizedHostReplay(
    config.replay_capacity,
    alpha=config.priority_exponent,
    beta=collect_options.make_importance(config, vars(config)),
    metric=collect_options.PRIORITY_METRICS[config.priority],
    **settings,
  )


def _is_prioritized(config: Any) -> bool:
  """Whether transitions are drawn by priorities; not every family has any."""
  return getattr(config, 'replay', None) == 'prioritized'


def _keeps_rounds(config: Any) -> bool:
  """Whether each round is learned from in whole epochs, without a replay."""
  return getattr(config, 'replay', None) == 'none'


def _round_steps(config: Any) -> int:
  """Steps of all environments in a round."""
  return collect_options.make_schedule(config).collect // config.num_envs


def check_replay(config: Any, suite: Suite) -> None:
  """Raises UsageError for a replay that is too small or too large."""
  if _keeps_rounds(config):
    return
  # In the worst case every other slot ends an episode, and no transition starts
  # in the oldest and newest few slots of each environment.
  unready = config.num_envs * (config.n_step + suite.spaces.stack)
  least = 2 * (churn_options.drawn(config) + unready)
  if config.replay_capacity < least:
    refuse(
      config,
      'replay_capacity',
      f'be at least {least}: room for {churn_options.drawn_text(config)}, and '
      f'--n_step={config.n_step} for each of --num_envs={config.num_envs}',
    )
  if config.replay_capacity % config.num_envs:
    refuse(
      config,
      'replay_capacity',
      f'be a multiple of --num_envs={config.num_envs}',
    )
  memory.check_replay(
    config, _replay_nbytes(config, suite), devices.memory_bytes()
  )


def _replay_nbytes(config: Any, suite: Suite) -> int:
  spaces = suite.spaces
  kind = PrioritizedHostReplay if _is_prioritized(config) else HostReplay
  capacity = config.replay_capacity
  if _keeps_rounds(config):
    capacity = HostRollout.capacity_for(
      _round_steps(config), num_envs=config.num_envs, stack=spaces.stack
    )
  return kind.estimate_nbytes(
    capacity,
    spaces.frame_shape,
    spaces.frame_dtype,
    spaces.action_dim,
  )


def _nbytes(
  family: Family, suite: Suite, config: Any, learner: Learner
) -> float:
  """About how many bytes a run takes."""
  spaces = suite.spaces
  batch = host.batch_shape(
    (spaces.stack, *spaces.frame_shape),
    spaces.frame_dtype,
    spaces.action_dim,
    churn_options.drawn(config),
    family.sequence_steps(config),
  )
  state = jax.eval_shape(learner.init, jax.random.key(0))
  iteration = min(config.iteration_env_steps, config.total_env_steps)
  numbers = max(spaces.action_dim, 1)
  needed = (
    _learning_nbytes(family, config, learner, state, batch)
    + _replay_nbytes(config, suite)
    + (config.num_envs + suite.eval_envs) * suite.environment_nbytes
    + memory.kept_nbytes(iteration, config.num_envs, numbers)
    + 64 * config.eval_episodes
  )
  if config.panel_period:
    drawn = churn_options.drawn(config)
    needed += config.probe_size / drawn * memory.nbytes(batch)
    # The values expected in an evaluation, and five records of it.
    needed += 6 * memory.kept_nbytes(
      suite.eval_quota.get('env_steps', 0), max(suite.eval_envs, 1), numbers=1
    )
  return needed


def _learning_nbytes(
  family: Family, config: Any, learner: Learner, state: Any, batch: Any
) -> float:
  """About how many bytes the gradient steps of a round take.

  Args:
    family: the family of agents.
    config: the options.
    learner: the learner.
    state: shapes of its state.
    batch: shapes of a batch.
  """
  speeds = collect_options.make_schedule(config)
  returns = family.make_host_returns(config, learner)
  if not _keeps_rounds(config):
    return memory.learning_nbytes(learner.regress, state, batch, speeds)
  lead = _round_steps(config), config.num_envs
  sequence = host.round_shape(batch, *lead)
  bits = jax.ShapeDtypeStruct((speeds.regress, config.batch_size), np.uint32)
  # On the host, too, before it is transferred.
  return memory.nbytes(sequence) + memory.peak_nbytes(
    host.make_epochs(learner, returns), state, sequence, bits
  )


def _evaluate(
  config: Any,
  suite: Suite,
  loop: host.LoopConfig,
  folder: RunFolder,
  learner: Learner,
  key: jax.Array,
  state: TrainState,
  iteration: int,
) -> Generator[None, None, dict[str, float]]:
  """Yields while it plays; returns the evaluation's columns."""
  begun = time.perf_counter()
  seed = host.environment_seed(config.seed, iteration, evaluation=True)
  with contextlib.ExitStack() as stack:
    environments = stack.enter_context(
      contextlib.closing(suite.make_eval(seed))
    )
    film = suite.film(seed)
    if film is not None:
      stack.enter_context(contextlib.closing(film))
    result = None
    for current in evaluation.evaluate(
      host.make_act(learner.agent),
      learner.acting_params(state),
      environments,
      jax.random.fold_in(key, iteration),
      config.eval_epsilon,
      watch=None if film is None else film.watch,
      values=host.make_values(learner.agent) if config.panel_period else None,
      **suite.eval_quota,
    ):
      result = current
      yield
  assert result is not None
  if film is not None:
    path = folder.videos / f'iteration_{iteration:04}.gif'
    running.draw(folder.videos, functools.partial(film.write, path))
  bias = {}
  if result.record is not None:
    bias = host.overestimation(loop, result.record, config.discount)
  return bias | suite.columns(result) | {'eval_s': time.perf_counter() - begun}


def _draw(config: Any, suite: Suite, folder: RunFolder) -> None:
  # Without Matplotlib there is no curve; metrics.csv has the same numbers.
  if not running.can_draw():
    return
  plot_run(
    folder.metrics,
    folder.curve,
    title=f'{suite.name}, {config.agent}, seed {config.seed}',
    x=suite.x,
  )
  table = read_metrics(folder.metrics)
  if panel.is_measured(table):
    bound = config.reward_bound
    if bound is not None and config.discount < 1:
      bound /= 1 - config.discount
    panel.plot_panel(
      folder.path / 'curve-panel.png',
      table,
      x=suite.x,
      x_label=suite.x.replace('_', ' '),
      title=f'{suite.name}, {config.target_update}, seed {config.seed}',
      bound=bound if config.discount < 1 else None,
    )


def check_options(sweep: Sweep, check: Callable[[Any], None]) -> None:
  """Raises UsageError or RunError for options that do not go together.

  Args:
    sweep: a sweep of a launcher's options.
    check: raises UsageError for those of one run.
  """
  check_meant(sweep.configs)
  check_track(sweep.configs[0])
  for config in sweep.configs:
    check(config)
    if not _keeps_rounds(config):
      collect_options.check_min_replay(config)
  check_lists(sweep)


def main(
  sweep: Sweep,
  family: Family,
  make_suite: Callable[[Any], Suite],
  check: Callable[[Any], None],
  *,
  ynnpack: bool = True,
) -> None:
  """Trains the runs of a sweep, one after the other; see `series.run`.

  Args:
    sweep: a sweep of a launcher's options.
    family: the family of agents.
    make_suite: options -> environments; raises UsageError for options that do
      not fit them.
    check: raises UsageError for options that do not go together.
    ynnpack: see `devices.configure`.
  """
  configs = sweep.configs
  check_options(sweep, check)
  with devices.StopRequest() as stop:
    suites = [make_suite(config) for config in configs]
    for config, suite in zip(configs, suites, strict=True):
      check_replay(config, suite)
    devices.configure(configs[0].platform, ynnpack=ynnpack)
    if len(configs) > 1:  # or the last is refused hours after the first began
      for config, suite in zip(configs, suites, strict=True):
        with usage_errors():
          _make_learner(config, family, suite)
    _train(sweep, family, suites, stop)


def _train(
  sweep: Sweep,
  family: Family,
  suites: Sequence[Suite],
  stop: devices.StopRequest,
) -> None:
  """Trains the runs that `main` has checked, with a suite per combination."""
  noted: set[str] = set()
  runs = series.split(sweep, [s.name for s in suites])

  def train(run: series.Run) -> bool:
    config, suite = run.config, suites[run.combination]
    with usage_errors():
      parts, derived = build(config, family, suite, RunFolder(config.run_dir))
    if len(runs) > 1:
      path = pathlib.Path(config.run_dir).resolve()
      track = parts.track._replace(group=path.parent.name, name=path.name)
      parts = dataclasses.replace(parts, track=track)
    if suite.name not in noted:
      folders.say(list(suite.notes()))
    if not noted:
      say_notes(sweep.configs)
    noted.add(suite.name)
    with folders.open_run(config, derived) as folder:
      return engine.run(folder, parts, stop)

  series.run(runs, train, stop)
