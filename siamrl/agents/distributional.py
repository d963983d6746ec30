"""Agents that learn distributions of returns: C51 and QR-DQN.

Their network gives N numbers for each action, and `bootstrap` answers the
twin's distributions [B, A, N]: probabilities of N atoms, or N quantiles. The
agents act by the means. A target is the distribution of one action, scaled by
the discount and shifted by the reward. The action is the best by the twin's
means (`max`), by the online network's (`double`), or by the smaller of the two
(`minto`). Other forms of targets combine the values of several actions, or of
several networks, and are refused.

With `minto` the distribution of an action is that of the network with the
smaller mean, whole, and the twin's if the means are equal. The mean of a target
is therefore MINTO's target of the means. The smaller of each quantile would
have a mean below both.

The rules of the twin have these meanings for distributions:

* Rules that combine parameters, such as `soft` and `proximal`, do not change.
* `averaged` combines the answers of several copies. For C51 the result is the
  mixture of their distributions; for QR-DQN its quantile at each fraction is
  the mean of theirs. In both cases its mean is the mean of their means.
* `functional` ties the distribution of the action taken to the twin's by the
  agent's own loss. For C51 this term is least where the two are equal.
* With `chain` and `iterated_heads`, each network learns the distributions of
  the one before it.
* With `residual`, gradients flow through the target's probabilities or
  quantiles.

Whole targets in `r_t` (`loss(bootstrap=None)`) are distributions [B, N], or
returns [B] that are taken for certain. With the returns of Q(lambda), an agent
therefore learns the distribution of these returns, which bootstrap from means.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

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
  one_by_one,
)
from siamrl.losses import distributional as losses
from siamrl.networks.dense import answer as answer_of
from siamrl.parameters import FieldError
from siamrl.types import (
  Acting,
  Agent,
  Bootstrap,
  Distributions,
  Params,
  Transition,
)

# The forms of targets that choose one action, whose distribution is learned.
FORMS = ('max', 'double', 'minto')


class _Kind(NamedTuple):
  """A kind of distributions, as functions of one of them.

  Attributes:
    name: of the agent.
    size: N.
    answer: the network's numbers [..., N] -> distributions [..., N].
    mean: distributions [..., N] -> [...].
    std: distributions [..., N] -> [...].
    distance: two of them [..., N] -> [...].
    target: (r_t, discount_t, distribution of the successor) -> that to learn.
    certain: return [] -> its distribution, which has no width.
    losses: (the network's numbers [B, N], distributions to learn [B, N]) ->
      [B].
  """

  name: str
  size: int
  answer: Callable[[chex.Array], chex.Array]
  mean: Callable[[chex.Array], chex.Array]
  std: Callable[[chex.Array], chex.Array]
  distance: Callable[[chex.Array, chex.Array], chex.Array]
  target: Callable[[chex.Numeric, chex.Numeric, chex.Array], chex.Array]
  certain: Callable[[chex.Array], chex.Array]
  losses: Callable[[chex.Array, chex.Array], chex.Array]


def make_c51(
  network: nn.Module,
  example_obs: chex.Array,
  *,
  num_atoms: int = 51,
  v_min: float = -10.0,
  v_max: float = 10.0,
  target_form: str | None = None,
  batch_reduction: str = 'mean',
  param_dtype: str = 'float32',
) -> Agent:
  """Builds C51, which learns the probabilities of fixed returns.

  (Bellemare et al. 2017; the defaults are theirs.)

  Args:
    network: maps [B, S, ...] observations to [B, A, num_atoms] logits.
    example_obs: [B, S, ...]; gives `init` its shapes.
    num_atoms: Z returns at equal distances, >= 2.
    v_min: the lowest of them.
    v_max: the highest of them. Returns outside the range are learned as its
      ends, so it should contain the discounted returns of the task.
    target_form: one of `FORMS`; 'max' if None.
    batch_reduction: 'mean' or 'sum' over the batch.
    param_dtype: of the online parameters, one of `DTYPES`.

  Returns:
    An agent whose `loss` reports `loss`, and for each transition [B] the mean
    `q_tm1` of the action taken and `td_error_abs`, its distance to the mean of
    the projected target. `targets` are means before the projection.

  Raises:
    ValueError: a name is unknown, the form has no meaning for distributions, or
      there are not two atoms.
  """
  if num_atoms < 2:
    raise FieldError('num_atoms', num_atoms, 'must be 2 or more')
  if not v_min < v_max:
    raise FieldError('v_min', v_min, 'must be below', ('v_max', v_max))
  support = losses.make_support(num_atoms, v_min, v_max)
  kind = _Kind(
    name='c51',
    size=num_atoms,
    answer=jax.nn.softmax,
    mean=lambda probs: losses.categorical_mean(probs, support),
    std=lambda probs: losses.categorical_std(probs, support),
    distance=lambda one, other: losses.categorical_distance(
      one, other, support
    ),
    target=lambda r_t, discount_t, probs: losses.categorical_target(
      r_t, discount_t, probs, support
    ),
    certain=lambda r_t: losses.project(r_t[None], jnp.ones(1), support),
    losses=jax.vmap(losses.categorical_loss),
  )
  return _make_agent(
    network, example_obs, kind, target_form, batch_reduction, param_dtype
  )


def make_qrdqn(
  network: nn.Module,
  example_obs: chex.Array,
  *,
  quantiles: int = 200,
  error_bound: float = 1.0,
  target_form: str | None = None,
  batch_reduction: str = 'mean',
  param_dtype: str = 'float32',
) -> Agent:
  """Builds QR-DQN, which learns returns at fixed fractions.

  (Dabney et al. 2018a; the defaults are theirs.)

  Args:
    network: maps [B, S, ...] observations to [B, A, quantiles] returns; of one
      quantile, [B, A] too.
    example_obs: [B, S, ...]; gives `init` its shapes.
    quantiles: N returns of equal probability, >= 1.
    error_bound: kappa > 0, from which the loss of an error is linear.
    target_form: one of `FORMS`; 'max' if None.
    batch_reduction: 'mean' or 'sum' over the batch.
    param_dtype: of the online parameters, one of `DTYPES`.

  Returns:
    An agent whose `loss` reports `loss`, and for each transition [B] the mean
    `q_tm1` of the action taken and `td_error_abs`, its distance to the mean of
    the target.

  Raises:
    ValueError: a name is unknown, the form has no meaning for distributions, or
      a number is outside its domain.
  """
  if quantiles < 1:
    raise FieldError('quantiles', quantiles, 'must be 1 or more')
  check_learning(batch_reduction, param_dtype, error_bound)
  fractions = losses.midpoints(quantiles)
  kind = _Kind(
    name='qrdqn',
    size=quantiles,
    answer=lambda returns: returns,
    mean=lambda returns: jnp.mean(returns, -1),
    std=lambda returns: jnp.std(returns, -1),
    distance=losses.quantile_distance,
    target=losses.quantile_target,
    certain=lambda r_t: jnp.full(quantiles, r_t),
    losses=functools.partial(
      one_by_one,
      lambda returns, target: losses.quantile_huber_loss(
        returns, fractions, target, error_bound
      ),
    ),
  )
  return _make_agent(
    network, example_obs, kind, target_form, batch_reduction, param_dtype
  )


class _Network(NamedTuple):
  """A network of distributions.

  Attributes:
    network: maps [B, S, ...] observations to [B, A, N] numbers.
    kind: what the numbers mean.
  """

  network: nn.Module
  kind: _Kind

  def numbers(
    self, params: Params, obs: chex.Array, key: chex.PRNGKey | None = None
  ) -> chex.Array:
    """[B, A, N] numbers of each action; raises ValueError for others.

    A key draws the noise of noisy layers.
    """
    found: Any = answer_of(self.network, params, obs, key=key)
    size = self.kind.size
    plain = size == 1 and found.ndim == 2  # values, for one quantile
    if found.shape[2:] != (size,) and not plain:
      raise ValueError(
        f'the network answers {found.shape}, and {self.kind.name} needs '
        f'{size} numbers for each action: the `outputs` of the head'
      )
    return found.reshape(*found.shape[:2], size)

  def numbers_taken(
    self, params: Params, batch: Transition, key: chex.PRNGKey | None = None
  ) -> chex.Array:
    """[B, N] numbers of the actions taken."""
    return jax.vmap(losses.of_action)(
      self.numbers(params, batch.obs_tm1, key), batch.a_tm1
    )

  def distribution_taken(self, params: Params, batch: Transition) -> chex.Array:
    """[B, N] distributions of the actions taken."""
    return self.kind.answer(self.numbers_taken(params, batch))

  def taken(self, params: Params, batch: Transition) -> chex.Array:
    """[B] values of the actions taken."""
    return self.kind.mean(self.distribution_taken(params, batch))

  def values(
    self, params: Params, obs: chex.Array, key: chex.PRNGKey | None = None
  ) -> chex.Array:
    """[B, A] values: the means."""
    return self.kind.mean(self.kind.answer(self.numbers(params, obs, key)))

  def bootstrap(
    self,
    online_params: Params,
    target_params: Params,
    obs: chex.Array,
    key: chex.PRNGKey,
  ) -> chex.Array:
    """[B, A, N] distributions of the twin."""
    key = jax.random.fold_in(key, TWIN)
    return self.kind.answer(self.numbers(target_params, obs, key))

  def greedy(self, params: Params, obs: chex.Array) -> chex.Array:
    """int32 [B] actions of the largest value."""
    return greedy_of(self.values(params, obs))

  def act(
    self,
    params: Params,
    obs: chex.Array,
    noise: ActingNoise,
    epsilon: chex.Numeric,
  ) -> chex.Array:
    """int32 [B] actions."""
    q_values = self.values(params, obs, noise.key)
    return epsilon_greedy(q_values, noise.exploration, epsilon)


def _make_agent(
  network: nn.Module,
  example_obs: chex.Array,
  kind: _Kind,
  target_form: str | None,
  batch_reduction: str,
  param_dtype: str,
) -> Agent:
  """Builds an agent of some kind of distributions; see `make_c51`."""
  target_form = target_form or FORMS[0]
  if target_form not in FORMS:
    raise FieldError(
      'target_form',
      target_form,
      f'must be one of {", ".join(FORMS)} for',
      ('agent', kind.name),
      ', whose targets are the distribution of one action',
    )
  check_learning(batch_reduction, param_dtype)
  net = _Network(network, kind)

  def init(key: chex.PRNGKey) -> Params:
    params = network.init(key, example_obs)
    return as_dtype(params, param_dtype)

  def chosen(
    online_params: Params,
    target_params: Params,
    batch: Transition,
    key: chex.PRNGKey,
    bootstrap: Bootstrap,
  ) -> chex.Array:
    """[B, N] the successor's distribution, that of the action chosen."""
    answer = bootstrap(online_params, target_params, batch.obs_t, key)
    chooser_key = jax.random.fold_in(key, CHOOSER)
    if target_form == 'minto':
      online = jax.lax.stop_gradient(
        kind.answer(net.numbers(online_params, batch.obs_t, chooser_key))
      )
      smaller = kind.mean(online) < kind.mean(answer)
      answer = jnp.where(smaller[..., None], online, answer)
    if target_form == 'double':
      chooser = net.values(online_params, batch.obs_t, chooser_key)
    else:
      chooser = kind.mean(answer)
    return jax.vmap(losses.of_action)(answer, jnp.argmax(chooser, -1))

  def targets(
    online_params: Params,
    target_params: Any,
    batch: Transition,
    key: chex.PRNGKey,
    bootstrap: Bootstrap = net.bootstrap,
  ) -> chex.Array:
    v_t = kind.mean(chosen(online_params, target_params, batch, key, bootstrap))
    return batch.r_t + batch.discount_t * v_t

  def learned(
    online_params: Params,
    target_params: Any,
    batch: Transition,
    key: chex.PRNGKey,
    bootstrap: Bootstrap,
  ) -> chex.Array:
    successor = chosen(online_params, target_params, batch, key, bootstrap)
    return jax.vmap(kind.target)(batch.r_t, batch.discount_t, successor)

  def given(r_t: chex.Array) -> chex.Array:
    return jax.vmap(kind.certain)(r_t) if r_t.ndim == 1 else r_t

  def errors(
    online_params: Params, batch: Transition, y: chex.Array, key: chex.PRNGKey
  ) -> Errors:
    numbers = net.numbers_taken(
      online_params, batch, jax.random.fold_in(key, ONLINE)
    )
    q_tm1 = kind.mean(kind.answer(numbers))
    return Errors(kind.losses(numbers, y), q_tm1, jnp.abs(kind.mean(y) - q_tm1))

  parts = Parts(net.bootstrap, learned, given, errors)
  return Agent(
    init=init,
    loss=make_loss(parts, batch_reduction),
    bootstrap=net.bootstrap,
    targets=targets,
    values=net.values,
    expected=kind.mean,
    taken=net.taken,
    acting=Acting(
      make_acting_noise(network), net.act, net.greedy, play=net.act
    ),
    distributions=Distributions(
      taken=net.distribution_taken, std=kind.std, distance=kind.distance
    ),
  )
