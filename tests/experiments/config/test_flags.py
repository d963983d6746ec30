"""From dataclasses to flags, and that names are those of the library."""

import dataclasses
import os
from typing import Any, ClassVar

import numpy as np
import pytest

from experiments import atari
from experiments.config import declaring, executing, help, reading
from experiments.config.declaring import (
  UsageError,
  given,
  group,
  one_of,
  option,
)
from siamrl.parameters import FieldError


@dataclasses.dataclass(frozen=True)
class Config:
  """Some options."""

  _first: Any = group('The first')
  count: int = option(10_000, 'How many.', declaring.POSITIVE)
  rate: float = option(0.5, 'How fast.', declaring.FRACTION)
  tau: float | None = option(None, 'Weight', declaring.RATE)
  _second: Any = group('The second')
  name: str = option('a', 'Which', one_of(('a', 'b')))
  note: str | None = option(None, 'Anything.')
  big: bool = option(False, 'Size.')


@dataclasses.dataclass(frozen=True)
class Numbers(Config):
  """Options of numbers with limits of all kinds."""

  few: int = option(3, 'Few.', declaring.POSITIVE, most=10)
  signed: int = option(0, 'Any.')
  many: int = option(0, 'Many.', declaring.NOT_NEGATIVE, most=declaring.INT64)
  size: float = option(1.0, 'Any.')
  sizes: str = option('8', 'Of layers', declaring.sizes('8-8'))


@dataclasses.dataclass(frozen=True)
class Exact(Numbers):
  """The same of a launcher that computes in float64."""

  FLOATS: ClassVar[type] = np.float64


def _read(*arguments: str) -> Config:
  return reading.from_arguments(Config, *arguments)


def _run(*arguments: str) -> tuple[int, list[Config]]:
  seen: list[Config] = []
  return executing.execute(Config, 'Intro.', seen.append, arguments), seen


def test_defaults_are_the_fields():
  assert _read() == Config()


def test_values():
  assert _read(
    '--count=3', '--rate=1e-2', '--tau=1', '--name', 'b', '--note=x y', '--big'
  ) == Config(3, 0.01, 1.0, 'b', 'x y', True)
  assert _read('--big', '--nobig') == Config()
  assert _read('--count=1_000').count == 1000


def test_arguments_that_are_no_flags_are_values_of_one_option():
  def read(*arguments):
    return reading.from_arguments(Config, *arguments, listed='note')

  assert read('x', '--count=3', 'y') == Config(count=3, note='x,y')
  assert read('--count=3') == Config(count=3)
  assert read('--note=x') == Config(note='x')
  with pytest.raises(UsageError, match="'y' must not be given beside --note"):
    read('--note=x', 'y')
  with pytest.raises(UsageError, match='--cuont is no flag'):
    read('x', '--cuont=3')
  with pytest.raises(UsageError, match="'x' is no flag"):
    _read('--count=3', 'x')


def test_a_flag_file_and_its_round_trip(tmp_path):
  config = Config(7, 0.25, 1e-7, 'b', 'x', True)
  lines = [
    f'--{name}={value}' for name, value in reading.as_flags(config).items()
  ]
  (tmp_path / 'a.flags').write_text('# a comment\n' + '\n'.join(lines))
  (tmp_path / 'b.flags').write_text(f'--flagfile={tmp_path}/a.flags\n--count=8')
  assert _read(f'--flagfile={tmp_path}/a.flags') == config
  assert _read(f'--flagfile={tmp_path}/b.flags') == dataclasses.replace(
    config, count=8
  )
  assert 'tau' not in reading.as_flags(Config())
  assert reading.as_json(config) == {
    'count': 7,
    'rate': 0.25,
    'tau': 1e-7,
    'name': 'b',
    'note': 'x',
    'big': True,
  }


@pytest.mark.parametrize(
  'argument, message',
  [
    ('--count=0', '--count=0 must be positive'),
    ('--count=1e3', '--count=1e3 must be a whole number'),
    ('--count=', '--count= must be a whole number'),
    ('--rate=1.5', r'--rate=1.5 must be in \[0, 1\]'),
    ('--rate=fast', '--rate=fast must be a number'),
    ('--rate=nan', '--rate=nan must be a finite number'),
    ('--rate=-inf', '--rate=-inf must be a finite number'),
    ('--tau=0', r'--tau=0.0 must be in \(0, 1\]'),
    ('--tau=inf', '--tau=inf must be a finite number'),
    ('--name=c', '--name=c must be one of a, b'),
    ('--big=maybe', '--big=maybe must be true or false'),
    ('--cuont=1', '--cuont is no flag; the closest are --count'),
    ('--note', 'Missing value for flag --note'),
    ('--nobig=1', '--nobig=1 does not take an argument'),
    ('--count=2147483648', '--count=2147483648 must be at most 2147483647'),
    ('--count=1e400', '--count=1e400 must be a whole number'),
    ('--few=11', '--few=11 must be at most 10'),
    ('--signed=-2147483649', 'must be at least -2147483648'),
    ('--many=9223372036854775808', 'must be at most 9223372036854775807'),
    ('--size=1e-50', '32 bits can hold: it would be 0'),
    ('--size=-1e-40', '32 bits can hold: it would be 0'),  # of a subnormal
    ('--size=4e38', '32 bits can hold: it would be infinite'),
    ('--size=-4e38', '32 bits can hold: it would be infinite'),
    ('--rate=0.99999999999', '32 bits can hold: it would be 1'),
    ('--tau=1e-9', r'must be at least 6.0e-08: with 32 bits 1 minus it'),
    ('--note=\udc80', 'must be UTF-8 text'),
    ('--note=a\0b', 'must be UTF-8 text without null characters'),
    ('--sizes=8-', 'must be positive numbers joined by hyphens, such as 8'),
    ('--sizes=\uff18', 'must be positive numbers joined by hyphens'),
    ('--sizes=8-2147483648', 'each below 2147483648'),
    ('--sizes=' + '-'.join(['8'] * 101), 'at most 100'),
    ('count=1', "'count=1' is no flag; flags are written --name=value"),
    ('--flagfile=/none', '--flagfile=/none cannot be read: No such file'),
    ('--flagfile=/', '--flagfile=/ cannot be read: Is a directory'),
  ],
)
def test_what_is_refused(argument, message, capsys):
  with pytest.raises(UsageError, match=message):
    reading.from_arguments(Numbers, argument)
  seen: list[Numbers] = []
  code = executing.execute(Numbers, 'Intro.', seen.append, [argument])
  out, err = capsys.readouterr()
  assert code == 2
  assert not seen
  assert not out
  assert err.startswith('error: ')
  assert err.count('\n') == 1


@pytest.mark.parametrize(
  'cls, argument, value',
  [
    (Numbers, '--count=2147483647', 2**31 - 1),
    (Numbers, '--signed=-2147483648', -(2**31)),
    (Numbers, '--many=9223372036854775807', 2**63 - 1),
    (Numbers, '--few=10', 10),
    (Numbers, '--size=1.2e-38', 1.2e-38),
    (Numbers, '--size=3.4e38', 3.4e38),
    (Numbers, '--size=0.99999999999e-3', 0.99999999999e-3),
    (Numbers, '--size=1.00000000001', 1.00000000001),
    (Numbers, '--rate=0', 0.0),
    (Numbers, '--rate=1e-30', 1e-30),
    (Numbers, '--tau=1e-7', 1e-7),
    (Exact, '--tau=1e-12', 1e-12),
    (Exact, '--rate=0.99999999999', 0.99999999999),
    (Exact, '--size=1e300', 1e300),
    (Numbers, '--sizes=' + '-'.join(['8'] * 100), '-'.join(['8'] * 100)),
    (Numbers, '--sizes=2147483647', '2147483647'),
  ],
)
def test_what_the_types_can_hold(cls, argument, value):
  name = argument.removeprefix('--').partition('=')[0]
  assert getattr(reading.from_arguments(cls, argument), name) == value


def test_what_is_odd_is_shown_in_one_line_of_some_length(capsys):
  assert _run('--name=' + 'x\n\t\x1b' * 10_000)[0] == 2
  err = capsys.readouterr().err
  assert err.startswith('error: --name=x\\n\\t\\x1bx\\n')
  assert ' [...] ' in err
  assert err.count('\n') == 1
  assert len(err) < 10_000


def test_a_flag_file_that_is_no_text(tmp_path, capsys):
  (tmp_path / 'x').write_bytes(b'\xff\xfe\x00')
  assert _run(f'--flagfile={tmp_path}/x')[0] == 2
  assert '--flagfile must name a text file' in capsys.readouterr().err


@dataclasses.dataclass(frozen=True)
class Paths:
  """Options that name paths, and one that does not."""

  run_dir: str | None = declaring.path_option(None, 'A folder.', single=True)
  runs: str | None = declaring.path_option(
    None, 'Some.', several=True, single=True
  )
  note: str = declaring.option('', 'Text.')


_READERS = {
  'one record': lambda *given: reading.from_arguments(Paths, *given),
  'a sweep': lambda *given: reading.sweep_from_arguments(Paths, *given).configs[
    0
  ],
}


@pytest.mark.parametrize('read', _READERS.values(), ids=_READERS)
def test_a_tilde_is_the_home_folder(read, monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  config = read('--run_dir=~/a,~/b', '--runs=~/a,b/~,~', '--note=~/c')
  assert config == Paths('/home/me/a,~/b', '/home/me/a,b/~,/home/me', '~/c')
  assert read('--run_dir=minari:~/a').run_dir == 'minari:/home/me/a'
  assert read('--run_dir=~').run_dir == '/home/me'
  assert read('--run_dir=./~/a:~').run_dir == './~/a:~'
  assert read().run_dir is None
  with pytest.raises(UsageError, match="~no_one is nobody's home folder"):
    read('--run_dir=~no_one/x')


@pytest.mark.parametrize('read', _READERS.values(), ids=_READERS)
@pytest.mark.parametrize('name', ['run_dir', 'runs', 'note', 'flagfile'])
def test_what_is_not_utf_8_is_refused(read, name, tmp_path, monkeypatch):
  argument = os.fsdecode(b'--' + name.encode() + b'=caf\xe9')
  for arguments in ([argument], argument.split('=')):
    with pytest.raises(UsageError) as caught:
      read(*arguments)
    line = str(caught.value)
    assert line.endswith(r'caf\xe9 must be UTF-8 text')
    line.encode()  # it can be printed
  monkeypatch.setenv('HOME', os.fsdecode(b'/home/caf\xe9'))
  with pytest.raises(UsageError, match=r'caf\\xe9/x must be UTF-8'):
    read('--run_dir=~/x')
  assert read('--run_dir=caf\u00e9').run_dir == 'caf\u00e9'


@pytest.mark.parametrize(
  'bound, inside, outside',
  [
    (declaring.POSITIVE, (1e-9, 1), (0, -1)),
    (declaring.NOT_NEGATIVE, (0, 1), (-1,)),
    (declaring.FRACTION, (0, 0.5, 1), (-0.1, 1.1)),
    (declaring.DECAY, (0, 0.95), (1, -0.1)),
    (declaring.RATE, (1e-9, 1), (0, 1.1)),
    (declaring.UINT32, (0, 2**32 - 1), (-1, 2**32)),
    (one_of(('a', 'b')), ('a', 'b'), ('', 'c')),
    (declaring.ANYTHING, ('', 'c', -1), ()),
  ],
)
def test_bounds(bound, inside, outside):
  assert all(bound.holds(value) for value in inside)
  assert not any(bound.holds(value) for value in outside)


@pytest.mark.parametrize(
  'error, code, line',
  [
    (declaring.UsageError('--count=1 is odd'), 2, 'error: --count=1 is odd\n'),
    (declaring.RunError('no room'), 1, 'error: no room\n'),
    (KeyboardInterrupt(), 130, 'error: interrupted\n'),
  ],
)
def test_exit_codes(error, code, line, capsys):
  def fail(config):
    raise error

  assert executing.execute(Config, '', fail, []) == code
  assert capsys.readouterr().err == line
  assert _run('--count=2') == (0, [Config(count=2)])


def test_errors_of_the_library_speak_of_flags():
  with (
    pytest.raises(UsageError, match="^--rule=hadr is not 'x', as fast=true$"),
    declaring.usage_errors(),
  ):
    raise FieldError('rule', 'hadr', "is not 'x', as", ('fast', True))
  # What is not about an argument is an error in the program.
  for text in ('shapes differ', 'rule=hadr and rule=hard differ'):
    with pytest.raises(ValueError, match=text), declaring.usage_errors():
      raise ValueError(text)


@pytest.mark.parametrize('argument', ['--help', '-h', '-help'])
def test_help(argument, capsys):
  assert _run('--count=0', argument) == (0, [])
  assert (
    capsys.readouterr().out
    == """\
Intro.


The first:
  --count  (default: 10_000)
      How many; positive.
  --rate  (default: 0.5)
      How fast; in [0, 1].
  --tau
      Weight; in (0, 1].

The second:
  --name  (default: a)
      Which; one of a, b.
  --note
      Anything.
  --[no]big  (default: false)
      Size.

--flagfile=FILE reads flags from a file, one per line. If a flag is given twice,
the last one counts, so flags after --flagfile override those of the file.
Presets are found by name from any folder: --flagfile=nature_dqn.
"""
  )


def test_the_short_help_has_what_most_runs_change(capsys):
  run = lambda argument: executing.execute(
    atari.AtariConfig, atari.__doc__ or '', print, [argument]
  )
  assert run('--help') == 0
  short = capsys.readouterr().out
  assert run('--helpfull') == 0
  full = capsys.readouterr().out
  for name in ('game', 'frames', 'target_update', 'tau', 'run_dir'):
    assert f'  --{name}' in short
  assert '  --noop_max' in full and '  --noop_max' not in short
  flags = len(reading.as_json(atari.AtariConfig()))
  assert f'--helpfull explains all {flags} options.' in short
  words = ' '.join(short.split())
  assert 'Only with --target_update=soft, periodic_soft' in words


def test_help_of_the_launcher_names_every_flag():
  text = help.help_text(atari.AtariConfig, atari.__doc__ or '')
  for name in reading.as_json(atari.AtariConfig()):
    assert (
      f'--{name}  ' in text
      or f'--[no]{name}  ' in text
      or (f'--{name}\n' in text)
    )
  assert max(map(len, text.splitlines())) <= 80


@dataclasses.dataclass(frozen=True)
class Many:
  """Options of a sweep: a rate means nothing to a, a period nothing to b."""

  _run: Any = group('The run')
  where: str | None = option(None, 'A folder.', single=True)
  seeds: int = option(3, 'How many.', declaring.POSITIVE, single=True)
  rule: str = option('a', 'Which', one_of(('a', 'b', 'c')))
  period: int = option(
    10_000, 'How often.', declaring.POSITIVE, when=given('rule', 'a')
  )
  tau: float | None = option(
    None, 'Weight', declaring.RATE, when=given('rule', 'b')
  )
  limit: float = option(600, 'Seconds.')
  big: bool = option(False, 'Size.')


def _sweep(*arguments: str) -> reading.Sweep:
  return reading.sweep_from_arguments(Many, *arguments)


def test_a_sweep_of_one():
  assert _sweep() == reading.Sweep(
    (Many(),),
    ({},),
    dict(
      where=(None,),
      seeds=(3,),
      rule=('a',),
      period=(10_000,),
      tau=(None,),
      limit=(600.0,),
      big=(False,),
    ),
    {},
  )


def test_later_options_vary_fastest():
  sweep = _sweep('--big=false,true', '--period=7, 1_0', '--where=x,y')
  assert sweep.axes == {'period': (7, 10), 'big': (False, True)}
  assert sweep.configs == tuple(
    Many(where='x,y', period=period, big=big)
    for period, big in [(7, False), (7, True), (10, False), (10, True)]
  )
  assert sweep.points[1] == {'period': 7, 'big': True}
  assert _sweep('--rule=a, b').values['rule'] == ('a', 'b')
  assert _sweep('--big').configs == (Many(big=True),)
  assert _sweep('--big', '--nobig').configs == (Many(),)


def test_what_means_nothing_is_not_crossed():
  sweep = _sweep('--rule=a,b,c', '--period=1,10', '--tau=0.5,0.1')
  assert sweep.configs == (
    Many(rule='a', period=1),
    Many(rule='a', period=10),
    Many(rule='b', tau=0.5),
    Many(rule='b', tau=0.1),
    Many(rule='c'),
  )
  assert sweep.points == (
    {'rule': 'a', 'period': 1, 'tau': None},
    {'rule': 'a', 'period': 10, 'tau': None},
    {'rule': 'b', 'period': None, 'tau': 0.5},
    {'rule': 'b', 'period': None, 'tau': 0.1},
    {'rule': 'c', 'period': None, 'tau': None},
  )
  # A single value too is for those alone to which it means something.
  assert _sweep('--rule=a,b', '--tau=0.5', '--period=7').configs == (
    Many(rule='a', period=7),
    Many(rule='b', tau=0.5),
  )


def test_what_means_nothing_anywhere_is_left_to_the_launcher():
  assert _sweep('--rule=a', '--tau=0.5').configs == (Many(tau=0.5),)
  assert [c.tau for c in _sweep('--rule=a,c', '--tau=0.5,1').configs] == [
    0.5,
    1.0,
    0.5,
    1.0,
  ]


def test_a_sweep_and_its_flag_file(tmp_path):
  sweep = _sweep(
    '--rule=a,b', '--period=1,10', '--tau=1e-7', '--big=true,false', '--seeds=2'
  )
  written = reading.as_flags(sweep)
  assert written == {
    'seeds': '2',
    'rule': 'a,b',
    'period': '1,10',
    'tau': '1e-07',
    'limit': '600.0',
    'big': 'true,false',
  }
  assert reading.as_json(sweep)['period'] == [1, 10]
  assert reading.as_json(sweep)['where'] is None
  lines = [f'--{name}={value}' for name, value in written.items()]
  (tmp_path / 'a.flags').write_text('\n'.join(lines))
  again = _sweep(f'--flagfile={tmp_path}/a.flags')
  assert again == sweep
  assert reading.as_flags(again) == written
  # A later flag replaces the list, it does not lengthen it.
  assert _sweep(f'--flagfile={tmp_path}/a.flags', '--period=3').values[
    'period'
  ] == (3,)


@pytest.mark.parametrize(
  'argument, message',
  [
    ('--tau=', '--tau= must be a number, or several with one comma between'),
    ('--tau=,', '--tau=, must be a number, or several'),
    ('--tau=0.1,,0.2', '--tau=0.1,,0.2 must be a number, or several'),
    ('--rule=a,', '--rule=a, must be text, or several'),
    ('--tau=0.1,1e-1', '--tau=0.1,1e-1 must not hold 0.1 twice'),
    ('--tau=0.1,0.10000000001', '.* in 32 bits they are the same number'),
    ('--tau=0.1,1e-50', '--tau=1e-50 must be a number that 32 bits can hold'),
    (
      '--period=' + ','.join(map(str, range(1, 10_002))),
      r'.* must be at most 10,000 values, not 10,001',
    ),
    ('--big=true,1', '--big=true,1 must not hold true twice'),
    ('--tau=0.1,2', r'--tau=2.0 must be in \(0, 1\]'),
    ('--tau=0.1,nan', '--tau=nan must be a finite number'),
    ('--tau=0.1,fast', '--tau=fast must be a number$'),
    ('--period=1,1e3', '--period=1e3 must be a whole number$'),
    ('--big=true,maybe', '--big=maybe must be true or false'),
    ('--rule=a,d', '--rule=d must be one of a, b, c'),
    (
      '--seeds=1,2',
      '--seeds=1,2 must be one value and no list: a whole number',
    ),
    ('--seeds=x', '--seeds=x must be a whole number'),
    ('--seeds=0', '--seeds=0 must be positive'),
    ('--periood=1', '--periood is no flag; the closest are --period'),
  ],
)
def test_what_a_sweep_refuses(argument, message, capsys):
  with pytest.raises(UsageError, match=f'^{message}'):
    _sweep(argument)
  seen: list[reading.Sweep] = []
  assert executing.execute(Many, '', seen.append, [argument], lists=True) == 2
  assert not seen
  assert capsys.readouterr().err.count('\n') == 1


def test_too_many_combinations_are_refused_at_once():
  several = ','.join(map(str, range(1, 2_001)))
  taus = ','.join(f'{n / 5_000}' for n in range(1, 2_001))
  with pytest.raises(UsageError, match='^the lists of --period, --tau have 4,'):
    _sweep(f'--period={several}', f'--tau={taus}')
  with pytest.raises(UsageError, match='have 10,001 combinations'):
    _parts(
      '--period=' + ','.join(map(str, range(1, 10_001))), '--also=--period=1'
    )


def test_a_sweep_is_launched():
  seen: list[reading.Sweep] = []
  arguments = ['--rule=a,b', '--tau=0.5,1']
  assert not executing.execute(Many, '', seen.append, arguments, lists=True)
  assert seen == [_sweep(*arguments)]
  assert len(seen[0].configs) == 3


def test_help_of_a_sweep(capsys):
  assert not executing.execute(Many, 'Intro.', print, ['--help'], lists=True)
  lines = capsys.readouterr().out.splitlines()
  assert '  --where  (one value)' in lines
  assert '  --seeds  (default: 3; one value)' in lines
  assert '  --period  (default: 10_000)' in lines
  assert lines[-2:] == [
    'A flag not marked (one value) takes several values, separated by commas; '
    'every',
    'combination of them is run.',
  ]
  assert 'one value' not in help.help_text(Many, '')


@dataclasses.dataclass(frozen=True)
class Parts(Many):
  """Options of a sweep of several parts."""

  note: str = option('z', 'Anything.')
  also: str | None = reading.also()


def _parts(*arguments: str) -> reading.Sweep:
  return reading.sweep_from_arguments(Parts, *arguments)


def test_parts_of_a_sweep_are_added():
  text = '--rule=b --tau=0.1,0.5; --rule=c;  --big'
  sweep = _parts('--period=1,10', f'--also={text}')
  assert sweep.configs == (
    Parts(period=1, also=text),
    Parts(period=10, also=text),
    Parts(rule='b', tau=0.1, also=text),
    Parts(rule='b', tau=0.5, also=text),
    Parts(rule='c', also=text),  # once, since a period means nothing to it
    Parts(period=1, big=True, also=text),
    Parts(period=10, big=True, also=text),
  )
  # Flags of a part come behind the others, each for itself.
  assert sweep.axes == {
    'rule': ('a', 'b', 'c'),
    'period': (1, 10),
    'tau': (None, 0.1, 0.5),
    'big': (False, True),
  }
  assert sweep.points[0] == dict(rule='a', period=1, tau=None, big=False)
  assert sweep.points[3] == dict(rule='b', period=None, tau=0.5, big=False)
  assert sweep.values['rule'] == ('a',)
  assert sweep.values['period'] == (1, 10)


def test_a_part_may_take_a_list_away_and_repeat_what_there_is():
  sweep = _parts('--period=1,10', '--also=--period=1; --period=5 --big')
  assert [(c.period, c.big) for c in sweep.configs] == [
    (1, False),
    (10, False),
    (5, True),
  ]


@pytest.mark.parametrize('text', ['', ' ', ';', ' ; ; '])
def test_no_further_part(text):
  sweep = _parts(f'--also={text}', '--period=1,2')
  assert [config.period for config in sweep.configs] == [1, 2]


def test_quotes_keep_a_value_together():
  sweep = _parts('--also=--note="x y"; --note=\'p q\'')
  assert [config.note for config in sweep.configs] == ['z', 'x y', 'p q']


def test_parts_and_their_flag_file(tmp_path):
  text = '--rule=b --tau=0.1,0.5; --rule=c'
  sweep = _parts('--period=1,10', f'--also={text}')
  written = reading.as_flags(sweep)
  assert written['also'] == text
  assert written['rule'] == 'a'
  assert reading.as_json(sweep)['also'] == text
  lines = [f'--{name}={value}' for name, value in written.items()]
  (tmp_path / 'a.flags').write_text('\n'.join(lines))
  assert _parts(f'--flagfile={tmp_path}/a.flags') == sweep


def test_a_flag_file_in_a_part(tmp_path):
  (tmp_path / 'b.flags').write_text('--rule=b\n--tau=0.25\n')
  sweep = _parts(f'--also=--flagfile={tmp_path}/b.flags --tau=0.5')
  assert [(c.rule, c.tau) for c in sweep.configs] == [('a', None), ('b', 0.5)]


@pytest.mark.parametrize(
  'text, message',
  [
    ('--seeds=5', '--also=--seeds=5 must leave --seeds alone, which has one'),
    ('--big; --where=x', '--also=--where=x must leave --where alone'),
    ('--also=--big', '--also=--also=--big must leave --also alone'),
    ('--note="x', '--also=--note="x: No closing quotation'),
    ('--taau=0.1', '--also=--taau=0.1: --taau is no flag; the closest are'),
    ('--big; rule=b', "--also=rule=b: 'rule=b' is no flag; flags are written"),
    ('--tau=2', r'--also=--tau=2: --tau=2.0 must be in \(0, 1\]'),
    ('--tau=0.1,0.1', '--also=--tau=0.1,0.1: --tau=0.1,0.1 must not hold 0.1'),
    ('--flagfile=/none', '--also=--flagfile=/none: --flagfile=/none cannot'),
  ],
)
def test_parts_that_are_refused(text, message, capsys):
  with pytest.raises(UsageError, match=f'^{message}'):
    _parts(f'--also={text}')
  arguments = [f'--also={text}']
  assert executing.execute(Parts, '', print, arguments, lists=True) == 2
  assert capsys.readouterr().err.count('\n') == 1
