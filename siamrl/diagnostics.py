"""What the twin does to learning: pure functions, for a probe batch.

Everything here can be jitted and vmapped, and branches on no value. A `Panel`
bundles the measurements for a runner, host or compiled: it calls `init` once,
`follow` after gradient steps (only where `Panel.follows`), and `measure`
wherever it wants a row.

Nothing says "theta_bar": a twin is looked at through `Twin.params` (parameters
beside the online ones), `Agent.bootstrap` (what targets are made of, which
`Agent.expected` reads as values) and a lifted agent's loss (the gradient), and
so every rule fits.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
from flax import struct
import jax
import jax.numpy as jnp
import optax

from siamrl import twins
from siamrl.learner import ClockedTwin, Learner, make_move
from siamrl.networks.activations import Activations
from siamrl.types import (
  Agent,
  Metrics,
  Params,
  TrainState,
  Transition,
)


# Distances.


def _layers(tree: Params) -> dict[str, list[chex.Array]]:
  """Leaves by layer: the first two modules on their path, 'torso/Conv_0'.

  What stands before Flax's 'params', such as the name of one of several
  networks, stays in front. A leaf outside of any module is a layer by itself.
  """
  found: dict[str, list[chex.Array]] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    text = jax.tree_util.keystr(path, simple=True, separator='/')
    before, _, within = f'/{text}'.rpartition('/params/')
    *modules, name = within.strip('/').split('/')
    layer = [*before.strip('/').split('/'), *modules[:2]]
    found.setdefault('/'.join(filter(None, layer)) or name, []).append(leaf)
  return found


def parameter_distance(
  online: Params, twin: Params
) -> tuple[chex.Array, dict[str, chex.Array]]:
  """||theta - theta_bar||_2 / ||theta||_2, and the same of each layer.

  Args:
    online: theta.
    twin: theta_bar in the same structure, as `Twin.params` has it.

  Returns:
    (of all parameters [], of each layer []); 0 where the two are equal, inf
    where theta = 0 and theta_bar is not.
  """

  def squares(tree: Params) -> dict[str, chex.Array]:
    return {
      name: sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in group)
      for name, group in _layers(tree).items()
    }

  def relative(gap: chex.Array, size: chex.Array) -> chex.Array:
    # The quotient of 0 / 0 is not chosen; that of no numbers is.
    return jnp.where(gap == 0, 0.0, jnp.sqrt(gap / size))

  gaps = squares(
    jax.tree.map(
      lambda o, t: o.astype(jnp.float32) - t.astype(jnp.float32), online, twin
    )
  )
  sizes = squares(online)
  whole = relative(
    jnp.sum(jnp.stack(list(gaps.values()))),
    jnp.sum(jnp.stack(list(sizes.values()))),
  )
  return whole, {name: relative(gap, sizes[name]) for name, gap in gaps.items()}


def functional_distance(q: chex.Array, q_twin: chex.Array) -> chex.Array:
  """E|Q - Q_bar| over states and actions.

  Args:
    q: [B, A].
    q_twin: [B, A].
  """
  return jnp.mean(jnp.abs(q - q_twin))


def disagreement(actions: chex.Array, others: chex.Array) -> chex.Array:
  """How often actions differ, or, where they are continuous, by how much.

  E 1[a != a'], or E |a - a'| over observations and dimensions. Of the greedy
  actions before and after a gradient step it is the policy churn of Schaul et
  al. (2022).

  Args:
    actions: int [B], or float [B, D].
    others: the same of another policy.
  """
  if jnp.issubdtype(actions.dtype, jnp.floating):
    return jnp.mean(jnp.abs(actions - others))
  return jnp.mean(actions != others)


# The twin's age.


class Clock(NamedTuple):
  """Tells how old the content of a twin is, in gradient steps.

  Attributes:
    init: online_params -> ages, of a twin that is as old as the run. Only the
      shapes of parameters are looked at, here and below.
    advance: (online_params, ages, before, after) -> ages, from a number of
      gradient steps to another one.
    read: (online_params, ages) -> (mean over all parameters [], of each layer).
    moves: (online_params, ages, before, after) -> (ages, moves int32 [], last
      int32 []): `advance`, with the number of gradient steps at which the rule
      moved any part of the twin, and the last of them, `before` for none. What
      keeps no parameters, such as `self_copy`, never moves.
  """

  init: Callable[[Params], Any]
  advance: Callable[[Params, Any, chex.Numeric, chex.Numeric], Any]
  read: Callable[[Params, Any], tuple[chex.Array, dict[str, chex.Array]]]
  moves: Callable[
    [Params, Any, chex.Numeric, chex.Numeric],
    tuple[Any, chex.Array, chex.Array],
  ]


def make_clock(rule: ClockedTwin) -> Clock:
  """A clock that runs a rule on ages in place of parameters.

  A twin that is a weighted mean of past online parameters has the same weighted
  mean of their ages. So the rule itself is applied to arrays that hold the age
  of what is there, 0 for the online network, and each gradient step makes the
  twin's a step older: t mod C under a hard copy every C, and
  (1 - tau) (1 - (1 - tau)**t) / tau, in the long run (1 - tau) / tau, under
  `soft(tau)`. A parameter's elements have one age between them. Rules with a
  `Twin.shift` stack several networks: there p.shape[:1] of a parameter p have.

  Ages rather than dates: next to a date of 10**7 gradient steps, float32 does
  not know tenths. What a twin keeps in integers is its own, and does not age.

  Args:
    rule: a rule that takes no weighted means of past parameters, with weights
      that depend neither on them nor on a report, must have a `Twin.clock`
      that does.

  Raises:
    ValueError: the name of its order is unknown, or it reads reports and has no
      clock.
  """
  rule.check()
  stacked = rule.twin.shift is not None
  if rule.twin.clock is not None:
    rule = rule._replace(twin=rule.twin.clock)
  if rule.twin.reads_report:
    raise ValueError(
      'a rule that reads reports needs a Twin.clock for its age to be told'
    )
  move = make_move(rule)

  def now(online_params: Params) -> Params:
    return jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape[:1] if stacked else 1, jnp.float32),
      online_params,
    )

  def older(ages: Any) -> Any:
    return jax.tree.map(
      lambda leaf: leaf + jnp.issubdtype(leaf.dtype, jnp.floating), ages
    )

  def moves(
    online_params: Params, ages: Any, before: chex.Numeric, after: chex.Numeric
  ) -> tuple[Any, chex.Array, chex.Array]:
    zeros = now(online_params)

    def step(
      taken: chex.Numeric, carry: tuple[Any, chex.Array, chex.Array]
    ) -> tuple[Any, chex.Array, chex.Array]:
      ages, count, last = carry
      if rule.order == 'after':
        ages = older(ages)
      ages, moved = _moved(ages, move(zeros, ages, taken + 1, None)[1])
      if rule.order == 'before':
        ages = older(ages)
      return ages, count + moved, jnp.where(moved, taken + 1, last)

    first = jnp.asarray(before, jnp.int32)
    return jax.lax.fori_loop(
      before, after, step, (ages, jnp.zeros_like(first), first)
    )

  def advance(
    online_params: Params, ages: Any, before: chex.Numeric, after: chex.Numeric
  ) -> Any:
    return moves(online_params, ages, before, after)[0]

  def read(
    online_params: Params, ages: Any
  ) -> tuple[chex.Array, dict[str, chex.Array]]:
    shown = _layers(rule.twin.params(now(online_params), ages))
    sizes = {
      name: [leaf.size for leaf in group]
      for name, group in _layers(online_params).items()
    }
    sums = {
      name: sum(
        size * jnp.mean(age)
        for size, age in zip(sizes[name], group, strict=True)
      )
      for name, group in shown.items()
    }
    total = sum(sum(group) for group in sizes.values())
    mean = jnp.sum(jnp.stack(list(sums.values()))) / total
    return mean, {name: sums[name] / sum(sizes[name]) for name in sums}

  return Clock(lambda online: rule.twin.init(now(online)), advance, read, moves)


def _moved(before: Any, after: Any) -> tuple[Any, chex.Array]:
  """What a rule made of a state, and int32 [] 1 if it changed any of it."""
  changed = [
    jnp.any(one != other)
    for one, other in zip(
      jax.tree.leaves(before), jax.tree.leaves(after), strict=True
    )
  ]
  if not changed:
    return after, jnp.zeros((), jnp.int32)
  return after, jnp.any(jnp.stack(changed)).astype(jnp.int32)


# Targets.


def target_drift(
  before: chex.Array, after: chex.Array, steps: chex.Numeric = 1
) -> chex.Array:
  """E|y_after - y_before| / steps, of targets on the same batch.

  Args:
    before: [B].
    after: [B], some gradient steps later.
    steps: how many; the distance between two looks is not always the same.

  Returns:
    [], mean change per gradient step; NaN where there was none.
  """
  gap = jnp.mean(jnp.abs(after - before))
  return jnp.where(steps > 0, gap / jnp.maximum(steps, 1), jnp.nan)


class TDSplit(NamedTuple):
  """The two parts of a TD error.

  Attributes:
    own: [] the TD error that the online network has with itself.
    twin: [] what the twin adds.
  """

  own: chex.Array
  twin: chex.Array


def td_split(
  q_tm1: chex.Numeric,
  r_t: chex.Numeric,
  discount_t: chex.Numeric,
  q_t: chex.Array,
  q_t_online: chex.Array,
) -> TDSplit:
  """Splits the TD error with a target network (Piche et al. 2022).

  delta_TN = delta_theta + discount_t * (max_a q_t[a] - max_a q_t_online[a]).
  Written for one transition. It is of the form `max`, whichever form is learnt.

  Args:
    q_tm1: [] online value of the action taken.
    r_t: [] the reward.
    discount_t: [] discount**n, 0 where the episode terminated.
    q_t: [A] the twin's values of the successor; A = 1 of an actor's action.
    q_t_online: [A] its online values.
  """
  return TDSplit(
    r_t + discount_t * jnp.max(q_t_online) - q_tm1,
    discount_t * (jnp.max(q_t) - jnp.max(q_t_online)),
  )


def churn(
  learner: Learner,
  train: TrainState,
  batch: Transition,
  probe: Transition,
) -> Metrics:
  """What one gradient step on a batch does to targets and to actions.

  The step is taken and thrown away. Of targets it is E|y_after - y_before|, as
  the code of iS-QL has it (Vincent et al. 2025). Where targets come from a twin
  that stands still it is 0. A twin that the step moves, by its schedule,
  changes them too: a hard copy by all that was learnt since the last one, so
  that a step which meets it stands out (`churn_synced` of a `Panel`).

  Args:
    learner: takes the step.
    train: its state; not changed.
    batch: to learn from.
    probe: held out.

  Returns:
    `target_churn_train` on the batch, `target_churn` on the probe, and of an
    agent that acts `policy_churn`, the `disagreement` of its greedy actions on
    the probe's `obs_tm1`.
  """
  agent = learner.agent
  stepped, _ = learner.regress(train, batch)

  def targets_of(state: TrainState, data: Any) -> chex.Array:
    return agent.targets(
      state.online_params, state.target_params, data, _same_key(train)
    )

  metrics = {
    'target_churn_train': target_drift(
      targets_of(train, batch), targets_of(stepped, batch)
    ),
    'target_churn': target_drift(
      targets_of(train, probe), targets_of(stepped, probe)
    ),
  }
  if agent.acting is not None:
    greedy = agent.acting.greedy
    metrics['policy_churn'] = disagreement(
      greedy(train.online_params, probe.obs_tm1),
      greedy(stepped.online_params, probe.obs_tm1),
    )
  return metrics


def _same_key(train: TrainState) -> chex.PRNGKey:
  """For whatever needs chance: the same at every look of a run."""
  # The keys of gradient steps are folded with other numbers.
  return jax.random.fold_in(train.key, 2**32 - 1)


# Features.


# Vmapped, one matrix after the other: LAPACK's batches wait for threads of the
# pool that they run in, for ever where several CPU devices have one each.
@jax.custom_batching.sequential_vmap
def singular_values(features: chex.Array) -> chex.Array:
  """Those of features [N, D], float32 [min(N, D)], descending.

  Not by the eigenvalues of the Gram matrix: what they lose, all below
  sqrt(float32's eps) of the largest, comes back as noise that hundreds of units
  add up, and a matrix of rank one gets an `srank` of dozens. A QR decomposition
  first is as accurate as without, and five times faster for 2,048 x 512 on a
  CPU.
  """
  chex.assert_rank(features, 2)
  features = features.astype(jnp.float32)
  if features.shape[0] > features.shape[1]:
    features = jnp.linalg.qr(features, mode='r')
  return jnp.linalg.svd(features, compute_uv=False)


def srank(values: chex.Array, delta: chex.Numeric = 0.01) -> chex.Array:
  """The effective rank of Kumar et al. (2021), section 3.

  min {k: sum_{i <= k} sigma_i >= (1 - delta) sum_i sigma_i}

  Args:
    values: [K] singular values, descending; not centred, not squared.
    delta: in [0, 1).

  Returns:
    float32 []; 0 if all are 0, and not a number if one is not.
  """
  sums = jnp.cumsum(values)
  whole = sums[-1]
  short = jnp.sum(sums < (1 - delta) * whole, dtype=jnp.float32)
  return jnp.where(whole > 0, short + 1, whole)


def effective_rank(values: chex.Array) -> chex.Array:
  """exp of the entropy of sigma / sum(sigma) (Roy & Vetterli 2007).

  Args:
    values: [K] singular values.

  Returns:
    float32 [] from 1 to K; 0 if all are 0, and not a number if one is not.
  """
  total = jnp.sum(values)
  shares = values / jnp.where(total > 0, total, 1.0)
  entropy = jnp.sum(jax.scipy.special.entr(shares))
  return jnp.where(total > 0, jnp.exp(entropy), total)


def dormancy(layer: chex.Array) -> chex.Array:
  """The score of each unit of a layer (Sokar et al. 2023, eq. 1).

  s_i = E|h_i| / mean_k E|h_k|, with 1e-9 added to the divisor as in the
  authors' code, over states and, of a convolution, over places: its units are
  channels.

  Args:
    layer: [B, ..., units] after the ReLU.

  Returns:
    [units], 1 on average; 0 where the whole layer is silent.
  """
  sizes = jnp.mean(jnp.abs(layer), range(layer.ndim - 1))
  return sizes / (jnp.mean(sizes) + 1e-9)


def dormant_fraction(
  scores: Mapping[str, chex.Array], threshold: chex.Numeric
) -> tuple[chex.Array, dict[str, chex.Array]]:
  """The fraction of units whose score is at most a threshold.

  Args:
    scores: [units] of each hidden layer, see `dormancy`.
    threshold: Sokar's tau.

  Returns:
    (of all units [], of each layer []); not a number where a score is not.
  """
  dormant = {
    name: jnp.where(jnp.isnan(score), score, score <= threshold)
    for name, score in scores.items()
  }
  whole = jnp.mean(jnp.concatenate(list(dormant.values())))
  return whole, {name: jnp.mean(units) for name, units in dormant.items()}


def dormant_overlap(
  before: Mapping[str, chex.Array], after: Mapping[str, chex.Array]
) -> chex.Array:
  """The fraction of units dormant before that are dormant after.

  |before and after| / |before|, as in the code of ReDo (Sokar et al. 2023).

  Args:
    before: bool [units] of each layer.
    after: the same, later.

  Returns:
    [], NaN where none was dormant before.
  """
  both = [jnp.sum(units & after[name]) for name, units in before.items()]
  return jnp.sum(jnp.stack(both)) / sum(
    jnp.sum(units) for units in before.values()
  )


# Over-estimation and divergence.


def monte_carlo(
  reward: chex.Array,
  terminated: chex.Array,
  truncated: chex.Array,
  discount: chex.Numeric,
) -> tuple[chex.Array, chex.Array]:
  """Discounted returns of recorded episodes, and how much of each is unknown.

  An episode that terminates has a return. One that is cut, by truncation or by
  the end of the recording, goes on unseen: G_t is the part that was seen, and
  discount**n, n the steps from t to the cut, is the weight of the value that is
  missing.

  Args:
    reward: [T, ...] that followed each step.
    terminated: bool [T, ...] whether the task ended with it.
    truncated: bool [T, ...] whether it was cut there.
    discount: per step.

  Returns:
    (returns [T, ...], tails [T, ...]): a return's error is tails * the value of
    where it was cut, and 0 where the episode terminated.
  """

  def step(carry, inputs):
    reward, terminated, truncated = inputs
    # Beyond a cut nothing is known: an empty sum, all of its weight to come.
    after, tail = jax.tree.map(
      lambda known, unknown: jnp.where(truncated, unknown, known),
      carry,
      beyond,
    )
    goes_on = jnp.where(terminated, 0.0, discount)
    result = reward + goes_on * after, goes_on * tail
    return result, result

  last = reward[-1].astype(jnp.float32)
  beyond = (jnp.zeros_like(last), jnp.ones_like(last))
  _, (returns, tails) = jax.lax.scan(
    step,
    beyond,
    (reward.astype(jnp.float32), terminated, truncated),
    reverse=True,
  )
  return returns, tails


def overestimation(
  values: chex.Array,
  returns: chex.Array,
  tails: chex.Array,
  tolerance: chex.Numeric = 0.01,
  counted: chex.Array | None = None,
) -> Metrics:
  """E[max_a Q - G] over steps whose return is known, after DDQN's figure 3.

  (van Hasselt et al. 2016.) Steps with a tail above the tolerance are left out.
  To count a cut return as whole would make values look over-estimated by the
  missing tail, and to fill the tail in with max_a Q would hide what is to be
  measured. What is left is biased by at most tolerance * the largest value.

  Args:
    values: [T, ...] max_a Q at each step.
    returns: [T, ...] of `monte_carlo`.
    tails: [T, ...] of `monte_carlo`; 1 or more leaves a step out.
    tolerance: in [0, 1); 0 for terminated episodes only.
    counted: bool [T, ...] the steps that there were; None for all.

  Returns:
    `overestimation`, `return_mc` (their mean return) and `known_returns` (the
    fraction of steps whose return is known); NaN where there is none.
  """
  if counted is None:
    counted = jnp.ones_like(values, bool)
  known = (tails <= tolerance) & counted
  return {
    'overestimation': jnp.mean(values - returns, where=known),
    'return_mc': jnp.mean(returns, where=known),
    'known_returns': jnp.sum(known) / jnp.sum(counted),
  }


def bias_exact(
  q: chex.Array, q_star: chex.Array
) -> tuple[chex.Array, chex.Array]:
  """The error of values against those of acting optimally.

  Args:
    q: [S, A].
    q_star: [S, A].

  Returns:
    (mean_s [max_a q - max_a q_star], max_{s, a} |q - q_star|).
  """
  bias = jnp.mean(jnp.max(q, -1) - jnp.max(q_star, -1))
  return bias, jnp.max(jnp.abs(q - q_star))


def soft_divergence(
  q: chex.Array, reward_bound: chex.Numeric, discount: chex.Numeric
) -> chex.Array:
  """1[max |Q| > r_max / (1 - discount)] (van Hasselt et al. 2018).

  Args:
    q: [...], values; one that is not a number has diverged.
    reward_bound: r_max, the largest |reward| that is learnt from.
    discount: in [0, 1).

  Returns:
    float32 [], 0 or 1.
  """
  bound = reward_bound / (1 - discount)
  return 1.0 - (jnp.max(jnp.abs(q)) <= bound).astype(jnp.float32)


# Gradients, and other rules' beside the one in use.


def gradient_cosine(one: Params, other: Params) -> chex.Array:
  """<g, h> / (||g|| ||h||) over all parameters; 0 where either is 0."""
  product = optax.tree.norm(one) * optax.tree.norm(other)
  return jnp.where(
    product == 0,
    0.0,
    optax.tree.vdot(one, other) / jnp.where(product == 0, 1.0, product),
  )


def strided_soft(tau: chex.Numeric, steps: chex.Numeric) -> ClockedTwin:
  """`soft(tau)` in strides, for a shadow that costs less.

  1 - (1 - tau)**steps every `steps` gradient steps; the same as `soft(tau)`
  where the online parameters stand still in between.

  Args:
    tau: per gradient step.
    steps: of a stride.
  """
  return ClockedTwin(twins.soft(1 - (1 - tau) ** steps), steps)


# Rules that a run can be compared with, and the strides of the soft one: moving
# it at every gradient step would cost a pass over all parameters.
SHADOWS = ('hard', 'soft', 'self', 'residual', 'frozen')
STRIDE = 16


def matched_shadows(
  names: Sequence[str], age: chex.Numeric
) -> dict[str, ClockedTwin]:
  """Rules to compare with that are as old on average as the one in use.

  A hard twin of period 2 age + 1 and a soft one of rate 1 / (age + 1) are. The
  soft one moves in strides of `STRIDE` gradient steps, and so it is no younger
  than half of one.

  Args:
    names: of `SHADOWS`.
    age: gradient steps, such as `TwinSpec.mean_age`; may be traced.
  """
  # A period that no run reaches is as good as any beyond it, and an int32.
  period = jnp.clip(jnp.round(2 * age + 1), 1, 2**30).astype(jnp.int32)
  rules = {
    'hard': ClockedTwin(twins.hard(), period),
    'soft': strided_soft(1 / (age + 1), STRIDE),
    'self': ClockedTwin(twins.self_copy()),
    'residual': ClockedTwin(twins.residual()),
    'frozen': ClockedTwin(twins.frozen(), twins.NEVER),
  }
  return {name: rules[name] for name in names}


def _born(base_agent: Agent, lift: Callable[[Agent], Agent]) -> Any:
  """Shapes and types of the parameters of a lifted agent; nothing is drawn."""
  agent = lift(base_agent)
  return jax.eval_shape(lambda seed: agent.init(jax.random.key(seed)), 0)


def shadows_init(
  shadows: Mapping[str, ClockedTwin], base_agent: Agent, online_params: Params
) -> dict[str, Any]:
  """Target parameters that other rules would have, beside those of a run.

  Args:
    shadows: the rules, by names of one's own.
    base_agent: not lifted by any twin.
    online_params: of the run.

  Returns:
    By name, each in buffers of its own; `self_copy` has none.

  Raises:
    ValueError: a rule has other online parameters than the base agent or moves
      them, as `chain` and `iterated_heads` do, or the run has.
  """

  def shapes(params: Params) -> Any:
    return jax.tree.map(jnp.shape, params)

  plain = shapes(_born(base_agent, lambda agent: agent))
  for name, rule in shadows.items():
    own = shapes(_born(base_agent, rule.twin.lift))
    if rule.twin.shift is not None or own != plain:
      raise ValueError(
        f'{name!r} cannot be a shadow: its online parameters are not those of '
        'the base agent'
      )
    if shapes(online_params) != plain:
      raise ValueError(
        f'{name!r} cannot be a shadow: the rule in use has other online '
        'parameters than the base agent'
      )
  twinned = twins.part(base_agent, online_params)
  return {name: rule.twin.init(twinned) for name, rule in shadows.items()}


def _still(rule: ClockedTwin) -> bool:
  """Whether a rule is known never to move."""
  return isinstance(rule.sync, int) and rule.sync >= twins.NEVER


def shadows_follow(
  shadows: Mapping[str, ClockedTwin],
  state: Mapping[str, Any],
  online_params: Params,
  before: chex.Numeric,
  after: chex.Numeric,
) -> dict[str, Any]:
  """Moves the shadows that are due.

  Args:
    shadows: the rules.
    state: of `shadows_init`.
    online_params: the newest, of what has a twin.
    before: gradient steps when it was called last.
    after: gradient steps now. A rule is applied once if its clock has crossed a
      multiple of its period since: call it after every gradient step, or at
      least once in the shortest period.
  """

  def moved(rule: ClockedTwin, target: Any) -> Any:
    if _still(rule) or not jax.tree.leaves(target):
      return target
    due = (after + rule.offset) // rule.sync > (
      before + rule.offset
    ) // rule.sync
    return jax.lax.cond(
      due,
      rule.twin.update,
      lambda online, target, clock: target,
      online_params,
      target,
      after + rule.offset,
    )

  return {name: moved(rule, state[name]) for name, rule in shadows.items()}


def counterfactuals(
  agent: Agent,
  base_agent: Agent,
  shadows: Mapping[str, ClockedTwin],
  state: Mapping[str, Any],
  train: TrainState,
  batch: Transition,
) -> Metrics:
  """The targets and gradients that other rules would have given now.

  Args:
    agent: the run's, lifted by the rule in use.
    base_agent: not lifted.
    shadows: the other rules.
    state: their target parameters.
    train: the run's state.
    batch: to learn from.

  Returns:
    For each rule: `shadow_target/NAME`, the mean target; `shadow_gap/NAME`, the
    mean |target - target in use|; `cosine/NAME` and `norm_ratio/NAME` of its
    gradient to the one in use (the ratio is NaN or inf where that is 0). Arrays
    whose gradients are the same to the bit are left out: what no twin has a
    part in, such as an actor's own loss, makes no two rules alike. Where all
    are the same, all count.
  """
  online_params = train.online_params
  key = jax.random.fold_in(train.key, train.gradient_steps)

  def answer(agent: Agent, target_params: Any) -> tuple[chex.Array, Params]:
    grads, _ = jax.grad(agent.loss, has_aux=True)(
      online_params, target_params, batch, key
    )
    y = agent.targets(online_params, target_params, batch, key)
    return y, grads

  y, grads = answer(agent, train.target_params)
  metrics: Metrics = {}
  for name, rule in shadows.items():
    y_other, other = answer(rule.twin.lift(base_agent), state[name])
    here, there = _where_they_differ(grads, other)
    metrics |= {
      f'shadow_target/{name}': jnp.mean(y_other),
      f'shadow_gap/{name}': target_drift(y, y_other),
      f'cosine/{name}': gradient_cosine(here, there),
      f'norm_ratio/{name}': optax.tree.norm(there) / optax.tree.norm(here),
    }
  return metrics


def _where_they_differ(one: Params, other: Params) -> tuple[Params, Params]:
  """Both with zeros for arrays that are the same; unchanged if all are."""
  same = jax.tree.map(lambda a, b: jnp.all(a == b), one, other)
  some = ~jnp.all(jnp.stack(jax.tree.leaves(same)))

  def without(tree: Params) -> Params:
    return jax.tree.map(
      lambda leaf, drop: jnp.where(some & drop, 0, leaf), tree, same
    )

  return without(one), without(other)


# All of it, for a runner.


def _observed(batch: Any) -> chex.Array:
  """What a network is to answer: of transitions, what was acted upon."""
  return batch.obs_tm1 if isinstance(batch, Transition) else batch


class PanelState(struct.PyTreeNode):
  """What a panel remembers.

  Attributes:
    ages: of the twin, see `Clock`.
    measured_at: int32 [] gradient steps of the last measurement.
    synced_at: int32 [] gradient steps when the twin moved last; at first, when
      it was born.
    targets: on the probe, at the last measurement; NaN at first.
    dormant: bool [units] of each layer, then; none at first.
    shadows: target parameters of other rules.
    followed_at: int32 [] gradient steps when these moved last.
  """

  ages: Any
  measured_at: jax.Array
  synced_at: jax.Array
  targets: jax.Array
  dormant: dict[str, jax.Array]
  shadows: dict[str, Any]
  followed_at: jax.Array


# (params of the base agent, obs [B, ...]) -> what its network answers.
Look = Callable[[Params, Any], Activations]


def panel_share(iteration: chex.Numeric) -> Any:
  """The part of an iteration, in [0, 1), after which its panel is looked at.

  Another one each time, evenly spread by the golden ratio: at the end of every
  iteration, a twin whose period divides it would always be just copied. In the
  first one it is 0.618. So from one look to the next it is 0.618 or 1.618
  iterations.
  """
  return (iteration + 1) * 0.6180339887 % 1.0


class Panel(NamedTuple):
  """Measurements of a run as pure functions.

  Attributes:
    init: (train, probe) -> state, before the first gradient step.
    follow: (state, train) -> state, after every gradient step, or at least once
      in the shortest period of a shadow. Where not `follows`, it has nothing
      to do.
    measure: (state, train, probe, batch) -> (state, metrics by name, each []),
      at any cadence. The probe is the same batch each time, the other one to
      learn from. What compares with the last measurement is NaN at the first.
    follows: whether there are shadows that move.
  """

  init: Callable[[TrainState, Any], PanelState]
  follow: Callable[[PanelState, TrainState], PanelState]
  measure: Callable[
    [PanelState, TrainState, Any, Any],
    tuple[PanelState, Metrics],
  ]
  follows: bool


def make_panel(
  learner: Learner,
  *,
  look: Look | None = None,
  rank_states: int = 2_048,
  thresholds: Sequence[float] = (0.0, 0.025, 0.1),
  overlap_threshold: float = 0.025,
  reward_bound: chex.Numeric | None = None,
  discount: chex.Numeric | None = None,
  shadows: Mapping[str, ClockedTwin] | None = None,
  per_layer: bool = True,
) -> Panel:
  """Builds the panel of a run.

  A measurement costs six forward passes of the probe, two gradients of the
  batch and one more for each shadow, and the ranks: at the size of Nature DQN,
  on a CPU, the passes of a large probe are nearly all of it.

  Args:
    learner: the run's; the numbers of its twin may be traced.
    look: into the network of the learner's base agent, for ranks and dormant
      units, such as `functools.partial(activations, network)`; None to leave
      both out.
    rank_states: states of the probe, from its first, that ranks are taken of.
    thresholds: of dormant units.
    overlap_threshold: of the sets that `dormant_overlap` compares.
    reward_bound: for `soft_divergence`; None to leave it out.
    discount: per env step, for the same.
    shadows: other rules to compare with; see `shadows_init`.
    per_layer: whether to report layers too, as NAME/torso/Conv_0.

  Returns:
    A panel that measures `twin_age`, `twin_distance`, `functional_distance`,
    `greedy_disagreement`, `target_mean`, `target_drift` (per gradient step),
    what `churn` returns, `td_own_abs`, `td_split` and `td_split_abs` (the
    twin's part; of the form `max`, whichever is learnt), `q_max_abs`,
    `soft_divergence`, `srank`, `effective_rank`, `dormant_T` for each threshold
    T, `dormant_overlap`, and what `counterfactuals` returns. All are of the
    probe but `q_max_abs` and `soft_divergence`, which see the batch too.

    When it looked, beside them:
    - `drift_steps`, gradient steps since the last measurement, and
      `drift_syncs`, how often the twin moved meanwhile. `target_drift` and
      `dormant_overlap` compare these two moments; of a hard twin targets drift
      by syncs alone.
    - `churn_synced`, 1 where the twin moves with the gradient step of `churn`
      and 0 elsewhere: what targets churn then is of another kind.
    - `steps_since_sync`, gradient steps since the twin moved last. Of a hard
      twin it is the age, and distances to the network grow with it: what they
      have from measurement to measurement is partly this phase.
  """
  rules = dict(shadows or {})
  base_agent, agent, rule = learner.base, learner.agent, learner.clocked
  keeper = make_clock(rule)
  if look is not None:
    # Through the lift, which knows the network that values come from.
    look = rule.twin.lift(base_agent._replace(values=look)).values

  def _targets(train: TrainState, probe: Any) -> chex.Array:
    return agent.targets(
      train.online_params, train.target_params, probe, _same_key(train)
    )

  def _without_twin(train: TrainState) -> Callable[[Params, Any], chex.Array]:
    """What would be bootstrapped from if the online network were the twin."""

    def answer(params: Params, obs: Any) -> chex.Array:
      return base_agent.expected(
        base_agent.bootstrap(
          params, twins.part(base_agent, params), obs, _same_key(train)
        )
      )

    return rule.twin.lift(base_agent._replace(values=answer)).values

  def init(train: TrainState, probe: Any) -> PanelState:
    dormant: dict[str, jax.Array] = {}
    if look is not None:
      layers = jax.eval_shape(
        look, train.online_params, _observed(probe)
      ).layers
      dormant = {
        name: jnp.zeros(layer.shape[-1:], bool)
        for name, layer in layers.items()
      }
    targets = jax.eval_shape(_targets, train, probe)
    return PanelState(
      ages=keeper.init(twins.part(agent, train.online_params)),
      measured_at=jnp.copy(train.gradient_steps),
      synced_at=jnp.copy(train.gradient_steps),
      targets=jnp.full(targets.shape, jnp.nan, jnp.float32),
      dormant=dormant,
      shadows=shadows_init(rules, base_agent, train.online_params),
      followed_at=jnp.copy(train.gradient_steps),
    )

  def follow(state: PanelState, train: TrainState) -> PanelState:
    return state.replace(
      shadows=shadows_follow(
        rules,
        state.shadows,
        twins.part(agent, train.online_params),
        state.followed_at,
        train.gradient_steps,
      ),
      followed_at=jnp.copy(train.gradient_steps),
    )

  def named(
    name: str, measured: tuple[chex.Array, dict[str, chex.Array]]
  ) -> Metrics:
    whole, layers = measured
    if not per_layer:
      return {name: whole}
    return {name: whole} | {f'{name}/{at}': x for at, x in layers.items()}

  def compare(
    train: TrainState, beside: Params, probe: Any, batch: Any
  ) -> Metrics:
    """Answers of the network beside those of its twin."""
    online, obs = train.online_params, _observed(probe)
    q, q_twin = agent.values(online, obs), agent.values(beside, obs)
    metrics = {'functional_distance': functional_distance(q, q_twin)}
    if agent.acting is not None:
      greedy = agent.acting.greedy
      metrics['greedy_disagreement'] = disagreement(
        greedy(online, obs), greedy(beside, obs)
      )
    if agent.taken is None:
      return metrics
    q_tm1 = agent.taken(online, probe)
    split = jax.vmap(td_split)(
      # Of several networks their mean, as losses report it.
      jnp.mean(q_tm1.reshape(len(q_tm1), -1), 1),
      probe.r_t,
      probe.discount_t,
      agent.expected(
        agent.bootstrap(
          online, train.target_params, probe.obs_t, _same_key(train)
        )
      ),
      _without_twin(train)(online, probe.obs_t),
    )
    # Beyond the probe: values grow where the agent goes now.
    seen = jnp.concatenate([q, agent.values(online, batch.obs_tm1)])
    if reward_bound is not None and discount is not None:
      metrics['soft_divergence'] = soft_divergence(seen, reward_bound, discount)
    return metrics | {
      'td_own_abs': jnp.mean(jnp.abs(split.own)),
      'td_split': jnp.mean(split.twin),
      'td_split_abs': jnp.mean(jnp.abs(split.twin)),
      'q_max_abs': jnp.max(jnp.abs(seen)),
    }

  def measure(
    state: PanelState, train: TrainState, probe: Any, batch: Any
  ) -> tuple[PanelState, Metrics]:
    online, twinned = (
      train.online_params,
      twins.part(agent, train.online_params),
    )
    beside = rule.twin.params(twinned, train.target_params)
    y = _targets(train, probe)
    steps = train.gradient_steps
    ages, syncs, last = keeper.moves(
      twinned, state.ages, state.measured_at, steps
    )
    synced_at = jnp.where(syncs > 0, last, state.synced_at)
    drift_steps = steps - state.measured_at
    metrics = (
      named('twin_age', keeper.read(twinned, ages))
      | named('twin_distance', parameter_distance(twinned, beside))
      | {
        'target_mean': jnp.mean(y),
        'target_drift': target_drift(state.targets, y, drift_steps),
        'drift_steps': drift_steps.astype(jnp.float32),
        'drift_syncs': syncs.astype(jnp.float32),
        'steps_since_sync': (steps - synced_at).astype(jnp.float32),
        'churn_synced': keeper.moves(twinned, ages, steps, steps + 1)[1].astype(
          jnp.float32
        ),
      }
      | compare(train, twins.whole(agent, online, beside), probe, batch)
      | churn(learner, train, batch, probe)
    )
    dormant = state.dormant
    if look is not None:
      answer = look(online, _observed(probe))
      values = singular_values(answer.features[:rank_states])
      metrics['srank'] = srank(values).astype(jnp.float32)
      metrics['effective_rank'] = effective_rank(values)
      scores = {name: dormancy(x) for name, x in answer.layers.items()}
      if scores:
        for threshold in thresholds:
          metrics |= named(
            f'dormant_{threshold:g}', dormant_fraction(scores, threshold)
          )
        dormant = {name: s <= overlap_threshold for name, s in scores.items()}
        metrics['dormant_overlap'] = dormant_overlap(state.dormant, dormant)
    if rules:
      metrics |= counterfactuals(
        agent, base_agent, rules, state.shadows, train, batch
      )
    return state.replace(
      ages=ages,
      # Copies: the learner's own buffers are donated to its next step.
      measured_at=jnp.copy(train.gradient_steps),
      synced_at=synced_at,
      targets=y.astype(jnp.float32),
      dormant=dormant,
    ), metrics

  plain = twins.part(base_agent, _born(base_agent, lambda agent: agent))
  follows = any(
    not _still(shadow)
    and bool(jax.tree.leaves(jax.eval_shape(shadow.twin.init, plain)))
    for shadow in rules.values()
  )
  return Panel(init, follow, measure, follows)
