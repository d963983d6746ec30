"""What can be read off frozen features: nearest neighbors and a linear probe.

Pure functions of features and labels, deterministic, to be compiled and vmapped
by the caller. Both give scores, of which the largest names the class.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from siamrl.losses.siamese import normalized
from siamrl.parameters import FieldError
from siamrl.types import Metrics


def _dot(one: chex.Array, other: chex.Array) -> chex.Array:
  # Accelerators would round what decides between close neighbors.
  return jnp.matmul(one, other, precision='highest')


def accuracy(scores: chex.Array, labels: chex.Array) -> chex.Array:
  """The share of rows whose largest score is at the label, [] in [0, 1].

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
  """The votes of the nearest training points, by cosine.

  Args:
    train_features: [N, F].
    train_labels: int [N], from 0 to num_classes - 1.
    features: [M, F] to classify.
    num_classes: K.
    neighbors: points that vote, from 1 to N.
    temperature: t, > 0: a point of cosine s has a vote of weight exp(s / t), as
      in Wu et al. (2018), who have 200 neighbors and t = 0.07; None for equal
      votes.

  Returns:
    float32 [M, K] votes; weighted ones are relative to that of the nearest
    point.

  Raises:
    ValueError: there are not so many points, or the temperature is not
      positive.
  """
  if not 1 <= neighbors <= len(train_features):
    raise FieldError(
      'neighbors',
      neighbors,
      f'must be from 1 to the {len(train_features)} points that there are',
    )
  if temperature is not None and not temperature > 0:
    raise FieldError('temperature', temperature, 'must be positive')
  unit = jax.vmap(normalized)
  cosines = _dot(unit(features), unit(train_features).T)
  nearest, places = jax.lax.top_k(cosines, neighbors)
  if temperature is None:
    weights = jnp.ones_like(nearest)
  else:
    # Against the nearest point: other cosines would all underflow to 0.
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
  """Ridge regression to one-hot labels, solved exactly.

  Not the logistic regression by gradient descent of the literature, whose
  result depends on its step size and length. The intercept is not penalized.
  The penalty is relative to the features' mean variance, so that features of
  another scale are judged alike.

  Args:
    train_features: [N, F].
    train_labels: int [N], from 0 to num_classes - 1.
    features: [M, F] to classify.
    num_classes: K.
    ridge: > 0; of sum_n ||y_n - W x_n||**2 + ridge * v * N * ||W||**2, where v
      is the mean over the F features of their variance.

  Returns:
    float32 [M, K]; where all training features are the same, each class's share
    of the labels.
  """
  mean = jnp.mean(train_features, axis=0)
  x = train_features - mean
  y = jax.nn.one_hot(train_labels, num_classes)
  share = jnp.mean(y, axis=0)
  gram = _dot(x.T, x)
  penalty = ridge * jnp.trace(gram) / len(gram)
  # Above 0, so that features without variance get no weights rather than NaN.
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
  """The accuracies of both judges.

  Args:
    train_features: [N, F].
    train_labels: int [N], from 0 to num_classes - 1.
    features: [M, F] to classify.
    labels: int [M], theirs.
    num_classes: K.
    neighbors: points that vote, from 1 to N.
    temperature: of the votes; None for equal ones.
    ridge: penalty of the linear probe.

  Returns:
    `knn`, of `nearest_neighbors`, and `probe`, of `linear_probe`.
  """
  votes = nearest_neighbors(
    train_features,
    train_labels,
    features,
    num_classes=num_classes,
    neighbors=neighbors,
    temperature=temperature,
  )
  # One run after the other where they are vmapped:
  # `diagnostics.singular_values` says why.
  probe = jax.custom_batching.sequential_vmap(
    functools.partial(linear_probe, num_classes=num_classes, ridge=ridge)
  )
  scores = probe(train_features, train_labels, features)
  return {'knn': accuracy(votes, labels), 'probe': accuracy(scores, labels)}
