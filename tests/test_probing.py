"""Probes of features: scikit-learn as the oracle, and what no scale changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamrl import probing

linear_model = pytest.importorskip('sklearn.linear_model')
neighbors = pytest.importorskip('sklearn.neighbors')

CLASSES = 3


def _data(seed=0, train=60, test=200, features=5):
  """Three clouds that overlap, with unequal scales."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(CLASSES, size=train + test)
  centers = rng.normal(size=(CLASSES, features))
  x = centers[labels] + rng.normal(scale=0.8, size=(train + test, features))
  x = (x * np.geomspace(1, 4, features)).astype(np.float32)
  return x[:train], labels[:train], x[train:], labels[train:]


@pytest.mark.parametrize('count', [1, 20])
def test_neighbors_against_scikit_learn(count):
  x, y, others, labels = _data()
  votes = jax.jit(
    lambda temperature: probing.nearest_neighbors(
      x,
      y,
      others,
      num_classes=CLASSES,
      neighbors=count,
      temperature=temperature,
    ),
    static_argnums=0,
  )
  for temperature in (None, 0.07):
    weights = 'uniform'
    if temperature is not None:
      weights = lambda distance, t=temperature: np.exp(-distance / t)
    oracle = neighbors.KNeighborsClassifier(
      count, metric='cosine', weights=weights, algorithm='brute'
    ).fit(x, y)
    scores = votes(temperature)
    share = scores / scores.sum(1, keepdims=True)
    np.testing.assert_allclose(share, oracle.predict_proba(others), atol=1e-4)
    assert probing.accuracy(scores, labels) == pytest.approx(
      oracle.score(others, labels)
    )


def test_votes_by_hand():
  train = jnp.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
  given = train, jnp.array([1, 0, 1]), jnp.array([[3.0, 4.0]])
  # Cosines 0.6, 0.8 and -0.6.
  vote = jax.jit(
    probing.nearest_neighbors,
    static_argnames=('num_classes', 'neighbors', 'temperature'),
  )
  plain = vote(*given, num_classes=3, neighbors=3)
  np.testing.assert_array_equal(plain, [[1, 2, 0]])
  weighted = vote(*given, num_classes=3, neighbors=2, temperature=0.1)
  np.testing.assert_allclose(weighted, [[1, np.exp(-2), 0]], rtol=1e-4)
  sharp = vote(*given, num_classes=3, neighbors=2, temperature=1e-4)
  np.testing.assert_array_equal(sharp, [[1, 0, 0]])


probe = jax.jit(probing.linear_probe, static_argnames='num_classes')


@pytest.mark.parametrize('ridge', [1e-3, 1.0])
def test_the_linear_probe_against_scikit_learn(ridge):
  x, y, others, labels = _data()
  penalty = ridge * np.var(x, axis=0).mean() * len(x)
  oracle = linear_model.Ridge(penalty).fit(x, np.eye(CLASSES)[y])
  scores = probe(x, y, others, num_classes=CLASSES, ridge=ridge)
  np.testing.assert_allclose(scores, oracle.predict(others), atol=1e-4)
  classifier = linear_model.RidgeClassifier(penalty).fit(x, y)
  assert probing.accuracy(scores, labels) == pytest.approx(
    classifier.score(others, labels)
  )
  # Of another scale, features are judged alike.
  smaller = probe(1e-3 * x, y, 1e-3 * others, num_classes=CLASSES, ridge=ridge)
  np.testing.assert_allclose(smaller, scores, atol=1e-3)


def test_networks_are_probed_side_by_side():
  x, y, others, _ = _data(train=20, test=10)

  @jax.jit
  @jax.vmap
  def side_by_side(x, others):
    neighbors = probing.nearest_neighbors(
      x, y, others, num_classes=CLASSES, neighbors=3
    )
    return neighbors, probing.linear_probe(x, y, others, num_classes=CLASSES)

  turned = x[:, ::-1] ** 3, others[:, ::-1] ** 3
  both = side_by_side(np.stack([x, turned[0]]), np.stack([others, turned[1]]))
  np.testing.assert_allclose(
    both[1][0], probe(x, y, others, num_classes=CLASSES), atol=1e-4
  )
  assert both[0].shape == (2, 10, CLASSES)
  assert not np.allclose(both[1][0], both[1][1], atol=0.01)


def test_features_that_say_nothing_give_the_share_of_each_class():
  labels = jnp.array([0, 0, 2, 0])
  scores = probe(
    jnp.ones((4, 3)), labels, jnp.ones((2, 3)), num_classes=CLASSES
  )
  np.testing.assert_allclose(scores, [[0.75, 0, 0.25]] * 2, atol=1e-6)
  assert probing.accuracy(scores, jnp.array([0, 2])) == 0.5


def test_refusals():
  x, y, others, _ = _data()
  for wrong in (0, 61):
    with pytest.raises(ValueError, match='from 1 to 60'):
      probing.nearest_neighbors(
        x, y, others, num_classes=CLASSES, neighbors=wrong
      )
  with pytest.raises(ValueError, match='positive'):
    probing.nearest_neighbors(
      x, y, others, num_classes=CLASSES, neighbors=1, temperature=0.0
    )


def test_accuracies_of_both_judges():
  x, y, others, labels = _data()
  found = jax.jit(
    lambda: probing.accuracies(
      x, y, others, labels, num_classes=CLASSES, neighbors=5, ridge=0.1
    )
  )()
  votes = probing.nearest_neighbors(
    x, y, others, num_classes=CLASSES, neighbors=5
  )
  scores = probing.linear_probe(x, y, others, num_classes=CLASSES, ridge=0.1)
  assert found == {
    'knn': probing.accuracy(votes, labels),
    'probe': probing.accuracy(scores, labels),
  }
