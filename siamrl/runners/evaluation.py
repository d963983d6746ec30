"""Evaluation: full episodes under a fixed policy, without learning.

`evaluate` is for environments of the host, `play` for those that are JAX
functions.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from siamrl.runners import sums
from siamrl.runners.errors import NonFiniteError
from siamrl.types import (
  Environments,
  JaxEnvironment,
  JaxTimestep,
  Metrics,
  Params,
)


class Record(NamedTuple):
  """Values and outcomes of the steps of an evaluation, NumPy arrays [T, N].

  Attributes:
    values: float32, of the observations before each action.
    reward: float32, raw rewards after each action.
    terminated: bool, whether the task ended with the step.
    truncated: bool, whether the episode was cut there.
    life_lost: bool, whether a life was lost in the step.
    counted: bool, whether the step's episode counts.
  """

  values: Any
  reward: Any
  terminated: Any
  truncated: Any
  life_lost: Any
  counted: Any


class Evaluation(NamedTuple):
  """Results of an evaluation so far.

  Attributes:
    env_steps: env steps taken so far, over all environments.
    returns: undiscounted, unclipped score of each counted episode.
    lengths: env steps of each counted episode.
    done: whether this is the final result.
    record: record of all steps, in the final result, if `values` were given.
  """

  env_steps: int
  returns: list[float]
  lengths: list[int]
  done: bool
  record: Record | None = None


def evaluate(
  act: Callable[..., jax.Array],
  params: Params,
  environments: Environments,
  key: jax.Array,
  epsilon: float,
  *,
  episodes: int = 0,
  env_steps: int = 0,
  chunk_env_steps: int = 256,
  watch: Callable[[np.ndarray], None] | None = None,
  values: Callable[[Params, np.ndarray], jax.Array] | None = None,
) -> Iterator[Evaluation]:
  """Plays a number of episodes, or all that end within a budget of steps.

  A number of episodes is split between the N environments (their shares differ
  by at most one), so that short episodes are not counted more often than long
  ones. A budget is rounded up to a multiple of N; episodes still running at its
  end are not counted.

  Args:
    act: (params, obs, key, step, epsilon) -> actions [N] or [N, D], see
      `host.make_act`.
    params: parameters of the network that acts.
    environments: environments to act in, not yet reset.
    key: random key for exploration.
    epsilon: probability of a random action.
    episodes: number of episodes to play, or 0.
    env_steps: the budget, over all environments, or 0.
    chunk_env_steps: approximate env steps between two yields.
    watch: called with the actions of every step before they are sent, for
      recording.
    values: (params, obs) -> values [N], see `host.make_values`; they are
      recorded with their outcomes.

  Yields:
    `Evaluation`; the last one is `done`.

  Raises:
    ValueError: neither or both of `episodes` and `env_steps` are positive.
    NonFiniteError: an action is not finite.
  """
  if (episodes > 0) == (env_steps > 0):
    raise ValueError('give either episodes or env_steps')
  num_envs = environments.num_envs
  quotas = [
    episodes // num_envs + (i < episodes % num_envs) if episodes else env_steps
    for i in range(num_envs)
  ]
  returns: list[float] = []
  lengths: list[int] = []
  score, length = np.zeros(num_envs), np.zeros(num_envs, int)
  obs, taken, last_yield = environments.reset(), 0, 0
  steps: list[tuple[Any, ...]] = []
  while any(quotas) and not 0 < env_steps <= taken:
    actions = np.asarray(
      act(params, obs, key, np.uint32(taken), np.float32(epsilon))
    )
    if not are_finite(actions):
      raise NonFiniteError('an action of the evaluation is not finite')
    if watch is not None:
      watch(actions)
    # Before the next step, which may overwrite the observations.
    expected = None if values is None else np.asarray(values(params, obs))
    environments.send(actions)
    step = environments.recv()
    if expected is not None:
      followed = (step.reward, step.terminated, step.truncated, step.life_lost)
      counted = np.array(quotas) > 0
      steps.append((expected, *map(np.copy, followed), counted))
    obs, taken = step.obs, taken + num_envs
    score, length = score + step.reward, length + 1
    ended = step.terminated | step.truncated
    for i in np.flatnonzero(ended):
      if quotas[i]:
        quotas[i] -= 1
        returns.append(float(score[i]))
        lengths.append(int(length[i]))
    score, length = score * ~ended, length * ~ended
    if taken - last_yield >= chunk_env_steps:
      last_yield = taken
      yield Evaluation(taken, list(returns), list(lengths), False)
  record = Record(*map(np.stack, zip(*steps, strict=True))) if steps else None
  yield Evaluation(taken, returns, lengths, True, record)


def are_finite(actions: np.ndarray) -> bool:
  """Returns whether actions are finite; integers always are."""
  return actions.dtype.kind != 'f' or bool(np.isfinite(actions).all())


def play(
  environment: JaxEnvironment,
  act: Callable[[jax.Array, chex.PRNGKey], jax.Array],
  key: chex.PRNGKey,
  *,
  episodes: int,
  most: int,
  look: Callable[[jax.Array, JaxTimestep, jax.Array], Any] | None = None,
  record: Any = None,
) -> tuple[Metrics, Any]:
  """Plays episodes in parallel, each to its own end; pure.

  Args:
    environment: environment to act in.
    act: (observations [E, ...], key) -> int32 [E] actions.
    key: determines everything random.
    episodes: E, number of episodes.
    most: env steps after which an episode is cut.
    look: (observations before the step, time step, bool [E] whether each
      episode was still running) -> tree [E, ...] to record of the step.
    record: initial record of all steps, a tree [most, E, ...], which steps that
      are never taken keep; None to record nothing.

  Returns:
    (row, record): columns of an evaluation, and the filled record.
  """
  reset_key, play_key = jax.random.split(key)
  env_state, obs = jax.vmap(environment.reset)(
    jax.random.split(reset_key, episodes)
  )

  def unfinished(carry):
    number, _, _, running, _, _, _ = carry
    return (number < most) & jnp.any(running)

  def step_all(carry):
    number, env_state, obs, running, returns, lengths, record = carry
    act_key, step_key = jax.random.split(jax.random.fold_in(play_key, number))
    env_state, step = jax.vmap(environment.step)(
      env_state, act(obs, act_key), jax.random.split(step_key, episodes)
    )
    if look is not None and record is not None:
      row = look(obs, step, running)
      record = jax.tree.map(lambda x, y: x.at[number].set(y), record, row)
    # Environments go on after their episode's end, but do not count.
    returns = sums.add(returns, jnp.where(running, step.reward, 0))
    lengths += running
    running &= ~(step.terminated | step.truncated)
    return number + 1, env_state, step.obs, running, returns, lengths, record

  *_, running, returns, lengths, record = jax.lax.while_loop(
    unfinished,
    step_all,
    (
      0,
      env_state,
      obs,
      jnp.ones(episodes, bool),
      sums.zeros(jnp.zeros(episodes, jnp.float32)),
      jnp.zeros(episodes, jnp.int32),
      record,
    ),
  )
  row = {
    'eval_return': jnp.mean(returns.total),
    'eval_episode_env_steps': jnp.mean(lengths),
    'eval_episodes_cut': jnp.sum(running, dtype=jnp.int32),
  }
  return row, record
