"""Pictures of JAX-native environments, drawn from their observations."""

from collections.abc import Callable, Sequence
import math
from typing import Any

import numpy as np

from siamrl.optional import import_optional

# Observation -> uint8 [H, W, 3].
Picture = Callable[[np.ndarray], np.ndarray]

_WIDTH, _HEIGHT = 300, 200
_SKY, _INK, _BODY, _ACCENT = 'white', '#444444', '#0072b2', '#d55e00'
# Pixels of the shorter side of a board.
_BOARD = 200
# Of the planes of a board, from the first one on: colors that the color-blind
# can tell apart.
_PLANES = (
  *((0, 158, 115), (240, 228, 66), (213, 94, 0), (86, 180, 233)),
  *((204, 121, 167), (230, 159, 0), (0, 114, 178), (255, 255, 255)),
  *((153, 153, 153), (102, 166, 30)),
)


def picture_of(name: str, obs_shape: Sequence[int]) -> Picture | None:
  """Finds how an environment is drawn.

  Args:
    name: its name in the registry.
    obs_shape: the shape of its observations.

  Returns:
    (observation) -> uint8 [H, W, 3]; None if observations of this environment
    cannot be drawn.

  Raises:
    ImportError: Pillow is not installed, or cannot be imported.
  """
  if len(obs_shape) in (2, 3):
    return _board
  for start, draw in _SCENES.items():
    if name.startswith(start):
      draws = import_optional('PIL.ImageDraw', 'pictures need Pillow', 'plots')
      images = import_optional('PIL.Image', 'pictures need Pillow', 'plots')
      return lambda obs: _scene(images, draws, draw, obs)
  return None


def _board(obs: np.ndarray) -> np.ndarray:
  """Draws a board [H, W] or [H, W, C], a color for each plane."""
  planes = obs[..., None] if obs.ndim == 2 else obs
  picture = np.zeros((*planes.shape[:2], 3), np.uint8)
  for number in range(planes.shape[2]):
    color = _PLANES[number % len(_PLANES)]
    picture[planes[..., number] > 0] = color
  scale = max(1, -(-_BOARD // min(planes.shape[:2])))
  return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def _scene(
  images: Any, draws: Any, draw: Callable[[Any, np.ndarray], None], obs: Any
) -> np.ndarray:
  image = images.new('RGB', (_WIDTH, _HEIGHT), _SKY)
  draw(draws.Draw(image), np.asarray(obs, np.float64))
  return np.asarray(image)


def _rod(
  canvas: Any, start: tuple[float, float], angle: float, length: float
) -> tuple[float, float]:
  """Draws a rod; returns its end. At the angle 0 it points down."""
  end = (
    start[0] + length * math.sin(angle),
    start[1] + length * math.cos(angle),
  )
  canvas.line([start, end], fill=_ACCENT, width=8)
  for x, y in (start, end):
    canvas.ellipse([x - 4, y - 4, x + 4, y + 4], fill=_INK)
  return end


def _cartpole(canvas: Any, obs: np.ndarray) -> None:
  """Draws position and angle; the track is as wide as episodes allow."""
  x, floor = _WIDTH / 2 * (1 + obs[0] / 2.7), 150
  canvas.line([(0, floor), (_WIDTH, floor)], fill=_INK, width=2)
  canvas.rectangle([x - 22, floor - 12, x + 22, floor + 12], fill=_BODY)
  _rod(canvas, (x, floor - 12), math.pi - obs[2], 90)


def _pendulum(canvas: Any, obs: np.ndarray) -> None:
  """Draws cosine and sine of the angle, 0 where the pendulum is upright."""
  angle = math.pi + math.atan2(obs[1], obs[0])
  _rod(canvas, (_WIDTH / 2, _HEIGHT / 2), angle, 80)


def _acrobot(canvas: Any, obs: np.ndarray) -> None:
  """Draws both links, and the height that the tip must reach."""
  length, center = 42, (_WIDTH / 2, _HEIGHT / 2)
  goal = center[1] - length
  canvas.line([(0, goal), (_WIDTH, goal)], fill=_INK, width=1)
  first = math.atan2(obs[1], obs[0])
  second = first + math.atan2(obs[3], obs[2])
  _rod(canvas, _rod(canvas, center, first, length), second, length)


def _mountain_car(canvas: Any, obs: np.ndarray) -> None:
  """Draws the valley, the car, and the goal at 0.5 (continuous: 0.45)."""

  def place(position: float) -> tuple[float, float]:
    return (
      (position + 1.2) / 1.8 * _WIDTH,
      _HEIGHT - 30 - 65 * (1 + math.sin(3 * position)),
    )

  hill = [place(position) for position in np.linspace(-1.2, 0.6, 100)]
  canvas.line(hill, fill=_INK, width=2)
  x, y = place(0.5)
  canvas.line([(x, y), (x, y - 25)], fill=_ACCENT, width=4)
  x, y = place(obs[0])
  canvas.ellipse([x - 9, y - 18, x + 9, y], fill=_BODY)


_SCENES: dict[str, Callable[[Any, np.ndarray], None]] = {
  'cartpole': _cartpole,
  'pendulum': _pendulum,
  'acrobot': _acrobot,
  'mountain_car': _mountain_car,
}
