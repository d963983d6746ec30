"""Runs as one data frame: types, missing values, and folders with damage."""

import warnings

import numpy as np
import pytest

from siamrl.report import load
from siamrl.report.metrics import MetricsWriter
from siamrl.report.results import write_results
from siamrl.report.run_folder import open_run_folder


def _run(path, flags, rows, config=None):
  """A run folder with rows of metrics."""
  folder, _ = open_run_folder(path, flags, config or {})
  with folder, MetricsWriter(folder.metrics) as writer:
    writer.write_rows(rows)
  return folder.path


def _rows(number=2, **more):
  return [
    more | {'iteration': i, 'env_steps': 10 * (i + 1), 'loss': i / 2}
    for i in range(number)
  ]


@pytest.fixture
def runs(tmp_path):
  """Two runs of a sweep on the host, beside a compiled sweep."""
  for seed in (0, 1):
    flags = {'agent': 'dqn', 'tau': '0.5', 'seed': str(seed), 'env_steps': '20'}
    place = {'run_dir': f'x{seed}', 'seeds': '1'}
    _run(tmp_path / 'host' / f'seed={seed}', flags | place, _rows())
  flags = {'agent': 'c51', 'tau': '0.1', 'env_steps': '20', 'width': '1,2'}
  rows = [
    {'width': width, 'rule': rule, 'seed': 3, **row}
    for width, rule in ((1, 'soft'), (None, 'hard'))
    for row in _rows(1, eval_return=7)
  ]
  _run(tmp_path / 'compiled', flags, rows)
  return tmp_path


def test_a_row_of_each_run_and_iteration(runs):
  frame = load(runs, frame='numpy')
  assert list(frame) == [
    *('width', 'rule', 'agent', 'tau', 'seed'),
    *('eval_return', 'iteration', 'env_steps', 'loss', 'folder'),
  ]
  assert frame['width'].tolist()[:1] == [1]
  assert np.isnan(frame['width'][1:]).all()
  assert frame['rule'].tolist() == ['soft', 'hard', '', '', '', '']
  assert frame['agent'].tolist() == ['c51'] * 2 + ['dqn'] * 4
  assert frame['tau'].tolist() == [0.1] * 2 + [0.5] * 4
  assert frame['seed'].tolist() == [3, 3, 0, 0, 1, 1]
  assert frame['iteration'].tolist() == [0, 0, 0, 1, 0, 1]
  assert frame['iteration'].dtype == frame['seed'].dtype == np.int64
  assert frame['loss'].tolist() == [0, 0, 0, 0.5, 0, 0.5]
  assert frame['eval_return'].tolist()[:2] == [7, 7]
  assert np.isnan(frame['eval_return'][2:]).all()
  assert frame['folder'][-1] == str(runs / 'host' / 'seed=1')


def test_pandas_has_the_same(runs):
  pytest.importorskip('pandas')
  frame, arrays = load([runs]), load(runs, frame='numpy')
  assert list(frame) == list(arrays)
  for name, column in arrays.items():
    if column.dtype.kind == 'U':
      assert frame[name].tolist() == [text or None for text in column]
    else:
      assert frame[name].dtype == column.dtype
      np.testing.assert_array_equal(frame[name], column)
  assert frame['rule'].isna().tolist() == [False] * 2 + [True] * 4


def test_a_run_counts_once_and_in_the_order_given(runs):
  paths = [runs / 'host' / 'seed=1', runs / 'host', runs / 'compiled']
  frame = load(paths, frame='numpy')
  assert frame['seed'].tolist() == [1, 1, 0, 0, 3, 3]
  table = paths[0] / 'metrics.csv'
  assert load([table, paths[0]], frame='numpy')['seed'].tolist() == [1, 1]


def test_what_is_the_same_in_all_runs_is_no_column(runs):
  frame = load(runs / 'host', frame='numpy')
  assert list(frame) == ['seed', 'iteration', 'env_steps', 'loss', 'folder']


def test_a_flag_with_the_name_of_a_metric_has_another(tmp_path):
  for steps in ('20', '30'):
    _run(tmp_path / steps, {'seed': '0', 'env_steps': steps}, _rows(1))
  frame = load(tmp_path, frame='numpy')
  assert frame['env_steps_flag'].tolist() == [20, 30]
  assert frame['env_steps'].tolist() == [10, 10]


def test_numbers_beside_text_are_text(tmp_path):
  for name, size in (('a', '64'), ('b', '64-64')):
    _run(tmp_path / name, {'seed': '0', 'hidden': size}, _rows(1))
  rows = _rows(1, hidden='[32]', seed=1)
  _run(tmp_path / 'c', {'hidden': '32,64'}, rows)
  frame = load(tmp_path, frame='numpy')
  assert frame['hidden'].tolist() == ['64', '64-64', '32']


def test_results_files_are_read_with_folders(runs):
  path = runs / 'a-curves.csv'
  columns = ['rule', 'seed', 'env_steps', 'loss']
  rows = [['soft', '4', '10', '0.25'], ['hard', '4', '10', 'nan']]
  write_results(path, rows, columns, {'agent': 'dqn'})
  frame = load([path, runs / 'host'], frame='numpy')
  # Of a file without the flag tau it is unknown, rather than another.
  assert list(frame)[:3] == ['rule', 'seed', 'env_steps']
  assert frame['rule'].tolist() == ['soft', 'hard', '', '', '', '']
  assert frame['seed'].tolist() == [4, 4, 0, 0, 1, 1]
  assert frame['folder'][0] == str(path)
  both = load([path, runs], frame='numpy')
  assert both['agent'].tolist() == ['dqn'] * 2 + ['c51'] * 2 + ['dqn'] * 4
  assert np.isnan(both['tau'][:2]).all()


def test_shards_are_read_before_they_are_merged(tmp_path):
  folder, _ = open_run_folder(tmp_path / 'run', {'agent': 'dqn'}, {})
  folder.close()
  for number in (0, 1):
    path = folder.shard(number).path
    _run(path, {'agent': 'dqn'}, _rows(1, seed=number))
  frame = load(tmp_path, frame='numpy')
  assert frame['seed'].tolist() == [0, 1]
  assert set(frame['folder']) == {str(folder.path)}


def _warned(path):
  """The frame, and all warnings."""
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    frame = load(path, frame='numpy')
  return frame, [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
  'damage, problem, losses',
  [
    (lambda text: text[:-2], 'its last line is cut', [0, 0.5]),
    (lambda text: text.replace('1,20,0.5', '1,20'), 'a line is dam', [0, 1]),
    (lambda text: text.replace('20,0.5', '2x,0.5'), 'a line is dam', [0, 1]),
    (lambda text: text.replace('0,10,0.0', '"'), 'a line is dam', [0.5, 1]),
    (lambda text: text.replace('1,20', '1,\0'), 'a line is dam', [0, 1]),
    (
      lambda text: text.replace('0,10', 'x').replace('1,20', 'x'),
      '2 lines are damaged',
      [1],
    ),
  ],
)
def test_of_a_damaged_file_what_is_whole_is_read(runs, damage, problem, losses):
  path = _run(runs / 'broken', {'agent': 'dqn', 'seed': '9'}, _rows(3))
  metrics = path / 'metrics.csv'
  metrics.write_text(damage(metrics.read_text()))
  frame, said = _warned(runs)
  assert len(said) == 1
  assert said[0].startswith(f'{path}: {problem}')
  assert frame['loss'][frame['seed'] == 9].tolist() == losses
  assert len(frame['loss']) == 6 + len(losses)


def test_folders_with_nothing_whole_are_named(runs):
  bare = _run(runs / 'bare', {'agent': 'dqn', 'seed': '9'}, _rows(1))
  (bare / 'flags.txt').write_text('?')
  empty = _run(runs / 'empty', {'agent': 'dqn', 'seed': '9'}, _rows(1))
  (empty / 'metrics.csv').write_bytes(b'')
  binary = _run(runs / 'noise', {'agent': 'dqn', 'seed': '9'}, _rows(1))
  (binary / 'metrics.csv').write_bytes(b'\0\xff\n' * 9)
  frame, said = _warned(runs)
  assert len(frame['loss']) == 7
  assert np.isnan(frame['seed'][0])  # unknown
  assert frame['agent'][0] == ''
  paths = {text.partition(': ')[0] for text in said}
  assert paths == {str(bare), str(empty), str(binary)}


def test_a_folder_of_an_older_version_is_named(tmp_path):
  new = {'tau': '0.1', 'seed': '0'}
  _run(tmp_path / 'new', new, _rows(1), {'tau': 0.1, 'seed': 0, 'free': None})
  free = new | {'free': 'yes'}
  _run(tmp_path / 'free', free, _rows(1), {'tau': 0, 'seed': 0, 'free': 'yes'})
  old = _run(tmp_path / 'old', new, _rows(1), {'tau': 0.1, 'seed': 0})
  frame, said = _warned(tmp_path)
  assert said == [f'{old}: an older version wrote it, without free']
  assert frame['free'].tolist() == ['yes', '', '']
  assert len(frame['loss']) == 3


def test_paths_that_hold_nothing_are_refused(runs):
  with pytest.raises(FileNotFoundError, match='nowhere: no such'):
    load([runs, runs / 'nowhere'])
  (runs / 'void' / 'deeper').mkdir(parents=True)
  with pytest.raises(ValueError, match='void: holds no rows of runs'):
    load([runs, runs / 'void'])
  with pytest.raises(ValueError, match='no folder is given'):
    load([])
  with pytest.raises(ValueError, match='frame must be one of pandas, numpy'):
    load(runs, frame='polars')


def test_runs_are_found_three_folders_down(runs):
  deep = runs / 'a' / 'b' / 'c'
  _run(deep, {'agent': 'dqn', 'seed': '9'}, _rows(1))
  assert 9 in load(runs, frame='numpy')['seed']
  aside = deep.rename(runs / 'aside')
  deep.mkdir()
  aside.rename(deep / 'd')
  assert 9 not in load(runs, frame='numpy')['seed']
  assert 9 in load(runs / 'a', frame='numpy')['seed']
