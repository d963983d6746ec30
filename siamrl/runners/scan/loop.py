"""The functions of one run: rounds of collecting and learning, evaluations."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from siamrl import diagnostics, rewards
from siamrl.learner import mean_of, named, target_updates
from siamrl.replay.protocol import PureReplay, Relabel, Sampling
from siamrl.runners import evaluation
from siamrl.runners import sums as running_sums
from siamrl.runners.returns import make_relabel
from siamrl.runners.scan.config import ScanConfig, Settings, Setup
from siamrl.runners.scan.rows import (
  EARLY_CUT,
  EVALUATION,
  FAULT,
  OBS,
  REWARD,
  Sums,
  fault_of,
  summary,
)
from siamrl.runners.scan.state import RunState
from siamrl.runners.sums import Sum
from siamrl.schedule import counted
from siamrl.types import (
  Agent,
  JaxEnvironment,
  Metrics,
  Params,
  TrainState,
  Transition,
  acting_of,
)

# Most rounds for which random numbers are drawn at once.
_DRAWN_ROUNDS = 1_000


class _Draws(NamedTuple):
  """Random draws of one round of V vector steps and K gradient steps.

  Drawing for many rounds at once saves a fifth of a small round on a CPU.
  """

  noise: Any  # of the agent, [V, ...]
  step_key: jax.Array  # keys [V, N]
  # States and observations [V, N, ...] for new episodes; with a pool, their
  # indices int32 [V, N] in it.
  fresh: Any
  sample_bits: jax.Array  # uint32 [K, B]


class _Record(NamedTuple):
  """Values and outcomes of the steps of an evaluation, [T, episodes]."""

  value: jax.Array  # max_a Q of each step's observation
  reward: jax.Array  # scaled and clipped as for learning
  terminated: jax.Array
  cut: jax.Array  # truncated, or already over
  played: jax.Array  # whether the step was taken


@dataclasses.dataclass(frozen=True)
class Loop:
  """The functions of one run: pure, for callers to vmap and jit.

  Attributes:
    config: configuration of collecting, learning and evaluation.
    environment: environment to act in.
    replay: stores the transitions.
    make_setup: settings -> `Setup`.
    eval_environment: environment to evaluate in; None for the same.
    shard: applied to every batch before the gradient step, for callers who
      split batches between devices.
    name: name of the environment, for errors.
  """

  config: ScanConfig
  environment: JaxEnvironment
  replay: PureReplay
  make_setup: Callable[[Settings], Setup]
  eval_environment: JaxEnvironment | None = None
  shard: Callable[[Any], Any] = lambda batch: batch
  name: str = 'the environment'

  # The unit of the length of runs, and the column that sums up a run.
  clock = 'env_steps'
  headline = 'train_return'

  @property
  def warmup_steps(self) -> int:
    """Number of env steps before the first gradient step."""
    return self.config.warmup_env_steps

  @property
  def iteration_steps(self) -> int:
    """Number of env steps from one row to the next."""
    return self.config.iteration_env_steps

  def start(self, settings: Settings, key: chex.PRNGKey) -> RunState:
    """Returns the initial state of a run.

    Args:
      settings: settings of the run.
      key: random key of the run.
    """
    init_key, reset_key, run_key = jax.random.split(key, 3)
    num_envs = self.config.num_envs
    env_state, obs = jax.vmap(self.environment.reset)(
      jax.random.split(reset_key, num_envs)
    )
    setup = self.make_setup(settings)
    state = RunState(
      train=setup.learner.init(init_key),
      replay=self.replay.start(self.replay.init(), obs),
      env_state=env_state,
      obs=obs,
      returns=jnp.zeros(num_envs, jnp.float32),
      lengths=jnp.zeros(num_envs, jnp.int32),
      key=run_key,
      memory=_calm(setup.learner.agent, num_envs),
    )
    if setup.panel is None:
      return state
    shapes = jax.eval_shape(
      lambda: self._peek(setup, state, 1, self.config.probe_size, run_key)
    )
    probe = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return state.replace(
      panel=setup.panel.init(state.train, probe), probe=probe
    )

  def iterate(
    self, settings: Settings, state: RunState, iteration: chex.Numeric
  ) -> tuple[RunState, Metrics]:
    """Runs one iteration.

    Args:
      settings: settings of the run.
      state: state of the run, after the previous iteration.
      iteration: int32 [] its number, from 0. It is the same for parallel runs,
        and not mapped by vmap.

    Returns:
      (state, row), with scalars of the iteration in the row. Means over no
      episodes or gradient steps are NaN.
    """
    config, setup = self.config, self.make_setup(settings)
    before = state.train.gradient_steps
    first = iteration * config.rounds
    size = _largest_divisor(config.rounds, _DRAWN_ROUNDS)
    key = state.key
    looked_at = first + _panel_round(iteration, config.rounds)

    def block(carry, start):
      carry, measured = carry
      draws = jax.vmap(lambda n: self._draw(setup.learner.agent, key, n))(
        start + jnp.arange(size)
      )
      pool = self._pool(key, start)

      def step(learns, index, carry):
        drawn = jax.tree.map(lambda leaf: leaf[index], draws)
        return self._round(setup, carry, start + index, drawn, pool, learns)

      # Two loops, not a conditional in one, which would copy the parameters.
      # All runs share the bounds, so that vmap leaves them alone.
      warmup = jnp.clip(config.warmup_rounds - start, 0, size)
      carry = jax.lax.fori_loop(
        0, warmup, functools.partial(step, False), carry
      )
      learn = functools.partial(step, True)
      if setup.panel is None:
        carry = jax.lax.fori_loop(warmup, size, learn, carry)
        return (carry, measured), None
      pause = jnp.clip(looked_at + 1 - start, warmup, size)
      here = (start <= looked_at) & (looked_at < start + size)

      def part(number, carry):
        """Runs the rounds up to the panel's, or the rest."""
        (state, sums), measured = carry
        begin, end = jax.tree.map(
          lambda *ends: jnp.where(number == 0, *ends),
          (warmup, pause),
          (pause, size),
        )
        state, sums = jax.lax.fori_loop(begin, end, learn, (state, sums))
        state, measured = self._measure(
          setup,
          state,
          measured,
          iteration,
          counted(start + pause) * config.vector_steps,
          here & (number == 0),
        )
        return (state, sums), measured

      return jax.lax.fori_loop(0, 2, part, (carry, measured)), None

    names = self._metric_names(setup, state)
    sums = Sums(
      jnp.zeros((), jnp.int32),
      running_sums.zeros(jnp.zeros((), jnp.float32)),
      jnp.zeros((), jnp.int32),
      running_sums.zeros({name: jnp.zeros(()) for name in names}),
      jnp.zeros(config.num_envs, jnp.float32),
      jnp.zeros((), jnp.int32),
    )
    measured = self._unmeasured(setup, state)
    ((state, sums), measured), _ = jax.lax.scan(
      block,
      ((state, sums), measured),
      first + jnp.arange(0, config.rounds, size),
    )
    env_steps = counted(first + config.rounds) * config.schedule.collect
    taken = state.train.gradient_steps - before
    row = summary(setup, sums, env_steps, taken)
    row |= {
      'env_steps': env_steps,
      'gradient_steps': state.train.gradient_steps,
      'target_updates': target_updates(setup.learner, state.train),
      FAULT: fault_of(sums, state),
    }
    row |= {f'panel/{name}': value for name, value in measured.items()}
    if setup.panel is not None and setup.optimal is not None:
      obs, best = setup.optimal
      q = setup.learner.agent.values(state.train.online_params, obs)
      row['panel/exact_bias'], row['panel/exact_error'] = (
        diagnostics.bias_exact(q, best)
      )
    if config.eval_episodes:
      # A separate stream: the rounds' keys are folded with other numbers.
      key = jax.random.fold_in(jax.random.fold_in(state.key, 2**32 - 1), first)
      acts = setup.learner.acting_params(state.train)
      row |= self._evaluate(setup, acts, key)
      unpaid = (row[FAULT] == 0) & ~jnp.isfinite(row['eval_return'])
      row[FAULT] = jnp.where(unpaid, EVALUATION, row[FAULT])
    return state, row

  def fault(
    self,
    row: Mapping[str, float],
    state: RunState,
    iteration: int,
    *,
    diverged: bool,
  ) -> str:
    """Describes how a run's environment broke its contract in an iteration.

    If an action was not finite, the learner is to blame for what followed.

    Args:
      row: metrics of the iteration.
      state: state of the run at its end; arrays of any kind.
      iteration: its number, from 0.
      diverged: whether losses or parameters are not finite.

    Returns:
      the description, or '' if no fault is known.
    """
    code = int(row[FAULT])
    if code == EARLY_CUT:
      declared = self.environment.max_episode_steps
      return (
        f'{self.name} declares max_episode_steps={declared}, but truncates '
        'episodes sooner'
      )
    if not code and not diverged:
      return ''
    clock = (iteration + 1) * self.config.rounds * self.config.vector_steps
    what = self.replay.first_not_finite(state.replay, clock)
    if not what and not self.environment.action_dim:
      # It is gone from the replay, but discrete actions cannot be the cause.
      what = {
        REWARD: 'reward',
        OBS: 'observation',
        EVALUATION: 'reward',
      }.get(code, '')
    words = {'reward': 'a reward', 'observation': 'an observation'}
    if what not in words:
      return ''
    return f'{self.name} returned {words[what]} that is not finite'

  def _measure(
    self,
    setup: Setup,
    state: RunState,
    measured: Metrics,
    iteration: chex.Numeric,
    clock: chex.Numeric,
    here: chex.Numeric,
  ) -> tuple[RunState, Metrics]:
    """Evaluates the panel, if it is due.

    Args:
      setup: setup of the run.
      state: state of the run.
      measured: its metrics so far in this iteration.
      iteration: number of the iteration.
      clock: uint32 [] vector steps so far.
      here: whether this is the point of the iteration to measure at.
    """
    config, panel = self.config, setup.panel
    assert panel is not None
    first = iteration == 0  # when the probe is drawn
    due = here & (first | ((iteration + 1) % config.panel_period == 0))

    def measure() -> tuple[Any, Any, Metrics]:
      # A separate stream: the rounds' keys are folded with other numbers.
      probe_key, batch_key = jax.random.split(
        jax.random.fold_in(jax.random.fold_in(state.key, 2**32 - 2), clock)
      )
      probe = jax.lax.cond(
        first,
        lambda: self._peek(setup, state, clock, config.probe_size, probe_key),
        lambda: state.probe,
      )
      batch = self._peek(setup, state, clock, config.batch_size, batch_key)
      seen, metrics = panel.measure(state.panel, state.train, probe, batch)
      return seen, probe, metrics

    # Scalars of all runs decide: under vmap this remains a conditional.
    seen, probe, measured = jax.lax.cond(
      due, measure, lambda: (state.panel, state.probe, measured)
    )
    return state.replace(panel=seen, probe=probe), measured

  def _unmeasured(self, setup: Setup, state: RunState) -> Metrics:
    """Returns the panel's metrics before any measurement."""
    panel = setup.panel
    if panel is None:
      return {}
    _, shapes = jax.eval_shape(
      panel.measure, state.panel, state.train, state.probe, state.probe
    )
    return jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)

  def _peek(
    self,
    setup: Setup,
    state: RunState,
    clock: chex.Numeric,
    size: int,
    key: chex.PRNGKey,
  ) -> Transition:
    """Draws transitions for the panel, without weights."""
    bits = jax.random.bits(key, (size,), jnp.uint32)
    return self.replay.peek(state.replay, clock, bits, setup.discount)

  def _draw(self, agent: Agent, key: jax.Array, number: jax.Array) -> _Draws:
    """Draws the random numbers of one round."""
    config = self.config
    steps, envs = config.vector_steps, config.num_envs
    act_key, step_key, reset_key, sample_key = jax.random.split(
      jax.random.fold_in(key, number), 4
    )
    return _Draws(
      noise=jax.vmap(lambda key: acting_of(agent).noise(key, envs))(
        jax.random.split(act_key, steps)
      ),
      step_key=jax.random.split(step_key, (steps, envs)),
      fresh=jax.vmap(jax.vmap(self.environment.reset))(
        jax.random.split(reset_key, (steps, envs))
      )
      if self.environment.reset_pool is None
      else jax.random.randint(
        reset_key, (steps, envs), 0, self.environment.reset_pool
      ),
      sample_bits=jax.random.bits(
        sample_key, (config.schedule.regress, config.batch_size), jnp.uint32
      ),
    )

  def _pool(self, key: jax.Array, start: jax.Array) -> Any:
    """Draws first states of a block's episodes [P, ...]; None without a pool.

    Args:
      key: random key of the run.
      start: the block's first round.
    """
    size = self.environment.reset_pool
    if size is None:
      return None
    # A separate stream: the rounds' keys are folded with other numbers.
    pool_key = jax.random.fold_in(jax.random.fold_in(key, 2**32 - 3), start)
    return jax.vmap(self.environment.reset)(jax.random.split(pool_key, size))

  def _round(self, setup, carry, number, draws, pool, learns):
    """Collects, then learns if `learns`."""
    config = self.config
    state, sums = carry
    clock = counted(number) * config.vector_steps  # vector steps so far

    def collect(carry, inputs):
      step, drawn = inputs
      return self._collect(setup, carry, clock + step, drawn, pool), None

    drawn = (draws.noise, draws.step_key, draws.fresh)
    (state, sums), _ = _scan(
      collect,
      (state, sums),
      (jnp.arange(config.vector_steps, dtype=jnp.uint32), drawn),
    )
    if not learns:
      return state, sums
    clock += config.vector_steps
    sampling = self._sampling(setup, clock)
    source, entries = self.replay.begin(
      state.replay,
      clock,
      draws.sample_bits,
      sampling,
      self._relabel(setup, state.train),
    )

    panel = setup.panel
    follows = panel is not None and panel.follows

    def learn(carry, draw):
      seen, carry = carry
      carry = self._learn(setup, source, clock, sampling, carry, draw)
      if follows:
        seen = panel.follow(seen, carry[0])
      return (seen, carry), None

    # Steps carry only the part of the replay that learning changes.
    (seen, (train, moving, metrics)), _ = _scan(
      learn,
      (
        state.panel if follows else None,
        (state.train, self.replay.moving(state.replay), sums.metrics),
      ),
      entries,
    )
    replay = self.replay.with_moving(state.replay, moving)
    state = state.replace(train=train, replay=replay)
    if follows:
      state = state.replace(panel=seen)
    return state, sums._replace(metrics=metrics)

  def _collect(self, setup, carry, clock, drawn, pool):
    """Takes one step of every environment."""
    config, acting = self.config, acting_of(setup.learner.agent)
    state, sums = carry
    noise, step_key, fresh = drawn
    if pool is not None:
      fresh = jax.tree.map(lambda leaf: leaf[drawn[2]], pool)
    memory = state.memory
    if acting.process is not None:
      memory, noise = acting.process.step(memory, noise)
    actions = acting.act(
      setup.learner.acting_params(state.train),
      state.obs,
      noise,
      setup.epsilon(clock * config.num_envs),
    )
    env_state, step = jax.vmap(self.environment.step)(
      state.env_state, actions, step_key
    )
    ended = step.terminated | step.truncated
    env_state, obs = _where(ended, fresh, (env_state, step.obs))
    memory = _where(ended, _calm(setup.learner.agent, config.num_envs), memory)
    replay = self.replay.add(
      state.replay,
      clock,
      action=actions,
      reward=self._learned(setup, step.reward),
      terminated=step.terminated,
      ended=ended,
      final_obs=step.obs,
      obs=obs,
    )
    running = running_sums.add(Sum(state.returns, sums.lost), step.reward)
    returns, lengths = running.total, state.lengths + 1
    early = step.truncated & ~step.terminated
    if self.environment.max_episode_steps is not None:
      early &= lengths < self.environment.max_episode_steps
    sums = sums._replace(
      episodes=sums.episodes + jnp.sum(ended, dtype=jnp.int32),
      returns=running_sums.add(sums.returns, jnp.sum(returns, where=ended)),
      lengths=sums.lengths + jnp.sum(lengths, where=ended),
      lost=jnp.where(ended, 0, running.lost),
      early_cuts=sums.early_cuts + jnp.sum(early, dtype=jnp.int32),
    )
    return state.replace(
      replay=replay,
      env_state=env_state,
      obs=obs,
      memory=memory,
      returns=jnp.where(ended, 0, returns),
      lengths=jnp.where(ended, 0, lengths),
    ), sums

  def _sampling(self, setup: Setup, clock: chex.Numeric) -> Sampling:
    """Returns the numbers to draw batches with at a clock, in vector steps."""
    beta = setup.beta(counted(clock) * self.config.num_envs)
    return Sampling(setup.discount, setup.alpha, beta)

  def _relabel(self, setup: Setup, train: TrainState) -> Relabel | None:
    """Returns the function that computes a round's targets, or None."""
    if setup.returns is None:
      return None
    return make_relabel(setup.returns, train)

  def _learned(self, setup: Setup, reward: jax.Array) -> jax.Array:
    """Scales and clips rewards for learning."""
    return rewards.learned(reward, setup.reward_scale, self.config.reward_clip)

  def _learn(self, setup, source, clock, sampling, carry, draw):
    """Takes one gradient step."""
    train, moving, sums = carry
    batch, handle = self.replay.sample(source, moving, clock, draw, sampling)
    learner = setup.learner
    # With `returns`, sampled transitions already have complete targets.
    regress = learner.regress if setup.returns is None else learner.regress_to
    train, metrics = regress(train, self.shard(batch))
    read = named(metrics, self.replay.reads)
    moving = self.replay.update(moving, handle, read, sampling)
    means = mean_of(metrics)
    if sums is None:
      return train, moving, means
    return train, moving, running_sums.add(sums, means)

  def _metric_names(self, setup: Setup, state: RunState) -> list[str]:
    """Returns the names of the metrics of `regress` without computing any."""
    config = self.config
    shape = config.schedule.regress, config.batch_size

    def step(state):
      sampling = self._sampling(setup, 1)
      source, entries = self.replay.begin(
        state.replay,
        1,
        jnp.zeros(shape, jnp.uint32),
        sampling,
        self._relabel(setup, state.train),
      )
      carry = state.train, self.replay.moving(state.replay), None
      draw = jax.tree.map(lambda leaf: leaf[0], entries)
      _, _, means = self._learn(setup, source, 1, sampling, carry, draw)
      return means

    return sorted(jax.eval_shape(step, state))

  def _evaluate(
    self, setup: Setup, params: Params, key: chex.PRNGKey
  ) -> Metrics:
    """Plays episodes; with a panel, also computes the bias of values."""
    config, agent = self.config, setup.learner.agent
    episodes, most = config.eval_episodes, config.eval_episode_env_steps
    # Steps that are not recorded count as cut.
    record = None
    if setup.panel is not None:
      numbers = jnp.zeros((most, episodes), jnp.float32)
      flags = jnp.zeros((most, episodes), bool)
      record = _Record(numbers, numbers, flags, ~flags, flags)

    acting = acting_of(agent)

    def act(obs: jax.Array, key: chex.PRNGKey) -> jax.Array:
      noise = acting.noise(key, episodes)
      return acting.play(params, obs, noise, config.eval_epsilon)

    def look(obs: jax.Array, step: Any, running: jax.Array) -> _Record:
      return _Record(
        jnp.max(agent.values(params, obs), -1),
        self._learned(setup, step.reward),
        step.terminated & running,
        step.truncated | ~running,
        running,
      )

    row, record = evaluation.play(
      self.eval_environment or self.environment,
      act,
      key,
      episodes=episodes,
      most=most,
      look=look,
      record=record,
    )
    if record is None:
      return row
    known = diagnostics.monte_carlo(
      record.reward, record.terminated, record.cut, setup.discount
    )
    bias = diagnostics.overestimation(
      record.value, *known, counted=record.played
    )
    return row | {f'panel/{name}': value for name, value in bias.items()}


def _panel_round(iteration: chex.Numeric, rounds: int) -> jax.Array:
  """Returns the round of an iteration after which the panel is evaluated."""
  share = diagnostics.panel_share(jnp.asarray(iteration))
  return jnp.minimum((share * rounds).astype(jnp.int32), rounds - 1)


def _calm(agent: Agent, num_envs: int) -> Any:
  """Returns the memory of the agent's noise at the start of episodes."""
  process = acting_of(agent).process
  return () if process is None else process.init(num_envs)


def _largest_divisor(number: int, most: int) -> int:
  return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


def _scan(step, carry, xs):
  """Runs `lax.scan`, without a loop if there is only one step."""
  if len(jax.tree.leaves(xs)[0]) > 1:
    return jax.lax.scan(step, carry, xs)
  carry, _ = step(carry, jax.tree.map(lambda x: x[0], xs))
  return carry, None


def _where(mask: jax.Array, chosen: Any, others: Any) -> Any:
  """Selects rows of one tree where a mask [N] holds, else of another."""

  def select(x, y):
    return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, y)

  return jax.tree.map(select, chosen, others)
