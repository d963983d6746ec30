"""Rounds, chunks and iterations of the host loop."""

from collections.abc import Callable, Iterator
import functools
import math
import time
from typing import Any, NamedTuple, NoReturn
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from siamrl import diagnostics, rewards, twins
from siamrl.learner import (
  Learner,
  Regress,
  Report,
  jit_regress,
  mean_of,
  target_updates,
)
from siamrl.parameters import FieldError
from siamrl.replay.protocol import StatefulReplay
from siamrl.replay.rollout import HostRollout
from siamrl.runners import evaluation
from siamrl.runners.errors import NonFiniteError
from siamrl.runners.host import seeding
from siamrl.runners.host.batches import batch_shape
from siamrl.runners.host.config import LoopConfig
from siamrl.runners.host.epochs import Epochs, jit_epochs
from siamrl.runners.host.state import LoopState, Statistics
from siamrl.runners.host.watching import Seen, Watch
from siamrl.runners.returns import Returns
from siamrl.types import (
  Agent,
  Environments,
  Metrics,
  Params,
  TrainState,
  Transition,
  acting_of,
)


class EnvironmentsChangedError(RuntimeError):
  """Error: fresh environments did not return to where a resumed run stopped.

  They have another version, or draw random numbers that their seed does not
  determine.
  """


class Progress(NamedTuple):
  """Progress of a run, as the loop yields it.

  Attributes:
    state: current state of the run, which the loop changes in place.
    metrics: None inside an iteration; after its end, its row. `state` is then
      that at the beginning of the next.
  """

  state: LoopState
  metrics: dict[str, float] | None


def _make_explore(agent: Agent) -> Callable[..., tuple[jax.Array, Any]]:
  """Jits acting for the training of an agent.

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
  returns: Returns | None = None,
  watch: Watch | None = None,
  on_change: Callable[[], None] | None = None,
) -> Iterator[Progress]:
  """Runs from `state` to the end, yielding between rounds.

  Args:
    config: configuration of collecting and learning.
    state: state to start from; its `train` is donated.
    learner: acts and learns; its gradient steps are jitted here.
    replay: the replay that belongs to `state`.
    make_environments: seed -> fresh environments.
    seed: seed of the run; seeds the environments of each iteration.
    act_key: random key for exploration, folded with the env step.
    returns: computes whole targets of a round, which the replay, a
      `HostRollout`, keeps in order; its gradient steps are whole epochs. None
      to learn from transitions: those of such a round, or batches that another
      replay draws.
    watch: the twin's panel. It is evaluated at a different point of each
      iteration, as a twin whose period divides it would always be just copied.
    on_change: called if a resumed run does not return to where it had stopped,
      before it goes on with fresh environments. Their running episodes are
      truncated there, and the run then differs from one that was never stopped.
      None to raise an error instead.

  Yields:
    `Progress`: inside an iteration every `config.chunk_env_steps` env steps and
    after the first round that learns, and then once at its end, with its row.
    While a resumed iteration is replayed, the state does not change.

  Raises:
    NonFiniteError: a loss, a parameter or what the replay reads is not finite;
      names the gradient step. The state is then unusable.
    EnvironmentsChangedError: fresh environments did not return to where a
      resumed run had stopped, and `on_change` is None.
  """
  loop = _Loop(config, state, replay, learner, act_key, seed, returns, watch)
  while state.env_steps < config.total_env_steps:
    make = functools.partial(
      make_environments,
      seeding.environment_seed(seed, state.iteration, evaluation=False),
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
  """Advances the state of a run, round by round.

  For each iteration call `begin`, then `chunk` until its end, then `end`.
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
    returns: Returns | None,
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
    self._epochs: Epochs | None = None
    self._regress_of_rows = (
      learner.regress if returns is None else learner.regress_to
    )
    if returns is not None or isinstance(replay, HostRollout):
      _check_rollout(config, replay)
      self._epochs = jit_epochs(learner, returns)
    # Reports of the rounds since `_settle`, which may still be computing.
    self._reports: list[Report] = []
    # Handles and reports of the last round, until `_hand_over`.
    self._last: tuple[list[Any], list[Report]] = [], []

  def begin(self, environments: Environments) -> Iterator[None]:
    """Starts the iteration, or replays a resumed one to where it had stopped.

    Yields:
      None, now and then during the replay; the state does not change.
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
    # An iteration that learns nothing must have the same columns as others.
    for name in _metric_names(
      self._regress_of_rows,
      state.train,
      environments,
      config.batch_size,
      self._replay.sequence_steps,
    ):
      state.statistics.metric_sums.setdefault(name, 0.0)

  def chunk(self, end: int) -> None:
    """Runs rounds up to a chunk's end, the first that learns, or `end`.

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
    """Evaluates the panel, if it is due."""
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
      seeding.sequence(self._seed, seeding.PANEL, state.iteration)
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
    """Moves on to the next iteration; returns the row of the one that ended."""
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
    """Returns the panel's columns; NaNs if it was not evaluated."""
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
    beside = learns and self._epochs is None
    beside_first = beside and (self._config.overlapped or vector_steps == 1)
    beside_last = beside and not beside_first
    params = self._learner.acting_params(self._state.train)
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
      # Waiting here separates the time of learning from that of acting.
      with self._timer('learning_s'):
        jax.block_until_ready([report.means for report in before])
      self._send(*chosen)
      if beside_last and not to_go:
        self._regress(self._sample())
      self._recv()
    if learns and not beside:
      self._regress_epochs()

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
    """Gives the replay the last round's metrics that it reads.

    Raises:
      NonFiniteError: one of them is not finite.
    """
    (handles, reports), self._last = self._last, ([], [])
    if not self._replay.reads or not handles:
      return
    with self._timer('learning_s'):
      read = [each for report in reports for each in _separate(report)]
    self._check_read(read)
    with self._timer('sampling_s'):
      for handle, metrics in zip(handles, read, strict=True):
        self._replay.update(handle, metrics)

  def _check_read(self, read: list[Metrics]) -> None:
    """Raises NonFiniteError for what the last gradient steps reported."""
    first = int(self._state.train.gradient_steps) - len(read) + 1
    for step, metrics in enumerate(read, first):
      for name, values in metrics.items():
        if not np.isfinite(values).all():
          self._settle()  # names what came first, such as a loss
          raise NonFiniteError(f'{name} is not finite at gradient step {step}')

  def _choose(self, params: Params) -> tuple[Any, Any]:
    """Dispatches acting on the current observations.

    Returns:
      Actions and the memory of the noise, both possibly still computing.
    """
    state, environments = self._state, self._environments
    epsilon = self._config.epsilon(state.env_steps)
    step = np.uint32(state.env_steps)
    with self._timer('acting_s'):
      if epsilon >= 1:  # the network is not needed
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
    """Sends the actions of `_choose` to the environments.

    Raises:
      NonFiniteError: an action is not finite.
    """
    state = self._state
    with self._timer('acting_s'):
      # Copied: a view would keep the device's buffer, of kilobytes, alive for
      # as long as the iteration keeps its actions.
      actions = np.array(chosen)
      state.memory = None if memory is None else np.array(memory)
    if not evaluation.are_finite(actions):
      self._settle()  # names the gradient step, if a loss shows it
      raise NonFiniteError(
        'an action was not finite by gradient step '
        f'{int(state.train.gradient_steps)}'
      )
    with self._timer('emulating_s'):
      self._environments.send(actions)
    state.actions.append(actions)

  def _recv(self) -> None:
    """Receives and stores the outcome of the last actions."""
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
      reward = rewards.learned(
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
    """Dispatches the gradient steps of a round without waiting for them."""
    state = self._state
    with self._timer('learning_s'):
      state.train, reports = self._learn(
        state.train, [batch for batch, _ in drawn]
      )
    self._last = [handle for _, handle in drawn], reports
    self._learned(reports)

  def _regress_epochs(self) -> None:
    """Dispatches whole epochs over the round without waiting for them."""
    config, state, rollout = self._config, self._state, self._replay
    assert self._epochs is not None and isinstance(rollout, HostRollout)
    with self._timer('sampling_s'):
      sequence = rollout.sequence()
      bits = state.rng.integers(
        2**32,
        size=(config.schedule.regress, config.batch_size),
        dtype=np.uint32,
      )
    with self._timer('learning_s'):
      state.train, reports = self._epochs(state.train, sequence, bits)
    self._learned(reports)

  def _learned(self, reports: list[Report]) -> None:
    """Notes the gradient steps of a round, which may still be computing."""
    state = self._state
    self._reports += reports
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


def _check_rollout(config: LoopConfig, replay: StatefulReplay) -> None:
  """Raises ValueError for a replay or an order that does not fit epochs."""
  if not isinstance(replay, HostRollout):
    raise ValueError('returns need a replay that keeps rounds, a HostRollout')
  size, collect = replay.steps * replay.num_envs, config.schedule.collect
  if size != collect:
    raise FieldError('collect', collect, f'must be the round of {size} steps')
  if config.overlapped:
    raise FieldError('overlapped', True, 'has no meaning for whole epochs')


def _separate(report: Report) -> list[Metrics]:
  """Returns the metrics of each gradient step of a dispatch."""
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
  """Returns the names of the metrics of `regress` without computing any."""
  obs_shape = (environments.stack, *environments.frame_shape)
  batch = batch_shape(
    obs_shape,
    environments.frame_dtype,
    environments.action_dim,
    batch_size,
    sequence_steps,
  )
  _, metrics = jax.eval_shape(regress, train_state, batch)
  return sorted(jax.eval_shape(mean_of, metrics))


def _crc(obs: np.ndarray) -> int:
  return zlib.crc32(np.ascontiguousarray(obs).data)


def _blame(metrics: Metrics, before: int) -> NoReturn:
  """Raises the error that names the first gradient step that is not finite.

  Args:
    metrics: metrics of one round, [] or [K]; at least one is not finite.
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
  """Draws uniformly random actions, int32 [N] or float32 [N, D]."""
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
  """Returns the row of the iteration that has just ended."""
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
