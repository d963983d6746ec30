"""Siamese representation learning: SimSiam, BYOL, SimCLR, and their twins.

SimSiam on small images, and what becomes of it without a stop-gradient or with
a slower twin:

  python -m experiments.siamese --images=digits
  python -m experiments.siamese --images=digits --seeds=5 --output_norm=false \\
      --also="--target_update=residual; --target_update=soft --tau=0.1,0.01"

The agent is one: what tells SimSiam from BYOL is the rule of the twin, by the
names that it has everywhere. Runs that differ in numbers only are one compiled
program, shared by all devices. Everything is kept in one folder, --run_dir: the
flags, metrics.csv with a row for each run and iteration, plots, checkpoints.
Ctrl-C or SIGTERM saves and stops, and the same command, without --overwrite,
resumes.

Accuracies are of nearest neighbours and of a linear probe on images held out,
by features of the encoder and by projections; columns that end in _pixels are
the same of the images themselves. Exit codes: 0 for runs that finished or were
stopped, 2 for flags that cannot be, 1 for anything else in the way, 130 for a
second Ctrl-C.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import pathlib
import re
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config import executing, twin as twin_options
from experiments.config.declaring import (
  Bound,
  DECAY,
  NOT_NEGATIVE,
  POSITIVE,
  RunError,
  UsageError,
  When,
  both,
  choice,
  given,
  group,
  not_given,
  one_of,
  option,
  path_option,
  redeclared,
  refuse,
  usage_errors,
)
from experiments.config.learning import as_arrays
from experiments.config.meaning import traced
from experiments.config.panel import PanelOptions
from experiments.config.reading import Sweep
from experiments.config.runs import SweepOptions
from experiments.config.twin import TwinOptions
from experiments.engines import sweeps
from siamrl import collapse, diagnostics, images, learner, probing
from siamrl.agents import siamese
from siamrl.augment import AUGMENTATIONS
from siamrl.diagnostics import effective_rank
from siamrl.envs import frames
from siamrl.learner import TwinSpec
from siamrl.networks.siamese import ENCODERS, as_float, siamese_networks
from siamrl.runners import epochs
from siamrl.types import Metrics, Params, Twin

# Agents by name, and their loss.
AGENTS = {'simsiam': 'cosine', 'byol': 'byol', 'simclr': 'contrastive'}

PREDICTORS = {
  'mlp': 'a hidden layer, narrower than the projections',
  'linear': 'a matrix',
  'fixed': 'the first, as random as it was born',
  'none': 'the projections themselves',
}

UNITS = ('gradient_steps', 'epochs')

# Frames of a game's name: frames:pong.
_FRAMES = re.compile(r'frames:(.*)')

# Names of classes that are shown; there may be thousands.
_SHOWN = 10

_PART = Bound(lambda x: 0 < x < 1, 'in (0, 1)')


_PLAYED = When(
  lambda config: _FRAMES.fullmatch(config.images) is not None,
  'with --images=frames:GAME',
)
_PREDICTS = not_given('agent', 'simclr')
_LEARNS_PREDICTOR = both(_PREDICTS, given('predictor', 'mlp', 'linear'))


@dataclasses.dataclass(frozen=True)
class SiameseConfig(TwinOptions, SweepOptions):
  """The options; their defaults are SimSiam's, small."""

  target_update: str = redeclared(TwinOptions, 'target_update', 'self')
  target_period: int = redeclared(TwinOptions, 'target_period', 1)
  target_period_unit: str = redeclared(
    TwinOptions, 'target_period_unit', 'gradient_steps', bound=one_of(UNITS)
  )
  count_warmup: bool = redeclared(
    TwinOptions, 'count_warmup', never='there is no warm-up'
  )

  _data: Any = group('The images')
  images: str = path_option(
    'digits',
    'digits (8 x 8) or mnist5k (28 x 28), which come with packages; '
    'frames:GAME of an Atari game, played at random; or the path of an .npz '
    'file, or of a folder of PNG and JPEG files, with a sub-folder for each '
    'class or with none.',
    single=True,
    common=True,
  )
  held_out_fraction: float = option(
    0.2, 'Of the images, to judge by.', _PART, single=True
  )
  frames: int = option(
    5_000,
    'Number of frames of a game.',
    POSITIVE,
    single=True,
    when=_PLAYED,
    refused=True,
  )
  ram_byte: int = option(
    -1,
    "Byte of a game's memory to be told from its frames, in 8 classes of about "
    'the same size; -1 for none.',
    Bound(lambda x: -1 <= x < 128, 'from -1 to 127'),
    single=True,
    when=_PLAYED,
    refused=True,
  )
  augmentation: str = option(
    'digits', 'How an image becomes a view', one_of(AUGMENTATIONS)
  )

  _length: Any = group('How long they are')
  epochs: int = option(
    200,
    'Passes over the images, of each run.',
    POSITIVE,
    single=True,
    common=True,
  )
  iteration_epochs: int = option(
    10,
    'Epochs from one row of metrics.csv to the next.',
    POSITIVE,
    single=True,
  )

  _agent: Any = group('The agent')
  agent: str = option(
    'simsiam',
    'The loss: the negative cosine (simsiam), the squared error of unit '
    'vectors (byol), or NT-Xent, which has no twin (simclr). The slow twin of '
    'BYOL is --target_update=soft',
    one_of(AGENTS),
    common=True,
  )
  predictor: str = choice(
    'mlp',
    'What meets the projections of the twin:',
    PREDICTORS,
    when=_PREDICTS,
    # 'none' is the predictor that the other agent has.
    refused=When(
      lambda config: _PREDICTS.holds(config) or config.predictor == 'none',
      _PREDICTS.text,
    ),
  )
  symmetric: bool = option(
    True, 'Predict each view from the other one.', when=_PREDICTS, refused=True
  )
  twin_statistics: str = choice(
    'own',
    "What the twin's batch normalisation uses:",
    siamese.TWIN_STATISTICS,
    when=_PREDICTS,
    refused=True,
  )
  temperature: float | None = option(
    None,
    'Of the contrastive loss; 0.1 if not given',
    POSITIVE,
    when=given('agent', 'simclr'),
    refused=True,
  )
  encoder: str = choice('mlp', 'Maps images to features:', ENCODERS)
  projector_units: int = option(
    256, "Of the projector's hidden layer.", POSITIVE
  )
  projections: int = option(64, 'Numbers in a projection.', POSITIVE)
  predictor_units: int = option(
    16,
    "Of the predictor's hidden layer.",
    POSITIVE,
    when=both(_PREDICTS, given('predictor', 'mlp', 'fixed')),
  )
  encoder_norm: bool = option(True, 'Batch normalisation in the encoder.')
  head_norm: bool = option(
    True, 'In the hidden layers of projector and predictor.'
  )
  output_norm: bool = option(
    True, 'Of the projections, without scale and bias, as in SimSiam.'
  )

  _learning: Any = group('Learning')
  optimizer: str = option('sgd', 'Optimiser', one_of(('sgd', 'adam', 'lars')))
  learning_rate: float = option(
    0.05, 'Step size.', POSITIVE, traced=True, common=True
  )
  predictor_rate: float = option(
    1.0,
    "The predictor's step size, times this.",
    NOT_NEGATIVE,
    traced=True,
    when=_LEARNS_PREDICTOR,
  )
  momentum: float = option(
    0.9,
    'Share of the last update that is taken again.',
    DECAY,
    traced=True,
    when=given('optimizer', 'sgd', 'lars'),
  )
  weight_decay: float = option(
    1e-4,
    'Of all weights; with lars of kernels only.',
    NOT_NEGATIVE,
    traced=True,
  )
  anneal: str = option(
    'cosine', 'How the step size falls to 0', one_of(('cosine', 'none'))
  )
  constant_predictor_rate: bool = option(
    False,
    "Leave the predictor's step size as it is, as SimSiam does.",
    when=both(_LEARNS_PREDICTOR, not_given('anneal', 'none')),
  )
  batch_size: int = option(
    256, 'Images per gradient step.', POSITIVE, common=True
  )
  statistics_momentum: float = option(
    0.9,
    'Of the running averages of batch normalisation.',
    DECAY,
    traced=True,
  )

  _evaluation: Any = group('Evaluation, after each iteration')
  judged_as: str = option(
    'none',
    'What becomes of images, once and for all, before they are judged by',
    one_of(AUGMENTATIONS),
    single=True,
  )
  neighbours: int = option(
    20, 'Images that vote, by their cosine.', POSITIVE, single=True
  )
  vote_temperature: float = option(
    0.07, 'Of their votes.', POSITIVE, single=True
  )
  probe_ridge: float = option(
    1e-3, 'Penalty of the linear probe, relative.', POSITIVE, single=True
  )

  _panel: Any = group("The twin's panel")
  panel_period: int = redeclared(PanelOptions, 'panel_period')
  probe_size: int = redeclared(
    PanelOptions, 'probe_size', help='Held-out images that it looks at.'
  )


class Task(NamedTuple):
  """What is learnt from, and judged by.

  Attributes:
    name: for folders and titles.
    train: images [N, H, W, C], and labels or None.
    held_out: the same.
    classes: that labels tell apart; 0 without labels.
    judged: images of both that representations are judged by, float32.
    known: accuracies by these images themselves.
    notes: what the user is told of them, a line each.
  """

  name: str
  train: images.Images
  held_out: images.Images
  classes: int
  judged: tuple[jax.Array, jax.Array]
  known: Metrics
  notes: tuple[str, ...]


@functools.cache
def _load(
  source: str, held_out_fraction: float, count: int, ram_byte: int
) -> tuple[images.Split, int]:
  """The images of both parts, on the device, and how many classes."""
  game = _FRAMES.fullmatch(source)
  if game:
    loaded = frames.collect_frames(
      game[1], count, ram_byte=None if ram_byte < 0 else ram_byte
    )
  else:
    loaded = images.load_images(source)
  classes = 0
  if loaded.labels is not None:
    # Without the gaps: each class is a column of the probe.
    found, labels = np.unique(loaded.labels, return_inverse=True)
    if len(found) > 1:
      loaded, classes = loaded._replace(labels=labels), len(found)
    else:  # such as those of a folder in a folder
      loaded = loaded._replace(labels=None)
  # The same split for all seeds: what differs is learning. Frames are held out
  # with the episodes that they are of.
  parts = images.split(*loaded, held_out_fraction, seed=None if game else 0)
  return jax.tree.map(jnp.asarray, parts), classes


def make_task(config: SiameseConfig) -> Task:
  """Reads the images that the options name; the same arrays each time."""
  try:
    (train, held_out), classes = _load(*_source_of(config))
  except FileNotFoundError as error:
    if config.images in images.NAMES:
      raise RunError(f'--images={error}') from error
    raise UsageError(
      f'--images={config.images}: no such file or folder, and none of '
      f'{", ".join(images.NAMES)}, frames:GAME'
    ) from error
  except (ValueError, ImportError, OSError) as error:
    kind = UsageError if isinstance(error, ValueError) else RunError
    text = str(error).removeprefix(f'{pathlib.Path(config.images)}: ')
    text = ' '.join(text.splitlines())  # names of files may hold any character
    raise kind(f'--images={config.images}: {text}') from error
  if config.neighbours > len(train.images):
    refuse(
      config,
      'neighbours',
      f'be at most the {len(train.images)} images to learn from',
    )
  judged, known = _judged(
    *_source_of(config), config.judged_as, _judges_of(config)
  )
  name = re.sub(r'\W+', '_', config.images).strip('_')
  notes = _notes(*_source_of(config))
  return Task(name, train, held_out, classes, judged, known, notes)


@functools.cache
def _notes(
  source: str, held_out_fraction: float, count: int, ram_byte: int
) -> tuple[str, ...]:
  """What was read, for the user to compare with what is meant."""
  parts, classes = _load(source, held_out_fraction, count, ram_byte)
  number = sum(len(part.images) for part in parts)
  listing = None
  if source not in images.NAMES and pathlib.Path(source).is_dir():
    listing = images.list_folder(source)
  names = listing.classes if listing else ()
  shown = f': {", ".join(names[:_SHOWN])}' if names else ''
  shown += ', ...' if len(names) > _SHOWN else ''
  if classes:
    lines = [f'{number:,} images of {classes} classes{shown}']
  elif names:
    lines = [
      f'{number:,} images of one class only{shown}; there is nothing to tell '
      'apart, and no accuracy is measured'
    ]
  else:
    lines = [f'{number:,} images without labels']
  if listing and listing.unread:
    lines.append(f'not read: {images.describe(listing.unread)}')
  if listing and listing.empty:
    lines.append(f'no images in {", ".join(listing.empty)}')
  # Names of files may hold any character.
  return tuple(
    ' '.join(f'--images={source}: {line}'.splitlines()) for line in lines
  )


def _source_of(config: SiameseConfig) -> tuple[str, float, int, int]:
  return (
    config.images,
    config.held_out_fraction,
    config.frames,
    config.ram_byte,
  )


class _Judges(NamedTuple):
  """The options of nearest neighbours and of the linear probe."""

  neighbours: int
  vote_temperature: float
  probe_ridge: float


def _judges_of(config: SiameseConfig) -> _Judges:
  return _Judges(config.neighbours, config.vote_temperature, config.probe_ridge)


@functools.cache
def _judged(
  source: str,
  held_out_fraction: float,
  count: int,
  ram_byte: int,
  judged_as: str,
  judges: _Judges,
) -> tuple[tuple[jax.Array, jax.Array], Metrics]:
  """One view of each image, the same for all runs, and what pixels tell."""
  parts, classes = _load(source, held_out_fraction, count, ram_byte)
  augment = AUGMENTATIONS[judged_as]

  def view(number: int, pictures: Any) -> jax.Array:
    keys = jax.random.split(jax.random.key(number), len(pictures))
    return jax.vmap(augment)(keys, as_float(pictures))

  @jax.jit
  def look(
    parts: images.Split,
  ) -> tuple[tuple[jax.Array, jax.Array], Metrics]:
    train, held_out = (view(n, part.images) for n, part in enumerate(parts))
    pixels = [seen.reshape(len(seen), -1) for seen in (train, held_out)]
    labels = [part.labels for part in parts]
    known = _accuracies(judges, classes, labels, 'pixels', *pixels)
    return (train, held_out), known

  with _speaking_of('judged_as', judged_as):
    judged, known = look(parts)
  return judged, jax.device_get(known)


@contextlib.contextmanager
def _speaking_of(name: str, value: Any) -> Iterator[None]:
  """Has ValueErrors of the library speak of an option."""
  try:
    yield
  except ValueError as error:
    raise UsageError(f'--{name}={value}: {error}') from error


@dataclasses.dataclass(frozen=True)
class _Speeds:
  """What converts periods, as `twin_options.Speeds` does.

  Attributes:
    unit: one of `UNITS`.
    epoch_steps: gradient steps of an epoch; 1 where it does not matter.
  """

  unit: str
  epoch_steps: int = 1

  def gradient_steps(self, period: int, name: str) -> int:
    """A period in gradient steps."""
    return period * (self.epoch_steps if self.unit == 'epochs' else 1)

  def gradient_steps_of(self, env_steps: int) -> int:
    """None are taken for a warm-up."""
    return 0


def check(config: SiameseConfig) -> None:
  """Raises UsageError for options that do not go together."""
  if config.epochs % config.iteration_epochs:
    refuse(
      config,
      'epochs',
      f'be a multiple of --iteration_epochs={config.iteration_epochs}',
    )
  norms = config.encoder_norm or config.head_norm or config.output_norm
  if config.batch_size < 2 and norms:
    refuse(config, 'batch_size', 'be 2 or more with batch normalisation')
  if config.panel_period and config.probe_size < 2 and norms:
    refuse(config, 'probe_size', 'be 2 or more with batch normalisation')
  if config.agent == 'simclr':
    if config.batch_size < 2:
      refuse(config, 'batch_size', 'be 2 or more for --agent=simclr')
    if config.target_update != 'self':
      refuse(
        config, 'target_update', 'be self for --agent=simclr: it has no twin'
      )
  if config.reset_optimizer and config.anneal != 'none':
    refuse(config, 'anneal', 'be none with --reset_optimizer')
  with usage_errors():
    twin_options.make_spec(config, _Speeds(config.target_period_unit), 1)


def _config_of(config: SiameseConfig, task: Task) -> epochs.EpochsConfig:
  return epochs.EpochsConfig(
    size=len(task.train.images),
    batch_size=config.batch_size,
    iteration_epochs=config.iteration_epochs,
    panel_period=max(config.panel_period, 1),
  )


def _clock(config: SiameseConfig, task: Task) -> tuple[_Speeds, int]:
  """What converts periods, and the gradient steps of a whole run."""
  steps = _config_of(config, task).epoch_steps
  return _Speeds(config.target_period_unit, steps), steps * config.epochs


def _twin_spec(config: SiameseConfig, task: Task) -> TwinSpec:
  """The twin that the options describe, in gradient steps."""
  return twin_options.make_spec(config, *_clock(config, task))


def settings_of(config: SiameseConfig, task: Task) -> dict[str, Any]:
  """The numbers of a run that may be traced; its key is beside them."""
  settings = twin_options.settings_of(_twin_spec(config, task))
  others = [name for name in traced(type(config)) if name not in settings]
  return settings | as_arrays(vars(config), others)


def make_agent(config: SiameseConfig, task: Task) -> siamese.SiameseAgent:
  """The agent that the options describe, not lifted by any twin.

  Raises:
    ValueError: options that do not go together.
  """
  contrasts = config.agent == 'simclr'
  fixed = config.predictor == 'fixed'
  predictor = 'mlp' if fixed else config.predictor
  networks = siamese_networks(
    config.encoder,
    projector_sizes=(config.projector_units,),
    projections=config.projections,
    predictor_units=config.predictor_units,
    encoder_norm=config.encoder_norm,
    head_norm=config.head_norm,
    output_norm=config.output_norm,
    inside_loop=True,
  )
  return siamese.make_siamese_agent(
    networks,
    task.train.images[:2],
    augment=AUGMENTATIONS[config.augmentation],
    loss=AGENTS[config.agent],
    predictor='none' if contrasts else predictor,
    fixed_predictor=fixed and not contrasts,
    symmetric=config.symmetric or contrasts,
    twin_statistics='own' if contrasts else config.twin_statistics,
    temperature=config.temperature if contrasts else None,
  )


def _make_optimizer(
  config: SiameseConfig,
  agent: Any,
  settings: Mapping[str, jax.Array],
  gradient_steps: int,
) -> optax.GradientTransformation:
  """Of all entries of the parameters, each as it wants it."""

  def descent(scale: Any, constant: bool) -> optax.GradientTransformation:
    rate: Any = settings['learning_rate'] * scale
    if config.anneal == 'cosine' and not constant:
      highest = rate
      rate = lambda step: (
        highest * (1 + jnp.cos(jnp.pi * step / gradient_steps)) / 2
      )
    decay = optax.add_decayed_weights(settings['weight_decay'])
    if config.optimizer == 'adam':
      return optax.chain(decay, optax.adam(rate))
    if config.optimizer == 'lars':
      return optax.lars(
        rate,
        weight_decay=settings['weight_decay'],
        weight_decay_mask=_is_kernel,
        trust_ratio_mask=_is_kernel,
        momentum=settings['momentum'],
      )
    return optax.chain(decay, optax.sgd(rate, momentum=settings['momentum']))

  entries = jax.eval_shape(lambda: agent.init(jax.random.key(config.seed)))
  optimizers = dict.fromkeys(entries, descent(1.0, False))
  optimizers['statistics'] = optax.sgd(1 - settings['statistics_momentum'])
  if config.predictor == 'fixed':
    optimizers['predictor'] = optax.set_to_zero()
  elif 'predictor' in optimizers:
    optimizers['predictor'] = descent(
      settings['predictor_rate'], config.constant_predictor_rate
    )
  return learner.make_optimizers(agent, optimizers)


def _is_kernel(params: Params) -> Params:
  """Biases and normalisation are neither decayed nor scaled by LARS."""
  # By name: rules with several networks stack their biases.
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: jax.tree_util.keystr(path[-1:], simple=True) == 'kernel',
    params,
  )


def make_judge(
  config: SiameseConfig, task: Task, twin: Twin
) -> Callable[[Params], Metrics]:
  """What representations are worth, by the images held out.

  Args:
    config: the options.
    task: the images.
    twin: of several networks, the rule names the one that counts.

  Returns:
    online_params -> accuracies in [0, 1], where there are labels; how far the
    projections are from collapse; and of the predictor, if there is one, how
    much it stretches projections, at most and at least, and in how many
    directions: its singular values and their effective rank.
  """
  agent = make_agent(config, task)
  # Through the lift, which knows the network that counts.
  look = twin.lift(agent.agent._replace(values=agent.features)).values

  spectrum = None
  if config.agent != 'simclr' and config.predictor != 'none':
    spectrum = twin.lift(
      agent.agent._replace(
        values=lambda params, z: collapse.predictor_spectrum(
          lambda moved: agent.predict(params, moved, z), z
        )
      )
    ).values

  def judge(params: Params) -> Metrics:
    train, held_out = (look(params, view) for view in task.judged)
    row = dict(task.known)
    judges = _judges_of(config)
    labels = [task.train.labels, task.held_out.labels]
    for name, seen, asked in (
      ('encoder', train.encoder, held_out.encoder),
      ('projection', train.projections, held_out.projections),
    ):
      row |= _accuracies(judges, task.classes, labels, name, seen, asked)
    row |= collapse.measures(held_out.projections)
    if spectrum is not None:
      lengths = spectrum(params, held_out.projections)
      row |= {
        'predictor_largest': lengths[0],
        'predictor_smallest': lengths[-1],
        'predictor_rank': effective_rank(lengths),
      }
    return row | {
      f'encoder_{name}': value
      for name, value in collapse.measures(held_out.encoder).items()
    }

  return judge


def _accuracies(
  judges: _Judges,
  classes: int,
  labels: Sequence[Any],
  name: str,
  train: jax.Array,
  held_out: jax.Array,
) -> Metrics:
  """On images held out, by these features; nothing without labels.

  Args:
    judges: options.
    classes: that labels tell apart; 0 without labels.
    labels: of the images to learn from and of those held out.
    name: of the features.
    train: features [N, F] of the images to learn from.
    held_out: features [M, F] of the others.
  """
  if not classes:
    return {}
  known, asked = labels
  votes = probing.nearest_neighbours(
    train,
    known,
    held_out,
    num_classes=classes,
    neighbours=judges.neighbours,
    temperature=judges.vote_temperature,
  )
  # One run after the other where they are vmapped: `singular_values` says why.
  probe = jax.custom_batching.sequential_vmap(
    functools.partial(
      probing.linear_probe, num_classes=classes, ridge=judges.probe_ridge
    )
  )
  scores = probe(train, known, held_out)
  return {
    f'knn_{name}': probing.accuracy(votes, asked),
    f'probe_{name}': probing.accuracy(scores, asked),
  }


def make_setup(
  config: SiameseConfig, task: Task, settings: Mapping[str, jax.Array]
) -> epochs.Setup:
  """What learns in a run, and how it is judged.

  Args:
    config: gives all but the traced options.
    task: the images.
    settings: the traced options, as `settings_of` has them.
  """
  _, gradient_steps = _clock(config, task)
  twin = twin_options.traced(_twin_spec(config, task), settings)
  agent = make_agent(config, task).agent
  optimizer = _make_optimizer(config, agent, settings, gradient_steps)
  made = learner.make_learner(agent, optimizer, twin.make())
  return epochs.Setup(
    learner=made,
    judge=make_judge(config, task, made.clocked.twin),
    panel=diagnostics.make_panel(made) if config.panel_period else None,
  )


def make_loop(config: SiameseConfig, task: Task) -> epochs.Loop:
  """The functions of a run; raises UsageError for options that do not fit."""
  held_out = task.held_out.images
  if config.panel_period and config.probe_size > len(held_out):
    refuse(
      config, 'probe_size', f'be at most the {len(held_out)} images held out'
    )
  loop_config = _config_of(config, task)
  if loop_config.epoch_steps * config.epochs >= 2**31:
    refuse(
      config,
      'epochs',
      f'be of fewer than {2**31} gradient steps; an epoch takes '
      f'{loop_config.epoch_steps}',
    )
  _check_images(config, task)
  return epochs.Loop(
    config=loop_config,
    data=task.train.images,
    probe=held_out[: config.probe_size],
    make_setup=functools.partial(make_setup, config, task),
    headline='normalised_std' if task.train.labels is None else 'knn_encoder',
  )


def _check_images(config: SiameseConfig, task: Task) -> None:
  """Raises UsageError for options that the images do not fit."""
  key = jax.random.key(0)
  with _speaking_of('augmentation', config.augmentation):
    jax.eval_shape(AUGMENTATIONS[config.augmentation], key, task.judged[0][0])
  agent = make_agent(config, task).agent
  with _speaking_of('encoder', config.encoder):
    jax.eval_shape(agent.init, key)


FAMILY = sweeps.Family(
  check=check,
  settings=settings_of,
  make_loop=make_loop,
  iterations=lambda config: config.epochs // config.iteration_epochs,
)


def main(sweep: Sweep) -> None:
  """Trains all runs of a sweep."""
  sweeps.main(sweep, make_task, FAMILY)


def run() -> NoReturn:
  """Does what the command line says, and exits."""
  executing.run(SiameseConfig, __doc__, main, lists=True)


if __name__ == '__main__':
  run()
