"""Sweep files, the cells that they make, and how they are refused."""

import math
import pathlib
import re
import types

import pytest

from experiments import launchers, plot, sweep
from experiments.config import executing, reading, sweep_files
from experiments.config.declaring import UsageError
from experiments.config.paths import split_paths
from experiments.engines.cells import make_cells
from experiments.engines.pools import Resources
from experiments.engines.pools.slurm import SlurmOptions
from experiments.engines.sweep_folders import State, SweepFolder
from experiments.figures import sources


def _cells(tmp_path, text):
  path = tmp_path / 'sweep.toml'
  path.write_text(text)
  file = sweep_files.read(path, launchers.NAMES)
  return make_cells(
    file, launchers.options_of, launchers.compiles, launchers.check
  )


def _refused(tmp_path, text):
  with pytest.raises(UsageError) as error:
    _cells(tmp_path, text)
  message = str(error.value)
  assert message.startswith(f'--sweep={tmp_path / "sweep.toml"}')
  assert '\n' not in message
  return message


def test_every_launcher_has_its_options():
  for name in launchers.NAMES:
    assert launchers.options_of(name).__name__.endswith('Config')
  folder = pathlib.Path(launchers.__file__).parent
  runs = {
    path.stem
    for path in folder.glob('*.py')
    if 'def run() ->' in path.read_text()
  }
  assert runs == set(launchers.NAMES)


def test_numbers_and_seeds_share_a_cell_where_runs_compile(tmp_path):
  cells = _cells(
    tmp_path,
    'launcher = "classic"\nseeds = 3\n[axes]\n'
    'tau = [0.1, 1e-3]\ntarget_update = ["soft", "self"]\n',
  )
  assert [cell.name for cell in cells] == [
    'target_update=soft',
    'target_update=self',
  ]
  soft, alone = cells
  assert soft.arguments == (
    '--target_update=soft',
    '--tau=0.1,0.001',
    '--seeds=3',
  )
  # A rule without a rate is one setting, whatever the axis says.
  assert alone.arguments == ('--target_update=self', '--seeds=3')
  assert soft.point == {'target_update': 'soft'}
  assert soft.options['tau'] == '0.1,0.001' and 'tau' not in alone.options


def test_split_gives_values_and_seeds_cells_of_their_own(tmp_path):
  cells = _cells(
    tmp_path,
    'launcher = "classic"\nflags = "--target_update=soft --seed=5"\n'
    'seeds = 2\nsplit = ["seed"]\n[axes]\ntau = [0.1, 0.2]\n',
  )
  assert [cell.name for cell in cells] == ['seed=5', 'seed=6']
  assert cells[1].arguments[2:] == ('--tau=0.1,0.2', '--seed=6', '--seeds=1')
  assert cells[1].options['seed'] == '6'


def test_runs_of_the_host_have_a_cell_each(tmp_path):
  cells = _cells(
    tmp_path,
    'launcher = "control"\nflags = "--agent=sac"\nseeds = 2\n[axes]\n'
    'environment = ["HalfCheetah-v5", "Hopper-v5"]\ntau = [0.1, 0.2]\n',
  )
  assert len(cells) == 8
  assert cells[1].name == 'environment=HalfCheetah-v5,tau=0.1,seed=1'
  assert cells[1].point == {
    'environment': 'HalfCheetah-v5',
    'tau': '0.1',
    'seed': '1',
  }


def test_lists_in_the_flags_are_cells_too_on_the_host(tmp_path):
  """A cell is done when its run is, so that it must have one."""
  cells = _cells(
    tmp_path,
    'launcher = "control"\nflags = "--agent=sac --seeds=2 '
    '--environment=HalfCheetah-v5,Hopper-v5"\n',
  )
  assert [cell.name for cell in cells] == [
    f'environment={name},seed={seed}'
    for name in ('HalfCheetah-v5', 'Hopper-v5')
    for seed in (0, 1)
  ]
  assert cells[3].arguments[-3:] == (
    *('--environment=Hopper-v5', '--seed=1', '--seeds=1'),
  )
  sac, td3 = _cells(
    tmp_path,
    'launcher = "control"\nflags = \'--environment=Hopper-v5 --agent=sac '
    '--also="--agent=td3 --tau=0.1"\'\n',
  )
  assert (sac.name, td3.name) == ('agent=sac', 'tau=0.1,agent=td3')
  for cell, agent in ((sac, 'sac'), (td3, 'td3')):
    (config,) = reading.sweep_from_arguments(
      launchers.options_of('control'), *cell.arguments
    ).configs
    assert config.agent == agent
    assert config.tau == (0.1 if agent == 'td3' else None)


def test_arms_have_folders_of_their_own(tmp_path):
  cells = _cells(
    tmp_path,
    'launcher = "offline"\nseeds = 2\n[arms]\n'
    'fitted = "--flagfile=fqi_chain"\nchain = "--flagfile=fqi_car_on_hill"\n',
  )
  assert [cell.name for cell in cells] == [
    *('fitted/seed=0', 'fitted/seed=1', 'chain/seed=0', 'chain/seed=1'),
  ]
  assert cells[0].point == {'arm': 'fitted', 'seed': '0'}


def test_an_arm_may_have_a_launcher_of_its_own(tmp_path):
  text = (
    'flags = "--tau=0.1 --target_update=soft"\n[arms]\n'
    'catch = {launcher = "classic", flags = "--environment=catch"}\n'
    'pong = "--environment=Pendulum-v1"\n'
  )
  cells = _cells(tmp_path, 'launcher = "control"\n' + text)
  assert [(cell.name, cell.launcher) for cell in cells] == [
    ('catch', 'classic'),
    ('pong', 'control'),
  ]
  message = _refused(tmp_path, text)
  assert '[arms] pong' in message and 'launcher = (absent) must be' in message
  # Equal options are other runs under another launcher.
  both = '[arms]\na = {launcher = "classic"}\nb = {launcher = "minatar"}\n'
  assert [cell.launcher for cell in _cells(tmp_path, both)] == [
    *('classic', 'minatar')
  ]


def test_a_flag_file_beside_the_sweep_file_is_found(tmp_path):
  (tmp_path / 'mine.flags').write_text('--tau=0.5\n--target_update=soft\n')
  (cell,) = _cells(tmp_path, 'launcher = "classic"\nflagfile = "mine.flags"\n')
  assert cell.name == 'all' and cell.options['tau'] == '0.5'


def test_the_sweep_file_of_the_readme(tmp_path):
  readme = pathlib.Path(__file__).parents[2] / 'README.md'
  text = readme.read_text(encoding='utf-8')
  (block,) = re.findall(r'(?ms)^```toml\n(.*?)^```$', text)
  cells = _cells(tmp_path, block)
  assert [cell.name for cell in cells] == ['game=breakout', 'game=asterix']
  assert '--target_period=100,1000,10000' in cells[0].arguments


CLASSIC = 'launcher = "classic"\n'


@pytest.mark.parametrize(
  'text,words',
  [
    ('launcher = ', 'must be a TOML file'),
    ('seeds = 3', 'launcher = (absent) must be one of atari, classic'),
    ('launcher = "clasic"', 'must be one of atari, classic'),
    ('[arms]\na = {launcher = "clasic"}', '[arms] a: launcher = clasic must'),
    ('[arms]\na = {flag = ""}', 'may have the entries launcher and flags'),
    (CLASSIC + 'sed = 3', "unknown entry 'sed'; the closest are seeds"),
    (CLASSIC + 'seeds = 0', 'seeds = 0 must be a whole number of at least 1'),
    (CLASSIC + 'cores = "all"', 'cores = all must be a whole number'),
    (CLASSIC + 'memory_gb = 0', 'memory_gb = 0 must be positive'),
    (CLASSIC + 'split = ["tau"]', "split = ['tau'] must be a list of seed"),
    (CLASSIC + 'flags = 3', 'flags = 3 must be text with flags'),
    (CLASSIC + 'flags = "--tua=1"', '--tua is no flag; the closest are --tau'),
    (CLASSIC + '[arms]\n"a/b" = ""', "'a/b' must be the name of a folder"),
    (CLASSIC + '[axes]\ntau = 0.1', 'tau = 0.1 must be a list of values'),
    (CLASSIC + '[axes]\ntau = [1, 1]', 'tau = [1, 1] holds a value twice'),
    (CLASSIC + '[axes]\ntua = [1]', 'tua is no flag of experiments.classic; '),
    (CLASSIC + '[axes]\nseed = [1]', '"seeds" has their number'),
    (CLASSIC + '[axes]\nplatform = ["cpu"]', 'takes one value for all runs'),
    (CLASSIC + '[axes]\ntau = [2, 3]', '--tau=2.0 must be in (0, 1]'),
    (CLASSIC + '[axes]\ntau = [0.1, 0.2]', 'tau means nothing to these runs'),
    (
      CLASSIC + '[arms]\na = ""\nb = "--tau=0.1"\nc = "--seed=0"',
      'a and c are the same runs',
    ),
  ],
)
def test_what_is_no_sweep_is_refused(tmp_path, text, words):
  assert words in _refused(tmp_path, text)


@pytest.mark.parametrize(
  'text, words',
  [
    (
      'launcher = "classic"\n[axes]\nenvironment = ["catch", "CartPol-v1"]',
      "--environment=CartPol-v1: no environment 'CartPol-v1'; the closest are: "
      'cartpole',
    ),
    (
      'launcher = "minatar"\nflags = "--game=breakot"',
      'breakot: no Min',
    ),
    (
      'launcher = "atari"\n[arms]\na = ""\nb = "--game=breakot"',
      'sweep.toml, arm b: --game=breakot: no Atari game',
    ),
    (
      'launcher = "gym"\n[axes]\nenvironment = ["Pendulum-v1"]',
      'must have discrete actions',
    ),
    (
      'launcher = "control"\nflags = "--eval_environment=penduum"',
      "--eval_environment=penduum: no environment 'penduum'",
    ),
    (
      'launcher = "control"\n'
      'flags = "--environment=HalfCheetah-v5 --eval_episode_env_steps=5"',
      'which is stepped on the host',
    ),
    ('launcher = "siamese"\nflags = "--images=frames:pogn"', "game 'pogn'"),
    (
      'launcher = "siamese"\nflags = "--images=digit"',
      'no such file or folder',
    ),
    (
      'launcher = "offline"\nflags = "--dataset=none.npz"',
      '--dataset=none.npz cannot be read: No such file',
    ),
    (
      'launcher = "lab"\nflags = "--problem=self_prediction '
      '--target_update=projected_soft"',
      'target_update=projected_soft must be one of',
    ),
    # Checks of a whole command line see all runs of a cell, and its seeds.
    (
      'launcher = "classic"\nseeds = 2\nflags = "--share=batch"',
      '--share=batch must be runs where --seeds=2',
    ),
    (
      'launcher = "classic"\nflags = "--tau=0.1,0.2"\n'
      '[axes]\ntarget_update = ["soft", "hard"]',
      '--tau=0.1,0.2 must be one value',
    ),
  ],
)
def test_what_a_launcher_refuses_is_refused_before_any_cell_begins(
  tmp_path, text, words
):
  assert words in _refused(tmp_path, text)


def test_closest_names_of_an_axis(tmp_path):
  message = _refused(tmp_path, CLASSIC + '[axes]\ntaget_period = [1]\n')
  assert 'the closest are target_period' in message


def _drive(folder, cells):
  with folder.driven(cells) as gone:
    return gone


def test_cells_may_be_added_and_not_changed(tmp_path):
  folder = SweepFolder(tmp_path / 'runs')
  text = CLASSIC + 'flags = "--target_update=soft --tau=0.5"\n[axes]\n'
  game = text + 'environment = ["catch"]\n'
  assert _drive(folder, _cells(tmp_path, game)) == []
  more = game.replace('"catch"', '"cartpole", "catch"')
  assert _drive(folder, _cells(tmp_path, more)) == []
  assert list(folder.cells()) == ['environment=catch', 'environment=cartpole']
  # One that the file has no more stays, and is said.
  assert _drive(folder, _cells(tmp_path, game)) == ['environment=cartpole']
  changed = _cells(tmp_path, more.replace('tau=0.5', 'tau=0.25'))
  _begin(folder, 'environment=catch')
  with pytest.raises(UsageError) as error:
    _drive(folder, changed)
  assert '1 of these cells with other options' in str(error.value)
  assert '--tau: 0.5 in the folder, 0.25 now' in str(error.value)
  # One that waits may have others.
  _drive(folder, [cell for cell in changed if 'cartpole' in cell.name])
  assert folder.cells()['environment=cartpole']['options']['tau'] == '0.25'


def test_the_folder_of_another_sweep_is_refused(tmp_path):
  folder = SweepFolder(tmp_path / 'runs')
  text = CLASSIC + '[axes]\nenvironment = ["catch"]\n'
  _drive(folder, _cells(tmp_path, text))
  with pytest.raises(UsageError, match='holds another sweep, whose cells are'):
    _drive(folder, _cells(tmp_path, text.replace('catch', 'cartpole')))


def test_a_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / 'thesis.tex').write_text('')
  with pytest.raises(UsageError, match=r"holds 'thesis\.tex'"):
    _drive(SweepFolder(tmp_path), [])


def test_two_drivers_do_not_share_a_folder(tmp_path):
  folder = SweepFolder(tmp_path / 'runs')
  with (
    folder.driven([]),
    pytest.raises(Exception, match='in use by another process'),
    folder.driven([]),
  ):
    pass
  assert not folder.is_driven()


def test_a_machine_without_the_cores_is_refused(tmp_path, capsys):
  path = tmp_path / 'sweep.toml'
  path.write_text(CLASSIC + 'cores = 4096\n')
  code = executing.execute(
    sweep.SweepConfig, '', sweep.main, [f'--sweep={path}']
  )
  assert code == 2
  assert 'cores = 4096 must be at most' in capsys.readouterr().err


def _begin(folder, name):
  run = folder.run(name)
  run.path.mkdir()
  run.flags.write_text(
    '# siamrl run folder; python ... --flagfile=<this file> runs it again\n'
  )


def test_a_cell_that_has_begun_is_cut(tmp_path):
  folder = SweepFolder(tmp_path / 'runs')
  (cell,) = _cells(tmp_path, CLASSIC)
  _drive(folder, [cell])
  assert folder.state('all') == State.WAITING
  _begin(folder, 'all')
  assert folder.state('all') == State.CUT


def _pool_of(tmp_path, monkeypatch, *flags):
  """The arguments with which a command line makes a pool."""
  for name in ('RayPool', 'SlurmPool'):
    monkeypatch.setattr(sweep, name, lambda *a, **more: (*a, more['needs']))
  path = tmp_path / 'sweep.toml'
  path.write_text('launcher = "lab"\ncores = 2\ngpus = 1\nmemory_gb = 1.5\n')
  file = sweep_files.read(path, launchers.NAMES)
  config = reading.from_arguments(sweep.SweepConfig, *flags)
  return sweep.make_pool(config, file, SweepFolder(tmp_path))


def test_options_of_clusters_reach_their_pools(tmp_path, monkeypatch):
  needs = Resources(2, 1, 1.5)
  found = _pool_of(
    *(tmp_path, monkeypatch, '--launcher=ray', '--ray_address=head:6379'),
    '--jobs=3',
  )
  assert found == (tmp_path, 3, 'head:6379', needs)
  found = _pool_of(
    *(tmp_path, monkeypatch, '--launcher=slurm', '--slurm_partition=gpu'),
    *('--slurm_timeout_min=240', '--slurm_signal_s=120'),
    *('--slurm_setup=module load cuda', '--slurm_options=account=rl qos=long'),
  )
  options = SlurmOptions(
    *('gpu', 240, 120, ('module load cuda',)), {'account': 'rl', 'qos': 'long'}
  )
  assert found == (tmp_path, None, options, needs)


@pytest.mark.parametrize(
  'flags, message',
  [
    (
      ['--slurm_partition=gpu'],
      '--slurm_partition=gpu must go with --launcher=slurm, not local',
    ),
    (
      ['--launcher=slurm', '--ray_address=auto'],
      '--ray_address=auto must go with --launcher=ray, not slurm',
    ),
    (
      ['--launcher=slurm', '--slurm_timeout_min=1'],
      '--slurm_signal_s=90 must be less than --slurm_timeout_min',
    ),
    (
      ['--launcher=slurm', '--slurm_options=--qos=long'],
      '--slurm_options=--qos=long must be NAME=VALUE, separated by spaces, '
      'such as "account=vision qos=long"',
    ),
  ],
)
def test_options_of_another_pool_are_refused(
  tmp_path, monkeypatch, flags, message
):
  with pytest.raises(UsageError) as error:
    _pool_of(tmp_path, monkeypatch, *flags)
  assert str(error.value) == message


def test_paths_with_commas_in_their_names(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ('tau=0.1,seed=0', 'tau=0.1,seed=1', 'plain'):
    (tmp_path / name).mkdir()
  assert split_paths('plain,tau=0.1,seed=0,none,tau=0.1,seed=1') == [
    *('plain', 'tau=0.1,seed=0', 'none', 'tau=0.1,seed=1')
  ]
  assert split_paths('plain') == ['plain']
  many = ['tau=0.1,seed=0', 'plain'] * 2_000
  assert split_paths(','.join(many)) == many


def _fill(folder, name, flags, score):
  """A cell with two periods, two seeds and two rows of each."""
  _begin(folder, name)
  run = folder.run(name)
  lines = [f'--{key}={value}' for key, value in flags.items()]
  run.flags.write_text(run.flags.read_text() + '\n'.join(lines) + '\n')
  rows = [
    f'{period},{seed},{t},{score + period + 0.1 * seed}'
    for period in (10, 100)
    for seed in (0, 1)
    for t in (1000, 2000)
  ]
  run.metrics.write_text(
    '\n'.join(['target_period,seed,env_steps,train_return', *rows]) + '\n'
  )


def test_the_cells_of_a_sweep_are_drawn_as_one(tmp_path):
  """Axes that have cells of their own are swept options like all others."""
  folder = SweepFolder(tmp_path / 'runs')
  text = (
    'launcher = "classic"\nflags = "--environment=catch"\nseeds = 2\n[axes]\n'
    'target_period = [10, 100]\nagent = ["dqn", "double_dqn"]\n'
  )
  _drive(folder, _cells(tmp_path, text))
  for number, agent in enumerate(('dqn', 'double_dqn')):
    flags = {
      'agent': agent,
      'environment': 'catch',
      'seeds': '2',
      'target_period': '10,100',
    }
    _fill(folder, f'agent={agent}', flags, number)
  (source,) = sources.read_sources(str(folder.path))
  names = list(source.table)
  swept = names[: names.index('seed')]
  assert sorted(swept) == ['agent', 'target_period']
  assert source.flags['environment'] == 'catch' and 'agent' not in source.flags
  assert len(source.table['seed']) == 16
  out = tmp_path / 'out'
  for kind in ([], ['--kind=heatmap']):
    code = executing.execute(
      plot.PlotConfig,
      '',
      plot.main,
      [str(folder.path), f'--output={out}', *kind],
      listed='runs',
    )
    assert code == 0
  assert (tmp_path / 'out-final.png').exists()
  assert (tmp_path / 'out-heatmap.png').exists()


def test_a_dry_run_on_a_machine_that_holds_no_cell(
  tmp_path, monkeypatch, capsys
):
  """Such as the machine from which a cluster is used."""
  path = tmp_path / 'sweep.toml'
  path.write_text(CLASSIC + 'cores = 4096\n')

  class _Cluster:
    at_a_time = 3

    def close(self):
      pass

  monkeypatch.setattr(sweep, 'make_pool', lambda *_: _Cluster())
  config = sweep.SweepConfig(
    sweep=str(path), run_dir=str(tmp_path / 'runs'), dry_run=True
  )
  sweep.main(config)
  said = capsys.readouterr().out
  assert 'waiting    all' in said
  assert 'no cell fits here: cores = 4096 must be at most' in said


def test_a_dry_run_measures_each_arm(tmp_path, monkeypatch, capsys):
  path = tmp_path / 'sweep.toml'
  path.write_text(
    'launcher = "classic"\nseeds = 2\nsplit = ["seed"]\n[arms]\n'
    'catch = ""\nwide = "--hidden_sizes=512"\nlate = "--hidden_sizes=256"\n'
    'breakout = {launcher = "minatar", flags = "--game=breakout"}\n'
  )
  now, limits = [0.0], {}
  known = {'catch': (22.0, 50), 'breakout': (276.0, 40), 'wide': (40.0, 25)}

  def probe(unused_file, cell, limit_s):
    arm = cell.point['arm']
    limits[cell.name] = limit_s
    seconds, took = known[arm]
    now[0] += took
    return sweep.Estimate(seconds, 2 * 10**9)

  monkeypatch.setattr(sweep, '_probe', probe)
  monkeypatch.setattr(
    sweep, 'time', types.SimpleNamespace(monotonic=lambda: now[0])
  )
  pool = types.SimpleNamespace(at_a_time=2, close=lambda: None)
  monkeypatch.setattr(sweep, 'make_pool', lambda *_: pool)
  config = sweep.SweepConfig(
    sweep=str(path), run_dir=str(tmp_path / 'runs'), dry_run=True
  )
  sweep.main(config)
  # Launchers first, then arms as long as there is time: 5 s are too short.
  assert limits == {
    'catch/seed=0': 60,
    'breakout/seed=0': 70,
    'wide/seed=0': 30,
  }
  assert capsys.readouterr().out.splitlines()[-6:] == [
    'memory: 2.0 GB for catch/seed=0, so far; about 4.0 GB for 2 at a time',
    'time: about 22 s for catch/seed=0, one of 2 cells of its arm',
    'time: about 40 s for wide/seed=0, one of 2 cells of its arm',
    'time: about 5 minutes for breakout/seed=0, one of 2 cells of its arm',
    'time: 1 arm is taken to last as long as the slowest of the same launcher, '
    'for want of time to measure',
    # 22 + 40 + 40 + 276 s each.
    'time: about 6 minutes for 8 of 8 cells, 2 at a time, if all cells of an '
    'arm take as long',
  ]
  known['breakout'] = (math.inf, 40)
  now[0] = 0.0
  sweep.main(config)
  said = capsys.readouterr().out
  assert 'breakout/seed=0 had no row of metrics yet, so it is unknown' in said
  assert 'about 2 minutes for 6 of 8 cells, 2 at a time' in said  # 102 s


def test_cells_begin_as_soon_as_they_can():
  assert sweep._makespan([3.0] * 5, 2) == 9
  assert sweep._makespan([5, 1, 1, 1, 1], 2) == 5
  assert sweep._makespan([1, 1, 5], 2) == 6
