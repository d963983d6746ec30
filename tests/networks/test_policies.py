"""Actors and critics: values by hand, names, shapes and initializers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.networks.activations import activations
from siamrl.networks.policies import (
  Critic,
  DeterministicActor,
  TanhGaussianActor,
)

RNG = np.random.default_rng(0)
OBS = RNG.normal(size=(5, 1, 3)).astype(np.float32)
ACTIONS = RNG.uniform(-1, 1, (5, 2)).astype(np.float32)
KEY = jax.random.key(0)


def _init(network, *inputs):
  return jax.jit(network.init)(KEY, *inputs)


def _apply(network, params, *inputs):
  return jax.jit(network.apply)(params, *inputs)


def _shapes(params):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(params['params'])
    if path[-1].key == 'kernel'
  }


@pytest.mark.parametrize(
  'action_layer, expected',
  [
    (0, {'torso/Dense_0/Dense_0': (5, 7), 'torso/Dense_1/Dense_0': (7, 4)}),
    (1, {'obs_torso/Dense_0/Dense_0': (3, 7), 'torso/Dense_0/Dense_0': (9, 4)}),
    (
      2,
      {
        'obs_torso/Dense_0/Dense_0': (3, 7),
        'obs_torso/Dense_1/Dense_0': (7, 4),
        'last': (6, 1),
      },
    ),
  ],
)
def test_where_the_action_enters(action_layer, expected):
  critic = Critic(sizes=(7, 4), action_layer=action_layer)
  params = _init(critic, OBS, ACTIONS)
  expected = {'last': (4, 1)} | expected
  assert _shapes(params) == {
    f'{name}/kernel': shape for name, shape in expected.items()
  }

  @jax.jit
  def slope(action):
    values = critic.apply(params, OBS, action)
    assert (values.shape, values.dtype) == ((5,), jnp.float32)
    return jnp.sum(values)

  assert np.any(jax.grad(slope)(ACTIONS) != 0)


def test_the_critic_of_the_ddpg_paper_has_about_130_000_parameters():
  """Lillicrap et al. (2016), section 7; of the cheetah, 17 and 6 numbers."""
  critic = Critic(sizes=(400, 300), action_layer=1)
  params = jax.eval_shape(
    critic.init, KEY, jnp.zeros((1, 17)), np.zeros((1, 6))
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert round(count, -4) == 130_000


def _linear(network, kernel, bias, *inputs):
  params = _init(network, *inputs)
  assert list(params['params']) == ['last']
  return {
    'params': {'last': {'kernel': jnp.array(kernel), 'bias': jnp.array(bias)}}
  }


def test_a_critic_without_hidden_layers_by_hand():
  critic = Critic(sizes=())
  params = _linear(
    critic, [[1.0], [2.0], [3.0], [4.0], [5.0]], [0.5], OBS, ACTIONS
  )
  expected = OBS[:, 0] @ [1, 2, 3] + ACTIONS @ [4, 5] + 0.5
  np.testing.assert_allclose(
    _apply(critic, params, OBS, ACTIONS), expected, rtol=1e-5
  )


def test_a_deterministic_actor_by_hand():
  actor = DeterministicActor(sizes=(), action_dim=2)
  kernel = [[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]
  params = _linear(actor, kernel, [0.1, -0.1], OBS)
  actions = _apply(actor, params, OBS)
  expected = np.tanh(OBS[:, 0] @ np.array(kernel) + [0.1, -0.1])
  np.testing.assert_allclose(actions, expected, rtol=1e-5)
  assert actions.dtype == jnp.float32


@pytest.mark.parametrize(
  'squash, expected',
  [
    # Of -100, 0, 1 and 100 in bounds of -5 and 2.
    ('clip', [-5.0, 0.0, 1.0, 2.0]),
    ('tanh', [-5.0, -1.5, -1.5 + 3.5 * np.tanh(1.0), 2.0]),
  ],
)
def test_a_gaussian_actor_by_hand(squash, expected):
  actor = TanhGaussianActor(
    sizes=(), action_dim=4, log_std_bounds=(-5.0, 2.0), log_std_squash=squash
  )
  bias = [9.0, -9.0, 0.5, 0.0, -100.0, 0.0, 1.0, 100.0]
  params = _linear(actor, np.zeros((3, 8), np.float32), bias, OBS)
  mean, log_std = _apply(actor, params, OBS)
  # The mean is not bounded: its tanh is whoever samples' affair.
  np.testing.assert_allclose(mean, [[9.0, -9.0, 0.5, 0.0]] * 5)
  np.testing.assert_allclose(log_std, [expected] * 5, rtol=1e-6)


@pytest.mark.parametrize('kind', [DeterministicActor, TanhGaussianActor])
def test_further_axes_are_flattened(kind):
  actor = kind(sizes=(6,), action_dim=2)
  params = _init(actor, OBS)
  jax.tree.map(
    np.testing.assert_array_equal,
    _apply(actor, params, OBS),
    _apply(actor, params, OBS[:, 0]),
  )


@pytest.mark.parametrize(
  'network, inputs',
  [
    (lambda **kw: Critic(sizes=(50,), **kw), (OBS, ACTIONS)),
    (lambda **kw: DeterministicActor(sizes=(50,), action_dim=9, **kw), (OBS,)),
    (lambda **kw: TanhGaussianActor(sizes=(50,), action_dim=9, **kw), (OBS,)),
  ],
)
def test_initializers(network, inputs):
  params = _init(network(), *inputs)['params']
  last = lambda params: np.concatenate(
    [np.ravel(params['last'][name]) for name in ('kernel', 'bias')]
  )
  # PyTorch's: of 50 inputs, U(-50**-0.5, 50**-0.5), biases too.
  assert 0.9 * 50**-0.5 < np.abs(last(params)).max() <= 50**-0.5
  assert np.all(last(params) != 0)
  bounded = _init(network(last_bound=3e-3), *inputs)['params']
  assert 0.9 * 3e-3 < np.abs(last(bounded)).max() <= 3e-3
  assert np.all(last(bounded) != 0)
  # The other layers are not changed by it.
  jax.tree.map(np.testing.assert_array_equal, params['torso'], bounded['torso'])
  normal = _init(network(initializer='lecun_normal'), *inputs)['params']
  np.testing.assert_array_equal(normal['last']['bias'], 0)


@pytest.mark.parametrize('initializer', ['torch_uniform', 'xavier_uniform'])
def test_moments_of_initial_weights(initializer):
  """PyTorch's default for weights and biases, and Glorot's for weights."""
  critic = Critic(sizes=(400, 300), initializer=initializer)
  observations, actions = np.zeros((1, 393)), np.zeros((1, 7))
  params = _init(critic, observations, actions)['params']
  first, second = (
    params['torso'][name]['Dense_0'] for name in ('Dense_0', 'Dense_1')
  )
  for layer, (fan_in, fan_out) in (
    (first, (400, 400)),
    (second, (400, 300)),
    (params['last'], (300, 1)),
  ):
    assert layer['kernel'].shape == (fan_in, fan_out)
    bound = fan_in**-0.5
    if initializer == 'xavier_uniform':
      bound = (6 / (fan_in + fan_out)) ** 0.5
      np.testing.assert_array_equal(layer['bias'], 0)
    elif fan_out > 1:
      assert 0.97 * bound < np.abs(layer['bias']).max() <= bound
      assert np.std(layer['bias']) == pytest.approx(bound / 3**0.5, rel=0.1)
    kernel = np.asarray(layer['kernel'])
    # A uniform variable has the variance bound**2 / 3, and the kurtosis 1.8.
    assert np.abs(kernel).max() <= bound
    assert kernel.std() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert kernel.mean() == pytest.approx(0, abs=0.1 * bound)
    kurtosis = (kernel**4).mean() / (kernel**2).mean() ** 2
    assert kurtosis == pytest.approx(1.8, rel=0.1)


def test_layers_are_normalized_and_reported():
  actor = DeterministicActor(sizes=(6, 5), action_dim=2, layer_norm=True)
  params = _init(actor, OBS)
  seen = jax.jit(lambda p, o: activations(actor, p, o))(params, OBS)
  assert {name: x.shape for name, x in seen.layers.items()} == {
    'torso/Dense_0': (5, 6),
    'torso/Dense_1': (5, 5),
  }
  assert seen.features.shape == (5, 5)
  np.testing.assert_allclose(seen.values, _apply(actor, params, OBS), rtol=1e-5)
  # Normalized, a layer answers the same to twice its input.
  torso = params['params']['torso']
  biases = {'Dense_0': {'Dense_0': {'bias': jnp.zeros(6)}}}
  torso['Dense_0']['Dense_0'] |= biases['Dense_0']['Dense_0']
  np.testing.assert_allclose(
    _apply(actor, params, 2 * OBS), _apply(actor, params, OBS), rtol=1e-3
  )


@pytest.mark.parametrize(
  'make, message',
  [
    (
      lambda: Critic(initializer='zeros'),
      "initializer='zeros' is un",
    ),
    (lambda: Critic(last_bound=0.0), 'last_bound=0.0 must be positive'),
    (
      lambda: Critic(sizes=(4,), action_layer=2),
      r'action_layer=2 must be in \[0, 1\] with sizes=\(4,\)',
    ),
    (
      lambda: TanhGaussianActor(log_std_squash='sigmoid'),
      "log_std_squash='sigmoid' is unknown; choose from clip, tanh",
    ),
    (
      lambda: TanhGaussianActor(log_std_bounds=(2.0, -5.0)),
      r'log_std_bounds=\(2.0, -5.0\) must be a lower and a higher number',
    ),
  ],
)
def test_what_networks_refuse(make, message):
  with pytest.raises(ValueError, match=message):
    make()
