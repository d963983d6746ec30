import io
import subprocess
import sys
import textwrap

import pytest

from siamrl.report.progress import Progress
from siamrl.report.streams import Lasting


class Broken(io.StringIO):
  """A stream of a full disk."""

  def write(self, text):
    raise OSError(28, 'No space left on device')


def test_a_stream_that_fails_is_given_up_and_that_is_said_once():
  broken, other = Lasting(Broken(), 'the log'), Lasting(io.StringIO())
  broken._other = other
  assert broken.write('some') == 4
  broken.flush()
  broken.write('more')
  assert other.getvalue() == (
    'note: the log cannot be written (No space left on device); the program '
    'goes on without it\n'
  )


def test_letters_that_an_encoding_lacks_are_spelled():
  raw = io.BytesIO()
  stream = Lasting(io.TextIOWrapper(raw, 'ascii'))
  print('é 1', file=stream, flush=True)
  print('2', file=stream, flush=True)
  assert raw.getvalue() == b'\\xe9 1\n2\n'


def test_a_closed_stream_is_no_terminal():
  closed = io.StringIO()
  closed.close()
  for stream in (closed, None):
    lasting = Lasting(stream)
    assert not lasting.isatty()
    assert lasting.write('text') == 4
    assert Lasting.of(lasting) is lasting


@pytest.mark.parametrize('terminal', [False, True])
def test_progress_outlasts_its_stream(terminal, monkeypatch):
  monkeypatch.setenv('TERM', 'xterm')
  stream = Broken()
  stream.isatty = lambda: terminal
  with Progress(10, stream=stream) as progress:
    assert (progress._bar is not None) == terminal
    progress.message('begun')
    progress.update(5, 1.0)


# Prints a lot on both streams, and says on a file of its own that it ended.
PROGRAM = textwrap.dedent("""
    from siamrl.report import streams
    streams.hold_descriptors()
    streams.install()
    import os, sys
    with open(sys.argv[1], 'w') as file:
      assert file.fileno() > 2
      for number in range(3000):
        print('out', number)
        print('err', number, file=sys.stderr, flush=True)
      os.write(2, b'from C')
      file.write('ended')
    sys.exit(3)
""")


@pytest.mark.parametrize(
  'redirection, shown',
  [
    ('> /dev/full 2> {}', 'standard output cannot be written (No space left'),
    ('2> /dev/full > {}', 'standard error cannot be written (No space left'),
    ('2>&- > {}', 'standard error is closed'),
    ('>&- 2> {}', 'standard output is closed'),
    ('2> {} | head -n 1', 'standard output cannot be written (Broken pipe)'),
    ('<&- >&- 2>&-', None),
    ('> /dev/full 2>&1', None),
    ('2>&1 | head -n 1', None),
  ],
)
def test_a_process_outlasts_its_streams(tmp_path, redirection, shown):
  ended, log = tmp_path / 'ended', tmp_path / 'log'
  done = subprocess.run(
    [
      'bash',
      '-c',
      f'"$@" {redirection.format(log)}; exit ${{PIPESTATUS[0]}}',
      'bash',
      sys.executable,
      '-c',
      PROGRAM,
      ended,
    ],
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert done.returncode == 3
  assert done.stderr == ''
  assert ended.read_text() == 'ended'
  if shown is not None:
    assert log.read_text().count('note: ') == 1
    assert f'note: {shown}' in log.read_text()
    assert 'Exception' not in log.read_text()
