"""Siamese networks: shapes, what they normalize with, what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.networks.siamese import (
  ConvEncoder,
  LinearPredictor,
  MLPEncoder,
  MLPPredictor,
  Projector,
  as_float,
  forward,
  init,
  siamese_networks,
)

KEY = jax.random.key(0)


def _shapes(module, *shape):
  """Of parameters and statistics, for an input of this shape."""
  born = jax.eval_shape(functools.partial(init, module), KEY, jnp.ones(shape))
  return jax.tree.map(lambda leaf: leaf.shape, born)


def test_the_heads_have_simsiams_parameters():
  """As builder.py has them: biases only where nothing is normalized after."""
  params, statistics = _shapes(Projector(5, (7, 7)), 2, 3)
  affine = {'scale': (7,), 'bias': (7,)}
  assert params == {
    'Dense_0': {'kernel': (3, 7)},
    'BatchNorm_0': affine,
    'Dense_1': {'kernel': (7, 7)},
    'BatchNorm_1': affine,
    'Dense_2': {'kernel': (7, 5)},
  }
  assert set(statistics) == {'BatchNorm_0', 'BatchNorm_1', 'BatchNorm_2'}
  assert _shapes(MLPPredictor(2), 2, 5)[0] == {
    'Dense_0': {'kernel': (5, 2)},
    'BatchNorm_0': {'scale': (2,), 'bias': (2,)},
    'Dense_1': {'kernel': (2, 5), 'bias': (5,)},
  }
  assert _shapes(LinearPredictor(), 2, 3) == (
    {'Dense_0': {'kernel': (3, 3)}},
    {},
  )


@pytest.mark.parametrize('encoder, size', [('small_cnn', 28), ('mlp', 8)])
def test_norms_are_where_they_were_asked_for(encoder, size):
  def count(part, **norms):
    networks = siamese_networks(
      encoder, encoder_sizes=(8,), projector_sizes=(8,), **norms
    )
    shape = (2, size, size, 1) if part == 'encoder' else (2, 8)
    return len(_shapes(getattr(networks, part), *shape)[1])

  assert count('encoder') == (4 if encoder == 'small_cnn' else 1)
  assert count('encoder', encoder_norm=False) == 0
  assert count('projector') == 2
  assert count('projector', head_norm=False) == 1
  assert count('projector', output_norm=False) == 1
  assert count('predictor') == 1
  assert count('predictor', head_norm=False) == 0


def test_a_batch_is_normalized_by_itself_or_by_what_is_given():
  module = Projector(4, (), output_norm=True)
  run = jax.jit(functools.partial(forward, module))
  rng = np.random.default_rng(0)
  x, kernel = (rng.normal(size=s).astype(np.float32) for s in ((6, 3), (3, 4)))
  params, y = {'Dense_0': {'kernel': kernel}}, x @ kernel
  own, measured = run(params, x)
  np.testing.assert_allclose(
    own, (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5), atol=1e-5
  )
  measured = measured['BatchNorm_0']
  np.testing.assert_allclose(measured['mean'], y.mean(0), atol=1e-6)
  np.testing.assert_allclose(measured['var'], y.var(0), atol=1e-5)
  given = {'BatchNorm_0': {'mean': np.full(4, 2.0), 'var': np.full(4, 9.0)}}
  by_given, passed = run(params, x, given)
  np.testing.assert_allclose(by_given, (y - 2) / 3, atol=1e-5)
  np.testing.assert_array_equal(passed['BatchNorm_0']['var'], 9)
  # Outputs that have nearly collapsed still have a deviation.
  far = 1e4 * np.eye(4)[:1] + rng.normal(size=(6, 4))
  narrow, _ = run({'Dense_0': {'kernel': np.eye(4, dtype=np.float32)}}, far)
  np.testing.assert_allclose(np.std(narrow, axis=0), 1.0, atol=0.01)


def test_convolutions_are_the_same_inside_a_loop():
  images = np.random.default_rng(0).random((2, 8, 8, 1)).astype(np.float32)
  layers = ((4, 4, 2), (4, 3, 1))
  modules = [ConvEncoder(layers, (5,), inside_loop=loop) for loop in (0, 1)]

  @jax.jit
  def run(key):
    params, statistics = init(modules[0], key, images)
    return statistics, [forward(module, params, images) for module in modules]

  born, ((outside, measured), (inside, _)) = run(KEY)
  assert outside.shape == (2, 5)
  np.testing.assert_allclose(outside, inside, atol=1e-5)
  # A channel is normalized over all places; at birth nothing is changed.
  assert measured['BatchNorm_0']['mean'].shape == (4,)
  for one in born.values():
    assert np.all(one['mean'] == 0) and np.all(one['var'] == 1)


def test_frames_and_small_images_get_features():
  for encoder, size in (('small_cnn', 28), ('nature_cnn', 84)):
    networks = siamese_networks(encoder)

    def project(key, images, networks=networks):
      params, _ = init(networks.encoder, key, images)
      return forward(networks.encoder, params, images)[0]

    features = jax.eval_shape(project, KEY, jnp.zeros((2, size, size, 1)))
    assert features.shape == (2, 256)


def test_refusals():
  with pytest.raises(ValueError, match='resnet.*mlp, small_cnn, nature_cnn'):
    siamese_networks('resnet')
  with pytest.raises(ValueError, match='8 x 8 are too small'):
    _shapes(siamese_networks('nature_cnn').encoder, 1, 8, 8, 1)

  def alone(batch_norm):
    module = MLPEncoder((3,), batch_norm)
    x = jnp.ones((1, 2, 2, 1))
    return jax.eval_shape(
      lambda key: forward(module, init(module, key, x)[0], x)[0], KEY
    )

  with pytest.raises(ValueError, match='batch of 2 or more'):
    alone(True)
  assert alone(False).shape == (1, 3)
  with pytest.raises(ValueError, match='int32'):
    as_float(np.ones((1, 2, 2, 1), np.int32))


def test_images_as_floats():
  images = np.array([[[0], [51], [255]]], np.uint8)
  floats = as_float(images)
  np.testing.assert_allclose(floats, [[[0], [0.2], [1]]], rtol=1e-6)
  np.testing.assert_array_equal(as_float(floats), floats)
