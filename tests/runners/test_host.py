"""The host loop: what it learns, when it does what, that it is repeatable."""

import dataclasses
import functools
import json
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import diagnostics, learner, schedule, twins
from siamrl.agents.distributional import make_c51, make_qrdqn
from siamrl.agents.implicit import make_iqn
from siamrl.agents.q import make_q_agent
from siamrl.learner import ClockedTwin
from siamrl.networks.q_network import mlp_network
from siamrl.replay.host import HostReplay
from siamrl.runners import host
from siamrl.runners.host import loop as host_loop
from siamrl.types import Acting, Agent, TrainState
from tests import probes
from tests.parameters import slow_but

GAMMA = 0.8
MODES = pytest.mark.parametrize('overlapped', [False, True])


class Run(NamedTuple):
  """What a finished, or stopped, call of `train` left."""

  state: host.LoopState
  replay: HostReplay
  rows: list[dict[str, float]]


def _config(
  *, num_envs=1, train_period=4, env_steps=240, **others
) -> host.LoopConfig:
  return host.LoopConfig(
    **{
      'schedule': schedule.make_schedule(num_envs, train_period),
      'total_env_steps': env_steps,
      'iteration_env_steps': env_steps // 2,
      'warmup_env_steps': 48,
      'batch_size': 8,
      'epsilon': lambda t: 0.3,
      'chunk_env_steps': 60,
      **others,
    }
  )


# Caches, so that equal functions are compiled once for all tests.


@functools.cache
def _network(num_actions):
  return mlp_network(num_actions, sizes=(16,))


@functools.cache
def _agent_of_shape(states, actions, name) -> Agent:
  obs = np.zeros((1, 1, states), np.float32)
  network = functools.partial(mlp_network, actions, sizes=(16,), outputs=21)
  if name == 'c51':
    return make_c51(network(), obs, num_atoms=21, v_min=-0.5, v_max=1.5)
  if name == 'qrdqn':
    return make_qrdqn(network(), obs, quantiles=21, error_bound=0.1)
  if name == 'iqn':
    return make_iqn(_network(actions), obs, error_bound=0.1)
  return make_q_agent(_network(actions), obs, name=name, td_loss='squared')


def _agent(tables, name='dqn') -> Agent:
  return _agent_of_shape(*tables.rewards.shape, name)


OPTIMIZER, HARD = optax.adam(1e-2), twins.hard()


@functools.cache
def _learner(agent, rule=HARD, sync=5) -> learner.Learner:
  return learner.make_learner(agent, OPTIMIZER, ClockedTwin(rule, sync))


def _replay(tables, num_envs=1, capacity=1_200, discount=GAMMA) -> HostReplay:
  return HostReplay(
    capacity,
    frame_shape=(len(tables.rewards),),
    frame_dtype=np.float32,
    num_envs=num_envs,
    stack=1,
    discount=discount,
  )


def _train(
  config,
  tables=None,
  *,
  num_envs=1,
  seed=0,
  make=None,
  agent=None,
  rule=HARD,
  sync=5,
  regress=None,
  train=None,
  replay=None,
  state=None,
  until=None,
  watch=None,
  on_change=None,
) -> Run:
  """Trains to the end, or `until` at least so many env steps were taken."""
  tables = tables or probes.chain()
  made = _learner(agent or _agent(tables), rule, sync)
  if replay is None:
    replay = _replay(tables, num_envs)
  if state is None:
    if train is None:
      train = made.init(jax.random.key(seed))
    seen = None
    if watch is not None:
      seen = watch.start(train, (1, len(tables.rewards)), np.float32)
    state = host.LoopState.start(train, seed=seed, num_envs=num_envs, seen=seen)
  if regress is not None:
    made = made._replace(regress=regress)
  progress = host.train(
    config,
    state,
    learner=made,
    replay=replay,
    make_environments=make or probes.make(tables, num_envs),
    seed=seed,
    act_key=jax.random.key(seed + 1),
    watch=watch,
    on_change=on_change,
  )
  rows = []
  for _, metrics in progress:
    if metrics is not None:
      rows.append(metrics)
    if until is not None and state.env_steps >= until:
      break
  progress.close()
  return Run(state, replay, rows)


def _numbers(run: Run) -> Any:
  """All that a run left, but for the wall clock's."""
  train = run.state.train
  rows = [
    {k: v for k, v in row.items() if k not in host.TIMERS} for row in run.rows
  ]
  position = run.state.to_json()
  position['statistics'].pop('seconds')
  batch = run.replay.peek(np.random.default_rng(0), run.replay.size)
  return json.loads(json.dumps([rows, position])), [
    np.asarray(leaf)
    for leaf in jax.tree.leaves(
      (train.replace(key=jax.random.key_data(train.key)), batch)
    )
  ]


def _assert_same(a: Run, b: Run) -> None:
  (json_a, leaves_a), (json_b, leaves_b) = _numbers(a), _numbers(b)
  np.testing.assert_equal(json_a, json_b)  # unlike ==, takes nan for nan
  for left, right in zip(leaves_a, leaves_b, strict=True):
    np.testing.assert_array_equal(left, right)


# What is learned.

_PROBES = {
  'constant': probes.constant(),
  'observation': probes.observation(),
  'delayed': probes.delayed(),
  'action': probes.action(),
  'observation_action': probes.observation_action(),
  'chain': probes.chain(),
  'truncated': probes.truncated(3),
  'truncated_far_from_start': probes.truncated_far_from_start(),
  'terminated': probes.terminated(3),
}
# What the others show besides, these show, too.
_QUICK = ('observation_action', 'chain', 'truncated', 'terminated')


def _error(run, tables, name='dqn', **options):
  """The largest error of a value, after learning and before."""
  train = run.state.train if isinstance(run, Run) else run
  q = _agent(tables, name).values(train.online_params, tables.observations)
  return np.max(np.abs(q - tables.q_values(GAMMA, **options)))


def _learn(
  tables, name='dqn', rule=HARD, sync=25, num_envs=1, replay=None, **options
):
  config = _config(
    num_envs=num_envs,
    train_period=2,
    env_steps=2_000,
    batch_size=32,
    epsilon=lambda t: 1.0 if t < 100 else 0.5,
    warmup_env_steps=100,
    chunk_env_steps=1_000,
    **options,
  )
  agent = _agent(tables, name)
  untrained = _learner(agent).init(jax.random.key(0))
  before = _error(untrained, tables, name)
  return before, _train(
    config,
    tables,
    agent=agent,
    rule=rule,
    sync=sync,
    num_envs=num_envs,
    replay=replay or _replay(tables, num_envs, 2_000 * num_envs),
  )


@pytest.mark.parametrize('name', slow_but(_QUICK.__contains__, _PROBES))
def test_learns_the_values_of_a_probe(name):
  """The last three: truncation bootstraps, termination does not."""
  tables = _PROBES[name]
  before, run = _learn(tables)
  assert before > 0.3
  # A 25th of the largest value; the chain slips, which leaves a sample's error.
  scale = np.max(np.abs(tables.q_values(GAMMA)))
  assert _error(run, tables) < (0.1 if tables.slip else 0.04 * scale)


@pytest.mark.parametrize(
  'name, rule, sync, overlapped, num_envs',
  [
    ('double_dqn', twins.soft(0.05), 1, True, 4),
    ('c51', HARD, 25, False, 1),
    *slow_but(
      lambda _: False,
      [
        ('double_dqn', HARD, 25, False, 1),
        ('dqn', twins.soft(0.05), 1, False, 2),
        ('dqn', HARD, 25, True, 1),
        ('qrdqn', twins.soft(0.05), 1, False, 2),
        ('iqn', HARD, 25, False, 1),
      ],
    ),
  ],
)
def test_every_kind_of_learner_learns_the_chain(
  name, rule, sync, overlapped, num_envs
):
  tables = probes.chain()
  before, run = _learn(
    tables, name, rule, sync, num_envs, overlapped=overlapped
  )
  assert before > 0.3
  assert _error(run, tables, name) < 0.1


@pytest.mark.parametrize('terminates', [False, True])
def test_a_lost_life_cuts_the_bootstrap_where_it_is_told_to(terminates):
  tables = probes.losing_lives()
  _, run = _learn(tables, life_loss_terminates=terminates)
  assert _error(run, tables, life_loss_terminates=terminates) < 0.3
  assert _error(run, tables, life_loss_terminates=not terminates) > 2.0
  assert run.rows[-1]['train_episodes'] == 0  # the game goes on either way


# When it does what.


@pytest.mark.parametrize(
  'num_envs, train_period, warmup, sync',
  [
    (1, 1, 48, 1),
    (1, 4, 48, 5),
    (1, 4, 50, 5),
    (2, 8, 64, 3),
    (8, 2, 60, 7),
    (3, 1, 48, 2),
  ],
)
def test_gradient_steps_and_target_updates_happen_as_often_as_reported(
  num_envs, train_period, warmup, sync
):
  tables = probes.chain()
  train = _learner(_agent(tables)).init(jax.random.key(0))
  # This twin counts the updates, in every parameter.
  train = train.replace(
    target_params=jax.tree.map(jnp.zeros_like, train.target_params)
  )

  def count(online, target, gradient_steps):
    return jax.tree.map(lambda leaf: leaf + 1, target)

  config = _config(
    num_envs=num_envs,
    train_period=train_period,
    warmup_env_steps=warmup,
  )
  run = _train(
    config,
    tables,
    num_envs=num_envs,
    rule=HARD._replace(update=count),
    sync=sync,
    train=train,
  )
  collect, regress = config.schedule
  rounds_without = -(-warmup // collect)  # those that began before the warm-up
  for number, row in enumerate(run.rows, 1):
    assert row['env_steps'] == 120 * number
    rounds = 120 * number // collect - rounds_without
    assert row['gradient_steps'] == rounds * regress
    assert row['target_updates'] == row['gradient_steps'] // sync
  assert run.rows[-1]['gradient_steps'] == int(run.state.train.gradient_steps)
  happened = {
    float(leaf.flat[0])
    for leaf in map(np.asarray, jax.tree.leaves(run.state.train.target_params))
  }
  assert happened == {run.rows[-1]['target_updates']}


class Spy:
  """An agent whose action, and a learner whose loss, are its gradient steps."""

  tables = dataclasses.replace(
    probes.constant(),
    rewards=np.ones((1, 250)),
    successors=np.full((1, 250), probes.END),
  )

  def __init__(self):
    self.agent = probes.agent_of(
      init=lambda key: {'count': jnp.float32(0)},
      loss=lambda *unused: None,
      acting=self.acting(
        lambda params, obs: jnp.full(len(obs), params['count'], jnp.int32)
      ),
    )

  @staticmethod
  def acting(greedy) -> Acting:
    """Acting without chance."""
    act = lambda params, obs, noise, epsilon: greedy(params, obs)
    return Acting(lambda key, batch_size: None, act, greedy, play=act)

  @staticmethod
  def regress(state: TrainState, batch):
    count = state.gradient_steps + 1
    return state.replace(
      online_params={'count': count.astype(jnp.float32)}, gradient_steps=count
    ), {'loss': count.astype(jnp.float32)}

  def train(self, config, *, regress=None, **options) -> Run:
    state = TrainState(
      self.agent.init(None),
      {'count': jnp.float32(0)},
      (),
      jnp.int32(0),
      jax.random.key(0),
    )
    return _train(
      config,
      options.pop('tables', self.tables),
      agent=self.agent,
      train=state,
      regress=regress or self.regress,
      **options,
    )


@pytest.mark.parametrize('num_envs, train_period', [(1, 4), (2, 4), (4, 2)])
@MODES
def test_age_of_the_parameters_that_act_and_of_the_data_learned_from(
  overlapped, num_envs, train_period
):
  """A round acts with what the rounds before learned.

  Exactly: from all that they had collected, but for the steps in flight; else
  from what the rounds before them had.
  """
  sizes = []

  class Replay(HostReplay):
    def sample(self, rng, batch_size):
      sizes.append(self.size)
      return super().sample(rng, batch_size)

  config = _config(
    num_envs=num_envs,
    train_period=train_period,
    overlapped=overlapped,
    env_steps=160,
    iteration_env_steps=160,
  )
  calls: list[tuple[str, Any]] = []
  Spy().train(
    config,
    num_envs=num_envs,
    make=lambda seed: Log(probes.Probe(Spy.tables, num_envs, seed=seed), calls),
    replay=Replay(
      600, frame_shape=(1,), frame_dtype=np.float32, num_envs=num_envs, stack=1
    ),
  )
  collect, regress = config.schedule
  acted = np.concatenate([a for call, a in calls if call == 'send'])
  rounds = np.arange(160) // collect
  np.testing.assert_array_equal(
    acted, np.maximum(rounds - 48 // collect, 0) * regress
  )
  stored = np.repeat(np.arange(48, 160, collect), regress)
  if not overlapped:
    stored = stored + collect - num_envs
  np.testing.assert_array_equal(sizes, stored)


class Log:
  """Environments that log their calls, and may dawdle."""

  def __init__(self, environments, calls, before_recv=lambda: None):
    self._environments, self._calls = environments, calls
    self._before_recv = before_recv

  def __getattr__(self, name):
    return getattr(self._environments, name)

  def send(self, actions):
    self._calls.append(('send', actions.copy()))
    self._environments.send(actions)

  def recv(self):
    self._calls.append(('recv', None))
    self._before_recv()
    return self._environments.recv()


@pytest.mark.parametrize(
  'num_envs, train_period, exact, overlapped',
  [
    (
      1,
      2,
      'act send recv act send draw learn recv',
      'draw act learn send recv act send recv',
    ),
    (2, 1, *['draw draw act learn send recv'] * 2),
  ],
)
def test_order_within_a_round(
  num_envs, train_period, exact, overlapped, monkeypatch
):
  tables = probes.chain()
  for mode, order in ((False, exact), (True, overlapped)):
    calls: list[tuple[str, Any]] = []

    class Replay(HostReplay):
      def sample(self, rng, batch_size, calls=calls):
        calls.append(('draw', None))
        return super().sample(rng, batch_size)

    def jit(regress, reads, calls=calls):
      steps = learner.jit_regress(regress, reads)
      return lambda *args: calls.append(('learn', None)) or steps(*args)

    monkeypatch.setattr(host_loop, 'jit_regress', jit)

    def epsilon(env_steps, calls=calls):
      calls.append(('act', None))
      return 0.3

    config = _config(
      num_envs=num_envs,
      train_period=train_period,
      overlapped=mode,
      epsilon=epsilon,
      env_steps=100,
      iteration_env_steps=100,
    )
    _train(
      config,
      tables,
      num_envs=num_envs,
      make=lambda seed, calls=calls: Log(
        probes.Probe(tables, num_envs, seed=seed), calls
      ),
      replay=Replay(
        600,
        frame_shape=(4,),
        frame_dtype=np.float32,
        num_envs=num_envs,
        stack=1,
      ),
    )
    names = [name for name, _ in calls][:-1]  # the row reads epsilon, too
    quiet = ['act', 'send', 'recv'] * (48 // num_envs)
    rounds = (100 - 48) // config.schedule.collect
    assert names == quiet + order.split() * rounds


class Busy:
  """Gradient steps of a tenth of a second, and whether one is under way.

  Made of computation: JAX waits for programs that call back.
  """

  def __init__(self, monkeypatch):
    self._result: jax.Array | None = None
    monkeypatch.setattr(host_loop, 'jit_regress', self._jit)

  @staticmethod
  def regress(state, batch):
    state, metrics = Spy.regress(state, batch)
    ones = jnp.full((512, 512), metrics['loss'] > 0, jnp.float32)
    work = jax.lax.fori_loop(0, 50, lambda _, x: x @ x / 512, ones)
    count = state.online_params['count'] * work[0, 0]
    return state.replace(online_params={'count': count}), metrics

  def _jit(self, regress, reads):
    steps = learner.jit_regress(regress, reads)

    def run(state, batches):
      state, metrics = steps(state, batches)
      self._result = state.online_params['count']
      return state, metrics

    return run

  def under_way(self) -> bool:
    return self._result is not None and not self._result.is_ready()


@pytest.mark.parametrize('train_period', slow_but((3,).__contains__, [1, 3]))
@MODES
def test_emulators_work_while_gradient_steps_run(
  overlapped, train_period, monkeypatch
):
  """One env step of a round, the first where they overlap, else the last."""
  busy, seen = Busy(monkeypatch), []
  calls: list[tuple[str, Any]] = []
  run = Spy().train(
    _config(
      train_period=train_period,
      overlapped=overlapped,
      env_steps=48 + 12 * train_period,
      iteration_env_steps=48 + 12 * train_period,
      chunk_env_steps=1,
    ),
    regress=busy.regress,
    make=lambda seed: Log(
      probes.Probe(Spy.tables, seed=seed),
      calls,
      lambda: seen.append(busy.under_way()),
    ),
  )
  assert int(run.state.train.gradient_steps) == 12
  beside = np.reshape(seen[48:], (12, train_period)).sum(0).tolist()
  # A loop that waits sees none; of 11, some may end early on a busy machine.
  assert beside[0 if overlapped else -1] >= 6


def test_batches_are_drawn_while_gradient_steps_run(monkeypatch):
  busy, seen = Busy(monkeypatch), []

  class Replay(HostReplay):
    def sample(self, rng, batch_size):
      seen.append(busy.under_way())
      return super().sample(rng, batch_size)

  Spy().train(
    _config(train_period=1, env_steps=60, iteration_env_steps=60),
    regress=busy.regress,
    replay=Replay(
      600, frame_shape=(1,), frame_dtype=np.float32, num_envs=1, stack=1
    ),
  )
  assert len(seen) == 12
  # A loop that waits sees none; of 10, some may end early on a busy machine.
  assert sum(seen) >= 6


def test_epsilon_is_asked_at_every_step_and_obeyed():
  asked = []

  def epsilon(env_steps):
    asked.append(env_steps)
    return 1.0 if env_steps < 4_000 else 0.0

  calls: list[tuple[str, Any]] = []
  tables = probes.observation_action()
  config = _config(
    num_envs=2, epsilon=epsilon, env_steps=8_000, warmup_env_steps=8_000
  )
  run = _train(
    config,
    tables,
    num_envs=2,
    make=lambda seed: Log(probes.Probe(tables, 2, seed=seed), calls),
  )
  in_rows = [4_000, 8_000]
  assert sorted(asked) == sorted([*range(0, 8_000, 2), *in_rows])
  assert [row['epsilon'] for row in run.rows] == [0.0, 0.0]
  actions = np.stack([a for call, a in calls if call == 'send'])
  # Five standard deviations; each environment draws for itself.
  uniform, greedy = actions[:2_000], actions[2_000:]
  np.testing.assert_allclose(uniform.mean(0), 0.5, atol=5 * 0.5 / 2_000**0.5)
  same = np.mean(uniform[:, 0] == uniform[:, 1])
  assert same == pytest.approx(0.5, abs=5 * 0.5 / 2_000**0.5)
  q = _network(2).apply(run.state.train.online_params, tables.observations)
  assert set(greedy.ravel().tolist()) <= set(np.argmax(q, 1).tolist())


class Reading(HostReplay):
  """A replay that reads errors, and draws other batches after other ones."""

  reads = ('td_error_abs',)

  def __init__(self, num_envs, states=4):
    super().__init__(
      1_200,
      frame_shape=(states,),
      frame_dtype=np.float32,
      num_envs=num_envs,
      stack=1,
      discount=GAMMA,
    )
    self.error, self.heard, self.calls = 0.0, [], []

  def add(self, **step):
    self.calls.append('add')
    super().add(**step)

  def sample(self, rng, batch_size):
    self.calls.append('draw')
    more = int(self.error * 1e5) % 8
    batch = self.peek(rng, batch_size + more)
    return jax.tree.map(lambda leaf: leaf[more:], batch), batch.r_t[more:]

  def update(self, handle, metrics):
    self.calls.append('update')
    assert metrics.keys() == {'td_error_abs'}
    self.heard.append((handle, metrics['td_error_abs']))
    self.error += float(metrics['td_error_abs'].max())


@pytest.mark.parametrize(
  'num_envs, train_period, exact, overlapped',
  [
    (1, 3, 'add add draw add update', 'draw add add add update'),
    (4, 1, *['draw draw draw draw add update update update update'] * 2),
    (4, 2, *['draw draw add update update'] * 2),
  ],
)
@pytest.mark.parametrize('chunk', [1, 12, 1_000])
def test_a_replay_is_told_between_two_rounds_wherever_chunks_end(
  num_envs, train_period, exact, overlapped, chunk
):
  for mode, order in ((False, exact), (True, overlapped)):
    replay = Reading(num_envs)
    config = _config(
      num_envs=num_envs,
      train_period=train_period,
      overlapped=mode,
      env_steps=96,
      iteration_env_steps=96,
      chunk_env_steps=chunk,
    )
    _train(config, num_envs=num_envs, replay=replay)
    quiet = ['add'] * (48 // num_envs)
    rounds = 48 // config.schedule.collect
    assert replay.calls == quiet + order.split() * rounds


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_a_replay_is_told_of_the_batches_that_it_drew(monkeypatch, backend):
  """Each of four in a round, be they one dispatch or four."""
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)

  def regress(state, batch):
    state, metrics = Spy.regress(state, batch)
    return state, metrics | {'td_error_abs': 10 * batch.r_t + metrics['loss']}

  replay = Reading(4, states=1)
  tables = dataclasses.replace(Spy.tables, rewards=np.arange(250.0)[None] / 250)
  config = _config(num_envs=4, train_period=1, env_steps=96)
  run = Spy().train(
    config, tables=tables, num_envs=4, replay=replay, regress=regress
  )
  assert len(replay.heard) == int(run.state.train.gradient_steps) == 48
  for step, (rewards, errors) in enumerate(replay.heard, 1):
    np.testing.assert_allclose(errors, 10 * rewards + step, rtol=1e-6)
  assert len({rewards.tobytes() for rewards, _ in replay.heard}) > 20


def test_a_replay_that_reads_what_is_not_reported_is_refused():
  with pytest.raises(ValueError, match='td_error_abs is read, but the loss'):
    Spy().train(_config(), replay=Reading(1, states=1))


# That it is repeatable.


def _whole(config, num_envs, reading):
  """A run that never stopped, trained once for tests of the same options."""
  options = num_envs, config.overlapped, config.chunk_env_steps, reading
  if options not in _WHOLE:
    replay = Reading(num_envs) if reading else None
    _WHOLE[options] = _train(config, num_envs=num_envs, replay=replay)
  return _WHOLE[options]


_WHOLE: dict[tuple, Run] = {}


# 48: the warm-up has just ended; 75: in an iteration; 120: between two, the row
# of the first just yielded; 204: in the second.
STOPS = slow_but((12, 75, 204).__contains__, [12, 48, 75, 120, 204])


@pytest.mark.parametrize('stop', STOPS[1:])
@pytest.mark.parametrize('num_envs', [1, 3])
@MODES
def test_a_run_resumes_with_a_replay_that_reads(
  overlapped, num_envs, stop, tmp_path
):
  config = _config(num_envs=num_envs, train_period=3, overlapped=overlapped)
  train = functools.partial(_train, config, num_envs=num_envs)
  first = train(until=stop, replay=Reading(num_envs))
  manifest = first.replay.save(tmp_path)
  saved = json.loads(json.dumps([first.state.to_json(), manifest]))
  learned = jax.tree.map(jnp.copy, first.state.train)
  replay = Reading(num_envs)
  replay.load(tmp_path, saved[1])
  replay.error = first.replay.error
  state = host.LoopState.from_json(learned, saved[0])
  second = train(state=state, replay=replay)
  whole = _whole(config, num_envs, reading=True)
  _assert_same(whole, second._replace(rows=first.rows + second.rows))
  assert whole.replay.error == replay.error > 0
  # Had it been told nothing, another run would have come of it.
  deaf = _whole(config, num_envs, reading=False)
  assert any(
    (a != b).any()
    for a, b in zip(_numbers(deaf)[1][:2], _numbers(whole)[1][:2], strict=True)
  )


@pytest.mark.parametrize('num_envs', [1, 3])
@MODES
def test_same_seed_same_numbers_whatever_the_timing(overlapped, num_envs):
  config = _config(
    num_envs=num_envs,
    overlapped=overlapped,
    **({'train_period': 3} if num_envs == 3 else {}),
  )
  tables, rng = probes.chain(), np.random.default_rng()
  train = functools.partial(_train, config, tables, num_envs=num_envs)
  one = train()
  late = train(
    make=lambda seed: Log(
      probes.Probe(tables, num_envs, seed=seed),
      [],
      lambda: time.sleep(rng.choice([0, 0, 0.003])),
    )
  )
  _assert_same(one, late)
  other = train(seed=1)
  assert one.state.obs_crc == other.state.obs_crc == 0
  for left, right in zip(
    *(_numbers(run)[1] for run in (one, other)), strict=True
  ):
    assert left.size <= 1 or left.shape != right.shape or (left != right).any()


@pytest.mark.parametrize('chunk', [1, 1_000])
@pytest.mark.parametrize('train_period', [4, 1])
@MODES
def test_chunks_do_not_change_the_numbers(overlapped, train_period, chunk):
  num_envs = 4 // train_period  # one gradient step a round, or four
  config = _config(
    num_envs=num_envs, train_period=train_period, overlapped=overlapped
  )
  other = dataclasses.replace(config, chunk_env_steps=chunk)
  _assert_same(
    _train(config, num_envs=num_envs), _train(other, num_envs=num_envs)
  )


@pytest.mark.parametrize('stop', STOPS)
@pytest.mark.parametrize('num_envs', [1, 3])
@MODES
def test_a_resumed_run_equals_one_that_never_stopped(
  overlapped, num_envs, stop, tmp_path
):
  config = _config(
    num_envs=num_envs, train_period=3, overlapped=overlapped, chunk_env_steps=12
  )
  train = functools.partial(_train, config, num_envs=num_envs)
  first = train(until=stop)
  assert first.state.env_steps == stop
  assert len(first.rows) == stop // 120
  manifest = first.replay.save(tmp_path)
  saved = json.loads(json.dumps([first.state.to_json(), manifest]))
  learned = jax.tree.map(jnp.copy, first.state.train)
  replay = _replay(probes.chain(), num_envs)
  replay.load(tmp_path, saved[1])
  state = host.LoopState.from_json(learned, saved[0])
  second = train(state=state, replay=replay)
  whole = _whole(config, num_envs, reading=False)
  _assert_same(whole, second._replace(rows=first.rows + second.rows))


def _watch(period=1) -> host.Watch:
  panel = diagnostics.make_panel(
    _learner(_agent(probes.chain())),
    shadows={'soft': ClockedTwin(twins.soft(0.5), 2)},
  )
  return host.Watch(panel, period, probe_size=16)


def test_the_panel_disturbs_nothing():
  config = _config(env_steps=480, chunk_env_steps=12, iteration_env_steps=120)
  plain, watched = _train(config), _train(config, watch=_watch(period=2))
  for left, right in zip(
    *(_numbers(run)[1] for run in (plain, watched)), strict=True
  ):
    np.testing.assert_array_equal(left, right)
  measured = [np.isfinite(row['panel/twin_age']) for row in watched.rows]
  assert measured == [True, True, False, True]  # the first draws the probe
  # 4 env steps a gradient step from 48 on; looked at from the share of each
  # iteration that the golden ratio gives, 0.618, 0.236, -, 0.472, on, at the
  # next chunk's end; the first of them are cut after the first gradient step.
  looks = [52 + 24, 120 + 36, 360 + 60]
  ages = [
    row['panel/twin_age'] for row in watched.rows if row['panel/twin_age'] >= 0
  ]
  assert ages == [(look - 48) // 4 % 5 for look in looks]
  names = {name for name in watched.rows[0] if name.startswith('panel/')}
  assert 'panel/cosine/soft' in names
  assert all(names <= set(row) for row in watched.rows)


@pytest.mark.parametrize('stop', [60, 96, 204])
def test_a_watched_run_resumes(stop, tmp_path):
  train = functools.partial(_train, _config(chunk_env_steps=12), watch=_watch())
  first = train(until=stop)
  manifest = first.replay.save(tmp_path)
  saved = json.loads(json.dumps([first.state.to_json(), manifest]))
  learned, seen = jax.tree.map(jnp.copy, (first.state.train, first.state.seen))
  replay = _replay(probes.chain())
  replay.load(tmp_path, saved[1])
  state = host.LoopState.from_json(learned, saved[0], seen)
  second = train(state=state, replay=replay)
  _assert_same(train(), second._replace(rows=first.rows + second.rows))


def test_no_yield_but_the_rows_stands_at_an_iterations_end():
  """A run stopped there would have no row left to give when resumed."""
  config = _config(chunk_env_steps=12)
  tables = probes.chain()
  made = _learner(_agent(tables))
  state = host.LoopState.start(made.init(jax.random.key(0)), seed=0, num_envs=1)
  yields = [
    (state.env_steps, metrics is not None)
    for state, metrics in host.train(
      config,
      state,
      learner=made,
      replay=_replay(tables),
      make_environments=probes.make(tables),
      seed=0,
      act_key=jax.random.key(1),
    )
  ]
  assert [at for at, row in yields if row] == [120, 240]
  assert not {120, 240} & {at for at, row in yields if not row}
  # 52 is the first round that learns: whoever watches sees it compiled.
  assert [at for at, _ in yields][:6] == [12, 24, 36, 48, 52, 64]


def test_environments_of_another_version_are_noticed():
  first = _train(_config(), until=60)
  changed = dataclasses.replace(probes.chain(), truncate_after=5)
  with pytest.raises(RuntimeError, match='another version'):
    _train(
      _config(),
      state=first.state,
      replay=first.replay,
      make=probes.make(changed),
    )


def test_changed_environments_may_be_started_afresh():
  """What was learned and counted stays; only the episode is given up."""
  first = _train(_config(env_steps=480), until=60)
  rows, env_steps = first.rows, first.state.env_steps
  returns = list(first.state.statistics.returns)
  finished = sum(first.state.statistics.lengths)
  assert finished < env_steps
  stored = first.replay.size
  opened, told = [], []

  def make(seed):
    opened.append(probes.Probe(probes.chain(), seed=seed + len(opened) + 9))
    return opened[-1]

  second = _train(
    _config(env_steps=480, chunk_env_steps=12),
    state=first.state,
    replay=first.replay,
    make=make,
    on_change=lambda: told.append(first.state.env_steps),
    until=env_steps + 12,
  )
  assert told == [env_steps] and len(opened) == 2
  state = second.state
  assert state.env_steps == env_steps + 12 and len(state.actions) == 12
  statistics = state.statistics
  assert statistics.returns[: len(returns)] == returns
  # Of the episode that was given up nothing is counted.
  counted = sum(statistics.lengths) + statistics.running_lengths[0]
  assert counted == finished + 12
  assert second.replay.size >= stored + 11
  second.replay.check()
  # From there it can be stopped and resumed as any other.
  third = _train(
    _config(env_steps=480),
    state=state,
    replay=second.replay,
    make=lambda seed: probes.Probe(probes.chain(), seed=seed + 1 + 9),
  )
  assert [row['env_steps'] for row in rows + third.rows] == [240, 480]
  with pytest.raises(RuntimeError, match='nothing'):
    opened[0].reset()


def test_environments_are_closed_whatever_happens():
  opened = []

  def make(seed):
    opened.append(probes.Probe(probes.chain(), seed=seed))
    return opened[-1]

  _train(_config(), make=make)
  _train(_config(), make=make, until=60)
  with pytest.raises(RuntimeError, match='broken'):
    _train(_config(), make=lambda seed: Log(make(seed), [], _break))
  assert len(opened) == 4
  for probe in opened:
    with pytest.raises(RuntimeError, match='nothing'):
      probe.reset()


def _break():
  raise RuntimeError('broken')


def test_seeds_of_environments_differ():
  seeds = [
    host.environment_seed(seed, iteration, evaluation=evaluation)
    for seed in range(20)
    for iteration in range(20)
    for evaluation in (False, True)
  ]
  assert len(set(seeds)) == len(seeds)
  assert all(0 <= seed < 2**31 for seed in seeds)


def test_each_iteration_has_environments_of_its_own_seed():
  seeds = []

  def make(seed):
    seeds.append(seed)
    return probes.Probe(probes.chain(), seed=seed)

  _train(_config(iteration_env_steps=80), seed=7, make=make)
  assert seeds == [
    host.environment_seed(7, iteration, evaluation=False)
    for iteration in range(3)
  ]


# What it reports.


def test_columns_are_the_same_whether_or_not_anything_is_learned():
  config = _config(env_steps=240, iteration_env_steps=40)
  rows = _train(config).rows
  assert len(rows) == 6
  assert len({tuple(row) for row in rows}) == 1
  expected = {'loss', 'q_tm1', 'td_error_abs', *host.TIMERS} - {'panel_s'}
  assert expected < set(rows[0])
  assert np.isnan(rows[0]['loss']) and np.isfinite(rows[-1]['loss'])
  assert [row['iteration'] for row in rows] == list(range(6))
  assert [row['frames'] for row in rows] == [40 * n for n in range(1, 7)]


def test_metrics_are_means_over_the_gradient_steps_of_an_iteration():
  config = _config(num_envs=4, train_period=1, warmup_env_steps=80)
  rows = Spy().train(config, num_envs=4).rows
  assert rows[0]['loss'] == np.mean(np.arange(1, 41))
  assert rows[1]['loss'] == np.mean(np.arange(41, 161))


def test_returns_are_true_scores_and_stored_rewards_are_clipped():
  tables = probes.tables_of([[7.0]] * 2 + [[-0.5]], [[1], [2], [probes.END]])
  run = _train(_config(num_envs=2), tables, num_envs=2)
  for row in run.rows:
    assert row['train_return'] == 13.5
    assert row['train_episode_env_steps'] == 3
    assert row['train_episodes'] == 120 // 3
  batch = run.replay.peek(np.random.default_rng(0), run.replay.size)
  assert set(batch.r_t.tolist()) == {1.0, -0.5}
  free = _train(_config(reward_clip=None), tables)
  batch = free.replay.peek(np.random.default_rng(0), free.replay.size)
  assert set(batch.r_t.tolist()) == {7.0, -0.5}


@pytest.mark.parametrize('num_envs', [1, 4])
@pytest.mark.parametrize('chunk', [1, 40])
@MODES
def test_the_gradient_step_that_went_wrong_is_named(
  overlapped, chunk, num_envs
):
  def regress(state, batch):
    state, metrics = Spy.regress(state, batch)
    step = metrics['loss']
    return state, {
      'a': jnp.where(step < 11, step, jnp.nan),
      'loss': jnp.where(step < 10, step, jnp.inf),
    }

  config = _config(
    num_envs=num_envs,
    train_period=1,
    overlapped=overlapped,
    chunk_env_steps=chunk,
  )
  with pytest.raises(host.NonFiniteError, match=r'^loss=inf .* step 10$'):
    Spy().train(config, num_envs=num_envs, regress=regress)


@MODES
def test_parameters_that_are_not_finite_are_noticed(overlapped):
  def regress(state, batch):
    state, metrics = Spy.regress(state, batch)
    count = state.online_params['count']
    return state.replace(
      online_params={'count': jnp.where(count < 10, count, jnp.nan)}
    ), metrics

  config = _config(train_period=1, overlapped=overlapped, chunk_env_steps=1)
  with pytest.raises(
    host.NonFiniteError, match='online_params .* gradient step 10$'
  ):
    Spy().train(config, regress=regress)


class Sliding(probes.Probe):
  """A probe whose action is a number, which changes nothing."""

  action_dim = 1

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.action_dim, self.num_actions = 1, 0

  def send(self, actions):
    assert np.isfinite(actions).all()
    self.num_actions = 1
    super().send(np.zeros(self.num_envs, np.int32))


@pytest.mark.parametrize('loss', ['finite', 'nan'])
@MODES
def test_an_actor_that_diverges_is_named(overlapped, loss):
  """By the loss that went wrong first, if one did; no NaN is ever sent."""
  spy = Spy()
  spy.agent = spy.agent._replace(
    acting=Spy.acting(
      lambda params, obs: jnp.full(
        (len(obs), 1), jnp.where(params['count'] < 10, 0.5, jnp.nan)
      )
    ),
  )

  def regress(state, batch):
    state, metrics = Spy.regress(state, batch)
    count = metrics['loss']
    if loss == 'nan':
      metrics['loss'] = jnp.where(count < 9, count, jnp.nan)
    return state, metrics

  wrong = 'loss=nan at' if loss == 'nan' else 'an action was not finite by'
  # The next step is under way already when the action is seen.
  step = 9 if loss == 'nan' else 11
  with pytest.raises(
    host.NonFiniteError, match=f'^{wrong} gradient step {step}$'
  ):
    spy.train(
      _config(train_period=1, overlapped=overlapped),
      regress=regress,
      make=lambda seed: Sliding(Spy.tables, seed=seed),
      replay=HostReplay(
        600, frame_shape=(1,), frame_dtype=np.float32, stack=1, action_dim=1
      ),
    )


@pytest.mark.parametrize(
  'name, value',
  [
    ('total_env_steps', 242),
    ('iteration_env_steps', 6),
    ('iteration_env_steps', 0),
  ],
)
def test_steps_that_are_no_whole_rounds_are_refused(name, value):
  with pytest.raises(ValueError, match=f'{name}={value}'):
    _config(**{name: value})


def test_a_round_that_the_environments_cannot_keep_is_refused():
  with pytest.raises(ValueError, match='num_envs=3'):
    _train(_config(), num_envs=3)


def test_actions_are_remembered_without_the_devices_buffers():
  run = _train(_config(), until=60)
  assert len(run.state.actions) == run.state.env_steps < 120
  for actions in run.state.actions:
    assert type(actions) is np.ndarray and actions.base is None
