"""The state of a run of the compiled loop."""

from typing import Any

from flax import struct
import jax

from siamrl.types import TrainState, Transition


class RunState(struct.PyTreeNode):
  """All of a run but its clock: with the clock it is the checkpoint.

  Attributes:
    train: the learner's state.
    replay: the replay's.
    env_state: of N environments.
    obs: [N, ...] the observations to act on next.
    returns: float32 [N] score of each running episode.
    lengths: int32 [N] its env steps.
    key: everything that the run draws after its start follows from it.
    panel: what the panel remembers; None without one.
    probe: the transitions that it looks at; None without one.
    memory: of the agent's noise; () where it has none.
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
