"""The learner: a TrainState, and the function that takes its gradient steps."""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from siamrl import twins
from siamrl.types import Agent, Metrics, TargetUpdate, TrainState, Transition

OPTIMIZERS = ('adam', 'rmsprop', 'rmsprop_centred', 'rmsprop_centred_torch')

Regress = Callable[[TrainState, Transition], tuple[TrainState, Metrics]]


def make_optimizer(
  name: str,
  *,
  learning_rate: chex.Numeric,
  eps: chex.Numeric,
  decay: float = 0.95,
) -> optax.GradientTransformation:
  """Builds one of the optimisers of the DQN literature.

  Args:
    name: one of `OPTIMIZERS`. 'rmsprop_centred' divides by the root of an
      estimated *variance*, as Mnih et al. (2015) do; 'rmsprop_centred_torch' is
      the same with `eps` where PyTorch adds it.
    learning_rate: step size.
    eps: what keeps the divisor from 0: added to the root by Adam and PyTorch's
      RMSProp, inside the root by the others.
    decay: of RMSProp's averages; Adam's are 0.9 and 0.999.

  Raises:
    ValueError: the name is unknown.
  """
  if name == 'adam':
    return optax.adam(learning_rate, eps=eps)
  if name in OPTIMIZERS:
    return optax.rmsprop(
      learning_rate,
      decay=decay,
      eps=eps,
      eps_in_sqrt=name != 'rmsprop_centred_torch',
      centered=name != 'rmsprop',
    )
  raise ValueError(
    f'optimizer={name!r} is unknown; choose from {", ".join(OPTIMIZERS)}'
  )


def init_state(
  agent: Agent, optimizer: optax.GradientTransformation, key: chex.PRNGKey
) -> TrainState:
  """A fresh TrainState: twins born equal, in buffers of their own.

  Args:
    agent: gives the parameters.
    optimizer: gives the optimiser's state.
    key: split once, into the parameters' key and the state's.
  """
  init_key, state_key = jax.random.split(key)
  online_params = agent.init(init_key)
  return TrainState(
    online_params=online_params,
    target_params=twins.copy(online_params),
    opt_state=optimizer.init(online_params),
    gradient_steps=jnp.zeros((), jnp.int32),
    key=state_key,
  )


def make_regress(
  agent: Agent,
  optimizer: optax.GradientTransformation,
  target_update: TargetUpdate,
  sync: chex.Numeric = 1,
  *,
  reduce: Callable[[chex.Array], chex.Array] = jnp.mean,
) -> Regress:
  """Builds one gradient step followed, when it is due, by a target update.

  The function is pure and not jitted, for callers to scan, vmap or jit.

  Args:
    agent: gives the loss.
    optimizer: gives the update.
    target_update: moves the twin.
    sync: gradient steps per target update; may be traced.
    reduce: what becomes of a metric that the loss reports for each transition;
      a prioritised replay wants them as they are.

  Returns:
    (state, batch) -> (state, metrics), those of the loss, reduced.
  """
  follow = twins.periodic(sync, target_update)

  def regress(
    state: TrainState, batch: Transition
  ) -> tuple[TrainState, Metrics]:
    # Folded, not split and carried: without a use it costs nothing.
    loss_key = jax.random.fold_in(state.key, state.gradient_steps)
    grads, metrics = jax.grad(agent.loss, has_aux=True)(
      state.online_params, state.target_params, batch, loss_key
    )
    updates, opt_state = optimizer.update(
      grads, state.opt_state, state.online_params
    )
    online_params = optax.apply_updates(state.online_params, updates)
    gradient_steps = state.gradient_steps + 1
    target_params = follow(online_params, state.target_params, gradient_steps)
    return TrainState(
      online_params, target_params, opt_state, gradient_steps, state.key
    ), jax.tree.map(reduce, metrics)

  return regress


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
