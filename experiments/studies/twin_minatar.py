"""Criteria of the study of the twin of DQN on MinAtar.

The DQN of the MinAtar paper learns more with its twin than without, in each
game. After Mnih et al. (2015), Extended Data Table 3.
"""

import numpy as np

from experiments.studies.claims import (
  Claim,
  ascending,
  exceeds,
  settings_of,
)
from siamrl.report.metrics import Table

COLUMNS = ('train_return',)
SETTINGS = ('game', 'target_period')


def judge(table: Table) -> list[Claim]:
  """Claims about the period of a copy, 1 and others, on several games.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found = {
    tuple(s.point.values()): s.height('train_return')
    for s in ascending(settings_of(table, *SETTINGS), 'target_period')
  }
  claims = []
  for game in dict.fromkeys(game for game, _ in found):
    periods = [period for of, period in found if of == game]
    if len(periods) < 2 or periods[0] != 1:
      raise ValueError(f'{game} needs --target_period=1 and another one')
    without, *twins = (found[game, period] for period in periods)
    claims += [
      exceeds(
        f'{game}: a copy every {period} gradient steps exceeds none '
        f'({np.mean(twin):.3g} against {np.mean(without):.3g})',
        [twin],
        [without],
      )
      for period, twin in zip(periods[1:], twins, strict=True)
    ]
  return claims
