"""Names, and laws that hold for every environment that is offered."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.envs import registry
from siamrl.envs.tabular import chain, make_tabular

pytest.importorskip('gymnax')

N = 8
# They compile for long, and test_minatar.py plays them anyway.
_SLOW = {
  f'minatar_{game}{rules}'
  for game in ('asterix', 'freeway', 'seaquest')
  for rules in ('', '_gymnax')
}
NAMES = [
  pytest.param(name, marks=pytest.mark.slow) if name in _SLOW else name
  for name in registry.ENVIRONMENTS
]
CAPS = {
  'cartpole': 500,
  'cartpole_v0': 200,
  'acrobot': 500,
  'mountain_car': 200,
  'chain': 200,
  'grid': 100,
  'four_rooms': 1000,
  'car_on_hill': 100,
  'slippery_chain': 200,
  'pendulum': 200,
  'mountain_car_continuous': 999,
  'reacher_gymnax': 100,
  'swimmer_gymnax': 500,
} | {
  f'minatar_{game}_gymnax': 2500 if game == 'freeway' else 1000
  for game in ('asterix', 'breakout', 'freeway', 'seaquest', 'space_invaders')
}


@functools.cache
def _made(name):
  """The environment, with its functions compiled for N at once."""
  env = registry.ENVIRONMENTS[name]()
  return env, jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step))


def _keys(seed):
  return jax.random.split(jax.random.key(seed), N)


def _idle(env):
  """An action for each of N: the first, or the middle."""
  shape = (N, env.action_dim) if env.action_dim else (N,)
  return np.zeros(shape, np.float32 if env.action_dim else np.int32)


def _pick(ended, new, old):
  return np.where(ended.reshape((N,) + (1,) * (old.ndim - 1)), new, old)


def _play(name, steps, seed=0):
  """Yields N timesteps in each of `steps`; what ended starts anew."""
  env, reset, step = _made(name)
  rng = np.random.default_rng(seed)
  state, _ = reset(_keys(seed))
  for t in range(steps):
    if env.action_dim:
      actions = rng.uniform(-1, 1, (N, env.action_dim)).astype(np.float32)
    else:
      actions = rng.integers(0, env.num_actions, N).astype(np.int32)
    state, timestep = step(state, actions, _keys(seed + 2 * t + 1))
    yield jax.device_get(timestep)
    ended = np.asarray(timestep.terminated | timestep.truncated)
    if ended.any():
      fresh, _ = reset(_keys(seed + 2 * t + 2))
      state = jax.tree.map(functools.partial(_pick, ended), fresh, state)


def _at(state, time):
  """The state with another clock."""
  if hasattr(state, 'game'):
    return state._replace(game=_at(state.game, time))
  replace = getattr(state, 'replace', None) or state._replace
  return replace(time=np.full(N, time, np.int32))


@pytest.mark.parametrize('name', NAMES)
def test_the_record_tells_the_truth(name):
  """Of shapes and kinds, under jit and vmap; and states fit into one scan."""
  env, reset, step = _made(name)
  state, obs = reset(_keys(0))
  assert (env.action_dim > 0) == (env.num_actions == 0)
  assert (env.action_dim > 0) == (name in registry.CONTINUOUS)
  after, timestep = step(state, _idle(env), _keys(1))
  for one in (obs, timestep.obs):
    assert one.shape == (N, *env.obs_shape)
    assert one.dtype == env.obs_dtype
  assert isinstance(env.obs_dtype, np.dtype)
  for field, dtype in (
    ('reward', jnp.float32),
    ('terminated', bool),
    ('truncated', bool),
  ):
    assert getattr(timestep, field).shape == (N,)
    assert getattr(timestep, field).dtype == dtype
  kinds = lambda tree: jax.tree.map(
    lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree
  )
  assert kinds(after) == kinds(state)


@pytest.mark.parametrize('name', NAMES)
def test_play_goes_on_and_is_never_both_ended_and_cut(name):
  timesteps = list(_play(name, 150))
  for timestep in timesteps:
    assert not (timestep.terminated & timestep.truncated).any()
    assert np.isfinite(timestep.reward).all()
  obs = np.stack([timestep.obs for timestep in timesteps])
  assert len(np.unique(obs.reshape(len(obs) * N, -1), axis=0)) > 4


@pytest.mark.parametrize('name', NAMES)
def test_the_same_keys_give_the_same_numbers(name):
  one, two, other = (list(_play(name, 12, seed)) for seed in (0, 0, 5))
  jax.tree.map(np.testing.assert_array_equal, one, two)
  assert any((a.obs != b.obs).any() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize('name', NAMES)
def test_cut_exactly_at_the_cap(name):
  """Or, where there is none, not for a good while."""
  env, reset, step = _made(name)
  assert env.max_episode_steps == CAPS.get(name)
  first, _ = reset(_keys(0))
  cap = env.max_episode_steps
  for time in (cap - 2, cap - 1) if cap else (99, 999, 2499, 10**6):
    # An episode that ends itself never gets there.
    state = _at(first, time)
    _, timestep = step(state, _idle(env), _keys(1))
    cut = cap is not None and time == cap - 1
    np.testing.assert_array_equal(
      timestep.truncated, cut & ~np.asarray(timestep.terminated)
    )
    assert cap is None or not timestep.terminated.any()


@pytest.mark.parametrize('name', ['mountain_car', 'slippery_chain', 'acrobot'])
def test_whole_episodes_are_cut_at_the_cap(name):
  """Counted from the reset, again and again."""
  env, reset, step = _made(name)
  state, _ = reset(_keys(0))
  hold = np.zeros(N, np.int32)
  for t in range(1, env.max_episode_steps + 1):
    state, timestep = step(state, hold, _keys(t))
    if name == 'slippery_chain' and timestep.terminated.any():
      pytest.fail('choose another seed')
    assert (timestep.truncated == (t == env.max_episode_steps)).all()


@pytest.mark.parametrize(
  'spelling, name',
  [
    ('cartpole', 'cartpole'),
    ('CartPole-v1', 'cartpole'),
    ('MountainCar-v0', 'mountain_car'),
    ('DeepSea-bsuite', 'deep_sea'),
    ('Catch', 'catch'),
    ('MinAtar-Breakout', 'minatar_breakout'),
    ('MinAtar/SpaceInvaders-v0', 'minatar_space_invaders'),
    ('SpaceInvaders-MinAtar', 'minatar_space_invaders_gymnax'),
    ('random MDP', 'random_mdp'),
    ('Pendulum-v1', 'pendulum'),
    ('MountainCarContinuous-v0', 'mountain_car_continuous'),
    ('Reacher-misc', 'reacher_gymnax'),
  ],
)
def test_spellings(spelling, name):
  assert registry.resolve_environment(spelling) == name


@pytest.mark.parametrize('name', registry.ENVIRONMENTS)
def test_every_name_is_its_own(name):
  assert registry.resolve_environment(name) == name


@pytest.mark.parametrize(
  'name, message',
  [
    ('cartpol', "no environment 'cartpol'; the closest are: cartpole"),
    ('minatar_brekout', 'closest are: minatar_breakout'),
    ('qqq', "no environment 'qqq'$"),
    ('', "no environment ''$"),
    ('LunarLander-v3', 'is LunarLander-v3 of Gymnasium, which is not JAX'),
    ('LunarLander-v99', 'is LunarLander-v3 of Gymnasium, which is not JAX'),
    (
      'halfcheetah',
      r'is HalfCheetah-v\d of Gymnasium, .*control --environment=HalfC',
    ),
    ('Hopper-v4', 'is Hopper-v4 of Gymnasium'),
    ('reacher', r'is Reacher-v\d .*small version is: reacher_gymnax'),
  ],
)
def test_unknown_names(name, message):
  with pytest.raises(ValueError, match=message):
    registry.resolve_environment(name)


@pytest.mark.parametrize(
  'name, known, continuous, launcher',
  [
    ('Pendulum-v1', 'pendulum', True, 'control'),
    ('MountainCarContinuous', 'mountain_car_continuous', True, 'control'),
    ('CartPole', 'cartpole', False, 'classic'),
    ('MinAtar-Breakout', 'minatar_breakout', False, 'classic'),
  ],
)
def test_each_kind_of_actions_has_its_launcher(
  name, known, continuous, launcher
):
  for kind in (None, continuous):
    assert registry.resolve_environment(name, continuous=kind) == known
  kind = 'continuous' if continuous else 'discrete'
  with pytest.raises(ValueError) as error:
    registry.resolve_environment(name, continuous=not continuous)
  assert str(error.value) == (
    f'{known} has {kind} actions: python -m experiments.{launcher} '
    f'--environment={known}'
  )


@pytest.mark.parametrize(
  'name, game, small',
  [
    ('pong', 'pong', None),
    ('ALE/MsPacman-v5', 'ms_pacman', None),
    ('Breakout', 'breakout', 'minatar_breakout'),
  ],
)
def test_atari_has_its_own_launcher(name, game, small):
  pytest.importorskip('ale_py')
  with pytest.raises(ValueError) as error:
    registry.resolve_environment(name)
  text = str(error.value)
  assert f'python -m experiments.atari --game={game}' in text
  assert (small or 'sister') in text if small else 'sister' not in text


def test_without_the_emulator(monkeypatch):
  def missing(name):
    raise ImportError

  monkeypatch.setattr(registry.ale, 'resolve_game', missing)
  with pytest.raises(ValueError, match="no environment 'pongo'"):
    registry.resolve_environment('pongo')


def test_registering_ones_own(monkeypatch):
  monkeypatch.setattr(registry, 'ENVIRONMENTS', dict(registry.ENVIRONMENTS))
  monkeypatch.setattr(registry, 'CONTINUOUS', set(registry.CONTINUOUS))
  make = lambda: make_tabular(chain(50))
  registry.register('long_chain', make)
  assert registry.resolve_environment('LongChain') == 'long_chain'
  assert registry.ENVIRONMENTS['long_chain']().obs_shape == (50,)
  registry.register('walk-v1', make)
  assert registry.resolve_environment('walk-v1') == 'walk-v1'
  registry.register('swing', make, continuous=True)
  assert registry.resolve_environment('Swing', continuous=True) == 'swing'
  assert {'swing'} == registry.CONTINUOUS & {'swing', 'walk-v1', 'long_chain'}
  for taken in ('long_chain', 'Long-Chain', 'CARTPOLE', 'Breakout-MinAtar'):
    with pytest.raises(ValueError, match=re.escape(f'{taken!r} is taken')):
      registry.register(taken, make)
  with pytest.raises(ValueError, match='needs letters'):
    registry.register('--', make)
