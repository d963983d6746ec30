"""A launcher, which signals itself at a chosen moment.

  python -m tests.experiments.sabotage LAUNCHER MODULE:NAME COUNT SIGNAL FLAG...

LAUNCHER is the name of a module: experiments.atari.

The signal comes when the function is called for the COUNT-th time, just before
it does its work: tests need no luck with the clock.
"""

from collections.abc import Callable
import functools
import importlib
import os
import signal
import sys
from typing import Any

from tests.experiments.launching import execute_sweep


def _arm(target: str, count: int, number: int) -> None:
  module, _, path = target.partition(':')
  holder: Any = importlib.import_module(module)
  *parents, name = path.split('.')
  for parent in parents:
    holder = getattr(holder, parent)
  original: Callable[..., Any] = getattr(holder, name)
  calls = 0

  @functools.wraps(original)
  def armed(*args: Any, **kwargs: Any) -> Any:
    nonlocal calls
    calls += 1
    if calls == count:
      os.kill(os.getpid(), number)
    return original(*args, **kwargs)

  setattr(holder, name, armed)


if __name__ == '__main__':
  launcher, target, count, name, *arguments = sys.argv[1:]
  _arm(target, int(count), signal.Signals[name])
  # As its module does; that would not know what is armed.
  sys.exit(execute_sweep(importlib.import_module(launcher), arguments))
