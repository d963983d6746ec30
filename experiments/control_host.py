"""DDPG, TD3 and SAC on Gymnasium's robots: one run of the host loop."""

from collections.abc import Generator
import contextlib
import dataclasses
import functools
import sys
import time
from typing import Any

import jax
import numpy as np

from experiments import control_options
from experiments.config import (
  collecting as collect_options,
  twin as twin_options,
)
from experiments.config.declaring import (
  RunError,
  UsageError,
  refuse,
  usage_errors,
)
from experiments.config.reading import Sweep, check_lists, say_idle
from experiments.control_options import ControlConfig
from experiments.engines import (
  devices,
  folders,
  host as host_engine,
  memory,
  running,
)
from siamrl.envs import ale, gym, registry
from siamrl.envs.errors import BrokenEnvironmentError
from siamrl.envs.gym import GymnasiumEnvironments
from siamrl.learner import Learner, TwinSpec
from siamrl.replay.host import HostReplay
from siamrl.report import panel
from siamrl.report.curves import plot_run
from siamrl.report.metrics import read_metrics
from siamrl.report.run_folder import RunFolder
from siamrl.runners import evaluation, host
from siamrl.types import Agent, Params

# Options that only compiled runs have.
_COMPILED_ONLY = (
  'seeds',
  'share',
  'vectorised',
  'coordinator',
  'num_processes',
  'process_id',
  'eval_environment',
)

# Environments stepped side by side in an evaluation, at most.
_EVAL_ENVS = 10

# The least that one of a robot takes, as measured.
_ENVIRONMENT_NBYTES = 700_000


def is_on_host(name: str) -> bool:
  """Whether an environment is one of Gymnasium's rather than of JAX.

  Raises:
    UsageError: there is no such environment anywhere.
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
  """Whether it is one of Atari's."""
  try:
    ale.resolve_game(name)
    return True
  except (ImportError, ValueError):
    return False


def main(sweep: Sweep, environment: str) -> None:
  """Trains the one run of a sweep.

  Args:
    sweep: of records of `ControlConfig`.
    environment: one of its environments, which is stepped on the host.

  Raises:
    UsageError: it has several, or an option that only compiled runs have.
    RunError: something else is in the way.
  """
  check_lists(sweep, control_options.drop)
  if len(sweep.configs) > 1:
    raise UsageError(
      f'--environment={environment} must be run one at a time: it is stepped '
      f'on the host, without lists of --{", --".join(sweep.axes)}'
    )
  (config,) = sweep.configs
  for name in _COMPILED_ONLY:
    if getattr(config, name) != getattr(ControlConfig, name):
      refuse(
        config,
        name,
        f'not be given with --environment={config.environment}, which is '
        'stepped on the host',
      )
  with devices.StopRequest() as stop:
    _train(config, stop)


def _train(config: ControlConfig, stop: devices.StopRequest) -> None:
  env_id = gym.resolve_gymnasium(config.environment)
  run_dir = config.run_dir or f'runs/{env_id}-{config.agent}-{config.seed}'
  config = dataclasses.replace(config, environment=env_id, run_dir=run_dir)
  control_options.check(config)
  # One is enough to look at.
  environments = make_environments(config, seed=0, num_envs=1)
  environments.close()
  if not environments.action_dim:
    refuse(
      config,
      'environment',
      'have continuous actions; JAX-native ones with discrete actions are for '
      'python -m experiments.classic',
    )
  _check_episode_cap(config)
  _check_replay(config, environments)
  devices.configure(config.platform, ynnpack=False)
  with usage_errors():
    parts, derived = build(config, environments, RunFolder(run_dir))
  _note_cut_episodes(config)
  _note_observations(config, environments)
  _note_seeds(config)
  say_idle([config], control_options.drop)
  with folders.open_run(config, derived) as folder:
    host_engine.run(folder, parts, stop)


def make_environments(
  config: ControlConfig,
  seed: int,
  num_envs: int | None = None,
  max_episode_steps: int | None = None,
) -> GymnasiumEnvironments:
  """Environments, with errors that speak of the flag; see there."""
  try:
    return GymnasiumEnvironments(
      config.environment,
      num_envs or config.num_envs,
      seed=seed,
      max_episode_steps=max_episode_steps,
    )
  except ValueError as error:
    raise UsageError(f'--environment={config.environment}: {error}') from error
  except (ImportError, BrokenEnvironmentError) as error:
    raise RunError(f'--environment={config.environment}: {error}') from error


def _check_episode_cap(config: ControlConfig) -> None:
  """Raises UsageError for a cap on episodes that have one of their own."""
  limit = gym.episode_limit(config.environment)
  default = ControlConfig.eval_episode_env_steps
  if limit is not None and config.eval_episode_env_steps != default:
    refuse(
      config,
      'eval_episode_env_steps',
      f'not be given with --environment={config.environment}, which is '
      f'stepped on the host and cuts its episodes itself, after {limit:,} env '
      'steps',
    )


def _note(text: str) -> None:
  print(f'note: {text}', file=sys.stderr)


def _note_cut_episodes(config: ControlConfig) -> None:
  """Says so where an episode is cut that the environment would go on with."""
  limit = gym.episode_limit(config.environment)
  if limit is None and config.eval_episodes:
    _note(
      f'{config.environment} sets no limit to its episodes: evaluations cut '
      f'them after --eval_episode_env_steps={config.eval_episode_env_steps}'
    )
  steps = config.iteration_env_steps // config.num_envs
  if limit is not None and steps < limit:
    _note(
      f'iterations begin with fresh episodes, and are of {steps:,} env '
      f'steps in each environment; {config.environment} may take {limit:,} an '
      'episode, whose rest would never be seen: --iteration_env_steps='
      f'{limit * config.num_envs} or more shows it'
    )


def _note_observations(
  config: ControlConfig, environments: GymnasiumEnvironments
) -> None:
  """Says what the networks, which are dense, make of images and bytes."""
  shape = environments.obs_shape
  done = ['flattened'] if len(shape) > 1 else []
  if environments.bounds is not None:
    done.append('scaled from [0, 255] to [-1, 1]')
  if done:
    _note(
      f'the networks see the observations of {config.environment}, of shape '
      f'{list(shape)}, {" and ".join(done)}'
    )


def _note_seeds(config: ControlConfig) -> None:
  """Says so where the same seed does not lead to the same start.

  Raises:
    RunError: the environment breaks its contract already here.
  """
  starts: list[np.ndarray] = []
  for _ in range(2):
    with contextlib.closing(make_environments(config, 0, 1)) as environments:
      try:
        starts.append(environments.reset())
      except BrokenEnvironmentError as error:
        raise RunError(f'the environment failed: {error}') from error
  first, second = starts
  if not np.array_equal(first, second):
    _note(
      f'{config.environment} ignores its seed: the same seed gave two '
      'different first observations. No run of it can be repeated, and one '
      'that is stopped inside an iteration resumes with --fresh_environments '
      'only'
    )


def _check_replay(
  config: ControlConfig, environments: GymnasiumEnvironments
) -> None:
  # In the worst case every other slot ends an episode, and of each
  # environment's oldest and newest few slots none starts a transition.
  unready = config.n_step + environments.stack
  least = 2 * (config.batch_size + config.num_envs * unready)
  if config.replay_capacity < least:
    refuse(
      config,
      'replay_capacity',
      f'be at least {least}: room for --batch_size={config.batch_size}, and '
      f'--n_step={config.n_step} for each of --num_envs={config.num_envs}',
    )
  memory.check_replay(
    config, _replay_nbytes(config, environments), devices.memory_bytes()
  )


def _replay_nbytes(
  config: ControlConfig, environments: GymnasiumEnvironments
) -> int:
  return HostReplay.estimate_nbytes(
    config.replay_capacity,
    environments.frame_shape,
    environments.frame_dtype,
    environments.action_dim,
  )


def _nbytes(
  environments: GymnasiumEnvironments, config: ControlConfig
) -> float:
  """About how many bytes a run takes."""
  speeds = collect_options.make_schedule(config)
  learner = _make_learner(config, environments)
  obs_shape = (environments.stack, *environments.frame_shape)
  batch = host.batch_shape(
    obs_shape,
    environments.frame_dtype,
    environments.action_dim,
    config.batch_size,
    0,
  )
  state = jax.eval_shape(learner.init, jax.random.key(0))
  needed = (
    memory.learning_nbytes(learner.regress, state, batch, speeds)
    + _replay_nbytes(config, environments)
    + (config.num_envs + min(config.eval_episodes, _EVAL_ENVS))
    * _ENVIRONMENT_NBYTES
    + memory.kept_nbytes(
      config.iteration_env_steps, config.num_envs, environments.action_dim
    )
    + 64 * config.eval_episodes
  )
  if config.panel_period:
    needed += config.probe_size / config.batch_size * memory.nbytes(batch)
  return needed


def _make_learner(
  config: ControlConfig, environments: GymnasiumEnvironments
) -> Learner:
  """What learns; nothing is computed."""
  # The twin has numbers of Python: what says when it moves is a constant.
  return control_options.make_learner(
    config,
    _twin_spec(config),
    environments.action_dim,
    np.zeros(
      (1, environments.stack, *environments.frame_shape),
      environments.frame_dtype,
    ),
    control_options.settings_of(config),
    environments.bounds,
  )


def _twin_spec(config: ControlConfig) -> TwinSpec:
  """The twin, its rates as compiled runs have them."""
  spec = collect_options.twin_spec(config)
  numbers = twin_options.settings_of(spec)
  return twin_options.traced(
    spec, numbers | {'sync': spec.sync, 'sync_offset': spec.offset}
  )


def build(
  config: ControlConfig, environments: GymnasiumEnvironments, folder: RunFolder
) -> tuple[host_engine.Parts, dict[str, Any]]:
  """Makes all parts of the run; returns them and what to record of them.

  Args:
    config: the options.
    environments: such as the run will have; only looked at.
    folder: of the run.

  Raises:
    ValueError: options that do not go together.
  """
  speeds = collect_options.make_schedule(config)
  if config.shadows and speeds.regress > 1:
    refuse(
      config,
      'shadows',
      f'not be given where a round takes {speeds.regress} gradient steps: '
      'they move once a round',
    )
  learner = _make_learner(config, environments)
  obs_shape = (environments.stack, *environments.frame_shape)
  memory.check(
    config,
    functools.partial(_nbytes, environments),
    'replay_capacity',
    devices.memory_bytes(),
  )
  init_key, act_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)
  state = learner.init(init_key)
  watch = None
  twin = _twin_spec(config)
  panel_ = control_options.make_panel(
    config, learner, twin, np.float32(config.discount)
  )
  if panel_ is not None:
    watch = host.Watch(panel_, config.panel_period, config.probe_size)
  replay = HostReplay(
    config.replay_capacity,
    frame_shape=environments.frame_shape,
    frame_dtype=environments.frame_dtype,
    num_envs=config.num_envs,
    stack=environments.stack,
    n_step=config.n_step,
    discount=config.discount,
    action_dim=environments.action_dim,
  )
  loop = host.LoopConfig(
    schedule=speeds,
    total_env_steps=config.env_steps,
    iteration_env_steps=config.iteration_env_steps,
    warmup_env_steps=config.min_replay,
    batch_size=config.batch_size,
    epsilon=functools.partial(
      control_options.at_random, random_env_steps=config.random_env_steps
    ),
    reward_scale=config.reward_scale,
    reward_clip=config.reward_clip or None,
  )
  parts = host_engine.Parts(
    state=state,
    seen=watch.start(
      state, obs_shape, environments.frame_dtype, environments.action_dim
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
      make_environments=functools.partial(make_environments, config),
      seed=config.seed,
      act_key=act_key,
      watch=watch,
    ),
    evaluate=functools.partial(_evaluate, config, loop, learner.agent, eval_key)
    if config.eval_episodes
    else None,
    draw=functools.partial(_draw, config, folder),
    frames_per_env_step=environments.frames_per_step,
    num_envs=config.num_envs,
    seed=config.seed,
    checkpoint_period_s=config.checkpoint_period_s,
    unit='env step',
    fresh_environments=config.fresh_environments,
  )
  return parts, {
    'schedule': speeds._asdict() | {'sync': twin.sync, 'offset': twin.offset},
    'parameters': sum(x.size for x in jax.tree.leaves(state.online_params)),
    'mujoco': gym.mujoco_version(),
  }


def _evaluate(
  config: ControlConfig,
  loop: host.LoopConfig,
  agent: Agent,
  key: jax.Array,
  params: Params,
  iteration: int,
) -> Generator[None, None, dict[str, float]]:
  """Yields while it plays; returns the evaluation's columns."""
  begun = time.perf_counter()
  seed = host.environment_seed(config.seed, iteration, evaluation=True)
  number = min(config.eval_episodes, _EVAL_ENVS)
  cap = config.eval_episode_env_steps
  with contextlib.closing(
    make_environments(config, seed, number, max_episode_steps=cap)
  ) as environments:
    result = None
    for current in evaluation.evaluate(
      host.make_act(agent),
      params,
      environments,
      jax.random.fold_in(key, iteration),
      config.eval_epsilon,
      episodes=config.eval_episodes,
      values=host.make_values(agent) if config.panel_period else None,
    ):
      result = current
      yield
  assert result is not None
  bias = {}
  if result.record is not None:
    bias = host.overestimation(loop, result.record, config.discount)
  row: dict[str, float] = {
    'eval_episodes': len(result.returns),
    'eval_return': float(np.mean(result.returns)),
    'eval_episode_env_steps': float(np.mean(result.lengths)),
  }
  if gym.episode_limit(config.environment) is None:
    row['eval_episodes_cut'] = sum(n == cap for n in result.lengths)
  return bias | row | {'eval_s': time.perf_counter() - begun}


def _draw(config: ControlConfig, folder: RunFolder) -> None:
  # Without Matplotlib there is no curve: metrics.csv says the same.
  if not running.can_draw():
    return
  title = f'{config.environment}, {config.agent}, seed {config.seed}'
  plot_run(folder.metrics, folder.curve, title=title, x='env_steps')
  table = read_metrics(folder.metrics)
  if panel.is_measured(table):
    panel.plot_panel(
      folder.path / 'curve-panel.png',
      table,
      x='env_steps',
      title=title,
      x_label='env steps',
    )
