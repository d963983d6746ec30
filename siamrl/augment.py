"""Random changes of an image that keep its content.

Each function takes a key and one image, float32 [H, W, C] in [0, 1], and
returns an image of the same shape; the caller vmaps over images, each with its
own key. All are cheap enough to be drawn anew in every gradient step.
"""

from collections.abc import Callable
import functools
import math

import chex
import jax
import jax.numpy as jnp

from siamrl.parameters import FieldError

Augmentation = Callable[[chex.PRNGKey, chex.Array], chex.Array]

# Perceived brightness of red, green and blue (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)


def _clipped(image: chex.Array) -> chex.Array:
  return jnp.clip(image, 0.0, 1.0)


def _gray(image: chex.Array) -> chex.Array:
  """The image in gray, [H, W, 1]."""
  if image.shape[-1] == 1:
    return image
  if image.shape[-1] != 3:
    raise ValueError(
      f'images must be gray or of 3 colors, not of {image.shape[-1]} channels'
    )
  return jnp.sum(image * jnp.asarray(_LUMA), -1, keepdims=True)


def _taps(pixels: int, start: chex.Numeric, share: chex.Numeric) -> chex.Array:
  """Bilinear weights [pixels, pixels] of the old pixels in each new one.

  Args:
    pixels: length of the side.
    start: start of the window, as a fraction of the side.
    share: length of the window, as a fraction of the side.
  """
  old = jnp.arange(pixels)
  centers = start * pixels + (old + 0.5) * share - 0.5
  centers = jnp.clip(centers, 0, pixels - 1)
  return jnp.maximum(0.0, 1 - jnp.abs(centers[:, None] - old))


def random_resized_crop(
  key: chex.PRNGKey,
  image: chex.Array,
  *,
  scale: tuple[float, float] = (0.2, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> chex.Array:
  """Crops a random window and resizes it to the image (Szegedy et al. 2015).

  The window's area is uniform, and the logarithm of its aspect ratio is uniform
  over those at which a window of that area fits. (Other implementations draw
  both until they fit, which yields fewer large windows.) Pixels are
  interpolated bilinearly.

  Args:
    key: random key.
    image: [H, W, C].
    scale: (least, greatest) area, as a fraction of the image's, in (0, 1].
    ratio: (least, greatest) aspect ratio, width over height, relative to the
      image's; the range must contain 1.

  Raises:
    ValueError: a range is invalid.
  """
  if not 0 < scale[0] <= scale[1] <= 1:
    raise FieldError('scale', scale, 'must be a range in (0, 1]')
  if not 0 < ratio[0] <= 1 <= ratio[1]:
    raise FieldError('ratio', ratio, 'must be a range around 1')
  chance = jax.random.uniform(key, (4,))
  area = scale[0] + chance[0] * (scale[1] - scale[0])
  low = jnp.maximum(math.log(ratio[0]), jnp.log(area))
  high = jnp.minimum(math.log(ratio[1]), -jnp.log(area))
  aspect = jnp.exp(low + chance[1] * (high - low))
  sides = jnp.stack([jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)])
  starts = chance[2:] * (1 - sides)
  rows, columns = (
    _taps(pixels, start, share)
    for pixels, start, share in zip(image.shape[:2], starts, sides, strict=True)
  )
  # Matrix products are faster on a CPU than gathering pixels.
  cropped = jnp.einsum(
    'ih,jw,hwc->ijc', rows, columns, image, precision='highest'
  )
  # The weights add up to 1 only up to rounding.
  return _clipped(cropped)


def horizontal_flip(
  key: chex.PRNGKey, image: chex.Array, *, probability: float = 0.5
) -> chex.Array:
  """Mirrors the image left to right with a probability."""
  flip = jax.random.bernoulli(key, probability)
  return jnp.where(flip, image[:, ::-1], image)


def shift(key: chex.PRNGKey, image: chex.Array, *, pixels: int) -> chex.Array:
  """Shifts the image, repeating its border (Yarats et al. 2021, DrQ).

  Args:
    key: random key.
    image: [H, W, C], of any dtype.
    pixels: the largest shift up, down, left or right, >= 0; all shifts are
      equally likely.
  """
  padded = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), 'edge')
  row, column = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
  return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)


def intensity(
  key: chex.PRNGKey, image: chex.Array, *, amount: float
) -> chex.Array:
  """Multiplies the image by 1 + amount * n, n normal and clipped to [-2, 2].

  SPR does this to Atari frames with amount 0.05 (mila-iqia/spr, models.py);
  here the result is also clipped to [0, 1].
  """
  noise = jnp.clip(jax.random.normal(key), -2.0, 2.0)
  return _clipped(image * (1 + amount * noise))


def jitter(
  key: chex.PRNGKey,
  image: chex.Array,
  *,
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
) -> chex.Array:
  """Changes brightness, contrast and saturation, in this order.

  Each is multiplied by a factor from U(1 - x, 1 + x), relative to black, the
  mean gray, and the gray of each pixel respectively, as in torchvision's
  ColorJitter, which also changes the hue and shuffles the order. The saturation
  of a gray image does not change.

  Args:
    key: random key.
    image: [H, W, C] with C = 1 or 3.
    brightness: x of the brightness, in [0, 1].
    contrast: x of the contrast, in [0, 1].
    saturation: x of the saturation, in [0, 1].
  """
  amounts = jnp.stack([brightness, contrast, saturation])
  factors = 1 + amounts * jax.random.uniform(key, (3,), minval=-1, maxval=1)
  image = _clipped(factors[0] * image)
  mean = jnp.mean(_gray(image))
  image = _clipped(mean + factors[1] * (image - mean))
  gray = _gray(image)
  return _clipped(gray + factors[2] * (image - gray))


def gaussian_noise(
  key: chex.PRNGKey, image: chex.Array, *, std: float
) -> chex.Array:
  """Adds normal noise to each entry."""
  return _clipped(image + std * jax.random.normal(key, image.shape))


def random_mask(
  key: chex.PRNGKey, image: chex.Array, *, probability: float
) -> chex.Array:
  """Blackens each pixel with a probability."""
  keep = jax.random.bernoulli(key, 1 - probability, (*image.shape[:2], 1))
  return jnp.where(keep, image, 0.0)


def cutout(key: chex.PRNGKey, image: chex.Array, *, pixels: int) -> chex.Array:
  """Blackens a square around a random pixel (DeVries & Taylor 2017).

  The square may reach beyond the image.

  Args:
    key: random key.
    image: [H, W, C].
    pixels: side of the square.
  """
  sides = image.shape[:2]
  centers = jax.random.randint(key, (2,), 0, jnp.array(sides))
  # The middle of an even square lies between two pixels.
  rows, columns = (
    jnp.abs(2 * (jnp.arange(side) - center) + 1 - pixels % 2) < pixels
    for side, center in zip(sides, centers, strict=True)
  )
  return jnp.where((rows[:, None] & columns)[..., None], 0.0, image)


def color_drop(
  key: chex.PRNGKey, image: chex.Array, *, probability: float
) -> chex.Array:
  """Makes the image gray, with a probability; [H, W, C] with C = 1 or 3."""
  drop = jax.random.bernoulli(key, probability)
  return jnp.where(drop, _gray(image), image)


def sometimes(augmentation: Augmentation, probability: float) -> Augmentation:
  """Applies an augmentation with a probability."""

  def augment(key: chex.PRNGKey, image: chex.Array) -> chex.Array:
    whether_key, key = jax.random.split(key)
    whether = jax.random.bernoulli(whether_key, probability)
    return jnp.where(whether, augmentation(key, image), image)

  return augment


def compose(*augmentations: Augmentation) -> Augmentation:
  """Applies augmentations one after the other, each with its own key."""

  def augment(key: chex.PRNGKey, image: chex.Array) -> chex.Array:
    keys = jax.random.split(key, len(augmentations))
    for augmentation, one in zip(augmentations, keys, strict=True):
      image = augmentation(one, image)
    return image

  return augment


def of_frames(augmentation: Augmentation) -> Augmentation:
  """Applies one change to all frames of a stack, uint8 [S, H, W].

  Each frame is a channel of one image. The new stack is float32 in [0, 255].
  """

  def augment(key: chex.PRNGKey, frames: chex.Array) -> chex.Array:
    image = jnp.moveaxis(frames, 0, -1).astype(jnp.float32) / 255
    return 255 * jnp.moveaxis(augmentation(key, image), -1, 0)

  return augment


AUGMENTATIONS: dict[str, Augmentation] = {
  # No change: both views are the image itself.
  'none': compose(),
  # Mild, for images of about 8 x 8.
  'digits': compose(
    functools.partial(shift, pixels=1),
    functools.partial(jitter, brightness=0.3),
    functools.partial(gaussian_noise, std=0.1),
    functools.partial(random_mask, probability=0.1),
  ),
  # Strong, for gray images of about 28 x 28 that must not be mirrored.
  'crops': compose(
    random_resized_crop,
    functools.partial(jitter, brightness=0.4, contrast=0.4),
    functools.partial(gaussian_noise, std=0.1),
  ),
  # 'crops', with a square of 8 x 8 blackened.
  'crops_cutout': compose(
    random_resized_crop,
    functools.partial(jitter, brightness=0.4, contrast=0.4),
    functools.partial(gaussian_noise, std=0.1),
    functools.partial(cutout, pixels=8),
  ),
  # SimSiam's for photographs, without hue and blur.
  'color': compose(
    random_resized_crop,
    sometimes(
      functools.partial(jitter, brightness=0.4, contrast=0.4, saturation=0.4),
      0.8,
    ),
    functools.partial(color_drop, probability=0.2),
    horizontal_flip,
  ),
  # SPR's for Atari frames of 84 x 84.
  'frames': compose(
    functools.partial(shift, pixels=4),
    functools.partial(intensity, amount=0.05),
  ),
}
