"""What all runs do as they go on: write rows, show progress, know when to save.

What a run computes, and what it saves, is in the modules of each kind of run.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import sys
import time
from typing import Any, Self

import jax

from experiments.engines import devices, folders
from siamrl.report import drawing
from siamrl.report.metrics import MetricsWriter
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


class Running:
  """A run in its folder; at the end of a `with`, its files are closed."""

  def __init__(
    self,
    folder: RunFolder,
    writer: MetricsWriter,
    progress: Progress,
    *,
    checkpoint_period_s: float,
    stop: devices.StopRequest,
  ):
    """A run that has just been saved, or has nothing to be saved yet.

    Args:
      folder: the run's, opened and locked.
      writer: of its metrics; closed at the end.
      progress: where it stands; closed at the end.
      checkpoint_period_s: seconds between two checkpoints, about.
      stop: true once the user wants the run to stop.
    """
    self._folder, self._writer, self._progress = folder, writer, progress
    self._checkpoint_period_s, self._stop = checkpoint_period_s, stop
    self._saved_at = time.monotonic()

  def __enter__(self) -> Self:
    folders.say_notes(self._folder)
    self._progress.__enter__()
    return self

  def __exit__(self, *exc) -> None:
    self._progress.close()
    self._writer.close()

  def _write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows to the metrics; their events may be lost."""
    self._writer.write_rows(rows)
    error = self._writer.events_error
    if error is not None:
      if not isinstance(error, DRAWING_ERRORS):
        raise error
      say_lost(self._folder.events, error)

  @property
  def _where(self) -> str:
    return f'{self._folder.path} on {jax.devices()[0].device_kind}'

  def _overdue(self) -> bool:
    """Whether it is time for a checkpoint."""
    return time.monotonic() - self._saved_at >= self._checkpoint_period_s

  def _say_compiled(self, begun: float) -> None:
    seconds = time.monotonic() - begun
    self._progress.message(f'compiled in {seconds:.1f} s')

  def _say_stopped(self, when: str) -> None:
    self._progress.message(
      f'stopped {when} and saved; the same command, without --overwrite, '
      'resumes the run'
    )

  def _say_finished(self) -> None:
    self._progress.message(f'finished: {self._folder.path}')
