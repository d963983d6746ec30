"""Learning under the max: a linear system that switches between policies.

With linear values and a fixed batch, the targets of Q-learning are the values
of the greedy policy, and for each policy a gradient step, or all steps from one
target update to the next, is an affine map. Q-learning switches between these
maps as its greedy policy changes (Lee & Lim 2026, arXiv 2605.11021; under
target updates, Lee 2026, arXiv 2606.02645).

`modes` computes the matrix of each policy with the learner itself: targets are
its own `max`, over successors whose actions all have the features of the
policy's action. If the joint spectral radius of all matrices is below 1,
learning converges from every start. Derived here: the difference of the maxima
of q and p over the actions of a state is a mean of q - p over two actions, that
which is greedy for q and that for p, so that the distance of two learners goes
through a mean of the modes of all combinations of actions, and means leave the
joint spectral radius as it is. A radius above 1 does not imply divergence:
products that grow belong to sequences of policies that the max need not follow.
`followed` looks for those that it does.
"""

from collections.abc import Mapping, Sequence
import functools
import itertools
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
  learning_of,
  numbers_of,
  periods,
  structure_of,
  vector_of,
  visible_part,
  with_vector,
)
from siamrl.stability.joint import Bounds
from siamrl.stability.maps import compose, step_maps_of_visible

# The most policies of a case.
_MOST_MODES = 1_024
# Vectors at which the modes are compared with the learner under its max.
_PROBES = 32
# Most factors of a product that the max is made to follow.
_LONGEST = 8
# Points at which runs are looked at.
_POINTS = 200
# Weights of an average that are left out, in all.
_LEAST_WEIGHT = 1e-16


class Switching(NamedTuple):
  """The modes of a case.

  Attributes:
    case: the case, in coordinates of the weights that values depend on.
    average: weight of longer periods, see `modes`; None for none.
    unit: gradient steps of one application of a mode.
    policies: int [P, T] action in each of the T different successors.
    matrices: float64 [P, q, q] in coordinates of `basis`.
    basis: float64 [n, q] orthonormal basis of the parameters, networks before
      twins, that an application can reach.
  """

  case: Case
  average: float | None
  unit: int
  policies: np.ndarray
  matrices: np.ndarray
  basis: np.ndarray


def modes(case: Case, average: float | None = None) -> Switching:
  """Computes the matrix of each greedy policy.

  Args:
    case: a case whose observations are features of several actions.
    average: instead of copies every period, the mean of the online parameters
      m gradient steps after the last copy, with weights (1 - average)
      average^(m - 1): the lambda-target of Lee (2026, "Geometrically averaged
      hard target updates for linear Q-learning", arXiv 2606.10835). 0 is a copy
      at every gradient step, and toward 1 it becomes an exact fit. With K and G
      what a gradient step makes of online parameters and of the twin, the mean
      is (I - average K)^-1 ((1 - average) K + G); this form is derived here.
      The rule must be 'hard', whose period is not used.

  Raises:
    ValueError: the rule is not linear for a fixed policy, changes in time, or
      its targets follow more than one policy between two target updates; or
      there are too many policies.
  """
  visible = visible_part(case)
  if average is not None:
    if case.twin.rule != 'hard':
      raise FieldError(
        'target_update', case.twin.rule, "must be 'hard' to be averaged"
      )
    if not 0 <= average < 1:
      raise FieldError('average', average, 'must be in [0, 1)')
    visible = visible._replace(twin=visible.twin._replace(sync=twins.NEVER))
  cycle = periods(visible)
  policies, fixed = _fixed_policies(visible)
  found = []
  for one, maps in zip(fixed, step_maps_of_visible(fixed), strict=True):
    if average is None:
      scaled = compose(one, cycle, maps)
      found.append(np.ldexp(scaled.matrix, scaled.exponent))
    else:
      found.append(_averaged(maps.linear[0], average))
  matrices = np.array(found)
  if not np.isfinite(matrices).all():
    raise FieldError(
      'step_size', case.step_size, 'makes numbers larger than floats can be'
    )
  unit = math.lcm(*cycle)
  if average is not None:
    # Weights beyond these steps are too small to matter.
    unit = 1
    if average:
      unit = math.ceil(math.log(_LEAST_WEIGHT) / math.log(average))
  basis = _reached(matrices)
  switching = Switching(
    visible,
    average,
    unit,
    policies,
    basis.T @ matrices @ basis,
    basis,
  )
  _check(switching, matrices)
  return switching


def _fixed_policies(case: Case) -> tuple[np.ndarray, list[Case]]:
  """The policies [P, T], and the case under each of them."""
  batch = case.batch
  if batch.obs_t.ndim != 3:
    raise ValueError(f'obs_t must be [N, A, d], got {batch.obs_t.shape}')
  successors, of_row = np.unique(batch.obs_t, axis=0, return_inverse=True)
  of_row = of_row.ravel()
  choices = []
  for successor, features in enumerate(successors):
    matters = batch.discount_t[of_row == successor].any()
    # Actions with the same features have the same values.
    _, first = np.unique(features, axis=0, return_index=True)
    choices.append(sorted(map(int, first)) if matters else [0])
  number = math.prod(map(len, choices))
  if number > _MOST_MODES:
    raise ValueError(
      f'{number} greedy policies are too many: at most {_MOST_MODES}'
    )
  policies = np.array(list(itertools.product(*choices)))
  fixed = []
  for policy in policies:
    chosen = batch.obs_t[np.arange(len(of_row)), policy[of_row]]
    same = np.broadcast_to(chosen[:, None], batch.obs_t.shape)
    fixed.append(case._replace(batch=batch._replace(obs_t=same)))
  return policies, fixed


def _averaged(linear: np.ndarray, average: float) -> np.ndarray:
  """The mean over periods [r, r] of a step's map [2 r, 2 r] with a fixed twin.

  Raises:
    ValueError: the mean does not exist.
  """
  size = len(linear) // 2
  own, twin = linear[:size, :size], linear[:size, size:]
  if average * np.abs(np.linalg.eigvals(own)).max() >= 1:
    raise FieldError(
      'average', average, 'has no mean: the online network itself diverges'
    )
  return np.linalg.solve(
    np.eye(size) - average * own, (1 - average) * own + twin
  )


def _reached(matrices: np.ndarray) -> np.ndarray:
  """A basis of the span of all columns, such as twins that equal networks."""
  columns = np.concatenate(list(matrices), axis=1)
  left, sizes, _ = np.linalg.svd(columns, full_matrices=False)
  rank = int((sizes > 1e-12 * max(sizes[0], 1e-300)).sum())
  if rank == len(columns):
    return np.eye(rank)
  return left[:, : max(rank, 1)]


def _check(switching: Switching, matrices: np.ndarray) -> None:
  """Compares the modes with the learner under its max.

  Raises:
    ValueError: at some vector no mode is what the learner does.
  """
  size = matrices.shape[-1]
  probes = np.random.default_rng(0).standard_normal((_PROBES, size))
  images, steady = _apply(switching, probes)
  nearest = np.full(_PROBES, np.inf)
  for matrix in matrices:
    gaps = np.linalg.norm(images - probes @ matrix.T, axis=1)
    nearest = np.minimum(nearest, gaps)
  scale = np.linalg.norm(probes, axis=1) * max(1.0, np.abs(matrices).max())
  if not steady or (nearest > 1e-9 * scale).any():
    raise FieldError(
      'target_update',
      switching.case.twin.rule,
      'follows more than one greedy policy between two target updates: it has '
      'no modes',
    )


def _apply(
  switching: Switching, vectors: np.ndarray
) -> tuple[np.ndarray, bool]:
  """Images [B, n] under the max without rewards, and whether targets held."""
  structure, numbers = _prepared(switching)
  with jax.enable_x64(True):
    images, steady = _map_program(structure, switching.average is not None)(
      numbers, vectors, switching.unit, switching.average or 0.0
    )
  return np.asarray(images), bool(np.asarray(steady).all())


def _prepared(switching: Switching) -> tuple[Structure, dict[str, Any]]:
  return structure_of(switching.case), numbers_of(switching.case)


def _application(
  structure: Structure, numbers: Mapping[str, Any], averaged: bool
) -> Any:
  """Builds (vector [n], batch, unit, average) -> the vector after `unit` steps.

  The learner takes all of them itself, under its max.
  """
  agent, regress, template = learning_of(structure, numbers)

  def apply(vector, batch, unit, average):
    if not averaged:
      state = jax.lax.fori_loop(
        0,
        unit,
        lambda _, state: regress(state, batch)[0],
        with_vector(template, vector),
      )
      return vector_of(state)

    def step(_, carry):
      state, total, weight = carry
      state, _ = regress(state, batch)
      online = vector_of(state)[: vector.size]
      return state, total + weight * online, weight * average

    both = jnp.concatenate([vector, vector])
    start = with_vector(template, both), jnp.zeros_like(vector), 1 - average
    return jax.lax.fori_loop(0, unit, step, start)[1]

  def steady(vector, batch, unit):
    """Whether targets stay the same up to the next target update."""
    if averaged:
      return True
    state = with_vector(template, vector)
    after, _ = regress(state, batch)
    one, other = (
      agent.targets(s.online_params, s.target_params, batch, s.key)
      for s in (state, after)
    )
    return (unit == 1) | (one == other).all()

  return apply, steady


@functools.cache
def _map_program(structure: Structure, averaged: bool) -> Any:
  """Compiles (numbers, vectors [B, n], unit, average) -> (images, steady)."""

  def program(numbers, vectors, unit, average):
    apply, steady = _application(structure, numbers, averaged)
    batch = numbers['batch']
    unpaid = batch._replace(r_t=jnp.zeros_like(batch.r_t))
    return jax.vmap(
      lambda vector: (
        apply(vector, unpaid, unit, average),
        steady(vector, unpaid, unit),
      )
    )(vectors)

  return jax.jit(program)


class Followed(NamedTuple):
  """A product of modes that the max itself follows.

  Attributes:
    radius: its growth for each application.
    word: the modes, the first to be applied first.
    start: float64 [n] the parameters from which it does.
  """

  radius: float
  word: tuple[int, ...]
  start: np.ndarray


def followed(switching: Switching, bounds: Bounds) -> Followed | None:
  """The fastest of some products that the max follows for ever.

  Without rewards, learning is positively homogeneous. If the product of the
  modes of k applications has a real eigenvalue with an eigenvector from which
  the learner, under its max, ends at the multiple of that vector after k
  applications, it goes on for ever. Above 1, values diverge from there.

  Args:
    switching: the modes.
    bounds: bounds of their joint spectral radius, with products.

  Returns:
    The product with the largest eigenvalue; None if none is followed.
  """
  rays, roots, words = [], [], []
  for product in bounds.best:
    if len(product.word) > _LONGEST:
      continue
    total = np.eye(len(switching.basis.T))
    for index in product.word:
      total = switching.matrices[index] @ total
    values, vectors = np.linalg.eig(total)
    largest = np.abs(values).argmax()
    value = values[largest]
    if value.real <= 0 or abs(value.imag) > 1e-9 * abs(value):
      continue
    ray = switching.basis @ np.real(vectors[:, largest])
    for sign in (1, -1):
      rays.append(sign * ray / np.linalg.norm(ray))
      roots.append(value.real)
      words.append(product.word)
  if not rays:
    return None
  # One number of vectors for all cases, for one compiled program.
  images = np.zeros((2 * len(bounds.best), len(rays[0])))
  images[: len(rays)] = rays
  ends: list[np.ndarray] = []
  for _ in range(max(map(len, words))):
    images, _ = _apply(switching, images)
    ends.append(images)
  best: Followed | None = None
  for index, (ray, root, word) in enumerate(
    zip(rays, roots, words, strict=True)
  ):
    gap = np.linalg.norm(ends[len(word) - 1][index] - root * ray)
    radius = root ** (1 / len(word))
    if gap < 1e-8 * root and (best is None or radius > best.radius):
      best = Followed(float(radius), word, ray)
  return best


class Observed(NamedTuple):
  """Runs of the learner under its max, with rewards, from several starts.

  Attributes:
    growth: factor by which an application changes the distance from one to the
      next, over the second half of a run, the largest of all starts; None if
      rounding leaves too few points to tell.
    starts: number of starts.
    diverged: number of those whose values grew tenfold over the second half.
    converged: number of those whose steps shrank tenfold, or to rounding.
    applications: int [T + 1] applications at which norms were measured, from 0.
    log10_norms: float64 [starts, T + 1] logarithm to the base 10 of the norm of
      all parameters.
  """

  growth: float | None
  starts: int
  diverged: int
  converged: int
  applications: np.ndarray
  log10_norms: np.ndarray


def observe(
  switching: Switching,
  applications: int,
  starts: int = 8,
  more: Sequence[np.ndarray] = (),
  seed: int = 0,
) -> Observed:
  """Runs the learner.

  Since values may overflow, all numbers, rewards included, are divided by a
  power of 2 after each application, which changes none of their digits: the
  largest of scaled values is scaled alike.

  Args:
    switching: the modes of a case.
    applications: applications of modes, >= 2, rounded up to a multiple of the
      number of points. Runs that end in rounding at once are shorter, so that
      one sees how they get there.
    starts: number of random starts, of norms near 100.
    more: further starts [n].
    seed: an integer >= 0.
  """
  rng = np.random.default_rng((seed, 4))
  size = len(switching.basis)
  vectors = 100 * rng.standard_normal((starts, size)) / math.sqrt(size)
  # Reachable ones, in which twins that are copies equal their networks.
  vectors = vectors @ switching.basis @ switching.basis.T
  vectors = np.concatenate([vectors, *(100 * row[None] for row in more)])
  structure, numbers = _prepared(switching)
  points = min(applications, _POINTS)
  stride = -(-applications // points)
  program = _run_program(structure, switching.average is not None, points)
  while True:
    with jax.enable_x64(True):
      norms, steps = map(
        np.asarray,
        program(
          numbers, vectors, switching.unit, switching.average or 0.0, stride
        ),
      )
    fates = [_fate(*each) for each in zip(norms, steps, strict=True)]
    if stride == 1 or any(fate.growth is not None for fate in fates):
      break
    stride = max(1, stride // 10)
  known = [fate.growth for fate in fates if fate.growth is not None]
  return Observed(
    max(known) ** (1 / stride) if known else None,
    len(vectors),
    sum(fate.diverged for fate in fates),
    sum(fate.converged for fate in fates),
    stride * np.arange(points + 1),
    norms * math.log10(2),
  )


class _Fate(NamedTuple):
  """The fate of one start; see `Observed`."""

  growth: float | None
  diverged: bool
  converged: bool


def _fate(norms: np.ndarray, steps: np.ndarray) -> _Fate:
  """The growth of steps from point to point, and what becomes of a run.

  Args:
    norms: [T + 1] logarithms to the base 2 of norms.
    steps: [T] likewise of the last steps before the points.
  """
  if np.isnan(norms).any() or np.isposinf(norms).any():
    return _Fate(math.inf, True, False)
  # What is left of a distance below this is rounding.
  small = steps < norms[1:] - 40
  last = int(small.argmax()) if small.any() else len(steps)
  half = last // 2
  if last - half < 2:
    return _Fate(None, False, bool(small.any()))
  tenfold = math.log2(10)
  slope = float(np.polyfit(np.arange(half, last), steps[half:last], 1)[0])
  middle = len(norms) // 2
  grew = bool(not small.any() and norms[-1] - norms[middle] > tenfold)
  shrank = bool(small.any() or slope * (last - half) < -tenfold)
  return _Fate(2.0**slope, grew, shrank and not grew)


@functools.cache
def _run_program(structure: Structure, averaged: bool, points: int) -> Any:
  """Compiles (numbers, vectors [B, n], unit, average, stride) -> norms, steps.

  Both are logarithms to the base 2: of norms [B, points + 1], and of the
  lengths of the last steps before them [B, points].
  """

  def program(numbers, vectors, unit, average, stride):
    apply, _ = _application(structure, numbers, averaged)
    batch = numbers['batch']

    def one(_, carry):
      vector, exponent, _ = carry
      # A reward of 0 stays 0 even if the scale overflows.
      paid = jnp.where(batch.r_t == 0, 0.0, jnp.ldexp(batch.r_t, -exponent))
      after = apply(vector, batch._replace(r_t=paid), unit, average)
      step = jnp.log2(jnp.linalg.norm(after - vector)) + exponent
      _, power = jnp.frexp(jnp.max(jnp.abs(after)))
      return jnp.ldexp(after, -power), exponent + power, step

    def point(carry, _):
      vector, exponent, step = jax.lax.fori_loop(0, stride, one, carry)
      norm = jnp.log2(jnp.linalg.norm(vector)) + exponent
      return (vector, exponent, step), (norm, step)

    def run(vector):
      start = jnp.log2(jnp.linalg.norm(vector))
      first = vector, jnp.zeros((), jnp.int64), jnp.zeros(())
      _, (norms, steps) = jax.lax.scan(point, first, length=points)
      return jnp.concatenate([start[None], norms]), steps

    return jax.vmap(run)(vectors)

  return jax.jit(program)
