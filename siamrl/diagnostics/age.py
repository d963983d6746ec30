"""The age of a twin's content."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from siamrl.diagnostics.distances import leaves_by_layer
from siamrl.learner import ClockedTwin, make_move
from siamrl.types import Params

# Gradient steps by which ages above 2**24 grow at once.
_GRAIN = 256


class Clock(NamedTuple):
  """A clock that tells the age of a twin's content, in gradient steps.

  Attributes:
    init: online_params -> ages of a twin when a run begins. Only the shapes of
      parameters matter, here and below.
    advance: (online_params, ages, before, after) -> ages, from one number of
      gradient steps to another.
    read: (online_params, ages) -> (mean over all parameters [], of each layer).
    moves: (online_params, ages, before, after) -> (ages, moves int32 [], last
      int32 []): like `advance`, with the number of gradient steps at which the
      rule moved any part of the twin, and the last of them, `before` for none.
      A twin without parameters, such as that of `self_copy`, never moves.
  """

  init: Callable[[Params], Any]
  advance: Callable[[Params, Any, chex.Numeric, chex.Numeric], Any]
  read: Callable[[Params, Any], tuple[chex.Array, dict[str, chex.Array]]]
  moves: Callable[
    [Params, Any, chex.Numeric, chex.Numeric],
    tuple[Any, chex.Array, chex.Array],
  ]


def make_clock(rule: ClockedTwin) -> Clock:
  """Builds a clock that runs a rule on ages in place of parameters.

  The age of a twin that is a weighted mean of past online parameters is the
  same weighted mean of their ages. So the rule is applied to arrays of ages, 0
  for the online network, and each gradient step makes the twin's a step older.
  This gives t mod C for a hard copy every C gradient steps, and (1 - tau) (1 -
  (1 - tau)**t) / tau, in the long run (1 - tau) / tau, for `soft(tau)`. All
  elements of a parameter share one age. Rules with a `Twin.shift` stack several
  networks; there each entry of a parameter's leading axis has its own age.

  Ages are kept rather than dates, since float32 has no tenths next to a date of
  10**7 gradient steps. Those above 2**24 are right to within 256 gradient
  steps. Integers that a twin keeps do not age.

  Args:
    rule: the rule and its clock. It must take weighted means of past
      parameters, with weights that depend neither on them nor on a report, or
      have a `Twin.clock` that does.

  Raises:
    ValueError: the name of its order is unknown, or it reads reports and has no
      `Twin.clock`.
  """
  rule.check()
  stacked = rule.twin.shift is not None
  if rule.twin.clock is not None:
    rule = rule._replace(twin=rule.twin.clock)
  if rule.twin.reads_report:
    raise ValueError(
      'a rule that reads reports needs a Twin.clock to tell its age'
    )
  move = make_move(rule)

  def now(online_params: Params) -> Params:
    return jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape[:1] if stacked else 1, jnp.float32),
      online_params,
    )

  def older(ages: Any, taken: chex.Numeric) -> Any:
    # Above 2**24, where adding 1 changes no float32, ages grow by _GRAIN.
    rest = jnp.where((taken + 1) % _GRAIN == 0, float(_GRAIN), 0.0)

    def each(leaf: jax.Array) -> jax.Array:
      if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
      return leaf + jnp.where(leaf < 2.0**24, 1.0, rest).astype(leaf.dtype)

    return jax.tree.map(each, ages)

  def moves(
    online_params: Params, ages: Any, before: chex.Numeric, after: chex.Numeric
  ) -> tuple[Any, chex.Array, chex.Array]:
    zeros = now(online_params)

    def step(
      taken: chex.Numeric, carry: tuple[Any, chex.Array, chex.Array]
    ) -> tuple[Any, chex.Array, chex.Array]:
      ages, count, last = carry
      if rule.order == 'after':
        ages = older(ages, taken)
      ages, moved = _moved(ages, move(zeros, ages, taken + 1, None)[1])
      if rule.order == 'before':
        ages = older(ages, taken)
      return ages, count + moved, jnp.where(moved, taken + 1, last)

    first = jnp.asarray(before, jnp.int32)
    return jax.lax.fori_loop(
      before, after, step, (ages, jnp.zeros_like(first), first)
    )

  def advance(
    online_params: Params, ages: Any, before: chex.Numeric, after: chex.Numeric
  ) -> Any:
    return moves(online_params, ages, before, after)[0]

  def read(
    online_params: Params, ages: Any
  ) -> tuple[chex.Array, dict[str, chex.Array]]:
    shown = leaves_by_layer(rule.twin.params(now(online_params), ages))
    sizes = {
      name: [leaf.size for leaf in group]
      for name, group in leaves_by_layer(online_params).items()
    }
    sums = {
      name: sum(
        size * jnp.mean(age)
        for size, age in zip(sizes[name], group, strict=True)
      )
      for name, group in shown.items()
    }
    total = sum(sum(group) for group in sizes.values())
    mean = jnp.sum(jnp.stack(list(sums.values()))) / total
    return mean, {name: sums[name] / sum(sizes[name]) for name in sums}

  return Clock(lambda online: rule.twin.init(now(online)), advance, read, moves)


def _moved(before: Any, after: Any) -> tuple[Any, chex.Array]:
  """The later state, and int32 [], 1 if any of it has changed, else 0."""
  changed = [
    jnp.any(one != other)
    for one, other in zip(
      jax.tree.leaves(before), jax.tree.leaves(after), strict=True
    )
  ]
  if not changed:
    return after, jnp.zeros((), jnp.int32)
  return after, jnp.any(jnp.stack(changed)).astype(jnp.int32)
