"""Compares runs with published results.

  python -m experiments.compare runs/pong-dqn-0 runs/pong-dqn-1 \\
      --against=dopamine_dqn --output=pong

finds the published rows of the same game or environment and agent, and prints
for each time at which both have a return: the mean over our runs and the
published one, each with a 95 % t interval, and their difference with Welch's.
Where it is not known how much a published mean varies over seeds, the interval
of the difference is that of our runs alone. PROTOCOL DIFFERS is followed by the
flags in which runs differ from the source. A flag that the runs do not record,
or the source does not say, is named too.

The clock is the source's. Our returns are averaged as the source averages them:
over the episodes of an iteration, or over the end of a run. Shorter runs are
compared as far as they go. Runs that differ only in the seed, or in where they
ran, are seeds of one setting.

--runs takes folders of runs and of sweeps, folders that hold some, and results
files such as experiments/results/cleanrl_classic-curves.csv. --list shows all
sources, their protocols and what they hold; --against takes a CSV file of your
own, too, whose columns experiments/results/published/README.md explains.

--output=OUTPUT writes:

  OUTPUT.csv  a row for each setting, agent and common time
  OUTPUT.png  our curves, with a band of one standard deviation, beside the
              published ones; with several tasks, OUTPUT-TASK.png of each

--criterion judges the last common time of each setting and agent:

  no_worse  our mean is not shown to be below the published one: the interval of
            the difference does not lie below 0
  within    our mean is shown to be at most --margin below it: the interval of
            the difference lies above -margin

A criterion is MISSED, too, where a single seed leaves no interval, or a run
ends before a published score. Exit codes: 3 if a criterion is missed, 2 for
invalid flags, 1 for any other error, 0 otherwise.
"""

from collections.abc import Iterator, Mapping, Sequence
import csv
import dataclasses
import difflib
import io
import math
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from experiments.config.declaring import (
  NOT_NEGATIVE,
  RunError,
  UsageError,
  one_of,
  option,
  path_option,
)
from experiments.config.executing import MISSED, run
from experiments.figures import sources
from experiments.figures.sources import Source
from experiments.studies import published as published_files
from siamrl.report import averages, published
from siamrl.report.arrangement import MOST_LINES
from siamrl.report.curves import RETURN_COLUMNS, Curve, plot_curve
from siamrl.report.drawing import can_draw
from siamrl.report.loading import OF_FOLDERS
from siamrl.report.metrics import (
  PLAYED,
  RUN_COLUMN,
  Table,
  group_rows,
  last_rows,
)
from siamrl.report.published import Comparison, Published, Row
from siamrl.report.run_folder import write_atomically
from siamrl.report.sweep import swept

_CRITERIA = ('no_worse', 'within')
_MOST_TIMES = 4  # that are printed of a curve; the CSV file has all


@dataclasses.dataclass(frozen=True)
class CompareConfig:
  """The options."""

  runs: str | None = path_option(
    None,
    'Run folders, folders that hold some, and results files, separated by '
    'commas; or without a name, separated by spaces.',
    several=True,
  )
  against: str | None = option(
    None, 'Source to compare with: a name that --list shows, or a CSV file.'
  )
  list: bool = option(
    False, 'Show all sources, or that of --against, and compare nothing.'
  )
  agent: str | None = option(
    None,
    'Published agent to compare with, as --list spells it; those that fit the '
    "runs' flags if not given.",
  )
  column: str | None = option(
    None,
    "Column of returns to compare; the source's if not given and the runs have "
    'it, otherwise the other one',
    one_of(RETURN_COLUMNS),
  )
  criterion: str | None = option(None, 'Criterion to judge', one_of(_CRITERIA))
  margin: float | None = option(
    None,
    'How far below the published return a mean may be, in units of the return, '
    'for --criterion=within.',
    NOT_NEGATIVE,
  )
  output: str | None = path_option(
    None, 'Path of the files to write, without an ending; none if not given.'
  )


class Setting(NamedTuple):
  """Runs that are seeds of one configuration.

  Attributes:
    kind: 'game' or 'environment'.
    task: its name.
    flags: what is known of them.
    runs: [R] arrays by column, for each run.
  """

  kind: str
  task: str
  flags: dict[str, str]
  runs: list[Table]


class Pair(NamedTuple):
  """A setting beside a published agent.

  Attributes:
    setting: our runs.
    words: what tells it from the other settings.
    agent: the published agent.
    column: the column of returns.
    rows: the published rows up to the end of our runs.
    found: a comparison for each of them.
    end: where the shortest of our runs ends.
    differing: flags in which protocols differ, or that one side does not say.
  """

  setting: Setting
  words: str
  agent: str
  column: str
  rows: list[Row]
  found: list[Comparison]
  end: float
  differing: list[published.Difference]


def main(config: CompareConfig) -> int:
  """Compares as the options say; returns the exit code."""
  if config.list:
    names = [config.against] if config.against else published_files.names()
    for name in names:
      print('\n'.join(_listed(published_files.find('against', name))))
    return 0
  source = _checked(config)
  pairs = _pairs(config, source, _settings(config))
  print(_title(source))
  for pair in pairs:
    print('\n'.join(_told(source, pair)))
  missed = [pair for pair in pairs if not _judge(config, pair)]
  try:
    if config.output is not None:
      _write(config.output, source, pairs)
  except (OSError, ImportError) as error:
    raise RunError(f'--output={config.output}: {error}') from error
  return MISSED if missed else 0


def _checked(config: CompareConfig) -> Published:
  """Reads the source, once the options are known to go together."""
  if config.runs is None or config.against is None:
    missing = 'runs' if config.runs is None else 'against'
    raise UsageError(f'--{missing} must be given; --list shows all sources')
  if (config.criterion == 'within') != (config.margin is not None):
    raise UsageError('--margin must go with --criterion=within')
  if config.output is not None and not (
    pathlib.Path(f'{config.output}.csv').parent.is_dir()
  ):
    raise UsageError(
      f'--output={config.output} must lie in a folder that exists'
    )
  source = published_files.find('against', config.against)
  if not source.rows:
    held = source.about.get('holds', 'no rows')
    raise UsageError(
      f'--against={config.against} must hold returns of single games or '
      f'environments, not {held}'
    )
  if config.agent is not None and config.agent not in source.agents:
    close = difflib.get_close_matches(config.agent, source.agents, cutoff=0.4)
    hint = f'; the closest are: {", ".join(close)}' if close else ''
    raise UsageError(
      f'--agent={config.agent} must be one of {"; ".join(source.agents)}{hint}'
    )
  return source


def _settings(config: CompareConfig) -> list[Setting]:
  """All runs by their configuration."""
  found: dict[tuple, Setting] = {}
  for source in sources.read_sources(str(config.runs)):
    for flags, table in _runs(source):
      kind = next((name for name in PLAYED if name in flags), None)
      if kind is None:
        raise UsageError(
          f'--runs={source.path} must be of a game or an environment'
        )
      known = {
        name: value for name, value in flags.items() if name not in OF_FOLDERS
      }
      key = tuple(sorted(known.items()))
      setting = found.setdefault(key, Setting(kind, flags[kind], known, []))
      if kind == 'environment' and 'frames' in table:
        # A game has several frames per env step. Results files have one clock.
        table = {'env_steps': table['frames']} | table
      setting.runs.append(table)
  return list(found.values())


def _runs(source: Source) -> Iterator[tuple[dict[str, str], Table]]:
  """The runs of a folder or a file, each with its flags."""
  if RUN_COLUMN not in source.table:
    yield source.flags, source.table
    return
  names = [*swept(source.table, source.flags), RUN_COLUMN]
  names = list(dict.fromkeys(names))
  for values, table in group_rows(source.table, names).items():
    point = {
      name: _as_flag(value)
      for name, value in zip(names, values, strict=True)
      if value is not None
    }
    yield source.flags | point, table


def _as_flag(value: Any) -> str:
  return f'{value:.10g}' if isinstance(value, (int, float)) else str(value)


def _pairs(
  config: CompareConfig, source: Published, settings: Sequence[Setting]
) -> list[Pair]:
  """Each setting beside each published agent that it may be of."""
  found, why = [], []
  words = _words(settings)
  for setting, name in zip(settings, words, strict=True):
    rows = source.of_task(setting.kind, setting.task)
    agents = [config.agent] if config.agent else source.matching(setting.flags)
    if not source.about.get('agents'):
      agents = [config.agent] if config.agent else source.agents
    theirs = {
      agent: [row for row in rows if row.agent == agent] for agent in agents
    }
    theirs = {agent: of_it for agent, of_it in theirs.items() if of_it}
    if not theirs:
      why.append(_no_counterpart(source, setting, rows))
      continue
    column = _column(config, source, setting)
    found += [
      _pair(source, setting, name, column, of_it) for of_it in theirs.values()
    ]
  if not found:
    raise UsageError(
      f'--against={config.against} must hold a counterpart of a run; {why[0]}'
    )
  for line in dict.fromkeys(why):
    print(line)
  return found


def _no_counterpart(
  source: Published, setting: Setting, rows: Sequence[Row]
) -> str:
  """A line that says what is missing, and what there is."""
  agent = setting.flags.get('agent', setting.flags.get('arm', '(unknown)'))
  if rows:
    there = dict.fromkeys(row.agent for row in rows)
    return (
      f'{source.name} has no counterpart of agent={agent} in {setting.task}; '
      f'--agent takes {"; ".join(there)}'
    )
  tasks = dict.fromkeys(row.task for row in source.rows)
  return f'{source.name} has no {setting.task}; it has {", ".join(tasks)}'


def _column(config: CompareConfig, source: Published, setting: Setting) -> str:
  """The column of returns that all runs of a setting have."""

  def held(name: str) -> bool:
    return all(
      name in run_ and np.isfinite(run_[name]).any() for run_ in setting.runs
    )

  stated = source.about.get('protocol', {}).get(published.COLUMN)
  wanted = [config.column] if config.column else [stated, *RETURN_COLUMNS]
  for name in wanted:
    if name is not None and held(name):
      return name
  raise RunError(
    f'--runs={config.runs} must have returns in '
    f'{config.column or " or ".join(RETURN_COLUMNS)} of each run of '
    f'{setting.task}'
  )


def _pair(
  source: Published,
  setting: Setting,
  words: str,
  column: str,
  rows: Sequence[Row],
) -> Pair:
  """Compares a setting with an agent at all times that both have."""
  curves = [_curve(source, table, column) for table in setting.runs]
  # A run that counts whole rounds may end just before a published time.
  end = min(x[-1] + (x[-1] - x[-2] if len(x) > 1 else 0) for x, _, _ in curves)
  last = min(x[-1] for x, _, _ in curves)
  both = [row for row in rows if row.time <= last or row.time < end]
  found, kept = [], []
  for row in both:
    values = np.array(
      [
        published.value_at(*curve, min(row.time, last), source.window)
        for curve in curves
      ]
    )
    if np.isfinite(values).any():
      kept.append(row)
      found.append(published.compare(source, values, row))
  version = published.version_of(setting.task)
  flags = setting.flags | {published.COLUMN: column}
  if version:
    flags[published.VERSION] = version
  differing = published.differences(source, rows[0], flags)
  return Pair(
    *(setting, words, rows[0].agent, column, kept, found, last, differing)
  )


def _curve(
  source: Published, table: Table, column: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
  """Clock, returns and numbers of episodes of a run."""
  if source.clock not in table:
    raise RunError(
      f'the runs have no column {source.clock}, the clock of {source.name}'
    )
  rows = last_rows(table, [source.clock])
  episodes = column.replace('_return', '_episodes')
  return rows[source.clock], rows[column], rows.get(episodes)


def _words(settings: Sequence[Setting]) -> list[str]:
  """The words that tell the settings of a task apart."""
  found = []
  for setting in settings:
    others = [s.flags for s in settings if s.task == setting.task]
    names = dict.fromkeys(name for flags in others for name in flags)
    differing = [n for n in names if len({f.get(n) for f in others}) > 1]
    words = [f'{n}={setting.flags[n]}' for n in differing if n in setting.flags]
    found.append(', '.join(words) or setting.flags.get('agent', 'siamrl'))
  return found


def _title(source: Published) -> str:
  about = source.about
  parts = [str(about[n]) for n in ('title', 'citation') if n in about]
  if 'repository' in about:
    commit = re.sub(r'(\w{7})\w+', r'\1', str(about.get('commit', '')))
    parts.append(f'{about["repository"]} @ {commit}')
  return f'{source.name}: {"; ".join([*parts, str(about.get("license", ""))])}'


def _listed(source: Published) -> list[str]:
  """The lines of --list about a source."""
  about = source.about
  lines = [_title(source)]
  if 'holds' in about:
    lines.append(f'  holds: {about["holds"]}, which no run is compared with')
  for kind in PLAYED:
    tasks = list(dict.fromkeys(r.task for r in source.rows if r.kind == kind))
    if tasks:
      lines.append(f'  {kind}s: {", ".join(tasks)}')
  for agent in source.agents:
    rows = [row for row in source.rows if row.agent == agent]
    seeds = sorted({row.seeds for row in rows})
    number = f'{seeds[0]} to {seeds[-1]}' if len(seeds) > 1 else f'{seeds[0]}'
    number = 'unknown' if number == '0' else number
    ends = sorted({row.time for row in rows})
    first = f'{ends[0]:,.0f} to ' if len(ends) > 1 else ''
    lines.append(
      f'  agent {agent or "(one)"}: {first}{ends[-1]:,.0f} {source.clock}; '
      f'seeds: {number}'
    )
  lines += [
    f'  protocol: {_settled(about.get("protocol", {})) or "not known"}',
    f'  standard deviation over seeds: {about.get("sd", "unknown")}',
  ]
  if about.get('unknown'):
    lines.append(f'  not said by the source: {", ".join(about["unknown"])}')
  return lines + [f'  {note}' for note in about.get('notes', ())]


def _settled(protocol: Mapping[str, Any]) -> str:
  parts = []
  for name, value in protocol.items():
    if isinstance(value, dict):
      parts.append(f'{name}s only: {_settled(value)}')
    else:
      parts.append(f'{name}={str(value).lower()}')
  return ', '.join(parts)


def _told(source: Published, pair: Pair) -> list[str]:
  """The lines about a setting and an agent."""
  about = source.about
  agent = pair.agent or source.name
  lines = [
    f'\n{pair.setting.task}, {pair.words} beside {agent}, {pair.column}:'
  ]
  apart = [d for d in pair.differing if d.ours is not None and d.theirs]
  if apart:
    told = '; '.join(
      f'{d.name}: ours {d.ours}, theirs {d.theirs}' for d in apart
    )
    lines.append(f'  PROTOCOL DIFFERS: {told}')
  unsaid = [f'{d.name}={d.theirs}' for d in pair.differing if d.ours is None]
  if unsaid:
    lines.append(
      f'  not recorded by the runs, but published: {", ".join(unsaid)}'
    )
  silent = [d.name for d in pair.differing if d.theirs is None]
  silent += [n for n in about.get('unknown', ()) if n == published.COLUMN]
  if silent or not about:
    names = ', '.join(dict.fromkeys(silent)) or 'its protocol'
    lines.append(f'  the source does not say: {names}')
  if about.get('window_is_assumed'):
    lines.append(
      f'  the source does not say what it averages over; ours is over the last '
      f'{source.window:,.0f} {source.clock}'
    )
  lines += [f'  {note}' for note in about.get('notes', ())]
  theirs = source.of_task(pair.setting.kind, pair.setting.task)
  last = max(row.time for row in theirs if row.agent == pair.agent)
  if pair.end < last:
    lines.append(
      f'  our runs end at {pair.end:,.0f} {source.clock}, the published ones '
      f'at {last:,.0f}'
    )
  if not pair.rows:
    return [*lines, '  no time at which both have a return']
  lines.append(
    f'  {source.clock:>13}  {"ours":>24}  {"theirs":>24}  difference'
  )
  count = len(pair.rows)
  shown = {math.ceil(count * n / _MOST_TIMES) - 1 for n in range(1, 5)}
  for number in sorted(shown):
    row, found = pair.rows[number], pair.found[number]
    alone = '' if found.spread_known else ' (our spread alone)'
    seeds = row.seeds or '?'
    lines.append(
      f'  {row.time:>13,.0f}  {_interval(found.ours):>24}  '
      f'{_interval(found.theirs):>24}  {_interval(found.difference)}{alone}; '
      f'seeds: {found.runs} and {seeds}'
    )
  return lines


def _interval(estimate: published.Estimate) -> str:
  mean, low, high = estimate
  if math.isnan(low):
    return f'{mean:.5g} (no interval)'
  return f'{mean:.5g} ({low:.5g} to {high:.5g})'


def _judge(config: CompareConfig, pair: Pair) -> bool:
  """Says whether the criterion is met; True without one."""
  if config.criterion is None:
    return True
  about = f'{pair.setting.task}, {pair.words} beside {pair.agent}'
  wanted = config.criterion
  if config.margin is not None:
    wanted += f' {config.margin:g}'
  if not pair.rows:
    print(f'MISSED: {about}: {wanted}: our runs are too short')
    return False
  _, low, high = pair.found[-1].difference
  if math.isnan(low):
    print(f'MISSED: {about}: {wanted}: one seed has no interval')
    return False
  met = high >= 0 if config.margin is None else low > -config.margin
  print(
    f'{"met" if met else "MISSED"}: {about}: {wanted} at '
    f'{pair.rows[-1].time:,.0f}: {_interval(pair.found[-1].difference)}'
  )
  return met


def _write(output: str, source: Published, pairs: Sequence[Pair]) -> None:
  """Writes the table and the figures."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  names = [
    f'{side}{end}'
    for side in ('ours', 'theirs', 'difference')
    for end in ('', '_low', '_high')
  ]
  writer.writerow(
    [
      *('task', 'setting', 'source', 'agent', 'column', source.clock),
      *('seeds', 'published_seeds', *names, 'protocol_differs'),
    ]
  )
  for pair in pairs:
    apart = ' '.join(
      d.name for d in pair.differing if d.ours is not None and d.theirs
    )
    for row, found in zip(pair.rows, pair.found, strict=True):
      numbers = (*found.ours, *found.theirs, *found.difference)
      writer.writerow(
        [
          *(pair.setting.task, pair.words, source.name, pair.agent),
          *(pair.column, f'{row.time:.0f}', found.runs, row.seeds or ''),
          *(f'{n:.6g}' for n in numbers),
          apart,
        ]
      )
  write_atomically(pathlib.Path(f'{output}.csv'), text.getvalue().encode())
  if not can_draw():
    print('no figure: pip install siamrl[plots]')
    return
  tasks = list(dict.fromkeys(pair.setting.task for pair in pairs))
  for task in tasks:
    of_it = [pair for pair in pairs if pair.setting.task == task]
    end = f'-{published.plain(task)}' if len(tasks) > 1 else ''
    _draw(f'{output}{end}.png', source, task, of_it)


def _draw(
  path: str, source: Published, task: str, pairs: Sequence[Pair]
) -> None:
  """Draws the runs of a task beside what is published."""
  settings = {id(pair.setting): pair for pair in pairs}
  if len(settings) > MOST_LINES:
    print(
      f'no figure of {task}: at most {MOST_LINES} settings can be told apart, '
      f'not {len(settings)}'
    )
    return
  series, faint = [], []
  for pair in settings.values():
    curves = [_drawn(source, table, pair.column) for table in pair.setting.runs]
    clock, values, met = averages.side_by_side(curves)
    seeds = f'{len(curves)} seeds' if len(curves) > 1 else '1 seed'
    label = f'{pair.words}, {seeds}'
    series.append(averages.mean_curve(label, clock[met], values[:, met]))
    if len(curves) > 1 and len(settings) == 1:
      faint += [Curve(label, *curve) for curve in curves]
  agents = {pair.agent for pair in pairs}
  kind = pairs[0].setting.kind
  rows = [r for r in source.of_task(kind, task) if r.agent in agents]
  last = max(float(curve.x[-1]) for curve in series)
  label = (
    source.name
    if len(agents) > 1
    else (', '.join(filter(None, (source.name, *agents))))
  )
  columns = list(dict.fromkeys(RETURN_COLUMNS[pair.column] for pair in pairs))
  plot_curve(
    path,
    series,
    published.curves(source, rows, label, last),
    faint=faint,
    title=task,
    x_label=source.clock.replace('_', ' '),
    y_label=f'{" and ".join(columns)} return',
    explanation='mean and standard\ndeviation over seeds',
  )


def _drawn(
  source: Published, table: Table, column: str
) -> tuple[np.ndarray, np.ndarray]:
  """A run's curve, averaged over the bins of a source that has some."""
  clock, values, episodes = _curve(source, table, column)
  window = int(source.window)
  times = {row.time for row in source.rows}
  if len(times) > 1 and window and episodes is not None and clock[-1] >= window:
    return averages.binned(clock, values, episodes, window)
  return clock, values


if __name__ == '__main__':
  run(CompareConfig, __doc__, main, listed='runs')
