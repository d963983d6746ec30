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
  words = ('order=', 'cautious', 'registry.register(', 'eval_return')
  assert sorted(BLOCKS) == sorted(_block(word) for word in words)


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


def test_a_rule_of_ones_own(tmp_path):
  (tmp_path / 'rule.py').write_text(_block('cautious'))
  rule = (
    *SMALL,
    '--environment=catch',
    '--target_update=cautious',
    '--tau=0.05',
    '--panel_period=1',
    '--probe_size=8',
  )
  _run(tmp_path, 'rule.py', *rule, '--caution=0,1', '--run_dir=swept')
  rows = _rows(tmp_path / 'swept' / 'metrics.csv')
  assert {row['caution'] for row in rows} == {'0.0', '1.0'}
  last = {row['caution']: row for row in rows}
  assert last['0.0']['loss'] != last['1.0']['loss']
  # With no caution it is the soft twin.
  _run(
    tmp_path,
    '-m',
    'experiments.classic',
    *rule[:-4],
    *('--target_update=soft', '--tau=0.05', '--run_dir=soft'),
    *rule[-2:],
  )
  soft = _rows(tmp_path / 'soft' / 'metrics.csv')
  assert soft[-1]['q_tm1'] == last['0.0']['q_tm1']
  # It is run again by its flags, which name the file; and not without it.
  flags = tmp_path / 'swept' / 'flags.txt'
  assert f'--user_file={tmp_path / "rule.py"}' in flags.read_text()
  again = ('-m', 'experiments.classic', f'--flagfile={flags}')
  _run('/', *again, f'--run_dir={tmp_path}/again')
  assert _rows(tmp_path / 'again' / 'metrics.csv') == rows
  help_text = _run(tmp_path, 'rule.py', '--helpfull')
  assert '--caution' in help_text and 'Weight of the TD error' in help_text
  (tmp_path / 'rule.py').unlink()
  lost = _run(tmp_path, *again, '--run_dir=lost', status=2)
  assert 'rule.py: no such file' in lost
  assert not (tmp_path / 'lost').exists()


def test_an_environment_of_ones_own(tmp_path):
  (tmp_path / 'walk.py').write_text(_block('registry.register('))
  _run(tmp_path, 'walk.py', *SMALL, '--environment=walk', '--run_dir=run')
  (*_, row) = _rows(tmp_path / 'run' / 'metrics.csv')
  assert int(row['train_episodes']) > 0
  assert 0 <= float(row['train_return']) <= 1


@pytest.mark.timeout(290)
def test_dqn_as_a_library(tmp_path):
  printed = _run(tmp_path, '-c', _block('eval_return'))
  returns = [float(line.split()[1]) for line in printed.splitlines()]
  assert len(returns) == 10
  # An untrained network ends an episode after some ten steps.
  assert max(returns) > 150
