"""Claims about agents: the studies of several arms."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.studies import published as published_files
from experiments.studies.claims import (
  Claim,
  exceeds,
  exceeds_number,
  no_worse,
  settings_of,
)
from siamrl.report import published
from siamrl.report.metrics import Table


class Reference(NamedTuple):
  """A published return.

  Attributes:
    mean: mean over runs.
    runs: as many numbers as there were runs, with their mean and deviation, for
      Welch's interval.
    margin: how far below it a mean may be and still count as reached.
  """

  mean: float
  runs: np.ndarray
  margin: float


# An episode of CartPole has at most 500 steps, and one of DQN on Acrobot some
# 90; the margins are a twentieth of the one and a tenth of the other.
_MARGINS = {'cartpole': 25.0, 'acrobot': 9.0}
_CLEANRL_AGENTS = {'c51': 'C51 (jax)', 'pqn': 'PQN (torch)'}
_ZOO_AGENTS = {'dqn': 'DQN', 'qrdqn': 'QR-DQN'}
SOLVED = 200.0  # what Gymnasium's documentation considers a solution


def cleanrl() -> dict[tuple[str, str], Reference]:
  """CleanRL's returns by arm and environment."""
  source = published_files.shipped('cleanrl_classic')
  found = {}
  for arm, agent in _CLEANRL_AGENTS.items():
    for environment, margin in _MARGINS.items():
      row = source.row(agent, 'environment', environment)
      runs = published.stand_ins(row.mean, source.sample_sd(row), row.seeds)
      found[arm, environment] = Reference(row.mean, runs, margin)
  return found


def zoo() -> dict[str, float]:
  """The returns of RL Baselines3 Zoo's single runs on LunarLander by arm."""
  source = published_files.shipped('sb3_zoo')
  return {
    arm: source.row(agent, 'environment', 'LunarLander').mean
    for arm, agent in _ZOO_AGENTS.items()
  }


def minatar_table(table: Table) -> list[Claim]:
  """Claims that agents exceed DQN over the games.

  Scores are last tenths of training curves, in units of DQN's mean in the same
  game. Of K agents that are compared with DQN, each interval has Bonferroni's
  correction for K.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found = {
    tuple(s.point.values()): s.final('train_return')
    for s in settings_of(table, 'arm', 'game')
  }
  arms = list(dict.fromkeys(arm for arm, _ in found))
  games = list(dict.fromkeys(game for _, game in found))

  def of(arm: str) -> list[np.ndarray]:
    return [
      _known(found, arm, game) / np.mean(_known(found, 'dqn', game))
      for game in games
    ]

  others = [arm for arm in arms if arm != 'dqn']
  return [
    exceeds(
      f'{arm} exceeds dqn over the games ({np.mean(of(arm)):.3g} against 1)',
      of(arm),
      of('dqn'),
      candidates=len(others),
    )
    for arm in others
  ]


def twin_distributions(table: Table) -> list[Claim]:
  """Claims about twins under DQN and under agents of distributions.

  Scores are mean heights of training curves, in units of the same agent's mean
  with copies in the same game.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found: dict[tuple, np.ndarray] = {}
  for setting in settings_of(
    table, 'arm', 'game', 'target_update', 'target_form'
  ):
    arm, game, rule, form = setting.point.values()
    key = arm, game, form or rule
    found[key] = setting.height('train_return')
  arms = list(dict.fromkeys(arm for arm, _, _ in found))
  games = list(dict.fromkeys(game for _, game, _ in found))

  def of(arm: str, twin: str) -> list[np.ndarray]:
    return [
      _known(found, arm, game, twin) / np.mean(_known(found, arm, game, 'hard'))
      for game in games
    ]

  gaps = {
    arm: [
      with_twin - without
      for with_twin, without in zip(
        of(arm, 'hard'), of(arm, 'self'), strict=True
      )
    ]
    for arm in arms
  }
  means = {arm: float(np.mean(gaps[arm])) for arm in arms}
  pooled = {
    twin: [runs for arm in arms for runs in of(arm, twin)]
    for twin in ('hard', 'soft', 'hard_geometric')
  }
  return [
    exceeds(
      f'a copy every 1,000 gradient steps adds to dqn ({means["dqn"]:.3g})',
      of('dqn', 'hard'),
      of('dqn', 'self'),
    ),
    *(
      exceeds(
        f'it adds more to dqn than to {arm} ({means[arm]:.3g})',
        gaps['dqn'],
        gaps[arm],
      )
      for arm in arms
      if arm != 'dqn'
    ),
    *(
      no_worse(
        f'{arm}: MINTO is not shown to be worse than copies alone '
        f'({np.mean(of(arm, "minto")):.3g} against 1)',
        of(arm, 'minto'),
        of(arm, 'hard'),
      )
      for arm in arms
    ),
    *(
      no_worse(
        f'{twin} is not shown to be worse than hard over all agents '
        f'({np.mean(pooled[twin]):.3g} against 1)',
        pooled[twin],
        pooled['hard'],
      )
      for twin in ('soft', 'hard_geometric')
    ),
  ]


def _known(found: Mapping[tuple, np.ndarray], *key: str) -> np.ndarray:
  if key not in found:
    raise ValueError(f'no run with {", ".join(key)}')
  return found[key]


def cleanrl_classic(table: Table) -> list[Claim]:
  """Claims about published returns: two for each agent and environment.

  Returns are last tenths of training curves. A mean could be so uncertain that
  nothing shows it to be lower than what is published; the second claim is that
  it is known to be within a margin of it, or above.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found = {
    tuple(s.point.values()): s.final('train_return')
    for s in settings_of(table, 'arm', 'environment')
  }
  claims = []
  for (arm, environment), reference in cleanrl().items():
    runs = _known(found, arm, environment)
    about = f'{arm} on {environment}'
    bound = reference.mean - reference.margin
    claims += [
      no_worse(
        f'{about} ({np.mean(runs):.4g}) is not shown to be below '
        f"CleanRL's {reference.mean:g}",
        [runs],
        [reference.runs],
      ),
      exceeds_number(f'{about} exceeds {bound:g}', runs, bound),
    ]
  return claims


def lunar_lander(table: Table) -> list[Claim]:
  """Claims about published returns, and a solution, on LunarLander.

  Returns are evaluations in the last tenth of the runs.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found = {
    tuple(s.point.values()): s.final('eval_return')
    for s in settings_of(table, 'arm')
  }
  references = zoo()
  runs = {arm: _known(found, arm) for arm in references}
  best = max(runs, key=lambda arm: np.mean(runs[arm]))
  return [
    *(
      exceeds_number(
        f'{arm} ({np.mean(runs[arm]):.4g}) exceeds the {number:g} of RL '
        'Baselines3 Zoo',
        runs[arm],
        number,
      )
      for arm, number in references.items()
    ),
    exceeds_number(
      f'the better one, {best}, exceeds {SOLVED:g}',
      runs[best],
      SOLVED,
      candidates=len(runs),
    ),
  ]
