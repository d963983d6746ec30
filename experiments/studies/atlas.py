"""Criteria of the atlas of rules.

The best rate lies between the fastest and the slowest; copies and averages of
equal age learn alike; no other rule exceeds both; and the ranks of settings
carry over from task to task.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import scipy.stats

from experiments.studies.claims import (
  Claim,
  exceeds,
  exceeds_number,
  no_worse,
  settings_of,
)
from siamrl.report.metrics import RUN_COLUMN, Table

COLUMNS = ('train_return',)
_TASK = 'environment'
_PERIODS = (3, 15, 129, 1_023, 8_193)


def judge(table: Table) -> list[Claim]:
  """Claims about rules and rates over all tasks.

  Scores are mean heights of training curves. In each task 0 is the lowest mean
  of a setting and 1 the highest.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  scores = _scores(table)
  tasks = list(dict.fromkeys(task for task, _ in scores))
  everywhere = [
    setting
    for setting in dict.fromkeys(setting for _, setting in scores)
    if all((task, setting) in scores for task in tasks)
  ]

  def of(setting: tuple) -> list[np.ndarray]:
    return [scores[task, setting] for task in tasks]

  def find(rule: str, **values: object) -> list[tuple]:
    """Settings of a rule by the values that they have, in order."""
    found = [
      setting
      for setting in everywhere
      if dict(setting)['target_update'] == rule
      and all(dict(setting).get(k) == v for k, v in values.items())
    ]
    if not found:
      raise ValueError(f'no run with target_update={rule} in all tasks')
    return found

  def best(settings: list[tuple]) -> tuple:
    return max(settings, key=lambda setting: np.mean(of(setting)))

  copies = [
    find('hard', target_period=period, arm=None)[0] for period in _PERIODS
  ]
  averages = find('soft')  # rates fall as periods grow
  plain = copies + averages
  others = [
    setting
    for setting in everywhere
    if setting not in plain
    and dict(setting)['target_update'] not in ('self', 'frozen')
  ]
  middle = best(copies[1:-1] + averages[1:-1])
  pooled_copies = [part for each in copies for part in of(each)]
  pooled_averages = [part for each in averages for part in of(each)]
  return [
    exceeds(
      f'{_name(middle)}, the best of the middle rates of hard and soft, '
      'exceeds no twin',
      of(middle),
      of(find('self')[0]),
      candidates=6,
    ),
    exceeds(
      f'it exceeds copies every {_PERIODS[-1]:,} gradient steps',
      of(middle),
      of(copies[-1]),
      candidates=6,
    ),
    no_worse(
      'averages are not shown to be worse than copies of their age',
      pooled_averages,
      pooled_copies,
    ),
    no_worse(
      'copies are not shown to be worse than averages of their age',
      pooled_copies,
      pooled_averages,
    ),
    no_worse(
      f'{_name(best(others))}, the best of all other rules, is not shown to '
      f'exceed {_name(best(plain))}, the best of both',
      of(best(plain)),
      of(best(others)),
      candidates=len(others),
    ),
    _carries_over(
      tasks, [[scores[task, s] for s in everywhere] for task in tasks]
    ),
  ]


def _scores(table: Table) -> dict[tuple[str, tuple], np.ndarray]:
  """Scores [runs] by task and setting, from 0 to 1 in each task."""
  if RUN_COLUMN not in table or _TASK not in table:
    raise ValueError(f'no column {RUN_COLUMN!r} or {_TASK!r}')
  names = list(table)[: list(table).index(RUN_COLUMN)]
  heights: dict[str, dict[tuple, np.ndarray]] = {}
  for setting in settings_of(table, *names):
    point = dict(setting.point)
    task = point.pop(_TASK)
    key = tuple(
      (k, v if v == v and v != '' else None) for k, v in point.items()
    )
    heights.setdefault(task, {})[key] = setting.height('train_return')
  found = {}
  for task, of_task in heights.items():
    means = [np.mean(values) for values in of_task.values()]
    low, high = min(means), max(means)
    for key, values in of_task.items():
      found[task, key] = (values - low) / (high - low)
  return found


def _name(setting: tuple) -> str:
  """The values that a setting has, in words."""
  rule, *rest = [
    f'{value:,}' if isinstance(value, int) else str(value)
    for _, value in setting
    if value is not None
  ]
  return ' '.join([rule, *rest])


def _carries_over(
  tasks: Sequence[str], scores: Sequence[Sequence[np.ndarray]]
) -> Claim:
  """The claim that ranks in one task are related to those in another.

  Args:
    tasks: their names.
    scores: [tasks][settings][runs].
  """
  text = (
    "Spearman's correlation of settings between two tasks, averaged over their "
    'pairs, lies above 0'
  )
  if len(scores) < 2:
    return Claim(text, None, 'not known of one task alone')
  runs = np.stack([np.stack(of_task) for of_task in scores])  # [tasks, K, runs]
  pairs = {
    f'{tasks[one]} and {tasks[other]}': [
      scipy.stats.spearmanr(runs[one, :, r], runs[other, :, r]).statistic
      for r in range(runs.shape[-1])
    ]
    for one, other in itertools.combinations(range(len(tasks)), 2)
  }
  claim = exceeds_number(text, np.mean(list(pairs.values()), 0), 0)
  means = {pair: np.mean(of_pair) for pair, of_pair in pairs.items()}
  ends = (
    f'{pick(means.values()):.2f} for {pick(means, key=means.__getitem__)}'
    for pick in (min, max)
  )
  return claim._replace(seen=f'{claim.seen}; {" to ".join(ends)}')
