"""Agents with noisy networks: whose noise is drawn, when, and by which key."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.agents import registry
from siamrl.agents.discrete import CHOOSER, ONLINE, TWIN
from siamrl.learner import ClockedTwin, make_learner, make_optimizer
from siamrl.networks.dense import NOISE
from siamrl.networks.q_network import mlp_network
from siamrl.types import acting_of
from tests.agents.transitions import A, D, batch
from tests.parameters import OF_VALUES, make_rules, slow_but

KEY = jax.random.key(3)
OBS = np.zeros((1, 1, D), np.float32)
GIVEN = {
  'dqn': {},
  'double_dqn': {},
  'c51': dict(num_atoms=5, v_min=-1.0, v_max=1.0),
  'qrdqn': dict(quantiles=5),
  'iqn': dict(fractions=3, target_fractions=3, acting_fractions=3, cosines=4),
}
SHARED = dict(
  target_parameters=None,
  td_loss='squared',
  error_bound=1.0,
  batch_reduction='mean',
  param_dtype='float32',
)


def _network(name, noisy_std=0.5):
  outputs = registry.outputs_of(name, GIVEN[name])
  return mlp_network(A, sizes=(8,), outputs=outputs, noisy_std=noisy_std)


def _agent(name, noisy_std=0.5, target_form=None):
  return registry.make_agent(
    name,
    _network(name, noisy_std),
    OBS,
    shared=SHARED | {'target_form': target_form},
    given=GIVEN[name],
  )


every_agent = pytest.mark.parametrize('name', GIVEN)


@functools.cache
def _noisy_and_plain(name):
  return _agent(name), _agent(name, 0.0)


@every_agent
def test_acting_draws_noise_of_each_step(name):
  agent, _ = _noisy_and_plain(name)
  acting, params = acting_of(agent), agent.init(KEY)
  obs = np.random.default_rng(0).normal(size=(64, 1, D)).astype(np.float32)

  def actions(seed):
    noise = acting.noise(jax.random.key(seed), len(obs))
    return acting.act(params, obs, noise, 0.0)

  assert (actions(0) == actions(0)).all()
  assert any((actions(0) != actions(seed)).any() for seed in (1, 2, 3))
  # Values and greedy actions are those of the means.
  np.testing.assert_array_equal(
    acting.greedy(params, obs), jnp.argmax(agent.values(params, obs), -1)
  )


@every_agent
def test_online_network_and_twin_have_their_own_noise(name):
  """With equal parameters, no discount and no reward only noise differs."""
  agent, plain = _noisy_and_plain(name)
  params, steps = agent.init(KEY), batch()
  first = agent.bootstrap(params, params, steps.obs_tm1, KEY)
  other = agent.bootstrap(params, params, steps.obs_tm1, jax.random.key(4))
  for one, another in zip(
    jax.tree.leaves(first), jax.tree.leaves(other), strict=True
  ):
    assert (one != another).any()
  loss = lambda agent, params, key: agent.loss(params, params, steps, key)[0]
  assert loss(agent, params, KEY) != loss(agent, params, jax.random.key(4))
  if name != 'iqn':  # its fractions are drawn anyway
    params = plain.init(KEY)
    assert loss(plain, params, KEY) == loss(plain, params, jax.random.key(4))


def test_loss_of_double_dqn_with_three_draws():
  """Online network, twin and chooser have noise of their own, by Flax alone."""
  agent, network = _agent('double_dqn'), _network('double_dqn')
  online, target, steps = (
    agent.init(KEY),
    agent.init(jax.random.key(9)),
    batch(),
  )

  def q(params, obs, stream):
    rngs = {NOISE: jax.random.fold_in(KEY, stream)}
    return np.asarray(network.apply(params, obs, rngs=rngs))

  rows = np.arange(len(steps.a_tm1))
  best = q(online, steps.obs_t, CHOOSER).argmax(-1)
  y = steps.r_t + steps.discount_t * q(target, steps.obs_t, TWIN)[rows, best]
  errors = y - q(online, steps.obs_tm1, ONLINE)[rows, steps.a_tm1]
  value, metrics = agent.loss(online, target, steps, KEY)
  np.testing.assert_allclose(metrics['td_error_abs'], abs(errors), rtol=1e-5)
  np.testing.assert_allclose(value, np.mean(errors**2), rtol=1e-5)


@pytest.mark.parametrize(
  'name', slow_but({'double_dqn', 'iqn'}.__contains__, GIVEN)
)
def test_every_rule_learns_with_noise(name):
  agent, steps = _noisy_and_plain(name)[0], batch()
  optimizer = make_optimizer('sgd', learning_rate=0.01, eps=1e-8)
  refused = OF_VALUES if agent.distributions else ()
  for rule, twin in make_rules(but=refused).items():
    learner = make_learner(agent, optimizer, ClockedTwin(twin))
    init = jax.eval_shape(learner.init, KEY)
    state, metrics = jax.eval_shape(learner.regress, init, steps)
    assert metrics['loss'].shape == (), rule
    assert jax.tree.structure(state) == jax.tree.structure(init)
