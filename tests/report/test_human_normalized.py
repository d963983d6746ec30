import math

import pytest

from siamrl.report.human_normalized import SCORES, human_normalized


@pytest.mark.parametrize(
  ('game', 'score', 'expected'),
  [
    ('pong', 14.6, 1.0),
    ('pong', -20.7, 0.0),
    ('pong', 21.0, 41.7 / 35.3),
    ('breakout', 16.1, 0.5),
    ('seaquest', 68.4, 0.0),
    ('private_eye', -1000.0, -1024.9 / 69546.4),
    ('skiing', -4336.9, 1.0),
    ('ms_pacman', 6951.6, 1.0),
  ],
)
def test_hand_values(game, score, expected):
  assert human_normalized(game, score) == pytest.approx(expected, abs=1e-12)


def test_the_table_is_atari_57():
  assert len(SCORES) == 57
  assert all(random < human for random, human in SCORES.values())
  assert all(
    human_normalized(game, pair[0]) == 0.0
    and human_normalized(game, pair[1]) == 1.0
    for game, pair in SCORES.items()
  )


@pytest.mark.parametrize(
  'name',
  [
    'ms_pacman',
    'MsPacman',
    'ALE/MsPacman-v5',
    'MsPacmanNoFrameskip-v4',
    'MsPacmanDeterministic-v0',
    'MsPacman-v4',
  ],
)
def test_ids_name_the_same_game(name):
  assert human_normalized(name, 6951.6) == 1.0


def test_every_game_has_its_gymnasium_id():
  ale_py = pytest.importorskip('ale_py')
  gymnasium = pytest.importorskip('gymnasium')
  gymnasium.register_envs(ale_py)
  ids = [name for name in gymnasium.registry if name.startswith('ALE/')]
  known = [name for name in ids if not math.isnan(human_normalized(name, 0.0))]
  assert len(known) == 57


@pytest.mark.parametrize(
  'game', ['tetris', '', 'CartPole-v1', 'Breakout-MinAtar']
)
def test_other_games_have_no_scale(game):
  assert math.isnan(human_normalized(game, 1.0))
