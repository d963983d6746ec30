"""Comparison of values with returns, and with values that are known."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from siamrl import twins
from siamrl.losses import td
from siamrl.types import Agent, Metrics, Params, Transition

# Observations [B, ...] -> their values [B, A].
KnownValues = Callable[[chex.Array], chex.Array]


def monte_carlo(
  reward: chex.Array,
  terminated: chex.Array,
  truncated: chex.Array,
  discount: chex.Numeric,
) -> tuple[chex.Array, chex.Array]:
  """Discounted returns of recorded episodes, and weights of unknown tails.

  An episode that terminates has a known return. If it is cut n steps after t,
  by truncation or by the end of the recording, G_t is the observed part, and
  discount**n is the weight of the missing value.

  Args:
    reward: [T, ...] reward of each step.
    terminated: bool [T, ...] whether the task ended with the step.
    truncated: bool [T, ...] whether the episode was truncated there.
    discount: discount per step.

  Returns:
    (returns [T, ...], tails [T, ...]): the error of a return is its tail times
    the value at the cut, and 0 if the episode terminated.
  """

  def step(carry, inputs):
    reward, terminated, truncated = inputs
    # Nothing is known beyond a cut: the sum is 0 and the tail has weight 1.
    after, tail = jax.tree.map(
      lambda known, unknown: jnp.where(truncated, unknown, known),
      carry,
      beyond,
    )
    goes_on = jnp.where(terminated, 0.0, discount)
    result = reward + goes_on * after, goes_on * tail
    return result, result

  last = reward[-1].astype(jnp.float32)
  beyond = (jnp.zeros_like(last), jnp.ones_like(last))
  _, (returns, tails) = jax.lax.scan(
    step,
    beyond,
    (reward.astype(jnp.float32), terminated, truncated),
    reverse=True,
  )
  return returns, tails


def overestimation(
  values: chex.Array,
  returns: chex.Array,
  tails: chex.Array,
  tolerance: chex.Numeric = 0.01,
  counted: chex.Array | None = None,
) -> Metrics:
  """E[max_a Q - G] over steps whose return is known.

  It follows figure 3 of van Hasselt et al. (2016). Steps with a tail above the
  tolerance are left out: counting a cut return as whole would make values look
  overestimated by the missing tail, and filling the tail in with max_a Q would
  hide the error to measure. The remaining bias is at most tolerance * the
  largest value.

  Args:
    values: [T, ...] max_a Q at each step.
    returns: [T, ...] from `monte_carlo`.
    tails: [T, ...] from `monte_carlo`; a step with 1 or more is left out.
    tolerance: largest tail of a known return, in [0, 1); 0 for terminated
      episodes only.
    counted: bool [T, ...], whether a step exists; None for all.

  Returns:
    `overestimation`, `return_mc` (the mean return of these steps) and
    `known_returns` (the fraction of steps whose return is known); NaN if there
    are none.
  """
  if counted is None:
    counted = jnp.ones_like(values, bool)
  known = (tails <= tolerance) & counted
  return {
    'overestimation': jnp.mean(values - returns, where=known),
    'return_mc': jnp.mean(returns, where=known),
    'known_returns': jnp.sum(known) / jnp.sum(counted),
  }


def bias_exact(
  q: chex.Array, q_star: chex.Array
) -> tuple[chex.Array, chex.Array]:
  """The error of values relative to the optimal ones.

  Args:
    q: [S, A].
    q_star: [S, A].

  Returns:
    (mean_s [max_a q - max_a q_star], max_{s, a} |q - q_star|).
  """
  bias = jnp.mean(jnp.max(q, -1) - jnp.max(q_star, -1))
  return bias, jnp.max(jnp.abs(q - q_star))


def known_values(obs: chex.Array, values: chex.Array) -> KnownValues:
  """Builds the function that looks values up by observations.

  Args:
    obs: [S, ...] all observations that occur, no two of them equal.
    values: [S, A] their values.

  Returns:
    A function of observations [B, ...], which gives those that do not occur the
    values of the nearest one.
  """
  known = obs.reshape(len(obs), -1).astype(jnp.float32)
  sizes, table = jnp.sum(jnp.square(known), -1), jnp.asarray(values)

  def look_up(given: chex.Array) -> chex.Array:
    given = given.reshape(len(given), -1).astype(jnp.float32)
    products = jnp.matmul(given, known.T, precision='highest')
    return table[jnp.argmin(sizes - 2 * products, -1)]

  return look_up


def gradient_toward(
  agent: Agent,
  known: KnownValues,
  online_params: Params,
  batch: Transition,
  key: chex.PRNGKey,
) -> Params:
  """The gradient of the agent's loss with known values as targets.

  It is that of regression on the values of the actions taken, with the function
  of the error that the agent learns by.

  Args:
    agent: an agent of values of discrete actions, not lifted by any rule.
    known: returns the values.
    online_params: its parameters.
    batch: transitions.
    key: random key of the loss.
  """
  taken = jax.vmap(td.value_of)(known(batch.obs_tm1), batch.a_tm1)
  grads, _ = jax.grad(agent.loss, has_aux=True)(
    online_params,
    twins.part(agent, online_params),
    batch._replace(r_t=taken, discount_t=jnp.zeros_like(batch.discount_t)),
    key,
    bootstrap=None,
  )
  return grads


def soft_divergence(
  q: chex.Array, reward_bound: chex.Numeric, discount: chex.Numeric
) -> chex.Array:
  """1[max |Q| > r_max / (1 - discount)] (van Hasselt et al. 2018).

  Args:
    q: [...] values; NaN counts as divergence.
    reward_bound: r_max, the largest |reward| used for learning.
    discount: discount per env step, in [0, 1).

  Returns:
    float32 [], 0 or 1.
  """
  bound = reward_bound / (1 - discount)
  return 1.0 - (jnp.max(jnp.abs(q)) <= bound).astype(jnp.float32)
