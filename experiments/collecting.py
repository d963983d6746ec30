"""What the launchers of compiled runs that act share.

They collect with environments that are JAX functions and learn from a replay on
the device; `runners.scan` runs them.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from experiments.config.collecting import CollectOptions, make_schedule
from siamrl.augment import Augmentation
from siamrl.envs.tabular import TabularMDP
from siamrl.replay.device import DeviceReplay
from siamrl.runners import scan
from siamrl.types import JaxEnvironment


@dataclasses.dataclass(frozen=True)
class Task:
  """What a launcher makes of the environment's part of a configuration.

  Attributes:
    name: of the environment, for folders and titles.
    environment: what to act in.
    network: number of actions -> network; None where the family makes it.
    packed: whether its boolean observations are stored a bit each.
    process: behind the environment, if its values are known exactly.
    eval_environment: where to evaluate, if elsewhere.
    augment: what is done to each observation that is learnt from.
  """

  name: str
  environment: JaxEnvironment
  network: Callable[[int], Any] | None = None
  packed: bool = False
  process: TabularMDP | None = None
  eval_environment: JaxEnvironment | None = None
  augment: Augmentation | None = None


def make_config(config: CollectOptions) -> scan.ScanConfig:
  """How the runs collect and learn."""
  return scan.ScanConfig(
    schedule=make_schedule(config),
    num_envs=config.num_envs,
    iteration_env_steps=config.iteration_env_steps,
    warmup_env_steps=config.min_replay,
    batch_size=config.batch_size,
    reward_clip=config.reward_clip or None,
    eval_episodes=config.eval_episodes,
    eval_epsilon=config.eval_epsilon,
    eval_episode_env_steps=config.eval_episode_env_steps,
    panel_period=max(config.panel_period, 1),
    probe_size=config.probe_size,
  )


def make_replay(config: CollectOptions, task: Task) -> DeviceReplay:
  """A uniform replay."""
  environment = task.environment
  return DeviceReplay(
    obs_shape=environment.obs_shape,
    obs_dtype=environment.obs_dtype,
    capacity=config.replay_capacity,
    num_envs=config.num_envs,
    n_step=config.n_step,
    max_episode_steps=environment.max_episode_steps,
    packed=task.packed,
    action_dim=environment.action_dim,
  )
