"""Calls of an update with inputs whose answers can be read."""

from collections.abc import Callable, Sequence
import copy
import inspect
import math
from typing import Any, NamedTuple

import numpy as np

from siamrl.conformance import trees
from siamrl.conformance.defects import DEFECTS, STATISTICS

Update = Callable[[Any, Any, int], Any]


class ConformanceError(AssertionError):
  """A twin breaks a law.

  Attributes:
    law: key of `siamrl.conformance.LAWS`.
    seen: the numbers that were seen.
    defect: the defect of the museum that looks like it, a key of `DEFECTS`;
      None for none.
    guess: what may be the cause where the museum has nothing like it, in words.
    others: errors of other laws that are broken, too.
  """

  def __init__(
    self,
    law: str,
    seen: str,
    defect: str | None = None,
    guess: str = '',
    others: Sequence['ConformanceError'] = (),
  ):
    self.law, self.seen, self.defect, self.guess = law, seen, defect, guess
    self.others = tuple(others)
    lines = [f'{law}: {seen}']
    if defect is not None:
      about = DEFECTS[defect]
      lines += [f'It looks like {defect}: {about.happens}']
      lines += [f'Seen in {place}' for place in about.seen]
    if guess:
      lines.append(f'Perhaps {guess}.')
    lines += [f'Also broken: {other.law}: {other.seen}' for other in others]
    super().__init__('\n'.join(lines))


# Said of such an update.
IGNORED = (
  'the update returns a new target and leaves the one that it is given, as '
  'in_place is for updates that write it: leave in_place out'
)


class InPlace:
  """An update that changes its target in place, see `in_place`."""

  def __init__(self, update: Callable[[Any, Any, int], Any]):
    self.update = update

  def __call__(self, online: Any, target: Any, gradient_steps: int) -> Any:
    target = copy.deepcopy(target)
    self.update(online, target, gradient_steps)
    return target


def in_place(update: Callable[[Any, Any, int], Any]) -> InPlace:
  """Lets an update change its target in place, as is usual in PyTorch.

  Args:
    update: (online, target, gradient_steps) -> anything, which writes the new
      target into the memory of the old one.

  Returns:
    The same as a function that returns the new target, and leaves what it is
    given.
  """
  return InPlace(update)


class Record(NamedTuple):
  """A call of an update.

  Attributes:
    call: its number, from 1 on.
    step: the gradient step that it was told.
    rates: float64 [L] weights of the online parameters in the answer.
  """

  call: int
  step: int
  rates: np.ndarray


class Probe:
  """An update, with a record of its calls.

  In most calls all online parameters are 1 and those of the target 0, so that
  the answer is the weight of the online parameters, exact to rounding.

  Attributes:
    paths: paths of the leaves that hold numbers.
    integers: paths of those that are not floating.
    statistics: paths of those that batch normalization measures.
    calls: number of calls so far.
    records: calls whose weights were read.
    returns_none: an answer was None, so that the target was read in its place.
    writes_target: gradient step at which the target was changed in place.
    writes_online: gradient step at which the online network was changed.
    aliased: paths of answers in the memory of the online network.
    retyped: path -> types of a leaf before and in an answer, where they differ.
    hides_memory: answers hold arrays that cannot be written, as JAX's, so that
      aliases cannot be seen.
    ignored: gradient step at which an update that is wrapped in `in_place`
      returned a target of its own, which is ignored.
  """

  def __init__(self, update: Update, params: Any, target: Any, most: int):
    self.in_place = isinstance(update, InPlace)
    self._call = update.update if isinstance(update, InPlace) else update
    self._params, self._target, self._most = params, target, most
    self._types = _types(target)
    if _types(params).keys() != self._types.keys():
      raise ConformanceError(
        'structure',
        'the target is not built like the online network: '
        + _difference(self._types, _types(params)),
      )
    self.paths = tuple(p for p, t in self._types.items() if t.size)
    if not any(self._types[p].kind == 'f' for p in self.paths):
      raise ValueError('params must hold floating numbers, and holds none')
    self.integers = tuple(p for p in self.paths if self._types[p].kind != 'f')
    self.statistics = tuple(p for p in self.paths if STATISTICS.search(p))
    self.calls = 0
    self.records: list[Record] = []
    self.returns_none = False
    self.writes_target: int | None = None
    self.writes_online: int | None = None
    self.aliased: tuple[str, ...] = ()
    self.retyped: dict[str, tuple[str, str]] = {}
    self.hides_memory = False
    self.ignored: int | None = None
    start = [self._types[p].start for p in self.paths]
    self._start = np.array(start, float)
    self._sizes = np.array([self._types[p].size for p in self.paths])
    self._way = np.array([self._types[p].scale for p in self.paths]) - start
    self._pair: tuple[Given, Given] | None = None

  @property
  def left(self) -> int:
    """Calls that are left."""
    return self._most - self.calls

  def steps(self, path: str, rate: float) -> float:
    """By how much whole numbers grow at a weight of the online parameters."""
    return rate * float(self._way[self.paths.index(path)])

  @property
  def misused(self) -> bool:
    """Whether an argument is misused, so that more calls say nothing."""
    return self.writes_online is not None or (
      self.ignored is not None and self.writes_target is None
    )

  def allow(self, most: int) -> None:
    """Raises the number of calls that are allowed."""
    self._most = max(self._most, most)

  def rate(self, step: int) -> np.ndarray:
    """Weights [L] of the online parameters after gradient step `step`."""
    if self._pair is None:
      self._pair = (
        Given(filled(self._params, lambda t: np.full(t.shape, t.scale))),
        Given(filled(self._target, lambda t: np.full(t.shape, t.start))),
      )
    after = self.answer(*self._pair, step)
    if after is self._pair[1].before:
      rates = np.zeros(len(self.paths))
    else:
      sums = [np.add.reduce(after[path], None, float) for path in self.paths]
      rates = (np.array(sums) / self._sizes - self._start) / self._way
    changed = [given for given in self._pair if not given.kept]
    for given in changed:
      given.restore()
    if changed and not all(given.look() for given in self._pair):
      self._pair = None
    self.records.append(Record(self.calls, step, rates))
    return rates

  def random(self, seed: int) -> tuple['Given', 'Given']:
    """Online parameters and a target of random numbers."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Type) -> np.ndarray:
      if leaf.kind == 'f':
        sign = rng.choice((-1, 1), leaf.shape)
        return rng.uniform(0.5, 2, leaf.shape) * sign
      return rng.integers(leaf.start, min(leaf.scale, 100) + 1, leaf.shape)

    return (
      Given(filled(self._params, draw)),
      Given(filled(self._target, draw)),
    )

  def precision(self, path: str) -> float:
    """The relative rounding of a leaf."""
    return self._types[path].precision

  def answer(
    self, online: 'Given', target: 'Given', step: int
  ) -> dict[str, np.ndarray]:
    """Calls the update.

    Returns:
      The answer by path, valid until the next call.

    Raises:
      ConformanceError: it cannot be read as a target.
    """
    self.calls += 1
    answer = self._call(online.tree, target.tree, step)
    if self.in_place and self.ignored is None and answer is not target.tree:
      self.ignored = step if self._is_another(answer, target) else None
    if answer is None or self.in_place:
      self.returns_none |= answer is None
      answer = target.tree
    if not target.look():
      self.writes_target = self.writes_target or step
    if not online.look():
      self.writes_online = self.writes_online or step
    if answer is target.tree and target.kept:
      return target.before
    after = {path: trees.view(leaf) for path, leaf in trees.leaves(answer)}
    if any(
      path not in after or after[path].shape != leaf.shape
      for path, leaf in self._types.items()
    ) or len(after) > len(self._types):
      raise ConformanceError(
        'structure',
        f'at gradient step {step} the answer is not built like the target: '
        + _difference(_types(answer), self._types),
      )
    for path, leaf in after.items():
      total = np.add.reduce(leaf, None, float)
      if leaf.dtype.kind == 'f' and not math.isfinite(total):
        raise ConformanceError(
          'finite',
          f'at gradient step {step} {path or "the answer"} holds '
          f'{np.count_nonzero(~np.isfinite(leaf))} numbers that are not '
          'finite, though all that was given is',
        )
    # Where no leaf begins like the online network's, none is its memory.
    if not self.aliased and any(
      leaf.size and leaf.flat[0] == online.before[path].flat[0]
      for path, leaf in after.items()
    ):
      self.aliased = shared(answer, online.tree)
    for path, leaf in after.items():
      self.hides_memory |= not leaf.flags.writeable
      if leaf.dtype != target.before[path].dtype:
        types = str(target.before[path].dtype), str(leaf.dtype)
        self.retyped.setdefault(path, types)
    return after

  def _is_another(self, answer: Any, target: 'Given') -> bool:
    """Whether an answer is a target with other numbers than the given one."""
    try:
      leaves = {path: trees.view(leaf) for path, leaf in trees.leaves(answer)}
    except Exception:  # anything may be returned
      return False
    return leaves.keys() == target.before.keys() and any(
      leaf.shape == target.before[path].shape
      and not np.array_equal(leaf, target.before[path])
      for path, leaf in leaves.items()
    )


class Given:
  """An argument of an update.

  Attributes:
    tree: the argument.
    before: its leaves by path, as they were.
    kept: whether they still are.
  """

  def __init__(self, tree: Any):
    self.tree = tree
    views = {path: trees.view(leaf) for path, leaf in trees.leaves(tree)}
    self.before = {path: leaf.copy() for path, leaf in views.items()}
    # Others, such as JAX's, cannot be written.
    self._bytes = {
      path: leaf.tobytes()
      for path, leaf in views.items()
      if leaf.flags.writeable
    }
    self._places = {path: _place(leaf) for path, leaf in views.items()}
    self.kept = True

  def restore(self) -> None:
    """Writes what was there, if the argument has the memory that it had."""
    now = {path: trees.view(leaf) for path, leaf in trees.leaves(self.tree)}
    places = {path: _place(leaf) for path, leaf in now.items()}
    self.kept = places == self._places and self._bytes.keys() == now.keys()
    if self.kept:
      for path, leaf in now.items():
        leaf[...] = self.before[path]

  def look(self) -> bool:
    """Looks whether the argument is as it was."""
    now = list(trees.leaves(self.tree))
    self.kept &= len(now) == len(self.before)
    for path, leaf in now:
      before = self._bytes.get(path)
      if before is not None and before != trees.view(leaf).tobytes():
        self.kept = False
    return self.kept


def _place(leaf: np.ndarray) -> tuple[Any, ...]:
  """The memory of an array."""
  return leaf.ctypes.data, leaf.shape, leaf.strides, leaf.dtype


def filled(tree: Any, values: Callable[['Type'], np.ndarray]) -> Any:
  """A tree in new memory, of values by the type of each leaf."""
  return trees.rebuild(
    tree, lambda path, leaf: trees.like(leaf, values(_type(path, leaf)))
  )


class Type:
  """The type of a leaf.

  Attributes:
    shape: its shape.
    size: number of its elements.
    kind: 'f' for floating numbers, else as NumPy has it.
    scale: what stands for 1 in whole numbers, so that small weights show.
    start: what stands for 0. In whole numbers it is 1, as some libraries
      count updates, and copy at the first.
    precision: relative rounding of its numbers.
  """

  def __init__(self, array: np.ndarray, precision: float):
    self.shape, self.size = array.shape, array.size
    kind = array.dtype.kind
    self.kind = 'f' if kind in 'fV' else kind
    self.scale: int = 1
    if kind in 'iu':
      self.scale = min(10**6, int(np.iinfo(array.dtype).max))
    self.start = 1 if kind in 'iu' else 0
    self.precision = precision


def _type(path: str, leaf: Any) -> Type:
  try:
    array = trees.view(leaf)
  except Exception as error:
    raise TypeError(
      f'params: {path} is a {type(leaf).__name__}, which NumPy cannot read: '
      f'{error}'
    ) from error
  if array.dtype.kind not in 'fiubV':
    raise TypeError(
      f'params: {path} holds {array.dtype}, must hold real numbers'
    )
  return Type(array, trees.precision(leaf))


def _types(tree: Any) -> dict[str, Type]:
  return {path: _type(path, leaf) for path, leaf in trees.leaves(tree)}


def _difference(ours: dict[str, Type], theirs: dict[str, Type]) -> str:
  """Some differences of two trees in paths and shapes, in words."""
  parts = []
  for word, some in (
    ('missing', theirs.keys() - ours.keys()),
    ('more', ours.keys() - theirs.keys()),
  ):
    if some:
      shown = ', '.join(repr(path) for path in sorted(some)[:3])
      parts.append(f'{word} {shown}{" ..." if len(some) > 3 else ""}')
  parts += [
    f'{path!r} has the shape {ours[path].shape}, not {theirs[path].shape}'
    for path in sorted(ours.keys() & theirs.keys())
    if ours[path].shape != theirs[path].shape
  ][:3]
  return '; '.join(parts)


def shared(one: Any, other: Any) -> tuple[str, ...]:
  """Paths at which two trees share memory that can be written."""
  theirs = dict(trees.leaves(other))
  found = []
  for path, leaf in trees.leaves(one):
    if path not in theirs:
      continue
    pointers = [
      each.data_ptr() if hasattr(each, 'data_ptr') else None
      for each in (leaf, theirs[path])
    ]
    a, b = trees.view(leaf), trees.view(theirs[path])
    same = pointers[0] is not None and pointers[0] == pointers[1]
    writable = a.flags.writeable and b.flags.writeable and a.size
    if same or (writable and np.shares_memory(a, b)):
      found.append(path)
  return tuple(found)


def require_arguments(update: Any) -> None:
  """Refuses an update that does not take (online, target, gradient_steps).

  Raises:
    TypeError: it takes other arguments.
  """
  function = update.update if isinstance(update, InPlace) else update
  if not callable(function):
    raise TypeError(f'update: {update!r} must be a function')
  try:
    signature = inspect.signature(function)
  except (TypeError, ValueError):
    return  # built in: nothing is known
  try:
    signature.bind(None, None, 1)
  except TypeError as error:
    raise TypeError(
      f'update takes {signature}, must take (online, target, gradient_steps): '
      f'{error}; wrap it in a lambda, with a fixed seed if it needs one'
    ) from error
