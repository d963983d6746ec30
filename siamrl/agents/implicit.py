"""Implicit quantile networks: returns at fractions that are drawn anew.

IQN (Dabney et al. 2018b, arXiv 1806.06923) learns the return at any fraction of
its distribution. Each gradient step draws fractions for the returns to learn,
others for the targets, and others again for the values by which the twin
chooses the successor's action, each for every transition, or for the whole
batch. The key of the loss, or of `bootstrap`, is their only source.

* Acting draws fractions for each env step and observation, as the published
  code does; they are part of the noise.
* `values`, `taken`, greedy actions, the choice of the form `double`, and the
  distributions of `functional` are deterministic: they use the midpoints of
  `acting_fractions` equal parts of [0, 1].

With the form `minto` the returns of an action are those of the network that
gives it the smaller value, at the same fractions. With `munchausen` it is M-IQN
(Vieillard et al. 2020, arXiv 2007.14430).

Rules of the twin mean the same as for QR-DQN, see
`siamrl.agents.distributional`; copies that `averaged` combines answer at the
same fractions.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from siamrl.agents.discrete import (
  CHOOSER,
  FRACTIONS,
  ONLINE,
  TWIN,
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
from siamrl.losses import distributional as losses, td
from siamrl.networks.dense import answer as answer_of
from siamrl.networks.implicit import implicit_network
from siamrl.parameters import FieldError, check_name
from siamrl.types import (
  Acting,
  Agent,
  Bootstrap,
  Distributions,
  Params,
  Transition,
)

# The forms of targets: the returns of one action, or a mean over a policy.
FORMS = ('max', 'double', 'soft', 'munchausen', 'minto')
# What fractions are drawn for: the shape of N of them for B transitions.
DRAWS: dict[str, Callable[[int, int], tuple[int, ...]]] = {
  'transition': lambda b, n: (b, n),
  'batch': lambda b, n: (n,),
}


class Answer(NamedTuple):
  """The answer of a twin to observations.

  Attributes:
    returns: [B, A, N'] at fractions that were drawn for targets.
    values: [B, A] means at other fractions, which targets choose actions by.
  """

  returns: chex.Array
  values: chex.Array


class _Network(NamedTuple):
  """An implicit quantile network, and how many fractions it is asked.

  Attributes:
    network: (observations [B, S, ...], fractions) -> returns [B, A, N].
    target_fractions: N'.
    acting_fractions: K.
    draw: a value of `DRAWS`.
  """

  network: nn.Module
  target_fractions: int
  acting_fractions: int
  draw: Callable[[int, int], tuple[int, ...]]

  def returns(
    self,
    params: Params,
    obs: chex.Array,
    fractions: chex.Array,
    key: chex.PRNGKey | None = None,
  ) -> chex.Array:
    """[B, A, N] at fractions [N] or [B, N]; a key draws layers' noise."""
    found: Any = answer_of(self.network, params, obs, fractions, key=key)
    return found

  def returns_taken(
    self,
    params: Params,
    batch: Transition,
    fractions: chex.Array,
    key: chex.PRNGKey | None = None,
  ) -> chex.Array:
    """[B, N] of the actions taken, at fractions [N] or [B, N]."""
    returns = self.returns(params, batch.obs_tm1, fractions, key)
    return jax.vmap(losses.of_action)(returns, batch.a_tm1)

  def distribution_taken(self, params: Params, batch: Transition) -> chex.Array:
    """[B, K] of the actions taken, at the midpoints."""
    fractions = losses.midpoints(self.acting_fractions)
    return self.returns_taken(params, batch, jnp.asarray(fractions))

  def taken(self, params: Params, batch: Transition) -> chex.Array:
    """[B] values of the actions taken."""
    return jnp.mean(self.distribution_taken(params, batch), -1)

  def values(
    self, params: Params, obs: chex.Array, key: chex.PRNGKey | None = None
  ) -> chex.Array:
    """[B, A] values: the means at the midpoints."""
    fractions = jnp.asarray(losses.midpoints(self.acting_fractions))
    return jnp.mean(self.returns(params, obs, fractions, key), -1)

  def bootstrap(
    self,
    online_params: Params,
    target_params: Params,
    obs: chex.Array,
    key: chex.PRNGKey,
  ) -> Answer:
    """The `Answer` of the twin."""
    keys, noise = jax.random.split(key), jax.random.fold_in(key, TWIN)

    def answer(key: chex.PRNGKey, count: int) -> chex.Array:
      fractions = jax.random.uniform(key, self.draw(len(obs), count))
      return self.returns(target_params, obs, fractions, noise)

    return Answer(
      answer(keys[0], self.target_fractions),
      jnp.mean(answer(keys[1], self.acting_fractions), -1),
    )

  def greedy(self, params: Params, obs: chex.Array) -> chex.Array:
    """int32 [B] actions of the largest value."""
    return greedy_of(self.values(params, obs))

  def noise(self, key: chex.PRNGKey, batch_size: int) -> Any:
    """The `ActingNoise`, and fractions [B, K]."""
    fractions = jax.random.uniform(
      jax.random.fold_in(key, FRACTIONS), (batch_size, self.acting_fractions)
    )
    return make_acting_noise(self.network)(key, batch_size), fractions

  def act(
    self, params: Params, obs: chex.Array, noise: Any, epsilon: chex.Numeric
  ) -> chex.Array:
    """int32 [B] actions."""
    drawn, fractions = noise
    values = jnp.mean(self.returns(params, obs, fractions, drawn.key), -1)
    return epsilon_greedy(values, drawn.exploration, epsilon)


class _Targets(NamedTuple):
  """Targets, the returns to learn.

  Attributes:
    net: the network.
    form: one of `FORMS`.
    given: parameters of the form.
  """

  net: _Network
  form: str
  given: Mapping[str, chex.Numeric]

  def make(
    self,
    online_params: Params,
    target_params: Params,
    batch: Transition,
    key: chex.PRNGKey,
    bootstrap: Bootstrap,
  ) -> chex.Array:
    """[B, N'] returns of equal probability."""
    r_t = batch.r_t
    if self.form == 'munchausen':
      before = bootstrap(online_params, target_params, batch.obs_tm1, key)
      r_t = r_t + jax.vmap(
        lambda a, q: td.munchausen_bonus(a, q, **self.given)
      )(batch.a_tm1, before.values)
    answer = bootstrap(online_params, target_params, batch.obs_t, key)
    successors = self._successors(online_params, batch, answer, key)
    return jax.vmap(losses.quantile_target)(r_t, batch.discount_t, successors)

  def _successors(
    self,
    online_params: Params,
    batch: Transition,
    answer: Answer,
    key: chex.PRNGKey,
  ) -> chex.Array:
    """[B, N'] returns to bootstrap from."""
    if self.form in ('soft', 'munchausen'):
      return jax.vmap(losses.soft_quantiles, (0, 0, None))(
        *answer, self.given['soft_temperature']
      )
    if self.form == 'minto':
      # At the fractions of the twin, since the key is the same.
      online = self.net.bootstrap(
        online_params, online_params, batch.obs_t, key
      )
      answer = _smaller(jax.lax.stop_gradient(online), answer)
    chooser = answer.values
    if self.form == 'double':
      chooser = self.net.values(
        online_params, batch.obs_t, jax.random.fold_in(key, CHOOSER)
      )
    return jax.vmap(losses.of_action)(
      answer.returns, jnp.argmax(chooser, axis=-1)
    )


def _smaller(one: Answer, other: Answer) -> Answer:
  """The answer with the smaller value for each action, else the other's."""
  is_smaller = one.values < other.values
  return Answer(
    jnp.where(is_smaller[..., None], one.returns, other.returns),
    jnp.minimum(one.values, other.values),
  )


def _make_targets(
  net: _Network,
  target_form: str | None,
  target_parameters: Mapping[str, chex.Numeric] | None,
) -> _Targets:
  """Targets of a form; raises ValueError for one without a meaning here."""
  form = target_form or FORMS[0]
  if form not in FORMS:
    raise FieldError(
      'target_form',
      form,
      f'must be {", ".join(FORMS[:-1])} or {FORMS[-1]} for',
      ('agent', 'iqn'),
      ', whose targets are distributions',
    )
  given = {
    name: value
    for name, value in (target_parameters or {}).items()
    if value is not None
  }
  td.make_target(form, **given)  # checks the parameters
  return _Targets(net, form, given)


def _check_counts(**counts: int) -> None:
  for name, count in counts.items():
    if count < 1:
      raise FieldError(name, count, 'must be 1 or more')


def _mean(answer: Answer) -> chex.Array:
  return jnp.mean(answer.returns, -1)


def make_iqn(
  network: nn.Module,
  example_obs: chex.Array,
  *,
  fractions: int = 64,
  target_fractions: int = 64,
  acting_fractions: int = 32,
  cosines: int = 64,
  fractions_per: str = 'transition',
  target_form: str | None = None,
  target_parameters: Mapping[str, chex.Numeric] | None = None,
  error_bound: float = 1.0,
  batch_reduction: str = 'mean',
  param_dtype: str = 'float32',
) -> Agent:
  """Builds IQN, which learns returns at any fraction.

  (Dabney et al. 2018b; the defaults are theirs.)

  Args:
    network: a `QNetwork` of values, whose torso and head are used.
    example_obs: [B, S, ...]; gives `init` its shapes.
    fractions: N, drawn for the returns that are learned, >= 1.
    target_fractions: N', drawn for the targets, >= 1.
    acting_fractions: K, of the values that actions are chosen by, >= 1.
    cosines: number of cosines that embed a fraction, >= 1.
    fractions_per: 'transition' if each draws fractions of its own for learning,
      or 'batch' if all share them, whose embedding then takes 1 / B of the
      time.
    target_form: one of `FORMS`; 'max' if None. 'munchausen' gives M-IQN.
    target_parameters: parameters of the form by name, see
      `losses.td.make_target`; may be traced.
    error_bound: kappa > 0, from which the loss of an error is linear.
    batch_reduction: 'mean' or 'sum' over the batch.
    param_dtype: of the online parameters, one of `DTYPES`.

  Returns:
    An agent whose `loss` reports `loss`, and for each transition [B] the mean
    `q_tm1` of the action taken, over the fractions drawn, and `td_error_abs`,
    its distance to the mean of the target. `bootstrap` returns an `Answer`.

  Raises:
    ValueError: a name is unknown, the form has no meaning for implicit
      quantiles, its parameters do not fit, the network has no torso and head,
      or a number is outside its domain.
  """
  _check_counts(
    fractions=fractions,
    target_fractions=target_fractions,
    acting_fractions=acting_fractions,
    cosines=cosines,
  )
  check_learning(batch_reduction, param_dtype, error_bound)
  check_name('fractions_per', fractions_per, DRAWS)
  draw = DRAWS[fractions_per]
  made = implicit_network(network, cosines)
  net = _Network(made, target_fractions, acting_fractions, draw)
  wanted = _make_targets(net, target_form, target_parameters)

  def init(key: chex.PRNGKey) -> Params:
    params = made.init(key, example_obs)
    return as_dtype(params, param_dtype)

  def errors(
    online_params: Params, batch: Transition, y: chex.Array, key: chex.PRNGKey
  ) -> Errors:
    drawn = jax.random.uniform(
      jax.random.fold_in(key, FRACTIONS), draw(len(y), fractions)
    )
    returns = net.returns_taken(
      online_params, batch, drawn, jax.random.fold_in(key, ONLINE)
    )
    each = one_by_one(
      functools.partial(losses.quantile_huber_loss, error_bound=error_bound),
      returns,
      jnp.broadcast_to(drawn, returns.shape),
      y,
    )
    q_tm1 = jnp.mean(returns, -1)
    return Errors(each / error_bound, q_tm1, jnp.abs(jnp.mean(y, -1) - q_tm1))

  def targets(
    online_params: Params,
    target_params: Any,
    batch: Transition,
    key: chex.PRNGKey,
    bootstrap: Bootstrap = net.bootstrap,
  ) -> chex.Array:
    y = wanted.make(online_params, target_params, batch, key, bootstrap)
    return jnp.mean(y, -1)

  def given(r_t: chex.Array) -> chex.Array:
    return r_t.reshape(len(r_t), -1)  # a return [B] has no width

  parts = Parts(net.bootstrap, wanted.make, given, errors)
  return Agent(
    init=init,
    loss=make_loss(parts, batch_reduction),
    bootstrap=net.bootstrap,
    targets=targets,
    values=net.values,
    expected=_mean,
    taken=net.taken,
    acting=Acting(net.noise, net.act, net.greedy, play=net.act),
    distributions=Distributions(
      taken=net.distribution_taken,
      std=lambda answer: jnp.std(answer.returns, -1),
      distance=lambda one, other: losses.quantile_distance(
        one.returns, other.returns
      ),
    ),
  )
