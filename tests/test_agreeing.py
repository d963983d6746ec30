"""Agreement with known values, and a twin that follows it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import diagnostics, twins
from siamrl.agents.q import make_q_agent
from siamrl.diagnostics.agreeing import CHOICES, agreeing
from siamrl.learner import ClockedTwin, make_learner
from siamrl.networks import q_network
from siamrl.types import Transition

STATES, ACTIONS = 3, 2
OBS = np.eye(STATES, dtype=np.float32)
BEST = np.float32([[1.0, 0.5], [0.8, 0.3], [0.2, 0.9]])
KNOWN = diagnostics.known_values(OBS, BEST)
KEY = jax.random.key(1)


def _table():
  """A kernel with the values of each state, and a bias for each action."""
  network = q_network.mlp_network(ACTIONS, sizes=())
  return make_q_agent(network, jnp.zeros((1, STATES)), td_loss='half_squared')


def _deep():
  network = q_network.mlp_network(ACTIONS, sizes=(5,))
  return make_q_agent(network, jnp.zeros((1, STATES)), td_loss='half_squared')


def _batch(seed=0, size=8):
  rng = np.random.default_rng(seed)
  return Transition(
    OBS[rng.integers(STATES, size=size)],
    rng.integers(ACTIONS, size=size).astype(np.int32),
    rng.standard_normal(size).astype(np.float32),
    np.full(size, 0.9, np.float32),
    OBS[rng.integers(STATES, size=size)],
  )


CANDIDATES = {
  'hard': ClockedTwin(twins.hard(), 3),
  'soft': ClockedTwin(twins.soft(0.1)),
  'self': ClockedTwin(twins.self_copy()),
  'residual': ClockedTwin(twins.residual()),
  'frozen': ClockedTwin(twins.frozen(), twins.NEVER),
}


def _learner(rule):
  return make_learner(_deep(), optax.adam(0.05), rule)


def _run(rule, steps=7):
  learner = _learner(rule)
  state = jax.jit(learner.init)(KEY)
  regress = jax.jit(learner.regress)
  reports = []
  for step in range(steps):
    state, metrics = regress(state, _batch(step))
    reports.append(metrics)
  return state, reports


@functools.partial(jax.jit, static_argnums=0)
def _toward(agent, params, batch):
  return diagnostics.gradient_toward(agent, KNOWN, params, batch, KEY)


@functools.partial(jax.jit, static_argnums=0)
def _gradient(agent, online, target, batch):
  return jax.grad(agent.loss, has_aux=True)(online, target, batch, KEY)


# A hard twin that was just copied is the network itself.
DIFFERENT = {name: rule for name, rule in CANDIDATES.items() if name != 'hard'}
FOLLOWING = ClockedTwin(agreeing(DIFFERENT, KNOWN))


@functools.cache
def _followed():
  return _run(FOLLOWING)


def test_known_values_are_looked_up():
  boards = np.zeros((2, 2, 2), np.float32)
  boards[0, 0, 0] = boards[1, 1, 1] = 1
  known = jax.jit(diagnostics.known_values(boards, BEST[:2]))
  np.testing.assert_array_equal(known(boards[[1, 0, 1]]), BEST[[1, 0, 1]])
  np.testing.assert_array_equal(KNOWN(OBS[::-1]), BEST[::-1])


def test_the_gradient_toward_known_values_by_hand():
  agent = _table()
  params = jax.tree.map(jnp.zeros_like, agent.init(KEY))
  batch = Transition(
    OBS[[0, 2]],
    np.int32([1, 0]),
    np.float32([7, 7]),  # neither rewards nor discounts matter
    np.float32([0.9, 0.9]),
    OBS[[1, 1]],
  )
  grads = _toward(agent, params, batch)
  kernel, bias = sorted(jax.tree.leaves(grads), key=lambda leaf: -leaf.ndim)
  # (0 - q*) / 2 where (s, a) is in the batch.
  np.testing.assert_allclose(kernel, [[0, -0.25], [0, 0], [-0.1, 0]])
  np.testing.assert_allclose(bias, [-0.1, -0.25])


def test_agreement_by_hand():
  agent = _table()
  learner = make_learner(agent, optax.sgd(0.1), CANDIDATES['frozen'])
  state = learner.init(KEY)
  state = state.replace(
    **{
      name: jax.tree.map(jnp.zeros_like, getattr(state, name))
      for name in ('online_params', 'target_params')
    }
  )
  batch = Transition(
    OBS[[0, 2]],
    np.int32([1, 0]),
    np.float32([0.5, 2.0]),
    np.zeros(2, np.float32),
    OBS[[1, 1]],
  )
  found = jax.jit(
    lambda state: diagnostics.counterfactuals(
      learner.agent, agent, {}, {}, state, batch, KNOWN
    )
  )(state)
  # Half the errors are -(.25, 1) and -(.25, .1); each counts in the kernel and,
  # as its action has a bias of its own, there.
  one, best = np.array([0.25, 1.0]), np.array([0.25, 0.1])
  cosine = one @ best / np.linalg.norm(one) / np.linalg.norm(best)
  assert found == {'agreement': pytest.approx(cosine, rel=1e-5)}


def test_the_panel_measures_the_agreement_of_shadows():
  rules = {name: CANDIDATES[name] for name in ('self', 'frozen')}
  learner = _learner(ClockedTwin(twins.hard(), 2))
  panel = diagnostics.make_panel(learner, shadows=rules, known=KNOWN)
  state = jax.jit(learner.init)(KEY)
  seen = panel.init(state, _batch(9))
  regress = jax.jit(learner.regress)
  for step in range(3):
    state, _ = regress(state, _batch(step))
    seen = panel.follow(seen, state)
  _, found = jax.jit(panel.measure)(seen, state, _batch(9), _batch(8))
  toward = _toward(learner.base, state.online_params, _batch(8))
  agent = twins.self_copy().lift(learner.base)
  grads, _ = _gradient(agent, state.online_params, (), _batch(8))
  cosine = diagnostics.gradient_cosine(grads, toward)
  assert found['agreement/self'] == pytest.approx(float(cosine), rel=1e-5)
  names = {name for name in found if name.startswith('agreement')}
  assert names == {'agreement', 'agreement/self', 'agreement/frozen'}
  assert found['agreement'] != found['agreement/frozen']


def test_known_values_agree_with_themselves():
  """A rule whose targets are the known values has the cosine 1."""
  agent = _deep()
  params, batch = jax.jit(agent.init)(KEY), _batch()
  taken = KNOWN(batch.obs_tm1)[np.arange(8), batch.a_tm1]
  whole = batch._replace(r_t=taken, discount_t=np.zeros(8, np.float32))
  grads, _ = _gradient(agent, params, params, whole)
  toward = _toward(agent, params, batch)
  assert diagnostics.gradient_cosine(grads, toward) == pytest.approx(1)


@pytest.mark.parametrize('name', CANDIDATES)
def test_one_candidate_is_that_rule_bit_for_bit(name):
  rule = CANDIDATES[name]
  alone, own = _run(rule)
  following, reports = _run(ClockedTwin(agreeing({name: rule}, KNOWN)))
  jax.tree.map(
    np.testing.assert_array_equal,
    following.online_params,
    alone.online_params,
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    following.target_params.targets[name],
    alone.target_params,
  )
  for one, other in zip(reports, own, strict=True):
    assert other.keys() | {f'chosen/{name}'} == one.keys()
    np.testing.assert_array_equal(one['loss'], other['loss'])


def test_the_order_of_candidates_does_not_matter():
  one, first = _followed()
  turned = dict(reversed(DIFFERENT.items()))
  other, second = _run(ClockedTwin(agreeing(turned, KNOWN)))
  jax.tree.map(
    np.testing.assert_array_equal, one.online_params, other.online_params
  )
  # At first all but `residual` are equal, and the first of equals counts.
  chosen, again = (
    [[float(r[f'chosen/{n}']) for n in DIFFERENT] for r in reports[1:]]
    for reports in (first, second)
  )
  assert chosen == again
  assert np.sum(chosen, 1).tolist() == [1] * 6
  assert len(set(np.argmax(chosen, 1))) > 1


@pytest.mark.parametrize('choice', ['best', 'worst'])
def test_the_gradient_is_that_of_the_candidate_that_agrees(choice):
  state, _ = _followed()
  base, batch = _deep(), _batch(20)
  online, targets = state.online_params, state.target_params.targets
  toward = _toward(base, online, batch)
  found = {}
  for name, rule in DIFFERENT.items():
    lifted = rule.twin.lift(base)
    grads, _ = _gradient(lifted, online, targets[name], batch)
    cosine = float(diagnostics.gradient_cosine(grads, toward))
    found[cosine if choice == 'best' else -cosine] = name, grads
  assert len(found) > 2
  name, expected = found[max(found)]
  agent = agreeing(DIFFERENT, KNOWN, choice).lift(base)
  grads, metrics = _gradient(agent, online, state.target_params, batch)
  assert metrics[f'chosen/{name}'] == 1
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-8),
    grads,
    expected,
  )


def test_by_chance_every_candidate_is_chosen():
  agent = agreeing(DIFFERENT, KNOWN, 'chance').lift(_deep())
  state, _ = _followed()

  def chosen(key):
    metrics = agent.loss(
      state.online_params, state.target_params, _batch(), key
    )[1]
    return jnp.stack([metrics[f'chosen/{name}'] for name in DIFFERENT])

  shares = jax.jit(jax.vmap(chosen))(jax.random.split(KEY, 1000)).mean(0)
  np.testing.assert_allclose(shares, 0.25, atol=0.05)


def test_the_twin_is_the_candidate_chosen_last():
  state, reports = _followed()
  numbers = [float(reports[-1][f'chosen/{name}']) for name in DIFFERENT]
  last = list(DIFFERENT)[int(np.argmax(numbers))]
  assert state.target_params.chosen == np.argmax(numbers)
  shown = FOLLOWING.twin.params(state.online_params, state.target_params)
  expected = DIFFERENT[last].twin.params(
    state.online_params, state.target_params.targets[last]
  )
  jax.tree.map(np.testing.assert_array_equal, shown, expected)


def test_what_cannot_be_followed_is_refused():
  with pytest.raises(ValueError, match='there must be a candidate'):
    agreeing({}, KNOWN)
  with pytest.raises(ValueError, match="'chain' cannot be a candidate"):
    agreeing({'chain': ClockedTwin(twins.chain(2, 4, 2))}, KNOWN)
  with pytest.raises(ValueError, match="choice='most' is unknown"):
    agreeing(CANDIDATES, KNOWN, 'most')
  assert set(CHOICES) == {'best', 'worst', 'chance'}


@pytest.mark.parametrize(
  'text, found',
  [
    ('self', ('self', None)),
    ('hard', ('hard', None)),
    ('hard:16', ('hard', 16)),
    ('soft:0.1', ('soft', 0.1)),
    ('soft:1e-3', ('soft', 1e-3)),
  ],
)
def test_shadows_with_numbers(text, found):
  assert diagnostics.split_shadow(text) == found
  assert list(diagnostics.matched_shadows([text], 2.0)) == [text]


@pytest.mark.parametrize(
  'text',
  ['hard:0', 'hard:1.5', 'hard:', 'soft:0', 'soft:2', 'soft:1.2.3', 'self:3']
  + ['chain', '', ':3', 'hard:16:2', 'soft:-0.1', 'soft:nan'],
)
def test_shadows_that_there_are_not(text):
  with pytest.raises(ValueError, match='must (begin|have)'):
    diagnostics.split_shadow(text)


def test_numbered_shadows_are_rules_of_these_numbers():
  rules = diagnostics.matched_shadows(('hard:16', 'soft:0.25'), 2.0)
  assert rules['hard:16'].sync == 16
  assert rules['soft:0.25'].sync == 1
  moved = rules['soft:0.25'].twin.update(jnp.ones(1), jnp.zeros(1), 1)
  np.testing.assert_allclose(moved, 0.25)
  assert diagnostics.shortest_period(('hard:16', 'soft:0.25'), 2.0) == 1
  assert diagnostics.shortest_period(('hard:9',), 2.0) == 9
  assert diagnostics.shortest_period(('hard:9', 'self'), 2.0) == 5
