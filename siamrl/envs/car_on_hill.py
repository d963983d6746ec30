"""Car-on-Hill: a car too weak for a hill must first back up to gain speed.

This is the benchmark of batch reinforcement learning by Ernst, Geurts &
Wehenkel (2005, Journal of Machine Learning Research 6): two state variables,
two actions, a reward only at the very end, and values that jump across a curve
in the state space.

The car of mass 1 kg is at position p, in m, and has velocity v, in m/s, along
the p-axis. A force u of -4 or 4 N is held for 0.1 s. On a track of height H(p),

  dp/dt = v
  dv/dt = (u - g H'(p) - v**2 H'(p) H''(p)) / (1 + H'(p)**2)
  H(p) = p**2 + p for p < 0, and p / sqrt(1 + 5 p**2) for p >= 0.

A state with p > 1 and |v| <= 3 ends the episode with reward 1; one with p < -1
or |v| > 3 ends it with -1; all other rewards are 0. Only states at the end of a
control step count. The discount of the papers is 0.95.

An optimal policy reaches the top as soon as possible. So the value of a state
is discount**(k - 1) if that takes k steps, and -discount**(k - 1) where failure
is certain and can be delayed until the k-th step.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from siamrl.types import JaxEnvironment, JaxTimestep

DISCOUNT = 0.95
# Control steps after which the papers' test episodes end.
HORIZON = 100
START = (-0.5, 0.0)
# The corners (p, v) of the state space.
LOW, HIGH = (-1.0, -3.0), (1.0, 3.0)

_FORCES = (-4.0, 4.0)
_GRAVITY = 9.81
_STEP_SECONDS = 0.1
# Runge-Kutta steps per control step: within 3e-5 of an adaptive solver.
_SUB_STEPS = 20


class CarState(NamedTuple):
  """The state of one car.

  Attributes:
    position: float32 [] p, in m.
    velocity: float32 [] v, in m/s.
    time: int32 [] env steps since the reset.
  """

  position: jax.Array
  velocity: jax.Array
  time: jax.Array


def advance(
  position: chex.Array, velocity: chex.Array, force: chex.Array
) -> tuple[chex.Array, chex.Array]:
  """Drives for 0.1 s.

  H'' jumps at p = 0, where a solver with fixed steps would be inaccurate. In
  terms of the speed along the track, w = v sqrt(1 + H'**2), the equations have
  no H'': dp/dt = w / sqrt(1 + H'**2) and dw/dt = (u - g H') / sqrt(1 + H'**2).

  Args:
    position: [...] in m.
    velocity: [...] in m/s.
    force: [...] in N.

  Returns:
    ([...] position, [...] velocity) at the end.
  """
  h = _STEP_SECONDS / _SUB_STEPS

  def rates(p, w):
    slope = _slope(p)
    stretch = jnp.sqrt(1 + slope**2)
    return w / stretch, (force - _GRAVITY * slope) / stretch

  def sub_step(_, state):
    p, w = state
    p1, w1 = rates(p, w)
    p2, w2 = rates(p + h / 2 * p1, w + h / 2 * w1)
    p3, w3 = rates(p + h / 2 * p2, w + h / 2 * w2)
    p4, w4 = rates(p + h * p3, w + h * w3)
    return (
      p + h / 6 * (p1 + 2 * p2 + 2 * p3 + p4),
      w + h / 6 * (w1 + 2 * w2 + 2 * w3 + w4),
    )

  start = position, velocity * jnp.sqrt(1 + _slope(position) ** 2)
  position, along = jax.lax.fori_loop(0, _SUB_STEPS, sub_step, start)
  return position, along / jnp.sqrt(1 + _slope(position) ** 2)


def _slope(position: chex.Array) -> chex.Array:
  """Returns H', the slope of the track."""
  return jnp.where(
    position < 0, 2 * position + 1, (1 + 5 * position**2) ** -1.5
  )


def _outcome(
  position: chex.Array, velocity: chex.Array
) -> tuple[chex.Array, chex.Array]:
  """Returns the reward for reaching a state, float32, and whether it ends."""
  lost = (position < -1) | (jnp.abs(velocity) > 3)
  won = (position > 1) & ~lost
  return won.astype(jnp.float32) - lost.astype(jnp.float32), won | lost


def make_car_on_hill(
  *,
  low: tuple[float, float] = START,
  high: tuple[float, float] = START,
  max_episode_steps: int | None = HORIZON,
) -> JaxEnvironment:
  """Builds Car-on-Hill as an environment that observes (p, v), in m and m/s.

  Each episode begins in a state drawn uniformly from a box. The papers' data
  are episodes of random actions from (-0.5, 0); starts in the whole state space
  that are cut after one step, (LOW, HIGH, 1), give independent transitions.

  Args:
    low: (p, v), lower corner of the box.
    high: (p, v), upper corner of the box.
    max_episode_steps: env steps after which an episode is truncated; None for
      never.

  Returns:
    the environment, with observations float32 [2]. Action 0 drives backwards.

  Raises:
    ValueError: the box is empty or leaves the state space, or max_episode_steps
      is too small.
  """
  if max_episode_steps is not None and max_episode_steps < 1:
    raise ValueError(f'max_episode_steps must be >= 1, got {max_episode_steps}')
  for index, name in enumerate(('positions', 'velocities')):
    if not LOW[index] <= low[index] <= high[index] <= HIGH[index]:
      raise ValueError(
        f'{name} must begin within [{LOW[index]}, {HIGH[index]}], got '
        f'[{low[index]}, {high[index]}]'
      )

  def reset(key: jax.Array) -> tuple[CarState, jax.Array]:
    obs = jax.random.uniform(
      key, (2,), minval=jnp.asarray(low), maxval=jnp.asarray(high)
    )
    return CarState(obs[0], obs[1], jnp.zeros((), jnp.int32)), obs

  def step(
    env_state: CarState, action: jax.Array, key: jax.Array
  ) -> tuple[CarState, JaxTimestep]:
    del key
    force = jnp.asarray(_FORCES, jnp.float32)[action]
    position, velocity = advance(env_state.position, env_state.velocity, force)
    reward, terminated = _outcome(position, velocity)
    time = env_state.time + 1
    truncated = jnp.zeros((), bool)
    if max_episode_steps is not None:
      truncated = (time >= max_episode_steps) & ~terminated
    return CarState(position, velocity, time), JaxTimestep(
      obs=jnp.stack([position, velocity]),
      reward=reward,
      terminated=terminated,
      truncated=truncated,
    )

  return JaxEnvironment(
    reset=reset,
    step=step,
    num_actions=len(_FORCES),
    obs_shape=(2,),
    obs_dtype=np.dtype(np.float32),
    max_episode_steps=max_episode_steps,
  )


def start_states() -> np.ndarray:
  """Returns the starts of Ernst et al. (2005), float32 [289, 2] of (p, v).

  The grid of 17 positions 0.125 m apart and 17 velocities 0.375 m/s apart
  covers the state space; the velocity changes fastest.
  """
  grid = np.meshgrid(
    *(np.linspace(low, high, 17) for low, high in zip(LOW, HIGH, strict=True)),
    indexing='ij',
  )
  return np.stack([axis.ravel() for axis in grid], 1).astype(np.float32)


def returns(
  act: Callable[[chex.Array], chex.Array],
  states: chex.Array,
  *,
  discount: chex.Numeric = DISCOUNT,
  horizon: int = HORIZON,
) -> chex.Array:
  """Plays an episode of a policy from each of several states.

  The score of Car-on-Hill is the mean return from `start_states()`. The
  function is pure, for callers to jit together with the policy.

  Args:
    act: observations [N, 2] -> int [N] actions, such as the greedy
      `lambda obs: jnp.argmax(values(obs), -1)`.
    states: [N, 2] initial (p, v).
    discount: per env step.
    horizon: env steps after which an episode is cut.

  Returns:
    float32 [N] discounted returns.
  """
  forces = jnp.asarray(_FORCES, jnp.float32)

  def step(carry, time):
    states, running, total = carry
    moved = advance(states[:, 0], states[:, 1], forces[act(states)])
    reward, ended = _outcome(*moved)
    total += jnp.where(running, discount**time * reward, 0)
    # A car stops at its end: beyond it numbers may grow without bound.
    onward = running & ~ended
    states = jnp.where(onward[:, None], jnp.stack(moved, 1), states)
    return (states, onward, total), None

  states = jnp.asarray(states, jnp.float32)
  start = states, jnp.ones(len(states), bool), jnp.zeros(len(states))
  (_, _, total), _ = jax.lax.scan(step, start, jnp.arange(horizon))
  return total


# States are advanced in blocks of one size, to compile only once.
_BLOCK = 1 << 13


@functools.cache
def _drive() -> Callable[..., Any]:
  """Builds [K, 2] states -> [2, K, 2] next states, [2, K] outcomes."""

  def both(states):
    def one(force):
      position, velocity = advance(states[:, 0], states[:, 1], force)
      return jnp.stack([position, velocity], 1), *_outcome(position, velocity)

    return jax.vmap(one)(jnp.asarray(_FORCES, jnp.float32))

  return jax.jit(both)


def optimal_returns(
  states: np.ndarray,
  *,
  discount: float = DISCOUNT,
  horizon: int = HORIZON,
  cells: int = 100,
) -> np.ndarray:
  """Computes the best possible returns, by search through trajectories.

  The search is breadth first: both actions from each state, then both from each
  successor, until the first trajectory reaches the top or the last one has
  failed. Of the trajectories in the same cell of a fine grid after the same
  number of steps only one is followed. They are trajectories of the environment
  itself, bit for bit, so every return found can be achieved, unlike
  interpolated values, which are smeared across the jump. A better return can
  only be missed by differences within a cell.

  Args:
    states: [N, 2] (p, v), rounded to float32.
    discount: per env step, in (0, 1].
    horizon: env steps after which an episode is cut.
    cells: number of cells of the grid along each axis.

  Returns:
    float64 [N]: discount**(k - 1) where the top is reached in k steps at best,
    -discount**(k - 1) where it cannot be reached and at most k - 1 steps can be
    survived, and 0 where the horizon comes first.
  """
  states = np.asarray(states, np.float32)
  best = np.zeros(len(states))
  origin = np.arange(len(states))
  for k in range(1, horizon + 1):
    if not len(origin):
      break
    states, rewards, ended = _expand(states)
    origin = np.concatenate([origin, origin])
    best[origin[rewards > 0]] = discount ** (k - 1)
    onward = ~ended & (best[origin] == 0)
    # Origins that have just lost their last trajectory have failed.
    failed = np.setdiff1d(origin[best[origin] == 0], origin[onward])
    best[failed] = -(discount ** (k - 1))
    states, origin = states[onward], origin[onward]
    kept = _first_in_cell(states, origin, cells)
    states, origin = states[kept], origin[kept]
  return best


def _expand(states: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns successors [2 K, 2] of [K, 2] states, rewards [2 K], ends [2 K]."""
  parts = []
  for first in range(0, len(states), _BLOCK):
    block = states[first : first + _BLOCK]
    padded = np.zeros((_BLOCK, 2), np.float32)
    padded[: len(block)] = block
    parts.append(
      [np.asarray(leaf)[:, : len(block)] for leaf in _drive()(padded)]
    )
  after, rewards, ended = (
    np.concatenate(leaves, 1) for leaves in zip(*parts, strict=True)
  )
  return after.reshape(-1, 2), rewards.ravel(), ended.ravel()


def _first_in_cell(
  states: np.ndarray, origin: np.ndarray, cells: int
) -> np.ndarray:
  """Returns sorted indices of one trajectory for each cell and origin."""
  place = (states - np.array(LOW)) / (np.array(HIGH) - np.array(LOW)) * cells
  # The upper edges belong to the last cells.
  column, row = np.clip(place.astype(np.int64), 0, cells - 1).T
  return np.sort(
    np.unique((origin * cells + column) * cells + row, return_index=True)[1]
  )
