"""Networks that answer at the fractions they are asked."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.networks.activations import activations
from siamrl.networks.implicit import implicit_network
from siamrl.networks.q_network import mlp_network, nature_network

KEY = jax.random.key(0)
OBS = np.random.default_rng(0).normal(size=(4, 1, 5)).astype(np.float32)


def _made(**changes):
  network = implicit_network(mlp_network(3, sizes=(8,), **changes), 6)
  return network, network.init(KEY, OBS)


@pytest.mark.parametrize('head', ['linear', 'dueling', 'shared_bias'])
@pytest.mark.parametrize('renormalize', [False, True])
def test_the_answer_is_that_of_the_paper(head, renormalize):
  plain = mlp_network(3, sizes=(8,), head=head, renormalize=renormalize)
  network, params = _made(head=head, renormalize=renormalize)
  fractions = np.random.default_rng(1).uniform(size=(4, 7)).astype(np.float32)
  parts = params['params']
  features = plain.torso.apply({'params': parts['torso']}, OBS)
  if renormalize:
    low, high = (f(features, -1, keepdims=True) for f in (np.min, np.max))
    features = (features - low) / (high - low + 1e-5)
  dense = parts['head_embedding']['Dense_0']
  found = network.apply(params, OBS, fractions)
  assert found.shape == (4, 3, 7)
  for i, j in np.ndindex(4, 7):
    cosines = np.cos(np.pi * np.arange(1, 7) * fractions[i, j])
    embedded = np.maximum(cosines @ dense['kernel'] + dense['bias'], 0)
    expected = plain.head.apply(
      {'params': parts['head']}, (embedded * features[i])[None]
    )
    np.testing.assert_allclose(
      found[i, :, j], expected[0], rtol=1e-4, atol=1e-5
    )


def test_fractions_may_be_shared():
  network, params = _made()
  fractions = jnp.array([0.1, 0.5])
  found = network.apply(params, OBS, fractions)
  np.testing.assert_allclose(
    found,
    network.apply(params, OBS, jnp.tile(fractions, (4, 1))),
    rtol=1e-5,
    atol=1e-6,
  )
  # By default the median.
  np.testing.assert_allclose(
    network.apply(params, OBS), found[..., 1:], rtol=1e-5, atol=1e-6
  )


def test_parameters_are_those_of_the_network_and_an_embedding():
  _, params = _made()
  plain = mlp_network(3, sizes=(8,)).init(KEY, OBS)['params']
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  own = shapes(params['params'])
  assert own.pop('head_embedding') == {
    'Dense_0': {'bias': (8,), 'kernel': (6, 8)}
  }
  assert own == shapes(plain)


def test_what_the_panel_looks_at():
  network = implicit_network(nature_network(3, hidden_units=16))
  obs = np.zeros((2, 4, 84, 84), np.uint8)
  params = jax.eval_shape(network.init, KEY, obs)
  seen = jax.eval_shape(
    lambda params: activations(network, params, obs), params
  )
  assert seen.features.shape == (2, 16)
  assert {'torso/Conv_0', 'head_embedding', 'head/Dense_0'} <= set(seen.layers)


@pytest.mark.parametrize(
  'network, message',
  [
    (nn.Dense(3), 'Dense must have a torso and a head, as QNetwork has'),
    (mlp_network(3, outputs=5), 'outputs=5 must be 1 for implicit quantiles'),
  ],
)
def test_other_networks_are_refused(network, message):
  with pytest.raises(ValueError, match=message):
    implicit_network(network)
