"""Criteria of the study of soft divergence, after van Hasselt et al. (2018).

Q-learning without a twin diverges softly (values above what rewards allow) in
more runs than with one, and than Double Q-learning; Double Q-learning
overestimates values less; 3-step returns diverge no more often than
1-step ones.
"""

from collections.abc import Callable
import itertools

import numpy as np

from experiments.studies.claims import (
  Claim,
  Setting,
  exceeds,
  known_mean,
  no_worse,
  settings_of,
)
from siamrl.report.metrics import Table

COLUMNS = ('panel/q_max_abs', 'panel/overestimation')
SETTINGS = ('target_update', 'target_form', 'n_step', 'hidden_sizes')


# The four ways to bootstrap: (rule, form).
_WAYS = {
  'Q-learning': ('self', 'max'),
  'inverse Double': ('hard', 'inverse_double'),
  'target Q-learning': ('hard', 'max'),
  'Double': ('hard', 'double'),
}


_BOUND = 100.0  # of values where each step pays 1 and the discount is 0.99


def judge(table: Table) -> list[Claim]:
  """Claims about rules, forms, lengths of returns and widths on CartPole.

  A run has diverged softly if its largest |value| was ever above 100.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found = {
    tuple(setting.point.values()): setting
    for setting in settings_of(table, *SETTINGS)
  }
  tasks = sorted({(n, width) for _, _, n, width in found})

  def of(way: str, measure: Callable[[Setting], np.ndarray], tasks=tasks):
    try:
      return [measure(found[(*_WAYS[way], *task)]) for task in tasks]
    except KeyError as error:
      raise ValueError(f'no run with {error.args[0]}') from error

  def diverged(setting: Setting) -> np.ndarray:
    largest = np.fmax.reduce(setting.values('panel/q_max_abs'), 1)
    return np.where(np.isnan(largest), np.nan, largest > _BOUND)

  def bias(setting: Setting) -> np.ndarray:
    values = setting.values('panel/overestimation')
    return known_mean(values[:, values.shape[1] // 2 :])

  rates = {way: float(np.mean(of(way, diverged))) for way in _WAYS}
  biases = {way: float(np.mean(of(way, bias))) for way in _WAYS}
  by_n = {
    n: [
      runs
      for way in _WAYS
      for runs in of(way, diverged, [t for t in tasks if t[0] == n])
    ]
    for n in sorted({n for n, _ in tasks})
  }
  listed = ', '.join(f'{way} {rate:.0%}' for way, rate in rates.items())
  biased = ', '.join(f'{way} {value:.3g}' for way, value in biases.items())
  plain, target, double = 'Q-learning', 'target Q-learning', 'Double'
  return [
    exceeds(
      f'{plain} diverges in more runs than {target} ({listed})',
      of(plain, diverged),
      of(target, diverged),
    ),
    exceeds(
      f'{plain} diverges in more runs than {double}',
      of(plain, diverged),
      of(double, diverged),
    ),
    exceeds(
      f'{target} overestimates more than {double} (bias: {biased})',
      of(target, bias),
      of(double, bias),
    ),
    *(
      no_worse(
        f'returns of {longer} steps are not shown to diverge more often than '
        f'those of {shorter}',
        by_n[shorter],
        by_n[longer],
      )._replace(
        seen=', '.join(
          f'n = {n}: {np.mean(by_n[n]):.0%}' for n in (shorter, longer)
        )
      )
      for shorter, longer in itertools.pairwise(by_n)
    ),
  ]
