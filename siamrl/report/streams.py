"""Standard streams that survive a full disk, closed pipe or lost terminal.

A run must not end because it cannot print. When a stream fails, this is
reported once on the other stream, and all later output to it is dropped.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, Self, TextIO, cast


class Lasting:
  """A text stream that never raises because of what it writes to.

  Other attributes are those of the wrapped stream.
  """

  def __init__(self, stream: TextIO | None, name: str = ''):
    """Wraps a stream.

    Args:
      stream: stream to write to; None if it was closed from the start.
      name: name of the stream, for the message when it fails.
    """
    self._stream: Any = _null_device() if stream is None else stream
    self._name = name
    self._other: Lasting | None = None
    self._failed = stream is None

  @classmethod
  def of(cls, stream: TextIO | None) -> Self:
    """Wraps a stream, or returns it if it already is one of these."""
    return stream if isinstance(stream, cls) else cls(stream)

  def write(self, text: str) -> int:
    """Writes text; returns its length even if writing fails."""
    try:
      self._stream.write(text)
    except UnicodeEncodeError as failure:
      # Escape letters that the encoding lacks.
      shown = text.encode(failure.encoding, 'backslashreplace')
      readable = shown.decode(failure.encoding)
      self._attempt(lambda: self._stream.write(readable))
    except (OSError, ValueError) as error:
      self._give_up(error)
    return len(text)

  def flush(self) -> None:
    """Flushes the stream."""
    self._attempt(lambda: self._stream.flush())

  def isatty(self) -> bool:
    """Returns whether the stream is a terminal; False if it has failed."""
    try:
      return not self._failed and self._stream.isatty()
    except (OSError, ValueError):
      return False

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def _attempt(self, action: Callable[[], Any]) -> None:
    try:
      action()
    except (OSError, ValueError) as error:
      self._give_up(error)

  def _give_up(self, error: Exception) -> None:
    """Sends later and buffered output to the null device."""
    if self._failed:
      return
    self._failed = True
    try:
      descriptor = os.open(os.devnull, os.O_WRONLY)
      os.dup2(descriptor, self._stream.fileno())
      os.close(descriptor)
    except (OSError, ValueError):  # it has no descriptor, or no longer
      self._stream = _null_device()
    reason = getattr(error, 'strerror', None) or error
    self._say(f'cannot be written ({reason})')

  def _say(self, what: str) -> None:
    if self._other is not None:
      text = f'note: {self._name} {what}; the program goes on without it\n'
      self._other.write(text)
      self._other.flush()


def _null_device() -> TextIO:
  return open(os.devnull, 'w')


def install() -> None:
  """Wraps standard output and error so that they survive failures.

  Call it once, when the process starts.
  """
  if isinstance(sys.stdout, Lasting) or isinstance(sys.stderr, Lasting):
    return
  closed = [stream is None for stream in (sys.stdout, sys.stderr)]
  out = Lasting(sys.stdout, 'standard output')
  err = Lasting(sys.stderr, 'standard error')
  out._other, err._other = err, out
  sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
  for stream, was_closed in zip((out, err), closed, strict=True):
    if was_closed:
      stream._say('is closed')


def hold_descriptors() -> None:
  """Opens the null device in place of standard streams that are closed.

  Otherwise the next opened file, such as a checkpoint, could get the descriptor
  of standard error, and anything printed there would be written to it. Call it
  before any file is opened.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
