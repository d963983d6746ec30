"""DDPG, TD3, SAC and CrossQ for continuous control, with rules of the twin.

SAC on a compiled pendulum, then four rates of TD3's twin with five seeds each:

  python -m experiments.control \\
      --flagfile=experiments/flagfiles/sac_pendulum.flags
  python -m experiments.control --agent=td3 --seeds=5 --env_steps=20000 \\
      --min_replay=1000 --random_env_steps=1000 --replay_capacity=20000 \\
      --tau=1,0.1,0.01,0.005

MuJoCo's robots are stepped on the host. Their runs are done one after the
other, each in a folder inside --run_dir:

  python -m experiments.control \\
      --flagfile=experiments/flagfiles/td3.flags \\
      --environment=HalfCheetah-v5,Hopper-v5 --seeds=3

CrossQ has batch normalization, which makes up for a twin: its presets have
--target_update=self. Other rules give it one, but for functional,
projected_soft, iterated_heads and gradient_chain, which do not fit.

Policies act in [-1, 1], where noise is added and clipped; actions are then
scaled to the bounds of the environment. All results are kept in one folder,
--run_dir: flags, metrics.csv, plots, TensorBoard events and checkpoints. Ctrl-C
or SIGTERM saves and stops; the same command without --overwrite resumes.

The defaults are those of the TD3 authors' code. Exit codes: 0 if all runs
finished or were stopped, 2 for invalid flags, 1 for any other error, 130 after
a second Ctrl-C.
"""

import functools
import sys
from typing import NoReturn

from experiments.config import executing
from experiments.config.declaring import UsageError
from experiments.config.reading import Sweep
from experiments.engines import host_runs, sweeps
from experiments.families import Task, actor_critic
from experiments.families.actor_critic import ControlConfig
from experiments.suites import gym, jax_native


def make_task(config: ControlConfig) -> Task:
  """The environments that the options name."""
  name, environment, _ = jax_native.make_task(
    config.environment, continuous=True
  )
  elsewhere = None
  if config.eval_environment is not None:
    _, elsewhere, _ = jax_native.make_task(
      config.eval_environment, continuous=True, flag='eval_environment'
    )
    for field in ('action_dim', 'obs_shape'):
      here, there = getattr(environment, field), getattr(elsewhere, field)
      if here != there:
        raise UsageError(
          f'--eval_environment={config.eval_environment} must have the '
          f'{field} {here} of --environment={config.environment}, not {there}'
        )
  if actor_critic.bounds_of(environment) is not None:
    _note_scaled(name)
  return Task(name, environment, eval_environment=elsewhere)


@functools.cache  # once a process
def _note_scaled(name: str) -> None:
  print(
    f'note: the networks see the observations of {name}, which are bytes, '
    'flattened and scaled from [0, 255] to [-1, 1]',
    file=sys.stderr,
  )


def main(sweep: Sweep) -> None:
  """Trains all runs of a sweep."""
  if _is_on_host(sweep):
    make_suite = functools.partial(gym.make_suite, discrete=False)
    host_runs.main(
      gym.resolved(sweep),
      actor_critic,
      make_suite,
      actor_critic.check,
      ynnpack=False,
    )
    return
  sweeps.main(sweep, make_task, actor_critic.FAMILY)


def check_sweep(sweep: Sweep) -> None:
  """Raises UsageError or RunError for what is refused before a run begins."""
  if _is_on_host(sweep):
    sweep = gym.resolved(sweep)
    host_runs.check_options(sweep, actor_critic.check)
    gym.check(sweep, discrete=False)
    return
  sweeps.check(sweep, actor_critic.FAMILY)
  for config in sweep.configs:
    for flag in ('environment', 'eval_environment'):
      name = getattr(config, flag)
      if name is not None:
        jax_native.resolve(name, continuous=True, flag=flag)


def _is_on_host(sweep: Sweep) -> bool:
  """Whether environments are stepped on the host.

  Raises:
    UsageError: some are and others are not, or there is no such environment.
  """
  names = dict.fromkeys(config.environment for config in sweep.configs)
  on_host = [name for name in names if gym.is_on_host(name)]
  if on_host and len(on_host) < len(names):
    raise UsageError(
      f'--environment={",".join(names)} must not name {on_host[0]}, which is '
      'stepped on the host, beside environments of JAX'
    )
  return bool(on_host)


def run() -> NoReturn:
  """Does what the command line says, and exits."""
  executing.run(ControlConfig, __doc__, main, lists=True)


if __name__ == '__main__':
  run()
