"""Maps and runs of the learner against matrices that are written by hand."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl import stability, twins
from siamrl.envs import linear
from siamrl.learner import TwinSpec

BAIRD = linear.baird()
STEP, DISCOUNT = 0.1, 0.99


def _case(
  rule,
  sync=1,
  problem=BAIRD,
  discount=DISCOUNT,
  step_size=STEP,
  order='after',
  **parameters,
):
  return stability.Case(
    problem.batch(discount),
    problem.initial,
    TwinSpec(rule, parameters, sync, order=order),
    step_size,
  )


def _radius(matrix) -> float:
  return np.abs(np.linalg.eigvals(matrix)).max()


class ByHand:
  """What each rule makes of a problem: formulas for the error-free map.

  A gradient step is w <- (1 - a A) w + a B t of the weights w and the twin's
  t, with A = F'DF, B = discount F'DPF, all in coordinates of F's row space.
  """

  def __init__(self, problem, discount, step_size):
    basis = np.linalg.qr(problem.features.T)[0]
    features = problem.features @ basis
    self.size = features.shape[1]
    self.one = np.eye(self.size)
    shares = np.diag(problem.weights)
    onward = discount * problem.transitions @ features
    self.a = step_size * features.T @ shares @ features
    self.b = step_size * features.T @ shares @ onward
    gap = features - onward
    self.residual_gradient = step_size * gap.T @ shares @ gap

  def _until_sync(self, own, twin, period):
    """(of w, of t) after `period` steps w <- own w + twin t."""
    power, total = self.one, 0 * self.one
    for _ in range(period):
      total = own @ total + twin
      power = own @ power
    return power, total

  def _copied(self, own, twin, period):
    power, total = self._until_sync(own, twin, period)
    return power + total

  def hard(self, period):
    return self._copied(self.one - self.a, self.b, period)

  def soft(self, period, tau):
    return self.periodic_soft(1, tau)

  def periodic_soft(self, period, tau):
    power, total = self._until_sync(self.one - self.a, self.b, period)
    return np.block(
      [[power, total], [tau * power, (1 - tau) * self.one + tau * total]]
    )

  def self(self, period):
    return self.one - self.a + self.b

  def residual(self, period):
    return self.one - self.residual_gradient

  def functional(self, period, twin_weight):
    tie = twin_weight * self.a
    return self._copied(self.one - self.a + self.b - tie, tie, period)

  def proximal(self, period, twin_weight):
    own = (1 - twin_weight) * self.one - self.a
    return self._copied(own, twin_weight * self.one + self.b, period)

  def averaged(self, period, target_count):
    """Of the copies alone: the newest is what becomes of the newest."""
    power, total = self._until_sync(self.one - self.a, self.b, period)
    first = np.hstack([total / target_count] * target_count)
    first[:, : self.size] += power
    older = np.eye((target_count - 1) * self.size, target_count * self.size)
    return np.vstack([first, older])


RULES = [
  ('hard', {}),
  ('soft', {'tau': 0.15}),
  ('periodic_soft', {'tau': 0.3}),
  ('self', {}),
  ('residual', {}),
  ('functional', {'twin_weight': 0.7}),
  ('proximal', {'twin_weight': 0.05}),
  ('averaged', {'target_count': 3}),
]


@pytest.mark.parametrize('rule, given', RULES)
def test_radii_by_hand(rule, given):
  each_step = twins.RULES[rule].period == 1
  cases, expected = [], []
  for problem in (BAIRD, linear.tsitsiklis(0.1), linear.random_off_policy(4)):
    for sync in (1,) if each_step else (1, 2, 9, 50):
      for discount, step in ((0.99, 0.1), (0.6, 0.3)):
        cases.append(_case(rule, sync, problem, discount, step, **given))
        by_hand = ByHand(problem, discount, step)
        expected.append(_radius(getattr(by_hand, rule)(sync, **given)))
  found = stability.predict(cases)
  np.testing.assert_allclose(
    [p.spectral_radius for p in found], expected, rtol=1e-9
  )
  assert [p.unit for p in found] == [case.twin.sync for case in cases]


def test_the_joint_matrix_entry_by_entry():
  problem = linear.random_off_policy(1, num_states=8, num_features=3)
  a, b = (getattr(ByHand(problem, 0.9, 0.2), name) for name in ('a', 'b'))
  basis = np.linalg.qr(problem.features.T)[0]  # of all directions: a rotation
  a, b = basis @ a @ basis.T, basis @ b @ basis.T
  one = np.eye(3)
  found = stability.matrix(_case('soft', 1, problem, 0.9, 0.2, tau=0.25))
  np.testing.assert_allclose(
    found,
    np.block([[one - a, b], [(one - a) / 4, 0.75 * one + b / 4]]),
    atol=1e-14,
  )
  # A copy forgets what it was: the twin ends where the online network does.
  found = stability.matrix(_case('hard', 2, problem, 0.9, 0.2))
  half = np.hstack([(one - a) @ (one - a), (one - a) @ b + b])
  np.testing.assert_allclose(found, np.vstack([half, half]), atol=1e-14)


def test_weights_that_no_value_depends_on_are_left_out():
  assert stability.matrix(_case('hard', 9)).shape == (14, 14)
  with jax.enable_x64(True):
    agent = stability.linear_agent(jnp.asarray(BAIRD.initial))
    online = agent.init(jax.random.key(0))
    grads, _ = jax.grad(agent.loss, has_aux=True)(
      online, online, BAIRD.batch(0.99), jax.random.key(0)
    )
  (update,) = map(np.ravel, jax.tree.leaves(grads))
  assert update.dtype == np.float64
  # Semi-gradient TD over all states: sum_s D(s) delta(s) phi(s).
  batch = BAIRD.batch(0.99)
  deltas = 0.99 * batch.obs_t @ BAIRD.initial - batch.obs_tm1 @ BAIRD.initial
  np.testing.assert_allclose(-update, batch.obs_tm1.T @ deltas / 7)
  hidden = np.linalg.svd(BAIRD.features)[2][7]
  assert update @ hidden == pytest.approx(0, abs=1e-14)


def test_bairds_example_has_its_thresholds():
  """Discount 0.99, step size 0.1: the exact results of this example."""
  periods = (*range(1, 13), 20, 50, 100, 500)
  for rule, given in (('hard', {}), ('functional', {'twin_weight': 1.0})):
    found = stability.predict([_case(rule, c, **given) for c in periods])
    stable = [p.spectral_radius < 1 for p in found]
    assert stable == [period >= 9 for period in periods], rule
  low, high = 0.0, 1.0
  for _ in range(10):
    middle = (low + high) / 2
    if stability.spectral_radius(_case('soft', tau=middle)) > 1:
      high = middle
    else:
      low = middle
  assert high - low < 1e-3
  assert low < 0.1679 < high
  # A gradient step shrinks errors most near C = 10, and hardly at C = 500.
  rates = {
    period: p.log_radius / p.unit
    for period, p in zip(
      periods,
      stability.predict([_case('hard', c) for c in periods]),
      strict=True,
    )
  }
  assert min(rates, key=rates.get) in (12, 20)
  assert rates[500] > -1e-4


def test_bairds_example_runs_as_predicted():
  periods = (1, 2, 4, 7, 8, 9, 10, 20)
  cases = [_case('hard', period) for period in periods]
  runs = stability.run(cases, 20_000, points=10)
  for period, run in zip(periods, runs, strict=True):
    assert run.diverged == (period <= 8)
    if period <= 8:
      assert run.final_value_norm > 1e3
    else:
      assert run.final_value_norm < 1e-4
    assert 10 ** run.log10_norms[0] == pytest.approx(14.07, abs=0.005)


def test_doubling_grows_by_six_fifths_of_the_discount():
  for discount in (0.5, 0.99):
    case = _case('hard', 200, linear.tsitsiklis(), discount)
    (run,) = stability.run([case], 4_000)
    assert stability.spectral_radius(case) == pytest.approx(6 * discount / 5)
    assert run.growth == pytest.approx(6 * discount / 5, abs=1e-6)
    assert run.diverged == (discount > 5 / 6)
  # Learning from the first state alone doubles it.
  first = _case('hard', 2_000, linear.tsitsiklis_first(), 0.9)
  assert stability.spectral_radius(first) == pytest.approx(1.8)


SETTINGS = [
  _case(rule, sync, problem, discount, step_size, **given)
  for rule, given in (
    ('hard', {}),
    ('soft', {'tau': 0.1}),
    ('functional', {'twin_weight': 1.0}),
    ('averaged', {'target_count': 2}),
  )
  for sync in ((1,) if rule == 'soft' else (3, 16))
  for problem in (BAIRD, linear.random_off_policy(2, 8, 7))
  for discount in (0.8, 0.99)
  for step_size in (0.05, 0.2)
]


@pytest.mark.slow
def test_predictions_are_seen():
  assert len(SETTINGS) >= 40
  predicted = stability.predict(SETTINGS)
  seen = stability.run(SETTINGS, 2_000, points=4)
  for case, prediction, run in zip(SETTINGS, predicted, seen, strict=True):
    assert run.unit == prediction.unit
    assert run.growth == pytest.approx(prediction.spectral_radius, abs=1e-3), (
      case
    )
    if abs(prediction.spectral_radius - 1) > 1e-6:
      assert run.diverged == (prediction.spectral_radius > 1)
  assert {run.diverged for run in seen} == {True, False}


def test_growth_of_an_oscillation():
  """The largest eigenvalues are a complex pair: norms go up and down."""
  # A ring of three states, with a large step.
  ring = linear.LinearProblem(
    np.eye(3), np.roll(np.eye(3), 1, 1), np.zeros(3), np.ones(3), np.ones(3)
  )
  case = _case('self', 1, ring, 0.99, 1.2)
  eigenvalues = np.linalg.eigvals(stability.matrix(case))
  largest = eigenvalues[np.abs(eigenvalues).argmax()]
  assert abs(largest.imag) > 0.5
  assert abs(largest) > 1
  (run,) = stability.run([case], 500)
  assert run.growth == pytest.approx(abs(largest), abs=1e-9)


def test_a_run_is_the_recursion_and_may_outgrow_floats():
  problem = linear.random_mdp(2, 8, 3)
  case = _case('hard', 7, problem, 0.95, 0.5)
  batch = case.batch
  (run,) = stability.run([case], 100, points=30)  # 33 times three, and one
  assert run.gradient_steps.tolist() == [*range(0, 100, 3), 100]
  weights = twin = problem.initial
  norms = [np.linalg.norm(batch.obs_tm1 @ weights)]
  for step in range(1, 101):
    targets = batch.r_t + batch.discount_t * (batch.obs_t @ twin)
    errors = targets - batch.obs_tm1 @ weights
    weights = weights + 0.5 * batch.obs_tm1.T @ (batch.weight * errors)
    twin = weights if step % 7 == 0 else twin
    norms.append(np.linalg.norm(batch.obs_tm1 @ weights))
  with np.errstate(divide='ignore'):
    expected = np.log10(norms)[run.gradient_steps]
  np.testing.assert_allclose(run.log10_norms, expected, atol=1e-12)
  # Twice as many steps, twice as many digits: no overflow changes the slope.
  (wild,) = stability.run([_case('self', step_size=5.0)], 4_000, points=2)
  _, middle, last = wild.log10_norms
  assert last > 400
  assert last == pytest.approx(2 * middle, rel=1e-2)
  assert wild.final_value_norm == sys.float_info.max


def test_a_chain_of_networks_by_hand():
  """Two networks, twins copied every 2 steps, shifted every 3."""
  problem = linear.tsitsiklis(0.2)
  hand = ByHand(problem, 0.9, 0.3)
  # The basis of one dimension may point the other way: the map is the same.
  k, g = (hand.one - hand.a).item(), hand.b.item()

  def cycle(state):
    (w1, w2), (t1, t2) = state
    for step in range(1, 7):
      # The second network learns from the second twin, that of the first.
      w1, w2 = k * w1 + g * t1, k * w2 + g * t2
      if step % 3 == 0:
        t1, t2 = w1, w2
        w1, w2 = w2, w2
      elif step % 2 == 0:
        t2 = w1
    return np.array([w1, w2, t1, t2])

  case = _case(
    'chain',
    problem=problem,
    discount=0.9,
    step_size=0.3,
    target_count=2,
    target_period=3,
    target_sync_period=2,
  )
  columns = [cycle(unit.reshape(2, 2)) for unit in np.eye(4)]
  np.testing.assert_allclose(
    stability.matrix(case), np.array(columns).T, atol=1e-14
  )
  assert stability.predict([case])[0].unit == 6


def test_known_identities_of_rules():
  def radius(rule, sync=1, **given):
    return stability.spectral_radius(_case(rule, sync, **given))

  hard = radius('hard', 9)
  same = pytest.approx(hard, rel=1e-12)
  assert radius('averaged', 9, target_count=1) == same
  assert radius('periodic_soft', 9, tau=1.0) == same
  assert radius('proximal', 9, twin_weight=0.0) == same
  assert radius('iterated_heads', 9, target_count=1) == same
  assert (
    radius('chain', target_count=1, target_period=9, target_sync_period=3)
    == same
  )
  assert radius('by_path', target_paths='last:hard', target_period=9) == same
  # Another phase of the same cycle.
  assert radius('hard', 9, order='before') == same
  self = radius('self')
  assert radius('hard') == pytest.approx(self, rel=1e-12)
  # Tied to what it was a step ago: not tied at all.
  assert radius('functional', twin_weight=3.0) == pytest.approx(self, rel=1e-12)
  # A twin that never moves keeps its error for ever.
  assert radius('frozen', twins.NEVER) == pytest.approx(1, rel=1e-12)


def test_a_long_period_is_an_exact_fit():
  problem = linear.random_mdp(0, 10, 3)
  hand = ByHand(problem, 0.9, 0.1)
  fit = np.linalg.solve(hand.a, hand.b)
  case = _case('hard', 1_000_000, problem, 0.9)
  assert stability.spectral_radius(case) == pytest.approx(_radius(fit))


def test_gradients_through_targets_converge_where_a_chain_diverges():
  def radius(rule, sync, **given):
    return stability.spectral_radius(_case(rule, sync, **given))

  assert radius('hard', 3) > 1.03
  assert radius('iterated_heads', 3, target_count=5) > 1.07
  assert radius('gradient_chain', 3, target_count=5, ridge=0.0) < 0.995
  # One network learns as ever, whatever its correction learns.
  for sync in (3, 10):
    assert radius(
      'gradient_chain', sync, target_count=1, ridge=0.1
    ) == pytest.approx(radius('hard', sync), rel=1e-9)


def test_rules_without_a_matrix():
  with pytest.raises(ValueError, match="target_update='soft_cosine' changes"):
    stability.spectral_radius(
      _case('soft_cosine', tau=0.1, target_schedule_steps=100)
    )
  for rule, growth in (
    ('hard_geometric', {'target_period_growth': 1.5}),
    ('hard_random', {}),
  ):
    with pytest.raises(ValueError, match=f'target_update={rule!r} changes'):
      stability.matrix(_case(rule, target_period=9, **growth))
  falling = lambda tau: twins.soft_scheduled(lambda t: tau / (1 + 1e-6 * t))
  twins.register('falling', falling, 'soft, ever more slowly', period=1)
  try:
    with pytest.raises(ValueError, match="target_update='falling' changes"):
      stability.matrix(_case('falling', tau=0.1))
  finally:
    del twins.RULES['falling']
  ball = dict(tau=0.1, ridge=0.0)
  case = _case('projected_soft', projection_radius=1e9, **ball)
  with pytest.raises(ValueError, match="'projected_soft' is not linear"):
    stability.matrix(case)
  boundless = _case('projected_soft', projection_radius=1e200, **ball)
  assert stability.spectral_radius(boundless) == pytest.approx(
    stability.spectral_radius(_case('soft', tau=0.1)), rel=1e-12
  )
  with pytest.raises(ValueError, match="'t_soft' is not linear"):
    stability.matrix(_case('t_soft', tau=0.1, degrees_of_freedom=1.0))
  far = _case(
    'chain', target_count=2, target_period=100_003, target_sync_period=10
  )
  with pytest.raises(ValueError, match='meet after 1000030 gradient steps'):
    stability.matrix(far)


def test_runs_of_rules_without_a_matrix():
  """They are seen to grow or not; no matrix is needed for that."""
  steady = _case('soft_linear', tau=0.3, tau_end=0.3, target_schedule_steps=9)
  (run,) = stability.run([steady], 3_000)
  expected = stability.spectral_radius(_case('soft', tau=0.3))
  assert run.unit == 1
  assert run.growth == pytest.approx(expected, abs=1e-3)
  assert run.diverged
  endless = dict(tau=0.3, degrees_of_freedom=math.inf)
  (run,) = stability.run([_case('t_soft', **endless)], 3_000)
  assert run.growth == pytest.approx(expected, abs=1e-3)
  # In the ball the twin stops growing, and with it what learns from it.
  ball = dict(tau=0.5, ridge=0.01)
  small, large = (
    _case('projected_soft', projection_radius=r, **ball) for r in (5.0, 1e200)
  )
  contained, free = stability.run([small, large], 5_000)
  assert not contained.diverged
  assert contained.final_value_norm < 100
  assert free.diverged
  assert free.final_value_norm > 1e6


def test_values_beyond_all_numbers_have_diverged():
  """Of a rule that is not linear, whose numbers are not rescaled."""
  case = _case(
    'projected_soft',
    step_size=2.0,
    projection_radius=100.0,
    tau=0.1,
    ridge=0.0,
  )
  (run,) = stability.run([case], 40_000)
  assert run.diverged
  assert run.final_value_norm == sys.float_info.max


def test_a_short_run_tells_nothing_of_growth():
  (run,) = stability.run([_case('hard', 500)], 3_000)
  assert run.growth is None
  assert not run.diverged
  case = _case('soft_linear', tau=0.3, tau_end=0.3, target_schedule_steps=9)
  for rule in ('hard', 'soft_linear'):
    (run,) = stability.run([case if rule == 'soft_linear' else _case(rule)], 1)
    assert run.gradient_steps.tolist() == [0, 1]
    assert np.isfinite(run.log10_norms).all()
    assert not run.diverged


def test_periods_are_preconditioners_of_one_system():
  """C steps per copy: w <- w - M_C (S - g S') w, S = F'DF, S' = F'DPF.

  M_C = a sum_{i < C} (1 - a S)^i goes from a, that of TD, to the inverse of S,
  that of exact fits.
  """
  problem = linear.random_off_policy(3, num_states=9, num_features=4)
  hand = ByHand(problem, 0.95, 0.3)
  system = (hand.a - hand.b) / 0.3  # S - g S'
  basis = np.linalg.qr(problem.features.T)[0]
  fit = None
  for period in (1, 2, 7, 100, 100_000):
    conditioner = 0.3 * hand._until_sync(hand.one - hand.a, hand.one, period)[1]
    found = stability.matrix(_case('hard', period, problem, 0.95, 0.3))
    # What becomes of a network that equals its twin.
    fit = basis.T @ (found[:4, :4] + found[:4, 4:]) @ basis
    np.testing.assert_allclose(fit, hand.one - conditioner @ system, atol=1e-9)
    if period == 1:
      np.testing.assert_allclose(conditioner, 0.3 * hand.one)
  np.testing.assert_allclose(conditioner, 0.3 * np.linalg.inv(hand.a))
  np.testing.assert_allclose(fit, np.linalg.solve(hand.a, hand.b), atol=1e-9)


def test_td_converges_and_fits_do_not():
  """The factor (1 - a)^C - 1.8 (1 - (1 - a)^C), above -1 up to C = 11."""
  problem = linear.td_not_fqi()
  for period in (1, 5, 11, 12, 1000):
    rest = 0.9**period
    factor = rest - 1.8 * (1 - rest)
    found = stability.spectral_radius(_case('hard', period, problem, 0.9))
    assert found == pytest.approx(abs(factor))
    assert (found < 1) == (period <= 11)
  # TD needs steps below 2 / (1 + 1.8).
  for step, stable in ((0.714, True), (0.715, False)):
    case = _case('self', 1, problem, 0.9, step)
    assert (stability.spectral_radius(case) < 1) == stable


def test_fits_converge_and_td_does_not():
  problem = linear.fqi_not_td()
  fit = stability.spectral_radius(_case('hard', 5_000, problem, 0.9))
  assert fit == pytest.approx(0.45, abs=1e-6)
  # The trace of S - g S' is 0.8 (1 - 2 g) + 0.2 (1 + g) = 1 - 1.4 g.
  for discount, stable in ((0.71, True), (0.72, False), (0.9, False)):
    for step in (1e-3, 1e-5):
      case = _case('self', 1, problem, discount, step)
      assert (stability.spectral_radius(case) < 1) == stable
