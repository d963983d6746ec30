"""CrossQ (Bhatt et al. 2024, arXiv 1902.05605): SAC that needs no twin.

Its networks have batch normalization, and the critics see (s, a) and (s', a')
as one batch, so that targets are normalized like the values that learn from
them. Everything is as in the authors' code, adityab/CrossQ (sbx/sac/sac.py and
sbx/sac/policies.py), except that actor and critics step at once; see
`siamrl.agents.actor_critic`.

Besides the entries of SAC, the parameters have

* `critic_statistics` and `actor_statistics`: the running means and variances.
  They are regressed onto those of each batch: the loss has a term whose value
  is 0 and whose gradient is their difference, so that a step of plain gradient
  descent with step size 1 - momentum makes a running average.
* `steps`: the number of gradient steps so far, float32 []. Its gradient is -1,
  for plain gradient descent with step size 1.

No other gradient reaches them. They need their own optimizer, SGD without
momentum, weight decay or clipping; see `statistics_optimizers`.

The critics have a twin, and so have their statistics, which move by the same
rule: a twin whose statistics stay behind while its weights move is normalized
by those of other weights. With the rule `self`, the twin is the critics
themselves, and this is CrossQ. With any other, the twin sees (s, a) and (s',
a') as one batch, too.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from siamrl.agents import assembling
from siamrl.agents.assembling import TARGET_FORMS, Temperature, acting_by
from siamrl.agents.noise import ActionNoise, mixed_with_random
from siamrl.losses import actor_critic as losses
from siamrl.losses import td
from siamrl.networks.policies import Critic, TanhGaussianActor
from siamrl.networks.renorm import STATISTICS
from siamrl.parameters import FieldError, check_name
from siamrl.twins.trees import stop
from siamrl.types import Agent, Metrics, Params, Transition

MOMENTUM = 0.99  # of the running averages


class Joint(NamedTuple):
  """The part of a batch that the critics see at once.

  Attributes:
    obs_tm1: [B, ...].
    a_tm1: float32 [B, D].
    obs_t: [B, ...].
  """

  obs_tm1: chex.Array
  a_tm1: chex.Array
  obs_t: chex.Array


def _seen(batch: Transition) -> Joint:
  return Joint(batch.obs_tm1, batch.a_tm1, batch.obs_t)


@dataclasses.dataclass(frozen=True, eq=False)
class _CrossQ:
  """The functions of the agent; `make_crossq_agent` describes the fields."""

  actor: TanhGaussianActor
  critic: Critic
  example_obs: chex.Array
  critics: int
  temperature: Temperature
  target_form: str
  policy_delay: int
  renorm_warmup: float

  def init(self, key: chex.PRNGKey) -> Params:
    """Draws networks, with statistics of mean 0 and variance 1."""
    actor_key, critic_key = jax.random.split(key)
    obs = self.example_obs
    action = jnp.zeros((obs.shape[0], self.actor.action_dim))
    actor = self.actor.init(actor_key, obs)
    critic = assembling.first_critics(
      self.critic, critic_key, self.critics, obs, action
    )
    return {
      'actor': {'params': actor['params']},
      'actor_statistics': actor[STATISTICS],
      'critic': {'params': critic['params']},
      'critic_statistics': critic[STATISTICS],
      'steps': jnp.zeros(()),
    }

  def values_of(
    self, params: Params, obs: chex.Array, action: chex.Array
  ) -> chex.Array:
    """Values [B, K], normalized by the running statistics."""

    def one(critic: Params, statistics: Params) -> chex.Array:
      return self.critic.apply({**critic, STATISTICS: statistics}, obs, action)

    return jax.vmap(one, out_axes=1)(
      params['critic'], stop(params['critic_statistics'])
    )

  def joint_values(
    self,
    params: Params,
    seen: Joint,
    action_t: chex.Array,
    steps: chex.Numeric,
  ) -> tuple[chex.Array, chex.Array, Params]:
    """The values of both halves of a batch, normalized by all of it.

    Args:
      params: the critics and their statistics.
      seen: the batch.
      action_t: [B, D] the actions after it.
      steps: gradient steps before this one.

    Returns:
      The values of `a_tm1` and of `action_t`, both [B, K], and the statistics
      of all inputs of the critics.
    """
    obs = jnp.concatenate([seen.obs_tm1, seen.obs_t])
    action = jnp.concatenate([seen.a_tm1, action_t])

    def one(critic: Params, statistics: Params) -> tuple[chex.Array, Params]:
      return self.critic.apply(
        {**critic, STATISTICS: statistics},
        obs,
        action,
        training=True,
        warmed_up=steps >= self.renorm_warmup,
        mutable=[STATISTICS],
      )

    q, state = jax.vmap(one)(
      params['critic'], stop(params['critic_statistics'])
    )
    q_tm1, q_t = jnp.split(q.T, 2)
    return q_tm1, q_t, state[STATISTICS]

  def policy(
    self, params: Params, obs: chex.Array
  ) -> tuple[chex.Array, chex.Array]:
    """Mean and log_std [B, D], normalized by the running statistics."""
    variables = {
      **params['actor'],
      STATISTICS: stop(params['actor_statistics']),
    }
    return self.actor.apply(variables, obs)

  def greedy(self, params: Params, obs: chex.Array) -> chex.Array:
    """The tanh of the mean, actions [B, D]."""
    return jnp.tanh(self.policy(params, obs)[0])

  def act(
    self,
    params: Params,
    obs: chex.Array,
    noise: ActionNoise,
    epsilon: chex.Numeric,
  ) -> chex.Array:
    """Samples actions [B, D]."""
    action, _ = _sample(self.policy(params, obs), noise.normal)
    return mixed_with_random(action, noise, epsilon)

  def next_action(
    self, online_params: Params, obs: chex.Array, key: chex.PRNGKey
  ) -> tuple[chex.Array, chex.Array]:
    """The actions [B, D] that targets are made of, and their densities' logs.

    No gradient reaches the actor.
    """
    noise = self._normal(assembling.target_key(key), obs)
    return _sample(self.policy(stop(online_params), obs), noise)

  def bootstrap(
    self,
    online_params: Params,
    target_params: Params,
    seen: Joint | chex.Array,
    key: chex.PRNGKey,
  ) -> chex.Array:
    """Soft values [B, 1] of the actor's samples.

    Args:
      online_params: the parameters.
      target_params: the twin.
      seen: a batch, whose next states are valued in a pass over both its
        halves; or observations, which are valued by the running statistics.
      key: random key.
    """
    obs = seen.obs_t if isinstance(seen, Joint) else seen
    action, log_prob = self.next_action(online_params, obs, key)
    steps = jax.lax.stop_gradient(online_params['steps'])

    def values(params: Params) -> chex.Array:
      if isinstance(seen, Joint):
        return self.joint_values(params, seen, action, steps)[1]
      return self.values_of(params, seen, action)

    q_t = values(target_params)
    if self.target_form == 'minto':
      q_t = td.smaller_value(q_t, values(stop(online_params)))
    v_t = jax.vmap(losses.soft_value, (0, 0, None))(
      q_t, log_prob, self.temperature.value(online_params)
    )
    return v_t[:, None]

  def learning(
    self, online_params: Params, batch: Transition, key: chex.PRNGKey
  ) -> tuple[chex.Array, chex.Array]:
    """The values [B, K] of the actions taken, and the statistics' term."""
    seen, steps = _seen(batch), online_params['steps']
    action, _ = self.next_action(online_params, seen.obs_t, key)
    q_tm1, _, measured = self.joint_values(
      online_params, seen, action, jax.lax.stop_gradient(steps)
    )
    missed = _toward(online_params['critic_statistics'], measured)
    return q_tm1, missed - (steps - jax.lax.stop_gradient(steps))

  def policy_loss(
    self, online_params: Params, obs: chex.Array, key: chex.PRNGKey
  ) -> tuple[chex.Array, Metrics]:
    """The loss of the actor, its statistics and the temperature.

    The actor is normalized by the batch, the critics are not.
    """
    steps = jax.lax.stop_gradient(online_params['steps'])
    statistics = online_params['actor_statistics']
    policy, state = self.actor.apply(
      {**online_params['actor'], STATISTICS: stop(statistics)},
      obs,
      training=True,
      # The actor has learned once in `policy_delay` gradient steps.
      warmed_up=steps // self.policy_delay >= self.renorm_warmup,
      mutable=[STATISTICS],
    )
    action, log_prob = _sample(policy, self._normal(key, obs))
    q_tm1 = self.values_of(stop(online_params), obs, action)
    value, metrics = self.temperature.policy_loss(
      online_params, q_tm1, log_prob
    )
    return value + _toward(statistics, state[STATISTICS]), metrics

  def _normal(self, key: chex.PRNGKey, obs: chex.Array) -> chex.Array:
    return jax.random.normal(key, (obs.shape[0], self.actor.action_dim))


def _sample(
  policy: tuple[chex.Array, chex.Array], noise: chex.Array
) -> tuple[chex.Array, chex.Array]:
  """Samples actions [B, D], with the logs of their densities [B]."""
  return jax.vmap(losses.tanh_gaussian)(*policy, noise)


def _toward(statistics: Params, measured: Params) -> chex.Array:
  """A term of value 0, whose gradient is what statistics miss."""
  missed = optax.tree.sub(statistics, stop(measured))
  distance = optax.tree.norm(missed, squared=True) / 2
  return distance - jax.lax.stop_gradient(distance)


def make_crossq_agent(
  actor: TanhGaussianActor,
  critic: Critic,
  example_obs: chex.Array,
  *,
  critics: int = 2,
  alpha: chex.Numeric | None = None,
  target_entropy: chex.Numeric | None = None,
  target_form: str = 'min',
  policy_delay: int = 3,
  renorm_warmup: float = 100_000,
  td_loss: str = 'half_squared',
  error_bound: float = 1.0,
) -> Agent:
  """CrossQ (Bhatt et al. 2024); the defaults are those of its code.

  Targets are r_t + discount_t * (min_k Q_k(s', a') - alpha * log pi(a'|s')),
  from the pass over (s, a) and (s', a') in which the critics learn. The actor
  that draws a' is normalized by its running statistics, as is an agent that
  acts, and the critics that the actor climbs are by theirs.

  Args:
    actor: maps [B, ...] to mean and log_std [B, D]; with batch normalization.
    critic: maps [B, ...] and [B, D] to values [B]; with batch normalization.
    example_obs: [B, ...]; only its shape matters.
    critics: as in `make_sac_agent`.
    alpha: as in `make_sac_agent`.
    target_entropy: as in `make_sac_agent`.
    target_form: as in `make_sac_agent`.
    policy_delay: gradient steps of the critics for each one of the actor and
      the temperature.
    renorm_warmup: gradient steps of a network before its training passes are
      corrected toward the running statistics, see `BatchRenorm`. The actor
      takes fewer than the critics.
    td_loss: a key of `losses.td.FORMS`.
    error_bound: bound > 0 at which 'huber' and 'clipped' clip the gradient of
      one TD error.

  Returns:
    An agent with the metrics of SAC. It cannot learn toward whole targets.

  Raises:
    ValueError: as in `make_sac_agent`, or a network has no batch normalization.
  """
  check_name('target_form', target_form, TARGET_FORMS)
  for network in (actor, critic):
    if not network.batch_norm:
      raise FieldError('batch_norm', False, 'must be True for CrossQ')
  assembling.check(
    critics=critics, policy_delay=policy_delay, renorm_warmup=renorm_warmup
  )
  temperature = assembling.temperature_of(actor, alpha, target_entropy)
  functions = _CrossQ(
    actor,
    critic,
    example_obs,
    critics,
    temperature,
    target_form,
    policy_delay,
    renorm_warmup,
  )
  delayed = ('actor', 'actor_statistics')
  agent = assembling.assemble(
    init=functions.init,
    values_of=functions.values_of,
    delayed=(*delayed, 'log_alpha') if temperature.learned else delayed,
    policy_delay=policy_delay,
    td_loss=td_loss,
    error_bound=error_bound,
    acting=acting_by(actor, functions.greedy, functions.act),
    bootstrap=functions.bootstrap,
    policy_loss=functions.policy_loss,
    seen=_seen,
    learning=functions.learning,
  )
  return temperature.reported(agent)._replace(
    twinned=('critic', 'critic_statistics')
  )


def statistics_optimizers(
  momentum: float = MOMENTUM,
) -> Mapping[str, optax.GradientTransformation]:
  """The optimizers of the entries that CrossQ has beside those of SAC.

  Args:
    momentum: weight of the past in the running averages, in [0, 1).
  """
  averaging: Any = optax.sgd(1 - momentum)
  return {
    'actor_statistics': averaging,
    'critic_statistics': averaging,
    'steps': optax.sgd(1.0),
  }
