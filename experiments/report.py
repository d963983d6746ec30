"""Writes a page about runs: one HTML file that opens without a network.

  python -m experiments.report runs/periods --output=periods.html

The paths are folders of sweeps, of compiled sweeps and of single runs, folders
that hold such folders at most three levels down, and results files such as
OUTPUT-curves.csv. Runs may be going on; nothing is written to their folders.
The page has:

  - what was run: launchers, swept values, flags that differ from defaults
  - learning curves with a choice of column, task and clock: the mean over the
    runs of each setting, with 95 % t intervals
  - final results of each setting, with how far its rank differs between tasks
    if there are several, and the twin's panel if it was measured, as tables
    that can be sorted
  - the state of each cell, the last lines of those that failed, and the
    commands that run each cell again
  - versions, commit, machine and dates

It needs Jinja and vl-convert (pip install siamrl[report]); those who open the
page need a browser only.

Exit codes: 0 if the page is written, 2 for invalid flags, 1 for any other
error.
"""

import dataclasses
import pathlib
import sys
from typing import Any
import warnings

from experiments.config.declaring import (
  RunError,
  UsageError,
  option,
  path_option,
  refuse,
)
from experiments.config.executing import run
from experiments.config.paths import split_paths
from experiments.status import states_in_words
from experiments.stored import describing
from siamrl.report import lines, page
from siamrl.report.loading import load


@dataclasses.dataclass(frozen=True)
class ReportConfig:
  """The options."""

  runs: str | None = path_option(
    None,
    'Folders of sweeps and runs, folders of them, and results files, separated '
    'by commas; or after the flags, without a name, separated by spaces.',
    several=True,
  )
  output: str | None = path_option(
    None, 'File to write; .html is added if it is not there.'
  )
  column: str | None = option(
    None,
    'Column to show first; if not given, eval_return, train_return or the '
    'first one that there is.',
  )
  title: str | None = option(
    None, 'Title of the page; the names of the folders if not given.'
  )
  overwrite: bool = option(False, 'Replace a file that exists.')


def main(config: ReportConfig) -> None:
  """Writes the page that the options ask for."""
  for name in ('runs', 'output'):
    if getattr(config, name) is None:
      raise UsageError(f'--{name} must be given')
  output = _output(config)
  content, notes = _content(config)
  for note in notes:
    print(f'note: {note}', file=sys.stderr)
  try:
    size = page.write_page(output, content)
  except ImportError as error:
    raise RunError(str(error)) from error
  except OSError as error:
    raise RunError(f'--output={output}: {error}') from error
  print(f'{output}: {size / 1e6:.1f} MB')


def _output(config: ReportConfig) -> pathlib.Path:
  """The file to write, which does not exist or may be replaced."""
  path = pathlib.Path(str(config.output))
  if path.suffix != '.html':
    path = path.with_name(f'{path.name}.html')
  if not path.parent.is_dir():
    refuse(config, 'output', 'lie in a folder that exists')
  if path.exists() and not config.overwrite:
    raise UsageError(
      f'--output={path} must name a new file: it exists, and --overwrite '
      'replaces it'
    )
  return path


def _content(config: ReportConfig) -> tuple[dict[str, Any], list[str]]:
  """The parts of the page, and notes about folders."""
  paths = split_paths(str(config.runs))
  found = {}
  for path in paths:
    if not pathlib.Path(path).exists():
      raise UsageError(f'--runs={path} must be a folder or a results file')
    found[path] = list(describing.homes(pathlib.Path(path)))
  homes = [home for part in found.values() for home in part]
  # Cells that all failed have no rows, but states.
  whole = [
    p for p in paths if not found[p] or any(map(describing.has_rows, found[p]))
  ]
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    try:
      data = _data(config, whole) if whole else None
    except ValueError as error:
      raise RunError(f'--runs={error}') from error
  states = describing.states(homes)
  notes = list(dict.fromkeys(str(warning.message) for warning in caught))
  number = sum(line['runs'] for line in data['lines']) if data else 0
  runs = [run for home in homes for run in home.runs]
  return {
    'title': config.title or ', '.join(pathlib.Path(p).name for p in paths),
    'summary': _summary(number, data),
    'notes': notes,
    'parts': [describing.describe(path, found[path]) for path in paths],
    'data': data,
    'dropped': data is not None and len(data['points'][0]) > 1,
    'states': states,
    'state_summary': states_in_words(states),
    'commands': describing.commands(homes),
    'versions': describing.versions(runs),
  }, notes


def _data(config: ReportConfig, paths: list[str]) -> dict[str, Any]:
  """The lines of all runs."""
  frame = load(paths, frame='numpy', flags=lines.TASKS)
  names = lines.measured(frame)
  if config.column is not None and config.column not in names:
    refuse(config, 'column', f'be one of {", ".join(names)}')
  return lines.make_lines(frame, config.column)


def _summary(number: int, data: dict[str, Any] | None) -> str:
  """The numbers of runs, settings and tasks in words."""
  if data is None:
    return 'No run has rows yet.'
  counts = {
    'run': number,
    'setting': len(data['settings']),
    'task': len(data['tasks']),
  }
  return ', '.join(
    f'{n:,} {noun}{"s" if n != 1 else ""}' for noun, n in counts.items()
  )


if __name__ == '__main__':
  run(ReportConfig, __doc__, main, listed='runs')
