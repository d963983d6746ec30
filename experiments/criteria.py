"""Checks the claims of a study, which were written down before it was run.

  python -m experiments.criteria --study=twin_age --runs=runs/twin_age_cartpole

reads the metrics of a sweep and says whether each claim is met, MISSED, or OPEN
for want of numbers. --runs is the folder of the sweep, or a results file such
as experiments/results/twin_age_cartpole-curves.csv; several are joined by
commas. An unfinished sweep is judged by its results so far.

A claim that A exceeds B is met if Welch's 95 % interval of the difference of
means over seeds lies above 0, within each task. If A and B are equal, with 3 to
10 normal seeds, such a claim is met in 1.9 to 2.3 % of cases (`python -m
experiments.calibrate`); if seeds are skewed or fail and A and B vary unequally,
in up to 20 %. If the best of several settings is compared, Bonferroni's
correction widens the interval. A claim that A is no worse is met unless such an
interval shows that it is; the interval tells how much worse it may be.

Each study has flag files that begin with its name; siamese_accuracy has
siamese_frames, too:
  twin_age: hard and soft twins of the same mean age. The best setting learns
    better than a period of 4,096 gradient steps, and that better than a frozen
    twin; hard and soft rules rank ages alike.
  soft_divergence: Q-learning without a twin diverges softly (values above what
    rewards allow) in more runs than with one, and than Double Q-learning;
    Double Q-learning overestimates values less; 3-step returns diverge no more
    often than 1-step ones. After van Hasselt et al. (2018).
  twin_minatar: the MinAtar paper's DQN learns more with its twin than without,
    in each game. After Mnih et al. (2015), Extended Data Table 3.
  target_free_gap: a twin adds more to the return without layer normalization
    than with it; a twin of the last layer alone is no worse than none. After
    Gallici et al. (2025) and Vincent et al. (2025).
  siamese_collapse: SimSiam's figure 2 and BYOL's table 5a, in small. Without
    output normalization, a network without a stop-gradient or without a
    predictor collapses, and one with both, or with a fixed predictor, does not;
    a frozen twin is predicted less well than a slow one, and that less well
    than a faster one. After Chen & He (2021) and Grill et al. (2020).
  siamese_accuracy: where pixels say little, a slow twin makes better features
    than a random one, and the default's features are better than pixels.
  twin_rate: critics of a fixed policy end at the same values whatever the rate
    of their twin; with a learned policy, values without a twin are further from
    the truth, and the policy is worse. After Fujimoto et al. (2018), figure 3.
  spr_minatar: an agent that predicts its own latents keeps them apart if their
    targets come from a twin, itself behind a stop-gradient or a slow one;
    without a stop-gradient they collapse. Neither costs return. After Schwarzer
    et al. (2021).
  crossq_pendulum: CrossQ, which has no twin, holds a return of -200 on the
    pendulum after fewer env steps than SAC with its twin; --runs names both,
    such as runs/crossq_pendulum,experiments/results/sac_pendulum-curves.csv.
    After Bhatt et al. (2024).

The studies of experiments.table have arms; --runs is their OUTPUT-curves.csv:
  minatar_table: agents that learn more than DQN on MinAtar, at the settings of
    Obando-Ceron & Castro (2021).
  twin_distributions: the gap between DQN with its twin and without is wider
    than those of C51 and QR-DQN; MINTO and other twins are no worse than hard.
  cleanrl_classic: C51 and PQN reach the returns that CleanRL publishes.
  lunar_lander: DQN and QR-DQN reach the returns that RL Baselines3 Zoo
    publishes, and the better one solves LunarLander.

Exit codes: 0 whether or not claims are met, 2 for invalid flags, 1 for any
other error.
"""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any, NamedTuple

import numpy as np

from experiments.config.declaring import (
  RunError,
  UsageError,
  group,
  one_of,
  option,
  path_option,
)
from experiments.config.executing import run
from experiments.studies import agents, reinforcement, siamese
from experiments.studies.claims import Claim
from siamrl.report.metrics import RUN_COLUMN, Table, read_metrics
from siamrl.report.results import read_results
from siamrl.report.run_folder import RunFolder


class Study(NamedTuple):
  """A study.

  Attributes:
    judge: table -> claims.
    columns: the measures that claims are about.
  """

  judge: Callable[[Table], list[Claim]]
  columns: tuple[str, ...]


STUDIES = {
  'twin_age': Study(reinforcement.twin_age, ('train_return',)),
  'soft_divergence': Study(
    reinforcement.soft_divergence, ('panel/q_max_abs', 'panel/overestimation')
  ),
  'twin_minatar': Study(reinforcement.twin_minatar, ('train_return',)),
  'target_free_gap': Study(reinforcement.target_free_gap, ('train_return',)),
  'siamese_collapse': Study(
    siamese.siamese_collapse, ('loss', 'normalized_std')
  ),
  'siamese_accuracy': Study(
    siamese.siamese_accuracy,
    ('knn_encoder', 'knn_pixels', 'probe_encoder', 'probe_pixels'),
  ),
  'twin_rate': Study(
    reinforcement.twin_rate, ('q_tm1', 'panel/overestimation', 'train_return')
  ),
  'spr_minatar': Study(reinforcement.spr_minatar, ('spr_std', 'train_return')),
  'minatar_table': Study(agents.minatar_table, ('train_return',)),
  'twin_distributions': Study(agents.twin_distributions, ('train_return',)),
  'cleanrl_classic': Study(agents.cleanrl_classic, ('train_return',)),
  'lunar_lander': Study(agents.lunar_lander, ('eval_return',)),
  'crossq_pendulum': Study(reinforcement.crossq_pendulum, ('eval_return',)),
}


@dataclasses.dataclass(frozen=True)
class CriteriaConfig:
  """The options."""

  _study: Any = group('The study')
  study: str = option('twin_age', 'Study to check', one_of(STUDIES))
  runs: str = path_option(
    '',
    'Folders of sweeps, and results files with a row per run and time, '
    'separated by commas',
    several=True,
  )


def main(config: CriteriaConfig) -> None:
  """Prints for each claim whether it is met."""
  if not config.runs:
    raise UsageError(
      '--runs must be the folder of a sweep, or a results file of its runs'
    )
  notes: list[str] = []
  try:
    table = _joined(
      [_read(pathlib.Path(path), notes) for path in config.runs.split(',')]
    )
    claims = _judge(STUDIES[config.study], table, notes)
  except FileNotFoundError as error:
    raise RunError(
      f'--runs={config.runs} holds no metrics.csv, nor is it a results file'
    ) from error
  except (OSError, ValueError, KeyError) as error:
    notes.append(f'no sweep of --study={config.study}: {error}')
    raise RunError(f'--runs={config.runs} is {"; ".join(notes)}') from error
  for note in notes:
    print(note)
  verdicts = {True: 'met', False: 'MISSED', None: 'OPEN'}
  for claim in claims:
    print(f'{verdicts[claim.met]}: {claim.text}: {claim.seen}')


def _joined(tables: list[Table]) -> Table:
  """The rows of several tables, with the columns that all of them have."""
  names = [name for name in tables[0] if all(name in t for t in tables)]
  return {name: np.concatenate([t[name] for t in tables]) for name in names}


def _read(path: pathlib.Path, notes: list[str]) -> Table:
  """Reads the rows of runs and their agent; notes if runs are not finished."""
  if not path.is_dir():
    table, flags = read_results(path)
  else:
    folder = RunFolder(path)
    table, flags = read_metrics(folder.metrics), folder.read_flags() or {}
    rows, all_rows = len(next(iter(table.values()), ())), folder.rows()
    if all_rows is not None and rows < all_rows:
      notes.append(f'not finished: {rows:,} of {all_rows:,} rows')
  if RUN_COLUMN not in table:
    raise ValueError(
      f'no column {RUN_COLUMN!r}: a row must be of one run, as in '
      'OUTPUT-curves.csv of experiments.plot'
    )
  if 'agent' in flags and 'agent' not in table:
    table = table | {'agent': np.full(len(table[RUN_COLUMN]), flags['agent'])}
  return table


def _judge(study: Study, table: Table, notes: list[str]) -> list[Claim]:
  """Judges the claims; those about measures that the table lacks are open."""
  missing = [name for name in study.columns if name not in table]
  if len(missing) == len(study.columns):
    raise ValueError(f'no column {", ".join(missing)}')
  if missing:
    notes.append(f'no column {", ".join(missing)}: claims about it are open')
  unknown = np.full(len(table[RUN_COLUMN]), np.nan)
  return study.judge(table | dict.fromkeys(missing, unknown))


if __name__ == '__main__':
  run(CriteriaConfig, __doc__, main)
