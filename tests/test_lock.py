"""The lock has a version for all that setup.py asks for, and a fitting one."""

import pathlib
import re
import runpy
import sys
import types
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest

ROOT = pathlib.Path(__file__).parent.parent
LOCK = ROOT / '.ci' / 'lock.txt'
MACHINES = {
  f'{python}-{system}': {
    'python_version': python,
    'python_full_version': f'{python}.0',
    'sys_platform': system,
  }
  for python in ('3.11', '3.12', '3.13')
  for system in ('linux', 'darwin')
}


def _pins(machine: dict[str, str]) -> dict[str, list[Requirement]]:
  """What the lock says for a machine, by normalized names."""
  pins: dict[str, list[Requirement]] = {}
  for line in LOCK.read_text().splitlines():
    if line.startswith('#'):
      continue
    pin = Requirement(line)
    if pin.marker is None or pin.marker.evaluate(machine):
      pins.setdefault(canonicalize_name(pin.name), []).append(pin)
  return pins


@pytest.fixture
def setup(monkeypatch) -> dict[str, Any]:
  """The arguments that setup.py gives to setuptools."""
  given: dict[str, Any] = {}
  fake = types.SimpleNamespace(
    setup=given.update, find_packages=lambda include: include
  )
  monkeypatch.setitem(sys.modules, 'setuptools', fake)
  monkeypatch.chdir(ROOT)
  runpy.run_path('setup.py')
  return given


@pytest.mark.parametrize('machine', MACHINES.values(), ids=MACHINES)
def test_each_requirement_has_one_version_that_fits(setup, machine):
  pins = _pins(machine)
  extras = setup['extras_require'].values()
  wanted = [*setup['install_requires'], *sum(extras, [])]
  assert len(wanted) > 20
  for requirement in map(Requirement, wanted):
    (pin,) = pins[canonicalize_name(requirement.name)]
    (version,) = pin.specifier
    assert version.operator == '=='
    assert requirement.specifier.contains(version.version, prereleases=True), (
      f'{requirement} of setup.py, but {pin} of the lock'
    )


def test_it_holds_anywhere():
  """No index, no path, nothing that pip reads as an option."""
  for line in LOCK.read_text().splitlines():
    assert re.fullmatch(r'#.*|[\w.-]+==[\w.+]+( ; .*)?', line), line


def test_what_needs_pytorch_is_not_in_it():
  assert not {'torch', 'torchvision'} & _pins(MACHINES['3.11-linux']).keys()


def test_accelerators_are_in_it():
  """At the version of JAX, which its extras ask for."""
  pins = _pins(MACHINES['3.13-linux'])
  (jax,) = pins['jax']
  for name in ('jax-cuda12-plugin', 'jax-cuda13-plugin'):
    assert pins[name][0].specifier == jax.specifier
  assert 'libtpu' in pins


def test_the_readme_installs_what_is_locked():
  """But for one line, which is for the newest versions."""
  readme = (ROOT / 'README.md').read_text()
  lines = [
    line for line in readme.splitlines() if '.venv/bin/pip install' in line
  ]
  unlocked = [line for line in lines if '-c .ci/lock.txt' not in line]
  assert len(lines) >= 6
  (newest,) = unlocked
  assert " -e '.[" in newest and '&& .venv/bin/python' not in newest
