"""Probes of frozen features: nearest neighbors and a linear probe.

These are pure, deterministic functions of features and labels, for callers to
jit and vmap. Both return scores, the largest of which names the class.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from siamrl.losses.siamese import normalized
from siamrl.parameters import FieldError
from siamrl.types import Metrics


def _dot(one: chex.Array, other: chex.Array) -> chex.Array:
  # At lower precision accelerators would confuse close neighbors.
  return jnp.matmul(one, other, precision='highest')


def accuracy(scores: chex.Array, labels: chex.Array) -> chex.Array:
  """The fraction of rows whose largest score is that of the label, [].

  Args:
    scores: [M, K].
    labels: int [M].
  """
  return jnp.mean(jnp.argmax(scores, axis=-1) == labels)


def nearest_neighbors(
  train_features: chex.Array,
  train_labels: chex.Array,
  features: chex.Array,
  *,
  num_classes: int,
  neighbors: int,
  temperature: float | None = None,
) -> chex.Array:
  """Classifies by the votes of the nearest training points, by cosine.

  Args:
    train_features: [N, F].
    train_labels: int [N], from 0 to num_classes - 1.
    features: [M, F] to classify.
    num_classes: K.
    neighbors: number of points that vote, from 1 to N.
    temperature: t, > 0: the vote of a point of cosine s has weight exp(s / t),
      as in Wu et al. (2018), who use 200 neighbors and t = 0.07; None for equal
      votes.

  Returns:
    float32 [M, K] votes; weights are relative to that of the nearest point.

  Raises:
    ValueError: there are too few points, or the temperature is not positive.
  """
  if not 1 <= neighbors <= len(train_features):
    raise FieldError(
      'neighbors',
      neighbors,
      f'must be from 1 to {len(train_features)}, the number of points',
    )
  if temperature is not None and not temperature > 0:
    raise FieldError('temperature', temperature, 'must be positive')
  unit = jax.vmap(normalized)
  cosines = _dot(unit(features), unit(train_features).T)
  nearest, places = jax.lax.top_k(cosines, neighbors)
  if temperature is None:
    weights = jnp.ones_like(nearest)
  else:
    # Without the shift to the nearest point all weights could underflow to 0.
    weights = jnp.exp((nearest - nearest[:, :1]) / temperature)
  labels = jnp.asarray(train_labels)[places]
  ballots = jax.nn.one_hot(labels, num_classes)  # [M, k, K]
  return jnp.sum(weights[..., None] * ballots, axis=1)


def linear_probe(
  train_features: chex.Array,
  train_labels: chex.Array,
  features: chex.Array,
  *,
  num_classes: int,
  ridge: float = 1e-3,
) -> chex.Array:
  """Classifies by ridge regression to one-hot labels, solved exactly.

  The literature uses logistic regression by gradient descent, whose result
  depends on its step size and length. The intercept is not penalized. The
  penalty is relative to the features' mean variance, so that their scale does
  not matter.

  Args:
    train_features: [N, F].
    train_labels: int [N], from 0 to num_classes - 1.
    features: [M, F] to classify.
    num_classes: K.
    ridge: penalty > 0 in sum_n ||y_n - W x_n||**2 + ridge * v * N * ||W||**2,
      where v is the mean variance of the F features.

  Returns:
    float32 [M, K] scores; if all training features are equal, the fractions of
    the classes among the labels.
  """
  mean = jnp.mean(train_features, axis=0)
  x = train_features - mean
  y = jax.nn.one_hot(train_labels, num_classes)
  share = jnp.mean(y, axis=0)
  gram = _dot(x.T, x)
  penalty = ridge * jnp.trace(gram) / len(gram)
  # Above 0, so that weights of features without variance are 0, not NaN.
  penalty = jnp.maximum(penalty, jnp.finfo(gram.dtype).tiny)
  weights = jax.scipy.linalg.solve(
    gram + penalty * jnp.eye(len(gram)), _dot(x.T, y - share), assume_a='pos'
  )
  return share + _dot(features - mean, weights)


def accuracies(
  train_features: chex.Array,
  train_labels: chex.Array,
  features: chex.Array,
  labels: chex.Array,
  *,
  num_classes: int,
  neighbors: int,
  temperature: float | None = None,
  ridge: float = 1e-3,
) -> Metrics:
  """The accuracies of both probes.

  Args:
    train_features: [N, F].
    train_labels: int [N], from 0 to num_classes - 1.
    features: [M, F] to classify.
    labels: int [M], their labels.
    num_classes: K.
    neighbors: number of points that vote, from 1 to N.
    temperature: temperature of the votes; None for equal votes.
    ridge: penalty of the linear probe.

  Returns:
    `knn`, that of `nearest_neighbors`, and `probe`, that of `linear_probe`.
  """
  votes = nearest_neighbors(
    train_features,
    train_labels,
    features,
    num_classes=num_classes,
    neighbors=neighbors,
    temperature=temperature,
  )
  # Under vmap, run one after the other; see `diagnostics.singular_values`.
  probe = jax.custom_batching.sequential_vmap(
    functools.partial(linear_probe, num_classes=num_classes, ridge=ridge)
  )
  scores = probe(train_features, train_labels, features)
  return {'knn': accuracy(votes, labels), 'probe': accuracy(scores, labels)}
