"""Laws of the twin in families beside Q-learning: TD3, SAC, Siamese agents."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import diagnostics, learner, twins
from siamrl.agents.actor_critic import make_actor_critic
from siamrl.agents.siamese import make_siamese_agent
from siamrl.learner import ClockedTwin, make_learner
from siamrl.networks.policies import (
  Critic,
  DeterministicActor,
  TanhGaussianActor,
)
from siamrl.networks.siamese import siamese_networks
from siamrl.types import Transition
from tests.parameters import PARAMETERS, of_each_kind

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
# Which parameters have a twin, and two halves of them.
TWINNED = {
  'td3': ({'actor', 'critic'}, 'actor:soft+critic:hard'),
  'sac': ({'critic'}, 'torso:soft+last:hard'),
  'siamese': (
    {'encoder', 'projector'},
    'encoder:soft+projector:hard',
  ),
}
FAMILIES = list(TWINNED)
# Rules that ask for what a family does not have.
REFUSED = {
  ('siamese', 'functional'): 'needs an agent with values of actions',
  **{(family, 'gradient_chain'): 'needs an agent' for family in FAMILIES},
  ('siamese', 'iterated_heads'): 'needs a network with a part named last',
}
# Rules that keep no parameters.
WITHOUT = ('self', 'residual', 'iterated_heads')


def _normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


TRANSITIONS = Transition(
  _normal(4, 3),
  np.tanh(_normal(4, 2)),
  _normal(4),
  np.full(4, 0.9, np.float32),
  _normal(4, 3),
)
IMAGES = RNG.random((8, 3, 3, 1)).astype(np.float32)


@functools.cache
def _base(family):
  if family == 'siamese':
    networks = siamese_networks(
      'mlp',
      encoder_sizes=(8,),
      projector_sizes=(),
      projections=3,
      predictor_units=8,
    )
    return make_siamese_agent(networks, IMAGES, augment=_shaken).agent
  kind = DeterministicActor if family == 'td3' else TanhGaussianActor
  batch_norm = family == 'crossq'
  return make_actor_critic(
    family,
    kind(sizes=(4,), action_dim=2, batch_norm=batch_norm),
    Critic(sizes=(4,), batch_norm=batch_norm),
    TRANSITIONS.obs_tm1,
  )


def _shaken(key, image):
  """A view that takes little compiling."""
  return image * (1 + jax.random.key_data(key)[0] % 7 / 10)


def _batch(family):
  return IMAGES if family == 'siamese' else TRANSITIONS


def _rule(family, name):
  given = PARAMETERS | {'target_paths': TWINNED[family][1]}
  wanted = twins.takes(name, given['target_paths'])
  return twins.make_rule(name, **{key: given[key] for key in wanted})


def _names(tree):
  """The first entries of a parameter tree's paths that name a part."""
  parts = {'actor', 'critic', 'log_alpha'}
  parts |= {'encoder', 'projector', 'predictor', 'statistics'}
  clock = {'updated_at', 'updates'}
  paths = (path for path, _ in jax.tree_util.tree_leaves_with_path(tree))
  found = set()
  for path in paths:
    words = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
    found.add(next(word for word in words if word in parts | clock))
  return found - clock


@functools.cache
def _born(family):
  return jax.jit(_base(family).init)(KEY)


def _different(family):
  """Another twin than the online network."""
  part = twins.part(_base(family), _born(family))
  return jax.tree.map(lambda leaf: 0.5 * leaf + 0.1, part)


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('name', of_each_kind(twins.RULES))
def test_a_rule_takes_a_gradient_step_or_says_why_not(name, family):
  base, rule = _base(family), _rule(family, name)

  def make():
    return make_learner(base, optax.adam(1e-3), ClockedTwin(rule, 2))

  if (family, name) in REFUSED:
    message = f"^target_update='{name}' {REFUSED[family, name]}"
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(lambda: make().init(KEY))
    return
  made = make()
  state = jax.eval_shape(lambda: made.init(KEY))
  after, metrics = jax.eval_shape(made.regress, state, _batch(family))
  chex.assert_trees_all_equal_shapes_and_dtypes(
    *(s.replace(key=None) for s in (after, state))
  )
  means = jax.eval_shape(learner.mean_of, metrics)
  assert {metric.shape for metric in means.values()} == {()}
  assert metrics['loss'].shape == ()
  assert metrics['loss'].dtype == jnp.float32
  # Nothing is kept but what has a twin.
  expected = set() if name in WITHOUT else TWINNED[family][0]
  assert _names(state.target_params) == expected
  assert _names(state.online_params) == set(_born(family))


@functools.cache
def _gradients(family):
  """Of `hard` with an equal twin and another one, of `self` and `residual`."""
  base, batch = _base(family), _batch(family)

  @jax.jit
  def gradients(online, equal, other):
    def of(name, target):
      agent = twins.make_rule(name).lift(base)
      # Of the first argument alone, as the learner takes them.
      return jax.grad(lambda p: agent.loss(p, target, batch, KEY)[0])(online)

    return (
      of('hard', equal),
      of('hard', other),
      of('self', ()),
      of('residual', ()),
    )

  online = _born(family)
  equal = twins.born(twins.part(base, online))
  return gradients(online, equal, _different(family))


def _distance(one, other):
  return float(optax.tree.norm(optax.tree.sub(one, other)))


@pytest.mark.parametrize('family', [*FAMILIES, 'crossq'])
def test_self_is_hard_at_every_gradient_step(family):
  """And neither the gradient through the twin nor another twin's."""
  equal, other, itself, residual = _gradients(family)
  size = float(optax.tree.norm(equal))
  assert 1e-2 < size < 1e2
  assert _distance(itself, equal) < 1e-5 * size
  assert _distance(other, equal) > 1e-3 * size
  assert _distance(residual, equal) > 1e-3 * size


@pytest.mark.parametrize('family', ['td3', 'sac'])
def test_no_gradient_reaches_the_actor_by_way_of_the_twin(family):
  """Also where the twin is the online network with its gradient."""
  equal, _, _, residual = _gradients(family)
  chex.assert_trees_all_close(residual['actor'], equal['actor'], atol=1e-6)
  assert _distance(residual['critic'], equal['critic']) > 1e-3


def test_no_gradient_reaches_crossq_statistics_by_way_of_the_twin():
  equal, other, _, residual = _gradients('crossq')
  for name in ('actor', 'actor_statistics', 'critic_statistics', 'steps'):
    chex.assert_trees_all_close(residual[name], equal[name], atol=1e-6)
    chex.assert_trees_all_close(other[name], equal[name], atol=1e-6)
  assert _distance(residual['critic'], equal['critic']) > 1e-3


def test_no_gradient_reaches_statistics_by_way_of_the_twin():
  equal, _, _, residual = _gradients('siamese')
  chex.assert_trees_all_close(
    residual['statistics'], equal['statistics'], atol=1e-6
  )
  # Behind the stop-gradient the predictor learns the same.
  chex.assert_trees_all_close(
    residual['predictor'], equal['predictor'], atol=1e-6
  )


@pytest.mark.parametrize('family', FAMILIES)
def test_soft_of_rate_1_is_hard(family):
  online = twins.part(_base(family), _born(family))
  target = _different(family)
  hard = twins.hard().update(online, target, 1)
  chex.assert_trees_all_equal(hard, online)
  chex.assert_trees_all_equal(twins.soft(1).update(online, target, 1), hard)
  traced = jax.jit(lambda tau: twins.soft(tau).update(online, target, 1))
  chex.assert_trees_all_close(traced(1.0), hard, atol=1e-6)
  chex.assert_trees_all_close(traced(1e-12), target, atol=1e-6)


def _idle(made):
  """A learner whose gradient steps change nothing."""
  return made._replace(regress=lambda state, batch: (state, {}))


@pytest.mark.parametrize('family', FAMILIES)
def test_the_panel_sees_how_far_a_twin_is(family):
  base, rule, batch = _base(family), twins.hard(), _batch(family)
  made = make_learner(base, optax.sgd(0.1), ClockedTwin(rule, 3))
  panel = diagnostics.make_panel(_idle(made), per_layer=False)
  online = _born(family)
  state = made.init(KEY).replace(
    online_params=online,
    target_params=rule.init(twins.part(base, online)),
  )
  measure = jax.jit(lambda state: panel.measure(seen, state, batch, batch)[1])
  seen = panel.init(state, batch)

  def look(name, change):
    moved = jax.tree.map(lambda leaf: leaf + change, online[name])
    row = measure(state.replace(online_params=online | {name: moved}))
    return float(row['twin_distance']), float(row['functional_distance'])

  # Right after a copy, and later.
  assert max(look(next(iter(online)), 0)) < 1e-7
  twinned, _ = TWINNED[family]
  for name in online:
    distance, functional = look(name, 0.25)
    assert (distance > 1e-3) == (name in twinned), name
    # An actor without a twin acts for both; the predictor says nothing.
    assert (functional > 1e-3) == (name in twinned), name
    if name in twinned:
      assert look(name, 0.125)[0] < distance


@pytest.mark.parametrize('family', ['td3', 'sac'])
def test_a_network_that_is_its_own_twin_adds_nothing_to_td_errors(family):
  """Whatever its targets have beside values: noise, an entropy."""
  base, batch = _base(family), _batch(family)

  def make(rule):
    return make_learner(base, optax.sgd(0.1), ClockedTwin(rule))

  def split(rule):
    panel = diagnostics.make_panel(_idle(make(rule)))
    return jax.jit(
      lambda state: panel.measure(
        panel.init(state, batch), state, batch, batch
      )[1]['td_split_abs']
    )

  state = make(twins.hard()).init(KEY)
  hard, itself = split(twins.hard()), split(twins.self_copy())
  assert hard(state) < 1e-6
  assert hard(state.replace(target_params=_different(family))) > 1e-2
  assert itself(state.replace(target_params=())) < 1e-6


def test_what_has_no_part_in_the_twin_makes_no_rules_alike():
  """SAC's actor and temperature learn the same under every rule."""
  base, batch = _base('sac'), _batch('sac')
  made = make_learner(base, optax.sgd(0.1), ClockedTwin(twins.hard()))
  state = made.init(KEY).replace(target_params=_different('sac'))
  shadows = {'self': ClockedTwin(twins.self_copy(), 1)}
  row = jax.jit(
    lambda state: diagnostics.counterfactuals(
      base, base, shadows, {'self': ()}, state, batch
    )
  )(state)
  key = jax.random.fold_in(state.key, state.gradient_steps)
  own = twins.part(base, state.online_params)
  gradient = jax.jit(jax.grad(base.loss, has_aux=True))
  one, other = (
    gradient(state.online_params, twin, batch, key)[0]
    for twin in (state.target_params, own)
  )
  expected = diagnostics.gradient_cosine(one['critic'], other['critic'])
  assert row['cosine/self'] == pytest.approx(float(expected), abs=1e-4)
  whole = diagnostics.gradient_cosine(one, other)
  assert abs(float(whole - expected)) > 0.005


def test_a_siamese_twin_is_looked_at_as_it_is_learned_from():
  base, online = _base('siamese'), _born('siamese')
  beside = twins.whole(base, online, _different('siamese'))
  np.testing.assert_allclose(
    base.values(beside, IMAGES),
    base.bootstrap(online, _different('siamese'), IMAGES, KEY),
    rtol=1e-5,
  )


def test_the_whole_is_the_twin_and_what_has_none():
  for family, (twinned, _) in TWINNED.items():
    base, online = _base(family), _born(family)
    part = twins.part(base, online)
    assert set(part) == twinned <= set(online)
    whole = twins.whole(base, online, _different(family))
    assert set(whole) == set(online)
    for name in online:
      same = all(
        np.array_equal(a, b)
        for a, b in zip(
          jax.tree.leaves(whole[name]),
          jax.tree.leaves(online[name]),
          strict=True,
        )
      )
      assert same == (name not in twinned)
