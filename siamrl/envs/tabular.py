"""Small Markov decision processes whose values are known exactly.

They are for tests and diagnostics: `optimal_values` computes what a learner
should find.
"""

from collections.abc import Collection
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from siamrl.types import JaxEnvironment, JaxTimestep


def check_shapes(process: Any, **shapes: tuple[int, ...]) -> None:
  """Raises ValueError unless the arrays of a process have their shapes."""
  for name, shape in shapes.items():
    found = np.shape(getattr(process, name))
    if found != shape:
      raise ValueError(f'{name} must be {list(shape)}, got {list(found)}')


@dataclasses.dataclass(frozen=True, eq=False)
class TabularMDP:
  """A Markov decision process of S states and A actions.

  Attributes:
    transitions: float64 [S, A, S] probability of each next state.
    rewards: float64 [S, A] mean reward of an action in a state.
    terminal: bool [S] whether the episode terminates on entering this state.
      Its rows have no effect, but must be valid.
    initial: float64 [S] probability of each first state; 0 for terminal ones.

  Raises:
    ValueError: shapes do not fit, or probabilities are invalid.
  """

  transitions: np.ndarray
  rewards: np.ndarray
  terminal: np.ndarray
  initial: np.ndarray

  def __post_init__(self) -> None:
    if np.ndim(self.rewards) != 2:
      raise ValueError(f'rewards must be [S, A], got {np.shape(self.rewards)}')
    num_states, num_actions = np.shape(self.rewards)
    check_shapes(
      self,
      transitions=(num_states, num_actions, num_states),
      terminal=(num_states,),
      initial=(num_states,),
    )
    for name in ('transitions', 'initial'):
      chances = getattr(self, name)
      if (chances < 0).any() or not np.allclose(chances.sum(-1), 1):
        raise ValueError(f'{name} must be >= 0 and sum to 1')
    if self.initial[self.terminal].any():
      raise ValueError('no episode may begin in a terminal state')


class TabularState(NamedTuple):
  """The state of one environment.

  Attributes:
    state: int32 [] of the process.
    time: int32 [] env steps since the reset.
  """

  state: jax.Array
  time: jax.Array


def make_tabular(
  mdp: TabularMDP, max_episode_steps: int | None = None
) -> JaxEnvironment:
  """Builds an environment of a process, with one-hot observations.

  Args:
    mdp: the process.
    max_episode_steps: env steps after which an episode is truncated; None for
      never. Values do not depend on it, as they continue after a truncation.

  Returns:
    the environment, with observations float32 [S].

  Raises:
    ValueError: max_episode_steps is too small.
  """
  if max_episode_steps is not None and max_episode_steps < 1:
    raise ValueError(f'max_episode_steps must be >= 1, got {max_episode_steps}')
  num_states, num_actions = mdp.rewards.shape
  # NumPy's arrays, so that making an environment does not start JAX.
  with np.errstate(divide='ignore'):
    log_transitions = np.log(mdp.transitions).astype(np.float32)
    log_initial = np.log(mdp.initial).astype(np.float32)
  rewards = mdp.rewards.astype(np.float32)

  def observe(state: jax.Array) -> jax.Array:
    return jax.nn.one_hot(state, num_states, dtype=jnp.float32)

  def reset(key: jax.Array) -> tuple[TabularState, jax.Array]:
    state = jax.random.categorical(key, log_initial).astype(jnp.int32)
    return TabularState(state, jnp.zeros((), jnp.int32)), observe(state)

  def step(
    env_state: TabularState, action: jax.Array, key: jax.Array
  ) -> tuple[TabularState, JaxTimestep]:
    logits = jnp.asarray(log_transitions)[env_state.state, action]
    state = jax.random.categorical(key, logits).astype(jnp.int32)
    time = env_state.time + 1
    terminated = jnp.asarray(mdp.terminal)[state]
    truncated = jnp.zeros((), bool)
    if max_episode_steps is not None:
      truncated = (time >= max_episode_steps) & ~terminated
    return TabularState(state, time), JaxTimestep(
      obs=observe(state),
      reward=jnp.asarray(rewards)[env_state.state, action],
      terminated=terminated,
      truncated=truncated,
    )

  return JaxEnvironment(
    reset=reset,
    step=step,
    num_actions=num_actions,
    obs_shape=(num_states,),
    obs_dtype=np.dtype(np.float32),
    max_episode_steps=max_episode_steps,
  )


def optimal_values(mdp: TabularMDP, discount: float) -> np.ndarray:
  """Computes the optimal action values by policy iteration.

  q[s, a] = rewards[s, a] + discount * sum_t transitions[s, a, t] max_b q[t, b]
  over the states t that are not terminal. Each policy's values come from a
  linear system, so they are exact to the rounding of float64.

  Args:
    mdp: the process.
    discount: discount per env step, in [0, 1).

  Returns:
    float64 [S, A]; 0 for terminal states.

  Raises:
    ValueError: the discount lies outside [0, 1).
  """
  if not 0 <= discount < 1:
    raise ValueError(f'discount must lie in [0, 1), got {discount}')
  num_states = len(mdp.terminal)
  states = np.arange(num_states)
  # [S, A, S], without the ways into and out of terminal states.
  onward = discount * mdp.transitions * ~mdp.terminal
  rewards = np.where(mdp.terminal[:, None], 0.0, mdp.rewards)
  onward[mdp.terminal] = 0.0
  policy = rewards.argmax(1)
  # Ends when the policy stays the same or, if actions differ only by rounding,
  # when an earlier one recurs.
  seen: set[bytes] = set()
  while policy.tobytes() not in seen:
    seen.add(policy.tobytes())
    values = np.linalg.solve(
      np.eye(num_states) - onward[states, policy], rewards[states, policy]
    )
    q = rewards + onward @ values
    better = q.max(1) > q[states, policy]
    policy = np.where(better, q.argmax(1), policy)
  return q


def optimal_probe(
  mdp: TabularMDP, discount: float, observations: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns states and their optimal values, to compare an agent's with.

  Args:
    mdp: the process.
    discount: discount per env step, in [0, 1).
    observations: float32 [S, ...] of the states; those of `make_tabular` if
      None.

  Returns:
    (observations float32 [S', ...], values float32 [S', A]) of the S' states
    that are not terminal.

  Raises:
    ValueError: the discount lies outside [0, 1).
  """
  best = optimal_values(mdp, discount)
  obs = observations
  if obs is None:
    obs = np.eye(len(best), dtype=np.float32)
  return obs[~mdp.terminal], best[~mdp.terminal].astype(np.float32)


def chain(length: int, slip: float = 0.0) -> TabularMDP:
  """Builds a corridor: action 0 goes left, 1 right, and the right end pays 1.

  An episode begins at the left end, where going left has no effect, and
  terminates at the right end. Without slips, going right from state s has the
  value discount**(length - 2 - s), and going left `discount` times the optimal
  value of the state reached.

  Args:
    length: number of states, >= 2.
    slip: probability, in [0, 0.5), that a move goes the other way. The last
      move then pays its probability to arrive.

  Raises:
    ValueError: an argument is out of range.
  """
  if length < 2:
    raise ValueError(f'length must be >= 2, got {length}')
  if not 0 <= slip < 0.5:
    raise ValueError(f'slip must lie in [0, 0.5), got {slip}')
  states = np.arange(length)
  transitions = np.zeros((length, 2, length))
  for action, move in enumerate((-1, 1)):
    for chance, way in ((1 - slip, move), (slip, -move)):
      after = np.clip(states + way, 0, length - 1)
      transitions[states, action, after] += chance
  terminal = states == length - 1
  # The probability of entering the end; moves within it pay nothing.
  rewards = np.where(terminal[:, None], 0.0, transitions[:, :, -1])
  return TabularMDP(transitions, rewards, terminal, (states == 0).astype(float))


Cell = tuple[int, int]
# A grid world's actions 0 to 3: up, right, down, left; y grows downward.
_MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))


def free_cells(
  width: int, height: int, walls: Collection[Cell] = ()
) -> list[Cell]:
  """Returns a grid world's free cells (x, y) row by row, as its states are."""
  return [
    (x, y) for y in range(height) for x in range(width) if (x, y) not in walls
  ]


def grid(
  width: int,
  height: int,
  *,
  goal: Cell,
  walls: Collection[Cell] = (),
  start: Cell | None = None,
  slip: float = 0.0,
) -> TabularMDP:
  """Builds a grid world: actions go up, right, down, left; the goal pays 1.

  Its states are the cells without a wall, in the order of `free_cells`. A move
  into a wall or out of the grid has no effect. Entering the goal terminates.
  Without slips, the best action in a cell d moves from the goal has the value
  discount**(d - 1).

  Args:
    width: cells in a row.
    height: cells in a column.
    goal: (x, y), counted from 0, from the left and from the top.
    walls: cells that cannot be entered.
    start: cell where episodes begin; None for a random one but the goal.
    slip: probability, in [0, 0.75), that a move goes in one of the three other
      directions, all equally likely. A move next to the goal then pays its
      probability to arrive.

  Raises:
    ValueError: an argument is out of range, a cell lies outside the grid, or
      the goal or the start is a wall.
  """
  if width < 1 or height < 1:
    raise ValueError(f'width and height must be >= 1, got {width} and {height}')
  if not 0 <= slip < 0.75:
    raise ValueError(f'slip must lie in [0, 0.75), got {slip}')
  for x, y in walls:
    if not (0 <= x < width and 0 <= y < height):
      raise ValueError(f'wall {(x, y)} lies outside the grid')
  cells = free_cells(width, height, walls)
  state_of = {cell: state for state, cell in enumerate(cells)}
  for name, cell in (('goal', goal), ('start', start)):
    if cell is not None and cell not in state_of:
      raise ValueError(f'{name} {cell} must be a cell without a wall')
  if start == goal or len(cells) < 2:
    raise ValueError(f'an episode must begin elsewhere than at its goal {goal}')
  # [S, 4] the state that each move leads to.
  leads_to = np.array(
    [
      [state_of.get((x + dx, y + dy), state) for dx, dy in _MOVES]
      for state, (x, y) in enumerate(cells)
    ]
  )
  states = np.arange(len(cells))
  transitions = np.zeros((len(cells), 4, len(cells)))
  for action in range(4):
    for way in range(4):
      chance = 1 - slip if way == action else slip / 3
      transitions[states, action, leads_to[:, way]] += chance
  terminal = states == state_of[goal]
  first = ~terminal if start is None else states == state_of[start]
  # The probability of entering the goal; moves within it pay nothing.
  rewards = np.where(terminal[:, None], 0.0, transitions[:, :, state_of[goal]])
  return TabularMDP(transitions, rewards, terminal, first / first.sum())


_FOUR_ROOMS = (
  '.....#.....',
  '.....#.....',
  '...........',
  '.....#.....',
  '.....#.....',
  '#.####.....',
  '.....###.##',
  '.....#.....',
  '.....#.....',
  '...........',
  '.....#.....',
)


def four_rooms(slip: float = 1 / 3) -> TabularMDP:
  """Builds four rooms with a hallway between each two neighbors; 104 cells.

  The rooms and the slips are those of Sutton, Precup & Singh (1999, Artificial
  Intelligence 112). There the goal differs between examples; here it is the
  lower right corner, and an episode begins in any other cell.

  Args:
    slip: slip probability as in `grid`.
  """
  walls = {
    (x, y)
    for y, row in enumerate(_FOUR_ROOMS)
    for x, what in enumerate(row)
    if what == '#'
  }
  return grid(11, 11, goal=(10, 10), walls=walls, slip=slip)


def random_mdp(seed: int, num_states: int, num_actions: int) -> TabularMDP:
  """Draws a random process, in which any state may follow any other.

  Transition probabilities are Dirichlet(1, ..., 1), rewards standard normal,
  all independent. The last state is terminal; an episode begins in any other,
  drawn uniformly.

  Args:
    seed: an integer >= 0.
    num_states: S >= 2.
    num_actions: A >= 1.

  Raises:
    ValueError: an argument is too small.
  """
  if num_states < 2 or num_actions < 1:
    raise ValueError(
      'num_states must be >= 2 and num_actions >= 1, got '
      f'{num_states} and {num_actions}'
    )
  rng = np.random.default_rng(seed)
  terminal = np.arange(num_states) == num_states - 1
  return TabularMDP(
    transitions=rng.dirichlet(
      np.ones(num_states), size=(num_states, num_actions)
    ),
    rewards=rng.standard_normal((num_states, num_actions)),
    terminal=terminal,
    initial=~terminal / (num_states - 1),
  )
