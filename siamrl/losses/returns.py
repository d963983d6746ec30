"""Returns over sequences: targets that reach further than one step.

Everything here is written for one environment: arrays lead with [T], the steps
of a sequence in order, and the caller vmaps over environments. Entry t belongs
to the step from s_t to its successor s_{t+1}. No function stops a gradient.

A sequence may contain several episodes. `ended_t` says where one terminated or
was truncated, and no return reaches beyond. `discount_t` tells the two apart:
it is 0 where the episode terminated. A truncated episode bootstraps from its
own last observation, so `q_t` (or `v_t`) must hold the values of that
observation there, never those of the first one after the reset.

A return is a whole target: it goes into a `Transition` as `r_t` with a
`discount_t` of 0. (The replays make n-step returns.)
"""

import chex
import jax
import jax.numpy as jnp

from siamrl.losses import td


def lambda_returns(
  r_t: chex.Array,
  discount_t: chex.Array,
  v_t: chex.Array,
  ended_t: chex.Array,
  lambda_t: chex.Numeric,
) -> chex.Array:
  """Mixtures of the returns of 1, 2, ... steps (Sutton & Barto 2018, ch. 12).

  G_t = r_t + discount_t * ((1 - lambda_t) * v_t + lambda_t * G_{t+1}); where
  the episode or the sequence ended, G_t = r_t + discount_t * v_t.

  Args:
    r_t: [T] rewards.
    discount_t: [T] discount, 0 where the episode terminated.
    v_t: [T] values of the successors.
    ended_t: bool [T] whether the episode terminated or was truncated with this
      step.
    lambda_t: [] or [T] weight of the longer returns from the successor on, in
      [0, 1]; may be traced. 0 gives one-step targets, 1 the discounted sum of
      rewards up to the end plus the value there.

  Returns:
    [T] returns.
  """
  chex.assert_rank([r_t, discount_t, v_t, ended_t], 1)
  chex.assert_equal_shape([r_t, discount_t, v_t, ended_t])
  weight_t = jnp.where(ended_t, 0.0, lambda_t)

  def step(
    g_tp1: chex.Array, inputs: tuple[chex.Array, ...]
  ) -> tuple[chex.Array, chex.Array]:
    r, discount, v, weight = inputs
    g = r + discount * ((1 - weight) * v + weight * g_tp1)
    return g, g

  _, returns = jax.lax.scan(
    step, v_t[-1], (r_t, discount_t, v_t, weight_t), reverse=True
  )
  return returns


def peng_q_lambda(
  r_t: chex.Array,
  discount_t: chex.Array,
  q_t: chex.Array,
  ended_t: chex.Array,
  lambda_: chex.Numeric,
) -> chex.Array:
  """Returns of Peng's Q(lambda) (Peng & Williams 1996), as in PQN.

  `lambda_returns` with v_t = max_a q_t[a] (Gallici et al. 2025; Kozuno et al.
  2021). It does not matter whether the actions taken were greedy: the learned
  values lie between those of the acting policy and the optimal ones.

  Args:
    r_t: [T] rewards.
    discount_t: [T] discount, 0 where the episode terminated.
    q_t: [T, A] values of the successors.
    ended_t: bool [T] whether the episode terminated or was truncated with this
      step.
    lambda_: [] in [0, 1]; may be traced.

  Returns:
    [T] returns.
  """
  chex.assert_rank([q_t, lambda_], [2, 0])
  return lambda_returns(r_t, discount_t, jnp.max(q_t, -1), ended_t, lambda_)


def watkins_q_lambda(
  r_t: chex.Array,
  discount_t: chex.Array,
  q_t: chex.Array,
  a_t: chex.Array,
  ended_t: chex.Array,
  lambda_: chex.Numeric,
) -> chex.Array:
  """Returns of Watkins's Q(lambda) (Watkins 1989; Sutton & Barto 2018, 12.10).

  Like `peng_q_lambda`, but a return ends with the value of the first successor
  at which the action taken was not greedy; ties count as greedy. If all actions
  are greedy, it equals `peng_q_lambda`.

  Args:
    r_t: [T] rewards.
    discount_t: [T] discount, 0 where the episode terminated.
    q_t: [T, A] values of the successors.
    a_t: int [T] actions taken at the successors: those of the next steps. Not
      read where the episode or the sequence ended.
    ended_t: bool [T] whether the episode terminated or was truncated with this
      step.
    lambda_: [] in [0, 1]; may be traced.

  Returns:
    [T] returns.
  """
  chex.assert_rank([q_t, a_t, lambda_], [2, 1, 0])
  lambda_t = watkins_trace(q_t, a_t, lambda_)
  return lambda_returns(r_t, discount_t, jnp.max(q_t, -1), ended_t, lambda_t)


def watkins_trace(
  q_t: chex.Array, a_t: chex.Array, lambda_: chex.Numeric
) -> chex.Array:
  """Lambda where the action taken was greedy or tied with one, 0 elsewhere.

  Args:
    q_t: [T, A] values.
    a_t: int [T] actions taken.
    lambda_: [] in [0, 1].

  Returns:
    [T] weights for `lambda_returns`.
  """
  greedy_t = jax.vmap(td.value_of)(q_t, a_t) == jnp.max(q_t, -1)
  return jnp.where(greedy_t, lambda_, 0.0)
