"""Benchmarks; the last line printed is one JSON object.

  python -m experiments.benchmark --benchmark=learn_step
  python -m experiments.benchmark --benchmark=cartpole_scan --seeds=8

Run one at a time on an idle machine. To compare two programs, run them in turns
several times and compare minima or medians.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from experiments import atari
from experiments.benchmarks import accelerators, families, scans, sweeps
from experiments.config import declaring, executing, reading
from experiments.config.declaring import POSITIVE, option
from experiments.engines import devices
from experiments.config.startup import PLATFORMS

_ON_ONE_CORE = (
  'minatar_scan',
  'ring_scan',
  'c51_scan',
  'diagnostics',
  *families.ON_ONE_CORE,
)

# The flags of atari_loop's agents.
_AGENTS: dict[str, tuple[str, ...]] = {
  'dqn': (),
  'c51': ('--agent=c51', '--replay=prioritized', '--priority=loss'),
}

_QUICKSTART = '--flagfile=experiments/flagfiles/quickstart.flags'


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
  """The options."""

  benchmark: str = option(
    'learn_step',
    'Benchmark to run',
    declaring.one_of(
      (
        'learn_step',
        'atari_loop',
        'replay',
        'startup',
        'load',
        'sweep',
        'cartpole_scan',
        'minatar_scan',
        'ring_scan',
        'c51_scan',
        'ale_xla',
        'diagnostics',
        'accelerator',
        *families.BENCHMARKS,
      )
    ),
  )
  rounds: int = option(
    8, 'Repetitions of each timing; blocks of atari_loop.', POSITIVE
  )
  steps: int = option(20, 'Gradient steps per round of learn_step.', POSITIVE)
  batch_size: int = option(32, 'Transitions per gradient step.', POSITIVE)
  padding: str = option(
    'VALID', 'Padding of the convolutions', declaring.one_of(('VALID', 'SAME'))
  )
  seeds: int = option(1, 'Runs of cartpole_scan.', POSITIVE)
  all_cores: bool = option(
    False, 'Use all processor cores where a benchmark otherwise uses one.'
  )
  num_envs: int = option(
    1, 'Emulators of atari_loop and replay', POSITIVE, most=1_024
  )
  acting: str = option(
    'exact', 'How atari_loop acts', declaring.one_of(('exact', 'overlapped'))
  )
  agent: str = option(
    'dqn',
    'Agent of atari_loop; c51 learns from a prioritized replay',
    declaring.one_of(tuple(_AGENTS)),
  )
  platform: str | None = option(
    None,
    'Device to compute on; the best that JAX finds if not given',
    declaring.one_of(PLATFORMS),
  )


def main(config: BenchmarkConfig) -> None:
  """Runs one benchmark and prints its result."""
  # It times other processes, so this one must not use the device.
  if config.benchmark == 'startup':
    result = startup(config)
  else:
    alone = config.benchmark == 'cartpole_scan' and config.seeds == 1
    if (config.benchmark in _ON_ONE_CORE or alone) and not config.all_cores:
      _use_one_core()
    platform = devices.configure(
      config.platform,
      cpu_devices=min(devices.cores(), config.seeds),
      ynnpack=config.benchmark not in families.WITHOUT_YNNPACK,
    )
    benchmarks: dict[str, Callable[[Any], dict[str, Any]]] = {
      'learn_step': learn_step,
      'atari_loop': atari_loop,
      'replay': replay,
      'load': load,
      'sweep': lambda config: sweeps.sweep(),
      'cartpole_scan': lambda config: scans.cartpole_scan(
        config.rounds, config.seeds
      ),
      'minatar_scan': lambda config: scans.minatar_scan(config.rounds),
      'c51_scan': lambda config: scans.c51_scan(config.rounds),
      'ring_scan': lambda config: scans.ring_scan(config.rounds),
      'ale_xla': lambda config: scans.ale_xla(config.rounds),
      'diagnostics': lambda config: scans.diagnostics(config.rounds),
      'accelerator': lambda config: accelerators.accelerator(config.rounds),
      **{
        name: functools.partial(_of_rounds, function)
        for name, function in families.BENCHMARKS.items()
      },
    }
    found = benchmarks[config.benchmark](config)
    result = {'platform': platform, 'cores': devices.cores()} | found
  print(
    json.dumps(
      {'benchmark': config.benchmark}
      | {
        name: float(f'{value:.4g}') if isinstance(value, float) else value
        for name, value in result.items()
      }
    )
  )


def _of_rounds(
  function: Callable[[int], dict[str, Any]], config: BenchmarkConfig
) -> dict[str, Any]:
  return function(config.rounds)


def _use_one_core() -> None:
  """Keeps this process on one core: JAX then computes on one thread."""
  if hasattr(os, 'sched_setaffinity'):  # macOS has none
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _seconds(
  function: Callable[[], Any], rounds: int, calls: int = 1
) -> list[float]:
  """Seconds per call, one entry per round, after a round that is not kept."""
  times = []
  for _ in range(rounds + 1):
    begun = time.perf_counter()
    for _ in range(calls):
      function()
    times.append((time.perf_counter() - begun) / calls)
  return times[1:]


def learn_step(config: BenchmarkConfig) -> dict[str, Any]:
  """Times a gradient step of DQN on the Nature network.

  It takes uint8 frames of 84 x 84 x 4, a forward pass of each twin, the Huber
  loss, a backward pass and centered RMSProp. `gflop` counts the multiplications
  and additions of its matrix products and convolutions. `floor_ms` is the time
  that they would take at `sgemm_gflops`, the speed of a large float32 matrix
  product measured in turns with the steps.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  from siamrl import learner, twins
  from siamrl.agents.q import make_q_agent
  from siamrl.networks.q_network import nature_network
  from siamrl.types import Transition

  size, actions = config.batch_size, 6
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (2, size, 4, 84, 84), dtype=np.uint8)
  batch = Transition(
    frames[0],
    rng.integers(actions, size=size).astype(np.int32),
    rng.normal(size=size).astype(np.float32),
    np.full(size, 0.99, np.float32),
    frames[1],
  )
  agent = make_q_agent(
    nature_network(actions, padding=config.padding), frames[0][:1]
  )
  optimizer = learner.make_optimizer(
    'rmsprop_centered', learning_rate=2.5e-4, eps=1e-5
  )
  twin = learner.ClockedTwin(twins.hard(), 2_500)
  made = learner.make_learner(agent, optimizer, twin)
  state = made.init(jax.random.key(0))
  step = learner.jit_regress(made.regress)

  def steps() -> None:
    nonlocal state
    for _ in range(config.steps):
      state, _ = step(state, [batch])
    jax.block_until_ready(state)

  matrix = jnp.asarray(rng.normal(size=(2048, 2048)), jnp.float32)
  product = jax.jit(jnp.matmul)
  step_times, product_times = [], []
  for _ in range(config.rounds):
    step_times += _seconds(steps, 1)
    product_times += _seconds(
      lambda: product(matrix, matrix).block_until_ready(), 1, 4
    )
  times = [seconds / config.steps * 1e3 for seconds in step_times]
  gflop = size * _sample_flop(config.padding, actions) / 1e9
  gflops = 2 * 2048**3 / min(product_times) / 1e9
  return {
    'ms_min': min(times),
    'ms_median': statistics.median(times),
    'gflop': gflop,
    'sgemm_gflops': gflops,
    'floor_ms': gflop / gflops * 1e3,
  }


def _sample_flop(padding: str, actions: int) -> int:
  """Operations of one transition's gradient step in the Nature network."""
  sides = (20, 9, 7) if padding == 'VALID' else (21, 11, 11)
  inputs = (8 * 8 * 4, 4 * 4 * 32, 3 * 3 * 64)
  layers = [
    2 * side * side * fan_in * features
    for side, fan_in, features in zip(sides, inputs, (32, 64, 64), strict=True)
  ]
  layers += [2 * sides[-1] ** 2 * 64 * 512, 2 * 512 * actions]
  # Forward twice; backward toward weights and, except in the first, inputs.
  return 2 * sum(layers) + sum(layers) + sum(layers[1:])


def atari_loop(config: BenchmarkConfig) -> dict[str, Any]:
  """Times training on Breakout as CleanRL does, acting by the network.

  There is a gradient step of 32 transitions per 4 env steps. A block is 1,000
  env steps after learning has begun; `env_steps_per_s` is of the median block.
  Over all blocks, `acting_s` is spent choosing actions, `emulating_s` waiting
  for emulators, `sampling_s` in the replay, and `learning_s` waiting for
  gradient steps.
  """
  import jax

  from siamrl.report.run_folder import RunFolder
  from siamrl.runners import host

  block = 1_000
  options = reading.from_arguments(
    atari.AtariConfig,
    '--flagfile=experiments/flagfiles/cleanrl_dqn_atari.flags',
    f'--num_envs={config.num_envs}',
    f'--acting={config.acting}',
    f'--padding={config.padding}',
    f'--batch_size={config.batch_size}',
    *_AGENTS[config.agent],
    '--epsilon_start=0.01',
    '--min_replay=1000',
    '--replay_capacity=100000',
  )
  steps_per_frame = options.frame_skip
  frames = (config.rounds + 2) * block * steps_per_frame
  options = dataclasses.replace(options, frames=frames, iteration_frames=frames)
  parts, _ = atari.build(options, RunFolder(pathlib.Path()))
  state = host.LoopState.start(parts.state, seed=0, num_envs=config.num_envs)
  rates: list[float] = []
  begun, first, before = 0.0, 0, dict.fromkeys(host.TIMERS, 0.0)
  spent = dict(before)
  for progress in parts.loop(state):
    jax.block_until_ready(state.train)
    now = time.perf_counter()
    if progress.metrics is not None or state.env_steps < 2 * block:
      continue  # warm-up and compilation
    if not begun:
      begun, first = now, state.env_steps
      before = dict(state.statistics.seconds)
    elif state.env_steps - first >= block:
      rates.append((state.env_steps - first) / (now - begun))
      begun, first = now, state.env_steps
      spent = dict(state.statistics.seconds)
  return {
    'env_steps_per_s': statistics.median(rates),
    'env_steps_per_s_max': max(rates),
    'gradient_steps_per_s': statistics.median(rates) / options.train_period,
    'blocks': len(rates),
  } | {name: spent[name] - before[name] for name in host.TIMERS}


def replay(config: BenchmarkConfig) -> dict[str, Any]:
  """Times a replay for a million Atari transitions, which holds 100,000.

  The same for a prioritized one, whose sampling includes the update of its
  priorities; `priorities_us` is what this and the sum tree add to a batch.
  """
  from siamrl.replay.host import HostReplay
  from siamrl.replay.host_prioritized import PrioritizedHostReplay

  capacity = 1_000_000 // config.num_envs * config.num_envs
  settings: dict[str, Any] = dict(
    capacity=capacity, frame_shape=(84, 84), num_envs=config.num_envs
  )
  uniform = _time_replay(config, HostReplay(**settings))
  prioritized = _time_replay(
    config,
    PrioritizedHostReplay(
      **settings, alpha=0.6, beta=lambda env_steps: 0.4 + env_steps / 1e9
    ),
  )
  more = prioritized['sample_ms'] - uniform['sample_ms']
  return (
    uniform
    | {f'prioritized_{name}': value for name, value in prioritized.items()}
    | {'priorities_us': more * 1e3}
  )


def _time_replay(config: BenchmarkConfig, ring: Any) -> dict[str, Any]:
  """Fills an empty replay, and draws from it."""
  import numpy as np

  num_envs = config.num_envs
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (64, num_envs, 84, 84), dtype=np.uint8)
  actions = np.zeros(num_envs, np.int32)
  rewards = np.zeros(num_envs, np.float32)
  ring.start(frames[0])
  adds = 100_000 // num_envs
  times = []
  for i in range(adds):
    ended = np.full(num_envs, i % 1_000 == 999)
    frame = frames[i % 64]
    begun = time.perf_counter()
    ring.add(
      action=actions,
      reward=rewards,
      terminated=ended,
      ended=ended,
      final_obs=frame,
      obs=frame,
    )
    times.append(time.perf_counter() - begun)

  def sample() -> None:
    _, handle = ring.sample(rng, config.batch_size)
    ring.update(handle, {'td_error_abs': errors})

  errors = rng.exponential(size=config.batch_size).astype(np.float32)
  sample_times = _seconds(sample, max(config.rounds, 200))
  return {
    'bytes_per_transition': ring.bytes_per_transition,
    'sample_ms': statistics.median(sample_times) * 1e3,
    'add_us': statistics.median(times) * 1e6,
    'transitions': ring.size,
  }


def load(config: BenchmarkConfig) -> dict[str, Any]:
  """Times loading 1,000 folders of runs of 100 rows each as a data frame.

  `peak_mb` is the peak memory of the whole process.
  """
  import resource

  from siamrl.report.loading import load as load_runs
  from siamrl.report.metrics import MetricsWriter
  from siamrl.report.run_folder import RunFolder, open_run_folder

  options = reading.as_flags(reading.from_arguments(atari.AtariConfig))
  names = [f'metric_{number}' for number in range(15)]
  with tempfile.TemporaryDirectory() as top:
    first, _ = open_run_folder(pathlib.Path(top, 'seed=0'), options, {})
    with first, MetricsWriter(first.metrics) as writer:
      writer.write_rows(
        [
          {'iteration': i, 'frames': 1_000 * i}
          | {name: (i + 1) / (n + 3) for n, name in enumerate(names)}
          for i in range(100)
        ]
      )
    flags, rows = first.flags.read_text(), first.metrics.read_text()
    for seed in range(1, 1_000):
      folder = RunFolder(pathlib.Path(top, f'seed={seed}'))
      folder.path.mkdir()
      folder.flags.write_text(
        flags.replace('--seed=0\n', f'--seed={seed}\n').replace(
          '--tau=', f'--tau={1 / (1 + seed % 10)}\n--was='
        )
      )
      folder.metrics.write_text(rows)
    times = _seconds(lambda: load_runs(top), min(config.rounds, 3))
    frame = load_runs(top)
  # Linux counts kilobytes, macOS bytes.
  unit = 1e6 if sys.platform == 'darwin' else 1e3
  return {
    'load_s': statistics.median(times),
    'rows': len(frame['seed']),
    'columns': len(list(frame)),
    'peak_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
  }


def startup(config: BenchmarkConfig) -> dict[str, Any]:
  """Times processes from their start to their first gradient step.

  The quickstart preset starts with an empty cache of compiled programs (cold),
  then with a filled one (warm). Results are medians over rounds.
  """
  cold, warm = [], []
  for _ in range(min(config.rounds, 3)):
    with tempfile.TemporaryDirectory() as folder:
      cold.append(_first_gradient_step_s(folder, config.platform))
      warm.append(_first_gradient_step_s(folder, config.platform))
  return {'cold_s': statistics.median(cold), 'warm_s': statistics.median(warm)}


def _first_gradient_step_s(folder: str, platform: str | None) -> float:
  """Starts a run in a folder, and kills it when it has begun to learn."""
  command = [
    sys.executable,
    '-m',
    'experiments.atari',
    _QUICKSTART,
    '--overwrite',
    f'--run_dir={folder}/run',
  ]
  if platform:
    command.append(f'--platform={platform}')
  environment = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': f'{folder}/cache',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
  }
  begun = time.perf_counter()
  with subprocess.Popen(
    command, env=environment, stderr=subprocess.PIPE, text=True
  ) as process:
    assert process.stderr is not None
    with contextlib.ExitStack() as stack:
      stack.callback(process.kill)
      for line in process.stderr:
        if 'first gradient step' in line:
          return time.perf_counter() - begun
  raise declaring.RunError('the run ended before its first gradient step')


if __name__ == '__main__':
  executing.run(BenchmarkConfig, __doc__, main)
