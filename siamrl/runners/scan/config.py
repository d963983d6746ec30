"""The configuration of the compiled loop, and the setup of a run."""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import chex
import jax

from siamrl import diagnostics
from siamrl.learner import Learner
from siamrl.parameters import FieldError
from siamrl.runners.returns import Returns
from siamrl.types import Schedule

# The settings of runs: any pytree of arrays, each leaf with one row per run.
Settings = Any


class Setup(NamedTuple):
  """Everything that a run's settings determine; its parts may hold tracers.

  Attributes:
    learner: acts and learns. The metrics of its loss must include those that
      the replay reads, one for each transition [B].
    epsilon: env steps taken so far, uint32 [] -> probability of a random
      action.
    discount: per env step.
    alpha: exponent of the priorities, for a prioritized replay.
    beta: env steps taken so far -> exponent of the importance weights, for a
      prioritized replay.
    returns: computes whole targets, for a replay that keeps a round in order.
      It is called once per round, and `learner.regress_to` learns from the
      targets. None to learn from transitions.
    reward_scale: rewards are multiplied by it before they are clipped and
      stored; reported returns never are.
    panel: measures the twin, or None.
    optimal: (observations [S, ...], optimal action values [S, A]) of an
      environment that is solved exactly, or None.
  """

  learner: Learner
  epsilon: Callable[[chex.Numeric], chex.Numeric]
  discount: chex.Numeric
  alpha: chex.Numeric = 0.0
  beta: Callable[[chex.Numeric], chex.Numeric] = lambda env_steps: 1.0
  returns: Returns | None = None
  reward_scale: chex.Numeric = 1.0
  panel: diagnostics.Panel | None = None
  optimal: tuple[jax.Array, jax.Array] | None = None


@dataclasses.dataclass(frozen=True)
class ScanConfig:
  """Configuration of collecting, learning and evaluation, shared by all runs.

  Attributes:
    schedule: rates of collecting and learning; `collect` must be a multiple of
      `num_envs`.
    num_envs: environments that each run steps in parallel.
    iteration_env_steps: env steps from one row of metrics (and evaluation) to
      the next, a multiple of `collect`.
    warmup_env_steps: env steps before the first gradient step.
    batch_size: transitions per gradient step.
    reward_clip: rewards are clipped to [-reward_clip, reward_clip] before they
      are stored for learning; None for no clipping. Reported returns never are.
    eval_episodes: episodes of each evaluation; 0 for none.
    eval_epsilon: probability of a random action in evaluation.
    eval_episode_env_steps: env steps after which an episode of an evaluation is
      cut.
    panel_period: iterations from one measurement of the panel to the next, if
      the learner has one.
    probe_size: transitions that the panel is evaluated on, drawn from the
      replay at the end of the first iteration and kept.

  Raises:
    ValueError: numbers of env steps are not multiples as above.
  """

  schedule: Schedule
  num_envs: int
  iteration_env_steps: int
  warmup_env_steps: int
  batch_size: int
  reward_clip: float | None = None
  eval_episodes: int = 0
  eval_epsilon: float = 0.0
  eval_episode_env_steps: int = 10_000
  panel_period: int = 1
  probe_size: int = 256

  def __post_init__(self) -> None:
    collect = self.schedule.collect
    if collect % self.num_envs:
      raise FieldError(
        'collect',
        collect,
        f'env steps per round must be a multiple of num_envs={self.num_envs}',
      )
    steps = self.iteration_env_steps
    if steps < 1 or steps % collect:
      raise FieldError(
        'iteration_env_steps',
        steps,
        f'must be a positive multiple of the round, {collect} env steps',
      )

  @property
  def rounds(self) -> int:
    """Number of rounds in an iteration."""
    return self.iteration_env_steps // self.schedule.collect

  @property
  def warmup_rounds(self) -> int:
    """Number of rounds before the first one that learns."""
    return -(-self.warmup_env_steps // self.schedule.collect)

  @property
  def vector_steps(self) -> int:
    """Number of steps of all environments in a round."""
    return self.schedule.collect // self.num_envs
