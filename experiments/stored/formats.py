"""Rows of runs in the formats of other tools."""

from collections.abc import Iterator, Mapping, Sequence
import math
import re
from typing import Any

import numpy as np

from experiments.config.declaring import UsageError
from siamrl.optional import import_optional
from siamrl.report.arrangement import FOREMOST
from siamrl.report.loading import FOLDER_COLUMN
from siamrl.report.metrics import PLAYED, RUN_COLUMN, Table
from siamrl.report.statistics import final_mean

CLOCK = 'env_steps'
HEADER = ('exp_name', 'env_name', 'seed', 'metric', 'env_step', 'value')
# Flags of a run that have columns of their own.
NAMES = ('agent', *PLAYED)
# Flags that only runs of some kinds have, and which tell these apart.
KINDS = {'sticky_action_probability': 'atari', 'noise_channels': 'minatar'}

# Columns of metrics that are the clock, or not measured.
_NO_METRICS = {RUN_COLUMN, 'iteration', CLOCK, FOLDER_COLUMN}
_RETURNS = ('eval_return', 'train_return')


def check(frame: Table) -> None:
  """Raises UsageError for runs without env steps."""
  if CLOCK not in frame:
    raise UsageError(f'--runs must be of runs with a column {CLOCK}')


def settings(frame: Table) -> list[str]:
  """The columns that tell runs apart, but for the seed."""
  names = list(frame)
  return names[: names.index(RUN_COLUMN)]


def tasks(frame: Table) -> list[str]:
  """The game or environment of each row."""
  columns = [_texts(frame[name]) for name in PLAYED if name in frame]
  columns.append(['unknown'] * len(frame[RUN_COLUMN]))
  return [next(filter(None, texts)) for texts in zip(*columns, strict=True)]


def experiments(frame: Table) -> list[str]:
  """A name for the agent of each row: as few settings as tell all apart.

  The agent, and further settings as name=value, joined by commas.
  """
  apart = [n for n in settings(frame) if n not in (*PLAYED, *KINDS)]
  apart.sort(key=lambda n: FOREMOST.index(n) if n in FOREMOST else 99)
  columns = {name: _texts(frame[name]) for name in apart}
  where = tasks(frame)
  every = len(set(zip(where, *columns.values(), strict=True)))
  chosen: dict[str, list[str]] = {}
  for name, texts in columns.items():
    before = len(set(zip(where, *chosen.values(), strict=True)))
    more = len(set(zip(where, *chosen.values(), texts, strict=True)))
    if name == 'agent' or before < more:
      chosen[name] = texts
    if more == every:
      break
  return [
    ','.join(
      text if name == 'agent' else f'{name}={text}'
      for name, text in zip(chosen, row, strict=True)
      if text
    )
    or 'siamrl'
    for row in zip(*chosen.values(), strict=True)
  ] or ['siamrl'] * len(where)


def _texts(column: np.ndarray) -> list[str]:
  """The values of a column as text, '' for those that are missing."""
  if column.dtype.kind == 'U':
    return column.tolist()
  return ['' if v != v else f'{v:g}' for v in column.tolist()]


def long_rows(frame: Table) -> Iterator[tuple[Any, ...]]:
  """The rows of a long table, see `HEADER`: one for each measured number."""
  check(frame)
  names, where = experiments(frame), tasks(frame)
  seeds = _texts(frame[RUN_COLUMN])
  steps = frame[CLOCK].tolist()
  skipped = {*settings(frame), *_NO_METRICS}
  for metric, column in frame.items():
    if metric in skipped or column.dtype.kind == 'U':
      continue
    for index, value in enumerate(column.tolist()):
      if value == value:
        yield (
          *(names[index], where[index], seeds[index], metric),
          *(steps[index], value),
        )


def marl_eval(
  frame: Table, column: str | None = None
) -> tuple[dict[str, Any], list[str]]:
  """The runs as marl-eval's JSON has them, and notes about what is left out.

  It is environment -> task -> algorithm -> run -> step_N and absolute_metrics,
  as the README of instadeepai/marl-eval describes it (id-marl-eval 0.0.4). All
  runs have the same steps: those at which every run has a number. Lists of
  values have one, the mean over the episodes of a row. marl-eval's absolute
  metric is that of the best policy, played again, which siamrl does not do;
  here it is the mean over the last tenth of a run, which is not biased by a
  choice. The metric of returns is `return`, since marl-eval splits names at
  underscores.

  Args:
    frame: the runs, with the columns NAMES and KINDS.
    column: the metric; None for returns of evaluations, or of training.

  Raises:
    UsageError: there is no such column, or marl-eval could not read the runs:
      they have no steps in common, or algorithms have unlike numbers of them.
  """
  check(frame)
  column = _column(frame, column)
  metric = 'return' if column in _RETURNS else column.replace('_', '-')
  places, runs = _runs(frame, column)
  _check_numbers(runs)
  shared: dict[tuple[str, str], list[int]] = {}
  for (place, task, _), curves in runs.items():
    for curve in curves.values():
      known = shared.setdefault((place, task), list(curve))
      shared[place, task] = [step for step in known if step in curve]
  most = {
    place: min(len(s) for (p, _), s in shared.items() if p == place)
    for place in places
  }
  notes: list[str] = []
  result: dict[str, Any] = {place: {} for place in places}
  left_out = 0
  for (place, task, name), curves in runs.items():
    if not most[place]:
      raise UsageError(
        f'--runs must have rows at the same {CLOCK} for --format=marl_eval, '
        f'and those of {task} have none in common'
      )
    tables: dict[str, Any] = {}
    for number, curve in enumerate(curves.values(), 1):
      steps = shared[place, task][: most[place]]
      left_out += len(curve) - len(steps)
      values = [curve[step] for step in steps]
      tables[f'run_{number}'] = {
        f'step_{n}': {'step_count': step, metric: [curve[step]]}
        for n, step in enumerate(steps, 1)
      } | {'absolute_metrics': {metric: [float(final_mean(steps, values))]}}
    result[place].setdefault(task, {})[name] = tables
  if left_out:
    notes.append(f'{left_out} rows are left out, which not all runs have')
  return result, notes


def _column(frame: Table, column: str | None) -> str:
  """The metric that is exported."""
  skipped = {*settings(frame), *_NO_METRICS}
  columns = [
    name
    for name in frame
    if name not in skipped and frame[name].dtype.kind != 'U'
  ]
  if column is None:
    whole = [n for n in _RETURNS if n in columns and _in_all(frame, n)]
    column = (whole or [*_RETURNS])[0]
  if column not in columns:
    raise UsageError(f'--column={column} must be one of {", ".join(columns)}')
  return column


def _in_all(frame: Table, column: str) -> bool:
  """Whether each folder has a number in a column."""
  known = np.isfinite(frame[column])
  folders = frame[FOLDER_COLUMN]
  return bool(np.isin(folders, folders[known]).all())


_Runs = dict[tuple[str, str, str], dict[Any, dict[int, float]]]


def _runs(frame: Table, column: str) -> tuple[list[str], _Runs]:
  """The curves of all runs, by environment, task and algorithm."""
  runs: _Runs = {}
  kinds = {n: _texts(frame[n]) for n in KINDS if n in frame}
  rows = zip(
    tasks(frame),
    experiments(frame),
    _texts(frame[RUN_COLUMN]),
    frame[FOLDER_COLUMN].tolist(),
    frame[CLOCK].tolist(),
    frame[column].tolist(),
    strict=True,
  )
  for index, (task, name, seed, folder, step, value) in enumerate(rows):
    found = [KINDS[kind] for kind, texts in kinds.items() if texts[index]]
    place = found[0] if found else _place(task)
    curves = runs.setdefault((place, task.lower(), name), {})
    curve = curves.setdefault((seed, folder), {})
    if math.isfinite(value) and step == step:
      curve[int(step)] = float(value)
  return list(dict.fromkeys(place for place, _, _ in runs)), runs


def _place(task: str) -> str:
  """The name of the environments that a task is one of."""
  return 'gymnasium' if re.search(r'-v\d+$', task) else 'classic'


def _check_numbers(runs: Mapping[tuple[str, str, str], Any]) -> None:
  """Raises UsageError where algorithms have unlike numbers of runs."""
  if len({len(curves) for curves in runs.values()}) > 1:
    counts = '; '.join(
      f'{name} in {task}: {len(curves)}'
      for (_, task, name), curves in runs.items()
    )
    raise UsageError(
      '--runs must have as many runs of each agent in each task for '
      f'--format=marl_eval, and have {counts}'
    )


def parquet(frame: Table) -> bytes:
  """The rows as a file of Parquet; what is missing is null.

  Raises:
    ImportError: pyarrow is not installed, or cannot be imported.
  """
  arrow = import_optional('pyarrow', 'Parquet needs pyarrow', 'export')
  files = import_optional('pyarrow.parquet', 'Parquet needs pyarrow', 'export')
  sink = arrow.BufferOutputStream()
  files.write_table(
    arrow.table({name: _nulls(arrow, c) for name, c in frame.items()}), sink
  )
  return sink.getvalue().to_pybytes()


def _nulls(arrow: Any, column: np.ndarray) -> Any:
  if column.dtype.kind == 'U':
    return arrow.array([text or None for text in column.tolist()])
  return arrow.array(column, from_pandas=True)


def missing(names: Sequence[str], frame: Table) -> Table:
  """A table without the columns that have no value and are in `names`."""
  return {
    name: column
    for name, column in frame.items()
    if name not in names or any(_texts(column))
  }
