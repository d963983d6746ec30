"""Progress of a run: a bar on a terminal, plain lines in a log file."""

import collections
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, TextIO, cast

from siamrl.report.streams import Lasting

MAIN = ''  # the phase whose speed says how long the rest will take
COMPILING = 'compiling'  # also the first steps of what is compiled: no speed

_LINE_PERIOD_S = 10.0  # between plain lines
_SAMPLE_PERIOD_S = 0.2  # between the samples from which speed is told
_WINDOW_S = 120.0  # speed is that of the last two minutes
_MEASURED_S = 1.0  # from which a speed says how long the rest will take


class _Speed:
  """Counts per second in one phase, over the last two minutes of it."""

  def __init__(self, now: float, done: int):
    """Begins to measure.

    Args:
      now: seconds.
      done: the count.
    """
    self._latest = (now, done)  # less what was outside the phase
    self._skipped = (0.0, 0)  # time and counts outside the phase
    self._samples = collections.deque([self._latest])

  def resume(self, now: float, done: int) -> None:
    """The phase is entered again: what was since it was left is no part."""
    then, count = self._latest
    self._skipped = (now - then, done - count)

  def update(self, now: float, done: int) -> None:
    """Takes a sample, unless the last one is recent."""
    time, count = now - self._skipped[0], done - self._skipped[1]
    self._latest = (time, count)
    if time - self._samples[-1][0] >= _SAMPLE_PERIOD_S:
      self._samples.append(self._latest)
    # Two remain, however long ago the one before was.
    while len(self._samples) > 2 and time - self._samples[1][0] > _WINDOW_S:
      self._samples.popleft()

  def per_s(self) -> float:
    """The speed; 0 if it is not yet known."""
    (begun, first), (now, last) = self._samples[0], self._samples[-1]
    return (last - first) / (now - begun) if now > begun else 0.0

  def measured(self) -> bool:
    """Whether it was measured for long enough to say what is to come."""
    return self._samples[-1][0] - self._samples[0][0] >= _MEASURED_S


class Progress:
  """Shows how far a run is, its speed, the time left, and how good it is.

  On a terminal it is a bar; elsewhere a line about every ten seconds. Use it
  as a context manager.

  The time left is told from the speed of the main phase, which is what most of
  the rest will be: learning. Time in other phases (see `enter`), such as
  compiling and warming up, is no part of that speed. Those that come again,
  such as evaluations, are counted as long as the last one was.
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
      stream: where to write; standard error if None. Nothing is raised if it
        cannot be written to.
      clock: seconds from some moment on.
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
    """Says what the run does from now on.

    Args:
      phase: shown beside the count, such as 'compiling'; or `MAIN`, in which
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
    """What comes now has another speed than what was before."""
    self._speeds = {MAIN: _Speed(self._clock(), self._done)}
    self._speeds[self._phase] = _Speed(self._clock(), self._done)

  @contextlib.contextmanager
  def during(self, phase: str) -> Iterator[None]:
    """In the block a run is in another phase; then in the one before again."""
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
    """Says how far the run is.

    Args:
      done: the count so far, that of earlier processes included.
      last: the newest return, or what there is in its place; None keeps the
        one before.
      to_come: how often each other phase will be entered again; None keeps
        what was said before.
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
    """Leaves the terminal as it was. Twice does no harm."""
    if self._bar is not None:
      self._bar.close()

  def speed_per_s(self) -> float:
    """Speed in this phase over its last two minutes, 0 if not yet known."""
    return self._speeds[self._phase].per_s()

  def remaining_s(self) -> float | None:
    """Seconds to the end at the speed of the main phase; None if unknown.

    Phases to come count as long as the last one was; those that have not been
    yet do not count.
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
    self._progress.update(self._task, completed=done, status=status)
    self._progress.start()  # does nothing from the second time on

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
