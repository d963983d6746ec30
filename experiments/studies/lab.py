"""Criteria of the lab's tables of exact problems.

The lab is no study of many runs: each table is one command, and a criterion is
about all of its rows. Tests judge the tables in experiments/results.
"""

from collections.abc import Callable

import numpy as np

from experiments.studies.claims import Claim, exceeds_in_each_run
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
      'where the max follows a product above 1, a start diverges',
      (observed == 'diverges')[predicted == 'diverges'],
    ),
    _all(
      'no run grows faster than the upper bound',
      (table['growth'] <= table['radius_upper'] + 1e-4)[
        np.isfinite(table['growth'])
      ],
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


def unfollowed(table: Table) -> Claim:
  """The claim that a radius above 1 need not mean divergence."""
  above = table['radius_lower'] > 1
  holds = (table['observed'] == 'converges')[above]
  return Claim(
    'in some setting the radius is above 1 and every start converges',
    bool(holds.any()) if above.any() else None,
    f'{holds.sum()} of {above.sum()}',
  )


def fits(table: Table) -> list[Claim]:
  """Claims about TD and fits on the two problems that tell them apart."""
  problems, periods = table['problem'], table['target_period']
  diverged = table['diverged'].astype(bool)
  first, last = periods == periods.min(), periods == periods.max()
  td, fqi = (problems == name for name in ('td_not_fqi', 'fqi_not_td'))
  return [
    _all('td_not_fqi: TD converges', ~diverged[td & first]),
    _all('td_not_fqi: exact fits diverge', diverged[td & last]),
    _all('fqi_not_td: TD diverges', diverged[fqi & first]),
    _all('fqi_not_td: exact fits converge', ~diverged[fqi & last]),
    _all(
      'predicted and observed growth agree to 1e-3',
      np.abs(table['spectral_radius'] - table['growth']) < 1e-3,
    ),
  ]


def overparameterized(table: Table, states: int) -> list[Claim]:
  """Claims about twins and features that are as many as states, or more."""
  diverged = table['diverged'].astype(bool)
  many = table['num_features'] >= states
  periods = table['target_period']
  twin, alone = periods == periods.max(), periods == periods.min()

  def some(text: str, where: np.ndarray) -> Claim:
    seen = f'{diverged[where].sum()} of {where.sum()} diverge'
    return Claim(text, bool(diverged[where].any()), seen)

  return [
    _all(
      'with a twin and as many features as states, all converge',
      ~diverged[many & twin],
    ),
    some('with a twin alone, some diverge', ~many & twin),
    some('with as many features alone, some diverge', many & alone),
    some('with neither, some diverge', ~many & alone),
  ]


def growing(table: Table) -> list[Claim]:
  """Claims about growing periods against constant ones at equal budgets."""
  claims = []
  for process in dict.fromkeys(table['problem']):
    found: dict[str, list[np.ndarray]] = {}
    for rule in ('hard', 'hard_geometric'):
      rows = (table['problem'] == process) & (table['target_update'] == rule)
      errors = np.log10(table['max_error'][rows])
      periods = table['target_period'][rows]
      found[rule] = [errors[periods == period] for period in np.unique(periods)]
    best = {rule: min(runs, key=np.mean) for rule, runs in found.items()}
    spread = {
      rule: max(map(np.mean, runs)) - min(map(np.mean, runs))
      for rule, runs in found.items()
    }
    claims += [
      exceeds_in_each_run(
        f'{process}: the best constant period has a larger error than the '
        'best growing one, in decades',
        best['hard'],
        best['hard_geometric'],
      ),
      Claim(
        f'{process}: errors of growing periods depend less on the first',
        bool(spread['hard_geometric'] < spread['hard']),
        f'{spread["hard_geometric"]:.2g} against {spread["hard"]:.2g} decades',
      ),
    ]
  return claims


def _all(text: str, holds: np.ndarray) -> Claim:
  """The claim that something holds in every setting."""
  return Claim(
    text,
    bool(holds.all()) if len(holds) else None,
    f'{holds.sum()} of {len(holds)}',
  )
