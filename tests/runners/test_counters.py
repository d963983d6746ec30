"""Counters and schedules far into a run, which begins there."""

import dataclasses
from fractions import Fraction
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.config import collecting, learning
from experiments.config.declaring import UsageError
from experiments.config.reading import from_arguments
from experiments.classic import ClassicConfig
from experiments.families import actor_critic, q
from siamrl import diagnostics, schedule, twins
from siamrl.learner import ClockedTwin
from siamrl.replay.device import DeviceReplay
from siamrl.replay.prioritized import PrioritizedReplay
from siamrl.replay.protocol import Sampling
from siamrl.replay.rollout import Rollout
from siamrl.runners import host
from siamrl.schedule import counted
from tests import probes
from tests.runners import test_host, test_scan

FAR = 2**31 + 1
COUNTS = (0, 1, 2**24 + 1, 200_000_000, FAR - 3, FAR - 2, FAR, 2**32 - 1)


@pytest.mark.parametrize('begin', [0, 7, 199_999_990, 2**31 - 1])
@pytest.mark.parametrize('decay', [1, 20, 250_000, 200_000_000, FAR])
def test_schedules_are_those_of_exact_numbers(begin, decay):
  line = functools.partial(
    schedule.linear_epsilon, start=1.0, end=0.1, begin=begin, decay=decay
  )
  counts = [*COUNTS, begin, begin + 1, begin + 9]
  exact = [
    float(1 - Fraction(9, 10) * min(max(Fraction(n - begin, decay), 0), 1))
    for n in counts
  ]
  words = np.array(counts, np.uint32)
  compiled = jax.jit(line)
  np.testing.assert_allclose([line(n) for n in counts], exact, rtol=1e-15)
  np.testing.assert_allclose(compiled(words), exact, rtol=3e-7)
  # An int32 that has passed its largest value holds the same bits.
  np.testing.assert_array_equal(compiled(words.view(np.int32)), compiled(words))


def test_importance_reaches_its_end_with_the_run():
  config = from_arguments(
    ClassicConfig,
    '--environment=catch',
    '--replay=prioritized',
    f'--env_steps={2 * 1_073_741_830}',
    '--iteration_env_steps=10',
  )
  numbers = {**q.settings_of(config)}
  beta = collecting.make_importance(config, numbers)
  assert float(beta(counted(config.env_steps))) == 1
  assert float(beta(counted(0))) == np.float32(0.4)
  half = float(beta(counted(config.env_steps // 2)))
  assert half == pytest.approx(0.7, rel=1e-6)


def test_the_random_start_is_not_repeated():
  for limit in (1_000, 2**31 - 1):
    for steps in COUNTS:
      expected = float(steps < limit)
      early = actor_critic.at_random(counted(steps), jnp.int32(limit))
      assert early == actor_critic.at_random(steps, limit) == expected


def test_a_length_that_cannot_be_counted_is_refused():
  config = from_arguments(ClassicConfig)
  check = functools.partial(
    learning.check_learns, config, length='env_steps', round_env_steps=10
  )
  check(env_steps=FAR, gradient_steps=2**31 - 1)
  check(env_steps=2**32 - 1, gradient_steps=2**31 - 1)
  with pytest.raises(UsageError, match='at most 4294967295 env steps, not 4'):
    check(env_steps=2**32, gradient_steps=1)
  with pytest.raises(UsageError, match='2147483648 gradient steps, and 2147'):
    check(env_steps=FAR, gradient_steps=2**31)


# Clocks at which a ring of 8 starts, 9 rows and 3 further ones for truncations
# after 5 steps is at the place of clock 0, as is a rollout of 4 steps.
_PERIOD = 360
_SHIFT = 2**31 // _PERIOD * _PERIOD
_REPLAYS = {
  'ring': DeviceReplay((1,), np.float32, 8, 1, max_episode_steps=5),
  'ahead': DeviceReplay(
    (1,), np.float32, 8, 1, max_episode_steps=5, sequence_steps=2
  ),
  'prioritized': PrioritizedReplay(
    DeviceReplay((1,), np.float32, 8, 1, max_episode_steps=5)
  ),
  'rollout': Rollout((1,), np.float32, 1, steps=4),
}


@pytest.mark.parametrize('name', _REPLAYS)
@pytest.mark.parametrize('first', [_SHIFT, 2**32 - 16])
def test_replays_are_the_same_beyond_the_largest_int32(name, first):
  """A replay fills from a late clock as from clock 0, and is drawn the same."""
  replay = _REPLAYS[name]
  first = first // _PERIOD * _PERIOD
  steps = min(200, 2**32 - 2 - first)
  assert first <= 2**31 < first + steps or first > 2**31
  bits = jnp.arange(8, dtype=jnp.uint32) * 2**29

  @jax.jit
  def play(shift):
    obs = lambda n: jnp.full((1, 1), n, jnp.float32)

    def step(state, n):
      ended = (n % 5 == 4)[None]
      state = replay.add(
        state,
        shift + n,
        action=n[None].astype(jnp.int32),
        reward=n[None].astype(jnp.float32),
        terminated=ended & (n % 2 == 0),
        ended=ended,
        final_obs=obs(n + 0.5),
        obs=obs(n + 1),
      )
      t, sampling = shift + n + 1, Sampling(0.5, 0.6, 1.0)
      source, draws = replay.begin(state, t, bits[None], sampling)
      drawn = replay.sample(source, replay.moving(state), t, draws[0], sampling)
      return state, (replay.peek(state, t, bits, 0.5), drawn)

    state = replay.start(replay.init(), obs(0))
    return jax.lax.scan(step, state, jnp.arange(steps, dtype=jnp.uint32))

  near, far = play(jnp.uint32(_PERIOD)), play(jnp.uint32(first))
  # A ring that is not full yet is smaller near clock 0.
  for one, other in zip(*map(jax.tree.leaves, (near, far)), strict=True):
    np.testing.assert_array_equal(one, other)


def test_a_compiled_run_passes_the_largest_int32():
  """The iteration in which env steps and vector steps pass 2**31."""
  seen = {'epsilon': set(), 'beta': set()}

  def noting(name, function):
    def note(env_steps):
      jax.debug.callback(lambda n: seen[name].add(int(n)), env_steps)
      return function(env_steps)

    return note

  epsilon = functools.partial(
    schedule.linear_epsilon, start=1.0, end=0.0, begin=2**31 - 1, decay=18
  )
  loop = test_scan.make_loop(
    num_envs=1, collect=4, regress=1, steps=16, warmup=24
  )

  def setup(settings):
    return test_scan.make_setup(settings)._replace(
      epsilon=noting('epsilon', epsilon), beta=noting('beta', lambda _: 1.0)
    )

  loop = dataclasses.replace(loop, make_setup=setup)
  settings = test_scan.make_settings()
  start, iterate = test_scan.compiled(loop)
  state = start(settings, jax.random.key(0))
  for iteration in (2**31 // 16 - 1, 2**31 // 16):
    state, row = iterate(settings, state, np.int32(iteration))
  jax.effects_barrier()
  assert int(row['env_steps']) == 2**31 + 16
  assert row['gradient_steps'] == 8  # no second warm-up
  assert float(row['epsilon']) == pytest.approx(1 - 17 / 18, rel=1e-6)
  taken = set(range(2**31 - 16, 2**31 + 16))
  assert seen['epsilon'] >= taken
  assert seen['epsilon'] <= taken | {2**31, 2**31 + 16}  # those of the rows
  assert seen['beta'] == set(range(2**31 - 12, 2**31 + 17, 4))


def test_a_run_of_the_host_loop_passes_the_largest_int32():
  tables = probes.chain()
  train = test_host._learner(test_host._agent(tables)).init(jax.random.key(0))
  state = host.LoopState.start(train, seed=0, num_envs=1)
  state.iteration, state.env_steps = 2**31 // 64 - 1, 2**31 - 64
  epsilon = functools.partial(
    schedule.linear_epsilon, start=1.0, end=0.0, begin=2**31 - 1, decay=130
  )
  config = test_host._config(
    env_steps=2**31 + 64,
    iteration_env_steps=64,
    warmup_env_steps=2**31 - 16,  # the replay is empty
    epsilon=epsilon,
  )
  state = host.LoopState.from_json(train, state.to_json())
  run = test_host._train(config, tables, state=state)
  assert [row['env_steps'] for row in run.rows] == [2**31, 2**31 + 64]
  assert [row['gradient_steps'] for row in run.rows] == [4, 20]
  assert [row['epsilon'] for row in run.rows] == [1 - 1 / 130, 0.5]


def test_a_twin_ages_beyond_the_integers_of_float32():
  clock = diagnostics.make_clock(ClockedTwin(twins.frozen(), 2**31 - 1))
  params = {'params': {'w': jnp.ones(3)}}
  ages = jax.tree.map(
    lambda leaf: jnp.full_like(leaf, 2.0**24 - 2), clock.init(params)
  )
  before = 2**24 - 2  # gradient steps of a twin that never moved
  age = lambda after: float(
    clock.read(params, clock.advance(params, ages, before, after))[0]
  )
  assert age(before + 2) == before + 2
  for more in (255, 256, 257, 1_000, 4_099):
    assert 0 <= before + more - age(before + more) < 256
