"""Temporal-difference errors of Q-learning, and the losses made of them.

Everything here is written for one transition (no batch axis): the caller vmaps.
No function stops a gradient. Values that must not be differentiated are
computed from the twin, which the caller passes to its loss as an argument of
its own.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp


def value_of(q_values: chex.Array, action: chex.Numeric) -> chex.Array:
  """q_values[action] for [A] values, 0 for an action that there is not.

  Written as a sum: the gradient of an index is a scatter, which is slow
  everywhere.
  """
  actions = jnp.arange(q_values.shape[0])
  return jnp.sum(jnp.where(actions == action, q_values, 0.0))


def q_learning(
  q_tm1: chex.Array,
  a_tm1: chex.Numeric,
  r_t: chex.Numeric,
  discount_t: chex.Numeric,
  q_t: chex.Array,
) -> chex.Array:
  """TD error of Q-learning (Watkins & Dayan 1992; Mnih et al. 2015, eq. 2).

  r_t + discount_t * max_a q_t[a] - q_tm1[a_tm1]

  Args:
    q_tm1: [A] online values of the observation acted upon.
    a_tm1: int [] the action taken.
    r_t: [] the (n-step) reward.
    discount_t: [] discount**n, 0 where the episode terminated.
    q_t: [A] the twin's values of the successor.

  Returns:
    [] target minus estimate.
  """
  chex.assert_rank([q_tm1, a_tm1, r_t, discount_t, q_t], [1, 0, 0, 0, 1])
  return r_t + discount_t * jnp.max(q_t) - value_of(q_tm1, a_tm1)


def double_q_learning(
  q_tm1: chex.Array,
  a_tm1: chex.Numeric,
  r_t: chex.Numeric,
  discount_t: chex.Numeric,
  q_t_value: chex.Array,
  q_t_selector: chex.Array,
) -> chex.Array:
  """TD error of Double Q-learning (van Hasselt et al. 2016, eq. 4).

  r_t + discount_t * q_t_value[argmax_a q_t_selector[a]] - q_tm1[a_tm1]

  With `q_t_selector = q_t_value` it is `q_learning`.

  Args:
    q_tm1: [A] online values of the observation acted upon.
    a_tm1: int [] the action taken.
    r_t: [] the (n-step) reward.
    discount_t: [] discount**n, 0 where the episode terminated.
    q_t_value: [A] the twin's values of the successor, which are believed.
    q_t_selector: [A] online values of the successor, which choose the action.

  Returns:
    [] target minus estimate.
  """
  chex.assert_rank(
    [q_tm1, a_tm1, r_t, discount_t, q_t_value, q_t_selector], [1, 0, 0, 0, 1, 1]
  )
  value = value_of(q_t_value, jnp.argmax(q_t_selector))
  return r_t + discount_t * value - value_of(q_tm1, a_tm1)


def squared(td_error: chex.Array, bound: float = 1.0) -> chex.Array:
  """td_error**2, the mean-squared error of Dopamine and CleanRL.

  Twice `optax.l2_loss`, which matters to an optimiser with a large epsilon.
  `bound` is not read; it makes the three forms interchangeable.
  """
  del bound
  return jnp.square(td_error)


def huber(td_error: chex.Array, bound: float = 1.0) -> chex.Array:
  """Huber's loss: td_error**2 / 2 up to |td_error| = bound, linear beyond."""
  absolute = jnp.abs(td_error)
  quadratic = jnp.minimum(absolute, bound)
  return 0.5 * jnp.square(quadratic) + bound * (absolute - quadratic)


@jax.custom_jvp
def clipped(td_error: chex.Array, bound: float = 1.0) -> chex.Array:
  """td_error**2 / 2 whose gradient is clip(td_error, -bound, bound).

  The "error clipping" of Mnih et al. (2015). Its gradient is Huber's; its
  value, which is only logged, is not.
  """
  del bound
  return 0.5 * jnp.square(td_error)


@clipped.defjvp
def _clipped_jvp(primals, tangents):
  td_error, bound = primals
  gradient = jnp.clip(td_error, -bound, bound)
  return clipped(td_error, bound), gradient * tangents[0]


# Each maps ([] td_error, bound) to a [] loss.
FORMS: dict[str, Callable[..., chex.Array]] = {
  'squared': squared,
  'huber': huber,
  'clipped': clipped,
}
