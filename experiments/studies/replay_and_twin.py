"""Criteria of the study of replay and the twin.

DQN with both exceeds each agent without replay and is no worse than replay
alone; replay alone exceeds the twin alone; and at a gradient step per env step
the twin adds to replay.
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
  """Claims about replay and the twin over the games.

  Scores are last tenths of training curves, in units of the mean in the same
  game of DQN with both. In Breakout and Space Invaders the order of the claims
  is that of Mnih et al. (2015), extended data table 3.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found = {
    tuple(s.point.values()): s.final('train_return')
    for s in settings_of(table, 'arm', 'target_update', 'game')
  }
  games = list(dict.fromkeys(game for *_, game in found))

  def of(arm: str, rule: str) -> list[np.ndarray]:
    return [
      known(found, arm, rule, game)
      / np.mean(known(found, 'replay', 'hard', game))
      for game in games
    ]

  both, replay = of('replay', 'hard'), of('replay', 'self')
  twin, neither = of('newest', 'hard'), of('newest', 'self')
  return [
    exceeds(
      f'replay and a twin exceed a twin alone ({np.mean(twin):.3g} against 1)',
      both,
      twin,
    ),
    exceeds(f'they exceed neither ({np.mean(neither):.3g})', both, neither),
    no_worse(
      f'they are not shown to be worse than replay alone '
      f'({np.mean(replay):.3g})',
      both,
      replay,
    ),
    exceeds('replay alone exceeds a twin alone', replay, twin),
    exceeds(
      'at a gradient step per env step a twin adds to replay '
      f'({np.mean(of("stressed", "hard")):.3g} against '
      f'{np.mean(of("stressed", "self")):.3g})',
      of('stressed', 'hard'),
      of('stressed', 'self'),
    ),
  ]
