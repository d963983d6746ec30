"""Benchmarks of the compiled loop, for `experiments.benchmark`."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import statistics
import time
from typing import Any

from experiments.config.reading import sweep_from_arguments
from experiments.engines import compiled as compiled_engine, sweeps
from experiments.families import Family, Task, q

_FOLDER = 'experiments/flagfiles'


@dataclasses.dataclass
class Timed:
  """Runs of one compiled program, and the seconds of their iterations.

  Attributes:
    advance: takes the next iteration of all runs.
    env_steps: env steps of all runs in an iteration.
    gradient_steps: gradient steps of all runs in an iteration.
    rounds: rounds of one run in an iteration.
    compile_s: seconds of tracing and compiling.
    before: iterations before the timing.
    seconds: the duration of each timed iteration.
    group: the program and its runs, if it is one of a sweep.
  """

  advance: Callable[[], None]
  env_steps: int
  gradient_steps: int
  rounds: int
  compile_s: float
  before: int = 0
  seconds: list[float] = dataclasses.field(default_factory=list)
  group: Any = None

  def time_one(self) -> None:
    """Times an iteration."""
    begun = time.perf_counter()
    self.advance()
    self.seconds.append(time.perf_counter() - begun)

  @property
  def best_us(self) -> float:
    """Microseconds of one round of all runs, at best."""
    return min(self.seconds) / self.rounds * 1e6


def build(
  config_type: type,
  make_task: Callable[[Any], Task],
  *arguments: str,
  family: Family = q.FAMILY,
  network: Callable[[int], Any] | None = None,
) -> Timed:
  """Compiles a sweep of one program and runs it until it has begun to learn.

  Args:
    config_type: the launcher's options.
    make_task: the launcher's.
    *arguments: its command line.
    family: the kind of runs.
    network: in place of the launcher's.
  """
  import jax
  import numpy as np

  sweep = sweep_from_arguments(config_type, *arguments)
  tasks = {config: make_task(config) for config in sweep.configs}
  if network is not None:
    tasks = {
      config: dataclasses.replace(task, network=network)
      for config, task in tasks.items()
    }
  (group,) = sweeps.make_groups(sweep, tasks, family)
  program, place, _ = compiled_engine.compile_group(
    group, share='runs', vectorized=jax.default_backend() != 'cpu'
  )
  settings, keys = place(group.settings()), place(group.keys())
  state = program.start(settings, keys)
  begun = time.perf_counter()
  jitted: Any = program.advance
  advance = jitted.lower(settings, state, np.int32(0)).compile()
  compile_s = time.perf_counter() - begun
  config = group.loop.config
  iteration = 0

  def step() -> None:
    nonlocal state, iteration
    state, _ = advance(settings, state, np.int32(iteration))
    jax.block_until_ready(state)
    iteration += 1

  timed = Timed(
    step,
    env_steps=group.steps,
    gradient_steps=len(group.runs) * config.rounds * config.schedule.regress,
    rounds=config.rounds,
    compile_s=compile_s,
    group=group,
  )
  while iteration * config.iteration_env_steps <= config.warmup_env_steps:
    step()
  timed.before = iteration
  return timed


def in_turns(timed: Sequence[Timed], rounds: int) -> None:
  """Times iterations of several programs, one after the other."""
  for _ in range(rounds):
    for each in timed:
      each.time_one()


def _cartpole(*arguments: str) -> Timed:
  from experiments import classic

  return build(
    classic.ClassicConfig,
    classic.make_task,
    f'--flagfile={_FOLDER}/cleanrl_dqn_cartpole.flags',
    '--num_envs=10',
    *arguments,
  )


def cartpole_scan(rounds: int, seeds: int) -> dict[str, Any]:
  """Times CleanRL's DQN on CartPole with 10 environments.

  It has batches of 128, a gradient step per 10 env steps and a network 120-84.
  A block is 10,000 env steps of each seed.
  """
  import jax

  timed = _cartpole(f'--seeds={seeds}')
  in_turns([timed], rounds)
  median = statistics.median(timed.seconds)
  return {
    'env_steps_per_s': timed.env_steps / median,
    'env_steps_per_s_max': timed.env_steps / min(timed.seconds),
    'gradient_steps_per_s': timed.gradient_steps / median,
    'compile_s': timed.compile_s,
    'seeds': seeds,
    'devices': min(len(jax.local_devices()), seeds),
    'blocks': rounds,
  }


def ring_scan(rounds: int) -> dict[str, Any]:
  """Times `cartpole_scan` with replays of 10,000 and 1,000,000 slots, in turns.

  If the loop copied the replay, the large one would cost more by the time of
  moving 20 MB.
  """
  small = _cartpole('--replay_capacity=10000')
  large = _cartpole('--replay_capacity=1000000')
  in_turns([small, large], rounds)
  medians = [statistics.median(each.seconds) for each in (small, large)]
  return {
    'round_us_10k': small.best_us,
    'round_us_1m': large.best_us,
    'ratio_of_minima': large.best_us / small.best_us,
    'ratio_of_medians': medians[1] / medians[0],
  }


_CADENCE = 10_000  # env steps from one measurement to the next, by default
# A run without the panel, with it, and with shadows.
_PANELS = {
  'plain': (),
  'panel': ('--panel_period=2',),
  'shadows': ('--panel_period=2', '--shadows=self+soft+hard+frozen'),
}


def diagnostics(rounds: int) -> dict[str, Any]:
  """Times the twin's panel, with shadows and without.

  The runs are CleanRL's CartPole and the MinAtar paper's Breakout. Programs
  that measure every other iteration are timed in turns with one that never
  does. `measurement_s` is the extra time of an iteration that measures,
  `between_share` the relative extra time of others, such as for moving shadows,
  and `share` that of a run that measures every 10,000 env steps. Each is a
  median of turns; `run_s` is the time of as many env steps without the panel.
  JAX's cache is not used, so that `compile_s` is known.
  """
  import jax

  from experiments import minatar

  jax.config.update('jax_enable_compilation_cache', False)
  breakout = functools.partial(
    build,
    minatar.MinAtarConfig,
    minatar.make_task,
    f'--flagfile={_FOLDER}/minatar_dqn.flags',
    '--game=breakout',
  )
  return {
    f'{loop}_{name}': value
    # MinAtar's iterations of 10,000 would vary by as much as a measurement.
    for loop, build, size in (
      ('cartpole', _cartpole, _CADENCE),
      ('minatar', breakout, 1_000),
    )
    for name, value in _panel_cost(
      functools.partial(build, f'--iteration_env_steps={size}'), rounds
    ).items()
  }


def _panel_cost(build: Callable[..., Timed], rounds: int) -> dict[str, float]:
  """The costs of one loop; names begin with those of `_PANELS`."""
  timed = {name: build(*flags) for name, flags in _PANELS.items()}
  in_turns(list(timed.values()), 2 * rounds)
  plain = timed.pop('plain')
  iteration_s = statistics.median(plain.seconds)
  run_s = iteration_s * _CADENCE / plain.env_steps
  costs = {'run_s': run_s, 'compile_s': plain.compile_s}
  for name, each in timed.items():
    # Iterations of one turn are compared, as the speed of a machine varies.
    ratios = [x / y for x, y in zip(each.seconds, plain.seconds, strict=True)]
    first = (each.before + 1) % 2  # iterations 1, 3, ... measure, from 0
    between = statistics.median(ratios[1 - first :: 2])
    measured = statistics.median(ratios[first::2])
    measurement_s = (measured - between) * iteration_s
    between_share = between - 1
    costs |= {
      f'{name}_measurement_s': measurement_s,
      f'{name}_share': measurement_s / run_s + between_share,
      f'{name}_between_share': between_share,
      f'{name}_compile_s': each.compile_s,
    }
  return costs


def minatar_scan(rounds: int) -> dict[str, Any]:
  """Times the MinAtar paper's DQN on Breakout, a gradient step per env step.

  It takes turns with the same program with `flax.linen.Conv`, and with large
  matrix products. `floor_us` is the time of the network's multiplications and
  additions at the speed of those products.
  """
  from flax import linen as nn
  import jax.numpy as jnp

  from experiments import minatar
  from siamrl.networks.heads import HEADS
  from siamrl.networks.q_network import QNetwork

  class FlaxTorso(nn.Module):
    """`MinAtarCNN` with Flax's convolution."""

    @nn.compact
    def __call__(self, obs):
      x = nn.Conv(16, (3, 3), padding='VALID')(obs.astype(jnp.float32))
      return nn.relu(x).reshape(x.shape[0], -1)

  def flax_network(num_actions: int) -> QNetwork:
    return QNetwork(
      FlaxTorso(), HEADS['linear'](num_actions, 128, 'torch_uniform')
    )

  breakout = functools.partial(
    build,
    minatar.MinAtarConfig,
    minatar.make_task,
    f'--flagfile={_FOLDER}/minatar_dqn.flags',
    '--iteration_env_steps=1000',
    '--env_steps=1000000',
  )
  ours, flax = breakout(), breakout(network=flax_network)
  sgemm = _sgemm()
  in_turns([ours, flax, sgemm, sgemm], rounds)
  gflop = minatar_gflop(batch_size=32, channels=4, num_actions=6)
  speed = _SGEMM_GFLOP / min(sgemm.seconds)
  floor_us = gflop / speed * 1e6
  return {
    'env_steps_per_s': 1e6 / ours.best_us,
    'step_us': ours.best_us,
    'flax_conv_step_us': flax.best_us,
    'times_faster': flax.best_us / ours.best_us,
    'gflop': gflop,
    'sgemm_gflops': speed,
    'floor_us': floor_us,
    'times_floor': ours.best_us / floor_us,
    'compile_s': ours.compile_s,
  }


_SGEMM_SIZE = 1_024
_SGEMM_GFLOP = 2 * _SGEMM_SIZE**3 / 1e9


def _sgemm() -> Timed:
  """A large matrix product of `_SGEMM_GFLOP`, to time in turns with others."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  shape = (_SGEMM_SIZE, _SGEMM_SIZE)
  matrix = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
  product = jax.jit(jnp.matmul)
  timed = Timed(
    lambda: jax.block_until_ready(product(matrix, matrix)), 1, 0, 1, 0.0
  )
  timed.time_one()
  timed.seconds.clear()
  return timed


def c51_scan(rounds: int) -> dict[str, Any]:
  """Times CleanRL's C51 on CartPole with 10 environments.

  It has batches of 128, a gradient step per 10 env steps, a network 120-84 and
  101 atoms. It takes turns with DQN in the same loop, which has the products of
  values only, and with large matrix products. `floor_us` is the time of a
  round's multiplications and additions at the speed of those products.
  """
  c51 = _cartpole(
    '--agent=c51', '--num_atoms=101', '--v_min=-100', '--v_max=100'
  )
  dqn, sgemm = _cartpole(), _sgemm()
  in_turns([c51, dqn, sgemm, sgemm], rounds)
  speed = _SGEMM_GFLOP / min(sgemm.seconds)
  gflop = mlp_gflop((4, 120, 84, 2 * 101), batch_size=128, acted=10)
  floor_us = gflop / speed * 1e6
  return {
    'env_steps_per_s': c51.env_steps / min(c51.seconds),
    'round_us': c51.best_us,
    'dqn_round_us': dqn.best_us,
    'gflop': gflop,
    'sgemm_gflops': speed,
    'floor_us': floor_us,
    'times_floor': c51.best_us / floor_us,
    'compile_s': c51.compile_s,
  }


def mlp_gflop(sizes: Sequence[int], *, batch_size: int, acted: int) -> float:
  """GFLOP of a gradient step of dense layers and of acting, in products.

  Args:
    sizes: of the observation, of each hidden layer, and of the output.
    batch_size: transitions per gradient step.
    acted: observations acted upon per gradient step.
  """
  return _products(
    [a * b for a, b in zip(sizes[:-1], sizes[1:], strict=True)],
    batch_size,
    acted,
  )


def minatar_gflop(*, batch_size: int, channels: int, num_actions: int) -> float:
  """GFLOP of a gradient step and of acting once, in matrix products."""
  layers = [8 * 8 * 16 * 3 * 3 * channels, 1_024 * 128, 128 * num_actions]
  return _products(layers, batch_size, 1)


def _products(layers: Sequence[int], batch_size: int, acted: int) -> float:
  """GFLOP of layers given by their multiplications for an observation.

  Each layer has a forward pass for both twins, a gradient of its kernel and,
  except for the first layer, a gradient of its input.
  """
  forward = sum(layers)
  step = 2 * forward + forward + sum(layers[1:])
  return 2 * (batch_size * step + acted * forward) / 1e9


def ale_xla(rounds: int) -> dict[str, Any]:
  """Times acting and emulating in one compiled loop, and in the host loop.

  Both choose the actions of one Breakout emulator by the Nature network: `xla`
  in a compiled loop over the ALE's XLA interface, `host` as the host loop does,
  without a replay. Blocks of 500 env steps take turns.
  """
  from ale_py.vector_env import AtariVectorEnv
  from gymnasium.vector import AutoresetMode
  import jax
  import jax.numpy as jnp
  import numpy as np

  from siamrl.agents.q import make_q_agent
  from siamrl.networks.q_network import nature_network
  from siamrl.runners.host import make_act
  from siamrl.types import acting_of

  block = 500

  def make_env(mode: AutoresetMode) -> AtariVectorEnv:
    return AtariVectorEnv(
      'breakout', num_envs=1, autoreset_mode=mode, reward_clipping=False
    )

  host, inside = map(
    make_env, (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP)
  )
  obs: Any = host.reset(seed=0)[0]
  agent = make_q_agent(
    nature_network(len(host.map_action_idx)), np.asarray(obs)
  )
  params, key = agent.init(jax.random.key(0)), jax.random.key(1)
  act, acting = make_act(agent), acting_of(agent)

  def step_host() -> None:
    nonlocal obs
    for number in range(block):
      actions = act(params, obs, key, np.uint32(number), np.float32(0.01))
      obs, *_ = host.step(np.asarray(actions))

  handle, reset, step = inside.xla()
  carry = jax.jit(reset)(handle)
  handle, (first, _) = carry

  @jax.jit
  def play(handle, obs):
    def one(carry, number):
      handle, obs = carry
      noise = acting.noise(jax.random.fold_in(key, number), 1)
      actions = acting.act(params, obs, noise, 0.01)
      handle, (obs, *_) = step(handle, actions)
      return (handle, obs), None

    carry, _ = jax.lax.scan(one, (handle, obs), jnp.arange(block))
    return carry

  position = [handle, first]

  def step_inside() -> None:
    position[:] = jax.block_until_ready(play(*position))

  timed = [
    Timed(function, block, 0, block, 0.0)
    for function in (step_host, step_inside)
  ]
  for each in timed:
    each.advance()
  in_turns(timed, rounds)
  host.close()
  inside.close()
  return {
    'host_env_steps_per_s': block / statistics.median(timed[0].seconds),
    'xla_env_steps_per_s': block / statistics.median(timed[1].seconds),
    'blocks': rounds,
  }
