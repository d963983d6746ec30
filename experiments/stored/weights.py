"""The networks of a run, from its newest whole checkpoint."""

from collections.abc import Mapping
import sys
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.config.declaring import RunError
from experiments.engines.compiled import cells
from experiments.stored.finding import StoredRun
from siamrl.learner import Learner
from siamrl.report.checkpoint import CheckpointError, Checkpoints
from siamrl.report.metrics import RUN_COLUMN, Table
from siamrl.report.salvage import read_whole_rows
from siamrl.types import TrainState

# The parts of a learner's state that make its networks.
PARTS = ('online_params', 'target_params', 'gradient_steps')


class Weights(NamedTuple):
  """The networks of one run at its newest checkpoint.

  Attributes:
    arrays: NumPy arrays by name, such as 'online_params.params.Dense_0.bias'.
    facts: the facts beside the checkpoint.
    gradient_steps: the gradient steps until then.
  """

  arrays: dict[str, np.ndarray]
  facts: Mapping[str, Any]
  gradient_steps: int


def read_weights(run: StoredRun) -> Weights:
  """Reads the online and target networks; notes what is damaged.

  Raises:
    RunError: there is no checkpoint, or none that is whole.
  """
  try:
    found = Checkpoints(run.checkpoints).read_part(_choose)
  except (CheckpointError, LookupError) as error:
    raise RunError(f'{run.folder.path}: {error}') from error
  if found is None:
    raise RunError(f'{run.folder.path}: has no checkpoint yet')
  part, facts, _, notes = found
  for note in notes:
    print(f'note: {note}; the checkpoint before it is used', file=sys.stderr)
  arrays = named(_train_of(part))
  if run.place is not None:
    arrays = {name: array[run.place] for name, array in arrays.items()}
  steps = int(arrays.pop('gradient_steps'))
  return Weights(arrays, facts, steps)


def _train_of(tree: Any) -> Any:
  """The learner's state in the tree of a checkpoint.

  Compiled runs save it within the state of their loop. Runs of the host loop
  save it alone, or before the state of the panel.
  """
  if not isinstance(tree, Mapping):
    return tree[0]
  return tree.get('train', tree)


def _choose(tree: Any) -> Any:
  """The part of a checkpoint that makes the networks."""
  train = {name: _train_of(tree)[name] for name in PARTS}
  if not isinstance(tree, Mapping):
    return type(tree)([train, *tree[1:]])
  return {'train': train} if 'train' in tree else train


def named(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by their names, such as 'params.Dense_0.bias'."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf
    for path, leaf in leaves
  }


def as_state(run: StoredRun, weights: Weights, learner: Learner) -> TrainState:
  """The state of a learner, as far as acting needs it.

  Raises:
    RunError: the learner has other networks, as in another version.
  """
  shapes = jax.eval_shape(learner.init, jax.random.key(0))
  parts = {}
  for part in ('online_params', 'target_params'):
    wanted = getattr(shapes, part)
    found = []
    for name, leaf in named(wanted).items():
      array = weights.arrays.get(f'{part}.{name}' if name else part)
      if array is None or array.shape != leaf.shape:
        raise RunError(
          f'{run.checkpoints}: {part}.{name} is not as this version has it; '
          'another version of siamrl wrote this checkpoint'
        )
      found.append(jax.numpy.asarray(array, leaf.dtype))
    parts[part] = jax.tree.unflatten(jax.tree.structure(wanted), found)
  return TrainState(
    **parts,
    opt_state=(),
    gradient_steps=jax.numpy.int32(weights.gradient_steps),
    key=jax.random.key(0),
  )


def read_rows(run: StoredRun) -> Table:
  """The rows of a run, also among those of a sweep; {} if there are none."""
  files = [run.folder.metrics]
  if not files[0].exists():
    files = sorted(run.folder.shards.glob(f'*/{files[0].name}'))
  for file in files:
    try:
      table, _ = read_whole_rows(file)
    except (OSError, ValueError) as error:
      raise RunError(f'{file}: {error}') from error
    of_run = np.ones(len(next(iter(table.values()), ())), bool)
    if RUN_COLUMN in table:
      of_run &= table[RUN_COLUMN] == run.seed
    for name, value in cells(run.point).items():
      of_run &= _is(table[name], value)
    if of_run.any():
      return {name: column[of_run] for name, column in table.items()}
  return {}


def _is(column: np.ndarray, value: Any) -> np.ndarray:
  """bool [R], whether cells hold a value; None is an empty cell."""
  if column.dtype.kind == 'U':
    return column == ('' if value is None else value)
  return np.isnan(column) if value is None else column == value
