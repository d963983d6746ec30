"""The table of other libraries' target networks is what they still do."""

import csv
import os
import pathlib
import subprocess
import sys
import venv

import pytest

from tests import conformance_libraries

ROOT = pathlib.Path(__file__).parent.parent
TABLE = ROOT / 'experiments' / 'results' / 'twin_conformance.csv'


def _rows(path):
  with path.open() as file:
    return list(csv.DictReader(file))


def test_restated_scripts_are_as_in_the_table():
  shipped = _rows(TABLE)
  assert list(shipped[0]) == list(conformance_libraries.COLUMNS)
  restated = [row for row in shipped if row['how'] == 'restated']
  assert restated == list(conformance_libraries.scripts())
  assert len({row['library'] for row in shipped}) >= 6


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_libraries_are_as_in_the_table(tmp_path):
  """In an environment of its own, with the versions of the table."""
  venv.create(tmp_path / 'venv', with_pip=True)
  python = tmp_path / 'venv' / 'bin' / 'python'
  requirements = ROOT / 'tests' / 'conformance_libraries.txt'
  install = [python, '-m', 'pip', 'install', '-q', '-r', requirements]
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'OMP_NUM_THREADS': '1',
    'PYTHONPATH': str(ROOT),
  }
  if subprocess.run(install, check=False).returncode:
    pytest.skip('the libraries cannot be installed here')
  path = tmp_path / 'table.csv'
  run = [python, '-m', 'tests.conformance_libraries', path]
  subprocess.run(run, cwd=ROOT, env=environment, check=True, stderr=sys.stderr)
  assert _rows(path) == _rows(TABLE)
