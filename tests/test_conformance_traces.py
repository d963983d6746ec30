"""Traces of target networks: what is seen, and what cannot be told."""

import numpy as np
import pytest

from siamrl.conformance import (
  DEFECTS,
  ConformanceError,
  check_trace,
  judging,
  traces,
)
from siamrl.conformance.__main__ import main
from siamrl.conformance.defects import right

ENV_STEPS = 4  # for each gradient step


def _run(rule, steps=640, order='after', block=1):
  """Columns of a run with a random walk for an optimizer."""
  rng = np.random.default_rng(0)
  online = {'a': rng.normal(size=5)}
  target = rule.init(online, {'a': rng.normal(size=5)})
  rows = [(1_000, 0, online['a'].sum(), target['a'].sum())]
  for step in range(1, steps + 1):
    new = {'a': online['a'] + 0.1 * rng.normal(size=5)}
    if order == 'after':
      online, target = rule.update(new, target, step)
    else:
      _, target = rule.update(online, target, step)
      online = new
    if step % block == 0:
      env_steps = 1_000 + ENV_STEPS * step
      rows.append((env_steps, step, online['a'].sum(), target['a'].sum()))
  names = ('env_step', 'gradient_step', 'online', 'target')
  return dict(zip(names, np.array(rows).T, strict=True))


@pytest.fixture
def judge(tmp_path, capsys):
  """Writes columns to a file, and returns the exit code and what is said."""

  def judge(columns, *arguments, kind='csv'):
    path = tmp_path / f'trace.{kind}'
    if kind == 'npz':
      np.savez(path, **columns)
    elif isinstance(columns, str):
      path.write_text(columns)
    else:
      lines = [','.join(columns)]
      rows = zip(*columns.values(), strict=True)
      lines += [','.join(repr(float(cell)) for cell in row) for row in rows]
      path.write_text('\n'.join(lines) + '\n')
    code = main([str(path), *arguments])
    out, err = capsys.readouterr()
    return code, out + err

  return judge


def _random_run(rng):
  """A right run of any shape: a trace, and what it was asked for."""
  envs, train, steps = rng.choice([(1, 1, 1), (1, 4, 2), (4, 1, 1), (8, 8, 8)])
  warm_up, after = int(rng.choice([0, 100])), bool(rng.random() < 0.5)
  tau = float(rng.choice([1, 1, 0.005, 0.05]))
  unit = str(rng.choice(list(traces.UNITS)))
  period = int(rng.choice([2, 10, 33, 100]))
  if tau < 1 and rng.random() < 0.5:
    period, unit = 1, 'gradient_steps'
  dtype = rng.choice([np.float32, np.float64])
  online = rng.normal(size=50).astype(dtype)
  target, env_steps, gradient_steps = online, 0, 0
  totals = lambda: (online.sum(dtype=float), target.sum(dtype=float))
  rows = [(0, 0, *totals())]
  move = lambda online: (tau * online + (1 - tau) * target).astype(dtype)
  while len(rows) < 400:
    before, env_steps = env_steps, env_steps + envs
    if env_steps > warm_up and env_steps // train > before // train:
      for _ in range(steps):
        gradient_steps += 1
        new = (online + 0.01 * rng.normal(size=50)).astype(dtype)
        if unit == 'gradient_steps' and gradient_steps % period == 0:
          target = move(new if after else online)
        online = new
    due = env_steps > warm_up and env_steps // period > before // period
    if unit == 'env_steps' and due:
      target = move(online)
    rows.append((env_steps, gradient_steps, *totals()))
  columns = np.array(rows).T
  counters = dict(zip(('env_step', 'gradient_step'), columns, strict=False))
  counters = {name: each.astype(int) for name, each in counters.items()}
  asked = judging.Asked(
    'hard' if tau == 1 else 'periodic_soft',
    period,
    unit,
    tau=None if tau == 1 else tau,
  )
  if tau < 1 and period == 1:
    asked = judging.Asked('soft', tau=tau)
  return traces.Trace(counters, *columns[2:]), asked


def test_no_false_alarm_on_right_runs():
  rng = np.random.default_rng(0)
  conform = 0
  for _ in range(20):
    trace, asked = _random_run(rng)
    verdict = judging.judge(trace, asked)
    assert verdict.error is None, (asked, str(verdict))
    conform += str(verdict).endswith('\nconforms')
  assert conform > 10


def _rows(columns, keep):
  return {name: values[keep] for name, values in columns.items()}


@pytest.mark.parametrize('kind', ['csv', 'npz'])
def test_a_right_run(judge, kind):
  columns = _run(right(1, 50))
  code, said = judge(columns, '--rule=hard', '--period=50', kind=kind)
  assert code == 0
  for line in (
    '641 rows, gradient_step 0 to 640, env_step 1000 to 3560',
    'birth: a copy',
    'rule: hard',
    "order: after the optimizer's step",
    'period: 50 gradient_steps, phase 0; 200 env_steps, phase 0 (asked for 50 '
    'gradient_steps)',
    'updates: 12, 0 missed, 0 beside the clock',
    'conforms',
  ):
    assert line in said.splitlines(), said
  unit = ('--unit=env_steps', '--period=200', '--phase=0')
  assert judge(columns, '--rule=hard', *unit)[0] == 0
  code, said = judge(columns, '--rule=hard', '--period=50', '--phase=3')
  assert code == 3 and 'phase 0, not 3' in said


def test_order_and_rate_are_read_from_sums(judge):
  before = _run(right(1, 50), order='before')
  assert "order: before the optimizer's step" in judge(before)[1]
  soft = _run(right(0.02, 1))
  code, said = judge(soft, '--rule=soft', '--tau=0.02')
  assert code == 0 and 'rule: soft, tau = 0.02' in said
  assert "order: after the optimizer's step" in said
  before = _run(right(0.02, 1), order='before')
  assert "order: before the optimizer's step" in judge(before)[1]
  norms = soft | {
    'online': np.sin(1e3 * soft['online']),
    'target': np.sin(1e3 * soft['target']),
  }
  code, said = judge(norms, '--rule=soft', '--tau=0.02')
  assert code == 1 and 'cannot be told: tau = 0.02 was asked for' in said


ASKED = {
  'alias': ('--rule=hard', '--period=50'),
  'lost_update': ('--rule=soft', '--tau=0.02'),
  'period_multiplied': ('--rule=hard', '--period=50'),
  'unit_confusion': ('--rule=hard', '--period=80'),
  'double_rule': ('--rule=soft', '--tau=0.02'),
  'soft_birth': ('--rule=soft', '--tau=0.02'),
  'tau_ignored': ('--rule=soft', '--tau=0.02'),
  'once_per_block': ('--rule=soft', '--tau=0.02'),
  'wrong_direction': ('--rule=hard', '--period=50'),
}


@pytest.mark.parametrize('name', [n for n, d in DEFECTS.items() if d.traced])
def test_defects_are_named(judge, name):
  asked = ASKED[name]
  given = dict(argument.lstrip('-').split('=') for argument in asked)
  period = 50 if name == 'double_rule' else int(given.get('period', 1))
  own = {'default': 0.3} if name == 'tau_ignored' else {}
  tau = float(given.get('tau', 1))
  rule = DEFECTS[name].reference(tau=tau, period=period, **own)
  code, said = judge(_run(rule), *asked)
  assert code == 3, said
  assert f'It looks like {name}:' in said
  assert f'does not conform: {DEFECTS[name].law}:' in said
  assert judge(_run(right(tau, int(given.get('period', 1)))), *asked)[0] == 0


def test_blocks_of_gradient_steps(judge):
  """Rows that are 8 gradient steps apart, of 8 updates each or of 1."""
  asked = ('--rule=soft', '--tau=0.02')
  code, said = judge(_run(right(0.02), block=8), *asked)
  assert code == 0, said
  rule = DEFECTS['once_per_block'].reference(tau=0.02, block=8)
  code, said = judge(_run(rule, block=8), *asked)
  assert code == 3 and 'It looks like once_per_block' in said


def test_missed_and_doubled_updates(judge):
  rule = right(1, 20)

  def missing(online, target, steps):
    return rule.update(online, target, 1 if steps in (200, 400) else steps)

  code, said = judge(
    _run(rule._replace(update=missing)), '--rule=hard', '--period=20'
  )
  assert code == 3 and 'updates: 30, 2 missed, 0 beside the clock' in said
  assert '2 updates are missed' in said and 'gradient_step 200, 400' in said
  soft = right(0.02)

  def twice(online, target, steps):
    _, target = soft.update(online, target, steps)
    return (
      soft.update(online, target, steps)
      if steps % 100 == 0
      else (
        online,
        target,
      )
    )

  code, said = judge(
    _run(soft._replace(update=twice)), '--rule=soft', '--tau=0.02'
  )
  assert code == 3 and '6 of 622 updates move as far as 2' in said


def test_no_update_before_the_end(judge):
  columns = _run(right(1, 5_000))
  code, said = judge(columns, '--rule=hard', '--period=5000')
  assert code == 1
  assert 'cannot be told: the trace ends before the first update' in said
  assert judge(columns, '--rule=frozen')[0] == 0
  code, said = judge(columns)
  assert code == 3 and 'the target never moves' in said
  assert judge(_run(right(1, 50)), '--rule=frozen')[0] == 3
  still = columns | {'online': np.ones(641)}
  code, said = judge(still, '--rule=hard', '--period=50')
  assert code == 1 and 'cannot be told: the online network never' in said


def test_missing_rows_and_jumps(judge):
  columns = _run(right(1, 50))
  keep = np.ones(641, bool)
  keep[195:205] = keep[420:430] = False
  code, said = judge(_rows(columns, keep), '--rule=hard', '--period=50')
  assert code == 0
  assert 'at row 196 rows are missing: gradient_step from 194 to 205' in said
  assert 'updates there cannot be told' in said
  jumps = columns | {'env_step': columns['env_step'] + 0}
  jumps['env_step'][300:] += 7_000
  code, said = judge(jumps, '--rule=hard', '--period=50')
  assert code == 0
  assert 'at row 301 a counter jumps: env_step from 2196 to 9200' in said


def test_two_runs_in_one_file(judge):
  good, bad = _run(right(1, 50)), _run(right(1, 500))
  both = {name: np.append(good[name], bad[name]) for name in good}
  code, said = judge(both, '--rule=hard', '--period=50')
  assert code == 3
  assert 'at row 642 gradient_step falls from 640 to 0' in said
  first, _, second = said.partition('at row 642')
  assert (
    'conforms' in first
    and 'period_multiplied' in second
    or ('lost_update' in second)
  )
  lines = [','.join(good)]
  lines += [','.join(map(str, row)) for row in zip(*good.values(), strict=True)]
  code, said = judge('\n'.join(2 * lines), '--rule=hard', '--period=50')
  assert code == 0 and said.count('conforms') == 2


def test_training_that_diverges(judge):
  columns = _run(right(1, 50))
  columns['online'][500:] = np.nan
  code, said = judge(columns, '--rule=hard', '--period=50')
  assert code == 0 and 'from row 501 on, numbers are not finite' in said


def test_birth_needs_a_row_before_training(judge):
  columns = _rows(_run(right(0.02)), slice(1, None))
  assert 'birth: cannot be told' in judge(columns)[1]


@pytest.mark.parametrize(
  'text, said',
  [
    ('', 'is empty'),
    ('env_step,online\n1,2\n', 'has no column target, only env_step, online'),
    (
      'online,target\n1,2\n1,2\n',
      'neither a column gradient_step nor env_step',
    ),
    ('env_step,online,target\n1,2,3\n', 'has 1 rows, needs at least 2'),
    ('env_step,online,target\n1,2\n', 'line 2 has 2 cells, must have 3'),
    ('env_step,online,target\n1,2,x\n', "line 2: target='x' must be a number"),
    (
      'env_step,online,target\n1,2,3\n1.5,2,3\n',
      'row 2: env_step=1.5 must be a whole number',
    ),
  ],
)
def test_files_at_fault(judge, text, said):
  code, line = judge(text)
  assert code == 1 and said in line and line.count('\n') == 1


def test_a_file_without_the_unit(judge, tmp_path, capsys):
  columns = _run(right(1, 50))
  del columns['env_step']
  code, said = judge(columns, '--period=50', '--unit=env_steps')
  assert code == 1 and 'has no column env_step' in said
  assert main([str(tmp_path / 'none.csv')]) == 1
  assert 'there is no such file' in capsys.readouterr().err
  (tmp_path / 'bad.npz').write_bytes(b'PK')
  assert main([str(tmp_path / 'bad.npz')]) == 1


@pytest.mark.parametrize(
  'arguments, said',
  [
    (['--rule=hart'], "invalid choice: 'hart'"),
    (['--period=0'], "invalid whole number from 1 on value: '0'"),
    (['--rule=hard', '--tau=0.5'], '--tau=0.5 must be 1 for --rule=hard'),
    (['--rule=soft', '--period=5'], '--period=5 has no meaning for'),
    (['--unit=env_steps'], '--unit=env_steps needs --period'),
    (['--period=5', '--phase=5'], '--phase=5 must be below --period'),
  ],
)
def test_wrong_usage(arguments, said, capsys):
  with pytest.raises(SystemExit) as end:
    main(['trace.csv', *arguments])
  assert end.value.code == 2
  line = capsys.readouterr().err
  assert said in line and line.count('\n') == 1


def test_columns_are_as_good_as_files(judge):
  columns = _run(right(1, 50))
  said = check_trace(columns, rule='hard', period=50)
  assert said.strip() == judge(columns, '--rule=hard', '--period=50')[1].strip()
  with pytest.raises(ConformanceError) as caught:
    check_trace(columns, rule='hard', period=5)
  assert caught.value.defect == 'period_multiplied'
  with pytest.raises(ValueError, match='trace: has no column target'):
    check_trace({'online': [1, 2]})


def test_a_verdict_needs_evidence(judge):
  columns = _run(right(1, 50))
  asked = ('--rule=hard', '--period=50')
  code, said = judge(_rows(columns, slice(0, 101)), *asked)
  assert code == 1 and '2 updates are seen, and 3 are needed' in said
  assert judge(_rows(columns, slice(0, 151)), *asked)[0] == 0
  # Copies cannot be seen where the online network moves on within a row.
  code, said = judge(_rows(columns, slice(3, None, 10)), *asked)
  assert code == 1 and 'write a row after each gradient step' in said
  # Where each step copies, the target is never far, and is seen to be equal.
  code, said = judge(_run(right(1, 1)), '--rule=hard', '--period=1')
  assert code == 0 and said.endswith('\nconforms\n')
  code, said = judge(columns)
  assert code == 0 and 'no verdict, as nothing was asked for' in said
  with pytest.raises(ValueError, match='cannot be told: the trace ends'):
    check_trace(_run(right(1, 5_000)), rule='hard', period=5_000)


def test_numbers_of_few_digits(judge):
  columns = _run(right(0.02))
  coarse = columns | {
    name: np.array([float(f'{each:.3g}') for each in columns[name]])
    for name in ('online', 'target')
  }
  code, said = judge(coarse, '--rule=soft', '--tau=0.02')
  assert code == 1 and 'as the numbers have 3 digits' in said


def test_rows_that_are_out_of_order(judge):
  columns = _run(right(1, 50))
  shuffled = np.random.default_rng(0).permutation(641)
  code, said = judge(_rows(columns, shuffled), '--rule=hard', '--period=50')
  assert code == 1 and said.count('\n') == 1
  assert 'rows are out of order: counters fall at' in said
  negative = columns | {'env_step': -columns['env_step']}
  code, said = judge(negative, '--rule=hard', '--period=50')
  assert code == 1 and 'env_step=-1000 must be a whole number from 0 on' in said


def test_a_warm_up_is_no_jump(judge):
  columns = _run(right(1, 50))
  columns['env_step'][0] = 0
  said = judge(columns, '--rule=hard', '--period=50')[1]
  assert 'jumps' not in said and said.endswith('\nconforms\n')


def test_guesses_where_the_museum_has_nothing(judge):
  code, said = judge(_run(right(1, 51)), '--rule=hard', '--period=50')
  assert code == 3 and 'Perhaps the counter is off by one.' in said
  assert 'It looks like' not in said
  code, said = judge(_run(right(0.98)), '--rule=soft', '--tau=0.02')
  assert code == 3 and 'tau and 1 - tau are swapped' in said
  other = right(1, 50)._replace(init=lambda online, fresh: fresh)
  code, said = judge(_run(other), '--rule=hard', '--period=50')
  assert code == 3 and 'does not conform: birth:' in said
  assert 'It looks like' not in said and 'two numbers do not tell' in said


def test_files_of_other_programs(judge, tmp_path):
  columns = _run(right(1, 50))
  lines = [','.join(columns)]
  lines += [','.join(map(str, r)) for r in zip(*columns.values(), strict=True)]
  code, said = judge('\ufeff' + '\n'.join(lines), '--rule=hard', '--period=50')
  assert code == 0 and 'env_step 1000 to 3560' in said
  path = tmp_path / 'renamed.npz'
  path.write_text('\n'.join(lines))
  with pytest.raises(traces.TraceError, match='is no NPZ file$'):
    traces.read(path)
