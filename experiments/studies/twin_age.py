"""Criteria of the studies of the age of the twin.

The best setting learns better than a period of 4,096 gradient steps, and that
better than a frozen twin; hard and soft rules rank ages alike.
"""

import numpy as np
from scipy import stats

from experiments.studies.claims import (
  Claim,
  ascending,
  exceeds,
  settings_of,
)
from siamrl.report.metrics import Table

COLUMNS = ('train_return',)
SETTINGS = ('target_update', 'target_period', 'tau')


def judge(table: Table) -> list[Claim]:
  """Claims about hard, soft and frozen rules, their periods and rates.

  Raises:
    ValueError: the table lacks a column or a rule.
  """
  settings = settings_of(table, *SETTINGS)
  rules = {
    name: [s for s in settings if s.point['target_update'] == name]
    for name in ('hard', 'soft', 'frozen')
  }
  for name, found in rules.items():
    if not found:
      raise ValueError(f'no run with target_update={name}')
  hard = ascending(rules['hard'], 'target_period')
  soft = ascending(rules['soft'], 'tau')[::-1]
  scores = [[s.height('train_return') for s in rule] for rule in (hard, soft)]
  everything = hard + soft
  best = max(everything, key=lambda s: np.mean(s.height('train_return')))
  named = {k: v for k, v in best.point.items() if v is not None}
  oldest, frozen = scores[0][-1], rules['frozen'][0].height('train_return')
  means = [[np.mean(runs) for runs in rule] for rule in scores]
  ranks = float(stats.spearmanr(*means).statistic)
  period = hard[-1].point['target_period']
  return [
    exceeds(
      f'the best setting ({named}) exceeds hard with period {period}',
      [best.height('train_return')],
      [oldest],
      candidates=len(everything) - 1,
    ),
    exceeds(f'hard with period {period} exceeds frozen', [oldest], [frozen]),
    Claim(
      'rank correlation of hard and soft over ages is at least 0.7',
      ranks >= 0.7,
      f'{ranks:.2f} over {len(hard)} ages',
    ),
  ]
