"""Criteria of the study of collapse.

SimSiam's figure 2 (Chen & He, 2021) and BYOL's table 5a (Grill et al., 2020),
in small. Without output normalization, a network without a stop-gradient or
without a predictor collapses, and one with both, or with a fixed predictor,
does not; a frozen twin is predicted less well than a slow one, and that less
well than a faster one.
"""

import numpy as np

from experiments.studies.claims import (
  Claim,
  exceeds,
  last,
  settings_of,
  within,
)
from siamrl.report.metrics import Table

COLUMNS = ('loss', 'normalized_std')
SETTINGS = ('target_update', 'tau', 'predictor', 'output_norm')


def judge(table: Table) -> list[Claim]:
  """Claims about rules, predictors and normalization of the output.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found = {tuple(s.point.values()): s for s in settings_of(table, *SETTINGS)}

  def of(
    rule: str, tau: float | None = None, predictor: str = 'mlp'
  ) -> dict[str, np.ndarray]:
    key = (rule, tau, predictor, False)
    if key not in found:
      raise ValueError(f'no run with {key}')
    return {name: last(found[key], name) for name in ('loss', 'normalized_std')}

  default, free = of('self'), of('residual')
  without, fixed = of('self', None, 'none'), of('self', None, 'fixed')
  frozen, slow, faster = of('frozen'), of('soft', 0.001), of('soft', 0.01)
  claims = [
    within(
      'the default keeps a normalized std above 0.5',
      default['normalized_std'],
      0.5,
      np.inf,
    )
  ]
  for name, arm in (('stop-gradient', free), ('predictor', without)):
    claims += [
      within(
        f'without {name} the loss falls below -0.98',
        arm['loss'],
        -np.inf,
        -0.98,
      ),
      within(
        'and the normalized std below 0.15', arm['normalized_std'], -1, 0.15
      ),
    ]
  return [
    *claims,
    within(
      'with a fixed predictor the std stays above 0.5',
      fixed['normalized_std'],
      0.5,
      np.inf,
    ),
    *(
      exceeds(text, [more['loss']], [less['loss']])
      for text, more, less in (
        ('and its loss above that of the default', fixed, default),
        ("a frozen twin's loss is above that of retention 0.999", frozen, slow),
        ('and that above the loss of retention 0.99', slow, faster),
      )
    ),
  ]
