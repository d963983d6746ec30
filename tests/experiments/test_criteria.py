"""The criteria of studies, on tables whose outcome is made."""

import itertools
import pathlib

import pytest

from experiments import (
  classic,
  compiled,
  control,
  criteria,
  flags,
  minatar,
  siamese,
)
from siamrl.report.metrics import MetricsWriter, read_metrics

FLAGFILES = pathlib.Path(__file__).parents[2] / 'experiments' / 'flagfiles'


def _table(tmp_path, axes, columns, seeds=5, times=4):
  """A sweep's rows: columns are functions of the point, the seed and time."""
  path = tmp_path / 'metrics.csv'
  writer = MetricsWriter(path, None, step_column='env_steps')
  for values in itertools.product(*axes.values()):
    point = dict(zip(axes, values, strict=True))
    for seed in range(seeds):
      for t in range(1, times + 1):
        row = {name: f(point, seed, t) for name, f in columns.items()}
        writer.write_rows([point | {'seed': seed, 'env_steps': 100 * t} | row])
  writer.close()
  return read_metrics(path)


def _verdicts(claims):
  return [claim.met for claim in claims]


def _ages(tmp_path, height):
  """A sweep over rules: what each learns is a function of its age."""
  path = tmp_path / 'metrics.csv'
  writer = MetricsWriter(path, None, step_column='env_steps')
  points = [('hard', period, None, period) for period in (1, 16, 4096)]
  points += [('soft', None, 2 / (p + 1), p) for p in (1, 16, 4096)]
  points += [('frozen', None, None, 10**9)]
  for rule, period, tau, age in points:
    for seed in range(5):
      for t in (1, 2):
        writer.write_rows(
          [
            {
              'target_update': rule,
              'target_period': period,
              'tau': tau,
              'seed': seed,
              'env_steps': t,
              'train_return': height(rule, age) + 0.01 * seed,
            }
          ]
        )
  writer.close()
  return read_metrics(path)


def test_twin_age_met(tmp_path):
  table = _ages(tmp_path, lambda rule, age: {1: 5, 16: 9, 4096: 2}.get(age, 0))
  claims = criteria.twin_age(table)
  assert _verdicts(claims) == [True, True, True]
  assert "'target_period': 16" in claims[0].text
  assert claims[2].seen == '1.00 over 3 ages'


def test_twin_age_missed(tmp_path):
  # Nothing depends on the age, but the soft rule turns the order round.
  heights = {'hard': {1: 0.3, 16: 0.2, 4096: 0.1}, 'soft': {1: 0.1, 16: 0.2}}
  table = _ages(tmp_path, lambda rule, age: heights.get(rule, {}).get(age, 0.3))
  assert _verdicts(criteria.twin_age(table))[1:] == [False, False]


def test_twin_age_needs_all_its_rules(tmp_path):
  table = _ages(tmp_path, lambda rule, age: age)
  table = {k: v[table['target_update'] != 'frozen'] for k, v in table.items()}
  with pytest.raises(ValueError, match='no run with target_update=frozen'):
    criteria.twin_age(table)


DIVERGENCE = {
  'target_update': ['self', 'hard'],
  'target_form': ['max', 'double', 'inverse_double'],
  'n_step': [1, 3],
  'hidden_sizes': ['64-64', '[256]'],
}


@pytest.mark.parametrize('as_published', [True, False])
def test_soft_divergence(tmp_path, as_published):
  def largest(point, seed, t):
    free = point['target_update'] == 'self'
    if not as_published:
      return 101.0
    # Only for a moment, and with returns of one step.
    return 200.0 if free and t == 2 and point['n_step'] == 1 else 99.0

  def bias(point, seed, t):
    double = point['target_form'] == 'double'
    return (1.0 if double == as_published else 5.0) + 0.1 * seed

  table = _table(
    tmp_path,
    DIVERGENCE,
    {'panel/q_max_abs': largest, 'panel/overestimation': bias},
  )
  claims = criteria.soft_divergence(table)
  assert _verdicts(claims) == (
    [True] * 4 if as_published else [False, False, False, True]
  )
  if as_published:
    assert 'Q-learning 50%' in claims[0].text
    assert claims[3].seen == 'n = 1: 25%, n = 3: 0%'


def test_soft_divergence_needs_its_settings(tmp_path):
  axes = DIVERGENCE | {'target_form': ['max']}
  table = _table(
    tmp_path,
    axes,
    {
      'panel/q_max_abs': lambda *args: 1.0,
      'panel/overestimation': lambda *args: 1.0,
    },
  )
  with pytest.raises(
    ValueError, match=r"no run with \('hard', 'inverse_double', 1"
  ):
    criteria.soft_divergence(table)


def test_twin_minatar(tmp_path):
  def height(point, seed, t):
    helps = point['game'] == 'breakout' and point['target_period'] == 1_000
    return 5 + helps + 0.01 * seed

  axes = {
    'game': ['breakout', 'space_invaders'],
    'target_period': [1_000, 1, 10],
  }
  table = _table(tmp_path, axes, {'train_return': height})
  claims = criteria.twin_minatar(table)
  assert _verdicts(claims) == [False, True, False, False]
  assert claims[1].text == (
    'breakout: a copy every 1000 gradient steps exceeds none (6.02 against '
    '5.02)'
  )
  table = {k: v[table['target_period'] != 1] for k, v in table.items()}
  with pytest.raises(ValueError, match='breakout needs --target_period=1'):
    criteria.twin_minatar(table)


@pytest.mark.parametrize('norm_helps', [True, False])
def test_target_free_gap(tmp_path, norm_helps):
  def height(point, seed, t):
    scale = 1 if point['game'] == 'asterix' else 10
    gap = 0.1 if point['layer_norm'] == norm_helps else 0.6
    less = {'hard': 0, 'self': gap, 'iterated_heads': gap / 2}
    return scale * (1 - less[point['target_update']]) + 0.001 * seed

  table = _table(
    tmp_path,
    {
      'game': ['asterix', 'breakout'],
      'target_update': ['hard', 'self', 'iterated_heads'],
      'layer_norm': [False, True],
    },
    {'train_return': height},
  )
  assert _verdicts(criteria.target_free_gap(table)) == [norm_helps, True]


_ARMS = {
  'none': (0, None, None),
  'sg': (3, 'q:hard+latent:self', 'twin'),
  'slow': (3, 'q:hard+latent:soft', 'twin'),
  'free': (3, None, 'online_gradient'),
}


def _arms(tmp_path, std, height, arms=_ARMS):
  """The arms of self-prediction: what each ends with, and its return."""
  path = tmp_path / 'metrics.csv'
  writer = MetricsWriter(path, None, step_column='env_steps')
  for name, point in arms.items():
    axes = dict(
      zip(('spr_steps', 'target_paths', 'spr_target'), point, strict=True)
    )
    for seed in range(5):
      for t in (1, 2):
        row = {'seed': seed, 'env_steps': t, 'train_return': height[name]}
        row['train_return'] += 0.1 * (seed % 2)
        # Only how it ends counts.
        row['spr_std'] = None if name == 'none' else std[name] / (3 - t)
        writer.write_rows([axes | row])
  writer.close()
  return read_metrics(path)


STD = {'sg': 0.5, 'slow': 0.6, 'free': 0.1}


def test_spr_met(tmp_path):
  # A little less than without is no loss.
  height = {'none': 1.01, 'sg': 1.0, 'slow': 2.0, 'free': 0.0}
  claims = criteria.spr_minatar(_arms(tmp_path, STD, height))
  assert _verdicts(claims) == [True] * 4
  assert '(0.5 against 0.1)' in claims[0].text


def test_spr_missed(tmp_path):
  std = {'sg': 0.5, 'slow': 0.1, 'free': 0.1}
  height = {'none': 2.0, 'sg': 1.0, 'slow': 2.0, 'free': 2.0}
  claims = criteria.spr_minatar(_arms(tmp_path, std, height))
  assert _verdicts(claims) == [True, False, False, True]


@pytest.mark.parametrize(
  'arm, message',
  [
    ('none', 'spr_steps=0'),
    ('sg', 'a stop-gradient'),
    ('free', 'no stop-gradient'),
  ],
)
def test_spr_needs_its_arms(tmp_path, arm, message):
  arms = {name: point for name, point in _ARMS.items() if name != arm}
  table = _arms(tmp_path, STD, dict.fromkeys(arms, 1.0), arms)
  with pytest.raises(ValueError, match=f'no run with {message}'):
    criteria.spr_minatar(table)


@pytest.mark.parametrize('study', criteria.STUDIES)
def test_every_study_has_a_sweep_that_can_be_run(study, monkeypatch):
  monkeypatch.chdir(FLAGFILES.parents[1])
  config, family = {
    'twin_minatar': (minatar.MinAtarConfig, compiled.FAMILY),
    'target_free_gap': (minatar.MinAtarConfig, compiled.FAMILY),
    'spr_minatar': (minatar.MinAtarConfig, compiled.FAMILY),
    'siamese_collapse': (siamese.SiameseConfig, siamese.FAMILY),
    'siamese_accuracy': (siamese.SiameseConfig, siamese.FAMILY),
    'twin_rate': (control.ControlConfig, control.FAMILY),
  }.get(study, (classic.ClassicConfig, compiled.FAMILY))
  paths = list(FLAGFILES.glob(f'{study}*.flags'))
  assert paths
  for path in paths:
    sweep = flags.sweep_from_arguments(
      config, f'--flagfile={path}', drop=family.drop
    )
    for each in sweep.configs:
      family.check(each)
    assert sweep.configs[0].seeds >= 5


def test_the_command(tmp_path, capsys):
  _ages(tmp_path, lambda rule, age: {1: 5, 16: 9, 4096: 2}.get(age, 0))
  execute = lambda *arguments: flags.execute(
    criteria.CriteriaConfig, '', criteria.main, arguments
  )
  assert execute('--study=twin_age', f'--runs={tmp_path}') == 0
  assert capsys.readouterr().out.count('met: ') == 3
  assert execute('--study=soft_divergence', f'--runs={tmp_path}') == 1
  assert 'is no sweep of --study=soft_divergence' in capsys.readouterr().err
  assert execute('--study=twin_age', f'--runs={tmp_path / "none"}') == 1
  assert 'holds no metrics.csv' in capsys.readouterr().err
  assert execute('--study=twin_age') == 2
  assert execute('--study=age', '--runs=x') == 2
