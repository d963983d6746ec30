"""Clocks: conversions between units, and the speeds of the three processes.

A round runs `collect` env steps, then `regress` gradient steps; the twin is
updated after every `sync`-th gradient step. Phase and order are fixed: gradient
steps are counted from the first one after the warm-up, and the twin is updated
after the optimizer's steps number sync, 2 sync, 3 sync, ... So after g gradient
steps exactly g // sync updates have happened.
"""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp

from siamrl.parameters import FieldError, check_name
from siamrl.types import Schedule

UNITS = ('frames', 'env_steps', 'gradient_steps')

# The most env steps that a run can count, see `counted`.
MOST_ENV_STEPS = 2**32 - 1


def counted(number: chex.Numeric) -> jax.Array:
  """A number of env steps, or of steps of all environments, as uint32.

  Compiled programs have no wider integers. An int32 that has grown beyond its
  largest value is read as what it has counted.

  Args:
    number: from 0 to `MOST_ENV_STEPS`, or an int32 of the same bits.
  """
  return jnp.asarray(number, jnp.uint32)


def to_gradient_steps(
  period: int,
  unit: str,
  *,
  train_period: int,
  frames_per_env_step: int,
  train_steps: int = 1,
  name: str = 'target_period',
) -> int:
  """Converts a period to gradient steps.

  Nature DQN's target period, 40,000 frames of an emulator that repeats each
  action 4 times, is 10,000 env steps, and 2,500 gradient steps where one is
  taken every 4 env steps.

  Args:
    period: in `unit`, >= 1.
    unit: one of `UNITS`.
    train_period: env steps from one training to the next.
    frames_per_env_step: emulator frames per env step.
    train_steps: gradient steps of each training.
    name: name of the period in errors.

  Raises:
    ValueError: the unit is unknown, or the period is not positive or not a
      whole number of gradient steps.
  """
  check_name('target_period_unit', unit, UNITS)
  if period < 1:
    raise FieldError(name, period, 'must be at least 1')
  per_training = {
    'frames': frames_per_env_step * train_period,
    'env_steps': train_period,
    'gradient_steps': train_steps,
  }[unit]
  if period * train_steps % per_training:
    least = per_training // math.gcd(per_training, train_steps)
    raise FieldError(
      name,
      period,
      f'{unit} must be a multiple of {least}, for whole gradient steps',
    )
  return period * train_steps // per_training


def make_schedule(
  num_envs: int,
  train_period: int,
  *,
  train_steps: int = 1,
) -> Schedule:
  """Makes the shortest round that parallel environments allow.

  `num_envs` environments advance together, so a round collects a multiple of
  `num_envs` env steps, and takes the corresponding number of gradient steps.

  Args:
    num_envs: number of environments stepped at once.
    train_period: env steps from one training to the next.
    train_steps: gradient steps of each training.

  Raises:
    ValueError: a number is not positive, or neither of `num_envs` and
      `train_period` is a multiple of the other.
  """
  for name, value in (
    ('num_envs', num_envs),
    ('train_period', train_period),
    ('train_steps', train_steps),
  ):
    if value < 1:
      raise FieldError(name, value, 'must be at least 1')
  collect = max(num_envs, train_period)
  if collect % num_envs or collect % train_period:
    raise FieldError(
      'train_period',
      train_period,
      f'env steps and num_envs={num_envs} do not fit: one must be a '
      'multiple of the other',
    )
  return Schedule(collect, collect // train_period * train_steps)


def syncs(gradient_steps: Any, sync: Any, offset: Any = 0) -> Any:
  """The number of target updates after a number of gradient steps.

  Args:
    gradient_steps: gradient steps taken so far.
    sync: gradient steps per target update.
    offset: gradient steps by which the twin's clock is ahead.
  """
  return (gradient_steps + offset) // sync - offset // sync


def linear_epsilon(
  env_steps: Any, *, start: Any, end: Any, begin: Any, decay: Any
) -> Any:
  """Linearly decaying exploration (Mnih et al. 2015, Methods).

  Returns a number, or an array if any argument is one.

  Args:
    env_steps: env steps taken so far; an array as for `counted`.
    start: value until `begin` env steps.
    end: value from `begin + decay` env steps on.
    begin: env steps before the decay.
    decay: env steps that the decay lasts, >= 1.
  """
  if any(isinstance(each, jax.Array) for each in (env_steps, begin, decay)):
    env_steps, begin = counted(env_steps), counted(begin)
    # Exact, as float32 holds no odd number above 2**24; and never below 0.
    passed = env_steps - jnp.minimum(env_steps, begin)
    fraction = jnp.minimum(
      passed.astype(jnp.float32) / jnp.asarray(decay, jnp.float32), 1.0
    )
  else:
    fraction = min(max((env_steps - begin) / decay, 0.0), 1.0)
  return start + fraction * (end - start)
