"""Figures of --kind: what is asked of them, their numbers, what is refused."""

import csv

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from experiments import plot
from experiments.config import executing
from siamrl.report import aggregates, consistency, comparisons, statistics
from siamrl.report.metrics import MetricsWriter
from siamrl.report.run_folder import open_run_folder


def _plot(*arguments):
  return executing.execute(
    plot.PlotConfig, '', plot.main, arguments, listed='runs'
  )


def _file(path, columns, rows, **flags_):
  lines = [f'# --{name}={value}' for name, value in flags_.items()]
  lines += [columns, *(','.join(map(str, row)) for row in rows)]
  path.write_text('\n'.join(lines) + '\n')
  return path


# Final returns by task, agent and seed, in units of their own.
FINALS = {
  ('cartpole', 'a'): [100, 200, 300],
  ('cartpole', 'b'): [400, 500, 250],
  ('acrobot', 'a'): [-90, -100, -80],
  ('acrobot', 'b'): [-85, -95, -120],
  ('catch', 'a'): [0, 0.5, 1],
  ('catch', 'b'): [0.25, 0.75, 0.5],
}


@pytest.fixture
def study(tmp_path):
  """Two agents on three tasks; the first row is far below the last."""
  rows = [
    (agent, task, seed, steps, y)
    for (task, agent), finals in FINALS.items()
    for seed, final in enumerate(finals)
    for steps, y in ((100, 2 * min(finals) - final - 700), (1000, final))
  ]
  return _file(
    tmp_path / 'study-curves.csv',
    'agent,environment,seed,env_steps,train_return',
    rows,
  )


def _scaled():
  """The scores of each agent, [runs, tasks], from the worst to the best run."""
  return {
    agent: np.stack(
      [
        (np.array(FINALS['cartpole', agent]) - 100) / 400,
        (np.array(FINALS['acrobot', agent]) + 120) / 40,
        FINALS['catch', agent],
      ],
      axis=1,
    )
    for agent in 'ab'
  }


def _table(path):
  lines = path.read_text().splitlines()
  notes = [line for line in lines if line.startswith('#')]
  return notes, list(csv.DictReader(lines[len(notes) :]))


def _ends(row):
  return [float(row[name]) for name in ('estimate', 'low', 'high')]


def _figure(path):
  with Image.open(path) as image:
    assert image.format == 'PNG'
    return image.size


def test_aggregates(study, tmp_path, capsys):
  out = f'--output={tmp_path}/out'
  assert not _plot(str(study), '--kind=aggregates', out)
  notes, rows = _table(tmp_path / 'out-aggregates.csv')
  (note,) = notes
  assert '(cartpole 100 to 500, acrobot -120 to -80, catch 0 to 1)' in note
  of = {
    'median': aggregates.median,
    'IQM': statistics.iqm,
    'mean': statistics.mean,
    'optimality gap': aggregates.optimality_gap,
  }
  assert [(row['aggregate'], row['setting']) for row in rows] == [
    (name, agent) for name in of for agent in 'ab'
  ]
  spread = consistency.rank_spreads([_scaled()[agent] for agent in 'ab'])
  spreads = dict(zip('ab', spread, strict=True))
  for row in rows:
    assert (row['seeds'], row['tasks']) == ('3', '3')
    assert float(row['rank_spread']) == pytest.approx(spreads[row['setting']])
    expected = aggregates.aggregate(
      _scaled()[row['setting']], of[row['aggregate']]
    )
    np.testing.assert_allclose(_ends(row), expected, rtol=1e-5)
  score = consistency.thc([_scaled()[agent] for agent in 'ab'])
  said = capsys.readouterr().out
  assert f'THC {score:.3g}: ' in said
  files = [f'wrote {tmp_path}/out-aggregates.{kind}' for kind in ('png', 'csv')]
  assert [line for line in said.splitlines() if 'wrote' in line] == files
  assert _figure(tmp_path / 'out-aggregates.png')[0] == 792  # 3.3 inches
  assert len(list(tmp_path.glob('out*'))) == 2


def test_differences(study, tmp_path):
  """Welch's intervals by task, from the first setting or a named one."""
  out = f'--output={tmp_path}/out'
  assert not _plot(str(study), '--kind=differences', out)
  notes, rows = _table(tmp_path / 'out-differences.csv')
  assert notes == ['# score: last 10 % of the runs']
  assert [(r['task'], r['setting'], r['baseline']) for r in rows] == [
    (task, 'b', 'a') for task in ('cartpole', 'acrobot', 'catch')
  ]
  for row in rows:
    a, b = (np.array(FINALS[row['task'], agent], float) for agent in 'ab')
    squares = np.array([x.var(ddof=1) / 3 for x in (a, b)])
    freedom = squares.sum() ** 2 / (squares**2 / 2).sum()
    half = stats.t.ppf(0.975, freedom) * np.sqrt(squares.sum())
    middle = b.mean() - a.mean()
    np.testing.assert_allclose(
      _ends(row), [middle, middle - half, middle + half], rtol=1e-4
    )
  assert _figure(tmp_path / 'out-differences.png')[0] == 792
  assert _plot(str(study), '--kind=differences', '--baseline=b', out) == 2
  assert _plot(str(study), '--kind=final', '--baseline=b', out) == 2


def test_profiles_and_improvement(study, tmp_path):
  out = f'--output={tmp_path}/out'
  assert not _plot(str(study), '--kind=profiles', out)
  _, rows = _table(tmp_path / 'out-profiles.csv')
  for agent, scores in _scaled().items():
    mine = [row for row in rows if row['setting'] == agent]
    thresholds = [float(row['threshold']) for row in mine]
    assert (thresholds[0], thresholds[-1], len(thresholds)) == (0, 1, 101)
    expected = aggregates.performance_profile(scores, np.linspace(0, 1, 101))
    np.testing.assert_allclose(
      [_ends(row) for row in mine], np.transpose(expected), rtol=1e-5
    )
  assert not _plot(str(study), '--kind=improvement', out)
  notes, (row,) = _table(tmp_path / 'out-improvement.csv')
  assert not notes  # returns are compared within tasks, without a scale
  assert (row['setting'], row['other']) == ('b', 'a')
  # 8 of 9 pairs of CartPole; of Acrobot -85 exceeds two, and -95 one; of Catch
  # 0.25 exceeds one, 0.75 two, and 0.5 one and half of its equal.
  expected = (8 + 3 + 4.5) / 27
  assert float(row['estimate']) == pytest.approx(expected, rel=1e-5)
  for kind in ('profiles', 'improvement'):
    _figure(tmp_path / f'out-{kind}.png')


@pytest.fixture
def asked(monkeypatch):
  """What is asked of each figure, by its kind."""
  found = {}

  def keep(name):
    def draw(path, *arguments, **words):
      found.setdefault(name, []).append((str(path), arguments, words))

    monkeypatch.setattr(comparisons, f'plot_{name}', draw)

  for name in ('heatmap', 'lines', 'aggregates', 'improvement'):
    keep(name)
  return found


def test_a_grid_of_two_options(tmp_path, asked):
  """A rate of 0.4 has the mean age of copies at every fourth step."""
  rows = [
    (rule, period, tau, seed, 10, value + seed)
    for rule, period, tau, value in [
      ('hard', 4, '', 10),
      ('hard', 1, '', 20),
      ('soft', '', 0.4, 30),
    ]
    for seed in (0, 2)
  ]
  path = _file(
    tmp_path / 'grid.csv',
    'target_update,target_period,tau,seed,env_steps,train_return',
    rows,
    environment='catch',
    target_period_unit='gradient_steps',
  )
  assert not _plot(str(path), '--kind=heatmap', f'--output={tmp_path}/out')
  ((drawn, (down, across, cells), words),) = asked['heatmap']
  assert drawn == f'{tmp_path}/out-heatmap.png'
  assert (down, across) == (['hard', 'soft'], ['1', '4'])
  assert {place: float(cell[0]) for place, cell in cells.items()} == {
    (0, 1): 11,
    (0, 0): 21,
    (1, 1): 31,
  }
  assert words['x_label'] == 'target period, or its match (gradient steps)'
  assert '2 seeds' in words['explanation']
  _, table = _table(tmp_path / 'out-heatmap.csv')
  assert (table[2]['tau'], table[2]['seeds']) == ('0.4', '2')
  assert [row['estimate'] for row in table] == ['11', '21', '31']


def test_a_grid_of_rules(tmp_path, asked):
  """Rules of equal mean age share a column, whatever they take."""
  columns = 'target_update,target_period,target_period_end,tau,target_paths'
  rows = [
    (*point, seed, 10, value)
    for value, point in enumerate(
      [
        *(('hard', period, '', '', '') for period in (3, 15)),
        *(('hard_scheduled', p, 4 * p, '', '') for p in (3, 15)),
        # Half of the way at every period, which is three times as old.
        *(('periodic_soft', p, '', 0.5, '') for p in (1, 5)),
        *(('by_path', p, '', 2 / (p + 1), 'a:soft+b:hard') for p in (3, 15)),
        ('self', '', '', '', ''),
      ]
    )
    for seed in (0, 1)
  ]
  path = _file(
    tmp_path / 'grid.csv', f'{columns},seed,env_steps,train_return', rows
  )
  assert not _plot(str(path), '--kind=heatmap', f'--output={tmp_path}/out')
  ((_, (down, across, cells), words),) = asked['heatmap']
  rules = ['hard', 'hard_scheduled', 'periodic_soft', 'by_path, a:soft+b:hard']
  assert down == [*rules, 'self']
  assert across == ['3', '15', 'none']
  assert {place: float(cell[0]) for place, cell in cells.items()} == {
    **{
      (row, column): 2 * row + column for row in range(4) for column in (0, 1)
    },
    (4, 2): 8,
  }
  assert 'target period end: a value for each column' in words['explanation']


def test_grids_of_all_tasks_together(tmp_path, asked, capsys):
  """Interquartile means of scaled scores, and how likely runs are better."""
  of = {
    ('hard', 3): ([0, 1, 2], [0, 10, 20]),
    ('hard', 15): ([3, 3, 3], [30, 30, 30]),
    ('averaged', 3): ([1, 1, 1], [10, 10, 10]),
    ('averaged', 15): ([4, 4, 4], [40, 40, 40]),
    ('chain', 3): ([9, 9, 9], []),
  }
  path = _file(
    tmp_path / 'grid.csv',
    'environment,target_update,target_period,seed,env_steps,train_return',
    [
      (task, *point, seed, 10, score)
      for point, tasks in of.items()
      for task, scores in zip(('a', 'b'), tasks, strict=True)
      for seed, score in enumerate(scores)
    ],
  )
  draw = lambda *more: _plot(
    str(path), '--kind=heatmap', f'--output={tmp_path}/out', *more
  )
  assert not draw('--normalize=range')
  ((drawn, (down, across, cells), words),) = asked.pop('heatmap')
  assert drawn == f'{tmp_path}/out-heatmap.png'
  assert (down, across) == (['hard', 'averaged'], ['3', '15'])
  # Of task a 0 to 9 are 0 to 1, of task b 0 to 40. The middle half of 0, 1/9,
  # 2/9, 0, 1/4 and 1/2 are 1/9, 2/9 and halves of 0 and of 1/4.
  scaled = np.array([[0, 1 / 9, 2 / 9], [0, 1 / 4, 1 / 2]])
  middle = statistics.iqm(scaled.ravel())
  assert float(cells[0, 0][0]) == pytest.approx(middle)
  assert float(cells[1, 1][0]) == pytest.approx(
    statistics.iqm(np.array([4 / 9, 1] * 3))
  )
  left_out = 'left out, without runs of all tasks: chain, target_period=3'
  assert left_out in words['explanation']
  assert 'THC 0: how far' in capsys.readouterr().out
  assert not draw('--baseline=hard,3')
  ((_, (_, _, cells), words),) = asked.pop('heatmap')
  # A tie counts half: 1 against 0, 1 and 2.
  found = {place: float(cell[0]) for place, cell in cells.items()}
  assert found == {(0, 0): 0.5, (0, 1): 1, (1, 0): 0.5, (1, 1): 1}
  assert words['color_label'] == 'P(A > hard, target_period=3)'
  assert draw('--baseline=hard') == 2
  assert '--baseline=hard must be all values' in capsys.readouterr().err
  assert draw('--baseline=hard,3', '--normalize=range') == 2
  assert 'must not go with --normalize' in capsys.readouterr().err


def _folder(path, seed, clock, values, seconds=None, **flags_):
  known = {'environment': 'Ant-v5', 'agent': 'sac', 'seed': str(seed)}
  folder, _ = open_run_folder(path, known | flags_, {})
  with folder, MetricsWriter(folder.metrics) as writer:
    for x, y in zip(clock, values, strict=True):
      row = dict(frames=x, env_steps=x, eval_return=y)
      if seconds is not None:
        row |= dict(acting_s=seconds / 2, learning_s=seconds / 2)
        row |= dict(steps_per_s=9.0)
      writer.write(row)
  return str(path)


def test_efficiency_over_steps_and_time(tmp_path, asked):
  """Runs of unequal spacing and length, and of unequal speed."""
  one = _folder(tmp_path / 'one', 0, [0, 2, 4, 6, 8], [0, 2, 4, 6, 8], 10.0)
  two = _folder(tmp_path / 'two', 1, [0, 3, 6], [0, 6, 12], 30.0)
  arguments = (one, two, '--kind=efficiency', '--column=eval_return')
  assert not _plot(*arguments, f'--output={tmp_path}/out')
  (steps, time) = asked['lines']
  assert steps[0] == f'{tmp_path}/out-efficiency.png'
  assert time[0] == f'{tmp_path}/out-efficiency-time.png'
  ((x, (middle, low, high)),) = steps[1][0].values()
  assert x.tolist() == [0, 3, 6]  # what both cover
  np.testing.assert_allclose(middle, [0, 4.5, 9])
  t = 12.7062 * 1.5 / 2**0.5 * 2**0.5  # of 3 and 6, which are 1.5 from 4.5
  np.testing.assert_allclose((low[1], high[1]), (4.5 - t, 4.5 + t), rtol=1e-4)
  assert 'a line ends with its shortest run' in steps[2]['explanation']
  assert steps[2]['x_label'] == 'env steps'
  _, table = _table(tmp_path / 'out-efficiency.csv')
  assert [(row['env steps'], row['estimate']) for row in table] == [
    ('0', '0'),
    ('3', '4.5'),
    ('6', '9'),
  ]
  # The first run is over after 50 s, and the second begins at 30 s.
  ((x, (middle, _, _)),) = time[1][0].values()
  assert time[2]['x_label'] == 'wall time (s)'
  assert (x[0], x[-1]) == (30, 50)
  # At 30 s the first run has 4, the second 0; at 50 s 8 and 6 * 2 / 3.
  np.testing.assert_allclose((middle[0], middle[-1]), (2, 6))


def test_no_time_and_one_seed(tmp_path, asked, capsys):
  run = _folder(tmp_path / 'run', 0, [1, 2], [1, 2])
  out = f'--output={tmp_path}/out'
  assert not _plot(run, '--kind=efficiency', '--column=eval_return', out)
  assert 'not over wall time' in capsys.readouterr().out
  ((_, (found,), words),) = asked['lines']
  ((_, (middle, low, _)),) = found.values()
  assert middle.tolist() == [1, 2] and np.isnan(low).all()
  assert '1 seed: no interval' in words['explanation']


def test_folders_and_protocols(tmp_path, asked, capsys):
  """Agents in folders of their own, with seeds, scored where all have been."""
  (tmp_path / 'sweep').mkdir()
  folders = [
    _folder(
      tmp_path / 'sweep' / f'{agent}{seed}',
      seed,
      [5, 10, 20][:rows],
      [1 + seed, 2 + seed, 9][:rows],
      agent=agent,
      frame_skip=skip,
    )
    for agent, rows, skip in (('sac', 3, '1'), ('td3', 2, '2'))
    for seed in (0, 1)
  ]
  out = f'--output={tmp_path}/out'
  assert not _plot(*folders, '--kind=aggregates', '--column=eval_return', out)
  assert 'warning: unlike protocols: --frame_skip is 1, 2' in (
    capsys.readouterr().err
  )
  ((_, (found,), words),) = asked['aggregates']
  assert list(found) == ['IQM', 'mean']  # one task: returns as they are
  (sac, td3) = found['mean'].values()
  assert float(sac[0]) == float(td3[0]) == 2.5
  assert [name.split(',')[0] for name in found['mean']] == [
    'agent=sac',
    'agent=td3',
  ]
  for said in ('--frame_skip is 1, 2', 'scored on the first 10 env steps'):
    assert said in words['explanation']
  # The folder around them stands for all.
  for kind in ('curves', 'final'):
    arguments = (f'--kind={kind}', '--column=eval_return', out)
    assert not _plot(f'{tmp_path}/sweep', *arguments)
  assert _figure(tmp_path / 'out.png') and _figure(tmp_path / 'out-final.png')


def test_settings_without_all_tasks_are_left_out(study, tmp_path, asked):
  more = _file(
    tmp_path / 'more.csv',
    'environment,seed,env_steps,train_return',
    [('cartpole', seed, 1000, 300) for seed in (0, 1)],
  )
  arguments = ('--kind=aggregates', f'--output={tmp_path}/out')
  assert not _plot(str(study), str(more), *arguments)
  ((_, (found,), words),) = asked['aggregates']
  # The files have cartpole in common, and no flags that tell them apart.
  assert list(found['mean']) == ['study, a', 'study, b']
  assert 'left out, without runs of all tasks: more' in words['explanation']


@pytest.mark.parametrize('kind', ['pdf', 'svg'])
def test_vector_graphics(study, tmp_path, kind):
  arguments = (str(study), '--kind=improvement', f'--vector={kind}')
  made = []
  for name in 'ab':
    assert not _plot(*arguments, f'--output={tmp_path}/{name}')
    made.append((tmp_path / f'{name}-improvement.{kind}').read_bytes())
    _figure(tmp_path / f'{name}-improvement.png')
  assert made[0] == made[1]
  assert made[0].startswith({'pdf': b'%PDF', 'svg': b'<?xml'}[kind])


def test_what_it_refuses(study, tmp_path, capsys):
  lone = _file(
    tmp_path / 'lone.csv',
    'seed,env_steps,eval_return',
    [(0, 1, 1.0), (1, 1, 2.0)],
    environment='cartpole',
  )
  many = _file(
    tmp_path / 'many.csv',
    'tau,seed,env_steps,train_return',
    [(number, 0, 1, 1.0) for number in range(1, 10)],
    environment='cartpole',
  )
  clock = _file(
    tmp_path / 'clock.csv',
    'seed,gradient_steps,train_return',
    [(0, 1, 1.0)],
    environment='cartpole',
  )
  for arguments, message in [
    ((study, lone), f'{lone} has seed, env_steps, eval_return'),
    ((study, clock), 'must share a clock: env_steps, gradient_steps, frames'),
    ((many,), 'must have at most 8 settings, which can be told apart, not 9'),
    ((study, '--normalize=human'), 'must be of Atari games with known scores'),
    ((study, '--normalize=none'), 'have no common unit'),
    ((study, '--reference=x'), '--reference must not be given for runs with'),
    ((lone, '--kind=improvement', '--column=eval_return'), 'two settings'),
    ((many, '--kind=heatmap'), 'must have two swept options, and --runs='),
    ((lone, '--kind=heatmap', '--column=eval_return'), 'lone.csv has none'),
    ((study, '--kind=curves', '--normalize=range'), '--normalize'),
    (
      (study, '--kind=curves', '--color=tau'),
      'must be of what is swept: agent',
    ),
    ((study, '--color=agent'), 'must go with --kind=curves or --kind=final'),
    ((study, '--kind=bars'), '--kind=bars must be one of curves, final'),
  ]:
    kind = [] if any('--kind' in str(a) for a in arguments) else ['aggregates']
    words = [*map(str, arguments), *(f'--kind={k}' for k in kind)]
    assert _plot(*words, f'--output={tmp_path}/x') == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
  assert not list(tmp_path.glob('x*'))
