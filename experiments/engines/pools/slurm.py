"""Job arrays of a SLURM cluster, by submitit."""

from collections.abc import Mapping, Sequence
import contextlib
import getpass
import json
import math
import pathlib
import subprocess
import time
from typing import Any, NamedTuple

from experiments.config.declaring import RunError, UsageError
from experiments.engines import pools
from experiments.engines.pools import Began, Ended, Job, Resources, ended
from siamrl.optional import import_optional
from siamrl.report.run_folder import write_atomically

_NEEDS = '--launcher=slurm needs submitit'
# The folder of submitit, in that of the sweep, and its jobs by cell.
_FOLDER = '.slurm'
_JOBS = 'jobs.json'
# A job may end its time this often, saving before each end.
_MOST_TIMEOUTS = 1_000_000
# Seconds between two looks at the queue, which serves all users.
_QUEUE_S = 10.0
# Seconds after which a job is lost that is neither in the queue nor has left a
# result; file systems of clusters may show files late.
_LATE_S = 30.0
_MOST_ARGUMENTS = 500


class _Attempt:
  """A call that runs a job on a node of SLURM, as often as its time ends."""

  def __init__(self, job: Job):
    self._job = job
    self._process: Any = None

  def __call__(self) -> Ended:
    """Runs the job."""

    def started(process: Any) -> None:
      self._process = process

    return pools.run(self._job, started=started)

  def checkpoint(self) -> Any:
    """Saves, as time ends or others come first; None if nothing was saved.

    Returns:
      What is to run next, as submitit expects it.
    """
    if self._process is not None:
      self._process.terminate()
      with contextlib.suppress(ChildProcessError):  # it has just ended
        code, _ = ended(self._process, wait=True) or (None, None)
        if code != 0:
          return None
    submitit = import_optional('submitit', _NEEDS, 'slurm')
    return submitit.helpers.DelayedSubmission(_Attempt(self._job))


class _Seen(NamedTuple):
  """A job as the queue shows it.

  Attributes:
    state: its state in SLURM's words.
    where: its nodes.
  """

  state: str
  where: str


class SlurmOptions(NamedTuple):
  """Options of SLURM jobs.

  Attributes:
    partition: the partition; None for the default one.
    timeout_min: time limit of a job, in minutes.
    signal_s: seconds before the limit at which a job saves.
    setup: shell commands to run first on a node.
    sbatch: further options of sbatch, by name.
  """

  partition: str | None = None
  timeout_min: float = 60
  signal_s: int = 90
  setup: tuple[str, ...] = ()
  sbatch: Mapping[str, str] = {}


class SlurmPool:
  """Jobs as elements of SLURM's job arrays.

  A job that runs out of its time saves, and SLURM runs it again. Jobs go on
  when this process is killed; the next pool of the folder takes them over.

  Attributes:
    at_a_time: the most jobs at a time, if it was given.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    number: int | None,
    options: SlurmOptions,
    *,
    needs: Resources,
    cluster: str = 'slurm',
  ):
    """Prepares submission; nothing is submitted yet.

    Args:
      folder: the folder of the sweep, which all nodes must share.
      number: most jobs at a time of an array; None for as many as SLURM runs.
      options: options of SLURM.
      needs: what each job may use.
      cluster: the executor of submitit; 'local' is for tests.

    Raises:
      RunError: submitit is missing, or this machine cannot submit to SLURM.
    """
    try:
      self._submitit = import_optional('submitit', _NEEDS, 'slurm')
    except ImportError as error:
      raise RunError(str(error)) from error
    self.at_a_time = number
    self._folder = folder.absolute() / _FOLDER
    self._is_local = cluster == 'local'
    self._executor = self._make_executor(options, number, needs)
    self._jobs: dict[str, Any] = {}  # by cell
    self._backlog: list[Job] = []
    self._began: dict[str, float] = {}
    self._queue: dict[str, _Seen] = {}  # by job number
    self._looked = -_QUEUE_S
    self._missed: dict[str, float] = {}

  def submit(self, jobs: Sequence[Job]) -> None:
    """Submits jobs as an array, but for those that were submitted before.

    Raises:
      UsageError: SLURM refuses the first ones.
    """
    before = self._submitted()
    self._look()
    new = []
    for job in jobs:
      number = before.get(job.name)
      found = number and self._submitit.SlurmJob(self._folder, number)
      if found and (
        number in self._queue or found.paths.result_pickle.exists()
      ):
        self._jobs[job.name] = found
      else:
        new.append(job)
    try:
      self._submit(new)
    except self._submitit.core.utils.FailedJobError as error:
      if not self._jobs:
        raise UsageError(f'--launcher=slurm: {_refusal(error)}') from error
      self._backlog += new  # SLURM may be away

  def poll(self) -> list[Began | Ended]:
    """Events since the last call."""
    if self._look() and self._backlog:
      backlog, self._backlog = self._backlog, []
      self.submit(backlog)
    events: list[Began | Ended] = []
    for name, job in list(self._jobs.items()):
      seen = self._queue.get(job.job_id)
      if job.paths.result_pickle.exists():
        last = self._result(name, job)
      elif time.monotonic() - self._missed.get(name, math.inf) > _LATE_S:
        last = self._end(name, job, _state(job.job_id))
      elif seen is not None and seen.state == 'RUNNING':
        if name not in self._began:
          self._began[name] = time.monotonic()
          events.append(Began(name, f'{seen.where}, job {job.job_id}'))
        continue
      else:
        if seen is not None and seen.state == 'PENDING':
          self._began.pop(name, None)  # it was requeued
        continue
      if self._began.pop(name, None) is None:
        events.append(Began(name, f'job {job.job_id}'))
      events.append(last)
      del self._jobs[name]
      self._write()
    return events

  def stop(self) -> None:
    """Asks running jobs to save and stop, and drops queued ones."""
    self._backlog.clear()
    if self._is_local:
      for job in self._jobs.values():
        job._process.terminate()
      return
    numbers = [job.job_id for job in self._jobs.values()]
    for i in range(0, len(numbers), _MOST_ARGUMENTS):
      some = numbers[i : i + _MOST_ARGUMENTS]
      _call('scancel', '--state=PENDING', *some)
      # Without --signal SLURM would kill them after some seconds.
      _call('scancel', '--state=RUNNING', '--signal=TERM', *some)

  def close(self) -> None:
    """Asks jobs that still run to save and stop."""
    self.stop()

  def _make_executor(
    self, options: SlurmOptions, number: int | None, needs: Resources
  ) -> Any:
    """The executor of submitit."""
    if self._is_local:
      executor = self._submitit.LocalExecutor(
        self._folder, max_num_timeout=_MOST_TIMEOUTS
      )
      executor.update_parameters(
        timeout_min=options.timeout_min, signal_delay_s=options.signal_s
      )
      return executor
    try:
      executor = self._submitit.SlurmExecutor(
        self._folder, max_num_timeout=_MOST_TIMEOUTS
      )
    except RuntimeError as error:
      raise RunError(
        '--launcher=slurm: this machine has no srun and cannot submit jobs'
      ) from error
    executor.update_parameters(**_parameters(options, number, needs))
    return executor

  def _submit(self, jobs: Sequence[Job]) -> None:
    if jobs:
      made = self._executor.submit_array([_Attempt(job) for job in jobs])
      self._jobs |= {job.name: e for job, e in zip(jobs, made, strict=True)}
    self._write()

  def _submitted(self) -> dict[str, str]:
    """The job numbers of cells, also of pools before this one."""
    try:
      return dict(json.loads((self._folder / _JOBS).read_text()))
    except (OSError, ValueError, TypeError):
      return {}

  def _write(self) -> None:
    """Writes the job numbers of cells whose jobs have not ended."""
    self._folder.mkdir(parents=True, exist_ok=True)
    numbers = {name: job.job_id for name, job in self._jobs.items()}
    path = self._folder / _JOBS
    write_atomically(path, json.dumps(numbers).encode())

  def _look(self) -> bool:
    """Looks at the queue, if it was not looked at for a while.

    Returns:
      Whether it did.
    """
    now = time.monotonic()
    if self._is_local:
      queue: dict[str, _Seen] | None = {
        job.job_id: _Seen('RUNNING', 'this machine')
        for job in self._jobs.values()
        if job._process.poll() is None
      }
    elif now - self._looked < _QUEUE_S:
      return False
    else:
      queue = _read_queue()
    self._looked = now
    if queue is None:  # SLURM is away, and comes back
      return False
    self._queue = queue
    self._missed = {
      name: self._missed.get(name, now)
      for name, job in self._jobs.items()
      if job.job_id not in queue
    }
    return True

  def _result(self, name: str, job: Any) -> Ended:
    """The event of a job that has left a result."""
    error = job.exception()
    return job.result() if error is None else self._end(name, job, _why(error))

  def _end(self, name: str, job: Any, why: str) -> Ended:
    """The event of a job that has left no exit code."""
    now = time.monotonic()
    seconds = now - self._began.get(name, now)
    return Ended(name, None, seconds, why=f'job {job.job_id}: {why}')


def _parameters(
  options: SlurmOptions, number: int | None, needs: Resources
) -> dict[str, Any]:
  """The parameters of submitit's executor."""
  cores = needs.cores
  found: dict[str, Any] = {
    'job_name': 'siamrl',
    'time': options.timeout_min,
    'signal_delay_s': options.signal_s,
    'partition': options.partition,
    'cpus_per_task': cores,
    # Newer versions of srun do not take it over from sbatch.
    'srun_args': [f'--cpus-per-task={cores}'],
    'stderr_to_stdout': True,
    'additional_parameters': {'requeue': True, **options.sbatch},
  }
  if options.setup:
    found['setup'] = list(options.setup)
  if number is not None:
    found['array_parallelism'] = number
  if needs.gpus:
    found['gpus_per_node'] = needs.gpus
  if needs.memory_gb is not None:
    found['mem'] = f'{math.ceil(needs.memory_gb * 1000)}M'
  return found


def _call(*command: str) -> str | None:
  """Calls a command of SLURM; returns what it prints, None if it fails."""
  found = subprocess.run(command, capture_output=True, text=True, check=False)
  return found.stdout if found.returncode == 0 else None


def _read_queue() -> dict[str, _Seen] | None:
  """The user's jobs by number; None if SLURM does not answer."""
  text = _call(
    # --array shows the elements of an array one by one.
    *('squeue', '--noheader', '--array', '--format=%i|%T|%N'),
    f'--user={getpass.getuser()}',
  )
  if text is None:
    return None
  lines = [line.strip().split('|') for line in text.splitlines()]
  return {line[0]: _Seen(line[1], line[2]) for line in lines if len(line) == 3}


def _refusal(error: Exception) -> str:
  """The line in which sbatch says why it refuses a job."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  said = [line for line in lines if 'error:' in line]
  return (said or lines or ['refused'])[0]


def _why(error: Exception) -> str:
  """The last error in the traceback that submitit passes on."""
  lines = [line.strip() for line in str(error).splitlines()]
  found = [line for line in lines if 'Error: ' in line]
  return found[-1].partition('Error: ')[2] if found else lines[0]


def _state(number: str) -> str:
  """The state of a job that has left the queue, if SLURM still knows it."""
  for word in (_call('scontrol', 'show', 'job', number) or '').split():
    if word.startswith('JobState='):
      return word.removeprefix('JobState=').lower().replace('_', ' ')
  return 'it left no result'
