import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from absl import flags as absl_flags

from siamrl.report import run_folder
from siamrl.report.run_folder import (
  RunFolder,
  RunFolderError,
  open_run_folder,
  write_atomically,
)

FLAGS = {
  'game': 'pong',
  'tau': '0.005',
  'double': 'true',
  'note': 'a b=c, #d',
  'empty': '',
  'platform': 'cpu',
}
CONFIG = {'tau': 0.005, 'agent': {'name': 'dqn'}}


def contents(path):
  return {
    str(file.relative_to(path)): file.read_bytes()
    for file in path.rglob('*')
    if file.is_file()
  }


def test_a_new_folder_records_the_run(tmp_path):
  path = tmp_path / 'runs' / 'a'
  folder, resumed = open_run_folder(path, FLAGS, CONFIG)
  folder.close()
  assert not resumed
  assert folder.read_flags() == FLAGS
  assert json.loads(folder.config.read_text()) == CONFIG
  (record,) = json.loads(folder.versions.read_text())
  assert record['jax'] and record['numpy'] and record['optax']
  assert record['python'] == '.'.join(map(str, sys.version_info[:3]))
  assert record['backend'] == 'cpu'
  assert sorted(os.listdir(path)) == [
    '.lock',
    'config.json',
    'flags.txt',
    'versions.json',
  ]


def test_names():
  folder = RunFolder('a')
  names = [
    path.name
    for path in (
      folder.flags,
      folder.config,
      folder.versions,
      folder.metrics,
      folder.events,
      folder.checkpoints,
      folder.replay,
      folder.curve,
      folder.videos,
    )
  ]
  assert names == [
    'flags.txt',
    'config.json',
    'versions.json',
    'metrics.csv',
    'events',
    'checkpoints',
    'replay',
    'curve.png',
    'videos',
  ]
  assert folder.read_flags() is None


def test_flags_are_an_absl_flag_file(tmp_path):
  folder, _ = open_run_folder(tmp_path, FLAGS, CONFIG)
  folder.close()
  values = absl_flags.FlagValues()
  for name in ('game', 'note', 'platform'):
    absl_flags.DEFINE_string(name, None, '', flag_values=values)
  absl_flags.DEFINE_string('empty', 'x', '', flag_values=values)
  absl_flags.DEFINE_float('tau', 1.0, '', flag_values=values)
  absl_flags.DEFINE_bool('double', False, '', flag_values=values)
  absl_flags.DEFINE_string('flagfile', None, '', flag_values=values)
  values(['program', f'--flagfile={folder.flags}'])
  assert (values.game, values.tau, values.double) == ('pong', 0.005, True)
  assert (values.note, values.empty) == ('a b=c, #d', '')


@pytest.mark.parametrize('value', ['a\nb', 'a ', ' a', 'a\r--b=c', '\n'])
def test_values_that_a_flag_file_would_change_are_refused(tmp_path, value):
  with pytest.raises(ValueError, match='^note='):
    open_run_folder(tmp_path / 'a', {'note': value}, {})
  assert not (tmp_path / 'a').exists()


def test_the_same_flags_resume(tmp_path):
  folder, _ = open_run_folder(tmp_path, FLAGS, CONFIG)
  folder.close()
  folder.metrics.write_text('frames\n1\n')
  before = contents(tmp_path)
  folder, resumed = open_run_folder(
    tmp_path, {**FLAGS, 'platform': 'gpu'}, {'other': 1}
  )
  folder.close()
  after = contents(tmp_path)
  assert resumed
  assert len(json.loads(after.pop('versions.json'))) == 2
  del before['versions.json'], before['.lock'], after['.lock']
  assert before == after


def test_a_resumed_run_knows_what_has_changed(tmp_path, monkeypatch):
  def start():
    folder, _ = open_run_folder(tmp_path, FLAGS, CONFIG)
    folder.close()
    return folder

  monkeypatch.setenv('NPROC', '3')
  assert start().changes == []
  assert start().changes == []  # but the time
  monkeypatch.setenv('NPROC', '5')
  assert start().changes == ['cores 3 before, 5 now']
  assert start().changes == []  # since the start before
  monkeypatch.setenv('NPROC', '')
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(7)))
  monkeypatch.setenv('XLA_FLAGS', '')
  records = json.loads((tmp_path / 'versions.json').read_text())
  records[-1] |= {'jax': '0.1', 'xla_flags': '--b --a'}
  del records[-1]['numpy']  # as an older version of siamrl may lack one
  (tmp_path / 'versions.json').write_text(json.dumps(records))
  now = run_folder.versions()['jax']
  assert start().changes == [
    'cores 5 before, 7 now',
    'xla_flags --b --a before, none now',
    f'jax 0.1 before, {now} now',
  ]


@pytest.mark.parametrize('text', ['{"jax": "1"}', '3', '"x"'])
def test_starts_that_someone_has_edited(tmp_path, text):
  folder, _ = open_run_folder(tmp_path, FLAGS, CONFIG)
  folder.close()
  folder.versions.write_text(text)
  with pytest.raises(RunFolderError, match='versions.json: not a list of star'):
    open_run_folder(tmp_path, FLAGS, CONFIG)


def test_other_flags_are_refused_each_by_name(tmp_path):
  open_run_folder(tmp_path, FLAGS, CONFIG)[0].close()
  before = contents(tmp_path)
  other = {**FLAGS, 'tau': '0.01', 'seed': '1', 'platform': 'gpu'}
  del other['game']
  with pytest.raises(RunFolderError) as caught:
    open_run_folder(tmp_path, other, CONFIG)
  assert str(caught.value).splitlines() == [
    f'{tmp_path}: holds a run with other flags:',
    '  --game: pong in the folder, (absent) now',
    '  --seed: (absent) in the folder, 1 now',
    '  --tau: 0.005 in the folder, 0.01 now',
  ]
  with pytest.raises(RunFolderError, match='--platform: cpu in the folder'):
    open_run_folder(tmp_path, other, CONFIG, ignore=())
  assert contents(tmp_path) == before
  # The refusal let go of the lock.
  open_run_folder(tmp_path, FLAGS, CONFIG)[0].close()


@pytest.mark.parametrize(
  'name', ['thesis.tex', 'flags.txt', 'config.json', 'checkpoints/1/data']
)
@pytest.mark.parametrize('overwrite', [False, True])
def test_what_is_not_a_run_folder_is_left_alone(tmp_path, name, overwrite):
  file = tmp_path / name
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text('--game=pong\n')
  with pytest.raises(RunFolderError, match='not empty and not a run folder'):
    open_run_folder(tmp_path, FLAGS, CONFIG, overwrite=overwrite)
  assert contents(tmp_path) == {name: b'--game=pong\n'}


def test_overwrite_removes_what_runs_write_and_nothing_else(tmp_path):
  path, elsewhere = tmp_path / 'run', tmp_path / 'elsewhere'
  folder, _ = open_run_folder(path, FLAGS, CONFIG)
  folder.close()
  for directory in (folder.events, folder.checkpoints / '1', folder.videos):
    directory.mkdir(parents=True)
    (directory / 'data').touch()
  for file in (folder.metrics, folder.dataset, folder.curve):
    file.touch()
  (path / 'notes.md').write_text('mine')
  elsewhere.mkdir()
  (elsewhere / 'precious').touch()
  folder.replay.symlink_to(elsewhere)
  folder, resumed = open_run_folder(
    path, {'game': 'breakout'}, {'b': 1}, overwrite=True
  )
  folder.close()
  assert not resumed
  assert sorted(os.listdir(path)) == [
    '.lock',
    'config.json',
    'flags.txt',
    'notes.md',
    'versions.json',
  ]
  assert folder.read_flags() == {'game': 'breakout'}
  assert json.loads(folder.config.read_text()) == {'b': 1}
  assert len(json.loads(folder.versions.read_text())) == 1
  assert (elsewhere / 'precious').exists()


@pytest.mark.parametrize('path', ['file', 'file/run', '/proc/run'])
def test_paths_that_cannot_be_written_are_told_in_a_line(tmp_path, path):
  (tmp_path / 'file').touch()
  with pytest.raises(RunFolderError) as caught:
    open_run_folder(tmp_path / path, FLAGS, CONFIG)
  assert str(tmp_path / path) in str(caught.value)
  assert '\n' not in str(caught.value)


HOLDER = textwrap.dedent("""
    import sys, time
    from siamrl.report.run_folder import open_run_folder
    open_run_folder(sys.argv[1], {'game': 'pong'}, {})
    print('held', flush=True)
    time.sleep(60)
""")


def test_one_process_writes_at_a_time(tmp_path):
  flags = {'game': 'pong'}
  holder = subprocess.Popen(
    [sys.executable, '-c', HOLDER, tmp_path],
    stdout=subprocess.PIPE,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    text=True,
  )
  try:
    assert holder.stdout.readline() == 'held\n'
    before = contents(tmp_path)
    for overwrite in (False, True):
      with pytest.raises(RunFolderError, match='in use') as caught:
        open_run_folder(tmp_path, flags, {}, overwrite=overwrite)
      assert str(holder.pid) in str(caught.value)
      assert contents(tmp_path) == before
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    folder, resumed = open_run_folder(tmp_path, flags, {})
  finally:
    holder.kill()
    holder.wait()
    holder.stdout.close()
  assert resumed
  # Nor twice in one process.
  with folder, pytest.raises(RunFolderError, match='in use'):
    open_run_folder(tmp_path, flags, {})
  open_run_folder(tmp_path, flags, {})[0].close()


def test_a_start_that_was_killed_can_be_repeated(tmp_path):
  (tmp_path / '.lock').touch()
  (tmp_path / '.flags.txt.tmp').write_text('--ga')
  folder, resumed = open_run_folder(tmp_path, FLAGS, CONFIG)
  folder.close()
  assert not resumed
  folder.config.unlink()
  folder.versions.unlink()
  folder, resumed = open_run_folder(tmp_path, FLAGS, CONFIG)
  folder.close()
  assert resumed
  assert json.loads(folder.config.read_text()) == CONFIG
  assert len(json.loads(folder.versions.read_text())) == 1


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'file'
  write_atomically(path, b'old')

  def full(unused_descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(run_folder.os, 'fsync', full)
  with pytest.raises(OSError, match='No space left'):
    write_atomically(path, b'new')
  assert contents(tmp_path) == {'file': b'old'}


def resume(folder):
  opened, resumed = open_run_folder(folder, FLAGS, CONFIG)
  opened.close()
  assert resumed
  return opened.notes


@pytest.mark.parametrize(
  'content',
  [b'{}', b'7', b'[7]', b'null', b'[{}, []]', b'[', b'\xff', b'[' * 100_000],
)
def test_versions_are_a_list_of_records(tmp_path, content):
  with open_run_folder(tmp_path, FLAGS, CONFIG)[0] as folder:
    folder.versions.write_bytes(content)
  with pytest.raises(RunFolderError, match=f'^{folder.versions}: not '):
    resume(tmp_path)
  assert folder.versions.read_bytes() == content


@pytest.mark.parametrize('content', [b'', b'{', b'\xff', b'[' * 100_000])
def test_a_damaged_configuration_is_written_anew(tmp_path, content):
  with open_run_folder(tmp_path, FLAGS, CONFIG)[0] as folder:
    whole = folder.config.read_bytes()
    folder.config.write_bytes(content)
  assert folder.rows() is None
  assert resume(tmp_path) == [f'{folder.config}: damaged, and rewritten']
  assert folder.config.read_bytes() == whole
  assert resume(tmp_path) == []


def test_what_differs_in_the_configuration_is_named(tmp_path):
  with open_run_folder(tmp_path, FLAGS, CONFIG)[0] as folder:
    folder.config.write_text('{"tau": 0.004, "agent": {"name": "d1n"}}')
  (note,) = resume(tmp_path)
  assert 'its values differ from those of this start: agent.name, tau;' in note
  # Where a run happens may differ.
  opened, _ = open_run_folder(
    tmp_path, FLAGS, CONFIG, ignore=('tau', 'agent.name')
  )
  opened.close()
  assert opened.notes == []


@pytest.mark.parametrize('content', ['7', '[]', '{"derived": 7}', '{'])
def test_rows_of_a_damaged_configuration_are_not_known(tmp_path, content):
  folder = RunFolder(tmp_path)
  folder.config.write_text('{"derived": {"rows": 7}}')
  assert folder.rows() == 7
  folder.config.write_text(content)
  assert folder.rows() is None


def test_pipes_are_not_waited_for(tmp_path):
  with open_run_folder(tmp_path, FLAGS, CONFIG)[0] as folder:
    pass
  for path in (folder.config, folder.versions, folder.flags):
    path.unlink()
    os.mkfifo(path)
    if path == folder.config:
      assert resume(tmp_path) == [f'{path}: damaged, and rewritten']
      continue
    with pytest.raises(RunFolderError):
      open_run_folder(tmp_path, FLAGS, CONFIG)
