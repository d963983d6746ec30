"""Siamese agents: SimSiam, BYOL and SimCLR as one record of pure functions.

Two views of each image go through the online network, and its prediction from
either view should match the twin's projection of the other. The rule says what
the twin is, as for every other agent: the online network behind a stop-gradient
(`self`) gives SimSiam, a running average (`soft`) gives BYOL; without the
stop-gradient (`residual`) representations collapse.

Parameters are a dict of

* `encoder`, `projector`, and `predictor` if there is one;
* `statistics`: the running means and variances of batch normalization in
  encoder and projector. They are *regressed* onto those of each batch: the loss
  includes half the squared distance, so that a step of plain gradient descent
  with step size 1 - momentum makes a running average. In training nothing else
  depends on them unless the twin is normalized with them, and no other gradient
  reaches them. They need their own optimizer, SGD without momentum, weight
  decay or clipping.

All but the predictor have a twin. The predictor's own batch normalization keeps
no averages, since it only sees whole batches.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from siamrl.augment import Augmentation
from siamrl.losses import siamese as losses
from siamrl.networks.siamese import (
  LinearPredictor,
  SiameseNetworks,
  as_float,
  forward,
  init as init_network,
)
from siamrl.parameters import FieldError, check_name
from siamrl.types import Agent, Bootstrap, Metrics, Params

PREDICTORS = ('mlp', 'linear', 'none')
# The statistics that normalize the twin's forward pass.
TWIN_STATISTICS = {
  'own': 'those of the batch that it sees, as in SimSiam and BYOL',
  'shared': "the online network's running statistics",
  'moved': "the twin's running statistics, which the rule has moved",
}


class Features(NamedTuple):
  """A network's answers to images, for evaluation.

  Attributes:
    encoder: float32 [B, F].
    projections: float32 [B, D].
  """

  encoder: chex.Array
  projections: chex.Array


class SiameseAgent(NamedTuple):
  """A Siamese agent, with functions for its evaluation.

  Attributes:
    agent: the agent; its batches are images, uint8 [B, H, W, C], or floats in
      [0, 1].
    features: (params, images) -> `Features`. Images are not augmented, and
      layers are normalized with the running statistics.
    predict: (params, z [N, D], of [B, D]) -> predictions [N, D], normalized
      with the statistics of the batch `of`: rows of z do not see each other.
  """

  agent: Agent
  features: Callable[[Params, chex.Array], Features]
  predict: Callable[[Params, chex.Array, chex.Array], chex.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class _Passes:
  """Passes through the networks, and their normalization.

  Attributes:
    networks: the networks, of which encoder and projector are used.
    module: the predictor; None for the projections themselves.
    twin_statistics: a key of `TWIN_STATISTICS`.
    example: images [B, H, W, C]; only their shape matters.
  """

  networks: SiameseNetworks
  module: nn.Module | None
  twin_statistics: str
  example: chex.Array

  def check(self) -> None:
    """Raises ValueError for images or statistics that do not fit."""
    if jnp.ndim(self.example) != 4:
      raise ValueError(
        f'images must be [B, H, W, C], not {jnp.shape(self.example)}'
      )
    if self.twin_statistics == 'own':
      return
    shapes = jax.eval_shape(lambda seed: self.init(jax.random.key(seed)), 0)
    if not jax.tree.leaves(shapes['statistics']):
      raise FieldError(
        'twin_statistics',
        self.twin_statistics,
        'has no meaning for networks without batch normalization',
      )

  def init(self, key: chex.PRNGKey) -> Params:
    """Draws the parameters of all networks, and the running statistics."""
    encoder_key, projector_key, predictor_key = jax.random.split(key, 3)
    params, statistics = {}, {}
    x = self.example
    for name, network, part_key in (
      ('encoder', self.networks.encoder, encoder_key),
      ('projector', self.networks.projector, projector_key),
    ):
      params[name], statistics[name] = init_network(network, part_key, x)
      x, _ = forward(network, params[name], x, statistics[name])
    if self.module is not None:
      params['predictor'], _ = init_network(self.module, predictor_key, x)
    return {**params, 'statistics': statistics}

  def answer(
    self, params: Params, x: chex.Array, statistics: Any = None
  ) -> tuple[Features, Any]:
    """Features and projections, and the statistics that normalized them."""
    given = statistics or {'encoder': None, 'projector': None}
    h, of_encoder = forward(
      self.networks.encoder, params['encoder'], x, given['encoder']
    )
    z, of_projector = forward(
      self.networks.projector, params['projector'], h, given['projector']
    )
    return Features(h, z), {'encoder': of_encoder, 'projector': of_projector}

  def features(self, params: Params, images: chex.Array) -> Features:
    """Features and projections, normalized with the running statistics."""
    return self.answer(params, as_float(images), params['statistics'])[0]

  def values(self, params: Params, images: chex.Array) -> chex.Array:
    """Projections, normalized like those of the twin."""
    own = self.twin_statistics == 'own'
    statistics = None if own else params['statistics']
    return self.answer(params, as_float(images), statistics)[0].projections

  def bootstrap(
    self,
    online_params: Params,
    target_params: Params,
    images: chex.Array,
    key: chex.PRNGKey,
  ) -> chex.Array:
    """The twin's projections."""
    del key
    statistics = {
      'own': lambda: None,
      'shared': lambda: online_params['statistics'],
      'moved': lambda: target_params['statistics'],
    }[self.twin_statistics]()
    # Only their own term of the loss may train the statistics, even if the twin
    # is the online network with its gradient.
    statistics = jax.lax.stop_gradient(statistics)
    answer, _ = self.answer(target_params, as_float(images), statistics)
    return answer.projections

  def targets(
    self,
    online_params: Params,
    target_params: Params,
    images: chex.Array,
    key: chex.PRNGKey,
    *,
    bootstrap: Bootstrap | None = None,
  ) -> chex.Array:
    """The twin's projections of a batch's images, not augmented."""
    answer = bootstrap or self.bootstrap
    return answer(online_params, target_params, as_float(images), key)

  def predict(
    self, params: Params, z: chex.Array, of: chex.Array | None = None
  ) -> chex.Array:
    """Predictions of projections; `of` gives the statistics of a batch."""
    if self.module is None:
      return z
    weights = params['predictor']
    if of is None:
      return forward(self.module, weights, z)[0]
    _, statistics = forward(self.module, weights, of)
    return forward(self.module, weights, z, jax.lax.stop_gradient(statistics))[
      0
    ]


def make_siamese_agent(
  networks: SiameseNetworks,
  example_images: chex.Array,
  *,
  augment: Augmentation,
  loss: str = 'cosine',
  predictor: str = 'mlp',
  fixed_predictor: bool = False,
  symmetric: bool = True,
  twin_statistics: str = 'own',
  temperature: float | None = None,
) -> SiameseAgent:
  """Builds a Siamese agent.

  Args:
    networks: encoder, projector and predictor.
    example_images: [B, H, W, C]; only their shape matters.
    augment: (key, image float32 [H, W, C] in [0, 1]) -> a view of it.
    loss: one of `losses.siamese.LOSSES`. 'cosine' and 'byol' are means over the
      batch. 'contrastive' uses the online network's projections of both views
      and ignores the twin.
    predictor: 'mlp' for `networks.predictor`, 'linear' for a matrix, 'none' for
      the projections themselves.
    fixed_predictor: whether the predictor keeps its random initial parameters;
      its gradients are then 0. (A weight decay would still move it.)
    symmetric: whether both views are predicted from each other; otherwise only
      the second from the first, as in SimSiam's ablation.
    twin_statistics: a key of `TWIN_STATISTICS`.
    temperature: temperature of 'contrastive', > 0; None for
      `losses.siamese.TEMPERATURE`.

  Returns:
    An agent whose `loss` reports `loss`, without the term of the statistics,
    and `loss_gap`, its difference from its least value. Neither the loss nor
    its gradients in encoder, projector and predictor depend on the running
    statistics, unless the twin's pass is normalized with them.

    `bootstrap` returns the twin's projections of the given images or views;
    `targets` those of a batch's images, not augmented, so that they depend on
    the twin only; `values` the projections of the given parameters, normalized
    like those of the twin.

  Raises:
    ValueError: a name is unknown, options do not go together, the temperature
      is not positive, or the images are not [B, H, W, C].
  """
  check_name('predictor', predictor, PREDICTORS)
  check_name('twin_statistics', twin_statistics, TWIN_STATISTICS)
  heat = _check_loss(loss, predictor, symmetric, temperature)
  if fixed_predictor and predictor == 'none':
    raise ValueError("fixed_predictor has no meaning for predictor='none'")
  module = {
    'mlp': networks.predictor,
    'linear': LinearPredictor(),
    'none': None,
  }[predictor]
  passes = _Passes(networks, module, twin_statistics, as_float(example_images))
  passes.check()

  def loss_of(
    online_params: Params,
    target_params: Params,
    images: chex.Array,
    key: chex.PRNGKey,
    *,
    bootstrap: Bootstrap | None = passes.bootstrap,
    step: chex.Numeric | None = None,
  ) -> tuple[chex.Array, Metrics]:
    del step  # nothing is delayed
    if bootstrap is None:
      raise ValueError('encoders have no whole targets to learn toward')
    views_key, twin_key = jax.random.split(key)
    directions = 2 if symmetric else 1
    keys = jax.random.split(views_key, (2, len(images)))
    views = jax.vmap(jax.vmap(augment), (0, None))(keys, as_float(images))
    # Each view has its own pass, to be normalized by its own statistics.
    (_, z), measured = jax.vmap(passes.answer, (None, 0))(
      online_params, views[:directions]
    )
    if loss == 'contrastive':
      if len(images) < 2:
        raise FieldError('loss', 'contrastive', 'needs a batch of 2 or more')
      value = losses.contrastive(z[0], z[1], heat)
    else:
      form = losses.FORMS[loss]
      predicting = dict(online_params)
      if fixed_predictor:
        predicting['predictor'] = jax.lax.stop_gradient(predicting['predictor'])
      p = jax.vmap(passes.predict, (None, 0))(predicting, z)
      y = jax.vmap(bootstrap, (None, None, 0, 0))(
        online_params,
        target_params,
        views[::-1][:directions],
        jax.random.split(twin_key, directions),
      )
      errors = jax.vmap(jax.vmap(form.error))(p, y)  # [directions, B]
      value = form.together(jnp.mean(errors, axis=1))
    metrics = {
      'loss': value,
      'loss_gap': losses.loss_gap(
        value, loss, batch_size=len(images), temperature=heat
      ),
    }
    return value + _missed(online_params['statistics'], measured), metrics

  return SiameseAgent(
    Agent(
      passes.init,
      loss_of,
      bootstrap=passes.bootstrap,
      targets=passes.targets,
      values=passes.values,
      # Statistics that the twin does not use are not part of it.
      twinned=('encoder', 'projector')
      + (('statistics',) if twin_statistics == 'moved' else ()),
    ),
    passes.features,
    passes.predict,
  )


def _missed(statistics: Any, measured: Any) -> chex.Array:
  """Half the squared distance of the running statistics from those measured.

  Args:
    statistics: the running statistics; only they get a gradient.
    measured: the statistics of each view. Their mean is used: a step toward it
      is the mean of the steps toward each.
  """
  measured = jax.lax.stop_gradient(
    jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), measured)
  )
  missed = optax.tree.sub(statistics, measured)
  return optax.tree.norm(missed, squared=True) / 2


def _check_loss(
  loss: str, predictor: str, symmetric: bool, temperature: float | None
) -> float:
  """The temperature of a loss, after checking that the options fit it."""
  check_name('loss', loss, losses.LOSSES)
  if loss == 'contrastive':
    if predictor != 'none':
      raise FieldError(
        'loss',
        loss,
        'predicts nothing:',
        ('predictor', predictor),
        "must be 'none'",
      )
    if not symmetric:
      raise FieldError('loss', loss, 'is symmetric')
  elif temperature is not None:
    raise FieldError(
      'temperature', temperature, 'has no meaning for', ('loss', loss)
    )
  heat = losses.TEMPERATURE if temperature is None else temperature
  if not heat > 0:
    raise FieldError('temperature', temperature, 'must be positive')
  return heat
