"""Rules that only move parameters."""

from collections.abc import Callable, Mapping
import re
from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp
import optax

from siamrl.parameters import FieldError
from siamrl.twins.lifting import viewing, with_term
from siamrl.twins.trees import as_in, born, from_named, named_leaves, part
from siamrl.types import Params, Twin


def hard() -> Twin:
  """The twin becomes a copy of the online parameters (Mnih et al. 2015).

  A copy, not `soft(1.0)`: in a weighted sum a stale infinity survives as
  0 * inf = NaN.
  """
  return Twin(
    lambda online, target, gradient_steps: as_in(online, target), born
  )


def soft(tau: chex.Numeric) -> Twin:
  """The twin moves a fraction of the way (Lillicrap et al. 2016, eq. after 6).

  target <- tau * online + (1 - tau) * target. After m calls with constant
  online parameters it has moved the fraction 1 - (1 - tau)**m.

  Args:
    tau: weight on the online parameters, in (0, 1]. 1 gives `hard()`, unless it
      is traced.
  """
  if isinstance(tau, (int, float)) and tau == 1:
    return hard()
  return Twin(
    lambda online, target, gradient_steps: optax.incremental_update(
      as_in(online, target), target, tau
    ),
    born,
  )


def periodic(period: chex.Numeric, twin: Twin) -> Twin:
  """Moves the twin when the gradient-step count is a multiple of `period`.

  `periodic(p, hard())` is DQN's rule, `periodic(p, soft(tau))` that of SAC's
  and CleanRL's code, and `periodic(1, rule)` is `rule`. The count is the one
  after the optimizer's step, so the first update follows gradient step number
  `period`. A `ClockedTwin` does the same for whole rules; this is for rules
  inside others.

  Args:
    period: gradient steps from one update to the next, >= 1; may be traced.
    twin: the rule to apply; its `shift` is ignored.
  """
  if isinstance(period, int) and period == 1:
    return twin

  def update(
    online: Params, target: Any, gradient_steps: chex.Numeric, *report: Any
  ) -> Any:
    return jax.lax.cond(
      gradient_steps % period == 0,
      twin.update,
      lambda online, target, gradient_steps, *report: target,
      online,
      target,
      gradient_steps,
      *report,
    )

  return twin._replace(update=update)


def soft_scheduled(tau: Callable[[chex.Numeric], chex.Numeric]) -> Twin:
  """`soft`, at a rate that changes.

  The first update, after gradient step number 1, has the rate `tau(0)`, as with
  schedules of optax.

  Args:
    tau: number of gradient steps before the latest one -> the rate, in [0, 1].
  """
  return Twin(
    lambda online, target, gradient_steps: optax.incremental_update(
      as_in(online, target), target, tau(gradient_steps - 1)
    ),
    born,
  )


def cosine_rate(
  gradient_steps: chex.Numeric, tau: chex.Numeric, steps: chex.Numeric
) -> chex.Numeric:
  """BYOL's rate: tau at first, falling to 0 along half a cosine.

  The weight on the old twin is 1 - tau * (cos(pi k / K) + 1) / 2, and 1 from
  k = K on (Grill et al. 2020, section 3.2). In BYOL's code k is the number of
  gradient steps before the current one, so that the first of K updates has
  k = 0, and the last one has k = K - 1 and still moves the twin
  (deepmind-research/byol: `_update_fn` of byol_experiment.py, `target_ema` of
  utils/schedules.py, and main_loop.py, whose steps count from 0).

  Args:
    gradient_steps: k.
    tau: BYOL's 1 - tau_base.
    steps: K.
  """
  fraction = jnp.clip(gradient_steps / steps, 0.0, 1.0)
  return tau * (jnp.cos(jnp.pi * fraction) + 1) / 2


def linear_rate(
  gradient_steps: chex.Numeric,
  tau: chex.Numeric,
  tau_end: chex.Numeric,
  steps: chex.Numeric,
) -> chex.Numeric:
  """The rate that changes linearly from `tau` to `tau_end` over `steps`."""
  fraction = jnp.clip(gradient_steps / steps, 0.0, 1.0)
  return tau + fraction * (tau_end - tau)


def soft_cosine(tau: chex.Numeric, target_schedule_steps: chex.Numeric) -> Twin:
  """`soft` at BYOL's rate, see `cosine_rate`."""
  return soft_scheduled(
    lambda step: cosine_rate(step, tau, target_schedule_steps)
  )


def soft_linear(
  tau: chex.Numeric, tau_end: chex.Numeric, target_schedule_steps: chex.Numeric
) -> Twin:
  """`soft` at a rate that changes linearly, see `linear_rate`."""
  return soft_scheduled(
    lambda step: linear_rate(step, tau, tau_end, target_schedule_steps)
  )


class Dated(struct.PyTreeNode):
  """A twin with the time of its last update.

  Attributes:
    params: the twin.
    updated_at: int32 [] gradient step of the last update, 0 for none.
  """

  params: Params
  updated_at: jax.Array


def hard_scheduled(
  target_period: chex.Numeric,
  target_period_end: chex.Numeric,
  target_schedule_steps: chex.Numeric,
) -> Twin:
  """`hard`, with a period that changes linearly.

  The twin is copied at the first gradient step that lies a whole period after
  the last copy. With equal periods it is `periodic(target_period, hard())`.

  Args:
    target_period: initial period, in gradient steps.
    target_period_end: final period, in gradient steps.
    target_schedule_steps: gradient steps over which the period changes.
  """

  def update(
    online: Params, target: Dated, gradient_steps: chex.Numeric
  ) -> Dated:
    period = linear_rate(
      gradient_steps, target_period, target_period_end, target_schedule_steps
    )
    return jax.lax.cond(
      gradient_steps - target.updated_at >= period,
      lambda: Dated(
        as_in(online, target.params), jnp.asarray(gradient_steps, jnp.int32)
      ),
      lambda: target,
    )

  return Twin(
    update,
    lambda online: Dated(born(online), jnp.zeros((), jnp.int32)),
    params=lambda online, target: target.params,
    lift=lambda agent: viewing(agent, lambda online, target: target.params),
  )


class Counted(Dated):
  """A twin with the time of its last update and the number of its updates.

  Attributes:
    updates: int32 [] number of updates so far.
  """

  updates: jax.Array


# The longest period to which one grows, in gradient steps.
LONGEST = 2**30


def geometric_period(
  copies: chex.Numeric,
  target_period: chex.Numeric,
  target_period_growth: chex.Numeric,
) -> chex.Array:
  """target_period * target_period_growth**copies, int32 [] gradient steps.

  It is rounded to the nearest integer and stops growing at `LONGEST`. With a
  growth of 1 it is exactly `target_period`, however large that is.

  Args:
    copies: int32 [] number of copies before this period.
    target_period: the first period, >= 1.
    target_period_growth: factor from one period to the next, >= 1.
  """
  first = jnp.asarray(target_period, jnp.int32)
  # Only what a period exceeds the first by is subject to float32's rounding.
  excess = first * (jnp.power(jnp.float32(target_period_growth), copies) - 1)
  room = jnp.maximum(LONGEST - first, 0)
  excess = jnp.floor(jnp.minimum(excess, LONGEST) + 0.5).astype(jnp.int32)
  return first + jnp.minimum(excess, room)


def hard_geometric(
  target_period: chex.Numeric, target_period_growth: chex.Numeric
) -> Twin:
  """`hard`, with a period that grows geometrically from copy to copy.

  Copy n, counted from 0, comes `geometric_period(n)` gradient steps after the
  copy before it. For tabular Q-learning with stochastic gradient descent,
  Weissmann et al. (2026) derive periods proportional to discount**(-2 n / 3), a
  growth of discount**(-2 / 3). With a growth of 1 it is `periodic(
  target_period, hard())`.

  Args:
    target_period: the first period, in gradient steps, >= 1; may be traced.
    target_period_growth: factor from one period to the next, >= 1; may be
      traced.
  """

  def update(
    online: Params, target: Counted, gradient_steps: chex.Numeric
  ) -> Counted:
    period = geometric_period(
      target.updates, target_period, target_period_growth
    )
    return jax.lax.cond(
      gradient_steps - target.updated_at >= period,
      lambda: Counted(
        as_in(online, target.params),
        jnp.asarray(gradient_steps, jnp.int32),
        target.updates + 1,
      ),
      lambda: target,
    )

  def init(online: Params) -> Counted:
    return Counted(
      born(online), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    )

  return Twin(
    update,
    init,
    params=lambda online, target: target.params,
    lift=lambda agent: viewing(agent, lambda online, target: target.params),
  )


def is_drawn(
  gradient_steps: chex.Numeric, target_period: chex.Numeric
) -> chex.Array:
  """Whether `hard_random` copies at a gradient step, bool [].

  True with probability 1 / target_period, independently at each gradient step.
  It is a function of its arguments: all runs copy at the same gradient steps.

  Args:
    gradient_steps: number of gradient steps so far.
    target_period: mean period, in gradient steps, >= 1.
  """
  key = jax.random.fold_in(jax.random.key(0), gradient_steps)
  period = jnp.asarray(target_period, jnp.int32)
  return jax.random.randint(key, (), 0, period, jnp.int32) == 0


def hard_random(target_period: chex.Numeric) -> Twin:
  """`hard`, at random gradient steps, see `is_drawn`.

  Between two copies lie m gradient steps with probability (1 - lambda)
  lambda^(m - 1), where lambda = 1 - 1 / target_period. After a copy both
  networks are equal, so if m gradient steps from there are a deterministic map
  F_m, the mean of the next copy is sum_m (1 - lambda) lambda^(m - 1) F_m: the
  lambda-target of Lee (2026, "Geometrically averaged hard target updates for
  linear Q-learning", arXiv:2606.10835), which averages those maps. Networks
  cannot go through all periods at once; this rule draws one of them instead.
  The lab averages the maps themselves (`stability.switching.modes`). With a
  mean period of 1 it is `hard()` at every gradient step.

  Args:
    target_period: mean period, in gradient steps, >= 1; may be traced.
  """

  def update(
    online: Params, target: Params, gradient_steps: chex.Numeric
  ) -> Params:
    return jax.lax.cond(
      is_drawn(gradient_steps, target_period),
      lambda: as_in(online, target),
      lambda: target,
    )

  return Twin(update, born)


class Weighed(struct.PyTreeNode):
  """A twin with the weight and the spread of its past, for each parameter.

  Attributes:
    params: the twin.
    weights: [] total weight of the past, a tree in the structure of `params`.
    variances: [] mean square of the distances so far, likewise.
  """

  params: Params
  weights: Params
  variances: Params


# The first variance, and what keeps the divisor above 0.
_LEAST_VARIANCE = 1e-8


def t_soft(tau: chex.Numeric, degrees_of_freedom: chex.Numeric) -> Twin:
  """`soft`, slower where the online parameters lie unusually far away.

  The twin is the mean of a Student-t distribution, estimated from the online
  parameters of the past (Kobayashi & Ilboudo 2020). A parameter whose mean
  squared distance from its twin is D gets the weight

      w = (nu + 1) / (nu + D / variance)
      target <- target + w / (W + w) * (online - target)
      variance <- variance + tau * w * nu / (nu + 1) * (D - variance)
      W <- (1 - tau) * (W + w)

  with W = (1 - tau) / tau at first. These equations are those of two
  implementations (one is iamtitouche/DeepRL, `t_soft_update` of
  1-DQN/DQN/dqn.py), which differ in whether D is that of all parameters or, as
  here, of each array of the tree. With infinite degrees of freedom every weight
  is 1, and it is `soft`. The variance starts at 1e-8, so that a twin which
  starts far away, as with fresh parameters, hardly moves at first.

  Args:
    tau: mean weight on the online parameters, in (0, 1]; 1 gives `hard()`,
      unless it is traced.
    degrees_of_freedom: nu, > 0; 1 in the authors' experiments. May be infinite
      or traced.
  """
  if isinstance(tau, (int, float)) and tau == 1:
    return hard()
  inverse = 1 / degrees_of_freedom

  def init(online: Params) -> Weighed:
    params = born(online)

    def filled(value: chex.Numeric) -> Params:
      return jax.tree.map(lambda t: jnp.full((), value, t.dtype), params)

    return Weighed(params, filled((1 - tau) / tau), filled(_LEAST_VARIANCE))

  def update(
    online: Params, target: Weighed, gradient_steps: chex.Numeric
  ) -> Weighed:
    near = as_in(online, target.params)
    distances = jax.tree.map(
      lambda o, t: jnp.mean(jnp.square(o - t)), near, target.params
    )
    weights = jax.tree.map(
      lambda d, v: (1 + inverse) / (1 + inverse * d / (v + _LEAST_VARIANCE)),
      distances,
      target.variances,
    )
    return Weighed(
      jax.tree.map(
        lambda o, t, w, past: optax.incremental_update(o, t, w / (past + w)),
        near,
        target.params,
        weights,
        target.weights,
      ),
      jax.tree.map(
        lambda w, past: ((1 - tau) * (past + w)).astype(past.dtype),
        weights,
        target.weights,
      ),
      jax.tree.map(
        lambda w, v, d: (v + tau * w / (1 + inverse) * (d - v)).astype(v.dtype),
        weights,
        target.variances,
        distances,
      ),
    )

  return Twin(
    update,
    init,
    params=lambda online, target: target.params,
    lift=lambda agent: viewing(agent, lambda online, target: target.params),
    # In the long run the mean of its weights is that of `soft`.
    clock=soft(tau),
  )


def frozen() -> Twin:
  """The twin never moves: it stays the initial network."""
  return Twin(lambda online, target, gradient_steps: target, born)


def projected_soft(
  tau: chex.Numeric, projection_radius: chex.Numeric, ridge: chex.Numeric
) -> Twin:
  """`soft` within a ball, with a ridge penalty (Zhang et al. 2021, eq. 8).

  target <- P_R(target + tau * (P_r(online) - target)), where P_R projects onto
  the ball of radius R = `projection_radius` around 0, in the Euclidean norm of
  all parameters. The analysis requires r below R by less than 1: here r = R -
  1/2, or R / 2 if that is more. The loss gets the term ridge / 2 *
  ||online||**2, which is the paper's for half the squared error. With ridge = 0
  and an infinite radius it is `soft`.

  Args:
    tau: weight on the online parameters, in (0, 1].
    projection_radius: radius of the twin's ball, > 0.
    ridge: weight of the penalty, >= 0.
  """

  def update(
    online: Params, target: Params, gradient_steps: chex.Numeric
  ) -> Params:
    inner = jnp.maximum(projection_radius - 0.5, projection_radius / 2)
    near = _project(as_in(online, target), inner)
    moved = optax.incremental_update(near, target, tau)
    return _project(moved, projection_radius)

  def penalty(online: Params) -> chex.Array:
    return ridge / 2 * optax.tree.norm(online, squared=True)

  return Twin(
    update,
    born,
    lift=lambda agent: with_term(
      agent, lambda online, target, batch, key: penalty(part(agent, online))
    ),
    clock=soft(tau),
  )


def _project(params: Params, radius: chex.Numeric) -> Params:
  """The nearest parameters in the ball of a radius around 0."""
  norm = optax.tree.norm(params)
  # `where` discards a quotient 0 / 0.
  scale = jnp.where(norm > radius, radius / norm, 1.0)
  return optax.tree.scale(scale, params)


def by_path(rules: Mapping[str, Twin]) -> Twin:
  """A separate rule for each part of the network.

  Args:
    rules: pattern -> rule. A parameter follows the first rule whose regular
      expression is found in its path, such as 'params/head/last/Dense_0/bias'.
      The rules may only move parameters.

  Returns:
    A rule whose `init` raises ValueError, listing the paths, if a pattern or a
    parameter is unmatched.

  Raises:
    ValueError: a rule reads reports of gradient steps.
  """
  if any(rule.reads_report for rule in rules.values()):
    raise ValueError('a rule that reads reports cannot be a part of another')

  def parts(tree: Params) -> dict[str, dict[str, Any]]:
    """Leaves by the pattern that they follow, then by path."""
    found: dict[str, dict[str, Any]] = {pattern: {} for pattern in rules}
    for path, leaf in named_leaves(tree):
      for pattern in rules:
        if re.search(pattern, path):
          found[pattern][path] = leaf
          break
    return found

  def init(online: Params) -> Params:
    found = parts(online)
    paths = [path for path, _ in named_leaves(online)]
    given = '+'.join(rules)
    for pattern, leaves in found.items():
      if not leaves:
        raise FieldError(
          'target_paths',
          given,
          f': {pattern!r} matches no parameter that earlier patterns leave; '
          f'there are {", ".join(paths)}',
        )
    matched = {path for leaves in found.values() for path in leaves}
    left = [path for path in paths if path not in matched]
    if left:
      raise FieldError(
        'target_paths',
        given,
        f'must match every parameter, and leaves {", ".join(left)}',
      )
    return born(online)

  def update(
    online: Params, target: Params, gradient_steps: chex.Numeric
  ) -> Params:
    ours, theirs = parts(online), parts(target)
    moved: dict[str, Any] = {}
    for pattern, rule in rules.items():
      moved |= rule.update(ours[pattern], theirs[pattern], gradient_steps)
    return from_named(target, moved)

  return Twin(update, init)
