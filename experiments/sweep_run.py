"""Compiled runs in their folder: resume, show, save, stop, merge.

All runs of a sweep share one folder. The programs of a sweep are run one after
the other, each with a directory of checkpoints of its own. Where several
processes share the runs each has a folder inside, and the first one puts the
tables together.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

from experiments import devices
from experiments.flags import RunError
from experiments.folders import open_folder
from siamrl import schedule
from siamrl.report.checkpoint import CheckpointError, Checkpoints
from siamrl.report.metrics import MetricsWriter, concatenate
from siamrl.report.progress import Progress
from siamrl.report.run_folder import RunFolder
from siamrl.runners import scan
from siamrl.runners.errors import NonFiniteError

# Columns of a row that are no metric of the loss.
_COUNTS = ('train_', 'eval_', 'epsilon', 'env_steps', 'gradient_steps')


class Run(NamedTuple):
  """One run of a program.

  Attributes:
    point: its values of the swept options.
    seed: everything random follows from it.
    settings: the numbers that the program takes.
  """

  point: Mapping[str, Any]
  seed: int
  settings: Mapping[str, np.generic]

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
  """

  loop: scan.Loop
  iterations: int
  runs: Sequence[Run]

  @property
  def env_steps(self) -> int:
    """Env steps of one iteration of all runs."""
    return len(self.runs) * self.loop.config.iteration_env_steps

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

  def run_bytes(self) -> int:
    """Bytes of one run's state."""
    settings = self.runs[0].settings
    state = jax.eval_shape(self.loop.start, settings, jax.random.key(0))
    return sum(
      math.prod(leaf.shape) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(state)
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
      _run(folder, groups, options, stop)
      options.draw(folder)
    return
  mine = [
    dataclasses.replace(
      group, runs=group.runs[options.process_id :: options.num_processes]
    )
    for group in groups
  ]
  mine = [group for group in mine if group.runs]
  if options.process_id == 0:
    with _open(options, options.run_dir) as folder:
      _barrier('opened')
      finished = _run_shard(folder, mine, options, stop)
      _barrier('trained')
      if finished:
        _merge(folder, options.num_processes)
        options.draw(folder)
    return
  _barrier('opened')
  _run_shard(RunFolder(options.run_dir), mine, options, stop)
  _barrier('trained')


def _run_shard(
  folder: RunFolder,
  groups: Sequence[Group],
  options: Options,
  stop: devices.StopRequest,
) -> bool:
  """Runs this process's share in a folder of its own; whether to the end."""
  with _open(options, folder.shard(options.process_id).path) as shard:
    return _run(shard, groups, options, stop)


def _open(options: Options, path: Any) -> RunFolder:
  return open_folder(
    path,
    options.flags,
    options.config,
    overwrite=options.overwrite,
    ignore=options.ignore,
  )


def _barrier(name: str) -> None:
  """Waits for all processes to come here."""
  from jax.experimental import multihost_utils

  multihost_utils.sync_global_devices(name)


def _merge(folder: RunFolder, num_processes: int) -> None:
  """Puts the tables of all processes together."""
  shards = [folder.shard(number).metrics for number in range(num_processes)]
  concatenate(folder.metrics, [path for path in shards if path.exists()])


def _run(
  folder: RunFolder,
  groups: Sequence[Group],
  options: Options,
  stop: devices.StopRequest,
) -> bool:
  """Runs all programs; whether to their end."""
  size = sum(group.run_bytes() * len(group.runs) for group in groups)
  devices.check_room(folder.path, 2 * size)
  try:
    with _Runs(folder, groups, options, stop) as runs:
      runs.train()
    return True
  except _Stopped:
    return False
  except NonFiniteError as error:
    raise RunError(
      f'the learner diverged: {error}; the checkpoint before stays as it is'
    ) from error
  except CheckpointError as error:
    raise RunError(f'--run_dir={error}') from error
  except OSError as error:
    raise RunError(f'--run_dir={folder.path}: {error}') from error


class _Runs:
  """The position of a sweep in its folder."""

  def __init__(
    self,
    folder: RunFolder,
    groups: Sequence[Group],
    options: Options,
    stop: devices.StopRequest,
  ):
    self._folder, self._groups = folder, groups
    self._options, self._stop = options, stop
    self._diverged: set[tuple[int, int]] = set()
    self._begin, rows = self._find()
    try:
      MetricsWriter.truncate(folder.metrics, rows)
      self._writer = MetricsWriter(
        folder.metrics,
        folder.events if self._alone else None,
        step_column='env_steps',
      )
    except ValueError as error:  # someone has edited the file
      raise RunError(f'--run_dir={error}') from error
    total = sum(group.iterations * group.env_steps for group in groups)
    done = sum(g.iterations * g.env_steps for g in groups[: self._begin])
    self._done = done
    self._progress = Progress(total, done, unit='env steps')
    self._saved_at = time.monotonic()

  def __enter__(self) -> '_Runs':
    self._progress.__enter__()
    return self

  def __exit__(self, *exc) -> None:
    self._progress.close()
    self._writer.close()

  @property
  def _alone(self) -> bool:
    """Whether there is one run only."""
    return len(self._groups) == 1 and len(self._groups[0].runs) == 1

  def _checkpoints(self, index: int) -> Checkpoints:
    """Of one program."""
    return Checkpoints(self._folder.checkpoints / f'{index:03}', max_to_keep=1)

  def _find(self) -> tuple[int, int]:
    """The program to go on with, and the rows of metrics that stay."""
    for index in reversed(range(len(self._groups))):
      extra = self._checkpoints(index).read_extra()
      if extra is not None:
        return index, extra['rows']
    return 0, 0

  def train(self) -> None:
    """Goes on from the newest checkpoint to the end."""
    for index in range(self._begin, len(self._groups)):
      self._train_group(index)
    self._progress.message(f'finished: {self._folder.path}')

  def _train_group(self, index: int) -> None:
    group, options = self._groups[index], self._options
    mesh = _mesh(options.share, len(group.runs))
    program = scan.make_program(group.loop, mesh, vectorised=options.vectorised)
    place = functools.partial(_place, mesh=mesh)
    settings, keys = place(group.settings()), place(group.keys())
    state = program.start(settings, keys)
    checkpoints = self._checkpoints(index)
    found = checkpoints.restore(_unpad(state, len(group.runs)))
    iteration = 0
    if found is not None:
      restored, extra, _ = found
      state, iteration = place(restored), extra['iteration']
      self._done += iteration * group.env_steps
    self._announce(index, iteration, mesh.size)
    begun, saved = time.monotonic(), True
    for step in scan.train(
      program, settings, state, iteration=iteration, iterations=group.iterations
    ):
      if step.iteration == iteration + 1:
        self._progress.message(
          f'first iteration, compilation included: '
          f'{time.monotonic() - begun:.1f} s'
        )
      self._done += group.env_steps
      self._write(index, step)
      overdue = time.monotonic() - self._saved_at >= options.checkpoint_period_s
      last = step.iteration == group.iterations
      saved = bool(overdue or last or self._stop)
      if saved:
        self._save(checkpoints, index, step)
      if self._stop and not (last and index + 1 == len(self._groups)):
        self._progress.message(
          f'stopped after {self._done:,} env steps and saved; the same '
          'command, without --overwrite, resumes'
        )
        raise _Stopped

  def _announce(self, index: int, iteration: int, num_devices: int) -> None:
    group = self._groups[index]
    kind = jax.devices()[0].device_kind
    steps = group.iterations * group.loop.config.iteration_env_steps
    text = (
      f'{"resuming" if iteration else "starting"} program {index + 1} of '
      f'{len(self._groups)} in {self._folder.path}: {len(group.runs)} '
      f'{"runs" if len(group.runs) > 1 else "run"} of {steps:,} env steps on '
      f'{num_devices} {kind}'
    )
    if iteration:
      text += f', at iteration {iteration} of {group.iterations}'
    self._progress.message(f'{text}; Ctrl-C saves and stops')

  def _write(self, index: int, step: scan.Progress) -> None:
    """Adds the rows of an iteration."""
    group = self._groups[index]
    rows = []
    for number, each in enumerate(group.runs):
      row = {name: values[number].item() for name, values in step.row.items()}
      self._check_finite(index, number, step.iteration, row)
      counts = {
        'iteration': step.iteration - 1,
        'env_steps': row.pop('env_steps'),
        'gradient_steps': row.pop('gradient_steps'),
      }
      counts['target_updates'] = schedule.syncs(
        counts['gradient_steps'], int(each.settings['sync'])
      )
      rows.append({**each.point, 'seed': each.seed, **counts, **row})
    self._writer.write_rows(rows)
    returns = [row['train_return'] for row in rows]
    finite = [value for value in returns if math.isfinite(value)]
    self._progress.update(
      self._done, float(np.mean(finite)) if finite else None
    )

  def _check_finite(
    self, index: int, number: int, iteration: int, row: Mapping[str, float]
  ) -> None:
    """Tells of a run that has diverged, once; a run alone ends there."""
    if (index, number) in self._diverged or not row['gradient_steps']:
      return
    wrong = [
      f'{name}={value}'
      for name, value in row.items()
      if not name.startswith(_COUNTS) and not math.isfinite(value)
    ]
    first = self._groups[index].loop.config.warmup_env_steps
    if not wrong or row['env_steps'] <= first:
      return
    self._diverged.add((index, number))
    run_ = self._groups[index].runs[number]
    if self._alone:
      raise NonFiniteError(
        f'{wrong[0]} within iteration {iteration - 1}, '
        f'{row["gradient_steps"]} gradient steps from the start'
      )
    self._progress.message(
      f'the run with {run_} has diverged: {wrong[0]} in iteration '
      f'{iteration - 1}; the others go on'
    )

  def _save(
    self, checkpoints: Checkpoints, index: int, step: scan.Progress
  ) -> None:
    runs = len(self._groups[index].runs)
    checkpoints.save(
      step.iteration,
      _unpad(step.state, runs),
      {'iteration': step.iteration, 'rows': self._writer.position},
    )
    self._saved_at = time.monotonic()


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
