"""The churn of values, as a term of the loss.

Churn is how a gradient step changes the values of states that are not in its
batch. CHAIN (Tang & Berseth 2024) adds a term to the loss that keeps it small:
it compares the network with the one before its last gradient step, on a second
batch. As in their code (bluecontra/CHAIN, minatar/agents/double_dqn_chain.py,
with `reg_his_idx` 2), the term is the mean square of the differences, over the
states of the second batch and all actions, and both batches are drawn
independently and of the same size. It is a mean even where the agent sums its
losses over the batch.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from siamrl.types import Agent, Metrics, Params, TrainState, Transition


def remembering(
  init: Callable[[chex.PRNGKey], TrainState],
) -> Callable[[chex.PRNGKey], TrainState]:
  """`Learner.init` of states that keep the previous parameters."""

  def remembers(key: chex.PRNGKey) -> TrainState:
    state = init(key)
    return state.replace(
      previous_params=jax.tree.map(jnp.copy, state.online_params)
    )

  return remembers


def halves(batch: Transition) -> tuple[Transition, Transition]:
  """A batch of 2 B transitions as two: to learn from, and for reference."""
  size = len(batch.a_tm1) // 2
  return (
    jax.tree.map(lambda leaf: leaf[:size], batch),
    jax.tree.map(lambda leaf: leaf[size:], batch),
  )


def term(
  agent: Agent, online: Params, before: Params, reference: Transition
) -> chex.Array:
  """The mean squared change of the values of a reference batch, [].

  Args:
    agent: its `values` are compared. Of distributions these are the means, and
      of several networks the smallest.
    online: the parameters, to differentiate by.
    before: the parameters before the last gradient step.
    reference: the transitions whose `obs_tm1` are evaluated.
  """
  obs = reference.obs_tm1
  then = jax.lax.stop_gradient(agent.values(before, obs))
  return jnp.mean(jnp.square(agent.values(online, obs) - then))


def loss(
  agent: Agent,
  weight: chex.Numeric,
  before: Params,
  reference: Transition,
) -> Callable[..., tuple[chex.Array, Metrics]]:
  """The agent's loss with the weighted term, reported as `churn_term`."""

  def with_term(
    online: Params, target: Any, batch: Transition, key: chex.PRNGKey, **kwargs
  ) -> tuple[chex.Array, Metrics]:
    value, metrics = agent.loss(online, target, batch, key, **kwargs)
    added = weight * term(agent, online, before, reference)
    value += added
    return value, metrics | {'loss': value, 'churn_term': added}

  return with_term
