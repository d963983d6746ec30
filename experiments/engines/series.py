"""Runs one after the other, each in its own folder.

A command line may hold lists, and every combination of their values, times the
seeds, is a run. A single run has `--run_dir` itself. Each of several has a
subfolder, named after its values of the swept options, such as
`tau=0.1,seed=0`, which is like the folder of a single run.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import gc
import pathlib
import sys
from typing import Any, NamedTuple

import jax

from experiments.config.declaring import RunError, UsageError, refuse
from experiments.config.executing import say_error
from experiments.config.reading import Sweep, as_flags
from experiments.engines import devices, folders
from siamrl.report.run_folder import RunFolder, folder_name

_MOST_RUNS = 10_000


class Run(NamedTuple):
  """One run of a sweep.

  Attributes:
    config: its options, with a folder of its own and one seed.
    combination: the index of its options in the sweep, apart from the seed.
  """

  config: Any
  combination: int


def split(sweep: Sweep, names: Iterable[str]) -> list[Run]:
  """The runs of a sweep, in their order.

  Args:
    sweep: its records have `run_dir`, `seed`, `seeds` and `also`.
    names: the names of environments, for the default folder.

  Raises:
    UsageError: there are too many seeds, or there are several runs and the
      folder is that of one.
  """
  first = sweep.configs[0]
  seeds = range(first.seed, first.seed + first.seeds)
  if seeds.stop > 2**32:
    refuse(first, 'seeds', f'leave --seed + --seeds below {2**32}')
  number = len(sweep.configs) * first.seeds
  if number > _MOST_RUNS:
    raise UsageError(
      f'--seeds={first.seeds} times {len(sweep.configs)} combinations are '
      f'{number:,} runs, and must be at most {_MOST_RUNS:,}'
    )
  run_dir = first.run_dir or folders.default_folder(sweep, names)
  if number == 1:
    return [Run(dataclasses.replace(first, run_dir=run_dir), 0)]
  if first.run_dir is None and first.seeds > 1:
    run_dir += '-seeds'  # the folder without it is that of a run alone
  if RunFolder(run_dir).read_flags() is not None:
    raise UsageError(
      f'--run_dir={run_dir}: holds a run, and cannot hold the folders of '
      'several. Name another folder'
    )
  runs: dict[str, Run] = {}
  for index, config in enumerate(sweep.configs):
    given = as_flags(config)
    point = sweep.points[index]
    swept = {name: given[name] for name in point if point[name] is not None}
    for seed in seeds:
      name = folder_name(swept | {'seed': str(seed)})
      alone = dataclasses.replace(
        config,
        run_dir=str(pathlib.Path(run_dir, name)),
        seed=seed,
        seeds=1,
        also=None,
      )
      runs.setdefault(name, Run(alone, index))
  return list(runs.values())


def run(
  runs: Sequence[Run],
  train: Callable[[Run], bool],
  stop: devices.StopRequest,
) -> None:
  """Trains runs one after the other, or until asked to stop.

  Finished runs are skipped, and interrupted ones resume. If one fails, such as
  by diverging, the next begins.

  Args:
    runs: the runs of `split`.
    train: trains one in its folder; returns whether it is finished.
    stop: true once the user wants the runs to stop.

  Raises:
    RunError: a run has failed.
  """
  if len(runs) == 1:
    train(runs[0])
    return
  finished, failed = 0, []
  for number, each in enumerate(runs, 1):
    if stop:
      break
    name = pathlib.Path(each.config.run_dir).name
    print(f'run {number} of {len(runs)}: {name}', file=sys.stderr)
    try:
      finished += train(each)
    except RunError as error:
      say_error(error)
      failed.append(name)
    # The next one needs the memory of its replay and its programs.
    gc.collect()
    jax.clear_caches()
  where = pathlib.Path(runs[0].config.run_dir).parent
  text = f'{finished} of {len(runs)} runs are finished in {where}'
  if finished + len(failed) < len(runs):
    text += '; the same command, without --overwrite, goes on'
  print(text, file=sys.stderr)
  if failed:
    count = f'{len(failed)} {"runs" if len(failed) > 1 else "run"}'
    raise RunError(f'{count} failed: {"; ".join(failed)}')
