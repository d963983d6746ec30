"""The first stored value that is not finite, which tells whose fault it is."""

import numpy as np


def first_not_finite(
  obs: np.ndarray, actions: np.ndarray, rewards: np.ndarray, *, whole: bool
) -> str:
  """Names the kind of the first value that is not finite, in order of time.

  An environment given NaN returns NaN, and a learner given NaN acts with NaN:
  the first value tells which one is at fault.

  Args:
    obs: [T, N, ...] observations.
    actions: [T, N, ...] actions taken there.
    rewards: [T, N] rewards that followed.
    whole: whether these are all steps since the first.

  Returns:
    'observation', 'action' or 'reward'; '' if all are finite, or an earlier
    one may be missing.
  """
  found: list[tuple[int, int, str]] = []
  for name, array in (
    ('observation', obs),
    ('action', actions),
    ('reward', rewards),
  ):
    if array.dtype.kind == 'f':
      bad = ~np.isfinite(array.reshape(len(array), -1)).all(1)
      if bad.any():
        found.append((int(bad.argmax()), len(found), name))
  step, _, name = min(found, default=(0, 0, ''))
  # Integer actions are never the cause of an observation that is not finite.
  caused = actions.dtype.kind == 'f' and not whole
  if name == 'observation' and step == 0 and caused:
    return ''
  return name
