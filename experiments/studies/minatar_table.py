"""Criteria of the table of agents on MinAtar.

These agents learn more than DQN, at the settings of Obando-Ceron & Castro
(2021).
"""

import numpy as np

from experiments.studies.claims import (
  known,
  Claim,
  exceeds,
  settings_of,
)
from siamrl.report.metrics import Table

COLUMNS = ('train_return',)


def judge(table: Table) -> list[Claim]:
  """Claims that agents exceed DQN over the games.

  Scores are last tenths of training curves, in units of DQN's mean in the same
  game. Of K agents that are compared with DQN, each interval has Bonferroni's
  correction for K.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found = {
    tuple(s.point.values()): s.final('train_return')
    for s in settings_of(table, 'arm', 'game')
  }
  arms = list(dict.fromkeys(arm for arm, _ in found))
  games = list(dict.fromkeys(game for _, game in found))

  def of(arm: str) -> list[np.ndarray]:
    return [
      known(found, arm, game) / np.mean(known(found, 'dqn', game))
      for game in games
    ]

  others = [arm for arm in arms if arm != 'dqn']
  return [
    exceeds(
      f'{arm} exceeds dqn over the games ({np.mean(of(arm)):.3g} against 1)',
      of(arm),
      of('dqn'),
      candidates=len(others),
    )
    for arm in others
  ]
