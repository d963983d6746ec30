"""Drift of targets, and their churn by one gradient step."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from siamrl.churn import halves
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
    steps: number of these gradient steps, which may differ between calls.

  Returns:
    [], mean change per gradient step; NaN if there was none.
  """
  gap = jnp.mean(jnp.abs(after - before))
  return jnp.where(steps > 0, gap / jnp.maximum(steps, 1), jnp.nan)


class TDSplit(NamedTuple):
  """The two parts of a TD error.

  Attributes:
    own: [] the TD error with the online network as its own twin.
    twin: [] the part that the twin adds.
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
  The function is for one transition, and assumes the form `max`, whichever form
  is learned.

  Args:
    q_tm1: [] online value of the action taken.
    r_t: [] the reward.
    discount_t: [] discount**n, 0 where the episode terminated.
    q_t: [A] the twin's values of the successor; A = 1 for an actor's action.
    q_t_online: [A] the online network's values of the successor.
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

  The step is discarded afterward. The churn of targets is E|y_after -
  y_before|, as in the code of iS-QL (Vincent et al. 2025). It is 0 if targets
  come from a twin that does not move. If the twin moves with this step, the
  targets change too; a hard copy adds everything learned since the last one, so
  such a step stands out (`churn_synced` of a `Panel`).

  Args:
    learner: takes the step.
    train: state of the learner; not changed.
    batch: batch of training data.
    probe: held-out batch.

  Returns:
    `target_churn_train` on the batch, `target_churn` on the probe, and for an
    agent that acts `policy_churn`, the `disagreement` of its greedy actions on
    the probe's `obs_tm1`.
  """
  agent = learner.agent
  stepped, _ = learner.regress(train, batch)
  if train.previous_params is not None:  # half of it is for reference
    batch, _ = halves(batch)

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
  """The random key of measurements, the same throughout a run."""
  # Gradient steps fold other numbers into the key.
  return jax.random.fold_in(train.key, 2**32 - 1)
