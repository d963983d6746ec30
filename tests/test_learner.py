"""The learner: one gradient step by hand, twins, donation, many at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import learner, schedule, twins
from siamrl.agents.actor_critic import make_td3_agent
from siamrl.agents.q import make_q_agent
from siamrl.networks.policies import Critic, DeterministicActor
from siamrl.networks.q_network import mlp_network
from siamrl.types import Agent, Transition


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

  return Agent(init=lambda key: {'w': jnp.float32(1.0)}, loss=loss)


BATCH = Transition(*(jnp.array([x]) for x in (2.0, 0, 3.0, 0.5, 4.0)))


def test_one_gradient_step_by_hand():
  optimizer = optax.sgd(0.1)
  state = learner.init_state(
    _linear_agent(), twins.hard(), optimizer, jax.random.key(0)
  )
  regress = learner.make_regress(_linear_agent(), optimizer, twins.hard(), 2)
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
  optimizer = optax.sgd(0.0)
  state = learner.init_state(
    _linear_agent(), twins.hard(), optimizer, jax.random.key(0)
  )
  regress = jax.jit(
    learner.make_regress(_linear_agent(), optimizer, count, sync)
  )
  for _ in range(steps):
    state, _ = regress(state, BATCH)
  happened = int(state.target_params['w']) - 1
  assert happened == schedule.syncs(steps, sync) == steps // sync


def _q_learner(rule='hard', sync=3):
  agent = make_q_agent(
    mlp_network(3, sizes=(16,)), np.zeros((1, 1, 4), np.float32)
  )
  optimizer = optax.adam(1e-2)
  tau = 0.3 if 'tau' in twins.RULES[rule].takes else None
  twin = twins.make_rule(rule, tau=tau)
  agent = twin.lift(agent)
  state = learner.init_state(agent, twin, optimizer, jax.random.key(1))
  regress = learner.make_regress(agent, optimizer, twin, sync)
  return agent, state, regress


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
  _, state, regress = _q_learner()
  batch = jax.tree.map(lambda x: x[0], _batches(1))
  step = jax.jit(regress, donate_argnums=0)
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
  _, state, regress = _q_learner(rule, sync)
  batches = _batches(7)
  together, metrics = jax.jit(learner.make_regress_many(regress))(
    state, batches
  )
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
  _, state, regress = _q_learner()
  batches = _batches(5)
  split = [jax.tree.map(lambda x, i=i: x[i], batches) for i in range(5)]
  alone, losses = twins.copy(state.replace(key=None)), []
  alone = alone.replace(key=state.key)
  for batch in split:
    alone, metrics = jax.jit(regress)(alone, batch)
    losses.append(metrics['loss'])
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  together, reported = learner.jit_regress(regress)(state, split)
  assert len(reported) == (5 if backend == 'cpu' else 1)
  found = np.concatenate([np.ravel(metrics['loss']) for metrics in reported])
  np.testing.assert_allclose(found, losses, rtol=1e-5)
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
  optimizer = optax.sgd(0.1)
  drawn = []
  for seed in (0, 1):
    state = learner.init_state(
      agent, twins.hard(), optimizer, jax.random.key(seed)
    )
    regress = jax.jit(learner.make_regress(agent, optimizer, twins.hard()))
    for _ in range(3):
      state, metrics = regress(state, BATCH)
      drawn.append(float(metrics['drawn']))
  assert len(set(drawn)) == 6


def test_metrics_of_transitions_are_averaged_unless_asked_not_to_be():
  agent, state, regress = _q_learner()
  batch = jax.tree.map(lambda x: x[0], _batches(1))
  _, metrics = regress(state, batch)
  assert metrics['td_error_abs'].shape == ()
  kept = learner.make_regress(
    agent, optax.adam(1e-2), twins.hard(), 3, reduce=lambda metric: metric
  )
  _, each = kept(state, batch)
  assert each['td_error_abs'].shape == (8,)
  assert float(each['td_error_abs'].mean()) == pytest.approx(
    float(metrics['td_error_abs'])
  )


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
      'rmsprop_centred', learning_rate=2.5e-4, eps=eps
    )
    state = learner.init_state(
      agent, twins.hard(), optimizer, jax.random.key(1)
    )
    regress = jax.jit(learner.make_regress(agent, optimizer, twins.hard(), 4))
    for i in range(10):
      state, _ = regress(
        state, jax.tree.map(lambda x, i=i: x[i], _batches(10, size))
      )
    results.append(state.online_params)
  start = learner.init_state(
    agent, twins.hard(), optimizer, jax.random.key(1)
  ).online_params
  for a, b, c in zip(*map(jax.tree.leaves, (*results, start)), strict=True):
    np.testing.assert_allclose(a - c, b - c, rtol=2e-3, atol=1e-6)


def test_centred_rmsprop_by_hand():
  optimizer = learner.make_optimizer(
    'rmsprop_centred', learning_rate=0.1, eps=0.01, decay=0.9
  )
  params = {'w': jnp.float32(0.0)}
  update, _ = optimizer.update({'w': jnp.float32(2.0)}, optimizer.init(params))
  # mean 0.2, square 0.4: 2 / sqrt(0.4 - 0.04 + 0.01)
  assert update['w'] == pytest.approx(-0.1 * 2 / 0.37**0.5, rel=1e-5)


def test_centred_rmsprop_of_pytorch_by_hand():
  optimizer = learner.make_optimizer(
    'rmsprop_centred_torch', learning_rate=0.1, eps=0.01, decay=0.9
  )
  params = {'w': jnp.float32(0.0)}
  update, _ = optimizer.update({'w': jnp.float32(2.0)}, optimizer.init(params))
  # mean 0.2, square 0.4: 2 / (sqrt(0.4 - 0.04) + 0.01)
  assert update['w'] == pytest.approx(-0.1 * 2 / 0.61, rel=1e-5)


@pytest.mark.parametrize('name', ['rmsprop_centred', 'rmsprop_centred_torch'])
def test_centred_rmsprop_of_gradients_that_stay_the_same(name):
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
  divisor = 0.01**0.5 if name == 'rmsprop_centred' else 0.01
  # What is left of the variance is rounding, and the root of that a few 1e-3.
  np.testing.assert_allclose(updates[-1], -after / divisor, rtol=0.5)
  # Where the variance is some, it is that of optax.
  theirs = optax.rmsprop(
    1.0, 0.95, 0.01, eps_in_sqrt=name == 'rmsprop_centred', centered=True
  )
  expected, _ = theirs.update(once, theirs.init(once))
  np.testing.assert_allclose(updates[0], expected, rtol=1e-5)


@pytest.mark.parametrize('name', learner.OPTIMIZERS)
def test_weights_in_bfloat16_learn_as_their_copy_in_float32(name):
  """Steps that are less than a weight can change by add up."""
  optimizer = learner.make_optimizer(name, learning_rate=3e-5, eps=1e-3)
  start = {'w': jnp.ones(64, jnp.bfloat16), 'b': jnp.full(3, -0.5)}
  grads = {
    'w': jnp.linspace(-1, 1, 64, dtype=jnp.bfloat16),
    'b': jnp.arange(3.0) - 1,
  }

  def step(carry, scale):
    params, state = carry
    scaled = jax.tree.map(lambda g: (scale * g).astype(g.dtype), grads)
    updates, state = optimizer.update(scaled, state, params)
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


def test_an_optimiser_that_starts_anew_keeps_what_was_rounded():
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
  state = learner.init_state(
    agent,
    twins.hard(),
    learner.make_optimizer('sgd', learning_rate=1.0, eps=1.0),
    jax.random.key(0),
    target_init='fresh',
  )
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


# Parts of the parameters: a twin for some, an optimiser for each.


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

  return Agent(init=init, loss=loss, **options)


def _parted_steps(agent, twin, steps, **options):
  """The state after so many gradient steps."""
  optimizer = learner.make_optimizers(
    agent,
    {
      'fast': optax.sgd(1.0),
      'plain': optax.sgd(10.0),
      'slow': optax.sgd(1.0, momentum=1.0),
    },
  )
  state = learner.init_state(agent, twin, optimizer, jax.random.key(0))
  regress = jax.jit(learner.make_regress(agent, optimizer, twin, **options))
  for _ in range(steps):
    state, _ = regress(state, BATCH)
  return state


def test_each_part_has_its_optimiser():
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
def test_delayed_parts_are_due_where_the_optimiser_starts_anew(sync):
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
  agent = twin.lift(_parted_agent(twinned=('fast',)))
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


def _moves(steps, sync, **options):
  """(online, target) after each gradient step, both counted up by hand."""
  optimizer = optax.sgd(1.0)
  # The gradient of -w is -1: each gradient step adds 1.
  agent = _linear_agent()._replace(
    loss=lambda online, target, batch, key: (
      -online['w'],
      {'target': target['w']},
    )
  )
  twin = twins.hard()
  state = learner.init_state(agent, twin, optimizer, jax.random.key(0))
  regress = jax.jit(
    learner.make_regress(agent, optimizer, twin, sync, **options)
  )
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


def test_after_the_optimisers_step():
  """What was learnt from, then the online and the target weight; C = 3."""
  assert _moves(7, 3) == [
    (1, 2, 1),
    (1, 3, 1),
    (1, 4, 4),
    (4, 5, 4),
    (4, 6, 4),
    (4, 7, 7),
    (7, 8, 7),
  ]


def test_before_the_optimisers_step():
  assert _moves(7, 3, target_order='before') == [
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
  assert [x[0] for x in _moves(4, 1, target_order='before')] == [1, 2, 3, 4]
  assert [x[0] for x in _moves(4, 1)] == [1, 2, 3, 4]


@pytest.mark.parametrize('offset', [0, 1, 2, 3, 7])
def test_a_clock_that_is_ahead(offset):
  moved = [
    step
    for step, (_, online, target) in enumerate(
      _moves(9, 3, sync_offset=offset), 1
    )
    if online == target
  ]
  assert moved == [step for step in range(1, 10) if (step + offset) % 3 == 0]
  assert len(moved) == schedule.syncs(9, 3, offset)


def test_the_optimiser_starts_anew_at_every_sync():
  def moments(reset):
    agent, optimizer, twin = _q_learner()[0], optax.adam(1e-2), twins.hard()
    state = learner.init_state(agent, twin, optimizer, jax.random.key(1))
    regress = jax.jit(
      learner.make_regress(agent, optimizer, twin, 3, reset_optimizer=reset)
    )
    found = []
    for i in range(7):
      batch = jax.tree.map(lambda x, i=i: x[i], _batches(7))
      state, _ = regress(state, batch)
      leaves = jax.tree.leaves(state.opt_state)
      found.append(any(bool(jnp.any(leaf)) for leaf in leaves))
    return found

  assert moments(True) == [True, True, False, True, True, False, True]
  assert moments(False) == [True] * 7


def test_a_fresh_twin_is_another_network():
  agent, optimizer = _q_learner()[0], optax.adam(1e-2)
  born = {
    name: learner.init_state(
      agent, twins.hard(), optimizer, jax.random.key(1), target_init=name
    )
    for name in learner.TARGET_INITS
  }
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


@pytest.mark.parametrize(
  'call, message',
  [
    (
      lambda **k: learner.init_state(
        _linear_agent(), twins.hard(), optax.sgd(1.0), jax.random.key(0), **k
      ),
      'target_init',
    ),
    (
      lambda **k: learner.make_regress(
        _linear_agent(), optax.sgd(1.0), twins.hard(), **k
      ),
      'target_order',
    ),
  ],
)
def test_unknown_names_are_refused(call, message):
  with pytest.raises(ValueError, match=f"{message}='new' is unknown; choose"):
    call(**{message: 'new'})


# Optimisers.


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
