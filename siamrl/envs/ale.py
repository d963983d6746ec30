"""Atari 2600 games, through the ALE's vector environment in C++."""

import dataclasses
import functools
import re
from typing import Any

import numpy as np

from siamrl.envs.gym import check_actions, env_seeds
from siamrl.envs.names import closest, letters
from siamrl.optional import import_optional
from siamrl.types import Timestep

# The ALE has these games for two players only. Loading one makes its C++ end
# the whole process, so they must never reach it.
_TWO_PLAYERS = frozenset({'combat', 'joust', 'maze_craze', 'warlords'})
# Gymnasium ids around a game's name: ALE/Pong-v5, Pong-ram-v4, ...
_ID = re.compile(
  r'(?:ALE/)?(.*?)(?:-ram)?(?:Deterministic|NoFrameskip)?(?:-v\d+)?'
)


@dataclasses.dataclass(frozen=True)
class AtariProtocol:
  """The rules of play, which must agree for scores to be comparable.

  The defaults are those of Machado et al. (2018), with minimal actions. To clip
  rewards, or to end episodes when a life is lost, is up to the learner.

  Attributes:
    sticky_action_probability: probability, at each emulator frame, that the
      last action is repeated instead of the one chosen.
    noop_max: most emulator frames of no-ops before the first decision; each
      episode draws 0 to `noop_max` uniformly. A FIRE on reset is one of them.
    frame_skip: emulator frames per env step. The last two are max-pooled.
    frame_cap: most emulator frames per episode, not counting no-ops.
    full_action_set: use all 18 actions rather than the game's minimal set.
    fire_on_reset: press FIRE for one emulator frame, if the game has it.

  Raises:
    ValueError: a value lies outside its range.
  """

  sticky_action_probability: float = 0.25
  noop_max: int = 0
  frame_skip: int = 4
  frame_cap: int = 108_000
  full_action_set: bool = False
  fire_on_reset: bool = False

  def __post_init__(self) -> None:
    if not 0 <= self.sticky_action_probability <= 1:
      raise ValueError(
        'sticky_action_probability must lie in [0, 1], got '
        f'{self.sticky_action_probability}'
      )
    for name, least in (('noop_max', 0), ('frame_skip', 1), ('frame_cap', 1)):
      if getattr(self, name) < least:
        raise ValueError(
          f'{name} must be >= {least}, got {getattr(self, name)}'
        )


def _ale() -> Any:
  """Imports the module `ale_py` and silences it."""
  for module in ('ale_py.roms', 'ale_py.vector_env'):
    import_optional(module, 'Atari needs ale-py', 'atari')
  import ale_py

  # Otherwise each emulator prints a banner.
  ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
  return ale_py


@functools.cache
def games() -> tuple[str, ...]:
  """Returns the sorted names of all games for one player, such as 'ms_pacman'.

  Raises:
    ImportError: ale-py is not installed.
  """
  return tuple(sorted(set(_ale().roms.get_all_rom_ids()) - _TWO_PLAYERS))


def resolve_game(name: str) -> str:
  """Returns the ALE's name of a game, whatever the spelling.

  Args:
    name: 'ms_pacman', 'MsPacman', 'Ms. Pac-Man', 'ALE/MsPacman-v5' or
      'MsPacmanNoFrameskip-v4'. Everything in such an id but the game is
      ignored: `AtariProtocol` sets the rules.

  Returns:
    the name of its ROM: 'ms_pacman'.

  Raises:
    ValueError: there is no such game, or none for one player.
    ImportError: ale-py is not installed.
  """
  match = _ID.fullmatch(name)
  wanted = letters(match[1] if match else name)
  known = {letters(game): game for game in games()}
  if wanted in known:
    return known[wanted]
  if wanted in {letters(game) for game in _TWO_PLAYERS}:
    raise ValueError(f'{name!r} is a game for two players only')
  raise ValueError(f'no Atari game {name!r}{closest(wanted, games())}')


def _screen_shape(ale_py: Any, rom: str) -> tuple[int, int]:
  """Returns a screen's height and width: 210 x 160, or a little higher."""
  emulator = ale_py.ALEInterface()
  emulator.loadROM(ale_py.roms.get_rom_path(rom))
  height, width = emulator.getScreenDims()
  return height, width


class AtariEnvironments:
  """N emulators of one game, stepped together by threads outside of Python.

  Implements `siamrl.types.Environments`: observations are stacks of 4 gray
  frames of 84 x 84, and rewards are raw. At the start of an episode the stack
  repeats its first frame, as in Gymnasium's wrapper (the ALE itself pads with
  black frames).

  The ALE imposes three limits. The last step of an episode stops at the frame
  that ends it, and also shows the pooled frame of the step before, as in
  Gymnasium's wrapper. A life lost in the very step that is truncated goes
  unnoticed. And the state cannot be saved: a run starts anew from a seed.

  Attributes:
    game: the name of the ROM.
    protocol: the rules of play.
  """

  action_dim = 0

  def __init__(
    self,
    game: str,
    num_envs: int = 1,
    *,
    seed: int,
    protocol: AtariProtocol = AtariProtocol(),
    num_threads: int = 0,
    color: bool = False,
  ):
    """Loads the game N times.

    Args:
      game: any spelling that `resolve_game` knows.
      num_envs: N >= 1.
      seed: an integer >= 0 that determines all episodes.
      protocol: the rules of play.
      num_threads: threads that step the emulators; 0 for the smaller of N and
        the number of processors. It affects no results.
      color: return unstacked RGB frames at the screen's own size (210 x 160 x 3
        for most games), for a video. With the same seed, protocol and actions
        the episodes are the same as in gray.

    Raises:
      ValueError: there is no such game, or an argument is out of range.
      ImportError: ale-py is not installed.
    """
    if num_envs < 1:
      raise ValueError(f'num_envs must be >= 1, got {num_envs}')
    self.game = resolve_game(game)
    self.protocol = protocol
    self.num_envs = num_envs
    self.stack = 1 if color else 4
    self.frames_per_step = protocol.frame_skip
    self._seeds: np.ndarray | None = env_seeds(seed, num_envs)
    ale_py = _ale()
    height, width = _screen_shape(ale_py, self.game) if color else (84, 84)
    self.frame_shape: tuple[int, ...] = (height, width) + (3,) * color
    self.frame_dtype = np.dtype(np.uint8)
    # Every option by name: some defaults depend on how the environment is made,
    # and some change the game (clipped rewards, a reset at each lost life).
    self._env = ale_py.vector_env.AtariVectorEnv(
      self.game,
      num_envs,
      # The whole batch: in a smaller one, the order depends on the threads.
      batch_size=num_envs,
      num_threads=num_threads,
      max_num_frames_per_episode=protocol.frame_cap,
      repeat_action_probability=protocol.sticky_action_probability,
      full_action_space=protocol.full_action_set,
      continuous=False,
      autoreset_mode='SameStep',
      img_height=height,
      img_width=width,
      grayscale=not color,
      stack_num=self.stack,
      frameskip=protocol.frame_skip,
      maxpool=True,
      # The ALE draws from 0 to one less than this.
      noop_max=protocol.noop_max + 1,
      episodic_life=False,
      life_loss_info=False,
      reward_clipping=False,
      use_fire_reset=protocol.fire_on_reset,
    )
    self.num_actions = int(self._env.single_action_space.n)
    self._lives = np.zeros(num_envs, np.int32)
    self._has_lives = np.zeros(num_envs, bool)  # the game ever counted one
    self._steps = np.zeros(num_envs, np.int64)  # env steps in each episode
    self._started = False
    self._waiting = False  # a send without its recv

  def _repeat_first(self, obs: np.ndarray, steps: np.ndarray) -> None:
    """Replaces the black frames before the first one with it, in place.

    Args:
      obs: [N, S, ...] observations as the ALE stacks them.
      steps: [N] env steps since the start of their episodes.
    """
    for n in np.flatnonzero(steps < self.stack - 1):
      first = self.stack - 1 - steps[n]
      obs[n, :first] = obs[n, first]

  def reset(self) -> np.ndarray:
    """Starts N new episodes; returns observations [N, S, ...].

    The first call starts from the seed; a later one abandons the running
    episodes and continues the same random streams.

    Raises:
      RuntimeError: a `send` still waits for its `recv`.
    """
    if self._waiting:
      raise RuntimeError('reset between send and recv')
    obs, info = self._env.reset(seed=self._seeds)
    self._seeds = None  # the ALE then leaves its generators as they are
    self._started = True
    self._lives = info['lives']
    self._has_lives |= self._lives > 0
    self._steps[:] = 0
    self._repeat_first(obs, self._steps)
    return obs

  def send(self, actions: np.ndarray) -> None:
    """Hands over int32 [N] actions and returns without waiting.

    Raises:
      RuntimeError: there was no `reset`, or no `recv` since the last `send`.
      ValueError: the actions are not N integers in [0, num_actions).
    """
    # Calls out of order, or with an unknown action, stop the ALE's threads, and
    # recv would wait forever.
    if not self._started or self._waiting:
      raise RuntimeError('send must follow reset or recv')
    self._env.send(check_actions(actions, self.num_envs, self.num_actions))
    self._waiting = True

  def recv(self) -> Timestep:
    """Waits for the results of the last `send`.

    The caller may keep the arrays: the ALE fills new ones at each step.
    `final_obs` is `obs` itself if no episode ended.

    Raises:
      RuntimeError: no `send` came before.
    """
    if not self._waiting:
      raise RuntimeError('recv must follow send')
    obs, reward, terminated, truncated, info = self._env.recv()
    self._waiting = False
    lives = info['lives']
    life_lost = lives < self._lives
    final_obs = obs
    self._steps += 1
    ended = terminated | truncated
    if ended.any():
      # Lives are already those of the next episode, but a game with lives ends
      # with the last of them. (Some games count it as 0, so the number of lives
      # before the step is not tested.)
      life_lost[ended] = (terminated & self._has_lives)[ended]
      # The ALE's own array is uninitialized in the other rows.
      final_obs = obs.copy()
      final_obs[ended] = info['final_obs'][ended]
      self._repeat_first(final_obs, np.where(ended, self._steps, self.stack))
      self._steps[ended] = 0
    self._lives = lives
    self._has_lives |= lives > 0
    self._repeat_first(obs, self._steps)
    return Timestep(
      obs,
      reward.astype(np.float32),
      terminated,
      truncated,
      life_lost,
      final_obs,
    )

  def close(self) -> None:
    """Stops the threads and frees the emulators; call nothing after it."""
    self._started = self._waiting = False
    del self._env
