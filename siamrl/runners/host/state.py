"""The state of a run of the host loop, and the statistics of an iteration."""

import base64
import dataclasses
from typing import Any
import zlib

import numpy as np

from siamrl.runners.host import seeding
from siamrl.runners.host.watching import Seen
from siamrl.types import TrainState

TIMERS = ('acting_s', 'emulating_s', 'sampling_s', 'learning_s', 'panel_s')


@dataclasses.dataclass
class Statistics:
  """Statistics of an iteration, with sums in float64.

  Attributes:
    running_returns: [N] unclipped score of each running episode.
    running_lengths: [N] env steps of each running episode.
    returns: unclipped score of each finished episode, in the order of ending.
    lengths: env steps of each finished episode.
    gradient_steps: number of gradient steps in `metric_sums`.
    metric_sums: sum over gradient steps of each metric of the loss.
    panel: the panel's metrics; empty before it is evaluated.
    seconds: wall-clock seconds by activity, see `TIMERS`.
  """

  running_returns: list[float]
  running_lengths: list[int]
  returns: list[float] = dataclasses.field(default_factory=list)
  lengths: list[int] = dataclasses.field(default_factory=list)
  gradient_steps: int = 0
  metric_sums: dict[str, float] = dataclasses.field(default_factory=dict)
  panel: dict[str, float] = dataclasses.field(default_factory=dict)
  seconds: dict[str, float] = dataclasses.field(
    default_factory=lambda: dict.fromkeys(TIMERS, 0.0)
  )

  @classmethod
  def zero(cls, num_envs: int) -> 'Statistics':
    """Returns the statistics at the beginning of an iteration."""
    return cls([0.0] * num_envs, [0] * num_envs)

  def count(self, reward: np.ndarray, ended: np.ndarray) -> None:
    """Counts one step of every environment.

    Args:
      reward: [N] raw.
      ended: bool [N] whether the step ended an episode.
    """
    # Lists are faster than arrays for few environments.
    for i, value in enumerate(reward.tolist()):
      self.running_returns[i] += value
      self.running_lengths[i] += 1
    if ended.any():
      for i in np.flatnonzero(ended).tolist():
        self.returns.append(self.running_returns[i])
        self.lengths.append(self.running_lengths[i])
        self.running_returns[i], self.running_lengths[i] = 0.0, 0


@dataclasses.dataclass
class LoopState:
  """State of a run between two rounds, except for its replay.

  Attributes:
    train: the learner's state.
    rng: draws the batches.
    env_steps: env steps of the run so far.
    iteration: the iteration under way, from 0.
    actions: int32 [N] or float32 [N, D] of each vector step since the iteration
      began.
    obs_crc: CRC-32 of the current observations; 0 at an iteration's start.
    statistics: statistics of the iteration so far.
    seen: the panel's state and probe; None without a panel.
    memory: state of the agent's noise, float32 [N, D]; None if it has none.
  """

  train: TrainState
  rng: np.random.Generator
  env_steps: int
  iteration: int
  actions: list[np.ndarray]
  obs_crc: int
  statistics: Statistics
  seen: Seen | None = None
  memory: np.ndarray | None = None

  def restart(self) -> None:
    """Abandons the running episodes, to go on with fresh environments."""
    running = Statistics.zero(len(self.statistics.running_returns))
    self.statistics.running_returns = running.running_returns
    self.statistics.running_lengths = running.running_lengths
    self.actions, self.obs_crc = [], 0

  @classmethod
  def start(
    cls,
    train: TrainState,
    *,
    seed: int,
    num_envs: int,
    seen: Seen | None = None,
  ) -> 'LoopState':
    """Returns the initial state of a run."""
    rng = np.random.default_rng(seeding.sequence(seed, seeding.SAMPLING))
    return cls(train, rng, 0, 0, [], 0, Statistics.zero(num_envs), seen)

  def to_json(self) -> dict[str, Any]:
    """Returns all but `train` and `seen` as JSON, for `from_json`."""
    actions = np.asarray(self.actions)
    if actions.dtype != np.float32:
      actions = actions.astype(np.uint8)
    return {
      'rng': self.rng.bit_generator.state,
      'env_steps': self.env_steps,
      'iteration': self.iteration,
      'actions': _pack(actions),
      'action_shape': actions.shape[1:],
      'memory': None if self.memory is None else _pack(self.memory),
      'obs_crc': self.obs_crc,
      'statistics': dataclasses.asdict(self.statistics),
    }

  @classmethod
  def from_json(
    cls, train: TrainState, data: dict[str, Any], seen: Seen | None = None
  ) -> 'LoopState':
    """Inverse of `to_json`, bit for bit."""
    rng = np.random.default_rng()
    rng.bit_generator.state = data['rng']
    statistics = Statistics(**data['statistics'])
    num_envs = len(statistics.running_returns)
    shape = data.get('action_shape') or [num_envs]
    continuous = len(shape) > 1
    actions = _unpack(data['actions'], np.float32 if continuous else np.uint8)
    if not continuous:
      actions = actions.astype(np.int32)
    memory = data.get('memory')
    if memory is not None:
      memory = _unpack(memory, np.float32).reshape(num_envs, -1)
    return cls(
      train,
      rng,
      data['env_steps'],
      data['iteration'],
      list(actions.reshape(-1, *shape)),
      data['obs_crc'],
      statistics,
      seen,
      memory,
    )


def _pack(array: np.ndarray) -> str:
  """Encodes an array's bytes as text."""
  return base64.b64encode(zlib.compress(array.tobytes())).decode()


def _unpack(text: str, dtype: Any) -> np.ndarray:
  """Inverse of `_pack`, flat."""
  return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)
