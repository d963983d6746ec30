"""The Siamese launcher, from the command line to the folder it leaves."""

import contextlib
import functools
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import siamese
from experiments.config import help, reading
from experiments.engines import compiled as compiled_engine
from experiments.families import siamese as family
from experiments.suites import images as suite
from siamrl import twins
from siamrl.report.metrics import MetricsWriter
from siamrl.report.run_folder import RunFolder
from tests.experiments.launching import (
  columns,
  groups_of,
  killed,
  read_sweep,
  sweep_here,
  sweep_state,
)
from tests.parameters import of_each_kind

# 48 images of which 36 are learned from: 4 gradient steps an epoch.
SMALL = (
  '--platform=cpu',
  '--augmentation=none',
  '--held_out_fraction=0.25',
  '--epochs=6',
  '--iteration_epochs=2',
  '--batch_size=8',
  '--neighbors=3',
  '--projector_units=8',
  '--projections=4',
  '--predictor_units=8',
)
# One program of six runs.
SWEEP = (
  *SMALL,
  '--seeds=2',
  '--target_update=soft',
  '--tau=0.1,0.5',
  '--also=--tau=0.5 --learning_rate=0.1',
)
# Numbers of rules that have some.
GIVEN = dict(
  tau=0.5,
  tau_end=0.25,
  target_period_end=40,
  target_period_growth=1.5,
  degrees_of_freedom=1,
  target_count=2,
  target_sync_period=10,
  target_paths='encoder:soft+projector|statistics:hard',
  twin_weight=0.5,
  projection_radius=100,
  ridge=0.1,
)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory) -> str:
  """A file of images whose brighter half says their class."""
  rng = np.random.default_rng(0)
  labels = rng.integers(2, size=48)
  images = rng.integers(0, 128, size=(48, 4, 4), dtype=np.uint8)
  for image, label in zip(images, labels, strict=True):
    image[2 * label : 2 * label + 2] += 120
  path = tmp_path_factory.mktemp('images') / 'pictures.npz'
  np.savez(path, images=images, labels=7 * labels + 3)
  return f'--images={path}'


@pytest.fixture(scope='module')
def undisturbed(pictures, tmp_path_factory) -> pathlib.Path:
  """A sweep from start to end, of `SWEEP`."""
  folder = tmp_path_factory.mktemp('undisturbed') / 'run'
  output = sweep_here(siamese, pictures, *SWEEP, f'--run_dir={folder}')
  assert f'program 1 of 1 in {folder}: 6 runs of 24 gradient steps' in output
  assert output.endswith(f'finished: {folder}\n')
  assert output.startswith(f'note: {pictures}: 48 images of 2 classes\n')
  assert output.count('note: ') == 1
  return folder


def test_the_table(undisturbed):
  table = columns(undisturbed)
  assert list(table)[:6] == [
    'tau',
    'learning_rate',
    'seed',
    'iteration',
    'gradient_steps',
    'target_updates',
  ]
  accuracies = {
    f'{judge}_{of}'
    for judge in ('knn', 'probe')
    for of in ('encoder', 'projection', 'pixels')
  }
  collapse = {'normalized_std', 'effective_rank', 'centered_rank'}
  assert set(list(table)[6:]) == accuracies | collapse | {
    'loss',
    'loss_gap',
    'predictor_largest',
    'predictor_smallest',
    'predictor_rank',
    'epochs',
    *(f'encoder_{name}' for name in collapse),
  }
  # The runs of --also come last.
  assert table['tau'] == [0.1, 0.1, 0.5, 0.5, 0.5, 0.5] * 3
  assert table['learning_rate'] == [0.05, 0.05, 0.05, 0.05, 0.1, 0.1] * 3
  assert table['seed'] == [0, 1] * 9
  each = [i for i in range(3) for _ in range(6)]
  assert table['gradient_steps'] == [8 * (i + 1) for i in each]
  assert table['target_updates'] == table['gradient_steps']
  assert table['epochs'] == [2 * (i + 1) for i in each]
  assert len({*table['loss']}) == 18
  # A cosine is -1 at the least.
  np.testing.assert_allclose(
    table['loss_gap'], np.add(table['loss'], 1), rtol=1e-5
  )
  assert all(np.less(table['predictor_smallest'], table['predictor_largest']))
  assert all(1 <= rank <= 64 for rank in table['predictor_rank'])
  for name in accuracies:
    assert all(0 <= value <= 1 for value in table[name])
  # What pixels tell, and the classes, however they are numbered.
  assert len({*table['knn_pixels']}) == len({*table['probe_pixels']}) == 1
  assert table['probe_pixels'][0] == 1
  for name in ('curve.png', 'curve-final.png', 'config.json', 'versions.json'):
    assert (undisturbed / name).stat().st_size > 0


@pytest.mark.slow
def test_stopped_between_iterations_it_goes_on(
  pictures, undisturbed, tmp_path, monkeypatch
):
  folder = tmp_path / 'run'
  arguments = (pictures, *SWEEP, f'--run_dir={folder}')
  original, calls = MetricsWriter.write_rows, []

  def write(self, *args):
    original(self, *args)
    calls.append(args)
    signal.raise_signal(signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(MetricsWriter, 'write_rows', write)
    output = sweep_here(siamese, *arguments)
  assert 'stopped after 48 gradient steps and saved' in output
  assert len(calls) == 1
  output = sweep_here(siamese, *arguments)
  assert 'at iteration 1 of 3' in output
  _same(undisturbed, folder)


@pytest.mark.slow
def test_killed_while_saving_it_goes_on(pictures, undisturbed, tmp_path):
  folder = tmp_path / 'run'
  arguments = (pictures, *SWEEP, f'--run_dir={folder}')
  killed(
    *arguments,
    '--checkpoint_period_s=1e-6',
    # In the second checkpoint, of which a part is in place.
    sabotage=('os:rename', 12),
    launcher='experiments.siamese',
  )
  assert list(folder.glob('checkpoints/000/*tmp*'))
  output = sweep_here(siamese, *arguments)
  assert 'at iteration 1 of 3' in output
  _same(undisturbed, folder)


@pytest.mark.slow
def test_runs_computed_together_are_the_same_to_rounding(
  pictures, undisturbed, tmp_path
):
  """LAPACK's batches once waited for each other, on several CPU devices."""
  folder = tmp_path / 'run'
  sweep_here(siamese, pictures, *SWEEP, '--vectorized', f'--run_dir={folder}')
  one, other = columns(undisturbed), columns(folder)
  assert one['tau'] == other['tau']
  for name in ('loss', 'normalized_std', 'encoder_effective_rank'):
    np.testing.assert_allclose(other[name], one[name], rtol=0.02)


def _same(one, other):
  """Two folders hold the same sweep, bit for bit."""
  tables = [RunFolder(folder).metrics.read_text() for folder in (one, other)]
  assert tables[0] == tables[1]
  expected, found = sweep_state(siamese, one), sweep_state(siamese, other)
  assert expected.keys() == found.keys()
  assert not [name for name in expected if expected[name] != found[name]]


def test_numbers_share_a_program(pictures):
  for arguments, programs in (
    (['--learning_rate=0.1,0.2', '--momentum=0.5,0.9'], 1),
    (['--target_update=hard', '--target_period=1,3'], 1),
    (['--also=--target_update=residual'], 2),
    (['--predictor=mlp,linear,fixed,none'], 4),
    (['--agent=simsiam,simclr', '--temperature=0.1,0.2'], 3),
  ):
    sweep = read_sweep(siamese, pictures, *SMALL, *arguments)
    assert len(groups_of(siamese, sweep)) == programs


@functools.cache
def _columns(*arguments):
  """The columns of the only program of a sweep; nothing is compiled."""
  sweep = read_sweep(siamese, *SMALL, *arguments)
  for config in sweep.configs:
    family.check(config)
  (group,) = groups_of(siamese, sweep)
  settings = group.runs[0].settings
  state = jax.eval_shape(group.loop.start, settings, jax.random.key(0))
  after, row = jax.eval_shape(group.loop.iterate, settings, state, jnp.int32(0))
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
  return row


def _rule(name):
  takes = twins.takes(name, GIVEN['target_paths'])
  return (
    f'--target_update={name}',
    *(f'--{key}={GIVEN[key]}' for key in takes if key in GIVEN),
  )


@pytest.mark.parametrize('name', of_each_kind(twins.RULES))
def test_every_rule_fits_or_is_refused(pictures, name):
  if name in ('functional', 'gradient_chain', 'iterated_heads'):
    with pytest.raises(ValueError, match=f"^target_update='{name}' needs"):
      _columns(pictures, *_rule(name))
    return
  row = _columns(pictures, *_rule(name))
  assert {'loss', 'normalized_std', 'knn_encoder'} < set(row)
  assert ('twin_term' in row) == (name == 'projected_soft')


@pytest.mark.parametrize('name', ['residual', 'chain'])
def test_rules_have_a_panel(pictures, name):
  row = _columns(pictures, *_rule(name), '--panel_period=1', '--probe_size=8')
  assert {
    'panel/twin_age',
    'panel/twin_age/encoder/Dense_0',
    'panel/twin_distance',
    'panel/functional_distance',
    'panel/target_drift',
  } < set(row)
  # Neither values of actions nor actions.
  assert not {'panel/td_own_abs', 'panel/policy_churn'} & set(row)


@pytest.mark.parametrize(
  'arguments',
  [
    ('--agent=byol', '--target_update=soft', '--tau=0.1'),
    ('--agent=simclr', '--temperature=0.5'),
    ('--optimizer=lars', '--predictor=fixed', '--twin_statistics=shared'),
    ('--optimizer=adam', '--anneal=none', '--nosymmetric'),
    ('--constant_predictor_rate', '--predictor=linear'),
    ('--noencoder_norm', '--nohead_norm', '--nooutput_norm', '--batch_size=1'),
  ],
)
def test_agents_and_optimizers_fit(pictures, arguments):
  assert {'loss', 'normalized_std'} < set(_columns(pictures, *arguments))


def test_a_mask_of_kernels_is_the_same_for_several_networks(pictures):
  params = {
    'encoder': {'Dense_0': {'kernel': np.ones((2, 3))}},
    'statistics': {},
  }
  params['encoder']['Dense_0']['bias'] = np.ones((4, 3))  # of four networks
  assert family._is_kernel(params) == {
    'encoder': {'Dense_0': {'kernel': True, 'bias': False}},
    'statistics': {},
  }


def test_periods_may_be_counted_in_epochs(pictures):
  hard = ('--target_update=hard', '--target_period=2')
  for unit, sync in (('gradient_steps', 2), ('epochs', 8)):
    sweep = read_sweep(
      siamese, pictures, *SMALL, *hard, f'--target_period_unit={unit}'
    )
    (group,) = groups_of(siamese, sweep)
    assert group.runs[0].settings['sync'] == sync


def test_a_schedule_of_the_twin_lasts_as_long_as_the_run(pictures):
  sweep = read_sweep(siamese, pictures, *SMALL, *_rule('soft_cosine'))
  (group,) = groups_of(siamese, sweep)
  assert group.runs[0].settings['target_schedule_steps'] == 24


@pytest.fixture
def refused(monkeypatch, tmp_path):
  """A function that runs the launcher here; it returns the line of error."""

  def train(self):
    raise AssertionError('training began')

  monkeypatch.setattr(compiled_engine._Runs, 'train', train)
  monkeypatch.chdir(tmp_path)

  def run(*arguments, code=2):
    err = sweep_here(siamese, *arguments, code=code)
    assert err.startswith('error: --'), err
    assert err.count('\n') == 1, err
    return err

  return run


@pytest.mark.parametrize(
  'arguments, message',
  [
    (
      ('--batch_size=40',),
      '--batch_size=40 must be at most the number of rows',
    ),
    (('--batch_size=1',), '--batch_size=1 must be 2 or more with batch norm'),
    (
      ('--agent=simclr', '--nooutput_norm', '--noencoder_norm', '--nohead_norm')
      + ('--batch_size=1',),
      '--batch_size=1 must be 2 or more for --agent=simclr',
    ),
    (('--neighbors=37',), '--neighbors=37 must be at most the 36 images'),
    (
      ('--panel_period=1', '--probe_size=13'),
      '--probe_size=13 must be at most the 12 images held out',
    ),
    (
      ('--panel_period=1', '--probe_size=1'),
      '--probe_size=1 must be 2 or more with batch normalization',
    ),
    (('--epochs=7',), '--epochs=7 must be a multiple of --iteration_epochs=2'),
    (
      ('--epochs=2000000000',),
      '--epochs=2000000000 must be of fewer than 2147483648 gradient steps',
    ),
    (('--held_out_fraction=0.001',), 'leaves 48 to train on and 0 to evaluate'),
    (('--held_out_fraction=1',), r'--held_out_fraction=1.0 must be in (0, 1)'),
    (('--encoder=small_cnn',), '--encoder=small_cnn: images of 4 x 4 are too'),
    (('--augmentation=blur',), '--augmentation=blur must be one of none, dig'),
    (('--ram_byte=54',), '--ram_byte=54 must go with --images=frames:GAME'),
    (('--frames=10',), '--frames=10 must go with --images=frames:GAME'),
    (
      ('--agent=simclr', '--target_update=soft', '--tau=0.1'),
      '--target_update=soft must be self for --agent=simclr',
    ),
    (
      ('--agent=simclr', '--predictor=linear'),
      '--predictor=linear must not be given with --agent=simclr',
    ),
    (('--temperature=0.5',), '--temperature=0.5 must go with --agent=simclr'),
    (
      ('--target_update=functional', '--twin_weight=1'),
      '--target_update=functional needs an agent with values of actions',
    ),
    (
      ('--target_update=iterated_heads', '--target_count=2'),
      '--target_update=iterated_heads needs a network with a part named last',
    ),
    (
      ('--target_update=by_path', '--target_paths=encoder:soft', '--tau=0.5'),
      '--target_paths=encoder must match every parameter, and leaves projector',
    ),
    (
      ('--twin_statistics=moved', '--noencoder_norm', '--nohead_norm')
      + ('--nooutput_norm',),
      '--twin_statistics=moved has no meaning for networks without batch norm',
    ),
    (('--target_update=soft',), '--target_update=soft needs tau'),
    (('--count_warmup',), '--count_warmup=true must be false'),
    (
      ('--reset_optimizer', '--target_update=hard'),
      '--anneal=cosine must be none with --reset_optimizer',
    ),
    (
      ('--target_update=hard', '--target_period=1000000000')
      + ('--target_period_unit=epochs',),
      '--target_period=1000000000 must be below 2147483648 gradient steps',
    ),
    (('--also=--epochs=8',), '--also=--epochs=8 must leave --epochs alone'),
    (('--also=--tau',), '--also=--tau: Missing value for flag --tau'),
    (('--momentum=0.5,0.9', '--optimizer=adam'), '--momentum=0.5,0.9 must be'),
    (('--projector_units=100000000',), 'must be so small, and the network too'),
    (('--share=batch', '--seeds=2'), '--share=batch must be runs where'),
    (('--game=pong',), '--game is no flag'),
  ],
)
def test_options(refused, pictures, arguments, message, tmp_path):
  line = refused(pictures, *SMALL, *arguments)
  assert message in line
  assert not list(tmp_path.iterdir())


def test_images_that_cannot_be_learned_from(refused, tmp_path):
  pillow = pytest.importorskip('PIL.Image')
  folder = tmp_path / 'folder'
  folder.mkdir()
  gray = np.zeros((5, 6), np.uint8)
  assert f'--images={folder}: no images (.png' in refused(f'--images={folder}')
  assert f'{folder}/: no images (.png' in refused(f'--images={folder}/')
  pillow.fromarray(gray).save(folder / 'a.png')
  pillow.fromarray(gray.T.copy()).save(folder / 'b.png')
  line = refused(f'--images={folder}')
  assert f'--images={folder}: images must have one size, but' in line
  assert 'b.png has 6 x 5' in line
  np.savez(tmp_path / 'a.npz', pictures=gray)
  line = refused(f'--images={tmp_path}/a.npz')
  assert line.endswith('/a.npz: there is no array named images\n')
  many = np.zeros((300, 4, 4, 2), np.uint8)
  np.savez(tmp_path / 'two.npz', images=many)
  two = f'--images={tmp_path}/two.npz'
  for name in ('augmentation', 'judged_as'):
    line = refused(
      two, '--batch_size=8', '--augmentation=none', f'--{name}=crops'
    )
    assert f'--{name}=crops: images must be gray or of 3 colors' in line
  assert 'none of digits, mnist5k, frames:GAME' in refused('--images=digit')
  (tmp_path / 'x.txt').write_text('mine')
  line = refused(f'--images={tmp_path}/x.txt')
  assert 'neither a folder nor an .npz file' in line
  (tmp_path / 'x.txt').rename(folder / 'two\nlines.png')
  (folder / 'a.png').unlink()
  (folder / 'b.png').unlink()
  assert 'lines.png: not an image: neither PNG' in refused(f'--images={folder}')


def _notes_of(folder):
  """What is said of a folder of images, without the name of the flag."""
  suite._make_task.cache_clear()
  sweep = read_sweep(siamese, *SMALL, f'--images={folder}')
  notes = siamese.make_task(sweep.configs[0]).notes
  assert all(note.startswith(f'--images={folder}: ') for note in notes)
  assert not any('\n' in note for note in notes)
  return [note.removeprefix(f'--images={folder}: ') for note in notes]


def test_what_was_read_is_said(tmp_path):
  pillow = pytest.importorskip('PIL.Image')
  gray = pillow.fromarray(np.zeros((4, 4), np.uint8))

  def save(name, count):
    (tmp_path / name).mkdir(exist_ok=True)
    for number in range(count):
      gray.save(tmp_path / name / f'{number}.png')

  save('.', 5)
  assert _notes_of(tmp_path) == ['5 images without labels']
  for path in tmp_path.glob('*.png'):
    path.unlink()
  save('cat', 6)
  (first,) = _notes_of(tmp_path)
  assert first.startswith('6 images of one class only: cat; ')
  save('dog', 2)
  save('fox', 0)
  (tmp_path / 'dog' / 'a.webp').write_bytes(b'')
  assert _notes_of(tmp_path) == [
    '8 images of 2 classes: cat, dog',
    'not read: 1 .webp',
    'no images in fox',
  ]
  for number in range(9):
    save(f'class\n{number}', 1)
  first, *_ = _notes_of(tmp_path)
  named = ', '.join(f'class {number}' for number in range(9))
  assert first == f'17 images of 11 classes: cat, {named}, ...'


@pytest.mark.parametrize(
  'images, module, package',
  [
    ('digits', 'sklearn', 'scikit-learn'),
    ('folder', 'PIL', 'Pillow'),
    ('frames:pong', 'ale_py', 'ale-py'),
  ],
)
def test_packages_that_are_missing(
  refused, monkeypatch, tmp_path, images, module, package
):
  (tmp_path / 'folder').mkdir()
  monkeypatch.setitem(sys.modules, module, None)
  suite._make_task.cache_clear()
  with _uncached_games():
    line = refused(f'--images={images}', code=1)
  assert line.startswith(f'error: --images={images}: ')
  assert f'needs {package}: pip install siamrl[' in line


@contextlib.contextmanager
def _uncached_games():
  """The list of games is looked for anew, before and after."""
  from siamrl.envs import ale

  ale.games.cache_clear()
  try:
    yield
  finally:
    ale.games.cache_clear()


def test_frames_of_a_game(refused):
  pytest.importorskip('ale_py')
  frames = ('--frames=40', '--batch_size=8', '--neighbors=3', '--epochs=10')
  line = refused('--images=frames:pnog', *frames)
  assert "no Atari game 'pnog'; the closest are: pong" in line
  # 0 is a byte that never changes in so short a time.
  line = refused('--images=frames:pong', *frames, '--ram_byte=0')
  assert 'ram_byte=0 has (almost) only one value' in line
  (train, held_out), classes = suite._load(
    suite.ImageOptions(
      images='frames:Pong', held_out_fraction=0.25, frames=40, ram_byte=54
    )
  )
  assert train.images.shape == (30, 84, 84, 1)
  assert classes == int(train.labels.max()) + 1
  row = _columns(
    '--images=frames:pong',
    '--frames=40',
    '--augmentation=frames',
    '--encoder=nature_cnn',
  )
  assert 'normalized_std' in row
  assert not [name for name in row if name.startswith(('knn', 'probe'))]


def test_help():
  text = help.help_text(siamese.SiameseConfig, siamese.__doc__, lists=True)
  for name in reading.as_json(siamese.SiameseConfig()):
    field = siamese.SiameseConfig.__dataclass_fields__[name]
    shown = f'--{name}' in text or f'--[no]{name}' in text
    # There is no warm-up to count.
    assert shown != bool(field.metadata['never'])
  assert max(map(len, text.splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_keeps_simsiam_from_collapsing(tmp_path):
  """Figure 2 of Chen & He (2021) in small, without normalized projections."""
  pytest.importorskip('sklearn')
  folder = tmp_path / 'run'
  sweep_here(
    siamese,
    '--images=digits',
    '--output_norm=false',
    '--epochs=200',
    '--iteration_epochs=50',
    '--also=--target_update=residual',
    f'--run_dir={folder}',
  )
  table = columns(folder)
  ends = {
    rule: (loss, std)
    for rule, loss, std, steps in zip(
      table['target_update'],
      table['loss'],
      table['normalized_std'],
      table['gradient_steps'],
      strict=True,
    )
    if steps == 1000
  }
  print(ends)
  loss, std = ends['self']
  assert loss < -0.5 and std > 0.5
  loss, std = ends['residual']
  assert loss < -0.9 and std < 0.15
