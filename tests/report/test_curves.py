import sys

import numpy as np
import pytest

from siamrl.report import curves
from siamrl.report.curves import Curve, plot_curve, plot_run
from siamrl.report.metrics import MetricsWriter

pytest.importorskip('matplotlib')


@pytest.fixture
def drawn(monkeypatch):
  """The axes that were drawn last."""
  figures = []
  make = curves._figure

  def figure():
    figures.append(make())
    return figures[-1]

  monkeypatch.setattr(curves, '_figure', figure)
  return lambda: figures[-1][1]


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
  monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
  with pytest.raises(ImportError, match=r'pip install siamrl\[plots\]'):
    plot_curve(tmp_path / 'curve.png', [])
