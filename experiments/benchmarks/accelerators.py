"""The benchmark of an accelerator against its own ceilings.

It first checks that the device computes what the CPU does, then measures the
speed of large matrix products, of copying memory and of starting a program, and
at last compares gradient steps and compiled loops with the least time that
these ceilings allow. It ends within about `BUDGET_S`: what might take longer is
left out. On a CPU everything is smaller, and only tries the benchmark itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import statistics
import time
from typing import Any

from experiments.benchmarks import scans
from experiments.families import actor_critic

BUDGET_S = {'cpu': 90.0, 'accelerator': 450.0}

# Largest relative errors of gradients against the CPU's: in the norm of all of
# a network's, with float32 products and with those in use, whose factors a GPU
# rounds to TF32's 10 bits and a TPU to bfloat16's 7.
TOLERANCES = {'highest': 1e-4, None: 5e-2}

_FOLDER = 'experiments/flagfiles'
_ACTIONS = 6


@dataclasses.dataclass(frozen=True)
class Sizes:
  """The sizes of everything that is timed.

  Attributes:
    rounds: the most repetitions of a timing.
    matrix: rows and columns of the matrices of products.
    copied_mb: megabytes that are copied.
    launches: programs started in a row.
    batch_size: transitions of a gradient step on frames.
    steps: gradient steps per timing.
    dispatch: gradient steps of one dispatch, in another row; 0 for none.
    cartpole: runs of each sweep of CartPole.
    others: runs of each sweep of MinAtar and SAC.
    flags: of CartPole, MinAtar and SAC, besides their presets.
  """

  rounds: int
  matrix: int
  copied_mb: int
  launches: int
  batch_size: int
  steps: int
  dispatch: int
  cartpole: Sequence[int]
  others: Sequence[int]
  flags: tuple[Sequence[str], Sequence[str], Sequence[str]]


ACCELERATOR = Sizes(
  rounds=8,
  matrix=8_192,
  copied_mb=1_024,
  launches=1_000,
  batch_size=32,
  steps=200,
  dispatch=8,
  cartpole=(1, 64, 2_048),
  others=(1, 64),
  flags=((), ('--iteration_env_steps=1000',), ('--iteration_env_steps=500',)),
)
CPU = Sizes(
  rounds=2,
  matrix=1_024,
  copied_mb=64,
  launches=200,
  batch_size=8,
  steps=4,
  dispatch=0,
  cartpole=(1, 4),
  others=(1,),
  flags=(
    ('--iteration_env_steps=1000', '--min_replay=1000'),
    ('--iteration_env_steps=200', '--min_replay=200'),
    (
      '--iteration_env_steps=200',
      '--min_replay=400',
      '--random_env_steps=400',
    ),
  ),
)


@dataclasses.dataclass(frozen=True)
class Ceilings:
  """The measured ceilings of a device.

  Attributes:
    flops: operations per second of a large matrix product, by its type:
      float32 as it is in use, `float32_highest` and `bfloat16`.
    bandwidth: bytes per second read and written by a copy.
    launch_s: seconds from one start of a program to the next.
    answer_s: seconds until the result of a tiny program is known.
  """

  flops: Mapping[str, float]
  bandwidth: float
  launch_s: float
  answer_s: float


@dataclasses.dataclass(frozen=True)
class Step:
  """A measurement of gradient steps.

  Attributes:
    seconds: seconds of one gradient step, of all runs together.
    runs: runs that take it together.
    flop: operations of the gradient step of one run.
    nbytes: bytes of one run that it must at least read and write.
    launches: programs started for it.
  """

  seconds: float
  runs: int
  flop: float
  nbytes: float
  launches: float

  def floors(self, ceilings: Ceilings) -> dict[str, float]:
    """The least seconds by each ceiling."""
    return {
      'flop': self.runs * self.flop / ceilings.flops['float32'],
      'bytes': self.runs * self.nbytes / ceilings.bandwidth,
      'launch': self.launches * ceilings.launch_s,
    }


class Budget:
  """The time that is left; it leaves out what would exceed it.

  Attributes:
    left_out: reasons by the names of what was left out, or has failed.
  """

  def __init__(self, seconds: float):
    self._seconds, self._begun = seconds, time.perf_counter()
    self._longest = 0.0
    self.left_out: dict[str, str] = {}

  @property
  def spent(self) -> float:
    """Seconds since the beginning."""
    return time.perf_counter() - self._begun

  def take(self, name: str, measure: Callable[[], Any]) -> Any:
    """Measures, unless it may take too long.

    It may if less time is left than the longest measurement so far took.

    Args:
      name: a name for `left_out`.
      measure: returns the measurement. If it fails, the others still go on.

    Returns:
      The measurement, or None.
    """
    begun = self.spent
    if begun + self._longest > self._seconds:
      self.left_out[name] = f'left out: {begun:.0f} s were spent'
      return None
    try:
      found = measure()
    except Exception as error:  # such as a lack of memory
      self.left_out[name] = f'failed: {error}'.splitlines()[0][:60]
      return None
    self._longest = max(self._longest, self.spent - begun)
    return found


def _seconds(function: Callable[[], Any], rounds: int) -> float:
  """The median of the seconds of some calls, after one that compiles."""
  import jax

  times = []
  for _ in range(rounds + 1):
    begun = time.perf_counter()
    jax.block_until_ready(function())
    times.append(time.perf_counter() - begun)
  return statistics.median(times[1:])


def measure_ceilings(sizes: Sizes, rounds: int) -> Ceilings:
  """Measures the ceilings of the default device."""
  import jax
  import jax.numpy as jnp

  size = sizes.matrix
  operations = 2 * size**3
  flops = {}
  for name, dtype, precision in (
    ('float32', jnp.float32, None),
    ('float32_highest', jnp.float32, 'highest'),
    ('bfloat16', jnp.bfloat16, None),
  ):
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(functools.partial(jnp.matmul, precision=precision))
    seconds = _seconds(functools.partial(product, matrix, matrix), rounds)
    flops[name] = operations / seconds
  numbers = jnp.zeros(sizes.copied_mb * 2**18, jnp.float32)
  add = jax.jit(lambda x: x + 1)
  copy_s = _seconds(lambda: add(numbers), rounds)
  one = jnp.zeros(())

  def launches():
    x = one
    for _ in range(sizes.launches):
      x = add(x)
    return x

  def answers():
    for _ in range(sizes.launches):
      add(one).block_until_ready()

  return Ceilings(
    flops,
    2 * numbers.nbytes / copy_s,
    _seconds(launches, rounds) / sizes.launches,
    _seconds(answers, rounds) / sizes.launches,
  )


def _frames_learner(name: str, batch_size: int) -> tuple[Any, Any]:
  """A learner of the Nature network, 'dqn' or 'c51', and a batch of frames."""
  import numpy as np

  from siamrl import learner, twins
  from siamrl.agents.distributional import make_c51
  from siamrl.agents.q import make_q_agent
  from siamrl.networks.q_network import nature_network
  from siamrl.types import Transition

  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (2, batch_size, 4, 84, 84), dtype=np.uint8)
  batch = Transition(
    frames[0],
    rng.integers(_ACTIONS, size=batch_size).astype(np.int32),
    rng.normal(size=batch_size).astype(np.float32),
    np.full(batch_size, 0.99, np.float32),
    frames[1],
  )
  if name == 'c51':
    agent = make_c51(nature_network(_ACTIONS, outputs=51), frames[0][:1])
  else:
    agent = make_q_agent(nature_network(_ACTIONS), frames[0][:1])
  optimizer = learner.make_optimizer(
    'rmsprop_centered', learning_rate=2.5e-4, eps=1e-5
  )
  twin = learner.ClockedTwin(twins.hard(), 2_500)
  return learner.make_learner(agent, optimizer, twin), batch


def agreement(name: str, precision: str | None, batch_size: int) -> float:
  """The relative error of a device's gradients against the CPU's.

  Args:
    name: 'dqn' or 'c51', as for `_frames_learner`.
    precision: precision of products, 'highest' or None for the usual one.
    batch_size: transitions of the gradient.
  """
  import jax
  import numpy as np

  made, batch = _frames_learner(name, batch_size)
  agent = made.agent

  def gradients(state: Any, batch: Any) -> Any:
    loss = lambda params: agent.loss(
      params, state.target_params, batch, state.key
    )[0]
    return jax.grad(loss)(state.online_params)

  found = []
  state = jax.jit(made.init)(jax.random.key(0))
  for device in (jax.devices('cpu')[0], jax.devices()[0]):
    with jax.default_matmul_precision(precision or 'default'):
      given = jax.device_put((state, batch), device)
      leaves = jax.tree.leaves(jax.jit(gradients)(*given))
    found.append(np.concatenate([np.ravel(leaf) for leaf in leaves]))
  expected, computed = (each.astype(np.float64) for each in found)
  return float(np.linalg.norm(computed - expected) / np.linalg.norm(expected))


def _flop(function: Callable[..., Any], *arguments: Any) -> float:
  """Operations of a program as XLA counts them before it compiles it.

  They are 0 on devices where it does not tell.
  """
  import jax

  lowered = jax.jit(function).lower(*arguments)
  with contextlib.suppress(RuntimeError, NotImplementedError):
    return float((lowered.cost_analysis() or {}).get('flops', 0.0))
  return 0.0


def _nbytes(*trees: Any) -> int:
  """Bytes of all arrays of some trees, or of their shapes."""
  from experiments.engines import memory

  return sum(memory.nbytes(tree) for tree in trees)


def time_frames(name: str, sizes: Sizes, dispatch: int, rounds: int) -> Step:
  """Times gradient steps on frames that the device holds.

  Args:
    name: 'dqn' or 'c51', as for `_frames_learner`.
    sizes: the sizes.
    dispatch: gradient steps of one dispatch.
    rounds: number of timings.
  """
  import jax
  import jax.numpy as jnp

  from siamrl.learner import regress_programs

  made, batch = _frames_learner(name, sizes.batch_size)
  state = jax.jit(made.init)(jax.random.key(0))
  flop = _flop(made.regress, state, batch)
  nbytes = 2 * _nbytes(state) + _nbytes(batch)
  one, many = regress_programs(made.regress)
  program, given = one, jax.device_put(batch)
  if dispatch > 1:
    program = many
    given = jax.tree.map(lambda x: jnp.stack([x] * dispatch), given)

  def steps() -> Any:
    nonlocal state
    for _ in range(sizes.steps):
      state, _ = program(state, given)
    return state

  seconds = _seconds(steps, rounds) / sizes.steps / dispatch
  return Step(seconds, 1, flop, nbytes, 1 / dispatch)


def _time_sweep(build: Callable[[], scans.Timed], rounds: int) -> Step:
  """Times iterations of a compiled loop that has begun to learn."""
  import jax

  from siamrl.runners import host

  timed = build()
  scans.in_turns([timed], rounds)
  group = timed.group
  loop, settings = group.loop, group.runs[0].settings
  environment, config = loop.environment, loop.config
  batch = host.batch_shape(
    environment.obs_shape,
    environment.obs_dtype,
    environment.action_dim,
    config.batch_size,
    0,
  )
  state = jax.eval_shape(loop.start, settings, jax.random.key(0)).train
  flop = _flop(
    lambda settings, state, batch: loop.make_setup(settings).learner.regress(
      state, batch
    ),
    settings,
    state,
    batch,
  )
  runs = len(group.runs)
  return Step(
    statistics.median(timed.seconds) / (timed.gradient_steps / runs),
    runs,
    flop,
    2 * _nbytes(state) + _nbytes(batch),
    0,
  )


def _words(runs: int) -> str:
  return f'{runs:,} run' + 's' * (runs > 1)


def _sweeps(sizes: Sizes) -> Iterator[tuple[str, Callable[[], Any]]]:
  """The compiled loops by name; each call compiles one."""
  from experiments import classic, control, minatar

  def make(runs: int, more: Sequence[str], *known: Any, **family: Any):
    return lambda: scans.build(*known, f'--seeds={runs}', *more, **family)

  of_cartpole, of_minatar, of_sac = sizes.flags
  for runs in sizes.cartpole:
    yield (
      f'CartPole, {_words(runs)}',
      make(
        runs,
        of_cartpole,
        classic.ClassicConfig,
        classic.make_task,
        f'--flagfile={_FOLDER}/cleanrl_dqn_cartpole.flags',
        '--num_envs=10',
      ),
    )
  for runs in sizes.others:
    yield (
      f'MinAtar, {_words(runs)}',
      make(
        runs,
        of_minatar,
        minatar.MinAtarConfig,
        minatar.make_task,
        f'--flagfile={_FOLDER}/minatar_dqn.flags',
        '--game=breakout',
        '--env_steps=1000000',
      ),
    )
    yield (
      f'SAC, {_words(runs)}',
      make(
        runs,
        of_sac,
        control.ControlConfig,
        control.make_task,
        f'--flagfile={_FOLDER}/sac_pendulum.flags',
        '--eval_episodes=0',
        family=actor_critic.FAMILY,
      ),
    )


def accelerator(rounds: int) -> dict[str, Any]:
  """Checks and times an accelerator, and prints a table.

  A row is a gradient step, of all of its runs together. `least us` is the time
  that it takes at least by the ceiling that it comes closest to: of operations
  at the speed of large products in float32 as in use (`flop`), of reading the
  batch, and the learner's state twice (`bytes`), or of starting programs
  (`launch`). Compiled loops also act, step environments and draw batches. What
  stays in a cache may be faster than `bytes`.
  """
  import jax

  device = jax.devices()[0]
  on_cpu = device.platform == 'cpu'
  sizes = CPU if on_cpu else ACCELERATOR
  rounds = min(rounds, sizes.rounds)
  budget = Budget(BUDGET_S['cpu' if on_cpu else 'accelerator'])
  print(f'on {device.device_kind} ({device.platform}), JAX {jax.__version__}')
  if on_cpu:
    print(
      'this is a CPU, and no accelerator: it is checked against itself, and '
      'sizes are cut down'
    )
  print(f'sizes: {sizes}')
  result: dict[str, Any] = {'device': device.device_kind}
  result |= _check_agreement(sizes, budget)
  ceilings = budget.take('ceilings', lambda: measure_ceilings(sizes, rounds))
  if ceilings is not None:
    for name, value in ceilings.flops.items():
      print(f'product of {sizes.matrix}, {name}: {value / 1e12:.4g} TFLOP/s')
      result[f'{name}_tflops'] = value / 1e12
    result |= {
      'copy_gb_per_s': ceilings.bandwidth / 1e9,
      'launch_us': ceilings.launch_s * 1e6,
      'answer_us': ceilings.answer_s * 1e6,
    }
    print(
      f'copy: {ceilings.bandwidth / 1e9:.4g} GB/s; '
      f'launch: {ceilings.launch_s * 1e6:.3g} us, with an answer '
      f'{ceilings.answer_s * 1e6:.3g} us'
    )
    result |= _time_all(sizes, ceilings, budget, rounds)
  for name, reason in budget.left_out.items():
    print(f'{name}: {reason}')
  return result | {'left_out': len(budget.left_out), 'spent_s': budget.spent}


def _check_agreement(sizes: Sizes, budget: Budget) -> dict[str, Any]:
  """Prints whether gradients agree with the CPU's; returns their errors."""
  result: dict[str, Any] = {}
  for name in ('dqn', 'c51'):
    for precision, tolerance in TOLERANCES.items():
      label = f'{name}_error_{precision or "default"}'
      error = budget.take(
        label, functools.partial(agreement, name, precision, sizes.batch_size)
      )
      if error is None:
        continue
      agrees = error <= tolerance  # False for NaN
      result[label] = error
      print(
        f'gradient of {name}, {precision or "default"} precision: relative '
        f'error {error:.2g} against the CPU, {tolerance:g} allowed: '
        f'{"agrees" if agrees else "DISAGREES"}'
      )
      result['agrees'] = result.get('agrees', True) and agrees
  return result


def _time_all(
  sizes: Sizes, ceilings: Ceilings, budget: Budget, rounds: int
) -> dict[str, Any]:
  """Times all gradient steps and prints their table."""
  rows: list[tuple[str, Callable[[], Step]]] = [
    (
      f'{name.upper()} on frames' + f', {n} a dispatch' * (n > 1),
      functools.partial(time_frames, name, sizes, n, rounds),
    )
    for n in (1, sizes.dispatch)
    if n
    for name in ('dqn', 'c51')
  ]
  rows += [
    (name, functools.partial(_time_sweep, build, rounds))
    for name, build in _sweeps(sizes)
  ]
  head = ('gradient step', 'us', 'steps/s', 'TFLOP/s', 'least us', 'by')
  print(_LINE.format(*head, 'times'))
  result: dict[str, Any] = {}
  for name, measure in rows:
    step = budget.take(name, measure)
    if step is None:
      print(_LINE.format(name, *[''] * 5, budget.left_out[name].split(':')[0]))
      continue
    floors = step.floors(ceilings)
    by = max(floors, key=lambda each: floors[each])
    print(
      _LINE.format(
        name,
        f'{step.seconds * 1e6:.1f}',
        f'{step.runs / step.seconds:,.0f}',
        f'{step.runs * step.flop / step.seconds / 1e12:.3g}',
        f'{floors[by] * 1e6:.2f}',
        by,
        f'{step.seconds / floors[by]:.1f}',
      ),
      flush=True,
    )
    key = name.lower().replace(',', '').replace(' ', '_')
    result |= {
      f'{key}_us': step.seconds * 1e6,
      f'{key}_times_floor': step.seconds / floors[by],
    }
  return result


_LINE = '{:28} {:>10} {:>12} {:>9} {:>9} {:>7} {:>9}'
