"""Progress of a run: a bar on a terminal, plain lines in a log file."""

import collections
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, TextIO, cast

from siamrl.report.streams import Lasting

MAIN = ''  # the phase whose speed predicts the time left
COMPILING = 'compiling'  # includes the first compiled steps

_LINE_PERIOD_S = 10.0  # between plain lines
_SAMPLE_PERIOD_S = 0.2  # between samples of the speed
_WINDOW_S = 120.0  # over which speed is averaged
_MEASURED_S = 1.0  # after which a speed predicts the time left


class _Speed:
  """Counts per second over the last two minutes of one phase."""

  def __init__(self, now: float, done: int):
    """Begins measuring.

    Args:
      now: time in seconds.
      done: current count.
    """
    self._latest = (now, done)  # without what was outside the phase
    self._skipped = (0.0, 0)  # time and counts outside the phase
    self._samples = collections.deque([self._latest])

  def resume(self, now: float, done: int) -> None:
    """Enters the phase again; what happened since it was left is ignored."""
    then, count = self._latest
    self._skipped = (now - then, done - count)

  def update(self, now: float, done: int) -> None:
    """Takes a sample, unless the last one is recent."""
    time, count = now - self._skipped[0], done - self._skipped[1]
    self._latest = (time, count)
    if time - self._samples[-1][0] >= _SAMPLE_PERIOD_S:
      self._samples.append(self._latest)
    # Two samples remain, however old the first one is.
    while len(self._samples) > 2 and time - self._samples[1][0] > _WINDOW_S:
      self._samples.popleft()

  def per_s(self) -> float:
    """Speed in counts per second; 0 if not yet known."""
    (begun, first), (now, last) = self._samples[0], self._samples[-1]
    return (last - first) / (now - begun) if now > begun else 0.0

  def measured(self) -> bool:
    """Whether it was measured for long enough to predict the time left."""
    return self._samples[-1][0] - self._samples[0][0] >= _MEASURED_S


class Progress:
  """Shows a run's progress, speed, time left and headline metric.

  On a terminal it is a bar; elsewhere a line about every ten seconds. Use it
  as a context manager.

  The time left is predicted from the speed of the main phase, learning, which
  takes most of the time. Other phases (see `enter`), such as compiling and
  warming up, do not affect that speed. Phases that will recur, such as
  evaluations, are assumed to take as long as the last time.
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
      total: the count at which the run ends.
      start: the count of earlier processes, on resumption. Speed and time left
        depend only on this process.
      unit: unit of the count, such as 'env steps'.
      headline: name of the metric that `update` shows.
      stream: stream to write to; None for standard error. If writing fails, no
        error is raised.
      clock: returns the time in seconds.
    """
    self._total, self._done, self._unit = total, start, unit
    self._headline = headline
    self._last: float | None = None
    stream = sys.stderr if stream is None else stream
    self._stream = cast(TextIO, Lasting.of(stream))
    self._clock = clock
    self._begin()
    self._bar = (
      _Bar(self._stream, total, start, unit)
      if (_is_terminal(self._stream))
      else None
    )

  def _begin(self) -> None:
    self._line_time = self._entered = now = self._clock()
    self._phase = MAIN
    self._speeds = {MAIN: _Speed(now, self._done)}
    self._lasted: dict[str, float] = {}
    self._to_come: dict[str, int] = {}

  def __enter__(self) -> Self:
    self._begin()
    return self

  def __exit__(self, *unused_error: object) -> None:
    self.close()

  def enter(self, phase: str) -> None:
    """Enters a phase.

    Args:
      phase: shown next to the count, such as 'compiling'; or `MAIN`, in which
        every run begins.
    """
    if phase == self._phase:
      return
    now = self._clock()
    self._speeds[self._phase].update(now, self._done)
    self._lasted[self._phase] = now - self._entered
    self._phase, self._entered = phase, now
    if phase in self._speeds:
      self._speeds[phase].resume(now, self._done)
    else:
      self._speeds[phase] = _Speed(now, self._done)
    if self._bar is not None:
      self._bar.update(self._done, self._status())

  def forget_speed(self) -> None:
    """Forgets the speed so far, as the next part will have another one."""
    self._speeds = {MAIN: _Speed(self._clock(), self._done)}
    self._speeds[self._phase] = _Speed(self._clock(), self._done)

  @contextlib.contextmanager
  def during(self, phase: str) -> Iterator[None]:
    """Enters a phase for a block, and returns to the previous one after it."""
    before = self._phase
    self.enter(phase)
    yield
    self.enter(before)

  def update(
    self,
    done: int,
    last: float | None = None,
    *,
    to_come: Mapping[str, int] | None = None,
  ) -> None:
    """Updates the progress.

    Args:
      done: the count so far, including earlier processes.
      last: newest value of the headline metric; None keeps the previous one.
      to_come: how often each other phase will be entered again; None keeps the
        previous numbers.
    """
    self._done = done
    if last is not None:
      self._last = float(last)
    if to_come is not None:
      self._to_come = dict(to_come)
    now = self._clock()
    self._speeds[self._phase].update(now, done)
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
    """Restores the terminal; may be called twice."""
    if self._bar is not None:
      self._bar.close()

  def speed_per_s(self) -> float:
    """Speed in this phase over its last two minutes; 0 if not yet known."""
    return self._speeds[self._phase].per_s()

  def remaining_s(self) -> float | None:
    """Seconds to the end at the speed of the main phase; None if unknown.

    Phases to come are assumed to take as long as the last time; those that have
    not occurred yet do not count.
    """
    speed = self._speeds[MAIN]
    if not speed.measured() or speed.per_s() <= 0:
      return None
    others = sum(
      times * self._lasted.get(phase, 0.0)
      for phase, times in self._to_come.items()
    )
    return max(0, self._total - self._done) / speed.per_s() + others

  def _status(self) -> str:
    parts = [self._phase] if self._phase else []
    speed = self.speed_per_s()
    if speed > 0 and self._phase != COMPILING:
      shown = f'{speed:,.0f}' if speed >= 10 else f'{speed:.2g}'
      parts.append(f'{shown} {self._unit}/s')
    parts.append(self._time_left())
    if self._last is not None:
      parts.append(f'{self._headline} {self._last:,.5g}')
    return ', '.join(parts)

  def _time_left(self) -> str:
    remaining = self.remaining_s()
    if remaining is None:
      return 'time left: measuring'
    unknown = any(
      times and phase not in self._lasted
      for phase, times in self._to_come.items()
    )
    return f'{"at least " if unknown else ""}{_hours(remaining)} left'

  def _line(self) -> str:
    percent = 100 * self._done / max(1, self._total)
    return (
      f'{self._done:,} of {self._total:,} {self._unit} ({percent:.1f} %), '
      f'{self._status()}'
    )

  def _print(self, text: str) -> None:
    print(text, file=self._stream, flush=True)


class _Bar:
  """Rich's progress bar, with the numbers from `Progress`."""

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
    self._progress.update(self._task, completed=done, status=status)
    self._progress.start()  # does nothing after the first time

  def print(self, text: str) -> None:
    # Neither markup nor wrapping: the text may hold [brackets] and long paths.
    self._progress.console.print(
      text, markup=False, highlight=False, soft_wrap=True
    )

  def close(self) -> None:
    self._progress.refresh()
    self._progress.stop()


def _is_terminal(stream: TextIO) -> bool:
  """Returns whether lines can be redrawn; Emacs and some CI logs say 'dumb'."""
  return stream.isatty() and os.environ.get('TERM', 'dumb') != 'dumb'


def _hours(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}'
