"""Values beside returns: over-estimation and divergence."""

import chex
import jax
import jax.numpy as jnp

from siamrl.types import Metrics


def monte_carlo(
  reward: chex.Array,
  terminated: chex.Array,
  truncated: chex.Array,
  discount: chex.Numeric,
) -> tuple[chex.Array, chex.Array]:
  """Discounted returns of recorded episodes, and how much of each is unknown.

  An episode that terminates has a return. One that is cut, by truncation or by
  the end of the recording, goes on unseen: G_t is the part that was seen, and
  discount**n, n the steps from t to the cut, is the weight of the value that is
  missing.

  Args:
    reward: [T, ...] that followed each step.
    terminated: bool [T, ...] whether the task ended with it.
    truncated: bool [T, ...] whether it was cut there.
    discount: per step.

  Returns:
    (returns [T, ...], tails [T, ...]): a return's error is tails * the value of
    where it was cut, and 0 where the episode terminated.
  """

  def step(carry, inputs):
    reward, terminated, truncated = inputs
    # Beyond a cut nothing is known: an empty sum, all of its weight to come.
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
  """E[max_a Q - G] over steps whose return is known, after DDQN's figure 3.

  (van Hasselt et al. 2016.) Steps with a tail above the tolerance are left out.
  To count a cut return as whole would make values look over-estimated by the
  missing tail, and to fill the tail in with max_a Q would hide what is to be
  measured. What is left is biased by at most tolerance * the largest value.

  Args:
    values: [T, ...] max_a Q at each step.
    returns: [T, ...] of `monte_carlo`.
    tails: [T, ...] of `monte_carlo`; 1 or more leaves a step out.
    tolerance: in [0, 1); 0 for terminated episodes only.
    counted: bool [T, ...] the steps that there were; None for all.

  Returns:
    `overestimation`, `return_mc` (their mean return) and `known_returns` (the
    fraction of steps whose return is known); NaN where there is none.
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
  """The error of values against those of acting optimally.

  Args:
    q: [S, A].
    q_star: [S, A].

  Returns:
    (mean_s [max_a q - max_a q_star], max_{s, a} |q - q_star|).
  """
  bias = jnp.mean(jnp.max(q, -1) - jnp.max(q_star, -1))
  return bias, jnp.max(jnp.abs(q - q_star))


def soft_divergence(
  q: chex.Array, reward_bound: chex.Numeric, discount: chex.Numeric
) -> chex.Array:
  """1[max |Q| > r_max / (1 - discount)] (van Hasselt et al. 2018).

  Args:
    q: [...], values; one that is not a number has diverged.
    reward_bound: r_max, the largest |reward| that is learned from.
    discount: in [0, 1).

  Returns:
    float32 [], 0 or 1.
  """
  bound = reward_bound / (1 - discount)
  return 1.0 - (jnp.max(jnp.abs(q)) <= bound).astype(jnp.float32)
