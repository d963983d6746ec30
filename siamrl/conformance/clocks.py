"""Clocks, read from the times at which something moved."""

from collections.abc import Mapping
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
  """

  kind: str
  period: int | None = None
  phase: int | None = None
  first: int | None = None
  late: bool = False
  moves: tuple[int, ...] = ()
  gaps: tuple[int, ...] = ()

  def __str__(self) -> str:
    if self.kind == 'never':
      return 'no move'
    if self.kind == 'once':
      return f'a single move, at {self.first}'
    if self.kind == 'periodic':
      begins = f', first at {self.first}' if self.late else ''
      return f'a move every {self.period}{begins}'
    shown = ', '.join(map(str, self.moves[:6]))
    more = ', ...' if len(self.moves) > 6 else ''
    between = ''
    if self.gaps:
      between = f', {min(self.gaps)} to {max(self.gaps)} apart'
    return f'moves at {shown}{more}{between}, without a period'


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
    return Clock('once', first=first, moves=moves)
  period = math.gcd(*(time - first for time in moves[1:]))
  phase = first % period
  due = [time for time, m in moved.items() if not m and time % period == phase]
  if any(time > first for time in due):
    return Clock('irregular', None, None, first, False, moves, gaps)
  return Clock('periodic', period, phase, first, bool(due), moves, gaps)
