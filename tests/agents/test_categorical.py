"""An agent of distributions with every rule, in returns, panel and loops."""

import functools

import jax
import numpy as np
import optax
import pytest

from siamrl import diagnostics, twins
from siamrl.agents.q import TRACES, make_returns
from siamrl.learner import ClockedTwin, make_learner
from siamrl.types import Transition
from tests.parameters import OF_VALUES, of_each_kind
from tests.categorical import make_categorical_agent

KEY = jax.random.key(0)
B, A, D = 6, 3, 4
ATOMS = (-1.0, 0.0, 1.0)
BASE = make_categorical_agent(D, A, ATOMS)
RULES = {
  name: twins.make_rule(
    name,
    **{
      parameter: {
        'tau': 0.3,
        'tau_end': 0.1,
        'target_period': 2,
        'target_period_end': 4,
        'target_period_growth': 1.5,
        'degrees_of_freedom': 1.0,
        'target_schedule_steps': 10,
        'target_sync_period': 1,
        'target_count': 2,
        'target_paths': 'torso:soft+last:hard',
        'twin_weight': 0.5,
        'projection_radius': 10.0,
        'ridge': 0.1,
      }[parameter]
      for parameter in twins.takes(name, 'torso:soft+last:hard')
    },
  )
  for name in twins.RULES
  if name not in OF_VALUES
}


def _batch(seed=0, leading=(B,)):
  rng = np.random.default_rng(seed)
  obs = lambda: rng.normal(size=(*leading, D)).astype(np.float32)
  return Transition(
    obs(),
    rng.integers(A, size=leading).astype(np.int32),
    rng.normal(size=leading).astype(np.float32),
    np.full(leading, 0.9, np.float32),
    obs(),
  )


def _learned(name, steps=3):
  """A learner, and its state after some gradient steps."""
  learner = make_learner(
    BASE, optax.sgd(0.1), ClockedTwin(RULES[name], init='fresh')
  )
  state, step = learner.init(KEY), jax.jit(learner.regress)
  for seed in range(steps):
    state, metrics = step(state, _batch(seed))
    assert np.isfinite(metrics['loss'])
  return learner, state


@pytest.mark.parametrize('name', of_each_kind(RULES))
def test_every_rule_bootstraps_from_distributions(name):
  learner, state = _learned(name)
  agent, batch = learner.agent, _batch(9)
  answer = agent.bootstrap(
    state.online_params, state.target_params, batch.obs_t, KEY
  )
  assert set(answer) == {'probs'}
  assert answer['probs'].shape == (B, A, len(ATOMS))
  np.testing.assert_allclose(answer['probs'].sum(-1), 1, rtol=1e-5)
  v_t = np.max(answer['probs'] @ np.float32(ATOMS), -1)
  np.testing.assert_allclose(
    agent.targets(state.online_params, state.target_params, batch, KEY),
    batch.r_t + 0.9 * v_t,
    rtol=1e-5,
  )
  values = agent.values(state.online_params, batch.obs_t)
  assert values.shape == agent.expected(answer).shape == (B, A)


def test_averaged_distributions_are_mixtures():
  learner, state = _learned('averaged')
  obs = _batch(9).obs_t
  copies = [
    jax.tree.map(lambda leaf, k=k: leaf[k], state.target_params)
    for k in range(2)
  ]
  one, other = (
    BASE.bootstrap(None, copy, obs, KEY)['probs'] for copy in copies
  )
  assert np.abs(one - other).max() > 1e-3
  mixed = learner.agent.bootstrap(
    state.online_params, state.target_params, obs, KEY
  )
  np.testing.assert_allclose(mixed['probs'], (one + other) / 2, rtol=1e-5)


def test_functional_needs_values_of_actions():
  with pytest.raises(ValueError, match="target_update='functional' needs"):
    RULES['functional'].lift(BASE._replace(taken=None))


@pytest.mark.parametrize('trace', TRACES)
def test_returns_are_of_expected_values(trace):
  steps, ended = _batch(3, leading=(5, 2)), np.zeros((5, 2), bool)
  online, target = BASE.init(KEY), BASE.init(jax.random.key(1))
  plain = BASE._replace(
    targets=functools.partial(BASE.targets, bootstrap=BASE.bootstrap),
    bootstrap=lambda *args: BASE.expected(BASE.bootstrap(*args)),
    expected=lambda answer: answer,
  )
  found = [
    make_returns(agent, lambda_, trace)(online, target, steps, ended, KEY)
    for agent, lambda_ in ((BASE, 0.8), (plain, 0.8), (BASE, 0.0))
  ]
  np.testing.assert_array_equal(found[0], found[1])
  own = BASE.targets(
    online,
    target,
    jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps),
    KEY,
  )
  np.testing.assert_allclose(found[2].ravel(), own, rtol=1e-5, atol=1e-6)
  assert np.abs(found[0] - found[2]).max() > 0.01


@pytest.mark.parametrize('name', ['averaged', 'chain'])
def test_the_panel_reads_expected_values(name):
  learner, state = _learned(name)
  agent, probe = learner.agent, _batch(7)
  # A chain has other parameters, with which no other rule compares.
  shadows = {'soft': ClockedTwin(RULES['soft'])} if name == 'averaged' else {}
  panel = diagnostics.make_panel(learner, shadows=shadows)
  seen = panel.init(state, probe)
  _, metrics = jax.jit(panel.measure)(seen, state, probe, _batch(8))
  answer = agent.bootstrap(
    state.online_params, state.target_params, probe.obs_t, KEY
  )
  v_t = np.max(answer['probs'] @ np.float32(ATOMS), -1)
  own = np.asarray(agent.values(state.online_params, probe.obs_t)).max(-1)
  split = 0.9 * (np.asarray(v_t) - own)
  assert metrics['td_split'] == pytest.approx(np.mean(split), rel=1e-4)
  assert metrics['td_split_abs'] == pytest.approx(
    np.mean(np.abs(split)), rel=1e-4
  )
  moved = ['functional_distance', 'target_churn_train']
  for key in [*moved, *(f'shadow_gap/{name}' for name in shadows)]:
    assert metrics[key] > 0
