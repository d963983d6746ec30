"""The lab under the max: bounds of the switched system beside actual runs."""

from collections.abc import Mapping, Sequence
import math
from typing import Any, NamedTuple

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
from siamrl.envs import linear_control
from siamrl.stability import joint, switching

COLUMNS = (
  'unit',
  'modes',
  'radius_lower',
  'lower_length',
  'radius_upper',
  'upper_length',
  'radius_followed',
  'predicted',
  'growth',
  'starts',
  'starts_converged',
  'starts_diverged',
  'observed',
)
# Random starts of each run.
_STARTS = 8
CONVERGES, DIVERGES, UNDECIDED = 'converges', 'diverges', 'undecided'


class Case(NamedTuple):
  """A learner under the max, and the mean over periods that it copies."""

  case: stability.Case
  average: float | None


class Seen(NamedTuple):
  """The bounds of a case, what the max follows, and actual runs.

  Attributes:
    unit: gradient steps of an application; of a mean, its mean period.
    modes: number of modes; None if there are none.
    bounds: bounds of their joint spectral radius.
    followed: the fastest product that the max follows, if one is known.
    observed: runs.
    reason: why there are no modes, or ''.
  """

  unit: float
  modes: int | None
  bounds: joint.Bounds | None
  followed: switching.Followed | None
  observed: switching.Observed | None
  reason: str = ''


def make_case(config: LabConfig) -> Case:
  """The problem and the learner that the options name.

  Raises:
    UsageError: options do not go together.
    ValueError: likewise; the message begins with the option.
  """
  if config.target_init != 'equal':
    refuse(config, 'target_init', 'be equal: weights are given, not drawn')
  spec = twin_spec(config)
  takes = linear_control.PROBLEMS[config.problem].takes
  problem = linear_control.make_problem(
    config.problem, **{name: getattr(config, name) for name in takes}
  )
  start = np.zeros(problem.features.shape[-1])
  return Case(
    stability.Case(
      problem.batch(config.discount), start, spec, config.step_size
    ),
    config.period_average,
  )


def run(cases: Sequence[Case], gradient_steps: int) -> list[Seen]:
  """Bounds each case, and runs it."""
  return [_look(case, gradient_steps) for case in cases]


def _look(case: Case, gradient_steps: int) -> Seen:
  try:
    found = switching.modes(case.case, case.average)
    bounds = joint.bound(found.matrices)
  except ValueError as error:
    return Seen(1, None, None, None, None, str(error))
  unit = float(found.unit) if case.average is None else 1 / (1 - case.average)
  followed = switching.followed(found, bounds)
  grows = followed is not None and followed.radius > 1
  observed = switching.observe(
    found,
    max(2, math.floor(gradient_steps / unit + 1e-9)),
    _STARTS,
    [followed.start] if followed is not None and grows else [],
  )
  return Seen(unit, len(found.policies), bounds, followed, observed)


def predicted(seen: Seen) -> str:
  """The verdict of the bounds: converges, diverges or undecided.

  Learning converges from every start if the joint spectral radius is below 1,
  and diverges from some start if the max follows a product that grows.
  """
  if seen.bounds is not None and seen.bounds.upper < 1:
    return CONVERGES
  if seen.followed is not None and seen.followed.radius > 1 + 1e-9:
    return DIVERGES
  return UNDECIDED


def observed(seen: Seen) -> str:
  """The verdict of the runs: converges, diverges or undecided."""
  runs = seen.observed
  if runs is None:
    return UNDECIDED
  if runs.diverged:
    return DIVERGES
  return CONVERGES if runs.converged == runs.starts else UNDECIDED


def result(config: LabConfig, seen: Seen) -> dict[str, Any]:
  """The results that the JSON of a run has."""
  bounds, runs = seen.bounds, seen.observed
  found: dict[str, Any] = {
    'unit': seen.unit,
    'modes': seen.modes,
    'radius_lower': bounds and bounds.lower,
    'lower_length': bounds and bounds.lower_length,
    'radius_upper': bounds and bounds.upper,
    'upper_length': bounds and bounds.upper_length,
    'radius_followed': seen.followed and seen.followed.radius,
    'predicted': predicted(seen),
    'growth': runs and runs.growth and finite(runs.growth),
    'starts': runs and runs.starts,
    'starts_converged': runs and runs.converged,
    'starts_diverged': runs and runs.diverged,
    'observed': observed(seen),
  }
  if seen.reason:
    found['reason'] = seen.reason.replace("'", '')
  return found


def report(
  config: LabConfig, case: Case, result: Mapping[str, Any], seen: Seen
) -> list[str]:
  """A few lines about one run."""
  rows, actions, weights = case.case.batch.obs_tm1.shape
  unit = seen.unit
  over = 'a gradient step' if unit == 1 else f'{unit:,g} gradient steps'
  lines = [
    f'{config.problem}: {rows} transitions, {actions} actions, {weights} '
    f'weights; discount {config.discount:g}, step size {config.step_size:g}',
    f'twin: {twin_in_words(config, result)}',
  ]
  if seen.bounds is None or seen.observed is None:
    return [*lines, f'predicted: nothing, for {result["reason"]}']
  low, high = seen.bounds.lower, seen.bounds.upper
  line = (
    f'predicted: {result["predicted"]}; the joint spectral radius of '
    f'{seen.modes} modes lies between {low:.7g} (a product of '
    f'{seen.bounds.lower_length}) and {high:.7g} (of '
    f'{seen.bounds.upper_length}) over {over}'
  )
  if result['predicted'] == UNDECIDED:
    line += f', {high - low:.2g} apart'
  lines.append(line)
  if seen.followed is None:
    lines.append('the max follows none of the fastest products')
  else:
    lines.append(
      'the max follows a product that grows by '
      f'{seen.followed.radius:.7g} over {over}'
    )
  runs = seen.observed
  lines.append(
    f'observed: {result["observed"]}; {runs.converged} of {runs.starts} starts '
    f'converge, {runs.diverged} diverge; steps grow by '
    f'{cell(result["growth"])} over {over}'
  )
  return lines


def history(seen: Seen) -> list[dict[str, Any]]:
  """The largest norm of all starts over time."""
  if seen.observed is None:
    return []
  return [
    {
      'gradient_steps': round(applications * seen.unit),
      'log10_parameter_norm': finite(norm),
    }
    for applications, norm in zip(
      seen.observed.applications,
      seen.observed.log10_norms.max(0),
      strict=True,
    )
  ]
