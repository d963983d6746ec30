"""What is registered before a launcher runs has flags, help and sweeps."""

import copy

import optax
import pytest

from experiments import classic, lab
from experiments.config import executing, help, reading, targets
from experiments.config import twin as twin_options
from experiments.config.declaring import UsageError
from experiments.config.meaning import check_meant, traced
from experiments.families import q
from siamrl import twins
from siamrl.losses import td
from siamrl.parameters import FRACTION, NOT_NEGATIVE, WHOLE, Parameter
from siamrl.types import Twin


@pytest.fixture(autouse=True)
def registered():
  """A rule and a form of targets, with parameters of their own."""
  registries = (twins.RULES, twins.PARAMETERS, td.TARGETS, td.TARGET_PARAMETERS)
  before = [copy.copy(registry) for registry in registries]

  def lazy(tau, laziness, every):
    del laziness, every
    return Twin(
      lambda online, target, step: optax.incremental_update(
        online, target, tau
      ),
      twins.born,
    )

  def blend(inputs, portion):
    return portion * inputs.r_t

  twins.register(
    'lazy',
    lazy,
    'soft, and lazy',
    period=1,
    laziness=Parameter(NOT_NEGATIVE, 'How lazy it is', default=0.5),
    every=Parameter(WHOLE, 'From one rest to the next', int, period=True),
  )
  td.register(
    'blend',
    blend,
    'a blend',
    portion=Parameter(
      FRACTION, 'Share of the reward', traced=False, default=0.25
    ),
  )
  yield
  for registry, kept in zip(registries, before, strict=True):
    registry.clear()
    registry.update(kept)


RULE = ('--target_update=lazy', '--tau=0.1', '--every=40')


def test_flags_and_their_meaning():
  sweep = reading.sweep_from_arguments(
    classic.ClassicConfig,
    *('--target_update=lazy,hard', '--tau=0.1', '--every=40'),
    '--laziness=1,2',
  )
  check_meant(sweep.configs)
  assert sweep.axes == {'target_update': ('lazy', 'hard'), 'laziness': (1, 2)}
  assert [c.laziness for c in sweep.configs] == [1, 2, None]
  assert {'laziness', 'every'} < set(traced(type(sweep.configs[0])))
  assert 'portion' not in traced(type(sweep.configs[0]))
  assert isinstance(sweep.configs[0], classic.ClassicConfig)


def test_values_and_those_not_given():
  (config,) = reading.sweep_from_arguments(
    classic.ClassicConfig, *RULE, '--target_form=blend'
  ).configs
  spec = q.twin_spec(config)
  # 40 env steps are 4 gradient steps.
  assert spec.parameters == {'tau': 0.1, 'laziness': 0.5, 'every': 4}
  assert targets.parameters(config) == {'portion': 0.25}
  numbers = twin_options.settings_of(spec)
  assert (numbers['laziness'], numbers['every']) == (0.5, 4)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--laziness=1'], '--laziness=1.0 must go with --target_update=lazy, not'),
    (['--portion=0.5'], '--portion=0.5 must go with --target_form=blend'),
    ([*RULE, '--laziness=-1'], '--laziness=-1.0 must be 0 or more'),
    ([*RULE, '--every=0'], '--every=0 must be positive'),
    (
      ['--target_update=lazzy'],
      '--target_update=lazzy must be one of .*, lazy, or a name that a --user',
    ),
    (
      ['--target_form=x'],
      '--target_form=x must be one of .*, munchausen, blend',
    ),
    (['--head=x'], '--head=x must be one of linear, .*that a --user_file adds'),
  ],
)
def test_what_is_refused(arguments, message):
  with pytest.raises(UsageError, match=message):
    check_meant(
      reading.sweep_from_arguments(classic.ClassicConfig, *arguments).configs
    )


def test_a_name_that_another_option_has(capsys):
  td.register(
    'odd',
    lambda inputs, seed: inputs.r_t,
    'odd',
    seed=Parameter(NOT_NEGATIVE, 'Odd'),
  )
  code = executing.execute(classic.ClassicConfig, '', print, [], lists=True)
  assert code == 1
  assert capsys.readouterr().err == (
    'error: --seed: no parameter of what is registered can have this name, '
    'which is that of another option\n'
  )


def test_help_has_them_where_they_belong():
  text = help.help_text(lab.LabConfig, '', lists=True)
  twin = text[text.index('The twin:') : text.index('The problem:')]
  assert '        lazy: soft, and lazy\n' in twin
  assert (
    '  --laziness  (default: 0.5)\n'
    '      How lazy it is; 0 or more. Only with --target_update=lazy.\n'
  ) in twin
  assert '--portion' not in text
