"""Q-learning agents: DQN, Double DQN and their kin as pure functions."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from siamrl.agents.discrete import (
  CHOOSER,
  ONLINE,
  TWIN,
  ActingNoise,
  Errors,
  Parts,
  as_dtype,
  check_learning,
  epsilon_greedy,
  greedy_of,
  make_acting_noise,
  make_loss,
)
from siamrl.losses import returns, td
from siamrl.networks.dense import answer
from siamrl.parameters import FieldError, check_name
from siamrl.types import Acting, Agent, Bootstrap, Params, Transition

# The default form of each agent's targets, a key of `td.TARGETS`.
OWN_FORMS = {'dqn': 'max', 'double_dqn': 'double'}


TRACES = ('peng', 'watkins')


def make_returns(
  agent: Agent, lambda_: chex.Numeric, trace: str = 'peng'
) -> Callable[[Params, Any, Transition, chex.Array, chex.PRNGKey], chex.Array]:
  """Builds Q(lambda): whole targets for sequences of transitions.

  One-step targets are the agent's, of any form and twin, and
  `losses.returns.lambda_returns` mixes longer returns in.

  Args:
    agent: an agent already lifted by the rule.
    lambda_: weight of longer returns, in [0, 1]; may be traced. 0 gives the
      agent's own targets.
    trace: 'peng'; or 'watkins', where a return ends if the next action taken
      was not greedy by the values that it would bootstrap from.

  Returns:
    (online_params, target_params, transitions of one step each [T, N, ...],
    ended [T, N], key) -> targets [T, N].

  Raises:
    ValueError: the trace's name is unknown.
  """
  check_name('trace', trace, TRACES)
  over_envs = functools.partial(jax.vmap, in_axes=1, out_axes=1)

  def make(online_params, target_params, steps, ended, key):
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps)

    def targets(discount: float) -> chex.Array:
      """Targets of the same steps, with a reward of 0 and this discount."""
      zeros = jnp.zeros_like(flat.r_t)
      batch = flat._replace(r_t=zeros, discount_t=zeros + discount)
      y = agent.targets(online_params, target_params, batch, key)
      return y.reshape(ended.shape)

    bonus = targets(0.0)  # some forms add a bonus to the reward
    v_t = targets(1.0) - bonus
    lambda_t = jnp.full(ended.shape, lambda_)
    if trace == 'watkins':
      answer = agent.bootstrap(online_params, target_params, flat.obs_t, key)
      q_t = agent.expected(answer)
      q_t = q_t.reshape(*ended.shape, -1)
      a_t = jnp.roll(steps.a_tm1, -1, axis=0)  # the last is not read
      lambda_t = over_envs(lambda q, a: returns.watkins_trace(q, a, lambda_))(
        q_t, a_t
      )
    return over_envs(returns.lambda_returns)(
      steps.r_t + bonus, steps.discount_t, v_t, ended, lambda_t
    )

  return make


@dataclasses.dataclass(frozen=True, eq=False)
class _Networks:
  """The values of one or more copies of a network.

  Attributes:
    network: maps [B, S, ...] observations to [B, A] values.
    example_obs: [B, S, ...]; only its shape matters.
    dtype: dtype of the parameters.
    names: names of the networks in one tree of parameters; a single network is
      the whole tree.
  """

  network: nn.Module
  example_obs: chex.Array
  dtype: str
  names: Sequence[str]

  def init(self, key: chex.PRNGKey) -> Params:
    """Draws different parameters for each network."""
    if len(self.names) == 1:
      params = self.network.init(key, self.example_obs)
    else:
      keys = jax.random.split(key, len(self.names))
      params = {
        name: self.network.init(key, self.example_obs)
        for name, key in zip(self.names, keys, strict=True)
      }
    return as_dtype(params, self.dtype)

  def estimates(
    self, params: Params, obs: chex.Array, key: chex.PRNGKey | None = None
  ) -> list[chex.Array]:
    """Values [B, A] of each network; a key draws noisy layers' noise."""
    if len(self.names) == 1:
      return [answer(self.network, params, obs, key=key)]
    # Not under a vmap, where convolutions are slow on a CPU.
    return [
      answer(
        self.network,
        params[name],
        obs,
        key=None if key is None else jax.random.fold_in(key, i),
      )
      for i, name in enumerate(self.names)
    ]

  def of_actions(
    self, params: Params, batch: Transition, key: chex.PRNGKey | None = None
  ) -> chex.Array:
    """Values [networks, B] of the actions taken."""
    return jnp.stack(
      [
        jax.vmap(td.value_of)(q_tm1, batch.a_tm1)
        for q_tm1 in self.estimates(params, batch.obs_tm1, key)
      ]
    )

  def taken(self, params: Params, batch: Transition) -> chex.Array:
    """Values [B] of the actions taken, or [B, networks] for several."""
    each = self.of_actions(params, batch)
    return each[0] if len(self.names) == 1 else each.T

  def values(
    self, params: Params, obs: chex.Array, key: chex.PRNGKey | None = None
  ) -> chex.Array:
    """Values [B, A], the smallest of several networks."""
    return functools.reduce(jnp.minimum, self.estimates(params, obs, key))

  def bootstrap(
    self,
    online_params: Params,
    target_params: Params,
    obs: chex.Array,
    key: chex.PRNGKey,
  ) -> chex.Array:
    """Values [B, A] of the twin."""
    return self.values(target_params, obs, jax.random.fold_in(key, TWIN))

  def greedy(self, params: Params, obs: chex.Array) -> chex.Array:
    """Actions int32 [B] of the largest value."""
    return greedy_of(self.values(params, obs))

  def act(
    self,
    params: Params,
    obs: chex.Array,
    noise: ActingNoise,
    epsilon: chex.Numeric,
  ) -> chex.Array:
    """Chooses actions int32 [B] by the first network."""
    q_values = self.estimates(params, obs, noise.key)[0]
    return epsilon_greedy(q_values, noise.exploration, epsilon)


def _form_of(name: str, target_form: str | None) -> str:
  """The form of an agent's targets, after checking that the two fit."""
  check_name('agent', name, OWN_FORMS)
  chosen = OWN_FORMS[name] if target_form is None else target_form
  check_name('target_form', chosen, td.TARGETS)
  if name != 'dqn' and chosen != OWN_FORMS[name]:
    raise FieldError(
      'target_form',
      chosen,
      'is not the form of',
      ('agent', name),
      f', which is {OWN_FORMS[name]!r};',
      ('agent', 'dqn'),
      'takes any',
    )
  return chosen


def make_q_agent(
  network: nn.Module,
  example_obs: chex.Array,
  *,
  name: str = 'dqn',
  target_form: str | None = None,
  target_parameters: Mapping[str, chex.Numeric] | None = None,
  td_loss: str = 'huber',
  error_bound: float = 1.0,
  batch_reduction: str = 'mean',
  param_dtype: str = 'float32',
) -> Agent:
  """Builds a Q-learning agent.

  Args:
    network: maps [B, S, ...] observations to [B, A] values.
    example_obs: [B, S, ...]; only its shape matters.
    name: 'dqn' or 'double_dqn', a key of `OWN_FORMS`.
    target_form: a key of `losses.td.TARGETS`; the agent's own if None. 'dqn'
      supports all of them.
    target_parameters: parameters of the form by name, see
      `losses.td.make_target`; may be traced.
    td_loss: a key of `losses.td.FORMS`.
    error_bound: bound > 0 at which 'huber' and 'clipped' clip the gradient of
      one TD error.
    batch_reduction: 'mean' or 'sum' (Nature DQN's) over the batch.
    param_dtype: dtype of the online parameters, one of `DTYPES`; their twin is
      always kept in float32.

  Returns:
    An agent whose `loss` reports `loss`, and for each transition [B] the
    `q_tm1` of the action taken and `td_error_abs`. If the batch has weights,
    they multiply the losses of its transitions.

    A form with several networks uses that many copies of the given one,
    initialized differently (`critic_0`, `critic_1` in one tree of parameters,
    so that every rule moves them all). The first one acts; `values`, and so the
    answers that any rule bootstraps from, are the smallest of all networks for
    each action. They learn the same targets; their losses are summed, and
    metrics are means over them.

  Raises:
    ValueError: a name is unknown, the form does not fit the agent or the
      parameters do not fit the form, or the bound is not positive.
  """
  chosen = _form_of(name, target_form)
  check_name('td_loss', td_loss, td.FORMS)
  check_learning(batch_reduction, param_dtype, error_bound)
  target = td.make_target(chosen, **(target_parameters or {}))
  form = td.FORMS[td_loss]
  networks = _Networks(
    network,
    example_obs,
    param_dtype,
    [f'critic_{i}' for i in range(td.TARGETS[chosen].networks)],
  )

  def targets(
    online_params: Params,
    target_params: Any,
    batch: Transition,
    key: chex.PRNGKey,
    bootstrap: Bootstrap = networks.bootstrap,
  ) -> chex.Array:
    return jax.vmap(target)(
      td.TargetInputs(
        a_tm1=batch.a_tm1,
        r_t=batch.r_t,
        discount_t=batch.discount_t,
        q_t=bootstrap(online_params, target_params, batch.obs_t, key),
        # XLA drops those that the form does not read.
        q_t_online=jax.lax.stop_gradient(
          networks.estimates(
            online_params, batch.obs_t, jax.random.fold_in(key, CHOOSER)
          )[0]
        ),
        q_tm1=bootstrap(online_params, target_params, batch.obs_tm1, key),
      )
    )

  def errors(
    online_params: Params, batch: Transition, y: chex.Array, key: chex.PRNGKey
  ) -> Errors:
    q_a = networks.of_actions(
      online_params, batch, jax.random.fold_in(key, ONLINE)
    )
    gaps = y.T - q_a  # [networks, B]
    each = jax.vmap(jax.vmap(lambda gap: form(gap, error_bound)))(gaps)
    return Errors(
      loss=jnp.sum(each, axis=0),
      q_tm1=jnp.mean(q_a, axis=0),
      td_error_abs=jnp.mean(jnp.abs(gaps), axis=0),
    )

  parts = Parts(networks.bootstrap, targets, lambda r_t: r_t, errors)
  return Agent(
    init=networks.init,
    loss=make_loss(parts, batch_reduction),
    bootstrap=networks.bootstrap,
    targets=targets,
    values=networks.values,
    taken=networks.taken,
    acting=Acting(
      make_acting_noise(network),
      networks.act,
      networks.greedy,
      play=networks.act,
    ),
  )
