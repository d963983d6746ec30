"""Figures of finished or running runs, of sweeps and of the twin's panel.

  python -m experiments.plot --runs=runs/pong-dqn-0,runs/pong-dqn-1 \\
      --reference=experiments/results/published/dopamine_dqn.csv \\
      --output=pong

writes OUTPUT.png, the mean training return over the runs with a band of one
standard deviation, and OUTPUT.csv with a column for each folder. Runs that
differ only in the seed, or in where they ran, are seeds of one configuration;
each other configuration has a line of its own. Returns of a game are averaged
over bins of a million frames (--bin_frames). All runs are of one game,
environment or data set. Robots need --column=eval_return; runs on data sets
take any column.

  python -m experiments.plot --runs=runs/cartpole-ablation --output=ablation

The folder of a sweep holds many runs: its metrics.csv has a column `seed`. For
--column this writes:

  OUTPUT.png         a curve for each setting: the mean over seeds, with a band
                     of 95 % t intervals
  OUTPUT-final.png   the result of each setting: the mean over the last tenth of
                     a run, or of the time that all runs have reached
  OUTPUT.csv         these numbers, and the mean heights of curves (areas); with
                     several games or environments, how far the rank of each
                     setting differs between them (rank_spread), from 0 to 1
  OUTPUT-curves.csv  a row for each run and value of the clock, below the flags

A setting with a rate tau is drawn at the period 2 / tau - 1, at which copies
are as old on average. With more than eight settings, those that differ in
--facet have axes of their own; --color names the option that color shows.

  python -m experiments.plot --panel=twin runs/cartpole-ablation

draws the panel of runs that were trained with --panel_period: age, distance,
drift and so on, a small picture each, with a line for each setting or run; a
single run has a line for each layer, too. OUTPUT is RUN/curve-panel if it is
not given.

  python -m experiments.plot --runs=experiments/results/twin_rate-curves.csv \\
      --output=twin_rate

redraws a results file, which is a table such as OUTPUT-curves.csv, of a sweep
or of one run, or a table of the lab. experiments/results/README.md has the
command for each.

  python -m experiments.plot --runs=runs/dqn,runs/c51 --kind=aggregates \\
      --output=agents

compares any folders and files in one figure, OUTPUT-KIND.png. All kinds but the
first two write their numbers into OUTPUT-KIND.csv:

  curves       a line for each setting; a figure for each task (OUTPUT.png)
  final        its results: the mean over the last tenth of the runs
  heatmap      these of two swept options, as a grid for each task; over all
               tasks their interquartile mean with --normalize, and how likely
               they exceed the setting of --baseline
  aggregates   median, interquartile mean, mean and optimality gap over tasks,
               and rank_spread; prints its mean over settings, the THC score
  profiles     the fraction of runs that score above each threshold
  improvement  how likely a run of one setting exceeds one of another, or
               of the one of --baseline
  differences  how far each setting lies above the first one, or the one of
               --baseline before it; a pane for each task, in its own unit
  efficiency   the interquartile mean over steps, and over wall time where it
               was measured (OUTPUT-efficiency-time.png)

Runs of unequal length count as far as all have come, and runs with unequal rows
are interpolated; the figure says so, and where protocols differ. --vector=pdf
writes a PDF file beside each PNG file. The files that were written are printed.
"""

import dataclasses
import pathlib

from experiments.config import meaning
from experiments.config.declaring import (
  POSITIVE,
  RunError,
  UsageError,
  given,
  one_of,
  option,
  path_option,
)
from experiments.config.executing import run
from experiments.figures import kinds, runs as run_figures, sources, sweeps
from experiments.figures.sources import Source
from siamrl.report import drawing, lab as lab_figures
from siamrl.report.metrics import CLOCKS
from siamrl.report.run_folder import RunFolder, noting_files


@dataclasses.dataclass(frozen=True)
class PlotConfig:
  """The options."""

  runs: str | None = path_option(
    None,
    'Folders of runs or sweeps, and results files, separated by commas; or '
    'after the flags, without a name, separated by spaces.',
    several=True,
  )
  output: str | None = path_option(
    None, 'Path of the files to write, without an ending.'
  )
  panel: str | None = option(
    None,
    'Panel to draw instead of returns',
    one_of(('twin',)),
  )
  reference: str | None = path_option(
    None,
    'Published curves: a name that experiments.compare --list shows, or a CSV '
    'file with the columns game and frames_millions, or environment (of any '
    'version) and env_steps; return_mean; and return_sd. The rows of the same '
    'game or environment are drawn, with a line for each agent',
  )
  reference_label: str = option(
    'published', 'Name of the reference in the legend.'
  )
  label: str = option('siamrl', 'Name of the runs in the legend.')
  bin_frames: int | None = option(
    None,
    'Frames of a bin over which returns of a game are averaged; a million if '
    'not given. Of shorter runs, and of other environments, each iteration is '
    'drawn.',
    POSITIVE,
  )
  column: str | None = option(
    None,
    'Column to draw: train_return or eval_return; of a sweep or of runs on '
    'data sets any column. If not given, it is train_return; losses and '
    'accuracies of representations; the return of runs on data sets, if they '
    'have one.',
  )
  facet: str | None = option(
    None,
    'Swept options, separated by commas, whose values have axes of their own. '
    'If not given, some are chosen where there are more than eight settings.',
  )
  color: str | None = option(
    None,
    'Swept options, separated by commas, that color shows; if not given, the '
    "twin's period and rate, or its rule.",
  )
  kind: str | None = option(
    None,
    'Kind of figure, of any folders and files together; if not given, curves, '
    'and the final results of sweeps.',
    one_of(kinds.KINDS),
  )
  normalize: str | None = option(
    None,
    'Scale that puts the scores of several tasks together. human: 0 for random '
    'play and 1 for a human tester (Atari); range: 0 and 1 for the worst and '
    'the best run of each task here; none. If not given, human where it is '
    'known, range for several tasks, none for one; heatmap has a '
    'grid for each task then, and with a scale one over all tasks.',
    one_of(kinds.NORMALIZATIONS),
    when=given('kind', 'heatmap', 'aggregates', 'profiles', 'efficiency'),
    refused=True,
  )
  baseline: str | None = option(
    None,
    'Values, separated by commas, of the settings that others are compared '
    'with: each with the last of these before it; for improvement and heatmap '
    'all values of one setting. If not given, the first one.',
    when=given('kind', 'differences', 'improvement', 'heatmap'),
    refused=True,
  )
  vector: str | None = option(
    None,
    'Format of a vector graphic to write beside each PNG file',
    one_of(drawing.VECTORS),
  )


def main(config: PlotConfig) -> None:
  """Draws as the options say."""
  try:
    with noting_files() as files, drawing.also_as(config.vector):
      try:
        _plot(config)
      finally:
        for path in dict.fromkeys(files):
          print(f'wrote {path}')
  except OSError as error:
    raise RunError(f'--runs={config.runs}: {error}') from error
  except ImportError as error:
    raise RunError(str(error)) from error


def _plot(config: PlotConfig) -> None:
  meaning.check_meant([config])
  if config.runs is None:
    raise UsageError('--runs must be given')
  found = sources.read_sources(config.runs)
  for source in found:
    if not lab_figures.is_lab(source.table) and (
      set(CLOCKS).isdisjoint(source.table)
    ):
      raise UsageError(
        f'--runs={source.path} must have a column of ' + ', '.join(CLOCKS)
      )
  if config.output is None:
    if config.panel is None or len(found) > 1 or not found[0].is_folder:
      raise UsageError('--output must be given')
    output = RunFolder(found[0].path).curve.with_suffix('')
    config = dataclasses.replace(config, output=f'{output}-panel')
  elif not pathlib.Path(f'{config.output}.png').parent.is_dir():
    raise UsageError(
      f'--output={config.output} must lie in a folder that exists'
    )
  if config.kind is not None:
    sources.refuse(config, 'with --kind', 'panel', 'reference', 'bin_frames')
    kinds.draw(config, found)
  elif config.panel is not None:
    sweeps.draw_panel(config, found)
  elif any(lab_figures.is_lab(source.table) for source in found):
    _plot_lab(config, sources.only(config, found, 'the lab'))
  elif any(sweeps.is_sweep(source) for source in found):
    sweeps.draw(config, sources.only(config, found, 'a sweep'))
  else:
    run_figures.draw(config, found)


def _plot_lab(config: PlotConfig, source: Source) -> None:
  """Draws a table of the lab again."""
  sources.refuse(config, 'of the lab', 'reference', 'column', 'facet', 'color')
  title = source.flags.get('problem', source.name)
  try:
    lab_figures.draw_again(
      pathlib.Path(f'{config.output}.png'), source.table, title
    )
  except ValueError as error:
    raise RunError(f'{source.path} cannot be drawn: {error}') from error


if __name__ == '__main__':
  run(PlotConfig, __doc__ or '', main, listed='runs')
