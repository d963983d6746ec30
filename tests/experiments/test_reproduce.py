"""Studies: their files, what their arms are, and how they are run."""

import csv
import pathlib
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import launchers, plot, reproduce, sweep
from experiments.config import collecting, executing, reading
from experiments.config.declaring import RunError, UsageError
from experiments.engines import driving
from experiments.engines.cells import Cell
from experiments.engines.sweep_folders import SweepFolder
from experiments.families import actor_critic, q, siamese
from experiments.minatar import MinAtarConfig
from experiments.studies import matching
from experiments.studies import study as studies
from experiments.studies.claims import Claim
from siamrl import twins
from siamrl.report.results import Results, read_results

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / 'experiments' / 'results'
FAMILIES = {
  'classic': q.FAMILY,
  'minatar': q.FAMILY,
  'control': actor_critic.FAMILY,
  'siamese': siamese.FAMILY,
}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
  monkeypatch.chdir(ROOT)


@pytest.fixture(autouse=True)
def _registries(kept_rules):
  """Studies may bring rules of their own."""


def _sweep(name):
  return reading.sweep_from_arguments(MinAtarConfig, f'--flagfile={name}')


@pytest.mark.parametrize('name', studies.names())
def test_a_study_can_be_run_and_judged(name):
  study = studies.read_study(name)
  criteria = study.load_criteria()
  assert set(criteria.columns) <= set(study.columns)
  assert len(study.question) > 20 and 'core hour' in study.cost
  cells = sweep.cells_of(study.sweep)
  assert {cell.point.get('arm', '') for cell in cells} == set(study.sweep.arms)
  for arm, (launcher, _) in study.sweep.arms.items():
    of_arm = [c for c in cells if c.point.get('arm', '') == arm]
    if study.criteria is not None and not criteria.afterwards:
      # Intervals need seeds.
      seeds = sum(int(cell.options.get('seeds', '1')) for cell in of_arm)
      assert seeds >= 5
    family = FAMILIES.get(launcher)
    sweep_ = reading.sweep_from_arguments(
      launchers.options_of(launcher), *of_arm[0].arguments
    )
    for config in sweep_.configs if family else ():
      if launchers.compiles(launcher, config):
        family.check(config)
  for ending, arguments in study.figures.items():
    reading.from_arguments(plot.PlotConfig, *arguments, listed='runs')
    png = RESULTS / f'{name}{ending}.png'
    published = {path.name for path in RESULTS.glob(f'{name}{ending}*.png')}
    assert not studies.is_published(name) or published, png


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
  study = studies.read_study('minatar_table')
  assert set(study.sweep.arms) == {'dqn', 'pqn', 'stream_q', *ARMS}
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


@pytest.mark.parametrize(
  'arm, step_size', [('dqn', 0.00025), ('c51', 0.001), ('qrdqn', 0.001)]
)
def test_twins_of_distributions(arm, step_size):
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
  changed = {'learning_rate'} if arm != 'dqn' else set()
  assert differing - {'game', 'also'} == {'target_period_unit'} | changed
  assert {c.learning_rate for c in sweep.configs} == {step_size}


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


# A study of the launcher of small environments, whose runs a script stands for.
STUDY = """
question = "Is this a study?"
cost = "0 core hours"
columns = ["train_return"]
baseline = {arm = "plain"}
criteria = "toy_criteria"
launcher = "classic"

[arms]
plain = "--environment=catch,cartpole"
broken = "--environment=catch --n_step=2"
double = "--environment=catch,cartpole --target_form=double"

[figures]
"" = ""
"""
# Rows of a sweep over two tasks with two seeds; `broken` fails.
ROWS = """
import pathlib, sys
(run_dir,) = (a[10:] for a in sys.argv if a.startswith('--run_dir='))
path = pathlib.Path(run_dir)
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


# Two iterations of the launcher itself.
SMALL = (
  '--platform=cpu --env_steps=400 --iteration_env_steps=200 --num_envs=2 '
  '--train_period=2 --batch_size=8 --min_replay=50 --replay_capacity=200 '
  '--hidden_sizes=8 --epsilon_decay=100 --target_period=4 --seeds=2'
)


@pytest.fixture
def study(tmp_path, monkeypatch):
  """The folder of the runs of a study named toy."""
  folder = tmp_path / 'studies'
  folder.mkdir()
  (folder / 'toy.toml').write_text(STUDY)
  monkeypatch.setattr(studies, '_FOLDER', folder)
  claims = [Claim('one', True, '1'), Claim('two', None, '2')]
  judge = types.SimpleNamespace(
    COLUMNS=('train_return',), judge=lambda table: claims
  )
  monkeypatch.setitem(sys.modules, 'experiments.studies.toy_criteria', judge)
  return tmp_path / 'runs'


@pytest.fixture
def toy(study, tmp_path, monkeypatch):
  """The same, with a script in place of the launcher."""
  script = tmp_path / 'launcher.py'
  script.write_text(ROWS)
  job = driving.Driver._job

  def _job(driver, name):
    made = job(driver, name)
    command = (sys.executable, str(script), *made.command[3:])
    return made._replace(command=command)

  monkeypatch.setattr(driving.Driver, '_job', _job)
  return study


def _main(run_dir, **options):
  return reproduce.main(
    reproduce.ReproduceConfig(study='toy', run_dir=str(run_dir), **options)
  )


def test_arms_run_and_a_failed_one_does_not_stop_others(toy, capsys):
  with pytest.raises(RunError, match='1 cell failed: broken'):
    _main(toy, retries=0)
  said = capsys.readouterr().out
  assert 'the last words' in said and 'exit code 3' in said
  # The others are drawn and judged even so.
  assert 'met: one: 1' in said and 'OPEN: two: 2' in said
  assert (toy / 'toy.csv').exists() and (toy / 'toy-table.png').exists()
  with pytest.raises(RunError):
    _main(toy, retries=0)
  assert '3 cells' in capsys.readouterr().out
  assert (toy / 'double' / 'starts').read_text().count('started') == 1


def test_the_table_by_hand(toy, tmp_path):
  assert _main(toy, only='plain;double') is None
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
  reproduce.main(
    reproduce.ReproduceConfig(
      study='toy', runs=str(curves), output=str(tmp_path / 'again')
    )
  )
  again = (tmp_path / 'again-table.csv').read_text()
  assert again == (toy / 'toy-table.csv').read_text()
  # So does the folder of the sweep, which is in one file then.
  table, _ = studies._read(studies.read_study('toy'), toy, [])
  assert table['train_return'].tolist() == read.table['train_return'].tolist()
  output = str(tmp_path / 'folder')
  reproduce.main(
    reproduce.ReproduceConfig(study='toy', runs=str(toy), output=output)
  )
  assert (tmp_path / 'folder-table.csv').read_text() == again
  assert (tmp_path / 'folder-curves.csv').read_text() == curves.read_text()


def test_parts_of_a_study_become_one_file(toy, tmp_path):
  """Such as arms that were run on different machines."""
  assert _main(toy, only='plain;double') is None
  whole = toy / 'toy-curves.csv'
  lines = whole.read_text().splitlines(keepends=True)
  first = next(i for i, line in enumerate(lines) if line.startswith('arm,'))
  parts = {}
  for arm in ('double', 'plain'):
    rows = [line for line in lines[first + 1 :] if line.startswith(f'{arm},')]
    parts[arm] = tmp_path / f'{arm}.csv'
    parts[arm].write_text(''.join([*lines[: first + 1], *rows]))
  joined = lambda *paths: reproduce.main(
    reproduce.ReproduceConfig(
      study='toy',
      runs=','.join(map(str, paths)),
      output=str(tmp_path / 'joined'),
    )
  )
  joined(parts['double'], parts['plain'])
  assert (tmp_path / 'joined-curves.csv').read_text() == whole.read_text()
  assert (tmp_path / 'joined-table.csv').exists()
  message = 'have the same run: arm plain, environment catch, seed 0'
  with pytest.raises(RunError, match=message):
    joined(parts['plain'], toy)
  # Nor would it be judged as two runs; a file is no part beside itself, either.
  for paths in ([parts['plain'], toy], [whole, whole]):
    with pytest.raises(RunError, match=message):
      reproduce.main(
        reproduce.ReproduceConfig(study='toy', runs=','.join(map(str, paths)))
      )
  # A run that no column tells from another would be lost.
  text = parts['plain'].read_text().replace('arm,', '').replace('plain,', '')
  paths = [tmp_path / 'dqn.csv', tmp_path / 'c51.csv']
  for path, task in zip(paths, ('catch', 'cartpole'), strict=True):
    rows = [row for row in text.splitlines(True) if f'{task},' not in row]
    path.write_text(''.join([f'# --agent={path.stem}\n', *rows]))
  study = studies.read_study('toy')
  with pytest.raises(ValueError, match='tells --agent=c51, dqn apart'):
    studies.write_curves(tmp_path / 'x.csv', study, paths)
  assert not (tmp_path / 'x.csv').exists()
  # Where arms are tasks, an agent each, tasks tell them apart.
  tasks = study._replace(arms_are_tasks=True)
  studies.write_curves(tmp_path / 'x.csv', tasks, paths)
  table, flags = read_results(tmp_path / 'x.csv')
  assert {*table['environment']} == {'catch', 'cartpole'}
  assert 'agent' not in flags


def test_settings_of_some_parts_are_in_the_judged_table(toy, tmp_path):
  """A part without the column of arms does not cost others theirs."""
  seen = []
  judge = sys.modules['experiments.studies.toy_criteria']
  judge.judge = lambda table: seen.append(table) or []
  paths = [tmp_path / 'all.csv', tmp_path / 'double.csv']
  rows = 'seed,env_steps,train_return\ncatch,{}0,5000,1\n'
  paths[0].write_text('environment,' + rows.format(''))
  paths[1].write_text('environment,arm,' + rows.format('double,'))
  studies.judge(studies.read_study('toy'), paths, [])
  (table,) = seen
  assert table['arm'].tolist() == ['', 'double']
  assert table['environment'].tolist() == ['catch', 'catch']


def test_settings_in_results_files_are_those_of_the_runs(toy, tmp_path):
  """Measures have seven digits; a setting with fewer would be another."""
  path, again = tmp_path / 'a.csv', tmp_path / 'b.csv'
  path.write_text(
    'environment,target_period_growth,seed,env_steps,train_return\n'
    'catch,1.00672271,0,5000,0.123456789\n'
  )
  studies.write_curves(again, studies.read_study('toy'), [path])
  *_, row = again.read_text().splitlines()
  assert row == 'catch,1.00672271,0,5000,0.1234568'


def test_the_table_of_a_measure_that_is_no_return(tmp_path):
  study = studies.read_study('three_schedules')
  curves = RESULTS / 'three_schedules-curves.csv'
  reproduce._write_table(study, curves, str(tmp_path / 'drawn'))
  assert (tmp_path / 'drawn-table.png').exists()
  rows = (tmp_path / 'drawn-table.csv').read_text().splitlines()
  assert sum(row.startswith('fitted,car_on_hill,') for row in rows) == 1


def test_arms_that_are_tasks():
  study = studies.read_study('twin_distributions')
  read = Results(
    {
      'tau': np.array([0.1, 0.1]),
      'seed': np.array([0, 0]),
      'env_steps': np.array([5, 10]),
      'train_return': np.array([1.0, 2.0]),
    },
    {'environment': 'cartpole', 'tau': '0.1,0.2'},
  )
  point = {'arm': 'pole'}
  row, _ = studies._rows(read, point, study)
  assert row['arm'] == 'pole' and row['environment'] == 'cartpole'
  row, _ = studies._rows(read, point, study._replace(arms_are_tasks=True))
  assert list(row) == [
    *('environment', 'tau', 'seed', 'env_steps', 'train_return')
  ]
  assert row['environment'] == 'pole' and row['tau'] == 0.1
  point = {'arm': 'pole:wrong'}
  row, _ = studies._rows(read, point, study._replace(arms_are_tasks=True))
  assert list(row)[:3] == ['environment', 'arm', 'tau']
  assert row['environment'] == 'pole' and row['arm'] == 'wrong'


def test_runs_of_the_host_have_folders_of_their_own(toy):
  study, folder = studies.read_study('toy'), SweepFolder(toy)
  points = [{'arm': 'plain', 'tau': '0.5', 'seed': str(s)} for s in range(3)]
  cells = [Cell(f'plain/seed={p["seed"]}', 'gym', (), p, {}) for p in points]
  with folder.driven(cells):
    pass
  for seed, rows in ((0, '100,1\n200,3\n'), (1, '100,2\n'), (2, None)):
    path = toy / 'plain' / f'seed={seed}'
    path.mkdir(parents=True)
    (path / 'flags.txt').write_text(
      '# siamrl run folder; python ... --flagfile=<this file> runs it again\n'
      f'--environment=catch\n--tau=0.5\n--seed={seed}\n'
    )
    # The last run has begun, and has no rows yet.
    text = '' if rows is None else 'env_steps,train_return\n' + rows
    (path / 'metrics.csv').write_text(text)
  studies.write_curves(toy / 'curves.csv', study, [toy])
  read = read_results(toy / 'curves.csv')
  assert list(read.table) == [
    *('arm', 'tau', 'environment', 'seed', 'env_steps', 'train_return')
  ]
  assert read.table['seed'].tolist() == [0, 0, 1]
  assert read.table['train_return'].tolist() == [1, 3, 2]
  assert read.table['tau'].tolist() == [0.5] * 3


def test_a_part_of_a_study_is_drawn_and_judged_as_far_as_it_can_be(
  toy, tmp_path, monkeypatch, capsys
):
  """Where its baseline has not been run, nor what its claims are about."""

  def judge(table):
    raise ValueError('no run with plain')

  module = types.SimpleNamespace(COLUMNS=('train_return',), judge=judge)
  monkeypatch.setitem(sys.modules, 'experiments.studies.toy_criteria', module)
  file = tmp_path / 'studies' / 'toy.toml'
  kind = '--kind=differences --baseline=plain'
  file.write_text(STUDY + f'-differences = "{kind}"\n')
  assert _main(toy, only='double') is None
  said = capsys.readouterr().out
  assert 'nothing is judged yet: no run with plain' in said
  assert 'toy-differences.png is not drawn yet: --baseline=plain must' in said
  assert (toy / 'toy-curves.csv').exists() and (toy / 'toy.csv').exists()


def test_a_missed_criterion_has_an_exit_code(toy, monkeypatch, capsys):
  claims = [Claim('one', False, '1')]
  module = types.SimpleNamespace(
    COLUMNS=('train_return',), judge=lambda table: claims
  )
  monkeypatch.setitem(sys.modules, 'experiments.studies.toy_criteria', module)
  assert _main(toy, only='plain') == executing.MISSED
  assert 'MISSED: one: 1' in capsys.readouterr().out


@pytest.mark.slow
def test_real_launchers_run_resume_and_are_judged(study, capsys):
  options = dict(only='plain;double', flags=SMALL)
  assert _main(study, **options) is None
  before = (study / 'double' / 'versions.json').read_text()
  assert _main(study, **options) is None
  assert (study / 'double' / 'versions.json').read_text() == before
  assert capsys.readouterr().out.count('met: one: 1') == 2
  read = read_results(study / 'toy-curves.csv')
  assert len(read.table['seed']) == 2 * 2 * 2 * 2
  assert read.flags['hidden_sizes'] == '8'


# Rows of shipped files that differ from their study, or from another one.
OTHERS = {
  ('twin_age_catch', 'twin_age_cartpole'): (
    *('environment', '--environment=cartpole, and the study has catch'),
  ),
  ('twin_defects', 'twin_age_catch'): (
    *('environment', '--environment=catch, and the study has cartpole, pend'),
  ),
  ('twin_minatar', 'spr_minatar'): ('tau', '--tau=0.01, and the study has no'),
  ('pong_dopamine_dqn', 'pong_dopamine_dqn_valid'): (
    *('padding', '--padding=VALID, and the study has SAME'),
  ),
  ('twin_rate', 'sac_pendulum'): (
    *('agent', '--agent=sac, and the study has ddpg'),
  ),
}


def _differences(name, rows):
  study = studies.read_study(name)
  return matching.differences(
    study.sweep, *rows, arms_are_tasks=study.arms_are_tasks
  )


@pytest.mark.parametrize(
  'name', [name for name in studies.names() if studies.is_published(name)]
)
def test_published_rows_are_of_their_studies(name):
  rows = read_results(RESULTS / f'{name}-curves.csv')
  assert _differences(name, rows) == []
  assert matching.says_its_task(*rows)


@pytest.mark.parametrize('name, rows', OTHERS)
def test_rows_of_another_study(name, rows):
  option, text = OTHERS[name, rows]
  found = _differences(name, read_results(RESULTS / f'{rows}-curves.csv'))
  (difference,) = (each for each in found if each.name == option)
  assert text in str(difference)


def test_rows_of_runs_that_differ_in_length_or_arms():
  table, flags = read_results(RESULTS / 'twin_age_catch-curves.csv')
  early = table['env_steps'] <= 20_000
  short = {name: column[early] for name, column in table.items()}
  (cut,) = _differences('twin_age_catch', (short, flags))
  assert str(cut) == '--env_steps=20000, and the study has 200000'
  # A flag that says so is compared in its place, and under its present name.
  (cut,) = _differences('twin_age_catch', (short, {'env_steps': '4e3'}))
  assert cut.seen == ('4e3',)
  table, flags = read_results(RESULTS / 'twin_agreement-curves.csv')
  named = dict(table, arm=np.full_like(table['arm'], 'mine'))
  (arm,) = _differences('twin_agreement', (named, flags))
  assert str(arm).startswith('arm=mine, and the study has ')


def _judged(study, path):
  return reproduce.main(reproduce.ReproduceConfig(study=study, runs=str(path)))


def test_what_differs_is_refused_or_noted(toy, tmp_path, capsys):
  assert _main(toy, only='plain') is None
  said = capsys.readouterr().out
  assert f'note: {toy}/toy-curves.csv has --discount=0.9, and' in said
  text = (toy / 'toy-curves.csv').read_text()
  other = tmp_path / 'other.csv'
  other.write_text(text.replace(',catch,', ',acrobot,'))
  message = f'--runs={other} must be of --study=toy; they have --environment=ac'
  with pytest.raises(UsageError, match=message):
    _judged('toy', other)
  assert not capsys.readouterr().out
  other.write_text(text.replace('environment,', 'place,'))
  assert _judged('toy', other) is None
  said = capsys.readouterr().out
  assert f'{other} does not say which task its runs are of' in said
  folder = SweepFolder(tmp_path / 'sweep')
  with folder.driven([Cell('mine/a', 'classic', (), {'arm': 'mine'}, {})]):
    pass
  with pytest.raises(UsageError, match='--study=toy; its cells are mine/a'):
    _judged('toy', folder.path)


def test_a_study_without_criteria_says_so(capsys):
  name = 'twin_grid_cartpole'
  assert _judged(name, RESULTS / f'{name}-curves.csv') is None
  assert capsys.readouterr().out == (
    f'--study={name} has no criteria: nothing is judged\n'
  )


@pytest.mark.parametrize(
  'arguments, message',
  [
    ([], '--study must be given, or --list'),
    (['--study=none'], '--study=none must be one of acrobot_cleanrl_dqn'),
    (
      ['--study=minatar_table', '--only=dqm'],
      '--only=dqm must match the name of a cell, such as dqn',
    ),
    (
      ['--study=minatar_table', '--run_dir=x', '--jobs=1000'],
      '--jobs=1000 must be at most',
    ),
    (
      ['--study=minatar_table', '--runs=nowhere'],
      '--runs=nowhere holds no metrics.csv, nor is it a results file',
    ),
  ],
)
def test_bad_input(arguments, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  code = executing.execute(
    reproduce.ReproduceConfig, '', reproduce.main, arguments
  )
  assert code in (1, 2)
  assert message in capsys.readouterr().err
  assert not (tmp_path / 'x').exists()


def test_the_list_names_every_study(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  published = studies.is_published
  monkeypatch.setattr(
    studies, 'is_published', lambda name: name != 'atlas' and published(name)
  )
  assert reproduce.main(reproduce.ReproduceConfig(list=True)) is None
  said = capsys.readouterr().out
  for name in studies.names():
    study = studies.read_study(name)
    first = next(iter(study.sweep.arms.values())).launcher
    assert f'\n{name}: experiments.{first}' in '\n' + said
  assert said.count('; not published') == 1
  assert said.count('; published') == len(studies.names()) - 1
