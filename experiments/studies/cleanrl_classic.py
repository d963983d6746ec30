"""Criteria of the study of C51 and PQN at CleanRL's settings.

C51 and PQN reach the returns that CleanRL publishes.
"""

from typing import NamedTuple

import numpy as np

from experiments.studies import published as published_files
from experiments.studies.claims import (
  known,
  Claim,
  exceeds_number,
  no_worse,
  settings_of,
)
from siamrl.report import published
from siamrl.report.metrics import Table

COLUMNS = ('train_return',)


class Reference(NamedTuple):
  """A published return.

  Attributes:
    mean: mean over runs.
    runs: as many numbers as there were runs, with their mean and deviation, for
      Welch's interval.
    margin: how far below it a mean may be and still count as reached.
  """

  mean: float
  runs: np.ndarray
  margin: float


# An episode of CartPole has at most 500 steps, and one of DQN on Acrobot some
# 90; the margins are a twentieth of the one and a tenth of the other.
MARGINS = {'cartpole': 25.0, 'acrobot': 9.0}


_CLEANRL_AGENTS = {'c51': 'C51 (jax)', 'pqn': 'PQN (torch)'}


def cleanrl() -> dict[tuple[str, str], Reference]:
  """CleanRL's returns by arm and environment."""
  source = published_files.shipped('cleanrl_classic')
  found = {}
  for arm, agent in _CLEANRL_AGENTS.items():
    for environment, margin in MARGINS.items():
      row = source.row(agent, 'environment', environment)
      runs = published.stand_ins(row.mean, source.sample_sd(row), row.seeds)
      found[arm, environment] = Reference(row.mean, runs, margin)
  return found


def judge(table: Table) -> list[Claim]:
  """Claims about published returns: two for each agent and environment.

  Returns are last tenths of training curves. A mean could be so uncertain that
  nothing shows it to be lower than what is published; the second claim is that
  it is known to be within a margin of it, or above.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found = {
    tuple(s.point.values()): s.final('train_return')
    for s in settings_of(table, 'arm', 'environment')
  }
  claims = []
  for (arm, environment), reference in cleanrl().items():
    runs = known(found, arm, environment)
    about = f'{arm} on {environment}'
    bound = reference.mean - reference.margin
    claims += [
      no_worse(
        f'{about} ({np.mean(runs):.4g}) is not shown to be below '
        f"CleanRL's {reference.mean:g}",
        [runs],
        [reference.runs],
      ),
      exceeds_number(f'{about} exceeds {bound:g}', runs, bound),
    ]
  return claims
