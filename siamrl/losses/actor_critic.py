"""Equations of DDPG, TD3 and SAC, for one state at a time.

Everything here is written without a batch axis: the caller vmaps. K critics
value an action, which is D numbers in [-1, 1]. No function stops a gradient:
the caller, which adds up the losses of an actor and its critics, decides which
of them sees whose parameters.

Haarnoja et al. 2018a is the ICML paper (arXiv 1801.01290); 2018b is "Soft
Actor-Critic Algorithms and Applications" (arXiv 1812.05905), with a learned
temperature and no network for state values. Equations of SAC are numbered as in
2018b.
"""

from collections.abc import Callable
import math

import chex
import jax
import jax.numpy as jnp


def smallest_value(q_t: chex.Array) -> chex.Array:
  """min_k q_t[k], Clipped Double Q-learning (Fujimoto et al. 2018, eq. 10).

  For one critic, or equal ones, it is that critic's value.

  Args:
    q_t: [K] values of one action.
  """
  chex.assert_rank(q_t, 1)
  return jnp.min(q_t)


def smoothed_action(
  action: chex.Array,
  noise: chex.Array,
  smoothing_std: chex.Numeric,
  smoothing_clip: chex.Numeric,
) -> chex.Array:
  """Target policy smoothing (Fujimoto et al. 2018, eq. 14 and appendix D).

  clip(a + clip(std * noise, -c, c), -1, 1), which makes targets the values of a
  neighborhood. With std = 0 it is the action itself.

  Args:
    action: [D], the twin's action.
    noise: [D] standard normal.
    smoothing_std: standard deviation of the noise, in units of action; 0.2 in
      the paper.
    smoothing_clip: c, the largest change of a number; 0.5 in the paper.
  """
  chex.assert_rank([action, noise], 1)
  shift = jnp.clip(smoothing_std * noise, -smoothing_clip, smoothing_clip)
  return jnp.clip(action + shift, -1.0, 1.0)


def critics_loss(
  td_errors: chex.Array, form: Callable[[chex.Array], chex.Array]
) -> chex.Array:
  """The sum of the losses of all critics: each learns as if it were alone.

  Args:
    td_errors: [K], relative to a shared target.
    form: TD error [] -> loss [], such as those of `losses.td.FORMS`. DDPG and
      TD3 use the squared error, SAC half of it (2018b, eq. 5), in papers and
      code.
  """
  chex.assert_rank(td_errors, 1)
  return jnp.sum(jax.vmap(form)(td_errors))


def deterministic_policy_loss(q_tm1: chex.Array) -> chex.Array:
  """-q_tm1[0]: the actor climbs the first critic.

  Its gradient through the action is the deterministic policy gradient (Silver
  et al. 2014; Lillicrap et al. 2016, eq. 6); TD3's actor follows the first of
  its two critics (Fujimoto et al. 2018, algorithm 1).

  Args:
    q_tm1: [K] values of the actor's action; only the first is read.
  """
  chex.assert_rank(q_tm1, 1)
  return -q_tm1[0]


def tanh_gaussian(
  mean: chex.Array, log_std: chex.Array, noise: chex.Array
) -> tuple[chex.Array, chex.Array]:
  """An action a = tanh(u), u = mean + std * noise, and log pi(a).

  log pi(a) = sum_d log N(u_d; mean_d, std_d) - log(1 - tanh(u_d)**2) (Haarnoja
  et al. 2018b, eq. 26). The last term is computed as
  2 (log 2 - |u| - log(1 + exp(-2 |u|))), which avoids the logarithm of a
  difference that rounds to 0; SAC's code and CleanRL add 1e-6 instead. The
  density is that of actions in [-1, 1], before an environment scales them.

  Args:
    mean: [D], before the tanh.
    log_std: [D], before the tanh.
    noise: [D] standard normal.

  Returns:
    The action [D], through which gradients reach mean and log_std, and the log
    of its density [].
  """
  chex.assert_rank([mean, log_std, noise], 1)
  u = mean + jnp.exp(log_std) * noise
  log_normal = -0.5 * jnp.square(noise) - log_std - 0.5 * math.log(2 * math.pi)
  # Not softplus: its log1p and its handling of infinities cost a CPU 3 % of a
  # whole gradient step, and small results need no relative accuracy here.
  size = jnp.abs(u)
  log_slope = 2 * (math.log(2) - size - jnp.log(1 + jnp.exp(-2 * size)))
  return jnp.tanh(u), jnp.sum(log_normal - log_slope)


def soft_value(
  q_t: chex.Array, log_prob: chex.Numeric, alpha: chex.Numeric
) -> chex.Array:
  """min_k q_t[k] - alpha * log pi(a) (Haarnoja et al. 2018b, eq. 3, sect. 6).

  It is a sample of the state's value, entropy included. With alpha = 0 it is
  `smallest_value`.

  Args:
    q_t: [K] values of an action drawn from the policy.
    log_prob: [] the log of that action's density.
    alpha: the temperature, >= 0, in units of value.
  """
  return smallest_value(q_t) - alpha * log_prob


def soft_policy_loss(
  q_tm1: chex.Array, log_prob: chex.Numeric, alpha: chex.Numeric
) -> chex.Array:
  """alpha * log pi(a) - min_k q_tm1[k] (2018b, eq. 9, with eq. 6's minimum).

  The paper (section 6), Acme and CleanRL take the minimum. haarnoja/sac climbs
  the first critic, and softlearning, from 2021 on, their mean.

  Args:
    q_tm1: [K] values of an action drawn by `tanh_gaussian`.
    log_prob: [] the log of that action's density.
    alpha: the temperature.
  """
  return -soft_value(q_tm1, log_prob, alpha)


def temperature_loss(
  log_alpha: chex.Array, log_prob: chex.Numeric, target_entropy: chex.Numeric
) -> chex.Array:
  """-alpha * (log pi(a) + target_entropy) (Haarnoja et al. 2018b, eq. 18).

  The temperature rises while the entropy is below its target. Its logarithm is
  learned, as in softlearning, Acme and CleanRL.

  Args:
    log_alpha: [].
    log_prob: [] the log of the density of an action drawn from the policy.
    target_entropy: target entropy in nats; -D in the paper.
  """
  return -jnp.exp(log_alpha) * (log_prob + target_entropy)
