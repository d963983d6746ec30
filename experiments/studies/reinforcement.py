"""Claims of studies of reinforcement learning."""

from collections.abc import Callable
import itertools

import numpy as np
from scipy import stats

from experiments.studies.claims import (
  Claim,
  Setting,
  ascending,
  exceeds,
  known_mean,
  last,
  no_worse,
  settings_of,
)
from siamrl.report.metrics import Table


def twin_age(table: Table) -> list[Claim]:
  """Claims about hard, soft and frozen rules, their periods and rates.

  Raises:
    ValueError: the table lacks a column or a rule.
  """
  settings = settings_of(table, 'target_update', 'target_period', 'tau')
  rules = {
    name: [s for s in settings if s.point['target_update'] == name]
    for name in ('hard', 'soft', 'frozen')
  }
  for name, found in rules.items():
    if not found:
      raise ValueError(f'no run with target_update={name}')
  hard = ascending(rules['hard'], 'target_period')
  soft = ascending(rules['soft'], 'tau')[::-1]
  scores = [[s.height('train_return') for s in rule] for rule in (hard, soft)]
  everything = hard + soft
  best = max(everything, key=lambda s: np.mean(s.height('train_return')))
  named = {k: v for k, v in best.point.items() if v is not None}
  oldest, frozen = scores[0][-1], rules['frozen'][0].height('train_return')
  means = [[np.mean(runs) for runs in rule] for rule in scores]
  ranks = float(stats.spearmanr(*means).statistic)
  period = hard[-1].point['target_period']
  return [
    exceeds(
      f'the best setting ({named}) exceeds hard with period {period}',
      [best.height('train_return')],
      [oldest],
      candidates=len(everything) - 1,
    ),
    exceeds(f'hard with period {period} exceeds frozen', [oldest], [frozen]),
    Claim(
      'rank correlation of hard and soft over ages is at least 0.7',
      ranks >= 0.7,
      f'{ranks:.2f} over {len(hard)} ages',
    ),
  ]


# The four ways to bootstrap: (rule, form).
_WAYS = {
  'Q-learning': ('self', 'max'),
  'inverse Double': ('hard', 'inverse_double'),
  'target Q-learning': ('hard', 'max'),
  'Double': ('hard', 'double'),
}
_BOUND = 100.0  # of values where each step pays 1 and the discount is 0.99


def soft_divergence(table: Table) -> list[Claim]:
  """Claims about rules, forms, lengths of returns and widths on CartPole.

  A run has diverged softly if its largest |value| was ever above 100.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found = {
    tuple(setting.point.values()): setting
    for setting in settings_of(
      table, 'target_update', 'target_form', 'n_step', 'hidden_sizes'
    )
  }
  tasks = sorted({(n, width) for _, _, n, width in found})

  def of(way: str, measure: Callable[[Setting], np.ndarray], tasks=tasks):
    try:
      return [measure(found[(*_WAYS[way], *task)]) for task in tasks]
    except KeyError as error:
      raise ValueError(f'no run with {error.args[0]}') from error

  def diverged(setting: Setting) -> np.ndarray:
    largest = np.fmax.reduce(setting.values('panel/q_max_abs'), 1)
    return np.where(np.isnan(largest), np.nan, largest > _BOUND)

  def bias(setting: Setting) -> np.ndarray:
    values = setting.values('panel/overestimation')
    return known_mean(values[:, values.shape[1] // 2 :])

  rates = {way: float(np.mean(of(way, diverged))) for way in _WAYS}
  biases = {way: float(np.mean(of(way, bias))) for way in _WAYS}
  by_n = {
    n: [
      runs
      for way in _WAYS
      for runs in of(way, diverged, [t for t in tasks if t[0] == n])
    ]
    for n in sorted({n for n, _ in tasks})
  }
  listed = ', '.join(f'{way} {rate:.0%}' for way, rate in rates.items())
  biased = ', '.join(f'{way} {value:.3g}' for way, value in biases.items())
  plain, target, double = 'Q-learning', 'target Q-learning', 'Double'
  return [
    exceeds(
      f'{plain} diverges in more runs than {target} ({listed})',
      of(plain, diverged),
      of(target, diverged),
    ),
    exceeds(
      f'{plain} diverges in more runs than {double}',
      of(plain, diverged),
      of(double, diverged),
    ),
    exceeds(
      f'{target} overestimates more than {double} (bias: {biased})',
      of(target, bias),
      of(double, bias),
    ),
    *(
      no_worse(
        f'returns of {longer} steps are not shown to diverge more often than '
        f'those of {shorter}',
        by_n[shorter],
        by_n[longer],
      )._replace(
        seen=', '.join(
          f'n = {n}: {np.mean(by_n[n]):.0%}' for n in (shorter, longer)
        )
      )
      for shorter, longer in itertools.pairwise(by_n)
    ),
  ]


def twin_minatar(table: Table) -> list[Claim]:
  """Claims about the period of a copy, 1 and others, on several games.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found = {
    tuple(s.point.values()): s.height('train_return')
    for s in ascending(
      settings_of(table, 'game', 'target_period'), 'target_period'
    )
  }
  claims = []
  for game in dict.fromkeys(game for game, _ in found):
    periods = [period for of, period in found if of == game]
    if len(periods) < 2 or periods[0] != 1:
      raise ValueError(f'{game} needs --target_period=1 and another one')
    without, *twins = (found[game, period] for period in periods)
    claims += [
      exceeds(
        f'{game}: a copy every {period} gradient steps exceeds none '
        f'({np.mean(twin):.3g} against {np.mean(without):.3g})',
        [twin],
        [without],
      )
      for period, twin in zip(periods[1:], twins, strict=True)
    ]
  return claims


def target_free_gap(table: Table) -> list[Claim]:
  """Claims about rules and layer normalization on several games.

  Scores are mean heights of training curves, in units of the score with a twin
  and without normalization, game by game.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found = {
    tuple(s.point.values()): s.height('train_return')
    for s in settings_of(table, 'game', 'target_update', 'layer_norm')
  }
  games = list(dict.fromkeys(game for game, _, _ in found))

  def of(rule: str, norm: bool) -> list[np.ndarray]:
    try:
      return [
        found[(game, rule, norm)] / np.mean(found[(game, 'hard', False)])
        for game in games
      ]
    except KeyError as error:
      raise ValueError(f'no run with {error.args[0]}') from error

  gaps = {
    norm: [
      with_twin - without
      for with_twin, without in zip(
        of('hard', norm), of('self', norm), strict=True
      )
    ]
    for norm in (False, True)
  }
  heads, free = (
    [runs for norm in (False, True) for runs in of(rule, norm)]
    for rule in ('iterated_heads', 'self')
  )
  return [
    exceeds(
      'the gap to no twin is wider without layer normalization than with it '
      f'({np.mean(gaps[False]):.3g} against {np.mean(gaps[True]):.3g})',
      gaps[False],
      gaps[True],
    ),
    no_worse(
      "the last layer's twin alone is not shown to be worse than none "
      f'({np.mean(heads):.3g} against {np.mean(free):.3g})',
      heads,
      free,
    ),
  ]


def twin_rate(table: Table) -> list[Claim]:
  """Claims about rates, with a fixed and with a learned policy.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  settings = ascending(settings_of(table, 'fixed_policy', 'tau'), 'tau')[::-1]
  found = {tuple(setting.point.values()): setting for setting in settings}
  rates = list(dict.fromkeys(tau for _, tau in found))
  for fixed in (False, True):
    for tau in (1.0, 0.01, 0.005):
      if (fixed, tau) not in found:
        raise ValueError(f'no run with fixed_policy={fixed}, tau={tau}')

  def farthest(setting: Setting) -> np.ndarray:
    """Largest |value - return| of each run's evaluations."""
    errors = np.abs(setting.values('panel/overestimation'))
    return np.fmax.reduce(errors, 1)

  ends = np.array([np.mean(last(found[True, tau], 'q_tm1')) for tau in rates])
  spread = float((ends.max() - ends.min()) / np.abs(ends).mean())
  errors = {tau: farthest(found[False, tau]) for tau in rates}
  listed = ', '.join(
    f'tau = {tau:g}: {np.mean(runs):.3g}' for tau, runs in errors.items()
  )
  twice = exceeds(
    'values of a learned policy are at least twice as far from returns '
    'without a twin as with tau = 0.01',
    [errors[1.0]],
    [2 * errors[0.01]],
  )
  return [
    Claim(
      'with a fixed policy values end within 20 % whatever the rate',
      None if np.isnan(spread) else spread <= 0.2,
      ', '.join(
        f'tau = {tau:g}: {end:.4g}'
        for tau, end in zip(rates, ends, strict=True)
      ),
    ),
    twice._replace(seen=f'{listed}; {twice.seen} than twice'),
    exceeds(
      'tau = 0.005 learns a better policy than no twin',
      [found[False, 0.005].height('train_return')],
      [found[False, 1.0].height('train_return')],
    ),
  ]


_HELD = -200.0  # a return of the pendulum


def crossq_pendulum(table: Table) -> list[Claim]:
  """The claim that CrossQ learns faster than SAC with its twin.

  A run has learned at the first evaluation from which on no return is below
  -200, as far as all runs go, and one interval after the last if there is none.

  Raises:
    ValueError: the table lacks a column or an agent, or agents were evaluated
      at different times.
  """
  found = {s.point['agent']: s for s in settings_of(table, 'agent')}
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


def spr_minatar(table: Table) -> list[Claim]:
  """Claims about twins of the latents, on a game with noise.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found = {
    tuple(setting.point.values()): setting
    for setting in settings_of(table, 'spr_steps', 'target_paths', 'spr_target')
  }
  arms = {
    'a stop-gradient': ('q:hard+latent:self', 'twin'),
    'a slow twin': ('q:hard+latent:soft', 'twin'),
    'no stop-gradient': (None, 'online_gradient'),
  }

  def of(arm: str | None) -> Setting:
    for (steps, *rest), setting in found.items():
      if not steps if arm is None else steps and tuple(rest) == arms[arm]:
        return setting
    raise ValueError(f'no run with {arm or "spr_steps=0"}')

  free, plain = of('no stop-gradient'), of(None)
  claims = []
  for name in ('a stop-gradient', 'a slow twin'):
    arm = of(name)
    claims.append(
      exceeds(
        f'{name} keeps a larger normalized std than none '
        f'({np.mean(last(arm, "spr_std")):.3g} against '
        f'{np.mean(last(free, "spr_std")):.3g})',
        [last(arm, 'spr_std')],
        [last(free, 'spr_std')],
      )
    )
    claims.append(
      no_worse(
        f'predicting latents with {name} is not shown to cost return',
        [arm.height('train_return')],
        [plain.height('train_return')],
      )
    )
  return claims
