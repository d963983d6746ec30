"""Sums that keep their digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.runners import sums


def _sum(values):
  """Of [T, ...], in a compiled loop."""

  def step(running, value):
    return sums.add(running, {'a': value}), None

  running, _ = jax.lax.scan(step, sums.zeros({'a': values[0]}), values)
  return running.total['a']


@pytest.mark.parametrize('wrap', [lambda f: f, jax.vmap], ids=['one', 'vmap'])
def test_digits_stay(wrap):
  """Of many small numbers, also beside a large one that is taken back."""
  small = np.full(100_000, 0.1, np.float32)
  cases = np.stack([small, small])
  cases[1, 0], cases[1, -1] = 2.0**24, -(2.0**24)
  exact = cases.sum(1, dtype=np.float64)
  found = [
    np.asarray(
      jax.jit(wrap(_sum))(case if wrap is not jax.vmap else case[None])
    )
    for case in cases
  ]
  np.testing.assert_allclose(np.ravel(found), exact, rtol=1e-7)
  naive = [np.add.accumulate(case)[-1] for case in cases]
  assert (np.abs(naive - exact) > 1e-4 * exact).all()


def test_what_is_not_finite_stays_what_it_is():
  big = np.float32(3e38)
  for values, expected in (
    ([1, np.inf, 1], np.inf),
    ([big, big], np.inf),
    ([-np.inf, 1], -np.inf),
    ([np.inf, -np.inf], np.nan),
    ([1, np.nan, 1], np.nan),
  ):
    found = jax.jit(_sum)(np.float32(values))
    np.testing.assert_array_equal(found, np.float32(expected))


def test_integers_are_added_as_they_are():
  add = functools.partial(sums.add, values=jnp.int32(3))
  running = add(add(sums.zeros(jnp.int32(0))))
  assert int(running.total) == 6
