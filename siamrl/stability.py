"""Exact stability: a learner whose gradient step is an affine map.

Values linear in the weights, one fixed batch and plain gradient descent make of
a gradient step, target update included, an affine map of all parameters, the
online network's and its twin's. Over one target update it is one matrix, and
whether learning converges is the matrix's spectral radius, below 1 or above.

`predict` has the matrix from the learner itself, one column for each basis
vector. `run` lets the same learner run, and measures how it grows. Everything
is float64; a matter of rules by name, with no word of any rule in particular.

Weights that no value of the batch depends on never move (Baird's example has
one such direction). Matrices and growth are of the others: of the weights in an
orthonormal basis of what the batch's features span, in which gradient descent
is the same.
"""

from collections.abc import Hashable, Mapping, Sequence
import functools
import math
import sys
from typing import Any, NamedTuple

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from siamrl import twins
from siamrl.agents.q import make_q_agent
from siamrl.learner import Regress, TwinSpec, make_learner
from siamrl.parameters import FieldError
from siamrl.types import Agent, TrainState, Transition

# Vectors of these lengths are mapped to see that a map is linear: a rule with a
# ball or a clip must show itself.
_PROBES = (1e-6, 1.0, 1e6, 1e12, 1e30)
_LINEAR_TO = 1e-8
# Perturbations that are followed side by side, so that pairs of complex
# eigenvalues and near ties are told apart.
_BLOCK = 8
# Applications of a map before its growth counts as observed.
_LEAST_APPLICATIONS = 8
# Cases that run side by side; more are computed in turns.
_SIDE_BY_SIDE = 128
# How often two clocks may ring before they ring together.
_MOST_EVENTS = 100_000


class Case(NamedTuple):
  """A learner, and the one batch that it learns from at every gradient step.

  Attributes:
    batch: S transitions with observations [S, d], see
      `siamrl.envs.linear.LinearProblem.batch`.
    initial: float64 [d] weights to begin with, of every network.
    twin: its rule and its clock. Weights are given, so that `init` must be
      'equal', and plain gradient descent has no state to reset.
    step_size: of gradient descent on the sum of the losses.
  """

  batch: Transition
  initial: np.ndarray
  twin: TwinSpec
  step_size: float


class Prediction(NamedTuple):
  """What the map of a case says.

  Attributes:
    unit: gradient steps of one application: until every period is over.
    log_radius: natural logarithm of the spectral radius of one application;
      None where there is none.
    reason: why there is none, or ''.
  """

  unit: int
  log_radius: float | None
  reason: str = ''

  @property
  def spectral_radius(self) -> float | None:
    """It, or the largest float if it is larger."""
    return None if self.log_radius is None else _exp(self.log_radius)


class Run(NamedTuple):
  """What a case was seen to do.

  Attributes:
    gradient_steps: int [T] when values were looked at, 0 and the end included.
    log10_norms: float64 [T] logarithm to the base 10 of the Euclidean norm of
      the values of the S states.
    unit: gradient steps that `growth` is of.
    growth: factor by which perturbations of the parameters come to grow over
      `unit` gradient steps; None where the run is too short to tell. Of a rule
      that changes in time it is an average over the second half of the run, of
      one that is not linear the same of the values themselves.
    diverged: whether growth is above 1; where it is an average or None, whether
      the values have grown tenfold over the second half.
  """

  gradient_steps: np.ndarray
  log10_norms: np.ndarray
  unit: int
  growth: float | None
  diverged: bool

  @property
  def final_value_norm(self) -> float:
    """Norm of the values in the end, or the largest float."""
    return _exp(float(self.log10_norms[-1]) * math.log(10))


def linear_agent(initial: chex.Array) -> Agent:
  """An agent of one action whose value is obs . weights.

  With gradient descent its update is weights + step size * sum_s weight(s) *
  td_error(s) * obs(s).

  Args:
    initial: [d] weights that every network is born with, in their type.
  """
  network = _Linear()
  agent = make_q_agent(
    network,
    initial[None],
    td_loss='half_squared',
    batch_reduction='sum',
  )
  # The agent would draw them, and round them to float32.
  params = {'params': {'last': {'kernel': jnp.asarray(initial)[:, None]}}}
  return agent._replace(init=lambda key: params)


class _Linear(nn.Module):
  """obs [B, d] -> [B, 1], without a bias."""

  @nn.compact
  def __call__(self, obs: chex.Array) -> chex.Array:
    return nn.Dense(1, use_bias=False, name='last')(obs)


def periods(case: Case) -> tuple[int, ...]:
  """The periods of whatever does not happen at every gradient step.

  Raises:
    ValueError: the rule changes in time beyond that.
  """
  taken = twins.takes(case.twin.rule, case.twin.parameters.get('target_paths'))
  if 'target_schedule_steps' in taken:
    raise FieldError(
      'target_update',
      case.twin.rule,
      'changes with the gradient steps: no matrix is that of all its target '
      'updates',
    )
  if twins.RULES[case.twin.rule].period is None:
    return (case.twin.sync,)
  # Clocks of the rule's own; a twin that never moves has none.
  names = ('target_period', 'target_sync_period')
  return tuple(case.twin.parameters[name] for name in names if name in taken)


def predict(cases: Sequence[Case]) -> list[Prediction]:
  """The spectral radius of each case; cases that differ in numbers share work.

  A rule without a matrix, because it is not linear or changes in time, gets a
  reason in its place.
  """
  found = []
  for case, linear in zip(cases, _step_maps(cases), strict=True):
    try:
      cycle = periods(case)
      scaled = _compose(case, cycle, linear)
      prediction = Prediction(math.lcm(*cycle), scaled.log_radius())
    except ValueError as error:
      prediction = Prediction(1, None, str(error))
    found.append(prediction)
  return found


def matrix(case: Case) -> np.ndarray:
  """The linear part of the map of all parameters over one application.

  Returns:
    float64 [n, n]. The n parameters are those of the online networks and then
    of the twins, r for each, in a basis of the r directions that values of the
    batch depend on (the given one if these are all).

  Raises:
    ValueError: the rule is not linear or changes in time; names it.
  """
  (linear,) = _step_maps([case])
  scaled = _compose(case, periods(case), linear)
  return np.ldexp(scaled.matrix, scaled.exponent)


def spectral_radius(case: Case) -> float:
  """The spectral radius of `matrix`, however large or small that is.

  Raises:
    ValueError: the rule is not linear or changes in time; names it.
  """
  (prediction,) = predict([case])
  if prediction.spectral_radius is None:
    raise ValueError(prediction.reason)
  return prediction.spectral_radius


def run(
  cases: Sequence[Case], gradient_steps: int, points: int = 200
) -> list[Run]:
  """Lets each case learn, and measures how its values and parameters grow.

  Values may outgrow every float: where the rule is linear all numbers, rewards
  included, are divided by a power of 2 at each gradient step, which changes no
  digit of them. Growth is that of the largest of the modes that are left of a
  few random perturbations (dynamic mode decomposition of the states before and
  after the last application), which is right for oscillating modes too.

  Args:
    cases: what to run; those that differ in numbers only run side by side.
    gradient_steps: of the whole run, >= 1.
    points: how often values are looked at, about.

  Raises:
    ValueError: a rule cannot be built of its parameters.
  """
  linear = [_is_linear(maps) for maps in _step_maps(cases)]
  found: list[Run | None] = [None] * len(cases)
  keys = [
    (*_structure(case), case.batch.obs_tm1.shape, basis.shape, flag)
    for case, basis, flag in zip(
      cases, map(_visible_basis, cases), linear, strict=True
    )
  ]
  for members in _groups(keys):
    group = [cases[index] for index in members]
    observed = _observe(group, gradient_steps, points, linear[members[0]])
    for index, one in zip(members, observed, strict=True):
      found[index] = one
  return [one for one in found if one is not None]


# The learner of a case, as arrays that may be traced and names that may not.


class _Structure(NamedTuple):
  """What makes a program of its own; cases of one differ in numbers only."""

  rule: str
  order: str
  fixed: tuple[tuple[str, Any], ...]
  names: tuple[str, ...]


def _structure(case: Case) -> _Structure:
  given = {k: v for k, v in case.twin.parameters.items() if v is not None}
  # Names, and counts that shape arrays.
  fixed = {
    k: v for k, v in given.items() if isinstance(v, str) or k == 'target_count'
  }
  return _Structure(
    case.twin.rule,
    case.twin.order,
    tuple(sorted(fixed.items())),
    tuple(sorted(given.keys() - fixed.keys())),
  )


def _groups(keys: Sequence[Hashable]) -> list[list[int]]:
  """Indices of equal keys, together as far as they fit side by side."""
  groups: dict[Hashable, list[int]] = {}
  for index, key in enumerate(keys):
    groups.setdefault(key, []).append(index)
  return [
    members[start : start + _SIDE_BY_SIDE]
    for members in groups.values()
    for start in range(0, len(members), _SIDE_BY_SIDE)
  ]


def _numbers(case: Case) -> dict[str, Any]:
  """The arrays of a case, for `_learner`."""
  return {
    'batch': case.batch._replace(a_tm1=np.asarray(case.batch.a_tm1, np.int32)),
    'initial': np.asarray(case.initial, np.float64),
    'sync': np.int32(case.twin.sync),
    'step_size': np.float64(case.step_size),
    'parameters': {
      name: (np.int32 if isinstance(value, int) else np.float64)(value)
      for name, value in case.twin.parameters.items()
      if name in _structure(case).names
    },
  }


def _stack(trees: Sequence[Any]) -> Any:
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _visible_basis(case: Case) -> np.ndarray:
  """An orthonormal basis [d, r] of the weights that values depend on."""
  features = np.concatenate([case.batch.obs_tm1, case.batch.obs_t])
  dimension = features.shape[1]
  rank = np.linalg.matrix_rank(features)
  if rank == dimension:
    return np.eye(dimension)
  return np.linalg.svd(features)[2][:rank].T


def _visible(case: Case) -> Case:
  """The same case in the coordinates of `_visible_basis`."""
  basis = _visible_basis(case)
  batch = case.batch._replace(
    obs_tm1=case.batch.obs_tm1 @ basis, obs_t=case.batch.obs_t @ basis
  )
  return case._replace(batch=batch, initial=case.initial @ basis)


def _learner(
  structure: _Structure, numbers: Mapping[str, Any]
) -> tuple[Agent, Regress, TrainState]:
  """The agent, its gradient step and its first state, all in float64."""
  twin = TwinSpec(
    structure.rule,
    dict(structure.fixed) | numbers['parameters'],
    numbers['sync'],
    order=structure.order,
  )
  made = make_learner(
    linear_agent(numbers['initial']),
    optax.sgd(numbers['step_size']),
    twin.make(),
  )
  # Its key is for drawings, of which there are none.
  return made.agent, made.regress, made.init(jax.random.key(0))


def _parameters(state: TrainState) -> tuple[list[Any], list[int], Any]:
  """Leaves of the networks and twins, which of them are floats, structure."""
  leaves, structure = jax.tree.flatten(
    (state.online_params, state.target_params)
  )
  floats = [
    index
    for index, leaf in enumerate(leaves)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  return leaves, floats, structure


def _vector(state: TrainState) -> jax.Array:
  """All parameters [n], the twins' last; without clocks that a twin keeps."""
  leaves, floats, _ = _parameters(state)
  return jnp.concatenate([jnp.ravel(leaves[index]) for index in floats])


def _with_vector(state: TrainState, vector: jax.Array) -> TrainState:
  """The state with other parameters."""
  leaves, floats, structure = _parameters(state)
  start = 0
  for index in floats:
    leaf = leaves[index]
    leaves[index] = vector[start : start + leaf.size].reshape(leaf.shape)
    start += leaf.size
  online, target = jax.tree.unflatten(structure, leaves)
  return state.replace(online_params=online, target_params=target)


# The map of one gradient step.


class _StepMaps(NamedTuple):
  """Linear parts of the maps of some gradient steps.

  Attributes:
    clocks: int32 [k] numbers of these gradient steps, from 1.
    linear: float64 [k, n, n].
    defects: float64 [k] how far the maps are from affine, relatively.
  """

  clocks: np.ndarray
  linear: np.ndarray
  defects: np.ndarray


def _clocks(case: Case) -> np.ndarray:
  """A gradient step of each kind that there is."""
  try:
    cycle = periods(case)
  except ValueError:
    cycle = ()
  return np.array([1, *cycle, math.lcm(*cycle)], np.int64)


def _step_maps(cases: Sequence[Case]) -> list[_StepMaps]:
  """Maps of a gradient step of each kind, for each case."""
  visible = [_visible(case) for case in cases]
  clocks = [_clocks(case) for case in cases]
  keys = [
    (_structure(case), case.batch.obs_tm1.shape, len(at))
    for case, at in zip(visible, clocks, strict=True)
  ]
  found: list[_StepMaps | None] = [None] * len(cases)
  for members in _groups(keys):
    at = np.stack([clocks[index] for index in members])
    # What lies beyond is refused later.
    small = np.minimum(at, twins.NEVER).astype(np.int32)
    with jax.enable_x64(True):
      linear, defects = _map_program(_structure(visible[members[0]]))(
        _stack([_numbers(visible[index]) for index in members]), small
      )
    for index, *one in zip(
      members, at, np.asarray(linear), np.asarray(defects), strict=True
    ):
      found[index] = _StepMaps(*one)
  return [one for one in found if one is not None]


@functools.cache
def _map_program(structure: _Structure) -> Any:
  """(numbers, clocks [k]) -> (linear [k, n, n], defects [k]), of many cases."""

  def maps(
    numbers: Mapping[str, Any], clocks: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    _, regress, state = _learner(structure, numbers)
    batch = numbers['batch']
    unpaid = batch._replace(r_t=jnp.zeros_like(batch.r_t))
    size = _vector(state).size
    direction = np.random.default_rng(0).standard_normal(size)
    probes = np.outer(_PROBES, direction)

    def step(vector, clock, batch):
      before = _with_vector(state, vector).replace(gradient_steps=clock - 1)
      return _vector(regress(before, batch)[0])

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


def _is_linear(maps: _StepMaps) -> bool:
  return bool((maps.defects < _LINEAR_TO).all())


class _Scaled(NamedTuple):
  """matrix * 2**exponent, the matrix's largest entry near 1."""

  matrix: np.ndarray
  exponent: int = 0

  def __matmul__(self, other: '_Scaled') -> '_Scaled':
    product = self.matrix @ other.matrix
    exponent = int(np.frexp(np.abs(product).max())[1])
    return _Scaled(
      np.ldexp(product, -exponent), self.exponent + other.exponent + exponent
    )

  def power(self, number: int) -> '_Scaled':
    """By squaring; the identity for 0."""
    result, factor = _Scaled(np.eye(len(self.matrix))), self
    while number:
      if number % 2:
        result = factor @ result
      number //= 2
      factor = factor @ factor if number else factor
    return result

  def log_radius(self) -> float:
    """Logarithm of the largest modulus of an eigenvalue."""
    largest = np.abs(np.linalg.eigvals(self.matrix)).max()
    with np.errstate(divide='ignore'):
      return float(np.log(largest)) + self.exponent * math.log(2)


def _compose(case: Case, cycle: tuple[int, ...], maps: _StepMaps) -> _Scaled:
  """The map of the gradient steps 1 to `lcm(*cycle)`, one after the other.

  Gradient steps at which the same clocks ring have the same map; between two at
  which one does lie powers of the one of all others.

  Raises:
    ValueError: the map is not linear, or the periods hardly ever meet.
  """
  if not _is_linear(maps):
    raise FieldError(
      'target_update',
      case.twin.rule,
      'is not linear with these parameters: it has no matrix',
    )
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


# What is seen of a run.


def _observe(
  cases: Sequence[Case], gradient_steps: int, points: int, linear: bool
) -> list[Run]:
  """Runs cases of one structure and shape side by side."""
  units = []
  for case in cases:
    try:
      units.append(math.lcm(*periods(case)))
    except ValueError:
      units.append(0)  # changes in time
  # When the last application begins and ends.
  ends = [
    gradient_steps // unit * unit if unit else gradient_steps for unit in units
  ]
  stride = max(1, gradient_steps // points)
  visible = [_visible(case) for case in cases]
  with jax.enable_x64(True):
    program = _run_program(_structure(cases[0]), gradient_steps, stride, linear)
    norms, sizes, snapshots, exponents = map(
      np.asarray,
      program(
        _stack([_numbers(case) for case in cases]),
        _stack([_numbers(case) for case in visible]),
        np.array(
          [[end - unit, end] for end, unit in zip(ends, units, strict=True)],
          np.int64,
        ),
      ),
    )
  clock = np.unique([*range(0, gradient_steps + 1, stride), gradient_steps])
  found = []
  for index, unit in enumerate(units):
    log_norms = norms[index] * math.log(2)
    half = (len(clock) - 1) // 2
    last, middle = log_norms[-1], log_norms[half]
    # NaN and infinity are divergences too.
    tenfold = not (last <= middle + math.log(10) or last == -math.inf)
    growth, diverged = None, tenfold
    if linear and unit and gradient_steps // unit >= _LEAST_APPLICATIONS:
      growth = _largest_mode(snapshots[index], exponents[index])
      diverged = growth > 1 + 1e-9
    elif not (linear and unit):
      logs = sizes[index] * math.log(2) if linear else log_norms
      if np.isfinite(logs[[half, -1]]).all():
        slope = (logs[-1] - logs[half]) / (clock[-1] - clock[half])
        growth = _exp(slope)
    found.append(
      Run(
        gradient_steps=clock,
        log10_norms=norms[index] * math.log10(2),
        unit=unit if linear and unit else 1,
        growth=growth,
        diverged=diverged,
      )
    )
  return found


@functools.cache
def _run_program(
  structure: _Structure, gradient_steps: int, stride: int, linear: bool
) -> Any:
  """Compiles runs of many cases, and of perturbations beside them.

  Returns:
    (numbers, visible numbers, ends [2]) -> logarithms to the base 2 of the
    norms of values [T] and perturbations [T], the perturbations [2, b, n] at
    two gradient steps and their exponents [2].
  """

  def one(
    numbers: Mapping[str, Any], visible: Mapping[str, Any], ends: jax.Array
  ) -> Any:
    agent, regress, state = _learner(structure, numbers)
    _, regress_visible, template = _learner(structure, visible)
    batch = numbers['batch']
    unpaid = visible['batch']._replace(r_t=jnp.zeros_like(visible['batch'].r_t))
    size = _vector(template).size
    starts = np.random.default_rng(0).standard_normal((_BLOCK, size))

    def block_of(vectors):
      return jax.vmap(lambda vector: _with_vector(template, vector))(vectors)

    def step(carry):
      (state, exponent), (block, block_exponent), kept = carry
      scaled = batch
      if linear:
        # Where nothing is paid, the scale may be beyond all floats.
        paid = jnp.where(batch.r_t == 0, 0.0, jnp.ldexp(batch.r_t, -exponent))
        scaled = batch._replace(r_t=paid)
      state, _ = regress(state, scaled)
      if linear:
        vector, exponent = _rescaled(_vector(state), exponent)
        state = _with_vector(state, vector)
        block, _ = jax.vmap(regress_visible, (0, None))(block, unpaid)
        vectors = jax.vmap(_vector)(block)
        vectors, block_exponent = _rescaled(vectors, block_exponent)
        block = jax.vmap(_with_vector)(block, vectors)
        now = ends == state.gradient_steps
        kept = (
          jnp.where(now[:, None, None], vectors, kept[0]),
          jnp.where(now, block_exponent, kept[1]),
        )
      return (state, exponent), (block, block_exponent), kept

    def steps(carry, number):
      return jax.lax.fori_loop(0, number, lambda _, c: step(c), carry)

    def look(carry):
      (state, exponent), (block, block_exponent), _ = carry
      values = agent.values(state.online_params, batch.obs_tm1)
      vectors = jax.vmap(_vector)(block)
      return (
        jnp.log2(jnp.linalg.norm(values)) + exponent,
        jnp.log2(jnp.linalg.norm(vectors)) + block_exponent,
      )

    def record(carry, _):
      carry = steps(carry, stride)
      return carry, look(carry)

    zero = jnp.zeros((), jnp.int64)
    carry = (
      (state, zero),
      (block_of(jnp.asarray(starts)), zero),
      (jnp.zeros((2, *starts.shape)), jnp.zeros(2, jnp.int64)),
    )
    first = look(carry)
    whole, rest = divmod(gradient_steps, stride)
    carry, looks = jax.lax.scan(record, carry, length=whole)
    last = []
    if rest:
      carry = steps(carry, rest)
      last = [look(carry)]
    norms, sizes = jax.tree.map(
      lambda *parts: jnp.concatenate([jnp.atleast_1d(part) for part in parts]),
      first,
      looks,
      *last,
    )
    return norms, sizes, *carry[2]

  return jax.jit(jax.vmap(one))


def _rescaled(
  array: jax.Array, exponent: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The array divided by a power of 2 that is added to the exponent."""
  _, power = jnp.frexp(jnp.max(jnp.abs(array)))
  return jnp.ldexp(array, -power), exponent + power


def _largest_mode(snapshots: np.ndarray, exponents: np.ndarray) -> float:
  """The largest modulus of an eigenvalue of whatever maps one to the other.

  Args:
    snapshots: [2, b, n] states before and after.
    exponents: [2] of the powers of 2 that they are to be multiplied with.
  """
  before, after = snapshots
  left, sizes, right = np.linalg.svd(before.T, full_matrices=False)
  alive = sizes > 1e-8 * sizes[0]
  if not alive.any():
    return 0.0
  left, sizes, right = left[:, alive], sizes[alive], right[alive]
  modes = np.linalg.eigvals(left.T @ after.T @ right.T / sizes)
  largest = np.abs(modes).max()
  if not largest > 0:
    return 0.0
  return _exp(
    math.log(largest) + int(exponents[1] - exponents[0]) * math.log(2)
  )


def _exp(logarithm: float) -> float:
  """exp, or the largest float, of what is beyond all numbers too."""
  largest = sys.float_info.max
  return math.exp(logarithm) if logarithm < math.log(largest) else largest
