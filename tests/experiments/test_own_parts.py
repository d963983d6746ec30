"""A file of a user's own brings a rule, an agent and a network."""

import json
import math

import pytest

from siamrl.report.run_folder import RunFolder
from tests.experiments.launching import (
  SMALL_SWEEP,
  columns,
  killed,
  launch,
  start,
)

MINE = '''
"""A rule that follows the TD error, an agent of small values, a network."""

import jax.numpy as jnp
import optax
from flax import linen as nn

from siamrl import twins
from siamrl.agents import registry
from siamrl.agents.q import make_q_agent
from siamrl.networks import torsos
from siamrl.parameters import NOT_NEGATIVE, WHOLE, Parameter
from siamrl.types import Twin


def cautious(tau, caution):
  def update(online, target, gradient_steps, report):
    rate = tau / (1 + caution * report['td_error_abs'])
    return optax.incremental_update(online, target, rate)

  return Twin(update, twins.born, clock=twins.soft(tau), reads_report=True)


def distant(tau, distance):
  return twins.soft(tau / (1 + distance))


def modest(network, example_obs, *, modesty, param_dtype):
  """DQN whose values are kept small."""
  base = make_q_agent(network, example_obs, param_dtype=param_dtype)

  def loss(online_params, *arguments, **keywords):
    value, metrics = base.loss(online_params, *arguments, **keywords)
    value += modesty * jnp.mean(metrics['q_tm1'] ** 2)
    return value, metrics | {'loss': value}

  return base._replace(loss=loss)


class Features(nn.Module):
  width: int

  @nn.compact
  def __call__(self, obs):
    return nn.tanh(nn.Dense(self.width)(obs.reshape(obs.shape[0], -1)))


twins.register(
  'cautious', cautious, 'soft, slower where TD errors are large', period=1,
  caution=Parameter(NOT_NEGATIVE, 'Weight of the TD error', default=1.0),
)
twins.register(
  'distant', distant, 'soft, and slower', period=1,
  distance=Parameter(NOT_NEGATIVE, 'How much slower', default=1.0),
)
registry.register(
  'modest', modest, 'small values',
  modesty=Parameter(NOT_NEGATIVE, 'Weight of squared values', default=0.0),
)
torsos.register(
  'features', Features, 'one layer of tanh',
  width=Parameter(WHOLE, 'Units of the layer', int, default=8),
)
'''
OWN = (
  '--agent=modest',
  '--network=features',
  '--target_update=cautious',
  '--tau=0.1',
)
HOST = (
  '--platform=cpu',
  '--env_steps=400',
  '--iteration_env_steps=200',
  '--num_envs=1',
  '--train_period=4',
  '--min_replay=64',
  '--replay_capacity=300',
  '--batch_size=8',
  '--epsilon_decay=200',
  '--eval_episodes=0',
)


@pytest.fixture
def mine(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(MINE)
  return f'--user_file={path}'


@pytest.mark.slow
def test_a_compiled_sweep_over_an_agents_parameter(mine, tmp_path):
  """Without modesty, and with the default width, it is DQN."""
  launch(
    mine,
    *SMALL_SWEEP,
    *OWN,
    '--modesty=0,0.5',
    '--also=--agent=dqn --td_loss=huber',
    '--panel_period=1',
    '--probe_size=8',
    f'--run_dir={tmp_path}/swept',
    launcher='experiments.classic',
  )
  swept = columns(tmp_path / 'swept')
  settings = zip(swept['agent'], map(str, swept['modesty']), strict=True)
  last = dict(zip(settings, swept['loss'], strict=True))
  assert last.keys() == {
    ('modest', '0.0'),
    ('modest', '0.5'),
    ('dqn', 'nan'),
  }
  assert last['modest', '0.0'] == pytest.approx(last['dqn', 'nan'], rel=1e-4)
  assert last['modest', '0.5'] > last['modest', '0.0']
  assert all(map(math.isfinite, swept['panel/twin_distance']))


@pytest.mark.slow
def test_from_a_data_set(mine, tmp_path):
  """The launcher lacks options that other launchers' conditions look at."""
  launch(
    mine,
    '--platform=cpu',
    '--environment=chain',
    '--collect_env_steps=400',
    '--iterations=2',
    '--target_period=20',
    '--agent=modest',
    '--network=features',
    f'--run_dir={tmp_path}/run',
    launcher='experiments.offline',
  )
  assert len(columns(tmp_path / 'run')['loss']) == 2


@pytest.mark.slow
def test_killed_on_the_host_it_goes_on(mine, tmp_path):
  def arguments(name):
    return (mine, *HOST, *OWN, '--modesty=0.5', f'--run_dir={tmp_path}/{name}')

  launch(*arguments('whole'), launcher='experiments.gym')
  killed(
    *arguments('parts'),
    '--checkpoint_period_s=0.001',
    sabotage=('experiments.engines.host:_Run._save', 1),
    launcher='experiments.gym',
  )
  flags = RunFolder(tmp_path / 'parts').flags
  assert mine in flags.read_text()
  launch(f'--flagfile={flags}', launcher='experiments.gym')
  whole, parts = (columns(tmp_path / name) for name in ('whole', 'parts'))
  assert repr(whole) == repr(parts)


def test_its_options_are_explained_and_refused(mine, tmp_path):
  told = launch(
    mine,
    '--agent=modest',
    '--td_loss=squared',
    '--width=4',
    code=2,
    launcher='experiments.gym',
  )
  assert '--width=4 must go with --network=features' in told
  told = launch(mine, '--modesty=1', code=2, launcher='experiments.gym')
  assert '--modesty=1.0 must go with --agent=modest' in told
  told = launch(
    mine,
    '--agent=modest',
    '--target_form=max',
    code=2,
    launcher='experiments.gym',
  )
  assert '--target_form=max must go with --agent=dqn, double_dqn, c51' in told


def test_the_lab_takes_a_rule(mine, tmp_path):
  def found(*arguments):
    process = start(
      mine,
      '--problem=baird',
      '--gradient_steps=20',
      f'--run_dir={tmp_path}/lab',
      '--overwrite',
      *arguments,
      launcher='experiments.lab',
    )
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])

  distant = found('--target_update=distant', '--tau=0.2')
  soft = found('--target_update=soft', '--tau=0.1')
  own = ('target_update', 'tau', 'distance')
  assert [distant.pop(name) for name in own] == ['distant', 0.2, 1.0]
  assert distant == {key: x for key, x in soft.items() if key not in own}
  settings = json.loads((tmp_path / 'lab' / 'config.json').read_text())
  assert settings['user_file'] == mine.partition('=')[2]
