"""The configuration of the host loop."""

from collections.abc import Callable
import dataclasses

from siamrl.parameters import FieldError
from siamrl.types import Schedule


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """Configuration of a run's collecting and learning.

  Attributes:
    schedule: rates of collecting and learning; `collect` must be a multiple of
      the number of environments.
    total_env_steps: env steps of the whole run, a multiple of `collect`.
    iteration_env_steps: env steps of one iteration, a multiple of `collect`;
      the last one may be shorter.
    warmup_env_steps: env steps before the first gradient step. A round takes
      its gradient steps if at least this many were done when it began.
    batch_size: transitions per gradient step.
    epsilon: env steps taken so far -> probability of a random action.
    reward_scale: rewards are multiplied by it before they are clipped and
      stored; reported returns never are.
    reward_clip: rewards are clipped to [-reward_clip, reward_clip] before they
      are stored for learning; None for no clipping.
    life_loss_terminates: whether a lost life cuts the bootstrap; the game goes
      on either way.
    overlapped: the order of a round, see `runners.host`.
    chunk_env_steps: approximate env steps between two yields.

  Raises:
    ValueError: a number of env steps is not a multiple of `collect`.
  """

  schedule: Schedule
  total_env_steps: int
  iteration_env_steps: int
  warmup_env_steps: int
  batch_size: int
  epsilon: Callable[[int], float]
  reward_scale: float = 1.0
  reward_clip: float | None = 1.0
  life_loss_terminates: bool = False
  overlapped: bool = False
  chunk_env_steps: int = 256

  def __post_init__(self) -> None:
    for name in ('total_env_steps', 'iteration_env_steps'):
      value, collect = getattr(self, name), self.schedule.collect
      if value < 1 or value % collect:
        raise FieldError(
          name,
          value,
          f'must be a positive multiple of the round, {collect} env steps',
        )
