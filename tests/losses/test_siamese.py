"""Siamese losses: by hand, by law, and what they cannot fall below."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.losses import siamese

contrastive = jax.jit(siamese.contrastive)


@jax.jit
def _both(p, z):
  """Error and gradient in p of each form, for rows [B, D]."""
  return {
    name: jax.vmap(jax.value_and_grad(form.error))(p, z)
    for name, form in siamese.FORMS.items()
  }


def test_cosine_by_hand():
  p = np.float32([[3, 4], [2, 0], [1, 1], [0.1, 0.2], [0, 0]])
  z = np.float32([[4, 3], [0, 5], [-2, -2], [10, 20], [1, 0]])
  values, slopes = _both(p, z)['cosine']
  np.testing.assert_allclose(values, [-24 / 25, 0, 1, -1, 0], atol=1e-6)
  assert np.isfinite(slopes).all()


def test_byol_is_two_and_twice_the_cosine():
  p, z = np.random.default_rng(0).normal(size=(2, 5, 2)).astype(np.float32)
  forms = _both(p, z)
  (error, slope), (cosine, its_slope) = forms['byol'], forms['cosine']
  np.testing.assert_allclose(error, 2 + 2 * cosine, atol=1e-6)
  np.testing.assert_allclose(slope, 2 * its_slope, atol=1e-5)


def test_at_its_least_a_loss_has_no_slope():
  z = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
  for name, (values, slopes) in _both(3 * z, z).items():
    np.testing.assert_allclose(values, siamese.FORMS[name].least, atol=1e-6)
    np.testing.assert_allclose(slopes, 0.0, atol=1e-6)


def test_nt_xent_by_hand():
  row = jnp.array([0.1, 1.0, -0.4, 0.8])
  # The anchor at 1 is left out.
  weights = np.exp([0.8 / 0.5, 0.1 / 0.5, -0.4 / 0.5])
  value = jax.jit(siamese.nt_xent)(row, 1, 3, 0.5)
  assert value == pytest.approx(-np.log(weights[0] / weights.sum()), rel=1e-6)


def test_contrastive_against_numpy():
  one, other = np.random.default_rng(0).normal(size=(2, 3, 2))
  z = np.concatenate([one, other])
  z /= np.linalg.norm(z, axis=1, keepdims=True)
  exps = np.exp(z @ z.T / 0.3)
  losses = [
    -np.log(exps[i, (i + 3) % 6] / (exps[i].sum() - exps[i, i]))
    for i in range(6)
  ]
  value = contrastive(np.float32(one), np.float32(5 * other), 0.3)
  assert value == pytest.approx(np.mean(losses), rel=1e-5)


def test_contrastive_is_least_on_a_simplex():
  angles = 2 * np.pi * np.arange(3) / 3
  corners = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
  least = siamese.least_contrastive(3, 0.5)
  assert contrastive(corners, corners, 0.5) == pytest.approx(least, rel=1e-5)
  rng = np.random.default_rng(0)
  for scale in (0.01, 0.1, 1.0, 10.0):
    noise = rng.normal(scale=scale, size=(2, 3, 2)).astype(np.float32)
    assert contrastive(*(corners + noise), 0.5) > least


def test_the_contrastive_loss_of_equal_answers():
  # All cosines are 1: each of the 2B - 1 others is as likely.
  same = np.ones((3, 2), np.float32)
  assert contrastive(same, same, 0.1) == pytest.approx(np.log(5), rel=1e-5)


def test_gaps_are_zero_where_all_agree_and_known_elsewhere():
  assert siamese.loss_gap(-1.0, 'cosine') == 0
  assert siamese.loss_gap(1.0, 'cosine') == 2
  assert siamese.loss_gap(8.0, 'byol') == 8
  contrastive = jax.jit(siamese.contrastive)
  pair = np.float32([[1.0], [-1.0]])
  gap = lambda z: siamese.loss_gap(
    contrastive(z, z, 0.5), 'contrastive', batch_size=2, temperature=0.5
  )
  assert gap(pair) == pytest.approx(0.0, abs=1e-5)
  # All the same: log(3) less the least, log(1 + 2 exp(-4)).
  expected = np.log(3) - np.log1p(2 * np.exp(-4))
  assert gap(abs(pair)) == pytest.approx(expected, rel=1e-5)
  with pytest.raises(ValueError, match='batch_size'):
    siamese.loss_gap(1.0, 'contrastive')
  with pytest.raises(ValueError, match='cosine, byol, contrastive'):
    siamese.loss_gap(1.0, 'l2')
