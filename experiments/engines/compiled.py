"""Compiled runs in their folder: resume, show, save, stop, merge.

All runs of a sweep share one folder. The programs of a sweep are run one after
the other, each with a directory of checkpoints of its own. Where several
processes share the runs each has a folder inside, and the first one puts the
tables together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import math
import time
from typing import Any, NamedTuple, NoReturn, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

from experiments.config.declaring import RunError
from experiments.engines import devices, folders, memory, processes, running
from experiments.engines.folders import (
  checkpoint_errors,
  edited_errors,
  open_folder,
  run_errors,
)
from experiments.engines.running import Running
from siamrl.envs.errors import BrokenEnvironmentError
from siamrl.report.checkpoint import Checkpoints
from siamrl.report.metrics import MetricsWriter, concatenate
from siamrl.report.progress import COMPILING, MAIN, Progress
from siamrl.report.run_folder import RunFolder
from siamrl.runners import scan
from siamrl.runners.errors import NonFiniteError

# What counts the length of runs.
CLOCKS = ('env_steps', 'gradient_steps')

# Columns of a row that are no metric of the loss.
_COUNTS = (
  'train_',
  'eval_',
  'epsilon',
  'panel/',
  *CLOCKS,
)


class Loop(Protocol):
  """What each run of a program does, such as `scan.Loop`.

  Attributes:
    config: has `batch_size`.
    clock: what the length of runs is counted in, 'env_steps' or
      'gradient_steps', a column of the rows.
    iteration_steps: of it, from one row to the next.
    warmup_steps: of it, before the first gradient step.
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
    """A run's beginning; has the learner's state as `train`."""

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
    """What an environment has done wrong, in words; '' for nothing."""


class Run(NamedTuple):
  """One run of a program.

  Attributes:
    point: its values of the swept options.
    seed: everything random follows from it.
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
    loop: what each run does.
    iterations: of every run.
    runs: told apart by their numbers only.
    config: the options of one of them, for messages.
    programs: those that have been made, by how they share the devices.
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
    """Steps of one iteration of all runs, of the loop's clock."""
    return len(self.runs) * self.loop.iteration_steps

  def learns(self, iteration: int) -> bool:
    """Whether an iteration takes gradient steps, but for a tenth of it."""
    steps = self.loop.iteration_steps
    return iteration * steps + 0.1 * steps >= self.loop.warmup_steps

  @property
  def rows(self) -> int:
    """Rows of metrics that all runs leave."""
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
    """Those of the loop's rows; nothing is computed."""
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
    overwrite: start afresh where it holds runs.
    flags: what its flags.txt is to say.
    config: what its config.json is to say.
    ignore: flags that may differ on resumption.
    share: what devices share, 'runs' or 'batch'.
    vectorised: whether a device computes its runs together.
    checkpoint_period_s: seconds between two checkpoints, about.
    num_processes: processes that share the runs.
    process_id: this one's number.
    draw: (folder) -> None; draws what the metrics say.
  """

  run_dir: str
  overwrite: bool
  flags: Mapping[str, str]
  config: Mapping[str, Any]
  ignore: Sequence[str]
  share: str
  vectorised: bool
  checkpoint_period_s: float
  num_processes: int
  process_id: int
  draw: Callable[[RunFolder], None]


class _Stopped(Exception):
  """The user asked the runs to stop; they have been saved."""


def run(
  groups: Sequence[Group], options: Options, stop: devices.StopRequest
) -> None:
  """Trains all runs to their end, or until asked to stop.

  Args:
    groups: the programs and their runs.
    options: how to run them.
    stop: true once the user wants the runs to stop.

  Raises:
    UsageError: the folder is another run's.
    RunError: it cannot be read or written, or the only run diverged.
  """
  if options.num_processes == 1:
    with _open(options, options.run_dir) as folder:
      _run(folder, groups, groups, options, stop)
      _show(options, folder)
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
        folder = stack.enter_context(_open(options, options.run_dir))
      ends.mine = _OPENED
    ends.check(_OPENED)
    with _told('trained') as ends:
      path = RunFolder(options.run_dir).shard(options.process_id).path
      with _open(options, path) as shard:
        if _run(shard, mine, groups, options, stop):
          ends.mine = _FINISHED
        else:
          ends.mine = _STOPPED
    if options.process_id == 0:
      _merge(options, folder)
      _show(options, folder)
    ends.check(_FINISHED, _STOPPED)


# How a process tells the others that it fared.
_OPENED, _FINISHED = 'has opened its folder', 'has finished'
_STOPPED, _FAILED = 'was stopped', 'failed'


class _Ends:
  """How each process has come to the end of a stage.

  Attributes:
    mine: this one.
    all: every process, once all have told.
  """

  def __init__(self) -> None:
    self.mine = _FAILED
    self.all: list[str] = []

  def check(self, *good: str) -> None:
    """Raises RunError where a process has come to another end."""
    for number, end in enumerate(self.all):
      if end not in good:
        raise RunError(f'process {number} {end}; it says why')


@contextlib.contextmanager
def _told(stage: str) -> Iterator[_Ends]:
  """Has the processes meet at the end of a stage, also where it fails."""
  ends = _Ends()
  try:
    yield ends
  finally:
    ends.all = processes.gather(stage, ends.mine)


def _open(options: Options, path: Any) -> RunFolder:
  return open_folder(
    path,
    options.flags,
    options.config,
    overwrite=options.overwrite,
    ignore=options.ignore,
  )


def _merge(options: Options, folder: RunFolder) -> None:
  """Puts the tables of all processes together."""
  shards = [folder.shard(n).metrics for n in range(options.num_processes)]
  with run_errors(folder), edited_errors():
    concatenate(folder.metrics, [path for path in shards if path.exists()])


def _show(options: Options, folder: RunFolder) -> None:
  """Draws what there is, if there is anything."""
  if folder.metrics.exists():
    with run_errors(folder):
      running.draw(folder.curve, lambda: options.draw(folder))


def _run(
  folder: RunFolder,
  groups: Sequence[Group],
  everywhere: Sequence[Group],
  options: Options,
  stop: devices.StopRequest,
) -> bool:
  """Runs all programs; whether to their end.

  Args:
    folder: to run them in.
    groups: the programs, with the runs of this process.
    everywhere: with those of all processes.
    options: how to run them.
    stop: true once the user wants the runs to stop.
  """
  with run_errors(folder):
    position = _find(folder, groups)
    with edited_errors():
      MetricsWriter.truncate(folder.metrics, position.rows, position.checksum)
    if position.group == len(groups):
      done = sum(group.iterations * group.steps for group in groups)
      unit = _unit(groups[0].loop)
      folders.say_notes(folder)
      Progress(done, done).message(
        f'finished already: {folder.path}, {done:,} {unit}'
      )
      return True
    size = sum(group.run_bytes() * len(group.runs) for group in groups)
    # Two checkpoints are kept, and the next is written beside them.
    devices.check_room(folder.path, 3 * size)
    try:
      with _Runs(folder, groups, everywhere, options, stop, position) as runs:
        runs.train()
    except _Stopped:
      return False
  return True


class _Position(NamedTuple):
  """Where a sweep stands.

  Attributes:
    group: the program to go on with; their number if all are finished.
    iteration: iterations of it that are done.
    rows: of metrics, that stay.
    checksum: of these rows; None where it is not known.
  """

  group: int
  iteration: int
  rows: int
  checksum: str | None


def _find(folder: RunFolder, groups: Sequence[Group]) -> _Position:
  """Where the newest checkpoint stands that is whole."""
  for index in reversed(range(len(groups))):
    checkpoints = _checkpoints(folder, index)
    # Without any of its own, a program begins after the end of the one before.
    before = index and _checkpoints(folder, index - 1).latest_step()
    folders.recover(folder, checkpoints, may_be_none=bool(before))
    extra = checkpoints.read_extra()
    if extra is None:
      continue
    with checkpoint_errors(folder):
      iteration, rows = extra['iteration'], extra['rows']
    checksum = extra.get('rows_sha256')
    if iteration == groups[index].iterations:
      return _Position(index + 1, 0, rows, checksum)
    return _Position(index, iteration, rows, checksum)
  return _Position(0, 0, 0, None)


def _checkpoints(folder: RunFolder, index: int) -> Checkpoints:
  """Of one program."""
  return Checkpoints(folder.checkpoints / f'{index:03}')


class _Runs(Running):
  """A sweep as it goes on in its folder."""

  def __init__(
    self,
    folder: RunFolder,
    groups: Sequence[Group],
    everywhere: Sequence[Group],
    options: Options,
    stop: devices.StopRequest,
    position: _Position,
  ):
    self._groups, self._options = groups, options
    # Whether there is one run only, in all processes.
    self._alone = alone = len(everywhere) == 1 and len(everywhere[0].runs) == 1
    # Of all rows: a program's agent, rule or network has some of its own.
    self._columns: list[str] = []
    if len(everywhere) > 1:
      each = [name for group in everywhere for name in group.columns()]
      self._columns = sorted({*each}.difference(CLOCKS, ('target_updates',)))
    self._diverged: set[tuple[int, int]] = set()
    self._begin = position
    writer = MetricsWriter(
      folder.metrics,
      folder.events if alone else None,
      step_column=groups[0].loop.clock,
    )
    total = sum(group.iterations * group.steps for group in groups)
    self._done = sum(
      group.iterations * group.steps for group in groups[: position.group]
    )
    self._done += position.iteration * groups[position.group].steps
    super().__init__(
      folder,
      writer,
      Progress(
        total,
        self._done,
        unit=_unit(groups[0].loop),
        headline=_in_words(groups[0].loop.headline),
      ),
      checkpoint_period_s=options.checkpoint_period_s,
      stop=stop,
    )

  def train(self) -> None:
    """Goes on from the newest checkpoint to the end."""
    for index in range(self._begin.group, len(self._groups)):
      self._train_group(index)
    self._say_finished()

  def _train_group(self, index: int) -> None:
    group, options = self._groups[index], self._options
    program, place, num_devices = compile_group(
      group, share=options.share, vectorised=options.vectorised
    )
    iteration = self._begin.iteration if index == self._begin.group else 0
    self._announce(index, iteration, num_devices)
    checkpoints = _checkpoints(self._folder, index)
    self._progress.enter(COMPILING)
    self._progress.forget_speed()
    begun = time.monotonic()
    settings, keys = place(group.settings()), place(group.keys())
    state = program.start(settings, keys)
    found = checkpoints.restore(_unpad(state, len(group.runs)))
    if found is not None:
      restored, extra, _ = found
      state, iteration = place(restored), extra['iteration']
    program = scan.compile_ahead(program, settings, state)
    self._say_compiled(begun)
    if self._stop:
      self._stop_here()
    self._progress.enter(_phase(group, iteration))
    for step in scan.train(
      program, settings, state, iteration=iteration, iterations=group.iterations
    ):
      self._done += group.steps
      self._write(index, step)
      self._progress.enter(_phase(group, step.iteration))
      last = step.iteration == group.iterations
      if self._overdue() or last or self._stop:
        self._save(checkpoints, index, step)
      if self._stop and not (last and index + 1 == len(self._groups)):
        self._stop_here()

  def _stop_here(self) -> NoReturn:
    unit = _unit(self._groups[0].loop)
    self._say_stopped(f'after {self._done:,} {unit}')
    raise _Stopped

  def _announce(self, index: int, iteration: int, num_devices: int) -> None:
    group = self._groups[index]
    kind = jax.devices()[0].device_kind
    steps = group.iterations * group.loop.iteration_steps
    text = (
      f'{"resuming" if iteration else "starting"} program {index + 1} of '
      f'{len(self._groups)} in {self._folder.path}: {len(group.runs)} '
      f'{"runs" if len(group.runs) > 1 else "run"} of {steps:,} '
      f'{_unit(group.loop)} on {num_devices} {kind}'
      f'{" devices" if num_devices > 1 else ""}'
    )
    if iteration:
      text += f', at iteration {iteration} of {group.iterations}'
    self._progress.message(f'{text}; Ctrl-C saves and stops')
    self._progress.message(
      'compiling; the first time this may take a few minutes'
    )

  def _write(self, index: int, step: scan.Progress) -> None:
    """Adds the rows of an iteration."""
    group = self._groups[index]
    rows = []
    finite_params = np.asarray(_finite(step.state.train.online_params))
    for number, each in enumerate(group.runs):
      row = {name: values[number].item() for name, values in step.row.items()}
      wrong = _not_finite(row)
      if not wrong and not finite_params[number]:
        wrong = 'not all parameters are finite'
      if wrong or row.get(scan.FAULT):
        fault = self._find_fault(group, number, step, row, bool(wrong))
        if fault or wrong:
          self._say_wrong(index, number, step.iteration, row, fault, wrong)
      row.pop(scan.FAULT, None)
      counts = {
        'iteration': step.iteration - 1,
      } | {name: row.pop(name) for name in CLOCKS if name in row}
      counts['target_updates'] = row.pop('target_updates')
      if self._columns:
        row = {name: row.get(name) for name in self._columns}
      rows.append({**_cells(each.point), 'seed': each.seed, **counts, **row})
    self._write_rows(rows)
    headline = [row[group.loop.headline] for row in rows]
    finite = [value for value in headline if math.isfinite(value)]
    self._progress.update(
      self._done,
      float(np.mean(finite)) if finite else None,
      to_come={COMPILING: len(self._groups) - 1 - index},
    )

  def _find_fault(
    self,
    group: Group,
    number: int,
    step: scan.Progress,
    row: Mapping[str, float],
    diverged: bool,
  ) -> str:
    """What the environment of a run has done wrong, in words; '' for nothing.

    Raises:
      BrokenEnvironmentError: successors in the replay are wrong, so that no
        run with this environment is of any use.
    """
    fault = group.loop.fault(
      row,
      jax.tree.map(lambda leaf: leaf[number], step.state),
      step.iteration - 1,
      diverged=diverged,
    )
    if row.get(scan.FAULT) == scan.EARLY_CUT:
      raise BrokenEnvironmentError(fault)
    return fault

  def _say_wrong(
    self,
    index: int,
    number: int,
    iteration: int,
    row: Mapping[str, float],
    fault: str,
    wrong: str,
  ) -> None:
    """Tells of a run gone wrong, once; a run alone ends there."""
    if fault:
      if self._alone:
        raise BrokenEnvironmentError(f'{fault}, in iteration {iteration - 1}')
      if (index, number) not in self._diverged:
        self._diverged.add((index, number))
        self._progress.message(
          f'in the run with {self._groups[index].runs[number]} the environment '
          f'failed: {fault}, in iteration {iteration - 1}; the others go on'
        )
      return
    if self._alone:
      raise NonFiniteError(
        f'{wrong} in iteration {iteration - 1}, which ended after '
        f'{row["gradient_steps"]} gradient steps'
      )
    if (index, number) not in self._diverged:
      self._diverged.add((index, number))
      self._progress.message(
        f'the run with {self._groups[index].runs[number]} has diverged: '
        f'{wrong} in iteration {iteration - 1}; the others go on'
      )

  def _save(
    self, checkpoints: Checkpoints, index: int, step: scan.Progress
  ) -> None:
    runs = len(self._groups[index].runs)
    checkpoints.save(
      step.iteration,
      _unpad(step.state, runs),
      {'iteration': step.iteration, **folders.written(self._writer)},
    )
    self._saved_at = time.monotonic()


def _phase(group: Group, iteration: int) -> str:
  """What an iteration does, as progress calls it."""
  return MAIN if group.learns(iteration) else 'warming up'


def _unit(loop: Loop) -> str:
  """The loop's clock, for a message."""
  return loop.clock.replace('_', ' ')


def _in_words(column: str) -> str:
  """A column's name, for a message: 'return' for train_return."""
  return column.removeprefix('train_').replace('_', ' ')


def _not_finite(row: Mapping[str, float]) -> str:
  """The first metric of the loss that is not finite; '' if all are."""
  if not row['gradient_steps']:
    return ''  # nothing has been learnt from: they are means of nothing
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


def _cells(point: Mapping[str, Any]) -> dict[str, Any]:
  """A point as metrics hold it: true and false as words, as flags have them.

  A text that is a number, such as the sizes of a single hidden layer, is put in
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
  group: Group, *, share: str, vectorised: bool
) -> tuple[scan.Program, Callable[[Any], Any], int]:
  """The program of a group on the devices of this process.

  Args:
    group: the runs.
    share: what devices share, 'runs' or 'batch'.
    vectorised: whether a device computes its runs together.

  Returns:
    (program, place, devices): `place` puts [R, ...] arrays where the program
    wants them; `devices` is how many are used.
  """
  mesh = _mesh(share, len(group.runs))
  # One object, so that it is traced once.
  key = (mesh, vectorised)
  if key not in group.programs:
    group.programs[key] = scan.make_program(
      group.loop, mesh, vectorised=vectorised
    )
  return group.programs[key], functools.partial(_place, mesh=mesh), mesh.size


def peak_nbytes(group: Group, *, share: str, vectorised: bool) -> int:
  """About how many bytes the program of a group holds at once."""
  program, place, _ = compile_group(group, share=share, vectorised=vectorised)
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
