"""Cells in job arrays of SLURM: events, time limits, drivers that come back."""

import pathlib
import signal
import sys
import time
import types

import pytest

from experiments.config.declaring import RunError, UsageError
from experiments.engines.pools import Began, Ended, Job, Resources, slurm
from experiments.engines.pools.slurm import SlurmOptions, SlurmPool
from experiments.engines.sweep_folders import State, SweepFolder
from tests.experiments.engines import small_cells, small_slurm

_RUNS, _WAITS = slurm._Seen('RUNNING', 'n7'), slurm._Seen('PENDING', '')


class _Refused(Exception):
  pass


class _Submitted:
  """A job as submitit shows it; the test sets its result."""

  def __init__(self, folder, number):
    self.job_id = number
    self.path = pathlib.Path(folder, f'{number}_0_result.pkl')
    self.paths = types.SimpleNamespace(result_pickle=self.path)
    self.error = None

  def ends(self, result):
    self.path.touch()
    self.result = lambda: result

  def exception(self):
    return self.error


class _Slurm:
  """SLURM and submitit without processes."""

  def __init__(self):
    self.core = types.SimpleNamespace(
      utils=types.SimpleNamespace(FailedJobError=_Refused)
    )
    self.queue, self.jobs, self.parameters = {}, {}, {}
    self.calls, self.clock, self.refusal = [], 0.0, None

  def SlurmExecutor(self, folder, max_num_timeout):
    self.folder = folder
    return self

  def SlurmJob(self, folder, number):
    return self.jobs[number]

  def update_parameters(self, **given):
    self.parameters = given

  def submit_array(self, calls):
    if self.refusal:
      raise _Refused(self.refusal)
    first = len(self.jobs)
    made = [
      _Submitted(self.folder, f'9_{first + i}') for i in range(len(calls))
    ]
    self.jobs |= {job.job_id: job for job in made}
    self.queue |= {job.job_id: _WAITS for job in made}
    return made

  def call(self, *command):
    self.calls.append(command)
    return 'JobState=NODE_FAIL Reason=None'

  def monotonic(self):
    self.clock += 100
    return self.clock


@pytest.fixture
def fake(monkeypatch):
  fake = _Slurm()
  monkeypatch.setattr(slurm, 'import_optional', lambda *_: fake)
  monkeypatch.setattr(slurm, '_read_queue', lambda: fake.queue)
  monkeypatch.setattr(slurm, '_call', fake.call)
  monkeypatch.setattr(slurm, 'time', fake)
  return fake


def _pool(tmp_path, number=None, options=None, needs=None):
  return SlurmPool(
    tmp_path, number, options or SlurmOptions(), needs=needs or Resources()
  )


def _jobs(*names):
  return [Job(name, ('true',), name, name) for name in names]


def test_options_become_parameters_of_submitit(tmp_path, fake):
  options = SlurmOptions(
    'gpu', 240, 120, ('module load cuda',), {'account': 'vision'}
  )
  _pool(tmp_path, 5, options, Resources(2, 1, 1.5))
  assert fake.parameters == {
    'job_name': 'siamrl',
    'time': 240,
    'signal_delay_s': 120,
    'partition': 'gpu',
    'cpus_per_task': 2,
    'srun_args': ['--cpus-per-task=2'],
    'stderr_to_stdout': True,
    'additional_parameters': {'requeue': True, 'account': 'vision'},
    'setup': ['module load cuda'],
    'array_parallelism': 5,
    'gpus_per_node': 1,
    'mem': '1500M',
  }


def test_events_follow_the_queue(tmp_path, fake):
  pool = _pool(tmp_path)
  pool.submit(_jobs('a', 'b'))
  assert pool.poll() == []
  fake.queue['9_0'] = _RUNS
  assert pool.poll() == [Began('a', 'n7, job 9_0')]
  assert pool.poll() == []
  fake.queue['9_0'] = _WAITS  # its time was over
  assert pool.poll() == []
  fake.queue['9_0'] = _RUNS
  assert pool.poll() == [Began('a', 'n7, job 9_0')]
  fake.jobs['9_1'].ends(Ended('b', 0, 3.0))  # between two looks
  assert pool.poll() == [Began('b', 'job 9_1'), Ended('b', 0, 3.0)]
  fake.jobs['9_0'].ends(Ended('a', 1, 3.0))
  assert pool.poll() == [Ended('a', 1, 3.0)]
  assert pool.poll() == []


def test_a_job_that_vanishes_is_lost(tmp_path, fake):
  pool = _pool(tmp_path)
  pool.submit(_jobs('a'))
  fake.queue = {'9_0': _RUNS}
  assert len(pool.poll()) == 1
  fake.queue = {}
  events = [*pool.poll(), *pool.poll()]
  (ended,) = events
  assert ended.code is None and ended.why == 'job 9_0: node fail'


def test_what_cannot_save_in_time_is_a_failure(tmp_path, fake):
  pool = _pool(tmp_path)
  pool.submit(_jobs('a'))
  fake.jobs['9_0'].ends(None)
  fake.jobs['9_0'].error = RuntimeError(
    'Job failed with trace:\n  File ...\nsubmitit.UncompletedJobError: Job not '
    'requeued because: checkpoint function returned None.\n----'
  )
  _, ended = pool.poll()
  assert ended.code is None
  assert ended.why.endswith(
    'Job not requeued because: checkpoint function returned None.'
  )


def test_the_next_pool_takes_jobs_over(tmp_path, fake):
  _pool(tmp_path).submit(_jobs('a', 'b', 'c'))
  fake.queue = {'9_0': _RUNS}
  fake.jobs['9_1'].ends(Ended('b', 0))
  pool = _pool(tmp_path)
  pool.submit(_jobs('a', 'b', 'c'))
  assert list(fake.jobs) == ['9_0', '9_1', '9_2', '9_3']  # c, which was lost
  assert pool.poll() == [
    Began('a', 'n7, job 9_0'),
    Began('b', 'job 9_1'),
    Ended('b', 0),
  ]
  pool.submit(_jobs('b'))  # a further attempt is a new job
  assert '9_4' in fake.jobs


def test_a_stop_signals_what_runs_and_cancels_what_waits(tmp_path, fake):
  pool = _pool(tmp_path)
  pool.submit(_jobs('a', 'b'))
  pool.stop()
  assert fake.calls == [
    ('scancel', '--state=PENDING', '9_0', '9_1'),
    ('scancel', '--state=RUNNING', '--signal=TERM', '9_0', '9_1'),
  ]


def test_what_slurm_refuses_is_a_usage_error(tmp_path, fake):
  pool = _pool(tmp_path)
  fake.refusal = 'sbatch: error: invalid partition specified: gpus\nsbatch: x'
  with pytest.raises(UsageError, match='error: invalid partition') as error:
    pool.submit(_jobs('a'))
  assert '\n' not in str(error.value)


def test_while_slurm_is_away_jobs_wait(tmp_path, fake):
  pool = _pool(tmp_path)
  pool.submit(_jobs('a'))
  fake.refusal = 'sbatch: error: Unable to contact slurm controller'
  pool.submit(_jobs('b'))
  assert pool.poll() == [] and len(fake.jobs) == 1
  fake.refusal = None
  assert pool.poll() == [] and len(fake.jobs) == 2


@pytest.mark.parametrize(
  'module, extra', [('submitit', r'siamrl\[slurm\]'), ('', 'no srun')]
)
def test_what_is_missing_is_named(tmp_path, monkeypatch, module, extra):
  if module:
    monkeypatch.setitem(sys.modules, module, None)
  else:
    pytest.importorskip('submitit')
    monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(RunError, match=extra):
    _pool(tmp_path)


@pytest.mark.parametrize('saves', [True, False])
def test_the_end_of_time_saves_and_goes_on(tmp_path, saves):
  """As submitit does it: a handler calls the checkpoint and ends all."""
  pytest.importorskip('submitit')
  launcher = small_cells.write_launcher(tmp_path)
  run = tmp_path / 'run'
  command = (sys.executable, str(launcher), str(run), '9999')
  if not saves:
    command = (sys.executable, '-c', 'import time; time.sleep(60)')
  attempt = slurm._Attempt(Job('a', command, str(run), str(tmp_path / 'log')))

  def over(*_):
    while saves and not (run / 'metrics.csv').exists():
      time.sleep(0.05)
    raise StopIteration(attempt.checkpoint())

  before = signal.signal(signal.SIGALRM, over)
  signal.setitimer(signal.ITIMER_REAL, 0.3)
  try:
    with pytest.raises(StopIteration) as error:
      attempt()
  finally:
    signal.signal(signal.SIGALRM, before)
  following = error.value.value
  if saves:
    assert following.function._job == attempt._job
    assert following.function._process is None
  else:
    assert following is None


def _drive(tmp_path, pool_of, *, number, rows):
  """Drives small cells; returns the folder and the lines that were said."""
  launcher = small_cells.write_launcher(tmp_path)
  folder, said = SweepFolder(tmp_path / 'runs'), []
  with folder.driven(small_cells.cells(number)):
    driver = small_cells.driver(
      folder, launcher, number=number, rows=rows, say=said.append
    )
    driver.run(pool_of(folder.path), False)
  assert driver.failed == []
  small_cells.check_whole(folder, number=number, rows=rows)
  return folder, said


@pytest.mark.slow
def test_submitit_continues_what_runs_out_of_time(tmp_path, monkeypatch):
  """By its local executor, which ends a job after 6 seconds."""
  pytest.importorskip('submitit')
  monkeypatch.setenv('PYTHONPATH', str(small_cells.ROOT))
  folder, said = _drive(
    tmp_path,
    lambda path: SlurmPool(
      path,
      None,
      SlurmOptions(timeout_min=0.1, signal_s=2),
      needs=Resources(),
      cluster='local',
    ),
    number=2,
    rows=400,
  )
  logs = ''.join(
    path.read_text() for path in (folder.path / '.slurm').glob('*.err')
  )
  assert logs.count('this job is timed-out') >= 2
  assert not any('tried again' in line for line in said)


@pytest.fixture
def cluster(tmp_path_factory, monkeypatch):
  """A SLURM of two nodes."""
  pytest.importorskip('submitit')
  if not small_slurm.is_there():
    pytest.skip('needs slurm-wlm and munge, and root')
  monkeypatch.setenv('PYTHONPATH', str(small_cells.ROOT))
  monkeypatch.setattr(slurm, '_QUEUE_S', 1.0)
  with small_slurm.running(tmp_path_factory.mktemp('slurm')) as variables:
    for name, value in variables.items():
      monkeypatch.setenv(name, value)
    yield


@pytest.mark.slow
def test_slurm_continues_what_runs_out_of_time(tmp_path, cluster):
  options = SlurmOptions(timeout_min=2, signal_s=75)
  folder, said = _drive(
    tmp_path,
    lambda path: SlurmPool(path, None, options, needs=Resources()),
    number=2,
    rows=3500,
  )
  logs = ''.join(
    path.read_text() for path in (folder.path / '.slurm').glob('*.out')
  )
  assert logs.count('Requeued job') >= 2
  nodes = {
    line.split(' on ')[1].partition(',')[0] for line in said if ' on ' in line
  }
  assert nodes == {'n1', 'n2'}


@pytest.mark.slow
def test_a_stop_lets_cells_on_slurm_save(tmp_path, cluster):
  launcher = small_cells.write_launcher(tmp_path)
  folder = SweepFolder(tmp_path / 'runs')

  class Stop:
    def __bool__(self):
      return folder.run('cell0').metrics.exists()

  with folder.driven(small_cells.cells(3)):
    driver = small_cells.driver(folder, launcher, number=3, rows=9999)
    pool = SlurmPool(folder.path, 1, SlurmOptions(), needs=Resources())
    driver.run(pool, Stop())
  assert folder.record('cell0').exit_code == 0
  assert folder.state('cell0') == State.CUT
  assert folder.state('cell1') == State.WAITING


@pytest.mark.slow
def test_a_partition_that_is_not_there_is_refused(tmp_path, cluster):
  pool = SlurmPool(
    tmp_path, None, SlurmOptions(partition='gpus'), needs=Resources()
  )
  with pytest.raises(UsageError, match='invalid partition specified: gpus'):
    pool.submit(_jobs('a'))
