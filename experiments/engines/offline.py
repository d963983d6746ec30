"""A run on a data set in its folder: saving, measuring, reporting."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import time
from typing import Any, NamedTuple
import zlib

import jax
import numpy as np

from experiments.config.declaring import RunError
from experiments.engines import devices, running
from experiments.engines.running import Moment
from siamrl.replay.dataset import Dataset
from siamrl.report.progress import COMPILING, MAIN, Progress
from siamrl.report.run_folder import RunFolder
from siamrl.report.tracking import Track
from siamrl.runners import offline
from siamrl.types import Params, TrainState


class Parts(NamedTuple):
  """The parts of a run that learn and measure.

  Attributes:
    state: the learner's fresh state.
    train: (state, iterations done) -> progress.
    measure: (online parameters, iteration) -> columns.
  """

  state: TrainState
  train: Callable[[TrainState, int], Iterator[offline.Progress]]
  measure: Callable[[Params, int], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Options:
  """The description of a run.

  Attributes:
    environment: name of the environment that the data are from.
    iterations: the iterations of the whole run.
    gradient_steps: the length of the run; None if fits may end early.
    checkpoint_period_s: seconds between checkpoints, approximately.
    make_data: (folder, whether the run has learned from it) -> the data set;
      raises RunError if it cannot be read.
    make_parts: the data set -> the parts of the run.
    draw: (folder) -> None; draws the metrics.
    track: the way to track the run.
  """

  environment: str
  iterations: int
  gradient_steps: int | None
  checkpoint_period_s: float
  make_data: Callable[[RunFolder, bool], Dataset]
  make_parts: Callable[[Dataset], Parts]
  draw: Callable[[RunFolder], None]
  track: Track = Track()


def run(folder: RunFolder, options: Options, stop: devices.StopRequest) -> None:
  """Learns from the last checkpoint to the end, or until asked to stop.

  Args:
    folder: the run's folder, opened and locked.
    options: the description of the run.
    stop: true once the user wants the run to stop.

  Raises:
    RunError: a file of the run cannot be read or written, the data set is
      another one, or the learner diverged.
  """
  _Run(folder, options, stop).go()


def _checksum(data: Dataset) -> int:
  """A checksum of a data set."""
  value = 0
  for array in data:
    value = zlib.crc32(f'{array.dtype} {array.shape}'.encode(), value)
    value = zlib.crc32(np.ascontiguousarray(array).data, value)
  return value


class _Run(running.Running):
  """A run on a data set in its folder."""

  step_column = 'gradient_steps'

  def __init__(
    self, folder: RunFolder, options: Options, stop: devices.StopRequest
  ):
    super().__init__(
      folder,
      stop,
      checkpoint_period_s=options.checkpoint_period_s,
      track=options.track,
    )
    self._options = options
    self._iteration = 0  # iterations that are done
    # Of the data set; None before the first checkpoint.
    self._checksum: int | None = None

  @property
  def finished(self) -> bool:
    return self._iteration == self._options.iterations

  @property
  def whole(self) -> str:
    return f'{self._options.iterations:,} iterations'

  @property
  def at(self) -> str:
    last = self._options.iterations
    return f'after iteration {self._iteration:,} of {last:,}'

  def stand(self, facts: dict[str, Any]) -> None:
    self._iteration, self._checksum = facts['iteration'], facts['checksum']

  def open(self) -> Progress:
    options = self._options
    data = options.make_data(self._folder, self._checksum is not None)
    checksum = _checksum(data)
    if self._checksum not in (None, checksum):
      raise RunError(
        f'--run_dir={self._folder.path}: its data set has changed, and is not '
        'what this run has learned from; --overwrite starts afresh'
      )
    self._checksum = checksum
    self._about = f'{data.size:,} transitions of {options.environment}'
    self._parts = options.make_parts(data)
    found = self._checkpoints.restore(self._parts.state)
    self._state = self._parts.state if found is None else found[0]
    total, unit = options.gradient_steps, 'gradient steps'
    if total is None:
      total, unit = options.iterations, 'fits'
    done = self._iteration * total // options.iterations
    return Progress(total, done, unit=unit)

  def nbytes(self) -> int:
    return 3 * sum(leaf.nbytes for leaf in jax.tree.leaves(self._parts.state))

  def train(self) -> Iterator[Moment]:
    first, last = self._iteration, self._options.iterations
    at = f'at iteration {first:,} of {last:,}' if first else ''
    self._announce(at, f'; learning from {self._about}')
    self._progress.enter(COMPILING)
    begun = time.monotonic()
    for step in self._parts.train(self._state, first):
      self._iteration, self._state = step.iteration, step.state
      row = self._write(step, time.monotonic() - begun)
      if step.iteration == first + 1:
        seconds = time.monotonic() - begun
        self._progress.message(
          f'compiled, with the first iteration, in {seconds:.1f} s'
        )
      self._progress.enter(MAIN)
      yield Moment.BETWEEN
      begun = time.monotonic()
    self._progress.message(_line(row))

  def _write(self, step: offline.Progress, seconds: float) -> dict[str, float]:
    """Measures and writes the row of an iteration."""
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

  def checkpoint(self) -> tuple[int, Any, dict[str, Any]]:
    facts = {'iteration': self._iteration, 'checksum': self._checksum}
    return self._iteration, self._state, facts

  def draw(self) -> None:
    self._options.draw(self._folder)


def _line(row: Mapping[str, float]) -> str:
  """A row in words."""
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
