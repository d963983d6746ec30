"""Sums of an iteration of the compiled loop, and its row of metrics."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from siamrl.runners.scan.config import Setup
from siamrl.runners.scan.state import RunState
from siamrl.runners.sums import Sum
from siamrl.types import Metrics

# What a row says of the environments, for `Loop.fault`: 0 if nothing is wrong.
# No column of metrics.
FAULT = 'environment_fault'
EARLY_CUT, REWARD, OBS, EVALUATION = 1, 2, 3, 4


class Sums(NamedTuple):
  """What an iteration adds up."""

  episodes: jax.Array  # int32 []
  returns: Sum  # float32 []
  lengths: jax.Array  # int32 []
  metrics: Sum  # Metrics, float32 [] each, over gradient steps
  # float32 [N], what rounding has taken from the running episodes' returns.
  lost: jax.Array
  early_cuts: jax.Array  # int32 [], truncations sooner than is declared


def summary(
  setup: Setup, sums: Sums, env_steps: jax.Array, steps: jax.Array
) -> Metrics:
  """The row of an iteration that took `steps` gradient steps."""
  return {
    'train_episodes': sums.episodes,
    'train_return': sums.returns.total / sums.episodes,
    'train_episode_env_steps': sums.lengths / sums.episodes,
    'epsilon': jnp.asarray(setup.epsilon(env_steps), jnp.float32),
  } | {name: total / steps for name, total in sums.metrics.total.items()}


def fault_of(sums: Sums, state: RunState) -> jax.Array:
  """What the environments did wrong in an iteration, int32 []; see `FAULT`."""
  finite_rewards = (
    jnp.isfinite(sums.returns.total) & jnp.isfinite(state.returns).all()
  )
  finite_obs = jnp.isfinite(state.obs).all()
  return jnp.select(
    [sums.early_cuts > 0, ~finite_rewards, ~finite_obs],
    [EARLY_CUT, REWARD, OBS],
    0,
  ).astype(jnp.int32)
