"""The lab's tables: values under the max from single samples."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np

from experiments.config.declaring import refuse
from experiments.labs.options import (
  LabConfig,
  cell,
  finite,
  twin_in_words,
  twin_spec,
)
from siamrl import stability
from siamrl.envs import linear_control, tabular
from siamrl.stability import sampled

COLUMNS = ('max_error', 'moves')


def make_case(config: LabConfig) -> sampled.Sampled:
  """The process and the learner that the options name.

  Raises:
    UsageError: options do not go together.
    ValueError: likewise; the message begins with the option.
  """
  if config.target_init != 'equal':
    refuse(config, 'target_init', 'be equal: weights are given, not drawn')
  if config.discount == 1:
    refuse(config, 'discount', f'be below 1 for problem={config.problem}')
  process = linear_control.TABULAR[config.problem].make(config.seed)
  problem = linear_control.from_tabular(process)
  batch = problem.batch(config.discount)
  best = tabular.optimal_values(process, config.discount)[~process.terminal]
  return sampled.Sampled(
    stability.Case(
      batch, np.zeros(best.size), twin_spec(config), config.step_size
    ),
    # Observations are the one-hot features of a state's actions.
    np.einsum('nad,d->na', batch.obs_tm1, best.ravel())[
      np.arange(len(batch.a_tm1)), batch.a_tm1
    ],
    math.inf if config.step_decay is None else config.step_decay,
    config.seed,
  )


def run(
  cases: Sequence[sampled.Sampled], gradient_steps: int
) -> list[sampled.Errors]:
  return sampled.run(cases, gradient_steps, min(40, gradient_steps))


def result(config: LabConfig, errors: sampled.Errors) -> dict[str, Any]:
  """The results that the JSON of a run has."""
  found: dict[str, Any] = {
    'max_error': finite(errors.largest[-1]),
    'moves': int(errors.moves[-1]),
  }
  if found['max_error'] is None:
    found['reason'] = (
      f'step_size={config.step_size} lets values outgrow all floats'
    )
  return found


def report(
  config: LabConfig,
  case: sampled.Sampled,
  result: Mapping[str, Any],
  errors: sampled.Errors,
) -> list[str]:
  """A few lines about one run."""
  _, actions, weights = case.case.batch.obs_tm1.shape
  steps = errors.gradient_steps[-1]
  return [
    f'{config.problem}: {weights // actions} states, {actions} actions; '
    f'discount {config.discount:g}, first step size {config.step_size:g}',
    f'twin: {twin_in_words(config, result)}; {result["moves"]:,} moves',
    f'observed after {steps:,} gradient steps, of one sample each: largest '
    f'error of a value {cell(result["max_error"], 4)}',
  ]


def history(errors: sampled.Errors) -> list[dict[str, Any]]:
  """The errors over time."""
  return [
    {'gradient_steps': int(step), 'max_error': finite(error)}
    for step, error in zip(errors.gradient_steps, errors.largest, strict=True)
  ]
