"""Files of a user's own: imported once, recorded, and missed by name."""

import pathlib
import sys
import types

import pytest

from experiments.config import users
from experiments.config.declaring import RunError, UsageError


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
  monkeypatch.setattr(users, '_known', set())


def _file(tmp_path, text, name='mine.py'):
  path = tmp_path / name
  path.write_text(text)
  return path


def test_a_file_is_imported_once(tmp_path):
  path = _file(tmp_path, 'import sys; sys.imported_here = 1\n')
  try:
    users.load(['--tau=0.1', f'--user_file={path}'])
    assert sys.imported_here == 1
    sys.imported_here = 0
    users.load([f'--user_file={path}'])
    users.load(['--user_file', str(path)])
    assert sys.imported_here == 0
  finally:
    del sys.imported_here


def test_its_main_part_does_not_run(tmp_path):
  path = _file(tmp_path, 'if __name__ == "__main__": raise SystemExit(3)\n')
  users.load([f'--user_file={path}'])


def test_a_flag_file_may_name_it(tmp_path):
  path = _file(tmp_path, 'raise OSError("seen")\n')
  flags = tmp_path / 'flags.txt'
  flags.write_text(f'--seed=1\n--user_file={path}\n')
  with pytest.raises(RunError, match='mine.py: OSError: seen'):
    users.load([f'--flagfile={flags}'])
  # Flags behind it win, here with nothing.
  users.load([f'--flagfile={flags}', '--user_file='])


def test_one_that_is_not_there(tmp_path):
  with pytest.raises(UsageError, match='gone.py: no such file; it registers'):
    users.load([f'--user_file={tmp_path}/gone.py'])


@pytest.mark.parametrize('path', ['x' * 5000, 'a\0b', '~nobody_is_so/x.py'])
def test_one_that_cannot_be(path):
  with pytest.raises(UsageError, match='^--user_file='):
    users.load([f'--user_file={path}'])


@pytest.mark.parametrize(
  ('spec', 'own'),
  [(None, True), ('my.rules', True), ('experiments.classic', False)],
)
def test_the_file_that_calls_a_launcher(tmp_path, monkeypatch, spec, own):
  path = _file(tmp_path, 'raise OSError\n')
  main = types.SimpleNamespace(
    __file__=str(path), __spec__=spec and types.SimpleNamespace(name=spec)
  )
  monkeypatch.setitem(sys.modules, '__main__', main)
  found = users.with_caller(['--tau=0.1'])
  if not own:
    assert found == ['--tau=0.1']
    return
  assert found == [f'--user_file={path.resolve()}', '--tau=0.1']
  users.load(found)  # it is not imported again
  assert pathlib.Path(path).resolve() in users._known
