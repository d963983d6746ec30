"""Whole epochs of gradient steps over a round, without a replay."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax

from siamrl.learner import Learner, Report, mean_of
from siamrl.replay.rollout import Sequence, whole_epochs
from siamrl.runners.returns import Returns, make_relabel
from siamrl.types import Metrics, TrainState, Transition

# (state, sequence, bits) -> (state, reports), which donates the state.
Epochs = Callable[
  [TrainState, Sequence, chex.Array], tuple[TrainState, list[Report]]
]


class _Parts(NamedTuple):
  """The parts of the gradient steps of a round.

  Attributes:
    begin: (state, sequence, bits) -> (source, order), as `whole_epochs`, with
      whole targets if there are any.
    step: (state, source, rows) -> (state, means of the metrics).
  """

  begin: Callable[..., tuple[Transition, jax.Array]]
  step: Callable[..., tuple[TrainState, Metrics]]


def _parts(learner: Learner, returns: Returns | None) -> _Parts:
  # JAX then reuses a trace that the caller has, such as that of a memory check.
  traced = jax.jit(learner.regress if returns is None else learner.regress_to)

  def begin(
    state: TrainState, sequence: Sequence, bits: chex.Array
  ) -> tuple[Transition, jax.Array]:
    relabel = None if returns is None else make_relabel(returns, state)
    return whole_epochs(sequence, bits, relabel)

  def step(
    state: TrainState, source: Transition, rows: chex.Array
  ) -> tuple[TrainState, Metrics]:
    batch = jax.tree.map(lambda x: x[rows], source)
    state, metrics = traced(state, batch)
    return state, mean_of(metrics)

  return _Parts(begin, step)


def make_epochs(
  learner: Learner, returns: Returns | None
) -> Callable[[TrainState, Sequence, chex.Array], tuple[TrainState, Metrics]]:
  """Builds the gradient steps of a round, a pure function.

  Args:
    learner: takes the gradient steps, by its `regress_to`, or without `returns`
      by its `regress`.
    returns: computes the targets of a round, before the gradient steps; None to
      learn from its transitions.

  Returns:
    (state, sequence, bits) -> (state, means of each metric [K]); the bits
    uint32 [K, B] are as in `whole_epochs`.
  """
  begin, step = _parts(learner, returns)

  def epochs(
    state: TrainState, sequence: Sequence, bits: chex.Array
  ) -> tuple[TrainState, Metrics]:
    source, order = begin(state, sequence, bits)
    return jax.lax.scan(
      lambda state, rows: step(state, source, rows), state, order
    )

  return epochs


def jit_epochs(learner: Learner, returns: Returns | None) -> Epochs:
  """Jits the gradient steps of a round, which is transferred once.

  On an accelerator they are one program. On a CPU each is a dispatch of its
  own, for the reason that `learner.jit_regress` gives.

  Args:
    learner: as in `make_epochs`.
    returns: as in `make_epochs`.

  Returns:
    A function with one report for each dispatch.
  """
  begin, step = _parts(learner, returns)
  prepare, one = jax.jit(begin), jax.jit(step, donate_argnums=0)
  many = jax.jit(make_epochs(learner, returns), donate_argnums=0)

  def epochs(
    state: TrainState, sequence: Sequence, bits: chex.Array
  ) -> tuple[TrainState, list[Report]]:
    if jax.default_backend() != 'cpu':
      state, means = many(state, sequence, bits)
      return state, [Report(len(bits), means, {})]
    source, order = prepare(state, sequence, bits)
    reports = []
    for rows in order:
      state, means = one(state, source, rows)
      reports.append(Report(1, means, {}))
    return state, reports

  return epochs
