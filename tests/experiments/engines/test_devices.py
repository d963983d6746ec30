"""XLA's options and the memory of the machine."""

import dataclasses
import os
import pathlib
import socket

import jax
import pytest

from experiments.config.declaring import option, path_option
from experiments.engines import devices, folders, processes

NAME = '--xla_cpu_experimental_ynn_fusion_type'


def test_options_are_added_to_those_of_the_user(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_dump_to=x')
  monkeypatch.setattr(devices, '_xla_knows', lambda flag: True)
  devices.add_xla_flags(devices.CPU_XLA_FLAGS)
  assert os.environ['XLA_FLAGS'].split() == [
    '--xla_dump_to=x',
    *devices.CPU_XLA_FLAGS,
  ]


def test_an_option_that_the_user_set_stays(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', f'{NAME}=dot')
  monkeypatch.setattr(devices, '_xla_knows', lambda flag: True)
  devices.add_xla_flags((f'{NAME}=reduce', '--xla_dump_to=x'))
  assert os.environ['XLA_FLAGS'].split() == [f'{NAME}=dot', '--xla_dump_to=x']


@pytest.mark.parametrize('ynnpack', [True, False])
def test_products_are_ynnpack_s_unless_a_launcher_says_otherwise(
  ynnpack, monkeypatch
):
  monkeypatch.setenv('XLA_FLAGS', '')
  monkeypatch.setattr(devices, '_xla_knows', lambda flag: True)
  devices.configure('cpu', ynnpack=ynnpack)
  kinds = 'individual_dot,reduce' if ynnpack else ''
  assert f'{NAME}={kinds}' in os.environ['XLA_FLAGS'].split()


def test_an_option_that_xla_does_not_know_is_not_added(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '')
  monkeypatch.setattr(
    devices, 'CPU_XLA_FLAGS', ('--xla_dump_to=x', '--xla_no_such_option=1')
  )
  devices.add_xla_flags(devices.CPU_XLA_FLAGS)
  assert os.environ['XLA_FLAGS'] == '--xla_dump_to=x'


def test_memory_is_that_of_the_machine_or_its_container():
  lines = pathlib.Path('/proc/meminfo')
  if not lines.exists():
    pytest.skip('no /proc')
  total = int(lines.read_text().split()[1]) * 1024
  assert 0 < devices.memory_bytes() <= total * 1.01


@dataclasses.dataclass(frozen=True)
class _Config:
  run_dir: str | None = path_option(None, 'A folder.')
  overwrite: bool = option(False, 'Afresh.')


def test_a_run_that_goes_on_with_other_cores_says_so(
  tmp_path, monkeypatch, capsys
):
  config = _Config(str(tmp_path))
  monkeypatch.setenv('NPROC', '3')
  folders.open_run(config, {}).close()
  folders.open_run(config, {}).close()
  assert not capsys.readouterr().err
  monkeypatch.setenv('NPROC', '4')
  folders.open_run(config, {}).close()
  assert capsys.readouterr().err == (
    f'note: {tmp_path} resumes under other conditions, so its numbers may '
    'differ from here on: cores 3 before, 4 now\n'
  )
  monkeypatch.setenv('NPROC', '5')
  folders.open_run(dataclasses.replace(config, overwrite=True), {}).close()
  assert not capsys.readouterr().err  # it starts afresh


def _ipv6() -> bool:
  try:
    with socket.socket(socket.AF_INET6) as probe:
      probe.bind(('::1', 0))
  except OSError:
    return False
  return True


@pytest.mark.parametrize(
  'coordinator, bound',
  [
    ('127.0.0.1:1234', '127.0.0.1:1234'),
    ('localhost:1234', 'localhost:1234'),
    ('[::1]:1234', '[::1]:1234' if _ipv6() else None),
    ('192.0.2.1:1234', None),  # of no machine
    ('a-name:1234', None),
  ],
)
def test_the_coordinator_listens_at_its_address(
  coordinator, bound, monkeypatch
):
  seen = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *_, **options: seen.append(options)
  )
  monkeypatch.setattr(jax.config, 'update', lambda *_: None)
  processes.connect(coordinator, 2, 0)
  (options,) = seen
  assert options['coordinator_bind_address'] == bound
