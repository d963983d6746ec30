"""Augmentations: what they keep, what they draw, and where they do nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl import augment

IMAGE = np.random.default_rng(0).random((9, 7, 3)).astype(np.float32)
KEY = jax.random.key(0)
DRAWS = 600
# Red, green and blue in what the eye sees.
LUMA = np.float32([0.299, 0.587, 0.114])


@functools.cache
def _compiled(function, **static):
  one = functools.partial(function, **static)
  return jax.jit(
    lambda key, image, traced: jax.vmap(lambda k: one(k, image, **traced))(
      jax.random.split(key, DRAWS)
    )
  )


def _draws(function, image, static=None, **traced):
  """[DRAWS, H, W, C]; compiled once for all values of traced parameters."""
  run = _compiled(function, **(static or {}))
  return np.asarray(run(KEY, jnp.asarray(image), traced))


@pytest.mark.parametrize('name', augment.AUGMENTATIONS)
def test_pipelines_keep_what_an_image_is(name):
  image = IMAGE if name == 'color' else IMAGE[..., :1]
  views = _draws(augment.AUGMENTATIONS[name], image)
  assert views.shape == (DRAWS, *image.shape) and views.dtype == np.float32
  assert views.min() >= 0 and views.max() <= 1
  again = _draws(augment.AUGMENTATIONS[name], image)
  np.testing.assert_array_equal(views, again)
  # Another key, another view, unless there is nothing to choose.
  differ = np.any(views[1:] != views[0], (1, 2, 3)).mean()
  assert differ == 0 if name == 'none' else differ > 0.9


def test_shifts_are_all_of_them_evenly():
  image = np.arange(63, dtype=np.float32).reshape(9, 7, 1) / 63
  padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), 'edge')
  shifts = [padded[i : i + 9, j : j + 7] for i in range(3) for j in range(3)]
  drawn = _draws(augment.shift, image, {'pixels': 1})
  counts = [np.sum(np.all(drawn == one, (1, 2, 3))) for one in shifts]
  assert sum(counts) == DRAWS
  # Five standard deviations around the mean of 67.
  assert min(counts) > 28 and max(counts) < 106
  still = jax.jit(functools.partial(augment.shift, pixels=0))(KEY, image)
  np.testing.assert_array_equal(still, image)


def test_crops_are_windows_of_the_drawn_area_and_aspect():
  """From a ramp along each side one reads where a window was."""
  height, width = 20, 10
  rows, columns = np.meshgrid(
    (np.arange(height) + 0.5) / height,
    (np.arange(width) + 0.5) / width,
    indexing='ij',
  )
  crops = _draws(
    augment.random_resized_crop,
    np.stack([rows, columns], -1).astype(np.float32),
    {'scale': (0.1, 1.0), 'ratio': (0.5, 2.0)},
  )
  # Between inner pixels, away from where the border is repeated.
  share_y = (crops[:, 14, 5, 0] - crops[:, 5, 5, 0]) * height / 9
  share_x = (crops[:, 10, 7, 1] - crops[:, 10, 2, 1]) * width / 5
  area = share_y * share_x
  assert area.min() > 0.099 and area.max() < 1.001
  assert area.mean() == pytest.approx(0.55, abs=5 * 0.26 / DRAWS**0.5)
  aspect = np.log(share_x / share_y)
  assert aspect.min() > np.log(0.49) and aspect.max() < np.log(2.01)
  assert aspect.min() < np.log(0.6) and aspect.max() > np.log(1.6)
  # The window's middle is the mean of what is seen there.
  middle_y = (crops[:, 9, 5, 0] + crops[:, 10, 5, 0]) / 2
  assert (middle_y - share_y / 2).min() > -1e-3
  assert (middle_y + share_y / 2).max() < 1 + 1e-3
  free = share_y < 0.9
  place = ((middle_y - share_y / 2) / (1 - share_y))[free]
  assert place.mean() == pytest.approx(0.5, abs=0.07)
  assert place.std() == pytest.approx(12**-0.5, abs=0.03)


def test_a_crop_is_bilinear():
  """Half of each side, against JAX's own interpolation of that window."""
  rows, columns = np.meshgrid(
    (np.arange(9) + 0.5) / 9, (np.arange(7) + 0.5) / 7, indexing='ij'
  )
  crop = jax.jit(
    functools.partial(
      augment.random_resized_crop, scale=(0.25, 0.25), ratio=(1.0, 1.0)
    )
  )
  view = np.asarray(crop(KEY, np.stack([IMAGE[..., 0], rows, columns], -1)))
  # The ramps' middles show where the window's middle was.
  start = (view[4, 3, 1:] - 0.25) * np.array([9, 7])
  expected = jax.jit(
    lambda image, start: jax.image.scale_and_translate(
      image, (9, 7), (0, 1), jnp.full(2, 2.0), -2 * start, 'linear'
    )
  )(IMAGE[..., 0], start)
  np.testing.assert_allclose(view[..., 0], expected, atol=1e-5)


def test_the_whole_image_is_a_crop():
  whole = jax.jit(
    functools.partial(
      augment.random_resized_crop, scale=(1.0, 1.0), ratio=(0.5, 2.0)
    )
  )
  np.testing.assert_allclose(whole(KEY, IMAGE), IMAGE, atol=1e-5)


def test_flips_half_of_the_time():
  drawn = _draws(augment.horizontal_flip, IMAGE, probability=0.5)
  flipped = np.all(drawn == IMAGE[:, ::-1], (1, 2, 3))
  assert np.all(flipped | np.all(drawn == IMAGE, (1, 2, 3)))
  assert flipped.mean() == pytest.approx(0.5, abs=0.1)
  never = _draws(augment.horizontal_flip, IMAGE, probability=0.0)
  np.testing.assert_array_equal(never[0], IMAGE)


def test_intensity_is_one_factor_within_two_deviations():
  image = 0.2 + IMAGE / 2
  drawn = _draws(augment.intensity, image, amount=0.1)
  factors = drawn / image
  assert np.ptp(factors, (1, 2, 3)).max() < 1e-4
  factors = factors[:, 0, 0, 0]
  assert factors.min() == pytest.approx(0.8, abs=1e-5)
  assert factors.max() == pytest.approx(1.2, abs=1e-5)
  assert factors.mean() == pytest.approx(1.0, abs=0.02)
  still = _draws(augment.intensity, image, amount=0.0)
  np.testing.assert_allclose(still[0], image, rtol=1e-6)


def test_jitter_changes_one_thing_at_a_time():
  image = 0.4 + 0.2 * IMAGE
  luma = lambda x: x @ LUMA
  amounts = {'brightness': 0.0, 'contrast': 0.0, 'saturation': 0.0}
  still = _draws(augment.jitter, image, **amounts)
  np.testing.assert_allclose(still[0], image, atol=1e-6)
  brighter = _draws(augment.jitter, image, **(amounts | {'brightness': 0.5}))
  ratio = brighter / image
  assert np.ptp(ratio, (1, 2, 3)).max() < 1e-4
  assert 0.499 < ratio.min() < 0.55 and 1.45 < ratio.max() < 1.501
  contrast = _draws(augment.jitter, image, **(amounts | {'contrast': 0.5}))
  means, spreads = (
    luma(contrast).mean((1, 2)),
    luma(contrast).std((1, 2)) / luma(image).std(),
  )
  np.testing.assert_allclose(means, luma(image).mean(), rtol=1e-4)
  assert 0.499 < spreads.min() < 0.55 and 1.45 < spreads.max() < 1.501
  colors = _draws(augment.jitter, image, **(amounts | {'saturation': 0.5}))
  assert np.abs(luma(colors) - luma(image)).max() < 1e-4
  gray = luma(image)[..., None]
  factors = np.std(colors - gray, (1, 2, 3)) / np.std(image - gray)
  assert 0.499 < factors.min() < 0.55 and 1.45 < factors.max() < 1.501


def test_noise_has_its_deviation_and_keys_of_its_own():
  half = np.full((9, 7, 3), 0.5, np.float32)
  noise = _draws(augment.gaussian_noise, half, std=0.1)
  assert noise.std() == pytest.approx(0.1, rel=0.02)
  assert noise.std(0).min() > 0.08  # another one in each pixel
  still = _draws(augment.gaussian_noise, half, std=0.0)
  np.testing.assert_array_equal(still[0], half)
  # Twice with one key it would be 0.2.
  one = functools.partial(augment.gaussian_noise, std=0.1)
  twice = _draws(augment.compose(one, one), half)
  assert twice.std() == pytest.approx(0.1 * 2**0.5, rel=0.02)


def test_masks_are_black_in_all_colors():
  bright = np.ones((9, 7, 3), np.float32)
  masked = _draws(augment.random_mask, bright, probability=0.2)
  assert np.mean(masked == 0) == pytest.approx(0.2, abs=0.01)
  np.testing.assert_array_equal(masked[..., 0], masked[..., 2])
  still = _draws(augment.random_mask, bright, probability=0.0)
  np.testing.assert_array_equal(still[0], bright)


def test_squares_are_black_and_may_stand_out():
  bright = np.ones((9, 7, 1), np.float32)
  drawn = _draws(augment.cutout, bright, {'pixels': 3})[..., 0] == 0
  black = drawn.sum((1, 2))
  assert black.max() == 9 and black.min() == 4
  # With a center on the border a part is lost.
  assert np.mean(black < 9) == pytest.approx(1 - 7 / 9 * 5 / 7, abs=0.1)
  whole = drawn[black == 9][0]
  assert whole.any(0).sum() == whole.any(1).sum() == 3
  # The center is anywhere: a corner has four of them, of 63.
  assert drawn[:, 0, 0].mean() == pytest.approx(4 / 63, abs=0.05)
  assert drawn[:, 4, 3].mean() == pytest.approx(9 / 63, abs=0.07)


def test_colors_are_dropped_to_what_the_eye_sees():
  gray = _draws(augment.color_drop, IMAGE, probability=1.0)[0]
  for channel in range(3):
    np.testing.assert_allclose(gray[..., channel], IMAGE @ LUMA, rtol=1e-5)
  still = _draws(augment.color_drop, IMAGE, probability=0.0)
  np.testing.assert_array_equal(still[0], IMAGE)
  with pytest.raises(ValueError, match='2 channels'):
    augment.color_drop(KEY, IMAGE[..., :2], probability=1.0)


def test_sometimes_is_as_often_as_asked():
  drawn = _draws(augment.sometimes(lambda key, x: 0 * x, 0.3), IMAGE)
  black = np.all(drawn == 0, (1, 2, 3))
  assert np.all(black | np.all(drawn == IMAGE, (1, 2, 3)))
  assert black.mean() == pytest.approx(0.3, abs=0.1)
  # Whether it is applied and what it does are drawn apart.
  twice = augment.sometimes(augment.horizontal_flip, 0.5)
  flipped = np.any(_draws(twice, IMAGE) != IMAGE, (1, 2, 3))
  assert flipped.mean() == pytest.approx(0.25, abs=0.1)


def test_ranges_that_are_none():
  for wrong in (
    {'scale': (0.0, 1.0)},
    {'scale': (0.5, 0.4)},
    {'scale': (0.5, 1.5)},
    {'ratio': (1.1, 1.5)},
  ):
    with pytest.raises(ValueError, match='must be a range'):
      augment.random_resized_crop(KEY, IMAGE, **wrong)
