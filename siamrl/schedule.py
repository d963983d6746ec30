"""Clocks: conversions between units, and the speeds of the three processes.

A round runs `collect` env steps, then `regress` gradient steps; the twin is
updated after every `sync`-th gradient step. Phase and order are fixed: gradient
steps are counted from the first one after the warm-up, the optimiser's step
comes first, and the twin is updated after gradient steps number sync, 2 sync,
3 sync, ... So after g gradient steps exactly g // sync updates have happened.
"""

from typing import Any

import jax
import jax.numpy as jnp

from siamrl.types import Schedule

UNITS = ('frames', 'env_steps', 'gradient_steps')


def to_gradient_steps(
  period: int, unit: str, *, train_period: int, frames_per_env_step: int
) -> int:
  """Converts a period to gradient steps.

  Nature DQN's target period, 40,000 frames of an emulator that repeats each
  action 4 times, is 10,000 env steps, and 2,500 gradient steps where one is
  taken every 4 env steps.

  Args:
    period: in `unit`, >= 1.
    unit: one of `UNITS`.
    train_period: env steps per gradient step.
    frames_per_env_step: emulator frames per env step.

  Raises:
    ValueError: the unit is unknown, the period is not positive or no whole
      number of gradient steps.
  """
  if unit not in UNITS:
    raise ValueError(
      f'target_period_unit={unit!r} is unknown; choose from {", ".join(UNITS)}'
    )
  if period < 1:
    raise ValueError(f'target_period={period} must be at least 1')
  per_gradient_step = {
    'frames': frames_per_env_step * train_period,
    'env_steps': train_period,
    'gradient_steps': 1,
  }[unit]
  if period % per_gradient_step:
    raise ValueError(
      f'target_period={period} {unit} must be a multiple of '
      f'{per_gradient_step}, the {unit} per gradient step'
    )
  return period // per_gradient_step


def make_schedule(num_envs: int, train_period: int, sync: int) -> Schedule:
  """The smallest round that parallel environments can keep.

  `num_envs` environments advance together, so a round collects a multiple of
  `num_envs` env steps, and takes as many gradient steps as that calls for.

  Args:
    num_envs: environments stepped at once.
    train_period: env steps per gradient step.
    sync: gradient steps per target update.

  Raises:
    ValueError: a number is not positive, or neither of `num_envs` and
      `train_period` is a multiple of the other.
  """
  for name, value in (
    ('num_envs', num_envs),
    ('train_period', train_period),
    ('target_period', sync),
  ):
    if value < 1:
      raise ValueError(f'{name}={value} must be at least 1')
  collect = max(num_envs, train_period)
  if collect % num_envs or collect % train_period:
    raise ValueError(
      f'train_period={train_period} env steps and num_envs={num_envs} do not '
      'fit: one must be a multiple of the other'
    )
  return Schedule(collect, collect // train_period, sync)


def online() -> Schedule:
  """Online Q-learning: every process moves at every step."""
  return Schedule(1, 1, 1)


def nature() -> Schedule:
  """Nature DQN: a gradient step every 4 env steps, C = 2,500 of them."""
  return Schedule(4, 1, 2_500)


def fitted(collect: int, iterations: int, steps: int) -> Schedule:
  """Fitted Q-iteration: collect, then `iterations` regressions to the end.

  Args:
    collect: env steps gathered before each fit.
    iterations: target updates per round.
    steps: gradient steps of each regression.
  """
  return Schedule(collect, iterations * steps, steps)


def syncs(gradient_steps: Any, sync: Any) -> Any:
  """Target updates that have happened after so many gradient steps."""
  return gradient_steps // sync


def linear_epsilon(
  env_steps: Any, *, start: Any, end: Any, begin: Any, decay: Any
) -> Any:
  """Linearly decaying exploration (Mnih et al. 2015, Methods).

  Numbers give a number, and with an array among them it is an array.

  Args:
    env_steps: env steps taken so far.
    start: value until `begin` env steps.
    end: value from `begin + decay` env steps on.
    begin: env steps before the decay.
    decay: env steps that the decay lasts, >= 1.
  """
  fraction = (env_steps - begin) / decay
  if isinstance(fraction, jax.Array):
    fraction = jnp.clip(fraction, 0.0, 1.0)
  else:
    fraction = min(max(fraction, 0.0), 1.0)
  return start + fraction * (end - start)
