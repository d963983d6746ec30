"""CrossQ beside a NumPy program, its running averages, and its twin."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siamrl import learner, twins
from siamrl.agents.actor_critic import make_actor_critic
from siamrl.agents.crossq import statistics_optimizers
from siamrl.learner import ClockedTwin
from siamrl.networks.policies import Critic, TanhGaussianActor
from siamrl.types import Transition
from tests.parameters import slow_but

RNG = np.random.default_rng(0)
KEY = jax.random.key(3)
B, N, D, K = 8, 3, 2, 2


def _normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


BATCH = Transition(
  _normal(B, N),
  np.tanh(_normal(B, D)),
  _normal(B),
  np.where(np.arange(B) % 3 == 0, 0, 0.9).astype(np.float32),
  _normal(B, N) + 1,
)


def _make(**options):
  return make_actor_critic(
    'crossq',
    TanhGaussianActor(sizes=(5,), action_dim=D, batch_norm=True),
    Critic(sizes=(4,), batch_norm=True),
    BATCH.obs_tm1,
    **options,
  )


@functools.cache
def _params():
  """Parameters whose statistics, scales and biases say something."""
  params = jax.jit(_make().init)(KEY)
  leaves, tree = jax.tree.flatten(params)
  moved = [
    leaf + 0.2 * np.abs(_normal(*leaf.shape)) if leaf.ndim else leaf
    for leaf in leaves
  ]
  return jax.tree.unflatten(tree, moved) | {'log_alpha': jnp.float32(-0.5)}


def _twin(params):
  return {k: params[k] for k in ('critic', 'critic_statistics')}


@functools.cache
def _step(**options):
  agent = _make(**options)
  return jax.jit(jax.value_and_grad(agent.loss, has_aux=True))


# The same in float64 NumPy, one critic after the other.


def _norm(x, weights, statistics, training, corrected, measured):
  mean, var = statistics['mean'], statistics['var']
  running = np.sqrt(np.float64(var) + 1e-3)
  if not training:
    y = (x - mean) / running
  else:
    measured.append((x.mean(0), x.var(0)))
    std = np.sqrt(x.var(0) + 1e-3)
    y = (x - x.mean(0)) / std
    if corrected:
      y = y * np.clip(std / running, 1 / 3, 3)
      y = y + np.clip((x.mean(0) - mean) / running, -5, 5)
  return y * weights['scale'] + weights['bias']


def _network(x, weights, statistics, training=False, corrected=False):
  """The output of a network of one hidden layer, and measured statistics."""
  weights, measured = weights['params'], []
  torso, norms = weights['torso'], statistics['torso']
  how = (training, corrected, measured)
  x = _norm(np.float64(x), torso['BatchRenorm_0'], norms['BatchRenorm_0'], *how)
  dense = torso['Dense_0']['Dense_0']
  x = np.maximum(x @ dense['kernel'] + dense['bias'], 0)
  x = _norm(x, torso['BatchRenorm_1'], norms['BatchRenorm_1'], *how)
  return x @ weights['last']['kernel'] + weights['last']['bias'], measured


def _sampled(policy, noise):
  mean, log_std = np.split(policy, 2, axis=1)
  log_std = np.clip(log_std, -20, 2)
  u = mean + np.exp(log_std) * noise
  action = np.tanh(u)
  log_cosh = np.logaddexp(u, -u) - np.log(2)  # 1 - tanh(u)**2 = cosh(u)**-2
  log_prob = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi) + 2 * log_cosh
  return action, log_prob.sum(1)


def _by_hand(params, target, corrected):
  """The losses, and the statistics that were measured."""
  params = jax.tree.map(np.asarray, params)
  at = lambda tree, k: jax.tree.map(lambda leaf: np.asarray(leaf)[k], tree)
  alpha = np.exp(np.float64(params['log_alpha']))
  keys = jax.random.split(KEY)
  noises = [np.float64(jax.random.normal(key, (B, D))) for key in keys]
  running = params['actor'], params['actor_statistics']
  policy, _ = _network(BATCH.obs_t, *running)
  action_t, log_prob_t = _sampled(policy, noises[0])
  joint = np.concatenate(
    [
      np.concatenate([BATCH.obs_tm1, BATCH.a_tm1], 1),
      np.concatenate([BATCH.obs_t, action_t], 1),
    ]
  )

  def critics(of, x, *how):
    return [
      _network(x, at(of['critic'], k), at(of['critic_statistics'], k), *how)
      for k in range(K)
    ]

  own = critics(params, joint, True, corrected)
  q_t = np.min(
    [q[B:, 0] for q, _ in critics(target, joint, True, corrected)], 0
  )
  y = BATCH.r_t + BATCH.discount_t * (q_t - alpha * log_prob_t)
  q_tm1 = np.stack([q[:B, 0] for q, _ in own])
  policy, measured = _network(BATCH.obs_tm1, *running, True, corrected)
  action, log_prob = _sampled(policy, noises[1])
  x = np.concatenate([BATCH.obs_tm1, action], 1)
  q = np.min([q[:, 0] for q, _ in critics(params, x)], 0)
  return {
    'critic_loss': 0.5 * ((y - q_tm1) ** 2).mean(1).sum(),
    'actor_loss': np.mean(alpha * log_prob - q),
    'temperature_loss': -alpha * np.mean(log_prob - D),
    'y': y,
    'q_tm1': q_tm1,
    'of_critics': [each for _, each in own],
    'of_actor': measured,
  }


@pytest.mark.parametrize('corrected', slow_but(bool, [False, True]))
def test_the_losses_by_hand(corrected):
  """Also those with a twin that is another network."""
  warmup = 0 if corrected else 1
  online = _params()
  target = jax.tree.map(lambda leaf: 0.7 * leaf + 0.1, _twin(online))
  for twin in (_twin(online), target):
    expected = _by_hand(online, twin, corrected)
    (value, metrics), grads = _step(renorm_warmup=warmup)(
      online, twin, BATCH, KEY
    )
    for name in ('critic_loss', 'actor_loss'):
      assert float(metrics[name]) == pytest.approx(expected[name], rel=1e-4)
    # Statistics and the count of steps have terms of value 0.
    whole = ('critic_loss', 'actor_loss', 'temperature_loss')
    assert float(value) == pytest.approx(
      sum(expected[name] for name in whole), rel=1e-4
    )
    np.testing.assert_allclose(
      metrics['q_tm1'], expected['q_tm1'].mean(0), rtol=1e-3, atol=1e-5
    )
    agent = _make(renorm_warmup=warmup)
    np.testing.assert_allclose(
      agent.targets(online, twin, BATCH, KEY), expected['y'], rtol=1e-3
    )
    # The gradient of statistics is what they miss.
    for which, name in ((0, 'mean'), (1, 'var')):
      for layer in range(2):
        at = f'BatchRenorm_{layer}'
        missed = np.asarray(online['actor_statistics']['torso'][at][name])
        np.testing.assert_allclose(
          grads['actor_statistics']['torso'][at][name],
          missed - expected['of_actor'][layer][which],
          rtol=1e-3,
          atol=1e-5,
        )
        for k in range(K):
          missed = np.asarray(online['critic_statistics']['torso'][at][name][k])
          np.testing.assert_allclose(
            grads['critic_statistics']['torso'][at][name][k],
            missed - expected['of_critics'][k][layer][which],
            rtol=1e-3,
            atol=1e-5,
          )
    assert float(grads['steps']) == -1.0


def test_the_correction_matters():
  twin = _twin(_params())
  one, other = (_by_hand(_params(), twin, c)['y'] for c in (False, True))
  assert np.abs(one - other).max() > 1e-2


@pytest.mark.parametrize('rule', ['self', 'hard'])
def test_no_gradient_flows_to_targets(rule):
  """Critics learn as toward numbers, through the statistics of both halves."""
  agent, online = _make(), _params()
  lifted = twins.make_rule(rule).lift(agent)
  target = () if rule == 'self' else _twin(online)
  y = jax.jit(lifted.targets)(online, target, BATCH, KEY)
  expected = _by_hand(online, _twin(online), False)
  np.testing.assert_allclose(y, expected['y'], rtol=1e-3)
  policy = TanhGaussianActor(sizes=(5,), action_dim=D, batch_norm=True)
  mean, log_std = policy.apply(
    {**online['actor'], 'batch_stats': online['actor_statistics']}, BATCH.obs_t
  )
  noise = jax.random.normal(jax.random.split(KEY)[0], (B, D))
  action_t = jnp.tanh(mean + jnp.exp(log_std) * noise)
  network = Critic(sizes=(4,), batch_norm=True)

  def toward_numbers(critic):
    loss = 0.0
    for k in range(K):
      at = lambda tree, k=k: jax.tree.map(lambda leaf: leaf[k], tree)
      q, _ = network.apply(
        {**at(critic), 'batch_stats': at(online['critic_statistics'])},
        jnp.concatenate([BATCH.obs_tm1, BATCH.obs_t]),
        jnp.concatenate([BATCH.a_tm1, action_t]),
        training=True,
        mutable=['batch_stats'],
      )
      loss += 0.5 * jnp.mean((y - q[:B]) ** 2)
    return loss

  wanted = jax.jit(jax.grad(toward_numbers))(online['critic'])
  found = jax.jit(jax.grad(lambda p: lifted.loss(p, target, BATCH, KEY)[0]))(
    online
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    found['critic'],
    wanted,
  )


# Learning.


def _learner(rule='hard', sync=2, **options):
  agent = _make(**options)
  adam = optax.adam(1e-2)
  return learner.make_learner(
    agent,
    learner.make_optimizers(
      agent,
      {'actor': adam, 'critic': adam, 'log_alpha': adam}
      | dict(statistics_optimizers(0.75)),
    ),
    ClockedTwin(twins.make_rule(rule), sync),
  )


def test_running_averages_and_their_twin():
  made = _learner(policy_delay=3)
  regress = jax.jit(made.regress)
  state = made.init(KEY).replace(online_params=_params())
  for step in range(1, 5):
    before, old = state, state.online_params
    key = jax.random.fold_in(before.key, before.gradient_steps)
    _, grads = _step(policy_delay=3)(old, before.target_params, BATCH, key)
    state, _ = regress(before, BATCH)
    new = state.online_params
    assert float(new['steps']) == step
    for name in ('critic_statistics', 'actor_statistics'):
      # old - (old - measured) / 4; those of the actor at every third step.
      moves = name == 'critic_statistics' or step == 3
      jax.tree.map(
        lambda a, b, g, moves=moves: np.testing.assert_allclose(
          a, b - 0.25 * g * moves, rtol=1e-3, atol=1e-5
        ),
        new[name],
        old[name],
        grads[name],
      )
    # Statistics move with the weights of the twin, and only then.
    source = _twin(new) if step % 2 == 0 else before.target_params
    jax.tree.map(np.testing.assert_array_equal, state.target_params, source)


def test_a_warm_up_counts_the_steps_of_a_network():
  """That of the actor ends later, as it takes one step in three."""
  made = _make(policy_delay=3, renorm_warmup=2)
  online = _params()
  loss = jax.jit(made.loss)

  def at(steps):
    now = online | {'steps': jnp.float32(steps)}
    _, metrics = loss(now, _twin(online), BATCH, KEY)
    return [float(metrics[name]) for name in ('critic_loss', 'actor_loss')]

  plain, corrected = (
    [each[name] for name in ('critic_loss', 'actor_loss')]
    for each in (_by_hand(online, _twin(online), c) for c in (False, True))
  )
  assert at(1) == pytest.approx(plain, rel=1e-4)
  assert at(2) == pytest.approx([corrected[0], plain[1]], rel=1e-4)
  assert at(5) == pytest.approx([corrected[0], plain[1]], rel=1e-4)
  assert at(6) == pytest.approx(corrected, rel=1e-4)


def test_acting_uses_running_averages():
  """Rows do not see each other, and nothing is random in evaluation."""
  agent, online = _make(), _params()
  obs = BATCH.obs_tm1
  greedy = agent.acting.greedy(online, obs)
  policy, _ = _network(
    obs,
    *(
      jax.tree.map(np.asarray, online[name])
      for name in ('actor', 'actor_statistics')
    ),
  )
  np.testing.assert_allclose(greedy, np.tanh(policy[:, :D]), rtol=1e-3)
  np.testing.assert_allclose(
    agent.acting.greedy(online, obs[:1]), greedy[:1], rtol=1e-5
  )
  values = agent.values(online, obs)
  np.testing.assert_allclose(
    agent.values(online, obs[:1]), values[:1], rtol=1e-4
  )
  # Observations alone are answered by running averages, too.
  answer = agent.bootstrap(online, _twin(online), obs, KEY)
  assert answer.shape == (B, 1)


def test_what_is_refused():
  actor = TanhGaussianActor(sizes=(4,), action_dim=D)
  with pytest.raises(ValueError, match="'crossq' needs networks with batch_no"):
    make_actor_critic('crossq', actor, Critic(sizes=(4,)), BATCH.obs_tm1)
  with pytest.raises(ValueError, match='batch_norm=False'):
    make_actor_critic(
      'sac', actor, Critic(sizes=(4,), batch_norm=True), BATCH.obs_tm1
    )
  with pytest.raises(ValueError, match='renorm_warmup=-1 must be 0 or more'):
    _make(renorm_warmup=-1)
  with pytest.raises(ValueError, match='have no whole targets'):
    _make().loss(_params(), _twin(_params()), BATCH, KEY, bootstrap=None)
