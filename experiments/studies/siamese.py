"""Claims of studies of Siamese representation learning."""

import numpy as np

from experiments.studies.claims import (
  Claim,
  exceeds,
  exceeds_in_each_run,
  last,
  settings_of,
  within,
)
from siamrl.report.metrics import Table


def siamese_collapse(table: Table) -> list[Claim]:
  """Claims about rules, predictors and normalization of the output.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found = {
    tuple(s.point.values()): s
    for s in settings_of(
      table, 'target_update', 'tau', 'predictor', 'output_norm'
    )
  }

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


def siamese_accuracy(table: Table) -> list[Claim]:
  """Claims about rules of the twin, on images with labels.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  settings = settings_of(table, 'target_update', 'tau')
  named = {setting.point['target_update']: setting for setting in settings}
  for rule in ('self', 'frozen'):
    if rule not in named:
      raise ValueError(f'no run with target_update={rule}')
  # One rate, fixed in advance: the best of several would be favored by chance.
  slow = next((s for s in settings if s.point.get('tau') == 0.01), None)
  if slow is None:
    raise ValueError('no run with tau=0.01')
  claims = []
  for judge in ('knn', 'probe'):
    column = f'{judge}_encoder'
    claims += [
      exceeds(
        f'{judge}: a retention of 0.99 exceeds a frozen twin',
        [last(slow, column)],
        [last(named['frozen'], column)],
      ),
      exceeds_in_each_run(
        f'{judge}: the default exceeds pixels',
        last(named['self'], column),
        last(named['self'], f'{judge}_pixels'),
      ),
    ]
  return claims
