"""Studies of several arms: what their arms are, and how they are run."""

import csv
import importlib
import pathlib
import signal
import subprocess
import sys
import time
import tomllib

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import criteria, table
from experiments.config import collecting, executing, reading
from experiments.families import q
from experiments.minatar import MinAtarConfig
from experiments.studies import arms
from siamrl import twins
from siamrl.report.results import read_results
from tests.experiments.resolved import LAUNCHERS, _OPTIONS

ROOT = pathlib.Path(__file__).parents[2]
OPTIONS = {
  of.__name__.removeprefix('experiments.'): cls for of, cls in _OPTIONS.items()
}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
  monkeypatch.chdir(ROOT)


def _sweep(name):
  return reading.sweep_from_arguments(MinAtarConfig, f'--flagfile={name}')


@pytest.mark.parametrize('name', arms.names())
def test_arms_can_be_run(name):
  study = arms.read_study(name)
  importlib.import_module(f'experiments.{study.launcher}')
  assert name in criteria.STUDIES
  assert criteria.STUDIES[name].columns == (study.measure,)
  for arm, arguments in study.arms.items():
    sweep = reading.sweep_from_arguments(OPTIONS[study.launcher], *arguments)
    assert sweep.configs[0].seeds >= 5, arm
    (preset,) = (a.split('=')[1] for a in arguments if 'flagfile' in a)
    assert LAUNCHERS[preset].__name__ == f'experiments.{study.launcher}'
    for config in sweep.configs:
      if study.launcher != 'gym':
        q.check(config)


# Revisiting Rainbow's code and the papers; the flag files name the lines.
ARMS = {
  'double': {'target_form': 'double'},
  'prioritized': {'replay': 'prioritized'},
  'n_step': {'n_step': 3},
  'c51': dict(
    agent='c51', num_atoms=51, v_min=-100, v_max=100, learning_rate=1e-4
  ),
  'qrdqn': dict(agent='qrdqn', quantiles=51, learning_rate=1e-4),
  'iqn': dict(
    agent='iqn',
    fractions=8,
    target_fractions=8,
    acting_fractions=8,
    fractions_per='batch',
    cosines=64,
    learning_rate=1e-4,
  ),
}
ARMS['m_iqn'] = ARMS['iqn'] | dict(
  target_form='munchausen',
  soft_temperature=0.03,
  munchausen_alpha=0.9,
  munchausen_clip=-1,
)
ARMS['rainbow'] = ARMS['c51'] | dict(
  target_form='double',
  head='dueling',
  n_step=3,
  replay='prioritized',
  priority='loss',
  priority_exponent=0.5,
  importance_start=0.5,
  importance_end=0.5,
  noisy_std=0.1,
  epsilon_start=0.01,
)


def test_arms_of_the_table_differ_from_dqn_as_named():
  dqn = _sweep('minatar_table_dqn')
  assert dqn.axes == {'game': ('breakout', 'asterix', 'space_invaders')}
  assert dqn.configs[0].env_steps == 250_000
  assert dqn.configs[0].protocol == 'paper'
  study = arms.read_study('minatar_table')
  assert set(study.arms) == {'dqn', 'pqn', 'stream_q', *ARMS}
  for arm, expected in ARMS.items():
    sweep = _sweep(f'minatar_table_{arm}')
    assert sweep.axes == dqn.axes
    for ours, base in zip(sweep.configs, dqn.configs, strict=True):
      found = {
        name: value
        for name, value in vars(ours).items()
        if value != getattr(base, name)
      }
      assert found == expected, arm


def test_stream_q_of_the_table_differs_from_its_source_as_named():
  ours = _sweep('minatar_table_stream_q')
  source = _sweep('stream_q_minatar').configs[0]
  assert ours.axes == _sweep('minatar_table_dqn').axes
  config = ours.configs[0]
  differing = {n for n, v in vars(config).items() if v != getattr(source, n)}
  assert differing == {
    *('seeds', 'env_steps', 'iteration_env_steps', 'epsilon_decay'),
  }
  assert config.epsilon_decay / 250_000 == source.epsilon_decay / 5e6


def test_pqn_of_the_table_differs_from_its_source_as_named():
  pqn, source = _sweep('minatar_table_pqn'), _sweep('pqn_minatar').configs[0]
  dqn = _sweep('minatar_table_dqn')
  assert pqn.axes == dqn.axes
  config = pqn.configs[0]
  differing = {n for n, v in vars(config).items() if v != getattr(source, n)}
  assert differing == {
    *('protocol', 'seeds', 'env_steps', 'iteration_env_steps'),
    'epsilon_decay',
  }
  assert config.env_steps == 61 * 4096
  assert config.env_steps % config.iteration_env_steps == 0
  assert config.epsilon_decay / 250_000 == source.epsilon_decay / 1e7


@pytest.mark.parametrize('arm', ['dqn', 'c51', 'qrdqn'])
def test_twins_of_distributions(arm):
  sweep = _sweep(f'twin_distributions_{arm}')
  points = [
    (point['game'], point['target_form'] or point['target_update'])
    for point in sweep.points
  ]
  kinds = ('hard', 'self', 'soft', 'minto', 'hard_geometric')
  assert sorted(points) == sorted(
    (game, kind) for game in ('breakout', 'asterix') for kind in kinds
  )
  of = {kind: c for (_, kind), c in zip(points, sweep.configs, strict=True)}
  assert {config.agent for config in sweep.configs} == {arm}
  ages = {
    kind: collecting.twin_spec(of[kind]).mean_age()
    for kind in ('hard', 'soft', 'minto')
  }
  assert ages['hard'] == ages['minto'] == 499.5
  assert ages['soft'] == pytest.approx(499.5, rel=1e-6)
  assert of['minto'].target_update == 'hard'
  alone = _sweep(f'minatar_table_{arm}').configs[0]
  differing = {n for n, v in vars(of['hard']).items() if v != getattr(alone, n)}
  assert differing - {'game', 'also'} == {'target_period_unit'}


def test_growing_periods_are_as_long_on_average():
  config = _sweep('twin_distributions_dqn').configs[-1]
  assert config.target_update == 'hard_geometric'
  growth = config.target_period_growth
  assert growth == pytest.approx(config.discount ** (-2 / 3), rel=1e-6)
  steps = (config.env_steps - config.min_replay) // config.train_period
  periods = np.asarray(
    jax.vmap(twins.geometric_period, (0, None, None))(
      np.arange(63), config.target_period, growth
    )
  )
  ends = np.cumsum(periods)
  assert ends[61] <= steps < ends[62]  # 62 copies
  assert ends[61] / 62 == pytest.approx(1_003, abs=0.5)
  assert periods[61] == 1_222
  # Of each period the twin is half as old on average.
  age = np.sum(np.square(periods[:62])) / 2 / ends[61]
  assert age == pytest.approx(509, abs=0.5)


# A study of the launcher of small environments, and runs of two iterations.
STUDY = """
launcher = "classic"
measure = "train_return"
baseline = {arm = "plain"}

[arms]
plain = "--environment=catch,cartpole"
broken = "--environment=catch --batch_size=0"
double = "--environment=catch,cartpole --target_form=double"
"""
SMALL = (
  '--platform=cpu --env_steps=400 --iteration_env_steps=200 --num_envs=2 '
  '--train_period=2 --batch_size=8 --min_replay=50 --replay_capacity=200 '
  '--hidden_sizes=8 --epsilon_decay=100 --target_period=4 --seeds=2'
)


@pytest.fixture
def toy(tmp_path, monkeypatch):
  """The folder of studies that holds one, named toy."""
  folder = tmp_path / 'studies'
  folder.mkdir()
  (folder / 'toy.toml').write_text(STUDY)
  monkeypatch.setattr(arms, '_FOLDER', folder)
  return tmp_path / 'runs'


def _main(run_dir, **options):
  table.main(table.TableConfig(study='toy', run_dir=str(run_dir), **options))


def _stand_in(monkeypatch, tmp_path, body):
  """Has arms run a script in place of a launcher."""
  script = tmp_path / 'launcher.py'
  script.write_text(
    'import pathlib, sys, time\n'
    "(run_dir,) = (a[10:] for a in sys.argv if a.startswith('--run_dir='))\n"
    'path = pathlib.Path(run_dir)\n' + body
  )
  start = table._start

  def started(command, *rest):
    return start([sys.executable, str(script), *command[3:]], *rest)

  monkeypatch.setattr(table, '_start', started)


# Rows of a sweep over two tasks with two seeds; `broken` fails.
ROWS = """
if path.name == 'broken':
  print('one')
  print('the last words')
  sys.exit(3)
path.mkdir(exist_ok=True)
(path / 'flags.txt').write_text(
  '# siamrl run folder; python ... --flagfile=<this file> runs it again\\n'
  '--environment=catch,cartpole\\n--discount=0.9\\n--seeds=2\\n')
(path / 'config.json').write_text('{"derived": {"rows": 8}}')
better = path.name == 'double'
with (path / 'metrics.csv').open('w') as file:
  print('environment,seed,env_steps,train_return', file=file)
  for unit, task in ((1, 'catch'), (100, 'cartpole')):
    for seed in (0, 1):
      for t in (1, 2):
        score = unit * (2 + 2 * better) * (0.5 + seed) * (t == 2)
        print(f'{task},{seed},{t},{score}', file=file)
with (path / 'starts').open('a') as file:
  print('started', file=file)
"""


def test_arms_run_and_a_failed_one_does_not_stop_others(
  toy, tmp_path, monkeypatch, capsys
):
  _stand_in(monkeypatch, tmp_path, ROWS)
  with pytest.raises(table.RunError, match='1 of 3 arms failed.*broken'):
    _main(toy)
  said = capsys.readouterr().out
  assert 'the last words' in said and 'exit code 3' in said
  assert 'broken has no rows yet' in said
  # Finished arms are skipped; the failed one is tried again.
  with pytest.raises(table.RunError):
    _main(toy)
  assert 'double: finished before' in capsys.readouterr().out
  assert (toy / 'double' / 'starts').read_text().count('started') == 1
  # An arm with other arguments begins, so that its launcher can object.
  _main(toy, arms='double', flags='--discount=0.5')
  assert (toy / 'double' / 'starts').read_text().count('started') == 2


def test_the_table_by_hand(toy, tmp_path, monkeypatch):
  _stand_in(monkeypatch, tmp_path, ROWS)
  _main(toy, arms='plain,double')
  with (toy / 'toy-table.csv').open() as file:
    rows = list(csv.DictReader(r for r in file if not r.startswith('#')))
  found = {(row['arm'], row['environment']): row for row in rows}
  # Scores of the two seeds: 1 and 3 of plain, 2 and 6 of double.
  assert len(found) == 6
  assert float(found['plain', 'catch']['mean']) == 2
  assert float(found['double', 'cartpole']['mean']) == 400
  assert found['double', 'cartpole']['seeds'] == '2'
  # Student's t with one degree of freedom is 12.7062 at 97.5 %; the standard
  # error of 1 and 3 is 1.
  assert float(found['plain', 'catch']['mean_high']) == pytest.approx(14.7062)
  # In units of plain's means, double scores 1 and 3 in both tasks. The IQM of
  # 1, 1, 3, 3 is 2; the mean of two tasks, each with a standard error of 1, has
  # one of sqrt(1 / 2) with two degrees of freedom.
  assert float(found['double', 'all']['iqm']) == 2
  low = 2 - 4.302653 / np.sqrt(2)
  assert float(found['double', 'all']['mean_low']) == pytest.approx(
    low, rel=1e-5
  )
  assert float(found['double', 'all']['iqm_low']) == 1  # all draws alike
  with Image.open(toy / 'toy-table.png') as image:
    assert image.size[0] > 300
  # The curves alone give the same report, and share what all arms share.
  curves = toy / 'toy-curves.csv'
  read = read_results(curves)
  assert read.flags == {'discount': '0.9'}
  assert list(read.table) == [
    *('arm', 'environment', 'seed', 'env_steps', 'train_return')
  ]
  table.main(
    table.TableConfig(
      study='toy',
      run_dir=str(curves),
      only_report=True,
      output=str(tmp_path / 'again'),
    )
  )
  again = (tmp_path / 'again-table.csv').read_text()
  assert again == (toy / 'toy-table.csv').read_text()


def test_runs_of_the_host_have_folders_of_their_own(toy):
  study = arms.read_study('toy')
  for seed, rows in ((0, '100,1\n200,3\n'), (1, '100,2\n'), (2, None)):
    folder = toy / 'plain' / f'seed={seed}'
    folder.mkdir(parents=True)
    (folder / 'flags.txt').write_text(
      '# siamrl run folder; python ... --flagfile=<this file> runs it again\n'
      f'--environment=catch\n--seed={seed}\n'
    )
    # The last run has begun, and has no rows yet.
    text = '' if rows is None else 'env_steps,train_return\n' + rows
    (folder / 'metrics.csv').write_text(text)
  missing = arms.write_curves(toy / 'curves.csv', study, toy)
  assert missing == ['broken', 'double']
  read = read_results(toy / 'curves.csv')
  assert list(read.table) == [
    *('arm', 'environment', 'seed', 'env_steps', 'train_return')
  ]
  assert read.table['seed'].tolist() == [0, 0, 1]
  assert read.table['train_return'].tolist() == [1, 3, 2]
  assert not arms.is_finished(toy / 'broken')


def test_jobs_have_their_share_of_the_cores(toy, tmp_path, monkeypatch):
  if table.devices.cores() < 2:
    pytest.skip('one core')
  _stand_in(
    monkeypatch,
    tmp_path,
    ROWS.replace("'started'", "len(__import__('os').sched_getaffinity(0))"),
  )
  before = table.devices.cores()
  _main(toy, arms='plain,double', jobs=2)
  assert table.devices.cores() == before
  found = [int((toy / n / 'starts').read_text()) for n in ('plain', 'double')]
  assert sum(found) == before and min(found) >= 1


def test_a_stop_reaches_the_arm_and_nothing_else_begins(toy, tmp_path):
  """SIGTERM is passed on once, and the arm that it stops is not finished."""
  (toy.parent / 'main.py').write_text(
    'import pathlib, sys\n'
    'from experiments import table\n'
    'from experiments.studies import arms\n'
    f'arms._FOLDER = pathlib.Path({str(toy.parent / "studies")!r})\n'
    'start = table._start\n'
    'table._start = lambda command, *rest: start(\n'
    f'  [sys.executable, {str(tmp_path / "launcher.py")!r}, *command[3:]],\n'
    '  *rest)\n'
    f'table.main(table.TableConfig(study="toy", run_dir={str(toy)!r}))\n'
  )
  (tmp_path / 'launcher.py').write_text(
    'import pathlib, signal, sys, time\n'
    "(run_dir,) = (a[10:] for a in sys.argv if a.startswith('--run_dir='))\n"
    'path = pathlib.Path(run_dir)\n'
    'path.mkdir()\n'
    'def stop(*_):\n'
    "  (path / 'stopped').write_text('')\n"
    '  sys.exit(0)\n'
    'signal.signal(signal.SIGTERM, stop)\n'
    "(path / 'ready').write_text('')\n"
    'time.sleep(60)\n'
  )
  process = subprocess.Popen(
    [sys.executable, str(toy.parent / 'main.py')],
    env={'PYTHONPATH': str(ROOT), 'PATH': '/usr/bin:/bin'},
  )
  ready = toy / 'plain' / 'ready'
  deadline = time.monotonic() + 60
  while not ready.exists() and time.monotonic() < deadline:
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  assert process.wait(60) == 0
  assert (toy / 'plain' / 'stopped').exists()
  assert not (toy / 'plain.done').exists()
  assert not (toy / 'broken').exists()


@pytest.mark.parametrize(
  'arguments, message',
  [
    ([], '--run_dir must be given'),
    (['--run_dir=x', '--arms=dqn,dqm'], '--arms=dqn,dqm must be of dqn'),
    (['--run_dir=x', '--jobs=1000'], '--jobs=1000 must be at most'),
    (['--study=none'], '--study=none must be one of cleanrl_classic'),
    (['--run_dir=nowhere', '--only_report'], 'holds no rows of --study='),
  ],
)
def test_bad_input(arguments, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  code = executing.execute(table.TableConfig, '', table.main, arguments)
  assert code in (1, 2)
  assert message in capsys.readouterr().err
  assert not (tmp_path / 'x').exists()


@pytest.mark.slow
def test_real_launchers_run_resume_and_are_judged(toy, capsys):
  _main(toy, arms='plain,double', flags=SMALL)
  _main(toy, arms='plain,double', flags=SMALL)
  assert capsys.readouterr().out.count('finished before') == 2
  read = read_results(toy / 'toy-curves.csv')
  assert len(read.table['seed']) == 2 * 2 * 2 * 2
  assert read.flags['hidden_sizes'] == '8'


def test_help_names_every_study():
  for name in arms.names():
    assert f'  {name}: ' in table.__doc__
    tomllib.loads((arms._FOLDER / f'{name}.toml').read_text())
