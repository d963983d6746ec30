"""MinAtar's five games, under the rules of gymnax or of the paper.

MinAtar (Young & Tian 2019, arXiv:1903.03176) has miniature Atari games: 10 x 10
cells, with one plane of zeros and ones for each kind of object. gymnax
implements them in JAX. Its games agree with the package `minatar` (1.0.15)
transition for transition, except in these points:

* Freeway's time limit. gymnax truncates after 2,500 steps; in `minatar`, step
  2,501 terminates the game. The preset 'paper' follows `minatar`.
* Asterix's spawning. gymnax looks at seven of the eight rows: if one row is
  free, it misses it in one of eight cases, and a spawn that found no row
  overwrites one. In `minatar` a spawn finds any free row, or does nothing if
  there is none. The preset 'paper' follows `minatar`. This matters from the
  ninth rise of difficulty on, after some 900 steps.
* Seaquest, in both presets. A submarine that moves into a bullet in the very
  step in which it would have fired does not fire. If two bullets and two
  targets meet in one cell, one of each disappears rather than two. And after
  surfacing without a diver, which ends the game, the last observation shows the
  oxygen refilled.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from siamrl.envs.gymnax import make_gymnax
from siamrl.envs.names import closest, letters
from siamrl.parameters import FieldError
from siamrl.types import JaxEnvironment, JaxTimestep

GAMES = ('asterix', 'breakout', 'freeway', 'seaquest', 'space_invaders')
PRESETS = ('gymnax', 'paper')
STICKY_ACTION_PROBABILITY = 0.1
# Probability that a cell of a noise channel is set.
NOISE_PROBABILITY = 0.1
# A stream of the environment's keys that no game draws from.
_NOISE_STREAM = 2**32 - 1
# Freeway ends with the first step beyond these.
_FREEWAY_STEPS = 2500


class MinAtarState(NamedTuple):
  """State of a game under the rules of the paper.

  Attributes:
    game: gymnax's state.
    last_action: int32 [] action of the previous step, chosen or repeated; 0,
      which is no-op, when an episode begins.
  """

  game: Any
  last_action: jax.Array


def resolve_minatar(game: str) -> str:
  """Returns the name of a game, whatever the spelling.

  Args:
    game: 'space_invaders', 'SpaceInvaders' or 'SpaceInvaders-MinAtar'.

  Raises:
    ValueError: there is no such game.
  """
  wanted = letters(game.removesuffix('-MinAtar'))
  for known in GAMES:
    if letters(known) == wanted:
      return known
  raise ValueError(
    f'no MinAtar game {game!r}'
    f'{closest(wanted, GAMES) or "; there are: " + ", ".join(GAMES)}'
  )


def _spawn(state: Any, key: jax.Array) -> Any:
  """Spawns in Asterix if a spawn is due, before gymnax tests for that.

  The rows of `entities` [8, 5] are: column, row, whether it moves right,
  whether it is gold, whether the entity exists.
  """
  direction_key, gold_key, slot_key = jax.random.split(key, 3)
  right = jax.random.bernoulli(direction_key)
  gold = jax.random.bernoulli(gold_key, 1 / 3)
  free = state.entities[:, 4] == 0
  slot = jax.random.categorical(slot_key, jnp.where(free, 0.0, -jnp.inf))
  entity = jnp.stack([jnp.where(right, 0, 9), slot + 1, right, gold, 1])
  due = state.spawn_timer == 0
  return state.replace(
    entities=jnp.where(
      due & free.any(), state.entities.at[slot].set(entity), state.entities
    ),
    # Never 0, so that gymnax spawns nothing itself.
    spawn_timer=jnp.where(due, state.spawn_speed, state.spawn_timer),
  )


def _with_noise(env: JaxEnvironment, channels: int) -> JaxEnvironment:
  """Appends planes of noise to the observations of a game."""
  *board, planes = env.obs_shape

  def noisy(key: jax.Array, obs: jax.Array) -> jax.Array:
    key = jax.random.fold_in(key, _NOISE_STREAM)
    noise = jax.random.bernoulli(key, NOISE_PROBABILITY, (*board, channels))
    return jnp.concatenate([obs, noise.astype(obs.dtype)], -1)

  def reset(key: jax.Array) -> tuple[Any, jax.Array]:
    state, obs = env.reset(key)
    return state, noisy(key, obs)

  def step(
    state: Any, action: jax.Array, key: jax.Array
  ) -> tuple[Any, JaxTimestep]:
    state, timestep = env.step(state, action, key)
    return state, timestep._replace(obs=noisy(key, timestep.obs))

  return env._replace(
    reset=reset, step=step, obs_shape=(*board, planes + channels)
  )


def make_minatar(
  game: str, preset: str, noise_channels: int = 0
) -> JaxEnvironment:
  """Builds one of MinAtar's games; observations are bool [10, 10, channels].

  Args:
    game: any spelling that `resolve_minatar` knows.
    preset: 'gymnax' has only the actions that have an effect in the game, in
      the package's order, and truncates after 1,000 steps (Freeway: 2,500).
      'paper' has the six actions no-op, left, up, right, down and fire, repeats
      the last action in place of the chosen one with a probability of 0.1, and
      never truncates. At an episode's start the last action is no-op, while in
      the package it is the one before the reset.
    noise_channels: number of planes of noise after the game's own: each of
      their cells is set with a probability of 0.1, independently in every step.
      The game itself does not change.

  Returns:
    the environment, with rising difficulty in the games that have it.

  Raises:
    ImportError: gymnax is not installed.
    ValueError: there is no such game or preset.
  """
  game = resolve_minatar(game)
  if preset not in PRESETS:
    raise ValueError(f'preset must be one of {PRESETS}, got {preset!r}')
  if noise_channels < 0:
    raise FieldError('noise_channels', noise_channels, 'must be 0 or more')
  if noise_channels:
    return _with_noise(make_minatar(game, preset), noise_channels)
  name = game.title().replace('_', '') + '-MinAtar'
  if preset == 'gymnax':
    return make_gymnax(name)
  env = make_gymnax(
    name, use_minimal_action_set=False, max_steps_in_episode=None
  )

  def reset(key: jax.Array) -> tuple[MinAtarState, jax.Array]:
    state, obs = env.reset(key)
    return MinAtarState(state, jnp.zeros((), jnp.int32)), obs

  def step(
    state: MinAtarState, action: jax.Array, key: jax.Array
  ) -> tuple[MinAtarState, JaxTimestep]:
    sticky_key, game_key, spawn_key = jax.random.split(key, 3)
    sticky = jax.random.bernoulli(sticky_key, STICKY_ACTION_PROBABILITY)
    action = jnp.where(sticky, state.last_action, action).astype(jnp.int32)
    before = state.game
    if game == 'asterix':
      before = _spawn(before, spawn_key)
    after, timestep = env.step(before, action, game_key)
    if game == 'freeway':
      timestep = timestep._replace(terminated=after.time > _FREEWAY_STEPS)
    return MinAtarState(after, action), timestep

  return env._replace(reset=reset, step=step)
