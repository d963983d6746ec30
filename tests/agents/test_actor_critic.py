"""DDPG, TD3 and SAC: targets, losses, who gets which gradient, and acting."""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import twins
from siamrl.agents.actor_critic import (
  AGENTS,
  make_actor_critic,
  make_ddpg_agent,
  make_sac_agent,
  make_td3_agent,
)
from siamrl.agents.noise import action_noise, ornstein_uhlenbeck
from siamrl.networks.policies import (
  Critic,
  DeterministicActor,
  TanhGaussianActor,
)
from siamrl.types import Transition

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  import rlax

KEY = jax.random.key(7)
N, D, B = 3, 2, 6  # numbers in an observation and an action; batch
OBS = np.zeros((1, 1, N), np.float32)


def _batch(seed=0, size=B):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return Transition(
    draw(size, 1, N),
    rng.uniform(-1, 1, (size, D)).astype(np.float32),
    draw(size),
    np.where(np.arange(size) % 3 == 0, 0.0, 0.9).astype(np.float32),
    draw(size, 1, N),
  )


BATCH = _batch()


def _make(name, sizes=(8,), **options):
  norm = AGENTS[name].batch_norm
  return make_actor_critic(
    name,
    AGENTS[name].actor(action_dim=D, sizes=sizes, batch_norm=norm),
    Critic(sizes=sizes, batch_norm=norm),
    OBS,
    **options,
  )


# The same agents again and again: what is compiled for one is kept.
_agent = functools.cache(_make)


@functools.cache
def _params(name, seed, **options):
  return jax.jit(_agent(name, **options).init)(jax.random.key(seed))


def _twin(agent, params):
  return {name: params[name] for name in agent.twinned}


@functools.cache
def _step(agent, **keywords):
  loss = functools.partial(agent.loss, **keywords)
  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def _grads(agent, online, target, batch=BATCH, **keywords):
  return _step(agent, **keywords)(online, target, batch, KEY)


def _assert_close(one, other, **tolerance):
  tolerance = {'rtol': 1e-4, 'atol': 1e-6} | tolerance
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other
  )


def _is_zero(tree):
  return all(bool(jnp.all(leaf == 0)) for leaf in jax.tree.leaves(tree))


# Networks without hidden layers and known weights, for numbers done in NumPy.

ACTOR = np.array([[0.5, -1.0], [0.2, 0.3], [-0.4, 0.1]], np.float32)
CRITICS = np.array(
  [[0.3, -0.2, 0.1, 1.0, -2.0], [-0.5, 0.4, 0.2, -1.0, 0.7]], np.float32
)


def _layer(kernel, bias):
  return {
    'params': {
      'last': {
        'kernel': jnp.asarray(kernel, jnp.float32),
        'bias': jnp.asarray(bias, jnp.float32),
      }
    }
  }


def _linear(actor=ACTOR, critics=CRITICS):
  return {
    'actor': _layer(actor, np.zeros(actor.shape[1])),
    'critic': _layer(critics[:, :, None], np.zeros((len(critics), 1))),
  }


def _q(critics, obs, action):
  """[K, B]"""
  return critics @ np.concatenate([obs[:, 0], action], axis=1).T


def test_td3_by_hand():
  agent = _agent('td3', sizes=(), smoothing_std=0.0)
  online, target = _linear(), _linear(ACTOR + 0.3, CRITICS - 0.2)
  value, metrics = jax.jit(agent.loss)(online, target, BATCH, KEY)
  a_t = np.tanh(BATCH.obs_t[:, 0] @ (ACTOR + 0.3))
  v_t = _q(CRITICS - 0.2, BATCH.obs_t, a_t).min(axis=0)
  y = BATCH.r_t + BATCH.discount_t * v_t
  q_tm1 = _q(CRITICS, BATCH.obs_tm1, BATCH.a_tm1)
  errors = y - q_tm1
  critic_loss = np.mean(errors**2, axis=1).sum()
  pi = np.tanh(BATCH.obs_tm1[:, 0] @ ACTOR)
  actor_loss = -np.mean(_q(CRITICS, BATCH.obs_tm1, pi)[0])
  _assert_close(
    metrics,
    {
      'loss': critic_loss + actor_loss,
      'critic_loss': critic_loss,
      'actor_loss': actor_loss,
      'q_tm1': q_tm1.mean(axis=0),
      'td_error_abs': np.abs(errors).mean(axis=0),
    },
  )
  assert value == metrics['loss']
  found = agent.targets(online, target, BATCH, KEY)
  np.testing.assert_allclose(found, y, rtol=1e-4)
  # The TD error of one critic is rlax's, of the value that its target has.
  ddpg = _agent('ddpg', sizes=())
  alone = lambda critics: _linear(critics=critics[:1])
  _, metrics = ddpg.loss(alone(CRITICS), alone(CRITICS - 0.2), BATCH, KEY)
  v_t = ddpg.bootstrap(None, alone(CRITICS - 0.2), BATCH.obs_t, KEY)[:, 0]
  theirs = jax.vmap(rlax.td_learning)(
    jnp.asarray(q_tm1[0]), BATCH.r_t, BATCH.discount_t, v_t
  )
  np.testing.assert_allclose(metrics['td_error_abs'], np.abs(theirs), rtol=1e-4)
  _assert_close(
    agent.values(online, BATCH.obs_tm1)[:, 0],
    _q(CRITICS, BATCH.obs_tm1, pi).min(axis=0),
  )
  _assert_close(agent.taken(online, BATCH), q_tm1.T)
  _assert_close(agent.acting.greedy(online, BATCH.obs_tm1), pi)


def test_sac_by_hand():
  """Of one dimension, with critics that answer an action, and twice it."""
  actor = TanhGaussianActor(sizes=(), action_dim=1)
  make = functools.partial(make_sac_agent, actor, Critic(sizes=()), OBS)
  # Mean 0.4 * the first number, std exp(0.3 * the second one).
  kernel = np.array([[0.4, 0.0], [0.0, 0.3], [0.0, 0.0]])
  critics = np.array([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 2.0]])
  online = _linear(kernel, critics) | {'log_alpha': jnp.float32(-1.0)}
  obs = BATCH.obs_t
  value = lambda agent: np.float64(
    agent.bootstrap(online, _twin(agent, online), obs, KEY)[:, 0]
  )
  free = value(make(alpha=0.0))  # min(a, 2 a)
  action = np.where(free > 0, free, free / 2)
  mean, std = 0.4 * obs[:, 0, 0], np.exp(0.3 * obs[:, 0, 1])
  u = np.arctanh(action)
  log_prob = (
    -0.5 * ((u - mean) / std) ** 2
    - np.log(std)
    - 0.5 * np.log(2 * np.pi)
    - np.log(1 - action**2)
  )
  np.testing.assert_allclose(
    value(make(alpha=0.3)), free - 0.3 * log_prob, rtol=1e-3, atol=1e-4
  )
  learned = make(target_entropy=-0.5)
  np.testing.assert_allclose(
    value(learned), free - np.exp(-1.0) * log_prob, rtol=1e-3, atol=1e-4
  )
  np.testing.assert_allclose(
    learned.values(online, obs)[:, 0],
    np.minimum(np.tanh(mean), 2 * np.tanh(mean)),
    rtol=1e-5,
  )
  # Half the squared errors, the temperature's loss, and its gradient.
  batch = BATCH._replace(a_tm1=BATCH.a_tm1[:, :1])
  (total, metrics), grads = _grads(
    learned, online, _twin(learned, online), batch
  )
  y = learned.targets(online, _twin(learned, online), batch, KEY)
  q_tm1 = np.stack([batch.a_tm1[:, 0], 2 * batch.a_tm1[:, 0]])
  assert float(metrics['critic_loss']) == pytest.approx(
    float(np.mean((y - q_tm1) ** 2, axis=1).sum() / 2), rel=1e-4
  )
  assert float(metrics['alpha']) == pytest.approx(math.exp(-1))
  temperature = math.exp(-1) * (float(metrics['entropy']) + 0.5)
  assert float(grads['log_alpha']) == pytest.approx(temperature, rel=1e-4)
  assert float(total) == pytest.approx(
    float(metrics['critic_loss'] + metrics['actor_loss']) + temperature,
    rel=1e-4,
  )


def test_entropy_of_a_narrow_policy():
  """In the middle of the tanh it is that of the Gaussian."""
  actor = TanhGaussianActor(sizes=(), action_dim=D)
  agent = make_sac_agent(actor, Critic(sizes=()), OBS)
  online = _linear(np.zeros((N, 2 * D)), 0 * CRITICS)
  online |= {'log_alpha': jnp.zeros(())}
  online['actor']['params']['last']['bias'] = jnp.array([0.0, 0.0, -4.0, -4.0])
  many = _batch(size=4_000)
  (_, metrics), grads = _grads(agent, online, _twin(agent, online), many)
  expected = D * (0.5 * math.log(2 * math.pi * math.e) - 4.0)
  assert float(metrics['entropy']) == pytest.approx(expected, abs=0.05)
  # Of critics that answer 0 and alpha = 1 it is the target, too, from samples
  # of its own.
  v_t = agent.bootstrap(online, _twin(agent, online), many.obs_tm1, KEY)
  assert float(jnp.mean(v_t)) == pytest.approx(expected, abs=0.05)
  assert abs(float(jnp.mean(v_t) - metrics['entropy'])) > 1e-4
  # It is meant to be -D.
  assert float(grads['log_alpha']) == pytest.approx(
    float(metrics['entropy']) + D, rel=1e-4
  )


# Identities.


def test_equal_critics_are_one():
  agent, single = _agent('td3'), _agent('td3', critics=1)
  online, target = _params('td3', 0, critics=1), _params('td3', 1, critics=1)
  twice = lambda params: (
    params
    | {
      'critic': jax.tree.map(
        lambda leaf: jnp.repeat(leaf, 2, axis=0), params['critic']
      )
    }
  )
  (_, metrics), grads = _grads(agent, twice(online), twice(target))
  (_, alone), gradient = _grads(single, online, target)
  _assert_close(
    metrics,
    alone
    | {
      'critic_loss': 2 * alone['critic_loss'],
      'loss': 2 * alone['critic_loss'] + alone['actor_loss'],
    },
  )
  _assert_close(grads, twice(gradient))


def test_critics_are_born_different():
  for name in AGENTS:
    params = _params(name, 0)
    critics = 1 if name == 'ddpg' else 2
    kernels = params['critic']['params']['last']['kernel']
    assert kernels.shape == (critics, 8, 1)
    assert len(np.unique(kernels)) == kernels.size
  assert params['log_alpha'].shape == () and params['log_alpha'] == 0


def test_td3_without_smoothing_and_with_one_critic_is_ddpg():
  ddpg = _agent('ddpg', policy_delay=2)
  td3 = _agent('td3', critics=1, smoothing_std=0.0)
  online, target = _params('ddpg', 0), _params('ddpg', 1)
  _assert_close(
    _grads(ddpg, online, target), _grads(td3, online, target), rtol=0, atol=0
  )


def test_smoothing_stays_within_its_clip():
  """A critic that answers the sum of the action's numbers."""
  agent = _agent('td3', sizes=(), critics=1, smoothing_std=0.4)
  params = _linear(0 * ACTOR, np.array([[0.0, 0.0, 0.0, 1.0, 0.0]]))
  many = _batch(size=4_000).obs_t
  shift = np.asarray(agent.bootstrap(params, params, many, KEY))[:, 0]
  assert np.abs(shift).max() == pytest.approx(0.5)
  # Of a normal number, P(|x| > 0.5 / 0.4) = 0.2113.
  clipped = np.mean(np.abs(shift) > 0.4999)
  assert clipped == pytest.approx(0.2113, abs=0.035)
  assert np.median(np.abs(shift)) == pytest.approx(0.4 * 0.6745, abs=0.03)
  # Actions stay in their bounds: of pi = 1 only half can move.
  params['actor']['params']['last']['bias'] = jnp.array([99.0, 0.0])
  smoothed = np.asarray(agent.bootstrap(params, params, many, KEY))[:, 0]
  np.testing.assert_allclose(smoothed, 1 + np.minimum(shift, 0), atol=1e-6)


def test_sac_without_temperature_and_spread_is_deterministic():
  sac = make_sac_agent(
    TanhGaussianActor(sizes=(), action_dim=D, log_std_bounds=(-20.0, -19.0)),
    Critic(sizes=()),
    OBS,
    alpha=0.0,
  )
  td3 = _agent('td3', sizes=(), smoothing_std=0.0)
  spread = np.concatenate([ACTOR, 0 * ACTOR], axis=1)
  online, target = _linear(spread), _linear(spread, CRITICS - 0.2)
  np.testing.assert_allclose(
    sac.targets(online, _twin(sac, target), BATCH, KEY),
    td3.targets(None, _linear(ACTOR, CRITICS - 0.2), BATCH, KEY),
    rtol=1e-5,
  )


# Who learns from whom. Compiling SAC takes seconds.
_BOTH = ['td3', pytest.param('sac', marks=pytest.mark.slow)]


def test_targets_come_from_the_twins_entries():
  changed = lambda params, name: (
    params | {name: jax.tree.map(lambda leaf: leaf + 0.3, params[name])}
  )
  for name in AGENTS:
    agent = _agent(name)
    online, target = _params(name, 0), _twin(agent, _params(name, 1))
    bootstrap = jax.jit(agent.bootstrap)
    y = bootstrap(online, target, BATCH.obs_t, KEY)
    assert y.shape == (B, 1)
    moved = {
      entry: bool(jnp.any(y != bootstrap(*pair, BATCH.obs_t, KEY)))
      for entry, pair in {
        **{f'online {e}': (changed(online, e), target) for e in online},
        **{f'target {e}': (online, changed(target, e)) for e in target},
      }.items()
    }
    soft = {
      'online actor': True,
      'online critic': False,
      'online log_alpha': True,
      'target critic': True,
    }
    hard = {
      'online actor': False,
      'online critic': False,
      'target actor': True,
      'target critic': True,
    }
    statistics = {
      'online actor_statistics': True,
      'online critic_statistics': False,
      'online steps': False,
      'target critic_statistics': True,
    }
    assert (
      moved
      == {'sac': soft, 'crossq': soft | statistics, 'td3': hard, 'ddpg': hard}[
        name
      ]
    )


@pytest.mark.parametrize('name', ['td3', 'sac'])
def test_each_entry_gets_the_gradient_of_its_own_loss(name):
  agent = _agent(name)
  online, target = _params(name, 0), _twin(agent, _params(name, 1))
  (_, metrics), grads = _grads(agent, online, target)
  # The critics': of the same targets, made before, and nothing else.
  y = agent.targets(online, target, BATCH, KEY)
  whole = BATCH._replace(r_t=y, discount_t=np.zeros(B, np.float32))
  (_, known), alone = _grads(agent, online, target, whole, bootstrap=None)
  _assert_close(grads['critic'], alone['critic'])
  _assert_close(metrics['td_error_abs'], known['td_error_abs'])
  assert _is_zero({k: v for k, v in alone.items() if k != 'critic'})
  assert known['loss'] == known['critic_loss']
  # The actor's: of what it says its loss is, with everything else held.
  assert not _is_zero(grads['actor'])
  actor_loss = lambda actor: agent.loss(
    online | {'actor': actor}, target, BATCH, KEY
  )[1]['actor_loss']
  _assert_close(grads['actor'], jax.jit(jax.grad(actor_loss))(online['actor']))

  # And where the network is its own twin, gradients and all (Baird's residual
  # gradient), the critics' alone are other ones.
  def residual(online):
    return agent.loss(online, _twin(agent, online), BATCH, KEY)[0]

  own = jax.jit(jax.grad(residual))(online)
  stopped = _grads(agent, online, _twin(agent, online))[1]
  for entry in online:
    if entry == 'critic':
      differs = jax.tree.map(
        lambda a, b: float(jnp.max(jnp.abs(a - b))), own[entry], stopped[entry]
      )
      assert max(jax.tree.leaves(differs)) > 1e-3
    else:
      _assert_close(own[entry], stopped[entry])


def test_the_actor_climbs_the_first_critic_of_td3_and_the_smaller_one_of_sac():
  for name, expected in (('td3', [True, False]), ('sac', [True, True])):
    agent = _agent(name)
    online = _params(name, 0)

    def actor_loss(critic, agent=agent, online=online):
      online = online | {'critic': critic}
      (_, metrics), _ = _grads(agent, online, _twin(agent, online))
      return metrics['actor_loss']

    # A hundred less of one critic's values: does the actor's loss change?
    moved = []
    for k in range(2):
      critic = jax.tree.map(jnp.copy, online['critic'])
      bias = critic['params']['last']['bias']
      critic['params']['last']['bias'] = bias.at[k].add(-100.0)
      moved.append(
        float(abs(actor_loss(critic) - actor_loss(online['critic']))) > 50
      )
    assert moved == expected


@pytest.mark.parametrize('name', _BOTH)
def test_a_delayed_actor(name):
  """d = 3: the gradient steps numbered 3, 6, ... are its own."""
  agent = _agent(name, policy_delay=3)
  assert agent.delay == 3
  online, target = _params(name, 0), _twin(agent, _params(name, 1))
  assert agent.delayed == tuple(e for e in online if e != 'critic')
  (_, always), every = _grads(agent, online, target)
  step = jax.jit(
    lambda step: jax.value_and_grad(agent.loss, has_aux=True)(
      online, target, BATCH, KEY, step=step
    )
  )
  found = [step(jnp.int32(taken)) for taken in range(6)]
  for taken, (_, grads) in enumerate(found):
    if taken in (2, 5):
      _assert_close(grads, every)
    else:
      assert all(_is_zero(grads[entry]) for entry in agent.delayed)
      _assert_close(grads['critic'], every['critic'])
  # The means of metrics are what they would be without a delay.
  means = jax.tree.map(
    lambda *leaves: np.mean(leaves, axis=0), *[m for (_, m), _ in found]
  )
  del means['loss'], always['loss']
  _assert_close(means, always)
  undelayed = _agent(name, policy_delay=1)
  assert (undelayed.delayed, undelayed.delay) == ((), 1)


def test_a_delayed_actor_is_not_computed_in_vain():
  calls = []

  class Counting(DeterministicActor):
    def __call__(self, obs):
      jax.debug.callback(lambda: calls.append(1))
      return super().__call__(obs)

  actor = Counting(action_dim=D, sizes=())
  agent = make_td3_agent(actor, Critic(sizes=()), OBS, policy_delay=2)
  grads = jax.jit(
    lambda step: jax.grad(agent.loss, has_aux=True)(
      _linear(), _linear(), BATCH, KEY, step=step
    )
  )
  counts = []
  for step in range(2):
    calls.clear()
    jax.block_until_ready(grads(jnp.int32(step)))
    jax.effects_barrier()
    counts.append(len(calls))
  assert counts[0] == 1 < counts[1]  # the twin's, for the targets


@pytest.mark.parametrize('name', _BOTH)
def test_weights_are_of_the_critics_losses(name):
  agent = _agent(name)
  online, target = _params(name, 0), _twin(agent, _params(name, 1))
  (_, plain), grads = _grads(agent, online, target)
  only = lambda i: BATCH._replace(
    weight=np.where(np.arange(B) == i, 2.0, 0.0).astype(np.float32)
  )
  each = [_grads(agent, online, target, only(i)) for i in range(B)]
  for (_, metrics), gradient in each:
    for entry in agent.delayed:
      _assert_close(gradient[entry], grads[entry])
    _assert_close(metrics['actor_loss'], plain['actor_loss'])
    _assert_close(metrics['td_error_abs'], plain['td_error_abs'])
  total = sum(float(metrics['critic_loss']) for (_, metrics), _ in each)
  assert total == pytest.approx(2 * float(plain['critic_loss']), rel=1e-4)
  _assert_close(
    jax.tree.map(lambda *g: sum(g), *[g['critic'] for _, g in each]),
    jax.tree.map(lambda g: 2 * g, grads['critic']),
    atol=1e-5,
  )


@pytest.mark.parametrize('form', ['half_squared', 'huber'])
def test_forms_of_the_td_loss(form):
  agent = _agent('ddpg', td_loss=form, error_bound=0.25)
  online, target = _params('ddpg', 0), _params('ddpg', 1)
  _, metrics = jax.jit(agent.loss)(online, target, BATCH, KEY)
  error = np.float64(metrics['td_error_abs'])
  expected = {
    'half_squared': error**2 / 2,
    'huber': np.where(error < 0.25, error**2 / 2, 0.25 * error - 0.25**2 / 2),
  }[form]
  assert float(metrics['critic_loss']) == pytest.approx(
    float(np.mean(expected)), rel=1e-4
  )


@pytest.mark.parametrize('name', ['td3', 'sac'])
def test_functional_ties_each_critic_to_its_own_twin(name):
  agent = twins.functional(2.0).lift(_agent(name, td_loss='squared'))
  online = _params(name, 0, td_loss='squared')
  other = _params(name, 1, td_loss='squared')
  _, metrics = agent.loss(online, _twin(agent, online), BATCH, KEY)
  assert metrics['twin_term'] == 0
  _, metrics = agent.loss(online, _twin(agent, other), BATCH, KEY)
  q, q_twin = agent.taken(online, BATCH), agent.taken(other, BATCH)
  assert q.shape == (B, 2)
  # The loss of a transition is the sum over the critics.
  term = 2.0 * np.mean(np.sum(np.square(q - q_twin), 1))
  assert float(metrics['twin_term']) == pytest.approx(term, rel=1e-5)


# Acting.

ROWS = 20_000


def _still(name, **options):
  """An agent whose actor answers tanh(0.3), tanh(-2), and its noise."""
  agent = _agent(name, sizes=(), **options)
  outputs = 2 * D if name == 'sac' else D
  params = _linear(np.zeros((N, outputs)))
  bias = jnp.array([0.3, -2.0, -1.0, 0.0])[:outputs]
  params['actor']['params']['last']['bias'] = bias
  obs = np.zeros((ROWS, 1, N), np.float32)
  return (
    agent,
    params,
    obs,
    jax.jit(agent.acting.noise, static_argnums=1)(KEY, ROWS),
  )


def test_exploration_by_gaussian_noise():
  agent, params, obs, noise = _still('td3', exploration_std=0.2)
  assert agent.acting.process is None
  actions = np.asarray(agent.acting.act(params, obs, noise, 0.0))
  assert (actions.shape, actions.dtype) == ((ROWS, D), np.float32)
  shift = actions - np.tanh([0.3, -2.0])
  assert shift[:, 0].std() == pytest.approx(0.2, rel=0.03)
  assert shift[:, 0].mean() == pytest.approx(0.0, abs=0.01)
  assert abs(np.corrcoef(shift.T)[0, 1]) < 0.05
  # The second one is 0.036 from its bound: P(x < -0.036 / 0.2) = 0.4286.
  assert actions.min() == -1.0
  assert np.mean(actions[:, 1] == -1) == pytest.approx(0.4286, abs=0.02)


def test_sac_acts_by_samples_of_its_policy():
  agent, params, obs, noise = _still('sac')
  actions = np.asarray(agent.acting.act(params, obs, noise, 0.0))
  u = np.arctanh(np.float64(actions))[:, 0]
  assert u.mean() == pytest.approx(0.3, abs=0.02)
  assert u.std() == pytest.approx(math.exp(-1), rel=0.03)
  assert np.abs(actions).max() <= 1


@pytest.mark.parametrize(
  'name', [name for name in AGENTS if not AGENTS[name].batch_norm]
)
def test_playing_greedily_and_at_random(name):
  agent, params, obs, noise = _still(name)
  greedy = np.asarray(agent.acting.greedy(params, obs))
  np.testing.assert_allclose(greedy[0], np.tanh([0.3, -2.0]), rtol=1e-5)
  np.testing.assert_array_equal(
    agent.acting.play(params, obs, noise, 0.0), greedy
  )
  for function in (agent.acting.act, agent.acting.play):
    random = np.asarray(function(params, obs, noise, 1.0))
    assert -1 <= random.min() < -0.999 and 0.999 < random.max() <= 1
    # Of U(-1, 1): mean 0, standard deviation 3**-0.5, nothing shared.
    assert np.abs(random.mean(axis=0)).max() < 0.025
    np.testing.assert_allclose(random.std(axis=0), 3**-0.5, atol=0.01)
    assert abs(np.corrcoef(random.T)[0, 1]) < 0.05
  some = np.asarray(agent.acting.play(params, obs, noise, 0.3))
  assert np.mean(np.any(some != greedy, axis=1)) == pytest.approx(0.3, abs=0.02)
  # A probability for each row.
  rows = np.where(np.arange(ROWS) < 5, 1.0, 0.0)
  by_row = np.asarray(agent.acting.play(params, obs, noise, rows))
  np.testing.assert_array_equal(by_row[:5], random[:5])
  np.testing.assert_array_equal(by_row[5:], greedy[5:])


def test_ornstein_and_uhlenbecks_process_is_that_of_rlax():
  """Their noise is in units of action, ours in units of sigma."""
  process = ornstein_uhlenbeck(D, 0.15)
  memory, theirs = process.init(1), jnp.zeros(D)
  assert memory.shape == (1, D)
  zero = jnp.zeros(D)
  for key in jax.random.split(KEY, 4):
    noise = action_noise(KEY, 1, D)._replace(
      normal=jax.random.normal(key, (D,))[None]
    )
    memory, made = process.step(memory, noise)
    theirs = rlax.add_ornstein_uhlenbeck_noise(key, zero, theirs, 0.15, 0.2)
    np.testing.assert_allclose(0.2 * made.normal[0], theirs, rtol=1e-5)
    np.testing.assert_array_equal(made.normal, memory)
    np.testing.assert_array_equal(made.whereto, noise.whereto)


def test_ddpg_explores_by_noise_that_lasts():
  agent, params, obs, _ = _still('ddpg', exploration_std=0.05)

  @jax.jit
  def run(keys):
    def step(memory, key):
      memory, noise = agent.acting.process.step(
        memory, agent.acting.noise(key, 500)
      )
      return memory, agent.acting.act(params, obs[:500], noise, 0.0)[:, 0]

    return jax.lax.scan(step, agent.acting.process.init(500), keys)[1]

  shift = np.asarray(run(jax.random.split(KEY, 60))) - np.tanh(0.3)
  assert shift[0].std() == pytest.approx(0.05, rel=0.15)
  late = shift[40:]
  assert late.std() == pytest.approx(0.05 / math.sqrt(0.15 * 1.85), rel=0.1)
  correlation = np.mean(late[1:] * late[:-1]) / np.mean(late**2)
  assert correlation == pytest.approx(0.85, abs=0.03)
  white = ornstein_uhlenbeck(D, 1.0)
  noise = agent.acting.noise(KEY, 3)
  _, made = white.step(jnp.full((3, D), 9.0), noise)
  np.testing.assert_allclose(made.normal, noise.normal, atol=1e-6)


# MINTO.


def test_minto_by_hand():
  agent = _agent('td3', sizes=(), smoothing_std=0.0, target_form='minto')
  online, target = _linear(), _linear(ACTOR + 0.3, CRITICS - 0.2)
  a_t = np.tanh(BATCH.obs_t[:, 0] @ (ACTOR + 0.3))
  each = [_q(c, BATCH.obs_t, a_t) for c in (CRITICS, CRITICS - 0.2)]
  v_t = np.concatenate(each).min(axis=0)
  assert len({int(row) for row in np.concatenate(each).argmin(axis=0)}) > 2
  np.testing.assert_allclose(
    agent.targets(online, target, BATCH, KEY),
    BATCH.r_t + BATCH.discount_t * v_t,
    rtol=1e-4,
  )


@pytest.mark.parametrize('name', AGENTS)
def test_laws_of_minto(name):
  minto, plain = _agent(name, target_form='minto'), _agent(name)
  lower = 0
  for seed in range(3):
    online = _params(name, seed)
    target = _twin(plain, _params(name, (seed + 1) % 3))
    smaller, values = (
      jax.jit(agent.bootstrap)(online, target, BATCH.obs_t, KEY)
      for agent in (minto, plain)
    )
    assert bool(jnp.all(smaller <= values))
    lower += int(jnp.sum(smaller < values))
  assert 0 < lower < 3 * B  # both networks are asked
  # Of equal networks it is the plain form, also where the twin has a gradient.
  for rule in (twins.self_copy(), twins.residual()):
    found = [
      _grads(rule.lift(agent), online, ())[1] for agent in (minto, plain)
    ]
    # Batch statistics round otherwise in another program.
    rounding = 1e-6 if AGENTS[name].batch_norm else 0
    _assert_close(*found, rtol=rounding, atol=rounding)
  # The online critics learn nothing from the target's value.
  gradient = jax.jit(
    jax.grad(lambda p: minto.bootstrap(p, target, OBS, KEY)[0, 0])
  )(online)
  assert _is_zero(gradient['critic'])


# What may be traced, and what is refused.


def test_numbers_may_be_traced():
  online, target = _params('td3', 0), _params('td3', 1)
  noise = action_noise(KEY, B, D)

  def td3(std, clip, exploration):
    agent = _make(
      'td3', smoothing_std=std, smoothing_clip=clip, exploration_std=exploration
    )
    return (
      agent.targets(online, target, BATCH, KEY),
      agent.acting.act(online, BATCH.obs_tm1, noise, 0.0),
    )

  rows = [(0.0, 0.5, 0.1), (0.2, 0.1, 0.3)]
  found = jax.jit(jax.vmap(td3))(*np.float32(rows).T)
  for i, row in enumerate(rows):
    expected = jax.jit(lambda row=row: td3(*row))()
    _assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], found), expected)
  online = _params('sac', 0)

  def sac(number, option):
    agent = _make('sac', **{option: number})
    return agent.loss(online, _twin(agent, online), BATCH, KEY)[0]

  for option in ('alpha', 'target_entropy'):
    loss = functools.partial(sac, option=option)
    numbers = jnp.array([0.1, 2.0])
    found = jax.jit(jax.vmap(loss))(numbers)
    assert found[0] != found[1]
    _assert_close(found[1], jax.jit(lambda loss=loss: loss(2.0))())


@pytest.mark.parametrize(
  'name, options, message',
  [
    ('td4', {}, "agent='td4' is unknown; choose from ddpg, td3, sac, cr"),
    (
      'ddpg',
      {'critics': 2},
      "critics=2 has no meaning for agent='ddpg', which takes target_form,",
    ),
    ('sac', {'exploration_std': 0.1}, 'exploration_std=0.1 has no meaning'),
    ('td3', {'critics': 0}, 'critics=0 must be a whole number from 1 on'),
    ('td3', {'policy_delay': 1.5}, 'policy_delay=1.5 must be a whole number'),
    ('td3', {'smoothing_std': -0.1}, 'smoothing_std=-0.1 must be 0 or more'),
    (
      'ddpg',
      {'exploration_theta': 0.0},
      r'exploration_theta=0.0 must be in \(',
    ),
    (
      'td3',
      {'exploration': 'pink'},
      "exploration='pink' is unknown; choose from gaussian, ornstein_uhlenbeck",
    ),
    ('sac', {'alpha': -1.0}, 'alpha=-1.0 must be 0 or more'),
    ('sac', {'target_entropy': math.nan}, 'target_entropy=nan must be finite'),
    (
      'sac',
      {'alpha': 0.2, 'target_entropy': -1.0},
      'target_entropy=-1.0 has no meaning for alpha=0.2, which is not learned',
    ),
    (
      'sac',
      {'target_form': 'max'},
      "target_form='max' is unknown; choose from min, minto",
    ),
    ('ddpg', {'target_form': 'max'}, "target_form='max' is unknown"),
    ('sac', {'td_loss': 'l1'}, "td_loss='l1' is unknown; choose from squared"),
    ('sac', {'error_bound': 0.0}, 'error_bound=0.0 must be positive'),
  ],
)
def test_what_is_refused(name, options, message):
  actor = AGENTS.get(name, AGENTS['td3']).actor(action_dim=D)
  with pytest.raises(ValueError, match=message):
    make_actor_critic(name, actor, Critic(), OBS, **options)


def test_an_actor_of_another_kind_is_refused():
  with pytest.raises(
    ValueError, match="agent='sac' needs a TanhGaussianActor, not a Determin"
  ):
    make_actor_critic('sac', DeterministicActor(action_dim=D), Critic(), OBS)


def test_what_is_not_given_is_the_agents_own():
  given = dict(critics=None, smoothing_std=None, policy_delay=None)
  for agent in (
    _make('td3', **given),
    make_td3_agent(DeterministicActor(action_dim=D), Critic(), OBS),
  ):
    params = jax.eval_shape(agent.init, KEY)
    assert params['critic']['params']['last']['kernel'].shape[0] == 2
    assert agent.delay == 2 and agent.acting.process is None
  ddpg = make_ddpg_agent(DeterministicActor(action_dim=D), Critic(), OBS)
  assert ddpg.delay == 1 and ddpg.acting.process is not None


# Learning.


@pytest.mark.parametrize(
  'name', [pytest.param('td3', marks=pytest.mark.slow), 'sac']
)
def test_a_bandit_is_learned(name):
  """A reward of -|a - (0.5, -0.2)|**2, and episodes of one step."""
  target_entropy = {'target_entropy': -6.0} if name == 'sac' else {}
  agent = _agent(name, sizes=(32, 32), **target_entropy)
  optimizer = optax.adam(0.003)

  def step(carry, key):
    params, state, taken = carry
    action_key, loss_key = jax.random.split(key)
    a_tm1 = jax.random.uniform(action_key, (64, D), minval=-1, maxval=1)
    reward = -jnp.sum(jnp.square(a_tm1 - jnp.array([0.5, -0.2])), axis=1)
    obs = jnp.ones((64, 1, N))
    batch = Transition(obs, a_tm1, reward, jnp.zeros(64), obs)
    grads, metrics = jax.grad(agent.loss, has_aux=True)(
      params, _twin(agent, params), batch, loss_key, step=taken
    )
    updates, state = optimizer.update(grads, state)
    params = optax.apply_updates(params, updates)
    return (params, state, taken + 1), metrics['critic_loss']

  params = agent.init(KEY)
  (params, _, _), losses = jax.jit(
    lambda params: jax.lax.scan(
      step,
      (params, optimizer.init(params), jnp.int32(0)),
      jax.random.split(KEY, 800),
    )
  )(params)
  assert float(losses[-1]) < 0.02 * float(losses[0])
  action = agent.acting.greedy(params, np.ones((1, 1, N), np.float32))[0]
  # Random actions have -0.96; the critics' kinks keep an actor from 0.
  assert np.sum(np.square(action - np.array([0.5, -0.2]))) < 0.05
