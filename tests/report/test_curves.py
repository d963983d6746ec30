import os
import subprocess
import sys

import numpy as np
import pytest

from siamrl.report import drawing
from siamrl.report.arrangement import in_words, literal
from siamrl.report.curves import (
  Curve,
  plot_curve,
  plot_final,
  plot_run,
  plot_sweep,
)
from siamrl.report.metrics import MetricsWriter
from siamrl.report.statistics import area_under_curve, mean

pytest.importorskip('matplotlib')


@pytest.fixture
def drawn(monkeypatch):
  """The first axes of the figure that was drawn last."""
  figures = []
  make = drawing.new_figure

  def figure(*size):
    figures.append(make(*size))
    return figures[-1]

  monkeypatch.setattr(drawing, 'new_figure', figure)
  return lambda: figures[-1].axes[0]


def test_a_run_is_drawn_against_its_frames(tmp_path, drawn):
  with MetricsWriter(tmp_path / 'metrics.csv') as writer:
    for step in range(4):
      writer.write(
        {
          'frames': step * 10**6,
          'loss': 1.0,
          'train_return': float(step),
          'eval_return': float(step) if step % 2 else float('nan'),
        }
      )
  plot_run(
    tmp_path / 'metrics.csv',
    tmp_path / 'curve.png',
    title='pong, dqn',
    references=[Curve('published', None, 20.0, 1.0)],
  )
  assert (tmp_path / 'curve.png').read_bytes().startswith(b'\x89PNG')
  axes = drawn()
  lines = {line.get_label(): line for line in axes.lines}
  assert set(lines) == {'training', 'evaluation', 'published'}
  assert lines['training'].get_ydata().tolist() == [0, 1, 2, 3]
  assert lines['evaluation'].get_xdata().tolist() == [1e6, 3e6]
  assert lines['published'].get_ydata() == [20.0, 20.0]
  assert axes.get_title(loc='left') == 'pong, dqn'
  assert axes.get_xlabel() == 'frames'
  assert axes.xaxis.get_major_formatter()(2e6) == '2M'
  assert len(axes.get_legend().get_texts()) == 3


def test_bands(tmp_path, drawn):
  x = np.arange(50)
  plot_curve(
    tmp_path / 'curve.png',
    [Curve('a', x, x, 2.0)],
    [Curve('b', x, x, np.full(50, 3.0)), Curve('c', x, x)],
  )
  heights = [
    band.get_datalim(drawn().transData).height for band in drawn().collections
  ]
  assert heights == [49 + 2 * 3, 49 + 2 * 2]  # references lie behind


def test_no_rows_and_no_evaluation(tmp_path, drawn):
  with MetricsWriter(tmp_path / 'metrics.csv') as writer:
    writer.write({'frames': 0, 'train_return': float('nan')})
  plot_run(tmp_path / 'metrics.csv', tmp_path / 'curve.png', title='new')
  assert [len(line.get_xdata()) for line in drawn().lines] == [0]
  plot_curve(tmp_path / 'curve.png', [])
  assert (tmp_path / 'curve.png').exists()


def test_refusals(tmp_path):
  with pytest.raises(ValueError, match=r'a: x \(3,\) and y \(2,\) differ'):
    plot_curve(tmp_path / 'curve.png', [Curve('a', [1, 2, 3], [1, 2])])
  (tmp_path / 'metrics.csv').write_text('loss\n1\n')
  with pytest.raises(ValueError, match="no column 'frames'"):
    plot_run(tmp_path / 'metrics.csv', tmp_path / 'curve.png', title='')
  assert not (tmp_path / 'curve.png').exists()


def test_no_global_state(tmp_path):
  sys.modules.pop('matplotlib.pyplot', None)
  plot_curve(tmp_path / 'curve.png', [Curve('a', [1, 2], [1, 2])])
  assert 'matplotlib.pyplot' not in sys.modules


def test_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  with pytest.raises(ImportError, match=r'pip install siamrl\[plots\]'):
    plot_curve(tmp_path / 'curve.png', [])


nan = float('nan')


def _table(**curves_by_seed):
  """Long form: rule_period=[[a seed's curve], ...], env steps 100, 200, ..."""
  rows = [
    (setting.split('_')[0], float(setting.split('_')[1]), seed, 100 * t, y)
    for setting, seeds in curves_by_seed.items()
    for seed, curve in enumerate(seeds)
    for t, y in enumerate(curve, 1)
  ]
  names = ('rule', 'period', 'seed', 'env_steps', 'train_return')
  return {
    name: np.array(c)
    for name, c in zip(names, zip(*rows, strict=True), strict=True)
  }


def _sweep(path, table, by=('rule', 'period'), **options):
  plot_sweep(path, table, x='env_steps', y='train_return', by=by, **options)


def test_a_sweep_has_a_line_for_each_setting(tmp_path, drawn):
  table = _table(
    hard_1=[[0, 1, 2], [2, nan, 2], [10, 3, 2], [4, nan, 2]],
    hard_10=[[5, nan, 5]],
    soft_1=[[6, 6, 6]] * 2,
    soft_10=[[7, 7, 7]] * 2,
    self_nan=[[8, 8, 8]],
  )
  _sweep(tmp_path / 'sweep.png', table, title='t', y_label='return')
  assert (tmp_path / 'sweep.png').read_bytes().startswith(b'\x89PNG')
  axes = drawn()
  lines = {line.get_label(): line for line in axes.lines}
  assert list(lines) == [
    'hard, period=1',
    'hard, period=10',
    'soft, period=1',
    'soft, period=10',
    'self',
  ]
  # The means of 0, 2, 4, 10; of 1 and 3; all alike.
  assert lines['hard, period=1'].get_ydata().tolist() == [4, 2, 2]
  assert lines['hard, period=10'].get_xdata().tolist() == [100, 300]
  # One scale of colors, a style for each rule; none for the rule without.
  looks = {k: (v.get_color(), v.get_linestyle()) for k, v in lines.items()}
  assert looks['hard, period=1'][0] == looks['soft, period=1'][0]
  assert looks['hard, period=1'][0] != looks['hard, period=10'][0]
  assert looks['hard, period=1'][1] == looks['hard, period=10'][1] == '-'
  assert looks['soft, period=10'][1] == '--'
  assert len(set(looks.values())) == 5
  assert (axes.get_xlabel(), axes.get_ylabel()) == ('env_steps', 'return')
  # Bands of settings with several seeds; the first is widest where there are
  # two: with one degree of freedom t is 12.7 at 95 %.
  bands = [b.get_datalim(axes.transData) for b in axes.collections]
  assert len(bands) == 3
  assert bands[0].height == pytest.approx(2 * 12.7062047)
  (legend,) = axes.figure.legends
  assert legend.get_title().get_text() == (
    'mean of 1 to 4 seeds;\nt intervals, 95 % where\nseeds are normal\n'
    'color: period\ndash: rule'
  )


def test_a_sweep_of_one_seed_or_without_axes(tmp_path, drawn):
  _sweep(tmp_path / 'a.png', _table(hard_1=[[1, 2]], hard_2=[[nan, nan]]))
  assert not drawn().collections
  assert [len(line.get_xdata()) for line in drawn().lines] == [2, 0]
  title = drawn().figure.legends[0].get_title().get_text()
  assert title == '1 seed: no interval\ncolor: period'
  seeds = [[0, 0], [0, 0], [0, 0], [4, 8]]
  _sweep(tmp_path / 'b.png', _table(hard_1=seeds), by=(), statistic=mean)
  (line,) = drawn().lines
  assert line.get_label() == 'train_return'
  assert line.get_ydata().tolist() == [1, 2]
  title = drawn().figure.legends[0].get_title().get_text()
  assert title.startswith('mean of 4 seeds')


def test_settings_in_words():
  point = {'agent': 'dqn', 'tau': 0.005, 'layer_norm': 'false', 'n_step': None}
  assert in_words(point) == 'dqn, tau=0.005, layer_norm=false'


def test_fourteen_lines_are_told_apart(tmp_path, drawn):
  _sweep(
    tmp_path / 'a.png',
    _table(
      **{f'{r}_{p}': [[p]] for r in ('hard', 'soft') for p in range(7, 0, -1)}
    ),
  )
  looks = _looks(drawn())
  assert [len(lines) for lines in looks.values()] == [7, 7]
  assert sorted(looks) == ['hard', 'soft']
  # Downwards as listed, so that the first is the darkest.
  lines = drawn().lines
  assert sum(lines[0].get_color()[:3]) < sum(lines[6].get_color()[:3])
  names = {f'r{i}_nan': [[i]] for i in range(14)}
  _sweep(tmp_path / 'a.png', _table(**names))
  looks = _looks(drawn())
  assert [len(lines) for lines in looks.values()] == [7, 7]
  assert sorted(looks) == ['r0 to r6', 'r7 to r13']
  assert len(set.union(*looks.values())) == 14
  legend = drawn().figure.legends[0]
  assert [t.get_text() for t in legend.get_texts()] == [
    f'r{i}' for i in range(14)
  ]


def _looks(axes):
  """The looks in all axes of the figure, by their titles."""
  return {
    a.get_title(loc='left'): {
      (line.get_color(), line.get_linestyle()) for line in a.lines
    }
    for a in axes.figure.axes
  }


def test_runs_that_end_earlier_are_counted(tmp_path, drawn):
  table = _table(hard_1=[[1, 2, 3], [3, 4, nan], [5, 6, nan]], hard_2=[[1] * 3])
  _sweep(tmp_path / 'a.png', table)
  assert [line.get_label() for line in drawn().lines] == [
    'hard, period=1 (runs: 3 to 200, 1 to 300)',
    'hard, period=2',
  ]


def test_two_numbers_that_meet_are_color_and_style(tmp_path, drawn):
  table = _table(
    a_1=[[1]], b_1=[[1]], a_2=[[2]], b_2=[[2]], a_3=[[3]], b_3=[[3]]
  )
  table['n_step'] = np.where(table['rule'] == 'a', 1, 3)
  _sweep(tmp_path / 'a.png', table, by=('n_step', 'period'))
  lines = {line.get_label(): line for line in drawn().lines}
  one, other = lines['n_step=1, period=2'], lines['n_step=3, period=2']
  assert one.get_color() == other.get_color()
  assert one.get_linestyle() != other.get_linestyle()


def _final(path, table, lines=('rule',), **options):
  plot_final(
    path,
    table,
    x='env_steps',
    y='train_return',
    by=('rule', 'period'),
    position=lambda point: point['period'],
    lines=lines,
    **options,
  )


FINALS = _table(
  hard_100=[[0, 5], [0, 7]],
  hard_1=[[1, 4]],
  soft_10=[[2, nan]],
  soft_30=[[2, 3]],
  self_nan=[[8, 9], [8, 9]],
)


def test_final_numbers(tmp_path, drawn):
  _final(tmp_path / 'final.png', FINALS, x_label='period')
  axes = drawn()
  lines = {line.get_label(): line for line in axes.lines}
  assert list(lines) == ['hard', 'soft', 'self']
  assert lines['hard'].get_xydata().tolist() == [[1, 4], [100, 6]]
  # A run whose last tenth has no value has no final number.
  assert lines['soft'].get_xydata().tolist() == [[30, 3]]
  assert lines['self'].get_ydata() == [9, 9]
  assert axes.get_xscale() == 'log'
  assert axes.get_ylabel() == 'train_return, final mean'
  (bar,) = axes.collections[0].get_segments()  # two seeds at 100
  # Of 5 and 7: t is 12.7 with one degree of freedom, the standard error is 1.
  np.testing.assert_allclose(
    bar, [[100, 6 - 12.7062047], [100, 6 + 12.7062047]]
  )
  assert not axes.collections[1].get_segments()
  _final(tmp_path / 'final.png', FINALS, summary=area_under_curve)
  assert drawn().lines[0].get_xydata().tolist() == [[1, 2.5], [100, 3]]
  assert drawn().get_ylabel() == 'train_return, area under curve'


def test_settings_without_places_have_a_row_each(tmp_path, drawn):
  table = _table(a_nan=[[1], [3]], b_nan=[[4], [6]], c_nan=[[7]])
  _final(tmp_path / 'a.png', table, color=['rule'])
  axes = drawn()
  rows = [t.get_text() for t in axes.get_yticklabels()]
  assert rows == ['a', 'b', 'c']
  dots = [line.get_xydata().tolist() for line in axes.lines]
  assert dots == [[[2, 0]], [[5, 1]], [[7, 2]]]
  assert len({line.get_color() for line in axes.lines}) == 3
  assert len(axes.collections) == 2  # no interval of one run
  assert 'mean of 1 to 2 seeds' in axes.get_xlabel()
  # A line with two places is none of these.
  _final(tmp_path / 'a.png', FINALS)
  assert 'hard' in [line.get_label() for line in drawn().lines]


def test_more_lines_of_final_numbers_than_can_be_told_apart(tmp_path, drawn):
  names = {f'r{i}_{p}': [[i]] for i in range(9) for p in (1, 2)}
  _final(tmp_path / 'a.png', _table(**names))
  assert len(drawn().get_yticklabels()) == 18


def test_final_numbers_at_one_place_or_at_nought(tmp_path, drawn):
  with pytest.raises(ValueError, match=r'two settings at 1.0 of the line \(\)'):
    table = _table(hard_1=[[1]], soft_1=[[2]])
    _final(tmp_path / 'final.png', table, lines=())
  assert not (tmp_path / 'final.png').exists()
  _final(tmp_path / 'final.png', _table(hard_0=[[1]], hard_1=[[2]]))
  assert drawn().get_xscale() == 'linear'


def test_dollars_are_drawn_as_they_are(tmp_path, drawn):
  """Between two of them, Matplotlib reads a formula, and may fail to."""
  title, label = r'runs/$5_and_$6', r'bias$:soft+\w$:hard'
  plot_curve(tmp_path / 'a.png', [Curve(label, [1, 2], [1, 2])], title=title)
  table = {
    'target_paths': np.array([label, 'a']),
    'seed': np.zeros(2, np.int64),
    'env_steps': np.array([1, 1]),
    'train_return': np.array([1.0, 2.0]),
  }
  for plot, more in (
    (plot_sweep, {}),
    (plot_final, dict(position=lambda point: None, lines=['target_paths'])),
  ):
    plot(
      tmp_path / 'a.png',
      table,
      x='env_steps',
      y='train_return',
      by=['target_paths'],
      title=title,
      **more,
    )
  assert literal('a$b$') == r'a\$b\$'


def test_any_backend_will_do(tmp_path):
  """Such as that of a notebook, which need not be installed."""
  code = (
    'import os, sys; from siamrl.report.curves import Curve, plot_curve; '
    "plot_curve(sys.argv[1], [Curve('a', [1, 2], [1, 2])]); "
    "assert os.environ['MPLBACKEND'] == 'module://nobody.has.it'"
  )
  subprocess.run(
    [sys.executable, '-c', code, tmp_path / 'a.png'],
    env={**os.environ, 'MPLBACKEND': 'module://nobody.has.it'},
    check=True,
  )
  assert (tmp_path / 'a.png').stat().st_size > 1000
