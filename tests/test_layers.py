"""Each floor imports only from the floors below it; flags stay on top."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# The first prefix that fits a module's name gives its floor.
FLOORS = {
  'siamrl.types': 0,
  'siamrl.parameters': 0,
  'siamrl.optional': 0,
  'siamrl.memory': 0,
  'siamrl.conformance': 0,
  'siamrl.pytest_plugin': 0,
  'siamrl.schedule': 1,
  'siamrl.twins': 1,
  'siamrl.losses': 1,
  'siamrl.rewards': 1,
  'siamrl.churn': 1,
  'siamrl.obgd': 1,
  'siamrl.augment': 1,
  'siamrl.museum': 2,
  'siamrl.networks': 2,
  'siamrl.agents': 3,
  'siamrl.learner': 4,
  'siamrl.diagnostics': 4,
  'siamrl.stability': 4,
  'siamrl.self_prediction': 4,
  'siamrl.collapse': 4,
  'siamrl.probing': 4,
  'siamrl.resets': 5,
  'siamrl.replay': 5,
  'siamrl.envs': 5,
  'siamrl.images': 5,
  'siamrl.archive': 5,
  'siamrl.runners': 6,
  'siamrl.report': 7,
  'experiments.config': 8,
  'experiments.suites': 9,
  'experiments.families': 9,
  'experiments.engines': 10,
  'experiments.atari': 11,
  'experiments.classic': 11,
  'experiments.minatar': 11,
  'experiments.control': 11,
  'experiments.gym': 11,
  'experiments.offline': 11,
  'experiments.siamese': 11,
  'experiments.lab': 11,
  'experiments.benchmarks': 13,
  'experiments.benchmark': 14,
  'experiments.calibrate': 12,
  'experiments.enjoy': 13,
  'experiments.export': 13,
  'experiments.launchers': 12,
  'experiments.status': 13,
  'experiments.stored': 13,
  'experiments.sweep': 13,
  'experiments.report': 14,
  'experiments.reproduce': 14,
  'experiments.studies.published': 10,
  'experiments.studies': 13,
  'experiments': 10,
}
# Floors whose parts do not know each other.
APART = (9, 11)
MODULES = [
  path
  for folder in ('siamrl', 'experiments')
  for path in sorted((ROOT / folder).rglob('*.py'))
  if path != ROOT / 'siamrl' / '__init__.py'
]


def _name(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(part for part in parts if part != '__init__')


def _floor(name: str) -> int:
  return next(
    floor
    for prefix, floor in FLOORS.items()
    if name == prefix or name.startswith(f'{prefix}.')
  )


def _imports(path: pathlib.Path) -> set[str]:
  """Modules that a file imports, inside functions too."""
  found: set[str] = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: imports are absolute'
      found |= {f'{node.module}.{alias.name}' for alias in node.names}
  return found


@pytest.mark.parametrize('path', MODULES, ids=_name)
def test_imports_go_down(path):
  name = _name(path)
  floor = _floor(name)
  for imported in _imports(path):
    if not imported.startswith(('siamrl', 'experiments')):
      continue
    below = _floor(imported)
    # Files on one floor may know each other inside a package.
    assert below <= floor, f'{name} imports {imported} from above'
    if below == floor in APART:
      beside = name.split('.')[1] != imported.split('.')[1]
      assert not beside, f'{name} imports {imported} beside it'
    if floor == 7:
      assert below in (0, 7), f'{name} may import types only, not {imported}'
    if name.startswith(('siamrl.replay', 'siamrl.envs')):
      assert below != 4, f'{name} must not know the learner: {imported}'


@pytest.mark.parametrize('path', MODULES, ids=_name)
def test_flags_are_read_by_launchers_only(path):
  if not _name(path).startswith('experiments'):
    assert not {i for i in _imports(path) if i.startswith('absl')}
