"""Acting, values, and the bias of values in the evaluation of an agent."""

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
  """Jits acting for the evaluation of an agent.

  The function is cached by agent, so that only the first of many evaluations
  compiles it.

  Returns:
    (params, obs, key, step, epsilon) -> actions. `key` is folded with `step`,
    so that no key needs to be carried from action to action.
  """
  acting = acting_of(agent)

  @jax.jit
  def act(params, obs, key, step, epsilon):
    noise = acting.noise(jax.random.fold_in(key, step), len(obs))
    return acting.play(params, obs, noise, epsilon)

  return act


@functools.lru_cache(maxsize=8)
def make_values(agent: Agent) -> Callable[[Params, Any], jax.Array]:
  """Jits an agent's values: (params, obs [N, ...]) -> max_a Q, [N]."""
  return jax.jit(lambda params, obs: jnp.max(agent.values(params, obs), -1))


def overestimation(
  config: LoopConfig, record: evaluation.Record, discount: float
) -> dict[str, float]:
  """Computes the bias of an evaluation's values, `diagnostics.overestimation`.

  Args:
    config: scales and clips rewards, and says whether a lost life ends returns.
    record: record of the evaluation.
    discount: per env step.

  Returns:
    Columns of metrics.csv, the same as in compiled runs.
  """
  terminated = record.terminated
  if config.life_loss_terminates:
    terminated = terminated | record.life_lost
  # Padded, for fewer shapes to compile; steps beyond the end do not count.
  steps = len(record.reward)
  beyond = ((0, (1 << (steps - 1).bit_length()) - steps), (0, 0))
  # Episodes that outlast the recording are cut.
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
