"""DDPG, TD3 and SAC on continuous control.

SAC on the pendulum, a whole run compiled, and what the rate of its twin does,
with five seeds for each:

  python -m experiments.control \\
      --flagfile=experiments/flagfiles/sac_pendulum.flags
  python -m experiments.control --agent=td3 --seeds=5 --env_steps=20000 \\
      --min_replay=1000 --random_env_steps=1000 --replay_capacity=20000 \\
      --tau=1,0.1,0.01,0.005

MuJoCo's robots are stepped on the host, one run at a time:

  python -m experiments.control \\
      --flagfile=experiments/flagfiles/td3.flags --environment=HalfCheetah-v5

Actions are in [-1, 1] wherever there are noises and clips, and stretched to
what the environment takes. Everything is kept in one folder, --run_dir: the
flags, metrics.csv, plots, checkpoints. Ctrl-C or SIGTERM saves and stops, and
the same command, without --overwrite, resumes.

The defaults are those of TD3's authors' code. Exit codes: 0 for runs that
finished or were stopped, 2 for flags that cannot be, 1 for anything else in the
way, 130 for a second Ctrl-C.
"""

from collections.abc import Mapping
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from experiments import collecting, control_host, control_options, environments
from experiments.collecting import Task
from experiments.config import (
  collecting as collect_options,
  twin as twin_options,
)
from experiments.config.declaring import UsageError, refuse
from experiments.config.executing import run_sweep
from experiments.config.reading import Sweep
from experiments.control_options import ControlConfig, drop
from experiments.engines import sweeps
from siamrl.runners import scan
from siamrl.types import JaxEnvironment


def make_task(config: ControlConfig) -> Task:
  """The environments that the options name."""
  name, environment, _ = environments.make_task(
    config.environment, continuous=True
  )
  elsewhere = None
  if config.eval_environment is not None:
    _, elsewhere, _ = environments.make_task(
      config.eval_environment, continuous=True, flag='eval_environment'
    )
    for field in ('action_dim', 'obs_shape'):
      here, there = getattr(environment, field), getattr(elsewhere, field)
      if here != there:
        raise UsageError(
          f'--eval_environment={config.eval_environment} must have the '
          f'{field} {here} of --environment={config.environment}, not {there}'
        )
  if _bounds(environment) is not None:
    _note_scaled(name)
  return Task(name, environment, eval_environment=elsewhere)


def _bounds(environment: JaxEnvironment) -> tuple[float, float] | None:
  """Of pixels and bytes, for the networks to scale; None of anything else."""
  return (0.0, 255.0) if environment.obs_dtype == np.uint8 else None


@functools.cache  # once a process
def _note_scaled(name: str) -> None:
  print(
    f'note: the networks see the observations of {name}, which are bytes, '
    'flattened and scaled from [0, 255] to [-1, 1]',
    file=sys.stderr,
  )


def make_setup(
  config: ControlConfig, task: Task, settings: Mapping[str, jax.Array]
) -> scan.Setup:
  """What learns in a run, and how it collects.

  Args:
    config: gives all but the traced options.
    task: what to learn.
    settings: the traced options, as `control_options.settings_of` has them.
  """
  environment = task.environment
  twin = twin_options.traced(collect_options.twin_spec(config), settings)
  learner = control_options.make_learner(
    config,
    twin,
    environment.action_dim,
    jnp.zeros((1, *environment.obs_shape), environment.obs_dtype),
    settings,
    _bounds(environment),
  )
  return scan.Setup(
    learner=learner,
    epsilon=functools.partial(
      control_options.at_random, random_env_steps=settings['random_env_steps']
    ),
    discount=settings['discount'],
    reward_scale=settings['reward_scale'],
    panel=control_options.make_panel(
      config, learner, twin, settings['discount']
    ),
  )


def make_loop(config: ControlConfig, task: Task) -> scan.Loop:
  """The functions of a run; raises ValueError for options that do not fit."""
  return scan.Loop(
    config=collecting.make_config(config),
    environment=task.environment,
    name=task.name,
    replay=collecting.make_replay(config, task),
    make_setup=functools.partial(make_setup, config, task),
    eval_environment=task.eval_environment,
  )


FAMILY = sweeps.Family(
  traced=control_options.TRACED,
  drop=drop,
  check=control_options.check,
  settings=lambda config, task: control_options.settings_of(config),
  make_loop=make_loop,
  iterations=collect_options.iterations,
)


def main(sweep: Sweep) -> None:
  """Trains all runs of a sweep, or the one run of a host environment."""
  names = dict.fromkeys(config.environment for config in sweep.configs)
  on_host = [name for name in names if control_host.is_on_host(name)]
  if on_host:
    control_host.main(sweep, on_host[0])
    return
  first = sweep.configs[0]
  if first.fresh_environments:
    refuse(
      first,
      'fresh_environments',
      f'go with environments on the host, not {first.environment}: compiled '
      'runs keep the state of theirs',
    )
  sweeps.main(sweep, make_task, FAMILY)


if __name__ == '__main__':
  run_sweep(ControlConfig, __doc__, main, drop)
