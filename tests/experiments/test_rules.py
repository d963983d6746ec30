"""Every rule and every form of target, by name, in the compiled launchers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import classic
from experiments.config import (
  collecting as collect_options,
  declaring,
  meaning,
  reading,
  twin as twin_options,
)
from experiments.engines import sweeps
from experiments.families import q
from siamrl import twins
from siamrl.losses import td
from tests.experiments.launching import CATCH as SMALL, OF_FORMS, OF_RULES
from tests.parameters import OF_EACH_KIND, OF_VALUES, of_each_kind, slow_but

GIVEN = OF_RULES | OF_FORMS


def _sweep(*arguments):
  sweep = reading.sweep_from_arguments(
    classic.ClassicConfig, *SMALL, *arguments
  )
  meaning.check_meant(sweep.configs)
  for config in sweep.configs:
    q.check(config)
  return sweep


def _rule(name):
  takes = twins.takes(name, GIVEN['target_paths'])
  return (
    f'--target_update={name}',
    *(f'--{key}={GIVEN[key]}' for key in takes if key in GIVEN),
  )


def _rows(sweep, iterations=2):
  """Trains the first run of a sweep."""
  tasks = {config: classic.make_task(config) for config in sweep.configs}
  (group,) = sweeps.make_groups(sweep, tasks, q.FAMILY)
  settings = group.runs[0].settings
  iterate = jax.jit(group.loop.iterate)
  state, rows = jax.jit(group.loop.start)(settings, jax.random.key(0)), []
  for iteration in range(iterations):
    state, row = iterate(settings, state, iteration)
    rows.append(jax.device_get(row))
  return rows


def _loop(config):
  """The loop of a run."""
  return q.make_loop(config, classic.make_task(config))


def _columns(sweep):
  """The columns of the first run of a sweep; nothing is compiled."""
  tasks = {config: classic.make_task(config) for config in sweep.configs}
  (group,) = sweeps.make_groups(sweep, tasks, q.FAMILY)
  settings = group.runs[0].settings
  state = jax.eval_shape(group.loop.start, settings, jax.random.key(0))
  after, row = jax.eval_shape(group.loop.iterate, settings, state, 0)
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
  return row


@pytest.mark.parametrize('name', of_each_kind(twins.RULES))
def test_every_rule_fits_the_compiled_loop(name):
  row = _columns(_sweep(*_rule(name), '--panel_period=1', '--probe_size=8'))
  assert {'loss', 'panel/twin_age', 'panel/target_drift'} < set(row)
  assert not {name for name in row if 'distribution' in name}


@pytest.mark.parametrize(
  'agent',
  [
    *('dqn', 'iqn'),
    pytest.param('c51', marks=pytest.mark.slow),
    pytest.param('qrdqn', marks=pytest.mark.slow),
  ],
)
def test_the_churn_term_fits_every_agent(agent):
  row = _columns(
    _sweep(
      *(f'--agent={agent}', '--churn_weight=0.5'),
      *('--panel_period=1', '--probe_size=8'),
    )
  )
  assert {'churn_term', 'panel/target_churn_train'} <= set(row)


def _pairs(*agents):
  """Rules with agents; a rule of each kind is quick with the first of them."""
  return slow_but(
    lambda case: (
      case[0] in OF_EACH_KIND and case[1] == agents[0] or case[0] == 'averaged'
    ),
    [
      (name, agent)
      for name in twins.RULES
      for agent in agents
      if agent == 'dqn' or name not in OF_VALUES
    ],
  )


@pytest.mark.parametrize('name, agent', _pairs('dqn', 'c51', 'qrdqn'))
def test_every_rule_fits_minto(name, agent):
  assert 'loss' in _columns(
    _sweep(*_rule(name), f'--agent={agent}', '--target_form=minto')
  )


@pytest.mark.parametrize('name, agent', _pairs('c51', 'qrdqn', 'iqn'))
def test_every_rule_fits_agents_of_distributions(name, agent):
  row = _columns(
    _sweep(
      *_rule(name),
      *(f'--agent={agent}', '--target_form=double'),
      *('--panel_period=1', '--probe_size=8'),
    )
  )
  assert {'panel/distribution_std', 'panel/distribution_distance'} < set(row)


@pytest.mark.slow
@pytest.mark.parametrize('form', ['max', 'munchausen'])
def test_implicit_quantiles_train_beside_their_panel(form):
  rows = _rows(
    _sweep(
      *('--agent=iqn', f'--target_form={form}'),
      *(f'--{key}={GIVEN[key]}' for key in td.TARGETS[form].takes),
      *('--fractions=4', '--target_fractions=5', '--acting_fractions=3'),
      *('--panel_period=1', '--probe_size=8'),
    )
  )
  assert np.isfinite(rows[-1]['loss'])
  assert rows[-1]['panel/distribution_std'] > 0
  assert np.isfinite(rows[-1]['panel/dormant_0/head_embedding'])


@pytest.mark.parametrize(
  'name', ['frozen', pytest.param('chain', marks=pytest.mark.slow)]
)
def test_rules_train_beside_their_panel(name):
  rows = _rows(_sweep(*_rule(name), '--panel_period=1', '--probe_size=8'))
  assert rows[-1]['gradient_steps'] == 35
  assert np.isfinite(rows[-1]['loss'])
  # Looked at in the second iteration, of 20 rounds, after the fifth.
  assert np.isfinite(rows[-1]['panel/target_drift'])
  if name == 'frozen':
    assert rows[-1]['panel/twin_age'] == 20 - 5 + 5


# A twin that is the online network, and one that stays what it was.
_ALIKE = ('--target_update=hard', '--target_period=2')
_FROZEN = ('--target_update=frozen', '--epsilon_start=0', '--epsilon_end=0')


@pytest.mark.slow
@pytest.mark.parametrize('agent', ['dqn', 'c51'])
def test_a_twin_that_acts_is_evaluated_too(agent):
  def rows(act_with, rate, rule):
    return _rows(
      _sweep(
        *(f'--agent={agent}', f'--act_with={act_with}', *rule),
        *('--eval_episodes=5', f'--learning_rate={rate}'),
      )
    )

  # Moved at every gradient step, it does what the online network would do.
  online, target = (rows(who, 0.1, _ALIKE) for who in ('online', 'target'))
  np.testing.assert_equal(online, target)  # takes nan for nan
  # What a frozen twin does does not depend on what is learned.
  frozen = {
    who: [rows(who, rate, _FROZEN) for rate in (1e-6, 1.0)]
    for who in ('online', 'target')
  }
  played = {
    who: [[(r['train_return'], r['eval_return']) for r in run] for run in runs]
    for who, runs in frozen.items()
  }
  assert played['target'][0] == played['target'][1] != played['online'][1]
  assert played['online'][0] != played['online'][1]
  slow, fast = frozen['target']
  assert slow[-1]['loss'] != fast[-1]['loss']


def test_shadows_are_as_old_as_each_run_of_a_sweep():
  sweep = _sweep(
    '--target_period=4,20',
    '--panel_period=1',
    '--probe_size=8',
    '--shadows=hard',
  )
  tasks = {config: classic.make_task(config) for config in sweep.configs}
  (group,) = sweeps.make_groups(sweep, tasks, q.FAMILY)
  start, iterate = jax.jit(group.loop.start), jax.jit(group.loop.iterate)
  for run in group.runs:
    state = start(run.settings, jax.random.key(0))
    for iteration in range(2):
      state, row = iterate(run.settings, state, iteration)
      # The rule in use is hard, too.
      assert row['panel/shadow_gap/hard'] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
  'arguments, age',
  [
    # 20 env steps are 10 gradient steps.
    (('--target_update=hard',), 4.5),
    # Of the last three copies the newest is 0 to 9 steps old.
    (('--target_update=averaged', '--target_count=3'), 14.5),
    (('--target_update=soft', '--tau=0.25'), 3.0),
    (('--target_update=periodic_soft', '--tau=0.25'), 34.5),
    # Rules without an age count as hard.
    (('--target_update=self',), 4.5),
    (('--target_update=residual',), 4.5),
    (('--target_update=frozen',), 4.5),
  ],
)
def test_mean_ages(arguments, age):
  (config,) = _sweep('--target_period_unit=env_steps', *arguments).configs
  units, spec = (
    collect_options.speeds(config),
    collect_options.twin_spec(config),
  )
  assert twin_options.mean_age(config, units, spec) == age
  traced = twin_options.traced(spec, twin_options.settings_of(spec))
  assert twin_options.mean_age(config, units, traced) == age


def test_a_twin_is_described_with_its_clock():
  (config,) = _sweep(
    *('--target_period_unit=env_steps', '--count_warmup'),
    *('--target_order=before', '--target_init=fresh', '--reset_optimizer'),
  ).configs
  spec = collect_options.twin_spec(config)
  # A warm-up of 10 env steps is 5 gradient steps.
  assert spec == ('hard', {}, 10, 5, 'before', 'fresh', True)
  settings = twin_options.settings_of(spec)
  given = {name: x for name, x in settings.items() if not np.isnan(x)}
  assert given == {'sync': 10, 'sync_offset': 5}
  assert {value.dtype for value in given.values()} == {np.dtype(np.int32)}
  assert twin_options.traced(spec, settings) == spec
  changed = twin_options.traced(spec, {'sync': 7, 'sync_offset': 1})
  assert changed == spec._replace(sync=7, offset=1)
  loop = _loop(config)
  setup = loop.make_setup(q.settings_of(config))
  assert setup.learner.clocked[1:] == spec[2:]


def test_what_is_traced_of_a_rule_replaces_its_numbers_and_nothing_else():
  (config,) = _sweep(*_rule('by_path')).configs
  spec = collect_options.twin_spec(config)
  settings = twin_options.settings_of(spec)
  assert 'target_paths' not in settings
  assert settings['tau'] == GIVEN['tau']
  changed = twin_options.traced(spec, settings | {'tau': 0.125})
  assert changed.parameters == dict(spec.parameters) | {'tau': 0.125}


@pytest.mark.parametrize('name', td.TARGETS)
def test_every_form_fits_the_compiled_loop(name):
  given = (f'--{key}={GIVEN[key]}' for key in td.TARGETS[name].takes)
  assert 'loss' in _columns(_sweep(f'--target_form={name}', *given))


def test_periods_of_rules_with_a_clock_of_their_own_are_converted():
  (config,) = _sweep(*_rule('chain'), '--target_period_unit=env_steps').configs
  values = collect_options.twin_spec(config).parameters
  # A gradient step every 2 env steps.
  assert values['target_period'] == 10
  assert values['target_sync_period'] == 5


def test_warmup_counts_where_it_is_asked_to():
  for arguments, offset in (((), 0), (('--count_warmup',), 5)):
    (config,) = _sweep(*arguments).configs
    assert collect_options.twin_spec(config).offset == offset
    assert q.settings_of(config)['sync_offset'] == offset


def test_a_schedule_lasts_as_long_as_the_run():
  (config,) = _sweep('--target_update=soft_cosine', '--tau=0.5').configs
  spec = collect_options.twin_spec(config)
  assert spec.parameters['target_schedule_steps'] == 35


def test_rules_and_forms_in_one_sweep():
  sweep = _sweep(
    '--target_update=hard,soft,self',
    '--tau=0.1,0.5',
    '--target_form=max,mellowmax',
    '--mellowmax_omega=1,5',
  )
  # (1 + 2 + 1) rules with their rates, (1 + 2) forms with their omegas.
  assert len(sweep.configs) == 12
  points = {tuple(point.values()) for point in sweep.points}
  assert len(points) == 12


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('--target_update=chain',), 'target_update=chain needs target_count'),
    (
      ('--twin_weight=1',),
      '--twin_weight=1.0 must go with --target_update=functional or proximal, '
      'not hard',
    ),
    (
      ('--mellowmax_omega=2',),
      '--mellowmax_omega=2.0 must go with --target_form=mellowmax',
    ),
    (
      _rule('chain') + ('--churn_weight=1',),
      '--churn_weight=1.0 must not be given with --target_update=chain, '
      'gradient_chain or iterated_heads',
    ),
    (
      ('--replay=prioritized', '--churn_weight=1'),
      '--churn_weight=1.0 must go with --replay=uniform, not prioritized',
    ),
    (
      _rule('gradient_chain') + ('--agent=c51',),
      '--target_update=gradient_chain needs an agent that learns values of '
      'discrete actions',
    ),
    (
      ('--min_replay=8', '--churn_weight=1'),
      '--min_replay=8 must be at least 10: --batch_size=4 and as many for '
      '--churn_weight',
    ),
    (('--target_form=soft',), 'target_form=soft needs soft_temperature'),
    (
      ('--agent=double_dqn', '--target_form=max'),
      'target_form=max is not the form of agent=double_dqn',
    ),
    (
      ('--agent=c51', '--target_form=expected', '--expected_epsilon=0.1'),
      'target_form=expected must be one of max, double, minto for agent=c51',
    ),
    (('--agent=c51', '--num_atoms=1'), '--num_atoms=1 must be a whole number'),
    (('--agent=c51', '--v_max=-10'), 'v_min=-10.0 must be below v_max=-10.0'),
    (('--agent=qrdqn', '--quantiles=0'), '--quantiles=0 must be positive'),
    (
      ('--agent=iqn', '--target_form=expected', '--expected_epsilon=0.1'),
      'target_form=expected must be max, double, soft, munchausen or minto for '
      'agent=iqn',
    ),
    (('--agent=iqn', '--cosines=0'), '--cosines=0 must be positive'),
    (('--fractions=5',), '--fractions=5 must go with --agent=iqn, not dqn'),
    (('--quantiles=5',), '--quantiles=5 must go with --agent=qrdqn, not dqn'),
    (
      ('--target_update=soft', '--tau=0.1', '--reset_optimizer'),
      '--reset_optimizer=true must go with --target_update=hard, periodic_soft',
    ),
    (
      ('--target_update=self', '--act_with=target'),
      '--act_with=target must not be given with --target_update=self',
    ),
    (
      ('--target_update=residual', '--act_with=target'),
      '--act_with=target must not be given with --target_update=self or '
      'residual',
    ),
    (
      ('--target_update=by_path', '--target_paths=head', '--tau=0.1'),
      '--target_paths=head must be such as torso:soft',
    ),
    (
      ('--target_update=chain', '--target_count=2', '--target_sync_period=7'),
      '--target_sync_period=7 env_steps must be a multiple of 2',
    ),
    (
      ('--replay=none', '--train_period=10', '--batch_size=4'),
      '--batch_size=4 must make whole epochs of the 10 env steps',
    ),
    (
      ('--replay=none', '--target_update=residual'),
      '--target_update=residual must not be residual, chain',
    ),
    (('--q_lambda=0.5,0.9',), '--q_lambda=0.5 must go with --replay=none'),
    (
      ('--replay=none', '--n_step=3'),
      '--n_step=3 must not be given with --replay=none',
    ),
    (('--shadows=self',), '--shadows=self must go with --panel_period=1'),
    (
      ('--panel_period=1', '--probe_size=100'),
      '--probe_size=100 must be at most 22, the transitions',
    ),
    (
      ('--target_update=self', '--target_init=fresh'),
      '--target_init=fresh must not be given with --target_update=self',
    ),
    (
      (
        '--target_update=by_path',
        '--target_paths=torso:hard+last:hard',
        '--count_warmup',
      ),
      '--count_warmup=true must go with --target_update=hard, periodic_soft',
    ),
    (
      ('--target_update=residual', '--target_form=inverse_double'),
      '--target_form=inverse_double must not be given with '
      '--target_update=residual',
    ),
    (
      ('--replay=none', '--train_period=10', '--batch_size=10')
      + ('--panel_period=1', '--probe_size=11'),
      '--probe_size=11 must be at most 10, the transitions',
    ),
    (
      ('--target_update=soft', '--tau=0.1', '--count_warmup'),
      '--count_warmup=true must go with --target_update=hard, periodic_soft',
    ),
    (
      ('--target_update=proximal', '--twin_weight=5'),
      '--twin_weight=5.0 must be below 1',
    ),
    (
      ('--target_update=soft_cosine', '--tau=1')
      + ('--target_schedule_steps=3000000000',),
      '--target_schedule_steps=3000000000 must be at most 2147483647',
    ),
  ],
)
def test_what_does_not_go_together(arguments, message):
  with pytest.raises(declaring.UsageError) as error:
    sweep = _sweep(*arguments)
    meaning.check_lists(sweep)
    tasks = {config: classic.make_task(config) for config in sweep.configs}
    groups = list(sweeps.make_groups(sweep, tasks, q.FAMILY))
    with declaring.usage_errors():
      sweeps.check_memory(groups, sweep.configs[0], 'cpu')
  assert message in str(error.value)


def test_paths_that_fit_no_parameter():
  sweep = _sweep(
    '--target_update=by_path', '--target_paths=tosro:soft+head:hard', '--tau=1'
  )
  with pytest.raises(ValueError, match='tosro.* matches no parameter'):
    _rows(sweep)
