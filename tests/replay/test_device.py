"""The device ring against lists of whole episodes, and the sum tree."""

import functools
import re
from typing import Any, NamedTuple

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from siamrl.replay.device import DeviceReplay
from siamrl.replay.prioritized import PrioritizedReplay
from siamrl.replay.protocol import Sampling

# Powers of 2 and small rewards: float32 sums them exactly, in any order.
_DISCOUNT = 0.5
_BITS = 20  # in an observation: its number, so that none comes twice


# --- The reference ---------------------------------------------------------


class _Step(NamedTuple):
  """A vector step: what `add` is given, as numbers of observations."""

  action: list[int]
  reward: list[float]
  terminated: list[bool]
  truncated: list[bool]
  final: list[int]
  next: list[int]


class _Episode(NamedTuple):
  start: int  # the clock of its first step
  obs: list[int]  # one more than steps
  actions: list[int]
  rewards: list[float]
  end: list[str]  # empty while it goes on, else 'terminated' or 'truncated'


class _Reference:
  """One environment's history as a list of episodes, nothing forgotten."""

  def __init__(self, obs: int):
    self.episodes = [_Episode(0, [obs], [], [], [])]

  def add(self, action, reward, terminated, truncated, final, following):
    episode = self.episodes[-1]
    episode.actions.append(action)
    episode.rewards.append(reward)
    if terminated or truncated:
      # A terminated episode's last observation says nothing: any will do.
      episode.obs.append(-1 if terminated else final)
      episode.end.append('terminated' if terminated else 'truncated')
      clock = episode.start + len(episode.actions)
      self.episodes.append(_Episode(clock, [following], [], [], []))
    else:
      episode.obs.append(following)

  def transitions(
    self, t: int, starts: int, n_step: int, sequence_steps: int = 0
  ) -> dict[int, tuple]:
    """All that can be sampled at clock t, by the clock they begin at."""
    found = {}
    for episode in self.episodes:
      for k in range(len(episode.actions)):
        clock = episode.start + k
        if not t - n_step - starts < clock <= t - n_step:
          continue
        rewards = episode.rewards[k : k + n_step]
        stop = k + len(rewards)
        total = sum(r * _DISCOUNT**i for i, r in enumerate(rewards))
        weight = _DISCOUNT ** len(rewards)
        last = episode.obs[stop]
        if stop == len(episode.actions) and episode.end == ['terminated']:
          weight, last = 0.0, episode.obs[stop - 1]
        found[clock] = (episode.obs[k], episode.actions[k], total, weight, last)
        if sequence_steps:
          found[clock] += (self._future(episode, k, sequence_steps),)
    return found

  def _future(self, episode: _Episode, k: int, sequence_steps: int) -> list:
    """(action, observation, whether they count) of the steps from k on."""
    seen = []
    for u in range(k, min(k + sequence_steps, len(episode.actions))):
      if u == len(episode.actions) - 1 and episode.end == ['terminated']:
        break
      seen.append((episode.actions[u], episode.obs[u + 1], True))
    none = (episode.actions[k], episode.obs[k], True)
    filler = (*(seen or [none])[-1][:2], False)
    return seen + [filler] * (sequence_steps - len(seen))


def _observation(dtype: np.dtype, number: Any) -> np.ndarray:
  """Observations [..., 4, 5] of which each shows its number."""
  number = np.asarray(number)[..., None]
  if dtype == np.bool_:
    flat = (number >> np.arange(_BITS)) & 1 > 0
  else:
    flat = (number + np.arange(_BITS)).astype(dtype)
  return flat.reshape(*number.shape[:-1], 4, 5)


def _number(obs: np.ndarray) -> np.ndarray:
  flat = np.asarray(obs).reshape(*obs.shape[:-2], _BITS)
  if flat.dtype == np.bool_:
    return (flat << np.arange(_BITS)).sum(axis=-1)
  # Of no other observation: all of the cells agree.
  np.testing.assert_array_equal(flat, flat[..., :1] + np.arange(_BITS))
  return flat[..., 0].astype(np.int64)


# With which a continuous action begins, of number 0: a NaN with a payload, the
# smallest number and the next below 0, pi.
_WORDS = np.uint32([0x7FC12340, 0x00000000, 0x80000000, 0x40490FD8])


def _action(replay: DeviceReplay, number: Any) -> np.ndarray:
  """Actions [...] or [..., D], of which each shows its number, 0 to 7."""
  number = np.asarray(number, np.int32)
  if not replay.action_dim:
    return number
  words = _WORDS[: replay.action_dim] ^ number[..., None].astype(np.uint32)
  return words.view(np.float32)


def _action_number(actions: np.ndarray) -> np.ndarray:
  if actions.dtype == np.int32:
    return actions
  assert actions.dtype == np.float32
  numbers = np.ascontiguousarray(actions).view(np.uint32)
  numbers = numbers ^ _WORDS[: actions.shape[-1]]
  np.testing.assert_array_equal(numbers, numbers[..., :1] + 0 * numbers)
  return numbers[..., 0].astype(np.int32)


def _history(rng, num_envs: int, length: int, cap: int | None, terminate):
  """First observations and `length` steps, as the reference has them."""
  count = iter(range(1, 2**_BITS))
  first = [next(count) for _ in range(num_envs)]
  age = np.zeros(num_envs, int)
  steps = []
  for _ in range(length):
    age += 1
    terminated = rng.random(num_envs) < terminate
    truncated = ~terminated & (age == cap) if cap else terminated & False
    age[terminated | truncated] = 0
    following = [next(count) for _ in range(num_envs)]
    final = [
      next(count) if cut else n
      for n, cut in zip(following, terminated | truncated, strict=True)
    ]
    steps.append(
      _Step(
        rng.integers(0, 7, num_envs).tolist(),
        rng.integers(-3, 4, num_envs).astype(float).tolist(),
        terminated.tolist(),
        truncated.tolist(),
        final,
        following,
      )
    )
  return first, steps


def _inputs(replay: DeviceReplay, steps: list[_Step]) -> dict[str, np.ndarray]:
  """The keywords of `add`, each with a leading axis of steps."""
  columns = _Step(*zip(*steps, strict=True))
  return dict(
    action=_action(replay, columns.action),
    reward=np.array(columns.reward, np.float32),
    terminated=np.array(columns.terminated),
    ended=np.array(columns.terminated) | np.array(columns.truncated),
    final_obs=_observation(replay.obs_dtype, columns.final),
    obs=_observation(replay.obs_dtype, columns.next),
  )


def _rows(obs_tm1, a_tm1, r_t, discount_t, obs_t) -> list[tuple]:
  """A batch as the reference writes it."""
  columns = (
    _number(obs_tm1),
    _action_number(a_tm1),
    r_t,
    discount_t,
    _number(obs_t),
  )
  return list(zip(*(x.tolist() for x in columns), strict=True))


@functools.partial(jax.jit, static_argnums=0)
def _play(replay: DeviceReplay, first, inputs, discount):
  """All that can be gathered after each step, [T, capacity, ...]."""
  index = jnp.arange(replay.capacity)

  def step(carry, step):
    state, t = carry
    state, t = replay.add(state, t, **step), t + 1
    return (state, t), replay.gather(state, t, index, discount)

  start = replay.start(replay.init(), first), jnp.int32(0)
  return jax.lax.scan(step, start, inputs)[1]


def _expected(replay: DeviceReplay, first, steps):
  """After each step, what the reference can sample, by index."""
  references = [_Reference(n) for n in first]
  starts = replay.capacity // replay.num_envs
  for t, step in enumerate(steps, 1):
    for reference, *row in zip(references, *step, strict=True):
      reference.add(*row)
    yield {
      clock % starts * replay.num_envs + env: transition
      for env, reference in enumerate(references)
      for clock, transition in reference.transitions(
        t, starts, replay.n_step, replay.sequence_steps
      ).items()
    }


def _futures(future) -> list[tuple[list]]:
  """The further column of each row, as the reference writes it."""
  columns = _action_number(future.a), _number(future.obs), future.mask
  rows = zip(*(x.tolist() for x in columns), strict=True)
  return [(list(zip(*row, strict=True)),) for row in rows]


def _compare(replay: DeviceReplay, first, steps, batches) -> None:
  future = jax.tree.map(np.asarray, batches.future)
  assert (future is None) == (replay.sequence_steps == 0)
  batches = [np.asarray(x) for x in batches[:5]]
  sizes = np.asarray(jax.vmap(replay.size)(jnp.arange(1, len(steps) + 1)))
  for t, expected in enumerate(_expected(replay, first, steps)):
    # The indices below the size are those that can be sampled, and no others.
    assert sorted(expected) == list(range(sizes[t]))
    rows = _rows(*(x[t, : sizes[t]] for x in batches))
    if future is not None:
      now = type(future)(*(x[t, : sizes[t]] for x in future))
      further = _futures(now)
      rows = [row + more for row, more in zip(rows, further, strict=True)]
    assert rows == [expected[k] for k in sorted(expected)]


# Few shapes, each compiled once, and any number of histories in them.
_SETTINGS = [
  dict(num_envs=1, capacity=1, n_step=1, max_episode_steps=1),
  dict(num_envs=1, capacity=7, n_step=1, max_episode_steps=3, sequence_steps=3),
  dict(num_envs=3, capacity=12, n_step=1, max_episode_steps=20),
  dict(num_envs=2, capacity=12, n_step=2, max_episode_steps=4),
  dict(num_envs=2, capacity=2, n_step=3, max_episode_steps=2, sequence_steps=5),
  dict(
    num_envs=3, capacity=27, n_step=3, max_episode_steps=None, sequence_steps=2
  ),
  dict(num_envs=1, capacity=10, n_step=4, max_episode_steps=5),
  dict(num_envs=2, capacity=18, n_step=4, max_episode_steps=13),
  dict(num_envs=1, capacity=7, n_step=1, max_episode_steps=3, action_dim=1),
  dict(
    num_envs=3,
    capacity=12,
    n_step=2,
    max_episode_steps=4,
    action_dim=4,
    sequence_steps=4,
  ),
]
_LENGTH = 64


def _make(settings, dtype=np.float32) -> DeviceReplay:
  packed = dtype == 'packed'
  return DeviceReplay(
    (4, 5), np.bool_ if packed else dtype, packed=packed, **settings
  )


@hypothesis.settings(max_examples=75, deadline=None, derandomize=True)
@hypothesis.given(
  st.sampled_from(_SETTINGS),
  st.sampled_from([0.0, 0.05, 0.3, 0.9]),
  st.integers(0, 2**32 - 1),
)
def test_yields_exactly_the_transitions_of_the_episodes(
  settings, terminate, seed
):
  replay = _make(settings)
  first, steps = _history(
    np.random.default_rng(seed),
    replay.num_envs,
    _LENGTH,
    replay.max_episode_steps,
    terminate,
  )
  batches = _play(
    replay,
    _observation(replay.obs_dtype, first),
    _inputs(replay, steps),
    _DISCOUNT,
  )
  _compare(replay, first, steps, batches)


@pytest.mark.parametrize('cap', [1, 3, 6, 7, 10, 30])
def test_no_final_observation_is_lost(cap):
  """Cut about as often as may be, each environment at times of its own."""
  settings = dict(num_envs=3, capacity=24, n_step=2, max_episode_steps=cap)
  replay = _make(settings | dict(sequence_steps=4))
  first, steps = _history(np.random.default_rng(cap), 3, _LENGTH, None, 0.0)
  rng = np.random.default_rng(cap)
  for env in range(3):
    t = env
    while t < _LENGTH:
      steps[t].truncated[env] = True
      steps[t].final[env] = 10_000 + 3 * t + env
      t += cap + rng.integers(0, 3)  # the bound itself, and a little more
  inputs = _inputs(replay, steps)
  batches = _play(
    replay, _observation(replay.obs_dtype, first), inputs, _DISCOUNT
  )
  _compare(replay, first, steps, batches)


@pytest.mark.parametrize(
  ('settings', 'dtype'),
  [
    (_SETTINGS[3], np.uint8),
    (_SETTINGS[3], 'packed'),
    (_SETTINGS[5], np.uint8),
    (_SETTINGS[9], 'packed'),
  ],
)
def test_runs_side_by_side_are_as_each_alone(settings, dtype):
  replay = _make(settings, dtype)
  rng = np.random.default_rng(0)
  histories = [
    _history(rng, replay.num_envs, 40, replay.max_episode_steps, p)
    for p in (0.0, 0.1, 0.5)
  ]
  firsts = [_observation(replay.obs_dtype, first) for first, _ in histories]
  inputs = [_inputs(replay, steps) for _, steps in histories]
  discounts = np.float32([1.0, 0.5, 0.25])
  alone = [
    _play(replay, *args) for args in zip(firsts, inputs, discounts, strict=True)
  ]

  @jax.jit
  def together(firsts, inputs, discounts):
    index = jnp.arange(replay.capacity)

    def step(carry, step):
      states, t = carry
      states = jax.vmap(replay.add, (0, None))(states, t, **step)
      t = t + 1
      gather = jax.vmap(replay.gather, in_axes=(0, None, None, 0))
      return (states, t), gather(states, t, index, discounts)

    empty = jax.tree.map(lambda x: jnp.stack([x] * 3), replay.init())
    states = jax.vmap(replay.start)(empty, firsts)
    inputs = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), inputs)
    return jax.lax.scan(step, (states, jnp.int32(0)), inputs)[1]

  stack = lambda trees: jax.tree.map(lambda *x: np.stack(x), *trees)
  batches = together(stack(firsts), stack(inputs), discounts)
  for run in range(3):
    for a, b in zip(alone[run][:5], batches[:5], strict=True):
      np.testing.assert_array_equal(a, b[:, run])
  if dtype != 'packed':
    return
  # As if they had not been packed.
  plain = _make(settings, np.bool_)
  for args, batch in zip(
    zip(firsts, inputs, discounts, strict=True), alone, strict=True
  ):
    for a, b in zip(batch[:5], _play(plain, *args)[:5], strict=True):
      assert a.dtype == b.dtype
      np.testing.assert_array_equal(a, b)


# --- Meaning ---------------------------------------------------------------


def _nothing(replay, **changes):
  """The keywords of a step of every environment in which nothing happens."""
  ring = getattr(replay, 'replay', replay)
  envs = ring.num_envs
  no, obs = jnp.zeros(envs, bool), jnp.zeros((envs, *ring.obs_shape))
  action = jnp.zeros(envs, int)
  if ring.action_dim:
    action = jnp.zeros((envs, ring.action_dim))
  step = dict(action=action, reward=jnp.zeros(envs), terminated=no, ended=no)
  return step | dict(final_obs=obs, obs=obs) | changes


def _drawn(replay, state, t, bits, **numbers):
  """(batch, handle) of a gradient step on a state as it stands."""
  sampling = Sampling(**{'discount': 0.5, 'beta': 1.0, **numbers})
  return replay.sample(state, replay.moving(state), t, bits, sampling)


def _updated(replay, state, index, td_error_abs, alpha):
  """A state after what a gradient step reported of a batch."""
  moving = replay.update(
    replay.moving(state),
    index,
    {'td_error_abs': td_error_abs},
    Sampling(0.5, alpha),
  )
  return replay.with_moving(state, moving)


def _fed(replay, count, **changes):
  """A replay after `count` steps of observations 0, 1, 2, ... at rewards 1."""
  envs = replay.num_envs if isinstance(replay, DeviceReplay) else 1
  obs = lambda k: jnp.full((envs, 1), k, jnp.float32)
  no = jnp.zeros(envs, bool)
  state = replay.start(replay.init(), obs(0))
  for t in range(count):
    step = dict(
      action=jnp.full(envs, t), reward=jnp.ones(envs), final_obs=obs(-1)
    )
    step |= dict(terminated=no, ended=no, obs=obs(t + 1))
    step |= changes.get(f'at{t}', {})
    state = jax.jit(replay.add)(state, t, **step)
  return state


def test_three_step_returns_by_hand():
  replay = DeviceReplay((1,), np.float32, 4, 1, 3, 10)
  gather = jax.jit(replay.gather)
  yes = jnp.ones(1, bool)
  rows = lambda batch: list(
    zip(*(np.ravel(x).tolist() for x in batch[:5]), strict=True)
  )
  index = jnp.arange(2)
  # 1 + 1/2 + 1/4; the successor is three steps on.
  state = _fed(replay, 4)
  assert rows(gather(state, 4, index, 0.5)) == [
    (0, 0, 1.75, 0.125, 3),
    (1, 1, 1.75, 0.125, 4),
  ]
  # Cut after clock 1: two rewards, or one, and the observation -1 last.
  state = _fed(replay, 4, at1=dict(ended=yes))
  assert rows(gather(state, 4, index, 0.5)) == [
    (0, 0, 1.5, 0.25, -1),
    (1, 1, 1.0, 0.5, -1),
  ]
  # Terminated there: no discount, and the last observation acted upon.
  state = _fed(replay, 4, at1=dict(terminated=yes, ended=yes))
  assert rows(gather(state, 4, index, 0.5)) == [
    (0, 0, 1.5, 0.0, 1),
    (1, 1, 1.0, 0.0, 1),
  ]


def test_three_steps_ahead_by_hand():
  replay = DeviceReplay((1,), np.float32, 5, 1, 1, 10, sequence_steps=3)
  gather = jax.jit(replay.gather)
  yes = jnp.ones(1, bool)

  def rows(state):
    future = gather(state, 5, jnp.arange(5), 0.5).future
    assert future.obs.shape == (5, 3, 1)
    assert future.a.dtype == jnp.int32
    return [
      [*zip(a, obs, mask, strict=True)]
      for a, obs, mask in zip(
        future.a.tolist(), future.obs[..., 0].tolist(), future.mask, strict=True
      )
    ]

  # Action t at observation t leads to t + 1; of clock 5 there is no action yet.
  plain = rows(_fed(replay, 5))
  assert plain[2] == [(2, 3, True), (3, 4, True), (4, 5, True)]
  assert plain[3] == [(3, 4, True), (4, 5, True), (4, 5, False)]
  # Cut after clock 2, with the observation -1 last: it still counts.
  cut = rows(_fed(replay, 5, at2=dict(ended=yes)))
  assert cut[1] == [(1, 2, True), (2, -1, True), (2, -1, False)]
  assert cut[3] == plain[3]
  # Terminated there: what followed does not, and of clock 2 nothing is left.
  terminated = rows(_fed(replay, 5, at2=dict(terminated=yes)))
  assert terminated[1] == [(1, 2, True), (1, 2, False), (1, 2, False)]
  assert terminated[2] == [(2, 2, False)] * 3


def test_looking_ahead_changes_nothing_else():
  rng = np.random.default_rng(0)
  first, steps = _history(rng, 2, 20, 5, 0.1)
  bits = jnp.asarray(rng.integers(0, 2**32, 16, np.uint32))
  batches = []
  for ahead in (0, 5):
    ring = _make(
      dict(num_envs=2, capacity=12, n_step=2, max_episode_steps=5)
      | dict(sequence_steps=ahead)
    )
    replay = PrioritizedReplay(ring)
    state = replay.start(replay.init(), _observation(ring.obs_dtype, first))
    state, _ = jax.lax.scan(
      lambda state, step, replay=replay: (
        replay.add(state, step[0], **step[1]),
        None,
      ),
      state,
      (jnp.arange(20), _inputs(ring, steps)),
    )
    batch, index = jax.jit(_drawn, static_argnums=0)(replay, state, 20, bits)
    assert (batch.future is not None) == (ahead > 0)
    batches.append((state, batch._replace(future=None), index))
  jax.tree.map(np.testing.assert_array_equal, *batches)


def test_rewards_after_an_end_do_not_count_even_if_infinite():
  replay = DeviceReplay((1,), np.float32, 4, 1, 3, 10)
  state = _fed(
    replay,
    4,
    at1=dict(terminated=jnp.ones(1, bool)),
    at2=dict(reward=jnp.full(1, jnp.inf)),
  )
  batch = replay.gather(state, 4, jnp.arange(2), 0.5)
  np.testing.assert_array_equal(batch.r_t, [1.5, 1.0])


def test_a_step_can_be_sampled_at_once_and_capacity_of_them_when_full():
  replay = DeviceReplay((1,), np.float32, 12, 3, 1)
  sizes = [int(replay.size(t)) for t in range(7)]
  assert sizes == [0, 3, 6, 9, 12, 12, 12]
  replay = DeviceReplay((1,), np.float32, 12, 3, 4)
  sizes = [int(replay.size(t)) for t in range(9)]
  assert sizes == [0, 0, 0, 0, 3, 6, 9, 12, 12]


def test_three_steps_keep_the_first_of_continuous_actions():
  replay = DeviceReplay((1,), np.float32, 4, 1, 3, 10, action_dim=2)
  actions = {
    f'at{t}': dict(action=jnp.array([[0.1 * t, -1.0]])) for t in range(4)
  }
  batch = replay.gather(_fed(replay, 4, **actions), 4, jnp.arange(2), 0.5)
  np.testing.assert_array_equal(
    batch.a_tm1, np.float32([[0.0, -1.0], [0.1, -1.0]])
  )
  np.testing.assert_array_equal(batch.r_t, [1.75, 1.75])


def test_observations_of_no_dimension_are_stored():
  replay = DeviceReplay((), np.int32, 2, 1)
  state = replay.start(replay.init(), jnp.array([5]))
  step = dict(action=jnp.array([3]), final_obs=jnp.array([0]))
  step = _nothing(replay, **step, obs=jnp.array([6]))
  batch = replay.peek(replay.add(state, 0, **step), 1, jnp.uint32([0, 0]), 0.9)
  assert batch.obs_tm1.tolist() == [5, 5]
  assert batch.obs_t.tolist() == [6, 6]
  assert batch.a_tm1.tolist() == [3, 3]
  assert batch.weight is None


@pytest.mark.parametrize('t', [5, 9, 40])
def test_sampling_is_uniform(t):
  replay = DeviceReplay((1,), np.float32, 8, 2, 2)
  state = _fed(replay, t)
  bits = jax.random.bits(jax.random.key(1), (8000,), jnp.uint32)
  batch = jax.jit(replay.peek)(state, t, bits, 0.9)
  # Both environments take the action that is the clock.
  clocks, counts = np.unique(batch.a_tm1, return_counts=True)
  starts = int(replay.size(t)) // 2
  assert clocks.tolist() == list(range(t - 1 - starts, t - 1))
  assert stats.chisquare(counts).pvalue > 1e-3


# --- In a compiled loop ----------------------------------------------------


@pytest.mark.parametrize(
  ('num_envs', 'runs', 'action_dim'),
  [(1, None, 0), (4, None, 0), (4, 3, 0), (4, None, 6)],
)
# XLA's older code, which compiles faster, has loops in place of scatters.
@pytest.mark.parametrize(
  'kind', ['uniform', pytest.param('prioritized', marks=pytest.mark.slow)]
)
def test_a_scan_works_in_place(kind, num_envs, runs, action_dim):
  """No buffer of the ring's size is copied, and adding is no scatter."""
  ring = DeviceReplay(
    (3,), np.float32, 2048, num_envs, 3, 50, action_dim=action_dim
  )
  replay = PrioritizedReplay(ring) if kind == 'prioritized' else ring
  bits = jnp.arange(8, dtype=jnp.uint32) * 7919

  def step(state, t):
    state = replay.add(state, t, **_nothing(replay))
    batch, handle = _drawn(replay, state, t + 1, bits, beta=0.4)
    return _updated(replay, state, handle, jnp.abs(batch.r_t), 0.6), batch

  def loop(state):
    body = step if runs is None else jax.vmap(step, (0, None))
    return jax.lax.scan(body, state, jnp.arange(1000, 1005))

  state = replay.init()
  if runs is not None:
    state = jax.tree.map(lambda x: jnp.stack([x] * runs), state)
  lowered = jax.jit(loop, donate_argnums=0).lower(state)
  program = lowered.compile().as_text()
  assert (' scatter(' in program) == (kind == 'prioritized')
  copied = re.findall(r'\[([\d,]+)\]\S* copy\(', program)
  sizes = [np.prod([int(d) for d in c.split(',')]) for c in copied]
  assert max(sizes, default=0) < 2048


# --- Prioritized -----------------------------------------------------------


def _prioritized(capacity, num_envs=1, n_step=1) -> PrioritizedReplay:
  return PrioritizedReplay(
    DeviceReplay((1,), np.float32, capacity, num_envs, n_step)
  )


def _check_tree(replay: PrioritizedReplay, state, leaves) -> None:
  """Every level against NumPy's sums of float64."""
  level = np.zeros(state.sums[0].size)
  level[: replay.replay.capacity] = leaves
  for sums in state.sums:
    flat = np.ravel(sums)
    np.testing.assert_allclose(flat[: len(level)], level, rtol=1e-5)
    assert not flat[len(level) :].any()
    level = flat.reshape(sums.shape).astype(np.float64).sum(axis=1)
  assert len(level) == 1
  np.testing.assert_allclose(level[0], leaves.sum(), rtol=1e-5)


@pytest.mark.parametrize(
  ('capacity', 'num_envs', 'n_step'),
  [(5, 1, 1), (6, 3, 2), (99, 3, 4), (140, 35, 2), (840, 70, 3)],
)
def test_the_tree_has_the_priorities_and_their_sums(capacity, num_envs, n_step):
  """Against an array: adds and updates in turn, indices drawn many times."""
  replay = _prioritized(capacity, num_envs, n_step)
  starts = capacity // num_envs
  rng = np.random.default_rng(capacity)
  nothing = _nothing(replay)
  add = jax.jit(lambda state, t: replay.add(state, t, **nothing))
  update = jax.jit(functools.partial(_updated, replay))
  state = replay.start(replay.init(), nothing['obs'])
  leaves, largest = np.zeros(capacity, np.float32), np.float32(1.0)
  for t in range(2 * starts + n_step + 3):
    state = add(state, t)
    if t + 1 >= n_step:
      row = (t + 1 - n_step) % starts * num_envs
      leaves[row : row + num_envs] = largest
    size = int(replay.size(t + 1))
    assert np.count_nonzero(leaves) == size
    if size:
      index = rng.integers(0, size, 16) // 2  # many of them twice
      errors = np.abs(rng.standard_normal(16).astype(np.float32) * 3)
      state = update(state, index, errors, 0.5)
      new = np.sqrt(errors + np.float32(1e-6))
      leaves[index] = 0
      np.maximum.at(leaves, index, new)
      largest = max(largest, new.max())
    if t % 4 == 0 or t < n_step + 3:
      _check_tree(replay, state, leaves)
  np.testing.assert_allclose(state.max_priority, largest, rtol=1e-6)


def _with_leaves(replay: PrioritizedReplay, leaves):
  """A full replay with these priorities, set by way of `update`."""
  state, t = replay.init(), replay.replay.capacity
  errors = jnp.asarray(leaves) - replay.epsilon
  return _updated(replay, state, jnp.arange(t), errors, 1.0), t


@pytest.mark.parametrize('capacity', [6, 600])
def test_frequencies_are_proportional_to_priorities(capacity):
  replay = _prioritized(capacity)
  rng = np.random.default_rng(0)
  leaves = rng.uniform(0.5, 3.0, capacity)
  state, t = _with_leaves(replay, leaves)

  @jax.jit
  def draw(key):
    bits = jax.random.bits(key, (8,), jnp.uint32)
    return _drawn(replay, state, t, bits)[1]

  keys = jax.random.split(jax.random.key(0), 20 * capacity)
  index = np.asarray(jax.lax.map(draw, keys))
  counts = np.bincount(index.ravel(), minlength=capacity)
  expected = leaves / leaves.sum() * counts.sum()
  # Strata make the counts vary less than independent draws would.
  assert np.square(counts - expected).sum() / expected.mean() < 1.5 * capacity
  assert np.corrcoef(counts, leaves)[0, 1] > 0.9
  # Each stratum yields one: draw k lies in its eighth of the sum.
  ends = np.cumsum(leaves) / leaves.sum()
  begins = ends - leaves / leaves.sum()
  for k in range(8):
    assert np.all(ends[index[:, k]] >= k / 8 - 1e-5)
    assert np.all(begins[index[:, k]] <= (k + 1) / 8 + 1e-5)


def test_small_leaves_beside_a_large_one_are_all_drawn():
  """Where float32 cannot tell them apart by their place in the whole sum."""
  replay = _prioritized(64)
  leaves = np.full(64, 4.0)
  leaves[0] = 2.0**27  # float32 goes on from there in steps of 16
  state, t = _with_leaves(replay, leaves)
  # All random bits that lead to the end of the sum.
  top = (2**32 - np.arange(1, 2**13)).astype(np.uint32)
  draw = jax.jit(jax.vmap(lambda b: _drawn(replay, state, t, b[None])[1][0]))
  counts = np.bincount(draw(jnp.asarray(top)), minlength=64)
  # 2**32 / (2**27 + 252) values of the bits to one of the sum: 128 to a leaf.
  np.testing.assert_allclose(counts[8:], 128, atol=2)


def test_no_leaf_of_zero_is_drawn_even_at_the_ends():
  replay = _prioritized(100)
  state, t = _with_leaves(replay, np.full(100, 0.1))
  sums = []
  leaves = np.ravel(state.sums[0]).copy()
  leaves[[0, 1, 7, 8, 9, *range(16, 24), 64, 65, 98, 99]] = 0
  level = leaves
  for like in state.sums:
    level = np.pad(level, (0, like.size - len(level))).reshape(like.shape)
    sums.append(jnp.asarray(level))
    level = level.sum(axis=1)
  state = state._replace(sums=tuple(sums))
  sample = jax.jit(functools.partial(_drawn, replay))
  for bits in (0, 2**32 - 1, 2**32 - 256, 255):
    _, index = sample(state, t, jnp.full(97, bits, jnp.uint32))
    assert np.all(leaves[index] > 0)


def test_weights_by_hand():
  replay = _prioritized(4)
  sample = jax.jit(functools.partial(_drawn, replay))
  state, t = _with_leaves(replay, [1.0, 2.0, 4.0, 1.0])
  # Strata [0, 2), [2, 4), [4, 6), [6, 8) of the sum 8, from their middles:
  # 1, 3, 5, 7 lie in leaves 1, 2, 2, 3, of P = 1/4, 1/2, 1/2, 1/8. Then
  # (4 P)**-1/2 is 1, 2**-1/2, 2**-1/2, 2**1/2, the largest.
  bits = jnp.full(4, 2**31, jnp.uint32)
  batch, index = sample(state, t, bits, beta=0.5)
  assert index.tolist() == [1, 2, 2, 3]
  np.testing.assert_allclose(batch.weight, [0.5**0.5, 0.5, 0.5, 1.0], rtol=1e-6)
  batch, _ = sample(state, t, bits, beta=0.0)
  np.testing.assert_array_equal(batch.weight, np.ones(4))


def test_new_transitions_come_at_the_largest_priority_so_far():
  replay = _prioritized(4)
  state = _fed(replay, 3)
  np.testing.assert_array_equal(state.sums[0], [[1, 1, 1, 0]])
  errors = jnp.array([7.0, 0.0])
  state = _updated(replay, state, jnp.array([0, 1]), errors, 1.0)
  for t in (3, 4):  # the second takes the place of the 7
    state = replay.add(state, t, **_nothing(replay))
  np.testing.assert_allclose(
    state.sums[0], [[7, 1e-6, 1, 7]], rtol=1e-6, atol=1e-9
  )


def test_of_equal_indices_the_largest_error_counts():
  replay = _prioritized(4)
  state, _ = _with_leaves(replay, [5.0, 5.0, 5.0, 5.0])
  index = jnp.array([2, 1, 2, 2])
  errors = jnp.array([1.0, 2.0, 3.0, 0.5])
  state = _updated(replay, state, index, errors, 1.0)
  np.testing.assert_allclose(state.sums[0], [[5, 2, 3, 5]], rtol=1e-5)


def test_priorities_may_be_made_of_another_metric():
  ring = _prioritized(4).replay
  replay = PrioritizedReplay(ring, metric='transition_loss')
  assert replay.reads == ('transition_loss',)
  state, _ = _with_leaves(_prioritized(4), [5.0, 5.0, 5.0, 5.0])
  moving = replay.update(
    replay.moving(state),
    jnp.array([1, 3]),
    {'td_error_abs': jnp.ones(2), 'transition_loss': jnp.array([4.0, 9.0])},
    Sampling(0.5, 0.5),
  )
  np.testing.assert_allclose(moving.sums[0], [[5, 2, 5, 3]], rtol=1e-5)


def test_a_mean_of_the_errors_is_no_error_of_each():
  replay = _prioritized(4)
  state, _ = _with_leaves(replay, [5.0, 5.0, 5.0, 5.0])
  with pytest.raises(ValueError, match=r'td_error_abs is \(\): must be \(4,\)'):
    _updated(replay, state, jnp.arange(4), jnp.float32(1.0), 1.0)


def test_prioritized_runs_side_by_side_are_as_each_alone():
  replay = _prioritized(66, 3, 2)

  rng = np.random.default_rng(0)
  obs = rng.standard_normal((80, 3, 3, 1)).astype(np.float32)  # [T, runs, ...]
  bits = rng.integers(0, 2**32, (80, 3, 8), dtype=np.uint32)

  def step(states, t, swept, obs, bits):
    """One step of one run; what it drew from clock 2 on, all else from 1."""
    state, (discount, beta, alpha) = states, swept
    step = dict(action=jnp.arange(3), reward=obs[:, 0], final_obs=obs, obs=obs)
    state = replay.add(state, t, **_nothing(replay, **step))
    batch, index = _drawn(
      replay, state, t + 1, bits, discount=discount, beta=beta
    )
    learned = _updated(replay, state, index, jnp.abs(batch.r_t), alpha)
    # There is nothing to be sampled after the first step.
    pick = lambda a, b: jnp.where(t > 0, a, b)
    return jax.tree.map(pick, learned, state), (batch, index)

  def run(runs):
    swept = [jnp.float32(x)[runs] for x in ((0.9, 0.5, 1), (0.4, 1, 0))]
    swept.append(jnp.float32((0.6, 1, 0))[runs])
    state = jax.tree.map(lambda x: jnp.stack([x] * len(runs)), replay.init())

    def body(carry, inputs):
      states, t = carry
      states, drawn = jax.vmap(step, (0, None, 0, 0, 0))(
        states, t, swept, *inputs
      )
      return (states, t + 1), drawn

    inputs = jnp.asarray(obs)[:, runs], jnp.asarray(bits)[:, runs]
    return jax.lax.scan(body, (state, jnp.int32(0)), inputs)[1]

  together = jax.tree.map(lambda x: x[1:], jax.jit(run)(jnp.arange(3)))
  alone = jax.jit(run)
  for k in range(3):
    for a, b in zip(
      jax.tree.leaves(alone(jnp.array([k]))),
      jax.tree.leaves(together),
      strict=True,
    ):
      np.testing.assert_allclose(a[1:, 0], b[:, k], rtol=1e-5)


# --- Memory and errors -----------------------------------------------------


def test_bytes_are_known_beforehand():
  # 10,010 observations and steps: 10 rows more than transitions, for n = 1.
  replay = DeviceReplay((4,), np.float32, 10_000, 10)
  assert replay.nbytes == 10_010 * (16 + 8)
  # 1001 rows, truncated each 500 steps: 4 rows of 10 observations.
  limited = DeviceReplay((4,), np.float32, 10_000, 10, max_episode_steps=500)
  assert limited.nbytes == replay.nbytes + 4 * 10 * 16
  # 13 words of 32 bits for 400.
  plain = DeviceReplay((10, 10, 4), np.bool_, 99_999, 1)
  packed = DeviceReplay((10, 10, 4), np.bool_, 99_999, 1, packed=True)
  assert plain.nbytes == 100_000 * (400 + 8)
  assert packed.nbytes == 100_000 * (52 + 8)
  # Four bytes to each number of an action, where the one number was with the
  # word that tells the end.
  plane = DeviceReplay((4,), np.float32, 10_000, 10, action_dim=3)
  assert plane.nbytes == 10_010 * (16 + 8 + 12)
  # Leaves, 1250, 157, 20 and 3 nodes, the lower ones in rows of 8; and the
  # largest.
  assert PrioritizedReplay(replay).nbytes == replay.nbytes + 4 * (
    8 * (1250 + 157 + 20 + 3) + 3 + 1
  )
  # Nothing is allocated: this would be 7 TB.
  assert DeviceReplay((84, 84), np.uint8, 10**9, 1).nbytes > 7e12


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(num_envs=0), 'num_envs=0: must be at least 1'),
    (dict(n_step=0), 'n_step=0: must be at least 1'),
    (dict(capacity=0), 'capacity=0: must be at least 1'),
    (dict(max_episode_steps=0), 'max_episode_steps=0: must be at least 1'),
    (dict(num_envs=3), 'capacity=100: must be a multiple of num_envs=3'),
    (dict(obs_shape=(4, 0)), r'obs_shape=\(4, 0\): every size must'),
    (dict(obs_dtype='U1'), 'obs_dtype=<U1: must be bool or a num'),
    (dict(obs_dtype='float64'), 'obs_dtype=float64: must be bool or a num'),
    (dict(packed=True), 'packed=True: must be False unless obs_dtype is bool'),
    (dict(capacity=2**31), 'capacity=2147483648: must be so small'),
    (dict(action_dim=-1), 'action_dim=-1: must be at least 0'),
    (dict(sequence_steps=-1), 'sequence_steps=-1: must be at least 0'),
  ],
)
def test_impossible_settings_are_refused(changes, message):
  settings = dict(
    obs_shape=(4,), obs_dtype=np.float32, capacity=100, num_envs=1
  )
  with pytest.raises(ValueError, match=message):
    DeviceReplay(**(settings | changes))


@pytest.mark.parametrize('epsilon', [0.0, -1.0, float('nan')])
def test_an_epsilon_that_is_not_above_0_is_refused(epsilon):
  replay = DeviceReplay((4,), np.float32, 100, 1)
  with pytest.raises(ValueError, match='epsilon=.*: must be above 0'):
    PrioritizedReplay(replay, epsilon)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(action=jnp.zeros(3, int)), r'action is \(3,\): must be \(2,\)'),
    (dict(action=jnp.zeros(2)), 'action is float32: must be integer'),
    (dict(reward=jnp.zeros((2, 1))), r'reward is \(2, 1\)'),
    (dict(terminated=False), r'terminated is \(\)'),
    (dict(ended=jnp.zeros(1, bool)), r'ended is \(1,\)'),
    (dict(obs=jnp.zeros((1, 1))), r'obs is float32 \(1, 1\): must be float32'),
    (dict(final_obs=jnp.zeros((2, 1), int)), 'final_obs is int32'),
  ],
)
def test_add_refuses_other_arrays(changes, message):
  replay = DeviceReplay((1,), np.float32, 4, 2)
  with pytest.raises(ValueError, match=message):
    _fed(replay, 1, at0=changes)


@pytest.mark.parametrize(
  ('action', 'message'),
  [
    (jnp.zeros(2), r'action is \(2,\): must be \(2, 3\)'),
    (jnp.zeros((2, 1)), r'action is \(2, 1\): must be \(2, 3\)'),
    (jnp.zeros((2, 3), int), 'action is int32: must be float'),
  ],
)
def test_add_refuses_other_continuous_actions(action, message):
  replay = DeviceReplay((1,), np.float32, 4, 2, action_dim=3)
  with pytest.raises(ValueError, match=message):
    _fed(replay, 1, at0=dict(action=action))


def test_equal_descriptions_are_one_static_argument():
  one = DeviceReplay((4,), np.float32, 100, 1)
  other = DeviceReplay([4], 'float32', 100, 1)  # type: ignore[arg-type]
  assert one == other and hash(one) == hash(other)


# What was stored first that is not finite.


def _stored(obs=(), actions=(), rewards=(), *, steps=4, capacity=10, cut=()):
  """A replay of two environments, with NaN at (step, environment)."""
  replay = DeviceReplay(
    (3,), np.float32, capacity, 2, max_episode_steps=1, action_dim=1
  )

  def filled(step, places, shape):
    array = np.ones(shape, np.float32)
    for at, env in places:
      if at == step:
        array[env] = np.nan
    return array

  state = replay.start(replay.init(), filled(0, obs, (2, 3)))
  add = jax.jit(replay.add)
  for t in range(steps):
    state = add(
      state,
      t,
      action=filled(t, actions, (2, 1)),
      reward=filled(t, rewards, (2,)),
      terminated=np.zeros(2, bool),
      ended=np.ones(2, bool),
      final_obs=filled(t, cut, (2, 3)),
      obs=filled(t + 1, obs, (2, 3)),
    )
  return PrioritizedReplay(replay).first_not_finite(
    PrioritizedReplay(replay).init()._replace(ring=state), steps
  )


@pytest.mark.parametrize(
  ('places', 'first'),
  [
    ({}, ''),
    (dict(rewards=[(2, 1)]), 'reward'),
    (dict(obs=[(0, 0)]), 'observation'),
    (dict(obs=[(3, 0)], actions=[(3, 0)], rewards=[(3, 0)]), 'observation'),
    (dict(obs=[(3, 0)], rewards=[(2, 1)]), 'reward'),
    (dict(obs=[(3, 0)], actions=[(2, 1)], rewards=[(2, 1)]), 'action'),
    (dict(cut=[(2, 0)]), 'observation'),
    # The ring has 6 rows, and of 9 steps the first 4 are gone.
    (dict(obs=[(3, 0)], steps=9), ''),
    (dict(obs=[(4, 0)], steps=9), ''),
    (dict(obs=[(5, 0)], steps=9), 'observation'),
    (dict(rewards=[(4, 0)], steps=9), 'reward'),
    (dict(actions=[(8, 0)], steps=9), 'action'),
  ],
)
def test_what_was_not_finite_first(places, first):
  assert _stored(**places) == first
