"""A process that becomes a launcher: guard.py PARENT BETWEEN CORES FOLDER ...

It holds itself to processor cores, asks the kernel for a SIGTERM when its
parent ends, ignores the warnings of batch systems, waits until no other process
uses the run folder, and then executes the command. It imports the standard
library only, to begin at once.
"""

import ctypes
import fcntl
import os
import signal
import sys
import time

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_POLL_S = 0.2


def _follow(parent: int) -> None:
  """Ends with the parent, saving first, also if that is killed (on Linux)."""
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:
      sys.exit('the process that started this one has ended')


def _wait(folder: str) -> None:
  """Waits until no process holds the lock of a run folder.

  A run that was cut may still be saving.
  """
  said = False
  while True:
    try:
      descriptor = os.open(os.path.join(folder, '.lock'), os.O_RDONLY)
    except OSError:
      return
    try:
      fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
      return
    except BlockingIOError:
      if not said:
        print(f'waiting: {folder} is in use', flush=True)
        said = True
      time.sleep(_POLL_S)
    except OSError:  # a file system without locks
      return
    finally:
      os.close(descriptor)


def _stand_between() -> None:
  """Goes on in a child, and waits here for its end.

  Ray kills the processes that its workers have started, when they end. Here it
  kills this one, and the child is asked to save and stop.
  """
  mine = os.getpid()
  child = os.fork()
  if not child:
    _follow(mine)
    return
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: os.kill(child, signal.SIGTERM))
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(mine, -code)
  os._exit(code)


def main() -> None:
  """Becomes the command."""
  parent, between, cores, folder, *command = sys.argv[1:]
  # SLURM warns all processes of a job by one of them, whose default is to end.
  for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)
  _follow(int(parent))
  if between == '1':
    _stand_between()
  if cores != '-' and hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, map(int, cores.split(',')))
  _wait(folder)
  os.execvp(command[0], command)


if __name__ == '__main__':
  main()
