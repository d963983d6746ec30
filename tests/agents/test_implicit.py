"""IQN and M-IQN: against rlax and by hand, and with every rule of the twin."""

import functools
import inspect
import warnings

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import diagnostics, twins
from siamrl.agents import registry
from siamrl.agents.implicit import make_iqn
from siamrl.learner import ClockedTwin, make_learner
from siamrl.losses import distributional as losses, td
from siamrl.networks.implicit import implicit_network
from siamrl.networks.q_network import mlp_network
from siamrl.types import Transition
from tests.agents.transitions import A, B, D, batch as _batch
from tests.parameters import (
  OF_EACH_KIND,
  OF_VALUES,
  PARAMETERS,
  make_rules,
  slow_but,
)

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  import rlax

KEY = jax.random.key(0)
N, M, K = 5, 7, 3  # fractions learned, of targets, and for acting
OBS = np.zeros((1, 1, D), np.float32)
PLAIN = mlp_network(A, sizes=(8,))
NETWORK = implicit_network(PLAIN, 6)
MAKE = functools.partial(
  make_iqn,
  PLAIN,
  OBS,
  fractions=N,
  target_fractions=M,
  acting_fractions=K,
  cosines=6,
)
AGENT = MAKE()
# The values of Vieillard et al. (2020), but for a policy that is less greedy.
SOFT = {'soft_temperature': 0.5}
MUNCHAUSEN = SOFT | {'munchausen_alpha': 0.9, 'munchausen_clip': -1.0}
GIVEN = {'soft': SOFT, 'munchausen': MUNCHAUSEN}
FORMS = ('max', 'double', 'soft', 'munchausen', 'minto')
RULES = make_rules(but=OF_VALUES)
every_form = pytest.mark.parametrize('form', FORMS)
# Of rlax, about a function that it still uses.
pytestmark = pytest.mark.filterwarnings('ignore::PendingDeprecationWarning')


def _of_form(form, **changes):
  return MAKE(target_form=form, target_parameters=GIVEN.get(form), **changes)


def _params(seed):
  """Parameters whose returns differ visibly."""
  params = NETWORK.init(jax.random.key(seed), OBS)
  return jax.tree.map(lambda leaf: 3 * leaf, params)


def _expected_targets(form, online, target, batch, key, agent=AGENT):
  """Targets [B, N'] of an agent's own answers, in NumPy."""
  bootstrap = jax.jit(agent.bootstrap)
  answer, other, before = jax.device_get(
    (
      bootstrap(online, target, batch.obs_t, key),
      bootstrap(online, online, batch.obs_t, key),
      bootstrap(online, target, batch.obs_tm1, key),
    )
  )
  values = np.asarray(agent.values(online, batch.obs_t))
  rows = []
  for i in range(B):
    z, q, bonus = answer.returns[i].copy(), answer.values[i].copy(), 0.0
    if form == 'double':
      q = values[i]
    if form == 'minto':
      for a in range(A):
        if other.values[i, a] < q[a]:
          z[a], q[a] = other.returns[i, a], other.values[i, a]
    if form in ('max', 'double', 'minto'):
      successor = z[q.argmax()]
    else:
      tau = SOFT['soft_temperature']
      pi = np.exp((q - q.max()) / tau)
      pi /= pi.sum()
      successor = pi @ (z - tau * np.log(pi)[:, None])
    if form == 'munchausen':
      q = before.values[i]
      log_pi = (q - q.max()) / tau
      log_pi -= np.log(np.exp(log_pi).sum())
      bonus = 0.9 * np.clip(tau * log_pi[batch.a_tm1[i]], -1, 0)
    rows.append(batch.r_t[i] + bonus + batch.discount_t[i] * successor)
  return jnp.array(rows)


@pytest.mark.parametrize(
  'form, bound, per, shape',
  slow_but(
    lambda case: case[0] == 'max' or case[1:3] == (0.3, 'transition'),
    [
      (form, *options)
      for form in FORMS
      for options in (
        (1.0, 'transition', (B, N)),
        (0.3, 'transition', (B, N)),
        (1.0, 'batch', N),
      )
    ],
  ),
)
def test_losses_and_gradients_are_those_of_rlax(form, bound, per, shape):
  agent = _of_form(form, error_bound=bound, fractions_per=per)
  batch, online, target = _batch(), _params(0), _params(1)
  y = _expected_targets(form, online, target, batch, KEY, agent)
  drawn = jax.random.uniform(jax.random.fold_in(KEY, 2), shape)
  drawn = jnp.broadcast_to(drawn, (B, N))

  def expected(online):
    returns = NETWORK.apply(online, batch.obs_tm1, drawn)
    taken = returns[np.arange(B), batch.a_tm1]
    each = jax.vmap(rlax.quantile_regression_loss, (0, 0, 0, None))(
      taken, drawn, y, bound
    )
    return jnp.mean(each) / bound  # the paper's eq. 3

  def found(online):
    return agent.loss(online, target, batch, KEY)[0]

  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    *(jax.jit(jax.value_and_grad(of))(online) for of in (found, expected)),
  )


@every_form
def test_metrics_and_targets(form):
  agent, batch = _of_form(form), _batch()
  online, target = _params(0), _params(1)
  _, metrics = agent.loss(online, target, batch, KEY)
  y = agent.targets(online, target, batch, KEY)
  np.testing.assert_allclose(
    y,
    _expected_targets(form, online, target, batch, KEY).mean(-1),
    rtol=1e-4,
    atol=1e-5,
  )
  np.testing.assert_allclose(
    metrics['td_error_abs'],
    np.abs(y - metrics['q_tm1']),
    rtol=1e-4,
    atol=1e-5,
  )


class _Table(nn.Module):
  """A head whose returns are its parameters, times the feature."""

  initializer: str = 'lecun_normal'

  @nn.compact
  def __call__(self, features):
    values = self.param('last', nn.initializers.zeros_init(), (2,))
    return features[:, :1] * values


class _Ones(nn.Module):
  def __call__(self, obs):
    return jnp.ones((len(obs), 1))


class _Tiny(nn.Module):
  torso: nn.Module
  head: nn.Module


def test_munchausen_by_hand():
  """The equation of Vieillard et al. (2020), for returns without width."""
  agent = make_iqn(
    _Tiny(_Ones(), _Table()),
    np.zeros((1, 1)),
    target_form='munchausen',
    target_parameters={
      'soft_temperature': 0.5,
      'munchausen_alpha': 0.9,
      'munchausen_clip': -1.0,
    },
  )
  params = agent.init(KEY)
  dense = params['params']['head_embedding']['Dense_0']
  dense['kernel'] *= 0
  dense['bias'] += 1  # an embedding of 1
  # q / 0.5 = (log 3, 0): the policy is (3/4, 1/4).
  params['params']['head']['last'] = jnp.array([0.5 * np.log(3), 0])
  batch = Transition(
    np.zeros((3, 1), np.float32),
    np.array([0, 1, 1], np.int32),
    np.array([1, 1, 2], np.float32),
    np.array([0.5, 0.5, 0], np.float32),
    np.zeros((3, 1), np.float32),
  )
  # 0.5 log(exp(log 3) + exp(0)) = log 2.
  np.testing.assert_allclose(
    agent.targets(params, params, batch, KEY),
    [
      1 + 0.9 * 0.5 * np.log(3 / 4) + 0.5 * np.log(2),
      1 + 0.9 * 0.5 * np.log(1 / 4) + 0.5 * np.log(2),
      2 + 0.9 * 0.5 * np.log(1 / 4),
    ],
    rtol=1e-5,
  )
  # The log-policy of the second action, -0.69, is clipped.
  clipped = make_iqn(
    _Tiny(_Ones(), _Table()),
    np.zeros((1, 1)),
    target_form='munchausen',
    target_parameters={
      'soft_temperature': 0.5,
      'munchausen_alpha': 0.9,
      'munchausen_clip': -0.5,
    },
  )
  assert clipped.targets(params, params, batch, KEY)[2] == pytest.approx(
    2 - 0.9 * 0.5
  )


def test_munchausen_without_a_bonus_is_soft_and_soft_can_be_greedy():
  batch, params = _batch(), (_params(0), _params(1))
  loss = lambda form, given: MAKE(
    target_form=form, target_parameters=given
  ).loss(*params, batch, KEY)[0]
  assert loss('munchausen', MUNCHAUSEN | {'munchausen_alpha': 0.0}) == loss(
    'soft', SOFT
  )
  assert loss('soft', {'soft_temperature': 1e-5}) == pytest.approx(
    float(loss('max', None)), rel=1e-4
  )


def test_targets_draw_their_fractions():
  obs, params = _batch().obs_t, _params(0)
  one = AGENT.bootstrap(params, params, obs, KEY)
  assert one.returns.shape == (B, A, M) and one.values.shape == (B, A)
  other = AGENT.bootstrap(params, params, obs, jax.random.key(1))
  assert (one.returns != other.returns).all()
  assert (one.values != other.values).all()
  # Actions are chosen by other fractions than they are valued at.
  assert np.abs(AGENT.expected(one) - one.values).min() > 1e-5
  # Each observation has its own.
  same = AGENT.bootstrap(params, params, np.ones_like(obs), KEY).returns
  assert (same[0] != same[1]).all()


def test_acting_draws_its_fractions():
  params, obs = _params(0), np.repeat(_batch(3).obs_tm1[:1], 500, 0)
  noise = AGENT.acting.noise(KEY, 500)
  assert noise[1].shape == (500, K)
  values = NETWORK.apply(params, obs, noise[1]).mean(-1)
  np.testing.assert_array_equal(
    AGENT.acting.act(params, obs, noise, 0.0), values.argmax(-1)
  )
  fixed = NETWORK.apply(params, obs, jnp.asarray(losses.midpoints(K))).mean(-1)
  np.testing.assert_allclose(
    AGENT.values(params, obs), fixed, rtol=1e-5, atol=1e-6
  )
  np.testing.assert_array_equal(
    AGENT.acting.greedy(params, obs), fixed.argmax(-1)
  )
  anything = AGENT.acting.act(params, obs, noise, 1.0)
  assert (np.bincount(anything, minlength=A) > 100).all()


def test_weights_and_reductions():
  batch = _batch()
  online, target = _params(0), _params(1)

  def loss(reduction, weight):
    given = batch._replace(weight=weight)
    agent = MAKE(batch_reduction=reduction)
    return float(agent.loss(online, target, given, KEY)[0])

  each = [loss('sum', jnp.eye(B)[i]) for i in range(B)]
  assert loss('sum', None) == pytest.approx(sum(each), rel=1e-5)
  assert loss('mean', None) == pytest.approx(sum(each) / B, rel=1e-5)
  batch = batch._replace(weight=np.arange(B))  # counts for the sum only
  _, metrics = AGENT.loss(online, target, batch, KEY)
  assert metrics['transition_loss'] == pytest.approx(each, rel=1e-5)


def test_whole_targets():
  batch, online = _batch(), _params(0)
  certain = batch._replace(
    r_t=np.full(B, 0.5, np.float32), discount_t=np.zeros(B, np.float32)
  )
  by_return = AGENT.loss(online, None, certain, KEY, bootstrap=None)[0]
  # With a discount of 0 the successor does not matter.
  assert by_return == pytest.approx(
    float(AGENT.loss(online, _params(1), certain, KEY)[0]), rel=1e-5
  )
  whole = certain._replace(r_t=AGENT.distributions.taken(online, batch))
  assert whole.r_t.shape == (B, K)
  value, _ = AGENT.loss(online, None, whole, KEY, bootstrap=None)
  assert np.isfinite(value)


def _learned(rule, steps=3, sync=1, form='max'):
  learner = make_learner(
    _of_form(form), optax.sgd(0.1), ClockedTwin(RULES[rule], sync, init='fresh')
  )
  state, step = learner.init(KEY), jax.jit(learner.regress)
  for seed in range(steps):
    state, metrics = step(state, _batch(seed))
    assert np.isfinite(metrics['loss'])
  return learner, state


@pytest.mark.parametrize(
  'rule, form',
  slow_but(
    lambda case: (
      case[0] in OF_EACH_KIND
      and case[1] == 'max'
      or case == ('averaged', 'munchausen')
    ),
    [(rule, form) for rule in sorted(RULES) for form in ('max', 'munchausen')],
  ),
)
def test_every_rule_bootstraps_from_returns(rule, form):
  learner, state = _learned(rule, form=form)
  agent, batch = learner.agent, _batch(9)
  params = state.online_params, state.target_params
  answer = agent.bootstrap(*params, batch.obs_t, KEY)
  assert answer.returns.shape == (B, A, M)
  if form == 'max':
    v_t = answer.returns.mean(-1)[np.arange(B), answer.values.argmax(-1)]
    np.testing.assert_allclose(
      agent.targets(*params, batch, KEY),
      batch.r_t + batch.discount_t * v_t,
      rtol=1e-4,
      atol=1e-5,
    )
  taken = agent.distributions.taken(state.online_params, batch)
  np.testing.assert_allclose(
    taken.mean(-1),
    agent.taken(state.online_params, batch),
    rtol=1e-4,
    atol=1e-5,
  )


def test_a_batch_may_share_its_fractions():
  obs = jnp.repeat(_batch(9).obs_t[:1], B, 0)
  own, shared = (
    MAKE(fractions_per=per).bootstrap(None, _params(0), obs, KEY).returns
    for per in ('transition', 'batch')
  )
  assert np.ptp(own, 0).max() > 1e-3
  np.testing.assert_allclose(shared, jnp.repeat(shared[:1], B, 0), rtol=1e-6)
  assert np.ptp(shared, -1).max() > 1e-3


def test_averaged_returns_are_at_the_same_fractions():
  learner, state = _learned('averaged')
  obs = _batch(9).obs_t
  copies = [
    jax.tree.map(lambda leaf, k=k: leaf[k], state.target_params)
    for k in range(PARAMETERS['target_count'])
  ]
  each = [AGENT.bootstrap(None, copy, obs, KEY) for copy in copies]
  assert np.ptp([answer.returns for answer in each], 0).max() > 1e-3
  found = learner.agent.bootstrap(
    state.online_params, state.target_params, obs, KEY
  )
  for name in ('returns', 'values'):
    np.testing.assert_allclose(
      getattr(found, name),
      np.mean([getattr(answer, name) for answer in each], 0),
      rtol=1e-4,
      atol=1e-5,
    )


def test_functional_ties_distributions():
  learner, state = _learned('functional')
  batch, online, twin = _batch(9), state.online_params, _params(1)
  _, metrics = learner.agent.loss(online, twin, batch, KEY)
  tied = AGENT.distributions.taken(twin, batch)
  given = batch._replace(r_t=tied)
  expected, _ = AGENT.loss(online, None, given, KEY, bootstrap=None)
  assert metrics['twin_term'] == pytest.approx(
    PARAMETERS['twin_weight'] * float(expected), rel=1e-4
  )


@pytest.mark.parametrize(
  'rule', ['hard', 'self', pytest.param('chain', marks=pytest.mark.slow)]
)
def test_the_panel_of_distributions(rule):
  # Not just after a copy.
  learner, state = _learned(rule, 5, {'hard': 3}.get(rule, 1))
  panel = diagnostics.make_panel(learner)
  probe = _batch(7)
  measure = jax.jit(panel.measure)
  start = panel.init(state, probe)
  seen, metrics = measure(start, state, probe, _batch(8))
  assert metrics['distribution_std'] > 0
  assert (metrics['distribution_distance'] > 0) == (rule != 'self')
  # The fractions of measurements stay the same throughout a run.
  later = state.replace(gradient_steps=state.gradient_steps + 2)
  again, metrics = measure(seen, later, probe, _batch(8))
  np.testing.assert_array_equal(again.targets, seen.targets)
  assert metrics['target_drift'] == 0


@pytest.mark.parametrize('name', ['fractions', 'target_fractions', 'cosines'])
def test_counts_are_positive(name):
  with pytest.raises(ValueError, match=f'{name}=0 must be 1 or more'):
    MAKE(**{name: 0})


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'error_bound': 0}, 'error_bound=0 must be positive'),
    ({'batch_reduction': 'max'}, "batch_reduction='max' is"),
    ({'param_dtype': 'int8'}, "param_dtype='int8' is unknown"),
    (
      {'target_form': 'munchausen', 'target_parameters': SOFT},
      'munchausen.* needs munchausen_alpha',
    ),
    (
      {'target_parameters': SOFT},
      "soft_temperature=0.5 has no meaning for target_form='max'",
    ),
  ],
)
def test_what_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    MAKE(**changes)


@pytest.mark.parametrize('form', sorted(set(td.TARGETS) - set(FORMS)))
def test_forms_without_a_meaning(form):
  with pytest.raises(
    ValueError, match=f"target_form='{form}' must be max, double, soft, mun"
  ):
    MAKE(target_form=form)


def test_networks_without_parts_do_not_do():
  with pytest.raises(ValueError, match='Dense must have a torso and a head'):
    make_iqn(nn.Dense(3), OBS)


def test_defaults_are_the_registered_ones():
  kind = registry.AGENTS['iqn']
  arguments = inspect.signature(kind.make).parameters
  defaults = {key: registry.PARAMETERS[key].default for key in kind.takes}
  for parameter, default in defaults.items():
    assert arguments[parameter].default == default
  assert kind.outputs(defaults) == 1
  network = registry.network_of('iqn', PLAIN, defaults | {'cosines': 6})
  assert network == NETWORK
  assert registry.network_of('dqn', PLAIN, {}) is PLAIN


@pytest.mark.slow
def test_a_gamble_is_learned_as_a_gamble():
  """One step, 1 or -1 at even odds: the mean 0 alone does not tell."""
  agent = make_iqn(PLAIN, OBS, error_bound=0.01)
  learner = make_learner(agent, optax.adam(0.01), ClockedTwin(twins.hard(), 10))
  batch = _batch(0, 60)
  batch = batch._replace(
    obs_tm1=np.ones_like(batch.obs_tm1),
    a_tm1=(np.arange(60) // 2 % A).astype(np.int32),
    r_t=np.where(np.arange(60) % 2, 1, -1).astype(np.float32),
    discount_t=np.zeros(60, np.float32),
  )
  state, _ = jax.jit(
    lambda state: jax.lax.scan(
      lambda state, _: (learner.regress(state, batch)[0], None),
      state,
      length=500,
    )
  )(learner.init(KEY))
  network = implicit_network(PLAIN)
  found = network.apply(
    state.online_params, batch.obs_tm1[:1], jnp.array([0.1, 0.3, 0.7, 0.9])
  )
  np.testing.assert_allclose(
    found[0], np.tile([-1, -1, 1, 1], (A, 1)), atol=0.25
  )
