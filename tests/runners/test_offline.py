"""Fitted Q-iteration against exact values, and against itself cut otherwise."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from siamrl import twins
from siamrl.agents.q import make_q_agent
from siamrl.envs import car_on_hill as car
from siamrl.envs import tabular
from siamrl.learner import ClockedTwin, make_learner
from siamrl.networks.q_network import mlp_network
from siamrl.replay import dataset
from siamrl.runners import offline
from siamrl.runners.errors import NonFiniteError
from siamrl.types import Schedule, Transition

DISCOUNT = 0.9
KEY = jax.random.key(7)


class Table(nn.Module):
  """A value for each state and action, of one-hot states."""

  num_actions: int

  @nn.compact
  def __call__(self, obs):
    return nn.Dense(
      self.num_actions,
      use_bias=False,
      kernel_init=nn.initializers.normal(3.0),
      name='last',
    )(obs)


def every_transition(mdp, discount):
  """All that can follow on all that can be done, weighted by its chance."""
  states, actions, after = np.nonzero(
    mdp.transitions * ~mdp.terminal[:, None, None]
  )
  one_hot = np.eye(len(mdp.terminal), dtype=np.float32)
  return Transition(
    obs_tm1=one_hot[states],
    a_tm1=actions.astype(np.int32),
    r_t=mdp.rewards[states, actions].astype(np.float32),
    discount_t=(discount * ~mdp.terminal[after]).astype(np.float32),
    obs_t=one_hot[after],
    weight=mdp.transitions[states, actions, after].astype(np.float32),
  )


@pytest.mark.parametrize(
  'mdp, discount, fits',
  [
    (tabular.chain(8), 0.9, 30),
    (tabular.chain(8, slip=0.2), 0.9, 30),
    (tabular.grid(4, 3, goal=(3, 0), walls=[(1, 1)], slip=0.1), 0.8, 40),
    (tabular.four_rooms(), 0.95, 40),
    (tabular.random_mdp(0, 12, 3), 0.7, 40),
  ],
  ids=['chain', 'slippery_chain', 'grid', 'four_rooms', 'random'],
)
def test_an_exact_fit_contracts(mdp, discount, fits):
  """||Q_k - Q*|| <= discount**k ||Q_0 - Q*||, and is not much better.

  The losses are half a square, summed, with weights that sum to 1 for each
  state and action: one step of size 1 is the whole regression.
  """
  states, num_actions = mdp.rewards.shape
  agent = make_q_agent(
    Table(num_actions),
    jnp.zeros((1, states)),
    error_bound=1e9,
    batch_reduction='sum',
  )
  learner = make_learner(agent, optax.sgd(1.0), ClockedTwin(twins.hard(), 1))
  config = offline.OfflineConfig(Schedule.fitted(fits, 1), 1)
  iterate = offline.make_iterate(learner, config)
  state = learner.init(jax.random.key(0))
  best = tabular.optimal_values(mdp, discount)

  def error(params):
    q = agent.values(params, jnp.eye(states))
    return np.abs(np.asarray(q) - best)[~mdp.terminal].max()

  errors = [error(state.online_params)]
  for progress in offline.train(
    iterate,
    state,
    every_transition(mdp, discount),
    KEY,
    iterations=config.iterations,
  ):
    errors.append(error(progress.state.online_params))
    assert progress.row['gradient_steps'] == progress.iteration
    assert progress.row['target_updates'] == progress.iteration
  assert len(errors) == fits + 1
  bounds = errors[0] * discount ** np.arange(fits + 1)
  assert (errors <= bounds * (1 + 1e-5) + 1e-5).all()
  # Each fit is one backup: no error can vanish at once.
  assert errors[1] > 0.1 * bounds[1]


CHAIN = tabular.make_tabular(tabular.chain(5, slip=0.1), max_episode_steps=12)
DATA = functools.cache(
  lambda: dataset.collect(
    CHAIN, jax.random.key(1), env_steps=300, num_envs=3
  ).batch(slice(None), DISCOUNT)
)
AGENT = make_q_agent(
  mlp_network(CHAIN.num_actions, sizes=(8,)),
  jnp.zeros((1, 5)),
  td_loss='squared',
)


HARD, ADAM = twins.hard(), optax.adam(1e-2)


@functools.cache
def made(optimizer, clocked):
  return make_learner(AGENT, optimizer, clocked)


@functools.cache
def make_iterate(optimizer, clocked, config):
  """Tests share what is compiled."""
  return offline.make_iterate(made(optimizer, clocked), config)


def run(
  fits=1,
  sync=4,
  *,
  steps=None,
  rounds=1,
  twin=HARD,
  optimizer=ADAM,
  state=None,
  data=None,
  iteration=0,
  iteration_steps=None,
  order='after',
  offset=0,
  reset_optimizer=False,
  **options,
):
  """Learns, with a row for each target update, unless told otherwise.

  Args:
    fits: regressions of a round, of `sync` gradient steps each.
    sync: gradient steps per target update.
    steps: gradient steps of a round, in place of whole fits.

  Returns:
    The last state and all rows.
  """
  schedule = Schedule.fitted(fits, sync)
  if steps is not None:
    schedule = Schedule(0, steps)
  clocked = ClockedTwin(
    twin, sync, offset, order, reset_optimizer=reset_optimizer
  )
  config = offline.OfflineConfig(schedule, iteration_steps or sync, **options)
  iterate = make_iterate(optimizer, clocked, config)
  if state is None:
    state = made(optimizer, clocked).init(jax.random.key(0))
  rows = []
  for progress in offline.train(
    iterate,
    state,
    DATA() if data is None else data,
    KEY,
    iterations=rounds * config.iterations,
    iteration=iteration,
  ):
    state = progress.state
    rows.append(progress.row)
  return state, rows


def leaves(state):
  state = state.replace(key=jax.random.key_data(state.key))
  return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def assert_same(one, other):
  for a, b in zip(leaves(one), leaves(other), strict=True):
    np.testing.assert_array_equal(a, b)


def assert_close(one, other):
  for a, b in zip(leaves(one), leaves(other), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


RULES = {
  'hard': HARD,
  'soft': twins.soft(0.3),
  'iterated_heads': twins.iterated_heads(2),
}


@pytest.mark.parametrize(
  ('rule', 'batch_size'),
  [
    ('hard', None),
    ('hard', 16),
    ('iterated_heads', None),
    # Bit for bit with XLA as users have it only.
    pytest.param('soft', 16, marks=pytest.mark.slow),
    pytest.param('iterated_heads', 16, marks=pytest.mark.slow),
  ],
)
def test_cuts_change_nothing(rule, batch_size):
  """Rounds, iterations, and what a round is called."""
  same = dict(twin=RULES[rule], batch_size=batch_size)
  whole, (row,) = run(6, 4, iteration_steps=24, **same)
  assert whole.gradient_steps == 24 == row['gradient_steps']
  assert row['fit_steps'] == 24
  assert row['target_updates'] == 6
  for round_, rounds, steps in (
    (dict(fits=6), 1, 4),  # a row for each target update
    (dict(fits=1), 6, 4),  # a round for each
    (dict(steps=1), 24, 1),  # DQN's round
    (dict(steps=3), 8, 3),  # rounds that end within a regression
  ):
    parts, rows = run(**round_, rounds=rounds, iteration_steps=steps, **same)
    assert_same(parts, whole)
    done = [int(row['target_updates']) for row in rows]
    assert done == [steps * n // 4 for n in range(1, len(rows) + 1)]
    total = sum(row['loss'] * row['fit_steps'] for row in rows)
    np.testing.assert_allclose(total / 24, row['loss'], rtol=1e-5)


def test_a_run_is_gradient_steps_one_by_one():
  """Written out on the host."""
  learner = make_learner(AGENT, optax.adam(1e-2), ClockedTwin(twins.hard(), 4))
  data, size = DATA(), 16
  regress, state = jax.jit(learner.regress), learner.init(jax.random.key(0))
  for step in range(12):
    bits = jax.random.bits(jax.random.fold_in(KEY, step), (size,), jnp.uint32)
    indices = np.asarray(bits) % len(data.a_tm1)
    chosen = (None if leaf is None else leaf[indices] for leaf in data)
    state, _ = regress(state, Transition(*chosen))
  got, _ = run(3, 4, batch_size=size)
  for a, b in zip(leaves(got), leaves(state), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_batches_are_drawn_evenly():
  """Each reward is its own number: the mean loss shows who was drawn."""
  size = 50
  data = Transition(
    obs_tm1=np.zeros((size, 5), np.float32),
    a_tm1=np.zeros(size, np.int32),
    r_t=np.arange(size, dtype=np.float32),
    discount_t=np.zeros(size, np.float32),
    obs_t=np.zeros((size, 5), np.float32),
  )
  _, rows = run(
    sync=2_500,
    optimizer=optax.sgd(0.0),
    batch_size=32,
    data=data,
  )
  mean = np.mean(np.arange(size) ** 2.0)
  np.testing.assert_allclose(rows[0]['loss'], mean, rtol=0.02)


def test_twins_stand_still_within_a_regression():
  state, _ = run()
  before = jax.tree.map(np.asarray, state.target_params)
  jax.tree.map(
    np.testing.assert_array_equal, before, jax.device_get(state.online_params)
  )
  state, _ = run(steps=3, state=state, iteration_steps=3)
  jax.tree.map(
    np.testing.assert_array_equal, before, jax.device_get(state.target_params)
  )


@pytest.mark.parametrize(
  'batch_size, reset_optimizer', [(None, False), (64, False), (None, True)]
)
@pytest.mark.parametrize('rule', RULES)
def test_a_regression_that_goes_on_is_the_scheduled_one(
  rule, batch_size, reset_optimizer
):
  """But for rounding: its twin is moved from outside, in another program."""
  same = dict(
    twin=RULES[rule],
    # Slow enough for the loss to fall in every window.
    optimizer=optax.sgd(3e-3, momentum=0.5),
    batch_size=batch_size,
    reset_optimizer=reset_optimizer,
  )
  scheduled, _ = run(2, 40, **same)
  free, rows = run(2, 40, tolerance=0.0, window=20, **same)
  assert [row['fit_steps'] for row in rows] == [40, 40]
  assert not any('target_updates' in row for row in rows)  # as many as rows
  assert_close(free, scheduled)


def test_a_regression_ends_when_its_loss_stops_falling():
  """After the first window no better than the last, and the twin moves then."""
  window, tolerance = 10, 0.05
  same = dict(optimizer=optax.sgd(0.1))
  state, rows = run(3, 2_000, tolerance=tolerance, window=window, **same)
  # The same fits, watched a window at a time by twins that never move.
  want = None
  for row in rows:
    losses = []
    while len(losses) < 2 or losses[-2] - losses[-1] > tolerance * losses[-2]:
      want, (part,) = run(
        sync=10**9, steps=window, state=want, iteration_steps=window, **same
      )
      losses.append(part['loss'])
    want = want.replace(target_params=twins.copy(want.online_params))
    assert row['fit_steps'] == window * len(losses)
    np.testing.assert_allclose(row['loss'], np.mean(losses), rtol=1e-5)
  assert_close(state, want)
  assert rows[0]['fit_steps'] < 2_000


def test_a_tolerance_of_nothing_is_patient():
  taken = [
    run(1, 500, tolerance=tolerance, window=10)[1][0]['fit_steps']
    for tolerance in (1.0, 0.2, 0.0)
  ]
  assert taken[0] == 20 and taken[0] < taken[1] < taken[2]


@pytest.mark.parametrize('tolerance', [None, 0.02])
def test_going_on_from_a_checkpoint(tolerance):
  same = dict(batch_size=32, tolerance=tolerance, window=10)
  whole, rows = run(4, 200, **same)
  half, first = run(2, 200, **same)
  stored = jax.device_get(half.replace(key=jax.random.key_data(half.key)))
  again = jax.tree.map(jnp.asarray, stored)
  again = again.replace(key=jax.random.wrap_key_data(again.key))
  rest, second = run(4, 200, state=again, iteration=2, **same)
  assert_same(rest, whole)
  assert first + second == rows


def test_the_twin_may_move_before_the_step():
  """It is then as the online network was a gradient step ago."""
  early, _ = run(order='before')
  three, _ = run(steps=3, iteration_steps=3)
  jax.tree.map(
    np.testing.assert_array_equal, early.target_params, three.online_params
  )


@pytest.mark.parametrize('tolerance', [None, 0.0])
def test_what_is_not_finite_is_an_error(tolerance):
  data = DATA()
  broken = data._replace(r_t=np.where(np.arange(300) == 7, np.nan, data.r_t))
  with pytest.raises(NonFiniteError, match='iteration 1, gradient steps 1 to'):
    run(2, 20, data=broken, tolerance=tolerance, window=10)
  # Only the last step's parameters are: its loss was still a number.
  with pytest.raises(NonFiniteError, match='steps 1 to 1;'):
    run(1, 1, optimizer=optax.sgd(float('inf')))


@pytest.mark.parametrize(
  'schedule, steps, options, message',
  [
    (Schedule.dqn(), 1, {}, 'collect=4 must be 0'),
    (Schedule.fitted(2, 4, collect=9), 4, {}, 'collect=9 must be 0'),
    (Schedule(0, 0), 4, {}, 'regress=0 must be at least 1'),
    (Schedule(0, 4), 4, {'batch_size': 0}, 'batch_size=0 must be'),
    (Schedule(0, 4), 0, {}, 'iteration_steps=0 must'),
    (Schedule(0, 4), 3, {}, 'multiple of the 3 of an'),
    (Schedule(0, 6), 4, {}, 'regress=6 .* multiple of the 4'),
    (Schedule(0, 200), 200, {'window': 0}, 'window=0 must be at least 1'),
    (Schedule(0, 200), 200, {'tolerance': -1.0}, 'tolerance=-1.0 must be'),
    (
      Schedule(0, 200),
      200,
      {'tolerance': float('nan')},
      'tolerance=nan must be',
    ),
    (
      Schedule(0, 150),
      150,
      {'tolerance': 0.1},
      'iteration_steps=150 .* windows of 100',
    ),
    (Schedule(0, 100), 100, {'tolerance': 0.1}, 'two or more whole windows'),
  ],
)
def test_numbers_that_do_not_fit(schedule, steps, options, message):
  with pytest.raises(ValueError, match=message):
    offline.OfflineConfig(schedule, steps, **options)


@pytest.mark.parametrize(
  'clock, message',
  [
    ({'sync': 2}, 'iteration_steps=4 must be sync=2 where a tolerance'),
    ({'offset': 5}, 'offset=5 must be 0 where a tolerance'),
    ({'order': 'before'}, "target_order='before' must be 'after'"),
  ],
)
def test_a_tolerance_needs_a_clock_that_it_can_take_over(clock, message):
  options = {'steps': 8, 'iteration_steps': 4} | clock
  run(**options)  # by the clock any will do
  with pytest.raises(ValueError, match=message):
    run(**options, tolerance=0.1, window=2)


@pytest.mark.slow
def test_neural_fitted_q_iteration_climbs_the_hill(capsys):
  """From 50,000 transitions all over the state space; the optimum is 0.357.

  Each regression begins with a new optimizer, whose step size falls to nearly
  0: the policies between which the last steps of a fit would waver differ by
  ten percent.
  """
  began = time.time()
  fits, steps = 40, 1_000
  environment = car.make_car_on_hill(
    low=car.LOW, high=car.HIGH, max_episode_steps=1
  )
  data = dataset.collect(
    environment, jax.random.key(1), env_steps=50_000, num_envs=50_000
  ).batch(slice(None), car.DISCOUNT)
  agent = make_q_agent(
    mlp_network(2, sizes=(64, 64), bounds=(car.LOW, car.HIGH)),
    jnp.zeros((1, 2)),
    td_loss='squared',
  )
  learner = make_learner(
    agent,
    optax.adam(optax.linear_schedule(3e-3, 1e-6, steps)),
    ClockedTwin(twins.hard(), steps, reset_optimizer=True),
  )
  config = offline.OfflineConfig(
    Schedule.fitted(fits, steps), steps, batch_size=256
  )
  iterate = offline.make_iterate(learner, config)
  starts = car.start_states()

  @jax.jit
  def score(params):
    act = lambda obs: jnp.argmax(agent.values(params, obs), -1)
    return jnp.mean(car.returns(act, starts))

  scores = [
    float(score(progress.state.online_params))
    for progress in offline.train(
      iterate,
      learner.init(jax.random.key(2)),
      data,
      jax.random.key(3),
      iterations=config.iterations,
    )
  ]
  best = car.optimal_returns(starts).mean()
  with capsys.disabled():
    print(
      f'\nCar-on-Hill: mean return {scores[-1]:.3f}, '
      f'{scores[-1] / best:.3f} of the optimum, {time.time() - began:.0f} s'
    )
  assert scores[0] < 0.5 * best
  assert min(scores[-10:]) >= 0.9 * best
  assert max(scores) <= best + 1e-6
