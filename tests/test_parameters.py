"""Errors about arguments, which say as data what they are about."""

import ast
import pathlib
import pickle
import re

import pytest

from siamrl import parameters, twins
from siamrl.parameters import FieldError

SOURCES = pathlib.Path(parameters.__file__).parent
NAMED = FieldError(
  'tau', 0.5, 'has no meaning for', ('target_update', 'hard'), ', which is all'
)


@pytest.mark.parametrize(
  'error, text',
  [
    (FieldError('tau', 2, 'must be in (0, 1]'), 'tau=2 must be in (0, 1]'),
    (FieldError('agent', 'x', 'is unknown'), "agent='x' is unknown"),
    (FieldError('stack', 0, ': must be 1'), 'stack=0: must be 1'),
    (
      NAMED,
      "tau=0.5 has no meaning for target_update='hard', which is all",
    ),
  ],
)
def test_what_an_error_says(error, text):
  assert str(error) == text


def test_an_error_can_be_written_otherwise():
  assert NAMED.written(lambda name, value: f'--{name} {value}') == (
    '--tau 0.5 has no meaning for --target_update hard, which is all'
  )


def test_an_error_comes_out_of_a_process_as_it_was():
  copy = pickle.loads(pickle.dumps(NAMED))
  assert (copy.field, copy.value) == ('tau', 0.5)
  assert str(copy) == str(NAMED)


@pytest.mark.parametrize(
  'name, given, field, value',
  [
    ('soft', dict(tau=2.0), 'tau', 2.0),
    ('soft', dict(), 'target_update', 'soft'),
    ('hard', dict(tau=0.5), 'tau', 0.5),
    ('hadr', dict(), 'target_update', 'hadr'),
  ],
)
def test_errors_of_rules_name_the_argument(name, given, field, value):
  with pytest.raises(FieldError) as caught:
    twins.make_rule(name, **given)
  assert (caught.value.field, caught.value.value) == (field, value)


def _text(node: ast.expr) -> str:
  """A text, or how one begins; whatever is put into it is written as x."""
  if isinstance(node, ast.Constant):
    return str(node.value)
  if isinstance(node, ast.JoinedStr):
    return ''.join(map(_text, node.values))
  if isinstance(node, ast.BinOp):
    return _text(node.left)
  return 'x'


# No launcher calls the conformance kit, which imports nothing of siamrl.
ALONE = SOURCES / 'conformance'


@pytest.mark.parametrize(
  'path',
  [path for path in sorted(SOURCES.rglob('*.py')) if path.parent != ALONE],
  ids=lambda path: str(path.relative_to(SOURCES)),
)
def test_errors_that_begin_with_an_argument_say_so_as_data(path):
  """A launcher finds the flag that an error is about in its data alone."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Call) and ast.unparse(node.func) == 'ValueError':
      text = _text(node.args[0]) if node.args else ''
      assert not re.match(r'(--)?\w+=', text), f'{path}:{node.lineno}: {text}'
