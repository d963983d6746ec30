"""Claims about runs, and the comparisons that decide them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from siamrl.report import statistics
from siamrl.report.metrics import Table, by_run, group_rows
from siamrl.report.sweep import clock_of


class Claim(NamedTuple):
  """A claim and its verdict.

  Attributes:
    text: the claim.
    met: whether it is met; None if numbers are missing.
    seen: the numbers.
  """

  text: str
  met: bool | None
  seen: str


class Setting(NamedTuple):
  """The runs of one setting.

  Attributes:
    point: its swept values.
    table: their rows.
  """

  point: dict[str, Any]
  table: Table

  def height(self, column: str) -> np.ndarray:
    """Mean height of each run's curve, [runs]."""
    x, y = by_run(self.table, clock_of(self.table), column, 'seed')
    return statistics.area_under_curve(x, y)

  def final(self, column: str) -> np.ndarray:
    """Mean of each run's last tenth, [runs]."""
    x, y = by_run(self.table, clock_of(self.table), column, 'seed')
    return statistics.final_mean(x, y)

  def values(self, column: str) -> np.ndarray:
    """[runs, T]."""
    return by_run(self.table, clock_of(self.table), column, 'seed')[1]


# As metrics.csv has them.
_FLAGS = {'true': True, 'false': False}


def settings_of(table: Table, *names: str) -> list[Setting]:
  """The settings that differ in some columns; those that are not swept count
  as None."""
  present = [name for name in names if name in table]
  found = []
  for values, rows in group_rows(table, present).items():
    read = [_read_cell(value) for value in values]
    point = dict.fromkeys(names) | dict(zip(present, read, strict=True))
    found.append(Setting(point, rows))
  return found


def _read_cell(value: Any) -> Any:
  """A cell's value; integers beside empty cells were read as floats."""
  if isinstance(value, float) and value.is_integer():
    return int(value)
  return _FLAGS.get(value, value)


def ascending(settings: Sequence[Setting], name: str) -> list[Setting]:
  """The settings by their values of a column; raises ValueError without one."""
  if any(setting.point[name] is None for setting in settings):
    raise ValueError(f'--{name} must be swept and mean something to every run')
  return sorted(settings, key=lambda setting: setting.point[name])


def exceeds(
  text: str,
  more: Sequence[np.ndarray],
  less: Sequence[np.ndarray],
  *,
  candidates: int = 1,
) -> Claim:
  """The claim that runs exceed others on average.

  Args:
    text: the claim.
    more: [tasks][runs].
    less: [tasks][runs], of other runs.
    candidates: the number of settings of which `more` is the best.
  """
  point, low, high = statistics.difference(
    np.stack(more, 1),
    np.stack(less, 1),
    statistics.mean,
    level=1 - 0.05 / candidates,
  )
  return _above_zero(text, point, low, high)


def exceeds_in_each_run(text: str, more: np.ndarray, less: np.ndarray) -> Claim:
  """The claim that one measure of runs [runs] exceeds another of the same."""
  return _above_zero(text, *statistics.over_runs(more - less))


def exceeds_number(
  text: str, runs: np.ndarray, number: float, *, candidates: int = 1
) -> Claim:
  """The claim that runs [runs] exceed a number on average.

  Args:
    text: the claim.
    runs: a value of each run.
    number: the number.
    candidates: the number of settings of which `runs` is the best.
  """
  level = 1 - 0.05 / candidates
  return _above_zero(text, *statistics.over_runs(runs - number, level=level))


def _above_zero(text: str, point: Any, low: Any, high: Any) -> Claim:
  if np.isnan(low):
    return Claim(text, None, 'not known')
  return Claim(
    text, bool(low > 0), f'{point:.3g} more ({low:.3g} to {high:.3g})'
  )


def no_worse(
  text: str,
  these: Sequence[np.ndarray],
  others: Sequence[np.ndarray],
  *,
  candidates: int = 1,
) -> Claim:
  """The claim that runs are not shown to fall below others.

  Args:
    text: the claim.
    these: [tasks][runs].
    others: [tasks][runs], of other runs.
    candidates: the number of settings of which `others` is the best.
  """
  worse = exceeds(text, others, these, candidates=candidates)
  met = None if worse.met is None else not worse.met
  return Claim(text, met, f'without, {worse.seen}')


def within(text: str, values: np.ndarray, low: float, high: float) -> Claim:
  """The claim that every run's value lies between two."""
  seen = f'{values.min():.3g} to {values.max():.3g} over {len(values)} seeds'
  met = bool(np.all((low < values) & (values < high)))
  return Claim(text, None if np.isnan(values).any() else met, seen)


def last(setting: Setting, column: str) -> np.ndarray:
  """The last value of each run, [runs]."""
  x, y = by_run(setting.table, clock_of(setting.table), column, 'seed')
  return y[:, np.argmax(x)]


def known_mean(values: np.ndarray) -> np.ndarray:
  """Means of finite values over time, [runs]; NaN if there are none."""
  known = np.isfinite(values)
  with np.errstate(invalid='ignore'):
    return np.where(known, values, 0).sum(1) / known.sum(1)


def known(found: Mapping[tuple, np.ndarray], *key: str) -> np.ndarray:
  """The values of a setting, [runs].

  Raises:
    ValueError: there is no such setting.
  """
  if key not in found:
    raise ValueError(f'no run with {", ".join(key)}')
  return found[key]
