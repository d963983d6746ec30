"""What was stored first that is not finite, to tell whose fault it is."""

import numpy as np


def first_not_finite(
  obs: np.ndarray, actions: np.ndarray, rewards: np.ndarray, *, whole: bool
) -> str:
  """Names the first thing that is not finite, in the order of happening.

  An environment that is sent NaN answers with NaN, and a learner that is shown
  NaN acts with NaN: what came first tells them apart.

  Args:
    obs: [T, N, ...] observations acted upon.
    actions: [T, N, ...] taken there.
    rewards: [T, N] that followed.
    whole: whether these are all steps that there were, from the first on.

  Returns:
    'observation', 'action' or 'reward'; '' if all are finite, or the first of
    them may have happened before.
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
