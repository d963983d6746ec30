"""Atari, held against Gymnasium's single environments where they know more."""

import dataclasses
import math
import subprocess
import sys
import types

import gymnasium
import numpy as np
import pytest

from siamrl.envs import ale
from tests.envs.turns import assert_calls_out_of_turn_raise

ale_py = pytest.importorskip('ale_py')

PLAIN = ale.AtariProtocol(sticky_action_probability=0.0)


def draw_actions(num_actions, steps, num_envs, seed=0):
  """Random actions, int32 [steps, N]."""
  return np.random.default_rng(seed).integers(
    0, num_actions, (steps, num_envs), dtype=np.int32
  )


def play(envs, actions):
  """All answers to `actions` [T, N], each field [T, N, ...], from a reset.

  Where no episode ended, `final_obs` is left out of account: zeros.
  """
  first = envs.reset()
  answers = []
  for row in actions:
    envs.send(row)
    step = envs.recv()
    ended = step.terminated | step.truncated
    final_obs = np.where(
      ended.reshape(-1, *[1] * (first.ndim - 1)), step.final_obs, 0
    )
    answers.append(step._replace(final_obs=final_obs))
  return first, type(answers[0])(*map(np.stack, zip(*answers, strict=True)))


def assert_same(left, right):
  for a, b in zip(left, right, strict=True):
    np.testing.assert_array_equal(a, b)


def area_resize(image, size, interpolation):
  """OpenCV's INTER_AREA for shrinking: means over areas, in whole pieces."""
  del interpolation
  for axis, n_out in enumerate((size[1], size[0])):
    n_in = image.shape[axis]
    pieces = math.lcm(n_in, n_out)
    image = image.repeat(pieces // n_in, axis)
    shape = (*image.shape[:axis], n_out, -1, *image.shape[axis + 1 :])
    image = image.reshape(shape).mean(axis + 1)
  return np.rint(image).astype(np.uint8)


@pytest.fixture
def oracle(monkeypatch):
  """Makes Gymnasium's own preprocessed environment of a game."""
  if 'cv2' not in sys.modules:  # which Gymnasium wants for the resizing only
    monkeypatch.setitem(
      sys.modules,
      'cv2',
      types.SimpleNamespace(
        resize=area_resize,
        INTER_AREA=3,
        ocl=types.SimpleNamespace(setUseOpenCL=lambda _: None),
      ),
    )
  gymnasium.register_envs(ale_py)

  def make(gym_id, frame_cap=108_000):
    env = gymnasium.make(
      gym_id,
      frameskip=1,
      repeat_action_probability=0.0,
      full_action_space=False,
      max_num_frames_per_episode=frame_cap,
    )
    env = gymnasium.wrappers.AtariPreprocessing(
      env, noop_max=0, frame_skip=4, terminal_on_life_loss=False
    )
    return gymnasium.wrappers.FrameStackObservation(env, 4)

  return make


def assert_close_frames(ours, theirs):
  # The last bit hangs on the order in which a resizing sums.
  difference = np.abs(ours.astype(int) - theirs.astype(int))
  assert difference.max() <= 1
  assert (difference == 0).mean() > 0.999


@pytest.mark.parametrize('game, steps', [('Pong', 250), ('Breakout', 250)])
def test_equals_gymnasium(oracle, game, steps):
  """Frames, stacks (after resets too), raw rewards, ends and lost lives."""
  envs = ale.AtariEnvironments(game, seed=0, protocol=PLAIN)
  theirs = oracle(f'ALE/{game}-v5')
  obs = envs.reset()
  want, info = theirs.reset()
  assert_close_frames(obs[0], want)
  ends = lost = scored = 0
  for row in draw_actions(envs.num_actions, steps, 1):
    envs.send(row)
    step = envs.recv()
    lives = info['lives']
    want, reward, terminated, truncated, info = theirs.step(row[0])
    assert step.reward[0] == reward
    assert step.terminated[0] == terminated
    assert step.truncated[0] == truncated
    assert step.life_lost[0] == (info['lives'] < lives)
    lost += step.life_lost[0]
    scored += reward != 0
    if terminated:
      ends += 1
      assert_close_frames(step.final_obs[0], want)
      want, info = theirs.reset()
    assert_close_frames(step.obs[0], want)
  assert scored
  if game == 'Breakout':  # five lives an episode, and more than one episode
    assert ends and lost >= 5 * ends > 0
  else:
    assert not lost
  envs.close()


def test_stack_starts_with_the_first_frame_repeated():
  envs = ale.AtariEnvironments('pong', 2, seed=0)
  obs = envs.reset()
  first = obs[:, :1].copy()
  assert first.any()
  np.testing.assert_array_equal(obs, first.repeat(4, 1))
  for age in range(1, 5):
    envs.send(np.array([2, 3], np.int32))
    obs = envs.recv().obs
    repeats = max(4 - age, 0)
    np.testing.assert_array_equal(obs[:, :repeats], first.repeat(repeats, 1))
    assert not (obs[:, repeats] == first[:, 0]).all()


def test_arrays_stay_the_callers():
  envs = ale.AtariEnvironments('pong', seed=0)
  envs.reset()
  kept = []
  for _ in range(20):
    envs.send(np.array([2], np.int32))
    step = envs.recv()
    kept.append((step, [field.copy() for field in step]))
  for step, copies in kept:
    assert_same(step, copies)


def test_reward_is_raw():
  envs = ale.AtariEnvironments('ms_pacman', seed=0, protocol=PLAIN)
  _, steps = play(envs, draw_actions(envs.num_actions, 100, 1))
  assert steps.reward.max() == 10
  assert steps.reward.dtype == np.float32


def test_lost_life_does_not_end_the_episode():
  envs = ale.AtariEnvironments('breakout', seed=0, protocol=PLAIN)
  _, steps = play(envs, draw_actions(envs.num_actions, 200, 1))
  end = np.flatnonzero(steps.terminated)[0]
  lost = np.flatnonzero(steps.life_lost[: end + 1])
  assert len(lost) == 5 and lost[-1] == end
  # The score, drawn in the top rows, stays up through a lost life.
  score = steps.obs[:, 0, -1, :8]
  scored = np.flatnonzero(steps.reward[:end])[0]
  assert lost[0] < end and scored < lost[-2]
  fresh = envs.reset()[0, -1, :8]
  for t in lost[lost > scored][:-1]:
    assert not (score[t + 1] == fresh).all()


@pytest.mark.parametrize(
  'game, steps, has_lives',
  [
    ('space_invaders', 700, True),
    ('frogger', 400, True),
    ('laser_gates', 300, False),
  ],
)
def test_terminal_step_loses_a_life_where_there_are_any(game, steps, has_lives):
  """Frogger counts its last life as 0; Laser Gates counts none at all."""
  envs = ale.AtariEnvironments(game, seed=0, protocol=PLAIN)
  _, steps = play(envs, draw_actions(envs.num_actions, steps, 1))
  assert steps.terminated.any()
  assert (steps.life_lost[steps.terminated] == has_lives).all()


def test_sticky_actions_are_as_the_protocol_says():
  """Without them no chance is left; with them two seeds part."""
  actions = draw_actions(6, 150, 1)
  runs = {}
  for sticky in (0.0, 0.25):
    for seed in (0, 1):
      protocol = ale.AtariProtocol(sticky_action_probability=sticky)
      envs = ale.AtariEnvironments('pong', seed=seed, protocol=protocol)
      runs[sticky, seed] = play(envs, actions)[1]
  assert_same(runs[0.0, 0], runs[0.0, 1])
  assert (runs[0.25, 0].obs != runs[0.25, 1].obs).any()
  assert (runs[0.0, 0].obs != runs[0.25, 0].obs).any()
  envs = ale.AtariEnvironments('pong', seed=0)  # 0.25 unasked
  assert_same(play(envs, actions)[1], runs[0.25, 0])


def test_neighboring_seeds_share_no_emulator():
  actions = draw_actions(6, 60, 1)
  several = [
    play(ale.AtariEnvironments('pong', 3, seed=seed), actions.repeat(3, 1))[1]
    for seed in (0, 1)
  ]
  streams = {run.obs[:, n].tobytes() for run in several for n in range(3)}
  assert len(streams) == 6


def test_frame_cap_truncates():
  protocol = dataclasses.replace(PLAIN, frame_cap=40)
  envs = ale.AtariEnvironments('pong', seed=0, protocol=protocol)
  actions = draw_actions(envs.num_actions, 25, 1)
  first, steps = play(envs, actions)
  assert not steps.terminated.any() and not steps.life_lost.any()
  np.testing.assert_array_equal(np.flatnonzero(steps.truncated), [9, 19])
  np.testing.assert_array_equal(steps.obs[9, 0], first[0])
  # The last observation follows from the one before it, and is no reset.
  final_obs = steps.final_obs[9, 0]
  np.testing.assert_array_equal(final_obs[:3], steps.obs[8, 0, 1:])
  assert (final_obs[3] != first[0, 3]).any()
  # Uncapped, the same step ends nothing.
  _, uncapped = play(
    ale.AtariEnvironments('pong', seed=0, protocol=PLAIN), actions
  )
  assert not uncapped.truncated.any()
  assert_same(uncapped.obs[:9], steps.obs[:9])
  np.testing.assert_array_equal(uncapped.obs[9, 0, :3], final_obs[:3])


def test_short_episode_repeats_its_first_frame_at_the_end():
  envs = ale.AtariEnvironments(
    'pong', seed=0, protocol=dataclasses.replace(PLAIN, frame_cap=8)
  )
  first, steps = play(envs, np.full((2, 1), 2, np.int32))
  assert steps.truncated[1, 0]
  np.testing.assert_array_equal(steps.final_obs[1, 0, :2], first[0, :2])


def test_same_seed_and_actions_give_the_same_bits():
  """Through ends of episodes, and whatever the number of threads."""
  actions = draw_actions(4, 110, 3)
  # No-ops and sticky actions draw anew in each episode.
  protocol = ale.AtariProtocol(noop_max=30, frame_cap=200)
  runs = [
    play(
      ale.AtariEnvironments(
        'breakout', 3, seed=7, protocol=protocol, num_threads=threads
      ),
      actions,
    )
    for threads in (1, 2, 1)
  ]
  assert runs[0][1].truncated.sum() >= 6
  for first, steps in runs[1:]:
    np.testing.assert_array_equal(first, runs[0][0])
    assert_same(steps, runs[0][1])


def test_second_reset_goes_on_in_the_random_stream():
  protocol = ale.AtariProtocol(noop_max=30)
  resets = []
  for _ in range(2):
    envs = ale.AtariEnvironments('ms_pacman', seed=0, protocol=protocol)
    resets.append([envs.reset() for _ in range(4)])
  assert_same(*resets)
  assert len({obs.tobytes() for obs in resets[0]}) > 1


def test_no_ops_are_none_to_noop_max():
  """In Seaquest each of the first frames looks different."""
  starts = []
  for noop_max, num_envs in ((0, 2), (1, 5), (3, 10)):
    envs = ale.AtariEnvironments(
      'seaquest',
      num_envs,
      seed=0,
      protocol=ale.AtariProtocol(noop_max=noop_max),
    )
    starts.append({obs.tobytes() for obs in envs.reset()})
  assert [len(start) for start in starts] == [1, 2, 4]
  assert starts[0] < starts[1] < starts[2]


def test_fire_on_reset():
  """Breakout serves no ball before FIRE."""

  def moved(fire):
    protocol = dataclasses.replace(PLAIN, fire_on_reset=fire)
    envs = ale.AtariEnvironments('breakout', seed=0, protocol=protocol)
    first, steps = play(envs, np.zeros((20, 1), np.int32))
    return (steps.obs[-1] != first).any()

  assert moved(True) and not moved(False)


@pytest.mark.parametrize('game, minimal', [('pong', 6), ('breakout', 4)])
def test_action_sets(game, minimal):
  envs = ale.AtariEnvironments(game, seed=0)
  assert (envs.num_actions, envs.action_dim) == (minimal, 0)
  full = ale.AtariProtocol(full_action_set=True)
  assert ale.AtariEnvironments(game, seed=0, protocol=full).num_actions == 18


def test_frame_skip_counts_emulator_frames():
  one = dataclasses.replace(PLAIN, frame_skip=1)
  slow = ale.AtariEnvironments('pong', seed=0, protocol=one)
  fast = ale.AtariEnvironments('pong', seed=0, protocol=PLAIN)
  assert (slow.frames_per_step, fast.frames_per_step) == (1, 4)
  actions = draw_actions(6, 80, 1)
  _, four = play(fast, actions)
  _, ones = play(slow, actions.repeat(4, 0))
  np.testing.assert_array_equal(
    ones.reward.reshape(80, 4, 1).sum(1), four.reward
  )
  assert four.reward.any()


def test_color_plays_the_same_episodes():
  """In lock-step with the gray one, sticky actions, no-ops and all."""
  protocol = ale.AtariProtocol(noop_max=30, frame_cap=600)
  gray = ale.AtariEnvironments('ms_pacman', seed=3, protocol=protocol)
  color = ale.AtariEnvironments(
    'ms_pacman', seed=3, protocol=protocol, color=True
  )
  assert (color.stack, color.frame_shape) == (1, (210, 160, 3))
  actions = draw_actions(gray.num_actions, 300, 1)
  _, left = play(gray, actions)
  first, right = play(color, actions)
  assert first.shape == (1, 1, 210, 160, 3) and first.dtype == np.uint8
  assert left.reward.any() and left.truncated.sum() == 2
  assert_same(
    (left.reward, left.terminated, left.truncated, left.life_lost),
    (right.reward, right.terminated, right.truncated, right.life_lost),
  )
  # The luminance, shrunk, is the gray frame of that very moment, but for a few
  # pixels: where sprites overlap, colors are pooled one by one.
  weights = np.array([0.299, 0.587, 0.114])
  for t in (100, 200, 298):
    shrunk = area_resize(right.obs[t, 0, 0] @ weights, (84, 84), None)
    same, later = (
      (np.abs(shrunk.astype(int) - left.obs[u, 0, -1]) <= 2).mean()
      for u in (t, t + 1)
    )
    assert same > max(later, 0.99)


def test_color_has_the_screens_own_size():
  """Of 210 rows, but for a few games, which nothing must squeeze."""
  envs = ale.AtariEnvironments('carnival', seed=0, color=True)
  assert envs.frame_shape == (214, 160, 3)
  assert envs.reset().shape == (1, 1, 214, 160, 3)


def test_shapes_and_types():
  envs = ale.AtariEnvironments('pong', 2, seed=0)
  assert (envs.num_envs, envs.stack, envs.frame_shape) == (2, 4, (84, 84))
  first, steps = play(envs, np.zeros((1, 2), np.int32))
  assert first.shape == (2, 4, 84, 84) and first.dtype == envs.frame_dtype
  for field in ('reward', 'terminated', 'truncated', 'life_lost'):
    assert getattr(steps, field).shape == (1, 2)
    if field != 'reward':
      assert getattr(steps, field).dtype == bool


def test_calls_out_of_turn_raise_rather_than_hang():
  assert_calls_out_of_turn_raise(ale.AtariEnvironments('pong', seed=0))


@pytest.mark.parametrize(
  'bad',
  [
    np.array([6], np.int32),
    np.array([-1], np.int32),
    np.array([6]),
    np.array([2**32]),
    np.array([0.0]),
    np.zeros(2, np.int32),
    np.zeros((1, 1), np.int32),
  ],
)
def test_unknown_actions_raise_rather_than_hang(bad):
  envs = ale.AtariEnvironments('pong', seed=0)
  envs.reset()
  with pytest.raises(ValueError, match='actions must'):
    envs.send(bad)
  envs.send(np.array([5]))  # and leave the environments as they were
  envs.recv()


@pytest.mark.parametrize(
  'settings',
  [
    {'sticky_action_probability': 1.5},
    {'noop_max': -1},
    {'frame_skip': 0},
    {'frame_cap': 0},
  ],
)
def test_protocol_out_of_range(settings):
  with pytest.raises(ValueError, match=next(iter(settings))):
    ale.AtariProtocol(**settings)


def test_constructor_out_of_range():
  with pytest.raises(ValueError, match='num_envs'):
    ale.AtariEnvironments('pong', 0, seed=0)
  with pytest.raises(ValueError, match='seed'):
    ale.AtariEnvironments('pong', seed=-1)


@pytest.mark.parametrize(
  'name, rom',
  [
    ('Pong', 'pong'),
    ('pong', 'pong'),
    ('MsPacman', 'ms_pacman'),
    ('ms_pacman', 'ms_pacman'),
    ('Ms. Pac-Man', 'ms_pacman'),
    ('Q*bert', 'qbert'),
    ('ALE/Pong-v5', 'pong'),
    ('PongNoFrameskip-v4', 'pong'),
    ('Pong-ramDeterministic-v0', 'pong'),
    ('Atlantis2', 'atlantis2'),
    ('ALE/TicTacToe3D-v5', 'tic_tac_toe_3d'),
  ],
)
def test_resolve_game(name, rom):
  assert ale.resolve_game(name) == rom


def test_resolve_game_knows_every_gymnasium_id():
  gymnasium.register_envs(ale_py)
  ids = {
    key: spec.kwargs['game']
    for key, spec in gymnasium.registry.items()
    if 'game' in spec.kwargs
  }
  assert {key: ale.resolve_game(key) for key in ids} == ids
  assert set(ids.values()) == set(ale.games()) and len(ale.games()) >= 104


def test_unknown_game_names_the_closest():
  with pytest.raises(ValueError, match="'breakuot'.*breakout") as error:
    ale.resolve_game('breakuot')
  assert '\n' not in str(error.value)
  with pytest.raises(ValueError, match='no Atari game'):
    ale.AtariEnvironments('', seed=0)


@pytest.mark.parametrize('game', ['combat', 'joust', 'maze_craze', 'Warlords'])
def test_two_player_game_raises_rather_than_ends_the_process(game):
  with pytest.raises(ValueError, match='two players'):
    ale.AtariEnvironments(game, seed=0)


def test_games_load():
  """Every sixth; all of them take ten seconds."""
  for game in ale.games()[::6]:
    assert ale.AtariEnvironments(game, seed=0, num_threads=1).num_actions >= 3


def test_without_ale_py_the_error_names_the_extra(monkeypatch):
  ale.games.cache_clear()
  monkeypatch.setitem(sys.modules, 'ale_py', None)
  with pytest.raises(ImportError, match=r'pip install siamrl\[atari\]'):
    ale.AtariEnvironments('pong', seed=0)


def test_prints_nothing():
  program = (
    'import sys\n'
    'from siamrl.envs import ale\n'
    'assert "ale_py" not in sys.modules\n'
    'for color in (False, True):\n'
    '  envs = ale.AtariEnvironments("pong", seed=0, color=color)\n'
    '  envs.reset()\n'
    '  envs.close()\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=False
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
