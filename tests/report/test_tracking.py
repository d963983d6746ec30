"""Trackers: runs and rows in TensorBoard and Weights & Biases, and failures."""

import sys
import time
import types

import pytest

from siamrl.optional import NotInstalledError
from siamrl.report import tracking
from siamrl.report.metrics import MetricsWriter
from siamrl.report.run_folder import open_run_folder
from siamrl.report.tracking import Track
from tests.report.test_metrics import read_events

FLAGS = {'agent': 'dqn', 'tau': '0.1,0.2', 'seeds': '2', 'dueling': 'true'}


class _FakeWandB(types.ModuleType):
  """The part of the package that is used, which keeps what it is given."""

  def __init__(self):
    super().__init__('wandb')
    self.runs, self.fail = [], ''
    self.account = False
    self.Settings = dict

  def login(self, prompt):
    assert not prompt
    return self.account

  def init(self, **given):
    if self.fail == 'init':
      raise RuntimeError('no\nway')
    run = _FakeRun(given, self)
    self.runs.append(run)
    return run


class _FakeRun:
  def __init__(self, given, module):
    self.given, self.module = given, module
    self.metrics, self.rows, self.finished = [], [], False

  def define_metric(self, name, step_metric=None):
    self.metrics.append((name, step_metric))

  def log(self, row):
    if self.module.fail == 'log':
      raise OSError('gone')
    self.rows.append(row)

  def finish(self):
    self.finished = True


@pytest.fixture
def wandb(monkeypatch):
  fake = _FakeWandB()
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  for name in ('WANDB_MODE', 'WANDB_PROJECT'):
    monkeypatch.delenv(name, raising=False)
  return fake


def _rows(steps, taus=(0.1, 0.2)):
  return [
    {'tau': t, 'rule': 'soft', 'seed': 3, 'env_steps': s, 'loss': t * s}
    for s in steps
    for t in taus
  ]


def _track(path, track, rows, *, steps=None, alone=False):
  """Tracks some rows to the end; returns what is said."""
  folder, _ = open_run_folder(path, FLAGS, {})
  with folder:
    tracker = tracking.open_tracker(
      track, folder, 'env_steps', steps or {}, alone=alone
    )
    tracker.write(rows)
    tracker.close()
    return tracker.take_messages()


def test_each_run_of_a_sweep_is_a_run_in_a_group(wandb, tmp_path):
  said = _track(tmp_path / 'periods', Track('wandb'), _rows([10, 20]))
  first, second = wandb.runs
  assert first.given['name'] == 'tau=0.1, rule=soft, seed=3'
  assert {run.given['group'] for run in wandb.runs} == {'periods'}
  assert first.given['id'] != second.given['id']
  config = second.given['config']
  assert config['tau'] == 0.2 and config['rule'] == 'soft'
  assert config['seeds'] == 2 and config['dueling'] is True
  assert first.rows == [
    {'env_steps': 10, 'loss': 1.0},
    {'env_steps': 20, 'loss': 2.0},
  ]
  assert first.metrics == [('env_steps', None), ('*', 'env_steps')]
  assert first.finished and second.finished
  # Without an account nothing is asked, and nothing sent.
  assert first.given['mode'] == 'offline' and len(said) == 1
  assert 'no account' in said[0] and 'wandb sync' in said[0]


def test_an_account_or_a_chosen_mode_is_left_alone(
  wandb, tmp_path, monkeypatch
):
  wandb.account = True
  assert not _track(tmp_path / 'a', Track('wandb'), _rows([10]))
  assert wandb.runs[0].given['mode'] is None
  wandb.account = False
  monkeypatch.setenv('WANDB_MODE', 'disabled')
  assert not _track(tmp_path / 'b', Track('wandb'), _rows([10]))
  assert wandb.runs[-1].given['mode'] is None


def test_a_single_run_has_the_name_of_its_folder(wandb, tmp_path):
  rows = [{'seed': 0, 'env_steps': 1, 'loss': 0.5}]
  _track(tmp_path / 'a', Track('wandb'), rows, alone=True)
  _track(tmp_path / 'b', Track('wandb', 'many', 'x/b'), rows, alone=True)
  alone, member = (run.given for run in wandb.runs)
  assert (alone['name'], alone['group']) == ('a', None)
  assert (member['name'], member['group']) == ('x/b', 'many')
  assert wandb.runs[0].rows == [{'env_steps': 1, 'loss': 0.5}]


def test_a_resumed_run_is_the_same_and_sends_nothing_twice(wandb, tmp_path):
  """Rows after the checkpoint were sent, dropped, and are written again."""
  folder, _ = open_run_folder(tmp_path / 'a', FLAGS, {})
  with folder, MetricsWriter(folder.metrics) as writer:
    writer.write_rows(_rows([10, 20]))
  _track(folder.path, Track('wandb'), _rows([10, 20]))
  steps = tracking.last_steps(folder.metrics, 'env_steps', alone=False)
  assert steps == {
    'tau=0.1, rule=soft, seed=3': 20,
    'tau=0.2, rule=soft, seed=3': 20,
  }
  _track(folder.path, Track('wandb'), _rows([20, 30]), steps=steps)
  before, _, after, _ = wandb.runs
  assert before.given['id'] == after.given['id']
  assert after.given['resume'] == 'allow'
  assert [row['env_steps'] for row in after.rows] == [30]


@pytest.mark.parametrize('fail', ['init', 'log'])
def test_a_failure_is_said_once_and_the_run_goes_on(wandb, tmp_path, fail):
  wandb.fail = fail
  said = _track(tmp_path / 'a', Track('wandb'), _rows([10, 20, 30]))
  reason = {'init': 'no way', 'log': 'gone'}[fail]
  assert f'--track=wandb: {reason}; the run goes on' in said
  assert sum('the run goes on' in line for line in said) == 1


def test_a_slow_service_does_not_slow_a_run(wandb, tmp_path, monkeypatch):
  monkeypatch.setattr(tracking, '_CLOSE_S', 0.05)
  monkeypatch.setattr(wandb, 'init', lambda **unused: time.sleep(1.0))
  folder, _ = open_run_folder(tmp_path, FLAGS, {})
  with folder:
    tracker = tracking.open_tracker(
      Track('wandb'), folder, 'env_steps', {}, alone=False
    )
    begun = time.monotonic()
    for step in range(100):
      tracker.write(_rows([step]))
    tracker.close()
  assert time.monotonic() - begun < 0.9
  assert 'the last rows are not written' in tracker.take_messages()[-1]


def test_too_many_runs_are_not_all_tracked(wandb, tmp_path, monkeypatch):
  monkeypatch.setattr(tracking, '_MOST_RUNS', 2)
  rows = _rows([10, 20], [0.1, 0.2, 0.3, 0.4])
  said = _track(tmp_path / 'a', Track('wandb'), rows)
  assert len(wandb.runs) == 2 and len(wandb.runs[0].rows) == 2
  assert sum('only the first 2 runs' in line for line in said) == 1


def test_tensorboard_has_a_run_for_each_with_its_values(tmp_path):
  pytest.importorskip('tensorboardX')
  track = Track('tensorboard')
  assert not _track(tmp_path / 'a', track, _rows([10, 20]))
  folders = sorted((tmp_path / 'a' / 'events').iterdir())
  names = ['tau=0.1,rule=soft,seed=3', 'tau=0.2,rule=soft,seed=3']
  assert [folder.name for folder in folders] == names
  points, purges = read_events(folders[1])
  assert [p for p in points if p[0] == 'loss'] == [('loss', 10), ('loss', 20)]
  assert purges == [0]
  content = b''.join(p.read_bytes() for p in folders[1].iterdir())
  assert b'_hparams_/session_start_info' in content and b'rule' in content
  # A resumed run hides what it has dropped.
  steps = {'tau=0.2, rule=soft, seed=3': 10}
  assert not _track(tmp_path / 'a', track, _rows([20]), steps=steps)
  assert read_events(folders[1])[1] == [0, 11]


@pytest.mark.parametrize('kind', [None, 'none'])
def test_nothing_is_tracked_unless_asked_for(tmp_path, kind):
  folder, _ = open_run_folder(tmp_path, FLAGS, {})
  with folder:
    assert not tracking.open_tracker(
      Track(kind), folder, 'env_steps', {}, alone=False
    )


def test_a_missing_package_names_its_extra(monkeypatch):
  monkeypatch.setattr(tracking.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(NotInstalledError, match=r'siamrl\[wandb\]'):
    tracking.check('wandb')
  with pytest.raises(NotInstalledError, match=r'siamrl\[track\]'):
    tracking.check('tensorboard')
  tracking.check(None)


@pytest.mark.slow
def test_weights_and_biases_itself_offline(tmp_path, monkeypatch):
  pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  for steps in ([10, 20], [30]):
    assert not _track(tmp_path / 'a', Track('wandb'), _rows(steps))
    time.sleep(1.1)  # folders are named after the second
  runs = sorted((tmp_path / 'a' / 'events' / 'wandb').glob('offline-run-*'))
  assert len(runs) == 4  # two runs, each begun twice
  assert len({path.name.partition('-')[2][12:] for path in runs}) >= 2
  ids = {path.name.split('-', 3)[3] for path in runs}
  assert len(ids) == 2
  for path in runs:
    (file,) = path.glob('*.wandb')
    assert b'env_steps' in file.read_bytes()
