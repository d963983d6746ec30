"""Consistency of the ranks of settings over tasks: the THC score.

The score "tuning hyperparameter consistency" is that of Obando-Ceron, Araujo,
Courville & Castro (2024, arXiv:2406.17523), as their code computes it
(https://github.com/joaogui1/Consistent-Data-Analysis, `utils.py`,
`interval_to_ranking` and `get_thc_metric`). Low scores mean that the best value
of an option is the same in all tasks, so that it transfers.
"""

from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import numpy as np

_Setting = TypeVar('_Setting', bound=Hashable)


def ranks(low: Any, high: Any) -> np.ndarray:
  """Returns the ranks of settings whose intervals may overlap; 1 is the best.

  Settings are ordered by the upper ends of their intervals. A setting has the
  mean of two places in this order: the first whose interval does not lie above
  its own, and the last whose interval does not lie below it.

  Args:
    low: [..., K] lower ends of the intervals of K settings.
    high: [..., K] upper ends.

  Returns:
    [..., K]; settings that cannot be told apart have equal ranks.
  """
  low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
  order = np.argsort(-high, axis=-1, kind='stable')
  below = np.take_along_axis(low, order, -1)[..., None, :]
  first = 1 + np.argmax(below <= high[..., None], axis=-1)
  last = np.sum(high[..., None, :] >= low[..., None], axis=-1)
  return (first + last) / 2


def rank_spreads(scores: Any) -> np.ndarray:
  """Returns how far the rank of each setting differs between tasks.

  In each task, the interval of a setting is the mean of its runs plus and minus
  their standard deviation (that of the runs themselves, not of a sample).

  Args:
    scores: [settings, runs, tasks], of at least two settings.

  Returns:
    [settings] in [0, 1]: the highest rank minus the lowest one over tasks,
    divided by the number of settings minus 1.

  Raises:
    ValueError: if there are not three axes, or fewer than two settings.
  """
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 3 or len(scores) < 2 or not scores.size:
    raise ValueError(
      f'scores {scores.shape} must be [settings, runs, tasks] of at least two '
      'settings'
    )
  center, spread = scores.mean(axis=1), scores.std(axis=1)
  found = ranks((center - spread).T, (center + spread).T)  # [tasks, settings]
  return np.ptp(found, axis=0) / (len(scores) - 1)


def thc(scores: Any) -> float:
  """Returns the THC score of an option: 0 for the same ranks in all tasks.

  Args:
    scores: [settings, runs, tasks], a setting for each value of the option.

  Raises:
    ValueError: as `rank_spreads`.
  """
  return float(rank_spreads(scores).mean())


def spreads_of(
  scores: Mapping[tuple[_Setting, Hashable], Any],
) -> dict[_Setting, float]:
  """Returns the rank spread of each setting of a sweep.

  It says of a setting how far its rank differs between tasks; the mean over
  settings is the THC score of the option, or combination of options, that they
  are the values of.

  Args:
    scores: [runs] by setting and task. Runs without a finite score do not
      count, and of unequal numbers of runs the first ones do.

  Returns:
    The spreads of the settings that have runs of all tasks; none where there
    are fewer than two tasks or two such settings, or a single run of one, which
    does not show what ranks are due to chance.
  """
  known = {
    key: runs[np.isfinite(runs)]
    for key, each in scores.items()
    if np.isfinite(runs := np.asarray(each, np.float64)).any()
  }
  tasks = list(dict.fromkeys(task for _, task in known))
  settings = [
    setting
    for setting in dict.fromkeys(setting for setting, _ in known)
    if all((setting, task) in known for task in tasks)
  ]
  if len(tasks) < 2 or len(settings) < 2:
    return {}
  few = min(len(known[s, t]) for s in settings for t in tasks)
  if few < 2:
    return {}
  found = rank_spreads(
    [
      np.stack([known[setting, task][:few] for task in tasks], axis=1)
      for setting in settings
    ]
  )
  return dict(zip(settings, found.tolist(), strict=True))
