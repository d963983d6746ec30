"""Identification: which rule an update is, from its answers alone."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
import math
import time
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from siamrl.conformance import trees
from siamrl.conformance.clocks import Clock
from siamrl.conformance.probing import (
  IGNORED,
  ConformanceError,
  Probe,
  Record,
  Type,
  Update,
  filled,
  require_arguments,
  shared,
)
from siamrl.conformance.reading import EQUAL, Movement, clock, movement, same

# Gradient steps that are tried one after the other, whatever they show.
_SCAN = 128
# Numbers with many divisors, below 2**31. A rule whose period divides one of
# them moves there; its period is the least divisor at which it does.
_COMPOSITES = (2**9 * 3**2 * 5**6 * 7, 2**5 * 3**4 * 5**2 * 7 * 11 * 13)
# Calls that are left for checks of what was found.
_RESERVE = 60
# Calls that are left of a long scan for schedules of several leaves.
_LONG_RESERVE = 300
# More different weights than these come from a schedule.
_FEW_KINDS = 5
# Calls by default, and the seconds that a scan for what else moves may take.
# Where a longer period is due, the search for it may take twice as long.
_CALLS, _SECONDS = 20_000, 2.0
# Moves without a period after which none is looked for.
_MOST_MOVES = 20


@dataclasses.dataclass(frozen=True)
class Identity:
  """The outcome of `identify`.

  Attributes:
    rule: the rule's name in `siamrl.twins.RULES`; 'by_path' if leaves follow
      different ones; 'soft with hard' for both at once; None if no rule fits.
    tau: weight of the online parameters in an update.
    period: time from one update to the next, see `counts`.
    phase: remainder of the times of updates by the period, 0 in siamrl.
    first: time of the first update, if there was none at earlier times that
      fit period and phase, as after a warm-up.
    parameters: other parameters of the rule.
    counts: 'gradient_steps', or 'calls' if the update counts its calls itself.
    leaves: how each leaf moves, by path. The rule is that of floating leaves
      that are no statistics of batch normalization.
    birth: 'copy', 'alias', 'soft', 'independent' or 'other'; None if no `init`
      was given.
    aliases: paths at which the target shares memory with the online network.
    writes: 'target' or 'online' for arguments that are changed in place.
    notes: what else was seen, and what could not be told.
    looked: gradient steps at which it was called, in words. A second clock that
      shows itself at none of them stays unseen.
    calls: how often the update was called.
  """

  rule: str | None
  tau: float | None = None
  period: int | None = None
  phase: int | None = None
  first: int | None = None
  parameters: Mapping[str, float] = dataclasses.field(default_factory=dict)
  counts: str = 'gradient_steps'
  leaves: Mapping[str, Movement] = dataclasses.field(default_factory=dict)
  birth: str | None = None
  aliases: tuple[str, ...] = ()
  writes: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()
  looked: str = ''
  calls: int = 0

  def __str__(self) -> str:
    if self.rule is None:
      lines = ['not identified']
    else:
      lines = [
        str(
          Movement(
            self.rule,
            self.tau,
            self.period,
            self.phase,
            self.first,
            self.parameters,
          )
        )
      ]
    if self.counts == 'calls':
      lines.append('counts its own calls, not gradient steps')
    if len(set(map(str, self.leaves.values()))) > 1:
      lines += [f'{path}: {moves}' for path, moves in self.leaves.items()]
    if self.birth is not None:
      lines.append(f'born: {self.birth}')
    if self.aliases:
      lines.append(f'shares memory with the online network: {self.aliases}')
    lines += [f'changes its {name} in place' for name in self.writes]
    lines += [*self.notes, self.looked]
    return '\n'.join(filter(None, lines))


def identify(
  update: Update,
  params: Any,
  *,
  init: Callable[[Any], Any] | None = None,
  calls: int | None = None,
) -> Identity:
  """Says which rule an update is.

  It is called with parameters that are made here, after gradient steps number
  1, 2, 3, ... and after some that are far away. So the update may be a function
  of its arguments, or count its calls; one that counts goes on counting, so
  that the next `identify` or `check` needs a fresh one. What an update does at
  other gradient steps is not known; the answer says at which it was called.

  Args:
    update: (online, target, gradient_steps) -> target. Gradient steps are
      counted after the optimizer's step, from 1 on. For one that changes the
      target in place, see `in_place`.
    params: any parameters, such as those of a small network; only their
      structure, types and shapes matter.
    init: online -> target at birth; by default targets look like `params`.
    calls: most calls; by default 20,000, more for two periods of an update that
      counts its calls, and fewer if those that only look for a second clock
      take more than two seconds. Periods up to half of it are
      found, and longer ones if they divide 504,000,000 or 64,864,800.

  Raises:
    TypeError: `update` takes other arguments, or `params` holds no numbers.
    ValueError: `params` holds no floating numbers.
  """
  return examine(update, params, init=init, calls=calls).identity


class Examination(NamedTuple):
  """An identity, with what it was drawn from.

  Attributes:
    identity: the identity.
    probe: the record of the calls; None if there were none.
    error: the law without which a rule cannot be told, if it is broken.
    birth_weights: weights of the online network in the target at birth, by
      path; empty if no `init` was given.
  """

  identity: Identity
  probe: Probe | None
  error: ConformanceError | None
  birth_weights: Mapping[str, float]


def examine(
  update: Update,
  params: Any,
  *,
  init: Callable[[Any], Any] | None = None,
  calls: int | None = None,
  search: int | None = None,
  hints: Sequence[int] = (),
) -> Examination:
  """`identify`, for those who ask what it saw.

  Args:
    update: as there.
    params: as there.
    init: as there.
    calls: as there.
    search: calls that are worth it to see the period, whatever they show.
    hints: gradient steps to look at besides.
  """
  require_arguments(update)
  seconds = _SECONDS if calls is None else math.inf
  calls = max(_CALLS, search or 0) if calls is None else calls
  if isinstance(calls, bool) or not isinstance(calls, int) or calls < 200:
    raise ValueError(f'calls={calls!r} must be a whole number from 200 on')
  birth: str | None = None
  weights: Mapping[str, float] = {}
  target, probe, error = params, None, None
  try:
    if init is not None:
      target, birth, weights = _birth(init, params)
    probe = Probe(update, params, target, min(calls, search or calls))
    step = _search(probe, hints, seconds)
    probe.allow(calls)
    _scan(probe, step, seconds)
  except ConformanceError as broken:
    error = broken
  if probe is not None and probe.records:
    identity, error = _conclude(probe, error, birth)
  else:
    assert error is not None
    made = 0 if probe is None else probe.calls
    identity = Identity(None, birth=birth, notes=(error.seen,), calls=made)
  return Examination(identity, probe, error, weights)


def _birth(
  init: Callable[[Any], Any], params: Any
) -> tuple[Any, str, Mapping[str, float]]:
  """A target, how it is born, and the weights of the online network in it."""
  rng = np.random.default_rng(0)

  def draw(leaf: Type) -> np.ndarray:
    if leaf.kind == 'f':
      return rng.uniform(0.5, 2, leaf.shape)
    return rng.integers(0, min(leaf.scale, 100) + 1, leaf.shape)

  onlines = [filled(params, draw) for _ in range(2)]
  targets = [init(online) for online in onlines]
  if any(target is None for target in targets):
    raise ConformanceError('structure', 'init returns None, not a target')
  target = targets[0]
  given, other = map(trees.read, onlines)
  made, made_of_other = map(trees.read, targets)
  if given.keys() != made.keys():
    return target, 'other', {}
  weights = {}
  exact = True
  for path, leaf in trees.leaves(target):
    if made[path].shape != given[path].shape:
      return target, 'other', {}
    if not made[path].size or made[path].dtype.kind != 'f':
      continue
    change = (given[path] - other[path]).ravel()
    effect = (made[path] - made_of_other[path]).ravel()
    weights[path] = float(change @ effect / (change @ change))
    rounding = 4 * trees.precision(leaf)
    exact &= np.allclose(made[path], given[path], rounding, 0)
  if shared(target, onlines[0]):
    return target, 'alias', weights
  if exact:
    return target, 'copy', weights
  least, most = min(weights.values()), max(weights.values())
  if most < EQUAL:
    return target, 'independent', weights
  soft = most - least < 1e-3 and most < 1 - EQUAL
  return target, 'soft' if soft else 'other', weights


def _search(probe: Probe, hints: Sequence[int], seconds: float) -> int:
  """Calls an update until its clock is known, or no call is left.

  Returns:
    The last of the gradient steps that were looked at one after the other.
  """
  step = min(_SCAN, probe.left // 4)
  for number in range(1, step + 1):
    probe.rate(number)
    if probe.misused:
      return number
  far = [
    hint
    for hint in hints
    if probe.left > _RESERVE and probe.rate(hint).any() and hint > step
  ]
  for number in [*_COMPOSITES, *far[:1]]:
    _divide(probe, number)
  found, looks, foretold = _clock(probe), 0, False
  end = time.monotonic() + 2 * seconds
  while (
    probe.left > _RESERVE
    and looks < _MOST_MOVES
    and (probe.calls < _CALLS or time.monotonic() < end)
  ):
    if _known(found):
      if foretold or found.period in (None, 1):
        break
      _look_far(probe, found)
      found, foretold = _clock(probe), True
      continue
    step += 1
    moves = probe.rate(step).any()
    if probe.misused:
      break
    if moves:
      looks += 1
      if looks == 1:
        call = probe.calls
        near = (2 * step - 1, 2 * step, 2 * step + 1, 3 * step)
        again = [number for number in near if probe.rate(number).any()]
        if not again and seconds < math.inf:
          # Perhaps it counts its calls.
          probe.allow(2 * call + 4 * _RESERVE)
      found = _clock(probe)
  return step


def _scan(probe: Probe, step: int, seconds: float) -> None:
  """Looks at one gradient step after the other for what else moves.

  Args:
    probe: what its clock is may be known.
    step: the last of them that was looked at.
    seconds: about the most time that is taken.
  """
  if probe.misused:
    return
  end = time.monotonic() + seconds
  reserve = _RESERVE
  if len(_kinds(probe)) > _FEW_KINDS:
    reserve = max(_RESERVE, min(_LONG_RESERVE, probe.left // 2))
  enough = math.inf if seconds == math.inf else _CALLS
  while (
    probe.left > reserve
    and probe.calls < enough
    and (step % 64 or time.monotonic() < end)
  ):
    step += 1
    probe.rate(step)
  kinds = _kinds(probe)
  if len(kinds) <= _FEW_KINDS:
    for record in kinds:
      for count in (2, 3):
        if probe.left > _RESERVE // 2:
          probe.rate(count * record.step)
  found = _clock(probe)
  if found.period not in (None, 1):
    _look_far(probe, found)
  _find_first(probe)


def _kinds(probe: Probe) -> list[Record]:
  """The first call of each set of weights, in order."""
  weights = np.round([record.rates / EQUAL for record in probe.records])
  _, first = np.unique(weights, axis=0, return_index=True)
  return [probe.records[index] for index in sorted(first)]


def _find_first(probe: Probe) -> None:
  """Looks for the first move of a clock that starts late, by halving."""
  counts, found = _counted(probe)
  if not found.late or found.period is None or found.first is None:
    return
  if counts == 'calls':
    return
  still = [
    record.step // found.period
    for record in probe.records
    if record.step % found.period == found.phase and record.step < found.first
  ]
  early, late = max(still, default=0), found.first // found.period
  while late - early > 1 and probe.left > _RESERVE // 4:
    middle = (early + late) // 2
    if probe.rate(middle * found.period + (found.phase or 0)).any():
      late = middle
    else:
      early = middle


def _look_far(probe: Probe, found: Clock) -> None:
  """Looks whether a clock goes on as it began."""
  for count in (3, 7, 101, 997):
    for beside in (-1, 0, 1):
      step = count * (found.period or 1) + (found.phase or 0) + beside
      if step < 2**31:
        probe.rate(step)


def _divide(probe: Probe, number: int) -> None:
  """Looks for the period of an update that moves at a number.

  It is the least divisor after which the update moves again. Early moves would
  not do, as an update may start late.
  """
  if probe.left < 2 * _RESERVE:
    return
  usual, there = probe.rate(number + 1), probe.rate(number)
  if same(usual, there):
    return
  least = number
  for prime in _primes(number):
    while least % prime == 0 and probe.left > _RESERVE:
      if not same(probe.rate(number + least // prime), there):
        break
      least //= prime
  for count in (1, 2, 3):
    if count * least < 2**31:
      probe.rate(count * least)


def _primes(number: int) -> list[int]:
  """The prime factors of a number, without those above 1000."""
  primes = []
  for prime in range(2, 1_000):
    if number % prime == 0:
      primes.append(prime)
      while number % prime == 0:
        number //= prime
  return primes if number == 1 or number >= 1_000_000 else [*primes, number]


def _clock(probe: Probe) -> Clock:
  """The clock of the first floating leaf that has moved."""
  return _counted(probe)[1]


def _counted(probe: Probe) -> tuple[str, Clock]:
  """The unit of that clock, and the clock."""
  for index, path in enumerate(probe.paths):
    moved = [bool(record.rates[index]) for record in probe.records]
    if path not in probe.integers and any(moved):
      return clock(probe.records, moved)
  return 'gradient_steps', Clock('never')


def _known(found: Clock) -> bool:
  """Whether more calls in order would say no more of a clock."""
  if found.kind == 'periodic':
    return len(found.moves) > 2 or bool(found.gaps)
  if found.kind != 'irregular' or len(found.moves) < 3:
    return False
  return math.gcd(*found.moves) > 1 or len(found.gaps) > 1


def _groups(probe: Probe) -> list[list[int]]:
  """Indices of leaves that had the same weights in all calls."""
  weights = np.array([record.rates for record in probe.records])
  groups: list[list[int]] = []
  for index in range(len(probe.paths)):
    for group in groups:
      if same(weights[:, index], weights[:, group[0]]):
        group.append(index)
        break
    else:
      groups.append([index])
  return groups


def _verify(probe: Probe, leaves: Mapping[str, Movement], counts: str) -> None:
  """Compares answers to random parameters with what the weights foretell.

  Raises:
    ConformanceError: they differ, or two of them do.
  """
  weights = np.array([record.rates for record in probe.records])
  chosen = _kinds(probe)
  for record in [*chosen[:3], *chosen[3:][-1:]]:
    arguments = probe.random(record.step)
    answers = [
      {
        path: np.array(leaf)
        for path, leaf in probe.answer(*given, record.step).items()
      }
      for given in (probe.random(record.step), probe.random(record.step))
    ]
    for index, path in enumerate(probe.paths):
      online, target = (given.before[path] * 1.0 for given in arguments)
      scale = max(np.abs(online).max(), np.abs(target).max())
      rounding = 16 * probe.precision(path) * scale
      if path in probe.integers:
        continue  # they may do as they like
      if counts == 'calls':
        tried = sorted(set(weights[:, index]))
      else:
        tried = [record.rates[index]]
        apart = np.abs(answers[0][path] * 1.0 - answers[1][path] * 1.0).max()
        if apart > rounding:
          raise ConformanceError(
            'deterministic',
            f'at gradient step {record.step} two calls with the same '
            f'arguments differ by {apart:.3g} at {path!r}; if it needs a seed, '
            'fix it',
          )
      errors = [
        np.abs(answers[0][path] - (weight * online + (1 - weight) * target))
        for weight in tried
      ]
      nearest = min(errors, key=lambda error: float(error.max()))
      if nearest.max() > rounding:
        _check_state(
          record, answers[0][path], online, target, weights[:, index]
        )
        at = np.unravel_index(int(nearest.argmax()), nearest.shape)
        raise ConformanceError(
          'mean',
          f'at gradient step {record.step} the target is not a weighted mean: '
          f'at {path!r}{list(map(int, at))} it is {answers[0][path][at]:.7g}, '
          f'with {online[at]:.7g} online, {target[at]:.7g} before and the '
          f'weight {record.rates[index]:.7g}',
        )


def _check_state(
  record: Record,
  answer: np.ndarray,
  online: np.ndarray,
  target: np.ndarray,
  weights: np.ndarray,
) -> None:
  """Looks whether an answer has the weight of another call.

  Raises:
    ConformanceError: it does.
  """
  for weight in np.unique(weights)[:10]:
    if np.allclose(answer, weight * online + (1 - weight) * target, 1e-5, 1e-7):
      raise ConformanceError(
        'deterministic',
        f'at gradient step {record.step} the online parameters have another '
        f'weight in one call than in the next, such as {weight:.7g}: the '
        'update is random, or has a state of its own, such as a counter of '
        'calls, which more calls would show',
      )


def _conclude(
  probe: Probe, error: ConformanceError | None, birth: str | None
) -> tuple[Identity, ConformanceError | None]:
  """Reads the record of a probe; an error if a law turns out to be broken."""
  leaves: dict[str, Movement] = {}
  counts = 'gradient_steps'
  for group in _groups(probe):
    counted, moves = movement(probe, group[0])
    if moves.period is not None:
      counts = counted
    leaves |= {probe.paths[index]: moves for index in group}
  leaves = {path: leaves[path] for path in probe.paths}
  if error is None:
    try:
      _verify(probe, leaves, counts)
    except ConformanceError as broken:
      error = broken
  floating = [path for path in probe.paths if path not in probe.integers]
  main = [p for p in floating if p not in probe.statistics] or floating
  chosen = leaves[main[0]]
  if any(leaves[path].rule is None for path in main):
    chosen = next(leaves[path] for path in main if leaves[path].rule is None)
  elif len({str(leaves[path]) for path in main}) > 1:
    chosen = Movement('by_path')
  notes = [chosen.seen] if chosen.seen else []
  if error is not None:
    chosen = Movement(None)
    notes = [error.seen]
  elif chosen.rule == 'frozen' and probe.ignored is not None:
    chosen, notes = Movement(None), [IGNORED]
  elif chosen.rule == 'frozen':
    furthest = max(record.step for record in probe.records)
    notes.append(
      f'no move in {probe.calls} calls, up to gradient step {furthest}; a '
      'longer period cannot be told from none'
    )
  writes = [
    name
    for name, step in (
      ('target', None if probe.in_place else probe.writes_target),
      ('online', probe.writes_online),
    )
    if step is not None
  ]
  if probe.returns_none and not probe.in_place:
    notes.append('returns None')
  notes += [
    f'{path!r} has the type {after} in the answer, not {before}'
    for path, (before, after) in probe.retyped.items()
  ]
  identity = Identity(
    chosen.rule,
    chosen.tau,
    chosen.period,
    chosen.phase,
    chosen.first,
    MappingProxyType(dict(chosen.parameters)),
    counts,
    MappingProxyType(leaves),
    birth,
    probe.aliased,
    tuple(writes),
    tuple(notes),
    _looked(probe, counts),
    probe.calls,
  )
  return identity, error


def _looked(probe: Probe, counts: str) -> str:
  """Where an update was looked at, in words."""
  if counts == 'calls':
    return f'looked at {len(probe.records):,} calls in a row'
  steps = {record.step for record in probe.records}
  last = next(step for step in itertools.count(1) if step not in steps) - 1
  others = len(steps) - last
  said = f'looked at each of gradient steps 1 to {last:,}'
  if others:
    said += f', and at {others:,} others up to {max(steps):,}'
  return said
