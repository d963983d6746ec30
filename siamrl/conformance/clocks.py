"""Clocks, read from the times at which something moved."""

from collections.abc import Mapping, Sequence
import math
from typing import NamedTuple


class Clock(NamedTuple):
  """A clock.

  Attributes:
    kind: 'periodic', 'never', 'once' (a single move was seen, among stillness)
      or 'irregular'.
    period: time from one move to the next, if periodic.
    phase: remainder of the times of moves by the period, if periodic.
    first: time of the first move that was seen.
    late: nothing moved at times before the first that fit period and phase.
    moves: times of moves that were seen, in order.
    gaps: distances from move to move where all times between were seen.
    stops: time of the last move, if nothing moved at later times at which a
      clock that is periodic until then would have.
    pattern: what is regular in an irregular clock, in words; '' for nothing.
  """

  kind: str
  period: int | None = None
  phase: int | None = None
  first: int | None = None
  late: bool = False
  moves: tuple[int, ...] = ()
  gaps: tuple[int, ...] = ()
  stops: int | None = None
  pattern: str = ''

  def __str__(self) -> str:
    if self.kind == 'never':
      return 'no move'
    if self.kind == 'once':
      return f'a single move, at {self.first}'
    if self.kind == 'periodic':
      begins = f' from {self.first} on' if self.late else ''
      return f'a move every {self.period}{begins}'
    if self.pattern:
      return self.pattern
    between = ''
    if self.gaps:
      between = f', {min(self.gaps)} to {max(self.gaps)} apart'
    return f'moves at {_shown(self.moves)}{between}, without a period'


def _shown(times: Sequence[int]) -> str:
  """The first of some times."""
  more = ', ...' if len(times) > 6 else ''
  return f'{", ".join(map(str, times[:6]))}{more}'


def fit(moved: Mapping[int, bool]) -> Clock:
  """The clock that fits what moved and what stood still.

  Args:
    moved: time -> whether it moved then.
  """
  moves = tuple(sorted(time for time, moves in moved.items() if moves))
  if not moves:
    return Clock('never')
  first = moves[0]
  gaps = tuple(
    after - before
    for before, after in zip(moves, moves[1:], strict=False)
    if after - before <= len(moved)
    and all(time in moved for time in range(before, after))
  )
  if len(moves) == 1:
    again = first > 0 and any(
      time > first and time % first == 0 for time in moved
    )
    stops = first if again else None
    return Clock('once', first=first, moves=moves, stops=stops)
  period = math.gcd(*(time - first for time in moves[1:]))
  phase = first % period
  due = [time for time, m in moved.items() if not m and time % period == phase]
  if not any(time > first for time in due):
    return Clock('periodic', period, phase, first, bool(due), moves, gaps)
  stops = None
  if min(time for time in due if time > first) > moves[-1]:
    stops = moves[-1]
    pattern = f'a move every {period} up to {stops}, and none after'
    if first > period or any(time < first for time in due):
      pattern = f'a move every {period} from {first} to {stops}, and no other'
  else:
    pattern = _exceptions(moved, moves, gaps) or _two(moved, moves)
  return Clock(
    'irregular', None, None, first, False, moves, gaps, stops, pattern
  )


def _exceptions(
  moved: Mapping[int, bool], moves: Sequence[int], gaps: Sequence[int]
) -> str:
  """A period that most moves have, with the exceptions, in words."""
  if not gaps:
    return ''
  period = max(set(gaps), key=gaps.count)
  phases = [time % period for time in moves]
  phase = max(set(phases), key=phases.count)
  fitting = [time for time in moves if time % period == phase]
  more = [time for time in moves if time % period != phase]
  less = sorted(
    time
    for time, moves in moved.items()
    if not moves and time % period == phase and time > fitting[0]
  )
  if not fitting or len(more) + len(less) > 0.25 * len(fitting):
    return ''
  said = f'a move every {period}'
  if less:
    said += f', but none at {_shown(less)}'
  if len(more) > 1 and _every(moved, more[0]) >= set(more):
    return f'{said}, and another every {more[0]}'
  return f'{said}, and others at {_shown(more)}' if more else said


def _two(moved: Mapping[int, bool], moves: Sequence[int]) -> str:
  """Two clocks that have all moves together, in words."""
  first = _every(moved, moves[0])
  rest = [time for time in moves if time not in first]
  if len(first) < 2 or not rest or not _every(moved, rest[0]) >= set(rest):
    return ''
  return f'a move every {moves[0]}, and another every {rest[0]}'


def _every(moved: Mapping[int, bool], period: int) -> set[int]:
  """Multiples of a period, if there is a move at each that was looked at."""
  if period < 1:
    return set()
  looked = {time for time in moved if time % period == 0 and time > 0}
  return looked if all(moved[time] for time in looked) else set()
