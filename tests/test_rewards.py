"""Rewards as they are learned from."""

import jax.numpy as jnp
import numpy as np
import pytest

from siamrl import rewards


@pytest.mark.parametrize('kind', [np.asarray, jnp.asarray])
def test_rewards_are_scaled_and_then_clipped(kind):
  raw = kind(np.array([-3, 0.25, 2], np.float32))
  for clip, expected in ((None, [-6, 0.5, 4]), (1.0, [-1, 0.5, 1])):
    found = rewards.learned(raw, 2.0, clip)
    assert isinstance(found, type(raw))
    assert found.dtype == np.float32
    assert found.tolist() == expected
