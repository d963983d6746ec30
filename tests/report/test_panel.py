"""The panel's figure: which small multiples there are, and what they show."""

import numpy as np
import pytest

from siamrl.report import drawing, panel
from siamrl.report.panel import facets, is_measured, plot_panel
from siamrl.report.sweep import words

pytest.importorskip('matplotlib')

nan = float('nan')

RUN = {
  'env_steps': np.array([100, 200, 300]),
  'train_return': np.array([1.0, 2.0, 3.0]),
  'eval_return': np.array([nan, nan, nan]),
  'panel/twin_age': np.array([4.0, nan, 8.0]),
  'panel/twin_age/head/last': np.array([1.0, nan, 2.0]),
  'panel/twin_age/torso/Conv_0': np.array([3.0, nan, 6.0]),
  'panel/td_own_abs': np.array([0.5, nan, 0.25]),
  'panel/td_split_abs': np.array([0.0, nan, 0.5]),
  'panel/q_max_abs': np.array([30.0, nan, 40.0]),
  'panel/overestimation': np.array([-1.0, 0.5, 1.0]),
  'panel/return_mc': np.array([nan, nan, nan]),
  'panel/dormant_0': np.array([0.1, nan, 0.1]),
  'panel/dormant_0.025': np.array([0.2, nan, 0.2]),
  'panel/dormant_0.025/torso/Conv_0': np.array([0.0, nan, 0.3]),
  'panel/dormant_0.1': np.array([0.3, nan, 0.3]),
  'panel/cosine/self': np.array([1.0, nan, 0.5]),
  'panel/cosine/soft': np.array([1.0, nan, 0.75]),
  'panel/shadow_gap/self': np.array([0.0, nan, 0.125]),
}


def _sweep(**scales):
  """RUN in long form: two seeds of each rule, its numbers times a scale."""
  tables = []
  for rule, scale in scales.items():
    for seed in range(2):
      columns = {
        name: values * (scale + seed) if name.startswith('panel/') else values
        for name, values in RUN.items()
      }
      rows = len(columns['env_steps'])
      tables.append(
        columns | {'rule': np.repeat(rule, rows), 'seed': np.repeat(seed, rows)}
      )
  return {n: np.concatenate([t[n] for t in tables]) for n in tables[0]}


@pytest.fixture
def drawn(monkeypatch):
  """The small multiples of the last figure, by title; and the figure."""
  figures = []
  make = drawing.new_figure

  def figure(*size):
    figures.append(make(*size))
    return figures[-1]

  monkeypatch.setattr(drawing, 'new_figure', figure)

  def answer():
    axes = {a.get_title(loc='left'): a for a in figures[-1].axes}
    return axes, figures[-1]

  return answer


def _lines(axes):
  return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def test_of_one_run_layers_and_parts_are_lines(tmp_path, drawn):
  plot_panel(
    tmp_path / 'a.png', RUN, x='env_steps', title='t', x_label='env steps'
  )
  assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')
  axes, figure = drawn()
  assert list(axes) == [
    'Return, training',
    'Twin age',
    'TD error',
    'Dormant units',
    'Dormant units by threshold',
    'Largest |Q|',
    'Over-estimation',
    'Gradient cosine',
    'Target gap, self',
  ]
  # Iterations that were not measured are passed over.
  assert _lines(axes['Twin age']) == {
    'whole network': [[100, 4], [300, 8]],
    'torso/Conv_0': [[100, 3], [300, 6]],
    'head/last': [[100, 1], [300, 2]],
  }
  assert _lines(axes['TD error']) == {
    'own part': [[100, 0.5], [300, 0.25]],
    "twin's part": [[100, 0], [300, 0.5]],
  }
  assert set(_lines(axes['Dormant units'])) == {'whole network', 'torso/Conv_0'}
  assert list(_lines(axes['Dormant units by threshold'])) == [
    '0',
    '0.025',
    '0.1',
  ]
  assert list(_lines(axes['Gradient cosine'])) == ['self', 'soft']
  colors = [
    {line.get_label(): line.get_color() for line in axes[name].lines}
    for name in ('Twin age', 'Dormant units')
  ]
  assert colors[1].items() <= colors[0].items()
  (legend,) = figure.legends
  assert legend.get_title().get_text() == '1 seed: no interval'
  assert [text.get_text() for text in legend.get_texts()] == [
    'whole network',
    'torso/Conv_0',
    'head/last',
  ]
  assert 'gradient steps' in [t.get_text() for t in axes['Twin age'].texts]
  assert figure.get_suptitle() == 't'
  assert figure.get_supxlabel() == 'env steps'


def test_of_a_sweep_settings_are_lines(tmp_path, drawn):
  table = _sweep(hard=1, soft=2)
  plot_panel(tmp_path / 'a.png', table, x='env_steps', by=['rule'])
  axes, figure = drawn()
  assert list(axes) == [
    'Return, training',
    'Twin age',
    'TD error, own part',
    "TD error, twin's part",
    'Dormant units',
    'Largest |Q|',
    'Over-estimation',
    'Gradient cosine, self',
    'Gradient cosine, soft',
    'Target gap, self',
  ]
  # The mean of two seeds, scales 1 and 2, and 2 and 3.
  assert _lines(axes['Twin age']) == {
    'hard': [[100, 6], [300, 12]],
    'soft': [[100, 10], [300, 20]],
  }
  assert len(axes['Twin age'].collections) == 2  # bands
  looks = [
    [(line.get_color(), line.get_linestyle()) for line in a.lines[:2]]
    for a in axes.values()
  ]
  assert all(look == looks[0] for look in looks)
  (legend,) = figure.legends
  assert legend.get_title().get_text() == (
    'mean of 2 seeds;\nt intervals, 95 % where\nseeds are normal\ncolor: rule'
  )
  assert len(legend.get_texts()) == 2


def test_one_setting_of_several_seeds_has_layers_and_a_band(tmp_path, drawn):
  plot_panel(tmp_path / 'a.png', _sweep(hard=1), x='env_steps', by=['rule'])
  age = drawn()[0]['Twin age']
  assert len(age.lines) == 3
  assert len(age.collections) == 1


@pytest.mark.parametrize('bound, shown', [(100.0, 1), (1000.0, 0)])
def test_the_bound_is_drawn_where_it_is_near(tmp_path, drawn, bound, shown):
  plot_panel(tmp_path / 'a.png', RUN, x='env_steps', bound=bound)
  axes = drawn()[0]['Largest |Q|']
  levels = [line for line in axes.lines if line.get_linestyle() == '--']
  assert len(levels) == shown
  if shown:
    assert axes.get_ylim()[1] > bound
  assert axes.texts[0].get_text().endswith(f'soft divergence above {bound:g}')


def test_scales(tmp_path, drawn):
  wide = np.array([1.0, 10.0, 1000.0])
  table = {
    'env_steps': np.array([1, 2, 3]),
    'panel/twin_distance': wide,
    'panel/functional_distance': np.array([0.0, 1.0, 1000.0]),
    'panel/greedy_disagreement': np.array([0.0, 0.0, 0.0]),
    'panel/overestimation': -wide,
    'panel/q_max_abs': np.array([1e30, nan, float('inf')]),
  }
  plot_panel(tmp_path / 'a.png', table, x='env_steps')
  axes, _ = drawn()
  scales = {name: a.get_yscale() for name, a in axes.items()}
  assert scales == {
    'Parameter distance': 'log',
    'Functional distance': 'symlog',
    'Greedy disagreement': 'linear',
    'Largest |Q|': 'linear',
    'Over-estimation': 'linear',
  }
  # What is 0 does not hide behind the axis.
  for name in ('Functional distance', 'Greedy disagreement'):
    assert axes[name].get_ylim()[0] < 0
  # One point, and no line.
  assert axes['Largest |Q|'].lines[0].get_marker() == 'o'


def test_what_was_not_measured(tmp_path):
  plain = {k: v for k, v in RUN.items() if not k.startswith('panel/')}
  empty = plain | {'panel/twin_age': np.full(3, nan)}
  for table in (plain, empty, {}):
    assert not is_measured(table)
    with pytest.raises(ValueError, match='no column panel/'):
      plot_panel(tmp_path / 'a.png', table, x='env_steps')
  assert is_measured(RUN)
  assert not (tmp_path / 'a.png').exists()


def test_a_lone_part_is_named_in_the_title():
  titles = [facet.title for facet in facets(RUN)]
  assert 'Return, training' in titles
  assert 'Target gap, self' in titles
  table = {'panel/dormant_0.1': np.ones(1)}
  assert [facet.title for facet in facets(table)] == ['Dormant units']


@pytest.mark.parametrize(
  ('column', 'text'),
  [
    ('panel/srank', 'rank of the features, srank (dimensions)'),
    ('panel/dormant_0.1', 'dormant units (fraction of units)'),
    ('panel/overestimation', 'over-estimation (return)'),
    ('panel/td_own_abs', 'TD error, own part (return)'),
    ('panel/cosine/self', 'gradient cosine, self'),
    ('panel/agreement', 'agreement with the optimum, rule in use'),
    ('panel/agreement/hard:4', 'agreement with the optimum, hard:4'),
    ('panel/no_such', 'panel/no_such'),
  ],
)
def test_a_column_is_named_in_words_with_its_unit(column, text):
  assert panel.in_text(column) == text
  assert words(column) == text


def test_a_panel_of_many_layers(tmp_path, drawn):
  layers = {
    f'panel/twin_distance/critic_{critic}/torso/Conv_{n}': np.ones(3)
    for critic in range(2)
    for n in range(4)
  }
  table = {'env_steps': np.arange(3), 'panel/twin_distance': np.ones(3)}
  plot_panel(tmp_path / 'a.png', table | layers, x='env_steps')
  ((axes,), figure) = drawn()[0].values(), drawn()[1]
  assert len({line.get_color() for line in axes.lines}) == 9
  assert len(figure.legends[0].get_texts()) == 9
  assert panel.PREFIX == 'panel/'


def _wide(settings, *columns):
  """Two seeds of each of many settings, which differ in two options."""
  rows = [
    {'rule': rule, 'width': width, 'seed': seed, 'env_steps': steps}
    | {name: float(steps) for name in columns}
    for rule in settings
    for width in (1, 2, 3)
    for seed in (0, 1)
    for steps in (100, 200)
  ]
  return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_a_panel_of_many_settings_is_a_file_for_each_part(tmp_path, drawn):
  names = [f'panel/{n}' for n in ('twin_age', 'q_max_abs', 'overestimation')]
  table = _wide('abcd', 'train_return', 'panel/twin_distance', *names)
  files = plot_panel(
    tmp_path / 'a.png', table, x='env_steps', by=['rule', 'width'], title='t'
  )
  assert files == sorted(tmp_path.glob('*.png'))
  assert [path.name for path in files] == [f'a-{rule}.png' for rule in 'abcd']
  axes, figure = drawn()
  assert figure.get_suptitle() == 't: d'
  assert all(len(a.lines) == 3 for a in axes.values())
  assert [t.get_text() for t in figure.legends[0].get_texts()] == [
    f'width={width}' for width in (1, 2, 3)
  ]


def test_few_quantities_of_many_settings_are_rows(tmp_path, drawn):
  table = _wide('abcd', 'panel/twin_age', 'panel/twin_distance')
  files = plot_panel(
    tmp_path / 'a.png',
    table,
    x='env_steps',
    by=['rule', 'width'],
    facet=['width'],
    color=['rule'],
  )
  assert files == [tmp_path / 'a.png']
  axes, figure = drawn()
  assert list(axes) == [
    f'width={width}: {title}'
    for width in (1, 2, 3)
    for title in ('Twin age', 'Parameter distance')
  ]
  assert all(len(a.lines) == 4 for a in axes.values())
  legend = figure.legends[0]
  assert [t.get_text() for t in legend.get_texts()] == list('abcd')
  assert legend.get_title().get_text().endswith('color: rule')


@pytest.mark.parametrize('rules', ['a', 'ab'])
def test_a_panel_says_of_how_many_runs_it_is(tmp_path, drawn, rules):
  """The second seed of the first rule has ended earlier."""
  table = _wide(rules, 'panel/twin_age')
  rows = table['width'] == 1
  rows &= (
    (table['rule'] == 'b') | (table['seed'] == 0) | (table['env_steps'] == 100)
  )
  table = {name: values[rows] for name, values in table.items()}
  plot_panel(tmp_path / 'a.png', table, x='env_steps', by=['rule'])
  legend = drawn()[1].legends[0]
  title = legend.get_title().get_text()
  names = [text.get_text() for text in legend.get_texts()]
  note = '(runs: 2 to 100, 1 to 200)'
  if len(rules) > 1:
    assert names == [f'a {note}', 'b'] and note not in title
  else:
    assert title.endswith(note)
