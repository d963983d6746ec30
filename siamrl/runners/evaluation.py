"""Evaluation: full episodes under a fixed policy, learning nothing.

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
  """What was expected of episodes and what became of them, NumPy arrays [T, N].

  Attributes:
    values: float32, of the observations acted upon.
    reward: float32, raw, that followed.
    terminated: bool, whether the task ended with it.
    truncated: bool, whether it was cut there.
    life_lost: bool, whether a life was lost.
    counted: bool, whether the step is of an episode that counts.
  """

  values: Any
  reward: Any
  terminated: Any
  truncated: Any
  life_lost: Any
  counted: Any


class Evaluation(NamedTuple):
  """What has been evaluated so far.

  Attributes:
    env_steps: taken so far, over all environments.
    returns: undiscounted, unclipped score of each counted episode.
    lengths: env steps of each.
    done: whether this is the result.
    record: of all steps, in the result, where `values` were asked for.
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
  """Plays a number of episodes, or as many as end within a budget of steps.

  With a number of episodes, each of the N environments has its share of them
  (quotas that differ by one at most), so that short episodes are not counted
  more often than long ones. With a budget, rounded up to a multiple of N, the
  episodes that end within it are counted and the running ones are not.

  Args:
    act: (params, obs, key, step, epsilon) -> actions [N] or [N, D], see
      `host.make_act`.
    params: of the network that acts.
    environments: fresh ones.
    key: for exploration.
    epsilon: probability of a random action.
    episodes: how many to play, or 0.
    env_steps: the budget, over all environments, or 0.
    chunk_env_steps: env steps between two yields, about.
    watch: called with the actions of every step, before they are sent; for
      recording.
    values: (params, obs) -> [N] what is expected of them, see
      `host.make_values`; kept with what became of them.

  Yields:
    `Evaluation`; the last one is `done`.

  Raises:
    ValueError: not exactly one of `episodes` and `env_steps` is positive.
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
    # Before they step, as they may write where the observations are.
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
  """Whether actions are finite; integers always are."""
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
  """Plays episodes side by side, each to its own end; pure.

  Args:
    environment: where.
    act: (observations [E, ...], key) -> int32 [E] actions.
    key: everything random follows from it.
    episodes: E.
    most: env steps after which an episode is cut.
    look: (observations that were acted on, what came of it, bool [E] whether
      each episode still ran) -> what to keep of an env step, a tree [E, ...].
    record: what `look` would keep of steps that are never taken, for all steps
      [most, E, ...]; None to keep nothing.

  Returns:
    (row, record): columns of an evaluation, and what was kept.
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
    # What follows an episode's end is played on, and not counted.
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
