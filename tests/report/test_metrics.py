import hashlib
import os
import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.report.metrics import (
  MetricsWriter,
  by_run,
  common_end,
  group_rows,
  is_wall_clock,
  last_rows,
  read_metrics,
)


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


def long_rows():
  """Two rules, one with a rate, two seeds, two iterations."""
  return [
    dict(rule=rule, tau=tau, seed=seed, env_steps=100 * step, loss=loss + step)
    for step in (1, 2)
    for rule, tau, loss in (('hard', None, 0.5), ('soft', 0.1, 0.25))
    for seed in (0, 1)
  ]


def test_rows_in_long_form(tmp_path):
  path = tmp_path / 'metrics.csv'
  with MetricsWriter(path, step_column='env_steps') as writer:
    writer.write_rows(long_rows()[:3])
    assert writer.position == 3
    writer.write_rows([])
    assert writer.position == 3
    writer.write_rows(long_rows()[3:])
    assert writer.position == 8
  assert path.read_text().splitlines()[:4] == [
    'rule,tau,seed,env_steps,loss',
    'hard,,0,100,1.5',
    'hard,,1,100,1.5',
    'soft,0.1,0,100,1.25',
  ]
  table = read_metrics(path)
  assert table['rule'].dtype.kind == 'U'
  assert table['rule'].tolist() == ['hard', 'hard', 'soft', 'soft'] * 2
  assert table['seed'].dtype == np.int64
  assert np.isnan(table['tau'][:2]).all()
  assert table['tau'][2:4].tolist() == [0.1, 0.1]


def test_many_rows_resume_like_one(tmp_path):
  whole, resumed = tmp_path / 'whole.csv', tmp_path / 'resumed.csv'
  with MetricsWriter(whole) as writer:
    for row in long_rows():
      writer.write(row)
  with MetricsWriter(resumed) as writer:
    writer.write_rows(long_rows()[:4])
    position = writer.position
    writer.write_rows(long_rows()[4:7])
  with resumed.open('a') as file:
    file.write('soft,0.1,1,2')
  MetricsWriter.truncate(resumed, position)
  with MetricsWriter(resumed) as writer:
    writer.write_rows(long_rows()[4:])
  assert resumed.read_bytes() == whole.read_bytes()


def test_truth_values_are_numbers(tmp_path):
  with MetricsWriter(tmp_path / 'metrics.csv') as writer:
    writer.write_rows([{'a': True, 'b': np.False_}, {'a': False, 'b': True}])
  table = read_metrics(tmp_path / 'metrics.csv')
  assert table['a'].tolist() == [1, 0]
  assert table['b'].tolist() == [0, 1]


def test_columns_keep_their_kind(tmp_path):
  path = tmp_path / 'metrics.csv'
  with MetricsWriter(path) as writer:
    writer.write_rows([{'a': None, 'b': None}, {'a': 'x', 'b': 1}])
    for row, message in [
      ({'a': 2, 'b': 2}, "'a' holds text, not 2"),
      ({'a': 'y', 'b': 'z'}, "'b' holds numbers, not 'z'"),
      ({'a': '10', 'b': 2}, "'10', which would not read back"),
      ({'a': 'nan', 'b': 2}, "'nan', which would not read back"),
      ({'a': '', 'b': 2}, "'', which would not read back"),
      ({'a': 'x\ny', 'b': 2}, 'would not read back'),
      ({'a': 'y'}, r"differ from those of the file: \['b'\]"),
    ]:
      with pytest.raises(ValueError, match=message):
        writer.write_rows([{'a': 'y', 'b': 2}, row])
    assert writer.position == 2
  assert path.read_text() == 'a,b\n,\nx,1\n'
  with MetricsWriter(path) as writer:
    with pytest.raises(ValueError, match="'a' holds text, not 2"):
      writer.write({'a': 2, 'b': 2})
    writer.write({'a': None, 'b': None})
  assert read_metrics(path)['a'].tolist() == ['', 'x', '']
  assert read_metrics(path)['b'][1] == 1.0


@pytest.mark.parametrize(
  'damaged', ['soft,0.1,x,300,1', 'soft,0.1,0,300', '7,0.1,0,300,1', '']
)
def test_damaged_rows_in_long_form(tmp_path, damaged):
  path = tmp_path / 'metrics.csv'
  with MetricsWriter(path) as writer:
    writer.write_rows(long_rows())
  with path.open('a') as file:
    file.write(f'{damaged}\n')
  with pytest.raises(ValueError, match='line 10 is not a row'):
    read_metrics(path)


def test_groups(tmp_path):
  with MetricsWriter(tmp_path / 'metrics.csv') as writer:
    writer.write_rows(long_rows())
  table = read_metrics(tmp_path / 'metrics.csv')
  groups = group_rows(table, ['rule', 'tau'])
  assert list(groups) == [('hard', None), ('soft', 0.1)]
  assert groups['soft', 0.1]['loss'].tolist() == [1.25, 1.25, 2.25, 2.25]
  assert list(group_rows(table, ['seed', 'rule'])) == [
    (0, 'hard'),
    (1, 'hard'),
    (0, 'soft'),
    (1, 'soft'),
  ]
  (whole,) = group_rows(table, []).items()
  assert whole[0] == ()
  assert len(whole[1]['loss']) == 8
  with pytest.raises(ValueError, match="no column 'taus'"):
    group_rows(table, ['taus'])


def test_runs_side_by_side():
  table = {
    'seed': np.array([5, 3, 3, 5, 3]),
    'env_steps': np.array([100, 100, 200, 200, 300]),
    'loss': np.array([1.0, 2.0, 3.0, np.nan, 5.0]),
    'rule': np.array(['a'] * 5),
  }
  x, y = by_run(table, 'env_steps', 'loss')
  assert x.tolist() == [100, 200, 300]
  np.testing.assert_array_equal(y, [[2, 3, 5], [1, np.nan, np.nan]])
  table['seed'][:] = 3
  with pytest.raises(ValueError, match="'seed' has two rows for one"):
    by_run(table, 'env_steps', 'loss')
  with pytest.raises(ValueError, match="'rule' holds text"):
    by_run(table, 'env_steps', 'rule')
  with pytest.raises(ValueError, match="no column 'return'"):
    by_run(table, 'env_steps', 'return')


def test_events_of_another_clock(tmp_path):
  pytest.importorskip('tensorboardX')
  path, events = tmp_path / 'metrics.csv', tmp_path / 'events'
  for steps in ([10, 20], [30]):
    with MetricsWriter(path, events, step_column='env_steps') as writer:
      writer.write_rows(
        [
          {'rule': 'soft', 'tau': None, 'env_steps': n, 'loss': 1}
          for n in steps
        ]
      )
      with pytest.raises(ValueError, match="'env_steps'"):
        writer.write({'rule': 'soft', 'tau': 1, 'env_steps': None, 'loss': 1})
  points, purges = read_events(events)
  assert points == [('loss', 10), ('loss', 20), ('loss', 30)]
  assert purges == [0, 21]


def test_the_last_of_rows_that_name_one_time():
  table = {
    'rule': np.array(['b', 'b', 'a', 'b', 'b']),
    'seed': np.array([0, 0, 0, 0, 1]),
    'env_steps': np.array([2.0, 1, 1, 2, np.nan]),
    'loss': np.array([1, 2, 3, 4, 5]),
  }
  kept = last_rows(table, ['rule', 'seed', 'env_steps'])
  assert kept['loss'].tolist() == [2, 4, 3]
  assert kept['rule'].tolist() == ['b', 'b', 'a']
  with pytest.raises(ValueError, match="no column 'frames'"):
    last_rows(table, ['frames'])


def test_the_time_that_all_runs_have_reached():
  def end(*clocks):
    runs = [np.full(len(clock), i) for i, clock in enumerate(clocks)]
    table = {'seed': np.concatenate(runs), 'x': np.concatenate(clocks)}
    return common_end(table, 'x', ['seed'])

  assert end([1, 2, 3], [1, 2, 3]) == 3
  assert end([1, 2, 3, 4], [1, 2]) == 2
  assert end([2, 4, 6, 8], [3, 6, 9]) == 6
  assert end([2, 4], [3, 5]) == 4


def test_rows_are_held_against_their_checksum(tmp_path):
  path = tmp_path / 'metrics.csv'
  with MetricsWriter(path) as writer:
    writer.write_rows([{'frames': n, 'loss': -0.5 * n} for n in (1, 2)])
    rows, checksum = writer.position, writer.checksum
    writer.write({'frames': 3, 'loss': 7.0})
    assert writer.checksum == hashlib.sha256(path.read_bytes()).hexdigest()
  whole = path.read_bytes()
  MetricsWriter.verify(path, rows, checksum)
  for index in range(whole.index(b'3,')):
    for bit in range(8):
      content = bytearray(whole)
      content[index] ^= 1 << bit
      path.write_bytes(content)
      with pytest.raises(ValueError, match=f'^{path}: '):
        MetricsWriter.truncate(path, rows, checksum)
      assert path.read_bytes() == content
  # What a checkpoint does not know of is dropped, whatever it has become.
  path.write_bytes(whole.replace(b'3,7', b'\r\x00"'))
  MetricsWriter.truncate(path, rows, checksum)
  assert path.read_bytes() == whole[: whole.index(b'3,')]
  with MetricsWriter(path) as writer:
    assert (writer.position, writer.checksum) == (rows, checksum)


@pytest.mark.parametrize('damaged', ['1,\r0.5\n', '1,"0.5\n', '1,0\x00.5\n'])
def test_damage_that_the_csv_module_refuses_is_told_like_any(tmp_path, damaged):
  path = tmp_path / 'metrics.csv'
  path.write_bytes(b'frames,loss\n' + damaged.encode())
  with pytest.raises(ValueError, match=f'^{path}: '):
    read_metrics(path)


def test_a_pipe_is_no_file_of_metrics(tmp_path):
  path = tmp_path / 'metrics.csv'
  os.mkfifo(path)
  with pytest.raises(OSError, match='Not a regular file'):
    MetricsWriter.truncate(path, 1, '')


def test_events_that_cannot_be_written_cost_no_row(tmp_path):
  pytest.importorskip('tensorboardX')
  events = tmp_path / 'events'
  events.write_text('')  # no directory
  with MetricsWriter(tmp_path / 'a.csv', events) as writer:
    assert isinstance(writer.events_error, FileExistsError)
    assert not writer.has_events
    writer.write({'frames': 1, 'loss': 1.0})
  with MetricsWriter(tmp_path / 'b.csv', tmp_path / 'more') as writer:
    writer._events._writer = None
    writer.write({'frames': 1, 'loss': 1.0})
    assert isinstance(writer.events_error, AttributeError)
    writer.write({'frames': 2, 'loss': 1.0})
  assert read_metrics(tmp_path / 'b.csv')['frames'].tolist() == [1, 2]


def test_names_of_before_are_read_and_gone_on_with(tmp_path):
  """A file keeps its header, so that the checksums of its rows hold."""
  path = tmp_path / 'metrics.csv'
  path.write_text(
    'frames,optimizer,encoder_normalised_std\n4,rmsprop_centred,0.5\n'
  )
  before = path.read_bytes()
  checksum = hashlib.sha256(before).hexdigest()
  with MetricsWriter(path) as writer:
    assert (writer.position, writer.checksum) == (1, checksum)
    assert path.read_bytes() == before
    writer.write(
      {
        'frames': 8,
        'optimizer': 'rmsprop_centered',
        'encoder_normalized_std': 1,
      }
    )
  table = read_metrics(path)
  assert list(table) == ['frames', 'optimizer', 'encoder_normalized_std']
  assert list(table['optimizer']) == ['rmsprop_centered'] * 2
  assert list(table['encoder_normalized_std']) == [0.5, 1]
  MetricsWriter.truncate(path, 1, checksum)
  assert path.read_bytes() == before
