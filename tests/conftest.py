"""What all tests share: the CPU, its options, and nothing left behind."""

import atexit
import os
import shutil
import tempfile

import hypothesis

from experiments.engines import devices, running

# Before JAX starts, for this process and for the launchers that tests start.
_CACHE = tempfile.mkdtemp(prefix='siamrl-tests-')
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
devices.add_xla_flags((*devices.CPU_XLA_FLAGS, *devices.YNNPACK_XLA_FLAGS))
# What is drawn must not go wrong here.
running.DRAWING_ERRORS = ()
hypothesis.settings.register_profile('tests', database=None)
hypothesis.settings.load_profile('tests')

# Most tests compile far more than they compute: without these optimizations
# they take half the time.
COMPILE_FAST = (
  '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
  '--xla_cpu_use_fusion_emitters=false',
)


def pytest_configure(config):
  # Slow tests compute for minutes, and want XLA as users have it.
  if config.option.markexpr == 'not slow':
    devices.add_xla_flags(COMPILE_FAST)
