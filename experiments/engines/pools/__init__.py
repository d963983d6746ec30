"""Pools of processes, on one machine or on many, which run cells of a sweep."""

from collections.abc import Sequence
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple, Protocol

_GUARD = pathlib.Path(__file__).with_name('guard.py')


class Job(NamedTuple):
  """A process to run.

  Attributes:
    name: the name of its cell.
    command: the command line of a launcher.
    folder: its run folder, which no other process may be using.
    log: the file that gets what it prints.
    cores: processor cores that it may use.
    gpus: GPUs that it may use.
    memory_gb: memory to set aside for it on a cluster; None for the default.
  """

  name: str
  command: tuple[str, ...]
  folder: str
  log: str
  cores: int = 1
  gpus: int = 0
  memory_gb: float | None = None


class Began(NamedTuple):
  """The event that a job has begun.

  Attributes:
    name: the name of its cell.
    where: the machine or the cores, for the user to read.
  """

  name: str
  where: str


class Ended(NamedTuple):
  """The event that a job has ended.

  Attributes:
    name: the name of its cell.
    code: its exit code, negative for a signal; None if its machine was lost.
    seconds: how long it ran.
    peak_bytes: most memory that it used; None if unknown.
    why: what happened, where there is no exit code.
  """

  name: str
  code: int | None
  seconds: float = 0.0
  peak_bytes: int | None = None
  why: str = ''


class Pool(Protocol):
  """A pool of processes that runs jobs; one thread uses it."""

  def submit(self, jobs: Sequence[Job]) -> None:
    """Queues jobs."""

  def poll(self) -> list[Began | Ended]:
    """Events since the last call; returns soon."""

  def stop(self) -> None:
    """Asks running jobs to save and stop, and drops queued ones."""

  def close(self) -> None:
    """Frees what the pool holds, once all jobs have ended."""


def start(
  job: Job, *, on: Sequence[int] | None = None, gpus: str | None = None
) -> subprocess.Popen:
  """Starts the process of a job.

  It has a session of its own, so that Ctrl-C reaches it through this process
  alone: twice would interrupt it before it has saved. If this process is
  killed, it is asked to save and stop (on Linux).

  Args:
    job: the job.
    on: processor cores to hold it to; None for those of this process.
    gpus: numbers of the GPUs that it sees, separated by commas; None for all.
  """
  environment = dict(os.environ)
  if gpus is not None:
    environment['CUDA_VISIBLE_DEVICES'] = gpus
  if on is not None and not hasattr(os, 'sched_setaffinity'):
    environment['NPROC'] = str(len(on))  # which XLA reads
  pathlib.Path(job.log).parent.mkdir(parents=True, exist_ok=True)
  with open(job.log, 'ab') as log:
    return subprocess.Popen(
      [
        *(sys.executable, str(_GUARD), str(os.getpid())),
        ','.join(map(str, on or ())) or '-',
        job.folder,
        *job.command,
      ],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      start_new_session=True,
      env=environment,
    )


def ended(process: subprocess.Popen, *, wait: bool) -> tuple[int, int] | None:
  """The exit code and the most memory, bytes, of a process that has ended.

  Args:
    process: the process.
    wait: whether to wait for its end.

  Returns:
    None if it is still running.
  """
  flags = 0 if wait else os.WNOHANG
  number, status, usage = os.wait4(process.pid, flags)
  if number == 0:
    return None
  code = os.waitstatus_to_exitcode(status)
  process.returncode = code  # Popen has not seen it
  unit = 1 if sys.platform == 'darwin' else 1024
  return code, usage.ru_maxrss * unit


def run(job: Job) -> Ended:
  """Runs a job to its end; a SIGTERM to this process is passed on to it.

  It may be called in another process, on another machine. The folder of the run
  and the working directory must be the same there.
  """
  began = time.monotonic()
  process = start(job)
  before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
  try:
    found = ended(process, wait=True)
  finally:
    signal.signal(signal.SIGTERM, before)
  assert found is not None
  code, peak_bytes = found
  return Ended(job.name, code, time.monotonic() - began, peak_bytes)
