"""The launcher's parts that are seen from no other test: the video, the bar."""

import os
import pty
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from experiments import atari
from experiments.config import reading
from experiments.suites import ale
from siamrl.report.checkpoint import Checkpoints
from siamrl.report.metrics import read_metrics
from siamrl.report.run_folder import RunFolder
from tests.experiments.launching import ROOT, SMALL, launch

_EPISODE = (
  '--frames=800',
  '--iteration_frames=800',
  '--eval_episodes=3',
  '--eval_envs=2',
  '--video',
)


@pytest.fixture(scope='module')
def filmed(tmp_path_factory):
  """A run of one iteration with an evaluation and its video."""
  folder = tmp_path_factory.mktemp('filmed') / 'run'
  launch(*SMALL, *_EPISODE, f'--run_dir={folder}')
  return folder


@pytest.mark.slow
def test_the_video_is_the_first_episode_of_the_evaluation(filmed, monkeypatch):
  config = reading.from_arguments(
    atari.AtariConfig, *SMALL, *_EPISODE, f'--run_dir={filmed}'
  )
  environments: list = []
  make = ale.Suite._environments

  def recorded(*args, **kwargs):
    environments.append(_Recorded(make(*args, **kwargs)))
    return environments[-1]

  monkeypatch.setattr(ale.Suite, '_environments', recorded)
  parts, _ = atari.build(config, RunFolder(filmed / 'second'))
  environments.clear()
  train, *_ = Checkpoints(filmed / 'checkpoints').restore(parts.state)
  (filmed / 'second').mkdir()
  row = _returned(parts.evaluate(train, 0))
  metrics = read_metrics(filmed / 'metrics.csv')
  assert row['eval_return'] == metrics['eval_return'][0]
  assert row['eval_episodes'] == 3

  gray, color = environments
  video = _frames(filmed / 'videos' / 'iteration_0000.gif')
  assert (filmed / 'videos' / 'iteration_0000.gif').read_bytes() == (
    filmed / 'second' / 'videos' / 'iteration_0000.gif'
  ).read_bytes()
  # As long as the first emulator's first episode, its first frame included.
  assert len(video) == gray.first_end + 1 == color.first_end + 1
  assert gray.rewards[: gray.first_end] == color.rewards
  # And the picture is that of the color screen.
  np.testing.assert_array_equal(video[-1], color.last_frame)


def _returned(generator):
  while True:
    try:
      next(generator)
    except StopIteration as end:
      return end.value


class _Recorded:
  """Environments, with a record of the first one's first episode."""

  def __init__(self, environments):
    self._environments = environments
    self.rewards, self.first_end, self.last_frame = [], None, None

  def __getattr__(self, name):
    return getattr(self._environments, name)

  def recv(self):
    step = self._environments.recv()
    if self.first_end is None:
      self.rewards.append(float(step.reward[0]))
      if step.terminated[0] or step.truncated[0]:
        self.first_end = len(self.rewards)
        self.last_frame = step.final_obs[0, -1]
    return step


def _frames(path) -> list[np.ndarray]:
  """The pictures of a GIF, one for each time that it was shown."""
  frames = []
  with Image.open(path) as image:
    for index in range(image.n_frames):
      image.seek(index)
      # Equal pictures in a row are stored once, and shown longer.
      shown = round(image.info['duration'] / (1000 * 4 / 60))
      frames += [np.asarray(image.convert('RGB'))] * shown
  return frames


def test_a_curve_is_drawn_after_the_first_row(filmed):
  with Image.open(filmed / 'curve.png') as image:
    assert image.format == 'PNG'
  assert len(read_metrics(filmed / 'metrics.csv')['frames']) == 1


def test_on_a_terminal_there_is_a_bar(tmp_path):
  terminal, child = pty.openpty()
  command = [
    sys.executable,
    '-m',
    'tests.experiments.sabotage',
    'experiments.atari',
    # As Ctrl-C does, well after the first gradient step.
    'siamrl.envs.ale:AtariEnvironments.send',
    '330',
    'SIGINT',
    *SMALL,
    f'--run_dir={tmp_path}/run',
  ]
  process = subprocess.Popen(
    command,
    cwd=ROOT,
    stderr=child,
    stdout=child,
    env={**os.environ, 'TERM': 'xterm', 'COLUMNS': '120'},
  )
  os.close(child)
  shown = ''
  while True:
    try:
      part = os.read(terminal, 4096).decode(errors='replace')
    except OSError:  # the other end is closed
      break
    shown += part
  os.close(terminal)
  assert process.wait() == 0, shown
  assert 'Traceback' not in shown
  assert '━' in shown
  assert 'of 3,200 frames' in shown
  assert 'saved; the same command' in shown
  assert shown.count('\x1b[?25l') == shown.count('\x1b[?25h')  # cursor is back
