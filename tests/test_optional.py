"""Optional packages: what is said where one is missing, and where it fails."""

import importlib
import pathlib
import sys

import gymnasium
import numpy as np
import pytest

from experiments.engines import running
from siamrl.envs import ale, frames, gym
from siamrl.envs.gymnax import make_gymnax
from siamrl.images import load_images
from siamrl.optional import (
  NotInstalledError,
  OptionalImportError,
  import_optional,
)
from siamrl.replay.dataset import from_minari
from siamrl.report import drawing
from siamrl.report.metrics import MetricsWriter
from siamrl.report.video import write_gif


def _write_gif(tmp_path: pathlib.Path) -> None:
  write_gif(tmp_path / 'a.gif', np.zeros((1, 4, 4), np.uint8), fps=10)


# All that needs an optional package: the package, its extra, and the need.
NEEDS = {
  'games': ('ale_py', 'atari', lambda _: ale.games()),
  'frames': ('ale_py', 'atari', lambda _: frames.collect_frames('pong', 1)),
  'gymnax': ('gymnax', 'gymnax', lambda _: make_gymnax('CartPole-v1')),
  'robots': (
    'mujoco',
    'mujoco',
    lambda _: gym.GymnasiumEnvironments('Hopper-v5', seed=0),
  ),
  'lander': (
    'Box2D',
    'box2d',
    lambda _: gym.GymnasiumEnvironments('LunarLander-v3', seed=0),
  ),
  'digits': ('sklearn', 'siamese', lambda _: load_images('digits')),
  'folders': ('PIL', 'siamese', load_images),
  'minari': ('minari', 'minari', lambda _: from_minari('a/b-v0')),
  'videos': ('PIL', 'plots', _write_gif),
  'curves': ('matplotlib', 'plots', lambda _: drawing.new_figure(1, 1)),
}


@pytest.fixture
def hide(monkeypatch):
  """Forgets that a package was imported, until the test is over."""
  hidden = []

  def modules(package):
    start = f'{package}.'
    return [m for m in sys.modules if m == package or m.startswith(start)]

  def hide(package):
    ale.games.cache_clear()
    hidden.append(package)
    for name in modules(package):
      monkeypatch.delitem(sys.modules, name)

  yield hide
  ale.games.cache_clear()
  # What stood in for a package would otherwise stay after the test.
  for package in hidden:
    for name in modules(package):
      del sys.modules[name]


@pytest.fixture
def replace(hide, monkeypatch, tmp_path):
  """Puts another package in the place of an installed one."""

  def replace(package, code):
    hide(package)
    (tmp_path / 'packages' / package).mkdir(parents=True)
    (tmp_path / 'packages' / package / '__init__.py').write_text(code)
    monkeypatch.syspath_prepend(tmp_path / 'packages')

  return replace


@pytest.mark.parametrize('package, extra, need', NEEDS.values(), ids=NEEDS)
def test_a_missing_package_is_to_be_installed(
  hide, monkeypatch, tmp_path, package, extra, need
):
  hide(package)
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(NotInstalledError) as error:
    need(tmp_path)
  assert str(error.value).endswith(f': pip install siamrl[{extra}]')


@pytest.mark.parametrize(
  'code, reason',
  [
    ('import an_undeclared_one', "No module named 'an_undeclared_one'"),
    ('from math import nothing', "cannot import name 'nothing'"),
    ('raise ImportError("libX.so.6:\\nno such file")', 'libX.so.6: no such'),
    ('raise TypeError("Descriptors")', 'TypeError: Descriptors'),
    ('raise OSError(2, "gone")', 'FileNotFoundError: .*gone'),
  ],
)
@pytest.mark.parametrize('package, extra, need', NEEDS.values(), ids=NEEDS)
def test_a_broken_package_says_why(
  replace, tmp_path, package, extra, need, code, reason
):
  """And not that it must be installed, which it is."""
  replace(package, code)
  with pytest.raises(OptionalImportError, match=reason) as error:
    need(tmp_path)
  assert not isinstance(error.value, NotInstalledError)
  assert 'pip install' not in str(error.value)
  assert '\n' not in str(error.value)


def test_a_package_without_the_module_is_installed(replace):
  replace('gymnax', '')
  with pytest.raises(OptionalImportError, match="No module named 'gymnax.a'"):
    import_optional('gymnax.a', 'this needs gymnax', 'gymnax')


def test_a_module_is_imported_by_its_dotted_name():
  module = import_optional('xml.dom.minidom', 'this needs XML', 'none')
  assert module is importlib.import_module('xml.dom.minidom')


def test_events_are_written_or_missed(replace, tmp_path):
  """A missing package is passed over, a broken one is an error to be told."""
  replace('tensorboardX', 'import an_undeclared_one')
  writer = MetricsWriter(tmp_path / 'metrics.csv', tmp_path / 'events')
  with writer, pytest.raises(OptionalImportError, match='an_undeclared_one'):
    raise writer.events_error
  assert not isinstance(writer.events_error, NotInstalledError)


def test_a_run_without_curves_goes_on(replace, hide, monkeypatch, capsys):
  running.can_draw.cache_clear()
  assert running.can_draw()
  hide('matplotlib')
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  running.can_draw.cache_clear()
  assert not running.can_draw()
  assert not capsys.readouterr().err
  replace('matplotlib', 'import an_undeclared_one')
  running.can_draw.cache_clear()
  assert not running.can_draw() and not running.can_draw()
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('note: nothing is drawn: ')
  assert line.endswith("No module named 'an_undeclared_one'")
  running.can_draw.cache_clear()


@pytest.fixture
def register(monkeypatch):
  def register(name, entry_point):
    monkeypatch.setitem(
      gymnasium.registry,
      name,
      gymnasium.envs.registration.EnvSpec(name, entry_point=entry_point),
    )

  return register


def _make(name: str) -> None:
  gym.GymnasiumEnvironments(name, seed=0)


def test_gymnasium_gives_its_own_reason(register):
  pytest.importorskip('mujoco')
  for name, reason in (
    ('Pusher-v4', 'mujoco<3.*; the newest version is Pusher-v5$'),
    ('Ant-v3', 'moved to the gymnasium-robotics.*; the newest .* Ant-v5$'),
    ('GymV21Environment-v0', r'shimmy\[gym-v21\]'),
  ):
    with pytest.raises(ImportError, match=f'^{name}: .*{reason}') as error:
      _make(name)
    assert 'siamrl[' not in str(error.value)


def test_the_newest_version_is_named_without_mujoco_too(hide, monkeypatch):
  hide('mujoco')
  monkeypatch.setitem(sys.modules, 'mujoco', None)
  with pytest.raises(ImportError, match=r'siamrl\[mujoco\]; .*is Pusher-v5$'):
    _make('pusher-v4')


def test_what_gymnasium_hides_is_told(register):
  """It says 'not installed' whatever went wrong in an import."""

  def make():
    try:
      raise ImportError('libBox.so: wrong ELF class')
    except ImportError as error:
      text = 'Box is not installed'
      raise gymnasium.error.DependencyNotInstalled(text) from error

  register('Boxed-v0', make)
  with pytest.raises(ImportError, match='Boxed-v0: .*wrong ELF class') as error:
    _make('Boxed-v0')
  assert 'Box is not installed' in str(error.value)


@pytest.mark.parametrize(
  'error',
  [
    gymnasium.error.DeprecatedEnv('Thing-v0 is deprecated'),
    gymnasium.error.MissingArgument('Thing-v0 needs a size'),
  ],
)
def test_errors_of_gymnasium_are_shown(register, error):
  def make():
    raise error

  register('Thing-v0', make)
  with pytest.raises(ValueError, match=f'^{error}$'):
    _make('Thing-v0')
