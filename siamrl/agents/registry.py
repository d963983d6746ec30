"""Agents of discrete actions by name, with their parameters."""

from collections.abc import Callable, Mapping
import functools
import inspect
from typing import Any, NamedTuple

from siamrl import parameters
from siamrl.agents.distributional import make_c51, make_qrdqn
from siamrl.agents.implicit import DRAWS, make_iqn
from siamrl.agents.q import OWN_FORMS, make_q_agent
from siamrl.agents.streams import (
  REWARD_SCALINGS,
  corrected_network,
  make_qrc,
  make_stream_q,
)
from siamrl.networks.implicit import implicit_network
from siamrl.parameters import (
  FINITE,
  FRACTION,
  NOT_NEGATIVE,
  POSITIVE,
  WHOLE,
  Domain,
  Parameter,
)
from siamrl.types import Agent

# Arguments for which launchers have options with every agent. An agent reads
# those that its `make` takes; `make_q_agent` describes them.
SHARED = (
  'target_form',
  'target_parameters',
  'td_loss',
  'error_bound',
  'batch_reduction',
  'param_dtype',
)


# The agent's parameters by name -> numbers of its network for each action.
Outputs = Callable[[Mapping[str, Any]], int]


# A launcher's network, the agent's parameters by name -> the agent's network.
Adapted = Callable[[Any, Mapping[str, Any]], Any]


def one_output(values: Mapping[str, Any]) -> int:
  """The outputs of a network of values: one for each action."""
  del values
  return 1


def as_it_is(network: Any, values: Mapping[str, Any]) -> Any:
  """The launcher's network, for agents that do not change it."""
  del values
  return network


class Kind(NamedTuple):
  """A kind of agent as a launcher offers it.

  Attributes:
    make: builds the agent from a network, example observations [B, S, ...], and
      the arguments in `reads` and `takes` as keywords.
    summary: one line for a help text.
    form: the default form of its targets, a key of `td.TARGETS`; None for an
      agent with its own targets.
    reads: names of the arguments in `SHARED` that it reads.
    takes: names of its parameters in `PARAMETERS`.
    outputs: the agent's parameters by name -> how many numbers its network has
      for each action.
    adapted: the network that a launcher makes, the agent's parameters by name
      -> the network that the agent's parameters are of.
    streams: names of the optimizers that it goes with, if it learns from each
      transition once, in order (`Agent.traces`); () for other agents.
  """

  make: Callable[..., Agent]
  summary: str
  form: str | None
  reads: tuple[str, ...]
  takes: tuple[str, ...] = ()
  outputs: Outputs = one_output
  adapted: Adapted = as_it_is
  streams: tuple[str, ...] = ()


AGENTS: dict[str, Kind] = {
  name: Kind(functools.partial(make_q_agent, name=name), summary, form, SHARED)
  for (name, form), summary in zip(
    OWN_FORMS.items(),
    (
      'any --target_form; max if none is given',
      'actions by the online network, values by the twin',
    ),
    strict=True,
  )
}
PARAMETERS: dict[str, Parameter] = {}  # the parameters of all agents


def register(
  name: str,
  make: Callable[..., Agent],
  summary: str,
  *,
  form: str | None = None,
  outputs: Outputs = one_output,
  adapted: Adapted = as_it_is,
  streams: tuple[str, ...] = (),
  **new: Parameter,
) -> None:
  """Adds a kind of agent to `AGENTS`.

  Launchers of discrete actions offer it as --agent=NAME, with a flag for each
  parameter that it brings.

  Args:
    name: name of the agent.
    make: builds the agent, see `Kind.make`. Its keywords are some of `SHARED`,
      and parameters: those of `PARAMETERS`, and its own.
    summary: one line for a help text.
    form: the default form of its targets, if `make` takes `target_form` and
      `target_parameters`.
    outputs: see `Kind.outputs`.
    adapted: see `Kind.adapted`.
    streams: see `Kind.streams`.
    **new: the agent's own parameters by name.

  Raises:
    ValueError: the name is taken, a parameter is not described, `make` does not
      take a network and observations, or it takes a form but has no default, or
      the reverse.
  """
  _, _, *keywords = inspect.signature(make).parameters
  reads = tuple(word for word in keywords if word in SHARED)
  takes = tuple(word for word in keywords if word not in SHARED)
  if ('target_form' in reads) != (form is not None):
    raise ValueError(
      f'{name} must have a form of targets if and only if it takes target_form'
    )
  parameters.add('agent', name, AGENTS, takes, PARAMETERS, new)
  AGENTS[name] = Kind(
    make, summary, form, reads, takes, outputs, adapted, streams
  )


def outputs_of(name: str, given: Mapping[str, Any]) -> int:
  """How many numbers an agent's network has for each action.

  Args:
    name: a key of `AGENTS`.
    given: the agent's parameters by name.

  Raises:
    ValueError: the name is unknown, or a parameter is missing, superfluous or
      outside its domain.
  """
  parameters.check_name('agent', name, AGENTS)
  kind = AGENTS[name]
  return kind.outputs(
    parameters.check('agent', name, kind.takes, given, PARAMETERS)
  )


def network_of(name: str, network: Any, given: Mapping[str, Any]) -> Any:
  """The network that an agent's parameters are of.

  Args:
    name: a key of `AGENTS`.
    network: the network that the agent is made from.
    given: the agent's parameters by name.

  Raises:
    ValueError: as for `outputs_of`, or the agent refuses the network.
  """
  parameters.check_name('agent', name, AGENTS)
  kind = AGENTS[name]
  return kind.adapted(
    network, parameters.check('agent', name, kind.takes, given, PARAMETERS)
  )


def make_agent(
  name: str,
  network: Any,
  example_obs: Any,
  *,
  shared: Mapping[str, Any],
  given: Mapping[str, Any],
) -> Agent:
  """Builds the agent that `AGENTS` holds under a name.

  Args:
    name: a key of `AGENTS`.
    network: maps [B, S, ...] observations to [B, A] values, or to [B, A, N]
      numbers, see `outputs_of`.
    example_obs: [B, S, ...]; only its shape matters.
    shared: values by the names of `SHARED`; the agent ignores those that it
      does not read.
    given: the agent's parameters by name; may be traced.

  Raises:
    ValueError: the name is unknown, a parameter is missing, superfluous or
      outside its domain, or the agent refuses an argument.
  """
  parameters.check_name('agent', name, AGENTS)
  kind = AGENTS[name]
  read = {word: shared[word] for word in kind.reads}
  takes = parameters.check('agent', name, kind.takes, given, PARAMETERS)
  return kind.make(network, example_obs, **read, **takes)


register(
  'c51',
  make_c51,
  'probabilities of fixed returns (Bellemare et al. 2017)',
  form='max',
  outputs=lambda values: values['num_atoms'],
  num_atoms=Parameter(
    Domain(lambda x: x >= 2 and x == int(x), 'a whole number from 2 on'),
    'Number of returns whose probabilities are learned',
    int,
    traced=False,
    default=51,
  ),
  v_min=Parameter(
    FINITE,
    'Lowest return whose probability is learned',
    traced=False,
    default=-10.0,
  ),
  v_max=Parameter(
    FINITE,
    'Highest return whose probability is learned; returns beyond count as this '
    'one',
    traced=False,
    default=10.0,
  ),
)
register(
  'qrdqn',
  make_qrdqn,
  'quantiles of the return (Dabney et al. 2018)',
  form='max',
  outputs=lambda values: values['quantiles'],
  quantiles=Parameter(
    WHOLE,
    'Number of quantiles of the return that are learned',
    int,
    traced=False,
    default=200,
  ),
)
register(
  'iqn',
  make_iqn,
  'returns at fractions drawn anew (Dabney et al. 2018b)',
  form='max',
  adapted=lambda network, values: implicit_network(network, values['cosines']),
  fractions=Parameter(
    WHOLE,
    'Number of fractions, drawn anew for each gradient step, at which returns '
    'are learned',
    int,
    traced=False,
    default=64,
  ),
  target_fractions=Parameter(
    WHOLE,
    'Number of fractions at which targets bootstrap from returns',
    int,
    traced=False,
    default=64,
  ),
  acting_fractions=Parameter(
    WHOLE,
    'Number of fractions whose mean return is the value of an action',
    int,
    traced=False,
    default=32,
  ),
  cosines=Parameter(
    WHOLE,
    'Number of cosines that embed a fraction of an implicit quantile network',
    int,
    traced=False,
    default=64,
  ),
  fractions_per=Parameter(
    Domain(lambda x: x in DRAWS, f'one of {", ".join(DRAWS)}'),
    'What fractions are drawn for in learning: each transition, or the whole '
    'batch, which takes less time',
    str,
    traced=False,
    default='transition',
  ),
)
register(
  'stream_q',
  make_stream_q,
  'Q(lambda) from each transition once, by traces (Elsayed et al. 2024)',
  streams=('obgd', 'sgd'),
  trace_lambda=Parameter(
    FRACTION, 'Lambda by which traces decay, beside the discount', default=0.8
  ),
  reward_scaling=Parameter(
    Domain(
      lambda x: x in REWARD_SCALINGS, f'one of {", ".join(REWARD_SCALINGS)}'
    ),
    'Divisor of rewards for learning: std, the running standard deviation of '
    'discounted sums of rewards; or none',
    str,
    traced=False,
    default='std',
  ),
)
register(
  'qrc',
  make_qrc,
  'gradient Q(lambda) with a second network, by traces (Elelimy et al. 2025)',
  adapted=lambda network, values: corrected_network(network),
  streams=('sgd',),
  correction_rate=Parameter(
    POSITIVE,
    'Step size of the network that corrects gradients, as a factor of the '
    'learning rate',
    default=0.1,
  ),
  correction_decay=Parameter(
    NOT_NEGATIVE,
    'Regularization of the network that corrects gradients, the beta of QRC',
    default=1.0,
  ),
)
