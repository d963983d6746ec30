"""The host loop: environments outside JAX, a replay in host memory.

One round collects `Schedule.collect` env steps and takes `Schedule.regress`
gradient steps. Its two orders, both free of any dependence on timing:

* exact: act, send, act, send, ... With the last action of the round on its way
  to the environments, the gradient steps are dispatched, so that emulators and
  learner work at once; the next action waits for both. Every action comes from
  the newest parameters. The batch cannot hold the one transition in flight.
* overlapped: the gradient steps are dispatched at the round's start and the
  whole round is acted beside them, with the parameters from before them: one
  round old. The batch holds nothing of the round being collected.

Runs are cut into iterations, and each begins with fresh environments, seeded by
the run's seed and the iteration's number (as in DQN Zoo), because emulators
cannot save themselves. Inside an iteration the actions since its start are
kept: sent to fresh environments they lead back to the same point, so that a run
can be stopped and resumed anywhere between two rounds.
"""

import base64
from collections.abc import Callable, Iterator
import dataclasses
import time
from typing import Any, NamedTuple
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from siamrl import schedule as schedules
from siamrl import twins
from siamrl.learner import Regress, make_regress_many
from siamrl.replay.host import HostReplay
from siamrl.types import Agent, Environments, Schedule, TrainState, Transition

# Streams of randomness derived from one seed; never reuse a number.
_TRAIN_ENVIRONMENTS, _EVAL_ENVIRONMENTS, _SAMPLING = range(3)

TIMERS = ('acting_s', 'emulating_s', 'sampling_s', 'learning_s')


class NonFiniteError(RuntimeError):
  """A loss or a parameter is infinite or not a number."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """How a run collects and learns.

  Attributes:
    schedule: speeds of the three processes; `collect` must be a multiple of
      the number of environments.
    total_env_steps: env steps of the whole run.
    iteration_env_steps: env steps of one iteration, a multiple of `collect`.
    warmup_env_steps: env steps before the first gradient step. A round takes
      its gradient steps if it began with at least so many.
    batch_size: transitions per gradient step.
    epsilon: env steps taken so far -> probability of a random action.
    reward_clip: rewards are clipped to [-reward_clip, reward_clip] before they
      are stored for learning; None for none.
    life_loss_terminates: whether a lost life cuts the bootstrap (the game goes
      on either way).
    overlapped: the order of a round, see above.
    chunk_env_steps: env steps between two yields, at least.
  """
  schedule: Schedule
  total_env_steps: int
  iteration_env_steps: int
  warmup_env_steps: int
  batch_size: int
  epsilon: Callable[[int], float]
  reward_clip: float | None = 1.0
  life_loss_terminates: bool = False
  overlapped: bool = False
  chunk_env_steps: int = 256


@dataclasses.dataclass
class Statistics:
  """What an iteration adds up; sums in float64.

  Attributes:
    running_returns: [N] true score of each environment's running episode.
    running_lengths: [N] its env steps.
    returns: true score of each episode that ended, in the order of ending.
    lengths: env steps of each of them.
    gradient_steps: gradient steps behind `metric_sums`.
    metric_sums: sum over gradient steps of each metric of the loss.
    seconds: wall-clock seconds by activity, see `TIMERS`.
  """
  running_returns: list[float]
  running_lengths: list[int]
  returns: list[float] = dataclasses.field(default_factory=list)
  lengths: list[int] = dataclasses.field(default_factory=list)
  gradient_steps: int = 0
  metric_sums: dict[str, float] = dataclasses.field(default_factory=dict)
  seconds: dict[str, float] = dataclasses.field(
      default_factory=lambda: dict.fromkeys(TIMERS, 0.0))

  @classmethod
  def zero(cls, num_envs: int) -> 'Statistics':
    return cls([0.0] * num_envs, [0] * num_envs)


@dataclasses.dataclass
class LoopState:
  """Where a run stands, between two rounds; the replay is kept beside it.

  Attributes:
    train: the learner's state.
    rng: draws the batches.
    env_steps: env steps of the run so far.
    iteration: the iteration under way, from 0.
    actions: int32 [N] actions of each vector step since the iteration began.
    obs_crc: CRC-32 of the current observations; 0 at an iteration's start.
    statistics: of the iteration so far.
  """
  train: TrainState
  rng: np.random.Generator
  env_steps: int
  iteration: int
  actions: list[np.ndarray]
  obs_crc: int
  statistics: Statistics

  @classmethod
  def start(cls, train: TrainState, *, seed: int, num_envs: int) -> 'LoopState':
    """The beginning of a run."""
    rng = np.random.default_rng(_seed_sequence(seed, _SAMPLING))
    return cls(train, rng, 0, 0, [], 0, Statistics.zero(num_envs))

  def to_json(self) -> dict[str, Any]:
    """All but `train`, as JSON; `from_json` brings it back bit for bit."""
    actions = np.asarray(self.actions, np.uint8).tobytes()
    return {
        'rng': self.rng.bit_generator.state,
        'env_steps': self.env_steps,
        'iteration': self.iteration,
        'actions': base64.b64encode(zlib.compress(actions)).decode(),
        'obs_crc': self.obs_crc,
        'statistics': dataclasses.asdict(self.statistics),
    }

  @classmethod
  def from_json(cls, train: TrainState, data: dict[str, Any]) -> 'LoopState':
    """Inverse of `to_json`."""
    rng = np.random.default_rng()
    rng.bit_generator.state = data['rng']
    statistics = Statistics(**data['statistics'])
    num_envs = len(statistics.running_returns)
    actions = np.frombuffer(
        zlib.decompress(base64.b64decode(data['actions'])), np.uint8)
    return cls(
        train, rng, data['env_steps'], data['iteration'],
        list(actions.reshape(-1, num_envs).astype(np.int32)),
        data['obs_crc'], statistics)


class Progress(NamedTuple):
  """What the loop yields.

  Attributes:
    state: where the run stands; changed in place when the loop goes on.
    metrics: None inside an iteration. When one has just ended, its row; `state`
      then stands at the beginning of the next.
  """
  state: LoopState
  metrics: dict[str, float] | None


def _seed_sequence(seed: int, *stream: int) -> np.random.SeedSequence:
  return np.random.SeedSequence(seed, spawn_key=stream)


def environment_seed(seed: int, iteration: int, *, evaluation: bool) -> int:
  """The seed of the environments of one iteration, in [0, 2**31).

  Args:
    seed: the run's.
    iteration: its number, from 0.
    evaluation: whether for evaluating rather than training.
  """
  stream = _EVAL_ENVIRONMENTS if evaluation else _TRAIN_ENVIRONMENTS
  state = _seed_sequence(seed, stream, iteration).generate_state(1)
  return int(state[0]) & 0x7fffffff


def make_act(agent: Agent) -> Callable[..., jax.Array]:
  """Jits acting: (params, obs, key, step, epsilon) -> int32 [N] actions.

  `key` is folded with `step`, so that a run needs no key of its own to be
  carried from action to action.
  """
  @jax.jit
  def act(params, obs, key, step, epsilon):
    return agent.act(params, obs, jax.random.fold_in(key, step), epsilon)

  return act


def train(
    config: LoopConfig,
    state: LoopState,
    *,
    agent: Agent,
    regress: Regress,
    replay: HostReplay,
    make_environments: Callable[[int], Environments],
    seed: int,
    act_key: jax.Array,
) -> Iterator[Progress]:
  """Runs from `state` to the end, yielding between rounds.

  Args:
    config: how to collect and learn.
    state: where to start; its `train` is donated.
    agent: acts.
    regress: takes one gradient step; jitted here.
    replay: as `state` left it.
    make_environments: seed -> fresh environments.
    seed: the run's; seeds the environments of each iteration.
    act_key: for exploration, folded with the env step.

  Yields:
    `Progress`, at least every `config.chunk_env_steps` env steps, after the
    first round that learns, and once at the end of each iteration.

  Raises:
    NonFiniteError: a loss or a parameter is not finite; names the gradient
      step. The state is then of no use.
    RuntimeError: fresh environments did not return to where a resumed run had
      stopped.
  """
  act = make_act(agent)
  steps = config.schedule.regress
  learn = jax.jit(
      regress if steps == 1 else make_regress_many(regress), donate_argnums=0)
  while state.env_steps < config.total_env_steps:
    environments = make_environments(
        environment_seed(seed, state.iteration, evaluation=False))
    try:
      collector = _Collector(
          config, state, environments, replay, act, act_key, learn)
      for name in _metric_names(learn, state.train, environments, config):
        state.statistics.metric_sums.setdefault(name, 0.0)
      collector.begin()
      target = min(
          (state.iteration + 1) * config.iteration_env_steps,
          config.total_env_steps)
      while state.env_steps < target:
        chunk_end = min(target, state.env_steps + config.chunk_env_steps)
        while state.env_steps < chunk_end:
          collector.round()
          if collector.began_to_learn:
            break
        collector.settle()
        yield Progress(state, None)
    finally:
      environments.close()
    metrics = _summary(config, state, environments.frames_per_step)
    state.iteration += 1
    state.actions, state.obs_crc = [], 0
    state.statistics = Statistics.zero(environments.num_envs)
    yield Progress(state, metrics)


class _Collector:
  """The inside of one iteration: environments, current observations."""

  def __init__(
      self, config, state, environments, replay, act, act_key, learn):
    self._config, self._state, self._replay = config, state, replay
    self._environments, self._act, self._learn = environments, act, learn
    self._act_key = act_key
    self._metrics: list[Any] = []
    num_envs, num_actions = environments.num_envs, environments.num_actions
    self._vector_steps, rest = divmod(config.schedule.collect, num_envs)
    if rest:
      raise ValueError(
          f'collect={config.schedule.collect} env steps per round must be a '
          f'multiple of num_envs={num_envs}')

    @jax.jit
    def explore(key, step):
      return jax.random.randint(
          jax.random.fold_in(key, step), (num_envs,), 0, num_actions, jnp.int32)

    self._explore = explore

  @property
  def began_to_learn(self) -> bool:
    """Whether the round that has just ended was the first to learn."""
    first = self._config.warmup_env_steps + self._config.schedule.collect
    return first <= self._state.env_steps < (
        first + self._config.schedule.collect)

  def begin(self) -> None:
    """Starts the iteration, or returns to where it had been left."""
    self._obs = self._environments.reset()
    if not self._state.actions:
      self._replay.start(self._obs[:, -1])
      return
    for actions in self._state.actions:
      self._environments.send(actions)
      self._obs = self._environments.recv().obs
    if zlib.crc32(self._obs) != self._state.obs_crc:
      raise RuntimeError(
          'the environments did not return to where this run had stopped: are '
          'they of another version than the one it was started with?')

  def round(self) -> None:
    """Collects `collect` env steps and takes `regress` gradient steps."""
    learns = self._state.env_steps >= self._config.warmup_env_steps
    overlapped = self._config.overlapped
    params = self._state.train.online_params
    if learns and overlapped:
      # The gradient step donates the state: acting needs its own copy.
      params = twins.copy(params)
      self._regress()
    for step in range(self._vector_steps):
      self._send(params)
      if learns and not overlapped and step == self._vector_steps - 1:
        self._regress()
      self._recv()
    if not overlapped:
      # The next action needs the result; waiting here tells the time that
      # learning takes from the time that acting takes.
      with self._timer('learning_s'):
        jax.block_until_ready(self._state.train)

  def settle(self) -> None:
    """Brings the metrics of the rounds since the last call to the host.

    Raises:
      NonFiniteError: a loss or a parameter is not finite.
    """
    state, statistics = self._state, self._state.statistics
    with self._timer('learning_s'):
      fetched = jax.device_get(self._metrics)
      finite = bool(_all_finite(state.train.online_params))
    self._metrics = []
    first = int(state.train.gradient_steps) - len(fetched) * (
        self._config.schedule.regress)
    for metrics in fetched:
      values = {name: np.ravel(value) for name, value in metrics.items()}
      for name, value in values.items():
        if not np.all(np.isfinite(value)):
          step = first + int(np.argmin(np.isfinite(value))) + 1
          raise NonFiniteError(
              f'{name}={value[step - first - 1]} at gradient step {step}')
        statistics.metric_sums[name] += float(np.sum(value, dtype=np.float64))
      taken = len(next(iter(values.values())))
      statistics.gradient_steps += taken
      first += taken
    if not finite:
      raise NonFiniteError(
          'online_params are not finite after gradient step '
          f'{int(state.train.gradient_steps)}')
    state.obs_crc = zlib.crc32(self._obs)

  def _send(self, params) -> None:
    state = self._state
    epsilon = self._config.epsilon(state.env_steps)
    step = np.uint32(state.env_steps)
    with self._timer('acting_s'):
      if epsilon >= 1:  # the network has no say, and is not asked
        actions = self._explore(self._act_key, step)
      else:
        actions = self._act(
            params, self._obs, self._act_key, step, np.float32(epsilon))
      actions = np.asarray(actions)
    with self._timer('emulating_s'):
      self._environments.send(actions)
    state.actions.append(actions)

  def _recv(self) -> None:
    config, state = self._config, self._state
    with self._timer('emulating_s'):
      step = self._environments.recv()
    with self._timer('sampling_s'):
      ended = step.terminated | step.truncated
      terminated = step.terminated
      if config.life_loss_terminates:
        terminated = terminated | step.life_lost
      reward = step.reward
      if config.reward_clip is not None:
        reward = np.clip(reward, -config.reward_clip, config.reward_clip)
      self._replay.add(
          state.actions[-1], reward, terminated, ended,
          step.final_obs[:, -1], step.obs[:, -1])
    self._obs = step.obs
    state.env_steps += len(reward)
    self._count(step.reward, ended)

  def _count(self, reward: np.ndarray, ended: np.ndarray) -> None:
    statistics = self._state.statistics
    for i, value in enumerate(reward.tolist()):
      statistics.running_returns[i] += value
      statistics.running_lengths[i] += 1
      if ended[i]:
        statistics.returns.append(statistics.running_returns[i])
        statistics.lengths.append(statistics.running_lengths[i])
        statistics.running_returns[i], statistics.running_lengths[i] = 0.0, 0

  def _regress(self) -> None:
    state, steps = self._state, self._config.schedule.regress
    with self._timer('sampling_s'):
      batches = [
          self._replay.sample(state.rng, self._config.batch_size)
          for _ in range(steps)]
      batch = batches[0]
      if steps > 1:
        batch = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    with self._timer('learning_s'):
      state.train, metrics = self._learn(state.train, batch)
    self._metrics.append(metrics)

  def _timer(self, name: str) -> '_Timer':
    return _Timer(self._state.statistics.seconds, name)


class _Timer:
  """Adds the wall-clock seconds of a `with` block to an entry of a dict."""

  def __init__(self, seconds: dict[str, float], name: str):
    self._seconds, self._name = seconds, name

  def __enter__(self) -> None:
    self._start = time.perf_counter()

  def __exit__(self, *exc) -> None:
    self._seconds[self._name] += time.perf_counter() - self._start


def _metric_names(learn, train_state, environments, config) -> list[str]:
  """Names of the metrics that `learn` will return, nothing being computed."""
  steps, size = config.schedule.regress, config.batch_size
  lead = (size,) if steps == 1 else (steps, size)
  obs = jax.ShapeDtypeStruct(
      (*lead, environments.stack, *environments.frame_shape),
      environments.frame_dtype)
  scalars = jax.ShapeDtypeStruct(lead, jnp.float32)
  actions = jax.ShapeDtypeStruct(lead, jnp.int32)
  batch = Transition(obs, actions, scalars, scalars, obs)
  _, metrics = learn.eval_shape(train_state, batch)
  return sorted(metrics)


@jax.jit
def _all_finite(params) -> jax.Array:
  return jnp.all(jnp.stack(
      [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))


def _summary(
    config: LoopConfig, state: LoopState, frames_per_step: int
) -> dict[str, float]:
  """The row of the iteration that has just ended."""
  statistics = state.statistics
  gradient_steps = int(state.train.gradient_steps)

  def mean(values: list) -> float:
    return float(np.mean(values)) if values else float('nan')

  row: dict[str, float] = {
      'iteration': state.iteration,
      'frames': state.env_steps * frames_per_step,
      'env_steps': state.env_steps,
      'gradient_steps': gradient_steps,
      'target_updates': schedules.syncs(gradient_steps, config.schedule.sync),
      'train_episodes': len(statistics.returns),
      'train_return': mean(statistics.returns),
      'train_episode_env_steps': mean(statistics.lengths),
      'epsilon': config.epsilon(state.env_steps),
  }
  for name, total in sorted(statistics.metric_sums.items()):
    row[name] = total / (statistics.gradient_steps or float('nan'))
  return row | statistics.seconds
