"""Progress of a run: a bar on a terminal, plain lines in a log file."""

import collections
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Self, TextIO

_LINE_PERIOD_S = 10.0  # between plain lines
_SAMPLE_PERIOD_S = 0.2  # between the samples from which speed is told
_WINDOW_S = 120.0  # speed is that of the last two minutes


class Progress:
  """Shows how far a run is, its speed, the time left, and how good it is.

  On a terminal it is a bar; elsewhere a line about every ten seconds. Use it
  as a context manager.
  """

  def __init__(
    self,
    total: int,
    start: int = 0,
    *,
    unit: str = 'frames',
    headline: str = 'return',
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Prepares the display; nothing is shown before `update` or `message`.

    Args:
      total: the count at which the run is over.
      start: what earlier processes did, on resumption. Speed and the time left
        are told from what this process does.
      unit: what is counted, such as 'env steps'.
      headline: what the number is called that `update` shows.
      stream: where to write; standard error if None.
      clock: seconds from some moment on.
    """
    self._total, self._done, self._unit = total, start, unit
    self._headline = headline
    self._last: float | None = None
    self._stream = sys.stderr if stream is None else stream
    self._clock = clock
    self._line_time = clock()
    self._samples = collections.deque([(clock(), start)])
    self._bar = (
      _Bar(self._stream, total, start, unit)
      if (_is_terminal(self._stream))
      else None
    )

  def __enter__(self) -> Self:
    now = self._clock()
    self._line_time = now
    self._samples = collections.deque([(now, self._done)])
    return self

  def __exit__(self, *unused_error: object) -> None:
    self.close()

  def update(self, done: int, last: float | None = None) -> None:
    """Says how far the run is.

    Args:
      done: the count so far, that of earlier processes included.
      last: the newest return, or what there is in its place; None keeps the
        one before.
    """
    self._done = done
    if last is not None:
      self._last = float(last)
    now = self._clock()
    self._sample(now)
    if self._bar is not None:
      self._bar.update(done, self._status())
    elif now - self._line_time >= _LINE_PERIOD_S:
      self._line_time = now
      self._print(self._line())

  def message(self, text: str) -> None:
    """Prints a line, above the bar if there is one."""
    if self._bar is not None:
      self._bar.print(text)
    else:
      self._print(text)

  def close(self) -> None:
    """Leaves the terminal as it was. Twice does no harm."""
    if self._bar is not None:
      self._bar.close()

  def speed_per_s(self) -> float:
    """Speed of this process over the last two minutes, 0 if not yet known."""
    (begun, first), (now, last) = self._samples[0], self._samples[-1]
    return (last - first) / (now - begun) if now > begun else 0.0

  def remaining_s(self) -> float | None:
    """Seconds to the end at that speed; None if it is not yet known."""
    speed = self.speed_per_s()
    return max(0, self._total - self._done) / speed if speed > 0 else None

  def _sample(self, now: float) -> None:
    if now - self._samples[-1][0] >= _SAMPLE_PERIOD_S:
      self._samples.append((now, self._done))
    # Two remain, however long ago the one before was.
    while len(self._samples) > 2 and now - self._samples[1][0] > _WINDOW_S:
      self._samples.popleft()

  def _status(self) -> str:
    remaining = self.remaining_s()
    parts = [
      f'{self.speed_per_s():,.0f} {self._unit}/s',
      f'{"-:--:--" if remaining is None else _hours(remaining)} left',
    ]
    if self._last is not None:
      parts.append(f'{self._headline} {self._last:,.5g}')
    return ', '.join(parts)

  def _line(self) -> str:
    percent = 100 * self._done / max(1, self._total)
    return (
      f'{self._done:,} of {self._total:,} {self._unit} ({percent:.1f} %), '
      f'{self._status()}'
    )

  def _print(self, text: str) -> None:
    print(text, file=self._stream, flush=True)


class _Bar:
  """Rich's progress bar, with the numbers that `Progress` has worked out."""

  def __init__(self, stream: TextIO, total: int, completed: int, unit: str):
    from rich import console, progress  # a tenth of a second

    self._progress = progress.Progress(
      progress.BarColumn(),
      progress.TextColumn(
        f'{{task.completed:,}} of {{task.total:,}} {unit} '
        '({task.percentage:.1f} %), {task.fields[status]}'
      ),
      console=console.Console(file=stream, highlight=False),
      refresh_per_second=4,
    )
    self._task: Any = self._progress.add_task(
      '', total=total, completed=completed, status=''
    )

  def update(self, done: int, status: str) -> None:
    self._progress.start()  # does nothing from the second time on
    self._progress.update(self._task, completed=done, status=status)

  def print(self, text: str) -> None:
    # Neither markup nor wrapping: the text may hold [brackets] and long paths.
    self._progress.console.print(
      text, markup=False, highlight=False, soft_wrap=True
    )

  def close(self) -> None:
    self._progress.refresh()
    self._progress.stop()


def _is_terminal(stream: TextIO) -> bool:
  """Whether lines can be redrawn there; Emacs and some CI logs say 'dumb'."""
  return stream.isatty() and os.environ.get('TERM', 'dumb') != 'dumb'


def _hours(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}'
