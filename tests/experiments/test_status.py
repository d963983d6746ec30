"""Status of sweeps and runs, from what is on the disk."""

import fcntl
import json
import os

import pytest

from experiments import status
from experiments.config import executing
from experiments.engines.cells import Cell
from experiments.engines.sweep_folders import (
  Record,
  State,
  SweepFolder,
  title_of,
)
from siamrl.report.glances import glance
from siamrl.report.run_folder import RunFolder

MARK = '# siamrl run folder; python ... --flagfile=<this file> runs it again\n'


def _run(folder, rows, all_rows, *, began, changed):
  folder.path.mkdir(parents=True)
  folder.flags.write_text(MARK)
  folder.config.write_text(json.dumps({'derived': {'rows': all_rows}}))
  folder.versions.write_text('[{}]')
  lines = [f'{1000 * i},{i / 2}' for i in range(rows)]
  folder.metrics.write_text(
    '\n'.join(['env_steps,train_return', *lines]) + '\n9'
  )
  os.utime(folder.flags, (began, began))
  os.utime(folder.metrics, (changed, changed))


@pytest.fixture
def sweep(tmp_path):
  folder = SweepFolder(tmp_path / 'sweep')
  names = ('a', 'b', 'c', 'd', 'e')
  with folder.driven([Cell(n, 'classic', (), {}, {'n': n}) for n in names]):
    pass
  _run(folder.run('a'), 10, 10, began=1000, changed=2000)
  folder.write_record('a', Record(State.DONE, 1, 0, 900.0, 3_000_000_000))
  # Begun again at 3,000 with 4 rows; 4 more took 7,200 s.
  _run(folder.run('b'), 8, 16, began=100, changed=10_200)
  folder.write_record('b', Record(State.IN_FLIGHT, 1, rows=4, began=3000.0))
  _run(folder.run('c'), 3, 10, began=1000, changed=4600)
  folder.write_record('d', Record(State.FAILED, 3, 1, lines=('bang', 'end')))
  return folder


def test_states_rates_and_time_left(sweep, capsys):
  lock = os.open(sweep.run('b').path / '.lock', os.O_RDWR | os.O_CREAT)
  fcntl.flock(lock, fcntl.LOCK_EX)
  arguments = ['--json', str(sweep.path)]
  code = executing.execute(
    status.StatusConfig, '', status.main, arguments, listed='folders'
  )
  os.close(lock)
  found = json.loads(capsys.readouterr().out)
  assert code == 0
  assert found['states'] == {
    'waiting': 1,
    'in flight': 1,
    'done': 1,
    'cut': 1,
    'failed': 1,
  }
  a, b, c, d, e = found['cells']
  assert a['progress'] == 1 and a['peak_bytes'] == 3_000_000_000
  # The last line has no end, so it is of a row that was cut.
  assert (b['rows'], b['mean'], b['column']) == (8, 3.5, 'train_return')
  assert b['rows_per_h'] == pytest.approx(2) and b['left_s'] == 4 * 3600
  assert c['rows_per_h'] == pytest.approx(3) and c['left_s'] is None
  assert d['lines'] == ['bang', 'end'] and d['exit_code'] == 1
  assert e['state'] == 'waiting' and e['mean'] is None
  assert sweep.state('b') == State.CUT  # its process has ended


def test_a_cell_that_starts_is_in_flight(tmp_path):
  """A launcher locks its folder only after it has imported its libraries."""
  folder = SweepFolder(tmp_path / 'sweep')
  cells = [Cell(n, 'classic', (), {}, {'n': n}) for n in ('a', 'b')]
  with folder.driven(cells):
    folder.write_record('a', Record(State.IN_FLIGHT, 1))
    assert folder.state('a') == State.IN_FLIGHT
    assert folder.state('b') == State.WAITING
  assert folder.state('a') == State.CUT  # the driver has ended
  os.utime(tmp_path / 'sweep' / 'a.json', (1000, 1000))
  with folder.driven(cells):  # the next one has not begun it yet
    assert folder.state('a') == State.CUT
    folder.write_record('a', Record(State.IN_FLIGHT, 2))
    assert folder.state('a') == State.IN_FLIGHT


def test_plain_text(sweep):
  *table, summary, failed, first, last = status.words(
    status.look([str(sweep.path)])
  )
  assert len(table) == 6
  assert table[2].split() == [
    *('b', 'cut', '8', 'of', '16', '(50%)', '2', 'train_return', '3.5'),
  ]
  assert summary == '5 cells: 1 waiting, 1 done, 2 cut, 1 failed'
  assert (failed, first, last) == ('d failed, exit code 1:', '  bang', '  end')


def _metrics(folder, text):
  folder.path.mkdir(parents=True, exist_ok=True)
  folder.metrics.write_text(text)
  return glance(folder)


def test_the_newest_return_is_the_mean_over_runs(tmp_path):
  head = 'tau,seed,env_steps,loss,train_return\n'
  seen = _metrics(
    RunFolder(tmp_path),
    # Another program, whose runs are not among those that go on.
    head + '.5,0,90,0,70\n.5,1,90,0,70\n.5,2,90,0,70\n'
    '.1,0,10,0,1\n.1,1,10,0,3\n.1,0,20,0,2\n.1,1,20,0,6\n'
    # At 30 the second run has no episode yet, and at 40 no whole row.
    '.1,0,30,0,99\n.1,1,30,0,nan\n.1,0,40,0,99\n.1,1,4',
  )
  assert (seen.mean, seen.runs, seen.column) == (4, 2, 'train_return')
  seen = _metrics(RunFolder(tmp_path), head + '.1,0,10,7,nan\n.1,1,10,9,nan\n')
  assert (seen.mean, seen.runs, seen.column) == (8, 2, 'loss')


def test_many_runs_need_more_than_the_last_lines(tmp_path):
  runs = 3000
  rows = [
    f'{seed},{clock},{seed + clock}\n'
    for clock in (1, 2, 3)
    for seed in range(runs)
  ]
  seen = _metrics(
    RunFolder(tmp_path), 'seed,env_steps,train_return\n' + ''.join(rows)
  )
  assert (seen.mean, seen.runs) == ((runs - 1) / 2 + 3, runs)


def test_a_run_without_a_sweep(tmp_path):
  folder = SweepFolder(tmp_path)
  _run(folder.run('run'), 5, 5, began=1000, changed=4600)
  (line,) = status.look([str(tmp_path / 'run')])
  assert (line.name, line.state) == ('', State.DONE)
  assert line.rows_per_h == pytest.approx(5)


def test_a_folder_without_runs(tmp_path, capsys):
  code = executing.execute(
    status.StatusConfig, '', status.main, [str(tmp_path)], listed='folders'
  )
  assert code == 1
  assert 'is no folder of runs, and holds none' in capsys.readouterr().err


def test_titles_name_the_sweep(tmp_path):
  folder = SweepFolder(tmp_path / 'sweep')
  with folder.driven([Cell('arm/n=1', 'classic', (), {}, {})]):
    pass
  assert title_of(folder.path / 'arm' / 'n=1') == 'sweep: arm/n=1'
  assert title_of(folder.path / 'all') == 'sweep'
  assert title_of(tmp_path / 'run') == 'run'
