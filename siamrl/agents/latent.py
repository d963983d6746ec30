"""Latent self-prediction as a part of any agent of values (SPR).

Self-predictive representations (Schwarzer et al. 2021, arXiv:2007.05929): the
torso's answer to an observation is led K steps ahead by a transition model and
the actions that were taken, and what is predicted of each step is to meet what
a twin of the torso makes of the observation that really came. The stop-gradient
is an argument position here too: that twin is one of the rule's, beside that of
the values.

Parameters are a dict of

* `q`: those of the agent of values, torso and head;
* `transition`, `predictor`, and `projector` if it is no part of the head, of
  `networks.latent`.

What has a twin is a dict of `q` and of `latent`, which holds `encoder` and
`projector` once more. So values and latents can have twins under different
rules: `q:hard+latent:soft` for `by_path` copies the one every period, and
averages the other. The transition model and the predictor have none.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from siamrl import twins
from siamrl.agents.q import REDUCTIONS
from siamrl.augment import Augmentation
from siamrl.losses import siamese as losses
from siamrl.networks.latent import LatentNetworks
from siamrl.parameters import FieldError, check_name
from siamrl.types import (
  Agent,
  Bootstrap,
  Future,
  Metrics,
  Params,
  Transition,
)

TARGETS = {
  'twin': "the twin's projections, which no gradient reaches",
  'online_gradient': "the online network's own, with their gradient: nothing "
  'keeps them from collapsing',
}

# No split of the agent's own key is it.
_STREAM = 2**32 - 1


def with_latent_prediction(
  base: Agent,
  networks: LatentNetworks,
  example_obs: chex.Array,
  *,
  steps: int,
  weight: chex.Numeric = 5.0,
  target: str = 'twin',
  batch_reduction: str = 'mean',
) -> Agent:
  """An agent of values that predicts its own latents, too.

  Its loss is that of the values plus

    weight * reduce_b (w_b / K * sum_k mask_bk error(p_bk, z_bk))

  with the predictions p and the targets z of K steps, the batch's weights w,
  and the squared distance of unit vectors, `losses.siamese.normalised_error`
  (mila-iqia/spr, algos.py, and Dopamine's spr_agent.py, both with weight 5 and
  K = 5). In the authors' code the observation in which an episode's last action
  was taken does not count either.

  Args:
    base: of one network of values; not lifted by any twin.
    networks: around that network.
    example_obs: [B, ...], of any content; gives `init` its shapes.
    steps: K; batches must have a `future` of so many.
    weight: of the second term, >= 0; may be traced. With 0 the values are
      learnt as without.
    target: a key of `TARGETS`. 'online_gradient' heeds no twin of the latents,
      and then there is none.
    batch_reduction: 'mean' or 'sum' over the batch, as in the base agent.

  Returns:
    An agent whose `loss` reports what the base's does and `spr_loss`, the mean
    squared distance of unit vectors (0 to 4) over all predictions that count,
    and `spr_std`, the `losses.siamese.normalised_std` of the targets one step
    ahead: near 0 where latents have collapsed.

    `bootstrap` answers a `Future` with its targets [B, K, D], and observations
    with their values; rules that bootstrap in another way do so with both.

  Raises:
    ValueError: a name is unknown, `steps` is not positive, or the base agent
      has several networks.
  """
  check_name('target', target, TARGETS)
  check_name('batch_reduction', batch_reduction, REDUCTIONS)
  if steps < 1:
    raise FieldError('steps', steps, 'must be at least 1')
  shapes = jax.eval_shape(lambda seed: base.init(jax.random.key(seed)), 0)
  if 'params' not in shapes:
    raise ValueError(
      f'latents are those of one network, and the agent has {", ".join(shapes)}'
    )
  reduce = REDUCTIONS[batch_reduction]

  def init(key: chex.PRNGKey) -> Params:
    # The values begin as they would without.
    q = base.init(key)
    dtype = jax.tree.leaves(q)[0].dtype
    # All are born in float32, as the base's are.
    stream = jax.random.fold_in(key, _STREAM)
    more = networks.init(stream, twins.born(q), example_obs)
    return {'q': q} | jax.tree.map(lambda leaf: leaf.astype(dtype), more)

  def twinned(params: Params) -> Params:
    part = {'q': twins.part(base, params['q'])}
    if target != 'twin':
      return part
    return part | {'latent': answering(params)}

  def answering(params: Params) -> Params:
    """Encoder and projector."""
    shared = networks.shared(params['q'])
    return {'encoder': shared['encoder']} | {
      'projector': (shared | params)['projector']
    }

  def bootstrap(
    online_params: Params,
    target_params: Params,
    obs: chex.Array | Future,
    key: chex.PRNGKey,
  ) -> chex.Array:
    if not isinstance(obs, Future):
      return base.bootstrap(online_params['q'], target_params['q'], obs, key)
    params = (
      target_params['latent'] if target == 'twin' else answering(online_params)
    )
    flat = obs.obs.reshape(-1, *obs.obs.shape[2:])  # [B * K, ...]
    z = networks.project(params, networks.encode(params, flat))
    return z.reshape(*obs.obs.shape[:2], -1)

  def predictions(params: Params, obs: chex.Array, a: chex.Array) -> chex.Array:
    """[B, K, D] of the steps that actions [B, K] lead to."""
    every = params | answering(params)
    latents, ahead = networks.encode(every, obs), []
    for k in range(steps):  # unrolled: convolutions in a loop are slow
      latents = networks.step(every, latents, a[:, k])
      ahead.append(latents)
    z = networks.project(every, jnp.concatenate(ahead))
    p = networks.predict(every, z)
    return jnp.swapaxes(p.reshape(steps, len(obs), -1), 0, 1)

  def of_values(
    online_params: Params, target_params: Params, bootstrap: Bootstrap
  ) -> Bootstrap:
    """A way to bootstrap, for the base agent."""
    return lambda online, target, obs, key: bootstrap(
      online_params, target_params, obs, key
    )

  def targets(
    online_params: Params,
    target_params: Params,
    batch: Transition,
    key: chex.PRNGKey,
    *,
    bootstrap: Bootstrap = bootstrap,
  ) -> chex.Array:
    return base.targets(
      online_params['q'],
      target_params['q'],
      batch,
      key,
      bootstrap=of_values(online_params, target_params, bootstrap),
    )

  def loss(
    online_params: Params,
    target_params: Params,
    batch: Transition,
    key: chex.PRNGKey,
    *,
    bootstrap: Bootstrap | None = bootstrap,
    step: chex.Numeric | None = None,
  ) -> tuple[chex.Array, Metrics]:
    del step  # nothing is delayed
    q, q_twin = online_params['q'], target_params['q']
    if bootstrap is None:  # nothing but values
      return base.loss(q, q_twin, batch, key, bootstrap=None)
    future = batch.future
    if future is None or future.mask.shape[1] != steps:
      raise ValueError(
        f'batches must have a future of {steps} steps: the sequence_steps of '
        'the replay'
      )
    value, metrics = base.loss(
      q,
      q_twin,
      batch,
      key,
      bootstrap=of_values(online_params, target_params, bootstrap),
    )
    p = predictions(online_params, batch.obs_tm1, future.a)
    z = bootstrap(online_params, target_params, future, key)
    errors = jax.vmap(jax.vmap(losses.normalised_error))(p, z)  # [B, K]
    errors = jnp.where(future.mask, errors, 0.0)
    each = jnp.mean(errors, axis=1)
    if batch.weight is not None:
      each = batch.weight * each
    value = value + weight * reduce(each)
    counted = jnp.maximum(jnp.sum(future.mask), 1)
    return value, metrics | {
      'loss': value,
      'spr_loss': jnp.sum(errors) / counted,
      'spr_std': losses.normalised_std(z[:, 0]),
    }

  def of_q(function: Any) -> Any:
    """The same of the base's parameters."""
    return lambda params, *args: function(params['q'], *args)

  acting = base.acting
  if acting is not None:
    acting = acting._replace(
      act=of_q(acting.act),
      greedy=of_q(acting.greedy),
      play=of_q(acting.play),
    )
  return base._replace(
    init=init,
    loss=loss,
    bootstrap=bootstrap,
    targets=targets,
    values=of_q(base.values),
    taken=None if base.taken is None else of_q(base.taken),
    acting=acting,
    twinned=twinned,
  )


def with_augmentation(agent: Agent, augment: Augmentation) -> Agent:
  """An agent that learns from changed images, and acts on them as they are.

  Each observation of a batch is changed on its own: those acted upon, those
  bootstrapped from and those ahead (DrQ, Yarats et al. 2021; SPR).

  Args:
    agent: lifted by no twin.
    augment: (key, observation) -> another one, which may have another dtype.

  Returns:
    An agent with another `loss`. `targets` are of observations as they are, so
    that two looks at one batch differ by the parameters alone.
  """

  def loss(
    online_params: Params,
    target_params: Any,
    batch: Transition,
    key: chex.PRNGKey,
    **keywords: Any,
  ) -> tuple[chex.Array, Metrics]:
    key, *keys = jax.random.split(key, 4)
    shape = batch.obs_tm1.shape[1:]

    def changed(key: chex.PRNGKey, obs: chex.Array) -> chex.Array:
      flat = obs.reshape(-1, *shape)
      flat = jax.vmap(augment)(jax.random.split(key, len(flat)), flat)
      return flat.reshape(obs.shape)

    batch = batch._replace(
      obs_tm1=changed(keys[0], batch.obs_tm1),
      obs_t=changed(keys[1], batch.obs_t),
    )
    if batch.future is not None:
      ahead = batch.future._replace(obs=changed(keys[2], batch.future.obs))
      batch = batch._replace(future=ahead)
    return agent.loss(online_params, target_params, batch, key, **keywords)

  return agent._replace(loss=loss)
