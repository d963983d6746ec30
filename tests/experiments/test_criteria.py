"""The criteria of studies, on tables whose outcome is made."""

import itertools
import json
import pathlib

import numpy as np
import pytest

from experiments import launchers, reproduce
from experiments.config import executing
from experiments.config.declaring import complete
from experiments.config.reading import sweep_from_arguments
from experiments.engines import compiled as compiled_engine
from experiments.studies import study as studies
from experiments.studies import (
  atlas,
  beside_reference,
  cleanrl_classic,
  crossq_pendulum,
  lunar_lander,
  minatar_table,
  siamese_accuracy,
  siamese_collapse,
  soft_divergence,
  spr_minatar,
  target_free_gap,
  twin_age,
  twin_defects,
  twin_distributions,
  twin_minatar,
  twin_rate,
)
from siamrl.report.metrics import MetricsWriter, read_metrics
from siamrl.report.run_folder import RunFolder, open_run_folder

FLAGFILES = pathlib.Path(__file__).parents[2] / 'experiments' / 'flagfiles'
RESULTS = FLAGFILES.parent / 'results'


def _table(tmp_path, axes, columns, seeds=5, times=4, clock='env_steps'):
  """A sweep's rows: columns are functions of the point, the seed and time."""
  points = [
    dict(zip(axes, values, strict=True))
    for values in itertools.product(*axes.values())
  ]
  return _rows(tmp_path, points, columns, seeds, times, clock)


def _rows(tmp_path, points, columns, seeds=5, times=4, clock='env_steps'):
  """The same of points that are no cross product."""
  tmp_path.mkdir(exist_ok=True)
  path = tmp_path / 'metrics.csv'
  writer = MetricsWriter(path, None, step_column=clock)
  for point in points:
    cells = compiled_engine.cells(point)
    for seed in range(seeds):
      for t in range(1, times + 1):
        row = {name: f(point, seed, t) for name, f in columns.items()}
        writer.write_rows([cells | {'seed': seed, clock: 100 * t} | row])
  writer.close()
  return read_metrics(path)


def _verdicts(claims):
  return [claim.met for claim in claims]


def _ages(tmp_path, height):
  """A sweep over rules: what each learns is a function of its age."""
  tmp_path.mkdir(exist_ok=True)
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
  claims = twin_age.judge(table)
  assert _verdicts(claims) == [True, True, True]
  assert "'target_period': 16" in claims[0].text
  assert claims[2].seen == '1.00 over 3 ages'


def test_twin_age_missed(tmp_path):
  # Nothing depends on the age, but the soft rule turns the order round.
  heights = {'hard': {1: 0.3, 16: 0.2, 4096: 0.1}, 'soft': {1: 0.1, 16: 0.2}}
  table = _ages(tmp_path, lambda rule, age: heights.get(rule, {}).get(age, 0.3))
  assert _verdicts(twin_age.judge(table))[1:] == [False, False]


def test_twin_age_needs_all_its_rules(tmp_path):
  table = _ages(tmp_path, lambda rule, age: age)
  table = {k: v[table['target_update'] != 'frozen'] for k, v in table.items()}
  with pytest.raises(ValueError, match='no run with target_update=frozen'):
    twin_age.judge(table)


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
  claims = soft_divergence.judge(table)
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
    soft_divergence.judge(table)


def test_twin_minatar(tmp_path):
  def height(point, seed, t):
    helps = point['game'] == 'breakout' and point['target_period'] == 1_000
    return 5 + helps + 0.01 * seed

  axes = {
    'game': ['breakout', 'space_invaders'],
    'target_period': [1_000, 1, 10],
  }
  table = _table(tmp_path, axes, {'train_return': height})
  claims = twin_minatar.judge(table)
  assert _verdicts(claims) == [False, True, False, False]
  assert claims[1].text == (
    'breakout: a copy every 1000 gradient steps exceeds none (6.02 against '
    '5.02)'
  )
  table = {k: v[table['target_period'] != 1] for k, v in table.items()}
  with pytest.raises(ValueError, match='breakout needs --target_period=1'):
    twin_minatar.judge(table)


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
  assert _verdicts(target_free_gap.judge(table)) == [norm_helps, True]


RATES = {'fixed_policy': [False, True], 'tau': [1.0, 0.1, 0.01, 0.005]}


@pytest.mark.parametrize(
  'spread, error, height, verdicts',
  [
    (1.1, 3.0, 2.0, [True, True, True]),
    (1.5, 3.0, 2.0, [False, True, True]),
    (1.1, 1.5, 2.0, [True, False, True]),
    (1.1, 3.0, 1.0, [True, True, False]),
  ],
)
def test_twin_rate(tmp_path, spread, error, height, verdicts):
  """Where values end, how far off they are, and what is learned."""

  def value(point, seed, t):
    end = -100 * (spread if point['tau'] == 0.1 else 1)
    return (end if t == 4 else 7.0) + seed

  def off(point, seed, t):
    # The farthest counts, whatever its sign; there are not always evaluations.
    far = 100 * (error if point['tau'] == 1 else 1)
    return {1: None, 2: -far, 3: far / 2}.get(t, 0)

  table = _table(
    tmp_path,
    RATES,
    {
      'q_tm1': value,
      'panel/overestimation': off,
      'train_return': lambda point, seed, t: (
        0.1 * seed + (height if point['tau'] == 0.005 else 1)
      ),
    },
  )
  claims = twin_rate.judge(table)
  assert _verdicts(claims) == verdicts
  assert 'tau = 0.01: -98, ' in claims[0].seen
  assert claims[1].seen.startswith(f'tau = 1: {100 * error:g}, tau = 0.1: 100')


def test_twin_rate_needs_its_rates(tmp_path):
  table = _table(
    tmp_path, RATES | {'tau': [1.0, 0.1]}, {'q_tm1': lambda *_: 1.0}
  )
  with pytest.raises(ValueError, match='no run with fixed_policy=False, tau=0'):
    twin_rate.judge(table)


def test_what_orders_runs_must_be_swept(tmp_path):
  points = [
    {'target_update': 'soft', 'tau': 0.1},
    {'target_update': 'hard', 'tau': None},
  ]
  table = _rows(tmp_path, points, {'q_tm1': lambda *_: 1.0})
  with pytest.raises(ValueError, match='--tau must be swept'):
    twin_rate.judge(table)


# What each arm of collapse ends with: its loss and its normalized std.
_ENDS = {
  'default': (-0.9, 0.8),
  'no stop-gradient': (-0.99, 0.1),
  'no predictor': (-0.99, 0.1),
  'fixed': (-0.5, 0.8),
  'frozen': (-0.3, 0.8),
  '0.999': (-0.6, 0.8),
  '0.99': (-0.8, 0.8),
}
_COLLAPSE = {
  'default': ('self', None, 'mlp'),
  'no stop-gradient': ('residual', None, 'mlp'),
  'no predictor': ('self', None, 'none'),
  'fixed': ('self', None, 'fixed'),
  'frozen': ('frozen', None, 'mlp'),
  '0.999': ('soft', 0.001, 'mlp'),
  '0.99': ('soft', 0.01, 'mlp'),
}


def _collapse(tmp_path, ends, names=tuple(_COLLAPSE)):
  """Each arm with a normalized output, too, of which nothing is claimed."""
  axes = ('target_update', 'tau', 'predictor', 'output_norm')
  points, arms = [], {}
  for name in names:
    for norm in (False, True):
      key = (*_COLLAPSE[name], norm)
      points.append(dict(zip(axes, key, strict=True)))
      arms[key] = (7.0, 7.0) if norm else ends[name]

  def of(index):
    # Only how it ends counts.
    return lambda point, seed, t: (
      arms[tuple(point.values())][index] + 0.001 * seed if t == 4 else 7.0
    )

  columns = {'loss': of(0), 'normalized_std': of(1)}
  return _rows(tmp_path, points, columns, clock='gradient_steps')


@pytest.mark.parametrize(
  'changed, missed',
  [
    ({}, []),
    ({'default': (-0.9, 0.4)}, [0]),
    ({'no stop-gradient': (-0.9, 0.1)}, [1]),
    ({'no stop-gradient': (-0.99, 0.2)}, [2]),
    ({'no predictor': (-0.9, 0.3)}, [3, 4]),
    ({'fixed': (-0.95, 0.4)}, [5, 6]),
    ({'frozen': (-0.7, 0.8)}, [7]),
    ({'0.999': (-0.85, 0.8)}, [8]),
  ],
)
def test_siamese_collapse(tmp_path, changed, missed):
  claims = siamese_collapse.judge(_collapse(tmp_path, _ENDS | changed))
  assert [i for i, met in enumerate(_verdicts(claims)) if not met] == missed
  assert len(claims) == 9


def test_siamese_collapse_needs_its_arms(tmp_path):
  names = [name for name in _COLLAPSE if name != 'fixed']
  table = _collapse(tmp_path, _ENDS, names)
  with pytest.raises(ValueError, match="no run with .*'self', None, 'fixed'"):
    siamese_collapse.judge(table)


_TWINS = {'self': ('self', None), 'frozen': ('frozen', None)} | {
  f'{tau}': ('soft', tau) for tau in (0.1, 0.01, 0.001)
}


def _accuracies(tmp_path, encoders, names=tuple(_TWINS)):
  points = [
    dict(zip(('target_update', 'tau'), _TWINS[name], strict=True))
    for name in names
  ]
  by_point = {_TWINS[name]: encoders[name] for name in names}

  def encoder(point, seed, t):
    return by_point[tuple(point.values())] + 0.01 * seed if t == 4 else 0.0

  columns = {
    'knn_encoder': encoder,
    'probe_encoder': encoder,
    'knn_pixels': lambda *_: 0.5,
    'probe_pixels': lambda *_: 0.7,
  }
  return _rows(tmp_path, points, columns, clock='gradient_steps')


def test_siamese_accuracy(tmp_path):
  ends = {'self': 0.6, 'frozen': 0.4, '0.1': 0.9, '0.01': 0.3, '0.001': 0.9}
  claims = siamese_accuracy.judge(_accuracies(tmp_path, ends))
  # Neighbors of encoders exceed those of pixels, probes do not; a rate that
  # was not named before does not count.
  assert _verdicts(claims) == [False, True, False, False]
  ends['0.01'] = 0.5
  claims = siamese_accuracy.judge(_accuracies(tmp_path / 'a', ends))
  assert _verdicts(claims) == [True, True, True, False]


@pytest.mark.parametrize(
  'name, message',
  [('frozen', 'target_update=frozen'), ('0.01', 'tau=0.01')],
)
def test_siamese_accuracy_needs_its_rules(tmp_path, name, message):
  names = [each for each in _TWINS if each != name]
  table = _accuracies(tmp_path, dict.fromkeys(names, 0.5), names)
  with pytest.raises(ValueError, match=f'no run with {message}'):
    siamese_accuracy.judge(table)


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
  claims = spr_minatar.judge(_arms(tmp_path, STD, height))
  assert _verdicts(claims) == [True] * 4
  assert '(0.5 against 0.1)' in claims[0].text


def test_spr_missed(tmp_path):
  std = {'sg': 0.5, 'slow': 0.1, 'free': 0.1}
  height = {'none': 2.0, 'sg': 1.0, 'slow': 2.0, 'free': 2.0}
  claims = spr_minatar.judge(_arms(tmp_path, std, height))
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
    spr_minatar.judge(table)


def test_the_best_of_equal_arms_seldom_exceeds_another():
  """It is the best of 13, so that a plain test would say so in 1 of 5 cases."""
  arms = [('hard', p, np.nan) for p in (1, 4, 16, 64, 256, 1024, 4096)]
  arms += [('soft', np.nan, 2 / (p + 1)) for _, p, _ in arms]
  arms += [('frozen', np.nan, np.nan)]
  rows = [arm for arm in arms for _ in range(5)]
  names = ('target_update', 'target_period', 'tau')
  table = {
    name: np.array(column)
    for name, column in zip(names, zip(*rows, strict=True), strict=True)
  }
  table |= {
    'seed': np.tile(np.arange(5), len(arms)),
    'env_steps': np.ones(len(rows), np.int64),
  }
  random = np.random.default_rng(0)
  met = [
    twin_age.judge(table | {'train_return': random.normal(size=len(rows))})
    for _ in range(300)
  ]
  assert np.mean([claims[0].met for claims in met]) < 0.05


# The verdicts of the gallery; None for measures that are not shipped.
_SHIPPED = {
  'twin_age_cartpole': [True, True, True],
  'twin_age_catch': [True, True, True],
  'twin_minatar': [False, False],
  'target_free_gap': [False, True],
  'siamese_collapse': [True] * 7 + [False, False],
  'siamese_accuracy': [False, None, False, None],
  'siamese_frames': [False, None, False, None],
  'twin_rate': [None, False, True],
  'spr_minatar': [True] * 4,
  'crossq_pendulum': [True],
  'cleanrl_classic': [True, False, True, True, True, False, True, True],
  'lunar_lander': [False, True, False],
  'minatar_table': [False] * 10,
  'twin_distributions': [False, True, False] + [True] * 5,
  'replay_and_twin': [False, False, True, False, True],
  'rank_and_dormancy': [True, True, True, False, False],
  'atlas': [True, True, True, False, True, True],
  'twin_defects': [
    *(True, False, True, True, False, False, True, True, True),
    *(True, False, True, True, True, True, True, True, True),
    *[True] * 9,
  ],
  # Agents beside references.
  'cartpole_cleanrl_dqn': [True, True],
  'acrobot_cleanrl_dqn': [True, True],
  'pong_dopamine_dqn': [True],
  'td3_paper_halfcheetah': [True],
  'sac_jaxrl_halfcheetah': [True],
}


@pytest.mark.parametrize('study', _SHIPPED)
def test_shipped_results_are_judged_as_published(study, capsys, kept_rules):
  paths = [RESULTS / f'{study}-curves.csv']
  if study == 'crossq_pendulum':
    paths.append(RESULTS / 'sac_pendulum-curves.csv')
  code = executing.execute(
    reproduce.ReproduceConfig,
    '',
    reproduce.main,
    [f'--study={study}', f'--runs={",".join(map(str, paths))}'],
  )
  assert code == (3 if False in _SHIPPED[study] else 0)
  words = [line.split(':')[0] for line in capsys.readouterr().out.splitlines()]
  verdicts = {'met': True, 'MISSED': False, 'OPEN': None}
  found = [verdicts[word] for word in words if word in verdicts]
  assert found == _SHIPPED[study]


def test_files_that_cannot_be_judged(tmp_path, capsys):
  execute = lambda *arguments: executing.execute(
    reproduce.ReproduceConfig, '', reproduce.main, arguments
  )
  path = RESULTS / 'soft_divergence-curves.csv'
  assert execute('--study=soft_divergence', f'--runs={path}') == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert 'no column panel/q_max_abs, panel/overestimation' in line
  path = tmp_path / 'settings.csv'
  path.write_text('target_update,seeds,final\nhard,5,1.0\n')
  assert execute('--study=twin_age_catch', f'--runs={path}') == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert "no column 'seed'" in line


def test_what_is_not_known_is_open(tmp_path):
  """One seed has no spread; a run that is going on has no end."""
  height = lambda point, seed, t: 5.0 + (point['target_period'] > 1)
  axes = {'game': ['breakout'], 'target_period': [1, 1_000]}
  table = _table(tmp_path, axes, {'train_return': height}, seeds=1)
  assert _verdicts(twin_minatar.judge(table)) == [None]
  ends = {'self': 0.6, 'frozen': 0.4, '0.1': 0.9, '0.01': 0.5, '0.001': 0.9}
  table = _accuracies(tmp_path / 'a', ends)
  last = (table['seed'] == 4) & (table['gradient_steps'] == 400)
  kept = ~(last & (table['target_update'] == 'frozen'))
  table = {name: column[kept] for name, column in table.items()}
  verdicts = _verdicts(siamese_accuracy.judge(table))
  assert verdicts == [None, True, None, False]


def test_measures_of_the_same_runs_are_compared_within_them(tmp_path):
  """Seeds differ by more than pixels do from what is learned of them."""
  points = [
    dict(zip(('target_update', 'tau'), point, strict=True))
    for point in _TWINS.values()
  ]
  columns = {
    f'{judge}_{of}': lambda point, seed, t, more=more: (
      0.1 * seed + more * (1 + 0.1 * (seed % 2))
    )
    for judge in ('knn', 'probe')
    for of, more in (('encoder', 0.02), ('pixels', 0.0))
  }
  table = _rows(tmp_path, points, columns, clock='gradient_steps')
  claims = siamese_accuracy.judge(table)
  assert _verdicts(claims) == [False, True, False, True]


@pytest.mark.parametrize(
  'first, verdict', [(3, True), (7, False), (None, None)]
)
def test_crossq_pendulum(tmp_path, first, verdict):
  """Of runs of 10 evaluations and of 20, only the first 10 count."""

  def rows(agent, times, low):
    return _rows(
      tmp_path / agent,
      [{'agent': agent}],
      {'eval_return': lambda point, seed, t: -900 if low(seed, t) else -150},
      times=times,
    )

  # SAC holds from 7 on with 4 seeds and from 8 on with one, and fails later.
  sac = rows('sac', 20, lambda seed, t: t < 7 + (seed == 2) or t == 15)
  # It was good before, by chance.
  ours = rows(
    'crossq', 10, lambda seed, t: t == 5 and first == 7 or t < (first or 0)
  )
  if first is None:
    ours['eval_return'] = np.full(len(ours['seed']), np.nan)
  if first == 7:
    late = ours['env_steps'] == 600
    ours['eval_return'] = np.where(late, -900.0, ours['eval_return'])
  (claim,) = crossq_pendulum.judge(studies._joined([ours, sac], ('agent',)))
  assert claim.met is verdict
  if verdict:
    assert '(720 against 300)' in claim.text
  with pytest.raises(ValueError, match='no run with agent=sac'):
    crossq_pendulum.judge(ours)


def test_the_command(tmp_path, capsys):
  _ages(tmp_path, lambda rule, age: {1: 5, 16: 9, 4096: 2}.get(age, 0))
  execute = lambda *arguments: executing.execute(
    reproduce.ReproduceConfig, '', reproduce.main, arguments
  )
  assert execute('--study=twin_age_catch', f'--runs={tmp_path}') == 0
  assert capsys.readouterr().out.count('met: ') == 3
  folder = RunFolder(tmp_path)
  rows = len(read_metrics(folder.metrics)['seed'])
  for all_rows in (rows, rows + 1000):
    folder.config.write_text(json.dumps({'derived': {'rows': all_rows}}))
    assert execute('--study=twin_age_catch', f'--runs={tmp_path}') == 0
    told = f'not finished: {rows:,} of {all_rows:,} rows\n'
    assert (told in capsys.readouterr().out) == (all_rows > rows)
  assert execute('--study=soft_divergence', f'--runs={tmp_path}') == 1
  told = capsys.readouterr().err
  assert 'is no sweep of --study=soft_divergence: no column ' in told
  assert '; not finished: ' in told
  folder.config.unlink()
  assert execute('--study=soft_divergence', f'--runs={tmp_path}') == 1
  assert 'is no sweep of --study=soft_divergence' in capsys.readouterr().err
  assert execute('--study=twin_age_catch', f'--runs={tmp_path / "none"}') == 1
  assert 'holds no metrics.csv' in capsys.readouterr().err
  assert execute('--study=twin_age') == 2
  assert execute('--study=age', '--runs=x') == 2


def _finals(tmp_path, points, score, column='train_return'):
  """Runs that stay at one level: a function of the point, plus the seed."""
  return _rows(
    tmp_path,
    points,
    {column: lambda point, seed, t: score(point) + 0.01 * (seed - 2)},
  )


def _of_arms(*arms, **axes):
  return [
    {'arm': arm} | dict(zip(axes, values, strict=True))
    for arm in arms
    for values in itertools.product(*axes.values())
  ]


def test_minatar_table(tmp_path):
  points = _of_arms('dqn', 'c51', 'iqn', game=['breakout', 'asterix'])
  better = {('c51', 'breakout'): 2.0}
  table = _finals(
    tmp_path, points, lambda p: 3 + better.get((p['arm'], p['game']), 0.0)
  )
  claims = minatar_table.judge(table)
  assert _verdicts(claims) == [True, False]
  # Mean over games in units of dqn's: (5 / 3 + 1) / 2.
  assert 'c51 exceeds dqn over the games (1.33 against 1)' in claims[0].text
  others = table['arm'] != 'dqn'
  without = {name: rows[others] for name, rows in table.items()}
  with pytest.raises(ValueError, match='no run with dqn, breakout'):
    minatar_table.judge(without)


def _twins(tmp_path, without, minto=1.0, soft=1.0):
  """Twins: heights in units of the hard one's, without a twin by agent."""
  kinds = [
    dict(target_update='hard', target_form=None),
    dict(target_update='self', target_form=None),
    dict(target_update='soft', target_form=None),
    dict(target_update='hard', target_form='minto'),
    dict(target_update='hard_geometric', target_form=None),
  ]
  points = [
    {'arm': arm, 'game': game} | kind
    for arm in ('dqn', 'c51', 'qrdqn')
    for game in ('breakout', 'asterix')
    for kind in kinds
  ]

  def score(point):
    unit = {'breakout': 10.0, 'asterix': 2.0}[point['game']]
    if point['target_update'] == 'self':
      return unit * without[point['arm']]
    if point['target_update'] == 'soft':
      return unit * soft
    return unit * (minto if point['target_form'] else 1.0)

  return twin_distributions.judge(_finals(tmp_path, points, score))


def test_twin_distributions(tmp_path):
  claims = _twins(tmp_path / 'a', {'dqn': 0.5, 'c51': 0.9, 'qrdqn': 0.5})
  assert _verdicts(claims)[:3] == [True, True, False]
  assert _verdicts(claims)[3:] == [True] * 5
  assert '(0.5)' in claims[0].text and '(0.1)' in claims[1].text
  claims = _twins(
    tmp_path / 'b',
    {'dqn': 1.0, 'c51': 0.9, 'qrdqn': 1.1},
    minto=0.8,
    soft=0.9,
  )
  assert _verdicts(claims)[:3] == [False, False, True]
  assert _verdicts(claims)[3:] == [False] * 4 + [True]


def _defects(tmp_path, name, costs):
  """Levels of all arms in a task: 100 less what a defect costs."""
  arms = {'right', *twin_defects.COSTLY[name], *twin_defects.HARMLESS[name]}
  arms |= {'normalized'} & set(twin_defects.RIGHT.values())
  points = _of_arms(*sorted(arms), environment=[name])
  levels = {'normalized': 50.0, 'statistics_left_behind': 50.0}
  return twin_defects.judge(
    _finals(
      tmp_path,
      points,
      lambda p: levels.get(p['arm'], 100.0) - costs.get(p['arm'], 0.0),
    )
  )


def test_twin_defects(tmp_path):
  claims = _defects(
    tmp_path / 'a',
    'pendulum',
    dict.fromkeys(twin_defects.COSTLY['pendulum'], 1.0),
  )
  assert _verdicts(claims) == [True] * 9
  assert 'statistics_left_behind costs return (49 against 50)' in claims[6].text
  claims = _defects(
    tmp_path / 'b', 'breakout', {'alias': 1.0, 'lost_update': -1.0}
  )
  assert _verdicts(claims) == [*[False] * 5, *[True] * 4]
  with pytest.raises(ValueError, match='environment=walk is no task of this'):
    twin_defects.judge(
      _finals(
        tmp_path / 'c', _of_arms('right', environment=['walk']), lambda p: 1.0
      )
    )


def test_each_defect_of_a_study_has_one_claim():
  claims = [
    f'{name}:{defect}'
    for group in (twin_defects.COSTLY, twin_defects.HARMLESS)
    for name, defects in group.items()
    for defect in defects
  ]
  rights = ('right', *twin_defects.RIGHT.values())
  arms = studies.read_study('twin_defects').sweep.arms
  assert sorted(claims) == sorted(
    arm for arm in arms if arm.split(':')[1] not in rights
  )


def test_cleanrl_classic(tmp_path):
  points = _of_arms('c51', 'pqn', environment=['cartpole', 'acrobot'])
  # C51 on CartPole is lower than it may be by one; PQN on Acrobot reaches the
  # margin, while Welch's interval of its 3 published runs is wide.
  levels = {
    ('c51', 'cartpole'): 491.07 - 26,
    ('c51', 'acrobot'): -86.74,
    ('pqn', 'cartpole'): 500.0,
    ('pqn', 'acrobot'): -95.63 - 8,
  }
  claims = cleanrl_classic.judge(
    _finals(tmp_path, points, lambda p: levels[p['arm'], p['environment']])
  )
  # 26 is 4.6 standard errors of 9.7 / sqrt(3), and t is 4.30 at two degrees of
  # freedom; 8 is 2.4 standard errors of PQN's.
  assert _verdicts(claims) == [False, False, *[True] * 6]


def test_the_published_returns_of_claims():
  """C51's are of docs/rl-algorithms/c51.md, of three seeds."""
  reference = cleanrl_classic.cleanrl()['c51', 'cartpole']
  np.testing.assert_allclose(reference.runs, [481.37, 491.07, 500.77])
  assert reference.mean == 491.07
  assert lunar_lander.zoo() == {'dqn': 154.382, 'qrdqn': 70.236}


def _beside(level, seeds, **point):
  column = 'train_return' if 'game' in point else 'eval_return'
  if point.get('environment') == 'cartpole':
    column = 'train_return'
  clock = 'frames' if 'game' in point else 'env_steps'
  ends = {'pong': 3e6, 'cartpole': 5e5, 'HalfCheetah-v5': 2e5}
  end = ends[point.get('game') or point['environment']]
  number = 4 * seeds
  table = {n: np.full(number, value) for n, value in point.items()}
  table |= {
    'seed': np.repeat(np.arange(seeds), 4),
    clock: np.tile(end - np.array([3, 2, 1, 0]) * 1e5, seeds),
    column: level + np.repeat(np.arange(seeds) - (seeds - 1) / 2, 4),
  }
  return beside_reference.judge(table)


def test_a_single_run_beside_a_reference():
  # Dopamine's deviation of 1.45 in 5 runs is a population's, a sample's is
  # 1.621; one more run has sqrt(6 / 5) of it, and t is 2.776: 4.93.
  for level, met in ((-16.12 - 4.9, True), (-16.12 + 5.0, False)):
    (claim,) = _beside(level, 1, game='pong', agent='dqn')
    assert claim.met is met
  assert 'between -21.05 and -11.19' in claim.seen
  # TD3's 682.6 of 10 runs: 719.5, 1.0488 and 2.262 make 1,707.
  at = {'environment': 'HalfCheetah-v5', 'agent': 'td3'}
  for level, met in ((6833.1 - 1700, True), (6833.1 - 1715, False)):
    (claim,) = _beside(level, 1, **at)
    assert claim.met is met


def test_several_runs_beside_a_reference():
  at = {'environment': 'cartpole', 'agent': 'dqn'}
  # Three runs each, of deviations 1 and 2.29: a standard error of 1.443; t is
  # 3.08 at 2.74 degrees of freedom.
  for level, met in ((494, True), (493, False), (504, False)):
    claims = _beside(level, 3, **at)
    assert _verdicts(claims) == [met, True]
  assert _verdicts(_beside(473.5, 3, **at)) == [False, False]
  with pytest.raises(ValueError, match='no published return of c51 on cart'):
    _beside(0, 3, environment='cartpole', agent='c51')


def test_what_is_not_swept_is_read_from_flags(tmp_path, capsys):
  """A folder for each rule, two of which say it by a flag only."""
  table = _ages(
    tmp_path / 'all', lambda rule, age: {1: 5, 16: 9, 4096: 2}.get(age, 0)
  )
  paths = []
  for rule, kept in (
    ('hard', 'target_period'),
    ('soft', 'tau'),
    ('frozen', ''),
  ):
    here = table['target_update'] == rule
    names = [n for n in (kept, 'seed', 'env_steps', 'train_return') if n]
    folder, _ = open_run_folder(tmp_path / rule, {'target_update': rule}, {})
    with folder, MetricsWriter(folder.metrics, None) as writer:
      for values in zip(*(table[n][here].tolist() for n in names), strict=True):
        writer.write_rows([dict(zip(names, values, strict=True))])
    paths.append(str(tmp_path / rule))
  code = executing.execute(
    reproduce.ReproduceConfig,
    '',
    reproduce.main,
    ['--study=twin_age_catch', f'--runs={",".join(paths)}'],
  )
  said = capsys.readouterr()
  assert code == 0, said.err
  assert said.out.count('met: ') == 3
  assert "{'target_update': 'hard', 'target_period': 16}" in said.out


def test_lunar_lander(tmp_path):
  def of(folder, dqn, qrdqn):
    levels = {'dqn': dqn, 'qrdqn': qrdqn}
    return _verdicts(
      lunar_lander.judge(
        _finals(
          tmp_path / folder,
          _of_arms('dqn', 'qrdqn'),
          lambda p: levels[p['arm']],
          'eval_return',
        )
      )
    )

  assert of('a', 160.0, 201.0) == [True, True, True]
  assert of('b', 150.0, 75.0) == [False, True, False]
  assert of('c', 200.0, 70.0) == [True, False, False]


def _atlas(tmp_path, height):
  """Rows of two tasks; `height` is of a rule, its period and a task."""
  points = [
    {
      'environment': task,
      'target_update': rule,
      'target_period': None if rule in ('soft', 'self', 'frozen') else period,
      'tau': 2 / (period + 1) if rule == 'soft' else None,
      'arm': form,
    }
    for task in ('a', 'b')
    for rule, form in (
      *(('hard', None), ('soft', None), ('hard', 'minto'), ('averaged', None)),
      *(('self', None), ('frozen', None)),
    )
    for period in (
      (3, 15, 129, 1_023, 8_193) if rule[0] in 'ha' or rule == 'soft' else (3,)
    )
  ]

  def score(point, seed, t):
    rule, period = point['target_update'], point['target_period']
    if rule == 'soft':
      period = round(2 / point['tau'] - 1)
    rule = point['arm'] or rule
    return height(rule, period, point['environment']) + 0.01 * seed

  return _rows(tmp_path, points, {'train_return': score}, seeds=4)


def test_atlas_met(tmp_path):
  def height(rule, period, task):
    if rule in ('self', 'frozen'):
      return {'self': 1.0, 'frozen': 0.0}[rule]
    best = {'averaged': 2.4, 'minto': 2.4}.get(rule, 2.5)
    return best - abs(np.log2(period / 129)) / 7 + (task == 'b')

  claims = atlas.judge(_atlas(tmp_path, height))
  assert _verdicts(claims) == [True] * 6
  assert claims[0].text.startswith('hard 129, the best of the middle rates')


def test_atlas_missed(tmp_path):
  def height(rule, period, task):
    if rule in ('self', 'frozen'):
      return 5.0
    order = np.log2(period) * (1 if task == 'a' else -1)
    return order + {'soft': 3, 'averaged': 40.0}.get(rule, 0.0)

  # Over both tasks copies come to 0, averages to 3, no twin to 5 and another
  # rule to 40, whatever the period. Ranks of periods are reversed, but those of
  # rules are not.
  claims = atlas.judge(_atlas(tmp_path, height))
  assert _verdicts(claims) == [False, True, True, False, False, True]


@pytest.mark.filterwarnings('error')
def test_atlas_of_one_task_has_no_other_ranks(tmp_path):
  table = _atlas(tmp_path, lambda rule, period, task: np.log2(period or 2))
  alone = table['environment'] == 'a'
  claims = atlas.judge({name: column[alone] for name, column in table.items()})
  assert claims[-1].met is None
  assert claims[-1].seen == 'not known of one task alone'


def test_settings_of_the_atlas_are_the_same_in_all_tasks():
  """One that is recorded differently somewhere would be in no ranking."""
  file = studies.read_study('atlas').sweep
  settings: dict[str, set] = {}
  for name, (launcher, flags) in file.arms.items():
    options = complete(launchers.options_of(launcher))
    task, _, arm = name.partition(':')
    settings.setdefault(task, set()).update(
      frozenset({'arm': arm, **{k: v for k, v in point.items() if v}}.items())
      for point in sweep_from_arguments(options, *file.flags, *flags).points
    )
  assert len(settings) == 6
  assert {len(of_task) for of_task in settings.values()} == {88, 93}
  discrete = [settings[task] for task in settings if task != 'pendulum']
  assert all(of_task == discrete[0] for of_task in discrete)
  assert settings['pendulum'] < discrete[0]
  rules = {dict(each).get('target_update') for each in settings['pendulum']}
  assert len(rules - {None}) == 19  # all but gradient_chain


def test_atlas_needs_its_rules(tmp_path):
  table = _atlas(tmp_path, lambda rule, period, task: 1.0 + (rule == 'soft'))
  kept = table['target_update'] != 'self'
  with pytest.raises(ValueError, match='target_update=self in all tasks'):
    atlas.judge({name: column[kept] for name, column in table.items()})
