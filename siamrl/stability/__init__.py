"""Exact stability: a learner whose gradient step is an affine map.

Values linear in the weights, one fixed batch and plain gradient descent make of
a gradient step, target update included, an affine map of all parameters, the
online network's and its twin's. Over one target update it is one matrix, and
whether learning converges is the matrix's spectral radius, below 1 or above.

`predict` has the matrix from the learner itself, one column for each basis
vector. `run` lets the same learner run, and measures how it grows. Everything
is float64; a matter of rules by name, with no word of any rule in particular.

Weights that no value of the batch depends on never move (Baird's example has
one such direction). Matrices and growth are of the others: of the weights in an
orthonormal basis of what the batch's features span, in which gradient descent
is the same.
"""

from siamrl.stability.cases import Case, linear_agent, periods
from siamrl.stability.maps import Prediction, matrix, predict, spectral_radius
from siamrl.stability.runs import Run, run

__all__ = [
  'Case',
  'Prediction',
  'Run',
  'linear_agent',
  'matrix',
  'periods',
  'predict',
  'run',
  'spectral_radius',
]
