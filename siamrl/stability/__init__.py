"""Exact stability: a learner whose gradient step is an affine map.

If values are linear in the weights, the batch is fixed and gradient descent is
plain, a gradient step, target update included, is an affine map of all
parameters, the online network's and its twin's. Over one target update it is
one matrix, and learning converges if the matrix's spectral radius is below 1.

`predict` computes the matrix with the learner itself, one column for each basis
vector. `run` runs the same learner, and measures how it grows. Everything is
float64, and works for rules by name, without code for any particular rule.

Weights that no value of the batch depends on never move (Baird's example has
one such direction). Matrices and growth exclude them: they use weights in an
orthonormal basis of the span of the batch's features, in which gradient descent
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
