"""Shadows: other rules to compare with the one in use."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from siamrl import twins
from siamrl.diagnostics.targets import target_drift
from siamrl.diagnostics.values import KnownValues, gradient_toward
from siamrl.learner import ClockedTwin
from siamrl.types import Agent, Metrics, Params, TrainState, Transition


def gradient_cosine(one: Params, other: Params) -> chex.Array:
  """<g, h> / (||g|| ||h||) over all parameters; 0 if either is 0."""
  product = optax.tree.norm(one) * optax.tree.norm(other)
  return jnp.where(
    product == 0,
    0.0,
    optax.tree.vdot(one, other) / jnp.where(product == 0, 1.0, product),
  )


def strided_soft(tau: chex.Numeric, steps: chex.Numeric) -> ClockedTwin:
  """`soft(tau)` in strides, for a cheaper shadow.

  It moves by 1 - (1 - tau)**steps every `steps` gradient steps, which equals
  `soft(tau)` if the online parameters stay constant in between.

  Args:
    tau: weight on the online parameters per gradient step.
    steps: gradient steps of a stride.
  """
  return ClockedTwin(twins.soft(1 - (1 - tau) ** steps), steps)


# Rules that a run can be compared with. The soft one moves in strides, since
# each move costs a pass over all parameters.
SHADOWS = ('hard', 'soft', 'self', 'residual', 'frozen')

STRIDE = 16


def split_shadow(text: str) -> tuple[str, Any]:
  """Splits 'hard:16' or 'soft:0.1' into a rule's name and its number.

  Returns:
    (name, number), None for a rule without a number: the period of a hard one
    in gradient steps, or the rate of a soft one per gradient step.

  Raises:
    ValueError: the text does not name a shadow.
  """
  name, colon, number = text.partition(':')
  if name not in SHADOWS:
    raise ValueError(f'{text!r} must begin with one of {", ".join(SHADOWS)}')
  if not colon:
    return name, None
  if name == 'hard' and re.fullmatch('[1-9][0-9]{0,8}', number):
    return name, int(number)
  if name == 'soft' and re.fullmatch(r'[0-9.]+(e-?[0-9]+)?', number):
    with contextlib.suppress(ValueError):  # such as 1.2.3
      if 0 < float(number) <= 1:
        return name, float(number)
  raise ValueError(
    f'{text!r} must have a period from 1 on after hard, a rate in (0, 1] after '
    'soft, and nothing after other names'
  )


def matched_shadows(
  names: Sequence[str], age: chex.Numeric
) -> dict[str, ClockedTwin]:
  """Builds rules whose mean age is that of the rule in use.

  These are a hard twin of period 2 age + 1 and a soft one of rate 1 / (age +
  1). The soft one moves in strides of `STRIDE` gradient steps, so its age is at
  least half a stride. Names with numbers, such as hard:16 or soft:0.1, are
  rules of this period or rate, which need not match.

  Args:
    names: names in `SHADOWS`, perhaps with numbers; see `split_shadow`.
    age: age in gradient steps, such as `TwinSpec.mean_age`; may be traced.

  Raises:
    ValueError: a name is unknown, or its number is not allowed.
  """

  def make(name: str, number: Any) -> ClockedTwin:
    if name == 'hard':
      if number is None:
        # Clipped to an int32; no run reaches longer periods.
        number = jnp.clip(jnp.round(2 * age + 1), 1, 2**30).astype(jnp.int32)
      return ClockedTwin(twins.hard(), number)
    if name == 'soft':
      if number is None:
        return strided_soft(1 / (age + 1), STRIDE)
      return ClockedTwin(twins.soft(number))
    if name == 'frozen':
      return ClockedTwin(twins.frozen(), twins.NEVER)
    return ClockedTwin(
      twins.self_copy() if name == 'self' else twins.residual()
    )

  return {name: make(*split_shadow(name)) for name in names}


def shortest_period(names: Sequence[str], age: chex.Numeric) -> Any:
  """Gradient steps in which the fastest of `matched_shadows` moves once."""
  return min(
    min(STRIDE, 2 * age + 1)
    if number is None
    else number
    if name == 'hard'
    else 1
    for name, number in map(split_shadow, names)
  )


def shape_of_params(base_agent: Agent, lift: Callable[[Agent], Agent]) -> Any:
  """The shapes and types of a lifted agent's parameters; nothing is drawn."""
  agent = lift(base_agent)
  return jax.eval_shape(lambda seed: agent.init(jax.random.key(seed)), 0)


def shadows_init(
  shadows: Mapping[str, ClockedTwin], base_agent: Agent, online_params: Params
) -> dict[str, Any]:
  """The initial target parameters of the shadows of a run.

  Args:
    shadows: the rules, by any names.
    base_agent: an agent not lifted by any rule.
    online_params: online parameters of the run.

  Returns:
    Target parameters by name, each in its own buffers; `self_copy` has none.

  Raises:
    ValueError: a rule reads reports, or changes or moves the base agent's
      online parameters, as `chain` and `iterated_heads` do; or the rule of the
      run changes them.
  """

  def shapes(params: Params) -> Any:
    return jax.tree.map(jnp.shape, params)

  plain = shapes(shape_of_params(base_agent, lambda agent: agent))
  for name, rule in shadows.items():
    if rule.twin.reads_report:
      raise ValueError(f'{name!r} cannot be a shadow: it reads reports')
    own = shapes(shape_of_params(base_agent, rule.twin.lift))
    if rule.twin.shift is not None or own != plain:
      raise ValueError(
        f'{name!r} cannot be a shadow: its online parameters are not those of '
        'the base agent'
      )
    if shapes(online_params) != plain:
      raise ValueError(
        f'{name!r} cannot be a shadow: the rule in use has other online '
        'parameters than the base agent'
      )
  twinned = twins.part(base_agent, online_params)
  return {name: rule.twin.init(twinned) for name, rule in shadows.items()}


def is_still(rule: ClockedTwin) -> bool:
  """Whether a rule is known never to move."""
  return isinstance(rule.sync, int) and rule.sync >= twins.NEVER


def shadows_follow(
  shadows: Mapping[str, ClockedTwin],
  state: Mapping[str, Any],
  online_params: Params,
  before: chex.Numeric,
  after: chex.Numeric,
) -> dict[str, Any]:
  """Moves the shadows that are due.

  Args:
    shadows: the rules.
    state: their target parameters, from `shadows_init`.
    online_params: the latest online parameters of the part with a twin.
    before: gradient steps at the last call.
    after: gradient steps now. A rule is applied once if its clock has passed a
      multiple of its period since `before`: call this after every gradient
      step, or at least once in the shortest period.
  """

  def moved(rule: ClockedTwin, target: Any) -> Any:
    if is_still(rule) or not jax.tree.leaves(target):
      return target
    due = (after + rule.offset) // rule.sync > (
      before + rule.offset
    ) // rule.sync
    return jax.lax.cond(
      due,
      rule.twin.update,
      lambda online, target, clock: target,
      online_params,
      target,
      after + rule.offset,
    )

  return {name: moved(rule, state[name]) for name, rule in shadows.items()}


def counterfactuals(
  agent: Agent,
  base_agent: Agent,
  shadows: Mapping[str, ClockedTwin],
  state: Mapping[str, Any],
  train: TrainState,
  batch: Transition,
  known: KnownValues | None = None,
) -> Metrics:
  """The targets and gradients that other rules would have given now.

  Args:
    agent: the run's agent, lifted by the rule in use.
    base_agent: the agent before it is lifted.
    shadows: the other rules.
    state: their target parameters.
    train: the run's state.
    batch: batch of training data.
    known: returns the values that should be learned, if they are known; see
      `gradient_toward`.

  Returns:
    For each rule: `shadow_target/NAME`, the mean target; `shadow_gap/NAME`, the
    mean |target - target in use|; `cosine/NAME` and `norm_ratio/NAME` of its
    gradient to the one in use (the ratio is NaN or inf if that is 0). Arrays
    whose gradients are equal bit for bit are left out, so that parts without
    any influence of the twin, such as an actor's own loss, do not make rules
    look alike. If all are equal, all count. With known values also `agreement`
    and `agreement/NAME`, the cosine between the gradient toward them and that
    of the rule in use, or of each other rule; there all arrays count.
  """
  online_params = train.online_params
  key = jax.random.fold_in(train.key, train.gradient_steps)

  def answer(agent: Agent, target_params: Any) -> tuple[chex.Array, Params]:
    grads, _ = jax.grad(agent.loss, has_aux=True)(
      online_params, target_params, batch, key
    )
    y = agent.targets(online_params, target_params, batch, key)
    return y, grads

  y, grads = answer(agent, train.target_params)
  metrics: Metrics = {}
  toward = None
  if known is not None:
    toward = gradient_toward(base_agent, known, online_params, batch, key)
    metrics['agreement'] = gradient_cosine(grads, toward)
  for name, rule in shadows.items():
    y_other, other = answer(rule.twin.lift(base_agent), state[name])
    if toward is not None:
      metrics[f'agreement/{name}'] = gradient_cosine(other, toward)
    here, there = _where_they_differ(grads, other)
    metrics |= {
      f'shadow_target/{name}': jnp.mean(y_other),
      f'shadow_gap/{name}': target_drift(y, y_other),
      f'cosine/{name}': gradient_cosine(here, there),
      f'norm_ratio/{name}': optax.tree.norm(there) / optax.tree.norm(here),
    }
  return metrics


def _where_they_differ(one: Params, other: Params) -> tuple[Params, Params]:
  """Both trees, with zeros for equal arrays unless all are equal."""
  same = jax.tree.map(lambda a, b: jnp.all(a == b), one, other)
  some = ~jnp.all(jnp.stack(jax.tree.leaves(same)))

  def without(tree: Params) -> Params:
    return jax.tree.map(
      lambda leaf, drop: jnp.where(some & drop, 0, leaf), tree, same
    )

  return without(one), without(other)
