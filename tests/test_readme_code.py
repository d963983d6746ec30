"""The Python of README.md runs, from wherever a user keeps it."""

import csv
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BLOCKS = re.findall(
  r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL
)
SMALL = [
  '--platform=cpu',
  '--env_steps=1200',
  '--iteration_env_steps=400',
  '--num_envs=2',
  '--train_period=2',
  '--batch_size=8',
  '--min_replay=50',
  '--replay_capacity=300',
  '--hidden_sizes=16',
  '--epsilon_decay=600',
]


def _block(word):
  """The only block that holds a word."""
  (found,) = [block for block in BLOCKS if word in block]
  return found


def _run(folder, *arguments, status=0):
  """Runs Python in a folder; returns what it prints."""
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  done = subprocess.run(
    [sys.executable, *arguments],
    cwd=folder,
    env=environment,
    capture_output=True,
    text=True,
    timeout=280,
  )
  assert done.returncode == status, done.stderr
  return done.stdout + done.stderr


def _rows(path):
  with path.open() as file:
    return list(csv.DictReader(file))


def test_every_block_is_run_here():
  words = (
    'order=',
    'cautious',
    'registry.register(',
    'conformance',
    'eval_return',
  )
  assert sorted(BLOCKS) == sorted(_block(word) for word in words)


def test_a_twin_of_ones_own_is_checked(capsys):
  exec(_block('conformance'), {})
  assert capsys.readouterr().out.startswith('hard, period = 500\nlooked at ')


def test_files_of_a_users_own_are_short():
  for word, most in (
    ('cautious', 20),
    ('registry.register(', 20),
    ('eval_return', 25),
  ):
    assert len(_block(word).splitlines()) <= most


def test_a_learner_in_a_few_lines():
  names: dict = {}
  exec(_block('order='), names)
  assert int(names['state'].gradient_steps) == 0


RULE = (
  *SMALL,
  '--environment=catch',
  '--target_update=cautious',
  '--tau=0.05',
  '--panel_period=1',
  '--probe_size=8',
)


@pytest.fixture(scope='module')
def swept(tmp_path_factory):
  """A folder with the README's rule, and a sweep over its parameter."""
  folder = tmp_path_factory.mktemp('rule')
  (folder / 'rule.py').write_text(_block('cautious'))
  _run(folder, 'rule.py', *RULE, '--caution=0,1', '--run_dir=swept')
  return folder


def test_a_rule_of_ones_own(swept, tmp_path):
  rows = _rows(swept / 'swept' / 'metrics.csv')
  assert {row['caution'] for row in rows} == {'0.0', '1.0'}
  last = {row['caution']: row for row in rows}
  assert last['0.0']['loss'] != last['1.0']['loss']
  help_text = _run(swept, 'rule.py', '--helpfull')
  assert '--caution' in help_text and 'Weight of the TD error' in help_text
  # It is run again by its flags, which name the file; and not without it.
  flags = swept / 'swept' / 'flags.txt'
  named = f'--user_file={swept / "rule.py"}'
  assert named in flags.read_text()
  (tmp_path / 'flags').write_text(
    flags.read_text().replace(named, f'--user_file={tmp_path / "rule.py"}')
  )
  again = ('-m', 'experiments.classic', '--flagfile=flags')
  lost = _run(tmp_path, *again, '--run_dir=lost', status=2)
  assert 'rule.py: no such file' in lost
  assert not (tmp_path / 'lost').exists()


@pytest.mark.slow
def test_a_rule_of_ones_own_with_no_caution_is_the_soft_twin(swept, tmp_path):
  _run(
    tmp_path,
    '-m',
    'experiments.classic',
    *RULE[:-4],
    *('--target_update=soft', '--tau=0.05', '--run_dir=soft'),
    *RULE[-2:],
  )
  soft = _rows(tmp_path / 'soft' / 'metrics.csv')
  rows = _rows(swept / 'swept' / 'metrics.csv')
  last = {row['caution']: row for row in rows}
  assert soft[-1]['q_tm1'] == last['0.0']['q_tm1']


@pytest.mark.slow
def test_a_rule_of_ones_own_is_run_again_by_its_flags(swept, tmp_path):
  flags = swept / 'swept' / 'flags.txt'
  again = ('-m', 'experiments.classic', f'--flagfile={flags}')
  _run('/', *again, f'--run_dir={tmp_path}/again')
  rows = _rows(swept / 'swept' / 'metrics.csv')
  assert _rows(tmp_path / 'again' / 'metrics.csv') == rows


def test_an_environment_of_ones_own(tmp_path):
  (tmp_path / 'walk.py').write_text(_block('registry.register('))
  _run(tmp_path, 'walk.py', *SMALL, '--environment=walk', '--run_dir=run')
  (*_, row) = _rows(tmp_path / 'run' / 'metrics.csv')
  assert int(row['train_episodes']) > 0
  assert 0 <= float(row['train_return']) <= 1


def _library(folder, iterations):
  """The return after each iteration of the README's loop."""
  block = _block('eval_return').replace('range(10)', f'range({iterations})')
  printed = _run(folder, '-c', block)
  returns = [float(line.split()[1]) for line in printed.splitlines()]
  assert len(returns) == iterations
  return returns


def test_dqn_as_a_library(tmp_path):
  assert all(0 < value <= 500 for value in _library(tmp_path, 1))


@pytest.mark.slow
@pytest.mark.timeout(290)
def test_dqn_as_a_library_learns(tmp_path):
  # An untrained network ends an episode after some ten steps.
  assert max(_library(tmp_path, 10)) > 150
