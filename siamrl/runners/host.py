"""The host loop: environments outside JAX, a replay in host memory.

One round collects `Schedule.collect` env steps and takes `Schedule.regress`
gradient steps. Its two orders, both free of any dependence on timing:

* exact: act, send, act, send, ... With the last action of the round on its way
  to the environments, the gradient steps are dispatched, so that emulators and
  learner work at once; the next action waits for both. Every action comes from
  the newest parameters. The batch cannot hold the one transition in flight.
  Where that is the round's only one, the batches are drawn and everything is
  dispatched while the gradient steps of the round before are under way.
* overlapped: the gradient steps are dispatched with the round's first action,
  and the whole round is acted with the parameters from before them: a round
  old. Devices run programs in order, so that it is the round's first step that
  the environments take beside the gradient steps. Where parallel environments
  make a round of one step each, both orders are the same.

A replay that reads what gradient steps report gets it between two rounds, in
either order: it then waits for the gradient steps of the round before. So what
a run computes does not depend on where it is stopped and resumed.

Runs are cut into iterations, and each begins with fresh environments, seeded by
the run's seed and the iteration's number (as in DQN Zoo), because emulators
cannot save themselves. Inside an iteration the actions since its start are
kept: sent to fresh environments they lead back to the same point, so that a run
can be stopped and resumed anywhere between two rounds.
"""

import base64
from collections.abc import Callable, Iterator
import dataclasses
import functools
import math
import time
from typing import Any, NamedTuple, NoReturn
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from siamrl import diagnostics, rewards
from siamrl import twins
from siamrl.learner import (
  Learner,
  Regress,
  Report,
  jit_regress,
  target_updates,
)
from siamrl.parameters import FieldError
from siamrl.replay.protocol import StatefulReplay
from siamrl.runners import evaluation
from siamrl.runners.errors import NonFiniteError
from siamrl.types import (
  Agent,
  Environments,
  Future,
  Metrics,
  Params,
  Schedule,
  TrainState,
  Transition,
  acting_of,
)

# Streams of randomness derived from one seed; never reuse a number.
_TRAIN_ENVIRONMENTS, _EVAL_ENVIRONMENTS, _SAMPLING, _PANEL = range(4)

TIMERS = ('acting_s', 'emulating_s', 'sampling_s', 'learning_s', 'panel_s')


class EnvironmentsChangedError(RuntimeError):
  """Fresh environments did not return to where a resumed run had stopped.

  They are of another version, or draw random numbers that their seed does not
  determine.
  """


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """How a run collects and learns.

  Attributes:
    schedule: speeds of collecting and learning; `collect` must be a multiple of
      the number of environments.
    total_env_steps: env steps of the whole run, a multiple of `collect`.
    iteration_env_steps: env steps of one iteration, a multiple of `collect`;
      of the last one, what is left.
    warmup_env_steps: env steps before the first gradient step. A round takes
      its gradient steps if it began with at least so many.
    batch_size: transitions per gradient step.
    epsilon: env steps taken so far -> probability of a random action.
    reward_scale: rewards are multiplied by it before they are clipped and
      stored; reported returns never are.
    reward_clip: rewards are clipped to [-reward_clip, reward_clip] before they
      are stored for learning; None for none.
    life_loss_terminates: whether a lost life cuts the bootstrap (the game goes
      on either way).
    overlapped: the order of a round, see above.
    chunk_env_steps: env steps between two yields, about.

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
    panel: what the panel has measured; empty before.
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
    """Those of an iteration that begins."""
    return cls([0.0] * num_envs, [0] * num_envs)

  def count(self, reward: np.ndarray, ended: np.ndarray) -> None:
    """Counts one step of every environment.

    Args:
      reward: [N] raw.
      ended: bool [N] whether an episode ended with it.
    """
    # Lists, not arrays: for few environments they are the faster ones.
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
  """Where a run stands, between two rounds; the replay is kept beside it.

  Attributes:
    train: the learner's state.
    rng: draws the batches.
    env_steps: env steps of the run so far.
    iteration: the iteration under way, from 0.
    actions: of each vector step since the iteration began, int32 [N] or float32
      [N, D].
    obs_crc: CRC-32 of the current observations; 0 at an iteration's start.
    statistics: of the iteration so far.
    seen: what the panel remembers and its probe; None without one.
    memory: of the agent's noise, float32 [N, D]; None where it has none.
  """

  train: TrainState
  rng: np.random.Generator
  env_steps: int
  iteration: int
  actions: list[np.ndarray]
  obs_crc: int
  statistics: Statistics
  seen: 'Seen | None' = None
  memory: np.ndarray | None = None

  def restart(self) -> None:
    """Gives up the running episodes, for fresh environments to go on with."""
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
    seen: 'Seen | None' = None,
  ) -> 'LoopState':
    """The beginning of a run."""
    rng = np.random.default_rng(_seed_sequence(seed, _SAMPLING))
    return cls(train, rng, 0, 0, [], 0, Statistics.zero(num_envs), seen)

  def to_json(self) -> dict[str, Any]:
    """All but `train` and `seen`, as JSON; `from_json` brings it back."""
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
    cls, train: TrainState, data: dict[str, Any], seen: 'Seen | None' = None
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
  """Its bytes as text."""
  return base64.b64encode(zlib.compress(array.tobytes())).decode()


def _unpack(text: str, dtype: Any) -> np.ndarray:
  """Inverse of `_pack`, flat."""
  return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


class Seen(NamedTuple):
  """What belongs to a run's panel.

  Attributes:
    panel: what it remembers.
    probe: [P] transitions that it looks at; all zeros before they are drawn.
  """

  panel: diagnostics.PanelState
  probe: Transition


@dataclasses.dataclass(frozen=True)
class Watch:
  """The panel of a run, and when it is looked at.

  Attributes:
    panel: measures the twin.
    period: iterations from one measurement to the next, >= 1.
    probe_size: transitions that it looks at, drawn from the replay at the first
      measurement, in the first iteration, and kept.
  """

  panel: diagnostics.Panel
  period: int
  probe_size: int

  def start(
    self,
    train: TrainState,
    obs_shape: tuple[int, ...],
    obs_dtype: Any,
    action_dim: int = 0,
    sequence_steps: int = 0,
  ) -> Seen:
    """What belongs to it before the first gradient step.

    Args:
      train: fresh.
      obs_shape: [S, ...] of an observation.
      obs_dtype: of an observation.
      action_dim: D of continuous actions, else 0.
      sequence_steps: the replay's.
    """
    batch = batch_shape(
      obs_shape, obs_dtype, action_dim, self.probe_size, sequence_steps
    )
    probe = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)
    return Seen(jax.jit(self.panel.init)(train, probe), probe)


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
  return int(state[0]) & 0x7FFFFFFF


@functools.lru_cache(maxsize=8)
def make_act(agent: Agent) -> Callable[..., jax.Array]:
  """Jits acting where an agent is evaluated.

  The same agent gets the same function, so that only the first of many
  evaluations compiles it.

  Returns:
    (params, obs, key, step, epsilon) -> actions. `key` is folded with `step`,
    so that a run needs no key of its own to be carried from action to action.
  """
  acting = acting_of(agent)

  @jax.jit
  def act(params, obs, key, step, epsilon):
    noise = acting.noise(jax.random.fold_in(key, step), len(obs))
    return acting.play(params, obs, noise, epsilon)

  return act


@functools.lru_cache(maxsize=8)
def make_values(agent: Agent) -> Callable[[Params, Any], jax.Array]:
  """Jits what an agent expects: (params, obs [N, ...]) -> max_a Q, [N]."""
  return jax.jit(lambda params, obs: jnp.max(agent.values(params, obs), -1))


def overestimation(
  config: LoopConfig, record: evaluation.Record, discount: float
) -> dict[str, float]:
  """How far values are off in an evaluation; see `diagnostics.overestimation`.

  Args:
    config: how rewards are learnt from, and whether a lost life ends a return.
    record: of the evaluation.
    discount: per env step.

  Returns:
    Columns of metrics.csv, as compiled runs have them.
  """
  terminated = record.terminated
  if config.life_loss_terminates:
    terminated = terminated | record.life_lost
  # Few shapes to compile: what is beyond the end is not counted.
  steps = len(record.reward)
  beyond = ((0, (1 << (steps - 1).bit_length()) - steps), (0, 0))
  # What the recording does not see the end of is cut.
  truncated = record.truncated.copy()
  truncated[-1] |= ~terminated[-1]
  learnt = rewards.learnt(
    record.reward, config.reward_scale, config.reward_clip
  )
  known = diagnostics.monte_carlo(
    np.pad(learnt, beyond),
    np.pad(terminated, beyond),
    np.pad(truncated, beyond),
    discount,
  )
  bias = diagnostics.overestimation(
    np.pad(record.values, beyond),
    *known,
    counted=np.pad(record.counted, beyond),
  )
  return {f'panel/{name}': float(value) for name, value in bias.items()}


def _make_explore(agent: Agent) -> Callable[..., tuple[jax.Array, Any]]:
  """Jits acting where an agent learns.

  Returns:
    (params, obs, key, step, epsilon, memory) -> (actions, memory).
  """
  acting = acting_of(agent)

  @jax.jit
  def act(params, obs, key, step, epsilon, memory):
    noise = acting.noise(jax.random.fold_in(key, step), len(obs))
    if acting.process is not None:
      memory, noise = acting.process.step(memory, noise)
    return acting.act(params, obs, noise, epsilon), memory

  return act


def train(
  config: LoopConfig,
  state: LoopState,
  *,
  learner: Learner,
  replay: StatefulReplay,
  make_environments: Callable[[int], Environments],
  seed: int,
  act_key: jax.Array,
  watch: Watch | None = None,
  on_change: Callable[[], None] | None = None,
) -> Iterator[Progress]:
  """Runs from `state` to the end, yielding between rounds.

  Args:
    config: how to collect and learn.
    state: where to start; its `train` is donated.
    learner: acts and learns; its gradient steps are jitted here.
    replay: as `state` left it.
    make_environments: seed -> fresh environments.
    seed: the run's; seeds the environments of each iteration.
    act_key: for exploration, folded with the env step.
    watch: the twin's panel. Another part of each iteration is looked at, or a
      twin whose period divides it would always be just copied.
    on_change: called where a resumed run does not return to where it had
      stopped, before it goes on with fresh environments: their running episodes
      are truncated there, and the run is no longer bit for bit the one that was
      never stopped. None to raise an error instead.

  Yields:
    `Progress`: inside an iteration every `config.chunk_env_steps` env steps and
    after the first round that learns, and then once at its end, with its row.
    While a resumed iteration returns to where it was, the state stands still.

  Raises:
    NonFiniteError: a loss or a parameter is not finite; names the gradient
      step. The state is then of no use.
    EnvironmentsChangedError: fresh environments did not return to where a
      resumed run had stopped, and there is no `on_change`.
  """
  loop = _Loop(config, state, replay, learner, act_key, seed, watch)
  while state.env_steps < config.total_env_steps:
    make = functools.partial(
      make_environments,
      environment_seed(seed, state.iteration, evaluation=False),
    )
    environments = make()
    try:
      try:
        for _ in loop.begin(environments):
          yield Progress(state, None)
      except EnvironmentsChangedError:
        if on_change is None:
          raise
        on_change()
        environments.close()
        environments = make()
        state.restart()
        for _ in loop.begin(environments):
          yield Progress(state, None)
      end = min(
        (state.iteration + 1) * config.iteration_env_steps,
        config.total_env_steps,
      )
      while state.env_steps < end:
        loop.chunk(end)
        if state.env_steps < end:
          yield Progress(state, None)
    finally:
      environments.close()
    yield Progress(state, loop.end())


class _Loop:
  """What a run needs to advance its state, round by round.

  For each iteration: `begin`, then `chunk` to its end, then `end`.
  """

  _environments: Environments
  _obs: np.ndarray  # the current observations
  # Memory of the agent's noise at the start of episodes.
  _calm: np.ndarray | None = None

  def __init__(
    self,
    config: LoopConfig,
    state: LoopState,
    replay: StatefulReplay,
    learner: Learner,
    act_key: jax.Array,
    seed: int,
    watch: Watch | None,
  ):
    self._seed, self._watch = seed, watch
    if watch is not None:
      self._measure_panel = jax.jit(watch.panel.measure, donate_argnums=0)
      self._follow_panel = jax.jit(watch.panel.follow, donate_argnums=0)
    self._config, self._state, self._replay = config, state, replay
    self._learner, self._act_key = learner, act_key
    self._act = _make_explore(learner.agent)
    self._learn = jit_regress(learner.regress, replay.reads)
    # Of the rounds since `_settle`, not waited for.
    self._reports: list[Report] = []
    # Of the last round, until `_hand_over`.
    self._last: tuple[list[Any], list[Report]] = [], []

  def begin(self, environments: Environments) -> Iterator[None]:
    """Starts the iteration, or returns to where it had been left.

    Yields:
      None, now and then on the way back; the state is as it was left.
    """
    config, state = self._config, self._state
    if config.schedule.collect % environments.num_envs:
      raise FieldError(
        'collect',
        config.schedule.collect,
        'env steps per round must be a multiple of '
        f'num_envs={environments.num_envs}',
      )
    if environments.num_actions > 256:
      raise FieldError(
        'num_actions',
        environments.num_actions,
        'must be at most 256: a checkpoint keeps each action in a byte',
      )
    self._environments, self._obs = environments, environments.reset()
    process = acting_of(self._learner.agent).process
    if process is not None:
      self._calm = np.asarray(process.init(environments.num_envs))
    for step, actions in enumerate(state.actions, 1):
      environments.send(actions)
      self._obs = environments.recv().obs
      if step % config.chunk_env_steps == 0:
        yield
    if not state.actions:
      self._replay.start(self._obs[:, -1])
      state.memory = self._calm
    elif _crc(self._obs) != state.obs_crc:
      raise EnvironmentsChangedError(
        'the environments did not return to where this run had stopped: are '
        'they of another version than the one it was started with, or do they '
        'ignore their seed?'
      )
    # So that an iteration that learns nothing has the columns of the others.
    for name in _metric_names(
      self._learner.regress,
      state.train,
      environments,
      config.batch_size,
      self._replay.sequence_steps,
    ):
      state.statistics.metric_sums.setdefault(name, 0.0)

  def chunk(self, end: int) -> None:
    """Runs rounds until a chunk is full, the run's first has learnt, or `end`.

    Args:
      end: env steps of the run at which the iteration ends.
    """
    config, state = self._config, self._state
    end = min(end, state.env_steps + config.chunk_env_steps)
    first = config.warmup_env_steps
    while state.env_steps < end:
      began = state.env_steps
      self._round(learns=began >= first)
      if first <= began < first + config.schedule.collect:
        break
    self._settle()
    self._hand_over()
    self._look()

  def _look(self) -> None:
    """Looks at the panel, if it is time to."""
    state, watch = self._state, self._watch
    if watch is None or state.statistics.panel:
      return
    share = diagnostics.panel_share(state.iteration)
    begin = state.iteration * self._config.iteration_env_steps
    end = min(
      begin + self._config.iteration_env_steps, self._config.total_env_steps
    )
    if state.env_steps - begin < share * (end - begin):
      return
    first = state.iteration == 0
    if not first and (state.iteration + 1) % watch.period:
      return
    rng = np.random.default_rng(
      _seed_sequence(self._seed, _PANEL, state.iteration)
    )
    assert state.seen is not None
    panel, probe = state.seen
    with self._timer('panel_s'):
      if first:
        drawn = self._replay.peek(rng, watch.probe_size)
        probe = jax.tree.map(jnp.asarray, drawn)
      batch = self._replay.peek(rng, self._config.batch_size)
      panel, metrics = self._measure_panel(panel, state.train, probe, batch)
      fetched = jax.device_get(metrics)
    state.seen = Seen(panel, probe)
    state.statistics.panel = {
      name: float(value) for name, value in fetched.items()
    }

  def end(self) -> dict[str, float]:
    """Turns to the next iteration; returns the row of the one that ended."""
    state, environments = self._state, self._environments
    row = _summary(
      self._config, self._learner, state, environments.frames_per_step
    )
    if self._watch is None:
      del row['panel_s']
    row |= self._panel_columns()
    state.iteration += 1
    state.actions, state.obs_crc = [], 0
    state.statistics = Statistics.zero(environments.num_envs)
    return row

  def _panel_columns(self) -> dict[str, float]:
    """What the panel said; NaNs in an iteration in which it was not asked."""
    state, watch = self._state, self._watch
    if watch is None:
      return {}
    measured = state.statistics.panel
    if not measured:
      assert state.seen is not None
      panel, probe = state.seen
      _, shapes = jax.eval_shape(
        watch.panel.measure, panel, state.train, probe, probe
      )
      measured = dict.fromkeys(shapes, float('nan'))
    return {f'panel/{name}': value for name, value in measured.items()}

  def _round(self, *, learns: bool) -> None:
    """Collects `collect` env steps and takes `regress` gradient steps."""
    self._hand_over()
    vector_steps = self._config.schedule.collect // self._environments.num_envs
    beside_first = learns and (self._config.overlapped or vector_steps == 1)
    beside_last = learns and not beside_first
    params = self._state.train.online_params
    if beside_first and vector_steps > 1:
      # The gradient step donates the state: later actions need their own copy.
      params = _copy(params)
    drawn = self._sample() if beside_first else []
    for to_go in reversed(range(vector_steps)):
      # Devices run programs in order: an action is dispatched before gradient
      # steps, or it would wait for them.
      chosen, before = self._choose(params), self._reports[-1:]
      if drawn:
        self._regress(drawn)
        drawn = []
      # Waiting here tells the time that learning takes from that of acting.
      with self._timer('learning_s'):
        jax.block_until_ready([report.means for report in before])
      self._send(*chosen)
      if beside_last and not to_go:
        self._regress(self._sample())
      self._recv()

  def _settle(self) -> None:
    """Brings the metrics of the rounds since the last call to the host.

    Raises:
      NonFiniteError: a loss or a parameter is not finite.
    """
    state, statistics = self._state, self._state.statistics
    state.obs_crc = _crc(self._obs)
    if not self._reports:
      return
    steps = [report.steps for report in self._reports]
    with self._timer('learning_s'):
      fetched = jax.device_get([report.means for report in self._reports])
      finite = bool(_all_finite(state.train.online_params))
    self._reports = []
    last = int(state.train.gradient_steps)
    before = last - sum(steps)
    for metrics, taken in zip(fetched, steps, strict=True):
      for name, values in metrics.items():
        total = float(np.sum(values, dtype=np.float64))
        if not math.isfinite(total):
          _blame(metrics, before)
        statistics.metric_sums[name] += total
      statistics.gradient_steps += taken
      before += taken
    if not finite:
      raise NonFiniteError(
        f'online_params are not finite after gradient step {last}'
      )

  def _hand_over(self) -> None:
    """Gives the replay what it reads of the last round's gradient steps."""
    (handles, reports), self._last = self._last, ([], [])
    if not self._replay.reads or not handles:
      return
    with self._timer('learning_s'):
      read = [each for report in reports for each in _separate(report)]
    with self._timer('sampling_s'):
      for handle, metrics in zip(handles, read, strict=True):
        self._replay.update(handle, metrics)

  def _choose(self, params: Params) -> tuple[Any, Any]:
    """Dispatches acting on the current observations.

    Returns:
      Actions, and the memory of the noise, either perhaps still on their way.
    """
    state, environments = self._state, self._environments
    epsilon = self._config.epsilon(state.env_steps)
    step = np.uint32(state.env_steps)
    with self._timer('acting_s'):
      if epsilon >= 1:  # the network has no say, and is not asked
        actions = _anything(
          self._act_key,
          step,
          environments.num_envs,
          environments.num_actions,
          environments.action_dim,
        )
        return actions, state.memory
      return self._act(
        params,
        self._obs,
        self._act_key,
        step,
        np.float32(epsilon),
        state.memory,
      )

  def _send(self, chosen: Any, memory: Any) -> None:
    """Sends the environments what `_choose` has chosen.

    Raises:
      NonFiniteError: an action is not finite.
    """
    state = self._state
    with self._timer('acting_s'):
      # Copies: a view would keep the device's buffer, of kilobytes, alive for
      # as long as the iteration remembers its actions.
      actions = np.array(chosen)
      state.memory = None if memory is None else np.array(memory)
    if not evaluation.are_finite(actions):
      self._settle()  # names the gradient step, where a loss tells it
      raise NonFiniteError(
        'an action was not finite by gradient step '
        f'{int(state.train.gradient_steps)}'
      )
    with self._timer('emulating_s'):
      self._environments.send(actions)
    state.actions.append(actions)

  def _recv(self) -> None:
    """Stores the answer to the last actions."""
    config, state = self._config, self._state
    with self._timer('emulating_s'):
      step = self._environments.recv()
    with self._timer('sampling_s'):
      ended = step.terminated | step.truncated
      if self._calm is not None and ended.any():
        assert state.memory is not None
        state.memory = np.where(ended[:, None], self._calm, state.memory)
      terminated = step.terminated
      if config.life_loss_terminates:
        terminated = terminated | step.life_lost
      reward = rewards.learnt(
        step.reward, config.reward_scale, config.reward_clip
      )
      self._replay.add(
        action=state.actions[-1],
        reward=reward,
        terminated=terminated,
        ended=ended,
        final_obs=step.final_obs[:, -1],
        obs=step.obs[:, -1],
      )
    self._obs = step.obs
    state.env_steps += len(reward)
    state.statistics.count(step.reward, ended)

  def _sample(self) -> list[tuple[Transition, Any]]:
    """Draws the batches of a round, each with the replay's handle."""
    config = self._config
    with self._timer('sampling_s'):
      return [
        self._replay.sample(self._state.rng, config.batch_size)
        for _ in range(config.schedule.regress)
      ]

  def _regress(self, drawn: list[tuple[Transition, Any]]) -> None:
    """Dispatches the gradient steps of a round, and does not wait for them."""
    state = self._state
    with self._timer('learning_s'):
      state.train, reports = self._learn(
        state.train, [batch for batch, _ in drawn]
      )
    self._reports += reports
    self._last = [handle for _, handle in drawn], reports
    if self._watch is not None and self._watch.panel.follows:
      assert state.seen is not None
      panel = self._follow_panel(state.seen.panel, state.train)
      state.seen = state.seen._replace(panel=panel)

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


def _separate(report: Report) -> list[Metrics]:
  """What each gradient step of a dispatch reported of its transitions."""
  read = jax.device_get(report.read)
  if report.steps == 1:
    return [read]
  return [
    {name: values[step] for name, values in read.items()}
    for step in range(report.steps)
  ]


def _metric_names(
  regress: Regress,
  train_state: TrainState,
  environments: Environments,
  batch_size: int,
  sequence_steps: int,
) -> list[str]:
  """Names of the metrics that `regress` will return; nothing is computed."""
  obs_shape = (environments.stack, *environments.frame_shape)
  batch = batch_shape(
    obs_shape,
    environments.frame_dtype,
    environments.action_dim,
    batch_size,
    sequence_steps,
  )
  _, metrics = jax.eval_shape(regress, train_state, batch)
  return sorted(metrics)


def batch_shape(
  obs_shape: tuple[int, ...],
  obs_dtype: Any,
  action_dim: int,
  batch_size: int,
  sequence_steps: int,
) -> Transition:
  """Shapes and types of a batch.

  Args:
    obs_shape: [S, ...] of an observation.
    obs_dtype: of an observation.
    action_dim: D of continuous actions, else 0.
    batch_size: B.
    sequence_steps: the replay's.
  """

  def observed(*lead: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*lead, *obs_shape), obs_dtype)

  def acted(*lead: int) -> jax.ShapeDtypeStruct:
    if action_dim:
      return jax.ShapeDtypeStruct((*lead, action_dim), jnp.float32)
    return jax.ShapeDtypeStruct(lead, jnp.int32)

  one, several = (batch_size,), (batch_size, sequence_steps)
  scalars = jax.ShapeDtypeStruct(one, jnp.float32)
  mask = jax.ShapeDtypeStruct(several, bool)
  return Transition(
    observed(*one),
    acted(*one),
    scalars,
    scalars,
    observed(*one),
    future=Future(acted(*several), observed(*several), mask)
    if sequence_steps
    else None,
  )


def _crc(obs: np.ndarray) -> int:
  return zlib.crc32(np.ascontiguousarray(obs).data)


def _blame(metrics: Metrics, before: int) -> NoReturn:
  """Raises the error that names the first gradient step gone wrong.

  Args:
    metrics: of one round, [] or [K]; at least one is not finite.
    before: gradient steps before the round.
  """
  step, name, value = min(
    (step, name, float(value))
    for name, values in metrics.items()
    for step, value in enumerate(np.ravel(values), before + 1)
    if not np.isfinite(value)
  )
  raise NonFiniteError(f'{name}={value} at gradient step {step}')


_copy = jax.jit(twins.copy)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _anything(
  key: jax.Array,
  step: jax.Array,
  num_envs: int,
  num_actions: int,
  action_dim: int,
) -> jax.Array:
  """Acts uniformly at random; int32 [N], or float32 [N, D]."""
  key = jax.random.fold_in(key, step)
  if action_dim:
    return jax.random.uniform(key, (num_envs, action_dim), minval=-1.0)
  return jax.random.randint(key, (num_envs,), 0, num_actions, jnp.int32)


@jax.jit
def _all_finite(params: Params) -> jax.Array:
  return jnp.all(
    jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)])
  )


def _summary(
  config: LoopConfig, learner: Learner, state: LoopState, frames_per_step: int
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
    'target_updates': int(target_updates(learner, state.train)),
    'train_episodes': len(statistics.returns),
    'train_return': mean(statistics.returns),
    'train_episode_env_steps': mean(statistics.lengths),
    'epsilon': config.epsilon(state.env_steps),
  }
  for name, total in sorted(statistics.metric_sums.items()):
    row[name] = total / (statistics.gradient_steps or float('nan'))
  return row | statistics.seconds
