"""Catch as a process: that of gymnax's, with values in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.envs.catch import catch, catch_observations
from siamrl.envs.tabular import optimal_probe

ROWS, COLUMNS = 10, 5


def test_the_process_is_that_of_gymnax():
  gymnax = pytest.importorskip('gymnax')
  from gymnax.environments.bsuite.catch import EnvState

  env, params = gymnax.make('Catch-bsuite')
  boards, process = catch_observations(), catch()
  rows, balls, paddles, actions = map(
    np.ravel, np.mgrid[: ROWS - 1, :COLUMNS, :COLUMNS, :3]
  )
  last = np.full(len(rows), ROWS - 1)
  at = (rows * COLUMNS + balls) * COLUMNS + paddles

  def step(ball, row, paddle, bottom, action):
    state = EnvState(
      ball_x=ball,
      ball_y=row,
      paddle_x=paddle,
      paddle_y=bottom,
      prev_done=jnp.zeros((), bool),
      time=jnp.zeros((), jnp.int32),
    )
    obs, _, reward, done, _ = env.step_env(
      jax.random.key(0), state, action, params
    )
    return env.get_obs(state), obs, reward, done

  before, after, rewards, done = jax.jit(jax.vmap(step))(
    *(jnp.asarray(x, jnp.int32) for x in (balls, rows, paddles, last, actions))
  )
  np.testing.assert_array_equal(before, boards[at])
  following = process.transitions[at, actions]
  assert (following.max(1) == 1).all()
  np.testing.assert_array_equal(after, boards[following.argmax(1)])
  np.testing.assert_array_equal(rewards, process.rewards[at, actions])
  np.testing.assert_array_equal(done, process.terminal[following.argmax(1)])
  # An episode begins with the paddle in the middle.
  starts = boards[process.initial > 0]
  assert starts.shape == (5, ROWS, COLUMNS) and (starts[:, 9, 2] == 1).all()


def test_values_are_those_in_closed_form():
  obs, probe = optimal_probe(catch(), 0.9, catch_observations())
  rows, balls, paddles, actions = np.mgrid[: ROWS - 1, :COLUMNS, :COLUMNS, :3]
  moved = np.clip(paddles + actions - 1, 0, COLUMNS - 1)
  left = ROWS - 2 - rows
  best = np.where(abs(balls - moved) <= left, 0.9**left, -(0.9**left))
  np.testing.assert_allclose(probe, best.reshape(-1, 3), rtol=1e-6)
  assert obs.shape == (225, ROWS, COLUMNS) and probe.shape == (225, 3)
  # No two boards are the same, and the first row pays 0.9^8 at most.
  assert len(np.unique(obs.reshape(225, -1), axis=0)) == 225
  assert probe[:25].max() == pytest.approx(0.9**8)
