"""Rules of the twin: what a second network is, how it moves, what it is for.

A rule is a `siamrl.types.Twin`. *How* the twin moves is the rule's affair,
*when* is the schedule's: a learner applies the rule once in `Schedule.sync`
gradient steps. Rates and periods may be traced values, so that one compiled
program can be vmapped over them.

`tau` always weighs the **online** parameters (the `step_size` of
`optax.incremental_update`; DDPG, TD3 and SAC have it so). BYOL's tau, MoCo's m
and Polyak's `decay` weigh the old ones: they are `1 - tau`.

A twin is kept in float32 at least. Of a network in bfloat16, whose numbers have
8 significant bits, a soft update with tau = 0.005 would stop half-way.
"""

from collections.abc import Callable, Mapping
import functools
import re
from typing import Any, NamedTuple

import chex
from flax import struct
import jax
import jax.numpy as jnp
import optax

from siamrl import parameters
from siamrl.parameters import Domain, Parameter, FieldError, check_name
from siamrl.types import (
  Acting,
  Agent,
  Bootstrap,
  Metrics,
  NoiseProcess,
  Params,
  Transition,
  Twin,
)


def copy(params: Params) -> Params:
  """Returns equal parameters in buffers of their own.

  Twins are born so: two names for one buffer could not both be donated.
  """
  return jax.tree.map(jnp.copy, params)


def born(params: Params) -> Params:
  """A copy in float32 at least: how a twin comes into the world."""

  def widen(leaf: chex.Array) -> chex.Array:
    if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4:
      return leaf.astype(jnp.float32)
    return jnp.copy(leaf)

  return jax.tree.map(widen, params)


def part(agent: Agent, params: Params) -> Params:
  """What has a twin of an agent's parameters; all of them by default."""
  if agent.twinned is None:
    return params
  if callable(agent.twinned):
    return agent.twinned(params)
  return {name: params[name] for name in agent.twinned}


def whole(agent: Agent, params: Params, twinned: Params) -> Params:
  """The parameters with these entries in place of their own."""
  if agent.twinned is None:
    return twinned
  return {name: twinned.get(name, entry) for name, entry in params.items()}


def _as_in(online: Params, target: Params) -> Params:
  """Copies of the online parameters, in the types that the twin has."""
  return jax.tree.map(lambda o, t: jnp.array(o, t.dtype), online, target)


def _stop(params: Params) -> Params:
  return jax.tree.map(jax.lax.stop_gradient, params)


# Rules that only move parameters.


def hard() -> Twin:
  """The twin becomes a copy of the online parameters (Mnih et al. 2015).

  A copy, not `soft(1.0)`: in a weighted sum a stale infinity survives as
  0 * inf = NaN.
  """
  return Twin(
    lambda online, target, gradient_steps: _as_in(online, target), born
  )


def soft(tau: chex.Numeric) -> Twin:
  """The twin moves a fraction of the way (Lillicrap et al. 2016, eq. after 6).

  target <- tau * online + (1 - tau) * target. Left to itself for m calls with
  still online parameters, it has moved the fraction 1 - (1 - tau)**m.

  Args:
    tau: weight on the online parameters, in (0, 1]. 1 is `hard()`, unless it is
      traced.
  """
  if isinstance(tau, (int, float)) and tau == 1:
    return hard()
  return Twin(
    lambda online, target, gradient_steps: optax.incremental_update(
      _as_in(online, target), target, tau
    ),
    born,
  )


def periodic(period: chex.Numeric, twin: Twin) -> Twin:
  """Moves the twin where the gradient-step count is a multiple of `period`.

  `periodic(p, hard())` is DQN's rule, `periodic(p, soft(tau))` the
  period-and-tau rule of SAC's and CleanRL's code, and `periodic(1, rule)` is
  `rule`. The count is the one after the optimiser's step, so the first update
  follows gradient step number `period`. A learner's `Schedule.sync` does the
  same for whole rules; this is for rules inside of others.

  Args:
    period: gradient steps from one update to the next, >= 1; may be traced.
    twin: the rule to apply then; its `shift` is not heeded.
  """
  if isinstance(period, int) and period == 1:
    return twin

  def update(online: Params, target: Any, gradient_steps: chex.Numeric) -> Any:
    return jax.lax.cond(
      gradient_steps % period == 0,
      twin.update,
      lambda online, target, gradient_steps: target,
      online,
      target,
      gradient_steps,
    )

  return twin._replace(update=update)


def soft_scheduled(tau: Callable[[chex.Numeric], chex.Numeric]) -> Twin:
  """`soft`, at a rate that changes.

  The first update, which follows gradient step number 1, has the rate `tau(0)`:
  schedules count as those of optimizers do.

  Args:
    tau: gradient steps before the one that the update follows -> the rate, in
      [0, 1].
  """
  return Twin(
    lambda online, target, gradient_steps: optax.incremental_update(
      _as_in(online, target), target, tau(gradient_steps - 1)
    ),
    born,
  )


def cosine_rate(
  gradient_steps: chex.Numeric, tau: chex.Numeric, steps: chex.Numeric
) -> chex.Numeric:
  """BYOL's rate: tau at first, falling to 0 along half a cosine.

  The weight on the old twin is 1 - tau * (cos(pi k / K) + 1) / 2, and 1 from
  k = K on (Grill et al. 2020, section 3.2). In BYOL's code k is the number of
  gradient steps before the current one, so that the first of K updates has
  k = 0 and the last one k = K - 1, and still moves the twin
  (deepmind-research/byol: `_update_fn` of byol_experiment.py, `target_ema` of
  utils/schedules.py, and main_loop.py, whose steps count from 0).

  Args:
    gradient_steps: k.
    tau: BYOL's 1 - tau_base.
    steps: K.
  """
  fraction = jnp.clip(gradient_steps / steps, 0.0, 1.0)
  return tau * (jnp.cos(jnp.pi * fraction) + 1) / 2


def linear_rate(
  gradient_steps: chex.Numeric,
  tau: chex.Numeric,
  tau_end: chex.Numeric,
  steps: chex.Numeric,
) -> chex.Numeric:
  """From `tau` to `tau_end` in a straight line over `steps` gradient steps."""
  fraction = jnp.clip(gradient_steps / steps, 0.0, 1.0)
  return tau + fraction * (tau_end - tau)


def soft_cosine(tau: chex.Numeric, target_schedule_steps: chex.Numeric) -> Twin:
  """`soft` at BYOL's rate, see `cosine_rate`."""
  return soft_scheduled(
    lambda step: cosine_rate(step, tau, target_schedule_steps)
  )


def soft_linear(
  tau: chex.Numeric, tau_end: chex.Numeric, target_schedule_steps: chex.Numeric
) -> Twin:
  """`soft` at a rate that changes linearly, see `linear_rate`."""
  return soft_scheduled(
    lambda step: linear_rate(step, tau, tau_end, target_schedule_steps)
  )


class Dated(struct.PyTreeNode):
  """A twin that knows since when it is what it is.

  Attributes:
    params: the twin.
    updated_at: int32 [] gradient step of the last update, 0 for none.
  """

  params: Params
  updated_at: jax.Array


def hard_scheduled(
  target_period: chex.Numeric,
  target_period_end: chex.Numeric,
  target_schedule_steps: chex.Numeric,
) -> Twin:
  """`hard`, with a period that changes in a straight line.

  The twin is copied at the first gradient step that lies a whole period after
  the last copy. With equal periods it is `periodic(target_period, hard())`.

  Args:
    target_period: gradient steps, at first.
    target_period_end: gradient steps, after `target_schedule_steps`.
    target_schedule_steps: gradient steps from the one to the other.
  """

  def update(
    online: Params, target: Dated, gradient_steps: chex.Numeric
  ) -> Dated:
    period = linear_rate(
      gradient_steps, target_period, target_period_end, target_schedule_steps
    )
    return jax.lax.cond(
      gradient_steps - target.updated_at >= period,
      lambda: Dated(
        _as_in(online, target.params), jnp.asarray(gradient_steps, jnp.int32)
      ),
      lambda: target,
    )

  return Twin(
    update,
    lambda online: Dated(born(online), jnp.zeros((), jnp.int32)),
    params=lambda online, target: target.params,
    lift=lambda agent: _viewing(agent, lambda online, target: target.params),
  )


def frozen() -> Twin:
  """The twin never moves: one backup of what it was born with."""
  return Twin(lambda online, target, gradient_steps: target, born)


def projected_soft(
  tau: chex.Numeric, projection_radius: chex.Numeric, ridge: chex.Numeric
) -> Twin:
  """`soft` within a ball, with a ridge penalty (Zhang et al. 2021, eq. 8).

  target <- P_R(target + tau * (P_r(online) - target)), where P projects onto
  the ball of a radius around 0, in the Euclidean norm of all parameters, and R
  is `projection_radius`. The analysis wants r below R by less than 1: r = R -
  1/2, or R / 2 if that is more. The loss gets ridge / 2 * ||online||**2, which
  is the paper's beside half the squared error. Without ridge and with a
  boundless ball it is `soft`.

  Args:
    tau: weight on the online parameters, in (0, 1].
    projection_radius: of the twin's ball, > 0.
    ridge: >= 0.
  """

  def update(
    online: Params, target: Params, gradient_steps: chex.Numeric
  ) -> Params:
    inner = jnp.maximum(projection_radius - 0.5, projection_radius / 2)
    near = _project(_as_in(online, target), inner)
    moved = optax.incremental_update(near, target, tau)
    return _project(moved, projection_radius)

  def penalty(online: Params) -> chex.Array:
    return ridge / 2 * optax.tree.norm(online, squared=True)

  return Twin(
    update,
    born,
    lift=lambda agent: _with_term(
      agent, lambda online, target, batch, key: penalty(part(agent, online))
    ),
    clock=soft(tau),
  )


def _project(params: Params, radius: chex.Numeric) -> Params:
  """The nearest parameters in the ball of a radius around 0."""
  norm = optax.tree.norm(params)
  # The quotient of 0 / 0 is not chosen.
  scale = jnp.where(norm > radius, radius / norm, 1.0)
  return optax.tree.scale(scale, params)


def by_path(rules: Mapping[str, Twin]) -> Twin:
  """Another rule for each part of the network.

  Args:
    rules: pattern -> rule. A parameter follows the first rule whose regular
      expression is found in its path, such as 'params/head/last/Dense_0/bias'.
      The rules may move parameters and do no more.

  Returns:
    A rule whose `init` raises ValueError where a pattern or a parameter is
    left over, and lists the paths.
  """

  def parts(tree: Params) -> dict[str, dict[str, Any]]:
    """Leaves by the pattern that is theirs, then by path."""
    found: dict[str, dict[str, Any]] = {pattern: {} for pattern in rules}
    for path, leaf in _named_leaves(tree):
      for pattern in rules:
        if re.search(pattern, path):
          found[pattern][path] = leaf
          break
    return found

  def init(online: Params) -> Params:
    found = parts(online)
    paths = [path for path, _ in _named_leaves(online)]
    given = '+'.join(rules)
    for pattern, leaves in found.items():
      if not leaves:
        raise FieldError(
          'target_paths',
          given,
          f': {pattern!r} matches no parameter, or none that an '
          f'earlier one has left; there are {", ".join(paths)}',
        )
    matched = {path for leaves in found.values() for path in leaves}
    left = [path for path in paths if path not in matched]
    if left:
      raise FieldError(
        'target_paths',
        given,
        f'must match every parameter, and leaves {", ".join(left)}',
      )
    return born(online)

  def update(
    online: Params, target: Params, gradient_steps: chex.Numeric
  ) -> Params:
    ours, theirs = parts(online), parts(target)
    moved: dict[str, Any] = {}
    for pattern, rule in rules.items():
      moved |= rule.update(ours[pattern], theirs[pattern], gradient_steps)
    return _from_named(target, moved)

  return Twin(update, init)


def _named_leaves(
  tree: Params, is_leaf: Callable[[Any], bool] | None = None
) -> list[tuple[str, Any]]:
  """The leaves with their paths, 'params/head/last/Dense_0/bias'."""
  return [
    (jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf)
  ]


def _from_named(tree: Params, leaves: Mapping[str, Any]) -> Params:
  """A tree like `tree` of leaves that are given by their paths."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: leaves[
      jax.tree_util.keystr(path, simple=True, separator='/')
    ],
    tree,
  )


# Rules that say what the agent does with its twin.


def _bootstrapping(agent: Agent, bootstrap: Bootstrap) -> Agent:
  """The agent with other answers to make targets of."""
  return agent._replace(
    bootstrap=bootstrap,
    targets=functools.partial(agent.targets, bootstrap=bootstrap),
    loss=functools.partial(agent.loss, bootstrap=bootstrap),
  )


def _viewing(agent: Agent, view: Callable[[Params, Any], Params]) -> Agent:
  """The agent with other parameters for a twin.

  Args:
    agent: to change.
    view: (online_params, target_params) -> what stands for the twin.
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


def _with_term(agent: Agent, term: Callable[..., chex.Array]) -> Agent:
  """The agent with a term more in its loss, reported as `twin_term`.

  Args:
    agent: to change.
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


def _nothing(online: Params) -> tuple[()]:
  return ()


def _stays(online: Params, target: Any, gradient_steps: chex.Numeric) -> Any:
  return target


def _itself(online: Params, target: Any) -> Params:
  return online


def self_copy() -> Twin:
  """The twin is the online network behind a stop-gradient (target-free).

  SimSiam (Chen & He 2021) and target-free Q-learning. Nothing is stored. It
  equals `hard()` at every gradient step: the sync that ends one step is the one
  that precedes the next.
  """
  return Twin(
    _stays,
    _nothing,
    params=_itself,
    lift=lambda agent: _viewing(
      agent, lambda online, target: _stop(part(agent, online))
    ),
  )


def residual() -> Twin:
  """The twin is the online network, and gradients flow through it.

  The residual gradient of Baird (1995); in representation learning, what
  collapses without a stop-gradient. With one sampled successor it minimises the
  squared TD error, which is biased where successors are drawn at random.
  """
  return Twin(
    _stays,
    _nothing,
    params=_itself,
    lift=lambda agent: _viewing(
      agent, lambda online, target: part(agent, online)
    ),
  )


def functional(twin_weight: chex.Numeric) -> Twin:
  """Values are tied to the twin's, and targets are the network's own.

  loss(r + discount * v_online(s') - q(s, a)) + weight * loss(q_twin(s, a) -
  q(s, a)), with the same loss of an error in both, on the batch's states and
  actions (Piche et al. 2022, as in their code, fr_dqn_atari_jax.py, with weight
  1). Each of several networks is tied to its own twin. With weight 0 it is
  `self_copy`.

  Args:
    twin_weight: of the second term, >= 0.

  Returns:
    A rule whose `lift` raises ValueError for an agent that has no values of
    actions taken.
  """

  def lift(agent: Agent) -> Agent:
    if agent.taken is None:
      raise FieldError(
        'target_update', 'functional', 'needs an agent with values of actions'
      )
    taken, free = agent.taken, self_copy().lift(agent)

    def term(online, target, batch, key):
      tied = batch._replace(
        r_t=taken(target, batch),
        discount_t=jnp.zeros_like(batch.discount_t),
      )
      value, _ = agent.loss(online, target, tied, key, bootstrap=None)
      return twin_weight * value

    return _with_term(free, term)

  return hard()._replace(lift=lift)


def proximal(twin_weight: chex.Numeric) -> Twin:
  """The online network is pulled towards its twin at every gradient step.

  online <- (1 - weight) * online + weight * target, and then the optimiser's
  step, which does not see the pull: DQN Pro as its code has it (Asadi et al.
  2022; amazon-science/fast-rl-with-slow-updates). For plain gradient descent
  it is the proximal term ||online - target||**2 / (2 c) of the paper with
  weight = step size / c. With weight 0 it is `hard`.

  Args:
    twin_weight: in [0, 1).
  """

  def pull(online: Params, target: Params) -> Params:
    return jax.tree.map(
      lambda o, t: (o + twin_weight * (t - o)).astype(o.dtype), online, target
    )

  return hard()._replace(pull=pull)


# Rules with several twins, or several networks.


def averaged(target_count: int) -> Twin:
  """Targets are means over the last K copies' values (Anschel et al. 2017).

  Of an agent whose `bootstrap` answers a pytree, every leaf is averaged.
  At first all K are what the network was born as. With K = 1 it is `hard`.

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

    return _bootstrapping(agent, bootstrap)

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

  The iterated Q-network: network k learns from the twin of network k - 1, and
  the first one from a twin that stands still. Every `target_sync_period`
  gradient steps the twins of networks 1 to K - 1 are copied; every
  `target_period` the chain moves on by a link: all twins are copied, network k
  becomes k + 1, the last stays. Each environment step is acted by one of the
  networks, drawn evenly. All leaves get a leading axis [K]. As in
  theovincent/i-DQN the networks are born different, each with a copy as its
  twin, and the optimiser's state does not move along. With K = 1 it is
  `periodic(target_period, hard())`.

  Args:
    target_count: K, >= 1.
    target_period: T, gradient steps from one shift to the next.
    target_sync_period: D, gradient steps; has no meaning for K = 1.
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
      case, [lambda online, target: target, sync, _as_in], online, target
    )

  def shift(online: Params, gradient_steps: chex.Numeric) -> Params:
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
      return _together(losses, metrics)

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
      **_looking_at_one(agent, one, target_count),
    )

  return Twin(update, born, lift=lift, shift=shift)


# The last layer of every head in siamrl.networks is named so.
_LAST_LAYER = re.compile(r'(^|/)last')


def iterated_heads(target_count: int) -> Twin:
  """K + 1 last layers on one network, each learning from the one before.

  Iterated shared Q-learning (Vincent et al. 2025b): everything but the last
  layer is shared, also with the targets, and is always the newest. Head k
  learns from head k - 1; head 0 learns from nothing. At every sync head k
  becomes k + 1, and the last stays. Each environment step is acted by one of
  the heads 1 to K, drawn evenly. The leaves of the last layer get a leading
  axis [K + 1]. As in theovincent/iS-DQN the heads are born different, and the
  optimiser's state does not move along. (Of its versions this is the one of
  K + 1 heads; another has K heads of targets apart, with a period of their
  own.) With K = 1 the last layer alone has a twin, and the others are
  `self_copy`.

  Args:
    target_count: K, >= 1.
  """

  def heads(params: Params, choose: Callable[[Any], Any]) -> Params:
    """The parameters with something done to the last layer's leaves."""
    return _map_named(
      lambda path, leaf: choose(leaf) if _LAST_LAYER.search(path) else leaf,
      params,
    )

  def one(params: Params, index: chex.Numeric) -> Params:
    return heads(params, lambda leaf: leaf[index])

  def init(key: chex.PRNGKey, agent: Agent) -> Params:
    keys = jax.random.split(key, target_count + 1)
    params = jax.vmap(agent.init)(keys)
    paths = [path for path, _ in _named_leaves(params)]
    if not any(map(_LAST_LAYER.search, paths)):
      raise FieldError(
        'target_update',
        'iterated_heads',
        f'needs a network with a part named last; there are {", ".join(paths)}',
      )
    return _map_named(
      lambda path, leaf: leaf if _LAST_LAYER.search(path) else leaf[0], params
    )

  def lift(agent: Agent) -> Agent:
    def loss(online, target, batch, key, **kwargs):
      axes = _map_named(
        lambda path, leaf: 0 if _LAST_LAYER.search(path) else None, online
      )
      losses, metrics = jax.vmap(
        functools.partial(agent.loss, **kwargs),
        (axes, part(agent, axes), None, None),
      )(
        heads(online, lambda leaf: leaf[1:]),
        _stop(part(agent, heads(online, lambda leaf: leaf[:-1]))),
        batch,
        key,
      )
      return _together(losses, metrics)

    def before(online: Params) -> Params:
      """What the last head learns from."""
      return _stop(part(agent, one(online, -2)))

    return agent._replace(
      init=lambda key: init(key, agent),
      loss=loss,
      bootstrap=lambda online, target, obs, key: agent.bootstrap(
        one(online, -1), before(online), obs, key
      ),
      targets=lambda online, target, batch, key, **kwargs: agent.targets(
        one(online, -1), before(online), batch, key, **kwargs
      ),
      # Head 0 learns nothing, and does not act.
      **_looking_at_one(agent, one, target_count, first=1),
    )

  return Twin(
    _stays,
    _nothing,
    # Beside each head stands the one that it learns from.
    params=lambda online, target: heads(
      online, lambda leaf: jnp.concatenate([leaf[:1], leaf[:-1]])
    ),
    lift=lift,
    shift=lambda online, gradient_steps: heads(
      online, lambda leaf: jnp.concatenate([leaf[1:], leaf[-1:]])
    ),
    # Head 0, from which head 1 learns, is as old as the last shift; all else is
    # new.
    clock=hard()._replace(
      params=lambda online, target: _map_named(
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


def _map_named(
  function: Callable[[str, Any], Any],
  tree: Params,
  is_leaf: Callable[[Any], bool] | None = None,
) -> Params:
  """Maps (path, leaf) -> leaf over a tree."""
  named = iter(_named_leaves(tree, is_leaf))
  return jax.tree.map(lambda _: function(*next(named)), tree, is_leaf=is_leaf)


def _together(
  losses: chex.Array, metrics: Metrics
) -> tuple[chex.Array, Metrics]:
  """The loss of K networks: a sum, so that each learns as if it were alone.

  (Not where gradients are shortened by their norm, which is of all together.)
  """
  loss = jnp.sum(losses)
  means = jax.tree.map(lambda metric: jnp.mean(metric, 0), metrics)
  return loss, means | {'loss': loss}


def _looking_at_one(
  agent: Agent,
  one: Callable[[Params, chex.Numeric], Params],
  count: int,
  first: int = 0,
) -> dict[str, Any]:
  """The parts of an agent of several networks that look at one of them.

  Args:
    agent: of one network.
    one: (params of all, index) -> params of one.
    count: networks that act in turns; the noise says which.
    first: the number of the first of them.
  """

  def of_last(function: Callable) -> Callable:
    return lambda params, *args: function(one(params, -1), *args)

  return {
    'values': of_last(agent.values),
    'taken': None if agent.taken is None else of_last(agent.taken),
    'acting': None
    if agent.acting is None
    else _acting_by_turns(
      agent.acting, lambda params, index: one(params, index + first), count
    )._replace(greedy=of_last(agent.acting.greedy)),
  }


def _acting_by_turns(
  acting: Acting, one: Callable[[Params, chex.Numeric], Params], count: int
) -> Acting:
  """Acting by one of several networks, drawn evenly for each act.

  Args:
    acting: of one network.
    one: (params of all, number below `count`) -> params of one.
    count: networks that act.
  """

  def noise(key: chex.PRNGKey, batch_size: int) -> tuple[Any, chex.Array]:
    # The agent's own noise stays what it would be without a chain.
    which = jax.random.randint(jax.random.fold_in(key, 0), (), 0, count)
    return acting.noise(key, batch_size), which

  def by_drawn(function: Callable) -> Callable:
    def act(params, obs, noise, epsilon):
      drawn, index = noise
      return function(one(params, index), obs, drawn, epsilon)

    return act

  process = acting.process
  if process is not None:
    # Of the noise, not of the network's number beside it.
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


# Gradient steps that no run reaches, the most that int32 counts.
NEVER = 2**31 - 1


class Rule(NamedTuple):
  """A rule as a launcher offers it: what builds it, and what it reads.

  Attributes:
    make: builds the rule, from the parameters in `takes` as keywords.
    takes: names of `PARAMETERS`, without defaults; `make` gets all of them.
    period: gradient steps from one application to the next; None where there
      is a period to choose.
    summary: what it does, for a help text.
  """

  make: Callable[..., Twin]
  takes: tuple[str, ...]
  period: int | None
  summary: str


RULES: dict[str, Rule] = {
  'hard': Rule(hard, (), None, 'a copy of the online network every period'),
  'soft': Rule(
    soft, ('tau',), 1, 'a fraction tau towards it at every gradient step'
  ),
  'periodic_soft': Rule(
    soft, ('tau',), None, 'a fraction tau towards it every period'
  ),
  'soft_cosine': Rule(
    soft_cosine,
    ('tau', 'target_schedule_steps'),
    1,
    'soft, tau falling to 0 along a cosine (BYOL)',
  ),
  'soft_linear': Rule(
    soft_linear,
    ('tau', 'tau_end', 'target_schedule_steps'),
    1,
    'soft, tau changing to tau_end',
  ),
  'hard_scheduled': Rule(
    hard_scheduled,
    ('target_period', 'target_period_end', 'target_schedule_steps'),
    1,
    'hard, the period changing to target_period_end',
  ),
  'frozen': Rule(frozen, (), NEVER, 'what it was born as'),
  'self': Rule(
    self_copy, (), 1, 'the online network itself, behind a stop-gradient'
  ),
  'residual': Rule(
    residual, (), 1, 'the online network itself, with its gradient (Baird)'
  ),
  'by_path': Rule(
    by_path, ('target_paths',), 1, 'another rule for each part of the network'
  ),
  'averaged': Rule(
    averaged,
    ('target_count',),
    None,
    'the last target_count copies, values averaged (Averaged-DQN)',
  ),
  'chain': Rule(
    chain,
    ('target_count', 'target_period', 'target_sync_period'),
    1,
    'target_count networks, each learning from the one before (i-QN)',
  ),
  'iterated_heads': Rule(
    iterated_heads,
    ('target_count',),
    None,
    'the same with last layers on a shared network (iS-QL)',
  ),
  'functional': Rule(
    functional,
    ('twin_weight',),
    None,
    'self, with values tied to those of a copy (functional regularisation)',
  ),
  'proximal': Rule(
    proximal,
    ('twin_weight',),
    None,
    'hard, and parameters are pulled towards the copy (DQN Pro)',
  ),
  'projected_soft': Rule(
    projected_soft,
    ('tau', 'projection_radius', 'ridge'),
    1,
    'soft inside a ball, with a ridge penalty',
  ),
}


# What rules may take. Periods are in gradient steps.
PARAMETERS: dict[str, Parameter] = {
  'tau': Parameter(parameters.RATE, 'Weight on the online parameters'),
  'tau_end': Parameter(
    parameters.FRACTION, 'Weight on the online parameters at the end'
  ),
  'target_period': Parameter(
    parameters.WHOLE, 'From one target update to the next', int
  ),
  'target_period_end': Parameter(
    parameters.WHOLE, 'From one target update to the next at the end', int
  ),
  'target_schedule_steps': Parameter(
    parameters.WHOLE, 'Gradient steps that the change of a rate lasts', int
  ),
  'target_sync_period': Parameter(
    parameters.WHOLE, 'From one copy of the inner twins to the next', int
  ),
  'target_count': Parameter(
    parameters.WHOLE, 'Number of copies, networks or heads', int, traced=False
  ),
  'target_paths': Parameter(
    Domain(bool, 'such as torso:soft+head:hard'),
    'A rule for each part of the network, by a pattern that is found in the '
    'paths of its parameters: torso:soft+head:hard',
    str,
    traced=False,
  ),
  'twin_weight': Parameter(
    parameters.NOT_NEGATIVE,
    'How strongly values (functional) or parameters (proximal) are tied to the '
    'twin',
  ),
  'projection_radius': Parameter(
    parameters.POSITIVE, "Radius of the ball that holds the twin's parameters"
  ),
  'ridge': Parameter(
    parameters.NOT_NEGATIVE, 'Weight of the ridge penalty in the loss'
  ),
}

# Rules that only move parameters, and hence may be a part of `by_path`.
PARTS = (
  'hard',
  'soft',
  'periodic_soft',
  'soft_cosine',
  'soft_linear',
  'frozen',
  'self',
)


def register(
  name: str,
  make: Callable[..., Twin],
  summary: str,
  *,
  period: int | None = None,
  **new: Parameter,
) -> None:
  """Adds a rule to `RULES`.

  Launchers offer it as --target_update=NAME, with a flag for each parameter
  that it brings.

  Args:
    name: of the rule.
    make: builds it. Its arguments are parameters: those of `PARAMETERS`, and
      its own.
    summary: what it does, for a help text.
    period: gradient steps from one application to the next, 1 for a rule that
      moves at every gradient step; None where users choose the period.
    **new: its own parameters by name.

  Raises:
    ValueError: the name is taken, or a parameter is not described.
  """
  takes = parameters.taken_by(make)
  parameters.add('target_update', name, RULES, takes, PARAMETERS, new)
  RULES[name] = Rule(make, takes, period, summary)


def takes(name: str, target_paths: str | None = None) -> tuple[str, ...]:
  """The parameters that a rule reads; of `by_path` also those of its parts.

  Args:
    name: a key of `RULES`.
    target_paths: of `by_path`, see `parse_paths`.

  Raises:
    ValueError: `target_paths` cannot be read.
  """
  names = dict.fromkeys(RULES[name].takes)
  if name == 'by_path' and target_paths:
    for part in parse_paths(target_paths).values():
      has_period = RULES[part].period is None
      names |= dict.fromkeys(('target_period',) if has_period else ())
      names |= dict.fromkeys(RULES[part].takes)
  return tuple(names)


def parse_paths(target_paths: str) -> dict[str, str]:
  """Reads 'torso:soft+head:hard': pattern -> name of a rule.

  Raises:
    ValueError: it is not of this form, or a rule cannot be a part.
  """
  rules: dict[str, str] = {}
  for part in target_paths.split('+'):
    pattern, colon, rule = part.rpartition(':')
    if not (colon and pattern and rule):
      raise FieldError(
        'target_paths', target_paths, 'must be such as torso:soft+head:hard'
      )
    if rule not in PARTS:
      raise FieldError(
        'target_paths',
        target_paths,
        f': {rule!r} must be one of {", ".join(PARTS)}',
      )
    try:
      re.compile(pattern)
    except re.error as error:
      raise FieldError(
        'target_paths',
        target_paths,
        f': {pattern!r} is no regular expression: {error}',
      ) from error
    if pattern in rules:
      raise FieldError(
        'target_paths', target_paths, f'must not name {pattern!r} twice'
      )
    rules[pattern] = rule
  return rules


def make_rule(name: str, **given: Any) -> Twin:
  """Builds the rule that `RULES` holds under `name`.

  Args:
    name: a key of `RULES`.
    **given: parameters by the names of `PARAMETERS`; None is as good as left
      out. A `target_period` is for rules that keep a clock of their own, and
      any other ignores it, for its schedule has it.

  Raises:
    ValueError: the name is unknown, or a parameter is missing, superfluous or
      (where it is no tracer) outside its domain.
  """
  check_name('target_update', name, RULES)
  values = parameters.check(
    'target_update',
    name,
    takes(name, given.get('target_paths')),
    given,
    PARAMETERS,
    ignored=('target_period',),
  )
  if name == 'proximal' and not _below_one(values['twin_weight']):
    raise FieldError(
      'twin_weight',
      values['twin_weight'],
      'must be below 1 for',
      ('target_update', 'proximal'),
    )
  if name == 'by_path':
    rules = parse_paths(values['target_paths'])
    return by_path({at: _part(rule, values) for at, rule in rules.items()})
  return RULES[name].make(**values)


def _below_one(value: chex.Numeric) -> bool:
  return isinstance(value, jax.core.Tracer) or bool(value < 1)


def _part(name: str, given: Mapping[str, Any]) -> Twin:
  """A rule that is a part of another, and keeps a clock of its own."""
  if name == 'self':
    return hard()  # at every gradient step
  rule = RULES[name].make(**{key: given[key] for key in RULES[name].takes})
  if RULES[name].period is None:
    return periodic(given['target_period'], rule)
  return rule
