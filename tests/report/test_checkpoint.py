import errno
import gc
import json
import logging
import os
import pathlib
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl.report.checkpoint import (
  CheckpointError,
  Checkpoints,
  any_checkpoint,
)
from siamrl.types import TrainState

# Orbax leaves coroutines unfinished when a chunk of an array is damaged.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


@pytest.fixture(autouse=True)
def collect_garbage():
  """Has such coroutines complain here rather than in a later test."""
  yield
  gc.collect()


def make_learner(seed=0, optimizer=None):
  optimizer = optimizer or optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(1e-3)
  )
  key, target_key = jax.random.split(jax.random.key(seed))
  params = {
    'dense': {'kernel': jax.random.normal(key, (5, 3)), 'bias': jnp.ones(3)},
    'half': jax.random.normal(key, (7,), jnp.bfloat16),
    'mask': jnp.asarray([2**32 - 1, seed], jnp.uint32),
  }
  # Moments that are not zero, and a NaN with its payload.
  state = jax.tree.map(lambda leaf: leaf + 1, optimizer.init(params))
  params['dense']['bias'] = params['dense']['bias'].at[1].set(jnp.nan)
  return TrainState(
    params,
    jax.tree.map(jnp.copy, params),
    state,
    jnp.int32(41 + seed),
    target_key,
  )


def raw(leaf):
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()


def assert_same(tree, other):
  assert jax.tree.structure(tree) == jax.tree.structure(other)
  for leaf, expected in zip(
    jax.tree.leaves(tree), jax.tree.leaves(other), strict=True
  ):
    assert raw(leaf) == raw(expected)


def test_comes_back_bit_for_bit(tmp_path):
  checkpoints = Checkpoints(tmp_path / 'new' / 'deep')
  assert checkpoints.restore(make_learner()) is None
  assert not (tmp_path / 'new').exists()
  learner = make_learner(3)
  checkpoints.save(10, learner, {'position': 4})
  restored, extra, step = Checkpoints(tmp_path / 'new' / 'deep').restore(
    make_learner(0)
  )
  assert_same(restored, learner)
  assert isinstance(restored, TrainState)
  assert type(restored.opt_state[1][0]) is optax.ScaleByAdamState
  assert (extra, step) == ({'position': 4}, 10)
  # The key is a typed one, and draws the same numbers.
  np.testing.assert_array_equal(
    jax.random.bits(restored.key), jax.random.bits(learner.key)
  )


def test_facts_come_back_exactly(tmp_path):
  rng = np.random.default_rng(5)
  extra = {
    'sum': 0.1 + 0.2,
    'tiny': 5e-324,
    'infinite': [-np.inf, np.inf],
    'big': 2**127 + 1,
    'pcg64': rng.bit_generator.state,
    'none': None,
    'text': 'é\n',
    'nested': {'yes': True, 'list': [1, 2.0]},
  }
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, make_learner(), {**extra, 'nan': float('nan')})
  _, restored, _ = checkpoints.restore(make_learner())
  assert np.isnan(restored.pop('nan'))
  assert restored == extra
  assert type(restored['nested']['list'][1]) is float
  again = np.random.default_rng()
  again.bit_generator.state = restored['pcg64']
  assert again.random() == rng.random()


def test_facts_that_json_cannot_hold_change_nothing(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  with pytest.raises(TypeError, match='ndarray'):
    checkpoints.save(1, make_learner(), {'array': np.zeros(2)})
  assert os.listdir(tmp_path) == []


def test_keeps_the_newest(tmp_path):
  checkpoints = Checkpoints(tmp_path, max_to_keep=2)
  for step in (9, 10, 100):
    checkpoints.save(step, make_learner(step), {})
  assert sorted(os.listdir(tmp_path)) == ['10', '100']
  assert checkpoints.latest_step() == 100
  assert_same(checkpoints.restore(make_learner())[0], make_learner(100))


def test_steps_only_grow_and_name_one_state(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(5, make_learner(1), {'first': True})
  checkpoints.save(5, make_learner(2), {'first': False})
  assert checkpoints.restore(make_learner())[1] == {'first': True}
  with pytest.raises(ValueError, match='step 4, after checkpoints up to 5'):
    checkpoints.save(4, make_learner(), {})
  with pytest.raises(ValueError, match='step -1'):
    Checkpoints(tmp_path / 'other').save(-1, make_learner(), {})
  with pytest.raises(ValueError, match='max_to_keep'):
    Checkpoints(tmp_path, max_to_keep=0)


def wrong_templates():
  learner = make_learner()
  params = learner.online_params
  kernel = params['dense']['kernel']

  def dense(**leaves):
    return learner.replace(
      online_params={**params, 'dense': {**params['dense'], **leaves}}
    )

  name = 'online_params.dense.kernel'
  return {
    'shape': (
      dense(kernel=kernel[:, :2]),
      f'{name}: found float32 [5, 3], expected float32 [5, 2]',
    ),
    'dtype': (
      dense(kernel=kernel.astype(jnp.bfloat16)),
      f'{name}: found float32 [5, 3], expected bfloat16 [5, 3]',
    ),
    # Orbax ignores the shape of these.
    'numpy': (
      dense(kernel=np.zeros((3, 5), np.float32)),
      f'{name}: found float32 [5, 3], expected float32 [3, 5]',
    ),
    'more': (
      dense(scale=kernel),
      'dense.scale: found nothing, expected float32 [5, 3]',
    ),
    'less': (learner.replace(opt_state=learner.opt_state[1:]), 'found'),
    'key': (
      learner.replace(key=jax.random.key(0, impl='rbg')),
      'key: found uint32 [2], expected uint32 [4]',
    ),
    'raw key': (learner.replace(key=jnp.zeros(2, jnp.uint32)), 'key: found'),
    'optimizer': (make_learner(optimizer=optax.sgd(0.1)), 'opt_state.1.0'),
  }


def test_another_network_is_refused(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(7, make_learner(), {})
  for template, expected in wrong_templates().values():
    with pytest.raises(CheckpointError) as caught:
      checkpoints.restore(template)
    assert str(caught.value).startswith(str(tmp_path / '7'))
    assert expected in str(caught.value)
    assert '\n' not in str(caught.value)


def test_keys_of_another_kind_are_refused(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, {'key': jax.random.key(0, impl='rbg')}, {})
  with pytest.raises(CheckpointError, match='key: found key<rbg>, expected'):
    checkpoints.restore({'key': jax.random.key(0, impl='unsafe_rbg')})


def break_arrays(path):
  for data in path.rglob('d/*'):
    data.write_bytes(b'')


def break_facts(path):
  (path / 'extra' / 'metadata').write_text('{"position": 4')


def break_all(path):
  for file in path.rglob('*'):
    if file.is_file():
      file.unlink()


@pytest.mark.parametrize('damage', [break_arrays, break_facts, break_all])
def test_damage_is_told_in_a_line(tmp_path, damage):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(7, make_learner(), {'position': 4})
  damage(tmp_path / '7')
  with pytest.raises(CheckpointError) as caught:
    checkpoints.restore(make_learner())
  assert str(caught.value).startswith(str(tmp_path / '7'))
  assert '\n' not in str(caught.value)


def test_foreign_directories_are_refused(tmp_path):
  (tmp_path / 'thesis.tex').touch()
  for path in (tmp_path, tmp_path / 'thesis.tex'):
    with pytest.raises(CheckpointError, match=str(path)):
      Checkpoints(path).restore(make_learner())
    with pytest.raises(CheckpointError, match=str(path)):
      Checkpoints(path).save(1, make_learner(), {})
  (tmp_path / '12').mkdir()
  with pytest.raises(CheckpointError, match='12: not a readable checkpoint'):
    Checkpoints(tmp_path).restore(make_learner())


class Canary:
  """Says so when somebody unpickles it."""

  def __reduce__(self):
    return (os.mkdir, (os.environ['CANARY'],))


UNPICKLED = []


def watch_pickle(event, unused_arguments):
  if event == 'pickle.find_class':
    UNPICKLED.append(event)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
  monkeypatch.setenv('CANARY', str(tmp_path / 'sang'))
  checkpoints = Checkpoints(tmp_path / 'run')
  checkpoints.save(1, make_learner(), {'a': 1})
  files = [file for file in (tmp_path / 'run').rglob('*') if file.is_file()]
  for file in files:
    with pytest.raises(Exception):  # noqa: B017
      pickle.loads(file.read_bytes())
  sys.addaudithook(watch_pickle)
  UNPICKLED.clear()
  checkpoints.restore(make_learner())
  # Nor is a pickle that somebody put there.
  poison = pickle.dumps(Canary())
  for file in files:
    whole = file.read_bytes()
    file.write_bytes(poison)
    np.save(
      file.with_suffix('.npy'), np.array([Canary()], object), allow_pickle=True
    )
    try:
      checkpoints.restore(make_learner())
    except CheckpointError as error:
      assert str(tmp_path) in str(error)
    file.write_bytes(whole)
  assert UNPICKLED == []
  assert not (tmp_path / 'sang').exists()
  # The canary does sing.
  pickle.loads(poison)
  assert UNPICKLED
  assert (tmp_path / 'sang').exists()


KILLED = textwrap.dedent("""
    import os, signal, sys
    import jax.numpy as jnp
    from siamrl.report.checkpoint import Checkpoints
    directory, event, part = sys.argv[1:]
    checkpoints = Checkpoints(directory)
    checkpoints.save(1, {'w': jnp.arange(9.0)}, {'position': 1})
    def kill(name, arguments):
      # What is done to the files of step 2 and matches, is never done.
      if name == event and part in os.fsdecode(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(kill)
    checkpoints.save(2, {'w': jnp.arange(9.0) + 1}, {'position': 2})
""")


@pytest.mark.parametrize(
  ('event', 'part'),
  [
    ('open', 'extra'),  # before the facts are written
    ('os.rename', 'learner'),  # with the arrays written
    ('os.rename', '2.orbax-checkpoint-tmp'),  # whole, but for its name
  ],
)
def test_a_save_that_was_killed_is_as_if_it_had_not_begun(
  tmp_path, event, part
):
  # In the last case part matches the directory of the step alone.
  if part.startswith('2'):
    part = str(tmp_path / part)
    script = KILLED.replace('part in', 'part ==')
  else:
    script = KILLED
  child = subprocess.run(
    [sys.executable, '-c', script, tmp_path, event, part],
    check=False,
    capture_output=True,
    text=True,
    timeout=60,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )
  assert child.returncode == -signal.SIGKILL, child.stderr
  names = sorted(os.listdir(tmp_path))
  assert names == ['1', '2.orbax-checkpoint-tmp']
  checkpoints = Checkpoints(tmp_path)
  learner, extra, step = checkpoints.restore({'w': jnp.zeros(9)})
  np.testing.assert_array_equal(learner['w'], np.arange(9.0))
  assert (extra, step) == ({'position': 1}, 1)
  # The run goes on, and cleans up.
  checkpoints.save(2, {'w': jnp.ones(9)}, {'position': 3})
  assert sorted(os.listdir(tmp_path)) == ['1', '2']
  assert checkpoints.restore({'w': jnp.zeros(9)})[1:] == ({'position': 3}, 2)


def test_a_disk_without_room(tmp_path, monkeypatch, capfd):
  """Refused before Orbax begins, whose threads would print tracebacks."""
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, make_learner(1), {})
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(
    shutil, 'disk_usage', lambda path: usage._replace(free=799_999)
  )
  learner = {'w': jnp.zeros(200_000)}
  with pytest.raises(CheckpointError, match='No space left.*0.8 MB and 0.8'):
    checkpoints.save(2, learner, {})
  assert os.listdir(tmp_path) == ['1']
  assert capfd.readouterr() == ('', '')
  monkeypatch.setattr(
    shutil, 'disk_usage', lambda path: usage._replace(free=800_000)
  )
  checkpoints.save(2, learner, {})
  assert checkpoints.latest_step() == 2


def test_a_failed_write_leaves_the_one_before(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, make_learner(1), {})
  noise = {'w': jax.random.bits(jax.random.key(0), (200_000,), jnp.uint32)}
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
  try:
    with pytest.raises(CheckpointError, match='step 2 cannot be saved') as got:
      checkpoints.save(2, noise, {})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert os.strerror(errno.EFBIG) in str(got.value)
  assert '\n' not in str(got.value)
  assert os.listdir(tmp_path) == ['1']
  assert_same(checkpoints.restore(make_learner())[0], make_learner(1))
  checkpoints.save(2, noise, {})
  assert checkpoints.latest_step() == 2


def test_is_silent(tmp_path, capfd):
  logger = logging.getLogger('absl')
  level = logger.level
  logger.setLevel(logging.DEBUG)
  try:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_learner(), {})
    checkpoints.restore(make_learner())
    logger.warning('of the run itself')
  finally:
    logger.setLevel(level)
  output = capfd.readouterr()
  lines = (output.out + output.err).splitlines()
  assert [line for line in lines if 'of the run itself' not in line] == []
  assert logger.filters == []


def test_is_flushed_before_save_returns(tmp_path, monkeypatch):
  flushed = set()
  monkeypatch.setattr(
    os,
    'fsync',
    lambda descriptor: flushed.add(
      pathlib.Path(f'/proc/self/fd/{descriptor}').resolve()
    ),
  )
  Checkpoints(tmp_path).save(1, make_learner(), {})
  written = {tmp_path, *(tmp_path).rglob('*')}
  assert {path.resolve() for path in written} <= flushed


def test_facts_are_plain_json(tmp_path):
  Checkpoints(tmp_path).save(1, make_learner(), {'position': 4})
  text = (tmp_path / '1' / 'extra' / 'metadata').read_text()
  assert json.loads(text) == {'position': 4}


# Damage.


def cut(path):
  os.truncate(path, path.stat().st_size // 2)


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 3] ^= 16
  path.write_bytes(content)


def lengthen(path):
  with path.open('ab') as file:
    file.write(b'\n')


def as_pipe(path):
  path.unlink()
  os.mkfifo(path)


def as_loop(path):
  path.unlink()
  path.symlink_to(path)


def as_directory(path):
  path.unlink()
  path.mkdir()


@pytest.mark.parametrize(
  'harm',
  [flip, cut, lengthen, pathlib.Path.unlink, as_pipe, as_loop, as_directory],
)
def test_damage_to_any_file_is_named_before_orbax_reads_it(
  tmp_path, harm, monkeypatch, capfd
):
  checkpoints = Checkpoints(tmp_path / 'run')
  checkpoints.save(7, {'w': jnp.arange(300.0)}, {'position': 4})
  whole = shutil.copytree(tmp_path / 'run', tmp_path / 'whole')
  assert Checkpoints(whole).restore({'w': jnp.zeros(300)})[1:] == (
    {'position': 4},
    7,
  )
  monkeypatch.setattr(Checkpoints, '_manager', None)  # Orbax
  names = [
    path.relative_to(whole) for path in whole.rglob('*') if path.is_file()
  ]
  assert len(names) > 5
  for name in names:
    copy = shutil.copytree(whole, tmp_path / 'copy')
    harm(copy / name)
    for read in (
      lambda: Checkpoints(copy).restore({'w': jnp.zeros(300)}),  # noqa: B023
      Checkpoints(copy).read_extra,
      Checkpoints(copy).recover,
    ):
      with pytest.raises(CheckpointError) as caught:
        read()
      assert str(caught.value).startswith(f'{copy / "7"}: not a readable')
      # That of the damaged file itself, or the list that it no longer matches.
      assert name.name in str(caught.value) or name.name == 'SHA256SUMS'
    shutil.rmtree(copy)
  assert capfd.readouterr() == ('', '')


def test_a_file_from_elsewhere_is_seen(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(7, {'w': jnp.arange(3.0)}, {})
  (tmp_path / '7' / 'learner' / 'more').write_text('')
  with pytest.raises(CheckpointError, match='learner/more has no checksum'):
    checkpoints.recover()


def test_sha256sum_agrees(tmp_path):
  Checkpoints(tmp_path).save(7, make_learner(), {})
  subprocess.run(
    ['sha256sum', '--check', '--strict', '--quiet', 'SHA256SUMS'],
    cwd=tmp_path / '7',
    check=True,
  )


def three(directory):
  checkpoints = Checkpoints(directory, max_to_keep=3)
  for step in (1, 2, 3):
    checkpoints.save(step, make_learner(step), {'rows': step})
  return checkpoints


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path):
  checkpoints = three(tmp_path)
  assert checkpoints.recover() == []
  assert sorted(os.listdir(tmp_path)) == ['1', '2', '3']
  flip(tmp_path / '3' / 'extra' / 'metadata')
  with pytest.raises(CheckpointError, match='extra/metadata is damaged'):
    Checkpoints(tmp_path).restore(make_learner())
  (note,) = Checkpoints(tmp_path).recover()
  assert note == (
    f'{tmp_path}/3: not a readable checkpoint: extra/metadata is damaged: its '
    'checksum differs; the checkpoint before it is used'
  )
  restored, extra, step = Checkpoints(tmp_path).restore(make_learner())
  assert_same(restored, make_learner(2))
  assert (extra, step) == ({'rows': 2}, 2)
  assert sorted(os.listdir(tmp_path)) == ['1', '2', '3.damaged']
  # The run comes by that step again, and nothing is left of the damaged one.
  Checkpoints(tmp_path).save(3, make_learner(3), {'rows': 3})
  assert sorted(os.listdir(tmp_path)) == ['2', '3']


def test_what_depends_on_other_files_falls_back_too(tmp_path):
  three(tmp_path)

  def check(extra):
    if extra['rows'] > 1:
      raise ValueError(f'row {extra["rows"]} is damaged')

  notes = Checkpoints(tmp_path).recover(check)
  assert [note.partition(';')[0] for note in notes] == [
    'row 3 is damaged',
    'row 2 is damaged',
  ]
  assert Checkpoints(tmp_path).latest_step() == 1


def test_where_nothing_is_whole_nothing_changes(tmp_path):
  three(tmp_path)
  for step in '123':
    (tmp_path / step / 'SHA256SUMS').unlink()
  with pytest.raises(
    CheckpointError, match='3: not .* is missing; nor can the 2 before it'
  ):
    Checkpoints(tmp_path).recover()
  assert sorted(os.listdir(tmp_path)) == ['1', '2', '3']
  # Unless something else can take their place.
  notes = Checkpoints(tmp_path).recover(may_be_none=True)
  assert len(notes) == 3
  assert notes[0].endswith('SHA256SUMS is missing; there is none before it')
  assert Checkpoints(tmp_path).latest_step() is None
  assert Checkpoints(tmp_path).recover() == []


def test_checkpoints_from_before_there_were_checksums(tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr('siamrl.report.checkpoint._SAYS_SUMS', {})
    Checkpoints(tmp_path).save(1, make_learner(1), {'rows': 1})
  (tmp_path / '1' / 'SHA256SUMS').unlink()
  (note,) = Checkpoints(tmp_path).recover()
  assert f'{tmp_path}/1: an older version wrote this checkpoint' in note
  assert_same(Checkpoints(tmp_path).restore(make_learner())[0], make_learner(1))


def test_whether_there_is_a_checkpoint(tmp_path):
  assert not any_checkpoint(tmp_path / 'none')
  Checkpoints(tmp_path / '000').save(1, make_learner(1), {})
  assert any_checkpoint(tmp_path)
  (tmp_path / '000' / '1').rename(tmp_path / '000' / '1.orbax-checkpoint-tmp')
  assert not any_checkpoint(tmp_path)


def test_a_disk_that_fills_while_orbax_writes(tmp_path, capfd, monkeypatch):
  """It is told once, though Orbax's threads go on failing afterwards."""
  noise = {
    str(i): jax.random.bits(jax.random.key(i), (20_000,), jnp.uint32)
    for i in range(6)
  }
  before = sys.unraisablehook
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
  try:
    with pytest.raises(CheckpointError, match='step 2 cannot be saved'):
      Checkpoints(tmp_path).save(2, noise, {})
    time.sleep(0.2)
    gc.collect()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert capfd.readouterr() == ('', '')
  Checkpoints(tmp_path).save(2, noise, {})
  assert sys.unraisablehook is before
  assert logging.getLogger('asyncio').filters == []
