"""Frames of Atari games, and what their labels say."""

import functools
import sys

import numpy as np
import pytest

from siamrl.envs import ale, frames
from siamrl.envs.frames import collect_frames

pytest.importorskip('ale_py')

_BALL, _PLAYER = 54, 51  # bytes of Pong's memory: how low they are


@functools.cache
def _pong(ram_byte=_PLAYER, classes=8, seed=0):
  return collect_frames(
    'Pong-v5', 120, ram_byte=ram_byte, classes=classes, seed=seed
  )


def test_frames_are_gray_and_follow_from_the_seed():
  images, labels = _pong()
  assert images.shape == (120, 84, 84, 1)
  assert images.dtype == np.uint8
  again, none = collect_frames('pong', 120)
  np.testing.assert_array_equal(again, images)
  assert none is None
  assert labels.shape == (120,)
  others, _ = _pong(seed=1)
  assert np.mean(others != images) > 1e-3


def test_classes_are_of_about_the_same_size_and_in_order():
  _, labels = _pong()
  assert labels.dtype == np.int32
  counts = np.bincount(labels)
  # The paddle is often at an end: values there are many, and stay together.
  assert 4 <= len(counts) <= 8
  assert counts.min() > 0
  # With a class for each value, a class holds neighbors.
  _, values = _pong(classes=10_000)
  assert values.max() > labels.max()
  order = np.argsort(values, kind='stable')
  assert np.all(np.diff(labels[order]) >= 0)
  # The ball is anywhere, or nowhere.
  counts = np.bincount(_pong(_BALL).labels)
  assert 5 <= len(counts) <= 8


def test_labels_say_where_the_player_stands():
  """Seen in the picture itself: rows of its paddle, at the right."""
  images, labels = _pong(classes=10_000)
  strip = images[:, 15:76, 74, 0].astype(float)
  bright = np.abs(strip - np.median(strip, axis=1, keepdims=True)) > 30
  seen = bright.sum(axis=1) > 2
  assert seen.mean() > 0.7
  rows = [np.flatnonzero(row).mean() for row in bright[seen]]
  assert np.corrcoef(rows, labels[seen])[0, 1] > 0.9


def test_pixels_are_means_of_what_they_cover():
  screen = (
    np.random.default_rng(0).integers(0, 256, (210, 160)).astype(np.uint8)
  )
  # 2 * 210 = 5 * 84, and 21 * 160 = 40 * 84.
  fine = screen.repeat(2, axis=0).repeat(21, axis=1).astype(float)
  means = fine.reshape(84, 5, 84, 40).mean(axis=(1, 3))
  small = frames._smaller(screen)
  assert small.dtype == np.uint8
  assert np.abs(small - means).max() <= 0.5 + 1e-6


def test_what_cannot_be_collected(monkeypatch):
  with pytest.raises(ValueError, match="no Atari game 'pnog'; the closest"):
    collect_frames('pnog', 3)
  with pytest.raises(
    ValueError, match='ram_byte=0 has .almost. only one value'
  ):
    collect_frames('pong', 3, ram_byte=0)
  monkeypatch.setitem(sys.modules, 'ale_py', None)
  ale.games.cache_clear()
  with pytest.raises(ImportError, match=r'pip install siamrl\[atari\]'):
    collect_frames('pong', 3)
