"""Criteria of the study of defects of the twin.

A defect costs return where it makes the twin much older than it should be, or
lets it never move, or writes the online network; and on the pendulum, whose
policy is learned, where there is no slow twin at all. It is harmless where the
twin is about as old as it should be, or is soon forgotten to have been born
wrong, and on CartPole and Breakout, which need no twin, where it is younger.

In numbers: DQN on CartPole learns about as well from a twin of 1 to 64 gradient
steps, and less from one of 256 and more (the study twin_grid_cartpole); on
Breakout it learns without a twin as well (twin_minatar); an actor-critic on the
pendulum does not (twin_rate).
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

# The defects that are expected to cost return in each task, and those that are
# expected to be harmless.
COSTLY = {
  'cartpole': (
    *('lost_update', 'period_multiplied', 'tau_ignored', 'wrong_direction'),
  ),
  'breakout': (
    *('lost_update', 'period_multiplied', 'tau_ignored', 'wrong_direction'),
  ),
  'pendulum': (
    *('alias', 'lost_update', 'period_multiplied', 'tau_ignored'),
    *('once_per_block', 'wrong_direction', 'statistics_left_behind'),
  ),
}
HARMLESS = {
  'cartpole': (
    *('alias', 'unit_confusion', 'double_rule', 'soft_birth'),
    'once_per_block',
  ),
  'breakout': (
    *('alias', 'unit_confusion', 'double_rule', 'soft_birth'),
    'once_per_block',
  ),
  'pendulum': ('double_rule', 'soft_birth'),
}
# Defects are compared with `right`, but for those of other agents.
RIGHT = {'statistics_left_behind': 'normalized'}


def judge(table: Table) -> list[Claim]:
  """Claims about the return that defects cost, in the last tenth of runs.

  Each claim is about one task. Of the K defects of a task that are expected to
  cost return, each interval has Bonferroni's correction for K.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found = {
    tuple(setting.point.values()): setting.final('train_return')
    for setting in settings_of(table, 'arm', 'environment')
  }
  claims = []
  for name in dict.fromkeys(name for _, name in found):
    if name not in COSTLY:
      raise ValueError(f'environment={name} is no task of this study')
    for defect in COSTLY[name]:
      right, wrong = _pair(found, defect, name)
      claims.append(
        exceeds(
          f'{name}: {defect} costs return ({np.mean(wrong):.4g} against '
          f'{np.mean(right):.4g})',
          [right],
          [wrong],
          candidates=len(COSTLY[name]),
        )
      )
    for defect in HARMLESS[name]:
      right, wrong = _pair(found, defect, name)
      claims.append(
        no_worse(
          f'{name}: {defect} is not shown to cost return '
          f'({np.mean(wrong):.4g} against {np.mean(right):.4g})',
          [wrong],
          [right],
        )
      )
  return claims


def _pair(
  found: dict[tuple, np.ndarray], defect: str, name: str
) -> tuple[np.ndarray, np.ndarray]:
  """The scores of the right rule and of a defect, [runs] each."""
  right = RIGHT.get(defect, 'right')
  return known(found, right, name), known(found, defect, name)
