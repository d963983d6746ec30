"""Parts that the agents with an actor and its critics share."""

from collections.abc import Callable
import functools
import math
from typing import NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp

from siamrl import parameters
from siamrl.agents.noise import action_noise, mixed_with_random
from siamrl.losses import actor_critic as losses
from siamrl.losses import td
from siamrl.networks.policies import Actor, Critic
from siamrl.parameters import Domain, FieldError, check_name
from siamrl.types import (
  Act,
  Acting,
  Agent,
  Bootstrap,
  Greedy,
  Init,
  Metrics,
  NoiseProcess,
  Params,
  Transition,
)

# The smallest value of the critics' twins, or of the critics and their twins.
TARGET_FORMS = ('min', 'minto')

# The domains of the agents' parameters. All may be traced but the first three,
# which shape arrays and programs.
PARAMETERS: dict[str, Domain] = {
  'critics': parameters.WHOLE,
  'policy_delay': parameters.WHOLE,
  'renorm_warmup': parameters.NOT_NEGATIVE,
  'exploration_std': parameters.NOT_NEGATIVE,
  'exploration_theta': parameters.RATE,
  'smoothing_std': parameters.NOT_NEGATIVE,
  'smoothing_clip': parameters.NOT_NEGATIVE,
  'alpha': parameters.NOT_NEGATIVE,
  'target_entropy': Domain(math.isfinite, 'finite'),
}

# (params, obs, action) -> values [B, K] of all critics.
ValuesOf: TypeAlias = Callable[[Params, chex.Array, chex.Array], chex.Array]


def check(**given: chex.Numeric | None) -> None:
  """Raises ValueError if a number is outside its domain."""
  for name, value in given.items():
    if value is None or isinstance(value, jax.core.Tracer):
      continue
    if not PARAMETERS[name].holds(value):
      raise FieldError(name, value, f'must be {PARAMETERS[name].text}')


def acting_by(
  actor: Actor, greedy: Greedy, act: Act, process: NoiseProcess | None = None
) -> Acting:
  """Acting with an agent's noise; evaluations use its greedy actions."""

  def play(
    params: Params,
    obs: chex.Array,
    noise: chex.ArrayTree,
    epsilon: chex.Numeric,
  ) -> chex.Array:
    return mixed_with_random(greedy(params, obs), noise, epsilon)

  return Acting(
    noise=lambda key, batch_size: action_noise(
      key, batch_size, actor.action_dim
    ),
    act=act,
    greedy=greedy,
    play=play,
    process=process,
  )


class Temperature(NamedTuple):
  """The temperature of an entropy, given or learned.

  Attributes:
    alpha: the temperature; None if it is learned.
    target_entropy: target entropy of a learned temperature, in nats.
  """

  alpha: chex.Numeric | None
  target_entropy: chex.Numeric

  @property
  def learned(self) -> bool:
    """Whether the temperature is an entry of the parameters, 'log_alpha'."""
    return self.alpha is None

  def value(self, params: Params) -> chex.Numeric:
    """The temperature without a gradient, for the losses of other entries."""
    if self.alpha is not None:
      return self.alpha
    return jnp.exp(jax.lax.stop_gradient(params['log_alpha']))

  def policy_loss(
    self, params: Params, q_tm1: chex.Array, log_prob: chex.Array
  ) -> tuple[chex.Array, Metrics]:
    """The loss of the actor, and of the temperature if it is learned.

    Args:
      params: the parameters, of which only 'log_alpha' is read.
      q_tm1: [B, K] values of the actor's samples.
      log_prob: [B] the logs of their densities.
    """
    loss = actor_loss = jnp.mean(
      jax.vmap(losses.soft_policy_loss, (0, 0, None))(
        q_tm1, log_prob, self.value(params)
      )
    )
    if self.learned:
      loss += jnp.mean(
        jax.vmap(losses.temperature_loss, (None, 0, None))(
          params['log_alpha'],
          jax.lax.stop_gradient(log_prob),
          self.target_entropy,
        )
      )
    return loss, {'actor_loss': actor_loss, 'entropy': -jnp.mean(log_prob)}

  def reported(self, agent: Agent) -> Agent:
    """The agent with this temperature among its parameters and metrics."""

    def init(key: chex.PRNGKey) -> Params:
      params = agent.init(key)
      return params | {'log_alpha': jnp.zeros(())} if self.learned else params

    def loss(online_params: Params, *args, **kwargs):
      value, metrics = agent.loss(online_params, *args, **kwargs)
      now = jnp.asarray(self.value(online_params), jnp.float32)
      return value, metrics | {'alpha': now}

    return agent._replace(init=init, loss=loss)


def temperature_of(
  actor: Actor,
  alpha: chex.Numeric | None,
  target_entropy: chex.Numeric | None,
) -> Temperature:
  """The temperature that an agent's arguments describe.

  Args:
    actor: says how many dimensions actions have.
    alpha: the temperature; None to learn it.
    target_entropy: target entropy of a learned temperature; None for -D.

  Raises:
    ValueError: a number is outside its domain, or an entropy is given for a
      temperature that is not learned.
  """
  if alpha is not None and target_entropy is not None:
    raise FieldError(
      'target_entropy',
      target_entropy,
      'has no meaning for',
      ('alpha', alpha),
      ', which is not learned',
    )
  if target_entropy is None:
    target_entropy = -float(actor.action_dim)
  check(alpha=alpha, target_entropy=target_entropy)
  return Temperature(alpha, target_entropy)


def first_critics(
  critic: Critic, key: chex.PRNGKey, count: int, *example: chex.Array
) -> Params:
  """Draws `count` critics, whose leaves lead with [K].

  Args:
    critic: the critics' network.
    key: random key.
    count: K.
    *example: observations and actions; only their shapes matter.
  """
  born = jax.vmap(lambda key: critic.init(key, *example))
  return born(jax.random.split(key, count))


def assemble(
  *,
  init: Init,
  values_of: ValuesOf,
  delayed: tuple[str, ...],
  policy_delay: int,
  td_loss: str,
  error_bound: float,
  acting: Acting,
  bootstrap: Bootstrap,
  policy_loss: Callable[..., tuple[chex.Array, Metrics]],
  seen: Callable[[Transition], chex.ArrayTree] = lambda batch: batch.obs_t,
  learning: Callable[..., tuple[chex.Array, chex.Array]] | None = None,
) -> Agent:
  """Assembles an agent from its parts.

  Args:
    init: draws the parameters.
    values_of: (params, obs, action) -> values [B, K] of all critics.
    delayed: entries of the parameters that are learned at every
      `policy_delay`-th gradient step only.
    policy_delay: d, in gradient steps.
    td_loss: a key of `losses.td.FORMS`.
    error_bound: bound for 'huber' and 'clipped'.
    acting: the agent's acting functions; see `acting_by`.
    bootstrap: the agent's bootstrap. Its gradients must not reach the `delayed`
      entries.
    policy_loss: (online_params, obs, key) -> the loss of only the `delayed`
      entries, and metrics [].
    seen: the part of a batch that `bootstrap` answers.
    learning: (online_params, batch, key) -> the values [B, K] of the actions
      taken, as the critics compute them to learn, and a term of the loss [];
      None for `values_of` and no term.

  Returns:
    An agent whose `loss` reports `loss`, the sum to minimize; `critic_loss`,
    the loss of all critics; for each transition [B] the `q_tm1` of the action
    taken and `td_error_abs`, means over the critics; and the metrics of
    `policy_loss`. These are 0 if the actor is not due, and multiplied by d if
    it is, so that their means over gradient steps are right (in the mean of
    `loss` the policy's part counts 1 / d). Weights multiply the critics' losses
    only.
  """
  check_name('td_loss', td_loss, td.FORMS)
  if not error_bound > 0:
    raise FieldError('error_bound', error_bound, 'must be positive')
  form = lambda error: td.FORMS[td_loss](error, error_bound)

  def values(params: Params, obs: chex.Array) -> chex.Array:
    q_values = values_of(params, obs, acting.greedy(params, obs))
    return jax.vmap(losses.smallest_value)(q_values)[:, None]

  def taken(params: Params, batch: Transition) -> chex.Array:
    return values_of(params, batch.obs_tm1, batch.a_tm1)

  def targets(
    online_params: Params,
    target_params: Params,
    batch: Transition,
    key: chex.PRNGKey,
    *,
    bootstrap: Bootstrap = bootstrap,
  ) -> chex.Array:
    v_t = bootstrap(online_params, target_params, seen(batch), key)[:, 0]
    return batch.r_t + batch.discount_t * v_t

  def loss(
    online_params: Params,
    target_params: Params,
    batch: Transition,
    key: chex.PRNGKey,
    *,
    bootstrap: Bootstrap | None = bootstrap,
    step: chex.Numeric | None = None,
  ) -> tuple[chex.Array, Metrics]:
    if bootstrap is None:
      if learning is not None:
        raise ValueError(
          'critics that see next states as they learn have no whole targets'
        )
      y = batch.r_t
    else:
      y = targets(online_params, target_params, batch, key, bootstrap=bootstrap)
    if learning is None:
      q_tm1, added = taken(online_params, batch), None
    else:
      q_tm1, added = learning(online_params, batch, key)
    errors = (y if y.ndim > 1 else y[:, None]) - q_tm1  # [B, K]
    each = jax.vmap(lambda errors: losses.critics_loss(errors, form))(errors)
    if batch.weight is not None:
      each = batch.weight * each
    value = critic_loss = jnp.mean(each)
    if added is not None:
      value += added
    metrics = {
      'critic_loss': critic_loss,
      'q_tm1': jnp.mean(q_tm1, axis=1),
      'td_error_abs': jnp.mean(jnp.abs(errors), axis=1),
    }
    if bootstrap is not None:
      due = functools.partial(
        policy_loss, online_params, batch.obs_tm1, policy_key(key)
      )
      added, more = _every(policy_delay, step, due)
      value += added
      metrics |= more
    return value, metrics | {'loss': value}

  return Agent(
    init=init,
    loss=loss,
    bootstrap=bootstrap,
    targets=targets,
    values=values,
    taken=taken,
    acting=acting,
    twinned=('actor', 'critic'),
    delayed=delayed if policy_delay > 1 else (),
    delay=policy_delay,
  )


def _every(
  delay: int,
  step: chex.Numeric | None,
  due: Callable[[], tuple[chex.Array, Metrics]],
) -> tuple[chex.Array, Metrics]:
  """A loss that counts at every `delay`-th gradient step, and is 0 otherwise.

  Args:
    delay: gradient steps, and the factor of the metrics when the loss is due.
    step: gradient steps taken before this one; None if the loss is always due.
    due: returns the loss and its metrics.
  """
  if step is None or delay == 1:
    return due()

  def often() -> tuple[chex.Array, Metrics]:
    value, metrics = due()
    return value, jax.tree.map(lambda x: delay * x, metrics)

  nothing = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(often)
  )
  return jax.lax.cond((step + 1) % delay == 0, often, lambda: nothing)


# The key of a gradient step is split in two: for targets and for the actor.


def target_key(key: chex.PRNGKey) -> chex.PRNGKey:
  """The key of the actions that targets are made of."""
  return jax.random.split(key)[0]


def policy_key(key: chex.PRNGKey) -> chex.PRNGKey:
  """The key of the actions that the actor learns from."""
  return jax.random.split(key)[1]
