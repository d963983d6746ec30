"""Clocks: units, rounds, counts of syncs."""

import pytest

from siamrl import schedule
from siamrl.types import Schedule


@pytest.mark.parametrize(
  'period, unit',
  [(40_000, 'frames'), (10_000, 'env_steps'), (2_500, 'gradient_steps')],
)
def test_natures_period_in_every_unit(period, unit):
  assert (
    schedule.to_gradient_steps(
      period, unit, train_period=4, frames_per_env_step=4
    )
    == 2_500
  )


@pytest.mark.parametrize(
  'period, unit, message',
  [
    (10, 'steps', "target_period_unit='steps' is unknown; choose from frames"),
    (0, 'frames', 'target_period=0 must be at least 1'),
    (
      1_001,
      'env_steps',
      'target_period=1001 env_steps must be a multiple of 4',
    ),
    (24, 'frames', 'target_period=24 frames must be a multiple of 16'),
  ],
)
def test_what_to_gradient_steps_refuses(period, unit, message):
  with pytest.raises(ValueError, match=message):
    schedule.to_gradient_steps(
      period, unit, train_period=4, frames_per_env_step=4
    )


@pytest.mark.parametrize(
  'num_envs, train_period, expected',
  [
    (1, 4, (4, 1)),
    (4, 4, (4, 1)),
    (8, 4, (8, 2)),
    (2, 1, (2, 2)),
    (2, 8, (8, 1)),
  ],
)
def test_rounds(num_envs, train_period, expected):
  speeds = schedule.make_schedule(num_envs, train_period)
  assert speeds == Schedule(*expected)
  assert speeds.collect / speeds.regress == train_period


def test_rounds_that_do_not_fit():
  with pytest.raises(ValueError, match='train_period=4 .* num_envs=3'):
    schedule.make_schedule(3, 4)
  with pytest.raises(ValueError, match='num_envs=0'):
    schedule.make_schedule(0, 4)
  with pytest.raises(ValueError, match='train_steps=0'):
    schedule.make_schedule(1, 4, train_steps=0)


def test_named_schedules():
  assert Schedule.dqn() == schedule.make_schedule(1, 4) == (4, 1)
  assert Schedule.online() == schedule.make_schedule(1, 1)
  assert Schedule.online() == Schedule.dqn(1, 1)
  fitted = Schedule.fitted(iterations=3, steps=50, collect=100)
  assert schedule.syncs(fitted.regress, 50) == 3  # fits per round
  assert fitted == schedule.make_schedule(1, 100, train_steps=150)


def test_linear_epsilon():
  epsilon = [
    schedule.linear_epsilon(t, start=1.0, end=0.1, begin=10, decay=90)
    for t in (0, 10, 55, 100, 1_000)
  ]
  assert epsilon == pytest.approx([1.0, 1.0, 0.55, 0.1, 0.1])


@pytest.mark.parametrize('sync', [1, 3, 2_500])
def test_syncs_counts_multiples(sync):
  for steps in (0, 1, 2, 3, 2_499, 2_500, 7_501):
    assert schedule.syncs(steps, sync) == sum(
      step % sync == 0 for step in range(1, steps + 1)
    )
    for offset in (0, 1, 2, 2_500, 4_999):
      assert schedule.syncs(steps, sync, offset) == sum(
        (step + offset) % sync == 0 for step in range(1, steps + 1)
      )
