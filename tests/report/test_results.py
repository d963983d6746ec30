"""Results files: flags above a table in long form."""

import numpy as np
import pytest

from siamrl.report.metrics import MetricsWriter, read_metrics
from siamrl.report.results import read_results, write_results
from siamrl.report.run_folder import open_run_folder

COLUMNS = ['rule', 'tau', 'seed', 'env_steps', 'train_return']


def test_what_is_written_is_read(tmp_path):
  path = tmp_path / 'a.csv'
  rows = [['hard', '', '0', '100', '1.50'], ['soft', '0.1', '0', '100', 'nan']]
  flags = {'environment': 'catch', 'also': '--tau=1; --rule=self'}
  write_results(path, rows, COLUMNS, flags)
  table, known = read_results(path)
  assert known == flags
  assert table['rule'].tolist() == ['hard', 'soft']
  np.testing.assert_array_equal(table['tau'], [np.nan, 0.1])
  np.testing.assert_array_equal(table['train_return'], [1.5, np.nan])
  assert '1.50' in path.read_text()  # to the digit
  assert list(read_metrics(path)) == COLUMNS


def test_comments_that_are_no_flags_are_passed_over(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_text('# of a study\n# --game=pong\nseed,frames,loss\n0,1,2\n')
  table, known = read_results(path)
  assert known == {'game': 'pong'}
  assert table['loss'].tolist() == [2]


def test_a_line_that_is_no_row_is_named_by_its_number(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_text('# --game=pong\nseed,loss\n0,1\n0,1,2\n')
  with pytest.raises(ValueError, match='line 4 is not a row'):
    read_results(path)


def test_folders_are_read_too(tmp_path):
  folder, _ = open_run_folder(tmp_path / 'run', {'game': 'pong'}, {})
  with folder:
    with pytest.raises(FileNotFoundError, match='no such file'):
      read_results(folder.path)
    with MetricsWriter(folder.metrics) as writer:
      writer.write({'frames': 1, 'loss': 2.0})
  table, known = read_results(folder.path)
  assert known == {'game': 'pong'}
  assert table['loss'].tolist() == [2]
  with pytest.raises(ValueError, match='not the folder of a run'):
    read_results(tmp_path)


def test_a_line_break_is_refused(tmp_path):
  with pytest.raises(ValueError, match='has a line break'):
    write_results(tmp_path / 'a.csv', [['a\nb']], ['rule'], {})
  with pytest.raises(ValueError, match='has a line break'):
    write_results(tmp_path / 'a.csv', [], ['rule'], {'also': 'a\nb'})
  assert not (tmp_path / 'a.csv').exists()
