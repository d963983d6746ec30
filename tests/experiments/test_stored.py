"""Runs read back from their folders: which they are, and their networks."""

import dataclasses
import pathlib
import re

from gymnasium.envs.classic_control.cartpole import CartPoleEnv
import jax
import numpy as np
from PIL import Image
import pytest

from experiments import classic, enjoy, export, launchers
from experiments.config import declaring, executing, reading
from experiments.engines import folders, sweeps
from experiments.families import q
from experiments.stored import finding, playing, weights
from experiments.suites import ale, gym
from siamrl.report import checkpoint

SMALL = [
  *('--platform=cpu', '--environment=catch', '--env_steps=600'),
  *('--iteration_env_steps=200', '--num_envs=2', '--train_period=2'),
  *('--batch_size=8', '--min_replay=50', '--replay_capacity=300'),
  *('--hidden_sizes=16', '--epsilon_decay=600', '--seeds=2'),
  *('--target_period=70', '--target_period_unit=gradient_steps'),
  '--checkpoint_period_s=0.001',
]


def _export(*arguments):
  """The exit code of a command line."""
  return executing.execute(
    export.ExportConfig, '', export.main, arguments, listed='runs'
  )


@pytest.fixture(scope='module')
def sweep(tmp_path_factory):
  """The folder of four compiled runs: two rates, two seeds."""
  path = tmp_path_factory.mktemp('sweep') / 'run'
  arguments = [*SMALL, f'--run_dir={path}', '--learning_rate=0.01,0.001']
  assert not _train(arguments)
  return path


def _train(arguments):
  """Trains on a small environment in this process; returns the exit code."""
  return executing.execute(
    classic.ClassicConfig,
    '',
    lambda sweep: sweeps.main(sweep, classic.make_task, q.FAMILY),
    arguments,
    lists=True,
  )


def test_weights_of_one_run_are_written(sweep, tmp_path):
  numpy = pytest.importorskip('safetensors.numpy')
  output = tmp_path / 'net'
  chosen = '--run=learning_rate=0.001,seed=1'
  command = (str(sweep), chosen, '--format=safetensors', f'--output={output}')
  assert not _export(*command)
  arrays = numpy.load_file(f'{output}.safetensors')
  stored = weights.read_weights(finding.find_run(str(sweep), '3'))
  assert arrays.keys() == stored.arrays.keys()
  for name, array in arrays.items():
    assert array.dtype == stored.arrays[name].dtype
    np.testing.assert_array_equal(array, stored.arrays[name])
  other = weights.read_weights(
    finding.find_run(str(sweep), 'learning_rate=0.001,seed=0')
  )
  name = 'online_params.params.head.last.Dense_0.kernel'
  assert not np.array_equal(arrays[name], other.arrays[name])
  assert not np.array_equal(
    arrays[name], arrays[name.replace('online', 'target')]
  )
  text = pathlib.Path(f'{output}.md').read_text()
  assert '| run | learning_rate=0.001, seed=1 |' in text
  assert '`--target_update=hard --target_period=70`' in text
  assert '| env steps | 600 |' in text
  names: dict = {}
  (code,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  exec(code.replace("'net.", f"'{output}."), names)
  loaded = names['params']['params']['head']['last']['Dense_0']['kernel']
  np.testing.assert_array_equal(loaded, arrays[name])


def test_a_damaged_checkpoint_is_passed_over(sweep, tmp_path, capsys):
  """The one before it is read; nothing in the folder changes."""
  stored = finding.find_run(str(sweep), '0')
  steps = sorted(stored.checkpoints.iterdir(), key=lambda path: int(path.name))
  assert len(steps) == 2
  newest = weights.read_weights(stored)
  damaged = steps[-1] / 'extra' / 'metadata'
  content = damaged.read_bytes()
  damaged.write_bytes(content + b' ')
  try:
    before = weights.read_weights(stored)
  finally:
    damaged.write_bytes(content)
  assert before.gradient_steps < newest.gradient_steps
  assert 'the checkpoint before it is used' in capsys.readouterr().err
  assert steps == sorted(
    stored.checkpoints.iterdir(), key=lambda path: int(path.name)
  )


def test_a_run_of_a_sweep_must_be_chosen(sweep, tmp_path, capsys):
  command = [str(sweep), '--format=safetensors', f'--output={tmp_path / "a"}']
  for choice in ([], ['--run=4'], ['--run=seed=0'], ['--run=tau=1,seed=0']):
    assert _export(*command, *choice) == 2
    error = capsys.readouterr().err
    assert 'must be that of one of the 4 runs' in error
    assert (
      '0: learning_rate=0.01, seed=0; 1: learning_rate=0.01, seed=1' in error
    )


def _folder(path, config, *arguments):
  """A folder with the flags of a command line, and no run in it."""
  sweep = reading.sweep_from_arguments(config, *arguments)
  given = sweep._replace(values=sweep.values | {'run_dir': (str(path),)})
  recorded = given if len(sweep.configs) > 1 else sweep.configs[0]
  folders.open_folder(path, recorded, overwrite=False, ignore=()).close()
  return str(path)


def test_each_program_has_checkpoints_of_its_own(tmp_path):
  arguments = (*SMALL, '--agent=dqn,double_dqn', '--learning_rate=0.1,0.2')
  path = _folder(tmp_path / 'a', classic.ClassicConfig, *arguments)
  run = finding.find_run(path, 'agent=double_dqn,learning_rate=.20,seed=1')
  assert run.checkpoints == tmp_path / 'a' / 'checkpoints' / '001'
  assert run.place == 3
  assert run.config.agent == 'double_dqn'
  assert run.settings['learning_rate'] == np.float32(0.2)


def test_processes_have_shards_of_their_own(tmp_path):
  arguments = (*SMALL, '--agent=dqn,double_dqn', '--num_processes=2')
  path = _folder(tmp_path / 'a', classic.ClassicConfig, *arguments)
  run = finding.find_run(path, '3')  # the second seed of the second agent
  shard = tmp_path / 'a' / 'shards' / '001'
  assert run.checkpoints == shard / 'checkpoints' / '001'
  assert run.place == 0


@pytest.mark.parametrize('name', ['atari', 'gym', 'minatar', 'offline'])
def test_the_launcher_is_told_from_the_flags(tmp_path, name):
  path = _folder(tmp_path / name, launchers.options_of(name), '--seed=3')
  run = finding.find_run(path)
  assert run.launcher == name
  assert run.seed == 3


def test_networks_of_another_version_are_refused(sweep):
  run = finding.find_run(str(sweep), '0')
  found = weights.read_weights(run)
  learner = run.loop.make_setup(run.settings).learner
  state = weights.as_state(run, found, learner)
  assert int(state.gradient_steps) == found.gradient_steps
  kernel = 'online_params.params.head.last.Dense_0.kernel'
  bad = found.arrays | {kernel: found.arrays[kernel][1:]}
  with pytest.raises(declaring.RunError, match='another version'):
    weights.as_state(run, found._replace(arrays=bad), learner)


def _enjoy(*arguments):
  return executing.execute(
    enjoy.EnjoyConfig, '', enjoy.main, arguments, listed='run_dir'
  )


def test_an_agent_plays_as_in_evaluations(sweep):
  run = finding.find_run(str(sweep), '2')
  result = playing.play(run, episodes=3, seed=5, most_frames=20)
  assert set(result.returns) <= {-1.0, 1.0}
  assert result.lengths == [9, 9, 9]  # the ball falls so long
  assert result.frames.shape == (20, 400, 200, 3)
  loop = run.loop
  config = dataclasses.replace(loop.config, eval_episodes=3)
  loop = dataclasses.replace(loop, config=config)
  setup = loop.make_setup(run.settings)
  state = weights.as_state(run, weights.read_weights(run), setup.learner)
  row = loop._evaluate(
    setup, state.online_params, jax.random.fold_in(jax.random.key(5), 0)
  )
  assert float(row['eval_return']) == pytest.approx(np.mean(result.returns))


def test_returns_are_printed_and_a_gif_is_written(sweep, tmp_path, capsys):
  output = tmp_path / 'a.gif'
  command = [str(sweep), '--run=1', '--episodes=2', f'--output={output}']
  assert not _enjoy(*command)
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 4
  assert re.fullmatch(r'episode 2: return -?1 in 9 env steps', lines[1])
  assert lines[-1] == f'{output}: 18 frames'
  with Image.open(output) as image:
    assert image.n_frames > 1
  assert _enjoy(*command) == 2
  assert '--overwrite replaces it' in capsys.readouterr().err


def _untrained(path, launcher, *arguments, panel=False):
  """A folder of the host loop whose checkpoint is of a fresh learner."""
  _folder(path, launchers.options_of(launcher), *arguments)
  run = finding.find_run(str(path))
  suite = (
    ale.Suite(run.config) if launcher == 'atari' else gym.Suite(run.config)
  )
  learner = q.make_host_learner(run.config, suite, q.twin_spec(run.config))
  state = learner.init(jax.random.key(0))
  saved = (state, {'seen': np.zeros(3)}) if panel else state
  checkpoint.Checkpoints(run.checkpoints).save(1, saved, {})
  return run, state


def test_environments_of_gymnasium_are_played(tmp_path):
  run, state = _untrained(tmp_path / 'a', 'gym', panel=True)
  found = weights.read_weights(run).arrays
  for name, leaf in weights.named(state.online_params).items():
    np.testing.assert_array_equal(found[f'online_params.{name}'], leaf)
  result = playing.play(run, episodes=2, seed=1, most_frames=10_000)
  assert result.returns == result.lengths  # CartPole pays 1 in each step
  # After each step, and at the start of each episode, one more than counts.
  assert len(result.frames) == sum(result.lengths) + 3
  assert result.frames.shape[1:] == (200, 300, 3)
  assert result.fps == 50
  assert result.undrawn == ''
  undrawn = playing.play(run, episodes=2, seed=1)
  assert undrawn.returns == result.returns


def test_what_cannot_be_drawn_is_played(tmp_path, monkeypatch, capsys):
  _untrained(tmp_path / 'a', 'gym')

  def render(self):
    raise RuntimeError('no display')

  monkeypatch.setattr(CartPoleEnv, 'render', render)
  output = tmp_path / 'a.gif'
  command = (str(tmp_path / 'a'), f'--output={output}', '--episodes=1')
  assert not _enjoy(*command)
  said = capsys.readouterr()
  assert said.out.startswith('episode 1: return ')
  assert said.err.splitlines()[-1] == 'note: no video: no display'
  assert not output.exists()


@pytest.mark.slow  # CI plays the quickstart, too
def test_an_atari_game_is_played_in_color(tmp_path):
  arguments = (
    '--game=pong',
    '--frame_cap=80',
    '--hidden_units=4',
    '--sticky_action_probability=0',
  )
  run, _ = _untrained(tmp_path / 'a', 'atari', *arguments)
  result = playing.play(run, episodes=2, most_frames=30)
  assert max(result.lengths) <= 20
  assert result.frames.shape == (30, 210, 160, 3)
  assert np.ptp(result.frames, axis=-1).any()
  assert result.fps == 15


@pytest.mark.parametrize(
  'arguments, code, words',
  [
    ((), 2, '--run_dir must be given'),
    (('{sweep}',), 2, '--run must be given, and must be that of one of'),
    (('{sweep}', '--run=0', '--output=a.avi'), 2, 'must end in .gif or .mp4'),
    (('{sweep}', '--run=0', '--output=/no/a.gif'), 2, 'a folder that exists'),
    (('{sweep}', '--run=0', '--episodes=0'), 2, '--episodes=0 must be'),
    (('{sweep}/events',), 2, 'not the folder of a run'),
  ],
)
def test_bad_input_is_one_line(sweep, capsys, arguments, code, words):
  given = [text.format(sweep=sweep) for text in arguments]
  assert _enjoy(*given) == code
  error = capsys.readouterr().err
  assert words in error
  assert len(error.splitlines()) == 1


def test_what_does_not_act_is_refused(tmp_path, capsys):
  path = _folder(tmp_path / 'a', launchers.options_of('offline'))
  assert _enjoy(path) == 2
  assert 'does not act in an environment' in capsys.readouterr().err
