"""TensorBoard's files of events."""

import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from siamrl.optional import NotInstalledError, import_optional

NEEDS = 'events need tensorboardX'


class Events:
  """TensorBoard's file of events, written immediately by this thread.

  tensorboardX's `SummaryWriter` writes from its own thread, which a full disk
  kills with a traceback, without an error for the caller.
  """

  def __init__(self, directory: str | os.PathLike[str], purge_step: int):
    """Opens a new file in the directory.

    Args:
      directory: directory of the events; created if needed.
      purge_step: TensorBoard hides earlier events from this step on, as they
        are of rows that a resumption dropped.

    Raises:
      ImportError: tensorboardX is not installed, or cannot be imported.
    """
    event_file_writer, summary, event_pb2 = (
      import_optional(f'tensorboardX.{module}', NEEDS, 'track')
      for module in ('event_file_writer', 'summary', 'proto.event_pb2')
    )
    self._summary, self._pb2 = summary, event_pb2
    pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
    self._writer = event_file_writer.EventsWriter(
      os.path.join(directory, 'events'), f'.{purge_step}'
    )
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(purge_step, session_log=start)

  def _write(self, step: int, **content: Any) -> None:
    self._writer.write_event(
      self._pb2.Event(step=step, wall_time=time.time(), **content)
    )

  def write(self, step: int, numbers: Mapping[str, float]) -> None:
    for name, number in numbers.items():
      if not math.isfinite(number):
        continue  # TensorBoard does not draw it
      self._write(step, summary=self._summary.scalar(name, float(number)))
    self._writer.flush()

  def describe(self, settings: Mapping[str, Any], metric: str) -> None:
    """Writes the settings of a run, as TensorBoard's hyperparameters.

    Args:
      settings: numbers and texts by name.
      metric: the name of the metric that they are compared by.
    """
    for summary in self._summary.hparams(dict(settings), {metric: 0.0}):
      self._write(0, summary=summary)
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


def open_events(
  directory: str | os.PathLike[str], purge_step: int
) -> Events | None:
  """Opens a file of events; returns None if tensorboardX is not installed.

  Raises:
    ImportError: tensorboardX is installed, but cannot be imported.
  """
  try:
    return Events(directory, purge_step)
  except NotInstalledError:
    return None
