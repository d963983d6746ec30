"""Benchmark of sweeps: what the driver and the tools add to the cells."""

import json
import pathlib
import sys
import tempfile
import time

from experiments import launchers, status
from experiments.config import sweep_files
from experiments.engines.cells import Cell, make_cells
from experiments.engines.pools import Ended, Job
from experiments.engines.pools.local import LocalPool
from experiments.engines.sweep_folders import Record, State, SweepFolder
from siamrl.report.run_folder import open_run_folder

_CELLS = 1_000
_SWEEP = """
launcher = "atari"
seeds = 10

[axes]
game = ["alien", "amidar", "assault", "asterix", "asteroids", "atlantis",
        "breakout", "pong", "qbert", "seaquest"]
learning_rate = [1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 6e-5, 7e-5, 8e-5, 9e-5, 1e-4]
"""
# Of each share of the machine, one after the other.
_ROUNDS, _JOB_S = 3, 2.0


def sweep() -> dict[str, float]:
  """Times 1,000 cells of Atari, and the gaps between processes.

  `list_s` reads a sweep file and makes its cells, `skip_s` finds that all are
  done, and `status_s` summarizes them, with 100 rows of metrics each.
  `job_overhead_s` is what a process of two seconds takes longer under the local
  pool: to start, to be noticed, and until the next one begins.
  """
  with tempfile.TemporaryDirectory() as temporary:
    path = pathlib.Path(temporary, 'sweep.toml')
    path.write_text(_SWEEP)
    began = time.perf_counter()
    file = sweep_files.read(path, launchers.NAMES)
    cells = make_cells(
      file, launchers.options_of, launchers.compiles, launchers.check
    )
    list_s = time.perf_counter() - began
    assert len(cells) == _CELLS
    folder = SweepFolder(pathlib.Path(temporary, 'runs'))
    _fill(folder, cells)
    began = time.perf_counter()
    done = sum(folder.state(cell.name) == State.DONE for cell in cells)
    skip_s = time.perf_counter() - began
    assert done == _CELLS
    began = time.perf_counter()
    lines = status.look([str(folder.path)])
    status_s = time.perf_counter() - began
    assert len(lines) == _CELLS
    overhead = _overhead(pathlib.Path(temporary))
  return {
    'list_s': list_s,
    'skip_s': skip_s,
    'status_s': status_s,
    'job_overhead_s': overhead,
  }


def _fill(folder: SweepFolder, cells: list[Cell]) -> None:
  """Writes the folder of a sweep whose cells are all done."""
  rows = [f'{t},{1000 * t},{0.1 * t}' for t in range(100)]
  text = '\n'.join(['iteration,frames,train_return', *rows]) + '\n'
  with folder.driven(cells):
    for cell in cells:
      run, _ = open_run_folder(folder.path / cell.name, cell.options, {})
      run.close()
      run.config.write_text(json.dumps({'derived': {'rows': len(rows)}}))
      run.metrics.write_text(text)
      folder.write_record(cell.name, Record(State.DONE, 1, 0, 60.0))


def _overhead(folder: pathlib.Path) -> float:
  """Seconds that the local pool adds to a process, with all cores in use."""
  pool = LocalPool(None, cores=1, gpus=0)
  at_a_time = len(pool.shares)
  command = (sys.executable, '-c', f'import time; time.sleep({_JOB_S})')
  names = [f'job{number}' for number in range(_ROUNDS * at_a_time)]
  began = time.perf_counter()
  pool.submit(
    [
      Job(name, command, str(folder / name), str(folder / f'{name}.log'))
      for name in names
    ]
  )
  ended = 0
  while ended < len(names):
    ended += sum(isinstance(event, Ended) for event in pool.poll())
    time.sleep(0.1)
  return (time.perf_counter() - began) / _ROUNDS - _JOB_S
