"""Says whether the target network of a run moved as it was asked to.

Exit codes: 0 the trace conforms, or nothing was asked for; 1 it cannot be read,
or it cannot be told whether it conforms; 2 wrong usage; 3 it does not conform.
"""

import argparse
from collections.abc import Sequence
import sys
from typing import NoReturn

from siamrl.conformance import judging, traces


class _Parser(argparse.ArgumentParser):
  """A parser whose errors are one line."""

  def error(self, message: str) -> NoReturn:
    self.exit(2, f'{self.prog}: {message}\n')


def _whole(text: str) -> int:
  number = int(text)
  if number < 1:
    raise ValueError
  return number


def _phase(text: str) -> int:
  number = int(text)
  if number < 0:
    raise ValueError
  return number


def _rate(text: str) -> float:
  number = float(text)
  if not 0 < number <= 1:
    raise ValueError
  return number


_whole.__name__ = 'whole number from 1 on'
_phase.__name__ = 'whole number from 0 on'
_rate.__name__ = 'number above 0 and at most 1'


def main(arguments: Sequence[str] | None = None) -> int:
  """Judges a trace, and returns the exit code."""
  parser = _Parser(
    prog='python -m siamrl.conformance',
    description='Says whether the target network of a run moved as it was '
    'asked to. The trace is a CSV or NPZ file with the columns env_step or '
    'gradient_step or both, online and target.',
    epilog='Exit codes: 0 conforms, or nothing was asked for; 1 the file is at '
    'fault, or it cannot be told whether the run conforms, as with fewer than '
    '3 updates; 2 wrong usage; 3 does not conform.',
  )
  parser.add_argument('trace', metavar='TRACE', help='the file')
  parser.add_argument(
    '--rule',
    choices=('hard', 'soft', 'periodic_soft', 'frozen'),
    help='the rule that was asked for; by default none, and only what was seen '
    'is said. Schedules and rules by path cannot be read from a number for '
    'each network',
  )
  parser.add_argument(
    '--period', type=_whole, help='the period that was asked for'
  )
  parser.add_argument(
    '--unit',
    choices=tuple(traces.UNITS),
    help='the unit of the period; by default gradient_steps if they are in '
    'the file',
  )
  parser.add_argument(
    '--phase',
    type=_phase,
    help='remainder of the times of updates by the period; by default any',
  )
  parser.add_argument(
    '--tau',
    type=_rate,
    help='the weight of the online parameters that was asked for, which is '
    'judged to 2 percent, and to 25 where a row has several updates',
  )
  given = parser.parse_args(arguments)
  if given.rule in ('hard', 'frozen') and given.tau not in (None, 1):
    parser.error(f'--tau={given.tau:g} must be 1 for --rule={given.rule}')
  if given.rule in ('soft', 'frozen') and given.period is not None:
    parser.error(
      f'--period={given.period} has no meaning for --rule={given.rule}'
    )
  if given.phase is not None and (
    given.period is None or given.phase >= given.period
  ):
    parser.error(f'--phase={given.phase} must be below --period')
  if given.unit is not None and given.period is None:
    parser.error(f'--unit={given.unit} needs --period')
  asked = judging.Asked(
    given.rule, given.period, given.unit, given.phase, given.tau
  )
  verdicts = []
  try:
    for run, said in traces.runs(traces.read(given.trace)):
      if said:
        print(f'\n{said}')
      if len(run.online) < 2:
        print('a single row, of which nothing can be told')
        continue
      verdict = judging.judge(run, asked)
      print(verdict)
      verdicts.append(verdict)
  except ValueError as error:
    name = '' if given.trace in str(error) else f'{given.trace}: '
    print(f'{name}{error}', file=sys.stderr)
    return 1
  if any(verdict.error is not None for verdict in verdicts):
    return 3
  unclear = any(verdict.unclear for verdict in verdicts)
  return 1 if unclear or not verdicts else 0


if __name__ == '__main__':
  sys.exit(main())
