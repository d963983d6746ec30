"""The driver of a sweep, which hands cells to a pool until all have ended."""

from collections.abc import Callable, Sequence
import sys
import time

from experiments.engines.cells import Cell
from experiments.engines.devices import StopRequest
from experiments.engines.pools import Began, Ended, Job, Pool, Resources
from experiments.engines.sweep_folders import Record, State, SweepFolder
from siamrl.report import glances

_POLL_S = 0.1
_LAST_LINES = 5
_USAGE_ERROR = 2  # the exit code of a command line that no retry can mend


class Driver:
  """Runs the cells of a sweep, and retries those that fail.

  Attributes:
    failed: the names of cells that used up their attempts.
  """

  def __init__(
    self,
    folder: SweepFolder,
    cells: Sequence[Cell],
    resources: Resources,
    *,
    retries: int,
    say: Callable[[str], None] | None = None,
  ):
    """Makes a driver; `run` begins.

    Args:
      folder: the folder of the sweep, locked by this process.
      cells: the cells to run.
      resources: what each process may use.
      retries: attempts after the first that get a cell no further.
      say: prints a line for the user.
    """
    self._folder = folder
    self._cells = {cell.name: cell for cell in cells}
    self._resources = resources
    self._retries = retries
    self._say = say or _print
    self.failed: list[str] = []

  def run(self, pool: Pool, stop: StopRequest) -> None:
    """Runs all cells that are not done, or until asked to stop."""
    waiting = [
      name for name in self._cells if self._folder.state(name) != State.DONE
    ]
    running = set(waiting)
    told = False
    try:
      pool.submit([self._job(name) for name in waiting])
      while running:
        if stop and not told:
          told = True
          pool.stop()
        for event in pool.poll():
          if isinstance(event, Began):
            self._begun(event)
          elif not self._ended(event, stopped=told):
            pool.submit([self._job(event.name)])
            continue
          else:
            running.discard(event.name)
        if told and not self._in_flight(running):
          break
        time.sleep(_POLL_S)
    finally:
      pool.close()

  def _in_flight(self, names: set[str]) -> list[str]:
    """The cells of which the pool has not said that they ended."""
    records = {name: self._folder.record(name) for name in names}
    return [
      name
      for name, record in records.items()
      if record is not None and record.state == State.IN_FLIGHT
    ]

  def _job(self, name: str) -> Job:
    folder = str(self._folder.run(name).path)
    cell = self._cells[name]
    command = (
      *(sys.executable, '-m', f'experiments.{cell.launcher}'),
      *cell.arguments,
      f'--run_dir={folder}',
    )
    return Job(
      name, command, folder, str(self._folder.log(name)), self._resources
    )

  def _begun(self, event: Began) -> None:
    before = self._folder.record(event.name)
    rows = glances.rows_of(self._folder.run(event.name))
    attempts = 0
    if before is not None and before.state != State.FAILED:
      attempts = before.attempts if before.rows >= rows else 0
    self._folder.write_record(
      event.name,
      Record(State.IN_FLIGHT, attempts + 1, rows=rows, began=time.time()),
    )
    verb = 'runs' if not rows else 'resumes'
    self._say(f'{event.name}: {verb} on {event.where}')

  def _ended(self, event: Ended, *, stopped: bool) -> bool:
    """Records how an attempt ended; returns False if there is to be another."""
    name, code = event.name, event.code
    before = self._folder.record(name) or Record(State.IN_FLIGHT)
    rows = glances.rows_of(self._folder.run(name))
    record = before._replace(
      exit_code=code, seconds=event.seconds, peak_bytes=event.peak_bytes
    )
    minutes = f'{event.seconds / 60:.1f} minutes'
    if code == 0 and glances.is_finished(self._folder.run(name)):
      self._folder.write_record(name, record._replace(state=State.DONE))
      self._say(f'{name}: done after {minutes}')
      return True
    if stopped and (code or 0) <= 0:
      self._folder.write_record(name, record._replace(state=State.CUT))
      return True
    attempts = 1 if rows > before.rows else before.attempts
    lines = tuple(self._last_lines(name))
    over = code == _USAGE_ERROR or attempts > self._retries
    self._folder.write_record(
      name,
      record._replace(
        state=State.FAILED if over else State.CUT,
        attempts=attempts,
        lines=lines,
      ),
    )
    how = event.why or (
      f'killed by signal {-code}' if code and code < 0 else f'exit code {code}'
    )
    what = 'failed' if over else f'will be tried again ({attempts} so far)'
    self._say(f'{name}: {how} after {minutes}; it {what}')
    for line in lines:
      self._say(f'  {line}')
    if over:
      self.failed.append(name)
    return over

  def _last_lines(self, name: str) -> list[str]:
    try:
      content = self._folder.log(name).read_bytes()[-4_000:]
    except OSError:
      return []
    lines = content.decode('utf-8', errors='replace').splitlines()
    return lines[-_LAST_LINES:]


def _print(line: str) -> None:
  print(line, flush=True)
