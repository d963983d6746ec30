"""DDPG, TD3 and SAC: an actor and its critics as pure functions.

The parameters are a dict of 'actor', 'critic', whose leaves lead with [K] for
K critics, and 'log_alpha' if SAC learns its temperature. The loss is the sum of
the losses of all entries, each of which sees the other entries behind a
stop-gradient, so one `jax.grad` gives every entry the gradient of its own loss.

Unlike in most code, actor and critics take their gradient steps simultaneously,
so the actor climbs the critics as they were before their step, as in Acme. In
the authors' code of TD3 and in CleanRL the critics go first.
"""

from collections.abc import Callable
import dataclasses
import functools
import inspect
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from siamrl import parameters
from siamrl.agents.noise import (
  ActionNoise,
  action_noise,
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
from siamrl.parameters import Domain, FieldError, check_name
from siamrl.types import (
  Act,
  Acting,
  Agent,
  Bootstrap,
  Greedy,
  Metrics,
  NoiseProcess,
  Params,
  Transition,
)

EXPLORATIONS = ('gaussian', 'ornstein_uhlenbeck')
# The smallest value of the critics' twins, or of the critics and their twins.
TARGET_FORMS = ('min', 'minto')


# The domains of the agents' parameters. All may be traced but the first two,
# which shape arrays and programs.
PARAMETERS: dict[str, Domain] = {
  'critics': parameters.WHOLE,
  'policy_delay': parameters.WHOLE,
  'exploration_std': parameters.NOT_NEGATIVE,
  'exploration_theta': parameters.RATE,
  'smoothing_std': parameters.NOT_NEGATIVE,
  'smoothing_clip': parameters.NOT_NEGATIVE,
  'alpha': parameters.NOT_NEGATIVE,
  'target_entropy': Domain(math.isfinite, 'finite'),
}


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
    An agent; `_assemble` lists the metrics of its loss.

  Raises:
    ValueError: a name is unknown, or a number is outside its domain.
  """
  check_name('exploration', exploration, EXPLORATIONS)
  check_name('target_form', target_form, TARGET_FORMS)
  _check(
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
    action = greedy(_stop(target_params), obs)
    if smooths:
      noise = jax.random.normal(_target_key(key), action.shape)
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
  return _assemble(
    actor,
    critic,
    example_obs,
    critics=critics,
    delayed=('actor',),
    policy_delay=policy_delay,
    td_loss=td_loss,
    error_bound=error_bound,
    acting=_acting(actor, greedy, act, process),
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
    alpha: the temperature; None if it is learned.
    target_entropy: target entropy of a learned temperature, in nats.
    target_form: one of `TARGET_FORMS`.
  """

  actor: TanhGaussianActor
  critic: Critic
  alpha: chex.Numeric | None
  target_entropy: chex.Numeric
  target_form: str

  def temperature(self, params: Params) -> chex.Numeric:
    """The temperature without a gradient, for the losses of other entries."""
    if self.alpha is not None:
      return self.alpha
    return jnp.exp(jax.lax.stop_gradient(params['log_alpha']))

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
      _stop(online_params['actor']), obs, self._normal(_target_key(key), obs)
    )
    q_t = _target_values(
      self.critic, online_params, target_params, obs, action, self.target_form
    )
    v_t = jax.vmap(losses.soft_value, (0, 0, None))(
      q_t, log_prob, self.temperature(online_params)
    )
    return v_t[:, None]

  def loss(
    self, online_params: Params, obs: chex.Array, key: chex.PRNGKey
  ) -> tuple[chex.Array, Metrics]:
    """The loss of the actor, and of the temperature if it is learned."""
    action, log_prob = self._sample(
      online_params['actor'], obs, self._normal(key, obs)
    )
    q_tm1 = _values_of(self.critic, _stop(online_params['critic']), obs, action)
    loss = actor_loss = jnp.mean(
      jax.vmap(losses.soft_policy_loss, (0, 0, None))(
        q_tm1, log_prob, self.temperature(online_params)
      )
    )
    if self.alpha is None:
      loss += jnp.mean(
        jax.vmap(losses.temperature_loss, (None, 0, None))(
          online_params['log_alpha'],
          jax.lax.stop_gradient(log_prob),
          self.target_entropy,
        )
      )
    return loss, {'actor_loss': actor_loss, 'entropy': -jnp.mean(log_prob)}

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
    An agent; `_assemble` lists the metrics of its loss. It also reports
    `entropy`, the mean of -log pi(a|s) in nats, and `alpha`, the temperature
    used in this gradient step.

  Raises:
    ValueError: a name is unknown, a number is outside its domain, or an entropy
      is given for a temperature that is not learned.
  """
  check_name('target_form', target_form, TARGET_FORMS)
  learned = alpha is None
  if not learned and target_entropy is not None:
    raise FieldError(
      'target_entropy',
      target_entropy,
      'has no meaning for',
      ('alpha', alpha),
      ', which is not learned',
    )
  if target_entropy is None:
    target_entropy = -float(actor.action_dim)
  _check(
    critics=critics,
    policy_delay=policy_delay,
    alpha=alpha,
    target_entropy=target_entropy,
  )
  policy = _SoftPolicy(actor, critic, alpha, target_entropy, target_form)
  agent = _assemble(
    actor,
    critic,
    example_obs,
    critics=critics,
    delayed=('actor', 'log_alpha') if learned else ('actor',),
    policy_delay=policy_delay,
    td_loss=td_loss,
    error_bound=error_bound,
    acting=_acting(actor, policy.greedy, policy.act),
    bootstrap=policy.bootstrap,
    policy_loss=policy.loss,
  )

  def init(key: chex.PRNGKey) -> Params:
    params = agent.init(key)
    return params | {'log_alpha': jnp.zeros(())} if learned else params

  def loss(online_params: Params, *args, **kwargs):
    value, metrics = agent.loss(online_params, *args, **kwargs)
    now = jnp.asarray(policy.temperature(online_params), jnp.float32)
    return value, metrics | {'alpha': now}

  return agent._replace(init=init, loss=loss, twinned=('critic',))


def _acting(
  actor: Actor, greedy: Greedy, act: Act, process: NoiseProcess | None = None
) -> Acting:
  """Acting with an agent's noise; evaluations use its greedy actions."""

  def play(
    params: Params, obs: chex.Array, noise: ActionNoise, epsilon: chex.Numeric
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


def _assemble(
  actor: Actor,
  critic: Critic,
  example_obs: chex.Array,
  *,
  critics: int,
  delayed: tuple[str, ...],
  policy_delay: int,
  td_loss: str,
  error_bound: float,
  acting: Acting,
  bootstrap: Bootstrap,
  policy_loss: Callable[..., tuple[chex.Array, Metrics]],
) -> Agent:
  """Assembles an agent from its parts.

  Args:
    actor: the actor's network.
    critic: the critics' network.
    example_obs: [B, ...].
    critics: K.
    delayed: entries of the parameters that are learned at every
      `policy_delay`-th gradient step only.
    policy_delay: d, in gradient steps.
    td_loss: a key of `losses.td.FORMS`.
    error_bound: bound for 'huber' and 'clipped'.
    acting: the agent's acting functions; see `_acting`.
    bootstrap: the agent's bootstrap. Its gradients must not reach the `delayed`
      entries.
    policy_loss: (online_params, obs, key) -> the loss of only the `delayed`
      entries, and metrics [].

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
  values_of = functools.partial(_values_of, critic)

  def init(key: chex.PRNGKey) -> Params:
    actor_key, critic_key = jax.random.split(key)
    action = jnp.zeros((example_obs.shape[0], actor.action_dim))
    born = jax.vmap(lambda key: critic.init(key, example_obs, action))
    return {
      'actor': actor.init(actor_key, example_obs),
      'critic': born(jax.random.split(critic_key, critics)),
    }

  def values(params: Params, obs: chex.Array) -> chex.Array:
    q_values = values_of(params['critic'], obs, acting.greedy(params, obs))
    return jax.vmap(losses.smallest_value)(q_values)[:, None]

  def taken(params: Params, batch: Transition) -> chex.Array:
    return values_of(params['critic'], batch.obs_tm1, batch.a_tm1)

  def targets(
    online_params: Params,
    target_params: Params,
    batch: Transition,
    key: chex.PRNGKey,
    *,
    bootstrap: Bootstrap = bootstrap,
  ) -> chex.Array:
    v_t = bootstrap(online_params, target_params, batch.obs_t, key)[:, 0]
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
      y = batch.r_t
    else:
      y = targets(online_params, target_params, batch, key, bootstrap=bootstrap)
    q_tm1 = values_of(online_params['critic'], batch.obs_tm1, batch.a_tm1)
    errors = (y if y.ndim > 1 else y[:, None]) - q_tm1  # [B, K]
    each = jax.vmap(lambda errors: losses.critics_loss(errors, form))(errors)
    if batch.weight is not None:
      each = batch.weight * each
    value = critic_loss = jnp.mean(each)
    metrics = {
      'critic_loss': critic_loss,
      'q_tm1': jnp.mean(q_tm1, axis=1),
      'td_error_abs': jnp.mean(jnp.abs(errors), axis=1),
    }
    if bootstrap is not None:
      due = functools.partial(
        policy_loss, online_params, batch.obs_tm1, _policy_key(key)
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
  online = _values_of(critic, _stop(online_params['critic']), obs, action)
  return td.smaller_value(q_t, online)


# The key of a gradient step is split in two: for targets and for the actor.


def _target_key(key: chex.PRNGKey) -> chex.PRNGKey:
  return jax.random.split(key)[0]


def _policy_key(key: chex.PRNGKey) -> chex.PRNGKey:
  return jax.random.split(key)[1]


def _stop(params: Params) -> Params:
  return jax.tree.map(jax.lax.stop_gradient, params)


def _check(**given: chex.Numeric | None) -> None:
  """Raises ValueError if a number is outside its domain."""
  for name, value in given.items():
    if value is None or isinstance(value, jax.core.Tracer):
      continue
    if not PARAMETERS[name].holds(value):
      raise FieldError(name, value, f'must be {PARAMETERS[name].text}')


class Algorithm(NamedTuple):
  """An agent as a launcher offers it.

  Attributes:
    make: (actor, critic, example_obs, **options) -> Agent.
    actor: class of the network that acts.
    summary: phrase for a help text.
  """

  make: Callable[..., Agent]
  actor: type[Actor]
  summary: str

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
    ValueError: the name is unknown, the actor has another class, an option is
      not for this agent, or its builder refuses one.
  """
  check_name('agent', name, AGENTS)
  algorithm = AGENTS[name]
  if not isinstance(actor, algorithm.actor):
    raise FieldError(
      'agent',
      name,
      f'needs a {algorithm.actor.__name__}, not a {type(actor).__name__}',
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
