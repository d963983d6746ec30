"""Criteria of the study of three schedules on Car-on-Hill.

Fitted Q-iteration reaches 0.9 of the optimum over the papers' 289 starts, and
ends above DQN, which ends above online Q-learning. That an exact fit contracts,
and that the schedules are one where their counters are equal, are laws, which
tests hold (tests/runners/test_offline.py and test_schedules.py).
"""

from experiments.studies.claims import (
  Claim,
  exceeds,
  exceeds_number,
  last,
  settings_of,
)
from siamrl.report.metrics import Table

COLUMNS = ('grid_return', 'grid_optimum')
_SCHEDULES = ('online', 'dqn', 'fitted')


def judge(table: Table) -> list[Claim]:
  """Claims about the mean return at the end, in units of the optimum.

  Raises:
    ValueError: the table lacks a column or a schedule.
  """
  found = {
    setting.point['arm']: last(setting, 'grid_return')
    / last(setting, 'grid_optimum')
    for setting in settings_of(table, 'arm')
  }
  for name in _SCHEDULES:
    if name not in found:
      raise ValueError(f'no run of {name}')
  listed = ', '.join(f'{name}: {found[name].mean():.3g}' for name in _SCHEDULES)
  return [
    exceeds_number(
      f'fitted Q-iteration exceeds 0.9 of the optimum ({listed})',
      found['fitted'],
      0.9,
    ),
    exceeds('it ends above DQN', [found['fitted']], [found['dqn']]),
    exceeds('DQN ends above online', [found['dqn']], [found['online']]),
  ]
