"""Latent self-prediction as part of any value-based agent (SPR).

In self-predictive representations (Schwarzer et al. 2021, arXiv:2007.05929) a
transition model leads the torso's features of an observation K steps ahead,
given the actions that were taken. The prediction for each step should match
the features that a twin of the torso computes from the observation that
followed. Here too the stop-gradient is an argument position: that twin belongs
to the rule, like that of the values.

Parameters are a dict of

* `q`: parameters of the value-based agent, torso and head;
* `transition`, `predictor`, and `projector` if it is not part of the head, see
  `networks.latent`.

The twinned part is a dict of `q` and `latent`, which holds `encoder` and
`projector` again. So values and latents can have twins under different rules:
with `by_path`, `q:hard+latent:soft` copies the one every period and averages
the other. The transition model and the predictor have no twin.
"""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from siamrl import twins
from siamrl.agents.discrete import REDUCTIONS
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

# Folded into the agent's key; differs from all of its splits.
_STREAM = 2**32 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class _Latents:
  """The parameters and answers of an agent that predicts its latents.

  Attributes:
    base: the value-based agent.
    networks: the networks around that of the values.
    example_obs: [B, ...]; only its shape matters.
    steps: K.
    has_twin: whether targets come from a twin, not the online network itself.
  """

  base: Agent
  networks: LatentNetworks
  example_obs: chex.Array
  steps: int
  has_twin: bool

  def init(self, key: chex.PRNGKey) -> Params:
    """Draws parameters; those of the values are the same as without latents."""
    q = self.base.init(key)
    dtype = jax.tree.leaves(q)[0].dtype
    # Drawn in float32, like the base's parameters.
    stream = jax.random.fold_in(key, _STREAM)
    more = self.networks.init(stream, twins.born(q), self.example_obs)
    return {'q': q} | jax.tree.map(lambda leaf: leaf.astype(dtype), more)

  def twinned(self, params: Params) -> Params:
    """The part of the parameters that has a twin."""
    part = {'q': twins.part(self.base, params['q'])}
    if not self.has_twin:
      return part
    return part | {'latent': self._answering(params)}

  def bootstrap(
    self,
    online_params: Params,
    target_params: Params,
    obs: chex.Array | Future,
    key: chex.PRNGKey,
  ) -> chex.Array:
    """Targets [B, K, D] for a `Future`, or values of observations."""
    if not isinstance(obs, Future):
      return self.base.bootstrap(
        online_params['q'], target_params['q'], obs, key
      )
    if self.has_twin:
      params = target_params['latent']
    else:
      params = self._answering(online_params)
    flat = obs.obs.reshape(-1, *obs.obs.shape[2:])  # [B * K, ...]
    z = self.networks.project(params, self.networks.encode(params, flat))
    return z.reshape(*obs.obs.shape[:2], -1)

  def predictions(
    self, params: Params, obs: chex.Array, a: chex.Array
  ) -> chex.Array:
    """Predictions [B, K, D] of the steps that actions [B, K] lead to."""
    every = params | self._answering(params)
    latents, ahead = self.networks.encode(every, obs), []
    for k in range(self.steps):  # unrolled: convolutions in a loop are slow
      latents = self.networks.step(every, latents, a[:, k])
      ahead.append(latents)
    z = self.networks.project(every, jnp.concatenate(ahead))
    p = self.networks.predict(every, z)
    return jnp.swapaxes(p.reshape(self.steps, len(obs), -1), 0, 1)

  def _answering(self, params: Params) -> Params:
    """The parameters of encoder and projector."""
    shared = self.networks.shared(params['q'])
    return {'encoder': shared['encoder']} | {
      'projector': (shared | params)['projector']
    }


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
  """Adds prediction of its own latents to a value-based agent.

  The loss is that of the values plus

    weight * reduce_b (w_b / K * sum_k mask_bk error(p_bk, z_bk))

  with the predictions p and targets z of K steps, the batch's weights w, and
  the squared distance of unit vectors, `losses.siamese.normalized_error`
  (mila-iqia/spr, algos.py, and Dopamine's spr_agent.py, both with weight 5 and
  K = 5). The authors' code also leaves out the observation in which an
  episode's last action was taken.

  Args:
    base: a value-based agent of one network, not lifted by any rule.
    networks: the networks around that network.
    example_obs: [B, ...]; only its shape matters.
    steps: K; the `future` of batches must have this length.
    weight: weight of the second term, >= 0; may be traced. With 0 the values
      are learned as without it.
    target: a key of `TARGETS`. With 'online_gradient' latents have no twin.
    batch_reduction: 'mean' or 'sum' over the batch, as in the base agent.

  Returns:
    An agent whose `loss` reports the base's metrics; `spr_loss`, the mean
    squared distance of unit vectors (0 to 4) over all predictions that count;
    and `spr_std`, the `losses.siamese.normalized_std` of the targets one step
    ahead, near 0 if latents have collapsed.

    `bootstrap` answers a `Future` with targets [B, K, D], and observations with
    values; rules that replace it replace it for both.

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
      f'latents need an agent of one network, not of {", ".join(shapes)}'
    )
  reduce = REDUCTIONS[batch_reduction]
  latents = _Latents(base, networks, example_obs, steps, target == 'twin')

  def targets(
    online_params: Params,
    target_params: Params,
    batch: Transition,
    key: chex.PRNGKey,
    *,
    bootstrap: Bootstrap = latents.bootstrap,
  ) -> chex.Array:
    return base.targets(
      online_params['q'],
      target_params['q'],
      batch,
      key,
      bootstrap=_of_values(online_params, target_params, bootstrap),
    )

  def loss(
    online_params: Params,
    target_params: Params,
    batch: Transition,
    key: chex.PRNGKey,
    *,
    bootstrap: Bootstrap | None = latents.bootstrap,
    step: chex.Numeric | None = None,
  ) -> tuple[chex.Array, Metrics]:
    del step  # nothing is delayed
    q, q_twin = online_params['q'], target_params['q']
    if bootstrap is None:  # only values have whole targets
      return base.loss(q, q_twin, batch, key, bootstrap=None)
    future = _future_of(batch, steps)
    value, metrics = base.loss(
      q,
      q_twin,
      batch,
      key,
      bootstrap=_of_values(online_params, target_params, bootstrap),
    )
    p = latents.predictions(online_params, batch.obs_tm1, future.a)
    z = bootstrap(online_params, target_params, future, key)
    errors = jax.vmap(jax.vmap(losses.normalized_error))(p, z)  # [B, K]
    errors = jnp.where(future.mask, errors, 0.0)
    each = jnp.mean(errors, axis=1)
    if batch.weight is not None:
      each = batch.weight * each
    value = value + weight * reduce(each)
    counted = jnp.maximum(jnp.sum(future.mask), 1)
    return value, metrics | {
      'loss': value,
      'spr_loss': jnp.sum(errors) / counted,
      'spr_std': losses.normalized_std(z[:, 0]),
    }

  return _looking_at_q(base)._replace(
    init=latents.init,
    loss=loss,
    bootstrap=latents.bootstrap,
    targets=targets,
    twinned=latents.twinned,
  )


def _looking_at_q(base: Agent) -> Agent:
  """The agent, with values and actions from the entry `q`."""

  def of_q(function: Any) -> Any:
    return lambda params, *args: function(params['q'], *args)

  acting = base.acting
  if acting is not None:
    acting = acting._replace(
      act=of_q(acting.act),
      greedy=of_q(acting.greedy),
      play=of_q(acting.play),
    )
  distributions = base.distributions
  if distributions is not None:
    distributions = distributions._replace(taken=of_q(distributions.taken))
  return base._replace(
    values=of_q(base.values),
    taken=None if base.taken is None else of_q(base.taken),
    acting=acting,
    distributions=distributions,
  )


def _future_of(batch: Transition, steps: int) -> Future:
  if batch.future is None or batch.future.mask.shape[1] != steps:
    raise ValueError(
      f'batches must have a future of {steps} steps: the sequence_steps of '
      'the replay'
    )
  return batch.future


def _of_values(
  online_params: Params, target_params: Params, bootstrap: Bootstrap
) -> Bootstrap:
  """Adapts a bootstrap function to the base agent."""
  return lambda online, target, obs, key: bootstrap(
    online_params, target_params, obs, key
  )


def with_augmentation(agent: Agent, augment: Augmentation) -> Agent:
  """Makes an agent learn from augmented images; it acts on unchanged ones.

  Each observation of a batch is augmented independently: those acted upon,
  those bootstrapped from and those ahead (DrQ, Yarats et al. 2021; SPR).

  Args:
    agent: an agent not lifted by any rule.
    augment: (key, observation) -> augmented observation, which may have another
      dtype.

  Returns:
    An agent with another `loss`. `targets` uses unchanged observations, so that
    its values for one batch depend on the parameters only.
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
