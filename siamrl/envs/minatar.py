"""MinAtar's five games, under the rules of gymnax or of the paper.

MinAtar (Young & Tian 2019, arXiv:1903.03176) has Atari games in small: 10 x 10
cells, one plane of zeros and ones for each kind of thing. gymnax plays them in
JAX. Its games and the package `minatar` (1.0.15) agree transition for
transition, but for these:

* Freeway's 2,500 steps. gymnax truncates after 2,500; in `minatar`, step 2,501
  ends the game, a termination. The preset 'paper' has it as `minatar` does.
* Asterix, where things spawn. gymnax looks at seven of the eight rows: with one
  row free it misses it in one of eight cases, and a spawn that found no row
  erases what is in one. In `minatar` a spawn finds any free row, and else
  nothing happens; so it is in the preset 'paper'. This matters from the ninth
  rise of difficulty on, after some 900 steps.
* Seaquest, in both presets. A submarine that moves into a bullet in the very
  step in which it would have fired does not fire. Where two bullets and two
  targets meet in one cell, one of each is gone rather than two. And after
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
# Of each cell of a noise channel to be set.
NOISE_PROBABILITY = 0.1
# A stream of the environment's keys that no game draws from.
_NOISE_STREAM = 2**32 - 1
# Freeway ends with the first step beyond these.
_FREEWAY_STEPS = 2500


class MinAtarState(NamedTuple):
  """The state under the rules of the paper.

  Attributes:
    game: gymnax's state.
    last_action: int32 [] what was done in the step before, be it chosen or
      repeated; 0, which is no-op, when an episode begins.
  """

  game: Any
  last_action: jax.Array


def resolve_minatar(game: str) -> str:
  """The name of a game, whatever the spelling.

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
  """Asterix's spawn, done before gymnax looks whether one is due.

  Its rows of `entities` [8, 5] are: column, row, whether it moves right,
  whether it is gold, whether there is anything.
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
    # Never 0, so that gymnax spawns nothing besides.
    spawn_timer=jnp.where(due, state.spawn_speed, state.spawn_timer),
  )


def _with_noise(env: JaxEnvironment, channels: int) -> JaxEnvironment:
  """The same game with planes of noise behind its own."""
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
  """One of MinAtar's games; observations are bool [10, 10, channels].

  Args:
    game: any spelling that `resolve_minatar` knows.
    preset: 'gymnax' has only the actions that do something in the game, in the
      package's order, and truncates after 1,000 steps (Freeway: 2,500). 'paper'
      has the six actions no-op, left, up, right, down and fire, repeats the
      last action in place of the chosen one with a probability of 0.1, and
      never truncates. At an episode's start the last action is no-op, while in
      the package it is the one before the reset.
    noise_channels: planes behind the game's own that say nothing: each of their
      cells is set with a probability of 0.1, anew in every step. The game goes
      on as it would without.

  Returns:
    the environment. Difficulty rises as the game goes on, where the game has
    that.

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
