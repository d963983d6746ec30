"""Shapes of batches and rounds, known before any transition is stored."""

from typing import Any

import jax
import jax.numpy as jnp

from siamrl.replay.rollout import Sequence
from siamrl.types import Future, Transition


def batch_shape(
  obs_shape: tuple[int, ...],
  obs_dtype: Any,
  action_dim: int,
  batch_size: int,
  sequence_steps: int,
) -> Transition:
  """Returns the shapes and types of a batch.

  Args:
    obs_shape: [S, ...] of an observation.
    obs_dtype: type of an observation.
    action_dim: D of continuous actions; 0 where actions are integers.
    batch_size: B.
    sequence_steps: steps of each `future`.
  """

  def observed(*lead: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*lead, *obs_shape), obs_dtype)

  def acted(*lead: int) -> jax.ShapeDtypeStruct:
    if action_dim:
      return jax.ShapeDtypeStruct((*lead, action_dim), jnp.float32)
    return jax.ShapeDtypeStruct(lead, jnp.int32)

  one, several = (batch_size,), (batch_size, sequence_steps)
  scalars = jax.ShapeDtypeStruct(one, jnp.float32)
  mask = jax.ShapeDtypeStruct(several, bool)
  return Transition(
    observed(*one),
    acted(*one),
    scalars,
    scalars,
    observed(*one),
    future=Future(acted(*several), observed(*several), mask)
    if sequence_steps
    else None,
  )


def round_shape(batch: Transition, steps: int, num_envs: int) -> Sequence:
  """Returns the shapes and types of a round.

  Args:
    batch: those of a batch, see `batch_shape`.
    steps: T.
    num_envs: N.
  """
  lead = (steps, num_envs)
  transitions = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((*lead, *x.shape[1:]), x.dtype), batch
  )
  return Sequence(transitions, jax.ShapeDtypeStruct(lead, bool))
