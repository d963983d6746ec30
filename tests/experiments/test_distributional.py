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
