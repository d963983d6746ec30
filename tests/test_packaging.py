"""The package as users have it: built, and used from a folder of their own."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import siamrl

ROOT = pathlib.Path(__file__).parent.parent
LAUNCHERS = [
  path.stem
  for path in sorted((ROOT / 'experiments').glob('*.py'))
  if "if __name__ == '__main__':" in path.read_text()
]
# Of each launcher the help text, in one process.
HELP = """
import runpy, sys
for name in sys.argv[1:]:
  sys.argv = [name, '--help']
  try:
    runpy.run_module(f'experiments.{name}', run_name='__main__')
  except SystemExit as end:
    assert not end.code, name
"""


def _python(
  *arguments: object, folder: pathlib.Path, path: pathlib.Path | None = None
) -> str:
  """Runs Python in a folder, and returns all that it has written."""
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  environment.pop('PYTHONPATH', None)
  if path is not None:
    environment['PYTHONPATH'] = str(path)
  done = subprocess.run(
    [sys.executable, *map(str, arguments)],
    cwd=folder,
    env=environment,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    timeout=280,
    check=False,
  )
  assert done.returncode == 0, done.stdout
  return done.stdout


@pytest.fixture(scope='module')
def built(tmp_path_factory) -> pathlib.Path:
  """A folder with the packages as a wheel would hold them."""
  folder = tmp_path_factory.mktemp('built')
  base = tmp_path_factory.mktemp('egg')
  _python(
    *('setup.py', '-q', 'egg_info', '--egg-base', base),
    *('build_py', '--build-lib', folder),
    folder=ROOT,
  )
  return folder


def test_the_version_has_one_source(built, tmp_path):
  assert re.fullmatch(r'\d+\.\d+\.\d+', siamrl.__version__)
  said = _python('setup.py', '--version', folder=ROOT).split()
  assert said[-1] == siamrl.__version__
  script = 'import siamrl; print(siamrl.__file__, siamrl.__version__)'
  path, version = _python('-c', script, folder=tmp_path, path=built).split()
  assert pathlib.Path(path).is_relative_to(built)
  assert version == siamrl.__version__


def test_users_are_told_of_types(built, tmp_path):
  """A type checker reads the annotations of an installed siamrl."""
  _python('-m', 'venv', '--without-pip', tmp_path / 'venv', folder=tmp_path)
  (packages,) = (tmp_path / 'venv').glob('lib/python*/site-packages')
  (packages / 'siamrl').symlink_to(built / 'siamrl')
  (tmp_path / 'own.py').write_text(
    'import siamrl\nreveal_type(siamrl.__version__)\n'
  )
  said = _python(
    *('-m', 'mypy', '--python-executable', tmp_path / 'venv/bin/python'),
    'own.py',
    folder=tmp_path,
  )
  assert 'Revealed type is "str"' in said
  (built / 'siamrl/py.typed').rename(tmp_path / 'py.typed')
  with pytest.raises(AssertionError, match='py.typed'):
    _python(
      *('-m', 'mypy', '--python-executable', tmp_path / 'venv/bin/python'),
      'own.py',
      folder=tmp_path,
    )
  (tmp_path / 'py.typed').rename(built / 'siamrl/py.typed')


def test_launchers_say_their_help_in_any_folder(built, tmp_path):
  said = _python('-c', HELP, *LAUNCHERS, folder=tmp_path, path=built)
  assert said.count('--flagfile=FILE') == len(LAUNCHERS)


def test_a_run_in_a_folder_of_its_own(built, tmp_path):
  """A preset goes by its name, and a relative --run_dir is made there."""
  _python(
    *('-m', 'experiments.classic', '--flagfile=dopamine_dqn_cartpole'),
    *('--platform=cpu', '--env_steps=40', '--iteration_env_steps=20'),
    *('--min_replay=8', '--replay_capacity=40', '--batch_size=4'),
    *('--hidden_sizes=4', '--eval_episodes=0', '--run_dir=runs/own'),
    folder=tmp_path,
    path=built,
  )
  assert [path.name for path in tmp_path.iterdir()] == ['runs']
  metrics = (tmp_path / 'runs/own/metrics.csv').read_text()
  assert len(metrics.splitlines()) == 3
