"""Rules that change how the agent uses its twin."""

import chex
import jax
import jax.numpy as jnp

from siamrl.parameters import FieldError
from siamrl.twins.lifting import itself, nothing, stays, viewing, with_term
from siamrl.twins.moving import hard
from siamrl.twins.trees import part, stop
from siamrl.types import Agent, Params, Twin


def self_copy() -> Twin:
  """The twin is the online network behind a stop-gradient (target-free).

  This is the rule of SimSiam (Chen & He 2021) and target-free Q-learning.
  Nothing is stored. It equals `hard()` at every gradient step: the sync that
  ends one step precedes the next.
  """
  return Twin(
    stays,
    nothing,
    params=itself,
    lift=lambda agent: viewing(
      agent, lambda online, target: stop(part(agent, online))
    ),
  )


def residual() -> Twin:
  """The twin is the online network, and gradients flow through it.

  This is the residual gradient of Baird (1995); in representation learning it
  leads to collapse. With one sampled successor it minimizes the squared TD
  error, which is biased if successors are random.
  """
  return Twin(
    stays,
    nothing,
    params=itself,
    lift=lambda agent: viewing(
      agent, lambda online, target: part(agent, online)
    ),
  )


def functional(twin_weight: chex.Numeric) -> Twin:
  """Values are tied to the twin's, and targets are the network's own.

  The loss is loss(r + discount * v_online(s') - q(s, a)) + weight *
  loss(q_twin(s, a) - q(s, a)), with the same function of the error in both
  terms, on the batch's states and actions (Piche et al. 2022; their code,
  fr_dqn_atari_jax.py, has weight 1). Each of several networks is tied to its
  own twin. Agents of distributions are tied to the twin's distributions rather
  than its values. With weight 0 it is `self_copy`.

  Args:
    twin_weight: weight of the second term, >= 0.

  Returns:
    A rule whose `lift` raises ValueError for an agent without values of actions
    taken.
  """

  def lift(agent: Agent) -> Agent:
    if agent.taken is None:
      raise FieldError(
        'target_update', 'functional', 'needs an agent with values of actions'
      )
    taken, free = agent.taken, self_copy().lift(agent)
    if agent.distributions is not None:
      taken = agent.distributions.taken

    def term(online, target, batch, key):
      tied = batch._replace(
        r_t=taken(target, batch),
        discount_t=jnp.zeros_like(batch.discount_t),
      )
      value, _ = agent.loss(online, target, tied, key, bootstrap=None)
      return twin_weight * value

    return with_term(free, term)

  return hard()._replace(lift=lift)


def proximal(twin_weight: chex.Numeric) -> Twin:
  """The online network is pulled toward its twin at every gradient step.

  online <- (1 - weight) * online + weight * target, followed by the optimizer's
  step, which does not see the pull: DQN Pro as in its code (Asadi et al. 2022;
  amazon-science/fast-rl-with-slow-updates). For plain gradient descent it is
  the proximal term ||online - target||**2 / (2 c) of the paper, with weight =
  step size / c. With weight 0 it is `hard`.

  Args:
    twin_weight: weight of the twin, in [0, 1).
  """

  def pull(online: Params, target: Params) -> Params:
    return jax.tree.map(
      lambda o, t: (o + twin_weight * (t - o)).astype(o.dtype), online, target
    )

  return hard()._replace(pull=pull)
