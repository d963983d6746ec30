"""Deep Q-learning in compiled runs: options, and what they make.

What `experiments.classic` and `experiments.minatar` share; a launcher names its
environments, and has defaults of its own.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import collecting
from experiments.collecting import Task
from experiments.config import (
  collecting as collect_options,
  latent as latent_options,
  learning as options,
  panel as panel_options,
  targets as target_options,
  twin as twin_options,
)
from experiments.config.collecting import gradient_steps, make_schedule, speeds
from experiments.config.declaring import (
  FRACTION,
  choice,
  group,
  one_of,
  option,
  refuse,
  usage_errors,
)
from experiments.config.reading import Sweep
from experiments.engines import compiled as compiled_engine, sweeps
from siamrl import learner, rewards, schedule
from siamrl.agents import latent, q
from siamrl.envs.tabular import optimal_probe
from siamrl.losses import td
from siamrl.replay.device import PrioritisedReplay
from siamrl.replay.rollout import Rollout
from siamrl.runners import scan

# Options that may differ between runs of one program: they enter as arrays.
TRACED = (
  'discount',
  *twin_options.TRACED,
  *target_options.TRACED,
  *latent_options.TRACED,
  'learning_rate',
  'optimizer_eps',
  'epsilon_start',
  'epsilon_end',
  'epsilon_hold',
  'epsilon_decay',
  'priority_exponent',
  'importance_start',
  'importance_end',
  'q_lambda',
  'reward_scale',
)

REPLAYS = {
  'uniform': 'each transition with the same chance',
  'prioritised': 'by its last TD error (Schaul et al. 2016)',
  'none': 'no replay: what a round has collected, in whole epochs, and with '
  'returns of Q(lambda)',
}

# Rules by which targets are more than numbers.
_NO_WHOLE_TARGETS = ('residual', 'chain', 'iterated_heads')


@dataclasses.dataclass(frozen=True)
class CompiledConfig(
  latent_options.LatentOptions,
  target_options.TargetOptions,
  collect_options.CollectOptions,
):
  """The options; a launcher adds its environment, and defaults of its own."""

  _agent: Any = group('The agent')
  head: str = options.head()
  initializer: str = options.initializer()
  layer_norm: bool = options.layer_norm()

  _learning: Any = group('Learning')
  optimizer: str = options.optimizer('adam')
  learning_rate: float = options.learning_rate(2.5e-4)
  optimizer_eps: float = options.optimizer_eps(1e-8)
  rmsprop_decay: float = options.rmsprop_decay()
  anneal_learning_rate: bool = options.anneal_learning_rate()
  max_gradient_norm: float = options.max_gradient_norm()
  td_loss: str = options.td_loss('squared')
  error_bound: float = options.error_bound()
  batch_reduction: str = options.batch_reduction('mean')
  param_dtype: str = options.param_dtype()

  _replay: Any = group('Replay')
  replay: str = choice(
    'uniform', 'How the transitions to learn from are drawn:', REPLAYS
  )
  priority_exponent: float = option(
    0.6, 'Of the TD errors; 0 is uniform. For prioritised.', FRACTION
  )
  importance_start: float = option(
    0.4, 'Exponent of the importance weights at first.', FRACTION
  )
  importance_end: float = option(1.0, 'The same in the end.', FRACTION)

  q_lambda: float = option(
    0.0, 'Weight of longer returns, Q(lambda). For none.', FRACTION
  )
  q_trace: str = option(
    'peng',
    'Whose Q(lambda); watkins ends a return where an action was not greedy',
    one_of(q.TRACES),
  )

  _acting: Any = group('Acting')
  epsilon_start: float = options.epsilon_start()
  epsilon_end: float = options.epsilon_end(0.05)
  epsilon_hold: int = options.epsilon_hold(0)
  epsilon_decay: int = options.epsilon_decay(250_000)


def default(name: str, value: Any) -> Any:
  """The field of a subclass whose option has another default."""
  inherited = CompiledConfig.__dataclass_fields__[name]
  return dataclasses.field(default=value, metadata=inherited.metadata)


def drop(config: CompiledConfig) -> list[str]:
  """Options that mean nothing to a run; a sweep does not cross them with it."""
  meaning = {
    'replay_capacity': config.replay != 'none',
    'n_step': config.replay != 'none',
    'q_lambda': config.replay == 'none',
    'q_trace': config.replay == 'none',
    'priority_exponent': config.replay == 'prioritised',
    'importance_start': config.replay == 'prioritised',
    'importance_end': config.replay == 'prioritised',
  }
  dropped = [name for name, meant in meaning.items() if not meant]
  with usage_errors():  # paths that cannot be read
    return [
      *dropped,
      *options.meaningless(config),
      *collect_options.meaningless(config),
      *twin_options.meaningless(config),
      *target_options.meaningless(config),
      *latent_options.meaningless(config),
    ]


def check(config: CompiledConfig) -> None:
  """Raises UsageError for options that do not go together."""
  collect_options.check(config)
  with usage_errors():
    target_options.parameters(config)
    latent_options.check(config)
  if config.reset_optimizer and config.anneal_learning_rate:
    refuse(config, 'anneal_learning_rate', 'be false with --reset_optimizer')
  if config.replay == 'none':
    _check_rollout(config)
    return
  if config.q_lambda:
    refuse(config, 'q_lambda', 'go with --replay=none')
  collect_options.check_replay(config)


def _check_rollout(config: CompiledConfig) -> None:
  """Raises UsageError for options that do not go with learning at once."""
  speeds_ = make_schedule(config)
  with usage_errors():
    panel_options.check(
      config,
      iteration_env_steps=config.iteration_env_steps,
      capacity=speeds_.collect,  # there is nothing but the last round
      unready=0,
    )
  learnt = speeds_.regress * config.batch_size
  if learnt % speeds_.collect:
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
  if config.n_step != 1:
    refuse(
      config, 'n_step', 'be 1 for --replay=none; --q_lambda reaches further'
    )
  if config.target_update in _NO_WHOLE_TARGETS:
    refuse(
      config,
      'target_update',
      f'not be {", ".join(_NO_WHOLE_TARGETS)} with --replay=none: its targets '
      'are made before the gradient steps',
    )


def settings_of(config: CompiledConfig) -> dict[str, Any]:
  """The numbers of a run that may be traced; its key is beside them."""
  settings = twin_options.settings_of(
    collect_options.twin_spec(config)
  ) | options.as_arrays(
    target_options.parameters(config), target_options.TRACED
  )
  others = [name for name in TRACED if name not in settings]
  return settings | options.as_arrays(vars(config), others)


def _optimal(config: CompiledConfig, task: Task) -> dict[str, np.ndarray]:
  """For the panel: the states, and what they are worth, where that is known."""
  process = task.process
  if not config.panel_period or process is None:
    return {}
  learnt = rewards.learnt(
    process.rewards, config.reward_scale, config.reward_clip or None
  )
  # Without a discount they are not known; runs of a program have the same keys.
  obs, values = optimal_probe(
    dataclasses.replace(process, rewards=learnt), min(config.discount, 0.999)
  )
  if config.discount == 1:
    values = np.full_like(values, np.nan)
  return {'optimal_obs': obs, 'optimal_values': values}


def make_setup(
  config: CompiledConfig, task: Task, settings: Mapping[str, jax.Array]
) -> scan.Setup:
  """What learns in a run, and how it collects.

  Args:
    config: gives all but the traced options.
    task: what to learn.
    settings: the traced options, as `settings_of` has them.
  """
  environment = task.environment
  network = task.network(environment.num_actions)
  example = jnp.zeros((1, *environment.obs_shape), environment.obs_dtype)
  base = latent_options.make_agent(
    config,
    network,
    target_options.make_agent(
      config,
      network,
      example,
      {name: settings[name] for name in target_options.parameters(config)},
    ),
    example,
    settings['spr_weight'],
    inside_loop=True,
  )
  if task.augment is not None:
    base = latent.with_augmentation(base, task.augment)
  optimizer = learner.make_optimizer(
    config.optimizer,
    learning_rate=settings['learning_rate'],
    eps=settings['optimizer_eps'],
    decay=config.rmsprop_decay,
    anneal_steps=gradient_steps(config)
    if config.anneal_learning_rate
    else None,
    max_gradient_norm=config.max_gradient_norm or None,
  )
  twin = twin_options.traced(collect_options.twin_spec(config), settings)
  learner_ = learner.make_learner(base, optimizer, twin.make())
  returns = None
  if config.replay == 'none':
    returns = q.make_returns(
      learner_.agent, settings['q_lambda'], config.q_trace
    )
  return scan.Setup(
    learner=learner_,
    epsilon=functools.partial(
      schedule.linear_epsilon,
      start=settings['epsilon_start'],
      end=settings['epsilon_end'],
      begin=settings['epsilon_hold'],
      decay=settings['epsilon_decay'],
    ),
    discount=settings['discount'],
    alpha=settings['priority_exponent'],
    # The same straight line, over the whole run.
    beta=functools.partial(
      schedule.linear_epsilon,
      start=settings['importance_start'],
      end=settings['importance_end'],
      begin=0,
      decay=config.env_steps,
    ),
    returns=returns,
    reward_scale=settings['reward_scale'],
    panel=panel_options.make_panel(
      config,
      learner_,
      age=lambda: twin_options.mean_age(config, speeds(config), twin),
      network=latent_options.looked_at(config, network),
      discount=settings['discount'],
    ),
    optimal=(settings['optimal_obs'], settings['optimal_values'])
    if 'optimal_obs' in settings
    else None,
  )


def make_loop(config: CompiledConfig, task: Task) -> scan.Loop:
  """The functions of a run; raises ValueError for options that do not fit."""
  return scan.Loop(
    config=collecting.make_config(config),
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
  replay = dataclasses.replace(
    collecting.make_replay(config, task), sequence_steps=config.spr_steps
  )
  return PrioritisedReplay(replay) if config.replay == 'prioritised' else replay


FAMILY = sweeps.Family(
  traced=TRACED,
  drop=drop,
  check=check,
  settings=lambda config, task: settings_of(config) | _optimal(config, task),
  make_loop=make_loop,
  iterations=collect_options.iterations,
  choosers={
    'target_update': twin_options.OF_RULES,
    'target_form': tuple(td.TARGET_PARAMETERS),
  },
)


def main(sweep: Sweep, make_task: Callable[[Any], Task]) -> None:
  """Trains all runs of a sweep, see `sweeps.main`."""
  sweeps.main(sweep, make_task, FAMILY)


def make_groups(
  sweep: Sweep, tasks: Mapping[Any, Task]
) -> Iterator[compiled_engine.Group]:
  """The programs of a sweep, see `sweeps.make_groups`."""
  return sweeps.make_groups(sweep, tasks, FAMILY)
