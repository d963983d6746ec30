"""DDPG, TD3 and SAC, and all agents with an actor and its critics by name.

The parameters are a dict of 'actor', 'critic', whose leaves lead with [K] for
K critics, and 'log_alpha' if SAC learns its temperature. The loss is the sum of
the losses of all entries, each of which sees the other entries behind a
stop-gradient, so one `jax.grad` gives every entry the gradient of its own loss.

Unlike in most code, actor and critics take their gradient steps simultaneously,
so the actor climbs the critics as they were before their step, as in Acme. In
the authors' code of TD3 and in CleanRL the critics go first.

CrossQ has a file of its own, `crossq`.
"""

from collections.abc import Callable
import dataclasses
import functools
import inspect
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from siamrl.agents import assembling
from siamrl.agents.assembling import TARGET_FORMS, Temperature, acting_by
from siamrl.agents.crossq import make_crossq_agent
from siamrl.agents.noise import (
  ActionNoise,
  mixed_with_random,
  ornstein_uhlenbeck,
)
from siamrl.losses import actor_critic as losses
from siamrl.losses import td
from siamrl.networks.policies import (
  Actor,
  Critic,
  DeterministicActor,
  TanhGaussianActor,
)
from siamrl.parameters import FieldError, check_name
from siamrl.twins.trees import stop
from siamrl.types import Agent, Metrics, Params

EXPLORATIONS = ('gaussian', 'ornstein_uhlenbeck')


def make_td3_agent(
  actor: DeterministicActor,
  critic: Critic,
  example_obs: chex.Array,
  *,
  critics: int = 2,
  smoothing_std: chex.Numeric = 0.2,
  smoothing_clip: chex.Numeric = 0.5,
  target_form: str = 'min',
  policy_delay: int = 2,
  exploration: str = 'gaussian',
  exploration_std: chex.Numeric = 0.1,
  exploration_theta: chex.Numeric = 0.15,
  td_loss: str = 'squared',
  error_bound: float = 1.0,
) -> Agent:
  """Twin Delayed DDPG (Fujimoto et al. 2018); the defaults are the paper's.

  Targets are r_t + discount_t * min_k Qbar_k(s', a'), where a' is the action of
  the actor's twin plus clipped noise (eq. 15). The actor climbs the first
  critic.

  Args:
    actor: maps [B, ...] to actions [B, D].
    critic: maps [B, ...] and [B, D] to values [B].
    example_obs: [B, ...]; only its shape matters.
    critics: K, the number of critics, each initialized with its own key.
    smoothing_std: standard deviation of the noise on the target's action; may
      be traced. 0 draws no noise.
    smoothing_clip: bound of that noise; may be traced.
    target_form: 'min', or 'minto' for the smaller value of each critic and its
      twin in place of the twin's (Hendawy et al. 2025).
    policy_delay: d, gradient steps of the critics for each one of the actor.
      (The twins' delay is set by their `ClockedTwin`.)
    exploration: 'gaussian', or 'ornstein_uhlenbeck' for correlated noise.
    exploration_std: standard deviation of the Gaussian noise added to actions
      before they are clipped to [-1, 1], or sigma of 'ornstein_uhlenbeck'; may
      be traced.
    exploration_theta: theta of `ornstein_uhlenbeck`; 'gaussian' ignores it. May
      be traced.
    td_loss: a key of `losses.td.FORMS`.
    error_bound: bound > 0 at which 'huber' and 'clipped' clip the gradient of
      one TD error.

  Returns:
    An agent; `assembling.assemble` lists the metrics of its loss.

  Raises:
    ValueError: a name is unknown, or a number is outside its domain.
  """
  check_name('exploration', exploration, EXPLORATIONS)
  check_name('target_form', target_form, TARGET_FORMS)
  assembling.check(
    critics=critics,
    policy_delay=policy_delay,
    smoothing_std=smoothing_std,
    smoothing_clip=smoothing_clip,
    exploration_std=exploration_std,
    exploration_theta=exploration_theta,
  )
  values_of = functools.partial(_values_of, critic)
  smooths = not (isinstance(smoothing_std, (int, float)) and smoothing_std == 0)

  def greedy(params: Params, obs: chex.Array) -> chex.Array:
    return actor.apply(params['actor'], obs)

  def bootstrap(
    online_params: Params,
    target_params: Params,
    obs: chex.Array,
    key: chex.PRNGKey,
  ) -> chex.Array:
    # If the target is the online network itself, the actor must not learn to
    # reduce the critics' errors.
    action = greedy(stop(target_params), obs)
    if smooths:
      noise = jax.random.normal(assembling.target_key(key), action.shape)
      action = jax.vmap(losses.smoothed_action, (0, 0, None, None))(
        action, noise, smoothing_std, smoothing_clip
      )
    q_t = _target_values(
      critic, online_params, target_params, obs, action, target_form
    )
    return jax.vmap(losses.smallest_value)(q_t)[:, None]

  def policy_loss(
    online_params: Params, obs: chex.Array, key: chex.PRNGKey
  ) -> tuple[chex.Array, Metrics]:
    # Only the first critic is needed.
    first = jax.tree.map(
      lambda leaf: jax.lax.stop_gradient(leaf[:1]), online_params['critic']
    )
    q_tm1 = values_of(first, obs, greedy(online_params, obs))
    loss = jnp.mean(jax.vmap(losses.deterministic_policy_loss)(q_tm1))
    return loss, {'actor_loss': loss}

  def act(
    params: Params, obs: chex.Array, noise: ActionNoise, epsilon: chex.Numeric
  ) -> chex.Array:
    noisy = greedy(params, obs) + exploration_std * noise.normal
    return mixed_with_random(jnp.clip(noisy, -1.0, 1.0), noise, epsilon)

  process = None
  if exploration == 'ornstein_uhlenbeck':
    process = ornstein_uhlenbeck(actor.action_dim, exploration_theta)
  return assembling.assemble(
    init=_init(actor, critic, example_obs, critics),
    values_of=lambda params, *inputs: values_of(params['critic'], *inputs),
    delayed=('actor',),
    policy_delay=policy_delay,
    td_loss=td_loss,
    error_bound=error_bound,
    acting=acting_by(actor, greedy, act, process),
    bootstrap=bootstrap,
    policy_loss=policy_loss,
  )


def make_ddpg_agent(
  actor: DeterministicActor,
  critic: Critic,
  example_obs: chex.Array,
  *,
  target_form: str = 'min',
  policy_delay: int = 1,
  exploration: str = 'ornstein_uhlenbeck',
  exploration_std: chex.Numeric = 0.2,
  exploration_theta: chex.Numeric = 0.15,
  td_loss: str = 'squared',
  error_bound: float = 1.0,
) -> Agent:
  """DDPG (Lillicrap et al. 2016); the defaults are the paper's.

  It is TD3 with one critic, without smoothing and without a delay (CleanRL's
  has one): targets are r_t + discount_t * Qbar(s', pibar(s')). See
  `make_td3_agent` for the arguments.
  """
  return make_td3_agent(
    actor,
    critic,
    example_obs,
    critics=1,
    smoothing_std=0.0,
    target_form=target_form,
    policy_delay=policy_delay,
    exploration=exploration,
    exploration_std=exploration_std,
    exploration_theta=exploration_theta,
    td_loss=td_loss,
    error_bound=error_bound,
  )


@dataclasses.dataclass(frozen=True, eq=False)
class _SoftPolicy:
  """The policy of SAC, with its temperature.

  Attributes:
    actor: maps [B, ...] to mean and log_std [B, D].
    critic: maps [B, ...] and [B, D] to values [B].
    temperature: the temperature of the entropy.
    target_form: one of `TARGET_FORMS`.
  """

  actor: TanhGaussianActor
  critic: Critic
  temperature: Temperature
  target_form: str

  def greedy(self, params: Params, obs: chex.Array) -> chex.Array:
    """The tanh of the mean, actions [B, D]."""
    mean, _ = self.actor.apply(params['actor'], obs)
    return jnp.tanh(mean)

  def act(
    self,
    params: Params,
    obs: chex.Array,
    noise: ActionNoise,
    epsilon: chex.Numeric,
  ) -> chex.Array:
    """Samples actions [B, D]."""
    action, _ = self._sample(params['actor'], obs, noise.normal)
    return mixed_with_random(action, noise, epsilon)

  def bootstrap(
    self,
    online_params: Params,
    target_params: Params,
    obs: chex.Array,
    key: chex.PRNGKey,
  ) -> chex.Array:
    """Soft values [B, 1] of the actor's samples, by the critics' twins."""
    action, log_prob = self._sample(
      stop(online_params['actor']),
      obs,
      self._normal(assembling.target_key(key), obs),
    )
    q_t = _target_values(
      self.critic, online_params, target_params, obs, action, self.target_form
    )
    v_t = jax.vmap(losses.soft_value, (0, 0, None))(
      q_t, log_prob, self.temperature.value(online_params)
    )
    return v_t[:, None]

  def loss(
    self, online_params: Params, obs: chex.Array, key: chex.PRNGKey
  ) -> tuple[chex.Array, Metrics]:
    """The loss of the actor, and of the temperature if it is learned."""
    action, log_prob = self._sample(
      online_params['actor'], obs, self._normal(key, obs)
    )
    q_tm1 = _values_of(self.critic, stop(online_params['critic']), obs, action)
    return self.temperature.policy_loss(online_params, q_tm1, log_prob)

  def _sample(
    self, actor_params: Params, obs: chex.Array, noise: chex.Array
  ) -> tuple[chex.Array, chex.Array]:
    """Samples actions [B, D], with the logs of their densities [B]."""
    mean, log_std = self.actor.apply(actor_params, obs)
    return jax.vmap(losses.tanh_gaussian)(mean, log_std, noise)

  def _normal(self, key: chex.PRNGKey, obs: chex.Array) -> chex.Array:
    return jax.random.normal(key, (obs.shape[0], self.actor.action_dim))


def make_sac_agent(
  actor: TanhGaussianActor,
  critic: Critic,
  example_obs: chex.Array,
  *,
  critics: int = 2,
  alpha: chex.Numeric | None = None,
  target_entropy: chex.Numeric | None = None,
  target_form: str = 'min',
  policy_delay: int = 1,
  td_loss: str = 'half_squared',
  error_bound: float = 1.0,
) -> Agent:
  """Soft Actor-Critic (Haarnoja et al. 2018b); the defaults are the paper's.

  Targets are r_t + discount_t * (min_k Qbar_k(s', a') - alpha * log pi(a'|s')),
  with a' drawn by the actor itself: only the critics have a twin. The agent
  acts by samples, and is evaluated by the tanh of the mean.

  Args:
    actor: maps [B, ...] to mean and log_std [B, D].
    critic: maps [B, ...] and [B, D] to values [B].
    example_obs: [B, ...]; only its shape matters.
    critics: K, the number of critics, each initialized with its own key.
    alpha: the temperature, in units of value; may be traced. None to learn it,
      from 1. (A reward scaled by c with alpha = 1, as in 2018a, is equivalent
      to an unscaled reward with alpha = 1 / c.)
    target_entropy: target entropy of a learned temperature, in nats; may be
      traced. None for -D.
    target_form: 'min' or 'minto', as in `make_td3_agent`.
    policy_delay: gradient steps of the critics for each one of the actor and
      the temperature.
    td_loss: a key of `losses.td.FORMS`.
    error_bound: bound > 0 at which 'huber' and 'clipped' clip the gradient of
      one TD error.

  Returns:
    An agent; `assembling.assemble` lists the metrics of its loss. It also
    reports `entropy`, the mean of -log pi(a|s) in nats, and `alpha`, the
    temperature used in this gradient step.

  Raises:
    ValueError: a name is unknown, a number is outside its domain, or an entropy
      is given for a temperature that is not learned.
  """
  check_name('target_form', target_form, TARGET_FORMS)
  assembling.check(critics=critics, policy_delay=policy_delay)
  temperature = assembling.temperature_of(actor, alpha, target_entropy)
  policy = _SoftPolicy(actor, critic, temperature, target_form)
  agent = assembling.assemble(
    init=_init(actor, critic, example_obs, critics),
    values_of=lambda params, *inputs: _values_of(
      critic, params['critic'], *inputs
    ),
    delayed=('actor', 'log_alpha') if temperature.learned else ('actor',),
    policy_delay=policy_delay,
    td_loss=td_loss,
    error_bound=error_bound,
    acting=acting_by(actor, policy.greedy, policy.act),
    bootstrap=policy.bootstrap,
    policy_loss=policy.loss,
  )
  return temperature.reported(agent)._replace(twinned=('critic',))


def _init(
  actor: Actor, critic: Critic, example_obs: chex.Array, critics: int
) -> Callable[[chex.PRNGKey], Params]:
  """The function that draws an actor and its critics."""

  def init(key: chex.PRNGKey) -> Params:
    actor_key, critic_key = jax.random.split(key)
    action = jnp.zeros((example_obs.shape[0], actor.action_dim))
    return {
      'actor': actor.init(actor_key, example_obs),
      'critic': assembling.first_critics(
        critic, critic_key, critics, example_obs, action
      ),
    }

  return init


def _values_of(
  critic: Critic, params: Params, obs: chex.Array, action: chex.Array
) -> chex.Array:
  """Values [B, K] of all critics, whose leaves lead with [K]."""
  # A vmap compiles one network only, and is as fast as a loop for 2 critics of
  # 2 x 256 units and a batch of 256, inside a scan on a CPU.
  return jax.vmap(critic.apply, (0, None, None), 1)(params, obs, action)


def _target_values(
  critic: Critic,
  online_params: Params,
  target_params: Params,
  obs: chex.Array,
  action: chex.Array,
  target_form: str,
) -> chex.Array:
  """Values [B, K] of the critics' twins, or MINTO's smaller values."""
  q_t = _values_of(critic, target_params['critic'], obs, action)
  if target_form == 'min':
    return q_t
  online = _values_of(critic, stop(online_params['critic']), obs, action)
  return td.smaller_value(q_t, online)


class Algorithm(NamedTuple):
  """An agent as a launcher offers it.

  Attributes:
    make: (actor, critic, example_obs, **options) -> Agent.
    actor: class of the network that acts.
    summary: phrase for a help text.
    batch_norm: the `batch_norm` of its networks.
  """

  make: Callable[..., Agent]
  actor: type[Actor]
  summary: str
  batch_norm: bool = False

  @property
  def takes(self) -> tuple[str, ...]:
    """The names of the agent's options, which all have defaults."""
    arguments = inspect.signature(self.make).parameters.values()
    return tuple(a.name for a in arguments if a.kind is a.KEYWORD_ONLY)


AGENTS: dict[str, Algorithm] = {
  'ddpg': Algorithm(
    make_ddpg_agent, DeterministicActor, 'a deterministic actor and its critic'
  ),
  'td3': Algorithm(
    make_td3_agent,
    DeterministicActor,
    'the smaller of two critics, smoothed targets, and a delayed actor',
  ),
  'sac': Algorithm(
    make_sac_agent,
    TanhGaussianActor,
    'a stochastic actor that is rewarded for its entropy',
  ),
  'crossq': Algorithm(
    make_crossq_agent,
    TanhGaussianActor,
    'sac with batch normalization, made for --target_update=self',
    batch_norm=True,
  ),
}


def make_actor_critic(
  name: str,
  actor: Actor,
  critic: Critic,
  example_obs: chex.Array,
  **options: Any,
) -> Agent:
  """Builds the agent that `AGENTS` holds under `name`.

  Args:
    name: a key of `AGENTS`.
    actor: a network of that agent's class of actors.
    critic: the critics' network.
    example_obs: [B, ...]; only its shape matters.
    **options: keywords of the agent's own builder; None counts as not given.

  Raises:
    ValueError: the name is unknown, the actor has another class, the networks
      have another `batch_norm`, an option is not for this agent, or its builder
      refuses one.
  """
  check_name('agent', name, AGENTS)
  algorithm = AGENTS[name]
  if not isinstance(actor, algorithm.actor):
    raise FieldError(
      'agent',
      name,
      f'needs a {algorithm.actor.__name__}, not a {type(actor).__name__}',
    )
  for network in (actor, critic):
    if network.batch_norm != algorithm.batch_norm:
      raise FieldError(
        'agent',
        name,
        f'needs networks with batch_norm={algorithm.batch_norm}',
      )
  given = {key: value for key, value in options.items() if value is not None}
  for key, value in given.items():
    if key not in algorithm.takes:
      raise FieldError(
        key,
        value,
        'has no meaning for',
        ('agent', name),
        f', which takes {", ".join(algorithm.takes)}',
      )
  return algorithm.make(actor, critic, example_obs, **given)
