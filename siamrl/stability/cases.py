"""Cases: learners of linear values, as arrays for compiled programs."""

from collections.abc import Hashable, Mapping, Sequence
import math
import sys
from typing import Any, NamedTuple

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from siamrl import twins
from siamrl.agents.q import make_q_agent
from siamrl.learner import Regress, TwinSpec, make_learner
from siamrl.parameters import FieldError
from siamrl.types import Agent, TrainState, Transition

# The most cases that run side by side; more are computed in turns.
_SIDE_BY_SIDE = 128


class Case(NamedTuple):
  """A learner, and the batch that it learns from at every gradient step.

  Attributes:
    batch: S transitions with observations [S, d], see
      `siamrl.envs.linear.LinearProblem.batch`; under a max, observations are
      the features [S, A, d] of each action, see
      `siamrl.envs.linear_control.ControlProblem.batch`.
    initial: float64 [d] initial weights of every network.
    twin: the rule and its clock. `init` must be 'equal', since weights are
      given, and `reset_optimizer` has no effect on plain gradient descent.
    step_size: step size of gradient descent on the sum of the losses.
  """

  batch: Transition
  initial: np.ndarray
  twin: TwinSpec
  step_size: float


def changing(case: Case) -> FieldError:
  """The error for a rule that does not do the same in every period."""
  return FieldError(
    'target_update',
    case.twin.rule,
    'changes with the gradient steps: its target updates have no common matrix',
  )


def periods(case: Case) -> tuple[int, ...]:
  """The periods of events that do not happen at every gradient step.

  Raises:
    ValueError: the rule also changes in time otherwise.
  """
  taken = twins.takes(case.twin.rule, case.twin.parameters.get('target_paths'))
  rule = twins.RULES[case.twin.rule]
  if 'target_schedule_steps' in taken or not rule.is_periodic:
    raise changing(case)
  if rule.period is None:
    return (case.twin.sync,)
  # The rule's own clocks; a twin that never moves has none.
  names = ('target_period', 'target_sync_period')
  return tuple(case.twin.parameters[name] for name in names if name in taken)


def linear_agent(initial: chex.Array) -> Agent:
  """Builds an agent whose values are obs . weights.

  Observations are [d], for a single action, or [A, d], for the features of A
  actions. With one action and gradient descent its update is weights + step
  size * sum_s weight(s) * td_error(s) * obs(s).

  Args:
    initial: [d] initial weights of every network, whose type they keep.
  """
  network = _Linear()
  agent = make_q_agent(
    network,
    initial[None],
    td_loss='half_squared',
    batch_reduction='sum',
  )
  # The agent's own `init` would draw them, and round them to float32.
  params = {'params': {'last': {'kernel': jnp.asarray(initial)[:, None]}}}
  return agent._replace(init=lambda key: params)


class _Linear(nn.Module):
  """A linear layer without a bias, of obs [B, d] to [B, 1], [B, A, d] to
  [B, A]."""

  @nn.compact
  def __call__(self, obs: chex.Array) -> chex.Array:
    values = nn.Dense(1, use_bias=False, name='last')(obs)
    return values if obs.ndim == 2 else values[..., 0]


class Structure(NamedTuple):
  """The part of a case that is compiled into a program; the rest is numbers."""

  rule: str
  order: str
  fixed: tuple[tuple[str, Any], ...]
  names: tuple[str, ...]


def structure_of(case: Case) -> Structure:
  given = {k: v for k, v in case.twin.parameters.items() if v is not None}
  # Names and counts that shape arrays are compiled in.
  fixed = {
    k: v for k, v in given.items() if isinstance(v, str) or k == 'target_count'
  }
  return Structure(
    case.twin.rule,
    case.twin.order,
    tuple(sorted(fixed.items())),
    tuple(sorted(given.keys() - fixed.keys())),
  )


def groups(keys: Sequence[Hashable]) -> list[list[int]]:
  """Groups the indices of equal keys, at most `_SIDE_BY_SIDE` to a group."""
  groups: dict[Hashable, list[int]] = {}
  for index, key in enumerate(keys):
    groups.setdefault(key, []).append(index)
  return [
    members[start : start + _SIDE_BY_SIDE]
    for members in groups.values()
    for start in range(0, len(members), _SIDE_BY_SIDE)
  ]


def numbers_of(case: Case) -> dict[str, Any]:
  """The arrays of a case, for `learning_of`."""
  return {
    'batch': case.batch._replace(a_tm1=np.asarray(case.batch.a_tm1, np.int32)),
    'initial': np.asarray(case.initial, np.float64),
    'sync': np.int32(case.twin.sync),
    'step_size': np.float64(case.step_size),
    'parameters': {
      name: (np.int32 if isinstance(value, int) else np.float64)(value)
      for name, value in case.twin.parameters.items()
      if name in structure_of(case).names
    },
  }


def stack(trees: Sequence[Any]) -> Any:
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def visible_basis(case: Case) -> np.ndarray:
  """An orthonormal basis [d, r] of the weights that values depend on."""
  features = np.concatenate([case.batch.obs_tm1, case.batch.obs_t])
  dimension = features.shape[-1]
  features = features.reshape(-1, dimension)
  rank = np.linalg.matrix_rank(features)
  if rank == dimension:
    return np.eye(dimension)
  return np.linalg.svd(features)[2][:rank].T


def visible_part(case: Case) -> Case:
  """The same case in the coordinates of `visible_basis`."""
  basis = visible_basis(case)
  batch = case.batch._replace(
    obs_tm1=case.batch.obs_tm1 @ basis, obs_t=case.batch.obs_t @ basis
  )
  return case._replace(batch=batch, initial=case.initial @ basis)


def learning_of(
  structure: Structure, numbers: Mapping[str, Any]
) -> tuple[Agent, Regress, TrainState]:
  """The agent, its gradient step and its first state, all in float64."""
  twin = TwinSpec(
    structure.rule,
    dict(structure.fixed) | numbers['parameters'],
    numbers['sync'],
    order=structure.order,
  )
  made = make_learner(
    linear_agent(numbers['initial']),
    optax.sgd(numbers['step_size']),
    twin.make(),
  )
  # The key is unused, since nothing is drawn.
  return made.agent, made.regress, made.init(jax.random.key(0))


def _parameters(state: TrainState) -> tuple[list[Any], list[int], Any]:
  """Leaves of networks and twins, indices of floats among them, structure."""
  leaves, structure = jax.tree.flatten(
    (state.online_params, state.target_params)
  )
  floats = [
    index
    for index, leaf in enumerate(leaves)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  return leaves, floats, structure


def vector_of(state: TrainState) -> jax.Array:
  """All parameters [n], the twins' last, without clocks that a twin keeps."""
  leaves, floats, _ = _parameters(state)
  return jnp.concatenate([jnp.ravel(leaves[index]) for index in floats])


def with_vector(state: TrainState, vector: jax.Array) -> TrainState:
  """The state with other parameters."""
  leaves, floats, structure = _parameters(state)
  start = 0
  for index in floats:
    leaf = leaves[index]
    leaves[index] = vector[start : start + leaf.size].reshape(leaf.shape)
    start += leaf.size
  online, target = jax.tree.unflatten(structure, leaves)
  return state.replace(online_params=online, target_params=target)


def bounded_exp(logarithm: float) -> float:
  """exp(logarithm), or the largest float if that overflows or is NaN."""
  largest = sys.float_info.max
  return math.exp(logarithm) if logarithm < math.log(largest) else largest
