"""Reproduces a study: runs it, draws it, and judges its criteria.

  python -m experiments.reproduce --list
  python -m experiments.reproduce --study=twin_age_catch

The first command shows every study with its question, its source, what it costs
on a CPU, and its state. The second runs the cells of a study in --run_dir as
`python -m experiments.sweep` would; the same command goes on where it was
stopped. At the end it writes

  OUTPUT-curves.csv     a row for each run and value of the clock
  OUTPUT*.png, *.csv    the figures, as `python -m experiments.plot` draws them
  OUTPUT-table.png,csv  the scores of studies with several arms: the mean over
                        the last tenth of runs, and the IQM over all tasks in
                        units of a baseline, with 95 % intervals

and says of each criterion whether it is met, MISSED, or OPEN for want of
numbers. Criteria are written down before a study is run, in
experiments/studies; those of agents beside references were written after the
runs that ship, which is said.

  python -m experiments.reproduce --study=twin_age_catch \\
      --runs=experiments/results/twin_age_catch-curves.csv

runs nothing: it judges what there is, the folder of a launcher's sweep or a
results file, of which several are joined by commas. Runs of another task or
agent than the study's are refused; a note tells of other flags that differ,
such as the length of runs. With --output it draws it, too; several parts, and
the folder of a study, become one results file, OUTPUT-curves.csv.

A claim that A exceeds B is met if Welch's 95 % interval of the difference of
means over seeds lies above 0, within each task. If A and B are equal, with 3 to
10 normal seeds, such a claim is met in 1.9 to 2.3 % of cases (`python -m
experiments.calibrate`); if seeds are skewed or fail and A and B vary unequally,
in up to 20 %. If the best of several settings is compared, Bonferroni's
correction widens the interval. A claim that A is no worse is met unless such an
interval shows that it is; the interval tells how much worse it may be.

Exit codes: 0 if no criterion is missed, 3 if one is, 2 for invalid flags, 1 if
a run failed or for any other error, 130 after a second Ctrl-C.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import shlex
import textwrap
from typing import Any

from experiments import plot, sweep
from experiments.config import executing, reading
from experiments.config.declaring import (
  RunError,
  UsageError,
  group,
  one_of,
  option,
  path_option,
)
from experiments.config.paths import split_paths
from experiments.config.sweep_files import SweepFile
from experiments.engines.sweep_folders import State, SweepFolder
from experiments.studies import study as studies
from experiments.studies.claims import Claim
from experiments.studies.study import Study
from siamrl.report import standings
from siamrl.report.curves import RETURN_COLUMNS
from siamrl.report.drawing import can_draw
from siamrl.report.metrics import PLAYED, RUN_COLUMN
from siamrl.report.results import read_results
from siamrl.report.sweep import clock_of, words

_WIDTH = 80
_AFTERWARDS = 'criteria written after its runs'


@dataclasses.dataclass(frozen=True)
class ReproduceConfig(sweep.PoolOptions):
  """The options."""

  _study: Any = group('The study')
  list: bool = option(False, 'Show all studies, and do nothing else.')
  study: str | None = option(None, 'Study', one_of(studies.names()))
  runs: str | None = path_option(
    None,
    'Folders of sweeps and results files to judge, separated by commas; '
    'nothing is run.',
    several=True,
  )
  output: str | None = path_option(
    None,
    'Path of the files to write, without an ending; RUN_DIR/STUDY if not '
    'given. With --runs nothing is written if it is not given.',
  )
  run_dir: str | None = path_option(
    None, 'Folder of all runs; runs/STUDY if not given.'
  )
  flags: str = option(
    '',
    'Flags that each run gets after its own, such as "--platform=cpu"; what '
    'they change is another study.',
  )


def main(config: ReproduceConfig) -> int | None:
  """Lists, runs or judges; returns the exit code."""
  if config.list:
    for line in _listed():
      print(line)
    return None
  if config.study is None:
    raise UsageError('--study must be given, or --list')
  study = studies.read_study(config.study)
  if config.runs is not None:
    return _judge_runs(config, study)
  folder = SweepFolder(config.run_dir or f'runs/{study.name}')
  failed = sweep.run_cells(config, _file(config, study), folder)
  if failed is None:
    return None
  output = config.output or str(folder.path / study.name)
  curves = _write_curves(study, [folder.path], output)
  # Of a part of the study not everything can be drawn and judged.
  part = config.only is not None or bool(failed)
  _draw(study, curves, output, part=part)
  code = _say_verdicts(_judge(study, [curves], own=True, part=part))
  if failed:  # the others are drawn and judged
    raise sweep.failure(failed, folder)
  return code


def _file(config: ReproduceConfig, study: Study) -> SweepFile:
  """The sweep of a study, with further flags, which override its own."""
  more = shlex.split(config.flags)
  arms = {
    name: arm._replace(flags=(*arm.flags, *more))
    for name, arm in study.sweep.arms.items()
  }
  return study.sweep._replace(arms=arms)


def _listed() -> Sequence[str]:
  """A paragraph for each study."""
  lines = []
  for name in studies.names():
    study = studies.read_study(name)
    used = dict.fromkeys(arm.launcher for arm in study.sweep.arms.values())
    names = ', '.join(f'experiments.{launcher}' for launcher in used)
    facts = [names, study.cost, _state(study)]
    lines.append(f'{name}: {"; ".join(facts)}')
    text = study.question + (f' {study.source}.' if study.source else '')
    lines += textwrap.wrap(
      text,
      _WIDTH,
      initial_indent='  ',
      subsequent_indent='  ',
      break_on_hyphens=False,
    )
  return lines


def _state(study: Study) -> str:
  """Whether a study is published or has been run here, in words."""
  words = ['published' if studies.is_published(study.name) else 'not published']
  if study.criteria is None:
    words.append('no criteria')
  elif study.load_criteria().afterwards:
    words.append(_AFTERWARDS)
  folder = studies.sweep_folder(pathlib.Path('runs', study.name))
  if folder is not None:
    states = [folder.state(name) for name in folder.cells()]
    words.append(f'{states.count(State.DONE)} of {len(states)} cells done here')
  return ', '.join(words)


def _judge_runs(config: ReproduceConfig, study: Study) -> int | None:
  """Judges runs that are there, and draws them if there is an output."""
  assert config.runs is not None
  paths = [pathlib.Path(path) for path in split_paths(config.runs)]
  claims = _judge(study, paths)
  if config.output is not None:
    curves = paths[0]
    if len(paths) > 1 or studies.sweep_folder(curves) is not None:
      curves = _write_curves(study, paths, config.output)
    _draw(study, curves, config.output)
  return _say_verdicts(claims)


def _write_curves(
  study: Study, paths: Sequence[pathlib.Path], output: str
) -> pathlib.Path:
  """Writes a results file of all runs; returns its path."""
  curves = pathlib.Path(f'{output}-curves.csv')
  try:
    studies.write_curves(curves, study, paths)
  except (OSError, ValueError) as error:
    raise RunError(f'{curves} is not written: {error}') from error
  return curves


def _judge(
  study: Study,
  paths: Sequence[pathlib.Path],
  *,
  own: bool = False,
  part: bool = False,
) -> list[Claim]:
  """The claims of a study; says what rows lack, and how they differ.

  Args:
    study: the study.
    paths: folders of sweeps, and results files.
    own: whether the runs were started as this study.
    part: whether there may be too few of them to judge.
  """
  notes: list[str] = []
  names = ','.join(map(str, paths))
  try:
    claims = studies.judge(study, paths, notes, own=own)
  except FileNotFoundError as error:
    raise RunError(
      f'--runs={names} holds no metrics.csv, nor is it a results file'
    ) from error
  except (OSError, ValueError, KeyError) as error:
    if part:
      print(f'nothing is judged yet: {error}')
      return []
    raise RunError(
      f'--runs={names} is no sweep of --study={study.name}: '
      + '; '.join([str(error), *notes])
    ) from error
  if study.criteria is None:
    notes.append(f'--study={study.name} has no criteria: nothing is judged')
  elif study.load_criteria().afterwards:
    notes.append(_AFTERWARDS)
  for note in notes:
    print(note)
  return claims


def _say_verdicts(claims: Sequence[Claim]) -> int | None:
  """Prints verdicts; returns the exit code."""
  verdicts = {True: 'met', False: 'MISSED', None: 'OPEN'}
  for claim in claims:
    print(f'{verdicts[claim.met]}: {claim.text}: {claim.seen}')
  missed = any(claim.met is False for claim in claims)
  return executing.MISSED if missed else None


def _draw(
  study: Study, curves: pathlib.Path, output: str, *, part: bool = False
) -> None:
  """Draws the figures and the table of a study.

  Args:
    study: the study.
    curves: the results file.
    output: the path of what is written, without an ending.
    part: whether runs that a figure needs may be missing.
  """
  for ending, arguments in study.figures.items() if can_draw() else ():
    config = reading.from_arguments(
      plot.PlotConfig,
      *arguments,
      f'--runs={curves}',
      f'--output={output}{ending}',
      listed='runs',
    )
    try:
      plot.main(config)
    except UsageError as error:
      if not part:
        raise
      print(f'{output}{ending}.png is not drawn yet: {error}')
  if len(study.sweep.arms) > 1 and not study.arms_are_tasks:
    _write_table(study, curves, output)


def _write_table(study: Study, curves: pathlib.Path, output: str) -> None:
  """Writes and prints the scores of the settings, and draws them."""
  measure = study.columns[0]
  try:
    table, _ = read_results(curves)
    task = next(name for name in PLAYED if name in table)
    x = clock_of(table)
    names = list(table)
    found = standings.standings(
      table,
      x=x,
      y=measure,
      task=task,
      by=[n for n in names[: names.index(RUN_COLUMN)] if n != task],
      baseline=study.baseline,
    )
  except (OSError, ValueError, StopIteration) as error:
    raise RunError(
      f'{curves} holds no rows of --study={study.name}: {error}'
    ) from error
  unit = ', '.join(filter(None, study.baseline.values()))
  notes = [f'last tenth of the runs; {standings.ALL}: in units of {unit}'] * (
    unit != ''
  )
  try:
    standings.write_standings(
      f'{output}-table.csv', found, task=task, x=x, notes=notes
    )
    if can_draw():
      standings.plot_standings(
        f'{output}-table.png',
        found,
        measure=f'{RETURN_COLUMNS[measure]} return'
        if measure in RETURN_COLUMNS
        else words(measure),
        unit=f'the mean of {unit}',
        title=study.name,
      )
  except OSError as error:
    raise RunError(f'--output={output}: {error}') from error
  labels = standings.labels(found)
  for each in found:
    name = labels[tuple(each.point.values())]
    middle, low, high = each.iqm if each.task == standings.ALL else each.mean
    print(f'{name}: {each.task}: {middle:.4g} ({low:.4g} to {high:.4g})')


if __name__ == '__main__':
  executing.run(ReproduceConfig, __doc__, main)
