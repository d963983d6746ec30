"""Agreement with optimal values in launchers, and the study of it."""

import copy
import itertools

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import classic
from experiments.config import meaning, reading, users
from experiments.config.declaring import RunError, UsageError
from experiments.engines import compiled as compiled_engine, sweeps
from experiments.families import q
from experiments.studies import (
  agreement_figure,
  study as studies,
  twin_agreement,
)
from siamrl import diagnostics, twins
from siamrl.envs.catch import catch, catch_observations
from siamrl.envs.tabular import optimal_probe
from siamrl.report.metrics import MetricsWriter, read_metrics
from siamrl.report.results import write_results
from tests.experiments.launching import CATCH

SMALL = (*CATCH, '--panel_period=1', '--probe_size=8')


@pytest.fixture
def offered(monkeypatch):
  """The study's rule, for one test."""
  before = [copy.copy(held) for held in (twins.RULES, twins.PARAMETERS)]
  monkeypatch.setattr(users, '_known', set())
  users.load([f'--user_file={studies._FOLDER / "agreeing.py"}'])
  yield
  for held, kept in zip((twins.RULES, twins.PARAMETERS), before, strict=True):
    held.clear()
    held.update(kept)


def _group(*arguments):
  """The runs of one program, of which none is trained."""
  sweep = reading.sweep_from_arguments(
    classic.ClassicConfig, *SMALL, *arguments
  )
  meaning.check_meant(sweep.configs)
  for config in sweep.configs:
    q.check(config)
  tasks = {config: classic.make_task(config) for config in sweep.configs}
  (group,) = sweeps.make_groups(sweep, tasks, q.FAMILY)
  return group


def _rows(*arguments, iterations=2):
  """Trains the first run of a program."""
  group = _group(*arguments)
  settings = group.runs[0].settings
  state = jax.jit(group.loop.start)(settings, jax.random.key(0))
  iterate = jax.jit(group.loop.iterate)
  rows = []
  for iteration in range(iterations):
    state, row = iterate(settings, state, iteration)
    rows.append({name: float(value) for name, value in row.items()})
  return rows


def test_the_panel_gets_optimal_values_where_it_is_asked_to(monkeypatch):
  made = []
  monkeypatch.setattr(
    diagnostics, 'make_panel', lambda *_, known, **__: made.append(known)
  )
  obs, values = optimal_probe(catch(), 0.9, catch_observations())
  for flag in ('--agreement', '--noagreement'):
    group = _group(flag, '--discount=0.9')
    task = classic.make_task(group.config)
    q.make_setup(group.config, task, group.runs[0].settings)
  asked, unasked = made
  np.testing.assert_array_equal(asked(obs), values)
  assert unasked is None


@pytest.mark.slow
def test_agreement_is_measured_where_values_are_known():
  rows = _rows('--agreement', '--shadows=hard:10+frozen')
  # The period of 20 env steps is 10 gradient steps.
  for row in rows:
    assert -1 <= row['panel/agreement'] <= 1
    assert row['panel/agreement/hard:10'] == row['panel/agreement']
    assert row['panel/exact_error'] > 0
  assert rows[1]['panel/agreement/frozen'] != rows[1]['panel/agreement']


@pytest.mark.parametrize(
  'arguments, message',
  [
    (
      ('--agreement', '--environment=cartpole'),
      '--agreement=true must go with one of chain, ',
    ),
    (('--agreement', '--discount=1'), '--discount=1.0 must be below 1 with'),
    (
      ('--agreement', '--panel_period=0'),
      '--agreement=true must go with --panel_period=1 or more',
    ),
    (('--agreement', '--spr_steps=2'), '--spr_steps=2 must be 0 with'),
    (
      ('--agreement', '--agent=stream_q'),
      '--agreement=true must be given without --agent=',
    ),
    (('--shadows=hard:0',), '--shadows=hard:0 must be one or several of hard,'),
    (('--shadows=self+self',), '--shadows=self+self must be one or several'),
  ],
)
def test_bad_input(arguments, message):
  with pytest.raises(UsageError) as error:
    sweep = reading.sweep_from_arguments(
      classic.ClassicConfig, *SMALL, *arguments
    )
    meaning.check_meant(sweep.configs)
    for config in sweep.configs:
      q.check(config)
      classic.make_task(config)
  assert message in str(error.value)


FOLLOWS = (
  '--target_update=agreeing',
  '--known_process=catch',
  '--known_discount=0.9',
  '--target_period=10000',
)


@pytest.mark.slow
def test_a_run_follows_the_candidates_of_the_study(offered):
  # With as many candidates as one, it is that rule.
  found = _rows(*FOLLOWS, '--candidates=hard:10', '--agreement')
  alone = _rows('--agreement')
  for one, other in zip(found, alone, strict=True):
    assert one['chosen/hard:10'] == 1
    for name in ('loss', 'train_return', 'panel/agreement'):
      assert one[name] == other[name]


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('--candidates=hard+self',), '--candidates=hard+self must be such as'),
    (('--candidates=self+self',), '--candidates=self+self must be such as'),
    (('--candidates=chain',), '--candidates=chain must be such as hard:16'),
    (
      ('--candidates=self', '--known_process=pong'),
      '--known_process=pong must',
    ),
    (('--candidates=self', '--candidate_choice=all'), 'must be one of best'),
    (('--candidates=self', '--known_discount=1'), '--known_discount=1.0 must'),
  ],
)
def test_bad_candidates(offered, arguments, message):
  with pytest.raises(UsageError) as error:
    reading.from_arguments(classic.ClassicConfig, *FOLLOWS, *arguments)
  assert message in str(error.value)


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
  """A shorter bootstrap."""
  monkeypatch.setattr(twin_agreement, '_REPETITIONS', 500)


def _table(tmp_path, agreement, score, follower=2.0, chance=0.5, seeds=5):
  """Rows of two problems: functions of a rule's number, and of the problem."""
  path = tmp_path / 'metrics.csv'
  writer = MetricsWriter(path, None, step_column='env_steps')
  rng = np.random.default_rng(0)
  problems = ('catch', 'grid')
  names = [*twin_agreement.RULES, 'best', 'chance']
  for place, name in itertools.product(problems, names):
    rule, _, number = name.partition(':')
    follows = name in ('best', 'chance')
    point = {
      'arm': place if follows else rule,
      'environment': place,
      'target_update': None if rule in ('hard', 'soft') or follows else rule,
      'target_period': int(number) if rule == 'hard' else None,
      'tau': float(number) if rule == 'soft' else None,
      'candidate_choice': name if follows else None,
    }
    for seed, t in itertools.product(range(seeds), (1, 2)):
      if follows:
        height = {'best': follower, 'chance': chance}[name]
      else:
        height = score(names.index(name), place)
      own = agreement(min(names.index(name), 12), place)
      shadows = {
        f'panel/agreement/{each}': agreement(i, place)
        + 1e-3 * rng.standard_normal()
        for i, each in enumerate(twin_agreement.RULES)
        if name == twin_agreement.COMMON
      }
      writer.write_rows(
        [
          compiled_engine.cells(point)
          | {
            'seed': seed,
            'env_steps': 100 * t,
            'train_return': height + 1e-3 * rng.standard_normal(),
            'train_episodes': 100,
            'panel/agreement': own,
          }
          | dict.fromkeys(twin_agreement.COLUMNS[3:], np.nan)
          | shadows
        ]
      )
  writer.close()
  return read_metrics(path)


def _share(number):
  return number / (len(twin_agreement.RULES) - 1)


def test_criteria_that_are_met(tmp_path):
  table = _table(tmp_path, lambda i, _: _share(i), lambda i, _: _share(i) ** 2)
  claims = twin_agreement.judge(table)
  assert [claim.met for claim in claims] == [True] * 6
  assert claims[0].seen.startswith('rank correlation 1.00 (')
  assert 'catch: 1.00, grid: 1.00' in claims[0].seen
  assert 'catch: frozen, grid: frozen' in claims[3].text
  # The range of the scores is 1, with 100 episodes in 100 env steps.
  for claim, more in zip(claims[4:], (1.0, 1.5), strict=True):
    assert float(claim.seen.partition(' ')[0]) == pytest.approx(more, abs=0.01)


def test_criteria_that_are_missed(tmp_path):
  # What agrees best learns worst, and what chooses does not reach the best.
  table = _table(
    tmp_path,
    lambda i, _: _share(i),
    lambda i, _: -_share(i),
    follower=-0.1,
    chance=-0.1,
  )
  claims = twin_agreement.judge(table)
  assert [claim.met for claim in claims] == [False] * 6
  assert claims[0].seen.startswith('rank correlation -1.00 (')


def test_problems_that_contradict_each_other_decide_nothing(tmp_path):
  table = _table(
    tmp_path,
    lambda i, _: _share(i),
    lambda i, place: _share(i) if place == 'catch' else -_share(i),
  )
  claim = twin_agreement.judge(table)[0]
  assert claim.met is False
  assert 'catch: 1.00, grid: -1.00' in claim.seen


def test_the_study_needs_all_its_rules(tmp_path):
  table = _table(tmp_path, lambda i, _: _share(i), lambda i, _: _share(i))
  kept = table['candidate_choice'] != 'chance'
  with pytest.raises(ValueError, match='no run of chance on catch'):
    twin_agreement.judge({k: v[kept] for k, v in table.items()})


def test_the_score_is_reward_per_env_step(tmp_path):
  path = tmp_path / 'metrics.csv'
  writer = MetricsWriter(path, None, step_column='env_steps')
  for seed in (0, 1):
    for t, episodes, height in ((10, 0, np.nan), (20, 4, 0.5), (30, 1, 2.0)):
      row = {'seed': seed, 'env_steps': t, 'train_episodes': episodes}
      writer.write_rows([row | {'train_return': height}])
  writer.close()
  (setting,) = twin_agreement.settings_of(read_metrics(path))
  found = twin_agreement._score(setting)
  np.testing.assert_allclose(found, [4 / 30, 4 / 30])


def test_the_rank_correlation_is_spearmans():
  from scipy import stats

  rng = np.random.default_rng(1)
  one, other = rng.standard_normal((2, 7, 3))
  found = twin_agreement._rank_correlation(one, other)
  for column in range(3):
    expected = stats.spearmanr(one[:, column], other[:, column]).statistic
    assert found[column] == pytest.approx(expected)


def test_the_table_and_the_figure(tmp_path, capsys):
  table = _table(tmp_path, lambda i, _: _share(i), lambda i, _: _share(i))
  path = tmp_path / 'curves.csv'
  rows = [list(row) for row in zip(*table.values(), strict=True)]
  cells = [
    ['' if cell is None or cell != cell else str(cell) for cell in row]
    for row in rows
  ]
  write_results(path, cells, list(table), {})
  config = agreement_figure.FigureConfig(
    runs=str(path), output=str(tmp_path / 'drawn')
  )
  agreement_figure.main(config)
  said = capsys.readouterr().out.splitlines()
  assert said[0] == '| catch | score | agreement, common | agreement, own |'
  assert len(said) == 2 * (2 + 13 + 2 + 1)
  # The score of the last of 13 rules is 1, and so is its agreement.
  rule, *numbers = said[14].strip('| ').split(' | ')
  assert rule == 'frozen'
  for number in numbers:
    middle = float(number.partition(' ')[0])
    assert middle == pytest.approx(1, abs=0.002)
  with Image.open(tmp_path / 'drawn.png') as image:
    assert image.width > image.height
  with pytest.raises(RunError, match='--runs=.*gone.csv: '):
    agreement_figure.main(agreement_figure.FigureConfig(runs='gone.csv'))
  with pytest.raises(UsageError, match='--runs must be given'):
    agreement_figure.main(agreement_figure.FigureConfig())
