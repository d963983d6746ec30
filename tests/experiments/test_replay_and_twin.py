"""The criteria of the study of replay and the twin, on tables that are made."""

import itertools

import pytest

from experiments.studies import replay_and_twin
from siamrl.report.metrics import MetricsWriter, read_metrics

# Mnih et al. (2015), extended data table 3, in units of DQN's score.
PUBLISHED = {
  'breakout': {'replay self': 0.760, 'newest hard': 0.032, 'newest self': 0.01},
  'space_invaders': {
    'replay self': 0.759,
    'newest hard': 0.343,
    'newest self': 0.277,
  },
}


def _judge(tmp_path, scores, stressed=(1.0, 0.5), arms=('newest', 'stressed')):
  """Claims about runs whose last tenth has a score, in units of a game."""
  tmp_path.mkdir(exist_ok=True)
  path = tmp_path / 'metrics.csv'
  writer = MetricsWriter(path, None, step_column='env_steps')
  for game, unit in (('breakout', 8.0), ('space_invaders', 30.0)):
    of_game = scores[game] | {'replay hard': 1.0}
    of_game |= dict(
      zip(('stressed hard', 'stressed self'), stressed, strict=True)
    )
    for arm, rule in itertools.product(('replay', *arms), ('hard', 'self')):
      for seed in range(5):
        level = unit * (of_game[f'{arm} {rule}'] + 0.01 * (seed - 2))
        row = {'arm': arm, 'game': game, 'target_update': rule, 'seed': seed}
        for step, score in ((100, 0.0), (200, level)):
          writer.write_rows([row | {'env_steps': step, 'train_return': score}])
  writer.close()
  return replay_and_twin.judge(read_metrics(path))


def test_the_published_scores_meet_all_claims(tmp_path):
  claims = _judge(tmp_path, PUBLISHED)
  assert [claim.met for claim in claims] == [True] * 5
  assert '(0.188 against 1)' in claims[0].text
  assert '(0.144)' in claims[1].text and '(0.76)' in claims[2].text
  assert claims[3].seen.startswith('0.572 more (')
  assert '(1 against 0.5)' in claims[4].text


def test_each_claim_can_be_missed(tmp_path):
  level = {'replay self': 1.1, 'newest hard': 1.1, 'newest self': 1.0}
  claims = _judge(
    tmp_path, dict.fromkeys(PUBLISHED, level), stressed=(0.5, 0.5)
  )
  assert [claim.met for claim in claims] == [False] * 5


def test_replay_and_twin_needs_its_arms(tmp_path):
  with pytest.raises(ValueError, match='no run with newest, hard, breakout'):
    _judge(tmp_path, PUBLISHED, arms=('stressed',))
