"""Prediction problems with linear values, each as one exact batch.

The task is to learn the values of a fixed policy, as phi(s) . theta, from
expected updates: all states at once, each with its weight, and the mean of the
successors' features instead of a sampled successor. For values linear in the
features this is the exact expectation, so nothing is random, and a learner is a
map that can be written down (`siamrl.stability`).
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from siamrl.envs import tabular
from siamrl.parameters import FieldError, check_name
from siamrl.types import Transition


def check_chances(transitions: np.ndarray, weights: np.ndarray) -> None:
  """Raises ValueError for chances [..., S] or weights that cannot be."""
  if (transitions < 0).any() or (transitions.sum(-1) > 1 + 1e-9).any():
    raise ValueError('transitions must be >= 0 and sum to 1 at most')
  if (weights < 0).any():
    raise ValueError('weights must be >= 0')


@dataclasses.dataclass(frozen=True, eq=False)
class LinearProblem:
  """A Markov reward process with S states and values linear in d weights.

  Attributes:
    features: float64 [S, d] with rows phi(s).
    transitions: float64 [S, S] probability of each next state; a row may sum to
      less than 1, and the rest is its probability to terminate.
    rewards: float64 [S] mean reward on leaving each state.
    weights: float64 [S] >= 0 weight of each state's update: its share of the
      data.
    initial: float64 [d] initial weights theta.

  Raises:
    ValueError: shapes do not fit, or probabilities are invalid.
  """

  features: np.ndarray
  transitions: np.ndarray
  rewards: np.ndarray
  weights: np.ndarray
  initial: np.ndarray

  def __post_init__(self) -> None:
    if np.ndim(self.features) != 2:
      raise ValueError(
        f'features must be [S, d], got {np.shape(self.features)}'
      )
    states, dimension = np.shape(self.features)
    tabular.check_shapes(
      self,
      transitions=(states, states),
      rewards=(states,),
      weights=(states,),
      initial=(dimension,),
    )
    check_chances(self.transitions, self.weights)

  def batch(self, discount: float) -> Transition:
    """Returns all states as one batch of S transitions with a single action.

    The weighted sum of the batch's halved squared TD errors has the gradient
    -sum_s weights(s) delta(s) phi(s) in the online weights: gradient descent is
    the expected update of semi-gradient TD(0) (Sutton & Barto 2018, section 9.4
    and equation 11.11).

    Args:
      discount: discount per env step, in [0, 1].
    """
    states = len(self.features)
    return Transition(
      obs_tm1=np.asarray(self.features, np.float64),
      a_tm1=np.zeros(states, np.int32),
      r_t=np.asarray(self.rewards, np.float64),
      # Termination is already missing from the mean successor.
      discount_t=np.full(states, discount, np.float64),
      obs_t=np.asarray(self.transitions @ self.features, np.float64),
      weight=np.asarray(self.weights, np.float64),
    )

  def true_values(self, discount: float) -> np.ndarray:
    """Returns the exact value of each state, float64 [S], without features.

    Raises:
      ValueError: the values are not finite.
    """
    onward = np.eye(len(self.rewards)) - discount * self.transitions
    if np.linalg.cond(onward) > 1e12:
      raise FieldError('discount', discount, 'leaves values without a bound')
    return np.linalg.solve(onward, self.rewards)


def baird() -> LinearProblem:
  """Baird's counterexample with seven states (1995; Sutton & Barto, 11.2).

  The data are spread evenly over the states, the policy always goes to the
  seventh, and all rewards are 0: so are all values, and the eight weights can
  represent that. Semi-gradient TD diverges all the same. Weights and features
  are as in figure 11.1 of Sutton & Barto (2018): values 2 w_i + w_8 of the
  upper six, w_7 + 2 w_8 of the lower one; initially
  w = (1, 1, 1, 1, 1, 1, 10, 1).
  """
  features = np.zeros((7, 8))
  features[range(6), range(6)] = 2.0
  features[:6, 7] = 1.0
  features[6, 6:] = 1.0, 2.0
  transitions = np.zeros((7, 7))
  transitions[:, 6] = 1.0
  initial = np.ones(8)
  initial[6] = 10.0
  return LinearProblem(
    features, transitions, np.zeros(7), np.full(7, 1 / 7), initial
  )


def tsitsiklis(termination: float = 0.0) -> LinearProblem:
  """The problem w -> 2w with both states (Tsitsiklis & Van Roy 1996).

  This is example 11.1 of Sutton & Barto (2018). The first state has the value
  w, the second 2 w; both lead to the second, which terminates with a small
  probability e. All rewards are 0. An exact fit to a copy of w multiplies w by
  discount * (6 - 4 e) / 5: it diverges for any discount above 5 / (6 - 4 e).

  Args:
    termination: e, in [0, 1].
  """
  return _double(termination, np.full(2, 0.5))


def tsitsiklis_first(termination: float = 0.0) -> LinearProblem:
  """The problem w -> 2w, learned from the first state alone.

  It opens section 11.2 of Sutton & Barto (2018). An exact fit to a copy of w
  multiplies w by 2 * discount.

  Args:
    termination: e, as in `tsitsiklis`; it does not affect the updates.
  """
  return _double(termination, np.array([1.0, 0.0]))


def _double(termination: float, weights: np.ndarray) -> LinearProblem:
  if not 0 <= termination <= 1:
    raise FieldError('termination', termination, 'must be in [0, 1]')
  return LinearProblem(
    features=np.array([[1.0], [2.0]]),
    transitions=np.array([[0.0, 1.0], [0.0, 1.0 - termination]]),
    rewards=np.zeros(2),
    weights=weights,
    initial=np.ones(1),
  )


def td_not_fqi() -> LinearProblem:
  """A problem that TD solves with small steps, and exact fits do not.

  All data are of a state of value w, whose successor has the value -2 w. An
  exact fit to a copy multiplies w by -2 * discount. A step of size a of TD
  multiplies it by 1 - a (1 + 2 * discount). That the convergence of TD does not
  imply that of fitted Q-iteration is a theorem of Wu et al. (2025, arXiv
  2501.01774); this example is derived here.
  """
  return _ending(np.array([[-2.0]]), np.array([1.0]))


def fqi_not_td() -> LinearProblem:
  """A problem that exact fits solve, and TD does not, however small its steps.

  Two states have the values w_1 and w_2, and 4/5 and 1/5 of the data. The
  values of their successors are 2 w_1 + 3/2 w_2 and -3/2 w_1 - w_2. An exact
  fit has the spectral radius discount / 2. TD's matrix has a negative trace
  from a discount of 10/14 on, and then an eigenvalue whose real part is
  negative. The converse of `td_not_fqi`, derived here.
  """
  return _ending(np.array([[2.0, 1.5], [-1.5, -1.0]]), np.array([0.8, 0.2]))


def _ending(successors: np.ndarray, shares: np.ndarray) -> LinearProblem:
  """One-hot states, each of which leads to one of its own, and that ends.

  Args:
    successors: [d, d] features of the successors, without data.
    shares: [d] shares of the data.
  """
  size = len(successors)
  none = np.zeros((size, size))
  return LinearProblem(
    features=np.concatenate([np.eye(size), successors]),
    transitions=np.block([[none, np.eye(size)], [none, none]]),
    rewards=np.zeros(2 * size),
    weights=np.concatenate([shares, np.zeros(size)]),
    initial=np.ones(size),
  )


def from_tabular(
  mdp: tabular.TabularMDP,
  policy: np.ndarray,
  *,
  features: np.ndarray | None = None,
  weights: np.ndarray | None = None,
) -> LinearProblem:
  """Builds the evaluation of a policy in a tabular process, with theta = 0.

  Args:
    mdp: the process. Its terminal states are dropped.
    policy: [S, A] probability of each action.
    features: [N, d] of the N states that are not terminal; None for one-hot.
    weights: [N] shares of the data; None for those of the policy's own
      episodes.

  Raises:
    ValueError: shapes do not fit.
  """
  inner = ~mdp.terminal
  transitions = np.einsum('sa,sat->st', policy, mdp.transitions)
  transitions = transitions[np.ix_(inner, inner)]
  if weights is None:
    weights = _shares(transitions, mdp.initial[inner])
  if features is None:
    features = np.eye(len(transitions))
  return LinearProblem(
    features=features,
    transitions=transitions,
    rewards=np.einsum('sa,sa->s', policy, mdp.rewards)[inner],
    weights=weights,
    initial=np.zeros(features.shape[1]),
  )


def _shares(transitions: np.ndarray, initial: np.ndarray) -> np.ndarray:
  """Returns each state's share of visits in episodes one after another."""
  # Expected visits per episode: first states, and successors of visits.
  visits = np.linalg.solve(np.eye(len(initial)) - transitions.T, initial)
  return visits / visits.sum()


def chain(num_states: int = 10) -> LinearProblem:
  """Builds the random walk along `tabular.chain`, with one weight per state.

  Args:
    num_states: states of the chain, including the terminal one, >= 2.
  """
  if num_states < 2:
    raise FieldError('num_states', num_states, 'must be at least 2')
  return _random_walk(tabular.chain(num_states))


def four_rooms() -> LinearProblem:
  """Builds the random walk in `tabular.four_rooms`, one weight per state."""
  return _random_walk(tabular.four_rooms())


def _random_walk(mdp: tabular.TabularMDP) -> LinearProblem:
  shape = mdp.rewards.shape
  return from_tabular(mdp, np.full(shape, 1 / shape[1]))


def random_mdp(
  seed: int = 0, num_states: int = 20, num_features: int = 5
) -> LinearProblem:
  """Builds a random process with on-policy data, from its own episodes.

  The process is `tabular.random_mdp` with one action, features are normal of
  variance 1 / d. TD converges with a small step size (Tsitsiklis & Van Roy
  1997).

  Args:
    seed: an integer >= 0.
    num_states: states, including the terminal one, >= 2.
    num_features: d >= 1.
  """
  _check_sizes(num_states, num_features)
  rng = np.random.default_rng((seed, 1))
  features = rng.standard_normal((num_states - 1, num_features))
  return from_tabular(
    tabular.random_mdp(seed, num_states, 1),
    np.ones((num_states, 1)),
    features=features / np.sqrt(num_features),
  )


def random_off_policy(
  seed: int = 0, num_states: int = 20, num_features: int = 8
) -> LinearProblem:
  """Builds a random process with off-policy data.

  Each state leads to two others. Features are absolute values of normal
  numbers, scaled to norm 1, so that states generalize to each other. Rewards
  are normal, and shares of the data Dirichlet(1/2, ..., 1/2): a few states have
  most of the data. At a discount of 0.99, TD diverges for a quarter of the
  seeds, however small its steps.

  Args:
    seed: an integer >= 0.
    num_states: states, none of them terminal, >= 2.
    num_features: d >= 1.
  """
  _check_sizes(num_states, num_features)
  rng = np.random.default_rng((seed, 2))
  transitions = np.zeros((num_states, num_states))
  for state in range(num_states):
    successors = rng.choice(num_states, 2, replace=False)
    transitions[state, successors] = rng.dirichlet(np.ones(2))
  features = np.abs(rng.standard_normal((num_states, num_features)))
  return LinearProblem(
    features=features / np.linalg.norm(features, axis=1, keepdims=True),
    transitions=transitions,
    rewards=rng.standard_normal(num_states),
    weights=rng.dirichlet(np.full(num_states, 0.5)),
    initial=np.zeros(num_features),
  )


def _check_sizes(num_states: int, num_features: int) -> None:
  for name, value, least in (
    ('num_states', num_states, 2),
    ('num_features', num_features, 1),
  ):
    if value < least:
      raise FieldError(name, value, f'must be at least {least}')


class Problem(NamedTuple):
  """A problem that launchers offer.

  Attributes:
    make: builds the problem; every parameter has a default.
    takes: names of the parameters.
    summary: short description, for a help text.
  """

  make: Callable[..., LinearProblem]
  takes: tuple[str, ...]
  summary: str


_RANDOM = ('seed', 'num_states', 'num_features')

PROBLEMS: dict[str, Problem] = {
  'baird': Problem(baird, (), "Baird's seven states"),
  'tsitsiklis': Problem(
    tsitsiklis, ('termination',), 'w -> 2w of Tsitsiklis and Van Roy'
  ),
  'tsitsiklis_first': Problem(
    tsitsiklis_first,
    ('termination',),
    'the same, learning from the first state alone',
  ),
  'td_not_fqi': Problem(td_not_fqi, (), 'TD converges, exact fits diverge'),
  'fqi_not_td': Problem(fqi_not_td, (), 'exact fits converge, TD diverges'),
  'random_mdp': Problem(random_mdp, _RANDOM, 'random process, on-policy data'),
  'random_off_policy': Problem(
    random_off_policy, _RANDOM, "random process, another policy's data"
  ),
  'chain': Problem(chain, ('num_states',), 'random walk in a corridor'),
  'four_rooms': Problem(four_rooms, (), 'random walk through four rooms'),
}


def make_problem(name: str, **parameters: Any) -> LinearProblem:
  """Builds the problem that `PROBLEMS` holds under `name`.

  Args:
    name: name of the problem, one of `PROBLEMS`.
    **parameters: parameters of the problem; None for the default.

  Raises:
    ValueError: the name is unknown, or a parameter is out of range or not one
      of the problem's.
  """
  check_name('problem', name, PROBLEMS)
  given = {key: x for key, x in parameters.items() if x is not None}
  takes = PROBLEMS[name].takes
  for key, value in given.items():
    if key not in takes:
      raise FieldError(
        key,
        value,
        'has no meaning for',
        ('problem', name),
        f', which takes {", ".join(takes) or "no parameter"}',
      )
  return PROBLEMS[name].make(**given)
