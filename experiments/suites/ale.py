"""Atari 2600 games: emulators on the host."""

import contextlib
import copy
import functools
import pathlib
from typing import Any

import numpy as np

from experiments.config import learning
from experiments.config.declaring import RunError, UsageError, refuse
from siamrl import augment
from siamrl.augment import Augmentation
from siamrl.envs.ale import AtariEnvironments, AtariProtocol, resolve_game
from siamrl.networks.q_network import QNetwork, nature_network
from siamrl.optional import import_optional
from siamrl.report.human_normalized import human_normalized
from siamrl.report.video import write_gif
from siamrl.runners import evaluation

# Emulators start one after the other.
MOST_EMULATORS = 1_024
# Measured memory of an emulator.
_EMULATOR_NBYTES = 1_500_000

AUGMENTATIONS = {
  'none': 'no augmentation',
  'shift': 'moved by up to 4 pixels (DrQ)',
  'shift_intensity': 'shift, and brighter or darker by about 5 % (SPR)',
}
_AUGMENT: dict[str, Augmentation] = {
  'shift': functools.partial(augment.shift, pixels=4),
  'shift_intensity': augment.AUGMENTATIONS['frames'],
}


class Suite:
  """A game of the Arcade Learning Environment; see `host_runs.Suite`."""

  unit, x = 'frame', 'frames'
  environment_nbytes = _EMULATOR_NBYTES
  derived: dict[str, Any] = {}

  def __init__(self, config: Any):
    """Looks at one emulator.

    Args:
      config: the options, with the game's name as the emulator has it.
    """
    self._config = config
    self.name: str = config.game
    self.frames_per_env_step: int = config.frame_skip
    self.loop_options = {
      'life_loss_terminates': config.life_loss_terminates,
      'overlapped': config.acting == 'overlapped',
    }
    with contextlib.closing(self._environments(0, 1)) as spaces:
      self.spaces = spaces

  def of(self, config: Any) -> 'Suite':
    """The same game with other options."""
    other = copy.copy(self)
    other._config = config
    return other

  @property
  def eval_envs(self) -> int:
    """The number of emulators that an evaluation steps at once."""
    return self._config.eval_envs

  @property
  def eval_quota(self) -> dict[str, int]:
    """The length of an evaluation; empty for no evaluation."""
    config = self._config
    if config.eval_frames:
      return {'env_steps': config.eval_frames // config.frame_skip}
    return {'episodes': config.eval_episodes} if config.eval_episodes else {}

  def _environments(
    self, seed: int, num_envs: int, *, color: bool = False
  ) -> AtariEnvironments:
    config = self._config
    return AtariEnvironments(
      config.game,
      num_envs,
      seed=seed,
      protocol=AtariProtocol(
        sticky_action_probability=config.sticky_action_probability,
        noop_max=config.noop_max,
        frame_skip=config.frame_skip,
        frame_cap=config.frame_cap,
        full_action_set=config.full_action_set,
        fire_on_reset=config.fire_on_reset,
      ),
      color=color,
    )

  def make(self, seed: int) -> AtariEnvironments:
    """Emulators to collect with."""
    return self._environments(seed, self._config.num_envs)

  def make_eval(self, seed: int) -> AtariEnvironments:
    """Emulators to evaluate with."""
    return self._environments(seed, self._config.eval_envs)

  def columns(self, result: evaluation.Evaluation) -> dict[str, float]:
    """The columns of metrics.csv for an evaluation."""
    score = float(np.mean(result.returns)) if result.returns else float('nan')
    return {
      'eval_episodes': len(result.returns),
      'eval_return': score,
      'eval_human_normalized': human_normalized(self.name, score),
      'eval_frames': result.env_steps * self.frames_per_env_step,
    }

  def film(self, seed: int) -> 'Film | None':
    """The recorder of an evaluation's first episode, with --video."""
    if not self._config.video:
      return None
    emulators = self._environments(seed, self._config.eval_envs, color=True)
    return Film(emulators, fps=self.fps)

  @property
  def fps(self) -> float:
    """Frames per second of a recording: of play, or the most of a GIF."""
    return min(60 / self.frames_per_env_step, 50)

  def make_film(self, seed: int, most: int) -> 'Film':
    """The recorder of all episodes that one emulator plays from a seed.

    Args:
      seed: the seed of the emulator that plays.
      most: frames after which recording ends.
    """
    emulators = self._environments(seed, 1, color=True)
    return Film(emulators, self.fps, episodes=None, most=most)

  def make_alone(self, seed: int) -> AtariEnvironments:
    """One emulator as in evaluations."""
    return self._environments(seed, 1)

  def notes(self) -> tuple[str, ...]:
    """No notes."""
    return ()

  def network(self, config: Any) -> QNetwork:
    """The network of action values that the options describe."""
    return nature_network(
      self.spaces.num_actions,
      hidden_units=config.hidden_units,
      padding=config.padding,
      **learning.network_options(config),
    )

  @property
  def augment(self) -> Augmentation | None:
    """The augmentation of the frames that are learned from."""
    if self._config.augmentation == 'none':
      return None
    return augment.of_frames(_AUGMENT[self._config.augmentation])


def find_game(name: str) -> str:
  """The emulator's name of a game, in any spelling."""
  try:
    return resolve_game(name)
  except ValueError as error:
    raise UsageError(f'--game={name}: {error}') from error
  except ImportError as error:
    raise RunError(str(error)) from error


def check(config: Any) -> None:
  """Raises UsageError for options that do not go together."""
  round_frames = config.frame_skip * max(config.num_envs, config.train_period)
  for name in ('frames', 'iteration_frames'):
    if getattr(config, name) % round_frames:
      refuse(
        config,
        name,
        f'be a multiple of {round_frames}, the frames of a '
        'round (--frame_skip times the larger of --train_period and '
        '--num_envs)',
      )
  if config.eval_frames and config.eval_episodes:
    refuse(
      config,
      'eval_episodes',
      f'be 0 where --eval_frames={config.eval_frames} is not',
    )
  if 0 < config.eval_frames < config.frame_skip:
    refuse(
      config,
      'eval_frames',
      f'be 0, or at least --frame_skip={config.frame_skip}',
    )
  if not config.video:
    return
  try:
    import_optional('PIL.Image', '--video needs Pillow', 'plots')
  except ImportError as error:
    raise RunError(str(error)) from error


class Film:
  """Records episodes of the first emulator, in color.

  A second set of emulators with the same seed, fed the same actions, plays the
  same episodes; the one that the agent sees is gray and small.

  Attributes:
    frames: uint8 [H, W, 3] each, so far.
  """

  def __init__(
    self,
    environments: AtariEnvironments,
    fps: float,
    *,
    episodes: int | None = 1,
    most: int = 1_800,
  ):
    """Starts the emulators.

    Args:
      environments: in color; they are closed with the recorder.
      fps: frames per second.
      episodes: episodes to record; None for all.
      most: frames after which recording ends: two minutes of play at 4 emulator
        frames a step.
    """
    self._environments, self._fps = environments, fps
    self._to_come, self._most = episodes, most
    self.frames = [environments.reset()[0, -1]]

  def watch(self, actions: np.ndarray) -> None:
    """Steps the emulators by one action each."""
    if self._to_come == 0 or len(self.frames) >= self._most:
      return
    self._environments.send(actions)
    step = self._environments.recv()
    self.frames.append(step.final_obs[0, -1])
    if not (step.terminated[0] or step.truncated[0]):
      return
    if self._to_come is None:
      self.frames.append(step.obs[0, -1])
    else:
      self._to_come -= 1

  def write(self, path: pathlib.Path) -> None:
    """Writes the recording as a GIF."""
    path.parent.mkdir(exist_ok=True)
    write_gif(path, np.stack(self.frames), fps=self._fps)

  def close(self) -> None:
    """Closes the emulators."""
    self._environments.close()
