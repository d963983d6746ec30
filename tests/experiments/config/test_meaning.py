"""When options mean something, and what follows from it."""

import dataclasses
import itertools
from typing import Any

import pytest

from experiments import classic, siamese
from experiments.config import declaring, reading, runs
from experiments.config.declaring import (
  UsageError,
  both,
  given,
  is_set,
  not_given,
  not_set,
  one_of,
  option,
  redeclared,
)
from experiments.config.meaning import (
  check_lists,
  check_meant,
  dropped,
  say_notes,
  traced,
)
from experiments.families import actor_critic, q, siamese as family
from siamrl import twins
from siamrl.agents import actor_critic as agents
from siamrl.losses import td


@dataclasses.dataclass(frozen=True)
class Base:
  """Options of which some depend on others."""

  rule: str = option('a', 'Which', one_of(('a', 'b', 'c')))
  size: int = option(0, 'How large.')
  period: int = option(10_000, 'How often.', when=given('rule', 'a'))
  tau: float | None = option(
    None, 'Weight', traced=True, when=given('rule', 'b', 'c'), refused=True
  )
  noise: float = option(
    1.0,
    'How loud.',
    when=is_set('size', '1 or more'),
    refused=both(given('rule', 'a'), not_set('other')),
  )
  other: str | None = option(None, 'Another.', when=not_given('rule', 'c'))
  warmup: bool = option(False, 'Count it.')


@dataclasses.dataclass(frozen=True)
class Options(Base):
  """The same of a launcher that takes no warm-up, and has parts."""

  tau: float | None = redeclared(Base, 'tau', help='Rate')
  other: str | None = redeclared(Base, 'other', 'x', when=None)
  warmup: bool = redeclared(Base, 'warmup', never='there is none')
  also: str | None = reading.also()


def _sweep(*arguments: str, cls: type = Base) -> reading.Sweep:
  return reading.sweep_from_arguments(cls, *arguments)


@pytest.mark.parametrize(
  'arguments, note',
  [
    (['--rule=a', '--tau=0.5'], '--tau=0.5 changes nothing here'),
    (
      ['--rule=c', '--tau=0.5', '--period=7', '--other=y'],
      '--period=7, --other=y change nothing here',
    ),
    (['--rule=a,b', '--tau=0.5', '--period=7'], None),
    (['--rule=c', '--period=10_000'], None),  # as if it were not given
    (['--rule=b', '--tau=0.5'], None),
  ],
)
def test_what_means_nothing_is_said(arguments, note, capsys):
  say_notes(_sweep(*arguments).configs)
  assert capsys.readouterr().err == (f'note: {note}\n' if note else '')


@pytest.mark.parametrize(
  'options, names',
  [
    ({}, ['tau', 'noise']),
    ({'size': 1}, ['tau']),
    ({'size': 1, 'other': 'y'}, ['tau', 'noise']),
    ({'size': 1, 'rule': 'b'}, ['period', 'noise']),
    ({'size': 1, 'rule': 'c'}, ['period', 'noise', 'other']),
  ],
)
def test_what_is_dropped(options, names):
  assert dropped(Base(**options)) == names


def test_what_a_subclass_declares_anew():
  assert dropped(Options()) == ['tau', 'noise', 'warmup']
  assert dropped(Options(rule='c')) == ['period', 'noise', 'warmup']
  fields = {field.name: field for field in dataclasses.fields(Options)}
  assert [field.name for field in dataclasses.fields(Base)] == list(fields)[:-1]
  assert fields['tau'].metadata['help'] == 'Rate'
  assert (fields['tau'].default, fields['other'].default) == (None, 'x')


@pytest.mark.parametrize(
  'arguments, line',
  [
    (['--tau=1'], '--tau=1.0 must go with --rule=b or c, not a'),
    # Of several conditions the one that is not met.
    (
      ['--noise=2', '--rule=b'],
      '--noise=2.0 must go with --rule=a, not b',
    ),
    (['--noise=2', '--other=y'], '--noise=2.0 must not be given with --other'),
    (['--noise=2'], None),  # idle, and no error
    (['--rule=a,b', '--tau=0.5'], None),
    (['--rule=c', '--period=1'], None),
    (
      ['--rule=b,c', '--noise=2'],
      '--noise=2.0 must go with --rule=a, not b, c',
    ),
  ],
)
def test_what_is_refused(arguments, line):
  if line is None:
    check_meant(_sweep(*arguments).configs)
    return
  with pytest.raises(UsageError) as error:
    check_meant(_sweep(*arguments).configs)
  assert str(error.value) == line


def test_parts_of_a_sweep_are_offered_and_what_never_means_anything():
  with pytest.raises(UsageError) as error:
    check_meant(_sweep('--rule=b,c', '--noise=2', cls=Options).configs)
  assert str(error.value) == (
    '--noise=2.0 must go with --rule=a, not b, c; --also="--rule=... '
    '--noise=2.0" adds runs of one that it goes with'
  )
  with pytest.raises(UsageError) as error:
    check_meant(_sweep('--warmup', cls=Options).configs)
  assert str(error.value) == '--warmup=true must be false: there is none'


def test_lists_that_mean_nothing():
  with pytest.raises(UsageError) as error:
    check_lists(_sweep('--rule=b', '--period=1,2'))
  assert str(error.value) == (
    '--period=1,2 must be one value: it means nothing to these runs'
  )
  check_lists(_sweep('--rule=a,b', '--period=1,2'))


def test_traced():
  assert traced(Options) == ('tau',)


_CONFIGS: list[Any] = [
  classic.ClassicConfig,
  actor_critic.ControlConfig,
  siamese.SiameseConfig,
]


@pytest.mark.parametrize('cls', _CONFIGS)
def test_all_numbers_of_rules_and_forms_are_traced(cls):
  parameters = {**twins.PARAMETERS, **td.TARGET_PARAMETERS}
  fields = {field.name for field in dataclasses.fields(cls)}
  for name in fields & parameters.keys():
    assert (name in traced(cls)) == parameters[name].traced
  assert {'target_count', 'target_paths'} <= fields - set(traced(cls))


@pytest.mark.parametrize('cls', _CONFIGS)
def test_what_is_traced_is_a_number_and_may_be_swept(cls):
  kinds = {field.name: kind for field, kind in declaring.options_of(cls)}
  single = {field.name for field in dataclasses.fields(runs.SweepOptions)}
  assert {kinds[name] for name in traced(cls)} <= {int, float}
  assert not single & set(traced(cls))


@pytest.mark.parametrize(
  'cls, choices',
  [
    (
      siamese.SiameseConfig,
      dict(
        agent=family.AGENTS,
        predictor=family.PREDICTORS,
        anneal=('cosine', 'none'),
      ),
    ),
    (
      actor_critic.ControlConfig,
      dict(
        agent=agents.AGENTS,
        exploration=(None, *agents.EXPLORATIONS),
        exploration_std=(None, 0.0, 0.1),
        smoothing_std=(None, 0.0, 0.1),
        alpha=(None, 0.0, 0.1),
        fixed_policy=(False, True),
      ),
    ),
    (
      classic.ClassicConfig,
      dict(
        replay=q.REPLAYS,
        target_update=set(twins.RULES) - {'by_path'},
        panel_period=(1,),
        shadows=(None, 'self'),
      ),
    ),
  ],
)
def test_dropping_what_means_nothing_gives_nothing_else_a_meaning(cls, choices):
  defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.init}
  for product in itertools.product(*choices.values()):
    config = cls(**dict(zip(choices, product, strict=True)))
    names = dropped(config)
    without = {name: defaults[name] for name in names}
    assert dropped(dataclasses.replace(config, **without)) == names, product
