"""Videos of episodes, as animated GIFs or MP4."""

import io
import os
import pathlib
from typing import Any
import warnings

import numpy as np

from siamrl.optional import import_optional
from siamrl.report.run_folder import write_atomically

_MAX_FPS = 50  # players slow down frames shorter than 20 ms
_COLORS = 256  # in one GIF palette


def write_gif(
  path: str | os.PathLike[str], frames: np.ndarray, fps: float
) -> None:
  """Writes frames as an animated GIF that repeats forever.

  Gray frames, and frames with at most 256 colors in all, as in most Atari
  games, are exact; others are reduced to 256 colors per frame.

  Args:
    path: the file; its directory exists.
    frames: uint8 [T, H, W, 3] colors or [T, H, W] gray levels, T at least 1.
    fps: frames per second, at most 50. GIF counts in hundredths of a second,
      so single frames are rounded, but the total length is kept.

  Raises:
    ImportError: if Pillow is not installed, or cannot be imported.
    OSError: if the file cannot be written.
    ValueError: if the frames or `fps` are not as described.
  """
  frames = _checked(frames)
  if not 0 < fps <= _MAX_FPS:
    raise ValueError(f'fps must be above 0 and at most {_MAX_FPS}, not {fps}')
  images = _images(frames)
  content = io.BytesIO()
  images[0].save(
    content,
    format='GIF',
    save_all=True,
    append_images=images[1:],
    duration=_durations_ms(len(images), fps),
    loop=0,
    optimize=True,
  )
  write_atomically(pathlib.Path(path), content.getvalue())


def write_mp4(
  path: str | os.PathLike[str], frames: np.ndarray, fps: float
) -> None:
  """Writes frames as a video of H.264, which browsers and phones play.

  Sides of an odd length, which H.264 does not have, get another row or column.

  Args:
    path: the file, whose name ends in .mp4; its directory exists.
    frames: uint8 [T, H, W, 3] colors or [T, H, W] gray levels, T at least 1.
    fps: frames per second, above 0.

  Raises:
    ImportError: if imageio-ffmpeg is not installed, or cannot be imported.
    OSError: if the file cannot be written.
    ValueError: if the frames or `fps` are not as described.
  """
  frames = _checked(frames)
  if not fps > 0:
    raise ValueError(f'fps must be above 0, not {fps}')
  ffmpeg = import_optional(
    'imageio_ffmpeg', 'MP4 needs imageio-ffmpeg', 'export'
  )
  if frames.ndim == 3:
    frames = np.repeat(frames[..., None], 3, axis=-1)
  height, width = frames.shape[1:3]
  odd = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.tmp.mp4')
  size = width + width % 2, height + height % 2
  writer = ffmpeg.write_frames(
    str(temporary), size, fps=fps, macro_block_size=2, quality=8
  )
  try:
    with warnings.catch_warnings():
      # JAX warns of forks; this one only starts another program.
      warnings.filterwarnings('ignore', 'os.fork', RuntimeWarning)
      writer.send(None)
      for frame in frames:
        writer.send(np.ascontiguousarray(np.pad(frame, odd[1:], 'edge')))
    writer.close()
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _checked(frames: np.ndarray) -> np.ndarray:
  """Raises ValueError for what is not frames."""
  frames = np.asarray(frames)
  if (
    frames.dtype != np.uint8
    or frames.size == 0
    or not (frames.ndim == 3 or frames.ndim == 4 and frames.shape[-1] == 3)
  ):
    raise ValueError(
      'frames must be uint8 [T, H, W, 3] or [T, H, W] and not empty, not '
      f'{frames.dtype} {list(frames.shape)}'
    )
  return frames


def _durations_ms(count: int, fps: float) -> list[int]:
  """Returns the milliseconds of each frame, in whole hundredths of a second."""
  ends = np.round(np.arange(count + 1) * (100.0 / fps)).astype(int)
  return [int(hundredths) * 10 for hundredths in np.diff(ends)]


def _images(frames: np.ndarray) -> list[Any]:
  """Returns Pillow images, with one palette for all if that is exact."""
  Image = import_optional('PIL.Image', 'videos need Pillow', 'plots')
  if frames.ndim == 3:
    return [Image.fromarray(frame) for frame in frames]
  seen = np.zeros(1 << 24, bool)  # by color: faster than sorting the pixels
  for frame in frames:
    seen[_packed(frame)] = True
  colors = np.flatnonzero(seen)
  if len(colors) > _COLORS:
    return [Image.fromarray(frame).quantize(_COLORS) for frame in frames]
  index = np.zeros(1 << 24, np.uint8)
  index[colors] = np.arange(len(colors))
  palette = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], -1)
  images = [Image.fromarray(index[_packed(frame)]) for frame in frames]
  for image in images:
    image.putpalette(palette.astype(np.uint8).tobytes())
  return images


def _packed(frame: np.ndarray) -> np.ndarray:
  """Packs colors [H, W, 3] into one number each, [H, W]."""
  wide = frame.astype(np.uint32)
  return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
