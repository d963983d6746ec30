"""The amount of memory of this machine."""

import contextlib
import functools
import os
import pathlib


@functools.cache
def memory_bytes() -> int:
  """Memory of this machine, or of the process's container, in bytes."""
  total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  root = pathlib.Path('/sys/fs/cgroup')
  limits = [root / 'memory.max', root / 'memory' / 'memory.limit_in_bytes']
  with contextlib.suppress(OSError):
    for line in pathlib.Path('/proc/self/cgroup').read_text().splitlines():
      own = line.rpartition(':')[2].strip('/')
      limits += [
        root / own / 'memory.max',
        root / 'memory' / own / 'memory.limit_in_bytes',
      ]
  for limit in limits:
    with contextlib.suppress(OSError, ValueError):
      total = min(total, int(limit.read_text()))
  return total
