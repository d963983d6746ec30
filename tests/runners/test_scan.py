"""The compiled loop against the same loop written out, step by step."""

import dataclasses
import functools
import os
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import diagnostics, learner, twins
from siamrl.agents.q import make_q_agent, make_returns
from siamrl.envs.tabular import chain, make_tabular, optimal_values
from siamrl.learner import ClockedTwin
from siamrl.networks.q_network import mlp_network
from siamrl.replay.device import DeviceReplay
from siamrl.replay.prioritized import PrioritizedReplay
from siamrl.replay.rollout import Rollout
from siamrl.runners import scan
from siamrl.runners.scan import loop as scan_loop
from siamrl.types import JaxEnvironment, JaxTimestep, Schedule
from tests.categorical import make_categorical_agent

CHAIN = chain(5, slip=0.1)
ENVIRONMENT = make_tabular(CHAIN, max_episode_steps=12)
DISCOUNT = 0.9


def make_agent(environment):
  return make_q_agent(
    mlp_network(environment.num_actions, sizes=()),
    jnp.zeros((1, *environment.obs_shape), environment.obs_dtype),
    td_loss='squared',
  )


def make_distributions(environment):
  (size,) = environment.obs_shape
  return make_categorical_agent(size, environment.num_actions)


def make_setup(
  settings,
  *,
  environment=ENVIRONMENT,
  optimizer=optax.sgd,
  q_lambda=None,
  panel=False,
  make_agent=make_agent,
):
  made = learner.make_learner(
    make_agent(environment),
    optimizer(settings['learning_rate']),
    ClockedTwin(twins.soft(settings['tau']), settings['sync']),
  )
  returns = None
  if q_lambda is not None:
    returns = make_returns(made.agent, q_lambda)
  return scan.Setup(
    made,
    lambda env_steps: settings['epsilon'],
    settings['discount'],
    alpha=0.6,
    beta=lambda env_steps: 1.0,
    returns=returns,
    panel=diagnostics.make_panel(
      made, shadows={'soft': ClockedTwin(twins.soft(0.5), 2)}
    )
    if panel
    else None,
  )


def make_settings(**changes):
  values = {
    'learning_rate': 0.2,
    'tau': 1.0,
    'sync': 3,
    'epsilon': 0.5,
    'discount': DISCOUNT,
  }
  return {
    name: np.int32(value) if name == 'sync' else np.float32(value)
    for name, value in (values | changes).items()
  }


@functools.cache
def make_loop(
  *,
  num_envs=3,
  collect=6,
  regress=2,
  steps=60,
  warmup=24,
  batch_size=8,
  environment=ENVIRONMENT,
  optimizer=optax.sgd,
  prioritized=False,
  capacity=30,
  n_step=1,
  q_lambda=None,
  panel=False,
  make_agent=make_agent,
  **options,
):
  replay = DeviceReplay(
    environment.obs_shape,
    environment.obs_dtype,
    capacity=capacity,
    num_envs=num_envs,
    n_step=n_step,
    max_episode_steps=environment.max_episode_steps,
  )
  if q_lambda is not None:
    replay = Rollout(
      environment.obs_shape,
      environment.obs_dtype,
      num_envs,
      steps=collect // num_envs,
    )
  return scan.Loop(
    scan.ScanConfig(
      Schedule(collect, regress),
      num_envs,
      iteration_env_steps=steps,
      warmup_env_steps=warmup,
      batch_size=batch_size,
      **options,
    ),
    environment,
    PrioritizedReplay(replay) if prioritized else replay,
    functools.partial(
      make_setup,
      environment=environment,
      optimizer=optimizer,
      q_lambda=q_lambda,
      panel=panel,
      make_agent=make_agent,
    ),
  )


@functools.cache
def compiled(loop):
  """A loop's functions; tests share them, since compiling takes seconds."""
  return jax.jit(loop.start), jax.jit(loop.iterate)


def run_alone(loop, settings, seed=0, iterations=1):
  """One run, compiled by itself."""
  start, iterate = compiled(loop)
  state = start(settings, jax.random.key(seed))
  rows = []
  for iteration in range(iterations):
    state, row = iterate(settings, state, iteration)
    rows.append(row)
  return state, rows


def data(tree):
  """Leaves as NumPy arrays; keys as their data."""
  return [
    np.asarray(
      jax.random.key_data(leaf)
      if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
      else leaf
    )
    for leaf in jax.tree.leaves(tree)
  ]


def assert_equal(one, other):
  for x, y in zip(data(one), data(other), strict=True):
    np.testing.assert_array_equal(x, y)


def assert_close(one, other):
  for x, y in zip(data(one), data(other), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('n_step', [1, 3])
def test_the_loop_written_out(n_step):
  """Host and compiled loop learn the same from the same transitions.

  The reference steps one environment at a time, keeps whole episodes in lists
  and takes its gradient steps as the host loop does.
  """
  loop, settings = make_loop(n_step=n_step), make_settings()
  state, (row,) = run_alone(loop, settings)

  config, built = loop.config, make_setup(settings).learner
  learn = learner.jit_regress(built.regress)
  reference = compiled(loop)[0](settings, jax.random.key(0))
  train, key = reference.train, reference.key
  env_states = [
    jax.tree.map(lambda leaf, i=i: leaf[i], reference.env_state)
    for i in range(config.num_envs)
  ]
  obs = np.asarray(reference.obs)
  act, step = jax.jit(built.agent.acting.act), jax.jit(ENVIRONMENT.step)
  draw = jax.jit(functools.partial(loop._draw, built.agent, key))
  take = lambda tree, *at: jax.tree.map(lambda leaf: leaf[at], tree)
  # [vector step][environment]: (obs, action, reward, terminated, truncated,
  # next obs of the same episode).
  steps: list[list[tuple]] = []
  returns, running, losses = [], np.zeros(config.num_envs), []
  for number in range(config.rounds):
    draws = draw(jnp.int32(number))
    for v in range(config.vector_steps):
      actions = np.asarray(
        act(train.online_params, obs, take(draws.noise, v), settings['epsilon'])
      )
      taken, after = [], []
      for i, action in enumerate(actions):
        env_states[i], answer = step(
          env_states[i], action, draws.step_key[v, i]
        )
        ended = bool(answer.terminated | answer.truncated)
        taken.append(
          (
            obs[i],
            action,
            float(answer.reward),
            bool(answer.terminated),
            ended,
            np.asarray(answer.obs),
          )
        )
        running[i] += float(answer.reward)
        following = answer.obs
        if ended:
          returns.append(running[i])
          running[i] = 0
          env_states[i], following = take(draws.fresh, v, i)
        after.append(np.asarray(following))
      steps.append(taken)
      obs = np.stack(after)
    if number * config.schedule.collect < config.warmup_env_steps:
      continue
    starts = 30 // config.num_envs
    newest = len(steps) - n_step
    size = min(newest + 1, starts) * config.num_envs
    for bits in np.asarray(draws.sample_bits):
      batch = []
      for index in bits % size:
        position, env = divmod(int(index), config.num_envs)
        clock = newest - (newest - position) % starts
        total, factor, stop = 0.0, 1.0, False
        for k in range(n_step):
          _, _, reward, terminated, ended, following = steps[clock + k][env]
          total += factor * reward
          factor *= DISCOUNT
          stop = ended
          if stop:
            break
        first = steps[clock][env]
        batch.append(
          (first[0], first[1], total, 0.0 if terminated else factor, following)
        )
      obs_tm1, a_tm1, r_t, discount_t, obs_t = map(
        np.stack, zip(*batch, strict=True)
      )
      train, metrics = learn(
        train,
        [
          jax.tree.map(
            jnp.asarray,
            type(_sample(loop, state))(
              obs_tm1,
              a_tm1.astype(np.int32),
              r_t.astype(np.float32),
              discount_t.astype(np.float32),
              obs_t,
            ),
          )
        ],
      )
      losses.append(float(metrics[0].means['loss']))
  assert int(train.gradient_steps) == 2 * (config.rounds - 4)
  assert row['target_updates'] == int(train.gradient_steps) // 3
  assert_close(state.train, train)
  assert row['train_episodes'] == len(returns)
  assert row['train_return'] == pytest.approx(np.mean(returns))
  assert row['loss'] == pytest.approx(np.mean(losses), rel=1e-4)


def _sample(loop, state):
  return loop.replay.peek(state.replay, 1, jnp.zeros(1, jnp.uint32), DISCOUNT)


class Heard(NamedTuple):
  """The state of a `Hearing` replay."""

  ring: Any
  updates: jax.Array  # int32 []
  errors: jax.Array  # float32 [], the sum of all


@dataclasses.dataclass(frozen=True)
class Hearing:
  """A replay of one's own: a uniform one that adds up what is reported."""

  ring: DeviceReplay
  reads = ('td_error_abs',)

  def init(self):
    return Heard(self.ring.init(), jnp.int32(0), jnp.float32(0))

  def start(self, state, obs):
    return state._replace(ring=self.ring.start(state.ring, obs))

  def add(self, state, t, **step):
    return state._replace(ring=self.ring.add(state.ring, t, **step))

  def begin(self, state, t, bits, sampling, relabel=None):
    del t, sampling
    assert relabel is None
    return state.ring, {'bits': bits}

  def moving(self, state):
    return state.updates, state.errors

  def with_moving(self, state, moving):
    return Heard(state.ring, *moving)

  def sample(self, source, moving, t, draw, sampling):
    # The moving part of the step before comes back.
    batch = self.ring.peek(source, t, draw['bits'], sampling.discount)
    return batch, {'updates': moving[0], 'size': batch.r_t.size}

  def update(self, moving, handle, metrics, sampling):
    del sampling
    assert metrics.keys() == {'td_error_abs'}
    assert metrics['td_error_abs'].shape == (handle['size'],)
    updates, errors = moving
    updates = jnp.where(handle['updates'] == updates, updates + 1, -1_000)
    return updates, errors + metrics['td_error_abs'].sum()

  def peek(self, state, t, bits, discount):
    return self.ring.peek(state.ring, t, bits, discount)

  def first_not_finite(self, state, t):
    return self.ring.first_not_finite(state.ring, t)


@pytest.mark.parametrize('regress', [1, 2])
def test_a_replay_of_ones_own_gets_what_it_reads(regress):
  plain, settings = make_loop(regress=regress), make_settings()
  loop = dataclasses.replace(plain, replay=Hearing(plain.replay))
  state, (row,) = run_alone(loop, settings)
  steps = int(state.train.gradient_steps)
  assert int(state.replay.updates) == steps == 6 * regress
  mean = float(state.replay.errors) / (8 * steps)
  assert mean == pytest.approx(float(row['td_error_abs']), rel=1e-5)
  uniform, _ = run_alone(plain, settings)
  assert_close(uniform.train, state.train)
  assert_equal(uniform.replay, state.replay.ring)


@pytest.mark.parametrize('prioritized', [False, True])
def test_it_learns_the_exact_values(prioritized):
  """Through slips and truncations, which a random start is far from."""
  loop = make_loop(
    steps=12_000, collect=3, regress=1, capacity=3_000, prioritized=prioritized
  )
  settings = make_settings(epsilon=1.0, learning_rate=0.1, sync=20)
  state, _ = run_alone(loop, settings)
  q = mlp_network(2, sizes=()).apply(state.train.online_params, np.eye(5))
  exact = optimal_values(CHAIN, DISCOUNT)
  np.testing.assert_allclose(q[:4], exact[:4], atol=0.08)


@pytest.mark.parametrize('q_lambda', [None, 0.5])
def test_an_agent_of_distributions_learns_the_exact_values(q_lambda):
  """With its panel, evaluated, from a replay and from whole returns."""
  loop = make_loop(
    num_envs=8,
    collect=64,
    regress=8,
    batch_size=16,
    steps=64 * 400,
    warmup=0 if q_lambda is not None else 64,
    capacity=3_200,
    q_lambda=q_lambda,
    panel=True,
    make_agent=make_distributions,
    eval_episodes=2,
    eval_episode_env_steps=20,
  )
  settings = make_settings(epsilon=1.0, learning_rate=2.0, sync=1)
  state, (row,) = run_alone(loop, settings)
  agent = make_distributions(ENVIRONMENT)
  q = agent.values(state.train.online_params, np.eye(5))
  exact = optimal_values(CHAIN, DISCOUNT)
  if q_lambda is None:
    np.testing.assert_allclose(q[:4], exact[:4], atol=0.1)
  np.testing.assert_array_equal(np.argmax(q[:4], 1), 1)
  for name in ('eval_return', 'panel/td_split_abs', 'panel/shadow_gap/soft'):
    assert np.isfinite(row[name])


def test_truncation_bootstraps():
  """A reward of 1 for ever, cut after every 4 steps, is worth 1 / (1 - d)."""

  def step(state, action, key):
    obs = jnp.ones(1)
    cut = state + 1 >= 4
    return state + 1, JaxTimestep(obs, jnp.ones(()), jnp.zeros((), bool), cut)

  environment = JaxEnvironment(
    lambda key: (jnp.zeros((), jnp.int32), jnp.ones(1)),
    step,
    1,
    (1,),
    np.dtype(np.float32),
    4,
  )
  for n_step in (1, 3):
    loop = make_loop(environment=environment, steps=6_000, n_step=n_step)
    settings = make_settings(learning_rate=0.3, discount=0.8)
    state, (row,) = run_alone(loop, settings)
    assert row[scan.FAULT] == 0  # cut when it is declared, and not sooner
    q = mlp_network(1, sizes=()).apply(
      state.train.online_params, jnp.ones((1, 1))
    )
    assert float(q[0, 0]) == pytest.approx(5.0, abs=1e-2)


def _paying(*, declared=None, cut=1_000, reward=1.0, bad=0, lasts=1_000):
  """Pays the same for ever; observes NaN at the `bad`-th step of an episode."""

  def step(state, action, key):
    state += 1
    obs = jnp.where(state == bad, jnp.nan, jnp.ones(1))
    terminated = state >= lasts
    return state, JaxTimestep(
      obs, jnp.float32(reward), terminated, (state >= cut) & ~terminated
    )

  return JaxEnvironment(
    lambda key: (jnp.zeros((), jnp.int32), jnp.ones(1)),
    step,
    1,
    (1,),
    np.dtype(np.float32),
    declared,
  )


def _fault(environment, **options):
  """What is said of an iteration, and whether anything learned is finite."""
  loop = make_loop.__wrapped__(environment=environment, **options)
  state, (row,) = run_alone(loop, make_settings())
  finite = bool(np.isfinite(row['loss']))
  return loop.fault(row, state, 0, diverged=not finite), finite


@pytest.mark.parametrize('declared', [None, 5])
def test_truncations_that_are_not_declared_are_an_error(declared):
  fault, _ = _fault(_paying(declared=declared, cut=4))
  assert fault == (
    f'the environment declares max_episode_steps={declared}, but truncates '
    'episodes sooner'
  )


def test_rewards_that_are_not_finite_are_told_from_a_divergence():
  """Also before anything is learned, and where episodes do not end."""
  fault, _ = _fault(_paying(reward=np.nan), warmup=60)
  assert fault == 'the environment returned a reward that is not finite'


def test_observations_that_are_not_finite_are_told_from_a_divergence():
  """Also if none is at the iteration's end."""
  fault, finite = _fault(_paying(bad=3, lasts=5))
  assert not finite
  assert fault == 'the environment returned an observation that is not finite'


def test_a_learner_that_diverges_is_not_the_environment():
  environment = _paying(lasts=5)
  loop = make_loop.__wrapped__(environment=environment)
  state, (row,) = run_alone(loop, make_settings(learning_rate=1e30))
  assert not np.isfinite(row['loss']) and row[scan.FAULT] == 0
  assert not loop.fault(row, state, 0, diverged=True)


def test_returns_keep_their_digits():
  """Over 60,000 env steps of a tenth: a plain sum is off by a thousandth."""
  loop = make_loop.__wrapped__(
    environment=_paying(reward=0.1, lasts=60_000, cut=10**6),
    num_envs=1,
    collect=600,
    regress=1,
    steps=60_000,
    warmup=60_000,
    capacity=10,
  )
  _, (row,) = run_alone(loop, make_settings())
  exact = 60_000 * float(np.float32(0.1))
  assert row['train_return'] == pytest.approx(exact, rel=1e-7)


def test_iterations_do_not_matter():
  """One of 120 env steps, or two of 60: the same run, bit for bit."""
  settings = make_settings()
  whole, _ = run_alone(make_loop(steps=120), settings)
  parts, _ = run_alone(make_loop(steps=60), settings, iterations=2)
  assert_equal(whole, parts)


def test_blocks_of_draws_do_not_matter(monkeypatch):
  settings = make_settings()
  whole, _ = run_alone(make_loop(), settings)
  monkeypatch.setattr(scan_loop, '_DRAWN_ROUNDS', 3)
  loop = make_loop.__wrapped__()
  start = jax.jit(loop.start)(settings, jax.random.key(0))
  parts, _ = jax.jit(lambda *run: loop.iterate(*run, 0))(settings, start)
  assert_equal(whole, parts)


def _dealt(pool, law=(0.5, 0.3, 0.2), size=1):
  """One step an episode, of which `reset` draws the kind and a number."""

  def reset(key):
    kind, number = jax.random.split(key)
    kind = jax.random.categorical(kind, jnp.log(jnp.array(law)))
    obs = jnp.stack([kind.astype(jnp.float32), jax.random.uniform(number)])
    return jnp.full(size, obs[1]), obs

  def step(state, action, key):
    del action, key
    # An environment begins with a state and the observation that go together.
    obs = jnp.stack([jnp.float32(-1), state[0]])
    end = jnp.ones((), bool)
    return state, JaxTimestep(obs, state[-1], end, ~end)

  return JaxEnvironment(
    reset, step, 1, (2,), np.dtype(np.float32), None, reset_pool=pool
  )


def _starts(pool, monkeypatch, *, drawn_rounds=1_000, iterations=1, **options):
  """First observations of 3 environments at each clock but the first."""
  monkeypatch.setattr(scan_loop, '_DRAWN_ROUNDS', drawn_rounds)
  steps = options.get('steps', 60)
  loop = make_loop.__wrapped__(
    environment=_dealt(pool),
    capacity=steps * iterations,
    warmup=10**6,
    **options,
  )
  state, rows = run_alone(loop, make_settings(), iterations=iterations)
  clocks = steps * iterations // 3
  obs = np.asarray(state.replay.obs).reshape(-1, 3, 2)[: clocks + 1]
  # Of what is stored, each reward is the number of its observation.
  rewards = np.asarray(state.replay.steps).reshape(-1, 3, 2)[:clocks, :, 1]
  np.testing.assert_array_equal(rewards.view(np.float32), obs[:-1, :, 1])
  return obs[1:], rows


def test_a_block_of_rounds_has_no_more_starts_than_its_pool(monkeypatch):
  """Blocks of 5 rounds, 2 steps of 3 environments each, from pools of 4."""
  starts, _ = _starts(4, monkeypatch, drawn_rounds=5, iterations=2)
  blocks = [set(b.ravel().tolist()) for b in starts[..., 1].reshape(4, 30)]
  assert all(2 <= len(block) <= 4 for block in blocks)
  assert len(set.union(*blocks)) == sum(map(len, blocks))
  # Without a pool no start comes twice.
  starts, _ = _starts(None, monkeypatch, iterations=2)
  assert len(np.unique(starts[..., 1])) == 120


def test_a_pools_starts_are_distributed_as_resets_are(monkeypatch):
  # 100 blocks of 10 rounds: 2,000 resets, and 6,000 starts.
  starts, _ = _starts(20, monkeypatch, drawn_rounds=10, steps=6_000)
  for env in range(3):
    found = np.bincount(starts[:, env, 0].astype(int), minlength=3) / 2_000
    # Five standard deviations of 2,000 resets drawn from 2,000 times.
    np.testing.assert_allclose(
      found, [0.5, 0.3, 0.2], atol=5 * 0.5 / 1_000**0.5
    )
  assert np.corrcoef(starts[:, 0, 1], starts[:, 1, 1])[0, 1] < 0.2
  # Within a block each state of the pool is as likely.
  numbers = starts[..., 1].reshape(100, 60)
  shares = np.concatenate(
    [np.unique(block, return_counts=True)[1] for block in numbers]
  )
  # Of 60 draws among 20 all but 5 % come, three times each.
  assert 1_850 < len(shares) < 1_960 and shares.max() < 15


def test_a_pool_changes_nothing_but_the_starts():
  """Of the chain there is one start, whoever draws it."""
  loop, settings = make_loop(), make_settings()
  pooled = make_loop(environment=ENVIRONMENT._replace(reset_pool=3))
  (one, _), (other, _) = (
    run_alone(each, settings, iterations=2) for each in (loop, pooled)
  )
  assert_close(one, other)


@pytest.mark.parametrize('pool, resets', [(4, 4), (None, 10 * 2 * 3)])
def test_what_is_drawn_ahead_grows_with_the_pool_alone(pool, resets):
  """Of states of 10,000 numbers; otherwise with rounds, steps and envs."""
  loop = make_loop.__wrapped__(environment=_dealt(pool, size=10_000))
  settings = make_settings()
  start = jax.eval_shape(loop.start, settings, jax.random.key(0))
  compiled = (
    jax.jit(loop.iterate)
    .lower(settings, start, jax.ShapeDtypeStruct((), np.int32))
    .compile()
  )
  held = compiled.memory_analysis().temp_size_in_bytes
  state = 10_000 * 4
  assert resets * state <= held < (resets + 20) * state


def test_online_learning_is_a_replay_of_one_transition():
  """`Schedule.online()` without a buffer, and with one that holds one."""
  settings = make_settings(sync=1, learning_rate=0.1)
  plan = dict(num_envs=1, batch_size=1, steps=200, warmup=2)
  plan |= Schedule.online()._asdict()
  bare, _ = run_alone(make_loop(q_lambda=0.0, **plan), settings)
  ring, _ = run_alone(make_loop(capacity=1, **plan), settings)
  assert int(bare.train.gradient_steps) == 198
  assert_close(bare.train, ring.train)


@pytest.mark.parametrize('q_lambda', [0.0, 0.9])
def test_it_learns_the_exact_values_without_a_replay(q_lambda):
  """Returns of acting at random, through truncations: those of that policy."""
  loop = make_loop(
    num_envs=8,
    capacity=8,
    collect=64,
    regress=8,
    batch_size=16,
    steps=64 * 400,
    warmup=0,
    q_lambda=q_lambda,
  )
  # With lambda = 0 every return bootstraps, from the best action.
  settings = make_settings(epsilon=1.0, learning_rate=0.1, sync=1)
  state, _ = run_alone(loop, settings)
  q = mlp_network(2, sizes=()).apply(state.train.online_params, np.eye(5))
  exact = optimal_values(CHAIN, DISCOUNT)
  if q_lambda == 0:
    np.testing.assert_allclose(q[:4], exact[:4], atol=0.1)
  else:  # between the values of that policy and the best
    assert (np.asarray(q[:3]) < exact[:3] - 0.05).all()
    assert (np.asarray(q[:4]) > 0.02).all()


# Bit for bit with XLA as users have it only.
@pytest.mark.slow
def test_the_panel_disturbs_nothing():
  settings = make_settings()
  without, rows = run_alone(make_loop(), settings, iterations=4)
  loop = make_loop(panel=True, panel_period=2, probe_size=16)
  state, seen = run_alone(loop, settings, iterations=4)
  assert_equal(without.train, state.train)
  assert_equal(without.replay, state.replay)
  for row, other in zip(rows, seen, strict=True):
    assert_equal(row, {name: other[name] for name in row})
  # The first iteration draws the probe; then every second one measures.
  measured = [bool(np.isfinite(row['panel/twin_age'])) for row in seen]
  assert measured == [True, True, False, True]
  assert 'panel/cosine/soft' in seen[0]
  # 10 rounds of 2 gradient steps, and a look after round 6 of the first, with
  # 4 of warm-up; the twin is a copy of every third step.
  ages = [int(seen[i]['panel/twin_age']) for i in (0, 1, 3)]
  looks = [2 * (6 + 1 - 4), 2 * (10 + 2 + 1 - 4), 2 * (30 + 4 + 1 - 4)]
  assert ages == [look % 3 for look in looks]


@pytest.mark.slow
def test_the_panel_goes_on_in_a_sweep():
  loop = make_loop(panel=True, probe_size=16, eval_episodes=3)
  program = scan.make_program(loop, _mesh(), vectorized=True)
  state = program.start(stacked(*SWEEP), seeds(3, 3, 5))
  for number in range(2):
    state, row = program.advance(stacked(*SWEEP), state, np.int32(number))
  for number, seed in enumerate((3, 3, 5)):
    _, rows = run_alone(loop, SWEEP[number], seed, iterations=2)
    picked = jax.tree.map(lambda leaf, n=number: leaf[n], row)
    for name, value in rows[-1].items():
      np.testing.assert_allclose(
        picked[name], value, rtol=2e-3, atol=1e-4, err_msg=name
      )


@pytest.mark.parametrize('terminates', [True, False])
def test_overestimation_of_what_is_known(terminates):
  """A reward of 1 in each of 4 steps, of a network that has learned nothing."""

  def step(state, action, key):
    over = state + 1 >= 4
    return state + 1, JaxTimestep(
      jnp.ones(1), jnp.ones(()), over & terminates, over & (not terminates)
    )

  environment = JaxEnvironment(
    lambda key: (jnp.zeros((), jnp.int32), jnp.ones(1)),
    step,
    1,
    (1,),
    np.dtype(np.float32),
    4,
  )
  loop = make_loop(
    environment=environment,
    panel=True,
    probe_size=4,
    eval_episodes=2,
    eval_episode_env_steps=6,
    warmup=10_000,
  )
  state, (row,) = run_alone(loop, make_settings(discount=0.5))
  if not terminates:  # then no return is known
    assert row['panel/known_returns'] == 0
    assert np.isnan(row['panel/overestimation'])
    return
  q = mlp_network(1, sizes=()).apply(
    state.train.online_params, jnp.ones((1, 1))
  )
  mean = np.mean([1.875, 1.75, 1.5, 1.0])
  assert row['panel/return_mc'] == pytest.approx(mean)
  assert row['panel/overestimation'] == pytest.approx(float(q[0, 0]) - mean)
  assert row['panel/known_returns'] == 1


# Bit for bit with XLA as users have it only.
@pytest.mark.slow
def test_evaluation_disturbs_nothing():
  settings = make_settings(epsilon=1.0)
  loop = make_loop(steps=600)
  without, _ = run_alone(loop, settings)
  config = dataclasses.replace(
    loop.config, eval_episodes=50, eval_episode_env_steps=100
  )
  loop = dataclasses.replace(loop, config=config)
  state, (row,) = run_alone(loop, settings)
  assert_equal(without, state)
  # The chain pays on arrival only, where each evaluation begins at its start:
  # greedily it arrives before the cap of 12 steps, but for many slips.
  assert 0.9 <= row['eval_return'] <= 1.0
  assert 4 <= row['eval_episode_env_steps'] < 8
  assert row['eval_episodes_cut'] == 0
  cut = dataclasses.replace(config, eval_episode_env_steps=3)
  _, (row,) = run_alone(dataclasses.replace(loop, config=cut), settings)
  assert row['eval_episodes_cut'] == 50
  assert row['eval_episode_env_steps'] == 3


def _mesh(devices=1, axis='runs'):
  return jax.sharding.Mesh(
    np.array(jax.devices()[:devices]),
    (axis,),
    axis_types=(jax.sharding.AxisType.Auto,),
  )


def stacked(*settings):
  return jax.tree.map(lambda *leaves: np.stack(leaves), *settings)


def seeds(*numbers):
  return jax.vmap(jax.random.key)(np.array(numbers, np.uint32))


SWEEP = (
  make_settings(sync=1),
  make_settings(sync=10**6),
  make_settings(tau=0.1, sync=2, discount=0.5, learning_rate=0.05),
)


@pytest.mark.parametrize(
  'prioritized, vectorized',
  [
    (False, True),
    (True, False),
    pytest.param(False, False, marks=pytest.mark.slow),
    pytest.param(True, True, marks=pytest.mark.slow),
  ],
)
def test_a_run_is_the_same_in_a_sweep(vectorized, prioritized):
  loop = make_loop(prioritized=prioritized)
  program = scan.make_program(loop, _mesh(), vectorized=vectorized)
  settings = stacked(*SWEEP)
  state = program.start(settings, seeds(3, 3, 5))
  for _ in range(2):
    state, row = program.advance(settings, state, np.int32(_))
  same = assert_close if vectorized else assert_equal
  for number, seed in enumerate((3, 3, 5)):
    alone, rows = run_alone(loop, SWEEP[number], seed, iterations=2)
    picked = jax.tree.map(lambda leaf, n=number: leaf[n], (state, row))
    same(alone, picked[0])
    assert_close(rows[-1], picked[1])


def test_the_twin_moves_when_it_is_due():
  program = scan.make_program(make_loop(), _mesh(), vectorized=False)
  settings = stacked(*SWEEP)
  state = program.start(settings, seeds(3, 3, 5))
  born = jax.tree.map(np.asarray, state.train.target_params)
  state, row = program.advance(settings, state, np.int32(0))
  online, target = state.train.online_params, state.train.target_params
  take = lambda tree, n: jax.tree.map(lambda leaf: leaf[n], tree)
  assert_equal(take(online, 0), take(target, 0))
  assert_equal(take(born, 1), take(target, 1))
  assert np.any(data(take(online, 1))[1] != data(take(target, 1))[1])
  # 10 rounds of 6 env steps, of which the first 4 only collect.
  np.testing.assert_array_equal(row['gradient_steps'], 12)
  np.testing.assert_array_equal(row['env_steps'], 60)


def test_train_yields_every_iteration():
  program = scan.make_program(make_loop(), _mesh(), vectorized=False)
  settings = stacked(make_settings())
  state = program.start(settings, seeds(0))
  found = []
  for progress in scan.train(
    program, settings, state, iteration=0, iterations=3
  ):
    found.append((progress.iteration, progress.row['env_steps'].tolist()))
  assert found == [(1, [60]), (2, [120]), (3, [180])]
  alone, _ = run_alone(make_loop(), make_settings(), iterations=3)
  assert_equal(alone, jax.tree.map(lambda leaf: leaf[0], progress.state))
  again = scan.train(
    program, settings, progress.state, iteration=3, iterations=3
  )
  assert not list(again)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'num_envs': 4}, 'collect=6 .* multiple of num_envs=4'),
    ({'steps': 61}, 'iteration_env_steps=61 .* multiple of the round, 6'),
    ({'steps': 0}, 'iteration_env_steps=0'),
  ],
)
def test_numbers_that_do_not_fit(changes, message):
  changes.setdefault('capacity', 60)
  with pytest.raises(ValueError, match=message):
    make_loop(**changes)


def test_meshes_that_do_not_fit():
  with pytest.raises(ValueError, match="'rows' must be 'runs' or 'batch'"):
    scan.make_program(make_loop(), _mesh(axis='rows'), vectorized=False)


_DEVICES = """
import numpy as np, jax
from tests.runners.test_scan import *
from tests.runners.test_scan import _mesh
assert len(jax.devices()) == 8
settings = stacked(*(make_settings(sync=n + 1) for n in range(16)))
keys = seeds(*range(16))

def both(program, settings, keys):
  state = program.start(settings, keys)
  for n in range(2):
    state, row = program.advance(settings, state, np.int32(n))
  return jax.device_get((state.train.online_params, state.obs, row))

alone = scan.make_program(make_loop(), _mesh(), vectorized=False)
one = both(alone, settings, keys)
for vectorized in (False, True):
  program = scan.make_program(make_loop(), _mesh(8), vectorized=vectorized)
  text = program.advance.lower(
    settings, program.start(settings, keys), np.int32(0)
  ).compile().as_text()
  assert 'all-' not in text  # runs never wait for each other
  (assert_close if vectorized else assert_equal)(
    one, both(program, settings, keys)
  )

settings, keys = stacked(make_settings()), seeds(0)
one = both(alone, settings, keys)
program = scan.make_program(
  make_loop(), _mesh(8, 'batch'), vectorized=False
)
text = program.advance.lower(
  settings, program.start(settings, keys), np.int32(0)
).compile().as_text()
assert 'all-reduce' in text  # the batch is shared: gradients are added up
assert_close(one, both(program, settings, keys))
odd = make_loop(batch_size=9)
try:
  scan.make_program(odd, _mesh(8, 'batch'), vectorized=False)
except ValueError as error:
  assert 'batch_size=9 must be a multiple of the 8 devices' in str(error)
else:
  raise AssertionError
print('as on one device')
"""


@pytest.mark.slow
def test_eight_devices():
  """Runs are shared bit for bit, a batch to the tolerance of floats."""
  flags = os.environ.get('XLA_FLAGS', '')
  result = subprocess.run(
    [sys.executable, '-c', _DEVICES],
    env=os.environ
    | {'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count=8'},
    capture_output=True,
    text=True,
    timeout=240,
    check=False,
  )
  assert result.stdout == 'as on one device\n', result.stderr[-3000:]
