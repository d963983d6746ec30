"""Forms of Q-learning targets, and losses of TD errors.

Everything here is written for one transition (no batch axis): the caller vmaps.
No function stops a gradient. Values that must not be differentiated are
computed from the twin, which the caller passes to its loss as a separate
argument.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from siamrl import parameters
from siamrl.parameters import Parameter, check_name


def value_of(q_values: chex.Array, action: chex.Numeric) -> chex.Array:
  """q_values[action] for [A] values, 0 for an action out of range.

  It is computed as a sum, since the gradient of an index is a scatter, which is
  slow on all platforms.
  """
  actions = jnp.arange(q_values.shape[0])
  return jnp.sum(jnp.where(actions == action, q_values, 0.0))


def smaller_value(q_t: chex.Array, q_t_online: chex.Array) -> chex.Array:
  """min(q_t, q_t_online), elementwise, with the gradient of `q_t` at ties.

  (`jnp.minimum` would give each of two equal values half a gradient.)
  """
  return jnp.where(q_t_online < q_t, q_t_online, q_t)


class TargetInputs(NamedTuple):
  """The inputs of the target of one transition.

  Attributes:
    a_tm1: int [] the action taken.
    r_t: [] the (n-step) reward.
    discount_t: [] discount**n, 0 where the episode terminated.
    q_t: [A] the twin's values of the successor. For a form with two networks,
      the smaller value of each action.
    q_t_online: [A] online values of the successor, behind a stop-gradient. For
      a form with two networks, those of the first.
    q_tm1: [A] values of the observation acted upon, from the same source as
      `q_t`.
  """

  a_tm1: chex.Numeric
  r_t: chex.Numeric
  discount_t: chex.Numeric
  q_t: chex.Array
  q_t_online: chex.Array
  q_tm1: chex.Array


# TargetInputs -> the target [].
Target = Callable[[TargetInputs], chex.Array]


def max_target(inputs: TargetInputs) -> chex.Array:
  """Q-learning (Watkins & Dayan 1992; Mnih et al. 2015).

  r_t + discount_t * max_a q_t[a]
  """
  return inputs.r_t + inputs.discount_t * jnp.max(inputs.q_t)


def double_target(inputs: TargetInputs) -> chex.Array:
  """The twin values the action that the online network chooses.

  r_t + discount_t * q_t[argmax_a q_t_online[a]], Double DQN (van Hasselt et al.
  2016, eq. 4). If both networks are equal it is `max_target`.
  """
  value = value_of(inputs.q_t, jnp.argmax(inputs.q_t_online))
  return inputs.r_t + inputs.discount_t * value


def inverse_double_target(inputs: TargetInputs) -> chex.Array:
  """The online network values the action that the twin chooses.

  r_t + discount_t * q_t_online[argmax_a q_t[a]] (van Hasselt et al. 2018). If
  both networks are equal it is `max_target`. No gradient flows, since
  `q_t_online` is behind a stop-gradient.
  """
  value = value_of(inputs.q_t_online, jnp.argmax(inputs.q_t))
  return inputs.r_t + inputs.discount_t * value


def clipped_double_target(inputs: TargetInputs) -> chex.Array:
  """The smaller of two twins' values of the first network's choice.

  r_t + discount_t * min_i q_i_t[argmax_a q_1_t_online[a]], which both networks
  learn. It is the discrete form of Clipped Double Q-learning (Fujimoto et al.
  2018, appendix A), where the first network chooses both the actions taken and
  the target's action; here values are the twins'. (Maxmin Q-learning uses max_a
  min_i q_i_t[a] instead.) If both networks are equal it is `double_target`.

  The caller takes the minimum over networks, for each action: `q_t` is min_i
  q_i_t.
  """
  return double_target(inputs)


def minto_target(inputs: TargetInputs) -> chex.Array:
  """MINTO: the largest of the smaller values of twin and online network.

  r_t + discount_t * max_a min(q_t[a], q_t_online[a]) (Hendawy et al. 2025). It
  is never above `max_target`, and equals it if both networks are equal. Where
  the two values are equal the twin's is used, so that with a twin that is the
  online network, gradients are those of `max_target` too.
  """
  smaller = smaller_value(inputs.q_t, inputs.q_t_online)
  return inputs.r_t + inputs.discount_t * jnp.max(smaller)


def mellowmax(q_values: chex.Array, omega: chex.Numeric) -> chex.Array:
  """log(mean_a exp(omega * q[a])) / omega (Asadi & Littman 2017).

  A non-expansion between the mean (omega -> 0) and the maximum (omega ->
  infinity) of [A] values, at most log(A) / omega below the maximum.

  Args:
    q_values: [A].
    omega: sharpness, > 0.
  """
  largest = jnp.max(q_values)
  # expm1 and log1p keep the digits that a small omega would lose.
  excess = jnp.mean(jnp.expm1(omega * (q_values - largest)))
  return largest + jnp.log1p(excess) / omega


def mellowmax_target(
  inputs: TargetInputs, mellowmax_omega: chex.Numeric
) -> chex.Array:
  """r_t + discount_t * mellowmax(q_t), as in DeepMellow (Kim et al. 2019).

  Args:
    inputs: inputs of one transition.
    mellowmax_omega: sharpness > 0, per unit of value; see `mellowmax`.
  """
  value = mellowmax(inputs.q_t, mellowmax_omega)
  return inputs.r_t + inputs.discount_t * value


def expected_target(
  inputs: TargetInputs, expected_epsilon: chex.Numeric
) -> chex.Array:
  """Expected Sarsa of the epsilon-greedy policy (van Seijen et al. 2009).

  r_t + discount_t * sum_a pi(a) q_t[a], where pi takes an action of the largest
  `q_t` with probability 1 - epsilon, and otherwise a uniformly random one. With
  epsilon = 0 it is `max_target`, with 1 the mean over actions.

  Args:
    inputs: inputs of one transition.
    expected_epsilon: epsilon, in [0, 1].
  """
  best, mean = jnp.max(inputs.q_t), jnp.mean(inputs.q_t)
  value = (1 - expected_epsilon) * best + expected_epsilon * mean
  return inputs.r_t + inputs.discount_t * value


def soft_target(
  inputs: TargetInputs, soft_temperature: chex.Numeric
) -> chex.Array:
  """Soft Q-learning (Haarnoja et al. 2017).

  r_t + discount_t * temperature * log(sum_a exp(q_t[a] / temperature)). The
  value is sum_a pi(a) (q_t[a] - temperature * log pi(a)), that of the policy
  pi = softmax(q_t / temperature) with its entropy. It exceeds the largest value
  by at most temperature * log(A), and so tends to `max_target` as the
  temperature goes to 0.

  Args:
    inputs: inputs of one transition.
    soft_temperature: > 0, in units of value.
  """
  value = soft_temperature * jax.nn.logsumexp(inputs.q_t / soft_temperature)
  return inputs.r_t + inputs.discount_t * value


def munchausen_bonus(
  action: chex.Numeric,
  q_values: chex.Array,
  soft_temperature: chex.Numeric,
  munchausen_alpha: chex.Numeric,
  munchausen_clip: chex.Numeric,
) -> chex.Array:
  """alpha * clip(temperature * log pi(action), clip, 0).

  (Vieillard et al. 2020.)

  Args:
    action: int [].
    q_values: [A]; pi = softmax(q_values / temperature).
    soft_temperature: > 0, in units of value.
    munchausen_alpha: weight of the bonus, in [0, 1].
    munchausen_clip: least value of the bonus before it is weighted, <= 0.
  """
  log_policy = soft_temperature * jax.nn.log_softmax(
    q_values / soft_temperature
  )
  bonus = jnp.clip(value_of(log_policy, action), munchausen_clip, 0.0)
  return munchausen_alpha * bonus


def munchausen_target(
  inputs: TargetInputs,
  soft_temperature: chex.Numeric,
  munchausen_alpha: chex.Numeric,
  munchausen_clip: chex.Numeric,
) -> chex.Array:
  """`soft_target` plus a bonus for actions that are likely already.

  soft_target + alpha * clip(temperature * log pi(a_tm1), clip, 0), where pi =
  softmax(q_tm1 / temperature) is, like the soft value, the twin's (Vieillard et
  al. 2020; their code has temperature 0.03, alpha 0.9, clip -1). The bonus is
  part of the reward, so it stays where the episode terminated. In an n-step
  transition only the first action gets one. With alpha = 0 it is `soft_target`.

  Args:
    inputs: inputs of one transition.
    soft_temperature: > 0, in units of value.
    munchausen_alpha: weight of the bonus, in [0, 1].
    munchausen_clip: least value of the bonus before it is weighted, <= 0.
  """
  bonus = munchausen_bonus(
    inputs.a_tm1,
    inputs.q_tm1,
    soft_temperature,
    munchausen_alpha,
    munchausen_clip,
  )
  return bonus + soft_target(inputs, soft_temperature)


class TargetForm(NamedTuple):
  """A form of targets as a launcher offers it.

  Attributes:
    target: (inputs, **parameters) -> target [].
    takes: names of `TARGET_PARAMETERS`, without defaults.
    summary: phrase for a help text that says what the target is made of.
    networks: number of networks that learn from it, each with a twin.
  """

  target: Callable[..., chex.Array]
  takes: tuple[str, ...]
  summary: str
  networks: int = 1


TARGETS: dict[str, TargetForm] = {
  'max': TargetForm(max_target, (), 'the largest value of the twin'),
  'double': TargetForm(
    double_target, (), "the twin's value of the online network's choice"
  ),
  'inverse_double': TargetForm(
    inverse_double_target, (), "the online network's value of the twin's choice"
  ),
  'clipped_double': TargetForm(
    clipped_double_target,
    (),
    "the smaller of two twins' values of the first network's choice",
    networks=2,
  ),
  'minto': TargetForm(
    minto_target,
    (),
    'the largest of the smaller values of twin and online network (MINTO)',
  ),
  'mellowmax': TargetForm(
    mellowmax_target,
    ('mellowmax_omega',),
    "a smooth maximum of the twin's values, from mean to largest",
  ),
  'expected': TargetForm(
    expected_target,
    ('expected_epsilon',),
    'the mean over an epsilon-greedy policy (Expected Sarsa)',
  ),
  'soft': TargetForm(
    soft_target,
    ('soft_temperature',),
    'the value of a softmax policy with its entropy (soft Q-learning)',
  ),
  'munchausen': TargetForm(
    munchausen_target,
    ('soft_temperature', 'munchausen_alpha', 'munchausen_clip'),
    'soft, with a bonus for the log-probability of the action taken',
  ),
}


# The parameters of all forms of targets.
TARGET_PARAMETERS: dict[str, Parameter] = {
  'mellowmax_omega': Parameter(
    parameters.POSITIVE, 'Sharpness of the smooth maximum, per unit of value'
  ),
  'expected_epsilon': Parameter(
    parameters.FRACTION,
    'Probability of a random action in the expected value',
  ),
  'soft_temperature': Parameter(
    parameters.POSITIVE, 'Temperature of the softmax policy, in units of value'
  ),
  'munchausen_alpha': Parameter(
    parameters.FRACTION,
    'Weight of the Munchausen bonus for the action taken',
  ),
  'munchausen_clip': Parameter(
    parameters.NOT_POSITIVE,
    'Least value of the Munchausen bonus before it is weighted',
  ),
}


def register(
  name: str,
  target: Callable[..., chex.Array],
  summary: str,
  *,
  networks: int = 1,
  **new: Parameter,
) -> None:
  """Adds a form of targets to `TARGETS`.

  Launchers of discrete actions offer it as --target_form=NAME, with a flag for
  each parameter that it brings.

  Args:
    name: name of the form.
    target: (inputs, **parameters) -> the target [] of one transition, see
      `TargetInputs`. The arguments after the first are parameters: those of
      `TARGET_PARAMETERS`, and its own.
    summary: phrase for a help text that says what the target is made of.
    networks: number of networks that learn from it, each with a twin.
    **new: the form's own parameters by name.

  Raises:
    ValueError: the name is taken, or a parameter is not described.
  """
  takes = parameters.taken_by(target, skip=1)
  parameters.add('target_form', name, TARGETS, takes, TARGET_PARAMETERS, new)
  TARGETS[name] = TargetForm(target, takes, summary, networks)


def make_target(name: str, **given: Any) -> Target:
  """Binds a form of targets to its parameters.

  Args:
    name: a key of `TARGETS`.
    **given: parameters by the names of `TARGET_PARAMETERS`; None counts as not
      given.

  Returns:
    The target of one transition; it checks the ranks of its inputs.

  Raises:
    ValueError: the name is unknown, or a parameter is missing, superfluous or
      (unless it is a tracer) outside its domain.
  """
  check_name('target_form', name, TARGETS)
  form = TARGETS[name]
  values = parameters.check(
    'target_form', name, form.takes, given, TARGET_PARAMETERS
  )

  def target(inputs: TargetInputs) -> chex.Array:
    chex.assert_rank(list(inputs), [0, 0, 0, 1, 1, 1])
    return form.target(inputs, **values)

  return target


def squared(td_error: chex.Array, bound: float = 1.0) -> chex.Array:
  """td_error**2, the mean-squared error of Dopamine and CleanRL.

  It is twice `optax.l2_loss`, which matters to an optimizer with a large
  epsilon. `bound` is ignored; it makes the forms interchangeable.
  """
  del bound
  return jnp.square(td_error)


def half_squared(td_error: chex.Array, bound: float = 1.0) -> chex.Array:
  """td_error**2 / 2; `bound` is ignored."""
  del bound
  return 0.5 * jnp.square(td_error)


def huber(td_error: chex.Array, bound: float = 1.0) -> chex.Array:
  """Huber's loss: td_error**2 / 2 up to |td_error| = bound, linear beyond."""
  absolute = jnp.abs(td_error)
  # Not a sum of two parts: a very large bound would round the rest away.
  return jnp.where(
    absolute <= bound,
    0.5 * jnp.square(td_error),
    bound * (absolute - 0.5 * bound),
  )


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
  'half_squared': half_squared,
  'huber': huber,
  'clipped': clipped,
}
