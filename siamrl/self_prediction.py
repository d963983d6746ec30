"""Exact linear self-prediction: features that learn to predict themselves.

Each of S states has k features, a row of Phi. A predictor W maps them to those
of the next state, which the twin supplies. The loss is the mean over all pairs
of consecutive states,

  E_(s, s') |Phi(s) W - Phi_bar(s')|^2

(Tang et al. 2022, "Understanding Self-Predictive Learning for Reinforcement
Learning"). Features that are all 0 would have no error. An exact argument says
why they do not get there. Let D be the diagonal matrix of state frequencies and
P the transition matrix. The best W satisfies Phi^T D (Phi W - P Phi_bar) = 0.
If no gradient flows through Phi_bar, the gradient is G = 2 D (Phi W - P
Phi_bar) W^T. So Phi^T G = 0 if all states are equally frequent, and a gradient
step turns Phi^T Phi into

  Phi^T Phi + step_size^2 G^T G.

Orthonormal features thus stay orthonormal up to the squared step size, whatever
moves the twin. With the gradient through the twin they go to 0.

If P is symmetric and the twin is the network itself, G for orthonormal features
is -1 / (2 S) times the gradient of |Phi^T P Phi|^2 (Frobenius) along them: they
climb to a subspace that P maps into itself. If no eigenvalue is negative, only
the subspace of the k largest is a peak; otherwise there may be others.

Like `siamrl.stability`, this module computes in float64 with the learner and
rules that all agents use.
"""

from collections.abc import Hashable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from siamrl import diagnostics, learner
from siamrl.learner import TwinSpec
from siamrl.parameters import FieldError, check_name
from siamrl.types import (
  Agent,
  Bootstrap,
  Metrics,
  Params,
  TrainState,
  Transition,
)

# Rules that only move the twin, or say whether gradients flow through it.
RULES = (
  'hard',
  'soft',
  'periodic_soft',
  'soft_cosine',
  'soft_linear',
  't_soft',
  'hard_scheduled',
  'hard_geometric',
  'hard_random',
  'frozen',
  'self',
  'residual',
)

PREDICTORS: dict[str, str] = {
  'optimal': 'the best for the features and the twin, at every gradient step',
  'learned': 'drawn at first, then learned by gradient descent',
}

# Mean squares of features this small, relative to the largest, are rounding.
_NOISE = 1e-14


def random_corridor(seed: int = 0, num_states: int = 20) -> np.ndarray:
  """Makes a random walk along a row of states, with doors between them.

  The walk passes a door, from either side, with a probability drawn from [1/8,
  1/4], and otherwise stays where it is. The matrix is symmetric, so all states
  are equally frequent. Its eigenvalues are distinct, since it is tridiagonal,
  and in [0, 1], since no state is left with a probability above 1/2.

  Args:
    seed: an integer >= 0.
    num_states: S, >= 2.

  Returns:
    float64 [S, S] transition probabilities.

  Raises:
    ValueError: there are too few states.
  """
  if num_states < 2:
    raise FieldError('num_states', num_states, 'must be at least 2')
  doors = np.random.default_rng((seed, 3)).uniform(1 / 8, 1 / 4, num_states - 1)
  moves = np.diag(doors, 1) + np.diag(doors, -1)
  return moves + np.diag(1 - moves.sum(1))


def pairs(transitions: np.ndarray) -> Transition:
  """All pairs of a uniformly drawn state and its successor, as a batch.

  Args:
    transitions: [S, S] transition probabilities.

  Returns:
    B transitions whose observations are state numbers, int32 [B], and whose
    weights, float64 [B], are the probabilities of the pairs. Actions and
    rewards are 0.
  """
  before, after = np.nonzero(transitions)
  zeros = np.zeros(len(before))
  return Transition(
    obs_tm1=before.astype(np.int32),
    a_tm1=zeros.astype(np.int32),
    r_t=zeros,
    discount_t=zeros,
    obs_t=after.astype(np.int32),
    weight=transitions[before, after] / len(transitions),
  )


def best_predictor(
  z_tm1: chex.Array, z_t: chex.Array, weight: chex.Array
) -> chex.Array:
  """The smallest W that minimizes sum_i weight_i |z_tm1_i W - z_t_i|^2.

  Args:
    z_tm1: [B, k].
    z_t: [B, k].
    weight: [B].

  Returns:
    [k, k].
  """
  weighed = weight[:, None] * z_tm1
  inverse = jnp.linalg.pinv(weighed.T @ z_tm1, rtol=_NOISE, hermitian=True)
  return inverse @ (weighed.T @ z_t)


def make_agent(
  num_states: int, num_features: int, predictor: str = 'optimal'
) -> Agent:
  """Builds an agent that learns to predict its features of states.

  Args:
    num_states: S.
    num_features: k <= S.
    predictor: a key of `PREDICTORS`.

  Returns:
    An agent with the parameters `encoder` [S, k], initially orthonormal, and,
    if it is learned, `predictor` [k, k], initially normal of variance 1 / k.
    Only the encoder has a twin. Batches come from `pairs`.

  Raises:
    ValueError: the predictor's name is unknown.
  """
  check_name('predictor', predictor, PREDICTORS)
  learned = predictor == 'learned'

  def init(key: chex.PRNGKey) -> Params:
    encoder_key, predictor_key = jax.random.split(key)
    drawn = jax.random.normal(encoder_key, (num_states, num_features))
    params = {'encoder': jnp.linalg.qr(drawn)[0]}
    if learned:
      shape = (num_features, num_features)
      first = jax.random.normal(predictor_key, shape)
      params['predictor'] = first / jnp.sqrt(num_features)
    return params

  def values(params: Params, obs: chex.Array) -> chex.Array:
    return params['encoder'][obs]

  def bootstrap(
    online_params: Params,
    target_params: Params,
    obs: chex.Array,
    key: chex.PRNGKey,
  ) -> chex.Array:
    del online_params, key
    return values(target_params, obs)

  def targets(
    online_params: Params,
    target_params: Params,
    batch: Transition,
    key: chex.PRNGKey,
    *,
    bootstrap: Bootstrap = bootstrap,
  ) -> chex.Array:
    return bootstrap(online_params, target_params, batch.obs_t, key)

  def loss(
    online_params: Params,
    target_params: Params,
    batch: Transition,
    key: chex.PRNGKey,
    *,
    bootstrap: Bootstrap | None = bootstrap,
    step: chex.Numeric | None = None,
  ) -> tuple[chex.Array, Metrics]:
    del step  # nothing is delayed
    if bootstrap is None:
      raise ValueError('features have no whole targets to learn toward')
    z_tm1 = values(online_params, batch.obs_tm1)
    z_t = bootstrap(online_params, target_params, batch.obs_t, key)
    if learned:
      matrix = online_params['predictor']
    else:
      # The loss has no slope in W at its optimum, so stopping loses nothing.
      matrix = jax.lax.stop_gradient(best_predictor(z_tm1, z_t, batch.weight))
    errors = jnp.sum(jnp.square(z_tm1 @ matrix - z_t), axis=-1)
    value = jnp.sum(batch.weight * errors)
    return value, {'loss': value}

  return Agent(
    init=init,
    loss=loss,
    bootstrap=bootstrap,
    targets=targets,
    values=values,
    twinned=('encoder',),
  )


def eigenspace(transitions: np.ndarray, num_features: int) -> np.ndarray:
  """Eigenvectors of the k eigenvalues that are largest in absolute value.

  Args:
    transitions: [S, S], symmetric.
    num_features: k.

  Returns:
    float64 [S, k], orthonormal.
  """
  values, vectors = np.linalg.eigh(transitions)
  return vectors[:, np.argsort(-np.abs(values))[:num_features]]


class Measures(NamedTuple):
  """Measures of features Phi [S, k]; [] each, or [T] over time.

  Attributes:
    orthonormality_error: |Phi^T Phi - I|, the Frobenius norm.
    eigen_mass: |V^T Phi|^2 / k (Frobenius), V the `eigenspace`: 1 if Phi is an
      orthonormal basis of it, 0 if features are 0 or orthogonal to it.
    eigen_overlap: |V^T u|^2, averaged over the left singular vectors u of Phi:
      in [0, 1], whatever the features' lengths. Directions whose singular
      value, relative to the largest, is below the resolution of floats are left
      out; NaN if none is left.
    smallest_singular_value: that of Phi; 0 if it is below that resolution.
    effective_rank: that of Phi, from 1 to k; see `diagnostics.effective_rank`.
    loss: the loss with the current twin.
  """

  orthonormality_error: Any
  eigen_mass: Any
  eigen_overlap: Any
  smallest_singular_value: Any
  effective_rank: Any
  loss: Any


def measure(
  features: chex.Array, space: chex.Array, loss: chex.Numeric
) -> Measures:
  """Measures features.

  Args:
    features: [S, k].
    space: [S, k], from `eigenspace`.
    loss: loss of these features.
  """
  count = features.shape[1]
  basis, values, _ = jnp.linalg.svd(features, full_matrices=False)
  # The resolution of `numpy.linalg.matrix_rank`. Values below it differ from
  # one processor to another.
  resolution = max(features.shape) * jnp.finfo(basis.dtype).eps * values[0]
  values = jnp.where(values <= resolution, 0.0, values)
  overlaps = jnp.sum(jnp.square(space.T @ basis), axis=0)
  rank = diagnostics.effective_rank(values)
  return Measures(
    orthonormality_error=jnp.linalg.norm(
      features.T @ features - jnp.eye(count)
    ),
    eigen_mass=jnp.sum(jnp.square(space.T @ features)) / count,
    eigen_overlap=jnp.mean(overlaps, where=values > 0),
    smallest_singular_value=values[-1],
    effective_rank=jnp.where(jnp.isfinite(values[0]), rank, jnp.nan),
    loss=loss,
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
  """The specification of features to be learned.

  Attributes:
    transitions: float64 [S, S] transition probabilities, symmetric.
    num_features: k, from 1 to S.
    twin: one of `RULES`, and its clock. `reset_optimizer` has no effect, since
      plain gradient descent has no state.
    step_size: step size of gradient descent.
    predictor: a key of `PREDICTORS`.
    predictor_rate: step size of a learned predictor, as a multiple of
      `step_size`, > 0; None for one that is not learned.
    seed: seed of the initial features, an integer in [0, 2**32).

  Raises:
    ValueError: an attribute is invalid, or they do not go together.
  """

  transitions: np.ndarray
  num_features: int
  twin: TwinSpec
  step_size: float
  predictor: str = 'optimal'
  predictor_rate: float | None = None
  seed: int = 0

  def __post_init__(self) -> None:
    chances = self.transitions
    if np.ndim(chances) != 2 or not np.array_equal(chances, chances.T):
      raise ValueError('transitions must be a symmetric matrix')
    if (chances < 0).any() or not np.allclose(chances.sum(1), 1):
      raise ValueError('transitions must be >= 0 and sum to 1')
    if not 1 <= self.num_features <= len(chances):
      raise FieldError(
        'num_features',
        self.num_features,
        f'must be from 1 to num_states={len(chances)}',
      )
    if self.twin.rule not in RULES:
      raise FieldError(
        'target_update',
        self.twin.rule,
        f'must be one of {", ".join(RULES)} where features are learned',
      )
    rate = self.predictor_rate
    if self.predictor != 'learned' and rate is not None:
      raise FieldError(
        'predictor_rate',
        rate,
        'has no meaning for',
        ('predictor', self.predictor),
      )
    if self.predictor == 'learned' and not (rate is not None and rate > 0):
      raise FieldError(
        'predictor', 'learned', f'needs a predictor_rate above 0, not {rate}'
      )


class Run(NamedTuple):
  """The course of a case.

  Attributes:
    gradient_steps: int [T] gradient steps at which features were measured, from
      0 to the last.
    measures: float64 [T] each; not finite where features have overflowed.
  """

  gradient_steps: np.ndarray
  measures: Measures


def run(
  cases: Sequence[Case], gradient_steps: int, points: int = 200
) -> list[Run]:
  """Runs each case.

  Args:
    cases: the cases; those that differ in numbers only run side by side.
    gradient_steps: length of the whole run, >= 1.
    points: approximate number of measurements.

  Raises:
    ValueError: the parameters of a rule are invalid, or a predictor's name is
      unknown.
  """
  groups: dict[Hashable, list[int]] = {}
  for index, case in enumerate(cases):
    groups.setdefault(_structure(case), []).append(index)
  stride = max(1, gradient_steps // points)
  clock = tuple(range(0, gradient_steps, stride)) + (gradient_steps,)
  found: dict[int, Run] = {}
  for structure, members in groups.items():
    with jax.enable_x64(True):
      numbers = [_numbers(cases[index]) for index in members]
      stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *numbers)
      measures = jax.tree.map(np.asarray, _program(structure, clock)(stacked))
    for place, index in enumerate(members):
      found[index] = Run(
        np.array(clock), Measures(*(m[place] for m in measures))
      )
  return [found[index] for index in range(len(cases))]


class _Structure(NamedTuple):
  """The part of a case that is compiled into a program; the rest is numbers."""

  num_states: int
  num_features: int
  num_pairs: int
  rule: str
  names: tuple[str, ...]
  predictor: str
  order: str
  init: str


def _structure(case: Case) -> _Structure:
  return _Structure(
    len(case.transitions),
    case.num_features,
    int(np.count_nonzero(case.transitions)),
    case.twin.rule,
    tuple(sorted(k for k, v in case.twin.parameters.items() if v is not None)),
    case.predictor,
    case.twin.order,
    case.twin.init,
  )


def _numbers(case: Case) -> dict[str, Any]:
  """The arrays of a case, for `_program`."""
  return {
    'batch': pairs(case.transitions),
    'space': eigenspace(case.transitions, case.num_features),
    'seed': np.uint32(case.seed),
    'sync': np.int32(case.twin.sync),
    'step_sizes': {
      'encoder': np.float64(case.step_size),
      'predictor': np.float64(case.step_size * (case.predictor_rate or 0)),
    },
    'parameters': {
      name: (np.int32 if isinstance(value, int) else np.float64)(value)
      for name, value in case.twin.parameters.items()
      if value is not None
    },
  }


@functools.cache
def _program(structure: _Structure, clock: tuple[int, ...]) -> Any:
  """Compiles runs of many cases.

  Args:
    structure: structure of all cases.
    clock: [T], the gradient steps after which features are measured.

  Returns:
    Function of numbers, each with a leading axis, to Measures [cases, T].
  """

  def one(numbers: Mapping[str, Any]) -> Measures:
    agent = make_agent(
      structure.num_states, structure.num_features, structure.predictor
    )
    key = jax.random.key(numbers['seed'])
    entries = jax.eval_shape(agent.init, key)
    optimizer = learner.make_optimizers(
      agent,
      {name: optax.sgd(numbers['step_sizes'][name]) for name in entries},
    )
    twin = TwinSpec(
      structure.rule,
      numbers['parameters'],
      numbers['sync'],
      order=structure.order,
      init=structure.init,
    )
    made = learner.make_learner(agent, optimizer, twin.make())
    batch = numbers['batch']

    def look(state: TrainState) -> Measures:
      loss, _ = made.agent.loss(
        state.online_params, state.target_params, batch, state.key
      )
      return measure(state.online_params['encoder'], numbers['space'], loss)

    def step(_: chex.Numeric, state: TrainState) -> TrainState:
      return made.regress(state, batch)[0]

    def record(
      state: TrainState, steps: chex.Numeric
    ) -> tuple[TrainState, Measures]:
      state = jax.lax.fori_loop(0, steps, step, state)
      return state, look(state)

    return jax.lax.scan(record, made.init(key), np.diff(clock, prepend=0))[1]

  return jax.jit(jax.vmap(one))
