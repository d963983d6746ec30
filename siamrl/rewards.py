"""Scaling and clipping of rewards for learning; returns use raw rewards."""

from typing import Any

import chex


def learned(rewards: Any, scale: chex.Numeric, clip: float | None) -> Any:
  """Scales, then clips rewards for learning.

  Args:
    rewards: array of NumPy or JAX.
    scale: factor of the rewards.
    clip: scaled rewards are clipped to [-clip, clip]; None for no clipping.
  """
  rewards = scale * rewards
  return rewards if clip is None else rewards.clip(-clip, clip)
