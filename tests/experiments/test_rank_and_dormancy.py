"""The study of ranks and dormant units: its criteria, its rule, its columns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import rank_and_dormancy
from siamrl import diagnostics, twins
from siamrl.networks.activations import Activations
from siamrl.report.metrics import MetricsWriter, read_metrics


def _judge(tmp_path, ranks, slopes):
  """Claims about runs with these last ranks, and slopes of dormant units."""
  tmp_path.mkdir(exist_ok=True)
  path = tmp_path / 'metrics.csv'
  writer = MetricsWriter(path, None, step_column='gradient_steps')
  for arm, rank in ranks.items():
    for seed in range(5):
      for step in (20_000, 60_000, 100_000):
        rise = slopes.get(arm, 0.0) * step / 100_000
        row = {'arm': arm, 'seed': seed, 'gradient_steps': step}
        row['panel/srank'] = rank + seed if step == 100_000 else 99.0
        row['panel/dormant_0.025'] = 0.5 + 0.01 * seed + rise
        writer.write_rows([row])
  writer.close()
  return rank_and_dormancy.judge(read_metrics(path))


MET = {
  'control': 20.0,
  'evaluation': 30.0,
  'returns': 50.0,
  'fixed': 40.0,
  'redrawn': 60.0,
}


def test_criteria_of_ranks(tmp_path):
  claims = _judge(tmp_path, MET, {'fixed': -0.2, 'redrawn': 0.1})
  assert [claim.met for claim in claims] == [True] * 5
  assert '(52 against 32)' in claims[0].text
  assert '(52 against 22)' in claims[1].text
  assert claims[2].seen.startswith('0.2 more (')
  assert claims[3].seen.startswith('0.1 more (')
  assert claims[4].seen.startswith('0.3 more (')


def test_criteria_of_ranks_that_are_missed(tmp_path):
  level = dict.fromkeys(MET, 30.0)
  claims = _judge(tmp_path, level, {'fixed': 0.2, 'redrawn': 0.1})
  assert [claim.met for claim in claims] == [False, False, False, True, False]
  claims = _judge(tmp_path / 'b', level, {'fixed': -0.2, 'redrawn': -0.1})
  assert [claim.met for claim in claims][2:] == [True, False, True]
  claims = _judge(tmp_path / 'c', level, {})
  assert [claim.met for claim in claims] == [False] * 5


def test_the_study_of_ranks_needs_all_arms(tmp_path):
  with pytest.raises(ValueError, match='no run of redrawn'):
    _judge(tmp_path, {k: 1.0 for k in MET if k != 'redrawn'}, {})


def test_a_redrawn_twin_keeps_its_weights_but_not_their_places():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(twins, 'register', lambda *args: None)
    from experiments.studies.redrawing import redrawn

  rng = np.random.default_rng(0)
  first = {'kernel': rng.standard_normal((5, 7)), 'bias': np.zeros(3)}
  first = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), first)
  online = jax.tree.map(jnp.ones_like, first)
  update = redrawn().update
  second = update(online, first, 100)
  third = update(online, second, 200)
  for before, after in ((first, second), (second, third), (first, third)):
    assert (before['kernel'] != after['kernel']).mean() > 0.8
    np.testing.assert_array_equal(
      np.sort(before['kernel'], None), np.sort(after['kernel'], None)
    )
  np.testing.assert_array_equal(
    update(online, first, 100)['kernel'], second['kernel']
  )


def test_metrics_of_features_by_hand():
  layers = {
    'a': jnp.array([[0.0, 2.0], [0.0, 2.0]]),  # scores 0 and 2
    'b': jnp.array([[0.1, 1.9], [0.1, 1.9]]),  # scores 0.1 and 1.9
  }
  # Singular values 3 and 1: the first has 3 / 4 of the sum.
  features = jnp.array([[3.0, 0.0], [0.0, 1.0], [0.0, 5.0]])
  measure = functools.partial(
    diagnostics.feature_metrics, rank_states=2, thresholds=(0.05, 0.5)
  )
  metrics, of_layers = jax.jit(measure)(
    Activations(jnp.zeros((3, 1)), layers, features)
  )
  assert metrics['srank'] == 2
  entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
  np.testing.assert_allclose(metrics['effective_rank'], np.exp(entropy), 1e-6)
  assert (metrics['dormant_0.05'], metrics['dormant_0.5']) == (0.25, 0.5)
  assert of_layers['dormant_0.05'] == {'a': 0.5, 'b': 0.0}
