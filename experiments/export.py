"""Writes runs in the formats of other tools.

  python -m experiments.export --runs=runs/a,runs/b --format=csv --output=a.csv

--runs names folders and results files: the folder of a run or of a sweep, a
results file such as OUTPUT-curves.csv, or a folder that holds such folders.
Runs may be going on; nothing is written to their folders. Formats:

  csv          a long table with a row for each measured number, under the
               columns exp_name, env_name, seed, metric, env_step and value
  marl_eval    JSON for marl-eval: environment, task, algorithm, run, step_N.
               Its absolute_metrics are the mean over the last tenth of a run
  parquet      a row for each run and iteration, with what varies over the runs
               as columns, as siamrl.report.load has it
  safetensors  the online and target networks of one run, from its newest whole
               checkpoint, with a model card in Markdown beside the file

Of a sweep, whose runs share a folder, --run chooses the one whose networks are
written: by its number, or by its values and seed:

  python -m experiments.export --runs=runs/catch-periods \\
      --run=target_period=10,seed=2 --format=safetensors --output=catch

Exit codes: 0 if all files are written, 2 for invalid flags, 1 for any other
error.
"""

from collections.abc import Sequence
import csv
import dataclasses
import io
import json
import pathlib
import sys
import warnings

from experiments.config.declaring import (
  RunError,
  UsageError,
  one_of,
  option,
  path_option,
  refuse,
)
from experiments.config.executing import run
from experiments.config.paths import split_paths
from experiments.stored import cards, finding, formats, weights
from siamrl.report.loading import load
from siamrl.report.metrics import Table
from siamrl.report.run_folder import write_atomically

# The ending of each format's file.
ENDINGS = {
  'csv': '.csv',
  'marl_eval': '.json',
  'parquet': '.parquet',
  'safetensors': '.safetensors',
}


@dataclasses.dataclass(frozen=True)
class ExportConfig:
  """The options."""

  runs: str | None = path_option(
    None,
    'Run folders, folders of them and results files, separated by commas; or '
    'after the flags, without a name, separated by spaces.',
    several=True,
  )
  format: str = option('csv', 'Format of the file', one_of(ENDINGS))
  output: str | None = path_option(
    None, "File to write; the format's ending is added if it is not there."
  )
  run: str | None = option(
    None,
    'Run of a sweep, for --format=safetensors: its number from 0, or its '
    'values and seed, such as tau=0.1,seed=2.',
  )
  column: str | None = option(
    None,
    'Column to write, for --format=marl_eval; if not given, eval_return, or '
    'train_return where not all runs have that.',
  )
  overwrite: bool = option(False, 'Replace files that exist.')


def main(config: ExportConfig) -> None:
  """Writes the files that the options ask for."""
  for name in ('runs', 'output'):
    if getattr(config, name) is None:
      raise UsageError(f'--{name} must be given')
  for name, only in (('run', 'safetensors'), ('column', 'marl_eval')):
    if getattr(config, name) is not None and config.format != only:
      refuse(config, name, f'not be given with --format={config.format}')
  output = _output(config)
  try:
    if config.format == 'safetensors':
      _write_weights(config, output)
    else:
      _write_rows(config, output)
  except ImportError as error:
    raise RunError(f'--format={config.format}: {error}') from error
  except OSError as error:
    raise RunError(f'--output={output}: {error}') from error


def _output(config: ExportConfig) -> pathlib.Path:
  """The file to write, which does not exist or may be replaced."""
  ending, output = ENDINGS[config.format], str(config.output)
  path = pathlib.Path(output if output.endswith(ending) else output + ending)
  if not path.parent.is_dir():
    refuse(config, 'output', 'lie in a folder that exists')
  written = [path]
  if config.format == 'safetensors':
    written.append(path.with_suffix('.md'))
  for each in written:
    if each.exists() and not config.overwrite:
      raise UsageError(
        f'--output={output} must name a new file: {each} exists, and '
        '--overwrite replaces it'
      )
  return path


def _load(config: ExportConfig, flags: Sequence[str]) -> Table:
  """The rows of all runs; warnings become notes."""
  assert config.runs is not None
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    try:
      frame = load(split_paths(config.runs), frame='numpy', flags=flags)
    except FileNotFoundError as error:
      raise UsageError(f'--runs={error}') from error
    except ValueError as error:
      raise RunError(f'--runs={error}') from error
  for text in dict.fromkeys(str(warning.message) for warning in caught):
    print(f'note: {text}', file=sys.stderr)
  return formats.missing(flags, frame)


def _write_rows(config: ExportConfig, output: pathlib.Path) -> None:
  """Writes the rows of all runs."""
  kinds = tuple(formats.KINDS) if config.format == 'marl_eval' else ()
  frame = _load(config, (*formats.NAMES, *kinds))
  notes: list[str] = []
  if config.format == 'parquet':
    content = formats.parquet(frame)
  elif config.format == 'marl_eval':
    data, notes = formats.marl_eval(frame, config.column)
    content = json.dumps(data, indent=1, allow_nan=False).encode()
  else:
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(
      [formats.HEADER, *formats.long_rows(frame)]
    )
    content = text.getvalue().encode()
  for note in notes:
    print(f'note: {note}', file=sys.stderr)
  write_atomically(output, content)
  print(output)


def _write_weights(config: ExportConfig, output: pathlib.Path) -> None:
  """Writes the networks of one run, and their card."""
  assert config.runs is not None
  if len(split_paths(config.runs)) > 1:
    refuse(config, 'runs', 'be one folder for --format=safetensors')
  stored = finding.find_run(config.runs, config.run)
  networks = weights.read_weights(stored)
  content = cards.safetensors(stored, networks)
  text = cards.card(stored, networks, output.name)
  write_atomically(output, content)
  write_atomically(output.with_suffix('.md'), text.encode())
  print(output)
  print(output.with_suffix('.md'))


if __name__ == '__main__':
  run(ExportConfig, __doc__, main, listed='runs')
