"""Damaged run folders: a few cases here, thousands where there is time."""

import shutil
import types

import numpy as np
import pytest

from experiments.config import declaring
from experiments.engines import compiled as compiled_engine, folders, running
from siamrl.report.checkpoint import CheckpointError, Checkpoints
from siamrl.report.metrics import MetricsWriter
from siamrl.report.run_folder import RunFolder
from siamrl.report.tracking import Track
from tests.experiments import damage


@pytest.fixture
def forgiving(monkeypatch):
  """Drawing may fail, as it may for users."""
  monkeypatch.setattr(running, 'DRAWING_ERRORS', (Exception,))


def test_damage_is_refused_or_made_good(tmp_path, forgiving):
  counts, wrong = damage.fuzz(['offline'], 25, 1, tmp_path)
  assert wrong == []
  assert counts['offline', 'refused'] >= 2
  assert counts['offline', 'equal, and said'] >= 2


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_damage_to_runs_of_every_kind(tmp_path, forgiving):
  kinds = ['sweep', 'siamese', 'offline', 'host', 'lab']
  counts, wrong = damage.fuzz(kinds, 2_000, 0, tmp_path)
  assert wrong == []
  for kind in kinds:
    assert counts[kind, 'equal'] > 0
    assert counts[kind, 'refused'] > 0


def test_what_would_be_wrong_is_seen(tmp_path, forgiving, monkeypatch):
  """What is made good by checksums is silent without them."""
  monkeypatch.setattr(damage, 'damage', _older_parameters)
  assert damage.fuzz(['offline'], 1, 0, tmp_path / 'a')[1] == []
  monkeypatch.setattr(Checkpoints, '_verify', lambda self, step: [])
  (wrong,) = damage.fuzz(['offline'], 1, 0, tmp_path / 'b')[1]
  assert wrong.startswith('SILENT')


def _older_parameters(folder, rng):
  checkpoints = RunFolder(folder).checkpoints
  shutil.rmtree(checkpoints / '3' / 'learner')
  shutil.copytree(checkpoints / '2' / 'learner', checkpoints / '3' / 'learner')
  return 'older parameters'


# A sweep falls back from one program to the one before.


def _folder(tmp_path):
  """Two programs of three iterations: in the middle of the second."""
  folder = RunFolder(tmp_path)
  with MetricsWriter(folder.metrics) as writer:
    for index, steps in ((0, (2, 3)), (1, (1, 2))):
      checkpoints = compiled_engine._checkpoints(folder, index)
      for step in steps:
        writer.write({'iteration': step})
        extra = {'iteration': step, **folders.written(writer)}
        checkpoints.save(step, {'w': np.arange(3.0)}, extra)
  return folder


_GROUP = types.SimpleNamespace(
  iterations=3, runs=(), loop=types.SimpleNamespace(clock='env_steps')
)


def _found(folder):
  """The program to go on with, its iterations that are done, and rows."""
  groups = [_GROUP] * 2
  options = types.SimpleNamespace(checkpoint_period_s=1, track=Track())
  runs = compiled_engine._Runs(folder, groups, groups, options, False)
  facts = runs.find()
  runs.stand(facts)
  return runs._index, runs._iteration, facts['rows']


def _spoil(folder, index, step):
  (folder.checkpoints / f'{index:03}' / str(step) / 'SHA256SUMS').unlink()


def test_a_sweep_falls_back_within_a_program(tmp_path, capsys):
  folder = _folder(tmp_path)
  assert _found(folder) == (1, 2, 4)
  assert capsys.readouterr().err == ''
  _spoil(folder, 1, 2)
  assert _found(folder) == (1, 1, 3)
  assert 'SHA256SUMS is missing; the checkpoint before' in (
    capsys.readouterr().err
  )


def test_a_sweep_falls_back_to_the_program_before(tmp_path):
  folder = _folder(tmp_path)
  _spoil(folder, 1, 1)
  _spoil(folder, 1, 2)
  assert _found(folder) == (1, 0, 2)
  _spoil(folder, 0, 3)
  assert _found(folder) == (0, 2, 1)
  _spoil(folder, 0, 2)
  with pytest.raises(CheckpointError, match='000/2: not a readable'):
    _found(folder)


def test_a_damaged_row_is_made_good_from_the_checkpoint_before(tmp_path):
  folder = _folder(tmp_path)
  text = folder.metrics.read_text()
  assert text.endswith('\n1\n2\n')
  folder.metrics.write_text(f'{text[:-2]}3\n')
  assert _found(folder) == (1, 1, 3)
  folder.metrics.write_text(text.replace('iteration', 'iterbtion'))
  with pytest.raises(CheckpointError, match='metrics.csv: damaged'):
    _found(folder)


# What is shown, and fails.


def test_a_picture_that_fails_is_told_once(tmp_path, capsys, forgiving):
  def draw():
    raise ValueError('no\nfont')

  for _ in range(3):
    running.draw(tmp_path / 'curve.png', draw)
  assert capsys.readouterr().err == (
    f'note: {tmp_path}/curve.png: cannot be written: no font; the run goes on\n'
  )


def test_here_a_picture_that_fails_is_an_error(tmp_path):
  with pytest.raises(ZeroDivisionError):
    running.draw(tmp_path / 'curve.png', lambda: 1 / 0)


def test_whether_a_checkpoint_stays_is_said_as_it_is(tmp_path):
  folder = RunFolder(tmp_path)
  for stays in ('there is no checkpoint yet', 'the last checkpoint stays'):
    with (
      pytest.raises(declaring.RunError, match=f'diverged: no number; {stays}'),
      folders.run_errors(folder),
    ):
      raise folders.NonFiniteError('no number')
    Checkpoints(folder.checkpoints).save(1, {'w': np.zeros(1)}, {})
