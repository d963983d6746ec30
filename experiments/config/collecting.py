"""The options of runs that act and learn: their speeds, and checks."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from experiments.config import (
  churn as churn_options,
  learning,
  panel as panel_options,
  twin as twin_options,
)
from experiments.config.declaring import (
  FRACTION,
  INT64,
  NOT_NEGATIVE,
  POSITIVE,
  group,
  is_set,
  option,
  redeclared,
  refuse,
  usage_errors,
)
from experiments.config.panel import PanelOptions
from experiments.config.twin import TwinOptions
from siamrl import schedule
from siamrl.diagnostics import shortest_period
from siamrl.learner import TwinSpec
from siamrl.replay.device import DeviceReplay
from siamrl.runners import scan
from siamrl.types import TRANSITION_LOSS, JaxEnvironment, Schedule


# The metric of each transition that its priority is made of, by --priority.
PRIORITY_METRICS = {'td_error': 'td_error_abs', 'loss': TRANSITION_LOSS}


@dataclasses.dataclass(frozen=True)
class CollectOptions(PanelOptions, TwinOptions):
  """The options; a family adds its own, a launcher its environment."""

  target_period: int = redeclared(TwinOptions, 'target_period', 500)

  _length: Any = group('Length of the run')
  env_steps: int = option(
    500_000,
    'Env steps of each run.',
    POSITIVE,
    single=True,
    most=INT64,  # checked with the gradient steps
    common=True,
  )
  iteration_env_steps: int = option(
    10_000,
    'Env steps per iteration, after which there is a row of metrics.csv and '
    'an evaluation.',
    POSITIVE,
    single=True,
  )

  _collecting: Any = group('Collecting and learning')
  num_envs: int = option(
    10,
    'Environments that each run steps at once; must divide --train_period or '
    'be a multiple of it.',
    POSITIVE,
  )
  discount: float = option(
    0.99, 'Discount per env step.', FRACTION, traced=True, common=True
  )
  # A compiled program has an addition for each.
  n_step: int = option(1, 'Rewards before bootstrapping', POSITIVE, most=1_000)
  reward_scale: float = option(
    1.0,
    'Factor on rewards for learning, before any clipping.',
    POSITIVE,
    traced=True,
  )
  reward_clip: float = option(
    0.0,
    'Bound to which absolute rewards are clipped for learning; 0 for no '
    'clipping. Reported returns are never clipped.',
    NOT_NEGATIVE,
  )
  batch_size: int = option(
    128, 'Transitions per gradient step.', POSITIVE, common=True
  )
  train_period: int = option(
    10, 'Env steps from one training to the next.', POSITIVE
  )
  train_steps: int = option(
    1,
    'Gradient steps per training; many make fitted Q-iteration.',
    POSITIVE,
  )
  min_replay: int = option(
    10_000, 'Env steps before the first gradient step.', NOT_NEGATIVE
  )
  replay_capacity: int = option(
    10_000,
    'Transitions in the replay of each run.',
    POSITIVE,
    most=INT64,  # the memory ends sooner
  )

  _evaluation: Any = group('Evaluation, after each iteration')
  eval_episodes: int = option(
    0,
    'Episodes per evaluation; 0 for no evaluation.',
    NOT_NEGATIVE,
    single=True,
    common=True,
  )
  eval_epsilon: float = option(
    0.0,
    'Chance of a random action in evaluations.',
    FRACTION,
    single=True,
    when=is_set('eval_episodes', '1 or more'),
  )
  eval_episode_env_steps: int = option(
    10_000,
    'Env steps after which an episode of an evaluation is cut.',
    POSITIVE,
    single=True,
    when=is_set('eval_episodes', '1 or more'),
  )

  @property
  def total_env_steps(self) -> int:
    """Env steps of the whole run."""
    return self.env_steps


def check(config: CollectOptions) -> None:
  """Raises UsageError for options that do not go together."""
  with usage_errors():
    schedule.make_schedule(config.num_envs, config.train_period)
    twin_spec(config)
  collect = max(config.num_envs, config.train_period)
  if config.iteration_env_steps % collect:
    refuse(
      config,
      'iteration_env_steps',
      f'be a multiple of {collect}, the larger of --num_envs and '
      '--train_period',
    )
  if config.env_steps % config.iteration_env_steps:
    refuse(
      config,
      'env_steps',
      f'be a multiple of --iteration_env_steps={config.iteration_env_steps}',
    )
  learning.check_learns(
    config,
    length='env_steps',
    env_steps=config.env_steps,
    round_env_steps=collect,
    gradient_steps=speeds(config).gradient_steps_of(config.env_steps),
  )


def check_replay(config: CollectOptions) -> None:
  """Raises UsageError for a replay or a panel that cannot be made."""
  with usage_errors():
    panel_options.check(
      config,
      iteration_env_steps=config.iteration_env_steps,
      capacity=config.replay_capacity,
      unready=config.n_step * config.num_envs,
    )
  check_min_replay(config)
  if config.replay_capacity < churn_options.drawn(config):
    refuse(
      config,
      'replay_capacity',
      f'be at least {churn_options.drawn_text(config)}',
    )
  if config.replay_capacity % config.num_envs:
    refuse(
      config,
      'replay_capacity',
      f'be a multiple of --num_envs={config.num_envs}',
    )
  if config.replay_capacity >= 2**30:
    refuse(config, 'replay_capacity', f'be below {2**30}')


def speeds(config: Any) -> twin_options.Speeds:
  """The converter of periods; except for Atari, a frame is an env step."""
  return twin_options.Speeds(
    config.target_period_unit,
    config.train_period,
    frames_per_env_step=getattr(config, 'frame_skip', 1),
    train_steps=config.train_steps,
  )


def make_schedule(config: Any) -> Schedule:
  """Speeds of collecting and learning."""
  return schedule.make_schedule(
    config.num_envs, config.train_period, train_steps=config.train_steps
  )


def check_min_replay(config: Any) -> None:
  """Raises UsageError if the first gradient step lacks transitions."""
  # Before it, n transitions of each environment are not yet whole.
  drawn = churn_options.drawn(config)
  needed = drawn + config.num_envs * config.n_step
  if config.min_replay < needed:
    refuse(
      config,
      'min_replay',
      f'be at least {needed}: {churn_options.drawn_text(config)}, and '
      f'--n_step={config.n_step} for each of --num_envs={config.num_envs}',
    )


def check_shadows(config: Any, age: float) -> None:
  """Raises UsageError if rounds are too long for shadows.

  Args:
    config: the options.
    age: mean age of the twin in gradient steps, which shadows match.
  """
  steps = make_schedule(config).regress
  if steps > shortest_period(config.shadows.split('+'), age):
    refuse(
      config,
      'shadows',
      f'not be given where a round takes {steps} gradient steps: they move '
      'once a round',
    )


def twin_spec(config: Any) -> TwinSpec:
  """The twin that the options describe, in gradient steps."""
  return twin_options.make_spec(
    config, speeds(config), gradient_steps(config), config.min_replay
  )


def gradient_steps(config: Any) -> int:
  """The gradient steps of the whole run, at least one."""
  learned_from = config.total_env_steps - config.min_replay
  return max(1, speeds(config).gradient_steps_of(learned_from))


def make_importance(
  config: Any, numbers: Mapping[str, Any]
) -> Callable[[Any], Any]:
  """Env steps so far -> exponent of the importance weights.

  Args:
    config: the options, with those of a replay.
    numbers: numbers by the names of options; may be traced.
  """
  return functools.partial(
    schedule.linear_epsilon,  # the same straight line, over the whole run
    start=numbers['importance_start'],
    end=numbers['importance_end'],
    begin=0,
    decay=config.total_env_steps,
  )


def iterations(config: CollectOptions) -> int:
  """The iterations of the whole run."""
  return config.env_steps // config.iteration_env_steps


def make_config(config: CollectOptions) -> scan.ScanConfig:
  """How compiled runs collect and learn."""
  return scan.ScanConfig(
    schedule=make_schedule(config),
    num_envs=config.num_envs,
    iteration_env_steps=config.iteration_env_steps,
    warmup_env_steps=config.min_replay,
    batch_size=churn_options.drawn(config),
    reward_clip=config.reward_clip or None,
    eval_episodes=config.eval_episodes,
    eval_epsilon=config.eval_epsilon,
    eval_episode_env_steps=config.eval_episode_env_steps,
    panel_period=max(config.panel_period, 1),
    probe_size=config.probe_size,
  )


def make_replay(
  config: CollectOptions, environment: JaxEnvironment, **more: Any
) -> DeviceReplay:
  """A uniform replay; `more` are further fields."""
  return DeviceReplay(
    obs_shape=environment.obs_shape,
    obs_dtype=environment.obs_dtype,
    capacity=config.replay_capacity,
    num_envs=config.num_envs,
    n_step=config.n_step,
    max_episode_steps=environment.max_episode_steps,
    action_dim=environment.action_dim,
    **more,
  )
