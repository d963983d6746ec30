"""Features that predict themselves: laws, numbers by hand, plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import learner, self_prediction
from siamrl.learner import TwinSpec, make_learner

STATES, FEATURES, STEP = 6, 2, 0.3
CORRIDOR = self_prediction.random_corridor(0, STATES)
STOPPED = {
  'self': {},
  'hard': {},
  'soft': {'tau': 0.3},
  'frozen': {},
}


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _learner(
  rule, predictor='optimal', rate=None, step=STEP, sync=1, **options
):
  """The first state, and (state, number) -> state after gradient steps."""
  agent = self_prediction.make_agent(STATES, FEATURES, predictor)
  optimizers = {'encoder': optax.sgd(step)}
  if rate is not None:
    optimizers['predictor'] = optax.sgd(step * rate)
  optimizer = learner.make_optimizers(agent, optimizers)
  made = make_learner(agent, optimizer, TwinSpec(rule, options, sync).make())
  batch = jax.tree.map(jnp.asarray, self_prediction.pairs(CORRIDOR))

  @jax.jit
  def steps(state, number):
    return jax.lax.fori_loop(
      0, number, lambda _, state: made.regress(state, batch)[0], state
    )

  return made.init(jax.random.key(3)), steps


def _features(state):
  return np.array(state.online_params['encoder'])


def _best(phi, twin):
  """The best predictor and the gradient in phi, of formulas."""
  w = np.linalg.lstsq(phi, CORRIDOR @ twin)[0]
  return w, 2 / STATES * (phi @ w - CORRIDOR @ twin) @ w.T


def _span(matrix):
  return np.linalg.qr(matrix)[0] @ np.linalg.qr(matrix)[0].T


def test_corridors():
  for seed in range(5):
    matrix = self_prediction.random_corridor(seed, 20)
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_allclose(matrix.sum(1), 1)
    values = np.linalg.eigvalsh(matrix)
    assert values[0] >= 0
    assert values[-1] == pytest.approx(1)
    assert np.diff(values).min() > 1e-3
    np.testing.assert_array_equal(np.triu(matrix, 2), 0)
    doors = np.diag(matrix, 1)
    assert 1 / 8 <= doors.min() < doors.max() <= 1 / 4
  with pytest.raises(ValueError, match='num_states=1 must be'):
    self_prediction.random_corridor(0, 1)


def test_a_loss_by_hand():
  batch = self_prediction.pairs(np.array([[0.75, 0.25], [0.25, 0.75]]))
  np.testing.assert_array_equal(batch.obs_tm1, [0, 0, 1, 1])
  np.testing.assert_array_equal(batch.obs_t, [0, 1, 0, 1])
  np.testing.assert_array_equal(batch.weight, [0.375, 0.125, 0.125, 0.375])
  twin = {'encoder': jnp.array([[3.0], [1.0]])}
  online = {
    'encoder': jnp.array([[1.0], [2.0]]),
    'predictor': jnp.array([[2.0]]),
  }

  loss = functools.partial(_loss, online, twin)
  # (2 - 3)**2, (2 - 1)**2, (4 - 3)**2 and (4 - 1)**2, by their weights; and
  # 5 - 2.75**2 / 2.5, at a predictor of 1.1.
  for predictor, value in (('learned', 4.0), ('optimal', 1.975)):
    assert loss(predictor, batch) == pytest.approx(value)
    weights = np.stack([batch.weight, 2 * batch.weight])
    values = jax.jit(
      jax.vmap(lambda w, p=predictor: loss(p, batch._replace(weight=w)))
    )(weights)
    np.testing.assert_allclose(values, [value, 2 * value])


def _loss(online, twin, predictor, batch):
  agent = self_prediction.make_agent(2, 1, predictor)
  value, metrics = agent.loss(online, twin, batch, jax.random.key(0))
  assert metrics['loss'] is value
  return value


def test_the_best_predictor():
  rng = np.random.default_rng(0)
  z_tm1, z_t = rng.standard_normal((2, 9, 3))
  weight = rng.random(9)
  root = np.sqrt(weight)[:, None]
  np.testing.assert_allclose(
    self_prediction.best_predictor(z_tm1, z_t, weight),
    np.linalg.lstsq(root * z_tm1, root * z_t)[0],
  )
  # Of many best ones the smallest; and nothing of nothing.
  z_tm1[:, 2] = z_tm1[:, 0]
  found = self_prediction.best_predictor(z_tm1, z_t, weight)
  np.testing.assert_allclose(found[0], found[2])
  np.testing.assert_allclose(
    found, np.linalg.lstsq(root * z_tm1, root * z_t)[0]
  )
  np.testing.assert_array_equal(
    self_prediction.best_predictor(0 * z_tm1, z_t, weight), 0
  )


@pytest.mark.parametrize('rule', STOPPED)
def test_a_stopped_twin_leaves_features_orthonormal(rule):
  state, steps = _learner(rule, **STOPPED[rule])
  if rule != 'self':  # nothing is stored there
    other = np.random.default_rng(1).standard_normal((STATES, FEATURES))
    state = state.replace(target_params={'encoder': jnp.asarray(other)})
  phi = _features(state)
  np.testing.assert_allclose(phi.T @ phi, np.eye(FEATURES), atol=1e-12)
  twin = phi if rule == 'self' else other
  _, gradient = _best(phi, twin)
  after = _features(steps(state, 1))
  np.testing.assert_allclose(after, phi - STEP * gradient, atol=1e-12)
  np.testing.assert_allclose(
    after.T @ after,
    phi.T @ phi + STEP**2 * gradient.T @ gradient,
    atol=1e-12,
  )
  assert np.abs(gradient).max() > 0.01


def test_the_gradient_through_the_twin_shrinks_features():
  state, steps = _learner('residual')
  phi = _features(state)
  w, stopped = _best(phi, phi)
  through = 2 / STATES * (phi - CORRIDOR.T @ phi @ w)
  after = _features(steps(state, 1))
  np.testing.assert_allclose(
    after, phi - STEP * (stopped + through), atol=1e-12
  )
  before = np.linalg.svd(phi)[1]
  assert (np.linalg.svd(after)[1] < before - 0.001).all()


def test_features_climb_the_squares_of_the_process():
  state, steps = _learner('self')
  phi = _features(state)
  slope = jax.grad(lambda phi: jnp.sum((phi.T @ CORRIDOR @ phi) ** 2))(phi)
  along = slope - phi @ (phi.T @ slope)
  np.testing.assert_allclose(
    _features(steps(state, 1)), phi + STEP * along / (2 * STATES), atol=1e-12
  )


def test_frozen_and_rare_twins_are_power_iteration():
  step = STATES / 4
  state, steps = _learner('frozen', step=step)
  first = _features(state)
  after = _features(steps(state, 500))
  np.testing.assert_allclose(_span(after), _span(CORRIDOR @ first), atol=1e-6)
  state, steps = _learner('hard', step=step, sync=500)
  after = _features(steps(state, 1500))
  power = np.linalg.matrix_power(CORRIDOR, 3) @ first
  np.testing.assert_allclose(_span(after), _span(power), atol=1e-6)
  assert np.abs(_span(after) - _span(CORRIDOR @ first)).max() > 0.1


@pytest.mark.parametrize('rate', [0.5, 4.0])
def test_a_learned_predictor_keeps_a_balance(rate):
  """Phi^T Phi - W W^T / rate stays, but for the length of the steps."""
  state, steps = _learner('self', 'learned', rate, step=0.002)

  def balance(state):
    phi, w = (
      np.array(state.online_params[n]) for n in ('encoder', 'predictor')
    )
    return phi.T @ phi - w @ w.T / rate

  later = steps(state, 5000)
  moved = _features(later).T @ _features(later) - np.eye(FEATURES)
  gap = np.abs(balance(later) - balance(state)).max()
  assert gap < 0.03 * np.abs(moved).max()
  assert np.abs(moved).max() > 0.05


def test_a_predictor_is_drawn():
  init = self_prediction.make_agent(40, 30, 'learned').init
  params, others = init(jax.random.key(0)), init(jax.random.key(1))
  assert params['predictor'].shape == (30, 30)
  assert np.std(params['predictor']) == pytest.approx(30**-0.5, rel=0.1)
  for name in params:
    assert np.abs(params[name] - others[name]).max() > 0.1
  assert set(self_prediction.make_agent(4, 3).init(jax.random.key(0))) == {
    'encoder'
  }
  with pytest.raises(ValueError, match="predictor='best' is unknown"):
    self_prediction.make_agent(4, 3, 'best')


def test_the_eigenspace_is_of_absolute_values():
  flip = np.array([[0.1, 0.9], [0.9, 0.1]])  # eigenvalues 1 and -0.8
  whole = np.kron(np.eye(2), flip) * np.repeat([1.0, 0.5], 2)
  space = self_prediction.eigenspace(whole, 2)
  np.testing.assert_allclose(space @ space.T, np.diag([1, 1, 0, 0]), atol=1e-12)


def test_measures_by_hand():
  features = np.array([[2.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
  space = np.eye(3)[:, [0, 2]]
  found = self_prediction.measure(features, space, 7.0)
  assert found.orthonormality_error == pytest.approx(np.hypot(3, 0.75))
  assert found.eigen_mass == pytest.approx(2)
  assert found.eigen_overlap == pytest.approx(0.5)
  assert found.smallest_singular_value == pytest.approx(0.5)
  assert found.effective_rank == pytest.approx(0.8**-0.8 * 0.2**-0.2)
  assert found.loss == 7
  assert np.isnan(self_prediction.measure(np.nan * features, space, 0)[4])


@pytest.mark.parametrize('noise', [1e-30, 1e-17, 0.0])
def test_directions_that_are_rounding_do_not_count(noise):
  random = np.random.default_rng(0)
  across = np.linalg.qr(random.normal(size=(20, 20)))[0]
  space = across[:, :4]
  # Two directions of the eigenspace, one in part, and one that is but noise.
  partly = (space[:, 2] + across[:, 9]) / np.sqrt(2)
  short = noise * across[:, 10]
  features = np.stack(
    [space[:, 0], 1e-3 * space[:, 1], 1e-9 * partly, short], 1
  )
  found = self_prediction.measure(jnp.asarray(features), space, 0.0)
  assert found.eigen_overlap == pytest.approx(2.5 / 3, rel=1e-5)
  assert found.smallest_singular_value == 0
  alone = self_prediction.measure(jnp.asarray(features[:, :3]), space, 0.0)
  assert alone.eigen_overlap == pytest.approx(2.5 / 3, rel=1e-5)
  assert alone.smallest_singular_value == pytest.approx(1e-9, rel=1e-4)
  nothing = self_prediction.measure(jnp.zeros((20, 4)), space, 0.0)
  assert np.isnan(nothing.eigen_overlap)
  assert nothing.smallest_singular_value == nothing.effective_rank == 0


def _case(rule, sync, seed):
  return self_prediction.Case(
    CORRIDOR, FEATURES, TwinSpec(rule, sync=sync), STEP, seed=seed
  )


def test_runs_are_looked_at_on_time_and_in_order():
  cases = [
    _case('hard', sync=1, seed=3),  # which is self
    _case('hard', sync=100, seed=3),
    _case('hard', sync=1, seed=4),
  ]
  own, rare, other = self_prediction.run(cases, 7, points=3)
  np.testing.assert_array_equal(own.gradient_steps, [0, 2, 4, 6, 7])
  state, steps = _learner('self')  # its key is of seed 3 too
  for index, step in enumerate([0, 2, 4, 6, 7]):
    phi = _features(steps(state, step))
    w, _ = _best(phi, phi)
    noise = np.sum(phi**2) - np.sum((CORRIDOR @ phi) ** 2)
    error = np.sum((phi @ w - CORRIDOR @ phi) ** 2) + noise
    assert own.measures.loss[index] == pytest.approx(error / STATES)
    error = np.linalg.norm(phi.T @ phi - np.eye(FEATURES))
    assert own.measures.orthonormality_error[index] == pytest.approx(
      error, abs=1e-12
    )
  for run in (rare, other):
    assert abs(run.measures.loss[-1] - own.measures.loss[-1]) > 1e-5


def test_negative_eigenvalues_may_attract():
  flip = np.array([[0.1, 0.9], [0.9, 0.1]])
  cases = [
    self_prediction.Case(flip, 1, TwinSpec('self'), 0.1, seed=seed)
    for seed in range(12)
  ]
  ends = [r.measures.eigen_overlap[-1] for r in self_prediction.run(cases, 999)]
  assert set(np.round(ends, 3)) == {0.0, 1.0}


@pytest.mark.parametrize(
  'change, message',
  [
    ({'transitions': CORRIDOR[:, :3]}, 'transitions must be a symmetric'),
    ({'transitions': CORRIDOR / 2}, 'transitions must be >= 0 and sum to 1'),
    ({'num_features': STATES + 1}, 'num_features=7 must be from 1 to num_st'),
    (
      {'twin': TwinSpec('chain')},
      "target_update='chain' must be one of hard, ",
    ),
    ({'predictor_rate': 2.0}, 'predictor_rate=2.0 has no meaning for predict'),
    ({'predictor': 'learned'}, "predictor='learned' needs a predictor_rate"),
  ],
)
def test_cases_that_cannot_be(change, message):
  given = {
    'transitions': CORRIDOR,
    'num_features': FEATURES,
    'twin': TwinSpec('self'),
    'step_size': STEP,
  }
  with pytest.raises(ValueError, match=f'^{message}'):
    self_prediction.Case(**(given | change))
