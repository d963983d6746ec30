"""Criteria of the study of twins under distributions.

The gap between DQN with its twin and without is wider than those of C51 and
QR-DQN; MINTO and other twins are no worse than hard.
"""

import numpy as np

from experiments.studies.claims import (
  Claim,
  exceeds,
  known,
  no_worse,
  settings_of,
)
from siamrl.report.metrics import Table

COLUMNS = ('train_return',)


def judge(table: Table) -> list[Claim]:
  """Claims about twins under DQN and under agents of distributions.

  Scores are mean heights of training curves, in units of the same agent's mean
  with copies in the same game.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found: dict[tuple, np.ndarray] = {}
  for setting in settings_of(
    table, 'arm', 'game', 'target_update', 'target_form'
  ):
    arm, game, rule, form = setting.point.values()
    key = arm, game, form or rule
    found[key] = setting.height('train_return')
  arms = list(dict.fromkeys(arm for arm, _, _ in found))
  games = list(dict.fromkeys(game for _, game, _ in found))

  def of(arm: str, twin: str) -> list[np.ndarray]:
    return [
      known(found, arm, game, twin) / np.mean(known(found, arm, game, 'hard'))
      for game in games
    ]

  gaps = {
    arm: [
      with_twin - without
      for with_twin, without in zip(
        of(arm, 'hard'), of(arm, 'self'), strict=True
      )
    ]
    for arm in arms
  }
  means = {arm: float(np.mean(gaps[arm])) for arm in arms}
  pooled = {
    twin: [runs for arm in arms for runs in of(arm, twin)]
    for twin in ('hard', 'soft', 'hard_geometric')
  }
  return [
    exceeds(
      f'a copy every 1,000 gradient steps adds to dqn ({means["dqn"]:.3g})',
      of('dqn', 'hard'),
      of('dqn', 'self'),
    ),
    *(
      exceeds(
        f'it adds more to dqn than to {arm} ({means[arm]:.3g})',
        gaps['dqn'],
        gaps[arm],
      )
      for arm in arms
      if arm != 'dqn'
    ),
    *(
      no_worse(
        f'{arm}: MINTO is not shown to be worse than copies alone '
        f'({np.mean(of(arm, "minto")):.3g} against 1)',
        of(arm, 'minto'),
        of(arm, 'hard'),
      )
      for arm in arms
    ),
    *(
      no_worse(
        f'{twin} is not shown to be worse than hard over all agents '
        f'({np.mean(pooled[twin]):.3g} against 1)',
        pooled[twin],
        pooled['hard'],
      )
      for twin in ('soft', 'hard_geometric')
    ),
  ]
