"""Functions, files and folders of a size that one can read; how docs begin."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = [
  path
  for folder in ('siamrl', 'experiments')
  for path in sorted((ROOT / folder).rglob('*.py'))
]
MOST_LINES_OF_A_FUNCTION = 120
MOST_LINES_OF_A_FILE = 700
LONG_FILES = 2
FLAT_FILES = 20


def _nodes(*kinds: type[ast.AST]):
  """The nodes of some kinds in all files, each with its place."""
  for path in SOURCES:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, kinds):
        line = getattr(node, 'lineno', 1)
        yield f'{path.relative_to(ROOT)}:{line}', node


def test_functions_are_short():
  long = [
    f'{place} {node.name} has {node.end_lineno - node.lineno + 1} lines'
    for place, node in _nodes(ast.FunctionDef, ast.AsyncFunctionDef)
    if node.end_lineno - node.lineno >= MOST_LINES_OF_A_FUNCTION
  ]
  assert not long, '\n'.join(long)


def test_files_are_short():
  lengths = {path: len(path.read_text().splitlines()) for path in SOURCES}
  long = [path for path in SOURCES if lengths[path] > MOST_LINES_OF_A_FILE]
  assert len(long) <= LONG_FILES, '\n'.join(map(str, long))


def test_launchers_and_tools_are_few():
  flat = list((ROOT / 'experiments').glob('*.py'))
  assert len(flat) <= FLAT_FILES, '\n'.join(map(str, sorted(flat)))


def test_docstrings_name_what_they_are_about():
  """A docstring that begins with 'What' asks, and names no noun."""
  asking = [
    place
    for place, node in _nodes(ast.Module, ast.ClassDef, ast.FunctionDef)
    if (ast.get_docstring(node) or '').startswith('What ')
  ]
  assert not asking, '\n'.join(asking)
