"""XLA's options and the memory of the machine."""

import os
import pathlib

import pytest

from experiments import devices

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
