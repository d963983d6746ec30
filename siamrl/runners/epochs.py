"""Learning from given data in epochs, with whole runs compiled.

Representation learning is a schedule that collects nothing: each gradient step
takes a batch of a data set in device memory, which is shuffled anew in every
epoch, and the twin moves as in every other loop. `Loop` has the interface of
`scan.Loop`, so `scan.make_program` compiles it for many runs and devices, and
what holds there for parallel runs holds here too.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import chex
from flax import struct
import jax
import jax.numpy as jnp

from siamrl import diagnostics
from siamrl.learner import Learner, mean_of, target_updates
from siamrl.parameters import FieldError
from siamrl.runners import sums
from siamrl.types import Metrics, Params, TrainState


class Setup(NamedTuple):
  """Everything that a run's settings determine; its parts may hold tracers.

  Attributes:
    learner: learns from batches [B, ...] of the data.
    judge: online_params -> scores of them, scalars by name.
    panel: measures the twin, or None.
  """

  learner: Learner
  judge: Callable[[Params], Metrics]
  panel: diagnostics.Panel | None = None


@dataclasses.dataclass(frozen=True)
class EpochsConfig:
  """Configuration of learning, shared by all runs of a program.

  Attributes:
    size: N, rows of the data.
    batch_size: rows per gradient step. An epoch is N // batch_size gradient
      steps, and skips the remaining rows.
    iteration_epochs: epochs from one row of metrics to the next.
    panel_period: iterations from one measurement of the panel to the next.

  Raises:
    ValueError: a batch takes more rows than there are, or a number is not
      positive.
  """

  size: int
  batch_size: int
  iteration_epochs: int = 1
  panel_period: int = 1

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      if getattr(self, field.name) < 1:
        raise FieldError(
          field.name, getattr(self, field.name), 'must be at least 1'
        )
    if self.batch_size > self.size:
      raise FieldError(
        'batch_size',
        self.batch_size,
        f'must be at most the number of rows, {self.size}',
      )

  @property
  def epoch_steps(self) -> int:
    """Number of gradient steps in an epoch."""
    return self.size // self.batch_size

  @property
  def steps(self) -> int:
    """Number of gradient steps in an iteration."""
    return self.epoch_steps * self.iteration_epochs


class RunState(struct.PyTreeNode):
  """Everything in a run's checkpoint except its clock.

  Attributes:
    train: the learner's state.
    key: draws the order of every epoch.
    panel: the panel's state; None without a panel.
  """

  train: TrainState
  key: jax.Array
  panel: Any = None


@dataclasses.dataclass(frozen=True)
class Loop:
  """The functions of one run: pure, for callers to vmap and jit.

  Attributes:
    config: configuration of the learning.
    data: [N, ...] an array.
    probe: [P, ...] held-out data for the panel.
    make_setup: settings -> `Setup`.
    headline: the column that sums up a run.
    shard: applied to every batch before the gradient step, for callers who
      split batches between devices.
  """

  config: EpochsConfig
  data: chex.Array
  probe: chex.Array
  make_setup: Callable[[Any], Setup]
  headline: str = 'loss'
  shard: Callable[[Any], Any] = lambda batch: batch

  # The unit of the length of runs.
  clock = 'gradient_steps'
  warmup_steps = 0

  @property
  def iteration_steps(self) -> int:
    """Number of gradient steps from one row to the next."""
    return self.config.steps

  def start(self, settings: Any, key: chex.PRNGKey) -> RunState:
    """Returns the initial state of a run.

    Args:
      settings: settings of the run.
      key: random key of the run.
    """
    init_key, run_key = jax.random.split(key)
    setup = self.make_setup(settings)
    state = RunState(setup.learner.init(init_key), run_key)
    if setup.panel is None:
      return state
    return state.replace(panel=setup.panel.init(state.train, self.probe))

  def iterate(
    self, settings: Any, state: RunState, iteration: chex.Numeric
  ) -> tuple[RunState, Metrics]:
    """Runs one iteration.

    Args:
      settings: settings of the run.
      state: state of the run, after the previous iteration.
      iteration: int32 [] its number, from 0; the same for parallel runs.

    Returns:
      (state, row), with scalars of the iteration in the row. Metrics of the
      loss are means over its gradient steps; the judge's scores are of its end.
    """
    config, setup = self.config, self.make_setup(settings)
    steps, panel, learner = config.steps, setup.panel, setup.learner
    order = self._order(state.key, iteration)  # [steps, B]

    def learn(number, carry):
      train, seen, running = carry
      batch = self.shard(self._batch(order[number]))
      train, metrics = learner.regress(train, batch)
      if panel is not None and panel.follows:
        seen = panel.follow(seen, train)
      return train, seen, sums.add(running, mean_of(metrics))

    shapes = jax.eval_shape(
      lambda: mean_of(learner.regress(state.train, self._batch(order[0]))[1])
    )
    carry = (state.train, state.panel, sums.zeros(shapes))
    measured: Metrics = {}
    if panel is None:
      carry = jax.lax.fori_loop(0, steps, learn, carry)
    else:
      carry, measured = self._watched(panel, learn, carry, order, iteration)
    train, seen, running = carry
    row = jax.tree.map(lambda total: total / steps, running.total)
    row |= {f'panel/{name}': value for name, value in measured.items()}
    row |= setup.judge(train.online_params)
    row |= {
      'gradient_steps': train.gradient_steps,
      'target_updates': target_updates(learner, train),
      'epochs': (iteration + 1) * config.iteration_epochs,
    }
    return state.replace(train=train, panel=seen), row

  def fault(
    self, row: Any, state: RunState, iteration: int, *, diverged: bool
  ) -> str:
    """As `scan.Loop.fault`: always '', as there is no environment."""
    del row, state, iteration, diverged
    return ''

  def _order(self, key: chex.PRNGKey, iteration: chex.Numeric) -> jax.Array:
    """Returns the rows of an iteration's gradient steps, int32 [steps, B]."""
    config = self.config
    used = config.epoch_steps * config.batch_size

    def epoch(number: chex.Numeric) -> jax.Array:
      shuffled = jax.random.permutation(
        jax.random.fold_in(key, number), config.size
      )
      return shuffled[:used].reshape(config.epoch_steps, config.batch_size)

    first = iteration * config.iteration_epochs
    orders = jax.lax.map(epoch, first + jnp.arange(config.iteration_epochs))
    return orders.reshape(config.steps, config.batch_size)

  def _watched(self, panel, learn, carry, order, iteration):
    """Takes the iteration's gradient steps, with the panel in between."""
    share = diagnostics.panel_share(jnp.asarray(iteration))
    pause = 1 + (share * self.config.steps).astype(jnp.int32)
    pause = jnp.minimum(pause, self.config.steps)
    due = (iteration == 0) | ((iteration + 1) % self.config.panel_period == 0)
    _, shapes = jax.eval_shape(
      panel.measure, carry[1], carry[0], self.probe, self._batch(order[0])
    )
    nothing = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan), shapes)

    def part(number, carry):
      """Takes the gradient steps up to the panel's, or the rest."""
      carry, measured = carry
      begin, end = jax.tree.map(
        lambda *ends: jnp.where(number == 0, *ends),
        (0, pause),
        (pause, self.config.steps),
      )
      train, seen, running = jax.lax.fori_loop(begin, end, learn, carry)
      batch = self._batch(order[pause - 1])
      seen, measured = jax.lax.cond(
        due & (number == 0),
        lambda: panel.measure(seen, train, self.probe, batch),
        lambda: (seen, measured),
      )
      return (train, seen, running), measured

    # One loop with two passes, so that a gradient step is compiled once.
    return jax.lax.fori_loop(0, 2, part, (carry, nothing))

  def _batch(self, rows: jax.Array) -> jax.Array:
    return jnp.asarray(self.data)[rows]
