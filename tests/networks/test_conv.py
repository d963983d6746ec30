"""The convolution against Flax's own."""

import functools
import itertools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from siamrl.networks import conv
from siamrl.networks.conv import Conv
from tests.parameters import slow_but


@pytest.mark.parametrize(
  'padding, inside_loop',
  slow_but(
    {('VALID', True), ('SAME', False)}.__contains__,
    itertools.product(['VALID', 'SAME'], [False, True]),
  ),
)
@pytest.mark.parametrize(
  'side, channels, kernel, stride',
  [
    (21, 4, 8, 4),  # few channels
    (20, 32, 4, 2),
    (9, 64, 3, 1),
    (11, 3, 4, 2),  # rows that no window reaches
    (10, 4, 3, 1),  # MinAtar's
    (10, 5, 3, 2),  # a stride that does not divide the kernel
  ],
)
def test_equals_flax_in_values_and_gradients(
  side, channels, kernel, stride, padding, inside_loop
):
  keys = jax.random.split(jax.random.key(0), 2)
  x = jax.random.normal(keys[0], (2, side, side, channels))
  ours = Conv(7, kernel, stride, padding, inside_loop)
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


@pytest.mark.parametrize('inside_loop', [False, True])
def test_a_kernel_in_bfloat16_is_promoted_as_in_flax(inside_loop):
  x = jax.random.normal(jax.random.key(0), (2, 21, 21, 4))
  ours = Conv(7, 8, 4, inside_loop=inside_loop)
  oracle = nn.Conv(7, (8, 8), (4, 4), 'VALID')
  params = jax.tree.map(
    lambda leaf: leaf.astype(jnp.bfloat16), ours.init(jax.random.key(1), x)
  )
  found, expected = ours.apply(params, x), oracle.apply(params, x)
  assert found.dtype == expected.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  score = lambda params: ours.apply(params, x).sum()
  grads = jax.grad(score)(params)
  assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(grads))


def _walk(network, params, boards):
  """Ascends a score along the boards [T,B,H,W,C]; parameters and scores."""

  def step(params, board):
    score = lambda p: jnp.mean(jnp.sin(network.apply(p, board)))
    value, grads = jax.value_and_grad(score)(params)
    return jax.tree.map(lambda p, g: p + g, params, grads), value

  return jax.lax.scan(step, params, boards)


@pytest.mark.parametrize('inside_loop', [False, True])
def test_equals_flax_in_a_scan_under_vmap_over_runs(inside_loop):
  keys = jax.random.split(jax.random.key(0), 3)
  boards = jax.random.normal(jax.random.key(1), (3, 5, 2, 10, 10, 4))
  ours = Conv(16, 3, inside_loop=inside_loop)
  oracle = nn.Conv(16, (3, 3), padding='VALID')
  params = jax.vmap(ours.init, in_axes=(0, None))(keys, boards[0, 0])

  def walk(network):
    return jax.jit(jax.vmap(functools.partial(_walk, network)))(params, boards)

  for found, expected in zip(
    *map(jax.tree.leaves, (walk(ours), walk(oracle))), strict=True
  ):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def _convolutions(network, platform):
  """Convolutions in `_walk`, lowered for a platform."""
  boards = jnp.ones((5, 2, 10, 10, 4))
  params = jax.eval_shape(network.init, jax.random.key(0), boards[0])
  walk = jax.jit(jax.vmap(functools.partial(_walk, network), (0, None)))
  runs = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape), leaf.dtype), params
  )
  exported = jax.export.export(walk, platforms=[platform])(runs, boards)
  return exported.mlir_module().count('stablehlo.convolution')


@pytest.mark.parametrize('inside_loop', [False, True])
def test_in_a_loop_only_the_cpu_never_convolves(inside_loop):
  ours = Conv(16, 3, inside_loop=inside_loop)
  oracle = nn.Conv(16, (3, 3), padding='VALID')
  assert (_convolutions(ours, 'cpu') > 0) != inside_loop
  for platform in ('cuda', 'rocm', 'tpu'):
    found = _convolutions(ours, platform)
    assert found == _convolutions(oracle, platform) > 0


def test_unknown_padding():
  with pytest.raises(ValueError, match="padding='FULL'"):
    Conv(1, 1, padding='FULL').init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))


def test_what_keeps_kernels_apart_changes_nothing():
  y = jnp.array([1.5, -0.0, jnp.inf, -jnp.inf, jnp.nan, 1e-45])
  np.testing.assert_array_equal(conv._apart(y), y)
  assert jnp.signbit(conv._apart(y)[1])
