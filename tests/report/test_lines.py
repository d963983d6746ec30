"""Lines of an interactive page, against numbers computed by hand."""

import json

import numpy as np
import pytest

from siamrl.report import lines


def _table(**columns):
  """Rows of two seeds of two settings, three rows each."""
  number = 12
  table = {
    'tau': np.repeat([0.5, 0.1], 6),
    'seed': np.tile(np.repeat([0, 1], 3), 2),
    'iteration': np.tile([0, 1, 2], 4),
    'env_steps': np.tile([10, 20, 30], 4),
    'train_return': np.arange(number, dtype=float),
    'folder': np.full(number, 'runs/a'),
  }
  table |= columns
  # Settings stand before the seed, as in a loaded table.
  first = [n for n in columns if n in ('environment', 'rule')]
  return {n: table[n] for n in [*first, *table]}


def _line(found, setting):
  (index,) = [i for i, p in enumerate(found['points']) if p == setting]
  return next(line for line in found['lines'] if line['setting'] == index)


def test_a_line_has_the_mean_of_its_runs_and_t_intervals():
  found = lines.make_lines(_table())
  assert found['settings'] == ['tau=0.1', 'tau=0.5']
  line = _line(found, {'tau': 0.5})
  assert line['runs'] == 2 and line['x'] == {'env_steps': [10, 20, 30]}
  mean, low, high = line['y']['train_return']
  assert mean == [1.5, 2.5, 3.5]
  # t(0.975, 1 degree of freedom) = 12.7062; the standard error is 1.5.
  np.testing.assert_allclose(low, np.array(mean) - 12.7062 * 1.5, rtol=1e-4)
  np.testing.assert_allclose(high, np.array(mean) + 12.7062 * 1.5, rtol=1e-4)
  final = line['final']['train_return']
  assert final[0] == final[3] == 3.5 and final[6] == 2


def test_a_single_run_has_no_interval():
  table = {name: column[:3] for name, column in _table().items()}
  (line,) = lines.make_lines(table)['lines']
  assert line['y']['train_return'] == [[0, 1, 2]]
  assert line['final']['train_return'] == [2, None, None, 2, None, None, 1]


def test_long_lines_are_averaged_over_equal_parts(monkeypatch):
  monkeypatch.setattr(lines, '_MOST_POINTS', 4)
  number = 8
  table = {
    'seed': np.zeros(number, int),
    'env_steps': 10 * np.arange(1, number + 1),
    'loss': np.array([0, 2, np.nan, 6, 8, 10, np.nan, np.nan]),
    'folder': np.full(number, 'a'),
  }
  found = lines.make_lines(table)
  (line,) = found['lines']
  assert (found['rows'], found['bins']) == (8, 4)
  assert line['x']['env_steps'] == [15, 35, 55, 75]
  assert line['y']['loss'] == [[1, 6, 9, None]]
  json.dumps(found, allow_nan=False)


def test_tasks_are_apart_and_do_not_name_settings():
  """An option that goes with the task, such as its length, names nothing."""
  places = np.repeat(['catch', 'cartpole'], 6)
  found = lines.make_lines(
    _table(environment=places, tau=np.repeat([0.5, 0.1], 6))
  )
  assert sorted(found['tasks']) == ['cartpole', 'catch']
  assert found['settings'] == ['all runs'] and len(found['lines']) == 2


def test_rank_spreads_over_tasks():
  # The settings change places, so that each has both ranks, 1 and 2.
  table = _table()
  second = table | {'train_return': -table['train_return']}
  both = {name: np.append(table[name], second[name]) for name in table}
  tasks = {'environment': np.repeat(['cartpole', 'catch'], 12)}
  found = lines.make_lines(tasks | both)
  assert found['spreads'] == {'train_return': {0: 1.0, 1: 1.0}}
  json.dumps(found)
  assert lines.make_lines(table)['spreads'] == {}


def test_the_same_seed_in_two_folders_is_two_runs():
  table = {n: c[:6] for n, c in _table().items()}
  table['seed'] = np.zeros(6, int)
  table['folder'] = np.repeat(['runs/a', 'runs/b'], 3)
  (line,) = lines.make_lines(table)['lines']
  assert line['runs'] == 2


def test_wall_time_is_the_sum_of_timers_so_far():
  table = _table(learning_s=np.full(12, 2.0), eval_s=np.full(12, 0.5))
  table['steps_per_s'] = np.full(12, 100.0)
  table['folder'] = table.pop('folder')
  found = lines.make_lines(table)
  assert found['clocks'] == ['env_steps', 'wall_time_s']
  assert found['lines'][0]['x']['wall_time_s'] == [2.5, 5, 7.5]
  assert found['columns'][0] == 'train_return'  # timers come last


def test_runs_of_different_length_are_noted():
  table = {n: np.delete(c, 5) for n, c in _table().items()}
  found = lines.make_lines(table)
  assert 'between 20 and 30 env steps' in found['notes'][0]
  assert _line(found, {'tau': 0.5})['final']['train_return'][6] == 1


def test_names_have_all_that_differs():
  points = [
    {'lr': 0.1, 'eps': 1, 'agent': 'dqn', 'tau': None, 'seeds': 3},
    {'lr': 0.2, 'eps': 1, 'agent': 'dqn', 'tau': 0.5, 'seeds': 3},
    {'lr': 0.2, 'eps': 2, 'agent': 'c51', 'tau': 0.5, 'seeds': 3},
  ]
  assert lines.name_settings(points) == [
    'agent=dqn, lr=0.1, eps=1',
    'agent=dqn, tau=0.5, lr=0.2, eps=1',
    'agent=c51, tau=0.5, lr=0.2, eps=2',
  ]


def test_long_names_say_how_much_they_leave_out():
  points = [
    {f'o{n}': value for n in range(9)} | {'tau': tau}
    for value, tau in ((1, 0.1), (2, 0.1), (2, 0.2))
  ]
  # tau and any other option tell the three apart, and eight are left.
  assert lines.name_settings(points) == [
    'tau=0.1, o0=1, 8 more',
    'tau=0.1, o0=2, 8 more',
    'tau=0.2, o0=2, 8 more',
  ]


def test_a_table_without_a_clock_is_refused():
  table = _table()
  del table['env_steps']
  with pytest.raises(ValueError, match='no column of frames, env_steps'):
    lines.make_lines(table)
