"""The weights of a run as a file of safetensors, with a model card."""

from collections.abc import Mapping
import json
import pathlib
import shlex
from typing import Any

import numpy as np

from experiments.config.declaring import as_text, value_of
from experiments.stored.finding import StoredRun
from experiments.stored.weights import Weights, read_rows
from siamrl.optional import import_optional
from siamrl.report.metrics import Table
from siamrl.report.run_folder import read_file

_NEEDS = 'weights need safetensors'
# Returns that a card shows are means over as many rows.
_ROWS = 10
# Options of the twin that a card shows where the run has them.
_OF_TWIN = ('target_update', 'target_period', 'tau', 'target_paths')
_LIBRARIES = ('siamrl', 'python', 'jax', 'flax', 'optax', 'numpy')


def safetensors(run: StoredRun, weights: Weights) -> bytes:
  """The arrays of the networks as a file of safetensors.

  Raises:
    ImportError: safetensors is not installed, or cannot be imported.
  """
  library = import_optional('safetensors.numpy', _NEEDS, 'export')
  about = {
    name: text
    for name, text in describe(run, weights).items()
    if name != 'twin'
  }
  arrays = {
    name: np.ascontiguousarray(array) for name, array in weights.arrays.items()
  }
  return library.save(arrays, metadata=about)


def describe(run: StoredRun, weights: Weights) -> dict[str, str]:
  """Describes a run: words by name."""
  config = run.config
  task = next(
    getattr(config, name)
    for name in ('game', 'environment', 'images')
    if hasattr(config, name)
  )
  twin = [
    f'--{name}={as_text(value_of(config, name))}'
    for name in _OF_TWIN
    if getattr(config, name, None) is not None
  ]
  return {
    'agent': config.agent,
    'environment': f'{task} ({run.launcher})',
    'twin': ' '.join(twin),
    'target_update': config.target_update,
    'seed': str(run.seed),
    'gradient_steps': str(weights.gradient_steps),
  }


def card(run: StoredRun, weights: Weights, file: str) -> str:
  """The model card of exported weights, Markdown.

  Args:
    run: the run.
    weights: its networks.
    file: the name of the file of weights beside the card.
  """
  about = describe(run, weights)
  table = _until(read_rows(run), weights.gradient_steps)
  lines = [
    f'# {about["agent"]} on {about["environment"]}',
    '',
    'Weights of one training run of siamrl: the online network and its twin, '
    'the target network.',
    '',
    '| | |',
    '|---|---|',
    f'| agent | {about["agent"]} |',
    f'| environment | {about["environment"]} |',
    f'| rule of the twin | `{about["twin"]}` |',
    f'| run | {run.words} |',
    *_steps(table, weights),
    *_returns(table),
    *_versions(run),
    '',
    'The command that trained it; of a sweep this is one of the runs:',
    '',
    '```bash',
    _command(run),
    '```',
    '',
    'To load the online network as nested dicts of arrays (for the twin, '
    '`target_params`):',
    '',
    '```python',
    'from flax.traverse_util import unflatten_dict',
    'from safetensors.numpy import load_file',
    '',
    f"tree = unflatten_dict(load_file({file!r}), sep='.')",
    "params = tree['online_params']",
    '```',
  ]
  return '\n'.join(lines) + '\n'


def _until(table: Table, gradient_steps: int) -> Table:
  """The rows that were written before the checkpoint."""
  if 'gradient_steps' not in table:
    return table
  rows = table['gradient_steps'] <= gradient_steps
  return {name: column[rows] for name, column in table.items()}


def _steps(table: Table, weights: Weights) -> list[str]:
  """Lines with the clocks at the checkpoint."""
  lines = [
    f'| {name.replace("_", " ")} | {int(table[name][-1]):,} |'
    for name in ('frames', 'env_steps')
    if name in table and len(table[name])
  ]
  return [*lines, f'| gradient steps | {weights.gradient_steps:,} |']


def _returns(table: Table) -> list[str]:
  """Lines with the last returns."""
  lines = []
  for column, words in (
    ('train_return', 'training return'),
    ('eval_return', 'evaluation return'),
  ):
    values = table.get(column, np.zeros(0))
    values = values[np.isfinite(values)][-_ROWS:]
    if len(values):
      lines.append(
        f'| {words} | {values[-1]:.6g} in the last row, {values.mean():.6g} '
        f'on average over the last {len(values)} |'
      )
  return lines


def _versions(run: StoredRun) -> list[str]:
  """A line with the versions of the newest start."""
  try:
    newest: Mapping[str, Any] = json.loads(read_file(run.folder.versions))[-1]
    found = [f'{n} {newest[n]}' for n in _LIBRARIES if n in newest]
    return [f'| versions | {", ".join(found)}, on {newest["device"]} |']
  except (OSError, ValueError, LookupError, TypeError):
    return []


def _command(run: StoredRun) -> str:
  """The command that trains the run again, elsewhere."""
  flags = pathlib.Path(run.folder.flags)
  return (
    f'python -m experiments.{run.launcher} '
    f'--flagfile={shlex.quote(str(flags))} --run_dir=ELSEWHERE'
  )
