"""MinAtar in JAX, held against the package `minatar`, transition by transition.

Games are played under the rules of the paper. Before each step, the package's
game is put into the state that ours is in, does what ours did (stickiness
included), and must answer the same and end up in the same state, timers and
all. Where chance comes in, it is either told what ours drew, or the two are
compared in law.
"""

import functools
import importlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from siamrl.envs import minatar

pytest.importorskip('gymnax')
logging.disable()  # the package misses seaborn, which is for drawing
Environment = pytest.importorskip('minatar').Environment
logging.disable(logging.NOTSET)

N = 64
# Fields that are called the same in both.
FIELDS = {
  'breakout': [
    'ball_y',
    'ball_x',
    'ball_dir',
    'pos',
    'brick_map',
    'strike',
    'last_x',
    'last_y',
  ],
  'space_invaders': [
    'pos',
    'f_bullet_map',
    'e_bullet_map',
    'alien_map',
    'alien_dir',
    'enemy_move_interval',
    'alien_move_timer',
    'alien_shot_timer',
    'ramp_index',
    'shot_timer',
  ],
  'freeway': ['pos', 'move_timer'],
  'asterix': [
    'player_x',
    'player_y',
    'shot_timer',
    'spawn_speed',
    'spawn_timer',
    'move_speed',
    'move_timer',
    'ramp_timer',
    'ramp_index',
  ],
  'seaquest': [
    'oxygen',
    'diver_count',
    'sub_x',
    'sub_y',
    'sub_or',
    'e_spawn_speed',
    'e_spawn_timer',
    'd_spawn_timer',
    'move_speed',
    'ramp_index',
    'shot_timer',
    'surface',
  ],
}
LISTS = {  # of Seaquest, with the fields that count them
  'f_bullets': 'f_bullet_count',
  'e_bullets': 'e_bullet_count',
  'e_fish': 'e_fish_count',
  'e_subs': 'e_subs_count',
  'divers': 'divers_count',
}


@functools.cache
def _game(name):
  """The environment, with its functions compiled for N at once."""
  env = minatar.make_minatar(name, 'paper')
  return env, jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step))


def _keys(seed):
  return jax.random.split(jax.random.key(seed), N)


def _fields(name, state):
  """What the package would call the state of one game."""
  fields = {field: np.array(getattr(state, field)) for field in FIELDS[name]}
  fields = {k: v if v.ndim else v.item() for k, v in fields.items()}
  if name == 'freeway':
    fields['cars'] = state.cars.tolist()
    fields['terminate_timer'] = 2500 - int(state.time)
  if name == 'asterix':
    fields['entities'] = [
      row[:4] if row[4] else None for row in state.entities.tolist()
    ]
  if name == 'seaquest':
    for field, count in LISTS.items():
      rows = getattr(state, field)[: getattr(state, count)].tolist()
      fields[field] = rows
  return fields


def _put(game, fields):
  for field, value in fields.items():
    setattr(game, field, value)
  game.terminal = False


def _assert_same_state(name, game, fields):
  for field, want in fields.items():
    found = getattr(game, field)
    if field in LISTS:
      # In another order, which only tells who is processed first.
      found, want = sorted(found), sorted(want)
    if field == 'entities':
      assert found == want
      continue
    if field == 'ramp_timer' and game.spawn_speed == game.move_speed == 1:
      continue  # it has no more to count to
    np.testing.assert_array_equal(found, want, err_msg=f'{name}: {field}')


def _start_breakout(rng, state):
  """Few bricks, so that they are cleared."""
  bricks = np.zeros((N, 10, 10), np.float32)
  bricks[:, 1:4] = rng.random((N, 3, 10)) < rng.random((N, 1, 1)) ** 2
  return state.replace(brick_map=bricks)


def _start_space_invaders(rng, state):
  """Few aliens, as low as they come, in either direction, at any speed."""
  aliens = np.zeros((N, 10, 10), np.float32)
  aliens[:, :8] = rng.random((N, 8, 10)) < 0.3 * rng.random((N, 1, 1))
  aliens[:, 0, 4] = 1
  speed = rng.integers(6, 13, N)
  return state.replace(
    alien_map=aliens,
    alien_dir=rng.choice([-1, 1], N),
    enemy_move_interval=speed,
    alien_move_timer=rng.integers(0, speed),
    ramp_index=12 - speed,
  )


def _start_freeway(rng, state):
  """Anywhere on the way, some a few steps before the end."""
  time = np.where(rng.random(N) < 0.3, rng.integers(2480, 2501, N), 0)
  return state.replace(pos=rng.integers(1, 10, N), time=time)


def _start_asterix(rng, state):
  """At any difficulty, with things in most rows."""
  ramp = rng.integers(0, 10, N)
  speed = 5 - ramp // 2
  entities = np.stack(
    [
      rng.integers(0, 10, (N, 8)),
      np.tile(np.arange(1, 9), (N, 1)),
      *rng.integers(0, 2, (2, N, 8)),
      rng.random((N, 8)) < 0.6,
    ],
    axis=-1,
  )
  return state.replace(
    entities=entities * entities[:, :, 4:],
    ramp_index=ramp,
    spawn_speed=10 - ramp,
    spawn_timer=rng.integers(0, 11 - ramp),
    move_speed=speed,
    move_timer=rng.integers(0, speed + 1),
    ramp_timer=rng.integers(-1, 101, N),
  )


def _start_seaquest(rng, state):
  """Anywhere, with any air, at any difficulty, in a crowd."""
  ramp = rng.integers(0, 20, N)
  speed = np.maximum(5 - ramp // 2, 2)
  x, y = rng.integers(0, 10, N), rng.integers(0, 9, N)
  values = {}
  for field, count in LISTS.items():
    # No two bullets in one cell: see the module's docstring.
    cells = np.stack([rng.choice(80, 6, replace=False) for _ in range(N)])
    rows = np.zeros(getattr(state, field).shape, np.int32)
    rows[:, :6, 0], rows[:, :6, 1] = cells % 10, cells // 10 + 1
    rows[:, :6, 2] = rng.integers(0, 2, (N, 6))
    if field == 'f_bullets':  # away, as the player cannot overtake them
      rows[:, :6, 2] = rows[:, :6, 0] >= x[:, None]
    if rows.shape[2] > 3:
      rows[:, :6, 3] = rng.integers(0, speed[:, None] + 1, (N, 6))
    if rows.shape[2] > 4:
      rows[:, :6, 4] = rng.integers(0, 11, (N, 6))
    values[count] = rng.integers(0, 5, N)
    # Zero beyond, as gymnax keeps them.
    here = np.arange(rows.shape[1]) < values[count][:, None]
    values[field] = rows * here[:, :, None]
  return state.replace(
    **values,
    oxygen=rng.integers(0, 201, N),
    diver_count=rng.integers(-1, 7, N),
    sub_x=x,
    sub_y=y,
    sub_or=np.where(x % 9 == 0, x == 9, rng.random(N) < 0.5),
    surface=y == 0,
    ramp_index=ramp,
    e_spawn_speed=20 - ramp,
    e_spawn_timer=rng.integers(0, 21 - ramp),
    d_spawn_timer=rng.integers(0, 31, N),
    move_speed=speed,
  )


START = {
  'breakout': _start_breakout,
  'space_invaders': _start_space_invaders,
  'freeway': _start_freeway,
  'asterix': _start_asterix,
  'seaquest': _start_seaquest,
}


def _choose(name, rng, game):
  """Actions that get somewhere, with some at random."""
  actions = rng.integers(0, 6, N)
  if name == 'breakout':
    ahead = game.ball_x + np.where(np.isin(game.ball_dir, (1, 2)), 1, -1)
    chase = np.select([ahead < game.pos, ahead > game.pos], [1, 3], 0)
    actions = np.where(rng.random(N) < 0.9, chase, actions)
  if name == 'freeway':
    actions = np.where(rng.random(N) < 0.8, 2, actions)
  return actions.astype(np.int32)


def _numpy(tree):
  return jax.tree.map(np.array, jax.device_get(tree))


def _pick(ended, new, old):
  return np.where(ended.reshape((N,) + (1,) * (old.ndim - 1)), new, old)


def _play(name, steps, seed=0):
  """Yields (state before, executed action, state after, timestep) of a game.

  N games side by side; one that ended starts anew.
  """
  _, reset, step = _game(name)
  rng = np.random.default_rng(seed)

  def start(t):
    state, _ = _numpy(reset(_keys(1000 * seed + 2 * t)))
    varied = START[name](rng, state.game)
    game = jax.tree.map(lambda x, y: y.astype(x.dtype), state.game, varied)
    return state._replace(game=game)

  before = start(0)
  for t in range(steps):
    actions = _choose(name, rng, before.game)
    after, timestep = _numpy(step(before, actions, _keys(2 * t + 1)))
    for n in range(N):
      pick = functools.partial(jax.tree.map, lambda leaf, n=n: leaf[n])
      yield (
        pick(before.game),
        int(after.last_action[n]),
        pick(after.game),
        pick(timestep),
      )
    before = after
    if timestep.terminated.any():
      pick = functools.partial(_pick, timestep.terminated)
      before = jax.tree.map(pick, start(t + 1), after)


def _spawned(before, after):
  """The thing that came up in Asterix, as the package has it; or None."""
  new = np.flatnonzero((before.entities[:, 4] == 0) & after.entities[:, 4])
  if not new.size:
    return None
  _, row, right, gold, _ = after.entities[new[0]].tolist()
  return [0 if right else 9, row, right, gold]


# Their packages' steps are slow, or there are many of them.
SLOW = ('asterix', 'freeway', 'seaquest')


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
    for name in minatar.GAMES
  ],
)
def test_transitions_equal_the_packages(name):
  game = Environment(name).env
  seen = dict(compared=0, rewards=0, ends=0, left_out=0)
  for before, action, after, timestep in _play(name, 60):
    _put(game, _fields(name, before))
    if name == 'freeway':
      speeds = after.cars[:, 3].tolist()

      def randomize_cars(initialize, speeds=speeds):
        for car, speed in zip(game.cars, speeds, strict=True):
          car[2:4] = [abs(speed), speed]

      game._randomize_cars = randomize_cars
    if name == 'asterix' and before.spawn_timer == 0:
      spawned = _spawned(before, after)
      if spawned is None and not before.entities[:, 4].all():
        seen['left_out'] += 1  # it met the player at once
        continue

      def spawn_entity(spawned=spawned):
        if spawned is not None:
          game.entities[spawned[1] - 1] = spawned

      game._spawn_entity = spawn_entity
    if name == 'seaquest' and 0 in (before.e_spawn_timer, before.d_spawn_timer):
      seen['left_out'] += 1
      continue
    # See the module's docstring of the two that are left out here and below.
    shoots = name == 'seaquest' and 0 in before.e_subs[: before.e_subs_count, 4]
    if shoots and timestep.reward:
      seen['left_out'] += 1
      continue
    reward, terminal = game.act(action)
    assert timestep.reward == reward
    assert timestep.terminated == terminal
    assert not timestep.truncated
    seen['compared'] += 1
    seen['rewards'] += bool(reward)
    seen['ends'] += terminal
    if name == 'seaquest' and terminal and after.diver_count == -1:
      continue
    np.testing.assert_array_equal(timestep.obs, game.state())
    _assert_same_state(name, game, _fields(name, after))
  assert seen['left_out'] < 0.3 * seen['compared']
  assert seen['rewards'] > 40 and seen['ends'] > 10


@pytest.mark.parametrize('name', minatar.GAMES)
def test_first_observation_is_the_packages(name):
  _, reset, _ = _game(name)
  state, obs = _numpy(reset(_keys(0)))
  env = Environment(name)
  env.seed(0)
  if name == 'freeway':
    cars = state.game.cars
    assert (cars[:, :, 0] == 0).all() and (cars[:, :, 2] > 0).all()
    want = []
    for n in range(N):
      _put(env.env, _fields(name, jax.tree.map(lambda x: x[n], state.game)))  # noqa: B023
      want.append(env.state())
  else:
    want = []
    for _ in range(30):
      env.reset()
      want.append(env.state())
  as_set = lambda all_obs: {np.asarray(one).tobytes() for one in all_obs}
  assert as_set(obs) == as_set(want)


def _assert_same_law(ours, theirs):
  """A chi-square test of two samples of cells."""
  cells = sorted(set(ours) | set(theirs))
  table = [[sample.count(cell) for cell in cells] for sample in (ours, theirs)]
  assert stats.chi2_contingency(table).pvalue > 1e-3


def _spawns(name, state, repeats):
  """States after one step, of N times `repeats` games in one state."""
  _, reset, step = _game(name)
  first, _ = _numpy(reset(_keys(0)))
  state = first._replace(
    game=first.game.replace(
      **{
        k: np.broadcast_to(
          np.asarray(v, getattr(first.game, k).dtype),
          getattr(first.game, k).shape,
        )
        for k, v in state.items()
      }
    )
  )
  for t in range(repeats):
    after, _ = _numpy(step(state, np.zeros(N, np.int32), _keys(t)))
    for n in range(N):
      yield jax.tree.map(lambda leaf: leaf[n], after.game)  # noqa: B023


@pytest.mark.parametrize('filled', [0, 5, 7, 8])
def test_asterix_spawns_as_the_package_does(filled):
  """Also with one row free, which gymnax may miss, and with none."""
  entities = np.zeros((8, 5), int)
  for i in range(filled):
    entities[i] = [3, i + 1, 1, 0, 1]
  ours, theirs = [], []
  state = dict(entities=entities, spawn_timer=0)
  for after in _spawns('asterix', state, 20):
    fields = _fields('asterix', after)
    assert fields['entities'][:filled] == [
      row[:4] for row in entities[:filled].tolist()
    ]
    new = [one for one in fields['entities'][filled:] if one is not None]
    assert len(new) == (filled < 8)
    ours.append(tuple(new[0]) if new else None)
    assert after.spawn_timer == after.spawn_speed - 1
  env = Environment('asterix')
  env.seed(0)
  for _ in range(len(ours)):
    env.reset()
    env.env.entities[:filled] = [row[:4] for row in entities[:filled].tolist()]
    env.env._spawn_entity()
    new = [one for one in env.env.entities[filled:] if one is not None]
    theirs.append(tuple(map(int, new[0])) if new else None)
  if filled == 8:
    assert set(ours) == set(theirs) == {None}
  else:
    _assert_same_law(ours, theirs)


def test_seaquest_spawns_as_the_package_does():
  """Neither may anything come from the other side of a row taken."""
  fish = [4, 3, 1, 5]
  state = dict(
    e_spawn_timer=0,
    d_spawn_timer=0,
    sub_y=8,
    surface=False,
    e_fish_count=1,
    e_fish=np.array([fish] + [[0] * 4] * 99),
  )
  ours, theirs, our_divers, their_divers = [], [], [], []
  for after in _spawns('seaquest', state, 20):
    fields = _fields('seaquest', after)
    kind = [('fish', *x[:3]) for x in fields['e_fish'][1:]]
    kind += [('sub', *x[:3], x[4]) for x in fields['e_subs']]
    ours.append(tuple(kind))
    our_divers.append(tuple(fields['divers'][0][:3]))
  game = Environment('seaquest').env
  game.random = np.random.RandomState(0)
  for _ in range(len(ours)):
    game.reset()
    game.e_fish = [list(fish)]
    game.sub_y, game.e_spawn_timer, game.d_spawn_timer = 8, 0, 0
    game.act(0)
    kind = [('fish', *x[:3]) for x in game.e_fish[1:]]
    kind += [('sub', *x[:3], x[4]) for x in game.e_subs]
    theirs.append(tuple(kind))
    their_divers.append(tuple(game.divers[0][:3]))
  assert () in ours
  assert not any(x[2] == 3 and not x[3] for xs in ours for x in xs)
  _assert_same_law(ours, theirs)
  _assert_same_law(our_divers, their_divers)


def test_freeway_draws_speeds_evenly():
  _, reset, _ = _game('freeway')
  cars = np.concatenate(
    [np.asarray(reset(_keys(seed))[0].game.cars) for seed in range(5)]
  )
  speeds, counts = np.unique(cars[:, :, 3], return_counts=True)
  assert speeds.tolist() == [-5, -4, -3, -2, -1, 1, 2, 3, 4, 5]
  assert stats.chisquare(counts).pvalue > 1e-3


class _Told:
  """Stands in for the package's generator: repeats an action when told."""

  def __init__(self):
    self.repeat = False

  def rand(self):
    return 0.0 if self.repeat else 1.0


def test_sticky_actions_are_the_packages():
  _, reset, step = _game('space_invaders')
  state, _ = reset(_keys(0))
  package = [Environment('space_invaders') for _ in range(N)]
  for one in package:
    one.random = _Told()
    one.reset()
  rng = np.random.default_rng(0)
  repeats, told_apart = 0, 0
  for t in range(40):
    actions = rng.integers(0, 6, N).astype(np.int32)
    last = np.asarray(state.last_action)
    assert t or (last == 0).all()
    state, timestep = step(state, actions, _keys(t))
    executed = np.asarray(state.last_action)
    assert ((executed == actions) | (executed == last)).all()
    repeats += ((executed != actions) & (actions != last)).sum()
    told_apart += (actions != last).sum()
    for n, one in enumerate(package):
      one.random.repeat = executed[n] != actions[n]
      reward, _ = one.act(actions[n])
      assert one.last_action == executed[n]
      assert reward == timestep.reward[n]
      np.testing.assert_array_equal(timestep.obs[n], one.state())
    if timestep.terminated.any():
      break
  assert t > 10
  # Beyond four standard deviations only one time in 16,000.
  assert abs(repeats - 0.1 * told_apart) < 4 * (0.09 * told_apart) ** 0.5


@pytest.mark.parametrize('name', minatar.GAMES)
def test_presets(name):
  """The record of each; and the minimal actions are the package's."""
  package = Environment(name)
  paper = minatar.make_minatar(name, 'paper')
  assert paper.num_actions == package.num_actions() == 6
  assert paper.max_episode_steps is None
  small = minatar.make_minatar(name, 'gymnax')
  assert small.num_actions == len(package.minimal_action_set())
  assert small.max_episode_steps == (2500 if name == 'freeway' else 1000)
  for env in (paper, small):
    assert env.obs_dtype == np.dtype(bool)
    assert env.obs_shape == tuple(package.state_shape())
  module = importlib.import_module('gymnax')
  gymnax_env, _ = module.make(name.title().replace('_', '') + '-MinAtar')
  assert gymnax_env.action_set.tolist() == package.minimal_action_set()


def test_gymnax_preset_acts_without_stickiness():
  """Left and right move the paddle, at every step."""
  env = minatar.make_minatar('breakout', 'gymnax')
  state, obs = jax.jit(jax.vmap(env.reset))(_keys(0))
  step = jax.jit(jax.vmap(env.step))
  actions = jax.random.randint(jax.random.key(0), (5, N), 0, 3)
  paddle = np.full(N, 4)
  for t in range(5):
    state, timestep = step(state, actions[t], _keys(t))
    paddle += np.array([0, -1, 1])[actions[t]]
    np.testing.assert_array_equal(
      np.asarray(timestep.obs)[:, 9, :, 0].argmax(1), paddle
    )


@pytest.mark.parametrize('preset', minatar.PRESETS)
def test_planes_of_noise_leave_the_game_as_it_is(preset):
  plain, noisy = (minatar.make_minatar('breakout', preset, n) for n in (0, 3))
  assert noisy.obs_shape == (10, 10, 4 + 3)

  @jax.jit
  def play(keys):
    """Observations of both from reset on, each [T, N, 10, 10, C]."""

    def one(env):
      state, first = jax.vmap(env.reset)(keys[0])

      def step(state, keys):
        state, timestep = jax.vmap(env.step)(state, jnp.ones(N, int), keys)
        return state, timestep.obs

      return jnp.concatenate(
        [first[None], jax.lax.scan(step, state, keys[1:])[1]]
      )

    return one(plain), one(noisy)

  board, both = play(jax.random.split(jax.random.key(0), (6, N)))
  assert both.dtype == noisy.obs_dtype
  np.testing.assert_array_equal(both[..., :4], board)
  noise = np.asarray(both[..., 4:])
  # Of 115,200 cells a tenth, by six standard deviations.
  assert noise.mean() == pytest.approx(0.1, abs=6 * (0.09 / noise.size) ** 0.5)
  # Anew in each step, in each environment and on each plane.
  for axis in (0, 1, 4):
    one, other = np.moveaxis(noise, axis, 0)[:2]
    assert np.mean(one & other) == pytest.approx(0.01, abs=0.005)


def test_planes_of_noise_are_counted():
  with pytest.raises(ValueError, match='noise_channels=-1 must be 0 or more'):
    minatar.make_minatar('breakout', 'paper', -1)


@pytest.mark.parametrize('name', ['breakout', 'freeway'])
def test_no_cap_under_the_rules_of_the_paper(name):
  """Beyond gymnax's own, an episode goes on; Freeway's end is the game's."""
  _, reset, step = _game(name)
  state, _ = reset(_keys(0))
  at = lambda time: state._replace(
    game=state.game.replace(time=np.full(N, time, np.int32))
  )
  for time in (998, 999, 1000, 2498, 2499, 2500, 10**6):
    if name == 'freeway' and time > 2500:
      continue
    _, timestep = step(at(time), jnp.zeros(N, jnp.int32), _keys(0))
    assert not timestep.truncated.any()
    want = name == 'freeway' and time == 2500
    assert (timestep.terminated == want).all()


@pytest.mark.parametrize(
  'spelling', ['space_invaders', 'SpaceInvaders', 'SpaceInvaders-MinAtar']
)
def test_spellings(spelling):
  assert minatar.resolve_minatar(spelling) == 'space_invaders'


def test_unknown_names():
  with pytest.raises(ValueError, match='closest are: breakout'):
    minatar.make_minatar('brekout', 'paper')
  with pytest.raises(ValueError, match='there are: asterix'):
    minatar.make_minatar('xyz', 'paper')
  with pytest.raises(ValueError, match="preset must be .* 'papre'"):
    minatar.make_minatar('breakout', 'papre')
