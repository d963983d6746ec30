"""Prioritized replays in host memory, against lists of transitions."""

import json
from typing import Any

import numpy as np
import pytest

from siamrl.replay import segments
from siamrl.replay.host import HostReplay
from siamrl.replay.host_prioritized import PrioritizedHostReplay
from tests.replay.test_host import _Pair, _all_valid, _frames, _rows

ALPHA, EPSILON = 0.6, 1e-6


class _Known(_Pair):
  """A prioritized replay, with a list of what can be drawn, and priorities."""

  def __init__(self, alpha=ALPHA, beta=lambda env_steps: 0.5, **settings):
    super().__init__(**settings)
    self.numbers_of: dict[str, Any] = dict(
      alpha=alpha, beta=beta, epsilon=EPSILON
    )
    self.replay: Any = PrioritizedHostReplay(**self.settings, **self.numbers_of)
    self.alpha, self.largest = alpha, 1.0
    self.priorities: dict[tuple, float] = {}

  def _look(self) -> None:
    """New transitions get the largest priority so far; lost ones have none."""
    self.priorities = {
      row: self.priorities.get(row, self.largest) for row in self.expected()
    }

  def start(self) -> None:
    super().start()
    self._look()

  def add(self, terminated, ended) -> None:
    super().add(terminated, ended)
    self._look()

  def draw(self, rng, batch_size):
    batch, handle = self.replay.sample(rng, batch_size)
    rows = _rows(batch)
    assert set(rows) <= self.priorities.keys()
    priority = np.array([self.priorities[row] for row in rows])
    chance = priority / sum(self.priorities.values())
    beta = self.replay.beta(0)
    weights = (len(self.priorities) * chance) ** -beta
    np.testing.assert_allclose(batch.weight, weights / weights.max(), 1e-6)
    assert batch.weight.dtype == np.float32
    return rows, handle

  def update(self, rows, handle, errors) -> None:
    errors = np.float32(errors)
    self.replay.update(handle, {'td_error_abs': errors})
    new: dict[tuple, float] = {}
    for row, error in zip(rows, np.float64(errors), strict=True):
      value = (error + EPSILON) ** self.alpha
      self.largest = max(self.largest, value)
      new[row] = max(new.get(row, 0.0), value)
    self.priorities |= {r: v for r, v in new.items() if r in self.priorities}

  def compare(self) -> None:
    super().compare()
    self.replay.check()
    assert _all_valid(self.replay) == list(self.priorities)
    index = np.flatnonzero(self.replay._valid(np.arange(self.replay.capacity)))
    env = index // self.length
    age = (self.replay._written[env] - 1 - index) % self.length
    leaves = self.replay.priorities[index[np.lexsort((-age, env))]]
    np.testing.assert_allclose(leaves, list(self.priorities.values()), 1e-12)
    total = sum(self.priorities.values())
    assert self.replay._tree.total == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize('num_envs', [1, 3])
@pytest.mark.parametrize('stack, n_step', [(1, 1), (3, 4), (4, 2)])
@pytest.mark.parametrize('spare', [0, 20])
def test_priorities_belong_to_the_transitions(num_envs, stack, n_step, spare):
  """While the rings fill and wrap around, whatever ends, and between rounds."""
  rng = np.random.default_rng(stack + 10 * n_step)
  known = _Known(num_envs=num_envs, stack=stack, n_step=n_step, spare=spare)
  known.start()
  waiting: list[tuple] = []
  for _ in range(120):
    if rng.random() < 0.03:
      known.start()
    ended = rng.random(num_envs) < 0.12
    terminated = rng.random(num_envs) < np.where(ended, 0.5, 0.08)
    known.add(terminated.tolist(), ended.tolist())
    known.compare()
    while waiting and rng.random() < 0.5:  # some steps after the draw
      rows, handle = waiting.pop(0)
      known.update(rows, handle, rng.exponential(size=len(rows)) * 2)
      known.compare()
    if known.replay.size:
      size = int(rng.integers(1, known.replay.size + 1))
      waiting.append(known.draw(rng, size))
  assert known.replay._written.min() > 2 * known.length or spare == 20
  assert known.largest > 1


def _four(alpha=1.0, beta=lambda env_steps: 0.5, **settings):
  """A replay of four transitions, numbered by their actions."""
  replay = PrioritizedHostReplay(
    16, alpha=alpha, beta=beta, frame_shape=(2,), stack=1, **settings
  )
  replay.start(_frames([0]))
  for number in range(4):
    frame = _frames([number + 1])
    replay.add(
      action=np.array([number]),
      reward=np.zeros(1, np.float32),
      terminated=np.array([False]),
      ended=np.array([False]),
      final_obs=frame,
      obs=frame,
    )
  return replay


def _prioritize(replay, errors) -> None:
  """Sets the errors of all four, by a draw that has each of them once."""
  batch, handle = replay.sample(np.random.default_rng(0), 4)
  assert batch.a_tm1.tolist() == [0, 1, 2, 3]  # one of each stratum
  replay.update(handle, {'td_error_abs': np.float32(errors)})


def test_weights_by_hand():
  """P = (2, 3, 3, 4) / 12, and (4 P)**-1/2 is divided by (2 / 3)**-1/2."""
  replay = _four()
  _prioritize(replay, [2, 3, 3, 4])
  rng, found = np.random.default_rng(0), False
  while not found:
    batch, _ = replay.sample(rng, 4)
    found = batch.a_tm1.tolist() == [0, 1, 2, 3]
  by_hand = [1, 0.81650, 0.81650, 0.70711]
  assert batch.weight.tolist() == pytest.approx(by_hand, rel=1e-5)


def test_the_exponent_of_the_weights_follows_env_steps():
  asked: list[int] = []
  replay = _four(beta=lambda env_steps: asked.append(env_steps) or 0.0)
  batch, _ = replay.sample(np.random.default_rng(0), 3)
  assert asked == [4] and batch.weight.tolist() == [1, 1, 1]


def test_exponent_0_is_uniform():
  replay = _four(alpha=0.0, beta=lambda env_steps: 1.0)
  _prioritize(replay, [1e-30, 2, 1e9, 0])
  rng, counts = np.random.default_rng(0), np.zeros(4)
  for _ in range(100):
    batch, _ = replay.sample(rng, 4)
    counts += np.bincount(batch.a_tm1, minlength=4)
    assert batch.weight.tolist() == [1] * 4
  # Each stratum is one transition.
  assert counts.tolist() == [100] * 4


def test_a_large_error_is_drawn_more_often():
  """Ten times the error and exponent 1: ten times as often; by chi-square."""
  replay = _four()
  _prioritize(replay, [1, 10, 1, 4])
  rng, counts, draws = np.random.default_rng(1), np.zeros(4), 8_000
  for _ in range(draws):  # of single transitions, which are independent
    counts[replay.sample(rng, 1)[0].a_tm1] += 1
  expected = draws * np.array([1, 10, 1, 4]) / 16
  # Three degrees of freedom: beyond 25 with a chance of 2e-5.
  assert ((counts - expected) ** 2 / expected).sum() < 25


def test_one_draw_falls_into_each_stratum():
  replay = _four()
  _prioritize(replay, [1, 1, 2, 4])
  rng = np.random.default_rng(2)
  for _ in range(50):
    actions = replay.sample(rng, 4)[0].a_tm1
    assert actions[0] in (0, 1) and actions[1:].tolist() == [2, 3, 3]


def test_priorities_may_be_made_of_another_metric():
  replay = _four(alpha=0.5, metric='transition_loss')
  assert replay.reads == ('transition_loss',)
  _, handle = replay.sample(np.random.default_rng(0), 4)
  losses = np.float32([4, 9, 16, 25])
  both = {'td_error_abs': np.ones(4), 'transition_loss': losses}
  replay.update(handle, both)
  np.testing.assert_allclose(replay.priorities[:4], [2, 3, 4, 5], 1e-6)


def test_of_a_transition_drawn_twice_the_largest_error_counts():
  replay = _four()
  _prioritize(replay, [1e-6, 1e-6, 1e-6, 1])
  batch, handle = replay.sample(np.random.default_rng(0), 3)
  assert batch.a_tm1.tolist() == [3, 3, 3]
  replay.update(handle, {'td_error_abs': np.float32([2, 7, 3])})
  assert replay.priorities[3] == pytest.approx(7)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -1.0])
def test_an_update_that_is_no_priority_changes_nothing(bad):
  replay = _four()
  _, handle = replay.sample(np.random.default_rng(0), 2)
  before = replay.priorities.copy()
  with pytest.raises(ValueError, match='td_error_abs is not finite, or neg'):
    replay.update(handle, {'td_error_abs': np.float32([5, bad])})
  with pytest.raises(ValueError, match=r'td_error_abs is \(\): must be \(2,\)'):
    replay.update(handle, {'td_error_abs': np.float32(5)})
  np.testing.assert_array_equal(replay.priorities, before)
  replay.check()


def test_more_than_there_are_cannot_be_drawn():
  with pytest.raises(ValueError, match='batch_size=5: must be 1 to size=4'):
    _four().sample(np.random.default_rng(0), 5)


@pytest.mark.parametrize(
  'settings, match',
  [(dict(alpha=-0.1), 'alpha=-0.1'), (dict(epsilon=0.0), 'epsilon=0.0')],
)
def test_bad_settings_are_refused(settings, match):
  with pytest.raises(ValueError, match=match):
    PrioritizedHostReplay(
      8,
      frame_shape=(2,),
      beta=lambda env_steps: 1.0,
      **(dict(alpha=0.5) | settings),
    )


def test_its_memory_is_known_before():
  settings = dict(frame_shape=(3,), frame_dtype=np.float32)
  replay = PrioritizedHostReplay(
    1_000, alpha=0.5, beta=lambda env_steps: 1.0, **settings
  )
  needed = PrioritizedHostReplay.estimate_nbytes(1_000, **settings)
  assert replay.nbytes == needed
  assert needed == HostReplay.estimate_nbytes(1_000, **settings) + 8 * 1_040


# Saving and loading.


def _busy(known: _Known, rng, steps=40) -> list[np.ndarray]:
  """Steps, draws and updates; returns the weights drawn."""
  weights = []
  for _ in range(steps):
    ended = (rng.random(known.num_envs) < 0.1).tolist()
    known.add(ended, ended)
    if known.replay.size >= 4:
      batch, handle = known.replay.sample(rng, 4)
      weights.append(batch.weight)
      errors = np.float32(rng.exponential(size=4))
      known.replay.update(handle, {'td_error_abs': errors})
  return weights


def _loaded(known: _Known, directory, manifest) -> PrioritizedHostReplay:
  replay = PrioritizedHostReplay(**known.settings, **known.numbers_of)
  replay.load(directory, json.loads(json.dumps(manifest)))
  return replay


@pytest.mark.parametrize('num_envs, spare', [(1, 200), (3, 5)])
def test_it_goes_on_bit_for_bit_after_loading(num_envs, spare, tmp_path):
  beta = lambda env_steps: env_steps / 1_000
  known = _Known(num_envs=num_envs, spare=spare, n_step=2, beta=beta)
  known.start()
  rng = np.random.default_rng(3)
  _busy(known, rng)
  known.replay.save(tmp_path)
  _busy(known, rng)
  manifest = known.replay.save(tmp_path)  # onto an earlier one
  segments.verify(tmp_path, manifest)
  files = {path.name for path in tmp_path.iterdir()}
  segments.prune(tmp_path, manifest)
  left = {path.name for path in tmp_path.iterdir()}
  assert left < files and manifest['priorities']['name'] in left

  other = _loaded(known, tmp_path, manifest)
  np.testing.assert_array_equal(other.priorities, known.replay.priorities)
  state, original, count = rng.bit_generator.state, known.replay, known.count
  whole = _busy(known, rng)
  rng.bit_generator.state, known.count = state, count
  known.replay = other
  resumed = _busy(known, rng)
  np.testing.assert_array_equal(whole, resumed)
  np.testing.assert_array_equal(other.priorities, original.priorities)
  assert other._largest == original._largest > 1
  assert other._env_steps == original._env_steps == 120 * num_envs


def test_damage_to_the_priorities_is_noticed(tmp_path):
  known = _Known(spare=20)
  known.start()
  _busy(known, np.random.default_rng(0))
  manifest = known.replay.save(tmp_path)
  path = tmp_path / manifest['priorities']['name']
  content = path.read_bytes()
  path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  with pytest.raises(ValueError, match='is corrupt: its checksum differs'):
    segments.verify(tmp_path, manifest)
  replay = PrioritizedHostReplay(**known.settings, **known.numbers_of)
  with pytest.raises(ValueError, match='is corrupt: its checksum differs'):
    replay.load(tmp_path, manifest)
  path.write_bytes(content)
  replay.load(tmp_path, manifest)  # it was left empty


def test_a_failed_load_leaves_it_empty(tmp_path):
  known = _Known(spare=20)
  known.start()
  _busy(known, np.random.default_rng(0))
  manifest = known.replay.save(tmp_path)
  replay = PrioritizedHostReplay(**known.settings, **known.numbers_of)
  with pytest.raises(ValueError, match='does not list every segment'):
    replay.load(tmp_path, manifest | {'segments': []})
  with pytest.raises(ValueError, match='the largest priority is too small'):
    replay.load(tmp_path, manifest | {'largest_priority': 0.5})
  replay.check()
  assert replay._tree.total == 0
  replay.load(tmp_path, manifest)
  with pytest.raises(ValueError, match='this one holds slots'):
    replay.load(tmp_path, manifest)
  np.testing.assert_array_equal(replay.priorities, known.replay.priorities)


def test_it_does_not_load_what_a_uniform_one_saved_nor_the_reverse(tmp_path):
  known = _Known(spare=20)
  known.start()
  uniform = HostReplay(**known.settings)
  uniform.start(_frames([1]))
  fresh = PrioritizedHostReplay(**known.settings, **known.numbers_of)
  with pytest.raises(ValueError, match='prioritized: saved None, here True'):
    fresh.load(tmp_path, uniform.save(tmp_path))
  with pytest.raises(ValueError, match='prioritized: saved True, here None'):
    HostReplay(**known.settings).load(tmp_path, known.replay.save(tmp_path))
