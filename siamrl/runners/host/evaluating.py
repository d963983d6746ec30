"""Acting and values where an agent is evaluated, and how far values are off."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from siamrl import diagnostics, rewards
from siamrl.runners import evaluation
from siamrl.runners.host.config import LoopConfig
from siamrl.types import Agent, Params, acting_of


@functools.lru_cache(maxsize=8)
def make_act(agent: Agent) -> Callable[..., jax.Array]:
  """Jits acting where an agent is evaluated.

  The same agent gets the same function, so that only the first of many
  evaluations compiles it.

  Returns:
    (params, obs, key, step, epsilon) -> actions. `key` is folded with `step`,
    so that a run needs no key of its own to be carried from action to action.
  """
  acting = acting_of(agent)

  @jax.jit
  def act(params, obs, key, step, epsilon):
    noise = acting.noise(jax.random.fold_in(key, step), len(obs))
    return acting.play(params, obs, noise, epsilon)

  return act


@functools.lru_cache(maxsize=8)
def make_values(agent: Agent) -> Callable[[Params, Any], jax.Array]:
  """Jits what an agent expects: (params, obs [N, ...]) -> max_a Q, [N]."""
  return jax.jit(lambda params, obs: jnp.max(agent.values(params, obs), -1))


def overestimation(
  config: LoopConfig, record: evaluation.Record, discount: float
) -> dict[str, float]:
  """How far values are off in an evaluation; see `diagnostics.overestimation`.

  Args:
    config: how rewards are learned from, and whether a lost life ends a return.
    record: of the evaluation.
    discount: per env step.

  Returns:
    Columns of metrics.csv, as compiled runs have them.
  """
  terminated = record.terminated
  if config.life_loss_terminates:
    terminated = terminated | record.life_lost
  # Few shapes to compile: what is beyond the end is not counted.
  steps = len(record.reward)
  beyond = ((0, (1 << (steps - 1).bit_length()) - steps), (0, 0))
  # What the recording does not see the end of is cut.
  truncated = record.truncated.copy()
  truncated[-1] |= ~terminated[-1]
  learned = rewards.learned(
    record.reward, config.reward_scale, config.reward_clip
  )
  known = diagnostics.monte_carlo(
    np.pad(learned, beyond),
    np.pad(terminated, beyond),
    np.pad(truncated, beyond),
    discount,
  )
  bias = diagnostics.overestimation(
    np.pad(record.values, beyond),
    *known,
    counted=np.pad(record.counted, beyond),
  )
  return {f'panel/{name}': float(value) for name, value in bias.items()}
