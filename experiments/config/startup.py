"""Startup of launchers, before anything large is imported.

`python -m experiments.NAME` first imports the package `experiments`, which
calls `begin`. From then until `end`, Ctrl-C and JAX settings that no launcher
can work with end the process with a one-line message.
"""

from collections.abc import Mapping
import contextlib
import os
import signal
import sys
import types
from typing import NoReturn

PLATFORMS = ('cpu', 'gpu', 'tpu')
# Spellings that JAX takes for these values.
_SPELLINGS = {
  '0': ('0', '0.0'),
  'false': ('0', 'f', 'false', 'n', 'no', 'off'),
  'true': ('1', 't', 'true', 'y', 'yes', 'on'),
}
# Settings of JAX under which a run would break, or would have other numbers
# than its flags say; each with the value that it must have if it is set.
_REQUIRED = {
  'JAX_ALLOW_F16_REDUCTIONS': 'true',
  'JAX_COMPILER_ENABLE_REMAT_PASS': 'true',
  'JAX_DEBUG_INFS': 'false',
  'JAX_DEBUG_KEY_REUSE': 'false',
  'JAX_DEBUG_NANS': 'false',
  'JAX_DEFAULT_MATMUL_PRECISION': 'default',
  'JAX_DEFAULT_PRNG_IMPL': 'threefry2x32',
  'JAX_DISABLE_JIT': 'false',
  'JAX_DISABLE_MOST_OPTIMIZATIONS': 'false',
  'JAX_ENABLE_CUSTOM_PRNG': 'false',
  'JAX_ENABLE_X64': 'false',
  'JAX_ERROR_CHECKING_BEHAVIOR_DIVIDE': 'ignore',
  'JAX_ERROR_CHECKING_BEHAVIOR_NAN': 'ignore',
  'JAX_ERROR_CHECKING_BEHAVIOR_OOB': 'ignore',
  'JAX_EXEC_TIME_OPTIMIZATION_EFFORT': '0',
  'JAX_EXPLICIT_X64_DTYPES': 'warn',
  'JAX_HIGH_DYNAMIC_RANGE_GUMBEL': 'false',
  'JAX_LEGACY_PRNG_KEY': 'allow',
  'JAX_NO_EXECUTION': 'false',
  'JAX_NO_TRACING': 'false',
  'JAX_NUMPY_DTYPE_PROMOTION': 'standard',
  'JAX_NUMPY_RANK_PROMOTION': 'allow',
  'JAX_OPTIMIZATION_LEVEL': 'UNKNOWN',
  'JAX_RANDOM_SEED_OFFSET': '0',
  'JAX_SOFTMAX_CUSTOM_JVP': 'false',
  'JAX_THREEFRY_PARTITIONABLE': 'true',
  'JAX_TRANSFER_GUARD': 'allow',
  'JAX_TRANSFER_GUARD_DEVICE_TO_DEVICE': 'allow',
  'JAX_TRANSFER_GUARD_DEVICE_TO_HOST': 'allow',
  'JAX_TRANSFER_GUARD_HOST_TO_DEVICE': 'allow',
  'JAX_USE_DIRECT_LINEARIZE': 'true',
  'JAX_USE_SHARDY_PARTITIONER': 'true',
}


def check_settings(environment: Mapping[str, str]) -> None:
  """Refuses settings of JAX that change what a run computes, or break it.

  Args:
    environment: the variables of the process.

  Raises:
    ValueError: one has another value than it must have; names both.
  """
  for name, required in _REQUIRED.items():
    value = environment.get(name)
    allowed = _SPELLINGS.get(required, (required.lower(),))
    if value is not None and value.lower() not in allowed:
      raise ValueError(
        f'{name}={value} in the environment must be {required} or unset: it '
        'would change or break what is computed'
      )


def begin() -> None:
  """Handles Ctrl-C and errors of JAX's settings while a launcher starts."""
  if not _is_launcher():
    return
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupted)
  sys.excepthook = _excepthook
  try:
    check_settings(os.environ)
  except ValueError as error:
    _end(2, str(error))


def end() -> None:
  """Undoes `begin`."""
  if signal.getsignal(signal.SIGINT) is _interrupted:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  if sys.excepthook is _excepthook:
    sys.excepthook = sys.__excepthook__


def _is_launcher() -> bool:
  """Whether Python is looking for the module of `python -m experiments.NAME`.

  Only then is the first argument '-m', not when tests or other programs import
  a part of this package.
  """
  given = ' '.join(sys.orig_argv)
  return sys.argv[:1] == ['-m'] and '-m experiments.' in given


def _interrupted(number: int, frame: types.FrameType | None) -> NoReturn:
  """Ends the process: there is nothing to save yet.

  Imports under way may take an exception for a failed import.
  """
  del number, frame
  _end(130, 'interrupted')


def _excepthook(
  kind: type[BaseException],
  error: BaseException,
  trace: types.TracebackType | None,
) -> None:
  """Shows an error of imports; if it is about JAX's settings, in one line."""
  if issubclass(kind, ValueError) and 'JAX' in str(error):
    _end(2, ' '.join(str(error).split()))
  sys.__excepthook__(kind, error, trace)


def _end(code: int, message: str) -> NoReturn:
  with contextlib.suppress(OSError):
    os.write(2, f'error: {message}\n'.encode(errors='backslashreplace'))
  os._exit(code)
