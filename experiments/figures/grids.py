"""Settings as the rows and columns of a grid."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.config.declaring import UsageError
from experiments.figures import together
from experiments.figures.together import Study
from siamrl import twins
from siamrl.report import sweep as sweep_figures
from siamrl.report.arrangement import in_words

_MOST_ROWS = 24


class Grid(NamedTuple):
  """The places of settings in a grid.

  Attributes:
    rows: names of the rows.
    columns: names of the columns.
    cells: the row and column of each setting, from 0.
    x_label: what columns are, with the unit.
    y_label: what rows are.
    notes: what else a reader must know.
  """

  rows: list[str]
  columns: list[str]
  cells: list[tuple[int, int]]
  x_label: str
  y_label: str
  notes: list[str]


def arrange(
  config: Any, part: Study, settings: Sequence[Mapping[str, Any]]
) -> Grid:
  """Places settings by the period of the twin, or what else they vary most.

  Args:
    config: options of `experiments.plot`.
    part: runs of one task, which has all of the settings.
    settings: the settings.

  Raises:
    UsageError: if there are not two swept options, or too many values of one.
  """
  table, by, _ = together.long_table(part)
  shown, position, x_label = sweep_figures.places(
    table, by, part.flags, twins.with_period()
  )
  if not shown:
    counts = {n: len({p[n] for p in settings}) for n in by}
    across = max(counts, key=lambda n: counts[n], default='')
    shown, position, x_label = (
      [across],
      _value_of(across),
      together.words(across),
    )
  places = [_rounded(position(point)) for point in settings]
  swept = [n for n in by if n not in shown]
  down = _of_rows(swept, settings, places)
  lines = [tuple(p[n] for n in down) for p in settings]
  columns, rows = _ordered(places), _ordered(lines)
  if len(columns) < 2 or len(rows) < 2:
    raise UsageError(
      f'--kind=heatmap must have two swept options, and --runs={config.runs} '
      f'has {", ".join(n for n in by if n != together.LABEL) or "none"}'
    )
  if len(set(zip(lines, places, strict=True))) < len(places):
    raise UsageError(
      f'--kind=heatmap must have one setting at each place of {x_label}'
    )
  if len(rows) > _MOST_ROWS or len(columns) > _MOST_ROWS:
    raise UsageError(
      f'--kind=heatmap must have at most {_MOST_ROWS} rows and columns, not '
      f'{len(rows)} and {len(columns)}'
    )
  follow = [together.words(n) for n in swept if n not in down]
  return Grid(
    [
      _tick(row[0])
      if len(down) == 1
      else in_words(dict(zip(down, row, strict=True)))
      for row in rows
    ],
    [_tick(place) for place in columns],
    [
      (rows.index(line), columns.index(place))
      for line, place in zip(lines, places, strict=True)
    ],
    x_label,
    ', '.join(map(together.words, down)),
    [f'{", ".join(follow)}: a value for each column'] * bool(follow),
  )


def _of_rows(
  swept: Sequence[str],
  settings: Sequence[Mapping[str, Any]],
  places: Sequence[Any],
) -> list[str]:
  """The options that tell rows apart.

  One whose value follows from the column does not, such as the end of a period
  that grows, which is so many times its beginning. It would make a row of each
  cell.
  """
  kept = list(swept)
  for name in swept:
    others = [n for n in kept if n != name]
    with_it, without = (
      [tuple(point[n] for n in names) for point in settings]
      for names in (kept, others)
    )
    alone = len(set(zip(without, places, strict=True))) == len(settings)
    if alone and 1 < len({*without}) < len({*with_it}):
      kept = others
  return kept


def _ordered(values: Sequence[Any]) -> list[Any]:
  """Values in order: numbers by size, texts as they occur, None at the end."""
  distinct = list(dict.fromkeys(values))
  parts = lambda value: value if isinstance(value, tuple) else (value,)
  if any(isinstance(part, str) for value in distinct for part in parts(value)):
    return distinct
  return sorted(
    distinct,
    key=lambda value: [(part is None, part or 0) for part in parts(value)],
  )


def _rounded(place: Any) -> Any:
  """A place to four digits, as a rate and the period that it matches meet."""
  if isinstance(place, (int, float)):
    return float(f'{place:.4g}')
  return place


def _tick(place: Any) -> str:
  if place is None:
    return 'none'
  return f'{place:.4g}' if isinstance(place, (int, float)) else str(place)


def _value_of(name: str) -> Callable[[Mapping[str, Any]], Any]:
  return lambda point: point.get(name)
