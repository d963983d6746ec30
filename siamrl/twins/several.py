"""Rules with several twins, or several networks."""

from collections.abc import Callable
import functools
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from siamrl.parameters import FieldError
from siamrl.twins.lifting import (
  bootstrapping,
  looking_at_one,
  nothing,
  stays,
  together,
)
from siamrl.twins.moving import hard
from siamrl.twins.trees import as_in, born, map_named, named_leaves, part, stop
from siamrl.types import Agent, Params, Twin


def averaged(target_count: int) -> Twin:
  """Targets are means over the last K copies' values (Anschel et al. 2017).

  If the agent's `bootstrap` returns a pytree, every leaf is averaged. At first
  all K copies are the initial network. With K = 1 it is `hard`.

  Args:
    target_count: K, >= 1.
  """

  def init(online: Params) -> Params:
    return jax.tree.map(
      lambda leaf: jnp.repeat(leaf[None], target_count, 0), born(online)
    )

  def update(
    online: Params, target: Params, gradient_steps: chex.Numeric
  ) -> Params:
    return jax.tree.map(
      lambda o, t: jnp.concatenate([o[None].astype(t.dtype), t[:-1]]),
      online,
      target,
    )

  def lift(agent: Agent) -> Agent:
    def bootstrap(online, target, obs, key):
      each = jax.vmap(agent.bootstrap, (None, 0, None, None))
      return jax.tree.map(
        lambda answers: jnp.mean(answers, 0), each(online, target, obs, key)
      )

    return bootstrapping(agent, bootstrap)

  return Twin(
    update,
    init,
    params=lambda online, target: jax.tree.map(
      lambda leaf: jnp.mean(leaf, 0), target
    ),
    lift=lift,
  )


def chain(
  target_count: int,
  target_period: chex.Numeric,
  target_sync_period: chex.Numeric,
) -> Twin:
  """K networks, each learning from the one before (Vincent et al. 2025a).

  In the iterated Q-network, network k learns from the twin of network k - 1,
  and the first one from a twin that does not move. Every `target_sync_period`
  gradient steps the twins of networks 1 to K - 1 are copied; every
  `target_period` the chain shifts by one: all twins are copied, the parameters
  of network k + 1 become those of network k, and the last network stays. One of
  the networks, drawn uniformly, acts in each env step. All leaves get a leading
  axis [K]. As in theovincent/i-DQN, the networks are initialized differently,
  each with a copy as its twin, and the optimizer's state does not shift. With
  K = 1 it is `periodic(target_period, hard())`.

  Args:
    target_count: K, >= 1.
    target_period: T, gradient steps from one shift to the next.
    target_sync_period: D, gradient steps from one copy of the inner twins to
      the next; without effect for K = 1.
  """

  def sync(online: Params, target: Params) -> Params:
    return jax.tree.map(
      lambda o, t: jnp.concatenate([t[:1], o[:-1].astype(t.dtype)]),
      online,
      target,
    )

  def update(
    online: Params, target: Params, gradient_steps: chex.Numeric
  ) -> Params:
    case = jnp.where(
      gradient_steps % target_period == 0,
      2,
      jnp.where(gradient_steps % target_sync_period == 0, 1, 0),
    )
    return jax.lax.switch(
      case, [lambda online, target: target, sync, as_in], online, target
    )

  def shift(
    online: Params, target: Params, gradient_steps: chex.Numeric
  ) -> Params:
    return jax.lax.cond(
      gradient_steps % target_period == 0,
      lambda online: jax.tree.map(
        lambda leaf: jnp.concatenate([leaf[1:], leaf[-1:]]), online
      ),
      lambda online: online,
      online,
    )

  def lift(agent: Agent) -> Agent:
    def one(params: Params, index: chex.Numeric) -> Params:
      return jax.tree.map(lambda leaf: leaf[index], params)

    def loss(online, target, batch, key, **kwargs):
      losses, metrics = jax.vmap(
        functools.partial(agent.loss, **kwargs), (0, 0, None, None)
      )(online, target, batch, key)
      return together(losses, metrics)

    return agent._replace(
      init=lambda key: jax.vmap(agent.init)(
        jax.random.split(key, target_count)
      ),
      loss=loss,
      bootstrap=lambda online, target, obs, key: agent.bootstrap(
        one(online, -1), one(target, -1), obs, key
      ),
      targets=lambda online, target, batch, key, **kwargs: agent.targets(
        one(online, -1), one(target, -1), batch, key, **kwargs
      ),
      **looking_at_one(agent, one, target_count),
    )

  return Twin(update, born, lift=lift, shift=shift)


# The name of the last layer of every head in siamrl.networks.
_LAST_LAYER = re.compile(r'(^|/)last')


def iterated_heads(target_count: int) -> Twin:
  """K + 1 last layers on one network, each learning from the one before.

  In iterated shared Q-learning (Vincent et al. 2025b) everything but the last
  layer is shared, also with the targets, and is always the newest. Head k
  learns from head k - 1; head 0 does not learn. At every sync head k takes the
  parameters of head k + 1, and the last head stays. One of the heads 1 to K,
  drawn uniformly, acts in each env step. The leaves of the last layer get a
  leading axis [K + 1]. As in theovincent/iS-DQN, the heads are initialized
  differently, and the optimizer's state does not shift. (Of the versions there,
  this is the one with K + 1 heads; another has K separate target heads with
  their own period.) With K = 1 only the last layer has a twin, and the others
  are `self_copy`.

  Args:
    target_count: K, >= 1.
  """

  def heads(params: Params, choose: Callable[[Any], Any]) -> Params:
    """The parameters with `choose` applied to the last layer's leaves."""
    return map_named(
      lambda path, leaf: choose(leaf) if _LAST_LAYER.search(path) else leaf,
      params,
    )

  def one(params: Params, index: chex.Numeric) -> Params:
    return heads(params, lambda leaf: leaf[index])

  def init(key: chex.PRNGKey, agent: Agent) -> Params:
    keys = jax.random.split(key, target_count + 1)
    params = jax.vmap(agent.init)(keys)
    paths = [path for path, _ in named_leaves(params)]
    if not any(map(_LAST_LAYER.search, paths)):
      raise FieldError(
        'target_update',
        'iterated_heads',
        f'needs a network with a part named last; there are {", ".join(paths)}',
      )
    return map_named(
      lambda path, leaf: leaf if _LAST_LAYER.search(path) else leaf[0], params
    )

  def lift(agent: Agent) -> Agent:
    def loss(online, target, batch, key, **kwargs):
      axes = map_named(
        lambda path, leaf: 0 if _LAST_LAYER.search(path) else None, online
      )
      losses, metrics = jax.vmap(
        functools.partial(agent.loss, **kwargs),
        (axes, part(agent, axes), None, None),
      )(
        heads(online, lambda leaf: leaf[1:]),
        stop(part(agent, heads(online, lambda leaf: leaf[:-1]))),
        batch,
        key,
      )
      return together(losses, metrics)

    def before(online: Params) -> Params:
      """The head that the last one learns from."""
      return stop(part(agent, one(online, -2)))

    return agent._replace(
      init=lambda key: init(key, agent),
      loss=loss,
      bootstrap=lambda online, target, obs, key: agent.bootstrap(
        one(online, -1), before(online), obs, key
      ),
      targets=lambda online, target, batch, key, **kwargs: agent.targets(
        one(online, -1), before(online), batch, key, **kwargs
      ),
      # Head 0 neither learns nor acts.
      **looking_at_one(agent, one, target_count, first=1),
    )

  return Twin(
    stays,
    nothing,
    # The twin of each head is the one that it learns from.
    params=lambda online, target: heads(
      online, lambda leaf: jnp.concatenate([leaf[:1], leaf[:-1]])
    ),
    lift=lift,
    shift=lambda online, target, gradient_steps: heads(
      online, lambda leaf: jnp.concatenate([leaf[1:], leaf[-1:]])
    ),
    # Head 0, from which head 1 learns, is as old as the last shift; everything
    # else is new.
    clock=hard()._replace(
      params=lambda online, target: map_named(
        lambda path, pair: (
          jnp.concatenate([pair[1][:2], pair[0][2:]])
          if _LAST_LAYER.search(path)
          else pair[0]
        ),
        jax.tree.map(lambda o, t: (o, t), online, target),
        is_leaf=lambda node: isinstance(node, tuple),
      )
    ),
  )


def gradient_chain(target_count: int, ridge: chex.Numeric) -> Twin:
  """K networks in a chain, whose targets are learned too (Vincent et al. 2026).

  In gradient iterated TD learning, network k learns from network k - 1 as it
  is, not from a copy, and network k - 1 also learns to make the TD error
  delta_k of network k small: it descends y_k * z_k, where the correction z_k is
  a network that regresses on delta_k. With half the squared TD error, the loss
  is the sum over k of

      -q_k sg(delta_k) + y_k sg(z_k) + z_k sg(z_k - delta_k)

  (theovincent/Gi-DQN, slimdqn/algorithms/gidqn.py); other losses of the agent
  bound delta_k and z_k as they bound the TD error. Network 0 does not learn. At
  every sync network k takes the parameters of network k + 1, with its
  correction, and the last network stays. One of the networks 1 to K, drawn
  uniformly, acts in each env step. As in that code the networks are initialized
  differently, and the optimizer's state does not shift. Its corrections have
  weight decay outside of the gradient; here it is a penalty, which is the same
  for plain gradient descent. With K = 1 it is `hard`.

  Args:
    target_count: K, >= 1.
    ridge: weight of the penalty ridge / 2 * ||corrections||**2, >= 0.

  Returns:
    A rule whose `lift` raises ValueError for agents other than those of values
    of discrete actions.
  """

  def before_each(networks: Params) -> Params:
    return jax.tree.map(
      lambda leaf: jnp.concatenate([leaf[:1], leaf[:-1]]), networks
    )

  return Twin(
    stays,
    nothing,
    # The twin of each network is the one that it learns from.
    params=lambda online, target: {
      'networks': before_each(online['networks']),
      'corrections': online['corrections'],
    },
    lift=lambda agent: _for_each_other(agent, target_count, ridge),
    shift=lambda online, target, gradient_steps: jax.tree.map(
      lambda leaf: jnp.concatenate([leaf[1:], leaf[-1:]]), online
    ),
    # Network 0 is as old as the last shift; everything else is new.
    clock=hard()._replace(
      params=lambda online, target: {
        'networks': jax.tree.map(
          lambda o, t: jnp.concatenate([t[:2], o[2:]]),
          online['networks'],
          target['networks'],
        ),
        'corrections': online['corrections'],
      }
    ),
  )


def _for_each_other(
  agent: Agent, target_count: int, ridge: chex.Numeric
) -> Agent:
  """The agent as `gradient_chain` lifts it."""
  values_alone = not (agent.twinned or agent.delayed or agent.distributions)
  if agent.taken is None or not values_alone:
    raise FieldError(
      'target_update',
      'gradient_chain',
      'needs an agent that learns values of discrete actions, and only them',
    )
  taken = agent.taken

  def one(params: Params, index: chex.Numeric) -> Params:
    return jax.tree.map(lambda leaf: leaf[index], params['networks'])

  def cut(tree: Params, rows: slice) -> Params:
    return jax.tree.map(lambda leaf: leaf[rows], tree)

  def init(key: chex.PRNGKey) -> Params:
    drawn = jax.vmap(agent.init)(jax.random.split(key, 2 * target_count + 1))
    first, rest = slice(target_count + 1), slice(target_count + 1, None)
    return {'networks': cut(drawn, first), 'corrections': cut(drawn, rest)}

  def correct(online, before, correction, batch, key, kwargs):
    """The loss of a correction, and the one that it gives `before`."""
    y = agent.targets(stop(online), before, batch, key, **kwargs)
    q, z = taken(online, batch), taken(stop(correction), batch)
    y = y if q.ndim == 1 else y[:, None]
    batch = batch._replace(discount_t=jnp.zeros_like(batch.discount_t))

    def toward(params, r_t):
      return agent.loss(
        params, before, batch._replace(r_t=r_t), key, bootstrap=None
      )[0]

    fit = toward(correction, jax.lax.stop_gradient(y - q))
    # The value z + z + y - sg(y) is off by z, which is the weight of y.
    weighted = toward(stop(correction), 2 * z + y - jax.lax.stop_gradient(y))
    return fit, weighted

  def loss(online, target, batch, key, **kwargs):
    networks = online['networks']
    learning, before = cut(networks, slice(1, None)), cut(networks, slice(-1))
    losses, metrics = jax.vmap(
      functools.partial(agent.loss, **kwargs), (0, 0, None, None)
    )(learning, stop(before), batch, key)
    value, metrics = together(losses, metrics)
    if kwargs.get('bootstrap', agent.bootstrap) is None:
      return value, metrics
    kwargs.pop('step', None)
    fits, weighted = jax.vmap(
      functools.partial(correct, kwargs=kwargs), (0, 0, 0, None, None)
    )(learning, before, online['corrections'], batch, key)
    # Nothing learns through network 0.
    added = jnp.sum(fits) + jnp.sum(weighted[1:])
    added += ridge / 2 * optax.tree.norm(online['corrections'], squared=True)
    return value + added, metrics | {
      'loss': value + added,
      'twin_term': added,
    }

  def last(online: Params) -> tuple[Params, Params]:
    return one(online, -1), stop(one(online, -2))

  return agent._replace(
    init=init,
    loss=loss,
    bootstrap=lambda online, target, obs, key: agent.bootstrap(
      *last(online), obs, key
    ),
    targets=lambda online, target, batch, key, **kwargs: agent.targets(
      *last(online), batch, key, **kwargs
    ),
    # Network 0 neither learns nor acts.
    **looking_at_one(agent, one, target_count, first=1),
  )
