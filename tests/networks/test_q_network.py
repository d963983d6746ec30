"""Networks: shapes, sizes, heads, initialization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from siamrl.networks import torsos
from siamrl.networks.initializers import INITIALIZERS
from siamrl.networks.q_network import (
  minatar_network,
  mlp_network,
  nature_network,
  renormalized,
)
from tests.parameters import slow_but

FRAMES = np.random.default_rng(0).integers(
  0, 256, (2, 4, 84, 84), dtype=np.uint8
)
BOARDS = np.random.default_rng(0).random((5, 10, 10, 4)) < 0.2  # bool


def _sizes(params):
  return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
  'padding, size',
  [
    # 32 * (256 + 1) + 64 * (512 + 1) + 64 * (576 + 1)
    # + 512 * (features + 1) + 6 * (512 + 1)
    ('VALID', 8_224 + 32_832 + 36_928 + 512 * 3_137 + 3_078),
    ('SAME', 8_224 + 32_832 + 36_928 + 512 * 7_745 + 3_078),
  ],
)
def test_nature_network_has_the_papers_size(padding, size):
  network = nature_network(6, padding=padding)
  params = network.init(jax.random.key(0), FRAMES)
  assert _sizes(params) == size
  assert network.apply(params, FRAMES).shape == (2, 6)


class _Plain(nn.Module):
  """The paper's network in plain Flax, channels last: the oracle."""

  padding: str

  @nn.compact
  def __call__(self, obs):
    x = jnp.transpose(obs, (0, 2, 3, 1)).astype(jnp.float32) / 255.0
    x = nn.relu(nn.Conv(32, (8, 8), (4, 4), padding=self.padding)(x))
    x = nn.relu(nn.Conv(64, (4, 4), (2, 2), padding=self.padding)(x))
    x = nn.relu(nn.Conv(64, (3, 3), (1, 1), padding=self.padding)(x))
    x = nn.relu(nn.Dense(512)(x.reshape(len(x), -1)))
    return nn.Dense(6)(x)


def _as_plain(tree):
  """Renames the leaves of our network to those of the oracle."""
  torso, head = tree['params']['torso'], tree['params']['head']
  layers = {f'Conv_{i}': torso[f'Conv_{i}'] for i in range(3)}
  for i, name in enumerate(('Dense_0', 'last')):
    layers[f'Dense_{i}'] = head[name]['Dense_0']
  return {'params': layers}


@pytest.mark.parametrize(
  'padding', slow_but(('SAME',).__contains__, ['VALID', 'SAME'])
)
def test_nature_network_equals_plain_flax_in_values_and_gradients(padding):
  ours, oracle = nature_network(6, padding=padding), _Plain(padding)
  params = ours.init(jax.random.key(0), FRAMES)
  np.testing.assert_allclose(
    ours.apply(params, FRAMES),
    oracle.apply(_as_plain(params), FRAMES),
    rtol=1e-5,
    atol=1e-6,
  )

  def gradient(network, params):
    return jax.grad(lambda p: jnp.sum(network.apply(p, FRAMES) ** 2))(params)

  pairs = zip(
    *map(
      jax.tree.leaves,
      (_as_plain(gradient(ours, params)), gradient(oracle, _as_plain(params))),
    ),
    strict=True,
  )
  for found, expected in pairs:
    error = np.linalg.norm(found - expected)
    assert error <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(
  'head, size',
  [
    # 16 * (3 * 3 * 4 + 1) + 128 * (1024 + 1) + 6 * (128 + 1)
    ('linear', 592 + 131_200 + 774),
    ('dueling', 592 + 2 * 131_200 + 774 + 129),
  ],
)
def test_minatar_network_has_the_papers_size(head, size):
  network = minatar_network(6, head=head)
  params = network.init(jax.random.key(0), BOARDS)
  assert _sizes(params) == size
  q_values = network.apply(params, BOARDS)
  assert q_values.shape == (5, 6)
  assert q_values.dtype == jnp.float32


class _PlainMinAtar(nn.Module):
  """The MinAtar paper's network in plain Flax: the oracle."""

  @nn.compact
  def __call__(self, obs):
    x = nn.relu(nn.Conv(16, (3, 3), padding='VALID')(obs.astype(jnp.float32)))
    x = nn.relu(nn.Dense(128)(x.reshape(len(x), -1)))
    return nn.Dense(6)(x)


@pytest.mark.parametrize('dtype', [bool, np.uint8, np.float32])
def test_minatar_network_equals_plain_flax_in_values_and_gradients(dtype):
  network, boards = minatar_network(6), BOARDS.astype(dtype)
  params = network.init(jax.random.key(0), boards)
  torso, head = params['params']['torso'], params['params']['head']
  plain = {'Conv_0': torso['Conv_0']}
  for i, name in enumerate(('Dense_0', 'last')):
    plain[f'Dense_{i}'] = head[name]['Dense_0']

  def value_and_grad(network, params):
    score = lambda p: jnp.sum(network.apply(p, boards) ** 2)
    value, grads = jax.jit(jax.value_and_grad(score))(params)
    by_shape = sorted(jax.tree.leaves(grads), key=lambda leaf: leaf.shape)
    return [value, *by_shape]

  for found, expected in zip(
    value_and_grad(network, params),
    value_and_grad(_PlainMinAtar(), {'params': plain}),
    strict=True,
  ):
    error = np.linalg.norm(found - expected)
    assert error <= 1e-5 * np.linalg.norm(expected)


def test_dueling_by_hand_and_advantages_are_centered():
  network = mlp_network(3, sizes=(), head='dueling')
  obs = np.ones((1, 1, 2), np.float32)
  params = network.init(jax.random.key(0), obs)
  kernels = {
    leaf.shape: leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2
  }
  value = np.ones(2) @ kernels[2, 1]
  advantage = np.ones(2) @ kernels[2, 3]
  np.testing.assert_allclose(
    network.apply(params, obs)[0],
    value + advantage - advantage.mean(),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    network.apply(params, obs).mean(), value[0], rtol=1e-5
  )


def test_dueling_streams_have_hidden_layers_of_their_own():
  params = nature_network(6, head='dueling').init(jax.random.key(0), FRAMES)
  kernels = [leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
  assert sorted(kernels) == [(512, 1), (512, 6), (3136, 512), (3136, 512)]


def test_shared_bias_is_one_number_for_all_actions():
  network = mlp_network(3, sizes=(), head='shared_bias')
  obs = np.ones((1, 1, 2), np.float32)
  params = network.init(jax.random.key(0), obs)
  assert sorted(leaf.shape for leaf in jax.tree.leaves(params)) == [
    (1,),
    (2, 3),
  ]
  raised = jax.tree.map(
    lambda leaf: leaf + 1.5 if leaf.ndim == 1 else leaf, params
  )
  np.testing.assert_allclose(
    network.apply(raised, obs) - network.apply(params, obs), 1.5, rtol=1e-5
  )


def test_features_are_brought_to_the_unit_interval_row_by_row():
  features = np.float32([[[1, 3], [2, 5]], [[0, -8], [0, 0]]])
  np.testing.assert_allclose(
    jax.jit(renormalized)(features),
    [[[0, 0.5], [0.25, 1]], [[1, 0], [1, 1]]],
    rtol=1e-5,
  )
  # Features that are all the same are no reason for a NaN, nor is a gradient.
  same = np.full((1, 4), 7, np.float32)
  np.testing.assert_array_equal(renormalized(same), 0 * same)
  gradient = jax.grad(lambda x: jnp.sum(renormalized(x) ** 2))(same)
  assert np.isfinite(gradient).all()
  # The head sees them so: of a larger last layer of the torso nothing is left.
  network = mlp_network(3, sizes=(4,), renormalize=True)
  obs = np.float32([[0.3, -0.1, 0.8]])
  params = network.init(jax.random.key(1), obs)
  doubled = {'params': dict(params['params'])}
  doubled['params']['torso'] = jax.tree.map(
    lambda leaf: 2 * leaf, params['params']['torso']
  )
  np.testing.assert_allclose(
    network.apply(doubled, obs), network.apply(params, obs), rtol=1e-3
  )


@pytest.mark.parametrize(
  'initializer, std, bias',
  [
    ('lecun_normal', 3136**-0.5, 0.0),
    ('xavier_uniform', (2 / (3136 + 512)) ** 0.5, 0.0),
    # Of 512 directions of length 1.
    ('orthogonal', 3136**-0.5, 0.0),
    ('dopamine_uniform', 3136**-0.5 / 3**0.25, 0.0),
    # U(-b, b) with b = fan_in**-0.5 has the standard deviation b / sqrt(3).
    ('torch_uniform', 3136**-0.5 / 3**0.5, 3136**-0.5 / 3**0.5),
  ],
)
def test_initializers(initializer, std, bias):
  params = nature_network(6, initializer=initializer).init(
    jax.random.key(0), FRAMES
  )
  leaves = jax.tree.leaves(params)
  kernel = next(leaf for leaf in leaves if leaf.shape == (3136, 512))
  assert float(kernel.std()) == pytest.approx(std, rel=0.01)
  biases = next(leaf for leaf in leaves if leaf.shape == (512,))
  assert float(biases.std()) == pytest.approx(bias, rel=0.15)
  if initializer == 'torch_uniform':
    assert float(jnp.abs(kernel).max()) <= 3136**-0.5
    conv = next(leaf for leaf in leaves if leaf.shape == (8, 8, 4, 32))
    assert float(jnp.abs(conv).max()) == pytest.approx(1 / 16, rel=1e-2)
    first_bias = next(leaf for leaf in leaves if leaf.shape == (32,))
    assert 0.8 / 16 < float(jnp.abs(first_bias).max()) <= 1 / 16


@pytest.mark.parametrize(
  'kwargs, message',
  [
    (dict(head='duelling'), "head='duelling' is unknown; choose from linear"),
    (dict(padding='FULL'), "padding='FULL' is unknown"),
    (dict(initializer='zeros'), "initializer='zeros' is unknown"),
  ],
)
def test_what_nature_network_refuses(kwargs, message):
  with pytest.raises(ValueError, match=message):
    nature_network(6, **kwargs)


@pytest.mark.parametrize(
  'kwargs, message',
  [
    (dict(head='duelling'), "head='duelling' is unknown"),
    (dict(initializer='zeros'), "initializer='zeros' is unknown"),
  ],
)
def test_what_minatar_network_refuses(kwargs, message):
  with pytest.raises(ValueError, match=message):
    minatar_network(6, **kwargs)


VECTORS = np.random.default_rng(0).normal(size=(5, 1, 4)).astype(np.float32)


@pytest.mark.parametrize('head', ['linear', 'shared_bias', 'dueling'])
def test_one_output_is_a_network_of_values(head):
  plain, one = (
    mlp_network(3, head=head, sizes=(8,), **more)
    for more in ({}, {'outputs': 1})
  )
  assert plain == one
  params = one.init(jax.random.key(0), VECTORS)
  assert one.apply(params, VECTORS).shape == (5, 3)


def test_outputs_of_a_linear_head_are_those_of_more_actions():
  many, by_action = mlp_network(12), mlp_network(3, outputs=4)
  params = many.init(jax.random.key(0), VECTORS)
  again = by_action.init(jax.random.key(0), VECTORS)
  jax.tree.map(np.testing.assert_array_equal, params, again)
  np.testing.assert_array_equal(
    by_action.apply(params, VECTORS),
    many.apply(params, VECTORS).reshape(5, 3, 4),
  )


def test_each_output_has_a_bias_for_all_actions():
  network = mlp_network(3, head='shared_bias', sizes=(8,), outputs=4)
  params = network.init(jax.random.key(0), VECTORS)
  bias = params['params']['head']['last_bias']
  assert bias.shape == (4,)
  before = network.apply(params, VECTORS)
  params['params']['head']['last_bias'] = bias + jnp.arange(4.0)
  shift = network.apply(params, VECTORS) - before
  np.testing.assert_allclose(
    shift, np.broadcast_to(np.arange(4.0), (5, 3, 4)), atol=1e-5
  )


@pytest.mark.parametrize('outputs', [1, 4])
def test_advantages_are_centered_for_each_output(outputs):
  network = mlp_network(3, head='dueling', sizes=(8,), outputs=outputs)
  params = network.init(jax.random.key(0), VECTORS)
  found = network.apply(params, VECTORS).reshape(5, 3, outputs)
  params['params']['head']['last_advantage'] = jax.tree.map(
    jnp.zeros_like, params['params']['head']['last_advantage']
  )
  value = network.apply(params, VECTORS).reshape(5, 3, outputs)
  np.testing.assert_array_equal(value, np.repeat(value[:, :1], 3, 1))
  np.testing.assert_allclose(found.mean(1), value[:, 0], atol=1e-5)
  assert np.abs(found - value).max() > 0.01


@pytest.mark.parametrize(
  'network, obs', [(nature_network, FRAMES), (minatar_network, BOARDS)]
)
def test_other_networks_have_outputs_too(network, obs):
  made = network(3, head='dueling', outputs=5)
  shape = jax.eval_shape(made.init_with_output, jax.random.key(0), obs)[0].shape
  assert shape == (len(obs), 3, 5)


@pytest.mark.parametrize('shape', [(25, 7), (3, 3, 4, 6)])
def test_sparse_weights(shape):
  """Each output has ceil(0.9 * fan_in) weights of 0, of its own."""
  draw = INITIALIZERS['sparse'].kernel
  weights = np.asarray(draw(jax.random.key(0), shape, jnp.float32))
  flat = weights.reshape(-1, shape[-1])
  fan_in = len(flat)
  assert np.all((flat == 0).sum(0) == np.ceil(0.9 * fan_in))
  assert len({tuple(column) for column in (flat != 0).T}) > 1
  rest = flat[flat != 0]
  assert np.abs(rest).max() <= fan_in**-0.5
  assert rest.std() == pytest.approx((3 * fan_in) ** -0.5, rel=0.3)


def _normalized_leaky(x):
  x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
  return np.where(x > 0, x, 0.01 * x)


def test_the_layers_of_streams():
  rng = np.random.default_rng(0)
  torso = torsos.StreamTorso(stream_units=5)
  obs = rng.random((2, 6)).astype(np.float32)
  params = torso.init(jax.random.key(0), obs)
  # Biases are 0 at the start.
  one, two = (
    np.asarray(params['params'][f'Dense_{i}']['Dense_0']['kernel'])
    for i in range(2)
  )
  for row, found in zip(obs, torso.apply(params, obs), strict=True):
    expected = _normalized_leaky(_normalized_leaky(row @ one) @ two)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
  boards = rng.random((2, 10, 10, 4)) < 0.5
  params = torso.init(jax.random.key(0), boards)
  assert params['params']['Dense_0']['Dense_0']['kernel'].shape == (1_024, 5)
  with pytest.raises(ValueError, match="network='stream' must not be given"):
    torso.init(jax.random.key(0), np.zeros((1, 4, 84, 84), np.uint8))
