"""Plays with a trained agent, prints returns and writes a video.

  python -m experiments.enjoy runs/road_runner-dqn-0 --episodes=2 \\
      --output=road_runner.gif

The networks are those of the newest whole checkpoint, and act as in the run's
evaluations, with its --eval_epsilon. The run may be going on; nothing is
written to its folder. Of a sweep whose runs share a folder, --run chooses one:
by its number, or by its values and seed, such as --run=tau=0.1,seed=2.

OUTPUT ends in .gif, or in .mp4 (pip install siamrl[export]). Without it nothing
is drawn. What cannot be drawn is still played: a line says why there is no
video. Robots are drawn by MuJoCo, without a display by EGL unless the
environment variable MUJOCO_GL says otherwise.

Exit codes: 0 if all episodes are played, 2 for invalid flags, 1 for any other
error.
"""

import dataclasses
import pathlib
import sys

import numpy as np

from experiments.config.declaring import (
  POSITIVE,
  RunError,
  UINT32,
  UsageError,
  one_of,
  option,
  path_option,
  refuse,
)
from experiments.config.executing import run
from experiments.config.startup import PLATFORMS
from experiments.engines import devices
from experiments.stored import finding
from experiments.stored.playing import Play, play
from siamrl.optional import import_optional
from siamrl.report.video import write_gif, write_mp4

_WRITERS = {'.gif': write_gif, '.mp4': write_mp4}
# GIFs are not faster.
_MOST_FPS = 50


@dataclasses.dataclass(frozen=True)
class EnjoyConfig:
  """The options."""

  run_dir: str | None = path_option(
    None,
    'Folder of the run; or after the flags, without a name.',
  )
  run: str | None = option(
    None,
    'Run of a sweep: its number from 0, or its values and seed, such as '
    'tau=0.1,seed=2.',
  )
  episodes: int = option(3, 'Episodes to play', POSITIVE, most=100_000)
  seed: int = option(0, 'Seed of the episodes.', UINT32)
  output: str | None = path_option(
    None, 'Video to write, whose name ends in .gif or .mp4.'
  )
  frames: int = option(
    1_800, 'Most pictures in the video; play goes on without.', POSITIVE
  )
  overwrite: bool = option(False, 'Replace a video that exists.')
  platform: str | None = option(
    None,
    'Device to compute on; the best that JAX finds if not given',
    one_of(PLATFORMS),
  )


def main(config: EnjoyConfig) -> None:
  """Plays, prints and writes."""
  if config.run_dir is None:
    raise UsageError('--run_dir must be given')
  output = _check_output(config)
  devices.configure(config.platform)
  stored = finding.find_run(config.run_dir, config.run)
  result = play(
    stored,
    episodes=config.episodes,
    seed=config.seed,
    most_frames=config.frames if output else 0,
  )
  _print(result)
  if output is None:
    return
  if not len(result.frames):
    reason = result.undrawn or 'it shows nothing'
    print(f'note: no video: {reason}', file=sys.stderr)
    return
  try:
    write = _WRITERS[output.suffix]
    write(output, result.frames, min(result.fps, _MOST_FPS))
  except (ImportError, OSError) as error:
    raise RunError(f'--output={output}: {error}') from error
  print(f'{output}: {len(result.frames)} frames')


def _check_output(config: EnjoyConfig) -> pathlib.Path | None:
  """The video to write; raises before anything is played."""
  if config.output is None:
    return None
  path = pathlib.Path(config.output)
  if path.suffix not in _WRITERS:
    refuse(config, 'output', f'end in {" or ".join(_WRITERS)}')
  if not path.parent.is_dir():
    refuse(config, 'output', 'lie in a folder that exists')
  if path.exists() and not config.overwrite:
    refuse(config, 'output', 'name a new file, or --overwrite replaces it')
  try:
    if path.suffix == '.mp4':
      import_optional('imageio_ffmpeg', 'MP4 needs imageio-ffmpeg', 'export')
    else:
      import_optional('PIL.Image', 'GIFs need Pillow', 'plots')
  except ImportError as error:
    raise RunError(f'--output={path}: {error}') from error
  return path


def _print(result: Play) -> None:
  """Prints the return of each episode, and their mean."""
  for number, (score, steps) in enumerate(
    zip(result.returns, result.lengths, strict=True), 1
  ):
    print(f'episode {number}: return {score:.6g} in {steps:,} env steps')
  if len(result.returns) > 1:
    spread = np.std(result.returns, ddof=1)
    print(f'mean return {np.mean(result.returns):.6g}, sd {spread:.4g}')
  if result.cut:
    print(f'{result.cut} episodes were cut after {max(result.lengths):,} steps')


if __name__ == '__main__':
  run(EnjoyConfig, __doc__, main, listed='run_dir')
