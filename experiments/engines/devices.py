"""Settings to make before JAX starts: platform, XLA's options, caches."""

from collections.abc import Sequence
import contextlib
import functools
import importlib.util
import mmap
import os
import pathlib
import signal
import threading
import zlib

from absl import logging
import jax

from experiments.config import startup
from experiments.config.declaring import RunError, UsageError
from siamrl.memory import memory_bytes as memory_bytes
from siamrl.report import checkout


# The fastest options on a CPU, see BUILD_NOTES.md.
CPU_XLA_FLAGS = (
  # Without it parameters are copied at every gradient step.
  '--xla_cpu_copy_insertion_use_region_analysis=true',
)
YNNPACK_XLA_FLAGS = (
  '--xla_cpu_experimental_ynn_fusion_type=individual_dot,reduce',
)
# By default XLA gives YNNPACK some of its products.
NO_YNNPACK_XLA_FLAGS = ('--xla_cpu_experimental_ynn_fusion_type=',)
# Without it a GPU may add up gradients in another order each time.
GPU_XLA_FLAGS = ('--xla_gpu_deterministic_ops=true',)
_ACCELERATORS = (
  'libtpu',
  'jax_cuda12_plugin',
  'jax_cuda13_plugin',
  'jax_rocm60_plugin',
  'jax_rocm7_plugin',
)


def configure(
  platform: str | None, *, cpu_devices: int = 1, ynnpack: bool = True
) -> str:
  """Chooses the device, and the options with which JAX compiles for it.

  Must be called before anything is computed, as XLA reads its options only
  once, from the environment. Options that the user set there are kept.

  Args:
    platform: one of `startup.PLATFORMS`, or None for the best that JAX finds.
    cpu_devices: number of devices that JAX makes of a CPU, unless
      JAX_NUM_CPU_DEVICES or XLA's option sets it.
    ynnpack: whether a CPU multiplies with YNNPACK, which is faster, except for
      small dense networks whose process steps environments.

  Returns:
    The platform in use.

  Raises:
    UsageError: JAX has no such device, or an environment variable would break
      or change what is computed.
  """
  check_environment()
  checkout.ask()  # it answers while programs are built
  if platform == 'cpu' or not any(map(importlib.util.find_spec, _ACCELERATORS)):
    add_xla_flags(CPU_XLA_FLAGS)
    add_xla_flags(YNNPACK_XLA_FLAGS if ynnpack else NO_YNNPACK_XLA_FLAGS)
  elif platform != 'tpu' and importlib.util.find_spec('libtpu') is None:
    add_xla_flags(GPU_XLA_FLAGS)
  # JAX takes 'gpu' for those of all vendors, and fails if one is missing.
  if platform and platform != 'gpu':
    jax.config.update('jax_platforms', platform)
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    jax.config.update('jax_compilation_cache_dir', str(_cache_directory()))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
  if cpu_devices > 1 and not _cpu_devices_given():
    # If JAX runs already, it keeps its devices.
    with contextlib.suppress(RuntimeError):
      jax.config.update('jax_num_cpu_devices', cpu_devices)
  # JAX warns if it finds no GPU.
  logging.set_verbosity(logging.ERROR)
  try:
    backend = jax.default_backend()
  except RuntimeError as error:
    reason = str(error).splitlines()[0]
    asked = f'--platform={platform}'
    if platform is None:
      asked = f'JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")}'
    raise UsageError(f'{asked} is not available here: {reason}') from error
  if platform and backend != platform:
    raise UsageError(
      f'--platform={platform} is not available here: JAX found {backend}'
    )
  return backend


def check_environment() -> None:
  """Refuses environment variables that break or change runs.

  Raises:
    UsageError: a setting of JAX is not its default, or the installed XLA does
      not know an option and would end the process.
  """
  try:
    startup.check_settings(os.environ)
  except ValueError as error:
    raise UsageError(str(error)) from error
  for flag in os.environ.get('XLA_FLAGS', '').split():
    if flag.startswith('--') and not _xla_knows(flag):
      raise UsageError(
        f'XLA_FLAGS={flag} in the environment: the installed XLA has no such '
        'option'
      )


def _cpu_devices_given() -> bool:
  """Whether the environment sets the number of CPU devices."""
  option = '--xla_force_host_platform_device_count'
  return 'JAX_NUM_CPU_DEVICES' in os.environ or option in os.environ.get(
    'XLA_FLAGS', ''
  )


def add_xla_flags(wanted: Sequence[str]) -> None:
  """Adds options to XLA's in the environment, except those the user set.

  XLA reads it when its backend starts, at the first computation.
  """
  given = os.environ.get('XLA_FLAGS', '')
  added = [
    flag
    for flag in wanted
    if flag.partition('=')[0] not in given and _xla_knows(flag)
  ]
  if added:
    os.environ['XLA_FLAGS'] = ' '.join([given, *added]).strip()


@functools.cache
def _xla_knows(flag: str) -> bool:
  """Whether the installed XLA has an option; unknown ones end the process.

  Only the library itself lists the options of a release.
  """
  spec = importlib.util.find_spec('jaxlib')
  if spec is None or not spec.submodule_search_locations:
    return False
  name = flag.partition('=')[0].removeprefix('--').encode()
  for folder in spec.submodule_search_locations:
    for library in pathlib.Path(folder).glob('*.so'):
      with (
        open(library, 'rb') as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
      ):
        if content.find(name) >= 0:
          return True
  return False


def _cache_directory() -> pathlib.Path:
  """The cache of compiled programs, a folder for each kind of processor.

  A program compiled for one processor can fail on another, and home
  directories are shared.
  """
  base = pathlib.Path(
    os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  )
  kind = ''
  with contextlib.suppress(OSError):
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    kind = next((line for line in lines if line.startswith('flags')), '')
  return base / 'siamrl' / f'{zlib.crc32(kind.encode()):08x}'


def cores() -> int:
  """Processor cores that this process may use; on macOS, all cores."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


class StopRequest:
  """A context manager that catches SIGTERM and Ctrl-C, to stop a run cleanly.

  It is true once a signal has come. A second Ctrl-C interrupts at once. Signals
  are caught from its creation to the end of the block.
  """

  def __init__(self) -> None:
    self._event = threading.Event()
    self._before = {
      number: signal.signal(number, self._hear)
      for number in (signal.SIGTERM, signal.SIGINT)
    }

  def _hear(self, number: int, frame: object) -> None:
    del frame
    self._event.set()
    if number == signal.SIGINT:
      signal.signal(signal.SIGINT, signal.default_int_handler)

  def __bool__(self) -> bool:
    return self._event.is_set()

  def __enter__(self) -> 'StopRequest':
    return self

  def __exit__(self, *exc: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)


def check_room(folder: pathlib.Path, needed_bytes: int) -> None:
  """Raises RunError if the checkpoints of a run do not fit the disk.

  Args:
    folder: the run's folder, whose files count as free space.
    needed_bytes: the size of all checkpoints that exist at once.
  """
  stats = os.statvfs(folder)
  free = stats.f_bavail * stats.f_frsize
  held = sum(
    path.stat().st_size for path in folder.rglob('*') if path.is_file()
  )
  if free + held < needed_bytes:
    raise RunError(
      f'--run_dir={folder}: {free / 1e9:.2f} GB are free on this disk, and '
      f'checkpoints need about {(needed_bytes - held) / 1e9:.2f} GB more'
    )
