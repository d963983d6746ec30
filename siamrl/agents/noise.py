"""Exploration noise of continuous actions."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from siamrl.types import NoiseProcess


class ActionNoise(NamedTuple):
  """The random numbers of one act in B environments.

  Attributes:
    explore: float32 [B] in [0, 1); an action is random where this is below
      epsilon.
    whereto: float32 [B, D] in [-1, 1), random actions.
    normal: float32 [B, D] noise around the actor's action, standard normal or
      the output of a `NoiseProcess`.
  """

  explore: chex.Array
  whereto: chex.Array
  normal: chex.Array


def action_noise(
  key: chex.PRNGKey, batch_size: int, action_dim: int
) -> ActionNoise:
  """Draws the noise of one act in B environments."""
  explore_key, whereto_key, normal_key = jax.random.split(key, 3)
  shape = (batch_size, action_dim)
  return ActionNoise(
    jax.random.uniform(explore_key, (batch_size,)),
    jax.random.uniform(whereto_key, shape, minval=-1.0, maxval=1.0),
    jax.random.normal(normal_key, shape),
  )


def mixed_with_random(
  action: chex.Array, noise: ActionNoise, epsilon: chex.Numeric
) -> chex.Array:
  """Replaces each action with probability epsilon by a random one.

  Args:
    action: [B, D].
    noise: noise from `action_noise`.
    epsilon: [] or [B], in [0, 1]; 1 during the warm-up of a run.
  """
  explores = noise.explore < epsilon
  return jnp.where(explores[:, None], noise.whereto, action)


def ornstein_uhlenbeck(action_dim: int, theta: chex.Numeric) -> NoiseProcess:
  """Builds correlated noise: x <- x + theta * (0 - x) + eps.

  The agent multiplies it by sigma, which is the same as x <- x - theta * x +
  sigma * eps. In the long run its variance is 1 / (theta * (2 - theta)), and
  its correlation over n steps is (1 - theta)**n; theta = 1 gives white noise.

  DDPG's paper (Lillicrap et al. 2016, section 7) has theta = 0.15 and sigma =
  0.2 and names no time step; here it is 1, as in rlax. OpenAI Baselines and
  Stable-Baselines3 have dt = 0.01, which corresponds to theta * dt and sigma *
  dt**0.5 here: noise of about the same size that lasts a hundred times as long.

  Args:
    action_dim: D.
    theta: rate of decay, in (0, 1]; may be traced.
  """

  def step(memory: chex.Array, noise: ActionNoise) -> tuple[chex.Array, Any]:
    memory = memory - theta * memory + noise.normal
    return memory, noise._replace(normal=memory)

  return NoiseProcess(
    lambda batch_size: jnp.zeros((batch_size, action_dim)), step
  )
