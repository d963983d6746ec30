"""The learner: a TrainState, and the function that takes its gradient steps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from siamrl import twins
from siamrl.parameters import check_name
from siamrl.types import Agent, Metrics, Params, TrainState, Transition, Twin

OPTIMIZERS = (
  'adam',
  'radam',
  'sgd',
  'rmsprop',
  'rmsprop_centred',
  'rmsprop_centred_torch',
)

Regress = Callable[[TrainState, Transition], tuple[TrainState, Metrics]]


def make_optimizer(
  name: str,
  *,
  learning_rate: chex.Numeric,
  eps: chex.Numeric,
  decay: float = 0.95,
  anneal_steps: chex.Numeric | None = None,
  max_gradient_norm: float | None = None,
) -> optax.GradientTransformation:
  """Builds one of the optimisers of the DQN literature.

  Of parameters that are shorter than float32 it keeps a float32 copy.

  Args:
    name: one of `OPTIMIZERS`. 'rmsprop_centred' divides by the root of an
      estimated *variance*, as Mnih et al. (2015) do; 'rmsprop_centred_torch' is
      the same with `eps` where PyTorch adds it.
    learning_rate: step size.
    eps: what keeps the divisor from 0: added to the root by Adam and PyTorch's
      RMSProp, inside the root by the others of that name. Not for 'sgd'.
    decay: of RMSProp's averages; Adam's are 0.9 and 0.999.
    anneal_steps: gradient steps in which the step size falls to 0 in a straight
      line; None if it does not.
    max_gradient_norm: gradients are shortened to this Euclidean norm of all
      parameters together; None for no limit.

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
  elif name == 'rmsprop':
    optimizer = optax.rmsprop(rate, decay=decay, eps=eps)
  else:
    optimizer = optax.chain(
      _scale_by_stddev(decay, eps, eps_in_sqrt=name == 'rmsprop_centred'),
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

  Of gradients that stay the same for some hundred steps it is, by rounding, and
  its root no number.
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
  """The state of an optimiser of parameters of a shorter type.

  Attributes:
    params: float32, what the parameters are roundings of.
    inner: the state of the optimiser, of these.
  """

  params: Params
  inner: Any


def _unrounded(kept: Params, params: Params) -> Params:
  """What the parameters are roundings of, where that is still true."""
  return jax.tree.map(
    lambda long, now: jnp.where(long.astype(now.dtype) == now, long, now),
    kept,
    params,
  )


def restart(
  optimizer: optax.GradientTransformation, opt_state: Any, params: Params
) -> Any:
  """The state of an optimiser that starts anew.

  Of parameters of a shorter type it keeps the float32 copy.

  Args:
    optimizer: of `make_optimizer`.
    opt_state: where it stands.
    params: of which.
  """
  fresh = optimizer.init(params)
  if isinstance(fresh, _InFloat32):
    return fresh._replace(params=_unrounded(opt_state.params, params))
  return fresh


def _in_float32(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Lets an optimiser work on a float32 copy of parameters of a shorter type.

  In bfloat16 an average of rate 0.999 never moves, and most steps are less than
  what a weight can change by (Micikevicius et al. 2018, section 3.1). Weights
  that something else has changed are taken as they are.
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
    # The difference of the roundings, exact in float32.
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
  """One optimiser for each entry of an agent's parameters, as one of all.

  The entries that an agent learns with a delay keep still in between, and so
  does the state of their optimisers. `update` then wants the keyword
  `gradient_steps`, those taken before: a count of its own would begin again
  where the optimiser does.

  Args:
    agent: its parameters are a dict.
    optimizers: for each of its entries.
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


# What the twin is born as, and when it moves within a gradient step.
TARGET_INITS = ('equal', 'fresh')
TARGET_ORDERS = ('after', 'before')

# Of the key of a twin's own drawing: numbers from 0 are the parts of a split,
# and the last one is taken by `agents.latent`.
_FRESH = 2**32 - 2


def init_state(
  agent: Agent,
  twin: Twin,
  optimizer: optax.GradientTransformation,
  key: chex.PRNGKey,
  *,
  target_init: str = 'equal',
) -> TrainState:
  """A fresh TrainState, its twins in buffers of their own.

  Args:
    agent: gives the parameters; lifted by the twin already.
    twin: makes the target parameters.
    optimizer: gives the optimiser's state.
    key: split once, into the parameters' key and the state's.
    target_init: 'equal', or 'fresh': drawn by a key of its own, as in BYOL's
      code.

  Raises:
    ValueError: the name is unknown, or the twin does not fit the parameters.
  """
  check_name('target_init', target_init, TARGET_INITS)
  init_key, state_key = jax.random.split(key)
  online_params = agent.init(init_key)
  first = online_params
  if target_init == 'fresh':
    first = agent.init(jax.random.fold_in(init_key, _FRESH))
  return TrainState(
    online_params=online_params,
    target_params=twin.init(twins.part(agent, first)),
    opt_state=optimizer.init(online_params),
    gradient_steps=jnp.zeros((), jnp.int32),
    key=state_key,
  )


def make_regress(
  agent: Agent,
  optimizer: optax.GradientTransformation,
  twin: Twin,
  sync: chex.Numeric = 1,
  *,
  reduce: Callable[[chex.Array], chex.Array] = jnp.mean,
  target_order: str = 'after',
  sync_offset: chex.Numeric = 0,
  reset_optimizer: bool = False,
) -> Regress:
  """Builds one gradient step followed, when it is due, by a target update.

  The function is pure and not jitted, for callers to scan, vmap or jit.

  Args:
    agent: gives the loss; lifted by the twin already.
    optimizer: gives the update.
    twin: the rule of the target parameters.
    sync: gradient steps per target update; may be traced.
    reduce: what becomes of a metric that the loss reports for each transition;
      a prioritised replay wants them as they are.
    target_order: 'after' the optimiser's step, or 'before' it: the twin is then
      updated before a gradient step numbered sync, 2 sync, ... and learnt from
      at once, and lags a gradient step behind.
    sync_offset: gradient steps by which the twin's clock is ahead of the
      learner's; the updates then follow gradient steps n with n + sync_offset
      a multiple of `sync`.
    reset_optimizer: whether the optimiser starts anew at every target update
      (Asadi et al. 2023).

  Returns:
    (state, batch) -> (state, metrics), those of the loss, reduced.

  Raises:
    ValueError: the order's name is unknown.
  """
  check_name('target_order', target_order, TARGET_ORDERS)
  move = make_move(twin, sync, sync_offset, agent)
  clocked = optax.with_extra_args_support(optimizer)

  def regress(
    state: TrainState, batch: Transition
  ) -> tuple[TrainState, Metrics]:
    gradient_steps = state.gradient_steps + 1
    if target_order == 'before':
      state = follow(state, gradient_steps)
    online_params = state.online_params
    # Folded, not split and carried: without a use it costs nothing.
    loss_key = jax.random.fold_in(state.key, state.gradient_steps)
    step = {'step': state.gradient_steps} if agent.delayed else {}
    grads, metrics = jax.grad(agent.loss, has_aux=True)(
      online_params, state.target_params, batch, loss_key, **step
    )
    updates, opt_state = clocked.update(
      grads,
      state.opt_state,
      online_params,
      gradient_steps=state.gradient_steps,
    )
    if twin.pull is not None:
      pulled = twin.pull(twins.part(agent, online_params), state.target_params)
      online_params = twins.whole(agent, online_params, pulled)
    state = state.replace(
      online_params=optax.apply_updates(online_params, updates),
      opt_state=opt_state,
      gradient_steps=gradient_steps,
    )
    if target_order == 'after':
      state = follow(state, gradient_steps)
    return state, jax.tree.map(reduce, metrics)

  def follow(state: TrainState, gradient_steps: chex.Numeric) -> TrainState:
    online_params, target_params = move(
      state.online_params, state.target_params, gradient_steps
    )
    opt_state = state.opt_state
    if reset_optimizer:
      opt_state = jax.lax.cond(
        (gradient_steps + sync_offset) % sync == 0,
        lambda: restart(optimizer, opt_state, online_params),
        lambda: opt_state,
      )
    return state.replace(
      online_params=online_params,
      target_params=target_params,
      opt_state=opt_state,
    )

  return regress


def make_move(
  twin: Twin,
  sync: chex.Numeric,
  sync_offset: chex.Numeric = 0,
  agent: Agent | None = None,
) -> Callable[[Params, Any, chex.Numeric], tuple[Params, Any]]:
  """Builds what follows a gradient step: a rule applied when it is due.

  Args:
    twin: the rule.
    sync: gradient steps per application; may be traced.
    sync_offset: gradient steps by which its clock is ahead.
    agent: says which parameters have a twin; all of them without it.

  Returns:
    (online, target, gradient_steps) -> (online, target).
  """

  def update(online, target, clock):
    twinned = online if agent is None else twins.part(agent, online)
    return twin.update(twinned, target, clock)

  def apply(online, target, clock):
    shifted = online if twin.shift is None else twin.shift(online, clock)
    return shifted, update(online, target, clock)

  def move(online, target, gradient_steps):
    clock = gradient_steps + sync_offset
    if isinstance(sync, int) and sync == 1:
      return apply(online, target, clock)
    if twin.shift is None:  # the online parameters stay out of the conditional
      return online, jax.lax.cond(
        clock % sync == 0,
        update,
        lambda online, target, clock: target,
        online,
        target,
        clock,
      )
    return jax.lax.cond(
      clock % sync == 0,
      apply,
      lambda online, target, clock: (online, target),
      online,
      target,
      clock,
    )

  return move


def make_regress_many(regress: Regress) -> Regress:
  """Several gradient steps as one function.

  Args:
    regress: takes one gradient step.

  Returns:
    (state, batches) -> (state, metrics) where every leaf of `batches` leads
    with [K, B], and of `metrics` with [K]: one entry a gradient step.
  """

  def many(
    state: TrainState, batches: Transition
  ) -> tuple[TrainState, Metrics]:
    return jax.lax.scan(regress, state, batches)

  return many


def jit_regress(
  regress: Regress,
) -> Callable[
  [TrainState, Sequence[Transition]], tuple[TrainState, list[Metrics]]
]:
  """Jits gradient steps on a sequence of batches.

  On an accelerator they are one dispatch. On a CPU, where a dispatch is cheap
  and a convolution inside a loop several times slower, each is its own.

  Args:
    regress: takes one gradient step.

  Returns:
    (state, batches) -> (state, metrics): the state is donated; `metrics` is a
    list whose entries hold scalars, or [K] for the K gradient steps of a
    dispatch.
  """
  one = jax.jit(regress, donate_argnums=0)
  many = jax.jit(make_regress_many(regress), donate_argnums=0)

  def steps(
    state: TrainState, batches: Sequence[Transition]
  ) -> tuple[TrainState, list[Metrics]]:
    if len(batches) > 1 and jax.default_backend() != 'cpu':
      stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
      state, metrics = many(state, stacked)
      return state, [metrics]
    reported = []
    for batch in batches:
      state, metrics = one(state, batch)
      reported.append(metrics)
    return state, reported

  return steps
