"""Frames of Atari games under a random policy, with labels."""

import numpy as np

from siamrl.envs.ale import resolve_game
from siamrl.images import Images
from siamrl.parameters import FieldError

_SIZE = 84
_MOST_NOOPS = 30  # frames at the start of an episode


def collect_frames(
  game: str,
  count: int,
  *,
  ram_byte: int | None = None,
  classes: int = 8,
  every: int = 4,
  frame_skip: int = 4,
  seed: int = 0,
) -> Images:
  """Plays a game at random and collects frames.

  Args:
    game: name of the game, in any spelling.
    count: N, frames to keep.
    ram_byte: index of the byte, of the console's 128 bytes of memory, that
      gives the labels; None for no labels. Its meaning depends on the game: in
      Pong byte 54 is the height of the ball and 51 that of the player (Anand et
      al. 2019, AtariARI).
    classes: number of classes, of about equal size, that the byte's values are
      divided into; fewer if there are fewer values.
    every: env steps from one collected frame to the next.
    frame_skip: emulator frames per env step.
    seed: seed of the emulator and the actions.

  Returns:
    gray images uint8 [N, 84, 84, 1], and labels.

  Raises:
    ImportError: ale-py is not installed.
    ValueError: there is no such game, or the byte has only one value.
  """
  name = resolve_game(game)
  import ale_py
  from ale_py import roms

  ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
  ale = ale_py.ALEInterface()
  rng = np.random.default_rng(seed)
  ale.setInt('random_seed', int(rng.integers(2**31)))
  ale.setFloat('repeat_action_probability', 0.0)
  rom = roms.get_rom_path(name)
  assert rom is not None
  ale.loadROM(rom)
  actions = ale.getMinimalActionSet()

  screens: list[np.ndarray] = []
  memory: list[np.ndarray] = []
  while len(screens) < count:
    ale.reset_game()
    for _ in range(rng.integers(_MOST_NOOPS + 1)):
      ale.act(actions[0])
    steps = 0
    while not ale.game_over() and len(screens) < count:
      action = actions[rng.integers(len(actions))]
      for _ in range(frame_skip):
        ale.act(action)
      steps += 1
      if steps % every == 0:
        screens.append(_smaller(ale.getScreenGrayscale()))
        memory.append(ale.getRAM())
  images = np.stack(screens)[..., None]
  if ram_byte is None:
    return Images(images, None)
  values = np.stack(memory)[:, ram_byte]
  return Images(images, _classes(values, classes, ram_byte))


def _smaller(screen: np.ndarray) -> np.ndarray:
  """Shrinks uint8 [H, W] to [84, 84]; each pixel is the mean of its area."""
  small = _fewer_rows(_fewer_rows(screen).T).T
  return np.round(small).astype(np.uint8)


def _fewer_rows(pixels: np.ndarray) -> np.ndarray:
  """Shrinks [L, K] to float64 [84, K] by averaging."""
  length = len(pixels)
  # The sums above each edge; a pixel that it cuts counts in part. A matrix
  # product's threads would cost more than the work itself.
  sums = np.zeros((length + 2, pixels.shape[1]))
  np.cumsum(pixels, axis=0, out=sums[1:-1])
  sums[-1] = sums[-2]
  edges = np.linspace(0, length, _SIZE + 1)
  whole = edges.astype(int)
  part = (edges - whole)[:, None]
  above = (1 - part) * sums[whole] + part * sums[whole + 1]
  return np.diff(above, axis=0) * (_SIZE / length)


def _classes(values: np.ndarray, classes: int, ram_byte: int) -> np.ndarray:
  """Returns the values' quantiles, int32 [N], numbered from 0 without gaps."""
  edges = np.unique(np.quantile(values, np.linspace(0, 1, classes + 1)[1:-1]))
  found, labels = np.unique(
    np.searchsorted(edges, values, side='right'), return_inverse=True
  )
  if len(found) < 2:
    raise FieldError(
      'ram_byte', ram_byte, 'has (almost) only one value: nothing to classify'
    )
  return labels.astype(np.int32)
