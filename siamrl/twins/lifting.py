"""Functions by which a rule changes an agent."""

from collections.abc import Callable
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp

from siamrl.types import (
  Acting,
  Agent,
  Bootstrap,
  Metrics,
  NoiseProcess,
  Params,
  Transition,
)


def bootstrapping(agent: Agent, bootstrap: Bootstrap) -> Agent:
  """The agent with targets made of another function's answers."""
  return agent._replace(
    bootstrap=bootstrap,
    targets=functools.partial(agent.targets, bootstrap=bootstrap),
    loss=functools.partial(agent.loss, bootstrap=bootstrap),
  )


def viewing(agent: Agent, view: Callable[[Params, Any], Params]) -> Agent:
  """The agent with other parameters in place of the twin.

  Args:
    agent: the agent to change.
    view: (online_params, target_params) -> parameters to use as the twin.
  """

  def through(function: Any) -> Any:
    @functools.wraps(function)
    def viewed(online, target, *args, **kwargs):
      return function(online, view(online, target), *args, **kwargs)

    return viewed

  return agent._replace(
    bootstrap=through(agent.bootstrap),
    targets=through(agent.targets),
    loss=through(agent.loss),
  )


def with_term(agent: Agent, term: Callable[..., chex.Array]) -> Agent:
  """The agent with another term in its loss, reported as `twin_term`.

  Args:
    agent: the agent to change.
    term: (online_params, target_params, batch, key) -> scalar.
  """

  def loss(
    online: Params, target: Any, batch: Transition, key: chex.PRNGKey, **kwargs
  ) -> tuple[chex.Array, Metrics]:
    value, metrics = agent.loss(online, target, batch, key, **kwargs)
    added = term(online, target, batch, key)
    value += added
    return value, metrics | {'loss': value, 'twin_term': added}

  return agent._replace(loss=loss)


def nothing(online: Params) -> tuple[()]:
  return ()


def stays(online: Params, target: Any, gradient_steps: chex.Numeric) -> Any:
  return target


def itself(online: Params, target: Any) -> Params:
  return online


def together(
  losses: chex.Array, metrics: Metrics
) -> tuple[chex.Array, Metrics]:
  """The loss of K networks: a sum, so that each learns as if it were alone.

  (This does not hold if gradients are clipped by their global norm.)
  """
  loss = jnp.sum(losses)
  means = jax.tree.map(lambda metric: jnp.mean(metric, 0), metrics)
  return loss, means | {'loss': loss}


def looking_at_one(
  agent: Agent,
  one: Callable[[Params, chex.Numeric], Params],
  count: int,
  first: int = 0,
) -> dict[str, Any]:
  """The functions of an agent of several networks that use one of them.

  Args:
    agent: an agent of one network.
    one: (params of all, index) -> params of one.
    count: number of networks that act in turns; the noise chooses one.
    first: index of the first of them.

  Returns:
    Fields of `Agent` by name: `values`, `taken`, `acting` and
    `distributions`.
  """

  def of_last(function: Callable) -> Callable:
    return lambda params, *args: function(one(params, -1), *args)

  return {
    'values': of_last(agent.values),
    'taken': None if agent.taken is None else of_last(agent.taken),
    'acting': None
    if agent.acting is None
    else acting_by_turns(
      agent.acting, lambda params, index: one(params, index + first), count
    )._replace(greedy=of_last(agent.acting.greedy)),
    'distributions': None
    if agent.distributions is None
    else agent.distributions._replace(taken=of_last(agent.distributions.taken)),
  }


def acting_by_turns(
  acting: Acting, one: Callable[[Params, chex.Numeric], Params], count: int
) -> Acting:
  """Acting by one of several networks, drawn uniformly for each act.

  Args:
    acting: the acting functions of one network.
    one: (params of all, index below `count`) -> params of one.
    count: number of networks that act.
  """

  def noise(key: chex.PRNGKey, batch_size: int) -> tuple[Any, chex.Array]:
    # The agent's own noise stays the same as with one network.
    which = jax.random.randint(jax.random.fold_in(key, 0), (), 0, count)
    return acting.noise(key, batch_size), which

  def by_drawn(function: Callable) -> Callable:
    def act(params, obs, noise, epsilon):
      drawn, index = noise
      return function(one(params, index), obs, drawn, epsilon)

    return act

  process = acting.process
  if process is not None:
    # The process applies to the noise, not to the network's index beside it.
    white = process

    def step(memory, noise):
      memory, drawn = white.step(memory, noise[0])
      return memory, (drawn, noise[1])

    process = NoiseProcess(white.init, step)
  return acting._replace(
    noise=noise,
    act=by_drawn(acting.act),
    play=by_drawn(acting.play),
    process=process,
  )
