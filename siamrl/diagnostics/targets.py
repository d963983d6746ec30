"""Targets: how they drift, and how a gradient step churns them."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from siamrl.diagnostics.distances import disagreement
from siamrl.learner import Learner
from siamrl.types import Metrics, TrainState, Transition


def target_drift(
  before: chex.Array, after: chex.Array, steps: chex.Numeric = 1
) -> chex.Array:
  """E|y_after - y_before| / steps, of targets on the same batch.

  Args:
    before: [B].
    after: [B], some gradient steps later.
    steps: how many; the distance between two looks is not always the same.

  Returns:
    [], mean change per gradient step; NaN where there was none.
  """
  gap = jnp.mean(jnp.abs(after - before))
  return jnp.where(steps > 0, gap / jnp.maximum(steps, 1), jnp.nan)


class TDSplit(NamedTuple):
  """The two parts of a TD error.

  Attributes:
    own: [] the TD error that the online network has with itself.
    twin: [] what the twin adds.
  """

  own: chex.Array
  twin: chex.Array


def td_split(
  q_tm1: chex.Numeric,
  r_t: chex.Numeric,
  discount_t: chex.Numeric,
  q_t: chex.Array,
  q_t_online: chex.Array,
) -> TDSplit:
  """Splits the TD error with a target network (Piche et al. 2022).

  delta_TN = delta_theta + discount_t * (max_a q_t[a] - max_a q_t_online[a]).
  Written for one transition. It is of the form `max`, whichever form is
  learned.

  Args:
    q_tm1: [] online value of the action taken.
    r_t: [] the reward.
    discount_t: [] discount**n, 0 where the episode terminated.
    q_t: [A] the twin's values of the successor; A = 1 of an actor's action.
    q_t_online: [A] its online values.
  """
  return TDSplit(
    r_t + discount_t * jnp.max(q_t_online) - q_tm1,
    discount_t * (jnp.max(q_t) - jnp.max(q_t_online)),
  )


def churn(
  learner: Learner,
  train: TrainState,
  batch: Transition,
  probe: Transition,
) -> Metrics:
  """The change that one gradient step makes to targets and to actions.

  The step is taken and thrown away. Of targets it is E|y_after - y_before|, as
  the code of iS-QL has it (Vincent et al. 2025). Where targets come from a twin
  that stands still it is 0. A twin that the step moves, by its schedule,
  changes them too: a hard copy by all that was learned since the last one, so
  that a step which meets it stands out (`churn_synced` of a `Panel`).

  Args:
    learner: takes the step.
    train: its state; not changed.
    batch: to learn from.
    probe: held out.

  Returns:
    `target_churn_train` on the batch, `target_churn` on the probe, and of an
    agent that acts `policy_churn`, the `disagreement` of its greedy actions on
    the probe's `obs_tm1`.
  """
  agent = learner.agent
  stepped, _ = learner.regress(train, batch)

  def targets_of(state: TrainState, data: Any) -> chex.Array:
    return agent.targets(
      state.online_params, state.target_params, data, same_key(train)
    )

  metrics = {
    'target_churn_train': target_drift(
      targets_of(train, batch), targets_of(stepped, batch)
    ),
    'target_churn': target_drift(
      targets_of(train, probe), targets_of(stepped, probe)
    ),
  }
  if agent.acting is not None:
    greedy = agent.acting.greedy
    metrics['policy_churn'] = disagreement(
      greedy(train.online_params, probe.obs_tm1),
      greedy(stepped.online_params, probe.obs_tm1),
    )
  return metrics


def same_key(train: TrainState) -> chex.PRNGKey:
  """For whatever needs chance: the same at every look of a run."""
  # The keys of gradient steps are folded with other numbers.
  return jax.random.fold_in(train.key, 2**32 - 1)
