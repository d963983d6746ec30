"""Cells as tasks of Ray: what its errors mean, lost nodes, kills, refusals."""

import pathlib
import sys
import time
import types

import pytest

from experiments.config.declaring import RunError, UsageError
from experiments.engines import pools
from experiments.engines.pools import (
  Began,
  Ended,
  Job,
  Resources,
  ray as pool_ray,
)
from experiments.engines.pools.ray import RayPool
from experiments.engines.sweep_folders import State, SweepFolder
from siamrl.report import glances
from siamrl.report.run_folder import RunFolder
from tests.experiments.engines import small_cells

_NODE = {'NodeID': 'n', 'Alive': True, 'NodeManagerAddress': '10.0.0.1'}


class _Errors:
  """The errors of Ray, by their names there."""

  class RayError(Exception):
    pass

  class TaskCancelledError(RayError):
    pass

  class WorkerCrashedError(RayError):
    pass

  class NodeDiedError(RayError):
    pass

  class OutOfMemoryError(RayError):
    pass


class _Ray:
  """Ray without processes: results of tasks are set by the test."""

  def __init__(self, *resources):
    self.exceptions = _Errors
    self.results, self.events, self.cancelled = {}, [], []
    self.options_of = []
    self._nodes = [_NODE | {'Resources': each} for each in resources]
    self.util = types.SimpleNamespace(
      scheduling_strategies=types.SimpleNamespace(
        NodeAffinitySchedulingStrategy=lambda node, soft: node
      )
    )

  def init(self, **how):
    if how['address'] == 'nowhere':
      raise ConnectionError('no cluster\nat nowhere')

  def shutdown(self):
    pass

  def nodes(self):
    return self._nodes

  def get_runtime_context(self):
    return types.SimpleNamespace(get_node_id=lambda: 'n')

  def remote(self, what):
    if isinstance(what, type):
      take = lambda: 'take'
      board = types.SimpleNamespace(take=types.SimpleNamespace(remote=take))
      return self._with_options(lambda: board)
    if what is pool_ray._run:
      return self._with_options(lambda job, *_: job.name)
    return self._with_options(lambda place: ('check', what(place)))

  def _with_options(self, remote):
    def options(**given):
      self.options_of.append(given)
      return types.SimpleNamespace(remote=remote)

    return types.SimpleNamespace(options=options)

  def wait(self, references, num_returns, timeout=None):
    return [each for each in references if each in self.results], []

  def get(self, reference, timeout=None):
    if reference == 'take':
      events, self.events = self.events, []
      return events
    if reference[0] == 'check':
      return reference[1]
    if isinstance(self.results[reference], Exception):
      raise self.results[reference]
    return self.results[reference]

  def cancel(self, reference, recursive):
    self.cancelled.append(reference)


@pytest.fixture
def fake(monkeypatch):
  """A cluster of one node; its tasks end as the test says."""
  ray = _Ray({'CPU': 4.0, 'GPU': 1.0, 'memory': 8e9})
  monkeypatch.setattr(pool_ray, 'import_optional', lambda *_: ray)
  monkeypatch.setattr(pool_ray, '_BOARD_S', 0.0)
  return ray


def _pool(tmp_path, number=None, needs=None, address=None):
  needs = needs or Resources()
  return RayPool(tmp_path, number, address, needs=needs)


def _job(name):
  return Job(name, ('true',), name, name, Resources(2, 1, 3.0))


def test_a_task_asks_for_what_the_sweep_file_says(tmp_path, fake):
  pool = _pool(tmp_path, needs=Resources(2, 1, 3.0))
  pool.submit([_job('a')])
  pool.poll()
  given = fake.options_of[-1]
  assert given['num_cpus'] == 2 and given['num_gpus'] == 1
  assert given['memory'] == 3_000_000_000
  assert given['max_retries'] > 0
  assert pool.at_a_time == 1  # one GPU


def test_events_come_in_order(tmp_path, fake):
  pool = _pool(tmp_path)
  pool.submit([_job('a'), _job('b'), _job('c')])
  assert pool.poll() == []
  fake.events = [Began('a', 'here'), Began('a', 'there')]
  fake.results['b'] = (Began('b', 'here'), Ended('b', 0))
  assert pool.poll() == [
    Began('a', 'here'),
    Began('a', 'there'),  # Ray has tried again
    Began('b', 'here'),
    Ended('b', 0),
  ]
  fake.events = [Began('b', 'here')]  # late
  fake.results['a'] = (Began('a', 'there'), Ended('a', 1, 2.0))
  assert pool.poll() == [Ended('a', 1, 2.0)]


@pytest.mark.parametrize(
  'error, why',
  [
    (_Errors.OutOfMemoryError(), 'its node ran out of memory'),
    (_Errors.NodeDiedError(), 'its node was lost'),
    (_Errors.RayError('long\nstory'), 'story'),
  ],
)
def test_errors_of_ray_are_lost_machines(tmp_path, fake, error, why):
  pool = _pool(tmp_path)
  pool.submit([_job('a')])
  pool.poll()
  fake.results['a'] = error
  began, ended = pool.poll()
  assert began.name == 'a'
  assert (ended.name, ended.code, ended.why) == ('a', None, why)


def test_a_stop_drops_what_waits_and_reaches_what_runs(tmp_path, fake):
  pool = _pool(tmp_path, number=2)
  pool.submit([_job(name) for name in 'abc'])
  pool.poll()
  fake.events = [Began('a', 'here')]
  pool.poll()
  pool.stop()
  assert fake.cancelled == ['a', 'b']  # not c, which Ray never had
  fake.results['a'] = (Began('a', 'here'), Ended('a', 0))
  fake.results['b'] = _Errors.TaskCancelledError()
  assert pool.poll() == [Ended('a', 0)]
  assert pool.poll() == []


def test_a_cluster_without_the_resources_is_refused(tmp_path, fake):
  with pytest.raises(UsageError) as error:
    _pool(tmp_path, needs=Resources(2, 2, 16.0))
  assert str(error.value) == (
    'cores = 2, gpus = 2, memory_gb = 16 must fit a node of the Ray cluster: '
    '10.0.0.1 has 4 cores, 1 GPUs and 8.0 GB'
  )


def test_no_cluster_at_an_address_is_refused(tmp_path, fake):
  with pytest.raises(UsageError, match='--ray_address=nowhere must be a Ray'):
    _pool(tmp_path, address='nowhere')


def test_a_node_without_the_folder_is_refused(tmp_path, fake, monkeypatch):
  pool = _pool(tmp_path)
  monkeypatch.setattr(pathlib.Path, 'read_text', lambda *_, **__: 'another')
  with pytest.raises(UsageError, match='10.0.0.1 does not see .* share'):
    pool.submit([_job('a')])
  pool.close()
  assert list(tmp_path.iterdir()) == []


def test_ray_that_is_missing_names_its_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'ray', None)
  with pytest.raises(RunError, match=r'pip install siamrl\[ray\]'):
    _pool(tmp_path)


def test_a_job_is_stopped_by_a_pretended_signal(tmp_path):
  """Ray calls the handler of SIGINT, and no call of the system ends."""
  import _thread

  text = 'import time; print("up", flush=True); time.sleep(60)'
  log = tmp_path / 'log'
  job = Job('a', (sys.executable, '-c', text), str(tmp_path / 'a'), str(log))
  ended = pools.run(job, started=lambda _: _thread.interrupt_main())
  assert ended.code == -15 and ended.seconds < 30


def test_a_cell_saves_when_the_processes_of_a_worker_are_killed(tmp_path):
  """As Ray does when the driver of a cluster that it joined is killed."""
  launcher = small_cells.write_launcher(tmp_path)
  run = tmp_path / 'run'
  command = (sys.executable, str(launcher), str(run), '9999')
  job = Job('a', command, str(run), str(tmp_path / 'log'))

  def kill(process):
    while not (run / 'metrics.csv').exists():
      time.sleep(0.05)
    process.kill()

  assert pools.run(job, started=kill, between=True).code == -9
  while RunFolder(run).in_use():
    time.sleep(0.05)
  assert (tmp_path / 'log').read_text() == 'stopped\n'
  command = (*command[:-1], '5')
  (run / 'metrics.csv').write_text('x\n')
  ended = pools.run(job._replace(command=command), between=True)
  assert ended.code == 0 and ended.peak_bytes > 1e6
  assert (run / 'metrics.csv').read_text().count('\n') == 6


@pytest.mark.slow
def test_a_lost_node_costs_nothing(tmp_path):
  pytest.importorskip('ray')
  from ray.cluster_utils import Cluster

  cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1})
  lost = cluster.add_node(num_cpus=1)
  launcher = small_cells.write_launcher(tmp_path)
  folder, said = SweepFolder(tmp_path / 'runs'), []

  class Kill:
    """No request to stop; kills a node while two cells are half done."""

    def __bool__(self):
      rows = [glances.rows_of(folder.run(f'cell{i}')) for i in range(8)]
      if sum(20 < each < 80 for each in rows) == 2 and cluster.worker_nodes:
        cluster.remove_node(lost, allow_graceful=False)
      return False

  try:
    with folder.driven(small_cells.cells(8)):
      driver = small_cells.driver(
        folder, launcher, number=8, rows=100, say=said.append
      )
      pool = RayPool(folder.path, None, cluster.address, needs=Resources())
      assert pool.at_a_time == 2
      driver.run(pool, Kill())
  finally:
    cluster.shutdown()
  assert driver.failed == [] and not cluster.worker_nodes
  begun = [line.partition(':')[0] for line in said if ' on ' in line]
  assert len(begun) == 8 + 1 and set(begun) == {f'cell{i}' for i in range(8)}
  small_cells.check_whole(folder, number=8, rows=100)


@pytest.mark.slow
def test_a_stop_lets_cells_save(tmp_path):
  pytest.importorskip('ray')
  launcher = small_cells.write_launcher(tmp_path)
  folder = SweepFolder(tmp_path / 'runs')

  class Stop:
    def __bool__(self):
      return folder.run('cell0').metrics.exists()

  with folder.driven(small_cells.cells(3)):
    driver = small_cells.driver(folder, launcher, number=3, rows=9999)
    pool = RayPool(folder.path, 1, None, needs=Resources())
    driver.run(pool, Stop())
  assert folder.record('cell0').exit_code == 0
  assert [folder.state(f'cell{i}') for i in range(3)] == [
    State.CUT,
    State.WAITING,
    State.WAITING,
  ]


@pytest.mark.slow
def test_killed_workers_and_a_killed_driver_lose_nothing(tmp_path):
  pytest.importorskip('ray')
  small_cells.check_survives_kills(
    tmp_path, 'RayPool(folder.path, None, None, needs=Resources())'
  )
