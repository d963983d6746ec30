"""C51 and QR-DQN: against rlax, and with every rule of the twin."""

import functools
import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import diagnostics, twins
from siamrl.agents import registry
from siamrl.agents.distributional import make_c51, make_qrdqn
from siamrl.learner import ClockedTwin, make_learner
from siamrl.losses import distributional as losses, td
from siamrl.networks.q_network import mlp_network
from tests.agents.transitions import A, B, D, batch as _batch
from tests.parameters import OF_VALUES, PARAMETERS, make_rules, of_each_kind

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  import rlax

KEY = jax.random.key(0)
N = 5
OBS = np.zeros((1, 1, D), np.float32)
NETWORK = mlp_network(A, sizes=(8,), outputs=N)
SUPPORT = losses.make_support(N, -1.0, 3.0)
MAKE = {
  'c51': functools.partial(
    make_c51, NETWORK, OBS, num_atoms=N, v_min=-1.0, v_max=3.0
  ),
  'qrdqn': functools.partial(make_qrdqn, NETWORK, OBS, quantiles=N),
}
AGENTS = {name: make() for name, make in MAKE.items()}
RULES = make_rules(but=OF_VALUES)
every_agent = pytest.mark.parametrize('name', AGENTS)
# Of rlax, about a function that it still uses.
pytestmark = pytest.mark.filterwarnings('ignore::PendingDeprecationWarning')


def _params(seed):
  """Parameters whose distributions differ visibly."""
  params = NETWORK.init(jax.random.key(seed), OBS)
  return jax.tree.map(lambda leaf: 3 * leaf, params)


def _means(name, answer):
  return answer @ SUPPORT if name == 'c51' else answer.mean(-1)


@every_agent
@pytest.mark.parametrize('form', ['max', 'double'])
def test_losses_and_gradients_are_those_of_rlax(name, form):
  agent, batch = MAKE[name](target_form=form), _batch()
  online, target = _params(0), _params(1)

  def expected(online):
    out_tm1 = NETWORK.apply(online, batch.obs_tm1)
    out_t = NETWORK.apply(target, batch.obs_t)
    chooser = NETWORK.apply(online if form == 'double' else target, batch.obs_t)
    if name == 'qrdqn':
      by_quantile = lambda x: jnp.swapaxes(x, 1, 2)
      each = jax.vmap(rlax.quantile_q_learning, (0, None, 0, 0, 0, 0, 0, None))(
        by_quantile(out_tm1),
        losses.midpoints(N),
        *batch[1:4],
        by_quantile(chooser),
        by_quantile(out_t),
        1.0,
      )
    else:
      q = jax.nn.softmax(chooser) @ SUPPORT
      each = jax.vmap(
        rlax.categorical_double_q_learning, (None, 0, 0, 0, 0, None, 0, 0)
      )(SUPPORT, out_tm1, *batch[1:4], SUPPORT, out_t, q)
    return jnp.mean(each)

  def found(online):
    return agent.loss(online, target, batch, KEY)[0]

  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
    *(jax.jit(jax.value_and_grad(of))(online) for of in (found, expected)),
  )
  choices = [
    np.argmax(agent.values(params, batch.obs_t), -1)
    for params in (online, target)
  ]
  assert (choices[0] != choices[1]).any()


@every_agent
def test_metrics_and_targets(name):
  agent, batch = AGENTS[name], _batch()
  online, target = _params(0), _params(1)
  _, metrics = agent.loss(online, target, batch, KEY)
  answer = agent.bootstrap(online, target, batch.obs_t, KEY)
  assert answer.shape == (B, A, N)
  v_t = _means(name, answer).max(-1)
  y = agent.targets(online, target, batch, KEY)
  np.testing.assert_allclose(
    y, batch.r_t + batch.discount_t * v_t, rtol=1e-5, atol=1e-6
  )
  taken = agent.values(online, batch.obs_tm1)[np.arange(B), batch.a_tm1]
  np.testing.assert_allclose(metrics['q_tm1'], taken, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(metrics['q_tm1'], agent.taken(online, batch))
  if name == 'qrdqn':
    np.testing.assert_allclose(
      metrics['td_error_abs'], np.abs(y - taken), rtol=1e-5, atol=1e-6
    )
  else:  # the support ends at -1 and 3
    assert (metrics['td_error_abs'] <= 4).all()


@every_agent
def test_weights_and_reductions(name):
  batch = _batch()
  online, target = _params(0), _params(1)

  def loss(reduction, weight):
    agent = MAKE[name](batch_reduction=reduction)
    given = batch._replace(weight=weight)
    return float(agent.loss(online, target, given, KEY)[0])

  each = [loss('sum', jnp.eye(B)[i]) for i in range(B)]
  assert loss('sum', None) == pytest.approx(sum(each), rel=1e-5)
  assert loss('mean', None) == pytest.approx(sum(each) / B, rel=1e-5)
  batch = batch._replace(weight=np.arange(B))  # counts for the sum only
  _, metrics = AGENTS[name].loss(online, target, batch, KEY)
  assert metrics['transition_loss'] == pytest.approx(each, rel=1e-5)


@every_agent
def test_whole_targets(name):
  agent, batch = AGENTS[name], _batch()
  online = _params(0)
  certain = batch._replace(
    r_t=np.full(B, 0.5, np.float32), discount_t=np.zeros(B, np.float32)
  )
  by_return = agent.loss(online, None, certain, KEY, bootstrap=None)[0]
  # With a discount of 0 the successor does not matter.
  assert by_return == pytest.approx(
    float(agent.loss(online, _params(1), certain, KEY)[0]), rel=1e-5
  )
  whole = certain._replace(r_t=agent.distributions.taken(online, batch))
  loss = lambda params: agent.loss(params, None, whole, KEY, bootstrap=None)
  (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(online)
  np.testing.assert_allclose(metrics['td_error_abs'], 0, atol=1e-6)
  if name == 'c51':  # the cross-entropy is least there
    assert optax.tree.norm(gradient) < 1e-5


def _learned(name, rule, steps=3, sync=1):
  learner = make_learner(
    AGENTS[name], optax.sgd(0.1), ClockedTwin(RULES[rule], sync, init='fresh')
  )
  state, step = learner.init(KEY), jax.jit(learner.regress)
  for seed in range(steps):
    state, metrics = step(state, _batch(seed))
    assert np.isfinite(metrics['loss'])
  return learner, state


@every_agent
@pytest.mark.parametrize('rule', of_each_kind(sorted(RULES)))
def test_every_rule_bootstraps_from_distributions(name, rule):
  learner, state = _learned(name, rule)
  agent, batch = learner.agent, _batch(9)
  params = state.online_params, state.target_params
  answer = agent.bootstrap(*params, batch.obs_t, KEY)
  assert answer.shape == (B, A, N)
  if name == 'c51':
    np.testing.assert_allclose(answer.sum(-1), 1, rtol=1e-5)
  np.testing.assert_allclose(
    agent.targets(*params, batch, KEY),
    batch.r_t + batch.discount_t * _means(name, answer).max(-1),
    rtol=1e-4,
    atol=1e-5,
  )
  taken = agent.distributions.taken(state.online_params, batch)
  np.testing.assert_allclose(
    _means(name, taken),
    agent.taken(state.online_params, batch),
    rtol=1e-4,
    atol=1e-5,
  )


@every_agent
def test_averaged_distributions(name):
  learner, state = _learned(name, 'averaged')
  obs = _batch(9).obs_t
  copies = [
    jax.tree.map(lambda leaf, k=k: leaf[k], state.target_params)
    for k in range(PARAMETERS['target_count'])
  ]
  each = np.stack(
    [AGENTS[name].bootstrap(None, copy, obs, KEY) for copy in copies]
  )
  assert np.ptp(each, 0).max() > 1e-3
  found = learner.agent.bootstrap(
    state.online_params, state.target_params, obs, KEY
  )
  # A mixture of probabilities; of quantiles the mean at each fraction.
  np.testing.assert_allclose(found, each.mean(0), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    learner.agent.expected(found),
    np.mean([_means(name, answer) for answer in each], 0),
    rtol=1e-4,
    atol=1e-5,
  )


@every_agent
def test_functional_ties_distributions(name):
  learner, state = _learned(name, 'functional')
  batch, online = _batch(9), state.online_params
  twin = _params(1)
  _, metrics = learner.agent.loss(online, twin, batch, KEY)
  out = NETWORK.apply(online, batch.obs_tm1)[np.arange(B), batch.a_tm1]
  tied = NETWORK.apply(twin, batch.obs_tm1)[np.arange(B), batch.a_tm1]
  if name == 'c51':
    log_p = jax.nn.log_softmax(out)
    expected = -np.mean(np.sum(jax.nn.softmax(tied) * log_p, -1))
  else:
    expected = np.mean(
      [
        rlax.quantile_regression_loss(x, losses.midpoints(N), y, 1.0)
        for x, y in zip(out, tied, strict=True)
      ]
    )
  assert metrics['twin_term'] == pytest.approx(
    PARAMETERS['twin_weight'] * float(expected), rel=1e-4
  )


@every_agent
@pytest.mark.parametrize('rule', ['hard', 'self', 'averaged', 'chain'])
def test_the_panel_of_distributions(name, rule):
  # Not just after a copy.
  sync = {'hard': 3, 'averaged': 3}.get(rule, 1)
  learner, state = _learned(name, rule, 5, sync)
  agent, probe = learner.agent, _batch(7)
  panel = diagnostics.make_panel(learner)
  _, metrics = jax.jit(panel.measure)(
    panel.init(state, probe), state, probe, _batch(8)
  )
  online = np.asarray(agent.distributions.taken(state.online_params, probe))
  beside = learner.clocked.twin.params(state.online_params, state.target_params)
  twin = np.asarray(agent.distributions.taken(beside, probe))
  if name == 'c51':
    mean = online @ SUPPORT
    std = np.sqrt(online @ SUPPORT**2 - mean**2)
    distance = np.abs(np.cumsum(online - twin, -1)).sum(-1)  # atoms 1 apart
  else:
    std = online.std(-1)
    distance = np.abs(np.sort(online, -1) - np.sort(twin, -1)).mean(-1)
  assert metrics['distribution_std'] == pytest.approx(
    float(np.mean(std)), rel=1e-3
  )
  assert metrics['distribution_distance'] == pytest.approx(
    float(np.mean(distance)), rel=1e-3, abs=1e-5
  )
  assert (metrics['distribution_distance'] > 0) == (rule != 'self')


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: MAKE['c51'](num_atoms=1), 'num_atoms=1 must be 2 or more'),
    (lambda: MAKE['c51'](v_min=3.0), 'v_min=3.0 must be below v_max=3.0'),
    (lambda: MAKE['c51'](v_min=np.nan), 'v_min=nan must be below v_max=3.0'),
    (lambda: MAKE['qrdqn'](quantiles=0), 'quantiles=0 must be 1 or more'),
    (lambda: MAKE['qrdqn'](error_bound=0), 'error_bound=0 must be positive'),
    (lambda: MAKE['c51'](batch_reduction='max'), "batch_reduction='max' is"),
    (lambda: MAKE['c51'](param_dtype='int8'), "param_dtype='int8' is unknown"),
  ],
)
def test_what_is_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@every_agent
def test_minto_learns_the_whole_distribution_of_the_smaller_mean(name):
  agent, batch = MAKE[name](target_form='minto'), _batch(size=64)
  online, target = _params(0), _params(1)
  ours, theirs = (
    np.asarray(agent.bootstrap(online, params, batch.obs_t, KEY))
    for params in (online, target)
  )
  smaller = np.minimum(_means(name, ours), _means(name, theirs))
  action = smaller.argmax(-1)
  rows = np.arange(64)
  mine = _means(name, ours)[rows, action] < _means(name, theirs)[rows, action]
  assert 0 < mine.sum() < 64  # both networks are asked
  # The mean of a target is MINTO's target of the means.
  np.testing.assert_allclose(
    agent.targets(online, target, batch, KEY),
    batch.r_t + batch.discount_t * smaller.max(-1),
    rtol=1e-5,
    atol=1e-6,
  )
  # What is learned is the target that `max` makes of the chosen distribution.
  chosen = np.where(mine[:, None], ours[rows, action], theirs[rows, action])
  value, _ = agent.loss(online, target, batch, KEY)
  given, _ = AGENTS[name].loss(
    online,
    target,
    batch,
    KEY,
    bootstrap=lambda *_: jnp.repeat(chosen[:, None], A, axis=1),
  )
  np.testing.assert_allclose(value, given, rtol=1e-5)


@every_agent
@pytest.mark.parametrize('rule', ['self', 'residual'])
def test_minto_of_equal_networks_is_max(name, rule):
  online, batch = _params(0), _batch()

  def gradient(form):
    agent = twins.make_rule(rule).lift(MAKE[name](target_form=form))
    return jax.grad(lambda params: agent.loss(params, (), batch, KEY)[0])(
      online
    )

  minto, largest = gradient('minto'), gradient('max')
  jax.tree.map(np.testing.assert_array_equal, minto, largest)


@every_agent
@pytest.mark.parametrize('form', td.TARGETS)
def test_only_forms_that_choose_an_action_have_a_meaning(name, form):
  if form in ('max', 'double', 'minto'):
    return
  with pytest.raises(
    ValueError,
    match=f"target_form='{form}' must be one of max, double, minto for agent",
  ):
    MAKE[name](target_form=form)


def test_networks_of_values_do_not_do():
  agent = make_c51(mlp_network(A), OBS, num_atoms=N)
  with pytest.raises(ValueError, match=r'answers \(6, 3\), and c51 needs 5'):
    agent.values(agent.init(KEY), _batch().obs_t)


def test_one_quantile_needs_no_outputs():
  agent = make_qrdqn(mlp_network(A), OBS, quantiles=1)
  params, batch = agent.init(KEY), _batch()
  np.testing.assert_array_equal(
    agent.values(params, batch.obs_t), mlp_network(A).apply(params, batch.obs_t)
  )
  # |1/2 - 1[u < 0]| is 1/2: half of DQN's loss.
  value, metrics = agent.loss(params, params, batch, KEY)
  assert value == pytest.approx(
    float(jnp.mean(td.huber(metrics['td_error_abs']))) / 2, rel=1e-5
  )


@every_agent
def test_defaults_are_the_registered_ones(name):
  kind = registry.AGENTS[name]
  arguments = inspect.signature(kind.make).parameters
  for parameter in kind.takes:
    default = registry.PARAMETERS[parameter].default
    assert arguments[parameter].default == default
  given = {key: registry.PARAMETERS[key].default for key in kind.takes}
  assert kind.outputs(given) == {'c51': 51, 'qrdqn': 200}[name]


@pytest.mark.parametrize(
  'name, given, message',
  [
    ('c51', {'num_atoms': 1}, 'num_atoms=1 must be a whole number from 2 on'),
    ('c51', {'v_max': np.inf}, 'v_max=inf must be a finite number'),
    ('c51', {'quantiles': 5}, "quantiles=5 has no meaning for agent='c51'"),
    ('qrdqn', {'quantiles': 0}, 'quantiles=0 must be a whole number from 1'),
    ('dqn', {'num_atoms': 51}, 'num_atoms=51 has no meaning'),
    ('c52', {}, "agent='c52' is unknown"),
  ],
)
def test_what_the_registry_refuses(name, given, message):
  with pytest.raises(ValueError, match=message):
    registry.outputs_of(name, given)


@pytest.mark.parametrize(
  'name, changes', [('c51', {}), ('qrdqn', {'error_bound': 0.01})]
)
def test_a_gamble_is_learned_as_a_gamble(name, changes):
  """One step, 1 or -1 at even odds: the mean 0 alone does not tell."""
  agent = MAKE[name](**changes)
  learner = make_learner(agent, optax.adam(0.01), ClockedTwin(twins.hard(), 10))
  batch = _batch(0, 60)
  batch = batch._replace(
    obs_tm1=np.ones_like(batch.obs_tm1),
    a_tm1=(np.arange(60) // 2 % A).astype(np.int32),
    r_t=np.where(np.arange(60) % 2, 1, -1).astype(np.float32),
    discount_t=np.zeros(60, np.float32),
  )

  def measured(state):
    answer = agent.bootstrap(None, state.online_params, batch.obs_tm1[:1], KEY)
    return agent.expected(answer)[0], agent.distributions.std(answer)[0]

  state = learner.init(KEY)
  mean, std = measured(state)
  assert np.abs(mean).max() > 0.3 or np.abs(std - 1).max() > 0.3
  state, _ = jax.jit(
    lambda state: jax.lax.scan(
      lambda state, _: (learner.regress(state, batch)[0], None),
      state,
      length=500,
    )
  )(state)
  mean, std = measured(state)
  # The median of the five quantiles may be anywhere between.
  np.testing.assert_allclose(mean, 0, atol=0.21)
  np.testing.assert_allclose(std, 1, atol=0.12)
