"""Deep Q-learning: options, and the learners that they make.

Compiled runs, those of the host loop and those on data sets have the same
learners.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import (
  churn as churn_options,
  collecting as collect_options,
  latent as latent_options,
  panel as panel_options,
  resets as reset_options,
  runs,
  streams,
  targets as target_options,
  twin as twin_options,
)
from experiments.config.collecting import (
  CollectOptions,
  gradient_steps,
  make_schedule,
  speeds,
)
from experiments.config.declaring import (
  FRACTION,
  both,
  choice,
  given,
  group,
  not_given,
  one_of,
  option,
  redeclared,
  refuse,
  usage_errors,
)
from experiments.config.fitting import FitOptions
from experiments.config.latent import LatentOptions
from experiments.config.learning import (
  of_agent,
  ExplorationOptions,
  LearningOptions,
  NetworkOptions,
  as_arrays,
  check_learns,
)
from experiments.config.meaning import traced
from experiments.config.targets import TargetOptions
from experiments.families import Family, Task
from siamrl import learner, rewards, schedule
from siamrl.agents import latent, q
from siamrl.augment import Augmentation
from siamrl.diagnostics import KnownValues, Panel, known_values
from siamrl.envs.tabular import optimal_probe
from siamrl.learner import Learner, TwinSpec
from siamrl.networks.q_network import QNetwork
from siamrl.replay.prioritized import PrioritizedReplay
from siamrl.replay.rollout import Rollout
from siamrl.runners import scan
from siamrl.runners.returns import Returns
from siamrl.types import Agent

REPLAYS = {
  'uniform': 'all with the same chance',
  'prioritized': 'by its --priority (Schaul et al. 2016)',
  'none': 'no replay: whole epochs over what a round has collected, with '
  'returns of Q(lambda)',
}

# Rules whose targets are not just numbers.
_NO_WHOLE_TARGETS = ('residual', 'chain', 'gradient_chain', 'iterated_heads')


@dataclasses.dataclass(frozen=True)
class QOptions(
  LearningOptions,
  NetworkOptions,
  LatentOptions,
  churn_options.ChurnOptions,
  reset_options.ResetOptions,
  TargetOptions,
  CollectOptions,
):
  """The options; a launcher adds its environment, and defaults of its own."""


_PRIORITIZED = given('replay', 'prioritized')


@dataclasses.dataclass(frozen=True)
class ReplayOptions:
  """The options of how transitions to learn from are drawn."""

  _replay: Any = group('Replay')
  replay: str = choice(
    'uniform',
    'How the transitions to learn from are drawn.',
    REPLAYS,
    value_alias={'prioritised': 'prioritized'},
  )
  # DQN Zoo's Rainbow has loss with the exponent 0.5, and cuts losses at 100. So
  # has Dopamine's: its priority is the root of the loss, and its exponent 1.
  priority: str = choice(
    'td_error',
    'The number that the priority of a transition is made of, from the last '
    'gradient step on it.',
    {
      'td_error': 'the absolute TD error; of distributions, of their means',
      'loss': 'its loss, such as the cross-entropy of c51 (Rainbow)',
    },
    when=_PRIORITIZED,
    refused=True,
  )
  priority_exponent: float = option(
    0.6,
    'Exponent of --priority; 0 is uniform.',
    FRACTION,
    traced=True,
    when=_PRIORITIZED,
  )
  importance_start: float = option(
    0.4,
    'Exponent of the importance weights at the start.',
    FRACTION,
    traced=True,
    when=_PRIORITIZED,
  )
  importance_end: float = option(
    1.0,
    'Exponent of the importance weights at the end of the run.',
    FRACTION,
    traced=True,
    when=_PRIORITIZED,
  )
  q_lambda: float = option(
    0.0,
    'Lambda of Q(lambda), the weight of longer returns.',
    FRACTION,
    traced=True,
    when=both(given('replay', 'none'), streams.LEARNS_ROUNDS),
    refused=True,
  )
  q_trace: str = option(
    'peng',
    'Variant of Q(lambda); watkins ends a return at an action that was not '
    'greedy',
    one_of(q.TRACES),
    when=both(given('replay', 'none'), streams.LEARNS_ROUNDS),
  )


@dataclasses.dataclass(frozen=True)
class CompiledConfig(
  ExplorationOptions, ReplayOptions, QOptions, runs.SweepOptions
):
  """Those of compiled runs."""

  n_step: int = redeclared(
    CollectOptions, 'n_step', when=not_given('replay', 'none'), refused=True
  )
  replay_capacity: int = redeclared(
    CollectOptions, 'replay_capacity', when=not_given('replay', 'none')
  )


def check(config: CompiledConfig) -> None:
  """Raises UsageError for options that do not go together."""
  collect_options.check(config)
  if getattr(config, 'agreement', False):
    _check_agreement(config)
  streams.check(config)
  with usage_errors():
    target_options.parameters(config)
    latent_options.check(config)
  if config.reset_optimizer and config.anneal_learning_rate:
    refuse(config, 'anneal_learning_rate', 'be false with --reset_optimizer')
  if config.replay == 'none':
    _check_rollout(config, config.iteration_env_steps)
    return
  collect_options.check_replay(config)


def _check_agreement(config: Any) -> None:
  """Raises UsageError where gradients cannot be compared with known values."""
  if not streams.LEARNS_ROUNDS.holds(config):
    refuse(config, 'agreement', f'be given {streams.LEARNS_ROUNDS.words}')
  if config.discount == 1:
    refuse(config, 'discount', 'be below 1 with --agreement')
  if config.spr_steps:
    refuse(config, 'spr_steps', 'be 0 with --agreement')


def _check_rollout(config: Any, iteration_env_steps: int) -> None:
  """Raises UsageError for options that do not go with --replay=none.

  Args:
    config: the options, with those of `ReplayOptions`.
    iteration_env_steps: env steps of the first iteration.
  """
  speeds_ = make_schedule(config)
  with usage_errors():
    panel_options.check(
      config,
      iteration_env_steps=iteration_env_steps,
      capacity=speeds_.collect,  # only the last round is kept
      unready=0,
    )
  learned = speeds_.regress * config.batch_size
  if learned % speeds_.collect:
    refuse(
      config,
      'batch_size',
      f'make whole epochs of the {speeds_.collect} env steps of a round, with '
      f'its {speeds_.regress} gradient steps, for --replay=none',
    )
  if config.spr_steps:
    refuse(
      config,
      'spr_steps',
      'be 0 for --replay=none, which has no sequences to draw',
    )
  if config.target_update in _NO_WHOLE_TARGETS:
    refuse(
      config,
      'target_update',
      f'not be {", ".join(_NO_WHOLE_TARGETS)} with --replay=none: its targets '
      'are made before the gradient steps',
    )


def settings_of(config: CompiledConfig) -> dict[str, Any]:
  """The numbers of a run that may be traced, except for its key."""
  settings = twin_options.settings_of(
    collect_options.twin_spec(config)
  ) | as_arrays(
    target_options.parameters(config), target_options.traced_parameters()
  )
  others = [name for name in traced(type(config)) if name not in settings]
  return settings | as_arrays(vars(config), others)


def _optimal(config: CompiledConfig, task: Task) -> dict[str, np.ndarray]:
  """States and optimal values for the panel, if they are known."""
  process = task.process
  if not config.panel_period or process is None:
    return {}
  learned = rewards.learned(
    process.rewards, config.reward_scale, config.reward_clip or None
  )
  # Without a discount they are unknown, but runs of a program need equal keys.
  obs, values = optimal_probe(
    dataclasses.replace(process, rewards=learned),
    min(config.discount, 0.999),
    task.observations,
  )
  if config.discount == 1:
    values = np.full_like(values, np.nan)
  return {'optimal_obs': obs, 'optimal_values': values}


def twin_spec(config: Any) -> TwinSpec:
  """The twin that the options describe, in gradient steps."""
  return collect_options.twin_spec(config)


def make_agent(
  config: Any,
  network: QNetwork,
  example_obs: Any,
  numbers: Mapping[str, Any],
  *,
  augment: Augmentation | None,
  inside_loop: bool,
) -> Agent:
  """The agent that the options describe.

  Args:
    config: the options; `numbers` replace its numbers.
    network: observations -> values.
    example_obs: [B, ...]; only its shape and type matter.
    numbers: numbers by the names of options; may be traced.
    augment: the augmentation of observations that are learned from.
    inside_loop: whether gradient steps are compiled into a loop.
  """
  agent = target_options.make_agent(config, network, example_obs, numbers)
  if isinstance(config, LatentOptions):
    agent = latent_options.make_agent(
      config,
      network,
      agent,
      example_obs,
      numbers['spr_weight'],
      inside_loop=inside_loop,
    )
  return agent if augment is None else latent.with_augmentation(agent, augment)


def make_learner(
  config: Any, agent: Agent, twin: TwinSpec, numbers: Mapping[str, Any]
) -> Learner:
  """The learner that the options describe.

  Args:
    config: the options; `numbers` replace its numbers.
    agent: the agent of `make_agent`.
    twin: the twin; its numbers may be traced.
    numbers: numbers by the names of options; may be traced.
  """
  optimizer = learner.make_optimizer(
    config.optimizer,
    learning_rate=numbers['learning_rate'],
    eps=numbers['optimizer_eps'],
    decay=config.rmsprop_decay,
    anneal_steps=_anneal_steps(config),
    max_gradient_norm=config.max_gradient_norm or None,
    kappa=numbers['obgd_kappa'],
  )
  # Neither acting nor a second batch is on a data set.
  act_with = getattr(config, 'act_with', 'online')
  churn_weight = getattr(config, 'churn_weight', 0.0)
  made = learner.make_learner(
    agent, optimizer, twin.make(), act_with, churn_weight
  )
  return reset_options.with_resets(config, made, optimizer)


def _anneal_steps(config: Any) -> int | None:
  """Updates over which the step size falls to 0; None if it is constant."""
  if isinstance(config, FitOptions):
    return config.anneal_steps
  return gradient_steps(config) if config.anneal_learning_rate else None


def _make_panel(
  config: Any,
  network: QNetwork,
  learner_: Learner,
  discount: Any,
  age: Callable[[], Any],
  known: KnownValues | None = None,
) -> Panel | None:
  looked_at = of_agent(config, network)
  return panel_options.make_panel(
    config,
    learner_,
    age=age,
    network=latent_options.looked_at(config, looked_at),
    discount=discount,
    known=known,
  )


def make_setup(
  config: CompiledConfig, task: Task, settings: Mapping[str, jax.Array]
) -> scan.Setup:
  """The learner of a run, and how it collects.

  Args:
    config: the options; `settings` replace those that are traced.
    task: the environment.
    settings: the traced options, as `settings_of` has them.
  """
  environment = task.environment
  assert task.network is not None
  network = task.network(environment.num_actions)
  agent = make_agent(
    config,
    network,
    jnp.zeros((1, *environment.obs_shape), environment.obs_dtype),
    settings,
    augment=task.augment,
    inside_loop=True,
  )
  twin = twin_options.traced(twin_spec(config), settings)
  learner_ = make_learner(config, agent, twin, settings)
  optimal, known = None, None
  if 'optimal_obs' in settings:
    optimal = settings['optimal_obs'], settings['optimal_values']
    if getattr(config, 'agreement', False):
      known = known_values(*optimal)
  return scan.Setup(
    learner=learner_,
    epsilon=_epsilon(settings),
    discount=settings['discount'],
    alpha=settings['priority_exponent'],
    beta=collect_options.make_importance(config, settings),
    returns=_make_returns(config, learner_, settings),
    reward_scale=settings['reward_scale'],
    panel=_make_panel(
      config,
      network,
      learner_,
      settings['discount'],
      lambda: twin_options.mean_age(config, speeds(config), twin),
      known,
    ),
    optimal=optimal,
  )


def _make_returns(
  config: Any, learner_: Learner, numbers: Mapping[str, Any]
) -> Returns | None:
  """The whole targets of a round, with --replay=none."""
  if config.replay != 'none' or learner_.agent.traces is not None:
    return None
  return q.make_returns(learner_.agent, numbers['q_lambda'], config.q_trace)


def _epsilon(numbers: Mapping[str, Any]) -> Callable[[Any], Any]:
  return functools.partial(
    schedule.linear_epsilon,
    start=numbers['epsilon_start'],
    end=numbers['epsilon_end'],
    begin=numbers['epsilon_hold'],
    decay=numbers['epsilon_decay'],
  )


def make_loop(config: CompiledConfig, task: Task) -> scan.Loop:
  """The functions of a run; raises ValueError for options that do not fit."""
  return scan.Loop(
    config=collect_options.make_config(config),
    environment=task.environment,
    name=task.name,
    replay=_make_replay(config, task),
    make_setup=functools.partial(make_setup, config, task),
  )


def _make_replay(config: CompiledConfig, task: Task) -> Any:
  environment = task.environment
  if config.replay == 'none':
    return Rollout(
      environment.obs_shape,
      environment.obs_dtype,
      config.num_envs,
      steps=make_schedule(config).collect // config.num_envs,
    )
  replay = collect_options.make_replay(
    config, environment, packed=task.packed, sequence_steps=config.spr_steps
  )
  if config.replay != 'prioritized':
    return replay
  metric = collect_options.PRIORITY_METRICS[config.priority]
  return PrioritizedReplay(replay, metric=metric)


FAMILY = Family(
  check=check,
  settings=lambda config, task: settings_of(config) | _optimal(config, task),
  make_loop=make_loop,
  iterations=collect_options.iterations,
)


# Runs of the host loop, whose programs have the numbers as constants.


def make_host_learner(config: Any, suite: Any, twin: TwinSpec) -> Learner:
  """The learner of a run of the host loop; nothing is computed."""
  spaces = suite.spaces
  agent = make_agent(
    config,
    suite.network(config),
    np.zeros((1, spaces.stack, *spaces.frame_shape), spaces.frame_dtype),
    vars(config),
    augment=suite.augment,
    inside_loop=False,
  )
  return make_learner(config, agent, twin, vars(config))


def make_host_panel(
  config: Any, suite: Any, learner_: Learner, twin: TwinSpec
) -> Panel | None:
  """The panel of a run of the host loop, if the options ask for one."""

  def age() -> float:
    age = twin_options.mean_age(config, speeds(config), twin)
    collect_options.check_shadows(config, age)
    return age

  return _make_panel(
    config, suite.network(config), learner_, config.discount, age
  )


def make_host_returns(config: Any, learner_: Learner) -> Returns | None:
  """The whole targets of a round; None if batches are drawn from a replay."""
  return _make_returns(config, learner_, vars(config))


def make_epsilon(config: Any) -> Callable[[int], float]:
  """Env steps so far -> chance of a random action."""
  return _epsilon(vars(config))


def sequence_steps(config: Any) -> int:
  """Env steps that batches look ahead; 0 for none."""
  return config.spr_steps


def check_host(config: Any, *, length: str) -> None:
  """Raises UsageError for options of a host run that do not go together.

  Args:
    config: the options.
    length: the option that gives the length of the run.
  """
  if config.reset_optimizer and config.anneal_learning_rate:
    refuse(config, 'anneal_learning_rate', 'be false with --reset_optimizer')
  streams.check(config)
  iteration = min(config.iteration_env_steps, config.total_env_steps)
  with usage_errors():
    latent_options.check(config)
  if config.replay == 'none':
    _check_rollout(config, iteration)
  else:
    _check_host_replay(config, iteration)
  check_learns(
    config,
    length=length,
    env_steps=config.total_env_steps,
    round_env_steps=max(config.num_envs, config.train_period),
    gradient_steps=speeds(config).gradient_steps_of(config.total_env_steps),
  )


def _check_host_replay(config: Any, iteration_env_steps: int) -> None:
  """Raises UsageError for a replay that does not go with other options."""
  with usage_errors():
    panel_options.check(
      config,
      iteration_env_steps=iteration_env_steps,
      capacity=config.replay_capacity,
      unready=config.n_step * config.num_envs,
    )
  if config.replay_capacity < config.min_replay:
    refuse(
      config,
      'replay_capacity',
      f'be at least {config.min_replay}: room for what --min_replay='
      f'{config.min_replay} collects',
    )


# Runs on a data set, like those of the host loop without acting.


def make_offline_learner(
  config: Any, network: QNetwork, example_obs: Any, twin: TwinSpec
) -> Learner:
  """The learner of a run on a data set; nothing is computed."""
  agent = make_agent(
    config, network, example_obs, vars(config), augment=None, inside_loop=True
  )
  return make_learner(config, agent, twin, vars(config))
