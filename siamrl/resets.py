"""Resets: networks that begin anew while their replay stays.

Networks that take many gradient steps for each env step lose the ability to
learn from new data. Resets give it back (Nikishin et al. 2022, "The Primacy
Bias in Deep Reinforcement Learning"). Shrink-and-perturb leaves a part of the
encoder's weights in place, as SR-SPR (D'Oro et al. 2023) and BBF (Schwarzer et
al. 2023, arXiv 2305.19452) do.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from siamrl import twins
from siamrl.learner import Learner, restart
from siamrl.parameters import FieldError, check_name
from siamrl.twins.trees import map_named, named_leaves
from siamrl.types import Metrics, Params, TrainState

# The fates of the twin at a reset, see `Resets`.
TWINS = ('reset', 'copy', 'keep')

# Entries of the parameters that are shrunk; all others are drawn anew.
_SHRUNK = {'torso', 'encoder', 'transition'}
# Folded into the learner's key, whose gradient steps it counts.
_RESET = 2**32 - 3


class Resets(NamedTuple):
  """When networks are reset, and how.

  Attributes:
    period: gradient steps from one reset to the next, >= 1; may be traced.
    shrink: share of the torso's weights that stays, in [0, 1]; the rest comes
      from weights drawn anew. BBF has 0.5, SR-SPR 0.8; 1 leaves the torso
      alone. All other weights are drawn anew. May be traced.
    until: gradient steps after which there are no resets; 0 for no end. May be
      traced.
    twin: 'reset' treats the twin like the online network, with weights drawn
      for it alone, as BBF does; 'copy' starts it anew, as a copy of the network
      that was reset; 'keep' leaves it alone, so that it teaches what the
      network has lost.
  """

  period: chex.Numeric
  shrink: chex.Numeric = 1.0
  until: chex.Numeric = 0
  twin: str = 'reset'

  def check(self) -> None:
    """Raises ValueError for an unknown name, or a number out of its domain."""
    check_name('reset_twin', self.twin, TWINS)
    if isinstance(self.period, int) and self.period < 1:
      raise FieldError('reset_period', self.period, 'must be 1 or more')
    if isinstance(self.shrink, (int, float)) and not 0 <= self.shrink <= 1:
      raise FieldError('reset_shrink', self.shrink, 'must be in [0, 1]')


def shrunk(params: Any, fresh: Any, shrink: chex.Numeric) -> Any:
  """Mixes parameters with fresh ones, or a twin with a fresh one.

  Args:
    params: the parameters, or a twin of any rule.
    fresh: others in the same structure.
    shrink: as in `Resets`.

  Returns:
    shrink * params + (1 - shrink) * fresh in torsos, encoders and transition
    models, and `fresh` elsewhere. Counters of a rule, which are integers, stay.
  """
  new = dict(named_leaves(fresh))

  def mixed(path: str, leaf: chex.Array) -> chex.Array:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return leaf
    if _SHRUNK.isdisjoint(path.split('/')):
      return new[path].astype(leaf.dtype)
    return (shrink * leaf + (1 - shrink) * new[path]).astype(leaf.dtype)

  return map_named(mixed, params)


def with_resets(
  learner: Learner, optimizer: optax.GradientTransformation, resets: Resets
) -> Learner:
  """Makes a learner reset its networks after gradient steps that are due.

  A reset is the last part of a gradient step, after the twin has moved. The
  optimizer restarts. The clocks of the twin and the count of gradient steps go
  on.

  Args:
    learner: the learner.
    optimizer: its optimizer.
    resets: when networks are reset, and how.

  Returns:
    A learner with another `regress` and `regress_to`.

  Raises:
    ValueError: a name is unknown, or a number is outside its domain.
  """
  resets.check()
  agent, twin = learner.agent, learner.clocked.twin

  def born(params: Params) -> Any:
    return twin.init(twins.part(agent, params))

  def reset(state: TrainState) -> TrainState:
    key = jax.random.fold_in(
      jax.random.fold_in(state.key, state.gradient_steps), _RESET
    )
    online_key, twin_key = jax.random.split(key)
    online = shrunk(state.online_params, agent.init(online_key), resets.shrink)
    target = state.target_params
    if resets.twin == 'reset':
      target = shrunk(target, born(agent.init(twin_key)), resets.shrink)
    elif resets.twin == 'copy':
      target = _with_counters(born(online), target)
    before = state.previous_params
    return state.replace(
      online_params=online,
      target_params=target,
      opt_state=restart(optimizer, state.opt_state, online),
      # A reset is no churn.
      previous_params=None if before is None else online,
    )

  def reset_if_due(state: TrainState) -> TrainState:
    steps = state.gradient_steps
    over = (resets.until > 0) & (steps > resets.until)
    due = (steps % resets.period == 0) & ~jnp.asarray(over)
    return jax.lax.cond(due, reset, lambda state: state, state)

  def after(regress: Any) -> Any:
    def regress_and_reset(
      state: TrainState, batch: Any, **variant: Any
    ) -> tuple[TrainState, Metrics]:
      state, metrics = regress(state, batch, **variant)
      return reset_if_due(state), metrics

    return regress_and_reset

  return learner._replace(
    regress=after(learner.regress), regress_to=after(learner.regress_to)
  )


def _with_counters(fresh: Any, target: Any) -> Any:
  """A new twin that keeps the counters of the old one, its integers."""
  return jax.tree.map(
    lambda new, old: new if jnp.issubdtype(new.dtype, jnp.floating) else old,
    fresh,
    target,
  )
