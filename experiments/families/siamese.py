"""SimSiam, BYOL and SimCLR: options, and the agents and learners they make.

A launcher names the images.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from experiments.config import twin as twin_options
from experiments.config.declaring import (
  DECAY,
  NOT_NEGATIVE,
  POSITIVE,
  When,
  both,
  choice,
  given,
  group,
  not_given,
  one_of,
  option,
  option_errors,
  redeclared,
  refuse,
  usage_errors,
)
from experiments.config.learning import LearningOptions, as_arrays
from experiments.config.meaning import traced
from experiments.config.panel import PanelOptions
from experiments.config.runs import SweepOptions
from experiments.config.twin import TwinOptions
from experiments.families import Family
from siamrl import collapse, diagnostics, learner
from siamrl.agents import siamese
from siamrl.augment import AUGMENTATIONS
from siamrl.images import Images
from siamrl.learner import TwinSpec
from siamrl.networks.siamese import ENCODERS, siamese_networks
from siamrl.runners import epochs
from siamrl.types import Metrics, Params, Twin

# Agents by name, and their loss.
AGENTS = {'simsiam': 'cosine', 'byol': 'byol', 'simclr': 'contrastive'}

PREDICTORS = {
  'mlp': 'a hidden layer, narrower than the projections',
  'linear': 'a matrix',
  'fixed': 'an mlp that keeps its random initial weights',
  'none': 'no layers: the projections themselves',
}

UNITS = ('gradient_steps', 'epochs')

_PREDICTS = not_given('agent', 'simclr')
_LEARNS_PREDICTOR = both(_PREDICTS, given('predictor', 'mlp', 'linear'))


@dataclasses.dataclass(frozen=True)
class SiameseOptions(TwinOptions, SweepOptions):
  """The options; their defaults are SimSiam's, small."""

  target_update: str = redeclared(TwinOptions, 'target_update', 'self')
  target_period: int = redeclared(TwinOptions, 'target_period', 1)
  target_period_unit: str = redeclared(
    TwinOptions, 'target_period_unit', 'gradient_steps', bound=one_of(UNITS)
  )
  count_warmup: bool = redeclared(
    TwinOptions, 'count_warmup', never='there is no warm-up'
  )

  _length: Any = group('Length of the run')
  epochs: int = option(
    200,
    'Passes of each run over the images.',
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
    'Loss of the agent: the negative cosine (simsiam), the squared error of '
    "unit vectors (byol), or NT-Xent, which has no twin (simclr). BYOL's "
    'slow twin is --target_update=soft',
    one_of(AGENTS),
    common=True,
  )
  predictor: str = choice(
    'mlp',
    "Layers that predict the twin's projections.",
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
    "Statistics that the twin's batch normalization uses.",
    siamese.TWIN_STATISTICS,
    when=_PREDICTS,
    refused=True,
  )
  temperature: float | None = option(
    None,
    'Temperature of the contrastive loss; 0.1 if not given',
    POSITIVE,
    when=given('agent', 'simclr'),
    refused=True,
  )
  augmentation: str = option(
    'digits',
    'Augmentation that makes views of an image',
    one_of(AUGMENTATIONS),
    value_alias={'colour': 'color'},
  )
  encoder: str = choice('mlp', 'Network from images to features.', ENCODERS)
  projector_units: int = option(
    256, "Units of the projector's hidden layer.", POSITIVE
  )
  projections: int = option(64, 'Size of a projection.', POSITIVE)
  predictor_units: int = option(
    16,
    "Units of the predictor's hidden layer.",
    POSITIVE,
    when=both(_PREDICTS, given('predictor', 'mlp', 'fixed')),
  )
  encoder_norm: bool = option(True, 'Batch normalization in the encoder.')
  head_norm: bool = option(
    True, 'Batch normalization in hidden layers of projector and predictor.'
  )
  output_norm: bool = option(
    True,
    'Batch normalization of projections, without scale and bias, as in '
    'SimSiam.',
  )

  _learning: Any = group('Learning')
  optimizer: str = option('sgd', 'Optimizer', one_of(('sgd', 'adam', 'lars')))
  learning_rate: float = redeclared(LearningOptions, 'learning_rate', 0.05)
  predictor_rate: float = option(
    1.0,
    "Factor on the predictor's step size.",
    NOT_NEGATIVE,
    traced=True,
    when=_LEARNS_PREDICTOR,
  )
  momentum: float = option(
    0.9,
    'Momentum of the optimizer.',
    DECAY,
    traced=True,
    when=given('optimizer', 'sgd', 'lars'),
  )
  weight_decay: float = option(
    1e-4,
    'Weight decay; with --optimizer=lars, of kernels only.',
    NOT_NEGATIVE,
    traced=True,
  )
  anneal: str = option(
    'cosine', 'Decay of the step size to 0, or none', one_of(('cosine', 'none'))
  )
  constant_predictor_rate: bool = option(
    False,
    "Keep the predictor's step size constant, as SimSiam does.",
    when=both(_LEARNS_PREDICTOR, not_given('anneal', 'none')),
  )
  batch_size: int = option(
    256, 'Images per gradient step.', POSITIVE, common=True
  )
  statistics_momentum: float = option(
    0.9,
    'Momentum of the running averages of batch normalization.',
    DECAY,
    traced=True,
  )

  _panel: Any = group("The twin's panel")
  panel_period: int = redeclared(PanelOptions, 'panel_period')
  probe_size: int = redeclared(
    PanelOptions, 'probe_size', help='Held-out images of the panel.'
  )


class Task(Protocol):
  """Images to learn from and to judge by, such as `suites.images.Task`."""

  @property
  def train(self) -> Images: ...

  @property
  def held_out(self) -> Images: ...

  @property
  def judged(self) -> tuple[jax.Array, jax.Array]: ...

  @property
  def known(self) -> Metrics: ...

  def accuracies(
    self, name: str, labels: Any, train: jax.Array, held_out: jax.Array
  ) -> Metrics:
    """Accuracies on held-out images, from features of this name."""


@dataclasses.dataclass(frozen=True)
class _Speeds:
  """A converter of periods, like `twin_options.Speeds`.

  Attributes:
    unit: one of `UNITS`.
    epoch_steps: gradient steps of an epoch.
  """

  unit: str
  epoch_steps: int = 1

  def gradient_steps(self, period: int, name: str) -> int:
    """A period in gradient steps."""
    return period * (self.epoch_steps if self.unit == 'epochs' else 1)

  def gradient_steps_of(self, env_steps: int) -> int:
    """Zero, as there is no warm-up."""
    return 0


def check(config: SiameseOptions) -> None:
  """Raises UsageError for options that do not go together."""
  if config.epochs % config.iteration_epochs:
    refuse(
      config,
      'epochs',
      f'be a multiple of --iteration_epochs={config.iteration_epochs}',
    )
  norms = config.encoder_norm or config.head_norm or config.output_norm
  if config.batch_size < 2 and norms:
    refuse(config, 'batch_size', 'be 2 or more with batch normalization')
  if config.panel_period and config.probe_size < 2 and norms:
    refuse(config, 'probe_size', 'be 2 or more with batch normalization')
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


def _config_of(config: SiameseOptions, task: Task) -> epochs.EpochsConfig:
  return epochs.EpochsConfig(
    size=len(task.train.images),
    batch_size=config.batch_size,
    iteration_epochs=config.iteration_epochs,
    panel_period=max(config.panel_period, 1),
  )


def _clock(config: SiameseOptions, task: Task) -> tuple[_Speeds, int]:
  """The converter of periods, and the gradient steps of a whole run."""
  steps = _config_of(config, task).epoch_steps
  return _Speeds(config.target_period_unit, steps), steps * config.epochs


def _twin_spec(config: SiameseOptions, task: Task) -> TwinSpec:
  """The twin that the options describe, in gradient steps."""
  return twin_options.make_spec(config, *_clock(config, task))


def settings_of(config: SiameseOptions, task: Task) -> dict[str, Any]:
  """The numbers of a run that may be traced, except for its key."""
  settings = twin_options.settings_of(_twin_spec(config, task))
  others = [name for name in traced(type(config)) if name not in settings]
  return settings | as_arrays(vars(config), others)


def make_agent(config: SiameseOptions, task: Task) -> siamese.SiameseAgent:
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
  config: SiameseOptions,
  agent: Any,
  settings: Mapping[str, jax.Array],
  gradient_steps: int,
) -> optax.GradientTransformation:
  """The optimizers of all entries of the parameters."""

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
  """The mask of kernels, which alone LARS decays and scales."""
  # By name: rules with several networks stack their biases.
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: jax.tree_util.keystr(path[-1:], simple=True) == 'kernel',
    params,
  )


def make_judge(
  config: SiameseOptions, task: Task, twin: Twin
) -> Callable[[Params], Metrics]:
  """Makes the judge of representations on held-out images.

  Args:
    config: the options.
    task: the images.
    twin: selects the network that counts, if there are several.

  Returns:
    online_params -> accuracies in [0, 1], if there are labels; measures of the
    collapse of projections; and the largest and smallest singular value and the
    effective rank of the predictor, if there is one.
  """
  agent = make_agent(config, task)
  # The lift knows the network that counts.
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
    labels = [task.train.labels, task.held_out.labels]
    for name, seen, asked in (
      ('encoder', train.encoder, held_out.encoder),
      ('projection', train.projections, held_out.projections),
    ):
      row |= task.accuracies(name, labels, seen, asked)
    row |= collapse.measures(held_out.projections)
    if spectrum is not None:
      lengths = spectrum(params, held_out.projections)
      row |= {
        f'predictor_{name}': value
        for name, value in collapse.stretch(lengths).items()
      }
    return row | {
      f'encoder_{name}': value
      for name, value in collapse.measures(held_out.encoder).items()
    }

  return judge


def make_setup(
  config: SiameseOptions, task: Task, settings: Mapping[str, jax.Array]
) -> epochs.Setup:
  """The learner of a run, and how it is judged.

  Args:
    config: the options; `settings` replace those that are traced.
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


def make_loop(config: SiameseOptions, task: Task) -> epochs.Loop:
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
    headline='normalized_std' if task.train.labels is None else 'knn_encoder',
  )


def _check_images(config: SiameseOptions, task: Task) -> None:
  """Raises UsageError for options that the images do not fit."""
  key = jax.random.key(0)
  with option_errors('augmentation', config.augmentation):
    jax.eval_shape(AUGMENTATIONS[config.augmentation], key, task.judged[0][0])
  agent = make_agent(config, task).agent
  with option_errors('encoder', config.encoder):
    jax.eval_shape(agent.init, key)


FAMILY = Family(
  check=check,
  settings=settings_of,
  make_loop=make_loop,
  iterations=lambda config: config.epochs // config.iteration_epochs,
)
