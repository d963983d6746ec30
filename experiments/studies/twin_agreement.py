"""Criteria of the study of gradients that agree with optimal values.

Before any run of the study: its question is whether the rule whose
counterfactual gradient agrees best with the gradient toward optimal values is
the rule that learns best, and whether a twin that is the best of several at
each gradient step learns better than the best rule.

The agreement that counts is the counterfactual one: that of the shadows in the
runs of one rule, copies every `COMMON` gradient steps. The mean is over all
measurements. The agreement in the runs of each rule itself is reported beside
it. The score is the reward per env step of all of training, exploration
included, which in problems that end at a goal is what counts and what returns
do not show.

- "Yes" to the first question: the rank correlation of agreement and score over
  all rules, averaged over the problems, has a 95 % interval above 0. Seeds are
  resampled, those of the common runs and those of each rule's runs
  independently; rules and problems are fixed.
- "Yes" to the second: the score of the twin that chooses exceeds that of the
  best rule of each problem, averaged over problems in units of the range of the
  rules' mean scores, by an interval with Bonferroni's correction for the rules.

The others say where an answer comes from: whether a rank correlation is left
without the rules that are known to fail, how much the rule that agrees best
falls short, and whether choosing by agreement is better than choosing by
chance.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.studies.claims import (
  Claim,
  Setting,
  exceeds,
  known_mean,
  no_worse,
  settings_of,
)
from siamrl.report.metrics import Table

RULES = (
  *('hard:4', 'hard:16', 'hard:64', 'hard:256', 'hard:1024'),
  *('soft:0.4', 'soft:0.118', 'soft:0.0308', 'soft:0.00778', 'soft:0.00195'),
  *('self', 'residual', 'frozen'),
)
COMMON = 'hard:64'
# Rules that fail for reasons that are known.
_FAILING = ('residual', 'frozen')
_AGREEMENT = 'panel/agreement'
COLUMNS = (
  'train_return',
  'train_episodes',
  _AGREEMENT,
  *(f'{_AGREEMENT}/{name}' for name in RULES),
)
_REPETITIONS = 10_000


class Problem(NamedTuple):
  """The runs of one problem.

  Attributes:
    name: its name.
    scores: [rules, runs].
    common: [rules, runs] agreement of shadows in the common runs.
    own: [rules, runs] agreement of each rule in its own runs.
    followers: scores [runs] of the twins that choose, by their choice.
  """

  name: str
  scores: np.ndarray
  common: np.ndarray
  own: np.ndarray
  followers: dict[str, np.ndarray]


def problems_of(table: Table) -> list[Problem]:
  """The runs of each problem.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found: dict[str, dict[str, Setting]] = {}
  for setting in settings_of(
    table,
    *('environment', 'arm', 'target_update', 'target_period', 'tau'),
    'candidate_choice',
  ):
    found.setdefault(setting.point['environment'], {})[_name(setting)] = setting
  return [_problem(name, settings) for name, settings in found.items()]


def judge(table: Table) -> list[Claim]:
  """Claims about agreement, scores, and twins that choose.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  problems = problems_of(table)
  moving = [i for i, name in enumerate(RULES) if name not in _FAILING]
  everything = list(range(len(RULES)))
  return [
    _correlates(
      'rules that agree better in common runs learn better',
      problems,
      everything,
    ),
    _correlates('so do those other than residual and frozen', problems, moving),
    _correlates(
      'rules that agree better in their own runs learn better',
      problems,
      everything,
      own=True,
    ),
    *_of_choices(problems),
  ]


def _name(setting: Setting) -> str:
  """A rule as its shadow is called, or the choice of a twin that chooses."""
  point = setting.point
  if point['candidate_choice']:
    return point['candidate_choice']
  rule = point['target_update'] or point['arm']
  number = {'hard': point['target_period'], 'soft': point['tau']}.get(rule)
  return rule if number is None else f'{rule}:{number:g}'


def _problem(name: str, settings: dict[str, Setting]) -> Problem:
  for needed in (*RULES, 'best', 'chance'):
    if needed not in settings:
      raise ValueError(f'no run of {needed} on {name}')
  common = settings[COMMON]
  return Problem(
    name,
    np.stack([_score(settings[rule]) for rule in RULES]),
    np.stack(
      [known_mean(common.values(f'{_AGREEMENT}/{rule}')) for rule in RULES]
    ),
    np.stack([known_mean(settings[rule].values(_AGREEMENT)) for rule in RULES]),
    {choice: _score(settings[choice]) for choice in ('best', 'chance')},
  )


def _score(setting: Setting) -> np.ndarray:
  """Reward per env step of each run, [runs]."""
  episodes = setting.values('train_episodes')
  # An iteration in which no episode ends has no return.
  returns = np.where(episodes > 0, setting.values('train_return'), 0)
  return np.sum(returns * episodes, 1) / np.max(setting.table['env_steps'])


def _correlates(
  text: str,
  problems: Sequence[Problem],
  rules: Sequence[int],
  *,
  own: bool = False,
) -> Claim:
  """The claim that ranks of agreement and score correlate over rules."""
  rng = np.random.default_rng(0)
  points, resampled = [], []
  for problem in problems:
    agreement = (problem.own if own else problem.common)[rules]
    scores = problem.scores[rules]
    points.append(_rank_correlation(agreement.mean(1), scores.mean(1)))
    drawn = _draws(rng, scores)
    # Runs of their own have one seed for both; common runs are each of all.
    beside = drawn if own else _draws(rng, agreement[:1])
    resampled.append(
      _rank_correlation(_means(agreement, beside), _means(scores, drawn))
    )
  point, each = float(np.mean(points)), np.mean(resampled, 0)
  if np.isnan(point):
    return Claim(text, None, 'not known')
  low, high = np.quantile(each, [0.025, 0.975])
  listed = ', '.join(
    f'{problem.name}: {value:.2f}'
    for problem, value in zip(problems, points, strict=True)
  )
  return Claim(
    text,
    bool(low > 0),
    f'rank correlation {point:.2f} ({low:.2f} to {high:.2f}); {listed}',
  )


def _draws(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
  """Numbers of runs [rules, repetitions, runs], drawn with replacement."""
  rules, runs = values.shape
  return rng.integers(runs, size=(rules, _REPETITIONS, runs))


def _means(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
  """Means of the runs that are drawn, [rules, repetitions]."""
  draws = np.broadcast_to(draws, (len(values), *draws.shape[1:]))
  return np.take_along_axis(values[:, None], draws, -1).mean(-1)


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Spearman's over the first axis."""
  ranks = [stats.rankdata(values, axis=0) for values in (one, other)]
  gaps = [each - each.mean(0) for each in ranks]
  product = np.sum(gaps[0] * gaps[1], 0)
  result = product / np.sqrt(np.prod([np.sum(g**2, 0) for g in gaps], 0))
  unknown = np.isnan(one).any(0) | np.isnan(other).any(0)
  return np.where(unknown, np.nan, result)


def _of_choices(problems: Sequence[Problem]) -> list[Claim]:
  """Claims about the rule that agrees best, and the twins that choose."""
  best, agreeing = [], []
  for problem in problems:
    best.append(int(np.argmax(problem.scores.mean(1))))
    agreeing.append(int(np.argmax(problem.common.mean(1))))

  def scaled(each: Sequence[np.ndarray]) -> list[np.ndarray]:
    """In units of the range of the rules' mean scores."""
    return [
      runs / np.ptp(problem.scores.mean(1))
      for problem, runs in zip(problems, each, strict=True)
    ]

  def of_rules(indices: Sequence[int]) -> list[np.ndarray]:
    return [
      problem.scores[index]
      for problem, index in zip(problems, indices, strict=True)
    ]

  def listed(indices: Sequence[int]) -> str:
    return ', '.join(
      f'{problem.name}: {RULES[index]}'
      for problem, index in zip(problems, indices, strict=True)
    )

  followers = {
    choice: scaled([problem.followers[choice] for problem in problems])
    for choice in ('best', 'chance')
  }
  return [
    no_worse(
      f'the rule that agrees best ({listed(agreeing)}) is not shown to be '
      'worse than the best',
      scaled(of_rules(agreeing)),
      scaled(of_rules(best)),
    ),
    exceeds(
      'the twin that agrees best at each gradient step exceeds the best rule '
      f'({listed(best)})',
      followers['best'],
      scaled(of_rules(best)),
      candidates=len(RULES),
    ),
    exceeds(
      'it exceeds a twin that chooses by chance',
      followers['best'],
      followers['chance'],
    ),
  ]
