"""Criteria of the study of ranks and dormant units.

Features end with a lower rank where targets are bootstrapped than where they
are Monte-Carlo returns; the fraction of dormant units falls with targets that
stay and rises with targets that are drawn anew.
"""

import numpy as np

from experiments.studies.claims import (
  Claim,
  Setting,
  exceeds,
  exceeds_number,
  last,
  settings_of,
)
from siamrl.report.metrics import Table, by_run

_RANK, _DORMANT = 'panel/srank', 'panel/dormant_0.025'
COLUMNS = (_RANK, _DORMANT)
_ARMS = ('control', 'evaluation', 'returns', 'fixed', 'redrawn')


def judge(table: Table) -> list[Claim]:
  """Claims about the last rank, and about slopes of the dormant fraction.

  The rank is Kumar et al.'s srank with delta = 0.01. The threshold of dormant
  units is Sokar et al.'s 0.025. Slopes are least squares over the whole run,
  per 100,000 gradient steps.

  Raises:
    ValueError: the table lacks a column or an arm.
  """
  found = {s.point['arm']: s for s in settings_of(table, 'arm')}
  for name in _ARMS:
    if name not in found:
      raise ValueError(f'no run of {name}')
  ranks = {name: last(found[name], _RANK) for name in _ARMS}
  slopes = {name: _slopes(found[name]) for name in ('fixed', 'redrawn')}
  return [
    *(
      exceeds(
        f'returns end with more rank than {name} ({ranks["returns"].mean():.3g}'
        f' against {ranks[name].mean():.3g})',
        [ranks['returns']],
        [ranks[name]],
      )
      for name in ('evaluation', 'control')
    ),
    exceeds_number(
      'the fraction of dormant units falls with fixed targets',
      -slopes['fixed'],
      0,
    ),
    exceeds_number(
      'it rises with targets that are drawn anew', slopes['redrawn'], 0
    ),
    exceeds(
      'it rises more than with fixed targets',
      [slopes['redrawn']],
      [slopes['fixed']],
    ),
  ]


def _slopes(setting: Setting) -> np.ndarray:
  """The slope of each run's dormant fraction, [runs]."""
  steps, y = by_run(setting.table, 'gradient_steps', _DORMANT, 'seed')
  x = np.asarray(steps) / 100_000
  x = x - x.mean()
  return (y - y[:, :1]) @ x / (x @ x)  # exactly 0 if it is constant
