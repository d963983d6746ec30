"""The optimizer ObGD, which bounds how far one step may overshoot."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from siamrl.parameters import FieldError


def obgd(
  learning_rate: chex.Numeric, kappa: chex.Numeric = 2.0
) -> optax.GradientTransformationExtraArgs:
  """Overshooting-bounded gradient descent (Elsayed et al. 2024, algorithm 3).

  arXiv:2410.14606; `ObGD` of optim.py in mohmdelsayed/streaming-drl. The step
  size for a descent of -delta z, with the traces z of an agent's `Traces`, is

    learning_rate / max(1, learning_rate * kappa * max(|delta|, 1) * ||z||_1).

  `update` needs the keyword `metrics`, with the signed `td_error` [1] that the
  agent reports; it is delta.

  Args:
    learning_rate: the largest step size.
    kappa: factor of the bound; the larger, the smaller the steps.
  """

  def update(
    descent: Any, state: Any, params: Any = None, *, metrics: Any, **others: Any
  ) -> tuple[Any, Any]:
    del params, others
    if 'td_error' not in metrics:
      raise FieldError(
        'optimizer', 'obgd', 'needs an agent that reports its td_error'
      )
    delta = jnp.abs(jnp.sum(metrics['td_error']))
    # The norm of the descent is |delta| ||z||_1; where that is 0, so is it.
    divisor = jnp.maximum(jnp.minimum(delta, 1.0), jnp.finfo(delta.dtype).tiny)
    norm = sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(descent))
    bound = learning_rate * kappa * norm / divisor
    step = learning_rate / jnp.maximum(bound, 1.0)
    return jax.tree.map(lambda leaf: -step * leaf, descent), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )
