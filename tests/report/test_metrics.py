import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.report.metrics import MetricsWriter, is_wall_clock, read_metrics


def write_rows(path, steps, events=None):
  with MetricsWriter(path, events) as writer:
    for step in steps:
      writer.write({'frames': 1000 * step, 'loss': 0.1 * step})
    return writer.position


def test_numbers_come_back_exactly(tmp_path):
  path = tmp_path / 'metrics.csv'
  values = [0.1 + 0.2, float('nan'), float('-inf'), 5e-324, -0.0]
  with MetricsWriter(path) as writer:
    for index, value in enumerate(values):
      writer.write(
        {
          'frames': 2**53 + 1 + index,
          'return': value,
          'mixed': index if index else 0.5,
        }
      )
  metrics = read_metrics(path)
  assert list(metrics) == ['frames', 'return', 'mixed']
  assert metrics['frames'].dtype == np.int64
  assert metrics['frames'].tolist() == [2**53 + 1 + i for i in range(5)]
  assert metrics['return'].tobytes() == np.array(values).tobytes()
  assert metrics['mixed'].tolist() == [0.5, 1.0, 2.0, 3.0, 4.0]


def test_scalars_of_every_library(tmp_path):
  path = tmp_path / 'metrics.csv'
  with MetricsWriter(path) as writer:
    writer.write(
      {
        'a': np.float32(0.1),
        'b': jnp.float32(0.1),
        'c': np.int64(7),
        'd': jnp.int32(7),
        'e': jnp.bfloat16(0.1),
      }
    )
  assert path.read_text() == (
    'a,b,c,d,e\n0.10000000149011612,0.10000000149011612,7,7,0.10009765625\n'
  )


def test_the_first_row_fixes_the_columns(tmp_path):
  path = tmp_path / 'metrics.csv'
  with MetricsWriter(path) as writer:
    writer.write({'a': 1, 'b': 2})
    writer.write({'b': 4, 'a': 3})
    with pytest.raises(ValueError, match=r"\['b', 'c'\]"):
      writer.write({'a': 1, 'c': 2})
  with MetricsWriter(path) as writer, pytest.raises(ValueError, match='differ'):
    writer.write({'a': 1})
  assert path.read_text() == 'a,b\n1,2\n3,4\n'
  for columns in ({}, {'': 1}, {'a\nb': 1}):
    with (
      MetricsWriter(tmp_path / 'other.csv') as writer,
      pytest.raises(ValueError, match='names of columns'),
    ):
      writer.write(columns)


def test_a_row_is_on_the_disk_when_write_returns(tmp_path):
  path = tmp_path / 'metrics.csv'
  writer = MetricsWriter(path)
  writer.write({'frames': 1})
  assert path.read_text() == 'frames\n1\n'
  assert writer.position == 1
  writer.close()
  writer.close()


def test_a_resumed_file_is_that_of_an_undisturbed_run(tmp_path):
  whole, resumed = tmp_path / 'whole.csv', tmp_path / 'resumed.csv'
  write_rows(whole, range(1, 8))
  position = write_rows(resumed, range(1, 4))
  assert position == 3
  write_rows(resumed, range(4, 7))
  with resumed.open('a') as file:
    file.write('7000,0.')  # killed in mid-write
  MetricsWriter.truncate(resumed, position)
  assert write_rows(resumed, range(4, 8)) == 7
  assert resumed.read_bytes() == whole.read_bytes()


def test_truncation(tmp_path):
  path = tmp_path / 'metrics.csv'
  MetricsWriter.truncate(path, 0)
  write_rows(path, range(3))
  with pytest.raises(ValueError, match='has 3 rows, cannot keep 4'):
    MetricsWriter.truncate(path, 4)
  with pytest.raises(ValueError, match='cannot keep -1'):
    MetricsWriter.truncate(path, -1)
  MetricsWriter.truncate(path, 3)
  assert len(read_metrics(path)['frames']) == 3
  MetricsWriter.truncate(path, 0)
  assert not path.exists()
  with pytest.raises(ValueError, match='has 0 rows, cannot keep 1'):
    MetricsWriter.truncate(path, 1)


@pytest.mark.parametrize('torn', ['frames,lo', 'frames,loss\n1000,0.', ''])
def test_torn_lines_are_dropped(tmp_path, torn):
  path = tmp_path / 'metrics.csv'
  path.write_text(torn)
  rows = read_metrics(path)
  assert all(len(column) == 0 for column in rows.values())
  assert write_rows(path, [1]) == 1
  assert path.read_text() == 'frames,loss\n1000,0.1\n'


def test_other_files_are_refused(tmp_path):
  path = tmp_path / 'metrics.csv'
  path.write_text('frames,loss\n1,2\n3\n')
  for use in (
    read_metrics,
    MetricsWriter,
    lambda path: MetricsWriter.truncate(path, 1),
  ):
    with pytest.raises(ValueError, match='line 3 is not a row'):
      use(path)
  assert path.read_text() == 'frames,loss\n1,2\n3\n'
  with pytest.raises(FileNotFoundError, match='none.csv'):
    read_metrics(tmp_path / 'none.csv')


def test_wall_clock_columns():
  assert is_wall_clock('elapsed_s')
  assert is_wall_clock('frames_per_s')
  assert not is_wall_clock('frames')
  assert not is_wall_clock('loss')


def read_events(directory):
  """Points (tag, step) and purges (step) of all event files, in order."""
  event_pb2 = pytest.importorskip('tensorboardX.proto.event_pb2')
  points, purges = [], []
  for path in sorted(directory.iterdir()):
    data, start = path.read_bytes(), 0
    while start < len(data):
      (size,) = struct.unpack_from('<Q', data, start)
      event = event_pb2.Event.FromString(data[start + 12 : start + 12 + size])
      start += 16 + size
      points += [(value.tag, event.step) for value in event.summary.value]
      if event.HasField('session_log'):
        purges.append(event.step)
  return points, purges


def test_events_follow_the_rows(tmp_path):
  pytest.importorskip('tensorboardX')
  path, events = tmp_path / 'metrics.csv', tmp_path / 'events'
  write_rows(path, [1, 2, 3], events)
  assert read_events(events)[0] == [
    ('loss', 1000),
    ('loss', 2000),
    ('loss', 3000),
  ]
  MetricsWriter.truncate(path, 2)
  write_rows(path, [3, 4], events)
  # TensorBoard hides what is at or after a purge and was written before it.
  assert read_events(events)[1][-1] == 2001


def test_events_need_a_clock(tmp_path):
  pytest.importorskip('tensorboardX')
  path = tmp_path / 'metrics.csv'
  with MetricsWriter(path, tmp_path / 'events') as writer:
    assert writer.has_events
    with pytest.raises(ValueError, match="'frames'"):
      writer.write({'loss': 1.0})
  assert path.read_text() == ''


def test_events_are_optional(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  with MetricsWriter(tmp_path / 'a.csv', tmp_path / 'events') as writer:
    assert not writer.has_events
    writer.write({'loss': 1.0})
  assert not (tmp_path / 'events').exists()
