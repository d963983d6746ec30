"""Siamese agents: SimSiam, BYOL and SimCLR as one record of pure functions.

Two views of each image go through the online network, and its predictions of
either view are to meet the twin's projections of the other. What the twin is
says the rule, as for every other agent: the online network behind a
stop-gradient (`self`) makes SimSiam, a running average (`soft`) BYOL; without
the stop-gradient (`residual`) representations collapse.

Parameters are a dict of

* `encoder`, `projector`, and `predictor` if there is one;
* `statistics`: the running means and variances of batch normalisation in
  encoder and projector. They are *regressed* onto those of each batch: the loss
  has half their squared distance, so that a step of plain gradient descent with
  step size 1 - momentum is the running average. Nothing else depends on them in
  training unless the twin is normalised with them, and no other gradient
  reaches them. They want an optimiser of their own, SGD without momentum,
  weight decay or clipping.

All but the predictor have a twin. The predictor's own batch normalisation keeps
no averages: nobody asks for predictions outside of a batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
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
# What the twin's forward pass is normalised with.
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
  """A Siamese agent, and what only its evaluation asks for.

  Attributes:
    agent: for the rule to lift and the learner to train; its batches are
      images, uint8 [B, H, W, C], or floats in [0, 1].
    features: (params, images) -> what representations are judged by. Images are
      not augmented, and normalised with the running statistics.
    predict: (params, z [N, D], of [B, D]) -> predictions [N, D], normalised
      with the statistics of the batch `of`: rows of z do not see each other.
  """

  agent: Agent
  features: Callable[[Params, chex.Array], Features]
  predict: Callable[[Params, chex.Array, chex.Array], chex.Array]


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
    example_images: [B, H, W, C], of any content; gives `init` its shapes.
    augment: (key, image float32 [H, W, C] in [0, 1]) -> a view of it.
    loss: one of `losses.siamese.LOSSES`. Both of 'cosine' and 'byol' are means
      over the batch. 'contrastive' takes the online network's projections of
      both views, and heeds no twin.
    predictor: 'mlp' for `networks.predictor`, 'linear' for a matrix, 'none' for
      the projections themselves.
    fixed_predictor: the predictor stays as random as it was born: its gradients
      are 0. (A weight decay would still move it.)
    symmetric: both views are predicted from each other; else the second from
      the first only, as in SimSiam's ablation.
    twin_statistics: a key of `TWIN_STATISTICS`.
    temperature: of 'contrastive', > 0; None for `losses.siamese.TEMPERATURE`.

  Returns:
    An agent whose `loss` reports `loss`, without the term of the statistics,
    and how far it is above its least, `loss_gap`.
    Neither it nor its gradients in encoder, projector and predictor depend on
    the running statistics, unless the twin's pass is normalised with them.

    `bootstrap` gives the twin's projections of the images as they are, or of
    views; `targets` the same of a batch's images, not augmented, so that two
    looks at one batch differ by the twin alone; `values` the projections of
    some parameters, normalised as those of the twin are.

  Raises:
    ValueError: a name is unknown, options do not go together, the temperature
      is not positive, or the images are not [B, H, W, C].
  """
  for field, value, allowed in (
    ('loss', loss, losses.LOSSES),
    ('predictor', predictor, PREDICTORS),
    ('twin_statistics', twin_statistics, TWIN_STATISTICS),
  ):
    check_name(field, value, allowed)
  if jnp.ndim(example_images) != 4:
    raise ValueError(
      f'images must be [B, H, W, C], not {jnp.shape(example_images)}'
    )
  contrasts = loss == 'contrastive'
  if contrasts and predictor != 'none':
    raise FieldError(
      'loss',
      'contrastive',
      'predicts nothing:',
      ('predictor', predictor),
      "must be 'none'",
    )
  if contrasts and not symmetric:
    raise FieldError('loss', 'contrastive', 'is symmetric')
  if not contrasts and temperature is not None:
    raise FieldError(
      'temperature', temperature, 'has no meaning for', ('loss', loss)
    )
  heat = losses.TEMPERATURE if temperature is None else temperature
  if not heat > 0:
    raise FieldError('temperature', temperature, 'must be positive')
  if fixed_predictor and predictor == 'none':
    raise ValueError("fixed_predictor has no meaning for predictor='none'")
  module = {
    'mlp': networks.predictor,
    'linear': LinearPredictor(),
    'none': None,
  }[predictor]
  example = as_float(example_images)

  def init(key: chex.PRNGKey) -> Params:
    encoder_key, projector_key, predictor_key = jax.random.split(key, 3)
    params, statistics = {}, {}
    x = example
    for name, network, part_key in (
      ('encoder', networks.encoder, encoder_key),
      ('projector', networks.projector, projector_key),
    ):
      params[name], statistics[name] = init_network(network, part_key, x)
      x, _ = forward(network, params[name], x, statistics[name])
    if module is not None:
      params['predictor'], _ = init_network(module, predictor_key, x)
    return {**params, 'statistics': statistics}

  if twin_statistics != 'own':
    shapes = jax.eval_shape(lambda seed: init(jax.random.key(seed)), 0)
    if not jax.tree.leaves(shapes['statistics']):
      raise FieldError(
        'twin_statistics',
        twin_statistics,
        'has no meaning for networks without batch normalisation',
      )

  def answer(
    params: Params, x: chex.Array, statistics: Any = None
  ) -> tuple[Features, Any]:
    """Features and projections, and the statistics that normalised them."""
    given = statistics or {'encoder': None, 'projector': None}
    h, of_encoder = forward(
      networks.encoder, params['encoder'], x, given['encoder']
    )
    z, of_projector = forward(
      networks.projector, params['projector'], h, given['projector']
    )
    return Features(h, z), {'encoder': of_encoder, 'projector': of_projector}

  def features(params: Params, images: chex.Array) -> Features:
    return answer(params, as_float(images), params['statistics'])[0]

  own = twin_statistics == 'own'

  def values(params: Params, images: chex.Array) -> chex.Array:
    statistics = None if own else params['statistics']
    return answer(params, as_float(images), statistics)[0].projections

  def bootstrap(
    online_params: Params,
    target_params: Params,
    images: chex.Array,
    key: chex.PRNGKey,
  ) -> chex.Array:
    del key
    statistics = {
      'own': lambda: None,
      'shared': lambda: online_params['statistics'],
      'moved': lambda: target_params['statistics'],
    }[twin_statistics]()
    # Learnt by their own term alone, also where the twin is the online network
    # with its gradient.
    statistics = jax.lax.stop_gradient(statistics)
    return answer(target_params, as_float(images), statistics)[0].projections

  def targets(
    online_params: Params,
    target_params: Params,
    images: chex.Array,
    key: chex.PRNGKey,
    *,
    bootstrap: Bootstrap = bootstrap,
  ) -> chex.Array:
    return bootstrap(online_params, target_params, as_float(images), key)

  def predict(
    params: Params, z: chex.Array, of: chex.Array | None = None
  ) -> chex.Array:
    if module is None:
      return z
    weights = params['predictor']
    if of is None:
      return forward(module, weights, z)[0]
    _, statistics = forward(module, weights, of)
    return forward(module, weights, z, jax.lax.stop_gradient(statistics))[0]

  def loss_of(
    online_params: Params,
    target_params: Params,
    images: chex.Array,
    key: chex.PRNGKey,
    *,
    bootstrap: Bootstrap | None = bootstrap,
    step: chex.Numeric | None = None,
  ) -> tuple[chex.Array, Metrics]:
    del step  # nothing is delayed
    if bootstrap is None:
      raise ValueError('encoders have no whole targets to learn toward')
    views_key, twin_key = jax.random.split(key)
    directions = 2 if symmetric else 1
    keys = jax.random.split(views_key, (2, len(images)))
    views = jax.vmap(jax.vmap(augment), (0, None))(keys, as_float(images))
    # One pass for each view: a batch is normalised by its own statistics.
    (_, z), measured = jax.vmap(answer, (None, 0))(
      online_params, views[:directions]
    )
    if contrasts:
      if len(images) < 2:
        raise FieldError('loss', 'contrastive', 'needs a batch of 2 or more')
      value = losses.contrastive(z[0], z[1], heat)
    else:
      form = losses.FORMS[loss]
      predicting = dict(online_params)
      if fixed_predictor:
        predicting['predictor'] = jax.lax.stop_gradient(predicting['predictor'])
      p = jax.vmap(predict, (None, 0))(predicting, z)
      y = jax.vmap(bootstrap, (None, None, 0, 0))(
        online_params,
        target_params,
        views[::-1][:directions],
        jax.random.split(twin_key, directions),
      )
      errors = jax.vmap(jax.vmap(form.error))(p, y)  # [directions, B]
      value = form.together(jnp.mean(errors, axis=1))
    # Of both views' statistics the mean, to which a step is the mean of steps.
    measured = jax.lax.stop_gradient(
      jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), measured)
    )
    missed = optax.tree.sub(online_params['statistics'], measured)
    metrics = {
      'loss': value,
      'loss_gap': losses.loss_gap(
        value, loss, batch_size=len(images), temperature=heat
      ),
    }
    return value + optax.tree.norm(missed, squared=True) / 2, metrics

  return SiameseAgent(
    Agent(
      init,
      loss_of,
      bootstrap=bootstrap,
      targets=targets,
      values=values,
      # Statistics that the twin does not use are no part of it.
      twinned=('encoder', 'projector')
      + (('statistics',) if twin_statistics == 'moved' else ()),
    ),
    features,
    predict,
  )
