"""Command lines drawn at random, and what becomes of them.

  python -m tests.experiments.fuzzing --sets=12000 --seed=0

Each set has one or two flags that are odd: numbers that C, int32 or float32
cannot hold, numbers in unusual spellings, no text, long text, lists. A launcher
must accept a set or refuse it in one line that names a flag, at once, and what
it has accepted must be what was asked for. There are three depths: most sets
stop when all options are checked; some when everything is built and measured,
before anything is computed; and some run for real, with flags of small runs.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import io
import math
import pathlib
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from experiments import (
  atari,
  benchmark,
  classic,
  control,
  gym,
  lab,
  minatar,
  offline,
  plot,
  reproduce,
  siamese,
)
from experiments.config import declaring, executing, reading
from experiments.engines import (
  compiled as compiled_engine,
  devices,
  host as host_engine,
  offline as offline_engine,
  processes,
)
from experiments.figures import kinds, runs, sweeps
from tests import conftest
from tests.experiments import launching

# How far a set is taken.
CHECKED, BUILT, RUN = 'checked', 'built', 'run'

# Seconds after which a set counts as one that hangs: of the processor, as the
# machine may be busy, and by the clock.
LIMIT_S, CLOCK_LIMIT_S = 60, 600

INTEGERS = (
  *('-1', '0', '1', '2', '3', '7', '8', '50', '64', '100', '1000', '123457'),
  *('2147483647', '2147483648', '-2147483648', '-2147483649'),
  *('4294967295', '4294967296', '1073741824', '1000000000'),
  *('9223372036854775807', '9223372036854775808', '18446744073709551616'),
  *('-9223372036854775809', '9' * 50, '9' * 5000),
  *('1e3', '1.0', '0x10', '1_0', '\uff11\uff12', '', ' ', '+5', ' 5', '-0'),
  *('nan', 'inf', 'true', 'None', '0b1', '1,2', '2,2', ','),
)
FLOATS = (
  *('0', '-0.0', '1', '0.5', '-1', '2', '1e-3', '1e-7', '6e-8', '5e-8'),
  *('1e-12', '1e-37', '1e-38', '1e-39', '1e-45', '1e-50', '1e-320', '1e-400'),
  *('1e38', '3.4e38', '3.5e38', '1e39', '-1e39', '1e300', '1e400', '-1e400'),
  *('nan', '-nan', 'inf', '-inf', 'infinity', '0.99999999999', '0.9999999'),
  *('1.0000001', '0x1p3', '1_0.5', '\u0661.\u0665', '', ' ', '1e', '.', '5.'),
  *('true', 'None', '0.1,0.2', '0.1,0.1', '0.1,0.10000000001', ',', '1e-50,1'),
)
TEXTS = (
  *('', ' ', 'a/b', '../../x', '/', '.', '..', '~', 'a' * 300, 'a' * 5000),
  *('\0', 'a\0b', '\udcff', '\n', 'a\nb', '\t', '\u00fc', '\U0001f600'),
  *('a,b', 'a,,b', ',', '$HOME', '%s', '{x}', "'", '"', '\\', '=', '--x', '#'),
  *(
    'none',
    'None',
    'true',
    '0',
    '1',
    '8',
    '8-8',
    '8-8-',
    '-8',
    '0-8',
    '\uff18',
  ),
  *('-'.join(['8'] * 150), '99999999999', '2147483647', '8-2147483647'),
  *('soft', 'hard,soft', 'torso:soft+head:hard', '(:soft', 'x:y:z', ':hard'),
  *('localhost:1', 'localhost:99999', 'pong', 'catch,cartpole', '*', '[', '(?'),
)
BOOLEANS = ('true', 'false', '1', '0', 'yes', '', 'maybe', 'true,false', 'TRUE')


class Launcher(NamedTuple):
  """A launcher, and flags of a small run of it.

  Attributes:
    cls: its options.
    small: flags of a run of seconds.
    execute: arguments -> exit code.
    lists: whether options take lists.
  """

  cls: type
  small: tuple[str, ...]
  execute: Callable[[Sequence[str]], int]
  lists: bool


def _single(module: Any, cls: type, small: Sequence[str], **more: Any):
  def execute(arguments: Sequence[str]) -> int:
    return executing.execute(cls, '', module.main, arguments, **more)

  return Launcher(cls, tuple(small), execute, lists=False)


def _sweep(module: Any, small: Sequence[str]) -> Launcher:
  def execute(arguments: Sequence[str]) -> int:
    return launching.execute_sweep(module, arguments)

  cls = launching.config_of(module)
  return Launcher(cls, tuple(small), execute, lists=True)


_MINATAR = (
  *('--platform=cpu', '--env_steps=300', '--iteration_env_steps=100'),
  *('--min_replay=50', '--replay_capacity=200', '--batch_size=8'),
  *('--target_period=2', '--hidden_units=8', '--epsilon_decay=100'),
)
_CONTROL = (
  *('--platform=cpu', '--env_steps=300', '--iteration_env_steps=100'),
  *('--min_replay=50', '--random_env_steps=50', '--replay_capacity=200'),
  *('--batch_size=8', '--actor_sizes=8', '--critic_sizes=8'),
  *('--eval_episodes=1', '--target_update=soft', '--tau=0.1'),
)
_HOST = (
  *(x for x in _CONTROL if 'eval_episodes' not in x),
  *('--environment=gymnasium:Pendulum-v1', '--eval_episodes=0'),
)
_GYM = (
  *('--platform=cpu', '--environment=CartPole-v1', '--env_steps=200'),
  *('--iteration_env_steps=100', '--min_replay=50', '--batch_size=8'),
  *('--replay_capacity=200', '--hidden_sizes=8', '--eval_episodes=0'),
)
_SIAMESE = (
  *('--platform=cpu', '--images=digits', '--epochs=1', '--iteration_epochs=1'),
  *('--projector_units=8', '--projections=8', '--predictor_units=4'),
)
_OFFLINE = (
  *('--platform=cpu', '--environment=catch', '--collect_env_steps=100'),
  *('--iterations=2', '--target_period=10', '--batch_size=8'),
  *('--hidden_sizes=8', '--eval_episodes=1', '--eval_episode_env_steps=20'),
)


def launchers(folder: pathlib.Path) -> dict[str, Launcher]:
  """All launchers by name.

  Args:
    folder: for a run to plot, and for pictures.
  """
  run = folder / 'finished'
  run.mkdir(parents=True, exist_ok=True)
  (run / 'flags.txt').write_text('--environment=cartpole\n--agent=dqn\n')
  columns = 'iteration,env_steps,gradient_steps,train_episodes,train_return'
  rows = '\n'.join(f'{i},{100 * i},{10 * i},1,{i}.5' for i in range(1, 6))
  (run / 'metrics.csv').write_text(f'{columns}\n{rows}\n')

  def lab_execute(arguments: Sequence[str]) -> int:
    return executing.execute(lab.LabConfig, '', lab.main, arguments, lists=True)

  return {
    'atari': _sweep(atari, launching.SMALL),
    'classic': _sweep(classic, launching.SMALL_SWEEP),
    'minatar': _sweep(minatar, _MINATAR),
    'control': _sweep(control, _CONTROL),
    'control on the host': _sweep(control, _HOST),
    'gym': _sweep(gym, _GYM),
    'siamese': _sweep(siamese, _SIAMESE),
    'lab': Launcher(
      lab.LabConfig, ('--gradient_steps=100',), lab_execute, lists=True
    ),
    'offline': _single(offline, offline.OfflineConfig, _OFFLINE),
    'plot': _single(
      plot,
      plot.PlotConfig,
      (f'--runs={run}', f'--output={folder / "picture"}'),
      listed='runs',
    ),
    'reproduce': _single(
      reproduce,
      reproduce.ReproduceConfig,
      (f'--runs={run}', '--study=twin_age_catch'),
    ),
    'benchmark': _single(benchmark, benchmark.BenchmarkConfig, ()),
  }


class Outcome(NamedTuple):
  """What became of a set.

  Attributes:
    launcher: its name.
    arguments: the odd flags.
    depth: how far it was taken.
    kind: accepted, refused, traceback, hang, changed (a value is not what was
      asked for) or unexplained (refused without the name of a flag).
    text: what there is to say of it.
  """

  launcher: str
  arguments: tuple[str, ...]
  depth: str
  kind: str
  text: str = ''


FAULTS = ('traceback', 'hang', 'changed', 'unexplained')


class _Stop(BaseException):
  """The launcher got as far as it was to get."""


class _Hang(BaseException):
  """It took too long."""


def draw(rng: random.Random, launcher: Launcher) -> tuple[str, ...]:
  """One or two odd flags."""
  count = rng.choice((1, 1, 2))
  fields = rng.sample(declaring.options_of(launcher.cls), count)
  return tuple(_draw_flag(rng, *field, launcher.lists) for field in fields)


def _draw_flag(
  rng: random.Random, field: dataclasses.Field, kind: type, lists: bool
) -> str:
  """One flag with a value."""
  pool: Sequence[str] = {
    int: INTEGERS,
    float: FLOATS,
    str: TEXTS,
    bool: BOOLEANS,
  }[kind]
  if kind is str:
    bound = field.metadata['bound'].text
    if bound.startswith('one of '):
      pool = (*TEXTS[:12], *bound.removeprefix('one of ').split(', ') * 3)
  value = rng.choice(pool)
  if lists and rng.random() < 0.1:
    value = ','.join(rng.choices(pool, k=rng.choice((2, 3, 3, 500))))
  elif lists and rng.random() < 0.02:
    value = ','.join(map(str, range(1, 20_001)))
  form = rng.random()
  if form < 0.02:
    return f'--{field.name}'
  if form < 0.03:
    return f'--no{field.name}={value}'
  return f'--{field.name}={value}'


def _number(text: str, kind: type) -> float | int:
  """A number as it is written, without the launcher's reader."""
  if kind is int:
    try:
      return int(text)
    except ValueError:
      return int(text, 0)
  return float(text)


def changes(
  cls: type, arguments: Sequence[str], configs: Sequence[Any]
) -> Iterator[str]:
  """Values that are not those asked for.

  Args:
    cls: the options.
    arguments: the odd flags.
    configs: the records that a launcher got.
  """
  if not all('=' in argument for argument in arguments):
    return  # the next argument is the value of such a flag
  fields = {field.name: kind for field, kind in declaring.options_of(cls)}
  floats = np.finfo(getattr(cls, 'FLOATS', np.float32))
  for argument in arguments:
    name, _, text = argument.removeprefix('--').partition('=')
    kind = fields.get(name)
    if kind not in (int, float) or f'--{name}=' in ' '.join(
      other for other in arguments if other is not argument
    ):
      continue
    asked = {_number(part, kind) for part in text.split(',')}
    got = {getattr(config, name) for config in configs}
    default = cls.__dataclass_fields__[name].default
    if not got <= {*asked, default} or (len(got) > 1 and not asked <= got):
      yield f'{argument} became {got}'
    for value in asked:
      if kind is float:
        held = float(floats.dtype.type(value))
        near = math.isclose(held, value, rel_tol=1e-6) or held == value
        if not near or (held in (0, 1) and value != held and 0 < value < 1):
          yield f'{argument} is {held} in {floats.bits} bits'


def _records(value: Any) -> list[Any]:
  return list(value.configs) if isinstance(value, reading.Sweep) else [value]


@contextlib.contextmanager
def _limited() -> Iterator[None]:
  """Interrupts what takes too long."""

  def hang(number: int, frame: object) -> None:
    raise _Hang

  timers = {
    signal.SIGPROF: (signal.ITIMER_PROF, LIMIT_S),
    signal.SIGALRM: (signal.ITIMER_REAL, CLOCK_LIMIT_S),
  }
  before = {number: signal.signal(number, hang) for number in timers}
  for timer, seconds in timers.values():
    signal.setitimer(timer, seconds)
  try:
    yield
  finally:
    for number, (timer, _) in timers.items():
      signal.setitimer(timer, 0)
      signal.signal(number, before[number])


def _stops(depth: str) -> list[Any]:
  """What ends a launcher at a depth."""

  def stop(*arguments: Any, **keywords: Any) -> Any:
    raise _Stop

  places: list[tuple[Any, str]] = [(processes, 'connect')]
  if depth == CHECKED:
    places += [(devices, 'configure')]
  if depth in (CHECKED, BUILT):
    places += [
      (compiled_engine, 'run'),
      (host_engine, 'run'),
      (offline_engine, 'run'),
      (sweeps, 'draw_panel'),
      (kinds, 'draw'),
      (benchmark, 'startup'),
      (devices, 'configure') if depth == CHECKED else (runs, 'plot_curve'),
    ]
  return [mock.patch.object(*place, stop) for place in places]


def try_set(
  name: str, launcher: Launcher, arguments: Sequence[str], depth: str
) -> Outcome:
  """Launches a set, in a folder of its own.

  Args:
    name: of the launcher.
    launcher: it.
    arguments: the odd flags.
    depth: `CHECKED`, `BUILT` or `RUN`.
  """
  seen: list[Any] = []

  def outcome(kind: str, text: str = '') -> Outcome:
    return Outcome(name, tuple(arguments), depth, kind, text)

  def record(function: Callable[..., Any]) -> Callable[..., Any]:
    def recorded(*given: Any, **keywords: Any) -> Any:
      found = function(*given, **keywords)
      seen.append(found)
      return found

    return recorded

  out, err = io.StringIO(), io.StringIO()
  with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
    for patch in _stops(depth):
      stack.enter_context(patch)
    for reader in ('from_arguments', 'sweep_from_arguments'):
      stack.enter_context(
        mock.patch.object(reading, reader, record(getattr(reading, reader)))
      )
    stack.enter_context(contextlib.redirect_stdout(out))
    stack.enter_context(contextlib.redirect_stderr(err))
    stack.enter_context(contextlib.chdir(folder))
    try:
      with _limited():
        code = launcher.execute([*launcher.small, *arguments])
    except _Stop:
      code = 0
    except _Hang:
      return outcome('hang')
    except Exception:
      return outcome('traceback', traceback.format_exc())
  if code:
    lines = err.getvalue().splitlines()
    last = lines[-1] if lines else ''
    diverged = depth == RUN and last.startswith('error: the learner diverged')
    if not diverged and not re.match(r'error: .*(--\w+|is no flag)', last):
      return outcome('unexplained', err.getvalue()[-500:])
    return outcome('refused', last)
  changed = [
    text
    for value in seen[:1]
    for text in changes(launcher.cls, arguments, _records(value))
  ]
  if changed:
    return outcome('changed', '; '.join(changed))
  return outcome('accepted')


def fuzz(
  sets: int,
  seed: int,
  *,
  built_of: int = 40,
  run_of: int = 400,
  budget_s: float = math.inf,
  only: Sequence[str] = (),
  told: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
  """Tries sets of all launchers in turn.

  Args:
    sets: how many.
    seed: of the drawing.
    built_of: of so many sets that pass the checks one is taken further.
    run_of: of so many sets that pass the checks one is run.
    budget_s: seconds after which no set is taken further.
    only: names of launchers; all if empty.
    told: called with each outcome.
  """
  rng, begun = random.Random(seed), time.monotonic()
  outcomes: list[Outcome] = []
  passed: Counter[str] = Counter()

  def add(outcome: Outcome) -> Outcome:
    outcomes.append(outcome)
    told(outcome)
    return outcome

  with tempfile.TemporaryDirectory() as folder:
    known = launchers(pathlib.Path(folder))
    names = [name for name in known if not only or name in only]
    for number in range(sets):
      name = names[number % len(names)]
      arguments = draw(rng, known[name])
      found = add(try_set(name, known[name], arguments, CHECKED))
      if found.kind != 'accepted' or time.monotonic() - begun > budget_s:
        continue
      if name == 'benchmark':
        continue  # it builds nothing before it times
      passed[name] += 1
      if run_of and passed[name] % run_of == 1 % run_of:
        add(try_set(name, known[name], arguments, RUN))
      elif built_of and passed[name] % built_of == 0:
        add(try_set(name, known[name], arguments, BUILT))
  return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
  """Counts by launcher, depth and kind."""
  counts = Counter((o.launcher, o.depth, o.kind) for o in outcomes)
  return '\n'.join(
    f'{number:7,}  {", ".join(key)}' for key, number in sorted(counts.items())
  )


def main() -> None:
  """Fuzzes, and prints what was found."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--sets', type=int, default=10_000)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--built_of', type=int, default=40)
  parser.add_argument('--run_of', type=int, default=400)
  parser.add_argument('--budget_s', type=float, default=math.inf)
  parser.add_argument('--only', nargs='*', default=())
  options = parser.parse_args()
  devices.add_xla_flags(conftest.COMPILE_FAST)

  def tell(outcome: Outcome) -> None:
    if outcome.kind in FAULTS:
      shown = [argument[:100] for argument in outcome.arguments]
      print(outcome.kind, outcome.launcher, outcome.depth, ascii(shown))
      print(ascii(outcome.text[-700:]), flush=True)

  outcomes = fuzz(**vars(options), told=tell)
  print(table(outcomes))
  sys.exit(any(outcome.kind in FAULTS for outcome in outcomes))


if __name__ == '__main__':
  main()
