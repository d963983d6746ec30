"""Agents that learn from each transition once, in order, without a replay."""

import copy
from typing import Any, NamedTuple

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from siamrl.agents.q import make_q_agent
from siamrl.networks.dense import has_noise
from siamrl.parameters import FieldError, check_name
from siamrl.types import (
  TRANSITION_LOSS,
  Agent,
  Metrics,
  Params,
  Traces,
  Transition,
  acting_of,
)

REWARD_SCALINGS = ('std', 'none')


class ReturnScale(NamedTuple):
  """The running standard deviation of discounted sums of rewards.

  Every sum counts, not only those of whole episodes, as in `ScaleReward` of
  normalization_wrappers.py of mohmdelsayed/streaming-drl.

  Attributes:
    total: float32 [] discounted sum of the rewards so far.
    seen: float32 [] number of sums.
    mean: float32 [] their mean.
    squares: float32 [] sum of their squared distances from the mean.
  """

  total: jax.Array
  seen: jax.Array
  mean: jax.Array
  squares: jax.Array

  @classmethod
  def new(cls) -> 'ReturnScale':
    """The state before the first reward."""
    return cls(*jnp.zeros(4))

  def follow(
    self, reward: chex.Array, discount: chex.Array
  ) -> tuple['ReturnScale', jax.Array]:
    """Takes in a reward.

    Args:
      reward: [] the reward.
      discount: [] factor of the sum before it; 0 where the episode ends, by
        which, as in the source, the last reward of an episode is a sum alone.

    Returns:
      The next state, and the standard deviation [], 1 for the first reward.
    """
    total = discount * self.total + reward
    seen = self.seen + 1
    before = jnp.where(self.seen == 0, total, self.mean)
    mean = before + (total - before) / seen
    squares = self.squares + (total - before) * (total - mean)
    variance = jnp.where(seen < 2, 1.0, squares / jnp.maximum(seen - 1, 1))
    return ReturnScale(total, seen, mean, squares), jnp.sqrt(variance + 1e-8)


class StreamMemory(NamedTuple):
  """The memory of an agent that learns from a stream.

  Attributes:
    traces: eligibility traces, decayed for the next transition.
    rewards: the scale of rewards; None if they are not scaled.
  """

  traces: Any
  rewards: ReturnScale | None


class _Step(NamedTuple):
  """The one transition of a batch, looked at.

  Attributes:
    batch: the transition, with its reward scaled.
    rewards: the next scale of rewards.
    kept: float32 [] factor of the traces up to the next transition.
  """

  batch: Transition
  rewards: ReturnScale | None
  kept: jax.Array


def _look(
  agent: Agent,
  online_params: Params,
  memory: StreamMemory,
  batch: Transition,
  trace_lambda: chex.Numeric,
) -> _Step:
  """Scales the reward, and tells whether the traces go on."""
  if batch.r_t.shape != (1,):
    raise FieldError(
      'batch_size', len(batch.r_t), 'must be 1 to learn in order'
    )
  discount = batch.discount_t[0]
  if batch.ended is not None:
    discount = jnp.where(batch.ended[0], 0.0, discount)
  rewards = memory.rewards
  if rewards is not None:
    rewards, std = rewards.follow(batch.r_t[0], discount)
    batch = batch._replace(r_t=batch.r_t / std)
  greedy = acting_of(agent).greedy(online_params, batch.obs_tm1)
  follows = batch.a_tm1[0] == greedy[0]
  return _Step(batch, rewards, jnp.where(follows, trace_lambda * discount, 0.0))


def _report(td_error: jax.Array, q_tm1: jax.Array) -> Metrics:
  """The metrics of one transition."""
  loss = td_error**2 / 2
  return {
    'loss': loss,
    'q_tm1': q_tm1[None],
    'td_error': td_error[None],
    'td_error_abs': jnp.abs(td_error)[None],
    TRANSITION_LOSS: loss[None],
  }


def _refuse_noise(network: nn.Module) -> None:
  if has_noise(network):
    raise ValueError('an agent with traces needs a network without noise')


def make_stream_q(
  network: nn.Module,
  example_obs: chex.Array,
  *,
  trace_lambda: chex.Numeric = 0.8,
  reward_scaling: str = 'std',
) -> Agent:
  """Builds Stream Q(lambda) (Elsayed et al. 2024, arXiv:2410.14606).

  At each transition with TD error delta = r + discount * max_b q(s', b) -
  q(s, a), the traces z <- z + grad q(s, a) give the descent -delta * z. They
  then decay by discount * lambda, and are cut where the episode ended or the
  action was not greedy, after the step, as in the authors' stream_q_minatar.py
  and optim.py (mohmdelsayed/streaming-drl). The optimizer `obgd` chooses the
  step size. With gradient descent of a fixed step size it is Watkins'
  Q(lambda), the baseline of Elelimy et al. (2025).

  A truncated episode bootstraps from its last observation, as in gtd_algos,
  streamq.py (Elelimy et al. 2025); in the authors' own code it ends there as if
  it had terminated.

  Args:
    network: maps [B, S, ...] observations to [B, A] values.
    example_obs: [B, S, ...]; only its shape matters.
    trace_lambda: lambda in [0, 1]; may be traced.
    reward_scaling: 'std' divides rewards by `ReturnScale`; 'none' does not.

  Raises:
    ValueError: a name is unknown, or the network has noise.
  """
  check_name('reward_scaling', reward_scaling, REWARD_SCALINGS)
  _refuse_noise(network)

  def init(params: Params) -> StreamMemory:
    scale = ReturnScale.new() if reward_scaling == 'std' else None
    return StreamMemory(jax.tree.map(jnp.zeros_like, params), scale)

  def step(
    agent: Agent,
    online_params: Params,
    target_params: Any,
    memory: StreamMemory,
    batch: Transition,
    key: chex.PRNGKey,
  ) -> tuple[Params, StreamMemory, Metrics]:
    assert agent.taken is not None
    taken = agent.taken
    batch, rewards, kept = _look(
      agent, online_params, memory, batch, trace_lambda
    )
    y = agent.targets(online_params, target_params, batch, key)[0]
    q_tm1, gradient = jax.value_and_grad(lambda p: taken(p, batch)[0])(
      online_params
    )
    td_error = y - q_tm1
    z = jax.tree.map(jnp.add, memory.traces, gradient)
    descent = jax.tree.map(lambda leaf: -td_error * leaf, z)
    after = jax.tree.map(lambda leaf: kept * leaf, z)
    return descent, StreamMemory(after, rewards), _report(td_error, q_tm1)

  agent = make_q_agent(network, example_obs, td_loss='half_squared')
  return agent._replace(traces=Traces(init, step))


class CorrectedNetwork(nn.Module):
  """A network of values, and one like it that estimates their TD errors.

  Attributes:
    network: observations -> values, the answer of the whole.
    correction: observations -> expected TD errors of the actions.
  """

  network: nn.Module
  correction: nn.Module

  def __call__(self, obs: chex.Array) -> chex.Array:
    """Maps observations [B, ...] to values [B, A]."""
    if self.is_initializing():
      self.correction(obs)
    return self.network(obs)

  def errors(self, obs: chex.Array) -> chex.Array:
    """Maps observations [B, ...] to expected TD errors [B, A]."""
    return self.correction(obs)


def corrected_network(network: nn.Module) -> CorrectedNetwork:
  """The network of `make_qrc`, from one of values."""
  # A deep copy, as a layer that two networks have in common is one layer.
  return CorrectedNetwork(network, copy.deepcopy(network))


class CorrectedTraces(NamedTuple):
  """The traces of QRC(lambda), decayed for the next transition.

  Attributes:
    gradients: of q and of h, whose parameters are disjoint.
    error: float32 [] of the values of h.
  """

  gradients: Params
  error: jax.Array


def make_qrc(
  network: nn.Module,
  example_obs: chex.Array,
  *,
  trace_lambda: chex.Numeric = 0.8,
  reward_scaling: str = 'std',
  correction_rate: chex.Numeric = 0.1,
  correction_decay: chex.Numeric = 1.0,
) -> Agent:
  """Builds QRC(lambda) in its backward view (Elelimy et al. 2025).

  arXiv:2507.09087; qrc.py of esraaelelimy/gtd_algos, which names its equations
  26 to 28. A second network h(s, a) learns the expected TD error. q descends by

    -(delta * z_q - h * grad q - z_h * grad delta),

  where delta's gradient includes that of its bootstrap, and h by

    -rate * (delta * z_g - h * grad h - decay * params of h).

  The traces z_q of grad q, z_h of h and z_g of grad h decay and are cut as in
  `make_stream_q`. There is no twin: `grad delta` takes its place.

  Args:
    network: maps [B, S, ...] observations to [B, A] values; h is another one.
    example_obs: [B, S, ...]; only its shape matters.
    trace_lambda: lambda in [0, 1]; may be traced.
    reward_scaling: as in `make_stream_q`.
    correction_rate: step size of h, as a factor of that of q; may be traced.
    correction_decay: beta, the regularization of h; may be traced.

  Raises:
    ValueError: a name is unknown, or the network has noise.
  """
  check_name('reward_scaling', reward_scaling, REWARD_SCALINGS)
  _refuse_noise(network)
  both = corrected_network(network)

  def init(params: Params) -> StreamMemory:
    scale = ReturnScale.new() if reward_scaling == 'std' else None
    zeros = jax.tree.map(jnp.zeros_like, params)
    return StreamMemory(CorrectedTraces(zeros, jnp.zeros(())), scale)

  def step(
    agent: Agent,
    online_params: Params,
    target_params: Any,
    memory: StreamMemory,
    batch: Transition,
    key: chex.PRNGKey,
  ) -> tuple[Params, StreamMemory, Metrics]:
    del target_params, key  # there is no twin
    assert agent.taken is not None
    taken, traces = agent.taken, memory.traces
    batch, rewards, kept = _look(
      agent, online_params, memory, batch, trace_lambda
    )

    def estimates(params: Params) -> tuple[jax.Array, tuple[Any, Any]]:
      q = taken(params, batch)[0]
      errors: Any = both.apply(params, batch.obs_tm1, method=both.errors)
      h = errors[0, batch.a_tm1[0]]
      return q + h, (q, h)

    def error(params: Params) -> jax.Array:
      best = jnp.max(agent.values(params, batch.obs_t), axis=-1)
      y = batch.r_t + batch.discount_t * best
      return (y - taken(params, batch))[0]

    gradient, (q_tm1, h) = jax.grad(estimates, has_aux=True)(online_params)
    delta, of_delta = jax.value_and_grad(error)(online_params)
    z = jax.tree.map(jnp.add, traces.gradients, gradient)
    z_h = traces.error + h
    ascent = jax.tree.map(
      lambda trace, now, of_delta: delta * trace - h * now - z_h * of_delta,
      z,
      gradient,
      of_delta,
    )['params']
    of_h = jax.tree.map(
      lambda leaf, weight: correction_rate * (leaf - correction_decay * weight),
      ascent['correction'],
      online_params['params']['correction'],
    )
    descent = jax.tree.map(jnp.negative, ascent | {'correction': of_h})
    after = CorrectedTraces(
      jax.tree.map(lambda leaf: kept * leaf, z), kept * z_h
    )
    memory = StreamMemory(after, rewards)
    return {'params': descent}, memory, _report(delta, q_tm1)

  agent = make_q_agent(both, example_obs, td_loss='half_squared')
  return agent._replace(traces=Traces(init, step))
