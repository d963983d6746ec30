"""The lab's command line: what it prints, keeps and refuses."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from experiments import lab
from experiments.config import executing, reading
from experiments.labs import control
from siamrl import self_prediction, stability
from siamrl.report.metrics import read_metrics
from siamrl.report.run_folder import RunFolder
from tests.experiments.launching import ROOT, start

FLAGFILES = pathlib.Path('experiments/flagfiles')
# Of values of a policy; tests of their own are about the others.
SWEEPS = sorted(
  path.stem
  for path in (ROOT / FLAGFILES).glob('lab_*.flags')
  if not path.stem.startswith(('lab_self', 'lab_control', 'lab_growing'))
)


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
  monkeypatch.chdir(ROOT)  # flag files name their parents from there


@pytest.fixture
def launch_here(capfd):
  """A function that runs the launcher here; (lines printed, of error)."""

  def launch(*arguments, code=0):
    found = executing.execute(
      lab.LabConfig, '', lab.main, list(map(str, arguments)), lists=True
    )
    out, err = capfd.readouterr()
    assert found == code, err
    return out.splitlines(), err

  return launch


def _read(*arguments):
  return reading.sweep_from_arguments(lab.LabConfig, *map(str, arguments))


def test_the_command_of_a_readme():
  process = start(
    '--problem=baird',
    '--target_update=hard',
    '--target_period=9',
    '--discount=0.99',
    '--step_size=0.1',
    launcher='experiments.lab',
  )
  out, err = process.communicate(timeout=120)
  assert process.returncode == 0, err
  assert not err
  *words, last = out.splitlines()
  assert len(words) == 4
  assert max(map(len, words)) <= 150
  result = json.loads(last)
  assert result['problem'] == 'baird'
  assert result['target_update'] == 'hard'
  assert result['target_period'] == result['unit'] == 9
  assert result['spectral_radius'] == pytest.approx(0.99224, abs=1e-5)
  assert result['growth'] == pytest.approx(result['spectral_radius'], abs=1e-3)
  assert result['diverged'] is False
  assert result['final_value_norm'] < 1e-4
  assert 'converges' in words[2]
  assert 'did not diverge' in words[3]


def test_help():
  result = subprocess.run(
    [sys.executable, '-m', 'experiments.lab', '--help'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert 'spectral_radius' in result.stdout
  assert '--problem' in result.stdout


def test_lists_make_a_table(launch_here):
  lines, _ = launch_here(
    '--target_update=hard,soft',
    '--target_period=8,9',
    '--tau=0.16,0.18',
    '--gradient_steps=4000',
  )
  table = [line for line in lines if not line.startswith('{')]
  results = [json.loads(line) for line in lines if line.startswith('{')]
  assert table[0].split() == [
    'target_update',
    'target_period',
    'tau',
    'unit',
    'spectral_radius',
    'growth',
    'diverged',
    'final_value_norm',
  ]
  assert [row.split()[:3] for row in table[1:]] == [
    ['hard', '8', '-'],
    ['hard', '9', '-'],
    ['soft', '-', '0.16'],
    ['soft', '-', '0.18'],
  ]
  assert [result['diverged'] for result in results] == [
    True,
    False,
    False,
    True,
  ]
  assert [result['unit'] for result in results] == [8, 9, 1, 1]


def test_rules_without_a_matrix_run_all_the_same(launch_here):
  lines, _ = launch_here(
    '--target_update=soft_cosine', '--tau=0.1', '--gradient_steps=500'
  )
  assert lines[2] == (
    'predicted: nothing, for target_update=soft_cosine changes with the '
    'gradient steps: its target updates have no common matrix'
  )
  result = json.loads(lines[-1])
  assert result['spectral_radius'] is None
  assert result['growth'] > 0
  assert result['reason'].startswith('target_update=soft_cosine changes')


def test_other_problems_and_units(launch_here):
  lines, _ = launch_here(
    '--problem=random_mdp,chain,tsitsiklis',
    '--num_states=6',
    '--num_features=2',
    '--termination=0.5',
    '--target_period_unit=frames',
    '--target_period=50',
  )
  *_, random, chain, doubling = map(json.loads, lines[-3:])
  assert (random['num_states'], random['num_features']) == (6, 2)
  assert (chain['num_states'], doubling['termination']) == (6, 0.5)
  assert 'num_states' not in doubling
  assert not chain['diverged']
  # Values of a chain are learned: the true ones have a norm of their own.
  config = _read('--problem=chain', '--num_states=6').configs[0]
  true = np.linalg.norm(lab.make_problem(config).true_values(0.99))
  assert chain['final_value_norm'] == pytest.approx(true, rel=1e-3)
  assert doubling['growth'] == pytest.approx(0.99 * 4 / 5, abs=1e-3)


def test_a_folder_of_runs(launch_here, tmp_path):
  arguments = ['--target_period=5,10', '--gradient_steps=300']
  folder = RunFolder(tmp_path / 'run')
  first, _ = launch_here(*arguments, f'--run_dir={folder.path}')
  norms = read_metrics(folder.metrics)
  assert list(norms) == [
    'seed',
    'target_period',
    'gradient_steps',
    'log10_value_norm',
  ]
  assert norms['gradient_steps'].max() == 300
  ends = read_metrics(folder.path / 'stability.csv')
  results = [json.loads(line) for line in first[-2:]]
  for name in ('spectral_radius', 'growth', 'final_value_norm', 'diverged'):
    assert ends[name].tolist() == [result[name] for result in results]
  for name in ('flags.txt', 'config.json', 'versions.json'):
    assert (folder.path / name).exists()
  for name in ('curve.png', 'curve-stability.png'):
    assert (folder.path / name).read_bytes().startswith(b'\x89PNG')
  # The folder's flags run it again, and leave the same behind.
  before = folder.metrics.read_bytes()
  again, _ = launch_here(
    f'--flagfile={folder.flags}', f'--run_dir={folder.path}'
  )
  assert again == first
  assert folder.metrics.read_bytes() == before
  other = ['--target_period=5,11', '--gradient_steps=300']
  _, err = launch_here(*other, f'--run_dir={folder.path}', code=2)
  assert 'holds a run with other flags' in err
  launch_here(*other, f'--run_dir={folder.path}', '--overwrite')
  assert 11 in read_metrics(folder.metrics)['target_period']


def test_features_that_predict_themselves(launch_here, tmp_path):
  """Tang et al. (2022): the stop-gradient is what keeps them from 0."""
  folder = RunFolder(tmp_path / 'run')
  lines, _ = launch_here(
    f'--flagfile={FLAGFILES}/lab_self_prediction.flags',
    f'--run_dir={folder.path}',
  )
  header, results = lines[0], [json.loads(line) for line in lines[-10:]]
  assert 'smallest_singular_value' in header
  assert len(lines) == 1 + 10 + 10
  for index, result in enumerate(results):
    assert result['target_update'] == ('self' if index < 5 else 'residual')
    assert (result['num_states'], result['num_features']) == (20, 4)
    assert result['seed'] == index % 5
    assert 'discount' not in result
    if result['target_update'] == 'self':
      assert result['orthonormality_error'] < 0.02
      assert result['eigen_mass'] >= 0.9
      assert result['smallest_singular_value'] > 0.99
      assert result['effective_rank'] == pytest.approx(4)
    else:
      assert result['smallest_singular_value'] < 0.2
      assert result['eigen_mass'] < 0.27
      assert result['loss'] < 1e-4  # less than the others': it has collapsed
  assert len({result['loss'] for result in results}) == 10
  ends = read_metrics(folder.path / 'self_prediction.csv')
  times = read_metrics(folder.metrics)
  for name in self_prediction.Measures._fields:
    assert ends[name].tolist() == [result[name] for result in results]
    last = times[name][times['gradient_steps'] == 20_000]
    assert last.tolist() == ends[name].tolist()
  assert folder.curve.read_bytes().startswith(b'\x89PNG')
  assert not (folder.path / 'stability.csv').exists()


def test_a_predictor_of_features_is_an_axis(launch_here):
  lines, _ = launch_here(
    '--problem=self_prediction',
    '--target_update=soft',
    '--tau=0.5',
    '--num_states=6',
    '--num_features=2',
    '--predictor=optimal,learned',
    '--predictor_rate=1,10',
    '--gradient_steps=5',
  )
  table = [line.split()[:2] for line in lines if not line.startswith('{')]
  assert table == [
    ['predictor', 'predictor_rate'],
    ['optimal', '-'],
    ['learned', '1'],
    ['learned', '10'],
  ]
  results = [json.loads(line) for line in lines[4:]]
  assert 'predictor_rate' not in results[0]
  assert [result['predictor_rate'] for result in results[1:]] == [1, 10]
  assert len({result['loss'] for result in results}) == 3


def test_features_that_outgrow_all_floats(launch_here, tmp_path):
  *words, last = launch_here(
    '--problem=self_prediction',
    '--target_update=self',
    '--step_size=1e6',
    '--gradient_steps=50',
    f'--run_dir={tmp_path / "run"}',
  )[0]
  assert len(words) == 4
  assert max(map(len, words)) <= 150
  result = json.loads(last)
  for name in self_prediction.Measures._fields:
    assert result[name] is None
  assert result['reason'] == (
    'step_size=1000000.0 lets features outgrow all floats'
  )


MAX = '--problem=random_control'
FEATURES = ['--problem=self_prediction', '--target_update=self']


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--problem=bard'], '--problem=bard must be one of baird, '),
    (['--discount=1.5'], r'--discount=1.5 must be in \[0, 1\]'),
    (['--step_size=0'], '--step_size=0.0 must be positive'),
    (['--step_size=nan'], '--step_size=nan must be a finite number'),
    (['--gradient_steps=0'], '--gradient_steps=0 must be from 1 to'),
    (['--gradient_steps=5,6'], 'must be one value and no list'),
    (['--target_period=0'], '--target_period=0 must be'),
    (['--target_period=3000000000'], r'--target_period=\d+ must be below'),
    (['--target_update=soft'], '--target_update=soft needs (a )?tau'),
    (['--tau=0.1'], '--tau=0.1 must go with --target_update=soft'),
    (['--tau=0.1,0.2'], '--tau=0.1,0.2 must be one value|must go with'),
    (['--seed=1'], '--seed=1 must go with --problem=.*, not baird'),
    (['--num_states=5'], '--num_states=5 must go with .*, not baird'),
    (['--num_states=1000'], '--num_states=1000 must be from 2 to 256'),
    (
      ['--target_init=fresh'],
      '--target_init=fresh must be equal: weights are given, not drawn',
    ),
    (['--count_warmup'], '--count_warmup=true must be false'),
    (['--reset_optimizer'], '--reset_optimizer=true must be false'),
    (
      ['--target_update=averaged', '--target_count=1000'],
      '--target_count=1000 must be so small',
    ),
    (
      ['--target_update=by_path', '--target_paths=torso:soft', '--tau=0.1'],
      '--target_paths=torso: .?torso.? matches no parameter',
    ),
    (
      ['--target_update=by_path', '--target_paths=torso'],
      '--target_paths=torso must be such as torso:soft',
    ),
    (
      ['--predictor=learned'],
      '--predictor=learned must go with --problem=self',
    ),
    (['--predictor_rate=2'], '--predictor_rate=2.0 must go with --problem=s'),
    (
      ['--problem=baird,self_prediction'],
      '--problem=baird,self_prediction must not mix self_prediction with',
    ),
    (
      [FEATURES[0], '--target_update=functional', '--twin_weight=1'],
      '--target_update=functional must be one of hard, .* for problem=self_p',
    ),
    (
      [*FEATURES, '--discount=0.5'],
      '--discount=0.5 must go with --problem=.*, not self_prediction',
    ),
    (
      [*FEATURES, '--termination=1'],
      '--termination=1.0 must go with --problem',
    ),
    (
      ['--period_average=0.5'],
      '--period_average=0.5 must go with --problem=random_control',
    ),
    (
      [MAX, '--target_update=soft', '--tau=0.1', '--period_average=0.5'],
      '--period_average=0.5 must go with --target_update=hard, not soft',
    ),
    ([MAX, '--period_average=1'], r'--period_average=1.0 must be in \[0, 1\)'),
    ([MAX, '--num_states=9'], '--num_states=9 must be from 2 to 8'),
    ([MAX, '--step_decay=2'], '--step_decay=2.0 must go with --problem=tabu'),
    (
      ['--problem=random_control,baird'],
      '--problem=random_control,baird must not mix random_control with',
    ),
    (
      ['--problem=tabular_chain', '--discount=1'],
      '--discount=1.0 must be below 1 for problem=tabular_chain',
    ),
    (
      ['--problem=tabular_chain', '--step_decay=0'],
      '--step_decay=0.0 must be positive',
    ),
    ([*FEATURES, '--num_states=3'], '--num_features=4 must be from 1 to num_s'),
    ([*FEATURES, '--predictor=best'], '--predictor=best must be one of optima'),
    ([*FEATURES, '--predictor_rate=1'], '--predictor_rate=1.0 has no meaning'),
    (
      [*FEATURES, '--predictor=learned'],
      '--predictor=learned needs a predictor',
    ),
    (
      [*FEATURES, '--target_init=fresh'],
      '--target_init=fresh must not be given',
    ),
    ([*FEATURES, '--reset_optimizer'], '--reset_optimizer=true must be false'),
    (['--no_such_flag=1'], '--no_such_flag is no flag'),
    (['--run_dir=/proc/run'], '--run_dir=/proc/run: cannot be written'),
  ],
)
def test_bad_input(launch_here, arguments, message):
  code = 1 if 'proc' in arguments[0] else 2
  lines, err = launch_here(*arguments, code=code)
  assert not lines
  assert err.startswith('error: ')
  assert err.count('\n') == 1, err
  assert re.search(message, err), err


def test_bad_input_of_a_process():
  process = start('--problem=bard', launcher='experiments.lab')
  out, err = process.communicate(timeout=60)
  assert process.returncode == 2
  assert not out
  assert err.startswith('error: --problem=bard must be one of ')
  assert err.count('\n') == 1


@pytest.mark.slow
def test_bounds_beside_runs(launch_here, tmp_path):
  """Two values of a successor, by hand: see tests/test_switching.py."""
  folder = RunFolder(tmp_path / 'run')
  lines, _ = launch_here(
    '--problem=random_control',
    '--num_states=2',
    '--num_features=1',
    '--target_period=1,2',
    '--step_size=0.5',
    '--gradient_steps=200',
    f'--run_dir={folder.path}',
  )
  assert lines[0].split()[:3] == ['target_period', 'unit', 'modes']
  results = [json.loads(line) for line in lines[-2:]]
  config = _read('--problem=random_control', '--num_states=2')
  assert control.make_case(config.configs[0]).average is None
  ends = read_metrics(folder.path / 'control.csv')
  for result, row in zip(results, ends['radius_upper'], strict=True):
    # Features of norm 1 in one dimension are all 1: a single mode.
    assert result['modes'] == 1
    period = result['target_period']
    radius = 0.5**period + (1 - 0.5**period) * 0.99
    assert result['radius_lower'] == pytest.approx(radius)
    assert radius <= result['radius_upper'] == row < 1
    assert result['predicted'] == 'converges'
  assert (folder.path / 'curve-control.png').exists()
  lines, _ = launch_here(MAX, '--target_update=functional', '--twin_weight=1')
  assert lines[2].startswith(
    'predicted: nothing, for target_update=functional follows more than one'
  )
  assert json.loads(lines[-1])['predicted'] == 'undecided'


@pytest.mark.slow
def test_samples_of_a_table(launch_here, tmp_path):
  folder = RunFolder(tmp_path / 'run')
  lines, _ = launch_here(
    '--problem=tabular_chain',
    '--target_update=hard,hard_geometric',
    '--target_period=10,20',
    '--target_period_growth=1.5',
    '--discount=0.9',
    '--step_size=1',
    '--step_decay=14',
    '--gradient_steps=400',
    f'--run_dir={folder.path}',
  )
  results = [json.loads(line) for line in lines[-4:]]
  # Copies of values that were not learned anew meanwhile do not count.
  assert 30 < results[0]['moves'] <= 40
  assert 15 < results[1]['moves'] <= 20
  assert results[2]['moves'] < 15
  times = read_metrics(folder.metrics)
  last = times['max_error'][times['gradient_steps'] == 400]
  assert last.tolist() == [result['max_error'] for result in results]
  assert (folder.path / 'curve-sampled.png').exists()


@pytest.mark.parametrize('name', SWEEPS)
def test_published_results_are_what_the_flag_file_gives(name):
  """Predictions are computed anew; the published runs must agree with them."""
  sweep = _read(f'--flagfile={FLAGFILES / name}.flags')
  table = read_metrics(ROOT / 'experiments/results' / f'{name}.csv')
  assert (ROOT / 'experiments/results' / f'{name}.png').exists()
  for axis in sweep.axes:
    assert table[axis].tolist() == [point[axis] for point in sweep.points]
  found = stability.predict([lab.make_case(c) for c in sweep.configs])
  radii = [prediction.spectral_radius for prediction in found]
  np.testing.assert_allclose(table['spectral_radius'], radii, rtol=1e-9)
  np.testing.assert_allclose(table['growth'], radii, rtol=1e-3)
  sure = np.abs(np.array(radii) - 1) > 1e-9
  np.testing.assert_array_equal(
    table['diverged'][sure], np.array(radii)[sure] > 1
  )


def test_published_thresholds():
  """What the pictures are of."""
  results = ROOT / 'experiments/results'
  hard = read_metrics(results / 'lab_baird_hard.csv')
  periods, norms = hard['target_period'], hard['final_value_norm']
  assert (hard['diverged'] == (periods <= 8)).all()
  assert (norms[periods <= 8] > 1e3).all()
  assert (norms[np.isin(periods, (9, 10, 20))] < 1e-4).all()
  soft = read_metrics(results / 'lab_baird_soft.csv')
  assert (soft['diverged'] == (soft['tau'] > 0.1679)).all()
  functional = read_metrics(results / 'lab_baird_functional.csv')
  paper = functional['twin_weight'] == 1
  assert (
    functional['diverged'][paper] == (functional['target_period'][paper] <= 8)
  ).all()
  double = read_metrics(results / 'lab_tsitsiklis.csv')
  long = double['target_period'] == 500
  np.testing.assert_allclose(
    double['growth'][long], 1.2 * double['discount'][long], rtol=1e-6
  )
