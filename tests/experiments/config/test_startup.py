"""What is settled before a launcher's imports, and settings of JAX."""

import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest

from experiments.config import startup
from experiments.config.declaring import UsageError
from experiments.engines import devices

ROOT = pathlib.Path(__file__).parents[3]
LAUNCHERS = [
  path.stem
  for path in sorted((ROOT / 'experiments').glob('*.py'))
  if "if __name__ == '__main__':" in path.read_text()
]


def _launch(name: str, *arguments: str, **variables: str):
  return subprocess.run(
    [sys.executable, '-m', f'experiments.{name}', *arguments],
    cwd=ROOT,
    env=os.environ | variables,
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


@pytest.fixture
def interruptible():
  """Ctrl-C is heard by what is started, also where tests run in the background.

  There shells have it ignored, and programs inherit that.
  """
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures('interruptible')
@pytest.mark.parametrize('launcher', LAUNCHERS)
def test_ctrl_c_during_imports(launcher, tmp_path):
  """In the middle of the first of the large packages."""
  for package in ('absl', 'jax', 'numpy'):
    (tmp_path / f'{package}.py').write_text(
      'import signal\n'
      'try:\n'
      '  signal.raise_signal(signal.SIGINT)\n'
      'except BaseException:\n'  # as some packages do
      '  pass\n'
    )
  done = _launch(launcher, '--help', PYTHONPATH=str(tmp_path))
  assert (done.returncode, done.stdout) == (130, '')
  assert done.stderr == 'error: interrupted\n'


def test_ctrl_c_is_left_alone_where_it_is_ignored(tmp_path):
  """As after `nohup`, or behind `&` in a script."""
  (tmp_path / 'absl.py').write_text(
    'import os, signal\nsignal.raise_signal(signal.SIGINT)\nos._exit(7)'
  )
  done = subprocess.run(
    ['sh', '-c', f'trap "" INT; exec {sys.executable} -m experiments.plot'],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(tmp_path)},
    timeout=60,
    check=False,
  )
  assert done.returncode == 7


@pytest.mark.parametrize('launcher', LAUNCHERS)
def test_every_launcher_refuses_settings_that_change_numbers(launcher):
  done = _launch(launcher, JAX_ENABLE_X64='1')
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.startswith('error: JAX_ENABLE_X64=1 in the environment ')
  assert done.stderr.count('\n') == 1


def test_settings_that_jax_itself_refuses():
  done = _launch('classic', JAX_NUM_CPU_DEVICES='many')
  assert done.returncode == 2
  assert done.stderr.startswith('error: ')
  assert 'jax_num_cpu_devices' in done.stderr.lower()
  assert done.stderr.count('\n') == 1


@pytest.mark.parametrize(
  'name, value',
  [
    ('JAX_ENABLE_X64', 'True'),
    ('JAX_ENABLE_X64', 'maybe'),
    ('JAX_DEFAULT_PRNG_IMPL', 'unsafe_rbg'),
    ('JAX_THREEFRY_PARTITIONABLE', 'off'),
    ('JAX_DEFAULT_MATMUL_PRECISION', 'highest'),
    ('JAX_DEBUG_NANS', '1'),
    ('JAX_DISABLE_JIT', 'yes'),
    ('JAX_NUMPY_DTYPE_PROMOTION', 'strict'),
    ('JAX_TRANSFER_GUARD', 'disallow'),
    ('JAX_RANDOM_SEED_OFFSET', '1'),
  ],
)
def test_what_is_refused_of_a_launcher_and_of_a_library_call(
  name, value, monkeypatch
):
  monkeypatch.setenv(name, value)
  with pytest.raises(UsageError, match=f'^{name}={value} in the environment'):
    devices.configure('cpu')


def test_what_jax_does_anyway_may_be_said():
  startup.check_settings(
    {
      'JAX_ENABLE_X64': 'False',
      'JAX_DISABLE_JIT': '0',
      'JAX_THREEFRY_PARTITIONABLE': 'ON',
      'JAX_RANDOM_SEED_OFFSET': '0',
      'JAX_DEFAULT_PRNG_IMPL': 'threefry2x32',
      'JAX_PLATFORMS': 'cpu',
      'JAX_LOG_COMPILES': '1',
      'HOME': '/',
    }
  )


def test_what_is_required_is_what_jax_does_by_itself():
  """Of the settings that the installed version has."""
  spellings = startup._SPELLINGS
  known = 0
  for name, required in startup._REQUIRED.items():
    if name.lower() in jax.config.values:
      known += 1
      value = jax.config.values[name.lower()]
      if value is None:  # left to the library
        assert required in ('allow', 'default'), name
        continue
      text = str(getattr(value, 'value', value)).lower()
      if name == 'JAX_EXPLICIT_X64_DTYPES':
        text = value.name.lower()
      assert text in spellings.get(required, (required.lower(),)), name
  assert known > 25


def test_an_option_that_xla_does_not_know_is_refused(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_no_such_option=1')
  with pytest.raises(UsageError, match='XLA_FLAGS=--xla_no_such_option=1 in'):
    devices.configure('cpu')
