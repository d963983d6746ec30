"""Criteria of agents beside published returns of the same algorithm.

Runs are not shown to differ from what is published. These criteria were written
after the runs that are in `experiments/results`, whose returns were known, so
that they guard against a later change rather than test a prediction.

Of several runs, Welch's interval of the difference of means must hold 0, and
those of CleanRL must be known to be within a margin of what is published, or
above. A single run has no interval: it must lie where one more run of the
source would lie in 95 % of cases, if its runs are normal. That is easily met
where a source has a large spread or few runs.

Protocols differ: the robots of the sources are version 1 (TD3) and 2 (SAC), and
those of the runs version 5; the runs of Pong begin afresh every 250,000 frames,
those of Dopamine every million; over which episodes CleanRL averages is not
known, and the last tenth of a run is taken. `python -m experiments.compare`
names all differences of a folder.
"""

from collections.abc import Iterator
import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.studies import published as published_files
from experiments.studies.claims import (
  Claim,
  Setting,
  exceeds_number,
  settings_of,
)
from experiments.studies.cleanrl_classic import MARGINS
from siamrl.report import published, statistics
from siamrl.report.metrics import RUN_COLUMN, Table, by_run
from siamrl.report.sweep import clock_of

COLUMNS = ()  # each study has one of its own
SETTINGS = ('environment', 'game', 'agent')
AFTERWARDS = True


class Reference(NamedTuple):
  """A published return.

  Attributes:
    source: the name of its files.
    agent: its agent there.
    column: the column of the runs.
    time: the value of the clock.
    words: the source in words.
  """

  source: str
  agent: str
  column: str
  time: float
  words: str


# By the task, without a version, and the agent.
_REFERENCES = {
  ('cartpole', 'dqn'): Reference(
    *('cleanrl_classic', 'DQN (jax)', 'train_return', 5e5, 'CleanRL'),
  ),
  ('acrobot', 'dqn'): Reference(
    *('cleanrl_classic', 'DQN (jax)', 'train_return', 5e5, 'CleanRL'),
  ),
  ('pong', 'dqn'): Reference(
    *('dopamine_dqn', 'DQN', 'train_return', 3e6, 'Dopamine'),
  ),
  ('halfcheetah', 'td3'): Reference(
    *('td3', 'TD3', 'eval_return', 2e5, 'Fujimoto et al.'),
  ),
  ('halfcheetah', 'sac'): Reference(
    *('jaxrl_sac', 'SAC', 'eval_return', 1e5, 'JAXRL'),
  ),
}


def judge(table: Table) -> list[Claim]:
  """The claim about the published return of each task and agent.

  Raises:
    ValueError: the runs are none that there is a published return of.
  """
  claims: list[Claim] = []
  for setting in settings_of(table, *SETTINGS):
    environment, game, agent = setting.point.values()
    task = published.plain(str(environment or game))
    reference = _REFERENCES.get((task, str(agent)))
    if reference is None:
      raise ValueError(f'no published return of {agent} on {task}')
    claims += _beside(task, f'{agent} on {task}', setting, reference)
  return claims


def _beside(
  task: str, about: str, setting: Setting, reference: Reference
) -> Iterator[Claim]:
  """The claims that runs do not differ from a published return."""
  source = published_files.shipped(reference.source)
  row = next(
    row
    for row in source.rows
    if row.agent == reference.agent
    and row.time == reference.time
    and published.plain(row.task) == task
  )
  spread = source.sample_sd(row)
  x, y = by_run(
    setting.table, clock_of(setting.table), reference.column, RUN_COLUMN
  )
  runs = np.array(
    [published.value_at(x, run, None, row.time, source.window) for run in y]
  )
  theirs = f'{row.mean:.4g} of {reference.words}, {row.seeds} seeds'
  text = f'{about} at {row.time:,.0f} is not shown to differ from {theirs}'
  if len(runs) > 1:
    stand_ins = published.stand_ins(row.mean, spread, row.seeds)
    middle, low, high = statistics.difference(
      runs[:, None], stand_ins[:, None], statistics.mean
    )
    met = None if np.isnan(low) else bool(low <= 0 <= high)
    seen = f'{middle:.3g} more ({low:.3g} to {high:.3g})'
    yield Claim(text, met, seen if met is not None else 'not known')
    if task in MARGINS:
      bound = row.mean - MARGINS[task]
      yield exceeds_number(f'{about} exceeds {bound:g}', runs, bound)
    return
  half = stats.t.ppf(0.975, row.seeds - 1) * spread
  half *= math.sqrt(1 + 1 / row.seeds)
  met = bool(abs(runs[0] - row.mean) <= half)
  yield Claim(
    text,
    None if np.isnan(runs[0]) else met,
    f'{runs[0]:.4g} of one run, and one more of theirs would lie between '
    f'{row.mean - half:.4g} and {row.mean + half:.4g}',
  )
