"""The host loop without a replay: whole epochs over each round."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import learner, twins
from siamrl.agents.q import make_q_agent, make_returns
from siamrl.learner import ClockedTwin
from siamrl.networks.q_network import mlp_network
from siamrl.replay.host import HostReplay
from siamrl.replay.rollout import HostRollout, Sequence
from siamrl.runners import host
from siamrl.runners.host import loop as host_loop
from siamrl.runners.host.epochs import jit_epochs
from siamrl.types import Schedule, Transition
from tests import probes
from tests.runners.test_scan import (
  assert_close,
  assert_equal,
  compiled,
  make_loop,
  make_settings,
  make_setup,
)

GAMMA = 0.8
ENVS, STEPS = 4, 8


@functools.cache
def _learner(states, actions, rule='self'):
  agent = make_q_agent(
    mlp_network(actions, sizes=(16,)),
    np.zeros((1, 1, states), np.float32),
    td_loss='squared',
  )
  optimizer = optax.radam(1e-2)
  twin = {'self': twins.self_copy, 'soft': lambda: twins.soft(0.1)}[rule]()
  return learner.make_learner(agent, optimizer, ClockedTwin(twin, 1))


def _config(env_steps, regress=4, batch_size=16, **others):
  return host.LoopConfig(
    schedule=Schedule(ENVS * STEPS, regress),
    total_env_steps=env_steps,
    iteration_env_steps=env_steps // 2,
    warmup_env_steps=0,
    batch_size=batch_size,
    **{'epsilon': lambda t: 0.5, 'chunk_env_steps': 1} | others,
  )


def _rollout(tables):
  return HostRollout(
    STEPS,
    frame_shape=(len(tables.rewards),),
    frame_dtype=np.float32,
    num_envs=ENVS,
    stack=1,
    discount=GAMMA,
  )


def _train(
  tables, config, rule='self', *, replay=None, state=None, until=None, **others
):
  made = _learner(*tables.rewards.shape, rule)
  if replay is None:
    replay = _rollout(tables)
  if state is None:
    train = made.init(jax.random.key(0))
    state = host.LoopState.start(train, seed=0, num_envs=ENVS)
  progress = host.train(
    config,
    state,
    learner=made,
    replay=replay,
    make_environments=probes.make(tables, ENVS),
    seed=0,
    act_key=jax.random.key(1),
    **{'returns': make_returns(made.agent, 0.65)} | others,
  )
  rows = []
  for _, metrics in progress:
    if metrics is not None:
      rows.append(metrics)
    if until is not None and state.env_steps >= until:
      break
  progress.close()
  return state, replay, rows


@pytest.mark.parametrize(
  'tables, rule',
  [
    (probes.delayed(), 'soft'),
    (probes.truncated_far_from_start(), 'self'),
    (probes.terminated(3), 'self'),
  ],
  ids=['delayed', 'truncated', 'terminated'],
)
def test_it_learns_the_values_of_a_probe(tables, rule):
  """One action each, so that longer returns are unbiased."""
  exact = tables.q_values(GAMMA)
  made = _learner(*tables.rewards.shape, rule)

  def error(train):
    q = made.agent.values(train.online_params, tables.observations)
    return np.max(np.abs(q - exact))

  assert error(made.init(jax.random.key(0))) > 0.3
  state, _, rows = _train(tables, _config(ENVS * STEPS * 120), rule)
  assert error(state.train) < 0.04 * np.max(exact)
  assert rows[-1]['gradient_steps'] == 480
  assert rows[-1]['loss'] < rows[0]['loss']


def test_its_actions_are_told_apart():
  tables = probes.observation_action()
  state, _, rows = _train(tables, _config(ENVS * STEPS * 80))
  made = _learner(*tables.rewards.shape)
  q = made.agent.values(state.train.online_params, tables.observations)
  np.testing.assert_allclose(q, tables.rewards, atol=0.05)
  assert rows[-1]['train_return'] > 0.4  # at random 0, at this epsilon 0.5


def test_a_round_equals_that_of_a_compiled_run():
  """From the same state, data and bits: the same parameters."""
  q_lambda = 0.7
  loop = make_loop(
    num_envs=3,
    collect=24,
    regress=6,
    batch_size=8,
    steps=24,
    warmup=0,
    optimizer=optax.adam,
    q_lambda=q_lambda,
  )
  settings = make_settings(learning_rate=0.05, sync=4, tau=0.5)
  setup = make_setup(settings, optimizer=optax.adam, q_lambda=q_lambda)
  start, iterate = compiled(loop)
  state = start(settings, jax.random.key(3))
  before = jax.tree.map(jnp.array, state.train)
  after, row = iterate(settings, state, 0)
  assert int(after.train.gradient_steps) == 6

  sequence = jax.tree.map(
    np.asarray, loop.replay.sequence(after.replay, settings['discount'])
  )
  assert sequence.ended.any() and not sequence.ended.all()
  bits = loop._draw(setup.learner.agent, state.key, 0).sample_bits
  together, means = jax.jit(host.make_epochs(setup.learner, setup.returns))(
    before, sequence, bits
  )
  assert_close(after.train, together)
  np.testing.assert_allclose(np.mean(means['loss']), row['loss'], rtol=1e-4)
  # And in a dispatch for each gradient step.
  apart, reports = jit_epochs(setup.learner, setup.returns)(
    before, sequence, bits
  )
  assert_close(after.train, apart)
  assert sum(report.steps for report in reports) == 6


def test_without_lambda_its_targets_are_of_one_step():
  """One gradient step on a whole round is that of its transitions."""
  made = _learner(3, 2, 'soft')
  rng = np.random.default_rng(0)
  lead = STEPS, ENVS
  steps = Transition(
    rng.normal(size=(*lead, 1, 3)).astype(np.float32),
    rng.integers(2, size=lead).astype(np.int32),
    rng.normal(size=lead).astype(np.float32),
    np.where(rng.random(lead) < 0.2, 0, GAMMA).astype(np.float32),
    rng.normal(size=(*lead, 1, 3)).astype(np.float32),
  )
  flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps)
  state = made.init(jax.random.key(0))
  # A twin that differs, so that it matters whose values they are.
  state = state.replace(
    target_params=jax.tree.map(lambda x: x + 0.3, state.online_params)
  )
  expected, _ = jax.jit(made.regress)(state, flat)
  bits = rng.integers(2**32, size=(1, STEPS * ENVS), dtype=np.uint32)
  found = {}
  for q_lambda in (0.0, 0.5):
    epochs = host.make_epochs(made, make_returns(made.agent, q_lambda))
    found[q_lambda], _ = jax.jit(epochs)(
      state, Sequence(steps, np.zeros(lead, bool)), bits
    )
  assert_close(expected.online_params, found[0.0].online_params)
  with pytest.raises(AssertionError):
    assert_close(expected.online_params, found[0.5].online_params)


@pytest.mark.parametrize('stop', [96, 128])
def test_a_resumed_run_equals_one_that_never_stopped(stop, tmp_path):
  """Inside an iteration, and at its end."""
  tables, config = probes.chain(), _config(256)
  whole, rollout, rows = _train(tables, config)
  state, replay, before = _train(tables, config, until=stop)
  saved = json.loads(json.dumps([state.to_json(), replay.save(tmp_path)]))
  fresh = _rollout(tables)
  fresh.load(tmp_path, saved[1])
  state, replay, after = _train(
    tables,
    config,
    replay=fresh,
    state=host.LoopState.from_json(state.train, saved[0]),
  )
  assert_equal(whole.train, state.train)
  assert_equal(rollout.sequence(), replay.sequence())
  names = set(rows[0]) - set(host.TIMERS)
  for row, other in zip(rows, before + after, strict=True):
    np.testing.assert_equal(
      {name: row[name] for name in names}, {name: other[name] for name in names}
    )


def test_gradient_steps_in_one_program_are_reported_alike(monkeypatch):
  """As on an accelerator."""
  tables, config = probes.chain(), _config(64)
  apart, _, rows = _train(tables, config)
  made = _learner(*tables.rewards.shape)
  jitted = jax.jit(host.make_epochs(made, make_returns(made.agent, 0.65)))

  def together(state, sequence, bits):
    state, means = jitted(state, sequence, bits)
    return state, [learner.Report(len(bits), means, {})]

  monkeypatch.setattr(host_loop, 'jit_epochs', lambda *args: together)
  state, _, others = _train(tables, config)
  assert_close(apart.train, state.train)
  for row, other in zip(rows, others, strict=True):
    assert row['gradient_steps'] == other['gradient_steps']
    np.testing.assert_allclose(row['loss'], other['loss'], rtol=1e-4)


def test_what_does_not_fit_is_refused():
  tables, config = probes.chain(), _config(64)
  with pytest.raises(ValueError, match='overlapped'):
    _train(tables, _config(64, overlapped=True))
  with pytest.raises(ValueError, match='collect'):
    _train(
      tables,
      config,
      replay=HostRollout(
        2 * STEPS,
        frame_shape=(4,),
        num_envs=ENVS,
        stack=1,
      ),
    )
  ring = HostReplay(400, frame_shape=(4,), num_envs=ENVS, stack=1)
  with pytest.raises(ValueError, match='HostRollout'):
    _train(tables, config, replay=ring)
