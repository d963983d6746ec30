"""Every line within one pair of axes has a look of its own."""

import itertools

import pytest

from siamrl.report.arrangement import MOST_LINES, arrange


def _grid(**options):
  """Every combination of values."""
  return [
    dict(zip(options, values, strict=True))
    for values in itertools.product(*options.values())
  ]


RULES = [
  *({'rule': 'hard', 'period': p, 'tau': None} for p in (1, 4, 16, 64, 256)),
  *({'rule': 'soft', 'period': None, 'tau': t} for t in (1.0, 0.4, 0.1, 0.03)),
  {'rule': 'frozen', 'period': None, 'tau': None},
]
FORMS = _grid(
  rule=['self', 'hard'], n=[1, 3], form=['max', 'double', 'inverse'], width='ab'
)
SWEEPS = {
  'one': [{'rule': 'hard'}],
  'no option': [{}],
  'names': [{'rule': f'r{i}'} for i in range(30)],
  'numbers': [{'tau': i / 10} for i in range(1, 22)],
  'rules': RULES,
  'three rules': [*RULES, {'rule': 'self', 'period': None, 'tau': None}],
  'forms': FORMS,
  'ragged': [*FORMS, *_grid(rule=['chain'], n=[5], form=['max'], width='c')],
  'large': _grid(a='pqrstuvw', b='pqrstuv', c=[1, 2, 3, 4, 5]),
  'both meet': _grid(period=[1, 2, 3], tau=[0.1, 0.2, 0.3]),
}


@pytest.mark.parametrize('points', SWEEPS.values(), ids=SWEEPS)
@pytest.mark.parametrize('color', [(), ('rule',), ('tau', 'period')])
def test_lines_that_share_axes_look_different(points, color):
  found = arrange(points, None, color)
  for pane in found.panes:
    looks = set(map(repr, pane.looks))
    assert len(looks) == len(pane.members) == len(pane.looks)
    # And one or two that all panes show.
    assert len(pane.members) <= MOST_LINES + 2
  assert {m for p in found.panes for m in p.members} == {*range(len(points))}
  titles = [pane.title for pane in found.panes]
  assert len(set(titles)) == len(titles)
  # A legend names every setting, and no name twice.
  names = list(found.labels(points).values())
  assert len(set(names)) == len(names)


def test_what_is_asked_about_has_the_color():
  found = arrange(FORMS, ['n', 'width'], ['rule'])
  assert [pane.title for pane in found.panes] == [
    f'n={n:d}, {width}' for n in (1, 3) for width in 'ab'
  ]
  assert found.key == 'color: rule\ndash: form'
  for pane in found.panes:
    colors = {}
    for member, (color, _) in zip(pane.members, pane.looks, strict=True):
      colors.setdefault(FORMS[member]['rule'], set()).add(color)
    assert len(set.union(*colors.values())) == len(colors) == 2
  # Lines that differ in rule alone differ in color alone.
  one, other = (
    dict(zip(pane.members, pane.looks, strict=True))
    for pane in (found.panes[0], found.panes[-1])
  )
  assert one[0][1] == one[12][1] and one[0][0] != one[12][0]
  assert one[0] == other[min(other)]


def test_a_rule_without_numbers_is_in_the_pane_of_each_rule():
  found = arrange(RULES, None, ['period', 'tau'])
  assert found.facet == ('rule',)
  assert [pane.title for pane in found.panes] == ['hard', 'soft']
  assert all(pane.members[-1] == len(RULES) - 1 for pane in found.panes)
  assert 'frozen' in found.labels(RULES).values()
  # The first period has the color of the first rate.
  assert found.panes[0].looks[0] == found.panes[1].looks[0]
  assert next(iter(found.labels(RULES).values())) == 'period=1 | tau=1'


def test_few_lines_stay_together():
  points = _grid(rule=['self', 'hard'], norm=['true', 'false'])
  (pane,) = arrange(points, None, ['rule']).panes
  assert pane.title == ''
  assert len({color for color, _ in pane.looks}) == 2
  # No grid: a color each.
  found = arrange(points[:3], None, ['rule'])
  assert len({color for color, _ in found.panes[0].looks}) == 3
  assert found.key == 'color: setting'
