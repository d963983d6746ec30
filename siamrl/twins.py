"""Rules that move the twin: how target parameters follow the online ones.

A rule is a pure function `(online, target, gradient_steps) -> target`. *How*
the twin moves is the rule's affair, *when* is the schedule's: a learner calls
the rule once in `Schedule.sync` gradient steps, after the optimiser's step.
Rates and periods may be traced values, so that one compiled program can be
vmapped over them.

`tau` always weighs the **online** parameters (the `step_size` of
`optax.incremental_update`; DDPG, TD3 and SAC have it so). BYOL's tau, MoCo's m
and Polyak's `decay` weigh the old ones: they are `1 - tau`.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from siamrl.types import Params, TargetUpdate


def copy(params: Params) -> Params:
  """Returns equal parameters in buffers of their own.

  Twins are born so: two names for one buffer could not both be donated.
  """
  return jax.tree.map(jnp.copy, params)


def hard() -> TargetUpdate:
  """The twin becomes a copy of the online parameters (Mnih et al. 2015).

  A copy, not `soft(1.0)`: in a weighted sum a stale infinity survives as
  0 * inf = NaN.
  """
  return lambda online, target, gradient_steps: copy(online)


def soft(tau: chex.Numeric) -> TargetUpdate:
  """The twin moves a fraction of the way (Lillicrap et al. 2016, eq. after 6).

  target <- tau * online + (1 - tau) * target. Left to itself for m calls with
  still online parameters, it has moved the fraction 1 - (1 - tau)**m.

  Args:
    tau: weight on the online parameters, in (0, 1]. 1 is `hard()`, unless it is
      traced.
  """
  if isinstance(tau, (int, float)) and tau == 1:
    return hard()
  return lambda online, target, gradient_steps: optax.incremental_update(
    online, target, tau
  )


def periodic(period: chex.Numeric, update: TargetUpdate) -> TargetUpdate:
  """Applies `update` where the gradient-step count is a multiple of `period`.

  `periodic(p, hard())` is DQN's rule, `periodic(p, soft(tau))` the
  period-and-tau rule of SAC's and CleanRL's code, and `periodic(1, rule)` is
  `rule`. The count is the one after the optimiser's step, so the first update
  follows gradient step number `period`.

  Args:
    period: gradient steps from one update to the next, >= 1; may be traced.
    update: the rule to apply then.
  """
  if isinstance(period, int) and period == 1:
    return update
  return lambda online, target, gradient_steps: jax.lax.cond(
    gradient_steps % period == 0,
    update,
    lambda online, target, gradient_steps: target,
    online,
    target,
    gradient_steps,
  )


def frozen() -> TargetUpdate:
  """The twin never moves: one backup of what it was born with."""
  return lambda online, target, gradient_steps: target


def self_copy() -> TargetUpdate:
  """The twin is the online network behind a stop-gradient (target-free).

  It equals `hard()` at every gradient step: the sync that ends one step is the
  one that precedes the next. SimSiam (Chen & He 2021) and target-free
  Q-learning are this rule.
  """
  return hard()


# Gradient steps that no run reaches, the most that int32 counts.
NEVER = 2**31 - 1


class Rule(NamedTuple):
  """A rule as a launcher offers it: what builds it, and what it reads.

  Attributes:
    make: builds the rule; called with `tau` if and only if `takes_tau`.
    takes_tau: whether there is a rate to choose.
    period: gradient steps from one application to the next; None where there
      is a period to choose.
    summary: what it does, for a help text.
  """

  make: Callable[..., TargetUpdate]
  takes_tau: bool
  period: int | None
  summary: str


RULES: dict[str, Rule] = {
  'hard': Rule(
    hard, False, None, 'a copy of the online network every target_period'
  ),
  'soft': Rule(
    soft, True, 1, 'a fraction tau towards it at every gradient step'
  ),
  'periodic_soft': Rule(
    soft, True, None, 'a fraction tau towards it every target_period'
  ),
  'frozen': Rule(frozen, False, NEVER, 'what it was born as'),
  'self': Rule(
    self_copy, False, 1, 'the online network itself, behind a stop-gradient'
  ),
}


def make_rule(name: str, *, tau: chex.Numeric | None = None) -> TargetUpdate:
  """Builds the rule that `RULES` holds under `name`.

  Args:
    name: a key of `RULES`.
    tau: weight on the online parameters, in (0, 1]; for the rules with a rate.

  Raises:
    ValueError: the name is unknown, or `tau` is missing, superfluous or (where
      it is no tracer) outside (0, 1].
  """
  if name not in RULES:
    raise ValueError(
      f'target_update={name!r} is unknown; choose from {", ".join(RULES)}'
    )
  rule = RULES[name]
  if not rule.takes_tau:
    if tau is not None:
      raise ValueError(
        f'tau={tau} has no meaning for target_update={name!r}, which has no '
        'rate'
      )
    return rule.make()
  if tau is None:
    raise ValueError(f'target_update={name!r} needs a tau in (0, 1]')
  if isinstance(tau, (int, float)) and not 0 < tau <= 1:
    raise ValueError(f'tau={tau} is outside (0, 1]')
  return rule.make(tau)
