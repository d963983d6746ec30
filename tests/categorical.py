"""A small agent of distributions, whose bootstrap answers no values."""

import jax
import jax.numpy as jnp
import numpy as np

from siamrl.agents.discrete import epsilon_greedy, exploration_noise
from siamrl.losses import td
from siamrl.types import Acting, Agent


def make_categorical_agent(
  obs_size: int,
  num_actions: int,
  atoms: tuple[float, ...] = (0.0, 1.0, 2.0),
) -> Agent:
  """C51 (Bellemare et al. 2017) of a few atoms, by a network of two matrices.

  Args:
    obs_size: D of observations [B, D].
    num_actions: A.
    atoms: Z returns at one distance from each other, ascending.

  Returns:
    An agent whose `bootstrap` answers {'probs': [B, A, Z]}.
  """
  support = np.float32(atoms)

  def init(key):
    shape = (obs_size, num_actions, len(atoms))
    return {
      'torso': jnp.eye(obs_size),
      'last': 0.1 * jax.random.normal(key, shape),
    }

  def logits(params, obs):
    return jnp.einsum('bd,de,eaz->baz', obs, params['torso'], params['last'])

  def answer(params, obs):
    return {'probs': jax.nn.softmax(logits(params, obs))}

  def bootstrap(online_params, target_params, obs, key):
    return answer(target_params, obs)

  def expected(answer):
    return answer['probs'] @ support

  def values(params, obs):
    return expected(answer(params, obs))

  def taken(params, batch):
    return jax.vmap(td.value_of)(values(params, batch.obs_tm1), batch.a_tm1)

  def targets(online_params, target_params, batch, key, *, bootstrap=bootstrap):
    made_of = bootstrap(online_params, target_params, batch.obs_t, key)
    return batch.r_t + batch.discount_t * jnp.max(expected(made_of), -1)

  def projected(returns, chances):
    """Chances [Z] of the atoms nearest to some returns."""
    distance = jnp.abs(
      jnp.clip(returns, support[0], support[-1]) - support[:, None]
    )
    near = jnp.clip(1 - distance / (support[1] - support[0]), 0, 1)
    return near @ chances

  def target(r_t, discount_t, probs):
    best = probs[jnp.argmax(probs @ support)]
    return projected(r_t + discount_t * support, best)

  def loss(online_params, target_params, batch, key, *, bootstrap=bootstrap):
    if bootstrap is None:
      y = jax.vmap(lambda r_t: projected(r_t[None], jnp.ones(1)))(batch.r_t)
    else:
      made_of = bootstrap(online_params, target_params, batch.obs_t, key)
      y = jax.vmap(target)(batch.r_t, batch.discount_t, made_of['probs'])
    log_probs = jax.nn.log_softmax(logits(online_params, batch.obs_tm1))
    log_probs = jax.vmap(lambda each, a: each[a])(log_probs, batch.a_tm1)
    value = -jnp.mean(jnp.sum(y * log_probs, -1))
    q_tm1 = taken(online_params, batch)
    return value, {
      'loss': value,
      'q_tm1': q_tm1,
      'td_error_abs': jnp.abs(y @ support - q_tm1),
    }

  def greedy(params, obs):
    return jnp.argmax(values(params, obs), -1).astype(jnp.int32)

  def act(params, obs, noise, epsilon):
    return epsilon_greedy(values(params, obs), noise, epsilon)

  return Agent(
    init=init,
    loss=loss,
    bootstrap=bootstrap,
    targets=targets,
    values=values,
    expected=expected,
    taken=taken,
    acting=Acting(exploration_noise, act, greedy, play=act),
  )
