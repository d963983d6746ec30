import io
import re

import pytest

from siamrl.report.progress import Progress


class Clock:
  now = 1000.0

  def __call__(self):
    return self.now


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_lines_where_there_is_no_terminal():
  clock, stream = Clock(), io.StringIO()
  with Progress(1_000_000, 0, stream=stream, clock=clock) as progress:
    for _ in range(25):
      clock.now += 1.0
      progress.update(int(clock.now - 1000) * 1000, last=12.5)
    progress.message('iteration 1: [loss] 0.1')
  assert stream.getvalue().splitlines() == [
    (
      '10,000 of 1,000,000 frames (1.0 %), 1,000 frames/s, 0:16:30 left, '
      'return 12.5'
    ),
    (
      '20,000 of 1,000,000 frames (2.0 %), 1,000 frames/s, 0:16:20 left, '
      'return 12.5'
    ),
    'iteration 1: [loss] 0.1',
  ]


def test_speed_is_that_of_this_process():
  clock = Clock()
  with Progress(10_000, 9_000, stream=io.StringIO(), clock=clock) as progress:
    assert progress.speed_per_s() == 0.0
    assert progress.remaining_s() is None
    clock.now += 10.0
    progress.update(9_100)
    assert progress.speed_per_s() == 10.0
    assert progress.remaining_s() == 90.0
    progress.update(10_400)
    clock.now += 10.0
    progress.update(10_400)
    assert progress.remaining_s() == 0.0


def test_speed_forgets_how_the_run_began():
  clock = Clock()
  with Progress(10**9, 0, stream=io.StringIO(), clock=clock) as progress:
    clock.now += 60.0  # compilation
    frames = 0
    for _ in range(300):
      clock.now += 1.0
      frames += 500
      progress.update(frames)
    assert progress.speed_per_s() == pytest.approx(500, rel=0.01)
    clock.now += 1000.0  # a long evaluation
    progress.update(frames)
    assert progress.speed_per_s() < 1.0


def test_a_bar_on_a_terminal(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setenv('COLUMNS', '120')
  clock, stream = Clock(), Terminal()
  with Progress(200, 100, stream=stream, clock=clock) as progress:
    clock.now += 10.0
    progress.update(150, last=3.0)
    progress.message('saved [bold]/a/long/path')
  text = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', stream.getvalue())
  assert 'saved [bold]/a/long/path' in text
  assert (
    '150 of 200 frames (75.0 %), 5 frames/s, 0:00:10 left, return 3' in text
  )
  assert stream.getvalue().endswith(('\x1b[?25h', '\n'))  # cursor shown again
  assert '\x1b[?25h' in stream.getvalue()
  progress.close()


def test_a_dumb_terminal_gets_lines(monkeypatch):
  monkeypatch.setenv('TERM', 'dumb')
  clock, stream = Clock(), Terminal()
  with Progress(200, 0, stream=stream, clock=clock) as progress:
    clock.now += 10.0
    progress.update(100)
  assert stream.getvalue() == (
    '100 of 200 frames (50.0 %), 10 frames/s, 0:00:10 left\n'
  )


def test_a_number_has_its_name():
  clock, stream = Clock(), io.StringIO()
  with Progress(
    200, unit='steps', headline='accuracy', stream=stream, clock=clock
  ) as progress:
    clock.now += 10.0
    progress.update(100, last=0.25)
  assert stream.getvalue().endswith('10 steps/s, 0:00:10 left, accuracy 0.25\n')
