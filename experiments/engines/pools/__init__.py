"""Pools of processes, on one machine or on many, which run cells of a sweep."""

from collections.abc import Callable, Mapping, Sequence
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple, Protocol

from experiments.engines.pools import pinning

_GUARD = pathlib.Path(__file__).with_name('guard.py')
_POLL_S = 0.1


class Resources(NamedTuple):
  """Resources that each process may use.

  Attributes:
    cores: processor cores.
    gpus: GPUs.
    memory_gb: memory to set aside on a cluster; None for its default.
  """

  cores: int = 1
  gpus: int = 0
  memory_gb: float | None = None


class Job(NamedTuple):
  """A process to run.

  Attributes:
    name: the name of its cell.
    command: the command line of a launcher.
    folder: its run folder, which no other process may be using.
    log: the file that gets what it prints.
    needs: what it may use.
  """

  name: str
  command: tuple[str, ...]
  folder: str
  log: str
  needs: Resources = Resources()


class Began(NamedTuple):
  """The event that a job has begun, or begun again on another machine.

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
  """A pool of processes that runs jobs; one thread uses it.

  Attributes:
    at_a_time: jobs that it can run at a time now; None if it cannot tell.
  """

  at_a_time: int | None

  def submit(self, jobs: Sequence[Job]) -> None:
    """Queues jobs."""

  def poll(self) -> list[Began | Ended]:
    """Events since the last call; returns soon."""

  def stop(self) -> None:
    """Asks running jobs to save and stop, and drops queued ones."""

  def close(self) -> None:
    """Frees what the pool holds, once all jobs have ended."""


def start(
  job: Job,
  *,
  on: Sequence[int] | None = None,
  gpus: str | None = None,
  environment: Mapping[str, str | None] | None = None,
  keep: Sequence[int] = (),
  between: bool = False,
) -> subprocess.Popen:
  """Starts the process of a job.

  It has a session of its own, so that Ctrl-C reaches it through this process
  alone: twice would interrupt it before it has saved. If this process is
  killed, it is asked to save and stop (on Linux).

  Args:
    job: the job.
    on: processor cores to hold it to; None for those of this process.
    gpus: numbers of the GPUs that it sees, separated by commas; None for all.
    environment: variables to set, or to remove where the value is None.
    keep: file descriptors that stay open in it.
    between: whether a process stands between, so that one that kills all
      processes started by this one still lets the job save.
  """
  changed: dict[str, str | None] = dict(environment or {})
  if gpus is not None:
    changed['CUDA_VISIBLE_DEVICES'] = gpus
  if on is not None and not hasattr(os, 'sched_setaffinity'):
    changed['NPROC'] = str(len(on))  # which XLA reads
  variables = {k: v for k, v in os.environ.items() if k not in changed}
  variables |= {k: v for k, v in changed.items() if v is not None}
  pathlib.Path(job.log).parent.mkdir(parents=True, exist_ok=True)
  with open(job.log, 'ab') as log:
    return subprocess.Popen(
      [
        *(sys.executable, str(_GUARD), str(os.getpid()), str(int(between))),
        ','.join(map(str, on or ())) or '-',
        job.folder,
        *job.command,
      ],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      start_new_session=True,
      env=variables,
      pass_fds=keep,
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


def run(
  job: Job,
  *,
  environment: Mapping[str, str | None] | None = None,
  started: Callable[[subprocess.Popen], None] | None = None,
  between: bool = False,
) -> Ended:
  """Runs a job to its end; SIGTERM and SIGINT are passed on as SIGTERM.

  It may be called in another process, on another machine, in the main thread
  there. The folder of the run and the working directory must be the same. The
  job is held to as many cores as it may use, which no other job has here.

  Args:
    job: the job.
    environment: see `start`.
    started: is called with the process.
    between: see `start`.
  """
  began = time.monotonic()
  process: subprocess.Popen | None = None
  asked = False

  def ask(*_: object) -> None:
    nonlocal asked
    asked = True
    if process is not None:
      process.terminate()

  numbers = (signal.SIGTERM, signal.SIGINT)
  before = {number: signal.signal(number, ask) for number in numbers}
  try:
    with pinning.taken(job.needs.cores) as share:
      process = start(
        job,
        on=share.cores,
        environment=environment,
        keep=share.locks,
        between=between,
      )
      if started is not None:
        started(process)
      if asked:
        process.terminate()
      while (found := ended(process, wait=False)) is None:
        # A signal may be only pretended, as Ray does, and then interrupts no
        # call of the system; so this must not wait for longer.
        time.sleep(_POLL_S)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  code, peak_bytes = found
  return Ended(job.name, code, time.monotonic() - began, peak_bytes)
