"""What a study was to show, written down before it was run, and whether it did.

  python -m experiments.criteria --study=twin_age --runs=runs/twin_age_cartpole

reads the metrics of a sweep and says of each claim whether it is met. A claim
that something exceeds something else is met if the 95 % interval of the
difference of means (bootstrapped over seeds, within each task) lies above 0.

Of a sweep that is not finished it judges what there is, and says so. Studies,
each with flag files that begin with its name (siamese_accuracy has
siamese_frames, too):
  twin_age: the twin's period against the soft rate of the same mean age. The
    best setting learns better than a period of 4,096 gradient steps, and that
    better than a twin that is frozen; hard and soft rules rank ages alike.
  soft_divergence: Q-learning without a twin diverges softly (values above what
    rewards allow) in more runs than with one, and than Double Q-learning; with
    Double Q-learning values are overestimated less; returns of 3 steps diverge
    no more often than of 1. After van Hasselt et al. (2018).
  twin_minatar: the MinAtar paper's DQN learns more with its twin than without,
    in each game. After Mnih et al. (2015), Extended Data Table 3.
  target_free_gap: what a twin adds to the return is more without layer
    normalisation than with it; with the last layer's twin alone it is no worse
    than without any. After Gallici et al. (2025) and Vincent et al. (2025).
  siamese_collapse: what SimSiam's figure 2 and BYOL's table 5a show, in small.
    Without normalisation of the output, a network without a stop-gradient or
    without a predictor collapses and one with both does not, nor does one whose
    predictor is fixed; a frozen twin is met less well than a slow one, and that
    less well than a faster one. After Chen & He (2021) and Grill et al. (2020).
  siamese_accuracy: where pixels say little, a slow twin makes better features
    than a random one, and those of the default are better than pixels.
  twin_rate: critics of a fixed policy end at the same values whatever the rate
    of their twin; with a policy that is learnt, values without a twin are
    further from the truth, and the policy is worse. After Fujimoto et al.
    (2018), figure 3.
  spr_minatar: an agent that predicts its own latents keeps them apart if what
    it predicts comes from a twin, be it itself behind a stop-gradient or a slow
    one; without a stop-gradient they collapse. It costs no return. After
    Schwarzer et al. (2021).

Exit codes: 0 whether or not claims are met, 2 for flags that cannot be, 1 for
anything else in the way.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from experiments.flags import (
  RunError,
  UsageError,
  group,
  one_of,
  option,
  path_option,
  run,
)
from siamrl.report import statistics
from siamrl.report.metrics import Table, by_run, group_rows, read_metrics
from siamrl.report.run_folder import RunFolder


class Claim(NamedTuple):
  """A claim and what became of it.

  Attributes:
    text: what was to be seen.
    met: whether it was.
    seen: the numbers.
  """

  text: str
  met: bool
  seen: str


class Setting(NamedTuple):
  """The runs of one setting.

  Attributes:
    point: its swept values.
    table: their rows.
  """

  point: dict[str, Any]
  table: Table

  def height(self, column: str) -> np.ndarray:
    """Mean height of each run's curve, [runs]."""
    x, y = by_run(self.table, 'env_steps', column, 'seed')
    return statistics.area_under_curve(x, y)

  def values(self, column: str) -> np.ndarray:
    """[runs, T]."""
    return by_run(self.table, 'env_steps', column, 'seed')[1]


# As metrics.csv has them.
_FLAGS = {'true': True, 'false': False}


def _settings(table: Table, *names: str) -> list[Setting]:
  """The settings that differ in some columns; those that are not swept count
  as None."""
  present = [name for name in names if name in table]
  found = []
  for values, rows in group_rows(table, present).items():
    read = [_FLAGS.get(value, value) for value in values]
    point = dict.fromkeys(names) | dict(zip(present, read, strict=True))
    found.append(Setting(point, rows))
  return found


def _ascending(settings: Sequence[Setting], name: str) -> list[Setting]:
  """The settings by their values of a column; raises ValueError without one."""
  if any(setting.point[name] is None for setting in settings):
    raise ValueError(f'--{name} must be swept and mean something to every run')
  return sorted(settings, key=lambda setting: setting.point[name])


def _exceeds(
  text: str, more: Sequence[np.ndarray], less: Sequence[np.ndarray]
) -> Claim:
  """The claim that runs [tasks][runs] exceed others on average."""
  point, low, high = statistics.difference(
    np.stack(more, 1), np.stack(less, 1), statistics.mean
  )
  seen = f'{point:.3g} more ({low:.3g} to {high:.3g})'
  return Claim(text, bool(low > 0), seen)


def twin_age(table: Table) -> list[Claim]:
  """Of a sweep over hard, soft and frozen rules, with their periods and rates.

  Raises:
    ValueError: it lacks a column or a rule.
  """
  settings = _settings(table, 'target_update', 'target_period', 'tau')
  rules = {
    name: [s for s in settings if s.point['target_update'] == name]
    for name in ('hard', 'soft', 'frozen')
  }
  for name, found in rules.items():
    if not found:
      raise ValueError(f'no run with target_update={name}')
  hard = _ascending(rules['hard'], 'target_period')
  soft = _ascending(rules['soft'], 'tau')[::-1]
  scores = [[s.height('train_return') for s in rule] for rule in (hard, soft)]
  everything = hard + soft
  best = max(everything, key=lambda s: statistics.iqm(s.height('train_return')))
  named = {k: v for k, v in best.point.items() if v is not None}
  oldest, frozen = scores[0][-1], rules['frozen'][0].height('train_return')
  ranks = _spearman(*([statistics.iqm(run) for run in rule] for rule in scores))
  period = hard[-1].point['target_period']
  return [
    _exceeds(
      f'the best setting ({named}) exceeds hard with period {period}',
      [best.height('train_return')],
      [oldest],
    ),
    _exceeds(f'hard with period {period} exceeds frozen', [oldest], [frozen]),
    Claim(
      'rank correlation of hard and soft over ages is at least 0.7',
      ranks >= 0.7,
      f'{ranks:.2f} over {len(hard)} ages',
    ),
  ]


def _spearman(one: Any, other: Any) -> float:
  """Rank correlation of two lists of different numbers."""
  ranks = np.stack([np.argsort(np.argsort(x)) for x in (one, other)])
  return float(np.asarray(np.corrcoef(ranks))[0, 1])


# The four ways to bootstrap: (rule, form).
_WAYS = {
  'Q-learning': ('self', 'max'),
  'inverse Double': ('hard', 'inverse_double'),
  'target Q-learning': ('hard', 'max'),
  'Double': ('hard', 'double'),
}
_BOUND = 100.0  # of values where each step pays 1 and the discount is 0.99


def soft_divergence(table: Table) -> list[Claim]:
  """Of a sweep over rules, forms, lengths of returns and widths on CartPole.

  A run has diverged softly if its largest |value| was above 100 at any of its
  measurements.

  Raises:
    ValueError: it lacks a column or a setting.
  """
  found = {
    tuple(setting.point.values()): setting
    for setting in _settings(
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
    largest = np.nanmax(setting.values('panel/q_max_abs'), 1)
    return (largest > _BOUND).astype(float)

  def bias(setting: Setting) -> np.ndarray:
    values = setting.values('panel/overestimation')
    return np.nanmean(values[:, values.shape[1] // 2 :], 1)

  rates = {way: float(np.mean(of(way, diverged))) for way in _WAYS}
  biases = {way: float(np.nanmean(of(way, bias))) for way in _WAYS}
  by_n = {
    n: np.mean(
      [of(way, diverged, [t for t in tasks if t[0] == n]) for way in _WAYS]
    )
    for n in sorted({n for n, _ in tasks})
  }
  listed = ', '.join(f'{way} {rate:.0%}' for way, rate in rates.items())
  biased = ', '.join(f'{way} {value:.3g}' for way, value in biases.items())
  plain, target, double = 'Q-learning', 'target Q-learning', 'Double'
  return [
    _exceeds(
      f'{plain} diverges in more runs than {target} ({listed})',
      of(plain, diverged),
      of(target, diverged),
    ),
    _exceeds(
      f'{plain} diverges in more runs than {double}',
      of(plain, diverged),
      of(double, diverged),
    ),
    _exceeds(
      f'{target} overestimates more than {double} (bias: {biased})',
      of(target, bias),
      of(double, bias),
    ),
    Claim(
      'longer returns diverge no more often',
      bool(np.all(np.diff(list(by_n.values())) <= 0)),
      ', '.join(f'n = {n}: {rate:.0%}' for n, rate in by_n.items()),
    ),
  ]


def twin_minatar(table: Table) -> list[Claim]:
  """Of a sweep over the period of a copy, 1 and others, and games.

  Raises:
    ValueError: it lacks a column or a setting.
  """
  found = {
    tuple(s.point.values()): s.height('train_return')
    for s in _ascending(
      _settings(table, 'game', 'target_period'), 'target_period'
    )
  }
  claims = []
  for game in dict.fromkeys(game for game, _ in found):
    periods = [period for of, period in found if of == game]
    if len(periods) < 2 or periods[0] != 1:
      raise ValueError(f'{game} needs --target_period=1 and another one')
    without, *twins = (found[game, period] for period in periods)
    claims += [
      _exceeds(
        f'{game}: a copy every {period} gradient steps exceeds none '
        f'({np.mean(twin):.3g} against {np.mean(without):.3g})',
        [twin],
        [without],
      )
      for period, twin in zip(periods[1:], twins, strict=True)
    ]
  return claims


def target_free_gap(table: Table) -> list[Claim]:
  """Of a sweep over rules, layer normalisation and games.

  Scores are mean heights of training curves, in units of the score with a twin
  and without normalisation, game by game.

  Raises:
    ValueError: it lacks a column or a setting.
  """
  found = {
    tuple(s.point.values()): s.height('train_return')
    for s in _settings(table, 'game', 'target_update', 'layer_norm')
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
    np.mean([of(rule, norm) for norm in (False, True)])
    for rule in ('iterated_heads', 'self')
  )
  return [
    _exceeds(
      'the gap to no twin is wider without layer normalisation than with it '
      f'({np.mean(gaps[False]):.3g} against {np.mean(gaps[True]):.3g})',
      gaps[False],
      gaps[True],
    ),
    Claim(
      "the last layer's twin alone is no worse than none",
      bool(heads >= free),
      f'{heads:.3g} against {free:.3g}',
    ),
  ]


def _last(setting: Setting, column: str) -> np.ndarray:
  """The last value of each run, [runs]."""
  x, y = by_run(setting.table, _clock(setting.table), column, 'seed')
  return y[:, np.argmax(x)]


def _clock(table: Table) -> str:
  return 'env_steps' if 'env_steps' in table else 'gradient_steps'


def _within(text: str, values: np.ndarray, low: float, high: float) -> Claim:
  """The claim that every run's value lies between two."""
  seen = f'{values.min():.3g} to {values.max():.3g} over {len(values)} seeds'
  return Claim(text, bool(np.all((low < values) & (values < high))), seen)


def siamese_collapse(table: Table) -> list[Claim]:
  """Of a sweep over rules, predictors and normalisation of the output.

  Raises:
    ValueError: it lacks a column or a setting.
  """
  found = {
    tuple(s.point.values()): s
    for s in _settings(
      table, 'target_update', 'tau', 'predictor', 'output_norm'
    )
  }

  def of(
    rule: str, tau: float | None = None, predictor: str = 'mlp'
  ) -> dict[str, np.ndarray]:
    key = (rule, tau, predictor, False)
    if key not in found:
      raise ValueError(f'no run with {key}')
    return {
      name: _last(found[key], name) for name in ('loss', 'normalised_std')
    }

  default, free = of('self'), of('residual')
  without, fixed = of('self', None, 'none'), of('self', None, 'fixed')
  frozen, slow, faster = of('frozen'), of('soft', 0.001), of('soft', 0.01)
  claims = [
    _within(
      'the default keeps a normalised std above 0.5',
      default['normalised_std'],
      0.5,
      np.inf,
    )
  ]
  for name, arm in (('stop-gradient', free), ('predictor', without)):
    claims += [
      _within(
        f'without {name} the loss falls below -0.98',
        arm['loss'],
        -np.inf,
        -0.98,
      ),
      _within(
        'and the normalised std below 0.15', arm['normalised_std'], -1, 0.15
      ),
    ]
  return [
    *claims,
    _within(
      'with a fixed predictor the std stays above 0.5',
      fixed['normalised_std'],
      0.5,
      np.inf,
    ),
    *(
      _exceeds(text, [more['loss']], [less['loss']])
      for text, more, less in (
        ('and its loss above that of the default', fixed, default),
        ("a frozen twin's loss is above that of retention 0.999", frozen, slow),
        ('and that above the loss of retention 0.99', slow, faster),
      )
    ),
  ]


def siamese_accuracy(table: Table) -> list[Claim]:
  """Of a sweep over rules of the twin, on images with labels.

  Raises:
    ValueError: it lacks a column or a setting.
  """
  settings = _settings(table, 'target_update', 'tau')
  named = {setting.point['target_update']: setting for setting in settings}
  for rule in ('self', 'frozen'):
    if rule not in named:
      raise ValueError(f'no run with target_update={rule}')
  # One rate, named before: the best of several would have chance on its side.
  slow = next((s for s in settings if s.point.get('tau') == 0.01), None)
  if slow is None:
    raise ValueError('no run with tau=0.01')
  claims = []
  for judge in ('knn', 'probe'):
    column = f'{judge}_encoder'
    claims += [
      _exceeds(
        f'{judge}: a retention of 0.99 exceeds a frozen twin',
        [_last(slow, column)],
        [_last(named['frozen'], column)],
      ),
      _exceeds(
        f'{judge}: the default exceeds pixels',
        [_last(named['self'], column)],
        [_last(named['self'], f'{judge}_pixels')],
      ),
    ]
  return claims


def twin_rate(table: Table) -> list[Claim]:
  """Of a sweep over rates, with a policy that is fixed and one that is learnt.

  Raises:
    ValueError: it lacks a column or a setting.
  """
  settings = _ascending(_settings(table, 'fixed_policy', 'tau'), 'tau')[::-1]
  found = {tuple(setting.point.values()): setting for setting in settings}
  rates = list(dict.fromkeys(tau for _, tau in found))
  for fixed in (False, True):
    for tau in (1.0, 0.01, 0.005):
      if (fixed, tau) not in found:
        raise ValueError(f'no run with fixed_policy={fixed}, tau={tau}')

  def farthest(setting: Setting) -> np.ndarray:
    """Largest |value - return| of each run's evaluations."""
    return np.nanmax(np.abs(setting.values('panel/overestimation')), 1)

  ends = np.array([np.mean(_last(found[True, tau], 'q_tm1')) for tau in rates])
  spread = float((ends.max() - ends.min()) / np.abs(ends).mean())
  errors = {tau: float(np.mean(farthest(found[False, tau]))) for tau in rates}
  listed = ', '.join(f'tau = {tau:g}: {e:.3g}' for tau, e in errors.items())
  return [
    Claim(
      'with a fixed policy values end within 20 % whatever the rate',
      spread <= 0.2,
      ', '.join(
        f'tau = {tau:g}: {end:.4g}'
        for tau, end in zip(rates, ends, strict=True)
      ),
    ),
    Claim(
      'values of a learnt policy are at least twice as far from returns '
      'without a twin as with tau = 0.01',
      errors[1.0] >= 2 * errors[0.01],
      listed,
    ),
    _exceeds(
      'tau = 0.005 learns a better policy than no twin',
      [found[False, 0.005].height('train_return')],
      [found[False, 1.0].height('train_return')],
    ),
  ]


def spr_minatar(table: Table) -> list[Claim]:
  """Of a sweep over twins of the latents, on a game with noise.

  That one arm costs no return is met unless the 95 % interval of what it lacks
  lies above 0.

  Raises:
    ValueError: it lacks a column or a setting.
  """
  found = {
    tuple(setting.point.values()): setting
    for setting in _settings(table, 'spr_steps', 'target_paths', 'spr_target')
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
      _exceeds(
        f'{name} keeps a larger normalised std than none '
        f'({np.mean(_last(arm, "spr_std")):.3g} against '
        f'{np.mean(_last(free, "spr_std")):.3g})',
        [_last(arm, 'spr_std')],
        [_last(free, 'spr_std')],
      )
    )
    better = _exceeds(
      '', [plain.height('train_return')], [arm.height('train_return')]
    )
    claims.append(
      Claim(
        f'predicting latents with {name} costs no return',
        not better.met,
        f'without any, {better.seen}',
      )
    )
  return claims


STUDIES: dict[str, Callable[[Table], list[Claim]]] = {
  'twin_age': twin_age,
  'soft_divergence': soft_divergence,
  'twin_minatar': twin_minatar,
  'target_free_gap': target_free_gap,
  'siamese_collapse': siamese_collapse,
  'siamese_accuracy': siamese_accuracy,
  'twin_rate': twin_rate,
  'spr_minatar': spr_minatar,
}


@dataclasses.dataclass(frozen=True)
class CriteriaConfig:
  """The options."""

  _study: Any = group('The study')
  study: str = option('twin_age', 'Which one', one_of(STUDIES))
  runs: str = path_option('', 'Folder of its runs.')


def main(config: CriteriaConfig) -> None:
  """Says of each claim whether it is met."""
  if not config.runs:
    raise UsageError('--runs must be the folder of a sweep')
  folder = RunFolder(config.runs)
  unfinished = ''
  try:
    table = read_metrics(folder.metrics)
    rows, all_rows = len(next(iter(table.values()), ())), folder.rows()
    if all_rows is not None and rows < all_rows:
      unfinished = f'not finished: {rows:,} of {all_rows:,} rows'
    claims = STUDIES[config.study](table)
  except FileNotFoundError as error:
    raise RunError(f'--runs={config.runs} holds no metrics.csv') from error
  except (ValueError, KeyError) as error:
    text = f'no sweep of --study={config.study}: {error}'
    raise RunError(
      f'--runs={config.runs} is {"; ".join(filter(None, [unfinished, text]))}'
    ) from error
  if unfinished:
    print(unfinished)
  for claim in claims:
    print(f'{"met" if claim.met else "MISSED"}: {claim.text}: {claim.seen}')


if __name__ == '__main__':
  run(CriteriaConfig, __doc__, main)
