"""DDPG, TD3, SAC and CrossQ: options, and the learners that they make."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import inspect
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config import (
  collecting as collect_options,
  panel as panel_options,
  runs,
  twin as twin_options,
)
from experiments.config.collecting import CollectOptions
from experiments.config.declaring import (
  DECAY,
  NOT_NEGATIVE,
  POSITIVE,
  RATE,
  When,
  both,
  choice,
  either,
  given,
  group,
  is_set,
  not_given,
  not_set,
  one_of,
  option,
  redeclared,
  refuse,
  sizes,
)
from experiments.config.learning import (
  LearningOptions,
  NetworkOptions,
  as_arrays,
)
from experiments.config.meaning import traced
from experiments.config.twin import TwinOptions
from experiments.families import Family, Task
from siamrl import learner
from siamrl.agents import actor_critic, crossq
from siamrl.diagnostics import Panel
from siamrl.envs import registry
from siamrl.learner import Learner, TwinSpec
from siamrl.losses import td
from siamrl.networks import policies
from siamrl.runners import scan
from siamrl.schedule import counted
from siamrl.types import Agent, JaxEnvironment

_SIZES = sizes('400-300')


def read_by_agent(name: str) -> When:
  """The condition that the agent takes an option."""
  agents = actor_critic.AGENTS
  return given('agent', *(a for a in agents if name in agents[a].takes))


def _of(name: str) -> dict[str, Any]:
  """Arguments of an option that means something to some agents only."""
  return dict(when=read_by_agent(name), refused=True)


_LEARNS_ALPHA = When(lambda config: config.alpha is None, 'without --alpha')
_LEARNS_POLICY = not_set('fixed_policy')
_CARRIES_NOISE = When(
  lambda config: (
    agent_options(config).get('exploration') == 'ornstein_uhlenbeck'
  ),
  'with --exploration=ornstein_uhlenbeck',
)


def _is_compiled(config: Any) -> bool:
  """Whether the environment is one of JAX."""
  try:
    registry.resolve_environment(config.environment)
  except ValueError:
    return False
  return True


_COMPILED: dict[str, Any] = dict(
  when=When(_is_compiled, 'with an --environment of JAX', 'environment'),
  refused=True,
)


@dataclasses.dataclass(frozen=True)
class ControlConfig(CollectOptions, runs.HostOptions, runs.SweepOptions):
  """The options; their defaults are those of TD3's authors' code today."""

  target_update: str = redeclared(TwinOptions, 'target_update', 'periodic_soft')
  target_period: int = redeclared(TwinOptions, 'target_period', 2)
  target_period_unit: str = redeclared(
    TwinOptions, 'target_period_unit', 'gradient_steps'
  )
  tau: float | None = redeclared(TwinOptions, 'tau', taken=0.005)
  env_steps: int = redeclared(CollectOptions, 'env_steps', 1_000_000)
  iteration_env_steps: int = redeclared(
    CollectOptions, 'iteration_env_steps', 5_000
  )
  num_envs: int = redeclared(CollectOptions, 'num_envs', 1)
  batch_size: int = redeclared(CollectOptions, 'batch_size', 256)
  train_period: int = redeclared(CollectOptions, 'train_period', 1)
  min_replay: int = redeclared(CollectOptions, 'min_replay', 25_000)
  replay_capacity: int = redeclared(
    CollectOptions, 'replay_capacity', 1_000_000
  )
  eval_episodes: int = redeclared(CollectOptions, 'eval_episodes', 10)
  eval_episode_env_steps: int = redeclared(
    CollectOptions,
    'eval_episode_env_steps',
    help='Env steps after which an episode of an evaluation is cut; on the '
    'host, only if the environment sets no limit itself.',
  )
  # Rewards here are of any size.
  reward_bound: float | None = redeclared(  # type: ignore[assignment]
    CollectOptions, 'reward_bound', None
  )
  fresh_environments: bool = redeclared(
    runs.HostOptions,
    'fresh_environments',
    when=When(
      lambda config: not _is_compiled(config),
      'with an --environment of Gymnasium',
      'environment',
    ),
    refused=True,
  )
  share: str = redeclared(runs.SweepOptions, 'share', **_COMPILED)
  vectorized: bool | None = redeclared(
    runs.SweepOptions, 'vectorized', **_COMPILED
  )
  coordinator: str | None = redeclared(
    runs.SweepOptions, 'coordinator', **_COMPILED
  )
  num_processes: int = redeclared(
    runs.SweepOptions, 'num_processes', **_COMPILED
  )
  process_id: int = redeclared(runs.SweepOptions, 'process_id', **_COMPILED)

  _environment: Any = group('The environment')
  environment: str = option(
    'pendulum',
    'JAX-native environment in any spelling, whose runs are compiled: '
    'pendulum, pendulum_endless, mountain_car_continuous, reacher_gymnax, '
    'swimmer_gymnax; or an id of Gymnasium, such as HalfCheetah-v5, which is '
    'stepped on the host, one run after the other.',
    common=True,
  )
  eval_environment: str | None = option(
    None,
    'JAX-native environment to evaluate in, if not --environment.',
    single=True,
    when=is_set('eval_episodes', '1 or more'),
    refused=_COMPILED['when'],
  )

  _agent: Any = group('The agent')
  agent: str = choice(
    'td3',
    'Agent that learns; the other defaults are those of td3, for presets to '
    'change.',
    {name: a.summary for name, a in actor_critic.AGENTS.items()},
    common=True,
  )
  critics: int | None = option(
    None, 'Number of critics; 2 if not given', POSITIVE, **_of('critics')
  )
  target_form: str = option(
    'min',
    'Value that targets bootstrap from. min: the smallest of the twins of the '
    'critics; minto: the smallest of the critics and their twins (MINTO)',
    one_of(actor_critic.TARGET_FORMS),
  )
  policy_delay: int | None = option(
    None,
    'Gradient steps of the critics to one of the actor; 2 for td3, 3 for '
    'crossq and 1 for ddpg and sac if not given',
    POSITIVE,
    when=_LEARNS_POLICY,
    refused=read_by_agent('policy_delay'),
  )
  smoothing_std: float | None = option(
    None,
    "Standard deviation of the noise on the target's action; 0.2 if not given",
    NOT_NEGATIVE,
    traced=True,
    **_of('smoothing_std'),
  )
  smoothing_clip: float | None = option(
    None,
    "Bound of the noise on the target's action; 0.5 if not given",
    NOT_NEGATIVE,
    traced=True,
    when=When(
      lambda config: agent_options(config).get('smoothing_std', 0) > 0,
      'with --smoothing_std above 0',
    ),
    refused=read_by_agent('smoothing_clip'),
  )
  alpha: float | None = option(
    None,
    'Temperature of the entropy; learned if not given',
    NOT_NEGATIVE,
    **_of('alpha'),
  )
  target_entropy: float | None = option(
    None,
    'Entropy that a learned temperature aims at; minus the number of action '
    'dimensions if not given.',
    when=_LEARNS_POLICY,
    refused=both(read_by_agent('target_entropy'), _LEARNS_ALPHA),
  )
  fixed_policy: bool = option(
    False, 'Keep the initial actor and learn only the critics.'
  )
  actor_sizes: str = option('256-256', "Units of the actor's layers", _SIZES)
  critic_sizes: str = option('256-256', "Units of the critics' layers", _SIZES)
  action_layer: int = option(
    0,
    'Hidden layer of the critics that the action enters.',
    NOT_NEGATIVE,
    when=not_given('agent', 'crossq'),
    refused=True,
  )
  layer_norm: bool = redeclared(NetworkOptions, 'layer_norm')
  norm_momentum: float = option(
    crossq.MOMENTUM,
    'Weight of the past in the running averages of batch normalization.',
    DECAY,
    **_of('renorm_warmup'),
  )
  renorm_warmup: int | None = option(
    None,
    'Gradient steps of a network before its batch normalization is corrected '
    'toward the running averages; 100,000 if not given',
    NOT_NEGATIVE,
    **_of('renorm_warmup'),
  )
  initializer: str = redeclared(NetworkOptions, 'initializer')
  last_bound: float | None = option(
    None,
    'Bound of the initial weights of last layers, which are drawn evenly '
    'between minus and plus this; drawn as other weights if not given',
    POSITIVE,
  )
  log_std_low: float = option(
    -20.0, "Lower bound of the actor's log standard deviation.", **_of('alpha')
  )
  log_std_high: float = option(
    2.0, "Upper bound of the actor's log standard deviation.", **_of('alpha')
  )
  log_std_squash: str = option(
    'clip',
    'How the logarithm is kept between --log_std_low and --log_std_high',
    one_of(policies.SQUASHES),
    **_of('alpha'),
  )

  _learning: Any = group('Learning')
  actor_learning_rate: float = option(
    3e-4,
    "Adam's step size of the actor.",
    POSITIVE,
    traced=True,
    when=_LEARNS_POLICY,
  )
  critic_learning_rate: float = option(
    3e-4, "Adam's step size of the critics.", POSITIVE, traced=True, common=True
  )
  alpha_learning_rate: float = option(
    3e-4,
    "Adam's step size of the temperature.",
    POSITIVE,
    traced=True,
    when=both(_LEARNS_ALPHA, _LEARNS_POLICY),
    refused=read_by_agent('alpha'),
  )
  optimizer_eps: float = redeclared(
    LearningOptions, 'optimizer_eps', help="Adam's epsilon.", when=None
  )
  adam_b1: float = option(
    0.9,
    "Decay rate of Adam's mean gradients of actor and critics; that of the "
    'temperature is 0.9.',
    DECAY,
  )
  critic_weight_decay: float = option(
    0.0,
    "Weight of half the critics' squared parameters in the loss.",
    NOT_NEGATIVE,
    traced=True,
  )
  td_loss: str | None = option(
    None,
    'Loss of a TD error; half_squared for sac and crossq and squared for ddpg '
    'and td3 if not given',
    one_of(td.FORMS),
  )
  error_bound: float = redeclared(
    LearningOptions, 'error_bound', when=given('td_loss', 'huber', 'clipped')
  )

  _acting: Any = group('Acting')
  random_env_steps: int = option(
    25_000,
    'Env steps at the start whose actions are random.',
    NOT_NEGATIVE,
    traced=True,
  )
  exploration: str | None = option(
    None,
    'Noise on actions, white or carried over from step to step; gaussian for '
    'td3 and ornstein_uhlenbeck for ddpg if not given',
    one_of(actor_critic.EXPLORATIONS),
    **_of('exploration'),
  )
  exploration_std: float | None = option(
    None,
    'Standard deviation of the noise on actions; 0.1 for td3 and 0.2 for '
    'ddpg if not given',
    NOT_NEGATIVE,
    traced=True,
    **_of('exploration_std'),
  )
  exploration_theta: float | None = option(
    None,
    'Share of the noise on actions that each env step forgets; 0.15 if not '
    'given',
    RATE,
    traced=True,
    when=When(
      lambda config: agent_options(config).get('exploration_std', 0) > 0,
      'with --exploration_std above 0',
    ),
    refused=both(read_by_agent('exploration_theta'), _CARRIES_NOISE),
  )


def agent_options(config: ControlConfig) -> dict[str, Any]:
  """The options that the agent takes, with their defaults."""
  algorithm = actor_critic.AGENTS[config.agent]
  defaults = inspect.signature(algorithm.make).parameters
  given = {name: getattr(config, name) for name in algorithm.takes}
  return {
    name: defaults[name].default if value is None else value
    for name, value in given.items()
  }


# Rules whose term or sum of losses would move the running averages of batch
# normalization, or whose term has no next states.
_NOT_WITH_STATISTICS = ('functional', 'projected_soft', 'iterated_heads')


def check(config: ControlConfig) -> None:
  """Raises UsageError for options that do not go together."""
  collect_options.check(config)
  normalized = actor_critic.AGENTS[config.agent].batch_norm
  if normalized and config.target_update in _NOT_WITH_STATISTICS:
    refuse(
      config,
      'target_update',
      f'not be {either(_NOT_WITH_STATISTICS)} with --agent={config.agent}, '
      'whose networks have batch normalization',
    )
  collect_options.check_replay(config)
  if not config.log_std_low < config.log_std_high:
    refuse(
      config, 'log_std_low', f'be below --log_std_high={config.log_std_high}'
    )
  layers = len(config.critic_sizes.split('-'))
  if config.action_layer > layers:
    refuse(
      config, 'action_layer', f'be at most {layers}, with these --critic_sizes'
    )


def settings_of(config: ControlConfig) -> dict[str, Any]:
  """The numbers of a run that may be traced, except for its key."""
  settings = twin_options.settings_of(collect_options.twin_spec(config))
  others = [name for name in traced(type(config)) if name not in settings]
  values = vars(config) | agent_options(config)
  return settings | as_arrays(values, others)


def _sizes(text: str) -> tuple[int, ...]:
  return tuple(int(size) for size in text.split('-'))


def make_agent(
  config: ControlConfig,
  action_dim: int,
  example_obs: Any,
  settings: Mapping[str, Any],
  bounds: tuple[float, float] | None = None,
) -> Agent:
  """The agent that the options describe, not lifted by any twin.

  Args:
    config: the options.
    action_dim: D.
    example_obs: [B, ...]; only its shape and type matter.
    settings: the result of `settings_of`; may be traced.
    bounds: the bounds of observations, see `policies.Network`.

  Raises:
    ValueError: options that the agent cannot have.
  """
  given = agent_options(config)
  given |= {name: settings[name] for name in given if name in settings}
  algorithm = actor_critic.AGENTS[config.agent]
  shared: dict[str, Any] = dict(
    initializer=config.initializer,
    layer_norm=config.layer_norm,
    last_bound=config.last_bound,
    bounds=bounds,
    batch_norm=algorithm.batch_norm,
  )
  more: dict[str, Any] = {}
  kind = algorithm.actor
  if kind is policies.TanhGaussianActor:
    more = dict(
      log_std_bounds=(config.log_std_low, config.log_std_high),
      log_std_squash=config.log_std_squash,
    )
  return actor_critic.make_actor_critic(
    config.agent,
    kind(
      sizes=_sizes(config.actor_sizes), action_dim=action_dim, **shared, **more
    ),
    policies.Critic(
      sizes=_sizes(config.critic_sizes),
      action_layer=config.action_layer,
      **shared,
    ),
    example_obs,
    **given,
  )


def make_optimizer(
  config: ControlConfig, agent: Agent, settings: Mapping[str, Any]
) -> optax.GradientTransformation:
  """Adam for each entry of the parameters, at a rate of its own.

  Args:
    config: the options.
    agent: the agent of `make_agent`.
    settings: the result of `settings_of`; may be traced.
  """

  def adam(entry: str) -> optax.GradientTransformation:
    return optax.adam(
      settings[f'{entry}_learning_rate'],
      b1=0.9 if entry == 'alpha' else config.adam_b1,
      eps=settings['optimizer_eps'],
    )

  optimizers = {
    'actor': optax.set_to_zero() if config.fixed_policy else adam('actor'),
    'critic': optax.chain(
      optax.add_decayed_weights(settings['critic_weight_decay']),
      adam('critic'),
    ),
  }
  entries = jax.eval_shape(lambda: agent.init(jax.random.key(config.seed)))
  if 'log_alpha' in entries:
    # No temperature changes the entropy of a fixed policy.
    optimizers['log_alpha'] = (
      optax.set_to_zero() if config.fixed_policy else adam('alpha')
    )
  averaging = crossq.statistics_optimizers(config.norm_momentum)
  optimizers |= {name: averaging[name] for name in averaging if name in entries}
  if config.fixed_policy and 'actor_statistics' in entries:
    optimizers['actor_statistics'] = optax.set_to_zero()
  return learner.make_optimizers(agent, optimizers)


def make_learner(
  config: ControlConfig,
  twin: TwinSpec,
  action_dim: int,
  example_obs: Any,
  settings: Mapping[str, Any],
  bounds: tuple[float, float] | None = None,
) -> Learner:
  """The learner that the options describe.

  Args:
    config: the options.
    twin: the twin; its numbers may be traced.
    action_dim: D.
    example_obs: [B, ...]; only its shape and type matter.
    settings: the result of `settings_of`; may be traced.
    bounds: the bounds of observations, see `policies.Network`.
  """
  agent = make_agent(config, action_dim, example_obs, settings, bounds)
  return learner.make_learner(
    agent, make_optimizer(config, agent, settings), twin.make()
  )


def _make_panel(
  config: ControlConfig,
  learner_: Learner,
  discount: chex.Numeric,
  age: Callable[[], Any],
) -> Panel | None:
  return panel_options.make_panel(config, learner_, age=age, discount=discount)


def make_setup(
  config: ControlConfig, task: Task, settings: Mapping[str, jax.Array]
) -> scan.Setup:
  """The learner of a run, and how it collects.

  Args:
    config: the options; `settings` replace those that are traced.
    task: the environment.
    settings: the traced options, as `settings_of` has them.
  """
  environment = task.environment
  twin = twin_options.traced(twin_spec(config), settings)
  learner_ = make_learner(
    config,
    twin,
    environment.action_dim,
    jnp.zeros((1, *environment.obs_shape), environment.obs_dtype),
    settings,
    bounds_of(environment),
  )
  return scan.Setup(
    learner=learner_,
    epsilon=functools.partial(
      at_random, random_env_steps=settings['random_env_steps']
    ),
    discount=settings['discount'],
    reward_scale=settings['reward_scale'],
    panel=_make_panel(
      config,
      learner_,
      settings['discount'],
      lambda: twin_options.mean_age(
        config, collect_options.speeds(config), twin
      ),
    ),
  )


def bounds_of(environment: JaxEnvironment) -> tuple[float, float] | None:
  """The bounds of bytes, which networks scale; None for other observations."""
  return (0.0, 255.0) if environment.obs_dtype == np.uint8 else None


def make_loop(config: ControlConfig, task: Task) -> scan.Loop:
  """The functions of a run; raises ValueError for options that do not fit."""
  return scan.Loop(
    config=collect_options.make_config(config),
    environment=task.environment,
    name=task.name,
    replay=collect_options.make_replay(config, task.environment),
    make_setup=functools.partial(make_setup, config, task),
    eval_environment=task.eval_environment,
  )


def at_random(env_steps: Any, random_env_steps: Any) -> Any:
  """The chance of a random action: first 1, then 0."""
  if isinstance(env_steps, jax.Array):
    early = counted(env_steps) < counted(random_env_steps)
    return jnp.where(early, 1.0, 0.0)
  return 1.0 if env_steps < random_env_steps else 0.0


FAMILY = Family(
  check=check,
  settings=lambda config, task: settings_of(config),
  make_loop=make_loop,
  iterations=collect_options.iterations,
)


# Runs of the host loop.


def twin_spec(config: ControlConfig) -> TwinSpec:
  """The twin that the options describe, in gradient steps."""
  return collect_options.twin_spec(config)


def make_host_learner(
  config: ControlConfig, suite: Any, twin: TwinSpec
) -> Learner:
  """The learner of a run of the host loop; nothing is computed."""
  spaces = suite.spaces
  return make_learner(
    config,
    _in_float32(twin),
    spaces.action_dim,
    np.zeros((1, spaces.stack, *spaces.frame_shape), spaces.frame_dtype),
    settings_of(config),
    spaces.bounds,
  )


def _in_float32(twin: TwinSpec) -> TwinSpec:
  """The twin with rates as compiled runs have them; its clock is constant."""
  numbers = twin_options.settings_of(twin)
  return twin_options.traced(
    twin, numbers | {'sync': twin.sync, 'sync_offset': twin.offset}
  )


def make_host_panel(
  config: ControlConfig, suite: Any, learner_: Learner, twin: TwinSpec
) -> Panel | None:
  """The panel of a run of the host loop, if the options ask for one."""
  del suite

  def age() -> float:
    age = twin_options.mean_age(
      config, collect_options.speeds(config), _in_float32(twin)
    )
    collect_options.check_shadows(config, age)
    return age

  return _make_panel(config, learner_, np.float32(config.discount), age)


def make_host_returns(config: ControlConfig, learner_: Learner) -> None:
  """The whole targets of a round: none, a replay draws batches."""
  del config, learner_


def make_epsilon(config: ControlConfig) -> Callable[[int], float]:
  """Env steps so far -> chance of a random action."""
  return functools.partial(at_random, random_env_steps=config.random_env_steps)


def sequence_steps(config: ControlConfig) -> int:
  """Env steps that batches look ahead: none."""
  del config
  return 0
