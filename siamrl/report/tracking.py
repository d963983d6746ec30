"""Tracking: the rows of runs in TensorBoard, or in Weights & Biases.

Rows are handed to a thread, so that a run neither waits nor fails if tracking
does. `metrics.csv` stays the record.
"""

from collections.abc import Mapping, Sequence
import importlib.util
import os
import pathlib
import queue
import threading
from typing import Any, NamedTuple, Protocol
import uuid

from siamrl.optional import import_optional, not_installed
from siamrl.report.events import NEEDS, Events
from siamrl.report.metrics import (
  RUN_COLUMN,
  Cell,
  Table,
  group_rows,
  is_number,
  read_metrics,
)
from siamrl.report.run_folder import (
  RunFolder,
  folder_name,
  read_file,
  write_atomically,
)

KINDS = ('none', 'tensorboard', 'wandb')
# The package and the extra that each needs, and the beginning of the error.
_PACKAGES = {
  'tensorboard': ('tensorboardX', 'track', NEEDS),
  'wandb': ('wandb', 'wandb', 'Weights & Biases needs wandb'),
}
# Runs of a folder that are tracked: each has files that stay open.
_MOST_RUNS = 256
# Seconds for which the end of a run waits for its last rows to be written.
_CLOSE_S = 60.0
_ID_FILE = 'wandb.txt'

_Row = Mapping[str, Cell]


class Track(NamedTuple):
  """How the rows of a folder are tracked.

  Attributes:
    kind: one of `KINDS`; None for TensorBoard's events of a single run, if
      tensorboardX is installed.
    group: the sweep that the folder is a part of; '' for none.
    name: the name of the folder's run in its group; that of the folder if ''.
  """

  kind: str | None = None
  group: str = ''
  name: str = ''


def check(kind: str | None) -> None:
  """Raises NotInstalledError if the package of a kind is not there."""
  if kind in _PACKAGES:
    package, extra, needs = _PACKAGES[kind]
    if importlib.util.find_spec(package) is None:
      raise not_installed(needs, extra)


def run_of(row: _Row) -> dict[str, Cell]:
  """The values that tell a row's run from others; none if it is alone.

  In the rows of many runs they come first, up to the seed.
  """
  names = list(row)
  if RUN_COLUMN not in row:
    return {}
  names = names[: names.index(RUN_COLUMN) + 1]
  return {name: row[name] for name in names if row[name] is not None}


def _key(point: Mapping[str, Any]) -> str:
  """The name of a run among those of its folder."""
  return ', '.join(
    f'{n}={v if isinstance(v, str) else f"{float(v):.10g}"}'
    for n, v in point.items()
  )


def last_steps(
  path: pathlib.Path, clock: str, *, alone: bool
) -> dict[str, float]:
  """Returns the last value of the clock of each run in a file of metrics.

  Args:
    path: the file, which need not exist.
    clock: the column of the clock.
    alone: whether it is of a single run, whose name is then ''.
  """
  try:
    table: Table = read_metrics(path)
    if alone:
      return {'': float(table[clock].max())}
    names = list(run_of(dict.fromkeys(table, 0.0)))
    return {
      _key(
        {n: v for n, v in zip(names, key, strict=True) if v is not None}
      ): float(rows[clock].max())
      for key, rows in group_rows(table, names).items()
    }
  except (OSError, ValueError, LookupError):
    return {}


class Backend(Protocol):
  """A service that shows rows; only its thread calls it."""

  def begin(self, name: str, point: Mapping[str, Cell]) -> Any:
    """Opens a run by its name and its values; returns a handle."""

  def write(self, handle: Any, step: int, numbers: Mapping[str, float]) -> None:
    """Writes the numbers of a row."""

  def end(self, handle: Any) -> None:
    """Closes a run."""


class TensorBoard:
  """A folder of events for each run, with its values as hyperparameters."""

  def __init__(self, folder: RunFolder, steps: Mapping[str, float]):
    """Prepares; opens nothing.

    Args:
      folder: the folder of all runs.
      steps: the step that each run has reached, by name.
    """
    self._path, self._steps = folder.events, steps

  def begin(self, name: str, point: Mapping[str, Cell]) -> Events:
    place = folder_name({n: str(value) for n, value in point.items()})
    purge_step = int(self._steps.get(name, -1)) + 1
    events = Events(self._path / place, purge_step)
    events.describe(
      {n: v if isinstance(v, str) else float(v or 0) for n, v in point.items()},
      'train_return',
    )
    return events

  def write(
    self, handle: Events, step: int, numbers: Mapping[str, float]
  ) -> None:
    handle.write(step, numbers)

  def end(self, handle: Events) -> None:
    handle.close()


class WandB:
  """A run of Weights & Biases for each run.

  A folder keeps an identifier in `events/wandb.txt`, so that resumed runs stay
  the same. Rows that a run had written before it was stopped are not sent
  again.
  """

  def __init__(
    self,
    folder: RunFolder,
    track: Track,
    clock: str,
    steps: Mapping[str, float],
    say: Any,
  ):
    """Prepares; imports and sends nothing.

    Args:
      folder: the folder of the runs.
      track: its group and its name.
      clock: the column of the horizontal axis.
      steps: the step up to which the rows of each run were sent, by name.
      say: called with lines for the user.
    """
    self._folder, self._track = folder, track
    self._clock, self._steps, self._say = clock, steps, say
    self._wandb: Any = None
    self._id = self._mode = ''

  def begin(self, name: str, point: Mapping[str, Cell]) -> Any:
    if self._wandb is None:
      self._start()
    config = {
      n: _value(v) for n, v in (self._folder.read_flags() or {}).items()
    }
    path = self._folder.path.resolve()
    own = self._track.name or path.name
    group = self._track.group
    words = [own, name] if group or not name else [name]
    run = self._wandb.init(
      project=os.environ.get('WANDB_PROJECT', 'siamrl'),
      dir=str(self._folder.events),
      id='-'.join(filter(None, [self._id, _digest(name)])),
      name=', '.join(filter(None, words)),
      group=group or (path.name if name else None),
      config=config | dict(point),
      resume='allow',
      mode=self._mode or None,
      reinit='create_new',
      settings=self._wandb.Settings(
        silent=True, console='off', x_disable_stats=bool(name)
      ),
    )
    run.define_metric(self._clock)
    run.define_metric('*', step_metric=self._clock)
    return name, run

  def _start(self) -> None:
    """Imports the package, and finds the folder's identifier."""
    package, extra, needs = _PACKAGES['wandb']
    self._wandb = import_optional(package, needs, extra)
    self._folder.events.mkdir(parents=True, exist_ok=True)
    path = self._folder.events / _ID_FILE
    try:
      self._id = read_file(path).decode().strip()
    except FileNotFoundError:
      self._id = uuid.uuid4().hex[:12]
      write_atomically(path, f'{self._id}\n'.encode())
    if 'WANDB_MODE' not in os.environ and not self._has_account():
      self._mode = 'offline'
      self._say(
        '--track=wandb has no account, and writes to '
        f'{self._folder.events / "wandb"}; wandb sync sends it'
      )

  def _has_account(self) -> bool:
    try:
      return bool(self._wandb.login(prompt=False))
    except Exception:  # it is of no use, or of an older version
      return False

  def write(self, handle: Any, step: int, numbers: Mapping[str, float]) -> None:
    name, run = handle
    if step > self._steps.get(name, -1):
      run.log({self._clock: step, **numbers})

  def end(self, handle: Any) -> None:
    handle[1].finish()


def _digest(name: str) -> str:
  return uuid.uuid5(uuid.NAMESPACE_OID, name).hex[:12] if name else ''


def _value(text: str) -> Any:
  """A flag's value as a number or a truth value where it is one."""
  if text in ('true', 'false'):
    return text == 'true'
  if not is_number(text):
    return text
  return int(text) if text.lstrip('-').isdecimal() else float(text)


class Tracker:
  """Hands rows to a backend in a thread.

  Attributes:
    messages: lines for the user that have not been taken yet.
  """

  def __init__(self, kind: str, clock: str, *, alone: bool):
    """Starts no thread yet; see `start`.

    Args:
      kind: its name in messages.
      clock: the column of the step.
      alone: whether all rows are of a single run, whose name is then ''.
    """
    self._kind, self._clock, self._alone = kind, clock, alone
    self.messages: queue.SimpleQueue[str] = queue.SimpleQueue()
    self._rows: queue.SimpleQueue[Sequence[_Row] | None] = queue.SimpleQueue()
    self._thread: threading.Thread | None = None
    self._failed = False

  def start(self, backend: Backend) -> None:
    """Starts the thread."""
    self._thread = threading.Thread(
      target=self._work, args=(backend,), name='tracking', daemon=True
    )
    self._thread.start()

  def write(self, rows: Sequence[_Row]) -> None:
    """Hands rows over; returns at once."""
    if not self._failed:
      self._rows.put([dict(row) for row in rows])

  def close(self) -> None:
    """Waits until all rows are written, but for a minute at most."""
    if self._thread is None:
      return
    self._rows.put(None)
    self._thread.join(_CLOSE_S)
    if self._thread.is_alive():
      self.messages.put(
        f'--track={self._kind}: the last rows are not written after '
        f'{_CLOSE_S:.0f} s, and are left'
      )
    self._thread = None

  def take_messages(self) -> list[str]:
    """Returns the new lines for the user."""
    found = []
    while not self.messages.empty():
      found.append(self.messages.get())
    return found

  def _work(self, backend: Backend) -> None:
    handles: dict[str, Any] = {}
    try:
      while (rows := self._rows.get()) is not None:
        for row in rows:
          self._write(backend, handles, row)
    except (Exception, SystemExit) as error:
      self._fail(error)
    for handle in handles.values():
      try:
        if handle is not None:
          backend.end(handle)
      except (Exception, SystemExit) as error:
        self._fail(error)

  def _fail(self, error: BaseException) -> None:
    if not self._failed:
      self._failed = True
      reason = ' '.join(str(error).split())[:300] or type(error).__name__
      self.messages.put(f'--track={self._kind}: {reason}; the run goes on')

  def _write(
    self, backend: Backend, handles: dict[str, Any], row: _Row
  ) -> None:
    point = {} if self._alone else run_of(row)
    name = _key(point)
    if name not in handles:
      handles[name] = None
      if len(handles) <= _MOST_RUNS:
        handles[name] = backend.begin(name, point)
      elif len(handles) == _MOST_RUNS + 1:
        self.messages.put(
          f'--track={self._kind}: only the first {_MOST_RUNS} runs of a folder '
          'are tracked'
        )
    step = row.get(self._clock)
    if handles[name] is None or step is None:
      return
    numbers = {
      column: float(value)
      for column, value in row.items()
      if column not in point
      and column not in (self._clock, RUN_COLUMN)
      and value is not None
      and not isinstance(value, str)
    }
    backend.write(handles[name], int(float(step)), numbers)


def open_tracker(
  track: Track,
  folder: RunFolder,
  clock: str,
  steps: Mapping[str, float],
  *,
  alone: bool,
) -> Tracker | None:
  """Opens the tracker of a folder; None if its metrics write what is wanted.

  Args:
    track: the way to track it.
    folder: the folder, opened and locked.
    clock: the column of the step.
    steps: the last step of each run, by name: that is kept for TensorBoard,
      that was ever written for Weights & Biases.
    alone: whether the folder is that of a single run.
  """
  if track.kind is None or track.kind == 'none':
    return None
  if track.kind == 'tensorboard' and alone:
    return None
  tracker = Tracker(track.kind, clock, alone=alone)
  backend: Backend = TensorBoard(folder, steps)
  if track.kind == 'wandb':
    backend = WandB(folder, track, clock, steps, tracker.messages.put)
  tracker.start(backend)
  return tracker
