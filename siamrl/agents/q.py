"""Q-learning agents: DQN and Double DQN as pure functions."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from siamrl.losses import td
from siamrl.types import Agent, Metrics, Params, Transition

REDUCTIONS: dict[str, Callable[[chex.Array], chex.Array]] = {
  'mean': jnp.mean,
  'sum': jnp.sum,
}


def _q_learning_errors(apply, online_params, target_params, batch):
  q_tm1 = apply(online_params, batch.obs_tm1)
  q_t = apply(target_params, batch.obs_t)
  errors = jax.vmap(td.q_learning)(
    q_tm1, batch.a_tm1, batch.r_t, batch.discount_t, q_t
  )
  return errors, q_tm1


def _double_q_learning_errors(apply, online_params, target_params, batch):
  q_tm1 = apply(online_params, batch.obs_tm1)
  q_t_value = apply(target_params, batch.obs_t)
  q_t_selector = apply(online_params, batch.obs_t)
  errors = jax.vmap(td.double_q_learning)(
    q_tm1, batch.a_tm1, batch.r_t, batch.discount_t, q_t_value, q_t_selector
  )
  return errors, q_tm1


# Each: (apply, online_params, target_params, batch) -> (TD errors [B],
# online values [B, A]).
AGENTS: dict[str, Callable[..., tuple[chex.Array, chex.Array]]] = {
  'dqn': _q_learning_errors,
  'double_dqn': _double_q_learning_errors,
}


def exploration_noise(
  key: chex.PRNGKey, batch_size: int
) -> tuple[chex.Array, chex.Array]:
  """What `epsilon_greedy` needs of chance.

  Returns:
    float32 [B] in [0, 1), whether to explore, and uint32 [B] whereto.
  """
  explore_key, action_key = jax.random.split(key)
  return (
    jax.random.uniform(explore_key, (batch_size,)),
    jax.random.bits(action_key, (batch_size,), jnp.uint32),
  )


def epsilon_greedy(
  q_values: chex.Array,
  noise: tuple[chex.Array, chex.Array],
  epsilon: chex.Numeric,
) -> chex.Array:
  """Acts greedily, or with probability epsilon uniformly at random.

  Args:
    q_values: [B, A]; a tie goes to the lowest index.
    noise: of `exploration_noise`.
    epsilon: [] or [B], in [0, 1].

  Returns:
    int32 [B] actions.
  """
  explore, whereto = noise
  # Uniform to within A / 2**32.
  anything = (whereto % q_values.shape[-1]).astype(jnp.int32)
  greedy = jnp.argmax(q_values, axis=-1).astype(jnp.int32)
  return jnp.where(explore < epsilon, anything, greedy)


def make_q_agent(
  network: nn.Module,
  example_obs: chex.Array,
  *,
  name: str = 'dqn',
  td_loss: str = 'huber',
  error_bound: float = 1.0,
  batch_reduction: str = 'mean',
) -> Agent:
  """Builds a Q-learning agent.

  Args:
    network: maps [B, S, ...] observations to [B, A] values.
    example_obs: [B, S, ...], of any content; gives `init` its shapes.
    name: 'dqn' or 'double_dqn', a key of `AGENTS`.
    td_loss: a key of `losses.td.FORMS`.
    error_bound: where the gradient of 'huber' and 'clipped' in one TD error is
      clipped, > 0.
    batch_reduction: 'mean' or 'sum' (Nature DQN's) over the batch.

  Returns:
    An agent whose `loss` reports `loss`, and for each transition [B] the
    `q_tm1` of the action taken and `td_error_abs`. A batch with weights has
    each transition's loss multiplied by its own.

  Raises:
    ValueError: a name is unknown, or the bound is not positive.
  """
  for field, value, allowed in (
    ('agent', name, AGENTS),
    ('td_loss', td_loss, td.FORMS),
    ('batch_reduction', batch_reduction, REDUCTIONS),
  ):
    if value not in allowed:
      raise ValueError(
        f'{field}={value!r} is unknown; choose from {", ".join(allowed)}'
      )
  if not error_bound > 0:
    raise ValueError(f'error_bound={error_bound} must be positive')
  td_errors, form = AGENTS[name], td.FORMS[td_loss]
  reduce = REDUCTIONS[batch_reduction]

  def init(key: chex.PRNGKey) -> Params:
    return network.init(key, example_obs)

  def act(
    params: Params, obs: chex.Array, noise: Any, epsilon: chex.Numeric
  ) -> chex.Array:
    return epsilon_greedy(network.apply(params, obs), noise, epsilon)

  def loss(
    online_params: Params,
    target_params: Params,
    batch: Transition,
    key: chex.PRNGKey,
  ) -> tuple[chex.Array, Metrics]:
    del key
    errors, q_tm1 = td_errors(
      network.apply, online_params, target_params, batch
    )
    losses = jax.vmap(lambda error: form(error, error_bound))(errors)
    if batch.weight is not None:
      losses = batch.weight * losses
    value = reduce(losses)
    return value, {
      'loss': value,
      'q_tm1': jax.vmap(td.value_of)(q_tm1, batch.a_tm1),
      'td_error_abs': jnp.abs(errors),
    }

  return Agent(init, exploration_noise, act, loss)
