"""The commit of the checkout that a process runs from.

Git is asked in a process of its own, so that a start does not wait for it.
"""

import atexit
import contextlib
import functools
import pathlib
import subprocess

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# Git needs milliseconds, but on a slow file system it may need minutes.
_MOST_S = 1.0
_DIGITS = 10
_COMMAND = (
  *('git', '--no-optional-locks', 'status'),
  *('--porcelain=v2', '--branch', '--untracked-files=no'),
)


@functools.cache
def ask(root: pathlib.Path = _ROOT) -> subprocess.Popen[str] | None:
  """Asks Git, once, without waiting for the answer.

  Args:
    root: the root of the checkout.

  Returns:
    The process of Git; None if this is no checkout, or there is no Git.
  """
  if not (root / '.git').exists():
    return None
  try:
    process = subprocess.Popen(
      _COMMAND,
      cwd=root,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
      errors='replace',
    )
  except OSError:
    return None
  atexit.register(commit, root)  # even if nobody wants the answer
  return process


@functools.cache
def commit(root: pathlib.Path = _ROOT) -> str | None:
  """Returns the commit, such as '1a2b3c4d5e' or '1a2b3c4d5e, changed'.

  It is changed if a file that Git knows differs from the commit.

  Args:
    root: the root of the checkout.

  Returns:
    None if it is unknown, or Git takes longer than a second.
  """
  process = ask(root)
  if process is None:
    return None
  try:
    text, _ = process.communicate(timeout=_MOST_S)
  except (subprocess.TimeoutExpired, OSError, ValueError):
    with contextlib.suppress(OSError):
      process.kill()
    return None
  lines = text.splitlines()
  found = [
    line.split()[-1] for line in lines if line.startswith('# branch.oid')
  ]
  if process.returncode or not found or found[0] == '(initial)':
    return None
  changed = any(not line.startswith('#') for line in lines)
  return found[0][:_DIGITS] + (', changed' if changed else '')
