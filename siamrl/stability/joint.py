"""Bounds of the joint spectral radius of a few matrices.

The joint spectral radius of matrices is the largest growth per factor of
arbitrarily long products of them. No formula gives it, but every product of k
matrices bounds it: from below by the k-th root of its spectral radius, and all
products of length k together from above by the k-th root of their largest norm.

`bound` is the branch and bound of Gripenberg (1996, "Computing the joint
spectral radius", Linear Algebra and its Applications 234): of each product only
the smallest root of a norm among its beginnings counts, and a product is not
continued once that falls below what is known from below. Norms are those of an
ellipsoid, adapted to the matrices beforehand.
"""

from typing import NamedTuple

import numpy as np
import scipy.optimize


class Product(NamedTuple):
  """A product of matrices.

  Attributes:
    word: indices of its factors, the first factor to be applied first.
    radius: the root of its spectral radius, per factor.
  """

  word: tuple[int, ...]
  radius: float


class Bounds(NamedTuple):
  """Bounds of a joint spectral radius.

  Attributes:
    lower: from below.
    upper: from above.
    lower_length: factors of the product that gives the lower bound.
    upper_length: factors of the longest products that were looked at.
    best: the products with the largest radii, the largest first.
  """

  lower: float
  upper: float
  lower_length: int
  upper_length: int
  best: tuple[Product, ...]


def bound(
  matrices: np.ndarray,
  *,
  accuracy: float = 1e-3,
  level: float = 1.0,
  most_products: int = 20_000,
  longest: int = 60,
  keep: int = 64,
) -> Bounds:
  """Bounds the joint spectral radius.

  Args:
    matrices: float64 [m, n, n].
    accuracy: the search ends once the bounds are that close, relative to the
      lower one, and both on the same side of the level.
    level: the radius that matters, > 0.
    most_products: the search also ends after that many products.
    longest: most factors of a product.
    keep: number of products to return.

  Raises:
    ValueError: there is no matrix, or some number is not finite.
  """
  if matrices.ndim != 3 or not len(matrices):
    raise ValueError(f'matrices must be [m, n, n], got {matrices.shape}')
  if not np.isfinite(matrices).all():
    raise ValueError('matrices must be finite')
  scale = np.abs(matrices).max()
  if scale == 0:
    nothing = Product((0,), 0.0)
    return Bounds(0.0, 0.0, 1, 1, (nothing,))
  # Equal matrices add nothing but work.
  _, first = np.unique(matrices.round(15), axis=0, return_index=True)
  first.sort()
  known = matrices[first] / scale
  found = _search(known, accuracy, level / scale, most_products, longest, keep)
  return found._replace(
    lower=found.lower * scale,
    upper=found.upper * scale,
    best=tuple(
      Product(tuple(int(first[i]) for i in p.word), p.radius * scale)
      for p in found.best
    ),
  )


def _search(
  known: np.ndarray,
  accuracy: float,
  level: float,
  most_products: int,
  longest: int,
  keep: int,
) -> Bounds:
  basis = ellipsoid(known)
  factors = basis @ known @ np.linalg.inv(basis)
  count = len(factors)
  products = factors
  words = np.arange(count)[:, None]
  norms = np.linalg.norm(products, 2, axis=(1, 2))
  best: list[Product] = []
  lower, upper, lower_length, length, seen = 0.0, np.inf, 1, 1, count
  while True:
    radii = _radii(products) ** (1 / length)
    order = np.argsort(-radii, kind='stable')[:keep]
    best += [Product(tuple(map(int, words[i])), float(radii[i])) for i in order]
    # Rounding favors longer products.
    if radii[order[0]] > lower * (1 + 1e-12):
      lower, lower_length = float(radii[order[0]]), length
    goal = lower * (1 + accuracy)
    if lower < level:
      goal = min(goal, (lower + level) / 2)
    alive = norms > goal
    products, words, norms = products[alive], words[alive], norms[alive]
    # Rounding of products and norms stays far below this.
    upper = min(upper, max(goal, norms.max(initial=0.0)) * (1 + 1e-12))
    if (
      not len(products)
      or length == longest
      or seen + count * len(products) > most_products
    ):
      break
    length += 1
    seen += count * len(products)
    products = (factors[None] @ products[:, None]).reshape(-1, *known.shape[1:])
    words = np.concatenate(
      [
        np.repeat(words, count, axis=0),
        np.tile(np.arange(count), len(words))[:, None],
      ],
      axis=1,
    )
    roots = np.linalg.norm(products, 2, axis=(1, 2)) ** (1 / length)
    norms = np.minimum(np.repeat(norms, count), roots)
  best.sort(key=lambda product: (-product.radius, len(product.word)))
  return Bounds(lower, upper, lower_length, length, tuple(best[:keep]))


def _radii(products: np.ndarray) -> np.ndarray:
  return np.abs(np.linalg.eigvals(products)).max(-1)


def ellipsoid(matrices: np.ndarray) -> np.ndarray:
  """A basis [n, n] in which the largest norm of the matrices is small.

  In the new coordinates, L A L^-1, the Euclidean norm is that of the ellipsoid
  |L x| = 1. The largest norm of all matrices is minimized over L by gradient
  descent (L-BFGS) on its p-norm: with u, v the singular vectors of the largest
  singular value s of B = L A L^-1, the gradient of s is
  s (u u' - v v') L^-T.
  """
  size = matrices.shape[-1]
  start = _lyapunov(matrices)

  def objective(flat: np.ndarray, power: float) -> tuple[float, np.ndarray]:
    basis = flat.reshape(size, size)
    try:
      inverse = np.linalg.inv(basis)
    except np.linalg.LinAlgError:
      return np.inf, np.zeros_like(flat)
    left, sizes, right = np.linalg.svd(basis @ matrices @ inverse)
    logs = np.log(np.maximum(sizes[:, 0], 1e-300))
    largest = logs.max()
    weights = np.exp(power * (logs - largest))
    value = largest + np.log(weights.sum()) / power
    weights /= weights.sum()
    u, v = left[:, :, 0], right[:, 0]
    middle = np.einsum('m,mi,mj->ij', weights, u, u) - np.einsum(
      'm,mi,mj->ij', weights, v, v
    )
    return value, (middle @ inverse.T).ravel()

  best, least = start, _largest_norm(start, matrices)
  flat = start.ravel()
  for power in (10.0, 100.0, 1000.0):
    flat = scipy.optimize.minimize(
      objective, flat, (power,), 'L-BFGS-B', jac=True
    ).x
    basis = flat.reshape(size, size)
    norm = _largest_norm(basis, matrices)
    if norm < least and np.linalg.cond(basis) < 1e8:
      best, least = basis, norm
  return best


def _largest_norm(basis: np.ndarray, matrices: np.ndarray) -> float:
  try:
    changed = basis @ matrices @ np.linalg.inv(basis)
  except np.linalg.LinAlgError:
    return np.inf
  if not np.isfinite(changed).all():
    return np.inf
  return float(np.linalg.norm(changed, 2, axis=(1, 2)).max())


def _lyapunov(matrices: np.ndarray, rounds: int = 50) -> np.ndarray:
  """A square root of sums of products, as of a common Lyapunov equation."""
  scale = max(float(_radii(matrices).max()), 1e-12) * 1.1
  one = np.eye(matrices.shape[-1])
  form = one
  for _ in range(rounds):
    form = one + np.mean(
      np.swapaxes(matrices, 1, 2) @ form @ matrices, axis=0
    ) / (scale**2)
    form /= np.abs(form).max()
    form += 1e-6 * one
  return np.linalg.cholesky(form).T
