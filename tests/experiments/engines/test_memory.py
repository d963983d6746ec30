"""What is counted of the memory, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from experiments import atari, classic, offline
from experiments.config import declaring, executing, reading
from experiments.config.declaring import UsageError
from experiments.engines import (
  compiled as compiled_engine,
  devices,
  memory,
  offline as offline_engine,
)
from siamrl.report.run_folder import RunFolder
from tests.experiments.launching import SMALL, SMALL_SWEEP, sweep_here


def _of(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_product_is_held_beside_its_factors():
  found = memory.peak_nbytes(jnp.matmul, _of(100, 200), _of(200, 300))
  assert found == 4 * (100 * 200 + 200 * 300 + 100 * 300)


def test_what_nobody_needs_any_more_makes_room():
  def chain(x):
    return jnp.sum(jnp.tanh(jnp.exp(x)) + 1)

  assert memory.peak_nbytes(chain, _of(1_000)) < 4 * 1_010

  def both(x):
    y = jnp.exp(x)
    return jnp.dot(x, y), jnp.sum(y)

  assert 8_000 <= memory.peak_nbytes(both, _of(1_000)) < 8_100


def test_a_loop_changes_its_carry_in_place_and_keeps_what_it_stacks():
  def loop(carry):
    def step(carry, _):
      return carry.at[0].add(1), carry[:10]

    return jax.lax.scan(step, carry, None, 500)

  found = memory.peak_nbytes(loop, _of(10_000))
  assert 4 * (10_000 + 5_000) <= found < 4 * (2 * 10_000 + 5_000) + 200


def test_absurd_shapes_are_counted_without_being_made():
  found = memory.peak_nbytes(jnp.matmul, _of(2**31, 2**31), _of(2**31, 1))
  assert found == 4 * (2**62 + 2 * 2**31)


@dataclasses.dataclass(frozen=True)
class _Config:
  width: int = declaring.option(8, 'How wide.', declaring.POSITIVE)
  depth: int | None = declaring.option(None, 'How deep', declaring.POSITIVE)
  sizes: str = declaring.option('8-8', 'Sizes', declaring.sizes('8-8'))
  rate: float = declaring.option(0.1, 'How fast.')


def _needs(config: _Config) -> float:
  widths = [int(size) for size in config.sizes.split('-')]
  return config.width * (config.depth or 1) * max(widths)


@pytest.mark.parametrize(
  'changes, name',
  [
    (dict(width=10**6, depth=2, rate=0.5), 'width'),
    (dict(width=9, depth=10**6), 'depth'),
    (dict(width=9, sizes='8-1000000'), 'sizes'),
    (dict(rate=1e6), None),
    (dict(width=4, sizes='2'), None),  # all smaller than by default
  ],
)
def test_the_option_that_costs_most_is_named(changes, name):
  config = _Config(**changes)
  assert memory.heaviest(config, _needs) == name
  if name is not None:
    with pytest.raises(UsageError, match=f'^--{name}={changes[name]} must be'):
      memory.check(config, _needs, 'width', 1_000)
  memory.check(config, _needs, 'width', 1e12)


def _fail(*arguments):
  raise AssertionError('training began')


@pytest.mark.parametrize(
  'arguments',
  [
    ['--hidden_sizes=8-90000000'],
    pytest.param(['--eval_episodes=500000000'], marks=pytest.mark.slow),
    pytest.param(
      ['--train_steps=5000000', '--batch_size=30'], marks=pytest.mark.slow
    ),
    ['--target_update=averaged', '--target_count=900000000'],
  ],
)
def test_compiled_runs_that_the_memory_cannot_hold(
  arguments, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(devices, 'memory_bytes', lambda: 4 * 10**9)
  monkeypatch.setattr(compiled_engine, 'run', _fail)
  err = sweep_here(classic, *SMALL_SWEEP, *arguments, code=2)
  first, last = (
    f'error: {arguments[index]} must be so small' for index in (0, -1)
  )
  assert err.startswith((first, last)), err
  assert ' of 4.0 GB' in err
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'argument',
  [
    '--hidden_units=2000000',
    pytest.param('--batch_size=1000000', marks=pytest.mark.slow),
    pytest.param('--train_steps=1000000', marks=pytest.mark.slow),
  ],
)
def test_atari_runs_that_the_memory_cannot_hold(argument, tmp_path):
  config = reading.from_arguments(atari.AtariConfig, *SMALL, argument)
  with pytest.raises(UsageError, match=f'^{argument} must be so small'):
    atari.build(config, RunFolder(tmp_path))


def test_a_learner_of_a_data_set_that_the_memory_cannot_hold(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(offline_engine, 'run', _fail)
  arguments = ['--platform=cpu', '--hidden_sizes=1000000-1000000']
  assert (
    executing.execute(offline.OfflineConfig, '', offline.main, arguments) == 2
  )
  err = capsys.readouterr().err
  assert err.startswith('error: --hidden_sizes=1000000-1000000 must be so')
  assert not list(tmp_path.iterdir())
