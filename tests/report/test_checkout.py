"""The commit of a checkout, as Git tells it."""

import shutil
import subprocess

import pytest

from siamrl.report import checkout, run_folder

_GIT = ('git', '-c', 'user.name=a', '-c', 'user.email=a@example.org')


def _git(path, *arguments):
  return subprocess.run(
    [*_GIT, *arguments], cwd=path, check=True, capture_output=True, text=True
  ).stdout.strip()


@pytest.mark.skipif(shutil.which('git') is None, reason='needs Git')
def test_the_commit_and_whether_files_have_changed(tmp_path):
  def found():
    checkout.ask.cache_clear()
    checkout.commit.cache_clear()
    return checkout.commit(tmp_path)

  assert found() is None
  _git(tmp_path, 'init', '-q')
  assert found() is None  # nothing is committed
  (tmp_path / 'a').write_text('1')
  _git(tmp_path, 'add', 'a')
  _git(tmp_path, 'commit', '-qm', 'a')
  head = _git(tmp_path, 'rev-parse', 'HEAD')
  assert found() == head[:10]
  (tmp_path / 'runs').write_text('unknown to Git')
  assert found() == head[:10]
  (tmp_path / 'a').write_text('2')
  assert found() == f'{head[:10]}, changed'
  found()
  checkout.ask.cache_clear()
  checkout.commit.cache_clear()


def test_a_start_does_not_need_git(tmp_path, monkeypatch):
  def missing(*unused_args, **unused_kwargs):
    raise FileNotFoundError('git')

  (tmp_path / '.git').mkdir()
  monkeypatch.setattr(subprocess, 'Popen', missing)
  assert checkout.commit(tmp_path) is None


def test_starts_record_it(monkeypatch):
  monkeypatch.setattr(checkout, 'commit', lambda: '1a2b3c4d5e, changed')
  assert run_folder.versions()['commit'] == '1a2b3c4d5e, changed'
  monkeypatch.setattr(checkout, 'commit', lambda: None)
  assert 'commit' not in run_folder.versions()
