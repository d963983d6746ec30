"""The state of a run of the compiled loop."""

from typing import Any

from flax import struct
import jax

from siamrl.types import TrainState, Transition


class RunState(struct.PyTreeNode):
  """Everything in a run's checkpoint except its clock.

  Attributes:
    train: the learner's state.
    replay: the replay's state.
    env_state: states of the N environments.
    obs: [N, ...] the observations to act on next.
    returns: float32 [N] score of each running episode.
    lengths: int32 [N] env steps of each running episode.
    key: determines everything that the run draws after its start.
    panel: the panel's state; None without a panel.
    probe: transitions to evaluate the panel on; None without a panel.
    memory: state of the agent's noise; () if it has none.
  """

  train: TrainState
  replay: Any
  env_state: Any
  obs: jax.Array
  returns: jax.Array
  lengths: jax.Array
  key: jax.Array
  panel: Any = None
  probe: Transition | None = None
  memory: Any = ()
