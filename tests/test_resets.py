"""Resets: their arithmetic by hand, every rule of the twin, and their clock."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import twins
from siamrl.agents.q import make_q_agent
from siamrl.learner import ClockedTwin, make_learner, make_optimizer
from siamrl.networks.q_network import mlp_network
from siamrl.parameters import FieldError
from siamrl.resets import TWINS, Resets, shrunk, with_resets
from siamrl.twins.trees import named_leaves
from tests.agents.transitions import A, D, batch
from tests.parameters import make_rules, of_each_kind

KEY = jax.random.key(0)
OBS = np.zeros((1, 1, D), np.float32)
AGENT = make_q_agent(mlp_network(A, sizes=(8,)), OBS)
OPTIMIZER = make_optimizer('adam', learning_rate=0.01, eps=1e-8)


def _learner(rule=None, **resets):
  plain = make_learner(AGENT, OPTIMIZER, ClockedTwin(rule or twins.soft(0.3)))
  return plain, with_resets(plain, OPTIMIZER, Resets(**resets))


def _steps(learner, count, state=None):
  regress = jax.jit(learner.regress)
  state = learner.init(KEY) if state is None else state
  for step in range(count):
    state, _ = regress(state, batch(step))
  return state


def _same(one, other):
  return jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), one, other))


def test_arithmetic():
  params = {
    'torso': {'kernel': jnp.array([4.0, 8.0])},
    'head': {'kernel': jnp.array([1.0])},
    'updates': jnp.array(7),
  }
  fresh = {
    'torso': {'kernel': jnp.array([0.0, 4.0])},
    'head': {'kernel': jnp.array([-1.0])},
    'updates': jnp.array(0),
  }
  found = shrunk(params, fresh, 0.75)
  np.testing.assert_array_equal(found['torso']['kernel'], [3.0, 7.0])
  np.testing.assert_array_equal(found['head']['kernel'], [-1.0])
  assert found['updates'] == 7
  assert _same(shrunk(params, fresh, 1.0)['torso'], params['torso'])
  assert _same(shrunk(params, fresh, 0.0)['torso'], fresh['torso'])


def test_a_reset_comes_when_it_is_due_and_not_after_its_end():
  plain, resetting = _learner(period=3, until=6)
  state, expected = resetting.init(KEY), plain.init(KEY)
  regress, plainly = jax.jit(resetting.regress), jax.jit(plain.regress)
  for step in range(1, 10):
    expected, _ = plainly(state, batch(step))
    state, _ = regress(state, batch(step))
    assert _same(state.online_params, expected.online_params) == (
      step not in (3, 6)
    )
    assert state.gradient_steps == step


def test_torso_stays_and_optimizer_restarts():
  plain, resetting = _learner(period=4, shrink=1.0)
  before, after = _steps(plain, 4), _steps(resetting, 4)
  parts = lambda state: state.online_params['params']
  assert _same(parts(before)['torso'], parts(after)['torso'])
  assert not _same(parts(before)['head'], parts(after)['head'])
  assert _same(after.opt_state, OPTIMIZER.init(after.online_params))
  # The next gradient steps are those of the plain learner.
  assert _same(_steps(resetting, 3, after), _steps(plain, 3, after))


def test_shrinking_draws_from_the_initial_distribution():
  """With shrink 0.5, half of the distance to the fresh weights is left."""
  plain, half = _learner(period=1, shrink=0.5)
  _, whole = _learner(period=1, shrink=0.0)
  before, halfway, fresh = (_steps(x, 1) for x in (plain, half, whole))
  torso = lambda state: jax.tree.leaves(state.online_params['params']['torso'])
  for b, h, f in zip(*map(torso, (before, halfway, fresh)), strict=True):
    np.testing.assert_allclose(h, (b + f) / 2, rtol=1e-6)


@pytest.mark.parametrize('name', of_each_kind(make_rules()))
@pytest.mark.parametrize('twin', TWINS)
def test_every_rule(name, twin):
  """The twin is reset, a copy, or left alone, and learning goes on."""
  rule = make_rules()[name]
  plain, resetting = _learner(rule, period=5, shrink=0.5, twin=twin)
  before, after = _steps(plain, 5), _steps(resetting, 5)
  assert jax.tree.structure(before) == jax.tree.structure(after)
  for (path, one), (_, other) in zip(
    named_leaves(before.target_params),
    named_leaves(after.target_params),
    strict=True,
  ):
    if not jnp.issubdtype(one.dtype, jnp.floating):
      np.testing.assert_array_equal(one, other, err_msg=path)
  if twin == 'keep':
    assert _same(before.target_params, after.target_params)
  if twin == 'copy':
    agent, clocked = resetting.agent, resetting.clocked
    online = twins.part(agent, after.online_params)
    shown = clocked.twin.params(online, after.target_params)
    born = clocked.twin.init(online)
    assert _same(shown, clocked.twin.params(online, born))
  loss = jax.jit(resetting.regress)(after, batch(9))[1]['loss']
  assert np.isfinite(loss)


def test_twin_and_network_are_reset_to_different_weights():
  _, resetting = _learner(twins.frozen(), period=2, shrink=0.0, twin='reset')
  state = _steps(resetting, 2)
  kernels = [
    dict(named_leaves(tree))['params/torso/Dense_0/Dense_0/kernel']
    for tree in (state.online_params, state.target_params)
  ]
  assert (kernels[0] != kernels[1]).all()


def test_a_reset_is_no_churn():
  """The network before the next gradient step is the one that was reset."""
  plain = make_learner(
    AGENT, OPTIMIZER, ClockedTwin(twins.hard(), 2), churn_weight=1.0
  )
  resetting = with_resets(plain, OPTIMIZER, Resets(3))
  regress = jax.jit(resetting.regress, donate_argnums=0)
  state, terms = resetting.init(KEY), []
  for step in range(5):
    state, metrics = regress(state, batch(step, 12))
    terms.append(float(metrics['churn_term']))
  assert [term == 0 for term in terms] == [True, False, False, True, False]


def test_settings_may_be_traced():
  plain = make_learner(AGENT, optax.sgd(0.1), ClockedTwin(twins.hard(), 2))
  state = plain.init(KEY)

  def stepped(period, shrink):
    resets = Resets(period, shrink)
    learner = with_resets(plain, optax.sgd(0.1), resets)
    return learner.regress(state, batch())[0].online_params

  numbers = (jnp.array([1, 2]), jnp.array([0.5, 0.5]))
  rows = jax.vmap(stepped)(*numbers)
  for i, each in enumerate(zip((1, 2), (0.5, 0.5), strict=True)):
    row = jax.tree.map(lambda leaf, i=i: leaf[i], rows)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
      row,
      stepped(*each),
    )


@pytest.mark.parametrize(
  'wrong', [{'period': 0}, {'shrink': 1.5}, {'shrink': 2}, {'twin': 'lost'}]
)
def test_bad_settings(wrong):
  with pytest.raises((FieldError, ValueError), match='reset'):
    _learner(**({'period': 1} | wrong))
