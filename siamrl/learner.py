"""The learner: a TrainState, and the function that takes its gradient steps."""

from collections.abc import Callable, Mapping, Sequence
import functools
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from siamrl import churn, schedule, twins
from siamrl.obgd import obgd
from siamrl.parameters import FieldError, check_name
from siamrl.twins.lifting import itself
from siamrl.types import (
  TRANSITION_LOSS,
  Agent,
  Metrics,
  Params,
  TrainState,
  Transition,
  Twin,
)

OPTIMIZERS = (
  'adam',
  'radam',
  'sgd',
  'rmsprop',
  'rmsprop_centered',
  'rmsprop_centered_torch',
  'obgd',
)

# The networks that may act: the online network, or its twin.
ACT_WITH = ('online', 'target')

# (state, batch) -> (state, metrics); a batch is a `Transition`, or images.
Regress = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def make_optimizer(
  name: str,
  *,
  learning_rate: chex.Numeric,
  eps: chex.Numeric,
  decay: float = 0.95,
  anneal_steps: chex.Numeric | None = None,
  max_gradient_norm: float | None = None,
  kappa: chex.Numeric = 2.0,
) -> optax.GradientTransformation:
  """Builds one of the optimizers of the DQN literature.

  It keeps a float32 copy of parameters of a shorter type.

  Args:
    name: one of `OPTIMIZERS`. 'rmsprop_centered' divides by the root of an
      estimated *variance*, as Mnih et al. (2015) do; 'rmsprop_centered_torch'
      is the same with `eps` where PyTorch adds it. 'obgd' is `obgd`, without
      `anneal_steps`.
    learning_rate: step size.
    eps: constant that keeps the divisor above 0. Adam and PyTorch's RMSProp add
      it to the root, the other kinds of RMSProp inside the root; 'sgd' ignores
      it.
    decay: decay rate of RMSProp's averages; Adam's are 0.9 and 0.999.
    anneal_steps: gradient steps over which the step size falls linearly to 0;
      None to keep it constant.
    max_gradient_norm: gradients are clipped to this global norm; None for no
      limit.
    kappa: see `obgd`.

  Raises:
    ValueError: the name is unknown.
  """
  check_name('optimizer', name, OPTIMIZERS)
  rate: Any = learning_rate
  if anneal_steps is not None:
    rate = lambda count: (
      learning_rate * jnp.maximum(1 - count / anneal_steps, 0)
    )
  if name == 'adam':
    optimizer = optax.adam(rate, eps=eps)
  elif name == 'radam':
    optimizer = optax.radam(rate, eps=eps)
  elif name == 'sgd':
    optimizer = optax.sgd(rate)
  elif name == 'obgd':
    optimizer = obgd(learning_rate, kappa)
  elif name == 'rmsprop':
    optimizer = optax.rmsprop(rate, decay=decay, eps=eps)
  else:
    optimizer = optax.chain(
      _scale_by_stddev(decay, eps, eps_in_sqrt=name == 'rmsprop_centered'),
      optax.scale_by_learning_rate(rate),
    )
  if max_gradient_norm is not None:
    clip = optax.clip_by_global_norm(max_gradient_norm)
    optimizer = optax.chain(clip, optimizer)
  return _in_float32(optimizer)


def _scale_by_stddev(
  decay: float, eps: chex.Numeric, *, eps_in_sqrt: bool
) -> optax.GradientTransformation:
  """`optax.scale_by_stddev` whose variance is never below 0.

  If gradients stay the same for some hundred steps, rounding makes optax's
  variance negative and its root NaN.
  """

  def update(grads, state, params=None):
    del params
    mu = optax.tree.update_moment(grads, state.mu, decay, 1)
    nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, decay, 2)

    def scaled(g: chex.Array, m: chex.Array, n: chex.Array) -> chex.Array:
      variance = jnp.maximum(n - jnp.square(m), 0.0)
      if eps_in_sqrt:
        return g * jax.lax.rsqrt(variance + eps)
      return g / (jnp.sqrt(variance) + eps)

    return jax.tree.map(scaled, grads, mu, nu), optax.ScaleByRStdDevState(
      mu=mu, nu=nu
    )

  return optax.GradientTransformation(optax.scale_by_stddev().init, update)


class _InFloat32(NamedTuple):
  """The state of an optimizer whose parameters are shorter than float32.

  Attributes:
    params: the float32 copy of the parameters, before rounding.
    inner: the state of the optimizer, which works on this copy.
  """

  params: Params
  inner: Any


def _unrounded(kept: Params, params: Params) -> Params:
  """The float32 copy, with the parameters where they are not its rounding."""
  return jax.tree.map(
    lambda long, now: jnp.where(long.astype(now.dtype) == now, long, now),
    kept,
    params,
  )


def restart(
  optimizer: optax.GradientTransformation, opt_state: Any, params: Params
) -> Any:
  """Restarts an optimizer; the float32 copy of the parameters is kept.

  Args:
    optimizer: from `make_optimizer`.
    opt_state: its current state.
    params: the parameters that it updates.

  Returns:
    The new state of the optimizer.
  """
  fresh = optimizer.init(params)
  if isinstance(fresh, _InFloat32):
    return fresh._replace(params=_unrounded(opt_state.params, params))
  return fresh


def _in_float32(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Lets an optimizer work on a float32 copy of parameters of a shorter type.

  In bfloat16 an average of rate 0.999 never moves, and most steps are smaller
  than the least change of a weight (Micikevicius et al. 2018, section 3.1).
  Weights changed by anything but the optimizer replace those of the copy.
  """
  clocked = optax.with_extra_args_support(optimizer)

  def wide(tree: Params) -> Params:
    return optax.tree.cast(tree, jnp.float32)

  def init(params):
    if all(leaf.dtype.itemsize >= 4 for leaf in jax.tree.leaves(params)):
      return clocked.init(params)
    return _InFloat32(wide(params), clocked.init(wide(params)))

  def update(grads, state, params=None, **extra):
    if not isinstance(state, _InFloat32):
      return clocked.update(grads, state, params, **extra)
    before = _unrounded(state.params, params)
    updates, inner = clocked.update(wide(grads), state.inner, before, **extra)
    after = optax.apply_updates(before, updates)
    # The difference between the rounded values is exact in float32.
    updates = jax.tree.map(
      lambda new, now: new.astype(now.dtype).astype(jnp.float32) - now,
      after,
      params,
    )
    return updates, _InFloat32(after, inner)

  return optax.GradientTransformationExtraArgs(init, update)


def make_optimizers(
  agent: Agent, optimizers: Mapping[str, optax.GradientTransformation]
) -> optax.GradientTransformation:
  """Combines one optimizer for each entry of an agent's parameters.

  Entries that an agent learns with a delay stay the same in between, as does
  the state of their optimizers. `update` then needs the keyword
  `gradient_steps`, the number taken before: a counter of the optimizer's own
  would restart with it.

  Args:
    agent: an agent whose parameters are a dict.
    optimizers: the optimizer of each entry, by its name.
  """

  def due(
    calls: chex.Numeric, *, gradient_steps: chex.Numeric, **others: Any
  ) -> chex.Numeric:
    del calls, others
    return (gradient_steps + 1) % agent.delay == 0

  held = {
    name: optax.conditionally_mask(optimizer, due, forward_extra_args=True)
    if name in agent.delayed and agent.delay > 1
    else optimizer
    for name, optimizer in optimizers.items()
  }
  return optax.partition(held, lambda params: {name: name for name in params})


# How a twin is initialized, and when it moves within a gradient step.
TARGET_INITS = ('equal', 'fresh')
TARGET_ORDERS = ('after', 'before')

# Folded into the key to draw a fresh twin. Numbers from 0 on are the parts of a
# split, and `agents.latent` uses the largest one.
_FRESH = 2**32 - 2


class ClockedTwin(NamedTuple):
  """A rule of the twin, and when it is applied.

  Attributes:
    twin: the rule.
    sync: gradient steps per application of the rule; may be traced.
    offset: gradient steps by which the twin's clock is ahead of the learner's,
      such as those that a warm-up would have taken. The rule is applied at
      gradient step n if n + offset is a multiple of `sync`. May be traced.
    order: 'after' applies the rule after the optimizer's step; 'before' applies
      it before gradient steps number sync, 2 sync, ..., so that the twin lags
      a gradient step behind.
    init: 'equal' starts the twin as a copy of the online network; 'fresh' draws
      it with its own key, as BYOL's code does.
    reset_optimizer: whether the optimizer restarts at every application (Asadi
      et al. 2023).
  """

  twin: Twin
  sync: chex.Numeric = 1
  offset: chex.Numeric = 0
  order: str = 'after'
  init: str = 'equal'
  reset_optimizer: bool = False

  def check(self) -> None:
    """Raises ValueError for an unknown name, or a period below 1."""
    if isinstance(self.sync, int) and self.sync < 1:
      raise FieldError('sync', self.sync, 'must be at least 1')
    check_name('target_order', self.order, TARGET_ORDERS)
    check_name('target_init', self.init, TARGET_INITS)


class TwinSpec(NamedTuple):
  """The specification of a `ClockedTwin`, by the name of its rule.

  Attributes:
    rule: a key of `twins.RULES`.
    parameters: parameters of the rule by name, with periods in gradient steps.
    sync: as in `ClockedTwin`.
    offset: as in `ClockedTwin`.
    order: as in `ClockedTwin`.
    init: as in `ClockedTwin`.
    reset_optimizer: as in `ClockedTwin`.
  """

  rule: str
  parameters: Mapping[str, Any] = MappingProxyType({})
  sync: chex.Numeric = 1
  offset: chex.Numeric = 0
  order: str = 'after'
  init: str = 'equal'
  reset_optimizer: bool = False

  def make(self) -> ClockedTwin:
    """Builds the rule and its clock.

    Raises:
      ValueError: the name is unknown, or a parameter is missing, superfluous or
        outside its domain.
    """
    twin = twins.make_rule(self.rule, **self.parameters)
    return ClockedTwin(twin, *self[2:])

  def mean_age(self) -> Any:
    """The approximate mean age of the twin's parameters, in gradient steps.

    It is (C - 1) / 2 for copies every C gradient steps and (1 - tau) / tau for
    a soft update. A soft update every C adds C (1 - tau) / tau to the age of
    copies, and the mean of K copies adds C (K - 1) / 2. Copies at random, every
    C gradient steps on average, are C - 1 old. For other rules it is the age by
    their main clock, at its initial setting.

    Returns:
      The age, a tracer if the parameters are traced; None for a rule that has
      neither a rate nor a period.
    """
    takes = twins.takes(self.rule, self.parameters.get('target_paths'))
    if 'tau' in takes:
      tau = self.parameters['tau']
      return (self.sync - 1) / 2 + self.sync * ((1 - tau) / tau)
    if 'target_period' in takes:
      period = self.parameters['target_period']
      if self.rule == 'hard_random':
        return period - 1
    elif twins.RULES[self.rule].period is None:
      period = self.sync
    else:
      return None
    copies = self.parameters['target_count'] if self.rule == 'averaged' else 1
    return (period - 1) / 2 + period * (copies - 1) / 2


class Learner(NamedTuple):
  """Learning with a twin, as pure functions.

  None of them is jitted: callers scan, vmap or jit them. Metrics are those that
  the agent's loss reports, [] or one for each transition [B].

  Attributes:
    base: the agent as given, not lifted by the rule.
    agent: the agent lifted by the rule, which acts and is evaluated.
    clocked: the rule, and when it is applied.
    init: key -> a new TrainState, whose twins have their own buffers.
    descend: (state, batch) -> (state, metrics); takes one gradient step and
      leaves the twin alone.
    sync: (state, report) -> state; applies the rule once, due or not. The
      report is that of the last gradient step, for `Twin.reads_report`.
    regress: (state, batch) -> (state, metrics); takes one gradient step, and
      applies the rule if it is due.
    regress_to: like `regress`, toward whole targets, the batch's `r_t`.
    acting_params: state -> the parameters that act and are evaluated.
  """

  base: Agent
  agent: Agent
  clocked: ClockedTwin
  init: Callable[[chex.PRNGKey], TrainState]
  descend: Regress
  sync: Callable[[TrainState, Metrics], TrainState]
  regress: Regress
  regress_to: Regress
  acting_params: Callable[[TrainState], Params]


def make_learner(
  agent: Agent,
  optimizer: optax.GradientTransformation,
  clocked: ClockedTwin,
  act_with: str = 'online',
  churn_weight: float = 0.0,
) -> Learner:
  """Builds a learner; only this function lifts an agent by a rule.

  Args:
    agent: an agent not lifted by any rule.
    optimizer: computes the updates; see `make_optimizer`.
    clocked: the rule of the twin, and when it is applied.
    act_with: 'online', or 'target' for the twin's parameters, see
      `Twin.params`, as in BBF (Schwarzer et al. 2023). Of `averaged` these are
      the means of the copies' parameters; of `chain` and `iterated_heads` the
      twins of all networks, one of which acts.
    churn_weight: weight of the churn term, see `siamrl.churn`. If it is not 0,
      gradient steps take batches of twice the size, whose second half is the
      reference.

  Returns:
    A learner. Its `init` raises ValueError if the rule does not fit the
    parameters; `jax.eval_shape` of it tells before anything is computed.

  Raises:
    ValueError: a name is unknown, the rule does not support the agent, it reads
      reports but moves before there are any, or it has no twin to act with.
  """
  clocked.check()
  twin, base = clocked.twin, agent
  if twin.reads_report and clocked.order != 'after':
    raise FieldError(
      'target_order',
      clocked.order,
      "must be 'after' for a rule that reads a gradient step's report",
    )
  if twin.birth is not None and clocked.init != 'equal':
    raise FieldError(
      'target_init',
      clocked.init,
      "must be 'equal' for a rule that says how the twin is born",
    )
  if churn_weight and twin.shift is not None:
    raise FieldError(
      'churn_weight', churn_weight, 'must be 0 for a rule that shifts networks'
    )
  agent = twin.lift(base)
  init = _make_init(agent, optimizer, clocked)
  descend = _make_descend(agent, optimizer, twin, churn_weight)
  move = make_move(clocked, agent)
  move_now = make_move(ClockedTwin(twin), agent)

  def moved(
    state: TrainState,
    move: Move,
    gradient_steps: chex.Numeric,
    report: Metrics | None,
  ) -> TrainState:
    online_params, target_params = move(
      state.online_params, state.target_params, gradient_steps, report
    )
    return state.replace(
      online_params=online_params, target_params=target_params
    )

  def restarted(state: TrainState) -> TrainState:
    return state.replace(
      opt_state=restart(optimizer, state.opt_state, state.online_params)
    )

  def report_of(metrics: Metrics) -> Metrics | None:
    return mean_of(metrics) if twin.reads_report else None

  def sync(state: TrainState, report: Metrics) -> TrainState:
    state = moved(state, move_now, state.gradient_steps, report_of(report))
    return restarted(state) if clocked.reset_optimizer else state

  def sync_if_due(
    state: TrainState, gradient_steps: chex.Numeric, report: Metrics | None
  ) -> TrainState:
    state = moved(state, move, gradient_steps, report)
    if not clocked.reset_optimizer:
      return state
    opt_state = jax.lax.cond(
      (gradient_steps + clocked.offset) % clocked.sync == 0,
      lambda: restarted(state).opt_state,
      lambda: state.opt_state,
    )
    return state.replace(opt_state=opt_state)

  def regress(
    state: TrainState, batch: Transition, **variant: Any
  ) -> tuple[TrainState, Metrics]:
    if clocked.order == 'before':
      state = sync_if_due(state, state.gradient_steps + 1, None)
    state, metrics = descend(state, batch, **variant)
    if clocked.order == 'after':
      state = sync_if_due(state, state.gradient_steps, report_of(metrics))
    return state, metrics

  return Learner(
    base=base,
    agent=agent,
    clocked=clocked,
    init=churn.remembering(init) if churn_weight else init,
    descend=descend,
    sync=sync,
    regress=regress,
    regress_to=functools.partial(regress, bootstrap=None),
    acting_params=_make_acting_params(agent, twin, act_with),
  )


def _make_acting_params(
  agent: Agent, twin: Twin, act_with: str
) -> Callable[[TrainState], Params]:
  """Builds the function state -> parameters to act with; see `make_learner`."""
  check_name('act_with', act_with, ACT_WITH)
  if act_with == 'online':
    return lambda state: state.online_params
  if twin.params is itself:
    raise FieldError(
      'act_with', act_with, 'needs a rule whose twin is a network of its own'
    )

  def acting_params(state: TrainState) -> Params:
    online = state.online_params
    shown = twin.params(twins.part(agent, online), state.target_params)
    return twins.whole(agent, online, shown)

  return acting_params


def _make_init(
  agent: Agent, optimizer: optax.GradientTransformation, clocked: ClockedTwin
) -> Callable[[chex.PRNGKey], TrainState]:
  """Builds the function key -> new state; the agent is lifted."""
  twin = clocked.twin

  def init(key: chex.PRNGKey) -> TrainState:
    init_key, state_key = jax.random.split(key)
    online_params = first = agent.init(init_key)
    if clocked.init == 'fresh' or twin.birth is not None:
      first = agent.init(jax.random.fold_in(init_key, _FRESH))
    target_params = twins.part(agent, first)
    if twin.birth is None:
      target_params = twin.init(target_params)
    else:
      online = twins.part(agent, online_params)
      target_params = twin.birth(online, target_params)
    return TrainState(
      online_params=online_params,
      target_params=target_params,
      opt_state=optimizer.init(online_params),
      gradient_steps=jnp.zeros((), jnp.int32),
      key=state_key,
      traces=agent.traces and agent.traces.init(online_params),
    )

  return init


def _make_descend(
  agent: Agent,
  optimizer: optax.GradientTransformation,
  twin: Twin,
  churn_weight: float,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """Builds a gradient step that leaves the twin alone.

  Keywords besides (state, batch) are those of the agent's loss.

  Args:
    agent: the lifted agent.
    optimizer: computes the updates.
    twin: the rule, which may pull the online parameters.
    churn_weight: as in `make_learner`.
  """
  updating = optax.with_extra_args_support(optimizer)

  def descend(
    state: TrainState, batch: Transition, **variant: Any
  ) -> tuple[TrainState, Metrics]:
    online_params = state.online_params
    # A folded key costs nothing if unused, unlike one split and carried.
    loss_key = jax.random.fold_in(state.key, state.gradient_steps)
    if agent.delayed:
      variant |= {'step': state.gradient_steps}
    loss, before = agent.loss, state.previous_params
    if churn_weight:
      batch, reference = churn.halves(batch)
      loss = churn.loss(agent, churn_weight, before, reference)
      before = online_params
    given, memory = (online_params, state.target_params), state.traces
    if agent.traces is None:
      grads, metrics = jax.grad(loss, has_aux=True)(
        *given, batch, loss_key, **variant
      )
    else:
      grads, memory, metrics = agent.traces.step(
        agent, *given, memory, batch, loss_key, **variant
      )
    updates, opt_state = updating.update(
      grads,
      state.opt_state,
      online_params,
      gradient_steps=state.gradient_steps,
      metrics=metrics,
    )
    if twin.pull is not None:
      pulled = twin.pull(twins.part(agent, online_params), state.target_params)
      online_params = twins.whole(agent, online_params, pulled)
    return state.replace(
      online_params=optax.apply_updates(online_params, updates),
      opt_state=opt_state,
      gradient_steps=state.gradient_steps + 1,
      previous_params=before,
      traces=memory,
    ), metrics

  return descend


# (online, target, gradient_steps, report) -> (online, target). Only rules with
# `Twin.reads_report` read the report; it may be None for others.
Move = Callable[[Params, Any, chex.Numeric, Metrics | None], tuple[Params, Any]]


def make_move(clocked: ClockedTwin, agent: Agent | None = None) -> Move:
  """Builds the function that applies a rule when it is due.

  Args:
    clocked: the rule and its clock; its `order` and `init` are ignored.
    agent: says which parameters have a twin; None for all.

  Returns:
    A `Move`.
  """
  twin, sync = clocked.twin, clocked.sync

  def update(online, target, clock, report):
    twinned = online if agent is None else twins.part(agent, online)
    if twin.reads_report:
      return twin.update(twinned, target, clock, report)
    return twin.update(twinned, target, clock)

  def apply(online, target, clock, report):
    shifted = online
    if twin.shift is not None:
      shifted = twin.shift(online, target, clock)
    return shifted, update(online, target, clock, report)

  def move(online, target, gradient_steps, report=None):
    clock = gradient_steps + clocked.offset
    given = (online, target, clock, report)
    if isinstance(sync, int) and sync == 1:
      return apply(*given)
    if twin.shift is None:  # the online parameters stay out of the conditional
      return online, jax.lax.cond(
        clock % sync == 0, update, lambda _, target, *others: target, *given
      )
    return jax.lax.cond(
      clock % sync == 0,
      apply,
      lambda online, target, *others: (online, target),
      *given,
    )

  return move


def target_updates(learner: Learner, state: TrainState) -> Any:
  """The number of times that a learner's rule was applied up to a state."""
  return schedule.syncs(
    state.gradient_steps, learner.clocked.sync, learner.clocked.offset
  )


def mean_of(metrics: Metrics) -> Metrics:
  """Averages the metrics of a gradient step over its transitions, to [].

  `transition_loss` is left out: it is for replays, and its weighted mean is
  `loss`.
  """
  averaged = {k: v for k, v in metrics.items() if k != TRANSITION_LOSS}
  return jax.tree.map(jnp.mean, averaged)


def named(metrics: Metrics, names: Sequence[str]) -> Metrics:
  """Picks metrics that a gradient step reported.

  Args:
    metrics: as the loss reports them.
    names: names of the metrics to pick.

  Raises:
    ValueError: the loss does not report one of them.
  """
  for name in names:
    if name not in metrics:
      raise ValueError(
        f'{name} is read, but the loss does not report it; it reports '
        f'{", ".join(sorted(metrics))}'
      )
  return {name: metrics[name] for name in names}


class Report(NamedTuple):
  """The report of the gradient steps of one dispatch.

  Attributes:
    steps: K, the number of gradient steps.
    means: means of metrics over the batch as in `mean_of`, [], or [K] if K > 1.
    read: the metrics that were asked for by name, as the loss reports them;
      with a leading [K] if K > 1.
  """

  steps: int
  means: Metrics
  read: Metrics


def regress_programs(
  regress: Regress, reads: Sequence[str] = ()
) -> tuple[Any, Any]:
  """Jits one gradient step, and several in a loop.

  Args:
    regress: takes one gradient step.
    reads: names of the metrics to report in full, besides the means of all.

  Returns:
    (one, many), both (state, batch) -> (state, (means, read)), which donate the
    state; the batches of `many` and what it reports lead with [K].
  """

  # JAX then reuses a trace that the caller has, such as that of a memory check.
  traced = jax.jit(regress)

  def reduced(
    state: TrainState, batch: Transition
  ) -> tuple[TrainState, tuple[Metrics, Metrics]]:
    state, metrics = traced(state, batch)
    return state, (mean_of(metrics), named(metrics, reads))

  def scanned(
    state: TrainState, batches: Transition
  ) -> tuple[TrainState, tuple[Metrics, Metrics]]:
    return jax.lax.scan(reduced, state, batches)

  one = jax.jit(reduced, donate_argnums=0)
  return one, jax.jit(scanned, donate_argnums=0)


def jit_regress(
  regress: Regress, reads: Sequence[str] = ()
) -> Callable[
  [TrainState, Sequence[Transition]], tuple[TrainState, list[Report]]
]:
  """Jits gradient steps on a sequence of batches.

  On an accelerator they are one dispatch. On a CPU, where dispatches are cheap
  and convolutions inside a loop several times slower, each is its own dispatch.

  Args:
    regress: takes one gradient step.
    reads: names of the metrics to report in full, besides the means of all.

  Returns:
    (state, batches) -> (state, reports), which donates the state and has one
    report for each dispatch.
  """
  one, many = regress_programs(regress, reads)

  def steps(
    state: TrainState, batches: Sequence[Transition]
  ) -> tuple[TrainState, list[Report]]:
    if len(batches) > 1 and jax.default_backend() != 'cpu':
      stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
      state, reported = many(state, stacked)
      return state, [Report(len(batches), *reported)]
    reports = []
    for batch in batches:
      state, reported = one(state, batch)
      reports.append(Report(1, *reported))
    return state, reports

  return steps
