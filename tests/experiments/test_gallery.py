"""Every committed figure is drawn from its data by the command beside it."""

import csv
import pathlib
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from experiments import plot, reproduce
from experiments.config import executing, reading
from experiments.studies import agreement_figure

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / 'experiments' / 'results'
PAGE = (RESULTS / 'README.md').read_text(encoding='utf-8')


@pytest.fixture(autouse=True)
def _registries(kept_rules):
  """Studies may bring rules of their own."""


DRAWERS = {
  'plot': (plot.PlotConfig, plot.main, {'listed': 'runs'}),
  'reproduce': (reproduce.ReproduceConfig, reproduce.main, {}),
  'studies.agreement_figure': (
    agreement_figure.FigureConfig,
    agreement_figure.main,
    {},
  ),
}
# What each drawer is asked, by the beginning of its figures' names.
COMMANDS = {
  pathlib.Path(match[3]).name + (f'-{match[2]}' if match[2] else ''): (
    match[1],
    shlex.split(line)[3:],
  )
  for line in PAGE.splitlines()
  if (
    match := re.match(
      r'python -m experiments\.(plot|reproduce|studies\.\w+) .*?'
      r'(?:--kind=(\w+) )?--output=(\S+)',
      line,
    )
  )
}
# One of each kind: a sweep in panes, rows, representations, runs beside a
# published curve, a map of the lab, a study, aggregates.
QUICK = [
  'twin_rate',
  'target_free_gap',
  'siamese_frames',
  'pong_dopamine_dqn',
  'lab_random',
  'cleanrl_classic',
  'target_free_gap-aggregates',
]


def _config(name):
  drawer, arguments = COMMANDS[name]
  options, _, more = DRAWERS[drawer]
  return reading.from_arguments(options, *arguments, **more)


def _read_by(name):
  return _config(name).runs.split(',')


def _drawn_by(name):
  """The command that draws a figure: that with the longest output before."""
  stem = name.removesuffix('.png')
  return max((n for n in COMMANDS if stem.startswith(n)), key=len, default=None)


def test_the_page_shows_every_figure_and_draws_it():
  shown = re.findall(r'!\[[^\]]+\]\(([^)]+)\)', PAGE)
  assert len(set(shown)) == len(shown)
  committed = {path.name for path in RESULTS.glob('*.png')}
  assert set(shown) == committed
  assert {_drawn_by(name) for name in committed} == set(COMMANDS)


def test_every_table_is_drawn_or_written_by_a_command():
  read = {
    pathlib.Path(path).name for name in COMMANDS for path in _read_by(name)
  }
  written = {f'{name}.csv' for name in COMMANDS}
  written |= {f'{name}-table.csv' for name in COMMANDS}
  for path in RESULTS.glob('*.csv'):
    assert path.name in read | written or path.name in PAGE, path
  assert read <= {path.name for path in RESULTS.glob('*.csv')}


def test_files_are_small():
  for path in RESULTS.iterdir():
    limit = {'.png': 200, '.csv': 500}.get(path.suffix)
    assert limit is None or path.stat().st_size < 1_000 * limit, path


def _check(name, tmp_path, monkeypatch):
  """Runs a command elsewhere and compares what it draws with what is here."""
  monkeypatch.chdir(ROOT)
  drawer, arguments = COMMANDS[name]
  arguments = [
    f'--output={tmp_path / pathlib.Path(a).name}'
    if a.startswith('--output=')
    else a
    for a in arguments
  ]
  options, main, more = DRAWERS[drawer]
  code = executing.execute(options, '', main, arguments, **more)
  assert code in (0, executing.MISSED)
  drawn = {path.name for path in tmp_path.glob('*.png')}
  assert drawn == {
    path.name for path in RESULTS.glob('*.png') if _drawn_by(path.name) == name
  }
  for figure in drawn:
    with (
      Image.open(tmp_path / figure) as new,
      Image.open(RESULTS / figure) as old,
    ):
      assert new.size == pytest.approx(old.size, rel=0.02)
      new_pixels, old_pixels = (
        np.asarray(image.convert('L').resize((400, 200)), np.float64)
        for image in (new, old)
      )
    # Letters may differ between versions of Matplotlib; lines may not.
    assert np.mean(np.abs(new_pixels - old_pixels) > 32) < 0.01, figure
  written = tmp_path / f'{name}.csv'
  if written.exists():
    assert _cells(written) == _cells(RESULTS / written.name)


def _cells(path):
  """The cells of a table, numbers to five digits."""
  with path.open(encoding='utf-8') as file:
    return [[_rounded(cell) for cell in row] for row in csv.reader(file)]


def _rounded(cell):
  try:
    return f'{float(cell):.5g}'
  except ValueError:
    return cell


@pytest.mark.parametrize('name', QUICK)
def test_figures_are_drawn_again(name, tmp_path, monkeypatch):
  _check(name, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(set(COMMANDS) - set(QUICK)))
def test_all_other_figures_are_drawn_again(name, tmp_path, monkeypatch):
  _check(name, tmp_path, monkeypatch)
