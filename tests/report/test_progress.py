import io
import re

import pytest

from siamrl.report.progress import MAIN, Progress


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


def last_line(stream):
  return stream.getvalue().splitlines()[-1]


def test_the_time_left_is_that_of_learning():
  """Not of compiling, nor of warming up, which is ten times as fast."""
  clock, stream = Clock(), io.StringIO()
  with Progress(10_000, stream=stream, clock=clock) as progress:
    progress.enter('compiling')
    clock.now += 100.0
    progress.update(4)
    assert last_line(stream) == (
      '4 of 10,000 frames (0.0 %), compiling, time left: measuring'
    )
    progress.enter('warming up')
    clock.now += 10.0
    progress.update(2_000)
    assert last_line(stream) == (
      '2,000 of 10,000 frames (20.0 %), warming up, 200 frames/s, '
      'time left: measuring'
    )
    progress.enter(MAIN)
    clock.now += 0.5
    progress.update(2_010)
    assert progress.remaining_s() is None  # too early to tell
    clock.now += 9.5
    progress.update(2_200)
    assert last_line(stream) == (
      '2,200 of 10,000 frames (22.0 %), 20 frames/s, 0:06:30 left'
    )


def test_pauses_are_no_part_of_speed_but_come_again():
  clock, stream = Clock(), io.StringIO()
  with Progress(1_000, stream=stream, clock=clock) as progress:
    for number, done in enumerate((100, 200, 300)):
      clock.now += 10.0
      progress.update(done, to_come={'evaluating': 10 - number})
      assert progress.speed_per_s() == pytest.approx(10.0)
      if number:
        # The last one of 25 s, or 15 s, is what the others will be.
        lasted = {1: 25.0, 2: 15.0}[number]
        expected = (1_000 - done) / 10 + lasted * (10 - number)
        assert progress.remaining_s() == pytest.approx(expected)
      else:
        assert last_line(stream).endswith('10 frames/s, at least 0:01:30 left')
      with progress.during('evaluating'):
        clock.now += 15.0 if number else 25.0
        progress.update(done)
        assert ', evaluating, ' in last_line(stream)
    assert progress.remaining_s() == pytest.approx(70 + 15 * 8)
    clock.now += 10.0
    progress.update(400, to_come={})
    assert last_line(stream).endswith(' 10 frames/s, 0:01:00 left')


def test_counts_of_another_phase_are_no_part_of_speed():
  clock = Clock()
  with Progress(1_000, stream=io.StringIO(), clock=clock) as progress:
    clock.now += 10.0
    progress.update(10)
    with progress.during('skipping'):
      clock.now += 1.0
      progress.update(500)
      assert progress.speed_per_s() == pytest.approx(490.0)
    clock.now += 10.0
    progress.update(510)
    assert progress.speed_per_s() == pytest.approx(1.0)
    assert progress.remaining_s() == pytest.approx(490.0)


def test_a_speed_can_be_forgotten():
  clock = Clock()
  with Progress(1_000, stream=io.StringIO(), clock=clock) as progress:
    clock.now += 10.0
    progress.update(100)
    progress.enter('compiling')
    progress.forget_speed()
    clock.now += 10.0
    progress.update(100)
    assert progress.remaining_s() is None
    progress.enter(MAIN)
    clock.now += 10.0
    progress.update(200, to_come={'compiling': 2})
    assert progress.remaining_s() == pytest.approx(80.0 + 2 * 10.0)


def test_slow_speeds_are_told():
  clock, stream = Clock(), io.StringIO()
  with Progress(10, unit='fits', stream=stream, clock=clock) as progress:
    clock.now += 40.0
    progress.update(1)
  assert (
    last_line(stream) == '1 of 10 fits (10.0 %), 0.025 fits/s, 0:06:00 left'
  )


def test_a_bar_shows_the_phase_before_anything_is_counted(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setenv('COLUMNS', '120')
  stream = Terminal()
  with Progress(200, stream=stream, clock=Clock()) as progress:
    progress.enter('compiling')
  text = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', stream.getvalue())
  assert '0 of 200 frames (0.0 %), compiling, time left: measuring' in text
