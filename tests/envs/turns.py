"""The order of calls that all environments hold to."""

import numpy as np
import pytest

from siamrl.types import Environments


def assert_calls_out_of_turn_raise(environments: Environments) -> None:
  """Calls everything out of turn, then closes.

  Args:
    environments: one fresh environment.
  """
  action = (
    np.zeros((1, environments.action_dim), np.float32)
    if environments.action_dim
    else np.zeros(1, np.int32)
  )
  with pytest.raises(RuntimeError, match='send'):
    environments.send(action)
  environments.reset()
  with pytest.raises(RuntimeError, match='recv'):
    environments.recv()
  environments.send(action)
  with pytest.raises(RuntimeError, match='send'):
    environments.send(action)
  with pytest.raises(RuntimeError, match='reset'):
    environments.reset()
  environments.recv()
  environments.close()
