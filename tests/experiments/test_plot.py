"""Curves of several runs beside a published one."""

import csv

import pytest
from PIL import Image

from experiments import flags, plot
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
  return flags.execute(plot.PlotConfig, '', plot.main, arguments)


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
