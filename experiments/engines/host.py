"""A run of the host loop in its folder: saving, evaluating, reporting."""

from collections.abc import Callable, Generator, Iterator
import dataclasses
from typing import Any

import jax

from experiments.config.declaring import RunError
from experiments.engines import devices, folders, running
from experiments.engines.running import Moment
from siamrl.replay import segments
from siamrl.replay.host import HostReplay
from siamrl.report.progress import COMPILING, MAIN, Progress
from siamrl.report.run_folder import RunFolder
from siamrl.report.tracking import Track
from siamrl.runners import host
from siamrl.types import TrainState

# Atari frames shrank 30 to 70 times under random play; cautiously, 5 times.
_REPLAY_COMPRESSION = 5

# Phases of a run before it learns.
_REPLAYING = 'playing again'
_WARM_UP = 'warming up'


@dataclasses.dataclass(frozen=True)
class Parts:
  """The parts of a run of the host loop.

  Attributes:
    state: the learner's fresh state.
    seen: the fresh state of the twin's panel; None without one.
    replay: empty.
    config: the configuration of the loop.
    loop: (state, on_change=...) -> generator of the host loop's progress.
    evaluate: (learner's state, iteration) -> generator that yields None while
      it plays and returns the evaluation's columns; None for no evaluation.
    draw: writes the curve.
    frames_per_env_step: emulator frames per env step.
    num_envs: environments stepped at once.
    seed: the seed of the run.
    checkpoint_period_s: seconds between checkpoints, up to the length of a
      chunk; one is also written after each iteration.
    unit: the name of a frame in messages.
    fresh_environments: whether a run resumes in fresh environments if the old
      ones do not return to where it had stopped.
    track: the way to track the run.
  """

  state: TrainState
  seen: host.Seen | None
  replay: HostReplay
  config: host.LoopConfig
  loop: Callable[..., Iterator[host.Progress]]
  evaluate: Callable[[Any, int], Generator[None, None, dict[str, float]]] | None
  draw: Callable[[], None]
  frames_per_env_step: int
  num_envs: int
  seed: int
  checkpoint_period_s: float
  unit: str = 'frame'
  fresh_environments: bool = False
  track: Track = Track()

  @property
  def frames(self) -> int:
    """Frames of the whole run."""
    return self.config.total_env_steps * self.frames_per_env_step


def run(folder: RunFolder, parts: Parts, stop: devices.StopRequest) -> bool:
  """Trains from the last checkpoint to the end, or until asked to stop.

  Args:
    folder: the run's folder, opened and locked.
    parts: the parts of the run.
    stop: true once the user wants the run to stop.

  Returns:
    Whether the run is finished.

  Raises:
    RunError: a checkpoint cannot be read or written, or the learner diverged.
  """
  try:
    return _Run(folder, parts, stop).go()
  except host.EnvironmentsChangedError as error:
    raise RunError(
      f'--run_dir={folder.path}: {error} With --fresh_environments the run '
      'goes on in fresh ones, no longer bit for bit the run it was'
    ) from error


class _Run(running.Running):
  """A run of the host loop in its folder."""

  def __init__(
    self, folder: RunFolder, parts: Parts, stop: devices.StopRequest
  ):
    super().__init__(
      folder,
      stop,
      checkpoint_period_s=parts.checkpoint_period_s,
      track=parts.track,
    )
    self._parts = parts
    self._state = host.LoopState.start(
      parts.state, seed=parts.seed, num_envs=parts.num_envs, seen=parts.seen
    )
    self._saves = 0
    # The row of an iteration that has not been evaluated yet.
    self._pending: dict[str, float] | None = None
    # Of the replay in the newest checkpoint.
    self._manifest: Any = None

  @property
  def _frames(self) -> int:
    return self._state.env_steps * self._parts.frames_per_env_step

  @property
  def finished(self) -> bool:
    return self._frames >= self._parts.frames and self._pending is None

  @property
  def whole(self) -> str:
    return f'{self._frames:,} {self._parts.unit}s'

  @property
  def at(self) -> str:
    return f'at {self._parts.unit} {self._frames:,}'

  def find(self) -> dict[str, Any] | None:
    return folders.recover(self._folder, self._checkpoints, self._check_replay)

  def _check_replay(self, facts: dict[str, Any]) -> None:
    try:
      segments.verify(self._folder.replay, facts['replay'])
    except ValueError as error:
      raise ValueError(f'{self._folder.replay}: {error}') from error

  def stand(self, facts: dict[str, Any]) -> None:
    # The learner's arrays follow in `open`.
    self._state = host.LoopState.from_json(
      self._parts.state, facts['loop'], self._parts.seen
    )
    self._manifest, self._pending = facts['replay'], facts['pending']

  def open(self) -> Progress:
    state, parts = self._state, self._parts
    found = self._checkpoints.restore(_saved(state.train, state.seen))
    if found is not None:
      saved, _, self._saves = found
      state.train, state.seen = (
        saved if parts.seen is not None else (saved, None)
      )
      with folders.checkpoint_errors(self._folder):
        parts.replay.load(self._folder.replay, self._manifest)
    return Progress(parts.frames, self._frames, unit=f'{parts.unit}s')

  def nbytes(self) -> int:
    state_bytes = sum(
      leaf.nbytes for leaf in jax.tree.leaves(self._parts.state)
    )
    shrinks = _REPLAY_COMPRESSION if self._parts.unit == 'frame' else 1
    return 3 * state_bytes + self._parts.replay.nbytes // shrinks

  def train(self) -> Iterator[Moment]:
    self._say_where()
    if self._pending is not None:
      yield from self._finish_iteration(self._pending)
    begun = self._state.env_steps, int(self._state.train.gradient_steps)
    learning = False  # in this process
    # Times that the loop yields before it is back where the run was left.
    replays = len(self._state.actions) // self._parts.config.chunk_env_steps
    self._progress.enter(
      _REPLAYING if replays else self._phase_before_learning()
    )
    on_change = self._say_changed if self._parts.fresh_environments else None
    for _, metrics in self._parts.loop(self._state, on_change=on_change):
      returns = self._state.statistics.returns
      self._progress.update(
        self._frames,
        returns[-1] if returns else None,
        to_come={self._pause: self._iterations_to_come()},
      )
      if self._state.env_steps == begun[0]:
        replays -= 1
        if not replays:
          self._progress.enter(self._phase_before_learning())
      elif not learning:
        # This chunk includes compilation, so its time says little.
        learning = int(self._state.train.gradient_steps) > begun[1]
        self._progress.enter(
          MAIN if learning else self._phase_before_learning()
        )
        if learning and not begun[1]:
          self._progress.message(
            f'first gradient step at {self._parts.unit} {self._frames:,}'
          )
      if metrics is not None:
        yield from self._finish_iteration(metrics)
      else:
        yield self._between()

  def _phase_before_learning(self) -> str:
    """The phase of the next chunk of the loop, if none has learned yet."""
    config = self._parts.config
    to_go = config.warmup_env_steps - self._state.env_steps
    return _WARM_UP if to_go >= config.chunk_env_steps else COMPILING

  @property
  def _pause(self) -> str:
    """The phase between two iterations."""
    return 'saving' if self._parts.evaluate is None else 'evaluating'

  def _iterations_to_come(self) -> int:
    config = self._parts.config
    number = -(-config.total_env_steps // config.iteration_env_steps)
    return number - self._state.iteration

  def _say_where(self) -> None:
    """Says where the run begins or resumes."""
    if not self._saves:
      self._announce()
    elif self._state.actions:
      count = len(self._state.actions) * self._parts.num_envs
      self._announce(
        self.at, f'; playing {count:,} env steps again to get there'
      )
    else:
      self._announce(self.at)

  def _say_changed(self) -> None:
    self._progress.message(
      'the environments did not return to where this run had stopped: it goes '
      'on in fresh ones, and is no longer bit for bit the run that was never '
      'stopped'
    )

  def _between(self) -> Moment:
    """A moment inside an iteration or an evaluation."""
    if self._stop:
      self._progress.message('stopping: writing a checkpoint')
    return Moment.BETWEEN

  def _finish_iteration(self, row: dict[str, float]) -> Iterator[Moment]:
    """Evaluates, writes the row, has it saved, draws."""
    self._pending = row
    with self._progress.during(self._pause):
      if self._parts.evaluate is not None:
        row = row | (yield from self._evaluate(int(row['iteration'])))
      self._pending = None
      self._write_rows([row])
      self._progress.message(_line(row, self._parts.unit))
      yield Moment.DUE
      self._show()

  def _evaluate(
    self, iteration: int
  ) -> Generator[Moment, None, dict[str, float]]:
    assert self._parts.evaluate is not None
    evaluation = self._parts.evaluate(self._state.train, iteration)
    while True:
      try:
        next(evaluation)
      except StopIteration as end:
        return end.value
      self._progress.update(self._frames)  # in a log, a line now and then
      yield self._between()

  def draw(self) -> None:
    self._parts.draw()

  def checkpoint(self) -> tuple[int, Any, dict[str, Any]]:
    facts = {
      'loop': self._state.to_json(),
      'replay': self._manifest,
      'pending': self._pending,
    }
    return self._saves, _saved(self._state.train, self._state.seen), facts

  def _save(self) -> None:
    """Writes a checkpoint: segments of the replay, then what names them.

    The segments of the last checkpoint are kept in case the new one is not
    finished or damaged.
    """
    kept = [] if self._manifest is None else [self._manifest]
    self._manifest = self._parts.replay.save(self._folder.replay)
    self._saves += 1
    super()._save()
    segments.prune(self._folder.replay, self._manifest, *kept)


def _saved(train: TrainState, seen: host.Seen | None) -> Any:
  """The device's arrays that a checkpoint holds."""
  return train if seen is None else (train, seen)


def _line(row: dict[str, float], unit: str) -> str:
  episodes = int(row['train_episodes'])
  training = (
    f'training return {row["train_return"]:.4g} '
    f'({episodes} {"episodes" if episodes > 1 else "episode"})'
    if episodes
    else 'no training episode ended'
  )
  parts = [
    f'iteration {row["iteration"]:.0f}',
    f'{row["frames"]:,.0f} {unit}s',
    training,
  ]
  if 'eval_return' in row:
    parts.append(f'evaluation return {row["eval_return"]:.4g}')
  return ', '.join(parts)
