"""Rewards as they are learned from; reported returns are of the raw ones."""

from typing import Any

import chex


def learned(rewards: Any, scale: chex.Numeric, clip: float | None) -> Any:
  """Rewards as they are learned from.

  Args:
    rewards: an array of NumPy's or JAX's.
    scale: they are multiplied by it.
    clip: then they are clipped to [-clip, clip]; None for no clipping.
  """
  rewards = scale * rewards
  return rewards if clip is None else rewards.clip(-clip, clip)
