"""Rules of the twin that are wrong on purpose, each a defect of public code.

Code in which a target network is updated wrongly still learns, sometimes as
well as before, so that its tests notice nothing. The rules here have one such
defect each, to measure what it costs. `siamrl.conformance.defects` has the same
table without JAX: where each was seen, and the law that catches it.

No launcher offers them unless it is asked to: `register` adds them to
`twins.RULES`, and so does --user_file=experiments/studies/museum.py.

All but `lost_update` are built around the right rule, which moves the twin the
fraction `tau` of the way every `target_period` gradient steps: `tau` = 1 makes
it copies, and `target_period` = 1 a soft update at every gradient step. Both
are what a user asked for, and may be traced.
"""

import re
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from siamrl import parameters, twins
from siamrl.parameters import FieldError, Parameter
from siamrl.twins.lifting import stays
from siamrl.twins.trees import as_in, born, map_named, named_leaves
from siamrl.types import Params, Twin

# Found in the paths of what batch normalization measures.
_STATISTICS = re.compile(r'statistics|batch_stats')


def _toward(online: Params, target: Params, tau: chex.Numeric) -> Params:
  """The target, moved the fraction `tau` of the way; a copy for 1."""
  return jax.tree.map(
    lambda o, t: (
      jnp.where(tau < 1, optax.incremental_update(o, t, tau), o)
      if jnp.issubdtype(t.dtype, jnp.floating)
      else o
    ),
    as_in(online, target),
    target,
  )


def _if(due: chex.Array, moved: Params, target: Params) -> Params:
  return jax.tree.map(lambda m, t: jnp.where(due, m, t), moved, target)


def _moving(tau: chex.Numeric, is_due: Any) -> Twin:
  """The rule that moves the fraction `tau` when `is_due(gradient_steps)`."""

  def update(
    online: Params, target: Params, gradient_steps: chex.Numeric
  ) -> Params:
    due = jnp.asarray(is_due(gradient_steps))
    return _if(due, _toward(online, target, tau), target)

  return Twin(update, born)


def right(tau: chex.Numeric, target_period: chex.Numeric) -> Twin:
  """The rule without a defect, which is `periodic(target_period, soft(tau))`.

  Args:
    tau: weight on the online parameters, in (0, 1].
    target_period: gradient steps from one update to the next, >= 1.
  """
  return _moving(tau, lambda steps: steps % target_period == 0)


def alias(target_period: chex.Numeric) -> Twin:
  """The first update makes the twin the online network under another name.

  JAX's arrays have no second name. A twin that is copied at every gradient step
  from then on is the same to whatever reads it, since the copy that ends a
  gradient step precedes the next.

  Args:
    target_period: gradient steps before the first update.
  """
  return _moving(1.0, lambda steps: steps >= target_period)


def lost_update() -> Twin:
  """The updates do not reach the twin, which stays as it was born."""
  return Twin(stays, born)


def period_multiplied(
  tau: chex.Numeric, target_period: chex.Numeric, period_factor: chex.Numeric
) -> Twin:
  """The period is a multiple of the one that was asked for.

  This is what becomes of a check of the period inside of a branch that has a
  period itself.

  Args:
    tau: as in `right`.
    target_period: as in `right`.
    period_factor: the factor, >= 1.
  """
  return _moving(
    tau,
    # No product, which might not fit into 32 bits.
    lambda steps: (
      (steps % target_period == 0)
      & (steps // target_period % period_factor == 0)
    ),
  )


def unit_confusion(
  tau: chex.Numeric, target_period: chex.Numeric, clock_ratio: chex.Numeric
) -> Twin:
  """The period is counted in another unit, such as env steps.

  The twin moves after each gradient step in which the other clock has passed a
  multiple of the period, so `clock_ratio` times as often as it should.

  Args:
    tau: as in `right`.
    target_period: as in `right`.
    clock_ratio: steps of the other clock for each gradient step, >= 1.
  """
  return _moving(
    tau,
    lambda steps: (
      steps % target_period * clock_ratio % target_period < clock_ratio
    ),
  )


def double_rule(tau: chex.Numeric, target_period: chex.Numeric) -> Twin:
  """Two rules are in force: a soft one, and copies every `target_period`.

  Args:
    tau: as in `right`, of the soft rule.
    target_period: gradient steps from one copy to the next, >= 1.
  """

  def update(
    online: Params, target: Params, gradient_steps: chex.Numeric
  ) -> Params:
    due = gradient_steps % target_period == 0
    return _toward(online, target, jnp.where(due, 1.0, tau))

  return Twin(update, born)


def statistics_left_behind(
  tau: chex.Numeric, target_period: chex.Numeric
) -> Twin:
  """The twin's statistics of batch normalization stay as they were born.

  Args:
    tau: as in `right`.
    target_period: as in `right`.

  Returns:
    A rule whose `init` raises ValueError for parameters without statistics.
  """
  whole = right(tau, target_period)

  def init(online: Params) -> Params:
    if not any(_STATISTICS.search(path) for path, _ in named_leaves(online)):
      raise FieldError(
        'target_update',
        'statistics_left_behind',
        'needs a network whose twin has statistics of batch normalization',
      )
    return born(online)

  def update(
    online: Params, target: Params, gradient_steps: chex.Numeric
  ) -> Params:
    behind = dict(named_leaves(target))
    return map_named(
      lambda path, leaf: behind[path] if _STATISTICS.search(path) else leaf,
      whole.update(online, target, gradient_steps),
    )

  return Twin(update, init)


def soft_birth(
  tau: chex.Numeric, target_period: chex.Numeric, birth_tau: chex.Numeric
) -> Twin:
  """The twin is born by a soft update of fresh parameters, not as a copy.

  Args:
    tau: as in `right`.
    target_period: as in `right`.
    birth_tau: weight on the online parameters at birth, in (0, 1].
  """
  return right(tau, target_period)._replace(
    birth=lambda online, fresh: _toward(online, born(fresh), birth_tau)
  )


def tau_ignored(default_tau: chex.Numeric, target_period: chex.Numeric) -> Twin:
  """The twin moves by a default, whatever tau was asked for.

  Args:
    default_tau: the default, in (0, 1].
    target_period: as in `right`.
  """
  return right(default_tau, target_period)


def once_per_block(
  tau: chex.Numeric, target_period: chex.Numeric, block_steps: chex.Numeric
) -> Twin:
  """The twin moves at most once in a block of gradient steps, at its end.

  Args:
    tau: as in `right`.
    target_period: as in `right`.
    block_steps: gradient steps of a block, >= 1.
  """
  return _moving(
    tau,
    lambda steps: (
      (steps % block_steps == 0)
      & (steps // target_period > (steps - block_steps) // target_period)
    ),
  )


def wrong_direction(tau: chex.Numeric, target_period: chex.Numeric) -> Twin:
  """The update writes the online network, and the twin stays.

  Args:
    tau: as in `right`, here the weight on the twin.
    target_period: as in `right`.
  """
  whole = right(tau, target_period)

  def shift(
    online: Params, target: Params, gradient_steps: chex.Numeric
  ) -> Params:
    twinned = {name: target[name] for name in online if name in target}
    now = {name: online[name] for name in twinned}
    return {**online, **whole.update(twinned, now, gradient_steps)}

  return Twin(stays, born, shift=shift, clock=twins.frozen())


class Exhibit(NamedTuple):
  """A defect as `register` offers it.

  Attributes:
    make: builds the rule.
    summary: phrase for a help text that says what the rule does.
    period: as in `twins.Rule`.
    new: the parameters that it brings.
  """

  make: Any
  summary: str
  period: int = 1
  new: dict[str, Parameter] = {}


EXHIBITS: dict[str, Exhibit] = {
  'alias': Exhibit(
    alias, 'a defect: from the first update on the online network itself'
  ),
  'lost_update': Exhibit(
    lost_update, 'a defect: updates are lost', twins.NEVER
  ),
  'period_multiplied': Exhibit(
    period_multiplied,
    'a defect: every period_factor * target_period',
    new={
      'period_factor': Parameter(
        parameters.WHOLE,
        'Periods from one target update to the next',
        int,
        default=10,
      )
    },
  ),
  'unit_confusion': Exhibit(
    unit_confusion,
    'a defect: the period is counted by a clock that is clock_ratio times as '
    'fast',
    new={
      'clock_ratio': Parameter(
        parameters.WHOLE,
        'Steps of the clock that the period is counted by, for each gradient '
        'step',
        int,
        default=4,
      )
    },
  ),
  'double_rule': Exhibit(
    double_rule, 'a defect: soft at each gradient step, and copies as well'
  ),
  'statistics_left_behind': Exhibit(
    statistics_left_behind,
    'a defect: all but the statistics of batch normalization moves',
  ),
  'soft_birth': Exhibit(
    soft_birth,
    'a defect: born by a soft update of fresh parameters',
    new={
      'birth_tau': Parameter(
        parameters.RATE,
        "Weight of the online parameters in the twin's first ones",
        default=0.005,
      )
    },
  ),
  'tau_ignored': Exhibit(
    tau_ignored,
    'a defect: moves by default_tau, whatever tau was asked for',
    new={
      'default_tau': Parameter(
        parameters.RATE,
        'Weight of the online parameters in a target update that ignores tau',
        default=1.0,
      )
    },
  ),
  'once_per_block': Exhibit(
    once_per_block,
    'a defect: at most once in a block of gradient steps',
    new={
      'block_steps': Parameter(
        parameters.WHOLE,
        'Gradient steps of a block, at whose end the twin may move',
        int,
        default=8,
      )
    },
  ),
  'wrong_direction': Exhibit(
    wrong_direction, 'a defect: the online network is written, not the twin'
  ),
}


def register() -> None:
  """Adds the defects to `twins.RULES`, by the names of their functions.

  Launchers then offer them as --target_update=NAME. A second call does nothing.
  """
  for name, exhibit in EXHIBITS.items():
    if name not in twins.RULES:
      twins.register(
        name,
        exhibit.make,
        exhibit.summary,
        period=exhibit.period,
        **exhibit.new,
      )
