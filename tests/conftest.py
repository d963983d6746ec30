"""What all tests share: the CPU, its options, and nothing left behind."""

import atexit
import gc
import os
import shutil
import tempfile

import hypothesis
import pytest

# Before JAX is imported, which reads these then, for this process and for those
# that it starts: workers of pytest-xdist, and launchers. All share one cache.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  _CACHE = tempfile.mkdtemp(prefix='siamrl-tests-')
  atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE
  # To write an entry takes as long as to compile a small program.
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'

from experiments.engines import devices, running

devices.add_xla_flags((*devices.CPU_XLA_FLAGS, *devices.YNNPACK_XLA_FLAGS))
# What is drawn must not go wrong here.
running.DRAWING_ERRORS = ()
hypothesis.settings.register_profile('tests', database=None)
hypothesis.settings.load_profile('tests')
# Tracing makes many objects, of which few are garbage in cycles.
gc.set_threshold(50_000, 20, 100)

# Most tests compile far more than they compute: without these optimizations,
# and with the code of a program in one piece, they take half the time.
COMPILE_FAST = (
  '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
  '--xla_cpu_use_fusion_emitters=false',
  '--xla_cpu_parallel_codegen_split_count=1',
)


def pytest_configure(config):
  # Slow tests compute for minutes, and want XLA as users have it.
  if config.option.markexpr == 'not slow':
    devices.add_xla_flags(COMPILE_FAST)


@pytest.fixture
def kept_rules(monkeypatch):
  """Leaves the rules as they were: studies may bring their own."""
  from experiments.config import users
  from siamrl import twins

  monkeypatch.setattr(users, '_known', set(users._known))
  before = [(r, dict(r)) for r in (twins.RULES, twins.PARAMETERS)]
  yield
  for registry, kept in before:
    registry.clear()
    registry.update(kept)
