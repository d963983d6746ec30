"""What benchmarks print: one JSON object, with the numbers they promise."""

import json

import jax
import pytest

from experiments import benchmark, classic
from experiments.benchmarks import accelerators, scans
from experiments.config import executing
from experiments.engines import devices

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
  monkeypatch.setattr(scans, 'time', clock)
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

    return scans.Timed(
      advance, size, size, size, compile_s=1.0 + len(given), before=taken
    )

  monkeypatch.setattr(scans, 'build', build)
  yield
  jax.config.update('jax_enable_compilation_cache', caches)


def test_the_panels_cost(costs_are_known, capsys):
  arguments = ('--benchmark=diagnostics', '--rounds=2', '--platform=cpu')
  assert not executing.execute(
    benchmark.BenchmarkConfig, '', benchmark.main, arguments
  )
  result = json.loads(capsys.readouterr().out)
  assert result['benchmark'] == 'diagnostics'
  assert result['cores'] == devices.cores()
  for loop, run_s in (('cartpole', 0.2), ('minatar', 10.0)):
    assert result[f'{loop}_run_s'] == pytest.approx(run_s)
    share = _MEASUREMENT / run_s
    for kind, between in (('panel', 0.0), ('shadows', 0.25)):
      name = f'{loop}_{kind}'
      assert result[f'{name}_measurement_s'] == pytest.approx(0.02, abs=1e-6)
      assert result[f'{name}_between_share'] == pytest.approx(between, abs=1e-6)
      assert result[f'{name}_share'] == pytest.approx(share + between, abs=1e-4)
      assert result[f'{name}_compile_s'] > result[f'{loop}_compile_s']
  # Its name, the platform and the cores, then what is known of each loop.
  assert len(result) == 3 + 2 * (2 + 2 * 4)


def test_a_budget_leaves_out_what_may_exceed_it(monkeypatch):
  clock = _Clock()
  monkeypatch.setattr(accelerators, 'time', clock)
  budget = accelerators.Budget(10.0)

  def measure(seconds):
    clock.now += seconds
    return seconds

  def fail():
    clock.now += 0.5
    raise RuntimeError('no memory\nmore lines')

  assert budget.take('first', lambda: measure(3.0)) == 3
  assert budget.take('broken', fail) is None
  assert budget.take('second', lambda: measure(3.0)) == 3
  assert budget.take('third', lambda: measure(3.0)) == 3
  assert budget.take('last', lambda: measure(0.1)) is None  # it may take 3
  assert budget.spent == 9.5
  assert budget.left_out == {
    'broken': 'failed: no memory',
    'last': 'left out: 10 s were spent',
  }


def test_the_least_time_of_a_gradient_step():
  ceilings = accelerators.Ceilings(
    {'float32': 1e12}, bandwidth=1e11, launch_s=1e-5, answer_s=2e-5
  )
  step = accelerators.Step(1e-3, 64, 1e7, 1e6, 0.125)
  assert step.floors(ceilings) == pytest.approx(
    {'flop': 6.4e-4, 'bytes': 6.4e-4, 'launch': 1.25e-6}
  )


@pytest.mark.slow
def test_the_panels_cost_of_compiled_runs():
  def build(*arguments):
    return scans.build(
      classic.ClassicConfig,
      classic.make_task,
      '--environment=catch',
      '--min_replay=1000',
      '--iteration_env_steps=1000',
      *arguments,
    )

  costs = scans._panel_cost(build, 1)
  assert len(costs) == 2 + 2 * 4
  # A measurement is more work, though perhaps not for long.
  assert costs['run_s'] > 0
  assert all(costs[f'{n}compile_s'] > 0 for n in ('', 'panel_', 'shadows_'))
