"""What a study was to show, written down before it was run, and whether it did.

  python -m experiments.criteria --study=twin_age --runs=runs/twin_age_cartpole

reads the metrics of a sweep and says of each claim whether it is met, MISSED,
or OPEN for want of numbers. --runs is the folder of the sweep, or a results
file such as experiments/results/twin_age_cartpole-curves.csv.

A claim that something exceeds something else is met if Welch's 95 % interval of
the difference of means over seeds, within each task, lies above 0. Of two equal
arms with 3 to 10 normal seeds the first is said to exceed the second in 1.9 to
2.3 % of cases (`python -m experiments.calibrate`); where seeds are skewed or
fail and the arms vary unequally, in up to 20 %. Where the best of several
arms is compared, Bonferroni's correction makes the interval wider. A claim that
nothing worse is shown is met unless such an interval shows it; the interval
tells by how much it may be worse nevertheless.

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
import itertools
import pathlib
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.config.declaring import (
  RunError,
  UsageError,
  group,
  one_of,
  option,
  path_option,
)
from experiments.config.executing import run
from siamrl.report import statistics
from siamrl.report.metrics import (
  RUN_COLUMN,
  Table,
  by_run,
  group_rows,
  read_metrics,
)
from siamrl.report.results import read_results
from siamrl.report.run_folder import RunFolder


class Claim(NamedTuple):
  """A claim and what became of it.

  Attributes:
    text: what was to be seen.
    met: whether it was; None where numbers are missing.
    seen: the numbers.
  """

  text: str
  met: bool | None
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
    read = [_read_cell(value) for value in values]
    point = dict.fromkeys(names) | dict(zip(present, read, strict=True))
    found.append(Setting(point, rows))
  return found


def _read_cell(value: Any) -> Any:
  """A cell's value; integers beside empty cells were read as floats."""
  if isinstance(value, float) and value.is_integer():
    return int(value)
  return _FLAGS.get(value, value)


def _ascending(settings: Sequence[Setting], name: str) -> list[Setting]:
  """The settings by their values of a column; raises ValueError without one."""
  if any(setting.point[name] is None for setting in settings):
    raise ValueError(f'--{name} must be swept and mean something to every run')
  return sorted(settings, key=lambda setting: setting.point[name])


def _exceeds(
  text: str,
  more: Sequence[np.ndarray],
  less: Sequence[np.ndarray],
  *,
  candidates: int = 1,
) -> Claim:
  """The claim that runs exceed others on average.

  Args:
    text: the claim.
    more: [tasks][runs].
    less: [tasks][runs], of other runs.
    candidates: how many arms `more` was chosen from for being the best.
  """
  point, low, high = statistics.difference(
    np.stack(more, 1),
    np.stack(less, 1),
    statistics.mean,
    level=1 - 0.05 / candidates,
  )
  return _above_zero(text, point, low, high)


def _exceeds_in_each_run(
  text: str, more: np.ndarray, less: np.ndarray
) -> Claim:
  """The claim that one measure of runs [runs] exceeds another of the same."""
  return _above_zero(text, *statistics.over_runs(more - less))


def _above_zero(text: str, point: Any, low: Any, high: Any) -> Claim:
  if np.isnan(low):
    return Claim(text, None, 'not known')
  return Claim(
    text, bool(low > 0), f'{point:.3g} more ({low:.3g} to {high:.3g})'
  )


def _no_worse(
  text: str, these: Sequence[np.ndarray], others: Sequence[np.ndarray]
) -> Claim:
  """The claim that runs [tasks][runs] are not shown to fall below others."""
  worse = _exceeds(text, others, these)
  met = None if worse.met is None else not worse.met
  return Claim(text, met, f'without, {worse.seen}')


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
  best = max(everything, key=lambda s: np.mean(s.height('train_return')))
  named = {k: v for k, v in best.point.items() if v is not None}
  oldest, frozen = scores[0][-1], rules['frozen'][0].height('train_return')
  means = [[np.mean(runs) for runs in rule] for rule in scores]
  ranks = float(stats.spearmanr(*means).statistic)
  period = hard[-1].point['target_period']
  return [
    _exceeds(
      f'the best setting ({named}) exceeds hard with period {period}',
      [best.height('train_return')],
      [oldest],
      candidates=len(everything) - 1,
    ),
    _exceeds(f'hard with period {period} exceeds frozen', [oldest], [frozen]),
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
    largest = np.fmax.reduce(setting.values('panel/q_max_abs'), 1)
    return np.where(np.isnan(largest), np.nan, largest > _BOUND)

  def bias(setting: Setting) -> np.ndarray:
    values = setting.values('panel/overestimation')
    return _known_mean(values[:, values.shape[1] // 2 :])

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
    *(
      _no_worse(
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
    [runs for norm in (False, True) for runs in of(rule, norm)]
    for rule in ('iterated_heads', 'self')
  )
  return [
    _exceeds(
      'the gap to no twin is wider without layer normalisation than with it '
      f'({np.mean(gaps[False]):.3g} against {np.mean(gaps[True]):.3g})',
      gaps[False],
      gaps[True],
    ),
    _no_worse(
      "the last layer's twin alone is not shown to be worse than none "
      f'({np.mean(heads):.3g} against {np.mean(free):.3g})',
      heads,
      free,
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
  met = bool(np.all((low < values) & (values < high)))
  return Claim(text, None if np.isnan(values).any() else met, seen)


def _known_mean(values: np.ndarray) -> np.ndarray:
  """Means over time of what is known, [runs]; NaN where nothing is."""
  known = np.isfinite(values)
  with np.errstate(invalid='ignore'):
    return np.where(known, values, 0).sum(1) / known.sum(1)


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
      _exceeds_in_each_run(
        f'{judge}: the default exceeds pixels',
        _last(named['self'], column),
        _last(named['self'], f'{judge}_pixels'),
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
    errors = np.abs(setting.values('panel/overestimation'))
    return np.fmax.reduce(errors, 1)

  ends = np.array([np.mean(_last(found[True, tau], 'q_tm1')) for tau in rates])
  spread = float((ends.max() - ends.min()) / np.abs(ends).mean())
  errors = {tau: farthest(found[False, tau]) for tau in rates}
  listed = ', '.join(
    f'tau = {tau:g}: {np.mean(runs):.3g}' for tau, runs in errors.items()
  )
  twice = _exceeds(
    'values of a learnt policy are at least twice as far from returns '
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
    _exceeds(
      'tau = 0.005 learns a better policy than no twin',
      [found[False, 0.005].height('train_return')],
      [found[False, 1.0].height('train_return')],
    ),
  ]


def spr_minatar(table: Table) -> list[Claim]:
  """Of a sweep over twins of the latents, on a game with noise.

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
    claims.append(
      _no_worse(
        f'predicting latents with {name} is not shown to cost return',
        [arm.height('train_return')],
        [plain.height('train_return')],
      )
    )
  return claims


class Study(NamedTuple):
  """A study.

  Attributes:
    judge: table -> claims.
    columns: of the table, the measures that claims are about.
  """

  judge: Callable[[Table], list[Claim]]
  columns: tuple[str, ...]


STUDIES = {
  'twin_age': Study(twin_age, ('train_return',)),
  'soft_divergence': Study(
    soft_divergence, ('panel/q_max_abs', 'panel/overestimation')
  ),
  'twin_minatar': Study(twin_minatar, ('train_return',)),
  'target_free_gap': Study(target_free_gap, ('train_return',)),
  'siamese_collapse': Study(siamese_collapse, ('loss', 'normalised_std')),
  'siamese_accuracy': Study(
    siamese_accuracy,
    ('knn_encoder', 'knn_pixels', 'probe_encoder', 'probe_pixels'),
  ),
  'twin_rate': Study(
    twin_rate, ('q_tm1', 'panel/overestimation', 'train_return')
  ),
  'spr_minatar': Study(spr_minatar, ('spr_std', 'train_return')),
}


@dataclasses.dataclass(frozen=True)
class CriteriaConfig:
  """The options."""

  _study: Any = group('The study')
  study: str = option('twin_age', 'Which one', one_of(STUDIES))
  runs: str = path_option(
    '', 'Folder of its runs, or a results file with a row for each run and time'
  )


def main(config: CriteriaConfig) -> None:
  """Says of each claim whether it is met."""
  if not config.runs:
    raise UsageError(
      '--runs must be the folder of a sweep, or a results file of its runs'
    )
  notes: list[str] = []
  try:
    table = _read(pathlib.Path(config.runs), notes)
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


def _read(path: pathlib.Path, notes: list[str]) -> Table:
  """The rows of runs; notes what is missing of those that are going on."""
  if not path.is_dir():
    table = read_results(path).table
  else:
    folder = RunFolder(path)
    table = read_metrics(folder.metrics)
    rows, all_rows = len(next(iter(table.values()), ())), folder.rows()
    if all_rows is not None and rows < all_rows:
      notes.append(f'not finished: {rows:,} of {all_rows:,} rows')
  if RUN_COLUMN not in table:
    raise ValueError(
      f'no column {RUN_COLUMN!r}: a row must be of one run, as in '
      'OUTPUT-curves.csv of experiments.plot'
    )
  return table


def _judge(study: Study, table: Table, notes: list[str]) -> list[Claim]:
  """The claims; those about measures that the table lacks are open."""
  missing = [name for name in study.columns if name not in table]
  if len(missing) == len(study.columns):
    raise ValueError(f'no column {", ".join(missing)}')
  if missing:
    notes.append(f'no column {", ".join(missing)}: claims about it are open')
  unknown = np.full(len(table[RUN_COLUMN]), np.nan)
  return study.judge(table | dict.fromkeys(missing, unknown))


if __name__ == '__main__':
  run(CriteriaConfig, __doc__, main)
