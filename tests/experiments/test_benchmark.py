"""What benchmarks print: one JSON object, with the numbers they promise."""

import json

import jax
import pytest

from experiments import benchmark, classic, scan_benchmarks
from experiments.config import executing

# Seconds of an iteration of 10,000 and of 1,000 env steps, and of measuring.
_PLAIN, _MEASUREMENT = {10_000: 0.2, 1_000: 1.0}, 0.02


class _Clock:
  """A wall clock that only iterations move."""

  def __init__(self):
    self.now = 0.0

  def perf_counter(self):
    return self.now


@pytest.fixture
def costs_are_known(monkeypatch):
  """Replaces compiled loops by ones whose costs are known."""
  clock = _Clock()
  monkeypatch.setattr(scan_benchmarks, 'time', clock)
  monkeypatch.setattr(benchmark, '_use_one_core', lambda: None)
  caches = jax.config.jax_enable_compilation_cache

  def build(*arguments):
    given = dict(
      text.removeprefix('--').split('=')
      for text in arguments
      if isinstance(text, str)
    )
    size = int(given['iteration_env_steps'])
    plain = _PLAIN[size]
    between = 1.25 if 'shadows' in given else 1.0
    taken = 3  # iterations: an odd number, and so the next one measures

    def advance():
      nonlocal taken
      measures = 'panel_period' in given and taken % 2 == 1
      clock.now += between * plain + measures * _MEASUREMENT
      taken += 1

    return scan_benchmarks.Timed(
      advance, size, size, size, compile_s=1.0 + len(given), before=taken
    )

  monkeypatch.setattr(scan_benchmarks, 'build', build)
  yield
  jax.config.update('jax_enable_compilation_cache', caches)


def test_the_panels_cost(costs_are_known, capsys):
  arguments = ('--benchmark=diagnostics', '--rounds=2', '--platform=cpu')
  assert not executing.execute(
    benchmark.BenchmarkConfig, '', benchmark.main, arguments
  )
  result = json.loads(capsys.readouterr().out)
  assert result['benchmark'] == 'diagnostics'
  for loop, run_s in (('cartpole', 0.2), ('minatar', 10.0)):
    assert result[f'{loop}_run_s'] == pytest.approx(run_s)
    share = _MEASUREMENT / run_s
    for kind, between in (('panel', 0.0), ('shadows', 0.25)):
      name = f'{loop}_{kind}'
      assert result[f'{name}_measurement_s'] == pytest.approx(0.02, abs=1e-6)
      assert result[f'{name}_between_share'] == pytest.approx(between, abs=1e-6)
      assert result[f'{name}_share'] == pytest.approx(share + between, abs=1e-4)
      assert result[f'{name}_compile_s'] > result[f'{loop}_compile_s']
  assert len(result) == 2 + 2 * (2 + 2 * 4)


@pytest.mark.slow
def test_the_panels_cost_of_compiled_runs():
  def build(*arguments):
    return scan_benchmarks.build(
      classic.ClassicConfig,
      classic.make_task,
      '--environment=catch',
      '--min_replay=1000',
      '--iteration_env_steps=1000',
      *arguments,
    )

  costs = scan_benchmarks._panel_cost(build, 1)
  assert len(costs) == 2 + 2 * 4
  # A measurement is more work, though perhaps not for long.
  assert costs['run_s'] > 0
  assert all(costs[f'{n}compile_s'] > 0 for n in ('', 'panel_', 'shadows_'))
