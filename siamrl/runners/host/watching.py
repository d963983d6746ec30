"""The panel of a run: its state, and when it is evaluated."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from siamrl import diagnostics
from siamrl.runners.host.batches import batch_shape
from siamrl.types import TrainState, Transition


class Seen(NamedTuple):
  """State of a run's panel.

  Attributes:
    panel: the panel's own state.
    probe: [P] transitions that it is evaluated on; zeros before they are drawn.
  """

  panel: diagnostics.PanelState
  probe: Transition


@dataclasses.dataclass(frozen=True)
class Watch:
  """The panel of a run, and when it is evaluated.

  Attributes:
    panel: measures the twin.
    period: iterations from one measurement to the next, >= 1.
    probe_size: transitions that it is evaluated on, drawn from the replay at
      the first measurement, in the first iteration, and kept.
  """

  panel: diagnostics.Panel
  period: int
  probe_size: int

  def start(
    self,
    train: TrainState,
    obs_shape: tuple[int, ...],
    obs_dtype: Any,
    action_dim: int = 0,
    sequence_steps: int = 0,
  ) -> Seen:
    """Returns the state before the first gradient step.

    Args:
      train: the learner's initial state.
      obs_shape: [S, ...] of an observation.
      obs_dtype: type of an observation.
      action_dim: D of continuous actions; 0 where actions are integers.
      sequence_steps: steps of each `future`.
    """
    batch = batch_shape(
      obs_shape, obs_dtype, action_dim, self.probe_size, sequence_steps
    )
    probe = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)
    return Seen(jax.jit(self.panel.init)(train, probe), probe)
