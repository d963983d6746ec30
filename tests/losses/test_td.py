"""TD errors and their losses: by hand, by law, and against rlax."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.losses import td

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  import rlax

Q_TM1 = jnp.array([[1.0, 2.0, 3.0], [-1.0, 0.0, 4.0]])
A_TM1 = jnp.array([1, 2])
R_T = jnp.array([0.5, -1.0])
DISCOUNT_T = jnp.array([0.9, 0.0])
Q_T = jnp.array([[1.0, 5.0, 2.0], [7.0, 8.0, 9.0]])
Q_T_SELECTOR = jnp.array([[3.0, 1.0, 2.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize('wrap', [lambda f: f, jax.jit])
def test_q_learning_by_hand(wrap):
  errors = wrap(jax.vmap(td.q_learning))(Q_TM1, A_TM1, R_T, DISCOUNT_T, Q_T)
  # 0.5 + 0.9 * 5 - 2, and -1 + 0 - 4
  np.testing.assert_allclose(errors, [3.0, -5.0], rtol=1e-6)


@pytest.mark.parametrize('wrap', [lambda f: f, jax.jit])
def test_double_q_learning_by_hand(wrap):
  errors = wrap(jax.vmap(td.double_q_learning))(
    Q_TM1, A_TM1, R_T, DISCOUNT_T, Q_T, Q_T_SELECTOR
  )
  # The selector prefers action 0, whose value is 1: 0.5 + 0.9 * 1 - 2.
  np.testing.assert_allclose(errors, [-0.6, -5.0], rtol=1e-6)


def test_double_with_itself_as_selector_is_single():
  np.testing.assert_array_equal(
    jax.vmap(td.double_q_learning)(Q_TM1, A_TM1, R_T, DISCOUNT_T, Q_T, Q_T),
    jax.vmap(td.q_learning)(Q_TM1, A_TM1, R_T, DISCOUNT_T, Q_T),
  )


def _random(seed, batch=64, actions=5):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return (
    draw(batch, actions),
    jnp.asarray(rng.integers(actions, size=batch)),
    draw(batch),
    jnp.asarray(rng.random(batch), jnp.float32),
    draw(batch, actions),
    draw(batch, actions),
  )


@pytest.mark.parametrize('seed', range(3))
def test_against_rlax(seed):
  *common, q_t, selector = _random(seed)
  np.testing.assert_allclose(
    jax.vmap(td.q_learning)(*common, q_t),
    jax.vmap(rlax.q_learning)(*common, q_t),
    rtol=1e-6,
    atol=1e-6,
  )
  np.testing.assert_allclose(
    jax.vmap(td.double_q_learning)(*common, q_t, selector),
    jax.vmap(rlax.double_q_learning)(*common, q_t, selector),
    rtol=1e-6,
    atol=1e-6,
  )
  errors = 3 * common[0].ravel()
  np.testing.assert_allclose(
    jax.vmap(td.huber)(errors), rlax.huber_loss(errors), rtol=1e-6
  )
  np.testing.assert_allclose(
    jax.vmap(td.squared)(errors), 2 * rlax.l2_loss(errors), rtol=1e-6
  )

  def oracle(errors):  # what DQN Zoo does
    return rlax.l2_loss(rlax.clip_gradient(errors, -0.7, 0.7)).sum()

  def ours(errors):
    return jax.vmap(lambda e: td.clipped(e, 0.7))(errors).sum()

  np.testing.assert_allclose(ours(errors), oracle(errors), rtol=1e-6)
  np.testing.assert_allclose(
    jax.grad(ours)(errors), jax.grad(oracle)(errors), rtol=1e-6
  )


@pytest.mark.parametrize(
  'error, bound, squared, huber, clipped',
  [
    (0.5, 1.0, 0.25, 0.125, 0.125),
    (-3.0, 1.0, 9.0, 2.5, 4.5),
    (3.0, 2.0, 9.0, 4.0, 4.5),
  ],
)
def test_forms_by_hand(error, bound, squared, huber, clipped):
  error = jnp.float32(error)
  assert td.squared(error, bound) == pytest.approx(squared)
  assert td.huber(error, bound) == pytest.approx(huber)
  assert td.clipped(error, bound) == pytest.approx(clipped)


@pytest.mark.parametrize('error', [-3.0, -1.0, -0.2, 0.0, 0.7, 5.0])
def test_clipped_has_the_gradient_of_huber(error):
  for bound in (0.5, 1.0, 2.0):
    expected = np.clip(error, -bound, bound)
    assert jax.grad(td.huber)(error, bound) == pytest.approx(expected)
    assert jax.grad(td.clipped)(error, bound) == pytest.approx(expected)


def test_ranks_are_checked():
  with pytest.raises(AssertionError):
    td.q_learning(Q_TM1, A_TM1, R_T, DISCOUNT_T, Q_T)  # a batch, not vmapped
