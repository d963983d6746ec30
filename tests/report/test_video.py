import io
import sys

import numpy as np
import pytest

from siamrl.report.video import write_gif, write_mp4

image_module = pytest.importorskip('PIL.Image')


def read_gif(path, mode):
  """Frames as shown, and milliseconds of each."""
  frames, durations = [], []
  with image_module.open(io.BytesIO(path.read_bytes())) as image:
    assert image.info['loop'] == 0
    for index in range(image.n_frames):
      image.seek(index)
      frames.append(np.asarray(image.convert(mode)))
      durations.append(image.info['duration'])
  return np.stack(frames), durations


def moving_square(count=30):
  """A square of colors on black: few colors, most pixels at rest."""
  frames = np.zeros((count, 84, 60, 3), np.uint8)
  for index in range(count):
    frames[index, index : index + 8, index : index + 8] = (200, 72, 8 * index)
  return frames


def test_few_colors_come_back_exactly(tmp_path):
  frames = moving_square()
  write_gif(tmp_path / 'a.gif', frames, fps=15)
  shown, durations = read_gif(tmp_path / 'a.gif', 'RGB')
  np.testing.assert_array_equal(shown, frames)
  assert set(durations) == {60, 70}
  assert sum(durations) == 2000
  assert (tmp_path / 'a.gif').stat().st_size < 6_000  # raw: 453,600


def test_gray_comes_back_exactly(tmp_path):
  frames = np.random.default_rng(0).integers(
    0, 256, (3, 84, 84), dtype=np.uint8
  )
  write_gif(tmp_path / 'a.gif', frames, fps=50)
  shown, durations = read_gif(tmp_path / 'a.gif', 'L')
  np.testing.assert_array_equal(shown, frames)
  assert durations == [20, 20, 20]


def test_many_colors_come_back_nearly(tmp_path):
  ramp = np.arange(64, dtype=np.uint8) * 4
  frame = np.stack(np.broadcast_arrays(ramp[:, None], ramp, 128), -1)
  frames = np.stack([frame, frame[::-1]]).astype(np.uint8)
  write_gif(tmp_path / 'a.gif', frames, fps=10)
  shown, _ = read_gif(tmp_path / 'a.gif', 'RGB')
  assert np.abs(shown.astype(int) - frames).mean() < 8


@pytest.mark.parametrize(
  'frames',
  [
    np.zeros((2, 4, 4), np.float32),
    np.zeros((0, 4, 4), np.uint8),
    np.zeros((4, 4), np.uint8),
    np.zeros((2, 4, 4, 4), np.uint8),
  ],
)
def test_other_arrays_are_refused(tmp_path, frames):
  with pytest.raises(ValueError, match='frames must be uint8'):
    write_gif(tmp_path / 'a.gif', frames, fps=10)


@pytest.mark.parametrize('fps', [0, -1, 51, float('nan')])
def test_speeds_that_gif_cannot_show_are_refused(tmp_path, fps):
  with pytest.raises(ValueError, match='fps'):
    write_gif(tmp_path / 'a.gif', np.zeros((2, 4, 4), np.uint8), fps=fps)


def test_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'PIL', None)
  with pytest.raises(ImportError, match=r'pip install siamrl\[plots\]'):
    write_gif(tmp_path / 'a.gif', np.zeros((2, 4, 4), np.uint8), fps=10)


def test_an_mp4_has_its_frames_in_even_sides(tmp_path):
  ffmpeg = pytest.importorskip('imageio_ffmpeg')
  frames = np.zeros((12, 33, 20, 3), np.uint8)
  frames[6:, ..., 0] = 255  # black, then red
  write_mp4(tmp_path / 'a.mp4', frames, fps=10)
  reader = ffmpeg.read_frames(str(tmp_path / 'a.mp4'))
  about = next(reader)
  assert about['size'] == (20, 34)
  assert about['fps'] == 10
  shape = (34, 20, 3)
  read = [np.frombuffer(each, np.uint8).reshape(shape) for each in reader]
  assert len(read) == 12
  assert read[0].max() < 40
  assert read[-1][..., 0].min() > 200
  assert read[-1][..., 1:].max() < 60
  assert [path.name for path in tmp_path.iterdir()] == ['a.mp4']
  with pytest.raises(ValueError, match='frames must be'):
    write_mp4(tmp_path / 'b.mp4', frames[:0], fps=10)
