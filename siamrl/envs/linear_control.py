"""Control problems with linear action values, each as one exact batch.

The task is to learn the optimal action values, as phi(s, a) . theta, from
expected updates: all states and actions at once, each with its weight, and
every successor with its probability. Since the largest value of a successor is
not linear in its features, each successor is a transition of its own, unlike in
`siamrl.envs.linear`.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from siamrl.envs import linear, tabular
from siamrl.parameters import FieldError, check_name
from siamrl.types import Transition


@dataclasses.dataclass(frozen=True, eq=False)
class ControlProblem:
  """A process of S states and A actions, with values linear in d weights.

  Attributes:
    features: float64 [S, A, d], phi(s, a).
    transitions: float64 [S, A, S] probability of each next state; it may sum to
      less than 1, and the rest is the probability to terminate.
    rewards: float64 [S, A] mean rewards.
    weights: float64 [S, A] >= 0 weight of each update: its share of the data.

  Raises:
    ValueError: shapes do not fit, or probabilities are invalid.
  """

  features: np.ndarray
  transitions: np.ndarray
  rewards: np.ndarray
  weights: np.ndarray

  def __post_init__(self) -> None:
    if np.ndim(self.features) != 3:
      raise ValueError(
        f'features must be [S, A, d], got {np.shape(self.features)}'
      )
    states, actions, _ = np.shape(self.features)
    tabular.check_shapes(
      self,
      transitions=(states, actions, states),
      rewards=(states, actions),
      weights=(states, actions),
    )
    linear.check_chances(self.transitions, self.weights)

  def batch(self, discount: float) -> Transition:
    """Returns all transitions as one batch, with features as observations.

    The weighted sum of the batch's halved squared TD errors has the gradient
    -sum weights(s, a) P(t | s, a) delta phi(s, a): gradient descent is the
    expected update of semi-gradient Q-learning.

    Args:
      discount: discount per env step, in [0, 1].
    """
    rows = []
    for state, action in np.argwhere(self.weights > 0):
      onward = self.transitions[state, action]
      rows += [
        (state, action, after, onward[after], discount)
        for after in np.flatnonzero(onward)
      ]
      ending = 1 - onward.sum()
      if ending > 1e-12:
        rows.append((state, action, state, ending, 0.0))
    s, a, t = (np.array([row[i] for row in rows], int) for i in range(3))
    chance, discounts = (np.array([row[i] for row in rows]) for i in (3, 4))
    return Transition(
      obs_tm1=np.asarray(self.features[s], np.float64),
      a_tm1=a.astype(np.int32),
      r_t=np.asarray(self.rewards[s, a], np.float64),
      discount_t=discounts.astype(np.float64),
      obs_t=np.asarray(self.features[t], np.float64),
      weight=np.asarray(self.weights[s, a] * chance, np.float64),
    )


def random_control(
  seed: int = 0, num_states: int = 4, num_features: int = 3
) -> ControlProblem:
  """Builds a random process of two actions, whose data are uneven.

  Each action leads to two states. Features are absolute values of normal
  numbers, scaled to norm 1, so that states and actions generalize to each
  other. Rewards are normal, and shares of the data Dirichlet(1/2, ..., 1/2): a
  few pairs of state and action have most of the data.

  Args:
    seed: an integer >= 0.
    num_states: states, none of them terminal, from 2 to 8.
    num_features: d >= 1.
  """
  _check_states(num_states)
  if num_features < 1:
    raise FieldError('num_features', num_features, 'must be at least 1')
  rng = np.random.default_rng((seed, 3))
  actions = 2
  transitions = np.zeros((num_states, actions, num_states))
  for pair in np.ndindex(num_states, actions):
    successors = rng.choice(num_states, 2, replace=False)
    transitions[*pair, successors] = rng.dirichlet(np.ones(2))
  features = np.abs(rng.standard_normal((num_states, actions, num_features)))
  shares = rng.dirichlet(np.full(num_states * actions, 0.5))
  return ControlProblem(
    features=features / np.linalg.norm(features, axis=-1, keepdims=True),
    transitions=transitions,
    rewards=rng.standard_normal((num_states, actions)),
    weights=shares.reshape(num_states, actions),
  )


def star_control(num_states: int = 6) -> ControlProblem:
  """Builds Baird's star (1995) with a choice, in small.

  Action 0 leads to the last state, action 1 to one of the others by chance; all
  rewards are 0, and data are even. Action 0 has the features of the star, as in
  figure 11.1 of Sutton & Barto (2018): 2 w_i + w_0 in state i, and w_i + 2 w_0
  in the last. Action 1 has a weight of its own in each state. There are more
  weights than pairs of state and action, so that an exact fit is value
  iteration. This variant is the project's own.

  Args:
    num_states: states, from 2 to 8.
  """
  _check_states(num_states)
  last = num_states - 1
  features = np.zeros((num_states, 2, 2 * num_states + 1))
  for state in range(num_states):
    features[state, 0, 0] = 2.0 if state == last else 1.0
    features[state, 0, 1 + state] = 1.0 if state == last else 2.0
    features[state, 1, 1 + num_states + state] = 1.0
  transitions = np.zeros((num_states, 2, num_states))
  transitions[:, 0, last] = 1.0
  transitions[:, 1, :last] = 1 / last
  shape = num_states, 2
  return ControlProblem(
    features,
    transitions,
    np.zeros(shape),
    np.full(shape, 1 / (2 * num_states)),
  )


def _check_states(num_states: int) -> None:
  if not 2 <= num_states <= 8:
    raise FieldError(
      'num_states',
      num_states,
      'must be from 2 to 8: each adds a factor of 2 to the greedy policies',
    )


def from_tabular(mdp: tabular.TabularMDP) -> ControlProblem:
  """Builds the control of a process with a table, and data that are even.

  Args:
    mdp: the process. Its terminal states are dropped.
  """
  inner = ~mdp.terminal
  rewards = mdp.rewards[inner]
  size = rewards.size
  return ControlProblem(
    features=np.eye(size).reshape(*rewards.shape, size),
    transitions=mdp.transitions[np.ix_(inner, np.ones(rewards.shape[1], bool))][
      ..., inner
    ],
    rewards=rewards,
    weights=np.full(rewards.shape, 1 / size),
  )


class Process(NamedTuple):
  """A process that is learned with a table.

  Attributes:
    make: seed -> the process.
    summary: short description, for a help text.
  """

  make: Callable[[int], tabular.TabularMDP]
  summary: str


TABULAR: dict[str, Process] = {
  'tabular_chain': Process(
    lambda seed: tabular.chain(8, slip=0.2),
    'corridor of eight states with slips, learned with a table from samples',
  ),
  'tabular_random': Process(
    lambda seed: tabular.random_mdp(seed, 8, 2),
    'random process of eight states, learned likewise',
  ),
}


class Problem(NamedTuple):
  """A control problem that launchers offer.

  Attributes:
    make: builds the problem; every parameter has a default.
    takes: names of the parameters.
    summary: short description, for a help text.
  """

  make: Callable[..., ControlProblem]
  takes: tuple[str, ...]
  summary: str


PROBLEMS: dict[str, Problem] = {
  'random_control': Problem(
    random_control,
    ('seed', 'num_states', 'num_features'),
    'random process of two actions, learned under the max',
  ),
  'star_control': Problem(
    star_control, ('num_states',), "Baird's star with a choice, likewise"
  ),
}


def make_problem(name: str, **parameters: Any) -> ControlProblem:
  """Builds the problem that `PROBLEMS` holds under `name`.

  Args:
    name: name of the problem, one of `PROBLEMS`.
    **parameters: parameters of the problem; None for the default.

  Raises:
    ValueError: the name is unknown, or a parameter is out of range.
  """
  check_name('problem', name, PROBLEMS)
  given = {key: x for key, x in parameters.items() if x is not None}
  for key, value in given.items():
    if key not in PROBLEMS[name].takes:
      raise FieldError(key, value, 'has no meaning for', ('problem', name))
  return PROBLEMS[name].make(**given)
