"""Criteria of the lab's tables of exact problems.

The lab is no study of many runs: each table is one command, and a criterion is
about all of its rows. Tests judge the tables in experiments/results.
"""

from collections.abc import Callable

import numpy as np

from experiments.studies.claims import Claim
from siamrl.report.metrics import Table

# Fewest settings of all tables under the max that the bounds must decide.
LEAST_DECIDED = 40


def control(table: Table) -> list[Claim]:
  """Claims about learning under the max, for one kind of twin."""
  predicted, observed = table['predicted'], table['observed']
  decided = predicted != 'undecided'
  stable = predicted == 'converges'
  return [
    Claim(
      'the bounds decide at least half of the settings',
      bool(decided.mean() >= 0.5),
      f'{decided.sum()} of {len(decided)}',
    ),
    _all(
      'where the radius is below 1, every start converges',
      (observed == 'converges')[stable],
    ),
    _all(
      'where the radius is below 1, steps shrink as fast as its upper bound',
      (table['growth'] <= table['radius_upper'] + 1e-4)[stable],
    ),
    _all(
      'where the max follows a product above 1, a start diverges',
      (observed == 'diverges')[predicted == 'diverges'],
    ),
    _all(
      'no run grows faster than the upper bound',
      table['growth'] <= table['radius_upper'] + 1e-4,
    ),
  ]


def rescued(table: Table, weakest: Callable[[Table], np.ndarray]) -> Claim:
  """The claim that some twin makes a process converge that diverges without.

  Args:
    table: the table.
    weakest: table -> the rows whose twin is the network itself.
  """
  without = weakest(table)
  key = list(zip(table['seed'], table['discount'], strict=True))
  lost = {
    k
    for k, alone, verdict in zip(key, without, table['predicted'], strict=True)
    if alone and verdict == 'diverges'
  }
  saved = {
    k
    for k, verdict in zip(key, table['predicted'], strict=True)
    if k in lost and verdict == 'converges'
  }
  return Claim(
    'some process that diverges without a twin converges with one',
    bool(saved) if lost else None,
    f'{len(saved)} of {len(lost)}',
  )


def _all(text: str, holds: np.ndarray) -> Claim:
  """The claim that something holds in every setting."""
  return Claim(
    text,
    bool(holds.all()) if len(holds) else None,
    f'{holds.sum()} of {len(holds)}',
  )
