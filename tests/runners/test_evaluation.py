"""Evaluation: which episodes count, and what the policy is asked."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl.agents.q import make_q_agent
from siamrl import schedule
from siamrl.envs import tabular
from siamrl.networks.q_network import mlp_network
from siamrl.runners import evaluation, host
from tests import probes

# Episodes of one step and no reward, or of ten steps and a reward at each.
UNEVEN = probes.tables_of(
  [[0.0]] + [[1.0]] * 10,
  [[probes.END], *[[s] for s in range(2, 11)], [probes.END]],
  starts=(0, 1),
)


def _zeros(params, obs, key, step, epsilon):
  return np.zeros(len(obs), np.int32)


def _evaluate(tables, num_envs, *, seed=0, act=_zeros, epsilon=0.0, **options):
  return list(
    evaluation.evaluate(
      act,
      None,
      probes.Probe(tables, num_envs, seed=seed),
      jax.random.key(0),
      epsilon,
      **options,
    )
  )


@pytest.mark.parametrize(
  'num_envs, episodes', [(1, 1), (1, 5), (3, 1), (3, 3), (3, 7), (4, 40)]
)
def test_number_of_episodes(num_envs, episodes):
  result = _evaluate(probes.terminated(3), num_envs, episodes=episodes)[-1]
  assert result.done
  assert result.returns == [3.0] * episodes
  assert result.lengths == [3] * episodes
  assert result.env_steps == 3 * num_envs * -(-episodes // num_envs)


def test_long_episodes_count_as_often_as_short_ones():
  """First come, first served would have it one in eleven."""
  results = [
    _evaluate(UNEVEN, 8, seed=seed, episodes=16)[-1] for seed in range(60)
  ]
  assert {len(result.returns) for result in results} == {16}
  returns = np.array([result.returns for result in results])
  assert set(returns.ravel()) == {0.0, 10.0}
  # Five standard deviations of a frequency over 960 episodes.
  assert np.mean(returns) == pytest.approx(5.0, abs=10 * 5 * 0.5 / 960**0.5)


@pytest.mark.parametrize(
  'num_envs, budget, taken, episodes',
  [
    (1, 2, 2, 0),
    (1, 3, 3, 1),
    (1, 100, 100, 33),
    (4, 100, 100, 4 * 8),
    (4, 98, 100, 4 * 8),
  ],
)
def test_budget_of_env_steps(num_envs, budget, taken, episodes):
  result = _evaluate(probes.terminated(3), num_envs, env_steps=budget)[-1]
  assert result.env_steps == taken
  assert result.returns == [3.0] * episodes


def test_truncated_episodes_count():
  result = _evaluate(probes.truncated(4), 2, episodes=3)[-1]
  assert result.returns == [4.0] * 3


def test_yields_on_the_way():
  results = _evaluate(probes.terminated(3), 2, env_steps=40, chunk_env_steps=8)
  assert [r.env_steps for r in results] == [8, 16, 24, 32, 40, 40]
  assert [len(r.returns) for r in results] == [2, 4, 8, 10, 12, 12]
  assert [r.done for r in results] == [False] * 5 + [True]


@pytest.mark.parametrize(
  'options', [{}, {'episodes': 1, 'env_steps': 1}, {'episodes': -1}]
)
def test_either_episodes_or_env_steps(options):
  with pytest.raises(ValueError, match='either'):
    _evaluate(probes.constant(), 1, **options)


def test_what_was_expected_is_kept_with_what_came_of_it():
  """Of episodes of three steps and a reward of 1 at each."""
  values = lambda params, obs: np.full(len(obs), 5.0, np.float32)
  *before, result = _evaluate(
    probes.terminated(3), 2, episodes=3, values=values
  )
  assert all(each.record is None for each in before)
  record = result.record
  assert record.values.shape == (6, 2)
  # The second environment has one episode to play.
  assert record.counted.T.tolist() == [[True] * 6, [True] * 3 + [False] * 3]
  assert record.terminated[:, 0].tolist() == [False, False, True] * 2
  config = host.LoopConfig(
    schedule.make_schedule(1, 1),
    total_env_steps=1,
    iteration_env_steps=1,
    warmup_env_steps=0,
    batch_size=1,
    epsilon=lambda step: 0.0,
    reward_scale=0.5,
  )
  row = host.overestimation(config, record, 0.5)
  # Halves: returns of 0.5, 0.75 and 0.875.
  assert row == {
    'panel/return_mc': pytest.approx(2.125 / 3),
    'panel/overestimation': pytest.approx(5 - 2.125 / 3),
    'panel/known_returns': pytest.approx(1.0),
  }
  # Cut after two steps: nothing of the second episode is known.
  record = record._replace(
    terminated=record.terminated & (np.arange(6) < 3)[:, None]
  )
  row = host.overestimation(config, record, 0.5)
  assert row['panel/known_returns'] == pytest.approx(6 / 9)
  assert row['panel/return_mc'] == pytest.approx(2.125 / 3)
  # A life lost at each step ends each return, if it is learned so.
  lost = record._replace(life_lost=np.ones_like(record.terminated))
  losing = dataclasses.replace(config, life_loss_terminates=True)
  row = host.overestimation(losing, lost, 0.5)
  assert row['panel/return_mc'] == pytest.approx(0.5)


def test_actions_that_are_not_finite_are_not_sent():
  act = lambda params, obs, *_: np.full((len(obs), 2), np.nan, np.float32)
  with pytest.raises(host.NonFiniteError, match='action of the evaluation'):
    _evaluate(probes.constant(), 1, act=act, episodes=1)


def test_what_the_policy_is_asked():
  asked, watched = [], []

  def act(params, obs, key, step, epsilon):
    asked.append((obs[:, 0].argmax(1).tolist(), int(step), float(epsilon)))
    return np.array([len(asked) % 2, 0], np.int32)

  tables = probes.tables_of([[1.0, 0.0]] * 2, [[1, 1], [probes.END] * 2])
  result = _evaluate(
    tables,
    2,
    act=act,
    epsilon=0.25,
    episodes=4,
    watch=lambda actions: watched.append(actions.tolist()),
  )[-1]
  assert asked == [([t % 2] * 2, 2 * t, 0.25) for t in range(4)]
  assert watched == [[1, 0], [0, 0]] * 2
  assert result.returns == [1.0, 2.0] * 2


AGENT = make_q_agent(mlp_network(2, sizes=()), probes.chain().observations[:1])


def _of_agent(epsilon, key=0):
  watched = []
  *_, result = evaluation.evaluate(
    host.make_act(AGENT),
    AGENT.init(jax.random.key(1)),
    probes.Probe(probes.chain(), 3, seed=2),
    jax.random.key(key),
    epsilon,
    episodes=30,
    watch=lambda actions: watched.append(actions.copy()),
  )
  return np.array(watched), result


def test_deterministic_and_without_epsilon_free_of_the_key():
  for left, right in (
    (_of_agent(0.0), _of_agent(0.0)),
    (_of_agent(0.5), _of_agent(0.5)),
    (_of_agent(0.0), _of_agent(0.0, key=1)),
  ):
    np.testing.assert_array_equal(left[0], right[0])
    assert left[1] == right[1]
  first, second = _of_agent(0.5)[0], _of_agent(0.5, key=1)[0]
  assert len(first) != len(second) or (first != second).any()


def test_play_side_by_side_and_keep_what_is_looked_at():
  """Of a process of two steps, from either state; then of a cut one."""
  forward = np.zeros((3, 1, 3))
  forward[[0, 1, 2], 0, [1, 2, 2]] = 1
  process = tabular.TabularMDP(
    rewards=np.array([[2.0], [3.0], [0.0]]),
    transitions=forward,
    terminal=np.array([False, False, True]),
    initial=np.array([0.5, 0.5, 0.0]),
  )
  environment = tabular.make_tabular(process)

  def act(obs, key):
    return jnp.zeros(len(obs), jnp.int32)

  def look(obs, step, running):
    return jnp.where(running, step.reward, 0)

  @functools.partial(jax.jit, static_argnames='most')
  def play(key, most):
    return evaluation.play(
      environment,
      act,
      key,
      episodes=20,
      most=most,
      look=look,
      record=jnp.full((most, 20), -1.0),
    )

  row, record = play(jax.random.key(0), 4)
  returns = np.asarray(record[:2]).sum(0)
  assert set(returns) == {3, 5}
  assert (record[2:] == -1).all()
  assert row['eval_return'] == pytest.approx(returns.mean())
  long = (returns == 5).mean()
  assert row['eval_episode_env_steps'] == pytest.approx(1 + long)
  assert row['eval_episodes_cut'] == 0
  row, record = play(jax.random.key(0), 1)
  assert row['eval_episodes_cut'] == 20 * long
  assert row['eval_episode_env_steps'] == 1
  assert (
    evaluation.play(environment, act, jax.random.key(0), episodes=2, most=3)[1]
    is None
  )
