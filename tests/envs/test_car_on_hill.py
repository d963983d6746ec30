"""Car-on-Hill against an adaptive solver, and its optimum against search."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import odeint

from siamrl.envs import car_on_hill as car

ENVIRONMENT = car.make_car_on_hill()
STEP = jax.jit(jax.vmap(ENVIRONMENT.step, (0, 0, None)))


def height(p):
  return np.where(p < 0, p**2 + p, p / np.sqrt(1 + 5 * p**2))


def solved(p, v, force):
  """0.1 s of the published equations, as their code has them: with odeint."""

  def rates(state, _):
    p, v = state
    first = 2 * p + 1 if p < 0 else (1 + 5 * p**2) ** -1.5
    second = 2 if p < 0 else -15 * p * (1 + 5 * p**2) ** -2.5
    pull = force - 9.81 * first - v**2 * first * second
    return v, pull / (1 + first**2)

  return odeint(rates, (p, v), (0, 0.1))[1]


def at(states, time=0):
  states = jnp.asarray(states, jnp.float32)
  times = jnp.full(len(states), time, jnp.int32)
  return car.CarState(states[:, 0], states[:, 1], times)


def random_states(seed, n):
  rng = np.random.default_rng(seed)
  return rng.uniform(car.LOW, car.HIGH, (n, 2)).astype(np.float32)


def test_steps_follow_the_equations():
  """All over the state space, and where the track's curvature jumps."""
  rng = np.random.default_rng(0)
  states = random_states(0, 600)
  states[::3, 0] = rng.uniform(-0.2, 0.2, 200)
  actions = rng.integers(0, 2, 600)
  want = np.array(
    [
      solved(p, v, (-4, 4)[action])
      for (p, v), action in zip(states.astype(float), actions, strict=True)
    ]
  )
  _, timestep = STEP(at(states), actions, None)
  np.testing.assert_allclose(timestep.obs, want, atol=1e-4)
  lost = (want[:, 0] < -1) | (np.abs(want[:, 1]) > 3)
  won = (want[:, 0] > 1) & ~lost
  # But for states that lie on an edge.
  sure = np.abs(np.abs(want) - car.HIGH).min(1) > 1e-4
  assert sure.mean() > 0.9 and won.any() and lost.any()
  for got, wanted in (
    (timestep.reward, 1.0 * won - lost),
    (timestep.terminated, won | lost),
  ):
    np.testing.assert_array_equal(np.asarray(got)[sure], wanted[sure])


def test_slope_is_that_of_the_height():
  p = np.linspace(-1, 1, 401)
  p = p[np.abs(p) > 1e-3]
  slopes = (height(p + 1e-6) - height(p - 1e-6)) / 2e-6
  np.testing.assert_allclose(car._slope(jnp.asarray(p)), slopes, atol=1e-5)


def test_beyond_the_top_too_fast_is_lost():
  _, timestep = STEP(
    at([(0.99, 2.99), (0.99, 1.0), (-0.9, -2.5)]), np.array([1, 1, 0]), None
  )
  assert timestep.obs[0, 0] > 1 and timestep.obs[0, 1] > 3
  np.testing.assert_array_equal(timestep.reward, [-1, 1, -1])
  np.testing.assert_array_equal(timestep.terminated, [True] * 3)


def test_starts():
  keys = jax.random.split(jax.random.key(0), 500)
  state, obs = jax.vmap(ENVIRONMENT.reset)(keys)
  np.testing.assert_array_equal(obs, [[-0.5, 0.0]] * 500)
  np.testing.assert_array_equal(state.position, obs[:, 0])
  anywhere = car.make_car_on_hill(low=car.LOW, high=car.HIGH)
  state, obs = jax.vmap(anywhere.reset)(keys)
  obs = np.asarray(obs)
  assert (obs >= car.LOW).all() and (obs <= car.HIGH).all()
  for axis, limit in enumerate(car.HIGH):
    counts = np.histogram(obs[:, axis], 5, (-limit, limit))[0]
    assert (counts > 60).all()
  np.testing.assert_array_equal(state.velocity, obs[:, 1])


def test_cut_at_the_cap():
  _, timestep = STEP(at([(-0.5, 0)] * 2, 98), np.array([0, 1]), None)
  assert not timestep.truncated.any()
  states = [(-0.5, 0), (0.99, 1.0)]
  _, timestep = STEP(at(states, 99), np.array([0, 1]), None)
  np.testing.assert_array_equal(timestep.truncated, [True, False])
  np.testing.assert_array_equal(timestep.terminated, [False, True])
  endless = car.make_car_on_hill(max_episode_steps=None)
  _, timestep = endless.step(
    car.CarState(*jnp.float32([-0.5, 0]), jnp.int32(10**6)), 0, None
  )
  assert not timestep.truncated


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'max_episode_steps': 0}, 'max_episode_steps must be >= 1'),
    ({'low': (-1.5, 0.0)}, r'positions must begin within \[-1.0, 1.0\]'),
    ({'high': (0.0, 4.0)}, 'velocities must begin'),
    ({'low': (0.0, 0.0)}, 'positions must begin'),
  ],
)
def test_arguments_out_of_range(arguments, message):
  with pytest.raises(ValueError, match=message):
    car.make_car_on_hill(**arguments)


def test_start_states():
  want = [(0.125 * i, 0.375 * j) for i in range(-8, 9) for j in range(-8, 9)]
  np.testing.assert_array_equal(car.start_states(), np.float32(want))


def test_returns_are_those_of_the_environment():
  """With a policy that pushes the way the car rolls, but not everywhere."""
  act = lambda obs: (obs[:, 1] + 0.3 * obs[:, 0] > 0).astype(jnp.int32)
  states = random_states(1, 64)
  got = jax.jit(lambda states: car.returns(act, states))(states)
  state, obs = at(states), jnp.asarray(states)
  running, total = np.ones(64, bool), np.zeros(64)
  for time in range(car.HORIZON):
    state, timestep = STEP(state, act(obs), None)
    obs = timestep.obs
    total += np.where(running, 0.95**time * np.asarray(timestep.reward), 0)
    running &= ~np.asarray(timestep.terminated)
  assert (total > 0).any() and (total < 0).any()
  np.testing.assert_allclose(got, total, rtol=1e-4)


def test_optimum_against_every_sequence_of_actions():
  """In the first ten steps, from everywhere."""
  length = 10
  states = np.concatenate([car.start_states()[::6], random_states(2, 20)])

  @jax.jit
  def play(states, sequence):
    def step(carry, inputs):
      state, running, total = carry
      time, action = inputs
      actions = jnp.full(len(states), action)
      after, timestep = jax.vmap(ENVIRONMENT.step, (0, 0, None))(
        state, actions, None
      )
      total += jnp.where(running, 0.95**time * timestep.reward, 0)
      return (after, running & ~timestep.terminated, total), None

    start = at(states), jnp.ones(len(states), bool), jnp.zeros(len(states))
    return jax.lax.scan(step, start, (jnp.arange(length), sequence))[0][2]

  sequences = np.array(list(itertools.product((0, 1), repeat=length)))
  many = jax.jit(
    lambda states: jnp.max(jax.vmap(play, (None, 0))(states, sequences), 0)
  )
  best = many(states)
  got = car.optimal_returns(states, horizon=length)
  np.testing.assert_allclose(got, best, rtol=1e-5)
  assert (got > 0).any() and (got < 0).any() and (got == 0).any()


def test_optimum_solves_bellmans_equation():
  """From any state: so the policy that is greedy in it attains it."""
  states = random_states(3, 60)
  values = car.optimal_returns(states)
  after = []
  for action in (0, 1):
    _, timestep = STEP(at(states), np.full(60, action), None)
    onward = car.optimal_returns(np.asarray(timestep.obs), horizon=99)
    ended = np.asarray(timestep.terminated)
    after.append(np.where(ended, timestep.reward, 0.95 * onward))
  np.testing.assert_allclose(values, np.max(after, 0), rtol=1e-12)


@pytest.mark.slow
def test_optimum_does_not_depend_on_the_cells():
  states = car.start_states()
  fine = car.optimal_returns(states)
  np.testing.assert_array_equal(fine, car.optimal_returns(states, cells=160))
  steps = np.log(np.abs(fine)) / np.log(0.95) + 1
  np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)
  assert steps[fine > 0].max() == pytest.approx(22)
