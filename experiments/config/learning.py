"""Options of networks, gradient steps and exploration, each declared once.

A launcher's record inherits the groups that it needs.
"""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any

from flax import linen as nn
import numpy as np

from experiments.config.declaring import (
  DECAY,
  FRACTION,
  INT32,
  NOT_NEGATIVE,
  POSITIVE,
  Further,
  When,
  any_of,
  both,
  choice,
  given,
  group,
  is_set,
  not_given,
  one_of,
  option,
  options_for,
  parameter,
  refuse,
  registered,
  taken_by,
  value_of,
)
from siamrl import learner, parameters
from siamrl.agents import discrete, registry
from siamrl.losses import td
from siamrl.networks import torsos
from siamrl.networks.heads import HEADS
from siamrl.networks.initializers import INITIALIZERS
from siamrl.networks.q_network import QNetwork, mlp_network
from siamrl.schedule import MOST_ENV_STEPS


# The condition that the launcher makes the layers before the head.
DEFAULT_NETWORK = given('network', 'default')


def _taken(name: str) -> When:
  """The condition that the network takes a parameter."""
  return taken_by('network', torsos.TORSOS, name)


def _parameters() -> Further:
  """The options of all parameters of networks."""
  return options_for(torsos.PARAMETERS, _taken)


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
  """The options of a network of action values."""

  _network: Any = group('The network', _parameters)
  network: str = choice(
    'default',
    'Layers that make features of observations, before the head.',
    lambda: (
      {'default': 'the layers that the other options describe'}
      | {name: torso.summary for name, torso in torsos.TORSOS.items()}
    ),
  )
  stream_units: int | None = parameter(
    torsos.PARAMETERS['stream_units'], _taken('stream_units')
  )
  head: str = option(
    'linear', 'Last layers of the network', registered(lambda: HEADS)
  )
  initializer: str = option(
    'torch_uniform', 'Distribution of initial weights', one_of(INITIALIZERS)
  )
  layer_norm: bool = option(
    False, 'Normalize each hidden layer before its ReLU.'
  )
  noisy_std: float = option(
    0.0,
    'Standard deviation, times the root of the fan-in, with which the noise of '
    'dense layers begins (Fortunato et al. 2018: 0.5); 0 for layers without '
    'noise.',
    NOT_NEGATIVE,
    when=not_given('head', 'shared_bias'),
    refused=True,
  )


def network_options(config: Any) -> dict[str, Any]:
  """The arguments that all networks take, from the options.

  Raises:
    FieldError: the network cannot be made of what is given.
  """
  torso = torsos.TORSOS.get(config.network)
  made = None
  if torso is not None:
    values = {name: value_of(config, name) for name in torso.takes}
    made = torso.make(
      **parameters.check(
        'network', config.network, torso.takes, values, torsos.PARAMETERS
      )
    )
  return {
    'head': config.head,
    'initializer': config.initializer,
    'layer_norm': config.layer_norm,
    'renormalize': getattr(config, 'renormalize', False),
    'torso': made,
    'noisy_std': config.noisy_std,
    'outputs': registry.outputs_of(config.agent, _of_agent(config)),
  }


def _of_agent(config: Any) -> dict[str, Any]:
  """The parameters of the agent, as options give them."""
  takes = registry.AGENTS[config.agent].takes
  return {name: value_of(config, name) for name in takes}


def of_agent(config: Any, network: nn.Module) -> nn.Module:
  """The network that the agent's parameters are of.

  Args:
    config: the options, those of the agent among them.
    network: the network that the agent is made from.
  """
  return registry.network_of(config.agent, network, _of_agent(config))


def make_mlp(config: Any, num_actions: int, bounds: Any = None) -> QNetwork:
  """The network of values whose layers are --hidden_sizes.

  Args:
    config: the options, with those of `NetworkOptions`.
    num_actions: the number of actions.
    bounds: the bounds of observations, see `mlp_network`.
  """
  sizes = config.hidden_sizes
  return mlp_network(
    num_actions,
    sizes=() if sizes == 'none' else tuple(map(int, sizes.split('-'))),
    bounds=bounds,
    **network_options(config),
  )


def read_by_agent(name: str) -> When:
  """The condition that the agent reads an argument of `registry.SHARED`."""
  return taken_by('agent', registry.AGENTS, name, kind='reads')


# Agents with a loss of their own have one bound only.
_BOUNDED = When(
  lambda config: (
    config.td_loss in ('huber', 'clipped')
    or 'td_loss' not in registry.AGENTS[config.agent].reads
  ),
  'with --td_loss=huber or clipped, or an --agent with a loss of its own',
  'td_loss',
)


@dataclasses.dataclass(frozen=True)
class LearningOptions:
  """The options of the loss of action values, and of its optimizer."""

  _learning: Any = group('Learning')
  optimizer: str = option(
    'adam',
    'Optimizer',
    one_of(learner.OPTIMIZERS),
    value_alias={
      'rmsprop_centred': 'rmsprop_centered',
      'rmsprop_centred_torch': 'rmsprop_centered_torch',
    },
  )
  learning_rate: float = option(
    2.5e-4, 'Step size of the optimizer.', POSITIVE, traced=True, common=True
  )
  optimizer_eps: float = option(
    1e-8,
    "The optimizer's epsilon: inside the square root for RMSProp, outside "
    'for Adam, RAdam and rmsprop_centered_torch.',
    POSITIVE,
    traced=True,
    when=not_given('optimizer', 'sgd', 'obgd'),
  )
  rmsprop_decay: float = option(
    0.95,
    "Decay rate of RMSProp's averages.",
    DECAY,
    when=When(
      lambda config: config.optimizer.startswith('rmsprop'),
      'with an --optimizer whose name begins with rmsprop',
    ),
  )
  obgd_kappa: float = option(
    2.0,
    'Kappa of ObGD: the larger, the smaller are steps that may overshoot.',
    POSITIVE,
    traced=True,
    when=given('optimizer', 'obgd'),
    refused=True,
  )
  anneal_learning_rate: bool = option(
    False,
    'Let the step size fall linearly to 0 over the run.',
    when=not_given('optimizer', 'obgd'),
    refused=True,
  )
  max_gradient_norm: float = option(
    0.0,
    'Norm to which gradients are clipped, of all parameters together; 0 for '
    'no clipping.',
    NOT_NEGATIVE,
    when=not_given('optimizer', 'obgd'),
    refused=True,
  )
  td_loss: str = option(
    'squared',
    'Loss of a TD error',
    one_of(td.FORMS),
    when=read_by_agent('td_loss'),
  )
  error_bound: float = option(
    1.0,
    'Absolute TD error from which --td_loss=huber or clipped bounds the '
    'gradient; for --agent=qrdqn or iqn, the kappa of the quantile Huber '
    'loss.',
    POSITIVE,
    when=both(read_by_agent('error_bound'), _BOUNDED),
  )
  batch_reduction: str = option(
    'mean',
    'How the losses of a batch are combined',
    one_of(discrete.REDUCTIONS),
    when=any_of(
      read_by_agent('batch_reduction'), is_set('spr_steps', '1 or more')
    ),
  )
  param_dtype: str = option(
    'float32',
    'Type of the online parameters; the twin and the copy that the optimizer '
    'updates are float32',
    one_of(discrete.DTYPES),
    when=read_by_agent('param_dtype'),
  )


@dataclasses.dataclass(frozen=True)
class ExplorationOptions:
  """The options of epsilon-greedy actions."""

  _acting: Any = group('Acting')
  act_with: str = option(
    'online',
    'Network that acts and is evaluated: the online network, or its twin, as '
    'in BBF',
    one_of(learner.ACT_WITH),
    when=not_given('target_update', 'self', 'residual'),
    refused=True,
  )
  epsilon_start: float = option(
    1.0, 'Chance of a random action at the start.', FRACTION, traced=True
  )
  epsilon_end: float = option(
    0.05, 'Chance of a random action after the decay.', FRACTION, traced=True
  )
  epsilon_hold: int = option(
    0, 'Env steps before epsilon begins to decay.', NOT_NEGATIVE, traced=True
  )
  epsilon_decay: int = option(
    250_000, 'Env steps of the linear decay of epsilon.', POSITIVE, traced=True
  )


def as_arrays(
  values: Mapping[str, Any], names: Iterable[str]
) -> dict[str, np.generic]:
  """Numbers that enter a program; NaN for those that a run does not have."""
  found = {name: values.get(name, np.nan) for name in names}
  return {
    name: (np.int32 if type(value) is int else np.float32)(value)
    for name, value in found.items()
  }


def check_learns(
  config: Any,
  *,
  length: str,
  env_steps: int,
  round_env_steps: int,
  gradient_steps: int,
) -> None:
  """Raises UsageError for a run that never learns or overflows a counter.

  Args:
    config: the options, with `min_replay` and `train_steps`.
    length: the option that gives the length of the run.
    env_steps: env steps of the whole run.
    round_env_steps: env steps of a round, which learns if it began with
      `min_replay` of them.
    gradient_steps: for `env_steps`, including the warm-up, which the clock of
      the twin may count.
  """
  if env_steps > MOST_ENV_STEPS:
    refuse(
      config,
      length,
      f'be of at most {MOST_ENV_STEPS} env steps, not {env_steps}',
    )
  latest = env_steps - round_env_steps
  if config.min_replay > latest:
    refuse(
      config,
      'min_replay',
      f'be at most {latest} for a gradient step before the end, as --{length}='
      f'{getattr(config, length)} is of {env_steps} env steps',
    )
  if gradient_steps > INT32:
    refuse(
      config,
      'train_steps',
      f'be smaller, or --{length}={getattr(config, length)}: they call for '
      f'{gradient_steps} gradient steps, and {INT32} can be counted',
    )
