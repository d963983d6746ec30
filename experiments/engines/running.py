"""The engine of all runs: resume, go on, write rows, save, stop.

What a run computes and what it saves is in the modules of each kind of run:
`host`, `compiled`, `offline`.
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
from siamrl.report import drawing
from siamrl.report.checkpoint import Checkpoints
from siamrl.report.metrics import STEP_COLUMN, MetricsWriter
from siamrl.report.progress import Progress
from siamrl.report.run_folder import RunFolder


@functools.cache
def can_draw() -> bool:
  """Whether curves can be drawn, which they are where Matplotlib is installed.

  Where it is installed but broken, the first call says so. The run itself goes
  on: metrics.csv has the same numbers.
  """
  try:
    return drawing.can_draw()
  except ImportError as error:
    print(f'note: nothing is drawn: {error}', file=sys.stderr)
    return False


# What may go wrong in drawing without ending a run. Tests, which want to see
# what goes wrong, empty it.
DRAWING_ERRORS: tuple[type[Exception], ...] = (Exception,)

_said: set[str] = set()


def draw(what: object, action: Callable[[], object]) -> None:
  """Draws; where that fails, says so once and goes on.

  Everything that is drawn can be drawn again from what the run has recorded.

  Args:
    what: is drawn, such as the path of a picture.
    action: draws it.
  """
  try:
    action()
  except DRAWING_ERRORS as error:
    say_lost(what, error)


def say_lost(what: object, error: Exception) -> None:
  """Says, once, that something cannot be shown and the run goes on."""
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

  This class has what all engines do. What a step is, what a checkpoint holds
  and what a row is made of are each engine's own: it defines the abstract
  members. They are called in this order: `find`, `stand`, `finished`, `open`,
  `nbytes`, `train`; and while `train` goes on, `checkpoint` and `at`.
  """

  step_column = STEP_COLUMN  # the x axis of events

  def __init__(
    self,
    folder: RunFolder,
    stop: devices.StopRequest,
    *,
    checkpoint_period_s: float,
  ):
    """A run that nobody has looked at yet.

    Args:
      folder: the run's, opened and locked.
      stop: true once the user wants the run to stop.
      checkpoint_period_s: seconds between two checkpoints, about.
    """
    self._folder, self._stop = folder, stop
    self._checkpoint_period_s = checkpoint_period_s
    self._checkpoints = Checkpoints(folder.checkpoints)
    self._shown = True  # no rows

  def find(self) -> dict[str, Any] | None:
    """The facts beside the newest whole checkpoint; None without any."""
    return folders.recover(self._folder, self._checkpoints)

  @abc.abstractmethod
  def stand(self, facts: dict[str, Any]) -> None:
    """Takes the position that the facts beside a checkpoint tell."""

  @property
  @abc.abstractmethod
  def finished(self) -> bool:
    """Whether nothing is left to do."""

  @property
  @abc.abstractmethod
  def whole(self) -> str:
    """How long the whole run is, in words: '3,200 frames'."""

  @abc.abstractmethod
  def open(self) -> Progress:
    """Makes what is needed to go on; returns where the run stands."""

  @abc.abstractmethod
  def nbytes(self) -> int:
    """About how many bytes three checkpoints take.

    Two are kept, and the next is written beside them.
    """

  @abc.abstractmethod
  def train(self) -> Iterator[Moment]:
    """Goes on to the end, yielding wherever the run may be saved."""

  @abc.abstractmethod
  def checkpoint(self) -> tuple[int, Any, dict[str, Any]]:
    """The arguments of `Checkpoints.save`: a step, arrays and facts."""

  @property
  @abc.abstractmethod
  def at(self) -> str:
    """Where the run stands, in words: 'at frame 1,600'."""

  @abc.abstractmethod
  def draw(self) -> None:
    """Draws what the rows say."""

  def go(self) -> bool:
    """Goes on to the end, or until the user asks the run to stop.

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
      with folders.edited_errors():
        MetricsWriter.truncate(folder.metrics, rows, checksum)
      self._shown = not rows
      if self.finished:
        folders.say_notes(folder)
        Progress(1, 1).message(f'finished already: {folder.path}, {self.whole}')
      else:
        self._go_on()
      self._show()  # a process may have been killed before it did
    return self.finished

  def _go_on(self) -> None:
    folder, self._progress = self._folder, self.open()
    devices.check_room(folder.path, self.nbytes())
    with folders.edited_errors():
      self._writer = MetricsWriter(
        folder.metrics, self._events, step_column=self.step_column
      )
    self._saved_at = time.monotonic()
    folders.say_notes(folder)
    with contextlib.closing(self._writer), self._progress:
      for moment in self.train():
        saved = moment is Moment.SAME
        due = moment is Moment.DUE or self.finished
        if not saved and (due or self._stop or self._overdue()):
          self._save()
          saved = True
        # Also where the request has come while it was saved.
        if saved and self._stop and not self.finished:
          self._progress.message(
            f'stopped {self.at} and saved; the same command, without '
            '--overwrite, resumes the run'
          )
          return
      self._progress.message(f'finished: {folder.path}')

  @property
  def _events(self) -> pathlib.Path | None:
    """Where events go; None where rows are of several runs."""
    return self._folder.events

  def _announce(self, at: str = '', more: str = '') -> None:
    """Says that a run begins, or where it goes on.

    Args:
      at: where it goes on, in words; '' for a run that begins.
      more: what else to say.
    """
    where = f'{self._folder.path} on {jax.devices()[0].device_kind}'
    text = f'starting {where}; Ctrl-C saves and stops'
    if at:
      text = f'resuming {where} {at}'
    self._progress.message(f'{text}{more}')

  def _write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows to the metrics; their events may be lost."""
    self._writer.write_rows(rows)
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
