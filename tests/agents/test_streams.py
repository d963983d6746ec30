"""Agents that learn from a stream: by hand, and against a loop in NumPy."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import twins
from siamrl.agents.q import make_q_agent
from siamrl.agents.streams import ReturnScale, make_qrc, make_stream_q
from siamrl.learner import ClockedTwin, make_learner
from siamrl.networks.q_network import mlp_network
from siamrl.obgd import obgd
from siamrl.types import Transition

KEY = jax.random.key(0)
EYE = np.eye(2, dtype=np.float32)
SELF = ClockedTwin(twins.self_copy())


def _linear(actions):
  return nn.Dense(actions, use_bias=False, kernel_init=nn.initializers.zeros)


def _learner(network, size, optimizer, **agent):
  agent = make_stream_q(network, np.zeros((1, size), np.float32), **agent)
  return make_learner(agent, optimizer, SELF)


def _one(obs, action, reward, successor, discount=0.5, ended=False):
  return Transition(
    np.float32(obs)[None],
    np.int32([action]),
    np.float32([reward]),
    np.float32([discount]),
    np.float32(successor)[None],
    ended=np.array([ended]),
  )


def _weights(state):
  return np.asarray(state.online_params['params']['kernel'])


def _stream(steps, size, actions, seed=0):
  """Random transitions that follow each other; some terminate or are cut."""
  rng = np.random.default_rng(seed)
  obs = rng.normal(size=size)
  for _ in range(steps):
    successor, fate = rng.normal(size=size), rng.random()
    discount = 0.0 if fate < 0.1 else 0.9
    yield _one(
      obs,
      rng.integers(actions),
      rng.normal(),
      successor,
      discount,
      ended=fate < 0.2,
    )
    obs = rng.normal(size=size) if fate < 0.2 else successor


def test_three_transitions_by_hand():
  """The second action is not greedy, so the third starts without a trace."""
  learner = _learner(
    _linear(2), 2, obgd(1.0, 2.0), trace_lambda=0.5, reward_scaling='none'
  )
  state = learner.init(KEY)
  # delta 1, norm of the trace 1: the bound is 2, and half a step is taken.
  state, metrics = learner.regress(state, _one(EYE[0], 0, 1, EYE[1]))
  assert float(metrics['td_error'][0]) == 1
  np.testing.assert_allclose(_weights(state), [[0.5, 0], [0, 0]])
  # delta 2 + 0.25; traces 0.25 and 1; bound 2 * 2.25 * 1.25 = 5.625.
  state, _ = learner.regress(state, _one(EYE[1], 1, 2, EYE[0]))
  np.testing.assert_allclose(_weights(state), [[0.6, 0], [0, 0.4]], rtol=1e-6)
  # delta 0 + 0.5 * 0.4 - 0.6 = -0.4; |delta| counts as 1: bound 2.
  state, _ = learner.regress(state, _one(EYE[0], 0, 0, EYE[1]))
  np.testing.assert_allclose(_weights(state), [[0.4, 0], [0, 0.4]], rtol=1e-6)


def test_a_truncated_episode_bootstraps_but_its_traces_end():
  learner = _learner(
    _linear(1), 2, optax.sgd(1.0), trace_lambda=1.0, reward_scaling='none'
  )
  state = learner.init(KEY)
  state, _ = learner.regress(state, _one(EYE[0], 0, 1, EYE[0]))  # w = (1, 0)
  state, metrics = learner.regress(
    state, _one(EYE[1], 0, 0, EYE[0], ended=True)
  )
  assert float(metrics['td_error'][0]) == 0.5
  np.testing.assert_allclose(_weights(state)[:, 0], [1.25, 0.5])
  state, _ = learner.regress(state, _one(EYE[1], 0, 1.5, EYE[1], 0))
  np.testing.assert_allclose(_weights(state)[:, 0], [1.25, 1.5])


@pytest.mark.parametrize('scaling', ['std', 'none'])
def test_fifty_steps_in_numpy(scaling):
  """The whole algorithm again, with the statistics from all sums at once."""
  rate, kappa, lambda_, size, actions = 0.5, 1.5, 0.8, 4, 3
  learner = _learner(
    _linear(actions),
    size,
    obgd(rate, kappa),
    trace_lambda=lambda_,
    reward_scaling=scaling,
  )
  state, regress = learner.init(KEY), jax.jit(learner.regress)
  w, z, sums = np.zeros((size, actions)), np.zeros((size, actions)), [0.0]
  bounded = 0
  for step in _stream(50, size, actions):
    x, y = step.obs_tm1[0], step.obs_t[0]
    a, ended = step.a_tm1[0], step.ended[0]
    sums.append(step.r_t[0] + (0 if ended else 0.9) * sums[-1])
    r = step.r_t[0]
    if scaling == 'std' and len(sums) > 2:
      r /= np.sqrt(np.var(sums[1:], ddof=1) + 1e-8)
    delta = r + step.discount_t[0] * np.max(y @ w) - (x @ w)[a]
    cut = ended or a != np.argmax(x @ w)
    z[:, a] += x
    bound = rate * kappa * max(abs(delta), 1) * np.abs(z).sum()
    w = w + rate / max(bound, 1) * delta * z
    z *= 0 if cut else 0.9 * lambda_
    bounded += bound > 1
    state, metrics = regress(state, step)
    np.testing.assert_allclose(metrics['td_error'][0], delta, rtol=2e-4)
    np.testing.assert_allclose(_weights(state), w, rtol=1e-3, atol=1e-5)
  assert bounded > 0


def test_without_a_bound_it_is_gradient_descent():
  network = mlp_network(3, sizes=(5,))
  states = []
  for optimizer in (obgd(0.01, 1e-6), optax.sgd(0.01)):
    learner = _learner(network, 4, optimizer)
    state, regress = learner.init(KEY), jax.jit(learner.regress)
    for step in _stream(30, 4, 3):
      state, _ = regress(state, step)
    states.append(state.online_params)
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5),
    *states,
  )


def test_without_lambda_it_is_online_q_learning():
  network, obs = mlp_network(3, sizes=(5,)), np.zeros((1, 4), np.float32)
  states = []
  for agent in (
    make_stream_q(network, obs, trace_lambda=0.0, reward_scaling='none'),
    make_q_agent(network, obs, td_loss='half_squared'),
  ):
    learner = make_learner(agent, optax.sgd(0.05), SELF)
    state, regress = learner.init(KEY), jax.jit(learner.regress)
    for step in _stream(30, 4, 3):
      state, _ = regress(state, step)
    states.append(state.online_params)
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(
      one, other, rtol=1e-5, atol=1e-7
    ),
    *states,
  )


@pytest.mark.parametrize('kappa', [2.0, 1e4])
@pytest.mark.parametrize('lambda_', [0.0, 0.95])
def test_a_step_is_bounded(kappa, lambda_):
  """Its l1 norm is at most min(|delta|, 1) / kappa."""
  learner = _learner(
    mlp_network(3, sizes=(5,)), 4, obgd(1.0, kappa), trace_lambda=lambda_
  )
  state, regress = learner.init(KEY), jax.jit(learner.regress)
  for step in _stream(20, 4, 3):
    before = state.online_params
    state, metrics = regress(state, step)
    moved = sum(
      np.abs(np.float64(new) - np.float64(old)).sum()
      for new, old in zip(
        jax.tree.leaves(state.online_params),
        jax.tree.leaves(before),
        strict=True,
      )
    )
    allowed = min(float(metrics['td_error_abs'][0]), 1) / kappa
    assert moved <= allowed * 1.001 + 1e-6


def test_a_perfect_estimate_stays():
  """The bound is not 0 / 0 where there is no error."""
  learner = _learner(_linear(2), 2, obgd(1.0))
  state, metrics = learner.regress(
    learner.init(KEY), _one(EYE[0], 0, 0, EYE[1])
  )
  assert float(metrics['td_error'][0]) == 0
  np.testing.assert_array_equal(_weights(state), np.zeros((2, 2)))


def test_the_scale_of_rewards():
  scale, sums = ReturnScale.new(), []
  rng = np.random.default_rng(1)
  for reward in rng.normal(size=20):
    scale, std = scale.follow(jnp.float32(reward), jnp.float32(0.9))
    sums.append(reward + 0.9 * (sums[-1] if sums else 0))
    expected = 1 if len(sums) == 1 else np.std(sums, ddof=1)
    assert float(std) == pytest.approx(expected, rel=1e-4)


def test_what_it_cannot_learn_from():
  learner = _learner(_linear(2), 2, obgd(1.0))
  one = _one(EYE[0], 0, 0, EYE[1])
  two = jax.tree.map(lambda x: np.repeat(x, 2, 0), one)
  with pytest.raises(ValueError, match='batch_size=2 must be 1'):
    learner.regress(learner.init(KEY), two)
  with pytest.raises(ValueError, match='without noise'):
    make_stream_q(mlp_network(2, noisy_std=0.5), np.zeros((1, 2)))
  plain = make_q_agent(_linear(2), np.zeros((1, 2), np.float32))
  learner = make_learner(plain, obgd(1.0), SELF)
  with pytest.raises(ValueError, match='td_error'):
    learner.regress(learner.init(KEY), one)


def test_qrc_in_numpy():
  """Equations 26 to 28 on linear functions, through cuts."""
  rate, beta, lambda_, size, actions = 0.05, 0.5, 0.8, 4, 3
  agent = make_qrc(
    _linear(actions),
    np.zeros((1, size), np.float32),
    trace_lambda=lambda_,
    reward_scaling='none',
    correction_rate=0.3,
    correction_decay=beta,
  )
  learner = make_learner(agent, optax.sgd(rate), SELF)
  state, regress = learner.init(KEY), jax.jit(learner.regress)
  w, theta, z_w, z_theta = np.zeros((4, size, actions))
  z_h = 0.0
  for step in _stream(40, size, actions):
    x, y, a = step.obs_tm1[0], step.obs_t[0], step.a_tm1[0]
    discount, best = step.discount_t[0], np.argmax(y @ w)
    delta = step.r_t[0] + discount * (y @ w)[best] - (x @ w)[a]
    cut = step.ended[0] or a != np.argmax(x @ w)
    h = (x @ theta)[a]
    of_q, of_delta = np.zeros((2, size, actions))
    of_q[:, a] = x
    of_delta[:, best] += discount * y
    of_delta[:, a] -= x
    z_h, z_w, z_theta = z_h + h, z_w + of_q, z_theta + of_q
    w = w + rate * (delta * z_w - h * of_q - z_h * of_delta)
    theta = theta + 0.3 * rate * (delta * z_theta - h * of_q - beta * theta)
    keep = 0 if cut else 0.9 * lambda_
    z_h, z_w, z_theta = keep * z_h, keep * z_w, keep * z_theta
    state, metrics = regress(state, step)
    np.testing.assert_allclose(metrics['td_error'][0], delta, rtol=1e-3)
  params = state.online_params['params']
  assert np.abs(theta).max() > 0.01
  np.testing.assert_allclose(params['network']['kernel'], w, rtol=1e-3)
  np.testing.assert_allclose(params['correction']['kernel'], theta, rtol=1e-3)


def test_qrc_converges_where_q_learning_diverges():
  """From a state of value w to one of 2w (Tsitsiklis & Van Roy 1996)."""
  network = nn.Dense(1, use_bias=False, kernel_init=nn.initializers.ones)
  obs, step = np.zeros((1, 1), np.float32), _one([1.0], 0, 0, [2.0], 0.95)

  def learned(agent):
    learner = make_learner(agent, optax.sgd(0.05), SELF)
    state, _ = jax.lax.scan(
      lambda state, _: (learner.regress(state, step)[0], None),
      learner.init(KEY),
      length=1_000,
    )
    return float(agent.values(state.online_params, np.ones((1, 1)))[0, 0])

  assert learned(make_stream_q(network, obs, trace_lambda=0.0)) > 1e6
  corrected = make_qrc(
    network, obs, trace_lambda=0.0, correction_rate=1.0, correction_decay=0.5
  )
  assert abs(learned(corrected)) < 1e-3


def test_the_two_networks_of_qrc_share_nothing():
  obs = np.zeros((1, 4), np.float32)
  params = make_qrc(mlp_network(3, sizes=(5,)), obs).init(KEY)['params']
  one, other = params['network'], params['correction']
  shapes = [jax.tree.map(np.shape, each) for each in (one, other)]
  assert shapes[0] == shapes[1]
  kernels = [each['head']['last']['Dense_0']['kernel'] for each in (one, other)]
  assert not np.array_equal(*kernels)
