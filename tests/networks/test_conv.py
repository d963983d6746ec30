"""The convolution against Flax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from siamrl.networks.conv import Conv


@pytest.mark.parametrize('padding', ['VALID', 'SAME'])
@pytest.mark.parametrize(
  'side, channels, kernel, stride',
  [
    (21, 4, 8, 4),  # few channels
    (20, 32, 4, 2),
    (9, 64, 3, 1),
    (11, 3, 4, 2),  # rows that no window reaches
    (10, 5, 3, 2),  # a stride that does not divide the kernel
  ],
)
def test_equals_flax_in_values_and_gradients(
  side, channels, kernel, stride, padding
):
  keys = jax.random.split(jax.random.key(0), 2)
  x = jax.random.normal(keys[0], (2, side, side, channels))
  ours = Conv(7, kernel, stride, padding)
  oracle = nn.Conv(7, (kernel, kernel), (stride, stride), padding)
  params = ours.init(keys[1], x)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(
    jnp.shape, oracle.init(keys[1], x)
  )
  np.testing.assert_allclose(
    ours.apply(params, x), oracle.apply(params, x), rtol=1e-5, atol=1e-5
  )

  def gradients(network):
    score = lambda params, x: jnp.sum(jnp.sin(network.apply(params, x)))
    return jax.jit(jax.grad(score, argnums=(0, 1)))(params, x)

  for found, expected in zip(
    *map(jax.tree.leaves, (gradients(ours), gradients(oracle))), strict=True
  ):
    error = np.linalg.norm(found - expected)
    assert error <= 1e-5 * np.linalg.norm(expected)


def test_unknown_padding():
  with pytest.raises(ValueError, match="padding='FULL'"):
    Conv(1, 1, padding='FULL').init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
