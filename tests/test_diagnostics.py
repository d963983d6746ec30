"""Diagnostics: numbers by hand, laws, and the panel in jit, vmap and scan."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import diagnostics, twins
from siamrl.agents.q import make_q_agent
from siamrl.learner import ClockedTwin, make_learner, make_move
from siamrl.losses import td
from siamrl.networks.activations import activations
from siamrl.networks.q_network import mlp_network
from siamrl.report.metrics import MetricsWriter, read_metrics
from siamrl.types import Transition

ACTIONS, WIDTH = 3, 4
KEY = jax.random.key(0)


def MAX(agent, online, target, batch):
  """Targets of one step, made by hand."""
  v_t = jnp.max(agent.bootstrap(online, target, batch.obs_t, KEY), -1)
  return batch.r_t + batch.discount_t * v_t


def _values(text):
  return jnp.array(text, jnp.float32)


# Distances.


def test_parameter_distance_by_hand():
  online = {
    'params': {
      'torso': {'Dense_0': {'Dense_0': {'kernel': _values([3.0, 4.0])}}},
      'head': {
        'last': {'kernel': _values([[12.0]]), 'bias': _values([0.0])},
        'last_bias': _values([0.0]),
      },
    }
  }
  twin = jax.tree.map(jnp.copy, online)
  twin['params']['torso']['Dense_0']['Dense_0']['kernel'] = _values([0.0, 0.0])
  whole, layers = jax.jit(diagnostics.parameter_distance)(online, twin)
  assert whole == pytest.approx(5 / 13)
  assert layers == {
    'torso/Dense_0': 1.0,
    'head/last': 0.0,
    'head': 0.0,  # 0 / 0
  }


def test_layers_of_several_networks_and_of_bare_leaves():
  one = {'params': {'torso': {'Conv_0': {'kernel': _values([1.0])}}}}
  tree = {'critic_0': one, 'critic_1': one}
  _, layers = diagnostics.parameter_distance(tree, tree)
  assert sorted(layers) == ['critic_0/torso/Conv_0', 'critic_1/torso/Conv_0']
  _, layers = diagnostics.parameter_distance(
    {'w': _values([1])}, {'w': _values([0])}
  )
  assert layers == {'w': 1.0}


def test_a_network_that_has_diverged_is_not_near_its_twin():
  sound = {'a': _values([1, 2]), 'b': _values([3])}
  broken = sound | {'b': _values([np.nan])}
  for pair in ((broken, sound), (sound, broken), (broken, broken)):
    whole, layers = diagnostics.parameter_distance(*pair)
    assert np.isnan(whole) and np.isnan(layers['b']) and layers['a'] == 0


def test_a_twin_in_float32_beside_a_network_in_bfloat16():
  online = {'w': jnp.array([1.0, 1.0], jnp.bfloat16)}
  twin = {'w': _values([1.0, 1.001])}  # bfloat16 would say 1
  whole, _ = diagnostics.parameter_distance(online, twin)
  assert whole == pytest.approx(0.001 / 2**0.5, rel=1e-3)


def test_functional_distance_and_disagreement_by_hand():
  q = _values([[1, 2], [3, 1], [0, 0], [5, 4]])
  other = _values([[1, 0], [3, 1], [0, 1], [4, 5]])
  assert diagnostics.functional_distance(q, other) == pytest.approx(5 / 8)
  greedy, others = jnp.argmax(q, -1), jnp.argmax(other, -1)
  assert diagnostics.disagreement(greedy, others) == 0.75
  assert diagnostics.disagreement(greedy, greedy) == 0


def test_continuous_actions_disagree_by_their_distance():
  one, other = _values([[0, 1], [1, -1]]), _values([[0, 0.5], [-1, -1]])
  assert diagnostics.disagreement(one, other) == (0.5 + 2) / 4


# The twin's age.

PARAMS = {
  'params': {
    'torso': {'Dense_0': {'kernel': jnp.ones((4, 5)), 'bias': jnp.ones(5)}},
    'head': {'last': {'kernel': jnp.ones((5, 3)), 'bias': jnp.ones(3)}},
  }
}


# One clock for each rule, so that what is compiled of it is found again.
_clock = functools.cache(diagnostics.make_clock)


def _age(rule, steps, params=PARAMS, stride=None):
  """The age after some gradient steps, read along the way, and by layer."""
  clock = _clock(rule)
  advance = jax.jit(clock.advance)
  ages = clock.init(params)
  for start in range(0, steps, stride or steps):
    ages = advance(params, ages, start, min(start + (stride or steps), steps))
  return clock.read(params, ages)


@pytest.mark.parametrize('steps', [1, 4, 5, 13])
def test_age_of_a_hard_copy(steps):
  whole, layers = _age(ClockedTwin(twins.hard(), 5), steps, stride=3)
  assert whole == steps % 5
  assert set(map(float, layers.values())) == {steps % 5}
  assert set(layers) == {'torso/Dense_0', 'head/last'}


def test_mean_age_of_a_hard_copy_is_half_its_period_less_one():
  ages = [float(_age(ClockedTwin(twins.hard(), 7), t)[0]) for t in range(1, 15)]
  assert np.mean(ages) == (7 - 1) / 2


@pytest.mark.parametrize('offset', [0, 2])
def test_age_follows_the_clock_of_the_rule(offset):
  whole, _ = _age(ClockedTwin(twins.hard(), 5, offset), 11)
  assert whole == (11 + offset) % 5


def test_age_where_the_twin_moves_before_the_gradient_step():
  # It then holds what the step before left.
  rule = ClockedTwin(twins.hard(), order='before')
  assert [_age(rule, t)[0] for t in (1, 9)] == [1, 1]
  assert _age(rule._replace(sync=5), 11)[0] == 2


@pytest.mark.parametrize('tau', [0.1, 0.5])
@pytest.mark.parametrize('steps', [1, 10, 300])
def test_age_of_a_soft_twin(tau, steps):
  whole, _ = _age(ClockedTwin(twins.soft(tau)), steps)
  expected = (1 - tau) * (1 - (1 - tau) ** steps) / tau
  assert whole == pytest.approx(expected, rel=1e-4)
  if steps == 300:
    assert whole == pytest.approx((1 - tau) / tau, rel=1e-4)


def test_age_is_exact_late_in_a_long_run():
  clock = diagnostics.make_clock(ClockedTwin(twins.soft(0.005)))
  start = 50_000_000
  ages = clock.advance(PARAMS, clock.init(PARAMS), start, start + 5_000)
  assert clock.read(PARAMS, ages)[0] == pytest.approx(199, rel=1e-3)


def test_ages_of_frozen_self_and_dated_twins():
  assert _age(ClockedTwin(twins.frozen(), twins.NEVER), 12)[0] == 12
  assert _age(ClockedTwin(twins.self_copy()), 12)[0] == 0
  assert _age(ClockedTwin(twins.residual()), 12)[0] == 0
  dated = twins.hard_scheduled(5, 5, 1)
  assert _age(ClockedTwin(dated), 12)[0] == 2


def test_age_of_each_part():
  rule = twins.by_path(
    {'torso': twins.hard(), 'last': twins.periodic(5, twins.hard())}
  )
  whole, layers = _age(ClockedTwin(rule), 13)
  assert layers == {'torso/Dense_0': 0, 'head/last': 3}
  assert whole == pytest.approx(3 * 18 / (25 + 18))  # by parameters


def test_age_of_averaged_copies_is_their_mean():
  # After 13 steps they were taken at 12, 8 and 4.
  whole, _ = _age(ClockedTwin(twins.averaged(3), 4), 13)
  assert whole == pytest.approx((1 + 5 + 9) / 3)


def test_age_of_a_chain_of_networks():
  # Of three networks, the first learns from what stands still for 6 steps, the
  # others from copies of 2.
  stacked = jax.tree.map(lambda x: jnp.stack([x] * 3), PARAMS)
  whole, _ = _age(ClockedTwin(twins.chain(3, 6, 2)), 11, stacked)
  assert whole == pytest.approx((5 + 1 + 1) / 3)


def test_age_of_what_is_no_mean_is_kept_by_another_rule():
  # The ball would cut ages off.
  ball = twins.projected_soft(0.1, 1.0, 0.0)
  cut, _ = _age(ClockedTwin(ball._replace(clock=None)), 300)
  assert cut < 1
  whole, _ = _age(ClockedTwin(ball), 300)
  assert whole == pytest.approx(9, rel=1e-4)


def test_ages_of_many_runs_at_once():
  def age(period):
    return _age_traced(ClockedTwin(twins.hard(), period), 13)

  periods = jnp.array([2, 5, 100])
  np.testing.assert_array_equal(jax.jit(jax.vmap(age))(periods), [1, 3, 13])


def _age_traced(rule, steps):
  clock = diagnostics.make_clock(rule)
  ages = clock.advance(PARAMS, clock.init(PARAMS), 0, steps)
  return clock.read(PARAMS, ages)[0]


def _moves(rule, before, after, params=PARAMS):
  """How often the twin moves, and when last, after a start from 0."""
  clock = _clock(rule)
  moves = jax.jit(clock.moves)
  ages, *_ = moves(params, clock.init(params), 0, before)
  return [int(x) for x in moves(params, ages, before, after)[1:]]


@pytest.mark.parametrize('order', ['after', 'before'])
def test_moves_of_rules(order):
  """[how often, when last], from gradient step 6 to 13."""
  moves = lambda rule, *args: _moves(
    ClockedTwin(rule, *args, order=order), 6, 13
  )
  assert moves(twins.hard(), 5) == [1, 10]
  assert moves(twins.hard(), 5, 2) == [2, 13]
  assert moves(twins.hard(), 7) == [1, 7]
  assert moves(twins.hard(), 100) == [0, 6]
  assert moves(twins.soft(0.1)) == [7, 13]
  assert moves(twins.soft(0.1), 4) == [2, 12]
  assert moves(twins.periodic(4, twins.soft(0.5))) == [2, 12]
  assert moves(twins.averaged(3), 4) == [2, 12]
  assert moves(twins.frozen(), twins.NEVER) == [0, 6]
  assert moves(twins.self_copy()) == [0, 6]
  by_path = twins.by_path(
    {'torso': twins.periodic(3, twins.hard()), 'last': twins.frozen()}
  )
  assert moves(by_path) == [2, 12]


@pytest.mark.parametrize(
  'twin', [twins.hard_scheduled(2, 4, 4), twins.hard_geometric(2, 1.2)]
)
def test_moves_of_periods_that_grow(twin):
  # The twin is 0 old where it has just been copied, and nowhere else.
  rule = ClockedTwin(twin)
  copies = [t for t in range(1, 30) if _moves(rule, t - 1, t)[0]]
  ages = [float(_age(rule, t)[0]) for t in range(1, 30)]
  assert copies == [t for t, age in enumerate(ages, 1) if age == 0]
  assert len(copies) > 5


def test_moves_of_a_chain_of_networks():
  stacked = jax.tree.map(lambda x: jnp.stack([x] * 3), PARAMS)
  rule = ClockedTwin(twins.chain(3, 6, 2))
  assert _moves(rule, 6, 11, params=stacked) == [2, 10]


def test_moves_of_many_runs_at_once():
  def moves(period):
    clock = diagnostics.make_clock(ClockedTwin(twins.hard(), period))
    return clock.moves(PARAMS, clock.init(PARAMS), 0, 13)[1:]

  periods = jnp.array([2, 5, 100])
  count, last = jax.jit(jax.vmap(moves))(periods)
  assert (count.tolist(), last.tolist()) == ([6, 2, 0], [12, 10, 0])


def test_the_order_is_checked():
  with pytest.raises(ValueError, match="target_order='aft' is unknown"):
    diagnostics.make_clock(ClockedTwin(twins.hard(), order='aft'))


def test_a_rule_that_reads_reports_has_no_age_without_a_clock():
  twin = twins.soft(0.1)._replace(reads_report=True)
  with pytest.raises(ValueError, match='reads reports needs a Twin.clock'):
    diagnostics.make_clock(ClockedTwin(twin))
  dated = ClockedTwin(twin._replace(clock=twins.hard()), 5)
  assert _age(dated, 13)[0] == 3


# Targets.


def test_td_split_by_hand():
  # Own: 1 + 0.5 * 4 - 2 = 1; the twin says 6 in place of 4.
  split = diagnostics.td_split(2.0, 1.0, 0.5, _values([6, 0]), _values([3, 4]))
  assert split == (1.0, 1.0)
  whole = td.max_target(
    td.TargetInputs(
      a_tm1=1,
      r_t=1.0,
      discount_t=0.5,
      q_t=_values([6, 0]),
      q_t_online=_values([3, 4]),
      q_tm1=_values([0, 0]),
    )
  )
  assert split.own + split.twin == whole - 2


def test_target_drift_by_hand():
  drift = diagnostics.target_drift(_values([1, 2]), _values([2, 0]))
  assert drift == 1.5
  drift = diagnostics.target_drift(_values([1, 2]), _values([2, 0]), 6)
  assert drift == 0.25
  still = _values([1, 2])
  assert np.isnan(diagnostics.target_drift(still, still, 0))


def _batch(size=8, seed=0):
  rng = np.random.default_rng(seed)
  obs = lambda: rng.normal(size=(size, 1, WIDTH)).astype(np.float32)
  return Transition(
    obs(),
    rng.integers(ACTIONS, size=size).astype(np.int32),
    rng.normal(size=size).astype(np.float32),
    np.where(rng.random(size) < 0.2, 0, 0.9).astype(np.float32),
    obs(),
  )


NETWORK = mlp_network(ACTIONS, sizes=(16, 8))
BASE = make_q_agent(NETWORK, np.zeros((1, 1, WIDTH), np.float32))
LOOK = functools.partial(activations, NETWORK)
OPTIMIZER = optax.sgd(0.1)


def _run(rule, base=BASE):
  """(learner, state) of a run."""
  made = make_learner(base, OPTIMIZER, rule)
  return made, made.init(jax.random.key(1))


def _learn(made, state, steps, seed=7):
  step = jax.jit(made.regress)
  for i in range(steps):
    state, _ = step(state, _batch(seed=seed + i))
  return state


def test_churn_by_hand():
  # q(s) = w s for both of two actions, the second one's turned around:
  # on s = 1 with target 1 + 0.5 * 2 w' and w = w' = 1, the error is 1, and
  # w becomes 1 + 0.25 * 2 * 1.
  def values(params, obs):
    return params['w'] * jnp.stack([obs, 1.2 - obs], -1)

  def loss(online, target, batch, key):
    q = values(online, batch.obs_tm1)[:, 0]
    y = batch.r_t + batch.discount_t * jnp.max(values(target, batch.obs_t), -1)
    return jnp.mean((y - q) ** 2), {}

  agent = BASE._replace(
    init=lambda key: {'w': jnp.float32(1.0)},
    values=values,
    acting=BASE.acting._replace(
      greedy=lambda params, obs: jnp.argmax(values(params, obs), -1)
    ),
    bootstrap=lambda online, target, obs, key: values(target, obs),
    targets=lambda online, target, batch, key: (
      batch.r_t + batch.discount_t * jnp.max(values(target, batch.obs_t), -1)
    ),
    loss=loss,
  )
  one = lambda s, a, r, d, s1: Transition(
    *(jnp.array([x]) for x in (s, a, r, d, s1))
  )
  batch, probe = one(1.0, 0, 1.0, 0.5, 2.0), one(0.5, 0, 0.0, 0.9, 4.0)
  for rule, moved in ((twins.hard(), 0.5), (twins.frozen(), 0.0)):
    made = make_learner(agent, optax.sgd(0.25), ClockedTwin(rule))
    found = jax.jit(
      lambda state, made=made: diagnostics.churn(made, state, batch, probe)
    )(made.init(jax.random.key(0)))
    assert found['target_churn_train'] == pytest.approx(0.5 * 2 * moved)
    assert found['target_churn'] == pytest.approx(0.9 * 4 * moved)
    # Values grow, and no action overtakes the other.
    assert found['policy_churn'] == 0


@pytest.mark.slow
def test_targets_churn_where_the_twin_moves_and_only_there():
  found = {}
  for name, rule in {
    'still': ClockedTwin(twins.hard(), 5),
    'due': ClockedTwin(twins.hard(), 4),
    'self': ClockedTwin(twins.self_copy()),
  }.items():
    made, state = _run(rule)
    state = _learn(made, state, 3)
    found[name] = diagnostics.churn(made, state, _batch(), _batch(64, 3))
  for metric in ('target_churn_train', 'target_churn'):
    assert found['still'][metric] == 0
    assert found['due'][metric] > 0
    assert found['self'][metric] > 0
  assert found['still']['policy_churn'] > 0


# Features.


def _spectrum(values, rows, columns, seed=0):
  rng = np.random.default_rng(seed)
  rank = len(values)
  left, _ = np.linalg.qr(rng.normal(size=(rows, rank)))
  right, _ = np.linalg.qr(rng.normal(size=(columns, rank)))
  return (left * values @ right.T).astype(np.float32)


@pytest.mark.parametrize('rows, columns', [(200, 48), (48, 200), (64, 64)])
@pytest.mark.parametrize(
  'values',
  [
    np.ones(1),
    np.ones(40),
    0.8 ** np.arange(48),
    np.r_[100, np.full(47, 0.1)],  # what a mean activation does
  ],
  ids=['one', 'flat', 'decaying', 'dominated'],
)
def test_srank_equals_the_definition(values, rows, columns):
  features = _spectrum(values, rows, columns)
  exact = np.linalg.svd(features.astype(np.float64), compute_uv=False)
  found = jax.jit(diagnostics.singular_values)(features)
  np.testing.assert_allclose(found, exact, atol=1e-5 * exact[0])
  for delta in (0.01, 0.2):
    sums = np.cumsum(exact)
    least = next(
      k
      for k in range(1, len(sums) + 1)
      if sums[k - 1] >= (1 - delta) * sums[-1]
    )
    rank = diagnostics.srank(found, delta)
    # Equal singular values end on the bound, where a last bit decides.
    assert abs(int(rank) - least) <= (1 if values[0] == values[-1] else 0)


def test_ranks_by_hand():
  values = _values([90, 9.5, 0.5])
  assert diagnostics.srank(values) == 2
  assert diagnostics.srank(values, 0.2) == 1
  assert diagnostics.srank(values, 0.001) == 3
  four = _values([2, 2, 2, 2, 0])
  assert diagnostics.effective_rank(four) == pytest.approx(4)
  # Entropy of (1/2, 1/4, 1/4): 1.5 ln 2.
  assert diagnostics.effective_rank(_values([2, 1, 1])) == pytest.approx(2**1.5)
  for rank in (diagnostics.srank, diagnostics.effective_rank):
    assert rank(_values([0, 0])) == 0
    assert np.isnan(rank(_values([np.nan, np.nan])))


def test_dormancy_by_hand():
  # Means of |h|: 3, 0, 1, 0; their mean 1.
  dense = _values([[2, 0, 1, 0], [4, 0, -1, 0]])
  np.testing.assert_allclose(diagnostics.dormancy(dense), [3, 0, 1, 0])
  conv = jnp.zeros((2, 2, 1, 2)).at[0, 0, 0].set(_values([8, 0.04]))
  np.testing.assert_allclose(
    diagnostics.dormancy(conv), [2 / 1.005, 0.01 / 1.005], rtol=1e-5
  )
  np.testing.assert_array_equal(diagnostics.dormancy(jnp.zeros((3, 2))), [0, 0])


def test_dormant_fraction_and_overlap_by_hand():
  scores = {'a': _values([0, 0.02, 2]), 'b': _values([0.1])}
  for threshold, whole, layers in (
    (0.0, 1 / 4, {'a': 1 / 3, 'b': 0}),
    (0.025, 2 / 4, {'a': 2 / 3, 'b': 0}),
    (0.1, 3 / 4, {'a': 2 / 3, 'b': 1}),
  ):
    found = diagnostics.dormant_fraction(scores, threshold)
    assert found == (pytest.approx(whole), pytest.approx(layers))
  whole, layers = diagnostics.dormant_fraction(
    scores | {'c': _values([np.nan, 0])}, 0.1
  )
  assert np.isnan(whole) and np.isnan(layers['c']) and layers['b'] == 1
  before = {'a': jnp.array([True, True, False]), 'b': jnp.array([True])}
  after = {'a': jnp.array([True, False, True]), 'b': jnp.array([True])}
  assert diagnostics.dormant_overlap(before, after) == pytest.approx(2 / 3)
  none = jax.tree.map(jnp.zeros_like, before)
  assert np.isnan(diagnostics.dormant_overlap(none, after))


# Over-estimation and divergence.


def test_monte_carlo_by_hand():
  # Of the first environment the episode ends after two steps and the next one
  # runs out of the recording; the second one's is truncated after one step,
  # and then terminates.
  reward = _values([[1, 1], [2, 2], [4, 4], [8, 8]])
  terminated = jnp.array([[0, 0], [1, 0], [0, 0], [0, 1]], bool)
  truncated = jnp.array([[0, 1], [0, 0], [0, 0], [0, 0]], bool)
  returns, tails = jax.jit(diagnostics.monte_carlo)(
    reward, terminated, truncated, 0.5
  )
  np.testing.assert_allclose(
    returns, [[1 + 1, 1], [2, 2 + 2 + 2], [4 + 4, 4 + 4], [8, 8]]
  )
  np.testing.assert_allclose(tails, [[0, 0.5], [0, 0], [0.25, 0], [0.5, 0]])


def test_an_end_that_is_both_is_a_termination():
  both = jnp.array([True])
  returns, tails = diagnostics.monte_carlo(_values([3]), both, both, 0.9)
  assert (returns, tails) == (3, 0)


def test_returns_with_their_tails_are_those_of_a_longer_recording():
  rng = np.random.default_rng(0)
  reward = rng.normal(size=(30, 4)).astype(np.float32)
  ends = rng.random((30, 4)) < 0.1
  never = np.zeros_like(ends)
  whole, _ = diagnostics.monte_carlo(reward, ends, never, 0.9)
  seen, tails = diagnostics.monte_carlo(reward[:20], ends[:20], never[:20], 0.9)
  np.testing.assert_allclose(seen + tails * whole[20], whole[:20], rtol=1e-4)


def test_overestimation_by_hand():
  values, returns = _values([5, 1, 3]), _values([3, 2, 100])
  tails = _values([0, 0.005, 0.5])
  found = diagnostics.overestimation(values, returns, tails)
  assert found['overestimation'] == pytest.approx((2 - 1) / 2)
  assert found['return_mc'] == pytest.approx(2.5)
  assert found['known_returns'] == pytest.approx(2 / 3)
  strict = diagnostics.overestimation(values, returns, tails, 0.0)
  assert strict['overestimation'] == 2
  nothing = diagnostics.overestimation(values, returns, jnp.ones(3))
  assert np.isnan(nothing['overestimation'])
  assert nothing['known_returns'] == 0


def test_truncated_returns_would_look_over_estimated():
  # A reward of 1 for ever, exact values, episodes cut after 10 steps.
  cut = (jnp.arange(500) % 10 == 9) & (jnp.arange(500) < 20)
  never = jnp.zeros(500, bool)
  returns, tails = diagnostics.monte_carlo(jnp.ones(500), never, cut, 0.9)
  exact = jnp.full(500, 10.0)
  found = diagnostics.overestimation(exact, returns, tails, 0.001)
  assert abs(found['overestimation']) <= 0.001 * 10
  assert found['known_returns'] > 0.8
  assert jnp.mean(exact - returns) > 0.1


def test_exact_bias_by_hand():
  bias, error = diagnostics.bias_exact(
    _values([[1, 2], [0, -3]]), _values([[1, 1], [1, 0]])
  )
  assert (bias, error) == (0, 3)


def test_soft_divergence_by_hand():
  # r_max / (1 - discount) = 2.
  q = _values([[1, -2]])
  assert diagnostics.soft_divergence(q, 1.0, 0.5) == 0
  assert diagnostics.soft_divergence(q * 1.01, 1.0, 0.5) == 1
  assert diagnostics.soft_divergence(q * jnp.nan, 1.0, 0.5) == 1


# Gradients, and other rules' beside the one in use.


def test_gradient_cosine_by_hand():
  one = {'a': _values([3, 0]), 'b': _values([[4]])}
  other = {'a': _values([0, 1]), 'b': _values([[1]])}
  cosine = jax.jit(diagnostics.gradient_cosine)
  assert cosine(one, other) == pytest.approx(4 / (5 * 2**0.5))
  assert cosine(one, jax.tree.map(lambda x: -2 * x, one)) == pytest.approx(-1)
  assert cosine(one, jax.tree.map(jnp.zeros_like, one)) == 0
  assert np.isnan(cosine(one, {'a': _values([0, np.nan]), 'b': one['b']}))


def _same(one, other, rtol=1e-6):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7),
    one,
    other,
  )


SHADOWS = {
  'hard': ClockedTwin(twins.hard(), 3),
  'soft': ClockedTwin(twins.soft(0.1)),
  'averaged': ClockedTwin(twins.averaged(2), 2),
  'dated': ClockedTwin(twins.hard_scheduled(2, 4, 9)),
  'counted': ClockedTwin(twins.hard_geometric(2, 1.5)),
  'frozen': ClockedTwin(twins.frozen(), twins.NEVER),
  'self': ClockedTwin(twins.self_copy()),
  'late': ClockedTwin(twins.hard(), 4, 3),
}


def test_shadows_are_the_twins_that_their_rules_would_have():
  made, state = _run(ClockedTwin(twins.hard(), 5))
  shadows = diagnostics.shadows_init(SHADOWS, BASE, state.online_params)
  own = dict(shadows)
  follow = jax.jit(functools.partial(diagnostics.shadows_follow, SHADOWS))
  for step in range(1, 12):
    state = _learn(made, state, 1, seed=step)
    shadows = follow(shadows, state.online_params, step - 1, step)
    for name, rule in SHADOWS.items():
      _, own[name] = make_move(rule)(state.online_params, own[name], step)
  _same(shadows, own)
  assert shadows['self'] == ()


def test_shadows_count_crossings():
  rules = {'hard': ClockedTwin(twins.hard(), 4)}
  born, new = {'w': _values([0])}, {'w': _values([1])}
  follow = functools.partial(diagnostics.shadows_follow, rules, {'hard': born})
  assert follow(new, 0, 3)['hard']['w'] == 0
  assert follow(new, 3, 6)['hard']['w'] == 1
  assert follow(new, 4, 7)['hard']['w'] == 0


def test_strides_go_as_far_as_steps():
  online, born = {'w': _values([1])}, {'w': _values([0])}
  shadow = diagnostics.strided_soft(0.1, 7)
  moved = diagnostics.shadows_follow(
    {'soft': shadow}, {'soft': born}, online, 0, 7
  )
  assert moved['soft']['w'] == pytest.approx(1 - 0.9**7)


@pytest.mark.parametrize('age', [0.0, 4.5, 34.5])
def test_matched_shadows_are_as_old_as_the_rule_in_use(age):
  rules = diagnostics.matched_shadows(diagnostics.SHADOWS, age)
  assert tuple(rules) == diagnostics.SHADOWS
  # Of the period 2 age + 1: 1, 10 and 70.
  assert int(rules['hard'].sync) == round(2 * age + 1)
  # Of the rate 1 / (age + 1), in strides of 16.
  assert rules['soft'].sync == diagnostics.STRIDE == 16
  moved = rules['soft'].twin.update(_values([0]), _values([1]), 16)
  np.testing.assert_allclose(moved, (1 - 1 / (age + 1)) ** 16, rtol=1e-5)
  assert rules['self'].twin.init(_values([1])) == ()
  assert rules['residual'].twin.init(_values([1])) == ()
  assert rules['frozen'].sync == twins.NEVER
  found = diagnostics.matched_shadows(('self', 'hard'), age)
  assert tuple(found) == ('self', 'hard')


def test_matched_shadows_of_many_runs_and_of_ages_that_no_run_reaches():
  periods = jax.jit(
    jax.vmap(
      lambda age: diagnostics.matched_shadows(('hard',), age)['hard'].sync
    )
  )(jnp.array([0.0, 2.0, 1e12]))
  assert periods.tolist() == [1, 5, 2**30]


@pytest.mark.parametrize(
  'twin', [twins.chain(2, 4, 2), twins.iterated_heads(1)]
)
def test_rules_with_other_online_parameters_are_refused(twin):
  state = _run(ClockedTwin(twins.hard()))[1]
  with pytest.raises(
    ValueError, match="'other' cannot be a shadow: its online"
  ):
    diagnostics.shadows_init(
      {'other': ClockedTwin(twin)}, BASE, state.online_params
    )
  state = _run(ClockedTwin(twin))[1]
  with pytest.raises(
    ValueError, match="'hard' cannot be a shadow: the rule in"
  ):
    diagnostics.shadows_init(
      {'hard': ClockedTwin(twins.hard())}, BASE, state.online_params
    )


def test_counterfactuals_of_the_rule_in_use_and_of_others():
  rule = ClockedTwin(twins.hard(), 4)
  made, state = _run(rule)
  agent = made.agent
  rules = {'same': rule, 'self': ClockedTwin(twins.self_copy())}
  shadows = diagnostics.shadows_init(rules, BASE, state.online_params)

  @jax.jit
  def look(state, shadows):
    return diagnostics.counterfactuals(
      agent, BASE, rules, shadows, state, _batch()
    )

  for step in range(1, 7):
    state = _learn(made, state, 1, seed=step)
    shadows = diagnostics.shadows_follow(
      rules, shadows, state.online_params, step - 1, step
    )
    found = look(state, shadows)
    # Where the twin has just been copied, the two are one.
    for name in ('same', 'self') if step == 4 else ('same',):
      assert found[f'shadow_gap/{name}'] == pytest.approx(0, abs=1e-6)
      assert found[f'cosine/{name}'] == pytest.approx(1, abs=1e-5)
      assert found[f'norm_ratio/{name}'] == pytest.approx(1, abs=1e-5)
    y = MAX(agent, state.online_params, state.target_params, _batch())
    assert found['shadow_target/same'] == pytest.approx(float(jnp.mean(y)))
  own = twins.self_copy().lift(BASE)
  y_self = MAX(own, state.online_params, (), _batch())
  assert found['shadow_gap/self'] == pytest.approx(
    float(jnp.mean(jnp.abs(y - y_self)))
  )
  assert found['shadow_gap/self'] > 0
  grads = [
    jax.grad(a.loss, has_aux=True)(
      state.online_params, target, _batch(), jax.random.key(0)
    )[0]
    for a, target in ((agent, state.target_params), (own, ()))
  ]
  flat = [jax.flatten_util.ravel_pytree(g)[0] for g in grads]
  norms = [np.linalg.norm(g) for g in flat]
  assert found['cosine/self'] == pytest.approx(
    float(flat[0] @ flat[1] / (norms[0] * norms[1])), rel=1e-4
  )
  assert found['norm_ratio/self'] == pytest.approx(
    norms[1] / norms[0], rel=1e-4
  )


# The panel.


def _panel(made, **kwargs):
  return diagnostics.make_panel(
    made,
    look=LOOK,
    **(
      dict(
        rank_states=16,
        reward_bound=1.0,
        discount=0.9,
        shadows={'soft': ClockedTwin(twins.soft(0.1)), 'self': SHADOWS['self']},
      )
      | kwargs
    ),
  )


PROBE = _batch(64, seed=3)
NAMES = {
  *('twin_age', 'twin_distance', 'functional_distance', 'greedy_disagreement'),
  *('target_mean', 'target_drift', 'target_churn', 'target_churn_train'),
  *('policy_churn', 'td_own_abs', 'td_split', 'td_split_abs', 'q_max_abs'),
  *('soft_divergence', 'srank', 'effective_rank', 'dormant_overlap'),
  *('dormant_0', 'dormant_0.025', 'dormant_0.1'),
  *('drift_steps', 'drift_syncs', 'steps_since_sync', 'churn_synced'),
  *(
    f'{metric}/{rule}'
    for metric in ('shadow_target', 'shadow_gap', 'cosine', 'norm_ratio')
    for rule in ('soft', 'self')
  ),
}
PARTS = {'torso/Dense_0', 'torso/Dense_1', 'head/last'}


def test_the_panel_beside_a_loop_on_the_host(tmp_path):
  rule = ClockedTwin(twins.hard(), 5)
  made, state = _run(rule)
  agent, panel = made.agent, _panel(made)
  assert panel.follows
  init, follow = jax.jit(panel.init), jax.jit(panel.follow)
  measure = jax.jit(panel.measure, donate_argnums=0)
  step = jax.jit(made.regress, donate_argnums=0)
  seen, previous, rows = init(state, PROBE), None, []
  for i in range(1, 13):
    state, _ = step(state, _batch(seed=i))
    seen = follow(seen, state)
    if i % 4:
      continue
    seen, row = measure(seen, state, PROBE, _batch(seed=99))
    rows.append(jax.device_get(row))
    online, target = state.online_params, state.target_params
    y = MAX(agent, online, target, PROBE)
    q, q_twin = agent.values(online, PROBE.obs_tm1), None
    q_twin = agent.values(target, PROBE.obs_tm1)
    expected = {
      'twin_age': i % 5,
      'twin_age/head/last': i % 5,
      'functional_distance': np.mean(np.abs(q - q_twin)),
      'greedy_disagreement': np.mean(q.argmax(-1) != q_twin.argmax(-1)),
      'target_mean': np.mean(y),
      'target_drift': (
        np.nan if previous is None else np.mean(np.abs(y - previous)) / 4
      ),
      'drift_steps': 4,
      # Copies after gradient steps 5 and 10; looks after 4, 8 and 12.
      'drift_syncs': i // 5 - (i - 4) // 5,
      'steps_since_sync': i % 5,
      'churn_synced': float((i + 1) % 5 == 0),
      'q_max_abs': np.max(
        np.abs(
          np.concatenate([q, agent.values(online, _batch(seed=99).obs_tm1)])
        )
      ),
      'td_split': np.mean(
        PROBE.discount_t
        * (
          agent.values(target, PROBE.obs_t).max(-1)
          - agent.values(online, PROBE.obs_t).max(-1)
        )
      ),
    }
    for name, value in expected.items():
      np.testing.assert_allclose(row[name], value, rtol=1e-4, err_msg=name)
    previous = y
  assert set(rows[0]) == NAMES | {
    *(f'twin_age/{part}' for part in PARTS),
    *(f'twin_distance/{part}' for part in PARTS),
    *(
      f'dormant_{threshold}/{part}'
      for threshold in ('0', '0.025', '0.1')
      for part in PARTS - {'head/last'}
    ),
  }
  assert all(row[name].shape == () for row in rows for name in row)
  # As columns of a file.
  with MetricsWriter(tmp_path / 'metrics.csv') as writer:
    writer.write_rows(rows)
  table = read_metrics(tmp_path / 'metrics.csv')
  np.testing.assert_allclose(
    table['cosine/soft'], [row['cosine/soft'] for row in rows]
  )
  assert np.isnan(table['target_drift'][0])
  assert not np.isnan(table['target_drift'][1])


@pytest.mark.slow
def test_the_panel_in_one_program_of_many_runs():
  batches = jax.tree.map(
    lambda *x: jnp.stack(x), *[_batch(seed=i) for i in range(11)]
  )

  def run(period):
    made, state = _run(ClockedTwin(twins.hard(), period))
    panel = _panel(made, per_layer=False)

    def step(carry, batch):
      state, seen = carry
      state, _ = made.regress(state, batch)
      return (state, panel.follow(seen, state)), None

    seen = panel.init(state, PROBE)
    (state, seen), _ = jax.lax.scan(step, (state, seen), batches)
    return panel.measure(seen, state, PROBE, _batch())[1]

  periods = jnp.array([3, 100])
  rows = jax.jit(jax.vmap(run))(periods)
  assert set(rows) == NAMES
  np.testing.assert_allclose(rows['twin_age'], [2, 11], rtol=1e-6)
  assert rows['twin_distance'][0] < rows['twin_distance'][1]
  alone = jax.jit(run)(periods[0])
  for name, row in alone.items():
    np.testing.assert_allclose(
      rows[name][0], row, rtol=1e-3, atol=1e-5, err_msg=name
    )


_RULES = {
  'soft_cosine': dict(tau=0.1, target_schedule_steps=9),
  'soft_linear': dict(tau=0.1, tau_end=0.0, target_schedule_steps=9),
  'hard_scheduled': dict(
    target_period=2, target_period_end=4, target_schedule_steps=9
  ),
  'hard_geometric': dict(target_period=2, target_period_growth=1.5),
  'hard_random': dict(target_period=2),
  't_soft': dict(tau=0.1, degrees_of_freedom=1.0),
  'soft': dict(tau=0.1),
  'periodic_soft': dict(tau=0.1),
  'by_path': dict(target_paths='torso:self+head:frozen'),
  'averaged': dict(target_count=2),
  'chain': dict(target_count=2, target_period=4, target_sync_period=2),
  'iterated_heads': dict(target_count=2),
  'gradient_chain': dict(target_count=2, ridge=0.01),
  'functional': dict(twin_weight=0.5),
  'proximal': dict(twin_weight=0.1),
  'projected_soft': dict(tau=0.1, projection_radius=100.0, ridge=0.01),
}


# Compiling takes seconds each: those that differ most from the others, and all.
_QUICK = ('by_path', 'averaged', 'iterated_heads', 'frozen')


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow)
    for name in twins.RULES
  ],
)
def test_the_panel_fits_every_rule(name):
  twin = twins.make_rule(name, **_RULES.get(name, {}))
  rule = ClockedTwin(twin, twins.RULES[name].period or 3)
  made, state = _run(rule)
  # Few shadows: each is compiled.
  several = name in ('chain', 'gradient_chain', 'iterated_heads')
  shadows = {} if several else {'self': SHADOWS['self']}
  panel = _panel(made, shadows=shadows)
  seen = panel.init(state, PROBE)
  measure = jax.jit(panel.measure)
  for _ in range(2):
    state = _learn(made, state, 4)
    seen, row = measure(seen, state, PROBE, _batch())
  numbers = {k: v for k, v in row.items() if k != 'dormant_overlap'}
  assert all(np.isfinite(v) for v in numbers.values()), numbers
  if name == 'self':
    for metric in ('twin_age', 'twin_distance', 'td_split', 'shadow_gap/self'):
      assert row[metric] == 0
  if name == 'frozen':
    assert row['twin_age'] == pytest.approx(8)
    assert row['target_drift'] == 0


def test_drift_and_churn_tell_what_a_sync_did():
  """Looks at unlike distances, with and without syncs in between."""
  made, state = _run(ClockedTwin(twins.hard(), 5))
  agent, panel = made.agent, _panel(made, shadows={})
  seen = panel.init(state, PROBE)
  measure = jax.jit(panel.measure)
  rows, targets, steps = [], [], [0, 2, 4, 7, 14, 15]
  for before, after in itertools.pairwise(steps):
    state = _learn(made, state, after - before)
    seen, row = measure(seen, state, PROBE, _batch())
    rows.append(jax.device_get(row))
    targets.append(MAX(agent, state.online_params, state.target_params, PROBE))

  def column(name):
    return [float(row[name]) for row in rows]

  assert column('drift_steps') == [2, 2, 3, 7, 1]
  assert column('drift_syncs') == [0, 0, 1, 1, 1]
  assert column('steps_since_sync') == [2, 4, 2, 4, 0]
  assert column('churn_synced') == [0, 1, 0, 1, 0]
  # Of a hard twin targets change where it moves, and nowhere else.
  churned = column('target_churn')
  assert [churn > 0 for churn in churned] == [False, True, False, True, False]
  drift = column('target_drift')
  assert np.isnan(drift[0])
  assert drift[1] == 0
  for i in (2, 3, 4):
    gap = np.mean(np.abs(targets[i] - targets[i - 1]))
    assert drift[i] == pytest.approx(gap / (steps[i + 1] - steps[i]), rel=1e-4)
  # A second look at the same moment has no drift to tell of.
  assert np.isnan(measure(seen, state, PROBE, _batch())[1]['target_drift'])


def test_a_clock_of_its_own_for_a_rule_that_cannot_keep_one():
  twin = twins.projected_soft(0.1, 1.0, 0.0)
  made, state = _run(ClockedTwin(twin))
  panel = _panel(made, shadows={})
  seen = panel.init(state, PROBE)
  state = _learn(made, state, 5)
  _, row = jax.jit(panel.measure)(seen, state, PROBE, _batch())
  assert row['twin_age'] == pytest.approx(9 * (1 - 0.9**5), rel=1e-5)


def test_the_age_of_the_stale_head():
  twin = twins.iterated_heads(2)
  made, state = _run(ClockedTwin(twin, 4))
  panel = _panel(made, shadows={})
  seen = panel.init(state, PROBE)
  state = _learn(made, state, 7)
  _, row = jax.jit(panel.measure)(seen, state, PROBE, _batch())
  # Of the heads 0 to 2, head 1 learns from a stale one.
  assert row['twin_age/head/last'] == 2
  assert row['twin_age/torso/Dense_0'] == 0


def test_what_the_panel_leaves_out():
  made, state = _run(ClockedTwin(twins.hard(), 5))
  panel = diagnostics.make_panel(made, per_layer=False)
  assert not panel.follows
  seen = panel.init(state, PROBE)
  _, row = jax.eval_shape(panel.measure, seen, state, PROBE, _batch())
  assert set(row) == {
    name
    for name in NAMES
    if '/' not in name
    and not name.startswith(('dormant', 'srank', 'effective', 'soft_div'))
  }


def test_shadows_that_stand_still_need_no_following():
  made, _ = _run(ClockedTwin(twins.hard(), 5))
  shadows = {name: SHADOWS[name] for name in ('self', 'frozen')}
  assert not _panel(made, shadows=shadows).follows
