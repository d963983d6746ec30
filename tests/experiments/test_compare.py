"""Runs beside published results, from the command line."""

import csv
import re

import pytest

from experiments import atari, classic, compare, control, gym, plot
from experiments.config import declaring, executing
from experiments.figures import runs as runs_figures
from experiments.studies import published as files
from siamrl.report.results import write_results
from siamrl.report.run_folder import _MARK

ATARI = {
  'game': 'pong',
  'agent': 'dqn',
  'replay': 'uniform',
  'n_step': '1',
  'sticky_action_probability': '0.25',
  'epsilon_end': '0.01',
  'life_loss_terminates': 'false',
  'frame_skip': '4',
  'frame_cap': '108000',
  'noop_max': '0',
  'full_action_set': 'false',
  'eval_epsilon': '0.5',
}


def _compare(*arguments):
  return executing.execute(
    compare.CompareConfig,
    compare.__doc__,
    compare.main,
    arguments,
    listed='runs',
  )


def _runs(path, flags, values, clock='frames', column='train_return'):
  """A results file: values[seed][n] at the end of n million units."""
  rows = [
    [str(seed), str((n + 1) * 1_000_000), str(value)]
    for seed, run in enumerate(values)
    for n, value in enumerate(run)
  ]
  write_results(path, rows, ['seed', clock, column], flags)
  return str(path)


@pytest.fixture
def pong(tmp_path):
  """Three seeds around Dopamine's -20.19 and -18.36."""
  runs = [[-20.0 + d, -18.0 + d] for d in (-0.1, 0.0, 0.1)]
  return _runs(tmp_path / 'pong-curves.csv', ATARI, runs)


def test_the_table(pong, tmp_path, capsys):
  output = tmp_path / 'out'
  assert _compare(pong, '--against=dopamine_dqn', f'--output={output}') == 0
  said = capsys.readouterr().out
  assert 'PROTOCOL DIFFERS' not in said
  assert 'not recorded' not in said
  assert 'runs end at 2,000,000 frames, the published ones at 200,000,' in said
  with open(f'{output}.csv') as file:
    first, second = csv.DictReader(file)
  assert (
    second
    | {
      'task': 'pong',
      'agent': 'DQN',
      'frames': '2000000',
      'seeds': '3',
      'published_seeds': '5',
      'ours': '-18',
      'theirs': '-18.36',
      'difference': '0.36',
      'protocol_differs': '',
    }
    == second
  )
  # t is 4.3027 at two degrees of freedom, and 2.7764 at four; the published
  # deviation, 0.08, is of the population.
  assert float(first['ours_low']) == pytest.approx(-20 - 4.3027 * 0.1 / 3**0.5)
  assert float(first['theirs_low']) == pytest.approx(
    -20.19 - 2.7764 * 0.08 * (5 / 4) ** 0.5 / 5**0.5, abs=2e-4
  )
  assert (tmp_path / 'out.png').stat().st_size


@pytest.mark.parametrize(
  'name, value',
  [
    ('sticky_action_probability', '0.0'),
    ('epsilon_end', '0.1'),
    ('life_loss_terminates', 'true'),
    ('frame_skip', '5'),
    ('frame_cap', '18000'),
    ('noop_max', '30'),
    ('full_action_set', 'true'),
  ],
)
def test_differences_of_protocol_are_loud(tmp_path, name, value, capsys):
  runs = _runs(tmp_path / 'x.csv', ATARI | {name: value}, [[-20.0]] * 2)
  assert _compare(runs, '--against=dopamine_dqn') == 0
  (line,) = (
    line for line in capsys.readouterr().out.splitlines() if 'DIFFERS' in line
  )
  theirs = files.shipped('dopamine_dqn').about['protocol'][name]
  assert line.strip() == (
    f'PROTOCOL DIFFERS: {name}: ours {value}, theirs {str(theirs).lower()}'
  )


def test_evaluations_beside_training_returns(tmp_path, capsys):
  runs = _runs(tmp_path / 'x.csv', ATARI, [[-20.0]] * 2, column='eval_return')
  assert _compare(runs, '--against=dopamine_dqn') == 0
  assert 'column: ours eval_return, theirs train_return' in (
    capsys.readouterr().out
  )


def test_robots_of_another_version(tmp_path, capsys):
  flags = {'environment': 'HalfCheetah-v5', 'agent': 'td3'}
  values = [[7000.0, 8000.0], [7100.0, 8100.0]]
  runs = _runs(tmp_path / 'x.csv', flags, values, 'env_steps', 'eval_return')
  assert _compare(runs, '--against=td3') == 0
  said = capsys.readouterr().out
  assert 'environment_version: ours v5, theirs v1' in said
  assert '1,000,000' in said
  assert 'seeds: 2 and 10' in said


@pytest.mark.parametrize(
  'shift, criterion, code',
  [
    (0.0, ['--criterion=no_worse'], 0),
    (-9.0, ['--criterion=no_worse'], 3),
    # The published interval at two million frames is 1.08 to each side.
    (0.0, ['--criterion=within', '--margin=0.5'], 3),
    (0.0, ['--criterion=within', '--margin=1.5'], 0),
    (9.0, ['--criterion=within', '--margin=0'], 0),
  ],
)
def test_criteria(tmp_path, shift, criterion, code, capsys):
  runs = [[0.0, -18.36 + shift + d] for d in (-0.1, 0.0, 0.1)]
  path = _runs(tmp_path / 'x.csv', ATARI, runs)
  assert _compare(path, '--against=dopamine_dqn', *criterion) == code
  verdict = capsys.readouterr().out.splitlines()[-1]
  assert verdict.startswith('MISSED' if code else 'met')


@pytest.mark.parametrize(
  'values, against, reason',
  [
    ([[-20.0]], 'dopamine_dqn', 'one seed'),
    ([[-20.0]] * 3, 'dopamine_final', 'too short'),
  ],
)
def test_what_cannot_be_judged_is_missed(
  tmp_path, values, against, reason, capsys
):
  path = _runs(tmp_path / 'x.csv', ATARI, values)
  assert _compare(path, f'--against={against}', '--criterion=no_worse') == 3
  assert reason in capsys.readouterr().out


def test_a_run_that_ends_a_round_early_reaches_the_end(tmp_path, capsys):
  """PQN's rounds of 128 steps do not divide 500,000."""
  rows = [
    [str(seed), str(steps), str(480 + seed)]
    for seed in range(3)
    for steps in (440_000, 465_000, 490_000)
  ]
  flags = {'environment': 'cartpole', 'agent': 'c51'}
  path = tmp_path / 'x.csv'
  write_results(path, rows, ['seed', 'env_steps', 'train_return'], flags)
  assert _compare(str(path), '--against=cleanrl_classic') == 0
  said = capsys.readouterr().out
  assert '481 (' in said
  assert 'our runs end at 490,000' in said
  assert 'the source does not say what it averages over' in said


def test_settings_of_a_sweep(tmp_path, capsys):
  rows = [
    [agent, str(seed), '1000000', str(seed)]
    for agent in ('dqn', 'c51', 'iqn')
    for seed in range(2)
  ]
  flags = {name: v for name, v in ATARI.items() if name != 'agent'}
  path = tmp_path / 'x.csv'
  columns = ['agent', 'seed', 'frames', 'train_return']
  write_results(path, rows, columns, flags)
  assert _compare(str(path), '--against=dopamine_cnn') == 0
  said = capsys.readouterr().out
  assert 'agent=dqn beside DQN' in said
  assert 'agent=c51 beside C51' in said
  # Dopamine's IQN has returns of three steps.
  assert 'has no counterpart of agent=iqn in pong; --agent takes C51' in said
  assert _compare(str(path), '--against=dopamine_cnn', '--agent=IQN') == 0
  assert 'agent=dqn beside IQN' in capsys.readouterr().out


def test_frames_of_an_environment_are_env_steps(tmp_path, capsys):
  """As in results files of runs that were stepped on the host."""
  rows = [
    [str(seed), str(frames), str(150 + 10 * seed)]
    for seed in (-1, 0, 1)
    for frames in (50_000, 100_000)
  ]
  path = tmp_path / 'x.csv'
  columns = ['seed', 'frames', 'eval_return']
  flags = {'environment': 'LunarLander-v3', 'agent': 'dqn'}
  write_results(path, rows, columns, flags)
  assert _compare(str(path), '--against=sb3_zoo') == 0
  said = capsys.readouterr().out
  assert 'beside DQN, eval_return' in said
  assert re.search(r'100,000 +150 \(.* 154\.38 ', said)


def test_seeds_in_folders_of_one_folder(tmp_path, capsys):
  """A sweep on the host has a folder for each run."""
  for seed in range(3):
    folder = tmp_path / f'runs/dqn-{seed}'
    folder.mkdir(parents=True)
    flags = ATARI | {'seed': str(seed), 'run_dir': str(folder)}
    lines = ''.join(f'--{name}={value}\n' for name, value in flags.items())
    (folder / 'flags.txt').write_text(f'{_MARK}\n{lines}')
    (folder / 'metrics.csv').write_text(
      f'frames,train_return\n1000000,{seed - 20}\n'
    )
  assert _compare(str(tmp_path / 'runs'), '--against=dopamine_dqn') == 0
  said = capsys.readouterr().out
  assert 'seeds: 3 and 5' in said
  assert '-19 (' in said


def test_a_source_of_ones_own(pong, tmp_path, capsys):
  """Rows may come in any order, and no description is needed."""
  path = tmp_path / 'own.csv'
  rows = ['pong,2,-18,1,3', 'pong,1,-20,1,3']
  path.write_text(
    '\n'.join(['game,frames_millions,return_mean,return_sd,seeds', *rows])
  )
  assert _compare(pong, f'--against={path}', '--criterion=no_worse') == 0
  said = capsys.readouterr().out
  assert 'the source does not say: its protocol' in said
  assert said.splitlines()[-1].startswith('met: pong, dqn beside')
  assert 'at 2,000,000' in said


@pytest.mark.parametrize(
  'arguments, message, code',
  [
    (['--against=td3'], '--runs must be given', 2),
    (['{pong}'], '--against must be given; --list shows', 2),
    (['{pong}', '--against=dopamin_dqn'], 'closest are: dopamine_dqn', 2),
    (['{pong}', '--against={none}.csv'], 'none.csv cannot be read', 2),
    (['{pong}', '--against={damaged}'], 'must have the columns', 1),
    (['{pong}', '--against=dqn_zoo_medians'], 'not medians over 57 games', 2),
    (['{pong}', '--against=td3'], 'td3 has no pong; it has HalfCheetah', 2),
    (
      ['{pong}', '--against=dopamine_cnn', '--agent=Rainbo'],
      'must be one of C51; DQN; IQN; QR-DQN; Rainbow; the closest are: Rainbow',
      2,
    ),
    (
      ['{pong}', '--against=bbf_atari100k'],
      'no counterpart of agent=dqn in pong; --agent takes RR2_BBF',
      2,
    ),
    (['{pong}', '--against=cleanrl_atari'], 'no column env_steps', 1),
    (
      ['{pong}', '--against=dopamine_dqn', '--column=eval_return'],
      'must have returns in eval_return',
      1,
    ),
    (['{pong}', '--against=td3', '--margin=1'], '--margin must go with', 2),
    (
      ['{pong}', '--against=td3', '--criterion=within'],
      '--margin must go with',
      2,
    ),
    (
      ['{pong}', '--against=td3', '--criterion=better'],
      '--criterion=better must be one of no_worse, within',
      2,
    ),
    (
      ['{pong}', '--against=td3', '--output={none}/x'],
      'must lie in a folder that exists',
      2,
    ),
    (['{none}', '--against=td3'], 'must be the folder of a run', 2),
    (['--list', '--against=nothing'], 'must be a CSV file or one of', 2),
  ],
)
def test_what_it_refuses(pong, tmp_path, arguments, message, code, capsys):
  damaged = tmp_path / 'damaged.csv'
  damaged.write_text('game,return_mean\n')
  places = {'pong': pong, 'none': tmp_path / 'none', 'damaged': damaged}
  assert _compare(*(a.format(**places) for a in arguments)) == code
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1


def test_the_list_names_all_sources(capsys):
  assert _compare('--list') == 0
  said = capsys.readouterr().out
  for name in files.names():
    assert f'{name}: ' in said
  assert 'sticky_action_probability=0.25' in said
  assert _compare('--list', '--against=td3') == 0
  said = capsys.readouterr().out
  assert 'agent TD3: 0 to 1,000,000 env_steps; seeds: 10' in said
  assert 'dopamine' not in said


def test_protocols_and_agents_are_of_our_flags():
  known = {'column', 'environment_version', 'arm'}
  for record in (
    *(atari.AtariConfig, classic.ClassicConfig, gym.GymConfig),
    control.ControlConfig,
  ):
    known |= {field.name for field, _ in declaring.options_of(record)}
  for name in files.names():
    about = files.shipped(name).about
    named = set(about.get('unknown', ()))
    parts = [about.get('protocol', {})]
    for agent in about.get('agents', {}).values():
      parts += [*agent['match'], agent.get('protocol', {})]
    for part in parts:
      for flag, value in part.items():
        named |= set(value) if isinstance(value, dict) else {flag}
    assert named <= known, name


def test_plot_draws_each_agent_of_a_source(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(
    runs_figures,
    'plot_curve',
    lambda path, series, references, **words: drawn.extend(references),
  )
  flags = {'environment': 'HalfCheetah-v5', 'agent': 'sac'}
  runs = _runs(tmp_path / 'x.csv', flags, [[9.0]], 'env_steps', 'eval_return')
  code = executing.execute(
    plot.PlotConfig,
    plot.__doc__,
    plot.main,
    [
      *(f'--runs={runs}', '--column=eval_return', '--reference=mujoco_v4'),
      f'--output={tmp_path / "x"}',
    ],
  )
  assert code == 0
  assert len(drawn) == 8
  assert 'published, CrossQ' in [each.label for each in drawn]
