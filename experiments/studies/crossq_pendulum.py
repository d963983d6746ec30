"""Criterion of the study of CrossQ, after Bhatt et al. (2024).

CrossQ, which has no twin, holds a return of -200 on the pendulum after fewer
env steps than SAC with its twin.
"""

import numpy as np

from experiments.studies.claims import (
  Claim,
  exceeds,
  settings_of,
)
from siamrl.report.metrics import Table

COLUMNS = ('eval_return',)


_HELD = -200.0  # a return of the pendulum


def judge(table: Table) -> list[Claim]:
  """The claim that CrossQ learns faster than SAC with its twin.

  A run has learned at the first evaluation from which on no return is below
  -200, as far as all runs go, and one interval after the last if there is none.

  Raises:
    ValueError: the table lacks a column or an agent, or agents were evaluated
      at different times.
  """
  name = 'arm' if 'arm' in table else 'agent'
  found = {s.point[name]: s for s in settings_of(table, name)}
  for agent in ('crossq', 'sac'):
    if agent not in found:
      raise ValueError(f'no run with agent={agent}')
  times = {
    agent: np.unique(found[agent].table['env_steps'])
    for agent in ('crossq', 'sac')
  }
  common = min(times.values(), key=len)
  if any(not np.array_equal(t[: len(common)], common) for t in times.values()):
    raise ValueError('evaluations must be at the same env steps')
  after = np.append(common, 2 * common[-1] - common[-2])

  def learned(agent: str) -> np.ndarray:
    """Env steps until each run has learned."""
    returns = found[agent].values('eval_return')[:, : len(common)]
    below = np.maximum.accumulate((returns < _HELD)[:, ::-1], 1)[:, ::-1]
    steps = after[below.sum(1)].astype(float)
    return np.where(np.isnan(returns).any(1), np.nan, steps)

  ours, theirs = learned('crossq'), learned('sac')
  return [
    exceeds(
      f'SAC needs more env steps than CrossQ to hold {_HELD:g} '
      f'({np.mean(theirs):.5g} against {np.mean(ours):.5g})',
      [theirs],
      [ours],
    )
  ]
