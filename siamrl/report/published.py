"""Published results: their files, and comparisons with runs.

A source is a CSV file and, beside it, a TOML file of the same name that says
where it is from and under which protocol it was measured. The columns of the
CSV file are `game` or `environment`; the clock, `frames_millions` or
`env_steps`; `return_mean` and `return_sd`; and, where there are several,
`agent` and `seeds`. Lines that begin with `#` are comments. The README of
experiments/results/published explains the entries of the TOML file.
"""

from collections.abc import Iterable, Mapping, Sequence
import csv
import math
import os
import pathlib
import re
import tomllib
from typing import Any, NamedTuple

import numpy as np

from siamrl.report import statistics
from siamrl.report.curves import Curve
from siamrl.report.metrics import PLAYED

# Units of a clock's column.
_CLOCKS = {'frames_millions': ('frames', 1e6), 'env_steps': ('env_steps', 1.0)}
VERSION = 'environment_version'
COLUMN = 'column'
# Values that agents are told apart by, where runs do not record them.
_DEFAULTS = {'replay': 'uniform', 'n_step': '1'}
# Flags that say nothing about a return that was measured during training.
_OF_EVALUATION = ('eval_epsilon',)

Estimate = tuple[float, float, float]  # with the ends of an interval


class Row(NamedTuple):
  """A published mean.

  Attributes:
    agent: name of the agent; '' if the source is of one without a name.
    kind: 'game' or 'environment'.
    task: the game or the environment, as the source spells it.
    time: value of the clock.
    mean: mean return over seeds.
    sd: standard deviation over seeds, as published; NaN if it is not known.
    seeds: their number; 0 if it is not known.
  """

  agent: str
  kind: str
  task: str
  time: float
  mean: float
  sd: float
  seeds: int


class Published(NamedTuple):
  """A source.

  Attributes:
    name: name of its files.
    about: the content of the TOML file; empty without one.
    clock: 'frames' or 'env_steps'.
    rows: the rows of the CSV file.
  """

  name: str
  about: dict[str, Any]
  clock: str
  rows: list[Row]

  @property
  def agents(self) -> list[str]:
    """The agents in the order of the file."""
    return list(dict.fromkeys(row.agent for row in self.rows))

  @property
  def window(self) -> float:
    """Units of the clock over which a return is averaged; 0 for a point."""
    return float(self.about.get('window', 0))

  def of_task(self, kind: str, task: str) -> list[Row]:
    """The rows of a game or an environment, whatever spelling or version.

    They ascend in time.
    """
    name = plain(task)
    found = [r for r in self.rows if r.kind == kind and plain(r.task) == name]
    return sorted(found, key=lambda row: row.time)

  def row(self, agent: str, kind: str, task: str) -> Row:
    """The last row of an agent in a task; raises ValueError without one."""
    found = [row for row in self.of_task(kind, task) if row.agent == agent]
    if not found:
      raise ValueError(f'{self.name} has no {agent} in {task}')
    return found[-1]

  def matching(self, flags: Mapping[str, str]) -> list[str]:
    """The agents that runs with some flags may be of.

    Args:
      flags: by name. An absent `replay` or `n_step` counts as its default.
        Other absent flags rule no agent out; `agent` or `arm` must be there.
    """
    return [
      agent
      for agent in self.agents
      if any(
        _fits(known, flags)
        for known in self.about.get('agents', {})
        .get(agent, {})
        .get('match', ())
      )
    ]

  def protocol(self, row: Row) -> dict[str, str]:
    """The protocol of a row, by flag; values are as in a flag file."""
    found: dict[str, Any] = {}
    agent = self.about.get('agents', {}).get(row.agent, {})
    for part in (
      self.about.get('protocol', {}),
      self.about.get('protocol', {}).get(row.kind, {}),
      agent.get('protocol', {}),
    ):
      found |= {n: v for n, v in part.items() if not isinstance(v, dict)}
    version = version_of(row.task)
    if row.kind == 'environment' and version:
      found[VERSION] = version
    return {name: _text(value) for name, value in found.items()}

  def sample_sd(self, row: Row) -> float:
    """The sample standard deviation, whichever one is published."""
    if self.about.get('sd') == 'population' and row.seeds > 1:
      return row.sd * math.sqrt(row.seeds / (row.seeds - 1))
    return row.sd


class Difference(NamedTuple):
  """A flag in which protocols differ, or whose value one side does not say.

  Attributes:
    name: the flag.
    ours: its value in the runs; None if it is not recorded.
    theirs: its published value; None if the source does not say it.
  """

  name: str
  ours: str | None
  theirs: str | None


class Comparison(NamedTuple):
  """Returns of runs beside a published mean.

  Attributes:
    ours: mean over runs, with its t interval.
    runs: the number of runs that have a value.
    theirs: the published mean, with its t interval; NaN ends if the deviation
      over seeds or their number is not known.
    difference: ours less theirs, with Welch's interval, or that of our runs
      alone if the published spread is not known.
    spread_known: whether it is.
  """

  ours: Estimate
  runs: int
  theirs: Estimate
  difference: Estimate
  spread_known: bool


def read(path: str | os.PathLike[str]) -> Published:
  """Reads a source.

  Args:
    path: the CSV file.

  Raises:
    OSError: if it cannot be read.
    ValueError: if a column is missing, or a cell is not a number.
  """
  path = pathlib.Path(path)
  text = path.read_text(encoding='utf-8')
  described = path.with_suffix('.toml')
  about: dict[str, Any] = {}
  if described.is_file():
    try:
      about = tomllib.loads(described.read_text(encoding='utf-8'))
    except ValueError as error:
      raise ValueError(f'{described.name}: {error}') from error
  lines = [line for line in text.splitlines() if not line.startswith('#')]
  cells = csv.DictReader(lines)
  header = cells.fieldnames or []
  clock = next((name for name in _CLOCKS if name in header), None)
  if 'holds' in about:  # medians over games and the like have no task
    return Published(path.stem, about, _CLOCKS[clock or 'env_steps'][0], [])
  if (
    clock is None
    or 'return_mean' not in header
    or (set(PLAYED).isdisjoint(header))
  ):
    raise ValueError(
      'it must have the columns game or environment, frames_millions or '
      'env_steps, and return_mean'
    )
  unit, scale = _CLOCKS[clock]
  alone = next(iter(about.get('agents', {})), '')
  rows = []
  for number, row in enumerate(cells, 1):
    kind = next((name for name in PLAYED if row.get(name)), None)
    try:
      if kind is None:
        raise ValueError('no game or environment')
      mean, time = float(row['return_mean']), float(row[clock])
      if not (math.isfinite(mean) and math.isfinite(time)):
        raise ValueError(f'{mean} at {time} must be finite')
      rows.append(
        Row(
          agent=row.get('agent') or alone,
          kind=kind,
          task=row[kind],
          time=scale * time,
          mean=mean,
          sd=float(row.get('return_sd') or 'nan'),
          seeds=int(row.get('seeds') or about.get('seeds', 0)),
        )
      )
    except (TypeError, ValueError) as error:
      raise ValueError(f'row {number}: {error}') from error
  return Published(path.stem, about, unit, rows)


def plain(task: str) -> str:
  """Reduces the name of a task to its letters and digits, without a version."""
  return re.sub(r'[^a-z0-9]', '', re.sub(r'^.*:|-v\d+$', '', task).lower())


def version_of(task: str) -> str | None:
  """The version that ends the name of an environment; None without one."""
  found = re.search(r'-(v\d+)$', task)
  return found and found[1]


def curves(
  source: Published, rows: Iterable[Row], label: str, last: float
) -> list[Curve]:
  """Curves to draw beside runs, one for each agent.

  Args:
    source: the source.
    rows: its rows of one task.
    label: name in the legend; where there are several agents, theirs follow.
    last: where runs end. A curve goes on to the next point.

  Returns:
    Curves, with bands of one published standard deviation; a level for an agent
    with a single mean.
  """
  by_agent: dict[str, list[Row]] = {}
  for row in rows:
    by_agent.setdefault(row.agent, []).append(row)
  found = []
  for agent, theirs in by_agent.items():
    name = f'{label}, {agent}' if len(by_agent) > 1 else label
    x, mean, sd = (
      np.array([getattr(row, field) for row in theirs])
      for field in ('time', 'mean', 'sd')
    )
    spread = sd if np.isfinite(sd).any() else None
    if len(theirs) == 1 and source.about:
      level = None if spread is None else sd[0]
      found.append(Curve(f'{name}, at {x[0]:,.0f}', None, mean[0], level))
      continue
    shown = np.arange(len(x)) <= np.searchsorted(x, last)
    band = None if spread is None else spread[shown]
    found.append(Curve(name, x[shown], mean[shown], band))
  return found


def value_at(
  clock: np.ndarray,
  values: np.ndarray,
  episodes: np.ndarray | None,
  time: float,
  window: float,
) -> float:
  """The return of a run at a time, as a source averages it.

  Args:
    clock: [R] at the ends of rows, ascending.
    values: [R] returns; NaN where there is none.
    episodes: [R] numbers of episodes that they are means of; None for equal
      weights.
    time: the time.
    window: the rows that end up to this much before it are averaged; 0 to
      interpolate between the rows around it.

  Returns:
    The return; NaN if there is no row.
  """
  known = np.isfinite(values)
  if window:
    known &= (clock > time - window) & (clock <= time)
    weights = known if episodes is None else np.where(known, episodes, 0)
    total = np.sum(weights)
    if not total:
      return math.nan
    return float(np.sum(np.where(known, values, 0) * weights) / total)
  if not known.any():
    return math.nan
  return float(
    np.interp(time, clock[known], values[known], left=np.nan, right=np.nan)
  )


def stand_ins(mean: float, sd: float, count: int) -> np.ndarray:
  """Returns `count` numbers of a mean and a sample standard deviation.

  Welch's interval depends on runs only through these.
  """
  places = np.linspace(-1.0, 1.0, count)
  return mean + sd * places / np.std(places, ddof=1)


def compare(source: Published, runs: np.ndarray, row: Row) -> Comparison:
  """Compares the returns of runs [runs] with a row; NaNs are left out."""
  runs = runs[np.isfinite(runs)]
  if not len(runs):
    runs = np.array([np.nan])
  ours = statistics.over_runs(runs)
  sd = source.sample_sd(row)
  spread_known = row.seeds > 1 and math.isfinite(sd)
  theirs: Sequence[Any] = (row.mean, math.nan, math.nan)
  if spread_known:
    others = stand_ins(row.mean, sd, row.seeds)
    theirs = statistics.over_runs(others)
    difference = statistics.difference(
      runs[:, None], others[:, None], statistics.mean
    )
  else:
    difference = statistics.over_runs(runs - row.mean)
  return Comparison(
    _floats(ours),
    int(np.isfinite(runs).sum()),
    _floats(theirs),
    _floats(difference),
    spread_known,
  )


def differences(
  source: Published, row: Row, flags: Mapping[str, str]
) -> list[Difference]:
  """Compares protocols, field by field.

  Args:
    source: the source.
    row: a row of the task and the agent.
    flags: the flags of runs; with `column`, the column that is compared, and
      `environment_version`, if there is one.

  Returns:
    The fields that differ, and those that one side does not say.
  """
  theirs = source.protocol(row)
  training = all(said.get(COLUMN) == 'train_return' for said in (theirs, flags))
  found = [
    Difference(name, flags.get(name), value)
    for name, value in theirs.items()
    if not (training and name in _OF_EVALUATION)
    and not _same(flags.get(name), value)
  ]
  unsaid = source.about.get('unknown', ())
  return found + [
    Difference(name, flags[name], None) for name in unsaid if name in flags
  ]


def _fits(known: Mapping[str, Any], flags: Mapping[str, str]) -> bool:
  """Whether flags have the known values, as far as they are there."""
  if not any(name in flags for name in ('agent', 'arm') if name in known):
    return False
  flags = _DEFAULTS | dict(flags)
  return all(
    name not in flags or _same(flags[name], _text(value))
    for name, value in known.items()
  )


def _same(one: str | None, other: str) -> bool:
  if one is None:
    return False
  try:
    return math.isclose(float(one), float(other))
  except ValueError:
    return one.lower() == other.lower()


def _text(value: Any) -> str:
  return str(value).lower() if isinstance(value, bool) else str(value)


def _floats(estimate: Iterable[Any]) -> Estimate:
  mean, low, high = (float(np.reshape(number, ())) for number in estimate)
  return mean, low, high
