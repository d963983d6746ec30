"""Published results: their files, and comparisons with runs."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.studies import published as files
from siamrl.report import published

NAMES = files.names()


def _source(tmp_path, rows, about=''):
  path = tmp_path / 'source.csv'
  path.write_text(rows)
  path.with_suffix('.toml').write_text(about)
  return published.read(path)


ROBOT = 'environment,env_steps,return_mean,return_sd,seeds\nAnt-v4,10,7,{},{}\n'


def _compared(tmp_path, runs, sd, seeds, about=''):
  source = _source(tmp_path, ROBOT.format(sd, seeds), about)
  return published.compare(source, np.array(runs), source.rows[0])


def test_intervals_are_those_of_the_runs_themselves(tmp_path):
  """SciPy sees the four published runs; we see their mean and deviation."""
  found = _compared(tmp_path, [8.0, 10.0, 12.0], math.sqrt(2 / 3), 4)
  test = stats.ttest_ind([8, 10, 12], [6, 7, 7, 8], equal_var=False)
  low, high = test.confidence_interval()
  np.testing.assert_allclose(found.difference, (3, low, high))
  # t is 4.3027 at two degrees of freedom, and 3.1824 at three.
  np.testing.assert_allclose(
    found.ours, (10, 10 - 4.3027 * 2 / 3**0.5, 10 + 4.3027 * 2 / 3**0.5), 1e-4
  )
  half = 3.1824 * (2 / 3) ** 0.5 / 2
  np.testing.assert_allclose(found.theirs, (7, 7 - half, 7 + half), 1e-4)
  assert (found.runs, found.spread_known) == (3, True)


def test_a_deviation_of_the_population_is_corrected(tmp_path):
  """Of 6, 7, 7 and 8 it is the root of 1 / 2."""
  runs = [8.0, 10.0, 12.0]
  sample = _compared(tmp_path, runs, math.sqrt(2 / 3), 4)
  corrected = _compared(tmp_path, runs, math.sqrt(1 / 2), 4, 'sd="population"')
  np.testing.assert_allclose(corrected.difference, sample.difference)


@pytest.mark.parametrize('sd, seeds', [('', 4), (1, ''), (1, 1)])
def test_without_a_published_spread_ours_is_alone(tmp_path, sd, seeds):
  found = _compared(tmp_path, [8.0, 10.0, 12.0, math.nan], sd, seeds)
  assert not found.spread_known
  assert found.runs == 3
  half = 4.3027 * 2 / 3**0.5
  np.testing.assert_allclose(found.difference, (3, 3 - half, 3 + half), 1e-4)
  assert math.isnan(found.theirs[1])


def test_one_seed_has_no_interval(tmp_path):
  found = _compared(tmp_path, [8.0], 1, 4)
  assert found.difference[0] == 1
  assert np.isnan(found.difference[1:]).all()


@pytest.mark.parametrize(
  'time, window, episodes, expected',
  [
    (4, 2, [1, 1, 1, 3], (3 * 1 + 40 * 3) / 4),
    (4, 2, None, (3 + 40) / 2),
    (3, 3, None, (1 + 3) / 2),  # the second row has no return
    (4, 2, [1, 1, 0, 0], math.nan),
    (3.5, 0, None, 21.5),
    (2, 0, None, 2),
    (4.5, 0, None, math.nan),
  ],
)
def test_a_return_is_averaged_as_the_source_does(
  time, window, episodes, expected
):
  clock, values = np.arange(1.0, 5), np.array([1.0, math.nan, 3, 40])
  weights = None if episodes is None else np.array(episodes)
  found = published.value_at(clock, values, weights, time, window)
  np.testing.assert_equal(found, expected)


GAME = 'agent,game,frames_millions,return_mean\nDQN,pong,1,7\nC51,pong,2,8\n'
ABOUT = """
unknown = ["noop_max"]
[protocol]
column = "train_return"
sticky_action_probability = 0.25
eval_epsilon = 0.001
[protocol.game]
full_action_set = false
[protocol.environment]
frame_skip = 1
[agents.DQN]
match = [{agent = "dqn", n_step = 1}, {arm = "plain"}]
[agents.C51]
match = [{agent = "c51", n_step = 3, head = "dueling"}]
protocol = {sticky_action_probability = 0}
"""
KNOWN = {
  'column': 'train_return',
  'sticky_action_probability': '0.25',
  'full_action_set': 'false',
}


@pytest.mark.parametrize(
  'row, changed, expected',
  [
    (0, {}, []),
    (0, {'sticky_action_probability': '0.250'}, []),
    (
      0,
      {'sticky_action_probability': '0.0'},
      [('sticky_action_probability', '0.0', '0.25')],
    ),
    (0, {'full_action_set': 'true'}, [('full_action_set', 'true', 'false')]),
    # An epsilon of evaluation matters where one side evaluates.
    (
      0,
      {'column': 'eval_return', 'eval_epsilon': '0'},
      [
        ('column', 'eval_return', 'train_return'),
        ('eval_epsilon', '0', '0.001'),
      ],
    ),
    (0, {'eval_epsilon': '0'}, []),
    (0, {'noop_max': '30'}, [('noop_max', '30', None)]),
    (1, {}, [('sticky_action_probability', '0.25', '0')]),
  ],
)
def test_protocols_are_compared_field_by_field(
  tmp_path, row, changed, expected
):
  source = _source(tmp_path, GAME, ABOUT)
  found = published.differences(source, source.rows[row], KNOWN | changed)
  assert found == expected


def test_what_runs_do_not_record_is_said(tmp_path):
  source = _source(tmp_path, GAME, ABOUT)
  flags = {'column': 'train_return', 'full_action_set': 'false'}
  found = published.differences(source, source.rows[0], flags)
  assert found == [('sticky_action_probability', None, '0.25')]


def test_versions_of_environments_differ(tmp_path):
  source = _source(tmp_path, ROBOT.format(1, 3))
  flags = {'environment_version': 'v5'}
  assert published.differences(source, source.rows[0], flags) == [
    ('environment_version', 'v5', 'v4')
  ]


@pytest.mark.parametrize(
  'flags, agents',
  [
    ({'agent': 'dqn', 'n_step': '1'}, ['DQN']),
    ({'agent': 'dqn'}, ['DQN']),
    ({'agent': 'dqn', 'n_step': '3'}, []),
    ({'agent': 'c51'}, []),
    ({'agent': 'c51', 'n_step': '3'}, ['C51']),
    ({'arm': 'plain', 'n_step': '3'}, ['DQN']),
    ({'n_step': '1'}, []),
  ],
)
def test_agents_are_found_by_their_flags(tmp_path, flags, agents):
  assert _source(tmp_path, GAME, ABOUT).matching(flags) == agents


@pytest.mark.parametrize(
  'task, found',
  [
    ('space_invaders', True),
    ('SpaceInvaders-v5', True),
    ('own:SpaceInvaders-v5', True),
    ('invaders', False),
  ],
)
def test_spelling_and_versions_of_tasks_are_ignored(tmp_path, task, found):
  rows = 'game,frames_millions,return_mean\nspaceinvaders,1,7\n'
  assert bool(_source(tmp_path, rows).of_task('game', task)) == found
  assert not _source(tmp_path, rows).of_task('environment', task)


@pytest.mark.parametrize(
  'rows, message',
  [
    ('', 'must have the columns'),
    ('game,return_mean\npong,1\n', 'must have the columns'),
    ('game,env_steps,return_mean\npong,1,x\n', 'row 1: could not convert'),
    ('game,env_steps,return_mean\npong\n', 'row 1'),
    ('game,env_steps,return_mean\npong,1,nan\n', 'row 1: nan at 1'),
    ('game,env_steps,return_mean\n,1,2\n', 'row 1: no game or environment'),
  ],
)
def test_damaged_files_are_refused(tmp_path, rows, message):
  with pytest.raises(ValueError, match=message):
    _source(tmp_path, rows)


def test_a_damaged_description_is_refused(tmp_path):
  with pytest.raises(ValueError, match='source.toml: '):
    _source(tmp_path, GAME, 'sd = ')


def test_curves_end_one_point_after_the_runs(tmp_path):
  rows = 'game,frames_millions,return_mean,return_sd\n' + ''.join(
    f'pong,{n},{n},0.5\n' for n in range(1, 6)
  )
  source = _source(tmp_path, rows)
  (curve,) = published.curves(source, source.rows, 'theirs', 2.5e6)
  np.testing.assert_array_equal(curve.x, [1e6, 2e6, 3e6])
  np.testing.assert_array_equal(curve.spread, [0.5] * 3)
  assert curve.label == 'theirs'


@pytest.mark.parametrize('name', NAMES)
def test_shipped_files_are_whole(name):
  """Each row has a described agent, and each agent a row."""
  source = files.shipped(name)
  about = source.about
  for entry in ('title', 'citation', 'repository', 'commit', 'license'):
    assert about[entry]
  assert about['paths']
  assert about['sd'] in ('sample', 'population', 'unknown')
  if 'holds' in about:
    return
  assert set(source.agents) == set(about['agents'])
  assert all(math.isfinite(row.mean) for row in source.rows)
  keys = [(r.agent, r.kind, r.task, r.time) for r in source.rows]
  assert len(set(keys)) == len(keys)


def test_shipped_files_are_small():
  assert sum(path.stat().st_size for path in files.FOLDER.iterdir()) < 600_000


def test_kinds_of_deviations_are_as_stated():
  """Two files have Dopamine's DQN, one with each kind of deviation."""
  population, sample = (
    {
      (row.task, row.time): (row.mean, source.sample_sd(row))
      for row in source.rows
      if row.agent == 'DQN'
    }
    for source in map(files.shipped, ('dopamine_dqn', 'dopamine_cnn'))
  )
  shared = population.keys() & sample.keys()
  assert len(shared) > 400
  for key in shared:
    # Both are rounded to two digits.
    assert population[key] == pytest.approx(sample[key], abs=0.0113)
