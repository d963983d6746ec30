"""Damages files of run folders, resumes the runs, and counts what comes of it.

  python -m tests.experiments.damage --cases=2000 --seed=0

Runs of each kind of launcher are stopped near their end. Each case copies one
of them, damages one of its files, and resumes it in this process. Right answers
are a line that names what is wrong, or the end of an undisturbed run: the same
metrics, and the same parameters to the last bit.

A run follows from what it goes on from: parameters, facts, rows, replay or
data. So where a case goes on from exactly what an earlier one went on from, and
the same was done to a file of the same directory, what came of that one is its
outcome, and is not computed again.
"""

import argparse
import collections
from collections.abc import Callable, Iterator
import contextlib
import copy
import dataclasses
import functools
import hashlib
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from typing import Any

import jax
import numpy as np

from experiments import classic, control, lab, offline, siamese
from experiments.config import executing, reading
from experiments.engines import (
  compiled as compiled_engine,
  devices,
  folders,
  host as host_engine,
  host_runs,
  offline as offline_engine,
  offline_runs,
  running,
)
from experiments.families import actor_critic, q
from experiments.suites import gym
from experiments.suites.jax_native import make_task
from siamrl.report.checkpoint import Checkpoints
from siamrl.report.metrics import is_wall_clock, read_metrics
from siamrl.report.run_folder import RunFolder
from siamrl.runners import host
from siamrl.runners.host import loop as host_loop
from tests.experiments.launching import SMALL_SWEEP, groups_of, read_sweep

_LIMIT_S = 60

SWEEP = (*SMALL_SWEEP, '--agent=dqn,double_dqn', '--seeds=2')
SIAMESE = (
  '--platform=cpu',
  '--images=digits',
  '--held_out_fraction=0.9',
  '--epochs=3',
  '--iteration_epochs=1',
  '--batch_size=64',
  '--projections=8',
  '--projector_units=8',
  '--predictor_units=4',
)
OFFLINE = (
  '--platform=cpu',
  '--environment=chain',
  '--collect_env_steps=200',
  '--iterations=4',
  '--target_period=20',
  '--batch_size=8',
  '--hidden_sizes=8',
  '--eval_episodes=0',
)
HOST = (
  '--platform=cpu',
  '--environment=gymnasium:Pendulum-v1',
  '--agent=td3',
  '--env_steps=800',
  '--iteration_env_steps=200',
  '--min_replay=64',
  '--random_env_steps=64',
  '--replay_capacity=300',
  '--batch_size=8',
  '--actor_sizes=8',
  '--critic_sizes=8',
  '--eval_episodes=0',
)
LAB = ('--problem=baird', '--gradient_steps=40', '--target_period=4')


class _Hang(BaseException):
  """A case has taken longer than it may; no handler of errors is to stop it."""


class _Known(BaseException):
  """A case goes on from what an earlier one went on from, and ended well."""


class _Beginnings:
  """What runs go on from.

  Attributes:
    damage: what was done, and where.
    last: a digest of what the last run went on from.
    good: digests of those that ended as an undisturbed run.
  """

  def __init__(self) -> None:
    self.damage, self.last = '', ''
    self.good: set[str] = set()

  def see(self, folder: pathlib.Path, *parts: Any) -> None:
    """Notes what a run goes on from; raises `_Known` if its end is known."""
    digest = hashlib.sha256(f'{self.damage} {_columns(folder)}'.encode())
    for part in parts:
      text = part if isinstance(part, str) else repr(_bytes(part))
      digest.update(text.encode())
    self.last = digest.hexdigest()
    if self.last in self.good:
      raise _Known


BEGINNINGS = _Beginnings()


class _AfterRows:
  """A request to stop that comes once there are so many rows of metrics."""

  def __init__(self, folder: pathlib.Path, rows: float):
    self._path, self._rows = RunFolder(folder).metrics, rows

  def __bool__(self) -> bool:
    with contextlib.suppress(OSError):
      return len(self._path.read_bytes().splitlines()) > self._rows
    return False


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of run.

  Attributes:
    go_on: (folder, rows) -> None; begins or resumes the run, and stops it once
      it has so many rows.
    state: (folder) -> what the newest checkpoint holds, comparable.
    rows: at which the run is stopped, to be damaged.
  """

  go_on: Callable[[pathlib.Path, float], None]
  state: Callable[[pathlib.Path], Any]
  rows: float


def _bytes(tree: Any) -> list[bytes]:
  leaves = [
    jax.random.key_data(leaf)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    else leaf
    for leaf in jax.tree.leaves(tree)
  ]
  return [np.asarray(leaf).tobytes() for leaf in leaves]


def _stored(directory: pathlib.Path, template: Any) -> list[bytes]:
  found = Checkpoints(directory).restore(template)
  return [] if found is None else _bytes(found[0])


def _make_sweep(launcher: Any, arguments: tuple[str, ...], rows: int) -> Kind:
  sweep = read_sweep(launcher, *arguments)
  # Nothing is traced or compiled again.
  groups = groups_of(launcher, sweep)
  for group in groups:
    for name in ('columns', 'run_bytes'):
      known = functools.cache(getattr(group, name))
      object.__setattr__(group, name, known)
  original = compiled_engine.compile_group
  compile_group = functools.cache(
    lambda index: original(groups[index], share='runs', vectorized=False)
  )

  def again(group: compiled_engine.Group, **unused: Any) -> Any:
    return compile_group([each is group for each in groups].index(True))

  def go_on(folder: pathlib.Path, most: float) -> None:
    options = compiled_engine.Options(
      run_dir=str(folder),
      open=functools.partial(
        folders.open_folder,
        recorded=sweep,
        derived={'rows': 12},
        overwrite=False,
        ignore=folders.WHERE,
      ),
      share='runs',
      vectorized=False,
      checkpoint_period_s=600,
      num_processes=1,
      process_id=0,
      draw=lambda folder: None,
    )
    original_train = compiled_engine.scan.train

    def train(program: Any, settings: Any, state: Any, **steps: Any) -> Any:
      BEGINNINGS.see(folder, state, repr((program, steps)))
      return original_train(program, settings, state, **steps)

    with (
      _replaced(compiled_engine, 'compile_group', again),
      _replaced(compiled_engine.scan, 'train', train),
    ):
      compiled_engine.run(groups, options, _AfterRows(folder, most))  # type: ignore

  @functools.cache
  def template() -> Any:
    program, place, _ = compile_group(len(groups) - 1)
    group = groups[-1]
    start = program.start(place(group.settings()), place(group.keys()))
    return compiled_engine._unpad(start, len(group.runs))

  def state(folder: pathlib.Path) -> Any:
    # Nobody reads again what programs before the last one came to.
    last = f'{len(groups) - 1:03}'
    return _stored(RunFolder(folder).checkpoints / last, template())

  return Kind(go_on, state, rows)


def _make_offline() -> Kind:
  config = reading.from_arguments(offline.OfflineConfig, *OFFLINE)
  task = make_task(config.environment)
  options = offline_runs.make_run(config, q, task, None)
  made: dict[Any, offline_engine.Parts] = {}
  at: list[pathlib.Path] = []

  def make_parts(data: Any) -> offline_engine.Parts:
    key = tuple(np.asarray(array).tobytes() for array in data)
    if key not in made:
      made[key] = options.make_parts(data)
    parts = made[key]

    def train(state: Any, iteration: int) -> Any:
      BEGINNINGS.see(at[-1], state, data, repr(iteration))
      return parts.train(state, iteration)

    fresh = jax.tree.map(jax.numpy.copy, parts.state)
    return parts._replace(state=fresh, train=train)

  again = dataclasses.replace(
    options, make_parts=make_parts, draw=lambda folder: None
  )

  def go_on(folder: pathlib.Path, most: float) -> None:
    derived = {'rows': config.rows}
    at.append(folder)
    with folders.open_run(
      dataclasses.replace(config, run_dir=str(folder)), derived
    ) as run:
      offline_engine.run(run, again, _AfterRows(folder, most))  # type: ignore

  def state(folder: pathlib.Path) -> Any:
    (parts, *_) = made.values()
    return _stored(RunFolder(folder).checkpoints, parts.state)

  return Kind(go_on, state, 3)


def _make_host() -> Kind:
  (config,) = read_sweep(control, *HOST).configs
  parts, derived = host_runs.build(
    config, actor_critic, gym.Suite(config), RunFolder('run')
  )
  # Nothing is compiled again.
  host_loop._make_explore = functools.cache(host_loop._make_explore)
  host_loop.jit_regress = functools.cache(host_loop.jit_regress)

  def go_on(folder: pathlib.Path, most: float) -> None:
    replay = copy.deepcopy(parts.replay)

    def loop(state: host.LoopState, **options: Any) -> Any:
      facts = state.to_json()
      facts['statistics'].pop('seconds')
      BEGINNINGS.see(folder, state.train, replay._arrays(), repr(facts))
      return parts.loop(state, replay=replay, **options)

    fresh = dataclasses.replace(
      parts,
      state=jax.tree.map(jax.numpy.copy, parts.state),
      replay=replay,
      loop=loop,
      draw=lambda: None,
    )
    with folders.open_run(
      dataclasses.replace(config, run_dir=str(folder)), derived
    ) as run:
      host_engine.run(run, fresh, _AfterRows(folder, most))  # type: ignore

  def state(folder: pathlib.Path) -> Any:
    run = RunFolder(folder)
    found = Checkpoints(run.checkpoints).restore(parts.state)
    if found is None:
      return None
    replay = copy.deepcopy(parts.replay)
    replay.load(run.replay, found[1]['replay'])
    arrays = [array.tobytes() for array in replay._arrays()]
    return _bytes(found[0]), arrays

  return Kind(go_on, state, 3)


def _make_lab() -> Kind:
  def go_on(folder: pathlib.Path, most: float) -> None:
    del most  # it is over at once
    sweep = reading.sweep_from_arguments(
      lab.LabConfig, *LAB, f'--run_dir={folder}'
    )
    with contextlib.redirect_stdout(sys.stderr):
      lab.main(sweep)

  return Kind(go_on, lambda folder: None, np.inf)


def make_kinds(names: list[str]) -> dict[str, Kind]:
  devices.configure('cpu')  # or runs go on under other conditions
  makers: dict[str, Callable[[], Kind]] = {
    # Two programs of two runs each: in the second of them.
    'sweep': lambda: _make_sweep(classic, SWEEP, 10),
    'siamese': lambda: _make_sweep(siamese, SIAMESE, 2),
    'offline': _make_offline,
    'host': _make_host,
    'lab': _make_lab,
  }
  return {name: makers[name]() for name in names}


# Damage.


def _flip(path: pathlib.Path, rng: random.Random, others: Any) -> None:
  content = bytearray(path.read_bytes() or b'\0')
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  path.write_bytes(content)


def _truncate(path: pathlib.Path, rng: random.Random, others: Any) -> None:
  os.truncate(path, rng.randrange(path.stat().st_size or 1))


def _extend(path: pathlib.Path, rng: random.Random, others: Any) -> None:
  with path.open('ab') as file:
    file.write(rng.randbytes(rng.choice([1, 8, 4096])))


def _zero(path: pathlib.Path, rng: random.Random, others: Any) -> None:
  content = bytearray(path.read_bytes() or b'1')
  begin = rng.randrange(len(content))
  end = min(len(content), begin + rng.choice([1, 16, 4096]))
  content[begin:end] = bytes(end - begin)
  path.write_bytes(content)


def _delete(path: pathlib.Path, rng: random.Random, others: Any) -> None:
  path.unlink()


def _swap_in(path: pathlib.Path, rng: random.Random, others: Any) -> None:
  path.write_bytes(rng.choice(others).read_bytes())


def _as_directory(path: pathlib.Path, rng: random.Random, others: Any) -> None:
  path.unlink()
  path.mkdir()


def _as_pipe(path: pathlib.Path, rng: random.Random, others: Any) -> None:
  path.unlink()
  os.mkfifo(path)


def _as_loop(path: pathlib.Path, rng: random.Random, others: Any) -> None:
  path.unlink()
  path.symlink_to(path.name)


def _close(path: pathlib.Path, rng: random.Random, others: Any) -> None:
  path.chmod(0)  # root reads it all the same


# With how often each is chosen.
MUTATIONS: dict[Callable[..., None], int] = {
  _flip: 12,
  _truncate: 3,
  _extend: 2,
  _zero: 3,
  _delete: 2,
  _swap_in: 2,
  _as_directory: 1,
  _as_pipe: 1,
  _as_loop: 1,
  _close: 1,
}


def damage(folder: pathlib.Path, rng: random.Random) -> str:
  """Damages one file of a folder; returns what was done to it."""
  files = sorted(path for path in folder.rglob('*') if path.is_file())
  places: dict[str, list[pathlib.Path]] = {}
  for path in files:
    places.setdefault(path.relative_to(folder).parts[0], []).append(path)
  # Checkpoints have most files; the others are of interest too.
  names = sorted(places)
  weights = [8 if name == 'checkpoints' else 1 for name in names]
  (place,) = rng.choices(names, weights)
  path = rng.choice(places[place])
  (mutation,) = rng.choices(list(MUTATIONS), list(MUTATIONS.values()))
  mutation(path, rng, files)
  return f'{mutation.__name__[1:]} {path.relative_to(folder)}'


# What comes of it.


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
  before = getattr(module, name)
  setattr(module, name, value)
  try:
    yield
  finally:
    setattr(module, name, before)


@contextlib.contextmanager
def _captured(path: pathlib.Path) -> Iterator[None]:
  """Sends all that is written to standard error to a file, C++'s too."""
  sys.stderr.flush()
  before = os.dup(2)
  with path.open('w+') as file:
    os.dup2(file.fileno(), 2)
    stream, sys.stderr = sys.stderr, os.fdopen(os.dup(2), 'w', buffering=1)
    try:
      yield
    finally:
      sys.stderr.close()
      sys.stderr = stream
      os.dup2(before, 2)
      os.close(before)


@contextlib.contextmanager
def _period(seconds: float) -> Iterator[None]:
  """Has runs write a checkpoint about so often, whatever they were told."""
  before = running.Running._overdue

  def overdue(self: running.Running) -> bool:
    return time.monotonic() - self._saved_at >= seconds

  running.Running._overdue = overdue  # type: ignore
  try:
    yield
  finally:
    running.Running._overdue = before  # type: ignore


def _columns(folder: pathlib.Path) -> str:
  table = read_metrics(RunFolder(folder).metrics)
  # NaN equals itself in text.
  return repr({n: v.tolist() for n, v in table.items() if not is_wall_clock(n)})


class _Alarm:
  """Raises `_Hang` where a minute has gone by in which nothing was computed.

  Or ten of them, whatever was: a machine may be busy with other things.
  """

  def __init__(self) -> None:
    self._minutes, self._worked_s = 0, time.process_time()

  def __call__(self, number: int, frame: Any) -> None:
    worked_s, self._minutes = time.process_time(), self._minutes + 1
    if worked_s - self._worked_s < 1 or self._minutes == 10:
      raise _Hang
    self._worked_s = worked_s
    signal.alarm(_LIMIT_S)


def resume(kind: Kind, folder: pathlib.Path, log: pathlib.Path) -> int:
  """Resumes a run.

  Returns:
    Its exit code; -1 after an exception, -2 for a hang, and -3 where its end is
    known from an earlier case.
  """
  code, BEGINNINGS.last = -1, ''
  with _captured(log), _period(1e9):
    before = signal.signal(signal.SIGALRM, _Alarm())
    signal.alarm(_LIMIT_S)
    try:
      code = executing.exit_code(lambda: kind.go_on(folder, np.inf))
    except _Hang:
      code = -2
    except _Known:
      code = -3
    except Exception:
      traceback.print_exc()
    finally:
      signal.alarm(0)
      signal.signal(signal.SIGALRM, before)
  return code


def judge(
  kind: Kind,
  folder: pathlib.Path,
  log: pathlib.Path,
  expected: tuple[str, Any],
) -> str:
  """Resumes a damaged run; one of `OUTCOMES`."""
  code = resume(kind, folder, log)
  text = log.read_text(errors='replace')
  if code == -2:
    return 'HANG'
  if code == -1 or 'Traceback' in text:
    return 'TRACEBACK'
  noted = 'equal, and said' if 'note: ' in text else 'equal'
  if code == -3:
    return noted
  if code:
    errors = [line for line in text.splitlines() if line.startswith('error: ')]
    named = len(errors) == 1 and text.endswith(f'{errors[0]}\n')
    return 'refused' if named else 'UNCLEAR'
  if (_columns(folder), kind.state(folder)) != expected:
    return 'SILENT'
  BEGINNINGS.good.add(BEGINNINGS.last)
  return noted


# Those in capitals are wrong.
OUTCOMES = (
  'refused',
  'equal, and said',
  'equal',
  'SILENT',
  'TRACEBACK',
  'HANG',
  'UNCLEAR',
)


def fuzz(
  names: list[str], cases: int, seed: int, directory: pathlib.Path
) -> tuple[collections.Counter, list[str]]:
  """Damages runs of these kinds in turn.

  Returns:
    How often each outcome was seen, by (kind, outcome), and a text about each
    case that went wrong.
  """
  directory.mkdir(exist_ok=True)
  BEGINNINGS.good.clear()
  kinds = make_kinds(names)
  log = directory / 'log'
  expected = {}
  for name, kind in kinds.items():
    stopped, whole = directory / name, directory / f'{name}-whole'
    with _captured(log):
      with _period(1e-9):
        kind.go_on(stopped, kind.rows)
      shutil.copytree(stopped, whole)
      kind.go_on(whole, np.inf)
    expected[name] = _columns(whole), kind.state(whole)
  BEGINNINGS.good.clear()
  counts: collections.Counter = collections.Counter()
  wrong = []
  for number in range(cases):
    name = names[number % len(names)]
    rng = random.Random(f'{seed} {number}')
    folder = directory / 'case'
    shutil.copytree(directory / name, folder)
    what = damage(folder, rng)
    # A file may be in the way only later, when something else is written there.
    BEGINNINGS.damage = '/'.join(what.split('/')[:2])
    outcome = judge(kinds[name], folder, log, expected[name])
    counts[name, outcome] += 1
    if outcome.isupper():
      wrong.append(
        f'{outcome}: {name}, case {number}: {what}\n'
        + log.read_text(errors='replace')[-2000:]
      )
      print(wrong[-1], file=sys.stderr, flush=True)
    shutil.rmtree(folder)
    if number % 50 == 49:
      _show(names, counts)
  return counts, wrong


def _show(names: list[str], counts: collections.Counter) -> None:
  for name in names:
    found = [f'{counts[name, each]} {each}' for each in OUTCOMES]
    print(f'{name}: {", ".join(found)}', flush=True)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--cases', type=int, default=2_000)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--kinds', default='sweep,siamese,offline,host,lab')
  options = parser.parse_args()
  running.DRAWING_ERRORS = (Exception,)
  names = options.kinds.split(',')
  with tempfile.TemporaryDirectory() as directory:
    counts, wrong = fuzz(
      names, options.cases, options.seed, pathlib.Path(directory)
    )
  _show(names, counts)
  print(f'{options.cases} cases, {len(wrong)} of them wrong')
  return 1 if wrong else 0


if __name__ == '__main__':
  sys.exit(main())
