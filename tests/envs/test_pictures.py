"""Pictures of environments, drawn from observations."""

import numpy as np
import pytest

from siamrl.envs import pictures

BLUE, ORANGE = (0, 114, 178), (213, 94, 0)


def _center(picture, color):
  """The mean (x, y) of the pixels of a color."""
  rows, columns = np.nonzero((picture == color).all(-1))
  assert len(rows)
  return columns.mean(), rows.mean()


def test_a_board_has_a_color_for_each_plane():
  obs = np.zeros((10, 5, 3), bool)
  obs[0, 0, 0] = obs[9, 4, 2] = True
  picture = pictures.picture_of('any', obs.shape)(obs)
  assert picture.shape == (400, 200, 3)
  assert picture.dtype == np.uint8
  assert (picture[:40, :40] == picture[0, 0]).all()
  assert (picture[-40:, -40:] == ORANGE).all()
  assert not picture[40:-40].any()
  flat = pictures.picture_of('any', (10, 5))(obs[..., 0].astype(np.float32))
  np.testing.assert_array_equal(flat[:40, :40], picture[:40, :40])


def test_a_pole_leans_where_its_angle_says():
  draw = pictures.picture_of('cartpole', (4,))
  upright = draw(np.array([0, 0, 0, 0.0]))
  right = draw(np.array([1.0, 0, 0.2, 0]))
  cart, pole = _center(upright, BLUE), _center(upright, ORANGE)
  assert pole[1] < cart[1]  # rows count from the top
  assert abs(pole[0] - cart[0]) < 1
  cart, pole = _center(right, BLUE), _center(right, ORANGE)
  assert cart[0] > 170
  assert pole[0] > cart[0] + 5


@pytest.mark.parametrize(
  'angle, x, y', [(0, 0, -1), (np.pi, 0, 1), (np.pi / 2, -1, 0)]
)
def test_a_pendulum_at_zero_is_upright(angle, x, y):
  draw = pictures.picture_of('pendulum', (3,))
  picture = draw(np.array([np.cos(angle), np.sin(angle), 0.0]))
  across, down = _center(picture, ORANGE)
  assert np.sign(round((across - 150) / 20)) == x
  assert np.sign(round((down - 100) / 20)) == y


def test_an_acrobot_at_rest_hangs_down():
  draw = pictures.picture_of('acrobot', (6,))
  down = _center(draw(np.array([1.0, 0, 1, 0, 0, 0])), ORANGE)
  bent = _center(draw(np.array([0.0, 1, 1, 0, 0, 0])), ORANGE)
  assert down[1] > 130
  assert abs(down[0] - 150) < 1
  assert bent[0] > 180
  assert abs(bent[1] - 100) < 1


def test_a_car_is_highest_at_the_goal():
  draw = pictures.picture_of('mountain_car', (2,))
  valley = _center(draw(np.array([-0.52, 0.0])), BLUE)
  goal = _center(draw(np.array([0.5, 0.0])), BLUE)
  assert goal[0] > valley[0]
  assert goal[1] < valley[1] - 80


def test_other_vectors_have_no_picture():
  assert pictures.picture_of('chain', (10,)) is None
