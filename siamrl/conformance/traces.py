"""Traces: files in which a training loop has written how its networks move.

A trace has a row for each pass of the loop, with the counters after it and a
number for each network, such as the sum of its parameters. In Python it takes
five lines to write one, here with parameters of JAX,

  total = lambda params: sum(float(x.sum()) for x in jax.tree.leaves(params))
  file = open('trace.csv', 'w')
  print('env_step,gradient_step,online,target', file=file)
  def log(env_step, gradient_step, online, target):
    print(env_step, gradient_step, repr(total(online)), repr(total(target)),
          sep=',', file=file)

and with networks of PyTorch

  total = lambda net: sum(p.double().sum().item() for p in net.parameters())

and with dicts of NumPy's arrays

  total = lambda params: sum(p.sum(dtype='float64') for p in params.values())

Call `log` once before training, so that the birth of the target can be seen,
and then after each gradient step, with all digits. From sums tau can be read;
from norms or hashes only copies can. Then

  python -m siamrl.conformance trace.csv --rule=hard --period=500

says which period was realized, in which unit, with which phase and order. One
of the two counters will do. The columns may also be arrays of an NPZ file.
"""

from collections.abc import Iterator, Mapping
import csv
import dataclasses
import pathlib

import numpy as np

COUNTERS = ('gradient_step', 'env_step')
UNITS = {'gradient_steps': 'gradient_step', 'env_steps': 'env_step'}


class TraceError(ValueError):
  """A file cannot be read as a trace."""


@dataclasses.dataclass(frozen=True)
class Trace:
  """A trace of one run, or of several.

  Attributes:
    counters: int64 [N] by the names of `COUNTERS`, one of them or both.
    online: float64 [N] number for the online network.
    target: float64 [N] number for the target.
    notes: what was passed over.
  """

  counters: Mapping[str, np.ndarray]
  online: np.ndarray
  target: np.ndarray
  notes: tuple[str, ...] = ()

  def rows(self, start: int, end: int) -> 'Trace':
    """Some of the rows."""
    return Trace(
      {name: values[start:end] for name, values in self.counters.items()},
      self.online[start:end],
      self.target[start:end],
    )


def read(path: str | pathlib.Path) -> Trace:
  """Reads a trace from a CSV or NPZ file.

  Raises:
    TraceError: the file is not there, or no trace; the message names the row,
      the column and the value.
  """
  path = pathlib.Path(path)
  try:
    columns = _npz(path) if path.suffix == '.npz' else _csv(path)
  except FileNotFoundError as error:
    raise TraceError(f'{path}: there is no such file') from error
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise TraceError(f'{path}: cannot be read: {error}') from error
  return from_columns(columns, str(path))


def from_columns(columns: Mapping[str, np.ndarray], name: str) -> Trace:
  """A trace of arrays by the names of their columns.

  Args:
    columns: float64 [N] by name.
    name: of the trace, for errors.

  Raises:
    TraceError: they are no trace; the message names row, column and value.
  """
  # In the plural, counters are as good.
  columns = {
    key[:-1] if key in UNITS else key: values for key, values in columns.items()
  }
  for key in ('online', 'target'):
    if key not in columns:
      raise TraceError(
        f'{name}: has no column {key}, only {", ".join(columns)}'
      )
  keys = [key for key in COUNTERS if key in columns]
  if not keys:
    raise TraceError(
      f'{name}: has neither a column gradient_step nor env_step, only '
      f'{", ".join(columns)}'
    )
  lengths = {key: len(columns[key]) for key in [*keys, 'online', 'target']}
  if len(set(lengths.values())) > 1:
    raise TraceError(f'{name}: columns differ in length: {lengths}')
  if len(columns['online']) < 2:
    raise TraceError(
      f'{name}: has {len(columns["online"])} rows, needs at least 2'
    )
  counters = {}
  for key in keys:
    values = columns[key]
    whole = np.isfinite(values) & (values == np.round(values)) & (values >= 0)
    if not whole.all():
      row = int(np.argmin(whole))
      raise TraceError(
        f'{name}: row {row + 1}: {key}={values[row]:g} must be a whole number '
        'from 0 on'
      )
    counters[key] = values.astype(np.int64)
  return _finite(Trace(counters, columns['online'], columns['target']))


def _finite(trace: Trace) -> Trace:
  """The rows before the first that is not finite."""
  finite = np.isfinite(trace.online) & np.isfinite(trace.target)
  if finite.all():
    return trace
  row = int(np.argmin(finite))
  if row < 2:
    raise TraceError(
      f'row {row + 1}: online={trace.online[row]}, target={trace.target[row]} '
      'must be finite'
    )
  note = (
    f'from row {row + 1} on, numbers are not finite: nothing is told of the '
    f'last {len(finite) - row} rows'
  )
  return dataclasses.replace(trace.rows(0, row), notes=(note,))


def _csv(path: pathlib.Path) -> dict[str, np.ndarray]:
  with path.open(newline='', encoding='utf-8-sig') as file:
    reader = csv.reader(file)
    rows = [(reader.line_num, row) for row in reader if row]
  if not rows:
    raise TraceError(f'{path}: is empty')
  header = [name.strip() for name in rows[0][1]]
  wanted = {*COUNTERS, *UNITS, 'online', 'target'} & set(header)
  columns: dict[str, list[float]] = {name: [] for name in header}
  for line, row in rows[1:]:
    if [cell.strip() for cell in row] == header:
      continue  # a second run was appended with its header
    if len(row) != len(header):
      raise TraceError(
        f'{path}: line {line} has {len(row)} cells, must have {len(header)}'
      )
    for name, cell in zip(header, row, strict=True):
      if name not in wanted:
        continue
      try:
        columns[name].append(float(cell))
      except ValueError as error:
        raise TraceError(
          f'{path}: line {line}: {name}={cell!r} must be a number'
        ) from error
  return {name: np.array(values) for name, values in columns.items()}


def _npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  columns = {}
  with path.open('rb') as beginning:
    if beginning.read(2) != b'PK':
      raise TraceError(f'{path}: is no NPZ file')
  try:
    with np.load(path, allow_pickle=False) as file:
      for name in file.files:
        values = file[name]
        if values.ndim == 1 and values.dtype.kind in 'fiu':
          columns[name] = values.astype(np.float64)
  except ValueError as error:
    raise TraceError(f'{path}: cannot be read: {error}') from error
  except Exception as error:
    if isinstance(error, OSError):
      raise
    raise TraceError(f'{path}: is no NPZ file: {error}') from error
  return columns


def runs(trace: Trace) -> Iterator[tuple[Trace, str]]:
  """Yields the runs of a trace, with a sentence about where one begins.

  Raises:
    TraceError: rows are out of order.
  """
  rows = len(trace.online)
  falls = np.zeros(rows - 1, bool)
  for values in trace.counters.values():
    falls |= np.diff(values) < 0
  count = int(falls.sum())
  if count > 2 and count > rows / 20:
    row = int(np.argmax(falls))
    name, values = next(
      (name, values)
      for name, values in trace.counters.items()
      if values[row + 1] < values[row]
    )
    raise TraceError(
      f'rows are out of order: counters fall at {count} of {rows}, such as '
      f'{name} from {values[row]} to {values[row + 1]} at row {row + 2}'
    )
  starts = [0, *(int(row) + 1 for row in np.flatnonzero(falls)), rows]
  for start, end in zip(starts, starts[1:], strict=False):
    said = ''
    if start:
      said = '; '.join(
        f'{name} falls from {values[start - 1]} to {values[start]}'
        for name, values in trace.counters.items()
        if values[start] < values[start - 1]
      )
      said = (
        f'at row {start + 1} {said}: a second run, or one that was resumed '
        'from an earlier step'
      )
    run = trace.rows(start, end)
    if end == rows:
      run = dataclasses.replace(run, notes=trace.notes)
    yield run, said
