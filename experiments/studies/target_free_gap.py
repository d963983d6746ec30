"""Criteria of the study of layer normalization in place of a twin.

A twin adds more to the return without layer normalization than with it; a twin
of the last layer alone is no worse than none. After Gallici et al. (2025) and
Vincent et al. (2025).
"""

import numpy as np

from experiments.studies.claims import (
  Claim,
  exceeds,
  no_worse,
  settings_of,
)
from siamrl.report.metrics import Table

COLUMNS = ('train_return',)
SETTINGS = ('game', 'target_update', 'layer_norm')


def judge(table: Table) -> list[Claim]:
  """Claims about rules and layer normalization on several games.

  Scores are mean heights of training curves, in units of the score with a twin
  and without normalization, game by game.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found = {
    tuple(s.point.values()): s.height('train_return')
    for s in settings_of(table, *SETTINGS)
  }
  games = list(dict.fromkeys(game for game, _, _ in found))

  def of(rule: str, norm: bool) -> list[np.ndarray]:
    try:
      return [
        found[(game, rule, norm)] / np.mean(found[(game, 'hard', False)])
        for game in games
      ]
    except KeyError as error:
      raise ValueError(f'no run with {error.args[0]}') from error

  gaps = {
    norm: [
      with_twin - without
      for with_twin, without in zip(
        of('hard', norm), of('self', norm), strict=True
      )
    ]
    for norm in (False, True)
  }
  heads, free = (
    [runs for norm in (False, True) for runs in of(rule, norm)]
    for rule in ('iterated_heads', 'self')
  )
  return [
    exceeds(
      'the gap to no twin is wider without layer normalization than with it '
      f'({np.mean(gaps[False]):.3g} against {np.mean(gaps[True]):.3g})',
      gaps[False],
      gaps[True],
    ),
    no_worse(
      "the last layer's twin alone is not shown to be worse than none "
      f'({np.mean(heads):.3g} against {np.mean(free):.3g})',
      heads,
      free,
    ),
  ]
