"""Learning in epochs, by hand on agents of a weight or a tally for each row."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import diagnostics, twins
from siamrl.learner import ClockedTwin, make_learner
from siamrl.runners import epochs, scan
from siamrl.runners.epochs import EpochsConfig
from tests import probes

# 14 rows in batches of 4: 3 gradient steps an epoch, and 2 rows left over. The
# numbers are eighths, so that sums of them do not depend on their order.
DATA = np.arange(14, dtype=np.float32) / 8
CONFIG = EpochsConfig(size=14, batch_size=4, iteration_epochs=2)
KEY = jax.random.key(3)
SETTINGS = {'rate': np.float32(0.25)}


def _judge(params):
  return {'worth': 2 * params['w']}


def _weight():
  """A weight, drawn to the numbers that it sees and to its twin."""

  def loss(online, target, batch, key):
    del key
    value = jnp.mean(jnp.square(online['w'] - batch - target['w'] / 2)) / 2
    return value, {'loss': value, 'first': batch}

  return probes.agent_of(
    init=lambda key: {'w': jax.random.normal(key)},
    loss=loss,
    targets=lambda online, target, batch, key: batch + target['w'] / 2,
    values=lambda params, obs: params['w'] * obs[:, None],
  )


def _make_setup(settings, *, sync=2, watched=False):
  learner = make_learner(
    _weight(), optax.sgd(settings['rate']), ClockedTwin(twins.hard(), sync)
  )
  return epochs.Setup(
    learner=learner,
    judge=_judge,
    panel=diagnostics.make_panel(learner) if watched else None,
  )


def _loop(config=CONFIG, *, sync=2, watched=False):
  return epochs.Loop(
    config,
    DATA,
    DATA[:3],
    lambda settings: _make_setup(settings, sync=sync, watched=watched),
  )


def _run(loop, iterations, state=None, begin=0):
  """States after each of some iterations, and their rows."""
  start, iterate = jax.jit(loop.start), jax.jit(loop.iterate)
  states = [start(SETTINGS, KEY) if state is None else state]
  rows = []
  for iteration in range(begin, iterations):
    state, row = iterate(SETTINGS, states[-1], iteration)
    states.append(state)
    rows.append(jax.device_get(row))
  return states, rows


@functools.cache
def _whole():
  """Two iterations."""
  return _run(_loop(), 2)


@functools.cache
def _tally():
  """Rows of each gradient step, [epochs][steps], of a run with the same key.

  Each row has a parameter of its own, which the gradient step that sees the row
  raises by its own number.
  """

  def loss(online, target, batch, key):
    # A row is known by its number of eighths.
    value = -jnp.sum(online['seen'][(8 * batch).astype(jnp.int32)])
    return value, {'loss': value}

  learner = make_learner(
    probes.agent_of(init=lambda key: {'seen': jnp.zeros(14)}, loss=loss),
    optax.sgd(lambda count: 1.0 + count),
    ClockedTwin(twins.hard()),
  )
  made = epochs.Setup(learner, judge=lambda params: {})
  config = dataclasses.replace(CONFIG, iteration_epochs=1)
  loop = epochs.Loop(config, DATA, DATA[:3], lambda settings: made)
  states, _ = _run(loop, 4)
  seen = np.diff([s.train.online_params['seen'] for s in states], axis=0)
  return [
    [np.flatnonzero(epoch == 3 * number + step) for step in (1, 2, 3)]
    for number, epoch in enumerate(seen)
  ], seen


def test_an_epoch_sees_each_row_at_most_once_and_each_epoch_another_order():
  steps, seen = _tally()
  for number, (epoch, raised) in enumerate(zip(steps, seen, strict=True)):
    assert [len(rows) for rows in epoch] == [4, 4, 4]
    # Of 14 rows 2 are left over; no other number than these three was added.
    assert np.count_nonzero(raised) == 12
    assert raised.sum() == 4 * sum(3 * number + step for step in (1, 2, 3))
  orders = {tuple(np.concatenate(epoch).tolist()) for epoch in steps}
  assert len(orders) == 4
  # What is left over is not the same each time.
  left = {tuple(np.flatnonzero(raised == 0).tolist()) for raised in seen}
  assert len(left) > 1


def test_iterations_are_gradient_steps_by_hand():
  assert _loop().iteration_steps == 6
  states, rows = _whole()
  batches = [DATA[rows] for epoch in _tally()[0] for rows in epoch]
  made = _make_setup(SETTINGS).learner
  regress, state = jax.jit(made.regress), states[0].train
  for number, row in enumerate(rows):
    losses, firsts = [], []
    for batch in batches[6 * number : 6 * number + 6]:
      state, metrics = regress(state, batch)
      losses.append(metrics['loss'])
      firsts.append(batch.mean())
    after = states[number + 1].train
    for name in ('online_params', 'target_params', 'gradient_steps'):
      chex.assert_trees_all_close(
        getattr(after, name), getattr(state, name), rtol=1e-6
      )
    assert row['loss'] == pytest.approx(np.mean(losses), rel=1e-6)
    assert row['first'] == pytest.approx(np.mean(firsts), rel=1e-6)
    # The judge looks at the iteration's end.
    assert row['worth'] == pytest.approx(2 * state.online_params['w'])
    assert row['gradient_steps'] == 6 * (number + 1)
    assert row['target_updates'] == 3 * (number + 1)
    assert row['epochs'] == 2 * (number + 1)


def test_a_saved_state_goes_on_as_if_nothing_had_been():
  states, rows = _whole()
  saved = jax.tree.map(
    np.asarray,
    states[1].replace(
      key=jax.random.key_data(states[1].key),
      train=states[1].train.replace(
        key=jax.random.key_data(states[1].train.key)
      ),
    ),
  )
  state = saved.replace(
    key=jax.random.wrap_key_data(saved.key),
    train=saved.train.replace(key=jax.random.wrap_key_data(saved.train.key)),
  )
  again, (row,) = _run(_loop(), 2, state, begin=1)
  chex.assert_trees_all_equal(again[-1], states[-1])
  chex.assert_trees_all_equal(row, rows[1])


@pytest.mark.parametrize('sync, moves', [(3, True), (4, False)])
def test_a_period_of_an_epoch_moves_the_twin_where_epochs_end(sync, moves):
  config = dataclasses.replace(CONFIG, iteration_epochs=1)
  assert config.epoch_steps == 3
  states, _ = _run(_loop(config, sync=sync), 3)
  for state in states[1:]:
    train = state.train
    assert moves == bool(train.online_params['w'] == train.target_params['w'])


def test_the_panel_disturbs_nothing_and_looks_where_it_is_said_to():
  config = dataclasses.replace(CONFIG, panel_period=2)
  bare, plain = _whole()
  states, rows = _run(_loop(config, watched=True), 4)
  for one, other, row, without in zip(
    bare[1:], states[1:], rows, plain, strict=False
  ):
    chex.assert_trees_all_equal(one.train, other.train)
    kept = {n: v for n, v in row.items() if not n.startswith('panel/')}
    chex.assert_trees_all_equal(kept, without)
  # In the first iteration after 1 + floor(0.618 * 6) = 4 gradient steps, when
  # the twin has just moved; in the second after 6 + 1 + floor(0.236 * 6) = 8;
  # and in the fourth after 18 + 1 + floor(0.472 * 6) = 21, a step later.
  assert [row['panel/twin_age'] for row in rows[:2]] == [0, 0]
  assert np.isnan(rows[2]['panel/twin_age'])
  assert rows[3]['panel/twin_age'] == 1
  assert [row['panel/twin_distance'] for row in rows[:2]] == [0, 0]
  assert rows[3]['panel/twin_distance'] > 0


def test_every_batch_goes_through_shard():
  loop = dataclasses.replace(_loop(), shard=lambda batch: 0 * batch + 5)
  _, (row,) = _run(loop, 1)
  assert row['first'] == 5


@pytest.mark.parametrize('vectorized', [False, True])
def test_runs_side_by_side_are_the_runs_alone(vectorized):
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:1]), ('runs',))
  program = scan.make_program(_loop(), mesh, vectorized=vectorized)
  rates = np.array([0.25, 0.5], np.float32)
  keys = jax.random.split(jax.random.key(0), 2)
  loop = _loop()
  start, iterate = jax.jit(loop.start), jax.jit(loop.iterate)
  settings = {'rate': rates}
  together = scan.train(
    program,
    settings,
    program.start(settings, keys),
    iteration=0,
    iterations=2,
  )
  alone = [start({'rate': rates[n]}, keys[n]) for n in range(2)]
  for progress in together:
    for n in range(2):
      alone[n], row = iterate(
        {'rate': rates[n]}, alone[n], progress.iteration - 1
      )
      mine = jax.tree.map(lambda x, n=n: x[n], progress.row)
      chex.assert_trees_all_close(
        mine, jax.device_get(row), rtol=1e-6 if vectorized else 0
      )
  assert progress.iteration == 2
  assert progress.row['worth'][0] != progress.row['worth'][1]


@pytest.mark.parametrize(
  'numbers, message',
  [
    (dict(size=3), 'batch_size=4 must be at most the number of rows, 3'),
    (dict(size=0), 'size=0 must be at least 1'),
    (dict(batch_size=0), 'batch_size=0 must be at least 1'),
    (dict(iteration_epochs=0), 'iteration_epochs=0 must be at least 1'),
    (dict(panel_period=-1), 'panel_period=-1 must be at least 1'),
  ],
)
def test_what_cannot_be(numbers, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    EpochsConfig(**{'size': 14, 'batch_size': 4} | numbers)


def test_a_batch_may_be_all_that_there_is():
  assert EpochsConfig(size=4, batch_size=4).epoch_steps == 1
