"""Tiny runs of the launchers, and what they leave."""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import io
import os
import pathlib
import signal
import subprocess
import sys
import types
from typing import Any

import jax
import numpy as np
import pytest

from experiments import atari, control
from experiments.config import executing, reading, runs
from experiments.engines import compiled as compiled_engine, host, sweeps
from experiments.families import Family, actor_critic, q
from siamrl.replay.host_prioritized import PrioritizedHostReplay
from siamrl.report.checkpoint import Checkpoints
from siamrl.report.metrics import is_wall_clock, read_metrics
from siamrl.report.progress import Progress
from siamrl.report.run_folder import RunFolder

ROOT = pathlib.Path(__file__).parents[2]
# Two iterations of 400 env steps; episodes of at most 100.
SMALL = (
  '--platform=cpu',
  '--game=breakout',
  '--fire_on_reset',
  '--frames=3200',
  '--iteration_frames=1600',
  '--min_replay=64',
  '--replay_capacity=480',
  '--batch_size=4',
  '--frame_cap=400',
  '--epsilon_hold=0',
  '--epsilon_decay=300',
  '--target_period=100',
  '--eval_frames=0',
  '--hidden_units=8',  # without the compiler's optimizations products are slow
)


# A run of DQN on Catch that is over in two iterations.
CATCH = (
  '--environment=catch',
  '--hidden_sizes=8',
  '--num_envs=2',
  '--train_period=2',
  '--target_period=20',
  '--batch_size=4',
  '--min_replay=10',
  '--replay_capacity=100',
  '--env_steps=80',
  '--iteration_env_steps=40',
)

# Numbers of rules of the twin, and of forms of targets, that have some.
OF_RULES = dict(
  tau=0.5,
  tau_end=0.25,
  target_period_end=40,
  target_period_growth=1.5,
  degrees_of_freedom=1,
  target_schedule_steps=100,
  target_count=2,
  target_sync_period=10,
  target_paths='torso:soft+head:hard',
  twin_weight=0.5,
  projection_radius=100,
  ridge=0.1,
)
OF_FORMS = dict(
  mellowmax_omega=5,
  expected_epsilon=0.1,
  soft_temperature=0.1,
  munchausen_alpha=0.9,
  munchausen_clip=-1,
)
# Three iterations of 200 env steps; episodes of 9.
SMALL_SWEEP = (
  '--platform=cpu',
  '--environment=catch',
  '--env_steps=600',
  '--iteration_env_steps=200',
  '--num_envs=2',
  '--train_period=2',
  '--target_period=2',
  '--batch_size=8',
  '--min_replay=50',
  '--replay_capacity=200',
  '--hidden_sizes=8',
  '--epsilon_decay=300',
)


def start(
  *arguments: Any,
  sabotage: tuple[Any, ...] = (),
  launcher: str = 'experiments.atari',
  environment: dict[str, str] | None = None,
) -> subprocess.Popen:
  """Starts a launcher.

  Args:
    *arguments: flags.
    sabotage: (function, count, signal), see `tests.experiments.sabotage`.
    launcher: name of its module.
    environment: variables to set.
  """
  modules = [launcher]
  if sabotage:
    modules = ['tests.experiments.sabotage', launcher]
  command = [sys.executable, '-m', *modules, *sabotage, *arguments]
  return subprocess.Popen(
    [str(word) for word in command],
    cwd=ROOT,
    text=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', **(environment or {})},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def launch(
  *arguments: Any,
  sabotage: tuple[Any, ...] = (),
  code: int = 0,
  **options: Any,
) -> str:
  """Runs a launcher to its end, which must be `code`; what it has written."""
  process = start(*arguments, sabotage=sabotage, **options)
  out, err = process.communicate(timeout=280)
  assert process.returncode == code, err
  assert not out
  assert 'Traceback' not in err
  assert 'the run goes on' not in err  # pictures and events are all there
  return err


def killed(*arguments: Any, sabotage: tuple[Any, ...], **options: Any) -> str:
  """Runs a launcher until it kills itself; what it has written."""
  return launch(
    *arguments,
    sabotage=(*sabotage, 'SIGKILL'),
    code=-signal.SIGKILL,
    **options,
  )


def read_sweep(launcher: types.ModuleType, *arguments: Any) -> reading.Sweep:
  """The sweep that a command line of a launcher asks for."""
  return reading.sweep_from_arguments(config_of(launcher), *map(str, arguments))


def config_of(launcher: types.ModuleType) -> type:
  """The options of a launcher of sweeps."""
  known = [
    value
    for value in vars(launcher).values()
    if isinstance(value, type) and issubclass(value, runs.SeriesOptions)
  ]
  return max(known, key=lambda cls: len(cls.mro()))


def family_of(launcher: types.ModuleType) -> Family:
  """What kind of runs a launcher of sweeps has."""
  if launcher is control:
    return actor_critic.FAMILY
  return getattr(launcher, 'FAMILY', q.FAMILY)


def groups_of(
  launcher: types.ModuleType, sweep: reading.Sweep
) -> list[compiled_engine.Group]:
  """The programs of a sweep."""
  tasks = {config: launcher.make_task(config) for config in sweep.configs}
  return list(sweeps.make_groups(sweep, tasks, family_of(launcher)))


def execute_sweep(launcher: types.ModuleType, arguments: Sequence[str]) -> int:
  """Calls a launcher of sweeps as its module does; returns its exit code."""
  family = family_of(launcher)

  def main(sweep: reading.Sweep) -> None:
    sweeps.main(sweep, launcher.make_task, family)

  return executing.execute(
    config_of(launcher),
    launcher.__doc__ or '',
    getattr(launcher, 'main', main),
    arguments,
    lists=True,
  )


def sweep_here(
  launcher: types.ModuleType, *arguments: Any, code: int = 0
) -> str:
  """Runs a launcher of sweeps in this process; what it has written."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    found = execute_sweep(launcher, list(map(str, arguments)))
  assert found == code, err.getvalue()
  assert not out.getvalue()
  return err.getvalue()


@contextlib.contextmanager
def recorded_phases() -> Iterator[list[str]]:
  """In the block, runs of this process add the phases that they enter."""
  seen: list[str] = []
  original = Progress.enter

  def enter(self: Progress, phase: str) -> None:
    if phase != self._phase:
      seen.append(phase)
    original(self, phase)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Progress, 'enter', enter)
    yield seen


def columns(folder: pathlib.Path) -> dict[str, list[float]]:
  """The metrics of a run, those of the wall clock left out."""
  metrics = read_metrics(RunFolder(folder).metrics)
  return {
    name: values.tolist()
    for name, values in metrics.items()
    if not is_wall_clock(name)
  }


def sweep_state(
  launcher: types.ModuleType, folder: pathlib.Path
) -> dict[str, Any]:
  """All that the newest checkpoints of a sweep hold, as bytes and JSON."""
  run = RunFolder(folder)
  sweep = read_sweep(launcher, f'--flagfile={run.flags}')
  state: dict[str, Any] = {}
  for index, group in enumerate(groups_of(launcher, sweep)):
    shapes = jax.eval_shape(
      jax.vmap(group.loop.start), group.settings(), group.keys()
    )
    template = jax.tree.map(_empty, shapes)
    found = Checkpoints(run.checkpoints / f'{index:03}').restore(template)
    assert found is not None
    tree, extra, _ = found
    state[f'{index} extra'] = extra
    leaves, _ = jax.tree_util.tree_flatten_with_path(
      tree.replace(
        key=jax.random.key_data(tree.key),
        train=tree.train.replace(key=jax.random.key_data(tree.train.key)),
      )
    )
    for path, leaf in leaves:
      name = f'{index} {jax.tree_util.keystr(path)}'
      state[name] = np.asarray(leaf).tobytes()
  return state


def _bytes(leaf: Any) -> bytes:
  if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
    leaf.dtype, jax.dtypes.prng_key
  ):
    leaf = jax.random.key_data(leaf)
  return np.asarray(leaf).tobytes()


def _empty(leaf: Any) -> jax.Array:
  """An array of a leaf's shape and dtype."""
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jax.random.split(jax.random.key(0), leaf.shape)
  return jax.numpy.zeros(leaf.shape, leaf.dtype)


@functools.cache
def final_state(folder: pathlib.Path) -> dict[str, Any]:
  """All that the newest checkpoint of a run holds, as bytes and JSON."""
  run = RunFolder(folder)
  config = reading.from_arguments(atari.AtariConfig, f'--flagfile={run.flags}')
  parts, _ = atari.build(config, run)
  return host_state(parts, run)


def host_state(parts: host.Parts, run: RunFolder) -> dict[str, Any]:
  """All that the newest checkpoint of a run of the host loop holds."""
  watched = parts.seen is not None
  found = Checkpoints(run.checkpoints).restore(
    (parts.state, parts.seen) if watched else parts.state
  )
  assert found is not None
  saved, extra, _ = found
  parts.replay.load(run.replay, extra['replay'])
  extra['loop']['statistics'].pop('seconds')
  leaves, _ = jax.tree_util.tree_flatten_with_path(saved)
  state = {jax.tree_util.keystr(path): _bytes(leaf) for path, leaf in leaves}
  replay = {
    f'replay {i}': array.tobytes()
    for i, array in enumerate(parts.replay._arrays())
  }
  if isinstance(parts.replay, PrioritizedHostReplay):
    replay['priorities'] = parts.replay.priorities.tobytes()
  counters = {
    name: extra['replay'][name] for name in ('written', 'pending', 'size')
  }
  return (
    state
    | replay
    | counters
    | {
      'loop': extra['loop'],
      'rows': extra['rows'],
      'pending row': extra['pending'],
    }
  )


def assert_same_run(one: pathlib.Path, other: pathlib.Path) -> None:
  """Two folders hold the same run, bit for bit but for the clock."""
  # NaN equals itself in text.
  assert repr(columns(one)) == repr(columns(other))
  expected, found = final_state(one), final_state(other)
  assert expected.keys() == found.keys()
  assert not [
    name for name, value in expected.items() if repr(value) != repr(found[name])
  ]
