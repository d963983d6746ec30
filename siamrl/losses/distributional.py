"""Losses of agents that learn the distribution of returns, not its mean.

Everything here is written for one transition, or one distribution: the caller
vmaps. No function stops a gradient. A distribution is either

* categorical: probabilities [Z] of Z fixed returns at equal distances, the
  atoms of a support (C51; Bellemare et al. 2017, arXiv 1707.06887); or
* quantiles: N returns of equal probability, each at a fraction of the
  distribution (QR-DQN; Dabney et al. 2018a, arXiv 1710.10044).
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from siamrl.losses import td


def of_action(answers: chex.Array, action: chex.Numeric) -> chex.Array:
  """answers[action] for [A, N] answers, 0 for an action out of range.

  Like `td.value_of`, it is a sum, whose gradient is not a scatter.
  """
  chex.assert_rank(answers, 2)
  actions = jnp.arange(answers.shape[0])[:, None]
  return jnp.sum(jnp.where(actions == action, answers, 0.0), 0)


def make_support(num_atoms: int, v_min: float, v_max: float) -> np.ndarray:
  """float32 [num_atoms] atoms z_i at equal distances from v_min to v_max."""
  # Not in JAX, whose float32 arithmetic misses some atoms by several bits.
  return np.linspace(v_min, v_max, num_atoms).astype(np.float32)


def project(
  returns: chex.Array, probs: chex.Array, support: chex.Array
) -> chex.Array:
  """Splits the probability of each return between the two nearest atoms.

  (Bellemare et al. 2017, eq. 7 and algorithm 1.) Returns beyond the support are
  moved to its ends. The probabilities still add up to 1, and if no return is
  moved the mean stays.

  Args:
    returns: [M], in any order.
    probs: [M] their probabilities.
    support: [Z] ascending atoms at equal distances.

  Returns:
    [Z] probabilities of the atoms.
  """
  chex.assert_rank([returns, probs, support], 1)
  low, high, count = support[0], support[-1], support.shape[0]
  # Algorithm 1's b_j: the place of each return among the atoms, from 0 on.
  places = (jnp.clip(returns, low, high) - low) * ((count - 1) / (high - low))
  return jax.lax.platform_dependent(
    places,
    probs,
    cpu=functools.partial(_scattered, count=count),
    default=functools.partial(_summed, count=count),
  )


def _summed(places: chex.Array, probs: chex.Array, *, count: int) -> chex.Array:
  """The sum over all pairs of a return and an atom, in a fixed order."""
  share = jnp.clip(1 - jnp.abs(places - jnp.arange(count)[:, None]), 0, 1)
  return jnp.sum(share * probs, -1)


def _scattered(
  places: chex.Array, probs: chex.Array, *, count: int
) -> chex.Array:
  """The same from the two atoms beside each return.

  It is several times faster in a loop on a CPU, where scatters run in order. On
  a GPU they do not, so that sums would differ from run to run.
  """
  lower = jnp.floor(places)
  share = places - lower
  # A place that is NaN has no integer, but its share makes the result NaN.
  atom = jnp.clip(lower.astype(jnp.int32), 0, count - 1)
  result = jnp.zeros(count + 1, probs.dtype)
  result = result.at[atom].add(probs * (1 - share))
  return result.at[atom + 1].add(probs * share)[:count]


def categorical_target(
  r_t: chex.Numeric,
  discount_t: chex.Numeric,
  probs: chex.Array,
  support: chex.Array,
) -> chex.Array:
  """The projected distribution of r_t + discount_t * Z.

  (Bellemare et al. 2017, algorithm 1.)

  Args:
    r_t: [] the reward.
    discount_t: [] discount**n, 0 where the episode terminated.
    probs: [Z] probabilities of the successor's returns.
    support: [Z] the atoms.

  Returns:
    [Z] probabilities of the same atoms.
  """
  return project(r_t + discount_t * support, probs, support)


def categorical_loss(logits: chex.Array, target: chex.Array) -> chex.Array:
  """-sum_i m_i log p_i, the cross-entropy (Bellemare et al. 2017, algorithm 1).

  It is the Kullback-Leibler divergence of the target from p = softmax(logits)
  plus the target's entropy, which is a constant if the target is a twin's.

  Args:
    logits: [Z].
    target: [Z] probabilities m_i.
  """
  chex.assert_rank([logits, target], 1)
  chex.assert_equal_shape([logits, target])
  return -jnp.sum(target * jax.nn.log_softmax(logits))


def categorical_mean(probs: chex.Array, support: chex.Array) -> chex.Array:
  """The mean return [...] of categorical distributions [..., Z]."""
  return jnp.sum(probs * support, -1)


def categorical_std(probs: chex.Array, support: chex.Array) -> chex.Array:
  """The standard deviation [...] of categorical distributions [..., Z]."""
  from_mean = support - categorical_mean(probs, support)[..., None]
  return jnp.sqrt(jnp.sum(probs * jnp.square(from_mean), -1))


def categorical_distance(
  one: chex.Array, other: chex.Array, support: chex.Array
) -> chex.Array:
  """The Wasserstein-1 distance of categorical distributions on one support.

  The integral of |F - G| over the returns, where F and G are the cumulative
  distributions. It is at least the difference of the means, in the same unit.

  Args:
    one: [..., Z] probabilities.
    other: [..., Z] probabilities.
    support: [Z] the atoms.

  Returns:
    [...].
  """
  gap = jnp.abs(jnp.cumsum(one - other, -1))[..., :-1]
  return jnp.sum(gap * jnp.diff(support), -1)


def midpoints(count: int) -> np.ndarray:
  """float32 [N] fractions (2 i - 1) / (2 N), i from 1 to N.

  Of N returns of equal probability, those at these fractions have the least
  Wasserstein-1 distance from a distribution (Dabney et al. 2018a, lemma 2).
  """
  return ((np.arange(count) + 0.5) / count).astype(np.float32)


def quantile_target(
  r_t: chex.Numeric, discount_t: chex.Numeric, quantiles: chex.Array
) -> chex.Array:
  """r_t + discount_t * theta_j (Dabney et al. 2018a, algorithm 1).

  Args:
    r_t: [] the reward.
    discount_t: [] discount**n, 0 where the episode terminated.
    quantiles: [M] the successor's theta_j.

  Returns:
    [M] quantiles.
  """
  chex.assert_rank([r_t, discount_t, quantiles], [0, 0, 1])
  return r_t + discount_t * quantiles


def soft_quantiles(
  returns: chex.Array, values: chex.Array, temperature: chex.Numeric
) -> chex.Array:
  """sum_a pi(a) (z_j(a) - temperature * log pi(a)), M-IQN's successor.

  pi = softmax(values / temperature) (Vieillard et al. 2020, appendix B). At
  each fraction this is the mean over actions; its mean is that of
  `td.soft_target` if the values are the means of the returns.

  Args:
    returns: [A, M] z_j(a).
    values: [A] that make the policy.
    temperature: > 0, in units of value.

  Returns:
    [M] quantiles.
  """
  chex.assert_rank([returns, values], [2, 1])
  log_policy = jax.nn.log_softmax(values / temperature)[:, None]
  each = returns - temperature * log_policy
  return jnp.sum(jnp.exp(log_policy) * each, 0)


def quantile_huber_loss(
  quantiles: chex.Array,
  fractions: chex.Array,
  target: chex.Array,
  error_bound: chex.Numeric = 1.0,
) -> chex.Array:
  """sum_i mean_j |tau_i - 1[u_ij < 0]| huber(u_ij), u_ij = y_j - theta_i.

  (Dabney et al. 2018a, eq. 10 and algorithm 1.) IQN's loss is this one divided
  by the bound (Dabney et al. 2018b, arXiv 1806.06923, eq. 3). Gradients flow to
  the quantiles and the target, in closed form, and not to the fractions.

  Args:
    quantiles: [N] theta_i.
    fractions: [N] tau_i in (0, 1), such as `midpoints`, or drawn at random.
    target: [M] y_j, returns of equal probability.
    error_bound: kappa > 0, from which the loss of an error is linear.
  """
  chex.assert_rank([quantiles, fractions, target], 1)
  chex.assert_equal_shape([quantiles, fractions])
  return _quantile_huber(quantiles, fractions, target, error_bound)


def _weighted(
  quantiles: chex.Array, fractions: chex.Array, target: chex.Array
) -> tuple[chex.Array, chex.Array]:
  """[N, M] errors u_ij, and their weights |tau_i - 1[u_ij < 0]|."""
  errors = target - quantiles[:, None]
  return errors, jnp.abs(fractions[:, None] - (errors < 0))


@jax.custom_jvp
def _quantile_huber(quantiles, fractions, target, error_bound):
  errors, weights = _weighted(quantiles, fractions, target)
  return jnp.sum(jnp.mean(weights * td.huber(errors, error_bound), -1))


def _pulls(quantiles, fractions, target, error_bound):
  """[N, M] derivatives of the loss by the errors, times M."""
  errors, weights = _weighted(quantiles, fractions, target)
  return weights * jnp.clip(errors, -error_bound, error_bound)


# Ordinary derivatives keep several [N, M] arrays of each transition.
_quantile_huber.defjvps(
  lambda tangent, _, *args: -jnp.dot(jnp.mean(_pulls(*args), -1), tangent),
  None,
  lambda tangent, _, *args: jnp.dot(
    jnp.sum(_pulls(*args), 0) / args[2].shape[0], tangent
  ),
  None,
)


def quantile_distance(one: chex.Array, other: chex.Array) -> chex.Array:
  """The Wasserstein-1 distance of N and N returns of equal probability.

  The mean |theta_i - theta'_i| of sorted returns: learned quantiles may cross,
  and the order of the returns is no part of the distribution.

  Args:
    one: [..., N].
    other: [..., N].

  Returns:
    [...].
  """
  return jnp.mean(jnp.abs(jnp.sort(one, -1) - jnp.sort(other, -1)), -1)
