"""Losses of Siamese representation learning: SimSiam, BYOL and SimCLR.

Everything here is written for one pair of vectors, or one row of similarities:
the caller vmaps. A `prediction` is the online network's answer to one view of
an image, a `projection` the twin's answer to the other view. No function stops
a gradient: the projection comes from the twin, which the caller passes as a
separate argument.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from siamrl.parameters import check_name

# Least squared length that vectors are divided by, as in BYOL's code.
_SMALLEST_SQUARE = 1e-12
# Default of the contrastive loss, as in SimCLR's code.
TEMPERATURE = 0.1


def normalized(x: chex.Array) -> chex.Array:
  """A vector [D] scaled to length 1; a vector of zeros stays."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2), _SMALLEST_SQUARE))


def negative_cosine(
  prediction: chex.Array, projection: chex.Array
) -> chex.Array:
  """-cos(p, z), from -1 to 1 (Chen & He 2021, eq. 1).

  Args:
    prediction: [D] p.
    projection: [D] z.

  Returns:
    []; least, -1, if both point the same way.
  """
  chex.assert_equal_shape([prediction, projection])
  return -jnp.dot(normalized(prediction), normalized(projection))


def normalized_error(
  prediction: chex.Array, projection: chex.Array
) -> chex.Array:
  """||p / ||p|| - z / ||z|| ||**2, from 0 to 4 (Grill et al. 2020, eq. 2).

  It is 2 + 2 * `negative_cosine`: the same direction, twice the gradient.

  Args:
    prediction: [D] p.
    projection: [D] z.

  Returns:
    []; least, 0, if both point the same way.
  """
  chex.assert_equal_shape([prediction, projection])
  return jnp.sum((normalized(prediction) - normalized(projection)) ** 2)


def nt_xent(
  similarities: chex.Array,
  anchor: chex.Numeric,
  partner: chex.Numeric,
  temperature: chex.Numeric,
) -> chex.Array:
  """The contrastive loss of one view (Chen et al. 2020, eq. 1).

  -log(exp(s[partner] / t) / sum_{k != anchor} exp(s[k] / t))

  Args:
    similarities: [M] cosines of this view with each of the batch's views.
    anchor: int [] index of this view among them, which is ignored.
    partner: int [] index of the other view of the same image.
    temperature: t, > 0.

  Returns:
    [], > 0.
  """
  chex.assert_rank(similarities, 1)
  places = jnp.arange(similarities.shape[0])
  logits = similarities / temperature
  others = jax.nn.logsumexp(jnp.where(places == anchor, -jnp.inf, logits))
  return others - jnp.sum(jnp.where(places == partner, logits, 0.0))


def contrastive(
  one: chex.Array, other: chex.Array, temperature: chex.Numeric
) -> chex.Array:
  """SimCLR's loss of a batch: the mean of `nt_xent` over all its views.

  There is no unbatched form, since views are compared with the whole batch. The
  mean is the paper's (algorithm 1); the authors' code (google-research/simclr,
  objective.py) adds the means over the first and the second views, which is
  twice as much.

  Args:
    one: [B, D] projections of one view of each image.
    other: [B, D] projections of the other view.
    temperature: t, > 0.

  Returns:
    [].
  """
  chex.assert_rank([one, other], 2)
  chex.assert_equal_shape([one, other])
  z = jax.vmap(normalized)(jnp.concatenate([one, other]))
  anchors = jnp.arange(len(z))
  partners = jnp.roll(anchors, len(one))
  losses = jax.vmap(nt_xent, (0, 0, 0, None))(
    z @ z.T, anchors, partners, temperature
  )
  return jnp.mean(losses)


def least_contrastive(batch_size: int, temperature: float) -> float:
  """The least value of `contrastive`.

  log(1 + 2 (B - 1) exp(-B / (B - 1) / t)). By Jensen's inequality the loss is
  least for a given mean of the cosines, and cosines of 2B unit vectors add up
  to 0 or more. It is reached if views of an image agree and the B images are
  the corners of a simplex, which takes B - 1 dimensions.

  Args:
    batch_size: B images, >= 2.
    temperature: t, > 0.
  """
  others = batch_size - 1
  return math.log1p(2 * others * math.exp(-batch_size / others / temperature))


def loss_gap(
  value: chex.Numeric,
  loss: str,
  *,
  batch_size: int | None = None,
  temperature: float = TEMPERATURE,
) -> chex.Numeric:
  """The difference of a loss from its least value, >= 0.

  At a gap of 0 every view is recognized or, except for 'contrastive', all
  answers are the same.

  Args:
    value: value of the loss, in one direction or both.
    loss: one of `LOSSES`.
    batch_size: images in the batch, for 'contrastive'.
    temperature: temperature of 'contrastive'.

  Raises:
    ValueError: the name is unknown, or 'contrastive' lacks its batch size.
  """
  check_name('loss', loss, LOSSES)
  if loss in FORMS:
    return value - FORMS[loss].least
  if batch_size is None:
    raise ValueError('the least contrastive loss depends on the batch_size')
  return value - least_contrastive(batch_size, temperature)


def normalized_std(z: chex.Array) -> chex.Array:
  """sqrt(D) * mean over channels of the std of z / ||z|| (Chen & He 2021, 4.1).

  This is not a loss: it tells whether representations have collapsed.

  Args:
    z: [B, D].

  Returns:
    []: about 1 if directions are spread evenly, 0 if all are the same.
  """
  chex.assert_rank(z, 2)
  directions = jax.vmap(normalized)(z)
  return jnp.sqrt(z.shape[-1]) * jnp.mean(jnp.std(directions, axis=0))


class Form(NamedTuple):
  """A loss of one prediction and its target projection.

  Attributes:
    error: (prediction [D], projection [D]) -> [].
    together: combines the losses of both directions, [2] -> [].
    least: least value of the error, and of the loss in one or both directions.
    summary: phrase for a help text.
  """

  error: Callable[[chex.Array, chex.Array], chex.Array]
  together: Callable[[chex.Array], chex.Array]
  least: float
  summary: str


FORMS: dict[str, Form] = {
  'cosine': Form(
    negative_cosine,
    jnp.mean,
    -1.0,
    'SimSiam: the negative cosine, averaged over both directions',
  ),
  'byol': Form(
    normalized_error,
    jnp.sum,
    0.0,
    'BYOL: the squared error of unit vectors, summed over both directions',
  ),
}
# The last one needs no twin.
LOSSES = (*FORMS, 'contrastive')
