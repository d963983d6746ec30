"""Lint, format and types: part of the one command that checks everything."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
  'command', ['ruff check .', 'ruff format --check --diff .', 'mypy']
)
def test_style(command):
  result = subprocess.run(
    [sys.executable, '-m', *command.split()],
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    check=False,
  )
  assert result.returncode == 0, result.stdout
