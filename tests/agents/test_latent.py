"""Latent self-prediction: its loss by an oracle, its twins, its collapse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import learner, twins
from siamrl.agents.latent import with_augmentation, with_latent_prediction
from siamrl.agents.q import make_q_agent
from siamrl.augment import of_frames, shift
from siamrl.networks.latent import latent_networks
from siamrl.networks.q_network import mlp_network
from siamrl.types import Future, Transition
from tests.parameters import OF_VALUES

KEY = jax.random.key(0)
B, K, A, S, D = 5, 2, 3, 4, 6
OBS = np.zeros((1, S), np.float32)
NETWORK = mlp_network(A, sizes=(8,), initializer='torch_uniform')
LATENT = latent_networks(NETWORK, projections=D)


def _base(**kwargs):
  return make_q_agent(NETWORK, OBS, **kwargs)


def _agent(steps=K, batch_reduction='mean', networks=LATENT, **kwargs):
  base = _base(batch_reduction=batch_reduction)
  return with_latent_prediction(
    base,
    networks,
    OBS,
    steps=steps,
    batch_reduction=batch_reduction,
    **kwargs,
  )


@functools.cache
def _params(seed=0):
  """Those of any agent here; how far it looks and what it weighs is no part."""
  return jax.jit(_agent().init)(jax.random.key(seed))


def _batch(seed=0, *, weight=None, mask=None, **changes) -> Transition:
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  if mask is None:
    mask = [[1, 1], [1, 0], [0, 0], [1, 1], [1, 1]]
  batch = Transition(
    normal(B, S),
    rng.integers(0, A, B, np.int32),
    normal(B),
    np.full(B, 0.5, np.float32),
    normal(B, S),
    weight,
    Future(
      rng.integers(0, A, (B, K), np.int32),
      normal(B, K, S),
      np.array(mask, bool),
    ),
  )
  return batch._replace(**changes)


# --- The loss --------------------------------------------------------------


def _dense(params, x):
  while 'kernel' not in params:
    (params,) = params.values()
  return x @ np.asarray(params['kernel']) + np.asarray(params['bias'])


def _errors(params, twin, batch) -> np.ndarray:
  """[B, K] squared distances, in NumPy, one by one."""
  relu = lambda x: np.maximum(x, 0)
  unit = lambda x: x / np.linalg.norm(x)
  torso = params['q']['params']['torso']
  errors = np.zeros((B, K))
  for b in range(B):
    latent = relu(_dense(torso, batch.obs_tm1[b]))
    for k in range(K):
      action = np.eye(A)[batch.future.a[b, k]]
      hidden = np.concatenate([latent, action])
      for name in ('Dense_0', 'Dense_1'):
        hidden = relu(_dense(params['transition'][name], hidden))
      latent = hidden
      p = _dense(params['predictor'], _dense(params['projector'], latent))
      seen = relu(_dense(twin['encoder'], batch.future.obs[b, k]))
      z = _dense(twin['projector'], seen)
      errors[b, k] = np.sum((unit(p) - unit(z)) ** 2)
  return errors


@pytest.mark.parametrize(
  'reduction, weighted', [('mean', True), ('sum', False)]
)
def test_the_loss_of_an_oracle(reduction, weighted):
  weights = np.float32([1, 0.5, 0.25, 0, 2]) if weighted else None
  batch = _batch(weight=weights)
  agent = _agent(batch_reduction=reduction, weight=3.0)
  base = _base(batch_reduction=reduction)
  online, other = _params(), _params(1)
  target = twins.part(agent, other)
  value, metrics = jax.jit(agent.loss)(online, target, batch, KEY)
  of_values, expected = jax.jit(base.loss)(online['q'], other['q'], batch, KEY)

  mask = batch.future.mask
  errors = _errors(online, target['latent'], batch)
  assert errors[mask].min() > 0.05  # not all the same
  each = np.sum(errors * mask, 1) / K
  each = each if weights is None else weights * each
  total = each.sum() if reduction == 'sum' else each.mean()
  assert value == pytest.approx(float(of_values + 3 * total), rel=1e-5)
  assert metrics['loss'] == value
  assert metrics['spr_loss'] == pytest.approx(errors[mask].mean(), rel=1e-5)
  for name in ('q_tm1', 'td_error_abs'):
    np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-6)


def test_what_is_masked_has_no_say():
  agent = _agent()
  online = _params()
  target = twins.part(agent, _params(1))
  gradient = jax.jit(
    lambda batch: jax.grad(
      lambda online: agent.loss(online, target, batch, KEY)[0]
    )(online)
  )
  batch, other = _batch(), _batch(1).future
  mask = batch.future.mask
  hidden = batch.future._replace(
    obs=np.where(mask[..., None], batch.future.obs, other.obs),
    # What is done after the last step that counts leads nowhere.
    a=np.where(mask, batch.future.a, (batch.future.a + 1) % A),
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
    gradient(batch),
    gradient(batch._replace(future=hidden)),
  )
  # Where nothing counts, there is nothing but values.
  nothing = _batch(mask=np.zeros((B, K)))
  value, metrics = jax.jit(agent.loss)(online, target, nothing, KEY)
  of_values, _ = jax.jit(_base().loss)(online['q'], target['q'], nothing, KEY)
  assert value == pytest.approx(float(of_values))
  assert metrics['spr_loss'] == 0


def _train(agent, rule=None, steps=4, sync=2, batch=None):
  """A few steps of Adam on one batch; the states and metrics after each."""
  made = learner.make_learner(
    agent, optax.adam(1e-2), learner.ClockedTwin(rule or twins.hard(), sync)
  )
  state = jax.jit(made.init)(KEY)
  regress = jax.jit(made.regress, donate_argnums=0)
  batch, history = _batch() if batch is None else batch, []
  for _ in range(steps):
    state, metrics = regress(state, batch)
    history.append((jax.device_get(state), jax.device_get(metrics)))
  return history


def test_with_no_weight_values_are_learned_as_without():
  with_, without = (_train(a)[-1][0] for a in (_agent(weight=0.0), _base()))
  for ours, plain in (
    (with_.online_params, without.online_params),
    (with_.target_params, without.target_params),
  ):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
      ours['q'],
      plain,
    )
  agent, base, obs = _agent(), _base(), _batch().obs_t
  params = with_.online_params
  np.testing.assert_array_equal(
    agent.values(params, obs), base.values(params['q'], obs)
  )
  noise = agent.acting.noise(KEY, B)
  for ours, plain in (
    (agent.taken(params, _batch()), base.taken(params['q'], _batch())),
    (agent.acting.greedy(params, obs), base.acting.greedy(params['q'], obs)),
    (
      agent.acting.act(params, obs, noise, 0.5),
      base.acting.act(params['q'], obs, noise, 0.5),
    ),
  ):
    np.testing.assert_array_equal(ours, plain)


# --- Twins -----------------------------------------------------------------


def test_values_and_latents_have_twins_of_their_own():
  rule = twins.make_rule(
    'by_path',
    target_paths='q:hard+latent:soft',
    target_period=3,
    tau=0.25,
  )
  agent = _agent()
  born = twins.part(agent, jax.jit(agent.init)(jax.random.split(KEY)[0]))
  (one, _), _, (three, _) = _train(agent, rule, steps=3, sync=1)
  now = twins.part(agent, one.online_params)
  jax.tree.map(np.testing.assert_array_equal, one.target_params['q'], born['q'])
  jax.tree.map(
    lambda twin, old, new: np.testing.assert_allclose(
      twin, 0.75 * old + 0.25 * new, rtol=1e-5, atol=1e-7
    ),
    one.target_params['latent'],
    born['latent'],
    now['latent'],
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    three.target_params['q'],
    three.online_params['q'],
  )
  # The encoder is a part of the values' network.
  jax.tree.map(
    np.testing.assert_array_equal,
    now['latent']['encoder'],
    one.online_params['q']['params']['torso'],
  )


def test_the_stop_gradient_is_the_twins_argument():
  """No bootstrap in the values, so that gradients differ by latents alone."""
  batch = _batch(discount_t=np.zeros(B, np.float32))

  def gradient(target, rule):
    agent = rule.lift(_agent(target=target))
    online = _params()
    value, grads = jax.jit(
      jax.value_and_grad(lambda p: agent.loss(p, (), batch, KEY)[0])
    )(online)
    return float(value), grads

  stopped = gradient('twin', twins.self_copy())
  free = gradient('online_gradient', twins.self_copy())
  residual = gradient('twin', twins.residual())
  assert stopped[0] == pytest.approx(free[0], rel=1e-6)
  same = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
  jax.tree.map(same, free[1], residual[1])
  torso = lambda grads: grads['q']['params']['torso']
  assert not np.allclose(
    *map(
      np.concatenate,
      map(jax.tree.leaves, map(_flat, (torso(stopped[1]), torso(free[1])))),
    ),
    atol=1e-3,
  )
  # Of what has no part in the targets nothing changes.
  for part in ('transition', 'predictor'):
    jax.tree.map(same, free[1][part], stopped[1][part])


def _flat(tree):
  return jax.tree.map(np.ravel, tree)


def test_without_a_twin_of_the_latents_none_is_kept():
  agent = _agent(target='online_gradient')
  assert set(twins.part(agent, _params())) == {'q'}


_GIVEN = dict(
  tau=0.5,
  tau_end=0.25,
  target_period=3,
  target_period_end=4,
  target_period_growth=1.5,
  degrees_of_freedom=1.0,
  target_schedule_steps=100,
  target_count=2,
  target_sync_period=2,
  target_paths='q:hard+latent:soft',
  twin_weight=0.5,
  projection_radius=100.0,
  ridge=0.1,
)


@pytest.mark.parametrize(
  'name', [name for name in twins.RULES if name not in OF_VALUES]
)
def test_every_rule_fits(name):
  takes = twins.takes(name, _GIVEN['target_paths'])
  rule = twins.make_rule(name, **{key: _GIVEN[key] for key in takes})
  made = learner.make_learner(
    _agent(), optax.sgd(0.1), learner.ClockedTwin(rule, 2)
  )
  state = jax.eval_shape(lambda seed: made.init(jax.random.key(seed)), 0)
  after, metrics = jax.eval_shape(made.regress, state, _batch())
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
  assert {'loss', 'spr_loss', 'spr_std'} <= set(metrics)


@pytest.mark.parametrize(
  'name', ['hard', 'averaged', 'chain', 'hard_geometric']
)
def test_the_twin_of_the_values_acts(name):
  takes = twins.takes(name, _GIVEN['target_paths'])
  rule = twins.make_rule(name, **{key: _GIVEN[key] for key in takes})
  clocked = learner.ClockedTwin(rule, 2, init='fresh')
  made = learner.make_learner(_agent(), optax.sgd(0.1), clocked, 'target')
  state = jax.jit(lambda: made.init(jax.random.key(0)))()
  acting = made.agent.acting
  noise = acting.noise(KEY, B)
  params = made.acting_params(state)
  twin = rule.params(
    twins.part(made.agent, state.online_params), state.target_params
  )
  jax.tree.map(np.testing.assert_array_equal, params['q'], twin['q'])
  obs = _batch().obs_tm1
  found = [acting.act(p, obs, noise, 0.0) for p in (params, {'q': twin['q']})]
  np.testing.assert_array_equal(*found)


def test_several_copies_are_averaged_in_latents_too():
  rule = twins.averaged(2)
  agent = _agent()
  lifted = rule.lift(agent)
  online = _params()
  copies = [twins.part(agent, _params(seed)) for seed in (1, 2)]
  target = jax.tree.map(lambda *leaves: jnp.stack(leaves), *copies)
  future = _batch().future
  answers = [agent.bootstrap(online, copy, future, KEY) for copy in copies]
  np.testing.assert_allclose(
    lifted.bootstrap(online, target, future, KEY),
    (answers[0] + answers[1]) / 2,
    rtol=1e-5,
  )
  assert answers[0].shape == (B, K, D)


def test_collapse_needs_the_missing_stop_gradient():
  rng = np.random.default_rng(0)
  B = 64
  batch = Transition(
    rng.normal(size=(B, S)).astype(np.float32),
    rng.integers(0, A, B, np.int32),
    np.zeros(B, np.float32),
    np.zeros(B, np.float32),
    rng.normal(size=(B, S)).astype(np.float32),
    None,
    Future(
      rng.integers(0, A, (B, K), np.int32),
      rng.normal(size=(B, K, S)).astype(np.float32),
      np.ones((B, K), bool),
    ),
  )
  ends = {
    target: _train(_agent(target=target), twins.self_copy(), 300, 1, batch)
    for target in ('twin', 'online_gradient')
  }
  ends = {target: history[-1][1] for target, history in ends.items()}
  # What comes next is chance: the one cannot be predicted, the other can.
  assert ends['online_gradient']['spr_loss'] < 0.05
  assert ends['online_gradient']['spr_std'] < 0.1
  assert ends['twin']['spr_std'] > 0.3


# --- Augmentation ----------------------------------------------------------


def _frames(seed=0):
  rng = np.random.default_rng(seed)
  frames = lambda *lead: rng.integers(0, 256, (*lead, 2, 3, 3), np.uint8)
  return _batch(
    obs_tm1=frames(B),
    obs_t=frames(B),
    future=_batch().future._replace(obs=frames(B, K)),
  )


def _seeing_frames():
  obs = np.zeros((1, 2, 3, 3), np.uint8)
  return with_latent_prediction(
    make_q_agent(NETWORK, obs), LATENT, obs, steps=K
  )


def test_every_frame_learned_from_is_augmented():
  agent = _seeing_frames()
  init, batch = jax.jit(agent.init), _frames()
  online, other = init(KEY), init(jax.random.key(1))
  target = twins.part(agent, other)
  value = lambda agent, batch: float(agent.loss(online, target, batch, KEY)[0])
  unchanged = with_augmentation(agent, lambda key, image: image)
  assert value(unchanged, batch) == pytest.approx(value(agent, batch), rel=1e-5)
  # Images are [H, W, C] of 0 to 1: the second frame of each stack becomes gray.
  gray = with_augmentation(
    agent, of_frames(lambda key, image: image.at[..., 1].set(0.2))
  )

  def second(obs):
    changed = obs.copy()
    changed[..., 1, :, :] = 51
    return changed

  expected = batch._replace(
    obs_tm1=second(batch.obs_tm1),
    obs_t=second(batch.obs_t),
    future=batch.future._replace(obs=second(batch.future.obs)),
  )
  assert value(gray, batch) == pytest.approx(value(agent, expected), rel=1e-5)
  assert value(gray, batch) != pytest.approx(value(agent, batch), rel=1e-3)
  # Acting and targets that are looked at are of what was seen.
  for name in ('acting', 'values', 'targets', 'bootstrap'):
    assert getattr(gray, name) is getattr(agent, name)
  # Without a future there is nothing else to change.
  base = make_q_agent(NETWORK, np.zeros((1, 2, 3, 3), np.uint8))
  plain = with_augmentation(base, lambda key, image: image)
  batch = batch._replace(future=None)
  values = [
    float(each.loss(online['q'], target['q'], batch, KEY)[0])
    for each in (plain, base)
  ]
  assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_each_image_is_augmented_by_a_chance_of_its_own():
  seen = []

  class _Spy:
    """An agent's loss that says what it got."""

    @staticmethod
    def loss(online, target, batch, key):
      return batch, key

  def noise(key, image):
    return image + jax.random.uniform(key)

  agent = with_augmentation(_base()._replace(loss=_Spy.loss), of_frames(noise))
  batch = jax.tree.map(np.zeros_like, _frames())
  changed, key = agent.loss(None, None, batch, KEY)
  seen = np.concatenate(
    [
      np.reshape(obs, (-1, 2 * 3 * 3))
      for obs in (changed.obs_tm1, changed.obs_t, changed.future.obs)
    ]
  )
  assert np.ptp(seen, 1).max() == 0  # of an image all cells alike
  assert len(np.unique(seen[:, 0])) == B * (2 + K)
  assert not np.array_equal(*map(jax.random.key_data, (key, KEY)))


def test_boards_of_booleans_stay_so():
  """They move, and what moves in from the border is what stood there."""
  rng = np.random.default_rng(0)
  board = rng.random((5, 4, 2)) < 0.5
  boards = np.repeat(board[None], 50, 0)
  seen = _base()._replace(loss=lambda online, target, batch, key: batch)
  agent = with_augmentation(seen, functools.partial(shift, pixels=1))
  changed = agent.loss(
    None, None, _batch(obs_tm1=boards, obs_t=boards, future=None), KEY
  )
  padded = np.pad(board, ((1, 1), (1, 1), (0, 0)), 'edge')
  moved = {
    padded[row : row + 5, column : column + 4].tobytes()
    for row in range(3)
    for column in range(3)
  }
  for obs in (changed.obs_tm1, changed.obs_t):
    assert obs.dtype == bool
    assert {np.asarray(each).tobytes() for each in obs} == moved


# --- Errors ----------------------------------------------------------------


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: _agent(steps=0), 'steps=0 must be at least 1'),
    (lambda: _agent(target='ema'), "target='ema' is unknown; choose from twin"),
    (
      lambda: with_latent_prediction(
        _base(), LATENT, OBS, steps=1, batch_reduction='max'
      ),
      "batch_reduction='max' is unknown",
    ),
    (
      lambda: with_latent_prediction(
        _base(target_form='clipped_double'), LATENT, OBS, steps=1
      ),
      'of one network, not of critic_0, critic_1',
    ),
  ],
)
def test_what_is_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize('steps', [1, K])
def test_batches_must_reach_as_far(steps):
  agent = _agent(steps=steps)
  online = _params()
  batch = _batch() if steps == 1 else _batch(future=None)
  with pytest.raises(ValueError, match=f'a future of {steps} steps'):
    agent.loss(online, twins.part(agent, online), batch, KEY)
