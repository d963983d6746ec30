"""Runs in the formats of other tools, read back as these do."""

import csv
import json

import pytest

from experiments import export
from experiments.config import executing
from siamrl.report import load
from siamrl.report.metrics import MetricsWriter
from siamrl.report.run_folder import open_run_folder


def _export(*arguments):
  """The exit code of a command line."""
  return executing.execute(
    export.ExportConfig, '', export.main, arguments, listed='runs'
  )


def _fake(path, agent, returns, *, seed=0, game='pong'):
  """A run folder of the host loop with some rows."""
  flags = {'agent': agent, 'game': game, 'seed': str(seed)}
  flags |= {'sticky_action_probability': '0.25'}
  folder, _ = open_run_folder(path, flags, {})
  with folder, MetricsWriter(folder.metrics) as writer:
    for number, value in enumerate(returns):
      steps = 10 * (number + 1)
      writer.write(
        {
          'iteration': number,
          'frames': 4 * steps,
          'env_steps': steps,
          'train_return': value,
        }
      )


@pytest.fixture
def runs(tmp_path):
  for seed in (0, 1):
    _fake(tmp_path / f'dqn{seed}', 'dqn', [1, 2.5 + seed, 4], seed=seed)
    _fake(tmp_path / f'c51{seed}', 'c51', [None, 5, 6 + seed], seed=seed)
  return tmp_path


def test_a_long_table_has_each_measured_number(runs, tmp_path):
  output = tmp_path / 'a'
  assert not _export(str(runs), '--format=csv', f'--output={output}')
  with open(f'{output}.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert tuple(rows[0]) == (
    *('exp_name', 'env_name', 'seed', 'metric', 'env_step', 'value'),
  )
  found = {
    (row['exp_name'], row['seed'], row['env_step']): float(row['value'])
    for row in rows
    if row['metric'] == 'train_return'
  }
  assert found['dqn', '1', '20'] == 3.5
  assert found['c51', '1', '30'] == 7
  assert len(found) == 10  # two were not measured
  assert {row['env_name'] for row in rows} == {'pong'}
  assert {row['metric'] for row in rows} == {'frames', 'train_return'}


def test_names_have_as_few_settings_as_tell_runs_apart(tmp_path):
  rows = [('hard', 1, 'a'), ('hard', 2, 'a'), ('soft', None, 'b')]
  folder, _ = open_run_folder(tmp_path / 'r', {'agent': 'dqn'}, {})
  with folder, MetricsWriter(folder.metrics) as writer:
    for rule, period, optimizer in rows:
      settings = {'optimizer': optimizer, 'target_period': period}
      settings |= {'target_update': rule}
      writer.write(settings | {'seed': 0, 'env_steps': 1, 'loss': 0.5})
  assert not _export(str(folder.path), f'--output={tmp_path / "a"}')
  with open(tmp_path / 'a.csv', newline='') as file:
    names = [row['exp_name'] for row in csv.DictReader(file)]
  hard = 'dqn,target_update=hard,target_period='
  assert names == [f'{hard}1', f'{hard}2', 'dqn,target_update=soft']


def test_marl_eval_has_the_documented_structure(runs, tmp_path, capsys):
  output = tmp_path / 'a.json'
  command = (f'--runs={runs}', '--format=marl_eval', f'--output={output}')
  assert not _export(*command)
  data = json.loads(output.read_text())
  assert list(data) == ['atari']
  assert list(data['atari']) == ['pong']
  algorithms = data['atari']['pong']
  assert sorted(algorithms) == ['c51', 'dqn']
  for tables in algorithms.values():
    assert list(tables) == ['run_1', 'run_2']
    for table in tables.values():
      # marl-eval takes the last entry for the absolute metrics.
      assert list(table) == ['step_1', 'step_2', 'absolute_metrics']
      assert [table[f'step_{n}']['step_count'] for n in (1, 2)] == [20, 30]
  assert algorithms['dqn']['run_2']['step_1']['return'] == [3.5]
  assert algorithms['c51']['run_2']['absolute_metrics'] == {'return': [7.0]}
  assert '2 rows are left out' in capsys.readouterr().err


def test_marl_eval_needs_as_many_runs_of_each(runs, tmp_path, capsys):
  _fake(tmp_path / 'dqn2', 'dqn', [1, 2, 3], seed=2)
  assert _export(str(runs), '--format=marl_eval', '--output=/tmp/never') == 2
  error = capsys.readouterr().err
  assert 'dqn in pong: 3' in error
  assert 'c51 in pong: 2' in error


def test_parquet_is_the_data_frame(runs, tmp_path):
  parquet = pytest.importorskip('pyarrow.parquet')
  output = tmp_path / 'a.parquet'
  assert not _export(str(runs), '--format=parquet', f'--output={output}')
  table = parquet.read_table(output)
  frame = load(runs, frame='numpy', flags=['game'])
  assert table.column_names == list(frame)
  for name, column in frame.items():
    values = [None if v in ('',) or v != v else v for v in column.tolist()]
    assert table[name].to_pylist() == values
  assert table['train_return'].null_count == 2


@pytest.mark.parametrize(
  'arguments, code, words',
  [
    (('--output=a',), 2, '--runs must be given'),
    (('{runs}',), 2, '--output must be given'),
    (('{runs}', '--output=/nowhere/a'), 2, 'lie in a folder that exists'),
    (('{runs}', '--output={runs}/old'), 2, 'old.csv exists, and --overwrite'),
    (('{runs}/x', '--output={runs}/a'), 2, 'x: no such file or folder'),
    (('{runs}/void', '--output={runs}/a'), 1, 'holds no rows of runs'),
    (('{runs}', '--format=xml', '--output=a'), 2, 'must be one of csv'),
    (('{runs}', '--run=1', '--output=a'), 2, 'not be given with --format=csv'),
    (('{runs}', '--column=a', '--output=a'), 2, 'not be given with --format'),
    (
      ('{runs}', '--format=marl_eval', '--column=x', '--output={runs}/a'),
      2,
      '--column=x must be one of frames, train_return',
    ),
    (
      ('{runs}', '--format=safetensors', '--output={runs}/a'),
      2,
      'not the folder of a run, but it holds some: c510; c511; dqn0; dqn1',
    ),
    (
      ('{runs}/dqn0', '--format=safetensors', '--output={runs}/a'),
      1,
      'has no checkpoint yet',
    ),
  ],
)
def test_bad_input_is_one_line(runs, capsys, arguments, code, words):
  (runs / 'void').mkdir()
  (runs / 'old.csv').touch()
  given = [text.format(runs=runs) for text in arguments]
  assert _export(*given) == code
  error = capsys.readouterr().err
  assert words in error
  assert len(error.splitlines()) == 1
  assert not (runs / 'a.csv').exists()
