"""Q agents: acting, losses, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl import learner, twins
from siamrl.agents.q import (
  TRACES,
  make_q_agent,
  make_returns,
)
from siamrl.losses import td
from siamrl.networks.q_network import mlp_network
from siamrl.types import Transition

OBS = np.zeros((1, 1, 2), np.float32)
KEY = jax.random.key(0)


def _batch(reward, discount):
  obs = np.array([[[1.0, 2.0]], [[3.0, -1.0]]], np.float32)
  return Transition(
    obs,
    np.array([0, 1], np.int32),
    np.float32(reward),
    np.float32(discount),
    obs[::-1].copy(),
  )


@pytest.mark.parametrize('name', ['dqn', 'double_dqn'])
@pytest.mark.parametrize('reduction, scale', [('mean', 0.5), ('sum', 1.0)])
def test_loss_of_known_values(name, reduction, scale):
  """A network without hidden layers and known weights, done in NumPy."""
  network = mlp_network(2, sizes=())
  agent = make_q_agent(
    network, OBS, name=name, td_loss='squared', batch_reduction=reduction
  )
  kernel = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
  twin = np.array([[-1.0, 0.5], [1.0, 1.0]], np.float32)
  fill = lambda k: jax.tree.map(
    lambda leaf: k if leaf.ndim == 2 else jnp.zeros_like(leaf),
    agent.init(jax.random.key(0)),
  )
  batch = _batch([1.0, 2.0], [0.5, 0.0])
  value, metrics = agent.loss(
    fill(kernel), fill(twin), batch, jax.random.key(0)
  )
  x, y = batch.obs_tm1[:, 0], batch.obs_t[:, 0]
  q, bootstrap = x @ kernel, y @ twin
  best = (
    bootstrap.max(1)
    if name == 'dqn'
    else bootstrap[[0, 1], (y @ kernel).argmax(1)]
  )
  errors = batch.r_t + batch.discount_t * best - q[[0, 1], [0, 1]]
  assert value == pytest.approx(scale * np.sum(errors**2), rel=1e-6)
  assert metrics['q_tm1'] == pytest.approx(q[[0, 1], [0, 1]])
  assert metrics['td_error_abs'] == pytest.approx(np.abs(errors))
  # A weight multiplies the loss of its transition and changes no error.
  value, weighted = agent.loss(
    fill(kernel),
    fill(twin),
    batch._replace(weight=np.float32([0.5, 3.0])),
    jax.random.key(0),
  )
  assert value == pytest.approx(
    scale * np.sum([0.5, 3.0] * errors**2), rel=1e-6
  )
  assert weighted['td_error_abs'] == pytest.approx(metrics['td_error_abs'])
  # The squared error of each, whatever its weight and the reduction.
  for reported in (metrics, weighted):
    assert reported['transition_loss'] == pytest.approx(errors**2, rel=1e-6)


FORM_PARAMETERS = {
  'mellowmax_omega': 5.0,
  'expected_epsilon': 0.1,
  'soft_temperature': 0.5,
  'munchausen_alpha': 0.9,
  'munchausen_clip': -1.0,
}


def _agent_of_form(form, **kwargs):
  takes = td.TARGETS[form].takes
  return make_q_agent(
    mlp_network(2, sizes=(8,)),
    OBS,
    target_form=form,
    target_parameters={key: FORM_PARAMETERS[key] for key in takes},
    **kwargs,
  )


@pytest.mark.parametrize('form', td.TARGETS)
def test_every_form_regresses_to_its_targets(form):
  """The loss on targets made here, from values that the agent shows."""
  agent = _agent_of_form(form)
  online, target = (agent.init(jax.random.key(seed)) for seed in (0, 1))
  batch = _batch([1.0, 2.0], [0.5, 0.0])
  first = online.get('critic_0', online)
  single = make_q_agent(mlp_network(2, sizes=(8,)), OBS)
  targets = jax.vmap(
    td.make_target(
      form, **{key: FORM_PARAMETERS[key] for key in td.TARGETS[form].takes}
    )
  )(
    td.TargetInputs(
      batch.a_tm1,
      batch.r_t,
      batch.discount_t,
      agent.bootstrap(online, target, batch.obs_t, KEY),
      single.values(first, batch.obs_t),
      agent.bootstrap(online, target, batch.obs_tm1, KEY),
    )
  )
  whole = batch._replace(r_t=targets, discount_t=jnp.zeros(2))
  grads, metrics = jax.grad(agent.loss, has_aux=True)(
    online, target, batch, jax.random.key(0)
  )
  expected, same = jax.grad(agent.loss, has_aux=True)(
    online, target, whole, jax.random.key(0), bootstrap=None
  )
  # Equal gradients: none flows through a target.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    (grads, metrics),
    (expected, same),
  )
  assert metrics['q_tm1'].shape == metrics['td_error_abs'].shape == (2,)


def test_double_dqn_is_the_double_form_of_dqn():
  online, target = (
    make_q_agent(mlp_network(2), OBS).init(jax.random.key(i)) for i in (0, 1)
  )
  batch = _batch([1.0, 2.0], [0.5, 0.9])
  by_form = make_q_agent(mlp_network(2), OBS, target_form='double')
  both = make_q_agent(
    mlp_network(2), OBS, name='double_dqn', target_form='double'
  )
  by_name = make_q_agent(mlp_network(2), OBS, name='double_dqn')
  losses = {
    float(agent.loss(online, target, batch, jax.random.key(0))[0])
    for agent in (by_form, both, by_name)
  }
  assert len(losses) == 1


def _two(seed):
  """The agent with two networks, one with one, and parameters of both."""
  agent, single = _agent_of_form('clipped_double'), _agent_of_form('double')
  return agent, single, agent.init(jax.random.key(seed))


def test_two_networks_are_born_different_and_the_smaller_is_believed():
  agent, single, params = _two(0)
  obs = np.random.default_rng(0).normal(size=(64, 1, 2)).astype(np.float32)
  each = [single.values(params[name], obs) for name in params]
  assert list(params) == ['critic_0', 'critic_1']
  smaller = np.minimum(*each)
  # Neither is the smaller one everywhere.
  assert not any(np.allclose(smaller, values) for values in each)
  np.testing.assert_array_equal(agent.values(params, obs), smaller)
  np.testing.assert_array_equal(
    agent.bootstrap(None, params, obs, KEY), smaller
  )
  # The first one acts.
  noise = agent.acting.noise(jax.random.key(0), 64)
  actions = agent.acting.act(params, obs, noise, 0.0)
  np.testing.assert_array_equal(actions, each[0].argmax(1))
  assert not np.array_equal(actions, smaller.argmax(1))


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_two_equal_networks_are_double_dqn_twice(reduction):
  agent = _agent_of_form('clipped_double', batch_reduction=reduction)
  single = _agent_of_form('double', batch_reduction=reduction)
  online, target = (single.init(jax.random.key(seed)) for seed in (0, 1))
  twice = lambda params: {'critic_0': params, 'critic_1': params}
  batch = _batch([1.0, -2.0], [0.9, 0.9])._replace(
    weight=np.float32([0.5, 2.0])
  )
  step = lambda agent, *params: jax.value_and_grad(agent.loss, has_aux=True)(
    *params, batch, jax.random.key(0)
  )
  (value, metrics), grads = step(agent, twice(online), twice(target))
  (alone, expected), gradient = step(single, online, target)
  assert value == pytest.approx(2 * alone)
  for name in ('q_tm1', 'td_error_abs'):
    np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-6)
  for critic in ('critic_0', 'critic_1'):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
      grads[critic],
      gradient,
    )


RULE_PARAMETERS = {
  'tau': 0.1,
  'tau_end': 0.01,
  'target_period': 2,
  'target_period_end': 4,
  'target_period_growth': 1.5,
  'degrees_of_freedom': 1.0,
  'target_schedule_steps': 10,
  'target_sync_period': 1,
  'target_count': 3,
  'target_paths': 'critic_0/.*head:hard+critic_0:self+critic_1:soft',
  'twin_weight': 0.1,
  'projection_radius': 10.0,
  'ridge': 0.01,
}


# Compiling takes a second each.
_QUICK = ('soft', 'by_path', 'chain', 'functional')


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow)
    for name in twins.RULES
  ],
)
def test_every_rule_moves_two_networks(name):
  wanted = twins.takes(name, RULE_PARAMETERS['target_paths'])
  rule = twins.make_rule(name, **{key: RULE_PARAMETERS[key] for key in wanted})
  made = learner.make_learner(
    _agent_of_form('clipped_double', td_loss='squared'),
    learner.make_optimizer('adam', learning_rate=0.05, eps=1e-8),
    learner.ClockedTwin(rule, 2),
  )
  agent, state = made.agent, made.init(jax.random.key(0))
  born, regress = state.online_params, jax.jit(made.regress)
  batch = _batch([1.0, -2.0], [0.5, 0.0])
  losses = []
  for _ in range(100):
    state, metrics = regress(state, batch)
    losses.append(float(metrics['loss']))
  assert np.all(np.isfinite(losses))
  assert losses[-1] < losses[0]
  after, before = (
    params.get('networks', params) for params in (state.online_params, born)
  )
  for critic in ('critic_0', 'critic_1'):
    moved = jax.tree.map(
      lambda a, b: bool(jnp.any(a != b)), after[critic], before[critic]
    )
    assert any(jax.tree.leaves(moved))
  values = agent.bootstrap(
    state.online_params, state.target_params, batch.obs_t, KEY
  )
  assert values.shape == (2, 2)
  noise = agent.acting.noise(jax.random.key(1), 2)
  assert agent.acting.act(
    state.online_params, batch.obs_t, noise, 0.1
  ).shape == (2,)


@pytest.mark.parametrize('form', ['huber', 'clipped'])
def test_the_bound_holds_the_gradient(form):
  network = mlp_network(2, sizes=())
  agent = make_q_agent(
    network, OBS, td_loss=form, error_bound=0.25, batch_reduction='sum'
  )
  params = jax.tree.map(jnp.zeros_like, agent.init(jax.random.key(0)))
  # Errors of 5 and -0.125: only the first is bounded.
  batch = _batch([5.0, -0.125], [0.0, 0.0])
  grads, _ = jax.grad(agent.loss, has_aux=True)(
    params, params, batch, jax.random.key(0)
  )
  (bias,) = (leaf for leaf in jax.tree.leaves(grads) if leaf.ndim == 1)
  np.testing.assert_allclose(bias, [-0.25, 0.125], rtol=1e-6)


@pytest.mark.parametrize(
  'kwargs, message',
  [
    (dict(name='dqm'), "agent='dqm' is unknown; choose from dqn, double_dqn"),
    (dict(td_loss='l1'), "td_loss='l1' is unknown"),
    (dict(batch_reduction='max'), "batch_reduction='max' is unknown"),
    (dict(error_bound=0.0), 'error_bound=0.0 must be positive'),
    (
      dict(target_form='maxx'),
      "target_form='maxx' is unknown; choose from max, double, inverse_double",
    ),
    (
      dict(name='double_dqn', target_form='max'),
      "target_form='max' is not the form of agent='double_dqn', which is "
      "'double'; agent='dqn' takes any",
    ),
    (
      dict(target_form='mellowmax'),
      "target_form='mellowmax' needs mellowmax_omega, positive",
    ),
  ],
)
def test_what_make_q_agent_refuses(kwargs, message):
  with pytest.raises(ValueError, match=message):
    make_q_agent(mlp_network(2), OBS, **kwargs)


# Q(lambda).


def _sequence(steps=5, envs=3):
  rng = np.random.default_rng(1)
  obs = lambda: rng.normal(size=(steps, envs, 1, 2)).astype(np.float32)
  ended = rng.random((steps, envs)) < 0.3
  terminated = ended & (rng.random((steps, envs)) < 0.5)
  return Transition(
    obs(),
    rng.integers(2, size=(steps, envs)).astype(np.int32),
    rng.normal(size=(steps, envs)).astype(np.float32),
    np.where(terminated, 0, 0.9).astype(np.float32),
    obs(),
  ), ended


@pytest.mark.parametrize('form', td.TARGETS)
@pytest.mark.parametrize('trace', TRACES)
def test_without_lambda_returns_are_the_agents_targets(form, trace):
  agent = _agent_of_form(form)
  online, target = (agent.init(jax.random.key(i)) for i in (0, 1))
  steps, ended = _sequence()
  found = make_returns(agent, 0.0, trace)(online, target, steps, ended, KEY)
  for env in range(3):
    batch = jax.tree.map(lambda x, env=env: x[:, env], steps)
    np.testing.assert_allclose(
      found[:, env],
      agent.targets(online, target, batch, KEY),
      rtol=1e-5,
      atol=1e-5,
    )


@pytest.mark.parametrize('trace', TRACES)
def test_longer_returns_step_by_step(trace):
  agent = _agent_of_form('max')
  online, target = (agent.init(jax.random.key(i)) for i in (0, 1))
  steps, ended = _sequence()
  found = make_returns(agent, 0.7, trace)(online, target, steps, ended, KEY)
  cuts = 0
  for env in range(3):
    q = np.asarray(agent.values(target, steps.obs_t[:, env]))
    g = 0.0
    for t in reversed(range(5)):
      weight = 0.0 if t == 4 or ended[t, env] else 0.7
      if trace == 'watkins' and weight:
        action = steps.a_tm1[t + 1, env]
        if q[t, action] < q[t].max():
          weight, cuts = 0.0, cuts + 1
      g = steps.r_t[t, env] + steps.discount_t[t, env] * (
        (1 - weight) * q[t].max() + weight * g
      )
      assert float(found[t, env]) == pytest.approx(g, rel=1e-5, abs=1e-6)
  assert (cuts > 0) == (trace == 'watkins')


def test_an_unknown_trace():
  with pytest.raises(ValueError, match="trace='pang' is unknown; .* peng, wat"):
    make_returns(_agent_of_form('max'), 0.5, 'pang')


def test_whole_targets_are_learned_as_they_are():
  agent = _agent_of_form('max', td_loss='squared')
  params = agent.init(jax.random.key(0))
  batch = _batch([5.0, -5.0], [0.9, 0.9])
  value, metrics = agent.loss(
    params, params, batch, jax.random.key(1), bootstrap=None
  )
  q = metrics['q_tm1']
  assert float(value) == pytest.approx(
    float(np.mean((np.float32([5, -5]) - q) ** 2)), rel=1e-5
  )
