"""What a run takes of the memory, before it takes it.

A program is known before it is compiled: tracing names the shape of every value
that it computes, so that a network, its gradients, or what an iteration keeps
are counted without allocating any of it.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import numpy as np


# Of the memory; the rest is the operating system's and the allocator's.
SHARE = 0.9

# Operations that read what they write to, so that an operand which nobody else
# needs makes room for the result. Elementwise operations do, too.
_COPIES = frozenset(
  ('dot_general', 'conv_general_dilated', 'gather', 'sort', 'transpose')
  + ('concatenate', 'pad', 'rev', 'dynamic_slice', 'slice', 'top_k')
)


def words(nbytes: float, memory: float) -> str:
  """What a message says of a size: '12.3 GB of 8.0 GB, ...'."""
  return (
    f'{nbytes / 1e9:,.1f} GB of {memory / 1e9:,.1f} GB, and {SHARE:.0%} may be '
    'taken'
  )


def nbytes(tree: Any) -> int:
  """Bytes of a tree of arrays or of their shapes."""
  return sum(_of_value(leaf) for leaf in jax.tree.leaves(tree))


def peak_nbytes(function: Callable[..., Any], *arguments: Any) -> int:
  """About how many bytes a program holds at once; nothing is computed.

  Counted are arguments and all values from their making to their last use,
  where the compiler may save some by fusing what makes and what uses them.

  Args:
    function: what is to be compiled; a jitted one is traced once for this and
      for its compilation.
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
      if not isinstance(value, jax.extend.core.Literal):
        last[value] = number
  for value in jaxpr.outvars:
    if not isinstance(value, jax.extend.core.Literal):
      last[value] = len(jaxpr.eqns)
  alive = sum(_of_value(v.aval) for v in (*jaxpr.constvars, *jaxpr.invars))
  peak = alive
  for number, equation in enumerate(jaxpr.eqns):
    used = {
      v
      for v in equation.invars
      if not isinstance(v, jax.extend.core.Literal) and last[v] == number
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
