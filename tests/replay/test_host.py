"""The host ring against a list of whole episodes, and its files."""

import os
import json
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

from siamrl.replay import host, segments
from siamrl.replay.host import HostReplay
from tests.parameters import slow_but

_SHAPE = (2,)


# --- The reference ---------------------------------------------------------


class _Slot(NamedTuple):
  """An observation; action None means that none was ever taken there."""

  frame: int
  action: Any = None
  reward: float = 0.0
  terminated: bool = False


class _Reference:
  """One environment's history as a list of episodes, nothing forgotten."""

  def __init__(
    self,
    length: int,
    stack: int,
    n_step: int,
    discount: float,
    sequence_steps: int = 0,
  ):
    self.length, self.stack = length, stack
    self.n_step, self.discount = n_step, discount
    self.sequence_steps = sequence_steps
    self.episodes: list[list[_Slot]] = []

  def start(self, frame: int) -> None:
    self.episodes.append([_Slot(frame)])

  def add(
    self,
    action: Any,
    reward: float,
    terminated: bool,
    ended: bool,
    frame: int,
    first_frame: int,
  ) -> None:
    episode = self.episodes[-1]
    episode[-1] = _Slot(episode[-1].frame, action, reward, terminated)
    episode.append(_Slot(frame))
    if ended:
      self.start(first_frame)

  def _observation(self, episode: list[_Slot], t: int) -> tuple[int, ...]:
    return tuple(
      episode[max(t - k, 0)].frame for k in reversed(range(self.stack))
    )

  def transitions(self) -> list[tuple]:
    """All that can be sampled, oldest first."""
    kept = sum(len(e) for e in self.episodes) - self.length
    found, before = [], 0
    for number, episode in enumerate(self.episodes):
      running = number == len(self.episodes) - 1
      for t, slot in enumerate(episode):
        if slot.action is None:
          continue
        if before + max(t - self.stack + 1, 0) < kept:
          continue  # the ring has overwritten some frame of its stack
        total, weight, u = 0.0, 1.0, t
        while True:
          total += weight * episode[u].reward
          weight *= self.discount
          u += 1
          if episode[u - 1].terminated:
            weight = 0.0
            break
          if u - t == self.n_step:
            break
          if episode[u].action is None:
            break
        cut = weight == 0.0 or u - t == self.n_step
        if not cut and running:
          continue  # its successor is still to come
        found.append(
          (
            self._observation(episode, t),
            slot.action,
            np.float32(total),
            np.float32(weight),
            self._observation(episode, u),
          )
        )
        if self.sequence_steps:
          found[-1] += (self._future(episode, t),)
      before += len(episode)
    return found

  def _future(self, episode: list[_Slot], t: int) -> list[tuple]:
    """(action, observation, whether they count) of the steps from t on."""
    seen = []
    for u in range(t, t + self.sequence_steps):
      if episode[u].action is None or episode[u].terminated:
        break
      obs = self._observation(episode, u + 1)
      seen.append((episode[u].action, obs, True))
    none = (episode[t].action, self._observation(episode, t), True)
    filler = (*(seen or [none])[-1][:2], False)
    return seen + [filler] * (self.sequence_steps - len(seen))


def _action(number: int, action_dim: int) -> int | tuple[float, ...]:
  """One of seven actions: 0 to 6, or D numbers that begin with it, roughly."""
  if not action_dim:
    return number
  # Of the last, float32 has few digits.
  row = np.float32([number / 7, -number, number * 1e-42])[:action_dim]
  return tuple(row.tolist())


def _frame(number: int) -> np.ndarray:
  """A frame [2] of its own for each number below 65536."""
  return np.array([number % 256, number // 256], np.uint8)


def _frames(numbers: list[int]) -> np.ndarray:
  return np.stack([_frame(n) for n in numbers])


def _rows(batch) -> list[tuple]:
  """A batch as the reference writes it."""

  def numbers(obs):
    assert obs.dtype == np.uint8
    return [tuple(int(f[0]) + 256 * int(f[1]) for f in o) for o in obs]

  def taken(actions):
    if actions.ndim == 1:
      return actions.tolist()
    assert actions.dtype == np.float32
    return list(map(tuple, actions.tolist()))

  columns = [
    numbers(batch.obs_tm1),
    taken(batch.a_tm1),
    batch.r_t,
    batch.discount_t,
    numbers(batch.obs_t),
  ]
  if batch.future is not None:
    columns.append(
      [
        list(zip(taken(a), numbers(obs), mask.tolist(), strict=True))
        for a, obs, mask in zip(*batch.future, strict=True)
      ]
    )
  return list(zip(*columns, strict=True))


def _all_valid(replay: HostReplay) -> list[tuple]:
  """All that the replay can yield, ring by ring, oldest first."""
  index = np.flatnonzero(replay._valid(np.arange(replay.capacity)))
  env = index // replay._length
  age = (replay._written[env] - 1 - index) % replay._length
  index = index[np.lexsort((-age, env))]
  return _rows(replay._gather(index))


class _Pair:
  """A replay and its reference, fed alike, with frames that never repeat."""

  def __init__(
    self,
    num_envs=1,
    stack=2,
    n_step=1,
    spare=0,
    discount=0.5,
    action_dim=0,
    sequence_steps=0,
  ):
    self.length = stack + n_step + spare
    self.num_envs = num_envs
    self.settings: dict[str, Any] = dict(
      capacity=num_envs * self.length,
      frame_shape=_SHAPE,
      num_envs=num_envs,
      stack=stack,
      n_step=n_step,
      discount=discount,
      action_dim=action_dim,
      sequence_steps=sequence_steps,
    )
    self.action_dim = action_dim
    self.replay = HostReplay(**self.settings)
    self.references = [
      _Reference(self.length, stack, n_step, discount, sequence_steps)
      for _ in range(num_envs)
    ]
    self.count = 0

  def numbers(self) -> list[int]:
    self.count += self.num_envs
    return list(range(self.count - self.num_envs + 1, self.count + 1))

  def start(self) -> None:
    numbers = self.numbers()
    self.replay.start(_frames(numbers))
    for reference, number in zip(self.references, numbers, strict=True):
      reference.start(number)

  def add(self, terminated, ended) -> None:
    numbers, firsts = self.numbers(), self.numbers()
    actions = [_action(n % 7, self.action_dim) for n in numbers]
    rewards = [float(n % 5) - 1 for n in numbers]
    self.replay.add(
      action=np.array(actions, np.float32 if self.action_dim else np.int64),
      reward=np.array(rewards, np.float32),
      terminated=np.array(terminated),
      ended=np.array(ended),
      final_obs=_frames(numbers),
      obs=_frames(firsts),
    )
    for reference, *step in zip(
      self.references,
      actions,
      rewards,
      terminated,
      ended,
      numbers,
      firsts,
      strict=True,
    ):
      reference.add(*step)

  def step(self, *, terminated=False, ended=False) -> None:
    self.add([terminated] * self.num_envs, [ended] * self.num_envs)

  def expected(self) -> list[tuple]:
    return [t for r in self.references for t in r.transitions()]

  def compare(self) -> None:
    expected = self.expected()
    assert _all_valid(self.replay) == expected
    assert self.replay.size == len(expected)
    self.replay.check()


# (terminated, ended): goes on, goes on, lost a life, terminated, truncated.
_OUTCOMES = [
  (False, False),
  (False, False),
  (True, False),
  (True, True),
  (False, True),
]


@st.composite
def _histories(draw):
  """Settings and steps; a step is 'start' or an outcome per environment."""
  num_envs = draw(st.integers(1, 3))
  settings = dict(
    num_envs=num_envs,
    stack=draw(st.integers(1, 4)),
    n_step=draw(st.integers(1, 4)),
    spare=draw(st.integers(0, 9)),
    action_dim=draw(st.sampled_from([0, 0, 1, 3])),
    sequence_steps=draw(st.sampled_from([0, 0, 1, 2, 5])),
  )
  # Of one long episode to nothing but ends: each history its own mixture.
  busy = draw(st.sampled_from([1, 2, 5]))
  outcome = st.sampled_from(_OUTCOMES[:1] * 6 + _OUTCOMES[:busy])
  step = st.one_of(
    [st.lists(outcome, min_size=num_envs, max_size=num_envs)] * 9
    + [st.just('start')]
  )
  return settings, draw(st.lists(step, max_size=60))


_PROPERTY = hypothesis.settings(
  max_examples=300,
  deadline=None,
  derandomize=True,
  database=None,
  suppress_health_check=[
    hypothesis.HealthCheck.function_scoped_fixture,
    hypothesis.HealthCheck.too_slow,
  ],
)


def _play(pair: _Pair, step) -> None:
  if step == 'start':
    pair.start()
  else:
    pair.add(*map(list, zip(*step, strict=True)))


@_PROPERTY
@hypothesis.given(_histories())
def test_yields_exactly_the_transitions_of_the_episodes(history):
  settings, steps = history
  pair = _Pair(**settings)
  pair.compare()
  pair.start()
  for step in steps:
    _play(pair, step)
    pair.compare()


@pytest.mark.parametrize('stack', [1, 2, 4])
@pytest.mark.parametrize('n_step', slow_but((1, 4).__contains__, [1, 2, 4]))
@pytest.mark.parametrize('spare', [0, 1, 40])
def test_wraps_around_many_times(stack, n_step, spare):
  rng = np.random.default_rng(stack + 10 * n_step)
  action_dim = 2 * (stack + n_step) % 3  # 0, 1 or 2
  pair = _Pair(
    2,
    stack,
    n_step,
    spare,
    discount=0.75,
    action_dim=action_dim,
    sequence_steps=stack - 1,
  )
  pair.start()
  for i in range(12 * pair.length):
    picks = rng.choice(len(_OUTCOMES), 2, p=[0.4, 0.4, 0.1, 0.05, 0.05])
    _play(pair, [_OUTCOMES[p] for p in picks])
    if i % 3 == 0:
      pair.compare()


def test_sample_draws_every_valid_transition_and_no_other():
  pair = _Pair(num_envs=3, stack=3, n_step=2, spare=12)
  pair.start()
  for i in range(40):
    _play(pair, [_OUTCOMES[(i * k) % 11 % 5] for k in (1, 2, 3)])
  rng = np.random.default_rng(0)
  drawn = set()
  for _ in range(200):
    drawn |= set(_rows(pair.replay.peek(rng, 16)))
  assert drawn == set(pair.expected())


# --- Meaning ---------------------------------------------------------------


def _hand_fed(n_step, steps, stack=2) -> list[tuple]:
  """The transitions of frames 1, 2, ...: rewards 1, 2, 4, ..., actions 0."""
  replay = HostReplay(
    64, frame_shape=_SHAPE, stack=stack, n_step=n_step, discount=0.5
  )
  replay.start(_frames([1]))
  for i, (terminated, ended) in enumerate(steps):
    replay.add(
      action=np.zeros(1, np.int32),
      reward=np.full(1, 2.0**i, np.float32),
      terminated=np.array([terminated]),
      ended=np.array([ended]),
      final_obs=_frames([i + 2]),
      obs=_frames([100 + i]),
    )
  return _all_valid(replay)


def test_three_step_returns_by_hand():
  go = (False, False)
  # Rewards 1, 2, 4, 8 at discount 1/2: 1 + 2/2 + 4/4 = 3, 2 + 4/2 + 8/4 = 6.
  assert _hand_fed(3, [go] * 4) == [
    ((1, 1), 0, 3.0, 0.125, (3, 4)),
    ((1, 2), 0, 6.0, 0.125, (4, 5)),
  ]


def test_truncation_bootstraps_from_the_final_observation():
  assert _hand_fed(3, [(False, False), (False, True)]) == [
    ((1, 1), 0, 2.0, 0.25, (2, 3)),
    ((1, 2), 0, 2.0, 0.5, (2, 3)),
  ]


def test_termination_does_not_bootstrap():
  assert _hand_fed(3, [(False, False), (True, True)]) == [
    ((1, 1), 0, 2.0, 0.0, (2, 3)),
    ((1, 2), 0, 2.0, 0.0, (2, 3)),
  ]


def test_a_reward_that_is_not_finite_stays_where_it_counts():
  replay = HostReplay(64, frame_shape=_SHAPE, n_step=3)
  replay.start(_frames([1]))
  for i in range(6):
    ended = np.array([i == 1])
    replay.add(
      action=[0],
      reward=np.full(1, np.inf if i > 1 else 1.0),
      terminated=ended,
      ended=ended,
      final_obs=_frames([i]),
      obs=_frames([i]),
    )
  returns = replay._gather(np.arange(2)).r_t
  np.testing.assert_allclose(returns, [1.99, 1.0])


def test_a_lost_life_stops_the_sum_but_not_the_stack():
  steps = [(False, False), (True, False), (False, False)]
  assert _hand_fed(2, [*steps, (False, False)]) == [
    ((1, 1), 0, 2.0, 0.0, (2, 3)),
    ((1, 2), 0, 2.0, 0.0, (2, 3)),
    ((2, 3), 0, 8.0, 0.25, (4, 5)),
  ]


def _ahead(steps) -> list[list]:
  """(action, observation, mask) of 3 steps from frames 1, 2, ... on."""
  replay = HostReplay(64, frame_shape=_SHAPE, stack=2, sequence_steps=3)
  replay.start(_frames([1]))
  for t, (terminated, ended) in enumerate(steps, 1):
    replay.add(
      action=[t],
      reward=np.ones(1, np.float32),
      terminated=np.array([terminated]),
      ended=np.array([ended]),
      final_obs=_frames([t + 1]),
      obs=_frames([100]),
    )
  return [row[-1] for row in _all_valid(replay)]


def test_three_steps_ahead_by_hand():
  go, lost, cut = (False, False), (True, False), (False, True)
  # Of frame 5 there is no action yet.
  assert _ahead([go] * 4)[1:3] == [
    [(2, (2, 3), True), (3, (3, 4), True), (4, (4, 5), True)],
    [(3, (3, 4), True), (4, (4, 5), True), (4, (4, 5), False)],
  ]
  # The last observation of a truncated episode counts.
  assert _ahead([go, cut, go])[:2] == [
    [(1, (1, 2), True), (2, (2, 3), True), (2, (2, 3), False)],
    [(2, (2, 3), True), (2, (2, 3), False), (2, (2, 3), False)],
  ]
  # What follows a lost life does not, although the game goes on.
  assert _ahead([go, lost, go])[:2] == [
    [(1, (1, 2), True), (1, (1, 2), False), (1, (1, 2), False)],
    [(2, (1, 2), False)] * 3,
  ]


def test_looking_ahead_changes_nothing_else(tmp_path):
  pair = _full_pair(60)
  ahead = HostReplay(**(pair.settings | dict(sequence_steps=4)))
  ahead.load(tmp_path, _through_json(pair.replay.save(tmp_path)))
  plain, more = (
    replay.peek(np.random.default_rng(0), 32) for replay in (pair.replay, ahead)
  )
  assert plain.future is None
  assert more.future.obs.shape == (32, 4, *plain.obs_t.shape[1:])
  np.testing.assert_array_equal(more.future.a[:, 0], more.a_tm1)
  for a, b in zip(plain[:5], more[:5], strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_transition_is_ready_with_its_successor():
  go = (False, False)
  assert _hand_fed(1, [go]) == [((1, 1), 0, 1.0, 0.5, (1, 2))]
  assert not _hand_fed(2, [go])


def test_start_cuts_a_running_episode_as_truncated():
  pair = _Pair(stack=2, n_step=3, spare=10)
  pair.start()
  pair.step()
  pair.start()
  assert _all_valid(pair.replay) == [((1, 1), 2, 1.0, 0.5, (1, 2))]
  pair.compare()


@pytest.mark.parametrize('terminated', [False, True])
def test_a_reset_observation_is_never_a_successor(terminated):
  replay = HostReplay(40, frame_shape=_SHAPE, stack=3, n_step=2)
  replay.start(_frames([1000]))
  for i in range(200):
    ended = np.array([i % 4 == 3])
    replay.add(
      action=np.zeros(1, np.int64),
      reward=np.zeros(1, np.float32),
      terminated=ended & terminated,
      ended=ended,
      final_obs=_frames([i]),
      obs=_frames([1000 + i]),
    )
    for _, _, _, _, successor in _all_valid(replay):
      assert successor[-1] < 1000
      # ... and its stack shows at most the reset of its own episode, first.
      assert successor[1] < 1000 or successor[0] == successor[1]


@pytest.mark.parametrize('dtype', [np.float32, np.int16, np.bool_])
@pytest.mark.parametrize('shape', [(), (3, 2)])
def test_frames_of_other_dtypes_and_shapes(dtype, shape):
  replay = HostReplay(10, frame_shape=shape, frame_dtype=dtype, stack=2)
  first, second = np.zeros((1, *shape), dtype), np.ones((1, *shape), dtype)
  replay.start(first)
  replay.add(
    action=[1],
    reward=np.ones(1),
    terminated=np.array([False]),
    ended=np.array([True]),
    final_obs=second,
    obs=first,
  )
  batch = replay.peek(np.random.default_rng(0), 1)
  assert batch.obs_t.dtype == dtype
  np.testing.assert_array_equal(batch.obs_tm1[0], np.stack([first[0]] * 2))
  np.testing.assert_array_equal(batch.obs_t[0], np.stack([first[0], second[0]]))


# --- Sampling --------------------------------------------------------------


def _full_pair(steps=300, num_envs=2, **kwargs) -> _Pair:
  pair = _Pair(num_envs, **(dict(stack=3, n_step=2, spare=45) | kwargs))
  pair.start()
  for i in range(steps):
    _play(
      pair,
      [_OUTCOMES[4 if (i + 3 * k) % 9 == 8 else 0] for k in range(num_envs)],
    )
  return pair


@pytest.mark.parametrize('steps', [20, 300])
def test_samples_are_uniform(steps):
  pair = _full_pair(steps)
  rng = np.random.default_rng(1)
  counts = dict.fromkeys(pair.expected(), 0)
  for _ in range(300):
    for row in _rows(pair.replay.peek(rng, 20)):
      counts[row] += 1
  assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_the_generator_decides_the_batch():
  pair = _full_pair()
  one, same, other = (
    _rows(pair.replay.peek(np.random.default_rng(s), 32)) for s in (5, 5, 6)
  )
  assert one == same != other


@pytest.mark.parametrize('action_dim', [0, 3])
def test_batches_have_the_right_shapes_and_are_never_overwritten(action_dim):
  pair = _full_pair(action_dim=action_dim)
  rng = np.random.default_rng(0)
  batch = pair.replay.peek(rng, 8)
  assert batch.weight is None
  arrays = jax.tree.leaves(batch)
  assert [x.shape for x in arrays] == [
    (8, 3, 2),
    (8, 3) if action_dim else (8,),
    (8,),
    (8,),
    (8, 3, 2),
  ]
  assert [x.dtype for x in arrays] == [
    np.uint8,
    np.float32 if action_dim else np.int32,
    np.float32,
    np.float32,
    np.uint8,
  ]
  copy = [x.copy() for x in arrays]
  for _ in range(50):
    pair.step()
    pair.replay.peek(rng, 8)
  for kept, seen in zip(arrays, copy, strict=True):
    np.testing.assert_array_equal(kept, seen)


def test_one_valid_slot_among_many_is_found():
  pair = _Pair(stack=1, n_step=1, spare=998)
  pair.start()
  pair.step()
  for _ in range(900):
    pair.start()
  assert _rows(pair.replay.peek(np.random.default_rng(0), 1)) == (
    pair.expected()
  )


# --- Memory ----------------------------------------------------------------


def test_an_atari_transition_costs_its_frame_and_ten_bytes():
  replay = HostReplay(1000, frame_shape=(84, 84))
  assert replay.bytes_per_transition == 7066
  assert replay.nbytes == HostReplay.estimate_nbytes(1000, (84, 84))
  assert HostReplay.estimate_nbytes(1_000_000, (84, 84)) <= 7.3e9
  assert HostReplay.estimate_nbytes(10, (3,), np.float32) == 220


def test_a_robots_transition_costs_its_numbers_and_six_bytes():
  settings = dict(frame_shape=(17,), frame_dtype=np.float32, action_dim=6)
  replay = HostReplay(1000, **settings)
  assert replay.bytes_per_transition == 4 * (17 + 6) + 6
  assert HostReplay.estimate_nbytes(1000, **settings) == replay.nbytes


@pytest.mark.skipif(
  not pathlib.Path('/proc/self/statm').exists(),
  reason='reads the resident memory from /proc',
)
def test_memory_is_committed_as_the_ring_fills():
  code = """
import numpy as np
from siamrl.replay.host import HostReplay
def resident():
  with open('/proc/self/statm') as file:
    return int(file.read().split()[1]) * 4096
before = resident()
replay = HostReplay(100_000, frame_shape=(84, 84))
empty = resident()
replay.start(np.ones((1, 84, 84), np.uint8))
no, frame = np.array([False]), np.ones((1, 84, 84), np.uint8)
for _ in range(8000):
  replay.add(action=np.zeros(1, int), reward=np.zeros(1), terminated=no,
             ended=no, final_obs=frame, obs=frame)
print(empty - before, resident() - empty)
"""
  out = subprocess.run(
    [sys.executable, '-c', code], check=True, text=True, capture_output=True
  ).stdout
  empty, filled = map(int, out.split())
  assert empty < 20e6
  assert 8000 * 7056 <= filled < 8000 * 7056 + 30e6


# --- Errors ----------------------------------------------------------------


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(num_envs=0), 'num_envs=0'),
    (dict(stack=0), 'stack=0'),
    (dict(stack=257), 'stack=257'),
    (dict(n_step=0), 'n_step=0'),
    (dict(discount=1.5), 'discount=1.5'),
    (dict(action_dim=-1), 'action_dim=-1'),
    (dict(sequence_steps=-1), 'sequence_steps=-1'),
    (dict(frame_shape=(84, 0)), 'frame_shape='),
    (dict(frame_dtype='U1'), 'frame_dtype='),
    (dict(num_envs=3), 'capacity=100.*multiple of num_envs=3'),
    (dict(num_envs=25), r'capacity=100.*at least .*= 125'),
  ],
)
def test_impossible_settings_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    HostReplay(**(dict(capacity=100, frame_shape=_SHAPE) | changes))


def _step(**changes) -> dict[str, Any]:
  """The keywords of `add` for a step of two environments."""
  step = dict(
    action=np.zeros(2, int),
    reward=np.zeros(2, np.float32),
    terminated=np.zeros(2, bool),
    ended=np.zeros(2, bool),
    final_obs=np.zeros((2, 2), np.uint8),
    obs=np.zeros((2, 2), np.uint8),
  )
  return step | changes


def test_add_before_start_is_refused():
  with pytest.raises(RuntimeError, match='before the first start'):
    _Pair().step()


@pytest.mark.parametrize(
  ('action', 'message'),
  [
    (np.zeros((2, 3), int), r'is int64 \(2, 3\): must be float \(2, 3\)'),
    (np.zeros(2), r'action is float64 \(2,\)'),
    (np.float32([[0, 0, 0], [0, np.nan, 0]]), 'must be finite'),
    (np.float64([[0, 0, 0], [0, 0, -np.inf]]), 'must be finite'),
  ],
)
def test_add_refuses_other_continuous_actions(action, message):
  pair = _Pair(num_envs=2, action_dim=3)
  pair.start()
  with pytest.raises(ValueError, match=message):
    pair.replay.add(**_step(action=action))
  pair.compare()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(action=np.zeros(2)), 'action is float64'),
    (dict(action=np.zeros(3, int)), r'action is int64 \(3,\)'),
    (dict(action=np.array([0, -1])), 'must be 0 or more'),
    (dict(reward=np.zeros(2, int)), 'reward is int64'),
    (dict(terminated=np.zeros(2)), 'terminated is float64'),
    (dict(ended=np.zeros((2, 1), bool)), r'ended is bool \(2, 1\)'),
    (dict(final_obs=np.zeros((2, 2))), 'final_obs is float64'),
    (dict(obs=np.zeros((2, 3), np.uint8)), 'obs is uint8'),
  ],
)
def test_add_refuses_other_arrays_and_stores_nothing(changes, message):
  pair = _Pair(num_envs=2)
  pair.start()
  pair.step()
  with pytest.raises(ValueError, match=message):
    pair.replay.add(**_step(**changes))
  pair.compare()


@pytest.mark.parametrize('batch_size', [0, -1, 4])
def test_sample_refuses_more_than_there_is(batch_size):
  pair = _Pair(spare=9)
  pair.start()
  for _ in range(3):
    pair.step()
  with pytest.raises(ValueError, match=f'batch_size={batch_size}:.*size=3'):
    pair.replay.peek(np.random.default_rng(0), batch_size)
  assert len(pair.replay.peek(np.random.default_rng(0), 3).r_t) == 3


@pytest.mark.parametrize(
  ('array', 'position', 'value', 'message'),
  [
    ('_flags', 'open', host._CLOSED, 'newest slot'),
    ('_flags', 'closed', host._OPEN, 'newest slot'),
    ('_flags', 'closed', host._CLOSED | host._LAST, 'exactly one of'),
    ('_flags', 'unused', host._CLOSED, 'never written'),
    ('_flags', 'closed', host._LAST, 'must have an action'),
    ('_actions', 'last', 3, 'must have an action'),
    ('_actions', 'closed', -1, 'must have an action'),
    ('_actions', 'last', [0.0, 0.0], 'must have an action'),
    ('_actions', 'closed', [0.0, np.nan], 'must have an action'),
    ('_ages', 'closed', 0, 'ages do not follow'),
    ('_pending', 0, 0, 'pending'),
    ('_size', None, 1, 'size is 1'),
  ],
)
def test_check_finds_what_is_broken(array, position, value, message):
  # Some of the values are continuous actions.
  action_dim = len(value) if isinstance(value, list) else 0
  pair = _Pair(stack=3, n_step=2, spare=10, action_dim=action_dim)
  pair.start()
  for _ in range(4):
    pair.step()
  pair.step(ended=True)  # slot 5 is last
  pair.step()  # slot 6 is closed, 7 is open
  pair.compare()
  if position is None:
    setattr(pair.replay, array, value)
  else:
    slots = {'closed': 2, 'last': 5, 'open': 7, 'unused': 12}
    getattr(pair.replay, array)[slots.get(position, position)] = value
  with pytest.raises(ValueError, match=message):
    pair.replay.check()


# --- Files -----------------------------------------------------------------


def _through_json(manifest):
  return json.loads(json.dumps(manifest))


def _loaded(pair: _Pair, directory, manifest) -> HostReplay:
  replay = HostReplay(**pair.settings)
  replay.load(directory, _through_json(manifest))
  return replay


def _assert_same(one: HostReplay, other: HostReplay) -> None:
  assert one.size == other.size
  assert _all_valid(one) == _all_valid(other)
  if one.size:
    rngs = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(3):
      batches = (
        replay.peek(rng, min(9, one.size))
        for replay, rng in zip((one, other), rngs, strict=True)
      )
      for x, y in zip(*map(jax.tree.leaves, batches), strict=True):
        assert x.tobytes() == y.tobytes()


@_PROPERTY
@hypothesis.given(
  _histories(), st.integers(1, 25), st.booleans(), st.integers(1, 200)
)
@pytest.mark.slow
def test_saves_in_turn_with_adds_restore_everything(
  tmp_path_factory, history, period, resume, segment_nbytes
):
  """Incremental saves, with or without a new process in between."""
  settings, steps = history
  directory = tmp_path_factory.mktemp('replay')
  pair = _Pair(**settings)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(host, '_SEGMENT_NBYTES', segment_nbytes)
    for i, step in enumerate(['start', *steps]):
      if i % period == 0:
        manifest = pair.replay.save(directory)
        segments.prune(directory, manifest)
        loaded = _loaded(pair, directory, manifest)
        _assert_same(pair.replay, loaded)
        if resume:
          pair.replay = loaded
      _play(pair, step)
    pair.compare()


def _names(directory) -> set[str]:
  return {path.name for path in directory.iterdir()}


def test_a_save_costs_what_is_new(tmp_path, monkeypatch):
  pair = _full_pair(40, num_envs=1, spare=200)
  written: list[int] = []
  write = HostReplay._write_segment

  def spy(self, directory, begin, end):
    written.append(int((end - begin).sum()))
    return write(self, directory, begin, end)

  monkeypatch.setattr(HostReplay, '_write_segment', spy)
  first = pair.replay.save(tmp_path)
  assert written == [45]  # 40 actions, 4 final observations, the open slot
  stamps = {
    p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()
  }
  assert pair.replay.save(tmp_path) == first
  for _ in range(3):
    pair.step()
  second = pair.replay.save(tmp_path)
  assert written == [45, 4]  # and the slot that was open
  assert second['segments'][:1] == first['segments']
  for name, (content, stamp) in stamps.items():
    path = tmp_path / name
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, stamp)
  # The older manifest still gives the older state.
  assert _loaded(pair, tmp_path, first).size == first['size'] < pair.replay.size


def test_a_first_save_of_a_full_ring_writes_each_slot_once(tmp_path):
  pair = _Pair(num_envs=2, stack=2, n_step=1, spare=17)  # 20 slots each
  pair.start()
  for _ in range(95):
    pair.step()
  (segment,) = pair.replay.save(tmp_path)['segments']
  assert (segment['begin'], segment['end']) == ([76, 76], [96, 96])


def test_the_open_slot_is_saved_again_once_closed(tmp_path):
  pair = _Pair(stack=2, n_step=1, spare=20)
  pair.start()
  pair.step()
  pair.replay.save(tmp_path)
  pair.step(terminated=True)
  _assert_same(_loaded(pair, tmp_path, pair.replay.save(tmp_path)), pair.replay)
  pair.start()  # the open slot becomes a last one
  _assert_same(_loaded(pair, tmp_path, pair.replay.save(tmp_path)), pair.replay)


def test_overwritten_segments_are_dropped_and_pruned(tmp_path):
  pair = _Pair(num_envs=2, stack=2, n_step=1, spare=17)  # 20 slots each
  pair.start()
  (tmp_path / 'notes.txt').write_text('not a segment')
  (tmp_path / f'replay-{"0" * 32}.z.tmp').write_bytes(b'half')
  for _ in range(30):
    for _ in range(5):
      pair.step()
    manifest = pair.replay.save(tmp_path)
    assert len(manifest['segments']) <= 5
    segments.prune(tmp_path, manifest)
    assert _names(tmp_path) == {
      'notes.txt',
      *(s['name'] for s in manifest['segments']),
    }
  _assert_same(_loaded(pair, tmp_path, manifest), pair.replay)


def test_orphans_of_a_process_that_died_are_not_trusted(tmp_path):
  pair = _full_pair(20)
  old = pair.replay.save(tmp_path)
  pair.step()
  before = _names(tmp_path)
  pair.replay.save(tmp_path)  # ... whose manifest is lost
  orphans = _names(tmp_path) - before
  assert orphans
  for name in orphans:
    (tmp_path / name).write_bytes(b'garbage')

  resumed = _loaded(pair, tmp_path, old)
  resumed.add(**_step(final_obs=_frames([7, 8])))
  manifest = resumed.save(tmp_path)
  assert not orphans & {s['name'] for s in manifest['segments']}
  _assert_same(_loaded(pair, tmp_path, manifest), resumed)
  segments.prune(tmp_path, manifest)
  assert not orphans & _names(tmp_path)
  _assert_same(_loaded(pair, tmp_path, manifest), resumed)


def test_a_failed_save_is_made_good_by_the_next(tmp_path, monkeypatch):
  pair = _full_pair(20)
  pair.replay.save(tmp_path)
  pair.step()

  def fail(*args):
    raise OSError('disk full')

  with monkeypatch.context() as patch:
    patch.setattr(segments.os, 'fsync', fail)
    with pytest.raises(OSError, match='disk full'):
      pair.replay.save(tmp_path)
  assert any(name.endswith('.tmp') for name in _names(tmp_path))
  manifest = pair.replay.save(tmp_path)
  _assert_same(_loaded(pair, tmp_path, manifest), pair.replay)
  segments.prune(tmp_path, manifest)
  assert not any(name.endswith('.tmp') for name in _names(tmp_path))


def test_another_directory_gets_everything(tmp_path):
  pair = _full_pair(60)
  pair.replay.save(tmp_path / 'a')
  pair.step()
  manifest = pair.replay.save(tmp_path / 'b')
  _assert_same(_loaded(pair, tmp_path / 'b', manifest), pair.replay)


def test_an_empty_replay_is_saved_and_loaded(tmp_path):
  pair = _Pair()
  loaded = _loaded(pair, tmp_path, pair.replay.save(tmp_path))
  assert loaded.size == 0
  pair.replay = loaded
  pair.start()
  pair.step()
  pair.compare()


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda path: path.unlink(), 'is missing'),
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), 'must be'),
    (
      lambda path: path.write_bytes(
        path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])
      ),
      'corrupt',
    ),
  ],
)
@pytest.mark.parametrize('which', [0, -1])
def test_damaged_segments_are_refused(tmp_path, damage, message, which):
  pair = _full_pair(20)
  pair.replay.save(tmp_path)
  pair.step()
  manifest = pair.replay.save(tmp_path)
  damage(tmp_path / manifest['segments'][which]['name'])
  replay = HostReplay(**pair.settings)
  with pytest.raises(ValueError, match=message):
    replay.load(tmp_path, manifest)
  assert replay.size == 0
  replay.check()  # as fresh as before
  # The object that saved notices a file that is gone or cut.
  if message != 'corrupt':
    _assert_same(
      _loaded(pair, tmp_path, pair.replay.save(tmp_path)), pair.replay
    )


@pytest.mark.parametrize(
  'settings',
  [
    dict(capacity=300),
    dict(stack=2),
    dict(n_step=1),
    dict(discount=0.25),
    dict(frame_shape=(1, 2)),
    dict(frame_dtype='int8'),
    dict(num_envs=1),
    dict(action_dim=2),
  ],
)
def test_other_settings_are_refused_by_name(tmp_path, settings):
  pair = _full_pair(20)
  manifest = _through_json(pair.replay.save(tmp_path))
  (name,) = settings
  with pytest.raises(ValueError, match=f'differ: {name}: saved'):
    HostReplay(**(pair.settings | settings)).load(tmp_path, manifest)


def test_a_manifest_from_before_continuous_actions_is_one_without(tmp_path):
  pair = _full_pair(20)
  manifest = _through_json(pair.replay.save(tmp_path))
  del manifest['settings']['action_dim']
  _assert_same(_loaded(pair, tmp_path, manifest), pair.replay)
  with pytest.raises(ValueError, match='action_dim: saved 0, here 2'):
    HostReplay(**(pair.settings | dict(action_dim=2))).load(tmp_path, manifest)


def test_another_byte_order_is_refused(tmp_path):
  big, little = (
    HostReplay(10, frame_shape=(), frame_dtype=t) for t in ('>i2', '<i2')
  )
  with pytest.raises(ValueError, match='frame_dtype'):
    little.load(tmp_path, big.save(tmp_path))


def test_manifests_that_cannot_be_right_are_refused(tmp_path):
  pair = _full_pair(20)
  pair.replay.save(tmp_path)
  pair.step()
  good = _through_json(pair.replay.save(tmp_path))
  first, last = good['segments']
  for change, message in [
    (dict(format=0), 'format=0'),
    (dict(segments=[first]), 'does not list every segment'),
    (dict(segments=[last]), 'are missing'),
    (dict(segments=[dict(first, name='../x'), last]), 'not the name'),
    (dict(segments=[dict(first, end=last['end'])]), 'these are not'),
    (dict(size=3), 'size is 3'),
  ]:
    with pytest.raises(ValueError, match=message):
      _loaded(pair, tmp_path, good | change)


def test_only_a_fresh_replay_loads(tmp_path):
  pair = _full_pair(20)
  manifest = pair.replay.save(tmp_path)
  with pytest.raises(ValueError, match='fresh'):
    pair.replay.load(tmp_path, manifest)


def test_what_an_older_manifest_needs_can_be_kept(tmp_path):
  pair = _full_pair(20)
  older = _through_json(pair.replay.save(tmp_path))
  for _ in range(100):
    pair.step()
  newer = pair.replay.save(tmp_path)
  names = [{s['name'] for s in each['segments']} for each in (older, newer)]
  assert names[0] - names[1]
  (tmp_path / f'replay-{"0" * 32}.z').mkdir()  # nothing of a replay's
  segments.prune(tmp_path, newer, older)
  segments.verify(tmp_path, older)
  _assert_same(_loaded(pair, tmp_path, newer), pair.replay)
  segments.prune(tmp_path, newer)
  with pytest.raises(ValueError, match='is missing'):
    segments.verify(tmp_path, older)
  segments.verify(tmp_path, newer)


def test_a_pipe_is_no_segment(tmp_path):
  pair = _full_pair(20)
  manifest = pair.replay.save(tmp_path)
  path = tmp_path / manifest['segments'][0]['name']
  path.unlink()
  os.mkfifo(path)
  with pytest.raises(ValueError, match=f'{path.name} in .* is not a file'):
    segments.verify(tmp_path, manifest)
