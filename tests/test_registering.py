"""Rules, forms of targets and heads of a user's own."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import diagnostics, twins
from siamrl.agents.q import make_q_agent
from siamrl.learner import ClockedTwin, TwinSpec, make_learner
from siamrl.losses import td
from siamrl.networks import heads, q_network
from siamrl.parameters import FRACTION, NOT_NEGATIVE, FieldError, Parameter
from siamrl.types import Transition, Twin


@pytest.fixture(autouse=True)
def registries():
  """Leaves the registries as they were."""
  held = [
    twins.RULES,
    twins.PARAMETERS,
    td.TARGETS,
    td.TARGET_PARAMETERS,
    heads.HEADS,
  ]
  before = [copy.copy(registry) for registry in held]
  yield
  for registry, kept in zip(held, before, strict=True):
    registry.clear()
    registry.update(kept)


def cautious(tau, caution):
  """A soft twin that is slower where TD errors are large."""

  def update(online, target, gradient_steps, report):
    rate = tau / (1 + caution * report['td_error_abs'])
    return optax.incremental_update(online, target, rate)

  return Twin(update, twins.born, clock=twins.soft(tau), reads_report=True)


def register_cautious():
  twins.register(
    'cautious',
    cautious,
    'soft, slower where TD errors are large',
    period=1,
    caution=Parameter(NOT_NEGATIVE, 'How much TD errors slow the twin'),
  )


def _agent():
  """q(s, a) = w: its TD error is r - w where nothing is bootstrapped."""
  network = q_network.QNetwork(lambda obs: obs, heads.LinearHead(2))
  return make_q_agent(
    network, jnp.zeros((1, 1)), td_loss='half_squared', batch_reduction='mean'
  )


def _batch(rewards):
  size = len(rewards)
  return Transition(
    np.zeros((size, 1), np.float32),
    np.zeros(size, np.int32),
    np.float32(rewards),
    np.zeros(size, np.float32),
    np.zeros((size, 1), np.float32),
  )


def test_a_rule_follows_the_td_error():
  register_cautious()
  spec = TwinSpec('cautious', {'tau': 0.5, 'caution': 2.0})
  learner = make_learner(_agent(), optax.sgd(0.1), spec.make())
  state = learner.init(jax.random.key(0))
  before = jax.tree.leaves(state.target_params)
  # Observations and biases are 0, so errors are rewards: |2|, |-4|, mean 3.
  after, metrics = jax.jit(learner.regress)(state, _batch([2.0, -4.0]))
  assert float(jnp.mean(metrics['td_error_abs'])) == pytest.approx(3.0)
  rate = 0.5 / (1 + 2 * 3)
  for new, old, online in zip(
    jax.tree.leaves(after.target_params),
    before,
    jax.tree.leaves(after.online_params),
    strict=True,
  ):
    np.testing.assert_allclose(new, old + rate * (online - old), rtol=1e-6)


def test_a_report_counts_where_the_rule_is_due():
  """The report of the gradient step that the update follows, no other."""
  register_cautious()
  twin = TwinSpec('cautious', {'tau': 0.5, 'caution': 1.0}, sync=2).make()
  learner = make_learner(_agent(), optax.sgd(0.0), twin)
  state = learner.init(jax.random.key(0))
  state = state.replace(
    target_params=jax.tree.map(jnp.ones_like, state.target_params)
  )
  regress = jax.jit(learner.regress)
  state, _ = regress(state, _batch([100.0]))
  assert all((leaf == 1).all() for leaf in jax.tree.leaves(state.target_params))
  state, _ = regress(state, _batch([1.0]))  # rate 0.5 / 2
  (bias, *_) = jax.tree.leaves(state.target_params)
  np.testing.assert_allclose(bias, 0.75)


def test_rules_that_read_reports_have_an_order_and_a_clock():
  twin = cautious(0.5, 1.0)
  with pytest.raises(ValueError, match="target_order='before' must be 'after'"):
    make_learner(_agent(), optax.sgd(0.1), ClockedTwin(twin, order='before'))
  ages = diagnostics.make_clock(ClockedTwin(twin))
  online = _agent().init(jax.random.key(0))
  aged = ages.advance(online, ages.init(online), 0, 200)
  assert ages.read(online, aged)[0] == pytest.approx(1.0, rel=1e-4)  # tau = 0.5
  with pytest.raises(ValueError, match=r'needs a Twin\.clock'):
    diagnostics.make_clock(ClockedTwin(twin._replace(clock=None)))


def test_rules_that_read_reports_inside_of_others():
  twin = cautious(0.5, 1.0)
  learner = make_learner(
    _agent(), optax.sgd(0.0), ClockedTwin(twins.periodic(2, twin))
  )
  state = learner.init(jax.random.key(0))
  ones = jax.tree.map(jnp.ones_like, state.target_params)
  state = state.replace(target_params=ones)
  regress = jax.jit(learner.regress)
  for _ in range(2):
    state, _ = regress(state, _batch([1.0]))  # rate 0.5 / 2, once
  (bias, *_) = jax.tree.leaves(state.target_params)
  np.testing.assert_allclose(bias, 0.75)
  with pytest.raises(ValueError, match='cannot be a part of another'):
    twins.by_path({'.': twin})
  with pytest.raises(ValueError, match="'mine' cannot be a shadow: it reads"):
    diagnostics.shadows_init(
      {'mine': ClockedTwin(twin)}, _agent(), state.online_params
    )


def test_a_registered_rule_is_like_the_others():
  register_cautious()
  assert twins.takes('cautious') == ('tau', 'caution')
  with pytest.raises(FieldError, match="'cautious' needs caution, 0 or more"):
    twins.make_rule('cautious', tau=0.5)
  with pytest.raises(FieldError, match='caution=-1.0 must be 0 or more'):
    twins.make_rule('cautious', tau=0.5, caution=-1.0)
  with pytest.raises(
    FieldError, match='caution=1.0 has no meaning for target_'
  ):
    twins.make_rule('hard', caution=1.0)


def test_a_default_stands_in():
  twins.register(
    'slow',
    lambda slowness: twins.soft(1 / slowness),
    'soft',
    period=1,
    slowness=Parameter(NOT_NEGATIVE, 'One over tau', default=4.0),
  )
  twin = twins.make_rule('slow')
  moved = twin.update({'w': jnp.ones(1)}, {'w': jnp.zeros(1)}, 1)
  assert moved['w'] == 0.25


@pytest.mark.parametrize(
  ('name', 'make', 'new', 'message'),
  [
    ('hard', lambda: twins.hard(), {}, "target_update='hard' is taken"),
    ('My Rule', lambda: twins.hard(), {}, 'must be a word of lowercase'),
    (
      'mine',
      lambda speed: twins.hard(),
      {},
      "mine takes 'speed', which is not",
    ),
    (
      'mine',
      lambda tau: twins.soft(tau),
      {'tau': Parameter(FRACTION, 'Mine')},
      "there is a parameter 'tau' already",
    ),
    (
      'mine',
      lambda: twins.hard(),
      {'speed': Parameter(FRACTION, 'Mine')},
      "mine does not take 'speed'",
    ),
  ],
)
def test_what_cannot_be_registered(name, make, new, message):
  known = set(twins.PARAMETERS)
  with pytest.raises(ValueError, match=message):
    twins.register(name, make, 'mine', **new)
  assert set(twins.PARAMETERS) == known


def test_a_form_of_targets():
  def pessimistic(inputs, pessimism):
    """Between the largest and the smallest value."""
    best, worst = jnp.max(inputs.q_t), jnp.min(inputs.q_t)
    value = (1 - pessimism) * best + pessimism * worst
    return inputs.r_t + inputs.discount_t * value

  td.register(
    'pessimistic',
    pessimistic,
    'between the largest and the smallest value',
    pessimism=Parameter(FRACTION, 'Weight of the smallest value'),
  )
  target = td.make_target('pessimistic', pessimism=0.25)
  inputs = td.TargetInputs(
    jnp.int32(0), *map(jnp.float32, (1.0, 0.5)), *[jnp.float32([2.0, -2.0])] * 3
  )
  assert target(inputs) == 1 + 0.5 * (0.75 * 2 - 0.25 * 2)
  with pytest.raises(FieldError, match="'pessimistic' is taken"):
    td.register('pessimistic', pessimistic, 'again')


def test_heads():
  heads.register('mine', heads.LinearHead)
  assert q_network.mlp_network(3, head='mine').head.num_actions == 3
  with pytest.raises(FieldError, match="head='mine' is taken"):
    heads.register('mine', heads.LinearHead)
