"""The panel: all measurements of a run, for a runner."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import chex
from flax import struct
import jax
import jax.numpy as jnp

from siamrl import twins
from siamrl.diagnostics.age import Clock, make_clock
from siamrl.diagnostics.distances import (
  disagreement,
  functional_distance,
  parameter_distance,
)
from siamrl.diagnostics.features import (
  THRESHOLDS,
  dormancy,
  dormant_overlap,
  feature_metrics,
)
from siamrl.diagnostics.shadows import (
  counterfactuals,
  is_still,
  shadows_follow,
  shadows_init,
  shape_of_params,
)
from siamrl.diagnostics.targets import churn, same_key, target_drift, td_split
from siamrl.diagnostics.values import KnownValues, soft_divergence
from siamrl.learner import ClockedTwin, Learner
from siamrl.losses import td
from siamrl.networks.activations import Activations
from siamrl.types import Metrics, Params, TrainState, Transition


def _observed(batch: Any) -> chex.Array:
  """The observations of a batch; for transitions, those acted upon."""
  return batch.obs_tm1 if isinstance(batch, Transition) else batch


class PanelState(struct.PyTreeNode):
  """The memory of a panel.

  Attributes:
    ages: ages of the twin's parameters, see `Clock`.
    measured_at: int32 [] gradient steps at the last measurement.
    synced_at: int32 [] gradient steps when the twin moved last, or when the run
      began.
    targets: targets on the probe at the last measurement; NaN at first.
    dormant: bool [units] of each layer, whether a unit was dormant at the last
      measurement; all False at first.
    shadows: target parameters of other rules.
    followed_at: int32 [] gradient steps when the shadows moved last.
  """

  ages: Any
  measured_at: jax.Array
  synced_at: jax.Array
  targets: jax.Array
  dormant: dict[str, jax.Array]
  shadows: dict[str, Any]
  followed_at: jax.Array


# (params of the base agent, obs [B, ...]) -> the activations of its network.
Look = Callable[[Params, Any], Activations]


def panel_share(iteration: chex.Numeric) -> Any:
  """The fraction of an iteration, in [0, 1), after which its panel is measured.

  It differs each time, evenly spread by the golden ratio, and starts at 0.618.
  At the end of every iteration, a twin whose period divides the iteration would
  always be freshly copied. Consecutive measurements are 0.618 or 1.618
  iterations apart.
  """
  return (iteration + 1) * 0.6180339887 % 1.0


class Panel(NamedTuple):
  """The measurements of a run as pure functions.

  Attributes:
    init: (train, probe) -> state, before the first gradient step.
    follow: (state, train) -> state. Call it after every gradient step, or at
      least once in the shortest period of a shadow; it does nothing unless
      `follows`.
    measure: (state, train, probe, batch) -> (state, metrics by name, each []).
      Call it at any time, with the same probe each time and a batch of training
      data. Metrics that compare with the last measurement are NaN at the first.
    follows: whether there are shadows that move.
  """

  init: Callable[[TrainState, Any], PanelState]
  follow: Callable[[PanelState, TrainState], PanelState]
  measure: Callable[
    [PanelState, TrainState, Any, Any],
    tuple[PanelState, Metrics],
  ]
  follows: bool


@dataclasses.dataclass(frozen=True, eq=False)
class _Measuring:
  """The functions of a panel; `make_panel` describes the other fields.

  Attributes:
    look: as in `make_panel`, lifted by the rule, which picks the network that
      values come from.
    clock: tells the twin's age.
  """

  learner: Learner
  look: Look | None
  rank_states: int
  thresholds: Sequence[float]
  overlap_threshold: float
  reward_bound: chex.Numeric | None
  discount: chex.Numeric | None
  shadows: Mapping[str, ClockedTwin]
  per_layer: bool
  known: KnownValues | None
  clock: Clock

  def init(self, train: TrainState, probe: Any) -> PanelState:
    """The state before the first gradient step."""
    base_agent, agent = self.learner.base, self.learner.agent
    dormant: dict[str, jax.Array] = {}
    if self.look is not None:
      layers = jax.eval_shape(
        self.look, train.online_params, _observed(probe)
      ).layers
      dormant = {
        name: jnp.zeros(layer.shape[-1:], bool)
        for name, layer in layers.items()
      }
    targets = jax.eval_shape(self._targets, train, probe)
    return PanelState(
      ages=self.clock.init(twins.part(agent, train.online_params)),
      measured_at=jnp.copy(train.gradient_steps),
      synced_at=jnp.copy(train.gradient_steps),
      targets=jnp.full(targets.shape, jnp.nan, jnp.float32),
      dormant=dormant,
      shadows=shadows_init(self.shadows, base_agent, train.online_params),
      followed_at=jnp.copy(train.gradient_steps),
    )

  def follow(self, state: PanelState, train: TrainState) -> PanelState:
    """The state after the shadows have followed the online network."""
    return state.replace(
      shadows=shadows_follow(
        self.shadows,
        state.shadows,
        twins.part(self.learner.agent, train.online_params),
        state.followed_at,
        train.gradient_steps,
      ),
      followed_at=jnp.copy(train.gradient_steps),
    )

  def measure(
    self, state: PanelState, train: TrainState, probe: Any, batch: Any
  ) -> tuple[PanelState, Metrics]:
    """Computes all metrics, and the state to compare the next ones with."""
    agent, online = self.learner.agent, train.online_params
    twinned = twins.part(agent, online)
    beside = self.learner.clocked.twin.params(twinned, train.target_params)
    y = self._targets(train, probe)
    steps = train.gradient_steps
    ages, syncs, last = self.clock.moves(
      twinned, state.ages, state.measured_at, steps
    )
    synced_at = jnp.where(syncs > 0, last, state.synced_at)
    drift_steps = steps - state.measured_at
    metrics = (
      self._named('twin_age', self.clock.read(twinned, ages))
      | self._named('twin_distance', parameter_distance(twinned, beside))
      | {
        'target_mean': jnp.mean(y),
        'target_drift': target_drift(state.targets, y, drift_steps),
        'drift_steps': drift_steps.astype(jnp.float32),
        'drift_syncs': syncs.astype(jnp.float32),
        'steps_since_sync': (steps - synced_at).astype(jnp.float32),
        'churn_synced': self.clock.moves(twinned, ages, steps, steps + 1)[
          1
        ].astype(jnp.float32),
      }
      | self._answers(train, twins.whole(agent, online, beside), probe, batch)
      | churn(self.learner, train, batch, probe)
    )
    dormant, of_features = self._features(state, online, probe)
    metrics |= of_features
    if self.shadows or self.known is not None:
      metrics |= counterfactuals(
        agent,
        self.learner.base,
        self.shadows,
        state.shadows,
        train,
        batch,
        self.known,
      )
    return state.replace(
      ages=ages,
      # Copied, since the learner's own buffers are donated to its next step.
      measured_at=jnp.copy(train.gradient_steps),
      synced_at=synced_at,
      targets=y.astype(jnp.float32),
      dormant=dormant,
    ), metrics

  @property
  def follows(self) -> bool:
    """Whether there are shadows that move."""
    base_agent = self.learner.base
    plain = twins.part(
      base_agent, shape_of_params(base_agent, lambda agent: agent)
    )
    return any(
      not is_still(shadow)
      and bool(jax.tree.leaves(jax.eval_shape(shadow.twin.init, plain)))
      for shadow in self.shadows.values()
    )

  def _targets(self, train: TrainState, probe: Any) -> chex.Array:
    return self.learner.agent.targets(
      train.online_params, train.target_params, probe, same_key(train)
    )

  def _without_twin(self, train: TrainState) -> Callable[[Params, Any], Any]:
    """The answers to bootstrap from if the network were its own twin."""
    base_agent = self.learner.base

    def answer(params: Params, obs: Any) -> Any:
      return base_agent.bootstrap(
        params, twins.part(base_agent, params), obs, same_key(train)
      )

    lift = self.learner.clocked.twin.lift
    return lift(base_agent._replace(values=answer)).values

  def _named(
    self, name: str, measured: tuple[chex.Array, dict[str, chex.Array]]
  ) -> Metrics:
    whole, layers = measured
    if not self.per_layer:
      return {name: whole}
    return {name: whole} | {f'{name}/{at}': x for at, x in layers.items()}

  def _answers(
    self, train: TrainState, beside: Params, probe: Any, batch: Any
  ) -> Metrics:
    """Metrics that compare the network's answers with its twin's."""
    agent = self.learner.agent
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
      # The mean over several networks, as losses report it.
      jnp.mean(q_tm1.reshape(len(q_tm1), -1), 1),
      probe.r_t,
      probe.discount_t,
      agent.expected(
        agent.bootstrap(
          online, train.target_params, probe.obs_t, same_key(train)
        )
      ),
      agent.expected(self._without_twin(train)(online, probe.obs_t)),
    )
    metrics |= self._distributions(train, beside, probe)
    # The batch counts too, since values grow where the agent is now.
    seen = jnp.concatenate([q, agent.values(online, batch.obs_tm1)])
    if self.reward_bound is not None and self.discount is not None:
      metrics['soft_divergence'] = soft_divergence(
        seen, self.reward_bound, self.discount
      )
    return metrics | {
      'td_own_abs': jnp.mean(jnp.abs(split.own)),
      'td_split': jnp.mean(split.twin),
      'td_split_abs': jnp.mean(jnp.abs(split.twin)),
      'q_max_abs': jnp.max(jnp.abs(seen)),
    }

  def _distributions(
    self, train: TrainState, beside: Params, probe: Transition
  ) -> Metrics:
    """Distributions of the actions taken, if the agent has some."""
    seen = self.learner.agent.distributions
    if seen is None:
      return {}
    answer = self._without_twin(train)
    online = answer(train.online_params, probe.obs_tm1)
    twin = answer(beside, probe.obs_tm1)

    def mean_taken(measured: chex.Array) -> chex.Array:
      return jnp.mean(jax.vmap(td.value_of)(measured, probe.a_tm1))

    return {
      'distribution_std': mean_taken(seen.std(online)),
      'distribution_distance': mean_taken(seen.distance(online, twin)),
    }

  def _features(
    self, state: PanelState, online: Params, probe: Any
  ) -> tuple[dict[str, jax.Array], Metrics]:
    """The currently dormant units, and metrics of features and units."""
    if self.look is None:
      return state.dormant, {}
    answer = self.look(online, _observed(probe))
    metrics, of_layers = feature_metrics(
      answer, rank_states=self.rank_states, thresholds=self.thresholds
    )
    if not answer.layers:
      return state.dormant, metrics
    for name, layers in of_layers.items():
      metrics |= self._named(name, (metrics[name], layers))
    dormant = {
      name: dormancy(x) <= self.overlap_threshold
      for name, x in answer.layers.items()
    }
    metrics['dormant_overlap'] = dormant_overlap(state.dormant, dormant)
    return dormant, metrics


def make_panel(
  learner: Learner,
  *,
  look: Look | None = None,
  rank_states: int = 2_048,
  thresholds: Sequence[float] = THRESHOLDS,
  overlap_threshold: float = 0.025,
  reward_bound: chex.Numeric | None = None,
  discount: chex.Numeric | None = None,
  shadows: Mapping[str, ClockedTwin] | None = None,
  per_layer: bool = True,
  known: KnownValues | None = None,
) -> Panel:
  """Builds the panel of a run.

  A measurement costs six forward passes of the probe, two gradients of the
  batch and one more for each shadow, and the ranks. At the size of Nature DQN,
  on a CPU, the forward passes of a large probe dominate.

  Args:
    learner: the run's learner; the numbers of its twin may be traced.
    look: returns activations of the base agent's network, for ranks and dormant
      units, such as `functools.partial(activations, network)`; None to leave
      both out.
    rank_states: number of the probe's first states used for ranks.
    thresholds: thresholds of dormant units.
    overlap_threshold: threshold of the units that `dormant_overlap` compares.
    reward_bound: bound for `soft_divergence`; None to leave it out.
    discount: discount per env step for `soft_divergence`; None to leave it out.
    shadows: other rules to compare with; see `shadows_init`.
    per_layer: whether to report layers too, as NAME/torso/Conv_0.
    known: returns the values that should be learned, to compare gradients with;
      None to leave `agreement` out.

  Returns:
    A panel that measures `twin_age`, `twin_distance`, `functional_distance`,
    `greedy_disagreement`, `target_mean`, `target_drift` (per gradient step),
    the metrics of `churn`, `td_own_abs`, `td_split` and `td_split_abs` (the
    twin's part; for the form `max`, whichever is learned), `q_max_abs`,
    `soft_divergence`, `srank`, `effective_rank`, `dormant_T` for each threshold
    T, `dormant_overlap`, and the metrics of `counterfactuals`. An agent that
    learns distributions also has `distribution_std`, their mean standard
    deviation, and `distribution_distance`, the mean Wasserstein-1 distance
    between the online network's and its twin's, both for the actions taken. All
    use the probe; `q_max_abs` and `soft_divergence` also use the batch.

    It also reports when it measured:
    - `drift_steps`, gradient steps since the last measurement, and
      `drift_syncs`, how often the twin moved since then. `target_drift` and
      `dormant_overlap` compare these two moments; targets of a hard twin drift
      only at syncs.
    - `churn_synced`, 1 if the twin moves with the gradient step of `churn`,
      which then includes that change, and 0 otherwise.
    - `steps_since_sync`, gradient steps since the twin moved last. For a hard
      twin this is its age, with which distances to the network grow: they
      partly reflect this phase.
  """
  base_agent, rule = learner.base, learner.clocked
  if look is not None:
    look = rule.twin.lift(base_agent._replace(values=look)).values
  measuring = _Measuring(
    learner,
    look,
    rank_states,
    thresholds,
    overlap_threshold,
    reward_bound,
    discount,
    shadows or {},
    per_layer,
    known,
    make_clock(rule),
  )
  return Panel(
    measuring.init, measuring.follow, measuring.measure, measuring.follows
  )
