"""Runs the arms of a study, each in a process of its own, and compares them.

  python -m experiments.table --study=minatar_table --run_dir=runs/minatar_table

An arm is a command line of a launcher, which experiments/studies/NAME.toml
names. Its results are kept in RUN_DIR/ARM, and RUN_DIR/ARM.log has what it
prints. Arms that are finished are skipped, and others begin or resume. If one
fails, its last lines are shown, and the next begins. Ctrl-C or SIGTERM saves
and stops; the same command goes on.

--jobs=2 runs two arms at a time, each on half of the processor cores. An arm
should be resumed with as many cores as before, or its numbers may differ.

At the end, or at once with --only_report, this writes:

  OUTPUT-curves.csv  a row for each run and value of the clock
  OUTPUT-table.csv   the score of each setting in each task: the mean over the
                     last tenth of its runs, and the IQM, with 95 % intervals
  OUTPUT-table.png   the same as a figure

Over all tasks, a score is divided by the mean of a baseline in the same task,
such as DQN's. With --only_report, --run_dir may be OUTPUT-curves.csv, of which
`python -m experiments.plot` draws learning curves.

Studies:
  minatar_table: eleven agents of values on MinAtar.
  twin_distributions: five twins of DQN, C51 and QR-DQN on MinAtar.
  cleanrl_classic: C51 and PQN on CartPole and Acrobot, as in CleanRL.
  lunar_lander: DQN and QR-DQN on LunarLander, as in RL Baselines3 Zoo.

Exit codes: 0 if all arms finished or were stopped, 2 for invalid flags, 1 for
any other error, 130 after a second Ctrl-C.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import os
import pathlib
import shlex
import subprocess
import sys
import time
from typing import IO, NamedTuple

from experiments.config import flag_files
from experiments.config.declaring import (
  POSITIVE,
  RunError,
  UsageError,
  one_of,
  option,
  path_option,
  refuse,
)
from experiments.config.executing import run
from experiments.engines import devices
from experiments.studies import arms
from siamrl.report import standings
from siamrl.report.curves import RETURN_COLUMNS
from siamrl.report.drawing import can_draw
from siamrl.report.metrics import RUN_COLUMN
from siamrl.report.results import read_results
from siamrl.report.run_folder import write_atomically
from siamrl.report.sweep import clock_of

_POLL_S = 0.2
_LAST_LINES = 5


@dataclasses.dataclass(frozen=True)
class TableConfig:
  """The options."""

  study: str = option('minatar_table', 'Study to run', one_of(arms.names()))
  run_dir: str = path_option('', 'Folder of all results.')
  arms: str | None = option(
    None, 'Arms to run, separated by commas; all if not given.'
  )
  jobs: int = option(
    1, 'Arms that run at a time, each on its share of the cores.', POSITIVE
  )
  flags: str = option(
    '', 'Flags that each arm gets besides its own, such as "--platform=cpu".'
  )
  only_report: bool = option(
    False, 'Write the report of what there is, and run nothing.'
  )
  output: str | None = path_option(
    None,
    'Path of the files of the report, without an ending; RUN_DIR/STUDY if not '
    'given.',
  )


class Process(NamedTuple):
  """An arm that runs.

  Attributes:
    process: the launcher.
    log: what it prints.
    slot: the index of its share of the cores.
    began: when it began, by the monotonic clock.
  """

  process: subprocess.Popen
  log: IO[bytes]
  slot: int
  began: float


def main(config: TableConfig) -> None:
  """Runs the arms and reports."""
  if not config.run_dir:
    raise UsageError('--run_dir must be given')
  study = arms.read_study(config.study)
  run_dir = pathlib.Path(config.run_dir)
  if config.only_report:
    _report(config, study, run_dir)
    return
  chosen = list(study.arms) if config.arms is None else config.arms.split(',')
  for arm in chosen:
    if arm not in study.arms:
      refuse(config, 'arms', f'be of {", ".join(study.arms)}')
  if config.jobs > devices.cores():
    refuse(config, 'jobs', f'be at most {devices.cores()}, the cores here')
  try:
    run_dir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise RunError(f'--run_dir={run_dir}: {error.strerror}') from error
  commands = {
    arm: [*study.arms[arm], *shlex.split(config.flags)] for arm in chosen
  }
  with devices.StopRequest() as stop:
    failed = _run(f'experiments.{study.launcher}', commands, config, stop)
    if stop:
      print('stopped; the same command goes on', file=sys.stderr)
      return
  _report(config, study, run_dir)
  if failed:
    raise RunError(f'{len(failed)} of {len(chosen)} arms failed: {failed}')


def _run(
  launcher: str,
  commands: dict[str, list[str]],
  config: TableConfig,
  stop: devices.StopRequest,
) -> list[str]:
  """Runs arms, some at a time; returns those that failed."""
  run_dir = pathlib.Path(config.run_dir)
  waiting, failed = [], []
  for arm, arguments in commands.items():
    if _is_done(run_dir, arm, arguments):
      print(f'{arm}: finished before')
    else:
      waiting.append(arm)
  running: dict[str, Process] = {}
  told = False
  try:
    while running or (waiting and not stop):
      while waiting and len(running) < config.jobs and not stop:
        arm = waiting.pop(0)
        taken = {each.slot for each in running.values()}
        slot = min(set(range(config.jobs)) - taken)
        command = [sys.executable, '-m', launcher, *commands[arm]]
        command.append(f'--run_dir={run_dir / arm}')
        running[arm] = _start(command, run_dir / f'{arm}.log', slot, config)
        print(f'{arm}: runs', flush=True)
      if stop and not told:
        told = True
        _tell(running)
      time.sleep(_POLL_S)
      for arm, each in list(running.items()):
        code = each.process.poll()
        if code is None:
          continue
        del running[arm]
        each.log.close()
        if not _ended(run_dir, arm, commands[arm], each, code, bool(stop)):
          failed.append(arm)
  finally:
    _tell(running)
    for each in running.values():
      each.process.wait()
      each.log.close()
  return failed


def _start(
  command: Sequence[str], log: pathlib.Path, slot: int, config: TableConfig
) -> Process:
  """Starts a launcher on its share of the cores.

  It has a session of its own, so that Ctrl-C reaches it through this process
  alone: twice would interrupt it before it has saved.
  """
  file = log.open('ab')
  with _on_share(slot, config.jobs):
    process = subprocess.Popen(
      command,
      stdin=subprocess.DEVNULL,
      stdout=file,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
  return Process(process, file, slot, time.monotonic())


@contextlib.contextmanager
def _on_share(slot: int, jobs: int):
  """Holds this thread, and what it starts, to a share of the cores.

  On macOS, which has no such call, arms share all cores.
  """
  if not hasattr(os, 'sched_setaffinity'):
    yield
    return
  cores = sorted(os.sched_getaffinity(0))
  bounds = [number * len(cores) // jobs for number in (slot, slot + 1)]
  os.sched_setaffinity(0, cores[slice(*bounds)])
  try:
    yield
  finally:
    os.sched_setaffinity(0, cores)


def _tell(running: dict[str, Process]) -> None:
  """Asks launchers to save and stop."""
  for each in running.values():
    each.process.terminate()


def _ended(
  run_dir: pathlib.Path,
  arm: str,
  arguments: Sequence[str],
  each: Process,
  code: int,
  stopped: bool,
) -> bool:
  """Notes how an arm ended; returns False if it failed."""
  minutes = (time.monotonic() - each.began) / 60
  if code == 0 and not stopped and arms.is_finished(run_dir / arm):
    write_atomically(
      run_dir / f'{arm}.done', _command(arguments).encode('utf-8')
    )
    print(f'{arm}: finished after {minutes:.1f} minutes', flush=True)
    return True
  if stopped and code >= 0:
    return True
  print(f'{arm}: failed after {minutes:.1f} minutes, exit code {code}')
  log = run_dir / f'{arm}.log'
  lines = log.read_text(encoding='utf-8', errors='replace').splitlines()
  for line in lines[-_LAST_LINES:]:
    print(f'  {line}')
  sys.stdout.flush()
  return False


def _command(arguments: Sequence[str]) -> str:
  """The arguments of an arm, with flag files replaced by what they say."""
  return '\n'.join(flag_files.expand(arguments)) + '\n'


def _is_done(run_dir: pathlib.Path, arm: str, arguments: Sequence[str]) -> bool:
  """Whether an arm has finished with these very arguments."""
  try:
    text = (run_dir / f'{arm}.done').read_text(encoding='utf-8')
  except OSError:
    return False
  return text == _command(arguments) and arms.is_finished(run_dir / arm)


def _report(
  config: TableConfig, study: arms.Study, run_dir: pathlib.Path
) -> None:
  """Writes the curves, the table and the figure, and prints the table."""
  curves = run_dir
  try:
    if run_dir.is_dir():
      output = config.output or str(run_dir / config.study)
      curves = pathlib.Path(f'{output}-curves.csv')
      missing = arms.write_curves(curves, study, run_dir)
      for arm in missing:
        print(f'note: {arm} has no rows yet')
    else:
      output = config.output or str(run_dir).removesuffix('-curves.csv')
    table, _ = read_results(curves)
    task = next(name for name in arms.TASK_COLUMNS if name in table)
    x = clock_of(table)
    names = list(table)
    found = standings.standings(
      table,
      x=x,
      y=study.measure,
      task=task,
      by=[n for n in names[: names.index(RUN_COLUMN)] if n != task],
      baseline=study.baseline,
    )
  except (OSError, ValueError, StopIteration) as error:
    raise RunError(
      f'--run_dir={run_dir} holds no rows of --study={config.study}: {error}'
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
        measure=f'{RETURN_COLUMNS[study.measure]} return',
        unit=f'the mean of {unit}',
        title=config.study,
      )
  except OSError as error:
    raise RunError(f'--output={output}: {error}') from error
  names_ = standings.labels(found)
  for each in found:
    name = names_[tuple(each.point.values())]
    middle, low, high = each.iqm if each.task == standings.ALL else each.mean
    print(f'{name}: {each.task}: {middle:.4g} ({low:.4g} to {high:.4g})')


if __name__ == '__main__':
  run(TableConfig, __doc__, main)
