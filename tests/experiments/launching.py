"""Tiny runs of the Atari launcher, and what they leave."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from experiments import atari, flags
from siamrl.report.checkpoint import Checkpoints
from siamrl.report.metrics import is_wall_clock, read_metrics
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
)


def start(*arguments: Any, sabotage: tuple[Any, ...] = ()) -> subprocess.Popen:
  """Starts the launcher.

  Args:
    *arguments: flags.
    sabotage: (function, count, signal), see `tests.experiments.sabotage`.
  """
  module = 'tests.experiments.sabotage' if sabotage else 'experiments.atari'
  command = [sys.executable, '-m', module, *sabotage, *arguments]
  return subprocess.Popen(
    [str(word) for word in command],
    cwd=ROOT,
    text=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def launch(
  *arguments: Any, sabotage: tuple[Any, ...] = (), code: int = 0
) -> str:
  """Runs the launcher to its end, which must be `code`; what it has written."""
  process = start(*arguments, sabotage=sabotage)
  out, err = process.communicate(timeout=280)
  assert process.returncode == code, err
  assert not out
  assert 'Traceback' not in err
  return err


def killed(*arguments: Any, sabotage: tuple[Any, ...]) -> str:
  """Runs the launcher until it kills itself; what it has written."""
  return launch(
    *arguments, sabotage=(*sabotage, 'SIGKILL'), code=-signal.SIGKILL
  )


def columns(folder: pathlib.Path) -> dict[str, list[float]]:
  """The metrics of a run, those of the wall clock left out."""
  metrics = read_metrics(RunFolder(folder).metrics)
  return {
    name: values.tolist()
    for name, values in metrics.items()
    if not is_wall_clock(name)
  }


@functools.cache
def final_state(folder: pathlib.Path) -> dict[str, Any]:
  """All that the newest checkpoint of a run holds, as bytes and JSON."""
  run = RunFolder(folder)
  config = flags.from_arguments(atari.AtariConfig, f'--flagfile={run.flags}')
  parts, _ = atari.build(config, run)
  found = Checkpoints(run.checkpoints).restore(parts.state)
  assert found is not None
  train, extra, _ = found
  parts.replay.load(run.replay, extra['replay'])
  extra['loop']['statistics'].pop('seconds')
  leaves, _ = jax.tree_util.tree_flatten_with_path(
    train.replace(key=jax.random.key_data(train.key))
  )
  state = {
    jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
    for path, leaf in leaves
  }
  replay = {
    f'replay {i}': array.tobytes()
    for i, array in enumerate(parts.replay._arrays())
  }
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
