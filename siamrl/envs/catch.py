"""Catch as a Markov decision process, whose values are known exactly."""

import numpy as np

from siamrl.envs.tabular import TabularMDP

_ROWS, _COLUMNS = 10, 5
# Ball's row, ball's column, paddle's column.
_STATES = np.stack(
  np.unravel_index(np.arange(_ROWS * _COLUMNS**2), (_ROWS, _COLUMNS, _COLUMNS)),
  -1,
)


def catch() -> TabularMDP:
  """Builds the process of bsuite's Catch (Osband et al. 2020), as in gymnax.

  A ball falls from a random column of a board of 10 x 5 cells, a row each step.
  Actions move the paddle in the lowest row left, not at all or right. It pays 1
  to be under the ball in the end, and -1 not to be. So an action after which
  the ball is h rows above the paddle has the value discount**h if the paddle
  can still be there in time, and the negative of it otherwise.
  """
  count = len(_STATES)
  transitions = np.zeros((count, 3, count))
  rewards = np.zeros((count, 3))
  terminal = _STATES[:, 0] == _ROWS - 1
  for state, (row, ball, paddle) in enumerate(_STATES):
    for action in range(3):
      moved = int(np.clip(paddle + action - 1, 0, _COLUMNS - 1))
      after = min(row + 1, _ROWS - 1), ball, moved
      transitions[
        state, action, np.ravel_multi_index(after, (_ROWS, _COLUMNS, _COLUMNS))
      ] = 1.0
      if row == _ROWS - 2:
        rewards[state, action] = 1.0 if moved == ball else -1.0
  first = (_STATES[:, 0] == 0) & (_STATES[:, 2] == _COLUMNS // 2)
  return TabularMDP(transitions, rewards, terminal, first / first.sum())


def catch_observations() -> np.ndarray:
  """The board float32 [10, 5] of each state of `catch`."""
  boards = np.zeros((len(_STATES), _ROWS, _COLUMNS), np.float32)
  states = np.arange(len(_STATES))
  row, ball, paddle = _STATES.T
  boards[states, row, ball] = 1.0
  boards[states, _ROWS - 1, paddle] = 1.0
  return boards
