"""Programs of all launchers, lowered for GPUs and TPUs without one."""

from collections.abc import Iterator
import functools
import pathlib
from typing import Any

import jax
from jax import export
import numpy as np
import pytest

from experiments import atari, classic, control, gym, lab, minatar, offline
from experiments import siamese as siamese_launcher
from experiments.config import fitting
from experiments.config.reading import from_arguments, sweep_from_arguments
from experiments.engines import compiled, offline_runs, sweeps
from experiments.families import actor_critic, q, siamese
from experiments.suites import ale, images, jax_native
from experiments.suites import gym as gym_suite
from siamrl import self_prediction
from siamrl.learner import regress_programs
from siamrl.runners import host
from siamrl.runners import offline as offline_loop
from siamrl.runners.host import loop as host_loop
from siamrl.stability import cases, maps, runs
from siamrl.types import acting_of

PLATFORMS = ('cuda', 'tpu')
# (name, jitted function, arguments or their shapes)
Programs = Iterator[tuple[str, Any, tuple[Any, ...]]]


def lowered(function: Any, *arguments: Any, platforms=PLATFORMS) -> str:
  """The program of a jitted function for other platforms, as text."""
  exported = export.export(function, platforms=platforms)(*arguments)
  assert exported.platforms == tuple(platforms)
  return exported.mlir_module()


def _stacked(tree: Any, count: int) -> Any:
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), tree
  )


def _of_compiled(module: Any, make_task: Any, family: Any, *flags: str):
  sweep = sweep_from_arguments(
    module,
    *flags,
    '--num_envs=2' if family is not siamese.FAMILY else '--seed=1',
  )
  tasks = {one: make_task(one) for one in sweep.configs}
  (group,) = sweeps.make_groups(sweep, tasks, family)
  program, place, _ = compiled.compile_group(
    group, share='runs', vectorized=True
  )
  settings, keys = place(group.settings()), place(group.keys())
  state = jax.eval_shape(program.start, settings, keys)
  yield 'start', program.start, (settings, keys)
  yield 'advance', program.advance, (settings, state, np.int32(0))


def _of_host(family: Any, config: Any, suite: Any) -> Programs:
  twin = family.twin_spec(config)
  learner = family.make_host_learner(config, suite, twin)
  panel = family.make_host_panel(config, suite, learner, twin)
  spaces, key = suite.spaces, jax.random.key(0)
  state = jax.eval_shape(learner.init, key)
  batch = host.batch_shape(
    (spaces.stack, *spaces.frame_shape),
    spaces.frame_dtype,
    spaces.action_dim,
    config.batch_size,
    family.sequence_steps(config),
  )
  yield 'init', jax.jit(learner.init), (key,)
  returns = family.make_host_returns(config, learner)
  if returns is None:
    one, many = regress_programs(learner.regress)
    yield 'one', one, (state, batch)
    yield 'many', many, (state, _stacked(batch, 2))
  else:
    sequence = host.round_shape(batch, steps=3, num_envs=2)
    bits = jax.ShapeDtypeStruct((6, config.batch_size), np.uint32)
    epochs = jax.jit(host.make_epochs(learner, returns))
    yield 'epochs', epochs, (state, sequence, bits)
  obs = jax.ShapeDtypeStruct(
    (2, spaces.stack, *spaces.frame_shape), spaces.frame_dtype
  )
  process = acting_of(learner.agent).process
  memory = None if process is None else process.init(2)
  params = jax.eval_shape(learner.acting_params, state)
  step = np.uint32(0), np.float32(0.1)
  act = host_loop._make_explore(learner.agent)
  yield 'act', act, (params, obs, key, *step, memory)
  yield 'play', host.make_act(learner.agent), (params, obs, key, *step)
  if panel is not None:
    seen = jax.eval_shape(panel.init, state, batch)
    yield 'look', jax.jit(panel.init), (state, batch)
    yield 'measure', jax.jit(panel.measure), (seen, state, batch, batch)
    yield 'follow', jax.jit(panel.follow), (seen, state)


def _atari(*flags: str) -> Programs:
  config = from_arguments(
    atari.AtariConfig, '--game=breakout', '--batch_size=2', *flags
  )
  yield from _of_host(q, config, ale.Suite(config))


def _gym(*flags: str) -> Programs:
  config = from_arguments(gym.GymConfig, '--batch_size=2', *flags)
  suite = gym_suite.make_suite(config, discrete=True)
  yield from _of_host(q, config, suite)


def _control_host(*flags: str) -> Programs:
  config = from_arguments(
    control.ControlConfig, '--environment=MountainCarContinuous-v0', *flags
  )
  suite = gym_suite.make_suite(config, discrete=False)
  yield from _of_host(actor_critic, config, suite)


def _offline(*flags: str) -> Programs:
  config = from_arguments(
    offline.OfflineConfig,
    '--environment=slippery_chain',
    '--collect_env_steps=50',
    *flags,
  )
  task = jax_native.make_task(config.environment)
  learner = offline_runs.make_learner(config, q, task, None)
  key = jax.random.key(0)
  state = jax.eval_shape(learner.init, key)
  environment = task.environment
  data = host.batch_shape(
    environment.obs_shape, environment.obs_dtype, 0, 50, 0
  )
  iterate = offline_loop.make_iterate(learner, fitting.make_config(config))
  yield 'iterate', jax.jit(iterate), (state, data, key)


def _siamese(folder: pathlib.Path, *flags: str, **labels: Any) -> Programs:
  pictures = np.zeros((40, 28, 28), np.uint8)
  np.savez(folder / 'x.npz', images=pictures, **labels)
  yield from _of_compiled(
    siamese_launcher.SiameseConfig,
    images.make_task,
    siamese.FAMILY,
    f'--images={folder / "x.npz"}',
    '--batch_size=8',
    '--epochs=2',
    '--iteration_epochs=1',
    *flags,
  )


def _lab(*flags: str) -> Programs:
  config = from_arguments(lab.LabConfig, '--gradient_steps=20', *flags)
  if config.problem == 'self_prediction':
    case = lab.make_features_case(config)
    program = self_prediction._program(
      self_prediction._structure(case), (0, 10, 20)
    )
    numbers = cases.stack([self_prediction._numbers(case)])
    yield 'features', program, (numbers,)
    return
  case = lab.make_case(config)
  structure = cases.structure_of(case)
  numbers = cases.stack([cases.numbers_of(case)])
  ends = np.array([[1, 20]])
  run = runs._run_program(structure, 20, 1, True)
  yield 'run', run, (numbers, numbers, ends)
  yield 'maps', maps._map_program(structure), (numbers, ends.astype(np.int32))


_classic = functools.partial(
  _of_compiled, classic.ClassicConfig, classic.make_task, q.FAMILY
)
_minatar = functools.partial(
  _of_compiled,
  minatar.MinAtarConfig,
  minatar.make_task,
  q.FAMILY,
  '--train_period=2',
)
_control = functools.partial(
  _of_compiled,
  control.ControlConfig,
  control.make_task,
  actor_critic.FAMILY,
  '--environment=pendulum',
  '--train_period=2',
)
_PANEL = ('--panel_period=1', '--probe_size=8')
PROGRAMS = {
  'classic_panel': lambda _: _classic(
    '--seeds=2', '--environment=catch', *_PANEL
  ),
  'classic': lambda _: _classic('--agent=c51', '--replay=prioritized'),
  'classic_iqn': lambda _: _classic('--agent=iqn'),
  'classic_pqn': lambda _: _classic(
    '--flagfile=experiments/flagfiles/pqn_cartpole.flags'
  ),
  'minatar': lambda _: _minatar(),
  'minatar_spr': lambda _: _minatar('--spr_steps=2', '--eval_episodes=2'),
  'control': lambda _: _control(
    '--agent=sac', '--target_update=soft', '--eval_episodes=0'
  ),
  'control_td3': lambda _: _control(),
  'control_host': lambda _: _control_host(
    '--agent=sac', '--target_update=soft'
  ),
  'gym': lambda _: _gym(*_PANEL),
  'atari': lambda _: _atari(*_PANEL),
  'atari_c51': lambda _: _atari('--agent=c51', '--spr_steps=2'),
  'atari_pqn': lambda _: _atari('--replay=none', '--q_trace=watkins'),
  'atari_qrdqn': lambda _: _atari('--agent=qrdqn'),
  'offline': lambda _: _offline(),
  'siamese': lambda folder: _siamese(folder, '--encoder=small_cnn'),
  'siamese_byol': lambda folder: _siamese(
    folder,
    '--agent=byol',
    '--target_update=soft',
    '--tau=0.1',
    *_PANEL,
    labels=np.arange(40) % 2,
  ),
  'lab': lambda _: _lab('--problem=baird'),
  'lab_features': lambda _: _lab('--problem=self_prediction'),
}
# Further agents, replays and panels; each launcher has a program beside these.
SLOW = (
  'classic_panel',
  'classic_pqn',
  'classic_iqn',
  'minatar_spr',
  'control_td3',
  'control_host',
  'atari_c51',
  'atari_pqn',
  'atari_qrdqn',
  'siamese_byol',
)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
    for name in PROGRAMS
  ],
)
def test_all_programs_lower_for_accelerators(name, tmp_path):
  with jax.enable_x64(name.startswith('lab')):
    programs = list(PROGRAMS[name](tmp_path))
    assert programs
    for part, function, arguments in programs:
      assert 'func.func public @main' in lowered(function, *arguments), part


def _convolutions(program: Any, *arguments: Any, platform: str) -> int:
  text = lowered(program, *arguments, platforms=(platform,))
  return text.count('stablehlo.convolution')


@pytest.mark.parametrize(
  'platform, expected', [('cpu', 9), ('cuda', 11), ('tpu', 11)]
)
def test_each_platform_has_its_own_convolutions(platform, expected):
  """Three per network, and for gradients three of kernels and two of inputs.

  On a CPU the latter two are matrix products.
  """
  programs = {name: each for name, *each in _atari()}
  function, arguments = programs['one']
  assert _convolutions(function, *arguments, platform=platform) == expected
