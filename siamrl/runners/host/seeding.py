"""Random streams derived from the seed of a run."""

import numpy as np

# Never reuse a number.
TRAIN_ENVIRONMENTS, EVAL_ENVIRONMENTS, SAMPLING, PANEL = range(4)


def sequence(seed: int, *stream: int) -> np.random.SeedSequence:
  """Returns the seed sequence of one stream of a run."""
  return np.random.SeedSequence(seed, spawn_key=stream)


def environment_seed(seed: int, iteration: int, *, evaluation: bool) -> int:
  """Returns the seed of an iteration's environments, in [0, 2**31).

  Args:
    seed: seed of the run.
    iteration: its number, from 0.
    evaluation: whether the seed is for evaluation rather than training.
  """
  stream = EVAL_ENVIRONMENTS if evaluation else TRAIN_ENVIRONMENTS
  state = sequence(seed, stream, iteration).generate_state(1)
  return int(state[0]) & 0x7FFFFFFF
