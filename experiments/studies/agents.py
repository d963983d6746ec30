"""Claims about agents: the studies of several arms."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.studies.claims import (
  Claim,
  exceeds,
  exceeds_number,
  no_worse,
  settings_of,
)
from siamrl.report.metrics import Table


class Published(NamedTuple):
  """A published return.

  Attributes:
    mean: mean over runs.
    std: their standard deviation.
    margin: how far below it a mean may be and still count as reached.
  """

  mean: float
  std: float
  margin: float

  @property
  def runs(self) -> np.ndarray:
    """Three runs of this mean and sample standard deviation, for Welch's t."""
    return self.mean + self.std * np.array([-1.0, 0.0, 1.0])


# Of three seeds each: CleanRL, docs/rl-algorithms/c51.md (c51_jax.py) and
# pqn.md. An episode of CartPole has at most 500 steps, and one of DQN on
# Acrobot some 90; the margins are a twentieth of the one and a tenth of the
# other.
CLEANRL = {
  ('c51', 'cartpole'): Published(491.07, 9.70, 25.0),
  ('c51', 'acrobot'): Published(-86.74, 2.19, 9.0),
  ('pqn', 'cartpole'): Published(495.13, 6.89, 25.0),
  ('pqn', 'acrobot'): Published(-95.63, 5.73, 9.0),
}
# Of one run each on LunarLander-v2: DLR-RM/rl-baselines3-zoo, benchmark.md.
ZOO = {'dqn': 154.382, 'qrdqn': 70.236}
SOLVED = 200.0  # what Gymnasium's documentation considers a solution


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
  for (arm, environment), published in CLEANRL.items():
    runs = _known(found, arm, environment)
    about = f'{arm} on {environment}'
    bound = published.mean - published.margin
    claims += [
      no_worse(
        f'{about} ({np.mean(runs):.4g}) is not shown to be below '
        f"CleanRL's {published.mean:g}",
        [runs],
        [published.runs],
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
  runs = {arm: _known(found, arm) for arm in ZOO}
  best = max(runs, key=lambda arm: np.mean(runs[arm]))
  return [
    *(
      exceeds_number(
        f'{arm} ({np.mean(runs[arm]):.4g}) exceeds the {number:g} of RL '
        'Baselines3 Zoo',
        runs[arm],
        number,
      )
      for arm, number in ZOO.items()
    ),
    exceeds_number(
      f'the better one, {best}, exceeds {SOLVED:g}',
      runs[best],
      SOLVED,
      candidates=len(runs),
    ),
  ]
