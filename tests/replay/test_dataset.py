"""Data sets: what is kept, what is refused, and where they come from."""

import os
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.envs.car_on_hill import HIGH, LOW, make_car_on_hill
from siamrl.envs.tabular import chain, make_tabular
from siamrl.replay import dataset

SIZE = 6


def make_arrays(**changes):
  rng = np.random.default_rng(0)
  arrays = {
    'observations': rng.standard_normal((SIZE, 2)).astype(np.float32),
    'actions': np.array([0, 1, 2, 0, 1, 2]),
    'rewards': rng.standard_normal(SIZE),
    'next_observations': rng.standard_normal((SIZE, 2)).astype(np.float32),
    'terminals': np.array([0, 0, 1, 0, 0, 0], bool),
    'timeouts': np.array([0, 0, 0, 0, 1, 0], bool),
  }
  return arrays | changes


def write(path, **changes):
  arrays = make_arrays(**changes)
  arrays = {key: value for key, value in arrays.items() if value is not None}
  np.savez(path, **arrays)
  return path


def load_random(tmp_path, **changes):
  return dataset.load_dataset(write(tmp_path / 'data.npz', **changes))


def test_there_and_back(tmp_path):
  data = load_random(tmp_path)
  path = tmp_path / 'again.npz'
  dataset.save_dataset(path, data)
  again = dataset.load_dataset(path, num_actions=3)
  for key, wanted in make_arrays().items():
    got = getattr(again, key)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    np.testing.assert_array_equal(got, getattr(data, key))
  assert again.size == SIZE
  kinds = [leaf.dtype for leaf in again]
  assert kinds == [np.float32, np.int32, np.float32, np.float32, bool, bool]
  with zipfile.ZipFile(path) as file:
    assert sorted(file.namelist()) == sorted(
      f'{key}.npy' for key in make_arrays()
    )


@pytest.mark.parametrize('dtype', [np.uint8, bool, np.float32, np.float64])
def test_types_of_observations(tmp_path, dtype):
  obs = np.arange(SIZE * 4).reshape(SIZE, 2, 2).astype(dtype)
  data = load_random(tmp_path, observations=obs, next_observations=obs)
  wanted = np.float32 if dtype == np.float64 else dtype
  assert data.observations.dtype == data.next_observations.dtype == wanted
  np.testing.assert_array_equal(data.observations, obs)


def test_values_go_on_beyond_a_timeout(tmp_path):
  data = load_random(tmp_path)
  indices = np.array([4, 2, 2])
  for arrays in (data, jax.tree.map(jnp.asarray, data)):
    batch = arrays.batch(indices, 0.9)
    np.testing.assert_allclose(batch.discount_t, [0.9, 0, 0])
    np.testing.assert_array_equal(batch.obs_tm1, data.observations[indices])
    np.testing.assert_array_equal(batch.obs_t, data.next_observations[indices])
    np.testing.assert_array_equal(batch.a_tm1, [1, 2, 2])
    np.testing.assert_array_equal(batch.r_t, data.rewards[indices])
    assert batch.discount_t.dtype == np.float32 and batch.weight is None
  whole = jax.jit(lambda data, discount: data.batch(slice(None), discount))(
    data, 0.9
  )
  np.testing.assert_allclose(whole.discount_t, [0.9, 0.9, 0, 0.9, 0.9, 0.9])


def test_what_may_be_missing_or_more(tmp_path):
  infos = {'infos/qpos': np.zeros(3), 'metadata': np.array(['anything'])}
  data = load_random(tmp_path, timeouts=None, **infos)
  assert not data.timeouts.any()


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'rewards': None}, 'rewards: is missing'),
    ({'next_observations': None}, 'next_observations: is missing'),
    ({'actions': None}, 'actions: is missing'),
    ({'actions': np.zeros((SIZE, 1), int)}, r'actions: must be \[N\]'),
    ({'actions': np.zeros(0, int)}, r'actions: must be \[N\] with N >= 1'),
    ({'actions': np.zeros(SIZE)}, 'actions: must be integers, got float64'),
    ({'actions': np.array([0, 1, -1, 0, 0, 0])}, r'got -1 at 2'),
    ({'actions': np.array([0, 1, 2, 0, 9, 0])}, r'\[0, 2\], got 9 at 4'),
    ({'rewards': np.zeros(SIZE - 1)}, r'rewards: must be \[6\] as actions'),
    ({'rewards': np.array(list('abcdef'))}, 'rewards: must be numbers'),
    (
      {'rewards': np.array([0, 0, np.nan, 0, 0, 0])},
      r'rewards: must be finite, got nan at \[2\]',
    ),
    ({'rewards': np.full(SIZE, 1e300)}, r'rewards: must be finite'),
    (
      {'observations': np.full((SIZE, 2), np.inf, np.float32)},
      r'observations: must be finite, got inf at \[0, 0\]',
    ),
    ({'observations': np.zeros((5, 2))}, r'observations: must lead with \[6\]'),
    (
      {'next_observations': np.zeros((SIZE, 3), np.float32)},
      'next_observations: must be float32',
    ),
    (
      {'next_observations': np.zeros((SIZE, 2), np.uint8)},
      'next_observations: must be float32 .* as observations, got uint8',
    ),
    ({'terminals': np.full(SIZE, 2)}, 'terminals: must be bool'),
    ({'timeouts': np.zeros((SIZE, 1))}, r'timeouts: must be \[6\]'),
    ({'rewards': np.full(SIZE, None)}, 'rewards: .*pickle'),
    (
      {
        'observations': np.full((SIZE, 2), 2**40),
        'next_observations': np.full((SIZE, 2), 2**40),
      },
      'observations: must fit into int32',
    ),
  ],
)
def test_no_data_set(tmp_path, changes, message):
  path = write(tmp_path / 'bad.npz', **changes)
  with pytest.raises(ValueError, match=message) as error:
    dataset.load_dataset(path, num_actions=3)
  assert str(error.value).startswith(f'{path}: ')


def test_files_that_hold_something_else(tmp_path):
  path = tmp_path / 'x.npz'
  path.write_bytes(b'no archive')
  with pytest.raises(ValueError, match=str(path)):
    dataset.load_dataset(path)
  with open(path, 'wb') as file:
    np.save(file, np.zeros(3))
  with pytest.raises(ValueError, match='is not in the .npz format'):
    dataset.load_dataset(path)
  write(path)
  path.write_bytes(path.read_bytes()[:-300])
  with pytest.raises(ValueError, match=str(path)):
    dataset.load_dataset(path)
  path.write_bytes(b'')
  with pytest.raises(ValueError, match=str(path)):
    dataset.load_dataset(path)
  with pytest.raises(FileNotFoundError, match='nowhere'):
    dataset.load_dataset(tmp_path / 'nowhere.npz')


def test_damaged_archives(tmp_path):
  """Whichever bit is another: the data, or a ValueError."""
  path = tmp_path / 'x.npz'
  arrays = make_arrays()
  np.savez_compressed(path, **arrays)
  whole = path.read_bytes()
  refused = []
  for place in range(len(whole)):
    content = bytearray(whole)
    content[place] ^= 1
    path.write_bytes(content)
    try:
      data = dataset.load_dataset(path)
    except ValueError as error:
      assert str(error).startswith(f'{path}: ')
      refused.append(str(error))
    except OSError:  # told to read from nowhere
      pass
    else:
      np.testing.assert_array_equal(data.actions, arrays['actions'])
  for words in ('while decompressing', 'compression method', 'encrypted'):
    assert any(words in line for line in refused), words


def test_nothing_is_lost_when_writing(tmp_path, monkeypatch):
  data = load_random(tmp_path)
  path = tmp_path / 'data.npz'
  before = path.read_bytes()
  with pytest.raises(FileExistsError, match='overwrite=True'):
    dataset.save_dataset(path, data)
  with pytest.raises(ValueError, match='must end in .npz'):
    dataset.save_dataset(tmp_path / 'data', data)
  with pytest.raises(ValueError, match='rewards: must be finite'):
    dataset.save_dataset(
      path, data._replace(rewards=np.full(SIZE, np.nan)), overwrite=True
    )
  save = np.savez

  def full(file, **arrays):
    save(file, **arrays)
    raise OSError('no space left')

  monkeypatch.setattr(np, 'savez', full)
  with pytest.raises(OSError, match='no space left'):
    dataset.save_dataset(path, data, overwrite=True)
  monkeypatch.undo()
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]
  other = data._replace(rewards=data.rewards + 1)
  dataset.save_dataset(path, other, overwrite=True)
  np.testing.assert_array_equal(
    dataset.load_dataset(path).rewards, other.rewards
  )


CHAIN = make_tabular(chain(4, slip=0.1), max_episode_steps=7)


def test_collected_steps_follow_each_other():
  data = dataset.collect(CHAIN, jax.random.key(0), env_steps=600, num_envs=3)
  assert data.size == 600
  ended = data.terminals | data.timeouts
  first = np.roll(ended, 1)
  # What follows an end is a fresh episode; anything else goes on.
  starts, last = data.observations[first], data.next_observations[:-1]
  np.testing.assert_array_equal(starts, [[1, 0, 0, 0]] * len(starts))
  going = ~ended[:-1]
  np.testing.assert_array_equal(data.observations[1:][going], last[going])
  np.testing.assert_array_equal(
    data.terminals, data.next_observations[:, 3] == 1
  )
  # The data of each environment end somewhere.
  assert ended[[199, 399, 599]].all()
  lengths = np.diff(np.flatnonzero(first))
  assert lengths.max() == 7 and data.timeouts.sum() > 3
  assert 0.4 < data.actions.mean() < 0.6
  for got, kind in zip(
    data,
    (np.float32, np.int32, np.float32, np.float32, bool, bool),
    strict=True,
  ):
    assert got.dtype == kind


def test_whole_episodes():
  env = make_tabular(chain(4), max_episode_steps=7)
  right = lambda obs, key: jnp.ones(len(obs), jnp.int32)
  data = dataset.collect(env, jax.random.key(0), episodes=5, policy=right)
  assert data.size == 15 and not data.timeouts.any()
  np.testing.assert_array_equal(data.terminals, [0, 0, 1] * 5)
  np.testing.assert_array_equal(data.rewards, [0, 0, 1] * 5)
  left = lambda obs, key: jnp.zeros(len(obs), jnp.int32)
  data = dataset.collect(env, jax.random.key(0), episodes=2, policy=left)
  np.testing.assert_array_equal(data.timeouts, [0, 0, 0, 0, 0, 0, 1] * 2)
  assert not data.terminals.any()


def test_collecting_is_a_function_of_its_key(tmp_path):
  one, two, other = (
    dataset.collect(CHAIN, jax.random.key(seed), episodes=20)
    for seed in (0, 0, 1)
  )
  jax.tree.map(np.testing.assert_array_equal, one, two)
  assert one.size != other.size or (one.actions != other.actions).any()
  dataset.save_dataset(tmp_path / 'chain.npz', one)
  again = dataset.load_dataset(tmp_path / 'chain.npz', CHAIN.num_actions)
  jax.tree.map(np.testing.assert_array_equal, one, again)


def test_car_on_hill_both_ways():
  """Episodes of random actions, and transitions from all over."""
  data = dataset.collect(make_car_on_hill(), jax.random.key(0), episodes=50)
  ended = data.terminals | data.timeouts
  assert ended.sum() == 50
  np.testing.assert_array_equal(data.observations[0], [-0.5, 0])
  np.testing.assert_array_equal(
    data.observations[1:][ended[:-1]], [[-0.5, 0]] * 49
  )
  np.testing.assert_array_equal(data.terminals, data.rewards != 0)
  anywhere = make_car_on_hill(low=LOW, high=HIGH, max_episode_steps=1)
  data = dataset.collect(
    anywhere, jax.random.key(0), env_steps=2_000, num_envs=500
  )
  assert (data.terminals | data.timeouts).all() and data.terminals.any()
  assert len(np.unique(data.observations, axis=0)) == 2_000
  assert (np.abs(data.observations) <= HIGH).all()
  np.testing.assert_allclose(data.observations.mean(0), 0, atol=0.15)


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({}, 'one of env_steps and episodes'),
    ({'env_steps': 5, 'episodes': 5}, 'one of env_steps and episodes'),
    ({'env_steps': 5, 'num_envs': 2}, 'env_steps=5 must be a positive multip'),
    ({'env_steps': 0}, 'env_steps=0 must be'),
    ({'env_steps': 4, 'num_envs': 0}, 'num_envs=0 must be'),
    ({'episodes': 0}, 'episodes=0 must be'),
  ],
)
def test_arguments_that_do_not_fit(arguments, message):
  with pytest.raises(ValueError, match=message):
    dataset.collect(CHAIN, jax.random.key(0), **arguments)


def test_whole_episodes_need_a_cap():
  with pytest.raises(ValueError, match='a cap on their steps'):
    dataset.collect(make_tabular(chain(3)), jax.random.key(0), episodes=1)


def test_continuous_actions_are_not_collected():
  environment = CHAIN._replace(num_actions=0, action_dim=2)
  with pytest.raises(ValueError, match='continuous, of 2 numbers'):
    dataset.collect(environment, jax.random.key(0), env_steps=5)


def test_without_minari(monkeypatch):
  monkeypatch.setitem(sys.modules, 'minari', None)
  with pytest.raises(ImportError, match=r'pip install siamrl\[minari\]'):
    dataset.from_minari('chain/random-v0')


@pytest.fixture
def make_minari(tmp_path, monkeypatch):
  """Stores a data set of three episodes; one of them ends without a flag."""
  minari = pytest.importorskip('minari')
  spaces = pytest.importorskip('gymnasium').spaces
  buffers = pytest.importorskip('minari.data_collector')
  monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path))

  def make(name, action_space=None, observation_space=None):
    rng = np.random.default_rng(0)
    action_space = action_space or spaces.Discrete(3, start=-1)
    observation_space = observation_space or spaces.Box(-1, 1, (2,), np.float32)
    observation_space.seed(0)
    action_space.seed(0)
    episodes = []
    for number, (length, terminated, truncated) in enumerate(
      ((3, True, False), (4, False, True), (2, False, False))
    ):
      flags = np.zeros((2, length), bool)
      flags[:, -1] = terminated, truncated
      observations = [observation_space.sample() for _ in range(length + 1)]
      if isinstance(observation_space, spaces.Dict):
        observations = {'x': [sample['x'] for sample in observations]}
      episodes.append(
        buffers.EpisodeBuffer(
          id=number,
          observations=observations,
          actions=[action_space.sample() for _ in range(length)],
          rewards=list(rng.standard_normal(length)),
          terminations=list(flags[0]),
          truncations=list(flags[1]),
        )
      )
    minari.create_dataset_from_buffers(
      name,
      episodes,
      action_space=action_space,
      observation_space=observation_space,
    )
    return episodes

  return make


def test_from_minari(make_minari, tmp_path):
  episodes = make_minari('tests/small-v0')
  data = dataset.from_minari('tests/small-v0')
  obs = [np.array(episode.observations) for episode in episodes]
  np.testing.assert_array_equal(
    data.observations, np.concatenate([o[:-1] for o in obs])
  )
  np.testing.assert_array_equal(
    data.next_observations, np.concatenate([o[1:] for o in obs])
  )
  actions = np.concatenate([episode.actions for episode in episodes])
  np.testing.assert_array_equal(data.actions, actions + 1)
  np.testing.assert_allclose(
    data.rewards, np.concatenate([e.rewards for e in episodes]), rtol=1e-6
  )
  np.testing.assert_array_equal(data.terminals, [0, 0, 1] + [0] * 6)
  np.testing.assert_array_equal(data.timeouts, [0] * 6 + [1, 0, 1])
  folder = tmp_path / 'tests' / 'small-v0'
  for path in (folder, folder / 'data', str(folder)):
    jax.tree.map(np.testing.assert_array_equal, data, dataset.from_minari(path))
  with pytest.raises(FileNotFoundError):
    dataset.from_minari('tests/other-v0')


def test_minari_for_others(make_minari):
  spaces = pytest.importorskip('gymnasium').spaces
  box = spaces.Box(-1, 1, (2,), np.float32)
  make_minari('tests/continuous-v0', action_space=box)
  with pytest.raises(ValueError, match='actions: must be discrete'):
    dataset.from_minari('tests/continuous-v0')
  make_minari('tests/dict-v0', observation_space=spaces.Dict({'x': box}))
  with pytest.raises(ValueError, match='observations: must be arrays'):
    dataset.from_minari('tests/dict-v0')


@pytest.mark.parametrize(
  'dtype', ['>f4', '>f8', '<f2', np.longdouble, '>i2', '<u2']
)
def test_types_of_other_machines(tmp_path, dtype):
  """Numbers in another byte order, or in types that JAX has not."""
  obs = np.asfortranarray(np.arange(SIZE * 4).reshape(SIZE, 2, 2).astype(dtype))
  data = load_random(
    tmp_path,
    observations=obs,
    next_observations=obs,
    rewards=np.arange(SIZE).astype('>f8'),
    actions=np.array([0, 1, 2, 0, 1, 2], '>i8'),
    terminals=np.zeros(SIZE, '>f4'),
  )
  batch = jax.tree.map(jnp.asarray, data).batch(slice(None), 0.9)
  np.testing.assert_array_equal(batch.obs_tm1, obs.astype(float))
  np.testing.assert_array_equal(batch.r_t, np.arange(SIZE))
  np.testing.assert_array_equal(batch.a_tm1, [0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize('key', make_arrays())
@pytest.mark.parametrize(
  'dtype', ['S3', 'U2', 'm8[s]', 'M8[s]', 'c8', 'V4', [('x', 'f4')], 'O']
)
def test_what_is_no_number(tmp_path, key, dtype):
  shape = make_arrays()[key].shape
  changes = {key: np.zeros(shape, dtype)}
  if key == 'observations':
    changes['next_observations'] = changes[key]
  path = write(tmp_path / 'bad.npz', **changes)
  with pytest.raises(ValueError) as error:
    dataset.load_dataset(path)
  line = str(error.value)
  assert line.startswith(f'{path}: ') and f'{key}: ' in line


def test_minari_that_is_not_here(monkeypatch, tmp_path):
  pytest.importorskip('minari')
  monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path))
  with pytest.raises(
    FileNotFoundError, match='minari download a/b-c/d-v2 fetches it'
  ):
    dataset.from_minari('a/b-c/d-v2')
  for name in (tmp_path / 'nowhere', 'nonsense', '../x'):
    with pytest.raises(FileNotFoundError, match='minari list remote') as error:
      dataset.from_minari(name)
    assert 'minari download' not in str(error.value)


def test_minari_that_is_damaged(make_minari, tmp_path):
  make_minari('tests/small-v0')
  folder = tmp_path / 'tests' / 'small-v0' / 'data'
  metadata = folder / 'metadata.json'
  table = folder / 'main_data.hdf5'
  texts = metadata.read_text(), table.read_bytes()
  for path, content in (
    (metadata, b''),
    (metadata, b'{}'),
    (metadata, b'[1, 2]'),
    (metadata, texts[0].replace('Discrete', 'Discreet').encode()),
    (table, b''),
    (table, texts[1][:1_000]),
    (table, texts[1].replace(b'terminations', b'terminatoins')),
  ):
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
      dataset.from_minari(folder)
    assert str(error.value).startswith(f'{folder}: not a data set: ')
    assert '\n' not in str(error.value)
    metadata.write_text(texts[0])
    table.write_bytes(texts[1])
  metadata.unlink()
  os.mkfifo(metadata)
  with pytest.raises(ValueError, match='metadata.json is not a regular file'):
    dataset.from_minari(folder)


@pytest.mark.parametrize('n_step', [1, 2, 3, 9])
def test_sums_of_rewards_end_with_their_episodes(n_step):
  """Beside a loop; episodes are steps 0 to 2, 3 and 4, and 5."""
  data = dataset.Dataset(**make_arrays())
  batch = data.multi_step(n_step, 0.5)
  lasts = [2, 2, 2, 4, 4, 5]
  for t, end in enumerate(lasts):
    last = min(t + n_step - 1, end)
    rewards = data.rewards[t : last + 1]
    total = sum(0.5**k * reward for k, reward in enumerate(rewards))
    np.testing.assert_allclose(batch.r_t[t], total, rtol=1e-6)
    # Only the step 2 is terminal.
    assert batch.discount_t[t] == (0 if last == 2 else 0.5 ** len(rewards))
    np.testing.assert_array_equal(batch.obs_t[t], data.next_observations[last])
  np.testing.assert_array_equal(batch.obs_tm1, data.observations)
  np.testing.assert_array_equal(batch.a_tm1, data.actions)
