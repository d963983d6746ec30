"""Runs beside each other: by their clock, each once, seeds of one another."""

import csv
import os
import shutil

import numpy as np
import pytest

from experiments import plot
from siamrl.report import averages
from experiments.config import executing
from experiments.figures import runs as run_figures
from experiments.figures import sources
from siamrl.report.metrics import MetricsWriter
from siamrl.report.run_folder import open_run_folder

BASE = {
  'agent': 'sac',
  'environment': 'Ant-v5',
  'seed': '0',
  'run_dir': '/here',
  'platform': 'cpu',
}


def _run(path, clock, values, **flags_):
  folder, _ = open_run_folder(path, BASE | flags_, {})
  with folder, MetricsWriter(folder.metrics) as writer:
    writer.write_rows(
      [
        dict(frames=x, env_steps=x, train_return=y, eval_return=-y)
        for x, y in zip(clock, values, strict=True)
      ]
    )
  return path


def _plot(*arguments):
  return executing.execute(
    plot.PlotConfig, '', plot.main, arguments, listed='runs'
  )


@pytest.fixture
def drawn(monkeypatch):
  """What was asked of the figure."""
  asked = {}

  def draw(path, series, references, **words):
    asked.update(words, series=series)

  monkeypatch.setattr(run_figures, 'plot_curve', draw)
  return asked


def _table(path):
  with open(path, encoding='utf-8') as file:
    head, *rows = csv.reader(file)
  return head, np.array(rows, np.float64)


def test_rows_meet_by_their_clock(tmp_path, drawn):
  """One iterates by 2, the other by 3, and has lost a row and ends early."""
  one = _run(tmp_path / 'one', range(2, 25, 2), range(2, 25, 2))
  two = _run(tmp_path / 'two', [3, 6, 12, 18], [30, 60, 120, 180], seed='1')
  assert not _plot(f'--runs={one},{two}', f'--output={tmp_path}/out')
  head, table = _table(tmp_path / 'out.csv')
  assert head == ['env_steps', 'one', 'two']
  clock, *values = table.T
  assert clock.tolist() == sorted({*range(2, 25, 2), 3, 6, 12, 18})
  for column, factor in zip(values, (1, 10), strict=True):
    known = np.isfinite(column)
    np.testing.assert_array_equal(column[known], factor * clock[known])
  assert [np.isfinite(v).sum() for v in values] == [12, 4]
  (mean,) = drawn['series']
  # Both at 6, 12 and 18; then one alone.
  assert mean.x.tolist() == [6, 12, 18, 20, 22, 24]
  assert mean.y.tolist() == [33, 66, 99, 20, 22, 24]
  # Of a sample: 6 and 60 are 27 from their mean, and 27**2 * 2 / (2 - 1).
  np.testing.assert_allclose(mean.spread[0], 27 * 2**0.5)
  assert np.isfinite(mean.spread).tolist() == [True] * 3 + [False] * 3
  assert mean.label == 'siamrl, 2 seeds (runs: 2 to 18, 1 to 24)'
  assert len(drawn['faint']) == 2
  assert 'standard' in drawn['explanation']


def test_rows_that_were_written_again_count_once(tmp_path, drawn):
  one = _run(tmp_path / 'one', [1, 2, 3, 2, 3, 4], [1, 9, 9, 2, 3, 4])
  assert not _plot(f'--runs={one}', f'--output={tmp_path}/out')
  assert _table(tmp_path / 'out.csv')[1].T.tolist() == [[1, 2, 3, 4]] * 2
  (mean,) = drawn['series']
  assert mean.x.tolist() == mean.y.tolist() == [1, 2, 3, 4]


def test_runs_that_never_meet(tmp_path, monkeypatch, capsys):
  """Without a row of both before the end of the first, the rest is of one."""
  one = _run(tmp_path / 'one', [1, 3], [1, 3])
  two = _run(tmp_path / 'two', [2, 4], [2, 4], seed='1')
  assert _plot(f'--runs={one},{two}', f'--output={tmp_path}/out') == 2
  assert 'must have rows at the same env_steps' in capsys.readouterr().err


@pytest.mark.parametrize(
  'same',
  [
    dict(run_dir='/there'),
    dict(platform='gpu'),
    dict(overwrite='true'),
    dict(checkpoint_period_s='5'),
    {},
  ],
)
def test_seeds_of_one_configuration(tmp_path, drawn, same):
  one = _run(tmp_path / 'one', [1, 2], [1, 2])
  two = _run(tmp_path / 'two', [1, 2], [1, 2], seed='1', **same)
  assert not _plot(f'--runs={one},{two}', f'--output={tmp_path}/out')
  (mean,) = drawn['series']
  assert mean.label == 'siamrl, 2 seeds'


@pytest.mark.parametrize(
  'other, words',
  [
    (dict(tau='0.1'), 'tau=0.1'),
    (dict(agent='td3', tau='0.1', batch_size='7'), 'agent=td3, tau=0.1'),
    (dict(iteration_env_steps='5'), 'iteration_env_steps=5'),
  ],
)
def test_unlike_runs_have_a_line_each(tmp_path, drawn, capsys, other, words):
  runs = [
    _run(tmp_path / f'{name}{seed}', [1, 2], [n, n], seed=seed, **flags_)
    for n, (name, flags_) in enumerate([('a', {}), ('b', other)])
    for seed in '01'
  ]
  names = ','.join(map(str, runs))
  assert not _plot(f'--runs={names}', f'--output={tmp_path}/out')
  one, two = drawn['series']
  assert one.y.tolist() == [0, 0] and two.y.tolist() == [1, 1]
  assert two.label == f'{words}, 2 seeds'
  assert '2 seeds' in one.label and one.label != two.label
  printed = capsys.readouterr().out
  for name, value in other.items():
    assert f'--{name}: {BASE.get(name, "(absent)")} | {value}' in printed


def test_more_configurations_than_can_be_told_apart(tmp_path, capsys):
  runs = [
    str(_run(tmp_path / f'{i}', [1], [1], tau=str(i), discount='0.9'))
    for i in range(9)
  ]
  assert _plot(*runs, f'--output={tmp_path}/out') == 2
  assert 'they differ in --tau\n' in capsys.readouterr().err
  assert not (tmp_path / 'out.csv').exists()


@pytest.mark.parametrize('options', [(), ('--panel=twin',)])
def test_a_run_counts_once(tmp_path, capsys, monkeypatch, options):
  run = _run(tmp_path / 'run', [1, 2], [1, 2])
  os.symlink(run, tmp_path / 'link')
  monkeypatch.chdir(tmp_path)
  shutil.copytree(run, tmp_path / 'copy')
  for other in (
    str(run),
    'run',
    './run/',
    f'{run}/../run',
    'link',
    'copy',
    'run/metrics.csv',
  ):
    assert _plot(f'--runs={run},{other}', '--output=out', *options) == 2
    error = capsys.readouterr().err
    assert 'must name each run once' in error
    assert len(error.splitlines()) == 1
  # Another seed may learn the same.
  other = _run(tmp_path / 'other', [1, 2], [1, 2], seed='1')
  if not options:
    assert not _plot(f'--runs={run},{other}', '--output=out')


def test_a_column_without_numbers(tmp_path, drawn, capsys):
  nan = float('nan')
  one = _run(tmp_path / 'one', [1, 2], [nan, nan])
  two = _run(tmp_path / 'two', [1, 2], [1, nan], seed='1')
  assert _plot(f'--runs={one}', f'--output={tmp_path}/out') == 2
  assert '--column=train_return must have numbers' in capsys.readouterr().err
  assert not _plot(f'--runs={one},{two}', f'--output={tmp_path}/out')
  assert drawn['series'][0].label == 'siamrl, 1 seed'
  head, table = _table(tmp_path / 'out.csv')
  assert head == ['env_steps', 'one', 'two']
  assert np.isnan(table[:, 1]).all()


@pytest.mark.parametrize(
  'text, message, code',
  [
    ('seed,loss\n0,1\n1,2\n', 'must have a column of frames, env_steps', 2),
    ('game,seeds,final\npong,5,1\n', 'must have a column of frames', 2),
    ('seed,env_steps,train_return\n', 'no rows of metrics yet', 1),
    ('seed,env_steps\n0,1\n0,1,2\n', 'line 3 is not a row of metrics', 1),
    ('env_steps,train_return\n1,2\n', 'must be of a game, an environment', 2),
    ('seed,unit,spectral_radius,growth\n0,1,1,1\n', 'no number is swept', 1),
  ],
)
@pytest.mark.parametrize('name', ['a.csv', 'metrics.csv'])
def test_files_that_cannot_be_drawn(
  tmp_path, capsys, name, text, message, code
):
  path = tmp_path / name
  path.write_text(text)
  assert _plot(f'--runs={path}', f'--output={tmp_path}/out') == code
  error = capsys.readouterr().err
  assert message in error
  assert len(error.splitlines()) == 1
  assert not list(tmp_path.glob('out*'))


def test_a_results_file_of_one_run_or_of_several_with_one_seed(tmp_path, drawn):
  """Columns of settings are flags of its run, and tell several runs apart."""
  path, out = tmp_path / 'study-curves.csv', f'--output={tmp_path}/out'
  head = '# --agent=dqn\narm,environment,tau,seed,env_steps,train_return\n'
  one = head + 'plain,catch,,0,1,2\nplain,catch,,0,2,4\n'
  path.write_text(one)
  assert not _plot(f'--runs={path}', out)
  assert drawn['series'][0].y.tolist() == [2, 4]
  (source,) = sources.read_sources(str(path))
  assert source.flags == {
    'agent': 'dqn',
    'arm': 'plain',
    'environment': 'catch',
    'seed': '0',
  }
  drawn.clear()
  path.write_text(one + 'double,catch,,0,1,3\ndouble,catch,,0,2,9\n')
  assert not _plot(f'--runs={path}', out)
  assert not drawn  # it is drawn as a sweep
  rows = (tmp_path / 'out.csv').read_text().splitlines()
  assert [row.split(',')[0] for row in rows if row[0] != '#'][1:] == [
    'plain',
    'double',
  ]


def test_side_by_side():
  clock, values, met = averages.side_by_side(
    [
      (np.array([1, 2, 4]), np.array([1.0, 2, 4])),
      (np.array([2, 3]), np.array([np.nan, 30])),
    ]
  )
  assert clock.tolist() == [1, 2, 3, 4]
  np.testing.assert_array_equal(
    values, [[1, 2, np.nan, 4], [np.nan, np.nan, 30, np.nan]]
  )
  # At 1 the second has not begun, at 3 the first has no row, and at 4 the
  # second has ended.
  assert met.tolist() == [False, True, False, True]
