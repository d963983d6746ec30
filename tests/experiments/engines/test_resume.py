"""Stopped, killed and resumed runs end as undisturbed ones do, bit for bit."""

import pathlib

import pytest

from tests.experiments.launching import (
  SMALL,
  assert_same_run,
  columns,
  killed,
  launch,
)

EVALUATES = (*SMALL, '--eval_episodes=2', '--eval_envs=2')
_SEND = 'siamrl.envs.ale:AtariEnvironments.send'


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory) -> pathlib.Path:
  """A run from start to end, of `EVALUATES`."""
  folder = tmp_path_factory.mktemp('undisturbed') / 'run'
  output = launch(*EVALUATES, f'--run_dir={folder}')
  assert f'starting {folder}' in output
  assert f'finished: {folder}' in output
  assert 'iteration 1, 3,200 frames' in output
  return folder


def test_the_run_learns(undisturbed):
  rows = columns(undisturbed)
  assert rows['frames'] == [1600, 3200]
  assert rows['env_steps'] == [400, 800]
  # From env step 64 on, one in every 4.
  assert rows['gradient_steps'] == [84, 184]
  assert rows['target_updates'] == [3, 7]  # every 25 gradient steps
  assert rows['eval_episodes'] == [2, 2]
  assert min(rows['train_episodes']) > 1
  assert min(rows['loss']) > 0
  for name in ('curve.png', 'flags.txt', 'config.json', 'versions.json'):
    assert (undisturbed / name).stat().st_size > 0


def test_sigterm_in_training_and_in_an_evaluation(undisturbed, tmp_path):
  folder = tmp_path / 'run'
  arguments = (*EVALUATES, f'--run_dir={folder}')
  # The 200th env step lies in the middle of the first iteration, of 400; it
  # stops at the end of the chunk, 256 env steps after the first that learns.
  output = launch(*arguments, sabotage=(_SEND, 200, 'SIGTERM'))
  assert 'stopped at frame 1,296 and saved' in output
  assert not columns_written(folder)
  # Returning to that point sends 324 actions again, 76 are left, and after them
  # comes the evaluation.
  output = launch(*arguments, sabotage=(_SEND, 400 + 20, 'SIGTERM'))
  assert f'resuming {folder} on cpu at frame 1,296' in output
  assert 'stopped at frame 1,600 and saved' in output
  assert not columns_written(folder)
  output = launch(*arguments)
  assert f'resuming {folder} on cpu at frame 1,600' in output
  assert_same_run(undisturbed, folder)


def columns_written(folder: pathlib.Path) -> bool:
  """Whether there is a row of metrics."""
  metrics = folder / 'metrics.csv'
  return metrics.exists() and len(metrics.read_text().splitlines()) > 1


@pytest.mark.slow
def test_sigkill_while_saving(undisturbed, tmp_path):
  folder = tmp_path / 'run'
  # A checkpoint at every chance: after env steps 68 (the first round that
  # learns), 324, 400 and at the iteration's end; then 656, 800 and the end.
  arguments = (*EVALUATES, f'--run_dir={folder}', '--checkpoint_period_s=1e-6')
  killed(
    *arguments,
    sabotage=(
      # With the second checkpoint written, before older files are removed.
      'siamrl.report.checkpoint:_flush',
      2,
    ),
  )
  output = killed(
    *arguments,
    sabotage=(
      # Replay stored, no checkpoint that knows of it.
      'siamrl.report.checkpoint:Checkpoints._write',
      1,
    ),
  )
  assert f'resuming {folder} on cpu at frame 1,296' in output
  output = killed(
    *arguments,
    # In Orbax's renaming, when the learner is in place and the rest is not.
    sabotage=('os:rename', 2),
  )
  assert f'resuming {folder} on cpu at frame 1,296' in output
  output = killed(
    *arguments,
    # With the row of the first iteration written, and no checkpoint after it.
    sabotage=('experiments.engines.host:_line', 1),
  )
  assert f'resuming {folder} on cpu at frame 1,296' in output
  assert columns(folder)['frames'] == [1600]
  output = launch(*arguments)
  assert f'resuming {folder} on cpu at frame 1,600' in output
  assert_same_run(undisturbed, folder)


@pytest.mark.slow
def test_the_same_flags_make_the_same_run(undisturbed, tmp_path):
  folder = tmp_path / 'again'
  launch(f'--flagfile={undisturbed}/flags.txt', f'--run_dir={folder}')
  assert_same_run(undisturbed, folder)


def test_a_finished_run_says_so(undisturbed):
  before = (undisturbed / 'metrics.csv').read_bytes()
  output = launch(*EVALUATES[1:], f'--run_dir={undisturbed}')
  assert output.splitlines() == [
    f'finished already: {undisturbed}, 3,200 frames'
  ]
  assert (undisturbed / 'metrics.csv').read_bytes() == before


@pytest.mark.parametrize(
  'flags',
  [
    (
      '--num_envs=2',
      '--acting=overlapped',
      '--n_step=3',
      '--target_update=periodic_soft',
      '--tau=0.5',
    ),
    pytest.param(
      ('--num_envs=8', '--agent=double_dqn', '--nofire_on_reset'),
      marks=pytest.mark.slow,
    ),
  ],
)
@pytest.mark.slow
def test_other_modes_resume_too(flags, tmp_path):
  arguments = (*SMALL, '--seed=7', *flags)
  whole, parted = tmp_path / 'whole', tmp_path / 'parted'
  launch(*arguments, f'--run_dir={whole}')
  sabotage = ('siamrl.envs.ale:AtariEnvironments.send', 40, 'SIGINT')
  output = launch(*arguments, f'--run_dir={parted}', sabotage=sabotage)
  assert 'saved; the same command' in output
  assert 'resuming' in launch(*arguments, f'--run_dir={parted}')
  assert_same_run(whole, parted)


@pytest.mark.slow
def test_overwrite_starts_afresh(tmp_path):
  arguments = (*SMALL, '--frames=800', f'--run_dir={tmp_path / "run"}')
  launch(*arguments)
  (tmp_path / 'run' / 'notes.txt').write_text('mine')
  output = launch(*arguments, '--seed=1', '--overwrite')
  assert 'starting' in output
  text = (tmp_path / 'run' / 'flags.txt').read_text()
  assert '--seed=1\n' in text
  assert '--overwrite=false\n' in text  # to run it again must not delete it
  assert columns(tmp_path / 'run')['frames'] == [800]
  assert (tmp_path / 'run' / 'notes.txt').read_text() == 'mine'
