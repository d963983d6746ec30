"""Joint spectral radii, and learning under the max as a switched system."""

import itertools
import math

import numpy as np
import pytest

from siamrl import stability
from siamrl.envs import linear, linear_control, tabular
from siamrl.learner import TwinSpec
from siamrl.stability import joint, sampled, switching


def _problem(successor, weights=(1.0, 0.0)):
  """Two states: the first, of value w, leads to the second, with two actions.

  The values of its actions are `successor` times w, and no data come from it.
  """
  features = np.array([[[1.0], [0.0]], [[successor[0]], [successor[1]]]])
  transitions = np.zeros((2, 2, 2))
  transitions[0, 0, 1] = transitions[0, 1, 1] = 1.0
  shares = np.zeros((2, 2))
  shares[0] = weights
  return linear_control.ControlProblem(
    features, transitions, np.zeros((2, 2)), shares
  )


def _case(problem, rule='hard', sync=1, discount=0.9, step_size=0.5, **given):
  return stability.Case(
    problem.batch(discount),
    np.ones(problem.features.shape[-1]),
    TwinSpec(rule, given, sync),
    step_size,
  )


def test_a_known_joint_spectral_radius():
  """That of two shears is the golden ratio, by the product of both."""
  shears = np.array([[[1.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 1.0]]])
  found = joint.bound(shears)
  golden = (1 + math.sqrt(5)) / 2
  assert found.lower == pytest.approx(golden, rel=1e-12)
  assert found.lower <= golden * (1 + 1e-12) <= found.upper * (1 + 2e-12)
  assert found.upper < golden * 1.0011
  assert found.lower_length == 2
  assert sorted(found.best[0].word) == [0, 1]


def test_joint_spectral_radii_of_other_families():
  # Rotations and a projection: nothing grows, nothing vanishes.
  turn = np.array([[0.6, -0.8], [0.8, 0.6]])
  found = joint.bound(np.array([turn, np.diag([1.0, 0.0])]))
  assert found.lower == pytest.approx(1.0)
  assert found.upper <= 1.0011
  # Triangular matrices: that of the largest diagonal, whatever is beside it.
  found = joint.bound(
    np.array([[[0.5, 9.0], [0, 0.2]], [[0.3, 5.0], [0, 0.7]]])
  )
  assert 0.7 <= found.upper < 0.71
  assert found.lower == pytest.approx(0.7)
  # A nilpotent matrix alone, and nothing at all.
  assert joint.bound(np.zeros((1, 2, 2))).upper == 0.0
  # Scaled matrices have the scaled radius, beyond the squares of floats too.
  big = joint.bound(np.array([turn, np.diag([1.0, 0.0])]) * 1e200)
  assert big.lower == pytest.approx(1e200)


def test_bounds_hold_for_all_products():
  """Brute force: no product of six factors is outside."""
  rng = np.random.default_rng(0)
  matrices = rng.standard_normal((3, 3, 3)) / 2
  found = joint.bound(matrices)
  radii = []
  for word in itertools.product(range(3), repeat=6):
    total = np.eye(3)
    for index in word:
      total = matrices[index] @ total
    radii.append(np.abs(np.linalg.eigvals(total)).max() ** (1 / 6))
  assert max(radii) <= found.upper
  assert found.lower <= found.upper <= found.lower * 1.0011
  # The reported product has the reported radius.
  total = np.eye(3)
  for index in found.best[0].word:
    total = matrices[index] @ total
  root = 1 / len(found.best[0].word)
  radius = np.abs(np.linalg.eigvals(total)).max() ** root
  assert radius == pytest.approx(found.best[0].radius)
  assert radius == pytest.approx(found.lower)


def test_bad_matrices():
  with pytest.raises(ValueError, match='must be'):
    joint.bound(np.zeros((0, 2, 2)))
  with pytest.raises(ValueError, match='finite'):
    joint.bound(np.full((1, 2, 2), np.nan))


def test_modes_by_hand():
  """w <- w + a (g c w - w) for the two values c of the successor."""
  found = switching.modes(_case(_problem((2.0, -3.0))))
  assert found.policies.tolist() == [[0], [1]]
  np.testing.assert_allclose(
    np.sort(found.matrices.ravel()),
    [0.5 - 0.5 * 0.9 * 3, 0.5 + 0.5 * 0.9 * 2],
    atol=1e-14,
  )
  # Copies every C steps: (1 - a)^C + (1 - (1 - a)^C) g c.
  rest = 0.5**3
  found = switching.modes(_case(_problem((2.0, -3.0)), sync=3))
  np.testing.assert_allclose(
    np.sort(found.matrices.ravel()),
    [rest - (1 - rest) * 2.7, rest + (1 - rest) * 1.8],
    atol=1e-14,
  )
  # The mean over periods: (1 - w k)^-1 ((1 - w) k + G), G = a g c.
  found = switching.modes(_case(_problem((2.0, -3.0))), average=0.8)
  by_hand = [(0.2 * 0.5 + 0.45 * c) / (1 - 0.8 * 0.5) for c in (-3.0, 2.0)]
  np.testing.assert_allclose(np.sort(found.matrices.ravel()), by_hand)
  # A soft update keeps both numbers.
  found = switching.modes(_case(_problem((2.0, -3.0)), 'soft', tau=0.25))
  assert found.matrices.shape == (2, 2, 2)
  for c, matrix in zip((2.0, -3.0), found.matrices, strict=True):
    np.testing.assert_allclose(
      matrix, [[0.5, 0.45 * c], [0.125, 0.75 + 0.25 * 0.45 * c]], atol=1e-14
    )


@pytest.mark.slow
def test_the_mean_over_periods_is_the_sum_of_its_maps():
  case = _case(linear_control.random_control(3), discount=0.95)
  weight = 0.7

  def copied(period):
    one = switching.modes(case._replace(twin=case.twin._replace(sync=period)))
    whole = one.basis @ one.matrices @ one.basis.T
    # Of the network and its equal twin, the network.
    return whole[:, :3, :3] + whole[:, :3, 3:]

  total = sum(
    (1 - weight) * weight ** (period - 1) * copied(period)
    for period in range(1, 100)
  )
  found = switching.modes(case, weight).matrices
  np.testing.assert_allclose(found, total, atol=1e-12)
  np.testing.assert_allclose(
    switching.modes(case, 0.0).matrices, copied(1), atol=1e-14
  )


def _look(case, average=None, applications=400):
  found = switching.modes(case, average)
  bounds = joint.bound(found.matrices)
  followed = switching.followed(found, bounds)
  more = [] if followed is None else [followed.start]
  return bounds, followed, switching.observe(found, applications, more=more)


def test_a_mode_that_grows_and_that_no_run_follows():
  """From w < 0 the next w is positive, where 0.59 is left of it at each step.

  The other mode, 0.5 - 0.5 * 0.9 * 4 = -1.3, can only be used once.
  """
  bounds, followed, seen = _look(_case(_problem((0.2, -4.0))))
  assert bounds.lower == pytest.approx(1.3)
  assert followed is None or followed.radius < 1
  assert seen.converged == seen.starts
  assert seen.diverged == 0
  assert seen.growth == pytest.approx(0.59)


def test_a_mode_that_grows_and_that_runs_follow():
  """From w > 0 each step multiplies w by 0.5 + 0.45 * 2 = 1.4."""
  bounds, followed, seen = _look(_case(_problem((2.0, 1.0))))
  assert bounds.lower == pytest.approx(1.4)
  assert followed is not None
  assert followed.radius == pytest.approx(1.4)
  assert seen.growth == pytest.approx(1.4)
  assert 0 < seen.diverged < seen.starts  # from w < 0 it converges
  assert seen.diverged + seen.converged == seen.starts


@pytest.mark.slow
def test_without_a_choice_the_bounds_are_the_spectral_radius():
  """One action: the lab's prediction for the values of a policy."""
  policy = linear.random_off_policy(5, num_states=5, num_features=3)
  problem = linear_control.ControlProblem(
    policy.features[:, None],
    policy.transitions[:, None],
    policy.rewards[:, None],
    policy.weights[:, None],
  )
  for rule, sync, given in (('hard', 7, {}), ('soft', 1, {'tau': 0.2})):
    case = _case(problem, rule, sync, **given)
    found = switching.modes(case)
    assert len(found.policies) == 1
    bounds = joint.bound(found.matrices)
    radius = stability.spectral_radius(
      stability.Case(
        policy.batch(0.9), policy.initial, TwinSpec(rule, given, sync), 0.5
      )
    )
    assert bounds.lower == pytest.approx(radius, rel=1e-9)
    assert radius <= bounds.upper <= radius * 1.0011


@pytest.mark.slow
def test_a_table_contracts_by_the_discount():
  """One-hot features and an exact fit: value iteration, in the max norm."""
  shares = np.full((2, 2), 0.25)
  transitions = np.zeros((2, 2, 2))
  transitions[0, 0, 1] = transitions[0, 1, 0] = 1.0
  transitions[1, 0, 0] = transitions[1, 1, 1] = 1.0
  problem = linear_control.ControlProblem(
    np.eye(4).reshape(2, 2, 4), transitions, np.eye(2), shares
  )
  case = _case(problem, 'hard', 200)
  bounds, followed, seen = _look(case, applications=60)
  assert bounds.lower == pytest.approx(0.9)
  assert bounds.upper < 0.91
  assert followed is not None
  assert followed.radius == pytest.approx(0.9)
  assert seen.converged == seen.starts
  assert seen.growth == pytest.approx(0.9, abs=0.02)


@pytest.mark.slow
def test_what_has_no_modes():
  random = linear_control.random_control(0)
  with pytest.raises(ValueError, match="'functional' follows more than one"):
    switching.modes(_case(random, 'functional', 10, twin_weight=1.0))
  with pytest.raises(ValueError, match="'t_soft' is not linear"):
    switching.modes(_case(random, 't_soft', tau=0.1, degrees_of_freedom=1.0))
  with pytest.raises(ValueError, match="must be 'hard' to be averaged"):
    switching.modes(_case(random, 'soft', tau=0.1), average=0.5)
  with pytest.raises(ValueError, match=r'average=1.0 must be in \[0, 1\)'):
    switching.modes(_case(random), average=1.0)
  with pytest.raises(ValueError, match='has no mean: the online network'):
    switching.modes(_case(random, step_size=100.0), average=0.9)


def _sampled(rule, decay, seeds=(0,), steps=40, points=40, **given):
  chain = tabular.chain(3)
  problem = linear_control.from_tabular(chain)
  batch = problem.batch(0.5)
  best = tabular.optimal_values(chain, 0.5)[:2].ravel()
  case = stability.Case(
    batch,
    np.zeros(4),
    TwinSpec(rule, given),
    1.0,
  )
  values = batch.obs_tm1[np.arange(4), batch.a_tm1] @ best
  return sampled.run(
    [sampled.Sampled(case, values, decay, seed) for seed in seeds],
    steps,
    points,
  )


def test_single_samples_by_hand():
  """A corridor of two states: right pays 1 in the second, and ends.

  With steps of 1 and no noise each sample makes its value exact for the twin.
  Values: 1 in the second state; 1/2 toward it; 1/4 and 1/2 for going left.
  """
  one, other = _sampled('self', math.inf, (1, 2), 60, 60)
  assert one.gradient_steps.tolist() == [*range(1, 61)]
  assert set(one.largest) <= {1.0, 0.5, 0.25, 0.0}
  assert one.largest[-1] == other.largest[-1] == 0.0
  assert one.largest.tolist() != other.largest.tolist()
  # Steps shrink until the twin moves: it never does, so values stay inexact.
  (frozen,) = _sampled('frozen', 1.0, steps=60, points=60)
  assert frozen.moves[-1] == 0
  assert frozen.largest[-1] > 0.4
  with pytest.raises(ValueError, match='gradient_steps=3 must be at least 40'):
    _sampled('self', 1.0, steps=3)


@pytest.mark.slow
def test_single_samples_and_growing_periods():
  (grown,) = _sampled(
    'hard_geometric',
    1.0,
    steps=100,
    points=100,
    target_period=4,
    target_period_growth=2.0,
  )
  # Copies after 4, 12, 28 and 60 gradient steps, which change the twin.
  assert grown.moves[[2, 10, 26, 58]].tolist()[-1] <= 3
  assert grown.moves[-1] <= 4
  assert grown.moves[-1] >= 2


def test_problems_of_control():
  batch = linear_control.random_control(1, 3, 2).batch(0.9)
  assert batch.obs_tm1.shape == batch.obs_t.shape == (12, 2, 2)
  assert batch.weight.sum() == pytest.approx(1.0)
  ending = _problem((1.0, 1.0))
  ending.transitions[0, 0, 1] = 0.25
  batch = ending.batch(0.9)
  assert batch.weight.tolist() == [0.25, 0.75]
  assert batch.discount_t.tolist() == [0.9, 0.0]
  with pytest.raises(ValueError, match='num_states=9 must be from 2 to 8'):
    linear_control.make_problem('random_control', num_states=9)
  with pytest.raises(ValueError, match='num_features=0 must be at least 1'):
    linear_control.make_problem('random_control', num_features=0)
  with pytest.raises(ValueError, match='transitions must be'):
    linear_control.ControlProblem(
      np.ones((1, 1, 1)), -np.ones((1, 1, 1)), np.ones((1, 1)), np.ones((1, 1))
    )
  with pytest.raises(ValueError, match=r'rewards must be \[1, 1\]'):
    linear_control.ControlProblem(
      np.ones((1, 1, 1)), np.ones((1, 1, 1)), np.ones(1), np.ones((1, 1))
    )
