"""A run on a data set in its folder: resume, show, measure, save, stop."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import time
from typing import NamedTuple
import zlib

import jax
import numpy as np

from experiments.config.declaring import RunError
from experiments.engines import devices, folders, running
from siamrl.replay.dataset import Dataset
from siamrl.report.checkpoint import Checkpoints
from siamrl.report.metrics import MetricsWriter
from siamrl.report.progress import COMPILING, MAIN, Progress
from siamrl.report.run_folder import RunFolder
from siamrl.runners import offline
from siamrl.types import Params, TrainState


class Parts(NamedTuple):
  """What learns.

  Attributes:
    state: the learner's fresh state.
    train: (state, iterations that it has behind it) -> progress.
    measure: (online parameters, iteration) -> columns.
  """

  state: TrainState
  train: Callable[[TrainState, int], Iterator[offline.Progress]]
  measure: Callable[[Params, int], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Options:
  """What a launcher says of a run.

  Attributes:
    environment: where the data are from, in words.
    iterations: of the whole run.
    gradient_steps: of the whole run; None where fits end early, for nobody
      knows how many they will take.
    checkpoint_period_s: seconds between two checkpoints, about.
    make_data: (folder, whether the run has learnt from it) -> the data set;
      raises RunError where it cannot be read.
    make_parts: the data set -> what learns from it.
    draw: (folder) -> None; draws what the metrics say.
  """

  environment: str
  iterations: int
  gradient_steps: int | None
  checkpoint_period_s: float
  make_data: Callable[[RunFolder, bool], Dataset]
  make_parts: Callable[[Dataset], Parts]
  draw: Callable[[RunFolder], None]


def run(folder: RunFolder, options: Options, stop: devices.StopRequest) -> None:
  """Learns to the end, or until it is asked to stop, from wherever it stands.

  Args:
    folder: the run's, opened and locked.
    options: what to run.
    stop: true once the user wants the run to stop.

  Raises:
    RunError: a file of the run cannot be read or written, the data set is
      another one, or the learner diverged.
  """
  with folders.run_errors(folder):
    position = _find(folder)
    with folders.edited_errors():
      MetricsWriter.truncate(
        folder.metrics, position.rows, position.rows_checksum
      )
    if position.iteration == options.iterations:
      folders.say_notes(folder)
      Progress(1, 1).message(
        f'finished already: {folder.path}, {options.iterations:,} iterations'
      )
    else:
      _go_on(folder, options, position, stop)
    if folder.metrics.exists():
      running.draw(folder.curve, lambda: options.draw(folder))


class _Position(NamedTuple):
  """Where a run stands.

  Attributes:
    iteration: iterations that are done.
    rows: of metrics, that stay.
    rows_checksum: of these rows; None where it is not known.
    checksum: of the data set; None before the first checkpoint.
  """

  iteration: int
  rows: int
  rows_checksum: str | None
  checksum: int | None


def _checkpoints(folder: RunFolder) -> Checkpoints:
  return Checkpoints(folder.checkpoints)


def _find(folder: RunFolder) -> _Position:
  """Where the newest checkpoint stands that is whole."""
  checkpoints = _checkpoints(folder)
  folders.recover(folder, checkpoints)
  extra = checkpoints.read_extra()
  if extra is None:
    return _Position(0, 0, None, None)
  with folders.checkpoint_errors(folder):
    return _Position(
      extra['iteration'],
      extra['rows'],
      extra.get('rows_sha256'),
      extra['checksum'],
    )


def _go_on(
  folder: RunFolder,
  options: Options,
  position: _Position,
  stop: devices.StopRequest,
) -> None:
  """Learns from where it stands."""
  data = options.make_data(folder, position.checksum is not None)
  checksum = _checksum(data)
  if position.checksum not in (None, checksum):
    raise RunError(
      f'--run_dir={folder.path}: its data set has changed, and is not what '
      'this run has learnt from; --overwrite starts afresh'
    )
  parts = options.make_parts(data)
  state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(parts.state))
  devices.check_room(folder.path, 3 * state_bytes)
  position = position._replace(checksum=checksum)
  with _Run(folder, options, parts, position, stop) as run_:
    run_.train(f'{data.size:,} transitions of {options.environment}')


def _checksum(data: Dataset) -> int:
  """A number that another data set hardly has."""
  value = 0
  for array in data:
    value = zlib.crc32(f'{array.dtype} {array.shape}'.encode(), value)
    value = zlib.crc32(np.ascontiguousarray(array).data, value)
  return value


class _Run(running.Running):
  """A run as it goes on in its folder."""

  def __init__(
    self,
    folder: RunFolder,
    options: Options,
    parts: Parts,
    position: _Position,
    stop: devices.StopRequest,
  ):
    self._options, self._parts, self._begin = options, parts, position
    self._checkpoints = _checkpoints(folder)
    found = self._checkpoints.restore(parts.state)
    self._state = parts.state if found is None else found[0]
    writer = MetricsWriter(
      folder.metrics, folder.events, step_column='gradient_steps'
    )
    total, unit = options.gradient_steps, 'gradient steps'
    if total is None:
      total, unit = options.iterations, 'fits'
    super().__init__(
      folder,
      writer,
      Progress(
        total, position.iteration * total // options.iterations, unit=unit
      ),
      checkpoint_period_s=options.checkpoint_period_s,
      stop=stop,
    )

  def train(self, about: str) -> None:
    """Learns to the end, or until asked to stop.

    Args:
      about: the data set, in words.
    """
    self._announce(about)
    last = self._options.iterations
    self._progress.enter(COMPILING)
    begun = time.monotonic()
    for step in self._parts.train(self._state, self._begin.iteration):
      row = self._write(step, time.monotonic() - begun)
      if step.iteration == self._begin.iteration + 1:
        seconds = time.monotonic() - begun
        self._progress.message(
          f'compiled, with the first iteration, in {seconds:.1f} s'
        )
      self._progress.enter(MAIN)
      if self._overdue() or self._stop or step.iteration == last:
        self._save(step)
      if self._stop and step.iteration < last:
        self._say_stopped(f'after iteration {step.iteration:,} of {last:,}')
        return
      begun = time.monotonic()
    self._progress.message(_line(row))
    self._say_finished()

  def _announce(self, about: str) -> None:
    text = f'starting {self._where}; Ctrl-C saves and stops'
    if self._begin.iteration:
      text = (
        f'resuming {self._where} at iteration {self._begin.iteration:,} of '
        f'{self._options.iterations:,}'
      )
    self._progress.message(f'{text}; learning from {about}')

  def _write(self, step: offline.Progress, seconds: float) -> dict[str, float]:
    """Measures, and writes the row of an iteration."""
    metrics = {name: value.item() for name, value in step.row.items()}
    gradient_steps = metrics.pop('gradient_steps')
    early = self._options.gradient_steps is None
    if early:
      metrics['target_updates'] = step.iteration
    row = {
      'iteration': step.iteration - 1,
      'gradient_steps': gradient_steps,
      'fit_steps': metrics.pop('fit_steps'),
      'target_updates': metrics.pop('target_updates'),
      **metrics,
      **self._parts.measure(step.state.online_params, step.iteration),
      'train_s': seconds,
    }
    self._write_rows([row])
    self._progress.update(
      step.iteration if early else gradient_steps,
      row.get('grid_return', row.get('eval_return')),
    )
    return row

  def _save(self, step: offline.Progress) -> None:
    self._checkpoints.save(
      step.iteration,
      step.state,
      {
        'iteration': step.iteration,
        'checksum': self._begin.checksum,
        **folders.written(self._writer),
      },
    )
    self._saved_at = time.monotonic()


def _line(row: Mapping[str, float]) -> str:
  """What a row comes to, in words."""
  parts = [
    f'iteration {row["iteration"]:,.0f}',
    f'{row["gradient_steps"]:,.0f} gradient steps',
    f'loss {row["loss"]:.4g}',
  ]
  if 'eval_return' in row:
    parts.append(f'evaluation return {row["eval_return"]:.4g}')
  if 'grid_return' in row:
    best = row['grid_optimum']
    parts.append(f'mean return {row["grid_return"]:.4g} of at best {best:.4g}')
  if 'exact_error' in row:
    parts.append(f'largest error of a value {row["exact_error"]:.4g}')
  return ', '.join(parts)
