"""Learning under the max from single samples, beside the exact values."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from siamrl.losses.td import value_of
from siamrl.parameters import FieldError
from siamrl.stability.cases import (
  Case,
  Structure,
  groups,
  learning_of,
  numbers_of,
  stack,
  structure_of,
)


class Sampled(NamedTuple):
  """A learner that draws one transition for each gradient step.

  Attributes:
    case: the learner; its batch holds all transitions, and their weights are
      the chances to be drawn.
    values: float64 [N] exact values of the N transitions' actions.
    decay: gradient steps since the twin last moved after which the step size is
      half of the first one; infinite for a constant one.
    seed: an integer >= 0, of the draws.
  """

  case: Case
  values: np.ndarray
  decay: float
  seed: int


class Errors(NamedTuple):
  """The errors of a run.

  Attributes:
    gradient_steps: int [T] gradient steps at which errors were measured.
    largest: float64 [T] largest absolute error of a value.
    moves: int [T] moves so far that have changed the twin.
  """

  gradient_steps: np.ndarray
  largest: np.ndarray
  moves: np.ndarray


def run(
  cases: Sequence[Sampled], gradient_steps: int, points: int = 40
) -> list[Errors]:
  """Runs each learner.

  The k-th gradient step since the twin last moved, counted from 0, has the step
  size of the case / (1 + k / decay): the twin's targets are fixed meanwhile,
  and with such steps the error of their mean falls as the root of their number.

  Args:
    cases: the learners; those that differ in numbers only run side by side.
    gradient_steps: length of the whole run, >= points.
    points: number of measurements, at even distances.

  Raises:
    ValueError: the parameters of a rule are invalid, or there are too few
      gradient steps.
  """
  if gradient_steps < points:
    raise FieldError(
      'gradient_steps', gradient_steps, f'must be at least {points}'
    )
  stride = gradient_steps // points
  found: list[Errors | None] = [None] * len(cases)
  keys = [
    (structure_of(one.case), one.case.batch.obs_tm1.shape) for one in cases
  ]
  clock = stride * np.arange(1, points + 1)
  for members in groups(keys):
    group = [cases[index] for index in members]
    with jax.enable_x64(True):
      largest, moves = map(
        np.asarray,
        _program(structure_of(group[0].case), stride, points)(
          stack([numbers_of(one.case) for one in group]),
          np.array([one.values for one in group]),
          np.array([one.decay for one in group], np.float64),
          np.array([one.seed for one in group], np.uint32),
        ),
      )
    for index, *row in zip(members, largest, moves, strict=True):
      found[index] = Errors(clock, *row)
  return [one for one in found if one is not None]


@functools.cache
def _program(structure: Structure, stride: int, points: int) -> Any:
  """Compiles (numbers, values, decay, seed) of many cases -> errors, moves."""

  def one(
    numbers: Mapping[str, Any], values: jax.Array, decay: Any, seed: Any
  ) -> Any:
    agent, regress, state = learning_of(structure, numbers)
    batch = numbers['batch']
    chances = jnp.log(batch.weight)

    def step(_, carry):
      state, key, since, moves = carry
      key, draw = jax.random.split(key)
      row = jax.random.categorical(draw, chances)[None]
      sample = jax.tree.map(lambda x: x[row], batch)
      sample = sample._replace(weight=1 / (1 + since[None] / decay))
      after, _ = regress(state, sample)
      same = jnp.array(True)
      for old, new in zip(
        jax.tree.leaves(state.target_params),
        jax.tree.leaves(after.target_params),
        strict=True,
      ):
        same &= (old == new).all()
      since = jnp.where(same, since + 1, 0.0)
      return after, key, since, moves + ~same

    def point(carry, _):
      carry = jax.lax.fori_loop(0, stride, step, carry)
      state, _, _, moves = carry
      q = agent.values(state.online_params, batch.obs_tm1)
      learned = jax.vmap(value_of)(q, batch.a_tm1)
      return carry, (jnp.abs(learned - values).max(), moves)

    zero = jnp.zeros((), jnp.int32)
    first = state, jax.random.key(seed), jnp.zeros(()), zero
    return jax.lax.scan(point, first, length=points)[1]

  return jax.jit(jax.vmap(one))
