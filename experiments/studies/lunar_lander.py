"""Criteria of the study of LunarLander.

DQN and QR-DQN reach the returns that RL Baselines3 Zoo publishes, and the
better one solves LunarLander.
"""

import numpy as np

from experiments.studies import published as published_files
from experiments.studies.claims import (
  known,
  Claim,
  exceeds_number,
  settings_of,
)
from siamrl.report.metrics import Table

COLUMNS = ('eval_return',)


_ZOO_AGENTS = {'dqn': 'DQN', 'qrdqn': 'QR-DQN'}


SOLVED = 200.0  # what Gymnasium's documentation considers a solution


def zoo() -> dict[str, float]:
  """The returns of RL Baselines3 Zoo's single runs on LunarLander by arm."""
  source = published_files.shipped('sb3_zoo')
  return {
    arm: source.row(agent, 'environment', 'LunarLander').mean
    for arm, agent in _ZOO_AGENTS.items()
  }


def judge(table: Table) -> list[Claim]:
  """Claims about published returns, and a solution, on LunarLander.

  Returns are evaluations in the last tenth of the runs.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found = {
    tuple(s.point.values()): s.final('eval_return')
    for s in settings_of(table, 'arm')
  }
  references = zoo()
  runs = {arm: known(found, arm) for arm in references}
  best = max(runs, key=lambda arm: np.mean(runs[arm]))
  return [
    *(
      exceeds_number(
        f'{arm} ({np.mean(runs[arm]):.4g}) exceeds the {number:g} of RL '
        'Baselines3 Zoo',
        runs[arm],
        number,
      )
      for arm, number in references.items()
    ),
    exceeds_number(
      f'the better one, {best}, exceeds {SOLVED:g}',
      runs[best],
      SOLVED,
      candidates=len(runs),
    ),
  ]
