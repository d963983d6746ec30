"""Whole targets of a round, which its gradient steps learn toward."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from siamrl.replay.protocol import Relabel
from siamrl.types import TrainState, Transition

# (online_params, target_params, transitions [T, N, ...], ended [T, N], key) ->
# targets [T, N].
Returns = Callable[..., jax.Array]


def make_relabel(returns: Returns, train: TrainState) -> Relabel:
  """Returns the function that replaces rewards by whole targets.

  Args:
    returns: computes the targets.
    train: the learner's state at the end of the round.
  """

  def relabel(steps: Transition, ended: jax.Array) -> Transition:
    key = jax.random.fold_in(train.key, train.gradient_steps)
    targets = returns(
      train.online_params, train.target_params, steps, ended, key
    )
    return steps._replace(r_t=targets, discount_t=jnp.zeros_like(targets))

  return relabel
