"""The engine of all runs: resume, train, write rows, save, stop.

The modules `host`, `compiled` and `offline` define what each kind of run
computes and saves.
"""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import enum
import functools
import pathlib
import sys
import time
from typing import Any

import jax

from experiments.engines import devices, folders
from experiments.engines.sweep_folders import SweepFolder
from siamrl.report import drawing, tracking
from siamrl.report.checkpoint import Checkpoints
from siamrl.report.metrics import STEP_COLUMN, MetricsWriter
from siamrl.report.progress import Progress
from siamrl.report.run_folder import RunFolder
from siamrl.report.tracking import Track, Tracker


@functools.cache
def can_draw() -> bool:
  """Whether curves can be drawn, for which Matplotlib must be installed.

  If it is broken, the first call prints a note and the run goes on: metrics.csv
  has the same numbers.
  """
  try:
    return drawing.can_draw()
  except ImportError as error:
    print(f'note: nothing is drawn: {error}', file=sys.stderr)
    return False


# Errors in drawing that do not end a run. Tests empty it to see them.
DRAWING_ERRORS: tuple[type[Exception], ...] = (Exception,)

_said: set[str] = set()


def draw(what: object, action: Callable[[], object]) -> None:
  """Draws; a failure is reported once and ignored.

  Everything can be drawn again from the records of the run.

  Args:
    what: the name of what is drawn, such as a path.
    action: draws it.
  """
  try:
    action()
  except DRAWING_ERRORS as error:
    say_lost(what, error)


def say_lost(what: object, error: Exception) -> None:
  """Says once that something cannot be written and the run goes on."""
  if str(what) not in _said:
    _said.add(str(what))
    reason = ' '.join(str(error).split())[:300] or type(error).__name__
    folders.say([f'{what}: cannot be written: {reason}; the run goes on'])


class Moment(enum.Enum):
  """A moment at which a run may be saved and stopped.

  Attributes:
    SAME: nothing has changed since the newest checkpoint.
    BETWEEN: a checkpoint is written if the last one is old.
    DUE: a checkpoint is written.
  """

  SAME = 'same'
  BETWEEN = 'between'
  DUE = 'due'


class Running(abc.ABC):
  """A run in its folder, from its newest whole checkpoint to its end.

  Each engine defines steps, rows and checkpoints by the abstract members. They
  are called in this order: `find`, `stand`, `finished`, `open`, `nbytes`,
  `train`; and during `train`, `checkpoint` and `at`.
  """

  step_column = STEP_COLUMN  # the x axis of events
  alone = True  # whether the folder is that of a single run

  def __init__(
    self,
    folder: RunFolder,
    stop: devices.StopRequest,
    *,
    checkpoint_period_s: float,
    track: Track,
  ):
    """Prepares the run; reads nothing yet.

    Args:
      folder: the run's folder, opened and locked.
      stop: true once the user wants the run to stop.
      checkpoint_period_s: seconds between checkpoints, approximately.
      track: the way to track it.
    """
    self._folder, self._stop, self._track = folder, stop, track
    self._tracker: Tracker | None = None
    self._checkpoint_period_s = checkpoint_period_s
    self._checkpoints = Checkpoints(folder.checkpoints)
    self._shown = True  # no rows

  def find(self) -> dict[str, Any] | None:
    """The facts of the newest whole checkpoint; None if there is none."""
    return folders.recover(self._folder, self._checkpoints)

  @abc.abstractmethod
  def stand(self, facts: dict[str, Any]) -> None:
    """Takes the position that the facts of a checkpoint tell."""

  @property
  @abc.abstractmethod
  def finished(self) -> bool:
    """Whether nothing is left to do."""

  @property
  @abc.abstractmethod
  def whole(self) -> str:
    """The length of the whole run in words: '3,200 frames'."""

  @abc.abstractmethod
  def open(self) -> Progress:
    """Prepares training; returns the progress of the run so far."""

  @abc.abstractmethod
  def nbytes(self) -> int:
    """The approximate bytes of three checkpoints: two are kept, one written."""

  @abc.abstractmethod
  def train(self) -> Iterator[Moment]:
    """Trains to the end; yields whenever the run may be saved."""

  @abc.abstractmethod
  def checkpoint(self) -> tuple[int, Any, dict[str, Any]]:
    """The arguments of `Checkpoints.save`: a step, arrays and facts."""

  @property
  @abc.abstractmethod
  def at(self) -> str:
    """The position of the run in words: 'at frame 1,600'."""

  @abc.abstractmethod
  def draw(self) -> None:
    """Draws the rows."""

  def go(self) -> bool:
    """Trains to the end, or until the user asks the run to stop.

    Returns:
      Whether the run is finished.

    Raises:
      RunError: a file of the run cannot be read or written, the learner
        diverged, or an environment failed.
    """
    folder = self._folder
    with folders.run_errors(folder):
      rows, checksum, facts = 0, None, self.find()
      if facts is not None:
        with folders.checkpoint_errors(folder):
          rows, checksum = facts['rows'], facts.get('rows_sha256')
          self.stand(facts)
      sent = self._last_steps()
      with folders.edited_errors():
        MetricsWriter.truncate(folder.metrics, rows, checksum)
      self._steps = sent if self._track.kind == 'wandb' else self._last_steps()
      self._shown = not rows
      if self.finished:
        folders.say_notes(folder)
        Progress(1, 1).message(f'finished already: {folder.path}, {self.whole}')
      else:
        self._go_on()
      self._show()  # the last process may have been killed before it did
    return self.finished

  def _go_on(self) -> None:
    folder, self._progress = self._folder, self.open()
    devices.check_room(folder.path, self.nbytes())
    with folders.edited_errors():
      self._writer = MetricsWriter(
        folder.metrics, self._events, step_column=self.step_column
      )
    self._tracker = tracking.open_tracker(
      _placed(self._track, folder.path.resolve()),
      folder,
      self.step_column,
      self._steps,
      alone=self.alone,
    )
    self._saved_at = time.monotonic()
    folders.say_notes(folder)
    with contextlib.closing(self._writer), self._tracked(), self._progress:
      for moment in self.train():
        saved = moment is Moment.SAME
        due = moment is Moment.DUE or self.finished
        if not saved and (due or self._stop or self._overdue()):
          self._save()
          saved = True
        # The request may also have come during the saving.
        if saved and self._stop and not self.finished:
          self._progress.message(
            f'stopped {self.at} and saved; the same command, without '
            '--overwrite, resumes the run'
          )
          return
      self._progress.message(f'finished: {folder.path}')

  @property
  def _events(self) -> pathlib.Path | None:
    """The folder of events; None if none are wanted of a single run."""
    kinds = (None, 'tensorboard')
    wanted = self.alone and self._track.kind in kinds
    return self._folder.events if wanted else None

  def _last_steps(self) -> dict[str, float]:
    """The last step of each run in the folder, if something is tracked."""
    if self._track.kind in (None, 'none'):
      return {}
    return tracking.last_steps(
      self._folder.metrics, self.step_column, alone=self.alone
    )

  @contextlib.contextmanager
  def _tracked(self) -> Iterator[None]:
    """Closes the tracker in the end, and says what it has to say."""
    try:
      yield
    finally:
      if self._tracker is not None:
        self._tracker.close()
        folders.say(self._tracker.take_messages())

  def _announce(self, at: str = '', more: str = '') -> None:
    """Says that a run begins, or where it resumes.

    Args:
      at: where it resumes, in words; '' for a run that begins.
      more: further words.
    """
    where = f'{self._folder.path} on {jax.devices()[0].device_kind}'
    text = f'starting {where}; Ctrl-C saves and stops'
    if at:
      text = f'resuming {where} {at}'
    self._progress.message(f'{text}{more}')

  def _write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows to the metrics and, if possible, elsewhere."""
    self._writer.write_rows(rows)
    if self._tracker is not None:
      self._tracker.write(rows)
      folders.say(self._tracker.take_messages())
    self._shown = False
    error = self._writer.events_error
    if error is not None:
      if not isinstance(error, DRAWING_ERRORS):
        raise error
      say_lost(self._folder.events, error)

  def _show(self) -> None:
    """Draws the rows, unless they have been drawn."""
    if not self._shown:
      draw(self._folder.curve, self.draw)
      self._shown = True

  def _overdue(self) -> bool:
    """Whether it is time for a checkpoint."""
    return time.monotonic() - self._saved_at >= self._checkpoint_period_s

  def _save(self) -> None:
    step, arrays, facts = self.checkpoint()
    facts |= folders.written(self._writer)
    self._checkpoints.save(step, arrays, facts)
    self._saved_at = time.monotonic()


def _placed(track: Track, path: pathlib.Path) -> Track:
  """Adds the sweep whose folder a run lies in."""
  for parent in path.parents[:3]:
    if SweepFolder(parent).is_one():
      return track._replace(
        group=parent.name, name=str(path.relative_to(parent))
      )
  return track
