"""Criteria of the study of the rate of the twin of actor-critics.

Critics of a fixed policy end at the same values whatever the rate of their
twin; with a learned policy, values without a twin are further from the truth,
and the policy is worse. After Fujimoto et al. (2018), figure 3.
"""

import numpy as np

from experiments.studies.claims import (
  Claim,
  Setting,
  ascending,
  exceeds,
  last,
  settings_of,
)
from siamrl.report.metrics import Table

COLUMNS = ('q_tm1', 'panel/overestimation', 'train_return')
SETTINGS = ('fixed_policy', 'tau')


def judge(table: Table) -> list[Claim]:
  """Claims about rates, with a fixed and with a learned policy.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  settings = ascending(settings_of(table, *SETTINGS), 'tau')[::-1]
  found = {tuple(setting.point.values()): setting for setting in settings}
  rates = list(dict.fromkeys(tau for _, tau in found))
  for fixed in (False, True):
    for tau in (1.0, 0.01, 0.005):
      if (fixed, tau) not in found:
        raise ValueError(f'no run with fixed_policy={fixed}, tau={tau}')

  def farthest(setting: Setting) -> np.ndarray:
    """Largest |value - return| of each run's evaluations."""
    errors = np.abs(setting.values('panel/overestimation'))
    return np.fmax.reduce(errors, 1)

  ends = np.array([np.mean(last(found[True, tau], 'q_tm1')) for tau in rates])
  spread = float((ends.max() - ends.min()) / np.abs(ends).mean())
  errors = {tau: farthest(found[False, tau]) for tau in rates}
  listed = ', '.join(
    f'tau = {tau:g}: {np.mean(runs):.3g}' for tau, runs in errors.items()
  )
  twice = exceeds(
    'values of a learned policy are at least twice as far from returns '
    'without a twin as with tau = 0.01',
    [errors[1.0]],
    [2 * errors[0.01]],
  )
  return [
    Claim(
      'with a fixed policy values end within 20 % whatever the rate',
      None if np.isnan(spread) else spread <= 0.2,
      ', '.join(
        f'tau = {tau:g}: {end:.4g}'
        for tau, end in zip(rates, ends, strict=True)
      ),
    ),
    twice._replace(seen=f'{listed}; {twice.seen} than twice'),
    exceeds(
      'tau = 0.005 learns a better policy than no twin',
      [found[False, 0.005].height('train_return')],
      [found[False, 1.0].height('train_return')],
    ),
  ]
