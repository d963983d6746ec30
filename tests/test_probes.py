"""The probes are what they claim: closed forms, protocol, determinism."""

import numpy as np
import pytest

from tests import probes
from tests.envs.turns import assert_calls_out_of_turn_raise

GAMMA = 0.8


@pytest.mark.parametrize(
  'tables, values',
  [
    (probes.constant(), [[1]]),
    (probes.observation(), [[-1], [1]]),
    (probes.delayed(), [[GAMMA], [1]]),
    (probes.action(), [[-1, 1]]),
    (probes.observation_action(), [[1, -1], [-1, 1]]),
    (probes.truncated(3), [[1 / (1 - GAMMA)]]),
    (
      probes.truncated_far_from_start(),
      [[GAMMA / (1 - GAMMA)], [1 / (1 - GAMMA)]],
    ),
    (probes.terminated(3), [[1 + GAMMA + GAMMA**2], [1 + GAMMA], [1]]),
    (probes.losing_lives(), [[1 / (1 - GAMMA)]] * 2),
  ],
)
def test_values_in_closed_form(tables, values):
  np.testing.assert_allclose(tables.q_values(GAMMA), values, rtol=1e-12)


def test_value_of_lives_that_cut_the_bootstrap():
  values = probes.losing_lives().q_values(GAMMA, life_loss_terminates=True)
  np.testing.assert_allclose(values, [[1 + GAMMA], [1]])


def test_value_of_the_chain_is_what_playing_it_returns():
  """Monte Carlo over the greedy policy, against value iteration."""
  tables = probes.chain()
  tables = probes.Tables(
    tables.rewards, tables.successors, tables.starts, tables.slip
  )
  q = tables.q_values(0.9)
  probe = probes.Probe(tables, 2_000, seed=0)
  obs = probe.reset()
  values = q.max(1)[obs[:, 0].argmax(1)]
  returns, weight = np.zeros(2_000), np.ones(2_000)
  for _ in range(100):
    probe.send(q.argmax(1)[obs[:, 0].argmax(1)].astype(np.int32))
    step = probe.recv()
    returns += weight * step.reward
    weight *= 0.9 * ~step.terminated
    obs = step.obs
  assert np.mean(returns) == pytest.approx(np.mean(values), abs=0.02)


def test_truncation_and_termination_keep_the_final_observation():
  for tables, ends in (
    (probes.terminated(2), 'terminated'),
    (probes.truncated(2), 'truncated'),
  ):
    probe = probes.Probe(tables, 3, seed=0)
    probe.reset()
    for t in range(1, 7):
      probe.send(np.zeros(3, np.int32))
      step = probe.recv()
      assert getattr(step, ends).all() == (t % 2 == 0)
      assert not (step.terminated & step.truncated).any()
      assert (
        step.obs[:, 0, 0] == (tables.truncate_after > 0 or t % 2 == 0)
      ).all()
      assert (step.final_obs[:, 0, -1] == 1).all()


def test_order_of_calls_is_held():
  probe = probes.Probe(probes.constant(), seed=0)
  assert_calls_out_of_turn_raise(probe)
  with pytest.raises(RuntimeError, match='reset'):
    probe.reset()


def test_unknown_actions_are_refused():
  probe = probes.Probe(probes.constant(), seed=0)
  probe.reset()
  with pytest.raises(ValueError, match='actions='):
    probe.send(np.ones(1, np.int32))
