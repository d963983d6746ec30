"""Runs of cases, and the growth of values and perturbations in them."""

from collections.abc import Mapping, Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from siamrl.stability.cases import (
  Case,
  Structure,
  bounded_exp,
  groups,
  learning_of,
  numbers_of,
  periods,
  stack,
  structure_of,
  vector_of,
  visible_basis,
  visible_part,
  with_vector,
)
from siamrl.stability.maps import is_linear, step_maps

# Perturbations that are followed side by side, to tell pairs of complex
# eigenvalues and near ties apart.
_BLOCK = 8
# The fewest applications of a map after which its growth counts as observed.
_LEAST_APPLICATIONS = 8


class Run(NamedTuple):
  """The observed growth of values and parameters of a case.

  Attributes:
    gradient_steps: int [T] gradient steps at which values were measured, from 0
      to the last.
    log10_norms: float64 [T] logarithm to the base 10 of the Euclidean norm of
      the values of the S states.
    unit: gradient steps that `growth` refers to.
    growth: asymptotic factor by which perturbations of the parameters grow over
      `unit` gradient steps; None if the run is too short to tell. For a rule
      that changes in time it is an average over the second half of the run, for
      one that is not linear the same average for the values themselves.
    diverged: whether growth is above 1; if it is an average or None, whether
      the values have grown tenfold over the second half.
  """

  gradient_steps: np.ndarray
  log10_norms: np.ndarray
  unit: int
  growth: float | None
  diverged: bool

  @property
  def final_value_norm(self) -> float:
    """The final norm of the values, at most the largest float."""
    return bounded_exp(float(self.log10_norms[-1]) * math.log(10))


def run(
  cases: Sequence[Case], gradient_steps: int, points: int = 200
) -> list[Run]:
  """Runs each case, and measures how its values and parameters grow.

  Since values may overflow, all numbers of a linear rule, rewards included, are
  divided by a power of 2 at each gradient step, which changes none of their
  digits. Growth is that of the largest remaining mode of a few random
  perturbations (dynamic mode decomposition of the states before and after the
  last application), which is right for oscillating modes too.

  Args:
    cases: the cases; those that differ in numbers only run side by side.
    gradient_steps: length of the whole run, >= 1.
    points: approximate number of measurements.

  Raises:
    ValueError: the parameters of a rule are invalid.
  """
  linear = [is_linear(maps) for maps in step_maps(cases)]
  found: list[Run | None] = [None] * len(cases)
  keys = [
    (*structure_of(case), case.batch.obs_tm1.shape, basis.shape, flag)
    for case, basis, flag in zip(
      cases, map(visible_basis, cases), linear, strict=True
    )
  ]
  for members in groups(keys):
    group = [cases[index] for index in members]
    observed = _observe(group, gradient_steps, points, linear[members[0]])
    for index, one in zip(members, observed, strict=True):
      found[index] = one
  return [one for one in found if one is not None]


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
  # Gradient steps at which the last applications end.
  ends = [
    gradient_steps // unit * unit if unit else gradient_steps for unit in units
  ]
  stride = max(1, gradient_steps // points)
  visible = [visible_part(case) for case in cases]
  with jax.enable_x64(True):
    program = _run_program(
      structure_of(cases[0]), gradient_steps, stride, linear
    )
    norms, sizes, snapshots, exponents = map(
      np.asarray,
      program(
        stack([numbers_of(case) for case in cases]),
        stack([numbers_of(case) for case in visible]),
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
    # NaN and infinity count as divergence too.
    tenfold = not (last <= middle + math.log(10) or last == -math.inf)
    growth, diverged = None, tenfold
    if linear and unit and gradient_steps // unit >= _LEAST_APPLICATIONS:
      growth = _largest_mode(snapshots[index], exponents[index])
      diverged = growth > 1 + 1e-9
    elif not (linear and unit):
      logs = sizes[index] * math.log(2) if linear else log_norms
      if np.isfinite(logs[[half, -1]]).all():
        slope = (logs[-1] - logs[half]) / (clock[-1] - clock[half])
        growth = bounded_exp(slope)
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
  structure: Structure, gradient_steps: int, stride: int, linear: bool
) -> Any:
  """Compiles runs of many cases and of their perturbations.

  Returns:
    Function of (numbers, visible numbers, ends [2]) to logarithms to the base 2
    of the norms of values [T] and perturbations [T], the perturbations [2, b,
    n] at the two gradient steps `ends`, and their exponents [2].
  """

  def one(
    numbers: Mapping[str, Any], visible: Mapping[str, Any], ends: jax.Array
  ) -> Any:
    agent, regress, state = learning_of(structure, numbers)
    _, regress_visible, template = learning_of(structure, visible)
    batch = numbers['batch']
    unpaid = visible['batch']._replace(r_t=jnp.zeros_like(visible['batch'].r_t))
    size = vector_of(template).size
    starts = np.random.default_rng(0).standard_normal((_BLOCK, size))

    def block_of(vectors):
      return jax.vmap(lambda vector: with_vector(template, vector))(vectors)

    def step(carry):
      (state, exponent), (block, block_exponent), kept = carry
      scaled = batch
      if linear:
        # A reward of 0 stays 0 even if the scale overflows.
        paid = jnp.where(batch.r_t == 0, 0.0, jnp.ldexp(batch.r_t, -exponent))
        scaled = batch._replace(r_t=paid)
      state, _ = regress(state, scaled)
      if linear:
        vector, exponent = _rescaled(vector_of(state), exponent)
        state = with_vector(state, vector)
        block, _ = jax.vmap(regress_visible, (0, None))(block, unpaid)
        vectors = jax.vmap(vector_of)(block)
        vectors, block_exponent = _rescaled(vectors, block_exponent)
        block = jax.vmap(with_vector)(block, vectors)
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
      vectors = jax.vmap(vector_of)(block)
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
  """Divides the array by a power of 2 that is added to the exponent."""
  _, power = jnp.frexp(jnp.max(jnp.abs(array)))
  return jnp.ldexp(array, -power), exponent + power


def _largest_mode(snapshots: np.ndarray, exponents: np.ndarray) -> float:
  """The largest modulus of an eigenvalue of the map between two snapshots.

  Args:
    snapshots: [2, b, n] states before and after.
    exponents: [2] exponents of the powers of 2 that scale the snapshots.
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
  return bounded_exp(
    math.log(largest) + int(exponents[1] - exponents[0]) * math.log(2)
  )
