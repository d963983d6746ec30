"""The compiled loop of several runs on the devices of a mesh."""

from collections.abc import Callable, Iterator
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from siamrl.parameters import FieldError
from siamrl.runners.scan.config import Settings
from siamrl.runners.scan.state import RunState
from siamrl.types import Metrics


class Program(NamedTuple):
  """The loop of R runs, compiled; every leaf in or out leads with [R].

  Attributes:
    start: (settings, keys) -> state.
    advance: (settings, state, iteration) -> (state, row): the next iteration of
      every run; the state is donated. `iteration` is an int32 scalar.
  """

  start: Callable[[Settings, jax.Array], RunState]
  advance: Callable[[Settings, RunState, Any], tuple[RunState, Metrics]]


def make_program(
  loop: Any, mesh: jax.sharding.Mesh, *, vectorized: bool
) -> Program:
  """Compiles a loop for several runs and devices.

  Args:
    loop: the loop of each run; a `Loop`, or another dataclass with `start`,
      `iterate`, `config.batch_size` and `shard`, such as `epochs.Loop`.
    mesh: mesh with one axis. With 'runs', devices divide the runs between them
      and never wait for each other; the number of runs must be a multiple of
      the number of devices. With 'batch', all devices compute every run and
      divide its batches, whose size must be such a multiple.
    vectorized: compute the runs of a device together rather than one after the
      other. This is faster on accelerators, but gains little or loses on a CPU.

  Raises:
    ValueError: the mesh has another axis, or the batch cannot be divided.
  """
  (axis,) = mesh.axis_names
  if axis == 'batch' and loop.config.batch_size % mesh.size:
    raise FieldError(
      'batch_size',
      loop.config.batch_size,
      f'must be a multiple of the {mesh.size} devices that share it',
    )
  spec = PartitionSpec(axis)
  if axis == 'batch':
    shared = NamedSharding(mesh, spec)
    loop = dataclasses.replace(
      loop, shard=lambda batch: jax.lax.with_sharding_constraint(batch, shared)
    )
  elif axis != 'runs':
    raise ValueError(f"mesh axis {axis!r} must be 'runs' or 'batch'")

  def start(settings, keys):
    return jax.vmap(loop.start)(settings, keys)

  def advance(settings, state, iteration):
    if vectorized:
      return jax.vmap(loop.iterate, (0, 0, None))(settings, state, iteration)
    return jax.lax.map(
      lambda run: loop.iterate(run[0], run[1], iteration), (settings, state)
    )

  if axis == 'batch':
    same = NamedSharding(mesh, PartitionSpec())
    return Program(
      jax.jit(start, out_shardings=same),
      jax.jit(advance, donate_argnums=1, out_shardings=same),
    )
  shard_map = functools.partial(
    jax.shard_map, mesh=mesh, out_specs=spec, check_vma=False
  )
  return Program(
    jax.jit(shard_map(start, in_specs=(spec, spec))),
    jax.jit(
      shard_map(advance, in_specs=(spec, spec, PartitionSpec())),
      donate_argnums=1,
    ),
  )


def compile_ahead(
  program: Program, settings: Settings, state: RunState
) -> Program:
  """Compiles an iteration ahead of the first one, which would do it otherwise.

  Args:
    program: program from `make_program`.
    settings: settings of the runs, [R].
    state: state of the runs; left unchanged.

  Returns:
    The program, only for settings and states of these shapes and devices.
  """
  advance: Any = program.advance  # jitted
  compiled = advance.lower(settings, state, np.int32(0)).compile()
  return program._replace(advance=compiled)


class Progress(NamedTuple):
  """Progress of the runs, as the loop yields it once per iteration.

  Attributes:
    state: current state of the runs; donated when the loop goes on.
    iteration: number of iterations done.
    row: NumPy arrays [R] of the iteration that has just ended.
  """

  state: RunState
  iteration: int
  row: dict[str, np.ndarray]


def train(
  program: Program,
  settings: Settings,
  state: RunState,
  *,
  iteration: int,
  iterations: int,
) -> Iterator[Progress]:
  """Runs from `state` to the end.

  Args:
    program: program to run.
    settings: settings of the runs, [R].
    state: state to start from; donated.
    iteration: number of iterations that `state` has done.
    iterations: number of iterations of whole runs.

  Yields:
    `Progress`, after every iteration.
  """
  while iteration < iterations:
    state, row = program.advance(settings, state, np.int32(iteration))
    iteration += 1
    yield Progress(state, iteration, jax.device_get(row))
