"""Learning from a data set: gradient steps and a twin, without acting.

Fitted Q-iteration (Ernst et al. 2005; Riedmiller 2005) is a schedule of DQN's
functions: `Schedule.fitted(iterations, steps)` collects nothing, and its twin
moves after every `steps` gradient steps, when the regression toward its targets
is done. Any agent, twin and optimizer can be used.

A regression ends after its gradient steps or, with a `tolerance`, when the loss
has stopped falling: the twin then moves at once. As batches are noisy, the mean
loss of a window of gradient steps is compared with that of the window before.

The results of a run do not depend on how it is split into rounds or iterations:
the batch of a gradient step is drawn with the data's key, folded with the
step's number. A checkpoint holds the state, the number of iterations done and
that key.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from siamrl.learner import ClockedTwin, Learner, mean_of, target_updates
from siamrl.parameters import FieldError
from siamrl.runners import sums
from siamrl.runners.errors import NonFiniteError
from siamrl.types import Metrics, Schedule, TrainState, Transition

# Most gradient steps for which batches are drawn at once.
_DRAWN_STEPS = 1_000


@dataclasses.dataclass(frozen=True)
class OfflineConfig:
  """Configuration of learning from a data set.

  Attributes:
    schedule: `collect` must be 0; a round is `regress` gradient steps.
    batch_size: transitions per gradient step, drawn uniformly with replacement;
      None for all of them at every step.
    iteration_steps: gradient steps from one row of metrics to the next, a
      divisor of `schedule.regress`.
    tolerance: a regression ends when its mean loss over a window of gradient
      steps has not fallen by more than this fraction of that of the window
      before. 0 waits until it does not fall at all; None ends every regression
      after the gradient steps between two target updates.
    window: gradient steps of a window, a divisor of `iteration_steps`; used
      only with a tolerance.

  Raises:
    ValueError: a number is out of range or does not divide another.
  """

  schedule: Schedule
  iteration_steps: int
  batch_size: int | None = None
  tolerance: float | None = None
  window: int = 100

  def __post_init__(self) -> None:
    collect, regress = self.schedule
    if collect:
      raise FieldError('collect', collect, 'must be 0: the data set is given')
    for name, value in (
      ('regress', regress),
      ('batch_size', self.batch_size),
      ('iteration_steps', self.iteration_steps),
      ('window', self.window),
    ):
      if value is not None and value < 1:
        raise FieldError(name, value, 'must be at least 1')
    steps = self.iteration_steps
    if regress % steps:
      raise FieldError(
        'regress',
        regress,
        'gradient steps of a round must be a multiple of the '
        f'{steps} of an iteration',
      )
    if self.tolerance is None:
      return
    if not self.tolerance >= 0:
      raise FieldError('tolerance', self.tolerance, 'must be 0 or more')
    if steps % self.window or steps < 2 * self.window:
      raise FieldError(
        'iteration_steps',
        steps,
        f'gradient steps must be two or more whole windows of {self.window}',
      )

  @property
  def iterations(self) -> int:
    """Number of iterations in a round."""
    return self.schedule.regress // self.iteration_steps


# (state, data, key) -> (state, row).
Iterate = Callable[
  [TrainState, Transition, chex.PRNGKey], tuple[TrainState, Metrics]
]


def make_iterate(learner: Learner, config: OfflineConfig) -> Iterate:
  """Builds an iteration: `config.iteration_steps` gradient steps, or fewer.

  The function is pure and not jitted, for callers to jit or vmap.

  Args:
    learner: takes the gradient steps, and moves the twin.
    config: configuration of the learning. With a tolerance an iteration is a
      regression, which ends with a target update.

  Returns:
    (state, data, key) -> (state, row). `data` leads with [N]; `key` draws the
    batches of the whole run. The row has the metrics' means over the gradient
    steps, `gradient_steps` and (without a tolerance) `target_updates` so far,
    the `fit_steps` of this iteration, and whether all losses and parameters are
    `finite`.

  Raises:
    ValueError: the twin's clock cannot be used with a tolerance.
  """
  if config.tolerance is not None:
    _check_tolerance(learner.clocked, config)

  def descend(regress, state, data, key, steps):
    """Takes gradient steps; metrics lead with [steps]."""
    batch_size = config.batch_size

    def learn_from(state, batch):
      state, metrics = regress(state, batch)
      return state, mean_of(metrics)

    if batch_size is None:
      return jax.lax.scan(
        lambda state, _: learn_from(state, data), state, None, steps
      )
    size = len(data.a_tm1)

    def learn(state, bits):
      # Uniform to within N / 2**32.
      indices = (bits % size).astype(jnp.int32)
      return learn_from(state, jax.tree.map(lambda leaf: leaf[indices], data))

    def block(state, first):
      # Drawn in advance: inside the loop each draw would be its own loop.
      bits = jax.vmap(
        lambda step: jax.random.bits(
          jax.random.fold_in(key, step), (batch_size,), jnp.uint32
        )
      )(first + jnp.arange(drawn))
      return jax.lax.scan(learn, state, bits)

    drawn = next(
      d for d in range(min(steps, _DRAWN_STEPS), 0, -1) if steps % d == 0
    )
    state, metrics = jax.lax.scan(
      block, state, state.gradient_steps + jnp.arange(0, steps, drawn)
    )
    return state, jax.tree.map(
      lambda leaf: leaf.reshape(steps, *leaf.shape[2:]), metrics
    )

  def take_all(state, data, key):
    """Runs an iteration of a fixed number of gradient steps."""
    state, metrics = descend(
      learner.regress, state, data, key, config.iteration_steps
    )
    return state, jax.tree.map(lambda leaf: jnp.mean(leaf, 0), metrics)

  def take_until_flat(tolerance, state, data, key):
    """Runs a regression until its loss stops falling."""
    count = config.iteration_steps // config.window

    def window(state):
      # The twin does not move until the end of the regression.
      state, metrics = descend(learner.descend, state, data, key, config.window)
      return state, jax.tree.map(lambda leaf: jnp.mean(leaf, 0), metrics)

    def falling(carry):
      taken, _, _, before, last = carry
      # Written so that a loss that is not finite ends the regression.
      falls = before - last > tolerance * jnp.abs(before)
      return (taken < count) & ((taken < 2) | falls)

    def go_on(carry):
      taken, state, running, _, before = carry
      state, means = window(state)
      running = sums.add(running, means)
      return taken + 1, state, running, before, means['loss']

    zeros = sums.zeros(jax.eval_shape(window, state)[1])
    none = zeros.total['loss']
    taken, state, running, _, _ = jax.lax.while_loop(
      falling, go_on, (0, state, zeros, none, none)
    )
    means = jax.tree.map(lambda total: total / taken, running.total)
    return learner.sync(state, means), means

  take = take_all
  if config.tolerance is not None:
    take = functools.partial(take_until_flat, config.tolerance)

  def iterate(state, data, key):
    before = state.gradient_steps
    state, row = take(state, data, key)
    finite = [jnp.isfinite(row['loss'])] + [
      jnp.all(jnp.isfinite(leaf))
      for leaf in jax.tree.leaves(state.online_params)
    ]
    if config.tolerance is None:
      row['target_updates'] = target_updates(learner, state)
    return state, row | {
      'gradient_steps': state.gradient_steps,
      'fit_steps': state.gradient_steps - before,
      'finite': jnp.all(jnp.stack(finite)),
    }

  return iterate


def _check_tolerance(clocked: ClockedTwin, config: OfflineConfig) -> None:
  """Raises ValueError for a clock that cannot end regressions early."""
  if clocked.order != 'after':
    raise FieldError(
      'target_order',
      clocked.order,
      "must be 'after' where a tolerance ends regressions",
    )
  if clocked.offset:
    raise FieldError(
      'offset', clocked.offset, 'must be 0 where a tolerance is given'
    )
  if clocked.sync != config.iteration_steps:
    raise FieldError(
      'iteration_steps',
      config.iteration_steps,
      'must be',
      ('sync', clocked.sync),
      'where a tolerance ends regressions',
    )


class Progress(NamedTuple):
  """Progress of a run, as the loop yields it once per iteration.

  Attributes:
    state: current state of the run; donated when the loop goes on.
    iteration: number of iterations done.
    row: NumPy scalars of the iteration that has just ended.
  """

  state: TrainState
  iteration: int
  row: dict[str, np.ndarray]


def train(
  iterate: Iterate,
  state: TrainState,
  data: Transition,
  key: chex.PRNGKey,
  *,
  iterations: int,
  iteration: int = 0,
) -> Iterator[Progress]:
  """Runs from `state` to the end.

  Args:
    iterate: function from `make_iterate`.
    state: state to start from; donated.
    data: all transitions [N], `Dataset.batch(slice(None), discount)`. Their
      weights, if given, multiply their losses.
    key: draws the batches of the whole run.
    iterations: iterations of the whole run; `config.iterations` for one round.
    iteration: number of iterations that `state` has done.

  Yields:
    `Progress`, after every iteration.

  Raises:
    NonFiniteError: a loss or a parameter is not finite; names the iteration.
  """
  advance = jax.jit(iterate, donate_argnums=0)
  data = jax.tree.map(jnp.asarray, data)
  while iteration < iterations:
    state, row = advance(state, data, key)
    row = jax.device_get(row)
    iteration += 1
    if not row.pop('finite'):
      last = int(row['gradient_steps'])
      raise NonFiniteError(
        'a loss or a parameter is not finite in iteration '
        f'{iteration}, gradient steps {last - int(row["fit_steps"]) + 1} to '
        f'{last}; the loss is {row["loss"]}'
      )
    yield Progress(state, iteration, row)
