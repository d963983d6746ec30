"""Benchmarks of PQN, actor-critics and Siamese agents, for `benchmark`."""

from collections.abc import Callable, Sequence
import pathlib
import statistics
import time
from typing import Any

from experiments.benchmarks import scans
from experiments.config import reading
from experiments.families import actor_critic

_FOLDER = 'experiments/flagfiles'


def _layers(*sizes: int) -> list[int]:
  """Multiplications of a dense network for one row, layer by layer."""
  return [a * b for a, b in zip(sizes, sizes[1:], strict=False)]


def sac_flop(obs: int, actions: int, width: int, batch_size: int) -> int:
  """Operations of a gradient step of SAC with two hidden layers and critics.

  Counts multiplications and additions of matrix products: forward passes of the
  actor (twice), both targets and both critics (twice); backward passes toward
  weights and inputs of the actor and both critics, and through both critics
  toward the action.
  """
  actor = _layers(obs, width, width, 2 * actions)
  critic = _layers(obs + actions, width, width, 1)
  forward = 2 * sum(actor) + 6 * sum(critic)
  # First layers pass no gradients on, except to the actor's action.
  toward_weights = sum(actor) + 2 * sum(critic)
  toward_inputs = sum(actor[1:]) + 2 * sum(critic[1:]) + 2 * sum(critic)
  return 2 * batch_size * (forward + toward_weights + toward_inputs)


def _product(rows: int, width: int) -> Callable[[], None]:
  """A matrix product of the shape of a hidden layer's."""
  import jax
  import jax.numpy as jnp

  x, w = jnp.ones((rows, width)), jnp.ones((width, width))

  # Many per program, as with one the dispatch would dominate.
  @jax.jit
  def products(x):
    return jax.lax.fori_loop(0, 100, lambda _, x: 1e-3 * (x @ w), x)

  return lambda: products(x).block_until_ready()


def _gflops(times: Sequence[float], rows: int, width: int) -> float:
  """The best speed of `_product`."""
  return 100 * 2 * rows * width * width / min(times) / 1e9


def _time(function: Callable[[], Any]) -> float:
  begun = time.perf_counter()
  function()
  return time.perf_counter() - begun


def control_scan(rounds: int) -> dict[str, Any]:
  """Times SAC on the pendulum, compiled.

  It has batches of 256, two layers of 256 units, one environment and a gradient
  step per env step. `floor_us` is the time of its matrix products at `gflops`,
  the speed of products of the hidden layers' shape, measured in turns with it.
  """
  from experiments import control

  timed = scans.build(
    control.ControlConfig,
    control.make_task,
    f'--flagfile={_FOLDER}/sac_pendulum.flags',
    '--iteration_env_steps=500',
    '--eval_episodes=0',
    family=actor_critic.FAMILY,
  )
  product = _product(256, 256)
  product()
  times = []
  for _ in range(rounds):
    scans.in_turns([timed], 1)
    times.append(_time(product))
  median = statistics.median(timed.seconds)
  gflop = sac_flop(3, 1, 256, 256) / 1e9
  gflops = _gflops(times, 256, 256)
  return {
    'env_steps_per_s': timed.env_steps / median,
    'env_steps_per_s_max': timed.env_steps / min(timed.seconds),
    'gradient_steps_per_s': timed.gradient_steps / median,
    'step_us': timed.best_us,
    'gflop': gflop,
    'gflops': gflops,
    'floor_us': gflop / gflops * 1e6,
    'compile_s': timed.compile_s,
  }


def control_loop(rounds: int) -> dict[str, Any]:
  """Times SAC on HalfCheetah in the host loop.

  It has batches of 256, two layers of 256 units, one environment and a gradient
  step per env step. A block is 500 env steps after learning has begun.
  """
  import jax

  from experiments.engines import host_runs
  from experiments.families.actor_critic import ControlConfig
  from experiments.suites import gym
  from siamrl.report.run_folder import RunFolder
  from siamrl.runners import host

  block, first = 500, 1_000
  env_steps = first + (rounds + 2) * block
  config = reading.from_arguments(
    ControlConfig,
    '--environment=HalfCheetah-v5',
    '--agent=sac',
    '--target_update=soft',
    f'--min_replay={first}',
    f'--random_env_steps={first}',
    '--replay_capacity=100000',
    f'--env_steps={env_steps}',
    f'--iteration_env_steps={env_steps}',
    '--eval_episodes=0',
  )
  parts, _ = host_runs.build(
    config, actor_critic, gym.Suite(config), RunFolder(pathlib.Path())
  )
  state = host.LoopState.start(parts.state, seed=0, num_envs=1)
  rates: list[float] = []
  begun, since = 0.0, 0
  before = dict(state.statistics.seconds)
  for progress in parts.loop(state):
    jax.block_until_ready(state.train)
    now = time.perf_counter()
    if progress.metrics is not None or state.env_steps < first + block:
      continue  # warm-up and compilation
    if not begun:
      begun, since = now, state.env_steps
      before = dict(state.statistics.seconds)
    elif state.env_steps - since >= block:
      rates.append((state.env_steps - since) / (now - begun))
      begun, since = now, state.env_steps
      spent = dict(state.statistics.seconds)
  return {
    'gradient_steps_per_s': statistics.median(rates),
    'gradient_steps_per_s_max': max(rates),
    'blocks': len(rates),
    'mujoco': _mujoco(),
  } | {name: spent[name] - before[name] for name in host.TIMERS[:4]}


def _mujoco() -> str | None:
  from siamrl.envs import gym

  return gym.mujoco_version()


def pqn_loop(rounds: int) -> dict[str, Any]:
  """Times PQN on Breakout in the host loop, each round beside its floor.

  In a round 8 emulators take 32 steps each, followed by 4 epochs of 4
  minibatches of 64 transitions. The floor adds up the same steps of emulators
  alone (`emulating_s`), as many actions of the network alone (`acting_s`), and
  as many gradient steps on a batch in the device's memory (`learning_s`); it
  leaves out the targets, the replay and all transfers. Seconds are medians.
  """
  import jax
  import numpy as np

  from experiments import atari
  from siamrl.report.run_folder import RunFolder
  from siamrl.runners import host
  from siamrl.types import Transition

  num_envs, steps, batch_size, gradient_steps = 8, 32, 64, 16
  collect = num_envs * steps
  frames = 4 * collect * (rounds + 2)
  config = reading.from_arguments(
    atari.AtariConfig,
    f'--flagfile={_FOLDER}/pqn_atari.flags',
    '--game=breakout',
    f'--num_envs={num_envs}',
    f'--train_period={collect}',
    f'--train_steps={gradient_steps}',
    f'--batch_size={batch_size}',
    f'--frames={frames}',
    f'--iteration_frames={frames}',
    '--eval_episodes=0',
  )
  parts, _ = atari.build(config, RunFolder(pathlib.Path()))
  loop: Any = parts.loop
  learner = loop.keywords['learner']
  state = host.LoopState.start(parts.state, seed=0, num_envs=num_envs)
  progress = loop(state)

  def collect_and_learn() -> None:
    next(progress)
    jax.block_until_ready(state.train)

  environments = loop.keywords['make_environments'](0)
  obs, rng = environments.reset(), np.random.default_rng(0)

  def emulate() -> None:
    nonlocal obs
    for _ in range(steps):
      actions = rng.integers(environments.num_actions, size=num_envs)
      environments.send(actions.astype(np.int32))
      obs = environments.recv().obs

  act, key = host.make_act(learner.agent), jax.random.key(0)
  train = learner.init(key)

  def choose() -> None:
    params = learner.acting_params(train)
    for step in range(steps):
      np.asarray(act(params, obs, key, np.uint32(step), np.float32(0.1)))

  shape = (batch_size, *obs.shape[1:])
  batch = jax.device_put(
    Transition(
      rng.integers(256, size=shape, dtype=np.uint8),
      rng.integers(4, size=batch_size).astype(np.int32),
      rng.normal(size=batch_size).astype(np.float32),
      np.zeros(batch_size, np.float32),
      rng.integers(256, size=shape, dtype=np.uint8),
    )
  )
  regress = jax.jit(learner.regress_to, donate_argnums=0)

  def learn() -> None:
    nonlocal train
    for _ in range(gradient_steps):
      train, _ = regress(train, batch)
    jax.block_until_ready(train)

  turns = {
    'round_s': collect_and_learn,
    'emulating_s': emulate,
    'acting_s': choose,
    'learning_s': learn,
  }
  # The first turn compiles.
  times = [{n: _time(f) for n, f in turns.items()} for _ in range(rounds + 1)]
  environments.close()
  progress.close()
  medians = {
    name: statistics.median(each[name] for each in times[1:]) for name in turns
  }
  floor_s = sum(medians.values()) - medians['round_s']
  return {
    'env_steps_per_s': collect / medians['round_s'],
    'env_steps_per_s_max': collect / min(each['round_s'] for each in times[1:]),
    'floor_env_steps_per_s': collect / floor_s,
    'of_floor': floor_s / medians['round_s'],
  } | medians


def siamese_step(rounds: int) -> dict[str, Any]:
  """Times a gradient step of SimSiam on digits, compiled.

  It has batches of 256 images, an encoder of three layers of 256 units and two
  augmented views. `floor_us` is the time of its matrix products at `gflops`,
  the speed of products of the hidden layers' shape, measured in turns with it.
  """
  import jax
  import numpy as np

  from experiments import siamese
  from experiments.engines import compiled as compiled_engine, sweeps

  sweep = reading.sweep_from_arguments(
    siamese.SiameseConfig,
    '--images=digits',
    '--iteration_epochs=10',
  )
  tasks = {config: siamese.make_task(config) for config in sweep.configs}
  (group,) = sweeps.make_groups(sweep, tasks, siamese.FAMILY)
  program, place, _ = compiled_engine.compile_group(
    group, share='runs', vectorized=jax.default_backend() != 'cpu'
  )
  settings, keys = place(group.settings()), place(group.keys())
  state = program.start(settings, keys)

  def iterate() -> None:
    nonlocal state
    state, _ = program.advance(settings, state, np.int32(0))
    jax.block_until_ready(state)

  compile_s = _time(iterate)
  product = _product(256, 256)
  product()
  times, seconds = [], []
  for _ in range(rounds):
    seconds.append(_time(iterate))
    times.append(_time(product))
  config = sweep.configs[0]
  online = _layers(
    64, 256, 256, 256, config.projector_units, config.projections
  )
  head = _layers(config.projections, config.predictor_units, config.projections)
  # Per view: forward through encoder and head, and once more for the twin;
  # backward twice, except toward the input of the first layer.
  once = 2 * sum(online) + sum(head)
  back = 2 * (sum(online) + sum(head)) - online[0]
  gflop = 2 * 2 * 256 * (once + back) / 1e9
  gflops = _gflops(times, 256, 256)
  return {
    'step_us': min(seconds) / group.loop.iteration_steps * 1e6,
    'step_us_median': statistics.median(seconds)
    / group.loop.iteration_steps
    * 1e6,
    'gflop': gflop,
    'gflops': gflops,
    'floor_us': gflop / gflops * 1e6,
    'first_s': compile_s,
  }


BENCHMARKS = {
  'control_scan': control_scan,
  'control_loop': control_loop,
  'pqn_loop': pqn_loop,
  'siamese_step': siamese_step,
}
ON_ONE_CORE = ('control_scan', 'siamese_step')
# Like the launcher of the same loop.
WITHOUT_YNNPACK = ('control_loop',)
