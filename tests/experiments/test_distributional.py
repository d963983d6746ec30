"""C51, QR-DQN and IQN in the launchers of discrete actions."""

import pytest

from experiments import atari, classic, gym, minatar, offline
from experiments.config import meaning, reading
from experiments.suites import ale, dataset, gym as gym_suite, jax_native


def _atari(config):
  return ale.Suite(config).network(config)


def _classic(config):
  return classic.make_task(config).network(3)


def _minatar(config):
  return minatar.make_task(config).network(6)


def _gym(config):
  return gym_suite.make_suite(config, discrete=True).network(config)


def _offline(config):
  return dataset.make_network(config, jax_native.make_task('chain'), None)


@pytest.mark.parametrize(
  'cls, network',
  [
    (atari.AtariConfig, _atari),
    (classic.ClassicConfig, _classic),
    (minatar.MinAtarConfig, _minatar),
    (gym.GymConfig, _gym),
    (offline.OfflineConfig, _offline),
  ],
)
def test_networks_have_the_outputs_of_the_agent(cls, network):
  for arguments, outputs in (
    ((), 1),
    (('--agent=c51',), 51),
    (('--agent=c51', '--num_atoms=7'), 7),
    (('--agent=qrdqn',), 200),
    (('--agent=qrdqn', '--quantiles=5'), 5),
    (('--agent=iqn',), 1),
  ):
    made = network(reading.from_arguments(cls, *arguments))
    assert made.head.outputs == outputs


@pytest.mark.parametrize(
  'arguments, dropped',
  [
    (('--agent=dqn', '--td_loss=squared'), True),
    (('--agent=dqn', '--td_loss=huber'), False),
    (('--agent=c51',), True),
    (('--agent=qrdqn', '--td_loss=squared'), False),
    (('--agent=iqn',), False),
  ],
)
def test_the_bound_of_errors_is_read_by_quantiles_too(arguments, dropped):
  config = reading.from_arguments(classic.ClassicConfig, *arguments)
  assert ('error_bound' in meaning.dropped(config)) == dropped
  assert ('td_loss' in meaning.dropped(config)) == (config.agent != 'dqn')


@pytest.mark.parametrize(
  'arguments, noted',
  [
    (['--agent=c51', '--v_max=5'], True),
    (['--agent=c51'], False),  # 10 of 100
    (['--agent=c51', '--discount=0.999'], True),  # 10 of 1,000
    (['--agent=c51', '--v_max=5', '--reward_clip=0'], False),
    (['--agent=c51', '--v_max=5', '--discount=1'], False),
    (['--agent=qrdqn', '--discount=0.999'], False),
  ],
)
def test_a_range_far_below_the_largest_return_is_noted(arguments, noted):
  config = reading.from_arguments(
    classic.ClassicConfig, '--reward_clip=1', *arguments
  )
  assert bool(config.notes()) == noted
