"""Sums of an iteration of the compiled loop, and its row of metrics."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from siamrl.runners.scan.config import Setup
from siamrl.runners.scan.state import RunState
from siamrl.runners.sums import Sum
from siamrl.types import Metrics

# Key of a row for `Loop.fault`, not a column: 0 if environments broke no rule.
FAULT = 'environment_fault'
EARLY_CUT, REWARD, OBS, EVALUATION = 1, 2, 3, 4


class Sums(NamedTuple):
  """Sums of an iteration."""

  episodes: jax.Array  # int32 []
  returns: Sum  # float32 []
  lengths: jax.Array  # int32 []
  metrics: Sum  # Metrics, float32 [] each, over gradient steps
  # float32 [N], rounding errors of the running episodes' returns.
  lost: jax.Array
  early_cuts: jax.Array  # int32 [], truncations sooner than declared


def summary(
  setup: Setup, sums: Sums, env_steps: jax.Array, steps: jax.Array
) -> Metrics:
  """Returns the row of an iteration that took `steps` gradient steps."""
  return {
    'train_episodes': sums.episodes,
    'train_return': sums.returns.total / sums.episodes,
    'train_episode_env_steps': sums.lengths / sums.episodes,
    'epsilon': jnp.asarray(setup.epsilon(env_steps), jnp.float32),
  } | {name: total / steps for name, total in sums.metrics.total.items()}


def fault_of(sums: Sums, state: RunState) -> jax.Array:
  """Returns the code of the environments' fault, int32 []; see `FAULT`."""
  finite_rewards = (
    jnp.isfinite(sums.returns.total) & jnp.isfinite(state.returns).all()
  )
  finite_obs = jnp.isfinite(state.obs).all()
  return jnp.select(
    [sums.early_cuts > 0, ~finite_rewards, ~finite_obs],
    [EARLY_CUT, REWARD, OBS],
    0,
  ).astype(jnp.int32)
