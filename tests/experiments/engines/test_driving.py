"""The driver of sweeps: retries, stops, and what survives being killed."""

import hashlib
import os
import pathlib
import random
import subprocess
import sys
import time

import pytest

from experiments.engines import driving, pools
from experiments.engines.cells import Cell
from experiments.engines.driving import Driver
from experiments.engines.pools import Resources
from experiments.engines.pools.local import LocalPool
from experiments.engines.sweep_folders import State, SweepFolder
from tests.experiments.engines import small_cells


class _Pool:
  """A pool that does what it is told: outcomes by cell, one an attempt."""

  def __init__(self, folder, outcomes):
    self.folder, self.outcomes = folder, outcomes
    self.queue, self.began = [], []
    self.stopped = False

  def submit(self, jobs):
    self.queue += jobs

  def poll(self):
    if not self.queue:
      return []
    job = self.queue.pop(0)
    self.began.append(job.name)
    rows, code = self.outcomes[job.name].pop(0)
    self.rows = rows
    return [pools.Began(job.name, 'here'), self._end(job, rows, code)]

  def _end(self, job, rows, code):
    run = self.folder.run(job.name)
    run.path.mkdir(parents=True, exist_ok=True)
    run.flags.write_text(small_cells.MARK)
    run.config.write_text('{"derived": {"rows": 4}}')
    run.metrics.write_text('x\n' + '0\n' * rows)
    pathlib.Path(job.log).write_text('first\nlast\n')
    return pools.Ended(job.name, code, 60.0, 2_000_000_000)

  def stop(self):
    self.stopped = True
    self.queue.clear()

  def close(self):
    pass


def _drive(tmp_path, outcomes, stop=False, retries=2):
  folder = SweepFolder(tmp_path / 'runs')
  cells = [Cell(name, 'classic', (), {}, {'name': name}) for name in outcomes]
  pool, said = _Pool(folder, outcomes), []
  with folder.driven(cells):
    driver = Driver(
      folder, cells, Resources(), retries=retries, say=said.append
    )
    driver.run(pool, stop)
  return folder, pool, driver, said


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
  monkeypatch.setattr(driving, '_POLL_S', 0)


def test_a_cell_that_fails_is_tried_again(tmp_path):
  folder, pool, driver, said = _drive(
    tmp_path, {'a': [(0, 1), (0, -9), (4, 0)], 'b': [(4, 0)]}
  )
  assert pool.began.count('a') == 3 and pool.began.count('b') == 1
  assert folder.state('a') == folder.state('b') == State.DONE
  assert driver.failed == []
  assert (
    'a: exit code 1 after 1.0 minutes; it will be tried again (1 '
    in '\n'.join(said)
  )
  assert any('killed by signal 9' in line for line in said)
  assert folder.record('a').peak_bytes == 2_000_000_000


def test_it_is_given_up_after_its_retries_with_its_last_lines(tmp_path):
  folder, pool, driver, said = _drive(
    tmp_path, {'a': [(0, 1)] * 3, 'b': [(4, 0)]}
  )
  assert pool.began.count('a') == 3
  assert driver.failed == ['a'] and folder.state('a') == State.FAILED
  assert folder.record('a').lines == ('first', 'last')
  assert '  last' in said
  assert folder.state('b') == State.DONE


def test_invalid_flags_are_not_tried_again(tmp_path):
  _, pool, driver, _ = _drive(tmp_path, {'a': [(0, 2)]})
  assert pool.began == ['a'] and driver.failed == ['a']


def test_a_finished_process_without_all_rows_is_not_done(tmp_path):
  folder, pool, driver, _ = _drive(tmp_path, {'a': [(2, 0), (4, 0)]})
  assert pool.began == ['a', 'a'] and folder.state('a') == State.DONE


def test_done_cells_are_skipped_and_failed_ones_tried_afresh(tmp_path):
  _drive(tmp_path, {'a': [(4, 0)], 'b': [(0, 1)]}, retries=0)
  folder, pool, driver, _ = _drive(tmp_path, {'a': [], 'b': [(4, 0)]})
  assert pool.began == ['b'] and driver.failed == []
  assert folder.record('b').attempts == 1


def test_killed_workers_and_a_killed_driver_lose_nothing(tmp_path):
  small_cells.check_survives_kills(tmp_path, 'LocalPool(None, cores=1, gpus=0)')


def test_a_stop_reaches_the_cells(tmp_path):
  launcher = small_cells.write_launcher(tmp_path)
  pool = LocalPool(1, cores=1, gpus=0)
  command = (sys.executable, str(launcher))
  folders = [str(tmp_path / name) for name in ('a', 'b')]
  pool.submit(
    [
      pools.Job(name, (*command, name, '10000'), name, f'{name}.log')
      for name in folders
    ]
  )
  (began,) = pool.poll()
  assert began.name == folders[0]
  while not pathlib.Path(folders[0], 'metrics.csv').exists():
    time.sleep(0.05)
  pool.stop()
  events = []
  while not events:
    events = pool.poll()
    time.sleep(0.05)
  (ended,) = events
  assert ended.name == folders[0] and ended.code == 0
  assert ended.peak_bytes > 1e6
  assert not pathlib.Path(folders[1]).exists()


def test_jobs_hold_to_their_cores(tmp_path):
  log = tmp_path / 'log'
  text = 'import os; print(sorted(os.sched_getaffinity(0)))'
  pool = LocalPool(None, cores=1, gpus=0)
  if not hasattr(os, 'sched_getaffinity'):
    pytest.skip('this system does not hold processes to cores')
  pool.submit(
    [
      pools.Job(
        'a', (sys.executable, '-c', text), str(tmp_path / 'a'), str(log)
      )
    ]
  )
  while not any(isinstance(event, pools.Ended) for event in pool.poll()):
    time.sleep(0.02)
  assert log.read_text().strip() == str(list(pool.shares[0].cores))


@pytest.mark.slow
def test_a_killed_sweep_of_real_runs_ends_bit_for_bit(tmp_path):
  file = tmp_path / 'sweep.toml'
  file.write_text(
    'launcher = "classic"\n'
    'flags = "--environment=catch --env_steps=20000 --iteration_env_steps=1000 '
    '--min_replay=500 --checkpoint_period_s=1"\n'
    'seeds = 20\nsplit = ["seed"]\n'
  )

  def start(name):
    return subprocess.Popen(
      [
        *(sys.executable, '-m', 'experiments.sweep', f'--sweep={file}'),
        f'--run_dir={tmp_path / name}',
      ],
      cwd=small_cells.ROOT,
    )

  assert start('undisturbed').wait() == 0
  folder = SweepFolder(tmp_path / 'killed')
  rng, killed = random.Random(1), 0
  process = start('killed')
  while process.poll() is None:
    time.sleep(rng.uniform(5, 15))
    if killed < 5 and small_cells.kill_one(folder, rng):
      killed += 1
      if killed == 3:
        process.kill()
        process.wait()
        process = start('killed')
  assert process.wait() == 0 and killed == 5

  def sums(name):
    return {
      path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()
      for path in (tmp_path / name).glob('*/metrics.csv')
    }

  assert len(sums('killed')) == 20
  assert sums('killed') == sums('undisturbed')
