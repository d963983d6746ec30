"""Measures of collapse: on projections whose answer is known."""

import jax
import numpy as np
import pytest

from siamrl import collapse
from siamrl.networks.siamese import MLPPredictor, forward, init

measures = jax.jit(collapse.measures)


def test_even_directions_have_a_std_of_one_and_full_rank():
  rng = np.random.default_rng(0)
  z = rng.normal(size=(2_048, 8)).astype(np.float32)
  measured = measures(z)
  assert measured['normalized_std'] == pytest.approx(1.0, abs=0.01)
  for rank in ('effective_rank', 'centered_rank'):
    assert measured[rank] == pytest.approx(8, abs=0.05)
  # Lengths do not matter to the std.
  longer = rng.uniform(0.1, 10.0, (2_048, 1)).astype(np.float32) * z
  assert measures(longer)['normalized_std'] == pytest.approx(
    float(measured['normalized_std']), rel=1e-4
  )
  # A constant has one direction, and none besides.
  measured = measures(np.full_like(z, 0.25))
  assert measured['normalized_std'] == pytest.approx(0.0, abs=1e-6)
  assert measured['effective_rank'] == pytest.approx(1.0, abs=1e-4)
  assert measured['centered_rank'] == 0


def test_std_and_rank_by_hand():
  # Four ways in a plane: in two of three channels the std is sqrt(1 / 2).
  z = np.float32([[2, 0, 0], [-5, 0, 0], [0, 1, 0], [0, -1, 0]])
  assert measures(z)['normalized_std'] == pytest.approx(
    3**0.5 * 2 / 3 * 0.5**0.5, rel=1e-5
  )
  # A constant beside the plane adds no rank.
  z = np.float32([[1, 0, 9], [-1, 0, 9], [0, 1, 9], [0, -1, 9]])
  assert measures(z)['centered_rank'] == pytest.approx(2.0, rel=1e-5)
  # Singular values sqrt(2), sqrt(2) and 18.
  shares = np.array([2**0.5, 2**0.5, 18]) / (18 + 2 * 2**0.5)
  assert measures(z)['effective_rank'] == pytest.approx(
    np.exp(-np.sum(shares * np.log(shares))), rel=1e-4
  )


def test_spectrum_of_a_matrix_is_its_own():
  matrix, z = np.random.default_rng(0).normal(size=(2, 5, 5))
  spectrum = jax.jit(
    lambda matrix, z: collapse.predictor_spectrum(lambda z: z @ matrix, z)
  )(np.float32(matrix), np.float32(z))
  np.testing.assert_allclose(
    spectrum, np.linalg.svd(matrix, compute_uv=False), rtol=1e-4
  )


def test_spectrum_of_a_bottleneck_is_of_the_mean_jacobian():
  module = MLPPredictor(2)
  z = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)

  @jax.jit
  def both(key):
    params, _ = init(module, key, z)
    _, statistics = forward(module, params, z)
    predict = lambda z: forward(module, params, z, statistics)[0]
    one = jax.jacrev(lambda row: predict(row[None])[0])
    return collapse.predictor_spectrum(predict, z), jax.vmap(one)(z)

  spectrum, jacobians = both(jax.random.key(0))
  expected = np.linalg.svd(np.mean(jacobians, 0), compute_uv=False)
  np.testing.assert_allclose(spectrum, expected, atol=1e-5)
  # Two hidden units pass two directions.
  assert spectrum[1] > 1e-3 > spectrum[2]
