"""The networks around a value network that predict its latents."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.networks.activations import activations
from siamrl.networks.latent import TransitionModel, latent_networks
from siamrl.networks.q_network import (
  minatar_network,
  mlp_network,
  nature_network,
)

KEY = jax.random.key(0)
BOARDS = np.random.default_rng(0).random((3, 10, 10, 4)) < 0.3


def _shapes(network, obs, **kwargs):
  """Of the parameters besides the network's own; nothing is computed."""
  networks = latent_networks(network, **kwargs)

  def born(key, obs):
    return networks.init(key, network.init(key, obs), obs)

  return jax.tree.map(jnp.shape, jax.eval_shape(born, KEY, obs))


def test_atari_has_sprs_parameters():
  """models.py: 64 channels and 6 actions, 2 x 256 hidden units to compare."""
  network = nature_network(6, head='dueling', hidden_units=256)
  shapes = _shapes(network, np.zeros((1, 4, 84, 84), np.uint8))
  assert shapes == {
    'transition': {
      'Conv_0': {'kernel': (3, 3, 64 + 6, 64), 'bias': (64,)},
      'Conv_1': {'kernel': (3, 3, 64, 64), 'bias': (64,)},
    },
    'predictor': {
      'Dense_0': {'Dense_0': {'kernel': (512, 512), 'bias': (512,)}}
    },
  }


def test_where_there_are_no_places_layers_are_dense():
  def dense(inputs, outputs):
    return {'Dense_0': {'kernel': (inputs, outputs), 'bias': (outputs,)}}

  assert _shapes(
    mlp_network(3, sizes=(9, 8)), np.zeros((2, 5)), projections=7
  ) == {
    'transition': {'Dense_0': dense(8 + 3, 128), 'Dense_1': dense(128, 8)},
    'projector': dense(8, 7),
    'predictor': {'Dense_0': dense(7, 7)},
  }
  shapes = _shapes(minatar_network(3), BOARDS, transition='dense')
  assert shapes['transition']['Dense_1'] == dense(128, 8 * 8 * 16)


@pytest.mark.parametrize('renormalize', [False, True])
@pytest.mark.parametrize('head', ['linear', 'dueling'])
def test_projections_are_the_heads_hidden_layer_before_its_relu(
  head, renormalize
):
  network = minatar_network(
    3, head=head, hidden_units=7, renormalize=renormalize
  )
  networks = latent_networks(network)

  @jax.jit
  def both(key):
    params = network.init(key, BOARDS)
    shared = networks.shared(params)
    z = networks.project(shared, networks.encode(shared, BOARDS))
    return z, activations(network, params, BOARDS).features

  z, features = both(KEY)
  assert z.shape == (3, 14 if head == 'dueling' else 7)
  assert np.min(z) < 0
  np.testing.assert_allclose(np.maximum(z, 0), features, rtol=1e-5, atol=1e-6)


class _Plain(nn.Module):
  """The transition model in plain Flax, of latents with their actions."""

  @nn.compact
  def __call__(self, x):
    for _ in range(2):
      x = nn.relu(nn.Conv(4, (3, 3), padding='SAME')(x))
    return x


def test_the_transition_model_sees_its_action_everywhere():
  latents = np.random.default_rng(0).random((2, 5, 5, 4), np.float32)
  actions = np.array([2, 0])
  model = TransitionModel(3, inside_loop=True)
  params = model.init(KEY, latents, actions)
  planes = np.zeros((2, 5, 5, 3), np.float32)
  planes[0, :, :, 2] = planes[1, :, :, 0] = 1
  np.testing.assert_allclose(
    model.apply(params, latents, actions),
    _Plain().apply(params, np.concatenate([latents, planes], -1)),
    rtol=1e-5,
    atol=1e-6,
  )
  # Where nothing is learned yet, it depends on the action already.
  assert not np.allclose(*model.apply(params, latents[[0, 0]], actions))


def test_latents_keep_their_scale_where_features_do():
  network = minatar_network(3, hidden_units=7, renormalize=True)
  networks = latent_networks(network)

  @jax.jit
  def three(key):
    q = network.init(key, BOARDS)
    params = networks.shared(q) | networks.init(key, q, BOARDS)
    latents, seen = networks.encode(params, BOARDS), []
    for action in (0, 1):
      seen.append(latents)
      latents = networks.step(params, latents, jnp.full(3, action))
    return [*seen, latents]

  for latents in three(KEY):
    assert latents.shape == (3, 8, 8, 16)
    np.testing.assert_allclose(np.min(latents, (1, 2, 3)), 0)
    np.testing.assert_allclose(np.max(latents, (1, 2, 3)), 1, rtol=1e-3)


@pytest.mark.parametrize(
  'network, kwargs, message',
  [
    (nn.Dense(3), {}, 'no encoder'),
    (mlp_network(3, sizes=()), dict(projections=4), 'no encoder'),
    (mlp_network(3), {}, 'projections=None must be a number'),
    (minatar_network(3), dict(transition='lstm'), "'lstm' is unknown"),
  ],
)
def test_what_latent_networks_refuses(network, kwargs, message):
  with pytest.raises(ValueError, match=message):
    latent_networks(network, **kwargs)
