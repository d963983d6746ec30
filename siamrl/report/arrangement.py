"""Arrangement of a sweep's lines: which share axes, and how they look.

Every line in a pair of axes has a unique look: a color and a dash. If there are
too many lines to tell apart, an option gets a pane for each of its values; if
that is not enough, the lines are split between several panes.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# Okabe and Ito's colors, which can be told apart without full color vision, and
# two more. Gray is the color of references.
COLORS = (
  '#0072B2',
  '#D55E00',
  '#009E73',
  '#CC79A7',
  '#E69F00',
  '#56B4E9',
  '#8C510A',
  '#000000',
)
# Dashes and gaps are in line widths.
DASHES = ('-', '--', ':', '-.', (0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)))
MOST_LINES = 8  # sharing axes
# Options that names of settings begin with, as far as settings differ in them.
FOREMOST = (
  'agent',
  'target_update',
  'target_period',
  'tau',
  'target_paths',
  'target_form',
)
_SHARED = '#000000'  # color of lines drawn in every pane

Point = dict[str, Any]  # values of the swept columns; None if meaningless
Look = tuple[Any, Any]  # color, dash


class Pane(NamedTuple):
  """Lines that share axes.

  Attributes:
    title: what sets them apart from other panes; '' if there is only one.
    members: indices of its settings.
    looks: the looks of its settings, all different.
  """

  title: str
  members: list[int]
  looks: list[Look]


class Arrangement(NamedTuple):
  """All panes of a figure.

  Attributes:
    panes: at least one; a setting may be in several.
    facet: the options in which panes differ.
    key: lines of text on the meaning of color and dash; '' for none.
  """

  panes: list[Pane]
  facet: tuple[str, ...]
  key: str

  def labels(
    self, points: Sequence[Point], notes: Sequence[str] = ()
  ) -> dict[str, str]:
    """Returns the label of each look in a legend for all panes, by its `repr`.

    Args:
      points: the settings that were arranged.
      notes: text to append to the name of each; none by default.
    """
    found: dict[str, list[str]] = {}
    for brief in (True, False):
      found = {}
      for pane in self.panes:
        for member, look in zip(pane.members, pane.looks, strict=True):
          point = points[member]
          text = brief and in_words(_without(point, self.facet))
          text = text or in_words(point)
          text += notes[member] if notes else ''
          texts = found.setdefault(repr(look), [])
          if text not in texts:
            texts.append(text)
      if len({*itertools.chain(*found.values())}) == sum(
        map(len, found.values())
      ):
        break  # no two looks have the same name
    return {look: ' | '.join(texts) for look, texts in found.items()}


def arrange(
  points: Sequence[Point],
  facet: Sequence[str] | None = None,
  color: Sequence[str] = (),
) -> Arrangement:
  """Splits settings between panes and gives each a look.

  Args:
    points: the settings, all with the same options.
    facet: options with a pane for each combination of their values; None to
      choose some if there are more than `MOST_LINES` settings.
    color: the options of interest, which color shows: one, or several of which
      no setting has two. The default is those with numbers.
  """
  varied = _varied(points)
  color = [name for name in color if name in varied] or _scale(points, varied)
  if facet is None:
    facet = _choose_facet(points, [n for n in varied if n not in color])
  facet = tuple(name for name in facet if name in varied)
  color = [name for name in color if name not in facet]
  dash = [name for name in varied if name not in (*facet, *color)]
  parts, shared = _deal(points, facet, varied)
  members = [part for _, part in parts]
  looks, key = (
    _by_color_and_dash(points, members, color, dash)
    or _by_setting(points, members, facet)
    or _by_place(points, members, facet)
  )
  extra = [(_SHARED, DASHES[2 + number]) for number in range(len(shared))]
  panes = [
    Pane(title, [*part, *shared], [*look, *extra])
    for (title, part), look in zip(parts, looks, strict=True)
  ]
  return Arrangement(panes, facet, key)


def in_words(point: Point) -> str:
  """Describes a setting for a figure, with option names only where needed."""

  def named(name: str, value: Any) -> str:
    if value in ('true', 'false'):
      return f'{name}={value}'
    return value if isinstance(value, str) else f'{name}={value:.10g}'

  return literal(
    ', '.join(
      named(name, value) for name, value in point.items() if value is not None
    )
  )


def literal(text: str) -> str:
  """Escapes a text's dollars, which a figure would show as a formula."""
  return text.replace('$', r'\$')


def _without(point: Point, names: Iterable[str]) -> Point:
  return {name: value for name, value in point.items() if name not in names}


def _varied(points: Sequence[Point]) -> list[str]:
  """Returns the options that differ between settings."""
  names = points[0] if points else {}
  return [n for n in names if len({point[n] for point in points}) > 1]


def _scale(points: Sequence[Point], varied: Sequence[str]) -> list[str]:
  """Returns the options whose numbers color shows, at most one per setting."""
  values = {name: {point[name] for point in points} for name in varied}
  numeric = [
    name
    for name, found in values.items()
    if not any(isinstance(value, str) for value in found)
  ]
  chosen: list[str] = []
  for name in sorted(numeric, key=lambda n: -len(values[n] - {None})):
    others = [p for p in points if p[name] is not None]
    if all(p[other] is None for p in others for other in chosen):
      chosen.append(name)
  return chosen


def _groups(
  points: Sequence[Point], names: Sequence[str]
) -> dict[tuple, list[int]]:
  found: dict[tuple, list[int]] = {}
  for index, point in enumerate(points):
    found.setdefault(tuple(point[n] for n in names), []).append(index)
  return found


def _choose_facet(
  points: Sequence[Point], names: Sequence[str]
) -> tuple[str, ...]:
  """Returns the fewest options that leave no pane with too many lines."""
  if len(points) <= MOST_LINES:
    return ()
  most = {}
  for size in range(1, len(names) + 1):
    for subset in itertools.combinations(names, size):
      groups = _groups(points, subset)
      # A pane should compare lines, not hold a single one.
      if 2 * len(groups) <= len(points):
        most[subset] = max(map(len, groups.values()))
  fitting = [subset for subset in most if most[subset] <= MOST_LINES]
  return next(iter(fitting), min(most, key=lambda s: most[s], default=()))


def _deal(
  points: Sequence[Point], facet: Sequence[str], varied: Sequence[str]
) -> tuple[list[tuple[str, list[int]]], list[int]]:
  """Returns (title, members) of each pane, and the settings in all panes."""
  groups = _groups(points, facet)
  # A setting that would be alone in its pane, such as a rule without
  # parameters, is shown in every pane for comparison.
  alone = [key for key, members in groups.items() if len(members) == 1]
  shared = alone if len(alone) <= 2 and len(alone) < len(groups) else []
  parts = []
  for key, members in groups.items():
    if key in shared:
      continue
    title = in_words(dict(zip(facet, key, strict=True)))
    folds = -(-len(members) // MOST_LINES)
    size = -(-len(members) // folds)
    for start in range(0, len(members), size):
      part = members[start : start + size]
      ends = [
        in_words({n: v for n, v in points[m].items() if n in varied})
        for m in (part[0], part[-1])
      ]
      span = ' to '.join(dict.fromkeys(ends)) if folds > 1 else ''
      parts.append((': '.join(filter(None, [title, span])), part))
  return parts, [groups[key][0] for key in shared]


# Looks of each pane's lines, and the meaning of color and dash.
_Looks = tuple[list[list[Look]], str]


def _by_color_and_dash(
  points: Sequence[Point],
  parts: Sequence[Sequence[int]],
  color: Sequence[str],
  dash: Sequence[str],
) -> _Looks | None:
  """Shows some options by color and the rest by dash, if they form a grid.

  Numbers of one option, or of options that never occur in the same setting,
  share a color scale, which each dash covers from end to end: the first period
  of one rule has the same color as the first rate of another.
  """
  if not color:
    return None
  rest = {m: tuple(points[m][n] for n in dash) for part in parts for m in part}
  numeric = not any(isinstance(points[m][n], str) for m in rest for n in color)
  value = {
    m: tuple(v for v in (points[m][n] for n in color) if v is not None)
    for m in rest
  }
  looks = []
  dashes = list(dict.fromkeys(rest.values()))
  plain = list(dict.fromkeys(value.values()))
  for part in parts:
    scales: dict[tuple, list[tuple]] = {}
    for m in part:
      scale = scales.setdefault(rest[m], [])
      if value[m] and value[m] not in scale:
        scale.append(value[m])
    lone = [key for key, scale in scales.items() if len(scale) < 2]
    ordered = [key for key in scales if key not in lone]
    if numeric and len(ordered) < 2 and lone:
      return None  # one scale, but some settings are not on it
    if any(rest[m] in ordered and not value[m] for m in part):
      return None
    full = all(len(scale) == len(plain) for scale in scales.values())
    if not numeric and not (full and len(plain) > 1):
      return None
    if len(dashes) > len(DASHES) or (not numeric and len(plain) > len(COLORS)):
      return None
    for scale in scales.values():
      # A list given in descending order keeps that order.
      scale.sort(reverse=numeric and bool(scale) and scale[0] > scale[-1])
    most = max(map(len, scales.values()))
    looks.append(
      [
        (
          (
            _on_scale(scales[rest[m]].index(value[m]), len(scales[rest[m]]))
            if numeric
            else COLORS[plain.index(value[m])]
          )
          if rest[m] in ordered
          else COLORS[(min(most, 3) + lone.index(rest[m])) % len(COLORS)],
          DASHES[dashes.index(rest[m])],
        )
        for m in part
      ]
    )
  key = [f'color: {", ".join(color)}']
  if len(dashes) > 1:
    key.append(f'dash: {", ".join(dash)}')
  return looks, '\n'.join(key)


def _on_scale(rank: int, count: int) -> Any:
  """Returns the color of a number by rank: a plain one if there are few."""
  if count <= 3:
    return COLORS[rank]
  from matplotlib import colormaps

  return colormaps['viridis'](0.9 * rank / (count - 1))


def _by_setting(
  points: Sequence[Point], parts: Sequence[Sequence[int]], facet: Sequence[str]
) -> _Looks | None:
  """Gives each setting a color, the same in all panes, if colors suffice."""
  reduced = [
    [tuple(_without(points[m], facet).values()) for m in part] for part in parts
  ]
  found = list(dict.fromkeys(itertools.chain(*reduced)))
  if len(found) > len(COLORS):
    return None
  return [
    [(COLORS[found.index(r)], DASHES[0]) for r in part] for part in reduced
  ], _one_each(points, facet)


def _by_place(
  points: Sequence[Point], parts: Sequence[Sequence[int]], facet: Sequence[str]
) -> _Looks:
  """Gives each line of a pane a color, and each pane a dash."""
  return [
    [(COLORS[i], DASHES[number % len(DASHES)]) for i in range(len(part))]
    for number, part in enumerate(parts)
  ], _one_each(points, facet)


def _one_each(points: Sequence[Point], facet: Sequence[str]) -> str:
  """Returns the key for figures where every setting has its own color."""
  names = [name for name in _varied(points) if name not in facet]
  if not names:
    return ''
  return f'color: {names[0] if len(names) == 1 else "setting"}'
