"""The churn term: identities, and its gradient against the formula."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import churn, twins
from siamrl.agents.distributional import make_c51, make_qrdqn
from siamrl.agents.implicit import make_iqn
from siamrl.agents.q import make_q_agent
from siamrl.learner import ClockedTwin, make_learner
from siamrl.networks.q_network import mlp_network
from siamrl.types import Transition
from tests.parameters import slow_but

A, D, B = 3, 4, 6
OBS = np.zeros((1, 1, D), np.float32)
NETWORK = mlp_network(A, sizes=(8,))
AGENTS = {
  'dqn': lambda: make_q_agent(NETWORK, OBS),
  'clipped': lambda: make_q_agent(NETWORK, OBS, target_form='clipped_double'),
  'c51': lambda: make_c51(
    mlp_network(A, sizes=(8,), outputs=5), OBS, num_atoms=5, v_min=-1, v_max=1
  ),
  'qrdqn': lambda: make_qrdqn(
    mlp_network(A, sizes=(8,), outputs=5), OBS, quantiles=5
  ),
  'iqn': lambda: make_iqn(
    NETWORK,
    OBS,
    fractions=4,
    target_fractions=5,
    acting_fractions=3,
    cosines=6,
  ),
}
every_agent = pytest.mark.parametrize(
  'name', slow_but({'clipped', 'iqn'}.__contains__, AGENTS)
)


def _batch(seed, size=B):
  rng = np.random.default_rng(seed)
  obs = lambda: rng.normal(size=(size, 1, D)).astype(np.float32)
  return Transition(
    obs(),
    rng.integers(A, size=size).astype(np.int32),
    rng.normal(size=size).astype(np.float32),
    np.full(size, 0.9, np.float32),
    obs(),
  )


def _learner(name='dqn', weight=0.0, optimizer=None):
  made = make_learner(
    AGENTS[name](),
    optimizer or optax.sgd(0.1),
    ClockedTwin(twins.hard(), 2),
    churn_weight=weight,
  )
  return made, made.init(jax.random.key(0)), jax.jit(made.regress)


def _both(first, second):
  return jax.tree.map(lambda *parts: np.concatenate(parts), first, second)


def test_halves():
  both = churn.halves(_both(_batch(0), _batch(1)))
  chex.assert_trees_all_equal(both, (_batch(0), _batch(1)))


# Exact as tests compile; optimized, values may differ in their last bits.
@pytest.mark.parametrize('name', AGENTS)
def test_the_first_gradient_step_is_the_plain_agents(name):
  """The parameters equal those before, so the term has no gradient."""
  _, plain, plainly = _learner(name)
  _, state, regress = _learner(name, 50.0)
  expected, metrics = plainly(plain, _batch(0))
  after, ours = regress(state, _both(_batch(0), _batch(1)))
  assert ours['churn_term'] == 0
  assert float(ours['loss']) == pytest.approx(float(metrics['loss']), rel=1e-6)
  chex.assert_trees_all_close(
    after.online_params, expected.online_params, rtol=1e-5, atol=1e-7
  )
  assert plain.previous_params is None is expected.previous_params
  chex.assert_trees_all_equal(after.previous_params, state.online_params)


@every_agent
def test_the_gradient_by_the_formula(name):
  weight, rate = 20.0, 0.1
  made, state, regress = _learner(name, weight)
  _, _, plainly = _learner(name)
  state, _ = regress(state, _both(_batch(0), _batch(1)))
  agent, reference = made.agent, _batch(3)
  expected, _ = plainly(state.replace(previous_params=None), _batch(2))

  def formula(params):
    change = agent.values(params, reference.obs_tm1) - agent.values(
      state.previous_params, reference.obs_tm1
    )
    return weight * jnp.sum(change**2) / (B * A)

  value, gradient = jax.value_and_grad(formula)(state.online_params)
  after, metrics = regress(state, _both(_batch(2), reference))
  assert metrics['churn_term'] == pytest.approx(float(value), rel=1e-4)
  assert value > 0
  chex.assert_trees_all_close(
    after.online_params,
    jax.tree.map(
      lambda plain, g: plain - rate * g, expected.online_params, gradient
    ),
    rtol=1e-4,
    atol=1e-6,
  )
  chex.assert_trees_all_equal(after.previous_params, state.online_params)


def test_a_weight_keeps_churn_small():
  held_out = _batch(99, 64).obs_tm1

  def mean_churn(weight):
    made, state, regress = _learner('dqn', weight, optax.adam(1e-2))
    values = jax.jit(made.agent.values)
    changes = []
    for step in range(60):
      before = values(state.online_params, held_out)
      if weight:
        state, _ = regress(state, _both(_batch(step), _batch(1000 + step)))
      else:
        state, _ = regress(state, _batch(step))
      changes.append(
        jnp.mean(jnp.abs(values(state.online_params, held_out) - before))
      )
    return float(jnp.mean(jnp.stack(changes[10:])))

  assert mean_churn(1000.0) < 0.7 * mean_churn(0.0)


def test_a_state_can_be_donated():
  made, state, _ = _learner('dqn', 1.0)
  regress = jax.jit(made.regress, donate_argnums=0)
  for step in range(3):
    state, _ = regress(state, _batch(step, 2 * B))


@pytest.mark.parametrize(
  'rule',
  [
    twins.chain(2, 4, 2),
    twins.gradient_chain(2, 0.0),
    twins.iterated_heads(2),
  ],
)
def test_rules_that_shift_networks_are_refused(rule):
  with pytest.raises(ValueError, match='churn_weight=1.0 must be 0 for a rule'):
    make_learner(
      AGENTS['dqn'](), optax.sgd(0.1), ClockedTwin(rule), churn_weight=1.0
    )
