"""Cells that take a second each, for tests of drivers and pools."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import textwrap
import time

from experiments.engines import pools
from experiments.engines.cells import Cell
from experiments.engines.driving import Driver
from experiments.engines.sweep_folders import State, SweepFolder

ROOT = pathlib.Path(__file__).parents[3]
MARK = '# siamrl run folder; python ... --flagfile=<this file> runs it again\n'

# A launcher in small: it locks its folder, adds a row every few milliseconds,
# stops at SIGTERM, goes on from the rows that are there, and does nothing if
# all are.
_LAUNCHER = """
  import fcntl, os, signal, sys, time
  folder, rows = sys.argv[1], int(sys.argv[2])
  os.makedirs(folder, exist_ok=True)
  lock = os.open(folder + '/.lock', os.O_RDWR | os.O_CREAT)
  fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  os.pwrite(lock, b'here %d ' % os.getpid(), 0)
  open(folder + '/flags.txt', 'w').write(MARK)
  open(folder + '/config.json', 'w').write('{"derived": {"rows": %d}}' % rows)
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('stopped')))
  path = folder + '/metrics.csv'
  if not os.path.exists(path):
    open(path, 'w').write('x\\n')
  lines = open(path).read().splitlines()
  with open(path, 'a') as file, open(folder + '/ends', 'a') as ends:
    for row in range(len(lines) - 1, rows):
      time.sleep(0.02)
      file.write('%d\\n' % (row * row))
      file.flush()
    if len(lines) <= rows:
      ends.write('end\\n')
"""

_DRIVER = """
  import pathlib, sys
  sys.path.insert(0, sys.argv[3])
  from tests.experiments.engines import small_cells
  from experiments.engines.devices import StopRequest
  from experiments.engines.pools import Resources
  from experiments.engines.pools.local import LocalPool
  from experiments.engines.pools.ray import RayPool
  from experiments.engines.sweep_folders import SweepFolder

  folder = SweepFolder(sys.argv[1])
  with StopRequest() as stop, folder.driven(small_cells.cells(20)):
    driver = small_cells.driver(folder, sys.argv[2], number=20)
    driver.run(POOL, stop)
    sys.exit(bool(driver.failed))
"""


def _script(folder: pathlib.Path, name: str, text: str) -> pathlib.Path:
  path = folder / name
  path.write_text(f'MARK = {MARK!r}\n' + textwrap.dedent(text))
  return path


def write_launcher(folder: pathlib.Path) -> pathlib.Path:
  """Writes the launcher; its arguments are a folder and a number of rows."""
  return _script(folder, 'launcher.py', _LAUNCHER)


def cells(number: int) -> list[Cell]:
  """Cells that differ in a number."""
  return [
    Cell(f'cell{i}', 'classic', (), {}, {'i': str(i)}) for i in range(number)
  ]


def driver(folder, launcher, *, number, rows=20, retries=2, say=None) -> Driver:
  """A driver of such cells.

  Args:
    folder: the folder of the sweep.
    launcher: the launcher's file.
    number: how many cells.
    rows: the rows of each.
    retries: see `Driver`.
    say: see `Driver`.
  """

  class SmallDriver(Driver):
    def _job(self, name):
      run = str(folder.run(name).path)
      command = (sys.executable, str(launcher), run, str(rows))
      return pools.Job(name, command, run, str(folder.log(name)))

  return SmallDriver(
    folder,
    cells(number),
    pools.Resources(),
    retries=retries,
    say=say,
  )


def check_whole(folder: SweepFolder, *, number: int, rows: int = 20) -> None:
  """All cells are done, each once, with the files of an undisturbed run."""
  text = ''.join(['x\n', *(f'{row * row}\n' for row in range(rows))])
  for i in range(number):
    run = folder.run(f'cell{i}').path
    assert folder.state(f'cell{i}') == State.DONE
    assert (run / 'metrics.csv').read_text() == text
    assert (run / 'ends').read_text() == 'end\n'


def kill_one(folder: SweepFolder, rng: random.Random) -> bool:
  """Kills the process of a cell that is in flight, if there is one."""
  found = [
    name
    for name in (folder.cells() if folder.is_one() else ())
    if folder.state(name) == State.IN_FLIGHT
  ]
  if not found:
    return False
  lock = folder.run(rng.choice(found)).path / '.lock'
  try:
    os.kill(int(lock.read_text().split()[1]), signal.SIGKILL)
  except (FileNotFoundError, IndexError, ProcessLookupError):
    return False  # it has just begun, and not written its number, or ended
  return True


def check_survives_kills(tmp_path: pathlib.Path, pool: str) -> None:
  """Kills five processes of 20 cells, and the driver once; nothing is lost.

  Args:
    tmp_path: a folder for all files.
    pool: an expression that makes the pool.
  """
  launcher = write_launcher(tmp_path)
  script = _script(tmp_path, 'driver.py', _DRIVER.replace('POOL', pool))
  folder = SweepFolder(tmp_path / 'runs')
  command = [sys.executable, *map(str, (script, folder.path, launcher, ROOT))]
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  rng, killed = random.Random(0), 0
  process = subprocess.Popen(command, env=environment)
  deadline = time.monotonic() + 200
  while time.monotonic() < deadline and process.poll() is None:
    time.sleep(0.25)
    if killed < 5 and kill_one(folder, rng):
      killed += 1
      if killed == 3:
        process.kill()
        process.wait()
        process = subprocess.Popen(command, env=environment)
  assert process.wait(timeout=100) == 0
  assert killed == 5
  check_whole(folder, number=20)
