"""Curves of several runs on a common clock, and their means."""

from collections.abc import Sequence
import warnings

import numpy as np

from siamrl.report.curves import Curve


def side_by_side(
  curves: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Aligns curves at all values of their clocks.

  Args:
    curves: (clock, values) of each run, [T_i] each, clocks ascending.

  Returns:
    (clock [T], values [runs, T], met [T]): values are NaN where a run has no
    row. `met` is whether all runs that have not ended yet have a row.
  """
  clock = np.unique(np.concatenate([x for x, _ in curves]))
  values = np.full((len(curves), len(clock)), np.nan)
  met = np.ones(len(clock), np.bool_)
  for row, (x, y) in zip(values, curves, strict=True):
    places = np.searchsorted(clock, x)
    row[places] = y
    present = np.zeros(len(clock), np.bool_)
    present[places] = True
    met &= present | (clock > x[-1])
  return clock, values, met


def mean_curve(label: str, clock: np.ndarray, values: np.ndarray) -> Curve:
  """Returns the mean and sample deviation of the runs that have a value."""
  counts = np.isfinite(values).sum(axis=0)
  with warnings.catch_warnings():
    # A bin in which no run ended an episode is a gap in the curve.
    warnings.filterwarnings('ignore', category=RuntimeWarning)
    mean = np.nanmean(values, axis=0)
    spread = np.where(counts > 1, np.nanstd(values, axis=0, ddof=1), np.nan)
  return Curve(label, clock, mean, spread if (counts > 1).any() else None)


def binned(
  clock: np.ndarray, returns: np.ndarray, episodes: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Averages returns over bins of the clock, weighted by episodes.

  Args:
    clock: [R] at the end of each row, ascending.
    returns: [R] mean return of the episodes that ended in each row.
    episodes: [R] number of episodes that ended in each row.
    size: width of a bin, in units of the clock.

  Returns:
    The ends of the complete bins, and their means; NaN without episodes.
  """
  bins = np.ceil(clock / size).astype(int)
  full = int(clock[-1] // size)
  means = np.full(full, np.nan)
  for number in range(1, full + 1):
    rows = (bins == number) & (episodes > 0)
    if rows.any():
      means[number - 1] = np.average(returns[rows], weights=episodes[rows])
  return size * np.arange(1, full + 1), means
