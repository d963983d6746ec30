"""Images to learn representations from, and to judge them by."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config.declaring import (
  Bound,
  POSITIVE,
  RunError,
  UsageError,
  When,
  group,
  one_of,
  option,
  option_errors,
  options_of,
  path_option,
  refuse,
)
from siamrl import images as pictures, probing
from siamrl.augment import AUGMENTATIONS
from siamrl.envs import frames
from siamrl.envs.ale import resolve_game
from siamrl.networks.siamese import as_float
from siamrl.types import Metrics

# Frames of a game: frames:pong.
_FRAMES = re.compile(r'frames:(.*)')

# Most names of classes to show; there may be thousands.
_SHOWN = 10

_PART = Bound(lambda x: 0 < x < 1, 'in (0, 1)')
_PLAYED = When(
  lambda config: _FRAMES.fullmatch(config.images) is not None,
  'with --images=frames:GAME',
)


@dataclasses.dataclass(frozen=True)
class ImageOptions:
  """The options of the images, and of evaluations on them."""

  _data: Any = group('The images')
  images: str = path_option(
    'digits',
    'Images to learn from: digits (8 x 8) or mnist5k (28 x 28), which come '
    'with packages; frames:GAME, of an Atari game played at random; or the '
    'path of an .npz file, or of a folder of PNG and JPEG files, with or '
    'without a sub-folder for each class.',
    single=True,
    common=True,
  )
  held_out_fraction: float = option(
    0.2, 'Fraction of images held out for evaluation.', _PART, single=True
  )
  frames: int = option(
    5_000,
    'Number of frames to collect from the game.',
    POSITIVE,
    single=True,
    when=_PLAYED,
    refused=True,
  )
  ram_byte: int = option(
    -1,
    "Byte of the game's memory that labels frames, in 8 classes of about the "
    'same size; -1 for no labels.',
    Bound(lambda x: -1 <= x < 128, 'from -1 to 127'),
    single=True,
    when=_PLAYED,
    refused=True,
  )

  _evaluation: Any = group('Evaluation, after each iteration')
  judged_as: str = option(
    'none',
    'Augmentation applied once to the images that evaluations use',
    one_of(AUGMENTATIONS),
    single=True,
    value_alias={'colour': 'color'},
  )
  neighbors: int = option(
    20,
    'Number of nearest neighbors, by cosine, that vote on a class.',
    POSITIVE,
    single=True,
    alias=('neighbours',),
  )
  vote_temperature: float = option(
    0.07, "Temperature of nearest neighbors' votes.", POSITIVE, single=True
  )
  probe_ridge: float = option(
    1e-3, 'Relative ridge penalty of the linear probe.', POSITIVE, single=True
  )


class Task(NamedTuple):
  """Images to learn from, and to judge representations by.

  Attributes:
    name: the name in folders and titles.
    train: images [N, H, W, C], and labels or None.
    held_out: the same.
    judged: float32 views of both by which representations are judged.
    accuracies: (name of features, the labels of both, features [N, F] of the
      images to learn from, [M, F] of those held out) -> accuracies with these
      features; empty without labels.
    known: accuracies from the pixels of the judged images.
    notes: lines about the images for the user.
  """

  name: str
  train: pictures.Images
  held_out: pictures.Images
  judged: tuple[jax.Array, jax.Array]
  accuracies: Callable[[str, Sequence[Any], jax.Array, jax.Array], Metrics]
  known: Metrics
  notes: tuple[str, ...]


def make_task(config: ImageOptions) -> Task:
  """Reads the images that the options name; repeats return the same arrays."""
  names = [field.name for field, _ in options_of(ImageOptions)]
  return _make_task(
    ImageOptions(**{name: getattr(config, name) for name in names})
  )


def check_source(config: ImageOptions) -> None:
  """Raises UsageError for images that are none of a package and no file."""
  source = config.images
  if source in pictures.NAMES or pathlib.Path(source).exists():
    return
  game = _FRAMES.fullmatch(source)
  if not game:
    raise _unknown(config)
  with option_errors('images', source):
    resolve_game(game[1])


def _unknown(config: ImageOptions) -> UsageError:
  return UsageError(
    f'--images={config.images}: no such file or folder, and none of '
    f'{", ".join(pictures.NAMES)}, frames:GAME'
  )


@functools.cache
def _make_task(config: ImageOptions) -> Task:
  """Reads the images; caches them by these options only."""
  try:
    (train, held_out), classes = _load(config)
  except FileNotFoundError as error:
    if config.images in pictures.NAMES:
      raise RunError(f'--images={error}') from error
    raise _unknown(config) from error
  except (ValueError, ImportError, OSError) as error:
    kind = UsageError if isinstance(error, ValueError) else RunError
    text = str(error).removeprefix(f'{pathlib.Path(config.images)}: ')
    text = ' '.join(text.splitlines())  # names of files may hold any character
    raise kind(f'--images={config.images}: {text}') from error
  if config.neighbors > len(train.images):
    refuse(
      config,
      'neighbors',
      f'be at most the {len(train.images)} images to learn from',
    )
  accuracies = functools.partial(_accuracies, config, classes)
  with option_errors('judged_as', config.judged_as):
    judged, known = _look(config, accuracies, (train, held_out))
  return Task(
    re.sub(r'\W+', '_', config.images).strip('_'),
    train,
    held_out,
    judged,
    accuracies,
    jax.device_get(known),
    _notes(config.images, len(train.images) + len(held_out.images), classes),
  )


def _load(config: ImageOptions) -> tuple[pictures.Split, int]:
  """The images of both parts, on the device, and the number of classes."""
  game = _FRAMES.fullmatch(config.images)
  if game:
    byte = None if config.ram_byte < 0 else config.ram_byte
    loaded = frames.collect_frames(game[1], config.frames, ram_byte=byte)
  else:
    loaded = pictures.load_images(config.images)
  classes = 0
  if loaded.labels is not None:
    # Labels without gaps, as each class is a column of the probe.
    found, labels = np.unique(loaded.labels, return_inverse=True)
    if len(found) > 1:
      loaded, classes = loaded._replace(labels=labels), len(found)
    else:  # such as those of a folder in a folder
      loaded = loaded._replace(labels=None)
  # All seeds have the same split. Whole episodes of frames are held out.
  parts = pictures.split(
    *loaded, config.held_out_fraction, seed=None if game else 0
  )
  return jax.tree.map(jnp.asarray, parts), classes


def _notes(source: str, number: int, classes: int) -> tuple[str, ...]:
  """A summary of the images that were read, for the user to check."""
  listing = None
  if source not in pictures.NAMES and pathlib.Path(source).is_dir():
    listing = pictures.list_folder(source)
  names = listing.classes if listing else ()
  shown = f': {", ".join(names[:_SHOWN])}' if names else ''
  shown += ', ...' if len(names) > _SHOWN else ''
  if classes:
    lines = [f'{number:,} images of {classes} classes{shown}']
  elif names:
    lines = [
      f'{number:,} images of one class only{shown}; there is nothing to tell '
      'apart, and no accuracy is measured'
    ]
  else:
    lines = [f'{number:,} images without labels']
  if listing and listing.unread:
    lines.append(f'not read: {pictures.describe(listing.unread)}')
  if listing and listing.empty:
    lines.append(f'no images in {", ".join(listing.empty)}')
  # Names of files may hold any character.
  return tuple(
    ' '.join(f'--images={source}: {line}'.splitlines()) for line in lines
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _look(
  config: ImageOptions,
  accuracies: Callable[[str, Sequence[Any], jax.Array, jax.Array], Metrics],
  parts: pictures.Split,
) -> tuple[tuple[jax.Array, jax.Array], Metrics]:
  """One view of each image, the same for all runs, and accuracies by pixels."""

  def view(number: int, raw: Any) -> jax.Array:
    keys = jax.random.split(jax.random.key(number), len(raw))
    return jax.vmap(AUGMENTATIONS[config.judged_as])(keys, as_float(raw))

  train, held_out = (view(n, part.images) for n, part in enumerate(parts))
  pixels = [seen.reshape(len(seen), -1) for seen in (train, held_out)]
  labels = [part.labels for part in parts]
  return (train, held_out), accuracies('pixels', labels, *pixels)


def _accuracies(
  config: ImageOptions,
  classes: int,
  name: str,
  labels: Sequence[Any],
  train: jax.Array,
  held_out: jax.Array,
) -> Metrics:
  """Computes `Task.accuracies`."""
  if not classes:
    return {}
  known, asked = labels
  found = probing.accuracies(
    train,
    known,
    held_out,
    asked,
    num_classes=classes,
    neighbors=config.neighbors,
    temperature=config.vote_temperature,
    ridge=config.probe_ridge,
  )
  return {f'{judge}_{name}': value for judge, value in found.items()}
