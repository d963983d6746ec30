"""Compiled runs in their folder: resume, show, save, stop, merge.

All runs of a sweep share one folder. Its programs run one after the other, each
with its own directory of checkpoints. If several processes share the runs, each
has a subfolder, and the first one merges the tables.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import math
import os
import time
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

from experiments.config.declaring import RunError
from experiments.engines import devices, folders, memory, processes, running
from experiments.engines.running import Moment
from siamrl.envs.errors import BrokenEnvironmentError
from siamrl.report.checkpoint import Checkpoints
from siamrl.report.metrics import concatenate
from siamrl.report.progress import COMPILING, MAIN, Progress
from siamrl.report.run_folder import RunFolder
from siamrl.report.tracking import Track
from siamrl.runners import scan
from siamrl.runners.errors import NonFiniteError

# Columns that may count the length of runs.
CLOCKS = ('env_steps', 'gradient_steps')

# Columns of a row that are not metrics of the loss.
_COUNTS = (
  'train_',
  'eval_',
  'epsilon',
  'panel/',
  *CLOCKS,
)


class Loop(Protocol):
  """The loop of each run of a program, such as `scan.Loop`.

  Attributes:
    config: has `batch_size`.
    clock: the column that counts the length of runs, 'env_steps' or
      'gradient_steps'.
    iteration_steps: steps of the clock from one row to the next.
    warmup_steps: steps of the clock before the first gradient step.
    headline: the column that is shown while runs go on.
  """

  @property
  def config(self) -> Any: ...

  @property
  def clock(self) -> str: ...

  @property
  def iteration_steps(self) -> int: ...

  @property
  def warmup_steps(self) -> int: ...

  @property
  def headline(self) -> str: ...

  def start(self, settings: Any, key: jax.Array) -> Any:
    """The initial state of a run; has the learner's state as `train`."""

  def iterate(
    self, settings: Any, state: Any, iteration: Any
  ) -> tuple[Any, Mapping[str, jax.Array]]:
    """Runs one iteration."""

  def fault(
    self,
    row: Mapping[str, float],
    state: Any,
    iteration: int,
    *,
    diverged: bool,
  ) -> str:
    """A fault of an environment, in words; '' for none."""


class Run(NamedTuple):
  """One run of a program.

  Attributes:
    point: its values of the swept options.
    seed: the seed of everything random.
    settings: the numbers that the program takes.
  """

  point: Mapping[str, Any]
  seed: int
  settings: Mapping[str, Any]

  def __str__(self) -> str:
    given = [f'{k}={v}' for k, v in self.point.items() if v is not None]
    return ', '.join([*given, f'seed={self.seed}'])


@dataclasses.dataclass(frozen=True)
class Group:
  """The runs of one compiled program.

  Attributes:
    loop: the loop of each run.
    iterations: the iterations of every run.
    runs: they differ only in their numbers.
    config: the options of one of them, for messages.
    programs: the programs made so far, by how they share the devices.
  """

  loop: Loop
  iterations: int
  runs: Sequence[Run]
  config: Any = None
  programs: dict[Any, scan.Program] = dataclasses.field(
    default_factory=dict, compare=False, repr=False
  )

  @property
  def steps(self) -> int:
    """Steps of the loop's clock in one iteration of all runs."""
    return len(self.runs) * self.loop.iteration_steps

  def learns(self, iteration: int) -> bool:
    """Whether at least 90 % of an iteration takes gradient steps."""
    steps = self.loop.iteration_steps
    return iteration * steps + 0.1 * steps >= self.loop.warmup_steps

  @property
  def rows(self) -> int:
    """The number of rows of metrics of all runs."""
    return self.iterations * len(self.runs)

  def settings(self) -> dict[str, np.ndarray]:
    """[R] arrays by name."""
    return {
      name: np.stack([run.settings[name] for run in self.runs])
      for name in self.runs[0].settings
    }

  def keys(self) -> jax.Array:
    """[R] keys; runs of one seed share theirs, and so their random numbers."""
    seeds = np.array([run.seed for run in self.runs], np.uint32)
    return jax.vmap(jax.random.key)(seeds)

  def _state(self) -> Any:
    """Shapes and types of one run's state."""
    settings = self.runs[0].settings
    return jax.eval_shape(self.loop.start, settings, jax.random.key(0))

  def columns(self) -> list[str]:
    """The columns of the loop's rows; nothing is computed."""
    settings = self.runs[0].settings
    number = jnp.zeros((), jnp.int32)
    _, row = jax.eval_shape(self.loop.iterate, settings, self._state(), number)
    return [name for name in row if name != scan.FAULT]

  def run_bytes(self) -> int:
    """Bytes of one run's state."""
    return sum(
      math.prod(leaf.shape) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(self._state())
      if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


@dataclasses.dataclass(frozen=True)
class Options:
  """How a sweep is run.

  Attributes:
    run_dir: folder of all runs.
    open: (path) -> the folder there, opened and locked.
    share: the work that devices share, 'runs' or 'batch'.
    vectorized: whether a device computes its runs together.
    checkpoint_period_s: seconds between checkpoints, approximately.
    num_processes: processes that share the runs.
    process_id: the number of this process.
    draw: (folder) -> None; draws the metrics.
    track: the way to track the runs.
  """

  run_dir: str
  open: Callable[[str | os.PathLike[str]], RunFolder]
  share: str
  vectorized: bool
  checkpoint_period_s: float
  num_processes: int
  process_id: int
  draw: Callable[[RunFolder], None]
  track: Track = Track()


def run(
  groups: Sequence[Group], options: Options, stop: devices.StopRequest
) -> None:
  """Trains all runs to their end, or until asked to stop.

  Args:
    groups: the programs and their runs.
    options: the way to run them.
    stop: true once the user wants the runs to stop.

  Raises:
    UsageError: the folder is another run's.
    RunError: it cannot be read or written, or the only run diverged.
  """
  if options.num_processes == 1:
    with options.open(options.run_dir) as folder:
      _Runs(folder, groups, groups, options, stop).go()
    return
  mine = [
    dataclasses.replace(
      group, runs=group.runs[options.process_id :: options.num_processes]
    )
    for group in groups
  ]
  mine = [group for group in mine if group.runs]
  with contextlib.ExitStack() as stack:
    with _told('opened') as ends:
      if options.process_id == 0:
        folder = stack.enter_context(options.open(options.run_dir))
      ends.mine = _OPENED
    ends.check(_OPENED)
    with _told('trained') as ends:
      path = RunFolder(options.run_dir).shard(options.process_id).path
      with options.open(path) as shard:
        finished = _Runs(shard, mine, groups, options, stop).go()
        ends.mine = _FINISHED if finished else _STOPPED
    if options.process_id == 0:
      _merge(options, folder)
    ends.check(_FINISHED, _STOPPED)


# Ends of a stage, which processes tell each other.
_OPENED, _FINISHED = 'has opened its folder', 'has finished'
_STOPPED, _FAILED = 'was stopped', 'failed'


class _Ends:
  """The ends of a stage in all processes.

  Attributes:
    mine: the end in this process.
    all: the ends in all processes, once all have told.
  """

  def __init__(self) -> None:
    self.mine = _FAILED
    self.all: list[str] = []

  def check(self, *good: str) -> None:
    """Raises RunError for a process that has come to another end."""
    for number, end in enumerate(self.all):
      if end not in good:
        raise RunError(f'process {number} {end}; it says why')


@contextlib.contextmanager
def _told(stage: str) -> Iterator[_Ends]:
  """Lets the processes meet at the end of a stage, even if it fails."""
  ends = _Ends()
  try:
    yield ends
  finally:
    ends.all = processes.gather(stage, ends.mine)


def _merge(options: Options, folder: RunFolder) -> None:
  """Merges the tables of all processes, and draws them."""
  shards = [folder.shard(n).metrics for n in range(options.num_processes)]
  with folders.run_errors(folder):
    with folders.edited_errors():
      concatenate(folder.metrics, [path for path in shards if path.exists()])
    if folder.metrics.exists():
      running.draw(folder.curve, lambda: options.draw(folder))


def _checkpoints(folder: RunFolder, index: int) -> Checkpoints:
  """The checkpoints of one program."""
  return Checkpoints(folder.checkpoints / f'{index:03}')


class _Runs(running.Running):
  """A sweep, or the part of one process, in its folder."""

  def __init__(
    self,
    folder: RunFolder,
    groups: Sequence[Group],
    everywhere: Sequence[Group],
    options: Options,
    stop: devices.StopRequest,
  ):
    """Prepares the runs; reads nothing yet.

    Args:
      folder: to run them in.
      groups: the programs, with the runs of this process.
      everywhere: the programs, with the runs of all processes.
      options: the way to run them.
      stop: true once the user wants the runs to stop.
    """
    super().__init__(
      folder,
      stop,
      checkpoint_period_s=options.checkpoint_period_s,
      track=options.track,
    )
    self._groups, self._everywhere = groups, everywhere
    self._options = options
    loop = everywhere[0].loop
    self.step_column, self._unit = loop.clock, _in_words(loop.clock)
    # Whether there is only one run in all processes.
    self.alone = len(everywhere) == 1 and len(everywhere[0].runs) == 1
    self._diverged: set[tuple[int, int]] = set()
    # The current program, and how many of its iterations are done.
    self._index, self._iteration = 0, 0

  @property
  def finished(self) -> bool:
    return self._index == len(self._groups)

  @property
  def _done(self) -> int:
    """Steps that all runs have done."""
    done = sum(g.iterations * g.steps for g in self._groups[: self._index])
    if not self.finished:
      done += self._iteration * self._groups[self._index].steps
    return done

  @property
  def _total(self) -> int:
    return sum(group.iterations * group.steps for group in self._groups)

  @property
  def whole(self) -> str:
    return f'{self._total:,} {self._unit}'

  @property
  def at(self) -> str:
    return f'after {self._done:,} {self._unit}'

  def find(self) -> dict[str, Any] | None:
    for index in reversed(range(len(self._groups))):
      checkpoints = _checkpoints(self._folder, index)
      # Without any of its own, a program begins where the one before ended.
      before = index and _checkpoints(self._folder, index - 1).latest_step()
      facts = folders.recover(
        self._folder, checkpoints, may_be_none=bool(before)
      )
      if facts is not None:
        self._index = index
        return facts
    return None

  def stand(self, facts: dict[str, Any]) -> None:
    self._iteration = facts['iteration']
    if self._iteration == self._groups[self._index].iterations:
      self._index, self._iteration = self._index + 1, 0

  def open(self) -> Progress:
    # Of all rows: programs may have columns of their own.
    self._columns: list[str] = []
    if len(self._everywhere) > 1:
      each = [name for group in self._everywhere for name in group.columns()]
      self._columns = sorted({*each}.difference(CLOCKS, ('target_updates',)))
    return Progress(
      self._total,
      self._done,
      unit=self._unit,
      headline=_in_words(self._groups[0].loop.headline),
    )

  def nbytes(self) -> int:
    sizes = [group.run_bytes() * len(group.runs) for group in self._groups]
    return 3 * sum(sizes)

  def train(self) -> Iterator[Moment]:
    while not self.finished:
      yield from self._train_group()

  def _train_group(self) -> Iterator[Moment]:
    self._group = group = self._groups[self._index]
    options = self._options
    program, place, num_devices = compile_group(
      group, share=options.share, vectorized=options.vectorized
    )
    self._say_program(num_devices)
    self._checkpoints = _checkpoints(self._folder, self._index)
    self._progress.enter(COMPILING)
    self._progress.forget_speed()
    begun = time.monotonic()
    settings, keys = place(group.settings()), place(group.keys())
    state = program.start(settings, keys)
    found = self._checkpoints.restore(_unpad(state, len(group.runs)))
    if found is not None:
      state = place(found[0])
    program = scan.compile_ahead(program, settings, state)
    seconds = time.monotonic() - begun
    self._progress.message(f'compiled in {seconds:.1f} s')
    yield Moment.SAME
    self._progress.enter(_phase(group, self._iteration))
    for step in scan.train(
      program,
      settings,
      state,
      iteration=self._iteration,
      iterations=group.iterations,
    ):
      self._step, self._iteration = step, step.iteration
      self._write(step)
      self._progress.enter(_phase(group, step.iteration))
      last = step.iteration == group.iterations
      if last:
        self._index, self._iteration = self._index + 1, 0
      yield Moment.DUE if last else Moment.BETWEEN
    del self._step  # the memory is for the next program

  def _say_program(self, num_devices: int) -> None:
    """Says which program begins, or where it goes on."""
    group, iteration = self._group, self._iteration
    kind = jax.devices()[0].device_kind
    steps = group.iterations * group.loop.iteration_steps
    text = (
      f'{"resuming" if iteration else "starting"} program {self._index + 1} of '
      f'{len(self._groups)} in {self._folder.path}: {len(group.runs)} '
      f'{"runs" if len(group.runs) > 1 else "run"} of {steps:,} '
      f'{self._unit} on {num_devices} {kind}'
      f'{" devices" if num_devices > 1 else ""}'
    )
    if iteration:
      text += f', at iteration {iteration} of {group.iterations}'
    self._progress.message(f'{text}; Ctrl-C saves and stops')
    self._progress.message(
      'compiling; the first time this may take a few minutes'
    )

  def _write(self, step: scan.Progress) -> None:
    """Adds the rows of an iteration."""
    group, rows = self._group, []
    finite_params = np.asarray(_finite(step.state.train.online_params))
    for number, each in enumerate(group.runs):
      row = {name: values[number].item() for name, values in step.row.items()}
      self._check_run(number, step, row, bool(finite_params[number]))
      row.pop(scan.FAULT, None)
      counts = {
        'iteration': step.iteration - 1,
      } | {name: row.pop(name) for name in CLOCKS if name in row}
      counts['target_updates'] = row.pop('target_updates')
      if self._columns:
        row = {name: row.get(name) for name in self._columns}
      rows.append({**cells(each.point), 'seed': each.seed, **counts, **row})
    self._write_rows(rows)
    headline = [row[group.loop.headline] for row in rows]
    finite = [value for value in headline if math.isfinite(value)]
    self._progress.update(
      self._done,
      float(np.mean(finite)) if finite else None,
      to_come={COMPILING: len(self._groups) - 1 - self._index},
    )

  def _check_run(
    self,
    number: int,
    step: scan.Progress,
    row: Mapping[str, float],
    finite_params: bool,
  ) -> None:
    """Reports a failed run once; a single run ends there.

    Raises:
      BrokenEnvironmentError: the environment of a single run has failed, or
        successors in the replay are wrong, so that all runs with this
        environment are useless.
      NonFiniteError: a single run has diverged.
    """
    group, iteration = self._group, step.iteration - 1
    wrong = _not_finite(row)
    if not wrong and not finite_params:
      wrong = 'not all parameters are finite'
    if not wrong and not row.get(scan.FAULT):
      return
    state = jax.tree.map(lambda leaf: leaf[number], step.state)
    fault = group.loop.fault(row, state, iteration, diverged=bool(wrong))
    if row.get(scan.FAULT) == scan.EARLY_CUT:
      raise BrokenEnvironmentError(fault)
    if not wrong and not fault:
      return
    if self.alone and fault:
      raise BrokenEnvironmentError(f'{fault}, in iteration {iteration}')
    if self.alone:
      raise NonFiniteError(
        f'{wrong} in iteration {iteration}, which ended after '
        f'{row["gradient_steps"]} gradient steps'
      )
    if (self._index, number) in self._diverged:
      return
    self._diverged.add((self._index, number))
    run_ = group.runs[number]
    text = f'the run with {run_} has diverged: {wrong} in iteration {iteration}'
    if fault:
      text = (
        f'in the run with {run_} the environment failed: {fault}, in iteration '
        f'{iteration}'
      )
    self._progress.message(f'{text}; the others go on')

  def checkpoint(self) -> tuple[int, Any, dict[str, Any]]:
    step = self._step
    state = _unpad(step.state, len(self._group.runs))
    return step.iteration, state, {'iteration': step.iteration}

  def draw(self) -> None:
    if self._options.num_processes == 1:  # or they are drawn together
      self._options.draw(self._folder)


def _phase(group: Group, iteration: int) -> str:
  """The name of an iteration's phase, for the progress."""
  return MAIN if group.learns(iteration) else 'warming up'


def _in_words(column: str) -> str:
  """A column's name, for a message: 'return' for train_return."""
  return column.removeprefix('train_').replace('_', ' ')


def _not_finite(row: Mapping[str, float]) -> str:
  """The first metric of the loss that is not finite; '' if all are."""
  if not row['gradient_steps']:
    return ''  # nothing has been learned from: they are means of nothing
  for name, value in row.items():
    if not name.startswith(_COUNTS) and not math.isfinite(value):
      return f'{name}={value}'
  return ''


@jax.jit
def _finite(params: Any) -> jax.Array:
  """bool [R], whether all parameters of a run are finite."""
  each = [
    jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim)))
    for leaf in jax.tree.leaves(params)
  ]
  return jnp.stack(each).all(axis=0)


def cells(point: Mapping[str, Any]) -> dict[str, Any]:
  """A point as metrics hold it, with true and false as in flags.

  A text that is a number, such as the size of a single hidden layer, is put in
  brackets.
  """

  def cell(value: Any) -> Any:
    if isinstance(value, bool):
      return str(value).lower()
    if isinstance(value, str) and value.isdecimal():
      return f'[{value}]'
    return value

  return {name: cell(value) for name, value in point.items()}


def compile_group(
  group: Group, *, share: str, vectorized: bool
) -> tuple[scan.Program, Callable[[Any], Any], int]:
  """The program of a group on the devices of this process.

  Args:
    group: the runs.
    share: the work that devices share, 'runs' or 'batch'.
    vectorized: whether a device computes its runs together.

  Returns:
    (program, place, devices): `place` puts [R, ...] arrays where the program
    wants them; `devices` is how many are used.
  """
  mesh = _mesh(share, len(group.runs))
  # One object, so that it is traced once.
  key = (mesh, vectorized)
  if key not in group.programs:
    group.programs[key] = scan.make_program(
      group.loop, mesh, vectorized=vectorized
    )
  return group.programs[key], functools.partial(_place, mesh=mesh), mesh.size


def peak_nbytes(group: Group, *, share: str, vectorized: bool) -> int:
  """About how many bytes the program of a group holds at once."""
  program, place, _ = compile_group(group, share=share, vectorized=vectorized)
  settings, keys = place(group.settings()), place(group.keys())
  sharding = jax.tree.leaves(settings)[0].sharding
  state = jax.tree.map(
    # As the program gets them, or it would be traced once more.
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    jax.eval_shape(program.start, settings, keys),
  )
  return memory.peak_nbytes(program.advance, settings, state, np.int32(0))


def _mesh(share: str, runs: int) -> jax.sharding.Mesh:
  """The local devices; of more than there are runs, as many as runs."""
  local = jax.local_devices()
  if share == 'runs':
    local = local[:runs]
  return jax.sharding.Mesh(
    np.array(local), (share,), axis_types=(AxisType.Auto,)
  )


def _place(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """Puts [R, ...] arrays on the devices of a mesh.

  Where the devices share runs and cannot divide them, the last run is computed
  several times over.
  """
  (axis,) = mesh.axis_names
  spec = PartitionSpec('runs') if axis == 'runs' else PartitionSpec()
  number = len(jax.tree.leaves(tree)[0])
  more = -number % mesh.size if axis == 'runs' else 0
  index = np.minimum(np.arange(number + more), number - 1)
  if more:
    tree = jax.tree.map(lambda leaf: leaf[index], tree)
  return jax.device_put(tree, NamedSharding(mesh, spec))


def _unpad(tree: Any, runs: int) -> Any:
  """The first runs, without those that `_place` has added."""
  if len(jax.tree.leaves(tree)[0]) == runs:
    return tree
  return jax.tree.map(lambda leaf: leaf[:runs], tree)
