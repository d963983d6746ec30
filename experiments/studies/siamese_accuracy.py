"""Criteria of the studies of features.

Where pixels say little, a slow twin makes better features than a random one,
and the features of the default are better than pixels.
"""

from experiments.studies.claims import (
  Claim,
  exceeds,
  exceeds_in_each_run,
  last,
  settings_of,
)
from siamrl.report.metrics import Table

COLUMNS = ('knn_encoder', 'knn_pixels', 'probe_encoder', 'probe_pixels')
SETTINGS = ('target_update', 'tau')


def judge(table: Table) -> list[Claim]:
  """Claims about rules of the twin, on images with labels.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  settings = settings_of(table, *SETTINGS)
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
