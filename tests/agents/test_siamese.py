"""Siamese agents: identities of the twin, statistics, and what they refuse."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl.agents.siamese import PREDICTORS, make_siamese_agent
from siamrl.augment import AUGMENTATIONS
from siamrl.networks.siamese import forward, siamese_networks

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, size=(6, 3, 3, 1), dtype=np.uint8)
SAME = AUGMENTATIONS['none']
KEY, OTHER_KEY = jax.random.split(jax.random.key(0))
# A layer with batch normalization, and the projector's.
SMALL = {'encoder_sizes': (8,), 'projector_sizes': (), 'projections': 4}
# A matrix and a bias.
LINEAR = SMALL | {
  'encoder_sizes': (),
  'encoder_norm': False,
  'head_norm': False,
  'output_norm': False,
}
NORMALIZED = LINEAR | {'output_norm': True}


def _changed(key, image):
  """A view that takes little compiling."""
  bits = jax.random.key_data(key)
  return jnp.clip(image + 0.3 * jnp.sin(50 * image + bits[0] % 97), 0, 1)


def _make(augment=_changed, networks=SMALL, **options):
  built = siamese_networks('mlp', predictor_units=3, **networks)
  return make_siamese_agent(built, IMAGES, augment=augment, **options)


@functools.cache
def _born():
  """Parameters of the small networks, and a twin that is not their equal."""
  init = jax.jit(_make().agent.init)
  return init(KEY), _twinned(init(OTHER_KEY))


def _twinned(params):
  names = _make(twin_statistics='moved').agent.twinned
  return {name: params[name] for name in names}


@functools.cache
def _slopes(**options):
  """A compiled loss with its gradients in both arguments."""
  agent = _make(**options).agent
  return jax.jit(jax.value_and_grad(agent.loss, (0, 1), has_aux=True))


def _close(tree, other, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance), tree, other
  )


def _linear():
  layer = lambda: {
    'kernel': RNG.normal(size=(9, 4)).astype(np.float32),
    'bias': RNG.normal(size=4).astype(np.float32),
  }
  nothing = {'encoder': {}, 'projector': {}}
  return {
    'encoder': {},
    'projector': {'Dense_0': layer()},
    'statistics': nothing,
  }


def test_losses_of_a_linear_network_by_hand():
  """Both views are the image; one matrix for each of the twins, in NumPy."""
  online, target = _linear(), _linear()
  x = IMAGES.reshape(6, 9) / 255

  def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)

  def projected(params):
    layer = params['projector']['Dense_0']
    return unit(x @ layer['kernel'] + layer['bias'])

  ones = unit(np.ones((6, 4)))
  cosine = np.mean(np.sum(projected(online) * projected(target), 1))
  replaced = np.mean(np.sum(projected(online) * ones, 1))
  cases = (
    ({'loss': 'cosine'}, -cosine),
    ({'loss': 'cosine', 'symmetric': False}, -cosine),
    ({'loss': 'byol'}, 2 * (2 - 2 * cosine)),
    ({'loss': 'byol', 'symmetric': False}, 2 - 2 * cosine),
  )
  agents = [
    _make(SAME, LINEAR, predictor='none', **options).agent
    for options, _ in cases
  ]

  @jax.jit
  def losses(online, target):
    given = online, target, IMAGES, KEY
    with_ones = agents[0].loss(*given, bootstrap=lambda *_: jnp.asarray(ones))
    return with_ones, [agent.loss(*given) for agent in agents]

  (value, _), found = losses(online, target)
  assert value == pytest.approx(-replaced, abs=1e-5)
  for (_, expected), (value, metrics) in zip(cases, found, strict=True):
    assert value == pytest.approx(expected, abs=1e-5)
    assert metrics['loss'] == value


def test_each_view_is_compared_with_the_other():
  """With itself it would agree fully. Bytes are floats, divided by 255."""
  agents = [
    _make(networks=LINEAR, predictor='none', symmetric=symmetric).agent
    for symmetric in (True, False)
  ]
  params = _linear()

  @jax.jit
  def losses(key):
    floats = IMAGES / np.float32(255)
    return [
      agent.loss(params, params, images, key)[0]
      for agent in agents
      for images in (IMAGES, floats)
    ]

  values, again = losses(KEY), losses(OTHER_KEY)
  assert max(values) < -0.5 and min(values) > -0.9999
  assert values[0] == pytest.approx(float(values[1]), abs=1e-6)
  assert abs(values[0] - again[0]) > 1e-5


def test_without_a_predictor_the_stop_gradient_halves_the_gradient():
  online, _ = _born()
  _, (stopped, through) = _slopes(loss='byol', predictor='none')(
    online, _twinned(online), IMAGES, KEY
  )
  for name in ('encoder', 'projector'):
    assert optax.tree.norm(stopped[name]) > 1e-3
    _close(stopped[name], through[name], atol=1e-6)


def test_a_predictor_breaks_the_symmetry():
  online, _ = _born()
  _, (stopped, through) = _slopes()(online, _twinned(online), IMAGES, KEY)
  difference = optax.tree.sub(stopped['encoder'], through['encoder'])
  assert optax.tree.norm(difference) > 0.1 * optax.tree.norm(stopped['encoder'])


def test_the_loss_beyond_its_metric_is_half_the_squared_gradient():
  online, _ = _born()
  (value, metrics), (grads, _) = _slopes()(
    online, _twinned(online), IMAGES, KEY
  )
  term = float(optax.tree.norm(grads['statistics'], squared=True)) / 2
  assert value - metrics['loss'] == pytest.approx(term, rel=1e-4)


def _normalized():
  """The linear network with its projections normalized."""
  layer = {'kernel': RNG.normal(size=(9, 4)).astype(np.float32)}
  norm = {'mean': np.zeros(4, np.float32), 'var': np.ones(4, np.float32)}
  return {
    'encoder': {},
    'projector': {'Dense_0': layer},
    'statistics': {'encoder': {}, 'projector': {'BatchNorm_0': norm}},
  }


def test_no_gradient_reaches_statistics_through_the_twin():
  """Also where the twin is the online network with its gradient."""
  agent = _make(
    networks=NORMALIZED, predictor='none', twin_statistics='moved'
  ).agent
  params = _normalized()
  through, _ = jax.jit(jax.grad(agent.loss, 1, has_aux=True))(
    params, params, IMAGES, KEY
  )
  assert optax.tree.norm(through['projector']) > 1e-3
  assert optax.tree.norm(through['statistics']) == 0


def _filled(params, number):
  return params | {
    'statistics': jax.tree.map(
      lambda leaf: np.full_like(leaf, number), params['statistics']
    )
  }


def test_what_is_learned_does_not_depend_on_running_statistics():
  online, target = _born()
  (_, metrics), (grads, _) = _slopes()(online, target, IMAGES, KEY)
  (_, same), (others, _) = _slopes()(
    _filled(online, 30.0), _filled(target, 20.0), IMAGES, KEY
  )
  assert metrics['loss'] == same['loss']
  for name in ('encoder', 'projector', 'predictor'):
    _close(grads[name], others[name], rtol=0)


def test_a_step_of_gradient_descent_is_the_running_average():
  """Flax's own, of the same layer and with its momentum."""
  reference = nn.BatchNorm(
    use_running_average=False, momentum=0.9, use_scale=False, use_bias=False
  )
  agent = _make(SAME, NORMALIZED, predictor='none').agent
  online = _normalized()
  kernel = online['projector']['Dense_0']['kernel']
  descend = optax.sgd(1 - 0.9)

  @jax.jit
  def both(statistics, running):
    y = IMAGES.reshape(6, 9) / np.float32(255) @ kernel
    _, state = reference.apply(
      {'batch_stats': running}, y, mutable=['batch_stats']
    )
    params = online | {'statistics': statistics}
    grads = jax.grad(agent.loss, has_aux=True)(params, params, IMAGES, KEY)
    updates, _ = descend.update(
      grads[0]['statistics'], descend.init(statistics)
    )
    return optax.apply_updates(statistics, updates), state['batch_stats']

  statistics = online['statistics']
  running = statistics['projector']['BatchNorm_0']
  for _ in range(3):
    statistics, running = both(statistics, running)
    _close(statistics['projector']['BatchNorm_0'], running, atol=1e-5)


def test_a_step_goes_to_the_mean_of_both_views():
  """Of images that are one shade each, of which the projections are means."""
  shades = []

  def shade(key, image):
    view = jnp.full_like(image, jax.random.key_data(key)[0] % 7 / 7)
    jax.debug.callback(lambda x: shades.append(float(x[0, 0, 0])), view)
    return view

  agent = _make(shade, NORMALIZED | {'projections': 1}, predictor='none').agent
  layer = {'kernel': np.full((9, 1), 1 / 9, np.float32)}
  norm = {name: np.zeros(1, np.float32) for name in ('mean', 'var')}
  params = {
    'encoder': {},
    'projector': {'Dense_0': layer},
    'statistics': {'encoder': {}, 'projector': {'BatchNorm_0': norm}},
  }
  grads, _ = jax.jit(jax.grad(agent.loss, has_aux=True))(
    params, params, IMAGES, KEY
  )
  jax.effects_barrier()
  assert len(shades) == 12
  found = grads['statistics']['projector']['BatchNorm_0']['mean']
  np.testing.assert_allclose(found, -np.mean(shades), atol=1e-5)


@functools.cache
def _measured():
  """Statistics of the images by the twin's networks, and its projections."""
  _, target = _born()
  networks = siamese_networks('mlp', **SMALL)

  @jax.jit
  def run():
    x = IMAGES / np.float32(255)
    h, of_encoder = forward(networks.encoder, target['encoder'], x)
    z, of_projector = forward(networks.projector, target['projector'], h)
    return {'encoder': of_encoder, 'projector': of_projector}, z

  return run()


@pytest.mark.parametrize('twin_statistics', ['own', 'shared', 'moved'])
def test_what_the_twin_is_normalized_with(twin_statistics):
  agent = _make(twin_statistics=twin_statistics).agent
  online, target = _born()
  bootstrap = jax.jit(agent.bootstrap)
  measured, expected = _measured()
  z = bootstrap(online, target, IMAGES, KEY)
  of_online = bootstrap(_filled(online, 0.3), target, IMAGES, KEY)
  of_twin = bootstrap(online, _filled(target, 0.3), IMAGES, KEY)
  assert np.any(of_online != z) == (twin_statistics == 'shared')
  assert np.any(of_twin != z) == (twin_statistics == 'moved')
  # Where the statistics are the batch's own, all three are the same.
  holder = {'statistics': measured}
  same = bootstrap(online | holder, target | holder, IMAGES, KEY)
  np.testing.assert_allclose(same, expected, atol=1e-4)
  assert np.allclose(z, expected, atol=1e-4) == (twin_statistics == 'own')


def test_values_of_the_twin_in_place_of_the_online_entries():
  made = _make()
  online, target = _born()
  assert set(target) == {'encoder', 'projector', 'statistics'}
  # A twin that does not use statistics has none.
  for name in ('own', 'shared'):
    agent = _make(twin_statistics=name).agent
    assert agent.twinned == ('encoder', 'projector')
  measured, expected = _measured()
  features = jax.jit(made.features)
  both = features(online | target | {'statistics': measured}, IMAGES)
  np.testing.assert_allclose(both.projections, expected, atol=1e-4)
  assert both.encoder.shape == (6, 8)
  # No image sees the others of its batch.
  mixed = np.concatenate([IMAGES[:1], IMAGES[:5] // 2])
  again = features(online | target | {'statistics': measured}, mixed)
  np.testing.assert_allclose(
    again.projections[0], both.projections[0], atol=1e-6
  )
  z = jax.jit(made.agent.values)(online | target, IMAGES)
  assert z.dtype == jnp.float32
  np.testing.assert_allclose(z, expected, atol=1e-4)
  shared = _make(twin_statistics='shared').agent
  z = jax.jit(shared.values)(online | target, IMAGES)
  np.testing.assert_allclose(
    z, features(online | target, IMAGES).projections, atol=1e-6
  )
  assert not np.allclose(z, expected, atol=0.1)


def test_targets_are_of_images_as_they_are():
  made = _make()
  online, target = _born()
  _, expected = _measured()
  y = jax.jit(made.agent.targets)(online, target, IMAGES, KEY)
  np.testing.assert_allclose(y, expected, atol=1e-4)
  ones = lambda *_: jnp.ones((6, 4))
  np.testing.assert_array_equal(
    made.agent.targets(online, target, IMAGES, KEY, bootstrap=ones), 1.0
  )


def test_a_fixed_predictor_gets_no_gradient():
  trained, fixed = (
    _make(networks=LINEAR, predictor='linear', fixed_predictor=fixed).agent
    for fixed in (False, True)
  )
  kernel = RNG.normal(size=(4, 4)).astype(np.float32)
  online = _linear() | {'predictor': {'Dense_0': {'kernel': kernel}}}

  @jax.jit
  def slopes(online, target):
    return [
      jax.grad(agent.loss, has_aux=True)(online, target, IMAGES, KEY)
      for agent in (trained, fixed)
    ]

  (grads, metrics), (others, same) = slopes(online, _linear())
  assert metrics['loss'] == same['loss']
  assert optax.tree.norm(grads['predictor']) > 1e-3
  assert optax.tree.norm(others['predictor']) == 0
  _close(grads['projector'], others['projector'], atol=1e-6)


@pytest.mark.parametrize('name', PREDICTORS)
def test_predictors_by_name(name):
  made = _make(predictor=name)
  born = jax.eval_shape(made.agent.init, KEY)
  assert ('predictor' in born) == (name != 'none')
  z = RNG.normal(size=(2, 4)).astype(np.float32)
  kernel = RNG.normal(size=(4, 4)).astype(np.float32)
  params = {'predictor': {'Dense_0': {'kernel': kernel}}}
  predict = jax.jit(made.predict)
  if name == 'mlp':
    params, _ = _born()
  p = predict(params, z, 2 * z)
  if name == 'none':
    np.testing.assert_array_equal(p, z)
  elif name == 'linear':
    np.testing.assert_allclose(p, z @ kernel, rtol=1e-4)
  # Rows do not see each other, but all see the batch that is given.
  changed = predict(params, np.stack([z[0], 5 * z[1]]), 2 * z)
  np.testing.assert_allclose(changed[0], p[0], rtol=1e-5)
  other = predict(params, z, np.stack([z[0], 5 * z[1]]))
  assert np.allclose(other, p, atol=1e-3) == (name != 'mlp')


def test_the_contrastive_loss_of_known_projections():
  """Views agree, and images are at right angles; there is no twin to ask."""
  made = _make(
    SAME,
    LINEAR | {'projections': 9},
    loss='contrastive',
    predictor='none',
    temperature=0.5,
  )
  params = _linear()
  params['projector']['Dense_0'] = {'kernel': np.eye(9), 'bias': np.zeros(9)}
  images = np.eye(9, dtype=np.float32)[:5].reshape(5, 3, 3, 1)
  value, metrics = jax.jit(made.agent.loss)(params, None, images, KEY)
  assert value == pytest.approx(np.log(1 + 8 * np.exp(-2)), rel=1e-5)
  assert metrics['loss'] == value


@pytest.mark.parametrize(
  'options, words',
  [
    ({'loss': 'l2'}, 'cosine, byol, contrastive'),
    ({'predictor': 'cnn'}, 'mlp, linear, none'),
    ({'twin_statistics': 'theirs'}, 'own, shared, moved'),
    ({'loss': 'contrastive'}, "must be 'none'"),
    (
      {'loss': 'contrastive', 'predictor': 'none', 'symmetric': False},
      'symmetric',
    ),
    (
      {'loss': 'contrastive', 'predictor': 'none', 'temperature': 0.0},
      'positive',
    ),
    ({'temperature': 0.5}, 'no meaning'),
    ({'predictor': 'none', 'fixed_predictor': True}, 'no meaning'),
    (
      {'networks': LINEAR, 'twin_statistics': 'moved'},
      'without batch normalization',
    ),
  ],
)
def test_options_that_do_not_go_together(options, words):
  with pytest.raises(ValueError, match=words):
    _make(**options)


def test_images_that_do_not_go():
  online, target = _born()
  agent = _make().agent
  contrasting = _make(
    networks=LINEAR, loss='contrastive', predictor='none'
  ).agent
  for function, params in (
    (agent.loss, online),
    (agent.bootstrap, online),
    (contrasting.loss, _linear()),
  ):
    with pytest.raises(ValueError, match='batch of 2 or more'):
      jax.eval_shape(function, params, target, IMAGES[:1], KEY)
  with pytest.raises(ValueError, match='B, H, W, C'):
    make_siamese_agent(siamese_networks(), IMAGES[..., 0], augment=SAME)
