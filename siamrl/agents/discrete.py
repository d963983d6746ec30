"""The common part of agents of discrete actions.

It has epsilon-greedy actions, and the loss that all of these agents share: an
agent brings its `Parts`, and `make_loss` puts them together.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from siamrl.networks.dense import has_noise
from siamrl.parameters import FieldError, check_name
from siamrl.types import (
  TRANSITION_LOSS,
  Bootstrap,
  Loss,
  Metrics,
  Noise,
  Params,
  Transition,
)

REDUCTIONS: dict[str, Callable[[chex.Array], chex.Array]] = {
  'mean': jnp.mean,
  'sum': jnp.sum,
}
DTYPES = ('float32', 'bfloat16')


# Folded into keys that are used elsewhere, too. Not 0 or 1, whose keys may be
# those of a split.
FRACTIONS, ONLINE, CHOOSER, TWIN, ACTING = 2, 3, 4, 5, 6


def exploration_noise(
  key: chex.PRNGKey, batch_size: int
) -> tuple[chex.Array, chex.Array]:
  """Draws the random numbers of `epsilon_greedy`.

  Returns:
    float32 [B] in [0, 1), which decides whether to explore, and uint32 [B],
    which chooses the random action.
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
    q_values: [B, A]; ties go to the lowest index.
    noise: noise from `exploration_noise`.
    epsilon: [] or [B], in [0, 1].

  Returns:
    int32 [B] actions.
  """
  explore, whereto = noise
  # The modulo is uniform to within A / 2**32.
  anything = (whereto % q_values.shape[-1]).astype(jnp.int32)
  return jnp.where(explore < epsilon, anything, greedy_of(q_values))


class ActingNoise(NamedTuple):
  """The random numbers of one act.

  Attributes:
    exploration: those of `epsilon_greedy`.
    key: draws the noise of a noisy network, the same for all environments;
      None for other networks.
  """

  exploration: tuple[chex.Array, chex.Array]
  key: chex.PRNGKey | None


def make_acting_noise(network: nn.Module) -> Noise:
  """Builds the function that draws the `ActingNoise` of a network."""

  def noise(key: chex.PRNGKey, batch_size: int) -> ActingNoise:
    own = jax.random.fold_in(key, ACTING) if has_noise(network) else None
    return ActingNoise(exploration_noise(key, batch_size), own)

  return noise


def greedy_of(q_values: chex.Array) -> chex.Array:
  """int32 [B] actions of the largest of [B, A] values."""
  return jnp.argmax(q_values, axis=-1).astype(jnp.int32)


def one_by_one(
  loss: Callable[..., chex.Array], *batch: chex.Array
) -> chex.Array:
  """Maps a loss of one transition over a batch, as `jax.vmap` does.

  On a CPU the transitions are taken one after the other, so that the N x M
  errors of one pair of distributions stay in a cache. With those of a whole
  batch of 128 at once, 170 quantiles take six times as long.

  Args:
    loss: takes one entry of each array.
    *batch: arrays [B, ...].

  Returns:
    [B, ...].
  """
  return jax.lax.platform_dependent(
    *batch,
    cpu=lambda *arrays: jax.lax.map(lambda each: loss(*each), arrays),
    default=jax.vmap(loss),
  )


def as_dtype(params: Params, dtype: str) -> Params:
  """The parameters in a type of `DTYPES`."""
  return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def check_learning(
  batch_reduction: str, param_dtype: str, error_bound: float = 1.0
) -> None:
  """Raises ValueError for an unknown name, or a bound that is not positive."""
  check_name('batch_reduction', batch_reduction, REDUCTIONS)
  check_name('param_dtype', param_dtype, DTYPES)
  if not error_bound > 0:
    raise FieldError('error_bound', error_bound, 'must be positive')


class Errors(NamedTuple):
  """How far an agent's estimates are from their targets.

  Attributes:
    loss: [B] loss of each transition, without its weight.
    q_tm1: [B] value of the action taken.
    td_error_abs: [B] absolute difference of this value from the target's.
  """

  loss: chex.Array
  q_tm1: chex.Array
  td_error_abs: chex.Array


class Parts(NamedTuple):
  """The parts of a loss in which agents of discrete actions differ.

  Attributes:
    bootstrap: answers observations, see `Agent`.
    learned: (online_params, target_params, batch, key, bootstrap) -> the
      targets y to learn; they lead with [B].
    given: the batch's `r_t`, whole targets or returns [B] -> y.
    errors: (online_params, batch, y, key) -> `Errors`.
  """

  bootstrap: Bootstrap
  learned: Callable[
    [Params, Any, Transition, chex.PRNGKey, Bootstrap], chex.Array
  ]
  given: Callable[[chex.Array], chex.Array]
  errors: Callable[[Params, Transition, chex.Array, chex.PRNGKey], Errors]


def make_loss(parts: Parts, batch_reduction: str) -> Loss:
  """Builds the loss of an agent.

  Args:
    parts: the parts in which agents differ.
    batch_reduction: a key of `REDUCTIONS`.

  Returns:
    A loss, which reports `loss` [], `q_tm1` [B], `td_error_abs` [B] and
    `transition_loss` [B]. If the batch has weights, they multiply the losses of
    its transitions, but not what `transition_loss` reports.
  """
  reduce = REDUCTIONS[batch_reduction]

  def loss(
    online_params: Params,
    target_params: Any,
    batch: Transition,
    key: chex.PRNGKey,
    *,
    bootstrap: Bootstrap | None = parts.bootstrap,
    step: chex.Numeric | None = None,
  ) -> tuple[chex.Array, Metrics]:
    del step  # nothing is delayed
    if bootstrap is None:
      y = parts.given(batch.r_t)
    else:
      y = parts.learned(online_params, target_params, batch, key, bootstrap)
    plain, q_tm1, td_error_abs = parts.errors(online_params, batch, y, key)
    each = plain if batch.weight is None else batch.weight * plain
    value = reduce(each)
    return value, {
      'loss': value,
      'q_tm1': q_tm1,
      'td_error_abs': td_error_abs,
      TRANSITION_LOSS: plain,
    }

  return loss
