"""Estimates of the memory that a run takes, before it takes it.

A program is known before it is compiled: tracing names the shape of every value
that it computes, so that a network, its gradients, or what an iteration keeps
are counted without allocating any of it.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
from jax.extend.core import Literal
import numpy as np

from experiments.config.declaring import UsageError, counts, refuse
from siamrl.types import Schedule


# Share of the memory that a run may take; the system and the allocator need
# the rest.
SHARE = 0.9

# Overhead of an array, and of its place in a list.
_ARRAY_NBYTES = 128

# Operations whose result cannot reuse the memory of an operand.
_COPIES = frozenset(
  ('dot_general', 'conv_general_dilated', 'gather', 'sort', 'transpose')
  + ('concatenate', 'pad', 'rev', 'dynamic_slice', 'slice', 'top_k')
)


def check(
  config: Any, needs: Callable[[Any], float], fallback: str, memory: float
) -> None:
  """Raises UsageError for a run that the memory cannot hold.

  Args:
    config: the options.
    needs: options -> bytes that their run takes.
    fallback: the option to name if none stands out.
    memory: available bytes.
  """
  need = needs(config)
  if need > SHARE * memory:
    refuse(
      config,
      heaviest(config, needs) or fallback,
      'be so small that the run fits the memory: it takes '
      f'{words(need, memory)}',
    )


def check_replay(config: Any, need: int, memory: float) -> None:
  """Raises UsageError for a replay that alone exceeds the memory.

  Args:
    config: the options, with `replay_capacity`.
    need: bytes of a full replay.
    memory: available bytes.
  """
  if need > SHARE * memory:
    refuse(
      config,
      'replay_capacity',
      f'fit the memory: it takes {words(need, memory)}',
    )


def words(need: float, memory: float) -> str:
  """The words of a message about too many bytes."""
  share = f'and {SHARE * 100:.0f} % may be taken'
  return f'{need / 1e9:,.1f} GB of {memory / 1e9:,.1f} GB, {share}'


def heaviest(config: Any, needs: Callable[[Any], float]) -> str | None:
  """The option that makes a run largest.

  Args:
    config: the options.
    needs: options -> bytes that their run takes.

  Returns:
    The name of the count whose default makes the run smallest; None if no
    default makes it smaller.
  """
  sizes, need = {}, needs(config)
  for name, default in counts(config).items():
    try:
      sizes[name] = needs(dataclasses.replace(config, **{name: default}))
    except (UsageError, ValueError):
      continue  # the default does not go with the others
  smaller = [name for name in sizes if sizes[name] < need]
  return min(smaller, key=lambda name: sizes[name], default=None)


def learning_nbytes(
  regress: Callable[..., Any],
  state: Any,
  batch: Any,
  schedule: Schedule,
  chunk_env_steps: int = 256,
) -> float:
  """About how many bytes learning takes in the host loop.

  Args:
    regress: takes a gradient step.
    state: shapes of the learner's state.
    batch: shapes of a batch.
    schedule: has the number of batches that a round draws together.
    chunk_env_steps: env steps whose metrics are fetched together.
  """
  rounds = max(1, chunk_env_steps // schedule.collect)
  _, metrics = jax.eval_shape(regress, state, batch)
  kept = len(metrics) * rounds * schedule.regress * _ARRAY_NBYTES
  return (
    peak_nbytes(regress, state, batch) + schedule.regress * nbytes(batch) + kept
  )


def kept_nbytes(env_steps: int, num_envs: int, numbers: int) -> float:
  """Bytes of a list with NumPy arrays for each step of all environments.

  Args:
    env_steps: env steps of all environments together.
    num_envs: environments stepped at once.
    numbers: numbers of 4 bytes per environment and step.
  """
  return env_steps / num_envs * (_ARRAY_NBYTES + 4 * num_envs * numbers)


def nbytes(tree: Any) -> int:
  """Bytes of a tree of arrays or of their shapes."""
  return sum(_of_value(leaf) for leaf in jax.tree.leaves(tree))


def peak_nbytes(function: Callable[..., Any], *arguments: Any) -> int:
  """About how many bytes a program holds at once; nothing is computed.

  It counts arguments, and all values until their last use. The compiler may
  save some of them by fusion.

  Args:
    function: the program; a jitted one is traced only once, for this and for
      its compilation.
    *arguments: trees of arrays or of their shapes; donated.
  """
  traced = function if hasattr(function, 'trace') else jax.jit(function)
  return _peak(traced.trace(*arguments).jaxpr.jaxpr)


def _of_value(value: Any) -> int:
  """Bytes of an array, or of the shape of one."""
  dtype = value.dtype
  if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
    return math.prod(value.shape) * 8
  return math.prod(value.shape) * np.dtype(dtype).itemsize


def _peak(jaxpr: Any) -> int:
  """The most bytes that are alive at once, arguments included."""
  last: dict[Any, int] = {}
  for number, equation in enumerate(jaxpr.eqns):
    for value in equation.invars:
      if not isinstance(value, Literal):
        last[value] = number
  for value in jaxpr.outvars:
    if not isinstance(value, Literal):
      last[value] = len(jaxpr.eqns)
  alive = sum(_of_value(v.aval) for v in (*jaxpr.constvars, *jaxpr.invars))
  peak = alive
  for number, equation in enumerate(jaxpr.eqns):
    used = {
      v
      for v in equation.invars
      if not isinstance(v, Literal) and last[v] == number
    }
    freed = sum(_of_value(v.aval) for v in used)
    made = sum(_of_value(v.aval) for v in equation.outvars)
    inside = max(
      (
        _peak(inner) - sum(_of_value(v.aval) for v in inner.invars)
        for inner in _inner(equation)
      ),
      default=0,
    )
    if equation.primitive.name == 'shard_map':
      inside *= equation.params['mesh'].size
    room = 0 if equation.primitive.name in _COPIES else min(freed, made)
    if equation.primitive.name in ('scan', 'while'):
      during = made - room + inside
    else:
      during = max(made - room, inside)
    peak = max(peak, alive + during)
    alive += made - freed
    alive -= sum(_of_value(v.aval) for v in equation.outvars if v not in last)
  return peak


def _inner(equation: Any) -> list[Any]:
  """The programs inside an equation: of a loop, a branch, a function."""
  found = []
  for parameter in equation.params.values():
    for value in parameter if isinstance(parameter, tuple) else (parameter,):
      if hasattr(value, 'jaxpr'):
        value = value.jaxpr
      if hasattr(value, 'eqns'):
        found.append(value)
  return found
