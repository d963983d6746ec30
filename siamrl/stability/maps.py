"""The map of a case: one matrix for all steps of a common period."""

from collections.abc import Mapping, Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from siamrl import twins
from siamrl.parameters import FieldError
from siamrl.stability.cases import (
  Case,
  Structure,
  bounded_exp,
  changing,
  groups,
  learning_of,
  numbers_of,
  periods,
  stack,
  structure_of,
  vector_of,
  visible_part,
  with_vector,
)

# Vectors of these lengths test whether a map is linear, which a ball or a clip
# is not at some scale.
_PROBES = (1e-6, 1.0, 1e6, 1e12, 1e30)
_LINEAR_TO = 1e-8
# Maps that so many periods later differ by more, relatively, are not steady.
_LATER, _STEADY_TO = 1_009, 1e-9
# The most events of two clocks before they coincide.
_MOST_EVENTS = 100_000


class Prediction(NamedTuple):
  """The spectral radius of a case, or the reason why it has none.

  Attributes:
    unit: gradient steps of one application, a common multiple of all periods.
    log_radius: natural logarithm of the spectral radius of one application;
      None if there is none.
    reason: why there is none, or ''.
  """

  unit: int
  log_radius: float | None
  reason: str = ''

  @property
  def spectral_radius(self) -> float | None:
    """The spectral radius, at most the largest float."""
    return None if self.log_radius is None else bounded_exp(self.log_radius)


def predict(cases: Sequence[Case]) -> list[Prediction]:
  """Predicts the spectral radius of each case.

  Cases that differ in numbers only share work. A rule without a matrix, because
  it is not linear or changes in time, gets a reason instead.
  """
  found = []
  for case, linear in zip(cases, step_maps(cases), strict=True):
    try:
      cycle = periods(case)
      scaled = compose(case, cycle, linear)
      prediction = Prediction(math.lcm(*cycle), scaled.log_radius())
    except ValueError as error:
      prediction = Prediction(1, None, str(error))
    found.append(prediction)
  return found


def matrix(case: Case) -> np.ndarray:
  """The linear part of the map of all parameters over one application.

  Returns:
    float64 [n, n]. The n parameters are those of the online networks, then
    those of the twins, r for each, in a basis of the r directions that values
    of the batch depend on (the given basis if these are all).

  Raises:
    ValueError: the rule is not linear or changes in time; names it.
  """
  (linear,) = step_maps([case])
  scaled = compose(case, periods(case), linear)
  return np.ldexp(scaled.matrix, scaled.exponent)


def spectral_radius(case: Case) -> float:
  """The spectral radius of `matrix`, at most the largest float.

  Raises:
    ValueError: the rule is not linear or changes in time; names it.
  """
  (prediction,) = predict([case])
  if prediction.spectral_radius is None:
    raise ValueError(prediction.reason)
  return prediction.spectral_radius


class StepMaps(NamedTuple):
  """The linear parts of the maps of some gradient steps.

  Attributes:
    clocks: int32 [k] numbers of these gradient steps, from 1.
    linear: float64 [k, n, n].
    defects: float64 [k] relative deviations of the maps from affine ones.
    is_steady: whether maps many periods later are the same.
  """

  clocks: np.ndarray
  linear: np.ndarray
  defects: np.ndarray
  is_steady: bool


def _clocks(case: Case) -> np.ndarray:
  """Numbers of gradient steps, one of each kind, and the same again later."""
  try:
    cycle = periods(case)
  except ValueError:
    cycle = ()
  whole = math.lcm(*cycle)
  first = np.array([1, *cycle, whole], np.int64)
  # None later where int32 ends.
  wholes = max(min(_LATER, twins.NEVER // whole - 1), 0)
  return np.concatenate([first, first + wholes * whole])


def step_maps(cases: Sequence[Case]) -> list[StepMaps]:
  """The maps of one gradient step of each kind, for each case."""
  return step_maps_of_visible([visible_part(case) for case in cases])


def step_maps_of_visible(visible: Sequence[Case]) -> list[StepMaps]:
  """The same of cases that are in the coordinates of `visible_part`."""
  clocks = [_clocks(case) for case in visible]
  keys = [
    (structure_of(case), case.batch.obs_tm1.shape, len(at))
    for case, at in zip(visible, clocks, strict=True)
  ]
  found: list[StepMaps | None] = [None] * len(visible)
  for members in groups(keys):
    at = np.stack([clocks[index] for index in members])
    # `_compose` refuses larger numbers later.
    small = np.minimum(at, twins.NEVER).astype(np.int32)
    with jax.enable_x64(True):
      linear, defects = _map_program(structure_of(visible[members[0]]))(
        stack([numbers_of(visible[index]) for index in members]), small
      )
    for index, *one in zip(
      members, at, np.asarray(linear), np.asarray(defects), strict=True
    ):
      found[index] = _halves(*one)
  return [one for one in found if one is not None]


def _halves(
  clocks: np.ndarray, linear: np.ndarray, defects: np.ndarray
) -> StepMaps:
  """The first half of the maps, compared with the second, of later steps."""
  half = len(clocks) // 2
  first, later = linear[:half], linear[half:]
  scale = np.abs(first).max(initial=1.0)
  is_steady = bool((np.abs(later - first) <= _STEADY_TO * scale).all())
  return StepMaps(clocks[:half], first, defects[:half], is_steady)


@functools.cache
def _map_program(structure: Structure) -> Any:
  """Compiles (numbers, clocks [k]) -> (linear [k, n, n], defects [k])."""

  def maps(
    numbers: Mapping[str, Any], clocks: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    _, regress, state = learning_of(structure, numbers)
    batch = numbers['batch']
    unpaid = batch._replace(r_t=jnp.zeros_like(batch.r_t))
    size = vector_of(state).size
    direction = np.random.default_rng(0).standard_normal(size)
    probes = np.outer(_PROBES, direction)

    def step(vector, clock, batch):
      before = with_vector(state, vector).replace(gradient_steps=clock - 1)
      return vector_of(regress(before, batch)[0])

    many = jax.vmap(step, (0, None, None))

    def at(clock):
      rows = many(jnp.eye(size), clock, unpaid)  # the columns of the matrix
      offset = step(jnp.zeros(size), clock, batch)
      reached = many(probes, clock, batch)
      errors = jnp.max(jnp.abs(reached - probes @ rows - offset), 1)
      scale = jnp.max(jnp.abs(probes), 1) * jnp.max(jnp.abs(rows), initial=1.0)
      return rows.T, jnp.max(errors / (scale + jnp.max(jnp.abs(offset))))

    return jax.vmap(at)(clocks)

  return jax.jit(jax.vmap(maps))


def is_linear(maps: StepMaps) -> bool:
  return bool((maps.defects < _LINEAR_TO).all())


class _Scaled(NamedTuple):
  """A scaled matrix, matrix * 2**exponent with its largest entry near 1."""

  matrix: np.ndarray
  exponent: int = 0

  def __matmul__(self, other: '_Scaled') -> '_Scaled':
    product = self.matrix @ other.matrix
    exponent = int(np.frexp(np.abs(product).max())[1])
    return _Scaled(
      np.ldexp(product, -exponent), self.exponent + other.exponent + exponent
    )

  def power(self, number: int) -> '_Scaled':
    """A power by repeated squaring; the identity for 0."""
    result, factor = _Scaled(np.eye(len(self.matrix))), self
    while number:
      if number % 2:
        result = factor @ result
      number //= 2
      factor = factor @ factor if number else factor
    return result

  def log_radius(self) -> float:
    """The natural logarithm of the spectral radius."""
    largest = np.abs(np.linalg.eigvals(self.matrix)).max()
    with np.errstate(divide='ignore'):
      return float(np.log(largest)) + self.exponent * math.log(2)


def compose(case: Case, cycle: tuple[int, ...], maps: StepMaps) -> _Scaled:
  """Composes the maps of gradient steps 1 to `lcm(*cycle)`.

  Gradient steps with events of the same clocks have the same map, and those
  between two events contribute a power of the map without any event.

  Raises:
    ValueError: the map is not linear or not steady, or the common period is
      too long.
  """
  if not is_linear(maps):
    raise FieldError(
      'target_update',
      case.twin.rule,
      'is not linear with these parameters: it has no matrix',
    )
  if not maps.is_steady:
    raise changing(case)
  whole = math.lcm(*cycle)
  events = sum(whole // period for period in cycle)
  if events > _MOST_EVENTS or whole > twins.NEVER:
    raise FieldError(
      'target_sync_period',
      cycle[-1],
      f'and target_period={cycle[0]} meet after {whole} gradient '
      'steps, too many for one matrix',
    )

  def kind(clock: int) -> tuple[bool, ...]:
    return tuple(clock % period == 0 for period in cycle)

  known = {
    kind(int(clock)): _Scaled(linear)
    for clock, linear in zip(maps.clocks, maps.linear, strict=True)
  }
  if not cycle:
    return known[()]
  rings = sorted({c for p in cycle for c in range(p, whole + 1, p)})
  result, before = _Scaled(np.eye(maps.linear.shape[-1])), 0
  powers: dict[int, _Scaled] = {}
  for clock in rings:
    gap = clock - before - 1
    if gap and gap not in powers:
      powers[gap] = known[kind(1)].power(gap)
    result = known[kind(clock)] @ (powers[gap] @ result if gap else result)
    before = clock
  return result
