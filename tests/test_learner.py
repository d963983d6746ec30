"""The learner: one gradient step by hand, twins, donation, many at once."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import learner, schedule, twins
from siamrl.agents.actor_critic import make_td3_agent
from siamrl.agents.q import make_q_agent
from siamrl.learner import ClockedTwin, TwinSpec, make_learner
from siamrl.networks.policies import Critic, DeterministicActor
from siamrl.networks.q_network import mlp_network
from siamrl.types import Agent, Transition
from tests import probes
from tests.parameters import PARAMETERS, of_each_kind


def _linear_agent() -> Agent:
  """One weight: q = w * x; loss (r + discount * w' x' - w x)**2."""

  def loss(online, target, batch, key):
    del key
    error = (
      batch.r_t
      + batch.discount_t * target['w'] * batch.obs_t
      - online['w'] * batch.obs_tm1
    )
    value = jnp.mean(error**2)
    return value, {'loss': value}

  return probes.agent_of(init=lambda key: {'w': jnp.float32(1.0)}, loss=loss)


BATCH = Transition(*(jnp.array([x]) for x in (2.0, 0, 3.0, 0.5, 4.0)))


def test_one_gradient_step_by_hand():
  made = make_learner(
    _linear_agent(), optax.sgd(0.1), ClockedTwin(twins.hard(), 2)
  )
  regress, state = made.regress, made.init(jax.random.key(0))
  state, metrics = jax.jit(regress)(state, BATCH)
  # error = 3 + 0.5 * 1 * 4 - 2 = 3; d loss / d w = -2 * 3 * 2 = -12.
  assert metrics['loss'] == pytest.approx(9.0)
  assert state.online_params['w'] == pytest.approx(2.2)
  assert state.target_params['w'] == 1.0
  state, metrics = jax.jit(regress)(state, BATCH)
  # error = 5 - 4.4 = 0.6; w = 2.2 + 0.1 * 2.4, and the twin follows.
  assert state.online_params['w'] == pytest.approx(2.44)
  assert state.target_params['w'] == state.online_params['w']
  assert int(state.gradient_steps) == 2


@pytest.mark.parametrize('sync', [1, 3, 4])
@pytest.mark.parametrize('steps', [1, 4, 13])
def test_as_many_syncs_happen_as_are_asked_for(sync, steps):
  count = twins.hard()._replace(
    update=lambda online, target, step: {'w': target['w'] + 1.0}
  )
  made = make_learner(_linear_agent(), optax.sgd(0.0), ClockedTwin(count, sync))
  regress, state = jax.jit(made.regress), made.init(jax.random.key(0))
  for _ in range(steps):
    state, _ = regress(state, BATCH)
  happened = int(state.target_params['w']) - 1
  assert happened == schedule.syncs(steps, sync) == steps // sync
  assert learner.target_updates(made, state) == happened


_GIVEN = PARAMETERS | dict(target_count=2, projection_radius=1.0, ridge=0.5)


def _q_agent():
  return make_q_agent(
    mlp_network(3, sizes=(16,)), np.zeros((1, 1, 4), np.float32)
  )


def _q_learner(rule='hard', sync=3, optimizer=None, **clock):
  """A learner and its first state."""
  takes = twins.takes(rule, _GIVEN['target_paths'])
  twin = twins.make_rule(rule, **{name: _GIVEN[name] for name in takes})
  made = make_learner(
    _q_agent(), optimizer or optax.adam(1e-2), ClockedTwin(twin, sync, **clock)
  )
  return made, made.init(jax.random.key(1))


def _batches(count, size=8, seed=0):
  rng = np.random.default_rng(seed)
  obs = lambda: rng.normal(size=(count, size, 1, 4)).astype(np.float32)
  return Transition(
    obs(),
    rng.integers(3, size=(count, size)).astype(np.int32),
    rng.normal(size=(count, size)).astype(np.float32),
    np.full((count, size), 0.9, np.float32),
    obs(),
  )


def test_the_state_is_donated_and_twins_share_no_buffer():
  made, state = _q_learner()
  batch = jax.tree.map(lambda x: x[0], _batches(1))
  step = jax.jit(made.regress, donate_argnums=0)
  after, _ = step(state, batch)
  # Were the twins one buffer, donating both names would have failed.
  assert all(
    leaf.is_deleted()
    for leaf in jax.tree.leaves((state.online_params, state.target_params))
  )
  for _ in range(4):
    after, _ = step(after, batch)


@pytest.mark.parametrize(
  'rule, sync',
  [('hard', 3), ('soft', 1), ('periodic_soft', 2), ('frozen', 1), ('self', 1)],
)
def test_many_steps_in_one_dispatch_equal_single_ones(rule, sync):
  made, state = _q_learner(rule, sync)
  regress, batches = made.regress, _batches(7)
  scanned = jax.jit(functools.partial(jax.lax.scan, regress))
  together, metrics = scanned(state, batches)
  losses = []
  for i in range(7):
    state, one = jax.jit(regress)(
      state, jax.tree.map(lambda x, i=i: x[i], batches)
    )
    losses.append(one['loss'])
  for a, b in zip(
    *map(
      jax.tree.leaves,
      (
        (state.online_params, state.target_params),
        (together.online_params, together.target_params),
      ),
    ),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(metrics['loss'], losses, rtol=1e-5)
  assert int(together.gradient_steps) == 7
  assert (
    jax.random.key_data(together.key) == jax.random.key_data(state.key)
  ).all()


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_jitted_steps_equal_single_ones_however_dispatched(
  monkeypatch, backend
):
  made, state = _q_learner()
  regress, batches = made.regress, _batches(5)
  split = [jax.tree.map(lambda x, i=i: x[i], batches) for i in range(5)]
  alone, losses, errors = twins.copy(state.replace(key=None)), [], []
  alone = alone.replace(key=state.key)
  for batch in split:
    alone, metrics = jax.jit(regress)(alone, batch)
    losses.append(metrics['loss'])
    errors.append(metrics['td_error_abs'])
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  steps = learner.jit_regress(regress, ('td_error_abs',))
  together, reports = steps(state, split)
  assert [report.steps for report in reports] == (
    [1] * 5 if backend == 'cpu' else [5]
  )
  found = np.concatenate([np.ravel(report.means['loss']) for report in reports])
  np.testing.assert_allclose(found, losses, rtol=1e-5)
  # What is read is told of each transition, in the order of the batches.
  assert all(report.read.keys() == {'td_error_abs'} for report in reports)
  read = [report.read['td_error_abs'] for report in reports]
  read = np.concatenate([np.reshape(values, (-1, 8)) for values in read])
  np.testing.assert_allclose(read, errors, rtol=1e-5, atol=1e-6)
  means = [np.ravel(report.means['td_error_abs']) for report in reports]
  np.testing.assert_allclose(np.concatenate(means), read.mean(1), rtol=1e-5)
  for a, b in zip(
    *map(jax.tree.leaves, (alone.online_params, together.online_params)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.online_params))


def test_every_gradient_step_has_a_key_of_its_own():
  linear = _linear_agent()

  def loss(online, target, batch, key):
    value, _ = linear.loss(online, target, batch, key)
    return value, {'drawn': jax.random.uniform(key)}

  agent = linear._replace(loss=loss)
  made = make_learner(agent, optax.sgd(0.1), ClockedTwin(twins.hard()))
  regress, drawn = jax.jit(made.regress), []
  for seed in (0, 1):
    state = made.init(jax.random.key(seed))
    for _ in range(3):
      state, metrics = regress(state, BATCH)
      drawn.append(float(metrics['drawn']))
  assert len(set(drawn)) == 6


def test_metrics_of_transitions_are_averaged_by_those_who_want_it():
  made, state = _q_learner()
  batch = jax.tree.map(lambda x: x[0], _batches(1))
  _, each = made.regress(state, batch)
  assert each['td_error_abs'].shape == (8,)
  assert each['loss'].shape == ()
  metrics = learner.mean_of(each)
  # Losses of transitions are for replays, and need no mean.
  assert each.keys() - metrics.keys() == {'transition_loss'}
  assert metrics['td_error_abs'].shape == metrics['loss'].shape == ()
  mean = float(np.mean(each['td_error_abs']))
  assert float(metrics['td_error_abs']) == pytest.approx(mean)
  _, (report,) = learner.jit_regress(made.regress)(state, [batch])
  assert report.means['td_error_abs'].shape == () and not report.read
  assert float(report.means['td_error_abs']) == pytest.approx(mean, rel=1e-5)
  assert report.means.keys() == metrics.keys()
  steps = learner.jit_regress(made.regress, ('transition_loss',))
  _, (report,) = steps(made.init(jax.random.key(0)), [batch])
  assert report.read['transition_loss'].shape == (8,)


def test_a_metric_that_is_read_must_be_reported():
  made, state = _q_learner()
  batch = jax.tree.map(lambda x: x[0], _batches(1))
  with pytest.raises(ValueError, match='surprise is read, but the loss'):
    learner.jit_regress(made.regress, ('surprise',))(state, [batch])


def test_no_gradient_reaches_the_twin_or_the_selector():
  agent = make_q_agent(
    mlp_network(3, sizes=(16,)),
    np.zeros((1, 1, 4), np.float32),
    name='double_dqn',
  )
  params = agent.init(jax.random.key(0))
  twin = agent.init(jax.random.key(1))
  batch = jax.tree.map(lambda x: x[0], _batches(1))
  key = jax.random.key(2)
  grads = jax.grad(agent.loss, has_aux=True)(params, twin, batch, key)[0]
  # The same targets as constants: bootstrapping adds nothing to the gradient.
  network = mlp_network(3, sizes=(16,))
  choice = jnp.argmax(network.apply(params, batch.obs_t), -1)
  values = network.apply(twin, batch.obs_t)[jnp.arange(8), choice]
  target = batch.r_t + batch.discount_t * values

  def supervised(params):
    q = network.apply(params, batch.obs_tm1)[jnp.arange(8), batch.a_tm1]
    return optax.huber_loss(q, target).mean()

  for a, b in zip(
    *map(jax.tree.leaves, (grads, jax.grad(supervised)(params))), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_nature_rmsprop_of_a_summed_batch_equals_dqn_zoos_of_a_mean():
  """Sums with eps 0.01 against means with eps 0.01 / 32**2 (Mnih; DQN Zoo)."""
  size = 32
  results = []
  for reduction, eps in (('sum', 0.01), ('mean', 0.01 / size**2)):
    agent = make_q_agent(
      mlp_network(3, sizes=(16,)),
      np.zeros((1, 1, 4), np.float32),
      td_loss='clipped',
      batch_reduction=reduction,
    )
    optimizer = learner.make_optimizer(
      'rmsprop_centered', learning_rate=2.5e-4, eps=eps
    )
    made = make_learner(agent, optimizer, ClockedTwin(twins.hard(), 4))
    regress, state = jax.jit(made.regress), made.init(jax.random.key(1))
    for i in range(10):
      state, _ = regress(
        state, jax.tree.map(lambda x, i=i: x[i], _batches(10, size))
      )
    results.append(state.online_params)
  start = made.init(jax.random.key(1)).online_params
  for a, b, c in zip(*map(jax.tree.leaves, (*results, start)), strict=True):
    np.testing.assert_allclose(a - c, b - c, rtol=2e-3, atol=1e-6)


def test_centered_rmsprop_by_hand():
  optimizer = learner.make_optimizer(
    'rmsprop_centered', learning_rate=0.1, eps=0.01, decay=0.9
  )
  params = {'w': jnp.float32(0.0)}
  update, _ = optimizer.update({'w': jnp.float32(2.0)}, optimizer.init(params))
  # mean 0.2, square 0.4: 2 / sqrt(0.4 - 0.04 + 0.01)
  assert update['w'] == pytest.approx(-0.1 * 2 / 0.37**0.5, rel=1e-5)


def test_centered_rmsprop_of_pytorch_by_hand():
  optimizer = learner.make_optimizer(
    'rmsprop_centered_torch', learning_rate=0.1, eps=0.01, decay=0.9
  )
  params = {'w': jnp.float32(0.0)}
  update, _ = optimizer.update({'w': jnp.float32(2.0)}, optimizer.init(params))
  # mean 0.2, square 0.4: 2 / (sqrt(0.4 - 0.04) + 0.01)
  assert update['w'] == pytest.approx(-0.1 * 2 / 0.61, rel=1e-5)


@pytest.mark.parametrize('name', ['rmsprop_centered', 'rmsprop_centered_torch'])
def test_centered_rmsprop_of_gradients_that_stay_the_same(name):
  """Their variance falls to 0, and by rounding below it."""
  optimizer = learner.make_optimizer(name, learning_rate=1.0, eps=0.01)
  once = jax.random.normal(jax.random.key(0), (1_000,))
  after = jax.random.normal(jax.random.key(1), (1_000,))

  def step(state, grads):
    updates, state = optimizer.update(grads, state)
    return state, updates

  grads = jnp.concatenate(
    [jnp.repeat(once[None], 100, 0), jnp.repeat(after[None], 500, 0)]
  )
  _, updates = jax.lax.scan(step, optimizer.init(once), grads)
  divisor = 0.01**0.5 if name == 'rmsprop_centered' else 0.01
  # What is left of the variance is rounding, and the root of that a few 1e-3.
  np.testing.assert_allclose(updates[-1], -after / divisor, rtol=0.5)
  # Where the variance is some, it is that of optax.
  theirs = optax.rmsprop(
    1.0, 0.95, 0.01, eps_in_sqrt=name == 'rmsprop_centered', centered=True
  )
  expected, _ = theirs.update(once, theirs.init(once))
  np.testing.assert_allclose(updates[0], expected, rtol=1e-5)


@pytest.mark.parametrize('name', learner.OPTIMIZERS)
def test_weights_in_bfloat16_learn_as_their_copy_in_float32(name):
  """Steps that are less than a weight can change by add up."""
  optimizer = optax.with_extra_args_support(
    learner.make_optimizer(name, learning_rate=3e-5, eps=1e-3)
  )
  start = {'w': jnp.ones(64, jnp.bfloat16), 'b': jnp.full(3, -0.5)}
  grads = {
    'w': jnp.linspace(-1, 1, 64, dtype=jnp.bfloat16),
    'b': jnp.arange(3.0) - 1,
  }

  def step(carry, scale):
    params, state = carry
    scaled = jax.tree.map(lambda g: (scale * g).astype(g.dtype), grads)
    updates, state = optimizer.update(
      scaled, state, params, metrics={'td_error': jnp.ones(1)}
    )
    return (optax.apply_updates(params, updates), state), None

  scales = 1 + 0.5 * jnp.sin(jnp.arange(2_000.0))
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), start)
  ends = []
  for params in (start, wide):
    carry = params, optimizer.init(params)
    (end, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, scales))(
      carry
    )
    ends.append(end)
  short, long = ends
  assert short['w'].dtype == jnp.bfloat16
  assert np.abs(np.asarray(long['w'] - 1)).max() > 0.02
  # Within the rounding of gradients and of a weight near 1.
  np.testing.assert_allclose(
    np.asarray(short['w'], np.float32), long['w'], atol=0.005
  )
  np.testing.assert_allclose(short['b'], long['b'], rtol=1e-4)


def test_weights_in_bfloat16_that_something_else_has_changed():
  optimizer = learner.make_optimizer('sgd', learning_rate=1e-3, eps=1.0)
  params = jnp.ones(2, jnp.bfloat16)
  state = optimizer.init(params)
  for _ in range(3):  # 0.997, which rounds to 0.996, and not to 1
    updates, state = optimizer.update(jnp.ones_like(params), state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(state.params, 0.997, rtol=1e-6)
  params = params.at[0].set(3.0)
  updates, state = optimizer.update(jnp.ones_like(params), state, params)
  np.testing.assert_allclose(state.params, [2.999, 0.996], rtol=1e-6)
  # And in float32 there is no copy.
  leaves = jax.tree.leaves(optimizer.init(jnp.ones(2)))
  assert not any(np.size(leaf) == 2 for leaf in leaves)


def test_an_optimizer_that_starts_anew_keeps_what_was_rounded():
  optimizer = learner.make_optimizer('adam', learning_rate=1e-3, eps=1e-8)
  params = jnp.ones(2, jnp.bfloat16)
  state = optimizer.init(params)
  for _ in range(10):  # each a step of 0.001, of which bfloat16 sees none
    updates, state = optimizer.update(jnp.ones_like(params), state, params)
    params = optax.apply_updates(params, updates)
    state = learner.restart(optimizer, state, params)
  np.testing.assert_allclose(state.params, 0.99, rtol=1e-5)
  fresh = optimizer.init(params)
  for leaf, new in zip(
    jax.tree.leaves(state.inner), jax.tree.leaves(fresh.inner), strict=True
  ):
    np.testing.assert_array_equal(leaf, new)
  # Without a copy it is what it was at first.
  wide = jnp.ones(2)
  begun = optimizer.init(wide)
  _, later = optimizer.update(wide, begun, wide)
  jax.tree.map(
    np.testing.assert_array_equal,
    learner.restart(optimizer, later, wide),
    begun,
  )


def test_a_fresh_twin_shares_no_key_with_the_network():
  agent = make_td3_agent(
    DeterministicActor(action_dim=1, sizes=(8, 8)),
    Critic(sizes=(8, 8)),
    np.zeros((1, 1, 3), np.float32),
  )
  state = make_learner(
    agent,
    learner.make_optimizer('sgd', learning_rate=1.0, eps=1.0),
    ClockedTwin(twins.hard(), init='fresh'),
  ).init(jax.random.key(0))
  # A key in common would draw equal layers, wherever they stand.
  drawn = [
    np.asarray(row).tobytes()
    for params in (state.online_params, state.target_params)
    for leaf in jax.tree.leaves(params)
    if leaf.ndim > 1
    for row in leaf.reshape(-1, leaf.shape[-1])
  ]
  assert len(set(drawn)) == len(drawn)


def test_adam_and_rmsprop_by_hand():
  params = {'w': jnp.float32(0.0)}
  grads = {'w': jnp.float32(2.0)}
  adam = learner.make_optimizer('adam', learning_rate=0.1, eps=0.5)
  update, _ = adam.update(grads, adam.init(params))
  # Bias correction makes the first averages 2 and 4: 2 / (sqrt(4) + 0.5).
  assert update['w'] == pytest.approx(-0.1 * 2 / 2.5, rel=1e-5)
  rmsprop = learner.make_optimizer(
    'rmsprop', learning_rate=0.1, eps=0.01, decay=0.9
  )
  update, _ = rmsprop.update(grads, rmsprop.init(params))
  assert update['w'] == pytest.approx(-0.1 * 2 / 0.41**0.5, rel=1e-5)


def test_unknown_optimizer():
  with pytest.raises(ValueError, match="optimizer='lion' is unknown"):
    learner.make_optimizer('lion', learning_rate=1, eps=1)


# Parts of the parameters: a twin for some, an optimizer for each.


def _parted_agent(**options) -> Agent:
  """Three weights; the gradient of each is -1, for 'slow' only when due."""

  def loss(online, target, batch, key, step=None):
    value = -online['fast'] - online['plain']
    slow = jnp.float32(1.0)
    if step is not None:
      slow = jnp.where((step + 1) % 3 == 0, 1.0, 0.0)
    return value - slow * online['slow'], {'seen': target['fast']}

  def init(key):
    return {name: jnp.float32(0.0) for name in ('fast', 'plain', 'slow')}

  return probes.agent_of(init=init, loss=loss, **options)


def _parted_steps(agent, twin, steps, **clock):
  """The state after so many gradient steps."""
  optimizer = learner.make_optimizers(
    agent,
    {
      'fast': optax.sgd(1.0),
      'plain': optax.sgd(10.0),
      'slow': optax.sgd(1.0, momentum=1.0),
    },
  )
  made = make_learner(agent, optimizer, ClockedTwin(twin, **clock))
  regress, state = jax.jit(made.regress), made.init(jax.random.key(0))
  for _ in range(steps):
    state, _ = regress(state, BATCH)
  return state


def test_each_part_has_its_optimizer():
  state = _parted_steps(_parted_agent(), twins.hard(), 2)
  # With momentum: 1, and then 1 + 1.
  assert state.online_params == {'fast': 2, 'plain': 20, 'slow': 3}


def test_delayed_parts_keep_still_in_between():
  agent = _parted_agent(delayed=('slow',), delay=3)
  found = [
    float(_parted_steps(agent, twins.hard(), n).online_params['slow'])
    for n in (2, 3, 5, 6)
  ]
  # Momentum neither moves it in between, nor does it forget.
  assert found == [0, 1, 1, 3]


@pytest.mark.parametrize('sync', [1, 2, 3, 4])
def test_delayed_parts_are_due_where_the_optimizer_starts_anew(sync):
  agent = _parted_agent(delayed=('slow',), delay=3)
  found = [
    float(
      _parted_steps(
        agent, twins.hard(), n, sync=sync, reset_optimizer=True
      ).online_params['slow']
    )
    for n in (2, 3, 5, 6)
  ]
  # Without memory of the step before.
  assert found == [0, 1, 1, 2]


@pytest.mark.parametrize('rule', ['hard', 'soft', 'self', 'proximal'])
def test_only_parts_that_have_a_twin_are_in_it(rule):
  takes = {'soft': {'tau': 0.5}, 'proximal': {'twin_weight': 0.5}}
  twin = twins.make_rule(rule, **takes.get(rule, {}))
  agent = _parted_agent(twinned=('fast',))
  state = _parted_steps(agent, twin, 2, sync=2 if rule == 'proximal' else 1)
  # Pulled half-way from 1 back to 0 before the second step.
  assert state.online_params['fast'] == (1.5 if rule == 'proximal' else 2)
  assert state.online_params['plain'] == 20
  # 0.5 * 1, and then half-way from there to 2.
  expected = {'hard': 2, 'soft': 1.25, 'proximal': 1.5}
  if rule == 'self':
    assert state.target_params == ()
  else:
    assert state.target_params == {'fast': expected[rule]}


# When the twin moves, and what it is born as.


def _moves(steps, sync, **clock):
  """(online, target) after each gradient step, both counted up by hand."""
  # The gradient of -w is -1: each gradient step adds 1.
  agent = _linear_agent()._replace(
    loss=lambda online, target, batch, key: (
      -online['w'],
      {'target': target['w']},
    )
  )
  made = make_learner(
    agent, optax.sgd(1.0), ClockedTwin(twins.hard(), sync, **clock)
  )
  regress, state = jax.jit(made.regress), made.init(jax.random.key(0))
  seen = []
  for _ in range(steps):
    state, metrics = regress(state, BATCH)
    seen.append(
      tuple(
        int(x)
        for x in (
          metrics['target'],
          state.online_params['w'],
          state.target_params['w'],
        )
      )
    )
  return seen


def test_after_the_optimizers_step():
  """What was learned from, then the online and the target weight; C = 3."""
  assert _moves(7, 3) == [
    (1, 2, 1),
    (1, 3, 1),
    (1, 4, 4),
    (4, 5, 4),
    (4, 6, 4),
    (4, 7, 7),
    (7, 8, 7),
  ]


def test_before_the_optimizers_step():
  assert _moves(7, 3, order='before') == [
    (1, 2, 1),
    (1, 3, 1),
    # Copied before gradient step 3, which learns from the copy.
    (3, 4, 3),
    (3, 5, 3),
    (3, 6, 3),
    (6, 7, 6),
    (6, 8, 6),
  ]


def test_every_step_before_is_the_network_itself():
  assert [x[0] for x in _moves(4, 1, order='before')] == [1, 2, 3, 4]
  assert [x[0] for x in _moves(4, 1)] == [1, 2, 3, 4]


@pytest.mark.parametrize('offset', [0, 1, 2, 3, 7])
def test_a_clock_that_is_ahead(offset):
  moved = [
    step
    for step, (_, online, target) in enumerate(_moves(9, 3, offset=offset), 1)
    if online == target
  ]
  assert moved == [step for step in range(1, 10) if (step + offset) % 3 == 0]
  assert len(moved) == schedule.syncs(9, 3, offset)


def test_the_optimizer_starts_anew_at_every_sync():
  def moments(reset):
    made, state = _q_learner(reset_optimizer=reset)
    regress, found = jax.jit(made.regress), []
    for i in range(7):
      batch = jax.tree.map(lambda x, i=i: x[i], _batches(7))
      state, _ = regress(state, batch)
      leaves = jax.tree.leaves(state.opt_state)
      found.append(any(bool(jnp.any(leaf)) for leaf in leaves))
    return found

  assert moments(True) == [True, True, False, True, True, False, True]
  assert moments(False) == [True] * 7


def test_a_fresh_twin_is_another_network():
  born = {name: _q_learner(init=name)[1] for name in learner.TARGET_INITS}
  kernels = {
    name: jax.tree.leaves(state.target_params)[1]
    for name, state in born.items()
  }
  online = jax.tree.leaves(born['equal'].online_params)[1]
  np.testing.assert_array_equal(kernels['equal'], online)
  assert (kernels['fresh'] != online).all()
  for state in born.values():  # the online network is the same
    np.testing.assert_array_equal(
      jax.tree.leaves(state.online_params)[1], online
    )


@pytest.mark.parametrize('name', ['init', 'order'])
def test_unknown_names_are_refused(name):
  clocked = ClockedTwin(twins.hard(), **{name: 'new'})
  message = f"target_{name}='new' is unknown; choose"
  with pytest.raises(ValueError, match=message):
    clocked.check()
  with pytest.raises(ValueError, match=message):
    make_learner(_linear_agent(), optax.sgd(1.0), clocked)


def test_a_period_below_one_is_refused():
  with pytest.raises(ValueError, match='sync=0 must be at least 1'):
    make_learner(_linear_agent(), optax.sgd(1.0), ClockedTwin(twins.hard(), 0))


# The network that acts.


def test_the_online_network_acts_unless_told_otherwise():
  made, state = _q_learner('hard', sync=2)
  assert made.acting_params(state) is state.online_params


@pytest.mark.parametrize('name', of_each_kind(twins.RULES))
def test_the_twin_acts_with_every_rule_that_has_one(name):
  takes = twins.takes(name, _GIVEN['target_paths'])
  twin = twins.make_rule(name, **{key: _GIVEN[key] for key in takes})
  given = (_q_agent(), optax.adam(1e-2), ClockedTwin(twin))
  if name in ('self', 'residual'):
    with pytest.raises(ValueError, match="act_with='target' needs a rule"):
      make_learner(*given, act_with='target')
    return
  made = make_learner(*given, act_with='target')
  state = made.init(jax.random.key(1))
  state = state.replace(
    online_params=jax.tree.map(lambda x: x + 1, state.online_params)
  )
  acting = made.acting_params(state)
  expected = twin.params(state.online_params, state.target_params)
  chex.assert_trees_all_equal(acting, expected)
  chex.assert_trees_all_equal_shapes(acting, state.online_params)
  agent = made.agent.acting
  noise = agent.noise(jax.random.key(2), 8)
  actions = agent.act(acting, _batches(1).obs_tm1[0], noise, 0.0)
  assert actions.shape == (8,)


def test_who_acts_is_online_or_target():
  given = (_q_agent(), optax.adam(1e-2), ClockedTwin(twins.hard()))
  with pytest.raises(ValueError, match="act_with='both' is unknown"):
    make_learner(*given, act_with='both')


# The parts of a gradient step with a twin.


def _assert_close(one, other):
  one, other = (s.replace(key=jax.random.key_data(s.key)) for s in (one, other))
  chex.assert_trees_all_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', of_each_kind(twins.RULES))
def test_without_a_sync_the_twin_stands_still(name):
  made, state = _q_learner(name, sync=1)
  descend = jax.jit(made.descend)
  before, born = state.target_params, state.online_params
  for i in range(4):
    batch = jax.tree.map(lambda x, i=i: x[i], _batches(4))
    state, metrics = descend(state, batch)
    assert metrics['loss'].shape == ()
  chex.assert_trees_all_equal(state.target_params, before)
  assert int(state.gradient_steps) == 4
  assert all(
    jax.tree.leaves(
      jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), born, state.online_params
      )
    )
  )


@pytest.mark.parametrize('order', learner.TARGET_ORDERS)
@pytest.mark.parametrize('sync, offset', [(1, 0), (5, 2), (twins.NEVER, 0)])
def test_a_sync_is_one_move_whatever_the_clock(sync, offset, order):
  """Where the clock would have none: after 0, 1 and 3 gradient steps."""
  made = make_learner(
    _linear_agent(),
    optax.sgd(0.0),
    ClockedTwin(twins.soft(0.25), sync, offset, order),
  )
  state = made.init(jax.random.key(0))
  state = state.replace(online_params={'w': jnp.float32(9.0)})
  # The twin starts at 1, and goes a quarter of the way to 9 each time.
  for steps, twin in ((0, 3.0), (1, 4.5), (3, 5.625)):
    state = state.replace(gradient_steps=jnp.int32(steps))
    state = jax.jit(made.sync)(state, {'loss': jnp.float32(0)})
    assert state.target_params == {'w': twin}
    assert state.online_params == {'w': 9.0}
    assert state.gradient_steps == steps


@pytest.mark.parametrize('reset', [False, True])
def test_a_sync_has_the_optimizer_start_anew_where_that_is_asked_for(reset):
  made, state = _q_learner(sync=100, reset_optimizer=reset)
  batch = jax.tree.map(lambda x: x[0], _batches(1))
  state, metrics = jax.jit(made.descend)(state, batch)
  after = jax.jit(made.sync)(state, metrics)
  chex.assert_trees_all_equal(after.target_params, state.online_params)
  fresh = optax.adam(1e-2).init(state.online_params)
  chex.assert_trees_all_equal(
    after.opt_state, fresh if reset else state.opt_state
  )


def _assert_parts_are_the_whole(made, state, steps, sync):
  """`regress` is `descend`, with `sync` where the clock has it."""
  regress, descend, move = map(jax.jit, (made.regress, made.descend, made.sync))
  whole, batches = state, _batches(steps)
  moved = 0
  for i in range(steps):
    batch = jax.tree.map(lambda x, i=i: x[i], batches)
    due = (i + 1) % sync == 0
    if due and made.clocked.order == 'before':
      state = move(state, None)
    state, metrics = descend(state, batch)
    if due and made.clocked.order == 'after':
      state = move(state, metrics)
    whole, reported = regress(whole, batch)
    _assert_close(whole, state)
    chex.assert_trees_all_close(reported, metrics, rtol=1e-5, atol=1e-6)
    moved += due
  assert learner.target_updates(made, whole) == moved


@pytest.mark.parametrize('name', of_each_kind(twins.RULES))
def test_a_gradient_step_is_a_descent_and_a_sync_at_multiples(name):
  sync = twins.RULES[name].period or 3
  made, state = _q_learner(name, sync=sync, reset_optimizer=name == 'hard')
  _assert_parts_are_the_whole(made, state, 7, sync)


@pytest.mark.parametrize('name', ['hard', 'periodic_soft', 'averaged'])
def test_a_sync_before_the_optimizers_step_comes_before_the_descent(name):
  # None of these reads the clock, which a sync after it would not agree with.
  made, state = _q_learner(name, sync=3, order='before')
  _assert_parts_are_the_whole(made, state, 7, 3)


def test_whole_targets_are_the_rewards_of_a_batch():
  made, state = _q_learner('hard', sync=2, optimizer=optax.sgd(1.0))
  batch = jax.tree.map(lambda x: x[0], _batches(1))
  network = mlp_network(3, sizes=(16,))

  def toward(params):
    q = network.apply(params, batch.obs_tm1)[jnp.arange(8), batch.a_tm1]
    return optax.huber_loss(q, batch.r_t).mean()

  value, grads = jax.value_and_grad(toward)(state.online_params)
  # Neither what follows nor the twin has a part in it.
  others = batch._replace(obs_t=batch.obs_t + 9, discount_t=batch.r_t)
  stranger = state.replace(
    target_params=jax.tree.map(lambda x: x + 9, state.target_params)
  )
  for start, given in ((state, batch), (state, others), (stranger, batch)):
    after, metrics = jax.jit(made.regress_to)(start, given)
    assert float(metrics['loss']) == pytest.approx(float(value), rel=1e-5)
    chex.assert_trees_all_close(
      after.online_params,
      jax.tree.map(jnp.subtract, state.online_params, grads),
      rtol=1e-5,
      atol=1e-6,
    )
    chex.assert_trees_all_equal(after.target_params, start.target_params)
  # The twin moves as it does otherwise.
  after, _ = jax.jit(made.regress_to)(after, batch)
  chex.assert_trees_all_equal(after.target_params, after.online_params)
  usual, _ = jax.jit(made.regress)(state, batch)
  first, _ = jax.jit(made.regress_to)(state, batch)
  assert not np.allclose(
    jax.tree.leaves(usual.online_params)[1],
    jax.tree.leaves(first.online_params)[1],
    atol=1e-3,
  )


@pytest.mark.parametrize('kind', ['regress', 'descend', 'regress_to'])
def test_the_ridge_of_a_rule_reaches_the_loss(kind):
  """The learner lifts: with a step of 1 the parameters move by gradients."""
  ridge = _GIVEN['ridge']
  made, state = _q_learner('projected_soft', 1, optax.sgd(1.0))
  chex.assert_trees_all_equal(
    made.base.init(jax.random.key(3)), _q_agent().init(jax.random.key(3))
  )
  batch = jax.tree.map(lambda x: x[0], _batches(1))
  variant = {'bootstrap': None} if kind == 'regress_to' else {}
  value, grads = jax.value_and_grad(
    lambda params: _q_agent().loss(
      params, state.target_params, batch, jax.random.key(0), **variant
    )[0]
  )(state.online_params)
  after, metrics = jax.jit(getattr(made, kind))(state, batch)
  assert any(map(np.any, jax.tree.leaves(state.online_params)))
  chex.assert_trees_all_close(
    jax.tree.map(
      lambda before, now, grad: before - now - grad,
      state.online_params,
      after.online_params,
      grads,
    ),
    jax.tree.map(lambda leaf: ridge * leaf, state.online_params),
    rtol=1e-4,
    atol=1e-6,
  )
  squares = optax.tree.norm(state.online_params, squared=True)
  assert float(metrics['loss']) == pytest.approx(
    float(value + ridge / 2 * squares), rel=1e-5
  )


# Rules that read what a gradient step reported.


def _following_the_error():
  """A twin that adds up what it is told."""

  def update(online, target, gradient_steps, report):
    del online, gradient_steps
    return {'w': target['w'] + report['loss'] + report['each']}

  return twins.hard()._replace(update=update, reads_report=True)


def _reporting_agent():
  linear = _linear_agent()

  def loss(online, target, batch, key):
    value, metrics = linear.loss(online, {'w': 1.0}, batch, key)
    return value, metrics | {'each': jnp.array([1.0, 3.0])}

  return linear._replace(loss=loss)


def test_a_rule_may_read_what_a_gradient_step_reported():
  made = make_learner(
    _reporting_agent(), optax.sgd(0.1), ClockedTwin(_following_the_error(), 2)
  )
  regress, state = jax.jit(made.regress), made.init(jax.random.key(0))
  # As by hand above: losses of 9, and then of 0.6**2; `each` is 2 on average.
  state, metrics = regress(state, BATCH)
  assert state.target_params['w'] == 1.0
  assert metrics['each'].shape == (2,)
  state, metrics = regress(state, BATCH)
  assert metrics['loss'] == pytest.approx(0.36)
  assert state.target_params['w'] == pytest.approx(1 + 0.36 + 2)
  state = jax.jit(made.sync)(
    state, {'loss': jnp.float32(5.0), 'each': jnp.array([4.0, 6.0])}
  )
  assert state.target_params['w'] == pytest.approx(1 + 0.36 + 2 + 5 + 5)


def test_a_report_that_is_not_there_yet_cannot_be_read():
  with pytest.raises(ValueError, match="target_order='before' must be 'after'"):
    make_learner(
      _reporting_agent(),
      optax.sgd(0.1),
      ClockedTwin(_following_the_error(), order='before'),
    )


# Twins by name.


def test_a_twin_by_name_is_made_with_its_clock():
  spec = TwinSpec(
    'soft', {'tau': 0.25}, 4, 3, 'before', 'fresh', reset_optimizer=True
  )
  clocked = spec.make()
  assert isinstance(clocked, ClockedTwin)
  assert clocked[1:] == (4, 3, 'before', 'fresh', True)
  assert clocked.twin.update(jnp.float32(8), jnp.float32(4), 1) == 5
  # What is left out is what a ClockedTwin has.
  plain = TwinSpec('hard').make()
  assert plain[1:] == ClockedTwin(twins.hard())[1:]
  assert plain.twin.update(jnp.float32(8), jnp.float32(4), 1) == 8
  assert TwinSpec._fields[2:] == ClockedTwin._fields[1:]


@pytest.mark.parametrize(
  'spec, message',
  [
    (TwinSpec('hadr'), "target_update='hadr' is unknown"),
    (TwinSpec('soft'), 'needs tau'),
    (TwinSpec('soft', {'tau': 2.0}), 'tau=2.0 must be in'),
    (TwinSpec('hard', {'tau': 0.5}), 'tau=0.5 has no meaning'),
  ],
)
def test_a_twin_that_cannot_be_made(spec, message):
  with pytest.raises(ValueError, match=message):
    spec.make()


@pytest.mark.parametrize(
  'spec, age',
  [
    (TwinSpec('hard', sync=10), 4.5),
    (TwinSpec('hard'), 0.0),
    (TwinSpec('functional', {'twin_weight': 0.5}, 10), 4.5),
    # Copies 0 to 9 steps old, those before them 10 more, and 20.
    (TwinSpec('averaged', {'target_count': 3}, 10), 14.5),
    # 0.75 / 0.25 steps of the rule.
    (TwinSpec('soft', {'tau': 0.25}), 3.0),
    (TwinSpec('soft_cosine', {'tau': 0.25, 'target_schedule_steps': 9}), 3.0),
    (TwinSpec('t_soft', {'tau': 0.25, 'degrees_of_freedom': 1.0}), 3.0),
    (TwinSpec('periodic_soft', {'tau': 0.25}, 10), 34.5),
    (
      TwinSpec(
        'hard_scheduled',
        {
          'target_period': 7,
          'target_period_end': 90,
          'target_schedule_steps': 9,
        },
      ),
      3.0,
    ),
    (
      TwinSpec(
        'hard_geometric', {'target_period': 7, 'target_period_growth': 1.5}
      ),
      3.0,
    ),
    # 7 gradient steps from one copy to the next, by as much as a waiting time
    # is without memory.
    (TwinSpec('hard_random', {'target_period': 7}), 6),
    (
      TwinSpec(
        'chain',
        {'target_count': 4, 'target_period': 9, 'target_sync_period': 2},
      ),
      4.0,
    ),
    (
      TwinSpec('by_path', {'target_paths': 'torso:hard+head:soft', 'tau': 0.5}),
      1.0,
    ),
    (TwinSpec('self'), None),
    (TwinSpec('residual'), None),
    (TwinSpec('frozen', sync=twins.NEVER), None),
  ],
)
def test_mean_ages_by_hand(spec, age):
  assert spec.mean_age() == age


def test_mean_ages_of_many_twins_at_once():
  ages = jax.jit(
    jax.vmap(
      lambda n, tau: TwinSpec('periodic_soft', {'tau': tau}, n).mean_age()
    )
  )(jnp.array([1, 10]), jnp.array([0.5, 0.25]))
  np.testing.assert_allclose(ages, [1.0, 34.5])


# Optimizers.


def _steps_of(count, **options):
  """Where -w goes, whose gradient is -1."""
  optimizer = learner.make_optimizer(**options)
  w = jnp.float32(0)
  state, seen = optimizer.init(w), []
  for _ in range(count):
    updates, state = optimizer.update(jnp.float32(-1.0), state, w)
    w = optax.apply_updates(w, updates)
    seen.append(float(w))
  return seen


def test_an_annealed_step_size():
  assert _steps_of(
    6, name='sgd', learning_rate=1.0, eps=1, anneal_steps=4
  ) == pytest.approx([1.0, 1.75, 2.25, 2.5, 2.5, 2.5])


def test_a_gradient_is_shortened_to_its_bound():
  for bound, step in ((0.25, 0.25), (4.0, 1.0), (None, 1.0)):
    assert _steps_of(
      1, name='sgd', learning_rate=1.0, eps=1, max_gradient_norm=bound
    ) == pytest.approx([step])


def test_rectified_adam_begins_as_plain_averaging():
  assert _steps_of(3, name='radam', learning_rate=0.1, eps=1e-8) == (
    pytest.approx([0.1, 0.2, 0.3])
  )
