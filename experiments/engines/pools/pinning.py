"""Processor cores of a machine, which its jobs divide among themselves.

Ray and SLURM count cores, and may leave it to each job which ones it uses. Two
jobs on one core would be slow, and a job on more cores than it asked for may
compute other numbers.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import os
import pathlib
import tempfile
from typing import NamedTuple


class Taken(NamedTuple):
  """Cores of a job.

  Attributes:
    cores: their numbers.
    locks: open files that mark them as taken. A process that keeps them open
      has the cores until it ends, even if the one that took them is killed.
  """

  cores: tuple[int, ...]
  locks: tuple[int, ...] = ()


def cores() -> list[int]:
  """The processor cores that this process may use; on macOS, all of them."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def taken(number: int) -> Iterator[Taken]:
  """Takes cores of this machine that no other job of this user has taken.

  Where too few are left, cores are shared.

  Args:
    number: how many.
  """
  mine = cores()
  if not hasattr(os, 'sched_getaffinity') or len(mine) <= number:
    yield Taken(tuple(mine[:number]))
    return
  folder = pathlib.Path(tempfile.gettempdir(), f'siamrl-cores-{os.getuid()}')
  folder.mkdir(mode=0o700, exist_ok=True)
  with contextlib.ExitStack() as stack:
    locks: dict[int, int] = {}
    for core in mine:
      if len(locks) == number:
        break
      lock = os.open(folder / str(core), os.O_RDWR | os.O_CREAT, 0o600)
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError:
        os.close(lock)
      else:
        stack.callback(os.close, lock)
        locks[core] = lock
    others = [core for core in mine if core not in locks]
    chosen = [*locks, *others][:number]
    yield Taken(tuple(sorted(chosen)), tuple(locks.values()))
