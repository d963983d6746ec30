"""Random transitions of vector observations."""

import numpy as np

from siamrl.types import Transition


B, A, D = 6, 3, 4  # transitions, actions, numbers of an observation


def batch(seed=0, size=B):
  """A batch of random transitions, some of which end an episode."""
  rng = np.random.default_rng(seed)
  obs = lambda: rng.normal(size=(size, 1, D)).astype(np.float32)
  return Transition(
    obs(),
    rng.integers(A, size=size).astype(np.int32),
    rng.normal(size=size).astype(np.float32),
    (0.9 * rng.integers(2, size=size)).astype(np.float32),
    obs(),
  )
