"""Curves of several runs beside a published one."""

import csv

import numpy as np
import pytest
from PIL import Image

from experiments import plot
from siamrl.report import sweep as sweep_figures
from experiments.config import executing
from experiments.figures import runs as run_figures
from siamrl.report import drawing, panel
from siamrl.report.metrics import MetricsWriter
from siamrl.report.run_folder import open_run_folder


def _run(path, game, rows):
  folder, _ = open_run_folder(path, {'game': game}, {})
  with folder, MetricsWriter(folder.metrics) as writer:
    for frames, episodes, value in rows:
      writer.write(
        dict(frames=frames, train_episodes=episodes, train_return=value)
      )
  return path


def _plot(*arguments):
  return executing.execute(
    plot.PlotConfig, '', plot.main, arguments, listed='runs'
  )


@pytest.fixture
def runs(tmp_path):
  one = _run(
    tmp_path / 'one',
    'pong',
    [
      (500, 1, 2.0),
      (1000, 3, 6.0),
      (1500, 0, float('nan')),
      (2000, 2, 8.0),
      (2500, 9, 9.0),
    ],
  )
  two = _run(tmp_path / 'two', 'pong', [(1000, 1, 1.0)])
  return one, two


def test_bins_are_means_over_episodes(runs, tmp_path):
  reference = tmp_path / 'published.csv'
  reference.write_text(
    '# a source\ngame,frames_millions,return_mean,return_sd\n'
    'pong,0.001,1,0.5\npong,0.002,2,0.5\nbreakout,0.001,9,1\n'
  )
  assert not _plot(
    f'--runs={runs[0]},{runs[1]}',
    f'--output={tmp_path}/curve',
    '--bin_frames=1000',
    f'--reference={reference}',
  )
  with open(tmp_path / 'curve.csv', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  # (1 * 2 + 3 * 6) / 4; the half bin at the end is left out.
  assert rows == [
    {'frames': '1000', 'one': '5', 'two': '1'},
    {'frames': '2000', 'one': '8', 'two': 'nan'},
  ]
  with Image.open(tmp_path / 'curve.png') as image:
    assert image.format == 'PNG'


def test_short_runs_are_drawn_by_iterations(runs, tmp_path):
  assert not _plot(f'--runs={runs[0]},{runs[1]}', f'--output={tmp_path}/curve')
  with open(tmp_path / 'curve.csv', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  assert rows == [
    {'frames': '500', 'one': '2', 'two': 'nan'},
    {'frames': '1000', 'one': '6', 'two': '1'},
    {'frames': '1500', 'one': 'nan', 'two': 'nan'},
    {'frames': '2000', 'one': '8', 'two': 'nan'},
    {'frames': '2500', 'one': '9', 'two': 'nan'},
  ]


def _robots(path, environment, evaluations):
  """The folder of a run on the host that is no game's."""
  folder, _ = open_run_folder(path, {'environment': environment}, {})
  with folder, MetricsWriter(folder.metrics) as writer:
    for number, value in enumerate(evaluations, 1):
      writer.write(
        dict(
          frames=500 * number,
          env_steps=500 * number,
          train_episodes=1,
          train_return=0.0,
          eval_episodes=2,
          eval_return=value,
        )
      )
  return path


def test_robots_by_env_steps_beside_what_was_published(tmp_path, monkeypatch):
  one = _robots(tmp_path / 'one', 'Hopper-v5', [1.0, 3.0, 4.0])
  two = _robots(tmp_path / 'two', 'Hopper-v5', [3.0, 5.0])
  reference = tmp_path / 'published.csv'
  reference.write_text(
    'environment,env_steps,return_mean,return_sd\n'
    'Hopper,500,7,1\nHopper,1500,8,1\nHopper,2500,9,1\nAnt,500,0,0\n'
  )
  drawn = {}

  def draw(path, series, references, **words):
    drawn.update(words, series=series, references=references)

  monkeypatch.setattr(run_figures, 'plot_curve', draw)
  assert not _plot(
    f'--runs={one},{two}',
    f'--output={tmp_path}/curve',
    '--column=eval_return',
    f'--reference={reference}',
  )
  assert drawn['title'] == 'Hopper-v5'
  assert drawn['x_label'] == 'env steps'
  assert drawn['y_label'] == 'evaluation return'
  (mean,), (published,) = drawn['series'], drawn['references']
  np.testing.assert_array_equal(mean.x, [500, 1000, 1500])
  np.testing.assert_array_equal(mean.y, [2, 4, 4])
  np.testing.assert_array_equal(published.x, [500, 1500])
  np.testing.assert_array_equal(published.y, [7, 8])
  with open(tmp_path / 'curve.csv', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  assert rows[2] == {'env_steps': '1500', 'one': '4', 'two': 'nan'}


def test_what_it_refuses_of_robots(tmp_path, capsys):
  one = _robots(tmp_path / 'one', 'Hopper-v5', [1.0])
  two = _robots(tmp_path / 'two', 'Ant-v5', [1.0])
  reference = tmp_path / 'published.csv'
  reference.write_text('environment,env_steps,return_mean,return_sd\n')
  for arguments, message in [
    ((f'--runs={one},{two}',), 'not Ant-v5, Hopper-v5'),
    ((f'--runs={one}', '--column=loss'), '--column=loss must be one of train'),
    (
      (f'--runs={one}', f'--reference={reference}'),
      'must hold the environment Hopper',
    ),
  ]:
    assert _plot(*arguments, f'--output={tmp_path}/x') == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def _on_data(path, columns):
  """The folder of a run that has learned from a data set."""
  folder, _ = open_run_folder(path, {'environment': 'car_on_hill'}, {})
  with (
    folder,
    MetricsWriter(folder.metrics, step_column='gradient_steps') as writer,
  ):
    for number in (1, 2):
      values = {name: number * value for name, value in columns.items()}
      writer.write({'gradient_steps': 50 * number} | values)
  return path


def test_runs_on_data_sets(tmp_path, monkeypatch, capsys):
  one = _on_data(tmp_path / 'one', {'loss': 3.0, 'grid_return': 0.2})
  two = _on_data(tmp_path / 'two', {'loss': 5.0, 'grid_return': 0.4})
  drawn = {}

  def draw(path, series, references, **words):
    drawn.update(words, series=series)

  monkeypatch.setattr(run_figures, 'plot_curve', draw)
  output = f'--output={tmp_path}/curve'
  for column, label, ends in [
    ((), 'grid return', [0.3, 0.6]),
    (('--column=loss',), 'loss', [4, 8]),
  ]:
    assert not _plot(f'--runs={one},{two}', output, *column)
    assert (drawn['x_label'], drawn['y_label']) == ('gradient steps', label)
    (mean,) = drawn['series']
    np.testing.assert_array_equal(mean.x, [50, 100])
    np.testing.assert_allclose(mean.y, ends)
  for arguments, message in [
    ((output, '--column=train_return'), 'must be one of gradient_steps, loss'),
    ((output, '--reference=x.csv'), '--reference must not be given for runs'),
    ((f'--output={tmp_path}/no/x',), 'no/x must lie in a folder that exists'),
  ]:
    assert _plot(f'--runs={one}', *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
  'arguments, message, code',
  [
    ((), '--runs must be given', 2),
    (
      ('--runs=/nowhere', '--output={out}'),
      '--runs=/nowhere must be the folder',
      2,
    ),
    (
      ('--runs={two}', '--output={out}', '--bin_frames=2000'),
      '1,000 frames',
      1,
    ),
    (
      (
        '--runs={two}',
        '--output={out}',
        '--bin_frames=9',
        '--reference={none}',
      ),
      'cannot be read',
      2,
    ),
  ],
)
def test_what_it_refuses(runs, tmp_path, arguments, message, code, capsys):
  filled = [
    a.format(two=runs[1], none=tmp_path / 'none', out=tmp_path / 'x')
    for a in arguments
  ]
  assert _plot(*filled) == code
  error = capsys.readouterr().err
  assert message in error
  assert len(error.splitlines()) == 1
  assert not (tmp_path / 'x.csv').exists()


def _sweep(path, axes, settings, seeds=2):
  """A sweep's folder: two iterations that end at the numbers of settings."""
  flags_ = {name: ','.join(values) for name, values in axes.items()}
  folder, _ = open_run_folder(path, flags_ | {'learning_rate': '0.1'}, {})
  with folder, MetricsWriter(folder.metrics) as writer:
    for steps in (500, 1000):
      writer.write_rows(
        [
          setting
          | dict(
            seed=seed,
            learning_rate=0.1,
            env_steps=steps,
            train_return=(end + seed) * steps / 1000,
            drift=1.0,
          )
          for setting, end in settings
          for seed in range(seeds)
        ]
      )
  return path


TWINS = (
  {
    'target_update': ['hard', 'soft', 'self'],
    'target_period': ['1', '100'],
    'tau': ['0.5', '0.02'],
  },
  [
    (dict(target_update=rule, target_period=period, tau=tau), end)
    for rule, period, tau, end in [
      ('hard', 1, None, 10),
      ('hard', 100, None, 20),
      ('soft', None, 0.5, 30),
      ('soft', None, 0.02, 40),
      ('self', None, None, 50),
    ]
  ],
)


@pytest.fixture
def finals(monkeypatch):
  """What was asked of each figure of final numbers."""
  asked = []
  draw = sweep_figures.plot_final
  monkeypatch.setattr(
    sweep_figures,
    'plot_final',
    lambda *a, **k: (asked.append((*a, k)), draw(*a, **k)),
  )
  return asked


def test_a_sweep(tmp_path, finals):
  folder = _sweep(tmp_path / 'sweep', *TWINS)
  assert not _plot(f'--runs={folder}', f'--output={tmp_path}/out')
  with open(tmp_path / 'out.csv', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  assert rows[0] == {
    'target_update': 'hard',
    'target_period': '1',
    'tau': '',
    'seeds': '2',
    'final': '10.5',
    # 12.706 standard errors to each side, of two runs.
    'final_low': '4.1469',
    'final_high': '16.8531',
    'area': '7.875',
    'area_low': '3.11017',
    'area_high': '12.6398',
  }
  assert [row['final'] for row in rows] == [
    f'{n}.5' for n in (10, 20, 30, 40, 50)
  ]
  curves = (tmp_path / 'out-curves.csv').read_text().splitlines()
  assert curves[:5] == [
    '# --learning_rate=0.1',
    'target_update,target_period,tau,seed,env_steps,train_return',
    'hard,1,,0,500,5',
    'hard,1,,0,1000,10',
    'hard,1,,1,500,5.5',
  ]
  assert len(curves) == 2 + 5 * 2 * 2
  for name in ('out', 'out-final'):
    with Image.open(tmp_path / f'{name}.png') as image:
      assert image.format == 'PNG'
  ((_, _, asked),) = finals
  assert asked['lines'] == ['target_update']
  place = asked['position']
  assert place(dict(target_period=7, tau=None)) == 7
  assert place(dict(target_period=None, tau=0.02)) == 99
  assert place(dict(target_period=3, tau=0.5)) == 9
  assert place(dict(target_period=None, tau=None)) is None


def test_periods_in_another_unit_have_no_match(tmp_path, finals):
  axes, settings = TWINS
  axes = axes | {'target_period_unit': ['frames']}
  folder = _sweep(tmp_path / 'sweep', axes, settings)
  assert not _plot(f'--runs={folder}', f'--output={tmp_path}/out')
  ((_, _, asked),) = finals
  assert asked['lines'] == ['target_update', 'tau']
  assert asked['position'](dict(target_period=7, tau=None)) == 7
  assert asked['x_label'] == 'target period (frames)'


def test_periods_are_matched_in_gradient_steps(tmp_path, finals):
  axes, settings = TWINS
  axes = axes | {'target_period_unit': ['env_steps'], 'train_period': ['4']}
  folder = _sweep(tmp_path / 'sweep', axes, settings)
  assert not _plot(f'--runs={folder}', f'--output={tmp_path}/out')
  ((_, _, asked),) = finals
  assert asked['lines'] == ['target_update']
  assert asked['position'](dict(target_period=100, tau=None)) == 25
  assert asked['position'](dict(target_period=None, tau=0.02)) == 99


def test_settings_at_one_place_are_lines_apart(tmp_path, finals):
  """Periods 1 and 3 with rates 0.5 and 1: 1 * 3 is 3 * 1."""
  axes = {'target_period': ['1', '3'], 'tau': ['0.5', '1']}
  settings = [
    (dict(target_period=period, tau=tau), 1.0)
    for period in (1, 3)
    for tau in (0.5, 1.0)
  ]
  folder = _sweep(tmp_path / 'sweep', axes, settings)
  assert not _plot(f'--runs={folder}', f'--output={tmp_path}/out')
  ((_, _, asked),) = finals
  assert asked['lines'] == ['tau']
  assert asked['position'](dict(target_period=3, tau=0.5)) == 3


def test_a_sweep_of_games_and_another_column(tmp_path, finals):
  axes = {'game': ['pong', 'asterix'], 'n_step': ['1', '3']}
  settings = [
    (dict(game=game, n_step=int(n)), 1.0)
    for game in axes['game']
    for n in axes['n_step']
  ]
  folder = _sweep(tmp_path / 'sweep', axes, settings, seeds=1)
  arguments = (f'--runs={folder}', f'--output={tmp_path}/out', '--column=drift')
  assert not _plot(*arguments)
  assert sorted(path.name for path in tmp_path.glob('out*')) == [
    'out-asterix-final.png',
    'out-asterix.png',
    'out-curves.csv',
    'out-pong-final.png',
    'out-pong.png',
    'out.csv',
  ]
  assert [asked[-1]['title'] for asked in finals] == ['pong', 'asterix']
  assert finals[0][-1]['lines'] == []
  assert finals[0][-1]['position']({'n_step': 3}) == 3
  lines = (tmp_path / 'out.csv').read_text().splitlines()
  assert lines[1] == 'pong,1,1,1,nan,nan,1,nan,nan'


def test_what_it_refuses_of_sweeps(runs, tmp_path, capsys):
  folder = _sweep(tmp_path / 'sweep', *TWINS)
  output = f'--output={tmp_path}/x'
  for arguments, message in [
    (
      (f'--runs={folder},{runs[0]}',),
      'must be one folder where it is of a sweep',
    ),
    ((f'--runs={folder}', '--column=loss'), '--column=loss must be one of'),
    (
      (f'--runs={folder}', '--column=target_update'),
      'must be one of target_pe',
    ),
    ((f'--runs={folder}', '--reference=x'), '--reference must not be given'),
  ]:
    assert _plot(*arguments, output) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
  assert not list(tmp_path.glob('x*'))


def _measured(path, flags_, rows):
  """A folder of runs that have measured the age of their twin."""
  folder, _ = open_run_folder(path, flags_, {})
  with folder, MetricsWriter(folder.metrics) as writer:
    writer.write_rows(rows)
  return path


def _atari(path, scale=1.0):
  return _measured(
    path,
    {'game': 'pong', 'discount': '0.9', 'reward_bound': '2.0'},
    [
      {
        'frames': 4 * steps,
        'env_steps': steps,
        'train_return': scale * steps,
        'panel/twin_age': scale * steps,
        'panel/q_max_abs': scale,
      }
      for steps in (100, 200)
    ],
  )


def _grid(path):
  axes = {'environment': 'catch,chain', 'target_period': '1,9', 'discount': '1'}
  return _measured(
    path,
    axes,
    [
      {
        'environment': environment,
        'target_period': period,
        'seed': seed,
        'env_steps': 100,
        'train_return': 1.0,
        'panel/twin_age': float(period),
      }
      for environment in ('catch', 'chain')
      for period in (1, 9)
      for seed in (0, 1)
    ],
  )


@pytest.fixture
def panels(monkeypatch):
  """What was asked of each figure of the panel."""
  asked = []
  draw = panel.plot_panel
  monkeypatch.setattr(
    panel,
    'plot_panel',
    lambda *a, **k: (asked.append((*a, k)), draw(*a, **k)),
  )
  return asked


def test_the_panel_of_a_run(tmp_path, panels):
  run = _atari(tmp_path / 'pong-0')
  assert not _plot('--panel=twin', str(run))
  assert not _plot(str(run), '--panel=twin', f'--output={tmp_path}/out')
  assert not _plot(f'--runs={run}', '--panel=twin')
  assert (run / 'curve-panel.png').exists()
  assert (tmp_path / 'out.png').exists()
  for _, _, asked in panels:
    assert asked['x'] == 'frames'
    assert asked['by'] == []
    assert asked['title'] == 'pong-0'
    assert asked['bound'] == pytest.approx(20)


def test_the_panel_of_several_runs(tmp_path, panels):
  runs = [_atari(tmp_path / name / 'x', len(name)) for name in ('a', 'bb')]
  names = [str(run) for run in runs]
  assert not _plot('--panel=twin', *names, f'--output={tmp_path}/out')
  ((_, table, asked),) = panels
  assert asked['by'] == ['run']
  # Folders of one name are told apart by their paths.
  assert table['run'].tolist() == [names[0], names[0], names[1], names[1]]
  np.testing.assert_array_equal(table['panel/twin_age'], [100, 200, 200, 400])
  assert _plot('--panel=twin', *names) == 2  # no output


def test_the_panel_of_a_sweep(tmp_path, panels):
  folder = _grid(tmp_path / 'grid')
  assert not _plot('--panel=twin', str(folder))
  assert sorted(path.name for path in folder.glob('*.png')) == [
    'curve-panel-catch.png',
    'curve-panel-chain.png',
  ]
  assert [asked['title'] for *_, asked in panels] == ['catch', 'chain']
  assert [asked['bound'] for *_, asked in panels] == [None, None]
  assert all(asked['by'] == ['target_period'] for *_, asked in panels)


def test_a_sweep_that_was_measured_has_its_panel_beside_its_curve(tmp_path):
  folder = _grid(tmp_path / 'grid')
  assert not _plot(f'--runs={folder}', f'--output={tmp_path}/out')
  assert sorted(path.name for path in tmp_path.glob('out*.png')) == [
    'out-catch-final.png',
    'out-catch-panel.png',
    'out-catch.png',
    'out-chain-final.png',
    'out-chain-panel.png',
    'out-chain.png',
  ]


def test_what_it_refuses_of_panels(runs, tmp_path, capsys):
  grid, pong = str(_grid(tmp_path / 'grid')), str(_atari(tmp_path / 'pong'))
  for arguments, message, code in [
    ((str(runs[0]),), 'train with --panel_period=1', 1),
    (('/nowhere',), '--runs=/nowhere must be the folder', 2),
    ((grid, pong, '--output=x'), 'must be one folder', 2),
    ((pong, '--reference=x'), '--reference must not be given', 2),
    ((pong, f'--runs={pong}'), 'must not be given beside --runs', 2),
    ((), '--runs must be given', 2),
  ]:
    assert _plot('--panel=twin', *arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
  assert not list(tmp_path.glob('**/*.png'))


def test_final_numbers_of_an_unfinished_sweep_are_of_one_time(
  tmp_path, finals, capsys
):
  """The second setting has come half as far as the first."""
  flags_ = {'tau': '0.1,0.5'}
  folder = _measured(
    tmp_path / 'sweep',
    flags_,
    [
      dict(tau=tau, seed=seed, env_steps=steps, train_return=float(steps))
      for tau, last in ((0.1, 40), (0.5, 20))
      for seed in (0, 1)
      for steps in range(2, last + 1, 2)
    ],
  )
  assert not _plot(f'--runs={folder}', f'--output={tmp_path}/out')
  lines = (tmp_path / 'out.csv').read_text().splitlines()
  assert lines[0] == '# of the first 20 env_steps'
  assert [line.split(',')[2] for line in lines[2:]] == ['20', '20']
  assert 'the first 20 env_steps' in capsys.readouterr().out
  ((_, table, asked),) = finals
  assert table['env_steps'].max() == 20
  assert asked['y_label'].endswith('last 10 % of the first 20 env steps')
  # The curves are as long as they are.
  curves = (tmp_path / 'out-curves.csv').read_text().splitlines()
  assert len(curves) == 1 + 2 * 20 + 2 * 10


def test_a_results_file_is_drawn_again(tmp_path, finals):
  folder = _sweep(tmp_path / 'sweep', *TWINS)
  assert not _plot(f'--runs={folder}', f'--output={tmp_path}/out')
  again = tmp_path / 'again'
  again.mkdir()
  source = tmp_path / 'out-curves.csv'
  assert not _plot(f'--runs={source}', f'--output={again}/sweep')
  for name in ('', '-final'):
    assert (again / f'sweep{name}.png').exists()
  assert (again / 'sweep.csv').read_text() == (tmp_path / 'out.csv').read_text()
  assert not (again / 'sweep-curves.csv').exists()
  (_, one, asked), (_, other, asked_again) = finals
  np.testing.assert_array_equal(one['train_return'], other['train_return'])
  assert asked['lines'] == asked_again['lines']
  assert asked_again['title'] == 'out'


def test_what_is_asked_of_a_sweep(tmp_path, capsys):
  folder = _sweep(tmp_path / 'sweep', *TWINS)
  output = f'--output={tmp_path}/out'
  assert not _plot(f'--runs={folder}', output, '--facet=target_update')
  for option in ('facet', 'color'):
    assert _plot(f'--runs={folder}', output, f'--{option}=tau,n_step') == 2
    error = capsys.readouterr().err
    assert f'--{option}=tau,n_step must be of what is swept' in error
    assert 'target_update, target_period, tau' in error


def test_changes_at_a_sync_are_taken_apart(tmp_path):
  """A step of five moves the twin, and its change is no point of the line."""
  rows = [
    {
      'env_steps': 100 * number,
      'train_return': 1.0,
      'panel/target_churn': 50.0 if number == 3 else 0.1,
      'panel/churn_synced': int(number == 3),
    }
    for number in range(1, 6)
  ]
  drawn = []
  make = drawing.new_figure
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      drawing,
      'new_figure',
      lambda *size: drawn.append(make(*size)) or drawn[-1],
    )
    run = _measured(tmp_path / 'run', {'environment': 'catch'}, rows)
    assert not _plot('--panel=twin', str(run))
    (figure,) = drawn
    (axes,) = [
      a for a in figure.axes if 'churn' in a.get_title(loc='left').lower()
    ]
    line, circles = axes.lines[:2]
    assert line.get_xdata().tolist() == [100, 200, 400, 500]
    assert circles.get_xydata().tolist() == [[300, 50]]
    assert circles.get_linestyle() == 'None'
    title = figure.legends[0].get_title().get_text()
    assert 'circles: the twin moved' in title
