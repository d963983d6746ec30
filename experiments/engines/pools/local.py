"""Processes of this machine, each held to cores, and to GPUs, of its own."""

from collections.abc import Sequence
import collections
import os
import subprocess
import time
from typing import NamedTuple

from experiments.config.declaring import UsageError
from experiments.engines.pools import (
  Began,
  Ended,
  Job,
  ended,
  pinning,
  start,
)


class Share(NamedTuple):
  """A share of the machine: its cores, and its GPUs as CUDA numbers them."""

  cores: tuple[int, ...]
  gpus: tuple[str, ...]


class _Running(NamedTuple):
  process: subprocess.Popen
  share: Share
  began: float


class LocalPool:
  """Jobs as processes, as many at a time as there are shares of the machine.

  Attributes:
    shares: what each of the jobs of one time has to itself.
    at_a_time: their number.
  """

  def __init__(self, number: int | None, *, cores: int, gpus: int):
    """Divides the machine.

    Args:
      number: most jobs at a time; None for as many as the machine can hold.
      cores: processor cores of each job.
      gpus: GPUs of each job.

    Raises:
      UsageError: the machine does not have as many.
    """
    self.shares = _divide(number, cores, gpus)
    self.at_a_time: int | None = len(self.shares)
    self._free = list(self.shares)
    self._queue: collections.deque[Job] = collections.deque()
    self._running: dict[str, _Running] = {}

  def submit(self, jobs: Sequence[Job]) -> None:
    """Queues jobs."""
    self._queue.extend(jobs)

  def poll(self) -> list[Began | Ended]:
    """Starts jobs where there is room, and notices those that have ended."""
    events: list[Began | Ended] = []
    for name, each in list(self._running.items()):
      found = ended(each.process, wait=False)
      if found is not None:
        del self._running[name]
        self._free.append(each.share)
        code, peak_bytes = found
        seconds = time.monotonic() - each.began
        events.append(Ended(name, code, seconds, peak_bytes))
    while self._queue and self._free:
      job, share = self._queue.popleft(), self._free.pop(0)
      gpus = ','.join(share.gpus) if share.gpus else None
      process = start(job, on=share.cores, gpus=gpus)
      self._running[job.name] = _Running(process, share, time.monotonic())
      words = f'core {",".join(map(str, share.cores))}'
      events.append(Began(job.name, words + (f', GPU {gpus}' if gpus else '')))
    return events

  def stop(self) -> None:
    """Asks running jobs to save and stop, and drops queued ones."""
    self._queue.clear()
    for each in self._running.values():
      each.process.terminate()

  def close(self) -> None:
    """Waits for jobs that still run."""
    self.stop()
    for each in self._running.values():
      ended(each.process, wait=True)
    self._running.clear()


def _divide(number: int | None, cores: int, gpus: int) -> list[Share]:
  """The shares of this machine."""
  mine = pinning.cores()
  if cores > len(mine):
    raise UsageError(
      f'cores = {cores} must be at most {len(mine)}, the cores of this machine'
    )
  most = len(mine) // cores
  cards = _gpus() if gpus else []
  if gpus:
    if gpus > len(cards):
      raise UsageError(
        f'gpus = {gpus} must be at most {len(cards)}, the GPUs of this machine'
      )
    most = min(most, len(cards) // gpus)
  if number is not None and number > most:
    raise UsageError(
      f'--jobs={number} must be at most {most}: a job has {cores} of '
      f'{len(mine)} cores'
      + (f' and {gpus} of {len(cards)} GPUs' if gpus else '')
    )
  return [
    Share(
      tuple(mine[i * cores : (i + 1) * cores]),
      tuple(cards[i * gpus : (i + 1) * gpus]),
    )
    for i in range(number or most)
  ]


def _gpus() -> list[str]:
  """The GPUs that this process may use, as CUDA numbers them."""
  given = os.environ.get('CUDA_VISIBLE_DEVICES')
  if given is not None:
    return [name for name in given.split(',') if name]
  folder = '/proc/driver/nvidia/gpus'
  number = len(os.listdir(folder)) if os.path.isdir(folder) else 0
  return [str(index) for index in range(number)]
